//! Stored files of keys and values, in which damage is detected.
//!
//! A file is `KEY VALUE` text as on the wire, with a version and a digest of the rest, so that
//! damage is detected. It is written under another name, synced, renamed, and its directory synced:
//! after a crash at any moment, either the old or the new file is there.

use std::io;
use std::path::Path;

use crate::keys::set;
use openhosting_base::digest::Digest;
use openhosting_base::wire::{Format, Properties};
use openhosting_filesystem::{
    Access, Foreign, directory_of, read_own, replace_from, sync_directory,
};

/// Maximum bytes to read of such a file. Its keys come from requests, which are shorter.
const BYTES_MAX: u64 = 16 << 20;

/// Reads a file that this server wrote.
///
/// # Errors
/// [`is_of_the_file`] says whether an error concerns this file only.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_own(path, BYTES_MAX)
}

/// Whether an error is the fault of one file, which is damaged or may belong to another user. Other
/// errors, such as too many open files, say nothing about the file.
pub fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
    // 5 is EIO, a failing disk.
    matches!(error.kind(), InvalidData | IsADirectory | NotFound)
        || Foreign::of(error).is_some()
        || error.raw_os_error() == Some(5)
}

/// Version of the format.
const VERSION: &str = "1";

/// The text of a file that stores `object`.
pub fn print(object: &Properties) -> String {
    let mut kept = object.clone();
    set(&mut kept, "version", VERSION);
    let text = kept.print(Format::Text);
    format!("{text}digest {}\n", Digest::of(text.as_bytes()))
}

/// The object that [`print()`] received; `None` if the bytes are damaged.
pub fn parse(bytes: &[u8]) -> Option<Properties> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (text, tail) = text.split_at_checked(text.rfind("digest ")?)?;
    if tail != format!("digest {}\n", Digest::of(text.as_bytes())) {
        return None;
    }
    let mut kept = Properties::parse(Format::Text, text.as_bytes()).ok()?;
    (kept.remove("version")? == VERSION).then_some(kept)
}

/// Replaces the content of the file `path` by `text`, crash-safe. `staging` is a directory on the
/// same file system for the temporary file.
///
/// # Errors
/// After an error, the file has its old content, so the caller can keep its state in memory as
/// well. A failure after the new file is in place is only logged: a crash of this process does not
/// undo the change, although a loss of power might.
pub fn write(text: &str, path: &Path, staging: &Path) -> io::Result<()> {
    match replace_from(staging, path, Access::Private, text.as_bytes()) {
        Err(error) if read(path).is_ok_and(|now| now == text.as_bytes()) => {
            tracing::error!(?path, %error, "A loss of power may undo what was stored");
            Ok(())
        }
        written => written,
    }
}

/// Makes a rename or an unlink of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(directory_of(path)).map(drop)
}

/// A removal; a missing file is not an error.
pub fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
