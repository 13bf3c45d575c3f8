//! Images on web servers: one attempt for each method call, as for the API. The API's credentials
//! are not available here.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Response, StatusCode, Url};

use super::answer;
use super::cause::{Contact, no_answer};
use super::client::ClientConfig;
use super::endpoint::is_loopback;
use super::flow::Flow;
use super::route::Route;
use super::trust::Trust;
use super::trust::cannot;
use crate::drive::DRIVE_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{Failure, Refusal};

/// The encoding that leaves a body unchanged.
const IDENTITY: &str = "identity";
/// Maximum redirects of one request, in case they form a loop. It is also the default of the HTTP
/// client.
const REDIRECTS_MAX: usize = 10;

/// The location of an image: http or https. It may contain credentials, and its query may contain a
/// signature; neither is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct WebUrl(Url);

impl WebUrl {
    /// Whether a text looks like such a URL.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|s| s.eq_ignore_ascii_case("http") || s.eq_ignore_ascii_case("https"))
    }

    /// The last part of its path.
    pub fn base_name(&self) -> String {
        let last = self.0.path_segments().and_then(Iterator::last);
        let decoded = percent_decode_str(last.unwrap_or_default());
        decoded.decode_utf8_lossy().into_owned()
    }

    /// Identifies the file: the URL without credentials and signatures. An expired signed URL and a
    /// new one refer to the same image.
    pub fn identity(&self) -> String {
        let mut url = self.0.clone();
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        if let Some(query) = url.query() {
            let query = without_signature(query);
            url.set_query(query.as_deref());
        }
        url.into()
    }

    /// Scheme, host and port.
    pub fn server(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    /// The URL that answered after redirects. On the same server it is requested in the same way;
    /// another server does not get the password.
    fn redirected_to(&self, url: &Url) -> Self {
        let mut place = url.clone();
        if place.origin() == self.0.origin() {
            let _ = place.set_username(self.0.username());
            let _ = place.set_password(self.0.password());
        }
        place.set_fragment(self.0.fragment());
        Self(place)
    }
}

/// Query parameters that contain a signature or its expiry: both AWS signature versions,
/// CloudFront, Google, Alibaba, Azure, and the usual names of content networks and nginx. In lower
/// case.
const SIGNATURES: [&str; 21] = [
    "accesskeyid",
    "access_token",
    "auth",
    "auth_key",
    "awsaccesskeyid",
    "exp",
    "expires",
    "googleaccessid",
    "hdnea",
    "hdnts",
    "hmac",
    "key-pair-id",
    "md5",
    "ossaccesskeyid",
    "policy",
    "security-token",
    "sig",
    "signature",
    "token",
    "verify",
    "x-sig",
];
/// Prefixes of such names.
const SIGNATURE_FAMILIES: [&str; 4] = ["x-amz-", "x-goog-", "x-oss-", "x-cos-"];
/// Other parameters of a shared access signature of Azure. These names are so short that they are
/// meaningless without its `sig`.
const AZURE: [&str; 19] = [
    "se", "si", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt",
    "st", "ss", "sv", "saoid", "suoid", "scid",
];

/// A query without the parameters of a signature; `None` if nothing is left.
fn without_signature(query: &str) -> Option<String> {
    let name = |part: &str| {
        let name = part.split('=').next().unwrap_or_default();
        let name = percent_decode_str(name).decode_utf8_lossy();
        name.to_ascii_lowercase()
    };
    let is_azure = {
        let has = |wanted: &str| query.split('&').any(|part| name(part) == wanted);
        has("sig") && has("sv")
    };
    let is_kept = |part: &&str| {
        let name = name(part);
        let is_signature = SIGNATURES.contains(&&*name)
            || SIGNATURE_FAMILIES
                .iter()
                .any(|family| name.starts_with(family))
            || is_azure && AZURE.contains(&&*name);
        !is_signature
    };
    let kept: Vec<_> = query.split('&').filter(is_kept).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

impl FromStr for WebUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Not quoted, because it may contain a password.
        let url: Url = text
            .parse()
            .map_err(|_| Error::new(ErrorKind::Usage, "The image's URL is none"))?;
        match url.host_str() {
            Some(_) if matches!(url.scheme(), "http" | "https") => Ok(Self(url)),
            _ => Err(Error::new(
                ErrorKind::Usage,
                "The image's URL has no host, or is neither http nor https",
            )),
        }
    }
}

