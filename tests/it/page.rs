//! The web page: over HTTP, and in headless Chromium, controlled by WebDriver.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::common::log::LoggingPrefsLogLevel;
use thirtyfour::{By, ChromiumLikeCapabilities, DesiredCapabilities, WebDriver};

use crate::servers::{has_qemu, image};
use crate::support::cli::Desk;
use crate::support::http::{Ask, Reply, create, raw};
use crate::support::needs::{Need, needs};
use crate::support::noise;
use crate::support::server::TestServer;

const A: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a";
const B: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";

fn ask(server: &TestServer, head: &str, body: &str) -> Reply {
    let len = body.len();
    let request = format!("{head}Host: test\r\nContent-Length: {len}\r\n\r\n{body}");
    raw(server.address(), request.as_bytes()).unwrap()
}

/// The headers that the page itself sends with a POST.
const FROM_THE_PAGE: &str = "Sec-Fetch-Site: same-origin\r\nContent-Type: application/json\r\n";

fn login(server: &TestServer, auth: &str) -> Reply {
    let (user, key) = auth.split_once(':').unwrap();
    let body = json!({"user": user, "key": key}).to_string();
    let head = format!("POST /ui/login HTTP/1.1\r\n{FROM_THE_PAGE}");
    ask(server, &head, &body)
}

/// The header that sends a session's cookie back.
fn cookie(reply: &Reply) -> String {
    let cookie = reply.header("set-cookie").unwrap();
    format!("Cookie: {}\r\n", cookie.split(';').next().unwrap())
}

#[test]
fn a_session_shows_a_users_own_drives_and_ends() {
    let server = TestServer::with_args(&["--user", A, "--user", B]);
    let drive = create(&server, 1 << 20);
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write/524288"), noise(1, 262_144))
        .expect(204);
    let (a, b) = (login(&server, A).expect(200), login(&server, B).expect(200));
    let attributes = a.header("set-cookie").unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/ui"] {
        assert!(attributes.contains(part), "{attributes}");
    }
    assert!(!attributes.contains("key-a"));
    let get = |path: &str, cookie: &str| {
        ask(&server, &format!("GET /ui/{path} HTTP/1.1\r\n{cookie}"), "")
    };
    let state = get("state", &cookie(&a)).expect(200).json();
    assert_eq!(state["drives"][0]["id"], json!(drive));
    assert_eq!(state["drives"][0]["received"], json!(262_144));
    assert_eq!(state["drives"][0]["written_to"], json!(786_432));
    assert_eq!(
        get("state", &cookie(&b)).expect(200).json()["drives"],
        json!([])
    );
    let map = get(&format!("map/{drive}"), &cookie(&a)).expect(200).json();
    let expected = ["0".repeat(128), "9".repeat(64), "0".repeat(64)].concat();
    assert_eq!(map["cells"], json!(expected));
    assert_eq!(get(&format!("map/{drive}"), &cookie(&b)).status, 404);
    // A session is for the page, credentials are for the API.
    let api = format!("GET /drives/list HTTP/1.1\r\n{}", cookie(&a));
    assert_eq!(ask(&server, &api, "").error(), (401, "auth"));
    assert_eq!(Ask::of(&server).get("/ui/state").status, 401);
    let nobody = get("state", "");
    assert_eq!(nobody.status, 401);
    // Otherwise a browser would ask for the key itself, and store it.
    assert_eq!(nobody.header("www-authenticate"), None);

    let logout = format!("POST /ui/logout HTTP/1.1\r\n{FROM_THE_PAGE}{}", cookie(&a));
    let out = ask(&server, &logout, "{}").expect(200);
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(get("state", &cookie(&a)).status, 401);
    get("state", &cookie(&b)).expect(200);
    assert!(!server.log().contains("key-a"));
    let token = cookie(&b);
    let token = token.trim().split_once('=').unwrap().1;
    assert!(!server.log().contains(token));
}

