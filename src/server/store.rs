//! All drives, in a directory:
//!
//! ```text
//! lock                held by the one server that uses the directory
//! user                UUID:KEY of the user made up when none was given
//! drives/UUID.meta    metadata; a drive exists if and only if this does
//! drives/UUID.data    its bytes, sparse, exactly as long as the drive
//! staging/            files for a moment; emptied at start
//! ```
//!
//! Creating makes the bytes first and the metadata last, destroying goes the
//! other way round, and what a crash leaves between is removed at start.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use zeroize::Zeroizing;

use super::answer::Refusal;
use super::faults::FreshReads;
use super::hosted::{Hosted, Pass, lock, read, write};
use super::kept::{self, sync_parent};
use super::metadata::Metadata;
use super::quota::Quotas;
use crate::credentials::Credentials;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{
    Access, Foreign, Lock, Locked, create_new, lock as lock_file, open_or_create, open_own,
    private_directory,
};

/// All drives of the server.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    drives: RwLock<BTreeMap<DriveId, Slot>>,
    fresh_reads: FreshReads,
    quotas: Quotas,
    /// The lock goes when this is closed.
    _lock: File,
}

#[derive(Clone, Debug)]
enum Slot {
    Ready(Arc<Hosted>),
    /// Its metadata or bytes are damaged; its owner is not known.
    Failed,
}

