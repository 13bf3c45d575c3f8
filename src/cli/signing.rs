//! Signatures of receipts in the format of minisign: one crate signs, and another one verifies.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minisign::{SecretKey, SecretKeyBox};
use minisign_verify::{PublicKey, Signature};
use zeroize::Zeroizing;

use super::{prompt, secret_files};
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, open_named, read_named, replace, with_suffix};
use crate::transfer::blocking;

/// The variable with the password of an encrypted key.
const PASSWORD_VARIABLE: &str = "OHSIGNPASSWORD";

/// Advice with the command that makes a key without a password.
const MAKE_KEY: &str = "make one without a password: minisign -GW -p sign.pub -s sign.key";

/// Bytes of a secret key: the three algorithms, the salt, two limits, the number of the key, the
/// key itself and its checksum.
const SECRET_KEY_BYTES: usize = 3 * 2 + 32 + 2 * 8 + 8 + 64 + 32;

/// Maximum bytes of a signature, which is read into memory: it has four lines, two of which are
/// comments of any length.
const SIGNATURE_BYTES_MAX: u64 = 64 << 10;

/// A key for signing. It has no Debug, because it is secret.
pub(super) struct Signer(SecretKey);

/// What a file that is named as a signing key holds.
enum KeyFile {
    NoKey,
    Public,
    Plain(Box<SecretKey>),
    Encrypted(SecretKeyBox),
}

impl KeyFile {
    /// The second line of a minisign file is base64. The decoded bytes of a secret key begin with
    /// the names of three algorithms, of two bytes each: signature, encryption and checksum.
    fn of(text: &str) -> Self {
        let line = text.lines().nth(1).unwrap_or_default().trim();
        let is_public = |line: &str| PublicKey::from_base64(line).is_ok();
        if is_public(line) || is_public(text.trim()) {
            return Self::Public;
        }
        let bytes = BASE64.decode(line).map(Zeroizing::new);
        let Ok(bytes) = bytes.as_deref() else {
            return Self::NoKey;
        };
        match bytes.get(..SECRET_KEY_BYTES) {
            Some([b'E', b'd', 0, 0, b'B', b'2', ..]) => {
                plain_key(bytes).map_or(Self::NoKey, |key| Self::Plain(Box::new(key)))
            }
            Some([b'E', b'd', b'S', b'c', b'B', b'2', ..]) => {
                Self::Encrypted(text.to_owned().into())
            }
            _ => Self::NoKey,
        }
    }
}

/// A key without a password. minisign 0.11 writes zeros as its checksum, which the crate refuses,
/// so the key is accepted if its two halves, secret and public, belong together.
fn plain_key(bytes: &[u8]) -> Option<SecretKey> {
    let key = SecretKey::from_bytes(bytes).ok()?;
    let public = minisign::PublicKey::from_secret_key(&key).ok()?;
    let trial = minisign::sign(Some(&public), &key, std::io::empty(), None, None);
    trial.is_ok().then_some(key)
}

