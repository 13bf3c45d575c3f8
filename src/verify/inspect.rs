//! Compares a drive with a content, and finds the blocks that differ.

use std::ops::{Range, RangeFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rangemap::RangeSet;

use super::read_back::ZeroDigests;
use crate::api::Client;
use crate::chunk::{Found, is_zero};
use crate::content::{BLOCK_BYTES, Content, Held, block_digest, blocks_of, chunk_of, chunks_of};
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::data_ranges::not_holes;
use crate::driver::patience::Patience;
use crate::driver::read_range::DriveReader;
use crate::driver::shell::{AttemptError, Feed, Job, NewChunk, Outcome, Shell};
use crate::driver::spare_requests::Spare;
use crate::driver::stop::Stop;
use crate::error::Result;
use crate::failure::Failure;
use crate::locks::lock;
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::{Plan, Span};
use crate::policy::{Engine, EngineConfig, Limits, Operation, PiecesConfig, Requests, Zeros};

/// Maximum ranges to compare concurrently at the start: the endpoint may have to read a chunk for
/// each.
const AT_ONCE_MAX: u32 = 16;
/// With at least this many ranges in a chunk, one digest of the whole chunk is faster than theirs.
const RANGES_OF_CHUNK_MAX: usize = 4;

/// What to compare of a drive, and how.
#[derive(Clone, Debug)]
pub(crate) struct InspectOptions {
    /// The blocks, by index.
    pub blocks: RangeSet<u64>,
    /// Whether a hole that the endpoint reports counts as zeros. This is for finding out what to
    /// send; a verification checks holes itself.
    pub trusts_holes: bool,
    /// Whether blocks may be compared, and reported if they differ, that were not requested: a
    /// chunk with many of the blocks then costs one request, if the endpoint computes digests.
    pub widens: bool,
    /// Number of open connections: the comparison starts with as many concurrent ranges.
    pub open: u32,
    /// Maximum number of requests in flight.
    pub jobs: u32,
    /// How long to continue without any success.
    pub patience: Patience,
}

/// A comparison of a drive with what it should hold, block by block. If the endpoint computes
/// digests, nothing is read. Each whole chunk costs a request, and so does each single block.
/// `monitor` receives the number of bytes to compare, not counting reported holes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inspection<'a> {
    /// The client of the drive's owner.
    pub client: &'a Client,
    /// The drive.
    pub drive: DriveId,
    /// What it should hold.
    pub content: &'a Arc<Content>,
    /// What to compare of it, and how.
    pub options: &'a InspectOptions,
}

