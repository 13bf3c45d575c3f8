//! How much memory a decoder may take. A compressed image says itself how far its decoder
//! has to look back, and so how much memory that takes.

use std::fmt;

/// Most memory that decompressing may take, in bytes. It is what the tools themselves can
/// be told to use at most: `zstd --ultra --long=31` looks back 2 GiB, `xz` 1.5 GiB. Pages of
/// it are used only as far as the image is read, so that a small image that claims a large
/// window costs what it holds.
pub(super) const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// The same for Zstandard, as it tells windows: a power of two.
pub(super) const ZSTD_WINDOW_LOG_MAX: u32 = 31;

/// The error of a decoder that would take more.
#[derive(Debug)]
pub(super) struct OverLimit {
    /// What it would take, in bytes, if that is known.
    pub(super) needed: Option<u64>,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let limit = mib(MEMORY_BYTES_MAX);
        match self.needed {
            Some(needed) => write!(
                f,
                "needs {} MiB of memory to decompress, and the limit is {limit}",
                mib(needed)
            ),
            None => write!(
                f,
                "needs more memory to decompress than the limit of {limit} MiB"
            ),
        }
    }
}

impl std::error::Error for OverLimit {}
