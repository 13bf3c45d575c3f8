//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::collections::HashMap;
use std::future::Future;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::changed::changed;
use super::create::create;
use super::patient::{CALL_ATTEMPTS, patiently};
use super::pipeline::{Pipeline, Prepared};
use super::session::{Identity, JournalOptions, Session, blocking, done, finish, gaps};
use super::shell::{Attempt, Feed, Job, Shell, claim, claimed, stopped};
use super::stop::Stop;
use super::verify::{Expected, Sampler, Verified, Verify, ZeroDigests, digest_of, verify};
use crate::api::Client;
use crate::chunk::{EncodedChunk, Encoding};
use crate::codec::{Level, gzip_zeros};
use crate::digest::Digest;
use crate::drive::{DriveId, DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::journal::{Direction, Journal, Keeper, Record, State};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{CHUNK_BYTES_DEFAULT, Plan, Span};
use crate::policy::{Engine, EngineConfig, Operation, Zeros};

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
    /// Where to keep what was done.
    pub journal: JournalOptions,
    /// Read each chunk of the drive first, and write only what differs.
    pub compare: bool,
    /// How much to read back at the end.
    pub verify: Verify,
    /// Whether to hash the whole image, what earlier runs settled included.
    pub checksum: bool,
}

impl UploadOptions {
    /// The defaults, for a target: no journal, a sample is verified.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            offset: 0,
            chunk: NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN),
            jobs: NonZeroU32::new(4).unwrap_or(NonZeroU32::MIN),
            level: Level::default(),
            max_outage: Duration::from_secs(15 * 60),
            journal: JournalOptions::default(),
            compare: false,
            verify: Verify::default(),
            checksum: false,
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
    /// What was read back.
    pub verified: Verified,
    /// The digest of the image, if it was asked for.
    pub checksum: Option<Digest>,
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
    /// Whether there is a journal: then the same command goes on by itself, and
    /// sends less.
    pub is_journaled: bool,
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
    stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let mut rng = fastrand::Rng::new();
    let begun = begin(client, image, options, monitor, stop.clone(), &mut rng).await?;
    let mut resume = Resume {
        drive: begun.drive,
        offset: 0,
        chunk: begun.first,
        chunks: begun.plan.count(),
        is_journaled: begun.session.journal.is_some(),
    };
    let plan = begun.plan;
    match send(client, begun, options, monitor, stop, &mut rng, &mut resume).await {
        Ok(uploaded) => Ok(uploaded),
        Err(error) => {
            let span = plan.span(resume.chunk);
            resume.offset = span.map_or(plan.size(), |span| span.offset);
            Err(Interrupted {
                error,
                resume: Some(resume),
            })
        }
    }
}

/// An upload whose drive is known and fit.
struct Begun {
    image: Image,
    plan: Plan,
    first: u64,
    session: Session,
    drive: DriveId,
    /// Whether this very run created it.
    is_new: bool,
    zeros: Zeros,
}

/// Takes up an earlier run or begins a new one; makes the drive, or looks at the
/// one that is there.
async fn begin(
    client: &Client,
    image: Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
    rng: &mut fastrand::Rng,
) -> Result<Begun> {
    let size = image.size();
    let plan = Plan::new(size, options.chunk);
    let first = plan.index_of(options.offset).min(plan.count());
    let identity = Identity {
        direction: Direction::Upload,
        user: client.user().to_owned(),
        source: Some(image.fingerprint().clone()),
        plan,
        first,
    };
    let mut session = Session::begin(&options.journal, identity).await?;
    let (image, is_changed) = take_up(image, &plan, &mut session, options, monitor).await?;
    let prepared = tokio::select! {
        drive = prepare(client, size, options, &mut session, rng) => drive,
        () = stop.asked() => Err(stopped().hint_to(
            "A drive may have been made: the same command takes it up, or list yours with: openhosting drives info",
        )),
    };
    let drive = match prepared {
        Ok(drive) => drive,
        Err(error) => {
            if matches!(options.target, Target::Existing(_)) {
                session.forget().await;
            }
            return Err(error);
        }
    };
    let is_ours = matches!(options.target, Target::New(_));
    // An earlier run wrote to the drive, and where is known of what it told only:
    // a range that reads as zeros proves nothing, if these are zeros it wrote.
    // Holes that it left out are the proof that it had one.
    let was_proven = session.state.drive.is_none() || !session.state.holes.is_empty();
    session
        .record(Record::Drive {
            id: drive.id,
            is_ours,
        })
        .await?;
    // A run that was cut off before its drive was known leaves it to this one.
    let is_new = is_ours && session.state.drive.is_none();
    monitor.event(&Event::Drive {
        id: drive.id,
        size: if is_new { size } else { drive.size },
        is_new,
    });
    Ok(Begun {
        image,
        plan,
        first,
        session,
        drive: drive.id,
        is_new,
        // What held data once may be zero now: then zeros are no hole.
        zeros: Zeros::for_drive(is_ours && was_proven && !is_changed),
    })
}

