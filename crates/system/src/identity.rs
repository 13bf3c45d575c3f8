//! Identifies a file independently of its name.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The number of a file, and that of its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// The file system: a device number, or the serial number of a volume.
    pub device: u64,
    /// The file: an inode, or a file index.
    pub inode: u64,
}

impl FileId {
    /// The identity of an open file.
    ///
    /// # Errors
    /// If the system does not report it.
    pub fn of(file: &File) -> io::Result<Self> {
        of_file(file)
    }

    /// The identity of what currently has this name. A link is not followed.
    ///
    /// # Errors
    /// If it does not exist, or cannot be inspected.
    pub fn at(path: &Path) -> io::Result<Self> {
        of_name(path)
    }
}

#[cfg(unix)]
fn of_file(file: &File) -> io::Result<FileId> {
    file.metadata().map(|metadata| of_metadata(&metadata))
}

#[cfg(unix)]
fn of_name(path: &Path) -> io::Result<FileId> {
    std::fs::symlink_metadata(path).map(|metadata| of_metadata(&metadata))
}

#[cfg(unix)]
fn of_metadata(metadata: &Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

#[cfg(windows)]
fn of_file(file: &File) -> io::Result<FileId> {
    let information = winapi_util::file::information(file)?;
    Ok(FileId {
        device: information.volume_serial_number(),
        inode: information.file_index(),
    })
}

#[cfg(windows)]
fn of_name(path: &Path) -> io::Result<FileId> {
    use std::os::windows::fs::OpenOptionsExt;
    /// Allows opening a directory, and opens a link itself instead of its target, as in
    /// `winbase.h`.
    const BACKUP_SEMANTICS_AND_REPARSE_POINT: u32 = 0x0220_0000;
    let named = File::options()
        .access_mode(0)
        .custom_flags(BACKUP_SEMANTICS_AND_REPARSE_POINT)
        .open(path)?;
    of_file(&named)
}

/// The time of the last write to a file, in nanoseconds since 1970.
pub fn modified_ns(metadata: &Metadata) -> i128 {
    let ns = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    match metadata.modified() {
        Ok(time) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => ns(after),
            Err(before) => -ns(before.duration()),
        },
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_have_one_identity_and_symbolic_links_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let file = File::create(path("a")).unwrap();
        std::fs::hard_link(path("a"), path("b")).unwrap();
        let id = FileId::of(&file).unwrap();
        assert_eq!(FileId::at(&path("b")).unwrap(), id);
        File::create(path("c")).unwrap();
        assert_ne!(FileId::at(&path("c")).unwrap(), id);
        assert!(FileId::at(&path("none")).is_err());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
            assert_ne!(FileId::at(&path("link")).unwrap(), id);
        }
    }

    #[test]
    fn times_before_1970_are_negative() {
        let file = tempfile::tempfile().unwrap();
        for ns in [1_700_000_000_123_456_700_i64, -1_500_000_000] {
            let span = Duration::from_nanos(ns.unsigned_abs());
            let epoch = SystemTime::UNIX_EPOCH;
            let time = if ns < 0 { epoch - span } else { epoch + span };
            file.set_modified(time).unwrap();
            assert_eq!(modified_ns(&file.metadata().unwrap()), i128::from(ns));
        }
    }
}
