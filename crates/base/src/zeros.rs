//! Finds zeros in bytes, and provides them.

use std::ops::Range;

/// Blocks are checked for zeros as a whole; this is the block size of most file systems.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// The runs of 4 KiB blocks that are not all zero; runs are joined if there are fewer than
/// `hole_bytes_min` zeros between them. The first block began `into` bytes before `bytes`.
/// Everything outside the ranges in `read` is known to be zeros and is not inspected.
pub fn data(
    bytes: &[u8],
    read: &[Range<usize>],
    into: usize,
    hole_bytes_min: usize,
) -> Vec<Range<usize>> {
    let mut data: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for range in read {
        // A range may begin in the block in which the one before ended.
        let block = (range.start + into) / BLOCK_BYTES * BLOCK_BYTES;
        start = start.max(block.saturating_sub(into));
        while start < range.end {
            let next = (start + into) / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES - into;
            let end = next.min(bytes.len());
            if !is_zero(&bytes[start..end]) {
                match data.last_mut() {
                    Some(last) if start - last.end < hole_bytes_min => last.end = end,
                    _ => data.push(start..end),
                }
            }
            start = end;
        }
    }
    data
}

/// Yields `len` zeros, in slices, for writing or hashing.
pub fn zeros(mut len: u64) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    std::iter::from_fn(move || {
        let step = len.min(ZEROS.len() as u64);
        len -= step;
        let step = usize::try_from(step).ok().filter(|step| *step > 0)?;
        Some(&ZEROS[..step])
    })
}

/// Whether all bytes are zero. The slice is compared with itself shifted by one byte, which the
/// compiler turns into `memcmp`: tens of GB/s, so that it never limits a transfer.
pub fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == &bytes[..bytes.len() - 1],
    }
}
