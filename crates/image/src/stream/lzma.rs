//! The three formats of LZMA: .xz, .lz (lzip) and .lzma (LZMA-alone), all by liblzma.

use std::io::{self, BufRead, Read};

use liblzma::stream::{Action, CONCATENATED, Error, Status, Stream};

use super::limit::{MEMORY_BYTES_MAX, OverLimit};
use super::member::Member;
use super::source::Packed;
use crate::number::{le32, le64};

/// Bytes of the header of an LZMA-alone file: the properties (1), the size of the dictionary (4) and
/// of the content (8).
const ALONE_HEADER_BYTES: usize = 13;
/// Maximum size of the content in such a header. With a larger one, the bytes are not recognised as
/// such a file. xz and related tools use the same limit.
const ALONE_BYTES_MAX: u64 = 1 << 38;
/// The value in the header for an unknown size.
const ALONE_UNKNOWN: u64 = u64::MAX;
/// Bytes of the header of a member in an lzip file: the magic (4), the version (1) and the size of
/// the dictionary (1).
const LZIP_HEADER_BYTES: u64 = 6;
/// Bytes of the footer of such a member: a checksum (4), the size of the content (8) and of the
/// member (8).
const LZIP_FOOTER_BYTES: u64 = 20;
/// Maximum number of members whose sizes are added up before decompression, which bounds the time:
/// each takes two reads. With more, the size is unknown until the end. The value is a choice: plzip
/// writes members of some MiB.
const LZIP_MEMBERS_MAX: usize = 65_536;

/// Decodes one of the three formats.
pub(super) struct Lzma {
    source: Packed,
    stream: Stream,
    /// Whether nothing may follow the stream.
    is_alone: bool,
    is_over: bool,
}

impl Lzma {
    /// Decodes all streams of an .xz file, with the padding between and after them.
    pub(super) fn xz(source: Packed) -> io::Result<Self> {
        Self::new(
            source,
            Stream::new_stream_decoder(MEMORY_BYTES_MAX, CONCATENATED),
        )
    }

    /// Decodes one member of an .lz file; `Members` reads the others.
    pub(super) fn lzip(source: Packed) -> io::Result<Self> {
        Self::new(source, Stream::new_lzip_decoder(MEMORY_BYTES_MAX, 0))
    }

    /// Decodes an .lzma file, after which nothing may follow.
    pub(super) fn alone(source: Packed) -> io::Result<Self> {
        Ok(Self {
            is_alone: true,
            ..Self::new(source, Stream::new_lzma_decoder(MEMORY_BYTES_MAX))?
        })
    }

    fn new(source: Packed, stream: Result<Stream, Error>) -> io::Result<Self> {
        Ok(Self {
            source,
            stream: stream?,
            is_alone: false,
            is_over: false,
        })
    }

    /// How much memory this decoder needs, in bytes, after it has reached its limit. liblzma reports
    /// only whether a given limit is sufficient, so limits are tried. 1 TiB is always sufficient: a
    /// dictionary has at most 4 GiB. The result is exact to 1 MiB, the unit of the message.
    fn needed(&mut self) -> u64 {
        let (mut too_few, mut enough) = (MEMORY_BYTES_MAX, 1 << 40);
        while enough - too_few > 1 << 20 {
            let middle = too_few + (enough - too_few) / 2;
            match self.stream.set_memlimit(middle) {
                Ok(()) => enough = middle,
                Err(_) => too_few = middle,
            }
        }
        enough
    }
}

