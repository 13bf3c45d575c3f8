//! The results of a probe so far.

use std::sync::{Arc, Mutex};

use crate::failure::Failure;
use crate::findings::{Findings, RetryAfter};
use crate::locks::lock;

/// The results so far, shared with the task that asks the questions.
#[derive(Clone, Debug)]
pub(super) struct Notes(pub(super) Arc<Mutex<Found>>);

#[derive(Debug)]
pub(super) struct Found {
    pub(super) findings: Findings,
    pub(super) retry_after: Option<RetryAfter>,
}

impl Notes {
    pub(super) fn change(&self, change: impl FnOnce(&mut Found)) {
        change(&mut lock(&self.0));
    }

    /// Records what can be learned from a failure.
    pub(super) fn note(&self, failure: &Failure) {
        let Failure::Refused(refusal) = failure else {
            return;
        };
        if !matches!(refusal.status, 429 | 503) {
            return;
        }
        let seen = RetryAfter {
            status: refusal.status,
            seconds: refusal.retry_after.map(|time| time.as_secs()),
        };
        self.change(|found| {
            // An answer with the header is more informative.
            if found.retry_after.is_none_or(|old| old.seconds.is_none()) {
                found.retry_after = Some(seen);
            }
        });
    }

    pub(super) fn take(self) -> Found {
        let found = lock(&self.0);
        Found {
            findings: found.findings.clone(),
            retry_after: found.retry_after,
        }
    }
}
