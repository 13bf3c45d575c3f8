//! A download: survey, GET, check of the length, write, settle, publish.

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rangemap::RangeSet;
use tokio::sync::Semaphore;

use super::begin::{Opened, Opening};
use super::check_earlier::Recheck;
use super::drive_unchanged::{StillThere, allow_changes, look, warn_of_condition};
use super::fetch_chunk::{Fetcher, Partials, ToRead};
use super::hole_survey::{Survey, SurveyConfig};
use super::options::{Destination, DownloadInterrupted, DownloadOptions, Downloaded};
use super::sink::Sink;
use crate::advice::Remedy;
use crate::api::Client;
use crate::buffer::BufferPool;
use crate::chunk::{Found, RequestSize};
use crate::content::count;
use crate::digest::Digest;
use crate::drive::DriveInfo;
use crate::driver::blocking::blocking;
use crate::driver::checksum::Follower;
use crate::driver::pieces::at_most;
use crate::driver::session::{Ended, done, finish, gaps, refuted, warn};
use crate::driver::shell::{Feed, Job, Outcome, Shell};
use crate::driver::spare_requests::Spare;
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::Weakness;
use crate::image::{Disk, TargetFormat};
use crate::journal::{Journal, Note, Record, State};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{Plan, Span};
use crate::policy::{Concurrency, Engine, EngineConfig, Limits, Operation, PiecesConfig, Zeros};
use crate::verify::early_checks::{CheckFailure, CheckedDrive, EarlyChecks, run_checked};
use crate::verify::read_back::{
    Again, Digests, Expected, Local, Passed, ReadFrom, Sampler, Verified, Verify, verify,
};
use crate::verify::sample_places::HolePlaces;
use openhosting_base::advice;

/// Downloads a drive. It is done when every byte was received in full length, is written and on the
/// disk, and the drive did not change meanwhile.
///
/// # Errors
/// [`DownloadInterrupted`], with the reason and how to continue.
pub async fn download(
    client: &Client,
    destination: Destination,
    options: &DownloadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    let first = Concurrency::first(
        options.jobs_min.get(),
        options.jobs.get(),
        client.round_trip(),
    );
    client.open_ahead(first).await;
    let look = stop.unless_asked(look(client, options));
    let info = options.patience.watching(monitor, look).await?;
    warn_of_condition(&info, options, monitor);
    let base = options.offset.unwrap_or_default();
    let file = match &destination {
        Destination::File { path, .. } => Some(path.clone()),
        Destination::Stream(_) => None,
    };
    let check = check_offset(file, base, info.size);
    stop.unless_asked(check).await?;
    let opening = Opening {
        client,
        options,
        info: &info,
        plan: Plan::new(info.size - base, options.chunk),
    };
    let force = matches!(destination, Destination::File { force: true, .. });
    let mut opened = opening.open(destination, monitor, &stop).await?;
    let run = Run::begin(opening, &mut opened, force, monitor, &stop).await?;
    let fetching = run.start(opened, monitor)?;
    let fetched = run.fetch(fetching, monitor, stop.clone()).await?;
    run.finish(fetched, monitor, stop).await
}

/// Refuses an offset that is not within the drive. At its very end, it is accepted for a file that
/// has all bytes: a script may resume a download that was complete.
async fn check_offset(file: Option<PathBuf>, offset: u64, size: u64) -> Result<()> {
    if offset == 0 || offset < size {
        return Ok(());
    }
    let is_complete = blocking(move || {
        let there = file.and_then(|file| file.metadata().ok());
        Ok(offset == size && there.is_some_and(|there| there.len() == size))
    });
    if is_complete.await? {
        return Ok(());
    }
    let what = format!("Offset {offset} is not within the drive, which has {size} bytes");
    Err(Error::new(ErrorKind::Usage, what)
        .hint_to("Start at the number of bytes that the file has already, or leave the offset out"))
}

/// What stays the same from the start of a download to its end.
struct Run<'a> {
    client: &'a Client,
    options: &'a DownloadOptions,
    /// The drive's state before the first read.
    info: &'a DriveInfo,
    plan: Plan,
    /// The byte of the drive at which the plan begins.
    base: u64,
    /// Chunks of other shards.
    others: RangeSet<u64>,
    sampler: Sampler,
    /// Whether an existing file with the name of the image may be overwritten.
    force: bool,
    is_journaled: bool,
}

