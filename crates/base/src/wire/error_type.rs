//! The error table (docs/dev/reference.md, 3.1).

use std::fmt;

/// The type of an error in the `X-Elastic-Error` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// 400: bad input.
    Usage,
    /// 401: Basic credentials missing or wrong.
    Auth,
    /// 402: balance or subscription does not cover it.
    Billing,
    /// 404: command, drive or other object not found.
    Missing,
    /// 405: GET on a command that expects POST.
    Method,
    /// 409: drive or other object in use.
    Busy,
    /// 500: the command failed.
    Failed,
    /// 500: internal fault.
    System,
    /// 507: drive or other resource full.
    Full,
}

impl ErrorType {
    /// Every type, in the order of the table. The compiler does not check that a new type is here;
    /// without it, [`Self::from_header`] would not know the type.
    pub const ALL: [Self; 9] = [
        Self::Usage,
        Self::Auth,
        Self::Billing,
        Self::Missing,
        Self::Method,
        Self::Busy,
        Self::Failed,
        Self::System,
        Self::Full,
    ];

    /// The HTTP status that goes with it. Two types share 500, so a status does not determine a
    /// type.
    pub fn status(self) -> u16 {
        match self {
            Self::Usage => 400,
            Self::Auth => 401,
            Self::Billing => 402,
            Self::Missing => 404,
            Self::Method => 405,
            Self::Busy => 409,
            Self::Failed | Self::System => 500,
            Self::Full => 507,
        }
    }

    /// The word in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Auth => "auth",
            Self::Billing => "billing",
            Self::Missing => "missing",
            Self::Method => "method",
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::System => "system",
            Self::Full => "full",
        }
    }

    /// Parses a header value. The type may be followed by a space and more text
    /// (docs/dev/reference.md, 3.2); an unknown type is `None`.
    pub fn from_header(value: &str) -> Option<Self> {
        let word = value.split_whitespace().next()?;
        Self::ALL
            .into_iter()
            .find(|error_type| error_type.as_str() == word)
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_type_parses_back() {
        for error_type in ErrorType::ALL {
            let word = error_type.as_str();
            assert_eq!(ErrorType::from_header(word), Some(error_type));
            let longer = format!("{word} drive in use");
            assert_eq!(ErrorType::from_header(&longer), Some(error_type));
        }
        assert_eq!(ErrorType::from_header("teapot"), None);
        assert_eq!(ErrorType::from_header(""), None);
    }
}
