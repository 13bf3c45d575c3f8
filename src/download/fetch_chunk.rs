//! Reads one chunk of a download from the endpoint.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::OwnedSemaphorePermit;

use crate::api::Client;
use crate::buffer::{Buffer, BufferPool};
use crate::chunk::{RequestSize, zeros};
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::driver::checksum::Hasher;
use crate::driver::pieces::{Made, in_pieces};
use crate::driver::read_range::DriveReader;
use crate::driver::shell::AttemptError;
use crate::driver::spare_requests::Spare;
use crate::failure::Failure;
use crate::locks::lock;
use crate::plan::Span;
use crate::policy::{Limits, Requests};
use crate::wire::READ_BYTES_MAX;

/// A chunk that is not written.
#[derive(Debug)]
pub(super) struct ToRead {
    /// The parts of the drive to read, in order.
    pub(super) parts: Vec<Range<u64>>,
    /// Its place in the window.
    pub(super) permit: OwnedSemaphorePermit,
}

/// A chunk that was read: its parts. Everything between them is zeros.
#[derive(Debug)]
pub(super) struct Fetched {
    span: Span,
    /// The ranges of the drive that were read, in order.
    parts: Vec<Range<u64>>,
    /// The bytes of the parts, concatenated.
    bytes: Buffer,
}

/// A run of bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// Bytes that were read.
    Bytes(&'a [u8]),
    /// This many zeros.
    Zeros(u64),
}

/// The beginning of a chunk: its parts, concatenated, of which `filled` bytes were read.
#[derive(Debug)]
pub(super) struct Partial {
    bytes: Buffer,
    filled: usize,
}

/// What was read of chunks whose attempts failed, by index. Another attempt continues there. The
/// entries hold buffers of the pool, and give them up when another chunk needs one.
#[derive(Clone, Debug, Default)]
pub(super) struct Partials(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    partials: BTreeMap<u64, Partial>,
    /// The maximum bytes that were ever read of each chunk, including those given up. Only what
    /// exceeds it is progress. Otherwise chunks that take each other's buffers could start over for
    /// ever.
    reached: HashMap<u64, usize>,
    /// Number of attempts that wait for a buffer.
    waiting: usize,
}

impl Partials {
    /// Takes what was read of a chunk, or a buffer of `chunk` bytes for it.
    async fn take(&self, index: u64, pool: &BufferPool, chunk: usize) -> Option<Partial> {
        {
            let mut kept = self.lock();
            if let Some(partial) = kept.partials.remove(&index) {
                return Some(partial);
            }
            kept.waiting += 1;
            // A waiting attempt would otherwise block the chunks that hold these buffers.
            while pool.free() < kept.waiting
                && let Some(other) = kept.partials.keys().next().copied()
            {
                kept.partials.remove(&other);
            }
        }
        let bytes = pool.wait(chunk).await;
        self.lock().waiting -= 1;
        Some(Partial {
            bytes: bytes?,
            filled: 0,
        })
    }

    /// Stores what was read of a chunk for another attempt, unless an attempt waits for its buffer.
    /// Returns how many of the bytes had never been read before.
    fn keep(&self, index: u64, partial: Partial) -> u64 {
        let mut kept = self.lock();
        let reached = kept.reached.entry(index).or_default();
        let new = partial.filled.saturating_sub(*reached);
        *reached += new;
        if kept.waiting == 0 && partial.filled > 0 {
            kept.partials.insert(index, partial);
        }
        new as u64
    }

    /// Removes a chunk that was read completely.
    fn forget(&self, index: u64) {
        self.lock().reached.remove(&index);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Plain data that is always consistent.
        lock(&self.0)
    }
}

/// How the reads of a download are made.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    pub(super) client: Client,
    pub(super) drive: DriveId,
    /// Maximum bytes of one read. It falls to what the API guarantees if the endpoint refuses more.
    pub(super) step_max: Arc<AtomicU64>,
    /// Its buffers have `chunk` bytes.
    pub(super) pool: BufferPool,
    pub(super) chunk: usize,
    pub(super) partials: Partials,
}

impl Fetcher {
    /// Reads these parts of a chunk, within these limits. Each read returns its full length or
    /// fails. What was read without a gap before a failure is stored for another attempt.
    pub(super) async fn fetch(
        &self,
        span: Span,
        parts: &[Range<u64>],
        limits: Limits,
        spare: &Spare,
    ) -> Result<(Fetched, Requests), (AttemptError, Requests)> {
        let partial = self.partials.take(span.index, &self.pool, self.chunk).await;
        let failed = |failure: Failure| (failure.into(), Requests::default());
        let mut partial = partial.ok_or_else(|| failed(no_buffer()))?;
        let read = self.read(parts, &mut partial, limits, spare).await;
        match read {
            Ok(requests) => {
                self.partials.forget(span.index);
                let fetched = Fetched {
                    span,
                    parts: parts.to_vec(),
                    bytes: partial.bytes,
                };
                Ok((fetched, requests))
            }
            Err((error, requests)) => {
                let advanced_bytes = self.partials.keep(span.index, partial);
                Err((
                    error,
                    Requests {
                        advanced_bytes,
                        ..requests
                    },
                ))
            }
        }
    }

