//! Reads back: compares the drive with what the image held.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::ops::{Range, RangeFrom};
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use rangemap::RangeSet;

use super::sample_places as places;
use super::sample_places::{HOLE_SAMPLES_MAX, place_in, spread};
use crate::advice::Remedy;
use crate::api::Client;
use crate::chunk::{DataChunk, Found, RequestSize, is_zero};
use crate::content::count;
use crate::digest::{self, ChunkDigest, Digest};
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::checksum::Hasher;
use crate::driver::patience::Patience;
use crate::driver::phases::AsPhase;
use crate::driver::pieces::at_most;
use crate::driver::read_range::DriveReader;
use crate::driver::shell::{AttemptError, Feed, Job, NewChunk, Outcome, Shell};
use crate::driver::spare_requests::Spare;
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::Disk;
use crate::locks::lock;
use crate::monitor::{Monitor, Phase};
use crate::plan::{Plan, Span};
use crate::policy::{Engine, EngineConfig, Limits, Operation, Requests, Zeros};
use crate::wire::READ_BYTES_MAX;
use openhosting_base::advice;

/// Bytes to read at each place of a sample.
const SAMPLE_BYTES: usize = places::SAMPLE_BYTES as usize;
/// Maximum range of one digest by the endpoint: about a second of work there, during which nothing
/// moves.
const DIGEST_BYTES_MAX: u64 = 256 << 20;

/// How much to read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Nothing.
    None,
    /// 16 KiB of the first chunk, of the last one, and of one in a hundred in between; including
    /// holes.
    #[default]
    Sample,
    /// Everything. What is on this machine is read again for this, including holes.
    Full,
}

impl FromStr for Verify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "sample" => Ok(Self::Sample),
            "full" => Ok(Self::Full),
            _ => {
                let what = format!("{text:?} is not none, sample or full");
                Err(Error::new(ErrorKind::Usage, what))
            }
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Sample => "sample",
            Self::Full => "full",
        })
    }
}

/// A check of a part of the drive.
#[derive(Clone, Debug)]
pub(crate) enum Check {
    /// It must hold these bytes at this offset.
    Bytes { offset: u64, bytes: Bytes },
    /// It must have this digest.
    Digest { span: Span, digest: ChunkDigest },
    /// It must be zeros.
    Zeros(Range<u64>),
    /// It must be equal to what this machine holds at these bytes at the time of the check.
    Again(Range<u64>),
}

/// What a drive is compared with.
pub(crate) enum Local {
    /// What was remembered of it while it was transferred, because it cannot be read again.
    Seen(Expected),
    /// It is read again, so that errors of the first read are found as well.
    Again(Again),
}

/// A disk on this machine (an image, or the file of a download) that is read again.
pub(crate) struct Again {
    /// The same bytes at the same offsets as on the drive.
    pub(crate) disk: Arc<dyn Disk>,
    /// Whether it is an error if it changes meanwhile. Other shards may write to the file of a
    /// download.
    pub(crate) is_image: bool,
    pub(crate) plan: Plan,
    /// The byte of the drive, and of the disk, at which the plan begins.
    pub(crate) base: u64,
    /// The chunks to compare.
    pub(crate) chunks: RangeSet<u64>,
    /// Those of them that were left out as holes; the others hold data.
    pub(crate) holes: RangeSet<u64>,
}

impl Again {
    /// The chunks with data, and those that were left out as holes.
    fn divided(&self) -> (RangeSet<u64>, RangeSet<u64>) {
        let (mut data, mut holes) = (self.chunks.clone(), RangeSet::new());
        for hole in self.holes.iter() {
            for chunks in self.chunks.overlapping(hole) {
                holes.insert(chunks.start.max(hole.start)..chunks.end.min(hole.end));
            }
            data.remove(hole.clone());
        }
        (data, holes)
    }

