//! The destination of a download: a file that gets its name only when it is complete and safely on
//! the disk, or a file or device that is written in place.
//!
//! A staged file is created as `NAME.oh-part` in the same directory, so that the final rename stays
//! within one file system and is atomic. It is locked while a run writes to it. Whoever may create
//! files in that directory could replace the staged file by another one, so identity, owner and
//! links are checked when it is opened again and when it is renamed.

mod qcow2;

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use openhosting_system::{
    FileAt, FileId, Guard, Kind, NextData, OpenGuarded, Rights, check_replaceable, check_writable,
    device_size, next_data,
};

use self::qcow2::Qcow2File;
use super::{Disk, Format, MappedImage, RawImage, modified_ns};
use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::chunk::is_zero;
use crate::codec::Pack;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{
    self, Access, Lock, Locked, PageCache, Step, Untrusted, Weakness, can_others_create_in,
    create_new, directory_of, exposed, give_mode, is_placeholder, open_or_create, open_own,
    page_cache_of, put_zeros, remedy, rename_new, sync_all, sync_directory, unsynced,
    why_untrusted,
};
use openhosting_base::locks;

/// Zeros shorter than this are written, because a shorter hole saves no space.
const BLOCK_BYTES: u64 = 4096;

/// The format of the downloaded file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetFormat {
    /// The bytes of the disk, unchanged.
    #[default]
    Raw,
    /// As qcow2, version 3.
    Qcow2(Option<ClusterPacking>),
}

/// The compression of each cluster of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterPacking {
    /// Deflate, which every version of QEMU supports.
    Zlib,
    /// With Zstandard: QEMU 5.1 or later.
    Zstd,
}

impl ClusterPacking {
    fn pack(self) -> Pack {
        match self {
            Self::Zlib => Pack::Deflate,
            Self::Zstd => Pack::Zstd,
        }
    }
}

impl TargetFormat {
    /// Bytes of the disk that a file can describe: qcow2 has whole sectors only.
    pub fn size_of(self, size: u64) -> u64 {
        match self {
            Self::Raw => size,
            Self::Qcow2(_) => size.next_multiple_of(qcow2::SECTOR_BYTES),
        }
    }

    /// Chunks must be a multiple of this many bytes, because a compressed cluster is written as a
    /// whole.
    pub fn chunk_multiple(self) -> u64 {
        match self {
            Self::Raw | Self::Qcow2(None) => 1,
            Self::Qcow2(Some(_)) => qcow2::CLUSTER,
        }
    }

    /// The format without the compression.
    pub fn format(self) -> Format {
        match self {
            Self::Raw => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
        }
    }

    fn pack(self) -> Option<Pack> {
        match self {
            Self::Raw | Self::Qcow2(None) => None,
            Self::Qcow2(Some(packing)) => Some(packing.pack()),
        }
    }
}

impl fmt::Display for TargetFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.format().fmt(f)
    }
}

/// What to do with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeros {
    /// Nothing: the file is new, so unwritten bytes already read as zeros.
    Leave,
    /// Old bytes may be there: make a hole, or write zeros if that fails.
    Punch,
    /// Write zeros (a device).
    Write,
}

/// A file that is being written.
#[derive(Debug)]
pub struct ImageTarget {
    file: File,
    /// Held during a write; see [`write`](Self::write).
    turn: Mutex<()>,
    zeros: Zeros,
    /// Present for a qcow2 file: everything is written through it.
    qcow2: Option<Qcow2File>,
    /// The temporary and the final name; `None` if the file is written in place.
    staged: Option<(PathBuf, PathBuf)>,
    /// Whether other machines write to the file as well. Then none of them gives it its name.
    is_shared: bool,
    path: PathBuf,
    weaknesses: Vec<Weakness>,
}

/// The name of the staged file of `path`.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(".oh-part");
    PathBuf::from(name)
}

/// What exists at the name of a download.
enum There {
    /// A regular file, or nothing.
    File,
    /// A block device, by its own name and not that of a link.
    Device(PathBuf),
}