/// A download that can send requests.
struct Fetching {
    shell: Shell<Download>,
    early_checks: Option<EarlyChecks>,
    /// The disk that is written, if it can be read before it is complete.
    disk: Option<Arc<dyn Disk>>,
}

/// A download whose chunks are all settled.
struct Fetched {
    progress: Progress,
    first_open: u64,
    journal: Option<Journal>,
    /// Chunks that the journal covers only by calling the file complete.
    unrecorded: Vec<Span>,
    early_checks: Option<EarlyChecks>,
    sink: Arc<Sink>,
    to_verify: Expected,
    holes: RangeSet<u64>,
    hole_places: HolePlaces,
    follower: Option<Follower>,
}

impl<'a> Run<'a> {
    /// Opens the destination, and reads a sample of what an earlier run left.
    async fn begin(
        opening: Opening<'a>,
        opened: &mut Opened,
        force: bool,
        monitor: &mut dyn Monitor,
        stop: &Stop,
    ) -> Result<Self> {
        let Opening {
            client,
            options,
            info,
            ..
        } = opening;
        let Opened { sink, session } = opened;
        warn(
            session.weaknesses().iter().chain(sink.weaknesses()),
            monitor,
        );
        let plan = session.plan;
        let is_journaled = session.journal.is_some();
        // For a raw file, the journal computes the digests itself, because it can read the disk's
        // bytes at their offsets.
        let digests = if is_journaled && options.format != TargetFormat::Raw {
            Digests::Whole
        } else {
            Digests::Unwanted
        };
        let is_again = matches!(sink, Sink::File(_));
        let seed = fastrand::u64(..);
        let sampler = Sampler::new(options.verify, &plan, seed, digests, is_again);
        let recheck = Recheck {
            plan: &plan,
            sampler: &sampler,
            stop,
        };
        recheck
            .check_earlier(sink, options.format, session, monitor)
            .await?;
        let others = match options.shard {
            Some(shard) => shard.others(plan.count()).collect(),
            None => RangeSet::new(),
        };
        Ok(Self {
            client,
            options,
            info,
            plan,
            base: options.offset.unwrap_or_default(),
            others,
            sampler,
            force,
            is_journaled,
        })
    }

    fn is_raw(&self) -> bool {
        self.options.format == TargetFormat::Raw
    }

    /// The byte of the drive at which a chunk begins.
    fn offset_of(&self, chunk: u64) -> u64 {
        let span = self.plan.span(chunk);
        self.base + span.map_or(self.plan.size(), |span| span.offset)
    }

    /// Starts the survey for holes, and creates everything that the transfer needs.
    fn start(&self, opened: Opened, monitor: &mut dyn Monitor) -> Result<Fetching> {
        let Opened { sink, mut session } = opened;
        let (client, options, plan, base) = (self.client, self.options, self.plan, self.base);
        let mut settled = session.state.settled();
        settled.extend(self.others.clone());
        let holes = session.state.holes.clone();
        let mut hole_places = HolePlaces::new(fastrand::u64(..));
        for chunks in holes.iter() {
            let bytes = plan.bytes_of(chunks);
            hole_places.hole(base + bytes.start..base + bytes.end);
        }
        let todo = gaps(&plan, 0, &settled);
        self.announce(&todo, &session.state, monitor);
        if let Some(journal) = &session.journal {
            journal.begin(sink.data(std::mem::take(&mut session.accepted))?);
        }
        let follower = match &sink {
            Sink::File(target) if options.checksum && self.is_raw() => {
                let there = settled.clone();
                Some(Follower::start(target.handle()?, plan, base, there)?)
            }
            _ => None,
        };
        // Other formats cannot be read before they are complete.
        let disk = if self.is_raw() {
            sink.to_disk(options.format)?
        } else {
            None
        };
        let is_readable = disk.is_some() || !matches!(sink, Sink::File(_));
        let (jobs, seed) = (options.jobs.get(), fastrand::u64(..));
        let early_checks = EarlyChecks::new(&self.sampler, plan, base, jobs, seed);
        // A drive that may change differs from what was read of it before.
        let early_checks = early_checks.filter(|_| is_readable && !options.allow_live);
        if let Some(early_checks) = &early_checks {
            early_checks.settled_before(&session.state.settled(), &holes);
        }
        let engine = self.engine(settled);
        let sink = Arc::new(sink);
        let window = Arc::new(Semaphore::new(0));
        let survey = SurveyConfig {
            client: client.clone(),
            drive: options.drive,
            plan,
            base,
            todo,
            sink: Arc::clone(&sink),
            window: Arc::clone(&window),
        };
        let job = Download {
            plan,
            base,
            fetcher: self.fetcher(),
            sink,
            survey: Survey::start(survey),
            window,
            served: 0,
            sampler: self.sampler.clone(),
            journal: session.journal,
            early_checks: early_checks.clone(),
            to_verify: Expected::default(),
            holes,
            hole_places,
            follower,
        };
        let patience = &options.patience;
        Ok(Fetching {
            shell: Shell::new(client.clone(), options.drive, engine, job, patience),
            early_checks,
            disk,
        })
    }

