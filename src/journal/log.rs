//! The file of a journal, and the position of the next record.
//!
//! Several tasks write records. Each record is written immediately, so that it survives the death
//! of the process, and reaches the disk with the next sync.
//!
//! The place of a record follows from its number, so a record that was written in part, because the
//! disk was full, cannot shift later ones. After the first error nothing more is written
//! ([`End::broken`]): the next record would be behind a gap, and a replay would call the journal
//! damaged. A sync is not repeated either, because after a failed one the kernel may have dropped
//! the data, and the next would succeed all the same (docs/dev/faults.md, 1.6).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard};

use super::PageCache;
use super::record::{HEADER_BYTES, RECORD_BYTES, Record, VERSION_WITH_UNSYNCED};
use super::replay::Replay;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::sync_data;
use crate::locks::lock;
use crate::system::FileAt;
use openhosting_base::advice;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// A random number in the header that every record is encoded with, so that records of an older
    /// journal in the same blocks of the disk are invalid.
    pub(super) session: [u8; 16],
    pub(super) version: u32,
    /// Bytes of the chunks that were noted and are not durable.
    pub(super) waiting_bytes: AtomicU64,
    end: Mutex<End>,
}

/// The end of the journal.
#[derive(Debug, Default)]
struct End {
    records: u64,
    /// How many of them are on the disk, or need not be.
    synced: u64,
    /// The number of the last [`Record::Run`], and its content.
    run: Option<(u64, Option<PageCache>)>,
    /// The reason of the first failed write or sync, after which the content of the disk is unknown.
    broken: Option<String>,
}

/// The offset of a record.
fn place_of(number: u64) -> u64 {
    (HEADER_BYTES as u64) + number * (RECORD_BYTES as u64)
}

impl Log {
    /// The log of a new journal.
    pub(super) fn new(file: File, path: &Path, session: [u8; 16], version: u32) -> Self {
        Self {
            file,
            path: path.to_owned(),
            session,
            version,
            waiting_bytes: AtomicU64::new(0),
            end: Mutex::default(),
        }
    }

    /// The log of a journal that was read, up to its last valid record.
    pub(super) fn after(replay: &Replay, file: File, path: &Path) -> Self {
        let end = End {
            records: replay.records,
            synced: replay.records,
            run: replay.state.run,
            broken: None,
        };
        Self {
            end: Mutex::new(end),
            ..Self::new(file, path, replay.header.session, replay.version)
        }
    }

    fn end(&self) -> MutexGuard<'_, End> {
        lock(&self.end)
    }

    pub(super) fn records(&self) -> u64 {
        self.end().records
    }

    /// Writes records. They survive the process, and after the next sync a loss of power.
    pub(super) fn write(&self, records: &[Record]) -> Result<()> {
        let mut end = self.end();
        self.write_at_end(&mut end, records)
    }

    fn write_at_end(&self, end: &mut End, records: &[Record]) -> Result<()> {
        if let Some(cause) = &end.broken {
            return Err(cannot(&self.path, "write").because(cause.clone()));
        }
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        let mut run = end.run;
        for (number, record) in (end.records..).zip(records) {
            bytes.extend_from_slice(&record.encode(number, &self.session));
            if let Record::Run(page_cache) = record {
                run = Some((number, *page_cache));
            }
        }
        let written = self.put(&bytes, end.records);
        end.broken = written.as_ref().err().map(ToString::to_string);
        written.map_err(|cause| self.full(cause))?;
        end.records += records.len() as u64;
        end.run = run;
        Ok(())
    }

    /// Writes bytes to the place of a record.
    fn put(&self, bytes: &[u8], number: u64) -> std::io::Result<()> {
        #[cfg(test)]
        if crate::simulator::is_on() {
            return crate::simulator::write(&self.file, bytes, place_of(number));
        }
        self.file.write_all_at(bytes, place_of(number))
    }

    /// Writes records, and syncs them and all before them.
    pub(super) fn record(&self, records: &[Record]) -> Result<()> {
        self.write(records)?;
        self.sync()
    }

    /// Syncs all records, so that they survive a loss of power.
    fn sync(&self) -> Result<()> {
        let records = {
            let end = self.end();
            if let Some(cause) = &end.broken {
                return Err(cannot(&self.path, "write").because(cause.clone()));
            }
            if end.synced == end.records {
                return Ok(());
            }
            end.records
        };
        // The lock is not held here: others may write during the sync.
        let synced = sync_data(&self.file);
        let mut end = self.end();
        if let Err(cause) = &synced {
            end.broken.get_or_insert(cause.to_string());
        }
        synced.map_err(|cause| self.full(cause))?;
        let is_all = end.records == records;
        if self.has_unsynced() {
            self.write_at_end(&mut end, &[Record::Synced { records }])?;
        }
        end.synced = match is_all {
            // The record that says so need not be synced: a crash that loses it loses nothing else.
            true => end.records,
            false => records,
        };
        Ok(())
    }

    /// Whether the version of this journal has records for chunks that are not synced.
    fn has_unsynced(&self) -> bool {
        self.version >= VERSION_WITH_UNSYNCED
    }

    /// From now on, records of chunks that are not synced refer to this page cache. Those of the
    /// last run stay valid if it had the same one. Returns whether such records may be written.
    pub(super) fn begin_run(&self, page_cache: Option<PageCache>) -> Result<bool> {
        if !self.has_unsynced() {
            return Ok(false);
        }
        let mut end = self.end();
        if end.run.and_then(|(_, last)| last) != page_cache {
            self.write_at_end(&mut end, &[Record::Run(page_cache)])?;
        }
        Ok(page_cache.is_some())
    }

    /// Revokes all records of chunks that are not synced: a sync failed, so the kernel may have
    /// dropped data from memory that never reached the disk.
    pub(super) fn revoke(&self) {
        let mut end = self.end();
        let Some((run, Some(_))) = end.run else {
            return;
        };
        let write = |number| {
            let record = Record::Run(None).encode(number, &self.session);
            self.put(&record, number)
        };
        let revoked = match write(end.records) {
            Ok(()) => {
                end.records += 1;
                Ok(())
            }
            // If the disk is full, the record is written over that of the start of this run.
            Err(_) => write(run),
        };
        // Synced, because otherwise the old record would still be on the disk if the kernel never
        // gets to write this one.
        if let Err(error) = revoked.and_then(|()| sync_data(&self.file)) {
            tracing::warn!(%error, "the journal cannot be corrected");
        }
        end.run = None;
    }

    fn full(&self, cause: std::io::Error) -> crate::error::Error {
        cannot(&self.path, "write").because(cause).hint_to(advice![
            "What was transferred is safe; make room or put the journal elsewhere with ",
            Remedy::JournalElsewhere,
            ", then run the same command again",
        ])
    }
}

/// The error of an operation on a journal.
pub(super) fn cannot(path: &Path, what: &str) -> Error {
    let what = format!("Cannot {what} the journal {}", path.display());
    Error::new(ErrorKind::Local, what)
}
