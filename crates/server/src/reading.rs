//! Bytes of a drive as the body of an answer, read step by step as the client takes them. What is
//! in the page cache is read at once; what may need the disk is read on a thread that may block.

use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

use super::hosted::Hosted;
use openhosting_base::locks::lock;

/// Bytes in memory for one answer; few, because slow clients hold them long.
const STEP_BYTES: u64 = 256 * 1024;
/// Buffers to keep for the next steps.
const KEPT_BUFFERS: usize = 32;

/// Reusable buffers of one step each.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(Arc<Mutex<Vec<Vec<u8>>>>);

impl Steps {
    /// A buffer with undefined content.
    fn take(&self) -> Step {
        let kept = lock(&self.0).pop();
        Step {
            bytes: kept.unwrap_or_else(|| vec![0; STEP_BYTES as usize]),
            back: self.clone(),
        }
    }
}

/// Returns the buffer when dropped.
#[derive(Debug)]
struct Step {
    bytes: Vec<u8>,
    back: Steps,
}

impl AsRef<[u8]> for Step {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let mut kept = lock(&self.back.0);
        if kept.len() < KEPT_BUFFERS {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// `left` bytes of a drive from `offset` on.
#[derive(Debug)]
pub(super) struct DriveBytes {
    drive: Arc<Hosted>,
    offset: u64,
    left: u64,
    steps: Steps,
    step: Option<JoinHandle<io::Result<Bytes>>>,
}

impl DriveBytes {
    pub(super) fn new(drive: Arc<Hosted>, offset: u64, len: u64, steps: Steps) -> Self {
        Self {
            drive,
            offset,
            left: len,
            steps,
            step: None,
        }
    }

    /// The next bytes, from memory or from the disk.
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let offset = self.offset;
        let len = self.left.min(STEP_BYTES) as usize;
        let step = match &mut self.step {
            Some(step) => step,
            None => {
                let mut step = self.steps.take();
                let there = read_now(&self.drive, &mut step.bytes[..len], offset);
                if there > 0 {
                    return Poll::Ready(Ok(Bytes::from_owner(step).slice(..there)));
                }
                let drive = Arc::clone(&self.drive);
                self.step.insert(spawn_blocking(move || {
                    // Never short: if the drive shrank meanwhile, the answer breaks off.
                    drive.file.read_exact_at(&mut step.bytes[..len], offset)?;
                    Ok(Bytes::from_owner(step).slice(..len))
                }))
            }
        };
        let read = ready!(Pin::new(step).poll(context));
        self.step = None;
        Poll::Ready(read.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}

impl Body for DriveBytes {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let bytes = ready!(self.poll_step(context))?;
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// How many bytes could be read without waiting for a disk; 0 if the file system does not support
/// that.
fn read_now(drive: &Hosted, bytes: &mut [u8], offset: u64) -> usize {
    let mut buffers = [IoSliceMut::new(bytes)];
    preadv2(&drive.file, &mut buffers, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}
