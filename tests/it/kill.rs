//! `kill -9` at random moments: of an upload, of a download, and of the server during an upload.
//! Whatever the moment, one more run of the same command succeeds, and every byte is right.
//!
//! Use `OH_ROUNDS=1000` for more rounds, and `OH_SEED=N` to repeat a run (the same moments are
//! drawn, but what exactly they hit depends on the machine).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::support::cli::{Desk, Running};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::is_plain;
use crate::support::needs::{Need, skip};
use crate::support::server::TestServer;
use crate::support::slow::SlowLink;
use crate::support::{noise, rounds, seed};

const CHUNK: usize = 16 * 1024;
/// 256 chunks, so that the journal is synced several times.
const SIZE: usize = 256 * CHUNK;
const PAUSE: Duration = Duration::from_micros(150);

/// How often each outcome occurred.
type Counts = BTreeMap<&'static str, u64>;

/// Noise with some zero chunks.
fn image(seed: u64) -> Vec<u8> {
    let mut image = noise(seed, SIZE);
    for chunk in [7, 8, 90, 255] {
        image[chunk * CHUNK..(chunk + 1) * CHUNK].fill(0);
    }
    image
}

/// Runs rounds on several threads and prints how often each outcome occurred.
fn many(test: &str, workers: usize, work: impl Fn(Rng, usize, &mut Counts) + Sync) {
    let mut rng = Rng::with_seed(seed(test));
    let rounds = rounds(200);
    let began = Instant::now();
    let mut all = Counts::new();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let rng = rng.fork();
                let share = rounds / workers + usize::from(worker < rounds % workers);
                let work = &work;
                scope.spawn(move || {
                    let mut counts = Counts::new();
                    work(rng, share, &mut counts);
                    counts
                })
            })
            .collect();
        for worker in handles {
            for (what, n) in worker.join().unwrap() {
                *all.entry(what).or_default() += n;
            }
        }
    });
    eprintln!("{test}: {rounds} rounds in {:?}: {all:?}", began.elapsed());
}

/// Waits for a moment of a transfer: until a random number of bytes was transferred, and a little
/// more.
fn wait_for_the_moment(rng: &mut Rng, link: &SlowLink, running: &mut Running<'_>, usual: Duration) {
    let began = Instant::now();
    let is_timed = rng.u8(..6) == 0;
    let bytes = rng.u64(..(SIZE as u64) * 21 / 20);
    let time = usual.mul_f64(rng.f64() * 1.2);
    let is_over = || {
        if is_timed {
            began.elapsed() >= time
        } else {
            link.passed() >= bytes
        }
    };
    while !is_over() && !running.has_ended() {
        std::thread::sleep(Duration::from_micros(300));
    }
    std::thread::sleep(Duration::from_micros(rng.u64(..3000)));
}

/// No journal may ever be called damaged or unreadable.
fn check_journal_was_sound(stderr: &str) {
    for word in ["damaged", "Cannot read the journal", "--restart"] {
        assert!(!stderr.contains(word), "{stderr}");
    }
}

/// How much the run found settled.
fn resumed(stderr: &str) -> Option<u64> {
    let (_, rest) = stderr.split_once("Resuming: ")?;
    rest.split(' ').next()?.parse().ok()
}

fn destroy_all(server: &TestServer) {
    for drive in drives(server) {
        let path = format!("/drives/{drive}/destroy");
        Ask::of(server).post(&path, "").expect(204);
    }
}