    /// A sample of the chunks with data, and one of the holes, because a sparse image would have
    /// little else. Chunks that were already checked may be left out, and as many others as were
    /// checked in addition.
    fn sample(&self, passed: &Passed, rng: &mut fastrand::Rng) -> Divided {
        let (data, holes) = self.divided();
        let kinds = [
            (data, u64::MAX, &passed.data),
            (holes, HOLE_SAMPLES_MAX, &passed.holes),
        ];
        let mut sample = Divided::default();
        for (chunks, most, passed) in kinds {
            let mut places = spread(&self.plan, &chunks, most, rng);
            both_ends_first(&mut places, rng);
            // Both ends are read back, whatever else was already checked.
            let ends: Vec<u64> = places.iter().take(2).map(|place| place.start).collect();
            let is_passed = |place: &Range<u64>| passed.contains(&self.plan.index_of(place.start));
            let (mut checked, mut left): (Vec<_>, Vec<_>) = places.into_iter().partition(is_passed);
            let is_end = |place: &&Range<u64>| ends.contains(&place.start);
            let least = left.iter().filter(is_end).count();
            let passed = usize::try_from(count(passed.iter())).unwrap_or(usize::MAX);
            let besides = passed.saturating_sub(checked.len());
            checked.extend(left.split_off(left.len().saturating_sub(besides).max(least)));
            let again =
                |place: Range<u64>| Check::Again(self.base + place.start..self.base + place.end);
            sample.spare.extend(checked.into_iter().map(again));
            sample.checks.extend(left.into_iter().map(again));
        }
        sample
    }

    /// Everything, in pieces of one request each, and for data at most a chunk, because a mismatch
    /// reports the piece.
    fn all(&self) -> ToCheck {
        let (data, holes) = self.divided();
        let chunk = self.plan.chunk_bytes().min(READ_BYTES_MAX);
        let data = data.iter().map(|chunks| (chunks, chunk));
        let holes = holes.iter().map(|chunks| (chunks, READ_BYTES_MAX));
        let runs = data.chain(holes).map(|(chunks, step)| {
            let bytes = self.plan.bytes_of(chunks);
            (self.base + bytes.start..self.base + bytes.end, step)
        });
        let runs: Vec<_> = runs.collect();
        let len = |bytes: &Range<u64>| bytes.end - bytes.start;
        let all = Verified {
            ranges: runs
                .iter()
                .map(|(run, step)| len(run).div_ceil(*step))
                .sum(),
            bytes: runs.iter().map(|(run, _)| len(run)).sum(),
        };
        let each = runs.into_iter().flat_map(|(run, step)| pieces(run, step));
        ToCheck {
            new: all,
            all,
            each: Box::new(each.map(Check::Again)),
        }
    }
}

/// What a full verification expects of the drive.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    chunks: Vec<(Span, ChunkDigest)>,
    /// In bytes; memory depends on the number of holes, not on their size.
    zeros: RangeSet<u64>,
}

impl Expected {
    /// Adds a chunk that must have this digest.
    pub(crate) fn chunk(&mut self, span: Span, digest: ChunkDigest) {
        self.chunks.push((span, digest));
    }

    /// Adds bytes that must be zeros.
    pub(crate) fn zeros(&mut self, bytes: Range<u64>) {
        if !bytes.is_empty() {
            self.zeros.insert(bytes);
        }
    }

    /// The checks to make. Holes that the endpoint reported are checked as well.
    fn into_checks(self) -> Vec<Check> {
        let zeros = self.zeros.into_iter();
        let zeros = zeros
            .flat_map(|range| pieces(range, DIGEST_BYTES_MAX))
            .map(Check::Zeros);
        let chunks = self.chunks.into_iter();
        let chunks = chunks.map(|(span, digest)| Check::Digest { span, digest });
        chunks.chain(zeros).collect()
    }
}

/// The checks of a sample.
#[derive(Debug, Default)]
struct Divided {
    /// Required checks.
    checks: Vec<Check>,
    /// Checks that may be left out, because as many were made while the transfer ran. The first
    /// ones are the most informative.
    spare: Vec<Check>,
}

impl Divided {
    /// At least `least` checks, if there are as many.
    fn fill(self, least: usize) -> ToCheck {
        let Self { mut checks, spare } = self;
        let new = checks.len();
        checks.extend(spare.into_iter().take(least.saturating_sub(new)));
        ToCheck::of(checks, new)
    }
}

/// The checks to make. In a full verification of a large disk there are too many for a list.
struct ToCheck {
    each: Box<dyn Iterator<Item = Check> + Send>,
    all: Verified,
    /// The required ones, which are the first.
    new: Verified,
}

impl ToCheck {
    /// A list of checks, of which the first `new` are required.
    fn of(checks: Vec<Check>, new: usize) -> Self {
        let first = |count: usize| Verified {
            ranges: checks.len().min(count) as u64,
            bytes: checks.iter().take(count).map(Check::len).sum(),
        };
        Self {
            all: first(checks.len()),
            new: first(new),
            each: Box::new(checks.into_iter()),
        }
    }
}

