//! What is known about the behaviour of an endpoint where clouds of this family differ
//! (docs/dev/reference.md, 6 and docs/dev/reference.md, 7), and its JSON form. An unknown answer
//! means the most cautious assumption. Findings can reduce what a tool does by default, or avoid a
//! request that is certain to fail. They never relax a safety check.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::wire::READ_BYTES_MAX;

/// Version of the JSON.
const VERSION: u64 = 1;

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding<T> {
    /// It is known.
    Known(T),
    /// Unknown, with the reason. It contains no text from the endpoint, because it is stored in a
    /// file.
    Unknown(String),
}

impl<T> Finding<T> {
    /// The answer, if known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(answer) => Some(answer),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> Default for Finding<T> {
    fn default() -> Self {
        Self::Unknown("not probed".to_owned())
    }
}

impl<T> From<Result<T, String>> for Finding<T> {
    fn from(result: Result<T, String>) -> Self {
        match result {
            Ok(answer) => Self::Known(answer),
            Err(why) => Self::Unknown(why),
        }
    }
}

/// How many concurrent writes to one drive are possible (docs/dev/reference.md, 1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ParallelWrites {
    /// Maximum number of concurrent writes that were accepted.
    pub accepted: u32,
    /// How many concurrent writes were sent when one was busy, if that happened.
    pub busy_from: Option<u32>,
    /// Whether bytes of accepted writes were missing afterwards.
    pub loses_bytes: bool,
}

/// The counters `write:bytes` and `write:requests` (docs/dev/reference.md, 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WriteCounters {
    /// Where they are reported.
    #[serde(rename = "told")]
    pub reported_in: ReportedIn,
    /// What they count.
    pub counts: Counts,
    /// Whether they change later than the answer to the write.
    pub is_late: bool,
    /// `write:bytes` of a drive that was just created.
    pub start_bytes: Option<u64>,
}

/// Where counters are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedIn {
    /// In `info`.
    Info,
    /// In `info/full` only.
    #[serde(rename = "info/full")]
    InfoFull,
    /// Nowhere.
    Nowhere,
}

/// What counters count of writes through the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// Every byte and every request, once.
    Exact,
    /// Bytes rounded up to pages of 4096.
    Pages,
    /// No write through the API, or they are not reported.
    Nothing,
    /// Something else.
    Otherwise,
}

/// The response to a request that may exceed what the endpoint allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// It succeeds.
    Accepted,
    /// It is refused with this status.
    Refused(u16),
    /// It succeeds, but with only this many bytes.
    #[serde(rename = "short_bytes")]
    Short(u64),
}

/// Reads above 4 MiB (docs/dev/reference.md, 1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LargeReads {
    /// A read of 4 MiB and one byte.
    #[serde(rename = "4194305")]
    pub above: Taken,
    /// A read of 8 MiB.
    #[serde(rename = "8388608")]
    pub double: Taken,
}

/// A write that begins on the drive and ends beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PastEnd {
    /// The status of the answer.
    pub status: u16,
    /// Whether bytes of it were written to the drive.
    pub is_written: bool,
    /// Whether the drive grew.
    pub grows: bool,
}

/// The largest raw body of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LargestBody {
    /// The largest that was accepted, in bytes; 0 if none was.
    pub accepted_bytes: u64,
    /// The smallest that was refused, in bytes; `None` if all tried sizes were accepted.
    pub refused_bytes: Option<u64>,
    /// The status of that; `None` if the connection broke.
    pub refused_status: Option<u16>,
}

/// What happens to a body with `Content-Encoding: gzip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GzipWrites {
    /// It is decompressed.
    Decoded,
    /// It is stored unchanged, so no tool here may send it.
    Stored,
    /// It is refused with this status.
    Refused(u16),
}

/// What was sent with a 429 or 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RetryAfter {
    /// The status.
    pub status: u16,
    /// `Retry-After` in seconds, if it was there.
    pub seconds: Option<u64>,
}

