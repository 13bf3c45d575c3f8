//! A download: plan → GET → length checked → written at its place → settled →
//! published.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::Semaphore;

use super::checksum::{Follower, Hasher};
use super::patient::{CALL_ATTEMPTS, patiently};
use super::session::{Identity, JournalOptions, Session, blocking, done, finish, gaps};
use super::shell::{Attempt, Feed, Job, Shell, claim, claimed, stopped};
use super::stop::Stop;
use super::verify::{Sampler, Verified, Verify, verify};
use crate::api::Client;
use crate::digest::Digest;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::ImageTarget;
use crate::journal::{Direction, Keeper, Record};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{Plan, Span};
use crate::policy::{Engine, EngineConfig, Operation, Zeros};
use crate::wire::READ_BYTES_MAX;

/// Where a download goes.
pub enum Destination {
    /// A file or block device.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether what is there may be overwritten.
        force: bool,
    },
    /// A stream, in order: stdout, say.
    Stream(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, .. } => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// How to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadOptions {
    /// What to download.
    pub drive: DriveId,
    /// Byte to start at. With one, a file is written in place and what is before
    /// that byte stays as it is; without, it is staged.
    pub offset: Option<u64>,
    /// Bytes of a chunk; read in steps of at most [`READ_BYTES_MAX`].
    pub chunk: NonZeroU64,
    /// Most requests in flight.
    pub jobs: NonZeroU32,
    /// Give up when nothing succeeded for so long.
    pub max_outage: Duration,
    /// Whether a drive may be in use or change meanwhile.
    pub allow_live: bool,
    /// Where to keep what was done.
    pub journal: JournalOptions,
    /// How much to read again at the end.
    pub verify: Verify,
    /// Whether to hash what is written, all of it.
    pub checksum: bool,
}

impl DownloadOptions {
    /// The defaults, for a drive: no journal, a sample is verified.
    pub fn of(drive: DriveId) -> Self {
        Self {
            drive,
            offset: None,
            chunk: NonZeroU64::new(READ_BYTES_MAX).unwrap_or(NonZeroU64::MIN),
            jobs: NonZeroU32::new(4).unwrap_or(NonZeroU32::MIN),
            max_outage: Duration::from_secs(15 * 60),
            allow_live: false,
            journal: JournalOptions::default(),
            verify: Verify::default(),
            checksum: false,
        }
    }
}

/// A finished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// What moved.
    pub progress: Progress,
    /// What was read again.
    pub verified: Verified,
    /// The digest of what was written, if it was asked for.
    pub checksum: Option<Digest>,
}

/// A download that did not finish.
#[derive(Debug)]
pub struct DownloadInterrupted {
    /// Why.
    pub error: Error,
    /// The byte to go on at, once anything was to be read.
    pub resume_at: Option<u64>,
    /// Whether the same command goes on by itself.
    pub is_journaled: bool,
}

impl From<Error> for DownloadInterrupted {
    fn from(error: Error) -> Self {
        Self {
            error,
            resume_at: None,
            is_journaled: false,
        }
    }
}