/// Puts the last one first, which an endpoint is most likely to lose, then the first one, and then
/// the others in random order.
fn both_ends_first<T>(places: &mut [T], rng: &mut fastrand::Rng) {
    places.reverse();
    if let Some((_, others)) = places.split_first_mut() {
        if let Some(last) = others.len().checked_sub(1) {
            others.swap(0, last);
        }
        if let Some((_, others)) = others.split_first_mut() {
            rng.shuffle(others);
        }
    }
}

/// Divides a range into pieces of at most `bytes_max` bytes.
fn pieces(range: Range<u64>, bytes_max: u64) -> impl Iterator<Item = Range<u64>> {
    let mut rest = range;
    std::iter::from_fn(move || {
        let piece = rest.start..rest.end.min(rest.start.saturating_add(bytes_max));
        rest.start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Which digests of the chunks are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digests {
    /// None.
    Unwanted,
    /// The digests that are the cheapest to compute.
    Quick,
    /// Digests that an endpoint can compute as well.
    Whole,
}

/// Takes samples of chunks that cannot be read again, while they are transferred.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    verify: Verify,
    /// Whether the source will be read again.
    is_again: bool,
    /// `None` while unknown.
    chunks: Option<u64>,
    /// The last chunk, once it is known for an image of unknown size.
    last: Arc<OnceLock<u64>>,
    seed: u64,
    digests: Digests,
    samples: Arc<Mutex<Vec<Check>>>,
}

impl Sampler {
    /// Samples of an image with this plan, which will be read again if `is_again`. `digests` says
    /// what others need.
    pub(crate) fn new(
        verify: Verify,
        plan: &Plan,
        seed: u64,
        digests: Digests,
        is_again: bool,
    ) -> Self {
        Self {
            verify,
            is_again,
            chunks: (!plan.is_endless()).then(|| plan.count()),
            last: Arc::default(),
            seed,
            digests: match verify {
                Verify::Full if !is_again => Digests::Whole,
                _ => digests,
            },
            samples: Arc::default(),
        }
    }

    pub(crate) fn wants_digests(&self) -> bool {
        self.digests != Digests::Unwanted
    }

    /// The digest of a chunk, if it is needed.
    pub(crate) fn digest(&self, chunk: &DataChunk) -> Option<ChunkDigest> {
        match self.digests {
            Digests::Unwanted => None,
            Digests::Quick => Some(chunk.digest()),
            Digests::Whole => Some(Digest::of(chunk.bytes()).into()),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.verify == Verify::Full
    }

    /// Whether the caller has to collect what a full verification expects.
    pub(crate) fn collects(&self) -> bool {
        self.is_full() && !self.is_again
    }

    /// Whether samples are taken because the source cannot be read again.
    fn takes_samples(&self) -> bool {
        self.verify == Verify::Sample && !self.is_again
    }

    pub(crate) fn is_off(&self) -> bool {
        self.verify == Verify::None
    }

    /// Whether the source is read again on this machine.
    pub(crate) fn is_again(&self) -> bool {
        self.is_again
    }

    /// The checks of a chunk that was settled; its offset is that of the drive.
    pub(crate) fn due(&self, span: Span) -> Vec<Check> {
        if self.is_off() || !self.picks(span.index) {
            return Vec::new();
        }
        if self.is_again {
            let mut rng = fastrand::Rng::with_seed(self.seed ^ span.index);
            return vec![Check::Again(place_in(span.offset..span.end(), &mut rng))];
        }
        let samples = self.samples.lock();
        let mut samples = samples.unwrap_or_else(PoisonError::into_inner);
        let chunk = span.offset..span.end();
        let due = samples.extract_if(.., |check| chunk.contains(&check.offset()));
        due.collect()
    }

    /// A due check that was not made. If the source is read again, new places are selected at the
    /// end.
    pub(crate) fn leave(&self, check: Check) {
        if !self.is_again {
            self.push(check);
        }
    }

    /// Takes a sample of a chunk that is transferred, or of the data in it.
    pub(crate) fn look_at(&self, span: Span, bytes: &[u8]) {
        if !self.takes_samples() || !self.picks(span.index) {
            return;
        }
        let mut rng = fastrand::Rng::with_seed(self.seed ^ span.index);
        let at = rng.usize(..=bytes.len().saturating_sub(SAMPLE_BYTES));
        let end = bytes.len().min(at + SAMPLE_BYTES);
        self.add(span.offset + at as u64, &bytes[at..end]);
    }

    /// Takes samples of chunks that earlier runs settled, which are not transferred again: reads
    /// them from the image. Blocks.
    ///
    /// # Errors
    /// Errors of reading.
    pub(crate) fn look_back(
        &self,
        image: &dyn Disk,
        plan: &Plan,
        settled: &RangeSet<u64>,
    ) -> Result<()> {
        if !self.takes_samples() {
            return Ok(());
        }
        let settled = settled.iter().flat_map(Clone::clone);
        for span in settled
            .filter(|i| self.picks(*i))
            .filter_map(|i| plan.span(i))
        {
            let mut bytes = [0; SAMPLE_BYTES];
            let len = span.len.min(SAMPLE_BYTES as u64);
            let bytes = &mut bytes[..usize::try_from(len).unwrap_or(0)];
            let mut rng = fastrand::Rng::with_seed(self.seed ^ span.index);
            let offset = span.offset + rng.u64(..=span.len - len);
            image.read_at(bytes, offset)?;
            self.add(offset, bytes);
        }
        Ok(())
    }

    /// Adds places, in bytes of the drive, that were left out because the endpoint reported them as
    /// holes.
    pub(crate) fn look_into(&self, holes: Vec<Range<u64>>) {
        for place in holes {
            if self.is_again {
                self.push(Check::Again(place));
            } else {
                let zeros = vec![0; usize::try_from(place.end - place.start).unwrap_or(0)];
                self.add(place.start, &zeros);
            }
        }
    }

    fn add(&self, offset: u64, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.push(Check::Bytes { offset, bytes });
    }

    fn push(&self, check: Check) {
        if let Ok(mut samples) = self.samples.lock() {
            samples.push(check);
        }
    }

    /// Whether a chunk belongs to the sample.
    pub(crate) fn picks(&self, index: u64) -> bool {
        // For an image of unknown size, the sample is as dense as if the image ended here. The
        // total is larger than necessary, but only by a constant factor.
        let chunks = self.chunks.unwrap_or_else(|| index.saturating_add(1));
        let wanted = places::wanted(chunks);
        let last = self
            .chunks
            .map_or_else(|| self.last.get().copied(), |n| n.checked_sub(1));
        index == 0
            || last == Some(index)
            || fastrand::Rng::with_seed(self.seed ^ !index).u64(..chunks) < wanted
    }

    /// The end of an image of unknown size was found. Call this before the last chunk is passed.
    pub(crate) fn ends_at(&self, plan: &Plan) {
        if let Some(last) = plan.count().checked_sub(1) {
            let _ = self.last.set(last);
        }
    }

    fn take(&self) -> Vec<Check> {
        let taken = self
            .samples
            .lock()
            .map(|mut samples| std::mem::take(&mut *samples));
        taken.unwrap_or_default()
    }
}

/// What was read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of ranges.
    pub ranges: u64,
    /// Total bytes.
    pub bytes: u64,
}

/// Maximum checks of a full verification to make concurrently at the start, over open connections:
/// more could need more memory than the transfer. The checks of a sample have a few KiB each, and
/// as many are made concurrently as there are connections.
const FULL_AT_ONCE_MAX: u32 = 16;
/// At least this many checks are made at the end, if there are as many connections: together they
/// take one round trip, like a single one.
const LAST_LOOK: usize = 16;

/// The drive to read back, and how.
pub(crate) struct ReadFrom<'a> {
    pub(crate) client: &'a Client,
    pub(crate) drive: DriveId,
    /// Connections that the transfer left open.
    pub(crate) open: u32,
    /// Maximum number of requests in flight.
    pub(crate) jobs: u32,
    pub(crate) patience: &'a Patience,
    /// What was checked while the transfer ran.
    pub(crate) passed: Passed,
}

/// The checks that have passed.
#[derive(Default)]
pub(crate) struct Passed {
    /// The chunks with data that were checked.
    pub(crate) data: RangeSet<u64>,
    /// The holes that were checked.
    pub(crate) holes: RangeSet<u64>,
    /// Number of checks.
    pub(crate) count: u64,
    /// Total bytes.
    pub(crate) bytes: u64,
    /// Passed checks of bytes that cannot be read again on this machine.
    pub(crate) seen: Vec<Check>,
}

impl ReadFrom<'_> {
    /// An engine for `checks` checks; for the engine, each is a chunk.
    fn engine(&self, checks: u64, sampler: &Sampler) -> Engine<Check> {
        Engine::new(EngineConfig {
            plan: Plan::new(checks, NonZeroU64::MIN),
            first: 0,
            settled: RangeSet::new(),
            jobs_min: match sampler.is_full() {
                true => self.open.clamp(1, FULL_AT_ONCE_MAX),
                false => self.open.max(1),
            },
            jobs: self.jobs,
            zeros: Zeros::Write,
            operation: Operation::Read,
            is_fresh: false,
            max_outage: self.patience.max_outage(),
            round_trip: self.client.round_trip(),
            pieces: at_most(RequestSize::ANY),
            seed: sampler.seed,
        })
    }
}

