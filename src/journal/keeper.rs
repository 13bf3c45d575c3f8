//! Writes the journal of a transfer, in two tasks.
//!
//! The first task writes a record as soon as it receives a note, which takes microseconds, so
//! that a killed process loses nothing. For an upload, this is the final record ([`Record::Done`]),
//! because the endpoint has the chunk. For a download, the chunk is in the file but not on the disk
//! yet. The task then writes [`Record::Written`], but only if a later run can find out whether
//! the page cache still held the chunk's bytes.
//!
//! The second task makes the records durable, many at a time. For each batch of a download, it
//! computes the digests of the chunks by reading the file (from the page cache), syncs the file,
//! and only then writes and syncs the final records. The order ensures that no record on the disk
//! refers to data that are not. The digests are computed this late so that they do not delay the
//! transfer, and not at all if the whole file is complete before: then one record covers it. If
//! another process changed the staged file between the write and this read, ignoring its lock and
//! its mode 0600, the digest would not reveal it.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_channel::{Receiver, Sender, unbounded};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::log::Log;
use super::{PageCache, Proof, Record};
use crate::blocking::blocking;
use crate::digest::ChunkDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{digest_of, sync_all, sync_data};
use crate::image::modified_ns;
use crate::locks::lock;
use crate::plan::Span;
use crate::system::FileId;

/// How long a record waits for others before it is synced. A sync of many records costs as much as
/// of one. A power loss costs the repetition of the chunks whose records wait (docs/dev/design.md).
const WAIT: Duration = Duration::from_secs(1);
/// How long a record of a download waits for others, because its file has to be synced too. In this
/// time, 1 GiB is complete at 2 Gbit/s, and then needs no digests. Waiting records are lost only in
/// a crash of the machine: a clean stop flushes them.
const WAIT_FILE: Duration = Duration::from_secs(5);
/// Maximum bytes of the chunks of waiting records: about a second at 10 Gbit/s.
const WAITING_BYTES_MAX: u64 = 1 << 30;
/// Shorter chunks count as small: the cost of transferring one again is the round trip rather than
/// the bytes.
const SMALL_BYTES: u64 = 1 << 20;
/// Maximum number of small chunks with waiting records. It is the default maximum of requests in
/// flight, so repeating them takes about one round trip.
const WAITING_SMALL_MAX: usize = 64;
/// If more bytes than this are noted and not recorded yet, chunks arrive faster than they are
/// hashed here.
const BEHIND_BYTES: u64 = 2 * WAITING_BYTES_MAX;
/// The file is synced each time this many bytes were written to it, so that the disk is busy all
/// the time and little is left at the end. Measured: 1 GiB takes 0.56 to 0.7 s this way, 0.7 to 0.8
/// s in steps of 128 MiB, and 0.75 to 0.85 s with a single sync at the end.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// Something to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A complete record.
    Record(Record),
    /// A chunk that is in the file, at this span of the file; its digest is not known yet.
    Written {
        /// The position of the chunk.
        span: Span,
        /// Number of its [blocks](crate::image::data_blocks) with data.
        blocks: u64,
    },
    /// All chunks are in the file. This is the last note.
    Whole,
}

impl Note {
    /// Bytes of the chunk that the note is about.
    fn bytes(&self) -> u64 {
        match self {
            Self::Record(Record::Done { len, .. }) => u64::from(*len),
            Self::Written { span, .. } => span.len,
            Self::Record(_) | Self::Whole => 0,
        }
    }

