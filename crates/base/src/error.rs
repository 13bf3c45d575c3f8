//! Errors, classified by what the reader can do about them.
//!
//! Rules: [`Display`](fmt::Display) says this layer only and never repeats its
//! cause, which is [`source`](std::error::Error::source); a message starts with
//! a capital, has no full stop, and names the value that was wrong; advice is a
//! field of its own, [`hint`](Error::hint), and names options as data
//! ([`Remedy`]). No message holds a secret.

use std::fmt;

use crate::advice::{Advice, Remedy};

/// Result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The kinds of failure. What a caller can do differs from kind to kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A flag, an argument or the environment is wrong.
    Usage,
    /// The image cannot be opened, measured or read.
    Image,
    /// The endpoint refused the credentials, or there are none.
    Unauthenticated,
    /// The drive does not exist, or is not ours.
    NotFound,
    /// The drive is in use by somebody else.
    Conflict,
    /// The endpoint refused the request for good.
    Rejected,
    /// The endpoint could not be reached or did not recover in time: trying
    /// later can succeed.
    Unavailable,
    /// The endpoint's answer is not one of this API.
    Protocol,
    /// Bytes are not what they must be: the image changed while it was read, or
    /// what came back differs from what was sent.
    Integrity,
    /// The user asked to stop.
    Cancelled,
    /// A local file or socket of ours (not the image) failed.
    Local,
    /// An invariant of this program broke.
    Bug,
}

/// An error of this library: a kind, one line, its cause and a piece of advice.
///
/// ```
/// # use openhosting_base as openhosting;
/// use openhosting::advice::Remedy;
/// use openhosting::error::{Error, ErrorKind};
///
/// /// Whether the same transfer is worth another run, and with which options.
/// fn again(error: &Error) -> (bool, Vec<Remedy>) {
///     let remedies = error.hint().into_iter().flat_map(|hint| hint.remedies());
///     let is_for_now = error.kind() == ErrorKind::Unavailable && !error.is_permanent();
///     (is_for_now, remedies.cloned().collect())
/// }
///
/// let changed = Error::new(ErrorKind::Integrity, "The image changed since the upload began")
///     .hint_to(Remedy::ChangedOk);
/// assert_eq!(again(&changed), (false, vec![Remedy::ChangedOk]));
/// assert_eq!(changed.hint().unwrap().to_string(), "`changed_ok`");
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<Advice>,
    source: Option<Cause>,
    is_permanent: bool,
    is_damage: bool,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
            is_permanent: false,
            is_damage: false,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The same error with its cause, whose advice it takes over.
    #[must_use]
    pub fn because_of(mut self, cause: Self) -> Self {
        self.hint.clone_from(&cause.hint);
        self.because(cause)
    }

    /// The same error with advice in a line of its own.
    #[must_use]
    pub fn hint_to(mut self, hint: impl Into<Advice>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error, with this advice if there is any.
    #[must_use]
    pub fn hint_if(self, hint: Option<impl Into<Advice>>) -> Self {
        match hint {
            Some(hint) => self.hint_to(hint),
            None => self,
        }
    }

    /// The same error, marked as one that repeats whenever the same call is made with the same
    /// input: the image is damaged, or exceeds a limit. The command line then does not advise to
    /// run the command again.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.is_permanent = true;
        self
    }

    /// Whether the same call with the same input will fail again.
    pub fn is_permanent(&self) -> bool {
        self.is_permanent
    }

    /// This error, marked as [permanent](Self::permanent) for this copy of the image, which is
    /// truncated or corrupt: the same call with an undamaged copy continues.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        self.is_permanent = true;
        self.is_damage = true;
        self
    }

    /// Whether the same call continues with an undamaged copy of the image.
    pub fn is_damage(&self) -> bool {
        self.is_damage
    }

    /// A copy of the error for another caller, with its causes in the message.
    pub fn repeated(&self) -> Self {
        Self {
            kind: self.kind,
            message: self.chain(),
            hint: self.hint.clone(),
            source: None,
            is_permanent: self.is_permanent,
            is_damage: self.is_damage,
        }
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, if known.
    pub fn hint(&self) -> Option<&Advice> {
        self.hint.as_ref()
    }

    /// Whether the hint names this remedy.
    pub fn advises(&self, remedy: &Remedy) -> bool {
        let hint = self.hint.as_ref();
        hint.is_some_and(|hint| hint.remedies().any(|other| other == remedy))
    }

    /// The message and its causes in one line, joined by colons.
    pub fn chain(&self) -> String {
        let mut line = without_number(&self.message);
        for cause in causes(self).skip(1) {
            let text = without_number(&cause.to_string());
            // Some libraries repeat their cause in their own text.
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
        }
        line
    }
}

/// An error and its causes, the innermost last.
pub fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// A text without the numbers that the system has for its errors, as in ` (os error 2)`.
pub fn without_number(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut parts = text.split(BEGIN);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
                plain.push_str(rest);
            }
            _ => {
                plain.push_str(BEGIN);
                plain.push_str(part);
            }
        }
    }
    plain
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_chain_prints_each_layer_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorKind::Image, "Cannot read disk.img")
            .because(cause)
            .hint_to("Call the fire brigade");
        assert_eq!(error.to_string(), "Cannot read disk.img");
        assert_eq!(error.chain(), "Cannot read disk.img: disk on fire");
        assert_eq!(error.hint(), Some(&"Call the fire brigade".into()));
        let cause = std::io::Error::from_raw_os_error(2);
        let error = Error::new(ErrorKind::Local, "Cannot open x").because(cause);
        assert_eq!(error.chain(), "Cannot open x: No such file or directory");
        assert_eq!(without_number("a (os error x) b"), "a (os error x) b");
    }
}
