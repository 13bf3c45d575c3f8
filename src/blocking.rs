//! Blocking work, on threads outside of the async runtime.

use std::thread::{Builder, JoinHandle};

use crate::error::{Error, ErrorKind, Result};

/// Starts a thread that works until it is joined, or as long as it has something to do.
pub(crate) fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|cause| Error::new(ErrorKind::Local, "Cannot start a thread").because(cause))
}

/// Runs blocking work on another thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // One thread does everything, so that a seed determines the order.
    #[cfg(test)]
    if crate::simulator::is_on() {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|cause| Err(Error::new(ErrorKind::Bug, "A thread panicked").because(cause)))
}
