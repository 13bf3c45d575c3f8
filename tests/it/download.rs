//! `openhosting-download`: what it writes, what it refuses, how it reacts to misbehaving endpoints,
//! disks and users, and how it resumes.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openhosting::journal::{PageCache, replay};

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Running};
use crate::support::disk::Tmpfs;
use crate::support::http::{Ask, create};
use crate::support::needs::{Need, skip};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer, page, refusal};
use crate::support::server::TestServer;
use crate::support::{noise, ramp};

const C: usize = 16 * 1024;
const CHUNKS: usize = 200;
const SIZE: usize = CHUNKS * C - 77;
/// Number of reads before a run is stopped.
const PASSED: usize = 120;

/// A server with a drive, and a proxy.
struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    drive: String,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        Self::holding(noise(SIZE as u64, SIZE))
    }

    fn holding(image: Vec<u8>) -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("in", &image);
        let up = desk.upload(&server.uri).args("-q in").run().code(0);
        let drive = up.created();
        Self {
            desk,
            server,
            proxy,
            drive,
            image,
        }
    }

    fn start(&self, args: &str) -> Running<'_> {
        let tool = self.desk.download(&self.proxy.uri()).args("-c 16384");
        let [flags, out] = match args.rsplit_once(' ') {
            Some((flags, out)) => [flags, out],
            None => ["", args],
        };
        tool.args(flags).arg(&self.drive).arg(out).spawn()
    }

    fn run(&self, args: &str) -> Outcome {
        self.start(args).wait()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    /// The image is complete, and there is no other file.
    #[track_caller]
    fn check_done(&self, name: &str) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        assert_eq!(bytes.len(), self.image.len());
        assert!(bytes == self.image, "bytes differ");
        self.check_no_leftovers(name);
    }

    #[track_caller]
    fn check_no_leftovers(&self, name: &str) {
        for end in ["oh-part", "ohj"] {
            let left = self.path(&format!("{name}.{end}"));
            assert!(left.symlink_metadata().is_err(), "{left:?} is left");
        }
    }

    /// The run failed and left no file with the final name.
    #[track_caller]
    fn check_failed(&self, outcome: Outcome, code: i32) -> Outcome {
        assert!(!self.path("out").exists(), "{outcome:?}");
        assert!(!outcome.text().contains("completed"), "{outcome:?}");
        outcome.code(code)
    }

    fn stopped(&self, args: &str, stop: impl FnOnce(Running<'_>, &Gate) -> Outcome) -> Outcome {
        let gate = Gate::default();
        let hold = Fault::Hold(gate.clone());
        self.proxy
            .fault_after(PASSED, Request::is_read, usize::MAX, hold);
        let running = self.start(args);
        self.proxy.wait_for("the reads", |requests| {
            requests.iter().filter(|r| r.is_read()).count() > PASSED
        });
        let outcome = stop(running, &gate);
        gate.open();
        self.proxy.settle();
        self.proxy.heal();
        outcome
    }

    fn interrupted(&self) -> Outcome {
        let outcome = self.stopped("--verify none out", |running, gate| {
            running.signal("INT");
            running.wait_stderr("finishing the requests in flight");
            gate.open();
            running.wait()
        });
        self.check_failed(outcome, 130)
    }

    /// The number of reads since the last call, except for verification; clears them.
    fn reads(&self) -> usize {
        let reads = self.proxy.count(Request::is_read);
        self.proxy.forget();
        reads
    }

    fn answered(&self) -> usize {
        self.proxy.count(|r| r.is_read() && r.status == 200)
    }

    fn write_to_drive(&self, offset: usize, bytes: &[u8]) {
        let path = format!("/drives/{}/write/{offset}", self.drive);
        let ask = Ask::of(&self.server).with("Content-Type: application/octet-stream");
        ask.post(&path, bytes).expect(204);
    }
}

