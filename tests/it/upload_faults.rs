//! `openhosting-upload` when the endpoint, the network, the image or the user causes a failure.

use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::cli::{Desk, Outcome, UPLOAD, has_terminals};
use crate::support::http::{Ask, assert_drive, create, drives, info};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer, claimed, page, refusal};
use crate::support::server::TestServer;
use crate::support::{noise, ramp};

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
        Self::with_args(&[])
    }

    fn with_args(args: &[&str]) -> Self {
        let desk = Desk::new();
        let server = desk.server_with(args);
        let proxy = FaultProxy::to(&server);
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

    /// Checks that the run succeeded: there is exactly one drive, which holds the image.
    #[track_caller]
    fn check_done(&self, outcome: Outcome) {
        let outcome = outcome.code(0);
        let drive = outcome.created();
        assert_eq!(drives(&self.server), [drive.as_str()]);
        let dots = ".".repeat(CHUNKS);
        assert!(
            outcome.text().ends_with(&format!(": {dots} completed\n")),
            "{outcome:?}"
        );
        assert_drive(&self.server, &drive, &self.image);
    }

    /// Checks that the run failed with `code`, and that its advice on how to continue is correct:
    /// everything before the offset is on the drive, and another run completes the upload without
    /// sending that part again.
    #[track_caller]
    fn check_resumable(&self, outcome: Outcome, code: i32) {
        let outcome = outcome.code(code);
        assert!(outcome.text().ends_with("E\n"), "{outcome:?}");
        let (drive, offset) = outcome.hint();
        assert_eq!(drives(&self.server), [drive.as_str()]);
        let on_drive = std::fs::read(self.server.drive_file(&drive)).unwrap();
        assert!(on_drive[..offset as usize] == self.image[..offset as usize]);
        let line = format!(
            "Failed to write chunk {} of {CHUNKS}: aborting\n",
            offset / C
        );
        assert!(outcome.stderr.contains(&line), "{outcome:?}");

        self.proxy.heal();
        self.proxy.forget();
        let again = self.upload(&format!("-d {drive} -o {offset}")).code(0);
        let dots = ".".repeat(CHUNKS - (offset / C) as usize);
        assert!(
            again.text().ends_with(&format!(": {dots} completed\n")),
            "{again:?}"
        );
        assert_drive(&self.server, &drive, &self.image);
        for request in self.proxy.requests() {
            assert!(!request.is_create());
            assert!(!request.is_write() || request.offset() >= offset);
        }
    }
}

fn is_first_write(request: &Request) -> bool {
    request.path.ends_with("/write/0")
}

// ---- The network ----

#[test]
fn an_endpoint_that_does_not_listen_is_reported() {
    let desk = Desk::new();
    desk.file("a.img", b"abc");
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let endpoint = format!("http://127.0.0.1:{port}/");
    let tool = desk.upload(&endpoint).args("--max-outage 1s a.img");
    let outcome = tool.run().code(75);
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let _ = outcome.says("Failed to create drive of size 3: cannot connect");
    let drive = "-d 0012e24a-6eae-4279-9912-3432f698cec8";
    let tool = desk.upload(&endpoint).args("--max-outage 1s a.img");
    let _ = tool.args(drive).run().code(75).says("cannot connect");
}

#[test]
fn a_write_whose_connection_is_reset_is_repeated() {
    for fault in [
        Fault::ResetBeforeBody,
        Fault::ResetMidBody,
        Fault::ResetAfterBody,
        Fault::LoseAnswer,
        Fault::CutAnswer,
    ] {
        let scene = Scene::new();
        scene
            .proxy
            .fault_after(1, Request::is_write, 2, fault.clone());
        let outcome = scene.upload("");
        scene.check_done(outcome);
        let writes = scene.proxy.count(Request::is_write);
        // An answer of 204 that ends within its head is no answer. After two broken connections in
        // a row, requests may be smaller for a while.
        assert!((CHUNKS + 2..CHUNKS + 8).contains(&writes), "{writes}");
        assert_eq!(scene.proxy.count(Request::is_create), 1);
    }
}

