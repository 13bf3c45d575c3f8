//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::create::create;
use super::patient::patiently;
use super::pipeline::{Pipeline, Prepared};
use super::stop::Stop;
use crate::api::Client;
use crate::chunk::{EncodedChunk, Encoding, is_zero};
use crate::codec::{Level, gzip_zeros};
use crate::drive::{DriveId, DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::Image;
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{CHUNK_BYTES_DEFAULT, Plan, Span};
use crate::policy::{Action, Ending, Engine, EngineConfig, Operation, Zeros};
use crate::wire::READ_BYTES_MAX;

/// Attempts at a request that is not a chunk: three in about ten seconds.
const CALL_ATTEMPTS: u32 = 3;
/// How long requests in flight may take when the transfer ends early.
const GRACE: Duration = Duration::from_secs(10);

/// The drive to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One that exists. Everything is written to it, zeros as well.
    Existing(DriveId),
    /// One to be created. Its size is the image's.
    New(DriveSpec),
}

/// How to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// Where to.
    pub target: Target,
    /// Byte of the image to start at; rounded down to a chunk.
    pub offset: u64,
    /// Bytes of a chunk.
    pub chunk: NonZeroU64,
    /// Most requests in flight.
    pub jobs: NonZeroU32,
    /// How hard to compress.
    pub level: Level,
    /// Give up when nothing succeeded for so long.
    pub max_outage: Duration,
}

impl UploadOptions {
    /// The defaults, for a target.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            offset: 0,
            chunk: NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN),
            jobs: NonZeroU32::new(4).unwrap_or(NonZeroU32::MIN),
            level: Level::default(),
            max_outage: Duration::from_secs(15 * 60),
        }
    }
}

/// A finished upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// The drive that holds the image now.
    pub drive: DriveId,
    /// What moved.
    pub progress: Progress,
}

/// An upload that did not finish.
#[derive(Debug)]
pub struct Interrupted {
    /// Why.
    pub error: Error,
    /// How to go on, once there is a drive.
    pub resume: Option<Resume>,
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The drive that holds part of the image.
    pub drive: DriveId,
    /// The byte to go on at: all before it is on the drive.
    pub offset: u64,
    /// Its chunk, over the whole image.
    pub chunk: u64,
    /// Chunks of the whole image.
    pub chunks: u64,
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Self {
        Self {
            error,
            resume: None,
        }
    }
}

/// Uploads `image`. It is done when every chunk was confirmed by the endpoint,
/// or is a hole on a drive that is proven to read as zeros there.
///
/// # Errors
/// [`Interrupted`]: why, and where to resume.
pub async fn upload(
    client: &Client,
    image: Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let mut rng = fastrand::Rng::new();
    let size = image.size();
    let prepared = tokio::select! {
        drive = prepare(client, size, &options.target, &mut rng) => drive?,
        () = stop.asked() => return Err(stopped().into()),
    };
    let is_new = matches!(options.target, Target::New(_));
    monitor.event(&Event::Drive {
        id: prepared.id,
        size: if is_new { size } else { prepared.size },
        is_new,
    });

    let plan = Plan::new(size, options.chunk);
    let first = plan.index_of(options.offset).min(plan.count());
    let jobs = usize::try_from(options.jobs.get()).unwrap_or(usize::MAX);
    let engine = Engine::new(EngineConfig {
        plan,
        first,
        jobs: options.jobs.get(),
        zeros: Zeros::for_drive(is_new),
        operation: Operation::Write,
        is_fresh: is_new,
        max_outage: options.max_outage,
        seed: rng.u64(..),
    });
    let todo = first..plan.count();
    monitor.event(&Event::Started {
        chunks: todo.end - todo.start,
        chunk_bytes: plan.chunk_bytes(),
        offset: options.offset,
        bytes: plan.bytes_in(&todo),
    });
    let pipeline = Pipeline::start(image, plan, first, options.level, jobs)?;
    let mut shell = Shell {
        client: client.clone(),
        drive: prepared.id,
        engine,
        pipeline,
        attempts: JoinSet::new(),
        bodies: HashMap::new(),
        zeros: HashMap::new(),
        image_error: None,
        began: Instant::now(),
        progress: Progress::default(),
        plan,
        first,
    };
    let ending = shell.run(monitor, stop).await;
    shell.outcome(ending)
}

