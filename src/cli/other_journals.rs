//! Finds journals of other transfers in a directory: they say which drives are incomplete, and the
//! user may be about to start a transfer that was interrupted under another name.

use std::ffi::OsStr;
use std::fs::read_dir;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::drive::DriveId;
use crate::filesystem::open_to_read;
use crate::journal::{Direction, EXTENSION, HEADER_BYTES, Header, RECORD_BYTES, replay};
use crate::system::is_locked;

/// Maximum number of names in a directory to look at, and of journals to open, the most recently
/// written ones. They bound the time before a command starts. A journal that is missed is only not
/// mentioned.
const NAMES_MAX: usize = 10_000;
const JOURNALS_MAX: usize = 64;
/// Bytes to read of each: the drive is among the first records.
const START_BYTES: usize = HEADER_BYTES + 64 * RECORD_BYTES;

/// A transfer that runs, or that did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other {
    /// Its journal.
    pub(super) path: PathBuf,
    /// What it is about.
    pub(super) header: Header,
    /// Its drive.
    pub(super) drive: DriveId,
    /// Whether it created the drive.
    pub(super) is_ours: bool,
    /// Whether a process works on it now.
    pub(super) is_running: bool,
}

/// The journals in `directory` that are about an upload or download and whose names without `.ohj`
/// are `wanted`, the newest first. Omits those that cannot be read, or that may belong to another
/// user. Blocks; the amount of reading is bounded.
pub(super) fn others<'a>(
    directory: &Path,
    direction: Direction,
    wanted: impl Fn(&OsStr) -> bool + 'a,
) -> impl Iterator<Item = Other> + 'a {
    let entries = read_dir(directory).into_iter().flatten().flatten();
    let mut journals: Vec<(SystemTime, PathBuf)> = entries
        .take(NAMES_MAX)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == EXTENSION))
        .filter(|path| path.file_stem().is_some_and(&wanted))
        .filter_map(|path| Some((path.symlink_metadata().ok()?.modified().ok()?, path)))
        .collect();
    journals.sort_by(|a, b| b.cmp(a));
    journals.truncate(JOURNALS_MAX);
    let all = journals.into_iter().filter_map(|(_, path)| read(path));
    all.filter(move |other| other.header.direction == direction)
}

fn read(path: PathBuf) -> Option<Other> {
    let file = open_to_read(&path).ok()?;
    let is_running = is_locked(&file);
    let replay = replay(file.take(START_BYTES as u64), |_, _, _| {}).ok()?;
    let (drive, is_ours) = replay.state.drive?;
    Some(Other {
        path,
        header: replay.header,
        drive,
        is_ours,
        is_running,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::journal::{Journal, Record};

    fn header_of(direction: Direction) -> Header {
        Header {
            direction,
            session: [7; 16],
            token: [9; 16],
            size: 1 << 20,
            chunk: 1 << 16,
            first: 0,
            source: None,
            endpoint: "https://api.example.com/".to_owned(),
            user: "user".to_owned(),
        }
    }

    #[test]
    fn the_newest_journals_are_listed_first_and_running_ones_marked() {
        let directory = tempfile::tempdir().unwrap();
        let create = |name: &str, direction, at: u64| {
            let path = directory.path().join(name);
            let journal = Journal::create(&path, &header_of(direction)).unwrap();
            let drive = Record::Drive {
                id: DriveId::random(),
                is_ours: true,
            };
            journal.record(&[drive]).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at);
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(at).unwrap();
            journal
        };
        for i in 0..JOURNALS_MAX as u64 + 3 {
            drop(create(&format!("{i}.ohj"), Direction::Upload, i));
        }
        drop(create("down.ohj", Direction::Download, 1000));
        drop(create("unwanted.ohj", Direction::Upload, 1000));
        let running = create("running.ohj", Direction::Upload, 1000);
        std::fs::write(directory.path().join("junk.ohj"), "junk").unwrap();
        let found = || {
            let wanted = |stem: &OsStr| stem != "unwanted";
            let all = others(directory.path(), Direction::Upload, wanted);
            let names = all.map(|other| {
                let name = other.path.file_stem().unwrap().to_owned();
                (name, other.is_running)
            });
            names.collect::<Vec<_>>()
        };
        let newest = JOURNALS_MAX + 2;
        let idle = |number: usize| (OsString::from(number.to_string()), false);
        let first = [("running".into(), true), idle(newest), idle(newest - 1)];
        assert_eq!(found()[..3], first);
        assert!(found().len() < JOURNALS_MAX);
        drop(running);
        assert_eq!(found()[0], ("running".into(), false));
        assert_eq!(
            others(Path::new("/nosuch"), Direction::Upload, |_| true).count(),
            0
        );
    }
}