/// Downloads a drive. It is done when every byte came at its full length, is at
/// its place and on the disk, and the drive did not change meanwhile.
///
/// # Errors
/// [`DownloadInterrupted`]: why, and how to go on.
pub async fn download(
    client: &Client,
    destination: Destination,
    options: &DownloadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    let mut rng = fastrand::Rng::new();
    let info = tokio::select! {
        info = look(client, options, &mut rng) => info?,
        () = stop.asked() => return Err(stopped().into()),
    };
    let base = options.offset.unwrap_or_default().min(info.size);
    let plan = Plan::new(info.size - base, options.chunk);
    let (force, sink, mut session) =
        open(client, destination, options, &info, plan, monitor).await?;
    let settled = session.state.settled();
    let todo = gaps(&plan, 0, &settled);
    let first = todo.first().map_or(plan.count(), |range| range.start);
    let offset_of = |chunk| base + plan.span(chunk).map_or(plan.size(), |span| span.offset);
    monitor.event(&Event::Started {
        chunks: todo.iter().map(|range| range.end - range.start).sum(),
        chunk_bytes: plan.chunk_bytes(),
        offset: offset_of(first),
        bytes: todo.iter().map(|range| plan.bytes_in(range)).sum(),
    });
    let is_journaled = session.journal.is_some();
    let keeper = match session.journal.take() {
        Some(journal) => Some(Keeper::start(journal, sink.handle()?)?),
        None => None,
    };
    let follower = match &sink {
        Sink::File(target) if options.checksum => {
            let there = settled.clone();
            Some(Follower::start(target.handle()?, plan, base, there)?)
        }
        _ => None,
    };
    let engine = Engine::new(EngineConfig {
        plan,
        first: 0,
        settled,
        jobs: options.jobs.get(),
        zeros: Zeros::Write,
        operation: Operation::Read,
        is_fresh: false,
        max_outage: options.max_outage,
        seed: rng.u64(..),
    });
    let sampler = Sampler::new(options.verify, plan.count(), rng.u64(..), is_journaled);
    let job = Download {
        client: client.clone(),
        drive: options.drive,
        base,
        sink: Arc::new(sink),
        todo: todo.into_iter().rev().collect(),
        window: Arc::new(Semaphore::new(2 * options.jobs.get() as usize)),
        sampler: sampler.clone(),
        digests: Arc::default(),
        keeper,
        to_verify: Vec::new(),
        follower,
    };
    let mut shell = Shell::new(client.clone(), options.drive, engine, job);
    let ending = shell.run(monitor, stop.clone()).await;
    let (progress, first_open) = (shell.progress(), shell.first_open());
    let outcome = shell.outcome(ending, "read");
    let job = shell.into_job();
    // Whatever happened: what is on the disk is kept.
    let kept = finish(job.keeper).await;
    let there = |error| DownloadInterrupted {
        error,
        resume_at: Some(offset_of(first_open)),
        is_journaled,
    };
    outcome.map_err(there)?;
    let journal = kept.map_err(there)?;
    let verified = verify(
        client,
        options.drive,
        &sampler,
        job.to_verify,
        options.jobs.get(),
        options.max_outage,
        stop,
    )
    .await
    .map_err(there)?;
    check_still(client, options, &info, &mut rng)
        .await
        .map_err(there)?;
    let (sink, follower) = (job.sink, job.follower);
    let checksum = blocking(move || {
        let followed = follower.map(Follower::finish).transpose()?;
        let written = Arc::into_inner(sink)
            .ok_or_else(|| Error::new(ErrorKind::Bug, "The image is still being written"))?
            .finish(force)?;
        if let Some(journal) = journal {
            journal.remove()?;
        }
        Ok(followed.or(written))
    })
    .await
    .map_err(there)?;
    Ok(Downloaded {
        progress,
        verified,
        checksum,
    })
}

/// What the drive is like now; an error if it is in use.
async fn look(
    client: &Client,
    options: &DownloadOptions,
    rng: &mut fastrand::Rng,
) -> Result<DriveInfo> {
    let drive = options.drive;
    let info = patiently(CALL_ATTEMPTS, rng, || client.info(drive))
        .await
        .map_err(|failure| failure.into_error(&format!("Cannot read drive {drive}")))?;
    match claim(&info) {
        Some(by) if !options.allow_live => Err(claimed(drive, &by).hint_to(
            "A drive in use changes while it is copied: stop the server that uses it, or take what comes with --allow-live",
        )),
        _ => Ok(info),
    }
}

/// Whether the drive is what it was when the download began.
async fn check_still(
    client: &Client,
    options: &DownloadOptions,
    before: &DriveInfo,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    if options.allow_live {
        return Ok(());
    }
    let after = look(client, options, rng).await?;
    let what = if after.size != before.size {
        "its size changed"
    } else if counters(&after) != counters(before) {
        "it was written to"
    } else {
        return Ok(());
    };
    let what = format!(
        "Drive {} is not what it was: {what} meanwhile",
        options.drive
    );
    Err(Error::new(ErrorKind::Integrity, what).hint_to(
        "Start over with --restart when nothing writes to it, or take what comes with --allow-live",
    ))
}

