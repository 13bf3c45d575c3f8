//! Permissions of files. FAT has none, and on other file systems a file that we create may belong
//! to another user (CIFS, NFS with squashed users, bind mounts with mapped users).

use std::fs::File;
use std::path::Path;

use openhosting_system::{Rights, set_mode, umask};

use super::{Weakness, is_plain};

/// The mode bits for users other than the owner.
const OTHERS: u32 = 0o077;
/// The mode bits that let other users write.
pub const OTHERS_WRITE: u32 = 0o022;
/// The mode bits that let the group write, or anybody else use the file.
const MORE_THAN_GROUP_READS: u32 = 0o027;

/// How far users other than the owner can use a file that holds a secret, according to its mode.
/// This is the only place that decides which modes are too open; what to advise the owner depends
/// on the file.
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
    /// The exposure of a file with this mode.
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
    /// Everybody whom the user's umask allows.
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

/// Reports whether others can read a file that was [created](super::create_new) for its owner only,
/// because the file system ignores modes.
pub fn exposed(file: &File, path: &Path) -> Option<Weakness> {
    let is_exposed = file
        .metadata()
        .is_ok_and(|file| Rights::of(&file).mode & OTHERS != 0);
    is_exposed.then(|| Weakness::Exposed(path.to_owned()))
}

/// When a private file gets its final mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Before it gets its name. Only the owner may write to it yet: if the run is killed now, the
    /// next run finds the file and has to trust its bytes.
    Read,
    /// After it got its name.
    All,
}

/// Gives a private file the mode that the umask allows for new files. If that fails, the file keeps
/// its mode.
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
    // If the file system ignores modes, that was reported when the file was created.
    let is_known = exposed(file, path).is_some();
    (!is_done && !is_known).then(|| Weakness::FixedMode(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::create_new;
    use super::*;

    #[test]
    fn mode_bits_of_others_expose_a_secret() {
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