#[track_caller]
fn resumed(outcome: &Outcome) -> usize {
    let rest = outcome
        .stderr
        .split_once("Resuming: ")
        .map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("not resumed: {outcome:?}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

// ---- What it writes ----

#[test]
fn a_download_prints_the_lines_of_the_script() {
    let scene = Scene::holding(ramp(0, 10_000_000));
    let tool = scene.desk.download(&scene.proxy.uri());
    let outcome = tool.arg(&scene.drive).arg("out").run().code(0);
    let line = "Downloading 3 chunks of 4194304 bytes starting at 0: ... completed\n";
    assert_eq!(outcome.text(), line);
    scene.check_done("out");
}

#[test]
fn sizes_around_a_chunk() {
    for size in [1, C - 1, C, C + 1, 3 * C - 1, 3 * C + 1] {
        let scene = Scene::holding(ramp(1, size));
        let outcome = scene.run("out").code(0);
        let (chunks, dots) = (size.div_ceil(C), ".".repeat(size.div_ceil(C)));
        let line =
            format!("Downloading {chunks} chunks of 16384 bytes starting at 0: {dots} completed\n");
        assert_eq!(outcome.text(), line);
        scene.check_done("out");
    }
}

#[test]
fn chunk_sizes_that_divide_nothing_and_split_chunks_work() {
    let scene = Scene::holding(ramp(3, 10_000_000));
    for chunk in [999_983, 1_000_000, 6_000_000, 20_000_000] {
        scene.proxy.forget();
        let tool = scene
            .desk
            .download(&scene.proxy.uri())
            .args("--verify none");
        let tool = tool.arg("-c").arg(chunk.to_string()).arg(&scene.drive);
        let _ = tool.arg(format!("out{chunk}")).run().code(0);
        scene.check_done(&format!("out{chunk}"));
        for request in scene.proxy.requests().iter().filter(|r| r.is_read()) {
            let (_, range) = request.path.split_once("/read/").unwrap();
            let (_, len) = range.split_once('/').unwrap();
            assert!(len.parse::<u64>().unwrap() <= 4_194_304, "{range}");
        }
    }
}

#[test]
fn zeros_become_holes() {
    let scene = Scene::holding(Vec::from([7; 100]));
    let size = 1_u64 << 30;
    let drive = create(&scene.server, size);
    let path = format!("/drives/{drive}/write/{}", 700 << 20);
    let ask = Ask::of(&scene.server).with("Content-Type: application/octet-stream");
    ask.post(&path, ramp(0, 5000)).expect(204);
    let out = scene.path("out");
    scene.desk.own(&out);
    let tool = scene.desk.download(&scene.server.uri).arg(&drive);
    let _ = tool.arg("out").run().code(0);
    let metadata = out.metadata().unwrap();
    assert_eq!(metadata.len(), size);
    assert!(
        metadata.blocks() * 512 <= 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    let mut bytes = vec![0; 5001];
    let file = File::open(&out).unwrap();
    file.read_exact_at(&mut bytes, 700 << 20).unwrap();
    assert!(bytes[..5000] == ramp(0, 5000) && bytes[5000] == 0);
}

#[test]
fn stdout_holds_the_image_and_nothing_else() {
    let scene = Scene::new();
    // The first chunk arrives last.
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(|r| r.path.contains("/read/0/"), 1, hold);
    let running = scene.start("-");
    scene.proxy.wait_for("other reads", |requests| {
        requests
            .iter()
            .filter(|r| r.is_read() && r.status == 200)
            .count()
            >= 3
    });
    gate.open();
    let outcome = running.wait().code(0);
    assert!(outcome.stdout == scene.image, "stdout is not the image");
    assert!(outcome.stderr.contains(" completed"), "{outcome:?}");
    scene.check_no_leftovers("-");
}

#[test]
fn a_closed_stdout_ends_a_download_quietly() {
    let scene = Scene::new();
    let uri = scene.proxy.uri();
    let download = scene.desk.simple(&uri).args("download -c 16384");
    let script = scene.desk.download(&uri).args("-c 16384");
    for (tool, said) in [(download, 0), (script, 1)] {
        let tool = tool.arg(&scene.drive).arg("-").closed_stdout();
        let stderr = tool.run().code(141).stderr;
        // The script's line of dots is there before.
        assert!(
            !stderr.contains("Cannot") && !stderr.contains("Start again"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), said, "{stderr}");
    }
}

#[test]
fn a_stdout_that_is_not_read_does_not_hold_back_a_signal() {
    // More than a pipe takes, and less than may wait to be written.
    let scene = Scene::holding(noise(1, 8 * C));
    let pipe = scene.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let unread = File::options().read(true).write(true).open(&pipe).unwrap();
    let tool = scene.desk.tool("bash").env("OHURI", scene.proxy.uri());
    let tool = tool
        .arg("-c")
        .arg("exec \"$0\" \"$@\" > pipe")
        .arg(DOWNLOAD);
    let running = tool.args("-c 16384").arg(&scene.drive).arg("-").spawn();
    scene.proxy.wait_for("all chunks", |requests| {
        let answered = requests.iter().filter(|r| r.is_read() && r.status == 200);
        answered.count() > 8
    });
    // Now it only waits for the pipe.
    std::thread::sleep(Duration::from_secs(1));
    running.signal("INT");
    let _ = running.wait().code(130);
    drop(unread);
}

#[test]
fn an_offset_of_a_download_is_not_rounded() {
    let scene = Scene::new();
    // No file, a file with a beginning, and one as long as the drive.
    for (len, offset) in [(0, 0), (100, 100), (C + 5, C + 5), (SIZE, 777)] {
        let _ = std::fs::remove_file(scene.path("out"));
        if len > 0 {
            scene.desk.file("out", &scene.image[..len]);
        }
        let outcome = scene.run(&format!("-o {offset} out")).code(0);
        let line = format!("bytes starting at {offset}: ");
        assert!(outcome.text().contains(&line), "{outcome:?}");
        scene.check_done("out");
    }
    // The bytes before the offset are not inspected.
    scene.desk.file("out", &[1; 100]);
    let _ = scene.run("-o 60 out").code(0);
    let bytes = std::fs::read(scene.path("out")).unwrap();
    assert!(bytes[..60] == [1; 60] && bytes[60..] == scene.image[60..]);
}

#[test]
fn an_offset_of_a_download_never_hides_missing_bytes() {
    let scene = Scene::new();
    let run = |words: &str| {
        let tool = scene
            .desk
            .simple(&scene.server.uri)
            .args("download -c 16384");
        tool.args(words).arg(&scene.drive).arg("out").run()
    };
    let _ = run("-o 100").code(2).says("out does not exist");
    scene.desk.file("out", &scene.image[..50]);
    let _ = run("-o 100")
        .code(2)
        .says("50 bytes, fewer than the 100 of -o");
    let script = |words: &str| scene.run(&format!("{words} out"));
    let said = format!(
        "Offset {} is not within the drive, which has {SIZE} bytes",
        SIZE + 1
    );
    let _ = script(&format!("-o {}", SIZE + 1)).code(2).says(&said);
    assert_eq!(std::fs::read(scene.path("out")).unwrap().len(), 50);
    let _ = script("-o 100")
        .code(0)
        .says("what is between is not fetched");
    // A full verification also compares what is before the offset.
    let _ = run(&format!("--verify full -o {}", 5 * C))
        .code(4)
        .says("does not hold what was transferred");
}

// ---- What it refuses ----

#[test]
fn a_file_longer_than_the_drive_is_refused_with_offset() {
    let scene = Scene::new();
    let old = vec![1; SIZE + 1];
    scene.desk.file("out", &old);
    let _ = scene.run("-o 100 out").code(1).says("it is no beginning");
    assert!(std::fs::read(scene.path("out")).unwrap() == old);
}

#[test]
fn an_existing_file_is_overwritten_with_force_only() {
    let scene = Scene::new();
    scene.desk.file("out", b"precious");
    let _ = scene.run("out").code(1).says("--force");
    assert_eq!(std::fs::read(scene.path("out")).unwrap(), b"precious");
    scene.check_no_leftovers("out");
    let _ = scene.run("--force out").code(0);
    scene.check_done("out");
}

#[test]
fn a_file_created_during_the_download_is_not_overwritten() {
    let scene = Scene::new();
    let outcome = scene.stopped("out", |running, gate| {
        std::fs::write(scene.path("out"), "late").unwrap();
        gate.open();
        running.wait()
    });
    let _ = outcome.code(1).says("came into being meanwhile");
    assert_eq!(std::fs::read(scene.path("out")).unwrap(), b"late");
    // With force, and without downloading everything again.
    let _ = scene.reads();
    let _ = scene.run("--force --verify none out").code(0);
    assert_eq!(scene.reads(), 0);
    scene.check_done("out");
}

#[test]
fn links_and_directories_are_refused() {
    let scene = Scene::new();
    let victim = scene.desk.file("victim", b"precious");
    symlink(&victim, scene.path("out")).unwrap();
    symlink(scene.path("nowhere"), scene.path("dangling")).unwrap();
    std::fs::create_dir(scene.path("dir")).unwrap();
    for name in ["out", "dangling"] {
        for flags in ["", "--force ", "-o 0 "] {
            let _ = scene
                .run(&format!("{flags}{name}"))
                .code(1)
                .says("symbolic link");
        }
    }
    for flags in ["", "--force ", "-o 0 "] {
        let _ = scene.run(&format!("{flags}dir")).code(1);
    }
    let _ = scene.run("no/such/dir/out").code(1);
    assert_eq!(std::fs::read(victim).unwrap(), b"precious");
    assert!(!scene.path("nowhere").exists());
    for name in ["out", "dangling", "dir"] {
        scene.check_no_leftovers(name);
    }
}

#[test]
fn links_at_the_names_of_part_and_journal_are_not_followed() {
    for name in ["out.oh-part", "out.ohj"] {
        for dangling in [true, false] {
            let scene = Scene::new();
            let victim = scene.path("victim");
            if !dangling {
                scene.desk.file("victim", b"precious");
            }
            symlink(&victim, scene.path(name)).unwrap();
            let outcome = scene.run("out");
            let _ = scene.check_failed(outcome, 1);
            match dangling {
                true => assert!(!victim.exists(), "{name} was followed"),
                false => assert_eq!(std::fs::read(victim).unwrap(), b"precious"),
            }
        }
    }
}

#[test]
fn a_download_to_another_file_reports_the_unfinished_one() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    let moved = scene.proxy.count(Request::is_read);
    let second = scene.run("second").code(0);
    let words = "To continue that one instead: openhosting-download ";
    let (_, rest) = second.stderr.split_once(words).unwrap();
    let rest = rest.lines().next().unwrap();
    scene.proxy.forget();
    let tool = scene.desk.download(&scene.proxy.uri()).args(rest);
    let _ = tool.run().code(0).says("Resuming: ");
    assert!(moved > PASSED && scene.proxy.count(Request::is_read) < CHUNKS);
    scene.check_done("out");
    let third = scene.run("third").code(0);
    assert!(!third.stderr.contains("did not end"), "{third:?}");
}

/// The command in the note replaces the file, and not the drive of the same name.
#[test]
fn a_note_about_an_unfinished_download_keeps_the_drive() {
    let scene = Scene::new();
    let drive = scene.drive.to_string();
    let _ = scene.interrupted();
    let second = scene.run(&drive).code(0);
    let words = "To continue that one instead: openhosting-download ";
    let (_, rest) = second.stderr.split_once(words).unwrap();
    let rest = rest.lines().next().unwrap();
    assert!(rest.contains(&drive) && rest.ends_with(" ./out"), "{rest}");
}

#[test]
fn a_missing_drive_is_an_error() {
    let scene = Scene::new();
    let drive = uuid::Uuid::new_v4().to_string();
    let tool = scene.desk.download(&scene.proxy.uri()).arg(&drive);
    let outcome = tool.arg("out").run();
    let _ = scene.check_failed(outcome, 1).says(&drive);
    scene.check_no_leftovers("out");
}

#[test]
fn a_directory_that_is_not_writable_is_reported() {
    let scene = Scene::new();
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere, but not there.
        let _ = scene.run("/proc/out").code(1).says("/proc/out");
        return;
    }
    std::fs::create_dir(scene.path("dir")).unwrap();
    std::fs::set_permissions(scene.path("dir"), Permissions::from_mode(0o555)).unwrap();
    let _ = scene.run("dir/out").code(1).says("dir/out");
}

#[test]
fn an_unfinished_download_is_private() {
    let scene = Scene::new();
    for (umask, mode) in [("000", 0o666), ("022", 0o644), ("077", 0o600)] {
        let gate = Gate::default();
        let hold = Fault::Hold(gate.clone());
        scene.proxy.forget();
        scene
            .proxy
            .fault_after(5, Request::is_read, usize::MAX, hold);
        let script = format!(
            "umask {umask}; exec {DOWNLOAD} -c 16384 {} out",
            scene.drive
        );
        let tool = scene.desk.tool("sh").env("OHURI", scene.proxy.uri());
        let running = tool.arg("-c").arg(script).spawn();
        scene.proxy.wait_for("reads", |requests| {
            requests.iter().filter(|r| r.is_read()).count() > 5
        });
        let mode_of = |name| scene.path(name).metadata().unwrap().mode() & 0o777;
        assert_eq!((mode_of("out.oh-part"), mode_of("out.ohj")), (0o600, 0o600));
        assert!(!scene.path("out").exists());
        gate.open();
        let _ = running.wait().code(0);
        scene.proxy.heal();
        assert_eq!(mode_of("out"), mode);
        scene.check_done("out");
        std::fs::remove_file(scene.path("out")).unwrap();
    }
}

// ---- What the endpoint does ----

/// The third chunk.
fn is_third(request: &Request) -> bool {
    request.path.ends_with(&format!("/read/{}/{C}", 2 * C))
}

#[test]
fn temporarily_failing_requests_are_repeated() {
    let short = |_: &Request, _: Vec<u8>| answer(200, &[], &[7; 100]);
    let long = |_: &Request, _: Vec<u8>| answer(200, &[], &[7; C + 1]);
    let faults = [
        Fault::rewrite(short),
        Fault::rewrite(long),
        Fault::Answer(answer(200, &[], b"")),
        Fault::Answer(answer(204, &[], b"")),
        Fault::Answer(page()),
        Fault::Answer(refusal(500, "unknown")),
        Fault::Answer(refusal(503, "busy")),
        Fault::Answer(refusal(429, "busy")),
        Fault::Answer(refusal(409, "busy")),
        Fault::ResetBeforeBody,
        Fault::LoseAnswer,
        Fault::CutAnswer,
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let scene = Scene::holding(noise(9, 5 * C + 1));
        scene.proxy.fault(is_third, 1, fault);
        let outcome = scene.run("out");
        eprintln!("fault {number}: {:?}", outcome.status);
        let _ = outcome.code(0);
        scene.check_done("out");
    }
}

#[test]
fn a_lasting_failure_is_never_reported_as_success() {
    let short = |_: &Request, _: Vec<u8>| answer(200, &[], &[7; C - 1]);
    let faults = [
        Fault::rewrite(short),
        Fault::Answer(page()),
        Fault::Answer(refusal(503, "busy")),
        Fault::LoseAnswer,
        Fault::CutAnswer,
    ];
    for fault in faults {
        let scene = Scene::holding(noise(9, 5 * C + 1));
        scene.proxy.fault(is_third, usize::MAX, fault);
        let outcome = scene.run("--max-outage 1s out");
        let code = outcome.status.code();
        assert!(code == Some(1) || code == Some(75), "{outcome:?}");
        let _ = scene.check_failed(outcome, code.unwrap());
        scene.proxy.heal();
        let _ = scene.run("out").code(0);
        scene.check_done("out");
    }
}

#[test]
fn a_read_that_hangs_is_repeated() {
    let scene = Scene::holding(noise(9, 5 * C + 1));
    scene.proxy.fault(is_third, 1, Fault::Stall);
    let _ = scene.run("--stall-timeout 1s out").code(0);
    scene.check_done("out");
}

#[test]
fn no_redirect_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let scene = Scene::holding(noise(9, 5 * C + 1));
        let other = FaultProxy::to(&scene.server);
        let to = format!("Location: {}drives/{}/read/0/5", other.uri(), scene.drive);
        let redirect = Fault::Answer(answer(status, &[&to], b""));
        scene.proxy.fault(Request::is_read, usize::MAX, redirect);
        let outcome = scene.run("--max-outage 1s out");
        let code = outcome.status.code().unwrap();
        assert!(code == 1 || code == 75, "{outcome:?}");
        let _ = scene.check_failed(outcome, code);
        assert_eq!(other.connections(), 0);
    }
}