    /// Reads what is missing of a chunk into its buffer.
    async fn read(
        &self,
        parts: &[Range<u64>],
        partial: &mut Partial,
        limits: Limits,
        spare: &Spare,
    ) -> Result<Requests, (AttemptError, Requests)> {
        let failed = |failure: Failure| (failure.into(), Requests::default());
        let len = parts.iter().map(|part| part.end - part.start).sum();
        let step = limits.piece_of(RequestSize::plain(len));
        let len = index(len).map_err(failed)?;
        let bytes = partial.bytes.get_mut(..len);
        let bytes = bytes.ok_or_else(|| failed(no_buffer()))?;
        let mut pieces = pieces(parts, bytes, partial.filled, step)
            .map_err(failed)?
            .into_iter();
        let most = limits.read_bytes_max();
        let next = || {
            let piece = pieces.next();
            async move {
                let (offset, bytes) = piece?;
                let end = offset + bytes.len() as u64;
                let mut requests = Requests::default();
                let read = self.read_piece(offset, bytes, most, &mut requests).await;
                Some(Made {
                    bytes: offset..end,
                    result: read.map_err(Into::into),
                    requests,
                })
            }
        };
        let whole = in_pieces(limits.is_shared().then_some(spare), next).await;
        partial.filled += index(whole.requests.advanced_bytes).map_err(failed)?;
        match whole.result {
            Ok(()) => Ok(whole.requests),
            Err(error) => Err((error, whole.requests)),
        }
    }

    /// Fills `bytes` from `offset` of the drive, in order.
    async fn read_piece(
        &self,
        offset: u64,
        bytes: &mut [u8],
        most: u64,
        requests: &mut Requests,
    ) -> Result<(), Failure> {
        loop {
            let step = self.step_max.load(Ordering::Relaxed).min(most);
            // How many bytes the earlier reads of this attempt returned.
            let came = usize::try_from(requests.advanced_bytes).unwrap_or(usize::MAX);
            let rest = bytes.get_mut(came..).unwrap_or_default();
            let offset = offset + came as u64;
            let reader = DriveReader {
                client: &self.client,
                drive: self.drive,
                step_max: step,
            };
            match reader.read(offset, rest, requests).await {
                Err(failure) if step > READ_BYTES_MAX && is_too_much(&failure) => {
                    tracing::debug!(step, %failure, "a read that large is answered no more");
                    self.step_max.store(READ_BYTES_MAX, Ordering::Relaxed);
                }
                read => return read,
            }
        }
    }
}

/// Divides the part of a chunk after its first `filled` bytes: each piece with its range on the
/// drive and its place in the chunk's buffer, which holds the parts one after the other.
fn pieces<'a>(
    parts: &[Range<u64>],
    bytes: &'a mut [u8],
    filled: usize,
    step: u64,
) -> Result<Vec<(u64, &'a mut [u8])>, Failure> {
    let (mut rest, mut skip) = (bytes, filled as u64);
    let mut pieces = Vec::new();
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            let is_filled = skip > 0;
            let most = if is_filled { skip } else { step };
            let end = at.saturating_add(most).min(part.end);
            let (piece, after) = std::mem::take(&mut rest)
                .split_at_mut_checked(index(end - at)?)
                .ok_or_else(no_buffer)?;
            rest = after;
            match is_filled {
                true => skip -= end - at,
                false => pieces.push((at, piece)),
            }
            at = end;
        }
    }
    Ok(pieces)
}

fn index(bytes: u64) -> Result<usize, Failure> {
    usize::try_from(bytes).map_err(|_| no_buffer())
}

fn no_buffer() -> Failure {
    Failure::Broken("there is no buffer to read into".into())
}

/// Whether a read may have failed because of its length: it was refused, or the answer was shorter.
/// The findings about an endpoint may be outdated.
fn is_too_much(failure: &Failure) -> bool {
    match failure {
        Failure::WrongLength(_) => true,
        Failure::Refused(refusal) => matches!(refusal.status, 400 | 413 | 416),
        _ => false,
    }
}

impl Fetched {
    /// The span of the chunk on the drive.
    pub(super) fn span(&self) -> Span {
        self.span
    }

