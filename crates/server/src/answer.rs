//! The answers of the server, and the form of a refusal (docs/dev/reference.md, 2.5 and
//! docs/dev/reference.md, 3.2).

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Body;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use super::listing;
use openhosting_base::wire::{ErrorType, Format, Properties, X_ELASTIC_ERROR, X_ELASTIC_OUTPUT};
use openhosting_tenancy::Refusal;

/// Body of an answer.
pub(super) type AnswerBody = BoxBody<Bytes, std::io::Error>;
/// An answer, ready to be sent.
pub(super) type Answer = Response<AnswerBody>;

/// The bytes of memory that an answer uses until it was read. It is an extension of answers that
/// use more than [`SMALL_BYTES`], for the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held(pub(super) u64);

/// Smaller answers are not counted: the number of connections bounds them.
const SMALL_BYTES: u64 = 64 * 1024;
/// The memory of an answer that is generated while it is sent: hyper requests frames until it has
/// about 400 KiB, and there may be one more of 256 KiB.
const STREAM_BYTES: u64 = 640 * 1024;

/// The content of a text answer, for `X-Elastic-Output`.
const PROPERTIES: HeaderValue = HeaderValue::from_static("properties");
const LIST: HeaderValue = HeaderValue::from_static("list");

/// 204, for answers without data.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// 200 with one object.
pub(super) fn object(object: &Properties, format: Format) -> Answer {
    of_body(full(object.print(format)), format, PROPERTIES)
}

/// 200 with several objects, which are printed while they are sent.
pub(super) fn objects(
    objects: impl Iterator<Item = Properties> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    of_body(
        listing::of_objects(objects, format).boxed(),
        format,
        PROPERTIES,
    )
}

/// 200 with a list of drives or servers. In JSON, each is under `uuid`, as recorded clients expect,
/// and under `key`, as everywhere else (docs/dev/reference.md, 7).
pub(super) fn list(
    key: &'static str,
    ids: impl Iterator<Item = String> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    let lines = ids.map(move |id| match format {
        Format::Text => format!("{id}\n"),
        Format::Json => serde_json::json!({key: id, "uuid": id}).to_string(),
    });
    of_body(listing::of_lines(lines, format).boxed(), format, LIST)
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
    of_body(listing::of_lines(lines, format).boxed(), format, LIST)
}

/// 200 with a file of another type.
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
        headers.insert(X_ELASTIC_OUTPUT, output);
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

/// A body that is completely in memory.
pub(super) fn full(body: impl Into<Bytes>) -> AnswerBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed()
}

/// The answer of a fault plan, whatever was requested.
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
        headers.insert(X_ELASTIC_ERROR, error);
    }
    if let Some(seconds) = retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// The answer for a refusal.
pub(super) fn refusal(refusal: &Refusal) -> Answer {
    let mut answer = Response::new(full(format!("{refusal}\n")));
    let status = StatusCode::from_u16(refusal.status());
    *answer.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let error = HeaderValue::from_static(refusal.error().as_str());
    headers.insert(X_ELASTIC_ERROR, error);
    if refusal.error() == ErrorType::Auth {
        let basic = HeaderValue::from_static("Basic realm=\"openhosting\"");
        headers.insert(WWW_AUTHENTICATE, basic);
    }
    if let Some(allow) = refusal.allow() {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if refusal.is_last() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(seconds) = refusal.retry_after_s() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_slow_body_closes_the_connection() {
        let answer = refusal(&Refusal::too_slow());
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(answer.headers()[CONNECTION], "close");
        assert!(!answer.headers().contains_key(RETRY_AFTER));
        let answer = refusal(&Refusal::overloaded());
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key(RETRY_AFTER));
    }
}
