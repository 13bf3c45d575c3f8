//! Streams of consecutive members: gzip, bzip2, lzip and LZ4. What follows the last member is
//! treated as the format's own tool treats it, with one exception: bytes that could be the start of
//! another member are decoded as one. If that member is truncated or damaged, this is an error. The
//! tools ignore some of such bytes, and would silently drop a part of the disk.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::{Arc, OnceLock};

use super::lzma::Lzma;
use super::member::Member;
use super::source::Packed;
use super::{StreamFormat, lz4, skippable};
use crate::amounts::counted;
use crate::codec::has_too_many_members;

/// Bytes after the last member that were ignored, because they are not compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The compression of the stream.
    pub format: StreamFormat,
    /// Their offset in the compressed bytes.
    pub at: u64,
    /// How many there are.
    pub bytes: u64,
}

impl fmt::Display for Trailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, at, bytes } = self;
        write!(
            f,
            "The {format} data of the image ends at byte {at}: ignoring {} after it, as {format} does",
            counted(*bytes, "byte")
        )
    }
}

/// How many bytes determine what follows a member: no signature is longer than four.
const HEAD_BYTES: usize = 4;

/// Reads the content of all members.
pub(super) struct Members {
    /// One of the four formats that have members.
    format: StreamFormat,
    state: State,
    /// Number of members so far, and the bytes of their content.
    members: u64,
    content_bytes: u64,
    trailer: Arc<OnceLock<Trailer>>,
}

enum State {
    /// Before a member, or the end.
    Before {
        source: Packed,
        is_first: bool,
    },
    Within(Box<dyn Member>),
    Ended,
    Failed,
}

/// What follows a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    End,
    Member,
    /// A frame without content.
    Skippable,
    /// Bytes that the format's own tool ignores.
    Trailer,
    /// Bytes that are not a member, and that the tool does not ignore.
    Foreign,
}

impl Members {
    /// Reads members of this format. `trailer` is set at the end if something was ignored.
    pub(super) fn new(
        source: Packed,
        format: StreamFormat,
        trailer: Arc<OnceLock<Trailer>>,
    ) -> Self {
        Self {
            format,
            state: State::Before {
                source,
                is_first: true,
            },
            members: 0,
            content_bytes: 0,
            trailer,
        }
    }

    /// Advances to the next member, or to the end.
    fn advance(&mut self, mut source: Packed, is_first: bool) -> io::Result<State> {
        let head = source.peek(HEAD_BYTES)?;
        match next(self.format, head, is_first) {
            Next::End => Ok(State::Ended),
            Next::Member => {
                self.members = self.members.saturating_add(1);
                if has_too_many_members(self.members, self.content_bytes) {
                    return Err(damaged(format!(
                        "the {} parts of it before byte {} hold only {} bytes",
                        self.members,
                        source.consumed(),
                        self.content_bytes
                    )));
                }
                Ok(State::Within(open(self.format, source)?))
            }
            Next::Skippable => {
                skippable::skip(&mut source)?;
                Ok(State::Before { source, is_first })
            }
            Next::Trailer => {
                self.ignore(source)?;
                Ok(State::Ended)
            }
            Next::Foreign => Err(damaged(format!(
                "what follows byte {} is not another part of it",
                source.consumed()
            ))),
        }
    }

    /// Reads what follows the last member to its end, and notes it as a trailer.
    fn ignore(&self, mut source: Packed) -> io::Result<()> {
        let at = source.consumed();
        if self.format == StreamFormat::Gzip {
            // Zeros fill the last block of a tape or the rest of a partition. They are no trailer.
            skip_zeros(&mut source)?;
            let rest = source.peek(HEAD_BYTES)?;
            if rest.is_empty() {
                return Ok(());
            }
            // gzip ignores a member after zeros, and other tools read it. Which of them is right
            // cannot be known, so this is an error.
            if rest.starts_with(&[0x1f, 0x8b, 8]) {
                return Err(damaged(format!(
                    "zeros follow byte {at}, and another member follows them at byte {}",
                    source.consumed()
                )));
            }
        }
        io::copy(&mut source, &mut io::sink())?;
        let (format, bytes) = (self.format, source.consumed() - at);
        let _ = self.trailer.set(Trailer { format, at, bytes });
        Ok(())
    }
}