impl Store {
    /// Opens the directory, makes it if need be, and locks it.
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
                return Err(Error::new(ErrorKind::Local, what)
                    .hint_to("Stop it, or choose another directory with --data"));
            }
            Locked::Unsupported => tracing::warn!(
                ?directory,
                "This file system has no locks: do not start another server in this directory"
            ),
        }
        for entry in fs::read_dir(directory.join("staging")).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
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
                Some("data") if !self.path(id, "meta").try_exists()? => {
                    tracing::info!(%id, "Removed what an interrupted command left");
                    fs::remove_file(&path)?;
                }
                _ => {}
            }
        }
        *write(&self.drives) = drives;
        Ok(())
    }

    fn load_drive(&self, id: DriveId, path: &Path) -> io::Result<Slot> {
        let loaded = kept::read(path).and_then(|bytes| {
            let bad = || io::Error::new(io::ErrorKind::InvalidData, "its metadata is damaged");
            let metadata = Metadata::parse(id, &bytes).ok_or_else(bad)?;
            self.open_drive(id, metadata)
        });
        match loaded {
            Ok(drive) => {
                drive.with_metadata(|m| self.quotas.count(&m.user, m.size));
                Ok(Slot::Ready(Arc::new(drive)))
            }
            Err(error) if kept::is_of_the_file(&error) => {
                tracing::error!(%id, %error, "A drive is damaged, the others are served");
                Ok(Slot::Failed)
            }
            Err(error) => Err(error),
        }
    }

    fn open_drive(&self, id: DriveId, metadata: Metadata) -> io::Result<Hosted> {
        let data_path = self.path(id, "data");
        let file = open_own(&data_path)?;
        let len = file.metadata()?.len();
        if len < metadata.size {
            let what = format!("{len} bytes are left of {}", metadata.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        // A resize may have stopped between the two files. What is beyond the
        // end must go, or it would show when the drive grows.
        if len > metadata.size {
            file.set_len(metadata.size)?;
        }
        let metadata_path = self.path(id, "meta");
        Ok(Hosted::new(id, file, metadata, metadata_path, data_path))
    }

    fn path(&self, id: DriveId, extension: &str) -> PathBuf {
        self.directory.join(format!("drives/{id}.{extension}"))
    }

    /// Whether the directory can be used.
    pub(super) fn check(&self) -> io::Result<()> {
        fs::metadata(self.directory.join("drives"))?;
        tempfile::tempfile_in(self.staging()).map(drop)
    }

    /// What is free on the file system for this process, in bytes.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let told = rustix::fs::statvfs(&self.directory).ok()?;
        Some(told.f_bavail.saturating_mul(told.f_frsize))
    }

    /// Where files are for a moment, on the same file system.
    pub(super) fn staging(&self) -> PathBuf {
        self.directory.join("staging")
    }

    /// A file without a name, for bytes that must wait for their end.
    pub(super) fn unnamed_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.staging())
    }

    /// The drive `id`, if `user` owns it.
    pub(super) fn own(&self, user: &str, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find(id, |metadata| metadata.user == user)
    }

    /// The drive `id`, if `user` may read it.
    pub(super) fn readable(&self, user: &str, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find(id, |metadata| metadata.may_read(user))
    }

    /// The drive `id`, whoever owns it.
    pub(super) fn any(&self, id: DriveId) -> Result<Arc<Hosted>, Refusal> {
        self.find(id, |_| true)
    }

    fn find(
        &self,
        id: DriveId,
        is_allowed: impl FnOnce(&Metadata) -> bool,
    ) -> Result<Arc<Hosted>, Refusal> {
        let drives = read(&self.drives);
        match drives.get(&id) {
            Some(Slot::Ready(drive)) if drive.with_metadata(is_allowed) => Ok(Arc::clone(drive)),
            Some(Slot::Failed) => Err(Refusal::system(
                "Drive is damaged, the server's log tells more",
            )),
            _ => Err(Refusal::no_drive()),
        }
    }

    /// The drives that `is_wanted`, sorted by UUID.
    pub(super) fn select(&self, is_wanted: impl Fn(&Metadata) -> bool) -> Vec<Arc<Hosted>> {
        let drives = read(&self.drives);
        let ready = drives.values().filter_map(|slot| match slot {
            Slot::Ready(drive) if drive.with_metadata(&is_wanted) => Some(Arc::clone(drive)),
            _ => None,
        });
        ready.collect()
    }

    /// Makes a new drive. Blocks on the disk, as all that follow.
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
        let drive = Arc::new(Hosted::new(id, file, metadata, meta, data));
        write(&self.drives).insert(id, Slot::Ready(Arc::clone(&drive)));
        Ok(drive)
    }

    /// Destroys the drive of `pass`.
    pub(super) fn destroy(&self, pass: &Pass) -> Result<(), Refusal> {
        let drive = &pass.drive;
        let _keeping = lock(&drive.keeping);
        fs::remove_file(&drive.metadata_path)?;
        drive.mark_gone();
        write(&self.drives).remove(&drive.id);
        drive.with_metadata(|m| self.quotas.give_back(&m.user, 1, m.size));
        sync_parent(&drive.metadata_path)?;
        if let Err(error) = fs::remove_file(&drive.data_path) {
            // The drive is gone all the same; the next start removes the rest.
            tracing::warn!(id = %drive.id, %error, "Cannot remove the bytes of a drive");
        }
        Ok(())
    }

    /// Changes the metadata of a drive, and keeps it before anybody sees it. A
    /// new size needs a pass to change the drive.
    pub(super) fn change(
        &self,
        drive: &Hosted,
        change: impl FnOnce(&mut Metadata) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let _keeping = lock(&drive.keeping);
        let old = drive.metadata();
        let mut new = old.clone();
        change(&mut new)?;
        let more = new.size.saturating_sub(old.size);
        let grant = self.quotas.take(&old.user, 0, more)?;
        if new.size > old.size {
            // First to the old end: whatever a failed cut left beyond it must
            // not show as part of the larger drive.
            drive.file.set_len(old.size)?;
            drive.file.set_len(new.size)?;
            self.fresh_reads.fill(&drive.file, old.size, new.size)?;
        }
        self.keep(drive, &new)?;
        grant.keep();
        let less = old.size.saturating_sub(new.size);
        self.quotas.give_back(&old.user, 0, less);
        let shrinks = new.size < old.size;
        let size = new.size;
        drive.replace_metadata(new);
        if shrinks {
            drive.file.set_len(size)?;
        }
        Ok(())
    }

    /// Keeps the counters of all drives, at the end.
    pub(super) fn keep_all(&self) {
        for drive in self.select(|_| true) {
            let _keeping = lock(&drive.keeping);
            if let Err(error) = self.keep(&drive, &drive.metadata()) {
                tracing::warn!(id = %drive.id, %error, "Cannot keep the counters of a drive");
            }
        }
    }

    fn keep(&self, drive: &Hosted, metadata: &Metadata) -> io::Result<()> {
        metadata.keep(drive.id, &drive.metadata_path, &self.staging())
    }

    /// The user that was made up for this directory: the same at every start.
    pub(super) fn made_up_user(&self) -> Result<Credentials> {
        let path = self.directory.join("user");
        let failed = |error: io::Error| {
            let what = format!("Cannot keep the user in {}", path.display());
            Error::new(ErrorKind::Local, what).because(error)
        };
        match kept::read(&path).map(Zeroizing::new) {
            Ok(text) => {
                let line = String::from_utf8_lossy(&text);
                super::users::parse_line(line.trim_end_matches('\n')).map_err(|error| {
                    let what = format!("Cannot understand {}", path.display());
                    Error::new(ErrorKind::Local, what).because(error)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let user = super::users::make_up()?;
                let line = format!("{}:{}\n", user.user(), user.expose_key());
                kept::write(&line, &path, &self.staging()).map_err(failed)?;
                Ok(user)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// The error of a directory that cannot be used, or may be another user's.
fn not_ours(path: &Path, error: io::Error) -> Error {
    let hint = Foreign::of(&error).map(|why| {
        let otherwise =
            "or choose a directory of your own with --data DIR, or --local DIR of the tools";
        why.remedy(path, otherwise)
    });
    let what = format!("Cannot use {} as data of a server", path.display());
    let error = Error::new(ErrorKind::Local, what).because(error);
    match hint {
        Some(hint) => error.hint_to(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::hosted::Purpose;
    use super::*;
    use crate::wire::{Format, Properties};

    fn open(directory: &Path) -> Result<Store> {
        Store::open(directory, FreshReads::Zeros, Quotas::default())
    }

    fn metadata(size: u64) -> Metadata {
        let body = Properties::parse(Format::Text, format!("size {size}").as_bytes()).unwrap();
        Metadata::create("owner", &body, Ok).unwrap()
    }

    #[test]
    fn what_a_crash_leaves_is_put_right_at_start() {
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
            .change(&drive, |metadata| {
                metadata.size = 20_000;
                Ok(())
            })
            .unwrap();
        let mut grown = [1; 10_000];
        drive.file.read_exact_at(&mut grown, 10_000).unwrap();
        assert!(grown.iter().all(|&b| b == 0));
        for damaged in [torn.id, cut.id] {
            let refusal = store.own("owner", damaged).unwrap_err();
            assert_eq!(refusal.error().status(), 500);
        }
        assert_eq!(store.select(|_| true).len(), 1);
    }

    #[test]
    #[cfg_attr(feature = "plain-filesystem", ignore = "no locks")]
    fn a_directory_has_one_server_and_one_made_up_user() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let user = store.made_up_user().unwrap();
        assert!(open(directory.path()).is_err());
        drop(store);
        let store = open(directory.path()).unwrap();
        assert!(store.made_up_user().unwrap() == user);
    }

    #[test]
    fn uses_that_do_not_go_together_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).unwrap();
        let drive = store.create(metadata(10)).unwrap();
        let write = || drive.pass(Purpose::Write { at_most: 2 });
        let status = |result: Result<Pass, Refusal>| result.map(drop).map_err(|r| r.error());
        let busy = Err(crate::wire::ErrorType::Busy);

        let (first, second) = (write().unwrap(), write().unwrap());
        assert_eq!(status(drive.pass(Purpose::Change)), busy);
        assert_eq!(status(drive.pass(Purpose::ImageFrom)), busy);
        assert_eq!(status(drive.pass(Purpose::Write { at_most: 1 })), busy);
        drop((first, second));

        let sources = [(); 2].map(|()| drive.pass(Purpose::ImageFrom).unwrap());
        assert_eq!(status(write()), busy);
        assert_eq!(status(drive.pass(Purpose::Change)), busy);
        assert!(drive.info(false).get("claimed").is_some());
        drop(sources);

        let change = drive.pass(Purpose::Change).unwrap();
        assert_eq!(status(write()), busy);
        store.destroy(&change).unwrap();
        drop(change);
        assert_eq!(status(write()), Err(crate::wire::ErrorType::Missing));
        assert!(store.own("owner", drive.id).is_err());
    }
}
