//! Refused requests, whatever they are about (docs/dev/reference.md, 3.2).

use std::fmt;
use std::time::Duration;

use openhosting_base::wire::ErrorType;

/// A refused request: an error type and one sentence for people, which is always plain text
/// (docs/dev/reference.md, 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    error: ErrorType,
    /// The HTTP status, if it is not that of the error type.
    status: Option<u16>,
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
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Usage, sentence)
    }

    /// 400: a request whose end cannot be determined for certain. What follows on the connection
    /// must not be parsed as another request.
    pub fn framing(sentence: impl Into<String>) -> Self {
        Self {
            is_last: true,
            ..Self::usage(sentence)
        }
    }

    /// 408: the rest of the body did not arrive (docs/dev/reference.md, 3.3). 400 would mean that
    /// the request is wrong, but the same request may succeed later.
    pub fn too_slow() -> Self {
        Self {
            status: Some(408),
            is_last: true,
            ..Self::new(ErrorType::Failed, "The body did not come in time")
        }
    }

    /// 401: missing or wrong credentials; the answer does not reveal which.
    pub fn auth() -> Self {
        Self::new(ErrorType::Auth, "User or secret key is missing or wrong")
    }

    /// 402: the account does not cover more.
    pub fn billing(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Billing, sentence)
    }

    /// 429: too many requests; the next is allowed after `wait`. The closest type in the table is
    /// `busy` (docs/dev/reference.md, 3.3).
    pub fn too_many(wait: Duration, sentence: impl Into<String>) -> Self {
        // Seconds, rounded up.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            status: Some(429),
            retry_after_s: Some(seconds.max(1)),
            ..Self::busy(sentence)
        }
    }

    /// 404: the drive does not exist, or belongs to another user. The two answers must not differ
    /// in any byte.
    pub fn no_drive() -> Self {
        Self::new(ErrorType::Missing, "Drive could not be found")
    }

    /// 404: the server does not exist, or belongs to another user.
    pub fn no_server() -> Self {
        Self::new(ErrorType::Missing, "Server could not be found")
    }

    /// 404: the resource does not exist, or belongs to another user.
    pub fn no_resource() -> Self {
        Self::new(ErrorType::Missing, "Resource could not be found")
    }

    /// 404: the command does not exist.
    pub fn no_command() -> Self {
        Self::new(ErrorType::Missing, "No such command")
    }

    /// 405: the command does not support this method; `allow` lists the supported ones.
    pub fn method(allow: &'static str, sentence: impl Into<String>) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(ErrorType::Method, sentence)
        }
    }

    /// 409: the drive is in use.
    pub fn busy(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Busy, sentence)
    }

    /// 503: the server has no free memory at the moment. The closest type in the table is `busy`
    /// (docs/dev/reference.md, 3.3).
    pub fn overloaded() -> Self {
        Self {
            status: Some(503),
            retry_after_s: Some(1),
            ..Self::busy("The server is busy, try again in a second")
        }
    }

    /// 500: a fault of the server.
    pub fn system(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::System, sentence)
    }

    /// 500: the command failed.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Failed, sentence)
    }

    /// 507: no space left.
    pub fn full() -> Self {
        Self::new(ErrorType::Full, "No space left for the drive")
    }

    /// The same refusal, and the connection closes after it.
    pub fn and_last(self) -> Self {
        Self {
            is_last: true,
            ..self
        }
    }

    /// The error type.
    pub fn error(&self) -> ErrorType {
        self.error
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.error.status())
    }

    /// How many seconds the client should wait before it tries again, if known.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }

    /// Whether the connection closes after it.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// The methods that the command supports, if another one was used.
    pub fn allow(&self) -> Option<&'static str> {
        self.allow
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
                Self::system("Internal fault of the server; its log has the details")
            }
        }
    }
}
