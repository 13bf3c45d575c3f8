//! Request bodies: bounded in size, and abandoned if they stall.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Either};
use hyper::Request;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::line::{Line, Slowed};
use super::record::RequestRecord;
use openhosting_base::wire::{Format, Properties};
use openhosting_tenancy::Refusal;

/// Maximum time to wait for [`PROGRESS_BYTES`] more of a body, or for its end. Together they refuse
/// a body that is slower than about 550 bytes per second. Both values are choices.
const STALL: Duration = Duration::from_secs(30);
/// Fewer bytes do not count as progress. Otherwise a byte now and then could hold a drive and
/// memory for ever.
const PROGRESS_BYTES: usize = 16 * 1024;
/// Maximum bytes of a body of keys and values: as many as the keys of one object may have
/// (`openhosting_tenancy::check_length`).
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// Frames between the network and the thread that decodes them, so that neither waits for each frame
/// of the other. hyper's frames have at most about 400 KiB, so this many, and one at each end, have at
/// most about 2 MiB. The value is a choice.
const FRAMES_AHEAD: usize = 3;

/// The body of a request, counted while it arrives.
#[derive(Debug)]
pub(super) struct Incoming {
    /// On the right, it is slowed down by a fault plan.
    body: Either<hyper::body::Incoming, Slowed<hyper::body::Incoming>>,
    record: Arc<RequestRecord>,
}

impl Incoming {
    pub(super) fn counted(body: hyper::body::Incoming, record: Arc<RequestRecord>) -> Self {
        let body = Either::Left(body);
        Self { body, record }
    }

    /// The same body over a slow line. A body that is slowed down already stays as it is.
    pub(super) fn slowed(self, line: Arc<Line>) -> Self {
        let body = match self.body {
            Either::Left(body) => Either::Right(Slowed::new(body, line)),
            slowed @ Either::Right(_) => slowed,
        };
        Self { body, ..self }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.record.received(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is abandoned if the client is too slow.
struct Paced {
    body: Incoming,
    /// Time that was spent waiting for the client, and bytes received, since it last made progress.
    /// Time in which the server was busy with earlier bytes does not count.
    waited: Duration,
    bytes: usize,
}

impl Paced {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next bytes; `None` at the regular end.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let began = Instant::now();
            let left = STALL.saturating_sub(self.waited);
            let frame = match timeout(left, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(cut_short()),
                Err(_) => return Err(Refusal::too_slow()),
            };
            // This API does not use trailers.
            if let Ok(data) = frame.into_data() {
                self.waited += began.elapsed();
                self.bytes += data.len();
                if self.bytes >= PROGRESS_BYTES {
                    (self.waited, self.bytes) = (Duration::ZERO, 0);
                }
                return Ok(Some(data));
            }
        }
    }
}

fn cut_short() -> Refusal {
    Refusal::usage("The body was cut short")
}

/// Reads a whole body of keys and values.
pub(super) async fn small(body: Incoming) -> Result<Vec<u8>, Refusal> {
    let mut body = Paced::new(body);
    let mut all = Vec::new();
    while let Some(data) = body.next().await? {
        if all.len() + data.len() > SMALL_BYTES_MAX {
            let sentence = format!("The body is longer than {SMALL_BYTES_MAX} bytes");
            return Err(Refusal::usage(sentence));
        }
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Raw bytes of the drive.
    Raw,
    /// Bytes of the drive, compressed with gzip.
    Gzip,
}

/// Reads the keys and values that a request sends.
pub(super) async fn keys_and_values(request: Request<Incoming>) -> Result<Properties, Refusal> {
    let format = Format::of_content_type(text(request.headers(), &CONTENT_TYPE));
    if encoding(request.headers())? != Encoding::Raw {
        return Err(Refusal::usage("Only the body of a write may be gzip"));
    }
    let body = small(request.into_body()).await?;
    Properties::parse(format, &body).map_err(|error| Refusal::usage(error.to_string()))
}

/// The encoding of a request's body, according to its headers.
pub(super) fn encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match values.next() {
        None => return Ok(Encoding::Raw),
        Some(value) => value.to_str().unwrap_or_default().to_ascii_lowercase(),
    };
    match (encoding.trim(), values.next()) {
        ("identity" | "", None) => Ok(Encoding::Raw),
        ("gzip" | "x-gzip", None) => Ok(Encoding::Gzip),
        _ => Err(Refusal::usage(
            "Content-Encoding is neither gzip nor identity",
        )),
    }
}

/// The value of a header, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Reads a body of exactly as many bytes as `buffer` has.
pub(super) async fn fill(body: Incoming, buffer: &mut [u8]) -> Result<(), Refusal> {
    let mut body = Paced::new(body);
    let mut rest = buffer;
    while let Some(data) = body.next().await? {
        let (place, after) = rest
            .split_at_mut_checked(data.len())
            .ok_or_else(|| Refusal::usage("The body is longer than it was said to be"))?;
        place.copy_from_slice(&data);
        rest = after;
    }
    match rest.is_empty() {
        true => Ok(()),
        false => Err(cut_short()),
    }
}

/// Passes a body to a thread that may block: run the future concurrently with the thread. It ends
/// when the body ends or nothing reads it any more.
pub(super) fn stream(body: Incoming) -> (impl Future<Output = ()>, Frames) {
    let mut body = Paced::new(body);
    let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
    let pump = async move {
        loop {
            let frame = body.next().await.transpose();
            let is_last = !matches!(frame, Some(Ok(_)));
            let message = match frame {
                Some(Ok(data)) => Message::Data(data),
                Some(Err(refusal)) => Message::Failed(refusal),
                None => Message::End,
            };
            if sender.send(message).await.is_err() || is_last {
                return;
            }
        }
    };
    let frames = Frames {
        receiver,
        current: Bytes::new(),
        is_ended: false,
        failure: None,
    };
    (pump, frames)
}

enum Message {
    Data(Bytes),
    Failed(Refusal),
    /// The end is explicit, because a body that merely stops arriving has not ended.
    End,
}

/// A body as a blocking reader. Its end is the regular end of the body; everything else is an
/// error, and [`failure`](Self::failure) returns which one.
pub(super) struct Frames {
    receiver: mpsc::Receiver<Message>,
    current: Bytes,
    is_ended: bool,
    failure: Option<Refusal>,
}

impl Frames {
    /// Why reading failed. Without a reason of its own, the request was abandoned before the end of
    /// the body.
    pub(super) fn failure(&self) -> Refusal {
        self.failure.clone().unwrap_or_else(cut_short)
    }
}

impl BufRead for Frames {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.is_ended {
            match self.receiver.blocking_recv() {
                Some(Message::Data(data)) => self.current = data,
                Some(Message::End) => self.is_ended = true,
                Some(Message::Failed(refusal)) => {
                    self.failure = Some(refusal);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}
