//! Failing disks: how the tools react to an error of each system call that accesses one, and to a
//! source that cannot be read or changes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use openhosting::digest::ChunkDigest;
use openhosting::journal::replay;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Tool, UPLOAD};
use crate::support::disk::{LoopDevice, Tmpfs};
use crate::support::failing::{self, EIO, ENOSPC, Failing, KILL};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::needs::{Need, skip};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer};
use crate::support::server::TestServer;
use crate::support::slow::SlowLink;
use crate::support::watchdog::wait_until;

const C: usize = 24 * 1024;
const CHUNKS: usize = 13;
/// Enough that the journal is synced several times.
const MANY: usize = 200;
/// Maximum records that are synced together.
const RECORDS: usize = 64;

/// A server, an image, a drive that holds it, and a proxy.
struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    image: Vec<u8>,
    source: String,
}

impl Scene {
    fn new(chunks: usize) -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let image = noise(chunks as u64, chunks * C - 5000);
        desk.file("a.img", &image);
        let up = desk.upload(&server.uri).args("-q a.img").run().code(0);
        for name in ["out", "out.oh-part"] {
            desk.own(&desk.path(name));
        }
        Self {
            source: up.created(),
            desk,
            server,
            proxy,
            image,
        }
    }

    fn upload<'a>(&self, tool: Tool<'a>) -> Tool<'a> {
        let tool = tool.env("OHURI", self.proxy.uri());
        tool.arg("-c").arg(C.to_string()).arg("a.img")
    }

    fn download<'a>(&self, tool: Tool<'a>) -> Tool<'a> {
        let tool = tool.env("OHURI", self.proxy.uri());
        let tool = tool.arg("-c").arg(C.to_string()).args("--verify none");
        tool.arg(&self.source).arg("out")
    }

    /// The tool as a user starts it.
    fn tool(&self, program: &str) -> Tool<'_> {
        let tool = self.desk.tool(program);
        match program {
            UPLOAD => self.upload(tool),
            _ => self.download(tool),
        }
    }

    /// All drives except the one that is downloaded.
    fn drives(&self) -> Vec<String> {
        let mut all = drives(&self.server);
        all.retain(|drive| *drive != self.source);
        all
    }

    /// Checks that the transfer is complete and left nothing, and then cleans up.
    #[track_caller]
    fn check_done(&self, program: &str) {
        let out = self.desk.path("out");
        if program == UPLOAD {
            let all = self.drives();
            assert_eq!(all.len(), 1, "drives: {all:?}");
            assert_drive(&self.server, &all[0], &self.image);
            assert!(self.desk.journals().is_empty());
            let path = format!("/drives/{}/destroy", all[0]);
            Ask::of(&self.server).post(&path, "").expect(204);
        } else {
            assert!(std::fs::read(&out).unwrap() == self.image, "bytes differ");
            for end in ["oh-part", "ohj"] {
                assert!(!self.desk.path(format!("out.{end}")).exists(), "{end}");
            }
            std::fs::remove_file(out).unwrap();
        }
        self.check_no_litter();
    }

    fn check_no_litter(&self) {
        for entry in std::fs::read_dir(self.desk.work()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_string_lossy().starts_with(".openhosting"));
        }
    }

    fn forget(&self) {
        self.proxy.forget();
    }

    fn sent(&self) -> usize {
        self.proxy.count(Request::is_write)
    }

    fn fetched(&self) -> usize {
        self.proxy.count(Request::is_read)
    }

    fn confirmed(&self) -> Vec<u64> {
        let requests = self.proxy.requests();
        let confirmed = requests.iter().filter(|r| r.is_write() && r.status == 204);
        confirmed.map(|r| r.offset() / C as u64).collect()
    }
}

/// The chunks that a journal says are done.
fn journal(path: &Path) -> Vec<(u64, ChunkDigest)> {
    let mut done = Vec::new();
    let bytes = std::fs::read(path).unwrap();
    let replay = replay(&bytes[..], |index, _, digest| done.push((index, digest))).unwrap();
    assert!(!replay.is_damaged);
    done
}

