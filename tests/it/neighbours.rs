//! Users and strangers who try to take everything of a server: the others are served all
//! the same. Every test holds what it takes for as long as it runs, so none of them
//! depends on how fast anything is.

use std::io::Write;
use std::net::TcpStream;

use crate::support::http::{Ask, raw, read_reply};
use crate::support::server::TestServer;

const HOSTILE: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-hostile";
const HONEST: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-honest";

/// A server with a hostile and an honest user.
struct Scene {
    server: TestServer,
}

impl Scene {
    fn new(args: &[&str]) -> Self {
        let users = ["--user", HOSTILE, "--user", HONEST];
        let metrics = ["--metrics", "127.0.0.1:0"];
        let args = [&users[..], &metrics, args].concat();
        let server = TestServer::with_args(&args);
        Self { server }
    }

    fn by(&self, auth: &str) -> Ask<'_> {
        Ask::of(&self.server).by(auth)
    }

    fn create(&self, auth: &str, size: u64) -> String {
        let body = format!("name d\nsize {size}");
        let made = self.by(auth).post("/drives/create", body).expect(200);
        made.key("drive").unwrap().to_owned()
    }

    /// The value of a sample of the metrics; `None` while it has none.
    fn metric(&self, sample: &str) -> Option<f64> {
        let log = self.server.log();
        let line = log.lines().find(|line| line.contains("Telling metrics"));
        let (_, address) = line.unwrap().split_once("address=").unwrap();
        let get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let reply = raw(address.trim().parse().unwrap(), get).unwrap();
        reply.text().lines().find_map(|line| {
            let value = line.strip_prefix(sample)?;
            value.strip_prefix(' ')?.parse().ok()
        })
    }

    fn wait_for(&self, sample: &str, is_there: impl Fn(f64) -> bool) {
        while !self.metric(sample).is_some_and(&is_there) {
            std::thread::yield_now();
        }
    }

    /// Sends the head of a request that waits for 100 before its body.
    fn begin(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        let head = format!("{head}Expect: 100-continue\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }
}

#[test]
fn bodies_that_do_not_come_leave_memory_for_those_of_others() {
    let scene = Scene::new(&[]);
    let drive = scene.create(HOSTILE, 64 << 20);
    let own = scene.create(HONEST, 64 << 20);
    let write = format!("/drives/{drive}/write");
    let head = scene.by(HOSTILE).head("POST", &write);
    // Nobody knows what a gzip body unpacks to, so each takes 8 MiB.
    let head = format!("{head}Content-Encoding: gzip\r\nContent-Length: 1000000\r\n");
    let mut streams: Vec<_> = (0..40).map(|_| scene.begin(&head)).collect();
    scene.wait_for("openhosting_requests_in_flight", |n| n >= 40.0);
    for _ in 0..4 {
        let body = crate::support::gzip(&vec![1; 9 << 20]);
        let path = format!("/drives/{own}/write");
        scene.by(HONEST).post_gzip(&path, body).expect(204);
    }
    let used = "openhosting_budget_used{budget=\"body_bytes\"}";
    assert_eq!(scene.metric(used), Some(f64::from(64 << 20)));
    // Those who wait for the hostile user's own part are refused, and say why.
    let mut refusals = 0;
    for stream in &mut streams {
        let reply = read_reply(stream).unwrap();
        if reply.status != 100 {
            assert_eq!(reply.error(), (429, "busy"));
            assert!(reply.text().contains("request bodies"), "{}", reply.text());
            refusals += 1;
        }
    }
    assert_eq!(refusals, 32);
    let refused = "openhosting_budget_refused_total{budget=\"body_bytes\",of=\"user\"}";
    assert_eq!(scene.metric(refused), Some(32.0));
}
