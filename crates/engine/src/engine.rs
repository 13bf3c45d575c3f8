//! One transfer as a state machine: it decides what to do next from everything that has happened so
//! far. The shell calls [`Engine::next`], performs the action, and reports the outcome to the
//! engine.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rangemap::RangeSet;

use super::concurrency::is_far;
use super::pieces::{Limits, Pieces, PiecesConfig, Requests, Verdict};
use super::retry::{Class, DOUBTFUL_ATTEMPTS, Operation, classify_known, fits, wait};
use super::tail::Tail;
use super::{Breaker, Concurrency, Ledger, Moved, Ticket, Zeros};
use crate::failure::Failure;
use crate::plan::{Plan, Span};

/// Bytes on the wire of a piece while nothing is known of a far endpoint. Many requests begin
/// at once there, and a small transfer should be divided among them.
const FIRST_PIECE_BYTES: u64 = 512 * 1024;
/// Maximum number of attempts at one chunk that fail while other chunks succeed. Attempts during an
/// outage do not count. The number is a choice (docs/dev/faults.md, 3.4): the waits between the
/// attempts take a minute on average. A chunk that fails all that time while others succeed will
/// not pass.
const ATTEMPTS_MAX: u32 = 10;
/// How long after a transfer created its drive an answer "not found" is attributed to an endpoint
/// that does not know the new drive everywhere yet (docs/dev/faults.md, 3.2). The time is a choice.
/// If somebody removes the drive in this time, the error comes later.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
/// How long to wait for a drive that is busy although this transfer sends only one request: another
/// client uses it, and may end soon. `--max-outage` applies if it is shorter. The time is a choice.
const BUSY_FOR: Duration = Duration::from_secs(600);
/// When an outage has lasted too long, chunks in flight may continue while their bytes move. If no
/// byte moves for this long, or for `--max-outage` if that is shorter, these requests hang as well.
/// The time is a choice: a longer one only delays the end, a shorter one aborts chunks of a slow
/// link.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// If something else than the API answers for a chunk, such as an error page of a proxy, while the
/// endpoint answers other requests well, the chunk fails for good after this many times
/// (docs/dev/faults.md, 3.5): one or two may be an accident, and waiting would not help.
const FOREIGN_MAX: u32 = 3;
/// Maximum number of chunks that are prepared and not yet sent. They hide the time that preparing
/// one takes, which does not depend on the number of requests. Each holds a buffer of a chunk, so
/// more would only cost memory.
pub const READY_MAX: usize = 16;
/// How long the last probe before giving up may take, although the outage has lasted too long. An
/// endpoint that can be reached usually answers sooner. It delays the end of a hopeless transfer.
const LAST_PROBE: Duration = Duration::from_secs(2);

/// Everything that an [`Engine`] has to know at the start.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The division into chunks.
    pub plan: Plan,
    /// Index of the first chunk to transfer.
    pub first: u64,
    /// Chunks that an earlier run settled.
    pub settled: RangeSet<u64>,
    /// Minimum number of requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: u32,
    /// Maximum number of requests in flight.
    pub jobs: u32,
    /// What to do with holes.
    pub zeros: Zeros,
    /// Whether the requests write or read.
    pub operation: Operation,
    /// Whether this transfer created the drive.
    pub is_fresh: bool,
    /// Give up after this long without success.
    pub max_outage: Duration,
    /// About how long a round trip to the endpoint takes.
    pub round_trip: Duration,
    /// Limits to the size of a request.
    pub pieces: PiecesConfig,
    /// Seed of the random generator, for waits.
    pub seed: u64,
}

/// What an attempt at a chunk transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<P> {
    /// What the shell passed to [`Engine::chunk`] or [`Engine::failed`].
    Given(P),
    /// Zeros, for the first attempt at a chunk that was passed to [`Engine::hole`].
    Zeros,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// Make an attempt at a chunk, then call [`Engine::confirmed`], [`Engine::failed`] or
    /// [`Engine::failed_here`].
    Send {
        /// The chunk.
        span: Span,
        /// What to transfer. The engine gets it back if the attempt fails.
        payload: Payload<P>,
    },
    /// Read back these bytes, which were never written, then call [`Engine::proved`] or
    /// [`Engine::unproved`].
    ProveZeros(Span),
    /// Make one cheap request to see whether the endpoint is back, then call
    /// [`Engine::probed`].
    Probe,
    /// Find out whether a server or an imaging claims the drive, then call [`Engine::looked`].
    Look,
    /// Do nothing until something happens or this time is reached.
    Wait(Option<Duration>),
    /// The transfer has ended and nothing is in flight.
    End(Ending),
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every chunk is settled.
    Complete,
    /// The endpoint refused a chunk for good.
    Failed(Failure),
    /// The endpoint did not recover in time, or one chunk failed too often.
    GaveUp(Failure),
    /// Something else claims the drive, as described.
    Claimed(String),
    /// The image could not be read; the shell holds the error.
    ImageFailed,
    /// The user asked to stop.
    Stopped,
    /// The image ended but a chunk was never passed to the engine: a bug in the shell.
    Incomplete,
}

/// What a transfer waits for while its requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// When the next request is due.
    pub next: Duration,
    /// When the transfer gives up if nothing succeeds until then.
    pub gives_up_at: Duration,
    /// Whether the breaker is open, so that more than a single request fails.
    pub is_outage: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    /// Failures of all kinds.
    failures: u32,
    /// Failures that may be permanent.
    doubtful: u32,
    /// Failures while other chunks succeeded.
    counted: u32,
    /// Value of [`Engine::successes`] when this chunk last failed.
    successes: u64,
    /// Answers that did not come from the API, counted only if the endpoint answered something else
    /// well (a probe, for example) since the one before.
    foreign: u32,
    /// Value of [`Engine::answers`] when this chunk last got such an answer.
    answers: u64,
}

/// One transfer, from its start to its end. The shell owns it; nothing shares it. It holds the
/// payload `P` of every chunk that is neither in flight nor settled.
#[derive(Clone, Debug)]
pub struct Engine<P> {
    config: EngineConfig,
    ledger: Ledger,
    zeros: Zeros,
    /// Chunks to send for the first time.
    ready: VecDeque<(u64, P)>,
    /// Holes that wait until the drive is proven to read as zeros, or to be written as zeros.
    holes: VecDeque<Range<u64>>,
    /// Chunks to send again, by the time they are due and by index.
    delayed: BTreeMap<(Duration, u64), P>,
    /// Chunks being sent.
    in_flight: BTreeMap<u64, Ticket>,
    tries: HashMap<u64, Tries>,
    concurrency: Concurrency,
    breaker: Breaker,
    pieces: Pieces,
    tail: Tail,
    /// Spare requests in flight.
    spare_taken: u32,
    /// Spare requests that were allowed last.
    spare_allowed: u32,
    /// No chunk is sent before this time.
    gate: Duration,
    /// The endpoint asked for no request of any kind before this time.
    asked: Duration,
    probe_at: Duration,
    /// Requests in flight that are about the transfer rather than for a chunk: probes, looks,
    /// proofs.
    asking: u32,
    look_due: bool,
    busy_since: Option<Duration>,
    successes: u64,
    /// Good answers so far, including those to probes.
    answers: u64,
    retries: u64,
    skipped_bytes: u64,
    /// Holes that were left out and not yet returned by [`Engine::take_skipped`].
    skipped: Vec<Range<u64>>,
    image_ended: bool,
    ending: Option<Ending>,
    /// The run ends at this time: no wait that the endpoint asks for may go beyond it.
    deadline: Option<Duration>,
    /// The last failure that an outage could explain.
    last_failure: Option<Failure>,
    /// Bytes of bodies that have moved, and when that number last changed.
    moved: (u64, Duration),
    rng: fastrand::Rng,
}

