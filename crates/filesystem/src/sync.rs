//! Makes bytes and names survive a loss of power.

use std::fs::File;
use std::io;
use std::path::Path;

use openhosting_system::{cannot_sync, is_disk_broken, open_directory};

use super::{Weakness, is_plain};

/// Syncs the bytes of a file, if its file system supports that. If not, this was reported when the
/// file was opened: see [`unsynced`].
pub fn sync_data(file: &File) -> io::Result<()> {
    #[cfg(feature = "simulated")]
    if let Some(disk) = crate::simulated::disk() {
        return disk.sync(file);
    }
    unless_unsupported(file.sync_data()).map(drop)
}

/// As [`sync_data`], including metadata such as the times of the file.
pub fn sync_all(file: &File) -> io::Result<()> {
    #[cfg(feature = "simulated")]
    if let Some(disk) = crate::simulated::disk() {
        return disk.sync(file);
    }
    unless_unsupported(file.sync_all()).map(drop)
}

/// Syncs a file that was just created, and reports a file system that does not support this.
pub fn unsynced(file: &File, path: &Path) -> io::Result<Option<Weakness>> {
    #[cfg(feature = "simulated")]
    if let Some(disk) = crate::simulated::disk() {
        return disk.sync(file).map(|()| None);
    }
    let is_synced = unless_unsupported(file.sync_all())?;
    Ok((!is_synced).then(|| Weakness::Unsynced(path.to_owned())))
}

/// Whether the sync was done. Unlike for directories, only the errors of a file system without this
/// call are accepted: any other one may mean that bytes were lost.
fn unless_unsupported(synced: io::Result<()>) -> io::Result<bool> {
    match synced {
        Ok(()) => Ok(true),
        Err(cause) if cannot_sync(&cause) => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Syncs the names in a directory, so that they survive a loss of power.
///
/// # Errors
/// Those of a broken, full or read-only disk. A file system that cannot sync directories, or a
/// directory that may be written to but not opened, is a weakness and not an error.
pub fn sync_directory(directory: &Path) -> io::Result<Option<Weakness>> {
    let unsynced = || Ok(Some(Weakness::UnsyncedNames(directory.to_owned())));
    #[cfg(feature = "simulated")]
    if crate::simulated::disk().is_some() {
        return Ok(None);
    }
    if is_plain() {
        return unsynced();
    }
    let synced = match open_directory(directory) {
        Ok(opened) => opened.sync_all(),
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => return unsynced(),
        Err(cause) => return Err(cause),
    };
    match synced {
        Ok(()) => Ok(None),
        Err(cause) if is_disk_broken(&cause) => Err(cause),
        // EINVAL, ENOTSUP, ENOSYS, EBADF, EPERM: file systems disagree.
        Err(_) => unsynced(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_system_without_sync_may_fail_to_sync() {
        // The null device does not support fsync.
        let null = File::open("/dev/null").unwrap();
        sync_data(&null).unwrap();
        let path = Path::new("x");
        let weakness = Weakness::Unsynced(path.to_owned());
        assert_eq!(unsynced(&null, path).unwrap(), Some(weakness));
        use rustix::io::Errno;
        let error = |errno: Errno| Err(errno.into());
        assert!(unless_unsupported(error(Errno::IO)).is_err());
        assert!(unless_unsupported(error(Errno::NOSPC)).is_err());
    }

    #[test]
    fn syncing_a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(super::super::is_plain() || sync_directory(&directory.path().join("x")).is_err());
    }
}
