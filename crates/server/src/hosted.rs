//! One drive of the server: its file, its metadata, and its current uses.
//!
//! Two locks of a drive order everything that happens to it:
//!
//! - The [`Turn`] is held while what is stored about the drive changes, from the decision until
//!   memory agrees with the disk: set, resize, destroy, the start, progress and end of an imaging,
//!   saving the counters at the end. Callers wait for it. It is not available for a drive that is
//!   gone, so nothing is ever stored about one.
//! - `state` is the state in memory: metadata and uses. It is held only for moments, and never
//!   during disk access. A use ([`Pass`], [`Claim`]) is checked against all others and against the
//!   rights of its user, and entered, in one step. If these were two steps, two uses that exclude
//!   each other could both be allowed.
//!
//! Lock order: turn, then `landing`, then the map of drives in the store, then `state`, then
//! quotas. Nothing holds the turns of two drives. A pass is not a lock: it is refused at once if it
//! is not available, so it may be requested with or without the turn.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::timeout;

use super::fill::{Fill, FillFiles};
use super::metadata::Metadata;
use super::record::Traffic;
use openhosting_base::drive::DriveId;
use openhosting_base::locks::lock;
use openhosting_base::wire::Properties;
use openhosting_tenancy::{Counters, Refusal, set};
use openhosting_vm::{Claim, Claims, Drive, Holder, Slot};

/// How long a request waits for the end of an imaging that it cancelled. An imaging ends within one
/// step; only a broken disk delays it further, and the request must not hang with it.
const CANCEL_WAIT: Duration = Duration::from_secs(30);

/// A drive on this server.
///
/// Uses are counted, and never waited for: what conflicts with a current use is refused with 409 at
/// once (docs/dev/reference.md, 7). Writes do not conflict with each other; destroying, resizing
/// and being imaged conflict with everything but reads. An active server claims its drives
/// (`claims.rs`).
///
/// Other users who read a drive cannot keep its owner from destroying it: their reads and imagings
/// fail, and their servers find the drive empty.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) id: DriveId,
    pub(super) file: File,
    pub(super) metadata_path: PathBuf,
    pub(super) data_path: PathBuf,
    pub(super) fill_files: FillFiles,
    /// Held while the bytes of one write go to the file, so that overlapping writes are applied one
    /// after the other and not mixed.
    pub(super) landing: Mutex<()>,
    /// Bytes of bodies that are in files of their own until they are complete.
    pub(super) spilled_bytes: AtomicU64,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What is transferred to and from it.
    pub(super) traffic: Arc<Traffic>,
    state: Mutex<DriveState>,
}

#[derive(Debug)]
struct DriveState {
    metadata: Metadata,
    fill: Fill,
    /// Writes in progress.
    writers: u32,
    /// Imagings that read this drive.
    leases: Vec<Arc<Lease>>,
    /// Whether it is being destroyed, resized, or imaged.
    is_exclusive: bool,
    imaging: Option<Arc<Progress>>,
    /// Servers that use it.
    claims: Claims,
    is_gone: bool,
}

/// The right of a user's imaging to read its source. It ends before the imaging if the drive is
/// destroyed, or its owner removes the user from its readers.
#[derive(Debug)]
pub(super) struct Lease {
    user: String,
    has_ended: watch::Sender<bool>,
}

