//! A download: survey → GET → length checked → written at its place → settled →
//! published.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use rangemap::RangeSet;
use tokio::sync::Semaphore;

use super::begin::open;
use super::check_earlier::check_earlier;
use super::drive_unchanged::{StillThere, look};
use super::fetch_chunk::{Fetcher, Partials};
use super::hole_survey::{Found, Survey, SurveyConfig};
use super::options::{Destination, DownloadInterrupted, DownloadOptions, Downloaded};
use super::sink::Sink;
use crate::api::Client;
use crate::buffer::BufferPool;
use crate::chunk::RequestSize;
use crate::digest::Digest;
use crate::driver::blocking::blocking;
use crate::driver::checksum::Follower;
use crate::driver::session::{Ended, done, finish, gaps, refuted, warn};
use crate::driver::shell::{Attempt, Feed, Job, Shell, lost};
use crate::driver::spare_requests::Spare;
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::image::TargetFormat;
use crate::journal::{Journal, Keeper, Note, Record};
use crate::monitor::{Event, Monitor};
use crate::plan::{Plan, Span};
use crate::policy::{
    Body, Concurrency, Engine, EngineConfig, Limits, Operation, PiecesConfig, Zeros,
};
use crate::verify::early_checks::{CheckFailure, CheckedDrive, EarlyChecks, run_checked};
use crate::verify::read_back::{Again, Digests, Expected, Local, ReadFrom, Sampler, verify};
use crate::verify::sample_places::HolePlaces;

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
    let first = Concurrency::first(options.jobs_min.get(), options.jobs.get());
    client.open_ahead(first).await;
    let look = stop.unless_asked(look(client, options));
    let info = options.patience.watching(monitor, look).await?;
    let base = options.offset.unwrap_or_default().min(info.size);
    let plan = Plan::new(info.size - base, options.chunk);
    let (force, sink, mut session) =
        open(client, destination, options, &info, plan, monitor, &stop).await?;
    warn(
        session.weaknesses().iter().chain(sink.weaknesses()),
        monitor,
    );
    let plan = session.plan;
    let is_journaled = session.journal.is_some();
    // The journal makes its digests itself, from a file that has the disk's bytes at
    // their places.
    let is_raw = options.format == TargetFormat::Raw;
    let digests = match is_journaled && !is_raw {
        true => Digests::Whole,
        false => Digests::Unwanted,
    };
    let is_again = matches!(sink, Sink::File(_));
    let sampler = Sampler::new(options.verify, &plan, rng.u64(..), digests, is_again);
    check_earlier(
        &sink,
        options.format,
        &plan,
        &mut session,
        &sampler,
        monitor,
        &stop,
    )
    .await?;
    let others: RangeSet<u64> = match options.shard {
        Some(shard) => shard.others(plan.count()).collect(),
        None => RangeSet::new(),
    };
    let mut settled = session.state.settled();
    settled.extend(others.clone());
    let holes = session.state.holes.clone();
    let mut hole_places = HolePlaces::new(rng.u64(..));
    for chunks in holes.iter() {
        let bytes = plan.bytes_of(chunks);
        hole_places.hole(base + bytes.start..base + bytes.end);
    }
    let todo = gaps(&plan, 0, &settled);
    let first = todo.first().map_or(plan.count(), |range| range.start);
    let offset_of = |chunk| base + plan.span(chunk).map_or(plan.size(), |span| span.offset);
    let there = session.state.settled();
    let there: u64 = there.iter().map(|range| plan.bytes_in(range)).sum();
    monitor.event(&Event::Started {
        chunks: Some(todo.iter().map(|range| range.end - range.start).sum()),
        chunk_bytes: plan.chunk_bytes(),
        offset: offset_of(first),
        bytes: Some(todo.iter().map(|range| plan.bytes_in(range)).sum()),
        // With an offset it is where the file begins that this run writes to.
        earlier_bytes: base + there,
    });
    let keeper = match session.journal.take() {
        Some(journal) => {
            let data = sink.data(std::mem::take(&mut session.taken))?;
            Some(Keeper::start(journal, data)?)
        }
        None => None,
    };
    let follower = match &sink {
        Sink::File(target) if options.checksum && is_raw => {
            let there = settled.clone();
            Some(Follower::start(target.handle()?, plan, base, there)?)
        }
        _ => None,
    };
    // Other formats cannot be read before they are complete.
    let disk = match is_raw {
        true => sink.to_disk(options.format)?,
        false => None,
    };
    let is_readable = disk.is_some() || !is_again;
    let early_checks = EarlyChecks::new(&sampler, plan, base, options.jobs.get(), rng.u64(..));
    let early_checks = early_checks.filter(|_| is_readable);
    if let Some(early_checks) = &early_checks {
        early_checks.settled_before(&session.state.settled(), &holes);
    }
    let engine = Engine::new(EngineConfig {
        plan,
        first: 0,
        settled,
        jobs_min: options.jobs_min.get(),
        jobs: options.jobs.get(),
        // A hole that is told to the engine is where it belongs already.
        zeros: Zeros::Skip,
        operation: Operation::Read,
        is_fresh: false,
        max_outage: options.patience.max_outage(),
        round_trip: client.round_trip(),
        pieces: PiecesConfig {
            // Fewer where an earlier run began with larger chunks.
            most: RequestSize::plain(options.read_bytes_max.min(options.chunk).get()),
            ..PiecesConfig::default()
        },
        seed: rng.u64(..),
    });
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
    let chunk = plan.chunk_bytes().min(plan.size());
    let fetcher = Fetcher {
        client: client.clone(),
        drive: options.drive,
        step_max: Arc::new(AtomicU64::new(options.read_bytes_max.get())),
        pool: BufferPool::new(1),
        chunk: usize::try_from(chunk).unwrap_or(usize::MAX),
        partials: Partials::default(),
    };
    let job = Download {
        plan,
        base,
        fetcher,
        sink,
        survey: Survey::start(survey),
        parts: HashMap::new(),
        window,
        served: 0,
        sampler: sampler.clone(),
        put: Arc::default(),
        keeper,
        early_checks: early_checks.clone(),
        to_verify: Expected::default(),
        holes,
        hole_places,
        follower,
    };
    let mut shell = Shell::new(
        client.clone(),
        options.drive,
        engine,
        job,
        &options.patience,
    );
    let checked = CheckedDrive {
        client,
        drive: options.drive,
        disk,
        is_image: false,
        spare: shell.spare(),
    };
    let ending = run_checked(
        shell.run(monitor, stop.clone()),
        early_checks.as_ref(),
        checked,
    );
    let ending = ending.await;
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
    let is_whole = is_raw && options.shard.is_none();
    if let (Ok(()), None, Some(keeper), true) = (&outcome, &mismatch, &job.keeper, is_whole) {
        // Where that fails, so does the end of it.
        let _ = keeper.note(Note::Whole);
    }
    // Whatever happened: what is on the disk is kept.
    let kept = finish(job.keeper).await;
    let there = |error| DownloadInterrupted {
        error,
        resume_at: Some(offset_of(first_open)),
        is_whole: first_open == plan.count(),
        is_journaled,
    };
    outcome.map_err(there)?;
    let kept = kept.map_err(there)?;
    if let Some(error) = mismatch {
        let journal = kept.map(|kept| kept.journal);
        return Err(mismatched(error, journal).await);
    }
    let (journal, unrecorded) = kept.map(|kept| (kept.journal, kept.unrecorded)).unzip();
    sampler.look_into(job.hole_places.take());
    let local = match job.sink.to_disk(options.format).map_err(there)? {
        Some(disk) => Local::Again(Again {
            disk,
            is_image: false,
            plan,
            base,
            chunks: gaps(&plan, 0, &others).into_iter().collect(),
            holes: job.holes,
        }),
        // There is no journal then, and no earlier run.
        None => Local::Seen(job.to_verify),
    };
    // One of the requests is the look at the drive.
    let jobs = options.jobs.get().saturating_sub(1).max(1);
    let from = ReadFrom {
        client,
        drive: options.drive,
        open: progress.workers.min(jobs),
        jobs,
        patience: &options.patience,
        passed: early_checks.map(EarlyChecks::end).unwrap_or_default(),
    };
    // All that is on this machine was read before this begins, so that it may be asked at
    // the same time as the sample is read again.
    let mut still = StillThere::of(client, options, &info);
    let verified = verify(from, &sampler, local, monitor, stop.clone()).await;
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
            remember(journal, &job.sink, unrecorded.unwrap_or_default()).await;
            return Err(there(error));
        }
    };
    let (sink, follower, checksum) = (job.sink, job.follower, options.checksum);
    let (checksum, weaknesses) = blocking(move || {
        let followed = follower.map(Follower::finish).transpose()?;
        let written = Arc::into_inner(sink)
            .ok_or_else(|| Error::new(ErrorKind::Bug, "The image is still being written"))?
            .finish(force, checksum)?;
        Ok((followed.or(written.digest), written.weaknesses))
    })
    .await
    .map_err(there)?;
    warn(&weaknesses, monitor);
    // That of a shard tells those who join them that it is done.
    let journal = journal.filter(|_| options.shard.is_none());
    Ok(Downloaded {
        progress,
        verified,
        checksum,
        journal: Ended::of(journal),
    })
}