#[test]
fn a_drive_in_use_is_copied_only_on_request() {
    let scene = Scene::new();
    let claimed = || {
        Fault::rewrite(|_, answer| {
            let text = String::from_utf8(answer).unwrap();
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let body = format!("{body}claimed 11111111-2222-4333-8444-555555555555\n");
            crate::support::proxy::answer(200, &["Content-Type: text/plain"], body.as_bytes())
        })
    };
    scene.proxy.fault(Request::is_info, usize::MAX, claimed());
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 1).says("--allow-live");
    scene.check_no_leftovers("out");
    let _ = scene.run("--allow-live out").code(0);
    scene.check_done("out");
}

#[test]
fn a_drive_changed_during_the_download_is_reported() {
    let scene = Scene::new();
    let outcome = scene.stopped("--verify none out", |running, gate| {
        scene.write_to_drive(5 * C, b"changed");
        gate.open();
        running.wait()
    });
    let _ = scene
        .check_failed(outcome, 4)
        .says("it was written to meanwhile");
    // The same command does not repair it, but --restart does.
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 4).says("--restart");
    let _ = scene.run("--restart out").code(0);
    let mut image = scene.image.clone();
    image[5 * C..5 * C + 7].copy_from_slice(b"changed");
    assert!(std::fs::read(scene.path("out")).unwrap() == image);
    scene.check_no_leftovers("out");
}

