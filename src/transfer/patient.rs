//! Single requests that may be repeated: what is not a chunk.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

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
            Some(wait) => sleep(wait).await,
            None => return Err(failure),
        }
    }
}

/// How long to go on with a request that is made again until an outage is too long.
pub(super) struct Patience {
    operation: Operation,
    attempts: Attempts,
    max_outage: Duration,
    since: Instant,
    rng: fastrand::Rng,
}

impl Patience {
    pub(super) fn new(operation: Operation, max_outage: Duration) -> Self {
        Self {
            operation,
            attempts: Attempts::at_most(u32::MAX),
            max_outage,
            since: Instant::now(),
            rng: fastrand::Rng::new(),
        }
    }

    /// Something came.
    pub(super) fn reset(&mut self) {
        self.attempts = Attempts::at_most(u32::MAX);
        self.since = Instant::now();
    }

    /// Waits before another attempt, or gives the failure back if there is none.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        match self
            .attempts
            .failed(self.operation, &failure, &mut self.rng)
        {
            Some(wait) if self.since.elapsed() + wait < self.max_outage => {
                tracing::debug!(%failure, "attempt");
                sleep(wait).await;
                Ok(())
            }
            _ => Err(failure),
        }
    }
}
