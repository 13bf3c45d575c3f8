//! `kill -9` only costs what was in flight: what the endpoint confirmed, and what was written to
//! the file of a download, is not transferred again, however early the kill comes.
//!
//! `kill.rs` kills at random moments and checks the bytes; this module counts the transferred
//! bytes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use openhosting::journal::{
    HEADER_BYTES, Header, PageCache, RECORD_BYTES, Record, Replay, State, replay,
};

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Tool, UPLOAD};
use crate::support::failing::{self, EIO, Failing, KILL};
use crate::support::http::{assert_drive, drives};
use crate::support::needs::{Need, skip};
use crate::support::noise;
use crate::support::server::TestServer;
use crate::support::slow::SlowLink;
use crate::support::watchdog::wait_until;

const MIB: usize = 1 << 20;
/// Number of workers, each of which has at most one chunk in flight.
const JOBS: usize = 4;
/// Headers, queries, and the sample that is verified at the end.
const REST: usize = MIB;

/// An image, a server, and a link to it that counts bytes.
struct Scene {
    desk: Desk,
    server: TestServer,
    link: SlowLink,
    image: Vec<u8>,
    chunk: usize,
    drive: String,
}

impl Scene {
    fn new(size: usize, chunk: usize) -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let image = noise(size as u64, size);
        desk.file("a.img", &image);
        let up = desk.upload(&server.uri).args("-q a.img").run().code(0);
        for name in ["out", "out.oh-part"] {
            desk.own(&desk.path(name));
        }
        Self {
            drive: up.created(),
            link: SlowLink::to(&server, Duration::from_micros(50)),
            desk,
            server,
            image,
            chunk,
        }
    }

    fn tool(&self, program: &str, flags: &str) -> Tool<'_> {
        let tool = self.desk.tool(program).env("OHURI", self.link.uri());
        let tool = tool
            .args(&format!("-j {JOBS} -c {}", self.chunk))
            .args(flags);
        match program {
            UPLOAD => tool.arg("a.img"),
            _ => tool.arg(&self.drive).arg("out"),
        }
    }

    /// Runs the tool until `bytes` bytes were transferred and kills it; returns how many were.
    fn killed_after(&self, bytes: usize, tool: Tool<'_>) -> usize {
        self.link.take_counts();
        let running = tool.spawn();
        wait_until("the bytes", || self.link.passed() >= bytes as u64);
        let outcome = running.kill9();
        assert_eq!(outcome.status.code(), None, "{outcome:?}");
        self.link.settle();
        self.counted()
    }

    /// Bytes in both directions since the last call.
    fn counted(&self) -> usize {
        let (up, down) = self.link.take_counts();
        (up + down) as usize
    }

    /// Whether a file of a download may be trusted before it is synced.
    fn is_trusted(&self) -> bool {
        let file = self.desk.file("probe", b"");
        let is_trusted = PageCache::of(&File::open(file).unwrap()).is_some();
        if !is_trusted {
            skip(
                Need::Other("a trusted page cache"),
                "the file system has none",
            );
        }
        is_trusted
    }

    /// The content of the download's journal.
    fn replay(&self) -> Replay {
        let bytes = std::fs::read(self.desk.path("out.ohj")).unwrap();
        replay(&bytes[..], |_, _, _| {}).unwrap()
    }

    /// A download that is killed before anything is synced: at its first sync.
    fn killed_unsynced(&self, flags: &str) -> Option<State> {
        if !self.is_trusted() {
            return None;
        }
        let failing = Failing {
            call: "fdatasync",
            nth: 1,
            errno: KILL,
            file: Some("out.oh-part"),
        };
        let tool = self.tool(DOWNLOAD, flags);
        let outcome = failing.within(failing::library()?, &self.desk, tool);
        assert_eq!(outcome.spawn().end().status.code(), None);
        let state = self.replay().state;
        assert!(state.done.is_empty() && state.whole.is_none(), "{state:?}");
        assert!(state.written.len() >= 64, "{state:?}");
        Some(state)
    }

    /// Replaces records of the journal.
    fn rewrite(&self, change: impl Fn(&mut Record)) {
        let path = self.desk.path("out.ohj");
        let bytes = std::fs::read(&path).unwrap();
        let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
        let mut new = bytes[..HEADER_BYTES].to_vec();
        let records = bytes[HEADER_BYTES..].chunks_exact(RECORD_BYTES);
        for (number, record) in (0..).zip(records) {
            let record = Record::decode(record.try_into().unwrap(), number, &header.session);
            let mut record = record.unwrap();
            change(&mut record);
            new.extend_from_slice(&record.encode(number, &header.session));
        }
        std::fs::write(path, new).unwrap();
    }

    #[track_caller]
    fn check_downloaded(&self) {
        let out = self.desk.path("out");
        assert!(std::fs::read(&out).unwrap() == self.image, "bytes differ");
        for end in ["oh-part", "ohj", "ohj.bad"] {
            assert!(!self.desk.path(format!("out.{end}")).exists(), "{end}");
        }
        std::fs::remove_file(out).unwrap();
    }
}

