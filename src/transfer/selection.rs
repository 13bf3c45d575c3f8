//! A part of an image: what is sent where the rest is known to be there.

use std::ops::Range;
use std::sync::Arc;

use rangemap::RangeSet;

use crate::chunk::DataChunk;
use crate::content::{Content, Held, blocks_of, chunks_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// What of an image is sent, and what it must be: an image that is not what its
/// content tells changed since that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    content: Arc<Content>,
    chunks: RangeSet<u64>,
    /// Of these chunks only these blocks; all of them without.
    blocks: Option<RangeSet<u64>>,
}

impl Selection {
    /// Whole chunks, by their index in `content`. Of other chunks nothing is sent.
    pub fn chunks(content: Arc<Content>, chunks: RangeSet<u64>) -> Self {
        Self {
            content,
            chunks,
            blocks: None,
        }
    }

    /// Blocks, by their index in `content`, and nothing else; neighbours in one
    /// request, as far as they are of one chunk. A chunk that is zeros is sent whole,
    /// which is less.
    pub fn blocks(content: Arc<Content>, blocks: RangeSet<u64>) -> Self {
        Self {
            content,
            chunks: chunks_of(&blocks),
            blocks: Some(blocks),
        }
    }

    /// Whether it is of blocks.
    pub fn is_of_blocks(&self) -> bool {
        self.blocks.is_some()
    }

    /// The chunks of which nothing is sent.
    pub(super) fn left_out(&self) -> RangeSet<u64> {
        self.chunks
            .gaps(&(0..self.content.plan().count()))
            .collect()
    }

    /// Whether a chunk that was read, or passed over as a hole, is what it must be.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it is not.
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
        let what =
            format!("The image changed while it was read: what was at byte {offset} differs");
        Err(Error::new(ErrorKind::Integrity, what)
            .hint_to("Publish an image that nothing writes to"))
    }

    /// The bytes of a chunk to send, as ranges within it; `None` for all of it.
    pub(super) fn ranges(&self, chunk: &DataChunk) -> Option<Vec<Range<usize>>> {
        let blocks = self.blocks.as_ref()?;
        let (span, plan) = (chunk.span(), self.content.block_plan());
        let within = |offset: u64| usize::try_from(offset - span.offset).unwrap_or(usize::MAX);
        let all = blocks_of(span.index);
        let ranges = blocks.overlapping(&all).map(|range| {
            let bytes = plan.bytes_of(&(range.start.max(all.start)..range.end.min(all.end)));
            within(bytes.start)..within(bytes.end)
        });
        let ranges: Vec<_> = ranges.collect();
        let is_all = matches!(&*ranges, [one] if one.len() == chunk.bytes().len());
        (!is_all).then_some(ranges)
    }
}
