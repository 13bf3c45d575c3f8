//! A fault plan: what the server does wrong, or as another cloud would, so that
//! clients can be tested against it. A testing aid; without a plan nothing here
//! does anything. The format is told in `docs/fault-plan.md`.
//!
//! Most of it happens in one place, [`Faults::play`], around the answering of a
//! request: it may answer itself, change the request or the answer, or break the
//! connection. What a drive does with its bytes is part of the settings that the
//! rest of the server has anyway: how many writers, how long a read, what past
//! the end, and what never-written bytes are.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use serde_json::{Map, Value};
use tokio::time::{Sleep, sleep};

use super::answer::{self, Answer, AnswerBody, Refusal};
use super::hosted::lock;
use super::metadata::set;
use super::routes::Call;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{ErrorType, Format, Properties, READ_BYTES_MAX};

/// How long a stalled request is kept: longer than any client waits.
const STALL: Duration = Duration::from_secs(600);
/// How long the bytes before a cut get to leave.
const CUT_AFTER: Duration = Duration::from_millis(200);
/// What never-written bytes are in place of zeros.
const PATTERN: u8 = 0xA5;
/// The keys of info that count (REFERENCE 1.1).
const COUNTERS: [&str; 4] = [
    "read:bytes",
    "read:requests",
    "write:bytes",
    "write:requests",
];

/// What the server does wrong, or as another cloud does, read from JSON. The
/// default does nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    pub(super) writers_max: Option<u32>,
    pub(super) round_size: bool,
    pub(super) fresh_reads: FreshReads,
    pub(super) large_reads: LargeReads,
    pub(super) past_end: PastEnd,
    counters: Counting,
    user_keys: UserKeys,
    gzip_writes: GzipWrites,
    body_bytes_max: Option<u64>,
    every: Option<Every>,
    faults: Vec<Fault>,
}

/// What bytes of a drive are that nobody wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FreshReads {
    #[default]
    Zeros,
    Pattern,
}

impl FreshReads {
    /// Makes the new bytes of a drive's file, from `start` to `end`, what they
    /// are to be; they are zeros now. What is written later replaces them.
    pub(super) fn fill(self, file: &File, start: u64, end: u64) -> io::Result<()> {
        if self == Self::Zeros {
            return Ok(());
        }
        let block = vec![PATTERN; 1 << 20];
        let mut at = start;
        while at < end {
            let step = (end - at).min(block.len() as u64);
            file.write_all_at(&block[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}

/// What a read above 4 MiB gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LargeReads {
    #[default]
    Refused,
    Allowed,
    Short,
}

/// What a write past the end of the drive gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PastEnd {
    #[default]
    Usage,
    Full,
    Truncated,
}

/// Where and when counters are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Counting {
    #[default]
    Kept,
    /// In `info/full` only.
    Full,
    /// What they were when somebody looked last.
    Lagging,
    Absent,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum UserKeys {
    #[default]
    Kept,
    Dropped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GzipWrites {
    #[default]
    Decoded,
    /// The gzip itself lands on the drive.
    Stored,
}

/// Every so many requests one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Every {
    requests: u64,
    answer: Fake,
}

/// Something wrong with certain requests.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// `None` for any.
    method: Option<String>,
    path: Vec<String>,
    /// Which of the matching requests is the first, from 1.
    nth: u64,
    /// And how many.
    times: u64,
    act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Answer {
        fake: Fake,
        is_done: bool,
    },
    Reset {
        is_done: bool,
    },
    Stall,
    Delay(Duration),
    /// The answer is cut after so many bytes.
    Truncate(u64),
}

/// An answer that is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fake {
    status: StatusCode,
    error: Option<ErrorType>,
    retry_after_s: Option<u64>,
}

impl Fake {
    fn to_answer(self) -> Answer {
        answer::made_up(self.status, self.error, self.retry_after_s)
    }
}

