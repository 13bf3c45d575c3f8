//! The chunks of an upload, from the pipeline to the drive.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rangemap::RangeSet;
use tokio::sync::{Mutex, OnceCell};

use super::growing_drive::Room;
use super::pipeline::{Pipeline, Prepared};
use crate::api::Client;
use crate::chunk::{EncodedChunk, Encoding, Part, RequestSize};
use crate::codec::{Cutter, gzip_zeros};
use crate::digest::ChunkDigest;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::pieces::{Made, Whole, in_pieces};
use crate::driver::read_range::DriveReader;
use crate::driver::session::done;
use crate::driver::shell::{Attempt, Feed, Job, lost};
use crate::driver::spare_requests::Spare;
use crate::error::Result;
use crate::journal::{Keeper, Record};
use crate::plan::{Plan, Span};
use crate::policy::{Body, Limits, Requests, Wire};
use crate::verify::early_checks::EarlyChecks;
use crate::verify::read_back::{Expected, ZeroDigests, holds};

/// The chunks of an upload: where they come from and how one is sent.
pub(super) struct Upload {
    pub(super) client: Client,
    pub(super) drive: DriveId,
    pub(super) plan: Plan,
    pub(super) pipeline: Pipeline,
    /// Bodies of chunks that are not confirmed, stored for another attempt.
    pub(super) bodies: HashMap<u64, EncodedChunk>,
    /// For chunks that were attempted: the offset on the drive up to which the chunk is confirmed.
    /// Another attempt begins there.
    pub(super) confirmed: HashMap<u64, Arc<AtomicU64>>,
    /// Bodies of zero chunks, by length: there are at most two.
    pub(super) zeros: HashMap<u64, Arc<OnceCell<Bytes>>>,
    /// Whether a chunk is read from the drive before it is written.
    pub(super) compare: bool,
    pub(super) keeper: Option<Keeper>,
    pub(super) early_checks: Option<EarlyChecks>,
    /// The chunks to verify at the end, if all have to be and they cannot be read again.
    pub(super) to_verify: Option<Expected>,
    /// Chunks that were left out as holes.
    pub(super) holes: RangeSet<u64>,
    pub(super) zero_digests: ZeroDigests,
    /// The first chunk of the transfer.
    pub(super) first: u64,
    /// The room on the drive, for an image of unknown size.
    pub(super) room: Option<Room>,
    /// The next piece, which waits for room on the drive.
    pub(super) waiting: Option<Feed>,
}

impl Upload {
    /// An upload of everything that the pipeline returns, without a journal and without checks.
    pub(super) fn new(client: Client, drive: DriveId, plan: Plan, pipeline: Pipeline) -> Self {
        Self {
            client,
            drive,
            plan,
            pipeline,
            bodies: HashMap::new(),
            confirmed: HashMap::new(),
            zeros: HashMap::new(),
            compare: false,
            keeper: None,
            early_checks: None,
            to_verify: None,
            holes: RangeSet::new(),
            zero_digests: ZeroDigests::default(),
            first: 0,
            room: None,
            waiting: None,
        }
    }

    /// The next piece. Cancel-safe: dropping the future loses nothing.
    async fn next(&mut self) -> Feed {
        match self.pipeline.next().await {
            Some(Ok(Prepared::Chunk(chunk, encoded))) => {
                let index = chunk.span.index;
                self.bodies.insert(index, chunk);
                Feed::Encoded(index, encoded)
            }
            Some(Ok(Prepared::Hole(chunks))) => Feed::Hole(chunks),
            Some(Ok(Prepared::End(size))) => {
                self.plan = self.plan.ending_at(size);
                Feed::Ends(self.plan)
            }
            Some(Err(error)) => Feed::Failed(error),
            None => Feed::End,
        }
    }

    /// The end of a piece. For the last chunk this is its actual end, because the end of the image
    /// is reported before it.
    fn end_of(&self, feed: &Feed) -> u64 {
        let chunks = match feed {
            Feed::Chunk(index) | Feed::Encoded(index, _) => 0..index.saturating_add(1),
            Feed::Hole(chunks) => 0..chunks.end,
            Feed::Ends(_) | Feed::End | Feed::Failed(_) => 0..0,
        };
        self.plan.bytes_of(&chunks).end
    }

    /// The body to send for a chunk.
    ///
    /// # Errors
    /// [`lost`] if the chunk should have a body and has none. Sending zeros instead would make a
    /// wrong drive that counts as confirmed.
    fn body(&mut self, span: Span, kind: Body) -> Result<Payload> {
        match kind {
            Body::Zeros => Ok(Payload::Zeros(Arc::clone(
                self.zeros.entry(span.len).or_default(),
            ))),
            Body::Given => match self.bodies.get(&span.index) {
                Some(chunk) if chunk.span == span => Ok(Payload::Data(chunk.clone())),
                _ => Err(lost()),
            },
        }
    }

