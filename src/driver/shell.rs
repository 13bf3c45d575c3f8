//! The async shell around the engine, which is the same for both directions: performs the engine's
//! actions and reports their outcomes. One task, no lock.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use rangemap::RangeSet;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::claim::{claim, claimed};
use super::in_flight::InFlight;
use super::patience::{Patience, SILENCE, gave_up};
use super::read_range::DriveReader;
use super::session::gaps;
use super::spare_requests::Spare;
use super::stop::{GRACE, Stop, stopped};
use crate::api::{Client, Delivery};
use crate::chunk::{Found, is_zero};
use crate::content::count;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::monitor::{Encoded, Event, Monitor, Progress};
use crate::plan::Span;
use crate::policy::{Action, Ending, Engine, Limits, Moved, Operation, Payload, Requests, Wire};
use crate::wire::READ_BYTES_MAX;

/// Does this only when built for tests, to show the simulator what happens.
macro_rules! in_tests {
    ($($call:tt)+) => {
        #[cfg(test)]
        $($call)+;
    };
}

/// A chunk for the engine.
#[derive(Debug)]
pub(crate) struct NewChunk<P> {
    pub(crate) index: u64,
    pub(crate) payload: P,
    /// How it was encoded, if it was.
    pub(crate) encoded: Option<Encoded>,
}

impl<P> NewChunk<P> {
    /// A chunk that is not encoded.
    pub(crate) fn plain(index: u64, payload: P) -> Self {
        Self {
            index,
            payload,
            encoded: None,
        }
    }
}

/// What a job passes to the engine; `None` at the end.
pub(crate) type Feed<P> = Option<Result<Found<NewChunk<P>>>>;

/// Why an attempt at a chunk, or at a piece of it, failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// The endpoint or the link: the engine decides what follows.
    Failed(Failure),
    /// This machine, or a drive that does not hold what it should. It ends the transfer.
    Local(Error),
}

impl From<Failure> for AttemptError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl AttemptError {
    /// The outcome for a chunk with this payload, after these requests.
    pub(crate) fn outcome<P, D>(self, payload: P, requests: Requests) -> Outcome<P, D> {
        match self {
            Self::Failed(failure) => Outcome::Failed(failure, payload, requests),
            Self::Local(error) => Outcome::Local(error),
        }
    }
}

/// How an attempt at a chunk ended.
#[derive(Debug)]
pub(crate) enum Outcome<P, D> {
    /// The chunk needs no other attempt.
    Done(D, Requests),
    /// It failed, and its payload comes back for another attempt.
    Failed(Failure, P, Requests),
    /// It failed on this machine, which ends the transfer.
    Local(Error),
}

/// The chunks of a transfer.
pub(crate) trait Job: 'static {
    /// What an attempt needs for a chunk. It is with the engine or with an attempt, never
    /// elsewhere.
    type Payload: Send + 'static;
    /// What an attempt knows of a chunk that needs no other attempt.
    type Done: Send + 'static;
    /// Waits for the next input. Must be cancel-safe.
    fn feed(&mut self) -> impl Future<Output = Feed<Self::Payload>> + Send;
    /// The chunks that this run does not transfer, if the size of the image may become known only
    /// while it runs.
    fn passed(&self) -> RangeSet<u64> {
        RangeSet::new()
    }
    /// From now on, up to `workers` chunks may be in flight.
    fn serve(&mut self, _workers: u32) {}
    /// The payload of a chunk of zeros; `None` in a job that transfers no zeros.
    fn zeros(&mut self, _: Span) -> Option<Self::Payload> {
        None
    }
    /// Makes an attempt at a chunk, in requests within these limits: one at a time, and if the
    /// limits allow sharing, one more for each spare request.
    fn attempt(
        &mut self,
        span: Span,
        payload: Self::Payload,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Outcome<Self::Payload, Self::Done>> + Send + 'static;
    /// Bytes of the image that an attempt would move, and of the bodies that would carry them.
    fn bytes_to_move(&self, span: Span, _: &Self::Payload) -> (u64, u64) {
        (span.len, span.len)
    }
    /// A chunk needs no other attempt. An error ends the transfer.
    fn settled(&mut self, span: Span, done: Self::Done) -> Result<()>;
    /// Holes were left out.
    fn skipped(&mut self, chunks: Range<u64>) -> Result<()>;
    /// The state of the wire, whenever it changes, without bytes, which only the job knows.
    fn wire(&mut self, _: Wire) {}
}