    /// Reports how much there is to do.
    fn announce(&self, todo: &[Range<u64>], state: &State, monitor: &mut dyn Monitor) {
        let there = state.settled_bytes(&self.plan);
        let first = todo.first().map_or(self.plan.count(), |range| range.start);
        monitor.event(&Event::Started {
            chunks: Some(count(todo)),
            chunk_bytes: self.plan.chunk_bytes(),
            offset: self.offset_of(first),
            bytes: Some(self.plan.bytes_in_all(todo)),
            // With an offset, the file that this run writes begins before the plan does.
            earlier_bytes: self.base + there,
        });
    }

    fn engine(&self, settled: RangeSet<u64>) -> Engine<ToRead> {
        let options = self.options;
        Engine::new(EngineConfig {
            plan: self.plan,
            first: 0,
            settled,
            jobs_min: options.jobs_min.get(),
            jobs: options.jobs.get(),
            // A hole is in place before the engine learns about it.
            zeros: Zeros::Skip,
            operation: Operation::Read,
            is_fresh: false,
            max_outage: options.patience.max_outage(),
            round_trip: self.client.round_trip(),
            pieces: PiecesConfig {
                rate: self.client.rate(),
                // The chunks of an earlier run may be larger.
                ..at_most(RequestSize::plain(
                    options.read_bytes_max.min(options.chunk).get(),
                ))
            },
            seed: fastrand::u64(..),
        })
    }

    fn fetcher(&self) -> Fetcher {
        let chunk = self.plan.chunk_bytes().min(self.plan.size());
        Fetcher {
            client: self.client.clone(),
            drive: self.options.drive,
            step_max: Arc::new(AtomicU64::new(self.options.read_bytes_max.get())),
            pool: BufferPool::new(1),
            chunk: usize::try_from(chunk).unwrap_or(usize::MAX),
            partials: Partials::default(),
        }
    }

    /// Downloads every chunk. Whatever happens, what is on the disk stays in the journal.
    async fn fetch(
        &self,
        fetching: Fetching,
        monitor: &mut dyn Monitor,
        stop: Stop,
    ) -> Result<Fetched, DownloadInterrupted> {
        let Fetching {
            mut shell,
            early_checks,
            disk,
        } = fetching;
        let checked = CheckedDrive {
            client: self.client,
            drive: self.options.drive,
            disk,
            is_image: false,
            spare: shell.spare(),
        };
        let transfer = shell.run(monitor, stop);
        let ending = run_checked(transfer, early_checks.as_ref(), checked).await;
        if ending.is_err() {
            shell.abort(monitor).await;
        }
        let (progress, first_open) = (shell.progress(), shell.first_open());
        let (outcome, mismatch) = match ending {
            Ok(ending) => (shell.outcome(ending, "read"), None),
            Err(CheckFailure::Changed(error)) => (Err(error), None),
            Err(CheckFailure::Mismatch(error)) => (Ok(()), Some(error)),
        };
        let job = shell.into_job();
        job.survey.end().await;
        let is_whole = self.is_raw() && self.options.shard.is_none();
        let journal = job.journal;
        if let (Ok(()), None, Some(journal), true) = (&outcome, &mismatch, &journal, is_whole) {
            // If that fails, ending the journal fails as well.
            let _ = journal.note(Note::Whole);
        }
        let finished = finish(journal.as_ref()).await;
        // Whatever became of the journal: what it calls done is not in the file.
        if let Some(error) = mismatch {
            return Err(mismatched(error, journal).await);
        }
        let there = |error| self.interrupted(error, first_open);
        outcome.map_err(there)?;
        let unrecorded = finished.map_err(there)?;
        Ok(Fetched {
            progress,
            first_open,
            journal,
            unrecorded,
            early_checks,
            sink: job.sink,
            to_verify: job.to_verify,
            holes: job.holes,
            hole_places: job.hole_places,
            follower: job.follower,
        })
    }