impl WebUrl {
    /// Whether messages show all of it: it has no parts that may be secret.
    pub(crate) fn is_shown_whole(&self) -> bool {
        let url = &self.0;
        let has_user = !url.username().is_empty() || url.password().is_some();
        !has_user && url.query().is_none()
    }
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or_default();
        write!(f, "{}://{host}", self.0.scheme())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Distinguishes one state of a file on a server from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Bytes of the file, if the server states them.
    pub size: Option<u64>,
    etag: Option<String>,
    modified: Option<String>,
}

impl Pin {
    /// Whether an equal pin implies an equal file.
    pub fn detects_changes(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// Whether `other` may be the same state. The answer to a range need not state the size.
    pub fn fits(&self, other: &Self) -> bool {
        let is_size = other.size.is_none() || self.size == other.size;
        is_size && self.etag == other.etag && self.modified == other.modified
    }

    /// The value for `If-Range`, which must not be a weak tag.
    fn condition(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }

    /// The pin as text.
    pub fn to_text(&self) -> String {
        format!("{:?} {:?} {:?}", self.size, self.etag, self.modified)
    }
}

/// An answer of a web server.
#[derive(Debug)]
pub struct WebAnswer {
    response: Response,
    /// Offset of its body in the file; `None` if it is the whole file, because the server does not
    /// support ranges or the file changed.
    pub from: Option<u64>,
    /// The state of the file.
    pub pin: Pin,
    /// The URL that answered, after all redirects.
    pub place: WebUrl,
    /// The encoding of the body according to the server, in lower case, although no encoding was
    /// accepted.
    pub encoding: Option<String>,
    flow: Flow,
    /// Bytes of the range that were not received; `None` for a whole file, which ends by itself.
    left: Option<u64>,
}

impl WebAnswer {
    /// The next part of the body.
    ///
    /// # Errors
    /// A [`Failure`] if the connection breaks or stalls, or more bytes arrive than the range has.
    pub async fn next_part(&mut self) -> Result<Option<Bytes>, Failure> {
        let part = self.flow.next_part(&mut self.response).await?;
        if let (Some(left), Some(part)) = (&mut self.left, &part) {
            *left = left.checked_sub(part.len() as u64).ok_or_else(|| {
                Failure::WrongLength("more bytes than the range that it is said to be".into())
            })?;
        }
        Ok(part)
    }
}

/// A client of web servers. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Web {
    http: reqwest::Client,
    /// For this machine, without any proxy.
    direct: reqwest::Client,
    stall: Duration,
    route: Route,
}

impl Web {
    /// A client that uses the proxies of the environment, except for this machine, and sends
    /// nothing but what the URL contains.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if this machine's certificates cannot be loaded.
    pub fn new(config: &ClientConfig) -> Result<Self> {
        let tls = match &config.certificates {
            Some(certificates) => Trust::MachineAnd(certificates),
            None => Trust::Machine,
        };
        let tls = tls.tls(None)?;
        let builder = || config.builder(&tls).redirect(Policy::custom(follow));
        Ok(Self {
            http: builder().build().map_err(cannot)?,
            direct: builder().no_proxy().build().map_err(cannot)?,
            stall: config.stall,
            route: Route {
                endpoint_from: None,
                ..config.route.clone()
            },
        })
    }

