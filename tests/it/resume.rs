//! `openhosting-upload` a second time: what stopped the first run, what happened to image, journal
//! and drive meanwhile, and how much is sent again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openhosting::digest::{ChunkDigest, Digest};
use openhosting::drive::DriveId;
use openhosting::image::Fingerprint;
use openhosting::journal::{
    Direction, HEADER_BYTES, Header, PageCache, Proof, RECORD_BYTES, Record, replay,
};

use crate::support::cli::{Desk, Outcome, Running, SIMPLE, UPLOAD};
use crate::support::disk::LoopDevice;
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, refusal};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{is_plain, noise};

const C: usize = 16 * 1024;
const CHUNKS: usize = 200;
const SIZE: usize = CHUNKS * C;
/// Number of writes before the first run is stopped.
const PASSED: usize = 120;

struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        Self::of(noise(SIZE as u64, SIZE))
    }

    /// A scene with an image whose chunks are zeros except for their second 4 KiB.
    fn sparse() -> Self {
        let mut image = noise(SIZE as u64, SIZE);
        for chunk in image.chunks_mut(C) {
            chunk[..4096].fill(0);
            chunk[8192..].fill(0);
        }
        Self::of(image)
    }

    fn of(image: Vec<u8>) -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("a.img", &image);
        Self {
            desk,
            server,
            proxy,
            image,
        }
    }

    fn start(&self, args: &str) -> Running<'_> {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 16384").args(args).arg("a.img").spawn()
    }

    fn run(&self, args: &str) -> Outcome {
        self.start(args).wait()
    }

    /// Runs until [`PASSED`] writes have passed, holds those that follow, and calls `stop`.
    fn stopped(&self, args: &str, stop: impl FnOnce(Running<'_>, &Gate) -> Outcome) -> Outcome {
        let gate = Gate::default();
        let hold = Fault::Hold(gate.clone());
        self.proxy
            .fault_after(PASSED, Request::is_write, usize::MAX, hold);
        let running = self.start(args);
        self.proxy.wait_for("the writes", |requests| {
            requests.iter().filter(|r| r.is_write()).count() > PASSED
        });
        let outcome = stop(running, &gate);
        gate.open();
        self.proxy.settle();
        self.proxy.heal();
        outcome
    }

    /// Stops a run by SIGINT: everything confirmed is in the journal.
    fn interrupted(&self, args: &str) -> Outcome {
        self.signalled(args, "INT").code(130)
    }

    fn signalled(&self, args: &str, signal: &str) -> Outcome {
        self.stopped(args, |running, gate| {
            running.signal(signal);
            running.wait_stderr("finishing the requests in flight");
            gate.open();
            running.wait()
        })
    }

    /// The writes since the last call; clears them.
    fn writes(&self) -> Vec<u64> {
        let requests = self.proxy.requests();
        self.proxy.forget();
        let writes = requests.iter().filter(|r| r.is_write());
        writes.map(Request::offset).collect()
    }

    fn confirmed(&self) -> usize {
        self.proxy.count(|r| r.is_write() && r.status == 204)
    }

    /// The only journal.
    #[track_caller]
    fn journal(&self) -> PathBuf {
        let journals = self.desk.journals();
        assert_eq!(journals.len(), 1, "{journals:?}");
        journals[0].clone()
    }

    /// The only drive.
    #[track_caller]
    fn drive(&self) -> String {
        let drives = drives(&self.server);
        assert_eq!(drives.len(), 1, "{drives:?}");
        drives[0].clone()
    }

    /// Checks that there is one drive, which holds the image, and that nothing is left of the
    /// transfer.
    #[track_caller]
    fn check_done(&self) {
        assert_drive(&self.server, &self.drive(), &self.image);
        assert_eq!(self.desk.journals(), Vec::<PathBuf>::new());
    }

    /// Changes the image and the file.
    fn change(&mut self, offset: usize, bytes: &[u8]) {
        self.image[offset..offset + bytes.len()].copy_from_slice(bytes);
        let file = File::options().write(true).open(self.desk.path("a.img"));
        file.unwrap().write_all_at(bytes, offset as u64).unwrap();
    }
}