/// Reads back a sample of the drive, or all of it, and compares it with what this machine holds. In
/// a sample, what was already checked is left out, but some checks of the current state remain: at
/// the end of the drive, at its start, and at as many other places as one round trip can check.
pub(crate) async fn verify(
    mut from: ReadFrom<'_>,
    sampler: &Sampler,
    local: Local,
    monitor: &mut dyn Monitor,
    stop: Stop,
) -> Result<Verified> {
    let passed = std::mem::take(&mut from.passed);
    let ReadFrom {
        client,
        drive,
        open,
        patience,
        ..
    } = from;
    let mut rng = fastrand::Rng::with_seed(sampler.seed);
    let mut image = None;
    let least = usize::try_from(open).map_or(LAST_LOOK, |open| open.clamp(1, LAST_LOOK));
    let mut verified = Verified::default();
    if !sampler.is_full() {
        verified.ranges = passed.count;
        verified.bytes = passed.bytes;
    }
    let (disk, checks) = match (local, sampler.verify) {
        (_, Verify::None) => return Ok(Verified::default()),
        (Local::Seen(expected), Verify::Full) => {
            (None, ToCheck::of(expected.into_checks(), usize::MAX))
        }
        (Local::Seen(_), Verify::Sample) => {
            let mut spare = passed.seen;
            spare.sort_unstable_by_key(Check::offset);
            both_ends_first(&mut spare, &mut rng);
            let checks = sampler.take();
            (None, Divided { checks, spare }.fill(least))
        }
        (Local::Again(again), verify) => {
            let checks = match verify {
                Verify::Full => again.all(),
                _ => {
                    let mut sample = again.sample(&passed, &mut rng);
                    sample.checks.extend(sampler.take());
                    sample.fill(least)
                }
            };
            image = again.is_image.then(|| Arc::clone(&again.disk));
            (Some(again.disk), checks)
        }
    };
    let ToCheck { each, all, new } = checks;
    verified.ranges += new.ranges;
    verified.bytes += new.bytes;
    let mut monitor = AsPhase {
        monitor,
        phase: Phase::Check,
        scale: Some((all.bytes, all.ranges)),
    };
    monitor.begin(Some(all.bytes));
    let engine = from.engine(all.ranges, sampler);
    let against = Arc::new(Against::new(client.clone(), drive, disk, sampler.is_full()));
    let job = ReadBack {
        against,
        checks: (0..).zip(each),
    };
    let mut shell = Shell::new(client.clone(), drive, engine, job, patience);
    let ending = shell.run(&mut monitor, stop).await;
    let outcome = shell.outcome(ending, "read back");
    if let Some(image) = image {
        // If the image is what changed, report that instead of blaming the drive.
        blocking(move || image.check_unchanged()).await?;
    }
    outcome.map(|()| verified)
}

