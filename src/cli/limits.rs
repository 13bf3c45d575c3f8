//! What the system must grant this process before it can start.

use std::sync::RwLock;
use std::thread::{Builder, available_parallelism, scope};

use crate::error::{Error, ErrorKind, Result};

/// File descriptors that a start takes at most: the reactor, signals, the terminal,
/// a first connection.
const DESCRIPTORS: usize = 32;

/// Checks that there are descriptors and threads for a runtime. Without this check the
/// runtime would panic where they run out while it starts.
///
/// # Errors
/// [`ErrorKind::Local`], with the limit to raise.
pub(super) fn check() -> Result<()> {
    // Each pipe is two of them, and needs no file that a container may lack, as /dev/null.
    (0..DESCRIPTORS / 2)
        .map(|_| std::io::pipe())
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|cause| {
            let what = format!("Cannot start: {DESCRIPTORS} files cannot be open at once");
            Error::new(ErrorKind::Local, what)
                .because(cause)
                .hint_to("Raise the limit of open files: ulimit -n 1024")
        })?;
    let threads = available_parallelism().map_or(1, usize::from) + 1;
    start_threads(threads).map_err(|cause| {
        let what = format!("Cannot start: {threads} threads cannot run at once");
        Error::new(ErrorKind::Local, what).because(cause).hint_to(
            "Raise the limit of processes and threads: ulimit -u, or pids.max of the container",
        )
    })
}

/// Runs this many threads at the same time, for a moment.
fn start_threads(count: usize) -> std::io::Result<()> {
    let gate = RwLock::new(());
    scope(|scope| {
        // Every thread waits at the gate until all have started, or one could not.
        let closed = gate.write();
        let started = (0..count).try_for_each(|_| {
            let thread = Builder::new().spawn_scoped(scope, || drop(gate.read()));
            thread.map(drop)
        });
        drop(closed);
        started
    })
}
