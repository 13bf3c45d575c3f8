//! The web page at `/ui/`: a user's drives, the transfers to and from them, and servers with their
//! screens. It is read-only.
//!
//! A user logs in with the same credentials and gets a session (`sessions.rs`). A POST must come
//! from the page itself, according to the browser. All its files are compiled in; its content
//! security policy allows nothing else.

mod map;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::header::{ACCEPT, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, SET_COOKIE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use self::map::Map;
use super::answer::{self, Answer, file, full};
use super::body::{self, Incoming};
use super::budget::SHARE_WAIT_MAX;
use super::hosted::Hosted;
use super::origin::is_from_page;
use super::record::RequestRecord;
use super::sessions::Sessions;
use super::shared::Api;
use super::tasks::blocking;
use super::work::in_turns;
use openhosting_base::condition::Condition;
use openhosting_base::drive::{DriveId, claiming_server};
use openhosting_base::wire::Properties;
use openhosting_tenancy::Refusal;
use openhosting_vm::{Machine, MachineId};

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/icon.svg");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Maximum drives in one answer. The page requests one every second, so this bounds the work. A
/// longer list is of no use on a page.
const DRIVES_MAX: usize = 500;
/// Maximum servers in one answer, for the same reason.
const SERVERS_MAX: usize = 100;
/// Maximum characters of a name that are shown. Names may have thousands.
const NAME_CHARS_MAX: usize = 200;

/// Whether a request is for the page and not for the API.
pub(super) fn is_for<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    // A browser that opens the endpoint's address wants the page.
    path == "/ui" || path.starts_with("/ui/") || path == "/" && is_browser(request.headers())
}