/// How many bytes a run says that it found.
#[track_caller]
fn resumed(outcome: &Outcome) -> usize {
    let (_, rest) = outcome.stderr.split_once("Resuming: ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// Kills after a part of the image and counts what the next run transfers.
fn check(program: &str, size: usize, chunk: usize, part: usize) {
    let scene = Scene::new(size, chunk);
    if program == DOWNLOAD && !scene.is_trusted() {
        return;
    }
    let moved = scene.killed_after(part, scene.tool(program, ""));
    let again = scene.tool(program, "").run().code(0);
    let moved_again = scene.counted();
    let most = size - moved.min(size) + JOBS * chunk + REST;
    assert!(
        moved_again <= most,
        "{moved_again} bytes after {moved} of {size}: {again:?}"
    );
    if program == DOWNLOAD {
        scene.check_downloaded();
    } else {
        let mut all = drives(&scene.server);
        all.retain(|drive| *drive != scene.drive);
        assert_eq!(all.len(), 1);
        assert_drive(&scene.server, &all[0], &scene.image);
        assert!(scene.desk.journals().is_empty());
    }
}

#[test]
fn a_download_killed_after_a_third_fetches_only_the_rest() {
    check(DOWNLOAD, 48 * MIB, MIB, 16 * MIB);
}

#[test]
fn an_upload_killed_after_a_third_sends_only_the_rest() {
    check(UPLOAD, 48 * MIB, MIB, 16 * MIB);
}

#[test]
fn a_small_image_killed_in_its_first_moments_is_resumed_there() {
    for program in [DOWNLOAD, UPLOAD] {
        check(program, 4 * MIB, 64 << 10, 3 * MIB);
    }
}

#[test]
fn a_download_killed_twice_loses_nothing_of_its_first_run() {
    let scene = Scene::new(24 * MIB, MIB);
    if !scene.is_trusted() {
        return;
    }
    let mut moved = 0;
    for part in [8 * MIB, 4 * MIB] {
        moved += scene.killed_after(part, scene.tool(DOWNLOAD, ""));
    }
    let _ = scene.tool(DOWNLOAD, "").run().code(0);
    let most = 24 * MIB - moved + 2 * JOBS * MIB + 2 * REST;
    let last = scene.counted();
    assert!(last <= most, "{last} bytes after {moved}");
    scene.check_downloaded();
}

// ---- Unsynced chunks are trusted only where they exist ----

/// Small chunks: 64 of them are synced together.
const CHUNK: usize = 64 << 10;
const SIZE: usize = 160 * CHUNK - 77;

#[test]
fn unsynced_chunks_are_adopted_and_synced_by_the_next_run() {
    for flags in ["", "--verify full", "--verify none", "--checksum"] {
        let scene = Scene::new(SIZE, CHUNK);
        let Some(state) = scene.killed_unsynced(flags) else {
            return;
        };
        let again = scene.tool(DOWNLOAD, flags).run().code(0);
        let there: u64 = state.written.values().map(|(len, _)| u64::from(*len)).sum();
        assert_eq!(resumed(&again) as u64, there);
        scene.check_downloaded();
    }
}

#[test]
fn records_of_another_boot_file_system_or_file_are_ignored() {
    let changes: [fn(&mut PageCache); 4] = [
        |cache| cache.boot[15] ^= 1,
        |cache| cache.device += 1,
        |cache| cache.mount += 1,
        |cache| cache.inode += 1,
    ];
    for change in changes {
        let scene = Scene::new(SIZE, CHUNK);
        if scene.killed_unsynced("").is_none() {
            return;
        }
        scene.rewrite(|record| {
            if let Record::Run(Some(page_cache)) = record {
                change(page_cache);
            }
        });
        let again = scene.tool(DOWNLOAD, "").run().code(0);
        assert_eq!(resumed(&again), 0);
        scene.check_downloaded();
    }
}

/// The kernel itself reports that it is another page cache.
#[test]
fn after_a_reboot_only_synced_chunks_count() {
    let scene = Scene::new(SIZE, CHUNK);
    if scene.killed_unsynced("").is_none() {
        return;
    }
    let boot = scene
        .desk
        .file("boot", b"00000000-1111-2222-3333-444444444444\n");
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let tool = scene.desk.tool("unshare").env("OHURI", scene.link.uri());
    let tool = tool.args("-m sh -c").arg(script).arg(boot).arg(DOWNLOAD);
    let tool = tool.arg("-c").arg(CHUNK.to_string());
    let again = tool.arg(&scene.drive).arg("out").run();
    if !again.stderr.contains("Resuming: ") {
        skip(Need::Other("mount namespaces"), again.stderr);
        return;
    }
    assert_eq!(resumed(&again.code(0)), 0);
    scene.check_downloaded();
}

/// As after a page that the kernel could not write to the disk and dropped.
#[test]
fn chunks_that_vanished_from_the_file_are_fetched_again() {
    for verify in ["none", "sample", "full"] {
        let scene = Scene::new(SIZE, CHUNK);
        let flags = format!("--verify {verify}");
        let Some(state) = scene.killed_unsynced(&flags) else {
            return;
        };
        let lost: Vec<u64> = state.written.keys().copied().take(2).collect();
        let part = scene.desk.path("out.oh-part");
        let file = OpenOptions::new().write(true).open(part).unwrap();
        for index in &lost {
            let page = index * CHUNK as u64 + 8192;
            file.write_all_at(&[0; 4096], page).unwrap();
        }
        let again = scene.tool(DOWNLOAD, &flags).run().code(0);
        let again = again.says("Fetching 2 chunks again");
        assert_eq!(resumed(&again), (state.written.len() - lost.len()) * CHUNK);
        scene.check_downloaded();
    }
}

/// There is no digest of unsynced chunks, so they are compared with the drive.
#[test]
fn a_byte_that_changed_after_the_kill_is_found_by_the_default_verification() {
    for verify in ["sample", "full"] {
        // So few and small chunks that the sample covers all of them.
        let scene = Scene::new(16 * 16384, 16384);
        let flags = format!("--verify {verify}");
        if !scene.is_trusted() {
            return;
        }
        let Some(library) = failing::library() else {
            return;
        };
        // The first sync is of the new, empty file.
        let failing = Failing {
            call: "fsync",
            nth: 2,
            errno: KILL,
            file: Some("out.oh-part"),
        };
        let tool = scene.tool(DOWNLOAD, &flags);
        let killed = failing.within(library, &scene.desk, tool).spawn().end();
        assert_eq!(killed.status.code(), None);
        let state = scene.replay().state;
        assert_eq!(state.written.len(), 16, "{state:?}");
        let part = scene.desk.path("out.oh-part");
        let file = OpenOptions::new().write(true).open(part).unwrap();
        let at = 5 * 16384 + 1000;
        file.write_all_at(&[!scene.image[at as usize]], at).unwrap();
        let again = scene.tool(DOWNLOAD, &flags).run().code(4);
        let _ = again.says("does not hold what was transferred");
    }
}

/// The kernel reports the failure once, and then treats what it could not write as clean.
#[test]
fn chunks_of_a_failed_sync_are_not_trusted_later() {
    let scene = Scene::new(SIZE, CHUNK);
    let Some(library) = failing::library() else {
        return;
    };
    let failing = Failing {
        call: "fdatasync",
        nth: 1,
        errno: EIO,
        file: Some("out.oh-part"),
    };
    let tool = scene.tool(DOWNLOAD, "");
    let failed = failing.within(library, &scene.desk, tool).run().code(1);
    let _ = failed.says("Cannot sync the image to the disk");
    let state = scene.replay().state;
    assert_eq!((state.written.len(), state.page_cache()), (0, None));
    let again = scene.tool(DOWNLOAD, "").run().code(0);
    assert_eq!(resumed(&again), 0);
    scene.check_downloaded();
}

#[test]
fn a_killed_qcow2_download_resumes() {
    for pack in ["", "--compress zlib", "--compress zstd"] {
        let scene = Scene::new(SIZE, CHUNK);
        let flags = format!("--format qcow2 {pack}");
        let Some(state) = scene.killed_unsynced(&flags) else {
            return;
        };
        let again = scene.tool(DOWNLOAD, &flags).run().code(0);
        let there: u64 = state.written.values().map(|(len, _)| u64::from(*len)).sum();
        assert_eq!(resumed(&again) as u64, there);
        // Sends the bytes of the file itself.
        let out = scene.desk.path("out");
        let up = scene.desk.upload(&scene.server.uri).arg(&out).run().code(0);
        let mut disk = scene.image.clone();
        disk.resize(disk.len().next_multiple_of(512), 0);
        assert_drive(&scene.server, &up.created(), &disk);
        assert!(!scene.desk.path("out.oh-part").exists());
    }
}

#[test]
fn a_chunk_has_one_record_of_64_bytes_until_it_is_synced() {
    let scene = Scene::new(SIZE, CHUNK);
    let Some(state) = scene.killed_unsynced("") else {
        return;
    };
    let len = scene.desk.path("out.ohj").metadata().unwrap().len() as usize;
    // Drive and drive state, each followed by the record of its sync, and the run.
    let records = state.written.len() + 5;
    assert_eq!(len, HEADER_BYTES + records * RECORD_BYTES);
}
