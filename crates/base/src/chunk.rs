//! The path of a chunk as types. Each stage accepts only the type of the stage before it, so the
//! compiler enforces their order:
//!
//! [`RawChunk`] (read from the image) → [`DataChunk`] or a hole (zero check) →
//! [`EncodedChunk`] (compressed, or left alone) → confirmed, which is an entry
//! in the `Ledger` of the engine.

use std::ops::Range;

use bytes::Bytes;

use crate::buffer::Buffer;
use crate::digest::ChunkDigest;
use crate::plan::Span;
use crate::zeros::BLOCK_BYTES;
pub use crate::zeros::{data, is_zero, zeros};

/// What a stage gets from the stage before it, which leaves a chunk as a `C`. Stages return it in a
/// result and an option, for an error and the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<C> {
    /// A chunk.
    Chunk(C),
    /// Chunks, by index, that are all zero.
    Hole(Range<u64>),
    /// The size of the image in bytes, if it was unknown. Comes before the last chunk.
    SizeKnown(u64),
}

/// Bytes of the image, not checked for zeros yet.
#[derive(Debug)]
pub struct RawChunk {
    span: Span,
    bytes: Buffer,
    read: Vec<Range<usize>>,
}

/// A chunk with at least one nonzero byte. Only the zero check creates one.
#[derive(Debug)]
pub struct DataChunk {
    span: Span,
    bytes: Buffer,
    read: Vec<Range<usize>>,
}

/// How the body of a write request is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `Content-Encoding: gzip`.
    Gzip,
    /// The bytes themselves, no `Content-Encoding`.
    Identity,
}

/// A chunk as it is sent: in one write, or in several that leave out the zeros between them. Every
/// attempt sends the same bytes to the same offsets, which makes a repeated write harmless
/// (docs/dev/faults.md, 3.1).
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// Its position.
    pub span: Span,
    /// What to write, in order. The rest of the span is zeros that the drive already has.
    pub parts: Vec<Part>,
    /// The digest of the uncompressed chunk, if it was computed.
    pub digest: Option<ChunkDigest>,
}

/// The content of one write request.
#[derive(Clone, Debug)]
pub struct Part {
    /// Offset on the drive.
    pub offset: u64,
    /// Number of bytes of the drive that it writes.
    pub len: u64,
    /// The body of the request.
    pub body: Bytes,
    /// How the body is encoded.
    pub encoding: Encoding,
}

impl Part {
    /// The size of the request.
    pub fn size(&self) -> RequestSize {
        RequestSize {
            body: self.body.len() as u64,
            range: self.len,
        }
    }
}

/// The size of a request, measured in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSize {
    /// Bytes of its body, or of the response's, as they are transferred.
    pub body: u64,
    /// Bytes of the drive that it reads or writes.
    pub range: u64,
}

impl RequestSize {
    /// Larger than any request.
    pub const ANY: Self = Self {
        body: u64::MAX,
        range: u64::MAX,
    };

    /// A request for `bytes` that are transferred uncompressed.
    pub fn plain(bytes: u64) -> Self {
        Self {
            body: bytes,
            range: bytes,
        }
    }

    /// Whether it is within a limit in both measures.
    pub fn fits(self, most: Self) -> bool {
        self.body <= most.body && self.range <= most.range
    }

    /// The smaller value of each measure.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            body: self.body.min(other.body),
            range: self.range.min(other.range),
        }
    }
}

impl EncodedChunk {
    /// Bytes of all bodies.
    pub fn body_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.body.len() as u64).sum()
    }
}

impl RawChunk {
    /// Its position.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A chunk with the bytes at `span`.
    pub fn new(span: Span, bytes: Buffer) -> Self {
        let all = 0..bytes.len();
        Self::sparse(span, bytes, vec![all])
    }

    /// A chunk of which only these ranges were read, in order; the rest was a hole and is zeros.
    pub fn sparse(span: Span, bytes: Buffer, read: Vec<Range<usize>>) -> Self {
        debug_assert_eq!(span.len, bytes.len() as u64);
        Self { span, bytes, read }
    }

    /// The zero check: `None` if the chunk is all zeros.
    pub fn check(self) -> Option<DataChunk> {
        let Self { span, bytes, read } = self;
        let is_hole = read.iter().all(|range| is_zero(&bytes[range.clone()]));
        (!is_hole).then_some(DataChunk { span, bytes, read })
    }
}

impl DataChunk {
    /// Its position.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The runs of bytes that have to be written if zeros need not be. They begin at the first 4
    /// KiB block with data and end with the last, and leave out runs of `hole_bytes_min` or more
    /// zeros between them. The ranges are in bytes within the chunk; blocks are aligned on the
    /// drive.
    pub fn data(&self, hole_bytes_min: usize) -> Vec<Range<usize>> {
        let into = (self.span.offset % BLOCK_BYTES as u64) as usize;
        data(&self.bytes, &self.read, into, hole_bytes_min)
    }

    /// The cheapest digest to compute: of the data only, if a large part is zeros.
    pub fn digest(&self) -> ChunkDigest {
        ChunkDigest::of_data(&self.bytes, &data(&self.bytes, &self.read, 0, 1))
    }

    /// Returns the buffer with its bytes.
    pub fn into_buffer(self) -> Buffer {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Leaving holes unread changes neither data nor digest.
        #[test]
        fn holes_are_zeros(
            ranges in proptest::collection::btree_set(0..60_000_usize, 0..9),
            full: bool,
            offset in 0..9000_u64,
            hole_bytes_min in 1..20_000_usize,
        ) {
            let len = 60_000;
            let ends: Vec<_> = ranges.into_iter().collect();
            let read: Vec<_> = ends.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let mut bytes = vec![0; len];
            for range in &read {
                let end = if full { range.end } else { range.start + range.len() / 2 };
                bytes[range.start..end].fill(1);
            }
            let buffer = |bytes: &[u8]| {
                let mut buffer = crate::buffer::BufferPool::new(1).take(len).unwrap();
                buffer.copy_from_slice(bytes);
                buffer
            };
            let span = Span { index: 0, offset, len: len as u64 };
            let whole = RawChunk::new(span, buffer(&bytes)).check();
            let sparse = RawChunk::sparse(span, buffer(&bytes), read).check();
            match (whole, sparse) {
                (Some(whole), Some(sparse)) => {
                    prop_assert_eq!(whole.data(hole_bytes_min), sparse.data(hole_bytes_min));
                    prop_assert_eq!(whole.digest(), sparse.digest());
                    prop_assert!(sparse.digest().is_of(&bytes));
                }
                (None, None) => prop_assert!(is_zero(&bytes)),
                (whole, sparse) => prop_assert!(false, "{:?} {:?}", whole, sparse),
            }
        }
    }

    #[test]
    fn a_block_of_zeros_has_the_requested_length() {
        for len in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let steps: Vec<&[u8]> = zeros(len).collect();
            assert!(steps.iter().all(|step| !step.is_empty() && is_zero(step)));
            assert_eq!(steps.iter().map(|step| step.len() as u64).sum::<u64>(), len);
        }
    }

    #[test]
    fn a_chunk_with_one_nonzero_byte_is_data() {
        assert!(is_zero(&[]));
        for len in [1, 2, 7, 8, 9, 4096, 4097] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for i in [0, len / 2, len - 1] {
                bytes[i] = 1;
                assert!(!is_zero(&bytes), "{i} of {len}");
                bytes[i] = 0;
            }
        }
    }
}
