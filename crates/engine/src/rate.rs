//! Decides when bytes may move, for a transfer with a limit in bytes per second.

use std::num::NonZeroU64;
use std::time::Duration;

/// Bytes that may move at once after a pause, expressed as time at the limit. Long enough not to
/// lose time between two requests, and short enough not to disturb others with a burst.
const BURST: Duration = Duration::from_millis(100);
/// Bytes are reserved in steps; this is the number of steps in a second.
const STEPS_PER_S: u64 = 10;
/// Minimum bytes of a step. Smaller steps cost more than they smooth.
const STEP_BYTES_MIN: u64 = 1024;

/// A token bucket as a queue of reservations: the first to ask is the first to go, and each caller
/// learns how long to wait. All workers share it.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: NonZeroU64,
    /// When all reserved bytes have had their time.
    paid_at: Duration,
}

impl TokenBucket {
    /// A bucket with `rate` bytes per second.
    pub fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            paid_at: Duration::ZERO,
        }
    }

    /// How many bytes to reserve at a time.
    pub fn step_bytes(&self) -> u64 {
        (self.rate.get() / STEPS_PER_S).max(STEP_BYTES_MIN)
    }

    /// Reserves `bytes`, and returns how long to wait before they may move.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let from = self.paid_at.max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.paid_at = from.saturating_add(Duration::from_nanos(nanos));
        from.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn bucket(rate: u64) -> TokenBucket {
        TokenBucket::new(NonZeroU64::new(rate).unwrap())
    }

    #[test]
    fn the_average_rate_equals_the_limit() {
        let mut bucket = bucket(1_000_000);
        let mut random = fastrand::Rng::with_seed(3);
        let (mut now, mut moved) = (Duration::ZERO, 0);
        while now < S * 60 {
            let bytes = random.u64(1..bucket.step_bytes());
            now += bucket.take(bytes, now);
            moved += bytes;
        }
        assert!((59_000_000..=60_300_000).contains(&moved), "{moved}");
    }

    #[test]
    fn a_pause_does_not_allow_a_burst_afterwards() {
        let mut bucket = bucket(1000);
        assert_eq!(bucket.take(1000, Duration::ZERO), Duration::ZERO);
        assert_eq!(bucket.take(1000, Duration::ZERO), S);
        // After an hour, a tenth of a second's bytes may move at once, and no more.
        let now = S * 3600;
        assert_eq!(bucket.take(100, now), Duration::ZERO);
        assert_eq!(bucket.take(1000, now), Duration::ZERO);
        assert_eq!(bucket.take(1, now), S);
    }

    #[test]
    fn a_step_is_a_tenth_of_a_second_unless_that_is_too_small() {
        assert_eq!(bucket(1_000_000).step_bytes(), 100_000);
        assert_eq!(bucket(1000).step_bytes(), 1024);
    }

    #[test]
    fn requests_are_admitted_in_order() {
        let mut bucket = bucket(1000);
        let waits = [0; 5].map(|_| bucket.take(500, S * 10).as_millis());
        assert_eq!(waits, [0, 400, 900, 1400, 1900]);
    }
}