/// What a run reports that it found.
#[track_caller]
fn resumed(outcome: &Outcome) -> usize {
    let rest = outcome
        .stderr
        .split_once("Resuming: ")
        .map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("not resumed: {outcome:?}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until the journal has records of `chunks` chunks.
fn wait_for_records(scene: &Scene, chunks: usize) {
    for _ in 0..100_000 {
        if done(&scene.journal()) >= chunks {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the journal never recorded {chunks} chunks");
}

/// How many chunks are done according to a journal.
fn done(journal: &Path) -> usize {
    let bytes = std::fs::read(journal).unwrap();
    let state = replay(&bytes[..], |_, _, _| {}).unwrap().state;
    state.done.into_iter().flatten().count()
}

/// Runs a command that a line printed, in the directory of the tools.
#[track_caller]
fn paste(scene: &Scene, uri: &str, line: &str) -> Outcome {
    let upload = Path::new(UPLOAD).parent().unwrap();
    let path = format!("{}:{}", upload.display(), std::env::var("PATH").unwrap());
    let tool = scene.desk.tool("bash").env("PATH", path).env("OHURI", uri);
    tool.arg("-c").arg(line).run()
}

/// The text after these words, to the end of the line.
#[track_caller]
fn rest<'a>(outcome: &'a Outcome, words: &str) -> &'a str {
    let rest = outcome.stderr.split_once(words).map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("no {words:?}: {outcome:?}"));
    rest.lines().next().unwrap()
}

#[test]
fn a_resumed_upload_says_how_its_drive_differs_from_what_is_asked_now() {
    let scene = Scene::new();
    let _ = scene.interrupted("-n a.img -t ssd --grow +1G");
    let said = format!(
        "as it is: its tier is \"ssd\" and not \"disk\", only one server may claim it at a time, it has {} bytes and not {SIZE}. To create another drive, start over with --restart",
        SIZE + (1 << 30)
    );
    let _ = scene.run("-s").code(0).says(&said);
}

#[test]
fn an_upload_under_another_name_reports_the_unfinished_one() {
    for how in ["image", "name", "endpoint"] {
        let scene = Scene::new();
        let _ = scene.interrupted("");
        let (confirmed, first) = (scene.confirmed(), scene.drive());
        let (image, renamed) = (scene.desk.path("a.img"), scene.desk.path("b c.img"));
        let elsewhere = scene.desk.server();
        std::fs::rename(&image, &renamed).unwrap();
        let uri = match how {
            "image" => scene.proxy.uri(),
            _ => {
                std::fs::rename(&renamed, &image).unwrap();
                elsewhere.uri.clone()
            }
        };
        let tool = match how {
            "image" => scene.desk.upload(&uri).args("-c 16384 --").arg("b c.img"),
            "name" => scene
                .desk
                .upload(&scene.proxy.uri())
                .args("-c 16384 -n b a.img"),
            _ => scene.desk.upload(&uri).args("-c 16384 a.img"),
        };
        let second = tool.run().code(0);
        assert_ne!(second.created(), first);
        let _ = scene.writes();
        let command = rest(&second, "To continue that one instead: ").to_owned();
        let reached = match how {
            // The command itself refers to the earlier one.
            "endpoint" => "http://127.0.0.1:1/".into(),
            _ => scene.proxy.uri(),
        };
        let again = paste(&scene, &reached, &command).code(0);
        assert_eq!(resumed(&again), confirmed * C, "{command}");
        assert_eq!(scene.writes().len(), CHUNKS - confirmed);
        assert_drive(&scene.server, &first, &scene.image);
        assert_eq!(scene.desk.journals(), Vec::<PathBuf>::new());
        // Now there is nothing to report.
        let tool = scene.desk.upload(&scene.proxy.uri()).args("-c 16384 -n c");
        let third = tool.arg(if how == "image" { "b c.img" } else { "a.img" });
        let third = third.run().code(0);
        assert!(!third.stderr.contains("did not end"), "{third:?}");
    }
}

/// As after a restart of the server on another port.
#[test]
fn an_upload_to_the_same_cloud_at_another_address_names_a_command_that_works_there() {
    let scene = Scene::new();
    let _ = scene.interrupted("-n a -t ssd");
    let (confirmed, first) = (scene.confirmed(), scene.drive());
    let uri = &scene.server.uri;
    let run = |flags: &str| {
        let tool = scene.desk.tool(SIMPLE).env("OHURI", uri);
        tool.arg("upload").args(flags).arg("a.img").run().code(0)
    };
    let other_name = run("-c 16384 -n b");
    assert!(!other_name.stderr.contains("did not end"), "{other_name:?}");
    let second = run("-c 16384 -n a -t ssd");
    assert!(!second.stderr.contains("already has"), "{second:?}");
    let command = rest(&second, "To continue that one instead: ").to_owned();
    let expected = format!("openhosting upload -c 16384 a.img --resume-from-drive {first}");
    assert_eq!(command, expected);
    scene.proxy.forget();
    let again = paste(&scene, &scene.proxy.uri(), &command).code(0);
    assert_eq!(scene.writes().len(), CHUNKS - confirmed, "{again:?}");
    assert_drive(&scene.server, &first, &scene.image);
    let third = run("-c 16384 -n a");
    // Without locks, nothing shows that the earlier run has ended, and its journal stays.
    let is_reported = third.stderr.contains("did not end");
    assert_eq!(is_reported, is_plain(), "{third:?}");
}

#[test]
fn an_upload_of_another_user_is_not_offered() {
    const OTHER: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";
    let desk = Desk::new();
    let server = desk.server_with(&["--user", OTHER]);
    let image = noise(SIZE as u64, SIZE);
    desk.file("a.img", &image);
    let scene = Scene {
        proxy: FaultProxy::to(&server),
        desk,
        server,
        image,
    };
    let _ = scene.interrupted("");
    let tool = scene.desk.upload(&scene.proxy.uri()).env("OHAUTH", OTHER);
    let theirs = tool.args("-c 16384 -n b a.img").run().code(0);
    assert!(!theirs.stderr.contains("did not end"), "{theirs:?}");
    // Nor can they continue it.
    let journal = scene.desk.journals().remove(0);
    let tool = scene.desk.upload(&scene.proxy.uri()).env("OHAUTH", OTHER);
    let tool = tool.args("-c 16384 a.img --journal").arg(journal);
    let _ = tool.run().code(2).says("is of another transfer: the user");
}

#[test]
fn a_restart_names_no_drive_that_is_gone() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let first = scene.drive();
    let destroy = format!("/drives/{first}/destroy");
    let _ = Ask::of(&scene.server).post(&destroy, "").expect(204);
    let _ = scene.run("").code(1).says("start over with --restart");
    let again = scene.run("--restart").code(0);
    assert!(!again.stderr.contains("remove it with"), "{again:?}");
}

