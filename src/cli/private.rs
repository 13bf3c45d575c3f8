//! Files that hold a secret, and those that tell where one is: others may not read
//! the first, nor write to the second.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// A key, or a config, is a few lines.
const BYTES_MAX: u64 = 1 << 20;
/// Bits of a file's mode that let others read it or more.
const OTHERS_USE: u32 = 0o077;
/// Bits that let others write to it.
const OTHERS_WRITE: u32 = 0o022;

/// Reads a file that holds a secret. `what` it is begins the messages, as in "key".
///
/// # Errors
/// [`ErrorKind::Usage`] if anybody but its owner may use it, or it cannot be read.
pub(super) fn read_secret(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    read(what, path, |mode, _| match mode & OTHERS_USE {
        0 => None,
        _ => Some((
            "others can read it",
            format!("chmod 600 {}", path.display()),
        )),
    })
}

/// Reads a file that this program acts upon, such as a config, which names commands.
///
/// # Errors
/// [`ErrorKind::Usage`] if anybody but its owner may write to it, the owner is neither
/// this user nor root, or it cannot be read.
pub(super) fn read_trusted(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    let us = geteuid().as_raw();
    read(what, path, |mode, owner| match mode & OTHERS_WRITE {
        0 if owner == us || owner == 0 => None,
        0 => Some((
            "it is somebody else's",
            format!("chown {us} {}", path.display()),
        )),
        _ => Some((
            "others can write to it",
            format!("chmod go-w {}", path.display()),
        )),
    })
}

/// Reads a file that anybody may read, such as certificates.
///
/// # Errors
/// [`ErrorKind::Usage`] if it cannot be read.
pub(super) fn read_public(what: &str, path: &Path) -> Result<Zeroizing<String>> {
    read(what, path, |_, _| None)
}

/// Reads a file, unless something is wrong with its mode or owner: what, and the command
/// that mends it.
fn read(
    what: &str,
    path: &Path,
    wrong: impl FnOnce(u32, u32) -> Option<(&'static str, String)>,
) -> Result<Zeroizing<String>> {
    let cannot = || {
        let what = format!("Cannot read the {what} {}", path.display());
        Error::new(ErrorKind::Usage, what)
    };
    let file = File::open(path).map_err(|cause| cannot().because(cause))?;
    // Of the file that was opened, whatever has its name by now.
    let metadata = file.metadata().map_err(|cause| cannot().because(cause))?;
    if let Some((why, command)) = wrong(metadata.mode(), metadata.uid()) {
        let what = format!("Cannot use the {what} {}: {why}", path.display());
        return Err(Error::new(ErrorKind::Usage, what).hint_to(format!("Run: {command}")));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|cause| cannot().because(cause))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_may_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let outcomes = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let is_fine = |read: Result<Zeroizing<String>>| match read {
                Ok(text) => *text == "text",
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Usage);
                    assert!(error.hint().unwrap().starts_with("Run: chmod "), "{error}");
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
    fn what_is_not_there_is_named() {
        let error = read_secret("key", Path::new("/nosuch")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read the key /nosuch");
    }
}
