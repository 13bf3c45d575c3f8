//! Identifies a process by a descriptor and not by its number, which the kernel reuses; and by a
//! record on disk, across restarts of this program.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use openhosting_filesystem::{Access, replace};

/// How long to wait for the end of a killed process. The kernel ends it at once, unless it waits
/// for a disk.
const KILL_MAX: Duration = Duration::from_secs(10);
/// The file, in the directory of a server, that says which process runs it.
const RECORD: &str = "process";

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    descriptor: Arc<OwnedFd>,
    is_over: watch::Receiver<bool>,
}

impl Process {
    /// The process that currently has the number `pid`. The caller must check afterwards that it is
    /// the intended one.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let descriptor = Arc::new(open(pid)?);
        let (over, is_over) = watch::channel(false);
        // Each process has a waiting thread, because the async runtime accepts a descriptor only
        // with `unsafe` code.
        let awaited = Arc::clone(&descriptor);
        let thread = thread::Builder::new().name("hypervisor".into());
        thread.spawn(move || {
            await_end(&awaited, None);
            let _ = over.send(true);
        })?;
        Ok(Self {
            descriptor,
            is_over,
        })
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        // The thread ends only with the process.
        let _ = self.is_over.clone().wait_for(|is_over| *is_over).await;
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.descriptor, Signal::KILL) {
            tracing::debug!(%error, "Cannot kill a process");
        }
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The identity of the process `pid`, as one line. No other process has the same, in this boot or
/// another. `None` if there is no such process.
fn identity(pid: u32) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name of the program, which may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    // Field 22 is the time of its start, in ticks since the boot (proc_pid_stat(5)).
    let started = fields.split(' ').nth(22 - 3)?;
    Some(format!("{pid} {started} {}\n", boot.trim()))
}

/// Records in `directory` that the process `pid` runs the server there.
pub(super) fn record(directory: &Path, pid: u32) -> io::Result<()> {
    let identity = identity(pid).ok_or(io::ErrorKind::NotFound)?;
    replace(
        &directory.join(RECORD),
        Access::Private,
        identity.as_bytes(),
    )
}

/// Kills the process that runs the server in `directory`, and waits until it is gone: the recorded
/// one, and the one that listens on the socket `socket` there. A process that merely has it as its
/// working directory is not killed: it may be a shell.
pub(super) fn kill_recorded(directory: &Path, socket: &str) {
    let recorded = || fs::read_to_string(directory.join(RECORD)).ok();
    let pid = recorded().and_then(|line| line.split(' ').next()?.parse().ok());
    if let Some(pid) = pid {
        let is_recorded = || recorded().is_some_and(|line| identity(pid) == Some(line));
        kill_if(directory, pid, is_recorded);
    }
    // A process may have been started although this program ended before it could record it.
    let listener = || listener(directory, socket);
    if let Some(pid) = listener() {
        kill_if(directory, pid, || listener() == Some(pid));
    }
}

/// Kills `pid` if it belongs to this user and `is_it` holds. A descriptor is held meanwhile, so
/// that both refer to the same process.
fn kill_if(directory: &Path, pid: u32, is_it: impl Fn() -> bool) {
    let Ok(process) = open(pid) else { return };
    let own = rustix::process::geteuid().as_raw();
    let owner = fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid());
    let is_ours = owner.is_ok_and(|owner| owner == own) && pid != std::process::id();
    if is_ours && is_it() {
        tracing::warn!(pid, ?directory, "Killed a hypervisor of no known server");
        let _ = pidfd_send_signal(&process, Signal::KILL);
        await_end(&process, Some(KILL_MAX));
    }
}

/// The process that listens on a socket in `directory`, according to the kernel. Does not wait for
/// one that does not accept connections.
fn listener(directory: &Path, socket: &str) -> Option<u32> {
    let directory = fs::File::open(directory).ok()?;
    let path = format!("/proc/self/fd/{}/{socket}", directory.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&client, &SocketAddrUnix::new(path).ok()?).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&client).ok()?;
    peer.pid.as_raw_nonzero().get().try_into().ok()
}

fn await_end(process: &OwnedFd, patience: Option<Duration>) {
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleep(at: &Path) -> Child {
        let mut command = Command::new("sleep");
        command.arg("60").current_dir(at).stdin(Stdio::null());
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn only_the_recorded_process_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (mut victim, mut other) = (sleep(path), sleep(path));
        // Nothing is killed without a record, with the record of a process that is gone and whose
        // number was reused, or with a damaged record.
        kill_recorded(path, "qmp");
        let file = path.join(RECORD);
        record(path, victim.id()).unwrap();
        let right = fs::read_to_string(&file).unwrap();
        let later = right.replacen(' ', " 9", 1);
        for wrong in [&*later, "", "1", "x y z", &format!("{} ", victim.id())] {
            fs::write(&file, wrong).unwrap();
            kill_recorded(path, "qmp");
            assert_eq!(victim.try_wait().unwrap(), None, "{wrong:?}");
        }
        fs::write(&file, right).unwrap();
        let process = Process::open(victim.id()).unwrap();
        kill_recorded(path, "qmp");
        process.ended().await;
        victim.wait().unwrap();
        assert_eq!(other.try_wait().unwrap(), None);
        Process::open(other.id()).unwrap().kill();
        other.wait().unwrap();
    }

    #[test]
    fn the_listening_process_is_found_and_never_this_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(listener(directory.path(), "qmp"), None);
        let path = directory.path().join("qmp");
        let _listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener(directory.path(), "qmp"), Some(std::process::id()));
        kill_recorded(directory.path(), "qmp");
    }
}
