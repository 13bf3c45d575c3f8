//! How long to wait before another attempt.

use std::time::Duration;

/// Full jitter: the wait is drawn uniformly between zero and `base * 2^n`, at most `cap`
/// (docs/dev/faults.md, 3.4). Without the jitter, workers that failed together would also come back
/// together, and overload the endpoint again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// For faults of the network or the endpoint.
    pub const TRANSIENT: Self = Self {
        base: Duration::from_millis(500),
        cap: Duration::from_secs(30),
    };
    /// For a busy drive, or an endpoint that asks for fewer requests.
    pub const THROTTLE: Self = Self {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(60),
    };

    /// The wait after failure number `n`, counted from 0.
    pub fn wait(self, n: u32, rng: &mut fastrand::Rng) -> Duration {
        self.ceiling(n).mul_f64(rng.f64())
    }

    /// The longest wait that [`Backoff::wait`] can return for failure number `n`.
    pub fn ceiling(self, n: u32) -> Duration {
        self.base.saturating_mul(1 << n.min(16)).min(self.cap)
    }
}

/// A wait that obeys the endpoint's `Retry-After`: never shorter, and up to a tenth longer, so that
/// the workers do not return all at once. The caller decides whether there is time for it.
pub(super) fn obey(retry_after: Duration, wait: Duration, rng: &mut fastrand::Rng) -> Duration {
    let spread = retry_after.mul_f64(rng.f64() / 10.0);
    retry_after.saturating_add(spread).max(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_stays_below_its_ceiling_and_the_cap(n in any::<u32>(), seed in any::<u64>()) {
            let mut rng = fastrand::Rng::with_seed(seed);
            for backoff in [Backoff::TRANSIENT, Backoff::THROTTLE] {
                let wait = backoff.wait(n, &mut rng);
                prop_assert!(wait <= backoff.ceiling(n));
                prop_assert!(backoff.ceiling(n) <= backoff.cap);
            }
        }

        #[test]
        fn retry_after_is_obeyed(asked in any::<u32>(), seed in any::<u64>()) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (asked, least) = (Duration::from_secs(asked.into()), Duration::from_secs(2));
            let wait = obey(asked, least, &mut rng);
            prop_assert!(wait >= asked.max(least));
            prop_assert!(wait <= asked.mul_f64(1.1).max(least));
        }
    }
}
