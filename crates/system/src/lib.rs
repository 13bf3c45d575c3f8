//! Everything that differs between operating systems.
//!
//! This is the only client crate that distinguishes operating systems (`.ci/layers.sh` checks
//! that). Each function does what its name says on Linux. On every other system it does the same,
//! or returns the safe answer: no hole is known, a call is not supported, a file has no trustworthy
//! page cache. Callers have to handle that answer anyway, because file systems on Linux give it
//! too, so nothing above this crate needs to know the operating system.
//!
//! On Windows, the standard library has no safe call for sparse files, owners, access lists and
//! sizes of disks, so these are missing. `docs/user/platforms.md` describes for users what is
//! weaker on which system.
//!
//! No policy: `openhosting-filesystem` decides what to do instead.

mod clock;
mod device;
mod error;
mod file_at;
mod holes;
mod identity;
mod kind;
mod names;
pub mod nonblocking;
mod open;
mod page_cache;
mod paths;
mod rights;
mod signals;
mod sockets;
mod streams;
mod terminal;
mod uses;

pub use clock::{process_time, thread_time};
pub use device::{device_size, free_bytes, is_null_device, read_afresh};
pub use error::{cannot_sync, is_bad_sector, is_disk_broken, is_no_room};
pub use file_at::FileAt;
pub use holes::{NextData, allocated_bytes, next_data, next_hole, punch};
pub use identity::{FileId, modified_ns};
pub use kind::Kind;
pub use names::{check_replaceable, create_nameless, give_name, rename_exclusively};
pub use open::{Guard, OpenGuarded};
pub use page_cache::PageCache;
pub use paths::{
    BASE_OF_CONFIG, BASE_OF_DATA, BASE_OF_STATE, Base, bytes_of, is_of_drive_letter, path_of_bytes,
};
pub use rights::{
    Rights, can_be_changed, check_writable, create_private_directory, is_nameless_pipe,
    open_directory, set_mode, umask, user,
};
pub use signals::{Signal, Signals, survive_long_files};
pub use streams::{Stream, columns, takes_sequences};
pub use terminal::Terminal;
pub use uses::{Use, is_locked, uses_of};

/// Whether processes that share a lock on a file can still write to it. Locks on Windows are
/// mandatory: a shared lock forbids everybody to write, including its holders.
pub const SHARED_LOCKS_ALLOW_WRITES: bool = cfg!(not(windows));
