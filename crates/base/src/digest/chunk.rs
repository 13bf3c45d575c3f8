//! The digest of a chunk as a journal stores it: of all its bytes, or of its data only.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::Digest;
use crate::zeros::data;

/// If less than one byte in this many is in zero blocks, all bytes are hashed: anybody can compute
/// that digest again, including an endpoint.
const WORTH_PART: usize = 8;

/// Identifies the content of a chunk. Since a chunk has one digest of each kind, two digests must
/// not be compared with each other; compare a digest with bytes, by [`is_of`](Self::is_of).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkDigest {
    /// The SHA-256 of all its bytes.
    Whole(Digest),
    /// The SHA-256 of its data: for each run of 4 KiB blocks that are not all zero, its offset
    /// within the chunk and its length, each in 64 bits with the lowest byte first, followed by its
    /// bytes. The zeros of a sparse chunk cost nothing.
    Data(Digest),
}

impl ChunkDigest {
    /// The cheapest digest to compute: of the data only, if a large part of the chunk is zeros.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_data(bytes, &runs(bytes))
    }

    /// As [`of`](Self::of), if the runs of blocks that are not all zero are already known.
    pub(crate) fn of_data(bytes: &[u8], runs: &[Range<usize>]) -> Self {
        let data: usize = runs.iter().map(Range::len).sum();
        match (bytes.len() - data) * WORTH_PART < bytes.len() {
            true => Self::Whole(Digest::of(bytes)),
            false => Self::Data(of_runs(bytes, runs)),
        }
    }

    /// Whether this is the digest of these bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Whole(digest) => Digest::of(bytes) == *digest,
            Self::Data(digest) => of_runs(bytes, &runs(bytes)) == *digest,
        }
    }
}

impl From<Digest> for ChunkDigest {
    fn from(digest: Digest) -> Self {
        Self::Whole(digest)
    }
}

/// The runs of blocks that are not all zero.
fn runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let all = 0..bytes.len();
    data(bytes, &[all], 0, 1)
}

fn of_runs(bytes: &[u8], runs: &[Range<usize>]) -> Digest {
    let mut sha256 = Sha256::new();
    for run in runs {
        sha256.update((run.start as u64).to_le_bytes());
        sha256.update((run.len() as u64).to_le_bytes());
        sha256.update(&bytes[run.clone()]);
    }
    Digest(sha256.finalize().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK_BYTES: usize = 4096;
    const CHUNK_BYTES: usize = 8 * BLOCK_BYTES + 100;

    /// Chunks in which some blocks have data.
    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec((0..CHUNK_BYTES, 1..=255_u8), 0..12).prop_map(|bytes| {
            let mut chunk = vec![0; CHUNK_BYTES];
            for (at, byte) in bytes {
                chunk[at] = byte;
            }
            chunk
        })
    }

    proptest! {
        #[test]
        fn one_changed_byte_changes_the_digest(mut chunk in chunk(), at in 0..CHUNK_BYTES, byte: u8) {
            let digests = [ChunkDigest::of(&chunk), Digest::of(&chunk).into()];
            for digest in digests {
                prop_assert!(digest.is_of(&chunk));
            }
            let is_same = chunk[at] == byte;
            chunk[at] = byte;
            for digest in digests {
                prop_assert_eq!(digest.is_of(&chunk), is_same);
            }
        }
    }

    #[test]
    fn moved_data_changes_the_digest() {
        let mut chunk = vec![0; CHUNK_BYTES];
        chunk[BLOCK_BYTES] = 1;
        let digest = ChunkDigest::of(&chunk);
        chunk.rotate_right(BLOCK_BYTES);
        assert!(!digest.is_of(&chunk));
    }

    #[test]
    fn only_a_sparse_chunk_has_the_digest_of_its_data() {
        let dense = vec![1; CHUNK_BYTES];
        assert_eq!(ChunkDigest::of(&dense), Digest::of(&dense).into());
        let mut sparse = vec![0; CHUNK_BYTES];
        sparse[2 * BLOCK_BYTES..4 * BLOCK_BYTES].fill(1);
        let mut hashed = (2 * BLOCK_BYTES as u64).to_le_bytes().to_vec();
        hashed.extend((2 * BLOCK_BYTES as u64).to_le_bytes());
        hashed.extend(&sparse[2 * BLOCK_BYTES..4 * BLOCK_BYTES]);
        assert_eq!(
            ChunkDigest::of(&sparse),
            ChunkDigest::Data(Digest::of(&hashed))
        );
    }
}