// ---- Reading ----

#[test]
fn an_unreadable_byte_is_named_and_earlier_chunks_are_kept() {
    let Some(library) = failing::library() else {
        return;
    };
    let scene = Scene::new(CHUNKS);
    for chunk in [0, CHUNKS / 2, CHUNKS - 1] {
        // One read of its beginning, two that look for a partition table, and one for each chunk,
        // in order. None is needed to recognise the image, or to check before the end what was
        // sent.
        let tool = || scene.tool(UPLOAD).args("-j 1 --format raw");
        let failing = Failing {
            call: "pread64",
            nth: chunk + 4,
            errno: EIO,
            file: Some("a.img"),
        };
        let outcome = failing.within(library, &scene.desk, tool()).run().code(1);
        let line = format!(
            "Cannot read a.img at byte {}: Input/output error\n",
            chunk * C
        );
        let outcome = outcome.says(&line);
        assert_eq!(
            outcome.stderr.matches("Input/output error").count(),
            1,
            "{outcome:?}"
        );
        assert_eq!(scene.desk.journals().len(), 1);
        assert!(scene.confirmed().len() <= chunk);
        let _ = tool().run().code(0);
        assert_eq!(scene.sent(), CHUNKS, "a chunk was sent twice");
        scene.forget();
        scene.check_done(UPLOAD);
    }
}

// ---- Each call in turn ----

/// Makes the first call fail, then the second, and so on until there are no more; after each
/// failure the same command succeeds. Returns how many failed.
fn fail_in_turn(program: &str, call: &str, errno: i32) -> usize {
    let Some(library) = failing::library() else {
        return 0;
    };
    let scene = Scene::new(CHUNKS);
    for nth in 1.. {
        let failing = Failing {
            call,
            nth,
            errno,
            file: None,
        };
        let tool = failing.within(library, &scene.desk, scene.tool(program));
        let outcome = tool.spawn().end();
        let calls = failing::calls(&scene.desk);
        let Some(at) = calls.iter().position(|call| call.is_hit) else {
            let _ = outcome.code(0);
            scene.check_done(program);
            return nth - 1;
        };
        let (path, later) = (&calls[at].path, &calls[at + 1..]);
        eprintln!("{call} {nth} of {path}: {}", outcome.stderr.trim_end());
        if errno != KILL && outcome.status.code() != Some(0) {
            check_message(&outcome);
        }
        // A repeated sync does not report what the first one lost. For a directory it is repeated
        // when a failed run removes its files.
        let is_again = |later: &&failing::Call| later.name == call && later.path == *path;
        let is_removal = outcome.status.code() == Some(1) && Path::new(path).is_dir();
        if call.contains("sync") && !is_removal {
            assert_eq!(later.iter().find(is_again), None);
        }
        if program == DOWNLOAD {
            check_download(&scene, &outcome);
        }
        if outcome.stderr.contains("Cannot make the journal") {
            // The next run would look for a drive that was never requested.
            assert!(scene.desk.journals().is_empty());
            assert!(!scene.desk.path("out.ohj").exists());
        }
        scene.check_no_litter();
        let is_over = match program {
            UPLOAD => outcome.text().ends_with(" completed\n") && scene.desk.journals().is_empty(),
            _ => scene.desk.path("out").exists() && !scene.desk.path("out.ohj").exists(),
        };
        if !is_over {
            let _ = scene.tool(program).run().code(0);
        }
        scene.check_done(program);
    }
    unreachable!()
}

