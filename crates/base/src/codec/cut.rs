//! Divides a part of a chunk into pieces when a request for the whole part fails, or one request
//! should not carry all of it. A compressed part is decompressed as the pieces are taken, and each
//! piece is compressed again, so that memory holds only one piece, plain and compressed.

use std::fmt;
use std::io::Cursor;

use bytes::Bytes;
use libdeflater::{CompressionLvl, Compressor};

use super::gunzip::{Gunzip, Trailing};
use super::gzip::worth;
use crate::chunk::{Encoding, Part, RequestSize};
use crate::error::{Error, ErrorKind, Result};

/// Pieces longer than a block of the drive end at the end of a block, because a write of a part of a
/// block may make the endpoint read the rest of it first. 4 KiB are the usual block of file systems
/// and disks.
const BLOCK_BYTES: u64 = 4096;

/// Returns the pieces of a part in order.
pub struct Cutter {
    part: Part,
    /// Offset on the drive of the next piece.
    at: u64,
    /// `None` until a compressed part is divided.
    packed: Option<Packed>,
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutter").finish_non_exhaustive()
    }
}

/// A compressed part while it is divided.
struct Packed {
    stream: Gunzip<Cursor<Bytes>>,
    compressor: Compressor,
    /// Bytes that were decompressed and not returned yet, from `Cutter::at` on.
    plain: Vec<u8>,
}

impl Cutter {
    /// Divides `part` from byte `from` of the drive on.
    pub fn new(part: Part, from: u64) -> Self {
        Self {
            at: from.clamp(part.offset, part.offset + part.len),
            part,
            packed: None,
        }
    }

    /// Whether the next piece is the whole part, or there is none. Otherwise [`next`](Self::next) may
    /// have to decompress and compress, which blocks.
    pub fn is_whole(&self, most: RequestSize) -> bool {
        let is_untouched = self.at == self.part.offset && self.packed.is_none();
        self.is_at_end() || is_untouched && self.part.size().fits(most)
    }

    fn is_at_end(&self) -> bool {
        self.at == self.part.offset + self.part.len
    }

    /// The next piece within `most`, which must not be zero; `None` at the end.
    ///
    /// # Errors
    /// [`ErrorKind::Bug`] if the part does not decompress to its stated length.
    pub fn next(&mut self, most: RequestSize) -> Result<Option<Part>> {
        if self.is_at_end() {
            return Ok(None);
        }
        let left = self.part.offset + self.part.len - self.at;
        let piece = match self.part.encoding {
            // A compressed body that fits needs no decompressing.
            _ if self.is_whole(most) => self.part.clone(),
            Encoding::Identity => {
                let len = ending_at_a_block(self.at, left.min(most.body).min(most.range));
                let start = index(self.at - self.part.offset)?;
                Part {
                    offset: self.at,
                    len,
                    body: self.part.body.slice(start..start + index(len)?),
                    encoding: Encoding::Identity,
                }
            }
            Encoding::Gzip => self.cut_packed(left, most)?,
        };
        self.at += piece.len;
        Ok(Some(piece))
    }

    /// The next piece of a compressed part of which `left` bytes are left, all uncompressed.
    fn cut_packed(&mut self, left: u64, most: RequestSize) -> Result<Part> {
        let packed = match &mut self.packed {
            Some(packed) => packed,
            none => none.insert(Packed::new(&self.part, self.at)?),
        };
        // How many bytes will probably fit: if the piece compresses as the whole part does, or at
        // least without compression. But at most half of the part, to limit the memory for the plain
        // piece.
        let body = (self.part.body.len() as u64).max(1);
        let likely = u128::from(self.part.len) * u128::from(most.body) / u128::from(body);
        let likely = u64::try_from(likely).unwrap_or(u64::MAX);
        let half = (self.part.len / 2).max(BLOCK_BYTES);
        let len = likely.max(most.body).min(half).min(most.range).min(left);
        let mut len = ending_at_a_block(self.at, len);
        packed.unpack(index(len)?)?;
        loop {
            // A body longer than this does not fit, or is not worth compressing.
            let plain = &packed.plain[..index(len)?];
            let room = worth(plain.len()).min(index(most.body.min(len))?);
            let mut body = vec![0; room];
            let packed_len = packed.compressor.gzip_compress(plain, &mut body).ok();
            let (body, encoding) = match packed_len {
                Some(packed_len) => {
                    body.truncate(packed_len);
                    (Bytes::from(body), Encoding::Gzip)
                }
                // It does not compress well, but fits without compression.
                None if len <= most.body => (Bytes::copy_from_slice(plain), Encoding::Identity),
                // A shorter piece may fit, and fits uncompressed in the end. What it leaves of `plain`
                // is for the next piece.
                None => {
                    len = ending_at_a_block(self.at, (len / 2).max(most.body));
                    continue;
                }
            };
            packed.plain.drain(..index(len)?);
            return Ok(Part {
                offset: self.at,
                len,
                body,
                encoding,
            });
        }
    }
}

