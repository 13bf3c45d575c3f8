//! Several processes that work on one drive or one file (docs/user/many-machines.md).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use openhosting::journal::{HEADER_BYTES, RECORD_BYTES};

use crate::support::cli::{Desk, Outcome, Running, SIMPLE};
use crate::support::http::{assert_drive, create, drives};
use crate::support::proxy::{Fault, FaultProxy, Request};
use crate::support::server::TestServer;
use crate::support::{noise, ramp};

/// Bytes of a chunk, which are the fewest that shards allow.
const C: usize = 64 * 1024;
const CHUNKS: usize = 41;
const SIZE: usize = CHUNKS * C - 512;
const SHARDS: usize = 5;
/// Where the first records of chunks end in a journal of a download.
const FIRST_RECORDS_END: u64 = HEADER_BYTES as u64 + 2 * RECORD_BYTES as u64;

/// Data, then zeros across the boundaries between shards, then data.
fn image() -> Vec<u8> {
    let mut image = noise(7, SIZE);
    image[5 * C..12 * C].fill(0);
    image[30 * C + 77..30 * C + 9000].fill(0);
    image
}

/// Where a read begins.
fn offset(read: &Request) -> usize {
    let mut words = read.path.rsplit('/');
    words.nth(1).unwrap().parse().unwrap()
}

/// Bytes of a sample.
fn len(read: &Request) -> usize {
    read.path.rsplit('/').next().unwrap().parse().unwrap()
}

struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    drive: String,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("in", &image());
        let drive = desk.upload(&server.uri).args("-q in").run().code(0);
        let drive = drive.created();
        Self {
            desk,
            server,
            proxy,
            drive,
        }
    }

    fn start(&self, flags: &str) -> Running<'_> {
        let tool = self.desk.download(&self.proxy.uri()).args("-c 65536");
        tool.args(flags).arg(&self.drive).arg("out").spawn()
    }

    fn shard(&self, index: usize) -> Running<'_> {
        self.start(&format!("--shard {index}/{SHARDS}"))
    }

    fn join(&self, flags: &str) -> Outcome {
        self.start(&format!("--join {SHARDS} {flags}")).wait()
    }

    fn reads(&self) -> usize {
        self.proxy.count(Request::is_read)
    }

    fn part(&self) -> PathBuf {
        self.desk.path("out.oh-part")
    }

    /// The file exists, is complete, and no other files remain.
    #[track_caller]
    fn check_done(&self) {
        assert!(std::fs::read(self.desk.path("out")).unwrap() == image());
        let names = std::fs::read_dir(self.desk.work()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names.filter(|name| name.starts_with("out.")).collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn shards_of_a_download_are_joined_when_all_are_there() {
    for verify in ["sample", "full"] {
        let scene = Scene::new();
        let none = scene.join("").code(75).says("No shard has begun");
        assert!(!none.stderr.contains("ontinue"), "{none:?}");
        let running: Vec<_> = [4, 1, 3, 2].map(|index| scene.shard(index)).into();
        for shard in running {
            shard.wait().code(0);
        }
        let missing = scene.join("").code(75);
        let missing = missing.says("1 of 5 shards are missing: 5");
        missing.says("Continue later with:");
        assert!(!scene.desk.path("out").exists());
        scene.shard(5).wait().code(0);
        let before = scene.reads();
        scene.shard(3).wait().code(0);
        // Only its sample was read again.
        let again = scene.proxy.requests().into_iter().filter(Request::is_read);
        let again: Vec<_> = again.skip(before).collect();
        assert!(again.iter().all(|read| len(read) <= 16384), "{again:?}");
        let joined = scene.join(&format!("--verify {verify} --checksum")).code(0);
        let digest = openhosting::digest::Digest::of(&image()).to_string();
        assert!(joined.text().contains(&digest), "{joined:?}");
        std::fs::remove_file(scene.desk.path("out.sha256")).unwrap();
        scene.check_done();
        // The file has its final name, so another shard does not start over by itself.
        scene.shard(2).wait().code(1).says("is there already");
    }
}

/// The advice to start over would discard what other machines fetched.
#[test]
fn a_whole_download_does_not_replace_parts() {
    let scene = Scene::new();
    scene.shard(2).wait().code(0);
    let whole = scene.start("").wait().code(2);
    let whole = whole.says("out.oh-part holds shard 2/5 of a download in shards");
    whole.says("run it with --join 5");
    assert!(scene.part().exists());
    scene.start("--restart").wait().code(0);
    assert!(scene.desk.path("out").exists());
}

#[test]
fn more_shards_than_chunks_are_accepted() {
    let scene = Scene::new();
    for index in 1..=CHUNKS + 2 {
        let flags = format!("--shard {index}/{} -q --verify none", CHUNKS + 2);
        scene.start(&flags).wait().code(0);
    }
    scene
        .start(&format!("--join {}", CHUNKS + 2))
        .wait()
        .code(0);
    scene.check_done();
}

#[test]
fn a_killed_shard_resumes() {
    let scene = Scene::new();
    let other = scene.shard(2);
    let is_late = |request: &Request| request.is_read() && offset(request) >= 20 * C;
    scene.proxy.fault(is_late, usize::MAX, Fault::Stall);
    let held = scene.start("--shard 3/5 -j 1");
    other.wait().code(0);
    // Waits until the first records are in the journal: the drive and its properties come first.
    let journal = scene.desk.path("out.3-of-5.ohj");
    let len = || std::fs::metadata(&journal).map_or(0, |metadata| metadata.len());
    let begin = Instant::now();
    while scene.proxy.count(is_late) == 0 || len() <= FIRST_RECORDS_END {
        assert!(begin.elapsed() < Duration::from_secs(60), "no record came");
        std::thread::sleep(Duration::from_millis(10));
    }
    held.kill9();
    scene.proxy.settle();
    scene.proxy.heal();
    scene.proxy.forget();
    scene
        .shard(3)
        .wait()
        .code(0)
        .says("of this shard are there");
    for index in [1, 4, 5] {
        scene.shard(index).wait().code(0);
    }
    scene.join("--verify full").code(0);
    scene.check_done();
}

#[test]
fn a_shard_journal_applies_to_its_own_file_only() {
    let scene = Scene::new();
    for index in 1..=SHARDS {
        scene.shard(index).wait().code(0);
    }
    // Somebody moves the file away, and one shard creates another one.
    let kept = scene.desk.path("kept");
    std::fs::rename(scene.part(), &kept).unwrap();
    scene.shard(2).wait().code(0);
    scene
        .join("")
        .code(75)
        .says("4 of 5 shards are missing: 1, 3, 4, 5");
    for index in [1, 3, 4, 5] {
        scene.shard(index).wait().code(0);
    }
    // A process that writes to the file in spite of the lock is noticed.
    let bytes = image();
    let file = std::fs::File::options()
        .write(true)
        .open(scene.part())
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[C] ^ 1], C as u64).unwrap();
    scene
        .join("--verify full")
        .code(75)
        .says("What shard 1 wrote has changed in 1 chunk");
    assert!(!scene.desk.path("out").exists());
    scene.join("").code(75).says("1 of 5 shards are missing: 1");
    scene.shard(1).wait().code(0);
    scene.join("--verify full").code(0);
    std::fs::remove_file(kept).unwrap();
    scene.check_done();
}

#[test]
fn a_drive_that_was_written_to_is_not_joined() {
    let scene = Scene::new();
    for index in 1..=SHARDS {
        scene.shard(index).wait().code(0);
    }
    let desk = &scene.desk;
    desk.file("other", &ramp(3, SIZE));
    let write = format!("-q -d {} other", scene.drive);
    desk.upload(&scene.server.uri).args(&write).run().code(0);
    scene
        .join("")
        .code(4)
        .says("was written to since the earlier run");
    scene
        .shard(1)
        .wait()
        .code(4)
        .says("was written to since the earlier run");
    for index in 1..=SHARDS {
        let flags = format!("--shard {index}/{SHARDS} --restart");
        scene.start(&flags).wait().code(0);
    }
    scene.join("").code(0);
    assert!(std::fs::read(desk.path("out")).unwrap() == ramp(3, SIZE));
}

