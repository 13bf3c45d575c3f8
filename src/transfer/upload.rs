//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use rangemap::RangeSet;

use super::JOBS_DEFAULT;
use super::beginning::{Begun, begin};
use super::pace::Pace;
use super::pipeline::{Pipeline, Todo};
use super::selection::Selection;
use super::sending::Upload;
use super::session::{Ended, JournalOptions, blocking, finish, gaps, refuted};
use super::shell::{Shell, stopped};
use super::stop::Stop;
use super::verify::{Expected, Sampler, Verified, Verify, ZeroDigests, verify};
use crate::api::Client;
use crate::codec::Compression;
use crate::digest::Digest;
use crate::drive::{DriveId, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::journal::{Journal, Keeper, State};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{CHUNK_BYTES_DEFAULT, Plan};
use crate::policy::{Engine, EngineConfig, Operation};

/// The drive to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One that exists. Everything is written to it, zeros as well.
    Existing(DriveId),
    /// One to be created. Its size is the image's.
    New(DriveSpec),
    /// One that was created for this very image, and to which nothing but bytes of
    /// it was ever written: as one of [`New`](Self::New).
    Made(DriveId),
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
    pub compression: Compression,
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
    /// What of the image is sent, in chunks of
    /// [`CONTENT_CHUNK_BYTES`](crate::content::CONTENT_CHUNK_BYTES); all of it without.
    pub selection: Option<Arc<Selection>>,
}

impl UploadOptions {
    /// The defaults, for a target: no journal, a sample is verified.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            offset: 0,
            chunk: NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN),
            jobs: JOBS_DEFAULT,
            compression: Compression::default(),
            max_outage: Duration::from_secs(15 * 60),
            journal: JournalOptions::default(),
            compare: false,
            verify: Verify::default(),
            checksum: false,
            selection: None,
        }
    }
}

/// A finished upload.
#[derive(Debug)]
pub struct Uploaded {
    /// The drive that holds the image now.
    pub drive: DriveId,
    /// What moved.
    pub progress: Progress,
    /// What was read back.
    pub verified: Verified,
    /// The digest of the image, if it was asked for.
    pub checksum: Option<Digest>,
    /// Its journal, which goes when this is dropped.
    pub journal: Ended,
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
    let mut passed = settled.clone();
    if let Some(selection) = &options.selection {
        passed.extend(selection.left_out());
    }
    let todo = gaps(&plan, begun.first, &passed);
    monitor.event(&Event::Started {
        chunks: todo.iter().map(|range| range.end - range.start).sum(),
        chunk_bytes: plan.chunk_bytes(),
        offset: options.offset,
        bytes: todo.iter().map(|range| plan.bytes_in(range)).sum(),
    });
    let compare = options.compare || session.is_damaged;
    let wants_digests = session.journal.is_some() || compare || options.selection.is_some();
    let sampler = Sampler::new(options.verify, plan.count(), rng.u64(..), wants_digests);
    let image = look_back(begun.image, &plan, &settled, &sampler).await?;
    let engine = Engine::new(EngineConfig {
        plan,
        first: begun.first,
        settled: passed,
        jobs: options.jobs.get(),
        zeros: begun.zeros,
        operation: Operation::Write,
        is_fresh: begun.is_new,
        max_outage: options.max_outage,
        seed: rng.u64(..),
    });
    let jobs = usize::try_from(options.jobs.get()).unwrap_or(usize::MAX);
    let is_local = client.endpoint().is_loopback();
    let pace = Pace::new(options.compression, jobs, is_local);
    let keep = |journal| Keeper::start(journal, None);
    let job = Upload {
        client: client.clone(),
        drive,
        plan,
        pipeline: Pipeline::start(
            image,
            plan,
            Todo {
                chunks: todo,
                selection: options.selection.clone(),
            },
            jobs,
            pace,
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
    let verified = match verified {
        Err(error) if error.kind() == ErrorKind::Integrity => {
            resume.chunk = begun.first;
            resume.is_journaled = false;
            return Err(refuted(error, journal).await);
        }
        verified => verified?,
    };
    Ok(Uploaded {
        drive,
        progress,
        verified,
        checksum,
        journal: Ended::of(journal),
    })
}

/// Takes samples of what earlier runs settled. A packed image cannot be read there
/// without all that is before.
async fn look_back(
    image: Image,
    plan: &Plan,
    settled: &RangeSet<u64>,
    sampler: &Sampler,
) -> Result<Image> {
    let (plan, settled, sampler) = (*plan, settled.clone(), sampler.clone());
    blocking(move || {
        if let Some(disk) = image.disk() {
            sampler.look_back(disk, &plan, &settled)?;
        }
        Ok(image)
    })
    .await
}

/// For a full verification: the digests of all chunks, those of earlier runs
/// included.
pub(super) async fn everything_settled(
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
