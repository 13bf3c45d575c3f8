//! Bytes of a drive as the body of an answer: read step by step as the client
//! takes them, off the reactor.

use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use sha2::{Digest as _, Sha256};

use super::hosted::Hosted;
use super::sparse::next_data;
use crate::digest::Digest;

/// Bytes in memory for one answer; small, since slow clients keep it long.
const STEP_BYTES: u64 = 256 * 1024;

/// `left` bytes of a drive from `offset` on, both in bytes.
#[derive(Debug)]
pub(super) struct DriveBytes {
    drive: Arc<Hosted>,
    offset: u64,
    left: u64,
    step: Option<JoinHandle<io::Result<Bytes>>>,
}

impl DriveBytes {
    pub(super) fn new(drive: Arc<Hosted>, offset: u64, len: u64) -> Self {
        Self {
            drive,
            offset,
            left: len,
            step: None,
        }
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
        let (drive, offset) = (Arc::clone(&self.drive), self.offset);
        let len = self.left.min(STEP_BYTES);
        let step = self
            .step
            .get_or_insert_with(|| spawn_blocking(move || read(&drive, offset, len)));
        let result = ready!(Pin::new(step).poll(context));
        self.step = None;
        let bytes = result.unwrap_or_else(|error| Err(io::Error::other(error)))?;
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

/// Never short: a drive that shrank meanwhile breaks the answer off.
fn read(drive: &Hosted, offset: u64, len: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; len as usize];
    drive.file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

/// The SHA-256 of a range. Holes are not read, but hashed they must be.
pub(super) fn digest(
    drive: &Hosted,
    mut offset: u64,
    len: u64,
    goes_on: impl Fn() -> bool,
) -> io::Result<Digest> {
    let zeros = vec![0; STEP_BYTES as usize];
    let mut bytes = vec![0; STEP_BYTES as usize];
    let mut hasher = Sha256::new();
    let end = offset + len;
    while offset < end {
        if !goes_on() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let hole_end = next_data(&drive.file, offset, end);
        while offset < hole_end && goes_on() {
            let step = STEP_BYTES.min(hole_end - offset);
            hasher.update(&zeros[..step as usize]);
            offset += step;
        }
        let step = &mut bytes[..STEP_BYTES.min(end - offset) as usize];
        drive.file.read_exact_at(step, offset)?;
        hasher.update(&*step);
        offset += step.len() as u64;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}
