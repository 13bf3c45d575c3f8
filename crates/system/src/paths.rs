//! Names as bytes, and the user's directories.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

/// Where the files of one kind are: in the directory that this environment variable names, at this
/// path below it. `HOME` and `.local/state` mean `~/.local/state`.
///
/// These are the defaults of the system (the XDG specification, or the known folders of Windows).
/// The caller adds the name of the program and looks at overrides such as `XDG_STATE_HOME` first.
/// After a change, a new version no longer finds the files of an older one: unfinished transfers do
/// not resume, and profiles and drives seem to be gone.
pub type Base = (&'static str, &'static str);

/// Where programs store their state: journals, findings and receipts.
pub const BASE_OF_STATE: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/state"),
};
/// Where programs store data: the drives of a server.
pub const BASE_OF_DATA: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/share"),
};
/// Where programs store their settings: the config file. On Windows it is the directory that follows
/// the user to other machines (`APPDATA`), unlike state, which belongs to one machine.
pub const BASE_OF_CONFIG: Base = match cfg!(windows) {
    true => ("APPDATA", ""),
    false => ("HOME", ".config"),
};

/// The bytes of a name as the system has them, or in UTF-8 on systems whose names are not bytes.
pub fn bytes_of(name: &OsStr) -> Cow<'_, [u8]> {
    #[cfg(unix)]
    return Cow::Borrowed(std::os::unix::ffi::OsStrExt::as_bytes(name));
    #[cfg(not(unix))]
    match name.to_string_lossy() {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// The name with these bytes. On systems whose names are not bytes, invalid UTF-8 is replaced, so
/// that such a file is not found.
pub fn path_of_bytes(bytes: &[u8]) -> OsString {
    #[cfg(unix)]
    return std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec());
    #[cfg(not(unix))]
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// Whether a name begins with a drive letter and a separator, as in `C:\`, which only Windows has.
/// Such a name is absolute. `C:name` is not: it is relative to the current directory of drive C.
pub fn is_of_drive_letter(name: &[u8]) -> bool {
    cfg!(windows)
        && matches!(name, [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic())
}