/// The size that a new drive gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Size {
    /// Requested bytes.
    pub asked_bytes: u64,
    /// Bytes of the drive.
    pub given_bytes: u64,
}

/// What is known about one endpoint. Serde handles only the answers: see
/// [`to_json`](Self::to_json).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Findings {
    /// Its URI, which never holds a user or a password.
    #[serde(skip)]
    pub endpoint: String,
    /// When it was probed, in seconds since 1970.
    #[serde(skip)]
    pub probed_at_s: u64,
    /// How many concurrent writes to one drive are possible.
    pub parallel_writes: Finding<ParallelWrites>,
    /// What the write counters count.
    pub write_counters: Finding<WriteCounters>,
    /// Whether unwritten ranges of a new drive read as zeros.
    pub fresh_reads_zero: Finding<bool>,
    /// Reads above 4 MiB.
    pub large_reads: Finding<LargeReads>,
    /// A write past the end.
    pub past_end: Finding<PastEnd>,
    /// Whether `user:` keys of a create are stored.
    pub user_keys_created: Finding<bool>,
    /// Whether `user:` keys of a set are stored.
    pub user_keys_set: Finding<bool>,
    /// The largest raw body.
    pub largest_body: Finding<LargestBody>,
    /// What happens to bodies in gzip.
    pub gzip_writes: Finding<GzipWrites>,
    /// `Retry-After` of a 429 or 503.
    pub retry_after: Finding<RetryAfter>,
    /// The size that a new drive gets.
    pub size: Finding<Size>,
    /// The status of a create that succeeds.
    pub create_status: Finding<u16>,
    /// The status of a destroy that succeeds.
    pub destroy_status: Finding<u16>,
}

impl Findings {
    /// Findings without any answer; `why` is the reason for each.
    pub fn unknown(endpoint: impl Into<String>, why: &str) -> Self {
        let why = || why.to_owned();
        Self {
            endpoint: endpoint.into(),
            probed_at_s: 0,
            parallel_writes: Finding::Unknown(why()),
            write_counters: Finding::Unknown(why()),
            fresh_reads_zero: Finding::Unknown(why()),
            large_reads: Finding::Unknown(why()),
            past_end: Finding::Unknown(why()),
            user_keys_created: Finding::Unknown(why()),
            user_keys_set: Finding::Unknown(why()),
            largest_body: Finding::Unknown(why()),
            gzip_writes: Finding::Unknown(why()),
            retry_after: Finding::Unknown(why()),
            size: Finding::Unknown(why()),
            create_status: Finding::Unknown(why()),
            destroy_status: Finding::Unknown(why()),
        }
    }

    /// Maximum concurrent writes to one drive, if a limit is known: with one more, a write was
    /// busy, or bytes were lost. `None` means that no limit was found, not that there is none.
    pub fn max_parallel_writes(&self) -> Option<u32> {
        let writes = self.parallel_writes.known()?;
        if writes.loses_bytes {
            return Some(1);
        }
        writes.busy_from.map(|_| writes.accepted.max(1))
    }

    /// Whether a new drive read as zeros where nothing was written. Even with `Some(true)`, the
    /// proof on the drive itself is necessary: another drive on another disk may behave
    /// differently.
    pub fn fresh_reads_zero(&self) -> Option<bool> {
        self.fresh_reads_zero.known().copied()
    }

    /// Maximum bytes of one read that is known to be answered completely: 4 MiB if nothing is known
    /// (docs/dev/reference.md, 1.7).
    pub fn read_bytes_max(&self) -> u64 {
        match self.large_reads.known() {
            Some(LargeReads {
                above: Taken::Accepted,
                double: Taken::Accepted,
            }) => 2 * READ_BYTES_MAX,
            _ => READ_BYTES_MAX,
        }
    }