/// Answers a request for the page.
pub(super) async fn answer(
    api: &Arc<Api>,
    sessions: &Sessions,
    request: Request<Incoming>,
    record: &RequestRecord,
) -> Answer {
    let path = request.uri().path().strip_prefix("/ui/");
    let Some(path) = path.map(str::to_owned) else {
        return redirect();
    };
    let answered = match *request.method() {
        Method::GET => get(api, sessions, &path, request.headers(), record).await,
        Method::POST => post(api, sessions, &path, request, record).await,
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

/// Adds headers that keep a browser from doing anything else than what the page needs.
fn guarded(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn json(value: &Value) -> Answer {
    file(value.to_string(), "application/json")
}

/// A refusal as the page shows it. It has no 401 challenge, because a browser would then ask for
/// credentials itself and store them.
fn refused(refusal: &Refusal) -> Answer {
    let mut answer = json(&json!({"error": refusal.to_string()}));
    *answer.status_mut() = answer::refusal(refusal).status();
    if let Some(seconds) = refusal.retry_after_s() {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

async fn get(
    api: &Arc<Api>,
    sessions: &Sessions,
    path: &str,
    headers: &HeaderMap,
    record: &RequestRecord,
) -> Result<Answer, Refusal> {
    match path {
        "" => return Ok(file(HTML, "text/html; charset=utf-8")),
        "page.css" => return Ok(file(CSS, "text/css; charset=utf-8")),
        "page.js" => return Ok(file(JS, "text/javascript; charset=utf-8")),
        "icon.svg" => return Ok(file(ICON, "image/svg+xml")),
        _ => {}
    }
    let user = sessions.user(headers, Instant::now());
    let user = user.ok_or_else(Refusal::auth)?;
    record.set_user(&user)?;
    let _turn = api
        .budgets
        .requests
        .take_within(&user, 1, SHARE_WAIT_MAX)
        .await?;
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
    sessions: &Sessions,
    path: &str,
    request: Request<Incoming>,
    record: &RequestRecord,
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
                sessions.begin(&user, Instant::now()),
            )
        }
        "logout" => (json(&json!({})), sessions.end(request.headers())),
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
    record: &RequestRecord,
) -> Result<Arc<str>, Refusal> {
    let wrong = || Refusal::usage("The body is not user and key");
    let body = Zeroizing::new(body::small(request.into_body()).await?);
    let fields: Value = serde_json::from_slice(&body).map_err(|_| wrong())?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str).ok_or_else(wrong);
    let (user, key) = (text("user")?, text("key")?);
    let prove = || api.users.prove_pair(user, key);
    api.guard.prove(record.from(), prove)
}

/// The state of a user's drives and servers for the page.
async fn state(api: &Arc<Api>, user: Arc<str>) -> Result<Answer, Refusal> {
    let api = Arc::clone(api);
    // Asks the kernel about each file.
    blocking(move || {
        let machines = api.machines.of_user(&user);
        let mut drives = api.store.select(|metadata| *metadata.user == *user);
        drives.sort_by_cached_key(|drive| (sort_key(drive), drive.id.to_string()));
        // The kernel is asked only about those that are shown.
        let shown = drives.iter().take(DRIVES_MAX);
        let shown: Vec<Value> = shown.map(|shown| drive(&api, &user, shown)).collect();
        let servers = machines.iter().take(SERVERS_MAX);
        let servers: Vec<Value> = servers.map(|m| server(&api, &user, m)).collect();
        let active = machines.iter().filter(|m| m.status() == "active");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(json(&json!({
            "user": &*user,
            "now_ms": now.map_or(0, |now| now.as_millis() as u64),
            "drives_total": drives.len(),
            "drives": shown,
            "servers_total": machines.len(),
            "servers_active": active.count(),
            "servers": servers,
        })))
    })
    .await
}

/// The order of drives on the page: by name, whatever its case.
fn sort_key(drive: &Hosted) -> String {
    let name = drive.with_metadata(|metadata| clipped(metadata.settings.get("name")));
    name.unwrap_or_default().to_lowercase()
}

/// A drive for the page.
fn drive(api: &Api, user: &str, drive: &Hosted) -> Value {
    let info = drive.info(true);
    let traffic = drive.traffic.look();
    json!({
        "id": drive.id.to_string(),
        "name": clipped(info.get("name")),
        "size": drive.size(),
        "allocated": drive.allocated_bytes(),
        "state": words(api, user, &info),
        "imaging": info.get("imaging"),
        "received": traffic.received,
        "sent": traffic.sent,
        "in_flight": traffic.in_flight,
        "written_to": traffic.written_to,
        "read_from": traffic.read_from,
    })
}

/// What state a drive is in, in the words of `openhosting ls`.
fn words(api: &Api, user: &str, info: &Properties) -> String {
    let name_of = |server: Uuid| {
        let server = MachineId::parse(&server.to_string())?;
        let machine = api.machines.own(user, server).ok()?;
        clipped(api.machines.info_as_known(&machine).get("name"))
    };
    let condition = Condition::of_keys(info, None);
    let Condition::InUse(_) = condition else {
        return condition.words(&BTreeMap::new());
    };
    let claims = info.get("claimed").unwrap_or_default();
    let mut servers = claims.split(' ').filter_map(claiming_server);
    match servers.find_map(name_of) {
        Some(name) => format!("in use by {name}"),
        None => Condition::InUse(None).words(&BTreeMap::new()),
    }
}

/// A name for the page, shortened: users choose names, and an answer has hundreds of them.
fn clipped(name: Option<&str>) -> Option<String> {
    name.map(|name| name.chars().take(NAME_CHARS_MAX).collect())
}

/// Only these keys, because among the others is the password.
fn server(api: &Api, user: &str, machine: &Machine) -> Value {
    // Neither the guest nor the hypervisor is asked, because the page requests this every second.
    let info = api.machines.info_as_known(machine);
    let number = |key: &str| info.get(key).and_then(|value| value.parse::<u64>().ok());
    let has_vnc = api.machines.has_vnc_port();
    let devices = machine.devices();
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

/// Where a drive holds data: a digit from 0 to 9 for each of the equal parts of its length, `?`
/// where it would take too many queries of the file.
async fn map(api: &Arc<Api>, user: &str, id: DriveId) -> Result<Answer, Refusal> {
    let drive = api.store.own(user, id)?;
    let (_share, job) = api.join_digests(&Arc::from(user)).await?;
    let mut map = Map::new(&drive);
    let cells = in_turns(job, move || Ok(map.step(&drive))).await?;
    Ok(json(&json!({"cells": cells})))
}

#[cfg(test)]
mod tests {
    use super::super::origin::tests::headers;
    use super::*;

    #[test]
    fn a_login_from_another_site_is_refused() {
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
    fn the_page_loads_nothing_external_or_inline() {
        for text in [HTML, CSS, JS, ICON] {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("//cdn"));
        }
        assert!(!HTML.contains("<style") && !HTML.contains(" style=") && !HTML.contains(" on"));
        assert!(!JS.contains("innerHTML") && !JS.contains("eval("));
    }
}