impl Inspection<'_> {
    /// Compares, and returns the blocks that differ.
    ///
    /// # Errors
    /// Errors of the endpoint; [`ErrorKind::Cancelled`] if it was asked to stop.
    pub(crate) async fn run(
        self,
        monitor: &mut dyn Monitor,
        mut stop: Stop,
    ) -> Result<RangeSet<u64>> {
        let Self {
            client,
            drive,
            content,
            options,
        } = self;
        let mut rng = fastrand::Rng::new();
        let patience = &options.patience;
        let ranges = stop.unless_asked(self.to_compare());
        let ranges = patience.watching(monitor, ranges).await?;
        // For the engine, each range is a chunk.
        let engine = Engine::new(EngineConfig {
            plan: Plan::new(ranges.len() as u64, std::num::NonZeroU64::MIN),
            first: 0,
            settled: RangeSet::new(),
            jobs_min: options.open.clamp(1, AT_ONCE_MAX),
            jobs: options.jobs,
            zeros: Zeros::Write,
            operation: Operation::Read,
            is_fresh: false,
            max_outage: patience.max_outage(),
            round_trip: client.round_trip(),
            pieces: PiecesConfig::default(),
            seed: rng.u64(..),
        });
        let comparing = Arc::new(Comparing {
            client: client.clone(),
            drive,
            content: Arc::clone(content),
            zeros: Mutex::default(),
            differing: Mutex::default(),
        });
        let block_plan = content.block_plan();
        let bytes_of = |blocks: &Range<u64>| {
            let bytes = block_plan.bytes_of(blocks);
            bytes.end - bytes.start
        };
        monitor.event(&Event::Started {
            chunks: Some(ranges.len() as u64),
            chunk_bytes: content.plan().chunk_bytes(),
            offset: 0,
            bytes: Some(ranges.iter().map(bytes_of).sum()),
            earlier_bytes: 0,
        });
        let compared = Arc::<AtomicU64>::default();
        let mut monitor = InBytes {
            monitor,
            compared: Arc::clone(&compared),
        };
        let job = Comparison {
            comparing: Arc::clone(&comparing),
            ranges: (0..).zip(ranges),
            compared,
        };
        let mut shell = Shell::new(client.clone(), drive, engine, job, patience);
        let ending = shell.run(&mut monitor, stop).await;
        shell.outcome(ending, "read")?;
        let differing = comparing.differing.lock();
        Ok(differing.unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The ranges of blocks to compare, each within one chunk.
    async fn to_compare(self) -> Result<Vec<Range<u64>>> {
        let Self {
            client,
            drive,
            content,
            options,
        } = self;
        let blocks = &options.blocks;
        let (plan, block_plan) = (content.plan(), content.block_plan());
        let chunks = chunks_of(blocks);
        let mut zeros = RangeSet::new();
        for hole in content.zero_chunks().iter() {
            for chunks in chunks.overlapping(hole) {
                let chunks = chunks.start.max(hole.start)..chunks.end.min(hole.end);
                zeros.insert(plan.bytes_of(&chunks));
            }
        }
        let mut to_compare = blocks.clone();
        // For only a few blocks, their digests are faster than a request for holes.
        if options.trusts_holes && chunks.iter().any(|range| range.end - range.start > 1) {
            let unclear: RangeSet<u64> = not_holes(client, drive, zeros.clone(), &options.patience)
                .await?
                .into_iter()
                .collect();
            for bytes in zeros.iter() {
                for hole in unclear.gaps(bytes) {
                    let hole = block_plan.within(hole);
                    if !hole.is_empty() {
                        to_compare.remove(hole);
                    }
                }
            }
        }
        let count = block_plan.count();
        let ranges = to_compare.iter().flat_map(|range| {
            let mut rest = range.start..range.end.min(count);
            std::iter::from_fn(move || {
                let chunk = blocks_of(chunk_of(rest.start));
                let piece = rest.start..rest.end.min(chunk.end);
                rest.start = piece.end;
                (!piece.is_empty()).then_some(piece)
            })
        });
        let mut ranges: Vec<_> = ranges.collect();
        if options.widens && client.makes_digests() {
            let mut widened = Vec::new();
            for ranges in ranges.chunk_by(|one, other| chunk_of(one.start) == chunk_of(other.start))
            {
                match ranges {
                    [first, ..] if ranges.len() > RANGES_OF_CHUNK_MAX => {
                        let chunk = blocks_of(chunk_of(first.start));
                        widened.push(chunk.start..chunk.end.min(count));
                    }
                    ranges => widened.extend_from_slice(ranges),
                }
            }
            ranges = widened;
        }
        Ok(ranges)
    }
}

/// What all attempts share.
struct Comparing {
    client: Client,
    drive: DriveId,
    content: Arc<Content>,
    zeros: Mutex<ZeroDigests>,
    differing: Mutex<RangeSet<u64>>,
}

impl Comparing {
    /// Compares some blocks of one chunk.
    async fn compare(
        self: Arc<Self>,
        blocks: Range<u64>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<(), AttemptError> {
        let (drive, plan) = (self.drive, self.content.block_plan());
        let bytes = plan.bytes_of(&blocks);
        let len = bytes.end - bytes.start;
        let whole = self
            .content
            .plan()
            .span(bytes.start / self.content.plan().chunk_bytes());
        let whole = whole.filter(|span| span.offset == bytes.start && span.len == len);
        let Some(digest) = self.client.digest(drive, bytes.start, len).await? else {
            return self.read(blocks, bytes, step_max, requests).await;
        };
        let is_one = blocks.end - blocks.start == 1;
        let expected = match whole {
            Some(span) if !is_one => self.content.chunk(span.index),
            _ if is_one => self.content.block(blocks.start),
            _ => None,
        };
        if let Some(expected) = expected {
            let is_same = self.is_same(expected, &digest, len);
            if is_same || is_one {
                self.note(blocks, is_same);
                return Ok(());
            }
        }
        // Something in the range differs, or its expected digest is unknown.
        for block in blocks {
            let bytes = plan.bytes_of(&(block..block + 1));
            let len = bytes.end - bytes.start;
            let digest = self.client.digest(drive, bytes.start, len).await?;
            let digest = digest.ok_or_else(|| Failure::Broken("no digests any more".into()))?;
            let is_same = self
                .content
                .block(block)
                .is_some_and(|expected| self.is_same(expected, &digest, len));
            self.note(block..block + 1, is_same);
        }
        Ok(())
    }

    fn is_same(&self, expected: Held<'_>, digest: &Digest, len: u64) -> bool {
        match expected {
            Held::Zeros => {
                let mut zeros = lock(&self.zeros);
                zeros.of(len) == *digest
            }
            Held::Data(expected) => digest.as_bytes().starts_with(expected),
        }
    }

    fn note(&self, blocks: Range<u64>, is_same: bool) {
        let mut differing = self
            .differing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match is_same {
            // An earlier attempt may have had another result.
            true => differing.remove(blocks),
            false => differing.insert(blocks),
        }
    }

    /// Reads and compares, if the endpoint does not compute digests.
    async fn read(
        self: Arc<Self>,
        blocks: Range<u64>,
        bytes: Range<u64>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<(), AttemptError> {
        let reader = DriveReader {
            client: &self.client,
            drive: self.drive,
            step_max,
        };
        let len = bytes.end - bytes.start;
        let read = reader.read_all(bytes.start, len, requests).await?;
        let compared = blocking(move || {
            let step = usize::try_from(BLOCK_BYTES.get()).unwrap_or(usize::MAX);
            for (block, bytes) in blocks.zip(read.chunks(step)) {
                let is_same = match self.content.block(block) {
                    Some(Held::Zeros) => is_zero(bytes),
                    Some(Held::Data(expected)) => block_digest(&Digest::of(bytes)) == expected,
                    None => false,
                };
                self.note(block..block + 1, is_same);
            }
            Ok(())
        });
        Ok(compared.await?)
    }
}

/// Reports bytes, while the shell counts ranges.
struct InBytes<'m> {
    monitor: &'m mut dyn Monitor,
    compared: Arc<AtomicU64>,
}

impl Monitor for InBytes<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Progress(progress) => self.monitor.event(&Event::Progress(Progress {
                done_bytes: self.compared.load(Ordering::Relaxed),
                // In ranges, too.
                in_flight_bytes: 0,
                ..*progress
            })),
            other => self.monitor.event(other),
        }
    }
}