/// What the drive is checked against.
pub(crate) struct Against {
    client: Client,
    drive: DriveId,
    /// What [`Check::Again`] reads.
    disk: Option<Arc<dyn Disk>>,
    /// Whether digests of the endpoint are used instead of bytes, because there is much to compare.
    is_full: bool,
    zeros: Mutex<ZeroDigests>,
}

impl Against {
    /// `disk` is what can be read again; `is_full` says whether there is so much to compare that
    /// digests of the endpoint are used instead of bytes.
    pub(crate) fn new(
        client: Client,
        drive: DriveId,
        disk: Option<Arc<dyn Disk>>,
        is_full: bool,
    ) -> Self {
        Self {
            client,
            drive,
            disk,
            is_full,
            zeros: Mutex::default(),
        }
    }

    /// Whether the drive holds the same as the disk.
    async fn is_same(
        self: &Arc<Self>,
        bytes: Range<u64>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<bool, AttemptError> {
        let disk = self
            .disk
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Bug, "Nothing can be read again"))?;
        let (offset, len) = (bytes.start, bytes.end - bytes.start);
        let read = blocking(move || {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            disk.read_at(&mut bytes, offset)?;
            Ok(bytes)
        });
        if self.is_full {
            let asked = self.client.digest(self.drive, offset, len);
            let (read, asked) = tokio::join!(read, asked);
            let read = read?;
            let Some(digest) = asked? else {
                return Ok(self.reads_as(offset, read, step_max, requests).await?);
            };
            let this = Arc::clone(self);
            return Ok(blocking(move || Ok(this.digest(&read) == digest)).await?);
        }
        let read = read.await?;
        Ok(self.reads_as(offset, read, step_max, requests).await?)
    }

    fn reader(&self, step_max: u64) -> DriveReader<'_> {
        DriveReader {
            client: &self.client,
            drive: self.drive,
            step_max,
        }
    }

    async fn reads_as(
        &self,
        offset: u64,
        bytes: Vec<u8>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<bool, Failure> {
        let len = bytes.len() as u64;
        let read = self.reader(step_max).read_all(offset, len, requests).await;
        read.map(|read| read == bytes)
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        match is_zero(bytes) {
            true => self.zero_digest(bytes.len() as u64),
            false => Digest::of(bytes),
        }
    }

    /// The digest of `len` zeros, which is computed once. Blocks.
    fn zero_digest(&self, len: u64) -> Digest {
        let mut zeros = lock(&self.zeros);
        zeros.of(len)
    }

    /// Whether the drive has only zeros there.
    async fn is_zeros(
        self: &Arc<Self>,
        bytes: Range<u64>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<bool, AttemptError> {
        let len = bytes.end - bytes.start;
        let digest = self.client.digest(self.drive, bytes.start, len).await?;
        let Some(digest) = digest else {
            return Ok(reads_as_zeros(self.reader(step_max), bytes, requests).await?);
        };
        let this = Arc::clone(self);
        Ok(blocking(move || Ok(this.zero_digest(len) == digest)).await?)
    }
}

impl Check {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes { bytes, .. } => bytes.len() as u64,
            Self::Digest { span, .. } => span.len,
            Self::Zeros(bytes) | Self::Again(bytes) => bytes.end - bytes.start,
        }
    }

    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Bytes { offset, .. } => *offset,
            Self::Digest { span, .. } => span.offset,
            Self::Zeros(bytes) | Self::Again(bytes) => bytes.start,
        }
    }

    /// Makes one attempt. A mismatch is a local error.
    pub(crate) async fn run(
        &self,
        against: &Arc<Against>,
        step_max: u64,
        requests: &mut Requests,
    ) -> Result<(), AttemptError> {
        let (reader, drive) = (against.reader(step_max), against.drive);
        let is_same = match self {
            Self::Bytes { offset, bytes } => {
                let len = bytes.len() as u64;
                reader.read_all(*offset, len, requests).await? == *bytes
            }
            Self::Digest { span, digest } => holds(reader, *span, digest, requests).await?,
            Self::Zeros(bytes) => against.is_zeros(bytes.clone(), step_max, requests).await?,
            Self::Again(bytes) => against.is_same(bytes.clone(), step_max, requests).await?,
        };
        match is_same {
            true => Ok(()),
            false => Err(self.mismatch(drive).into()),
        }
    }

    fn mismatch(&self, drive: DriveId) -> Error {
        let what = format!(
            "Drive {drive} does not hold what was transferred: the {} bytes at {} differ",
            self.len(),
            self.offset()
        );
        Error::new(ErrorKind::Integrity, what).hint_to(advice![
            "Nothing else may write to the drive meanwhile. Compare all of it and send what differs with ",
            Remedy::CompareWithDrive(Some(drive.into())),
        ])
    }
}

