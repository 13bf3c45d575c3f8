//! Decompresses one cluster of an image. The compressed bytes are all in memory, and are not
//! trusted.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Maximum window of a Zstandard frame, as a power of two: 8 MiB, which every decoder should
/// support (RFC 8878, 3.1.1.1.2). A cluster is smaller.
const WINDOW_LOG_MAX: u32 = 23;

/// The compression of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// Raw deflate (RFC 1951).
    Deflate,
    /// Deflate in the zlib format (RFC 1950).
    Zlib,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Compressed bytes that do not decompress to what they should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// They are not in this format, or damaged.
    #[error("The packed bytes are damaged: {0}")]
    Damaged(String),
    /// They hold fewer bytes than expected.
    #[error("The packed bytes hold {0} bytes of {1}")]
    Short(usize, usize),
}

/// Decompresses clusters. It is reused for many clusters only to avoid allocations; no state passes
/// from one to the next.
pub struct Unpacker(Way);

enum Way {
    /// libdeflate is faster, but needs a complete stream that fills the output exactly. QEMU
    /// accepts others, so flate2 tries when libdeflate fails.
    Deflate {
        fast: Decompressor,
        inflate: Decompress,
        has_envelope: bool,
    },
    Zstd(Decoder<'static>),
}

impl Unpacker {
    /// A decompressor for `pack`.
    ///
    /// # Errors
    /// [`UnpackError::Damaged`] if there is not enough memory.
    pub fn new(pack: Pack) -> Result<Self, UnpackError> {
        Ok(Self(match pack {
            Pack::Deflate => Way::deflate(false),
            Pack::Zlib => Way::deflate(true),
            Pack::Zstd => {
                let mut decoder = Decoder::new().map_err(damaged)?;
                decoder
                    .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
                    .map_err(damaged)?;
                Way::Zstd(decoder)
            }
        }))
    }

    /// Fills `out` from the start of `packed`. The rest of `packed` is ignored, because formats
    /// state the length of a compressed cluster in sectors.
    ///
    /// # Errors
    /// [`UnpackError`]; the content of `out` is undefined then.
    pub fn unpack(&mut self, packed: &[u8], out: &mut [u8]) -> Result<(), UnpackError> {
        let filled = match &mut self.0 {
            Way::Deflate {
                fast,
                inflate,
                has_envelope,
            } => {
                let filled = match *has_envelope {
                    true => fast.zlib_decompress(packed, out),
                    false => fast.deflate_decompress(packed, out),
                };
                if filled.is_ok_and(|filled| filled == out.len()) {
                    return Ok(());
                }
                inflate.reset(*has_envelope);
                fill_deflate(inflate, packed, out)?
            }
            Way::Zstd(decoder) => {
                decoder.reinit().map_err(damaged)?;
                fill_zstd(decoder, packed, out)?
            }
        };
        match filled == out.len() {
            true => Ok(()),
            false => Err(UnpackError::Short(filled, out.len())),
        }
    }
}

impl Way {
    fn deflate(has_envelope: bool) -> Self {
        Self::Deflate {
            fast: Decompressor::new(),
            inflate: Decompress::new(has_envelope),
            has_envelope,
        }
    }
}

fn fill_deflate(
    inflate: &mut Decompress,
    packed: &[u8],
    out: &mut [u8],
) -> Result<usize, UnpackError> {
    let (mut taken, mut filled) = (0, 0);
    while filled < out.len() {
        let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
        let status = inflate
            .decompress(
                &packed[taken..],
                &mut out[filled..],
                FlushDecompress::Finish,
            )
            .map_err(damaged)?;
        let moved = |total: u64, before| usize::try_from(total - before).unwrap_or(0);
        let (read, written) = (
            moved(inflate.total_in(), before_in),
            moved(inflate.total_out(), before_out),
        );
        taken += read;
        filled += written;
        if status == Status::StreamEnd || (read == 0 && written == 0) {
            break;
        }
    }
    Ok(filled)
}

fn fill_zstd(
    decoder: &mut Decoder<'_>,
    packed: &[u8],
    out: &mut [u8],
) -> Result<usize, UnpackError> {
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(out);
    while output.pos() < output.capacity() {
        let before = (input.pos(), output.pos());
        let rest = decoder.run(&mut input, &mut output).map_err(damaged)?;
        if rest == 0 || before == (input.pos(), output.pos()) {
            break;
        }
    }
    Ok(output.pos())
}

fn damaged(cause: impl fmt::Display) -> UnpackError {
    UnpackError::Damaged(cause.to_string())
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Way::Deflate { .. } => "Unpacker(deflate)",
            Way::Zstd(_) => "Unpacker(zstd)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(pack: Pack, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match pack {
            Pack::Deflate => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Pack::Zlib => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Pack::Zstd => zstd::bulk::compress(plain, 3).unwrap(),
        }
    }

    #[test]
    fn a_cluster_decompresses_regardless_of_other_clusters() {
        let plain: Vec<u8> = (0..65_536_u32).map(|i| (i / 7 % 251) as u8).collect();
        for pack in [Pack::Deflate, Pack::Zlib, Pack::Zstd] {
            let mut unpacker = Unpacker::new(pack).unwrap();
            let mut bytes = packed(pack, &plain);
            let len = bytes.len();
            let mut out = vec![1; plain.len()];
            bytes.extend_from_slice(&[0xaa; 511]);
            unpacker.unpack(&bytes, &mut out).unwrap();
            assert_eq!(out, plain, "{pack:?}");
            // Only the start is requested.
            unpacker.unpack(&bytes, &mut out[..1000]).unwrap();
            // Cut off, then sound again.
            let cut = unpacker.unpack(&bytes[..len / 2], &mut out);
            assert!(cut.is_err(), "{pack:?}");
            unpacker.unpack(&bytes, &mut out).unwrap();
            assert_eq!(out, plain, "{pack:?}");
            let mut more = vec![0; plain.len() + 1];
            let short = unpacker.unpack(&bytes[..len], &mut more);
            let expected = UnpackError::Short(plain.len(), plain.len() + 1);
            assert_eq!(short, Err(expected), "{pack:?}");
            assert!(unpacker.unpack(&[0x5a; 100], &mut out).is_err(), "{pack:?}");
        }
    }

    #[test]
    fn a_cluster_whose_stream_has_no_end_mark_is_accepted() {
        let plain: Vec<u8> = (0..65_536_u32).map(|i| (i / 7 % 251) as u8).collect();
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(&plain).unwrap();
        encoder.flush().unwrap();
        let mut out = vec![0; plain.len()];
        let mut unpacker = Unpacker::new(Pack::Deflate).unwrap();
        unpacker.unpack(encoder.get_ref(), &mut out).unwrap();
        assert_eq!(out, plain);
    }

    #[test]
    fn a_zstd_frame_with_a_large_window_is_refused() {
        // Magic, a header with a window only, of 2^27 bytes, then a raw block.
        let frame = [
            0x28,
            0xb5,
            0x2f,
            0xfd,
            0x00,
            17 << 3,
            0x21,
            0,
            0,
            1,
            2,
            3,
            4,
        ];
        let mut out = [0; 4];
        let mut unpacker = Unpacker::new(Pack::Zstd).unwrap();
        let refused = unpacker.unpack(&frame, &mut out);
        assert!(
            matches!(refused, Err(UnpackError::Damaged(_))),
            "{refused:?}"
        );
        let mut small = frame;
        small[5] = 3 << 3;
        unpacker.unpack(&small, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
    }
}
