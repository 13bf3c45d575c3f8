//! All drives, in a directory:
//!
//! ```text
//! lock                held by the one server that uses the directory
//! user                UUID:KEY of the user made up when none was given
//! drives/UUID.meta    metadata; a drive exists if and only if this does
//! drives/UUID.data    its bytes, sparse, exactly as long as the drive
//! drives/UUID.*       what an imaging into it has to do, or left (`fill.rs`)
//! staging/            files for a moment; emptied at start
//! ```
//!
//! A drive's bytes are created first and its metadata last; they are removed in the opposite order.
//! What a crash leaves in between is removed at the start.
//!
//! What is stored about a drive changes only here, by the holder of its turn (`hosted.rs`): first
//! on the disk, then in memory. If the disk refuses, both stay unchanged. Only counters change in
//! memory first; they are stored with the next change and when the server stops.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use zeroize::Zeroizing;

use super::faults::FreshReads;
use super::fill::{Fill, FillFiles, Order};
use super::hosted::{Hosted, Purpose, Turn};
use super::metadata::{Metadata, owner_of_damaged};
use openhosting_base::advice;
use openhosting_base::advice::Remedy;
use openhosting_base::credentials::Credentials;
use openhosting_base::drive::DriveId;
use openhosting_base::error::{Error, ErrorKind, Result};
use openhosting_base::locks::{read, write};
use openhosting_filesystem::{
    Access, Lock, Locked, Untrusted, create_new, free_bytes, lock as lock_file, open_or_create,
    open_own, private_directory,
};
use openhosting_tenancy::{Quotas, Refusal, stored_file, unless_missing};
use openhosting_vm::{Drive, Drives};

/// All drives of the server.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    drives: RwLock<BTreeMap<DriveId, Entry>>,
    fresh_reads: FreshReads,
    quotas: Quotas,
    /// Closing it releases the lock.
    _lock: File,
}

#[derive(Clone, Debug)]
enum Entry {
    Ready(Arc<Hosted>),
    Damaged(Damaged),
}

/// A drive with damaged metadata or bytes.
#[derive(Clone, Debug)]
struct Damaged {
    /// `None` if it cannot be read from the metadata. Then the drive exists for nobody, and the
    /// operator has to remove what is left of it.
    owner: Option<String>,
    size: u64,
}

impl Drives for Store {
    fn readable(&self, user: &str, id: DriveId) -> Result<Arc<dyn Drive>, Refusal> {
        Ok(self.readable(user, id)?)
    }
}

impl Store {
    /// Opens the directory, creates it if necessary, and locks it.
    pub(super) fn open(directory: &Path, fresh_reads: FreshReads, quotas: Quotas) -> Result<Self> {
        let failed = |error: io::Error| {
            let what = format!("Cannot use the data directory {}", directory.display());
            Error::new(ErrorKind::Local, what).because(error)
        };
        for path in [
            directory,
            &directory.join("drives"),
            &directory.join("staging"),
        ] {
            private_directory(path).map_err(|error| not_ours(path, error))?;
        }
        let lock_path = directory.join("lock");
        let lock = open_or_create(&lock_path).map_err(|error| not_ours(&lock_path, error))?;
        match lock_file(&lock, Lock::Exclusive) {
            Locked::Held => {}
            Locked::Busy => {
                let what = format!("Another server uses {}", directory.display());
                return Err(Error::new(ErrorKind::Local, what).hint_to(advice![
                    "Stop it, or choose another directory with ",
                    Remedy::DataDirectory
                ]));
            }
            Locked::Unsupported => tracing::warn!(
                ?directory,
                "This file system has no locks: do not start another server in this directory"
            ),
        }
        for entry in fs::read_dir(directory.join("staging")).map_err(failed)? {
            remove_leftover(&entry.map_err(failed)?.path());
        }
        let store = Self {
            directory: directory.to_owned(),
            drives: RwLock::default(),
            fresh_reads,
            quotas,
            _lock: lock,
        };
        store.load().map_err(failed)?;
        Ok(store)
    }

