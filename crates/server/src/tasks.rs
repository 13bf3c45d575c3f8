//! Work that continues after its client has gone.

use tokio::task::{JoinError, spawn_blocking};

use openhosting_tenancy::Refusal;

type Result<T> = std::result::Result<T, Refusal>;

/// Runs `work` on a thread that may block. It continues if the client goes away.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    let work = spawn_blocking(move || span.in_scope(work));
    work.await.unwrap_or_else(|error| Err(broke_off(&error)))
}

/// Runs `work`, which continues if the client goes away.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(broke_off(&error)))
}

/// The answer to a command whose task did not complete.
fn broke_off(error: &JoinError) -> Refusal {
    tracing::error!(%error, "A command broke off");
    Refusal::system("Internal fault of the server; its log has the details")
}
