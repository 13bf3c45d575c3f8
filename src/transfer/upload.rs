//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::collections::HashMap;
use std::future::Future;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::create::create;
use super::patient::{CALL_ATTEMPTS, patiently};
use super::pipeline::{Pipeline, Prepared};
use super::shell::{Attempt, Feed, Job, Shell, claim, claimed, stopped};
use super::stop::Stop;
use crate::api::Client;
use crate::chunk::{EncodedChunk, Encoding};
use crate::codec::{Level, gzip_zeros};
use crate::drive::{DriveId, DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
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
    let resume_at = |chunk| Resume {
        drive: prepared.id,
        offset: plan.span(chunk).map_or(size, |span| span.offset),
        chunk,
        chunks: plan.count(),
    };
    let pipeline = Pipeline::start(image, plan, first, options.level, jobs);
    let job = Upload {
        client: client.clone(),
        drive: prepared.id,
        pipeline: pipeline.map_err(|error| Interrupted {
            error,
            resume: Some(resume_at(first)),
        })?,
        bodies: HashMap::new(),
        zeros: HashMap::new(),
    };
    let mut shell = Shell::new(client.clone(), prepared.id, engine, job);
    let ending = shell.run(monitor, stop).await;
    let progress = shell.progress();
    let error = match shell.outcome(ending, "write to") {
        Ok(()) => {
            return Ok(Uploaded {
                drive: prepared.id,
                progress,
            });
        }
        Err(error) => error,
    };
    // What changed while it was read has to be read again from its start.
    let chunk = if error.kind() == ErrorKind::Integrity {
        0
    } else {
        first + progress.chunks_in_order
    };
    Err(Interrupted {
        error,
        resume: Some(resume_at(chunk)),
    })
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

/// The chunks of an upload: where they come from and how one is sent.
struct Upload {
    client: Client,
    drive: DriveId,
    pipeline: Pipeline,
    /// Bodies of chunks that are not confirmed, kept for another attempt.
    bodies: HashMap<u64, EncodedChunk>,
    /// Bodies of zero chunks, by their length: there are two at most.
    zeros: HashMap<u64, Arc<OnceCell<Bytes>>>,
}

/// A chunk of zeros; its body is made once, off the reactor.
async fn zero_chunk(span: Span, body: &OnceCell<Bytes>) -> Result<EncodedChunk> {
    let make = || tokio::task::spawn_blocking(move || gzip_zeros(span.len));
    let body = body.get_or_try_init(make).await;
    let body = body.map_err(|cause| {
        Error::new(ErrorKind::Bug, "Cannot compress a chunk of zeros").because(cause)
    })?;
    Ok(EncodedChunk {
        span,
        body: body.clone(),
        encoding: Encoding::Gzip,
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
        let chunk = self.bodies.get(&span.index).cloned();
        let zeros = Arc::clone(self.zeros.entry(span.len).or_default());
        let (client, drive) = (self.client.clone(), self.drive);
        async move {
            let chunk = match chunk {
                Some(chunk) => chunk,
                None => match zero_chunk(span, &zeros).await {
                    Ok(chunk) => chunk,
                    Err(error) => return Attempt::local(error),
                },
            };
            let wire_bytes = chunk.body.len() as u64;
            let answer = client.write(drive, chunk).await;
            Attempt {
                answer: Ok(answer),
                wire_bytes,
            }
        }
    }

    fn settled(&mut self, span: Span) {
        self.bodies.remove(&span.index);
    }
}
