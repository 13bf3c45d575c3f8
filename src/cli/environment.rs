//! Settings from the environment.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::private_directory;
use crate::system::{BASE_OF_CONFIG, BASE_OF_STATE, Base};

/// The variable that moves all journals and receipts.
pub(super) const STATE_HOME: &str = "XDG_STATE_HOME";

/// The hint if the directory for state cannot be used.
const SET_STATE: &str = "Set XDG_STATE_HOME to a directory that you can write to";

/// The home directory of the user: `HOME`, or that of the passwd entry if it exists.
pub(super) fn home() -> Option<PathBuf> {
    // The standard library uses the passwd entry if `HOME` is missing or empty.
    let of_entry = || env::home_dir().filter(|home| home.is_absolute() && home.is_dir());
    path("HOME").or_else(of_entry)
}

fn path(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// A base directory of XDG, which is valid only if it is absolute.
pub(super) fn base_directory(variable: &str) -> Option<PathBuf> {
    path(variable).filter(|path| path.is_absolute())
}

/// A directory of the user according to the system.
pub(super) fn base_of_system((variable, below): Base) -> Option<PathBuf> {
    let base = match variable {
        "HOME" => home(),
        variable => base_directory(variable),
    };
    // Joining an empty path would add a separator.
    base.map(|base| {
        if below.is_empty() {
            base
        } else {
            base.join(below)
        }
    })
}

/// Where this program stores its state: `openhosting` in `XDG_STATE_HOME`, in the first
/// `StateDirectory=` of a systemd service, or in that of the system (below the home directory, or
/// `LOCALAPPDATA`).
pub(super) fn state_directory() -> Option<PathBuf> {
    let of_service = || {
        let all = env::var_os("STATE_DIRECTORY")?;
        env::split_paths(&all).find(|path| path.is_absolute())
    };
    let base = base_directory("XDG_STATE_HOME")
        .or_else(of_service)
        .or_else(|| base_of_system(BASE_OF_STATE))?;
    Some(base.join("openhosting"))
}

/// The error if there is no [`state_directory`].
pub(super) fn no_state_directory(what: &str) -> Error {
    let what = format!(
        "There is no place for {what}: XDG_STATE_HOME, STATE_DIRECTORY and {} are not set, and this user has no home directory",
        BASE_OF_STATE.0
    );
    Error::new(ErrorKind::Usage, what)
}

/// The path of the config file.
pub(super) fn config_file() -> Option<PathBuf> {
    let directory = base_directory("XDG_CONFIG_HOME").or_else(|| base_of_system(BASE_OF_CONFIG))?;
    Some(directory.join("openhosting").join("config.toml"))
}

/// A directory below the [`state_directory`].
pub(super) fn state_of(name: &str) -> Option<PathBuf> {
    Some(state_directory()?.join(name))
}

/// The first of these variables that is set and not empty.
pub(super) fn variable(names: &[&str]) -> Result<Option<String>> {
    Ok(variable_named(names)?.map(|(value, _)| value))
}

/// As [`variable`], with the name of the variable.
pub(super) fn variable_named(names: &[&str]) -> Result<Option<(String, String)>> {
    for name in names {
        match env::var(name) {
            // The value has a byte order mark if it was read from a file with one.
            Ok(value) if !value.is_empty() => {
                let value = value
                    .strip_prefix('\u{feff}')
                    .map(str::to_owned)
                    .unwrap_or(value);
                return Ok(Some((value, (*name).to_owned())));
            }
            Ok(_) | Err(env::VarError::NotPresent) => {}
            // The value is not quoted, because it may be a secret.
            Err(env::VarError::NotUnicode(_)) => {
                let what = format!("{name} is not UTF-8");
                return Err(Error::new(ErrorKind::Usage, what));
            }
        }
    }
    Ok(None)
}

/// The name of the file of the journal for a transfer that is identified by `what`.
pub(super) fn journal_name(what: &[&str]) -> String {
    let digest = Digest::of(what.join("\n").as_bytes()).to_string();
    format!("{}.ohj", &digest[..16])
}

/// The path of the journal with this [`journal_name`]. Its directory is created, for this user only.
///
/// # Errors
/// [`ErrorKind::Usage`] if there is no suitable place or it cannot be created. The user has to
/// request a transfer without a journal explicitly.
pub(super) fn journal_path(name: &str) -> Result<PathBuf> {
    const HINT: &str = "Choose a file with --journal PATH, or pass --no-journal: then an upload that is killed cannot resume";
    let directory = state_of("journals");
    let directory = directory.ok_or_else(|| no_state_directory("the journal").hint_to(HINT))?;
    usable_state(&directory).map_err(|error| error.hint_to(HINT))?;
    Ok(directory.join(name))
}

/// Makes a directory of journals, if it is missing. The error advises to set XDG_STATE_HOME, which
/// every command reads.
pub(super) fn usable_state(directory: &Path) -> Result<()> {
    private_directory(directory).map_err(|cause| {
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
        let kind = match cause.kind() {
            NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem => ErrorKind::Usage,
            _ => ErrorKind::Local,
        };
        let what = format!(
            "Cannot use the directory of the journal {}",
            directory.display()
        );
        Error::new(kind, what).because(cause).hint_to(SET_STATE)
    })
}

/// Whether a name, without its extension, has the form of [`journal_name`].
pub(super) fn is_journal_name(stem: &OsStr) -> bool {
    stem.len() == 16 && stem.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}
