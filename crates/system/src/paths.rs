//! Names as bytes, and the user's directories.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

/// An environment variable for a directory of the user, and the path below it.
pub type Base = (&'static str, &'static str);

/// Where programs store their state.
pub const BASE_OF_STATE: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/state"),
};
/// Where programs store data.
pub const BASE_OF_DATA: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/share"),
};
/// Where programs store their settings.
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

/// Whether a name begins with a drive letter, as in `C:\`, which only Windows has.
pub fn is_of_drive_letter(name: &[u8]) -> bool {
    cfg!(windows)
        && matches!(name, [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic())
}
