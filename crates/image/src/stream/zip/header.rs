//! The records before, after and between the files of a zip archive. Numbers are little-endian, and
//! the literal offsets are those of the layouts in APPNOTE 6.3, 4.3.

use std::io::{self, Read};

use crate::advice::Advice;
use crate::error::{Error, ErrorKind};
use crate::number::{le16, le32, le64};
use crate::stream::source::Packed;

/// Bytes of a header before the name.
pub(super) const HEADER_BYTES: usize = 30;
/// Bytes of an entry of the directory before the name.
pub(super) const ENTRY_BYTES: usize = 46;
/// Bytes of the end record of the directory, without its comment.
pub(super) const END_BYTES: usize = 22;
/// Bytes of the locator of the 64-bit end record.
pub(super) const LOCATOR_64_BYTES: usize = 20;
/// Bytes of a descriptor: at least a checksum and two 32-bit sizes, at most a signature, a checksum
/// and two 64-bit sizes.
const DESCRIPTOR_BYTES_MIN: usize = 4 + 2 * 4;
const DESCRIPTOR_BYTES_MAX: usize = 4 + 4 + 2 * 8;

/// The first bytes of a header, which precedes each file.
const HEADER_SIGNATURE: &[u8] = b"PK\x03\x04";
/// The first bytes of a descriptor, which follows a file if its header does not state its checksum
/// and sizes. Some writers begin the descriptor without these bytes.
const DESCRIPTOR_SIGNATURE: &[u8] = b"PK\x07\x08";
/// The first bytes of an entry of the directory.
pub(super) const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
/// The first bytes of the end record of the directory.
pub(super) const END_SIGNATURE: &[u8] = b"PK\x05\x06";
/// The first bytes of the 64-bit end record, which precedes its locator and the end record.
pub(super) const END_64_SIGNATURE: &[u8] = b"PK\x06\x06";
/// The first bytes of the locator of the 64-bit end record.
pub(super) const LOCATOR_64_SIGNATURE: &[u8] = b"PK\x06\x07";

/// The highest version of the format that a file may need: 6.3, the highest that APPNOTE 6.3
/// defines. A higher number means that the bytes are no zip archive: they count as a raw disk.
const VERSION_MAX: u16 = 63;
/// The id of the extra field with 64-bit sizes and offsets.
const EXTRA_64_ID: u16 = 1;
/// The value of a 32-bit size or offset whose actual value is in the extra field.
pub(super) const IS_IN_EXTRA: u32 = u32::MAX;

/// The compression of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Stored,
    Deflated,
    /// A method with this number.
    Other(u16),
}

/// The header in front of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) method: Method,
    pub(super) is_encrypted: bool,
    /// Whether a descriptor with checksum and sizes follows the file. If so, the header of the file
    /// does not state the next three fields.
    pub(super) has_descriptor: bool,
    /// The CRC-32 of the content.
    pub(super) crc: u32,
    /// The size in the archive.
    pub(super) packed_size: u64,
    /// The size of the content.
    pub(super) size: u64,
}

pub(super) fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An error with its own message and hint. It is permanent: another attempt would fail as well.
pub(super) fn permanent_error(what: String, hint: impl Into<Advice>) -> io::Error {
    let error = Error::new(ErrorKind::Image, what).permanent();
    io::Error::other(error.hint_to(hint))
}

/// Whether this is the beginning of a file's header. The version and the length of the name are
/// checked as well, because a disk may begin with the same four bytes.
pub(in crate::stream) fn is_start(head: &[u8]) -> bool {
    // The high byte of the version may name an operating system.
    let is_version = le16(head, 4).is_some_and(|version| version & 0xff <= VERSION_MAX);
    let has_name = le16(head, 26).is_some_and(|length| length > 0);
    head.starts_with(HEADER_SIGNATURE) && is_version && has_name
}

impl Header {
    /// Reads the next header.
    pub(super) fn read(source: &mut Packed) -> io::Result<Self> {
        let mut fixed = [0; HEADER_BYTES];
        source.read_exact(&mut fixed)?;
        let lengths = le16(&fixed, 26).zip(le16(&fixed, 28));
        let Some((name, extra)) = lengths.filter(|_| is_start(&fixed)) else {
            return Err(corrupt(
                "a header of a file is not where it should be".into(),
            ));
        };
        let mut rest = vec![0; usize::from(name) + usize::from(extra)];
        source.read_exact(&mut rest)?;
        let (name, extra) = rest.split_at(usize::from(name));
        Self::parse(&fixed[4..], name, extra)
            .ok_or_else(|| corrupt("a header of a file is damaged".into()))
    }

