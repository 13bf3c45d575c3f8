//! What the server answers, and what it refuses (docs/dev/reference.md, 2.5 and
//! docs/dev/reference.md, 3.2).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Body;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};

use super::listing;

use crate::wire::{ErrorType, Format, Properties, X_ELASTIC_ERROR, X_ELASTIC_OUTPUT};

/// Body of an answer.
pub(super) type AnswerBody = BoxBody<Bytes, std::io::Error>;
/// An answer, ready to be sent.
pub(super) type Answer = Response<AnswerBody>;

/// The memory that an answer takes while nobody reads it, in bytes: an extension of
/// answers that take more than [`SMALL_BYTES`], for the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held(pub(super) u64);

/// Not worth counting: the number of connections bounds it.
const SMALL_BYTES: u64 = 64 * 1024;
/// What an answer takes that is made while it is sent: hyper asks for frames until it has
/// some 400 KiB, and there may be one more of 256 KiB.
const STREAM_BYTES: u64 = 640 * 1024;

/// What a text answer holds, as `X-Elastic-Output` says.
const PROPERTIES: HeaderValue = HeaderValue::from_static("properties");
const LIST: HeaderValue = HeaderValue::from_static("list");

/// 204, for what has no data.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// 200 with one object.
pub(super) fn object(object: &Properties, format: Format) -> Answer {
    of_body(full(object.print(format)), format, PROPERTIES)
}

/// 200 with several objects, printed while they are sent.
pub(super) fn objects(
    objects: impl Iterator<Item = Properties> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    of_body(listing::of_objects(objects, format), format, PROPERTIES)
}

/// 200 with a list of drives or servers. JSON has them under `uuid`, as recorded
/// clients read it, and under `key`, as everywhere else (docs/dev/reference.md, 7).
pub(super) fn list(
    key: &'static str,
    ids: impl Iterator<Item = String> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    let lines = ids.map(move |id| match format {
        Format::Text => format!("{id}\n"),
        Format::Json => serde_json::json!({key: id, "uuid": id}).to_string(),
    });
    of_body(listing::of_lines(lines, format), format, LIST)
}

/// 200 with a list of resources (docs/dev/reference.md, 1.12): lines of `TYPE RESOURCE`, or objects
/// with these two keys.
pub(super) fn resources(
    resources: impl Iterator<Item = Properties> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    let lines = resources.map(move |object| {
        let value = |key| object.get(key).unwrap_or_default();
        let (kind, name) = (value("type"), value("resource"));
        match format {
            Format::Text => format!("{kind} {name}\n"),
            Format::Json => serde_json::json!({"type": kind, "resource": name}).to_string(),
        }
    });
    of_body(listing::of_lines(lines, format), format, LIST)
}

/// 200 with a file of another kind.
pub(super) fn file(bytes: impl Into<Bytes>, media_type: &'static str) -> Answer {
    let bytes = bytes.into();
    let len = bytes.len() as u64;
    let mut answer = holding(full(bytes), len);
    let media_type = HeaderValue::from_static(media_type);
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}

/// 200 with raw bytes.
pub(super) fn bytes(body: AnswerBody) -> Answer {
    let mut answer = holding(body, STREAM_BYTES);
    let octets = HeaderValue::from_static("application/octet-stream");
    answer.headers_mut().insert(CONTENT_TYPE, octets);
    answer
}

fn of_body(body: AnswerBody, format: Format, output: HeaderValue) -> Answer {
    let bytes = body.size_hint().exact().unwrap_or(STREAM_BYTES);
    let mut answer = holding(body, bytes);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    if format == Format::Text {
        headers.insert(HeaderName::from_static(X_ELASTIC_OUTPUT), output);
    }
    answer
}

fn holding(body: AnswerBody, bytes: u64) -> Answer {
    let mut answer = Response::new(body);
    if bytes > SMALL_BYTES {
        answer.extensions_mut().insert(Held(bytes));
    }
    answer
}

/// A body that is there as a whole.
pub(super) fn full(body: impl Into<Bytes>) -> AnswerBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed()
}