#[test]
fn a_drive_that_changes_during_the_download_is_copied_on_request() {
    let scene = Scene::new();
    for (seed, verify) in [(1, "sample"), (2, "full")] {
        scene.proxy.forget();
        let flags = format!("--allow-live --verify {verify} --force out");
        let outcome = scene.stopped(&flags, |running, gate| {
            // The sample has the first chunk.
            scene.write_to_drive(0, &noise(seed, PASSED / 2 * C));
            gate.open();
            running.wait()
        });
        let _ = outcome.code(0).says("because of --allow-live");
        assert_eq!(scene.path("out").metadata().unwrap().len(), SIZE as u64);
        scene.check_no_leftovers("out");
    }
    // The counters of the drive show that not the drive has changed but what was received.
    let spoil = Fault::rewrite(|_, mut answer| {
        *answer.last_mut().unwrap() ^= 1;
        answer
    });
    scene.proxy.fault(is_third, 1, spoil);
    let outcome = scene.run("--allow-live --verify full other").code(4);
    let _ = outcome.says("does not hold what was transferred");
}

// ---- Resuming ----

#[test]
fn after_a_signal_no_received_chunk_is_fetched_again() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let scene = Scene::new();
        let outcome = scene.stopped("--verify none out", |running, gate| {
            running.signal(signal);
            running.wait_stderr("finishing the requests in flight");
            gate.open();
            running.wait()
        });
        let outcome = scene.check_failed(outcome, code);
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("openhosting-download "), "{outcome:?}");
        assert!(last.ends_with(" out"), "{outcome:?}");
        let came = scene.answered();
        let _ = scene.reads();
        let again = scene.run("--verify none out").code(0);
        assert_eq!(resumed(&again), came * C);
        assert_eq!(scene.reads(), CHUNKS - came);
        scene.check_done("out");
    }
}