#[test]
fn the_link_is_measured_with_bytes_of_the_image_and_a_refusal_is_harmless() {
    const MIB: u64 = 1 << 20;
    let size = 80 * MIB;
    let data = noise(5, 1 << 20);
    let desk = Desk::new();
    desk.sparse("a.img", size, &[(13 * MIB, &data)]);
    let place = format!("/write/{}", 13 * MIB);
    for is_refused in [false, true] {
        let (server, proxy) = desk.pair();
        if is_refused {
            let refused = Fault::Answer(refusal(400, "usage"));
            proxy.fault(Request::is_write, 1, refused);
        }
        let outcome = desk.upload(&proxy.uri()).arg("a.img").run().code(0);
        let drive = server.drive_file(&outcome.created());
        let drive = std::fs::File::open(drive).unwrap();
        let mut bytes = vec![0; data.len()];
        drive.read_exact_at(&mut bytes, 13 * MIB).unwrap();
        assert!(bytes == data, "{is_refused}");
        let first = proxy.requests().into_iter().find(Request::is_write);
        let first = first.unwrap();
        assert!(first.path.ends_with(&place), "{}", first.path);
        assert!(first.body == data[..65536], "{is_refused}");
    }
    // With a level chosen by the user, the speed of the link is not measured first.
    let (_server, proxy) = desk.pair();
    let tool = desk.upload(&proxy.uri()).args("--level 0 a.img");
    let _ = tool.run().code(0);
    assert!(
        proxy
            .requests()
            .iter()
            .all(|request| request.body.len() != 65536)
    );
}

#[test]
fn a_write_that_hangs_is_repeated() {
    let scene = Scene::new();
    scene.proxy.fault(is_first_write, 1, Fault::Stall);
    let outcome = scene.upload("--stall-timeout 1s");
    scene.check_done(outcome);
    assert_eq!(scene.proxy.count(is_first_write), 2);
}

#[test]
fn an_upload_over_a_broken_network_can_be_resumed() {
    let scene = Scene::new();
    scene
        .proxy
        .fault_after(4, Request::is_write, usize::MAX, Fault::ResetMidBody);
    scene
        .proxy
        .fault(Request::is_info, usize::MAX, Fault::ResetAfterBody);
    let outcome = scene.upload("--max-outage 2s").says("Gave up for now");
    assert!(scene.proxy.count(Request::is_write) <= CHUNKS + 20);
    scene.check_resumable(outcome, 75);
}

#[test]
fn an_outage_is_waited_for_with_probes() {
    let scene = Scene::new();
    // Five failures in a row are an outage. Until it is over, only info is requested.
    scene
        .proxy
        .fault(Request::is_write, 5, Fault::Answer(refusal(500, "system")));
    scene
        .proxy
        .fault(Request::is_info, 2, Fault::ResetAfterBody);
    let outcome = scene
        .upload("-j 1")
        .says("500 from the endpoint (internal error), trying again for up to 15m")
        .says("The endpoint answers again");
    scene.check_done(outcome);
    assert_eq!(scene.proxy.count(Request::is_write), CHUNKS + 5);
    let requests = scene.proxy.requests();
    let first_probe = requests.iter().position(Request::is_info).unwrap();
    let probes = &requests[first_probe..first_probe + 3];
    let all_probes = probes.iter().all(Request::is_info);
    assert!(all_probes, "sent while there was an outage: {probes:?}");
}

#[test]
fn an_upload_survives_a_restart_of_the_server() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let listen = format!("127.0.0.1:{port}");
    let mut scene = Scene::with_args(&["--listen", &listen]);
    let gate = Gate::default();
    scene
        .proxy
        .fault_after(3, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 65536 -j 2 a.img").spawn();
    scene.proxy.wait_for("the fifth write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() >= 5
    });
    scene.server.kill9();
    scene.proxy.heal();
    gate.open();
    // A write is attempted while the server is not running.
    scene.proxy.wait_for("a write in vain", |requests| {
        requests.iter().filter(|r| r.is_write()).count() >= 6
    });
    scene.server.start_again();
    scene.check_done(running.wait());
    assert_eq!(scene.proxy.count(Request::is_create), 1);
}

// ---- What the endpoint answers to a write ----

