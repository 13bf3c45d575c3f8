//! Reads the headers of a tar one after the other, from a file or a stream. The `tar` crate parses
//! their fields. The sequence of headers is handled here, because that crate neither reports where
//! the pieces of a sparse member are nor lets other code continue to read the stream in the middle.
//!
//! Supported are v7, ustar, pax (POSIX.1-2001) and GNU headers.

use std::io;
use std::ops::Range;

use super::sparse::{self, Map};
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind};
use crate::pieces::Pieces;

/// Bytes of a header; sizes of members are rounded up to a multiple of it.
pub(super) const BLOCK_BYTES: usize = 512;
/// Maximum bytes of all headers, including names and other attributes. It is far more than an
/// appliance needs, and bounds the number of members.
const HEADERS_BYTES_MAX: u64 = 1 << 20;
/// Maximum bytes of all maps of sparse members together, which are read into memory. A map has
/// about 20 bytes for each piece of data, so this is enough for some hundred thousand pieces.
const MAPS_BYTES_MAX: u64 = 8 << 20;

/// Whether `head` is the beginning of a tar: the checksum is right and the name of the format is
/// present. The oldest format has no name; there, only digits may be in its place.
pub(crate) fn is_start_of_one(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk::<BLOCK_BYTES>() else {
        return false;
    };
    let is_named = block[257..].starts_with(b"ustar");
    // A boot sector has code or a signature in that place.
    let header = tar::Header::from_byte_slice(block);
    let has_numbers_only = block[257..]
        .iter()
        .all(|byte| matches!(byte, 0 | b' ' | b'0'..=b'7'));
    let is_v7 = has_numbers_only && block[0] != 0 && header.entry_size().is_ok();
    (is_named || is_v7) && is_sealed(header)
}

/// Whether the checksum of a header is right. Some old versions of tar add signed bytes.
fn is_sealed(header: &tar::Header) -> bool {
    const CHECKSUM: Range<usize> = 148..156;
    let bytes = || {
        let bytes = header.as_bytes().iter().enumerate();
        bytes.map(|(at, byte)| match CHECKSUM.contains(&at) {
            true => b' ',
            false => *byte,
        })
    };
    let unsigned: u32 = bytes().map(u32::from).sum();
    let signed: i32 = bytes().map(|byte| i32::from(byte.cast_signed())).sum();
    header
        .cksum()
        .is_ok_and(|stated| stated == unsigned || i32::try_from(stated) == Ok(signed))
}

/// The source of the headers.
pub(super) trait Source {
    /// Its name for messages.
    fn name(&self) -> String;

    /// Fills `bytes` and returns how many were read: fewer only at the end.
    ///
    /// # Errors
    /// Errors of reading.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Skips bytes. Skipping beyond the end is not an error.
    ///
    /// # Errors
    /// Errors of reading.
    fn skip(&mut self, len: u64) -> io::Result<()>;
}

/// A member of an archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The range of its stored bytes in the archive.
    pub(super) stored: Range<u64>,
}

/// The kind of a member.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A regular file, and where its bytes are.
    File(Pieces),
    /// Another name for a member: a symbolic link, whose target is relative to the link, or a hard
    /// link.
    Link { target: String, is_symbolic: bool },
    /// Anything else, which holds no disk.
    Other,
}

/// What an extended header states about the header after it.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    sparse: sparse::Records,
    is_any: bool,
}

/// Reads headers.
pub(super) struct Headers<S> {
    source: S,
    at: u64,
    /// Offset of the next header.
    next: u64,
    headers_left: u64,
    maps_left: u64,
}