#[test]
fn an_upload_killed_at_any_moment_finishes_with_the_same_command() {
    many("upload", 4, |mut rng, rounds, counts| {
        let desk = Desk::new();
        let server = desk.server();
        let link = SlowLink::to(&server, PAUSE);
        let image = image(rng.u64(..));
        desk.file("a.img", &image);
        let run = || desk.upload(&link.uri()).args("-c 16384 a.img");
        let mut usual = Duration::from_millis(300);
        for _ in 0..rounds {
            link.take_counts();
            let mut running = run().spawn();
            wait_for_the_moment(&mut rng, &link, &mut running, usual);
            let killed = running.kill9();
            check_journal_was_sound(&killed.stderr);
            // The journal is removed after this message: a run that ended without it is resumed.
            let was_told = killed.stdout.ends_with(b" completed\n");
            if was_told && desk.journals().is_empty() {
                *counts.entry("after the end").or_default() += 1;
            } else {
                link.take_counts();
                let began = Instant::now();
                let again = run().run().code(0);
                // A run that looks for a drive whose answer was lost takes long.
                usual = began.elapsed().min(Duration::from_secs(2));
                check_journal_was_sound(&again.stderr);
                let (sent, _) = link.take_counts();
                let settled = resumed(&again.stderr);
                // Headers and queries, and nothing that was settled.
                let most = SIZE as u64 - settled.unwrap_or(0) + 256 * 1024;
                assert!(sent <= most, "{sent} bytes sent: {again:?}");
                let what = match settled {
                    _ if was_told => "between its last word and the end",
                    None => "before the journal",
                    Some(0) => "before the first record",
                    Some(_) => "mid-transfer, records found",
                };
                *counts.entry(what).or_default() += 1;
            }
            let all = drives(&server);
            assert_eq!(all.len(), 1, "drives: {all:?}");
            assert_drive(&server, &all[0], &image);
            let mut journals = desk.journals();
            if is_plain() {
                // A kill while a journal is created leaves its temporary file.
                let is_temporary = |path: &Path| {
                    let name = path.file_name().unwrap_or_default();
                    name.to_string_lossy().starts_with(".openhosting-")
                };
                journals.retain(|path| !is_temporary(path));
            }
            assert!(journals.is_empty(), "{journals:?}");
            destroy_all(&server);
        }
    });
}

#[test]
fn a_download_killed_at_any_moment_finishes_with_the_same_command() {
    many("download", 4, |mut rng, rounds, counts| {
        let desk = Desk::new();
        let server = desk.server();
        let link = SlowLink::to(&server, PAUSE);
        let image = image(rng.u64(..));
        desk.file("a.img", &image);
        let drive = desk
            .upload(&server.uri)
            .args("a.img")
            .run()
            .code(0)
            .created();
        let names = ["out", "out.oh-part", "out.ohj"].map(|name| desk.path(name));
        for name in &names {
            desk.own(name);
        }
        let [out, part, journal] = &names;
        let run = || {
            desk.download(&link.uri())
                .args("-c 16384")
                .arg(&drive)
                .arg("out")
        };
        let mut usual = Duration::from_millis(300);
        for _ in 0..rounds {
            link.take_counts();
            let mut running = run().spawn();
            wait_for_the_moment(&mut rng, &link, &mut running, usual);
            let killed = running.kill9();
            check_journal_was_sound(&killed.stderr);
            // A file with its final name is always complete.
            if out.exists() {
                assert!(
                    std::fs::read(out).unwrap() == image,
                    "a torn image: {killed:?}"
                );
            }
            if out.exists() && !journal.exists() {
                *counts.entry("after the end").or_default() += 1;
            } else {
                let was_published = out.exists();
                link.take_counts();
                let began = Instant::now();
                let again = run().run().code(0);
                usual = began.elapsed();
                check_journal_was_sound(&again.stderr);
                let (_, fetched) = link.take_counts();
                let settled = resumed(&again.stderr);
                let samples = 40 * 16 * 1024;
                let left = SIZE as u64 - settled.unwrap_or(0);
                let most = left + samples + 256 * 1024;
                assert!(fetched <= most, "{fetched} bytes fetched: {again:?}");
                let what = match settled {
                    _ if was_published => "between its name and the end",
                    None => "before the journal",
                    Some(0) => "before the first record",
                    Some(_) => "mid-transfer, records found",
                };
                *counts.entry(what).or_default() += 1;
            }
            assert!(std::fs::read(out).unwrap() == image, "bytes differ");
            assert!(!part.exists() && !journal.exists());
            std::fs::remove_file(out).unwrap();
        }
    });
}

