//! The compressed bytes as decoders need them: counted, and with a way to look ahead without
//! consuming.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// The bytes of a stream before they are decompressed.
pub(super) type Packed = Source<Tap>;

/// Hashes the bytes that are read through it.
pub(super) struct Tap {
    read: Box<dyn Read + Send>,
    hasher: Option<Sha256>,
    digest: Arc<OnceLock<Digest>>,
}

impl Tap {
    /// Reads from `read`. If `hashes`, `digest` is set at the end to the SHA-256 of all bytes.
    pub(super) fn new(
        read: Box<dyn Read + Send>,
        hashes: bool,
        digest: &Arc<OnceLock<Digest>>,
    ) -> Self {
        Self {
            read,
            hasher: hashes.then(Sha256::new),
            digest: Arc::clone(digest),
        }
    }
}

impl Read for Tap {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.read.read(bytes)?;
        if n > 0
            && let Some(hasher) = &mut self.hasher
        {
            hasher.update(&bytes[..n]);
        } else if n == 0
            && !bytes.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let _ = self
                .digest
                .set(Digest::from_bytes(hasher.finalize().into()));
        }
        Ok(n)
    }
}

/// Bytes in order that a decoder consumes. It counts the consumed bytes, and notes whether more
/// were requested than there are.
pub(super) struct Source<R> {
    read: R,
    buffer: Vec<u8>,
    /// Start of the bytes in the buffer that are not consumed yet.
    start: usize,
    end: usize,
    consumed: u64,
    is_past_end: bool,
}

impl<R: Read> Source<R> {
    /// Reads from `read`, in steps of `step` bytes.
    pub(super) fn new(read: R, step: usize) -> Self {
        Self {
            read,
            buffer: vec![0; step],
            start: 0,
            end: 0,
            consumed: 0,
            is_past_end: false,
        }
    }

    /// Number of bytes consumed so far. Bytes that were only looked at do not count.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether a reader requested bytes after the last one.
    pub(super) fn is_past_end(&self) -> bool {
        self.is_past_end
    }

    /// The next bytes, which are not consumed: at least `len`, or the step of this source if that is
    /// less, unless the source ends earlier.
    pub(super) fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        let len = len.min(self.buffer.len());
        if self.buffer.len() - self.start < len {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < len && self.fill()? > 0 {}
        Ok(&self.buffer[self.start..self.end])
    }

    /// Reads more after the buffered bytes. It hides interrupted reads from decoders, because not
    /// all of them handle these.
    fn fill(&mut self) -> io::Result<usize> {
        loop {
            match self.read.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n);
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Consumes `len` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if there are fewer.
    pub(super) fn skip(&mut self, len: u64) -> io::Result<()> {
        match io::copy(&mut self.by_ref().take(len), &mut io::sink())? == len {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.is_past_end |= self.fill()? == 0;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, len: usize) {
        let len = len.min(self.end - self.start);
        self.start += len;
        self.consumed += len as u64;
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let there = self.fill_buf()?;
        let n = there.len().min(bytes.len());
        bytes[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns one byte at a time, as a pipe may.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(bytes.len()).min(1);
            bytes[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn peeking_consumes_no_bytes(
            content in proptest::collection::vec(any::<u8>(), 0..200),
            steps in proptest::collection::vec((0_usize..16, 0_usize..24), 0..40),
        ) {
            let mut source = Source::new(Drip(&content), 16);
            let mut at = 0;
            for (ahead, step) in steps {
                let seen = source.peek(ahead).unwrap().to_vec();
                let rest = &content[at..];
                prop_assert!(seen.len() >= ahead.min(rest.len()));
                prop_assert_eq!(&seen[..], &rest[..seen.len()]);
                prop_assert!(!source.is_past_end());
                let step = step.min(rest.len());
                source.skip(step as u64).unwrap();
                at += step;
                prop_assert_eq!(source.consumed(), at as u64);
            }
            let mut rest = Vec::new();
            source.read_to_end(&mut rest).unwrap();
            prop_assert_eq!(rest, &content[at..]);
            prop_assert!(source.is_past_end());
            prop_assert!(source.skip(1).is_err());
        }
    }
}
