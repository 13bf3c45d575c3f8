//! The content of a disk, as digests: of chunks, for comparing and verifying, and of the blocks
//! within them, to find out what changed. A run of zeros is stored as a number, whatever its
//! length.
//!
//! Everything here is arithmetic. The crate `image` reads a disk into a [`Content`], `transfer`
//! compares it with a drive, and a receipt stores it.

use std::num::NonZeroU64;
use std::ops::Range;

use rangemap::RangeSet;
use sha2::{Digest as _, Sha256};

use crate::chunk::is_zero;
use crate::digest::Digest;
use crate::plan::Plan;

/// Bytes of a block, the smallest unit of a delta. Half of it would double the size of a receipt
/// and halve the cost of an isolated change, but at that size the HTTP headers cost as much.
pub const BLOCK_BYTES: NonZeroU64 = NonZeroU64::new(64 * 1024).unwrap();
/// Bytes of a chunk of a content: the longest read that every cloud supports
/// (docs/dev/reference.md, 1.7).
pub const CONTENT_CHUNK_BYTES: NonZeroU64 = NonZeroU64::new(4 * 1024 * 1024).unwrap();
/// Number of blocks in a chunk.
const CHUNK_BLOCKS: u64 = CONTENT_CHUNK_BYTES.get() / BLOCK_BYTES.get();
/// Bytes of a chunk's digest: a SHA-256.
pub const CHUNK_DIGEST_BYTES: usize = 32;
/// Bytes of a block's digest: the first half of a SHA-256. A collision between two blocks of one
/// disk is as unlikely as a duplicate UUID.
pub const BLOCK_DIGEST_BYTES: usize = 16;
/// The input of the root digest begins with this, so that the root cannot equal the digest of
/// anything else.
const ROOT_PREFIX: &[u8] = b"openhosting root 1\n";

/// The content of one piece (chunk or block) of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// Nothing but zeros.
    Zeros,
    /// Data with this digest, or the first bytes of it.
    Data(&'a [u8]),
}

impl Held<'_> {
    /// The SHA-256 of a piece of data; `None` for zeros, and for a block, of which only a part of
    /// the digest is stored.
    pub fn sha256(self) -> Option<Digest> {
        match self {
            Self::Zeros => None,
            Self::Data(digest) => digest.try_into().ok().map(Digest::from_bytes),
        }
    }
}

/// Consecutive pieces of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// This many pieces of zeros.
    Zeros(u64),
    /// Concatenated digests of pieces of data.
    Data(Vec<u8>),
}

/// The digests of the pieces of a disk, in order. Neighbours of one kind always form one run, so
/// that equal contents have equal values of this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    width: usize,
    /// Each with the index of its first piece.
    runs: Vec<(u64, Run)>,
    count: u64,
}