/// Sends what is missing, reads back what was asked for, and ends the journal.
/// Keeps `resume` true to how far it came.
async fn send(
    client: &Client,
    begun: Begun,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
    rng: &mut fastrand::Rng,
    resume: &mut Resume,
) -> Result<Uploaded> {
    let (plan, mut session, drive) = (begun.plan, begun.session, begun.drive);
    let settled = session.state.settled();
    let todo = gaps(&plan, begun.first, &settled);
    monitor.event(&Event::Started {
        chunks: todo.iter().map(|range| range.end - range.start).sum(),
        chunk_bytes: plan.chunk_bytes(),
        offset: options.offset,
        bytes: todo.iter().map(|range| plan.bytes_in(range)).sum(),
    });
    let engine = Engine::new(EngineConfig {
        plan,
        first: begun.first,
        settled,
        jobs: options.jobs.get(),
        zeros: begun.zeros,
        operation: Operation::Write,
        is_fresh: begun.is_new,
        max_outage: options.max_outage,
        seed: rng.u64(..),
    });
    let compare = options.compare || session.is_damaged;
    let wants_digests = session.journal.is_some() || compare;
    let sampler = Sampler::new(options.verify, plan.count(), rng.u64(..), wants_digests);
    let jobs = usize::try_from(options.jobs.get()).unwrap_or(usize::MAX);
    let keep = |journal| Keeper::start(journal, None);
    let job = Upload {
        client: client.clone(),
        drive,
        plan,
        pipeline: Pipeline::start(
            begun.image,
            plan,
            todo,
            options.level,
            jobs,
            &sampler,
            options.checksum,
        )?,
        bodies: HashMap::new(),
        zeros: HashMap::new(),
        compare,
        keeper: session.journal.take().map(keep).transpose()?,
        to_verify: sampler.is_full().then(Expected::default),
        zero_digests: ZeroDigests::default(),
    };
    let mut shell = Shell::new(client.clone(), drive, engine, job);
    let ending = shell.run(monitor, stop.clone()).await;
    let progress = shell.progress();
    resume.chunk = shell.first_open();
    let outcome = shell.outcome(ending, "write to");
    let job = shell.into_job();
    let to_verify = job.to_verify.unwrap_or_default();
    let pipeline = job.pipeline;
    // Whatever happened: what was confirmed is kept.
    let kept = finish(job.keeper).await;
    outcome.inspect_err(|error| {
        // What changed while it was read has to be read again from its start.
        if error.kind() == ErrorKind::Integrity {
            resume.chunk = begun.first;
        }
    })?;
    let checksum = match options.checksum {
        true => {
            let mut stop = stop.clone();
            tokio::select! {
                checksum = pipeline.checksum() => Some(checksum?),
                () = stop.asked() => return Err(stopped()),
            }
        }
        false => None,
    };
    let (journal, to_verify) =
        everything_settled(kept?, session.state, &plan, to_verify, &sampler).await?;
    let verified = verify(
        client,
        drive,
        &sampler,
        to_verify,
        options.jobs.get(),
        options.max_outage,
        stop,
    )
    .await;
    let is_refuted = matches!(&verified, Err(error) if error.kind() == ErrorKind::Integrity);
    if let Some(journal) = journal
        && (verified.is_ok() || is_refuted)
    {
        // Refuted, it would call done what is not.
        blocking(move || journal.remove()).await?;
        resume.is_journaled = false;
    }
    if is_refuted {
        resume.chunk = begun.first;
    }
    Ok(Uploaded {
        drive,
        progress,
        verified: verified?,
        checksum,
    })
}