    /// The record for a chunk that is in the file but not synced.
    fn unsynced(&self) -> Option<Record> {
        match *self {
            Self::Written { span, blocks } => Some(Record::Written {
                index: span.index,
                // A chunk fits a buffer, so its length always fits.
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

/// The file to which a download writes its chunks. It is synced before every record that depends on
/// it.
#[derive(Debug)]
pub(crate) struct Data {
    /// The file.
    pub file: File,
    /// Its page cache, if a later run can rely on what it holds without a sync.
    pub page_cache: Option<PageCache>,
    /// Intact chunks that the last run wrote and did not sync.
    pub accepted: Vec<Note>,
}

/// The tasks of a journal, while a transfer runs.
#[derive(Debug)]
pub(super) struct Keeper {
    notes: Sender<Note>,
    failed: Failed,
    writing: JoinHandle<Option<()>>,
    keeping: JoinHandle<Option<Vec<Span>>>,
}

/// The first reason why the journal cannot be written any more.
#[derive(Clone, Debug, Default)]
struct Failed(Arc<Mutex<Option<Error>>>);

impl Failed {
    /// Does work with what arrives, and stores the reason if it fails. The channel closes only after
    /// that, so whoever finds it closed finds the reason.
    async fn keep<T, M, F>(
        self,
        arriving: Receiver<M>,
        work: impl FnOnce(Receiver<M>) -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T>>,
    {
        let done = work(arriving.clone()).await;
        let done = done.map_err(|error| self.set(error)).ok();
        drop(arriving);
        done
    }

    fn set(&self, error: Error) {
        lock(&self.0).get_or_insert(error);
    }

    /// Returns a copy of the reason. Several workers may ask at the same time, and the error of any
    /// of them may be the one that is printed, so each of them gets the reason.
    fn reason(&self) -> Error {
        let mut slot = lock(&self.0);
        let copy = slot.as_ref().map(Error::repeated);
        std::mem::replace(&mut *slot, copy)
            .unwrap_or_else(|| Error::new(ErrorKind::Local, "The journal cannot be kept"))
    }
}

impl Keeper {
    /// See [`Journal::begin`](super::Journal::begin).
    pub(super) fn start(log: &Arc<Log>, data: Option<Data>) -> Self {
        let (notes, incoming) = unbounded();
        let (written, to_sync) = unbounded();
        let failed = Failed::default();
        let (file, before) = data
            .map(|data| (data.file, (data.page_cache, data.accepted)))
            .unzip();
        let writing = Writing {
            log: Arc::clone(log),
            written,
        };
        let keeping = Keeping {
            log: Arc::clone(log),
            data: file,
        };
        Self {
            notes,
            writing: tokio::spawn(
                { failed.clone() }.keep(incoming, |incoming| writing.run(incoming, before)),
            ),
            keeping: tokio::spawn({ failed.clone() }.keep(to_sync, |to_sync| keeping.run(to_sync))),
            failed,
        }
    }

    /// See [`Journal::note`](super::Journal::note).
    pub(super) fn note(&self, note: Note) -> Result<()> {
        self.notes.try_send(note).map_err(|_| self.failed.reason())
    }

    /// See [`Journal::finish`](super::Journal::finish).
    pub(super) async fn finish(self) -> Result<Vec<Span>> {
        drop(self.notes);
        // The second task ends after the first, which closes the channel between them.
        let written = self.writing.await.ok().flatten();
        let kept = self.keeping.await.ok().flatten();
        written.and(kept).ok_or_else(|| self.failed.reason())
    }
}

impl Log {
    /// Counts a note that waits to become durable.
    pub(super) fn waits(&self, note: &Note) {
        self.waiting_bytes
            .fetch_add(note.bytes(), Ordering::Relaxed);
    }

    /// Whether notes arrive faster than they become durable.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) > BEHIND_BYTES
    }
}

/// The record of a chunk in `data`, from which its digest is computed.
pub(super) fn done(data: &File, span: Span) -> Result<Option<Record>> {
    let digest = digest_of(data, span.offset..span.end()).map_err(|cause| {
        Error::new(ErrorKind::Local, "Cannot read the image for its journal").because(cause)
    })?;
    // A chunk fits a buffer, so its length always fits.
    Ok(u32::try_from(span.len).ok().map(|len| Record::Done {
        index: span.index,
        len,
        digest: digest.into(),
    }))
}

/// The state of the first task.
struct Writing {
    log: Arc<Log>,
    /// Passes each note to the second task.
    written: Sender<Note>,
}

impl Writing {
    /// Writes the immediate record of each note. For a download, `before` is the page cache of its
    /// file, and what the last run left there.
    async fn run(
        self,
        notes: Receiver<Note>,
        before: Option<(Option<PageCache>, Vec<Note>)>,
    ) -> Result<()> {
        let is_file = before.is_some();
        let mut is_trusted = false;
        if let Some((page_cache, accepted)) = before {
            let log = Arc::clone(&self.log);
            is_trusted = blocking(move || log.begin_run(page_cache)).await?;
            for note in accepted {
                self.log.waits(&note);
                let _ = self.written.try_send(note);
            }
        }
        while let Ok(first) = notes.recv().await {
            // All that wait are written at once.
            let waiting = std::iter::from_fn(|| notes.try_recv().ok());
            let noted: Vec<Note> = std::iter::once(first).chain(waiting).collect();
            let records = noted.iter().filter_map(|note| match note {
                note if is_file => note.unsynced().filter(|_| is_trusted),
                Note::Record(record) => Some(record.clone()),
                Note::Written { .. } | Note::Whole => None,
            });
            let (log, records) = (Arc::clone(&self.log), records.collect::<Vec<_>>());
            if !records.is_empty() {
                blocking(move || log.write(&records)).await?;
            }
            for note in noted {
                if self.written.try_send(note).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The state of the second task.
struct Keeping {
    log: Arc<Log>,
    data: Option<File>,
}

/// Notes that are recorded together.
#[derive(Default)]
struct Batch {
    notes: Vec<Note>,
    bytes: u64,
    /// Number of small chunks among them.
    small: usize,
}

impl Batch {
    fn push(&mut self, note: Note) {
        let bytes = note.bytes();
        self.bytes += bytes;
        self.small += usize::from((1..SMALL_BYTES).contains(&bytes));
        self.notes.push(note);
    }

    /// Whether losing this batch in a crash would cost too much.
    fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX || self.small >= WAITING_SMALL_MAX
    }
}

impl Keeping {
    /// Returns the chunks that are covered only by calling the file complete.
    async fn run(mut self, notes: Receiver<Note>) -> Result<Vec<Span>> {
        loop {
            // No record is waiting, so there is no time limit.
            let Ok(first) = notes.recv().await else {
                return Ok(Vec::new());
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
                    return blocking(move || self.whole(batch)).await;
                }
                batch.push(note);
                if batch.is_full() {
                    break;
                }
                if batch.bytes - synced_bytes >= UNSYNCED_BYTES_MAX {
                    synced_bytes = batch.bytes;
                    self = blocking(move || self.sync_data().map(|()| self)).await?;
                }
                match timeout_at(until, notes.recv()).await {
                    Ok(Ok(note)) => next = Some(note),
                    Ok(Err(_)) => is_over = true,
                    Err(_) => {}
                }
            }
            self = blocking(move || self.keep(&batch).map(|()| self)).await?;
            if is_over {
                return Ok(Vec::new());
            }
        }
    }

    /// Syncs first the data and then the records that depend on them.
    fn keep(&self, batch: &Batch) -> Result<()> {
        let mut records = Vec::new();
        for note in &batch.notes {
            match (note, &self.data) {
                (Note::Record(record), Some(_)) => records.push(record.clone()),
                (Note::Written { span, .. }, Some(data)) => records.extend(done(data, *span)?),
                // The first task has already written these.
                (_, None) | (Note::Whole, _) => {}
            }
        }
        self.sync_data()?;
        self.log.record(&records)?;
        self.log
            .waiting_bytes
            .fetch_sub(batch.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Handles the last note: the file is complete, so chunks without a record need none.
    fn whole(self, batch: Batch) -> Result<Vec<Span>> {
        let (mut records, mut unrecorded) = (Vec::new(), Vec::new());
        for note in batch.notes {
            match note {
                Note::Record(record) => records.push(record),
                Note::Written { span, .. } => unrecorded.push(span),
                Note::Whole => {}
            }
        }
        if let Some(data) = &self.data {
            // With `sync_all`, the time of the last write is on the disk as well, by which the file
            // is recognised.
            let synced = sync_all(data).and_then(|()| Ok((FileId::of(data)?, data.metadata()?)));
            let (id, metadata) = synced.map_err(|cause| self.cannot_sync(cause))?;
            records.push(Record::Whole {
                inode: id.inode,
                modified_ns: modified_ns(&metadata),
            });
        }
        self.log.record(&records)?;
        Ok(unrecorded)
    }

    fn sync_data(&self) -> Result<()> {
        match &self.data {
            Some(data) => sync_data(data).map_err(|cause| self.cannot_sync(cause)),
            None => Ok(()),
        }
    }

    /// Handles a failed sync. The kernel reports such a failure only once, and then treats the
    /// pages that it could not write as clean. So what this run wrote and did not sync must never
    /// count again, in any later run.
    fn cannot_sync(&self, cause: std::io::Error) -> Error {
        self.log.revoke();
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

    #[test]
    fn a_batch_is_full_before_its_loss_would_cost_much() {
        // The length of a chunk, and how many of them fill a batch: a gibibyte, or 64 small ones.
        let full = [
            (1 << 30, 1),
            (1 << 29, 2),
            (1 << 20, 1024),
            ((1 << 20) - 1, 64),
            (1, 64),
        ];
        for (len, count) in full {
            let span = Span {
                index: 0,
                offset: 0,
                len: len.into(),
            };
            let digest = ChunkDigest::of(&[]);
            let notes = [
                Note::Written { span, blocks: 1 },
                Note::Record(Record::Done {
                    index: 0,
                    len,
                    digest,
                }),
            ];
            for note in notes {
                let mut batch = Batch::default();
                let pushed = (1..=2000).find(|_| {
                    batch.push(note.clone());
                    batch.is_full()
                });
                assert_eq!(pushed, Some(count), "{note:?}");
            }
        }
        // A record without a chunk costs nothing.
        let mut batch = Batch::default();
        let holes = Note::Record(Record::Holes { first: 0, count: 9 });
        (0..2000).for_each(|_| batch.push(holes.clone()));
        assert!(!batch.is_full());
    }
}