    /// Maximum bytes of a request body, if a limit is known: what was accepted, or half of what was
    /// refused. `None` means that no limit was found.
    pub fn body_bytes_max(&self) -> Option<u64> {
        let body = self.largest_body.known()?;
        let refused = body.refused_bytes?;
        Some(match body.accepted_bytes {
            0 => (refused / 2).max(1),
            accepted => accepted,
        })
    }

    /// Records that a body of `refused_bytes` was refused for its size (413), and the largest that
    /// has been sent since.
    pub fn body_was_refused(&mut self, refused_bytes: u64, accepted_bytes: u64) {
        self.largest_body = Finding::Known(LargestBody {
            accepted_bytes,
            refused_bytes: Some(refused_bytes),
            refused_status: Some(413),
        });
    }

    /// The findings as one JSON object: `version`, `endpoint`, `probed_at_s`, and under `answers`
    /// for each question `{"known": true, "value": ...}` or `{"known": false, "why": "..."}`. Units
    /// are in the names.
    pub fn to_json(&self) -> Value {
        json!({
            "version": VERSION,
            "endpoint": self.endpoint,
            "probed_at_s": self.probed_at_s,
            "answers": self,
        })
    }

    /// Parses what [`to_json`](Self::to_json) returned. A missing or invalid answer counts as
    /// unknown.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if these are not findings, or have another version.
    pub fn from_json(value: &Value) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Local, format!("The findings {what}"));
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(version) => return Err(wrong(&format!("have version {version}, not {VERSION}"))),
            None => return Err(wrong("have no version")),
        }
        let endpoint = value["endpoint"].as_str();
        let endpoint = endpoint.ok_or_else(|| wrong("name no endpoint"))?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            probed_at_s: value["probed_at_s"].as_u64().unwrap_or_default(),
            ..Self::deserialize(&value["answers"]).unwrap_or_default()
        })
    }
}

