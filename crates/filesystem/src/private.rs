//! Files and directories in places where other users may write.
//!
//! A directory such as /tmp, or the home directory of a user for whom root works, can contain
//! links, pipes and files that another user put there under the names that this program uses.
//! Therefore this program creates its own files beside the user's exclusively, and uses an existing
//! file of such a name only if this user owns it. It follows no link, waits for no pipe, and never
//! trusts or overwrites anything that another user could have prepared.
//!
//! Some file systems (FAT, CIFS, FUSE) show every file with the same owner and mode. There, a file
//! counts as ours if a new file beside it gets the same owner and mode.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use openhosting_system::{
    Guard, Kind, OpenGuarded, Rights, create_private_directory, is_nameless_pipe, is_null_device,
    user,
};

use super::{Access, directory_of};
use openhosting_base::advice;
use openhosting_base::advice::Advice;
use openhosting_base::quoting::quote;

/// The mode bit that lets everybody write. Write permission for the group is accepted, because only
/// the owner or root can have granted it, as Kubernetes does with `fsGroup`.
const EVERYBODY_WRITES: u32 = 0o002;
/// The superuser, who can change everything anyway.
const ROOT: u32 = 0;

/// Why a file or directory is not used: another user may have written it, or it is of the wrong
/// type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// Another user owns it: this one.
    Owner(u32),
    /// Everybody may write to it.
    Writable,
    /// It has another name as well, and others can create files here, so it may be any file of this
    /// user.
    Linked,
    /// It is a symbolic link.
    Link,
    /// It is a pipe, a device or a directory.
    NotAFile,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(owner) => write!(
                f,
                "it belongs to user {owner}, and this process runs as user {}",
                user()
            ),
            Self::Writable => f.write_str("everybody may write to it"),
            Self::Linked => f.write_str(
                "it is a hard link to a file that has another name, in a directory of others",
            ),
            Self::Link => f.write_str("it is a symbolic link, which is not followed"),
            Self::NotAFile => f.write_str("it is not a regular file"),
        }
    }
}

impl std::error::Error for Untrusted {}

impl From<Untrusted> for io::Error {
    fn from(reason: Untrusted) -> Self {
        Self::new(ErrorKind::PermissionDenied, reason)
    }
}

impl Untrusted {
    /// The reason inside an error of this module, if that is its cause.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What the user can do about it. `otherwise` continues a sentence that begins with checking
    /// who created the file.
    pub fn remedy(&self, path: &Path, otherwise: impl Into<Advice>) -> Advice {
        let name = quote(&path.to_string_lossy());
        let first = match self {
            Self::Owner(owner) => format!(
                "Run the same command as user {owner} if it is from an earlier run of theirs; "
            ),
            Self::Writable => {
                format!("If nobody else can have changed it, run: chmod o-w {name}; ")
            }
            Self::Linked | Self::Link | Self::NotAFile => {
                format!("See what it is with: ls -l {name}; ")
            }
        };
        advice![first, otherwise]
    }
}

/// Creates a file that must not exist yet, for reading and writing. A link is not followed.
pub fn create_new(path: &Path, access: Access) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .created_with(access.mode())
        .guarded(Guard::NoFollow)
        .open(path)
}

/// The purpose of opening a file of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Its content is used, so nobody else may have written it.
    Believe,
    /// Its content is replaced.
    Overwrite,
}

/// Opens a file that an earlier run of this user left, for reading and writing.
///
/// # Errors
/// [`Untrusted`] if it may belong to somebody else, and as [`File::open`].
pub fn open_own(path: &Path) -> io::Result<File> {
    open(
        path,
        OpenOptions::new().read(true).write(true),
        Use::Believe,
    )
}

/// As [`open_own`], for reading only.
///
/// # Errors
/// As [`open_own`].
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true), Use::Believe)
}

/// As [`open_own`], but creates the file for its owner only if it is missing: for files that
/// several processes of one user share.
///
/// # Errors
/// As [`open_own`].
pub fn open_or_create(path: &Path) -> io::Result<File> {
    create_or(path, Access::Private, open_own)
}

/// Creates a file, or truncates the existing one of this user.
///
/// # Errors
/// [`Untrusted`] if it belongs to another user, or is not a regular file.
pub fn overwrite(path: &Path) -> io::Result<File> {
    create_or(path, Access::Usual, |path| {
        let file = open(path, OpenOptions::new().write(true), Use::Overwrite)?;
        file.set_len(0)?;
        Ok(file)
    })
}

