//! Features for operators of the server: limits, health, metrics, the log.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cli::Desk;
use crate::support::http::{Ask, Reply, basic, create, info, raw, read_reply};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{noise, python, ramp};

const A: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a";
const B: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";

fn make(server: &TestServer, auth: &str, size: &str) -> Reply {
    let ask = Ask::of(server).by(auth);
    ask.post("/drives/create", format!("size {size}"))
}

#[test]
fn a_user_has_no_more_drives_and_bytes_than_allowed() {
    let args = [
        "--user",
        A,
        "--user",
        B,
        "--max-drives",
        "3",
        "--max-bytes",
        "10k",
    ];
    let mut server = TestServer::with_args(&args);
    let first = make(&server, A, "4k").expect(200);
    let first = first.key("drive").unwrap().to_owned();
    make(&server, A, "2k").expect(200);
    let refused = make(&server, A, "5k");
    assert_eq!(refused.error(), (402, "billing"));
    assert!(
        refused.text().contains("of which 4096 are left"),
        "{}",
        refused.text()
    );
    let set = |size: &str| {
        let path = format!("/drives/{first}/set");
        Ask::of(&server).post(&path, format!("size {size}"))
    };
    assert_eq!(set("9k").error(), (402, "billing"));
    assert_eq!(info(&server, &first, "size").as_deref(), Some("4096"));
    set("8k").expect(200);
    set("1k").expect(200);
    make(&server, A, "7k").expect(200);
    let refused = make(&server, A, "1");
    assert_eq!(refused.error(), (402, "billing"));
    assert!(
        refused.text().contains("3 drives, of which 0 are left"),
        "{}",
        refused.text()
    );
    // Each user has a quota of their own.
    make(&server, B, "10k").expect(200);
    server.restart();
    assert_eq!(make(&server, A, "1").error(), (402, "billing"));
    Ask::of(&server)
        .post(&format!("/drives/{first}/destroy"), "")
        .expect(204);
    make(&server, A, "1k").expect(200);
}

#[test]
fn a_user_cannot_take_all_files_that_the_server_may_open() {
    let few = ["bash", "-c", "ulimit -n 256; exec \"$0\" \"$@\""].map(Into::into);
    let server = TestServer::within(&few, &["--user", A, "--user", B]);
    let refused = (0..256).find_map(|_| {
        let reply = make(&server, A, "1");
        (reply.status != 200).then_some(reply)
    });
    let refused = refused.unwrap();
    assert_eq!(refused.error(), (402, "billing"));
    assert!(refused.text().contains("64 drives"), "{}", refused.text());
    make(&server, B, "1").expect(200);
    // A limit that is too high for the number of file descriptors still leaves some for
    // connections.
    let many = ["--user", A, "--max-drives", "1000"];
    let server = TestServer::within(&few, &many);
    let statuses: Vec<_> = (0..150).map(|_| make(&server, A, "1").status).collect();
    assert_eq!(statuses.iter().position(|s| *s != 200), Some(128));
    assert!(statuses[128..].iter().all(|s| *s == 507), "{statuses:?}");
}

#[test]
fn the_log_escapes_direction_characters() {
    for format in ["json", "text"] {
        let server = TestServer::with_args(&["--log-format", format]);
        let body = "size 10\na\u{202e}b\u{2066}c x";
        let refused = Ask::of(&server).post("/drives/create", body);
        assert_eq!(refused.error(), (400, "usage"));
        let path = "/drives/\u{202e}/info";
        let head = Ask::of(&server).head("GET", path);
        let _ = raw(server.address(), format!("{head}\r\n").as_bytes());
        wait_until("the line in the log", || server.log().contains("202e"));
        assert!(
            !server.log().contains(['\u{202e}', '\u{2066}']),
            "{}",
            server.log()
        );
    }
}

#[test]
fn drives_created_at_the_same_time_do_not_exceed_the_limit() {
    let server = TestServer::with_args(&["--max-drives", "5"]);
    let made: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| make(&server, &server.auth(), "1k").status))
            .collect();
        let status = tries.into_iter().map(|made| made.join().unwrap());
        status.filter(|status| *status == 200).count()
    });
    assert_eq!(made, 5);
}

