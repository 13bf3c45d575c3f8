//! The records before, after and between the files of a zip archive.

use std::io::{self, Read};

use crate::advice::Advice;
use crate::error::{Error, ErrorKind};
use crate::stream::source::Packed;

/// Bytes of a header before the name.
pub(super) const HEADER_BYTES: usize = 30;
/// The header of a file begins with this.
const HEADER: &[u8] = b"PK\x03\x04";
/// What follows a file may begin with this.
const DESCRIPTOR: &[u8] = b"PK\x07\x08";
/// An entry of the directory begins with this.
pub(super) const ENTRY: &[u8] = b"PK\x01\x02";
/// The end record of the directory begins with this.
pub(super) const END: &[u8] = b"PK\x05\x06";
/// The 64-bit end record begins with this; a locator of it follows.
pub(super) const END_64: &[u8] = b"PK\x06\x06";
pub(super) const LOCATOR_64: &[u8] = b"PK\x06\x07";
/// The highest supported version of the format: 6.3.
const VERSION_MAX: u16 = 63;
/// The extra field with 64-bit numbers.
const EXTRA_64: u16 = 1;
/// The placeholder for a number that is in the extra field.
pub(super) const IS_LARGER: u32 = u32::MAX;

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
    /// Whether checksum and sizes follow the file; they are unknown here then.
    pub(super) are_sizes_behind: bool,
    pub(super) crc: u32,
    pub(super) packed: u64,
    pub(super) size: u64,
}

pub(super) fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An error of ours that repeating the command cannot avoid.
pub(super) fn ours(what: String, hint: impl Into<Advice>) -> io::Error {
    let error = Error::new(ErrorKind::Image, what).permanent();
    io::Error::other(error.hint_to(hint))
}

/// Whether this is the beginning of a file's header.
pub(in crate::stream) fn is_start(head: &[u8]) -> bool {
    let is_version = u16_at(head, 4).is_some_and(|version| version & 0xff <= VERSION_MAX);
    let is_named = u16_at(head, 26).is_some_and(|length| length > 0);
    head.starts_with(HEADER) && is_version && is_named
}

impl Header {
    /// Reads the next header.
    pub(super) fn read(source: &mut Packed) -> io::Result<Self> {
        let mut fixed = [0; HEADER_BYTES];
        source.read_exact(&mut fixed)?;
        let lengths = u16_at(&fixed, 26).zip(u16_at(&fixed, 28));
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

    /// Parses the fields that a header and a directory entry have in common: those from the needed
    /// version on.
    pub(super) fn parse(fields: &[u8], name: &[u8], extra: &[u8]) -> Option<Self> {
        const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
        const SIZES_BEHIND: u16 = 1 << 3;
        let flags = u16_at(fields, 2)?;
        let mut larger = larger_numbers(extra);
        let mut number = |at| match u32_at(fields, at)? {
            IS_LARGER => larger.next(),
            number => Some(u64::from(number)),
        };
        // They are always in this order.
        let size = number(18)?;
        let packed = number(14)?;
        Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            method: match u16_at(fields, 4)? {
                0 => Method::Stored,
                8 => Method::Deflated,
                other => Method::Other(other),
            },
            is_encrypted: flags & ENCRYPTED != 0,
            are_sizes_behind: flags & SIZES_BEHIND != 0,
            crc: u32_at(fields, 10)?,
            packed,
            size,
        })
    }

    /// Why this file cannot be read here; `None` if it can.
    pub(super) fn unreadable(&self) -> Option<String> {
        match (self.is_encrypted, self.method) {
            (true, _) => Some("encrypted".to_owned()),
            (false, Method::Other(method)) => Some(format!("packed by method {method}")),
            (false, Method::Stored | Method::Deflated) => None,
        }
    }

    /// Fails if this file cannot be read here.
    pub(super) fn check_readable(&self) -> io::Result<()> {
        match self.unreadable() {
            None => Ok(()),
            Some(how) => {
                let what = format!("{:?} in the zip archive is {how}", self.name);
                let hint = "Put the archive into a file, and unpack that with 7-Zip: 7z x FILE";
                Err(ours(what, hint.to_owned()))
            }
        }
    }
}

/// The 64-bit numbers in the extra field for them.
pub(super) fn larger_numbers(extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut rest = extra;
    let mut field: &[u8] = &[];
    while let Some((id, length)) = u16_at(rest, 0).zip(u16_at(rest, 2)) {
        let end = 4 + usize::from(length);
        if id == EXTRA_64 {
            field = rest.get(4..end).unwrap_or_default();
            break;
        }
        rest = rest.get(end..).unwrap_or_default();
    }
    field.as_chunks().0.iter().copied().map(u64::from_le_bytes)
}

/// Checks checksum and sizes that follow a file against the actual ones. The archive does not state
/// whether they have a signature, or whether numbers have 32 or 64 bits.
pub(super) fn check_descriptor(
    source: &mut Packed,
    (crc, packed, size): (u32, u64, u64),
) -> io::Result<()> {
    let low = |number: u64| (number & u64::from(u32::MAX)).to_le_bytes()[..4].to_vec();
    let long = |number: u64| number.to_le_bytes().to_vec();
    let head = source.peek(24)?;
    for signature in [DESCRIPTOR, b""] {
        for number in [&long as &dyn Fn(u64) -> Vec<u8>, &low] {
            let sums = [&crc.to_le_bytes()[..], &number(packed), &number(size)].concat();
            let expected = [signature, &sums].concat();
            if head.starts_with(&expected) {
                return source.skip(expected.len() as u64);
            }
        }
    }
    match head.len() < 12 {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Err(corrupt(
            "what follows a file is not its size and checksum".into(),
        )),
    }
}

/// Reads the directory to its end, so that a truncated archive is detected.
pub(super) fn skip_directory(source: &mut Packed) -> io::Result<()> {
    loop {
        let head = source.peek(46)?;
        let lengths = |places: &[usize]| -> Option<u64> {
            let lengths = places.iter().map(|at| u16_at(head, *at).map(u64::from));
            lengths.sum()
        };
        let (bytes, is_end) = match head.get(..4) {
            Some(ENTRY) => (lengths(&[28, 30, 32]).map(|bytes| 46 + bytes), false),
            Some(END_64) => (
                u64_at(head, 4).and_then(|bytes| bytes.checked_add(12)),
                false,
            ),
            Some(LOCATOR_64) => (Some(20), false),
            Some(END) => (lengths(&[20]).map(|bytes| 22 + bytes), true),
            Some(_) => {
                let what = format!("byte {} begins nothing that it may", source.consumed());
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

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