impl<P> Engine<P> {
    /// An engine at the start of a transfer, which is time 0.
    pub fn new(config: EngineConfig) -> Self {
        let all = config.first..config.plan.count().max(config.first);
        Self {
            ledger: Ledger::new(all, config.settled.clone()),
            zeros: config.zeros,
            ready: VecDeque::new(),
            holes: VecDeque::new(),
            delayed: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            tries: HashMap::new(),
            concurrency: Concurrency::new(config.jobs_min, config.jobs, config.round_trip),
            breaker: Breaker::new(config.max_outage),
            pieces: Pieces::new(config.pieces),
            tail: Tail::new(config.pieces.rate),
            spare_taken: 0,
            spare_allowed: 0,
            gate: Duration::ZERO,
            asked: Duration::ZERO,
            probe_at: Duration::ZERO,
            asking: 0,
            look_due: false,
            busy_since: None,
            successes: 0,
            answers: 0,
            retries: 0,
            skipped_bytes: 0,
            skipped: Vec::new(),
            image_ended: false,
            ending: None,
            deadline: None,
            last_failure: None,
            moved: (0, Duration::ZERO),
            rng: fastrand::Rng::with_seed(config.seed),
            config,
        }
    }

    /// Ends the run at this time, whatever its state is then.
    pub fn set_deadline(&mut self, at: Duration) {
        self.deadline = Some(at);
    }

    /// Whether the shell may pass another chunk now. This bounds the number of chunks that are
    /// ready and not sent; the buffer pool bounds their bytes.
    pub fn wants_chunk(&self) -> bool {
        self.ending.is_none()
            && !self.image_ended
            && self.ready.len() < (self.chunks() as usize).min(READY_MAX)
    }

    /// A chunk of data is ready to be sent.
    pub fn chunk(&mut self, index: u64, payload: P) {
        self.ready.push_back((index, payload));
    }

    /// These chunks are all zero.
    pub fn hole(&mut self, chunks: Range<u64>) {
        if self.zeros == Zeros::Skip {
            self.skip(chunks);
        } else if !chunks.is_empty() {
            self.holes.push_back(chunks);
        }
    }

    /// The size of the image is now known. No chunk at or beyond the end, and not the last one,
    /// which the end may shorten, may have been passed before. Returns the plan with this end.
    pub fn ends_at(&mut self, size: u64) -> Plan {
        let plan = self.config.plan.ending_at(size);
        self.config.plan = plan;
        self.ledger.ends_at(plan.count());
        plan
    }

    /// The image has no more chunks.
    pub fn image_ended(&mut self) {
        self.image_ended = true;
    }

    /// The image could not be read, or changed.
    pub fn image_failed(&mut self) {
        self.end(Ending::ImageFailed);
    }

    /// The user wants to stop: no new requests; those in flight may finish.
    pub fn stop(&mut self) {
        self.end(Ending::Stopped);
    }

    /// Reports how many bytes of bodies connections have accepted or received since the start. Call
    /// it before each [`next`](Self::next): while the number grows, the engine does not give up
    /// requests in flight.
    pub fn moved(&mut self, bytes: u64, now: Duration) {
        if self.moved.0 != bytes {
            self.moved = (bytes, now);
        }
    }

    /// Reports what has arrived since the start. Call it at least when the time of an
    /// [`Action::Wait`] is reached.
    pub fn arrived(&mut self, moved: Moved, now: Duration) {
        self.tail.moved(moved, self.in_flight.len(), now);
        self.concurrency.moved(moved, now);
    }

    /// Reports the bytes of the body of an attempt that begins.
    pub fn begins(&mut self, body_bytes: u64) {
        self.tail.begins(body_bytes);
    }

    /// Reports how many [spare](Self::spare) requests are in flight. Call it before each
    /// [`next`](Self::next).
    pub fn spare_taken(&mut self, requests: u32) {
        self.spare_taken = requests;
    }

    /// Decides what to do now.
    pub fn next(&mut self, now: Duration) -> Action<P> {
        if self.over_at().is_some_and(|at| now >= at)
            && let Some(failure) = self.last_failure.clone()
        {
            self.end(Ending::GaveUp(failure));
        }
        match self.decide(now) {
            Action::Wait(until) if self.ending.is_none() => {
                Action::Wait([until, self.over_at()].into_iter().flatten().min())
            }
            action => action,
        }
    }

    fn decide(&mut self, now: Duration) -> Action<P> {
        if let Some(ending) = &self.ending {
            return if self.is_quiet() {
                Action::End(ending.clone())
            } else {
                Action::Wait(None)
            };
        }
        if self.ledger.is_complete() && self.image_ended && self.is_quiet() {
            return Action::End(Ending::Complete);
        }
        if now < self.asked {
            return Action::Wait(Some(self.asked));
        }
        if self.breaker.is_open() {
            return self.next_in_outage(now);
        }
        if self.look_due {
            self.look_due = false;
            self.asking += 1;
            return Action::Look;
        }
        if now < self.gate {
            return Action::Wait(Some(self.gate));
        }
        if let Some(span) = self.zeros_to_prove() {
            self.zeros = Zeros::Proving;
            self.asking += 1;
            return Action::ProveZeros(span);
        }
        if self.may_begin_chunk()
            && let Some((span, payload)) = self.next_chunk(now)
        {
            self.in_flight
                .insert(span.index, self.concurrency.sent(now));
            return Action::Send { span, payload };
        }
        let due = self.next_due();
        if due.is_none() && self.image_ended && self.is_quiet() {
            return Action::End(Ending::Incomplete);
        }
        // A chunk whose time has passed waits for another request to end, not for a time.
        let times = [due, self.concurrency.tick_at()].into_iter().flatten();
        Action::Wait(times.filter(|at| *at > now).min())
    }

    /// An attempt at a chunk succeeded, in these requests.
    pub fn confirmed(&mut self, index: u64, requests: &Requests, now: Duration) {
        let ticket = self.in_flight.remove(&index).unwrap_or_default();
        self.ledger.settle(index..index + 1);
        self.tries.remove(&index);
        self.successes += 1;
        self.answers += 1;
        self.busy_since = None;
        if self.breaker.succeeded() {
            self.concurrency.outage_ended(now);
        }
        self.concurrency.succeeded(ticket, now);
        self.pieces.succeeded(requests);
    }

    /// An attempt at a chunk failed. Its payload comes back, for another attempt.
    pub fn failed(
        &mut self,
        index: u64,
        payload: P,
        requests: &Requests,
        failure: Failure,
        now: Duration,
    ) {
        let ticket = self.in_flight.remove(&index).unwrap_or_default();
        if self.ending.is_some() {
            return;
        }
        let verdict = self.pieces.failed(requests, &failure);
        if failure.is_about_size() && verdict == Verdict::TooLarge {
            // Only the size was wrong, and the next attempt uses a smaller one.
            self.concurrency.failed(now);
            self.retries += 1;
            self.delayed.insert((now, index), payload);
            return;
        }
        let has_advanced = requests.advanced_bytes >= self.config.pieces.least_bytes;
        if has_advanced {
            self.advanced(index, now);
        }
        let mut class = classify_known(self.config.operation, &failure);
        let is_its_own = verdict == Verdict::TooLarge || has_advanced && failure.is_break();
        let is_ours_alone = self.lower_limit(class, is_its_own, ticket, now);
        if class == Class::Permanent && self.is_too_new(&failure, now) {
            class = Class::Transient;
        }
        let tries = self.count_failure(index, verdict, &failure);
        let is_final = self.is_final(class, index, is_ours_alone, now);
        // If the endpoint answers other requests well and only this chunk fails, it is no outage.
        if is_final || tries.foreign >= FOREIGN_MAX {
            return self.end(Ending::Failed(failure));
        }
        let is_over = tries.counted >= ATTEMPTS_MAX || self.is_hopeless(now);
        if is_over || !self.has_time_for(&failure, now) {
            return self.end(Ending::GaveUp(failure));
        }
        let due = match has_advanced && failure.is_break() {
            // The connection broke after progress, so the endpoint is there: no need to wait.
            true => now,
            false => now + wait(class, &failure, tries.failures - 1, &mut self.rng),
        };
        let due = self.in_time(due);
        self.last_failure = Some(failure.clone());
        if class == Class::Throttle || is_ours_alone {
            self.gate = self.gate.max(due);
        }
        if matches!(class, Class::Throttle | Class::Busy) && failure.retry_after().is_some() {
            self.asked = self.asked.max(due);
        }
        self.retries += 1;
        self.delayed.insert((due, index), payload);
    }