/// Makes the drive, or looks at the one that is there: nothing is written to a
/// drive that cannot take the image.
async fn prepare(
    client: &Client,
    size: u64,
    target: &Target,
    rng: &mut fastrand::Rng,
) -> Result<DriveInfo> {
    let id = match target {
        Target::New(spec) => {
            let drive = create(client, spec, rng).await?;
            return if drive.size >= size {
                Ok(drive)
            } else {
                Err(too_small(&drive, size))
            };
        }
        Target::Existing(id) => *id,
    };
    let drive = patiently(CALL_ATTEMPTS, rng, || client.info(id))
        .await
        .map_err(|failure| failure.into_error(&format!("Cannot use drive {id}")))?;
    if drive.size < size {
        return Err(too_small(&drive, size));
    }
    if let Some(by) = claim(&drive) {
        return Err(claimed(id, &by));
    }
    Ok(drive)
}

fn too_small(drive: &DriveInfo, size: u64) -> Error {
    let what = format!(
        "Drive {} has {} bytes and the image {size}: it does not fit",
        drive.id, drive.size
    );
    Error::new(ErrorKind::Rejected, what).hint_to(format!(
        "Nothing was written. Grow the drive first: echo 'size {size}' | openhosting -c drives {} set",
        drive.id
    ))
}

/// Who uses a drive, in words.
fn claim(drive: &DriveInfo) -> Option<String> {
    if let Some(by) = drive.claimed() {
        return Some(format!("claimed by {by}"));
    }
    drive
        .imaging()
        .map(|progress| format!("being imaged ({progress})"))
}

fn claimed(drive: DriveId, by: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("Drive {drive} is {by}"))
        .hint_to("Stop the server that uses it, or wait until the imaging is done")
}

fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "Stopped")
}

/// What came back from a request.
enum Answer {
    Chunk(u64, Result<(), Failure>),
    Proof(bool),
    Probe(Result<(), Failure>),
    Look(Option<String>),
}

/// Does what the engine says. One task, no lock.
struct Shell {
    client: Client,
    drive: DriveId,
    engine: Engine,
    pipeline: Pipeline,
    attempts: JoinSet<Answer>,
    /// Bodies of chunks that are not confirmed, kept for another attempt.
    bodies: HashMap<u64, EncodedChunk>,
    /// Bodies of zero chunks, by their length.
    zeros: HashMap<u64, Bytes>,
    image_error: Option<Error>,
    began: Instant,
    progress: Progress,
    plan: Plan,
    first: u64,
}

