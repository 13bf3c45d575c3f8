//! An image that may have changed since an earlier run: which of the chunks that
//! are on the drive are not what the image holds now.

use rangemap::RangeSet;

use crate::chunk::is_zero;
use crate::digest::ChunkDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Disk, Image};
use crate::journal::{Journal, State};
use crate::plan::Plan;

/// Reads the settled chunks of an image again and compares them with the
/// journal. Holes are looked at only where the file has data now. Blocks.
///
/// # Errors
/// [`ErrorKind::Integrity`] for an image that can only be read once from its
/// start; otherwise what reading says.
pub(super) fn changed(
    image: &Image,
    plan: &Plan,
    journal: &Journal,
    state: &State,
) -> Result<RangeSet<u64>> {
    let Some(image) = image.disk() else {
        return Err(Error::new(
            ErrorKind::Integrity,
            "The image was written to since the upload began",
        )
        .hint_to("Start over with --restart"));
    };
    differing(image, plan, journal.digests()?, &state.holes)
}

/// The chunks of an image that are not what is said of them: that they have these
/// digests, or are zero. Holes are looked at only where the file has data. Blocks.
///
/// # Errors
/// What reading says.
pub(super) fn differing(
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