impl Fault {
    fn matches(&self, method: &str, path: &str) -> bool {
        if self
            .method
            .as_deref()
            .is_some_and(|wanted| wanted != method)
        {
            return false;
        }
        let mut segments = path.split('/').filter(|s| !s.is_empty());
        for wanted in &self.path {
            match (wanted.as_str(), segments.next()) {
                ("**", _) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(segment)) if wanted.eq_ignore_ascii_case(segment) => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

impl FromStr for FaultPlan {
    type Err = Error;

    /// Reads the JSON of `docs/fault-plan.md`.
    ///
    /// [`ErrorKind::Usage`] for what is not of that form: unknown keys are
    /// named, never left out.
    fn from_str(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|cause| {
            Error::new(ErrorKind::Usage, "The fault plan is not JSON").because(cause)
        })?;
        let mut fields = Fields::of("the fault plan", value)?;
        let plan = Self {
            writers_max: fields.number("writers_max", 1)?.map(small).transpose()?,
            round_size: fields.flag("round_size")?,
            counters: fields.word(
                "counters",
                &[
                    ("kept", Counting::Kept),
                    ("full", Counting::Full),
                    ("lagging", Counting::Lagging),
                    ("absent", Counting::Absent),
                ],
            )?,
            fresh_reads: fields.word(
                "fresh_reads",
                &[
                    ("zeros", FreshReads::Zeros),
                    ("pattern", FreshReads::Pattern),
                ],
            )?,
            large_reads: fields.word(
                "large_reads",
                &[
                    ("refused", LargeReads::Refused),
                    ("allowed", LargeReads::Allowed),
                    ("short", LargeReads::Short),
                ],
            )?,
            past_end: fields.word(
                "past_end",
                &[
                    ("usage", PastEnd::Usage),
                    ("full", PastEnd::Full),
                    ("truncated", PastEnd::Truncated),
                ],
            )?,
            user_keys: fields.word(
                "user_keys",
                &[("kept", UserKeys::Kept), ("dropped", UserKeys::Dropped)],
            )?,
            gzip_writes: fields.word(
                "gzip_writes",
                &[
                    ("decoded", GzipWrites::Decoded),
                    ("stored", GzipWrites::Stored),
                ],
            )?,
            body_bytes_max: fields.number("body_bytes_max", 0)?,
            every: fields.take("every").map(every).transpose()?,
            faults: match fields.take("faults") {
                None => Vec::new(),
                Some(Value::Array(faults)) => {
                    faults.into_iter().map(fault).collect::<Result<_>>()?
                }
                Some(_) => return Err(wrong("\"faults\" of the fault plan is not an array")),
            },
        };
        fields.end()?;
        Ok(plan)
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, what).hint_to("The format is told in docs/fault-plan.md")
}

fn small(number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| wrong(format!("{number} in the fault plan is too large")))
}

fn every(value: Value) -> Result<Every> {
    let mut fields = Fields::of("\"every\"", value)?;
    let requests = fields.needed("requests", 1)?;
    let answer = fake(&mut fields)?;
    fields.end()?;
    Ok(Every { requests, answer })
}

fn fault(value: Value) -> Result<Fault> {
    let mut fields = Fields::of("an entry of \"faults\"", value)?;
    let Some(Value::String(request)) = fields.take("request") else {
        return Err(wrong(
            "\"request\" of a fault is not text like \"POST /drives/*/write/*\"",
        ));
    };
    let Some((method, path)) = request.split_once(' ').filter(|(_, p)| p.starts_with('/')) else {
        return Err(wrong(format!("{request:?} is not a method and a path")));
    };
    let mut acts = Vec::new();
    if let Some(value) = fields.take("answer") {
        let mut fields = Fields::of("\"answer\"", value)?;
        let (fake, is_done) = (fake(&mut fields)?, fields.flag("done")?);
        fields.end()?;
        acts.push(Act::Answer { fake, is_done });
    }
    let before_or_after = [("before", Some(false)), ("after", Some(true)), ("", None)];
    if let Some(is_done) = fields.word("reset", &before_or_after)? {
        acts.push(Act::Reset { is_done });
    }
    if fields.flag("stall")? {
        acts.push(Act::Stall);
    }
    if let Some(ms) = fields.number("delay_ms", 0)? {
        acts.push(Act::Delay(Duration::from_millis(ms)));
    }
    if let Some(bytes) = fields.number("truncate_bytes", 0)? {
        acts.push(Act::Truncate(bytes));
    }
    let [act] = acts[..] else {
        return Err(wrong(format!(
            "The fault of {request:?} needs one of answer, reset, stall, delay_ms and truncate_bytes"
        )));
    };
    let fault = Fault {
        method: (method != "*").then(|| method.to_owned()),
        path: path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect(),
        nth: fields.number("nth", 1)?.unwrap_or(1),
        times: fields.number("times", 1)?.unwrap_or(1),
        act,
    };
    fields.end()?;
    Ok(fault)
}

fn fake(fields: &mut Fields) -> Result<Fake> {
    let status = fields.needed("status", 200)?;
    let status = u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| wrong(format!("{status} is not a status of HTTP")))?;
    let types = ErrorType::ALL.map(|error| (error.as_str(), Some(error)));
    Ok(Fake {
        status,
        error: fields.word("error", &types)?,
        retry_after_s: fields.number("retry_after_s", 0)?,
    })
}

