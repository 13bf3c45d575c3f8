//! Zip archives of one file, stored or deflated (APPNOTE 6.3), read in order. For a file, the
//! directory at its end is read first (`directory`); on a pipe, the headers in front of the files
//! have to suffice.
//!
//! The reader is our own because the zip crates allocate what a directory claims, and cannot read a
//! file from a pipe if its size follows it, as in all archives that are zipped on the fly.

mod directory;
mod header;

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use flate2::bufread::DeflateDecoder;

use super::source::Packed;
use super::{StreamFormat, Trailer};
use crate::advice;
use crate::advice::Remedy;
use crate::archive::is_companion;
pub(crate) use directory::find;
pub(super) use header::is_start;
use header::{Header, Method, corrupt, permanent_error};

/// The file in an archive that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name, safe to print.
    name: String,
    /// Offset of its header in the archive.
    at: u64,
    /// The size of its content.
    pub(super) size: u64,
    /// Its size in the archive.
    packed_size: u64,
    /// The CRC-32 of its content.
    crc: u32,
}

impl Entry {
    /// Its name, safe to print.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Whether a member cannot be the file that is sought: a directory, or what macOS or another tool
/// adds beside the user's files.
fn is_ignored(name: &str) -> bool {
    name.ends_with('/') || is_companion(name)
}

/// The content of the file in an archive.
pub(super) struct Zip {
    body: Body,
    header: Header,
    /// Whether the file was found in the directory. If not, it must be the only file of the
    /// archive.
    is_from_directory: bool,
    /// The CRC-32 and the size of the content so far.
    crc: flate2::Crc,
    size: u64,
    /// Offset of the compressed content in the archive.
    body_at: u64,
    /// What follows the end record is reported here.
    trailer: Arc<OnceLock<Trailer>>,
}

enum Body {
    /// Stored bytes; this many are left.
    Stored(Packed, u64),
    Deflated(DeflateDecoder<Packed>),
    /// All was read and found correct.
    Over,
    /// The checks at the end failed.
    Failed,
}

impl Zip {
    /// Reads the file that was found, or the only one in the stream. Returns its name as well, safe
    /// to print.
    ///
    /// # Errors
    /// The cause of the `io::Error` is an [`Error`](crate::error::Error) with a hint if the file is
    /// encrypted, its compression is not supported, or it is stored without its size.
    pub(super) fn open(
        mut source: Packed,
        entry: Option<&Entry>,
        trailer: Arc<OnceLock<Trailer>>,
    ) -> io::Result<(Self, String)> {
        let header = match entry {
            Some(entry) => {
                source.skip(entry.at)?;
                // The header may lack these if a descriptor follows the file. The directory always
                // has them.
                Header {
                    crc: entry.crc,
                    packed_size: entry.packed_size,
                    size: entry.size,
                    has_descriptor: false,
                    ..Header::read(&mut source)?
                }
            }
            None => {
                let header = next_file(&mut source)?;
                header.ok_or_else(|| corrupt("no file is in it".into()))?
            }
        };
        let name = header.name.escape_debug().to_string();
        header.check_readable()?;
        let body_at = source.consumed();
        let body = match header.method {
            Method::Deflated => Body::Deflated(DeflateDecoder::new(source)),
            Method::Stored if header.has_descriptor => {
                let what = format!("{name:?} in the zip archive is stored without its size");
                return Err(permanent_error(
                    what,
                    "Put the archive into a file first".to_owned(),
                ));
            }
            // `check_readable` has refused other methods.
            Method::Stored | Method::Other(_) => Body::Stored(source, header.packed_size),
        };
        let zip = Self {
            body,
            header,
            is_from_directory: entry.is_some(),
            crc: flate2::Crc::new(),
            size: 0,
            body_at,
            trailer,
        };
        Ok((zip, name))
    }

    /// Compares what was read with the checksum and sizes that the archive states, and reads the
    /// archive to its end, so that its digest covers all of it.
    fn finish(&self, mut source: Packed) -> io::Result<()> {
        let packed_size = source.consumed() - self.body_at;
        let actual = (self.crc.sum(), packed_size, self.size);
        if self.header.has_descriptor {
            header::check_descriptor(&mut source, actual)?;
        } else if actual != (self.header.crc, self.header.packed_size, self.header.size) {
            return Err(corrupt(format!(
                "the size or the checksum of {:?} in it is wrong",
                self.header.name
            )));
        }
        if self.is_from_directory {
            // `find` has read the directory, and selected this file if there are others.
            io::copy(&mut source, &mut io::sink())?;
            return Ok(());
        }
        if let Some(other) = next_file(&mut source)? {
            let (one, other) = (&self.header.name, &other.name);
            let what = format!("The zip archive holds several files, {one:?} and {other:?}");
            return Err(permanent_error(
                what,
                advice![
                    "Put it into a file, and name the disk in it with ",
                    Remedy::NameDisk
                ],
            ));
        }
        header::skip_directory(&mut source)?;
        let at = source.consumed();
        let bytes = io::copy(&mut source, &mut io::sink())?;
        if bytes > 0 {
            let format = StreamFormat::Zip;
            let _ = self.trailer.set(Trailer { format, at, bytes });
        }
        Ok(())
    }
}

impl Read for Zip {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let n = match &mut self.body {
            Body::Stored(source, left) => {
                let most = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                let n = source.read(&mut bytes[..most])?;
                if n == 0 && *left > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= n as u64;
                n
            }
            Body::Deflated(decoder) => decoder.read(bytes)?,
            Body::Over => return Ok(0),
            Body::Failed => return Err(io::ErrorKind::InvalidData.into()),
        };
        if n > 0 {
            self.crc.update(&bytes[..n]);
            self.size += n as u64;
            return Ok(n);
        }
        // If `finish` fails, `Failed` stays, so that another read does not return an end.
        match std::mem::replace(&mut self.body, Body::Failed) {
            Body::Stored(source, _) => self.finish(source)?,
            Body::Deflated(decoder) => self.finish(decoder.into_inner())?,
            Body::Over | Body::Failed => {}
        }
        self.body = Body::Over;
        Ok(0)
    }
}

/// Skips members that are ignored, and reads the header of the next other file; `None` if something else
/// comes next, which should be the directory ([`header::skip_directory`] checks it).
fn next_file(source: &mut Packed) -> io::Result<Option<Header>> {
    loop {
        if !is_start(source.peek(header::HEADER_BYTES)?) {
            return Ok(None);
        }
        let header = Header::read(source)?;
        if !is_ignored(&header.name) {
            return Ok(Some(header));
        }
        skip_body(source, &header)?;
    }
}

/// Skips a file. If its size follows it, it has to be decompressed to find its end.
fn skip_body(source: &mut Packed, header: &Header) -> io::Result<()> {
    if !header.has_descriptor {
        return source.skip(header.packed_size);
    }
    header.check_readable()?;
    if header.method != Method::Deflated {
        return Err(corrupt(format!("{:?} in it has no size", header.name)));
    }
    let body_at = source.consumed();
    let mut content = flate2::CrcReader::new(DeflateDecoder::new(&mut *source));
    let size = io::copy(&mut content, &mut io::sink())?;
    let crc = content.crc().sum();
    let packed_size = source.consumed() - body_at;
    header::check_descriptor(source, (crc, packed_size, size))
}

#[cfg(test)]
pub(super) mod tests;