#[test]
fn a_restart_on_the_same_drive_does_not_advise_to_remove_it() {
    let scene = Scene::new();
    let _ = scene.interrupted("--journal j.ohj");
    let drive = scene.drive();
    let args = format!("--journal j.ohj --restart --resume-from-drive {drive}");
    let again = scene.run(&args).code(0);
    assert!(!again.stderr.contains("remove it with"), "{again:?}");
    scene.check_done();
}

#[test]
fn the_command_that_removes_a_forgotten_drive_reaches_its_endpoint() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let first = scene.drive();
    let tool = scene
        .desk
        .tool(UPLOAD)
        .args("-c 16384 --restart --endpoint");
    let again = tool.arg(scene.proxy.uri()).arg("a.img").run().code(0);
    let command = rest(&again, "remove it with: ");
    let _ = paste(&scene, "http://127.0.0.1:1/", &format!("{command} --yes")).code(0);
    let left = drives(&scene.server);
    assert_eq!(left.len(), 1);
    assert!(!left.contains(&first), "{command}");
}

#[test]
fn a_run_that_fails_before_it_sends_anything_continues_the_earlier_one() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let down = Fault::Answer(refusal(503, ""));
    scene.proxy.fault(|_| true, usize::MAX, down);
    let tool = scene.desk.tool(SIMPLE).env("OHURI", scene.proxy.uri());
    let tool = tool.args("upload -c 16384 --max-outage 1s a.img");
    let failed = tool.run().code(75);
    let last = failed.stderr.lines().rev().take(2).collect::<Vec<_>>();
    let again = "openhosting upload -c 16384 --max-outage 1s a.img";
    assert_eq!(last, [again, "Continue later with:"], "{failed:?}");
    scene.proxy.heal();
    let _ = scene.run("").code(0);
    scene.check_done();
}

// ---- What stops a run ----

#[test]
fn after_a_signal_no_confirmed_chunk_is_sent_again() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let scene = Scene::new();
        let outcome = scene.signalled("", signal).code(code);
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert_eq!(last, "openhosting-upload -c 16384 a.img", "{outcome:?}");
        let confirmed = scene.confirmed();
        assert!((PASSED..CHUNKS).contains(&confirmed));
        let _ = scene.writes();
        let again = scene.run("").code(0);
        assert_eq!(resumed(&again), confirmed * C);
        assert!(again.text().starts_with("Using existing drive "));
        assert_eq!(scene.writes().len(), CHUNKS - confirmed);
        scene.check_done();
    }
}

#[test]
fn after_kill_9_no_confirmed_chunk_is_sent_again() {
    let scene = Scene::new();
    let outcome = scene.stopped("", |running, _| {
        // Everything after these is held back.
        wait_for_records(&scene, PASSED);
        running.kill9()
    });
    assert!(!outcome.text().contains("completed"));
    let confirmed = scene.confirmed();
    let _ = scene.writes();
    let again = scene.run("").code(0);
    let settled = resumed(&again) / C;
    // Writes that were held back were confirmed after the kill.
    assert!(
        (PASSED..=confirmed).contains(&settled),
        "{settled} of {confirmed}"
    );
    assert_eq!(scene.writes().len(), CHUNKS - settled);
    scene.check_done();
}

#[test]
fn after_a_server_crash_no_confirmed_chunk_is_sent_again() {
    let mut scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene
        .proxy
        .fault_after(PASSED, Request::is_write, usize::MAX, hold);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 16384 --max-outage 1s a.img").spawn();
    scene.proxy.wait_for("the writes", |requests| {
        requests.iter().filter(|r| r.is_write()).count() > PASSED
    });
    scene.server.kill9();
    gate.open();
    let _ = running.wait().code(75);
    scene.proxy.settle();
    scene.proxy.heal();
    let confirmed = scene.confirmed();
    let _ = scene.writes();
    scene.server.start_again();
    scene.proxy.redirect_to(&scene.server);
    let again = scene.run("").code(0);
    assert_eq!(resumed(&again), confirmed * C);
    assert_eq!(scene.writes().len(), CHUNKS - confirmed);
    scene.check_done();
}

