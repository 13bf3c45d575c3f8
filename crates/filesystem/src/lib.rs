//! Everything that some file systems do not support, each with a plain fallback.
//!
//! FAT and exFAT have no owners, modes or hard links; FUSE and network file systems
//! may lack locks, O_TMPFILE, RENAME_NOREPLACE or the fsync of a directory; a
//! container may have no /proc.
//!
//! None of that is a reason to fail, so no other module makes these system calls directly.
//! `openhosting-system` has the calls and hides what operating systems lack; this crate decides
//! what to do instead.
//!
//! Each function tries the better way first. It does not try to list the errors that mean "not
//! supported", because file systems disagree about them. Any error that does not answer the
//! question leads to the fallback, and the error of the fallback is the one that is reported. Where
//! the fallback guarantees less, the caller gets a [`Weakness`] to report at the start of a
//! transfer.
//!
//! In debug builds, the environment variable `OPENHOSTING_PLAIN_FILESYSTEM` forces the fallbacks,
//! for tests.
//!
//! No network, no async, and no decision about what a missing guarantee means to a user.
//! Start at [`Weakness`], then at [`open_own`] and [`create_whole`], which most callers use.

mod digest;
mod lock;
mod mode;
mod names;
mod plain;
mod private;
mod replace;
#[cfg(feature = "simulated")]
pub mod simulated;
mod sync;
mod zeros;

use std::fs::File;
use std::path::{Path, PathBuf};

use openhosting_base::advice;
use openhosting_base::advice::{Advice, Remedy};

pub use digest::digest_of;
pub use lock::{Lock, Locked, lock};
pub use mode::{Access, Exposure, OTHERS_WRITE, Step, exposed, give_mode};
pub use names::{is_placeholder, rename_new};
pub use openhosting_system::{PageCache, free_bytes, nonblocking};
pub use plain::is_plain;
pub use private::{
    Untrusted, can_others_create_in, create_new, open_named, open_or_create, open_own,
    open_to_read, overwrite, private_directory, read_all, read_named, read_own, why_untrusted,
};
pub use replace::{Staged, check_replace, create_whole, replace, replace_from};
pub use sync::{sync_all, sync_data, sync_directory, unsynced};
pub use zeros::put_zeros;

/// Something that this file system does not guarantee, with what the user has to do or know because
/// of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// This file cannot be locked.
    Unlocked(PathBuf),
    /// This file cannot be synced, so a power loss can take what was written last.
    Unsynced(PathBuf),
    /// This directory cannot be synced, so a power loss can undo a rename in it.
    UnsyncedNames(PathBuf),
    /// Others can read this file, which was created for its owner alone.
    Exposed(PathBuf),
    /// The mode of this file cannot be changed.
    FixedMode(PathBuf),
}

impl Weakness {
    /// What it means for the user.
    pub fn advice(&self) -> Advice {
        let what = match self {
            Self::Unlocked(path) => format!(
                "This file system cannot lock {}: do not run two transfers into the same file",
                path.display()
            ),
            Self::Unsynced(path) => {
                let what = format!(
                    "This file system cannot sync {}: after a power loss, start over with ",
                    path.display()
                );
                return advice![what, Remedy::Restart];
            }
            Self::UnsyncedNames(directory) => format!(
                "This file system cannot sync the directory {}: after a power loss, check that the finished file is there",
                directory.display()
            ),
            Self::Exposed(path) => format!(
                "This file system does not keep file permissions: other users can read {}",
                path.display()
            ),
            Self::FixedMode(path) => format!(
                "This file system does not let the permissions of {} be changed",
                path.display()
            ),
        };
        what.into()
    }
}

/// The page cache of an open regular file; `None` if nothing can be concluded from it.
pub fn page_cache_of(file: &File) -> Option<PageCache> {
    if is_plain() {
        return None;
    }
    let page_cache = PageCache::of(file);
    #[cfg(feature = "simulated")]
    let page_cache = page_cache.map(simulated::in_this_boot);
    page_cache
}

/// Removes duplicates that differ only in the file: a user needs each warning once.
pub fn once(weaknesses: impl IntoIterator<Item = Weakness>) -> Vec<Weakness> {
    let mut all: Vec<Weakness> = Vec::new();
    for weakness in weaknesses {
        let kind = std::mem::discriminant(&weakness);
        if !all.iter().any(|one| std::mem::discriminant(one) == kind) {
            all.push(weakness);
        }
    }
    all
}

/// What a user can do about a file that cannot be written to.
pub fn remedy(cause: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match cause.kind() {
        StorageFull => Some("Make room on the disk, then run the same command again"),
        QuotaExceeded => Some("Make room in your disk quota, then run the same command again"),
        FileTooLarge => Some(
            "Raise the limit with ulimit -f, or choose a file system that takes longer files (FAT32 takes 4 GiB), then run the same command again",
        ),
        _ => None,
    }
}

/// The path with more at its end, as in `disk.img.sha256`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directory that contains a file.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weakness_is_reported_once_for_all_files() {
        let of = |name: &str| Weakness::Unlocked(name.into());
        let names = Weakness::UnsyncedNames(".".into());
        let all = once([of("a"), names.clone(), of("b")]);
        assert_eq!(all, [of("a"), names]);
    }

    #[test]
    fn a_bare_name_is_in_the_current_directory() {
        assert_eq!(directory_of(Path::new("a")), Path::new("."));
        assert_eq!(directory_of(Path::new("d/a")), Path::new("d"));
    }
}