/// How much was written to a drive, as far as it tells.
fn counters(drive: &DriveInfo) -> Option<(u64, u64)> {
    let counter = |key| drive.properties.get(key)?.trim().parse().ok();
    Some((counter("write:bytes")?, counter("write:requests")?))
}

/// Opens the destination and takes up an earlier run.
async fn open(
    client: &Client,
    destination: Destination,
    options: &DownloadOptions,
    info: &DriveInfo,
    plan: Plan,
    monitor: &mut dyn Monitor,
) -> Result<(bool, Sink, Session)> {
    let (path, force) = match destination {
        Destination::Stream(stream) => {
            let session =
                Session::begin(&JournalOptions::default(), identity(client, plan)).await?;
            let sink = Ordered::start(stream, plan.count(), options.checksum)?;
            return Ok((false, Sink::Stream(sink), session));
        }
        Destination::File { path, force } => (path, force),
    };
    let size = info.size;
    if options.offset.is_some() {
        let target = blocking(move || ImageTarget::in_place(&path, size)).await?;
        let session = Session::begin(&JournalOptions::default(), identity(client, plan)).await?;
        return Ok((force, Sink::File(target), session));
    }
    // The journal would make its directory, and this is no name for a new one.
    let name = path.clone();
    blocking(move || ImageTarget::check_directory(&name)).await?;
    let mut session = Session::begin(&options.journal, identity(client, plan)).await?;
    let mut restart = options.journal.restart;
    if session.is_resumed && session.state.drive.is_none() {
        // It ended before it knew its drive: what it staged, if anything, is void.
        restart = true;
        drop(session.journal.take());
        session = begin_again(client, options, plan).await?;
    }
    if session.is_resumed {
        check_same_drive(&session, options, info)?;
        if let Some(target) = published(&path, &plan, &mut session).await? {
            monitor.event(&Event::Notice(
                "The earlier run had finished the image".into(),
            ));
            return Ok((force, Sink::File(target), session));
        }
        let name = path.clone();
        if let Some(target) = blocking(move || ImageTarget::resume(&name, size, force)).await? {
            let there = session.state.settled();
            let there: u64 = there.iter().map(|range| plan.bytes_in(range)).sum();
            monitor.event(&Event::Notice(format!(
                "Resuming: {there} of {size} bytes are there"
            )));
            return Ok((force, Sink::File(target), session));
        }
        // The image is gone, so what the journal says of it is void.
        drop(session.journal.take());
        session = begin_again(client, options, plan).await?;
    }
    let target = blocking(move || {
        if restart {
            ImageTarget::discard(&path)?;
        }
        ImageTarget::create(&path, size, force)
    });
    let target = match target.await {
        Ok(target) => target,
        Err(error) => {
            // Nothing began, so nothing is left behind.
            if let Some(journal) = session.journal.take() {
                blocking(move || journal.remove()).await?;
            }
            return Err(error);
        }
    };
    if let Some((write_bytes, write_requests)) = counters(info) {
        let state = Record::Drivestate {
            write_bytes,
            write_requests,
        };
        session.record(state).await?;
    }
    // Last: a journal without it is one that never began.
    session
        .record(Record::Drive {
            id: options.drive,
            is_ours: false,
        })
        .await?;
    Ok((force, Sink::File(target), session))
}

/// Forgets the earlier run.
async fn begin_again(client: &Client, options: &DownloadOptions, plan: Plan) -> Result<Session> {
    let again = JournalOptions {
        restart: true,
        ..options.journal.clone()
    };
    Session::begin(&again, identity(client, plan)).await
}

