//! The async shell around the engine, which is the same for both directions: performs the engine's
//! actions and reports their outcomes. One task, no lock.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::claim::{claim, claimed};
use super::patience::{Patience, gave_up};
use super::read_range::DriveReader;
use super::spare_requests::Spare;
use super::stop::{GRACE, Stop, stopped};
use crate::api::{Client, Delivery};
use crate::chunk::is_zero;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::monitor::{Encoded, Event, Monitor, Progress};
use crate::plan::{Plan, Span};
use crate::policy::{Action, Body, Ending, Engine, Limits, Operation, Requests, Wire};
use crate::wire::READ_BYTES_MAX;

/// A silence of this long while requests are in flight is reported.
const SILENCE: Duration = Duration::from_secs(15);

/// What a job passes to the engine.
#[derive(Debug)]
pub(crate) enum Feed {
    /// A chunk to transfer.
    Chunk(u64),
    /// A chunk, with how it was encoded.
    Encoded(u64, Encoded),
    /// Chunks that are all zero.
    Hole(Range<u64>),
    /// The size of the image was unknown and is now known, with the resulting plan.
    Ends(Plan),
    /// There are no more chunks.
    End,
    /// There cannot be more, because of this error.
    Failed(Error),
}

/// One attempt at one chunk.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The result; the outer error is a local one.
    pub(crate) answer: Result<Result<(), Failure>>,
    /// The outcome of its requests, if they observe the given limits.
    pub(crate) requests: Requests,
}

impl Attempt {
    /// An attempt that was made.
    pub(crate) fn of(answer: Result<(), Failure>) -> Self {
        Self {
            answer: Ok(answer),
            requests: Requests::default(),
        }
    }

    /// An attempt that failed locally.
    pub(crate) fn local(error: Error) -> Self {
        Self {
            answer: Err(error),
            requests: Requests::default(),
        }
    }
}

