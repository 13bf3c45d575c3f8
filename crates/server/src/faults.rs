//! A fault plan: what the server does wrong, or as another cloud would do it, for testing clients.
//! Without a plan, nothing here has an effect. The format is described in
//! `docs/user/fault-plan.md`.
//!
//! Most of it happens in one place, [`Faults::play`], around the answer to a request: it may answer
//! itself, change the request or the answer, or break the connection. What a drive does with its
//! bytes is controlled by regular settings of the server: how many writers, how long a read, what
//! happens past the end, and what unwritten bytes are.

mod cut;
mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use tokio::time::sleep;

pub use self::plan::FaultPlan;
pub(super) use self::plan::{FreshReads, LargeReads, PastEnd, ReportedExtents};

use self::cut::cut;
use self::plan::{Act, Counting, Fake, GzipWrites, UserKeys};
use super::answer::{self, Answer};
use super::body::Incoming;
use super::line::{Line, Slowed};
use super::routes::Call;
use openhosting_base::locks::lock;
use openhosting_base::wire::{Format, Properties, READ_BYTES_MAX};
use openhosting_tenancy::{Counters, Refusal, set};

/// How long a stalled request is held: longer than any client waits.
const STALL: Duration = Duration::from_secs(600);
/// The connection has to end with a reset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reset, as the fault plan says")
    }
}

impl std::error::Error for Reset {}

/// A plan in use.
#[derive(Debug)]
pub(super) struct Faults {
    plan: FaultPlan,
    requests: AtomicU64,
    /// For each fault, how many requests have matched it so far.
    matched: Vec<AtomicU64>,
    /// The counters of each drive at its last query.
    looked: Mutex<HashMap<String, Properties>>,
    line: Option<Arc<Line>>,
}

