//! Decides which failures are worth another attempt: one table, with the reason beside each line
//! (docs/dev/faults.md, 3.1 and docs/dev/faults.md, 3.2).

use std::time::Duration;

use super::Breaker;
use super::backoff::{Backoff, obey};
use crate::failure::{Failure, Refusal, Transient};
use crate::wire::ErrorType;

/// What a request does, as far as it matters for repeating it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Only reads. It can always be repeated.
    Read,
    /// Writes given bytes to a given position. Repeating it changes nothing.
    Write,
    /// Creates a drive. Repeating it would create another one.
    Create,
}

/// How to react to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Another attempt cannot help.
    Permanent,
    /// Another attempt soon; the number of attempts is not limited.
    Transient,
    /// Another attempt, but only a few: the failure may be permanent.
    Doubtful,
    /// Another attempt later, and every worker waits.
    Throttle,
    /// The drive is in use, perhaps by our own other requests: another attempt later, with fewer
    /// requests in flight.
    Busy,
    /// It is unknown what the endpoint did: find out before repeating the request.
    Ambiguous,
}

/// Maximum attempts at a request whose failure may be permanent (docs/dev/faults.md, 3.2). The
/// number is a choice: a failure that is permanent is reported after the few seconds that these
/// attempts take.
pub(super) const DOUBTFUL_ATTEMPTS: u32 = 4;

/// Classifies a `failure` of `operation`.
pub fn classify(operation: Operation, failure: &Failure) -> Class {
    match by_answer(failure) {
        // It is certain that nothing was done, or a repetition is harmless.
        class @ (Class::Permanent | Class::Busy) => class,
        class if operation != Operation::Create || !failure.is_ambiguous() => class,
        _ => Class::Ambiguous,
    }
}

fn by_answer(failure: &Failure) -> Class {
    match failure {
        Failure::Connect(_) | Failure::Broken(_) | Failure::Stalled(_) => Class::Transient,
        // A wrong clock, a wrong name or a wrong port; waiting does not help.
        Failure::NoServer(_) | Failure::Certificate(_) | Failure::Barred(_) => Class::Permanent,
        // A proxy's error page may be gone in a moment, and an answer that was cut short is usually
        // complete the next time. If not, that is how the endpoint answers.
        Failure::NotApi(_) | Failure::WrongLength(_) => Class::Doubtful,
        Failure::Refused(refusal) => by_status(refusal),
    }
}

fn by_status(refusal: &Refusal) -> Class {
    // The endpoint asks to come back later: it is overloaded, or we were too slow for it, whatever
    // error type it gives.
    let is_asked = refusal.status == 503 && refusal.retry_after.is_some();
    let transient = Transient::of(refusal.status);
    if is_asked || transient == Some(Transient::Pace) {
        return Class::Throttle;
    }
    // The error type is more precise than the status: 500 has two meanings.
    match refusal.error {
        Some(ErrorType::Busy) => return Class::Busy,
        // The command failed on the endpoint, and may fail again.
        Some(ErrorType::Failed) => return Class::Doubtful,
        Some(ErrorType::System) => return Class::Transient,
        Some(
            ErrorType::Usage
            | ErrorType::Auth
            | ErrorType::Billing
            | ErrorType::Missing
            | ErrorType::Method
            | ErrorType::Full,
        ) => return Class::Permanent,
        // Unknown or no error type: the status decides.
        None => {}
    }
    match (refusal.status, transient) {
        (409, _) => Class::Busy,
        (_, Some(_)) => Class::Transient,
        (_, None) => Class::Permanent,
    }
}

/// As [`classify`], once the endpoint has given an answer of the API in this run.
///
/// The same failure then has another meaning. The address and the certificate were right a moment
/// ago, so whatever answers now stands in between (a captive portal, an error page of a front, an
/// inspecting proxy), and may go away again. That is an outage.
pub fn classify_known(operation: Operation, failure: &Failure) -> Class {
    match classify(operation, failure) {
        Class::Permanent | Class::Doubtful if failure.is_foreign() => Class::Transient,
        class => class,
    }
}

/// Whether the endpoint refused a key of the request, or a value. Of the error types, only `usage` is
/// about the input of a call; the others are about the account, the drive, the call itself, or the
/// room that is left (docs/dev/reference.md, 3.1). Which key it is about is unknown, because the
/// sentence in the body is free text.
pub fn is_about_input(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal)
        if (refusal.status, refusal.error) == (400, Some(ErrorType::Usage)))
}