impl Packed {
    /// Begins to decompress `part` at byte `at` of the drive.
    fn new(part: &Part, at: u64) -> Result<Self> {
        let input = Cursor::new(part.body.clone());
        let mut packed = Self {
            stream: Gunzip::new(input, part.len, Trailing::Refuse),
            // The fastest level: the part was compressed before, and its request waits.
            compressor: Compressor::new(CompressionLvl::new(1).unwrap_or_default()),
            plain: Vec::new(),
        };
        let mut skip = index(at - part.offset)?;
        // gzip can only be read from the start. Any length of the buffer will do.
        let mut skipped = vec![0; skip.min(64 * 1024)];
        while skip > 0 {
            let end = skip.min(skipped.len());
            skip -= read(&mut packed.stream, &mut skipped[..end])?;
        }
        Ok(packed)
    }

    /// Decompresses until `plain` has at least `len` bytes.
    fn unpack(&mut self, len: usize) -> Result<()> {
        let mut filled = self.plain.len();
        self.plain.resize(len.max(filled), 0);
        while filled < len {
            filled += read(&mut self.stream, &mut self.plain[filled..])?;
        }
        Ok(())
    }
}

/// Reads at least one byte. There is one, because the caller knows the length of the part.
fn read(stream: &mut Gunzip<Cursor<Bytes>>, buffer: &mut [u8]) -> Result<usize> {
    let wrong = || Error::new(ErrorKind::Bug, "A body does not hold what it says");
    match stream.read(buffer) {
        Ok(0) => Err(wrong()),
        Ok(read) => Ok(read),
        Err(cause) => Err(wrong().because(cause)),
    }
}

/// Shortens a length from `at` on so that it ends at the end of a block, if there is one within it.
fn ending_at_a_block(at: u64, len: u64) -> u64 {
    let end = (at + len) / BLOCK_BYTES * BLOCK_BYTES;
    if end > at { end - at } else { len }
}

fn index(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::new(ErrorKind::Bug, "A part does not fit memory"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(bytes: &[u8]) -> Bytes {
        let mut compressor = Compressor::new(CompressionLvl::default());
        let mut body = vec![0; compressor.gzip_compress_bound(bytes.len())];
        let len = compressor.gzip_compress(bytes, &mut body).unwrap();
        body.truncate(len);
        body.into()
    }

    fn plain(part: &Part) -> Vec<u8> {
        let mut plain = Vec::new();
        match part.encoding {
            Encoding::Identity => plain.extend_from_slice(&part.body),
            Encoding::Gzip => {
                let mut stream = flate2::read::GzDecoder::new(&part.body[..]);
                std::io::Read::read_to_end(&mut stream, &mut plain).unwrap();
            }
        }
        plain
    }

    /// Runs of zeros, of text and of noise.
    fn mixed(runs: &[(u8, usize)]) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut bytes = Vec::new();
        for (kind, len) in runs {
            match kind % 3 {
                0 => bytes.resize(bytes.len() + len, 0),
                1 => bytes.extend((0..*len).map(|i| b"some text "[i % 10])),
                _ => bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(*len)),
            }
        }
        bytes
    }

    proptest! {
        /// For any limits and any start, the pieces are the bytes of the part, in order, each
        /// within the limit.
        #[test]
        fn the_pieces_decode_to_the_part(
            runs in proptest::collection::vec((0..3_u8, 1..60_000_usize), 1..6),
            offset in 0..10_000_u64,
            from in 0..400_000_u64,
            body in 1_000..200_000_u64,
            range in 1_000..400_000_u64,
            is_packed: bool,
        ) {
            let bytes = mixed(&runs);
            let part = Part {
                offset,
                len: bytes.len() as u64,
                body: if is_packed { packed(&bytes) } else { bytes.clone().into() },
                encoding: if is_packed { Encoding::Gzip } else { Encoding::Identity },
            };
            let most = RequestSize { body, range };
            let end = part.offset + part.len;
            let from = from.clamp(offset, end);
            let mut cutter = Cutter::new(part, from);
            let (mut at, mut all) = (from, Vec::new());
            while let Some(piece) = cutter.next(most).unwrap() {
                prop_assert_eq!(piece.offset, at);
                prop_assert!(piece.len > 0 && piece.size().fits(most), "{:?}", piece.size());
                let bytes = plain(&piece);
                prop_assert_eq!(bytes.len() as u64, piece.len);
                at += piece.len;
                all.extend(bytes);
            }
            prop_assert_eq!(at, end);
            let start = usize::try_from(from - offset).unwrap();
            prop_assert!(all == bytes[start..]);
        }
    }

    #[test]
    fn a_body_that_fits_is_not_decompressed_to_be_cut() {
        let part = Part {
            offset: 5,
            len: 100_000,
            body: packed(&[7; 100_000]),
            encoding: Encoding::Gzip,
        };
        let body = part.body.clone();
        let mut cutter = Cutter::new(part, 0);
        let piece = cutter.next(RequestSize::ANY).unwrap().unwrap();
        assert_eq!((piece.offset, piece.len, piece.body), (5, 100_000, body));
        assert!(cutter.next(RequestSize::ANY).unwrap().is_none());
    }

    #[test]
    fn a_compressible_part_is_cut_into_few_pieces() {
        let bytes = mixed(&[(1, 2000), (2, 500)].repeat(200));
        let part = Part {
            offset: 0,
            len: bytes.len() as u64,
            body: packed(&bytes),
            encoding: Encoding::Gzip,
        };
        let most = RequestSize {
            body: part.body.len() as u64 / 2,
            ..RequestSize::ANY
        };
        let mut cutter = Cutter::new(part, 0);
        let pieces = std::iter::from_fn(|| cutter.next(most).unwrap()).count();
        assert!(pieces <= 5, "{pieces}");
    }
}