impl Digests {
    /// An empty list of digests of `width` bytes.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            runs: Vec::new(),
            count: 0,
        }
    }

    /// Bytes of one digest.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of pieces.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().map(|(_, run)| run)
    }

    /// Appends `more` pieces of zeros; `None` if the number exceeds 64 bits.
    pub fn zeros(&mut self, more: u64) -> Option<()> {
        let count = self.count.checked_add(more)?;
        match self.runs.last_mut() {
            _ if more == 0 => {}
            Some((_, Run::Zeros(zeros))) => *zeros += more,
            _ => self.runs.push((self.count, Run::Zeros(more))),
        }
        self.count = count;
        Some(())
    }

    /// Appends pieces of data with these digests; `None` if their length is not a multiple of the
    /// width.
    pub fn data(&mut self, digests: &[u8]) -> Option<()> {
        if !digests.len().is_multiple_of(self.width) {
            return None;
        }
        let count = self
            .count
            .checked_add((digests.len() / self.width) as u64)?;
        match self.runs.last_mut() {
            _ if digests.is_empty() => {}
            Some((_, Run::Data(all))) => all.extend_from_slice(digests),
            _ => self.runs.push((self.count, Run::Data(digests.to_vec()))),
        }
        self.count = count;
        Some(())
    }

    /// The run that contains this piece, the piece's position in it, and how many pieces it has
    /// from there.
    fn run_at(&self, index: u64) -> Option<(&Run, u64, u64)> {
        if index >= self.count {
            return None;
        }
        let at = self.runs.partition_point(|(first, _)| *first <= index);
        let (first, run) = self.runs.get(at.checked_sub(1)?)?;
        let end = self.runs.get(at).map_or(self.count, |(first, _)| *first);
        Some((run, index - first, end - index))
    }

    /// The content of a piece; `None` beyond the end.
    pub fn get(&self, index: u64) -> Option<Held<'_>> {
        let (run, at, _) = self.run_at(index)?;
        match run {
            Run::Zeros(_) => Some(Held::Zeros),
            Run::Data(digests) => {
                let start = usize::try_from(at).ok()?.checked_mul(self.width)?;
                digests.get(start..start + self.width).map(Held::Data)
            }
        }
    }

    /// The ranges of pieces that are zeros.
    fn zero_pieces(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().filter_map(|(first, run)| match run {
            Run::Zeros(count) => Some(*first..first + count),
            Run::Data(_) => None,
        })
    }

    /// The pieces that differ from `other`, or that it does not have. The time depends on the
    /// number of runs, not on the length of runs of zeros.
    fn differing(&self, other: &Self) -> RangeSet<u64> {
        let mut differing = RangeSet::new();
        let mut index = 0;
        while let (Some((ours, _, left)), Some((theirs, _, there))) =
            (self.run_at(index), other.run_at(index))
        {
            let end = index + left.min(there);
            match (ours, theirs) {
                (Run::Zeros(_), Run::Zeros(_)) => {}
                (Run::Data(_), Run::Data(_)) => {
                    for piece in (index..end).filter(|i| self.get(*i) != other.get(*i)) {
                        differing.insert(piece..piece + 1);
                    }
                }
                _ => differing.insert(index..end),
            }
            index = end;
        }
        if index < self.count {
            differing.insert(index..self.count);
        }
        differing
    }

    fn hash_into(&self, hasher: &mut Sha256) {
        for run in self.runs() {
            match run {
                Run::Zeros(count) => {
                    hasher.update([0]);
                    hasher.update(count.to_le_bytes());
                }
                Run::Data(digests) => {
                    hasher.update([1]);
                    hasher.update(((digests.len() / self.width) as u64).to_le_bytes());
                    hasher.update(digests);
                }
            }
        }
    }
}

/// The digests of one chunk. Chunks are independent of each other, so several threads can compute
/// them.
#[derive(Debug)]
pub struct ChunkContent {
    /// `None` for zeros.
    digest: Option<Digest>,
    blocks: Digests,
}

impl ChunkContent {
    /// The digests of the bytes of a chunk.
    pub fn of(bytes: &[u8]) -> Self {
        Self::beside(bytes, None).0
    }

    /// As [`of`](Self::of), and returns whether `base` (a content, and the index of the chunk in
    /// it) has the same bytes. In that case, the digest of the chunk is taken from there and not
    /// computed.
    pub fn beside(bytes: &[u8], base: Option<(&Content, u64)>) -> (Self, bool) {
        let blocks = Self::blocks_of(bytes);
        let known = base.and_then(|(base, index)| base.same_chunk(index, bytes.len(), &blocks));
        let is_same = known.is_some();
        let digest = match known {
            Some(digest) => digest,
            None => (!is_zero(bytes)).then(|| Digest::of(bytes)),
        };
        (Self { digest, blocks }, is_same)
    }

    fn blocks_of(bytes: &[u8]) -> Digests {
        let mut blocks = Digests::new(BLOCK_DIGEST_BYTES);
        for block in bytes.chunks(block_bytes()) {
            // A chunk has at most 64 blocks, so this cannot overflow.
            let _ = match is_zero(block) {
                true => blocks.zeros(1),
                false => blocks.data(&block_digest(&Digest::of(block))),
            };
        }
        blocks
    }
}

fn block_bytes() -> usize {
    usize::try_from(BLOCK_BYTES.get()).unwrap_or(usize::MAX)
}