    /// The end of a run that will be resumed, at the chunk `first_open`.
    fn interrupted(&self, error: Error, first_open: u64) -> DownloadInterrupted {
        DownloadInterrupted {
            error,
            resume_at: Some(self.offset_of(first_open)),
            is_whole: first_open == self.plan.count(),
            is_journaled: self.is_journaled,
        }
    }

    /// Compares with the drive, checks whether that changed, and gives the file its name.
    async fn finish(
        self,
        fetched: Fetched,
        monitor: &mut dyn Monitor,
        mut stop: Stop,
    ) -> Result<Downloaded, DownloadInterrupted> {
        let (client, options, plan) = (self.client, self.options, self.plan);
        let (progress, journal) = (fetched.progress, fetched.journal);
        let there = |error| self.interrupted(error, fetched.first_open);
        self.sampler.look_into(fetched.hole_places.take());
        let local = match fetched.sink.to_disk(options.format).map_err(there)? {
            Some(disk) => Local::Again(Again {
                disk,
                is_image: false,
                plan,
                base: self.base,
                chunks: gaps(&plan, 0, &self.others).into_iter().collect(),
                holes: fetched.holes,
            }),
            // In this case there is no journal and no earlier run.
            None => Local::Seen(fetched.to_verify),
        };
        // One of the requests is the check of the drive.
        let jobs = options.jobs.get().saturating_sub(1).max(1);
        let early_checks = fetched.early_checks;
        let from = ReadFrom {
            client,
            drive: options.drive,
            open: progress.workers.min(jobs),
            jobs,
            patience: &options.patience,
            passed: early_checks.map(EarlyChecks::end).unwrap_or_default(),
        };
        // Everything on this machine was read before this point, so the drive can be checked while
        // the sample is read again.
        let mut still = StillThere::of(client, options, self.info);
        let verified = self.compare(from, local, monitor, stop.clone()).await;
        let verified = allow_changes(verified, client, options, self.info, monitor).await;
        let verified = match verified {
            Err(error) if error.kind() == ErrorKind::Integrity => {
                return Err(mismatched(error, journal).await);
            }
            Ok(verified) => {
                let check = stop.unless_asked(still.check());
                let checked = options.patience.watching(monitor, check).await;
                checked.map(|()| verified)
            }
            Err(error) => Err(error),
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(error) => {
                remember(journal, &fetched.sink, fetched.unrecorded).await;
                return Err(there(error));
            }
        };
        let is_stream = matches!(*fetched.sink, Sink::Stream(_));
        let publishing = self.publish(fetched.sink, fetched.follower);
        let published = match is_stream {
            // What reads the stream may take any time.
            true => stop.unless_asked(publishing).await,
            false => publishing.await,
        };
        let (checksum, weaknesses) = published.map_err(there)?;
        warn(&weaknesses, monitor);
        // The journal of a shard stays, because it proves to `--join` that the shard is complete.
        let journal = journal.filter(|_| options.shard.is_none());
        Ok(Downloaded {
            progress,
            verified,
            checksum,
            journal: Ended::of(journal),
        })
    }

