//! Compresses a stream while it is written.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use flate2::{Compress, FlushCompress, Status};
use liblzma::stream::{Check, MtStreamBuilder};
use liblzma::write::XzEncoder;

use super::Pack;

/// QEMU decompresses clusters with a window of 4 KiB.
const CLUSTER_WINDOW_BITS: u8 = 12;
/// The default level of the xz program.
const XZ_PRESET: u32 = 6;

/// The compression of a downloaded file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, at its default level.
    Gzip,
    /// Zstandard, at its default level, with a checksum.
    Zstd,
    /// xz, at its default level, on all processors; each thread needs about 170 MiB.
    Xz,
}

/// A stream that is compressed while it is written, or not.
pub enum Packer<W: Write> {
    /// Not compressed.
    Plain(W),
    /// As gzip.
    Gzip(GzEncoder<W>),
    /// As Zstandard.
    Zstd(zstd::Encoder<'static, W>),
    /// As xz.
    Xz(XzEncoder<W>),
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
            Self::Xz(_) => "Xz",
        })
    }
}

impl<W: Write> Packer<W> {
    /// Compresses into `out`.
    ///
    /// # Errors
    /// If the compressor cannot be set up.
    pub fn new(packing: Option<Packing>, out: W) -> io::Result<Self> {
        Ok(match packing {
            None => Self::Plain(out),
            Some(Packing::Gzip) => Self::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Some(Packing::Zstd) => {
                let mut encoder = zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
            Some(Packing::Xz) => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let stream = MtStreamBuilder::new()
                    .threads(u32::try_from(threads).unwrap_or(1))
                    .preset(XZ_PRESET)
                    .check(Check::Crc64)
                    .encoder()?;
                Self::Xz(XzEncoder::new_stream(out, stream))
            }
        })
    }

    /// Compresses some bytes.
    ///
    /// # Errors
    /// Errors of the output.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
            Self::Xz(out) => out.write_all(bytes),
        }
    }

    /// Writes the end; without it the stream is truncated. Returns the output.
    ///
    /// # Errors
    /// Errors of the output.
    pub fn finish(self) -> io::Result<W> {
        let mut out = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out.finish()?,
            Self::Zstd(out) => out.finish()?,
            Self::Xz(out) => out.finish()?,
        };
        out.flush()?;
        Ok(out)
    }
}

/// Compresses clusters of an image separately, so that QEMU can read them.
pub enum ClusterPacker {
    /// Raw deflate.
    Deflate(Compress),
    /// In one frame.
    Zstd(zstd::bulk::Compressor<'static>),
}

impl std::fmt::Debug for ClusterPacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deflate(_) => "Deflate",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl ClusterPacker {
    /// A compressor at the default level.
    ///
    /// # Errors
    /// If the compressor cannot be set up.
    pub fn new(pack: Pack) -> io::Result<Self> {
        let level = flate2::Compression::default();
        Ok(match pack {
            Pack::Deflate | Pack::Zlib => Self::Deflate(Compress::new_with_window_bits(
                level,
                pack == Pack::Zlib,
                CLUSTER_WINDOW_BITS,
            )),
            Pack::Zstd => {
                let level = zstd::DEFAULT_COMPRESSION_LEVEL;
                Self::Zstd(zstd::bulk::Compressor::new(level)?)
            }
        })
    }

    /// The compressed cluster; `None` if it would not be smaller.
    ///
    /// # Errors
    /// Errors of the compressor.
    pub fn pack(&mut self, plain: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut packed = vec![0; plain.len().saturating_sub(1)];
        let len = match self {
            Self::Deflate(compress) => {
                compress.reset();
                let status = compress.compress(plain, &mut packed, FlushCompress::Finish)?;
                let len = usize::try_from(compress.total_out()).unwrap_or(0);
                (status == Status::StreamEnd).then_some(len)
            }
            // It fails only if the output does not fit.
            Self::Zstd(compressor) => compressor.compress_to_buffer(plain, &mut packed[..]).ok(),
        };
        Ok(len.map(|len| {
            packed.truncate(len);
            packed
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn compressed_data_decompresses_to_the_same_bytes() {
        let mut bytes = vec![0; 300_000];
        fastrand::Rng::with_seed(1).fill(&mut bytes[..100_000]);
        let packings = [Packing::Gzip, Packing::Zstd, Packing::Xz].map(Some);
        for packing in packings.into_iter().chain([None]) {
            for len in [0, 1, bytes.len()] {
                let mut packer = Packer::new(packing, Vec::new()).unwrap();
                for step in bytes[..len].chunks(70_001) {
                    packer.write_all(step).unwrap();
                }
                let packed = packer.finish().unwrap();
                let mut unpacked = Vec::new();
                match packing {
                    None => unpacked.clone_from(&packed),
                    Some(Packing::Gzip) => {
                        let mut decoder = flate2::read::GzDecoder::new(&*packed);
                        decoder.read_to_end(&mut unpacked).map(drop).unwrap();
                    }
                    Some(Packing::Zstd) => unpacked = zstd::decode_all(&*packed).unwrap(),
                    Some(Packing::Xz) => {
                        let mut decoder = liblzma::read::XzDecoder::new(&*packed);
                        decoder.read_to_end(&mut unpacked).map(drop).unwrap();
                    }
                }
                assert!(unpacked == bytes[..len], "{packing:?} {len}");
            }
        }
    }

    #[test]
    fn a_cluster_is_stored_compressed_only_if_that_is_shorter() {
        let plain: Vec<u8> = (0..65_536_u32).map(|i| (i / 7 % 251) as u8).collect();
        let mut noise = vec![0; 65_536];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        // Every repetition is further back than QEMU's window for Deflate.
        let far = noise[..8192].repeat(8);
        for pack in [Pack::Deflate, Pack::Zstd] {
            let mut packer = ClusterPacker::new(pack).unwrap();
            for _ in 0..2 {
                assert_eq!(packer.pack(&noise).unwrap(), None, "{pack:?}");
                let is_shorter = packer.pack(&far).unwrap().is_some();
                assert_eq!(is_shorter, pack == Pack::Zstd, "{pack:?}");
                let packed = packer.pack(&plain).unwrap().unwrap();
                assert!(packed.len() < plain.len() / 2);
                let mut unpacked = vec![0; plain.len()];
                match pack {
                    Pack::Zstd => unpacked = zstd::decode_all(&*packed).unwrap(),
                    _ => {
                        let mut inflate = flate2::Decompress::new_with_window_bits(false, 12);
                        let finish = flate2::FlushDecompress::Finish;
                        let status = inflate.decompress(&packed, &mut unpacked, finish);
                        assert_eq!(status.unwrap(), Status::StreamEnd);
                    }
                }
                assert!(unpacked == plain, "{pack:?}");
            }
        }
    }
}