#[test]
fn a_session_shows_a_users_own_servers_and_their_screens() {
    let server = TestServer::with_args(&["--user", A, "--user", B]);
    let make = |path: &str, keys: &str| {
        let made = Ask::of(&server).by(A).post(path, keys).expect(200);
        made.key("server").unwrap().to_owned()
    };
    let (a, b) = (login(&server, A).expect(200), login(&server, B).expect(200));
    let get = |path: &str, cookie: &str| {
        ask(&server, &format!("GET /ui/{path} HTTP/1.1\r\n{cookie}"), "")
    };
    let drive = create(&server, 4096);
    let keys = format!(
        "name s\ncpu 500\nmem 16\npersistent true\npassword canary1\nide:0:0 {drive}\n\
         ide:0:0:media cdrom\nboot ide:0:0"
    );
    let id = make("/servers/create/stopped", &keys);
    let reply = get("state", &cookie(&a)).expect(200);
    // Access to the page does not imply access to the guest.
    assert!(!reply.text().contains("canary1"));
    let state = reply.json();
    assert_eq!(
        state["servers"],
        json!([{
            "id": id, "name": "s", "status": "stopped", "cpu_mhz": 500, "cores": null,
            "mem_mb": 16, "started": null, "address": null, "vnc": null,
            "drives": [{
                "slot": "ide:0:0", "id": drive, "name": "test", "is_cdrom": true, "boots": 1,
                "read": null, "written": null,
            }],
        }])
    );
    assert_eq!(state["servers_active"], json!(0));
    let of_b = get("state", &cookie(&b)).expect(200).json();
    assert_eq!(
        (&of_b["servers"], &of_b["servers_total"]),
        (&json!([]), &json!(0))
    );
    let screen = format!("screen/{id}");
    assert_eq!(get(&screen, &cookie(&a)).status, 400);
    assert_eq!(get(&screen, &cookie(&b)).status, 404);
    assert_eq!(get("screen/x", &cookie(&a)).status, 404);
    if !has_qemu() {
        return;
    }
    let start = format!("/servers/{id}/start");
    Ask::of(&server).by(A).post(&start, "").expect(200);
    let state = get("state", &cookie(&a)).expect(200).json();
    let shown = &state["servers"][0];
    assert_eq!(
        (&shown["status"], &state["servers_active"]),
        (&json!("active"), &json!(1))
    );
    assert!(shown["vnc"].as_str().unwrap().starts_with("127."));
    assert!(shown["started"].is_u64() && shown["cores"] == 1);
    let picture = get(&screen, &cookie(&a)).expect(200);
    assert_eq!(picture.header("content-type"), Some("image/png"));
    assert_eq!(picture.header("cache-control"), Some("no-store"));
    assert!(picture.body.starts_with(b"\x89PNG"));
    // Neither another user nor a stranger sees it.
    assert_eq!(get(&screen, &cookie(&b)).status, 404);
    assert_eq!(get(&screen, "").status, 401);
}

#[test]
fn another_site_can_neither_log_in_nor_out_nor_embed_the_page() {
    let server = TestServer::with_args(&["--user", A]);
    let (user, key) = A.split_once(':').unwrap();
    let body = json!({"user": user, "key": key}).to_string();
    for headers in [
        "Content-Type: application/json\r\n",
        "Content-Type: application/json\r\nSec-Fetch-Site: cross-site\r\n",
        "Content-Type: application/json\r\nOrigin: http://elsewhere\r\n",
        "Content-Type: text/plain\r\nSec-Fetch-Site: same-origin\r\n",
    ] {
        let reply = ask(
            &server,
            &format!("POST /ui/login HTTP/1.1\r\n{headers}"),
            &body,
        );
        assert_eq!(reply.status, 400, "{headers}");
        assert_eq!(reply.header("set-cookie"), None);
    }
    let session = cookie(&login(&server, A).expect(200));
    let out = format!("POST /ui/logout HTTP/1.1\r\nOrigin: http://elsewhere\r\n{session}");
    assert_eq!(ask(&server, &out, "{}").status, 400);
    for path in ["", "page.js", "page.css", "icon.svg", "state", "nosuch"] {
        let reply = ask(
            &server,
            &format!("GET /ui/{path} HTTP/1.1\r\n{session}"),
            "",
        );
        let policy = reply.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';"),
            "{path}"
        );
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    // Wrong keys count as they do in the API.
    let server = TestServer::with_args(&["--user", A, "--wrong-key-limit", "2/h"]);
    for _ in 0..2 {
        assert_eq!(login(&server, B).status, 401);
    }
    assert_eq!(login(&server, A).status, 429);
    assert_eq!(Ask::of(&server).get("/drives/list").error(), (429, "busy"));
}

