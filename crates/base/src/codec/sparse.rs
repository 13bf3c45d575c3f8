//! Compresses a stream with long runs of zeros at nearly no cost: the compressed form of a run is
//! created once and repeated, and the checksum of a long run is computed from that of a short one.
//! The result is one gzip member that every program can read.

use std::sync::OnceLock;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Zeros that are repeated as one unit, in bytes.
pub const UNIT_BYTES: u64 = 1 << 20;
/// Bytes by which the output buffer grows at a time.
const ROOM_BYTES: usize = 64 * 1024;
/// Magic, deflate, no flags, no time, no hint, an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// A gzip stream under construction. Its output is appended to a buffer of the caller.
#[derive(Debug)]
pub struct SparseGzip {
    compress: Compress,
    crc: Crc,
    bytes: u64,
    /// Whether the next output refers to nothing before it and begins at a byte boundary.
    is_aligned: bool,
}

/// [`UNIT_BYTES`] zeros.
struct Unit {
    deflated: Vec<u8>,
    crc: Crc,
}

fn unit() -> &'static Unit {
    static UNIT: OnceLock<Unit> = OnceLock::new();
    UNIT.get_or_init(|| {
        let zeros = vec![0; UNIT_BYTES as usize];
        let mut compress = Compress::new(Compression::best(), false);
        let mut deflated = Vec::new();
        deflate(&mut compress, &zeros, FlushCompress::None, &mut deflated);
        deflate(&mut compress, &[], FlushCompress::Full, &mut deflated);
        let mut crc = Crc::new();
        crc.update(&zeros);
        Unit { deflated, crc }
    })
}

impl SparseGzip {
    /// Begins a stream; the header is appended to `out`.
    pub fn begin(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&HEADER);
        Self {
            compress: Compress::new(Compression::fast(), false),
            crc: Crc::new(),
            bytes: 0,
            is_aligned: true,
        }
    }

    /// Compresses these bytes.
    pub fn data(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.crc.update(bytes);
        self.bytes = self.bytes.wrapping_add(bytes.len() as u64);
        self.is_aligned = false;
        deflate(&mut self.compress, bytes, FlushCompress::None, out);
    }

    /// Appends `units` times [`UNIT_BYTES`] zeros, each of which takes about 1 kB of `out`.
    pub fn zeros(&mut self, units: u64, out: &mut Vec<u8>) {
        if !self.is_aligned {
            deflate(&mut self.compress, &[], FlushCompress::Full, out);
            self.is_aligned = true;
        }
        let unit = unit();
        for _ in 0..units {
            out.extend_from_slice(&unit.deflated);
            self.crc.combine(&unit.crc);
        }
        self.bytes = self.bytes.wrapping_add(units.wrapping_mul(UNIT_BYTES));
    }

    /// Ends the stream.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        deflate(&mut self.compress, &[], FlushCompress::Finish, out);
        out.extend_from_slice(&self.crc.sum().to_le_bytes());
        // The length modulo 2^32, as the format requires.
        out.extend_from_slice(&(self.bytes as u32).to_le_bytes());
    }
}

/// Compresses all of `bytes`, with this kind of flush.
fn deflate(compress: &mut Compress, mut bytes: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
    loop {
        out.reserve(ROOM_BYTES);
        let before = compress.total_in();
        // It fails only after the stream was finished, or if it has no room for output.
        let status = compress.compress_vec(bytes, out, flush);
        bytes = &bytes[(compress.total_in() - before) as usize..];
        let has_room = out.len() < out.capacity();
        match status {
            Ok(Status::Ok) if !bytes.is_empty() || !has_room => {}
            Ok(Status::Ok) if flush == FlushCompress::Finish => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Piece {
        Data(Vec<u8>),
        Zeros(u64),
    }

    fn piece() -> impl Strategy<Value = Piece> {
        let noise = (any::<u64>(), 0usize..300_000).prop_map(|(seed, len)| {
            let mut bytes = vec![0; len];
            fastrand::Rng::with_seed(seed).fill(&mut bytes);
            Piece::Data(bytes)
        });
        let text = (0u8..3, 0usize..3_000_000).prop_map(|(byte, len)| Piece::Data(vec![byte; len]));
        prop_oneof![noise, text, (0u64..4).prop_map(Piece::Zeros)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_compressed_file_with_holes_decompresses_to_the_same_bytes(pieces in prop::collection::vec(piece(), 0..8)) {
            let mut packed = Vec::new();
            let mut gzip = SparseGzip::begin(&mut packed);
            let mut expected = Vec::new();
            for piece in &pieces {
                match piece {
                    Piece::Data(bytes) => {
                        gzip.data(bytes, &mut packed);
                        expected.extend_from_slice(bytes);
                    }
                    Piece::Zeros(units) => {
                        gzip.zeros(*units, &mut packed);
                        expected.resize(expected.len() + (units * UNIT_BYTES) as usize, 0);
                    }
                }
            }
            gzip.finish(&mut packed);
            // There is one member, and nothing after it.
            let mut decoder = flate2::bufread::GzDecoder::new(&packed[..]);
            let mut got = Vec::new();
            decoder.read_to_end(&mut got).unwrap();
            prop_assert!(got == expected);
            prop_assert!(decoder.into_inner().is_empty());
        }
    }

    #[test]
    fn a_length_beyond_32_bits_is_stored_modulo_2_to_the_32() {
        let mut packed = Vec::new();
        let mut gzip = SparseGzip::begin(&mut packed);
        gzip.zeros(5000, &mut packed);
        gzip.data(b"end", &mut packed);
        gzip.finish(&mut packed);
        assert!(packed.len() < 5000 * 1100, "{}", packed.len());
        let mut decoder = flate2::bufread::GzDecoder::new(&packed[..]);
        let mut buffer = vec![0; 1 << 20];
        let mut len = 0;
        loop {
            match decoder.read(&mut buffer).unwrap() {
                0 => break,
                n => len += n as u64,
            }
        }
        assert_eq!(len, 5000 * UNIT_BYTES + 3);
    }
}