#[test]
fn killed_after_the_drive_was_created_but_before_the_answer() {
    let scene = Scene::new();
    let gate = Gate::default();
    let wait = gate.clone();
    let held = Fault::rewrite(move |_, answer| {
        wait.wait();
        answer
    });
    scene.proxy.fault(Request::is_create, 1, held);
    let running = scene.start("");
    for _ in 0..100_000 {
        if !drives(&scene.server).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    let drive = scene.drive();
    let _ = scene.run("").code(0);
    assert_eq!(scene.drive(), drive);
    assert_eq!(scene.proxy.count(Request::is_create), 1);
    scene.check_done();
}

/// The create was in flight when its sender was killed, and arrives after the next run has looked
/// for its drive once.
#[test]
fn killed_while_the_creation_was_in_flight() {
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(Request::is_create, 1, hold);
    let running = scene.start("");
    scene.proxy.wait_for("the create", |requests| {
        requests.iter().any(Request::is_create)
    });
    let _ = running.kill9();
    let again = scene.start("");
    scene.proxy.wait_for("an answer to the look", |requests| {
        let is_look = |r: &Request| r.method == "GET" && r.status == 200;
        requests.iter().any(is_look)
    });
    gate.open();
    let _ = again.wait().code(0);
    assert_eq!(scene.proxy.count(Request::is_create), 1);
    scene.check_done();
}

/// The next night's backup of a machine that was suspended.
#[test]
fn the_same_command_after_success_creates_another_drive() {
    let scene = Scene::new();
    let first = scene.run("").code(0).created();
    let second = scene.run("").code(0).created();
    assert_ne!(first, second);
    assert_eq!(drives(&scene.server).len(), 2);
    assert!(scene.desk.journals().is_empty());
}

#[test]
fn two_processes_never_run_the_same_upload() {
    let scene = Scene::new();
    let _ = scene.stopped("", |running, gate| {
        let second = scene.run("").code(1).says("Another process");
        assert_eq!(second.text(), "");
        gate.open();
        running.wait().code(0)
    });
    scene.check_done();
}

// ---- Flags ----

#[test]
fn restart_discards_the_earlier_run_and_reports_what_it_leaves() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let old = scene.drive();
    let again = scene.run("--restart").code(0).says(&old);
    let new = again.created();
    assert_ne!(old, new);
    assert_eq!(drives(&scene.server).len(), 2);
    assert_drive(&scene.server, &new, &scene.image);
    assert!(scene.desk.journals().is_empty());
}

#[test]
fn the_journal_can_be_placed_elsewhere_or_disabled() {
    let scene = Scene::new();
    let _ = scene.interrupted("--journal my.ohj");
    assert!(scene.desk.path("my.ohj").exists() && scene.desk.journals().is_empty());
    let again = scene.run("--journal my.ohj").code(0);
    assert!(resumed(&again) > 0);
    assert!(!scene.desk.path("my.ohj").exists());
    scene.check_done();

    let scene = Scene::new();
    let outcome = scene.interrupted("--no-journal");
    assert!(scene.desk.journals().is_empty());
    let (drive, offset) = outcome.hint();
    assert!(!outcome.stderr.contains("same command"), "{outcome:?}");
    let args = format!("--no-journal -d {drive} -o {offset}");
    let _ = scene.run(&args).code(0);
    scene.check_done();
}

#[test]
fn another_offset_is_refused_for_an_unfinished_upload() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let tool = scene.desk.upload(&scene.proxy.uri());
    let other = tool.args("-c 16384 -o 16384 a.img").run().code(2);
    let _ = other.says("the first chunk was 0 and is 1");
    let _ = scene.run("").code(0);
    scene.check_done();
}

#[test]
fn comparing_with_a_drive_needs_no_journal() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let confirmed = scene.confirmed();
    std::fs::remove_file(scene.journal()).unwrap();
    let _ = scene.writes();
    let drive = scene.drive();
    let args = format!("--resume-from-drive {drive}");
    let _ = scene.run(&args).code(0);
    assert_eq!(scene.writes().len(), CHUNKS - confirmed);
    scene.check_done();
    // Once more: nothing differs.
    let _ = scene.run(&args).code(0);
    assert_eq!(scene.writes(), Vec::<u64>::new());
}

// ---- What happens to the image ----

