//! The configured users of a server: `UUID:KEY`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use uuid::Uuid;
use zeroize::Zeroizing;

use openhosting_base::credentials::Credentials;
use openhosting_base::error::{Error, ErrorKind, Result};
use openhosting_filesystem::{Exposure, open_named, read_all};

/// Maximum bytes of a users file, which is read into memory: far more than any installation needs.
/// It is for the case that the name of a large other file is given by mistake.
const BYTES_MAX: u64 = 64 << 20;

/// Parses one `UUID:KEY`. No message quotes it, because it contains a secret.
///
/// # Errors
/// [`ErrorKind::Usage`] if it does not have that form.
pub fn parse_line(line: &str) -> Result<Credentials> {
    let usage = |what| Error::new(ErrorKind::Usage, what).hint_to("A user is given as UUID:KEY");
    let (user, Some(key)) = Credentials::split(line) else {
        return Err(usage("A user has no colon between UUID and key"));
    };
    if Uuid::try_parse(user).is_err() {
        return Err(usage("A user does not begin with a UUID"));
    }
    if key.is_empty() {
        return Err(usage("A user has an empty key"));
    }
    Credentials::new(user, key)
}

/// Reads a file with one `UUID:KEY` on each line; empty lines and those that begin with `#` are
/// ignored.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be read, [`ErrorKind::Usage`] if anybody but its owner may
/// read or write it, or a line does not have that form.
pub fn read_file(path: &Path) -> Result<Vec<Credentials>> {
    let failed = |error: io::Error| {
        let what = format!("Cannot read the users file {}", path.display());
        Error::new(ErrorKind::Local, what).because(error)
    };
    let file = open_named(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if Exposure::of(mode) != Exposure::Private {
        let what = format!("Others may use the users file {}", path.display());
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to(format!("Run: chmod 600 {}", path.display())));
    }
    let bytes = Zeroizing::new(read_all(file, BYTES_MAX).map_err(failed)?);
    let text = std::str::from_utf8(&bytes).map_err(|error| failed(io::Error::other(error)))?;
    let lines = text.lines().enumerate();
    let users = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    users
        .map(|(i, line)| {
            parse_line(line).map_err(|error| {
                let what = format!("Line {} of {} is wrong", i + 1, path.display());
                Error::new(ErrorKind::Usage, what).because(error)
            })
        })
        .collect()
}

/// A new user, with a key of 244 random bits.
pub(super) fn make_up() -> Result<Credentials> {
    let key = Zeroizing::new(format!(
        "{}{}",
        Uuid::new_v4().simple(),
        Uuid::new_v4().simple()
    ));
    Credentials::new(Uuid::new_v4().to_string(), key.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    #[test]
    fn a_wrong_line_is_refused_and_never_quoted() {
        let user = parse_line(&format!("{ID}:a:b")).unwrap();
        assert_eq!((user.user(), user.expose_key()), (ID, "a:b"));
        for bad in ["canary", "canary:canary", &format!("{ID}:"), ":canary"] {
            let error = parse_line(bad).unwrap_err();
            assert!(!error.chain().contains("canary"), "{bad}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::fs::write(&path, format!("# ours\n\n{ID}:k1\n")).unwrap();
        let chmod = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode));
        chmod(0o640).unwrap();
        assert_eq!(read_file(&path).unwrap_err().kind(), ErrorKind::Usage);
        chmod(0o600).unwrap();
        assert_eq!(read_file(&path).unwrap().len(), 1);
    }
}
