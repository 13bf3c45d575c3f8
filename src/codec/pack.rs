//! Packs a stream as it is written.

use std::io::{self, Write};

use flate2::write::GzEncoder;

/// How a download is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, at its default level.
    Gzip,
    /// Zstandard, at its default level, with a checksum.
    Zstd,
}

/// A stream that packs what it is given, or not.
pub enum Packer<W: Write> {
    /// As it is.
    Plain(W),
    /// As gzip.
    Gzip(GzEncoder<W>),
    /// As Zstandard.
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> Packer<W> {
    /// Packs into `out`.
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
        })
    }

    /// Packs some bytes.
    ///
    /// # Errors
    /// Of what it writes to.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }

    /// Writes the end; without it the stream is cut short. Gives back what it
    /// writes to.
    ///
    /// # Errors
    /// Of what it writes to.
    pub fn finish(self) -> io::Result<W> {
        let mut out = match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out.finish()?,
            Self::Zstd(out) => out.finish()?,
        };
        out.flush()?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_packed_unpacks_to_the_same() {
        let mut bytes = vec![0; 300_000];
        fastrand::Rng::with_seed(1).fill(&mut bytes[..100_000]);
        for packing in [None, Some(Packing::Gzip), Some(Packing::Zstd)] {
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
                }
                assert!(unpacked == bytes[..len], "{packing:?} {len}");
            }
        }
    }
}
