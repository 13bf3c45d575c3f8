//! Writes a journal beside a transfer, on two threads of its own.
//!
//! The first one writes a record as soon as it is told of something, which takes
//! microseconds: then a process that is killed loses nothing of it. Of an upload that is
//! the record itself, since the endpoint has the chunk. Of a download it says that the
//! chunk is in the file but not on the disk ([`Record::Written`]), if the file is one
//! of which that can be believed later.
//!
//! The second one syncs: many records go to the disk together. Of a chunk that was
//! written to a file it makes the digest, from the file (its page cache), when its record
//! is due: not on the way of the chunk, and not at all of what is complete before. Who
//! writes to the staged file within that time, past its lock and its mode 0600, is not
//! found out by it.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::log::Log;
use super::{Journal, PageCache, Proof, Record};
use crate::digest::ChunkDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{sync_all, sync_data};
use crate::image::modified_ns;
use crate::plan::Span;
use crate::system::FileId;

/// Longest time that a record waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// The same of a file that is written: a GiB at 2 Gbit/s is whole before it, and then no
/// digest is needed. Only a crash loses it: who is told to stop writes what he has.
const WAIT_FILE: Duration = Duration::from_secs(5);
/// Most bytes that waiting records tell of: a second of 10 Gbit/s, about.
const WAITING_BYTES_MAX: u64 = 1 << 30;
/// Chunks shorter than this are small: to move one again costs its round trip rather
/// than its bytes.
const SMALL_BYTES: u64 = 1 << 20;
/// Most small chunks that waiting records tell of.
const WAITING_SMALL_MAX: usize = 64;
/// With so many bytes noted and not kept, chunks come faster than one thread hashes.
const BEHIND_BYTES: u64 = 2 * WAITING_BYTES_MAX;
/// A file is synced when so much was written to it, so that the disk is at work all
/// the time, and little is left at the end. Measured: a GiB takes 0.56 to 0.7 s so, 0.7 to
/// 0.8 s in steps of 128 MiB, and 0.75 to 0.85 s with one sync at the end.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// What is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A record as it is.
    Record(Record),
    /// A chunk that is in the file, in bytes of it; its digest is not known yet.
    Written {
        /// Which one.
        span: Span,
        /// How many [blocks](crate::image::data_blocks) of it hold data.
        blocks: u64,
    },
    /// All chunks are in the file. The last note.
    Whole,
}

impl Note {
    /// Bytes of the chunk that it tells of.
    fn bytes(&self) -> u64 {
        match self {
            Self::Record(Record::Done { len, .. }) => u64::from(*len),
            Self::Written { span, .. } => span.len,
            Self::Record(_) | Self::Whole => 0,
        }
    }

    /// What can be said of a chunk that is in the file and not synced.
    fn unsynced(&self) -> Option<Record> {
        match *self {
            Self::Written { span, blocks } => Some(Record::Written {
                index: span.index,
                // Longer ones there are not: a chunk is a buffer.
                len: u32::try_from(span.len).ok()?,
                proof: Proof::Blocks(blocks),
            }),
            Self::Record(Record::Done {
                index,
                len,
                digest: ChunkDigest::Whole(digest),
            }) => Some(Record::Written {
                index,
                len,
                proof: Proof::Digest(digest),
            }),
            Self::Record(_) | Self::Whole => None,
        }
    }
}

impl From<Record> for Note {
    fn from(record: Record) -> Self {
        Self::Record(record)
    }
}

/// The file that the chunks of a download are written to. It is synced before any
/// record that needs it.
#[derive(Debug)]
pub struct Data {
    /// The file.
    pub file: File,
    /// Its page cache, if what is in there and was not synced may be believed by a later
    /// run.
    pub page_cache: Option<PageCache>,
    /// Chunks that the last run wrote and did not sync, and that are there.
    pub taken: Vec<Note>,
}

/// A journal that was kept to the end of its transfer.
#[derive(Debug)]
pub struct Kept {
    /// The journal.
    pub journal: Journal,
    /// Chunks that it tells of only by calling the file whole.
    pub unrecorded: Vec<Span>,
}

/// How far the keeping is behind the transfer.
#[derive(Clone, Debug, Default)]
pub struct Lag(Arc<AtomicU64>);

impl Lag {
    /// Whether whoever has a chunk in hand should make its digest, too: else more and
    /// more of a transfer would be lost with the process.
    pub fn is_behind(&self) -> bool {
        self.0.load(Ordering::Relaxed) > BEHIND_BYTES
    }
}

