//! The path of a chunk as types. Each stage takes the type before it, so the
//! order of the stages cannot be got wrong:
//!
//! [`RawChunk`] (read from the image) → [`DataChunk`] or a hole (zero check) →
//! [`EncodedChunk`] (compressed, or left alone) → confirmed, which is an entry
//! in the [`Ledger`](crate::policy::Ledger).

use bytes::Bytes;

use crate::buffer::Buffer;
use crate::digest::Digest;
use crate::plan::Span;

/// Bytes of the image, not looked at yet.
#[derive(Debug)]
pub struct RawChunk {
    span: Span,
    bytes: Buffer,
}

/// What the zero check makes of a chunk.
#[derive(Debug)]
pub enum Checked {
    /// It holds something.
    Data(DataChunk),
    /// It is all zero.
    Hole(Span),
}

/// A chunk that is known to hold at least one byte that is not zero. Only the
/// zero check makes one.
#[derive(Debug)]
pub struct DataChunk {
    span: Span,
    bytes: Buffer,
}

/// How the body of a write request is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `Content-Encoding: gzip`.
    Gzip,
    /// The bytes themselves, no `Content-Encoding`.
    Identity,
}

/// A chunk as it goes over the wire. Every attempt sends these same bytes: that
/// is what makes a repeated write harmless (FAULTS 3.1).
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// Where it goes.
    pub span: Span,
    /// The body of the request.
    pub body: Bytes,
    /// How the body is encoded.
    pub encoding: Encoding,
    /// The SHA-256 of the chunk itself, if anybody wants to know.
    pub digest: Option<Digest>,
}

impl RawChunk {
    /// Where it lies.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its bytes as they were read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A chunk of the bytes at `span`.
    pub fn new(span: Span, bytes: Buffer) -> Self {
        debug_assert_eq!(span.len, bytes.len() as u64);
        Self { span, bytes }
    }

    /// The zero check.
    pub fn check(self) -> Checked {
        if is_zero(&self.bytes) {
            Checked::Hole(self.span)
        } else {
            Checked::Data(DataChunk {
                span: self.span,
                bytes: self.bytes,
            })
        }
    }
}

impl DataChunk {
    /// Where it lies.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives up its bytes.
    pub fn into_buffer(self) -> Buffer {
        self.bytes
    }
}

/// So many zeros in bytes, to write or to hash, a step at a time.
pub fn zeros(mut len: u64) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    std::iter::from_fn(move || {
        let step = len.min(ZEROS.len() as u64);
        len -= step;
        let step = usize::try_from(step).ok().filter(|step| *step > 0)?;
        Some(&ZEROS[..step])
    })
}

/// Whether all bytes are zero. The slice is compared with itself, one byte
/// apart, which the compiler turns into `memcmp`: tens of GB/s, so never what
/// limits a transfer.
pub fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == &bytes[..bytes.len() - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        for len in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let steps: Vec<&[u8]> = zeros(len).collect();
            assert!(steps.iter().all(|step| !step.is_empty() && is_zero(step)));
            assert_eq!(steps.iter().map(|step| step.len() as u64).sum::<u64>(), len);
        }
    }

    #[test]
    fn one_byte_anywhere_is_data() {
        assert!(is_zero(&[]));
        for len in [1, 2, 7, 8, 9, 4096, 4097] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for i in [0, len / 2, len - 1] {
                bytes[i] = 1;
                assert!(!is_zero(&bytes), "{i} of {len}");
                bytes[i] = 0;
            }
        }
    }
}
