//! SHA-256 of chunks and of whole images.

mod chunk;
mod sums;

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::chunk::zeros;
use crate::error::{Error, ErrorKind, Result};

pub use chunk::ChunkDigest;
pub use sums::digest_for;

/// Bytes of a file that are read at a time: they stay in the processor's cache.
const STEP_BYTES: usize = 256 * 1024;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of these bytes of a file, which has them; holes are not read.
    /// Blocks.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn of_file(file: &File, range: Range<u64>) -> std::io::Result<Self> {
        let mut sha256 = Sha256::new();
        let mut bytes = vec![0; STEP_BYTES];
        let mut offset = range.start;
        while offset < range.end {
            let data = match seek(file, SeekFrom::Data(offset)) {
                Ok(data) => data.clamp(offset, range.end),
                // None up to the end of the file; what is beyond that is no hole.
                Err(Errno::NXIO) if file.metadata()?.len() >= range.end => range.end,
                // A device, or a file system that cannot tell.
                Err(_) => offset,
            };
            for step in zeros(data - offset) {
                sha256.update(step);
            }
            offset = data;
            let left = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
            let step = &mut bytes[..left.min(STEP_BYTES)];
            file.read_exact_at(step, offset)?;
            sha256.update(&*step);
            offset += step.len() as u64;
        }
        Ok(Self(sha256.finalize().into()))
    }

    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// Takes what [`Display`](fmt::Display) prints, and upper case.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Protocol, format!("{text:?} is not a SHA-256"));
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(bad());
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_part_of_a_file_with_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[1; 70_000], 1 << 20).unwrap();
        file.write_all_at(b"end", (2 << 20) + 9).unwrap();
        let mut all = vec![0; 3 << 20];
        file.read_exact_at(&mut all, 0).unwrap();
        for range in [0..3 << 20, 5..(1 << 20) + 5, (2 << 20) + 8..(2 << 20) + 11] {
            let bytes = &all[range.start as usize..range.end as usize];
            let digest = Digest::of_file(&file, range.clone()).unwrap();
            assert_eq!(digest, Digest::of(bytes), "{range:?}");
        }
        for range in [0..(3 << 20) + 1, (3 << 20)..(3 << 20) + 1] {
            assert!(Digest::of_file(&file, range).is_err(), "beyond its end");
        }
    }

    #[test]
    fn of_nothing() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), hex);
        assert_eq!(hex.parse::<Digest>().unwrap(), Digest::of(b""));
        for bad in [
            "",
            "e3",
            &hex.replace('e', "+"),
            &hex.replace('e', "\u{e9}"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
