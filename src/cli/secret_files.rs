//! Files that contain a secret, which others must not read, and files that say where one is, which
//! others must not write.

use std::fs::File;
use std::path::Path;

use zeroize::Zeroizing;

use super::quote;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Exposure, OTHERS_WRITE, open_named, read_all};
use crate::system::{Rights, can_be_changed, user};

/// Maximum bytes: a key or a config has a few lines; the certificates that a system trusts have
/// less than a MiB, and those of an enterprise may have more.
const BYTES_MAX: u64 = 16 << 20;
/// May precede the text of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a file that contains a secret. Messages begin with `what`, such as "key".
///
/// A secret that an administrator mounts, as Kubernetes does with `fsGroup` and systemd with an
/// access list, appears as readable by its group, and this process cannot change that. Such a file
/// is accepted; one that this process could restrict is not.
///
/// # Errors
/// [`ErrorKind::Usage`] if anybody else may use it, [`ErrorKind::Local`] if it cannot be read.
pub(super) fn read_secret(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    read(what, path, |file| {
        let hint = match (Exposure::of(file.mode), file.can_change) {
            (Exposure::Private, _) | (Exposure::Group, false) => return None,
            (_, true) => format!("Run: chmod 600 {}", quote(&path.to_string_lossy())),
            (Exposure::Open, false) => {
                "This process cannot change that: mount it with mode 0400 or 0440 (defaultMode of a Kubernetes volume)"
                    .to_owned()
            }
        };
        Some(("others can read it", hint))
    })
}

/// Reads a file that controls this program, such as a config, which may contain commands.
///
/// # Errors
/// [`ErrorKind::Usage`] if anybody but its owner may write to it, or the owner is neither this user
/// nor root; [`ErrorKind::Local`] if it cannot be read.
pub(super) fn read_trusted(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    let us = user();
    let name = quote(&path.to_string_lossy());
    read(what, path, |file| match file.mode & OTHERS_WRITE {
        0 if file.owner == us || file.owner == 0 => None,
        0 => Some(("it is somebody else's", format!("Run: chown {us} {name}"))),
        _ => Some(("others can write to it", format!("Run: chmod go-w {name}"))),
    })
}

/// Reads a file that anybody may read, such as certificates.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be read.
#[cfg(feature = "signing")]
pub(super) fn read_public(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    read(what, path, |_| None)
}

/// The bytes of such a file, in whatever encoding.
///
/// # Errors
/// As [`read_public`].
pub(super) fn read_public_bytes(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    read_bytes(what, path, |_| None)
}

/// The permissions of an open file.
struct Permissions {
    mode: u32,
    owner: u32,
    /// Whether this process may change the mode.
    can_change: bool,
}

impl Permissions {
    fn of(file: &File) -> std::io::Result<Self> {
        let rights = Rights::of(&file.metadata()?);
        let us = user();
        let is_ours = us == 0 || us == rights.owner;
        Ok(Self {
            mode: rights.mode,
            owner: rights.owner,
            can_change: can_be_changed(file)? && is_ours,
        })
    }
}

/// The text of a file, unless its mode or owner is wrong. A byte order mark, which editors on
/// Windows write, is removed.
fn read(
    what: &str,
    path: &Path,
    wrong: impl FnOnce(&Permissions) -> Option<(&'static str, String)>,
) -> Result<Zeroizing<String>> {
    let bytes = read_bytes(what, path, wrong)?;
    let text = std::str::from_utf8(&bytes).map_err(|cause| {
        let what = format!("The {what} {} is not UTF-8", path.display());
        Error::new(ErrorKind::Usage, what).because(cause)
    })?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    Ok(Zeroizing::new(text.to_owned()))
}

/// Reads a file, or reports what is wrong with its mode or owner, and what to do about it.
fn read_bytes(
    what: &str,
    path: &Path,
    wrong: impl FnOnce(&Permissions) -> Option<(&'static str, String)>,
) -> Result<Zeroizing<Vec<u8>>> {
    let cannot = || {
        let what = format!("Cannot read the {what} {}", path.display());
        Error::new(ErrorKind::Local, what)
    };
    let file = open_named(path).map_err(|cause| cannot().because(cause))?;
    // Of the opened file, because its name may refer to another one by now.
    let permissions = Permissions::of(&file).map_err(|cause| cannot().because(cause))?;
    if let Some((why, hint)) = wrong(&permissions) {
        let what = format!("Cannot use the {what} {}: {why}", path.display());
        return Err(Error::new(ErrorKind::Usage, what).hint_to(hint));
    }
    let bytes = read_all(file, BYTES_MAX).map_err(|cause| cannot().because(cause))?;
    Ok(Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_file_that_others_may_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let outcomes = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let is_fine = |read: Result<Zeroizing<String>>| match read {
                Ok(text) => *text == "text",
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Usage);
                    assert!(
                        error.hint().unwrap().to_string().starts_with("Run: chmod "),
                        "{error}"
                    );
                    false
                }
            };
            (
                is_fine(read_secret("key", &path)),
                is_fine(read_trusted("config", &path)),
            )
        };
        assert_eq!(outcomes(0o600), (true, true));
        assert_eq!(outcomes(0o400), (true, true));
        assert_eq!(outcomes(0o644), (false, true));
        assert_eq!(outcomes(0o640), (false, true));
        assert_eq!(outcomes(0o620), (false, false));
        assert_eq!(outcomes(0o602), (false, false));
        assert_eq!(outcomes(0o666), (false, false));
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "\u{feff}user:key\r\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(*read_secret("key", &path).unwrap(), "user:key\r\n");
    }

    #[test]
    fn a_missing_secret_file_is_named() {
        let error = read_secret("key", Path::new("/nosuch")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read the key /nosuch");
    }
}
