//! Frames without content, which Zstandard and LZ4 share (RFC 8878, 3.1.2): one of 16 magic
//! numbers, four bytes of length, and that many bytes to skip. pzstd and seekable Zstandard write
//! them, also at the start, so that the compressed data may begin only after them.

use std::io::{self, Read};

use super::source::Source;
use crate::number::le32;

/// Bytes of a frame before its payload.
pub(super) const HEADER_BYTES: u64 = 8;

/// Whether this is the beginning of such a frame.
pub(super) fn is_start(head: &[u8]) -> bool {
    matches!(head, [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50)
}

/// The length of a frame with this beginning, including its header; `None` if it is no such frame,
/// or the length is incomplete.
pub(super) fn length(head: &[u8]) -> Option<u64> {
    let payload = le32(head, 4).filter(|_| is_start(head))?;
    Some(HEADER_BYTES + u64::from(payload))
}

/// Skips all such frames that come next.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if one of them is cut off.
pub(super) fn skip<R: Read>(source: &mut Source<R>) -> io::Result<()> {
    loop {
        let head = source.peek(HEADER_BYTES as usize)?;
        match (is_start(head), length(head)) {
            (false, _) => return Ok(()),
            (true, Some(bytes)) => source.skip(bytes)?,
            (true, None) => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(variant: u8, held: &[u8]) -> Vec<u8> {
        let len = u32::try_from(held.len()).unwrap().to_le_bytes();
        [&[0x50 + variant, 0x2a, 0x4d, 0x18], &len[..], held].concat()
    }

    #[test]
    fn skippable_frames_of_all_kinds_and_lengths_are_skipped() {
        let frames: Vec<u8> = (0..16)
            .flat_map(|variant| frame(variant, &vec![7; usize::from(variant) * 1000]))
            .collect();
        let all = [&frames[..], b"rest"].concat();
        let mut source = Source::new(&all[..], 64);
        skip(&mut source).unwrap();
        assert_eq!(source.consumed(), frames.len() as u64);
        assert_eq!(source.peek(4).unwrap(), b"rest");
        for bytes in [
            &b"\x60\x2a\x4d\x18\0\0\0\0"[..],
            b"\x4f\x2a\x4d\x18\0\0\0\0",
            b"",
        ] {
            assert!(!is_start(bytes), "{bytes:?}");
        }
        for cut in [5, 7, 9] {
            let cut = &frame(3, b"held")[..cut];
            let error = skip(&mut Source::new(cut, 64)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
