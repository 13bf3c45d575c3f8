//! Which waits are worth a line. A run that waits must say so, and a run that tries again
//! every second must not say it every second.

use std::time::Duration;

/// Shorter outages, and shorter waits, are not reported: nobody would have noticed.
const WORTH: Duration = Duration::from_secs(3);
/// While nothing changes, a line is repeated after this long, with the time that is left.
const REPEAT: Duration = Duration::from_secs(60);
/// Another reason is reported after this long.
const OTHER: Duration = Duration::from_secs(10);

/// What a run waits for, as far as deciding about a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<'a> {
    /// Why, in words that stay the same as long as the reason does.
    pub why: &'a str,
    /// When the next attempt is due.
    pub next: Duration,
    /// Whether the endpoint asked for the wait.
    pub is_asked: bool,
    /// Whether it is worth a line at once: what fails is certainly not one request.
    pub is_outage: bool,
}

/// Decides which waits of a run are reported.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// When the first failure since the last success was.
    since: Option<Duration>,
    /// The last line since then: when it was, why, and until when it holds.
    last: Option<(Duration, String, Duration)>,
}

impl Waits {
    /// Something failed and is tried again. Whether that is worth a line.
    pub fn failed(&mut self, told: Told<'_>, now: Duration) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_long = told.next >= now.saturating_add(WORTH);
        let is_worth = is_long || told.is_outage || now >= since.saturating_add(WORTH);
        let is_due = match &self.last {
            None => true,
            // Each wait that was asked for is one of its own, once the last one is over.
            Some((_, _, until)) if told.is_asked && is_long && now >= *until => true,
            Some((at, why, _)) if why == told.why => now >= at.saturating_add(REPEAT),
            Some((at, ..)) => now >= at.saturating_add(OTHER),
        };
        if !(is_worth && is_due) {
            return false;
        }
        self.last = Some((now, told.why.to_owned(), told.next));
        true
    }

    /// Something succeeded. How long that had been waited for, if it was reported.
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

    fn told(why: &str, next: Duration) -> Told<'_> {
        Told {
            why,
            next,
            is_asked: false,
            is_outage: false,
        }
    }

    #[test]
    fn a_hiccup_is_not_worth_a_line() {
        let mut waits = Waits::default();
        for now in [S, 2 * S, 3 * S] {
            assert!(!waits.failed(told("502", now + S), now));
        }
        assert_eq!(waits.succeeded(3 * S), None);
        // Nor is one that follows soon: they are not one outage.
        assert!(!waits.failed(told("502", 6 * S), 5 * S));
    }

    #[test]
    fn an_outage_is_one_line_a_minute_and_one_at_its_end() {
        let mut waits = Waits::default();
        let mut lines = Vec::new();
        for s in 0..150 {
            if waits.failed(told("502", (s + 1) * S), s * S) {
                lines.push(s);
            }
        }
        assert_eq!(lines, [3, 63, 123]);
        assert_eq!(waits.succeeded(150 * S), Some(150 * S));
        assert_eq!(waits.succeeded(151 * S), None);
    }

    #[test]
    fn a_wait_that_is_asked_for_is_a_line_of_its_own() {
        let mut waits = Waits::default();
        let asks = |next| Told {
            is_asked: true,
            ..told("429", next)
        };
        assert!(waits.failed(asks(31 * S), S));
        // All workers are told at the same time.
        assert!(!waits.failed(asks(31 * S), S));
        assert!(!waits.failed(asks(33 * S), 2 * S));
        assert!(waits.failed(asks(61 * S), 31 * S));
        assert!(!waits.failed(asks(62 * S), 61 * S), "a second is no wait");
    }

    #[test]
    fn another_reason_is_reported_but_not_each_of_two_that_alternate() {
        let mut waits = Waits::default();
        let is_outage = true;
        let outage = |why, next| Told {
            is_outage,
            ..told(why, next)
        };
        assert!(waits.failed(outage("502", 2 * S), S));
        assert!(!waits.failed(outage("refused", 3 * S), 2 * S));
        assert!(waits.failed(outage("refused", 13 * S), 12 * S));
        assert!(!waits.failed(outage("502", 14 * S), 13 * S));
    }
}