    /// An attempt at a chunk failed because of an error on this machine, which the shell holds.
    pub fn failed_here(&mut self, index: u64) {
        self.in_flight.remove(&index);
        self.end(Ending::ImageFailed);
    }

    /// The read-back of a range that was never written ended. `is_zero` says whether it was read
    /// and all zero. Without an answer there is no proof, and zeros are written, which is always
    /// correct.
    pub fn proved(&mut self, is_zero: bool) {
        self.asking -= 1;
        if is_zero {
            self.zeros = Zeros::Skip;
            for chunks in std::mem::take(&mut self.holes) {
                self.skip(chunks);
            }
        } else {
            self.zeros = Zeros::Write;
        }
    }

    /// A probe during an outage ended.
    pub fn probed(&mut self, answer: Result<(), Failure>, now: Duration) {
        self.asking -= 1;
        match answer {
            Ok(()) => {
                self.answers += 1;
                if self.breaker.probed() {
                    self.concurrency.outage_ended(now);
                }
            }
            Err(failure) => {
                let class = classify_known(Operation::Read, &failure);
                if class == Class::Permanent && !self.is_too_new(&failure, now) {
                    return self.end(Ending::Failed(failure));
                }
                if self.is_hopeless(now) || !self.has_time_for(&failure, now) {
                    return self.end(Ending::GaveUp(failure));
                }
                let probe_at = now + self.breaker.next_probe(&mut self.rng);
                self.probe_at = self.in_time(probe_at);
                self.last_failure = Some(failure.clone());
                if class == Class::Throttle && failure.retry_after().is_some() {
                    let due = now + wait(class, &failure, 0, &mut self.rng);
                    self.asked = self.asked.max(due);
                }
            }
        }
    }

    /// The engine asked, after the drive was busy, what claims it: a server or an imaging, or
    /// nothing.
    pub fn looked(&mut self, claimed: Option<String>) {
        self.asking -= 1;
        if let Some(by) = claimed {
            self.end(Ending::Claimed(by));
        }
    }

    /// The read-back of a range that was never written failed, although it was repeated for as long
    /// as an outage may last.
    pub fn unproved(&mut self, failure: Failure) {
        self.asking -= 1;
        self.end(Ending::GaveUp(failure));
    }

    /// What the transfer waits for; `None` while nothing fails.
    pub fn outlook(&self, now: Duration) -> Option<Outlook> {
        let gives_up_at = self.breaker.gives_up_at()?;
        let next = if self.breaker.is_open() {
            self.probe_at
        } else {
            self.gate.max(self.next_due().unwrap_or(now))
        };
        Some(Outlook {
            next: next.max(self.asked).max(now),
            gives_up_at: self.deadline.map_or(gives_up_at, |at| at.min(gives_up_at)),
            is_outage: self.breaker.is_open(),
        })
    }

    /// Whether nothing has succeeded for longer than an outage may last.
    pub fn is_hopeless(&self, now: Duration) -> bool {
        self.breaker.gives_up_at().is_some_and(|at| now >= at)
    }

    /// How the transfer will end, once that is decided. Requests may still be in flight.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// How large the requests of the next attempt may be.
    pub fn limits(&self) -> Limits {
        let to_come = self
            .ledger
            .open()
            .saturating_sub(self.in_flight.len() as u64);
        self.limits_at(to_come < u64::from(self.chunks()))
    }

    /// How large requests may be, at the end of a transfer or before it.
    fn limits_at(&self, is_end: bool) -> Limits {
        let limits = self.pieces.limits();
        if self.concurrency.limit() == 1 || limits.is_alone {
            return limits;
        }
        let unknown = match is_far(self.config.round_trip) {
            true => FIRST_PIECE_BYTES,
            false => u64::MAX,
        };
        Limits {
            shared_bytes: (self.tail)
                .piece_bytes(self.concurrency.limit(), is_end)
                .unwrap_or(unknown),
            ..limits
        }
    }

    /// How many chunks should be in flight now; at most as many as requests are allowed.
    pub fn chunks(&self) -> u32 {
        let (limit, limits) = (self.concurrency.limit(), self.limits_at(false));
        match limits.is_shared() {
            true => self
                .tail
                .chunks(limit, &limits, self.config.plan.chunk_bytes()),
            false => limit,
        }
    }

    /// Whether the number of chunks and of requests allows an attempt at another chunk. The first
    /// one is always allowed, because the shell does not report when a spare request ends.
    fn may_begin_chunk(&self) -> bool {
        let in_flight = u32::try_from(self.in_flight.len()).unwrap_or(u32::MAX);
        // Those that are allowed may be sent at any time.
        let spare = self.spare_taken.max(self.spare_allowed);
        let requests = in_flight.saturating_add(spare);
        in_flight == 0 || in_flight < self.chunks() && requests < self.concurrency.limit()
    }

    /// How many additional requests may be sent for pieces of chunks in flight, after one for each
    /// chunk that may be in flight.
    pub fn spare(&mut self, now: Duration) -> u32 {
        let is_held_back = now < self.gate.max(self.asked) || self.breaker.is_open();
        let is_none = self.ending.is_some() || is_held_back || self.pieces.limits().is_alone;
        let chunks = self.ledger.open().min(u64::from(self.chunks()));
        let chunks = chunks.max(self.in_flight.len() as u64);
        let needed = chunks.saturating_add(u64::from(self.asking));
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        self.spare_allowed = match is_none {
            true => 0,
            false => self.concurrency.limit().saturating_sub(needed),
        };
        self.spare_allowed
    }

    /// What was learned about the size of requests.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// As [`Pieces::refused`], and `None` for a transfer that reads.
    pub fn refused_body(&self) -> Option<(u64, u64)> {
        let writes = self.config.operation == Operation::Write;
        self.pieces.refused().filter(|_| writes)
    }

    /// Chunks in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Chunks that wait to be sent for the first time.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many chunks may be in flight now.
    pub fn limit(&self) -> u32 {
        self.concurrency.limit()
    }

    /// The first chunk that is not settled, from which a later run resumes.
    pub fn first_open(&self) -> u64 {
        self.ledger.first_open()
    }

    /// How many chunks this run settled in one row, beginning with the first that no earlier run
    /// had settled.
    pub fn in_order(&self) -> u64 {
        self.ledger.in_order()
    }