/// How many chunks a journal says are done, or written.
fn recorded(journal: &Path) -> usize {
    let bytes = std::fs::read(journal).unwrap();
    let state = replay(&bytes[..], |_, _, _| {}).unwrap().state;
    state.done.into_iter().flatten().count() + state.written.len()
}

#[test]
fn after_kill_9_no_written_chunk_is_fetched_again() {
    let scene = Scene::new();
    let journal = scene.path("out.ohj");
    if PageCache::of(&File::open(scene.path("in")).unwrap()).is_none() {
        skip(
            Need::Other("a trusted page cache"),
            "the file system has none",
        );
        return;
    }
    let outcome = scene.stopped("--verify none out", |running, _| {
        for _ in 0..100_000 {
            // Everything after these is held back.
            if recorded(&journal) >= PASSED {
                return running.kill9();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the journal never recorded {PASSED} chunks");
    });
    assert!(!outcome.text().contains("completed"));
    let came = scene.answered();
    let _ = scene.reads();
    let again = scene.run("--verify none out").code(0);
    let settled = resumed(&again) / C;
    // Requests that were held back were answered after the kill.
    assert!((PASSED..=came).contains(&settled), "{settled} of {came}");
    assert_eq!(scene.reads(), CHUNKS - settled);
    scene.check_done("out");
}

#[test]
fn an_image_without_its_journal_or_a_journal_without_its_image() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    std::fs::remove_file(scene.path("out.ohj")).unwrap();
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 1).says("--restart");
    let _ = scene.run("--restart out").code(0);
    scene.check_done("out");

    let scene = Scene::new();
    let _ = scene.interrupted();
    std::fs::remove_file(scene.path("out.oh-part")).unwrap();
    let _ = scene.reads();
    let _ = scene.run("--verify none out").code(0);
    assert_eq!(scene.reads(), CHUNKS);
    scene.check_done("out");
}

