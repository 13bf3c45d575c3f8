//! Why a single request failed. The client creates these values, and the engine decides what to do
//! about them.

use std::fmt;
use std::time::Duration;

use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::amounts::duration;
use crate::error::{Error, ErrorKind};
use crate::wire::ErrorType;

/// What to do where nobody answers at an address.
pub const CANNOT_CONNECT: &str = "Is the server running, and are its address and port right?";

/// Why one attempt of one request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: no byte of the request left this machine.
    Connect(String),
    /// A port of this machine refused the connection, or the host of an image refused it or does
    /// not exist, and nothing has answered there before in this run: waiting for a server would
    /// only hide the mistake.
    NoServer(String),
    /// The certificate of the endpoint was not accepted.
    Certificate(String),
    /// Something on the way refuses this machine or speaks another protocol: a proxy, or the TLS of
    /// the endpoint.
    Barred(Obstacle),
    /// The connection broke after it was established. It is unknown whether the endpoint did what
    /// was requested.
    Broken(String),
    /// No byte moved for this long, or so few that they do not count. It is unknown whether the
    /// endpoint did what was requested.
    Stalled(Duration),
    /// The endpoint answered with an error.
    Refused(Refusal),
    /// The answer is not from this API: an error page of a proxy, or a malformed body.
    NotApi(String),
    /// The answer has another length than requested.
    WrongLength(String),
}

/// Something that blocks the way to an endpoint until a configuration changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What it is, with the place where it is.
    pub why: String,
    /// What to do about it.
    pub hint: Advice,
}

/// The message of an error answer whose body is an HTML page, which this API never sends.
pub const HTML_PAGE: &str = "an HTML page";

/// Why the same request may get another answer later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transient {
    /// It came too slowly, too early or too often, so the next attempt has to wait.
    Pace,
    /// The server, or something in front of it, fails at the moment.
    Fault,
}

impl Transient {
    /// What an HTTP status says; `None` if a repetition does not help.
    pub fn of(status: u16) -> Option<Self> {
        match status {
            408 | 425 | 429 => Some(Self::Pace),
            // The server cannot do what was requested, or has no room for it.
            501 | 505 | 507 => None,
            500..=599 => Some(Self::Fault),
            // Redirects are never followed, and 4xx is about the request itself.
            _ => None,
        }
    }
}

/// An error answer (docs/dev/reference.md, 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The value of `X-Elastic-Error`, if present and known.
    pub error: Option<ErrorType>,
    /// The first line of the body, shortened for a terminal.
    pub message: String,
    /// How long the endpoint asks to wait.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Whether the endpoint may have done what was requested.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Connect(_) | Self::NoServer(_) | Self::Certificate(_) | Self::Barred(_) => false,
            Self::Broken(_) | Self::Stalled(_) | Self::NotApi(_) | Self::WrongLength(_) => true,
            // For a 4xx, it is certain that the service did nothing. A timeout of a proxy (408) and
            // 5xx leave it open, except a full resource (507).
            Self::Refused(refusal) => {
                refusal.status == 408 || refusal.status >= 500 && refusal.status != 507
            }
        }
    }

    /// Whether something other than the endpoint may have answered: a captive portal, the error
    /// page of a front, an inspecting proxy. Only statuses that such things send count. 401 and 407
    /// never count, because repeating such a request can lock an account.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Certificate(_) | Self::NotApi(_) => true,
            Self::Refused(refusal) => match refusal.status {
                300..=399 => true,
                403 | 404 | 405 | 451 => refusal.is_page(),
                _ => false,
            },
            Self::Connect(_)
            | Self::NoServer(_)
            | Self::Barred(_)
            | Self::Broken(_)
            | Self::Stalled(_)
            | Self::WrongLength(_) => false,
        }
    }

    /// How long the endpoint asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// Whether an established connection broke or hung.
    pub fn is_break(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Stalled(_))
    }

    /// Whether the endpoint, or something in front of it, refuses requests of this size.
    pub fn is_about_size(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == 413)
    }

    /// The error to report. `what` is what was being done, as in "Cannot write to the drive".
    pub fn into_error(self, what: &str) -> Error {
        let no_drive = advice!["List your drives with: ", Remedy::ListDrives];
        self.error(what, no_drive)
    }

    /// The same for a request that is about no drive, such as one for a list: what is not found
    /// there is the API.
    pub fn into_error_without_drive(self, what: &str) -> Error {
        let no_api = advice![
            "The API is not at this path. Check ",
            Remedy::CheckEndpoint,
            ": at most providers the URI has no path",
        ];
        self.error(what, no_api)
    }

    fn error(self, what: &str, on_404: Advice) -> Error {
        let (kind, hint) = match &self {
            Self::Connect(_) | Self::NoServer(_) => (ErrorKind::Unavailable, Some(CANNOT_CONNECT.into())),
            Self::Broken(_) | Self::Stalled(_) => (ErrorKind::Unavailable, None),
            Self::Certificate(_) => (
                ErrorKind::Rejected,
                Some(advice![
                    "Check the endpoint's name and this machine's clock, or trust another certificate with ",
                    Remedy::TrustCertificate,
                ]),
            ),
            Self::Barred(obstacle) => (ErrorKind::Rejected, Some(obstacle.hint.clone())),
            Self::NotApi(_) => (
                ErrorKind::Protocol,
                Some(advice![
                    "Check ",
                    Remedy::CheckEndpoint,
                    ": it must be the API's, and no proxy may answer in its place",
                ]),
            ),
            Self::WrongLength(_) => (
                ErrorKind::Protocol,
                Some(
                    "Something between here and the endpoint may cut answers off, or the endpoint does"
                        .into(),
                ),
            ),
            Self::Refused(refusal) => refusal.kind_and_hint(on_404),
        };
        Error::new(kind, format!("{what}: {self}")).hint_if(hint)
    }
}

