//! Reads answers, and distinguishes those of this API from others (docs/dev/reference.md, 1.1 and
//! docs/dev/reference.md, 3.1). Only 2xx is success; the original scripts accepted redirects as
//! well (docs/dev/reference.md, T2).

use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes, BytesMut};
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, HeaderMap, HeaderName, LOCATION,
    RETRY_AFTER,
};
use reqwest::{Response, StatusCode};

use super::flow::Flow;
use super::meter::Traffic;
use crate::drive::DriveId;
use crate::failure::{Failure, HTML_PAGE, Refusal};
use crate::wire::{ErrorType, ObjectReader, Properties, X_ELASTIC_ERROR};

/// Bytes to read of an error's body. Only its first line is shown, which is at the start.
const ERROR_BODY_BYTES: u64 = 4096;
/// Maximum length of the endpoint's message within ours: about two lines of a terminal.
const MESSAGE_CHARS: usize = 160;
/// Maximum bytes of the properties of one drive, which bounds the memory for them. Our server
/// allows 64 KiB of keys; the limits of the clouds are unknown, so there is much room.
pub(super) const OBJECT_BYTES_MAX: usize = 1 << 20;

/// Passes 2xx on, and converts everything else to a failure.
pub(super) async fn check(response: Response, stall: Duration) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let error = header(response.headers(), X_ELASTIC_ERROR).and_then(ErrorType::from_header);
    let retry_after = retry_after(response.headers());
    let message = if status.is_redirection() {
        redirect_message(&response)
    } else if is_html(response.headers()) {
        let page = collect_at_most(response, ERROR_BODY_BYTES, stall).await;
        html_message(&page)
    } else {
        // The body may be missing: the status alone is clear.
        let body = collect_at_most(response, ERROR_BODY_BYTES, stall).await;
        first_line(&body)
    };
    Err(Failure::Refused(Refusal {
        status: status.as_u16(),
        error,
        message,
        retry_after,
    }))
}

/// The expected content of an answer.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// Keys and values.
    Objects,
    /// Bytes of a drive.
    Bytes,
}

/// Passes an answer on if its headers say that it is what was requested: of that type, complete,
/// and unencoded. Anything else may be from a captive portal or a cache in between.
fn expect(response: &Response, asked: Asked) -> Result<(), Failure> {
    let headers = response.headers();
    let not_api = |what: String| Err(Failure::NotApi(what));
    if is_html(headers) {
        return not_api(HTML_PAGE.to_owned());
    }
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    if is_part || headers.contains_key(CONTENT_RANGE) {
        let range = shown(headers, &CONTENT_RANGE).unwrap_or_else(|| "unknown".to_owned());
        return not_api(format!("a part that was not asked for, range {range}"));
    }
    if let Some(encoding) = shown(headers, &CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return not_api(format!(
            "a body with the encoding {encoding:?}, which was not asked for"
        ));
    }
    // Objects are sent as text, but a few old clouds declare every body as bytes, and a type may be
    // missing.
    let (what, types): (_, &[&str]) = match asked {
        Asked::Objects => ("text", &["text/plain", OCTETS]),
        Asked::Bytes => ("bytes", &[OCTETS]),
    };
    match media_type(headers) {
        Some(found) if !types.contains(&&*found) => {
            not_api(format!("a body of type {found:?}, not {what}"))
        }
        _ => Ok(()),
    }
}

/// The type of bytes.
const OCTETS: &str = "application/octet-stream";

/// The type of a body, without parameters; `None` if it is not declared.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = shown(headers, &CONTENT_TYPE)?;
    let name = value.split(';').next().unwrap_or_default().trim();
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// A header as a printable line.
fn shown(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(first_line(headers.get(name)?.as_bytes()))
}

/// The objects of an answer, as they arrive.
#[derive(Debug)]
pub(super) struct Objects {
    response: Response,
    flow: Flow,
    /// Bytes that were received and are not parsed yet.
    part: Bytes,
    /// `None` after the end.
    reader: Option<ObjectReader>,
    left: u64,
    limit: u64,
}

impl Objects {
    /// The objects of a body of at most `limit` bytes.
    pub(super) fn of(response: Response, limit: u64, stall: Duration) -> Result<Self, Failure> {
        expect(&response, Asked::Objects)?;
        let objects = Self {
            flow: Flow::of(stall),
            part: Bytes::new(),
            reader: Some(ObjectReader::new(OBJECT_BYTES_MAX)),
            left: limit,
            limit,
            response,
        };
        match objects.response.content_length() {
            Some(len) if len > limit => Err(objects.too_long()),
            _ => Ok(objects),
        }
    }

    fn too_long(&self) -> Failure {
        let limit = self.limit;
        Failure::NotApi(format!("more than the {limit} bytes that were expected"))
    }

