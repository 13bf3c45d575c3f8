//! Work that goes on when its client has gone.

use tokio::task::{JoinError, spawn_blocking};

use openhosting_tenancy::Refusal;

type Result<T> = std::result::Result<T, Refusal>;

/// Does `work` where it may block. It goes on when the client has gone.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    let work = spawn_blocking(move || span.in_scope(work));
    work.await.unwrap_or_else(|error| Err(broke_off(&error)))
}

/// Does `work`, which goes on when the client has gone.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(broke_off(&error)))
}

/// What is answered for a command whose task did not come to its end.
fn broke_off(error: &JoinError) -> Refusal {
    tracing::error!(%error, "A command broke off");
    Refusal::system("Internal fault of the server, its log tells more")
}
