//! Stored files of keys and values, in which damage is detected.
//!
//! A file is `KEY VALUE` text as on the wire, with a version and a digest of the rest, so that
//! damage is detected. It is written under another name, synced, renamed, and its directory synced:
//! after a crash at any moment, either the old or the new file is there.
//!
//! The keys `version` and `digest` belong to this module, so no object may have a key of its own
//! with one of these names. The caller prevents two writes of one file at the same time: each would
//! be complete, but the one that is renamed last would win.

use std::fs;
use std::io;
use std::path::Path;

use crate::keys::set;
use openhosting_base::digest::Digest;
use openhosting_base::wire::{Format, Properties};
use openhosting_filesystem::{
    Access, Untrusted, directory_of, read_own, replace_from, sync_directory,
};

/// Maximum bytes to read of such a file. The keys that a user can set take at most 64 KiB
/// (`check_length` in `keys.rs`), and those of the server little more, so a larger file is damaged.
const BYTES_MAX: u64 = 16 << 20;

/// Reads a file that this server wrote.
///
/// # Errors
/// [`is_of_the_file`] says whether an error concerns this file only.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_own(path, BYTES_MAX)
}

/// Whether an error is the fault of one file: then its object counts as damaged, and all others are
/// served. Other errors, such as too many open files, say nothing about the file, and the server
/// does not start: it would otherwise call sound objects damaged.
pub fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotFound};
    // `InvalidData` is a file that is too large or that a caller could not parse. `Untrusted` is a
    // file of another user, a link, or not a regular file.
    // 5 is EIO, a failing disk.
    matches!(error.kind(), InvalidData | IsADirectory | NotFound)
        || Untrusted::of(error).is_some()
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

/// The object that [`print()`] received; `None` if the bytes are damaged, or have another version:
/// what a newer server wrote cannot be understood, and must not be changed either.
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
/// same file system for the temporary file, whose name is random, so writers of different files can
/// share it.
///
/// # Errors
/// After an error, the file has its old content, so the caller can keep its state in memory as
/// well. A failure after the new file is in place is only logged: a crash of this process does not
/// undo the change, although a loss of power might.
pub fn write(text: &str, path: &Path, staging: &Path) -> io::Result<()> {
    match replace_from(staging, path, Access::Private, text.as_bytes()) {
        // The rename succeeded and the sync of the directory failed, or the old content was equal:
        // in both cases the file holds what it should.
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

/// Removes a file, crash-safe; a missing file is not an error.
///
/// # Errors
/// After an error, the file is still there, so the caller can keep its state in memory as well. As
/// in [`write()`], a failure after the removal is only logged.
pub fn remove(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(path))?;
    if let Err(error) = sync_parent(path) {
        tracing::error!(?path, %error, "A loss of power may undo that a file was removed");
    }
    Ok(())
}

/// A removal; a missing file is not an error.
pub fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
