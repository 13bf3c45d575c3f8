//! A process that is known by a descriptor and not by its number, which the kernel
//! gives to another one day.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

/// How long a killed process may take to go.
const GOING: Duration = Duration::from_secs(10);

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    descriptor: Arc<OwnedFd>,
    is_over: watch::Receiver<bool>,
}

impl Process {
    /// The process that has the number `pid` now. Whoever asks makes sure afterwards
    /// that it is the one that was meant.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let descriptor = Arc::new(open(pid)?);
        let (over, is_over) = watch::channel(false);
        // A thread for each: it sleeps in the kernel, and the reactor takes no
        // descriptor without `unsafe`.
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
        // The thread goes with the process only.
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

/// Kills the processes that work in `directory`, which has no symbolic link in it,
/// and waits until they are gone.
pub(super) fn kill_within(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let works_there =
            || fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory);
        if !works_there() {
            continue;
        }
        // Looked at again once the descriptor is held: then it is about this process.
        let Ok(process) = open(pid) else { continue };
        if works_there() {
            tracing::warn!(pid, ?directory, "Killed a hypervisor that nobody knows");
            let _ = pidfd_send_signal(&process, Signal::KILL);
            await_end(&process, Some(GOING));
        }
    }
    Ok(())
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
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn what_works_in_a_directory_is_killed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().canonicalize().unwrap().join("inside");
        fs::create_dir(&inside).unwrap();
        let sleep = |at: &Path| {
            let mut command = Command::new("sleep");
            command.arg("60").current_dir(at).stdin(Stdio::null());
            command.spawn().unwrap()
        };
        let (mut victim, mut other) = (sleep(&inside), sleep(inside.parent().unwrap()));
        let process = Process::open(victim.id()).unwrap();
        kill_within(&inside).unwrap();
        process.ended().await;
        victim.wait().unwrap();
        assert_eq!(other.try_wait().unwrap(), None);
        Process::open(other.id()).unwrap().kill();
        other.wait().unwrap();
    }
}
