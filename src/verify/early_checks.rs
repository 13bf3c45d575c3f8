//! Read-back checks while the transfer runs.
//!
//! An upload leaves one direction of the link idle, and every round of checks after the last chunk
//! costs a round trip. So the chunks of the sample are read back as soon as they are settled: a
//! wrong drive is reported before the rest is sent, and little is left to check at the end.
//!
//! These checks prove what the drive held at that time, but an endpoint can lose or overwrite data
//! later. That is why [`verify`](super::read_back::verify) still checks the drive at the end, and
//! why `--verify full` reads everything only then.
//!
//! The transfer has priority: one check at a time, at most [`CHECKS_PER_CHUNK`] for each settled
//! chunk, none while only one request may be in flight, and none after the endpoint refused one. If
//! the transfer may use all requests that the user allows, a check needs a spare one. A check that
//! failed in another way waits for the next settled chunk. After [`FAILURES_MAX`] of those, the
//! rest is left to the end, where checks are repeated as long as the run has patience.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rangemap::RangeSet;
use tokio::sync::Notify;

use super::read_back::{Against, Check, Passed, Sampler};
use super::sample_places::{HOLE_SAMPLES_MAX, place_in, wanted};
use crate::api::Client;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::shell::AttemptError;
use crate::driver::spare_requests::Spare;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::Disk;
use crate::locks::lock;
use crate::plan::{Plan, Span};
use crate::policy::Requests;
use crate::wire::READ_BYTES_MAX;

/// Checks for each settled chunk: two, so that what earlier runs settled is checked as well, and
/// few enough to be negligible beside the bytes of a chunk.
const CHECKS_PER_CHUNK: u32 = 2;
/// After this many failed connections, the rest is left to the end.
const FAILURES_MAX: u32 = 3;

/// The early checks of one transfer. Clones share them.
#[derive(Clone)]
pub(crate) struct EarlyChecks(Arc<Shared>);

struct Shared {
    sampler: Sampler,
    plan: Plan,
    /// The byte of the drive at which the plan begins.
    base: u64,
    /// Maximum requests in flight, including checks.
    jobs: u32,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    due: VecDeque<Due>,
    /// Checks that may be made before another chunk is settled.
    allowed: u32,
    /// How many requests the transfer may have in flight.
    workers: u32,
    failures: u32,
    is_over: bool,
    rng: fastrand::Rng,
    passed: Passed,
}

#[derive(Clone)]
struct Due {
    check: Check,
    is_hole: bool,
}

/// What the checks need.
pub(crate) struct CheckedDrive<'a> {
    pub(crate) client: &'a Client,
    pub(crate) drive: DriveId,
    /// What the drive is compared with, if it can be read again.
    pub(crate) disk: Option<Arc<dyn Disk>>,
    /// Whether it is an error if that changes meanwhile.
    pub(crate) is_image: bool,
    /// Requests that the transfer does not need.
    pub(crate) spare: Spare,
}

/// Why a check ends a transfer.
#[derive(Debug)]
pub(crate) enum CheckFailure {
    /// The drive does not hold what was transferred.
    Mismatch(Error),
    /// The image changed meanwhile, so the comparison is meaningless.
    Changed(Error),
}

/// Runs a transfer with its early checks, if there are any. The first check that fails ends both.
///
/// # Errors
/// The result of that check.
pub(crate) async fn run_checked<T>(
    transfer: impl Future<Output = T>,
    checks: Option<&EarlyChecks>,
    drive: CheckedDrive<'_>,
) -> Result<T, CheckFailure> {
    let Some(checks) = checks else {
        return Ok(transfer.await);
    };
    tokio::select! {
        biased;
        done = transfer => Ok(done),
        found = checks.run(drive) => Err(found),
    }
}

