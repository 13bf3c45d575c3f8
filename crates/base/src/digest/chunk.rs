//! The digest of a chunk as a journal tells it: of all its bytes, or of its data only.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::Digest;
use crate::zeros::data;

/// Where fewer bytes than one in so many are such zeros, all are hashed: anybody can
/// make that digest again, an endpoint too.
const WORTH_PART: usize = 8;

/// What tells whether a chunk is the same. Chunks are compared with what a digest is of,
/// never one digest with another: a chunk has one of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkDigest {
    /// The SHA-256 of its bytes.
    Whole(Digest),
    /// The SHA-256 of its data: of each run of blocks of 4 KiB that are not all zero,
    /// its first byte within the chunk and its length, 64 bits each, the lowest byte
    /// first, and its bytes. The zeros of a sparse chunk cost nothing.
    Data(Digest),
}

impl ChunkDigest {
    /// The digest that takes least: of the data only if much of the chunk is zeros.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_data(bytes, &runs(bytes))
    }

    /// The same of a chunk of which these are the runs of blocks that are not all zero.
    pub(crate) fn of_data(bytes: &[u8], runs: &[Range<usize>]) -> Self {
        let data: usize = runs.iter().map(Range::len).sum();
        match (bytes.len() - data) * WORTH_PART < bytes.len() {
            true => Self::Whole(Digest::of(bytes)),
            false => Self::Data(of_runs(bytes, runs)),
        }
    }

    /// Whether it is the digest of these bytes.
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

    /// Chunks of which some blocks hold something.
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
        fn one_byte_makes_another_digest(mut chunk in chunk(), at in 0..CHUNK_BYTES, byte: u8) {
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
    fn what_moved_is_not_the_same() {
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
        let mut told = (2 * BLOCK_BYTES as u64).to_le_bytes().to_vec();
        told.extend((2 * BLOCK_BYTES as u64).to_le_bytes());
        told.extend(&sparse[2 * BLOCK_BYTES..4 * BLOCK_BYTES]);
        assert_eq!(
            ChunkDigest::of(&sparse),
            ChunkDigest::Data(Digest::of(&told))
        );
    }
}