/// The keys of one object of the plan: each is taken once, and what is left at
/// the end is unknown.
struct Fields {
    place: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    fn of(place: &'static str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { place, map }),
            _ => Err(wrong(
                format!("{place} is not an object").replacen("the", "The", 1),
            )),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    fn number(&mut self, key: &str, least: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) if number >= least => Ok(Some(number)),
            _ => Err(wrong(format!(
                "{key:?} of {} is {value}, not a whole number from {least} on",
                self.place
            ))),
        }
    }

    fn needed(&mut self, key: &str, least: u64) -> Result<u64> {
        let number = self.number(key, least)?;
        number.ok_or_else(|| wrong(format!("{key:?} of {} is missing", self.place)))
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(value) => Err(wrong(format!(
                "{key:?} of {} is {value}, not true or false",
                self.place
            ))),
        }
    }

    fn word<T: Copy + Default>(&mut self, key: &str, words: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.take(key) else {
            return Ok(T::default());
        };
        let found = words
            .iter()
            .find(|(word, _)| !word.is_empty() && value == *word);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<_> = words
                .iter()
                .map(|(w, _)| *w)
                .filter(|w| !w.is_empty())
                .collect();
            wrong(format!(
                "{key:?} of {} is {value}, not one of {}",
                self.place,
                known.join(", ")
            ))
        })
    }

    fn end(self) -> Result<()> {
        if self.map.is_empty() {
            return Ok(());
        }
        let unknown: Vec<_> = self.map.keys().map(|key| format!("{key:?}")).collect();
        Err(wrong(format!(
            "Unknown key of {}: {}",
            self.place,
            unknown.join(", ")
        )))
    }
}

/// The connection is to be reset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reset, as the fault plan says")
    }
}

impl std::error::Error for Reset {}

/// A plan at work.
#[derive(Debug)]
pub(super) struct Faults {
    plan: FaultPlan,
    requests: AtomicU64,
    /// Requests that matched each of the faults so far.
    matched: Vec<AtomicU64>,
    /// What the counters of each drive were when somebody looked last.
    looked: Mutex<HashMap<String, Properties>>,
}