#[test]
fn an_image_that_changed_is_reported_and_what_changed_is_sent() {
    let mut scene = Scene::new();
    let _ = scene.interrupted("");
    let confirmed = scene.confirmed();
    // Two chunks that were sent, one of which is zero now, and one that was not sent.
    scene.change(3 * C + 5, b"changed");
    scene.change(10 * C, &vec![0; C]);
    scene.change((CHUNKS - 1) * C, b"changed");
    let _ = scene.writes();
    let refused = scene.run("").code(4);
    let _ = refused.says("it differs in 2 chunks that this upload has sent");
    assert_eq!(scene.writes(), Vec::<u64>::new());
    let _ = scene.run("--changed-ok --verify full").code(0);
    let writes = scene.writes();
    assert_eq!(writes.len(), CHUNKS - confirmed + 2);
    assert!(writes.contains(&(3 * C as u64)) && writes.contains(&(10 * C as u64)));
    scene.check_done();
}

#[test]
fn zeros_within_a_chunk_that_became_data_are_sent() {
    let mut scene = Scene::sparse();
    let _ = scene.interrupted("");
    let _ = scene.writes();
    // In zeros before the data of a settled chunk, and in those after it.
    scene.change(3 * C + 4095, b"c");
    scene.change(7 * C + 8192, b"c");
    let _ = scene.run("").code(4).says("2 chunks");
    let _ = scene.run("--changed-ok --verify full").code(0);
    let writes = scene.writes();
    for chunk in [3, 7] {
        let bytes = (chunk * C) as u64..((chunk + 1) * C) as u64;
        assert!(writes.iter().any(|at| bytes.contains(at)), "{writes:?}");
    }
    assert!(
        !writes
            .iter()
            .any(|at| (4 * C as u64..5 * C as u64).contains(at)),
        "{writes:?}"
    );
    scene.check_done();
}

#[test]
fn zeros_within_a_chunk_that_changed_on_the_drive_are_found() {
    let scene = Scene::sparse();
    let _ = scene.interrupted("");
    let path = scene.server.drive_file(&scene.drive());
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"c", 3 * C as u64 + 8192).unwrap();
    let outcome = scene.run("--verify full").code(4);
    let _ = outcome.says("does not hold what was transferred");
}

#[test]
fn a_touched_image_is_read_again_but_not_sent_again() {
    let mut scene = Scene::new();
    let _ = scene.interrupted("");
    let confirmed = scene.confirmed();
    let same = scene.image[..9].to_vec();
    scene.change(0, &same);
    let _ = scene.writes();
    let _ = scene.run("").code(0);
    assert_eq!(scene.writes().len(), CHUNKS - confirmed);
    scene.check_done();
}

/// The record of a chunk that the drive has was lost in a crash; then the image became zero there.
/// That must not count as a hole.
#[test]
fn zeros_where_a_record_was_lost_are_written() {
    let mut scene = Scene::new();
    // Holes from the start: the drive is proven to read as zeros there.
    for hole in [3, 50] {
        scene.change(hole * C, &vec![0; C]);
    }
    let _ = scene.interrupted("");
    let journal = scene.journal();
    let bytes = std::fs::read(&journal).unwrap();
    let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
    let records = bytes[HEADER_BYTES..].chunks_exact(RECORD_BYTES);
    let records = (0..).zip(records).filter_map(|(number, bytes)| {
        let record = Record::decode(bytes.try_into().unwrap(), number, &header.session);
        record.filter(|record| match record {
            Record::Done { index, .. } => *index < 40,
            Record::Holes { first, .. } => *first < 40,
            Record::Synced { .. } => false,
            _ => true,
        })
    });
    let mut kept = bytes[..HEADER_BYTES].to_vec();
    for (number, record) in (0..).zip(records) {
        kept.extend_from_slice(&record.encode(number, &header.session));
    }
    assert_eq!(kept.len(), HEADER_BYTES + 41 * RECORD_BYTES);
    std::fs::write(&journal, kept).unwrap();
    scene.change(100 * C, &vec![0; 3 * C]);
    let _ = scene.run("").code(0);
    scene.check_done();
}

/// As after a snapshot was rolled back: the image is that of the first run again, also by its time.
/// The run between sent another one, and stopped with records of that or without.
#[test]
fn an_image_that_is_as_in_the_first_run_again_is_compared() {
    for is_recorded in [true, false] {
        let mut scene = Scene::new();
        // The first run leaves one out, which proves that the drive reads as zeros.
        for zeros in [3, 180] {
            scene.change(zeros * C, &vec![0; C]);
        }
        let (first, path) = (scene.image.clone(), scene.desk.path("a.img"));
        let modified = path.metadata().unwrap().modified().unwrap();
        let _ = scene.interrupted("-j 1");
        for chunk in [1, 180] {
            scene.change(chunk * C, b"changed");
        }
        scene.proxy.forget();
        let (gate, written) = (Gate::default(), Arc::<AtomicUsize>::default());
        let (held, counted) = (gate.clone(), Arc::clone(&written));
        let answer_late = Fault::rewrite(move |_, answer| {
            counted.fetch_add(1, Ordering::SeqCst);
            if !is_recorded {
                held.wait();
            }
            answer
        });
        let is_changed = |r: &Request| r.is_write() && [1, 180].contains(&(r.offset() / C as u64));
        let is_last = |r: &Request| r.is_write() && r.offset() > 190 * C as u64;
        scene.proxy.fault(is_changed, usize::MAX, answer_late);
        scene
            .proxy
            .fault(is_last, usize::MAX, Fault::Hold(gate.clone()));
        let running = scene.start("--changed-ok");
        wait_until("both chunks were written", || {
            written.load(Ordering::SeqCst) >= 2
        });
        if is_recorded {
            running.signal("INT");
            running.wait_stderr("finishing the requests in flight");
            gate.open();
            let _ = running.wait().code(130);
        } else {
            let _ = running.kill9();
            gate.open();
        }
        scene.proxy.settle();
        scene.proxy.heal();
        scene.image = first;
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&scene.image, 0).unwrap();
        file.set_modified(modified).unwrap();
        let args = if is_recorded {
            let refused = scene.run("").code(4);
            let _ = refused.says("it differs in 2 chunks that this upload has sent");
            "--changed-ok"
        } else {
            ""
        };
        let _ = scene.run(args).code(0);
        scene.check_done();
    }
}

