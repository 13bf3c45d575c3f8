//! Recognises the compression of a stream by its first bytes.

use std::cell::Cell;
use std::fmt;

use super::zip::is_start as is_zip;
use super::{lz4, lzma, skippable, zstd};
use crate::error::Result;
use crate::{RawImage, head_of};

/// Bytes from the start of a stream that identify its compression. 30 are enough, those of a zip
/// header; the others are for frames without content, which may precede Zstandard and LZ4.
pub(super) const HEAD_BYTES: usize = 4096;

/// Bytes of a header that states the size of the content. The header of Zstandard is the longest of
/// those at the start of a stream.
const HEADER_BYTES: usize = zstd::HEADER_BYTES;
/// Maximum number of frames without content to skip while looking for the size of the content in
/// the first frame that has some. It bounds the time, because each takes a read. The value is a
/// choice: tools write one such frame at the start, if any.
const SKIPPABLE_MAX: usize = 1024;
/// Maximum reads of a remote file in search of the size of its content. Each is a request, one after
/// the other, before the upload starts, and a file may have thousands of members. The value is a
/// choice: a file of one member takes up to four.
const REMOTE_READS_MAX: usize = 16;
/// Maximum initial size of a drive that nothing has proved: 2 TiB. A damaged
/// header could otherwise order a drive that is expensive or that the account does not allow. With
/// a larger size in the header, the drive starts small and grows.
pub(super) const EXPECTED_BYTES_MAX: u64 = 2 << 40;

/// The compression of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamFormat {
    /// None.
    Raw,
    /// RFC 1952, of any number of members.
    Gzip,
    /// The .xz file format 1.2, of any number of streams.
    Xz,
    /// RFC 8878, of any number of frames.
    Zstd,
    /// bzip2, of any number of streams.
    Bzip2,
    /// The LZ4 frame format, of any number of frames.
    Lz4,
    /// The .lzma format of LZMA Utils, called LZMA-alone. It has no checksum.
    Lzma,
    /// The .lz format of lzip, of any number of members.
    Lzip,
    /// A zip archive that holds one file, stored or deflated.
    Zip,
}