/// Reads a file of this user, of at most `bytes_max` bytes.
///
/// # Errors
/// As [`open_own`]; [`ErrorKind::InvalidData`] if it is larger.
pub fn read_own(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_all(open_to_read(path)?, bytes_max)
}

/// Why another user may be able to write to a file, as far as its file system has owners. `path` is
/// its name.
pub fn why_untrusted(file: &File, path: &Path) -> io::Result<Option<Untrusted>> {
    Ok(check(&file.metadata()?, path, Use::Overwrite).err())
}

/// Creates a directory and its parents for this user only, unless it exists.
///
/// # Errors
/// [`Untrusted`] if it exists and belongs to another user than root, or everybody may write to it;
/// and as [`create_private_directory`].
pub fn private_directory(path: &Path) -> io::Result<()> {
    let created = create_private_directory(path);
    // A link is looked at even after an error: where fs.protected_symlinks is set, the system does
    // not follow a link of another user in /tmp, and the error does not say why.
    if let Ok(named) = std::fs::symlink_metadata(path) {
        let owner = Rights::of(&named).owner;
        if named.is_symlink() && !is_trusted(owner) {
            return Err(Untrusted::Owner(owner).into());
        }
    }
    created?;
    let directory = Rights::of(&std::fs::metadata(path)?);
    let why = if !is_trusted(directory.owner) {
        Untrusted::Owner(directory.owner)
    } else if directory.mode & EVERYBODY_WRITES != 0 {
        Untrusted::Writable
    } else {
        return Ok(());
    };
    match is_as_created_in(path, directory) {
        true => Ok(()),
        false => Err(why.into()),
    }
}

/// Reads a file of at most `bytes_max` bytes that the user named, whoever owns it. A link is
/// followed. A named pipe is refused, because it may never have a writer; the pipe of a shell, as
/// for `<(COMMAND)`, is read to its end.
///
/// # Errors
/// [`Untrusted::NotAFile`]; [`ErrorKind::InvalidData`] if it is larger; and as
/// [`File::open`].
pub fn read_named(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_all(open_named(path)?, bytes_max)
}

/// As [`read_named`], but only opens the file.
///
/// # Errors
/// As [`read_named`].
pub fn open_named(path: &Path) -> io::Result<File> {
    // Checked before opening: a writer that waits for a reader of the pipe would otherwise start to
    // write.
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_pipe() && is_nameless_pipe(path) {
        return File::open(path);
    }
    let file = OpenOptions::new()
        .read(true)
        .guarded(Guard::NoWait)
        .open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() || metadata.is_dir() || is_null_device(&metadata) {
        // Reading a directory fails with a precise error.
        true => Ok(file),
        false => Err(Untrusted::NotAFile.into()),
    }
}

/// Reads all of an open file that has at most `bytes_max` bytes.
///
/// # Errors
/// [`ErrorKind::InvalidData`] if it has more.
pub fn read_all(source: impl io::Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => {
            let what = format!("it has more than {bytes_max} bytes");
            Err(io::Error::new(ErrorKind::InvalidData, what))
        }
        false => Ok(bytes),
    }
}

fn create_or(
    path: &Path,
    access: Access,
    open: impl Fn(&Path) -> io::Result<File>,
) -> io::Result<File> {
    match create_new(path, access) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => return created,
    }
    match open(path) {
        // Another process removed it in the meantime.
        Err(error) if error.kind() == ErrorKind::NotFound => create_new(path, access),
        opened => opened,
    }
}

fn open(path: &Path, options: &OpenOptions, purpose: Use) -> io::Result<File> {
    // Opening a device may already have an effect, so its type is checked first.
    let kind = std::fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        return Err(Untrusted::Link.into());
    } else if !kind.is_file() {
        return Err(Untrusted::NotAFile.into());
    }
    let mut options = options.clone();
    options.guarded(Guard::NoFollowNoWait);
    let file = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let there = std::fs::symlink_metadata(path)?;
            return Err(match check(&there, path, purpose) {
                Err(why) => why.into(),
                Ok(()) => error,
            });
        }
        opened => opened?,
    };
    check(&file.metadata()?, path, purpose)?;
    Ok(file)
}

fn check(file: &Metadata, path: &Path, purpose: Use) -> Result<(), Untrusted> {
    let directory = directory_of(path);
    let rights = Rights::of(file);
    let why = if !file.is_file() {
        return Err(Untrusted::NotAFile);
    } else if rights.owner != user() {
        Untrusted::Owner(rights.owner)
    } else if purpose == Use::Believe && rights.mode & EVERYBODY_WRITES != 0 {
        Untrusted::Writable
    } else if rights.links > 1 && can_others_create_in(directory) {
        return Err(Untrusted::Linked);
    } else {
        return Ok(());
    };
    match is_as_created_in(directory, rights) {
        true => Ok(()),
        false => Err(why),
    }
}