#[test]
fn a_part_file_of_another_length_is_not_resumed() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    let part = File::options().write(true).open(scene.path("out.oh-part"));
    part.unwrap().set_len(0).unwrap();
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 1).says("--restart");
    let _ = scene.run("--restart out").code(0);
    scene.check_done("out");
}

#[test]
fn a_drive_written_to_between_two_runs_is_reported() {
    let mut scene = Scene::new();
    let _ = scene.interrupted();
    scene.write_to_drive(5 * C, b"changed");
    scene.image[5 * C..5 * C + 7].copy_from_slice(b"changed");
    let outcome = scene.run("out");
    let outcome = scene.check_failed(outcome, 4);
    let _ = outcome
        .says("was written to since the earlier run")
        .says("--restart");
    let _ = scene.run("--restart out").code(0);
    scene.check_done("out");
}

#[test]
fn a_drive_whose_size_changed_is_not_resumed() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    let path = format!("/drives/{}/set", scene.drive);
    let size = 2 * SIZE;
    Ask::of(&scene.server)
        .post(&path, format!("size {size}"))
        .expect(200);
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 4).says("The size was");
}

#[test]
fn two_drives_are_never_mixed() {
    let mut scene = Scene::new();
    let _ = scene.interrupted();
    let other = noise(5, SIZE);
    scene.desk.file("in", &other);
    let tool = scene.desk.upload(&scene.server.uri).args("-q -n x in");
    let first = std::mem::replace(&mut scene.drive, tool.run().code(0).created());
    let outcome = scene.run("out");
    let _ = scene
        .check_failed(outcome, 2)
        .says("The earlier run downloaded drive")
        .says(&format!("Start over with --restart, or continue the earlier one with: openhosting-download -c 16384 {first} out\n"));
    let _ = scene.run("--restart out").code(0);
    scene.image = other;
    scene.check_done("out");
}

