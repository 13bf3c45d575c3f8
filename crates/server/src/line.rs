//! A slow line for a fault plan, and bodies that are transferred over it.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use openhosting_base::locks::lock;

/// The pieces of a slow body: at most this many per second, but none shorter than the second
/// number.
const PIECES_PER_S: u64 = 20;
const PIECE_BYTES_MIN: u64 = 1024;

/// The slow line that all bodies share, in both directions.
#[derive(Debug)]
pub(super) struct Line {
    bytes_per_s: u64,
    /// When it has transferred everything that it was given.
    free_at: Mutex<Instant>,
}

impl Line {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// The time at which `bytes` more have been transferred.
    fn pass(&self, bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut free_at = lock(&self.free_at);
        *free_at = (*free_at).max(Instant::now()) + takes;
        *free_at
    }

    fn piece_bytes(&self) -> usize {
        let piece = (self.bytes_per_s / PIECES_PER_S).max(PIECE_BYTES_MIN);
        usize::try_from(piece).unwrap_or(usize::MAX)
    }
}

/// A body over a [`Line`].
#[derive(Debug)]
pub(super) struct Slowed<B> {
    body: B,
    line: Arc<Line>,
    /// Received bytes that are not on the line yet.
    rest: Bytes,
    /// The bytes on the line, and the time at which they have passed.
    passing: Option<(Bytes, Pin<Box<Sleep>>)>,
}

impl<B> Slowed<B> {
    pub(super) fn new(body: B, line: Arc<Line>) -> Self {
        Self {
            body,
            line,
            rest: Bytes::new(),
            passing: None,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Slowed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if let Some((bytes, sleep)) = &mut this.passing {
                ready!(sleep.as_mut().poll(context));
                let bytes = std::mem::take(bytes);
                this.passing = None;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if !this.rest.is_empty() {
                let len = this.rest.len().min(this.line.piece_bytes());
                let until = this.line.pass(len);
                this.passing = Some((this.rest.split_to(len), Box::pin(sleep_until(until))));
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.passing.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.rest.len() + self.passing.as_ref().map_or(0, |(bytes, _)| bytes.len());
        let (held, inner) = (held as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(inner.lower() + held);
        hint
    }
}