#[test]
fn a_server_killed_at_any_moment_loses_nothing_it_confirmed() {
    // Most of a round is waiting: the client gives a dead server some seconds.
    many("server", 24, |mut rng, rounds, counts| {
        let desk = Desk::new();
        let mut server = desk.server();
        let link = SlowLink::to(&server, PAUSE);
        let image = image(rng.u64(..));
        desk.file("a.img", &image);
        let mut usual = Duration::from_millis(300);
        for _ in 0..rounds {
            link.take_counts();
            let began = Instant::now();
            let tool = desk.upload(&link.uri()).args("-c 16384 a.img");
            let mut running = tool.spawn();
            wait_for_the_moment(&mut rng, &link, &mut running, usual);
            let is_over = running.has_ended();
            server.kill9();
            server.start_again();
            link.redirect_to(&server);
            // Three attempts at the very first call may be over before the server is back.
            let mut done = running.wait();
            let what = if done.status.code() == Some(0) {
                if is_over {
                    "after the end"
                } else {
                    "the same run went on"
                }
            } else {
                assert_eq!(done.status.code(), Some(75), "{done:?}");
                done = desk
                    .upload(&link.uri())
                    .args("-c 16384 a.img")
                    .run()
                    .code(0);
                "the next run went on"
            };
            *counts.entry(what).or_default() += 1;
            if is_over {
                usual = began.elapsed();
            }
            check_journal_was_sound(&done.stderr);
            let all = drives(&server);
            assert_eq!(all.len(), 1, "drives: {all:?}");
            assert_drive(&server, &all[0], &image);
            assert!(desk.journals().is_empty());
            destroy_all(&server);
        }
    });
}

/// `kill -9` at the start of each system call that makes something durable, one after the other,
/// with strace.
#[test]
fn a_download_killed_at_every_sync_and_rename_finishes() {
    if !can_trace() {
        skip(Need::Other("tracing of system calls"), "strace fails");
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    let image = image(1);
    desk.file("a.img", &image);
    let drive = desk
        .upload(&server.uri)
        .args("a.img")
        .run()
        .code(0)
        .created();
    let words = |out: &str| format!("-q -c 65536 {drive} {out}");
    let mut killed = 0;
    // In this mode a file has a name from its beginning, and has its final name for a moment before
    // it is complete.
    let is_plain = is_plain();
    for call in [
        "fsync",
        "fdatasync",
        "?rename",
        "renameat2",
        "linkat",
        "ftruncate",
        "unlink",
        "fchmod",
    ] {
        for nth in 1.. {
            let out = format!("out-{}-{nth}", call.trim_start_matches('?'));
            let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
            let done = desk
                .tool("strace")
                .env("OHURI", &server.uri)
                .args("-f -qq -o trace -e")
                .arg(format!("trace={call}"))
                .arg("-e")
                .arg(&inject)
                .arg(crate::support::cli::DOWNLOAD)
                .args(&words(&out))
                .spawn()
                .end();
            let path = desk.path(&out);
            desk.own(&path);
            desk.own(&desk.path(format!("{out}.oh-part")));
            let is_over = done.status.code() == Some(0);
            let mut names = std::fs::read_dir(desk.work()).unwrap();
            let is_litter = |name: &str| name.starts_with(".openhosting");
            let has_litter =
                names.any(|entry| is_litter(&entry.unwrap().file_name().to_string_lossy()));
            assert!(is_plain || !has_litter);
            if path.exists() && !is_plain {
                assert!(std::fs::read(&path).unwrap() == image, "torn at {inject}");
            }
            if !is_over {
                killed += 1;
                // It may have ended after its last step but this one.
                if !path.exists() || desk.path(format!("{out}.ohj")).exists() {
                    let again = desk.download(&server.uri).args(&words(&out)).run();
                    let again = again.code(0);
                    check_journal_was_sound(&again.stderr);
                }
            }
            assert!(
                std::fs::read(&path).unwrap() == image,
                "wrong after {inject}"
            );
            for end in ["oh-part", "ohj"] {
                assert!(!desk.path(format!("{out}.{end}")).exists(), "{inject}");
            }
            std::fs::remove_file(path).unwrap();
            if is_over {
                break;
            }
        }
    }
    eprintln!("syncs and renames: {killed} kills");
    // The fallbacks for file systems take fewer steps.
    let least = if is_plain { 6 } else { 8 };
    assert!(killed >= least, "only {killed}");
}

fn can_trace() -> bool {
    let mut strace = Command::new("strace");
    let strace = strace.args(["-f", "-e", "inject=fsync:signal=SIGKILL:when=1", "true"]);
    let status = strace.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()) && Path::new("/proc/self/status").exists()
}
