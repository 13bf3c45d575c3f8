//! The content of a fault plan, and its parser.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value};

use crate::answer::{self, Answer};
use openhosting_base::error::{Error, ErrorKind, Result};
use openhosting_base::wire::ErrorType;

/// The unwritten bytes of a drive, if they are not zeros.
const PATTERN: u8 = 0xA5;

/// What the server does wrong, or as another cloud does, parsed from TOML or JSON. The default does
/// nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    pub(crate) writers_max: Option<u32>,
    pub(crate) round_size: bool,
    pub(crate) fresh_reads: FreshReads,
    pub(crate) large_reads: LargeReads,
    pub(crate) past_end: PastEnd,
    pub(crate) extents: ReportedExtents,
    pub(crate) imaging_bytes_per_s: Option<u64>,
    pub(super) latency: Latency,
    pub(super) bytes_per_s: Option<u64>,
    pub(super) counters: Counting,
    pub(super) user_keys: UserKeys,
    pub(super) gzip_writes: GzipWrites,
    pub(super) body_bytes_max: Option<u64>,
    pub(super) every: Option<Every>,
    pub(super) faults: Vec<Fault>,
}

/// A delay of each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Latency {
    ms: u64,
    /// Maximum random time in addition.
    jitter_ms: u64,
}

impl Latency {
    pub(super) fn roll(self) -> Duration {
        Duration::from_millis(self.ms.saturating_add(fastrand::u64(0..=self.jitter_ms)))
    }
}

/// Declares a setting with one of several words as its value; the first is the default.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident {
        $($(#[$about:meta])* $variant:ident = $word:literal,)+
    })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$about])* $variant,)+
        }

        impl Words for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }

        impl Default for $name {
            fn default() -> Self {
                Self::ALL[0].1
            }
        }
    )+};
}

trait Words: Copy + Default + 'static {
    const ALL: &'static [(&'static str, Self)];
}

words! {
    /// What unwritten bytes of a drive read as.
    FreshReads {
        Zeros = "zeros",
        Pattern = "pattern",
    }

    /// The answer to a read of more than 4 MiB.
    LargeReads {
        Refused = "refused",
        Allowed = "allowed",
        Short = "short",
    }

    /// What is reported about where a drive holds data.
    ReportedExtents {
        True = "true",
        /// Every drive is reported as a single hole, whatever it holds.
        Hidden = "hidden",
    }

    /// The answer to a write past the end of the drive.
    PastEnd {
        Usage = "usage",
        Full = "full",
        Truncated = "truncated",
    }

    /// Where and when counters are reported.
    Counting {
        Kept = "kept",
        /// In `info/full` only.
        Full = "full",
        /// With their values at the previous query.
        Lagging = "lagging",
        Absent = "absent",
    }

    UserKeys {
        Kept = "kept",
        Dropped = "dropped",
    }

    GzipWrites {
        Decoded = "decoded",
        /// The gzip data itself is stored on the drive.
        Stored = "stored",
    }
}

impl FreshReads {
    /// Initializes new bytes of a drive's file, from `start` to `end`, which are zeros now. Later
    /// writes replace them.
    pub(crate) fn fill(self, file: &File, start: u64, end: u64) -> io::Result<()> {
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

/// One in every N requests is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Every {
    pub(super) requests: u64,
    pub(super) answer: Fake,
}

/// What is wrong with certain requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// `None` for any method.
    method: Option<String>,
    path: Vec<String>,
    /// Which of the matching requests is the first one affected, from 1.
    pub(super) nth: u64,
    /// How many requests are affected.
    pub(super) times: u64,
    pub(super) act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Answer {
        fake: Fake,
        is_done: bool,
    },
    Reset {
        is_done: bool,
    },
    Stall,
    Delay(Duration),
    /// The answer is truncated after this many bytes.
    Truncate(u64),
}

/// An answer that the plan contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fake {
    pub(super) status: StatusCode,
    pub(super) error: Option<ErrorType>,
    pub(super) retry_after_s: Option<u64>,
}

impl Fake {
    pub(super) fn to_answer(self) -> Answer {
        answer::made_up(self.status, self.error, self.retry_after_s)
    }
}

impl Fault {
    pub(super) fn matches(&self, method: &str, path: &str) -> bool {
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

    /// Parses the TOML of `docs/user/fault-plan.md`, or the same in JSON.
    ///
    /// The error is [`ErrorKind::Usage`] for anything of another form; unknown keys are reported,
    /// never ignored.
    fn from_str(text: &str) -> Result<Self> {
        // TOML never begins with a brace.
        let value = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|cause| {
                Error::new(ErrorKind::Usage, "The fault plan is not JSON").because(cause)
            })?,
            false => toml::from_str(text).map_err(|error| not_toml(text, &error))?,
        };
        let mut fields = Fields::of("the fault plan", value)?;
        let plan = Self {
            writers_max: fields.number("writers_max", 1)?.map(small).transpose()?,
            round_size: fields.flag("round_size")?,
            latency: Latency {
                ms: fields.number("latency_ms", 0)?.unwrap_or(0),
                jitter_ms: fields.number("latency_jitter_ms", 0)?.unwrap_or(0),
            },
            bytes_per_s: fields.number("bytes_per_s", 1)?,
            counters: fields.one_of("counters")?,
            fresh_reads: fields.one_of("fresh_reads")?,
            large_reads: fields.one_of("large_reads")?,
            past_end: fields.one_of("past_end")?,
            extents: fields.one_of("extents")?,
            imaging_bytes_per_s: fields.number("imaging_bytes_per_s", 1)?,
            user_keys: fields.one_of("user_keys")?,
            gzip_writes: fields.one_of("gzip_writes")?,
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

fn not_toml(text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| 1 + before.matches('\n').count());
    wrong(format!(
        "The fault plan is not TOML: line {line}: {}",
        error.message()
    ))
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, what).hint_to("A fault plan is TOML, for example: latency_ms = 80")
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

/// The keys of one object of the plan: each is removed when it is read, and what remains at the end
/// is unknown.
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

    fn one_of<T: Words>(&mut self, key: &str) -> Result<T> {
        self.word(key, T::ALL)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_of_a_fault_plan_is_named() {
        let cases = [
            ("[]", "not TOML: line 1"),
            ("writers_max = 1\nround_size = yes", "not TOML: line 2"),
            ("writers_max = 0", "\"writers_max\""),
            ("latency_ms = -1", "\"latency_ms\""),
            ("[[faults]]\nrequest = \"POST /a\"", "needs one of"),
            ("[every]\nrequests = 2", "\"status\""),
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
        for empty in ["{}", "", "# nothing"] {
            assert_eq!(empty.parse::<FaultPlan>().unwrap(), FaultPlan::default());
        }
    }

    #[test]
    fn the_documented_plan_reads_the_same_as_toml_and_json() {
        let text = include_str!("../../../../docs/user/fault-plan.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let block = rest.split_once("```").unwrap().0;
        let plan: FaultPlan = block.parse().unwrap();
        assert_eq!(plan.faults.len(), 2);
        let same: serde_json::Value = toml::from_str(block).unwrap();
        assert_eq!(plan, same.to_string().parse().unwrap());
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