/// Answers after which the write is repeated.
#[test]
fn a_temporarily_refused_write_is_repeated() {
    let html = answer(502, &["Content-Type: text/html"], b"<html>Bad gateway");
    let soon = answer(429, &["Retry-After: 1"], b"");
    let busy = answer(503, &["Retry-After: 1"], b"");
    let cases = [
        ("500 system", refusal(500, "system")),
        ("500 failed", refusal(500, "failed")),
        ("500", answer(500, &[], b"")),
        ("502 of a proxy", html),
        ("503", answer(503, &[], b"")),
        ("504", answer(504, &[], b"")),
        ("408", answer(408, &[], b"")),
        ("429", soon),
        ("503 with Retry-After", busy),
        ("409", refusal(409, "busy")),
        ("a page", page()),
        ("no answer of the API", answer(200, &[], b"all is well")),
        // The drive is new, so parts of the endpoint may not know it so far.
        ("404", refusal(404, "missing")),
    ];
    for (name, answer) in cases {
        let scene = Scene::new();
        scene
            .proxy
            .fault_after(2, Request::is_write, 2, Fault::Answer(answer));
        let outcome = scene.upload("");
        eprintln!("{name}: {:?}", outcome.status);
        scene.check_done(outcome);
        let writes = scene.proxy.count(Request::is_write);
        // If the size of the request may be the cause, the write is repeated in smaller pieces.
        assert!(
            (CHUNKS + 2..CHUNKS + 8).contains(&writes),
            "{name}: {writes}"
        );
        assert_eq!(scene.proxy.count(Request::is_create), 1, "{name}");
    }
}

/// Answers that would be the same each time: the exit code, the number of attempts for each chunk,
/// and a part of the message.
#[test]
fn a_permanently_refused_write_ends_the_upload_resumably() {
    let cases = [
        (refusal(507, "full"), 1, 1, "no room"),
        (refusal(402, "billing"), 1, 1, "balance"),
        (refusal(401, "auth"), 1, 1, "Check OHAUTH"),
        (refusal(400, "usage"), 1, 1, "400 usage (Made up.)"),
        (answer(403, &[], b""), 1, 1, "403"),
        // Each of four workers tries 64, 32 and 16 KiB.
        (answer(413, &[], b""), 1, 2, "413"),
        (refusal(500, "failed"), 1, 4, "500 failed"),
    ];
    for (answer, code, attempts, says) in cases {
        let scene = Scene::new();
        let fault = Fault::Answer(answer);
        scene
            .proxy
            .fault_after(3, Request::is_write, usize::MAX, fault);
        let outcome = scene.upload("").says(says);
        let writes = scene.proxy.count(Request::is_write);
        let most = if attempts == 1 {
            3 + 4
        } else {
            3 + attempts * (CHUNKS - 3)
        };
        assert!(writes <= most, "{says}: {writes} writes");
        scene.check_resumable(outcome, code);
    }
}

#[test]
fn writes_to_an_old_drive_that_is_gone_end_at_once() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    let gone = Fault::Answer(refusal(404, "missing"));
    scene.proxy.fault(Request::is_write, usize::MAX, gone);
    let outcome = scene.upload(&format!("-j 1 -d {drive}")).code(1);
    let _ = outcome.says("404 missing");
    assert_eq!(scene.proxy.count(Request::is_write), 1);
}

#[test]
fn no_redirect_is_followed() {
    // A redirection to this server must not be followed: that would send the key to it.
    let canary = FaultProxy::stub(|_| answer(204, &[], b""));
    let location = format!("Location: {}drives/create", canary.uri());
    for status in [301, 302, 303, 307, 308] {
        let moved = || Fault::Answer(answer(status, &[&location], b""));
        let scene = Scene::new();
        scene.proxy.fault(Request::is_create, 1, moved());
        let outcome = scene.upload("").code(1).says("127.0.0.1, not followed");
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
        assert_eq!(scene.proxy.requests().len(), 1);

        let (proxy, all) = (&scene.proxy, usize::MAX);
        proxy.fault_after(2, Request::is_write, all, moved());
        proxy.fault(Request::is_info, all, moved());
        let outcome = scene.upload("--max-outage 1s");
        scene.check_resumable(outcome, 75);
    }
    assert_eq!(canary.connections(), 0);
}

#[test]
fn retry_after_delays_all_requests() {
    let scene = Scene::new();
    let soon = answer(429, &["Retry-After: 1"], b"");
    scene.proxy.fault(is_first_write, 1, Fault::Answer(soon));
    let outcome = scene.upload("-j 1");
    scene.check_done(outcome);
    let requests = scene.proxy.requests();
    let writes: Vec<_> = requests.iter().filter(|r| r.is_write()).collect();
    // With one job, no other request was sent in between.
    assert_eq!((writes[0].status, writes[1].status), (429, 204));
    assert_eq!(writes.len(), CHUNKS + 1);
}

