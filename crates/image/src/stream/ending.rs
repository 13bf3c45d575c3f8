//! The end of a stream that should be a raw disk. Some formats, such as a fixed VHD, have their header
//! after the disk. In a stream they are recognised only when nearly everything was sent, so the last
//! bytes are held back until it is certain that they are the last.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::foreign::TAIL_BYTES;

/// Bytes to read at a time for a caller whose buffer is too small to be read into. Any number will
/// do: the buffer of a stream is large enough.
const STEP_BYTES: usize = 4096;

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Unchanged.
    Whole,
    /// The stream ended with the footer of a fixed VHD, whose disk is everything before it. The
    /// footer was left out.
    FooterLeftOut,
}

/// Decides how a stream ended, from its last bytes and the number of bytes before them.
type Judge = Box<dyn Fn(&[u8], u64) -> Result<StreamEnd, Error> + Send>;

/// A reader that returns the last bytes of another one only after they were judged.
pub(super) struct HeldBack<R> {
    inner: R,
    /// Bytes that were read and not returned yet: until the end, at least the last [`TAIL_BYTES`].
    held: Vec<u8>,
    /// Number of bytes that were returned.
    returned: u64,
    judge: Judge,
    /// Set when `inner` has ended and was judged; shared with the image, for a notice.
    ended: Arc<OnceLock<StreamEnd>>,
}

impl<R: Read> HeldBack<R> {
    pub(super) fn new(inner: R, judge: Judge, ended: Arc<OnceLock<StreamEnd>>) -> Self {
        Self {
            inner,
            held: Vec::new(),
            returned: 0,
            judge,
            ended,
        }
    }

    /// How many of the held bytes may be returned.
    fn ready(&self) -> usize {
        match self.ended.get() {
            Some(_) => self.held.len(),
            None => self.held.len().saturating_sub(TAIL_BYTES),
        }
    }

    /// Judges the held bytes, which are the last ones.
    fn end(&mut self) -> io::Result<()> {
        let ended = (self.judge)(&self.held, self.returned).map_err(io::Error::other)?;
        if ended == StreamEnd::FooterLeftOut {
            // They are the footer and nothing else, which has exactly `TAIL_BYTES`.
            self.held.clear();
        }
        let _ = self.ended.set(ended);
        Ok(())
    }

    /// Reads directly into a buffer of at least twice [`TAIL_BYTES`], which avoids copying every byte.
    /// At most [`TAIL_BYTES`] must be held. Returns how many bytes may be returned, which can be 0
    /// before the end.
    fn read_through(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let held = self.held.len();
        bytes[..held].copy_from_slice(&self.held);
        let read = self.inner.read(&mut bytes[held..])?;
        if read == 0 {
            self.end()?;
            return Ok(self.take_ready(bytes));
        }
        let ready = (held + read).saturating_sub(TAIL_BYTES);
        self.held.clear();
        self.held.extend_from_slice(&bytes[ready..held + read]);
        self.returned += ready as u64;
        Ok(ready)
    }

    /// Moves those of the held bytes that may be returned to `bytes`, and returns their number.
    fn take_ready(&mut self, bytes: &mut [u8]) -> usize {
        let n = self.ready().min(bytes.len());
        bytes[..n].copy_from_slice(&self.held[..n]);
        self.held.drain(..n);
        self.returned += n as u64;
        n
    }
}

impl<R: Read> Read for HeldBack<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if bytes.is_empty() || self.ready() > 0 || self.ended.get().is_some() {
                return Ok(self.take_ready(bytes));
            }
            // None of the held bytes may be returned, so there are at most `TAIL_BYTES`.
            if bytes.len() >= 2 * TAIL_BYTES {
                match self.read_through(bytes)? {
                    0 => continue,
                    n => return Ok(n),
                }
            }
            let held = self.held.len();
            self.held.resize(held + STEP_BYTES, 0);
            let read = self.inner.read(&mut self.held[held..]);
            // A failed read adds nothing, so that the caller may try again.
            let added = *read.as_ref().unwrap_or(&0);
            self.held.truncate(held + added);
            if read? == 0 {
                self.end()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns pieces of these lengths, over and over again.
    struct Pieces(Vec<u8>, Vec<usize>);

    impl Read for Pieces {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.1.rotate_left(1);
            let n = self.1[0].min(bytes.len()).min(self.0.len());
            bytes[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn a_stream_is_returned_without_its_vhd_footer(
            len in 0_usize..5000,
            pieces in proptest::collection::vec(1_usize..3000, 1..5),
            wanted in proptest::collection::vec(1_usize..3000, 1..5),
            left_out: bool,
        ) {
            let all: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let expected = all.clone();
            let tail = len.saturating_sub(TAIL_BYTES);
            let judge = move |held: &[u8], before: u64| {
                assert_eq!((held, before), (&expected[tail..], tail as u64));
                Ok(if left_out { StreamEnd::FooterLeftOut } else { StreamEnd::Whole })
            };
            let ended = Arc::default();
            let mut read = HeldBack::new(Pieces(all.clone(), pieces), Box::new(judge), Arc::clone(&ended));
            let (mut got, mut wanted) = (Vec::new(), wanted.into_iter().cycle());
            loop {
                let mut step = vec![0; wanted.next().unwrap()];
                match read.read(&mut step).unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&step[..n]),
                }
            }
            prop_assert_eq!(&got[..], if left_out { &all[..tail] } else { &all[..] });
            prop_assert!(ended.get().is_some());
            prop_assert_eq!(read.read(&mut [0; 10]).unwrap(), 0);
        }
    }
}