impl Shell {
    async fn run(&mut self, monitor: &mut dyn Monitor, stop: Stop) -> Ending {
        let (mut drain, mut abort) = (stop.clone(), stop);
        let mut grace: Option<Instant> = None;
        loop {
            let now = self.began.elapsed();
            let wait = match self.engine.next(now) {
                Action::End(ending) => return ending,
                Action::Wait(until) => until,
                Action::Send(span) => {
                    self.send(span).await;
                    continue;
                }
                action => {
                    self.ask(&action, monitor);
                    continue;
                }
            };
            if let Some(ending) = self.engine.ending() {
                let at = *grace.get_or_insert_with(|| Instant::now() + GRACE);
                if Instant::now() >= at {
                    return ending.clone();
                }
            }
            let wake = grace.or_else(|| wait.map(|until| self.began + until));
            tokio::select! {
                Some(answer) = self.attempts.join_next() => match answer {
                    Ok(answer) => self.answered(answer, monitor),
                    // A task of ours panicked: say so rather than to guess.
                    Err(_) => return Ending::Incomplete,
                },
                prepared = self.pipeline.next(), if self.engine.wants_chunk() => {
                    self.prepared(prepared);
                }
                () = drain.asked(), if self.engine.ending().is_none() => self.engine.stop(),
                () = abort.asked_at_once() => return Ending::Stopped,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.report(monitor);
        }
    }

    /// Starts an attempt at a chunk.
    async fn send(&mut self, span: Span) {
        let chunk = match self.bodies.get(&span.index) {
            Some(chunk) => chunk.clone(),
            None => self.zero_chunk(span).await,
        };
        self.progress.wire_bytes += chunk.body.len() as u64;
        let (client, drive) = (self.client.clone(), self.drive);
        self.attempts.spawn(async move {
            let index = chunk.span.index;
            let answer = client.write(drive, chunk).await;
            if let Err(failure) = &answer {
                tracing::debug!(index, %failure, "write");
            }
            Answer::Chunk(index, answer)
        });
    }

    async fn zero_chunk(&mut self, span: Span) -> EncodedChunk {
        if !self.zeros.contains_key(&span.len) {
            let len = span.len;
            let made = tokio::task::spawn_blocking(move || gzip_zeros(len)).await;
            self.zeros.insert(len, made.unwrap_or_default());
        }
        EncodedChunk {
            span,
            body: self.zeros.get(&span.len).cloned().unwrap_or_default(),
            encoding: Encoding::Gzip,
        }
    }

    /// Starts a request that is not a chunk.
    fn ask(&mut self, action: &Action, monitor: &mut dyn Monitor) {
        let (client, drive) = (self.client.clone(), self.drive);
        match action {
            Action::ProveZeros(span) => {
                let len = span.len.min(READ_BYTES_MAX);
                let offset = span.offset;
                self.attempts.spawn(async move {
                    let mut rng = fastrand::Rng::new();
                    let read = || client.read(drive, offset, len);
                    let read = patiently(CALL_ATTEMPTS, &mut rng, read).await;
                    Answer::Proof(read.is_ok_and(|bytes| is_zero(&bytes)))
                });
            }
            Action::Probe => {
                monitor.event(&Event::Notice(
                    "The endpoint does not answer, waiting".into(),
                ));
                self.attempts
                    .spawn(async move { Answer::Probe(client.info(drive).await.map(|_| ())) });
            }
            Action::Look => {
                monitor.event(&Event::Notice("The drive is busy, waiting".into()));
                self.attempts.spawn(async move {
                    let drive = client.info(drive).await.ok();
                    Answer::Look(drive.as_ref().and_then(claim))
                });
            }
            Action::Send(_) | Action::Wait(_) | Action::End(_) => {}
        }
    }

    fn answered(&mut self, answer: Answer, monitor: &mut dyn Monitor) {
        let now = self.began.elapsed();
        match answer {
            Answer::Chunk(index, answer) => {
                if answer.is_ok() {
                    self.bodies.remove(&index);
                    let len = self.plan.span(index).map_or(0, |span| span.len);
                    self.progress.done_bytes += len;
                }
                self.engine.answered(index, answer, now);
            }
            Answer::Proof(is_zero) => {
                if !is_zero {
                    let what = "The new drive is not proven to read as zeros: zeros are sent";
                    monitor.event(&Event::Notice(what.into()));
                }
                self.engine.proved(is_zero);
            }
            Answer::Probe(answer) => self.engine.probed(answer, now),
            Answer::Look(by) => self.engine.looked(by),
        }
    }

    fn prepared(&mut self, prepared: Option<Result<Prepared>>) {
        match prepared {
            Some(Ok(Prepared::Chunk(chunk))) => {
                self.engine.chunk(chunk.span.index);
                self.bodies.insert(chunk.span.index, chunk);
            }
            Some(Ok(Prepared::Hole(chunks))) => self.engine.hole(chunks),
            Some(Err(error)) => {
                self.image_error = Some(error);
                self.engine.image_failed();
            }
            None => self.engine.image_ended(),
        }
    }

    fn report(&mut self, monitor: &mut dyn Monitor) {
        let skipped = self.engine.skipped_bytes();
        self.progress.done_bytes += skipped - self.progress.skipped_bytes;
        self.progress.skipped_bytes = skipped;
        self.progress.chunks_in_order = self.engine.first_open() - self.first;
        self.progress.in_flight = self.engine.in_flight();
        self.progress.retries = self.engine.retries();
        monitor.event(&Event::Progress(self.progress));
    }

    fn outcome(self, ending: Ending) -> Result<Uploaded, Interrupted> {
        let what = format!("Cannot write to drive {}", self.drive);
        let error = match ending {
            Ending::Complete => {
                return Ok(Uploaded {
                    drive: self.drive,
                    progress: self.progress,
                });
            }
            Ending::Failed(failure) => failure.into_error(&what),
            Ending::GaveUp(failure) => {
                let cause = failure.to_string();
                Error::new(ErrorKind::Unavailable, format!("Gave up for now: {cause}"))
            }
            Ending::Claimed(by) => claimed(self.drive, &by),
            Ending::Stopped => stopped(),
            Ending::ImageFailed => self
                .image_error
                .unwrap_or_else(|| Error::new(ErrorKind::Bug, "The image failed without a cause")),
            Ending::Incomplete => {
                Error::new(ErrorKind::Bug, "A chunk was lost inside this program")
                    .hint_to("This is a bug, please report it. Nothing is called done that is not")
            }
        };
        // What changed while it was read has to be read again from its start.
        let chunk = if error.kind() == ErrorKind::Integrity {
            0
        } else {
            self.engine.first_open()
        };
        let offset = self
            .plan
            .span(chunk)
            .map_or(self.plan.size(), |span| span.offset);
        Err(Interrupted {
            error,
            resume: Some(Resume {
                drive: self.drive,
                offset,
                chunk,
                chunks: self.plan.count(),
            }),
        })
    }
}