impl<T: Serialize> Serialize for Finding<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(answer) => json!({"known": true, "value": answer}),
            Self::Unknown(why) => json!({"known": false, "why": why}),
        }
        .serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Finding<T> {
    /// A missing or invalid answer counts as unknown, so that it does not affect the others.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match (value["known"].as_bool(), value["why"].as_str()) {
            (Some(true), _) => T::deserialize(&value["value"])
                .map_err(|_| "the kept answer cannot be understood".to_owned())
                .into(),
            (_, Some(why)) => Self::Unknown(why.to_owned()),
            _ => Self::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Findings {
        Findings {
            endpoint: "https://api.example.com/".into(),
            probed_at_s: 7,
            parallel_writes: Finding::Known(ParallelWrites {
                accepted: 3,
                busy_from: Some(4),
                loses_bytes: false,
            }),
            write_counters: Finding::Known(WriteCounters {
                reported_in: ReportedIn::InfoFull,
                counts: Counts::Pages,
                is_late: true,
                start_bytes: Some(4096),
            }),
            fresh_reads_zero: Finding::Known(false),
            large_reads: Finding::Known(LargeReads {
                above: Taken::Accepted,
                double: Taken::Short(4_194_304),
            }),
            past_end: Finding::Known(PastEnd {
                status: 507,
                is_written: false,
                grows: false,
            }),
            user_keys_created: Finding::Known(true),
            user_keys_set: Finding::Unknown("connection broke".into()),
            largest_body: Finding::Known(LargestBody {
                accepted_bytes: 5 << 20,
                refused_bytes: Some(16 << 20),
                refused_status: None,
            }),
            gzip_writes: Finding::Known(GzipWrites::Refused(415)),
            retry_after: Finding::Known(RetryAfter {
                status: 503,
                seconds: Some(1),
            }),
            size: Finding::Known(Size {
                asked_bytes: 1,
                given_bytes: 4_194_304,
            }),
            create_status: Finding::Known(200),
            destroy_status: Finding::default(),
        }
    }

    #[test]
    fn stored_findings_read_back() {
        for findings in [full(), Findings::unknown("https://h/", "no time")] {
            assert_eq!(Findings::from_json(&findings.to_json()).unwrap(), findings);
        }
    }

    #[test]
    fn findings_have_the_json_of_earlier_versions() {
        let answer = |value| json!({"known": true, "value": value});
        let unknown = |why: &str| json!({"known": false, "why": why});
        let expected = json!({
            "version": 1,
            "endpoint": "https://api.example.com/",
            "probed_at_s": 7,
            "answers": {
                "parallel_writes": answer(json!({"accepted": 3, "busy_from": 4, "loses_bytes": false})),
                "write_counters": answer(json!({"told": "info/full", "counts": "pages", "is_late": true, "start_bytes": 4096})),
                "fresh_reads_zero": answer(json!(false)),
                "large_reads": answer(json!({"4194305": "accepted", "8388608": {"short_bytes": 4_194_304}})),
                "past_end": answer(json!({"status": 507, "is_written": false, "grows": false})),
                "user_keys_created": answer(json!(true)),
                "user_keys_set": unknown("connection broke"),
                "largest_body": answer(json!({"accepted_bytes": 5 << 20, "refused_bytes": 16 << 20, "refused_status": null})),
                "gzip_writes": answer(json!({"refused": 415})),
                "retry_after": answer(json!({"status": 503, "seconds": 1})),
                "size": answer(json!({"asked_bytes": 1, "given_bytes": 4_194_304})),
                "create_status": answer(json!(200)),
                "destroy_status": unknown("not probed"),
            },
        });
        // Compared as text, because the order of the keys matters too.
        assert_eq!(full().to_json().to_string(), expected.to_string());
    }

    #[test]
    fn missing_or_invalid_findings_are_unknown() {
        let mut json = full().to_json();
        json["answers"]["size"] = json!({"known": true, "value": "large"});
        json["answers"]["gzip_writes"] = Value::Null;
        let findings = Findings::from_json(&json).unwrap();
        assert_eq!(findings.size.known(), None);
        assert_eq!(findings.gzip_writes, Finding::default());
        assert_eq!(findings.past_end, full().past_end);
        json["version"] = json!(2);
        let error = Findings::from_json(&json).unwrap_err();
        assert_eq!(error.to_string(), "The findings have version 2, not 1");
        for none in [json!({}), json!(3), json!({"version": 1})] {
            assert!(Findings::from_json(&none).is_err(), "{none}");
        }
    }

    #[test]
    fn unknown_findings_mean_caution() {
        let nothing = Findings::default();
        assert_eq!(nothing.max_parallel_writes(), None);
        assert_eq!(nothing.fresh_reads_zero(), None);
        assert_eq!(nothing.read_bytes_max(), READ_BYTES_MAX);
        let mut findings = full();
        assert_eq!(findings.max_parallel_writes(), Some(3));
        assert_eq!(findings.fresh_reads_zero(), Some(false));
        // One byte more succeeded, and double the size did not.
        assert_eq!(findings.read_bytes_max(), READ_BYTES_MAX);
        let mut body = LargestBody {
            accepted_bytes: 32 << 20,
            refused_bytes: None,
            refused_status: None,
        };
        findings.largest_body = Finding::Known(body);
        assert_eq!(findings.body_bytes_max(), None);
        body.refused_bytes = Some(5 << 20);
        body.accepted_bytes = 1 << 20;
        findings.largest_body = Finding::Known(body);
        assert_eq!(findings.body_bytes_max(), Some(1 << 20));
        body.accepted_bytes = 0;
        findings.largest_body = Finding::Known(body);
        assert_eq!(findings.body_bytes_max(), Some(5 << 19));
        let mut writes = ParallelWrites {
            accepted: 8,
            busy_from: None,
            loses_bytes: false,
        };
        findings.parallel_writes = Finding::Known(writes);
        assert_eq!(findings.max_parallel_writes(), None);
        writes.loses_bytes = true;
        findings.parallel_writes = Finding::Known(writes);
        assert_eq!(findings.max_parallel_writes(), Some(1));
    }
}
