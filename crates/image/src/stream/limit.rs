//! Limits the memory of decoders. A compressed image itself states how far its decoder has to look
//! back, and thus how much memory that needs.

use std::fmt;

/// Maximum memory for decompressing, in bytes. It is the most that the compressors themselves
/// support: `zstd --ultra --long=31` looks back 2 GiB, `xz` 1.5 GiB. Pages of it are used only as
/// far as the image is read, so a small image that claims a large window costs no more than its
/// content.
pub(super) const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// [`MEMORY_BYTES_MAX`] for Zstandard, which expresses windows as powers of two: 2^31 bytes.
/// libzstd has no larger ones (`ZSTD_WINDOWLOG_MAX`), and accepts only 2^27 bytes unless a limit is
/// set.
pub(super) const ZSTD_WINDOW_LOG_MAX: u32 = 31;

/// The error of a decoder that needs more.
#[derive(Debug)]
pub(super) struct OverLimit {
    /// How many bytes it needs, if known.
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