// ---- A drive that is in use ----

#[test]
fn a_cloud_with_one_writer_gets_one_request_at_a_time() {
    let scene = Scene::with_args(&["--one-writer"]);
    let size = 60 * C as usize;
    let image = noise(60, size);
    scene.desk.file("b.img", &image);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let outcome = tool.args("-c 65536 -j 8 b.img").run().code(0);
    assert_drive(&scene.server, &outcome.created(), &image);
    let busy = scene.proxy.count(|r| r.status == 409);
    // Each time the limit is halved, only the writes that are in flight are refused, and no others.
    assert!(busy <= 8 + 4 + 2, "{busy} answers of 409");
    assert_eq!(scene.proxy.count(Request::is_write), 60 + busy);
    let requests = scene.proxy.requests();
    let last_busy = requests.iter().rposition(|r| r.status == 409);
    let after = requests.len() - last_busy.unwrap_or(0);
    eprintln!("{busy} answers of 409, the last {after} requests before the end");
}

#[test]
fn a_drive_claimed_during_the_upload_ends_it() {
    let scene = Scene::new();
    let busy = Fault::Answer(refusal(409, "busy"));
    scene
        .proxy
        .fault_after(3, Request::is_write, usize::MAX, busy);
    scene.proxy.fault(Request::is_info, usize::MAX, claimed());
    let outcome = scene.upload("-j 2").says("is claimed by 2:guest:a:ide:0:0");
    // Two refused writes were in flight. After that one write at a time is tried, until the info of
    // the drive was read.
    assert!(scene.proxy.count(Request::is_write) <= 3 + 4);
    scene.check_resumable(outcome, 1);
}

#[test]
fn a_drive_in_use_is_not_written_to() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    scene.proxy.fault(Request::is_info, 1, claimed());
    let outcome = scene.upload(&format!("-d {drive}")).code(1);
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let _ = outcome.says("is claimed by 2:guest:a:ide:0:0");
    assert_eq!(scene.proxy.requests().len(), 1);
    assert_drive(&scene.server, &drive, &vec![0; SIZE]);
}

// ---- Creating ----

#[test]
fn a_lost_answer_to_create_makes_no_second_drive() {
    let html = answer(502, &["Content-Type: text/html"], b"<html>Bad gateway");
    for fault in [
        Fault::LoseAnswer,
        Fault::CutAnswer,
        Fault::AnswerInstead(html),
        Fault::AnswerInstead(refusal(500, "system")),
        Fault::AnswerInstead(page()),
    ] {
        let scene = Scene::new();
        // A different drive with the same name and size is not mistaken for it.
        let body = format!("name a.img\nsize {SIZE}");
        let other = Ask::of(&scene.server).post("/drives/create", body);
        let other = other.expect(200).key("drive").unwrap().to_owned();
        scene.proxy.fault(Request::is_create, 1, fault);
        let outcome = scene.upload("").code(0);
        let drive = outcome.created();
        assert_ne!(drive, other);
        let mut both = [drive.as_str(), other.as_str()];
        both.sort_unstable();
        assert_eq!(drives(&scene.server), both);
        assert_drive(&scene.server, &drive, &scene.image);
        assert_eq!(scene.proxy.count(Request::is_create), 1);
        let requests = scene.proxy.requests();
        let create = requests.iter().find(|r| r.is_create()).unwrap();
        let token = info(&scene.server, &drive, "user:oh-token").unwrap();
        assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(create.text().contains(&format!("user:oh-token {token}\n")));
    }
}

#[test]
fn a_drive_whose_creation_hangs_is_found() {
    let scene = Scene::new();
    // The drive was created, though the answer never arrives.
    let gate = Gate::default();
    let made = Arc::new(AtomicBool::new(false));
    let is_made = Arc::clone(&made);
    let held = gate.clone();
    scene.proxy.fault(
        Request::is_create,
        1,
        Fault::rewrite(move |_, reply| {
            is_made.store(true, Ordering::SeqCst);
            held.wait();
            reply
        }),
    );
    let outcome = scene.upload("--stall-timeout 1s");
    gate.open();
    scene.check_done(outcome);
    assert!(made.load(Ordering::SeqCst));
    assert_eq!(scene.proxy.count(Request::is_create), 1);
}