impl EarlyChecks {
    /// Checks of the sample of this plan, whose end is known; `None` if nothing has to be verified.
    /// `base` is the byte of the drive at which the plan begins, and `jobs` is the maximum number
    /// of requests in flight.
    pub(crate) fn new(
        sampler: &Sampler,
        plan: Plan,
        base: u64,
        jobs: u32,
        seed: u64,
    ) -> Option<Self> {
        if sampler.is_off() || plan.is_endless() {
            return None;
        }
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            ..State::default()
        };
        Some(Self(Arc::new(Shared {
            sampler: sampler.clone(),
            plan,
            base,
            jobs,
            state: Mutex::new(state),
            changed: Notify::new(),
        })))
    }

    /// Reports that earlier runs settled these chunks, `holes` of them as holes.
    pub(crate) fn settled_before(&self, settled: &RangeSet<u64>, holes: &RangeSet<u64>) {
        if !self.0.sampler.is_again() {
            return;
        }
        let mut data = settled.clone();
        for range in holes.iter() {
            data.remove(range.clone());
            self.pick(range.clone(), true);
        }
        for range in data.iter() {
            self.pick(range.clone(), false);
        }
    }

    /// Reports that a chunk is on the drive; its offset is relative to the plan.
    pub(crate) fn settled(&self, span: Span) {
        let due = self.0.sampler.due(Span {
            offset: self.0.base + span.offset,
            ..span
        });
        let mut state = self.lock();
        state.allowed = state.allowed.saturating_add(CHECKS_PER_CHUNK);
        let due = due.into_iter().map(|check| Due {
            check,
            is_hole: false,
        });
        state.due.extend(due);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Reports that these chunks were left out as holes.
    pub(crate) fn skipped(&self, chunks: Range<u64>) {
        if self.0.sampler.is_again() {
            self.pick(chunks, true);
        }
        let mut state = self.lock();
        state.allowed = state.allowed.saturating_add(1);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Reports how many requests the transfer may have in flight.
    pub(crate) fn serve(&self, workers: u32) {
        self.lock().workers = workers;
        self.0.changed.notify_one();
    }

    /// Makes the checks. Returns only if the drive is wrong, or the image changed.
    async fn run(&self, drive: CheckedDrive<'_>) -> CheckFailure {
        let image = drive.disk.clone().filter(|_| drive.is_image);
        let against = Arc::new(Against::new(
            // Bytes that are read back are not progress of the transfer.
            drive.client.apart(),
            drive.drive,
            drive.disk,
            self.0.sampler.is_full(),
        ));
        loop {
            let due = self.next().await;
            // The pieces of the last chunks use the same spare requests.
            let _permit = match self.is_at_most() {
                true => Some(drive.spare.take().await),
                false => None,
            };
            let mut requests = Requests::default();
            let checked = due.check.run(&against, READ_BYTES_MAX, &mut requests).await;
            match checked {
                Ok(()) => self.passed(due),
                Err(AttemptError::Failed(failure)) => self.failed(&failure),
                Err(AttemptError::Local(error)) if error.kind() == ErrorKind::Integrity => {
                    return match changed(image).await {
                        Some(changed) => CheckFailure::Changed(changed),
                        None => CheckFailure::Mismatch(error),
                    };
                }
                // What cannot be read here is reported when the sample is read at the end.
                Err(AttemptError::Local(error)) => self.stop(&error),
            }
        }
    }

    /// Whether the transfer may use all requests that the user allows.
    fn is_at_most(&self) -> bool {
        self.lock().workers >= self.0.jobs
    }

    /// Leaves the rest to the end.
    fn stop(&self, error: &Error) {
        tracing::debug!(%error, "early check");
        self.lock().is_over = true;
    }

    /// Ends the checks and returns those that passed. The others are left to the sampler.
    pub(crate) fn end(self) -> Passed {
        let mut state = self.lock();
        for due in state.due.drain(..) {
            self.0.sampler.leave(due.check);
        }
        std::mem::take(&mut state.passed)
    }

    /// The next check, when it may be made. It remains the next one until it has passed.
    async fn next(&self) -> Due {
        loop {
            let changed = self.0.changed.notified();
            if let Some(due) = self.try_next() {
                return due;
            }
            changed.await;
        }
    }

    fn try_next(&self) -> Option<Due> {
        let mut state = self.lock();
        if state.workers < 2 || state.allowed == 0 || state.is_over {
            return None;
        }
        let due = state.due.front().cloned()?;
        state.allowed -= 1;
        Some(due)
    }

    fn passed(&self, due: Due) {
        let mut state = self.lock();
        state.due.pop_front();
        state.failures = 0;
        state.passed.count += 1;
        state.passed.bytes += due.check.len();
        let offset = due.check.offset().saturating_sub(self.0.base);
        let index = self.0.plan.index_of(offset);
        let chunks = match due.is_hole {
            true => &mut state.passed.holes,
            false => &mut state.passed.data,
        };
        chunks.insert(index..index + 1);
        if let Check::Bytes { .. } = due.check {
            state.passed.seen.push(due.check);
        }
    }

    fn failed(&self, failure: &Failure) {
        tracing::debug!(%failure, "early check");
        let mut state = self.lock();
        state.failures += 1;
        state.allowed = 0;
        // The endpoint may refuse it because of other concurrent requests.
        state.is_over = matches!(failure, Failure::Refused(_)) || state.failures >= FAILURES_MAX;
    }

    /// Selects places in these chunks, in proportion to their part of all chunks.
    fn pick(&self, chunks: Range<u64>, is_hole: bool) {
        let Shared { plan, base, .. } = *self.0;
        let (all, len) = (plan.count(), chunks.end.saturating_sub(chunks.start));
        if all == 0 || len == 0 {
            return;
        }
        let most = if is_hole {
            HOLE_SAMPLES_MAX
        } else {
            wanted(all)
        };
        let mut state = self.lock();
        let share = u128::from(len) * u128::from(most);
        let (whole, rest) = (share / u128::from(all), share % u128::from(all));
        let more = u128::from(state.rng.u64(..all)) < rest;
        let count = u64::try_from(whole).unwrap_or(most) + u64::from(more);
        for _ in 0..count.min(len) {
            let index = state.rng.u64(chunks.clone());
            let Some(span) = plan.span(index) else {
                continue;
            };
            let place = place_in(base + span.offset..base + span.end(), &mut state.rng);
            let check = Check::Again(place);
            state.due.push_back(Due { check, is_hole });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data that is always consistent.
        lock(&self.0.state)
    }
}

/// Whether the image has changed: then the drive is not to blame.
async fn changed(image: Option<Arc<dyn Disk>>) -> Option<Error> {
    let image = image?;
    blocking(move || image.check_unchanged()).await.err()
}