    /// The whole chunk in order, as runs with their offsets on the drive.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, Run<'_>)> {
        let mut rest: &[u8] = &self.bytes;
        let mut at = self.span.offset;
        let end = self.span.end();
        let last = std::iter::once(end..end);
        let parts = self.parts.iter().cloned().chain(last);
        let runs = parts.flat_map(move |part| {
            let zeros = (at, Run::Zeros(part.start - at));
            at = part.end;
            let len = usize::try_from(part.end - part.start).unwrap_or(0);
            let (bytes, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            [zeros, (part.start, Run::Bytes(bytes))]
        });
        runs.filter(|(_, run)| !matches!(run, Run::Zeros(0) | Run::Bytes([])))
    }

    /// The first part, as a separate chunk.
    pub(super) fn first(&self) -> Option<(Span, &[u8])> {
        self.runs().find_map(|(offset, run)| match run {
            Run::Bytes(bytes) => {
                let (index, len) = (self.span.index, bytes.len() as u64);
                Some((Span { index, offset, len }, bytes))
            }
            Run::Zeros(_) => None,
        })
    }

    /// The SHA-256 of the chunk.
    pub(super) fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        for (_, run) in self.runs() {
            match run {
                Run::Bytes(bytes) => hasher.bytes(bytes),
                Run::Zeros(len) => hasher.zeros(len),
            }
        }
        hasher.finish()
    }

    /// Passes the whole chunk to `write`, in order.
    pub(super) fn write_to(
        &self,
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        for (_, run) in self.runs() {
            match run {
                Run::Bytes(bytes) => write(bytes)?,
                Run::Zeros(len) => zeros(len).try_for_each(&mut write)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_between_parts_are_zeros() {
        let fetched = fetched(100, 50, vec![100..101, 120..130, 140..150]);
        let runs: Vec<_> = fetched.runs().collect();
        let bytes = &fetched.bytes[..];
        let all = [
            (100, Run::Bytes(&bytes[..1])),
            (101, Run::Zeros(19)),
            (120, Run::Bytes(&bytes[1..11])),
            (130, Run::Zeros(10)),
            (140, Run::Bytes(&bytes[11..21])),
        ];
        assert_eq!(runs, all);
        let (span, first) = fetched.first().unwrap();
        assert_eq!((span.offset, span.len, first), (100, 1, &bytes[..1]));
    }

    fn fetched(offset: u64, len: u64, parts: Vec<Range<u64>>) -> Fetched {
        // Longer than necessary, as buffers are.
        let mut bytes = BufferPool::new(1).take(len as usize + 7).unwrap();
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = 1 + (i % 250) as u8;
        }
        let index = 3;
        Fetched {
            span: Span { index, offset, len },
            parts,
            bytes,
        }
    }

    proptest! {
        /// For any parts, any division, and any progress before.
        #[test]
        fn pieces_are_disjoint_and_cover_all_missing_bytes(
            cuts in proptest::collection::btree_set(1000_u64..200_000, 2..12),
            filled in 0_usize..200_000,
            step in prop_oneof![Just(u64::MAX), 1_000_u64..100_000],
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let parts: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let len = parts.iter().map(|part| (part.end - part.start) as usize).sum();
            let filled = filled.min(len);
            let mut bytes = vec![0_u8; len];
            // The expected value of each byte of the drive.
            let byte = |at: u64| 1 + (at % 251) as u8;
            let mut expected: Vec<u8> = parts.iter().cloned().flatten().map(byte).collect();
            expected[..filled].fill(0);
            let pieces = pieces(&parts, &mut bytes, filled, step).unwrap();
            let mut end = 0;
            for (offset, piece) in pieces {
                prop_assert!(offset >= end && !piece.is_empty() && piece.len() as u64 <= step);
                for (at, filled) in (offset..).zip(piece.iter_mut()) {
                    *filled = byte(at);
                }
                end = offset + piece.len() as u64;
            }
            prop_assert!(bytes == expected);
        }

        #[test]
        fn a_chunk_is_complete_regardless_of_its_parts(
            offset in 0_u64..1000,
            len in 1_u64..200_000,
            cuts in proptest::collection::btree_set(0_u64..200_000, 0..12),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().filter(|cut| *cut <= len).collect();
            let parts = cuts.chunks_exact(2).map(|pair| offset + pair[0]..offset + pair[1]);
            let fetched = fetched(offset, len, parts.collect());
            let mut expected = vec![0; len as usize];
            let mut next = 0;
            for pair in cuts.chunks_exact(2) {
                for byte in &mut expected[pair[0] as usize..pair[1] as usize] {
                    *byte = fetched.bytes[next];
                    next += 1;
                }
            }
            let mut written = Vec::new();
            fetched
                .write_to(|bytes| {
                    written.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
            prop_assert!(written == expected);
            prop_assert_eq!(fetched.digest(), Digest::of(&expected));
            let mut at = offset;
            for (start, run) in fetched.runs() {
                prop_assert_eq!(start, at);
                at += match run {
                    Run::Bytes(bytes) => bytes.len() as u64,
                    Run::Zeros(len) => len,
                };
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}
