//! One drive as the server holds it: its file, its metadata, and who uses it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::answer::Refusal;
use super::claims::{Claim, Claims, Holder};
use super::metadata::{Metadata, set};
use super::record::Traffic;
use crate::drive::DriveId;
use crate::wire::Properties;

/// A drive on this server.
///
/// Who uses it is counted, never waited for: what does not go together with a
/// use under way is refused with 409 at once (REFERENCE section 7). Writes go
/// together; destroying, resizing and being imaged go with nothing but reads. A
/// server that is active claims its drives (`claims.rs`).
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) id: DriveId,
    pub(super) file: File,
    pub(super) metadata_path: PathBuf,
    pub(super) data_path: PathBuf,
    /// Held while the bytes of one write go to the file, so that overlapping
    /// writes land one after the other and not mixed.
    pub(super) landing: Mutex<()>,
    /// Held while metadata is changed and kept, which takes disk time; `state`
    /// never is.
    pub(super) keeping: Mutex<()>,
    /// What moves to and from it.
    pub(super) traffic: Arc<Traffic>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    metadata: Metadata,
    /// Writes under way.
    writers: u32,
    /// Imagings that read this drive.
    imaged_from: u32,
    /// Destroying, resizing, or being imaged.
    is_exclusive: bool,
    imaging: Option<Arc<Progress>>,
    /// Servers that use it.
    claims: Claims,
    is_gone: bool,
}

/// How far an imaging into a drive is, in bytes of its source.
#[derive(Debug)]
pub(super) struct Progress {
    source: DriveId,
    bytes: AtomicU64,
    bytes_total: u64,
    /// 0 while it waits for its turn.
    started: AtomicU64,
}

impl Progress {
    pub(super) fn new(source: DriveId, bytes_total: u64) -> Self {
        Self {
            source,
            bytes: AtomicU64::new(0),
            bytes_total,
            started: AtomicU64::new(0),
        }
    }

    pub(super) fn start(&self) {
        self.started.store(1, Ordering::Relaxed);
    }