#[test]
fn a_create_refused_is_not_repeated() {
    let cases = [
        (401, "auth", "Check OHAUTH"),
        (402, "billing", "balance"),
        (404, "missing", "404 missing"),
        (507, "full", "no room"),
    ];
    for (status, error, says) in cases {
        let scene = Scene::new();
        let refused = Fault::Answer(refusal(status, error));
        scene.proxy.fault(Request::is_create, usize::MAX, refused);
        let outcome = scene.upload("").code(1).says(says);
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
        let what = format!("Failed to create drive of size {SIZE}: ");
        let _ = outcome.says(&what);
        assert_eq!(scene.proxy.requests().len(), 1);
        assert!(drives(&scene.server).is_empty());
    }
}

#[test]
fn a_temporarily_refused_create_is_repeated() {
    for answer in [
        answer(429, &["Retry-After: 1"], b""),
        refusal(409, "busy"),
        answer(425, &[], b""),
    ] {
        let scene = Scene::new();
        scene
            .proxy
            .fault(Request::is_create, 2, Fault::Answer(answer));
        let outcome = scene.upload("");
        scene.check_done(outcome);
        assert_eq!(scene.proxy.count(Request::is_create), 3);
    }
}

#[test]
fn a_wrong_key_is_reported_at_once() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    for args in ["".to_owned(), format!("-d {drive}")] {
        scene.proxy.forget();
        let auth = format!("{}:not the key", scene.desk.user);
        let tool = scene.desk.upload(&scene.proxy.uri()).env("OHAUTH", auth);
        let outcome = tool.arg("a.img").args(&args).run().code(1);
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
        let _ = outcome.says("401 auth").says("Check OHAUTH");
        assert_eq!(scene.proxy.requests().len(), 1);
    }
}

#[test]
#[ignore = "takes a minute: an answer that is no answer leaves open whether a drive was made"]
fn a_web_site_instead_of_an_api() {
    let scene = Scene::new();
    scene
        .proxy
        .fault(|_| true, usize::MAX, Fault::Answer(page()));
    let outcome = scene.upload("").code(1).says("an HTML page");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    assert_eq!(scene.proxy.count(Request::is_create), 1);
}

#[test]
fn a_wrong_path_in_the_endpoint_is_named_with_its_source() {
    let scene = Scene::new();
    let wrong = format!("{}foo/", scene.server.uri);
    let advice = |from: &str| format!("The API is not at this path. Check {from}: at most");
    let simple = |args: &str| scene.desk.simple(&wrong).args(args).run().code(1);
    for command in ["ls", "show name", "upload a.img", "publish --name n a.img"] {
        let outcome = simple(command).says(&advice("OHURI"));
        assert!(!outcome.stderr.contains("List your drives"), "{outcome:?}");
    }
    let tool = scene.desk.simple(&scene.server.uri).args("ls --endpoint");
    let _ = tool.arg(&wrong).run().code(1).says(&advice("--endpoint"));
    let tool = scene.desk.simple(&wrong).args("ls --endpoint example");
    let _ = tool.run().code(2).says("Set --endpoint to something like");
}

#[test]
fn a_web_server_that_takes_no_posts_gets_the_advice_of_a_wrong_endpoint() {
    let scene = Scene::new();
    let html = b"<html><title>Error response</title></html>";
    for status in [404, 501] {
        let answer = answer(status, &["Content-Type: text/html"], html);
        let fault = Fault::Answer(answer);
        scene.proxy.fault(|_| true, usize::MAX, fault);
        let tool = scene.desk.upload(&scene.server.uri).arg("--endpoint");
        let tool = tool.arg(scene.proxy.uri()).args("--max-outage 1s a.img");
        let outcome = tool.run();
        assert!(!outcome.status.success(), "{outcome:?}");
        let _ = outcome.says("bears no mark of the API: a firewall or proxy may have sent it. Check --endpoint, then the credentials");
        scene.proxy.heal();
    }
}

#[test]
fn a_web_site_instead_of_an_api_for_an_old_drive() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    scene
        .proxy
        .fault(|_| true, usize::MAX, Fault::Answer(page()));
    let outcome = scene.upload(&format!("-d {drive}")).code(1);
    let _ = outcome.says("an HTML page").says("Check OHURI");
    assert!(scene.proxy.requests().len() <= 4);
}

// ---- Zeros ----