/// The digest of a block, as it is stored.
pub fn block_digest(digest: &Digest) -> [u8; BLOCK_DIGEST_BYTES] {
    let mut kept = [0; BLOCK_DIGEST_BYTES];
    kept.copy_from_slice(&digest.as_bytes()[..BLOCK_DIGEST_BYTES]);
    kept
}

/// The content of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    size: u64,
    chunks: Digests,
    blocks: Digests,
}

impl Content {
    /// The content of a disk of `size` bytes, to which no chunk was added yet.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            chunks: Digests::new(CHUNK_DIGEST_BYTES),
            blocks: Digests::new(BLOCK_DIGEST_BYTES),
        }
    }

    /// A content with these digests; `None` unless their number matches `size`.
    pub fn from_digests(size: u64, chunks: Digests, blocks: Digests) -> Option<Self> {
        let content = Self {
            size,
            chunks,
            blocks,
        };
        let is_whole = content.chunks.count() == content.plan().count()
            && content.blocks.count() == content.block_plan().count();
        is_whole.then_some(content)
    }

    /// Appends the next chunk.
    pub fn push(&mut self, chunk: &ChunkContent) {
        // The number of chunks of a disk cannot overflow.
        let _ = match &chunk.digest {
            Some(digest) => self.chunks.data(digest.as_bytes()),
            None => self.chunks.zeros(1),
        };
        for run in chunk.blocks.runs() {
            let _ = match run {
                Run::Zeros(count) => self.blocks.zeros(*count),
                Run::Data(digests) => self.blocks.data(digests),
            };
        }
    }

    /// Appends `chunks` chunks of zeros.
    pub fn push_hole(&mut self, chunks: u64) {
        let first = self.chunks.count();
        let _ = self.chunks.zeros(chunks);
        let bytes = self.plan().bytes_in(&(first..first + chunks));
        let _ = self.blocks.zeros(bytes.div_ceil(BLOCK_BYTES.get()));
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its division into chunks.
    pub fn plan(&self) -> Plan {
        Plan::new(self.size, CONTENT_CHUNK_BYTES)
    }

    /// Its division into blocks.
    pub fn block_plan(&self) -> Plan {
        Plan::new(self.size, BLOCK_BYTES)
    }

    /// The digests of its chunks.
    pub fn chunks(&self) -> &Digests {
        &self.chunks
    }

    /// The digests of its blocks.
    pub fn blocks(&self) -> &Digests {
        &self.blocks
    }

    /// The content of a chunk, by its index.
    pub fn chunk(&self, index: u64) -> Option<Held<'_>> {
        self.chunks.get(index)
    }

    /// The content of a block, by its index.
    pub fn block(&self, index: u64) -> Option<Held<'_>> {
        self.blocks.get(index)
    }

    /// The digest of the chunk at `index` if it has `len` bytes and these blocks; `None` if it
    /// differs. The inner option is `None` for zeros.
    fn same_chunk(&self, index: u64, len: usize, blocks: &Digests) -> Option<Option<Digest>> {
        let span = self.plan().span(index)?;
        let is_same = span.len == len as u64
            && (0..blocks.count())
                .zip(blocks_of(index))
                .all(|(ours, theirs)| blocks.get(ours) == self.blocks.get(theirs));
        let are_zeros = blocks.zero_pieces().eq(Some(0..blocks.count()));
        match (is_same, self.chunk(index)?) {
            (true, Held::Zeros) if are_zeros => Some(None),
            (true, digest) if !are_zeros => digest.sha256().map(Some),
            _ => None,
        }
    }

    /// The chunks that are zeros, by index.
    pub fn zero_chunks(&self) -> RangeSet<u64> {
        self.chunks.zero_pieces().collect()
    }

    /// The blocks that are zeros, by index.
    pub fn zero_blocks(&self) -> RangeSet<u64> {
        self.blocks.zero_pieces().collect()
    }

    /// The digest of the whole content. It depends only on the size and the bytes of the disk, not
    /// on how the content was computed. Zeros cost nothing, and every stored digest is covered.
    pub fn root(&self) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(ROOT_PREFIX);
        for number in [self.size, CONTENT_CHUNK_BYTES.get(), BLOCK_BYTES.get()] {
            hasher.update(number.to_le_bytes());
        }
        self.chunks.hash_into(&mut hasher);
        self.blocks.hash_into(&mut hasher);
        Digest::from_bytes(hasher.finalize().into())
    }

    /// The blocks that differ from those of `base`, by index. Everything beyond the end of a
    /// shorter base counts as different, even zeros, because the content of a copy of the base is
    /// unknown there.
    pub fn differing(&self, base: &Self) -> RangeSet<u64> {
        let mut differing = self.blocks.differing(&base.blocks);
        let known = base.size / BLOCK_BYTES;
        if base.size < self.size && known < self.blocks.count() {
            differing.insert(known..self.blocks.count());
        }
        differing
    }
}

