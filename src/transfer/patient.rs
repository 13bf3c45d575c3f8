//! Single requests that may be repeated: what is not a chunk.

use std::future::Future;

use crate::failure::Failure;
use crate::policy::{Attempts, Operation};

/// Attempts at such a request: three in about ten seconds.
pub(crate) const CALL_ATTEMPTS: u32 = 3;

/// Makes attempts at a reading request until one succeeds, the failure is
/// permanent, or there were `max`.
pub(crate) async fn patiently<T, F>(
    max: u32,
    rng: &mut fastrand::Rng,
    mut request: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut attempts = Attempts::at_most(max);
    loop {
        let failure = match request().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        match attempts.failed(Operation::Read, &failure, rng) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(failure),
        }
    }
}