    /// The next object; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Properties>, Failure> {
        let not_api = |error: crate::wire::WireError| Failure::NotApi(error.to_string());
        loop {
            let Some(reader) = &mut self.reader else {
                return Ok(None);
            };
            let mut rest: &[u8] = &self.part;
            let read = reader.read(&mut rest).map_err(not_api)?;
            let rest = rest.len();
            self.part.advance(self.part.len().saturating_sub(rest));
            if read.is_some() {
                return Ok(read);
            }
            let Some(part) = self.flow.next_part(&mut self.response).await? else {
                let last = self.reader.take().map(|mut reader| reader.finish());
                return Ok(last.transpose().map_err(not_api)?.flatten());
            };
            let left = self.left.checked_sub(part.len() as u64);
            self.left = left.ok_or_else(|| self.too_long())?;
            self.part = part;
        }
    }
}

/// Reads a body of keys and values of at most `limit` bytes.
pub(super) async fn properties(
    response: Response,
    limit: u64,
    stall: Duration,
) -> Result<Vec<Properties>, Failure> {
    let mut objects = Objects::of(response, limit, stall)?;
    let mut all = Vec::new();
    while let Some(object) = objects.next().await? {
        all.push(object);
    }
    Ok(all)
}

/// Reads a body into `bytes`, which must have the same length. The original scripts wrote a shorter
/// body as it was, so that everything after it was in the wrong place (docs/dev/reference.md, T1).
/// If the body breaks off, `came` is the number of bytes that are valid: 0 if the answer did not
/// declare the right length, because it may be a page from something else.
pub(super) async fn fill(
    mut response: Response,
    bytes: &mut [u8],
    stall: Duration,
    traffic: Option<&Traffic>,
    came: &mut usize,
) -> Result<(), Failure> {
    let len = bytes.len();
    expect(&response, Asked::Bytes)?;
    let wrong = |got: &dyn std::fmt::Display| {
        let what = format!("{got} bytes for a read of {len}");
        Err(Failure::WrongLength(what))
    };
    let declared = response.content_length();
    if let Some(declared) = declared
        && declared != len as u64
    {
        return wrong(&declared);
    }
    let (mut filled, mut flow) = (0_usize, Flow::of(stall));
    while let Some(part) = flow.next_part(&mut response).await? {
        let end = filled.saturating_add(part.len());
        let Some(place) = bytes.get_mut(filled..end) else {
            return wrong(&"more");
        };
        place.copy_from_slice(&part);
        filled = end;
        if declared.is_some() {
            *came = filled;
        }
        pass(traffic, part.len()).await;
    }
    match filled == len {
        true => {
            *came = filled;
            Ok(())
        }
        false => {
            *came = 0;
            wrong(&filled)
        }
    }
}

/// Counts received bytes, and waits as the limit of bytes per second requires. Bytes that are not
/// read fill the window of the connection, which makes the other side wait.
async fn pass(traffic: Option<&Traffic>, bytes: usize) {
    let Some(traffic) = traffic else { return };
    traffic.count(bytes as u64);
    if let Some(meter) = &traffic.meter {
        tokio::time::sleep(meter.take(bytes)).await;
    }
}

/// Reads a body of at most `len` bytes of a drive, discards it, and returns its length.
pub(super) async fn length(
    mut response: Response,
    len: u64,
    stall: Duration,
) -> Result<u64, Failure> {
    expect(&response, Asked::Bytes)?;
    let (mut came, mut flow) = (0_u64, Flow::of(stall));
    while let Some(part) = flow.next_part(&mut response).await? {
        came = came.saturating_add(part.len() as u64);
        if came > len {
            let what = format!("more than the {len} bytes asked for");
            return Err(Failure::WrongLength(what));
        }
    }
    Ok(came)
}

/// Checks that a body is empty or the object of a drive, which are the possible answers to a call
/// that changes a drive. The drive must be the requested one, except for an imaging
/// (docs/dev/reference.md, 5.1).
pub(super) async fn nothing(
    response: Response,
    drive: Option<DriveId>,
    stall: Duration,
) -> Result<(), Failure> {
    const LIMIT: u64 = 64 * 1024;
    if response.status() == StatusCode::NO_CONTENT {
        return Ok(());
    }
    for object in properties(response, LIMIT, stall).await? {
        let Some(found) = object.get("drive") else {
            return Err(Failure::NotApi("a body that is no drive".into()));
        };
        let is_it = |drive: &DriveId| {
            found
                .trim()
                .parse()
                .is_ok_and(|found: DriveId| found == *drive)
        };
        if let Some(drive) = drive.filter(|drive| !is_it(drive)) {
            return Err(another_drive(found, drive));
        }
    }
    Ok(())
}

/// The failure for an answer about another drive than the requested one.
pub(super) fn another_drive(found: &str, asked: DriveId) -> Failure {
    let found = first_line(found.as_bytes());
    Failure::NotApi(format!("it is about drive {found}, not {asked}"))
}

