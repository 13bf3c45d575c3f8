//! Compares an image that may have changed since an earlier run with what that run recorded.

use rangemap::RangeSet;

use crate::chunk::is_zero;
use crate::digest::ChunkDigest;
use crate::error::Result;
use crate::image::Disk;
use crate::plan::Plan;

/// The chunks of an image that no longer match their records, which are a digest, or that they are
/// zero. Holes are inspected only where the file has data. Blocks.
///
/// # Errors
/// Errors of reading.
pub(crate) fn differing(
    image: &dyn Disk,
    plan: &Plan,
    digests: impl IntoIterator<Item = (u64, ChunkDigest)>,
    holes: &RangeSet<u64>,
) -> Result<RangeSet<u64>> {
    let mut differing = RangeSet::new();
    let mut bytes = Vec::new();
    for (index, digest) in digests {
        let Some(span) = plan.span(index) else {
            continue;
        };
        bytes.resize(usize::try_from(span.len).unwrap_or(0), 0);
        image.read_at(&mut bytes, span.offset)?;
        if !digest.is_of(&bytes) {
            differing.insert(index..index + 1);
        }
    }
    for hole in holes.iter() {
        let mut index = hole.start;
        while index < hole.end {
            let Some(span) = plan.span(index) else { break };
            let Some(data) = image.data_after(span.offset)? else {
                break;
            };
            if data.start >= span.end() {
                index = plan.index_of(data.start);
                continue;
            }
            bytes.resize(usize::try_from(span.len).unwrap_or(0), 0);
            image.read_at(&mut bytes, span.offset)?;
            if !is_zero(&bytes) {
                differing.insert(index..index + 1);
            }
            index += 1;
        }
    }
    Ok(differing)
}