/// The end that a transfer talks to.
#[derive(Debug)]
pub struct Keeper {
    notes: Sender<Note>,
    lag: Lag,
    failed: Failed,
    writing: JoinHandle<Option<()>>,
    keeping: JoinHandle<Option<Kept>>,
}

/// Why a journal cannot be kept any more: the first reason.
#[derive(Clone, Debug, Default)]
struct Failed(Arc<Mutex<Option<Error>>>);

impl Failed {
    fn set(&self, error: Error) {
        if let Ok(mut slot) = self.0.lock() {
            slot.get_or_insert(error);
        }
    }

    /// The reason. Several workers may ask at once, and any of them may be the one whose
    /// error is printed, so every one gets the reason.
    fn reason(&self) -> Error {
        let known = self.0.lock().ok().and_then(|mut slot| {
            let copy = slot.as_ref().map(Error::repeated);
            std::mem::replace(&mut *slot, copy)
        });
        known.unwrap_or_else(|| Error::new(ErrorKind::Local, "The journal cannot be kept"))
    }
}

impl Keeper {
    /// Starts to keep a journal: of a download, with the file that chunks are written to.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if there cannot be another thread.
    pub fn start(journal: Journal, data: Option<Data>) -> Result<Self> {
        let (notes, incoming) = channel();
        let (written, to_sync) = channel();
        let failed = Failed::default();
        let lag = Lag::default();
        let (file, before) = data
            .map(|data| (data.file, (data.page_cache, data.taken)))
            .unzip();
        let writing = Writing {
            log: Arc::clone(&journal.log),
            written,
            lag: lag.clone(),
        };
        let keeping = Keeping {
            journal,
            data: file,
            lag: lag.clone(),
        };
        let on_error = failed.clone();
        let writing = thread("journal", move || {
            let run = writing.run(&incoming, before);
            run.map_err(|error| on_error.set(error)).ok()
        })?;
        let on_error = failed.clone();
        let keeping = thread("journal sync", move || {
            let kept = keeping.run(&to_sync);
            kept.map_err(|error| on_error.set(error)).ok()
        })?;
        Ok(Self {
            notes,
            lag,
            failed,
            writing,
            keeping,
        })
    }

    /// Keeps a record, soon.
    ///
    /// # Errors
    /// Why the journal cannot be kept any more.
    pub fn note(&self, note: impl Into<Note>) -> Result<()> {
        let note = note.into();
        self.lag.0.fetch_add(note.bytes(), Ordering::Relaxed);
        self.notes.send(note).map_err(|_| self.failed.reason())
    }

    /// How far it is behind.
    pub fn lag(&self) -> Lag {
        self.lag.clone()
    }

    /// Keeps what is left, and gives the journal back. Blocks.
    ///
    /// # Errors
    /// Why it cannot be kept.
    pub fn finish(self) -> Result<Kept> {
        drop(self.notes);
        // The second thread ends when the first one did.
        let written = self.writing.join().ok().flatten();
        let kept = self.keeping.join().ok().flatten();
        written.and(kept).ok_or_else(|| self.failed.reason())
    }
}

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|cause| Error::new(ErrorKind::Local, "Cannot start a thread").because(cause))
}

/// What the first thread has.
struct Writing {
    log: Arc<Log>,
    /// Where a note goes after that.
    written: Sender<Note>,
    lag: Lag,
}