/// Checks what is at `path`, and fails if a download cannot be stored there.
fn look(path: &Path, force: bool) -> Result<There> {
    let shown = path.display();
    let refuse = |what: &str| Error::new(ErrorKind::Local, format!("{shown} {what}"));
    match std::fs::symlink_metadata(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(There::File),
        Err(cause) => Err(refuse("cannot be looked at").because(cause)),
        Ok(metadata) => {
            let kind = metadata.file_type();
            let there = if kind.is_symlink() {
                let device = device_behind(path, &metadata).ok_or_else(|| {
                    refuse("is a symbolic link, which is not followed").hint_to(
                        "Name the file itself; of links only those of the system in /dev are followed, to block devices",
                    )
                })?;
                There::Device(device)
            } else if kind.is_block() {
                There::Device(path.to_owned())
            } else if kind.is_file() {
                There::File
            } else {
                return Err(refuse("is neither a regular file nor a block device"));
            };
            if !force && !is_placeholder(path) {
                return Err(refuse("is there already")
                    .hint_to(advice!["Overwrite it with ", Remedy::Force]));
            }
            Ok(there)
        }
    }
}

/// Checks that `path` can be replaced at the end, if it exists. On Windows, a program that has it
/// open can prevent that, which is better known before the transfer than after it.
fn check_end(path: &Path) -> Result<()> {
    check_replaceable(path).map_err(|cause| {
        cannot("replace", path, cause)
            .hint_to("Close the program that has it open, or choose another name")
    })
}

/// The block device to which a system link such as `/dev/VG/LV` or `/dev/disk/by-id/NAME` leads:
/// root created the link, in a directory below /dev in which nobody else can create one.
fn device_behind(link: &Path, metadata: &std::fs::Metadata) -> Option<PathBuf> {
    let directory = std::fs::canonicalize(directory_of(link)).ok()?;
    let around = std::fs::metadata(&directory).ok()?;
    let device = std::fs::canonicalize(link).ok()?;
    let (link, around) = (Rights::of(metadata), Rights::of(&around));
    let is_of_root = link.owner == 0 && around.owner == 0 && around.mode & 0o022 == 0;
    let is_device =
        std::fs::symlink_metadata(&device).is_ok_and(|device| device.file_type().is_block());
    let is_in_dev = directory.starts_with("/dev") && device.starts_with("/dev");
    (is_of_root && is_in_dev && is_device).then_some(device)
}

impl ImageTarget {
    /// A raw target that is written in place and by this process alone; callers override the fields
    /// that differ.
    fn over(file: File, path: &Path, zeros: Zeros) -> Self {
        Self {
            file,
            turn: Mutex::default(),
            zeros,
            qcow2: None,
            path: path.to_owned(),
            staged: None,
            is_shared: false,
            weaknesses: Vec::new(),
        }
    }

    /// What the file system cannot guarantee for the file.
    pub fn weaknesses(&self) -> &[Weakness] {
        &self.weaknesses
    }

