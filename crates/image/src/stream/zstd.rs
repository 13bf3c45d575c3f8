//! Zstandard (RFC 8878), by libzstd.

use std::io::{self, Read};

use zstd::stream::read::Decoder;

use super::limit::{OverLimit, ZSTD_WINDOW_LOG_MAX};
use super::source::Packed;

/// The first bytes of a frame.
pub(super) const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Maximum bytes of the header of a frame: magic number 4, descriptor 1, window 1, dictionary 4,
/// and size of the content 8 (RFC 8878, 3.1.1.1).
pub(super) const HEADER_BYTES: usize = 18;

// Parts of the texts of two errors of libzstd. The library has error numbers, but the crate passes
// on only the texts. A test below fails if an update changes them.
/// A frame has a larger window than the limit.
const WINDOW_TOO_LARGE: &str = "requires too much memory";
/// The system has no more memory.
const NO_MEMORY: &str = "not enough memory";

/// Decodes all frames.
pub(super) struct Zstd {
    decoder: Decoder<'static, Packed>,
    /// The window of the first frame, for the message if it is too large. The windows of later
    /// frames are not known here: the decoder reads them.
    window: Option<u64>,
}

impl Zstd {
    /// Reads frames to the end.
    pub(super) fn open(mut source: Packed) -> io::Result<Self> {
        let window = window(source.peek(HEADER_BYTES)?);
        let mut decoder = Decoder::with_buffer(source)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(Self { decoder, window })
    }
}

impl Read for Zstd {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(bytes).map_err(|cause| {
            let text = cause.to_string();
            if text.contains(WINDOW_TOO_LARGE) {
                let limit = 1 << ZSTD_WINDOW_LOG_MAX;
                // If the first frame is within the limit, a later one is not, and its window is
                // unknown.
                let needed = self.window.filter(|window| *window > limit);
                return io::Error::other(OverLimit { needed });
            }
            match text.contains(NO_MEMORY) {
                true => io::ErrorKind::OutOfMemory.into(),
                false => cause,
            }
        })
    }
}

/// How far the decoder of a frame has to look back, in bytes (RFC 8878, 3.1.1.1.2).
///
/// `None` if the header does not state it: if the frame is a single segment, whose window is its
/// whole content, or if `head` is not, or not all of, the header of a frame.
fn window(head: &[u8]) -> Option<u64> {
    const IS_SINGLE: u8 = 0x20;
    let descriptor = *head.get(4).filter(|_| head.starts_with(MAGIC))?;
    let window = *head.get(5).filter(|_| descriptor & IS_SINGLE == 0)?;
    let base = 1_u64 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

/// The size of the content according to the header of a frame.
pub(super) fn content_size(head: &[u8]) -> Option<u64> {
    zstd::zstd_safe::get_frame_content_size(head).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_describes_its_errors_with_the_expected_words() {
        // From zstd_errors.h, where the numbers are promised to stay. Functions return them
        // negated.
        let text = |number: usize| zstd::zstd_safe::get_error_name(number.wrapping_neg());
        assert!(text(16).contains(WINDOW_TOO_LARGE), "{}", text(16));
        assert!(text(64).contains(NO_MEMORY), "{}", text(64));
    }

    #[test]
    fn the_window_is_that_of_the_header() {
        let head = |descriptor, window| [MAGIC, &[descriptor, window]].concat();
        assert_eq!(window(&head(0, 0)), Some(1024));
        assert_eq!(window(&head(0, 7)), Some(1920));
        assert_eq!(window(&head(4, 20 << 3)), Some(1 << 30));
        assert_eq!(window(&head(0x20, 20 << 3)), None);
        assert_eq!(window(b"\x28\xb5"), None);
    }
}