/// Whether a chunk of the drive has this digest.
pub(crate) async fn holds(
    reader: DriveReader<'_>,
    span: Span,
    expected: &ChunkDigest,
    requests: &mut Requests,
) -> Result<bool, Failure> {
    let expected = match expected {
        ChunkDigest::Whole(expected) => {
            return Ok(digest_of(reader, span, requests).await? == *expected);
        }
        expected => *expected,
    };
    let mut chunk = Vec::with_capacity(usize::try_from(span.len).unwrap_or(0));
    for piece in pieces(span.offset..span.end(), READ_BYTES_MAX) {
        let len = piece.end - piece.start;
        chunk.extend(reader.read_all(piece.start, len, requests).await?);
    }
    blocking(move || Ok(expected.is_of(&chunk)))
        .await
        .map_err(|cause| Failure::Broken(cause.to_string()))
}

/// The digest of a range of the drive: computed by the endpoint, if that is our own server, or
/// otherwise from what is read in steps that the API allows.
async fn digest_of(
    reader: DriveReader<'_>,
    span: Span,
    requests: &mut Requests,
) -> Result<Digest, Failure> {
    if span.len <= DIGEST_BYTES_MAX
        && let Some(digest) = reader
            .client
            .digest(reader.drive, span.offset, span.len)
            .await?
    {
        return Ok(digest);
    }
    let mut hasher = digest::Hasher::default();
    for piece in pieces(span.offset..span.end(), READ_BYTES_MAX) {
        let len = piece.end - piece.start;
        let bytes = reader.read_all(piece.start, len, requests).await?;
        // Only milliseconds of work, but too much for the async runtime.
        let hashed = blocking(move || {
            hasher.update(&bytes);
            Ok(hasher)
        });
        hasher = hashed
            .await
            .map_err(|cause| Failure::Broken(cause.to_string()))?;
    }
    Ok(hasher.finish())
}

