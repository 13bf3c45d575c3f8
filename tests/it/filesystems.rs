//! File systems with missing features: transfers succeed on them, resume after a kill, and report
//! once what is weaker.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, Running, Tool, UPLOAD};
use crate::support::disk::Mounted;
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::needs::{Need, needs, skip};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;

const C: usize = 24 * 1024;
/// Enough that the journal is synced several times, and far more than the requests in flight: near
/// the end, a late chunk is requested twice, and such a request transfers no new chunk.
const CHUNKS: usize = 160;
/// Number of chunks before a run is killed.
const BEFORE: usize = 70;
/// Minimum number of records that are synced together.
const RECORDS: u64 = 64;

/// Without the privileges of root, files of other users are protected.
const UNPRIVILEGED: &str = "setpriv --bounding-set=-all --inh-caps=-all";

const UNLOCKED: &str = "This file system cannot lock ";
const UNSYNCED: &str = "This file system cannot sync the directory ";
const EXPOSED: &str = "This file system does not keep file permissions: other users can read ";
const FIXED: &str = "This file system does not let the permissions of ";

/// A server with a drive, a proxy before it, and a directory on some file system.
struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    image: Vec<u8>,
    source: String,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let image = noise(7, CHUNKS * C - 5000);
        desk.file("a.img", &image);
        let up = desk.upload(&server.uri).args("-q a.img").run().code(0);
        Self {
            source: up.created(),
            desk,
            server,
            proxy,
            image,
        }
    }

    /// A tool, started by another command if there are words for one.
    fn tool(&self, around: &str, program: &str) -> Tool<'_> {
        let mut words = around.split_whitespace().chain([program]);
        let tool = self.desk.tool(words.next().unwrap());
        words.fold(tool, Tool::arg).env("OHURI", self.proxy.uri())
    }

    /// Downloads into a directory, and if requested is killed once on the way.
    fn download(&self, around: &str, directory: &Path, is_killed: bool) -> Outcome {
        let out = directory.join("out");
        let run = || {
            let tool = self.tool(around, DOWNLOAD).arg("-c").arg(C.to_string());
            tool.arg(&self.source).arg(&out)
        };
        if is_killed {
            let journal = directory.join("out.ohj");
            self.kill_on_the_way(Request::is_read, run().spawn(), &journal);
        }
        let outcome = run().run().code(0);
        warns(&outcome, "Resuming: ", usize::from(is_killed));
        assert!(std::fs::read(&out).unwrap() == self.image, "bytes differ");
        assert_eq!(names(directory), ["out"], "{outcome:?}");
        std::fs::remove_file(out).unwrap();
        outcome
    }

    /// Uploads with a journal in a directory, in the same way.
    fn upload(&self, around: &str, directory: &Path, is_killed: bool) -> Outcome {
        let journal = directory.join("j.ohj");
        let run = || {
            let tool = self.tool(around, UPLOAD).arg("-c").arg(C.to_string());
            tool.arg("--journal").arg(&journal).arg("a.img")
        };
        if is_killed {
            self.kill_on_the_way(Request::is_write, run().spawn(), &journal);
        }
        let outcome = run().run().code(0);
        warns(&outcome, "Resuming: ", usize::from(is_killed));
        let mut all = drives(&self.server);
        all.retain(|drive| *drive != self.source);
        assert_eq!(all.len(), 1, "drives: {all:?}");
        assert_drive(&self.server, &all[0], &self.image);
        let path = format!("/drives/{}/destroy", all[0]);
        Ask::of(&self.server).post(&path, "").expect(204);
        assert_eq!(names(directory), [""; 0], "{outcome:?}");
        outcome
    }

    /// Lets some requests pass, waits for a record of them, and kills the process.
    fn kill_on_the_way(
        &self,
        which: impl Fn(&Request) -> bool + Send + 'static,
        running: Running<'_>,
        journal: &Path,
    ) {
        let hold = Fault::Hold(Gate::default());
        self.proxy.fault_after(BEFORE, which, usize::MAX, hold);
        wait_until("the records", || records(journal) >= RECORDS);
        let _ = running.kill9();
        self.proxy.heal();
    }
}