/// See the [module](self).
pub(crate) struct Shell<J: Job> {
    client: Client,
    drive: DriveId,
    engine: Engine<J::Payload>,
    job: J,
    attempts: JoinSet<Answer<J>>,
    spare: Spare,
    local_error: Option<Error>,
    patience: Patience,
    began: Instant,
    /// The bytes that had moved, and when that was first seen; `None` if the silence was reported.
    silent: Option<(u64, Instant)>,
    /// Bytes that the client had moved before this transfer.
    moved_before: u64,
    delivery: Delivery,
    in_flight: InFlight,
    progress: Progress,
    /// Whether the user was informed that connections break too soon.
    has_reported_breaks: bool,
    /// What must hold whatever happens.
    #[cfg(test)]
    watch: crate::simulator::Watch,
}

/// The result of a request.
enum Answer<J: Job> {
    Chunk(Span, Outcome<J::Payload, J::Done>),
    /// Whether the bytes are zeros; the error is an outage that lasted too long.
    Proof(Result<bool, Failure>),
    Probe(Result<(), Failure>),
    Look(Option<String>),
}

impl<J: Job> Shell<J> {
    pub(crate) fn new(
        client: Client,
        drive: DriveId,
        mut engine: Engine<J::Payload>,
        job: J,
        patience: &Patience,
    ) -> Self {
        if let Some(left) = patience.left() {
            engine.set_deadline(left);
        }
        Self {
            moved_before: client.moved_bytes(),
            delivery: Delivery::new(client.clone()),
            in_flight: InFlight::new(client.moved_bytes()),
            client,
            drive,
            engine,
            job,
            attempts: JoinSet::new(),
            spare: Spare::default(),
            local_error: None,
            patience: patience.clone(),
            began: Instant::now(),
            silent: None,
            progress: Progress::default(),
            has_reported_breaks: false,
            #[cfg(test)]
            watch: Default::default(),
        }
    }

    /// The first chunk that is not settled.
    pub(crate) fn first_open(&self) -> u64 {
        self.engine.first_open()
    }

    /// The progress so far.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// Requests beyond one for each chunk.
    pub(crate) fn spare(&self) -> Spare {
        self.spare.clone()
    }

    /// Returns the job when everything is over.
    pub(crate) fn into_job(self) -> J {
        self.job
    }

    /// Runs the transfer to its end, whatever that is.
    pub(crate) async fn run(&mut self, monitor: &mut dyn Monitor, stop: Stop) -> Ending {
        self.job.serve(self.engine.limit());
        let ending = self.work(monitor, stop).await;
        self.abort(monitor).await;
        ending
    }

    /// Ends what is in flight, and reports the progress. A second call has no effect.
    pub(crate) async fn abort(&mut self, monitor: &mut dyn Monitor) {
        self.attempts.shutdown().await;
        self.patience.report(monitor);
        self.report(monitor);
        if let Some((refused_bytes, accepted_bytes)) = self.engine.refused_body() {
            monitor.event(&Event::BodyRefused {
                refused_bytes,
                accepted_bytes,
            });
        }
    }

