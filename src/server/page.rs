//! The web page at `/ui/`: a user's drives, what moves to and from them, and servers
//! with their screens, for a person to look at. It changes nothing.
//!
//! A user logs in with the same credentials and gets a session: a random token in a
//! cookie that scripts cannot read and other sites cannot send. What is sent by POST
//! must come from the page itself, as the browser says. All it is made of is compiled
//! in; its policy lets nothing else run or load.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::answer::{Answer, Refusal, file, full};
use super::auth::digest;
use super::body::{self, Incoming};
use super::budget::PATIENCE;
use super::drives::{Api, blocking};
use super::hosted::{Hosted, lock};
use super::machine::{Machine, MachineId};
use super::origin::is_from_page;
use super::record::Record;
use super::sparse::Extents;
use super::work::in_turns;
use crate::drive::DriveId;

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/icon.svg");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
const COOKIE_NAME: &str = "openhosting_session";
/// A session ends when nobody looked for so long, and in any case after a day's work.
const IDLE: Duration = Duration::from_secs(30 * 60);
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Sessions of one user at once; another ends the oldest.
const SESSIONS_MAX: usize = 16;
/// Drives that one state tells of.
const DRIVES_MAX: usize = 500;
/// Servers that one state tells of.
const SERVERS_MAX: usize = 100;
/// Characters of a name that are shown.
const NAME_CHARS_MAX: usize = 200;
/// Parts of a map.
const CELLS: u64 = 256;
/// How often a file may be asked for its next 4096 extents, for one map.
const LOOKS: usize = 8;

/// The page and who looks at it.
pub(super) struct Page {
    is_tls: bool,
    /// By the digests of their tokens.
    sessions: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    user: Arc<str>,
    began: Instant,
    seen: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.began) > LIFE || now.duration_since(self.seen) > IDLE
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Page {
    pub(super) fn new(is_tls: bool) -> Self {
        Self {
            is_tls,
            sessions: Mutex::default(),
        }
    }

    /// Begins a session, and gives the cookie for it.
    fn begin(&self, user: &Arc<str>, now: Instant) -> Option<HeaderValue> {
        let [a, b] = [(); 2].map(|()| Uuid::new_v4().simple().to_string());
        let token = Zeroizing::new(a + &b);
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| !session.is_over(now));
        let own = sessions.iter().filter(|(_, session)| session.user == *user);
        if own.clone().count() >= SESSIONS_MAX
            && let Some((&oldest, _)) = own.min_by_key(|(_, session)| session.seen)
        {
            sessions.remove(&oldest);
        }
        let session = Session {
            user: Arc::clone(user),
            began: now,
            seen: now,
        };
        sessions.insert(digest(token.as_bytes()), session);
        self.cookie(&token, LIFE)
    }

    /// Whose session a request belongs to.
    fn user(&self, headers: &HeaderMap, now: Instant) -> Option<Arc<str>> {
        let mut sessions = lock(&self.sessions);
        tokens(headers).find_map(|token| {
            let session = sessions.get_mut(&digest(token.as_bytes()))?;
            if session.is_over(now) {
                return None;
            }
            session.seen = now;
            Some(Arc::clone(&session.user))
        })
    }

    /// Ends the session of a request; the cookie that takes the other one back.
    fn end(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut sessions = lock(&self.sessions);
        for token in tokens(headers) {
            sessions.remove(&digest(token.as_bytes()));
        }
        self.cookie("", Duration::ZERO)
    }

    fn cookie(&self, token: &str, life: Duration) -> Option<HeaderValue> {
        let secure = if self.is_tls { "; Secure" } else { "" };
        let life = life.as_secs();
        let cookie = Zeroizing::new(format!(
            "{COOKIE_NAME}={token}; Path=/ui; Max-Age={life}; HttpOnly; SameSite=Strict{secure}"
        ));
        let mut cookie = HeaderValue::from_str(&cookie).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }
}

/// The tokens of a request: another path or port may have set one of its own.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .filter(|(name, _)| *name == COOKIE_NAME)
        .map(|(_, token)| token)
}

/// Whether a request is for the page and not for the API.
pub(super) fn is_for<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    // A browser that is given the endpoint's address wants the page.
    path == "/ui" || path.starts_with("/ui/") || path == "/" && is_browser(request.headers())
}

