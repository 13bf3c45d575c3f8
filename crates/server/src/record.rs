//! One request, from its head to the end of its answer. It is counted, and written to the log in
//! one line at its end. It contains no secret: only the method and path of the request, and the
//! name of the user.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, StatusCode};
use tracing::Span;

use super::admission::Admitted;
use super::answer::{Answer, AnswerBody};
use super::budget::Share;
use super::metrics::Metrics;
use openhosting_base::locks::lock;
use openhosting_tenancy::Refusal;

/// Transfers to and from one drive, for the page.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Bytes of bodies, as they were sent.
    received: AtomicU64,
    sent: AtomicU64,
    /// Reads and writes in progress.
    in_flight: AtomicU32,
    /// The end of the last write, and the start of the last read.
    written_to: AtomicU64,
    read_from: AtomicU64,
}

impl Traffic {
    /// The numbers for the page.
    pub(super) fn look(&self) -> TrafficNow {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        TrafficNow {
            received: read(&self.received),
            sent: read(&self.sent),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            written_to: read(&self.written_to),
            read_from: read(&self.read_from),
        }
    }

    /// A write ended at this byte of the drive.
    pub(super) fn wrote_to(&self, end: u64) {
        self.written_to.store(end, Ordering::Relaxed);
    }

    /// A read begins at this byte of the drive.
    pub(super) fn reads_from(&self, offset: u64) {
        self.read_from.store(offset, Ordering::Relaxed);
    }
}

/// The traffic of a drive at a moment.
pub(super) struct TrafficNow {
    /// Bytes of bodies that were received for the drive.
    pub(super) received: u64,
    /// Bytes of bodies that were sent from it.
    pub(super) sent: u64,
    /// Reads and writes in progress.
    pub(super) in_flight: u32,
    /// The end of the last write in bytes. Clients write in order, except a few requests at a time.
    pub(super) written_to: u64,
    /// The start of the last read in bytes.
    pub(super) read_from: u64,
}

/// A request in progress. It ends when its last reference is dropped: the answer was sent, or the
/// client has gone.
pub(super) struct RequestRecord {
    method: Method,
    path: String,
    place: Arc<Admitted>,
    began: Instant,
    user: OnceLock<Arc<str>>,
    call: OnceLock<&'static str>,
    traffic: OnceLock<Arc<Traffic>>,
    received: AtomicU64,
    sent: AtomicU64,
    answered: Mutex<Option<Answered>>,
    /// The share of the budget that its answer holds until its end.
    share: OnceLock<Share>,
    is_whole: AtomicBool,
    ends_with_client: AtomicBool,
    span: Span,
    metrics: Arc<Metrics>,
}

struct Answered {
    status: StatusCode,
    refusal: Option<Refusal>,
}

impl fmt::Debug for RequestRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestRecord({} {})", self.method, self.path)
    }
}

impl RequestRecord {
    pub(super) fn new(
        method: Method,
        path: &str,
        place: Arc<Admitted>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        place.begin_request();
        let id = metrics.begin_request();
        Self {
            method,
            path: path.to_owned(),
            place,
            began: Instant::now(),
            user: OnceLock::new(),
            call: OnceLock::new(),
            traffic: OnceLock::new(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            answered: Mutex::new(None),
            share: OnceLock::new(),
            is_whole: AtomicBool::new(false),
            ends_with_client: AtomicBool::new(false),
            span: tracing::error_span!("request", id),
            metrics: Arc::clone(metrics),
        }
    }

    /// The span of all log lines about this request.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn from(&self) -> IpAddr {
        self.place.from()
    }

    /// The request proved `user`, to whom the connection belongs from now on.
    ///
    /// # Errors
    /// See [`Admitted::set_user`].
    pub(super) fn set_user(&self, user: &Arc<str>) -> Result<(), Refusal> {
        let _ = self.user.set(Arc::clone(user));
        self.place.set_user(user)
    }

    pub(super) fn set_call(&self, call: &'static str) {
        let _ = self.call.set(call);
    }

    /// The request changes nothing, so its work is useless once the client has gone.
    pub(super) fn end_with_client(&self) {
        self.ends_with_client.store(true, Ordering::Relaxed);
    }

    pub(super) fn ends_with_client(&self) -> bool {
        self.ends_with_client.load(Ordering::Relaxed)
    }

    /// The user that the request proved.
    pub(super) fn user(&self) -> Option<&Arc<str>> {
        self.user.get()
    }

    /// Holds `share` until the end of the answer.
    pub(super) fn hold(&self, share: Share) {
        let _ = self.share.set(share);
    }

    /// The request transfers bytes of a drive.
    pub(super) fn set_traffic(&self, traffic: &Arc<Traffic>) {
        if self.traffic.set(Arc::clone(traffic)).is_ok() {
            traffic.in_flight.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts received bytes of the body.
    pub(super) fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.received(bytes);
        if let Some(traffic) = self.traffic.get() {
            traffic.received.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn sent(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.sent(bytes);
        if let Some(traffic) = self.traffic.get() {
            traffic.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Attaches the record to the answer, so that it lasts until its end.
    pub(super) fn answer(self: Arc<Self>, mut answer: Answer, refusal: Option<Refusal>) -> Answer {
        if self.place.is_overdue() {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        let status = answer.status();
        *lock(&self.answered) = Some(Answered { status, refusal });
        answer.map(|body| {
            let counted = Counted { body, record: self };
            counted.record.note_end(&counted.body);
            counted.boxed()
        })
    }

    fn note_end(&self, body: &AnswerBody) {
        if body.is_end_stream() {
            self.is_whole.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.place.end_request();
        let took = self.began.elapsed();
        let call = self.call.get().copied().unwrap_or("none");
        let answered = lock(&self.answered).take();
        let status = answered.as_ref().map(|answered| answered.status.as_u16());
        self.metrics.end_request(call, status, took);
        if let Some(traffic) = self.traffic.get() {
            traffic.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        let refusal = answered.and_then(|answered| answered.refusal);
        let _entered = self.span.enter();
        tracing::debug!(
            from = %self.place.from(),
            user = self.user.get().map(|user| &**user),
            method = %self.method,
            path = self.path,
            call,
            status,
            error = refusal.as_ref().map(|refusal| refusal.error().as_str()),
            refusal = refusal.map(tracing::field::display),
            received_bytes = self.received.load(Ordering::Relaxed),
            sent_bytes = self.sent.load(Ordering::Relaxed),
            took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            is_whole = self.is_whole.load(Ordering::Relaxed),
            "Answered"
        );
    }
}

/// The body of an answer, counted while it is sent.
struct Counted {
    body: AnswerBody,
    record: Arc<RequestRecord>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.record.sent(frame.data_ref().map_or(0, Bytes::len));
                self.record.note_end(&self.body);
            }
            Poll::Ready(None) => self.record.is_whole.store(true, Ordering::Relaxed),
            _ => {}
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