impl Read for Members {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            if let State::Within(member) = &mut self.state {
                match member.read(bytes)? {
                    0 => {}
                    n => {
                        self.content_bytes = self.content_bytes.saturating_add(n as u64);
                        return Ok(n);
                    }
                }
            }
            // An error on the way leaves the state `Failed`.
            self.state = match std::mem::replace(&mut self.state, State::Failed) {
                State::Within(member) => State::Before {
                    source: member.into_source(),
                    is_first: false,
                },
                State::Before { source, is_first } => self.advance(source, is_first)?,
                State::Ended => {
                    self.state = State::Ended;
                    return Ok(0);
                }
                State::Failed => return Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn open(format: StreamFormat, source: Packed) -> io::Result<Box<dyn Member>> {
    Ok(match format {
        StreamFormat::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(source)),
        StreamFormat::Lzip => Box::new(Lzma::lzip(source)?),
        StreamFormat::Lz4 => Box::new(lz4::Frame::open(source)?),
        // gzip: there is no other format with members.
        _ => Box::new(flate2::bufread::GzDecoder::new(source)),
    })
}

/// Classifies what begins with `head`, which has fewer than [`HEAD_BYTES`] only at the end.
fn next(format: StreamFormat, head: &[u8], is_first: bool) -> Next {
    if format == StreamFormat::Lz4 && skippable::is_start(head) {
        return Next::Skippable;
    }
    match (is_first, head.is_empty()) {
        // A stream of nothing but skippable frames is valid, and has no content.
        (true, true) if format == StreamFormat::Lz4 => return Next::End,
        // The decoder will report what is wrong.
        (true, _) => return Next::Member,
        (false, true) => return Next::End,
        (false, false) => {}
    }
    // The beginning of a magic number counts as well: the stream was truncated there.
    let begins = |magic: &[u8]| head.iter().zip(magic).all(|(byte, magic)| byte == magic);
    match format {
        StreamFormat::Gzip if begins(&[0x1f, 0x8b]) => Next::Member,
        StreamFormat::Bzip2 if begins(b"BZh") => match head.get(3) {
            None | Some(b'1'..=b'9') => Next::Member,
            Some(_) => Next::Trailer,
        },
        StreamFormat::Lzip if begins(b"LZIP") => Next::Member,
        // As lzip does: if two or three of the four bytes are right, this is a damaged member.
        StreamFormat::Lzip => {
            let pairs = head.iter().zip(b"LZIP");
            match pairs.filter(|(byte, magic)| byte == magic).count() {
                0 | 1 => Next::Trailer,
                _ => Next::Foreign,
            }
        }
        StreamFormat::Gzip | StreamFormat::Bzip2 => Next::Trailer,
        // LZ4: there is no other format with members.
        _ if begins(lz4::MAGIC) || begins(lz4::LEGACY_MAGIC) => Next::Member,
        _ => Next::Foreign,
    }
}

fn skip_zeros(source: &mut Packed) -> io::Result<()> {
    loop {
        let there = source.fill_buf()?;
        let len = there.len();
        let zeros = there.iter().take_while(|byte| **byte == 0).count();
        source.consume(zeros);
        if zeros == 0 || zeros < len {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_could_begin_a_member_are_not_a_trailer() {
        use StreamFormat::{Bzip2, Gzip, Lz4, Lzip};
        for (format, head, expected) in [
            (Gzip, &b""[..], Next::End),
            (Gzip, b"\x1f", Next::Member),
            (Gzip, b"\x1f\x8b", Next::Member),
            (Gzip, b"\x1f\x8b\x09", Next::Member),
            (Gzip, b"\n", Next::Trailer),
            (Gzip, b"\0\0\0\0", Next::Trailer),
            (Gzip, b"\x1f\x8c", Next::Trailer),
            (Bzip2, b"B", Next::Member),
            (Bzip2, b"BZh", Next::Member),
            (Bzip2, b"BZh9\0\0", Next::Member),
            (Bzip2, b"BZhx", Next::Trailer),
            (Bzip2, b"behind", Next::Trailer),
            (Bzip2, b"\0", Next::Trailer),
            (Lzip, b"LZ", Next::Member),
            (Lzip, b"LZIP\x01", Next::Member),
            (Lzip, b"LZIQ", Next::Foreign),
            (Lzip, b"Lazy", Next::Trailer),
            (Lz4, b"\x04\x22\x4d", Next::Member),
            (Lz4, b"\x5f\x2a\x4d\x18\0\0\0\0", Next::Skippable),
            (Lz4, b"\x5f\x2a", Next::Foreign),
            (Lz4, b"\0\0\0\0", Next::Foreign),
        ] {
            assert_eq!(next(format, head, false), expected, "{format} {head:?}");
        }
    }
}