    /// Creates the target of a new download of `size` bytes. A block device is written in place;
    /// anything else is staged beside `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if `path` exists without `force`, is a symbolic link, or cannot be
    /// created; [`ErrorKind::Usage`] if it cannot have this format.
    pub fn create(path: &Path, size: u64, force: bool, format: TargetFormat) -> Result<Self> {
        if let There::Device(device) = look(path, force)? {
            if format != TargetFormat::Raw {
                let what = format!("{} is a device: it cannot hold {format}", path.display());
                return Err(Error::new(ErrorKind::Usage, what).hint_to("Name a file"));
            }
            return Self::device(&device, path, size);
        }
        if format != TargetFormat::Raw && !Qcow2File::holds(size) {
            let what = format!("A disk of {size} bytes is larger than a {format} can be");
            return Err(Error::new(ErrorKind::Usage, what));
        }
        check_end(path)?;
        let part = part_of(path);
        let file = create_new(&part, Access::Private).map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::AlreadyExists {
                return cannot("make", &part, cause).hint_to(advice![
                    "An earlier run left it without its journal: start over with ",
                    Remedy::Restart,
                ]);
            }
            // The user knows the name that the file gets in the end.
            cannot("make", path, cause)
        })?;
        let unlocked = lock(&file, &part, Lock::Exclusive)?;
        let made = match format {
            TargetFormat::Raw => file.set_len(size).map(|()| None),
            TargetFormat::Qcow2(_) => file
                .try_clone()
                .and_then(|file| Qcow2File::create(file, size, format.pack()))
                .map(Some),
        };
        let made = made.and_then(|qcow2| Ok((qcow2, weaknesses(&file, &part, unlocked)?)));
        let (qcow2, weaknesses) = made.map_err(|cause| {
            // The file is empty, and without a journal the next run would refuse it.
            let _ = std::fs::remove_file(&part);
            cannot("make room in", &part, cause)
        })?;
        Ok(Self {
            qcow2,
            staged: Some((part, path.to_owned())),
            weaknesses,
            ..Self::over(file, path, Zeros::Leave)
        })
    }

    /// Opens the file that several machines stage beside `path`, or creates it. Each machine writes
    /// only its own shard. The file gets its name when it is [resumed](Self::resume), after all
    /// machines have closed it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] as for [`resume`](Self::resume); [`ErrorKind::Usage`] if
    /// `path` is a device.
    pub fn share(path: &Path, size: u64, force: bool) -> Result<Self> {
        if let There::Device(_) = look(path, force)? {
            let what = format!(
                "{} is a device: several machines share a file",
                path.display()
            );
            return Err(Error::new(ErrorKind::Usage, what));
        }
        check_end(path)?;
        let part = part_of(path);
        let file = open_or_create(&part)
            .map_err(|cause| not_ours(&part, cause, "or remove it and run all shards again"))?;
        let unlocked = lock(&file, &part, Lock::Shared)?;
        let failed = |cause| cannot("make room in", &part, cause);
        let metadata = file.metadata().map_err(failed)?;
        match metadata.len() {
            // Size 0: it is new, or another machine is just creating it.
            0 if metadata.is_file() => file.set_len(size).map_err(failed)?,
            len if len == size && metadata.is_file() => {}
            _ => return Err(no_part_of_ours(&part, "Remove it and run all shards again")),
        }
        let weaknesses = weaknesses(&file, &part, unlocked).map_err(failed)?;
        Ok(Self {
            staged: Some((part, path.to_owned())),
            is_shared: true,
            weaknesses,
            ..Self::over(file, path, Zeros::Punch)
        })
    }

    /// The inode of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be determined.
    pub fn inode(&self) -> Result<u64> {
        let id = FileId::of(&self.file);
        Ok(id
            .map_err(|cause| cannot("measure", &self.path, cause))?
            .inode)
    }

    /// Checks that the directory of `path` exists.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it does not.
    pub fn check_directory(path: &Path) -> Result<()> {
        let directory = directory_of(path);
        std::fs::metadata(directory)
            .and_then(|metadata| match metadata.is_dir() {
                true => check_writable(directory),
                false => Err(std::io::ErrorKind::NotADirectory.into()),
            })
            .map_err(|cause| cannot("make", path, cause))
    }

    /// Opens what an earlier run staged beside `path`; `None` if it does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] as for [`create`](Self::create), and if it does not have this size and
    /// format.
    pub fn resume(
        path: &Path,
        size: u64,
        force: bool,
        format: TargetFormat,
    ) -> Result<Option<Self>> {
        look(path, force)?;
        check_end(path)?;
        let part = part_of(path);
        let file = match open_own(&part) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => {
                return Err(not_ours(
                    &part,
                    cause,
                    advice!["or start over with ", Remedy::Restart],
                ));
            }
        };
        let unlocked = lock(&file, &part, Lock::Exclusive)?;
        let metadata = file
            .metadata()
            .map_err(|cause| cannot("open", &part, cause))?;
        let other = || no_part_of_ours(&part, advice!["Start over with ", Remedy::Restart]);
        let qcow2 = match format {
            _ if !metadata.is_file() => return Err(other()),
            TargetFormat::Raw if metadata.len() != size => return Err(other()),
            TargetFormat::Raw => None,
            TargetFormat::Qcow2(_) => {
                let resumed = file
                    .try_clone()
                    .and_then(|file| Qcow2File::resume(file, size, format.pack()))
                    .map_err(|cause| cannot("continue", &part, cause))?;
                Some(resumed.ok_or_else(other)?)
            }
        };
        let weaknesses =
            weaknesses(&file, &part, unlocked).map_err(|cause| cannot("continue", &part, cause))?;
        Ok(Some(Self {
            qcow2,
            staged: Some((part, path.to_owned())),
            weaknesses,
            ..Self::over(file, path, Zeros::Punch)
        }))
    }

    /// Opens `path` if it is a file of a disk of `size` bytes in this format and no file is staged
    /// beside it: an earlier run has published it already.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be opened or synced.
    pub fn published(path: &Path, size: u64, format: TargetFormat) -> Result<Option<Self>> {
        if std::fs::symlink_metadata(part_of(path)).is_ok() {
            return Ok(None);
        }
        let is_raw = format == TargetFormat::Raw;
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() && (!is_raw || metadata.len() == size) => {}
            _ => return Ok(None),
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .guarded(Guard::NoFollowNoWait)
            .open(path)
            .map_err(|cause| cannot("open", path, cause))?;
        // If another user owns it, that user could change it after it was compared.
        if why_untrusted(&file, path)
            .map_err(|cause| cannot("open", path, cause))?
            .is_some()
        {
            return Ok(None);
        }
        if !is_raw
            && !Qcow2File::is_finished(&file, size, format.pack())
                .map_err(|cause| cannot("read", path, cause))?
        {
            return Ok(None);
        }
        let unsynced =
            sync_directory(directory_of(path)).map_err(|cause| cannot("finish", path, cause))?;
        Ok(Some(Self {
            weaknesses: unsynced.into_iter().collect(),
            ..Self::over(file, path, Zeros::Punch)
        }))
    }

    /// Removes what an earlier run staged beside `path`, if anything.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be removed, or another process writes to it.
    pub fn discard(path: &Path) -> Result<()> {
        let part = part_of(path);
        // The lock of a file that is not ours (or of a link) does not count, because its owner
        // could hold it for ever.
        let _opened = match open_own(&part) {
            Ok(file) => lock(&file, &part, Lock::Exclusive).map(|_| Some(file))?,
            Err(_) => None,
        };
        Self::remove(&part)
    }

    /// Gives up, and removes the staged file.
    pub fn abandon(self) {
        if let Some((part, _)) = &self.staged {
            // If it cannot be removed, the next run reports it.
            let _ = Self::remove(part);
        }
    }

    fn remove(part: &Path) -> Result<()> {
        match std::fs::remove_file(part) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(cannot("remove", part, cause)
                    .hint_to("Remove it by hand, or write the image to another directory"))
            }
            _ => Ok(()),
        }
    }

    /// Opens `path` to be written in place from byte `offset` on, as the original tool does with
    /// `-o`. The bytes before stay unchanged.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it is a symbolic link, not a regular file, or longer than `size`
    /// bytes; or, unless `force`, if it belongs to another user, who could read what is written.
    pub fn in_place(path: &Path, size: u64, force: bool) -> Result<Self> {
        // With -o, the file is expected to exist.
        if let There::Device(device) = look(path, true)? {
            return Self::device(&device, path, size);
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .guarded(Guard::NoFollowNoWait);
        // Where fs.protected_regular is set, even root cannot open the file of another user in /tmp
        // in a call that may create it.
        let file = match options.open(path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                options.create_new(true).open(path)
            }
            opened => opened,
        };
        let file = file.map_err(|cause| cannot("open", path, cause))?;
        let why = why_untrusted(&file, path).map_err(|cause| cannot("open", path, cause))?;
        if let Some(why) = why
            && !(force && matches!(why, Untrusted::Owner(_)))
        {
            let force = advice!["or write to it all the same with ", Remedy::Force];
            let hint = why.remedy(path, force);
            let what = format!("Cannot write to {}", path.display());
            return Err(Error::new(ErrorKind::Local, what)
                .because(why)
                .hint_to(hint));
        }
        let unlocked = lock(&file, path, Lock::Exclusive)?;
        let len = file
            .metadata()
            .map_err(|cause| cannot("open", path, cause))?
            .len();
        if len > size {
            let what = format!(
                "{} has {len} bytes and the drive {size}: it is no beginning of it",
                path.display()
            );
            return Err(Error::new(ErrorKind::Local, what));
        }
        file.set_len(size)
            .map_err(|cause| cannot("make room in", path, cause))?;
        Ok(Self {
            weaknesses: unlocked.into_iter().collect(),
            ..Self::over(file, path, Zeros::Punch)
        })
    }

    /// Opens a device that the user named `path`.
    fn device(device: &Path, path: &Path, size: u64) -> Result<Self> {
        // Exclusive, which fails while the device is mounted.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .guarded(Guard::NoFollowInUse)
            .open(device)
            .map_err(|cause| cannot("open", path, cause).hint_to("Is it mounted?"))?;
        // Another file may have the name by now.
        let is_device = file.metadata().map(|m| m.file_type().is_block());
        if !is_device.map_err(|cause| cannot("open", path, cause))? {
            let what = format!("{} is not a block device any more", path.display());
            return Err(Error::new(ErrorKind::Local, what));
        }
        let room = device_size(&file).map_err(|cause| cannot("measure", path, cause))?;
        if room < size {
            let what = format!(
                "{} has {room} bytes and the drive {size}: it does not fit",
                path.display()
            );
            return Err(Error::new(ErrorKind::Local, what));
        }
        Ok(Self::over(file, path, Zeros::Write))
    }

    /// Another handle of the file, for syncing it from another thread.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the process has no more file descriptors.
    pub fn handle(&self) -> Result<File> {
        self.file
            .try_clone()
            .map_err(|cause| cannot("open again", &self.path, cause))
    }

    /// The disk as far as this file, in `format`, contains it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if there are no more file descriptors or the disk fails,
    /// [`ErrorKind::Image`] if its size cannot be determined, or it does not have that format.
    pub fn to_disk(&self, format: TargetFormat) -> Result<Box<dyn Disk>> {
        if let Some(qcow2) = &self.qcow2 {
            qcow2.pad().map_err(|cause| self.cannot_write(cause))?;
        }
        let name = self.staged.as_ref().map_or(&self.path, |(part, _)| part);
        let file = RawImage::over(self.handle()?, name.clone())?;
        Ok(match format {
            TargetFormat::Raw => Box::new(file),
            TargetFormat::Qcow2(_) => Box::new(MappedImage::unfinished(file, format.format())?),
        })
    }

    /// Whether each byte of the disk is at its own offset in the file.
    pub fn is_raw(&self) -> bool {
        self.qcow2.is_none()
    }

    /// Whether the file has this inode and was last written to at this time, in nanoseconds since
    /// 1970.
    pub fn is_as_it_was(&self, inode: u64, at_ns: i128) -> bool {
        let is_it = FileId::of(&self.file).is_ok_and(|id| id.inode == inode);
        let now = self.file.metadata();
        is_it && now.is_ok_and(|now| modified_ns(&now) == at_ns)
    }

    /// Whether the file gets its name only at the end.
    pub fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// The page cache of the file, if a later run may rely on what this run wrote without a sync.
    /// Not if other machines write to the file: the kernel reports a failed write-back to one sync
    /// only, and that could be theirs.
    pub fn page_cache(&self) -> Option<PageCache> {
        match self.is_staged() && !self.is_shared {
            true => page_cache_of(&self.file),
            false => None,
        }
    }

    /// Writes the bytes of `range`: the given runs of data, each with its offset and in order, and
    /// zeros between them. For a raw file, returns the [`data_blocks`] of the range.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the disk is full or fails.
    pub fn put_all<'a>(
        &self,
        range: Range<u64>,
        runs: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> Result<u64> {
        if let Some(qcow2) = &self.qcow2 {
            let put = qcow2.put(range, runs);
            return put.map(|()| 0).map_err(|cause| self.cannot_write(cause));
        }
        let mut at = range.start;
        let mut blocks = DataBlocks::default();
        for (offset, run) in runs {
            self.put_zeros(at, offset.saturating_sub(at))?;
            self.put(run, offset, &mut blocks)?;
            at = offset + run.len() as u64;
        }
        self.put_zeros(at, range.end.saturating_sub(at))?;
        Ok(blocks.count)
    }

    /// Writes bytes, with holes instead of zeros where that is right.
    fn put(&self, bytes: &[u8], offset: u64, blocks: &mut DataBlocks) -> Result<()> {
        for (start, end, is_hole) in runs(bytes, offset) {
            let at = offset + start as u64;
            let part = &bytes[start..end];
            if !is_hole {
                blocks.add(at, at + part.len() as u64);
            }
            let put = match (is_hole, self.zeros) {
                (true, Zeros::Leave) => Ok(()),
                (true, Zeros::Punch) => self.punch(at, part.len() as u64),
                _ => self.write(part, at),
            };
            put.map_err(|cause| self.cannot_write(cause))?;
        }
        Ok(())
    }

    /// Writes bytes, one thread at a time: the file system admits only one writer to a file anyway,
    /// and would let the others spin on processors that the compressors need.
    fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let _turn = locks::lock(&self.turn);
        self.file.write_all_at(bytes, offset)
    }

    /// Whether zeros need not be written at all.
    pub fn leaves_zeros(&self) -> bool {
        match &self.qcow2 {
            Some(qcow2) => qcow2.leaves_zeros(),
            None => self.zeros == Zeros::Leave,
        }
    }

    /// Makes `len` bytes from `offset` zero, as a hole where possible. A device that can zero them
    /// itself does so, and no zeros are transferred to it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the disk is full or fails.
    pub fn put_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let put = match (&self.qcow2, self.zeros) {
            _ if self.leaves_zeros() => Ok(()),
            (Some(qcow2), _) => qcow2.put(offset..offset + len, std::iter::empty()),
            (None, _) => self.punch(offset, len),
        };
        put.map_err(|cause| self.cannot_write(cause))
    }

    /// Replaces old bytes by zeros, without writing any if possible.
    fn punch(&self, offset: u64, len: u64) -> std::io::Result<()> {
        if len == 0 || self.is_hole(offset, len) {
            return Ok(());
        }
        put_zeros(&self.file, offset, len)
    }

    /// Whether the file has no data there and reads as zeros. The file system's report of a hole is
    /// not sufficient, because a wrong report would leave old bytes in the image. Longer ranges are
    /// punched without a check. Nothing is known about a device.
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        const LEN_MAX: u64 = 1 << 20;
        if self.zeros == Zeros::Write
            || len > LEN_MAX
            || self.data_after(offset) < offset.saturating_add(len)
        {
            return false;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, offset).is_ok() && is_zero(&bytes)
    }

    /// The first data at or after `offset`, as the file system reports it.
    fn data_after(&self, offset: u64) -> u64 {
        match next_data(&self.file, offset) {
            NextData::At(data) => data,
            // There is no more data up to the end of the file.
            NextData::Nowhere => u64::MAX,
            NextData::Unknown => offset,
        }
    }

    fn cannot_write(&self, cause: std::io::Error) -> Error {
        let hint = match cause.kind() {
            std::io::ErrorKind::FileTooLarge => remedy(&cause),
            _ => Some("What was downloaded is kept: make room, and run the same command again"),
        };
        cannot("write to", &self.path, cause).hint_if(hint)
    }

    /// Writes what the format needs besides the data, once all data are written, and then walks the
    /// result as a check.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the disk is full or fails, [`ErrorKind::Image`] if something else
    /// wrote to the file.
    pub fn complete(&self) -> Result<()> {
        let Some(qcow2) = &self.qcow2 else {
            return Ok(());
        };
        qcow2.finish().map_err(|cause| self.cannot_write(cause))?;
        let file = RawImage::over(self.handle()?, self.path.clone())?;
        MappedImage::open(file, Format::Qcow2, &[]).map(drop)
    }

    /// Syncs the file, so that it survives a loss of power, and gives a staged file its name.
    /// Returns what the file system could not guarantee, unless it was already in
    /// [`weaknesses`](Self::weaknesses).
    ///
    /// The order matters. The data are synced before the rename, so that the name never refers to
    /// an incomplete file. The directory is synced after it, so that the name itself survives.
    ///
    /// # Errors
    /// [`ErrorKind::Local`]; the staged file then stays where it is.
    pub fn publish(self, force: bool) -> Result<Vec<Weakness>> {
        let failed = |cause| cannot("finish", &self.path, cause);
        sync_all(&self.file).map_err(failed)?;
        let (Some((part, path)), false) = (&self.staged, self.is_shared) else {
            return Ok(Vec::new());
        };
        self.check_named(part)?;
        give_mode(&self.file, path, Step::Read);
        let renamed = match force {
            true => std::fs::rename(part, path),
            false => rename_new(part, path),
        };
        renamed.map_err(|cause| match cause.kind() {
            std::io::ErrorKind::AlreadyExists => {
                let what = format!(
                    "{} came into being meanwhile; the download is in {}",
                    path.display(),
                    part.display()
                );
                Error::new(ErrorKind::Local, what).hint_to(advice![
                    "Overwrite it by the same command with ",
                    Remedy::Force
                ])
            }
            _ => failed(cause),
        })?;
        // Someone could have exchanged the file between the first check and the rename. If only we
        // can create files in the directory, that is impossible, and a second check would do harm:
        // some file systems give a renamed file another number.
        if can_others_create_in(directory_of(path)) {
            self.check_named(path)?;
        }
        let fixed = give_mode(&self.file, path, Step::All);
        let unsynced = sync_directory(directory_of(path)).map_err(failed)?;
        let new = fixed.into_iter().chain(unsynced);
        Ok(new.filter(|new| !self.weaknesses.contains(new)).collect())
    }

    /// Checks that `name` still refers to the file that was written. Whoever may write to its
    /// directory could have put another file there.
    fn check_named(&self, name: &Path) -> Result<()> {
        let failed = |cause| cannot("finish", &self.path, cause);
        if FileId::of(&self.file).map_err(failed)? == FileId::at(name).map_err(failed)? {
            return Ok(());
        }
        let what = format!("{} is no longer the file that was written", name.display());
        Err(Error::new(ErrorKind::Local, what).hint_to(advice![
            "Somebody replaced it. Start over with ",
            Remedy::Restart
        ]))
    }
}

