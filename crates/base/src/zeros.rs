//! Zeros in bytes: where they are, and as many as are wanted.

use std::ops::Range;

/// Bytes that are all zero or not as one: the block of most file systems.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// The runs of blocks of 4 KiB that are not all zero, with the runs of less than
/// `hole_bytes_min` zeros between them. The first block began `into` bytes earlier.
/// Beyond the ranges in `read` all is zeros, and nothing is looked at.
pub fn data(
    bytes: &[u8],
    read: &[Range<usize>],
    into: usize,
    hole_bytes_min: usize,
) -> Vec<Range<usize>> {
    let mut data: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for range in read {
        // The block in which a range begins may be that in which the one before ended.
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

/// So many zeros in bytes, to write or to hash, a step at a time.
pub fn zeros(mut len: u64) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    std::iter::from_fn(move || {
        let step = len.min(ZEROS.len() as u64);
        len -= step;
        let step = usize::try_from(step).ok().filter(|step| *step > 0)?;
        Some(&ZEROS[..step])
    })
}

/// Whether all bytes are zero. The slice is compared with itself, one byte
/// apart, which the compiler turns into `memcmp`: tens of GB/s, so never what
/// limits a transfer.
pub fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == &bytes[..bytes.len() - 1],
    }
}
