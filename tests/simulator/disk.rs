//! The disk of this machine: real files, whose bytes reach it only with a sync. What was not synced
//! when power is lost, or when a sync fails, is then lost, torn or there, by chance.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Identifies a file. Its number alone may be used again.
type Key = (u64, SystemTime);

/// What is on the disk of a file.
#[derive(Debug, Default)]
struct Synced {
    bytes: Vec<u8>,
    /// What the program saw when a sync failed. What has not changed since may be only in memory,
    /// and is not written again (docs/dev/faults.md, 1.6).
    failed: Option<Vec<u8>>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<Key, Synced>,
    /// How many of a thousand syncs fail.
    pub eio_per_mille: u32,
    /// How often power was lost.
    pub boots: u8,
    /// The file of a download, as long as it is staged.
    pub part: PathBuf,
}

fn key(file: &File) -> Key {
    let metadata = file.metadata().unwrap();
    let created = metadata.created().unwrap_or(SystemTime::UNIX_EPOCH);
    (metadata.ino(), created)
}

/// What the program sees in a file.
pub fn content(file: &File) -> Vec<u8> {
    let len = file.metadata().unwrap().len() as usize;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Opens a file that is there.
fn open(path: &Path) -> Option<File> {
    OpenOptions::new().read(true).write(true).open(path).ok()
}

/// Writes all of a file, unless it is the same already.
fn overwrite(file: &File, bytes: &[u8]) {
    if content(file) != bytes {
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    }
}

impl Synced {
    /// What would be on the disk if everything was written that is still to be written.
    fn with_all_of(&self, seen: &[u8]) -> Vec<u8> {
        let mut bytes = seen.to_vec();
        if let Some(failed) = &self.failed {
            let both = bytes.iter_mut().zip(failed).enumerate();
            for (at, (byte, failed)) in both {
                if byte == failed {
                    *byte = self.bytes.get(at).copied().unwrap_or(0);
                }
            }
        }
        bytes
    }

    /// Writes some of what is still to be written: all or nothing, the first part of it, or pieces
    /// of any length in any order.
    fn write_some_of(&mut self, seen: &[u8], rng: &mut fastrand::Rng) {
        let new = self.with_all_of(seen);
        let differs = |at: &usize| self.bytes.get(*at) != new.get(*at);
        let longer = self.bytes.len().max(new.len());
        let Some(first) = (0..longer).find(differs) else {
            return;
        };
        let len = match rng.u8(..3) {
            0 => self.bytes.len(),
            1 => new.len(),
            _ => {
                let (a, b) = (self.bytes.len(), new.len());
                rng.usize(a.min(b)..=a.max(b))
            }
        };
        let how = rng.u8(..4);
        let longest = [512, 64, 16][rng.usize(..3)];
        let cut = rng.usize(first..=longer);
        self.bytes.resize(len, 0);
        let mut at = first;
        while at < len.min(new.len()) {
            let end = (at + rng.usize(1..=longest)).min(len).min(new.len());
            let end = if at < cut { end.min(cut) } else { end };
            let is_written = match how {
                0 => false,
                1 => true,
                2 => at < cut,
                _ => rng.bool(),
            };
            if is_written {
                self.bytes[at..end].copy_from_slice(&new[at..end]);
            }
            at = end;
        }
    }
}

impl Disk {
    /// Syncs a file. Even a failed sync marks the pages as clean, so what is on the disk afterwards
    /// depends on chance.
    pub fn sync(&mut self, file: &File, fails: bool, rng: &mut fastrand::Rng) -> io::Result<()> {
        let seen = content(file);
        let synced = self.files.entry(key(file)).or_default();
        if fails {
            synced.write_some_of(&seen, rng);
            synced.failed = Some(seen);
            return Err(io::Error::from_raw_os_error(5));
        }
        // The size is written again, even if an earlier sync failed.
        synced.bytes = synced.with_all_of(&seen);
        Ok(())
    }

    /// Forgets all files but these: others are gone, and new ones may have their numbers.
    pub fn keep(&mut self, paths: &[PathBuf]) {
        let there: Vec<Key> = paths
            .iter()
            .filter_map(|path| open(path))
            .map(|file| key(&file))
            .collect();
        self.files.retain(|key, _| there.contains(key));
    }

    /// The kernel reuses the memory, so what could not be written is lost.
    pub fn evict(&mut self, path: &Path) {
        if let Some(file) = open(path)
            && let Some(synced) = self.files.get_mut(&key(&file))
        {
            overwrite(&file, &synced.with_all_of(&content(&file)));
            synced.failed = None;
        }
    }

    /// These bytes of the staged file were written, perhaps as they were.
    pub fn written(&mut self, bytes: Range<u64>) {
        if let Some(file) = open(&self.part)
            && let Some(synced) = self.files.get_mut(&key(&file))
            && let Some(failed) = &mut synced.failed
        {
            let seen = content(&file);
            for at in bytes.start as usize..bytes.end as usize {
                failed[at] = !seen[at];
            }
        }
    }

    /// Power is lost, with what this file had only in memory.
    pub fn power_loss(&mut self, path: &Path, rng: &mut fastrand::Rng) {
        let Some(file) = open(path) else {
            return;
        };
        let synced = self.files.entry(key(&file)).or_default();
        synced.write_some_of(&content(&file), rng);
        synced.failed = None;
        overwrite(&file, &synced.bytes);
    }
}
