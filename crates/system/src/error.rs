//! What an error of the operating system means, where [`ErrorKind`] is not precise enough.

use std::io::{Error, ErrorKind};

/// Whether sync failed because the file system does not support it. Any other error may mean that
/// bytes were lost.
pub fn cannot_sync(error: &Error) -> bool {
    is_one_of(error, codes::NO_SUCH_CALL)
}

/// Whether a disk failed, is full or read-only, as opposed to a file system without this call.
pub fn is_disk_broken(error: &Error) -> bool {
    is_one_of(error, codes::BROKEN)
}

/// Whether the medium could not be read or written.
pub fn is_bad_sector(error: &Error) -> bool {
    is_one_of(error, codes::MEDIUM)
}

/// Whether writing would fail as well: no space, a quota, a file that is too long, or a broken
/// medium.
pub fn is_no_room(error: &Error) -> bool {
    let kinds = [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::FileTooLarge,
    ];
    is_bad_sector(error) || kinds.contains(&error.kind())
}

fn is_one_of(error: &Error, codes: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

#[cfg(unix)]
mod codes {
    use rustix::io::Errno;

    pub(super) const NO_SUCH_CALL: &[i32] = &[
        Errno::INVAL.raw_os_error(),
        Errno::NOSYS.raw_os_error(),
        Errno::OPNOTSUPP.raw_os_error(),
    ];
    pub(super) const BROKEN: &[i32] = &[
        Errno::IO.raw_os_error(),
        Errno::NOSPC.raw_os_error(),
        Errno::DQUOT.raw_os_error(),
        Errno::ROFS.raw_os_error(),
        Errno::STALE.raw_os_error(),
        Errno::NODEV.raw_os_error(),
    ];
    pub(super) const MEDIUM: &[i32] = &[Errno::IO.raw_os_error()];
}

/// By the numbers of `winerror.h`.
#[cfg(windows)]
mod codes {
    const INVALID_FUNCTION: i32 = 1;
    const WRITE_PROTECT: i32 = 19;
    const CRC: i32 = 23;
    const SECTOR_NOT_FOUND: i32 = 27;
    const NOT_SUPPORTED: i32 = 50;
    const DISK_FULL: i32 = 112;
    const IO_DEVICE: i32 = 1117;

    pub(super) const NO_SUCH_CALL: &[i32] = &[INVALID_FUNCTION, NOT_SUPPORTED];
    pub(super) const BROKEN: &[i32] = &[WRITE_PROTECT, CRC, SECTOR_NOT_FOUND, DISK_FULL, IO_DEVICE];
    pub(super) const MEDIUM: &[i32] = &[CRC, SECTOR_NOT_FOUND, IO_DEVICE];
}