#[test]
fn zeros_are_sent_unless_the_new_drive_is_proven_zero() {
    let dirty = Fault::rewrite(|_, reply| {
        let (at, mut reply) = (reply.len() - 1, reply);
        reply[at] = 1;
        reply
    });
    for (fault, times) in [
        (dirty, usize::MAX),
        (Fault::Answer(refusal(500, "failed")), usize::MAX),
        (Fault::Answer(answer(200, &[], b"")), usize::MAX),
    ] {
        let scene = Scene::new();
        let size = 12 * C;
        let path = scene.desk.sparse("b.img", size, &[(5 * C, b"data")]);
        let image = std::fs::read(path).unwrap();
        scene.proxy.fault(Request::is_read, times, fault);
        let tool = scene.desk.upload(&scene.proxy.uri());
        let outcome = tool.args("--verify none -c 65536 b.img").run().code(0);
        let notice = "The new drive is not proven to read as zeros: zeros are sent";
        let outcome = outcome.says(notice);
        assert_drive(&scene.server, &outcome.created(), &image);
        assert_eq!(scene.proxy.count(Request::is_write), 12);
        assert!(scene.proxy.count(Request::is_read) <= 4);
    }
}

#[test]
fn a_failed_proof_of_zeros_is_requested_again() {
    let scene = Scene::new();
    scene.desk.sparse("b.img", 12 * C, &[(5 * C, b"data")]);
    scene
        .proxy
        .fault(Request::is_read, 1, Fault::ResetAfterBody);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let _ = tool.args("--verify none -c 65536 b.img").run().code(0);
    assert_eq!(scene.proxy.count(Request::is_read), 2);
    assert_eq!(scene.proxy.count(Request::is_write), 1);
}

// ---- The image ----

/// Uploads an image much larger than what is read ahead, and changes it after the first write.
fn change(change: impl FnOnce(&std::path::Path)) -> (Scene, Outcome) {
    let scene = Scene::new();
    let path = scene.desk.file("b.img", &noise(1, 64 * C as usize));
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(Request::is_write, 1, hold);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 65536 -j 1 b.img").spawn();
    scene
        .proxy
        .wait_for("a write", |requests| requests.iter().any(Request::is_write));
    change(&path);
    gate.open();
    let outcome = running.wait();
    (scene, outcome)
}

#[test]
fn an_upload_of_a_changing_image_is_never_complete() {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    let edit = |path: &std::path::Path| File::options().write(true).open(path).unwrap();
    type Change<'a> = Box<dyn FnOnce(&std::path::Path) + 'a>;
    let changes: [(&str, Change<'_>); 4] = [
        (
            "written to",
            Box::new(|path| edit(path).write_all_at(b"x", 60 * C).unwrap()),
        ),
        (
            "its size was 4194304 bytes and is 1966080",
            Box::new(|path| edit(path).set_len(30 * C).unwrap()),
        ),
        (
            "its size was 4194304 bytes and is 0",
            Box::new(|path| edit(path).set_len(0).unwrap()),
        ),
        (
            "its size was 4194304 bytes and is 4194305",
            Box::new(|path| edit(path).set_len(64 * C + 1).unwrap()),
        ),
    ];
    for (says, how) in changes {
        let (_scene, outcome) = change(how);
        let outcome = outcome.code(4).says(says).says("holds a mixture");
        assert!(outcome.text().ends_with("E\n"), "{outcome:?}");
        // All of it must be read again.
        assert_eq!(outcome.hint().1, 0);
    }
}

#[test]
fn an_image_that_is_renamed_or_removed_is_still_read() {
    let (scene, outcome) = change(|path| std::fs::remove_file(path).unwrap());
    let drive = outcome.code(0).created();
    assert_drive(&scene.server, &drive, &noise(1, 64 * C as usize));
}

// ---- The user ----

/// Uploads with two jobs, and sends a signal when both are waiting for an answer.
fn interrupted(scene: &Scene, signal: &str, gate: &Gate) -> Outcome {
    let hold = Fault::Hold(gate.clone());
    scene
        .proxy
        .fault_after(3, Request::is_write, usize::MAX, hold);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 65536 -j 2 a.img").spawn();
    scene.proxy.wait_for("two writes that wait", |requests| {
        requests.iter().filter(|r| r.is_write()).count() == 5
    });
    running.signal(signal);
    running.wait_stderr(
        "finishing the requests in flight, for at most 10s; a second signal stops at once",
    );
    gate.open();
    let outcome = running.wait();
    // Nothing new was sent after the signal.
    assert_eq!(scene.proxy.count(Request::is_write), 5);
    outcome
}

#[test]
fn a_signal_ends_an_upload_cleanly() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let scene = Scene::new();
        let outcome = interrupted(&scene, signal, &Gate::default());
        // Requests in flight were completed and count. (The order of chunks can change when they
        // are compressed.)
        let requests = scene.proxy.requests();
        let writes = requests.iter().filter(|r| r.is_write() && r.status == 204);
        let confirmed: Vec<u64> = writes.map(Request::offset).collect();
        let is_open = |offset: &u64| !confirmed.contains(offset);
        let first_open = (0..).map(|i| i * C).find(is_open);
        assert_eq!((confirmed.len(), Some(outcome.hint().1)), (5, first_open));
        scene.check_resumable(outcome, code);
    }
}