/// Takes up an earlier run: what it settled stays settled, if the image is the
/// same. Gives the image back, and whether it changed.
async fn take_up(
    image: Image,
    plan: &Plan,
    session: &mut Session,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
) -> Result<(Image, bool)> {
    if let Some(drive) = session.left_behind {
        monitor.event(&Event::Notice(format!(
            "The earlier run left drive {drive}; remove it with: openhosting drives {drive} destroy"
        )));
    }
    if !session.is_resumed {
        return Ok((image, false));
    }
    if session.is_damaged {
        let what = "The journal is damaged: what it does not tell is compared with the drive";
        monitor.event(&Event::Notice(what.into()));
    }
    let there = session.state.settled();
    let there: u64 = there.iter().map(|range| plan.bytes_in(range)).sum();
    monitor.event(&Event::Notice(format!(
        "Resuming: {there} of {} bytes are settled",
        plan.size()
    )));
    let Some(journal) = session.journal.take() else {
        return Ok((image, false));
    };
    let now = image.fingerprint();
    if now.tells_changes() && session.source.as_ref() == Some(now) {
        session.journal = Some(journal);
        return Ok((image, false));
    }
    let (plan, state) = (*plan, session.state.clone());
    let (image, journal, changed) = blocking(move || {
        let changed = changed(&image, &plan, &journal, &state)?;
        Ok((image, journal, changed))
    })
    .await?;
    session.journal = Some(journal);
    let count: u64 = changed.iter().map(|range| range.end - range.start).sum();
    // With no difference found it still counts as changed: a chunk whose record
    // was lost may be on the drive, and be zero now.
    if count > 0 && !options.journal.changed_ok {
        let what = format!(
            "The image changed since the upload began: {count} chunks that were sent differ now"
        );
        return Err(Error::new(ErrorKind::Integrity, what)
            .hint_to("Send what changed with --changed-ok, or start over with --restart"));
    }
    for range in changed.iter() {
        session.state.done.remove(range.clone());
        session.state.holes.remove(range.clone());
    }
    Ok((image, true))
}

/// For a full verification: the digests of all chunks, those of earlier runs
/// included.
async fn everything_settled(
    journal: Option<Journal>,
    earlier: State,
    plan: &Plan,
    mut to_verify: Expected,
    sampler: &Sampler,
) -> Result<(Option<Journal>, Expected)> {
    if !sampler.is_full() {
        return Ok((journal, to_verify));
    }
    let plan = *plan;
    blocking(move || {
        for chunks in earlier.holes.iter() {
            to_verify.zeros(plan.bytes_of(chunks));
        }
        let digests = journal.as_ref().map(Journal::digests).transpose()?;
        let digests = digests.into_iter().flatten();
        for (index, digest) in digests.filter(|(index, _)| earlier.done.contains(index)) {
            if let Some(span) = plan.span(index) {
                to_verify.chunk(span, digest);
            }
        }
        Ok((journal, to_verify))
    })
    .await
}

