//! LZ4 frames (the LZ4 Frame Format, 1.6.4).

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use super::member::Member;
use super::source::Packed;
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind};
use crate::number::le64;

/// The first bytes of a frame.
pub(super) const MAGIC: &[u8] = &[0x04, 0x22, 0x4d, 0x18];
/// The first bytes of a frame in the legacy format.
pub(super) const LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

/// One frame.
pub(super) struct Frame(FrameDecoder<Packed>);

impl Frame {
    /// Reads a frame.
    ///
    /// # Errors
    /// Our own for a frame in the legacy format, which has neither an end mark nor a checksum: a
    /// truncated one would look complete.
    pub(super) fn open(mut source: Packed) -> io::Result<Self> {
        if source.peek(LEGACY_MAGIC.len())?.starts_with(LEGACY_MAGIC) {
            let what =
                "The image is in the legacy LZ4 format, which has no checksum and no end mark";
            let error = Error::new(ErrorKind::Image, what)
                .permanent()
                .hint_to(advice![
                    "Decompress it with: lz4 -dc FILE | ",
                    Remedy::UploadStdin(None),
                ]);
            return Err(io::Error::other(error));
        }
        Ok(Self(FrameDecoder::new(source)))
    }
}

impl Read for Frame {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(bytes)?;
        // The decoder mistakes the end of the source for the end of the frame. A complete frame has
        // an end mark, after which the decoder requests no more bytes.
        match n == 0 && !bytes.is_empty() && self.0.get_ref().is_past_end() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(n),
        }
    }
}

impl Member for Frame {
    fn into_source(self: Box<Self>) -> Packed {
        self.0.into_inner()
    }
}

/// The size of the content according to the header of a frame.
pub(super) fn content_size(head: &[u8]) -> Option<u64> {
    const HAS_SIZE: u8 = 8;
    let flags = *head.get(4).filter(|_| head.starts_with(MAGIC))?;
    le64(head, 6).filter(|_| flags & HAS_SIZE != 0)
}