    /// Requests a range of a file, or all of it; if its state is known, only in that state.
    /// `is_known` is whether a server of the file has answered before.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::NotApi`] for another range than the requested one.
    pub async fn get(
        &self,
        url: &WebUrl,
        range: Option<Range<u64>>,
        pin: Option<&Pin>,
        is_known: bool,
    ) -> Result<WebAnswer, Failure> {
        let http = match is_loopback(&url.0) || self.route.excludes(&url.0) {
            true => &self.direct,
            false => &self.http,
        };
        let mut request = http.get(url.0.clone()).header(ACCEPT_ENCODING, IDENTITY);
        if let Some(range) = &range {
            request = request.header(RANGE, range_of(range));
        }
        if let Some(condition) = pin.and_then(Pin::condition) {
            request = request.header(IF_RANGE, condition);
        }
        let contact = match is_known {
            true => Contact::Again,
            false => Contact::FirstOfImage,
        };
        let sent = tokio::time::timeout(self.stall, request.send()).await;
        let response = sent
            .map_err(|_| Failure::Stalled(self.stall))?
            .map_err(|error| failure_of(error, &self.route, contact))?;
        if is_empty_file(&response) {
            return Err(Failure::Refused(Refusal {
                status: response.status().as_u16(),
                error: None,
                message: "the file is empty".to_owned(),
                retry_after: None,
            }));
        }
        let response = answer::check(response, self.stall).await?;
        let place = url.redirected_to(response.url());
        let headers = response.headers();
        let declared = response.content_length();
        let (part, size) = match (response.status(), &range) {
            (StatusCode::PARTIAL_CONTENT, Some(asked)) => {
                let part = header(headers, &CONTENT_RANGE).and_then(ContentRange::parse);
                let part = part.filter(|part| part.answers(asked, declared));
                let Some(part) = part else {
                    let what = "another range than was asked for";
                    return Err(Failure::NotApi(what.into()));
                };
                (Some(part), part.size)
            }
            (StatusCode::PARTIAL_CONTENT, None) => {
                let what = "a part of the file where all of it was asked for";
                return Err(Failure::NotApi(what.into()));
            }
            _ => (None, declared),
        };
        if let Some(size) = size.filter(|size| *size > DRIVE_BYTES_MAX) {
            let what = format!("a size of {size} bytes, which no file has");
            return Err(Failure::NotApi(what));
        }
        let text = |name: &HeaderName| header(headers, name).map(str::to_owned);
        let pin = Pin {
            size,
            etag: text(&ETAG),
            modified: text(&LAST_MODIFIED),
        };
        let encoding = header(headers, &CONTENT_ENCODING).map(str::to_ascii_lowercase);
        Ok(WebAnswer {
            from: part.map(|part| part.first),
            left: part.map(ContentRange::len),
            pin,
            place,
            encoding: encoding.filter(|encoding| encoding != IDENTITY),
            response,
            flow: Flow::of(self.stall),
        })
    }
}

