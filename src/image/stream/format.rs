//! What a stream is packed with, by its first bytes.

use std::fmt;

use crate::image::RawImage;

/// Bytes of the longest header of a Zstandard frame.
const ZSTD_HEADER_BYTES: usize = 18;
/// A drive is not made larger at first than this because of what a header says
/// that nobody has checked: 2 TiB.
const EXPECTED_BYTES_MAX: u64 = 2 << 40;

/// How a stream holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamFormat {
    /// As it is.
    Raw,
    /// RFC 1952, of any number of members.
    Gzip,
    /// The .xz file format 1.2, of any number of streams.
    Xz,
    /// RFC 8878, of any number of frames.
    Zstd,
    /// bzip2, of any number of streams.
    Bzip2,
}

impl StreamFormat {
    /// What something that begins so is packed with; `None` if it is not packed.
    pub fn of(head: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| head.starts_with(magic);
        // The reserved bits of the flags are zero.
        if starts(&[0x1f, 0x8b, 8]) && head.get(3).is_none_or(|flags| flags & 0xe0 == 0) {
            return Some(Self::Gzip);
        }
        if starts(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            return Some(Self::Xz);
        }
        // A frame, or one that may be skipped, as pzstd puts first.
        if starts(&[0x28, 0xb5, 0x2f, 0xfd]) || starts(&[0x50, 0x2a, 0x4d, 0x18]) {
            return Some(Self::Zstd);
        }
        let is_level = head
            .get(3)
            .is_some_and(|level| (b'1'..=b'9').contains(level));
        let block = head.get(4..10);
        let is_block = block == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59])
            || block == Some(&[0x17, 0x72, 0x45, 0x38, 0x50, 0x90]);
        (starts(b"BZh") && is_level && is_block).then_some(Self::Bzip2)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }

    /// The program that knows it.
    pub(super) fn tool(self) -> &'static str {
        match self {
            Self::Raw => "cksum",
            other => other.name(),
        }
    }

    /// How much a file tells that its content is: .xz by its indexes, Zstandard by its
    /// first frame, which others may follow. What gzip tells is modulo 4 GiB, and of
    /// its last member only (REFERENCE 4.4, fault 13). Nobody has checked it: decoders
    /// do, at the end, so that a lie is an error.
    pub(super) fn expected(self, file: &RawImage) -> Option<u64> {
        let size = match self {
            Self::Xz => super::xz_index_size(file.size(), |bytes, at| file.read_at(bytes, at))?,
            Self::Zstd => {
                let mut header = [0; ZSTD_HEADER_BYTES];
                let len = file.size().min(ZSTD_HEADER_BYTES as u64);
                let header = &mut header[..usize::try_from(len).unwrap_or(0)];
                file.read_at(header, 0).ok()?;
                zstd::zstd_safe::get_frame_content_size(header).ok()??
            }
            Self::Raw | Self::Gzip | Self::Bzip2 => return None,
        };
        (1..=EXPECTED_BYTES_MAX).contains(&size).then_some(size)
    }
}

impl fmt::Display for StreamFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_packed_with_is_told_by_its_start() {
        let cases: [(&[u8], Option<StreamFormat>); 9] = [
            (b"\x1f\x8b\x08\0rest", Some(StreamFormat::Gzip)),
            (b"\x1f\x8b\x08\xff", None),
            (b"\xfd7zXZ\0\0", Some(StreamFormat::Xz)),
            (b"\x28\xb5\x2f\xfd", Some(StreamFormat::Zstd)),
            (b"BZh91AY&SYrest", Some(StreamFormat::Bzip2)),
            (b"BZh9 is a text", None),
            (b"BZh", None),
            (b"QFI\xfb", None),
            (b"", None),
        ];
        for (head, expected) in cases {
            assert_eq!(StreamFormat::of(head), expected, "{head:?}");
        }
    }
}