    /// Compares with the drive what this run wrote; a full verification also what is before it.
    async fn compare(
        &self,
        from: ReadFrom<'_>,
        local: Local,
        monitor: &mut dyn Monitor,
        stop: Stop,
    ) -> Result<Verified> {
        let before = self.before_offset(&local);
        let again = ReadFrom {
            passed: Passed::default(),
            ..from
        };
        let verified = verify(from, &self.sampler, local, monitor, stop.clone()).await?;
        let Some(before) = before else {
            return Ok(verified);
        };
        let before = Local::Again(before);
        let before = verify(again, &self.sampler, before, monitor, stop).await?;
        Ok(Verified {
            ranges: before.ranges + verified.ranges,
            bytes: before.bytes + verified.bytes,
        })
    }

    /// What a full verification compares in addition if there is an offset: the bytes before it,
    /// which this run did not write.
    fn before_offset(&self, local: &Local) -> Option<Again> {
        let (Local::Again(again), Verify::Full, 1..) = (local, self.options.verify, self.base)
        else {
            return None;
        };
        let plan = Plan::new(self.base, self.options.chunk);
        Some(Again {
            disk: Arc::clone(&again.disk),
            is_image: false,
            plan,
            base: 0,
            chunks: std::iter::once(0..plan.count()).collect(),
            holes: RangeSet::new(),
        })
    }

    /// Gives the file its name. Returns its digest, if requested, and what the file system cannot
    /// guarantee.
    async fn publish(
        &self,
        sink: Arc<Sink>,
        follower: Option<Follower>,
    ) -> Result<(Option<Digest>, Vec<Weakness>)> {
        let (force, checksum) = (self.force, self.options.checksum);
        blocking(move || {
            let followed = follower.map(Follower::finish).transpose()?;
            let written = Arc::into_inner(sink)
                .ok_or_else(|| Error::new(ErrorKind::Bug, "The image is still being written"))?
                .finish(force, checksum)?;
            Ok((followed.or(written.digest), written.weaknesses))
        })
        .await
    }
}

/// The error for a download that does not match the drive; its journal is removed.
async fn mismatched(error: Error, journal: Option<Journal>) -> DownloadInterrupted {
    let error = error.hint_to(advice![
        "Nothing may write to the drive meanwhile. Start over with ",
        Remedy::Restart,
    ]);
    refuted(error, journal).await.into()
}

/// For a transfer that does not end yet, adds records for the chunks that the journal covers only
/// by calling the file complete. Without them, the journal is still correct, so a failure is
/// ignored.
async fn remember(journal: Option<Journal>, sink: &Sink, chunks: Vec<Span>) {
    if let (Some(journal), Ok(Some(data))) = (journal, sink.handle()) {
        let remembered = blocking(move || journal.remember(&data, chunks)).await;
        if let Err(error) = remembered {
            tracing::debug!(%error, "the last chunks have no digests");
        }
    }
}

/// What is known about a chunk that was written.
#[derive(Clone, Copy, Debug)]
struct Put {
    /// Number of its blocks with data.
    blocks: u64,
    /// Its digest, if it is needed.
    digest: Option<Digest>,
}

/// The chunks of a download, as the shell needs them.
struct Download {
    /// One buffer for each chunk of the window, or for each request if no chunk waits.
    fetcher: Fetcher,
    /// The byte of the drive at which the plan begins.
    base: u64,
    plan: Plan,
    sink: Arc<Sink>,
    survey: Survey,
    /// Permits for chunks in flight or waiting to be written in order.
    window: Arc<Semaphore>,
    /// The number of workers for which the window and the pool are sized.
    served: u32,
    sampler: Sampler,
    journal: Option<Journal>,
    early_checks: Option<EarlyChecks>,
    /// What a full verification expects of data that cannot be read again.
    to_verify: Expected,
    /// Chunks that were holes.
    holes: RangeSet<u64>,
    /// Sampled places within reported holes.
    hole_places: HolePlaces,
    follower: Option<Follower>,
}

impl Download {
    /// Records that these chunks are holes except for these parts of the drive.
    fn note_holes(&mut self, chunks: Range<u64>, parts: &[Range<u64>]) {
        let bytes = self.plan.bytes_of(&chunks);
        let mut at = self.base + bytes.start;
        for part in parts {
            self.hole_places.hole(at..part.start);
            at = part.end;
        }
        self.hole_places.hole(at..self.base + bytes.end);
    }
}

