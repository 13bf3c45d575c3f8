//! Gives a file its name in one step, and only if no other file has it.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;

use openhosting_system::{Guard, OpenGuarded, rename_exclusively};

use super::{Access, create_new, is_plain};

/// The content of a placeholder, which reserves a name on file systems without a better way.
const PLACEHOLDER: &[u8] = b"openhosting was about to give this name to a finished file\n";

/// Renames a file to a name that is not in use. Fails with [`ErrorKind::AlreadyExists`] otherwise,
/// so that a file that appeared meanwhile is not overwritten.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    if is_placeholder(to) {
        return std::fs::rename(from, to);
    }
    let is_there = |error: &io::Error| error.kind() == ErrorKind::AlreadyExists;
    if !is_plain() {
        match rename_exclusively(from, to) {
            Err(error) if is_there(&error) => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
        match std::fs::hard_link(from, to) {
            Err(error) if is_there(&error) => return Err(error),
            Err(_) => {}
            Ok(()) => {
                // Both names refer to the same file, so a leftover name is harmless.
                let _ = std::fs::remove_file(from);
                return Ok(());
            }
        }
    }
    // Creating a file is exclusive on every file system, so the placeholder reserves the name, and
    // the rename replaces it. A process that is killed in between leaves the placeholder, which the
    // next run recognizes by its text.
    let mut placeholder = create_new(to, Access::Private)?;
    // If the disk is full, an empty placeholder works as well, unless the process is killed at this
    // moment.
    let _ = placeholder.write_all(PLACEHOLDER);
    drop(placeholder);
    std::fs::rename(from, to).inspect_err(|_| {
        if is_placeholder(to) || std::fs::metadata(to).is_ok_and(|m| m.len() == 0) {
            let _ = std::fs::remove_file(to);
        }
    })
}

/// Whether `path` is what an earlier run left between reserving a name and using it:
/// as good as nothing.
pub fn is_placeholder(path: &Path) -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .guarded(Guard::NoFollowNoWait)
        .open(path);
    let Ok(file) = opened else {
        return false;
    };
    let has_its_length = file
        .metadata()
        .is_ok_and(|m| m.is_file() && m.len() == PLACEHOLDER.len() as u64);
    let mut bytes = Vec::new();
    has_its_length
        && file
            .take(PLACEHOLDER.len() as u64)
            .read_to_end(&mut bytes)
            .is_ok()
        && bytes == PLACEHOLDER
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::create_whole;

    fn files(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_name_overwrites_nothing_but_a_placeholder() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        let error = rename_new(&from, &to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
        assert!(from.exists());
        // Killed between reserving the name and using it.
        std::fs::write(&to, PLACEHOLDER).unwrap();
        rename_new(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"new");
        assert_eq!(files(directory.path()), ["to"]);
    }

    #[test]
    fn a_whole_file_is_private_and_never_overwrites() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let fill = |file: &File| (&*file).write_all(b"text");
        for before in [None, Some(PLACEHOLDER)] {
            if let Some(before) = before {
                std::fs::write(&path, before).unwrap();
            }
            let file = create_whole(&path, fill).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read(&path).unwrap(), b"text");
        }
        let error = create_whole(&path, fill).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        std::fs::remove_file(&path).unwrap();
        let broken = |_: &File| Err(io::Error::other("broken"));
        assert!(create_whole(&path, broken).is_err());
        assert_eq!(files(directory.path()), [""; 0]);
    }

    #[test]
    fn only_the_exact_text_is_a_placeholder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(!is_placeholder(&path));
        for bytes in [&b""[..], &PLACEHOLDER[1..], &[0; PLACEHOLDER.len()]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(!is_placeholder(&path));
        }
        std::fs::write(&path, PLACEHOLDER).unwrap();
        assert!(is_placeholder(&path));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!is_placeholder(&link));
        assert!(!is_placeholder(directory.path()));
    }
}