impl StreamFormat {
    /// Recognises the compression by the first bytes; `None` if there is none. No bytes match two of
    /// the signatures, so their order does not matter.
    pub fn of(head: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| head.starts_with(magic);
        // Deflate is the only method. The reserved bits of the flags are zero.
        if starts(&[0x1f, 0x8b, 8]) && head.get(3).is_none_or(|flags| flags & 0xe0 == 0) {
            return Some(Self::Gzip);
        }
        if starts(b"\xfd7zXZ\0") {
            return Some(Self::Xz);
        }
        if lzma::is_lzip(head) {
            return Some(Self::Lzip);
        }
        if lzma::is_alone(head) {
            return Some(Self::Lzma);
        }
        if is_zip(head) {
            return Some(Self::Zip);
        }
        if skippable::is_start(head) {
            return Self::of_skippable(head);
        }
        if let Some(format) = Self::of_frame(head) {
            return Some(format);
        }
        // The level follows, then the first block or the end of a stream without blocks, which begin
        // with the digits of pi and of its square root.
        let is_level = head
            .get(3)
            .is_some_and(|level| (b'1'..=b'9').contains(level));
        let block = head.get(4..10);
        let is_block = block == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59])
            || block == Some(&[0x17, 0x72, 0x45, 0x38, 0x50, 0x90]);
        (starts(b"BZh") && is_level && is_block).then_some(Self::Bzip2)
    }

    /// Recognises the compression of a file by its first bytes; `None` if there is none.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(crate) fn of_file(file: &RawImage) -> Result<Option<Self>> {
        Ok(Self::of(&head_of(file, HEAD_BYTES)?))
    }

    /// The compression of what begins with frames without content, which Zstandard and LZ4 share:
    /// what follows them decides. If that is beyond `head`, the result is Zstandard, and
    /// [`of_frame`](Self::of_frame) has to decide when the frames were skipped.
    fn of_skippable(head: &[u8]) -> Option<Self> {
        let mut rest = head;
        while skippable::is_start(rest) {
            let length = skippable::length(rest).and_then(|length| usize::try_from(length).ok());
            match length.and_then(|length| rest.get(length..)) {
                Some(behind) => rest = behind,
                None => return Some(Self::Zstd),
            }
        }
        let is_cut_off = rest.len() < zstd::MAGIC.len();
        Self::of_frame(rest).or(is_cut_off.then_some(Self::Zstd))
    }

    /// Zstandard or LZ4, if a frame with content of one of these begins here.
    pub(super) fn of_frame(head: &[u8]) -> Option<Self> {
        if head.starts_with(zstd::MAGIC) {
            return Some(Self::Zstd);
        }
        let is_lz4 = head.starts_with(lz4::MAGIC) || head.starts_with(lz4::LEGACY_MAGIC);
        is_lz4.then_some(Self::Lz4)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Lzip => "lzip",
            Self::Zip => "zip",
        }
    }

    /// The command that tests such a file; the file name follows. zstd needs `--long` for what looks
    /// back further than 2^27 bytes.
    pub(super) fn test_command(self) -> &'static str {
        match self {
            Self::Raw => "cksum",
            Self::Gzip => "gzip -t",
            Self::Xz => "xz -t",
            Self::Zstd => "zstd -t --long=31",
            Self::Bzip2 => "bzip2 -t",
            Self::Lz4 => "lz4 -t",
            Self::Lzma => "xz -t --format=lzma",
            Self::Lzip => "lzip -t",
            Self::Zip => "unzip -t",
        }
    }

    /// The command that decompresses such a file to standard output, whatever memory it needs; the
    /// file name follows.
    pub(crate) fn decompress_command(self) -> &'static str {
        match self {
            Self::Raw => "cat",
            Self::Gzip => "gzip -dc",
            Self::Xz => "xz -dc",
            Self::Zstd => "zstd -dc --long=31",
            Self::Bzip2 => "bzip2 -dc",
            Self::Lz4 => "lz4 -dc",
            Self::Lzma => "xz -dc --format=lzma",
            Self::Lzip => "lzip -dc",
            Self::Zip => "unzip -p",
        }
    }

    /// The size of the content that a file states: .xz in its indexes, lzip at the end of each
    /// member, LZMA-alone in its header, Zstandard and LZ4 in their first frame. `None` if it states
    /// none, or one that is not credible, or it takes too many requests to find out. gzip is not used: its size is modulo 4 GiB, and of the last
    /// member only (docs/dev/reference.md, T13).
    ///
    /// The size may be wrong or too small, because more frames may follow the first. The decoder
    /// finds out: it fails if a frame, member or stream has another size than it states.
    pub(super) fn stated_size(self, file: &RawImage) -> Option<u64> {
        let reads_left = Cell::new(match file.is_local() {
            true => usize::MAX,
            false => REMOTE_READS_MAX,
        });
        let read = |bytes: &mut [u8], at| {
            reads_left.set(reads_left.get().checked_sub(1)?);
            file.read_at(bytes, at).ok()
        };
        let bytes = file.size();
        let size = match self {
            Self::Xz => super::xz_content_size(bytes, |some, at| read(some, at).ok_or(()))?,
            Self::Lzip => lzma::lzip_size(bytes, read)?,
            Self::Lzma => lzma::alone_size(&header(bytes, read, 0)?)?,
            Self::Zstd => zstd::content_size(&first_frame(bytes, read)?)?,
            Self::Lz4 => lz4::content_size(&first_frame(bytes, read)?)?,
            // The directory of a zip archive was read before.
            Self::Raw | Self::Gzip | Self::Bzip2 | Self::Zip => return None,
        };
        Some(size).filter(|size| is_credible(*size))
    }
}

/// Whether a drive may be created with a size that only a header states.
pub(super) fn is_credible(size: u64) -> bool {
    (1..=EXPECTED_BYTES_MAX).contains(&size)
}

/// [`HEADER_BYTES`] of a file of `size` bytes from `at` on, or fewer at its end; `None` if they
/// cannot be read.
fn header(size: u64, read: impl Fn(&mut [u8], u64) -> Option<()>, at: u64) -> Option<Vec<u8>> {
    let len = size.checked_sub(at)?.min(HEADER_BYTES as u64);
    let mut header = vec![0; usize::try_from(len).ok()?];
    read(&mut header, at)?;
    Some(header)
}

/// The header of the first frame with content; `None` if it is not found.
fn first_frame(size: u64, read: impl Fn(&mut [u8], u64) -> Option<()>) -> Option<Vec<u8>> {
    let mut at = 0_u64;
    for _ in 0..SKIPPABLE_MAX {
        let header = header(size, &read, at)?;
        match skippable::is_start(&header) {
            true => at = at.checked_add(skippable::length(&header)?)?,
            false => return Some(header),
        }
    }
    None
}

