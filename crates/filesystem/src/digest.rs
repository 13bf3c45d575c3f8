//! The SHA-256 of a part of a file.

use std::fs::File;
use std::io;
use std::ops::Range;

use openhosting_base::chunk::zeros;
use openhosting_base::digest::Digest;
use openhosting_system::{FileAt, NextData, next_data};
use sha2::{Digest as _, Sha256};

/// Bytes of a file to read at a time, few enough to stay in the processor's cache.
const STEP_BYTES: usize = 256 * 1024;

/// The digest of these bytes of a file, which must have them. Holes are not read. Blocks.
///
/// # Errors
/// If they cannot be read.
pub fn digest_of(file: &File, range: Range<u64>) -> io::Result<Digest> {
    let mut sha256 = Sha256::new();
    let mut bytes = vec![0; STEP_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let data = match next_data(file, offset) {
            NextData::At(data) => data.clamp(offset, range.end),
            // Only holes follow up to the end of the file. Beyond the end there is no hole.
            NextData::Nowhere if file.metadata()?.len() >= range.end => range.end,
            // A device, or a file system that does not report holes.
            NextData::Nowhere | NextData::Unknown => offset,
        };
        for step in zeros(data - offset) {
            sha256.update(step);
        }
        offset = data;
        let left = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
        let step = &mut bytes[..left.min(STEP_BYTES)];
        file.read_exact_at(step, offset)?;
        sha256.update(&*step);
        offset += step.len() as u64;
    }
    Ok(Digest::from_bytes(sha256.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_with_holes_has_the_digest_of_its_bytes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[1; 70_000], 1 << 20).unwrap();
        file.write_all_at(b"end", (2 << 20) + 9).unwrap();
        let mut all = vec![0; 3 << 20];
        file.read_exact_at(&mut all, 0).unwrap();
        for range in [0..3 << 20, 5..(1 << 20) + 5, (2 << 20) + 8..(2 << 20) + 11] {
            let bytes = &all[range.start as usize..range.end as usize];
            let digest = digest_of(&file, range.clone()).unwrap();
            assert_eq!(digest, Digest::of(bytes), "{range:?}");
        }
        for range in [0..(3 << 20) + 1, (3 << 20)..(3 << 20) + 1] {
            assert!(digest_of(&file, range).is_err(), "beyond its end");
        }
    }
}
