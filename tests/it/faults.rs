//! Each variant of the server's fault plan, in raw HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::json;

use crate::support::http::{Ask, Reply, create, raw, read_all, read_reply};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{gzip, ramp};

const MIB: u64 = 1024 * 1024;
const PATTERN: u8 = 0xA5;

fn info(server: &TestServer, drive: &str, full: &str) -> Reply {
    let info = Ask::of(server).get(&format!("/drives/{drive}/info{full}"));
    info.expect(200)
}

fn write(server: &TestServer, drive: &str, offset: u64, body: &[u8]) -> Reply {
    Ask::of(server).post(&format!("/drives/{drive}/write/{offset}"), body)
}

/// Begins a write: the server has received its head and waits for its body.
fn begin_write(server: &TestServer, drive: &str, len: usize) -> TcpStream {
    let head = Ask::of(server).head("POST", &format!("/drives/{drive}/write"));
    let head = format!("{head}Content-Length: {len}\r\nExpect: 100-continue\r\n\r\n");
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn a_wrong_fault_plan_is_refused_and_its_key_named() {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan");
    let refused = |code: i32, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openhosting-server"));
        command.arg("--data").arg(directory.path().join("data"));
        let out = command.args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(code));
        String::from_utf8(out.stderr).unwrap()
    };
    let path = plan.to_str().unwrap();
    assert!(refused(1, &["--fault-plan", path]).contains("Cannot read the fault plan"));
    std::fs::write(&plan, r#"{"writers_max": 1, "writers_min": 1}"#).unwrap();
    let said = refused(2, &["--fault-plan", path]);
    assert!(
        said.contains("\"writers_min\"") && !said.contains("writers_max"),
        "{said}"
    );
    assert!(said.contains("A fault plan is TOML"), "{said}");
}

#[test]
fn a_writer_above_the_limit_is_busy() {
    let server = TestServer::with_plan(&json!({"writers_max": 2}));
    let drive = create(&server, 100);
    let mut writers: Vec<_> = (0..2).map(|_| begin_write(&server, &drive, 3)).collect();
    for writer in &mut writers {
        // "100 Continue": the write is in progress.
        assert_eq!(read_reply(writer).unwrap().status, 100);
    }
    assert_eq!(write(&server, &drive, 0, b"x").error(), (409, "busy"));
    for writer in &mut writers {
        writer.write_all(b"abc").unwrap();
        assert_eq!(read_reply(writer).unwrap().status, 204);
    }
    write(&server, &drive, 0, b"x").expect(204);
}

#[test]
fn counters_can_be_missing_or_only_in_info_full_or_late() {
    let server = TestServer::with_plan(&json!({"counters": "absent"}));
    let drive = create(&server, 100);
    for full in ["", "/full"] {
        let info = info(&server, &drive, full);
        assert_eq!(
            (info.key("write:bytes"), info.key("size")),
            (None, Some("100"))
        );
    }
    let all = Ask::of(&server)
        .with("Accept: application/json")
        .get("/drives/info");
    let all = all.expect(200).json();
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(
        (&all[0]["drive"], &all[0]["read:bytes"]),
        (&json!(drive), &json!(null))
    );

    let server = TestServer::with_plan(&json!({"counters": "full"}));
    let drive = create(&server, 100);
    assert_eq!(info(&server, &drive, "").key("write:bytes"), None);
    assert_eq!(
        info(&server, &drive, "/full").key("write:bytes"),
        Some("4096")
    );

    let server = TestServer::with_plan(&json!({"counters": "lagging"}));
    let drive = create(&server, 100);
    write(&server, &drive, 0, b"abc").expect(204);
    assert_eq!(info(&server, &drive, "").key("write:bytes"), Some("4096"));
    assert_eq!(info(&server, &drive, "").key("write:bytes"), Some("4099"));
}

#[test]
fn never_written_bytes_read_as_the_pattern() {
    let server = TestServer::with_plan(&json!({"fresh_reads": "pattern"}));
    let drive = create(&server, 10_000);
    assert!(read_all(&server, &drive) == [PATTERN; 10_000]);
    write(&server, &drive, 10, &[0; 5000]).expect(204);
    write(&server, &drive, 9000, &ramp(1, 7)).expect(204);
    let resized = Ask::of(&server).post(&format!("/drives/{drive}/set"), "size 12000");
    resized.expect(200);
    let mut model = vec![PATTERN; 12_000];
    model[10..5010].fill(0);
    model[9000..9007].copy_from_slice(&ramp(1, 7));
    assert!(read_all(&server, &drive) == model);
}

