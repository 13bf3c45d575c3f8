//! Reusable buffers. The pool is the memory budget of a transfer: it has a fixed number of buffers,
//! and a caller that needs another one waits. So memory is bounded whatever the size of the image.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};
use bytes::Bytes;

/// A fixed number of buffers.
#[derive(Clone, Debug)]
pub struct BufferPool {
    free: Receiver<Used>,
    back: Sender<Used>,
    count: Arc<AtomicUsize>,
}

/// A buffer borrowed from a [`BufferPool`]; dropping it returns it to the pool.
#[derive(Debug)]
pub struct Buffer {
    used: Used,
    back: Sender<Used>,
}

/// Bytes, and which of them may be nonzero.
#[derive(Debug, Default)]
struct Used {
    bytes: Vec<u8>,
    touched: Range<usize>,
}

impl Used {
    fn resize(&mut self, len: usize) {
        self.bytes.resize(len, 0);
        self.touched = intersection(&self.touched, &(0..len));
    }
}

fn intersection(left: &Range<usize>, right: &Range<usize>) -> Range<usize> {
    let both = left.start.max(right.start)..left.end.min(right.end);
    if both.is_empty() { 0..0 } else { both }
}

impl BufferPool {
    /// A pool of `count` buffers. A buffer uses no memory before it is taken for the first time.
    pub fn new(count: usize) -> Self {
        // The number of buffers bounds the channel.
        let (back, free) = async_channel::unbounded();
        let pool = Self {
            free,
            back,
            count: Arc::default(),
        };
        pool.grow(count.max(1));
        pool
    }

    /// Enlarges the pool to `count` buffers, if it has fewer.
    pub fn grow(&self, count: usize) {
        let before = self.count.fetch_max(count, Ordering::Relaxed);
        for _ in before..count {
            // Fails only after `close`, when nobody needs the buffer.
            let _ = self.back.try_send(Used::default());
        }
    }

    /// Waits for a free buffer and makes it `len` bytes long. Its content is left over from earlier
    /// use. `None` once the pool is closed. Blocks, so it must not be called on the async runtime.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        Some(self.lend(self.free.recv_blocking().ok()?, len))
    }

    /// As [`take`](Self::take), for async code.
    pub async fn wait(&self, len: usize) -> Option<Buffer> {
        Some(self.lend(self.free.recv().await.ok()?, len))
    }

    fn lend(&self, mut used: Used, len: usize) -> Buffer {
        used.resize(len);
        Buffer {
            used,
            back: self.back.clone(),
        }
    }

    /// Number of buffers that are free now.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Closes the pool: all callers that wait for a buffer get none.
    pub fn close(&self) {
        self.free.close();
    }
}

impl Buffer {
    /// Changes the length to `len` bytes; added bytes are zero.
    pub fn resize(&mut self, len: usize) {
        self.used.resize(len);
    }

    /// Fills the buffer: reads these ranges, which are in order, with `read`, which receives where
    /// in the buffer each begins; everything else becomes zero. Bytes that are already zero are not
    /// written again, so the holes of a sparse image cost nothing.
    ///
    /// # Errors
    /// Errors of `read`; the content of the buffer is undefined then.
    pub fn fill<E>(
        &mut self,
        ranges: &[Range<usize>],
        mut read: impl FnMut(&mut [u8], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let all = 0..self.len();
        let touched = std::mem::replace(&mut self.used.touched, all.clone());
        let mut at = 0;
        for range in ranges {
            self.used.bytes[intersection(&touched, &(at..range.start))].fill(0);
            read(&mut self.used.bytes[range.clone()], range.start)?;
            at = range.end;
        }
        self.used.bytes[intersection(&touched, &(at..all.end))].fill(0);
        self.used.touched = ranges.first().map_or(0, |first| first.start)..at;
        Ok(())
    }

    /// Converts the buffer to `Bytes` for sending, without a copy. It returns to its pool when the
    /// last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.used.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.used.touched = 0..self.used.bytes.len();
        &mut self.used.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.used.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // After `close` nobody needs the buffer.
        let _ = self.back.try_send(std::mem::take(&mut self.used));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A use of a borrowed buffer.
    #[derive(Clone, Debug)]
    enum Use {
        Fill(Vec<Range<usize>>),
        FailToFill(Vec<Range<usize>>),
        Write(usize),
        Resize(usize),
    }

    fn uses() -> impl Strategy<Value = (usize, Vec<Use>)> {
        let ranges = || {
            proptest::collection::btree_set(0..=100_usize, 0..8).prop_map(|ends| {
                let ends: Vec<_> = ends.into_iter().collect();
                ends.chunks_exact(2)
                    .map(|pair| pair[0]..pair[1])
                    .collect::<Vec<_>>()
            })
        };
        let one = prop_oneof![
            4 => ranges().prop_map(Use::Fill),
            1 => ranges().prop_map(Use::FailToFill),
            1 => (0..100_usize).prop_map(Use::Write),
            1 => (0..200_usize).prop_map(Use::Resize),
        ];
        (100..130_usize, proptest::collection::vec(one, 0..4))
    }

    proptest! {
        /// Whatever a buffer was used for before, after `fill` it has what was read, and zeros.
        #[test]
        fn a_reused_buffer_contains_no_earlier_bytes(
            borrowed in proptest::collection::vec(uses(), 1..8),
        ) {
            let pool = BufferPool::new(1);
            let mut number = 0_u8;
            for (len, uses) in borrowed {
                let mut buffer = pool.take(len).unwrap();
                for one in uses {
                    number = number % 250 + 1;
                    match one {
                        Use::Fill(ranges) if buffer.len() >= 100 => {
                            let filled = buffer.fill(&ranges, |bytes, at| {
                                bytes.fill(number);
                                assert!(ranges.iter().any(|one| one.start == at));
                                Ok::<(), ()>(())
                            });
                            prop_assert_eq!(filled, Ok(()));
                            for (at, byte) in buffer.iter().enumerate() {
                                let is_read = ranges.iter().any(|range| range.contains(&at));
                                prop_assert_eq!(*byte, if is_read { number } else { 0 }, "{}", at);
                            }
                        }
                        Use::FailToFill(ranges) if buffer.len() >= 100 => {
                            let mut left = ranges.len() / 2;
                            let _ = buffer.fill(&ranges, |bytes, _| {
                                bytes.fill(number);
                                left = left.checked_sub(1).ok_or(())?;
                                Ok::<(), ()>(())
                            });
                        }
                        Use::Write(at) if at < buffer.len() => buffer[at] = number,
                        Use::Resize(len) => buffer.resize(len),
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn a_buffer_returns_to_the_pool_when_its_last_clone_is_dropped() {
        let pool = BufferPool::new(1);
        let bytes = pool.take(3).unwrap().freeze();
        let clone = bytes.slice(1..);
        drop(bytes);
        assert!(pool.free.is_empty());
        drop(clone);
        assert_eq!(pool.take(5).unwrap().len(), 5);
        pool.close();
        let pool2 = pool.clone();
        drop(pool);
        pool2.close();
    }

    #[test]
    fn a_pool_grows_and_does_not_shrink() {
        let pool = BufferPool::new(1);
        let one = pool.take(1);
        assert!(pool.free.is_empty());
        pool.clone().grow(3);
        pool.grow(2);
        assert_eq!(pool.free.len(), 2);
        drop(one);
        assert_eq!(pool.free.len(), 3);
    }
}
