//! Files of keys and values that must be as they were written, or noticed.
//!
//! A file is `KEY VALUE` text as on the wire, with a version and a digest of the
//! rest, so that a garbled one is noticed. It is written under another name,
//! synced, renamed, and its directory synced: after a crash at any moment there is
//! the old one or the new one.

use std::io;
use std::path::Path;

use crate::keys::set;
use openhosting_base::digest::Digest;
use openhosting_base::wire::{Format, Properties};
use openhosting_filesystem::{
    Access, Foreign, directory_of, read_own, replace_from, sync_directory,
};

/// Most bytes of such a file that are read: its keys come from requests, which are shorter.
const BYTES_MAX: u64 = 16 << 20;

/// Reads such a file, which this server wrote.
///
/// # Errors
/// [`is_of_the_file`] says whether an error is about this file alone.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_own(path, BYTES_MAX)
}

/// Whether an error is the fault of one file, which is damaged or may be another user's;
/// else, as when there are too many open files, no file could be trusted to be as it seems.
pub fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
    // 5 is EIO, a sick disk.
    matches!(error.kind(), InvalidData | IsADirectory | NotFound)
        || Foreign::of(error).is_some()
        || error.raw_os_error() == Some(5)
}

/// Version of the files.
const VERSION: &str = "1";

/// The text of a file that keeps `object`.
pub fn print(object: &Properties) -> String {
    let mut kept = object.clone();
    set(&mut kept, "version", VERSION);
    let text = kept.print(Format::Text);
    format!("{text}digest {}\n", Digest::of(text.as_bytes()))
}

/// What [`print()`] was given; `None` if that is not what the bytes hold.
pub fn parse(bytes: &[u8]) -> Option<Properties> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (text, tail) = text.split_at_checked(text.rfind("digest ")?)?;
    if tail != format!("digest {}\n", Digest::of(text.as_bytes())) {
        return None;
    }
    let mut kept = Properties::parse(Format::Text, text.as_bytes()).ok()?;
    (kept.remove("version")? == VERSION).then_some(kept)
}

/// Puts `text` into the file `path`, safe from a crash. `staging` is a directory on
/// the same file system for the time between.
///
/// # Errors
/// The file holds what it held before, so that the caller's memory may stay as it is,
/// too. What fails after the new file is in its place is logged, and no error: a crash
/// of this process does not undo it, a loss of power might.
pub fn write(text: &str, path: &Path, staging: &Path) -> io::Result<()> {
    match replace_from(staging, path, Access::Private, text.as_bytes()) {
        Err(error) if read(path).is_ok_and(|now| now == text.as_bytes()) => {
            tracing::error!(?path, %error, "A loss of power may undo what was stored");
            Ok(())
        }
        written => written,
    }
}

/// Makes a rename or an unlink of `path` last.
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