#[test]
fn a_large_read_is_refused_allowed_or_short() {
    for (word, status, len) in [
        ("refused", 400, None),
        ("allowed", 200, Some(4 * MIB + 1)),
        ("short", 200, Some(4 * MIB)),
    ] {
        let server = TestServer::with_plan(&json!({"large_reads": word}));
        let drive = create(&server, 6 * MIB);
        let read = |size: u64| Ask::of(&server).get(&format!("/drives/{drive}/read/1/{size}"));
        let large = read(4 * MIB + 1);
        assert_eq!(large.status, status, "{word}");
        if let Some(len) = len {
            assert_eq!(large.body.len() as u64, len, "{word}");
        }
        assert_eq!(read(4 * MIB).expect(200).body.len() as u64, 4 * MIB);
    }
}

#[test]
fn a_write_past_the_end_is_usage_full_or_truncated() {
    for (word, error) in [("usage", (400, "usage")), ("full", (507, "full"))] {
        let server = TestServer::with_plan(&json!({"past_end": word}));
        let drive = create(&server, 100);
        assert_eq!(write(&server, &drive, 98, b"abc").error(), error);
        assert_eq!(write(&server, &drive, 101, b"").error(), error);
        let path = format!("/drives/{drive}/write/98");
        let packed = Ask::of(&server).post_gzip(&path, gzip(b"abc"));
        assert_eq!(packed.error(), error);
        assert!(read_all(&server, &drive) == [0; 100]);
        // A request that is wrong in another way gets its usual answer.
        let bad = Ask::of(&server).post_gzip(&path, b"abc");
        assert_eq!(bad.error(), (400, "usage"));
    }
    let server = TestServer::with_plan(&json!({"past_end": "truncated"}));
    let drive = create(&server, 100);
    write(&server, &drive, 98, b"abc").expect(204);
    write(&server, &drive, 200, b"abc").expect(204);
    let path = format!("/drives/{drive}/write/96");
    Ask::of(&server)
        .post_gzip(&path, gzip(b"xyzuv"))
        .expect(204);
    let data = read_all(&server, &drive);
    assert_eq!((data.len(), &data[95..]), (100, &b"\0xyzu"[..]));
}

#[test]
fn user_keys_are_dropped() {
    let server = TestServer::with_plan(&json!({"user_keys": "dropped"}));
    let body = "name n\nsize 100\nuser:oh-token t";
    let created = Ask::of(&server).post("/drives/create", body).expect(200);
    assert_eq!(
        (created.key("name"), created.key("user:oh-token")),
        (Some("n"), None)
    );
    let drive = created.key("drive").unwrap();
    let set = Ask::of(&server).post(&format!("/drives/{drive}/set"), "user:x y\ntags a");
    let set = set.expect(200);
    assert_eq!((set.key("user:x"), set.key("tags")), (None, Some("a")));
    assert_eq!(info(&server, drive, "").key("user:oh-token"), None);
    assert_eq!(set.key("user"), Some(server.user.as_str()));
}

#[test]
fn gzip_is_stored_as_it_came() {
    let server = TestServer::with_plan(&json!({"gzip_writes": "stored"}));
    let drive = create(&server, 100);
    let packed = gzip(b"hello");
    let path = format!("/drives/{drive}/write");
    Ask::of(&server).post_gzip(&path, &packed).expect(204);
    assert_eq!(read_all(&server, &drive)[..packed.len()], packed);
}

#[test]
fn a_body_above_the_limit_is_413() {
    let server = TestServer::with_plan(&json!({"body_bytes_max": 1000, "round_size": true}));
    let drive = create(&server, 4000);
    assert_eq!(write(&server, &drive, 0, &[1; 1001]).status, 413);
    write(&server, &drive, 0, &[1; 1000]).expect(204);
    // The size was rounded as well, as the same plan says.
    assert_eq!(info(&server, &drive, "").key("size"), Some("4194304"));
}

#[test]
fn one_in_every_n_requests_is_refused() {
    let plan = json!({"every": {"requests": 3, "status": 429, "retry_after_s": 7}});
    let server = TestServer::with_plan(&plan);
    for round in 0..3 {
        for number in 1..=3 {
            let reply = Ask::of(&server).get("/drives/list");
            let expected = if number == 3 {
                (429, Some("7"))
            } else {
                (200, None)
            };
            let got = (reply.status, reply.header("retry-after"));
            assert_eq!(got, expected, "{round} {number}");
        }
    }
}

#[test]
fn the_nth_matching_request_gets_the_planned_answer() {
    let plan = json!({"faults": [
        {"request": "POST /drives/*/write/*", "nth": 2,
         "answer": {"status": 503, "error": "system", "retry_after_s": 1}},
        {"request": "* /drives/*/write/**", "nth": 4, "times": 2,
         "answer": {"status": 502, "done": true}},
    ]});
    let server = TestServer::with_plan(&plan);
    let drive = create(&server, 100);
    write(&server, &drive, 0, b"a").expect(204);
    let second = write(&server, &drive, 1, b"b");
    assert_eq!(second.error(), (503, "system"));
    assert_eq!(second.header("retry-after"), Some("1"));
    write(&server, &drive, 2, b"c").expect(204);
    let fourth = write(&server, &drive, 3, b"d");
    assert_eq!(
        (fourth.error(), fourth.header("retry-after")),
        ((502, "none"), None)
    );
    assert_eq!(write(&server, &drive, 4, b"e").status, 502);
    write(&server, &drive, 5, b"f").expect(204);
    assert_eq!(read_all(&server, &drive)[..6], *b"a\0cdef");
}

