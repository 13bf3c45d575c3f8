//! Opens files that another user may have put in their place.

use std::fs::OpenOptions;

/// What opening a file must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Follow a link. On Windows, the link itself is opened: check the type of the opened file.
    NoFollow,
    /// Wait, for example for the other end of a named pipe.
    NoWait,
    /// Both.
    NoFollowNoWait,
    /// Follow a link, or open a device that is in use, for example mounted. Linux refuses that for
    /// `O_EXCL` without `O_CREAT`; for a file that is not a block device, it has no effect.
    NoFollowInUse,
}

/// Options for opening a file that differ between systems.
pub trait OpenGuarded {
    /// Sets what opening must not do. Call it once: it replaces what an earlier call set.
    fn guarded(&mut self, guard: Guard) -> &mut Self;
    /// Sets the permissions of a created file, as mode bits. No effect where a file inherits
    /// permissions from its directory.
    fn created_with(&mut self, mode: u32) -> &mut Self;
}

#[cfg(unix)]
impl OpenGuarded for OpenOptions {
    fn guarded(&mut self, guard: Guard) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::OFlags;
        let flags = match guard {
            Guard::NoFollow => OFlags::NOFOLLOW,
            Guard::NoWait => OFlags::NONBLOCK,
            Guard::NoFollowNoWait => OFlags::NOFOLLOW | OFlags::NONBLOCK,
            Guard::NoFollowInUse => OFlags::NOFOLLOW | OFlags::EXCL,
        };
        self.custom_flags(flags.bits().cast_signed())
    }

    fn created_with(&mut self, mode: u32) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::mode(self, mode)
    }
}

#[cfg(windows)]
impl OpenGuarded for OpenOptions {
    fn guarded(&mut self, guard: Guard) -> &mut Self {
        use std::os::windows::fs::OpenOptionsExt;
        /// `FILE_FLAG_OPEN_REPARSE_POINT` of `winbase.h`.
        const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
        match guard {
            // A path of the file system never names a pipe on Windows.
            Guard::NoWait => self,
            _ => self.custom_flags(OPEN_REPARSE_POINT),
        }
    }

    fn created_with(&mut self, _: u32) -> &mut Self {
        self
    }
}
