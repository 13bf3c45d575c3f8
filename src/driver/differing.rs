//! Compares an image that may have changed since an earlier run with what that run recorded.

use rangemap::RangeSet;

use crate::chunk::is_zero;
use crate::digest::ChunkDigest;
use crate::driver::stop::Stop;
use crate::error::Result;
use crate::image::Disk;
use crate::plan::Plan;

/// The chunks of an image that no longer match their records, which are a digest, or that they are
/// zero. Holes are inspected only where the file has data. Blocks.
///
/// # Errors
/// Errors of reading; [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
pub(crate) fn differing(
    image: &dyn Disk,
    plan: &Plan,
    digests: impl IntoIterator<Item = (u64, ChunkDigest)>,
    holes: &RangeSet<u64>,
    stop: &Stop,
) -> Result<RangeSet<u64>> {
    let mut differing = RangeSet::new();
    let mut bytes = Vec::new();
    for (index, digest) in digests {
        stop.check()?;
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
            stop.check()?;
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::driver::stop::stop_channel;
    use crate::error::ErrorKind;
    use crate::image::Image;

    #[test]
    fn a_comparison_ends_when_it_is_asked_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.img");
        std::fs::write(&path, [7; 100]).unwrap();
        let image = Image::open_raw(&path).unwrap();
        let plan = Plan::new(100, NonZeroU64::new(10).unwrap());
        let (handle, stop) = stop_channel();
        let holes = RangeSet::from_iter(std::iter::once(5..6));
        let compare = |digests: &[(u64, ChunkDigest)], holes: &RangeSet<u64>| {
            let digests = digests.iter().copied();
            differing(image.disk().unwrap(), &plan, digests, holes, &stop)
        };
        let digests = [7, 8].map(|byte| ChunkDigest::of(&[byte; 10]));
        let digests = [(1, digests[0]), (2, digests[1])];
        let found = compare(&digests, &holes).unwrap();
        assert!(found.iter().eq([&(2..3), &(5..6)]));
        handle.drain();
        for (digests, holes) in [(&digests[..], &RangeSet::new()), (&digests[..0], &holes)] {
            let error = compare(digests, holes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
        }
    }
}
