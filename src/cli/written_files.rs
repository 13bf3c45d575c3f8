//! Files that flags name and a command writes. None of them replaces a file that is not of its
//! kind, or that the same command reads.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Untrusted, directory_of, open_to_read};
use crate::journal::may_be_journal;
use crate::system::{FileId, Rights, user};

/// Bytes at the beginning of a file that decide its kind.
const START_BYTES: u64 = 64 << 10;

/// A file that a command will write, and replaces if it exists.
pub(super) struct WrittenFile<'a> {
    /// What it is in messages, such as "receipt".
    pub(super) what: &'static str,
    /// The path that the user gave, or that is derived from one.
    pub(super) path: &'a Path,
    /// Whether the content of an existing file is of this kind.
    pub(super) is_kind: fn(&Path) -> bool,
}

/// Checks, before anything else happens, that no file would be lost: an existing file must be of
/// the kind that replaces it, or empty, and none may be another file of the same command. `others`
/// are those, with their names in messages. Blocks.
///
/// # Errors
/// [`ErrorKind::Usage`] for another file of the command, [`ErrorKind::Local`] for a file of another
/// kind.
pub(super) fn check_written(written: &[WrittenFile<'_>], others: &[(&str, &Path)]) -> Result<()> {
    for (index, file) in written.iter().enumerate() {
        check_is_file(file.path)?;
        let earlier = written.iter().take(index);
        let others = others.iter().copied();
        let all = others.chain(earlier.map(|file| (file.what, file.path)));
        for (what, other) in all {
            if is_same(file.path, other) {
                return Err(file.refused(ErrorKind::Usage, &format!("it is the {what}")));
            }
        }
        file.check_kind()?;
    }
    Ok(())
}

/// Checks that a path can be that of a new file. A trailing slash names a directory, which creating
/// the parents would create.
///
/// # Errors
/// [`ErrorKind::Local`] if it ends in a slash and nothing is there.
pub(super) fn check_is_file(path: &Path) -> Result<()> {
    let last = path.as_os_str().as_encoded_bytes().last();
    let is_file = !last.is_some_and(|last| std::path::is_separator(char::from(*last)));
    if is_file || path.exists() {
        return Ok(());
    }
    let what = format!(
        "{} does not exist, and a path that ends in / is a directory",
        path.display()
    );
    Err(Error::new(ErrorKind::Local, what)
        .hint_to("Leave the / at the end out, or make the directory and name a file in it"))
}

impl<'a> WrittenFile<'a> {
    /// The journal of a transfer, which is resumed if it exists.
    pub(super) fn journal(path: &'a Path) -> Self {
        Self {
            what: "journal",
            path,
            is_kind: may_be_journal,
        }
    }

    /// Checks that what exists under its name may be replaced.
    fn check_kind(&self) -> Result<()> {
        let Ok(metadata) = self.path.symlink_metadata() else {
            // If there is something that cannot be inspected, writing will fail.
            return Ok(());
        };
        // A link is replaced, or refused when it is opened, but not followed. Directories have
        // errors of their own, and nothing is lost with an empty file.
        let is_empty = metadata.is_file() && metadata.len() == 0;
        if metadata.is_symlink() || metadata.is_dir() || is_empty {
            return Ok(());
        }
        let owner = Rights::of(&metadata).owner;
        let why = if !metadata.is_file() {
            Untrusted::NotAFile.to_string()
        } else if (self.is_kind)(self.path) {
            return Ok(());
        } else if owner != user() {
            Untrusted::Owner(owner).to_string()
        } else {
            format!("it exists and is not a {}", self.what)
        };
        Err(self.refused(ErrorKind::Local, &why))
    }

    fn refused(&self, kind: ErrorKind, why: &str) -> Error {
        let (what, path) = (self.what, self.path.display());
        Error::new(kind, format!("Cannot write the {what} {path}: {why}"))
            .hint_to("Choose another file; nothing was changed")
    }
}

/// The error for a file or a directory that cannot be written.
pub(super) fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let what = format!("Cannot write {}", path.display());
    move |cause| Error::new(ErrorKind::Local, what).because(cause)
}

/// The beginning of a file, as far as it can be read.
pub(super) fn start_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before a failure is not of the kind, or is enough to recognise it.
    if let Ok(file) = open_to_read(path) {
        let _ = file.take(START_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// Whether two names are of one file, or would be if it existed. Links are followed.
pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    let (Some(a), Some(b)) = (real(a), real(b)) else {
        return false;
    };
    let id = |path: &Path| FileId::at(path).ok();
    a == b || id(&a).is_some_and(|id_of_a| Some(id_of_a) == id(&b))
}

/// The path without links.
fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let directory = directory_of(path).canonicalize().ok()?;
        Some(directory.join(path.file_name()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_the_kind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("ours"), "ours").unwrap();
        std::fs::write(path("notes"), "precious").unwrap();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::hard_link(path("ours"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("ours"), path("soft")).unwrap();
        std::os::unix::fs::symlink(path("notes"), path("link")).unwrap();
        std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let check = |name: &str, other: &str| {
            let path = path(name);
            let file = WrittenFile {
                what: "receipt",
                path: &path,
                is_kind: |path| start_of(path) == b"ours",
            };
            let other = directory.path().join(other);
            let checked = check_written(&[file], &[("image", &other)]);
            checked.map_err(|error| error.kind())
        };
        for fine in ["ours", "empty", "new", "soft", "hard", "none/new", "link"] {
            assert_eq!(check(fine, "image"), Ok(()), "{fine}");
        }
        for wrong in ["notes", "socket"] {
            assert_eq!(check(wrong, "image"), Err(ErrorKind::Local), "{wrong}");
        }
        for (name, other) in [
            ("ours", "ours"),
            ("ours", "hard"),
            ("soft", "ours"),
            ("ours", "soft"),
            ("ours", "../ours"),
            ("new", "./new"),
        ] {
            let expected = match other {
                "../ours" => Ok(()),
                _ => Err(ErrorKind::Usage),
            };
            assert_eq!(check(name, other), expected, "{name} {other}");
        }
    }
}
