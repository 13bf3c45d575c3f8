//! Loss of power: at a random moment the file system is cut off from its disk (ext4 on a loop
//! device, shut down without flushing its log) and mounted again. What a transfer stored on it must
//! be sufficient for one more run.
//!
//! Unlike after `kill -9`, unsynced data are gone then, which a control test proves. Needs root and
//! loop devices; use `OH_ROUNDS` for more rounds.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Running};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::needs::{Need, skip};
use crate::support::slow::SlowLink;
use crate::support::{noise, rounds, seed};

const CHUNK: usize = 16 * 1024;
const SIZE: usize = 256 * CHUNK;
const PAUSE: Duration = Duration::from_micros(300);

/// An ext4 file system in a file.
struct Disk {
    // Not on the desk, which is searched for secrets while this cannot be read.
    _home: TempDir,
    image: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// `None` if it cannot be created or shut down here.
    fn new() -> Option<Self> {
        let home = TempDir::new().unwrap();
        let disk = Self {
            image: home.path().join("disk"),
            root: home.path().join("mnt"),
            _home: home,
        };
        let file = std::fs::File::create(&disk.image).unwrap();
        file.set_len(48 << 20).unwrap();
        std::fs::create_dir(&disk.root).unwrap();
        let is_made = run("mkfs.ext4", &["-q", "-F"], &disk.image) && disk.mount();
        // Used only if it works at all, which this first cut tests.
        let is_ready = is_made && disk.cut() && disk.mount();
        if !is_ready {
            skip(
                Need::Other("a loop device that can be shut down"),
                "mkfs.ext4, mount or xfs_io fails",
            );
        }
        is_ready.then_some(disk)
    }

    fn mount(&self) -> bool {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-o", "loop"]).arg(&self.image).arg(&self.root);
        mount
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    }

    /// Cuts the power.
    fn shut_down(&self) -> bool {
        run("xfs_io", &["-x", "-c", "shutdown"], &self.root)
    }

    /// Turns the machine off. A process that another test has just started may hold the file system
    /// for a moment, through an inherited file or a copied mount namespace; wait until it has gone.
    fn unmount(&self) -> bool {
        wait_until(|| run("umount", &[], &self.root)) && wait_until(|| !self.is_attached())
    }

    /// Whether a loop device holds the image, which ends with its last mount.
    fn is_attached(&self) -> bool {
        let mut losetup = Command::new("losetup");
        let attached = losetup.arg("-j").arg(&self.image).output();
        attached.is_ok_and(|attached| !attached.stdout.is_empty())
    }

    fn cut(&self) -> bool {
        self.shut_down() && self.unmount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.root)
            .stderr(Stdio::null())
            .status();
    }
}

/// Waits until a condition holds; the timeout is for tests that hang.
fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_so()
    })
}

fn run(program: &str, args: &[&str], path: &Path) -> bool {
    let mut command = Command::new(program);
    let status = command.args(args).arg(path).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Cuts the power after a random number of bytes; the process then ends, because of errors or
/// because we kill it.
fn cut_at_random<'a>(
    rng: &mut Rng,
    link: &SlowLink,
    disk: &Disk,
    mut running: Running<'a>,
) -> Outcome {
    let bytes = rng.u64(..(SIZE as u64) * 21 / 20);
    while link.passed() < bytes && !running.has_ended() {
        std::thread::sleep(Duration::from_micros(300));
    }
    std::thread::sleep(Duration::from_micros(rng.u64(..5000)));
    assert!(disk.shut_down());
    let outcome = running.kill9();
    assert!(disk.unmount() && disk.mount());
    outcome
}

fn resumed(stderr: &str) -> u64 {
    let rest = stderr.split_once("Resuming: ").map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split(' ').next());
    number.map_or(0, |number| number.parse().unwrap())
}

#[test]
fn a_download_survives_the_loss_of_power() {
    let desk = Desk::new();
    let Some(disk) = Disk::new() else { return };
    let mut rng = Rng::with_seed(seed("power, download"));
    let server = desk.server();
    let link = SlowLink::to(&server, PAUSE);
    let image = noise(rng.u64(..), SIZE);
    desk.file("a.img", &image);
    let up = desk.upload(&server.uri).args("a.img").run().code(0);
    let drive = up.created();
    let out = disk.root.join("out");
    let part = disk.root.join("out.oh-part");
    let journal = disk.root.join("out.ohj");
    // A check of what the earlier run wrote would repair what the journal should not claim.
    let run = || {
        desk.download(&link.uri())
            .args("-c 16384 --verify none")
            .arg(&drive)
            .arg(&out)
    };
    let (mut resumes, mut over, mut nothing) = (0, 0, 0);
    let rounds = rounds(20);
    for _ in 0..rounds {
        link.take_counts();
        let cut = cut_at_random(&mut rng, &link, &disk, run().spawn());
        if cut.status.code() == Some(0) {
            // The download reported success, so the file must be complete.
            assert!(
                std::fs::read(&out).unwrap() == image,
                "done, and lost: {cut:?}"
            );
            over += 1;
        } else if out.exists() {
            assert!(
                std::fs::read(&out).unwrap() == image,
                "a torn image: {cut:?}"
            );
        }
        if let Ok(bytes) = std::fs::read(&journal) {
            desk.check_hidden("the journal", &bytes);
        }
        if !out.exists() || journal.exists() {
            let again = run().run().code(0);
            assert!(!again.stderr.contains("damaged"), "{again:?}");
            match resumed(&again.stderr) {
                0 => nothing += 1,
                _ => resumes += 1,
            }
        }
        assert!(std::fs::read(&out).unwrap() == image, "bytes differ");
        assert!(!part.exists() && !journal.exists());
        std::fs::remove_file(&out).unwrap();
    }
    eprintln!(
        "power, download: {rounds} cuts: {resumes} resumed, {nothing} from the start, {over} after the end"
    );
}