    fn digest(&mut self, span: Span, body: &Payload) -> Option<ChunkDigest> {
        match body {
            Payload::Data(chunk) => chunk.digest,
            Payload::Zeros(_) => Some(self.zero_digests.of(span.len).into()),
        }
    }
}

/// What is sent for a chunk.
enum Payload {
    Data(EncodedChunk),
    /// Zeros, and their body once it was created.
    Zeros(Arc<OnceCell<Bytes>>),
}

/// A chunk of zeros. Its body is created once, on a thread that may block.
async fn zero_chunk(span: Span, body: &OnceCell<Bytes>) -> Result<EncodedChunk> {
    let make = || blocking(move || Ok(gzip_zeros(span.len)));
    Ok(EncodedChunk {
        span,
        parts: vec![Part {
            offset: span.offset,
            len: span.len,
            body: body.get_or_try_init(make).await?.clone(),
            encoding: Encoding::Gzip,
        }],
        digest: None,
    })
}

/// The parts of a chunk, divided into pieces.
struct Cuts {
    parts: std::vec::IntoIter<Part>,
    cutter: Option<Cutter>,
    /// Offset on the drive at which to begin.
    from: u64,
    /// The end of the chunk on the drive.
    end: u64,
    limits: Limits,
    most: RequestSize,
}

