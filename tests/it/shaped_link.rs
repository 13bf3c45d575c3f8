//! Both tools over a link of 10 Mbit/s with latency and packet loss. For the kernel it is a real
//! link. benches/links/trouble has longer runs, with measurements.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Running, Tool, UPLOAD};
use crate::support::link::BadLink;
use crate::support::needs::{Need, skip};
use crate::support::noise;
use crate::support::server::TestServer;

const CHUNK: u64 = 128 * 1024;
const SIZE: u64 = 32 * CHUNK;
const MIB: u64 = 1 << 20;

/// Returns `None` if no such link can be made on this machine.
fn link() -> Option<BadLink> {
    BadLink::new("--rate 10 --delay 20 --loss 1 --cc cubic")
}

struct Scene {
    desk: Desk,
    /// The command that runs a program at the near end.
    near: [OsString; 4],
    server: TestServer,
    certificate: PathBuf,
    image: Vec<u8>,
}

impl Scene {
    fn new(link: &BadLink) -> Self {
        let desk = Desk::new();
        // Transfers to another machine use TLS.
        let [certificate, key] = desk.certificate("10.78.0.1");
        let (cert, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        let auth = desk.auth();
        let args = ["--listen", "10.78.0.1:0", "--user", &auth];
        let tls = ["--tls-cert", cert, "--tls-key", key];
        let server = link.server(&[&args[..], &tls[..]].concat());
        let image = noise(6, SIZE as usize);
        desk.file("a.img", &image);
        Self {
            desk,
            near: link.near(),
            server,
            certificate,
            image,
        }
    }

    fn tool(&self, program: &str) -> Tool<'_> {
        let [ip, args @ ..] = &self.near;
        self.desk
            .tool(ip)
            .list(args)
            .arg(program)
            .env("OHURI", &self.server.uri)
            .env("SSL_CERT_FILE", &self.certificate)
            .args("-c 131072 --progress json")
    }
}

/// Waits until this many more bytes have passed in one direction.
fn wait_passed(link: &mut BadLink, way: &str, bytes: u64, running: &mut Running<'_>) {
    let until = link.passed(way) + bytes;
    while link.passed(way) < until {
        assert!(!running.has_ended(), "it ended too early");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The value of this key in the last line of progress.
fn figure(outcome: &Outcome, key: &str) -> u64 {
    let mut lines = outcome.stderr.lines();
    let last = lines.rfind(|line| line.starts_with('{')).unwrap();
    let end: Value = serde_json::from_str(last).unwrap();
    assert_eq!(end["event"], "end", "{last}");
    end[key].as_u64().unwrap()
}

#[test]
fn a_link_that_drops_everything_for_seconds_does_not_fail_a_transfer() {
    let Some(mut link) = link() else { return };
    let scene = Scene::new(&link);
    let mut running = scene.tool(UPLOAD).arg("a.img").spawn();
    wait_passed(&mut link, "up", MIB, &mut running);
    link.hole(true);
    // Shorter than the patience of a request, which is 30 s, so none is given up.
    std::thread::sleep(Duration::from_secs(3));
    link.hole(false);
    let outcome = running.wait().code(0);
    let drive = outcome.created();
    assert!(std::fs::read(scene.server.drive_file(&drive)).unwrap() == scene.image);
    assert_eq!(figure(&outcome, "retries"), 0, "{outcome:?}");
    // TCP repeats the packets that were lost, and the tools repeat nothing.
    let passed = link.passed("up");
    assert!(passed < SIZE * 3 / 2, "{passed} bytes went up");

    let mut running = scene.tool(DOWNLOAD).list([&drive, "copy"]).spawn();
    wait_passed(&mut link, "down", MIB, &mut running);
    link.hole(true);
    std::thread::sleep(Duration::from_secs(3));
    link.hole(false);
    let outcome = running.wait().code(0);
    assert!(std::fs::read(scene.desk.path("copy")).unwrap() == scene.image);
    assert_eq!(figure(&outcome, "retries"), 0, "{outcome:?}");
    let passed = link.passed("down");
    assert!(passed < SIZE * 3 / 2, "{passed} bytes came down");
}

#[test]
fn killed_connections_repeat_only_requests_in_flight() {
    let Some(mut link) = link() else { return };
    let scene = Scene::new(&link);
    if link.kill_connections().is_none() {
        skip(
            Need::Other("a kernel that kills connections"),
            "ss -K fails",
        );
        return;
    }
    let mut drive = String::new();
    for (way, program) in [("up", UPLOAD), ("down", DOWNLOAD)] {
        let args = if way == "up" {
            vec!["a.img"]
        } else {
            vec![&*drive, "copy"]
        };
        let mut running = scene.tool(program).list(args).spawn();
        let mut killed = 0;
        for _ in 0..4 {
            wait_passed(&mut link, way, SIZE / 8, &mut running);
            killed += link.kill_connections().unwrap() as u64;
        }
        let outcome = running.wait().code(0);
        if way == "up" {
            drive = outcome.created();
            assert!(std::fs::read(scene.server.drive_file(&drive)).unwrap() == scene.image);
        } else {
            assert!(std::fs::read(scene.desk.path("copy")).unwrap() == scene.image);
        }
        let retries = figure(&outcome, "retries");
        assert!(
            killed >= 4 && retries > 0,
            "{killed} connections, {retries} retries"
        );
        // For each connection that was killed at most one chunk is repeated.
        assert!(retries <= killed, "{killed} connections, {retries} retries");
        let moved = figure(&outcome, "bytes_wire");
        let most = SIZE + SIZE / 100 + killed * (CHUNK + CHUNK / 100);
        assert!(
            moved <= most,
            "{moved} bytes, and {killed} connections were killed"
        );
    }
}
