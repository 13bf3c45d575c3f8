//! Gives a file its name in one step, so that no other program sees an incomplete file under the
//! name, and none that was created meanwhile is overwritten.
//!
//! Each way works on some systems and file systems only, and fails with an error on others. The
//! callers in `openhosting-filesystem` (`names.rs`) then use the next one.

use std::fs::File;
use std::io;
use std::path::Path;

/// Creates a file without a name in a directory, accessible only by its owner. If the process is
/// killed, nothing remains.
///
/// # Errors
/// If the system or the file system does not support such files.
pub fn create_nameless(directory: &Path) -> io::Result<File> {
    nameless(directory)
}

/// Gives a nameless file a name that is not in use.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or that it is not supported.
pub fn give_name(file: &File, path: &Path) -> io::Result<()> {
    name(file, path)
}

/// Renames a file to a name that is not in use, in one step.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or that the system or the file system does not support it.
pub fn rename_exclusively(from: &Path, to: &Path) -> io::Result<()> {
    rename_new(from, to)
}

/// Checks whether an existing file could be replaced now: on Windows, a program that has it open
/// may forbid that.
///
/// # Errors
/// Why it cannot be replaced. A missing file is not an error.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match open_to_replace(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened,
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use rustix::fs::{AtFlags, CWD, OFlags, linkat};

    pub(super) fn nameless(directory: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(directory)
    }

    pub(super) fn name(file: &File, path: &Path) -> io::Result<()> {
        let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, opened, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

#[cfg(target_os = "linux")]
use linux::{name, nameless};

#[cfg(not(target_os = "linux"))]
fn nameless(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn name(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_new(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(windows)]
fn open_to_replace(path: &Path) -> io::Result<()> {
    use std::os::windows::fs::OpenOptionsExt;
    const DELETE: u32 = 0x0001_0000;
    File::options().access_mode(DELETE).open(path).map(drop)
}

#[cfg(not(windows))]
fn open_to_replace(_: &Path) -> io::Result<()> {
    Ok(())
}
