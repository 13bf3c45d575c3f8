//! Blocking work, on threads outside of the async runtime.

use crate::error::{Error, ErrorKind, Result};

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
