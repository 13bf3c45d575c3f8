//! Decides which waits are worth a line of output. A run that waits must say so, but a run that
//! tries again every second must not say so every second.

use std::time::Duration;

/// Shorter outages and shorter waits are not reported: nobody would have noticed them.
const WORTH: Duration = Duration::from_secs(3);
/// While nothing changes, the line is repeated after this long, with the time that is left.
const REPEAT: Duration = Duration::from_secs(60);
/// A different reason is reported after this long.
const OTHER: Duration = Duration::from_secs(10);

/// A wait of a run, as far as it matters for reporting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait<'a> {
    /// The reason, in words that stay the same as long as the reason does.
    pub why: &'a str,
    /// When the next attempt is due.
    pub next: Duration,
    /// Whether the endpoint asked for the wait.
    pub is_asked: bool,
    /// Whether to report it at once, because more than a single request fails.
    pub is_outage: bool,
}

/// Decides which waits of a run are reported.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// Time of the first failure since the last success.
    since: Option<Duration>,
    /// The last line since then: its time, its reason, and until when the wait lasts.
    last: Option<(Duration, String, Duration)>,
}

impl Waits {
    /// A request failed and will be repeated. Returns whether to report the wait.
    pub fn failed(&mut self, wait: Wait<'_>, now: Duration) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_long = wait.next >= now.saturating_add(WORTH);
        let is_worth = is_long || wait.is_outage || now >= since.saturating_add(WORTH);
        let is_due = match &self.last {
            None => true,
            // Each wait that the endpoint asks for is reported, once the one before is over.
            Some((_, _, until)) if wait.is_asked && is_long && now >= *until => true,
            Some((at, why, _)) if why == wait.why => now >= at.saturating_add(REPEAT),
            Some((at, ..)) => now >= at.saturating_add(OTHER),
        };
        if !(is_worth && is_due) {
            return false;
        }
        self.last = Some((now, wait.why.to_owned(), wait.next));
        true
    }

    /// A request succeeded. Returns how long that took since the first failure, if a line was
    /// written about it.
    pub fn succeeded(&mut self, now: Duration) -> Option<Duration> {
        let since = self.since.take()?;
        self.last.take()?;
        Some(now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn wait(why: &str, next: Duration) -> Wait<'_> {
        Wait {
            why,
            next,
            is_asked: false,
            is_outage: false,
        }
    }

    #[test]
    fn a_short_wait_is_not_reported() {
        let mut waits = Waits::default();
        for now in [S, 2 * S, 3 * S] {
            assert!(!waits.failed(wait("502", now + S), now));
        }
        assert_eq!(waits.succeeded(3 * S), None);
        // A failure soon after a success is a new outage.
        assert!(!waits.failed(wait("502", 6 * S), 5 * S));
    }

    #[test]
    fn an_outage_is_reported_once_a_minute_and_at_its_end() {
        let mut waits = Waits::default();
        let mut lines = Vec::new();
        for s in 0..150 {
            if waits.failed(wait("502", (s + 1) * S), s * S) {
                lines.push(s);
            }
        }
        assert_eq!(lines, [3, 63, 123]);
        assert_eq!(waits.succeeded(150 * S), Some(150 * S));
        assert_eq!(waits.succeeded(151 * S), None);
    }

    #[test]
    fn a_requested_wait_is_reported_on_its_own_line() {
        let mut waits = Waits::default();
        let asks = |next| Wait {
            is_asked: true,
            ..wait("429", next)
        };
        assert!(waits.failed(asks(31 * S), S));
        // All workers get this answer at the same time.
        assert!(!waits.failed(asks(31 * S), S));
        assert!(!waits.failed(asks(33 * S), 2 * S));
        assert!(waits.failed(asks(61 * S), 31 * S));
        assert!(!waits.failed(asks(62 * S), 61 * S), "a second is no wait");
    }

    #[test]
    fn a_new_reason_is_reported_but_alternating_ones_are_not() {
        let mut waits = Waits::default();
        let is_outage = true;
        let outage = |why, next| Wait {
            is_outage,
            ..wait(why, next)
        };
        assert!(waits.failed(outage("502", 2 * S), S));
        assert!(!waits.failed(outage("refused", 3 * S), 2 * S));
        assert!(waits.failed(outage("refused", 13 * S), 12 * S));
        assert!(!waits.failed(outage("502", 14 * S), 13 * S));
    }
}
