//! Kinds of files that not every system has.

use std::fs::FileType;

/// File types that the standard library does not know on every system. On a system without them,
/// the answer is no.
pub trait Kind {
    /// Whether it is a block device.
    fn is_block(&self) -> bool;
    /// Whether it is a named pipe.
    fn is_pipe(&self) -> bool;
}

#[cfg(unix)]
impl Kind for FileType {
    fn is_block(&self) -> bool {
        std::os::unix::fs::FileTypeExt::is_block_device(self)
    }

    fn is_pipe(&self) -> bool {
        std::os::unix::fs::FileTypeExt::is_fifo(self)
    }
}

#[cfg(not(unix))]
impl Kind for FileType {
    fn is_block(&self) -> bool {
        false
    }

    fn is_pipe(&self) -> bool {
        false
    }
}