    async fn work(&mut self, monitor: &mut dyn Monitor, stop: Stop) -> Ending {
        let (mut drain, mut abort) = (stop.clone(), stop);
        let mut grace: Option<Instant> = None;
        loop {
            // This comes before other events at the same time, which could lead to another request.
            if drain.is_asked() && self.engine.ending().is_none() {
                self.engine.stop();
            }
            let now = self.began.elapsed();
            self.engine.moved(self.client.moved_bytes(), now);
            self.engine.spare_taken(self.spare.taken());
            if let Some(bytes) = self.delivery.bytes() {
                let spare = self.spare.taken_for();
                self.engine.arrived(Moved { bytes, spare }, now);
                self.in_flight.arrived(bytes);
            }
            let wait = match self.engine.next(now) {
                Action::End(ending) => return ending,
                Action::Wait(until) => until,
                action => {
                    self.start(action, monitor);
                    continue;
                }
            };
            in_tests!(self.watch.waits(wait, now));
            self.spare.allow(self.engine.spare(now));
            if let Some(ending) = self.engine.ending() {
                // Questions no longer need answers, and hanging requests will not get one.
                if self.engine.in_flight() == 0 || self.engine.is_hopeless(now) {
                    return ending.clone();
                }
                let at = *grace.get_or_insert_with(|| Instant::now() + GRACE);
                if Instant::now() >= at {
                    return ending.clone();
                }
            }
            let silence = self.silence();
            let wake = grace.or_else(|| wait.and_then(|until| self.began.checked_add(until)));
            let delivery = (self.engine.in_flight() > 0)
                .then(|| self.delivery.due())
                .flatten();
            let wake = wake.into_iter().chain(silence).chain(delivery).min();
            tokio::select! {
                // In this order, so that a simulation can be repeated.
                biased;
                Some(answer) = self.attempts.join_next() => match answer {
                    Ok(answer) => self.answered(answer, monitor),
                    // A task of ours panicked: report it instead of guessing.
                    Err(_) => return Ending::Incomplete,
                },
                feed = self.job.feed(), if self.engine.wants_chunk() => self.fed(feed, monitor),
                event = self.patience.event() => monitor.event(&event),
                () = drain.asked(), if self.engine.ending().is_none() => {}
                () = abort.asked_at_once() => return Ending::Stopped,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.report(monitor);
        }
    }

    /// Reports a silence, if requests are in flight and nothing moves. Returns when to check again.
    fn silence(&mut self) -> Option<Instant> {
        if self.engine.in_flight() == 0 {
            self.silent = None;
            return None;
        }
        let (moved, now) = (self.client.moved_bytes(), Instant::now());
        match self.silent {
            Some((before, since)) if before == moved => {
                let silence = now - since;
                if silence < SILENCE {
                    return Some(since + SILENCE);
                }
                self.patience.silent(silence);
                // One report is enough, because the outcome is reported as well.
                None
            }
            _ => {
                self.silent = Some((moved, now));
                Some(now + SILENCE)
            }
        }
    }

    /// Starts a request.
    fn start(&mut self, action: Action<J::Payload>, monitor: &mut dyn Monitor) {
        in_tests!(
            self.watch
                .starts(&action, &self.engine, self.began.elapsed())
        );
        let (client, drive) = (self.client.clone(), self.drive);
        match action {
            Action::Send { span, payload } => {
                let payload = match payload {
                    Payload::Given(payload) => Some(payload),
                    Payload::Zeros => self.job.zeros(span),
                };
                let Some(payload) = payload else {
                    self.engine.failed_here(span.index);
                    return self.fail(lost());
                };
                let (image_bytes, body_bytes) = self.job.bytes_to_move(span, &payload);
                self.in_flight.begins(span.index, image_bytes, body_bytes);
                self.engine.begins(body_bytes);
                let attempt = self
                    .job
                    .attempt(span, payload, self.engine.limits(), &self.spare);
                self.attempts
                    .spawn(async move { Answer::Chunk(span, attempt.await) });
                // Immediately, because a request that is not seen in flight appears to take no
                // time.
                self.report_wire();
            }
            Action::ProveZeros(span) => {
                let len = span.len.min(READ_BYTES_MAX);
                let patience = self.patience.clone();
                self.attempts.spawn(async move {
                    let reader = DriveReader {
                        client: &client,
                        drive,
                        step_max: READ_BYTES_MAX,
                    };
                    let read = || async move {
                        let mut requests = Requests::default();
                        reader.read_all(span.offset, len, &mut requests).await
                    };
                    Answer::Proof(match patience.call(&client, Operation::Read, read).await {
                        Ok(bytes) => Ok(is_zero(&bytes)),
                        Err(unanswered) if unanswered.outage.is_some() => Err(unanswered.failure),
                        // Without an answer there is no proof.
                        Err(_) => Ok(false),
                    })
                });
            }
            Action::Probe => {
                self.attempts
                    .spawn(async move { Answer::Probe(client.info(drive).await.map(|_| ())) });
            }
            Action::Look => {
                monitor.warn("The drive is busy, waiting");
                self.attempts.spawn(async move {
                    let drive = client.info(drive).await.ok();
                    Answer::Look(drive.as_ref().and_then(claim))
                });
            }
            Action::Wait(_) | Action::End(_) => {}
        }
    }

    fn answered(&mut self, answer: Answer<J>, monitor: &mut dyn Monitor) {
        let now = self.began.elapsed();
        match answer {
            Answer::Chunk(span, outcome) => self.attempted(span, outcome, now, monitor),
            Answer::Proof(Err(failure)) => self.engine.unproved(failure),
            Answer::Proof(Ok(is_zero)) => {
                if !is_zero {
                    let what = "The new drive is not proven to read as zeros: zeros are sent";
                    monitor.notice(what);
                }
                self.engine.proved(is_zero);
            }
            Answer::Probe(answer) => {
                let failure = answer.as_ref().err().cloned();
                in_tests!(self.watch.probed(failure.as_ref(), now));
                self.engine.probed(answer, now);
                self.waits(failure, now);
            }
            Answer::Look(by) => self.engine.looked(by),
        }
    }

    fn attempted(
        &mut self,
        span: Span,
        outcome: Outcome<J::Payload, J::Done>,
        now: Duration,
        monitor: &mut dyn Monitor,
    ) {
        let was_alone = self.engine.limits().is_alone;
        let was_refused = self.engine.pieces().smallest_refused().is_some();
        in_tests!(self.watch.begins(&self.engine, now));
        let failure = match outcome {
            Outcome::Done(done, requests) => {
                self.progress.done_bytes += span.len;
                self.progress.done_chunks += 1;
                self.in_flight.confirmed(span.index);
                if let Err(error) = self.job.settled(span, done) {
                    self.fail(error);
                }
                self.engine.confirmed(span.index, &requests, now);
                in_tests!(self.watch.attempted(span, &requests, None, &self.engine));
                None
            }
            Outcome::Failed(failure, payload, requests) => {
                tracing::debug!(offset = span.offset, %failure, "attempt");
                self.in_flight.failed(span.index);
                let same = failure.clone();
                self.engine
                    .failed(span.index, payload, &requests, same, now);
                in_tests!(
                    self.watch
                        .attempted(span, &requests, Some(&failure), &self.engine)
                );
                Some(failure)
            }
            Outcome::Local(error) => {
                self.engine.failed_here(span.index);
                self.in_flight.failed(span.index);
                return self.fail(error);
            }
        };
        self.report_pieces(was_alone, was_refused, monitor);
        self.waits(failure, now);
    }

    /// Reports once why requests are smaller than before.
    fn report_pieces(&mut self, was_alone: bool, was_refused: bool, monitor: &mut dyn Monitor) {
        if let (Some(bytes), false) = (self.engine.pieces().smallest_refused(), was_refused) {
            monitor.notice(format!(
                "The endpoint refuses requests of {bytes} bytes (413): continuing with smaller pieces"
            ));
        }
        if self.engine.limits().is_alone && !was_alone && !self.has_reported_breaks {
            self.has_reported_breaks = true;
            monitor.notice(
                "Connections break before a chunk gets through: continuing with smaller pieces",
            );
        }
    }

    /// Reports what the transfer waits for after a failure, or that the wait is over.
    fn waits(&self, failure: Option<Failure>, now: Duration) {
        match (failure, self.engine.outlook(now)) {
            (None, _) => self.patience.answered(),
            (Some(failure), Some(outlook)) if self.engine.ending().is_none() => {
                self.patience.failed(&failure, outlook, now);
            }
            (Some(_), _) => {}
        }
    }

    fn fed(&mut self, feed: Feed<J::Payload>, monitor: &mut dyn Monitor) {
        match feed {
            Some(Ok(Found::Chunk(chunk))) => {
                self.engine.chunk(chunk.index, chunk.payload);
                if let Some(encoded) = chunk.encoded {
                    monitor.event(&Event::Encoded(encoded));
                }
            }
            Some(Ok(Found::Hole(chunks))) => self.engine.hole(chunks),
            Some(Ok(Found::SizeKnown(size))) => {
                let plan = self.engine.ends_at(size);
                let passed = self.job.passed();
                let todo = gaps(&plan, 0, &passed);
                monitor.event(&Event::SizeKnown {
                    chunks: count(&todo),
                    bytes: plan.bytes_in_all(&todo),
                    earlier_bytes: plan.bytes_in_all(passed.iter()),
                });
            }
            Some(Err(error)) => self.fail(error),
            None => self.engine.image_ended(),
        }
    }

    fn fail(&mut self, error: Error) {
        self.local_error.get_or_insert(error);
        self.engine.image_failed();
    }

    fn report(&mut self, monitor: &mut dyn Monitor) {
        for chunks in self.engine.take_skipped() {
            self.progress.done_chunks += chunks.end - chunks.start;
            if let Err(error) = self.job.skipped(chunks) {
                self.fail(error);
            }
        }
        let skipped = self.engine.skipped_bytes();
        self.progress.done_bytes += skipped - self.progress.skipped_bytes;
        self.progress.skipped_bytes = skipped;
        self.progress.chunks_in_order = self.engine.in_order();
        // The counter of the client, not a sum over attempts: how much a failed attempt moved is
        // unknown.
        self.progress.wire_bytes = self.client.moved_bytes() - self.moved_before;
        self.progress.in_flight_bytes = self.in_flight.beyond(self.progress.done_bytes);
        self.progress.in_flight = self.engine.in_flight();
        let workers = self.engine.limit();
        if workers != self.progress.workers {
            self.job.serve(workers);
        }
        self.progress.workers = workers;
        self.progress.retries = self.engine.retries();
        self.report_wire();
        monitor.event(&Event::Progress(self.progress));
    }

    fn report_wire(&mut self) {
        self.job.wire(Wire {
            ready: self.engine.ready(),
            in_flight: self.engine.in_flight(),
            limit: self.engine.chunks() as usize,
            bytes: 0,
        });
    }

    /// The error of an incomplete ending. `what` is done to the drive, as in "write to".
    pub(crate) fn outcome(&mut self, ending: Ending, what: &str) -> Result<()> {
        Err(match ending {
            Ending::Complete => return Ok(()),
            Ending::Failed(failure) => {
                failure.into_error(&format!("Cannot {what} drive {}", self.drive))
            }
            Ending::GaveUp(failure) => {
                gave_up("Gave up for now", &failure, self.patience.max_outage())
            }
            Ending::Claimed(by) => claimed(self.drive, &by),
            Ending::Stopped => stopped(),
            Ending::ImageFailed => self.local_error.take().unwrap_or_else(lost),
            Ending::Incomplete => lost(),
        })
    }
}

/// The error for a chunk that was never passed on.
fn lost() -> Error {
    Error::new(ErrorKind::Bug, "A chunk was lost inside this program")
        .hint_to("This is a bug, please report it. Nothing is called done that is not")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::api::ClientConfig;
    use crate::failure::Refusal;
    use crate::monitor::Silent;
    use crate::plan::Plan;
    use crate::policy::{EngineConfig, Operation, PiecesConfig, Zeros};

    /// Three chunks; the attempts at the middle one fail.
    struct Middle {
        fed: u64,
        /// Whether the first one is a hole.
        has_hole: bool,
        failure: Failure,
        settled: Vec<u64>,
    }

    impl Middle {
        fn new(failure: Failure) -> Self {
            Self {
                fed: 0,
                has_hole: false,
                failure,
                settled: Vec::new(),
            }
        }
    }

    impl Job for Middle {
        type Payload = ();
        type Done = ();

        async fn feed(&mut self) -> Feed<()> {
            self.fed += 1;
            if self.fed > 3 {
                return None;
            }
            Some(Ok(match self.fed {
                1 if self.has_hole => Found::Hole(0..1),
                fed => Found::Chunk(NewChunk::plain(fed - 1, ())),
            }))
        }

        fn attempt(
            &mut self,
            span: Span,
            (): (),
            _: Limits,
            _: &Spare,
        ) -> impl Future<Output = Outcome<(), ()>> + Send + 'static {
            let failure = self.failure.clone();
            async move {
                let requests = Requests::default();
                match span.index {
                    1 => Outcome::Failed(failure, (), requests),
                    _ => Outcome::Done((), requests),
                }
            }
        }

        fn settled(&mut self, span: Span, (): ()) -> Result<()> {
            self.settled.push(span.index);
            Ok(())
        }

        fn skipped(&mut self, _: Range<u64>) -> Result<()> {
            Ok(())
        }
    }