    /// Parses the fields that a header and a directory entry have in common. `fields` starts at the
    /// version that is needed to extract the file: byte 4 of a header, byte 6 of an entry.
    pub(super) fn parse(fields: &[u8], name: &[u8], extra: &[u8]) -> Option<Self> {
        // The file is encrypted; it is encrypted by a strong method; the directory is encrypted.
        const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
        const HAS_DESCRIPTOR: u16 = 1 << 3;
        let flags = le16(fields, 2)?;
        let mut extra = numbers_64(extra);
        let mut size_at = |at| match le32(fields, at)? {
            IS_IN_EXTRA => extra.next(),
            size => Some(u64::from(size)),
        };
        // In the extra field, the size of the content comes first.
        let size = size_at(18)?;
        let packed_size = size_at(14)?;
        Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            method: match le16(fields, 4)? {
                0 => Method::Stored,
                8 => Method::Deflated,
                other => Method::Other(other),
            },
            is_encrypted: flags & ENCRYPTED != 0,
            has_descriptor: flags & HAS_DESCRIPTOR != 0,
            crc: le32(fields, 10)?,
            packed_size,
            size,
        })
    }

    /// Why this file cannot be decompressed, as in `NAME is encrypted`; `None` if it can.
    pub(super) fn why_unreadable(&self) -> Option<String> {
        match (self.is_encrypted, self.method) {
            (true, _) => Some("encrypted".to_owned()),
            (false, Method::Other(method)) => Some(format!("packed by method {method}")),
            (false, Method::Stored | Method::Deflated) => None,
        }
    }

    /// Returns an error if this file cannot be decompressed.
    pub(super) fn check_readable(&self) -> io::Result<()> {
        match self.why_unreadable() {
            None => Ok(()),
            Some(how) => {
                let what = format!("{:?} in the zip archive is {how}", self.name);
                let hint = "Put the archive into a file, and unpack that with 7-Zip: 7z x FILE";
                Err(permanent_error(what, hint.to_owned()))
            }
        }
    }
}

/// The numbers in the extra field with 64-bit numbers. It has only those whose 32-bit field is
/// [`IS_IN_EXTRA`], in this order: size of the content, size in the archive, offset of the header.
pub(super) fn numbers_64(extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut rest = extra;
    let mut field: &[u8] = &[];
    while let Some((id, length)) = le16(rest, 0).zip(le16(rest, 2)) {
        let end = 4 + usize::from(length);
        if id == EXTRA_64_ID {
            field = rest.get(4..end).unwrap_or_default();
            break;
        }
        rest = rest.get(end..).unwrap_or_default();
    }
    field.as_chunks().0.iter().copied().map(u64::from_le_bytes)
}

/// Consumes the descriptor after a file, and compares it with the actual checksum, size in the
/// archive, and size of the content. The archive does not state which of the four forms a
/// descriptor has: with or without a signature, with 32-bit or 64-bit sizes.
pub(super) fn check_descriptor(
    source: &mut Packed,
    (crc, packed_size, size): (u32, u64, u64),
) -> io::Result<()> {
    let head = source.peek(DESCRIPTOR_BYTES_MAX)?;
    for signature in [DESCRIPTOR_SIGNATURE, b""] {
        // 64-bit sizes first: for an empty file, the 32-bit form is the beginning of the 64-bit
        // form.
        for size_bytes in [8, 4] {
            // Of a larger size, a 32-bit field has the low half.
            let (packed_size, size) = (packed_size.to_le_bytes(), size.to_le_bytes());
            let sizes = [&packed_size[..size_bytes], &size[..size_bytes]].concat();
            let expected = [signature, &crc.to_le_bytes(), &sizes].concat();
            if head.starts_with(&expected) {
                return source.skip(expected.len() as u64);
            }
        }
    }
    match head.len() < DESCRIPTOR_BYTES_MIN {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Err(corrupt(
            "what follows a file is not its size and checksum".into(),
        )),
    }
}

/// Reads the directory to its end, so that a truncated archive is detected.
pub(super) fn skip_directory(source: &mut Packed) -> io::Result<()> {
    loop {
        let head = source.peek(ENTRY_BYTES)?;
        let with_parts = |fixed_bytes: usize, lengths_at: &[usize]| -> Option<u64> {
            let lengths = lengths_at.iter().map(|at| le16(head, *at).map(u64::from));
            Some(fixed_bytes as u64 + lengths.sum::<Option<u64>>()?)
        };
        let (bytes, is_end) = match head.get(..4) {
            // The lengths of its name, extra fields and comment.
            Some(ENTRY_SIGNATURE) => (with_parts(ENTRY_BYTES, &[28, 30, 32]), false),
            // Its size counts the bytes after the signature and the size itself.
            Some(END_64_SIGNATURE) => (
                le64(head, 4).and_then(|bytes| bytes.checked_add(4 + 8)),
                false,
            ),
            Some(LOCATOR_64_SIGNATURE) => (Some(LOCATOR_64_BYTES as u64), false),
            // The length of its comment.
            Some(END_SIGNATURE) => (with_parts(END_BYTES, &[20]), true),
            Some(_) => {
                let what = format!("no record of a directory is at byte {}", source.consumed());
                return Err(corrupt(what));
            }
            None => (None, false),
        };
        source.skip(bytes.ok_or(io::ErrorKind::UnexpectedEof)?)?;
        if is_end {
            return Ok(());
        }
    }
}