#[test]
fn an_upload_survives_the_loss_of_power() {
    let desk = Desk::new();
    let Some(disk) = Disk::new() else { return };
    let mut rng = Rng::with_seed(seed("power, upload"));
    let server = desk.server();
    let link = SlowLink::to(&server, PAUSE);
    let image = noise(rng.u64(..), SIZE);
    desk.file("a.img", &image);
    let journal = disk.root.join("j.ohj");
    let run = || {
        let tool = desk.upload(&link.uri()).args("-c 16384 a.img");
        tool.arg("--journal").arg(&journal)
    };
    let (mut resumes, mut over, mut nothing) = (0, 0, 0);
    let rounds = rounds(20);
    for _ in 0..rounds {
        link.take_counts();
        let cut = cut_at_random(&mut rng, &link, &disk, run().spawn());
        // The journal is removed after this message; without a sync it may reappear.
        if cut.text().ends_with(" completed\n") {
            over += 1;
        } else {
            let again = run().run().code(0);
            assert!(!again.stderr.contains("damaged"), "{again:?}");
            match resumed(&again.stderr) {
                0 => nothing += 1,
                _ => resumes += 1,
            }
        }
        let all = drives(&server);
        assert_eq!(all.len(), 1, "{cut:?}");
        assert_drive(&server, &all[0], &image);
        if journal.exists() {
            let again = run().run().code(0);
            assert!(
                again.text().starts_with("Using existing drive"),
                "{again:?}"
            );
        }
        assert!(!journal.exists());
        Ask::of(&server)
            .post(&format!("/drives/{}/destroy", all[0]), "")
            .expect(204);
    }
    eprintln!(
        "power, upload: {rounds} cuts: {resumes} resumed, {nothing} from the start, {over} after the end"
    );
}

/// The same with a download tool that forgets to sync the image before its journal claims what is
/// there: strace suppresses these calls. The test above would detect it.
#[test]
fn control_an_omitted_sync_is_detected() {
    let desk = Desk::new();
    let Some(disk) = Disk::new() else { return };
    let server = desk.server();
    let link = SlowLink::to(&server, PAUSE);
    let image = noise(1, SIZE);
    desk.file("a.img", &image);
    let up = desk.upload(&server.uri).args("a.img").run().code(0);
    let drive = up.created();
    let (out, part) = (disk.root.join("out"), disk.root.join("out.oh-part"));
    // The kernel may write an image back by itself in time, so not every cut reveals it.
    let (mut cuts, mut caught) = (0, 0);
    while caught == 0 && cuts < 20 {
        cuts += 1;
        link.take_counts();
        let mut running = desk
            .tool("strace")
            .env("OHURI", link.uri())
            .args("-f -qq -o trace -e inject=fsync,fdatasync:retval=0")
            .arg("-P")
            .arg(&part)
            .arg(DOWNLOAD)
            .args("-c 16384")
            .arg(&drive)
            .arg(&out)
            .spawn();
        while link.passed() < SIZE as u64 * 3 / 4 && !running.has_ended() {
            std::thread::sleep(Duration::from_micros(300));
        }
        assert!(disk.shut_down());
        let cut = running.kill9();
        if !cut.stderr.is_empty() && cut.stderr.contains("strace:") {
            skip(Need::Other("tracing of system calls"), cut.stderr);
            return;
        }
        // strace has ended; the traced process ends by itself, because of errors.
        assert!(disk.unmount() && disk.mount());
        // A sample of what the earlier run wrote would find and repair it.
        let again = desk.download(&link.uri()).args("-c 16384 --verify none");
        let again = again.arg(&drive).arg(&out).run();
        let is_right = std::fs::read(&out).is_ok_and(|bytes| bytes == image);
        if again.status.code() != Some(0) || !is_right {
            caught += 1;
        }
        for name in ["out", "out.oh-part", "out.ohj"] {
            let _ = std::fs::remove_file(disk.root.join(name));
        }
    }
    eprintln!("power, download without its sync: caught in {caught} of {cuts} cuts");
    assert!(caught > 0);
}

/// Without a sync, a cut can lose everything: this shows that the cut is real.
#[test]
fn control_unsynced_bytes_can_be_lost() {
    let Some(disk) = Disk::new() else { return };
    let mut lost = 0;
    for _ in 0..3 {
        for (name, is_synced) in [("synced", true), ("not", false)] {
            let mut file = std::fs::File::create(disk.root.join(name)).unwrap();
            file.write_all(&noise(1, 100_000)).unwrap();
            if is_synced {
                file.sync_all().unwrap();
            }
        }
        assert!(disk.cut() && disk.mount());
        let read = |name| {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(disk.root.join(name));
            let read = file.and_then(|mut file| file.read_to_end(&mut bytes));
            read.map_or(Vec::new(), |_| bytes)
        };
        assert!(read("synced") == noise(1, 100_000));
        // The kernel may write it at any time by itself, so not every cut loses it.
        lost += usize::from(read("not") != noise(1, 100_000));
        let _ = std::fs::remove_file(disk.root.join("synced"));
        let _ = std::fs::remove_file(disk.root.join("not"));
    }
    assert!(lost > 0, "no cut loses anything");
}
