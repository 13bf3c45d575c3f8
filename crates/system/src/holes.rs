//! Holes: finding where a file has no data, and creating them.

use std::fs::File;
use std::io;

/// The position of the next data in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextData {
    /// At this offset.
    At(u64),
    /// There is none up to the end of the file.
    Nowhere,
    /// The system or the file system does not report holes, or its reports are not trusted.
    Unknown,
}

/// The first data at or after `offset`.
///
/// Only Linux and FreeBSD are used. APFS has reported holes where there was data, and Windows has
/// no safe call for it.
pub fn next_data(file: &File, offset: u64) -> NextData {
    seek_data(file, offset)
}

/// The end of the data at `offset`, which [`next_data`] found; `None` if the file system does not
/// report it.
pub fn next_hole(file: &File, offset: u64) -> Option<u64> {
    seek_hole(file, offset)
}

/// The space that a file occupies on its disk, in bytes; `None` if the system does not report it.
pub fn allocated_bytes(file: &File) -> Option<u64> {
    allocated(file)
}

/// Makes these bytes of a file read as zeros without writing them. Returns `false` if the file
/// system, or this program on this operating system, does not support that: then they have to be
/// written.
///
/// # Errors
/// Those of a full or broken disk: writing would fail as well.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    deallocate(file, offset, len)
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
mod reported {
    use std::fs::File;

    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;

    use super::NextData;

    pub(super) fn seek_data(file: &File, offset: u64) -> NextData {
        match seek(file, SeekFrom::Data(offset)) {
            Ok(data) => NextData::At(data),
            Err(Errno::NXIO) => NextData::Nowhere,
            Err(_) => NextData::Unknown,
        }
    }

    pub(super) fn seek_hole(file: &File, offset: u64) -> Option<u64> {
        seek(file, SeekFrom::Hole(offset)).ok()
    }
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
use reported::{seek_data, seek_hole};

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn seek_data(_: &File, _: u64) -> NextData {
    NextData::Unknown
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn seek_hole(_: &File, _: u64) -> Option<u64> {
    None
}

#[cfg(unix)]
fn allocated(file: &File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(file.metadata().ok()?.blocks() * 512)
}

#[cfg(not(unix))]
fn allocated(_: &File) -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn deallocate(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};

    let punched = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zeroed = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    for mode in [punched, zeroed] {
        match fallocate(file, mode, offset, len).map_err(io::Error::from) {
            Ok(()) => return Ok(true),
            Err(error) if crate::is_no_room(&error) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
fn deallocate(_: &File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}