/// A redirect that is not followed is not worth another attempt.
fn failure_of(error: reqwest::Error, route: &Route, contact: Contact) -> Failure {
    // The latter is for a redirect to something that is not an http(s) URL.
    if !error.is_redirect() && !error.is_builder() {
        return no_answer(error, route, contact);
    }
    let why = std::error::Error::source(&error).map(ToString::to_string);
    Failure::Refused(Refusal {
        status: error.status().map_or(302, |status| status.as_u16()),
        error: None,
        message: why.unwrap_or_else(|| "a redirect that is not followed".to_owned()),
        retry_after: None,
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The header that requests a range.
fn range_of(range: &Range<u64>) -> String {
    match range.end {
        u64::MAX => format!("bytes={}-", range.start),
        end => format!("bytes={}-{}", range.start, end.saturating_sub(1)),
    }
}

/// The part of a file in an answer: `bytes 5-9/100` means five bytes from offset 5, of a file of
/// 100; with `bytes 5-9/*`, the size is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    size: Option<u64>,
}

impl ContentRange {
    /// Parses the header; `None` if it is invalid, or not about a part of a file.
    fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let size = match size.trim() {
            "*" => None,
            size => Some(number(size)?),
        };
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        let is_part = first <= last && last < size.unwrap_or(u64::MAX);
        is_part.then_some(Self { first, last, size })
    }

    /// Number of bytes, at least one.
    fn len(self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// Whether it is the requested part, or the beginning of that, and the declared length of the
    /// body matches.
    fn answers(self, asked: &Range<u64>, declared: Option<u64>) -> bool {
        self.first == asked.start
            && self.last < asked.end
            && declared.is_none_or(|declared| declared == self.len())
    }
}

/// Parses digits only.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Whether the server refuses a range because the file is empty.
fn is_empty_file(response: &Response) -> bool {
    response.status() == StatusCode::RANGE_NOT_SATISFIABLE
        && header(response.headers(), &CONTENT_RANGE).is_some_and(|range| range == "bytes */0")
}

/// Follows a redirect to another http(s) URL, but not from https to http, where anybody could
/// answer.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let scheme = attempt.url().scheme();
    if !matches!(scheme, "http" | "https") {
        let what = format!("a redirect to {scheme}:, which is neither http nor https");
        return attempt.error(what);
    }
    let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error("a redirect from https to http, which is not followed");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_url_are_not_shown() {
        let url: WebUrl = "https://u:canary@h:8443/a/d%20b.img?sig=canary#canary"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "https://h:8443/a/d%20b.img");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!(url.base_name(), "d b.img");
        assert!(!url.identity().contains("canary@"));
        for bad in ["http://", "https://u:canary@/", "ftp://canary/"] {
            let error = bad.parse::<WebUrl>().unwrap_err();
            assert!(!error.chain().contains("canary"), "{bad}");
        }
        assert!(WebUrl::is_meant("HTTPS://h/"));
        assert!(!WebUrl::is_meant("http:/h") && !WebUrl::is_meant("a/http://h"));
    }

    #[test]
    fn a_url_signature_is_not_part_of_the_identity() {
        let identity = |url: &str| url.parse::<WebUrl>().unwrap().identity();
        for (query, kept) in [
            (
                "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2Fb&X-Amz-Signature=1",
                "",
            ),
            (
                "AWSAccessKeyId=a&Expires=1&Signature=s%3D&versionId=7",
                "?versionId=7",
            ),
            (
                "x-goog-signature=1&X%2DGoog-Date=2&generation=3",
                "?generation=3",
            ),
            ("sv=2024&sr=b&sp=r&se=2026&sig=x&snapshot=1", "?snapshot=1"),
            ("Policy=p&Key-Pair-Id=k&Signature=s", ""),
            ("file=a.img&token=1", "?file=a.img"),
            // Not a signature of Azure.
            ("sp=1&sr=2", "?sp=1&sr=2"),
            ("id=7&v=a%26b", "?id=7&v=a%26b"),
        ] {
            assert_eq!(
                identity(&format!("https://h/a?{query}")),
                format!("https://h/a{kept}")
            );
        }
        assert_eq!(identity("https://u:p@h/a"), "https://h/a");
    }

    #[test]
    fn a_password_stays_with_its_server() {
        let url: WebUrl = "https://u:p@h/a".parse().unwrap();
        let to = |text: &str| url.redirected_to(&text.parse().unwrap());
        assert_eq!(to("https://h/b").0.password(), Some("p"));
        assert_eq!(to("https://other/b").0.password(), None);
        assert_eq!(to("https://h:8443/b").0.password(), None);
        assert_eq!(to("https://h/a"), url);
    }

    #[test]
    fn a_content_range_is_parsed_or_refused() {
        let part = |first, last, size| Some(ContentRange { first, last, size });
        assert_eq!(ContentRange::parse("bytes 5-9/100"), part(5, 9, Some(100)));
        assert_eq!(ContentRange::parse("bytes 5-9/*"), part(5, 9, None));
        for bad in [
            "bytes 5-9/x",
            "bytes */100",
            "5-9/100",
            "bytes 5/100",
            "",
            // No byte, beyond the end, and beyond 64 bits.
            "bytes 9-5/100",
            "bytes 5-100/100",
            "bytes 5-9/+100",
            "bytes 5-9/",
            "bytes -1-9/100",
            "bytes 5-18446744073709551616/*",
            "bytes 5-18446744073709551615/*",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_partial_answer_must_begin_with_the_requested_range() {
        let answers = |text: &str, asked: Range<u64>, declared| {
            let part = ContentRange::parse(text).unwrap();
            part.answers(&asked, declared)
        };
        assert!(answers("bytes 5-9/100", 5..10, Some(5)));
        assert!(answers("bytes 5-9/100", 5..10, None));
        assert!(answers("bytes 5-7/100", 5..10, Some(3)));
        assert!(answers("bytes 5-9/100", 5..u64::MAX, Some(5)));
        for (text, asked, declared) in [
            ("bytes 4-9/100", 5..10, Some(6)),
            ("bytes 6-9/100", 5..10, Some(4)),
            ("bytes 5-10/100", 5..10, Some(6)),
            ("bytes 5-9/100", 5..10, Some(6)),
            ("bytes 5-9/100", 5..10, Some(0)),
        ] {
            assert!(!answers(text, asked, declared), "{text} {declared:?}");
        }
    }
}
