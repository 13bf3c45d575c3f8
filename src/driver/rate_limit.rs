//! The limit of bytes per second: a token bucket with its clock and its lock.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::Meter;
use crate::locks::lock;
use crate::policy::TokenBucket;

/// A limit that several clients share.
#[derive(Debug)]
pub struct RateLimit {
    rate: NonZeroU64,
    bucket: Mutex<TokenBucket>,
    began: Instant,
}

impl RateLimit {
    /// At most `rate` bytes of bodies per second.
    pub fn meter(rate: NonZeroU64) -> Arc<dyn Meter> {
        Arc::new(Self {
            rate,
            bucket: Mutex::new(TokenBucket::new(rate)),
            began: Instant::now(),
        })
    }
}

impl Meter for RateLimit {
    fn step_bytes(&self) -> usize {
        let bucket = lock(&self.bucket);
        usize::try_from(bucket.step_bytes()).unwrap_or(usize::MAX)
    }

    fn take(&self, bytes: usize) -> Duration {
        let mut bucket = lock(&self.bucket);
        bucket.take(bytes as u64, self.began.elapsed())
    }

    fn bytes_per_s(&self) -> Option<u64> {
        Some(self.rate.get())
    }
}
