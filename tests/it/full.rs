//! Outputs that accept no more data, for a while or permanently, and devices that are named by
//! links.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::cli::{DOWNLOAD, Desk, SIMPLE, Tool, UPLOAD};
use crate::support::disk::{LoopDevice, Tmpfs};
use crate::support::http::{assert_drive, drives};
use crate::support::needs::{Need, needs, skip};
use crate::support::noise;
use crate::support::server::TestServer;

const SIZE: usize = 3 << 20;
const FULL: &str = "Cannot write to the output: No space left on device\n";
const AGAIN: &str = "Make room on the disk, then run the same command again\n";

struct Scene {
    desk: Desk,
    server: TestServer,
    image: Vec<u8>,
    drive: String,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let image = noise(11, SIZE);
        desk.file("a.img", &image);
        let up = desk.upload(&server.uri).args("-q a.img").run().code(0);
        Self {
            drive: up.created(),
            desk,
            server,
            image,
        }
    }

    /// A download by a shell that first runs `before`.
    fn shell(&self, before: &str, after: &str) -> Tool<'_> {
        let script = format!("{before} \"$@\" {after}");
        let tool = self.desk.tool("sh").arg("-c").arg(script).arg("sh");
        tool.arg(DOWNLOAD).env("OHURI", &self.server.uri)
    }

    fn download(&self, file: &Path) -> Tool<'_> {
        let tool = self.desk.download(&self.server.uri).arg(&self.drive);
        tool.arg(file)
    }
}

#[test]
fn a_full_state_directory_is_reported_before_a_drive_is_created() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(12, 100_000));
    let state = desk.path("state");
    let Some(disk) = Tmpfs::mount(&state, 64 << 10) else {
        return;
    };
    let run = |words: &str| {
        let tool = desk.simple(&server.uri).args(words);
        tool.env("XDG_STATE_HOME", &state).run()
    };
    let mut filler = File::create(state.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    for (words, remedy) in [
        ("upload -n x a.img", "--journal PATH"),
        ("publish -n x a.img", "XDG_STATE_HOME"),
    ] {
        let failed = run(words).code(1).says("No space left on device");
        let hint = failed
            .stderr
            .lines()
            .find(|line| line.starts_with("Put it"));
        assert_eq!(hint, Some(&*format!("Put it elsewhere with {remedy}")));
        assert!(drives(&server).is_empty(), "{words}");
    }
    let doctor = run("doctor").code(1);
    let failed = "failed   state";
    assert!(doctor.text().contains(failed), "{doctor:?}");
    drop(filler);
    std::fs::remove_file(state.join("filler")).unwrap();
    assert!(!run("doctor").code(0).text().contains(failed));
    let left = state.join("openhosting/journals").read_dir().unwrap();
    assert_eq!(left.count(), 0);
    drop(disk);
}

#[test]
fn a_full_device_at_stdout_is_reported() {
    let scene = Scene::new();
    for flags in ["", "--gzip", "--zstd"] {
        let tool = scene.shell("exec", ">/dev/full");
        let tool = tool.args(flags).arg(&scene.drive).arg("-");
        let _ = tool.run().code(1).says(FULL).says(AGAIN);
    }
}

#[test]
fn a_stdout_that_is_closed_or_full_is_no_success() {
    let scene = Scene::new();
    let tool = scene.shell("exec", ">&-").arg(&scene.drive).arg("-");
    let _ = tool.run().code(1).says("stdout is closed");
    // What the shell redirects to /dev/null is discarded on purpose.
    let tool = scene.shell("exec", ">/dev/null").arg(&scene.drive).arg("-");
    let _ = tool.run().code(0);
    let script = format!("exec {UPLOAD} -q a.img >/dev/full");
    let tool = scene.desk.tool("sh").arg("-c").arg(script);
    let _ = tool
        .env("OHURI", &scene.server.uri)
        .run()
        .code(1)
        .says("Cannot write to stdout: No space left on device");
}

#[test]
fn a_digest_that_cannot_be_printed_is_an_error() {
    let scene = Scene::new();
    let out = scene.desk.path("out.img");
    let tool = scene.shell("exec", ">/dev/full").arg("--checksum");
    let outcome = tool.arg(&scene.drive).arg(&out).run().code(1);
    let _ = outcome.says("Cannot print the SHA-256: No space left on device");
    // The download itself is complete.
    assert_eq!(std::fs::read(out).unwrap(), scene.image);
}