/// Number of records in a journal.
fn records(path: &Path) -> u64 {
    let len = path.metadata().map_or(0, |metadata| metadata.len());
    len.saturating_sub(4096) / 64
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Checks that stderr has this in exactly one line, or not at all.
#[track_caller]
fn warns(outcome: &Outcome, line: &str, times: usize) {
    let found = outcome.stderr.matches(line).count();
    assert_eq!(found, times, "{line:?} in {}", outcome.stderr);
}

/// Makes these calls fail in these ways. The tool is the child process, so that it can be killed.
fn failing(calls: &[&str]) -> String {
    let calls = calls.iter().map(|call| format!(" -e inject={call}"));
    format!(
        "strace -D -f --seccomp-bpf -qq -o /dev/null{}",
        calls.collect::<String>()
    )
}

/// Mounts a FUSE file system. `None`, with a message, if that is not possible.
fn mount(command: &mut Command, at: &Path) -> Option<Mounted> {
    std::fs::create_dir_all(at).unwrap();
    let mounted = command.arg(at).output();
    match mounted {
        Ok(output) if output.status.success() => Some(Mounted(at.to_owned())),
        output => {
            skip(Need::Other("FUSE"), format_args!("{command:?}: {output:?}"));
            None
        }
    }
}

/// A directory whose files belong to another user and have this mode.
fn bindfs(scene: &Scene, mode: &str) -> Option<(PathBuf, Mounted)> {
    let (below, at) = (scene.desk.path("below"), scene.desk.path("mounted"));
    std::fs::create_dir_all(&below).unwrap();
    let mut command = Command::new("bindfs");
    command.args(["--force-user=nobody", "--create-for-user=nobody", mode]);
    let mounted = mount(command.arg(&below), &at)?;
    Some((at, mounted))
}

// ---- Files of other users, no permissions ----

#[test]
fn files_of_another_owner_are_completed() {
    if !needs(&[Need::Command("bindfs")]) {
        return;
    }
    let scene = Scene::new();
    let Some((at, _mounted)) = bindfs(&scene, "--perms=0777") else {
        return;
    };
    let outcome = scene.download(UNPRIVILEGED, &at, true);
    warns(&outcome, EXPOSED, 1);
    warns(&outcome, FIXED, 0);
    let _ = scene.upload(UNPRIVILEGED, &at, true);
}

#[test]
fn images_and_journals_can_be_stored_on_exfat() {
    if !needs(&["mkfs.exfat", "mount.exfat-fuse"].map(Need::Command)) {
        return;
    }
    let scene = Scene::new();
    let (disk, at) = (
        scene.desk.sparse("disk", 64 << 20, &[]),
        scene.desk.path("at"),
    );
    let made = Command::new("mkfs.exfat").arg(&disk).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut command = Command::new("mount.exfat-fuse");
    command.args(["-o", "uid=65534,gid=65534,umask=0000"]);
    let Some(_mounted) = mount(command.arg(&disk), &at) else {
        return;
    };
    let outcome = scene.download(UNPRIVILEGED, &at, true);
    warns(&outcome, EXPOSED, 1);
    let _ = scene.upload(UNPRIVILEGED, &at, true);
}

// ---- Calls that are missing ----

/// Transfers in which these calls fail print this warning once, and no other.
#[track_caller]
fn transfers(directory: &Path, scene: &Scene, calls: &[&str], warning: Option<&str>) {
    let trace = scene.desk.path("trace");
    let around = failing(calls).replace("/dev/null", trace.to_str().unwrap());
    let down = scene.download(&around, directory, false);
    let trace = std::fs::read(trace).unwrap();
    assert!(String::from_utf8_lossy(&trace).contains("(INJECTED)"));
    let up = scene.upload(&around, directory, false);
    for line in [UNLOCKED, UNSYNCED, EXPOSED, FIXED] {
        let is_it = warning == Some(line);
        warns(&down, line, usize::from(is_it));
        // A journal needs no other mode.
        warns(&up, line, usize::from(is_it && line != FIXED));
    }
}

#[test]
fn the_tools_work_without_calls_that_a_file_system_lacks() {
    if !needs(&[Need::Command("strace")]) {
        return;
    }
    let scene = Scene::new();
    let at = scene.desk.path("at");
    std::fs::create_dir(&at).unwrap();
    let only = at.to_str().unwrap();
    // No hard links, and renames that replace an existing file.
    for error in ["EPERM", "ENOSYS"] {
        let link = format!("?link,linkat:error={error}");
        transfers(&at, &scene, &[&link], None);
        let link = format!("?link,linkat,renameat2:error={error}");
        transfers(&at, &scene, &[&link], None);
    }
    transfers(&at, &scene, &["renameat2:error=EINVAL"], None);
    transfers(&at, &scene, &["fchmod:error=EPERM"], Some(FIXED));
    for error in ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"] {
        let flock = format!("flock:error={error}");
        transfers(&at, &scene, &[&flock], Some(UNLOCKED));
    }
    for error in ["EINVAL", "EOPNOTSUPP", "EBADF"] {
        let around = format!("fsync:error={error} -P {only}");
        transfers(&at, &scene, &[&around], Some(UNSYNCED));
    }
    // All of these are missing.
    let all = [
        "?link,linkat,renameat2,flock:error=ENOSYS",
        "fsync,fdatasync:error=EINVAL",
    ];
    let outcome = scene.download(&failing(&all), &at, true);
    warns(&outcome, "This file system cannot sync ", 2);
    warns(&outcome, UNLOCKED, 1);
}

#[test]
fn old_bytes_become_zeros_without_hole_support() {
    if !needs(&[Need::Command("strace")]) {
        return;
    }
    let scene = Scene::new();
    let size = 3 * C;
    scene.desk.sparse("b.img", size as u64, &[(0, b"x")]);
    let up = scene.desk.upload(&scene.server.uri).args("-q b.img").run();
    let drive = up.code(0).created();
    let mut zeros = vec![0; size];
    zeros[0] = b'x';
    for error in ["EOPNOTSUPP", "EPERM", "ENODEV"] {
        let out = scene.desk.file("out", &noise(1, size));
        let trace = scene.desk.path("trace");
        let around = failing(&[&format!("fallocate:error={error}")]);
        let around = around.replace("/dev/null", trace.to_str().unwrap());
        let tool = scene.tool(&around, DOWNLOAD).args("-o 0").arg(&drive);
        let _ = tool.arg(&out).run().code(0);
        assert!(std::fs::read(out).unwrap() == zeros);
        let trace = std::fs::read(trace).unwrap();
        assert!(String::from_utf8_lossy(&trace).contains("(INJECTED)"));
    }
}

#[test]
fn transfers_need_no_proc() {
    let scene = Scene::new();
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let script = scene.desk.file("without-proc", script.as_bytes());
    let around = format!("unshare -m sh {}", script.display());
    let probe = scene.tool(&around, "test").args("! -e /proc/self").run();
    if !probe.status.success() {
        skip(Need::Other("mount namespaces"), format_args!("{probe:?}"));
        return;
    }
    let at = scene.desk.path("at");
    std::fs::create_dir(&at).unwrap();
    let (down, up) = (
        scene.download(&around, &at, true),
        scene.upload(&around, &at, true),
    );
    warns(&down, "This file system", 0);
    warns(&up, "This file system", 0);
}
