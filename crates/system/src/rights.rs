//! The owner of a file, and what others may do with it.
//!
//! Windows has access lists instead of owners and modes, and no safe call reads them. There, every
//! file counts as owned by this user only. New files get the access list of their directory.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::path::Path;

/// The owner of a file, and what others may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The number of the user.
    pub owner: u32,
    /// The bits of `chmod(2)`, and of the file type.
    pub mode: u32,
    /// Number of names (hard links).
    pub links: u64,
}

impl Rights {
    /// The rights of a file.
    pub fn of(metadata: &Metadata) -> Self {
        of_metadata(metadata)
    }
}

/// The number of the user of this process.
pub fn user() -> u32 {
    own_user()
}

/// Gives an open file a mode.
///
/// # Errors
/// If the file system has no modes, or this user may not change it.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    change_mode(file, mode)
}

/// The file mode creation mask.
pub fn umask(is_plain: bool) -> u32 {
    mask(is_plain)
}

/// Whether files in the same place can be changed, that is, the mount is not read-only.
///
/// # Errors
/// If the file system does not report it.
pub fn can_be_changed(file: &File) -> io::Result<bool> {
    is_writable_mount(file)
}

/// Checks that this user can create files in a directory, as far as the system reports that
/// without creating one.
///
/// # Errors
/// Why not.
pub fn check_writable(directory: &Path) -> io::Result<()> {
    check_access(directory)
}

#[cfg(unix)]
fn check_access(directory: &Path) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    Ok(accessat(CWD, directory, rights, AtFlags::EACCESS)?)
}

#[cfg(not(unix))]
fn check_access(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether a path such as `/dev/fd/63` refers to an unnamed pipe, which a shell created for
/// `<(COMMAND)`.
pub fn is_nameless_pipe(path: &Path) -> bool {
    is_of_shell(path)
}

/// Opens a directory for syncing the names in it.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] also if the system does not support syncing directories.
pub fn open_directory(path: &Path) -> io::Result<File> {
    open_to_sync(path)
}

/// Creates a directory and its parents, for this user only.
///
/// # Errors
/// As [`DirBuilder::create`].
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(unix)]
use unix::*;

#[cfg(unix)]
mod unix {
    use std::fs::{File, Metadata, Permissions};
    use std::io;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;
    use std::sync::Mutex;

    use rustix::fs::{Mode, StatVfsMountFlags, fstatvfs};

    use super::Rights;

    pub(super) fn of_metadata(metadata: &Metadata) -> Rights {
        Rights {
            owner: metadata.uid(),
            mode: metadata.mode(),
            links: metadata.nlink(),
        }
    }

    pub(super) fn own_user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    pub(super) fn change_mode(file: &File, mode: u32) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(mode))
    }

    pub(super) fn mask(is_plain: bool) -> u32 {
        let status = match is_plain {
            true => String::new(),
            false => std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
        };
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
            .unwrap_or_else(mask_by_change)
    }

    /// Reads the mask without /proc, which is only possible by changing it. Meanwhile it has the
    /// strictest value, so that no file of another thread gets more permissions than it should.
    fn mask_by_change() -> u32 {
        static TURN: Mutex<()> = Mutex::new(());
        // If two threads interleaved here, the strict mask would stay in effect.
        let _turn = TURN.lock();
        let mask = rustix::process::umask(Mode::from_raw_mode(0o077));
        let _ = rustix::process::umask(mask);
        widened(mask.as_raw_mode())
    }

    /// A mode has 16 bits on macOS and FreeBSD.
    fn widened(mode: impl Into<u32>) -> u32 {
        mode.into()
    }

    pub(super) fn is_writable_mount(file: &File) -> io::Result<bool> {
        Ok(!fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    pub(super) fn open_to_sync(directory: &Path) -> io::Result<File> {
        File::open(directory)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn is_of_shell(path: &Path) -> bool {
        /// The file system of unnamed pipes, for `statfs(2)`.
        const PIPEFS_MAGIC: u64 = 0x5049_5045;
        rustix::fs::statfs(path)
            .is_ok_and(|system| u64::try_from(system.f_type) == Ok(PIPEFS_MAGIC))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn is_of_shell(path: &Path) -> bool {
        path.starts_with("/dev/fd")
    }

    #[test]
    fn the_mask_is_the_same_with_and_without_proc() {
        assert_eq!(mask(false), mask_by_change());
        assert_eq!(mask_by_change(), mask(true));
    }
}

#[cfg(not(unix))]
use elsewhere::*;

#[cfg(not(unix))]
mod elsewhere {
    use std::fs::{File, Metadata};
    use std::io;
    use std::path::Path;

    use super::Rights;

    /// Everything belongs to this user.
    const USER: u32 = 0;

    pub(super) fn of_metadata(_: &Metadata) -> Rights {
        Rights {
            owner: USER,
            mode: 0o600,
            links: 1,
        }
    }

    pub(super) fn own_user() -> u32 {
        USER
    }

    pub(super) fn change_mode(_: &File, _: u32) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn mask(_: bool) -> u32 {
        0o077
    }

    pub(super) fn is_writable_mount(_: &File) -> io::Result<bool> {
        Ok(true)
    }

    pub(super) fn is_of_shell(_: &Path) -> bool {
        false
    }

    #[cfg(windows)]
    pub(super) fn open_to_sync(directory: &Path) -> io::Result<File> {
        use std::os::windows::fs::OpenOptionsExt;
        /// `FILE_FLAG_BACKUP_SEMANTICS`, which allows opening a directory.
        const BACKUP_SEMANTICS: u32 = 0x0200_0000;
        File::options()
            .read(true)
            .write(true)
            .custom_flags(BACKUP_SEMANTICS)
            .open(directory)
    }
}