impl fmt::Display for StreamFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, empty};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Fingerprint, Remote};

    #[derive(Debug)]
    struct Counting(Vec<u8>, AtomicUsize);

    impl Remote for Counting {
        fn name(&self) -> String {
            "https://h/a.lz".to_owned()
        }

        fn fingerprint(&self) -> Fingerprint {
            Fingerprint {
                size: self.0.len() as u64,
                ..Fingerprint::default()
            }
        }

        fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            bytes.copy_from_slice(&self.0[offset as usize..][..bytes.len()]);
            Ok(())
        }

        fn in_order(&self) -> Box<dyn Read + Send> {
            Box::new(empty())
        }
    }

    #[test]
    fn few_requests_look_for_the_size_of_a_remote_stream() {
        // Members whose footers state 100 bytes of content, and their own length.
        let member = [
            &b"LZIP\x01\x14crc."[..],
            &100_u64.to_le_bytes(),
            &26_u64.to_le_bytes(),
        ];
        for (members, expected) in [(3, Some(300)), (100, None)] {
            let bytes = member.concat().repeat(members);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let local = RawImage::open(file.path()).unwrap();
            let lzip = StreamFormat::Lzip;
            assert_eq!(lzip.stated_size(&local), Some(members as u64 * 100));
            let counting = Arc::new(Counting(bytes, AtomicUsize::new(0)));
            let remote = RawImage::remote(counting.clone());
            assert_eq!(lzip.stated_size(&remote), expected);
            assert!(counting.1.load(Ordering::Relaxed) <= REMOTE_READS_MAX);
        }
    }

    #[test]
    fn a_stream_format_is_recognised_by_its_first_bytes() {
        use StreamFormat::{Bzip2, Gzip, Lz4, Lzip, Lzma, Xz, Zip, Zstd};
        let cases: [(&[u8], Option<StreamFormat>); 29] = [
            (b"\x1f\x8b\x08\0rest", Some(Gzip)),
            (b"\x1f\x8b\x08\xff", None),
            (b"\xfd7zXZ\0\0", Some(Xz)),
            (b"\x28\xb5\x2f\xfd", Some(Zstd)),
            (b"BZh91AY&SYrest", Some(Bzip2)),
            (b"BZh9 is a text", None),
            (b"BZh", None),
            (b"QFI\xfb", None),
            (b"", None),
            (b"\x04\x22\x4d\x18\x64", Some(Lz4)),
            (b"\x02\x21\x4c\x18\x64", Some(Lz4)),
            (b"LZIP\x01\x0c", Some(Lzip)),
            (b"LZIP\x01\x0b", None),
            (b"LZIP\x02\x0c", None),
            (b"LZIP codes", None),
            (
                b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0rest",
                Some(Lzma),
            ),
            (b"\x5d\0\0\xc0\0\0\0\0\x01\0\0\0\0\0rest", Some(Lzma)),
            // A dictionary, a size and a stream that cannot exist.
            (
                b"\x5d\0\0\x81\0\xff\xff\xff\xff\xff\xff\xff\xff\0rest",
                None,
            ),
            (b"\x5d\0\0\x80\0\0\0\0\0\0\0\0\0\0rest", None),
            (
                b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\x01rest",
                None,
            ),
            // Frames without content, and what follows them.
            (b"\x5f\x2a\x4d\x18\x01\0\0\0_\x28\xb5\x2f\xfd", Some(Zstd)),
            (b"\x50\x2a\x4d\x18\x01\0\0\0_\x04\x22\x4d\x18", Some(Lz4)),
            (
                b"\x51\x2a\x4d\x18\0\0\0\0\x5e\x2a\x4d\x18\0\0\0\0\x04\x22\x4d\x18",
                Some(Lz4),
            ),
            (b"\x51\x2a\x4d\x18\x01\0\0\0_something else", None),
            (b"\x51\x2a\x4d\x18\x01\0\0\0_", Some(Zstd)),
            (b"\x51\x2a\x4d\x18\xff\xff\0\0what is not known", Some(Zstd)),
            (b"\x60\x2a\x4d\x18\x01\0\0\0_\x28\xb5\x2f\xfd", None),
            (
                b"PK\x03\x04\x14\0\0\0\x08\0________________________\x01\0\0\0a",
                Some(Zip),
            ),
            (b"PK\x03\x04zip files begin so, and not with this", None),
        ];
        for (head, expected) in cases {
            assert_eq!(StreamFormat::of(head), expected, "{head:?}");
        }
    }
}
