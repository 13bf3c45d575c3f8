//! The messages that QEMU writes to stderr: the first 64 KiB, in memory.
//!
//! A guest can make QEMU write messages without end. A file on the disk would grow, and a pipe
//! would need this program to read it, or would break when this program ends. A memory file that is
//! sealed at its size does neither: once it is full, QEMU's writes fail. It exists as long as QEMU
//! does, and is found again through the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;

const NAME: &str = "openhosting-log";
/// Its size in bytes.
const LOG_BYTES: usize = 64 * 1024;

/// The messages of one process.
#[derive(Debug)]
pub(super) struct Log(File);

impl Log {
    /// An empty one.
    pub(super) fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Some systems require this flag; kernels before 6.3 do not know it.
        let file = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(NAME, flags)?,
            made => made?,
        };
        ftruncate(&file, LOG_BYTES as u64)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(file.into()))
    }

    /// The handle that a process writes to.
    pub(super) fn writer(&self) -> io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }

    /// The log of a process that an earlier run of this program started with the number `pid`;
    /// `None` if its stderr is something else.
    pub(super) fn of_process(pid: u32) -> Option<Self> {
        let file = File::open(format!("/proc/{pid}/fd/2")).ok()?;
        let seals = fcntl_get_seals(&file).ok()?;
        let len = file.metadata().ok()?.len();
        let is_ours = seals.contains(SealFlags::GROW) && len == LOG_BYTES as u64;
        is_ours.then_some(Self(file))
    }

    /// What was written, as far as it fit.
    pub(super) fn text(&self) -> String {
        let mut bytes = vec![0; LOG_BYTES];
        // The position belongs to the writer and must not move.
        if self.0.read_exact_at(&mut bytes, 0).is_err() {
            return String::new();
        }
        let len = bytes.iter().rposition(|&byte| byte != 0);
        bytes.truncate(len.map_or(0, |last| last + 1));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last line, without the name of the program. Warnings are ignored.
    pub(super) fn last_line(&self) -> Option<String> {
        last_line(&self.text())
    }
}

fn last_line(text: &str) -> Option<String> {
    let mut lines = text.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.contains(": warning: "))?;
    let line = line.strip_prefix("qemu-system-x86_64: ").unwrap_or(line);
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_last_line_without_warnings_is_the_message_of_qemu() {
        assert_eq!(last_line(""), None);
        let text = "x\nqemu-system-x86_64: no room\nqemu-system-x86_64: warning: y\n\n";
        assert_eq!(last_line(text).as_deref(), Some("no room"));
    }

    #[test]
    fn endless_output_fills_the_log_only_to_its_limit() {
        let log = Log::create().unwrap();
        assert_eq!(log.text(), "");
        let script = "i=0; while echo line $i; do i=$((i+1)); done >&2; sleep 60";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stderr(log.writer().unwrap())
            .spawn()
            .unwrap();
        while log.text().len() < LOG_BYTES - 100 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let found = Log::of_process(child.id()).unwrap();
        let text = found.text();
        assert!(text.starts_with("line 0\nline 1\n") && text.len() <= LOG_BYTES);
        assert_eq!(log.0.metadata().unwrap().len(), LOG_BYTES as u64);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Log::of_process(std::process::id()).is_none());
    }
}
