//! Opening files that somebody else may have put where they are.

use std::fs::OpenOptions;

/// What an open must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Follow a link. On Windows a link is opened itself: check the kind of what was opened.
    NoFollow,
    /// Wait, as for the other end of a named pipe.
    NoWait,
    /// Both.
    NoFollowNoWait,
    /// Follow a link, or open a device that is in use, such as mounted.
    NoFollowInUse,
}

/// Options to open a file, with what differs between systems.
pub trait OpenGuarded {
    /// What the open must not do.
    fn guarded(&mut self, guard: Guard) -> &mut Self;
    /// The permissions of a file that is created, as bits of a mode: nothing where files get
    /// those of their directory.
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
            Guard::NoWait => self,
            _ => self.custom_flags(OPEN_REPARSE_POINT),
        }
    }

    fn created_with(&mut self, _: u32) -> &mut Self {
        self
    }
}
