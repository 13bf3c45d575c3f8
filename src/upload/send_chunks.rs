//! The chunks of an upload, from the pipeline to the drive.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rangemap::RangeSet;
use tokio::sync::{Mutex, OnceCell};

use super::growing_drive::Room;
use super::pipeline::Pipeline;
use crate::api::Client;
use crate::chunk::{EncodedChunk, Encoding, Found, Part, RequestSize};
use crate::codec::{Cutter, gzip_zeros};
use crate::digest::ChunkDigest;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::phases::share;
use crate::driver::pieces::{Made, Whole, in_pieces};
use crate::driver::read_range::DriveReader;
use crate::driver::session::done;
use crate::driver::shell::{Feed, Job, NewChunk, Outcome};
use crate::driver::spare_requests::Spare;
use crate::error::Result;
use crate::journal::{Journal, Record};
use crate::plan::{Plan, Span};
use crate::policy::{Limits, Requests, Wire};
use crate::verify::early_checks::EarlyChecks;
use crate::verify::read_back::{Expected, ZeroDigests, holds};

/// The chunks of an upload: where they come from and how one is sent.
pub(super) struct Upload {
    pub(super) client: Client,
    pub(super) drive: DriveId,
    pub(super) plan: Plan,
    pub(super) pipeline: Pipeline,
    /// The chunks that were prepared and are not confirmed.
    pub(super) unconfirmed: Unconfirmed,
    /// Zero chunks, by length: there are at most two.
    pub(super) zeros: HashMap<u64, Arc<OnceCell<ZeroChunk>>>,
    /// Whether a chunk is read from the drive before it is written.
    pub(super) compare: bool,
    pub(super) journal: Option<Journal>,
    pub(super) early_checks: Option<EarlyChecks>,
    /// The chunks to verify at the end, if all have to be and they cannot be read again.
    pub(super) to_verify: Option<Expected>,
    /// Chunks that were left out as holes.
    pub(super) holes: RangeSet<u64>,
    /// The chunks that earlier runs settled, and those before the first one of the transfer.
    pub(super) passed: RangeSet<u64>,
    /// The room on the drive, for an image of unknown size.
    pub(super) room: Option<Room>,
    /// What waits for room on the drive.
    pub(super) waiting: Option<Found<NewChunk<ToSend>>>,
}

impl Upload {
    /// An upload of everything that the pipeline returns, without a journal and without checks.
    pub(super) fn new(client: Client, drive: DriveId, plan: Plan, pipeline: Pipeline) -> Self {
        Self {
            client,
            drive,
            plan,
            pipeline,
            unconfirmed: Unconfirmed::default(),
            zeros: HashMap::new(),
            compare: false,
            journal: None,
            early_checks: None,
            to_verify: None,
            holes: RangeSet::new(),
            passed: RangeSet::new(),
            room: None,
            waiting: None,
        }
    }

    /// The next that is ready. Cancel-safe: dropping the future loses nothing.
    async fn next(&mut self) -> Feed<ToSend> {
        let prepared = self.pipeline.next().await?;
        Some(prepared.map(|found| match found {
            Found::Chunk((chunk, encoded)) => {
                self.unconfirmed.count += 1;
                self.unconfirmed.bytes += chunk.body_bytes();
                Found::Chunk(NewChunk {
                    index: chunk.span.index,
                    payload: ToSend::new(Body::Data(chunk)),
                    encoded: Some(encoded),
                })
            }
            Found::Hole(chunks) => Found::Hole(chunks),
            Found::SizeKnown(size) => {
                self.plan = self.plan.ending_at(size);
                Found::SizeKnown(size)
            }
        }))
    }

    /// The end of what is ready. For the last chunk this is its actual end, because the size is reported
    /// before it.
    fn end_of(&self, found: &Found<NewChunk<ToSend>>) -> u64 {
        let chunks = match found {
            Found::Chunk(chunk) => 0..chunk.index.saturating_add(1),
            Found::Hole(chunks) => 0..chunks.end,
            Found::SizeKnown(_) => 0..0,
        };
        self.plan.bytes_of(&chunks).end
    }
}

/// Chunks with data that were prepared and are not confirmed.
#[derive(Clone, Copy, Default)]
pub(super) struct Unconfirmed {
    count: u64,
    /// The total of their bodies.
    bytes: u64,
}

/// A chunk that is not confirmed.
#[derive(Debug)]
pub(super) struct ToSend {
    body: Body,
    /// The offset on the drive up to which it is confirmed, where the next attempt begins.
    confirmed: u64,
}

impl ToSend {
    fn new(body: Body) -> Self {
        Self { body, confirmed: 0 }
    }
}

/// What is sent for a chunk.
#[derive(Debug)]
pub(super) enum Body {
    Data(EncodedChunk),
    /// Zeros, once they were created.
    Zeros(Arc<OnceCell<ZeroChunk>>),
}

impl Body {
    /// The digest of the chunk, if it is known.
    fn digest(&self) -> Option<ChunkDigest> {
        match self {
            Self::Data(chunk) => chunk.digest,
            Self::Zeros(made) => made.get().map(|zeros| zeros.digest),
        }
    }
}

/// What is sent for a chunk of zeros of some length.
#[derive(Debug)]
pub(super) struct ZeroChunk {
    body: Bytes,
    digest: ChunkDigest,
}