/// The chunks that contain any of these blocks.
pub fn chunks_of(blocks: &RangeSet<u64>) -> RangeSet<u64> {
    let chunks = blocks
        .iter()
        .map(|range| range.start / CHUNK_BLOCKS..range.end.div_ceil(CHUNK_BLOCKS));
    chunks.collect()
}

/// The chunk that contains a block.
pub fn chunk_of(block: u64) -> u64 {
    block / CHUNK_BLOCKS
}

/// The blocks of these chunks, if the disk has `count` blocks.
pub fn blocks_in(chunks: &Range<u64>, count: u64) -> Range<u64> {
    let first = |chunk| blocks_of(chunk).start.min(count);
    first(chunks.start)..first(chunks.end)
}

/// The number of blocks or chunks in a set.
pub fn count<'r>(pieces: impl IntoIterator<Item = &'r Range<u64>>) -> u64 {
    let pieces = pieces.into_iter();
    pieces.map(|range| range.end - range.start).sum()
}

/// The elements of a set at these positions in it, which must rise.
pub fn elements_at(
    set: &RangeSet<u64>,
    positions: impl IntoIterator<Item = u64>,
) -> impl Iterator<Item = u64> {
    let (mut ranges, mut before) = (set.iter().peekable(), 0);
    positions.into_iter().map_while(move |position| {
        while let Some(range) = ranges.peek()
            && position >= before + (range.end - range.start)
        {
            before += range.end - range.start;
            ranges.next();
        }
        let range = ranges.peek()?;
        Some(range.start + (position - before))
    })
}

/// A range as a set.
pub fn set_of(range: Range<u64>) -> RangeSet<u64> {
    Some(range)
        .filter(|range| !range.is_empty())
        .into_iter()
        .collect()
}

