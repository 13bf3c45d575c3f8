//! Request bodies: of a known length, always. The service does not take
//! `Transfer-Encoding: chunked` (REFERENCE 1.1, "write").

use std::pin::Pin;
use std::task::{Context, Poll};

use async_channel::Receiver;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::patience::Progress;

/// Bytes handed to the connection at a time: small enough that progress shows on
/// a slow link, large enough that it costs nothing.
const STEP_BYTES: usize = 64 * 1024;

/// What to send.
#[derive(Debug)]
pub enum Upload {
    /// All of it in memory.
    Bytes(Bytes),
    /// A stream of so many bytes, as of a file that does not fit.
    Stream {
        /// Its exact length in bytes.
        len: u64,
        /// Its parts. An error aborts the request.
        parts: Receiver<std::io::Result<Bytes>>,
    },
}

impl Upload {
    /// No body.
    pub fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream { len, .. } => *len,
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An [`Upload`] that tells how far it is.
#[derive(Debug)]
pub struct UploadBody {
    source: Source,
    left: u64,
    progress: Progress,
}

#[derive(Debug)]
enum Source {
    Bytes(Bytes),
    Stream(Pin<Box<Receiver<std::io::Result<Bytes>>>>),
}

impl UploadBody {
    pub(super) fn new(upload: Upload, progress: Progress) -> Self {
        let left = upload.len();
        let source = match upload {
            Upload::Bytes(bytes) => Source::Bytes(bytes),
            Upload::Stream { parts, .. } => Source::Stream(Box::pin(parts)),
        };
        Self {
            source,
            left,
            progress,
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let part = match &mut self.source {
            Source::Bytes(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Bytes(bytes) => bytes.split_to(bytes.len().min(STEP_BYTES)),
            Source::Stream(parts) => {
                match futures_core::Stream::poll_next(parts.as_mut(), context) {
                    Poll::Ready(Some(Ok(part))) => part,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        self.left = self.left.saturating_sub(part.len() as u64);
        self.progress.advance(part.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
