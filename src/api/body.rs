//! Request bodies, which always have a known length: the service does not support
//! `Transfer-Encoding: chunked` (docs/dev/reference.md, 1.8).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_channel::Receiver;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::buffers::Buffer;
use super::meter::Traffic;
use super::patience::Progress;

/// Bytes to pass to the connection at a time: few enough that progress is visible on a slow link,
/// and enough that it costs nothing.
const STEP_BYTES: usize = 64 * 1024;

/// The content of a request.
#[derive(Debug)]
pub enum Upload {
    /// Everything is in memory.
    Bytes(Bytes),
    /// A stream of known length, for example of a file that does not fit into memory.
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

/// An [`Upload`] that reports its progress.
#[derive(Debug)]
pub(crate) struct UploadBody {
    source: Source,
    left: u64,
    progress: Progress,
    traffic: Traffic,
    buffer: Buffer,
    /// Bytes that wait for the meter.
    held: Option<(Bytes, Pin<Box<Sleep>>)>,
}

#[derive(Debug)]
enum Source {
    Bytes(Bytes),
    Stream(Pin<Box<Receiver<std::io::Result<Bytes>>>>),
}

impl UploadBody {
    pub(super) fn new(upload: Upload, progress: Progress, traffic: Traffic) -> Self {
        let left = upload.len();
        let source = match upload {
            Upload::Bytes(bytes) => Source::Bytes(bytes),
            Upload::Stream { parts, .. } => Source::Stream(Box::pin(parts)),
        };
        Self {
            source,
            left,
            buffer: Buffer::new(traffic.buffers.clone()),
            progress,
            traffic,
            held: None,
        }
    }

    fn hand_over(&mut self, part: Bytes) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let bytes = part.len() as u64;
        self.left = self.left.saturating_sub(bytes);
        self.progress.advance(bytes);
        // Under a rate limit, connections accept bytes faster than they arrive here, and do not
        // buffer any.
        if self.traffic.meter.is_none() {
            self.buffer.hand_over(bytes);
        }
        self.traffic.sent(bytes);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if let Some((part, mut wait)) = self.held.take() {
            if wait.as_mut().poll(context).is_pending() {
                self.held = Some((part, wait));
                return Poll::Pending;
            }
            return self.hand_over(part);
        }
        let most = match &self.traffic.meter {
            Some(meter) => meter.step_bytes().min(STEP_BYTES),
            None => STEP_BYTES,
        };
        let part = match &mut self.source {
            Source::Bytes(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Bytes(bytes) => bytes.split_to(bytes.len().min(most)),
            Source::Stream(parts) => {
                match futures_util::Stream::poll_next(parts.as_mut(), context) {
                    Poll::Ready(Some(Ok(part))) => part,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        if let Some(meter) = &self.traffic.meter {
            let wait = meter.take(part.len());
            if !wait.is_zero() {
                self.progress.hold(wait);
                let mut wait = Box::pin(tokio::time::sleep(wait));
                if wait.as_mut().poll(context).is_pending() {
                    self.held = Some((part, wait));
                    return Poll::Pending;
                }
            }
        }
        self.hand_over(part)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use std::sync::Arc;

    use super::super::meter::Meter;
    use super::super::patience;
    use super::*;

    /// Takes a second for each step.
    #[derive(Debug)]
    struct Slow;

    impl Meter for Slow {
        fn step_bytes(&self) -> usize {
            1000
        }

        fn take(&self, bytes: usize) -> Duration {
            assert!(bytes <= 1000);
            Duration::from_secs(1)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_rate_limit_is_not_a_stall() {
        let progress = Progress::of(9500);
        let bytes = Bytes::from(vec![7; 9500]);
        let upload = Upload::Bytes(bytes.clone());
        let traffic = Traffic::new(Some(Arc::new(Slow)));
        let body = UploadBody::new(upload, progress.clone(), traffic.clone());
        let began = Instant::now();
        // Shorter than a wait for the meter.
        let stall = Duration::from_millis(100);
        let sent = patience::answer(body.collect(), &progress, stall, stall).await;
        let sent = sent.unwrap().unwrap().to_bytes();
        assert!(sent == bytes);
        assert_eq!(began.elapsed().as_millis() / 100, 100);
        assert_eq!(traffic.moved(), 9500);
    }
}