impl Writing {
    /// Writes what can be said of each note at once. Of a download `before` is the page
    /// cache of its file, and what the last run left there.
    fn run(
        &self,
        notes: &Receiver<Note>,
        before: Option<(Option<PageCache>, Vec<Note>)>,
    ) -> Result<()> {
        let Some((page_cache, taken)) = before else {
            for note in notes {
                if let Note::Record(record) = &note {
                    self.log.write(std::slice::from_ref(record))?;
                }
                if self.written.send(note).is_err() {
                    break;
                }
            }
            return Ok(());
        };
        let is_trusted = self.log.begin_run(page_cache)?;
        for note in taken {
            self.lag.0.fetch_add(note.bytes(), Ordering::Relaxed);
            let _ = self.written.send(note);
        }
        for note in notes {
            if is_trusted && let Some(record) = note.unsynced() {
                self.log.write(&[record])?;
            }
            if self.written.send(note).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// What the second thread has.
struct Keeping {
    journal: Journal,
    data: Option<File>,
    lag: Lag,
}

/// Notes that wait for each other.
#[derive(Default)]
struct Batch {
    notes: Vec<Note>,
    bytes: u64,
    /// Small chunks among them.
    small: usize,
}

impl Batch {
    fn push(&mut self, note: Note) {
        let bytes = note.bytes();
        self.bytes += bytes;
        self.small += usize::from((1..SMALL_BYTES).contains(&bytes));
        self.notes.push(note);
    }

    /// Whether more of the transfer depends on it than should be lost.
    fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX || self.small >= WAITING_SMALL_MAX
    }
}

impl Keeping {
    fn run(mut self, notes: &Receiver<Note>) -> Result<Kept> {
        loop {
            // Nothing waits: neither do we keep the time.
            let Ok(first) = notes.recv() else {
                return Ok(self.end(Vec::new()));
            };
            let wait = match self.data {
                Some(_) => WAIT_FILE,
                None => WAIT,
            };
            let until = Instant::now() + wait;
            let mut batch = Batch::default();
            let (mut synced_bytes, mut next, mut is_over) = (0, Some(first), false);
            while let Some(note) = next.take() {
                if note == Note::Whole {
                    return self.whole(batch);
                }
                batch.push(note);
                if batch.is_full() {
                    break;
                }
                if batch.bytes - synced_bytes >= UNSYNCED_BYTES_MAX {
                    synced_bytes = batch.bytes;
                    self.sync_data()?;
                }
                match notes.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(note) => next = Some(note),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => is_over = true,
                }
            }
            self.keep(&batch)?;
            if is_over {
                return Ok(self.end(Vec::new()));
            }
        }
    }

    fn end(self, unrecorded: Vec<Span>) -> Kept {
        Kept {
            journal: self.journal,
            unrecorded,
        }
    }

    /// First what the records tell of goes to the disk, then the records.
    fn keep(&mut self, batch: &Batch) -> Result<()> {
        for note in &batch.notes {
            match (note, &self.data) {
                (Note::Record(record), Some(_)) => self.journal.append(record),
                (Note::Written { span, .. }, Some(data)) => {
                    self.journal.append_written(data, *span)?;
                }
                // The first thread wrote them.
                (_, None) | (Note::Whole, _) => {}
            }
        }
        self.sync_data()?;
        self.journal.sync()?;
        self.lag.0.fetch_sub(batch.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The file is whole: what was not recorded so far need not be.
    fn whole(mut self, batch: Batch) -> Result<Kept> {
        let mut unrecorded = Vec::new();
        for note in batch.notes {
            match note {
                Note::Record(record) => self.journal.append(&record),
                Note::Written { span, .. } => unrecorded.push(span),
                Note::Whole => {}
            }
        }
        if let Some(data) = &self.data {
            // Its time, too, has to be on the disk: the file is known by it.
            let synced = sync_all(data).and_then(|()| Ok((FileId::of(data)?, data.metadata()?)));
            let (id, metadata) = synced.map_err(|cause| self.cannot_sync(cause))?;
            self.journal.append(&Record::Whole {
                inode: id.inode,
                modified_ns: modified_ns(&metadata),
            });
        }
        self.journal.sync()?;
        Ok(self.end(unrecorded))
    }

    fn sync_data(&self) -> Result<()> {
        match &self.data {
            Some(data) => sync_data(data).map_err(|cause| self.cannot_sync(cause)),
            None => Ok(()),
        }
    }

    /// The kernel tells of a failure once, and then calls clean what it could not write:
    /// what this run wrote and did not sync counts no more, for any later run.
    fn cannot_sync(&self, cause: std::io::Error) -> Error {
        self.journal.log.revoke();
        Error::new(ErrorKind::Local, "Cannot sync the image to the disk").because(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caller_gets_the_reason_of_a_failure() {
        let failed = Failed::default();
        let error = Error::new(ErrorKind::Local, "Cannot sync the image to the disk");
        failed.set(error.because(std::io::Error::from_raw_os_error(5)));
        failed.set(Error::new(ErrorKind::Local, "A later one"));
        for _ in 0..3 {
            let line = failed.reason().chain();
            assert!(
                line.starts_with("Cannot sync the image to the disk: Input/output error"),
                "{line}"
            );
        }
    }
}