async fn collect_at_most(mut response: Response, limit: u64, stall: Duration) -> Bytes {
    let (mut body, mut flow) = (BytesMut::new(), Flow::of(stall));
    while (body.len() as u64) < limit {
        match flow.next_part(&mut response).await {
            Ok(Some(part)) => body.extend_from_slice(&part),
            Ok(None) | Err(_) => break,
        }
    }
    body.freeze()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_html(headers: &HeaderMap) -> bool {
    header(headers, CONTENT_TYPE.as_str()).is_some_and(|value| {
        value
            .trim_start()
            .to_ascii_lowercase()
            .starts_with("text/html")
    })
}

/// The title of an HTML page: the only part that a person would read in a line.
fn html_message(page: &[u8]) -> String {
    let text = String::from_utf8_lossy(page);
    // Only ASCII letters change, so that positions are the same in both texts.
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title>").and_then(|start| {
        let title = text.get(start..)?.get("<title>".len()..)?;
        let end = title.to_ascii_lowercase().find("</title>")?;
        title.get(..end)
    });
    match title.map(|title| first_line(title.as_bytes())) {
        Some(title) if !title.is_empty() => format!("{HTML_PAGE}, {title:?}"),
        _ => HTML_PAGE.to_owned(),
    }
}

fn redirect_message(response: &Response) -> String {
    let host = header(response.headers(), LOCATION.as_str())
        .and_then(|location| response.url().join(location).ok())
        .and_then(|url| url.host_str().map(str::to_owned));
    match host {
        Some(host) => format!("redirect to {host}, not followed"),
        None => "redirect, not followed".to_owned(),
    }
}

/// Maximum wait that an endpoint can ask for. Larger values are reduced to this, so that sums with
/// it cannot overflow.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// `Retry-After`, as seconds or as a date. A date is compared with the `Date` of the same answer,
/// because the local clock may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = header(headers, RETRY_AFTER.as_str())?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs);
        return Some(seconds.min(RETRY_AFTER_MAX));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let now = header(headers, DATE.as_str())
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or_else(SystemTime::now);
    let wait = then.duration_since(now).unwrap_or_default();
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The first line of a body, without characters that could confuse a terminal.
fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().find(|line| !line.trim().is_empty());
    let clean = line.unwrap_or_default().trim().chars();
    clean
        .map(|c| if c.is_control() { '?' } else { c })
        .take(MESSAGE_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn retry_after_in_both_forms() {
        let s = Duration::from_secs;
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(s(7)));
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
        assert_eq!(retry_after(&headers(&[])), None);
        for large in ["18446744073709551615", "99999999999999999999999999"] {
            let wait = retry_after(&headers(&[("retry-after", large)]));
            assert_eq!(wait, Some(RETRY_AFTER_MAX), "{large}");
        }
        assert_eq!(retry_after(&headers(&[("retry-after", "-1")])), None);
        let dates = [
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"),
        ];
        assert_eq!(retry_after(&headers(&dates)), Some(s(60)));
    }

    fn response(status: u16, body: &'static str) -> Response {
        let mut response = hyper::http::Response::new(body);
        *response.status_mut() = hyper::http::StatusCode::from_u16(status).unwrap();
        response.into()
    }

    #[tokio::test]
    async fn only_2xx_is_success() {
        for status in [200, 204] {
            assert!(check(response(status, ""), Duration::ZERO).await.is_ok());
        }
        // 404 on a write: another client ignored it.
        for status in [300, 302, 307, 400, 401, 404, 409, 500, 507] {
            let answer = check(response(status, ""), Duration::ZERO).await;
            assert!(
                matches!(answer, Err(Failure::Refused(refusal)) if refusal.status == status),
                "{status}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_of_the_wrong_length_is_not_a_chunk() {
        let second = Duration::from_secs(1);
        let mut bytes = [0; 4];
        let mut came = 0;
        let answer = fill(
            response(200, "abc"),
            &mut bytes[..3],
            second,
            None,
            &mut came,
        );
        assert_eq!((answer.await, &bytes), (Ok(()), b"abc\0"));
        for len in [0, 2, 4] {
            let answer = fill(
                response(200, "abc"),
                &mut bytes[..len],
                second,
                None,
                &mut 0,
            )
            .await;
            assert!(matches!(answer, Err(Failure::WrongLength(_))), "{len}");
        }
    }

    #[test]
    fn a_message_of_the_endpoint_is_one_printable_line() {
        assert_eq!(
            first_line(b"\n no\x1b[31m such drive \nmore"),
            "no?[31m such drive"
        );
        assert_eq!(first_line(b""), "");
        assert_eq!(first_line(&[b'x'; 4096]).len(), MESSAGE_CHARS);
    }
}
