//! Locks between processes.

use std::fs::{File, TryLockError};

use openhosting_system::SHARED_LOCKS_ALLOW_WRITES;

use super::is_plain;

/// Who else may have the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Exclusive,
    /// Others that share it too.
    Shared,
}

/// What became of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The lock is ours, until the file is closed.
    Held,
    /// Another process has it.
    Busy,
    /// This file system has no locks: NFS without a lock daemon, Lustre, some FUSE. Or the
    /// system has none that are shared and let their holders write.
    Unsupported,
}

/// Locks a file, without waiting. The lock ends with the process, so a crash leaves
/// nothing to clean up. That is why there is no lock file in its place: one that a
/// crash left would have to be removed by hand.
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