/// What to do after a failed attempt at a single request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Make another attempt after this wait.
    Again(Duration),
    /// Stop: another attempt cannot help.
    Refused,
    /// Make no attempt before finding out what the endpoint did. Only for [`Operation::Create`].
    Unclear,
    /// Stop for now: the outage lasted longer than allowed, or the endpoint asks to come back later
    /// than that.
    GaveUp,
}

/// The attempts at requests that are made outside of a transfer's engine: info, list, create, set,
/// destroy. An outage may last as long as for chunks.
#[derive(Clone, Debug)]
pub struct Attempts {
    breaker: Breaker,
    max_outage: Duration,
    deadline: Option<Duration>,
    /// Failures since the last answer.
    failures: u32,
    /// Failures that may be permanent.
    doubtful: u32,
}

impl Attempts {
    /// Attempts that give up after `max_outage` without success.
    pub fn new(max_outage: Duration) -> Self {
        Self {
            breaker: Breaker::new(max_outage),
            max_outage,
            deadline: None,
            failures: 0,
            doubtful: 0,
        }
    }

    /// The same attempts in a run that ends at `deadline`: no wait goes beyond it.
    #[must_use]
    pub fn until(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// The endpoint answered, which ends an outage.
    pub fn answered(&mut self) {
        self.breaker.succeeded();
        (self.failures, self.doubtful) = (0, 0);
    }

    /// An attempt at `operation` failed. `is_known` says whether the endpoint has given an answer
    /// of the API before in this run.
    pub fn failed(
        &mut self,
        operation: Operation,
        failure: &Failure,
        is_known: bool,
        now: Duration,
        rng: &mut fastrand::Rng,
    ) -> Next {
        let class = match is_known {
            true => classify_known(operation, failure),
            false => classify(operation, failure),
        };
        if class == Class::Permanent {
            return Next::Refused;
        }
        self.breaker.stuck(now);
        self.failures += 1;
        match class {
            Class::Ambiguous => return Next::Unclear,
            Class::Doubtful => {
                self.doubtful += 1;
                if self.doubtful >= DOUBTFUL_ATTEMPTS {
                    return Next::Refused;
                }
            }
            Class::Permanent | Class::Transient | Class::Throttle | Class::Busy => {}
        }
        let end = self.gives_up_at().unwrap_or(now);
        match (now < end && fits(failure, now, end), class) {
            (true, _) => {
                let wait = wait(class, failure, self.failures - 1, rng);
                // The last attempt is made when the time is over, not before.
                Next::Again(wait.min(end.saturating_sub(now)))
            }
            // A drive that something else uses is no outage.
            (false, Class::Doubtful | Class::Busy) => Next::Refused,
            (false, _) => Next::GaveUp,
        }
    }

    /// When the attempts end if none succeeds before; `None` while nothing fails.
    pub fn gives_up_at(&self) -> Option<Duration> {
        let outage = self.breaker.gives_up_at()?;
        Some(self.deadline.map_or(outage, |at| outage.min(at)))
    }

    /// How long an outage may last.
    pub fn max_outage(&self) -> Duration {
        self.max_outage
    }
}

/// Whether the wait that the endpoint asks for ends before `end`.
pub(super) fn fits(failure: &Failure, now: Duration, end: Duration) -> bool {
    failure
        .retry_after()
        .is_none_or(|asked| now.saturating_add(asked) <= end)
}

/// How long to wait after failure number `n` of one request.
pub(super) fn wait(class: Class, failure: &Failure, n: u32, rng: &mut fastrand::Rng) -> Duration {
    let backoff = match class {
        Class::Throttle | Class::Busy => Backoff::THROTTLE,
        _ => Backoff::TRANSIENT,
    };
    let wait = backoff.wait(n, rng);
    match failure {
        Failure::Refused(Refusal {
            retry_after: Some(asked),
            ..
        }) => obey(*asked, wait, rng),
        _ => wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::HTML_PAGE;

    pub(crate) fn refused(status: u16, error: Option<ErrorType>) -> Failure {
        Failure::Refused(Refusal {
            status,
            error,
            message: String::new(),
            retry_after: None,
        })
    }

    fn asks_to_wait(status: u16, error: Option<ErrorType>) -> Failure {
        match refused(status, error) {
            Failure::Refused(refusal) => Failure::Refused(Refusal {
                retry_after: Some(S),
                ..refusal
            }),
            other => other,
        }
    }

    #[test]
    fn each_failure_has_the_documented_reaction() {
        use Class::{Ambiguous, Busy, Doubtful, Permanent, Throttle, Transient};
        use ErrorType as E;
        // Each failure with its class for a write (the same as for a read) and for a create.
        let table = [
            (Failure::Connect(String::new()), Transient, Transient),
            (Failure::NoServer(String::new()), Permanent, Permanent),
            (Failure::Certificate(String::new()), Permanent, Permanent),
            (Failure::Broken(String::new()), Transient, Ambiguous),
            (Failure::Stalled(Duration::ZERO), Transient, Ambiguous),
            (Failure::NotApi(String::new()), Doubtful, Ambiguous),
            (refused(302, None), Permanent, Permanent),
            (refused(400, Some(E::Usage)), Permanent, Permanent),
            (refused(401, Some(E::Auth)), Permanent, Permanent),
            (refused(402, Some(E::Billing)), Permanent, Permanent),
            (refused(403, None), Permanent, Permanent),
            (refused(404, Some(E::Missing)), Permanent, Permanent),
            (refused(405, Some(E::Method)), Permanent, Permanent),
            (refused(408, None), Throttle, Ambiguous),
            (refused(408, Some(E::Failed)), Throttle, Ambiguous),
            (refused(409, Some(E::Busy)), Busy, Busy),
            (refused(409, None), Busy, Busy),
            (refused(413, None), Permanent, Permanent),
            (refused(425, None), Throttle, Throttle),
            (refused(429, None), Throttle, Throttle),
            (refused(500, Some(E::Failed)), Doubtful, Ambiguous),
            (refused(500, Some(E::System)), Transient, Ambiguous),
            (refused(500, None), Transient, Ambiguous),
            (refused(501, None), Permanent, Permanent),
            (refused(502, None), Transient, Ambiguous),
            (refused(503, None), Transient, Ambiguous),
            (refused(504, None), Transient, Ambiguous),
            (refused(507, Some(E::Full)), Permanent, Permanent),
            (refused(507, None), Permanent, Permanent),
            (refused(522, None), Transient, Ambiguous),
            // With a Retry-After.
            (asks_to_wait(409, None), Busy, Busy),
            (asks_to_wait(500, None), Transient, Ambiguous),
            (asks_to_wait(503, None), Throttle, Ambiguous),
            (asks_to_wait(503, Some(E::Failed)), Throttle, Ambiguous),
        ];
        for (failure, write, create) in table {
            assert_eq!(classify(Operation::Read, &failure), write, "{failure:?}");
            assert_eq!(classify(Operation::Write, &failure), write, "{failure:?}");
            assert_eq!(classify(Operation::Create, &failure), create, "{failure:?}");
        }
    }

    #[test]
    fn a_web_page_is_an_outage_once_the_endpoint_has_answered() {
        use Class::{Ambiguous, Doubtful, Permanent, Throttle, Transient};
        let page = |status| {
            Failure::Refused(Refusal {
                status,
                error: None,
                message: HTML_PAGE.into(),
                retry_after: None,
            })
        };
        let table = [
            (Failure::NotApi(HTML_PAGE.into()), Transient, Ambiguous),
            (Failure::Certificate(String::new()), Transient, Transient),
            (refused(302, None), Transient, Transient),
            (page(403), Transient, Transient),
            (page(404), Transient, Transient),
            (page(511), Transient, Ambiguous),
            // These are about the request, or must not be repeated.
            (page(401), Permanent, Permanent),
            (page(407), Permanent, Permanent),
            (page(413), Permanent, Permanent),
            (refused(403, None), Permanent, Permanent),
            (refused(404, Some(ErrorType::Missing)), Permanent, Permanent),
            (Failure::WrongLength(String::new()), Doubtful, Ambiguous),
            (refused(429, None), Throttle, Throttle),
        ];
        for (failure, read, create) in table {
            let known = |operation| classify_known(operation, &failure);
            assert_eq!(known(Operation::Read), read, "{failure:?}");
            assert_eq!(known(Operation::Create), create, "{failure:?}");
        }
    }

    const S: Duration = Duration::from_secs(1);

    /// Fails until the attempts end. Returns their number, when the last one was, and the reason
    /// for the end.
    fn exhaust(attempts: &mut Attempts, failure: &Failure) -> (u32, Duration, Next) {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut now, mut made) = (100 * S, 0);
        loop {
            made += 1;
            match attempts.failed(Operation::Read, failure, false, now, &mut rng) {
                Next::Again(wait) => now += wait,
                next => return (made, now, next),
            }
        }
    }

    #[test]
    fn attempts_continue_until_the_outage_is_too_long() {
        let cases = [
            (refused(502, None), Next::GaveUp),
            (Failure::Connect("refused".into()), Next::GaveUp),
            (refused(429, None), Next::GaveUp),
            (refused(409, None), Next::Refused),
        ];
        for (failure, last) in cases {
            let mut attempts = Attempts::new(60 * S);
            let (made, now, next) = exhaust(&mut attempts, &failure);
            // The whole time is used, and no more.
            assert_eq!((now, next), (160 * S, last), "{failure:?}");
            assert!((5..30).contains(&made), "{made} attempts at {failure:?}");
        }
    }

    #[test]
    fn doubtful_failures_are_repeated_a_few_times_and_permanent_ones_never() {
        let cases = [
            (refused(500, Some(ErrorType::Failed)), DOUBTFUL_ATTEMPTS),
            (Failure::NotApi(HTML_PAGE.into()), DOUBTFUL_ATTEMPTS),
            (refused(404, None), 1),
            (refused(302, None), 1),
        ];
        for (failure, attempts) in cases {
            let (made, _, next) = exhaust(&mut Attempts::new(60 * S), &failure);
            assert_eq!((made, next), (attempts, Next::Refused), "{failure:?}");
        }
    }

    #[test]
    fn waits_begin_short_and_double() {
        // The longest waits of an outage, and of an endpoint that asks for fewer requests.
        let cases = [
            (502, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]),
            (
                429,
                [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000],
            ),
        ];
        for (status, ceilings_ms) in cases {
            let mut longest = ceilings_ms.map(|_| Duration::ZERO);
            for seed in 0..200 {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut attempts = Attempts::new(900 * S);
                for longest in &mut longest {
                    let failure = refused(status, None);
                    match attempts.failed(Operation::Read, &failure, true, S, &mut rng) {
                        Next::Again(wait) => *longest = wait.max(*longest),
                        next => panic!("{next:?}"),
                    }
                }
            }
            for (longest, ceiling_ms) in longest.into_iter().zip(ceilings_ms) {
                let ceiling = Duration::from_millis(ceiling_ms);
                let is_right = longest <= ceiling && longest >= ceiling.mul_f64(0.9);
                assert!(is_right, "{status}: {longest:?} instead of {ceiling:?}");
            }
        }
    }