type Served = std::result::Result<Answer, Refusal>;

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self {
            requests: AtomicU64::new(0),
            matched: plan.faults.iter().map(|_| AtomicU64::new(0)).collect(),
            looked: Mutex::default(),
            line: plan.bytes_per_s.map(|rate| Arc::new(Line::new(rate))),
            plan,
        }
    }

    /// Lets `serve` answer a request, with the effects of the plan.
    pub(super) async fn play<F: Future<Output = Served>>(
        &self,
        request: Request<Incoming>,
        serve: impl FnOnce(Request<Incoming>) -> F,
    ) -> std::result::Result<Served, Reset> {
        if self.plan == FaultPlan::default() {
            return Ok(serve(request).await);
        }
        let act = self.act(request.method().as_str(), request.uri().path());
        if let Some(act) = act {
            tracing::debug!(?act, path = request.uri().path(), "Plays a fault");
        }
        match self.plan.latency.roll() {
            Duration::ZERO => {}
            latency => sleep(latency).await,
        }
        let played = self.play_one(request, act, serve).await;
        Ok(played?.map(|answer| match &self.line {
            Some(line) => answer.map(|body| Slowed::new(body, Arc::clone(line)).boxed()),
            None => answer,
        }))
    }

    async fn play_one<F: Future<Output = Served>>(
        &self,
        request: Request<Incoming>,
        act: Option<Act>,
        serve: impl FnOnce(Request<Incoming>) -> F,
    ) -> std::result::Result<Served, Reset> {
        if let Some(fake) = self.refusal(&request) {
            return Ok(Ok(fake.to_answer()));
        }
        match act {
            Some(Act::Answer { fake, is_done }) => {
                if is_done {
                    let _ = self.serve(request, serve).await;
                }
                Ok(Ok(fake.to_answer()))
            }
            Some(Act::Reset { is_done }) => {
                if is_done {
                    let _ = self.serve(request, serve).await;
                }
                Err(Reset)
            }
            Some(Act::Stall) => {
                sleep(STALL).await;
                Err(Reset)
            }
            Some(Act::Delay(time)) => {
                sleep(time).await;
                Ok(self.serve(request, serve).await)
            }
            Some(Act::Truncate(bytes)) => {
                let served = self.serve(request, serve).await;
                Ok(served.map(|answer| answer.map(|body| cut(body, bytes))))
            }
            None => Ok(self.serve(request, serve).await),
        }
    }

    /// The fault for this request, if it is due.
    fn act(&self, method: &str, path: &str) -> Option<Act> {
        let mut act = None;
        for (fault, matched) in self.plan.faults.iter().zip(&self.matched) {
            if fault.matches(method, path) {
                let number = matched.fetch_add(1, Ordering::Relaxed) + 1;
                if number >= fault.nth && number - fault.nth < fault.times {
                    act = act.or(Some(fault.act));
                }
            }
        }
        act
    }

    /// The refusal that the plan has for this request, whatever it is.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Fake> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(every) = self.plan.every
            && number.is_multiple_of(every.requests)
        {
            return Some(every.answer);
        }
        let most = self.plan.body_bytes_max?;
        let too_long = request.body().size_hint().exact()? > most;
        too_long.then_some(Fake {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            error: None,
            retry_after_s: None,
        })
    }

    async fn serve<F: Future<Output = Served>>(
        &self,
        mut request: Request<Incoming>,
        serve: impl FnOnce(Request<Incoming>) -> F,
    ) -> Served {
        if let Some(line) = &self.line {
            request = request.map(|body| body.slowed(Arc::clone(line)));
        }
        let call = Call::parse(request.uri().path()).ok();
        match call {
            Some(Call::Read(id, offset, Some(size)))
                if self.plan.large_reads == LargeReads::Short && size > READ_BYTES_MAX =>
            {
                let path = format!("/drives/{id}/read/{offset}/{READ_BYTES_MAX}");
                if let Ok(uri) = path.parse() {
                    *request.uri_mut() = uri;
                }
            }
            Some(Call::Write(..)) if self.plan.gzip_writes == GzipWrites::Stored => {
                request.headers_mut().remove(CONTENT_ENCODING);
            }
            _ => {}
        }
        let served = serve(request).await;
        match (call, served) {
            (Some(call), Ok(answer)) if self.changes_objects() => {
                Ok(self.with_changed_objects(call, answer).await)
            }
            (_, served) => served,
        }
    }

    fn changes_objects(&self) -> bool {
        self.plan.counters != Counting::Kept || self.plan.user_keys != UserKeys::Kept
    }

    /// The answer, with drives as the plan wants them to appear.
    async fn with_changed_objects(&self, call: Call, answer: Answer) -> Answer {
        let is_several = match call {
            Call::InfoAll | Call::InfoStandard => true,
            Call::Create | Call::Set(_) | Call::Info(_) | Call::InfoFull(_) => false,
            _ => return answer,
        };
        let is_full = matches!(call, Call::InfoFull(_));
        let (mut head, body) = answer.into_parts();
        // The server's own answers never fail and are always valid.
        let body = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let body = body.unwrap_or_default();
        let content_type = head.headers.get(CONTENT_TYPE);
        let format = Format::of_content_type(content_type.and_then(|v| v.to_str().ok()));
        let mut objects = Properties::parse_all(format, &body).unwrap_or_default();
        for object in &mut objects {
            *object = self.changed_object(object, is_full);
        }
        let text = match objects.as_slice() {
            [object] if !is_several => object.print(format),
            objects => Properties::print_all(objects, format),
        };
        head.headers.remove(CONTENT_LENGTH);
        Answer::from_parts(head, answer::full(text))
    }

    fn changed_object(&self, object: &Properties, is_full: bool) -> Properties {
        let is_reported = match self.plan.counters {
            Counting::Kept | Counting::Lagging => true,
            Counting::Full => is_full,
            Counting::Absent => false,
        };
        let mut changed = Properties::new();
        for (key, value) in object {
            let is_dropped = Counters::KEYS.contains(&key.as_str()) && !is_reported
                || key.starts_with("user:") && self.plan.user_keys == UserKeys::Dropped;
            if !is_dropped {
                set(&mut changed, key, value);
            }
        }
        if self.plan.counters == Counting::Lagging
            && let Some(drive) = object.get("drive")
        {
            let before = lock(&self.looked).insert(drive.to_owned(), object.clone());
            let before = before.as_ref().unwrap_or(object);
            for key in Counters::KEYS {
                set(&mut changed, key, before.get(key).unwrap_or_default());
            }
        }
        changed
    }
}
