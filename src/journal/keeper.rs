//! Writes a journal beside a transfer, on a thread of its own: many records go
//! to the disk with one sync.

use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Journal, Record};
use crate::error::{Error, ErrorKind, Result};

/// Longest time that a record waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// Most records that wait.
const RECORDS: usize = 64;

/// What is to be kept.
pub type Note = Record;

/// The end that a transfer talks to.
#[derive(Debug)]
pub struct Keeper {
    notes: Sender<Note>,
    failed: Arc<Mutex<Option<Error>>>,
    thread: JoinHandle<Option<Journal>>,
}

impl Keeper {
    /// Starts to keep a journal. With `data`, the file that chunks are written
    /// to: it is synced before any record about it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if there cannot be another thread.
    pub fn start(journal: Journal, data: Option<File>) -> Result<Self> {
        let (notes, incoming) = channel();
        let failed = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&failed);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || match keep(journal, data.as_ref(), &incoming) {
                Ok(journal) => Some(journal),
                Err(error) => {
                    if let Ok(mut slot) = slot.lock() {
                        *slot = Some(error);
                    }
                    None
                }
            })
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)
            })?;
        Ok(Self {
            notes,
            failed,
            thread,
        })
    }

    /// Keeps a record, soon.
    ///
    /// # Errors
    /// Why the journal cannot be kept any more.
    pub fn note(&self, note: Note) -> Result<()> {
        self.notes.send(note).map_err(|_| self.failure())
    }

    /// Keeps what is left, and gives the journal back. Blocks.
    ///
    /// # Errors
    /// Why it cannot be kept.
    pub fn finish(self) -> Result<Journal> {
        drop(self.notes);
        let failed = self.failed;
        self.thread
            .join()
            .ok()
            .flatten()
            .ok_or_else(|| take(&failed))
    }

    fn failure(&self) -> Error {
        take(&self.failed)
    }
}

fn take(failed: &Mutex<Option<Error>>) -> Error {
    let known = failed.lock().ok().and_then(|mut slot| slot.take());
    known.unwrap_or_else(|| Error::new(ErrorKind::Local, "The journal cannot be kept"))
}

fn keep(mut journal: Journal, data: Option<&File>, notes: &Receiver<Note>) -> Result<Journal> {
    loop {
        // Nothing waits: neither do we keep the time.
        let Ok(first) = notes.recv() else {
            return Ok(journal);
        };
        let mut batch = vec![first];
        let until = Instant::now() + WAIT;
        let mut is_over = false;
        while batch.len() < RECORDS {
            match notes.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(note) => batch.push(note),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    is_over = true;
                    break;
                }
            }
        }
        // First what the records tell of, then the records.
        if let Some(data) = data {
            data.sync_data().map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot sync the image to the disk").because(cause)
            })?;
        }
        for note in &batch {
            journal.append(note);
        }
        journal.sync()?;
        if is_over {
            return Ok(journal);
        }
    }
}
