//! Replaces a file completely or not at all.
//!
//! This is the only code that replaces a file by writing a new one. The new file is created
//! exclusively under a random name, with the mode of its [`Access`], in the same directory or
//! another one on the same file system. It is synced, then renamed, and then the directory is
//! synced. A symbolic link at the name is replaced, not followed. A reader finds either the old or
//! the new file, also after a crash at any moment. If a step before the rename fails, the old file
//! stays and the new one is removed.
//!
//! Two cases are handled elsewhere: a name that must not exist before (`names.rs`), and the staged
//! file of a download, which stays until a later run finishes it (`image::target`).

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use openhosting_system::{create_nameless, give_name};

use super::names::{is_placeholder, rename_new};
use super::{Access, Weakness, create_new, directory_of, is_plain, sync_all, sync_directory};

/// Replaces the content of the file `path` by `bytes`. At any moment, also after a crash, either
/// the old or the new content is there.
pub fn replace(path: &Path, access: Access, bytes: &[u8]) -> io::Result<()> {
    replace_from(directory_of(path), path, access, bytes)
}

/// Checks, before work begins whose result will be stored there, that [`replace`] is likely to
/// succeed: the directory accepts new files, and no directory has the name.
pub fn check_replace(path: &Path, access: Access) -> io::Result<()> {
    if path.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    Staged::beside(path, access).map(drop)
}

/// As [`replace`], with the new file first written in `staging`, a directory on the same file
/// system.
pub fn replace_from(staging: &Path, path: &Path, access: Access, bytes: &[u8]) -> io::Result<()> {
    let staged = Staged::within(staging, access)?;
    staged.file().write_all(bytes)?;
    staged.replace(path).map(drop)
}

/// Creates the file `path`, for its owner only, with what `fill` writes to it: completely or not at
/// all. Fails with [`ErrorKind::AlreadyExists`] if it exists.
pub fn create_whole(path: &Path, fill: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    if !is_plain()
        && let Ok(file) = create_nameless(directory_of(path))
    {
        fill(&file)?;
        match give_name(&file, path) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !is_placeholder(path) => {
                return Err(error);
            }
            // There is no /proc, or there are no hard links.
            Err(_) => {}
        }
    }
    let staged = Staged::beside(path, Access::Private)?;
    fill(staged.file())?;
    staged.appear_as(path)
}

/// A file under a temporary name; removed when dropped.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: TempPath,
}

impl Staged {
    /// Creates it in the directory of `path`.
    pub fn beside(path: &Path, access: Access) -> io::Result<Self> {
        Self::within(directory_of(path), access)
    }

    fn within(directory: &Path, access: Access) -> io::Result<Self> {
        let named = tempfile::Builder::new()
            .prefix(".openhosting-")
            .make_in(directory, |path| create_new(path, access))?;
        let (file, path) = NamedTempFile::into_parts(named);
        Ok(Self { file, path })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs it and renames it to `path`, replacing what is there.
    pub fn replace(mut self, path: &Path) -> io::Result<(File, Option<Weakness>)> {
        sync_all(&self.file)?;
        std::fs::rename(&self.path, path)?;
        self.path.disable_cleanup(true);
        let weakness = sync_directory(directory_of(path))?;
        Ok((self.file, weakness))
    }

    /// Renames it to `path`, which must not exist.
    pub(super) fn appear_as(mut self, path: &Path) -> io::Result<File> {
        rename_new(&self.path, path)?;
        self.path.disable_cleanup(true);
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn replacing_a_file_is_atomic_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for text in ["a longer first one", "second"] {
            replace(&path, Access::Private, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, Access::Private, b"third").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        assert!(link.symlink_metadata().unwrap().is_file());
        check_replace(&path, Access::Usual).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        let occupied = check_replace(directory.path(), Access::Usual).unwrap_err();
        assert_eq!(occupied.kind(), ErrorKind::IsADirectory);
        let into_nothing = directory.path().join("none/file");
        assert!(check_replace(&into_nothing, Access::Usual).is_err());
        assert!(replace(&into_nothing, Access::Usual, b"x").is_err());
    }
}