impl Signer {
    /// Reads a minisign key. If it is encrypted and OHSIGNPASSWORD is not set, asks for the
    /// password.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let cannot = |why: &str| {
            let what = format!("Cannot use the key {}: {why}", path.display());
            Error::new(ErrorKind::Usage, what)
        };
        // A file that is no secret key is reported as that before its mode, which does not matter.
        let bytes = secret_files::read_public_bytes("key", path)?;
        let no_key = |why| cannot(why).hint_to(format!("Name a secret key; {MAKE_KEY}"));
        match KeyFile::of(&String::from_utf8_lossy(&bytes)) {
            KeyFile::NoKey => return Err(no_key("it is no minisign key")),
            KeyFile::Public => return Err(no_key("it is a public key")),
            KeyFile::Plain(_) | KeyFile::Encrypted(_) => {}
        }
        let text = secret_files::read_secret("key", path)?;
        // The causes of these errors are not shown, because they may quote the key.
        let boxed = match KeyFile::of(&text) {
            KeyFile::Plain(key) => return Ok(Self(*key)),
            KeyFile::Encrypted(boxed) => boxed,
            KeyFile::NoKey | KeyFile::Public => return Err(no_key("it has changed")),
        };
        let (password, is_typed) = match std::env::var(PASSWORD_VARIABLE) {
            Ok(password) if !password.is_empty() => (password, false),
            _ if std::io::stdin().is_terminal() => {
                let question = format!("Password of {}:", path.display());
                match prompt::secret(question).await {
                    Err(error) if error.kind() == ErrorKind::Usage => {
                        return Err(cannot("its password cannot be asked for"));
                    }
                    answer => (answer?.to_string(), true),
                }
            }
            _ => {
                return Err(cannot("it has a password")
                    .hint_to(format!("Set {PASSWORD_VARIABLE}, or {MAKE_KEY}")));
            }
        };
        // The derivation of a key from the password takes seconds.
        let key = blocking(move || {
            boxed
                .into_secret_key(Some(password))
                .map_err(|_| Error::new(ErrorKind::Usage, "Wrong password"))
        });
        key.await.map(Self).map_err(|_| {
            cannot("the password is wrong").hint_to(match is_typed {
                true => "Run it again with the password of this key".to_owned(),
                false => format!("The password is from {PASSWORD_VARIABLE}: correct or unset it"),
            })
        })
    }

    /// Signs a file; the signature is written to a file beside it.
    pub(super) fn sign(&self, path: &Path, comment: &str) -> Result<()> {
        let cannot = || {
            let what = format!("Cannot sign {}", path.display());
            Error::new(ErrorKind::Local, what)
        };
        let file = open_named(path).map_err(|cause| cannot().because(cause))?;
        let signature = minisign::sign(None, &self.0, file, Some(comment), None)
            .map_err(|cause| cannot().because(cause.to_string()))?;
        let text = signature.into_string();
        replace(&signature_of(path), Access::Private, text.as_bytes())
            .map_err(|cause| cannot().because(cause))
    }
}

/// The path of the signature of a file.
pub(super) fn signature_of(path: &Path) -> PathBuf {
    with_suffix(path, ".minisig")
}

/// Whether a file is a signature.
pub(super) fn is_signature(path: &Path) -> bool {
    let text = read_named(path, SIGNATURE_BYTES_MAX).unwrap_or_default();
    Signature::decode(&String::from_utf8_lossy(&text)).is_ok()
}