#[test]
fn the_page_is_for_browsers_and_can_be_disabled() {
    let server = TestServer::start();
    let html = "GET / HTTP/1.1\r\nAccept: text/html,*/*\r\n";
    let reply = ask(&server, html, "");
    assert_eq!(
        (reply.status, reply.header("location")),
        (303, Some("/ui/"))
    );
    assert_eq!(
        ask(&server, "GET / HTTP/1.1\r\n", "").error(),
        (401, "auth")
    );
    assert_eq!(Ask::of(&server).get("/").error(), (404, "missing"));
    let server = TestServer::with_args(&["--no-page"]);
    for head in [html, "GET /ui/ HTTP/1.1\r\n"] {
        assert_eq!(ask(&server, head, "").error(), (401, "auth"));
    }
}

/// Chromium without a window, and its driver. Both end when this is dropped.
struct Browser {
    driver: WebDriver,
    control: String,
    process: Child,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends the browser as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    /// `None`, with a message, if Chromium is not installed.
    async fn open() -> Option<Self> {
        if !needs(&["chromium", "chromedriver"].map(Need::Command)) {
            return None;
        }
        let profile = TempDir::new().unwrap();
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", profile.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let port = stdout.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let control = format!(
            "http://127.0.0.1:{}",
            port.expect("chromedriver printed no port")
        );
        // The HTTP client of the driver needs a provider, although it does not use TLS.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut wanted = DesiredCapabilities::chrome();
        let data = format!(
            "--user-data-dir={}",
            profile.path().join("profile").display()
        );
        for arg in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,900",
            &data,
        ] {
            wanted.add_arg(arg).unwrap();
        }
        wanted
            .set_browser_log_level(LoggingPrefsLogLevel::All)
            .unwrap();
        let driver = WebDriver::new(&control, wanted).await.unwrap();
        Some(Self {
            driver,
            control,
            process,
            _profile: profile,
        })
    }

    /// A command of Chromium's own protocol.
    async fn cdp(&self, command: &str, params: Value) -> Value {
        let session = self.driver.session_id();
        let url = format!("{}/session/{session}/goog/cdp/execute", self.control);
        let body = json!({"cmd": command, "params": params}).to_string();
        let answer = reqwest::Client::new().post(url).body(body).send().await;
        let answer = answer.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["value"].clone()
    }

    async fn script(&self, script: &str) -> Value {
        let done = self.driver.execute(script, Vec::new()).await.unwrap();
        done.json().clone()
    }

    /// The text of an element; empty if it is hidden.
    async fn text(&self, id: &str) -> String {
        self.driver
            .find(By::Id(id))
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    async fn is_shown(&self, id: &str) -> bool {
        let element = self.driver.find(By::Id(id)).await.unwrap();
        element.is_displayed().await.unwrap()
    }

    async fn log_in(&self, auth: &str) {
        let (user, key) = auth.split_once(':').unwrap();
        for (id, text) in [("name", user), ("key", key)] {
            let field = self.driver.find(By::Id(id)).await.unwrap();
            field.clear().await.unwrap();
            field.send_keys(text).await.unwrap();
        }
        let button = By::Css("#login button");
        self.driver
            .find(button)
            .await
            .unwrap()
            .click()
            .await
            .unwrap();
    }

    /// Saves a picture if `OH_SCREENSHOTS` is set.
    async fn picture(&self, name: &str) {
        if let Some(directory) = std::env::var_os("OH_SCREENSHOTS") {
            let path = Path::new(&directory).join(name);
            self.driver.screenshot(&path).await.unwrap();
        }
    }

    /// Resizes the window, for example to that of a phone; pictures are 1:1.
    async fn resize(&self, width: u32, height: u32, is_phone: bool) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone,
        });
        self.cdp("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets the preferred colour scheme, light or dark.
    async fn colours(&self, scheme: &str) {
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.cdp("Emulation.setEmulatedMedia", scheme).await;
    }

    /// How far anything extends beyond the right edge.
    async fn sticks_out(&self) -> Value {
        self.script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
        )
        .await
    }

    /// Asserts that the policy refused nothing and no script failed. Answers with these statuses
    /// are the only ones that may be reported.
    async fn assert_no_complaint(&self, expected: &[&str]) {
        let log = self.driver.get_log("browser").await.unwrap();
        for entry in log {
            let text = format!("{entry:?}");
            let is_known = expected.iter().any(|status| text.contains(status));
            assert!(is_known || !text.contains("SEVERE"), "{text}");
            assert!(!text.contains("Content Security Policy"), "{text}");
        }
    }

    /// Number of nodes and listeners, including those that only scripts hold.
    async fn counts(&self) -> (u64, u64) {
        self.cdp("HeapProfiler.collectGarbage", json!({})).await;
        let counters = self.cdp("Memory.getDOMCounters", json!({})).await;
        let count = |key: &str| counters[key].as_u64().unwrap();
        (count("nodes"), count("jsEventListeners"))
    }
}

