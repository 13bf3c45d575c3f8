//! Requests that are refused, whatever they are about (docs/dev/reference.md, 3.2).

use std::fmt;
use std::time::Duration;

use openhosting_base::wire::ErrorType;

/// A refused request: a type of the error table and one human sentence, which
/// is text whatever was asked for (docs/dev/reference.md, 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    error: ErrorType,
    /// Where it is not the one of the error.
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

    /// 400: a request whose end cannot be told for sure. What follows it on the
    /// connection must not be taken for another.
    pub fn framing(sentence: impl Into<String>) -> Self {
        Self {
            is_last: true,
            ..Self::usage(sentence)
        }
    }

    /// 408: the rest of the body did not come (docs/dev/reference.md, 3.3),
    /// where 400 would say that the request is wrong: the same may well succeed.
    pub fn too_slow() -> Self {
        Self {
            status: Some(408),
            is_last: true,
            ..Self::new(ErrorType::Failed, "The body did not come in time")
        }
    }

    /// 401: no credentials, or wrong ones; which is not told.
    pub fn auth() -> Self {
        Self::new(ErrorType::Auth, "User or secret key is missing or wrong")
    }

    /// 402: the account covers no more.
    pub fn billing(sentence: impl Into<String>) -> Self {
        Self::new(ErrorType::Billing, sentence)
    }

    /// 429: too many requests; the next is welcome after `wait`. The nearest type in the
    /// table is `busy` (docs/dev/reference.md, 3.3).
    pub fn too_many(wait: Duration, sentence: impl Into<String>) -> Self {
        // Whole seconds, none too few.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            status: Some(429),
            retry_after_s: Some(seconds.max(1)),
            ..Self::busy(sentence)
        }
    }

    /// 404: no such drive, or another's. The two must not differ in a byte.
    pub fn no_drive() -> Self {
        Self::new(ErrorType::Missing, "Drive could not be found")
    }

    /// 404: no such server, or another's.
    pub fn no_server() -> Self {
        Self::new(ErrorType::Missing, "Server could not be found")
    }

    /// 404: no such resource, or another's.
    pub fn no_resource() -> Self {
        Self::new(ErrorType::Missing, "Resource could not be found")
    }

    /// 404: no such command.
    pub fn no_command() -> Self {
        Self::new(ErrorType::Missing, "No such command")
    }

    /// 405: a method that the command does not take; `allow` are those it does.
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

    /// 503: the server has no memory to spare at the moment. The nearest type in the
    /// table is `busy` (docs/dev/reference.md, 3.3).
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

    /// The same, and the connection ends with it.
    pub fn and_last(self) -> Self {
        Self {
            is_last: true,
            ..self
        }
    }

    /// The type in the error table.
    pub fn error(&self) -> ErrorType {
        self.error
    }

    /// The status of HTTP.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.error.status())
    }

    /// When the client may try again, if the refusal says so.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }

    /// Whether the connection ends with it.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// The methods that the command takes, where another one was used.
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
                Self::system("Internal fault of the server, its log tells more")
            }
        }
    }
}