#[test]
fn a_connection_is_reset_before_or_after() {
    let plan = json!({"faults": [
        {"request": "POST /drives/*/write/*", "nth": 1, "reset": "before"},
        {"request": "POST /drives/*/write/*", "nth": 2, "reset": "after"},
    ]});
    let server = TestServer::with_plan(&plan);
    let drive = create(&server, 100);
    for (offset, expected) in [(0, &[0, 0]), (1, &[0, 9])] {
        let path = format!("/drives/{drive}/write/{offset}");
        let head = Ask::of(&server).head("POST", &path);
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let request = [head.as_bytes(), b"Content-Length: 1\r\n\r\n\t"].concat();
        stream.write_all(&request).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(read_all(&server, &drive)[..2], *expected);
    }
    write(&server, &drive, 0, b"x").expect(204);
}

#[test]
fn a_request_stalls_or_waits() {
    let plan = json!({"faults": [
        {"request": "GET /drives/list", "nth": 1, "stall": true},
        {"request": "GET /drives/list", "nth": 2, "delay_ms": 50},
    ]});
    let server = TestServer::with_plan(&plan);
    let head = Ask::of(&server).head("GET", "/drives/list");
    let mut stalled = TcpStream::connect(server.address()).unwrap();
    stalled.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    wait_until("the fault", || server.log().contains("Stall"));
    // Other requests are answered meanwhile, late or not.
    for _ in 0..2 {
        Ask::of(&server).get("/drives/list").expect(200);
    }
    stalled.set_nonblocking(true).unwrap();
    let error = stalled.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn an_answer_is_truncated() {
    let fault = json!({"request": "GET /drives/*/read/**", "truncate_bytes": 1000});
    let server = TestServer::with_plan(&json!({ "faults": [fault] }));
    let drive = create(&server, 5000);
    write(&server, &drive, 0, &ramp(0, 5000)).expect(204);
    let path = format!("/drives/{drive}/read/0/5000");
    let head = Ask::of(&server).head("GET", &path);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head_sent = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
    assert!(head_sent.contains("content-length: 5000"), "{head_sent}");
    assert!(all[end..] == ramp(0, 1000));
    let whole = raw(server.address(), format!("{head}\r\n").as_bytes());
    assert!(whole.unwrap().body == ramp(0, 5000));
}

#[test]
fn a_plan_in_toml_makes_requests_late_and_bodies_slow() {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan.toml");
    let text = "latency_ms = 50\nlatency_jitter_ms = 20\nbytes_per_s = 400_000\n\
        [[faults]]\nrequest = \"POST /drives/*/write/*\"\nnth = 3\n\
        answer = { status = 503, error = \"system\" }\n\
        [[faults]]\nrequest = \"* /drives/*/read/**\"\nnth = 5\ntruncate_bytes = 100\n";
    std::fs::write(&plan, text).unwrap();
    let server = TestServer::with_args(&["--faults", plan.to_str().unwrap()]);
    let began = std::time::Instant::now();
    let drive = create(&server, 100_000);
    // This does not test speed, only that the delay was not skipped.
    assert!(began.elapsed() >= std::time::Duration::from_millis(50));
    let image = ramp(3, 40_000);
    let began = std::time::Instant::now();
    write(&server, &drive, 0, &image).expect(204);
    Ask::of(&server)
        .post_gzip(&format!("/drives/{drive}/write/40000"), gzip(&image))
        .expect(204);
    assert!(began.elapsed() >= std::time::Duration::from_millis(2 * 50 + 100));
    assert_eq!(write(&server, &drive, 0, b"x").error(), (503, "system"));
    write(&server, &drive, 99_999, b"x").expect(204);
    let path = format!("/drives/{drive}/read/0/80000");
    for _ in 0..4 {
        let began = std::time::Instant::now();
        let read = Ask::of(&server).get(&path).expect(200);
        assert!(read.body[..40_000] == image && read.body[40_000..] == image);
        assert!(began.elapsed() >= std::time::Duration::from_millis(50 + 200));
    }
    let head = Ask::of(&server).head("GET", &path);
    assert!(raw(server.address(), format!("{head}\r\n").as_bytes()).is_none());
    assert!(Ask::of(&server).get(&path).expect(200).body.len() == 80_000);
}