/// The chunks of a transfer.
pub(crate) trait Job {
    /// Waits for the next input. Must be cancel-safe.
    fn feed(&mut self) -> impl Future<Output = Feed> + Send;
    /// The first chunk of the transfer.
    fn first(&self) -> u64 {
        0
    }
    /// From now on, up to `workers` chunks may be in flight.
    fn serve(&mut self, _workers: u32) {}
    /// Makes an attempt at a chunk, in requests within these limits: one at a time, and if the
    /// limits allow sharing, one more for each spare request. If the body should be here and is
    /// not, it fails with [`lost`].
    fn attempt(
        &mut self,
        span: Span,
        body: Body,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Attempt> + Send + 'static;
    /// A chunk needs no other attempt. An error ends the transfer.
    fn settled(&mut self, span: Span, body: Body) -> Result<()>;
    /// Holes were left out.
    fn skipped(&mut self, chunks: Range<u64>) -> Result<()>;
    /// The state of the wire, whenever it changes, without bytes, which only the job knows.
    fn wire(&mut self, _: Wire) {}
}

/// See the [module](self).
pub(crate) struct Shell<J> {
    client: Client,
    drive: DriveId,
    engine: Engine,
    job: J,
    attempts: JoinSet<Answer>,
    spare: Spare,
    local_error: Option<Error>,
    patience: Patience,
    began: Instant,
    /// The bytes that had moved, and when that was first seen; `None` if the silence was reported.
    silent: Option<(u64, Instant)>,
    /// Bytes that the client had moved before this transfer.
    moved_before: u64,
    delivery: Delivery,
    progress: Progress,
    /// Whether the user was informed that connections break too soon.
    has_reported_breaks: bool,
    /// What must hold whatever happens.
    #[cfg(test)]
    watch: crate::simulator::Watch,
}

/// The result of a request.
enum Answer {
    Chunk(Span, Body, Attempt),
    /// Whether the bytes are zeros; the error is an outage that lasted too long.
    Proof(Result<bool, Failure>),
    Probe(Result<(), Failure>),
    Look(Option<String>),
}

impl<J: Job> Shell<J> {
    pub(crate) fn new(
        client: Client,
        drive: DriveId,
        mut engine: Engine,
        job: J,
        patience: &Patience,
    ) -> Self {
        if let Some(left) = patience.left() {
            engine.set_deadline(left);
        }
        Self {
            moved_before: client.moved_bytes(),
            delivery: Delivery::new(client.clone()),
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

    /// Requests that no chunk needs.
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
            if let Some(bytes) = self.delivery.bytes() {
                self.engine.arrived(bytes, now);
            }
            let wait = match self.engine.next(now) {
                Action::End(ending) => return ending,
                Action::Wait(until) => until,
                action => {
                    self.start(&action, monitor);
                    continue;
                }
            };
            #[cfg(test)]
            self.watch.waits(wait, now);
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
    fn start(&mut self, action: &Action, monitor: &mut dyn Monitor) {
        #[cfg(test)]
        self.watch
            .starts(action, &self.engine, self.began.elapsed());
        let (client, drive) = (self.client.clone(), self.drive);
        match *action {
            Action::Send(span, body) => {
                let attempt = self
                    .job
                    .attempt(span, body, self.engine.limits(), &self.spare);
                self.attempts
                    .spawn(async move { Answer::Chunk(span, body, attempt.await) });
                // Immediately, because a request that is not seen in flight appears to take no
                // time.
                self.tell_wire();
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
                monitor.event(&Event::Warning("The drive is busy, waiting".into()));
                self.attempts.spawn(async move {
                    let drive = client.info(drive).await.ok();
                    Answer::Look(drive.as_ref().and_then(claim))
                });
            }
            Action::Wait(_) | Action::End(_) => {}
        }
    }

    fn answered(&mut self, answer: Answer, monitor: &mut dyn Monitor) {
        let now = self.began.elapsed();
        match answer {
            Answer::Chunk(span, body, attempt) => {
                let answer = attempt.answer.unwrap_or_else(|error| {
                    let failure = Failure::Broken(error.to_string());
                    self.fail(error);
                    Err(failure)
                });
                match &answer {
                    Ok(_) => {
                        self.progress.done_bytes += span.len;
                        self.progress.done_chunks += 1;
                        if let Err(error) = self.job.settled(span, body) {
                            self.fail(error);
                        }
                    }
                    Err(failure) => tracing::debug!(offset = span.offset, %failure, "attempt"),
                }
                let was_alone = self.engine.limits().is_alone;
                let was_refused = self.engine.pieces().smallest_refused().is_some();
                let failure = answer.as_ref().err().cloned();
                #[cfg(test)]
                self.watch.begins(&self.engine, now);
                self.engine
                    .attempted(span.index, &attempt.requests, answer, now);
                #[cfg(test)]
                self.watch
                    .attempted(span, &attempt.requests, failure.as_ref(), &self.engine);
                self.report_pieces(was_alone, was_refused, monitor);
                self.waits(failure, now);
            }
            Answer::Proof(Err(failure)) => self.engine.unproved(failure),
            Answer::Proof(Ok(is_zero)) => {
                if !is_zero {
                    let what = "The new drive is not proven to read as zeros: zeros are sent";
                    monitor.event(&Event::Notice(what.into()));
                }
                self.engine.proved(is_zero);
            }
            Answer::Probe(answer) => {
                let failure = answer.as_ref().err().cloned();
                #[cfg(test)]
                self.watch.probed(failure.as_ref(), now);
                self.engine.probed(answer, now);
                self.waits(failure, now);
            }
            Answer::Look(by) => self.engine.looked(by),
        }
    }

    /// Reports once why requests are smaller than before.
    fn report_pieces(&mut self, was_alone: bool, was_refused: bool, monitor: &mut dyn Monitor) {
        if let (Some(bytes), false) = (self.engine.pieces().smallest_refused(), was_refused) {
            monitor.event(&Event::Notice(format!(
                "The endpoint refuses requests of {bytes} bytes (413): continuing with smaller pieces"
            )));
        }
        if self.engine.limits().is_alone && !was_alone && !self.has_reported_breaks {
            self.has_reported_breaks = true;
            monitor.event(&Event::Notice(
                "Connections break before a chunk gets through: continuing with smaller pieces"
                    .into(),
            ));
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

    fn fed(&mut self, feed: Feed, monitor: &mut dyn Monitor) {
        match feed {
            Feed::Chunk(index) => self.engine.chunk(index),
            Feed::Encoded(index, encoded) => {
                self.engine.chunk(index);
                monitor.event(&Event::Encoded(encoded));
            }
            Feed::Hole(chunks) => self.engine.hole(chunks),
            Feed::Failed(error) => self.fail(error),
            Feed::Ends(plan) => {
                self.engine.ends_at(plan);
                let chunks = self.job.first()..plan.count();
                monitor.event(&Event::Ended {
                    chunks: chunks.end.saturating_sub(chunks.start),
                    bytes: plan.bytes_in(&chunks),
                });
            }
            Feed::End => self.engine.image_ended(),
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
        self.progress.in_flight = self.engine.in_flight();
        let workers = self.engine.limit();
        if workers != self.progress.workers {
            self.job.serve(workers);
        }
        self.progress.workers = workers;
        self.progress.retries = self.engine.retries();
        self.tell_wire();
        monitor.event(&Event::Progress(self.progress));
    }

    fn tell_wire(&mut self) {
        self.job.wire(Wire {
            ready: self.engine.ready(),
            in_flight: self.engine.in_flight(),
            limit: self.engine.limit() as usize,
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

/// The error for a chunk that has no body, or was never passed on.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Bug, "A chunk was lost inside this program")
        .hint_to("This is a bug, please report it. Nothing is called done that is not")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use rangemap::RangeSet;

    use super::*;
    use crate::api::ClientConfig;
    use crate::failure::Refusal;
    use crate::monitor::Silent;
    use crate::policy::{EngineConfig, Operation, PiecesConfig, Zeros};

    /// Three chunks; the attempts at the middle one fail.
    struct Middle {
        fed: u64,
        failure: Failure,
        settled: Vec<u64>,
    }

    impl Job for Middle {
        async fn feed(&mut self) -> Feed {
            self.fed += 1;
            if self.fed > 3 {
                return Feed::End;
            }
            Feed::Chunk(self.fed - 1)
        }

        fn attempt(
            &mut self,
            span: Span,
            _: Body,
            _: Limits,
            _: &Spare,
        ) -> impl Future<Output = Attempt> + Send + 'static {
            let failure = self.failure.clone();
            async move {
                let answer = if span.index == 1 {
                    Err(failure)
                } else {
                    Ok(())
                };
                Attempt::of(answer)
            }
        }

        fn settled(&mut self, span: Span, _: Body) -> Result<()> {
            self.settled.push(span.index);
            Ok(())
        }

        fn skipped(&mut self, _: Range<u64>) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn nothing_is_settled_before_it_is_confirmed() {
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
        let failure = Failure::Refused(Refusal {
            status: 507,
            error: None,
            message: String::new(),
            retry_after: None,
        });
        let job = Middle {
            fed: 0,
            failure: failure.clone(),
            settled: Vec::new(),
        };
        let patience = Patience::default();
        let mut shell = Shell::new(client, DriveId::random(), engine, job, &patience);
        let stop = Stop::never();
        let ending = shell.run(&mut Silent, stop).await;
        assert_eq!(ending, Ending::Failed(failure));
        assert_eq!((shell.first_open(), shell.into_job().settled), (1, vec![0]));
    }
}