    pub(super) fn reach(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn is_queued(&self) -> bool {
        self.started.load(Ordering::Relaxed) == 0
    }

    fn percent(&self) -> u64 {
        let bytes = u128::from(self.bytes.load(Ordering::Relaxed));
        let percent = bytes * 100 / u128::from(self.bytes_total.max(1));
        // 100 is told by the key's absence.
        percent.min(99) as u64
    }
}

impl Hosted {
    pub(super) fn new(
        id: DriveId,
        file: File,
        metadata: Metadata,
        metadata_path: PathBuf,
        data_path: PathBuf,
    ) -> Self {
        Self {
            id,
            file,
            metadata_path,
            data_path,
            landing: Mutex::new(()),
            keeping: Mutex::new(()),
            traffic: Arc::default(),
            state: Mutex::new(State {
                metadata,
                writers: 0,
                imaged_from: 0,
                is_exclusive: false,
                imaging: None,
                claims: Claims::default(),
                is_gone: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Its metadata at this moment.
    pub(super) fn metadata(&self) -> Metadata {
        self.state().metadata.clone()
    }

    /// Its size in bytes. It stays as it is while a [`Pass`] is held.
    pub(super) fn size(&self) -> u64 {
        self.state().metadata.size
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        // Of 512 bytes, whatever the file system's are.
        self.file.metadata().map_or(0, |data| data.blocks() * 512)
    }

    /// Whether the file system says that it takes no space at all.
    pub(super) fn takes_no_space(&self) -> bool {
        self.file.metadata().is_ok_and(|data| data.blocks() == 0)
    }

    /// Whether an imaging into it waits for its turn; `None` if there is none.
    pub(super) fn is_imaging_queued(&self) -> Option<bool> {
        let state = self.state();
        state.imaging.as_ref().map(|progress| progress.is_queued())
    }

    /// Looks at the metadata without a copy.
    pub(super) fn with_metadata<T>(&self, look: impl FnOnce(&Metadata) -> T) -> T {
        look(&self.state().metadata)
    }

    /// Puts changed metadata in place; the caller has kept it. The counters
    /// that ran on meanwhile stay.
    pub(super) fn replace_metadata(&self, metadata: Metadata) {
        let mut state = self.state();
        let counters = state.metadata.counters;
        state.metadata = Metadata {
            counters,
            ..metadata
        };
    }

    pub(super) fn count_read(&self, bytes: u64) {
        let counters = &mut self.state().metadata.counters;
        counters.read_bytes += bytes;
        counters.read_requests += 1;
    }

    pub(super) fn count_write(&self, bytes: u64) {
        let counters = &mut self.state().metadata.counters;
        counters.write_bytes += bytes;
        counters.write_requests += 1;
    }

    /// Counts what a guest read and wrote.
    pub(super) fn count_guest(&self, read: (u64, u64), written: (u64, u64)) {
        let counters = &mut self.state().metadata.counters;
        counters.read_bytes += read.0;
        counters.read_requests += read.1;
        counters.write_bytes += written.0;
        counters.write_requests += written.1;
    }

    pub(super) fn mark_gone(&self) {
        self.state().is_gone = true;
    }

    /// What `info` tells; with `is_full` the progress of imaging as a percentage
    /// (REFERENCE sections 5 and 7).
    pub(super) fn info(&self, is_full: bool) -> Properties {
        let state = self.state();
        let mut info = state.metadata.to_info(self.id);
        if let Some(progress) = &state.imaging {
            let value = match (progress.is_queued(), is_full) {
                (true, _) => "queued".to_owned(),
                (false, true) => format!("{}%", progress.percent()),
                (false, false) => "true".to_owned(),
            };
            set(&mut info, "imaging", value);
            set(&mut info, "claimed", format!("imaging:{}", progress.source));
        } else if state.imaged_from > 0 {
            set(&mut info, "claimed", "imaging");
        } else if let Some(claimed) = state.claims.told() {
            set(&mut info, "claimed", claimed);
        }
        info
    }

    /// Whether its bytes can be read: not in the middle of being imaged.
    pub(super) fn check_readable(&self) -> Result<(), Refusal> {
        let state = self.state();
        match (state.is_gone, &state.imaging) {
            (true, _) => Err(Refusal::no_drive()),
            (false, Some(_)) => Err(Refusal::busy("Drive is busy: it is being imaged")),
            (false, None) => Ok(()),
        }
    }

    /// Asks for a use of the drive, to be held until it ends.
    pub(super) fn pass(self: &Arc<Self>, purpose: Purpose) -> Result<Pass, Refusal> {
        let mut state = self.state();
        if state.is_gone {
            return Err(Refusal::no_drive());
        }
        if state.is_exclusive {
            let sentence = match state.imaging {
                Some(_) => "Drive is busy: it is being imaged",
                None => "Drive is busy: it is being changed",
            };
            return Err(Refusal::busy(sentence));
        }
        if state.imaged_from > 0 && !matches!(purpose, Purpose::ImageFrom) {
            return Err(Refusal::busy(
                "Drive is busy: it is the source of an imaging",
            ));
        }
        let does_write = !matches!(purpose, Purpose::ImageFrom);
        if does_write && !state.claims.is_empty() || state.claims.may_write() {
            return Err(Refusal::busy("Drive is busy: a server uses it"));
        }
        let shares_writes =
            matches!(purpose, Purpose::Write { at_most } if state.writers < at_most);
        if state.writers > 0 && !shares_writes {
            return Err(Refusal::busy("Drive is busy: it is being written"));
        }
        match &purpose {
            Purpose::Write { .. } => state.writers += 1,
            Purpose::ImageFrom => state.imaged_from += 1,
            Purpose::Change => state.is_exclusive = true,
            Purpose::ImageInto(progress) => {
                state.is_exclusive = true;
                state.imaging = Some(Arc::clone(progress));
            }
        }
        Ok(Pass {
            drive: Arc::clone(self),
            purpose,
        })
    }
}

impl Hosted {
    /// Claims the drive for a server, until the claim is dropped. The claim of
    /// an exclusive drive is the only one.
    pub(super) fn claim(self: &Arc<Self>, holder: Holder) -> Result<Claim, Refusal> {
        let mut state = self.state();
        if state.is_gone {
            return Err(Refusal::no_drive());
        }
        let is_imaged = state.imaging.is_some() || state.imaged_from > 0 && holder.may_write;
        let sentence = if is_imaged {
            "it is being imaged"
        } else if state.is_exclusive {
            "it is being changed"
        } else if state.writers > 0 {
            "it is being written"
        } else {
            let is_shared = state.metadata.is_shared();
            state.claims.add(holder, is_shared)?;
            return Ok(Claim::new(Arc::clone(self), holder));
        };
        Err(Refusal::busy(format!(
            "Drive {} is busy: {sentence}",
            self.id
        )))
    }

    /// Ends a claim.
    pub(super) fn release(&self, holder: &Holder) {
        self.state().claims.remove(holder);
    }
}

/// What a drive is used for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// Writing bytes, beside fewer than so many others.
    Write { at_most: u32 },
    /// Destroying or resizing it.
    Change,
    /// Reading it into another drive.
    ImageFrom,
    /// Filling it from another drive.
    ImageInto(Arc<Progress>),
}

/// The right to use a drive; ends when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) drive: Arc<Hosted>,
    purpose: Purpose,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.drive.state();
        match self.purpose {
            Purpose::Write { .. } => state.writers -= 1,
            Purpose::ImageFrom => state.imaged_from -= 1,
            Purpose::Change => state.is_exclusive = false,
            Purpose::ImageInto(_) => {
                state.is_exclusive = false;
                state.imaging = None;
            }
        }
    }
}

/// Locks a mutex of plain data: after a panic elsewhere it is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same, to look at what is behind a lock that many may hold to read.
pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// The same, to change it.
pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
