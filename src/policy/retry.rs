//! What is worth another attempt: one table, with the reason beside each line
//! (FAULTS 3.1 and 3.2).

use std::time::Duration;

use super::backoff::{Backoff, obey};
use crate::failure::{Failure, Refusal};
use crate::wire::ErrorType;

/// What a request does, as far as repeating it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads only: can always be repeated.
    Read,
    /// Writes the same bytes to the same place: absolute position, absolute
    /// content, so repeating it changes nothing.
    Write,
    /// Makes a drive: repeating it makes another one.
    Create,
}

/// What a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Another attempt cannot help.
    Permanent,
    /// Another attempt soon, and as often as it takes.
    Transient,
    /// Another attempt, but not many: it may be permanent.
    Doubtful,
    /// Another attempt later, and everybody waits.
    Throttle,
    /// The drive is in use, maybe by our own other workers: another attempt
    /// later, with fewer workers.
    Busy,
    /// It is not known what the endpoint did: look before doing it again.
    Ambiguous,
}

/// Attempts at what may be permanent.
pub(super) const DOUBTFUL_ATTEMPTS: u32 = 4;

/// What `failure` of `operation` calls for.
pub fn classify(operation: Operation, failure: &Failure) -> Class {
    match by_answer(failure) {
        // Nothing was done for sure, or it does not matter how often.
        class @ (Class::Permanent | Class::Busy) => class,
        class if operation != Operation::Create || !failure.is_ambiguous() => class,
        _ => Class::Ambiguous,
    }
}

fn by_answer(failure: &Failure) -> Class {
    match failure {
        Failure::Connect(_) | Failure::Broken(_) | Failure::Stalled(_) => Class::Transient,
        // A clock or a name is wrong; waiting mends neither.
        Failure::Certificate(_) | Failure::Barred(_) => Class::Permanent,
        // A proxy's page may be gone in a moment.
        Failure::NotApi(_) => Class::Doubtful,
        Failure::Refused(refusal) => by_status(refusal),
    }
}

fn by_status(refusal: &Refusal) -> Class {
    // Asked to come back: the endpoint has too much to do, or we were too slow for it,
    // whatever it calls that.
    let is_asked = refusal.status == 503 && refusal.retry_after.is_some();
    if is_asked || matches!(refusal.status, 408 | 425 | 429) {
        return Class::Throttle;
    }
    // The type tells more than the status: 500 means two things.
    match refusal.error {
        Some(ErrorType::Busy) => return Class::Busy,
        // The command failed: it may do so again.
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
        // Unknown or none: by status.
        None => {}
    }
    match refusal.status {
        409 => Class::Busy,
        // Cannot be mended by asking again.
        501 | 505 | 507 => Class::Permanent,
        500..=599 => Class::Transient,
        // Redirects are never followed; 4xx is about the request.
        _ => Class::Permanent,
    }
}

/// Counts the attempts of one request that is made on its own, outside of a
/// transfer's engine: info, list, create, a read-back.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    made: u32,
    max: u32,
}

impl Attempts {
    /// At most `max` attempts.
    pub fn at_most(max: u32) -> Self {
        Self { made: 0, max }
    }

    /// An attempt failed: how long to wait before the next one; `None` if there
    /// should be none.
    pub fn failed(
        &mut self,
        operation: Operation,
        failure: &Failure,
        rng: &mut fastrand::Rng,
    ) -> Option<Duration> {
        self.made += 1;
        let class = classify(operation, failure);
        let max = match class {
            Class::Permanent | Class::Ambiguous => return None,
            Class::Doubtful => self.max.min(DOUBTFUL_ATTEMPTS),
            Class::Transient | Class::Throttle | Class::Busy => self.max,
        };
        (self.made < max).then(|| wait(class, failure, self.made - 1, rng))
    }
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

    pub(crate) fn refused(status: u16, error: Option<ErrorType>) -> Failure {
        Failure::Refused(Refusal {
            status,
            error,
            message: String::new(),
            retry_after: None,
        })
    }

    #[test]
    fn the_table() {
        use Class::{Ambiguous, Busy, Doubtful, Permanent, Throttle, Transient};
        use ErrorType as E;
        // Failure, and what it calls for on write (as on read) and on create.
        let table = [
            (Failure::Connect(String::new()), Transient, Transient),
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
        ];
        for (failure, write, create) in table {
            assert_eq!(classify(Operation::Read, &failure), write, "{failure:?}");
            assert_eq!(classify(Operation::Write, &failure), write, "{failure:?}");
            assert_eq!(classify(Operation::Create, &failure), create, "{failure:?}");
        }
    }

    #[test]
    fn attempts_end() {
        let mut rng = fastrand::Rng::with_seed(7);
        let cases = [
            (refused(503, None), 3),
            (refused(500, Some(ErrorType::Failed)), 3),
            (refused(404, None), 0),
        ];
        for (failure, retries) in cases {
            let mut attempts = Attempts::at_most(4);
            let mut waits = 0;
            while attempts
                .failed(Operation::Read, &failure, &mut rng)
                .is_some()
            {
                waits += 1;
            }
            assert_eq!(waits, retries, "{failure:?}");
        }
    }

    #[test]
    fn retry_after_is_the_least_wait() {
        let mut rng = fastrand::Rng::with_seed(7);
        let failure = Failure::Refused(Refusal {
            status: 503,
            error: None,
            message: String::new(),
            retry_after: Some(Duration::from_secs(9)),
        });
        let wait = Attempts::at_most(2)
            .failed(Operation::Read, &failure, &mut rng)
            .unwrap();
        assert!(wait >= Duration::from_secs(9) && wait < Duration::from_secs(10));
    }
}
