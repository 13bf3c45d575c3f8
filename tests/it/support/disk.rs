//! Small file systems and block devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::needs::{Need, skip};

/// A tmpfs; unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Returns `None`, with a message, if none can be mounted.
    pub fn mount(path: &Path, bytes: usize) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
        let is_mounted = mount.arg(path).status().is_ok_and(|s| s.success());
        if !is_mounted {
            skip(Need::Other("mounting of a tmpfs"), "mount fails");
        }
        is_mounted.then(|| Self(path.to_owned()))
    }

    pub fn resize(&self, bytes: usize) {
        self.remount(&format!("size={bytes}"));
    }

    pub fn make_read_only(&self) {
        self.remount("ro");
    }

    pub fn make_writable(&self) {
        self.remount("rw");
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &options]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A file system that is mounted; unmounted when dropped.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A loop device, which is detached when dropped.
pub struct LoopDevice(pub String);

impl LoopDevice {
    /// Creates one over a file. Returns `None`, with a message, if that is impossible.
    pub fn over(path: &Path, args: &[&str]) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let made = losetup.args(args).args(["-f", "--show"]).arg(path).output();
        let device = made.ok().filter(|made| made.status.success());
        let device = device.and_then(|made| String::from_utf8(made.stdout).ok());
        if device.is_none() {
            skip(Need::Other("loop devices"), "losetup fails");
        }
        device.map(|name| Self(name.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}
