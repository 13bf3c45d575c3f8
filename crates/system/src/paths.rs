//! Names as bytes, and the directories of a user.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

/// A variable that names a directory of the user, and what is below that.
pub type Base = (&'static str, &'static str);

/// Where programs keep what they learnt.
pub const BASE_OF_STATE: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/state"),
};
/// Where programs keep data.
pub const BASE_OF_DATA: Base = match cfg!(windows) {
    true => ("LOCALAPPDATA", ""),
    false => ("HOME", ".local/share"),
};
/// Where programs have their settings.
pub const BASE_OF_CONFIG: Base = match cfg!(windows) {
    true => ("APPDATA", ""),
    false => ("HOME", ".config"),
};

/// The bytes of a name: those that the system has, or UTF-8 where names are no bytes.
pub fn bytes_of(name: &OsStr) -> Cow<'_, [u8]> {
    #[cfg(unix)]
    return Cow::Borrowed(std::os::unix::ffi::OsStrExt::as_bytes(name));
    #[cfg(not(unix))]
    match name.to_string_lossy() {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// The name of these bytes; where names are no bytes, what is not UTF-8 is replaced, and such a
/// file is not found.
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