/// The error for a staged file that may belong to another user.
fn not_ours(part: &Path, cause: std::io::Error, otherwise: impl Into<Advice>) -> Error {
    let hint = Untrusted::of(&cause).map(|why| why.remedy(part, otherwise));
    cannot("use", part, cause).hint_if(hint)
}

/// The error for a staged file that is not from an earlier run of this transfer.
fn no_part_of_ours(part: &Path, hint: impl Into<Advice>) -> Error {
    let what = format!("{} is not what the earlier run left", part.display());
    Error::new(ErrorKind::Local, what).hint_to(hint)
}

/// Divides bytes into runs of zero blocks and of everything else, as start, end and whether it is
/// zero. Blocks are aligned to the start of the file.
fn runs(bytes: &[u8], offset: u64) -> Vec<(usize, usize, bool)> {
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let to_block = BLOCK_BYTES - (offset + start as u64) % BLOCK_BYTES;
        let end = bytes
            .len()
            .min(start + usize::try_from(to_block).unwrap_or(1));
        let is_hole = is_zero(&bytes[start..end]);
        match runs.last_mut() {
            Some((_, last, was_hole)) if *was_hole == is_hole => *last = end,
            _ => runs.push((start, end, is_hole)),
        }
        start = end;
    }
    runs
}