/// Waits until a condition holds; the timeout guards against hanging and does not promise any
/// speed.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_an_upload_as_it_happens() {
    let Some(browser) = Browser::open().await else {
        return;
    };
    let desk = Desk::new();
    let server = desk.server();
    browser.driver.goto(&server.uri).await.unwrap();
    let at = browser.driver.current_url().await.unwrap();
    assert_eq!(at.path(), "/ui/");
    until("the form", || browser.is_shown("login")).await;
    browser.picture("login.png").await;

    browser.log_in(&format!("{}:wrong", desk.user)).await;
    until("a refusal", async || {
        !browser.text("refused").await.is_empty()
    })
    .await;
    assert!(browser.is_shown("login").await && !browser.is_shown("overview").await);

    browser.log_in(&desk.auth()).await;
    until("the overview", || browser.is_shown("overview")).await;
    assert_eq!(browser.text("user").await, desk.user);
    assert!(browser.is_shown("no-drives").await);
    // No cookie that a script can read, and the key is nowhere on the page.
    assert_eq!(browser.script("return document.cookie").await, json!(""));
    assert_eq!(
        browser
            .script("return document.getElementById('key').value")
            .await,
        json!("")
    );

    // Some existing drives with other contents.
    for (name, places) in [
        ("web & <b>shop</b>", &[0u64, 3, 4, 12][..]),
        ("archive", &[1, 14]),
    ] {
        let body = format!("name {name}\nsize {}", 16 << 20);
        let made = Ask::of(&server)
            .by(&desk.auth())
            .post("/drives/create", body);
        let drive = made.expect(200).key("drive").unwrap().to_owned();
        for place in places {
            let path = format!("/drives/{drive}/write/{}", place << 20);
            let bytes = noise(*place, 700_000 + (*place as usize) * 20_000);
            Ask::of(&server)
                .by(&desk.auth())
                .post(&path, bytes)
                .expect(204);
        }
    }
    let shown = || browser.text("drives");
    // A name is shown as text, not as markup.
    until("a drive", async || {
        shown().await.contains("web & <b>shop</b>")
    })
    .await;

    let image = desk.file("disk.img", &noise(9, 12 << 20));
    let tool = desk
        .upload(&server.uri)
        .args("--limit-rate 1500k -c 262144");
    let upload = tool.arg(&image).spawn();
    until("the drive", async || shown().await.contains("disk.img")).await;
    let moving = || browser.text("transfers");
    until("its rate", async || {
        let text = moving().await;
        text.contains("disk.img") && text.contains("receiving") && text.contains("/s")
    })
    .await;
    until("its progress", async || {
        moving().await.contains("% of the disk")
    })
    .await;
    until("its state", async || shown().await.contains("uploading")).await;
    let rate = browser.text("total-received").await;
    assert!(rate.contains("iB/s"), "{rate}");
    // Some seconds of transfer for the picture.
    until("a line", async || {
        let points = "return document.querySelector('polyline')?.getAttribute('points') ?? ''";
        let points = browser.script(points).await;
        points.as_str().unwrap().split(' ').count() >= 5
    })
    .await;
    browser.picture("upload.png").await;
    let outcome = tokio::task::block_in_place(|| upload.wait());
    let drive = outcome.code(0).created();
    until("its end", async || moving().await.is_empty()).await;
    until("its map", async || {
        let label = format!(
            "return document.querySelector('[data-drive=\"{drive}\"] canvas').ariaLabel \
             ?? document.querySelector('[data-drive=\"{drive}\"] canvas').getAttribute('aria-label')"
        );
        browser.script(&label).await == json!("About 100 % of it holds data")
    })
    .await;

    // On a phone nothing extends beyond the edge, in dark colours as well.
    browser.resize(390, 844, true).await;
    browser.colours("dark").await;
    assert_eq!(browser.sticks_out().await, json!(0));
    browser
        .cdp("Emulation.clearDeviceMetricsOverride", json!({}))
        .await;

    // Drives that appear and disappear leave nothing behind.
    let rows = "return document.querySelectorAll('#drives tr').length";
    until("3 rows", async || browser.script(rows).await == json!(3)).await;
    let (nodes, listeners) = browser.counts().await;
    for _ in 0..2 {
        let made: Vec<_> = (0..20)
            .map(|_| {
                let made = Ask::of(&server)
                    .by(&desk.auth())
                    .post("/drives/create", "size 1M");
                made.expect(200).key("drive").unwrap().to_owned()
            })
            .collect();
        until("23 rows", async || browser.script(rows).await == json!(23)).await;
        for drive in made {
            let path = format!("/drives/{drive}/destroy");
            Ask::of(&server)
                .by(&desk.auth())
                .post(&path, "")
                .expect(204);
        }
        until("3 rows", async || browser.script(rows).await == json!(3)).await;
    }
    until("what was made for them is gone", async || {
        let (now, listening) = browser.counts().await;
        now <= nodes + 20 && listening <= listeners
    })
    .await;

    let logout = browser.driver.find(By::Id("logout")).await.unwrap();
    logout.click().await.unwrap();
    until("the form", || browser.is_shown("login")).await;
    browser.driver.refresh().await.unwrap();
    until("the form", || browser.is_shown("login")).await;
    assert!(!browser.is_shown("overview").await);

    browser.assert_no_complaint(&["401"]).await;
    let _ = browser.driver.clone().quit().await;
}