/// The blocks of a chunk.
pub fn blocks_of(chunk: u64) -> Range<u64> {
    let first = chunk.saturating_mul(CHUNK_BLOCKS);
    first..first.saturating_add(CHUNK_BLOCKS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 64 * 1024;

    fn of(bytes: &[u8]) -> Content {
        let mut content = Content::new(bytes.len() as u64);
        for chunk in bytes.chunks(4 << 20) {
            content.push(&ChunkContent::of(chunk));
        }
        content
    }

    fn blocks(numbers: &[u8]) -> Vec<u8> {
        numbers.iter().flat_map(|n| [*n; BLOCK]).collect()
    }

    #[test]
    fn the_root_does_not_depend_on_how_zeros_were_added() {
        let mut bytes = vec![0; (12 << 20) + 5];
        bytes[9 << 20] = 1;
        let content = of(&bytes);
        let mut holes = Content::new(bytes.len() as u64);
        holes.push_hole(2);
        holes.push(&ChunkContent::of(&bytes[8 << 20..12 << 20]));
        holes.push_hole(1);
        assert_eq!(content, holes);
        assert_eq!(content.root(), holes.root());
        // One bit changed, then one byte appended.
        bytes[0] = 1;
        assert_ne!(content.root(), of(&bytes).root());
        assert_ne!(
            Content::new(5).root(),
            Content::new(6).root(),
            "a size is part of it"
        );
    }

    #[test]
    fn the_content_of_a_tebibyte_of_holes_takes_no_memory() {
        let mut content = Content::new(1 << 40);
        content.push_hole((1 << 40) / CONTENT_CHUNK_BYTES);
        assert_eq!(
            (content.chunks.runs.len(), content.blocks.runs.len()),
            (1, 1)
        );
        assert_eq!(content.block(1 << 23), Some(Held::Zeros));
        assert_eq!(content.block(1 << 24), None);
        assert!(content.differing(&content).is_empty());
    }

    #[test]
    fn blocks_beyond_a_shorter_base_differ() {
        let base = of(&blocks(&[1, 0, 0])[..2 * BLOCK + 7]);
        let content = of(&blocks(&[1, 0, 0, 0]));
        let mut differing = content.differing(&base).into_iter();
        assert_eq!((differing.next(), differing.next()), (Some(2..4), None));
        assert!(base.differing(&base).is_empty());
        // The base ends within the last block, so that block differs, unless it is zeros in both.
        let longer = of(&blocks(&[1, 0, 3]));
        let shorter = of(&blocks(&[1, 0, 3])[..2 * BLOCK + 7]);
        assert_eq!(shorter.differing(&longer).into_iter().next(), Some(2..3));
    }

    #[test]
    fn the_digest_of_a_chunk_does_not_depend_on_the_base() {
        let mut bytes = vec![0; (12 << 20) + 5];
        for at in [3, 5 << 20, 12 << 20] {
            bytes[at] = 1;
        }
        let base = of(&bytes);
        let mut next = bytes.clone();
        // A byte in the second chunk, and one in zeros.
        next[(5 << 20) + 1] = 2;
        next[9 << 20] = 3;
        let shorter = &next[..next.len() - 1];
        for (image, same) in [
            (&*bytes, [true; 4]),
            (&next, [true, false, false, true]),
            // The last chunk differs although it has the digest of its only block.
            (shorter, [true, false, false, false]),
        ] {
            let mut content = Content::new(image.len() as u64);
            for (index, chunk) in (0..).zip(image.chunks(4 << 20)) {
                let (chunk, is_same) = ChunkContent::beside(chunk, Some((&base, index)));
                assert_eq!(is_same, same[index as usize], "{index}");
                content.push(&chunk);
            }
            assert_eq!(content, of(image));
        }
        // The digest is taken from the base, not computed.
        let mut other = base.clone();
        let Some((_, Run::Data(digests))) = other.chunks.runs.first_mut() else {
            panic!("the first chunk holds data");
        };
        digests[0] ^= 1;
        let (taken, _) = ChunkContent::beside(&bytes[..4 << 20], Some((&other, 0)));
        assert_ne!(taken.digest, ChunkContent::of(&bytes[..4 << 20]).digest);
    }

    #[test]
    fn blocks_and_their_chunks() {
        let set: RangeSet<u64> = [0..1, 63..65, 200..201].into_iter().collect();
        let chunks: Vec<_> = chunks_of(&set).into_iter().collect();
        assert_eq!(chunks, [0..2, 3..4]);
        assert_eq!(blocks_of(1), 64..128);
    }

    proptest! {
        #[test]
        fn the_difference_lists_exactly_the_changed_blocks(
            old in proptest::collection::vec(0_u8..3, 1..150),
            new in proptest::collection::vec(0_u8..3, 1..150),
        ) {
            let (old, new) = match old.len() <= new.len() {
                true => (old, new),
                false => (new, old),
            };
            // One byte for each block is enough for digests, and fast.
            let digests = |numbers: &[u8]| {
                let mut digests = Digests::new(BLOCK_DIGEST_BYTES);
                for number in numbers {
                    match number {
                        0 => digests.zeros(1),
                        n => digests.data(&[*n; BLOCK_DIGEST_BYTES]),
                    }
                    .unwrap();
                }
                digests
            };
            let differing = digests(&new).differing(&digests(&old));
            for (i, number) in new.iter().enumerate() {
                let is_same = old.get(i) == Some(number);
                prop_assert_eq!(differing.contains(&(i as u64)), !is_same, "{}", i);
            }
            for (i, number) in new.iter().enumerate() {
                let expected = [*number; BLOCK_DIGEST_BYTES];
                let held = match number {
                    0 => Held::Zeros,
                    _ => Held::Data(&expected),
                };
                let new = digests(&new);
                prop_assert_eq!(new.get(i as u64), Some(held));
            }
        }
    }
}
