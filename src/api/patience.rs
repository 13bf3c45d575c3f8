//! Distinguishes a slow request from one that hangs: by progress, not by a total time.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;

/// The endpoint may take this long for each MiB of a body after the last byte.
const PER_MIB: Duration = Duration::from_secs(1);

/// Maximum bytes in buffers, ours and the kernel's, when the last byte of a body was handed over:
/// half a MiB in the HTTP client, and what the kernel buffers for a slow connection. On a link of
/// 256 kbit/s that four requests share, this takes a minute.
const BUFFERED_BYTES: u64 = 1 << 20;

/// Maximum time that a connection stays open without a request. It is shorter than the time of our
/// server (10 s) and of nginx (75 s), so that they seldom close a connection while a request is on
/// its way to them. Where a server closes earlier (Apache after 5 s), the HTTP client mostly notices
/// that before it reuses the connection. Otherwise the request counts as broken, and its caller
/// decides whether it is repeated.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(8);

/// How much of a body was handed to the connection.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    sent: Arc<AtomicU64>,
    len: u64,
    began: Instant,
    /// Until when our own limit holds the body back, in ms since it began.
    held_ms: Arc<AtomicU64>,
    /// When its last byte was handed over, in ms since it began.
    done_ms: Arc<AtomicU64>,
}

impl Progress {
    pub(super) fn of(len: u64) -> Self {
        Self {
            sent: Arc::default(),
            len,
            began: Instant::now(),
            held_ms: Arc::default(),
            done_ms: Arc::default(),
        }
    }

    pub(super) fn advance(&self, bytes: u64) {
        let before = self.sent.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) >= self.len {
            self.done_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How long the bytes in buffers may take: twice the time in which as many bytes of the body
    /// were handed over.
    fn buffers_take(&self) -> Duration {
        let took = Duration::from_millis(self.done_ms.load(Ordering::Relaxed));
        let part = 2.0 * BUFFERED_BYTES as f64 / self.len.max(1) as f64;
        took.mul_f64(part.min(1.0))
    }

    /// Reports that the body is held back for `wait`.
    pub(super) fn hold(&self, wait: Duration) {
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let until = self.now_ms().saturating_add(wait);
        self.held_ms.fetch_max(until, Ordering::Relaxed);
    }

    /// For how long it could have moved, as far as our own limit is concerned.
    fn free_for(&self) -> Duration {
        let held = Duration::from_millis(self.held_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(held)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Waits for `answer`, but at most `stall` without progress of the body. After its last byte, the
/// maximum is twice `stall`, plus a second per MiB, plus the time for the bytes in buffers. The
/// kernel may accept some megabytes that never arrive; for those the connection has a limit of its
/// own, `TCP_USER_TIMEOUT` (docs/dev/faults.md, N5). However large the body is, the wait after its
/// last byte is at most `longest`.
pub(super) async fn answer<F: Future>(
    answer: F,
    progress: &Progress,
    stall: Duration,
    longest: Duration,
) -> Result<F::Output, Failure> {
    let mut answer = pin!(answer);
    loop {
        let seen = progress.sent();
        let patience = if seen < progress.len {
            stall
        } else {
            let mib = u32::try_from(progress.len >> 20).unwrap_or(u32::MAX);
            let patience = stall
                .saturating_mul(2)
                .saturating_add(PER_MIB.saturating_mul(mib))
                .saturating_add(progress.buffers_take());
            patience.min(longest)
        };
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(output) => return Ok(output),
            Err(_) if progress.sent() == seen && progress.free_for() >= patience => {
                return Err(Failure::Stalled(patience));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_moving_request_never_times_out() {
        let progress = Progress::of(100);
        let slow = {
            let progress = progress.clone();
            async move {
                for _ in 0..100 {
                    tokio::time::sleep(S * 20).await;
                    progress.advance(1);
                }
            }
        };
        assert_eq!(answer(slow, &progress, S * 30, S * 900).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn buffered_bytes_extend_the_time_of_a_request() {
        let progress = Progress::of(4 << 20);
        let slow = {
            let progress = progress.clone();
            async move {
                // 8 KiB per second, and 800 KiB in buffers.
                for _ in 0..64 {
                    tokio::time::sleep(S * 8).await;
                    progress.advance(1 << 16);
                }
                tokio::time::sleep(S * 100).await;
            }
        };
        assert_eq!(answer(slow, &progress, S * 30, S * 900).await, Ok(()));
        let hang = std::future::pending::<()>();
        let stalled = answer(hang, &progress, S * 30, S * 900).await;
        assert_eq!(stalled, Err(Failure::Stalled(S * (64 + 256))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_request_times_out() {
        let progress = Progress::of(3 << 20);
        let hang = std::future::pending::<()>();
        assert_eq!(
            answer(hang, &progress, S * 30, S * 900).await,
            Err(Failure::Stalled(S * 30))
        );
        // Everything at once, so the bytes in buffers take negligible time.
        let progress = Progress::of(3 << 20);
        progress.advance(3 << 20);
        let hang = std::future::pending::<()>();
        assert_eq!(
            answer(hang, &progress, S * 30, S * 900).await,
            Err(Failure::Stalled(S * 63))
        );
        // The outage limit is shorter than that.
        let hang = std::future::pending::<()>();
        assert_eq!(
            answer(hang, &progress, S * 30, S * 40).await,
            Err(Failure::Stalled(S * 40))
        );
    }
}