/// How many aligned blocks of 4 KiB within these bytes contain anything but zeros.
pub fn data_blocks(bytes: &[u8], offset: u64) -> u64 {
    let mut blocks = DataBlocks::default();
    for (start, end, is_hole) in runs(bytes, offset) {
        if !is_hole {
            blocks.add(offset + start as u64, offset + end as u64);
        }
    }
    blocks.count
}

/// Counts blocks with data; runs must be added in order.
#[derive(Debug, Default)]
struct DataBlocks {
    count: u64,
    /// The first block that was not counted yet: two runs may meet within one block.
    next: u64,
}

impl DataBlocks {
    /// The bytes from `start` to `end` contain no zero block.
    fn add(&mut self, start: u64, end: u64) {
        let first = self.next.max(start / BLOCK_BYTES);
        self.next = self.next.max(end.div_ceil(BLOCK_BYTES));
        self.count += self.next.saturating_sub(first);
    }
}

/// Locks a file that is written to.
fn lock(file: &File, path: &Path, how: Lock) -> Result<Option<Weakness>> {
    match filesystem::lock(file, how) {
        Locked::Held => Ok(None),
        Locked::Unsupported => Ok(Some(Weakness::Unlocked(path.to_owned()))),
        Locked::Busy => {
            let what = format!("Another process writes to {}", path.display());
            Err(Error::new(ErrorKind::Local, what))
        }
    }
}