/// The image, if the earlier run ended between giving it its name and removing
/// the journal: every chunk is as the journal says.
async fn published(path: &Path, plan: &Plan, session: &mut Session) -> Result<Option<ImageTarget>> {
    if !gaps(plan, 0, &session.state.settled()).is_empty() {
        return Ok(None);
    }
    let Some(journal) = session.journal.take() else {
        return Ok(None);
    };
    let (path, plan) = (path.to_owned(), *plan);
    let (target, journal) = blocking(move || {
        let Some(target) = ImageTarget::published(&path, plan.size())? else {
            return Ok((None, journal));
        };
        let mut digests = BTreeMap::new();
        journal.done(|index, _, digest| {
            digests.insert(index, digest);
        })?;
        let mut bytes = Vec::new();
        for (index, digest) in digests {
            let Some(span) = plan.span(index) else {
                return Ok((None, journal));
            };
            bytes.resize(usize::try_from(span.len).unwrap_or(0), 0);
            target.get(&mut bytes, span.offset)?;
            if Digest::of(&bytes) != digest {
                return Ok((None, journal));
            }
        }
        Ok((Some(target), journal))
    })
    .await?;
    session.journal = Some(journal);
    Ok(target)
}

fn identity(client: &Client, plan: Plan) -> Identity {
    Identity {
        direction: Direction::Download,
        user: client.user().to_owned(),
        plan,
        first: 0,
        source: None,
    }
}

/// Refuses to mix two drives, or two states of one, in one image.
fn check_same_drive(session: &Session, options: &DownloadOptions, info: &DriveInfo) -> Result<()> {
    let over = "Start over with --restart";
    match session.state.drive {
        Some((id, _)) if id != options.drive => {
            let what = format!(
                "The earlier run downloaded drive {id}, not {}",
                options.drive
            );
            return Err(Error::new(ErrorKind::Usage, what).hint_to(over));
        }
        _ => {}
    }
    let then = session.state.counters;
    if !options.allow_live && then.is_some() && then != counters(info) {
        let what = format!("Drive {} was written to since the earlier run", info.id);
        return Err(Error::new(ErrorKind::Integrity, what).hint_to(over));
    }
    Ok(())
}

/// Where chunks go.
#[derive(Debug)]
enum Sink {
    File(ImageTarget),
    Stream(Ordered),
}

impl Sink {
    /// What has to be synced before a chunk counts as there.
    fn handle(&self) -> Result<Option<std::fs::File>> {
        match self {
            Self::File(target) => target.handle().map(Some),
            Self::Stream(_) => Ok(None),
        }
    }

    fn put(&self, span: Span, bytes: BytesMut, window: &Arc<Semaphore>) -> Result<()> {
        match self {
            Self::File(target) => {
                target.put(&bytes, span.offset)?;
                window.add_permits(1);
                Ok(())
            }
            Self::Stream(ordered) => ordered.put(span.index, bytes, Arc::clone(window)),
        }
    }

    /// The digest of what a stream was given, if it was asked for.
    fn finish(self, force: bool) -> Result<Option<Digest>> {
        match self {
            Self::File(target) => target.publish(force).map(|()| None),
            Self::Stream(ordered) => ordered.finish(),
        }
    }
}

/// Writes chunks to a stream in order, on a thread of its own. How many wait for
/// an earlier one is bounded by the window.
#[derive(Debug)]
struct Ordered {
    chunks: mpsc::Sender<(u64, BytesMut, Arc<Semaphore>)>,
    thread: std::thread::JoinHandle<std::io::Result<Option<Digest>>>,
    count: u64,
}

impl Ordered {
    fn start(mut stream: Box<dyn Write + Send>, count: u64, checksum: bool) -> Result<Self> {
        let (chunks, incoming) = mpsc::channel::<(u64, BytesMut, Arc<Semaphore>)>();
        let thread = std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let mut hasher = checksum.then(Hasher::new);
                let mut early = BTreeMap::new();
                let mut next = 0;
                for (index, bytes, window) in incoming {
                    early.insert(index, (bytes, window));
                    while let Some((bytes, window)) = early.remove(&next) {
                        stream.write_all(&bytes)?;
                        if let Some(hasher) = &mut hasher {
                            hasher.bytes(&bytes);
                        }
                        window.add_permits(1);
                        next += 1;
                    }
                }
                stream.flush()?;
                if next == count {
                    Ok(hasher.map(Hasher::finish))
                } else {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                }
            })
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)
            })?;
        Ok(Self {
            chunks,
            thread,
            count,
        })
    }

    fn put(&self, index: u64, bytes: BytesMut, window: Arc<Semaphore>) -> Result<()> {
        debug_assert!(index < self.count);
        self.chunks.send((index, bytes, window)).map_err(|_| {
            Error::new(
                ErrorKind::Local,
                "Cannot write to the output: it was closed",
            )
        })
    }

    fn finish(self) -> Result<Option<Digest>> {
        drop(self.chunks);
        let written = self.thread.join();
        written
            .unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")))
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot write to the output").because(cause)
            })
    }
}

