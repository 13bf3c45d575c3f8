//! How long a run continues without success, from its first request to its last, and what it
//! reports meanwhile.

use std::time::Duration;

use serde_json::Value;

use crate::support::cli::{Desk, Outcome};
use crate::support::http::{assert_drive, create, drives};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Request, answer, page};
use crate::support::server::TestServer;

const C: u64 = 65536;
const SIZE: usize = 8 * C as usize + 77;
const CHUNKS: usize = 9;

/// A server, a proxy, and an image of nine chunks.
struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let image = noise(SIZE as u64, SIZE);
        desk.file("a.img", &image);
        Self {
            desk,
            server,
            proxy,
            image,
        }
    }

    fn upload(&self, args: &str) -> Outcome {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 65536 a.img").args(args).run()
    }

    /// A drive that holds the image.
    fn drive(&self) -> String {
        let drive = create(&self.server, SIZE as u64);
        std::fs::write(self.server.drive_file(&drive), &self.image).unwrap();
        drive
    }

    /// Every request is answered like this.
    fn fault_all(&self, fault: Fault) {
        self.proxy.fault(|_| true, usize::MAX, fault);
    }

    /// Exactly one drive exists, and it holds the image.
    #[track_caller]
    fn check_drive(&self) {
        let all = drives(&self.server);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_drive(&self.server, &all[0], &self.image);
    }
}

fn bad_gateway() -> Fault {
    Fault::Answer(answer(
        502,
        &["Content-Type: text/html"],
        b"<html>Bad gateway",
    ))
}

fn later(status: u16, seconds: u32) -> Fault {
    Fault::Answer(answer(status, &[&format!("Retry-After: {seconds}")], b""))
}

fn redirect() -> Fault {
    Fault::Answer(answer(302, &["Location: http://portal.test/login"], b""))
}

// ---- The first request ----

#[test]
fn a_transfer_waits_for_an_endpoint_that_starts_late() {
    // A front is there already, and breaks every connection. A port of this machine that refuses
    // connections is an error at once: commands.rs.
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    proxy.fault(|_| true, usize::MAX, Fault::ResetBeforeBody);
    let uri = proxy.uri();
    let image = noise(1, SIZE);
    desk.file("a.img", &image);
    // After a broken request for a new drive it would first look for that drive, which takes long.
    let drive = create(&server, SIZE as u64);
    let upload = desk.upload(&uri).args("-c 65536 a.img -d").arg(&drive);
    let upload = upload.spawn();
    let publish = desk.simple(&uri);
    let publish = publish.args("publish a.img --name nightly").spawn();
    let list = desk.simple(&uri).args("ls").spawn();
    for waiting in [&upload, &publish, &list] {
        waiting.wait_stderr("The endpoint does not answer: ");
    }
    proxy.heal();
    let _ = upload.wait().code(0).says("The endpoint answers again");
    assert_drive(&server, &drive, &image);
    publish.wait().code(0).says("The endpoint answers again");
    list.wait().code(0).says("The endpoint answers again");
    assert_eq!(drives(&server).len(), 2, "one of each");
}

#[test]
fn a_web_page_at_the_first_request_is_an_error_at_once() {
    for (fault, says) in [
        (Fault::Answer(page()), "not from the API: an HTML page"),
        (redirect(), "redirect to portal.test, not followed"),
    ] {
        let scene = Scene::new();
        scene.fault_all(fault);
        scene.upload("").code(1).says(says);
        let drive = scene.drive();
        let tool = scene.desk.download(&scene.proxy.uri());
        tool.arg(drive).arg("out").run().code(1).says(says);
    }
}

#[test]
fn a_create_that_fails_in_an_outage_makes_one_drive() {
    let scene = Scene::new();
    // The drive was created, the answer was lost, and then nothing answers for a while.
    let lost = Fault::AnswerInstead(answer(502, &[], b""));
    scene.proxy.fault(Request::is_create, 1, lost);
    scene
        .proxy
        .fault(|r| r.path == "/drives/info", 4, bad_gateway());
    scene.upload("").code(0);
    assert_eq!(scene.proxy.count(Request::is_create), 1);
    scene.check_drive();
}

// ---- The end ----

#[test]
fn an_outage_after_the_last_byte_does_not_fail_a_transfer() {
    let scene = Scene::new();
    let drive = scene.drive();
    // The first query is the one at the beginning.
    scene
        .proxy
        .fault_after(1, Request::is_info, 5, bad_gateway());
    let tool = scene.desk.download(&scene.proxy.uri());
    tool.arg(&drive).arg("out").run().code(0);
    assert_eq!(scene.proxy.count(Request::is_info), 7);
    assert!(std::fs::read(scene.desk.path("out")).unwrap() == scene.image);
}

#[test]
fn an_outage_during_verification_is_reported() {
    let scene = Scene::new();
    scene.proxy.fault(Request::reads_back, 1, later(429, 4));
    // One request at a time, so nothing is read back before the end.
    let outcome = scene.upload("--verify full -j 1").code(0);
    outcome
        .says("429 from the endpoint, waiting 4s")
        .says("The endpoint answers again");
    scene.check_drive();
}

// ---- A dead backend ----