impl Job for Download {
    type Payload = ToRead;
    type Done = Put;

    async fn feed(&mut self) -> Feed<ToRead> {
        let next = self.survey.next().await;
        match &next {
            Some(Ok(Found::Chunk(chunk))) => {
                self.note_holes(chunk.index..chunk.index + 1, &chunk.payload.parts);
            }
            Some(Ok(Found::Hole(chunks))) => self.note_holes(chunks.clone(), &[]),
            Some(Ok(Found::SizeKnown(_)) | Err(_)) | None => {}
        }
        next
    }

    fn serve(&mut self, workers: u32) {
        if let Some(early_checks) = &self.early_checks {
            early_checks.serve(workers);
        }
        let more = workers.saturating_sub(self.served);
        self.window.add_permits(2 * more as usize);
        self.served += more;
        let chunks = if self.sink.is_ordered() { 2 } else { 1 };
        self.fetcher.pool.grow(chunks * self.served as usize);
    }

    fn attempt(
        &mut self,
        span: Span,
        chunk: ToRead,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Outcome<ToRead, Put>> + Send + 'static {
        let on_drive = Span {
            offset: self.base + span.offset,
            ..span
        };
        let (fetcher, spare) = (self.fetcher.clone(), spare.clone());
        let (sink, sampler) = (Arc::clone(&self.sink), self.sampler.clone());
        let journal = self.journal.clone();
        async move {
            let fetched = fetcher.fetch(on_drive, &chunk.parts, limits, &spare);
            let (fetched, requests) = match fetched.await {
                Ok(fetched) => fetched,
                Err((error, requests)) => return error.outcome(chunk, requests),
            };
            let put = blocking(move || {
                if let Some((span, bytes)) = fetched.first() {
                    sampler.look_at(span, bytes);
                }
                let is_behind = journal.is_some_and(|journal| journal.is_behind());
                let is_wanted = sampler.wants_digests() || is_behind;
                let digest = is_wanted.then(|| fetched.digest());
                let blocks = sink.put(fetched, chunk.permit)?;
                Ok(Put { blocks, digest })
            });
            match put.await {
                Ok(put) => Outcome::Done(put, requests),
                Err(error) => Outcome::Local(error),
            }
        }
    }

    fn bytes_to_move(&self, span: Span, chunk: &ToRead) -> (u64, u64) {
        let parts = chunk.parts.iter().map(|part| part.end - part.start);
        (span.len, parts.sum())
    }

    fn settled(&mut self, span: Span, put: Put) -> Result<()> {
        let Put { blocks, digest } = put;
        self.survey.settled();
        if let Some(follower) = &mut self.follower {
            follower.settled(span.index..span.index + 1);
        }
        if let Some(journal) = &self.journal {
            // If there is a journal, the plan begins where the file begins.
            let written = Note::Written { span, blocks };
            journal.note(done(span, digest.map(Into::into)).map_or(written, Note::Record))?;
        }
        if self.sampler.collects()
            && let Some(digest) = digest
        {
            let offset = self.base + span.offset;
            self.to_verify.chunk(Span { offset, ..span }, digest.into());
        }
        if let Some(early_checks) = &self.early_checks {
            early_checks.settled(span);
        }
        Ok(())
    }

    fn skipped(&mut self, chunks: Range<u64>) -> Result<()> {
        if let Some(follower) = &mut self.follower {
            follower.settled(chunks.clone());
        }
        if let Some(journal) = &self.journal {
            journal.note(Record::holes(&chunks))?;
        }
        if self.sampler.collects() {
            let bytes = self.plan.bytes_of(&chunks);
            let bytes = self.base + bytes.start..self.base + bytes.end;
            self.to_verify.zeros(bytes);
        }
        if !chunks.is_empty() {
            if let Some(early_checks) = &self.early_checks {
                early_checks.skipped(chunks.clone());
            }
            self.holes.insert(chunks);
        }
        Ok(())
    }
}
