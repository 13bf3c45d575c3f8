//! Checks what the system must grant this process before it can start.

use std::sync::RwLock;
use std::thread::{Builder, available_parallelism, scope};

use crate::error::{Error, ErrorKind, Result};

/// Maximum file descriptors for the start: the async runtime, signals, the terminal, a first
/// connection.
const DESCRIPTORS: usize = 32;

/// Checks that there are enough descriptors and threads for a runtime, which would otherwise panic
/// while it starts.
///
/// # Errors
/// [`ErrorKind::Local`], with the limit to raise.
pub(super) fn check() -> Result<()> {
    // Each pipe uses two descriptors, and unlike /dev/null it exists in every container.
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

/// Runs this many threads concurrently, for a moment.
fn start_threads(count: usize) -> std::io::Result<()> {
    let gate = RwLock::new(());
    scope(|scope| {
        // Every thread waits until all have started, or one could not be started.
        let closed = gate.write();
        let started = (0..count).try_for_each(|_| {
            let thread = Builder::new().spawn_scoped(scope, || drop(gate.read()));
            thread.map(drop)
        });
        drop(closed);
        started
    })
}