#[test]
fn a_compressed_download_on_a_full_disk_finishes_later() {
    let scene = Scene::new();
    let root = scene.desk.path("small");
    let Some(disk) = Tmpfs::mount(&root, 1 << 20) else {
        return;
    };
    let out = root.join("out");
    for method in ["gz", "zst", "xz"] {
        disk.resize(1 << 20);
        let run = || scene.download(&out).arg("--compress").arg(method).run();
        let _ = run().code(1).says(FULL).says(AGAIN);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        disk.resize(8 << 20);
        let _ = run().code(0);
        assert!(out.metadata().unwrap().len() > SIZE as u64);
        std::fs::remove_file(&out).unwrap();
    }
}

/// Node.js and rsync use nonblocking pipes, and share them.
#[test]
fn nonblocking_standard_streams_are_waited_for() {
    const SCRIPT: &str = "import os, sys
for fd in 0, 1, 2: os.set_blocking(fd, False)
os.execvp(sys.argv[1], sys.argv[1:])";
    if !needs(&[Need::Command("python3")]) {
        return;
    }
    let scene = Scene::new();
    let run = |program: &str| {
        let tool = scene.desk.tool("python3").arg("-c").arg(SCRIPT);
        tool.arg(program).env("OHURI", &scene.server.uri)
    };
    let down = run(DOWNLOAD).arg(&scene.drive).arg("-").run().code(0);
    assert!(down.stdout == scene.image);
    let path = format!("drives {} read/0/{SIZE}", scene.drive);
    let read = run(SIMPLE).args(&path).run().code(0);
    assert!(read.stdout == scene.image);
    let up = run(UPLOAD).arg("-").input(&scene.image).run().code(0);
    assert_drive(&scene.server, &up.created(), &scene.image);
}

#[test]
fn a_closed_reader_of_stdout_is_no_error_of_the_disk() {
    let scene = Scene::new();
    let tool = scene.download(Path::new("-")).closed_stdout();
    let outcome = tool.run().code(141);
    assert!(!outcome.stderr.contains("Broken pipe"), "{outcome:?}");
}

#[test]
fn a_file_size_limit_is_an_error_instead_of_a_signal() {
    let scene = Scene::new();
    let limited = "ulimit -f 1000; exec";
    for (after, file) in [("", "out"), (">redirected", "-")] {
        let tool = scene.shell(limited, after);
        let outcome = tool.arg(&scene.drive).arg(file).run();
        let _ = outcome.code(1).says("File too large\n").says("ulimit -f");
    }
    // Nothing remains that would break a repetition without the limit.
    let out = scene.desk.path("out");
    let _ = scene.download(&out).run().code(0);
    assert!(std::fs::read(out).unwrap() == scene.image);
}

/// A link, which is removed when dropped.
struct Link(PathBuf);

impl Link {
    /// `None`, with a message, if the link cannot be created.
    fn create(target: &Path, at: &str) -> Option<Self> {
        let at = PathBuf::from(format!("{at}/openhosting-test-{}", std::process::id()));
        let _ = std::fs::remove_file(&at);
        match symlink(target, &at) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                let detail = format_args!("{}: {error}", at.display());
                skip(Need::Other("a writable /dev"), detail);
                None
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `/dev/VG/LV` and `/dev/disk/by-id/NAME` are links.
#[test]
fn only_links_of_root_to_a_device_are_followed() {
    let scene = Scene::new();
    let disk = scene.desk.sparse("disk", SIZE as u64, &[]);
    let Some(device) = LoopDevice::over(&disk, &[]) else {
        return;
    };
    let device = Path::new(&device.0);
    let content = || std::fs::read(device).unwrap();
    let Some(link) = Link::create(device, "/dev") else {
        return;
    };
    let _ = scene
        .download(&link.0)
        .run()
        .code(1)
        .says("is there already");
    let journal = scene.desk.path("j.ohj");
    let run = |file: &Path| {
        let tool = scene.download(file).arg("--force");
        tool.arg("--journal").arg(&journal).run()
    };
    let _ = run(&link.0).code(0);
    assert!(content() == scene.image);
    drop(link);
    // Elsewhere, where others could create it; and to something that is no device.
    let zeros = vec![0; SIZE];
    std::fs::write(device, &zeros).unwrap();
    let at_home = scene.desk.path("link");
    symlink(device, &at_home).unwrap();
    let mut refused = vec![at_home];
    let shared = Link::create(device, "/dev/shm");
    refused.extend(shared.iter().map(|link| link.0.clone()));
    let to_a_file = Link::create(&scene.desk.path("a.img"), "/dev");
    refused.extend(to_a_file.iter().map(|link| link.0.clone()));
    for link in refused {
        let outcome = run(&link).code(1);
        let _ = outcome.says("is a symbolic link, which is not followed");
    }
    assert!(content() == zeros);
    assert_eq!(drives(&scene.server).len(), 1);
}