/// Whether the drive has only zeros there, read in steps that the API allows.
async fn reads_as_zeros(
    reader: DriveReader<'_>,
    bytes: Range<u64>,
    requests: &mut Requests,
) -> Result<bool, Failure> {
    for piece in pieces(bytes, READ_BYTES_MAX) {
        let len = piece.end - piece.start;
        if !is_zero(&reader.read_all(piece.start, len, requests).await?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Digests of zeros, by length.
#[derive(Debug, Default)]
pub(crate) struct ZeroDigests(HashMap<u64, Digest>);

impl ZeroDigests {
    pub(crate) fn of(&mut self, len: u64) -> Digest {
        *self.0.entry(len).or_insert_with(|| {
            let mut hasher = Hasher::new();
            hasher.zeros(len);
            hasher.finish()
        })
    }
}

struct ReadBack {
    against: Arc<Against>,
    /// For the engine, each is a chunk.
    checks: std::iter::Zip<RangeFrom<u64>, Box<dyn Iterator<Item = Check> + Send>>,
}

impl Job for ReadBack {
    type Payload = Check;
    type Done = ();

    async fn feed(&mut self) -> Feed<Check> {
        let (index, check) = self.checks.next()?;
        Some(Ok(Found::Chunk(NewChunk::plain(index, check))))
    }

    fn attempt(
        &mut self,
        _: Span,
        check: Check,
        limits: Limits,
        _: &Spare,
    ) -> impl Future<Output = Outcome<Check, ()>> + Send + 'static {
        let against = Arc::clone(&self.against);
        async move {
            let mut requests = Requests::default();
            let step_max = limits.read_bytes_max();
            let checked = check.run(&against, step_max, &mut requests).await;
            let requests = requests.without_progress();
            match checked {
                Ok(()) => Outcome::Done((), requests),
                Err(error) => error.outcome(check, requests),
            }
        }
    }

    fn settled(&mut self, _: Span, (): ()) -> Result<()> {
        Ok(())
    }

    fn skipped(&mut self, _: Range<u64>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_bounded_and_hold_both_ends() {
        for chunks in [1, 2, 16, 100, 10_000, 1_000_000] {
            let plan = Plan::new(chunks, NonZeroU64::MIN);
            let sampler = Sampler::new(Verify::Sample, &plan, 7, Digests::Unwanted, false);
            let picked: Vec<u64> = (0..chunks).filter(|i| sampler.picks(*i)).collect();
            assert_eq!(picked.first(), Some(&0));
            assert_eq!(picked.last(), Some(&(chunks - 1)));
            assert!(picked.len() <= 400, "{} of {chunks}", picked.len());
            assert!(
                picked.len() as u64 >= chunks.min(8),
                "{} of {chunks}",
                picked.len()
            );
        }
    }

    /// A disk of which nothing is read.
    #[derive(Debug)]
    struct Unread;

    impl Disk for Unread {
        fn size(&self) -> u64 {
            unreachable!()
        }

        fn data_after(&self, _: u64) -> Result<Option<Range<u64>>> {
            unreachable!()
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            unreachable!()
        }

        fn check_unchanged(&self) -> Result<()> {
            unreachable!()
        }
    }

    #[test]
    fn an_end_that_was_not_read_during_the_transfer_is_read_after_it() {
        const CHUNKS: u64 = 40;
        let chunks = |range: Range<u64>| {
            let mut chunks = RangeSet::new();
            chunks.insert(range);
            chunks
        };
        let again = Again {
            disk: Arc::new(Unread),
            is_image: true,
            plan: Plan::new(CHUNKS, NonZeroU64::MIN),
            base: 0,
            chunks: chunks(0..CHUNKS),
            holes: RangeSet::new(),
        };
        // More was checked than a sample has, but neither the first chunk nor the last.
        let passed = Passed {
            data: chunks(1..CHUNKS - 1),
            ..Passed::default()
        };
        for seed in 0..20 {
            let sample = again.sample(&passed, &mut fastrand::Rng::with_seed(seed));
            for end in [0, CHUNKS - 1] {
                let is_end =
                    |check: &Check| matches!(check, Check::Again(range) if range.start == end);
                assert!(sample.checks.iter().any(is_end), "{end}");
            }
        }
    }

    #[test]
    fn a_full_verification_counts_its_checks_without_a_list() {
        let plan = Plan::new(10 * READ_BYTES_MAX + 5, NonZeroU64::new(3 << 20).unwrap());
        let again = Again {
            disk: Arc::new(Unread),
            is_image: true,
            plan,
            base: 7,
            chunks: RangeSet::from_iter([0..2, 4..plan.count()]),
            holes: RangeSet::from_iter(std::iter::once(1..6)),
        };
        let ToCheck { each, all, new } = again.all();
        let checks: Vec<Check> = each.collect();
        let bytes: u64 = checks.iter().map(Check::len).sum();
        assert_eq!((all.ranges, all.bytes), (checks.len() as u64, bytes));
        assert_eq!(bytes, plan.size() - 2 * (3 << 20));
        assert_eq!(all, new);
        let first = checks.iter().map(Check::offset).min();
        assert_eq!(first, Some(7));
    }

    #[test]
    fn an_image_of_unknown_size_is_sampled_throughout() {
        let plan = Plan::endless(NonZeroU64::MIN);
        let sampler = Sampler::new(Verify::Sample, &plan, 7, Digests::Unwanted, false);
        let picked: Vec<u64> = (0..1_000_000).filter(|i| sampler.picks(*i)).collect();
        assert!(picked.starts_with(&[0, 1, 2]));
        assert!(picked.len() < 2000, "{}", picked.len());
        for tenth in 0..10 {
            let part = tenth * 100_000..(tenth + 1) * 100_000;
            assert!(picked.iter().any(|i| part.contains(i)), "{part:?}");
        }
        let last = (1_000_000..).find(|i| !sampler.picks(*i)).unwrap();
        sampler.ends_at(&plan.ending_at(last + 1));
        assert!(sampler.picks(last));
    }

    #[test]
    fn all_zeros_are_checked_in_pieces() {
        const MAX: u64 = DIGEST_BYTES_MAX;
        assert_eq!(pieces(5..5, DIGEST_BYTES_MAX).count(), 0);
        for range in [5..6, 5..5 + MAX, 5..6 + MAX, 7..7 + 3 * MAX] {
            let pieces: Vec<_> = pieces(range.clone(), DIGEST_BYTES_MAX).collect();
            assert_eq!(pieces.first().map(|piece| piece.start), Some(range.start));
            assert_eq!(pieces.last().map(|piece| piece.end), Some(range.end));
            assert!(
                pieces
                    .iter()
                    .all(|p| p.start < p.end && p.end - p.start <= MAX)
            );
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
        let mut expected = Expected::default();
        for bytes in [10..20, 30..40, 20..30] {
            expected.zeros(bytes);
        }
        let checks = expected.into_checks();
        assert!(matches!(&checks[..], [Check::Zeros(bytes)] if *bytes == (10..40)));
    }

    #[test]
    fn digests_of_zeros() {
        let mut zeros = ZeroDigests::default();
        for len in [0, 1, 65_536, 100_000] {
            assert_eq!(
                zeros.of(len),
                Digest::of(&vec![0; usize::try_from(len).unwrap()])
            );
        }
    }
}
