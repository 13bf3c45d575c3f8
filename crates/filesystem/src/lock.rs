//! Locks between processes.

use std::fs::{File, TryLockError};

use openhosting_system::SHARED_LOCKS_ALLOW_WRITES;

use super::is_plain;

/// Who else may hold the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Exclusive,
    /// Other processes with a shared lock.
    Shared,
}

/// The result of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The lock is ours, until the file is closed.
    Held,
    /// Another process holds it.
    Busy,
    /// The file system has no locks (NFS without a lock daemon, Lustre, some FUSE), or the
    /// operating system has no shared locks that let their holders write.
    Unsupported,
}

/// Locks a file without waiting. The lock ends with the process, so that nothing has to be cleaned
/// up after a crash. This is why no separate lock file is used as a fallback: after a crash, it
/// would have to be removed by hand.
pub fn lock(file: &File, lock: Lock) -> Locked {
    if is_plain() {
        return Locked::Unsupported;
    }
    let locked = match lock {
        Lock::Exclusive => file.try_lock(),
        Lock::Shared if SHARED_LOCKS_ALLOW_WRITES => file.try_lock_shared(),
        Lock::Shared => return Locked::Unsupported,
    };
    match locked {
        Ok(()) => Locked::Held,
        Err(TryLockError::WouldBlock) => Locked::Busy,
        Err(TryLockError::Error(_)) => Locked::Unsupported,
    }
}
