//! Decompresses gzip as a stream, up to a maximum length.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// What to do with bytes after the last member of a gzip stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailing {
    /// They make the stream invalid: a body is either all gzip or not gzip.
    Refuse,
    /// They are ignored: a drive is longer than the gzip file on it (docs/dev/reference.md, 5.1).
    Ignore,
}

/// Why a stream could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum GunzipError {
    /// It is longer than the maximum.
    #[error("Unpacks to more than {0} bytes")]
    TooLong(u64),
    /// It is truncated.
    #[error("The gzip stream is cut short")]
    Truncated,
    /// It is not gzip, or its checksum or length is wrong.
    #[error("Not a valid gzip stream")]
    Invalid(#[source] io::Error),
    /// The compressed bytes could not be read.
    #[error("Cannot read the gzip stream")]
    Input(#[source] io::Error),
}

/// Reads the content of a gzip stream of one or more members.
///
/// It reports the end (a read of 0 bytes) only after the checksum and length of every member were
/// verified, so a caller that reads to the end has a valid stream.
#[derive(Debug)]
pub struct Gunzip<R> {
    stage: Stage<R>,
    trailing: Trailing,
    bytes_max: u64,
    bytes: u64,
    members: u64,
}

#[derive(Debug)]
enum Stage<R> {
    /// Before a member, of which nothing was read.
    Before(Watched<R>),
    Member(Box<GzDecoder<Watched<R>>>),
    Ended,
}

/// Number of members that are allowed even if all are empty. It bounds the time: setting up a
/// decoder takes as long as decoding half a megabyte, so a few megabytes of empty members would take
/// minutes. The value is a choice.
const MEMBERS_FREE: u64 = 8192;
/// Bytes of content that members beyond [`MEMBERS_FREE`] must have, on average over all of them. The
/// value is a choice, and far below what tools write: bgzip has the smallest members, of up to 64
/// KiB.
const MEMBER_BYTES_MIN: u64 = 512;

/// Whether a stream has too many members for their content, as only one has that is made to take
/// long.
pub fn has_too_many_members(members: u64, content_bytes: u64) -> bool {
    members > MEMBERS_FREE.saturating_add(content_bytes / MEMBER_BYTES_MIN)
}

impl<R: BufRead> Gunzip<R> {
    /// Decompresses `packed` to at most `bytes_max` bytes. Reads nothing yet.
    pub fn new(packed: R, bytes_max: u64, trailing: Trailing) -> Self {
        let watched = Watched {
            inner: packed,
            failed: false,
        };
        Self {
            stage: Stage::Before(watched),
            trailing,
            bytes_max,
            bytes: 0,
            members: 0,
        }
    }

    /// Decompresses into `buffer` and returns the number of bytes; 0 is the end of a stream that
    /// was verified. `buffer` must not be empty.
    ///
    /// # Errors
    /// A [`GunzipError`]; after it, the stream is at its end. An exception is
    /// [`GunzipError::Input`] with [`io::ErrorKind::WouldBlock`]: the next call continues.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, GunzipError> {
        loop {
            let decoder = match &mut self.stage {
                Stage::Member(decoder) => decoder,
                Stage::Before(_) => {
                    self.open_member();
                    continue;
                }
                Stage::Ended => return Ok(0),
            };
            match decoder.read(buffer) {
                Ok(0) => self.next_member()?,
                Ok(n) => {
                    self.bytes += n as u64;
                    if self.bytes > self.bytes_max {
                        self.stage = Stage::Ended;
                        return Err(GunzipError::TooLong(self.bytes_max));
                    }
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(GunzipError::Input(error));
                }
                Err(error) => return self.fail(error).map(|()| 0),
            }
        }
    }

    /// A member ended: continues with the next one, if there are bytes left.
    fn next_member(&mut self) -> Result<(), GunzipError> {
        let Stage::Member(decoder) = &mut self.stage else {
            return Ok(());
        };
        let more = match decoder.get_mut().fill_buf() {
            Ok(buffer) => !buffer.is_empty(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.stage = Stage::Ended;
                }
                return Err(GunzipError::Input(error));
            }
        };
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        self.members += 1;
        if more && has_too_many_members(self.members + 1, self.bytes) {
            let what = format!("More than {} members are almost empty", self.members);
            let error = io::Error::new(io::ErrorKind::InvalidData, what);
            return Err(GunzipError::Invalid(error));
        }
        if let Stage::Member(decoder) = stage
            && more
        {
            self.stage = Stage::Before(decoder.into_inner());
        }
        Ok(())
    }

    /// Opens the member that begins here, which reads its header.
    fn open_member(&mut self) {
        if let Stage::Before(packed) = std::mem::replace(&mut self.stage, Stage::Ended) {
            self.stage = Stage::Member(Box::new(GzDecoder::new(packed)));
        }
    }

    fn fail(&mut self, error: io::Error) -> Result<(), GunzipError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        let Stage::Member(decoder) = stage else {
            return Err(GunzipError::Invalid(error));
        };
        if decoder.get_ref().failed {
            return Err(GunzipError::Input(error));
        }
        let is_after_the_last = self.members > 0 && decoder.header().is_none();
        if is_after_the_last && self.trailing == Trailing::Ignore {
            return Ok(());
        }
        Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => GunzipError::Truncated,
            _ => GunzipError::Invalid(error),
        })
    }
}

