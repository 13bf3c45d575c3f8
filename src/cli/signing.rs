//! Signatures of receipts in the format of minisign: one crate signs, and another one verifies.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use minisign::{SecretKey, SecretKeyBox};
use minisign_verify::{PublicKey, Signature};

use super::{prompt, secret_files};
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, open_named, read_named, replace, with_suffix};

/// The variable with the password of an encrypted key.
const PASSWORD_VARIABLE: &str = "OHSIGNPASSWORD";

/// Maximum bytes of a signature, which is read into memory: it has four lines, two of which are
/// comments of any length.
const SIGNATURE_BYTES_MAX: u64 = 64 << 10;

/// A key for signing. It has no Debug, because it is secret.
pub(super) struct Signer(SecretKey);

impl Signer {
    /// Reads a minisign key. If it is encrypted and OHSIGNPASSWORD is not set, asks for the
    /// password.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let cannot = |why: &str| {
            let what = format!("Cannot use the key {}: {why}", path.display());
            Error::new(ErrorKind::Usage, what)
        };
        let text = secret_files::read_secret("key", path)?;
        let boxed = SecretKeyBox::from_string(&text).map_err(|_| cannot("it is no key"))?;
        // The causes of these errors are not shown, because they may quote the key.
        if let Ok(key) = boxed.clone().into_unencrypted_secret_key() {
            return Ok(Self(key));
        }
        let password = match std::env::var(PASSWORD_VARIABLE) {
            Ok(password) if !password.is_empty() => password,
            _ if std::io::stdin().is_terminal() => {
                let question = format!("Password of {}:", path.display());
                match prompt::secret(question).await {
                    Err(error) if error.kind() == ErrorKind::Usage => {
                        return Err(cannot("its password cannot be asked for"));
                    }
                    answer => answer?.to_string(),
                }
            }
            _ => {
                return Err(cannot("it is no key, or has a password").hint_to(format!(
                    "Set {PASSWORD_VARIABLE}, or make a key with: minisign -GW"
                )));
            }
        };
        let key = boxed.into_secret_key(Some(password));
        key.map(Self)
            .map_err(|_| cannot("it is no key, or its password is another one"))
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