/// A chunk of zeros. It is created once, on a thread that may block.
async fn zero_chunk(span: Span, made: &OnceCell<ZeroChunk>) -> Result<EncodedChunk> {
    let make = || {
        blocking(move || {
            Ok(ZeroChunk {
                body: gzip_zeros(span.len),
                digest: ZeroDigests::default().of(span.len).into(),
            })
        })
    };
    let zeros = made.get_or_try_init(make).await?;
    Ok(EncodedChunk {
        span,
        parts: vec![Part {
            offset: span.offset,
            len: span.len,
            body: zeros.body.clone(),
            encoding: Encoding::Gzip,
        }],
        digest: Some(zeros.digest),
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
                    result: Err(error.into()),
                    requests: Requests::default(),
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
            result: written.map_err(Into::into),
            requests,
        })
    };
    in_pieces(limits.is_shared().then_some(spare), next).await
}

impl Job for Upload {
    type Payload = ToSend;
    type Done = Body;

    async fn feed(&mut self) -> Feed<ToSend> {
        if self.waiting.is_none() {
            match self.next().await {
                Some(Ok(found)) if self.room.is_some() => self.waiting = Some(found),
                other => return other,
            }
        }
        let end = self.waiting.as_ref().map_or(0, |found| self.end_of(found));
        // Before the engine learns about it: a hole can be left out only within the drive.
        if let Some(room) = &mut self.room
            && let Err(error) = room.reach(end).await
        {
            return Some(Err(error));
        }
        self.waiting.take().map(Ok)
    }

    fn passed(&self) -> RangeSet<u64> {
        self.passed.clone()
    }

    fn serve(&mut self, workers: u32) {
        if let Some(early_checks) = &self.early_checks {
            early_checks.serve(workers);
        }
        let workers = usize::try_from(workers).unwrap_or(usize::MAX);
        self.pipeline.serve(workers);
    }

    fn zeros(&mut self, span: Span) -> Option<ToSend> {
        let made = Arc::clone(self.zeros.entry(span.len).or_default());
        Some(ToSend::new(Body::Zeros(made)))
    }

    fn attempt(
        &mut self,
        span: Span,
        mut chunk: ToSend,
        limits: Limits,
        spare: &Spare,
    ) -> impl Future<Output = Outcome<ToSend, Body>> + Send + 'static {
        let (client, drive, spare) = (self.client.clone(), self.drive, spare.clone());
        let compare = self.compare;
        let turn = self.room.as_ref().map(Room::turn);
        async move {
            let _turn = match turn {
                Some(turn) => Some(turn.await),
                None => None,
            };
            let encoded = match &chunk.body {
                Body::Data(encoded) => encoded.clone(),
                Body::Zeros(made) => match zero_chunk(span, made).await {
                    Ok(encoded) => encoded,
                    Err(error) => return Outcome::Local(error),
                },
            };
            if let Some(expected) = encoded.digest.filter(|_| compare) {
                let mut requests = Requests::default();
                let step_max = limits.read_bytes_max();
                let reader = DriveReader {
                    client: &client,
                    drive,
                    step_max,
                };
                match holds(reader, span, &expected, &mut requests).await {
                    Ok(true) => return Outcome::Done(chunk.body, Requests::default()),
                    Ok(false) => {}
                    Err(failure) => {
                        return Outcome::Failed(failure, chunk, requests.without_progress());
                    }
                }
            }
            let cuts = Cuts::new(encoded, chunk.confirmed, limits);
            let written = write(&client, drive, cuts, &spare).await;
            if let Some(end) = written.end {
                chunk.confirmed = end;
            }
            match written.result {
                Ok(()) => Outcome::Done(chunk.body, written.requests),
                Err(error) => error.outcome(chunk, written.requests),
            }
        }
    }

    fn bytes_to_move(&self, span: Span, chunk: &ToSend) -> (u64, u64) {
        let rest = span.end().saturating_sub(chunk.confirmed.max(span.offset));
        let body_bytes = match &chunk.body {
            Body::Data(encoded) => encoded.body_bytes(),
            Body::Zeros(made) => made.get().map_or(0, |zeros| zeros.body.len() as u64),
        };
        (rest, share(body_bytes, rest, span.len))
    }

    fn settled(&mut self, span: Span, body: Body) -> Result<()> {
        if self.journal.is_some() || self.to_verify.is_some() {
            let digest = body.digest();
            if let (Some(journal), Some(record)) = (&self.journal, done(span, digest)) {
                journal.note(record)?;
            }
            if let (Some(to_verify), Some(digest)) = (&mut self.to_verify, digest) {
                match &body {
                    Body::Data(_) => to_verify.chunk(span, digest),
                    Body::Zeros(_) => to_verify.zeros(span.offset..span.end()),
                }
            }
        }
        if let Body::Data(chunk) = body {
            let body_bytes = chunk.body_bytes();
            self.unconfirmed.count -= 1;
            self.unconfirmed.bytes -= body_bytes;
            self.pipeline.pace().confirmed(span.len, body_bytes);
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
            room.leave_zeros()?;
        }
        if let Some(journal) = &self.journal {
            journal.note(Record::holes(&chunks))?;
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
        let Unconfirmed { count, bytes } = self.unconfirmed;
        self.pipeline.pace().observe(Wire {
            ready: wire.ready + self.pipeline.ready(),
            bytes: bytes * wire.in_flight as u64 / count.max(1),
            ..wire
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        /// For any parts, any limits, and any start.
        #[test]
        fn pieces_of_a_chunk_are_disjoint_and_cover_all_missing_bytes(
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