/// Makes the drive, or looks at the one that is there: nothing is written to a
/// drive that cannot take the image.
async fn prepare(
    client: &Client,
    size: u64,
    options: &UploadOptions,
    session: &mut Session,
    rng: &mut fastrand::Rng,
) -> Result<DriveInfo> {
    let id = match (&options.target, session.state.drive) {
        (Target::Existing(id), _) => *id,
        (Target::New(_), Some((id, _))) => id,
        (Target::New(spec), None) => {
            let token = session.token();
            let created = create(client, spec, &token, session.is_resumed, rng).await;
            let drive = match created {
                Ok(created) => created.drive,
                Err(not) => {
                    if !not.is_unclear {
                        session.forget().await;
                    }
                    return Err(not.error);
                }
            };
            return if drive.size >= size {
                Ok(drive)
            } else {
                Err(too_small(&drive, size))
            };
        }
    };
    let drive = patiently(CALL_ATTEMPTS, rng, || client.info(id))
        .await
        .map_err(|failure| {
            let error = failure.into_error(&format!("Cannot use drive {id}"));
            if session.is_resumed && error.kind() == ErrorKind::NotFound {
                return error.hint_to("The earlier run's drive is gone: start over with --restart. If it was made a moment ago, wait and run the same command again");
            }
            error
        })?;
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

/// The chunks of an upload: where they come from and how one is sent.
struct Upload {
    client: Client,
    drive: DriveId,
    plan: Plan,
    pipeline: Pipeline,
    /// Bodies of chunks that are not confirmed, kept for another attempt.
    bodies: HashMap<u64, EncodedChunk>,
    /// Bodies of zero chunks, by their length: there are two at most.
    zeros: HashMap<u64, Arc<OnceCell<Bytes>>>,
    /// Whether a chunk is read before it is written.
    compare: bool,
    keeper: Option<Keeper>,
    /// The chunks to verify at the end, if it is all of them.
    to_verify: Option<Expected>,
    zero_digests: ZeroDigests,
}

impl Upload {
    fn digest(&mut self, span: Span) -> Option<Digest> {
        match self.bodies.get(&span.index) {
            Some(chunk) => chunk.digest,
            None => Some(self.zero_digests.of(span.len)),
        }
    }
}

/// A chunk of zeros; its body is made once, off the reactor.
async fn zero_chunk(span: Span, body: &OnceCell<Bytes>) -> Result<EncodedChunk> {
    let make = || blocking(move || Ok(gzip_zeros(span.len)));
    Ok(EncodedChunk {
        span,
        body: body.get_or_try_init(make).await?.clone(),
        encoding: Encoding::Gzip,
        digest: None,
    })
}

impl Job for Upload {
    async fn feed(&mut self) -> Feed {
        match self.pipeline.next().await {
            Some(Ok(Prepared::Chunk(chunk))) => {
                let index = chunk.span.index;
                self.bodies.insert(index, chunk);
                Feed::Chunk(index)
            }
            Some(Ok(Prepared::Hole(chunks))) => Feed::Hole(chunks),
            Some(Err(error)) => Feed::Failed(error),
            None => Feed::End,
        }
    }

    fn attempt(&mut self, span: Span) -> impl Future<Output = Attempt> + Send + 'static {
        let expected = if self.compare {
            self.digest(span)
        } else {
            None
        };
        let chunk = self.bodies.get(&span.index).cloned();
        let zeros = Arc::clone(self.zeros.entry(span.len).or_default());
        let (client, drive) = (self.client.clone(), self.drive);
        async move {
            if let Some(expected) = expected {
                match digest_of(&client, drive, span).await {
                    Ok(digest) if digest == expected => return Attempt::of(Ok(()), 0),
                    Ok(_) => {}
                    Err(failure) => return Attempt::of(Err(failure), 0),
                }
            }
            let chunk = match chunk {
                Some(chunk) => chunk,
                None => match zero_chunk(span, &zeros).await {
                    Ok(chunk) => chunk,
                    Err(error) => return Attempt::local(error),
                },
            };
            let wire_bytes = chunk.body.len() as u64;
            Attempt::of(client.write(drive, chunk).await, wire_bytes)
        }
    }

    fn settled(&mut self, span: Span) -> Result<()> {
        if self.keeper.is_some() || self.to_verify.is_some() {
            let digest = self.digest(span);
            if let (Some(keeper), Some(record)) = (&self.keeper, done(span, digest)) {
                keeper.note(record)?;
            }
            if let (Some(to_verify), Some(digest)) = (&mut self.to_verify, digest) {
                match self.bodies.contains_key(&span.index) {
                    true => to_verify.chunk(span, digest),
                    false => to_verify.zeros(span.offset..span.end()),
                }
            }
        }
        self.bodies.remove(&span.index);
        Ok(())
    }

    fn skipped(&mut self, chunks: Range<u64>) -> Result<()> {
        if let Some(keeper) = &self.keeper {
            keeper.note(Record::Holes {
                first: chunks.start,
                count: chunks.end - chunks.start,
            })?;
        }
        if let Some(to_verify) = &mut self.to_verify {
            to_verify.zeros(self.plan.bytes_of(&chunks));
        }
        Ok(())
    }
}
