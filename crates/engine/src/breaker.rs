//! Tells an outage from a bad request, and when to give up.

use std::time::Duration;

use super::Backoff;

/// Failures in a row, over all workers, that make an outage.
const FAILURES_MAX: u32 = 5;

/// Opens after a row of failures: then nothing is sent but one cheap probe at a
/// time, until one succeeds (docs/dev/faults.md, 3.4). An outage is no reason to abort a bulk
/// transfer, so attempts made during one do not count against a chunk; only its
/// length does.
#[derive(Clone, Debug)]
pub struct Breaker {
    failures: u32,
    /// Probes that failed since it opened; `None` while it is closed.
    probes: Option<u32>,
    /// When the first failure since the last success was.
    failing_since: Option<Duration>,
    /// As above, but probes that were answered do not count.
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

    /// Something succeeded. True if that ended an outage.
    pub fn succeeded(&mut self) -> bool {
        self.fruitless_since = None;
        self.probed()
    }

    /// A probe was answered. True if that ended an outage. It says nothing of
    /// what a transfer needs: there are endpoints that tell about a drive all day
    /// and never take a chunk.
    pub fn probed(&mut self) -> bool {
        self.failures = 0;
        self.failing_since = None;
        self.probes.take().is_some()
    }

    /// A request failed in a way that says nothing about an outage but is no
    /// progress either: the endpoint asked for patience.
    pub fn stuck(&mut self, now: Duration) {
        self.failing_since.get_or_insert(now);
        self.fruitless_since.get_or_insert(now);
    }

    /// A request failed in a way that an outage could explain. True if that
    /// opened the breaker.
    pub fn failed(&mut self, now: Duration) -> bool {
        self.stuck(now);
        self.failures += 1;
        let opens = self.probes.is_none() && self.failures >= FAILURES_MAX;
        if opens {
            self.probes = Some(0);
        }
        opens
    }

    /// A probe failed, or the breaker just opened: how long to wait before the
    /// next probe.
    pub fn next_probe(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let n = self.probes.unwrap_or_default();
        self.probes = Some(n + 1);
        Backoff::TRANSIENT.wait(n + 1, rng)
    }

    /// The moment to give up if nothing succeeds until then; `None` while all is
    /// well, however long one request takes. An outage that probes call over time
    /// and again, while no chunk gets through, may last twice as long.
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
    fn opens_after_a_row_and_closes_on_success() {
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
}