/// The flag, the drive and the file have the same word.
#[test]
fn the_command_that_continues_keeps_to_the_drive_that_a_name_meant() {
    let mut scene = Scene::new();
    let ask = Ask::of(&scene.server);
    ask.post(&format!("/drives/{}/set", scene.drive), "name none")
        .expect(200);
    let first = std::mem::replace(&mut scene.drive, "none".to_owned());
    let outcome = scene.stopped("--verify none none", |running, gate| {
        running.signal("INT");
        running.wait_stderr("finishing the requests in flight");
        gate.open();
        running.wait()
    });
    let outcome = outcome.code(130);
    let command = format!("openhosting-download -c 16384 --verify none {first} none");
    assert_eq!(outcome.stderr.lines().last(), Some(&*command));
}

/// A run that was killed before its journal recorded the drive says nothing about it.
#[test]
fn a_journal_that_does_not_name_its_drive_is_discarded() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    let journal = File::options().write(true).open(scene.path("out.ohj"));
    journal.unwrap().set_len(4096).unwrap();
    for len in [SIZE as u64, 0] {
        let part = File::options().write(true).open(scene.path("out.oh-part"));
        part.unwrap().set_len(len).unwrap();
        let _ = scene.reads();
        let again = scene.stopped("out", |running, _| running.kill9());
        assert!(!again.stderr.contains("Resuming"), "{again:?}");
        let journal = File::options().write(true).open(scene.path("out.ohj"));
        journal.unwrap().set_len(4096).unwrap();
    }
    let _ = scene.run("out").code(0);
    scene.check_done("out");
}

#[test]
fn a_renamed_download_with_its_journal_left_is_complete() {
    let scene = Scene::new();
    let _ = scene.run("out").code(0);
    // As a crash between the two leaves it: all chunks are recorded, and the image has its name.
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    let is_last_info = |r: &Request| r.is_info();
    scene.proxy.fault_after(1, is_last_info, usize::MAX, hold);
    scene.proxy.forget();
    let running = scene.start("--verify none two");
    scene.proxy.wait_for("the last look", |requests| {
        requests.iter().filter(|r| r.is_info()).count() > 1
    });
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    scene.proxy.heal();
    std::fs::rename(scene.path("two.oh-part"), scene.path("two")).unwrap();
    let journal = std::fs::read(scene.path("two.ohj")).unwrap();
    let _ = scene.reads();
    let _ = scene.run("--verify none two").code(0).says("had finished");
    assert_eq!(scene.reads(), 0);
    scene.check_done("two");
    // But not if it is a different file.
    std::fs::write(scene.path("two.ohj"), &journal).unwrap();
    let file = File::options().write(true).open(scene.path("two")).unwrap();
    file.write_all_at(&[!scene.image[SIZE - 1]], SIZE as u64 - 1)
        .unwrap();
    let _ = scene.run("two").code(1).says("is there already");
}

#[test]
fn two_processes_never_write_to_one_image() {
    let scene = Scene::new();
    let _ = scene.stopped("out", |running, gate| {
        let second = scene.run("out").code(1).says("Another process");
        assert_eq!(second.text(), "");
        gate.open();
        running.wait().code(0)
    });
    scene.check_done("out");
}

/// This also holds with a journal of another name, or without one: starting over would take the
/// file away from the process that is writing it, and that process would then rename another's
/// file.
#[test]
fn a_part_file_in_use_is_not_replaced() {
    let scene = Scene::new();
    let _ = scene.stopped("out", |running, gate| {
        for flags in ["--journal other.ohj", "--gzip"] {
            for restart in ["", " --restart"] {
                let second = scene.run(&format!("{flags}{restart} out")).code(1);
                if !restart.is_empty() {
                    let _ = second.says("Another process writes to out.oh-part");
                }
            }
        }
        gate.open();
        running.wait().code(0)
    });
    scene.check_done("out");
    // A killed process does not block others.
    let _ = scene.stopped("two", |running, _| running.kill9());
    let _ = scene.run("--journal other.ohj --restart two").code(0);
    assert!(std::fs::read(scene.path("two")).unwrap() == scene.image);
}

// ---- What an earlier run left ----