type Served = std::result::Result<Answer, Refusal>;

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self {
            requests: AtomicU64::new(0),
            matched: plan.faults.iter().map(|_| AtomicU64::new(0)).collect(),
            looked: Mutex::default(),
            plan,
        }
    }

    /// Lets `serve` answer a request, with all that the plan has for it.
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

    /// The fault for this request, if it is its turn.
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

    /// What is refused whatever it asks for.
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

    /// The answer with drives as the plan tells them.
    async fn with_changed_objects(&self, call: Call, answer: Answer) -> Answer {
        let is_several = match call {
            Call::InfoAll | Call::InfoStandard => true,
            Call::Create | Call::Set(_) | Call::Info(_) | Call::InfoFull(_) => false,
            _ => return answer,
        };
        let is_full = matches!(call, Call::InfoFull(_));
        let (mut head, body) = answer.into_parts();
        // The server's own answers never fail and always parse.
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
        let is_told = match self.plan.counters {
            Counting::Kept | Counting::Lagging => true,
            Counting::Full => is_full,
            Counting::Absent => false,
        };
        let mut changed = Properties::new();
        for (key, value) in object {
            let is_dropped = COUNTERS.contains(&key.as_str()) && !is_told
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
            for key in COUNTERS {
                set(&mut changed, key, before.get(key).unwrap_or_default());
            }
        }
        changed
    }
}

/// `body` as long as it says, but broken off after `bytes`.
fn cut(body: AnswerBody, bytes: u64) -> AnswerBody {
    let cut = Cut {
        body,
        left: bytes,
        wait: None,
    };
    cut.boxed()
}

struct Cut {
    body: AnswerBody,
    left: u64,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            // An error at once would take with it what is not sent yet.
            let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(CUT_AFTER)));
            return wait
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(io::Error::other("cut, as the fault plan says"))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) => {
                data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= data.len() as u64;
                Frame::data(data)
            }
            Err(frame) => frame,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_form_is_named() {
        let cases = [
            ("[]", "not an object"),
            ("{", "not JSON"),
            (r#"{"writer_max": 1}"#, "\"writer_max\""),
            (r#"{"writers_max": 0}"#, "\"writers_max\""),
            (r#"{"writers_max": "1"}"#, "\"writers_max\""),
            (r#"{"counters": "gone"}"#, "kept, full, lagging, absent"),
            (r#"{"every": {"requests": 2}}"#, "\"status\""),
            (
                r#"{"every": {"requests": 2, "status": 503, "x": 1}}"#,
                "\"x\"",
            ),
            (r#"{"faults": [{"request": "POST"}]}"#, "\"POST\""),
            (r#"{"faults": [{"request": "POST /a"}]}"#, "needs one of"),
            (
                r#"{"faults": [{"request": "* /a", "stall": true, "nht": 2}]}"#,
                "\"nht\"",
            ),
            (
                r#"{"faults": [{"request": "* /a", "reset": ""}]}"#,
                "before, after",
            ),
            (
                r#"{"faults": [{"request": "* /a", "stall": true, "delay_ms": 2}]}"#,
                "needs one of",
            ),
        ];
        for (text, named) in cases {
            let error = text.parse::<FaultPlan>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(named), "{text}: {error}");
        }
        assert_eq!("{}".parse::<FaultPlan>().unwrap(), FaultPlan::default());
    }

    #[test]
    fn requests_are_matched_by_segments() {
        let matches = |request: &str, method: &str, path: &str| {
            let fault = serde_json::json!({"request": request, "stall": true});
            super::fault(fault).unwrap().matches(method, path)
        };
        let id = "/drives/0012e24a-6eae-4279-9912-3432f698cec8";
        assert!(matches(
            "POST /drives/*/write/*",
            "POST",
            &format!("{id}/write/7")
        ));
        assert!(!matches(
            "POST /drives/*/write/*",
            "GET",
            &format!("{id}/write/7")
        ));
        assert!(!matches(
            "POST /drives/*/write/*",
            "POST",
            &format!("{id}/write")
        ));
        assert!(!matches("POST /drives/*", "POST", &format!("{id}/write")));
        assert!(matches("* /drives/**", "GET", &format!("/{id}//info")));
        assert!(matches("* /**", "GET", "/"));
    }
}