#[test]
fn a_dead_backend_ends_a_transfer_after_the_patience() {
    for (skip, fault) in [
        (0, Fault::Stall),
        (0, bad_gateway()),
        (5, Fault::Stall),
        (5, bad_gateway()),
    ] {
        let scene = Scene::new();
        scene.proxy.fault_after(skip, |_| true, usize::MAX, fault);
        let began = std::time::Instant::now();
        let outcome = scene.upload("--max-outage 3s --stall-timeout 2s").code(75);
        outcome.says("nothing succeeded for 3s");
        // Three seconds and a stall; without the limit it took more than a minute.
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

// ---- Waits that the endpoint asks for ----

#[test]
fn a_wait_beyond_the_patience_ends_the_transfer_at_once() {
    for (args, seconds, says) in [
        ("", 3600, "429, and asks to come back in 1h"),
        ("--deadline 90s", 300, "429, and asks to come back in 5m"),
        (
            "--max-outage 1m",
            90,
            "429, and asks to come back in 1m 30s",
        ),
    ] {
        let scene = Scene::new();
        scene
            .proxy
            .fault_after(3, Request::is_write, usize::MAX, later(429, seconds));
        let outcome = scene.upload(args).code(75).says(says);
        assert!(scene.proxy.count(Request::is_write) <= 3 + 4 + 2);
        let drive = outcome.hint().0;
        assert_eq!(drives(&scene.server), [drive.as_str()]);
        assert!(outcome.stderr.contains("--max-outage "), "{outcome:?}");
    }
    // A first request, and a command without the flag.
    let scene = Scene::new();
    scene.fault_all(later(503, 3600));
    let says = "503, and asks to come back in 1h";
    scene.upload("").code(75).says(says);
    let list = scene.desk.simple(&scene.proxy.uri()).args("ls").run();
    list.code(75).says(says);
}

#[test]
fn a_wait_is_reported_with_its_reason_and_its_length() {
    let scene = Scene::new();
    scene.proxy.fault(|_| true, 1, later(429, 4));
    let list = scene
        .desk
        .simple(&scene.proxy.uri())
        .args("ls --json")
        .run();
    let list = list
        .code(0)
        .says("openhosting ls: warning: 429 from the endpoint, waiting 4s");
    let list = list.says("openhosting ls: note: The endpoint answers again, after ");
    let object: Value = serde_json::from_str(list.text()).unwrap();
    assert_eq!(object["drives"], serde_json::json!([]));
}

#[test]
fn a_wait_is_reported_as_json() {
    let scene = Scene::new();
    scene
        .proxy
        .fault_after(3, Request::is_write, 1, later(503, 4));
    let outcome = scene.upload("-j 1 --progress json").code(0);
    let lines = outcome.stderr.lines();
    let objects: Vec<Value> = lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |event: &str| {
        let mut found = objects.iter().filter(|object| object["event"] == event);
        let first = found.next();
        assert_eq!(found.count(), 0, "{event} more than once");
        first.unwrap_or_else(|| panic!("no {event} in {objects:#?}"))
    };
    let waiting = of("waiting");
    let message = "503 from the endpoint (not available), waiting 4s";
    assert_eq!(waiting["message"], message);
    assert_eq!(waiting["status"], 503);
    assert!(waiting["wait_s"].as_f64().unwrap() >= 4.0);
    assert!(waiting["gives_up_in_s"].as_f64().unwrap() > 800.0);
    assert!(of("wait_over")["waited_s"].as_f64().unwrap() >= 4.0);
}

// ---- Something between client and endpoint ----

#[test]
fn a_captive_portal_in_the_middle_is_an_outage() {
    for fault in [Fault::Answer(page()), redirect()] {
        let scene = Scene::new();
        scene
            .proxy
            .fault_after(3, Request::is_write, 7, fault.clone());
        scene.proxy.fault(Request::is_info, 1, fault);
        let outcome = scene.upload("-j 1").code(0);
        outcome
            .says("the endpoint")
            .says("The endpoint answers again");
        scene.check_drive();
    }
}

#[test]
fn a_transfer_behind_a_lasting_captive_portal_can_be_resumed() {
    for fault in [Fault::Answer(page()), redirect()] {
        let scene = Scene::new();
        scene.proxy.fault_after(5, |_| true, usize::MAX, fault);
        scene.upload("--max-outage 2s").code(75);
        scene.proxy.heal();
        let again = scene.upload("").code(0);
        again.says("Resuming");
        scene.check_drive();
    }
}

// ---- A slow trickle ----

#[test]
fn an_answer_that_arrives_too_slowly_is_a_stall() {
    let scene = Scene::new();
    let drive = scene.drive();
    let drip = Fault::Drip(Duration::from_millis(100));
    scene.proxy.fault(Request::is_read, 2, drip.clone());
    scene.proxy.fault(Request::is_info, 1, drip);
    let tool = scene.desk.download(&scene.proxy.uri());
    let tool = tool.args("-c 65536 --stall-timeout 2s").arg(&drive);
    tool.arg("out").run().code(0);
    assert!(scene.proxy.count(Request::is_read) >= CHUNKS + 2);
    assert_eq!(scene.proxy.count(Request::is_info), 3);
    assert!(std::fs::read(scene.desk.path("out")).unwrap() == scene.image);
}

#[test]
fn a_server_that_trickles_ends_a_download_after_the_patience() {
    let scene = Scene::new();
    let drive = scene.drive();
    // Too many bytes for a stall, and too few for a chunk to end.
    let trickle = Fault::Drip(Duration::from_millis(20));
    scene.proxy.fault(Request::is_read, usize::MAX, trickle);
    let download = |args: &str| {
        let tool = scene.desk.download(&scene.proxy.uri());
        tool.args(args).arg(&drive).arg("out").run()
    };
    let outcome = download("-c 65536 --stall-timeout 200ms --max-outage 1s").code(75);
    let _ = outcome.says("nothing succeeded for 1s");
    scene.proxy.heal();
    let _ = download("").code(0);
    assert!(std::fs::read(scene.desk.path("out")).unwrap() == scene.image);
}