/// Answers a request for the page.
pub(super) async fn answer(
    api: &Arc<Api>,
    page: &Page,
    request: Request<Incoming>,
    record: &Record,
) -> Answer {
    let path = request.uri().path().strip_prefix("/ui/");
    let Some(path) = path.map(str::to_owned) else {
        return redirect();
    };
    let answered = match *request.method() {
        Method::GET => get(api, page, &path, request.headers(), record).await,
        Method::POST => post(api, page, &path, request, record).await,
        _ => Err(Refusal::method(
            "GET, POST",
            "The page knows GET and POST only",
        )),
    };
    guarded(answered.unwrap_or_else(|refusal| refused(&refusal)))
}

fn is_browser(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn redirect() -> Answer {
    let mut answer = Response::new(full(String::new()));
    *answer.status_mut() = StatusCode::SEE_OTHER;
    let page = HeaderValue::from_static("/ui/");
    answer.headers_mut().insert(LOCATION, page);
    answer
}

/// With what keeps a browser from doing anything but what the page is for.
fn guarded(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn json(value: &Value) -> Answer {
    file(value.to_string(), "application/json")
}

/// As the page shows it. Without the challenge of 401, at which a browser would ask
/// for credentials itself and keep them.
fn refused(refusal: &Refusal) -> Answer {
    let api = refusal.to_answer();
    let mut answer = json(&json!({"error": refusal.to_string()}));
    *answer.status_mut() = api.status();
    if let Some(wait) = api.headers().get(RETRY_AFTER) {
        answer.headers_mut().insert(RETRY_AFTER, wait.clone());
    }
    answer
}

async fn get(
    api: &Arc<Api>,
    page: &Page,
    path: &str,
    headers: &HeaderMap,
    record: &Record,
) -> Result<Answer, Refusal> {
    match path {
        "" => return Ok(file(HTML, "text/html; charset=utf-8")),
        "page.css" => return Ok(file(CSS, "text/css; charset=utf-8")),
        "page.js" => return Ok(file(JS, "text/javascript; charset=utf-8")),
        "icon.svg" => return Ok(file(ICON, "image/svg+xml")),
        _ => {}
    }
    let user = page.user(headers, Instant::now());
    let user = user.ok_or_else(Refusal::auth)?;
    record.set_user(&user)?;
    let _turn = api.budgets.requests.take_within(&user, 1, PATIENCE).await?;
    match path.split_once('/') {
        None if path == "state" => state(api, user).await,
        Some(("map", id)) => {
            let id: DriveId = id.parse().map_err(|_| Refusal::no_drive())?;
            map(api, &user, id).await
        }
        Some(("screen", id)) => {
            let id = MachineId::parse(id).ok_or_else(Refusal::no_server)?;
            let machine = api.machines.own(&user, id)?;
            Ok(file(api.machines.screen(&machine).await?, "image/png"))
        }
        _ => Err(Refusal::no_command()),
    }
}

async fn post(
    api: &Arc<Api>,
    page: &Page,
    path: &str,
    request: Request<Incoming>,
    record: &Record,
) -> Result<Answer, Refusal> {
    if !is_from_page(request.headers()) {
        return Err(Refusal::usage("The request does not come from the page"));
    }
    let (answer, cookie) = match path {
        "login" => {
            let user = login(api, request, record).await?;
            record.set_user(&user)?;
            tracing::info!(user = &*user, "Logged in on the page");
            (
                json(&json!({"user": &*user})),
                page.begin(&user, Instant::now()),
            )
        }
        "logout" => (json(&json!({})), page.end(request.headers())),
        _ => return Err(Refusal::no_command()),
    };
    let mut answer = answer;
    let cookie = cookie.ok_or_else(|| Refusal::system("Cannot make a session"))?;
    answer.headers_mut().insert(SET_COOKIE, cookie);
    Ok(answer)
}

async fn login(
    api: &Arc<Api>,
    request: Request<Incoming>,
    record: &Record,
) -> Result<Arc<str>, Refusal> {
    let wrong = || Refusal::usage("The body is not user and key");
    let body = Zeroizing::new(body::small(request.into_body()).await?);
    let fields: Value = serde_json::from_slice(&body).map_err(|_| wrong())?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str).ok_or_else(wrong);
    let (user, key) = (text("user")?, text("key")?);
    let prove = || api.users.prove_pair(user, key);
    api.guard.prove(record.from(), prove)
}

/// What the page shows of a user's drives and servers.
async fn state(api: &Arc<Api>, user: Arc<str>) -> Result<Answer, Refusal> {
    let api = Arc::clone(api);
    // Asks the kernel about each file.
    blocking(move || {
        let drives = api.store.select(|metadata| *metadata.user == *user);
        let told: Vec<Value> = drives.iter().take(DRIVES_MAX).map(|d| drive(d)).collect();
        let machines = api.machines.of_user(&user);
        let servers = machines.iter().take(SERVERS_MAX);
        let servers: Vec<Value> = servers.map(|m| server(&api, &user, m)).collect();
        let active = machines.iter().filter(|m| m.state().status() == "active");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(json(&json!({
            "user": &*user,
            "now_ms": now.map_or(0, |now| now.as_millis() as u64),
            "drives_total": drives.len(),
            "drives": told,
            "servers_total": machines.len(),
            "servers_active": active.count(),
            "servers": servers,
        })))
    })
    .await
}

fn drive(drive: &Hosted) -> Value {
    let info = drive.info(true);
    let (received, sent, in_flight) = drive.traffic.look();
    json!({
        "id": drive.id.to_string(),
        "name": clipped(info.get("name")),
        "size": drive.size(),
        "allocated": drive.allocated_bytes(),
        "status": info.get("status"),
        "imaging": info.get("imaging"),
        "received": received,
        "sent": sent,
        "in_flight": in_flight,
    })
}

/// A name as the page shows it: users choose them, and a state has hundreds of them.
fn clipped(name: Option<&str>) -> Option<String> {
    name.map(|name| name.chars().take(NAME_CHARS_MAX).collect())
}

/// No key of it but these: one that is not here is the password.
fn server(api: &Api, user: &str, machine: &Machine) -> Value {
    // The guest is not asked, nor what runs it: this is told once a second.
    let info = api.machines.info_as_known(machine);
    let number = |key: &str| info.get(key).and_then(|value| value.parse::<u64>().ok());
    let has_vnc = api.machines.has_vnc_port();
    let devices = machine.state().settings.devices();
    let drives = devices.iter().map(|device| {
        let slot = device.slot.to_string();
        let drive = api.store.readable(user, device.drive).ok();
        json!({
            "slot": slot,
            "id": device.drive.to_string(),
            "name": drive.and_then(|drive| clipped(drive.info(false).get("name"))),
            "is_cdrom": device.is_cdrom,
            "boots": device.boot_index.map(|index| index + 1),
            "read": number(&format!("{slot}:read:bytes")),
            "written": number(&format!("{slot}:write:bytes")),
        })
    });
    json!({
        "id": machine.id.to_string(),
        "name": clipped(info.get("name")),
        "status": info.get("status"),
        "cpu_mhz": number("cpu"),
        "cores": number("smp:cores"),
        "mem_mb": number("mem"),
        "started": number("started"),
        "address": info.get("nic:0:ip"),
        "vnc": info.get("vnc:ip").filter(|_| has_vnc),
        "drives": drives.collect::<Vec<_>>(),
    })
}

/// Where a drive holds data: a digit from 0 to 9 for each of the parts of its
/// length, `?` where the file was asked too often.
async fn map(api: &Arc<Api>, user: &str, id: DriveId) -> Result<Answer, Refusal> {
    let drive = api.store.own(user, id)?;
    let (_share, job) = api.join_digests(&Arc::from(user)).await?;
    let mut map = Map::new(&drive);
    let cells = in_turns(job, move || Ok(map.step(&drive))).await?;
    Ok(json(&json!({"cells": cells})))
}

/// A map that is being drawn.
struct Map {
    size: u64,
    cell_bytes: u64,
    /// Bytes of data in each cell.
    data: Vec<u64>,
    extents: Extents,
    /// How often extents were listed.
    looks: usize,
}

impl Map {
    fn new(drive: &Hosted) -> Self {
        let size = drive.size();
        let cell_bytes = size.div_ceil(CELLS).max(1);
        Self {
            size,
            cell_bytes,
            data: vec![0; size.div_ceil(cell_bytes) as usize],
            extents: Extents::new(0..size),
            looks: 0,
        }
    }

    /// Goes on for a moment; gives the digits at the end.
    fn step(&mut self, drive: &Hosted) -> Option<String> {
        let (extents, at) = self.extents.step(&drive.file)?;
        for extent in extents {
            let mut start = extent.start;
            while start < extent.end {
                let cell = start / self.cell_bytes;
                let end = extent.end.min((cell + 1) * self.cell_bytes);
                self.data[cell as usize] += end - start;
                start = end;
            }
        }
        self.looks += 1;
        if at < self.size && self.looks < LOOKS {
            self.extents = Extents::new(at..self.size);
            return None;
        }
        Some(self.digits(at))
    }

    fn digits(&self, at: u64) -> String {
        let digit = |(i, &bytes): (usize, &u64)| {
            let start = i as u64 * self.cell_bytes;
            let len = self.cell_bytes.min(self.size - start);
            match start + len > at {
                true => '?',
                // Rounded up: what there is shows.
                false => char::from(b'0' + (bytes as f64 * 9.0 / len as f64).ceil().min(9.0) as u8),
            }
        };
        self.data.iter().enumerate().map(digit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::origin::tests::headers;
    use super::*;

    fn asked_with(cookie: &HeaderValue) -> HeaderMap {
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
        headers(&[("cookie", &format!("other=1; {cookie}"))])
    }

    #[test]
    fn a_session_is_its_users_and_ends() {
        let page = Page::new(true);
        let now = Instant::now();
        let (a, b) = ("a".into(), "b".into());
        let cookie = page.begin(&a, now).unwrap();
        let text = cookie.to_str().unwrap();
        for part in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/ui"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!format!("{cookie:?}").contains(COOKIE_NAME));
        let other = page.begin(&b, now).unwrap();
        assert_eq!(page.user(&asked_with(&cookie), now), Some(a.clone()));
        assert_eq!(page.user(&asked_with(&other), now), Some(b));
        let guess = headers(&[("cookie", "openhosting_session=0123456789abcdef")]);
        assert_eq!(page.user(&guess, now), None);
        assert_eq!(page.user(&HeaderMap::new(), now), None);
        // Looked at now and then it lasts, but not for ever.
        let mut at = now;
        while at.duration_since(now) < LIFE - IDLE {
            at += IDLE;
            assert_eq!(page.user(&asked_with(&cookie), at), Some(a.clone()));
        }
        assert_eq!(page.user(&asked_with(&cookie), now + LIFE + IDLE), None);
        assert_eq!(page.user(&asked_with(&other), now + IDLE + IDLE), None);
        page.end(&asked_with(&cookie)).unwrap();
        assert_eq!(page.user(&asked_with(&cookie), at), None);
    }

    #[test]
    fn sessions_of_a_user_are_bounded() {
        let page = Page::new(false);
        let now = Instant::now();
        let user = "a".into();
        let cookies: Vec<_> = (0..SESSIONS_MAX as u64 + 5)
            .map(|i| page.begin(&user, now + Duration::from_secs(i)).unwrap())
            .collect();
        assert!(!cookies[0].to_str().unwrap().contains("Secure"));
        assert_eq!(lock(&page.sessions).len(), SESSIONS_MAX);
        let at = now + Duration::from_secs(60);
        assert_eq!(page.user(&asked_with(&cookies[4]), at), None);
        assert_eq!(page.user(&asked_with(&cookies[5]), at), Some(user));
    }

    #[test]
    fn what_another_site_sends_is_refused() {
        let json = ("content-type", "application/json");
        let host = ("host", "h:1");
        for (pairs, is_same) in [
            (vec![json, host, ("sec-fetch-site", "same-origin")], true),
            (vec![json, host, ("origin", "https://h:1")], true),
            (vec![json, host], false),
            (vec![json, host, ("sec-fetch-site", "cross-site")], false),
            (
                vec![
                    json,
                    host,
                    ("sec-fetch-site", "same-site"),
                    ("origin", "http://h:1"),
                ],
                false,
            ),
            (vec![json, host, ("origin", "https://h:2")], false),
            (vec![json, host, ("origin", "null")], false),
            (vec![host, ("sec-fetch-site", "same-origin")], false),
            (
                vec![
                    ("content-type", "text/plain"),
                    host,
                    ("origin", "http://h:1"),
                ],
                false,
            ),
        ] {
            assert_eq!(is_from_page(&headers(&pairs)), is_same, "{pairs:?}");
        }
    }

    #[test]
    fn nothing_of_the_page_is_from_elsewhere_or_inline() {
        for text in [HTML, CSS, JS, ICON] {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("//cdn"));
        }
        assert!(!HTML.contains("<style") && !HTML.contains(" style=") && !HTML.contains(" on"));
        assert!(!JS.contains("innerHTML") && !JS.contains("eval("));
    }
}