impl Lease {
    pub(super) fn of(user: String) -> Arc<Self> {
        Arc::new(Self {
            user,
            has_ended: watch::Sender::new(false),
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.has_ended.borrow()
    }

    fn end(&self) {
        self.has_ended.send_replace(true);
    }

    /// Waits until the right ends.
    pub(super) async fn ended(&self) {
        // The sender exists as long as `self`.
        let _ = self
            .has_ended
            .subscribe()
            .wait_for(|has_ended| *has_ended)
            .await;
    }
}

/// The progress of an imaging into a drive, in bytes of its source.
#[derive(Debug)]
pub(super) struct Progress {
    source: DriveId,
    bytes: AtomicU64,
    bytes_total: u64,
    /// 0 while it waits for its turn.
    started: AtomicU64,
    is_cancelled: watch::Sender<bool>,
    has_ended: watch::Sender<bool>,
}

impl Progress {
    pub(super) fn new(source: DriveId, bytes_total: u64) -> Self {
        Self {
            source,
            bytes: AtomicU64::new(0),
            bytes_total,
            started: AtomicU64::new(0),
            is_cancelled: watch::Sender::new(false),
            has_ended: watch::Sender::new(false),
        }
    }

    pub(super) fn start(&self) {
        self.started.store(1, Ordering::Relaxed);
    }

    pub(super) fn reach(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Requests the imaging to end soon.
    fn cancel(&self) {
        self.is_cancelled.send_replace(true);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        *self.is_cancelled.borrow()
    }

    /// Waits until the imaging is cancelled.
    pub(super) async fn cancelled(&self) {
        // The senders exist as long as `self`.
        let _ = self.is_cancelled.subscribe().wait_for(|is| *is).await;
    }

    async fn ended(&self) {
        let _ = self.has_ended.subscribe().wait_for(|has| *has).await;
    }

    fn is_queued(&self) -> bool {
        self.started.load(Ordering::Relaxed) == 0
    }

    fn percent(&self) -> u64 {
        let bytes = u128::from(self.bytes.load(Ordering::Relaxed));
        let percent = bytes * 100 / u128::from(self.bytes_total.max(1));
        // 100 is never shown: a finished imaging has no such key.
        percent.min(99) as u64
    }
}

impl Hosted {
    pub(super) fn new(
        id: DriveId,
        file: File,
        metadata: Metadata,
        fill: Fill,
        data_path: PathBuf,
    ) -> Self {
        Self {
            id,
            file,
            fill_files: FillFiles::beside(&data_path),
            metadata_path: data_path.with_extension("meta"),
            data_path,
            landing: Mutex::new(()),
            spilled_bytes: AtomicU64::new(0),
            turn: Arc::default(),
            traffic: Arc::default(),
            state: Mutex::new(DriveState {
                metadata,
                fill,
                writers: 0,
                leases: Vec::new(),
                is_exclusive: false,
                imaging: None,
                claims: Claims::default(),
                is_gone: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, DriveState> {
        lock(&self.state)
    }

    /// Waits for the turn to change what is stored about the drive; 404 if it is gone by then.
    pub(super) async fn turn(self: &Arc<Self>) -> Result<Turn, Refusal> {
        let guard = Arc::clone(&self.turn).lock_owned().await;
        self.to_turn(guard)
    }

    /// As [`turn`](Self::turn), on a thread that may block.
    pub(super) fn turn_blocking(self: &Arc<Self>) -> Result<Turn, Refusal> {
        let guard = Arc::clone(&self.turn).blocking_lock_owned();
        self.to_turn(guard)
    }

    fn to_turn(self: &Arc<Self>, guard: OwnedMutexGuard<()>) -> Result<Turn, Refusal> {
        match self.state().is_gone {
            true => Err(Refusal::no_drive()),
            false => Ok(Turn {
                drive: Arc::clone(self),
                _guard: guard,
            }),
        }
    }

    /// A copy of its current metadata.
    pub(super) fn metadata(&self) -> Metadata {
        self.state().metadata.clone()
    }

    /// Its size in bytes. It does not change while a [`Pass`] is held.
    pub(super) fn size(&self) -> u64 {
        self.state().metadata.size
    }

    /// The space that it occupies on the disk, in bytes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        // Blocks of 512 bytes, whatever the file system's own block size is.
        self.file.metadata().map_or(0, |data| data.blocks() * 512)
    }

    /// Whether the file system reports that it occupies no space at all.
    pub(super) fn takes_no_space(&self) -> bool {
        self.file.metadata().is_ok_and(|data| data.blocks() == 0)
    }

    /// Whether an imaging into it is still waiting for its first turn; `None` if there is no
    /// imaging.
    pub(super) fn is_imaging_queued(&self) -> Option<bool> {
        let state = self.state();
        state.imaging.as_ref().map(|progress| progress.is_queued())
    }

    /// Cancels the imaging into it, if there is one, and waits for its end, which is soon.
    pub(super) async fn cancel_imaging(&self) {
        let imaging = self.state().imaging.clone();
        if let Some(progress) = imaging {
            progress.cancel();
            // While a broken disk refuses to store the end, the imaging has not ended.
            let _ = timeout(CANCEL_WAIT, progress.ended()).await;
        }
    }

    /// Passes the metadata to `look`, without a copy.
    pub(super) fn with_metadata<T>(&self, look: impl FnOnce(&Metadata) -> T) -> T {
        look(&self.state().metadata)
    }

    /// The state of its bytes with regard to imaging.
    pub(super) fn fill(&self) -> Fill {
        self.state().fill
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

    /// The answer to `info`; with `is_full`, the progress of imaging is a percentage
    /// (docs/dev/reference.md, 5.2).
    pub(super) fn info(&self, is_full: bool) -> Properties {
        let state = self.state();
        let mut info = state.metadata.to_info(self.id);
        if state.fill == Fill::Incomplete {
            set(&mut info, "status", "inactive");
        }
        if let Some(progress) = &state.imaging {
            let value = match (progress.is_queued(), is_full) {
                (true, _) => "queued".to_owned(),
                (false, true) => format!("{}%", progress.percent()),
                (false, false) => "true".to_owned(),
            };
            set(&mut info, "imaging", value);
            set(&mut info, "claimed", format!("imaging:{}", progress.source));
        } else if !state.leases.is_empty() {
            set(&mut info, "claimed", "imaging");
        } else if let Some(claimed) = state.claims.as_text() {
            set(&mut info, "claimed", claimed);
        }
        info
    }

    /// Fails if its bytes cannot be read because it is being imaged.
    pub(super) fn check_readable(&self) -> Result<(), Refusal> {
        let state = self.state();
        match (state.is_gone, &state.imaging) {
            (true, _) => Err(Refusal::no_drive()),
            (false, Some(_)) => Err(Refusal::busy("Drive is busy: it is being imaged")),
            (false, None) => Ok(()),
        }
    }

    /// Requests a use of the drive, which lasts until the pass is dropped.
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
        state.check_imagings(&purpose)?;
        let is_claimed = match &purpose {
            Purpose::ImageFrom(_) => state.claims.may_write(),
            Purpose::Destroy => !state.claims.are_of_others(&state.metadata.user),
            _ => !state.claims.is_empty(),
        };
        if is_claimed {
            return Err(Refusal::busy("Drive is busy: a server uses it"));
        }
        let shares_writes =
            matches!(purpose, Purpose::Write { at_most } if state.writers < at_most);
        if state.writers > 0 && !shares_writes {
            return Err(Refusal::busy("Drive is busy: it is being written"));
        }
        match &purpose {
            Purpose::Write { .. } => state.writers += 1,
            Purpose::ImageFrom(lease) => state.leases.push(Arc::clone(lease)),
            Purpose::Resize | Purpose::Destroy => state.is_exclusive = true,
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

impl DriveState {
    /// Checks a use against the imagings that read the drive. An imaging needs the right to read at
    /// this moment.
    fn check_imagings(&self, purpose: &Purpose) -> Result<(), Refusal> {
        let owner = &self.metadata.user;
        let are_of_others = self.leases.iter().all(|lease| lease.user != *owner);
        match purpose {
            Purpose::ImageFrom(lease) if !self.metadata.may_read(&lease.user) => {
                Err(Refusal::no_drive())
            }
            Purpose::ImageFrom(_) => Ok(()),
            _ if self.leases.is_empty() => Ok(()),
            Purpose::Destroy if are_of_others => Ok(()),
            _ if are_of_others => Err(Refusal::busy(
                "Drive is busy: it is the source of another user's imaging, \
                 which ends when that user is taken off its readers",
            )),
            _ => Err(Refusal::busy(
                "Drive is busy: it is the source of an imaging",
            )),
        }
    }

    /// Ends imagings that are no longer allowed to read the drive.
    fn end_leases(&mut self) {
        let Self {
            metadata, is_gone, ..
        } = self;
        self.leases.retain(|lease| {
            let is_valid = !*is_gone && metadata.may_read(&lease.user);
            if !is_valid {
                lease.end();
            }
            is_valid
        });
    }
}

impl Drive for Hosted {
    fn check(&self, user: &str, slot: Slot, may_write: bool) -> Result<(), Refusal> {
        self.with_metadata(|metadata| self.check_claim(metadata, user, slot, may_write))
    }

    fn claim(self: Arc<Self>, holder: Holder) -> Result<Claim, Refusal> {
        let mut state = self.state();
        if state.is_gone {
            return Err(Refusal::no_drive());
        }
        self.check_claim(&state.metadata, &holder.user, holder.slot, holder.may_write)?;
        let is_imaged = state.imaging.is_some() || !state.leases.is_empty() && holder.may_write;
        let sentence = if is_imaged {
            "it is being imaged"
        } else if state.is_exclusive {
            "it is being changed"
        } else if state.writers > 0 {
            "it is being written"
        } else {
            let is_shared = state.metadata.is_shared();
            state.claims.add(holder.clone(), is_shared)?;
            drop(state);
            return Ok(Claim::new(self, holder));
        };
        Err(Refusal::busy(format!(
            "Drive {} is busy: {sentence}",
            self.id
        )))
    }

    fn release(&self, holder: &Holder) {
        self.state().claims.remove(holder);
    }

    fn path(&self) -> &Path {
        &self.data_path
    }

    fn size(&self) -> u64 {
        self.size()
    }

    fn is_shared(&self) -> bool {
        self.with_metadata(Metadata::is_shared)
    }

    fn count_guest(&self, more: Counters) {
        let counters = &mut self.state().metadata.counters;
        *counters = counters.zip(more, u64::saturating_add);
    }
}

impl Hosted {
    /// Whether a server of `user` may claim the drive, with this `metadata`, at `slot`.
    fn check_claim(
        &self,
        metadata: &Metadata,
        user: &str,
        slot: Slot,
        may_write: bool,
    ) -> Result<(), Refusal> {
        let is_own = metadata.user == user;
        let is_lent = !may_write && metadata.is_shared();
        match metadata.may_read(user) {
            false => Err(Refusal::no_drive()),
            true if is_own || is_lent => Ok(()),
            true => Err(Refusal::usage(format!(
                "Drive {} of another user is invalid at {slot}: it must be of claim:type shared, and media cdrom",
                self.id
            ))),
        }
    }
}

/// The purpose of a use of a drive.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// Writing bytes, concurrently with less than this many other writes.
    Write {
        at_most: u32,
    },
    Resize,
    Destroy,
    /// Being the source of an imaging.
    ImageFrom(Arc<Lease>),
    /// Being the destination of an imaging.
    ImageInto(Arc<Progress>),
}

/// The right to use a drive, which ends when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) drive: Arc<Hosted>,
    purpose: Purpose,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.drive.state();
        match &self.purpose {
            Purpose::Write { .. } => state.writers -= 1,
            Purpose::ImageFrom(lease) => state.leases.retain(|other| !Arc::ptr_eq(other, lease)),
            Purpose::Resize | Purpose::Destroy => state.is_exclusive = false,
            Purpose::ImageInto(progress) => {
                state.is_exclusive = false;
                state.imaging = None;
                // The source has been released by now as well.
                progress.has_ended.send_replace(true);
            }
        }
    }
}

/// The turn of an existing drive: the right to change what is stored about it together with the
/// state in memory. Both are changed in `store.rs`.
#[derive(Debug)]
pub(super) struct Turn {
    drive: Arc<Hosted>,
    _guard: OwnedMutexGuard<()>,
}

impl Turn {
    pub(super) fn drive(&self) -> &Arc<Hosted> {
        &self.drive
    }

    /// Replaces the metadata by changed ones, which were stored. Counters that increased meanwhile
    /// are kept.
    pub(super) fn replace_metadata(&self, metadata: Metadata) {
        let mut state = self.drive.state();
        let counters = state.metadata.counters;
        state.metadata = Metadata {
            counters,
            ..metadata
        };
        state.end_leases();
    }

    /// Replaces the state of the bytes by one that was stored.
    pub(super) fn set_fill(&self, fill: Fill) {
        self.drive.state().fill = fill;
    }

    /// Marks the drive as gone, after it was removed from the disk.
    pub(super) fn mark_gone(&self) {
        let mut state = self.drive.state();
        state.is_gone = true;
        state.end_leases();
    }
}