    fn shell(job: Middle) -> Shell<Middle> {
        let endpoint = "https://127.0.0.1:1/".parse().unwrap();
        let credentials = crate::Credentials::new("u", "k").unwrap();
        let client = Client::new(endpoint, &credentials, &ClientConfig::default()).unwrap();
        let engine = Engine::new(EngineConfig {
            plan: Plan::new(30, NonZeroU64::new(10).unwrap()),
            first: 0,
            settled: RangeSet::new(),
            jobs_min: 1,
            jobs: 1,
            zeros: Zeros::Write,
            operation: Operation::Write,
            is_fresh: false,
            max_outage: GRACE,
            round_trip: Duration::ZERO,
            pieces: PiecesConfig::default(),
            seed: 1,
        });
        Shell::new(client, DriveId::random(), engine, job, &Patience::default())
    }

    #[tokio::test]
    async fn nothing_is_settled_before_it_is_confirmed() {
        let failure = Failure::Refused(Refusal {
            status: 507,
            error: None,
            message: String::new(),
            retry_after: None,
        });
        let mut shell = shell(Middle::new(failure.clone()));
        let ending = shell.run(&mut Silent, Stop::never()).await;
        assert_eq!(ending, Ending::Failed(failure));
        assert_eq!((shell.first_open(), shell.into_job().settled), (1, vec![0]));
    }

    #[tokio::test]
    async fn a_hole_for_a_job_without_zeros_is_a_bug() {
        let mut job = Middle::new(Failure::Broken("reset".into()));
        job.has_hole = true;
        let mut shell = shell(job);
        let ending = shell.run(&mut Silent, Stop::never()).await;
        let error = shell.outcome(ending, "write to").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug);
        assert_eq!((shell.first_open(), shell.into_job().settled), (0, vec![]));
    }
}