#[test]
fn shards_of_an_upload_fill_one_drive() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("in", &image());
    let drive = create(&server, SIZE as u64);
    let shard = |index: usize, flags: &str| {
        let tool = desk.upload(&proxy.uri()).args("-q -c 65536 -d");
        let tool = tool.arg(&drive).args(flags);
        tool.args(&format!("--shard {index}/{SHARDS} in")).spawn()
    };
    let running: Vec<_> = (1..=SHARDS)
        .map(|index| shard(index, "--verify full"))
        .collect();
    for shard in running {
        shard.wait().code(0);
    }
    assert_drive(&server, &drive, &image());
    // Each chunk was written exactly once.
    let mut written: Vec<_> = proxy
        .requests()
        .iter()
        .filter(|request| request.is_write())
        .map(|request| request.offset() / C as u64)
        .collect();
    written.sort_unstable();
    written.dedup();
    assert_eq!(written, (0..CHUNKS as u64).collect::<Vec<_>>());
    assert_eq!(desk.journals(), Vec::<PathBuf>::new());
}

/// Each shard alone would create a drive of its own. The advice is run as it is printed.
#[test]
fn the_printed_command_creates_the_drive_for_shards() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("in", &image());
    let refused = desk.upload(&server.uri);
    let words = "-c 64K -n it's --shard 1/2 in";
    let refused = refused.args(words).run().code(2);
    let commands = refused.stderr.split_once("Create the drive: ").unwrap().1;
    let (create, send) = commands.trim().split_once('\n').unwrap();
    let (_, send) = send.split_once(": ").unwrap();
    let bin = std::path::Path::new(SIMPLE).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let run = |command: &str| {
        let shell = desk.tool("sh").env("OHURI", &server.uri);
        let shell = shell.env("PATH", format!("{}:{path}", bin.display()));
        let _ = shell.arg("-c").arg(command).run().code(0);
    };
    run(create);
    let drive = drives(&server).remove(0);
    for shard in ["1/2", "2/2"] {
        run(&send.replace("UUID", &drive).replace("1/2", shard));
    }
    let [drive] = &*drives(&server) else {
        panic!("one drive");
    };
    assert_drive(&server, drive, &image());
}

#[test]
fn impossible_shards_are_refused() {
    let scene = Scene::new();
    for (flags, why) in [
        ("--shard 6/5", "not I/N"),
        ("--shard 1/5 --format qcow2", "cannot be used with"),
        ("--shard 1/5 -o 65536", "cannot be used with"),
        ("--shard 1/5 --checksum", "cannot be used with"),
        ("--shard 1/5 --join 5", "cannot be used with"),
        ("--join 0", "at least 1"),
    ] {
        scene.start(flags).wait().code(2).says(why);
    }
    let tool = scene.desk.download(&scene.server.uri);
    let small = tool
        .args("--shard 1/2 -c 5000")
        .arg(&scene.drive)
        .arg("out");
    small.run().code(2).says("a multiple of 65536");
    // Also before the key would be asked for.
    for (flags, auth) in [
        ("--shard 1/2", scene.desk.auth()),
        ("--join 2", scene.desk.user.clone()),
    ] {
        let tool = scene.desk.download(&scene.server.uri).env("OHAUTH", auth);
        let stdout = tool.args(flags).arg(&scene.drive).arg("-");
        stdout.run().code(2).says("need a file, not stdout");
    }
    let upload = |flags: &str| scene.desk.upload(&scene.server.uri).args(flags).run();
    upload("--shard 1/5 in").code(2).says("which -d names");
    let piped = format!("-d {} --shard 1/5 -", scene.drive);
    let tool = scene.desk.upload(&scene.server.uri).args(&piped);
    tool.input(&gzipped()).run().code(2).says("--size");
    // Another file with that name exists.
    scene.desk.file("out.oh-part", b"x");
    scene
        .shard(1)
        .wait()
        .code(1)
        .says("Remove it and run all shards again");
}

fn gzipped() -> Vec<u8> {
    crate::support::gzip(&image())
}
