//! Authentication: HTTP Basic against the users of the server (docs/dev/reference.md, 1.1).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use openhosting_base::credentials::Credentials;

/// The users, with digests of their secrets only.
pub(super) struct Users(Vec<User>);

struct User {
    name: Arc<str>,
    name_digest: [u8; 32],
    key_digest: [u8; 32],
}

impl Users {
    pub(super) fn new(users: &[Credentials]) -> Self {
        let user = |credentials: &Credentials| User {
            name: credentials.user().into(),
            name_digest: digest(credentials.user().as_bytes()),
            key_digest: digest(credentials.expose_key().as_bytes()),
        };
        Self(users.iter().map(user).collect())
    }

    /// The user that an `Authorization` header proves, if any. The time does not depend on which
    /// user it names or how much of the key is right: digests of both are compared with those of
    /// all users, completely.
    pub(super) fn prove(&self, header: &[u8]) -> Option<Arc<str>> {
        let (name, key) = decode(header).unwrap_or_default();
        self.prove_pair(&name, &key)
    }

    /// The user that this name and key prove, in constant time as well.
    pub(super) fn prove_pair(&self, name: &str, key: &str) -> Option<Arc<str>> {
        let (name, key) = (digest(name.as_bytes()), digest(key.as_bytes()));
        let mut proved = None;
        for user in &self.0 {
            let is_right: Choice = user.name_digest.ct_eq(&name) & user.key_digest.ct_eq(&key);
            if is_right.into() {
                proved = Some(Arc::clone(&user.name));
            }
        }
        proved
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|user| &user.name))
            .finish()
    }
}

/// The SHA-256 of a secret, or of a user name.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// User and key of a `Basic` header. The scheme is compared case-insensitively.
fn decode(header: &[u8]) -> Option<(String, Zeroizing<String>)> {
    let (scheme, encoded) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let plain = Zeroizing::new(STANDARD.decode(encoded.trim_ascii()).ok()?);
    let (name, key) = std::str::from_utf8(&plain).ok()?.split_once(':')?;
    Some((name.to_owned(), Zeroizing::new(key.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(text)).into_bytes()
    }

    #[test]
    fn only_the_right_key_proves_a_user() {
        let users = Users::new(&[
            Credentials::new("u1", "k:1").unwrap(),
            Credentials::new("u2", "k2").unwrap(),
        ]);
        let prove = |text: &str| users.prove(&header(text));
        assert_eq!(prove("u1:k:1").as_deref(), Some("u1"));
        assert_eq!(prove("u2:k2").as_deref(), Some("u2"));
        for wrong in ["u1:k2", "u2:k:1", "u1:", ":", "", "u1", "u3:k2", "U2:k2"] {
            assert_eq!(prove(wrong), None, "{wrong}");
        }
        for bad in ["", "Basic", "Basic ", "Basic !", "Bearer dTI6azI="] {
            assert_eq!(users.prove(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(users.prove(b"bAsIc  dTI6azI=").as_deref(), Some("u2"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let users = Users::new(&[Credentials::new("u1", "canary").unwrap()]);
        assert_eq!(format!("{users:?}"), "[\"u1\"]");
    }
}
