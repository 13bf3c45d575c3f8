//! Permissions of files: FAT has none, and elsewhere a file that we create may belong
//! to somebody else (CIFS, NFS with squashed users, bind mounts with other users).

use std::fs::File;
use std::path::Path;

use openhosting_system::{Rights, set_mode, umask};

use super::{Weakness, is_plain};

/// The bits of a mode that are about others than the owner.
const OTHERS: u32 = 0o077;
/// Those that let others write.
pub const OTHERS_WRITE: u32 = 0o022;
/// Those that let the group write, or anybody else use the file.
const MORE_THAN_GROUP_READS: u32 = 0o027;

/// How far others than its owner may use a file that holds a secret, by its mode. This is
/// the only place that says which modes are too open for one; what an owner may be asked to
/// change depends on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only the owner can use it.
    Private,
    /// The group can read it, as in Debian's ssl-cert and in volumes of Kubernetes.
    Group,
    /// The group can write to it, or everybody can use it.
    Open,
}

impl Exposure {
    /// Of a file with this mode.
    pub fn of(mode: u32) -> Self {
        if mode & MORE_THAN_GROUP_READS != 0 {
            Self::Open
        } else if mode & OTHERS != 0 {
            Self::Group
        } else {
            Self::Private
        }
    }
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
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

/// Whether others can read a file that was [created](super::create_new) for its owner
/// alone: then the file system has modes of its own.
pub fn exposed(file: &File, path: &Path) -> Option<Weakness> {
    let is_exposed = file
        .metadata()
        .is_ok_and(|file| Rights::of(&file).mode & OTHERS != 0);
    is_exposed.then(|| Weakness::Exposed(path.to_owned()))
}

/// When a private file gets its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before it gets its name: nobody but its owner may write to it yet, since a run that
    /// is killed now leaves it to the next one, which has to believe its bytes.
    Read,
    /// After it got its name.
    All,
}

/// Gives a private file the mode that the umask leaves to new files. Where that
/// fails, the file keeps the mode it has.
pub fn give_mode(file: &File, path: &Path, step: Step) -> Option<Weakness> {
    let mask = umask(is_plain());
    let wanted = match step {
        Step::Read => Access::Usual.mode() & !mask & !OTHERS_WRITE,
        Step::All => Access::Usual.mode() & !mask,
    };
    let is_right = |file: &File| {
        let metadata = file.metadata();
        metadata.is_ok_and(|file| Rights::of(&file).mode & 0o777 == wanted)
    };
    if is_right(file) {
        return None;
    }
    let is_done = !is_plain() && set_mode(file, wanted).is_ok();
    // A file system with modes of its own said so when the file was created.
    let is_known = exposed(file, path).is_some();
    (!is_done && !is_known).then(|| Weakness::FixedMode(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::create_new;
    use super::*;

    #[test]
    fn a_secret_is_exposed_by_all_but_its_owner_s_bits() {
        let of = Exposure::of;
        assert!([0o600, 0o400, 0o700, 0o100_600].map(of) == [Exposure::Private; 4]);
        assert!([0o640, 0o440, 0o610].map(of) == [Exposure::Group; 3]);
        assert!([0o620, 0o604, 0o602, 0o601, 0o666].map(of) == [Exposure::Open; 5]);
    }

    #[test]
    fn a_file_that_others_can_read_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = create_new(&path, Access::Private).unwrap();
        set_mode(&file, 0o640).unwrap();
        assert_eq!(exposed(&file, &path), Some(Weakness::Exposed(path)));
    }
}