/// Whether a user is this one, or root, who can change everything anyway.
fn is_trusted(owner: u32) -> bool {
    owner == user() || owner == ROOT
}

/// Whether users other than root can create names in a directory.
pub fn can_others_create_in(directory: &Path) -> bool {
    std::fs::metadata(directory).is_ok_and(|directory| {
        let rights = Rights::of(&directory);
        !is_trusted(rights.owner) || rights.mode & EVERYBODY_WRITES != 0
    })
}

/// Whether a file that we create in `directory` has the same owner as `there`, and is writable by
/// everybody if that is: then the file system has no real owners and modes.
fn is_as_created_in(directory: &Path, there: Rights) -> bool {
    let created = tempfile::Builder::new()
        .prefix(".openhosting-")
        .tempfile_in(directory)
        .and_then(|probe| probe.as_file().metadata());
    let needed = there.mode & EVERYBODY_WRITES;
    created.is_ok_and(|created| {
        let created = Rights::of(&created);
        created.owner == there.owner && created.mode & needed == needed
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    fn why(opened: io::Result<File>) -> Option<Untrusted> {
        Untrusted::of(&opened.err()?).cloned()
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_created_file_is_new_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = create_new(&path, Access::Private).unwrap();
        assert_eq!(Rights::of(&file.metadata().unwrap()).mode & 0o777, 0o600);
        assert!(create_new(&path, Access::Private).is_err());
        let link = directory.path().join("link");
        symlink(directory.path().join("new"), &link).unwrap();
        assert!(create_new(&link, Access::Private).is_err());
        assert!(open_or_create(&link).is_err() && overwrite(&link).is_err());
        assert!(!directory.path().join("new").exists());
    }

    #[test]
    fn links_pipes_and_world_writable_files_are_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        assert_eq!(why(open_own(&path("file"))), None);
        symlink(path("file"), path("link")).unwrap();
        assert_eq!(why(open_own(&path("link"))), Some(Untrusted::Link));
        let made = Command::new("mkfifo").arg(path("pipe")).status();
        assert!(made.unwrap().success());
        for open in [open_own, open_or_create, overwrite, open_named] {
            assert_eq!(why(open(&path("pipe"))), Some(Untrusted::NotAFile));
        }
        assert_eq!(
            why(open_own(Path::new("/dev/null"))),
            Some(Untrusted::NotAFile)
        );
        chmod(&path("file"), 0o660);
        assert_eq!(
            why(open_own(&path("file"))),
            None,
            "its owner let the group"
        );
        chmod(&path("file"), 0o666);
        assert_eq!(why(open_own(&path("file"))), Some(Untrusted::Writable));
        assert_eq!(why(overwrite(&path("file"))), None);
        assert_eq!(std::fs::read(path("file")).unwrap(), b"");
    }

    #[test]
    fn a_hard_link_is_refused_only_where_others_can_have_made_it() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::fs::hard_link(&file, &link).unwrap();
        assert_eq!(why(open_own(&link)), None);
        chmod(directory.path(), 0o1777);
        assert_eq!(why(open_own(&link)), Some(Untrusted::Linked));
        assert_eq!(why(overwrite(&link)), Some(Untrusted::Linked));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn a_directory_that_everybody_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        private_directory(&path).unwrap();
        assert_eq!(Rights::of(&path.metadata().unwrap()).mode & 0o777, 0o700);
        chmod(&path, 0o770);
        private_directory(&path).unwrap();
        chmod(&path, 0o1777);
        let error = private_directory(&path).unwrap_err();
        assert_eq!(Untrusted::of(&error), Some(&Untrusted::Writable));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn named_files_have_a_size_limit_and_pipes_are_read_to_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "12345").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read_named(&link, 5).unwrap(), b"12345");
        let error = read_named(&link, 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(read_named(Path::new("/dev/null"), 4).unwrap(), b"");
        assert_eq!(
            why(open_named(Path::new("/dev/zero"))),
            Some(Untrusted::NotAFile)
        );
        assert!(read_named(directory.path(), 4).is_err());
        let (reader, writer) = io::pipe().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
        let name = format!("/proc/self/fd/{fd}");
        let written = std::thread::spawn(move || io::Write::write_all(&mut { writer }, b"late"));
        assert_eq!(read_named(Path::new(&name), 9).unwrap(), b"late");
        written.join().unwrap().unwrap();
    }
}
