//! A part of an image to send, if the rest is known to be on the drive.

use std::ops::Range;
use std::sync::Arc;

use rangemap::RangeSet;

use crate::chunk::{DataChunk, is_zero};
use crate::content::{Content, Held, block_digest, blocks_of, chunks_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// What to send of an image, and what it must contain: if the image does not match this content, it
/// changed since the content was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    content: Arc<Content>,
    chunks: RangeSet<u64>,
    /// Of these chunks, only these blocks; all blocks if `None`.
    blocks: Option<RangeSet<u64>>,
}

impl Selection {
    /// Whole chunks, by their index in `content`. Nothing of other chunks is sent.
    pub(crate) fn chunks(content: Arc<Content>, chunks: RangeSet<u64>) -> Self {
        Self {
            content,
            chunks,
            blocks: None,
        }
    }

    /// Blocks, by their index in `content`, and nothing else. Neighbours within a chunk go in one
    /// request. A chunk of zeros is sent as a whole, because that is less.
    pub(crate) fn blocks(content: Arc<Content>, blocks: RangeSet<u64>) -> Self {
        Self {
            content,
            chunks: chunks_of(&blocks),
            blocks: Some(blocks),
        }
    }

    /// Whether it consists of blocks.
    pub(crate) fn is_of_blocks(&self) -> bool {
        self.blocks.is_some()
    }

    /// The chunks of which nothing is sent.
    pub(super) fn left_out(&self) -> RangeSet<u64> {
        self.chunks
            .gaps(&(0..self.content.plan().count()))
            .collect()
    }

    /// Checks that a chunk that was read, or skipped as a hole, matches the content.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it does not.
    pub(super) fn check(&self, index: u64, digest: Option<&Digest>) -> Result<()> {
        let is_same = match (self.content.chunk(index), digest) {
            (Some(Held::Data(expected)), Some(digest)) => expected == digest.as_bytes(),
            (Some(Held::Zeros), None) => true,
            _ => false,
        };
        if is_same {
            return Ok(());
        }
        let offset = self
            .content
            .plan()
            .span(index)
            .map_or(0, |span| span.offset);
        Err(changed(offset))
    }

    /// Checks that what is sent of a chunk with data matches the content. Returns the digest of the
    /// chunk that the drive holds afterwards. In a selection of blocks, the other blocks are not
    /// sent, so changes in them do not matter.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it does not.
    pub(super) fn check_data(&self, chunk: &DataChunk) -> Result<Digest> {
        let index = chunk.span().index;
        let (Some(blocks), Some(goal @ Held::Data(_))) = (&self.blocks, self.content.chunk(index))
        else {
            let digest = Digest::of(chunk.bytes());
            return self.check(index, Some(&digest)).map(|()| digest);
        };
        let plan = self.content.block_plan();
        for block in within(blocks, index).flatten() {
            let Some(span) = plan.span(block) else {
                continue;
            };
            let start = usize::try_from(span.offset - chunk.span().offset).unwrap_or(usize::MAX);
            let len = usize::try_from(span.len).unwrap_or(usize::MAX);
            let bytes = chunk.bytes().get(start..start.saturating_add(len));
            let is_same = bytes.is_some_and(|bytes| match self.content.block(block) {
                Some(Held::Zeros) => is_zero(bytes),
                Some(Held::Data(expected)) => block_digest(&Digest::of(bytes)) == expected,
                None => false,
            });
            if !is_same {
                return Err(changed(span.offset));
            }
        }
        goal.sha256()
            .ok_or_else(|| Error::new(ErrorKind::Bug, "The digest of a chunk is no SHA-256"))
    }

    /// The bytes of a chunk to send, as ranges within it; `None` for all.
    pub(super) fn ranges(&self, chunk: &DataChunk) -> Option<Vec<Range<usize>>> {
        let blocks = self.blocks.as_ref()?;
        let (span, plan) = (chunk.span(), self.content.block_plan());
        let at = |offset: u64| usize::try_from(offset - span.offset).unwrap_or(usize::MAX);
        let ranges = within(blocks, span.index).map(|range| {
            let bytes = plan.bytes_of(&range);
            at(bytes.start)..at(bytes.end)
        });
        let ranges: Vec<_> = ranges.collect();
        let is_all = matches!(&*ranges, [one] if one.len() == chunk.bytes().len());
        (!is_all).then_some(ranges)
    }
}

/// The blocks of this set that are in a chunk.
fn within(blocks: &RangeSet<u64>, chunk: u64) -> impl Iterator<Item = Range<u64>> {
    let all = blocks_of(chunk);
    blocks
        .overlapping(all.clone())
        .map(move |range| range.start.max(all.start)..range.end.min(all.end))
}

fn changed(offset: u64) -> Error {
    let what = format!("The image changed while it was read: what was at byte {offset} differs");
    Error::new(ErrorKind::Integrity, what).hint_to("Publish an image that nothing writes to")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;
    use crate::chunk::RawChunk;
    use crate::content::{CONTENT_CHUNK_BYTES, ChunkContent, set_of};

    const BLOCK: usize = 64 * 1024;

    #[test]
    fn only_blocks_that_are_sent_must_be_unchanged() {
        let mut bytes = vec![0; 5 * BLOCK + 7];
        for block in [0, 2, 5] {
            bytes[block * BLOCK + 1] = 1;
        }
        let mut content = Content::new(bytes.len() as u64);
        content.push(&ChunkContent::of(&bytes));
        let goal = Digest::of(&bytes);
        let selection = |blocks: &[u64]| {
            let blocks = blocks.iter().map(|block| *block..block + 1).collect();
            Selection::blocks(Arc::new(content.clone()), blocks)
        };
        let pool = BufferPool::new(1);
        let check = |selection: &Selection, bytes: &[u8]| {
            let mut buffer = pool.take(bytes.len()).unwrap();
            buffer.copy_from_slice(bytes);
            let span = content.plan().span(0).unwrap();
            selection.check_data(&RawChunk::new(span, buffer).check().unwrap())
        };
        let all = Selection::chunks(Arc::new(content.clone()), set_of(0..1));
        let zeros = selection(&[1, 3]);
        let data = selection(&[2, 5]);
        for selection in [&all, &zeros, &data] {
            assert_eq!(check(selection, &bytes).unwrap(), goal);
        }
        assert!(bytes.len() < CONTENT_CHUNK_BYTES.get() as usize);
        for (at, fits) in [
            // In a block that is not selected, in one of zeros, in one with data, in the short last
            // one.
            (4 * BLOCK, [false, true, true]),
            (3 * BLOCK + 9, [false, false, true]),
            (2 * BLOCK, [false, true, false]),
            (5 * BLOCK + 6, [false, true, false]),
        ] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            for (selection, fits) in [&all, &zeros, &data].into_iter().zip(fits) {
                let checked = check(selection, &other);
                assert_eq!(checked.is_ok(), fits, "byte {at} of {selection:?}");
                if let Err(error) = checked {
                    assert_eq!(error.kind(), ErrorKind::Integrity);
                }
            }
        }
    }
}
