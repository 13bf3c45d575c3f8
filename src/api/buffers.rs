//! Estimates how many bytes of bodies are in the buffers of HTTP and TLS, between the time when
//! they were handed over and the time when the system accepts them. It is the same number of bytes
//! for each body on any link, and it drains after the rest of the body was handed over.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::locks::lock;
use tokio::time::Instant;

/// Maximum bytes of a body in these buffers. It does not depend on the link.
const BUFFER_BYTES: u64 = 448 * 1024;

/// The buffered bytes of all bodies of a client; clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Bytes of bodies that are not handed over completely.
    bytes: u64,
    draining: Vec<Draining>,
}

/// The buffered bytes of a body that was handed over: they drain at the rate of the body.
#[derive(Debug)]
struct Draining {
    bytes: u64,
    since: Instant,
    takes: Duration,
}

impl Draining {
    fn left(&self, now: Instant) -> u64 {
        let gone_for = now.saturating_duration_since(self.since);
        if gone_for >= self.takes {
            return 0;
        }
        let gone = gone_for.as_secs_f64() / self.takes.as_secs_f64();
        // Between 0 and all of them.
        (self.bytes as f64 * (1.0 - gone)) as u64
    }
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.0)
    }

    /// The number of buffered bytes.
    pub(super) fn bytes(&self, now: Instant) -> u64 {
        let kept = self.lock();
        let draining = kept.draining.iter().map(|body| body.left(now));
        kept.bytes.saturating_add(draining.sum())
    }
}

/// The buffered bytes of one body.
#[derive(Debug)]
pub(super) struct Buffer {
    buffers: Buffers,
    kept: u64,
    handed: u64,
    began: Option<Instant>,
}

impl Buffer {
    pub(super) fn new(buffers: Buffers) -> Self {
        Self {
            buffers,
            kept: 0,
            handed: 0,
            began: None,
        }
    }

    /// Reports that more of the body was handed over.
    pub(super) fn hand_over(&mut self, bytes: u64) {
        self.began.get_or_insert_with(Instant::now);
        self.handed = self.handed.saturating_add(bytes);
        let kept = self.handed.min(BUFFER_BYTES);
        let mut buffers = self.buffers.lock();
        buffers.bytes = buffers.bytes.saturating_add(kept.saturating_sub(self.kept));
        self.kept = kept;
    }
}

impl Drop for Buffer {
    /// The body was handed over completely, or the request failed.
    fn drop(&mut self) {
        let mut kept = self.buffers.lock();
        kept.bytes = kept.bytes.saturating_sub(self.kept);
        let carried = self.handed.saturating_sub(self.kept);
        // A body that fit the buffers completely says nothing about the link.
        if let Some(began) = self.began
            && carried > 0
        {
            let since = Instant::now();
            let took = since.saturating_duration_since(began);
            // Neither does the time of a short remainder.
            let part = (self.kept as f64 / carried as f64).min(1.0);
            kept.draining.retain(|body| body.left(since) > 0);
            kept.draining.push(Draining {
                bytes: self.kept,
                since,
                takes: took.mul_f64(part),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn buffered_bytes_drain_at_the_rate_of_the_body() {
        let buffers = Buffers::default();
        let kept = || buffers.bytes(Instant::now());
        let mut body = Buffer::new(buffers.clone());
        body.hand_over(BUFFER_BYTES / 2);
        assert_eq!(kept(), BUFFER_BYTES / 2);
        tokio::time::sleep(Duration::from_secs(4)).await;
        body.hand_over(BUFFER_BYTES / 2 + 2 * BUFFER_BYTES);
        assert_eq!(kept(), BUFFER_BYTES);
        // Twice as many bytes have moved in 4 seconds.
        drop(body);
        assert_eq!(kept(), BUFFER_BYTES);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(kept(), BUFFER_BYTES / 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(kept(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_body_drains_soon_and_an_unsent_one_leaves_nothing_buffered() {
        let buffers = Buffers::default();
        let mut body = Buffer::new(buffers.clone());
        drop(Buffer::new(buffers.clone()));
        body.hand_over(1000);
        drop(body);
        assert_eq!(buffers.bytes(Instant::now()), 0);
        // A body that is hardly larger drains in at most the time that it took.
        let mut body = Buffer::new(buffers.clone());
        body.hand_over(BUFFER_BYTES);
        tokio::time::sleep(Duration::from_secs(1)).await;
        body.hand_over(100);
        drop(body);
        assert_eq!(buffers.bytes(Instant::now()), BUFFER_BYTES);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(buffers.bytes(Instant::now()), 0);
    }
}
