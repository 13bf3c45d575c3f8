//! Block devices and the null device.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

/// Whether an open file is the null device.
pub fn is_null_device(metadata: &Metadata) -> bool {
    is_null(metadata)
}

#[cfg(target_os = "linux")]
fn is_null(metadata: &Metadata) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_null(metadata: &Metadata) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let null = std::fs::metadata("/dev/null");
    metadata.file_type().is_char_device() && null.is_ok_and(|null| null.rdev() == metadata.rdev())
}

#[cfg(not(unix))]
fn is_null(_: &Metadata) -> bool {
    false
}

/// Bytes of an open block device.
///
/// # Errors
/// If the system does not report it. macOS would need calls that this program does not make.
pub fn device_size(mut file: &File) -> io::Result<u64> {
    match file.seek(SeekFrom::End(0))? {
        0 if cfg!(not(target_os = "linux")) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system does not report the size of a device; pipe it through stdin instead",
        )),
        size => Ok(size),
    }
}

/// Bytes that this user can still write to the file system of a file or directory; `None` where
/// that is unknown.
pub fn free_bytes(path: &Path) -> Option<u64> {
    free(path)
}

#[cfg(unix)]
fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    // Some network and pseudo file systems report no size at all.
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

/// Makes the system drop what it read ahead in this part of a file, and stop reading ahead there:
/// on a disk with a bad sector, a larger read would fail as a whole again.
pub fn read_afresh(file: &File, offset: u64, len: usize) {
    advise(file, offset, len);
}

#[cfg(target_os = "linux")]
fn advise(file: &File, offset: u64, len: usize) {
    use rustix::fs::{Advice, fadvise};
    for advice in [Advice::DontNeed, Advice::Random] {
        let _ = fadvise(file, offset, std::num::NonZeroU64::new(len as u64), advice);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &File, _: u64, _: usize) {}