struct Comparison {
    comparing: Arc<Comparing>,
    /// For the engine, each is a chunk.
    ranges: std::iter::Zip<RangeFrom<u64>, std::vec::IntoIter<Range<u64>>>,
    /// Bytes of the settled ranges.
    compared: Arc<AtomicU64>,
}

impl Job for Comparison {
    type Payload = Range<u64>;
    type Done = Range<u64>;

    async fn feed(&mut self) -> Feed<Range<u64>> {
        let (index, range) = self.ranges.next()?;
        Some(Ok(Found::Chunk(NewChunk::plain(index, range))))
    }

    fn attempt(
        &mut self,
        _: Span,
        range: Range<u64>,
        limits: Limits,
        _: &Spare,
    ) -> impl Future<Output = Outcome<Range<u64>, Range<u64>>> + Send + 'static {
        let comparing = Arc::clone(&self.comparing);
        async move {
            let mut requests = Requests::default();
            let step_max = limits.read_bytes_max();
            let compared = comparing.compare(range.clone(), step_max, &mut requests);
            let compared = compared.await;
            let requests = requests.without_progress();
            match compared {
                Ok(()) => Outcome::Done(range, requests),
                Err(error) => error.outcome(range, requests),
            }
        }
    }

    fn settled(&mut self, _: Span, range: Range<u64>) -> Result<()> {
        let bytes = self.comparing.content.block_plan().bytes_of(&range);
        let bytes = bytes.end - bytes.start;
        self.compared.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn skipped(&mut self, _: Range<u64>) -> Result<()> {
        Ok(())
    }
}