/// Changed and stopped twice: what the journal says of a chunk is what was sent last.
#[test]
fn a_chunk_sent_twice_is_verified_in_its_latest_state() {
    let mut scene = Scene::new();
    let _ = scene.interrupted("");
    scene.change(0, b"changed");
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.forget();
    scene
        .proxy
        .fault_after(30, Request::is_write, usize::MAX, hold);
    let running = scene.start("--changed-ok -j 1");
    scene.proxy.wait_for("the writes", |requests| {
        requests.iter().filter(|r| r.is_write()).count() > 30
    });
    running.signal("INT");
    running.wait_stderr("finishing the requests in flight");
    gate.open();
    let _ = running.wait().code(130);
    scene.proxy.heal();
    // Everything that changed was sent, so there is nothing left to allow.
    let _ = scene.run("--verify full").code(0);
    scene.check_done();
}

#[test]
fn an_image_whose_size_changed_is_refused() {
    for size in [SIZE - 1, SIZE + 1] {
        let scene = Scene::new();
        let _ = scene.interrupted("");
        let file = File::options().write(true).open(scene.desk.path("a.img"));
        file.unwrap().set_len(size as u64).unwrap();
        let _ = scene.writes();
        let text = format!("The size was {SIZE} bytes when this transfer began and is {size} now");
        let _ = scene.run("").code(4).says(&text).says("--restart");
        let _ = scene.run("--changed-ok").code(4);
        assert_eq!(scene.writes(), Vec::<u64>::new());
    }
}

// ---- What happens to the journal and the drive ----

#[test]
fn a_journal_damaged_in_the_middle_is_compared_with_the_drive() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let confirmed = scene.confirmed();
    let journal = scene.journal();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[HEADER_BYTES + 40 * RECORD_BYTES + 20] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let before = done(&journal);
    assert!((30..40).contains(&before), "{before}");
    let _ = scene.writes();
    let again = scene.run("").code(0).says("The journal is damaged");
    assert_eq!(resumed(&again), before * C);
    // The chunks whose records were lost are found on the drive.
    assert_eq!(scene.writes().len(), CHUNKS - confirmed);
    assert_drive(&scene.server, &scene.drive(), &scene.image);
    let bad = PathBuf::from(format!("{}.bad", journal.display()));
    assert_eq!(scene.desk.journals(), std::slice::from_ref(&bad));
    assert_eq!(std::fs::read(bad).unwrap(), bytes);
}

#[test]
fn a_journal_that_cannot_be_read_is_reported_and_can_be_discarded() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let journal = scene.journal();
    let whole = std::fs::read(&journal).unwrap();
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    let mut later = whole.clone();
    later[8] = 9;
    let crc = crc32c::crc32c(&later[..HEADER_BYTES - 4]).to_le_bytes();
    later[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc);
    let cases = [
        (damaged, "It is not a journal, or its start is damaged"),
        (later, "It has version 9"),
        (Vec::new(), "It is not a journal, or its start is damaged"),
        (whole[..1000].to_vec(), "It is not a journal"),
    ];
    let _ = scene.writes();
    for (bytes, text) in cases {
        std::fs::write(&journal, &bytes).unwrap();
        let _ = scene.run("").code(1).says(text).says("--restart");
        assert_eq!(std::fs::read(&journal).unwrap(), bytes, "it was touched");
    }
    assert_eq!(scene.writes(), Vec::<u64>::new());
    let args = format!("--resume-from-drive {}", scene.drive());
    let _ = scene.run(&args).code(0);
    assert_drive(&scene.server, &scene.drive(), &scene.image);
    let _ = scene.run("--restart").code(0);
    assert!(scene.desk.journals().is_empty());
}

#[test]
fn a_missing_drive_of_an_earlier_run_is_reported() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    let path = format!("/drives/{}/destroy", scene.drive());
    Ask::of(&scene.server).post(&path, "").expect(204);
    let _ = scene.run("").code(1).says("start over with --restart");
    assert!(drives(&scene.server).is_empty());
    let _ = scene.run("--restart").code(0);
    scene.check_done();
}

