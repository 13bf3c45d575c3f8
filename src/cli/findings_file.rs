//! The files with the findings of probes. There is one for each endpoint, in the user's state
//! directory. Only the user can read them, although they contain no secrets.

use std::io;
use std::path::{Path, PathBuf};

use super::environment;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{
    Access, check_replace, directory_of, private_directory, read_own, replace,
};
use crate::findings::Findings;

/// Maximum bytes of such a file.
const BYTES_MAX: u64 = 1 << 20;

/// The file for `endpoint`: `findings/HASH.json` below the
/// [state directory](environment::state_directory), where HASH is the first 16 hexadecimal
/// digits of the SHA-256 of the endpoint, without a slash at its end.
pub(super) fn path(endpoint: &str) -> Result<PathBuf> {
    let directory = environment::state_of("findings").ok_or_else(|| {
        environment::no_state_directory("the findings")
            .hint_to("Probe with --no-save to keep no findings")
    })?;
    let hash = Digest::of(endpoint.trim_end_matches('/').as_bytes()).to_string();
    Ok(directory.join(format!("{}.json", &hash[..16])))
}

/// The findings of `endpoint`; `None` if it was never probed.
pub(super) fn load(endpoint: &str) -> Result<Option<Findings>> {
    let Ok(path) = path(endpoint) else {
        return Ok(None);
    };
    let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("Cannot use the findings in {}", path.display());
        Error::new(ErrorKind::Local, what).because(cause)
    };
    let text = match read_own(&path, BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let findings = Findings::from_json(&value).map_err(|error| failed(error.into()))?;
    Ok(Some(findings))
}

/// Records that the endpoint refused bodies for their size, if it did: the smallest refused one in
/// bytes, and the largest that has been sent since, with which the next run begins.
pub(super) fn remember(endpoint: &str, refused: Option<(u64, u64)>) -> Result<()> {
    let (Some((refused_bytes, accepted_bytes)), Ok(path)) = (refused, path(endpoint)) else {
        return Ok(());
    };
    let findings = load(endpoint)?;
    let mut findings = findings.unwrap_or_else(|| Findings::unknown(endpoint, "not probed"));
    findings.body_was_refused(refused_bytes, accepted_bytes);
    save(&findings, &path)
}

/// Writes `findings` to the file `path`, so that at any moment it has the old or the new content.
pub(super) fn save(findings: &Findings, path: &Path) -> Result<()> {
    let text = format!("{:#}\n", findings.to_json());
    let written = private_directory(directory_of(path))
        .and_then(|_| replace(path, Access::Private, text.as_bytes()));
    written.map_err(|cause| cannot_keep(path, cause))
}

/// Checks before a probe that its findings can be saved.
pub(super) fn check(path: &Path) -> Result<()> {
    let can =
        private_directory(directory_of(path)).and_then(|_| check_replace(path, Access::Private));
    can.map_err(|cause| cannot_keep(path, cause))
}

fn cannot_keep(path: &Path, cause: io::Error) -> Error {
    let what = format!("Cannot keep the findings in {}", path.display());
    Error::new(ErrorKind::Local, what).because(cause)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn findings_are_private_and_replaced_atomically() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c.json");
        for why in ["first", "second"] {
            let findings = Findings::unknown("https://h/", why);
            save(&findings, &path).unwrap();
            let value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(Findings::from_json(&value).unwrap(), findings);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
