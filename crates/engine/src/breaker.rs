//! Detects an outage, as opposed to a single bad request, and decides when to give up.

use std::time::Duration;

use super::Backoff;

/// An outage begins after this many consecutive failures, counted over all workers
/// (docs/dev/faults.md, 3.4). The number is a choice: with fewer, a few requests that fail together
/// by accident would stop all others; with more, chunks would lose more attempts to each outage.
const FAILURES_MAX: u32 = 5;

/// Opens after `FAILURES_MAX` consecutive failures. While it is open, the transfer sends one
/// cheap probe at a time and nothing else, until a probe succeeds (docs/dev/faults.md, 3.4). An
/// outage is no reason to abort a bulk transfer: attempts made during one do not count against
/// their chunk, and only the length of the outage decides when to give up.
#[derive(Clone, Debug)]
pub struct Breaker {
    failures: u32,
    /// Probes that failed since the breaker opened; `None` while it is closed.
    probes: Option<u32>,
    /// Time of the first failure since the last success or answered probe.
    failing_since: Option<Duration>,
    /// Time of the first failure since the last success of a request that made progress. An
    /// answered probe does not reset it.
    fruitless_since: Option<Duration>,
    max_outage: Duration,
}

impl Breaker {
    /// A closed breaker that gives up when nothing succeeded for `max_outage`.
    pub fn new(max_outage: Duration) -> Self {
        Self {
            failures: 0,
            probes: None,
            failing_since: None,
            fruitless_since: None,
            max_outage,
        }
    }

    /// Whether only probes may be sent.
    pub fn is_open(&self) -> bool {
        self.probes.is_some()
    }

    /// A request succeeded. Returns whether that ended an outage.
    pub fn succeeded(&mut self) -> bool {
        self.fruitless_since = None;
        self.probed()
    }

    /// A probe was answered. Returns whether that ended an outage. It resets only `failing_since`:
    /// some endpoints answer questions about a drive all day and never accept a chunk, so that an
    /// answered probe proves nothing about chunks.
    pub fn probed(&mut self) -> bool {
        self.failures = 0;
        self.failing_since = None;
        self.probes.take().is_some()
    }

    /// A request failed in a way that neither counts towards an outage nor is progress: for
    /// example, the endpoint asked to wait.
    pub fn stuck(&mut self, now: Duration) {
        self.failing_since.get_or_insert(now);
        self.fruitless_since.get_or_insert(now);
    }

    /// A request failed in a way that an outage could explain. Returns whether this failure opened
    /// the breaker.
    pub fn failed(&mut self, now: Duration) -> bool {
        self.stuck(now);
        self.failures += 1;
        let opens = self.probes.is_none() && self.failures >= FAILURES_MAX;
        if opens {
            self.probes = Some(0);
        }
        opens
    }

    /// Called when the breaker has just opened and after each failed probe: returns how long to
    /// wait before the next probe.
    pub fn next_probe(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let n = self.probes.unwrap_or_default();
        self.probes = Some(n + 1);
        Backoff::TRANSIENT.wait(n + 1, rng)
    }

    /// The time to give up if nothing succeeds before it; `None` while nothing fails, however long
    /// one request takes. Where probes succeed again and again but no chunk does, the outage may
    /// last twice as long.
    pub fn gives_up_at(&self) -> Option<Duration> {
        let silent = self.failing_since?.saturating_add(self.max_outage);
        let fruitless = self
            .fruitless_since?
            .saturating_add(self.max_outage.saturating_mul(2));
        Some(silent.min(fruitless))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_after_consecutive_failures_and_closes_on_success() {
        let mut breaker = Breaker::new(Duration::from_secs(900));
        let now = Duration::from_secs(10);
        assert_eq!(breaker.gives_up_at(), None);
        for _ in 0..4 {
            assert!(!breaker.failed(now));
        }
        assert!(!breaker.succeeded());
        for _ in 0..4 {
            assert!(!breaker.failed(now));
        }
        assert!(breaker.failed(now * 2));
        assert!(!breaker.failed(now * 3));
        assert!(breaker.is_open());
        assert_eq!(breaker.gives_up_at(), Some(Duration::from_secs(910)));
        assert!(breaker.succeeded());
        assert!(!breaker.is_open());
        assert_eq!(breaker.gives_up_at(), None);
    }

    #[test]
    fn the_waits_before_probes_double_up_to_half_a_minute() {
        let mut longest = [Duration::ZERO; 7];
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut breaker = Breaker::new(Duration::from_secs(900));
            while !breaker.failed(Duration::ZERO) {}
            for longest in &mut longest {
                *longest = breaker.next_probe(&mut rng).max(*longest);
            }
        }
        for (longest, ceiling_s) in longest.into_iter().zip([1, 2, 4, 8, 16, 30, 30]) {
            let ceiling = Duration::from_secs(ceiling_s);
            assert!(
                longest <= ceiling && longest >= ceiling.mul_f64(0.9),
                "{longest:?}"
            );
        }
    }
}