#[test]
fn a_user_with_too_many_requests_learns_when_to_try_again() {
    let args = ["--user", A, "--user", B, "--rate-limit", "3/h"];
    let server = TestServer::with_args(&args);
    let list = |auth: &str| Ask::of(&server).by(auth).get("/drives/list");
    for _ in 0..3 {
        list(A).expect(200);
    }
    let refused = list(A);
    assert_eq!(refused.error(), (429, "busy"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "{wait}");
    list(B).expect(200);
    // The server refuses without reading the body, and the client receives the answer nevertheless.
    let body = vec![0; 5_000_000];
    let reply = Ask::of(&server).by(A).post("/drives/create", body);
    assert_eq!(reply.error(), (429, "busy"));
}

#[test]
fn an_upload_adapts_to_the_limits_of_a_server() {
    let desk = Desk::new();
    let server = desk.server_with(&["--rate-limit", "10/s", "--max-bytes", "2M"]);
    let image = noise(1, 1 << 20);
    let path = desk.file("disk.img", &image);
    let tool = desk.upload(&server.uri).args("-c 65536");
    let drive = tool.arg(&path).run().code(0).created();
    assert!(std::fs::read(server.drive_file(&drive)).unwrap() == image);
    assert!(server.log().contains("status=429"), "never held back");
    let big = desk.sparse("big.img", 8 << 20, &[(0, b"x")]);
    let refused = desk.upload(&server.uri).arg(&big).run();
    assert_ne!(refused.status.code(), Some(0));
    assert!(refused.stderr.contains("not covered"), "{}", refused.stderr);
}

#[test]
fn an_address_with_too_many_wrong_keys_waits() {
    let server = TestServer::with_args(&["--user", A, "--wrong-key-limit", "3/h"]);
    let nobody = || {
        raw(
            server.address(),
            b"GET /drives/list HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .unwrap()
    };
    let by = |auth: &str| Ask::of(&server).by(auth).get("/drives/list");
    // A request without any key does not count as a guess.
    for _ in 0..5 {
        assert_eq!(nobody().error(), (401, "auth"));
    }
    for _ in 0..3 {
        by(A).expect(200);
        assert_eq!(by(B).error(), (401, "auth"));
    }
    // From here on the answers to right and wrong keys are the same.
    let replies = [by(A), by(B)];
    for reply in &replies {
        assert_eq!(reply.error(), (429, "busy"));
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(replies[0].body, replies[1].body);
    // With the limit switched off, wrong keys are not counted.
    let server = TestServer::with_args(&["--user", A, "--wrong-key-limit", "none"]);
    for _ in 0..100 {
        let reply = Ask::of(&server).by(B).get("/drives/list");
        assert_eq!(reply.error(), (401, "auth"));
    }
}

#[test]
fn the_health_check_needs_no_key() {
    let server = TestServer::start();
    let ask = |head: &str| raw(server.address(), head.as_bytes()).unwrap();
    let get = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let well = ask(get);
    assert_eq!((well.status, well.text()), (200, "ok\n"));
    assert_eq!(well.header("cache-control"), Some("no-store"));
    let post = "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(post).status, 405);
    // If nothing can be written to the staging directory, no drive can be written.
    let staging = server.data.join("staging");
    std::fs::rename(&staging, server.data.join("gone")).unwrap();
    let ill = ask(get).expect(503);
    assert!(!ill.text().contains(server.data.to_str().unwrap()));
    assert!(server.log().contains("The data directory cannot be used"));
    std::fs::rename(server.data.join("gone"), &staging).unwrap();
    ask(get).expect(200);
}

/// The address of the metrics, from the server's log.
fn metrics_address(server: &TestServer) -> SocketAddr {
    let log = server.log();
    let line = log.lines().find(|line| line.contains("Serving metrics"));
    let (_, address) = line.unwrap().split_once("address=").unwrap();
    address.trim().parse().unwrap()
}

fn scrape(address: SocketAddr) -> Reply {
    raw(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap()
}

/// The samples of an exposition, as read by Prometheus' own parser. `None` without it.
fn samples(exposition: &str) -> Option<Vec<String>> {
    let python = python::with("prometheus-client==0.21.1")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openmetrics.py");
    let mut child = Command::new(python)
        .arg("-I")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(exposition.as_bytes()).unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{exposition}");
    let lines = String::from_utf8(out.stdout).unwrap();
    Some(lines.lines().map(str::to_owned).collect())
}

#[test]
fn the_metrics_agree_with_what_happened() {
    let args = ["--user", A, "--metrics", "127.0.0.1:0"];
    let server = TestServer::with_args(&args);
    let address = metrics_address(&server);
    let drive = create(&server, 1 << 20);
    let write = format!("/drives/{drive}/write");
    Ask::of(&server).post(&write, ramp(1, 300_000)).expect(204);
    Ask::of(&server).post(&write, vec![1; 2 << 20]).expect(400);
    Ask::of(&server)
        .get(&format!("/drives/{drive}/read/0/200000"))
        .expect(200);
    Ask::of(&server).by(B).get("/drives/list").expect(401);
    // One request is under way: its head has arrived, and its body has not.
    let head = Ask::of(&server).head("POST", &write);
    let head = format!("{head}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().status, 100);

    // The server counts a request only after it sent the answer, so the numbers may be late.
    let deadline = Instant::now() + Duration::from_secs(60);
    let reply = loop {
        let reply = scrape(address).expect(200);
        let mut lines = reply.text().lines();
        if lines.any(|line| line == "openhosting_requests_in_flight 1") {
            break reply;
        }
        assert!(Instant::now() < deadline, "{}", reply.text());
        std::thread::sleep(Duration::from_millis(10));
    };
    // The request under way was not answered so far. It ends before the metrics are parsed, which
    // takes a moment, and the server does not wait for a body for ever.
    stream.write_all(b"abc").unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().status, 204);
    let media_type = reply.header("content-type").unwrap();
    assert!(media_type.starts_with("application/openmetrics-text; version=1.0.0"));
    let text = reply.text();
    assert!(
        !text.contains(A.split_once(':').unwrap().0),
        "a user is named"
    );
    assert!(!text.contains(&drive), "a drive is named");
    if let Some(samples) = samples(text) {
        let value = |name: &str| {
            let found = samples.iter().find_map(|line| line.strip_prefix(name));
            let value = found.unwrap_or_else(|| panic!("no {name} in {samples:#?}"));
            value.trim().parse::<f64>().unwrap()
        };
        let requests = "openhosting_requests_total";
        assert_eq!(value(&format!("{requests}{{call=write,status=204}}")), 1.0);
        assert_eq!(value(&format!("{requests}{{call=write,status=400}}")), 1.0);
        assert_eq!(value(&format!("{requests}{{call=read,status=200}}")), 1.0);
        assert_eq!(value(&format!("{requests}{{call=none,status=401}}")), 1.0);
        let seconds = "openhosting_request_duration_seconds";
        assert_eq!(value(&format!("{seconds}_count{{call=write}}")), 2.0);
        assert_eq!(
            value(&format!("{seconds}_bucket{{call=write,le=+Inf}}")),
            2.0
        );
        assert!(value("openhosting_received_bytes_total{}") >= 300_000.0);
        let sent = value("openhosting_sent_bytes_total{}");
        assert!((200_000.0..210_000.0).contains(&sent), "{sent}");
        assert_eq!(value("openhosting_requests_in_flight{}"), 1.0);
        assert_eq!(value("openhosting_drives{}"), 1.0);
        assert_eq!(value("openhosting_drives_size_bytes{}"), f64::from(1 << 20));
        let allocated = value("openhosting_drives_allocated_bytes{}");
        assert!((300_000.0..1_100_000.0).contains(&allocated), "{allocated}");
        assert_eq!(value("openhosting_imagings{state=running}"), 0.0);
        assert!(value("openhosting_filesystem_free_bytes{}") > 0.0);
        assert!(value("process_resident_memory_bytes{}") > 1e6);
        assert!(value("process_open_fds{}") > 5.0);
    }
    // Metrics are available at that address only, and nothing else is available there.
    let api = raw(
        server.address(),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .unwrap();
    assert_eq!(api.error(), (401, "auth"));
    let other = raw(address, b"GET /drives/list HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(other.status, 404);
    let well = raw(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!((well.status, well.text()), (200, "ok\n"));
}

#[test]
fn metrics_are_served_locally_unless_configured_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_openhosting-server"))
        .arg("--data")
        .arg(directory.path())
        .args(["--metrics", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("metrics") && said.contains("127.0.0.1"),
        "{said}"
    );
}

/// Waits until the log has lines for this many requests, and returns them.
fn requests(server: &TestServer, number: usize) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = server.log();
        let lines = log.lines().map(|line| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"))
        });
        let found: Vec<_> = lines.filter(|line| line["message"] == "Answered").collect();
        if found.len() >= number {
            return found;
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_log_has_one_object_for_each_request_and_no_secret() {
    let server = TestServer::with_args(&["--user", A, "--log-format", "json"]);
    let user = A.split_once(':').unwrap().0;
    let drive = create(&server, 1000);
    let write = format!("/drives/{drive}/write");
    Ask::of(&server).post(&write, ramp(0, 700)).expect(204);
    Ask::of(&server).post(&write, ramp(0, 1700)).expect(400);
    Ask::of(&server).by(B).get("/drives/list").expect(401);
    Ask::of(&server)
        .get(&format!("/drives/{drive}/read/0/600"))
        .expect(200);
    // A client that closes its connection before the answer.
    let head = Ask::of(&server).head("POST", &write);
    let head = format!("{head}Content-Length: 9\r\nExpect: 100-continue\r\n\r\nabc");
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().status, 100);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(stream);

    let lines = requests(&server, 6);
    let fields = |line: &Value| {
        let keys = ["call", "status", "received_bytes", "sent_bytes", "user"];
        keys.map(|key| line[key].clone())
    };
    assert_eq!(lines[0]["call"], "create");
    let expected = [
        json!(["write", 204, 700, 0, user]),
        json!(["write", 400, null, null, user]),
        json!(["none", 401, 0, null, null]),
        json!(["read", 200, 0, 600, user]),
    ];
    for (line, expected) in lines[1..].iter().zip(&expected) {
        for (fields, expected) in fields(line).iter().zip(expected.as_array().unwrap()) {
            // How much of a refused body arrived depends on chance, and the wording may change.
            assert!(
                expected.is_null() && fields != user || fields == expected,
                "{line}"
            );
        }
    }
    assert_eq!(lines[2]["error"], "usage");
    assert_eq!(lines[5]["received_bytes"], 3, "{}", lines[5]);
    let mut ids: Vec<_> = lines
        .iter()
        .map(|line| line["span"]["id"].as_u64())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    for line in &lines {
        assert!(
            line["took_us"].is_u64() && line["from"] == "127.0.0.1",
            "{line}"
        );
    }
    let log = server.log();
    assert!(!log.contains("key-a") && !log.contains("key-b"));
    assert!(!log.contains(&basic(A)[21..40]));
}

#[test]
fn an_error_is_reported_with_its_request() {
    let server = TestServer::with_args(&["--log-format", "json"]);
    let staging = server.data.join("staging");
    std::fs::remove_dir(&staging).unwrap();
    let reply = Ask::of(&server).post("/drives/create", "size 10");
    assert_eq!(reply.error(), (500, "system"));
    let request = &requests(&server, 1)[0];
    let log = server.log();
    let fault = log
        .lines()
        .find(|line| line.contains("A file operation failed"));
    let fault: Value = serde_json::from_str(fault.unwrap()).unwrap();
    assert_eq!(fault["span"]["id"], request["span"]["id"]);
    std::fs::create_dir(&staging).unwrap();
    std::fs::set_permissions(&staging, PermissionsExt::from_mode(0o700)).unwrap();
    create(&server, 10);
}