/// The error of a download that is not what the drive holds; its journal goes.
async fn mismatched(error: Error, journal: Option<Journal>) -> DownloadInterrupted {
    let error =
        error.hint_to("Nothing may write to the drive meanwhile. Start over with --restart");
    refuted(error, journal).await.into()
}

/// Adds to the journal of a transfer that does not end yet what it tells of only by
/// calling the file whole. That it cannot be said more exactly is no reason to fail.
async fn remember(journal: Option<Journal>, sink: &Sink, chunks: Vec<Span>) {
    if let (Some(mut journal), Ok(Some(data))) = (journal, sink.handle()) {
        let remembered = blocking(move || journal.remember(&data, chunks)).await;
        if let Err(error) = remembered {
            tracing::debug!(%error, "the last chunks have no digests");
        }
    }
}

/// What is known of a chunk that was put to its place.
#[derive(Clone, Copy, Debug, Default)]
struct Put {
    /// Blocks of it that hold data.
    blocks: u64,
    /// Its digest, if somebody needs it.
    digest: Option<Digest>,
}

/// The chunks of a download.
struct Download {
    /// One buffer for each chunk of the window, or for each request where none waits.
    fetcher: Fetcher,
    /// Byte of the drive that the plan begins at.
    base: u64,
    plan: Plan,
    sink: Arc<Sink>,
    survey: Survey,
    /// What to read of the chunks that are not settled, in bytes of the drive.
    parts: HashMap<u64, Vec<Range<u64>>>,
    /// Chunks that may be under way or wait to be written in order.
    window: Arc<Semaphore>,
    /// The workers that the window and the pool are for.
    served: u32,
    sampler: Sampler,
    /// Chunks that are put to their place but not settled yet, by index.
    put: Arc<Mutex<BTreeMap<u64, Put>>>,
    keeper: Option<Keeper>,
    early_checks: Option<EarlyChecks>,
    /// What a full verification expects of what cannot be read again.
    to_verify: Expected,
    /// Chunks that were holes.
    holes: RangeSet<u64>,
    /// Places in what the endpoint called holes.
    hole_places: HolePlaces,
    follower: Option<Follower>,
}

