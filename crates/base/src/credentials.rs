//! Credentials: a user UUID and a secret key, sent as HTTP Basic (docs/dev/reference.md, 1.1). The
//! key is wiped from memory when dropped, and neither `Display` nor `Debug` reveals it.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// A user and its secret key.
///
/// ```
/// # use openhosting_base as openhosting;
/// use openhosting::credentials::Credentials;
///
/// // As the variable OHAUTH has them.
/// let (user, key) = Credentials::split("2164ce57-591c-43ee-ade5-e2fe0ee13c3e:secret");
/// let credentials = Credentials::new(user, key.ok_or("a key is missing")?)?;
/// assert!(!format!("{credentials:?}").contains("secret"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    key: Zeroizing<String>,
}

/// How credentials are written.
const FORM: &str = "Set OHAUTH=<user uuid>:<secret API key>, or the credentials of the profile";

impl Credentials {
    /// Credentials of `user` with `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the user is empty or contains a colon, which Basic does not support,
    /// or either contains a control character. The message never quotes the key.
    pub fn new(user: impl Into<String>, key: impl Into<String>) -> Result<Self> {
        let (user, key) = (user.into(), Zeroizing::new(key.into()));
        if user.is_empty() || user.contains(|c: char| c == ':' || c.is_control()) {
            return Err(Error::new(
                ErrorKind::Usage,
                "The user of the credentials is empty, or holds a colon or a control character",
            )
            .hint_to(FORM));
        }
        if key.contains(|c: char| c.is_control()) {
            return Err(Error::new(
                ErrorKind::Usage,
                "The secret key holds a control character, maybe the end of a line",
            )
            .hint_to(FORM));
        }
        Ok(Self { user, key })
    }

    /// Splits `UUID:KEY` at the first colon; `None` for the key without a colon. The key is taken
    /// literally, whatever it contains.
    pub fn split(text: &str) -> (&str, Option<&str>) {
        match text.split_once(':') {
            Some((user, key)) => (user, Some(key)),
            None => (text, None),
        }
    }

    /// The user UUID.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The secret key, for the places that compare it.
    pub fn expose_key(&self) -> &str {
        &self.key
    }

    /// `USER:KEY`, for the places that send, print or store the secret key.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", self.user, *self.key))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("key", &"***")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_key() {
        let credentials = Credentials::new("u", "canary").unwrap();
        assert!(!format!("{credentials:?}").contains("canary"));
        assert_eq!(credentials.expose_key(), "canary");
        assert_eq!(*credentials.expose(), "u:canary");
    }

    #[test]
    fn a_key_is_read_literally_and_never_printed_in_an_error() {
        assert_eq!(Credentials::split("u:a\\b\"c:d"), ("u", Some("a\\b\"c:d")));
        assert_eq!(Credentials::split("u"), ("u", None));
        let error = Credentials::new("u", "canary\n").unwrap_err();
        assert!(!error.chain().contains("canary"));
        assert!(Credentials::new("", "k").is_err());
        assert!(Credentials::new("a:b", "k").is_err());
    }
}
