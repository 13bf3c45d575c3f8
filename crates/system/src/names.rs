//! Names that a file gets at once.

use std::fs::File;
use std::io;
use std::path::Path;

/// Creates a file without a name in a directory, for its owner alone: a process that is killed
/// leaves nothing behind.
///
/// # Errors
/// Where the system or the file system has no such files.
pub fn create_nameless(directory: &Path) -> io::Result<File> {
    nameless(directory)
}

/// Gives a file without a name one that nothing has.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], and where that is not possible.
pub fn give_name(file: &File, path: &Path) -> io::Result<()> {
    name(file, path)
}

/// Renames a file to a name that nothing has, in one step.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], and where the system or the file system has no such call.
pub fn rename_exclusively(from: &Path, to: &Path) -> io::Result<()> {
    rename_new(from, to)
}

/// Checks that a file that is there could be replaced now: on Windows, that no program has it
/// open in a way that forbids that.
///
/// # Errors
/// Why it cannot. That there is no such file is no error.
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