/// Verifies the signature beside a file, which has these bytes, with a public key: a minisign file,
/// or the line in it.
pub(super) fn check(path: &Path, bytes: &[u8], public: &str) -> Result<()> {
    let key = match PublicKey::from_base64(public) {
        Ok(key) => key,
        Err(_) => {
            let text = secret_files::read_public("key", Path::new(public))?;
            PublicKey::decode(&text).map_err(|cause| {
                let what = format!("{public} is no public key");
                Error::new(ErrorKind::Usage, what).because(cause.to_string())
            })?
        }
    };
    let beside = signature_of(path);
    let wrong = |cause: String| {
        let what = format!("{} is not signed with this key", path.display());
        Error::new(ErrorKind::Integrity, what)
            .because(cause)
            .hint_to("Do not trust it")
    };
    let text = read_named(&beside, SIGNATURE_BYTES_MAX)
        .map_err(|cause| wrong(format!("{}: {cause}", beside.display())))?;
    let text = String::from_utf8_lossy(&text);
    let signature = Signature::decode(&text).map_err(|cause| wrong(cause.to_string()))?;
    key.verify(bytes, &signature, false)
        .map_err(|cause| wrong(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use minisign::KeyPair;

    use super::*;

    /// A key that `minisign -GW` of minisign 0.11 made, for this test only, and its public key.
    const MADE_BY_MINISIGN: &str = "untrusted comment: minisign encrypted secret key\n\
        RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\
        o6hZl9bx9z7yF/4oUNYj/tsPfHJbqRq9BEWZr94zHzau6IyPIqVcOgPH6LMh98v9N0gK+Zr0\
        PPfBoD75X5XRaCwI71R1hZ22AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    const MADE_BY_MINISIGN_PUBLIC: &str =
        "RWSjqFmX1vH3PgPH6LMh98v9N0gK+Zr0PPfBoD75X5XRaCwI71R1hZ22";

    /// A private key in a file that others cannot read, and its public key.
    fn key(directory: &Path, password: Option<&str>) -> (PathBuf, String) {
        let pair = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password.into())),
            None => KeyPair::generate_unencrypted_keypair(),
        };
        let KeyPair { pk, sk } = pair.unwrap();
        let path = directory.join("key");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, sk.to_box(None).unwrap().to_string()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        (path, pk.to_base64())
    }

    #[tokio::test]
    async fn a_signature_is_valid_until_anything_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (secret, public) = key(directory.path(), None);
        let file = directory.path().join("r.json");
        std::fs::write(&file, b"a receipt").unwrap();
        let signer = Signer::open(&secret).await.unwrap();
        signer.sign(&file, "drive x").unwrap();
        check(&file, b"a receipt", &public).unwrap();
        // The key as a file.
        let as_file = directory.path().join("key.pub");
        let text = format!("untrusted comment: x\n{public}\n");
        std::fs::write(&as_file, text).unwrap();
        check(&file, b"a receipt", as_file.to_str().unwrap()).unwrap();
        let kind = |bytes: &[u8], public: &str| check(&file, bytes, public).unwrap_err().kind();
        assert_eq!(kind(b"A receipt", &public), ErrorKind::Integrity);
        let (_, other) = key(directory.path(), None);
        assert_eq!(kind(b"a receipt", &other), ErrorKind::Integrity);
        assert_eq!(kind(b"a receipt", "/nosuch"), ErrorKind::Local);
        let beside = signature_of(&file);
        let text = std::fs::read_to_string(&beside).unwrap();
        std::fs::write(&beside, text.replace("drive x", "drive y")).unwrap();
        assert_eq!(kind(b"a receipt", &public), ErrorKind::Integrity);
        std::fs::remove_file(&beside).unwrap();
        assert_eq!(kind(b"a receipt", &public), ErrorKind::Integrity);
    }

    /// minisign 0.11 writes zeros as the checksum of a key without a password.
    #[tokio::test]
    async fn a_key_of_the_program_minisign_signs() {
        let directory = tempfile::tempdir().unwrap();
        let (secret, _) = key(directory.path(), None);
        std::fs::write(&secret, MADE_BY_MINISIGN).unwrap();
        let file = directory.path().join("r.json");
        std::fs::write(&file, b"a receipt").unwrap();
        let signer = Signer::open(&secret).await.unwrap();
        signer.sign(&file, "drive x").unwrap();
        check(&file, b"a receipt", MADE_BY_MINISIGN_PUBLIC).unwrap();
        // Its secret half is damaged: the halves no longer belong together.
        let damaged = MADE_BY_MINISIGN.replace("4oUNYj", "4oUNZj");
        assert_ne!(damaged, MADE_BY_MINISIGN);
        std::fs::write(&secret, damaged).unwrap();
        let error = Signer::open(&secret).await.err().unwrap();
        assert!(
            error.to_string().ends_with("it is no minisign key"),
            "{error}"
        );
    }

    /// Each of these needs another remedy.
    #[tokio::test]
    async fn no_key_a_public_key_and_a_key_with_a_password_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let (secret, public) = key(directory.path(), Some("pw"));
        let encrypted = std::fs::read_to_string(&secret).unwrap();
        assert!(matches!(KeyFile::of(&encrypted), KeyFile::Encrypted(_)));
        // These may be readable by others, and the advice must not be about that.
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
        for (text, why) in [
            (
                format!("untrusted comment: x\n{public}\n"),
                "it is a public key",
            ),
            (public, "it is a public key"),
            (
                "my notes\n3 weeks of work\n".to_owned(),
                "it is no minisign key",
            ),
            (String::new(), "it is no minisign key"),
            (encrypted[..100].to_owned(), "it is no minisign key"),
        ] {
            std::fs::write(&secret, &text).unwrap();
            let error = Signer::open(&secret).await.err().unwrap();
            assert!(error.to_string().ends_with(why), "{text}: {error}");
            let hint = error.hint().unwrap().to_string();
            assert!(hint.starts_with("Name a secret key; make one"), "{hint}");
        }
    }

    #[tokio::test]
    async fn an_exposed_or_invalid_signing_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (secret, _) = key(directory.path(), None);
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        let error = Signer::open(&secret).await.err().unwrap();
        assert!(error.to_string().contains("others can read it"), "{error}");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&secret, "nothing\nof the kind\n").unwrap();
        assert_eq!(
            Signer::open(&secret).await.err().unwrap().kind(),
            ErrorKind::Usage
        );
    }
}