/// The advice on an answer that the API does not send.
fn no_mark() -> Advice {
    advice![
        "The answer bears no mark of the API: a firewall or proxy may have sent it. Check ",
        Remedy::CheckEndpoint,
        ", then the credentials",
    ]
}

impl Refusal {
    /// Whether the body of the answer is a web page, which the API never sends.
    pub fn is_page(&self) -> bool {
        self.message.starts_with(HTML_PAGE)
    }

    fn kind_and_hint(&self, on_404: Advice) -> (ErrorKind, Option<Advice>) {
        // It was repeated and failed again.
        if self.error == Some(ErrorType::Failed) {
            return (ErrorKind::Rejected, None);
        }
        match self.status {
            // The API always states its error type; what is in front of it does not.
            403 | 404 if self.error.is_none() => (
                match self.status {
                    403 => ErrorKind::Unauthenticated,
                    _ => ErrorKind::NotFound,
                },
                Some(no_mark()),
            ),
            401 | 403 => (
                ErrorKind::Unauthenticated,
                Some(advice![
                    "Check ",
                    Remedy::CheckCredentials,
                    ": <user uuid>:<secret API key>",
                ]),
            ),
            402 => (
                ErrorKind::Rejected,
                Some("The account's balance or subscription does not cover this".into()),
            ),
            404 => (ErrorKind::NotFound, Some(on_404)),
            409 => (
                ErrorKind::Conflict,
                Some("The drive is in use: stop the server or the imaging that uses it".into()),
            ),
            413 => (
                ErrorKind::Rejected,
                Some(
                    "The endpoint, or a proxy in front of it, refuses requests of this size: raise its limit (of nginx, client_max_body_size)"
                        .into(),
                ),
            ),
            507 => (
                ErrorKind::Rejected,
                Some("There is no room for this where the drives are stored".into()),
            ),
            // Not all that `Transient` lists: of a rare status, such as 511 of a login page, the
            // hint below is more useful.
            408 | 425 | 429 | 500 | 502..=504 | 520..=524 => (ErrorKind::Unavailable, None),
            300..=399 => (
                ErrorKind::Protocol,
                Some(advice![
                    "Redirects are not followed: set ",
                    Remedy::CheckEndpoint,
                    " to the endpoint itself",
                ]),
            ),
            _ if self.error.is_none() && self.is_page() => {
                (ErrorKind::Rejected, Some(no_mark()))
            }
            _ => (ErrorKind::Rejected, None),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(why) | Self::NoServer(why) => write!(f, "cannot connect to {why}"),
            Self::Certificate(why) => write!(f, "certificate not accepted: {why}"),
            Self::Barred(obstacle) => write!(f, "cannot connect to {}", obstacle.why),
            Self::Broken(why) => write!(f, "connection broke: {why}"),
            Self::Stalled(after) => {
                write!(f, "no progress for {}", duration(*after))
            }
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NotApi(why) => write!(f, "the answer is not from the API: {why}"),
            Self::WrongLength(why) => write!(f, "the answer has the wrong length: {why}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint answered {}", self.status)?;
        if let Some(error) = self.error {
            write!(f, " {error}")?;
        }
        if !self.message.is_empty() {
            write!(f, " ({})", self.message)?;
        }
        Ok(())
    }
}