    /// Holes that were left out since the last call, as ranges of indices.
    pub fn take_skipped(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.skipped)
    }

    /// Bytes of holes that were left out.
    pub fn skipped_bytes(&self) -> u64 {
        self.skipped_bytes
    }

    /// Attempts beyond the first of each chunk.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// How holes are treated, as far as it is decided.
    pub fn zeros(&self) -> Zeros {
        self.zeros
    }

    /// Lowers the number of requests in flight after a failure. `is_its_own` says that the request
    /// itself is the cause: its size, or a connection that broke after progress. Returns whether
    /// the drive is busy although this is the only writer.
    fn lower_limit(
        &mut self,
        class: Class,
        is_its_own: bool,
        ticket: Ticket,
        now: Duration,
    ) -> bool {
        match class {
            Class::Busy => return !self.concurrency.busy(ticket, now),
            Class::Transient | Class::Throttle if !is_its_own => {
                self.concurrency.troubled(ticket, now);
            }
            Class::Transient
            | Class::Throttle
            | Class::Permanent
            | Class::Ambiguous
            | Class::Doubtful => self.concurrency.failed(now),
        }
        false
    }

    /// Counts a failure of a chunk, and returns all that was counted for it.
    fn count_failure(&mut self, index: u64, verdict: Verdict, failure: &Failure) -> Tries {
        let tries = self.tries.entry(index).or_default();
        tries.failures += 1;
        if verdict == Verdict::TooLarge {
            // The chunk starts over with smaller pieces. Their size can only be lowered a few
            // times, so this ends.
            *tries = Tries {
                failures: 1,
                ..Tries::default()
            };
        } else if self.successes > tries.successes {
            tries.counted += 1;
            tries.successes = self.successes;
        }
        if failure.is_foreign() && self.answers > tries.answers {
            tries.foreign += 1;
            tries.answers = self.answers;
        }
        *tries
    }

    /// Reports a failure of this class to the breaker. Returns whether it ends the transfer,
    /// whatever other requests do.
    fn is_final(&mut self, class: Class, index: u64, is_ours_alone: bool, now: Duration) -> bool {
        match class {
            Class::Permanent | Class::Ambiguous => return true,
            Class::Doubtful => {
                self.breaker.stuck(now);
                let tries = self.tries.entry(index).or_default();
                tries.doubtful += 1;
                return tries.doubtful >= DOUBTFUL_ATTEMPTS;
            }
            Class::Transient => {
                if self.breaker.failed(now) {
                    let probe_at = now + self.breaker.next_probe(&mut self.rng);
                    self.probe_at = self.in_time(probe_at);
                }
            }
            Class::Throttle => self.breaker.stuck(now),
            Class::Busy => {
                if is_ours_alone {
                    // There is one writer, and the drive is still busy: something else uses it.
                    let since = *self.busy_since.get_or_insert_with(|| {
                        self.look_due = true;
                        now
                    });
                    return now >= since + BUSY_FOR.min(self.config.max_outage);
                }
            }
        }
        false
    }

    /// Part of a chunk was transferred and need not be sent again. The chunk is not settled, but
    /// this is progress, and ends an outage.
    fn advanced(&mut self, index: u64, now: Duration) {
        self.tries.remove(&index);
        self.busy_since = None;
        if self.breaker.succeeded() {
            self.concurrency.outage_ended(now);
        }
    }

    fn next_in_outage(&mut self, now: Duration) -> Action<P> {
        if self.asking > 0 {
            return Action::Wait(None);
        }
        if now < self.probe_at {
            return Action::Wait(Some(self.probe_at));
        }
        self.asking += 1;
        Action::Probe
    }

    fn zeros_to_prove(&self) -> Option<Span> {
        if self.zeros != Zeros::Unproven {
            return None;
        }
        self.config.plan.span(self.holes.front()?.start)
    }

    /// When the first of the chunks that wait for another attempt is due.
    fn next_due(&self) -> Option<Duration> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next chunk to send: one whose wait is over, a new one, or zeros.
    fn next_chunk(&mut self, now: Duration) -> Option<(Span, Payload<P>)> {
        let (index, payload) = if self.next_due().is_some_and(|due| due <= now) {
            let ((_, index), payload) = self.delayed.pop_first()?;
            (index, Payload::Given(payload))
        } else if let Some((index, payload)) = self.ready.pop_front() {
            (index, Payload::Given(payload))
        } else if self.zeros == Zeros::Write {
            let chunks = self.holes.front_mut()?;
            let index = chunks.start;
            chunks.start += 1;
            if chunks.is_empty() {
                self.holes.pop_front();
            }
            (index, Payload::Zeros)
        } else {
            return None;
        };
        Some((self.config.plan.span(index)?, payload))
    }

    fn skip(&mut self, chunks: Range<u64>) {
        self.skipped_bytes += self.config.plan.bytes_in(&chunks);
        self.ledger.settle(chunks.clone());
        self.skipped.push(chunks);
    }

    /// When to end the transfer although requests are in flight, because none of them makes
    /// progress. A request that moves bytes may continue.
    fn over_at(&self) -> Option<Duration> {
        let at = self.breaker.gives_up_at()?;
        let last = match self.asking {
            0 => at,
            _ => at.saturating_add(LAST_PROBE),
        };
        let quiet = match self.in_flight.is_empty() {
            true => Duration::ZERO,
            false => self.moved.1 + self.config.max_outage.min(QUIET_MAX),
        };
        Some(last.max(quiet))
    }

    /// The time of an attempt, but not later than the end of the outage, so that the last attempt
    /// is made when the time is over and not long before.
    fn in_time(&self, at: Duration) -> Duration {
        self.breaker.gives_up_at().map_or(at, |end| at.min(end))
    }

    /// Whether the wait that the endpoint asks for ends before the transfer would give up.
    fn has_time_for(&self, failure: &Failure, now: Duration) -> bool {
        let outage = self.breaker.gives_up_at();
        let end = outage.unwrap_or_else(|| now.saturating_add(self.config.max_outage));
        fits(failure, now, self.deadline.map_or(end, |at| end.min(at)))
    }

    /// Whether the drive is missing only because it was created a moment ago: not every part of the
    /// endpoint may know it yet.
    fn is_too_new(&self, failure: &Failure, now: Duration) -> bool {
        let is_missing = matches!(failure, Failure::Refused(refusal) if refusal.status == 404);
        is_missing && self.config.is_fresh && now < FRESH_FOR
    }

    fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.asking == 0
    }

    /// Ends the transfer. The first reason is the one that counts.
    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::super::concurrency::link::bytes_moved;
    use super::*;
    use crate::chunk::RequestSize;
    use crate::failure::Refusal;
    use crate::wire::ErrorType;

    const S: Duration = Duration::from_secs(1);

    fn engine(chunks: u64, jobs: u32, zeros: Zeros) -> Engine<()> {
        Engine::new(EngineConfig {
            plan: Plan::new(chunks * 10, NonZeroU64::new(10).unwrap()),
            first: 0,
            settled: RangeSet::new(),
            jobs_min: 1,
            jobs,
            zeros,
            operation: Operation::Write,
            is_fresh: false,
            max_outage: 900 * S,
            round_trip: Duration::ZERO,
            pieces: PiecesConfig::default(),
            seed: 1,
        })
    }

    fn refused(status: u16, error: Option<ErrorType>) -> Failure {
        Failure::Refused(Refusal {
            status,
            error,
            message: String::new(),
            retry_after: None,
        })
    }

    impl Engine<()> {
        fn answered(&mut self, index: u64, answer: Result<(), Failure>, now: Duration) {
            self.attempted(index, &Requests::default(), answer, now);
        }

        fn attempted(
            &mut self,
            index: u64,
            requests: &Requests,
            answer: Result<(), Failure>,
            now: Duration,
        ) {
            match answer {
                Ok(()) => self.confirmed(index, requests, now),
                Err(failure) => self.failed(index, (), requests, failure, now),
            }
        }
    }

    fn sent(action: &Action<()>) -> u64 {
        match action {
            Action::Send { span, .. } => span.index,
            other => panic!("{other:?} instead of a chunk"),
        }
    }

    #[test]
    fn a_transfer_is_complete_only_when_all_chunks_are_confirmed() {
        let mut engine = engine(3, 2, Zeros::Write);
        engine.chunk(0, ());
        engine.chunk(1, ());
        assert_eq!(sent(&engine.next(S)), 0);
        assert_eq!(sent(&engine.next(S)), 1);
        assert_eq!(engine.next(S), Action::Wait(None));
        engine.answered(1, Ok(()), S);
        engine.answered(0, Ok(()), S);
        assert_eq!(engine.next(S), Action::Wait(None));
        engine.hole(2..3);
        engine.image_ended();
        assert_eq!(sent(&engine.next(S)), 2);
        assert_eq!(engine.next(S), Action::Wait(None));
        engine.answered(2, Ok(()), S);
        assert_eq!(engine.next(S), Action::End(Ending::Complete));
    }

    #[test]
    fn a_transfer_with_a_lost_chunk_is_not_complete() {
        let mut engine = engine(3, 2, Zeros::Write);
        engine.hole(0..1);
        engine.chunk(2, ());
        engine.image_ended();
        for index in [2, 0] {
            assert_eq!(sent(&engine.next(S)), index);
            engine.answered(index, Ok(()), S);
        }
        assert_eq!(engine.next(S), Action::End(Ending::Incomplete));
    }

    #[test]
    fn an_image_that_cannot_be_read_ends_the_transfer() {
        let mut unread = engine(3, 2, Zeros::Write);
        unread.image_failed();
        let mut changed = engine(3, 2, Zeros::Write);
        changed.chunk(0, ());
        assert_eq!(sent(&changed.next(S)), 0);
        changed.failed_here(0);
        for engine in [&mut unread, &mut changed] {
            assert_eq!(engine.next(S), Action::End(Ending::ImageFailed));
        }
    }

    #[test]
    fn another_attempt_sends_the_same_payload() {
        let mut engine = Engine::new(engine(2, 2, Zeros::Write).config);
        engine.chunk(0, "data");
        engine.hole(1..2);
        let mut seen: [Vec<&str>; 2] = Default::default();
        let mut now = S;
        while seen.iter().any(|payloads| payloads.len() < 3) {
            match engine.next(now) {
                Action::Send { span, payload } => {
                    let payload = match payload {
                        Payload::Given(payload) => payload,
                        Payload::Zeros => "zeros",
                    };
                    seen[span.index as usize].push(payload);
                    let (requests, failure) = (Requests::default(), refused(503, None));
                    engine.failed(span.index, payload, &requests, failure, now);
                }
                Action::Probe => engine.probed(Ok(()), now),
                Action::Wait(Some(until)) => now = until,
                other => panic!("{other:?}"),
            }
        }
        assert!(seen[0].iter().all(|payload| *payload == "data"));
        assert!(seen[1].iter().all(|payload| *payload == "zeros"));
    }

    #[test]
    fn holes_are_skipped_only_after_the_proof() {
        for proven in [true, false] {
            let mut engine = engine(4, 2, Zeros::for_drive(true));
            engine.hole(0..3);
            engine.chunk(3, ());
            assert!(matches!(engine.next(S), Action::ProveZeros(span) if span.index == 0));
            assert_eq!(sent(&engine.next(S)), 3);
            engine.answered(3, Ok(()), S);
            assert_eq!(engine.next(S), Action::Wait(None));
            engine.proved(proven);
            engine.image_ended();
            if proven {
                assert_eq!(engine.next(S), Action::End(Ending::Complete));
                assert_eq!(engine.skipped_bytes(), 30);
            } else {
                for index in 0..3 {
                    assert_eq!(sent(&engine.next(S)), index);
                    engine.answered(index, Ok(()), S);
                }
                assert_eq!(engine.next(S), Action::End(Ending::Complete));
                assert_eq!(engine.skipped_bytes(), 0);
            }
        }
    }

    #[test]
    fn a_proof_that_gets_no_answer_ends_the_transfer() {
        let mut engine = engine(2, 1, Zeros::Unproven);
        engine.hole(0..2);
        assert!(matches!(engine.next(S), Action::ProveZeros(_)));
        let failure = refused(502, None);
        engine.unproved(failure.clone());
        assert_eq!(engine.next(S), Action::End(Ending::GaveUp(failure)));
    }

    #[test]
    fn zeros_are_written_to_an_existing_drive() {
        let mut engine = engine(2, 4, Zeros::for_drive(false));
        engine.hole(0..2);
        assert_eq!(sent(&engine.next(S)), 0);
        assert_eq!(sent(&engine.next(S)), 1);
    }

    #[test]
    fn a_refused_chunk_ends_the_transfer_after_the_others_finish() {
        let mut engine = engine(3, 3, Zeros::Write);
        for index in 0..3 {
            engine.chunk(index, ());
            engine.next(S);
        }
        engine.answered(1, Err(refused(507, None)), S);
        assert!(!engine.wants_chunk());
        assert_eq!(engine.next(S), Action::Wait(None));
        engine.answered(0, Ok(()), S);
        // A later failure of another chunk changes nothing.
        engine.answered(2, Err(refused(401, None)), S);
        let ending = Ending::Failed(refused(507, None));
        assert_eq!(engine.next(S), Action::End(ending));
        assert_eq!(engine.first_open(), 1);
    }

    #[test]
    fn busy_lowers_the_workers_to_one_and_then_queries_the_drive() {
        let busy = || Err(refused(409, Some(ErrorType::Busy)));
        let mut engine = engine(100, 4, Zeros::Write);
        for index in 0..4 {
            engine.chunk(index, ());
            assert_eq!(sent(&engine.next(S)), index);
        }
        // Three requests that were sent together are busy: that lowers the limit once.
        for index in 1..4 {
            engine.answered(index, busy(), S);
        }
        engine.answered(0, Ok(()), S);
        assert_eq!(engine.concurrency.limit(), 2);
        let later = 100 * S;
        let (a, b) = (sent(&engine.next(later)), sent(&engine.next(later)));
        engine.answered(a, busy(), later);
        engine.answered(b, Ok(()), later);
        assert_eq!(engine.concurrency.limit(), 1);
        let later = 200 * S;
        let c = sent(&engine.next(later));
        engine.answered(c, busy(), later);
        assert_eq!(engine.next(later), Action::Look);
        engine.looked(None);
        assert!(matches!(engine.next(later), Action::Wait(Some(_))));
        let later = 300 * S;
        let c = sent(&engine.next(later));
        engine.answered(c, busy(), later);
        assert!(!engine.look_due, "one look is enough");
        assert!(matches!(engine.next(later), Action::Wait(Some(_))));
        let later = 900 * S;
        let c = sent(&engine.next(later));
        engine.answered(c, busy(), later);
        let ending = Ending::Failed(refused(409, Some(ErrorType::Busy)));
        assert_eq!(engine.next(later), Action::End(ending));
    }

    #[test]
    fn after_an_outage_half_of_the_workers_resume() {
        let mut engine = engine(100, 4, Zeros::Write);
        let mut now = S;
        for index in 0..4 {
            engine.chunk(index, ());
            engine.next(now);
        }
        for index in 0..4 {
            engine.answered(index, Err(Failure::Broken("reset".into())), now);
        }
        now = 100 * S;
        let index = sent(&engine.next(now));
        engine.answered(index, Err(Failure::Stalled(30 * S)), now);
        assert!(matches!(engine.next(now), Action::Wait(Some(_))));
        now = 150 * S;
        assert_eq!(engine.next(now), Action::Probe);
        // Nothing happens before the probe ends or the outage has lasted too long.
        assert_eq!(engine.next(now), Action::Wait(Some(903 * S)));
        engine.probed(Err(Failure::Connect("refused".into())), now);
        now = 200 * S;
        assert_eq!(engine.next(now), Action::Probe);
        engine.probed(Ok(()), now);
        assert_eq!(engine.concurrency.limit(), 2);
        sent(&engine.next(now));
    }

    #[test]
    fn an_endless_outage_is_given_up_and_can_be_resumed() {
        let mut engine = engine(100, 1, Zeros::Write);
        engine.chunk(0, ());
        let mut now = S;
        let ending = loop {
            match engine.next(now) {
                Action::Send { span, .. } => {
                    engine.answered(span.index, Err(Failure::Connect("refused".into())), now);
                }
                Action::Probe => engine.probed(Err(Failure::Connect("refused".into())), now),
                Action::Wait(Some(until)) => {
                    assert!(until > now, "a wait that is over already");
                    now = until;
                }
                Action::End(ending) => break ending,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ending, Ending::GaveUp(Failure::Connect("refused".into())));
        assert_eq!(now, 901 * S);
    }

    /// Plays a transfer of one chunk whose attempts and probes all fail. Returns how it ended, and
    /// when.
    fn outage(engine: &mut Engine<()>, failure: &Failure) -> (Ending, Duration) {
        engine.chunk(0, ());
        let mut now = S;
        loop {
            match engine.next(now) {
                Action::Send { span, .. } => engine.answered(span.index, Err(failure.clone()), now),
                Action::Probe => engine.probed(Err(failure.clone()), now),
                Action::Wait(Some(until)) => {
                    assert!(until > now, "a wait that is over already");
                    now = until;
                }
                Action::End(ending) => return (ending, now),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_web_page_in_the_middle_of_a_transfer_is_an_outage() {
        let failures = [
            Failure::NotApi("an HTML page".into()),
            Failure::Certificate("unknown issuer".into()),
            refused(302, None),
        ];
        for failure in failures {
            let (ending, now) = outage(&mut engine(1, 1, Zeros::Write), &failure);
            assert_eq!(ending, Ending::GaveUp(failure));
            assert_eq!(now, 901 * S);
        }
    }

    #[test]
    fn a_read_of_the_wrong_length_is_repeated_a_few_times() {
        let failure = Failure::WrongLength("3 bytes".into());
        let mut engine = engine(1, 1, Zeros::Write);
        let (ending, now) = outage(&mut engine, &failure);
        assert_eq!(ending, Ending::Failed(failure));
        assert_eq!(engine.retries(), u64::from(DOUBTFUL_ATTEMPTS) - 1);
        assert!(now < 60 * S, "{now:?}");
    }

    #[test]
    fn a_web_page_for_one_of_many_chunks_is_not_an_outage() {
        let mut engine = engine(100, 1, Zeros::Write);
        for index in 0..30 {
            engine.chunk(index, ());
        }
        let (mut now, mut pages) = (S, 0);
        let ending = loop {
            match engine.next(now) {
                Action::Send { span, .. } if span.index == 7 => {
                    pages += 1;
                    engine.answered(7, Err(Failure::NotApi("html".into())), now);
                }
                Action::Send { span, .. } => {
                    now += S;
                    engine.answered(span.index, Ok(()), now);
                }
                Action::Wait(Some(until)) => now = until,
                Action::End(ending) => break ending,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ending, Ending::Failed(Failure::NotApi("html".into())));
        assert_eq!(pages, FOREIGN_MAX);
    }

    #[test]
    fn a_web_page_for_the_last_chunk_is_not_an_outage() {
        let mut engine = engine(1, 1, Zeros::Write);
        engine.chunk(0, ());
        engine.image_ended();
        let mut now = S;
        let ending = loop {
            match engine.next(now) {
                Action::Send { .. } => engine.answered(0, Err(refused(302, None)), now),
                Action::Probe => engine.probed(Ok(()), now),
                Action::Wait(Some(until)) => now = until,
                Action::End(ending) => break ending,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ending, Ending::Failed(refused(302, None)));
        assert!(now < 600 * S, "{now:?}");
    }

    fn asks(seconds: u32) -> Failure {
        Failure::Refused(Refusal {
            status: 429,
            error: None,
            message: String::new(),
            retry_after: Some(seconds * S),
        })
    }

    #[test]
    fn a_retry_after_beyond_the_patience_ends_the_transfer_at_once() {
        let ends = |asked: u32, deadline: Option<Duration>| {
            let mut engine = engine(1, 1, Zeros::Write);
            if let Some(at) = deadline {
                engine.set_deadline(at);
            }
            engine.chunk(0, ());
            sent(&engine.next(S));
            engine.answered(0, Err(asks(asked)), S);
            let is_over = engine.next(S) == Action::End(Ending::GaveUp(asks(asked)));
            assert_eq!(is_over, engine.ending().is_some());
            is_over
        };
        assert!(ends(3600, None) && !ends(900, None));
        assert!(ends(300, Some(200 * S)) && !ends(300, Some(301 * S)));
    }

    #[test]
    fn hanging_requests_do_not_prolong_an_outage() {
        let mut config = engine(100, 4, Zeros::Write).config;
        config.max_outage = 10 * S;
        let mut engine = Engine::new(config);
        for index in 0..4 {
            engine.chunk(index, ());
            sent(&engine.next(S));
        }
        engine.moved(40, S);
        let stalled = || Err(Failure::Stalled(30 * S));
        for index in 0..4 {
            engine.answered(index, stalled(), 31 * S);
        }
        // Other requests hang as well.
        let mut now = 31 * S;
        let until = loop {
            match engine.next(now) {
                Action::Send { .. } => engine.moved(50, now),
                Action::Wait(Some(until)) if until < 41 * S => now = until,
                Action::Wait(Some(until)) => break until,
                other => panic!("{other:?} while requests hang"),
            }
        };
        assert!(until <= now + 10 * S, "{until:?} after {now:?}");
        // It continues as long as bytes move.
        engine.moved(60, until);
        engine.next(45 * S);
        assert_eq!(engine.ending(), None, "bytes move, and it gave up");
        let until = 65 * S;
        engine.next(until);
        let ending = Ending::GaveUp(Failure::Stalled(30 * S));
        assert_eq!(engine.ending(), Some(&ending));
        assert!(engine.is_hopeless(until));
    }

    #[test]
    fn a_hanging_last_probe_does_not_delay_giving_up() {
        let mut config = engine(100, 8, Zeros::Write).config;
        config.max_outage = 10 * S;
        let mut engine = Engine::new(config);
        for index in 0..5 {
            engine.chunk(index, ());
            engine.next(S);
        }
        for index in 0..5 {
            engine.answered(index, Err(refused(502, None)), S);
        }
        let mut now = S;
        while let Action::Wait(Some(until)) = engine.next(now) {
            now = until;
        }
        // That was the probe, or its repetition, and it is never answered.
        let Action::Wait(Some(until)) = engine.next(now) else {
            panic!("nothing bounds the probe")
        };
        assert!(until >= 11 * S && until <= 13 * S, "{until:?}");
        engine.next(until);
        assert_eq!(engine.ending(), Some(&Ending::GaveUp(refused(502, None))));
    }

    #[test]
    fn the_outlook_states_what_the_transfer_waits_for() {
        let mut engine = engine(100, 8, Zeros::Write);
        assert_eq!(engine.outlook(S), None);
        for index in 0..5 {
            engine.chunk(index, ());
            engine.next(S);
        }
        engine.answered(0, Err(asks(60)), S);
        let outlook = engine.outlook(S).unwrap();
        assert!(outlook.next >= 61 * S && !outlook.is_outage, "{outlook:?}");
        assert_eq!(outlook.gives_up_at, 901 * S);
        for index in 1..5 {
            engine.answered(index, Err(refused(502, None)), S);
        }
        engine.answered(1, Ok(()), 2 * S);
        assert_eq!(engine.outlook(2 * S), None);
    }

    #[test]
    fn retry_after_delays_all_workers() {
        let mut engine = engine(2, 2, Zeros::Write);
        engine.chunk(0, ());
        engine.chunk(1, ());
        sent(&engine.next(S));
        let failure = Failure::Refused(Refusal {
            status: 429,
            error: None,
            message: String::new(),
            retry_after: Some(20 * S),
        });
        engine.answered(0, Err(failure), S);
        let Action::Wait(Some(until)) = engine.next(S) else {
            panic!("nobody waits");
        };
        assert!(until >= 21 * S && until <= 24 * S);
        sent(&engine.next(until));
    }

    #[test]
    fn a_new_drive_may_be_missing_for_a_minute() {
        let missing = refused(404, Some(ErrorType::Missing));
        let mut config = engine(1, 1, Zeros::Write).config;
        config.is_fresh = true;
        let mut engine = Engine::new(config);
        engine.chunk(0, ());
        sent(&engine.next(S));
        engine.answered(0, Err(missing.clone()), S);
        sent(&engine.next(60 * S));
        engine.answered(0, Err(missing.clone()), 60 * S);
        assert_eq!(engine.next(60 * S), Action::End(Ending::Failed(missing)));
    }

    #[test]
    fn a_chunk_that_fails_ten_times_while_others_succeed_is_given_up() {
        let mut engine = engine(100, 1, Zeros::Write);
        let (mut now, mut failures) = (S, 0);
        engine.chunk(0, ());
        loop {
            match engine.next(now) {
                Action::Send { span, .. } if span.index == 0 => {
                    failures += 1;
                    engine.answered(0, Err(refused(502, None)), now);
                    engine.chunk(failures.into(), ());
                }
                Action::Send { span, .. } => engine.answered(span.index, Ok(()), now),
                Action::Wait(Some(at)) => now = at,
                Action::End(ending) => {
                    assert_eq!(ending, Ending::GaveUp(refused(502, None)));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        // The first failure is before any success, and does not count.
        assert_eq!((failures, engine.retries()), (ATTEMPTS_MAX + 1, 10));
    }

    #[test]
    fn a_due_chunk_sets_no_timer_while_nothing_can_be_sent() {
        let mut engine = engine(2, 1, Zeros::Write);
        engine.chunk(0, ());
        engine.chunk(1, ());
        sent(&engine.next(S));
        engine.answered(0, Err(Failure::Broken("reset".into())), S);
        // Another chunk is in flight before the first is due again.
        assert_eq!(sent(&engine.next(S)), 1);
        let end_of_outage = Action::Wait(Some(901 * S));
        assert_eq!(engine.next(100 * S), end_of_outage);
    }

    #[test]
    fn retry_after_delays_probes_and_queries() {
        let asked = |status| {
            Failure::Refused(Refusal {
                status,
                error: None,
                message: String::new(),
                retry_after: Some(100 * S),
            })
        };
        let mut engine = engine(9, 1, Zeros::Write);
        engine.chunk(0, ());
        sent(&engine.next(S));
        engine.answered(0, Err(asked(409)), S);
        let Action::Wait(Some(until)) = engine.next(S) else {
            panic!("it looks at once");
        };
        assert!(until >= 101 * S);
        assert_eq!(engine.next(until), Action::Look);
        engine.looked(None);
        for _ in 0..5 {
            assert_eq!(sent(&engine.next(until)), 0);
            engine.answered(0, Err(Failure::Broken("reset".into())), until);
            engine.delayed.clear();
            engine.ready.push_back((0, ()));
        }
        let later = until + 100 * S;
        assert_eq!(engine.next(later), Action::Probe);
        engine.probed(Err(asked(503)), later);
        let Action::Wait(Some(again)) = engine.next(later + 99 * S) else {
            panic!("the endpoint asked for 100 s");
        };
        assert_eq!(engine.next(again), Action::Probe);
        // It asks for more time than there is.
        engine.probed(Err(asks(3600)), again);
        assert_eq!(engine.next(again), Action::End(Ending::GaveUp(asks(3600))));
    }

    #[test]
    fn an_endpoint_that_answers_probes_but_accepts_no_chunk_is_given_up() {
        let mut engine = engine(100, 1, Zeros::Write);
        engine.chunk(0, ());
        let mut now = S;
        let ending = loop {
            assert!(now < 9000 * S, "it is tried for ever");
            match engine.next(now) {
                Action::Send { span, .. } => {
                    engine.answered(span.index, Err(refused(502, None)), now);
                }
                Action::Probe => engine.probed(Ok(()), now),
                Action::Wait(Some(until)) => now = until,
                Action::End(ending) => break ending,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ending, Ending::GaveUp(refused(502, None)));
        assert!(now >= 1801 * S && now < 1900 * S, "{now:?}");
    }

    #[test]
    fn probes_may_not_find_a_new_drive_for_a_minute() {
        let missing = refused(404, Some(ErrorType::Missing));
        let mut config = engine(9, 8, Zeros::Write).config;
        config.is_fresh = true;
        let mut engine = Engine::new(config);
        for index in 0..4 {
            engine.chunk(index, ());
            sent(&engine.next(S));
        }
        for index in 0..4 {
            engine.answered(index, Err(missing.clone()), S);
        }
        let later = 10 * S;
        let index = sent(&engine.next(later));
        engine.answered(index, Err(missing.clone()), later);
        let later = 20 * S;
        assert_eq!(engine.next(later), Action::Probe);
        engine.probed(Err(missing), later);
        assert_eq!(engine.ending(), None);
        let later = 40 * S;
        assert_eq!(engine.next(later), Action::Probe);
        engine.probed(Ok(()), later);
        sent(&engine.next(later));
    }

    /// Chunks of 5 MiB, and one worker.
    fn large_chunks() -> Engine<()> {
        let mut config = engine(9, 1, Zeros::Write).config;
        let chunk = NonZeroU64::new(5 << 20).unwrap();
        config.plan = Plan::new(9 * chunk.get(), chunk);
        Engine::new(config)
    }

    fn failing(bytes: u64, advanced_bytes: u64) -> Requests {
        Requests {
            advanced_bytes,
            failed: Some(RequestSize::plain(bytes)),
            ..Requests::default()
        }
    }

    #[test]
    fn a_request_refused_for_its_size_is_repeated_at_once_and_smaller() {
        let mut engine = large_chunks();
        engine.chunk(0, ());
        let (mut bytes, mut attempts) = (5 << 20, 0);
        let ending = loop {
            match engine.next(S) {
                Action::Send { span, .. } => {
                    let requests = failing(bytes, 0);
                    engine.attempted(span.index, &requests, Err(refused(413, None)), S);
                    attempts += 1;
                    bytes = bytes.min(engine.limits().most.body);
                }
                Action::End(ending) => break ending,
                other => panic!("{other:?}"),
            }
        };
        // Only a refusal of the smallest size is final.
        assert_eq!(ending, Ending::Failed(refused(413, None)));
        assert_eq!((bytes, attempts), (16 << 10, 10));
    }

    /// When a transfer gives up, within a day, whose every attempt moves `advanced_bytes` and then
    /// breaks.
    fn gives_up_at(advanced_bytes: u64) -> Option<Duration> {
        let mut engine = large_chunks();
        engine.chunk(0, ());
        let (mut now, mut attempts) = (S, 0);
        while attempts < 3000 {
            match engine.next(now) {
                Action::Send { span, .. } => {
                    attempts += 1;
                    now += 30 * S;
                    let answer = Err(Failure::Stalled(30 * S));
                    let bytes = engine.limits().most.body.min(5 << 20);
                    engine.attempted(span.index, &failing(bytes, advanced_bytes), answer, now);
                }
                Action::Probe => engine.probed(Ok(()), now),
                Action::Wait(Some(until)) => now = until,
                Action::End(_) => return Some(now),
                other => panic!("{other:?}"),
            }
        }
        None
    }

    #[test]
    fn a_part_of_a_chunk_is_progress_but_a_drip_is_not() {
        assert_eq!(gives_up_at(16 << 10), None);
        let drip = gives_up_at(1000).unwrap();
        assert!(drip < 2400 * S, "{drip:?}");
    }

    #[test]
    fn a_request_on_a_broken_connection_is_repeated_at_once() {
        let mut engine = large_chunks();
        engine.chunk(0, ());
        for advanced in [1 << 20, 0] {
            assert_eq!(sent(&engine.next(S)), 0);
            let answer = Err(Failure::Broken("reset".into()));
            engine.attempted(0, &failing(1 << 20, advanced), answer, S);
        }
        // This time no byte was transferred.
        assert!(matches!(engine.next(S), Action::Wait(Some(_))));
    }

    #[test]
    fn a_connection_that_breaks_after_progress_lowers_no_limit() {
        for (advanced, is_lowered) in [(1 << 20, false), (0, true)] {
            let mut config = large_chunks().config;
            (config.jobs_min, config.jobs) = (8, 8);
            let mut engine = Engine::new(config);
            engine.chunk(0, ());
            assert_eq!(sent(&engine.next(S)), 0);
            let before = engine.limit();
            let answer = Err(Failure::Broken("reset".into()));
            engine.attempted(0, &failing(1 << 20, advanced), answer, S);
            assert_eq!(engine.limit() < before, is_lowered, "{advanced}");
        }
    }

    #[test]
    fn a_stop_lets_requests_in_flight_finish() {
        let mut engine = engine(2, 1, Zeros::Write);
        engine.chunk(0, ());
        engine.chunk(1, ());
        sent(&engine.next(S));
        engine.stop();
        assert_eq!(engine.next(S), Action::Wait(None));
        engine.answered(0, Ok(()), S);
        assert_eq!(engine.next(S), Action::End(Ending::Stopped));
        assert_eq!(engine.first_open(), 1);
    }

    /// An engine with `chunks` chunks of 4 MiB, all but the last `left` settled, whose requests
    /// carry `rate` bytes per second each.
    fn near_the_end(chunks: u64, jobs: u32, rate: u64, left: u64) -> (Engine<()>, Duration) {
        let mut config = engine(chunks, jobs, Zeros::Write).config;
        let chunk = NonZeroU64::new(4 << 20).unwrap();
        config.plan = Plan::new(chunks * chunk.get(), chunk);
        config.jobs_min = jobs;
        let mut engine = Engine::new(config);
        let (mut now, mut moved, mut in_flight) = (S, 0, Vec::new());
        let (mut given, mut done) = (0, 0);
        while done < chunks - left {
            while engine.wants_chunk() && given < chunks {
                engine.chunk(given, ());
                given += 1;
            }
            engine.moved(moved, now);
            engine.arrived(bytes_moved(moved), now);
            while let Action::Send { span, .. } = engine.next(now) {
                in_flight.push(span.index);
            }
            let all = in_flight.len() as u64;
            now += Duration::from_millis((4 << 20) * 1000 / rate / all);
            moved += 4 << 20;
            engine.moved(moved, now);
            engine.arrived(bytes_moved(moved), now);
            engine.answered(in_flight.remove(0), Ok(()), now);
            done += 1;
        }
        while engine.wants_chunk() && given < chunks {
            engine.chunk(given, ());
            given += 1;
        }
        while matches!(engine.next(now), Action::Send { .. }) {}
        (engine, now)
    }

    #[test]
    fn the_last_chunks_are_divided_where_requests_take_long() {
        let slow = 1 << 20;
        let piece_of = |engine: &Engine<()>| engine.limits().piece_of(RequestSize::plain(4 << 20));
        // More chunks are left than the limit; the same over a slower link; fewer; a fast link; one
        // request at a time.
        assert_eq!(piece_of(&near_the_end(100, 8, 2 * slow, 40).0), u64::MAX);
        assert_eq!(piece_of(&near_the_end(100, 8, slow / 4, 40).0), 832 << 10);
        let (mut engine, now) = near_the_end(100, 8, slow, 12);
        let piece = piece_of(&engine);
        assert!((600_000..900_000).contains(&piece), "{piece}");
        assert_eq!(engine.spare(now), 0);
        // Fewer chunks are left than the limit, and spare requests move as much as the others.
        let (mut engine, now) = near_the_end(100, 8, slow, 5);
        let piece = piece_of(&engine);
        let moved = Moved {
            bytes: (95 * 4 + 8 * 20) << 20,
            spare: 3 * 20 * S,
        };
        engine.arrived(moved, now + 20 * S);
        let later = piece_of(&engine);
        assert!(later.abs_diff(piece) <= 64 << 10, "{piece}, {later}");
        let (engine, _) = near_the_end(100, 8, 20 << 20, 12);
        assert_eq!(piece_of(&engine), u64::MAX);
        let (mut engine, now) = near_the_end(20, 1, slow, 1);
        assert!(!engine.limits().is_shared());
        assert_eq!(engine.spare(now), 0);
    }

    #[test]
    fn requests_that_no_chunk_needs_are_spare() {
        let (mut engine, now) = near_the_end(100, 8, 1 << 20, 5);
        assert_eq!((engine.limit(), engine.spare(now)), (8, 3));
        // A chunk that waits for another attempt will need its request.
        let busy = refused(500, None);
        engine.answered(99, Err(Failure::Broken("reset".into())), now);
        let limit = engine.limit();
        assert!(limit < 8);
        assert_eq!(engine.spare(now), limit.saturating_sub(5));
        engine.answered(98, Ok(()), now);
        engine.answered(97, Ok(()), now);
        engine.answered(96, Ok(()), now);
        assert_eq!(engine.spare(now), limit - 2);
        // In an outage, and after the end.
        for _ in 0..20 {
            if let Action::Send { span, .. } = engine.next(now + S) {
                engine.answered(span.index, Err(busy.clone()), now + S);
            }
        }
        engine.stop();
        assert_eq!(engine.spare(now), 0);
    }

    #[test]
    fn a_low_rate_limit_is_known_before_the_first_request() {
        let mut config = engine(100, 4, Zeros::Write).config;
        config.plan = Plan::new(500 << 20, NonZeroU64::new(5 << 20).unwrap());
        config.jobs_min = 4;
        let unlimited: Engine<()> = Engine::new(config.clone());
        assert_eq!((unlimited.limit(), unlimited.chunks()), (4, 4));
        config.pieces.rate = Some(300 << 10);
        let slow: Engine<()> = Engine::new(config.clone());
        assert_eq!((slow.limit(), slow.chunks()), (4, 1));
        // More requests do not move more than the limit, so they need no chunks of their own.
        config.jobs_min = 32;
        config.jobs = 64;
        let many: Engine<()> = Engine::new(config.clone());
        assert_eq!((many.limit(), many.chunks()), (32, 1));
        (config.jobs_min, config.jobs) = (4, 4);
        config.pieces.rate = Some(100 << 20);
        let fast: Engine<()> = Engine::new(config);
        assert_eq!((fast.limit(), fast.chunks()), (4, 4));
    }

    #[test]
    fn no_spare_requests_while_the_endpoint_requests_a_wait() {
        let (mut engine, now) = near_the_end(100, 8, 1 << 20, 3);
        assert_eq!(engine.spare(now), 5);
        engine.answered(99, Err(asks(7)), now);
        assert_eq!(engine.spare(now + S), 0);
        assert!(engine.spare(now + 30 * S) > 0);
    }

    #[test]
    fn the_end_of_an_image_of_unknown_size_is_near_once_it_is_known() {
        let (engine, now) = near_the_end(100, 8, 1 << 20, 5);
        let mut config = engine.config.clone();
        let chunk = NonZeroU64::new(config.plan.chunk_bytes()).unwrap();
        let plan = std::mem::replace(&mut config.plan, Plan::endless(chunk));
        let mut endless: Engine<()> = Engine::new(config);
        assert_eq!(endless.spare(now), 0);
        assert!(!endless.limits().is_shared());
        endless.ledger.settle(0..98);
        assert_eq!(endless.ends_at(plan.size()), plan);
        assert_eq!(endless.spare(now), 6);
    }
}