impl Read for Lzma {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() || self.is_over {
            return Ok(0);
        }
        loop {
            let input = self.source.fill_buf()?;
            let is_last = input.is_empty();
            let action = match is_last {
                true => Action::Finish,
                false => Action::Run,
            };
            let before = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(input, bytes, action);
            let consumed = usize::try_from(self.stream.total_in() - before.0).unwrap_or(0);
            let n = usize::try_from(self.stream.total_out() - before.1).unwrap_or(0);
            self.source.consume(consumed);
            match status {
                Err(Error::MemLimit) => {
                    let needed = Some(self.needed());
                    return Err(io::Error::other(OverLimit { needed }));
                }
                Err(Error::Mem) => return Err(io::ErrorKind::OutOfMemory.into()),
                Err(cause) => return Err(cause.into()),
                Ok(Status::StreamEnd) => {
                    self.is_over = true;
                    if self.is_alone && !self.source.peek(1)?.is_empty() {
                        let at = self.source.consumed();
                        let what = format!("something follows its end, from byte {at} on");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    return Ok(n);
                }
                Ok(_) if n > 0 => return Ok(n),
                Ok(_) if is_last => return Err(io::ErrorKind::UnexpectedEof.into()),
                // With input and room, a decoder that is not at fault uses one of them. Another
                // attempt would do the same, for ever.
                Ok(_) if consumed == 0 => return Err(io::ErrorKind::InvalidData.into()),
                Ok(_) => {}
            }
        }
    }
}

impl Member for Lzma {
    fn into_source(self: Box<Self>) -> Packed {
        self.source
    }
}

/// Whether this is the beginning of an .lz file: its magic, a version, and a dictionary of 2^12 to
/// 2^29 bytes, whose exponent is in the lower five bits.
pub(super) fn is_lzip(head: &[u8]) -> bool {
    matches!(head, [b'L', b'Z', b'I', b'P', 0 | 1, dictionary, ..] if (12..=29).contains(&(dictionary & 0x1f)))
}

/// Whether this is the beginning of an .lzma file. There is no magic number; the criteria are the
/// properties that all tools write by default, a dictionary of a usual size, a plausible size of
/// the content, and the zero byte that all streams of this coder begin with. A file with other
/// properties counts as raw.
pub(super) fn is_alone(head: &[u8]) -> bool {
    // lc 3, lp 0, pb 2: (pb * 5 + lp) * 9 + lc.
    const PROPERTIES: u8 = 93;
    let Some((dictionary, size)) = alone_header(head) else {
        return false;
    };
    // xz and related tools accept the same sizes: any, 2^n, and 2^n + 2^(n - 1), which is three times
    // its lowest bit.
    let is_usual = dictionary == u32::MAX || {
        let lowest = 1_u32.checked_shl(dictionary.trailing_zeros()).unwrap_or(0);
        dictionary >= 4096 && (dictionary == lowest || dictionary == lowest.saturating_mul(3))
    };
    let is_credible = size == ALONE_UNKNOWN || (1..=ALONE_BYTES_MAX).contains(&size);
    let is_coded = head.get(ALONE_HEADER_BYTES) == Some(&0);
    head.first() == Some(&PROPERTIES) && is_usual && is_credible && is_coded
}

/// The sizes of the dictionary and of the content according to the header of an .lzma file.
fn alone_header(head: &[u8]) -> Option<(u32, u64)> {
    Some((le32(head, 1)?, le64(head, 5)?))
}

/// The size of the content according to an .lzma file.
pub(super) fn alone_size(head: &[u8]) -> Option<u64> {
    let (_, size) = alone_header(head)?;
    Some(size).filter(|size| *size != ALONE_UNKNOWN)
}

/// The size of the content of an .lz file of `size` bytes, added up over its members from the end; `None` if the
/// end is not that of a member, or is damaged.
pub(super) fn lzip_size(size: u64, read: impl Fn(&mut [u8], u64) -> Option<()>) -> Option<u64> {
    let mut end = size;
    let mut total = 0_u64;
    for _ in 0..LZIP_MEMBERS_MAX {
        let mut footer = [0; LZIP_FOOTER_BYTES as usize];
        let footer_at = end.checked_sub(LZIP_FOOTER_BYTES)?;
        read(&mut footer, footer_at)?;
        let (content, member) = (le64(&footer, 4)?, le64(&footer, 12)?);
        let start = end.checked_sub(member)?;
        if start.checked_add(LZIP_HEADER_BYTES)? > footer_at {
            return None;
        }
        let mut header = [0; LZIP_HEADER_BYTES as usize];
        read(&mut header, start)?;
        // Members state their length only since version 1.
        if !is_lzip(&header) || header[4] == 0 {
            return None;
        }
        total = total.checked_add(content)?;
        if start == 0 {
            return Some(total);
        }
        end = start;
    }
    None
}