impl Download {
    /// These chunks are holes, but for these parts of the drive.
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
    async fn feed(&mut self) -> Feed {
        match self.survey.next().await {
            Some(Ok(Found::Chunk(index, parts))) => {
                self.note_holes(index..index + 1, &parts);
                self.parts.insert(index, parts);
                Feed::Chunk(index)
            }
            Some(Ok(Found::Holes(chunks))) => {
                self.note_holes(chunks.clone(), &[]);
                Feed::Hole(chunks)
            }
            Some(Err(error)) => Feed::Failed(error),
            None => Feed::End,
        }
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
        body: Body,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Attempt> + Send + 'static {
        let on_drive = Span {
            offset: self.base + span.offset,
            ..span
        };
        // A hole is where it belongs before the engine hears of it.
        let parts = match body {
            Body::Given => self.parts.get(&span.index).cloned().ok_or_else(lost),
            Body::Zeros => Err(lost()),
        };
        let (fetcher, spare) = (self.fetcher.clone(), spare.clone());
        let (sink, window) = (Arc::clone(&self.sink), Arc::clone(&self.window));
        let (sampler, all) = (self.sampler.clone(), Arc::clone(&self.put));
        let lag = self.keeper.as_ref().map(Keeper::lag).unwrap_or_default();
        async move {
            let parts = match parts {
                Ok(parts) => parts,
                Err(error) => return Attempt::local(error),
            };
            let fetched = fetcher.fetch(on_drive, parts, limits, &spare).await;
            let (fetched, requests) = match fetched {
                Ok(fetched) => fetched,
                Err(attempt) => return attempt,
            };
            let put = blocking(move || {
                if let Some((span, bytes)) = fetched.first() {
                    sampler.look_at(span, bytes);
                }
                let is_wanted = sampler.wants_digests() || lag.is_behind();
                let digest = is_wanted.then(|| fetched.digest());
                let blocks = sink.put(fetched, &window)?;
                if let Ok(mut all) = all.lock() {
                    all.insert(span.index, Put { blocks, digest });
                }
                Ok(())
            });
            match put.await {
                Ok(()) => Attempt {
                    requests,
                    ..Attempt::of(Ok(()))
                },
                Err(error) => Attempt::local(error),
            }
        }
    }

    fn settled(&mut self, span: Span, _: Body) -> Result<()> {
        self.survey.settled();
        self.parts.remove(&span.index);
        if let Some(follower) = &mut self.follower {
            follower.settled(span.index..span.index + 1);
        }
        let put = self.put.lock().ok();
        let put = put.and_then(|mut all| all.remove(&span.index));
        let Put { blocks, digest } = put.unwrap_or_default();
        if let Some(keeper) = &self.keeper {
            // Where there is a journal, the plan begins where the file does.
            let written = Note::Written { span, blocks };
            keeper.note(done(span, digest.map(Into::into)).map_or(written, Note::Record))?;
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
        if let Some(keeper) = &self.keeper {
            keeper.note(Record::Holes {
                first: chunks.start,
                count: chunks.end - chunks.start,
            })?;
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