/// Reads the screen of server ID: the number of pixels that are not black, and a checksum of all.
const SCREEN: &str = "
    const canvas = document.querySelector(`#servers article[data-server='ID'] canvas`);
    const points = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let bright = 0, sum = 0;
    for (let i = 0; i < points.length; i += 4) {
      if (points[i] > 60) { bright += 1; sum = (sum * 31 + i) % 1000003; }
    }
    return [bright, sum, canvas.getAttribute('aria-label')];";

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_servers_with_their_screens() {
    if !has_qemu() {
        return;
    }
    let Some(browser) = Browser::open().await else {
        return;
    };
    let desk = Desk::new();
    let server = desk.server();
    let post = |path: &str, body: &[u8]| Ask::of(&server).by(&desk.auth()).post(path, body);
    let make = |path: &str, keys: &str, id: &str| {
        let made = post(path, keys.as_bytes()).expect(200);
        made.key(id).unwrap().to_owned()
    };
    let fill = |drive: &str, at: u64, bytes: &[u8]| {
        post(&format!("/drives/{drive}/write/{at}"), bytes).expect(204);
    };
    let boot = make("/drives/create", "name web-root\nsize 2M", "drive");
    fill(&boot, 0, &image(b'i'));
    let data = make("/drives/create", "name web-data\nsize 16M", "drive");
    for place in [1, 4, 5, 12] {
        fill(&data, place << 20, &noise(place, 700_000));
    }
    browser.resize(1200, 1340, false).await;
    browser.driver.goto(&server.uri).await.unwrap();
    until("the form", || browser.is_shown("login")).await;
    browser.log_in(&desk.auth()).await;
    until("the overview", || browser.is_shown("overview")).await;
    assert!(browser.is_shown("no-servers").await);
    assert_eq!(browser.text("total-servers").await, "0 of 0");

    let keys = format!(
        "name web <i>1</i>\ncpu 2000\nmem 64\npersistent true\nide:0:0 {boot}\nblock:0 {data}\n\
         boot ide:0:0\nnic:0:model e1000\nnic:0:dhcp auto\nvnc auto\npassword canary1"
    );
    let id = make("/servers/create", &keys, "server");
    let shown = || browser.text("servers");
    // The page shows text, and what it shows is correct.
    until("the server", async || {
        shown().await.contains("web <i>1</i>")
    })
    .await;
    let text = shown().await;
    for part in [
        &id,
        "active",
        "2000 MHz, 1 core",
        "64 MB",
        "ide:0:0 web-root, boots",
        "block:0 web-data",
        ":5900",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("canary1"));
    assert_eq!(browser.text("total-servers").await, "1 of 1");
    let screen = async || {
        let values = browser.script(&SCREEN.replace("ID", &id)).await;
        let number = |i: usize| values[i].as_u64().unwrap();
        (number(0), number(1), values[2].as_str().unwrap().to_owned())
    };
    // What the guest displays is visible, and announced to screen readers.
    let command = |command: &str| post(&format!("/servers/{id}/{command}"), b"");
    let console = || command("console").text().to_owned();
    until("the guest runs", async || console().contains("boot 1")).await;
    until("its screen", async || {
        let (bright, _, label) = screen().await;
        bright > 100 && label.starts_with("Screen of web <i>1</i>, 720 × 400")
    })
    .await;
    // The picture is updated: the next boot is visible as well.
    let (_, first, _) = screen().await;
    command("reset").expect(204);
    until("the next boot", async || console().contains("boot 2")).await;
    until("another screen", async || screen().await.1 != first).await;
    command("suspend").expect(204);
    until("it is paused", async || shown().await.contains("paused")).await;
    command("resume").expect(204);
    until("it is active", async || shown().await.contains("active")).await;

    // For the picture: an upload in progress, and a server that is off.
    let off = format!("name backup\ncpu 500\nmem 32\npersistent true\nide:0:0 {data}");
    let off = make("/servers/create/stopped", &off, "server");
    let disk = desk.file("disk.img", &noise(9, 12 << 20));
    let tool = desk
        .upload(&server.uri)
        .args("--limit-rate 1500k -c 262144");
    let upload = tool.arg(&disk).spawn();
    until("a line", async || {
        let points = "return document.querySelector('polyline')?.getAttribute('points') ?? ''";
        let points = browser.script(points).await;
        points.as_str().unwrap().split(' ').count() >= 5
    })
    .await;
    until("both", async || {
        browser.text("total-servers").await == "1 of 2"
    })
    .await;
    browser.picture("page.png").await;
    browser.colours("dark").await;
    browser.picture("dark.png").await;
    browser.resize(390, 1500, true).await;
    assert_eq!(browser.sticks_out().await, json!(0));
    browser.picture("phone.png").await;
    browser.colours("light").await;
    browser.resize(1200, 1340, false).await;
    tokio::task::block_in_place(|| upload.wait()).code(0);

    // What is not visible is not requested.
    let asked = |what: &str| server.log().matches(&format!("path=\"/ui/{what}")).count();
    let display =
        |display: &str| format!("document.getElementById('servers').style.display = '{display}'");
    browser.script(&display("none")).await;
    let seen = "return document.querySelector('#servers article').getBoundingClientRect().height";
    until("it is hidden", async || {
        browser.script(seen).await == json!(0)
    })
    .await;
    let looks = async |more: usize| {
        let states = asked("state");
        until("some looks", async || asked("state") >= states + more).await;
    };
    // One request may have been in progress.
    looks(2).await;
    let screens = asked("screen");
    assert!(screens > 0);
    looks(3).await;
    assert_eq!(asked("screen"), screens);
    browser.script(&display("")).await;
    until("it is asked for again", async || asked("screen") > screens).await;

    // A server that ends is shown as stopped, without the last picture.
    command("stop").expect(204);
    until("its end", async || {
        let (bright, _, label) = screen().await;
        bright == 0 && label == "No picture: it is off"
    })
    .await;
    assert_eq!(browser.text("total-servers").await, "0 of 2");
    for gone in [&id, &off] {
        post(&format!("/servers/{gone}/destroy"), b"").expect(204);
    }
    until("no server", || browser.is_shown("no-servers")).await;
    let cards = "return document.querySelectorAll('#servers article').length";
    assert_eq!(browser.script(cards).await, json!(0));
    // A request for a picture during the end or destruction of the server is refused.
    browser.assert_no_complaint(&["401", "400", "404"]).await;
    let _ = browser.driver.clone().quit().await;
}
