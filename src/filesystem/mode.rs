//! Permissions of files: FAT has none, and elsewhere a file that we create may belong
//! to somebody else (CIFS, NFS with squashed users, bind mounts with other users).

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::{PLAIN, Weakness};

/// The bits of a mode that are about others than the owner.
const OTHERS: u32 = 0o077;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The owner.
    Private,
    /// Whoever the umask of the user lets.
    Usual,
}

impl Access {
    /// The mode to create a file with.
    pub(super) fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Usual => 0o666,
        }
    }
}

/// Creates a file that is not there yet, for its owner alone; a link is not followed.
pub(crate) fn create_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(Access::Private.mode())
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

/// Whether others can read a file that was [created](create_private) for its owner
/// alone: then the file system has modes of its own.
pub(crate) fn exposed(file: &File, path: &Path) -> Option<Weakness> {
    let is_exposed = file.metadata().is_ok_and(|m| m.mode() & OTHERS != 0);
    is_exposed.then(|| Weakness::Exposed(path.to_owned()))
}

/// Gives a private file the mode that the umask leaves to new files. Where that
/// fails, the file keeps the mode it has.
pub(crate) fn give_mode(file: &File, path: &Path) -> Option<Weakness> {
    let wanted = Access::Usual.mode() & !umask();
    let is_right = |file: &File| file.metadata().is_ok_and(|m| m.mode() & 0o777 == wanted);
    if is_right(file) {
        return None;
    }
    let is_done = !PLAIN && file.set_permissions(Permissions::from_mode(wanted)).is_ok();
    // A file system with modes of its own said so when the file was created.
    let is_known = exposed(file, path).is_some();
    (!is_done && !is_known).then(|| Weakness::FixedMode(path.to_owned()))
}

/// The file mode creation mask.
fn umask() -> u32 {
    let status = match PLAIN {
        true => String::new(),
        false => std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
    };
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or_else(umask_by_change)
}

/// The mask without /proc: it can only be read by changing it. Meanwhile it is the
/// strictest one, so that no file of another thread gets a wider mode than it should.
fn umask_by_change() -> u32 {
    static TURN: Mutex<()> = Mutex::new(());
    // Two threads that interleave here would leave the strict mask behind.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mask = rustix::process::umask(Mode::from_raw_mode(OTHERS));
    let _ = rustix::process::umask(mask);
    mask.as_raw_mode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_the_same_with_and_without_proc() {
        assert_eq!(umask(), umask_by_change());
        assert_eq!(umask_by_change(), umask_by_change());
    }

    #[test]
    fn a_created_file_is_private_and_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = create_private(&path).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(exposed(&file, &path), None);
        assert!(create_private(&path).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("new"), &link).unwrap();
        assert!(create_private(&link).is_err());
        assert!(!directory.path().join("new").exists());
    }

    #[test]
    fn a_file_that_others_can_read_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = create_private(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
        assert_eq!(exposed(&file, &path), Some(Weakness::Exposed(path)));
    }
}
