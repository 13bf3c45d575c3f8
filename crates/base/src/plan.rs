//! The division of an image into chunks: arithmetic over sizes and offsets in bytes.

use std::num::NonZeroU64;
use std::ops::Range;

/// Default bytes of a chunk: 5 MiB, as in the documentation of the service
/// (docs/dev/reference.md, 2.6).
pub const CHUNK_BYTES_DEFAULT: NonZeroU64 = NonZeroU64::new(5 * 1024 * 1024).unwrap();

/// The value for an unknown size. No disk is that large, because an offset is a signed number.
const ENDLESS_BYTES: u64 = i64::MAX.cast_unsigned();

/// The position of one chunk in the image, and so on the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Index of the chunk in the whole image, from 0.
    pub index: u64,
    /// Offset of its first byte.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
}

impl Span {
    /// The first byte after it.
    pub fn end(self) -> u64 {
        self.offset + self.len
    }
}

/// The division of an image into chunks of the same size, except the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    size: u64,
    chunk: NonZeroU64,
}

impl Plan {
    /// A plan for an image of `size` bytes in chunks of `chunk` bytes.
    pub fn new(size: u64, chunk: NonZeroU64) -> Self {
        Self { size, chunk }
    }

    /// A plan for an image of unknown size: as long as possible.
    pub fn endless(chunk: NonZeroU64) -> Self {
        Self::new(ENDLESS_BYTES, chunk)
    }

    /// Whether the size of the image is unknown.
    pub fn is_endless(&self) -> bool {
        self.size == ENDLESS_BYTES
    }

    /// The same division of an image of `size` bytes.
    #[must_use]
    pub fn ending_at(&self, size: u64) -> Self {
        Self::new(size, self.chunk)
    }

    /// The same image in chunks of `chunk` bytes.
    #[must_use]
    pub fn in_chunks_of(&self, chunk: NonZeroU64) -> Self {
        Self::new(self.size, chunk)
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of every chunk but the last.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk.get()
    }

    /// How many chunks there are.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(self.chunk.get())
    }

    /// The index of the chunk that contains the byte at `offset`.
    pub fn index_of(&self, offset: u64) -> u64 {
        offset / self.chunk
    }

    /// The span of chunk `index`; `None` beyond the end.
    pub fn span(&self, index: u64) -> Option<Span> {
        let offset = index.checked_mul(self.chunk.get())?;
        (offset < self.size).then(|| Span {
            index,
            offset,
            len: self.chunk.get().min(self.size - offset),
        })
    }

    /// The chunks that are completely within `bytes`.
    pub fn within(&self, bytes: Range<u64>) -> Range<u64> {
        let first = bytes.start.div_ceil(self.chunk.get());
        let end = if bytes.end >= self.size {
            self.count()
        } else {
            bytes.end / self.chunk
        };
        first..end.max(first)
    }

    /// The bytes of a range of chunks, up to the end of the image.
    pub fn bytes_of(&self, chunks: &Range<u64>) -> Range<u64> {
        let start = chunks.start.saturating_mul(self.chunk.get()).min(self.size);
        let end = chunks.end.saturating_mul(self.chunk.get()).min(self.size);
        start..end.max(start)
    }

    /// Number of bytes in a range of chunks.
    pub fn bytes_in(&self, chunks: &Range<u64>) -> u64 {
        let bytes = self.bytes_of(chunks);
        bytes.end - bytes.start
    }

    /// Number of bytes in several ranges of chunks.
    pub fn bytes_in_all<'r>(&self, ranges: impl IntoIterator<Item = &'r Range<u64>>) -> u64 {
        ranges.into_iter().map(|range| self.bytes_in(range)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(size: u64, chunk: u64) -> Plan {
        Plan::new(size, NonZeroU64::new(chunk).unwrap())
    }

    #[test]
    fn the_example_of_the_api_documentation_has_two_chunks() {
        let plan = plan(10_000_000, CHUNK_BYTES_DEFAULT.get());
        assert_eq!(plan.count(), 2);
        let last = plan.span(1).unwrap();
        assert_eq!((last.offset, last.len), (5_242_880, 4_757_120));
        assert_eq!(plan.span(2), None);
    }

    #[test]
    fn only_whole_chunks_are_inside_a_hole() {
        let plan = plan(95, 10);
        assert_eq!(plan.within(5..35), 1..3);
        assert_eq!(plan.within(5..95), 1..10);
        assert_eq!(plan.within(91..95), 10..10);
        assert_eq!(plan.within(11..19), 2..2);
        assert_eq!(plan.bytes_of(&(8..10)), 80..95);
        assert_eq!(plan.bytes_in(&(8..10)), 15);
    }

    proptest! {
        #[test]
        fn the_chunks_tile_the_image(size in 0_u64..1 << 50, chunk in 1_u64..1 << 40) {
            let plan = plan(size, chunk);
            let count = plan.count();
            prop_assert_eq!(plan.bytes_in(&(0..count)), size);
            prop_assert!(plan.span(count).is_none());
            if let Some(last) = count.checked_sub(1).and_then(|i| plan.span(i)) {
                prop_assert_eq!(last.end(), size);
                prop_assert!(last.len >= 1 && last.len <= chunk);
                prop_assert_eq!(plan.index_of(last.offset), last.index);
            }
        }
    }
}