/// Checks that one line says what failed, and why.
#[track_caller]
fn check_message(outcome: &Outcome) {
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    let causes = ["Input/output error", "No space left on device"];
    let mut lines = outcome.stderr.lines();
    let message = lines.find(|line| causes.iter().any(|cause| line.ends_with(cause)));
    let message = message.unwrap_or_else(|| panic!("no message: {outcome:?}"));
    assert!(
        message.starts_with("openhosting-") && message.contains(": Cannot "),
        "{message}"
    );
    let again = |line: &str| causes.iter().any(|cause| line.contains(cause));
    assert!(!lines.any(again), "{outcome:?}");
}

/// The file with its final name is complete; and the journal is correct.
#[track_caller]
fn check_download(scene: &Scene, outcome: &Outcome) {
    let out = scene.desk.path("out");
    if out.exists() {
        let bytes = std::fs::read(&out).unwrap();
        assert!(bytes == scene.image, "torn: {outcome:?}");
        return;
    }
    assert_ne!(outcome.status.code(), Some(0), "done, and not there");
    let end = format!("offset {}: aborting", scene.image.len());
    assert!(!outcome.stderr.contains(&end), "{outcome:?}");
    let path = scene.desk.path("out.ohj");
    let Ok(part) = std::fs::read(scene.desk.path("out.oh-part")) else {
        return;
    };
    for (index, digest) in journal(&path) {
        let from = index as usize * C;
        let chunk = &part[from..part.len().min(from + C)];
        assert!(digest.is_of(chunk), "chunk {index}");
    }
}

/// `kill -9` at each of these calls. A create request without a recorded answer is looked for
/// during half a minute.
#[test]
fn an_upload_killed_at_any_call_makes_one_drive() {
    let mut kills = 0;
    for call in ["fsync", "fdatasync", "pwrite64", "unlink", "stdout"] {
        kills += fail_in_turn(UPLOAD, call, KILL);
    }
    eprintln!("disk, upload: {kills} kills");
}

#[test]
fn a_download_killed_at_any_call_finishes_with_the_same_command() {
    let calls = [
        "fsync",
        "fdatasync",
        "pwrite64",
        "ftruncate64",
        "fchmod",
        "unlink",
        "stdout",
    ];
    let kills: usize = calls
        .map(|call| fail_in_turn(DOWNLOAD, call, KILL))
        .iter()
        .sum();
    eprintln!("disk, download: {kills} kills");
}

#[test]
fn a_download_whose_syncs_fail_in_turn_finishes_with_the_same_command() {
    let fsyncs = fail_in_turn(DOWNLOAD, "fsync", EIO);
    let fdatasyncs = fail_in_turn(DOWNLOAD, "fdatasync", EIO);
    eprintln!("disk, download: {fsyncs} fsync, {fdatasyncs} fdatasync");
}

#[test]
fn a_download_whose_writes_fail_in_turn_finishes_with_the_same_command() {
    let writes = fail_in_turn(DOWNLOAD, "pwrite64", ENOSPC);
    let lengths = fail_in_turn(DOWNLOAD, "ftruncate64", ENOSPC);
    let modes = fail_in_turn(DOWNLOAD, "fchmod", EIO);
    let removals = fail_in_turn(DOWNLOAD, "unlink", EIO);
    eprintln!(
        "disk, download: {writes} writes, {lengths} lengths, {modes} modes, {removals} removals"
    );
}

#[test]
fn an_upload_whose_journal_fails_in_turn_finishes_with_the_same_command() {
    let fsyncs = fail_in_turn(UPLOAD, "fsync", EIO);
    let fdatasyncs = fail_in_turn(UPLOAD, "fdatasync", EIO);
    let writes = fail_in_turn(UPLOAD, "pwrite64", ENOSPC);
    let removals = fail_in_turn(UPLOAD, "unlink", EIO);
    eprintln!(
        "disk, upload: {fsyncs} fsync, {fdatasyncs} fdatasync, {writes} writes, {removals} removals"
    );
}

