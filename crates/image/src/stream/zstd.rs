//! Zstandard (RFC 8878), by libzstd.

use std::io::{self, Read};

use zstd::stream::read::Decoder;

use super::limit::{OverLimit, ZSTD_WINDOW_LOG_MAX};
use super::source::Packed;

/// The first bytes of a frame.
pub(super) const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bytes of the longest header of a frame.
pub(super) const HEADER_BYTES: usize = 18;

/// Decodes all frames.
pub(super) struct Zstd {
    decoder: Decoder<'static, Packed>,
    /// The window of the first frame.
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
            // The library has error numbers, but the crate passes on only their texts.
            let text = cause.to_string();
            if text.contains("requires too much memory") {
                let limit = 1 << ZSTD_WINDOW_LOG_MAX;
                let needed = self.window.filter(|window| *window > limit);
                return io::Error::other(OverLimit { needed });
            }
            match text.contains("not enough memory") {
                true => io::ErrorKind::OutOfMemory.into(),
                false => cause,
            }
        })
    }
}

/// How far the decoder of a frame has to look back, in bytes (RFC 8878, 3.1.1.1.2); `None` if that
/// is the whole content.
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
    fn the_window_is_that_of_the_header() {
        let head = |descriptor, window| [MAGIC, &[descriptor, window]].concat();
        assert_eq!(window(&head(0, 0)), Some(1024));
        assert_eq!(window(&head(0, 7)), Some(1920));
        assert_eq!(window(&head(4, 20 << 3)), Some(1 << 30));
        assert_eq!(window(&head(0x20, 20 << 3)), None);
        assert_eq!(window(b"\x28\xb5"), None);
    }
}
