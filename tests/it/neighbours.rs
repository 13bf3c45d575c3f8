//! Users and strangers who try to use up a server: the others are served nevertheless. Every test
//! holds the resources for its whole duration, so no test depends on speed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::http::{Ask, raw, read_reply};
use crate::support::server::TestServer;

pub(crate) const HOSTILE: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-hostile";
pub(crate) const HONEST: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-honest";

/// A server with a hostile and an honest user.
pub(crate) struct Scene {
    pub(crate) server: TestServer,
}

impl Scene {
    pub(crate) fn new(args: &[&str]) -> Self {
        let users = ["--user", HOSTILE, "--user", HONEST];
        let metrics = ["--metrics", "127.0.0.1:0"];
        let args = [&users[..], &metrics, args].concat();
        let server = TestServer::with_args(&args);
        Self { server }
    }

    pub(crate) fn by(&self, auth: &str) -> Ask<'_> {
        Ask::of(&self.server).by(auth)
    }

    pub(crate) fn create(&self, auth: &str, size: u64) -> String {
        let body = format!("name d\nsize {size}");
        let made = self.by(auth).post("/drives/create", body).expect(200);
        made.key("drive").unwrap().to_owned()
    }

    /// The value of a metric; `None` while it has none.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let log = self.server.log();
        let line = log.lines().find(|line| line.contains("Serving metrics"));
        let (_, address) = line.unwrap().split_once("address=").unwrap();
        let get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let reply = raw(address.trim().parse().unwrap(), get).unwrap();
        reply.text().lines().find_map(|line| {
            let value = line.strip_prefix(sample)?;
            value.strip_prefix(' ')?.parse().ok()
        })
    }

    pub(crate) fn wait_for(&self, sample: &str, is_there: impl Fn(f64) -> bool) {
        // A guard against hanging; it does not promise any speed.
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.metric(sample).is_some_and(&is_there) {
            assert!(Instant::now() < deadline, "{sample} never came to be so");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends the head of a request that waits for 100 before its body.
    fn begin(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        let head = format!("{head}Expect: 100-continue\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    fn assert_health(&self) {
        let get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
        let health = raw(self.server.address(), get).expect("no answer");
        assert_eq!((health.status, health.text()), (200, "ok\n"));
    }
}

#[test]
fn unfinished_bodies_leave_memory_for_other_users() {
    let scene = Scene::new(&[]);
    let drive = scene.create(HOSTILE, 64 << 20);
    let own = scene.create(HONEST, 64 << 20);
    let write = format!("/drives/{drive}/write");
    let head = scene.by(HOSTILE).head("POST", &write);
    // The decompressed size of a gzip body is unknown, so each takes 8 MiB.
    let head = format!("{head}Content-Encoding: gzip\r\nContent-Length: 1000000\r\n");
    let mut streams: Vec<_> = (0..48).map(|_| scene.begin(&head)).collect();
    scene.wait_for("openhosting_requests_in_flight", |n| n >= 48.0);
    for _ in 0..4 {
        let body = crate::support::gzip(&vec![1; 9 << 20]);
        let path = format!("/drives/{own}/write");
        scene.by(HONEST).post_gzip(&path, body).expect(204);
    }
    let used = "openhosting_budget_used{budget=\"body_bytes\"}";
    assert_eq!(scene.metric(used), Some(f64::from(320 << 20)));
    // Requests that wait for the hostile user's own part are refused, with the reason.
    let mut refusals = 0;
    for stream in &mut streams {
        let reply = read_reply(stream).unwrap();
        if reply.status != 100 {
            assert_eq!(reply.error(), (429, "busy"));
            assert!(reply.text().contains("request bodies"), "{}", reply.text());
            refusals += 1;
        }
    }
    assert_eq!(refusals, 8);
    let refused = "openhosting_budget_refused_total{budget=\"body_bytes\",of=\"user\"}";
    assert_eq!(scene.metric(refused), Some(8.0));
}

#[test]
fn slow_bodies_of_one_user_occupy_few_threads() {
    let scene = Scene::new(&[]);
    let drive = scene.create(HOSTILE, 64 << 10);
    let write = format!("/drives/{drive}/write");
    let head = scene.by(HOSTILE).head("POST", &write);
    // Little memory, but a thread until the body is complete.
    let head = format!("{head}Content-Encoding: gzip\r\nContent-Length: 1000\r\n");
    let mut streams: Vec<_> = (0..90).map(|_| scene.begin(&head)).collect();
    let mut refusals = 0;
    for stream in &mut streams {
        let reply = read_reply(stream).unwrap();
        if reply.status != 100 {
            assert_eq!(reply.error(), (429, "busy"));
            refusals += 1;
        }
    }
    assert_eq!(refusals, 10);
}

#[test]
fn parallel_guesses_of_keys_are_limited_on_page_and_api() {
    const GUESSES: usize = 50;
    let count = |replies: Vec<u16>| {
        let of = |status| replies.iter().filter(|s| **s == status).count();
        (of(401), of(429))
    };
    let scene = Scene::new(&["--wrong-key-limit", "3/h"]);
    let (user, _) = HONEST.split_once(':').unwrap();
    let body = format!("{{\"user\": \"{user}\", \"key\": \"guess\"}}");
    let head = format!(
        "POST /ui/login HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut streams: Vec<_> = (0..GUESSES).map(|_| scene.begin(&head)).collect();
    // Every request is accepted and waits for its body.
    for stream in &mut streams {
        assert_eq!(read_reply(stream).unwrap().status, 100);
    }
    for stream in &mut streams {
        stream.write_all(body.as_bytes()).unwrap();
    }
    let answered = |stream| read_reply(stream).unwrap().status;
    let replies: Vec<_> = streams.iter_mut().map(answered).collect();
    assert_eq!(count(replies), (3, GUESSES - 3));
    // It is a single limit, and a right key does not bypass it either.
    assert_eq!(scene.by(HONEST).get("/drives/list").error(), (429, "busy"));

    let scene = Scene::new(&["--wrong-key-limit", "3/h"]);
    let wrong = format!("{user}:guess");
    let replies = std::thread::scope(|scope| {
        let guess = || scene.by(&wrong).get("/drives/list").status;
        let guesses: Vec<_> = (0..GUESSES).map(|_| scope.spawn(guess)).collect();
        guesses
            .into_iter()
            .map(|guess| guess.join().unwrap())
            .collect()
    });
    assert_eq!(count(replies), (3, GUESSES - 3));
}

#[test]
fn strangers_replace_only_strangers() {
    // More than the maximum number of connections, and than that of strangers.
    const CROWD: usize = 520;
    let scene = Scene::new(&[]);
    let drive = scene.create(HONEST, 10);
    // An honest user who was connected before the crowd.
    let head = scene.by(HONEST).head("GET", "/drives/list");
    let mut before = TcpStream::connect(scene.server.address()).unwrap();
    let mut list = || {
        write!(before, "{head}\r\n").unwrap();
        read_reply(&mut before).expect("no answer").expect(200);
    };
    list();
    let knocks = ["", "GET /drives/list HTTP/1.1\r\nHost: x\r\n\r\n"];
    for knock in knocks {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut stream = TcpStream::connect(scene.server.address()).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            stream.write_all(knock.as_bytes()).unwrap();
            if !knock.is_empty() {
                let reply = read_reply(&mut stream).expect("no answer");
                assert_eq!(reply.error(), (401, "auth"));
            }
            crowd.push(stream);
        }
        scene.assert_health();
        let write = format!("/drives/{drive}/write");
        scene.by(HONEST).post(&write, "x").expect(204);
        list();
        let strangers = scene.metric("openhosting_connections{of=\"strangers\"}");
        assert!(strangers.is_some_and(|n| n <= 256.0), "{strangers:?}");
    }
    let closed = "openhosting_connections_closed_total{reason=\"strangers_full\"}";
    assert!(
        scene
            .metric(closed)
            .is_some_and(|n| n >= 2.0 * (CROWD - 256) as f64 - 1.0)
    );
}

#[test]
fn a_user_with_too_many_connections_loses_idle_ones_and_is_refused_when_all_are_busy() {
    let scene = Scene::new(&["--max-connections", "4"]);
    let drive = scene.create(HOSTILE, 10);
    let head = scene.by(HOSTILE).head("GET", "/drives/list");
    let mut idle: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = TcpStream::connect(scene.server.address()).unwrap();
            write!(stream, "{head}\r\n").unwrap();
            read_reply(&mut stream).expect("no answer").expect(200);
            stream
        })
        .collect();
    // The two longest idle connections are closed, in whichever way.
    for stream in &mut idle[..2] {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let write = format!("/drives/{drive}/write");
    let head = scene.by(HOSTILE).head("POST", &write);
    let head = format!("{head}Content-Length: 5\r\n");
    let mut busy: Vec<_> = (0..4).map(|_| scene.begin(&head)).collect();
    for stream in &mut busy {
        assert_eq!(read_reply(stream).unwrap().status, 100);
    }
    let refused = scene.by(HOSTILE).get("/drives/list");
    assert_eq!(refused.error(), (429, "busy"));
    assert!(refused.text().contains("connections"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("connection"), Some("close"));
    scene.by(HONEST).get("/drives/list").expect(200);
    for stream in &mut busy {
        stream.write_all(b"12345").unwrap();
        read_reply(stream).unwrap().expect(204);
    }
}

#[test]
fn unread_answers_take_little_memory() {
    const DRIVES: usize = 60;
    const READERS: usize = 100;
    // The memory of a single answer, had it been created as a whole.
    const ANSWER_BYTES: usize = DRIVES * 60_000;
    const MEMORY_BYTES_MAX: u64 = 160 << 20;
    let scene = Scene::new(&[]);
    let everyone = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    let long = "x".repeat(60_000);
    for _ in 0..DRIVES {
        let body = format!("size 1\nreaders {everyone}\nuser:note {long}");
        scene.by(HOSTILE).post("/drives/create", body).expect(200);
    }
    let head = scene.by(HOSTILE).head("GET", "/drives/info/standard");
    let mut readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut stream = TcpStream::connect(scene.server.address()).unwrap();
            // The kernel must not buffer the whole answer for a client that reads nothing.
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            stream
        })
        .collect();
    for stream in &mut readers {
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
    }
    let peak = crate::load::client::peak_resident_bytes(scene.server.pid()).unwrap();
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
    assert!((ANSWER_BYTES * READERS) as u64 > 2 * MEMORY_BYTES_MAX);
    // A status line is sent before the first part of the body is counted.
    scene.wait_for("openhosting_budget_used{budget=\"answer_bytes\"}", |used| {
        used > 0.0
    });
    // A client that reads gets the complete answer, in both formats.
    for accept in ["text/plain", "application/json"] {
        let head = scene.by(HONEST).with("Connection: close");
        let head = head.with(&format!("Accept: {accept}"));
        let head = head.head("GET", "/drives/info/standard");
        let mut stream = TcpStream::connect(scene.server.address()).unwrap();
        // HTTP/1.0 has no chunked coding: the answer is sent as it is.
        let head = head.replace("HTTP/1.1", "HTTP/1.0");
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let notes: Vec<String> = match accept {
            "text/plain" => {
                let lines = body.lines();
                let notes = lines.filter_map(|line| line.strip_prefix("user:note "));
                notes.map(str::to_owned).collect()
            }
            _ => {
                let objects: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
                let note =
                    |object: &serde_json::Value| object["user:note"].as_str().map(str::to_owned);
                objects.iter().filter_map(note).collect()
            }
        };
        assert_eq!(notes.len(), DRIVES, "{accept}");
        assert!(notes.iter().all(|note| *note == long), "{accept}");
    }
}