    fn load(&self) -> io::Result<()> {
        let mut drives = BTreeMap::new();
        for entry in fs::read_dir(self.directory.join("drives"))? {
            let path = entry?.path();
            let id = path.file_stem().and_then(OsStr::to_str);
            let Some(id) = id.and_then(|id| id.parse().ok()) else {
                tracing::warn!(?path, "Not a drive, left alone");
                continue;
            };
            match path.extension().and_then(OsStr::to_str) {
                Some("meta") => drop(drives.insert(id, self.load_drive(id, &path)?)),
                Some("data" | "imaging" | "incomplete")
                    if !self.path(id, "meta").try_exists()? =>
                {
                    remove_leftover(&path);
                }
                _ => {}
            }
        }
        *write(&self.drives) = drives;
        Ok(())
    }

    fn load_drive(&self, id: DriveId, path: &Path) -> io::Result<Entry> {
        let mut damaged = Damaged {
            owner: None,
            // The file is exactly as long as the drive.
            size: fs::metadata(self.path(id, "data")).map_or(0, |data| data.len()),
        };
        let loaded = stored_file::read(path).and_then(|bytes| {
            let Some((metadata, is_whole)) = Metadata::parse(id, &bytes) else {
                damaged.owner = owner_of_damaged(&bytes);
                let what = "its metadata is damaged";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            };
            damaged = Damaged {
                owner: Some(metadata.user.clone()),
                size: metadata.size,
            };
            self.open_drive(id, metadata, is_whole)
        });
        if let Some(owner) = &damaged.owner {
            self.quotas.count(owner, damaged.size);
        }
        match loaded {
            Ok(drive) => Ok(Entry::Ready(Arc::new(drive))),
            Err(error) if stored_file::is_of_the_file(&error) => {
                let owner = damaged.owner.as_deref().unwrap_or("unknown");
                tracing::error!(%id, owner, %error, "A drive is damaged, the others are served");
                Ok(Entry::Damaged(damaged))
            }
            Err(error) => Err(error),
        }
    }