    #[test]
    fn an_answer_ends_the_outage() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut attempts = Attempts::new(60 * S);
        let failure = refused(502, None);
        for now in [S, 59 * S] {
            let next = attempts.failed(Operation::Read, &failure, true, now, &mut rng);
            assert!(matches!(next, Next::Again(_)), "{next:?}");
        }
        assert_eq!(attempts.gives_up_at(), Some(61 * S));
        attempts.answered();
        assert_eq!(attempts.gives_up_at(), None);
        let next = attempts.failed(Operation::Read, &failure, true, 62 * S, &mut rng);
        assert!(matches!(next, Next::Again(_)), "{next:?}");
        let next = attempts.failed(Operation::Read, &failure, true, 122 * S, &mut rng);
        assert_eq!(next, Next::GaveUp);
    }

    #[test]
    fn an_answer_makes_earlier_failures_count_no_more() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut attempts = Attempts::new(900 * S);
        let doubtful = refused(500, Some(ErrorType::Failed));
        for _ in 0..20 {
            for _ in 1..DOUBTFUL_ATTEMPTS {
                let next = attempts.failed(Operation::Read, &doubtful, true, S, &mut rng);
                assert!(
                    matches!(next, Next::Again(wait) if wait <= 2 * S),
                    "{next:?}"
                );
            }
            attempts.answered();
        }
    }

    #[test]
    fn without_patience_the_first_failure_is_final() {
        let (made, now, next) = exhaust(&mut Attempts::new(Duration::ZERO), &refused(502, None));
        assert_eq!((made, now, next), (1, 100 * S, Next::GaveUp));
    }

    #[test]
    fn retry_after_is_obeyed_unless_it_exceeds_the_patience() {
        let asks = |seconds| {
            Failure::Refused(Refusal {
                status: 429,
                error: None,
                message: String::new(),
                retry_after: Some(seconds * S),
            })
        };
        let mut rng = fastrand::Rng::with_seed(7);
        let mut next = |attempts: Attempts, seconds| {
            let mut attempts = attempts;
            attempts.failed(Operation::Read, &asks(seconds), true, S, &mut rng)
        };
        let Next::Again(wait) = next(Attempts::new(7200 * S), 3600) else {
            panic!("an hour is less than two");
        };
        assert!(wait >= 3600 * S && wait < 3961 * S, "{wait:?}");
        assert_eq!(next(Attempts::new(900 * S), 3600), Next::GaveUp);
        let hurried = Attempts::new(7200 * S).until(Some(600 * S));
        assert_eq!(next(hurried, 3600), Next::GaveUp);
        // There is exactly enough time.
        assert_eq!(next(Attempts::new(900 * S), 900), Next::Again(900 * S));
    }
}