#[test]
fn a_journal_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(Request::is_write, usize::MAX, hold);
    let script = format!("umask 000; exec {UPLOAD} -c 16384 a.img");
    let tool = scene.desk.tool("sh").env("OHURI", scene.proxy.uri());
    let running = tool.arg("-c").arg(script).spawn();
    scene
        .proxy
        .wait_for("a write", |requests| requests.iter().any(Request::is_write));
    let mode = scene.journal().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    gate.open();
    let _ = running.wait().code(0);
    scene.check_done();
}

// ---- Reading back ----

#[test]
fn the_requested_share_is_read_back() {
    for (how, least, most) in [("none", 0, 0), ("sample", 2, 60), ("full", CHUNKS, CHUNKS)] {
        let scene = Scene::new();
        // One request at a time: nothing is read back before the end, or twice.
        let _ = scene.run(&format!("--verify {how} -j 1")).code(0);
        let reads = scene.proxy.count(Request::reads_back);
        assert!((least..=most).contains(&reads), "{how}: {reads} reads");
        scene.check_done();
    }
}

#[test]
fn a_full_verification_reads_what_earlier_runs_wrote() {
    let scene = Scene::new();
    let _ = scene.interrupted("");
    scene.proxy.forget();
    let _ = scene.run("--verify full -j 1").code(0);
    assert_eq!(scene.proxy.count(Request::reads_back), CHUNKS);
}

#[test]
fn a_sample_is_read_back_even_if_nothing_is_left_to_send() {
    let scene = Scene::new();
    let full = Fault::Answer(refusal(507, "full"));
    scene.proxy.fault(Request::reads_back, usize::MAX, full);
    let _ = scene.run("").code(1).says("Cannot read back");
    scene.proxy.heal();
    scene.proxy.forget();
    let again = scene.run("").code(0);
    assert_eq!(resumed(&again), SIZE);
    let reads = scene.proxy.count(Request::reads_back);
    assert!(reads >= 8, "{reads} reads");
    scene.check_done();
}

#[test]
fn bytes_that_changed_on_the_drive_are_found() {
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    // One request at a time, so nothing is read back before the end.
    scene.proxy.fault(Request::reads_back, usize::MAX, hold);
    let running = scene.start("--verify full -j 1");
    scene.proxy.wait_for("a look at the drive", |requests| {
        requests.iter().any(Request::reads_back)
    });
    let path = scene.server.drive_file(&scene.drive());
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[!scene.image[77 * C + 1]], 77 * C as u64 + 1)
        .unwrap();
    gate.open();
    let outcome = running.wait().code(4);
    let _ = outcome.says("does not hold what was transferred");
}

// ---- Devices ----

#[test]
fn a_block_device_is_uploaded_and_resumed() {
    let scene = Scene::new();
    let path = scene.desk.path("a.img");
    let Some(device) = LoopDevice::over(&path, &[]) else {
        return;
    };
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&device.0, &path).unwrap();
    let _ = scene.interrupted("");
    let confirmed = scene.confirmed();
    let _ = scene.writes();
    let again = scene.run("").code(0);
    assert_eq!(resumed(&again), confirmed * C);
    assert_eq!(scene.writes().len(), CHUNKS - confirmed);
    scene.check_done();
}

// ---- Journals of every version ----

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals")
}

const VERSIONS: [&str; 2] = ["v1", "v2"];

fn header_of(direction: Direction) -> Header {
    Header {
        direction,
        session: *b"session of tests",
        token: *b"a token of tests",
        size: 10_000_000,
        chunk: 1_000_000,
        first: 0,
        source: (direction == Direction::Upload).then_some(Fingerprint {
            size: 10_000_000,
            device: 2049,
            inode: 12,
            modified_ns: 1_795_000_000_123_456_789,
        }),
        endpoint: "https://api.example.com/".into(),
        user: "0012e24a-6eae-4279-9912-3432f698cec8".into(),
    }
}

/// The additional content of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Nothing,
    /// It calls its file complete.
    Whole,
    /// Its last chunk has a digest of its data only.
    Data,
    /// With records of chunks that are not synced, from version 2 on.
    Unsynced,
}

fn records_of(direction: Direction, more: More) -> Vec<Record> {
    let done = |index: u64| Record::Done {
        index,
        len: 1_000_000,
        digest: match (Digest::of(&index.to_le_bytes()), index, more) {
            (digest, 1, More::Data) => ChunkDigest::Data(digest),
            (digest, ..) => ChunkDigest::Whole(digest),
        },
    };
    let drive = Record::Drive {
        id: DriveId::from_bytes(*b"drive of a test."),
        is_ours: direction == Direction::Upload,
    };
    let whole = Record::Whole {
        inode: 7_340_033,
        modified_ns: 1_795_000_000_987_654_321,
    };
    let mut records = match direction {
        Direction::Upload => vec![
            drive,
            done(0),
            done(2),
            Record::Holes { first: 4, count: 3 },
            done(1),
        ],
        Direction::Download | Direction::DownloadAsQcow2 => vec![
            Record::Drivestate {
                write_bytes: 10_004_096,
                write_requests: 2443,
            },
            drive,
            done(9),
            done(0),
        ],
    };
    records.extend((more == More::Whole).then_some(whole));
    if more == More::Unsynced {
        records.extend(unsynced());
    }
    records
}