/// What the file system cannot guarantee for a staged file. It is synced here, with its directory,
/// because a failure should be known at the start of the transfer and not at its end.
fn weaknesses(
    file: &File,
    part: &Path,
    unlocked: Option<Weakness>,
) -> std::io::Result<Vec<Weakness>> {
    let all = [
        unlocked,
        exposed(file, part),
        unsynced(file, part)?,
        sync_directory(directory_of(part))?,
    ];
    Ok(all.into_iter().flatten().collect())
}

fn cannot(what: &str, path: &Path, cause: std::io::Error) -> Error {
    let what = format!("Cannot {what} {}", path.display());
    let remedy = remedy(&cause);
    Error::new(ErrorKind::Local, what)
        .because(cause)
        .hint_if(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: TargetFormat = TargetFormat::Raw;

    fn once(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
        std::iter::once((offset, bytes))
    }

    #[test]
    fn runs_follow_the_blocks_of_the_file() {
        assert_eq!(runs(&[0; 10], 0), [(0, 10, true)]);
        let mut bytes = vec![0; 20_000];
        bytes[9000] = 1;
        let expected = [(0, 8192, true), (8192, 12288, false), (12288, 20_000, true)];
        assert_eq!(runs(&bytes, 0), expected);
        let expected = [(0, 8191, true), (8191, 12287, false), (12287, 20_000, true)];
        assert_eq!(runs(&bytes, 1), expected);
    }

    #[test]
    fn the_number_of_data_blocks_does_not_depend_on_write_order() {
        let mut bytes = vec![0; 40_000];
        for at in [0, 4095, 8192, 30_000, 39_999] {
            bytes[at] = 1;
        }
        assert_eq!(data_blocks(&bytes, 0), 4);
        assert_eq!(data_blocks(&[0; 10_000], 4000), 0);
        assert_eq!(data_blocks(&[], 5), 0);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.img");
        let target = ImageTarget::create(&path, 100_000, false, RAW).unwrap();
        for offset in [0, 1, 4095, 4096, 50_000] {
            let end = offset + bytes.len() as u64;
            let all = data_blocks(&bytes, offset);
            for step in [1, 100, 4096, 5000, 40_000] {
                let runs = bytes.chunks(step).enumerate();
                let runs = runs.map(|(i, run)| (offset + (i * step) as u64, run));
                // For zeros that are known, there is no run.
                let runs = runs.filter(|(_, run)| !is_zero(run));
                assert_eq!(
                    target.put_all(offset..end, runs).unwrap(),
                    all,
                    "{offset} {step}"
                );
            }
        }
    }

    #[test]
    fn a_staged_file_appears_only_when_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.img");
        let target = ImageTarget::create(&path, 1 << 20, false, RAW).unwrap();
        let mut bytes = vec![0; 100_000];
        bytes[50_000] = 7;
        target.put_all(4096..104_096, once(4096, &bytes)).unwrap();
        assert!(!path.exists());
        target.publish(false).unwrap();
        let out = std::fs::read(&path).unwrap();
        assert_eq!((out.len(), out[54_096]), (1 << 20, 7));
        let file = File::open(&path).unwrap();
        assert!(openhosting_system::allocated_bytes(&file).unwrap() <= 8192);
        let error = ImageTarget::create(&path, 5, false, RAW).unwrap_err();
        assert!(error.chain().contains("is there already"));
    }

    #[test]
    fn bytes_of_an_earlier_run_do_not_count_as_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.img");
        let target = ImageTarget::create(&path, 20_000, false, RAW).unwrap();
        target.put_all(0..20_000, once(0, &[9; 20_000])).unwrap();
        drop(target);
        let target = ImageTarget::resume(&path, 20_000, false, RAW)
            .unwrap()
            .unwrap();
        target.put_all(0..20_000, once(0, &[0; 20_000])).unwrap();
        target.publish(false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 20_000]);
        assert!(
            ImageTarget::resume(&directory.path().join("x"), 1, false, RAW)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_changed_file_is_detected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.img");
        let target = ImageTarget::create(&path, 20_000, false, TargetFormat::Raw).unwrap();
        target.put_all(0..20_000, once(0, &[9; 20_000])).unwrap();
        let then = target.handle().unwrap().metadata().unwrap();
        let (inode, at_ns) = (target.inode().unwrap(), modified_ns(&then));
        target.publish(false).unwrap();
        let target = ImageTarget::published(&path, 20_000, TargetFormat::Raw)
            .unwrap()
            .unwrap();
        assert!(target.is_as_it_was(inode, at_ns), "its name is another one");
        assert!(!target.is_as_it_was(inode + 1, at_ns));
        let later = then.modified().unwrap() + std::time::Duration::from_nanos(4_000_000);
        target.handle().unwrap().set_modified(later).unwrap();
        assert!(!target.is_as_it_was(inode, at_ns));
    }

    #[test]
    fn links_directories_and_new_files_are_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "x").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        for force in [true, false] {
            assert!(ImageTarget::create(&link, 1, force, RAW).is_err());
            assert!(ImageTarget::create(directory.path(), 1, force, RAW).is_err());
        }
        let path = directory.path().join("out");
        let target = ImageTarget::create(&path, 1, false, RAW).unwrap();
        std::fs::write(&path, "late").unwrap();
        assert!(target.publish(false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"late");
        // Another file at the staged name.
        let path = directory.path().join("other");
        let target = ImageTarget::create(&path, 1, false, RAW).unwrap();
        std::fs::remove_file(part_of(&path)).unwrap();
        std::fs::write(part_of(&path), "x").unwrap();
        assert!(target.publish(true).is_err());
        assert!(!path.exists());
        // A planted link at the staged name.
        let planted = directory.path().join("p.oh-part");
        std::os::unix::fs::symlink(&victim, &planted).unwrap();
        assert!(ImageTarget::create(&directory.path().join("p"), 1, false, RAW).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"x");
    }
}