/// Records whether an error came from the input, because the decoder does not distinguish that from
/// its own errors.
#[derive(Debug)]
struct Watched<R> {
    inner: R,
    failed: bool,
}

impl<R: BufRead> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        self.failed |= is_failure(&result);
        result
    }
}

impl<R: BufRead> BufRead for Watched<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let result = self.inner.fill_buf();
        self.failed |= is_failure(&result);
        result
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

fn is_failure<T>(result: &io::Result<T>) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(result, Err(error) if !matches!(error.kind(), Interrupted | WouldBlock))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(packed: &[u8], max: u64, trailing: Trailing) -> Result<Vec<u8>, GunzipError> {
        let mut gunzip = Gunzip::new(packed, max, trailing);
        let mut plain = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match gunzip.read(&mut buffer)? {
                0 => return Ok(plain),
                n => plain.extend_from_slice(&buffer[..n]),
            }
        }
    }

    fn strict(packed: &[u8]) -> Result<Vec<u8>, GunzipError> {
        unpack(packed, 1 << 20, Trailing::Refuse)
    }

    #[test]
    fn gzip_of_one_and_several_members_is_read() {
        let plain: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(strict(&gzip(&plain)).unwrap(), plain);
        let mut two = gzip(&plain[..1000]);
        two.extend(gzip(b""));
        two.extend(gzip(&plain[1000..]));
        assert_eq!(strict(&two).unwrap(), plain);
        assert_eq!(strict(&gzip(b"")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_read_before_the_first_bytes_are_requested() {
        let packed = gzip(b"hello");
        let mut input = io::Cursor::new(&packed);
        let gunzip = Gunzip::new(&mut input, 100, Trailing::Refuse);
        drop(gunzip);
        assert_eq!(input.position(), 0);
    }

    #[test]
    fn gzip_truncated_anywhere_is_an_error() {
        let packed = gzip(b"hello hello hello");
        for cut in 0..packed.len() {
            let error = strict(&packed[..cut]).unwrap_err();
            assert!(
                matches!(error, GunzipError::Truncated),
                "cut at {cut}: {error:?}"
            );
        }
    }

    #[test]
    fn a_wrong_checksum_or_length_is_noticed() {
        let packed = gzip(b"hello hello hello");
        for back in 1..=8 {
            let mut bad = packed.clone();
            let at = bad.len() - back;
            bad[at] ^= 1;
            assert!(matches!(strict(&bad), Err(GunzipError::Invalid(_))));
        }
    }

    #[test]
    fn trailing_bytes_are_refused_or_ignored() {
        for tail in [&b"garbage after the end"[..], &[0; 700], b"\x1f", b"x"] {
            let mut packed = gzip(b"hello");
            packed.extend_from_slice(tail);
            assert!(strict(&packed).is_err(), "{tail:?}");
            let plain = unpack(&packed, 100, Trailing::Ignore).unwrap();
            assert_eq!(plain, b"hello");
        }
    }

    #[test]
    fn the_decompressed_size_is_bounded() {
        let packed = gzip(&[0; 100_000]);
        assert_eq!(
            unpack(&packed, 100_000, Trailing::Refuse).unwrap().len(),
            100_000
        );
        assert!(matches!(
            unpack(&packed, 99_999, Trailing::Refuse),
            Err(GunzipError::TooLong(99_999))
        ));
    }

    #[test]
    fn many_empty_members_are_refused() {
        let members = |count, plain: &[u8]| gzip(plain).repeat(count);
        assert_eq!(strict(&members(8192, b"")).unwrap(), b"");
        let error = strict(&members(8193, b"")).unwrap_err();
        assert!(matches!(error, GunzipError::Invalid(_)), "{error:?}");
        let plain = unpack(&members(9000, &[1; 600]), 6 << 20, Trailing::Refuse).unwrap();
        assert_eq!(plain.len(), 9000 * 600);
    }

    #[test]
    fn a_stream_continues_after_its_input_paused() {
        /// Returns one byte, then pauses, and so on.
        struct Pausing<'a>(&'a [u8], bool);
        impl Read for Pausing<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = !self.1;
                match self.1 {
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => self.0.read(&mut buffer[..1]),
                }
            }
        }
        let packed = [gzip(b"hello "), gzip(b""), gzip(b"world")].concat();
        let input = io::BufReader::new(Pausing(&packed, false));
        let mut gunzip = Gunzip::new(input, 100, Trailing::Refuse);
        let (mut plain, mut pauses) = (Vec::new(), 0);
        let mut buffer = [0; 100];
        loop {
            match gunzip.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => plain.extend_from_slice(&buffer[..n]),
                Err(GunzipError::Input(_)) => pauses += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(plain, b"hello world");
        assert!(pauses > packed.len() / 2, "{pauses}");
    }

    #[test]
    fn an_error_of_the_input_is_not_reported_as_bad_gzip() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let packed = gzip(b"hello");
        let input = io::BufReader::new(packed[..12].chain(Broken));
        let mut gunzip = Gunzip::new(input, 100, Trailing::Refuse);
        let error = loop {
            if let Err(error) = gunzip.read(&mut [0; 10]) {
                break error;
            }
        };
        assert!(matches!(error, GunzipError::Input(_)), "{error:?}");
    }
}