/// Changes bytes of the staged file, unnoticed by the journal.
fn spoil(scene: &Scene, chunk: usize, bytes: &[u8]) {
    let part = File::options().write(true).open(scene.path("out.oh-part"));
    let offset = (chunk * C + 5) as u64;
    part.unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn bytes_that_changed_on_the_disk_are_found_and_fetched_again() {
    for (how, chunk, bytes) in [
        ("full", 77, &[0; 1][..]),
        ("full", 3, &[0; C]),
        // The first chunk always belongs to a sample.
        ("sample", 0, b"spoilt"),
    ] {
        let scene = Scene::new();
        let _ = scene.interrupted();
        spoil(&scene, chunk, bytes);
        let _ = scene.reads();
        // One request at a time, so nothing is read again before the end.
        let again = scene.run(&format!("-j 1 --verify {how} out")).code(0);
        let wrong = 1 + usize::from(bytes.len() == C);
        let line = format!("Fetching {wrong} chunk");
        let left = CHUNKS - resumed(&again) / C;
        let again = again.says(&line);
        let fetched = scene
            .proxy
            .count(|r| r.is_read() && r.path.ends_with("/16384"));
        match how {
            "full" => assert_eq!(fetched, left + wrong - 1, "{again:?}"),
            // Reads of samples look like reads of chunks.
            _ => assert!(fetched >= left + wrong - 1, "{again:?}"),
        }
        scene.check_done("out");
    }
}

/// The test above would also pass if only a checksum at the end found the damage; and without
/// verification nothing is found.
#[test]
fn control_changed_bytes_are_not_found_without_verification() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    spoil(&scene, 3, b"spoilt");
    let _ = scene.run("--verify none out").code(0);
    assert!(std::fs::read(scene.path("out")).unwrap() != scene.image);
}

#[test]
fn a_later_run_does_not_trust_chunks_found_damaged() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    spoil(&scene, 3, b"spoilt");
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(Request::is_read, usize::MAX, hold);
    scene.proxy.forget();
    let running = scene.start("--verify full out");
    scene
        .proxy
        .wait_for("a read", |requests| requests.iter().any(Request::is_read));
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    scene.proxy.heal();
    let _ = scene.run("--verify none out").code(0);
    scene.check_done("out");
}

#[test]
fn a_full_verification_covers_what_earlier_runs_fetched() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    let is_digest = |r: &Request| r.path.contains("/digest/");
    scene.proxy.fault(is_digest, usize::MAX, hold);
    let running = scene.start("--verify full out");
    scene.proxy.wait_for("the verification", |requests| {
        requests.iter().any(is_digest)
    });
    // Without a change of the counters: the drive was not written to, but lost a bit.
    let drive = File::options()
        .write(true)
        .open(scene.server.drive_file(&scene.drive));
    let byte = !scene.image[2 * C];
    drive.unwrap().write_all_at(&[byte], 2 * C as u64).unwrap();
    gate.open();
    let outcome = running.wait();
    let outcome = scene.check_failed(outcome, 4);
    let outcome = outcome.says("does not hold what was transferred: the 16384 bytes at 32768");
    let _ = outcome.says("Start over with --restart");
    // And no later run calls it done.
    let outcome = scene.run("out");
    let _ = scene.check_failed(outcome, 1).says("--restart");
}

#[test]
fn the_requested_share_of_a_resumed_download_is_read_back() {
    let scene = Scene::new();
    let _ = scene.interrupted();
    scene.proxy.forget();
    let _ = scene.run("-j 1 --verify full out").code(0);
    let digests = scene.proxy.count(|r| r.path.contains("/digest/"));
    assert_eq!(digests, CHUNKS);
    scene.check_done("out");
}

// ---- A disk that is full ----

#[test]
fn a_full_disk_loses_no_downloaded_chunk() {
    let scene = Scene::new();
    let Some(small) = Tmpfs::mount(&scene.path("small"), SIZE / 2) else {
        return;
    };
    let outcome = scene.run("small/out").code(1);
    let _ = outcome.says("No space left").says("make room");
    let part = scene.path("small/out.oh-part");
    assert!(part.exists() && !scene.path("small/out").exists());
    small.resize(SIZE * 2);
    let _ = scene.reads();
    let again = scene.run("--verify none small/out").code(0);
    let settled = resumed(&again);
    assert!(settled > 0, "{again:?}");
    assert_eq!(scene.reads(), CHUNKS - settled / C);
    scene.check_done("small/out");
}

#[test]
fn a_journal_on_a_full_disk() {
    let scene = Scene::new();
    // Space for the header and one page of records.
    let Some(small) = Tmpfs::mount(&scene.path("small"), 2 * 4096) else {
        return;
    };
    let outcome = scene.run("--journal small/j out");
    let outcome = scene.check_failed(outcome, 1);
    let _ = outcome
        .says("Cannot write the journal")
        .says("--journal PATH");
    small.resize(1 << 20);
    let again = scene.run("--journal small/j out").code(0);
    assert!(resumed(&again) > 0);
    scene.check_done("out");
    assert!(!scene.path("small/j").exists());
}