const PAGE_CACHE: PageCache = PageCache {
    boot: *b"boot of a kernel",
    device: 259 << 32 | 1,
    mount: 18_198,
    inode: 7_340_033,
};

fn unsynced() -> [Record; 4] {
    let written = |index: u64, proof| Record::Written {
        index,
        len: 1_000_000,
        proof,
    };
    [
        Record::Run(Some(PAGE_CACHE)),
        written(3, Proof::Blocks(245)),
        written(4, Proof::Digest(Digest::of(b"chunk 4"))),
        Record::Synced { records: 5 },
    ]
}

fn bytes_of(direction: Direction, more: More) -> Vec<u8> {
    let header = header_of(direction);
    let mut bytes = header.encode().unwrap().to_vec();
    for (number, record) in records_of(direction, more).iter().enumerate() {
        bytes.extend_from_slice(&record.encode(number as u64, &header.session));
    }
    bytes
}

/// The journals to create.
const JOURNALS: [(Direction, More, &str); 6] = [
    (Direction::Upload, More::Nothing, "upload.ohj"),
    (Direction::Upload, More::Data, "upload-sparse.ohj"),
    (Direction::Download, More::Nothing, "download.ohj"),
    (Direction::Download, More::Whole, "download-whole.ohj"),
    (
        Direction::DownloadAsQcow2,
        More::Nothing,
        "download-qcow2.ohj",
    ),
    (Direction::Download, More::Unsynced, "download-unsynced.ohj"),
];

/// Creates the journals: `cargo test --test it -- --ignored make_the_journals`. Only for new ones;
/// an existing file is never overwritten.
#[test]
#[ignore = "makes the fixtures"]
fn make_the_journals() {
    for (direction, more, name) in JOURNALS {
        let path = fixtures().join(VERSIONS[VERSIONS.len() - 1]).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !path.exists() {
            std::fs::write(path, bytes_of(direction, more)).unwrap();
        }
    }
}

#[test]
fn journals_of_every_version_can_be_read() {
    let all = VERSIONS.iter().flat_map(|version| {
        let journals = JOURNALS.into_iter();
        let journals = journals.filter(|(_, more, _)| *version != "v1" || *more != More::Unsynced);
        journals.map(move |journal| (*version, journal))
    });
    for (version, (direction, more, name)) in all {
        let bytes = std::fs::read(fixtures().join(version).join(name)).unwrap();
        if VERSIONS.last() == Some(&version) {
            assert!(bytes == bytes_of(direction, more), "{name}");
        }
        let mut recorded = Vec::new();
        let replay = replay(&bytes[..], |index, len, digest| {
            recorded.push(Record::Done { index, len, digest });
        })
        .unwrap();
        assert_eq!(replay.header, header_of(direction));
        let records = records_of(direction, more);
        assert_eq!(replay.records, records.len() as u64);
        assert!(!replay.is_damaged);
        let done = records.iter().filter(|r| matches!(r, Record::Done { .. }));
        assert!(recorded.iter().eq(done));
        let (id, is_ours) = replay.state.drive.unwrap();
        assert_eq!(id, DriveId::from_bytes(*b"drive of a test."));
        assert_eq!(is_ours, direction == Direction::Upload);
        let whole = (more == More::Whole).then_some((7_340_033, 1_795_000_000_987_654_321));
        assert_eq!(replay.state.whole, whole);
        let is_unsynced = more == More::Unsynced;
        let page_cache = is_unsynced.then_some(PAGE_CACHE);
        assert_eq!(replay.state.page_cache(), page_cache);
        let written: Vec<_> = replay.state.written.keys().copied().collect();
        assert_eq!(written, if is_unsynced { vec![3, 4] } else { vec![] });
        let settled: Vec<_> = replay.state.settled().iter().cloned().collect();
        match direction {
            Direction::Upload => assert_eq!(settled, [0..3, 4..7]),
            Direction::Download | Direction::DownloadAsQcow2 => {
                assert_eq!(settled, [0..1, 9..10]);
                assert_eq!(replay.state.counters, Some((10_004_096, 2443)));
            }
        }
    }
}

#[test]
fn every_version_of_the_journal_is_tested() {
    let entries = std::fs::read_dir(fixtures()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, VERSIONS);
    // The last of them is what is written now.
    let now = header_of(Direction::Upload).encode().unwrap();
    let version = u32::from_le_bytes(now[8..12].try_into().unwrap());
    assert_eq!(version as usize, VERSIONS.len());
}