/// An answer that a fault plan makes up, whatever was asked for.
pub(super) fn made_up(
    status: StatusCode,
    error: Option<ErrorType>,
    retry_after_s: Option<u64>,
) -> Answer {
    let body = match status.is_success() {
        true => "",
        false => "Answered by the fault plan\n",
    };
    let mut answer = Response::new(full(body.to_owned()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Some(error) = error {
        let error = HeaderValue::from_static(error.as_str());
        headers.insert(HeaderName::from_static(X_ELASTIC_ERROR), error);
    }
    if let Some(seconds) = retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// A refused request: a type of the error table and one human sentence, which
/// is text whatever was asked for (docs/dev/reference.md, 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    error: ErrorType,
    /// Where it is not the one of the error.
    status: Option<StatusCode>,
    sentence: String,
    retry_after_s: Option<u64>,
    is_last: bool,
    allow: Option<&'static str>,
}

impl Refusal {
    fn new(error: ErrorType, sentence: impl Into<String>) -> Self {
        Self {
            error,
            status: None,
            sentence: sentence.into(),
            retry_after_s: None,
            is_last: false,
            allow: None,
        }
    }

    /// 400: bad input.
    pub(super) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Usage, sentence)
    }

    /// 400: a request whose end cannot be told for sure. What follows it on the
    /// connection must not be taken for another.
    pub(super) fn framing(sentence: impl Into<String>) -> Self {
        Self {
            is_last: true,
            ..Self::usage(sentence)
        }
    }

    /// 408: the rest of the body did not come (docs/dev/reference.md, 3.3),
    /// where 400 would say that the request is wrong: the same may well succeed.
    pub(super) fn too_slow() -> Self {
        Self {
            status: Some(StatusCode::REQUEST_TIMEOUT),
            is_last: true,
            ..Self::new(ErrorType::Failed, "The body did not come in time")
        }
    }

    /// 401: no credentials, or wrong ones; which is not told.
    pub(super) fn auth() -> Self {
        Self::new(ErrorType::Auth, "User or secret key is missing or wrong")
    }

    /// 402: the account covers no more.
    pub(super) fn billing(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Billing, sentence)
    }

    /// 429: too many requests; the next is welcome after `wait`. The nearest type in the
    /// table is `busy` (docs/dev/reference.md, 3.3).
    pub(super) fn too_many(wait: Duration, sentence: impl Into<String>) -> Self {
        // Whole seconds, none too few.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            status: Some(StatusCode::TOO_MANY_REQUESTS),
            retry_after_s: Some(seconds.max(1)),
            ..Self::busy(sentence)
        }
    }

    /// 404: no such drive, or another's. The two must not differ in a byte.
    pub(super) fn no_drive() -> Self {
        Self::new(ErrorType::Missing, "Drive could not be found")
    }

    /// 404: no such server, or another's.
    pub(super) fn no_server() -> Self {
        Self::new(ErrorType::Missing, "Server could not be found")
    }

    /// 404: no such resource, or another's.
    pub(super) fn no_resource() -> Self {
        Self::new(ErrorType::Missing, "Resource could not be found")
    }

    /// 404: no such command.
    pub(super) fn no_command() -> Self {
        Self::new(ErrorType::Missing, "No such command")
    }

    /// 405: a method that the command does not take; `allow` are those it does.
    pub(super) fn method(allow: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(ErrorType::Method, sentence)
        }
    }

    /// 409: the drive is in use.
    pub(super) fn busy(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Busy, sentence)
    }

    /// 503: the server has no memory to spare at the moment. The nearest type in the
    /// table is `busy` (docs/dev/reference.md, 3.3).
    pub(super) fn overloaded() -> Self {
        Self {
            status: Some(StatusCode::SERVICE_UNAVAILABLE),
            retry_after_s: Some(1),
            ..Self::busy("The server is busy, try again in a second")
        }
    }

    /// 500: a fault of the server.
    pub(super) fn system(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::System, sentence)
    }

    /// 500: the command failed.
    pub(super) fn failed(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Failed, sentence)
    }

    /// 507: no space left.
    pub(super) fn full() -> Self {
        Self::new(ErrorType::Full, "No space left for the drive")
    }

    /// The same, and the connection ends with it.
    pub(super) fn and_last(self) -> Self {
        Self {
            is_last: true,
            ..self
        }
    }

    /// The type in the error table.
    pub(super) fn error(&self) -> ErrorType {
        self.error
    }

    /// The answer that tells it.
    pub(super) fn to_answer(&self) -> Answer {
        let mut answer = Response::new(full(format!("{}\n", self.sentence)));
        let by_error = StatusCode::from_u16(self.error.status());
        let by_error = by_error.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *answer.status_mut() = self.status.unwrap_or(by_error);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(
            HeaderName::from_static(X_ELASTIC_ERROR),
            HeaderValue::from_static(self.error.as_str()),
        );
        if self.error == ErrorType::Auth {
            let basic = HeaderValue::from_static("Basic realm=\"openhosting\"");
            headers.insert(WWW_AUTHENTICATE, basic);
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.is_last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded => Self::full(),
            FileTooLarge => Self::usage("The size is more than the server's file system can hold"),
            _ => {
                tracing::error!(%error, "A file operation failed");
                Self::system("Internal fault of the server, its log tells more")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_body_may_be_sent_again_on_another_connection() {
        let answer = Refusal::too_slow().to_answer();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(answer.headers()[CONNECTION], "close");
        assert!(!answer.headers().contains_key(RETRY_AFTER));
        let answer = Refusal::overloaded().to_answer();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key(RETRY_AFTER));
    }
}