/// Calls that do not go through the C library. They are compiled once.
#[test]
fn a_failed_rename_or_hole_punch_is_reported_and_can_be_resumed() {
    if !can_trace() {
        skip(Need::Other("tracing of system calls"), "strace fails");
        return;
    }
    let scene = Scene::new(CHUNKS);
    // If one call fails, the next way is tried, so all of them have to fail: for the journal, and
    // for the image at the end.
    let names = "inject=?link,linkat,?rename,?renameat,renameat2:error=EIO";
    for (only, program) in [("", UPLOAD), ("", DOWNLOAD), ("-P out.oh-part", DOWNLOAD)] {
        let traced = scene.desk.tool("strace").args("-f -qq -o trace");
        let traced = traced.args(only).arg("-e").arg(names).arg(program);
        let traced = match program {
            UPLOAD => scene.upload(traced),
            _ => scene.download(traced),
        };
        check_message(&traced.run());
        let trace = std::fs::read(scene.desk.path("trace")).unwrap();
        assert!(String::from_utf8_lossy(&trace).contains("(INJECTED)"));
        scene.check_no_litter();
        assert!(!scene.desk.path("out").exists());
        let _ = scene.tool(program).run().code(0);
        scene.check_done(program);
    }
}

fn can_trace() -> bool {
    let mut strace = Command::new("strace");
    let strace = strace.args([
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "inject=fsync:error=EIO",
        "true",
    ]);
    let status = strace.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What an earlier run wrote can no longer be read.
#[test]
fn a_bad_sector_under_an_unfinished_download_is_reported() {
    let Some(library) = failing::library() else {
        return;
    };
    let scene = Scene::new(MANY);
    let run = || {
        let tool = scene.desk.download(&scene.proxy.uri()).args("-c 24576");
        tool.arg(&scene.source).arg("out")
    };
    let hold = Fault::Hold(Gate::default());
    scene
        .proxy
        .fault_after(RECORDS, Request::is_read, usize::MAX, hold);
    // Only chunks are read.
    let running = run().args("--verify none").spawn();
    let path = scene.desk.path("out.ohj");
    // All records are synced, because an unsynced chunk that cannot be read is downloaded again.
    wait_until("the records", || {
        path.exists() && journal(&path).len() >= RECORDS
    });
    let _ = running.kill9();
    scene.proxy.heal();
    let failing = Failing {
        call: "pread64",
        nth: 1,
        errno: EIO,
        file: Some("out.oh-part"),
    };
    let outcome = failing.within(library, &scene.desk, run()).run().code(1);
    let line = "Cannot read out.oh-part at byte 0: Input/output error\n";
    let _ = outcome.says(line).says("Start over on another disk");
    let _ = run().run().code(0);
    scene.check_done(DOWNLOAD);
}

// ---- What was not synced ----

/// The image's sync fails: the journal must not mention the affected chunks, although all of them
/// can still be read (docs/dev/faults.md, C6).
#[test]
fn unsynced_bytes_count_as_missing() {
    let Some(library) = failing::library() else {
        return;
    };
    let scene = Scene::new(MANY);
    for nth in 1..=3 {
        let failing = Failing {
            call: "fdatasync",
            nth,
            errno: EIO,
            file: Some("out.oh-part"),
        };
        let tool = failing.within(library, &scene.desk, scene.tool(DOWNLOAD));
        let outcome = tool.run().code(1);
        let _ = outcome.says("Cannot sync the image to the disk: Input/output error");
        let recorded = journal(&scene.desk.path("out.ohj"));
        assert!(
            recorded.len() <= RECORDS * (nth - 1),
            "{} records",
            recorded.len()
        );
        assert!(recorded.len() >= nth - 1, "nothing was kept");
        scene.forget();
        let again = scene.tool(DOWNLOAD).run().code(0);
        let line = format!("Resuming: {} of ", recorded.len() * C);
        let _ = again.says(&line);
        assert_eq!(scene.fetched(), MANY - recorded.len());
        scene.check_done(DOWNLOAD);
    }
}

/// The journal's own sync fails. Its records are correct nevertheless, because the endpoint
/// confirmed them.
#[test]
fn a_journal_that_was_not_synced_contains_nothing_false() {
    let Some(library) = failing::library() else {
        return;
    };
    let scene = Scene::new(MANY);
    // The first sync is for the record of the drive.
    for nth in 2..=3 {
        let failing = Failing {
            call: "fdatasync",
            nth,
            errno: EIO,
            file: Some("(deleted)"),
        };
        let tool = failing.within(library, &scene.desk, scene.tool(UPLOAD));
        let outcome = tool.run().code(1);
        let _ = outcome.says("Cannot write the journal ");
        let recorded = journal(&scene.desk.journals()[0]);
        let confirmed = scene.confirmed();
        let is_confirmed = |(index, _): &(u64, ChunkDigest)| confirmed.contains(index);
        assert!(
            recorded.iter().all(is_confirmed),
            "a record without an answer"
        );
        scene.forget();
        let _ = scene.tool(UPLOAD).run().code(0);
        assert_eq!(scene.sent(), MANY - recorded.len());
        scene.forget();
        scene.check_done(UPLOAD);
    }
}

/// A check finds that the drive and the image differ, and then the disk fails under the journal: it
/// must not stay, because it calls wrong chunks done.
#[test]
fn a_mismatch_is_reported_although_the_disk_fails() {
    let Some(library) = failing::library() else {
        return;
    };
    let is_later = |r: &Request| r.is_write() && r.offset() >= 3 * C as u64;
    let read_later = |r: &Request| {
        let mut words = r.path.rsplit('/');
        let offset = words.nth(1).and_then(|word| word.parse::<usize>().ok());
        r.is_read() && offset.is_some_and(|offset| offset >= 3 * C)
    };
    for name in [UPLOAD, DOWNLOAD] {
        let scene = Scene::new(CHUNKS);
        let gate = Gate::default();
        let hold = Fault::Hold(gate.clone());
        let file = if name == UPLOAD {
            let is_first = |r: &Request| r.is_write() && r.offset() == 0;
            let lost = Fault::Answer(answer(204, &[], b""));
            scene.proxy.fault(is_first, 1, lost);
            scene.proxy.fault(is_later, usize::MAX, hold);
            "(deleted)"
        } else {
            let is_first = |r: &Request| r.path.ends_with(&format!("/read/0/{C}"));
            let spoil = Fault::rewrite(|_, mut answer| {
                let body = answer.len() - C;
                answer[body..].iter_mut().for_each(|byte| *byte ^= 1);
                answer
            });
            scene.proxy.fault(is_first, 1, spoil);
            scene.proxy.fault(read_later, usize::MAX, hold);
            "out.oh-part"
        };
        let failing = Failing {
            call: "fdatasync",
            // The first sync of the journal of an upload is for the record of the drive.
            nth: if name == UPLOAD { 2 } else { 1 },
            errno: EIO,
            file: Some(file),
        };
        let tool = match name {
            UPLOAD => scene.tool(UPLOAD),
            _ => {
                let tool = scene.desk.download(&scene.proxy.uri()).args("-c 24576");
                tool.arg(&scene.source).arg("out")
            }
        };
        let outcome = failing.within(library, &scene.desk, tool).run().code(4);
        gate.open();
        let _ = outcome.says("does not hold what was transferred");
        assert!(failing::calls(&scene.desk).iter().any(|call| call.is_hit));
        assert!(scene.desk.journals().is_empty(), "{name}");
        assert!(!scene.desk.path("out.ohj").exists());
    }
}

// ---- Directories that cannot be written to ----

#[test]
fn a_read_only_directory_is_reported_and_left_as_it_is() {
    let scene = Scene::new(CHUNKS);
    let root = scene.desk.path("ro");
    let Some(disk) = Tmpfs::mount(&root, 4 << 20) else {
        return;
    };
    disk.make_read_only();
    let down = |file: &str| {
        scene
            .desk
            .download(&scene.proxy.uri())
            .arg(&scene.source)
            .arg(file)
    };
    let _ = down("ro/out")
        .run()
        .code(1)
        .says("Cannot make ro/out: Read-only file system\n");
    let tool = scene.tool(UPLOAD).env("XDG_STATE_HOME", &root);
    let outcome = tool.run().code(2);
    let _ = outcome.says("Read-only file system").says("--journal PATH");
    // Nothing was requested that the next run would have to look for.
    assert!(scene.drives().is_empty());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    // It becomes read-only during the transfer.
    disk.make_writable();
    let link = SlowLink::to(&scene.server, Duration::from_millis(2));
    let run = || {
        scene
            .desk
            .download(&link.uri())
            .arg(&scene.source)
            .args("-c 24576 ro/out")
    };
    let running = run().spawn();
    wait_until("five chunks", || link.passed() >= 5 * C as u64);
    // A file that is open for writing prevents that.
    running.signal("INT");
    let _ = running.wait().code(130);
    disk.make_read_only();
    let _ = run().run().code(1).says("Read-only file system");
    disk.make_writable();
    let _ = run().run().code(0).says("Resuming: ");
    assert!(std::fs::read(root.join("out")).unwrap() == scene.image);
}

// ---- A source that changes ----

#[test]
fn an_upload_of_a_growing_image_is_never_complete() {
    let scene = Scene::new(MANY);
    let link = SlowLink::to(&scene.server, Duration::from_millis(2));
    let path = scene.desk.path("a.img");
    let run = || scene.tool(UPLOAD).env("OHURI", link.uri());
    let mut running = run().spawn();
    wait_until("twenty chunks", || link.passed() >= 20 * C as u64);
    let mut file = File::options().append(true).open(&path).unwrap();
    while !running.has_ended() {
        file.write_all(b"more").unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let outcome = running.wait().code(4).says("its size was ");
    let outcome = outcome.says("holds a mixture");
    assert!(!outcome.text().contains("completed"));
    // Without further changes it succeeds, from the start, because it is another image now.
    let _ = run().run().code(4).says("--restart");
    let again = run().args("--restart").run().code(0);
    let image = std::fs::read(&path).unwrap();
    assert_drive(&scene.server, &again.created(), &image);
}

/// A disk with bad sectors: a loop device whose file is shorter than the device. The error comes
/// from the kernel.
#[test]
fn the_first_bad_byte_of_a_disk_is_named() {
    const BAD: u64 = 299_008;
    let scene = Scene::new(CHUNKS);
    let path = scene.desk.file("disk", &noise(5, 1 << 20));
    let Some(device) = LoopDevice::over(&path, &["--direct-io=on"]) else {
        return;
    };
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(BAD).unwrap();
    let tool = scene.desk.upload(&scene.proxy.uri()).args("-c 262144 -n n");
    let outcome = tool.arg(&device.0).run().code(1);
    let line = format!("at byte {BAD}: Input/output error\n");
    let _ = outcome.says(&line).says("ddrescue");
    assert_eq!(scene.desk.journals().len(), 1);
}

#[test]
fn too_little_free_space_is_reported_and_holes_need_none() {
    let desk = Desk::new();
    let server = desk.server();
    let root = desk.path("small");
    let Some(_disk) = Tmpfs::mount(&root, 4 << 20) else {
        return;
    };
    desk.sparse("a.img", 64 << 20, &[(0, &noise(1, 65_536))]);
    let drive = desk
        .upload(&server.uri)
        .args("-q a.img")
        .run()
        .code(0)
        .created();
    let down = |file: &str| {
        desk.download(&server.uri)
            .arg(&drive)
            .arg(file)
            .run()
            .code(0)
    };
    let _ = down("small/out").says(" are free in small, and the disk needs up to 64 MiB");
    assert_eq!(down("out").stderr, "");
}