#[test]
fn a_second_signal_ends_an_upload_at_once() {
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene
        .proxy
        .fault_after(3, Request::is_write, usize::MAX, hold);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 65536 -j 1 a.img").spawn();
    scene.proxy.wait_for("a write that waits", |requests| {
        requests.iter().filter(|r| r.is_write()).count() == 4
    });
    running.signal("INT");
    running.wait_stderr("a second signal stops at once");
    running.signal("INT");
    let outcome = running.wait();
    // Requests in flight do not count, because their outcome is unknown.
    assert_eq!(outcome.hint().1, 3 * C);
    gate.open();
    scene.check_resumable(outcome, 130);
}

#[test]
fn a_signal_while_the_drive_is_created_is_handled() {
    let scene = Scene::new();
    scene.proxy.fault(Request::is_create, 1, Fault::Stall);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.arg("a.img").spawn();
    scene.proxy.wait_for("a create", |requests| {
        requests.iter().any(Request::is_create)
    });
    running.signal("INT");
    let outcome = running.wait().code(130);
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
}

#[test]
fn a_signal_while_the_image_is_measured_is_handled() {
    let scene = Scene::new();
    // 16 GiB of zeros, whose size takes a while to determine.
    let packed = {
        use std::io::Write;
        let best = flate2::Compression::best();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), best);
        let step = vec![0; 1 << 20];
        for _ in 0..256 {
            encoder.write_all(&step).unwrap();
        }
        encoder.finish().unwrap()
    };
    let path = scene.desk.file("b.gz", &packed.repeat(64));
    let running = scene
        .desk
        .upload(&scene.proxy.uri())
        .args("-z b.gz")
        .spawn();
    let fds = format!("/proc/{}/fd", running.pid());
    let is_open = || {
        let mut fds = std::fs::read_dir(&fds).unwrap();
        fds.any(|fd| std::fs::read_link(fd.unwrap().path()).is_ok_and(|to| to == path))
    };
    while !is_open() {
        std::thread::yield_now();
    }
    running.signal("INT");
    let outcome = running.wait();
    let outcome = outcome.code(130).says("Stopped");
    assert_eq!(scene.proxy.connections(), 0, "{outcome:?}");
}

#[test]
fn the_key_is_requested_once_without_echo() {
    let scene = Scene::new();
    if !has_terminals() {
        return;
    }
    // Here the key is an argument of Python and not of the tool.
    let typed = format!("{}\n", scene.desk.key);
    let tool = scene.desk.on_a_terminal(&typed, UPLOAD);
    let outcome = tool
        .args("-c 65536 a.img")
        .env("OHURI", scene.proxy.uri())
        .env("OHAUTH", &scene.desk.user)
        .run()
        .code(0);
    assert_eq!(
        outcome.text().matches("Secret API key: ").count(),
        1,
        "{outcome:?}"
    );
    let list = drives(&scene.server);
    assert_eq!(list.len(), 1);
    assert_drive(&scene.server, &list[0], &scene.image);
}

#[test]
fn the_question_for_the_key_ends_with_ctrl_c() {
    let scene = Scene::new();
    let tool = scene.desk.on_a_terminal("\x03", UPLOAD).arg("a.img");
    let outcome = tool
        .env("OHURI", scene.proxy.uri())
        .env("OHAUTH", &scene.desk.user)
        .run()
        .code(130);
    assert!(outcome.text().contains("Stopped"), "{outcome:?}");
    assert_eq!(scene.proxy.connections(), 0);
}