/// The chunks of a download.
struct Download {
    client: Client,
    drive: DriveId,
    /// Byte of the drive that the plan begins at.
    base: u64,
    sink: Arc<Sink>,
    /// Chunks that are missing, the next range last.
    todo: Vec<Range<u64>>,
    /// Chunks that may be under way or wait to be written in order.
    window: Arc<Semaphore>,
    sampler: Sampler,
    /// Digests of chunks that are written but not settled yet.
    digests: Arc<Mutex<BTreeMap<u64, Digest>>>,
    keeper: Option<Keeper>,
    to_verify: Vec<(Span, Digest)>,
    follower: Option<Follower>,
}

impl Job for Download {
    async fn feed(&mut self) -> Feed {
        while self.todo.last().is_some_and(Range::is_empty) {
            self.todo.pop();
        }
        let Some(range) = self.todo.last_mut() else {
            return Feed::End;
        };
        match self.window.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Feed::End,
        }
        range.start += 1;
        Feed::Chunk(range.start - 1)
    }

    fn attempt(&mut self, span: Span) -> impl Future<Output = Attempt> + Send + 'static {
        let on_drive = Span {
            offset: self.base + span.offset,
            ..span
        };
        let (client, drive) = (self.client.clone(), self.drive);
        let (sink, window) = (Arc::clone(&self.sink), Arc::clone(&self.window));
        let (sampler, digests) = (self.sampler.clone(), Arc::clone(&self.digests));
        async move {
            let bytes = match read(&client, drive, on_drive).await {
                Ok(bytes) => bytes,
                Err(failure) => return Attempt::of(Err(failure), 0),
            };
            let put = blocking(move || {
                sampler.look_at(on_drive, &bytes);
                if sampler.wants_digests()
                    && let Ok(mut digests) = digests.lock()
                {
                    digests.insert(span.index, Digest::of(&bytes));
                }
                sink.put(on_drive, bytes, &window)
            });
            match put.await {
                Ok(()) => Attempt::of(Ok(()), span.len),
                Err(error) => Attempt::local(error),
            }
        }
    }

    fn settled(&mut self, span: Span) -> Result<()> {
        if let Some(follower) = &mut self.follower {
            follower.settled(span.index);
        }
        let digest = self
            .digests
            .lock()
            .ok()
            .and_then(|mut digests| digests.remove(&span.index));
        if let (Some(keeper), Some(record)) = (&self.keeper, done(span, digest)) {
            keeper.note(record)?;
        }
        if self.sampler.is_full()
            && let Some(digest) = digest
        {
            let offset = self.base + span.offset;
            self.to_verify.push((Span { offset, ..span }, digest));
        }
        Ok(())
    }

    fn skipped(&mut self, _: Range<u64>) -> Result<()> {
        Ok(())
    }
}

/// Reads a chunk in steps that the API allows; each step has its full length or
/// is a failure.
async fn read(client: &Client, drive: DriveId, span: Span) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    let mut offset = span.offset;
    while offset < span.end() {
        let len = READ_BYTES_MAX.min(span.end() - offset);
        let step = client.read(drive, offset, len).await?;
        if bytes.is_empty() {
            // One step is the usual case: no copy.
            bytes = step.into();
        } else {
            bytes.extend_from_slice(&step);
        }
        offset += len;
    }
    Ok(bytes)
}
