//! Locks between processes.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::PLAIN;

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
    /// This file system has no locks: NFS without a lock daemon, Lustre, some FUSE.
    Unsupported,
}

/// Locks a file, without waiting. The lock ends with the process, so a crash leaves
/// nothing to clean up. That is why there is no lock file in its place: one that a
/// crash left would have to be removed by hand.
pub fn lock(file: &File, lock: Lock) -> Locked {
    if PLAIN {
        return Locked::Unsupported;
    }
    let operation = match lock {
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Lock::Shared => FlockOperation::NonBlockingLockShared,
    };
    match rustix::io::retry_on_intr(|| flock(file, operation)) {
        Ok(()) => Locked::Held,
        Err(Errno::WOULDBLOCK) => Locked::Busy,
        Err(_) => Locked::Unsupported,
    }
}