impl<S: Source> Headers<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            at: 0,
            next: 0,
            headers_left: HEADERS_BYTES_MAX,
            maps_left: MAPS_BYTES_MAX,
        }
    }

    /// Reads bytes of the member whose header was read last.
    ///
    /// # Errors
    /// Errors of reading.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(bytes)?;
        self.at += n as u64;
        Ok(n)
    }

    /// Skips the rest of the archive.
    ///
    /// # Errors
    /// Errors of reading.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.source.skip(u64::MAX)
    }

    /// The next member, whose stored bytes begin at the source's position; `None` at the end.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if a header is invalid.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            self.source.skip(self.next - self.at)?;
            self.at = self.next;
            let Some(block) = self.header()? else {
                return match extension.is_any || long_name.is_some() || long_link.is_some() {
                    true => Err(self.broken("it ends behind a part of a header")),
                    false => Ok(None),
                };
            };
            let header = tar::Header::from_byte_slice(&block);
            let size = header.entry_size();
            let size = size.map_err(|_| self.broken("a size in it is no number"))?;
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' | b'X' if extension.is_any => {
                    return Err(self.broken("two extended headers follow each other"));
                }
                b'x' | b'X' => {
                    let records = self.record_bytes(size)?;
                    extension = self.extension(&records)?;
                }
                b'L' if long_name.is_some() => {
                    return Err(self.broken("two long names follow each other"));
                }
                b'L' => long_name = Some(text(&self.record_bytes(size)?)),
                b'K' if long_link.is_some() => {
                    return Err(self.broken("two long links follow each other"));
                }
                b'K' => long_link = Some(text(&self.record_bytes(size)?)),
                // A global header is about all members. Nothing in it is needed.
                b'g' => self.next = self.end_of(size)?,
                _ => {
                    let name = long_name.or(extension.name.take());
                    let name = name.unwrap_or_else(|| text(&header.path_bytes()));
                    let link = long_link.or(extension.link.take());
                    let link = link.or_else(|| header.link_name_bytes().map(|link| text(&link)));
                    extension.size = extension.size.or(Some(size));
                    (extension.name, extension.link) = (Some(name), link);
                    return self.member(header, extension).map(Some);
                }
            }
        }
    }

    /// Builds the member with this header. Its name, link and size may come from `known` instead,
    /// the extended headers before it.
    fn member(&mut self, header: &tar::Header, known: Extension) -> io::Result<Entry> {
        let kind = header.entry_type().as_byte();
        let (mut name, link) = (known.name.unwrap_or_default(), known.link);
        // Links, devices, directories and pipes have no bytes, whatever size the header states.
        let size = match kind {
            b'1'..=b'6' => 0,
            _ => known.size.unwrap_or(0),
        };
        let records = match kind {
            b'S' => self.gnu_map(header)?,
            b'0' | 0 | b'7' => known.sparse,
            _ => sparse::Records::default(),
        };
        let start = self.at;
        let end = start.checked_add(size);
        let end = end.ok_or_else(|| self.broken("a size in it is larger than any file"))?;
        self.next = self.end_of(size)?;
        let is_file = matches!(kind, b'0' | 0 | b'7' | b'S') && !name.ends_with('/');
        let kind = match (kind, link) {
            (b'1' | b'2', Some(target)) => Kind::Link {
                target,
                is_symbolic: kind == b'2',
            },
            _ if !is_file => Kind::Other,
            _ => Kind::File(match self.map(&records, size)? {
                None => Pieces::one(start..end),
                Some(map) => {
                    // The name in the pax header is meant for versions of tar without support for
                    // sparse members.
                    name = records.name.clone().unwrap_or(name);
                    let pieces = map.pieces(self.at..end);
                    pieces.map_err(|why| self.broken(&format!("the map of {name:?} {why}")))?
                }
            }),
        };
        Ok(Entry {
            name,
            kind,
            stored: start..end,
        })
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK_BYTES]>> {
        let mut block = [0; BLOCK_BYTES];
        match self.source.read(&mut block)? {
            0 => return Ok(None),
            BLOCK_BYTES => {}
            _ => return Err(self.broken("it was cut off within a header")),
        }
        self.at += BLOCK_BYTES as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        self.charge(BLOCK_BYTES as u64)?;
        self.next = self.at;
        match is_sealed(tar::Header::from_byte_slice(&block)) {
            true => Ok(Some(block)),
            false => Err(self.broken("the checksum of a header is wrong")),
        }
    }

    /// Reads `size` bytes that belong to the next header.
    fn record_bytes(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.charge(size)?;
        self.next = self.end_of(size)?;
        self.bytes(size)
    }

    fn bytes(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        if self.source.read(&mut bytes)? < bytes.len() {
            return Err(self.broken("it was cut off within a header"));
        }
        self.at += size;
        Ok(bytes)
    }

    /// Offset of the header that follows `size` more bytes.
    fn end_of(&self, size: u64) -> io::Result<u64> {
        let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
        padded
            .and_then(|padded| self.at.checked_add(padded))
            .ok_or_else(|| self.broken("a size in it is larger than any file"))
    }

    /// Counts bytes of headers towards the maximum.
    fn charge(&mut self, len: u64) -> io::Result<()> {
        let left = self.headers_left.checked_sub(len);
        self.headers_left = left.ok_or_else(|| {
            let what = format!(
                "{} is a tar with more than {HEADERS_BYTES_MAX} bytes of names and headers, as no OVA has",
                self.source.name()
            );
            let error = Error::new(ErrorKind::Image, what);
            io::Error::other(error.hint_to(advice!["Unpack the disk with tar -xf first, or send all of it as it is with ", Remedy::Format("raw")]))
        })?;
        Ok(())
    }

    fn extension(&self, records: &[u8]) -> io::Result<Extension> {
        let mut extension = Extension {
            is_any: true,
            ..Extension::default()
        };
        let broken = || self.broken("an extended header in it is no list of records");
        let mut rest = records;
        while !rest.is_empty() && rest[0] != 0 {
            let (record, after) = record(rest).ok_or_else(broken)?;
            rest = after;
            let (key, value) = record;
            match key {
                b"path" => extension.name = Some(text(value)),
                b"linkpath" => extension.link = Some(text(value)),
                b"size" => {
                    let size = sparse::number(value);
                    extension.size = Some(size.ok_or_else(broken)?);
                }
                _ => extension.sparse.record(key, value),
            }
        }
        Ok(extension)
    }

    /// The map of a sparse member in GNU's own format, from its header and the blocks after it.
    fn gnu_map(&mut self, header: &tar::Header) -> io::Result<sparse::Records> {
        let not_gnu = "a sparse member has no header of GNU tar";
        let header = header.as_gnu().ok_or_else(|| self.broken(not_gnu))?;
        let size = header.real_size();
        let size = size.map_err(|_| self.broken("a size in it is no number"))?;
        let mut map = Map::of(size);
        let mut is_extended = header.is_extended();
        let mut ended = map.add_gnu(&header.sparse);
        while is_extended {
            self.charge_map(BLOCK_BYTES as u64)?;
            let mut block = tar::GnuExtSparseHeader::new();
            let bytes = self.bytes(BLOCK_BYTES as u64)?;
            block.as_mut_bytes().copy_from_slice(&bytes);
            ended = ended.and_then(|()| map.add_gnu(block.sparse()));
            is_extended = block.is_extended();
        }
        ended.map_err(|()| self.broken("a map in it has what is no number"))?;
        Ok(map.into())
    }

    /// The map of a member with `size` stored bytes. The map may be stored in the first of these
    /// bytes.
    fn map(&mut self, records: &sparse::Records, size: u64) -> io::Result<Option<Map>> {
        if !records.is_before_data() {
            let map = records.map();
            return map.map_err(|why| self.broken(&format!("the map of a sparse member {why}")));
        }
        let unsound = |this: &Self, why| this.broken(&format!("the map of a sparse member {why}"));
        let mut text = Vec::new();
        let (mut left, mut lines, mut needed) = (size, 0, usize::MAX);
        while lines < needed {
            self.charge_map(BLOCK_BYTES as u64)?;
            let after = left.checked_sub(BLOCK_BYTES as u64);
            left = after.ok_or_else(|| unsound(self, "has no end"))?;
            let block = self.bytes(BLOCK_BYTES as u64)?;
            if text.is_empty() {
                let first = block.split(|byte| *byte == b'\n').next();
                let first = records.lines(first.unwrap_or_default());
                needed = first.map_err(|why| unsound(self, why))?;
            }
            lines += block.iter().filter(|byte| **byte == b'\n').count();
            text.extend(block);
        }
        let map = records.parse(&text);
        map.map(Some).map_err(|why| unsound(self, why))
    }

    fn charge_map(&mut self, len: u64) -> io::Result<()> {
        let left = self.maps_left.checked_sub(len);
        self.maps_left = left.ok_or_else(|| {
            let what = format!(
                "{} is a tar with more than {MAPS_BYTES_MAX} bytes of maps of holes",
                self.source.name()
            );
            let error = Error::new(ErrorKind::Image, what);
            io::Error::other(
                error.hint_to("Unpack the disk with tar -xf first, and upload that file"),
            )
        })?;
        Ok(())
    }

    /// An error about invalid headers.
    fn broken(&self, why: &str) -> io::Error {
        let what = format!("{} is not a sound tar: {why}", self.source.name());
        let error = Error::new(ErrorKind::Image, what).permanent();
        io::Error::other(error.hint_to(advice![
            "Fetch it again from where it came, or send it as it is with ",
            Remedy::Format("raw"),
        ]))
    }
}

/// Splits the first record from an extended header: its key, its value, and the remaining bytes.
#[expect(clippy::type_complexity)]
fn record(bytes: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(sparse::number(bytes.get(..space)?)?).ok()?;
    let (record, after) = bytes.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), after))
}

/// Converts a name in a header to text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
