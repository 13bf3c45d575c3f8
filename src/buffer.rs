//! Buffers that are used again. The pool is the memory budget of a transfer: it
//! hands out so many buffers and whoever wants one more waits, so the bytes held
//! are bounded whatever the size of the image.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};
use bytes::Bytes;

/// A number of buffers.
#[derive(Clone, Debug)]
pub struct BufferPool {
    free: Receiver<Vec<u8>>,
    back: Sender<Vec<u8>>,
    count: Arc<AtomicUsize>,
}

/// Bytes borrowed from a [`BufferPool`]; they go back when dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl BufferPool {
    /// A pool of `count` buffers; none takes memory before it is used.
    pub fn new(count: usize) -> Self {
        // Bounded by what there is to come back.
        let (back, free) = async_channel::unbounded();
        let pool = Self {
            free,
            back,
            count: Arc::default(),
        };
        pool.grow(count.max(1));
        pool
    }

    /// Makes it a pool of `count` buffers, if it has fewer.
    pub fn grow(&self, count: usize) {
        let before = self.count.fetch_max(count, Ordering::Relaxed);
        for _ in before..count {
            // Fails only after `close`, when nobody wants it any more.
            let _ = self.back.try_send(Vec::new());
        }
    }

    /// Waits for a free buffer and makes it `len` bytes long; what it holds is
    /// left over from before. `None` once the pool is closed. Blocks: not for
    /// the reactor.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        Some(self.lend(self.free.recv_blocking().ok()?, len))
    }

    /// As [`take`](Self::take), for the reactor.
    pub async fn wait(&self, len: usize) -> Option<Buffer> {
        Some(self.lend(self.free.recv().await.ok()?, len))
    }

    fn lend(&self, mut bytes: Vec<u8>, len: usize) -> Buffer {
        bytes.resize(len, 0);
        Buffer {
            bytes,
            back: self.back.clone(),
        }
    }

    /// Lets everybody who waits for a buffer go without.
    pub fn close(&self) {
        self.free.close();
    }
}

impl Buffer {
    /// Makes it `len` bytes long; bytes that this adds are zero.
    pub fn resize(&mut self, len: usize) {
        self.bytes.resize(len, 0);
    }

    /// The bytes for sending, without a copy; the buffer goes back to its pool
    /// when the last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // After `close` nobody wants it any more.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_clone_is_gone() {
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