#[test]
fn no_key_is_asked_for_without_a_user() {
    let scene = Scene::new();
    let tool = scene.desk.on_a_terminal("", UPLOAD).arg("a.img");
    let tool = tool.env("OHURI", scene.proxy.uri()).env("OHAUTH", "bad");
    let refused = tool.run().code(2);
    assert!(
        refused.text().contains("OHAUTH does not begin"),
        "{refused:?}"
    );
    assert!(!refused.text().contains("Secret"), "{refused:?}");
}

#[test]
fn without_a_terminal_the_key_is_not_asked_for() {
    let scene = Scene::new();
    let tool = scene.desk.upload(&scene.proxy.uri()).arg("a.img");
    let outcome = tool.env("OHAUTH", &scene.desk.user).run().code(2);
    let _ =
        outcome.says("The credentials hold no secret API key, and there is no terminal to ask on");
    assert_eq!(scene.proxy.connections(), 0);
}

// ---- Who is asked ----

#[test]
fn a_local_endpoint_bypasses_the_proxy() {
    let scene = Scene::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&seen);
    let canary = FaultProxy::stub(move |request| {
        heads.lock().unwrap().push(request.head.clone());
        answer(502, &[], b"")
    });
    let mut tool = scene.desk.upload(&scene.proxy.uri());
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"] {
        tool = tool.env(name, canary.uri());
    }
    let outcome = tool.args("-c 65536 a.img").run();
    scene.check_done(outcome);
    assert_eq!(canary.connections(), 0, "{:?}", seen.lock().unwrap());
}

#[test]
fn only_an_endpoint_with_a_trusted_certificate_is_used() {
    let desk = Desk::new();
    let [cert, key] = desk.certificate("localhost");
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = desk.server_with(&["--tls-cert", cert, "--tls-key", key]);
    let image = noise(5, 200_000);
    desk.file("a.img", &image);
    let port = server.uri.trim_end_matches('/').rsplit(':').next();
    let endpoint = |host: &str| format!("https://{host}:{}/", port.unwrap());
    // A certificate of an unknown CA, and one for another name.
    for (host, trusts) in [("localhost", false), ("127.0.0.1", true)] {
        let mut tool = desk.upload(&endpoint(host)).arg("a.img");
        if trusts {
            tool = tool.env("SSL_CERT_FILE", cert);
        }
        let outcome = tool.run().code(1).says("certificate not accepted");
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
    }
    assert!(!server.log().contains("Answered"), "{}", server.log());
    let tool = desk.upload(&endpoint("localhost")).args("-c 65536 a.img");
    let outcome = tool.env("SSL_CERT_FILE", cert).run().code(0);
    let drive = outcome.created();
    let on_drive = std::fs::read(server.drive_file(&drive)).unwrap();
    assert!(on_drive == image);
    let tool = desk.simple(&endpoint("localhost")).args("drives list");
    let outcome = tool.env("SSL_CERT_FILE", cert).run().code(0);
    assert_eq!(outcome.text(), format!("{drive}\n"));
}

#[test]
fn plain_http_to_localhost_is_allowed() {
    let scene = Scene::new();
    let endpoint = scene.proxy.uri().replace("127.0.0.1", "localhost");
    let tool = scene.desk.upload(&endpoint).args("-c 65536 a.img");
    let outcome = tool.run();
    scene.check_done(outcome);
}

#[test]
fn a_resumed_upload_may_use_another_chunk() {
    for chunk in [1000, 65_536, 100_000, 1 << 20] {
        let scene = Scene::new();
        let full = Fault::Answer(refusal(507, "full"));
        scene.proxy.fault_after(5, Request::is_write, 1, full);
        let (drive, offset) = scene.upload("").code(1).hint();
        let tool = scene.desk.upload(&scene.proxy.uri()).arg("a.img");
        let args = format!("-c {chunk} -d {drive} -o {offset}");
        let _ = tool.args(&args).run().code(0);
        assert_drive(&scene.server, &drive, &scene.image);
    }
}

#[test]
fn a_chunk_with_zeros_at_both_ends_is_not_a_hole() {
    let scene = Scene::new();
    let mut image = vec![0; 3 * C as usize];
    image[C as usize + 100..2 * C as usize - 100].copy_from_slice(&ramp(1, C as usize - 200));
    scene.desk.file("b.img", &image);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let outcome = tool.args("-c 65536 b.img").run().code(0);
    assert_drive(&scene.server, &outcome.created(), &image);
    assert_eq!(scene.proxy.count(Request::is_write), 1);
}