    fn open_drive(&self, id: DriveId, metadata: Metadata, is_whole: bool) -> io::Result<Hosted> {
        let data_path = self.path(id, "data");
        let file = open_own(&data_path)?;
        let len = file.metadata()?.len();
        if len < metadata.size {
            let what = format!("{len} bytes are left of {}", metadata.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        // A resize may have stopped between the two files. What is beyond the end must be removed,
        // or it would be visible when the drive grows.
        if len > metadata.size {
            file.set_len(metadata.size)?;
        }
        let metadata_path = self.path(id, "meta");
        let fill_files = FillFiles::beside(&data_path);
        if !is_whole {
            fill_files.store_incomplete(&self.staging())?;
            metadata.keep(id, &metadata_path, &self.staging())?;
        }
        let fill = fill_files.load(id)?;
        Ok(Hosted::new(id, file, metadata, fill, data_path))
    }

    fn path(&self, id: DriveId, extension: &str) -> PathBuf {
        self.directory.join(format!("drives/{id}.{extension}"))
    }

    /// The quotas of users, for everything and not only drives.
    pub(super) fn quotas(&self) -> Quotas {
        self.quotas.clone()
    }

    /// Fails if the directory cannot be used.
    pub(super) fn check(&self) -> io::Result<()> {
        fs::metadata(self.directory.join("drives"))?;
        tempfile::tempfile_in(self.staging()).map(drop)
    }

    /// Free bytes on the file system for this process.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        free_bytes(&self.directory)
    }

    /// The directory for temporary files, on the same file system.
    pub(super) fn staging(&self) -> PathBuf {
        self.directory.join("staging")
    }

    /// A file without a name, for bytes of an incomplete body.
    pub(super) fn unnamed_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.staging())
    }

    /// The drive `id`, if `user` owns it.
    pub(super) fn own(&self, user: &str, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find(user, id, |metadata| metadata.user == user)
    }

    /// The drive `id`, if `user` may read it.
    pub(super) fn readable(&self, user: &str, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find(user, id, |metadata| metadata.may_read(user))
    }

    /// The drive `id`, whoever owns it.
    pub(super) fn any(&self, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find("", id, |_| true)
    }

    fn find(
        &self,
        user: &str,
        id: DriveId,
        is_allowed: impl FnOnce(&Metadata) -> bool,
    ) -> Result<Arc<Hosted>, Refusal> {
        let drives = read(&self.drives);
        match drives.get(&id) {
            Some(Entry::Ready(drive)) if drive.with_metadata(is_allowed) => Ok(Arc::clone(drive)),
            // Other users must not learn that it exists.
            Some(Entry::Damaged(damaged)) if damaged.owner.as_deref() == Some(user) => Err(
                Refusal::system("Drive is damaged; the server's log has the details"),
            ),
            _ => Err(Refusal::no_drive()),
        }
    }

    /// The drives that `is_wanted`, sorted by UUID.
    pub(super) fn select(&self, is_wanted: impl Fn(&Metadata) -> bool) -> Vec<Arc<Hosted>> {
        let drives = read(&self.drives);
        let ready = drives.values().filter_map(|slot| match slot {
            Entry::Ready(drive) if drive.with_metadata(&is_wanted) => Some(Arc::clone(drive)),
            _ => None,
        });
        ready.collect()
    }

    /// Number of drives. Each is an open file.
    pub(super) fn len(&self) -> usize {
        read(&self.drives).len()
    }

    /// The first drive after `last`, by UUID, that `is_wanted`.
    pub(super) fn next(
        &self,
        last: Option<DriveId>,
        is_wanted: impl Fn(&Metadata) -> bool,
    ) -> Option<Arc<Hosted>> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let drives = read(&self.drives);
        let mut rest = drives.range((after, Bound::Unbounded));
        rest.find_map(|(_, slot)| match slot {
            Entry::Ready(drive) if drive.with_metadata(&is_wanted) => Some(Arc::clone(drive)),
            _ => None,
        })
    }

    /// Creates a drive. Blocks on the disk, as all methods that follow.
    pub(super) fn create(&self, metadata: Metadata) -> Result<Arc<Hosted>, Refusal> {
        let user = metadata.user.clone();
        let grant = self.quotas.take(&user, 1, metadata.size)?;
        let id = DriveId::random();
        let (data, meta) = (self.path(id, "data"), self.path(id, "meta"));
        let made = create_new(&data, Access::Private).and_then(|file| {
            file.set_len(metadata.size)?;
            self.fresh_reads.fill(&file, 0, metadata.size)?;
            metadata.keep(id, &meta, &self.staging())?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                let _ = fs::remove_file(&meta);
                let _ = fs::remove_file(&data);
                return Err(error.into());
            }
        };
        grant.keep();
        let drive = Arc::new(Hosted::new(id, file, metadata, Fill::Whole, data));
        write(&self.drives).insert(id, Entry::Ready(Arc::clone(&drive)));
        Ok(drive)
    }

    /// Destroys a drive.
    pub(super) fn destroy(&self, turn: &Turn) -> Result<(), Refusal> {
        let drive = turn.drive();
        let _pass = drive.pass(Purpose::Destroy)?;
        stored_file::remove(&drive.metadata_path)?;
        turn.mark_gone();
        write(&self.drives).remove(&drive.id);
        let (user, size) = drive.with_metadata(|m| (m.user.clone(), m.size));
        // Readers have the file open. Truncated, it uses no space however long they read. The quota
        // is not returned for what still uses space.
        match drive.file.set_len(0) {
            Ok(()) => self.quotas.give_back(&user, 1, size),
            Err(error) => {
                tracing::error!(id = %drive.id, %error, "Cannot free the space of a drive, the next start does");
            }
        }
        self.remove_rest(drive.id);
        Ok(())
    }

    /// Destroys the drive `id` of `user` if it is damaged; returns whether it was.
    pub(super) fn destroy_damaged(&self, user: &str, id: DriveId) -> Result<bool, Refusal> {
        let mut drives = write(&self.drives);
        let size = match drives.get(&id) {
            Some(Entry::Damaged(damaged)) if damaged.owner.as_deref() == Some(user) => damaged.size,
            _ => return Ok(false),
        };
        stored_file::remove(&self.path(id, "meta"))?;
        drives.remove(&id);
        drop(drives);
        if self.remove_rest(id) {
            self.quotas.give_back(user, 1, size);
        }
        Ok(true)
    }

    /// Removes the files of a drive without metadata, or leaves that to the next start.
    fn remove_rest(&self, id: DriveId) -> bool {
        let rest = ["imaging", "incomplete", "data"].map(|extension| {
            let removed = unless_missing(fs::remove_file(self.path(id, extension)));
            removed.inspect_err(|error| {
                tracing::warn!(%id, extension, %error, "Cannot remove a file of a destroyed drive");
            })
        });
        rest.iter().all(Result::is_ok)
    }

    /// Changes the metadata of a drive. A new size requires that nothing else uses it.
    pub(super) fn change(
        &self,
        turn: &Turn,
        change: impl FnOnce(&mut Metadata) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let drive = turn.drive();
        let old = drive.metadata();
        let mut new = old.clone();
        change(&mut new)?;
        let (size, is_same) = (new.size, new.size == old.size);
        let _pass = match is_same {
            true => None,
            false => Some(drive.pass(Purpose::Resize)?),
        };
        let more = size.saturating_sub(old.size);
        let grant = self.quotas.take(&old.user, 0, more)?;
        let stored = self.grow(drive, old.size, size).and_then(|()| {
            let path = &drive.metadata_path;
            new.keep(drive.id, path, &self.staging())
        });
        if let Err(error) = stored {
            // What it has beyond its end is useless, and occupies space.
            if !is_same {
                let _ = drive.file.set_len(old.size);
            }
            return Err(error.into());
        }
        grant.keep();
        turn.replace_metadata(new);
        if size < old.size {
            // The drive is already shorter. What could not be removed is not visible but occupies
            // space: the next start, or the next time it grows, removes it.
            match drive.file.set_len(size) {
                Ok(()) => self.quotas.give_back(&old.user, 0, old.size - size),
                Err(error) => {
                    tracing::error!(id = %drive.id, %error, "Cannot free the space of a drive that shrank");
                }
            }
        }
        Ok(())
    }

    fn grow(&self, drive: &Hosted, from: u64, to: u64) -> io::Result<()> {
        if to <= from {
            return Ok(());
        }
        // First truncate to the old end: what a failed truncation left beyond it must not become
        // visible as part of the larger drive.
        drive.file.set_len(from)?;
        drive.file.set_len(to)?;
        self.fresh_reads.fill(&drive.file, from, to)
    }

    /// Stores the task of an imaging into a drive, or its progress.
    pub(super) fn store_order(&self, turn: &Turn, order: Order) -> io::Result<()> {
        let drive = turn.drive();
        drive.fill_files.store(drive.id, order, &self.staging())?;
        turn.set_fill(Fill::Imaging(order));
        Ok(())
    }

    /// Records that the bytes of a drive are complete.
    pub(super) fn mark_whole(&self, turn: &Turn) -> io::Result<()> {
        turn.drive().fill_files.finish()?;
        turn.set_fill(Fill::Whole);
        Ok(())
    }

    /// Records that the imaging into a drive failed.
    pub(super) fn mark_incomplete(&self, turn: &Turn) -> io::Result<()> {
        turn.drive().fill_files.fail()?;
        turn.set_fill(Fill::Incomplete);
        Ok(())
    }

    /// Stores the counters of all drives, at the end.
    pub(super) fn store_counters(&self) {
        for drive in self.select(|_| true) {
            let Ok(turn) = drive.turn_blocking() else {
                continue;
            };
            if let Err(error) = self.change(&turn, |_| Ok(())) {
                tracing::warn!(id = %drive.id, %error, "Cannot keep the counters of a drive");
            }
        }
    }

    /// The user that was generated for this directory: the same at every start.
    pub(super) fn generated_user(&self) -> Result<Credentials> {
        let path = self.directory.join("user");
        let failed = |error: io::Error| {
            let what = format!("Cannot keep the user in {}", path.display());
            Error::new(ErrorKind::Local, what).because(error)
        };
        match stored_file::read(&path).map(Zeroizing::new) {
            Ok(text) => {
                let line = String::from_utf8_lossy(&text);
                super::users::parse_line(line.trim_end_matches('\n')).map_err(|error| {
                    let what = format!("Cannot understand {}", path.display());
                    Error::new(ErrorKind::Local, what).because(error)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let user = super::users::make_up()?;
                let line = Zeroizing::new(format!("{}\n", *user.expose()));
                stored_file::write(&line, &path, &self.staging()).map_err(failed)?;
                Ok(user)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// The error for a directory that cannot be used, or may belong to another user.
fn not_ours(path: &Path, error: io::Error) -> Error {
    let hint = Untrusted::of(&error).map(|why| {
        let otherwise = advice![
            "or choose a directory of your own with ",
            Remedy::DataDirectory
        ];
        why.remedy(path, otherwise)
    });
    let what = format!("Cannot use {} as data of a server", path.display());
    Error::new(ErrorKind::Local, what)
        .because(error)
        .hint_if(hint)
}

/// Removes what an interrupted command left. What cannot be removed, such as a directory that
/// somebody created there, is harmless.
fn remove_leftover(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(?path, "Removed what an interrupted command left"),
        Err(error) => tracing::warn!(?path, %error, "Cannot remove a file, left alone"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::hosted::{Lease, Pass};
    use super::*;
    use openhosting_base::wire::{Format, Properties};
    use openhosting_tenancy::{QuotaKind, QuotaLimits};

    fn open(directory: &Path) -> Result<Store> {
        Store::open(directory, FreshReads::Zeros, Quotas::default())
    }

    fn metadata(size: u64) -> Metadata {
        let body = Properties::parse(Format::Text, format!("size {size}").as_bytes()).unwrap();
        Metadata::create("owner", &body, Ok).unwrap()
    }

    #[test]
    fn files_left_by_a_crash_are_cleaned_up_at_start() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let [resized, torn, cut] = [(); 3].map(|()| store.create(metadata(10_000)).unwrap());
        resized.file.set_len(20_000).unwrap();
        resized.file.write_all_at(b"stale", 15_000).unwrap();
        fs::write(&torn.metadata_path, "size 1").unwrap();
        cut.file.set_len(5).unwrap();
        let orphan = store.path(DriveId::random(), "data");
        fs::write(&orphan, "x").unwrap();
        let half = directory.path().join("staging/half");
        fs::write(&half, "x").unwrap();
        drop(store);

        let store = open(directory.path()).unwrap();
        assert!(!orphan.exists() && !half.exists());
        let drive = store.own("owner", resized.id).unwrap();
        store
            .change(&drive.turn_blocking().unwrap(), |metadata| {
                metadata.size = 20_000;
                Ok(())
            })
            .unwrap();
        let mut grown = [1; 10_000];
        drive.file.read_exact_at(&mut grown, 10_000).unwrap();
        assert!(grown.iter().all(|&b| b == 0));
        // Only the metadata contains the owner.
        for (user, damaged, status) in [
            ("owner", torn.id, 404),
            ("owner", cut.id, 500),
            ("other", cut.id, 404),
        ] {
            let refusal = store.own(user, damaged).unwrap_err();
            assert_eq!(refusal.error().status(), status, "{user}");
        }
        assert_eq!(store.select(|_| true).len(), 1);
        assert!(!store.destroy_damaged("other", cut.id).unwrap());
        assert!(!store.destroy_damaged("owner", torn.id).unwrap());
        assert!(store.destroy_damaged("owner", cut.id).unwrap());
        assert!(!cut.metadata_path.exists() && !cut.data_path.exists());
    }

    #[test]
    fn a_data_directory_has_one_server_and_one_generated_user() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let user = store.generated_user().unwrap();
        assert!(open(directory.path()).is_err());
        drop(store);
        let store = open(directory.path()).unwrap();
        assert!(store.generated_user().unwrap() == user);
    }

    #[test]
    fn conflicting_uses_of_a_drive_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let drive = store.create(metadata(10)).unwrap();
        let write = || drive.pass(Purpose::Write { at_most: 2 });
        let status = |result: Result<Pass, Refusal>| result.map(drop).map_err(|r| r.error());
        let busy = Err(openhosting_base::wire::ErrorType::Busy);
        let missing = Err(openhosting_base::wire::ErrorType::Missing);

        let (first, second) = (write().unwrap(), write().unwrap());
        let image_from = |user: &str| drive.pass(Purpose::ImageFrom(Lease::of(user.to_owned())));
        assert_eq!(status(drive.pass(Purpose::Resize)), busy);
        assert_eq!(status(image_from("owner")), busy);
        assert_eq!(status(drive.pass(Purpose::Write { at_most: 1 })), busy);
        drop((first, second));

        let sources = [(); 2].map(|()| image_from("owner").unwrap());
        assert_eq!(status(image_from("other")), missing);
        assert_eq!(status(write()), busy);
        assert_eq!(status(drive.pass(Purpose::Destroy)), busy);
        assert!(drive.info(false).get("claimed").is_some());
        drop(sources);

        let resize = drive.pass(Purpose::Resize).unwrap();
        assert_eq!(status(write()), busy);
        drop(resize);
        let turn = drive.turn_blocking().unwrap();
        store.destroy(&turn).unwrap();
        drop(turn);
        assert_eq!(status(write()), missing);
        assert!(store.own("owner", drive.id).is_err());
        assert!(drive.turn_blocking().is_err());
    }
    #[test]
    fn an_imaging_ends_when_its_user_may_no_longer_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let drive = store.create(metadata(10)).unwrap();
        let readers = |value: &'static str| {
            let turn = drive.turn_blocking().unwrap();
            let set = |metadata: &mut Metadata| {
                let settings = &mut metadata.settings;
                openhosting_tenancy::put_or_unset(settings, "readers", value)
            };
            store.change(&turn, set).unwrap();
        };
        let image = |user: &str| {
            let lease = Lease::of(user.to_owned());
            let pass = drive.pass(Purpose::ImageFrom(Arc::clone(&lease)));
            (lease, pass)
        };
        let write = || drive.pass(Purpose::Write { at_most: 2 });
        assert!(image("reader").1.is_err());
        readers("reader other");
        let (first, _pass) = image("reader");
        let (second, _second_pass) = image("other");
        assert!(write().is_err());
        readers("other");
        assert!(first.has_ended() && !second.has_ended());
        assert!(write().is_err());
        // Becoming a reader again does not restore the old right.
        readers("reader");
        assert!(first.has_ended() && second.has_ended());
        drop(write().unwrap());
        let (own, own_pass) = image("owner");
        let (third, _third_pass) = image("reader");
        let turn = drive.turn_blocking().unwrap();
        assert!(store.destroy(&turn).is_err());
        assert!(!own.has_ended());
        drop(own_pass);
        store.destroy(&turn).unwrap();
        assert!(third.has_ended());
    }

    #[test]
    fn readers_cannot_stop_an_owner_from_destroying_a_drive() {
        use super::super::metadata::EVERYONE;
        use openhosting_vm::{Holder, MachineId, Slot};
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let mut shared = metadata(10);
        for (key, value) in [("claim:type", "shared"), ("readers", EVERYONE)] {
            openhosting_tenancy::set(&mut shared.settings, key, value);
        }
        let drive = store.create(shared).unwrap();
        let claim = |user: &str, may_write| {
            let holder = Holder {
                user: user.into(),
                host: uuid::Uuid::nil(),
                server: MachineId::random(),
                slot: Slot::Ide(0, 0),
                may_write,
            };
            Arc::clone(&drive).claim(holder).unwrap()
        };
        let destroy = || store.destroy(&drive.turn_blocking().unwrap());
        for may_write in [false, true] {
            let _own = claim("owner", may_write);
            assert!(destroy().is_err());
        }
        let others = claim("other", false);
        assert!(drive.pass(Purpose::Write { at_most: 1 }).is_err());
        destroy().unwrap();
        drop(others);
    }

    #[test]
    fn incomplete_drives_of_an_earlier_version_are_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let drives = [
            ("complete true\nimaging false\n", "active"),
            ("complete false\nimaging false\n", "inactive"),
            ("complete true\nimaging true\n", "inactive"),
            (
                "complete true\nimaging copy 0012e24a-6eae-4279-9912-3432f698cec8 7\n",
                "inactive",
            ),
        ]
        .map(|(lines, status)| {
            let drive = store.create(metadata(10)).unwrap();
            let text = fs::read_to_string(&drive.metadata_path).unwrap();
            let text = format!("{lines}{}", &text[..text.rfind("digest ").unwrap()]);
            let digest = openhosting_base::digest::Digest::of(text.as_bytes());
            fs::write(&drive.metadata_path, format!("{text}digest {digest}\n")).unwrap();
            (drive.id, status)
        });
        drop(store);
        // Once, and permanently.
        for _ in 0..2 {
            let store = open(directory.path()).unwrap();
            for (id, status) in drives {
                let info = store.own("owner", id).unwrap().info(false);
                assert_eq!(info.get("status"), Some(status));
                assert_eq!((info.get("complete"), info.get("imaging")), (None, None));
            }
        }
        let store = open(directory.path()).unwrap();
        for (id, _) in drives {
            let drive = store.own("owner", id).unwrap();
            store.mark_whole(&drive.turn_blocking().unwrap()).unwrap();
        }
        drop(store);
        let store = open(directory.path()).unwrap();
        for (id, _) in drives {
            let drive = store.own("owner", id).unwrap();
            assert_eq!(drive.fill(), Fill::Whole);
        }
    }

    #[test]
    fn the_quota_of_a_destroyed_drive_is_returned_when_its_space_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let quotas = Quotas::new(QuotaLimits::new([
            (QuotaKind::Drives, Some(1)),
            (QuotaKind::Bytes, Some(1 << 20)),
        ]));
        let store = Store::open(directory.path(), FreshReads::Zeros, quotas).unwrap();
        let drive = store.create(metadata(1 << 20)).unwrap();
        drive.file.write_all_at(&[1; 1 << 20], 0).unwrap();
        assert!(store.create(metadata(1)).is_err());
        store.destroy(&drive.turn_blocking().unwrap()).unwrap();
        // A reader still has it open.
        assert_eq!(drive.allocated_bytes(), 0);
        store.create(metadata(1 << 20)).unwrap();
    }

    #[test]
    fn a_stray_directory_does_not_hide_the_drives() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let drive = store.create(metadata(10)).unwrap();
        let (id, other) = (DriveId::random(), DriveId::random());
        let stray = [
            store.path(id, "data"),
            store.path(other, "meta"),
            store.staging().join("x"),
            directory.path().join("drives/lost+found"),
        ];
        drop(store);
        for path in &stray {
            fs::create_dir(path).unwrap();
        }
        let store = open(directory.path()).unwrap();
        assert!(store.own("owner", drive.id).is_ok());
        assert!(stray.iter().all(|path| path.exists()));
    }
}