impl Cuts {
    fn new(chunk: EncodedChunk, from: u64, limits: Limits) -> Self {
        let whole = RequestSize {
            body: chunk.body_bytes(),
            range: chunk.parts.iter().map(|part| part.len).sum(),
        };
        let wanted = RequestSize {
            range: limits.piece_of(whole),
            ..RequestSize::ANY
        };
        Self {
            end: chunk.span.end(),
            parts: chunk.parts.into_iter(),
            cutter: None,
            from,
            limits,
            most: limits.most.min(wanted),
        }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Part>> {
        let most = self.most;
        loop {
            let Some(mut cutter) = self.cutter.take() else {
                let Some(part) = self.parts.next() else {
                    return Ok(None);
                };
                self.cutter = Some(Cutter::new(part, self.from));
                continue;
            };
            let (cutter, piece) = match cutter.is_whole(most) {
                true => cutter.next(most).map(|piece| (cutter, piece))?,
                // A compressed part has to be decompressed, which blocks.
                false => {
                    let cut = move || cutter.next(most).map(|piece| (cutter, piece));
                    blocking(cut).await?
                }
            };
            if piece.is_some() {
                self.cutter = Some(cutter);
                return Ok(piece);
            }
        }
    }
}

/// Writes the parts of a chunk, whole or in pieces. Every piece holds the same bytes as its part.
async fn write(client: &Client, drive: DriveId, cuts: Cuts, spare: &Spare) -> Whole {
    let (limits, end) = (cuts.limits, cuts.end);
    let cuts = &Mutex::new(cuts);
    let next = || async move {
        let piece = match cuts.lock().await.next().await {
            Ok(piece) => piece?,
            Err(error) => {
                return Some(Made {
                    bytes: end..end,
                    attempt: Attempt::local(error),
                });
            }
        };
        let (size, bytes) = (piece.size(), piece.offset..piece.offset + piece.len);
        let written = match limits.is_alone {
            true => client.write_alone(drive, piece).await,
            false => client.write(drive, piece).await,
        };
        let mut requests = Requests::default();
        match written {
            Ok(()) => requests.confirm(size),
            Err(_) => requests.failed = Some(size),
        }
        Some(Made {
            bytes,
            attempt: Attempt {
                requests,
                ..Attempt::of(written)
            },
        })
    };
    in_pieces(limits.is_shared().then_some(spare), next).await
}

impl Job for Upload {
    async fn feed(&mut self) -> Feed {
        if self.waiting.is_none() {
            let next = self.next().await;
            if self.room.is_none() {
                return next;
            }
            self.waiting = Some(next);
        }
        let end = self.waiting.as_ref().map_or(0, |feed| self.end_of(feed));
        // Before the engine learns about it: a hole can be left out only within the drive.
        if let Some(room) = &mut self.room
            && let Err(error) = room.reach(end).await
        {
            return Feed::Failed(error);
        }
        self.waiting.take().unwrap_or(Feed::End)
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn serve(&mut self, workers: u32) {
        if let Some(early_checks) = &self.early_checks {
            early_checks.serve(workers);
        }
        let workers = usize::try_from(workers).unwrap_or(usize::MAX);
        self.pipeline.serve(workers);
    }

    fn attempt(
        &mut self,
        span: Span,
        kind: Body,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Attempt> + Send + 'static {
        let body = self.body(span, kind);
        let expected = match (&body, self.compare) {
            (Ok(body), true) => self.digest(span, body),
            _ => None,
        };
        let confirmed = Arc::clone(self.confirmed.entry(span.index).or_default());
        let (client, drive, spare) = (self.client.clone(), self.drive, spare.clone());
        let turn = self.room.as_ref().map(Room::turn);
        async move {
            let body = match body {
                Ok(body) => body,
                Err(error) => return Attempt::local(error),
            };
            let _turn = match turn {
                Some(turn) => Some(turn.await),
                None => None,
            };
            if let Some(expected) = expected {
                let mut requests = Requests::default();
                let step_max = limits.read_bytes_max();
                let reader = DriveReader {
                    client: &client,
                    drive,
                    step_max,
                };
                match holds(reader, span, &expected, &mut requests).await {
                    Ok(true) => return Attempt::of(Ok(())),
                    Ok(false) => {}
                    Err(failure) => {
                        return Attempt {
                            requests: requests.without_progress(),
                            ..Attempt::of(Err(failure))
                        };
                    }
                }
            }
            let chunk = match body {
                Payload::Data(chunk) => Ok(chunk),
                Payload::Zeros(made) => zero_chunk(span, &made).await,
            };
            match chunk {
                Ok(chunk) => {
                    let cuts = Cuts::new(chunk, confirmed.load(Ordering::Relaxed), limits);
                    let written = write(&client, drive, cuts, &spare).await;
                    if let Some(end) = written.end {
                        confirmed.store(end, Ordering::Relaxed);
                    }
                    written.attempt
                }
                Err(error) => Attempt::local(error),
            }
        }
    }

    fn settled(&mut self, span: Span, kind: Body) -> Result<()> {
        self.confirmed.remove(&span.index);
        if self.keeper.is_some() || self.to_verify.is_some() {
            let body = self.body(span, kind)?;
            let digest = self.digest(span, &body);
            if let (Some(keeper), Some(record)) = (&self.keeper, done(span, digest)) {
                keeper.note(record)?;
            }
            if let (Some(to_verify), Some(digest)) = (&mut self.to_verify, digest) {
                match body {
                    Payload::Data(_) => to_verify.chunk(span, digest),
                    Payload::Zeros(_) => to_verify.zeros(span.offset..span.end()),
                }
            }
        }
        if let Some(chunk) = self.bodies.remove(&span.index) {
            self.pipeline.pace().confirmed(span.len, chunk.body_bytes());
        }
        if let Some(early_checks) = &self.early_checks {
            early_checks.settled(span);
        }
        Ok(())
    }

    fn skipped(&mut self, chunks: Range<u64>) -> Result<()> {
        // If the engine leaves holes out, shorter runs of zeros can be left out as well. A
        // comparison needs whole chunks.
        if !self.compare {
            self.pipeline.pace().leave_zeros();
        }
        if let Some(room) = &mut self.room {
            room.leave_zeros();
        }
        if let Some(keeper) = &self.keeper {
            keeper.note(Record::Holes {
                first: chunks.start,
                count: chunks.end - chunks.start,
            })?;
        }
        if let Some(to_verify) = &mut self.to_verify {
            to_verify.zeros(self.plan.bytes_of(&chunks));
        }
        if !chunks.is_empty() {
            if let Some(early_checks) = &self.early_checks {
                early_checks.skipped(chunks.clone());
            }
            self.holes.insert(chunks);
        }
        Ok(())
    }

    fn wire(&mut self, wire: Wire) {
        let bodies = self.bodies.values().map(EncodedChunk::body_bytes);
        let bytes: u64 = bodies.sum();
        self.pipeline.pace().observe(Wire {
            ready: wire.ready + self.pipeline.ready(),
            bytes: bytes * wire.in_flight as u64 / (self.bodies.len() as u64).max(1),
            ..wire
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::num::NonZeroU64;
    use std::time::Duration;

    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::super::pace::Pace;
    use super::super::pipeline::{Earlier, PipelineConfig};
    use super::*;
    use crate::api::ClientConfig;
    use crate::codec::Compression;
    use crate::driver::patience::Patience;
    use crate::driver::shell::Shell;
    use crate::driver::stop::Stop;
    use crate::error::ErrorKind;
    use crate::image::Image;
    use crate::monitor::Silent;
    use crate::policy::{Engine, EngineConfig, Operation, PiecesConfig, Zeros};
    use crate::verify::read_back::{Digests, Sampler, Verify};

    fn packed(bytes: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap().into()
    }

    fn plain(part: &Part) -> Vec<u8> {
        let mut plain = part.body.to_vec();
        if part.encoding == Encoding::Gzip {
            plain.clear();
            let mut decoder = GzDecoder::new(&part.body[..]);
            decoder.read_to_end(&mut plain).unwrap();
        }
        plain
    }

    /// An upload of zeros in chunks of 10 bytes, to an endpoint on which nothing listens.
    fn upload(plan: Plan) -> Upload {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(plan.size()).unwrap();
        let sampler = Sampler::new(Verify::None, &plan, 1, Digests::Quick, false);
        let config = PipelineConfig {
            image: Image::open_raw(file.path()).unwrap(),
            plan,
            todo: Vec::new(),
            jobs: 1,
            pace: Pace::new(Compression::default(), 1, false),
            checksum: false,
            earlier: Earlier::default(),
            selection: None,
        };
        let endpoint = "https://127.0.0.1:1/".parse().unwrap();
        let credentials = crate::Credentials::new("u", "k").unwrap();
        Upload {
            client: Client::new(endpoint, &credentials, &ClientConfig::default()).unwrap(),
            drive: DriveId::random(),
            plan,
            pipeline: Pipeline::start(config, &sampler).unwrap(),
            bodies: HashMap::new(),
            confirmed: HashMap::new(),
            zeros: HashMap::new(),
            compare: false,
            keeper: None,
            early_checks: None,
            to_verify: Some(Expected::default()),
            holes: RangeSet::new(),
            zero_digests: ZeroDigests::default(),
            first: 0,
            room: None,
            waiting: None,
        }
    }

    #[tokio::test]
    async fn a_chunk_whose_body_is_lost_ends_the_transfer_and_sends_nothing() {
        let plan = Plan::new(30, NonZeroU64::new(10).unwrap());
        let mut engine = Engine::new(EngineConfig {
            plan,
            first: 0,
            settled: RangeSet::new(),
            jobs_min: 1,
            jobs: 1,
            zeros: Zeros::Write,
            operation: Operation::Write,
            is_fresh: false,
            max_outage: Duration::from_secs(1),
            round_trip: Duration::ZERO,
            pieces: PiecesConfig::default(),
            seed: 1,
        });
        // The chunk is announced, but its body never comes.
        engine.chunk(1);
        let job = upload(plan);
        let mut shell = Shell::new(
            job.client.clone(),
            job.drive,
            engine,
            job,
            &Patience::default(),
        );
        let ending = shell.run(&mut Silent, Stop::never()).await;
        let error = shell.outcome(ending, "write to").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug);
        assert_eq!(shell.first_open(), 0);
        let mut job = shell.into_job();
        let span = plan.span(1).unwrap();
        let error = job.settled(span, Body::Given).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug);
        // A chunk of zeros needs no body.
        job.settled(span, Body::Zeros).unwrap();
        let attempt = job.attempt(span, Body::Zeros, Limits::NONE, &Spare::default());
        let attempt = attempt.await;
        assert!(matches!(attempt.answer, Ok(Err(_))), "{attempt:?}");
    }

    proptest! {
        /// For any parts, any limits, and any start.
        #[test]
        fn pieces_of_a_chunk_are_disjoint_and_all_that_is_missing(
            runs in proptest::collection::vec((1..200_000_usize, 0..100_000_u64, any::<bool>()), 1..5),
            from in 0..1_500_000_u64,
            shared_bytes in prop_oneof![Just(u64::MAX), 1..1_000_000_u64],
            most in prop_oneof![Just(u64::MAX), 20_000..1_000_000_u64],
        ) {
            let (mut at, mut parts, mut rng) = (0, Vec::new(), fastrand::Rng::with_seed(7));
            let mut expected = std::collections::BTreeMap::new();
            for (len, gap, is_packed) in runs {
                let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
                expected.extend((at..).zip(bytes.iter().copied()).filter(|(at, _)| *at >= from));
                let (body, encoding) = match is_packed {
                    true => (packed(&bytes), Encoding::Gzip),
                    false => (bytes.into(), Encoding::Identity),
                };
                let len = len as u64;
                parts.push(Part { offset: at, len, body, encoding });
                at += len + gap;
            }
            let span = Span { index: 0, offset: 0, len: at };
            let chunk = EncodedChunk { span, parts, digest: None };
            let limits = Limits {
                most: RequestSize { body: most, ..RequestSize::ANY },
                shared_bytes,
                ..Limits::NONE
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut cuts = Cuts::new(chunk, from, limits);
                while let Some(piece) = cuts.next().await.unwrap() {
                    prop_assert!(piece.size().fits(limits.most), "{:?}", piece.size());
                    let bytes = plain(&piece);
                    prop_assert_eq!(bytes.len() as u64, piece.len);
                    for (at, byte) in (piece.offset..).zip(bytes) {
                        // Each byte occurs once.
                        prop_assert_eq!(expected.remove(&at), Some(byte));
                    }
                }
                prop_assert!(expected.is_empty());
                Ok(())
            })?;
        }
    }
}
