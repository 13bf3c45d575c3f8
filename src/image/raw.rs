//! A file or block device whose bytes are the disk's.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::archive::Manifest;
use super::uses::{Use, uses_of};
use super::{Disk, Fingerprint};
use crate::error::{Error, ErrorKind, Result};

/// An open raw image.
#[derive(Clone, Debug)]
pub struct RawImage {
    place: Place,
    path: PathBuf,
    /// That of the file, all of it.
    fingerprint: Fingerprint,
    /// Where the image is in the file: all of it, or a part.
    part: Range<u64>,
    /// What the part is, if it is one.
    member: Option<Arc<Member>>,
}

/// A member of an archive, which a part of a file is.
#[derive(Debug)]
pub struct Member {
    /// Its name in the archive, as it may be shown.
    pub name: String,
    /// The names of the other disks in the archive, as they may be shown.
    pub others: Vec<String>,
    archive: PathBuf,
    fingerprint: Fingerprint,
    manifest: Manifest,
}

impl Member {
    /// Whether the archive has a manifest that tells no digest of it.
    pub fn is_left_out(&self) -> bool {
        matches!(self.manifest, Manifest::Silent)
    }
}

/// Where the bytes are.
#[derive(Clone, Debug)]
enum Place {
    File(Arc<File>),
    Remote(Arc<dyn Remote>),
}

/// An image that is elsewhere, and can be read at any place.
pub trait Remote: fmt::Debug + Send + Sync {
    /// What it is called in messages. No secret.
    fn name(&self) -> String;

    /// What tells it from another, its size included.
    fn fingerprint(&self) -> Fingerprint;

    /// Fills `bytes` from `offset`. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] or [`ErrorKind::Unavailable`] if it cannot be fetched,
    /// [`ErrorKind::Integrity`] if it is not any more what it was when it was opened.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Its bytes in order, fetched ahead.
    fn in_order(&self) -> Box<dyn Read + Send>;
}

/// Opens a file for reading without ever waiting for the other end of a pipe,
/// and takes its fingerprint.
pub(super) fn open(path: &Path) -> Result<(File, Fingerprint)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|cause| cannot_open(path, cause))?;
    let fingerprint = Fingerprint::of(&file, path)?;
    if fingerprint.size == 0 {
        return Err(empty(path));
    }
    Ok((file, fingerprint))
}

/// The error of a file that cannot be opened; of one that is not there, with what its
/// name may have been meant for.
fn cannot_open(path: &Path, cause: std::io::Error) -> Error {
    let is_missing = cause.kind() == std::io::ErrorKind::NotFound;
    let name = path.to_string_lossy();
    let error =
        Error::new(ErrorKind::Image, format!("Cannot open {}", path.display())).because(cause);
    match name.split_once("://") {
        Some((scheme, _)) if is_missing && scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
            error.hint_to(format!("{scheme}: is no scheme that is read; fetch the image first"))
        }
        _ if is_missing && name.contains(['*', '?', '[', '{']) => error.hint_to(
            "The shell found no file that fits this pattern, and here it is a name. One image is uploaded at a time",
        ),
        _ => error,
    }
}

fn empty(path: &Path) -> Error {
    let what = format!("{} is empty: there is nothing to upload", path.display());
    Error::new(ErrorKind::Image, what)
}

impl RawImage {
    fn whole(place: Place, path: PathBuf, fingerprint: Fingerprint) -> Self {
        Self {
            place,
            path,
            part: 0..fingerprint.size,
            fingerprint,
            member: None,
        }
    }

    /// The member of this name of the archive that it is, which lies at these bytes and
    /// within it. Names are those in the archive, and escaped here.
    pub(super) fn with_member(
        &self,
        name: &str,
        part: Range<u64>,
        others: &[String],
        manifest: Manifest,
    ) -> Self {
        let shown = |name: &str| name.escape_debug().to_string();
        let mut path = self.path.clone().into_os_string();
        path.push("/");
        path.push(shown(name));
        let place = format!("member {} {}", part.start, part.end);
        Self {
            place: self.place.clone(),
            path: path.into(),
            fingerprint: self.fingerprint.clone(),
            member: Some(Arc::new(Member {
                name: shown(name),
                others: others.iter().map(|other| shown(other)).collect(),
                archive: self.path.clone(),
                manifest,
                fingerprint: Fingerprint::of_all(&place, std::iter::once(&self.fingerprint)),
            })),
            part,
        }
    }

    /// The member of an archive that it is, if it is one.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_deref()
    }

    /// The file as the user gave it: of a member the archive.
    pub fn as_given(&self) -> Self {
        match &self.member {
            Some(member) => Self::whole(
                self.place.clone(),
                member.archive.clone(),
                self.fingerprint.clone(),
            ),
            None => self.clone(),
        }
    }

    /// One that is elsewhere.
    pub fn remote(remote: Arc<dyn Remote>) -> Self {
        let (path, fingerprint) = (PathBuf::from(remote.name()), remote.fingerprint());
        Self::whole(Place::Remote(remote), path, fingerprint)
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, fingerprint) = open(path)?;
        Ok(Self::whole(
            Place::File(Arc::new(file)),
            path.to_owned(),
            fingerprint,
        ))
    }

    /// What this process reads from its stdin, if that is a file and nothing of it
    /// was read.
    pub(super) fn stdin() -> Result<Option<Self>> {
        let path = PathBuf::from("stdin");
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let mut file =
            File::from(stdin.map_err(|cause| {
                Error::new(ErrorKind::Image, "Cannot read stdin").because(cause)
            })?);
        let is_file = file.metadata().is_ok_and(|metadata| {
            let kind = metadata.file_type();
            kind.is_file() || kind.is_block_device()
        });
        if !is_file || !file.stream_position().is_ok_and(|at| at == 0) {
            return Ok(None);
        }
        let stdin = Self::over(file, path)?;
        match stdin.size() {
            0 => Err(empty(&stdin.path)),
            _ => Ok(Some(stdin)),
        }
    }

    /// Its bytes in order. Of what is elsewhere no member can be had so.
    pub(super) fn in_order(&self) -> Box<dyn Read + Send> {
        match &self.place {
            Place::File(file) => Box::new(InOrder {
                file: Arc::clone(file),
                part: self.part.clone(),
            }),
            Place::Remote(remote) => remote.in_order(),
        }
    }

    /// The file on this machine.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.place {
            Place::File(file) => Some(file),
            Place::Remote(_) => None,
        }
    }

    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        self.file().is_some()
    }

    /// An open file, to be read as an image.
    pub(super) fn over(file: File, path: PathBuf) -> Result<Self> {
        let fingerprint = Fingerprint::of(&file, &path)?;
        Ok(Self::whole(Place::File(Arc::new(file)), path, fingerprint))
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.part.end - self.part.start
    }

    /// Who else uses the device, or one over the file.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        self.file().map_or_else(BTreeSet::new, uses_of)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.is_local() && !self.fingerprint.tells_changes()
    }

    /// What tells it from another image: of a member its place as well.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        match &self.member {
            Some(member) => &member.fingerprint,
            None => &self.fingerprint,
        }
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        match &self.place {
            Place::File(file) => {
                Fingerprint::of(file, &self.path)?.check_same(&self.fingerprint, &self.path)
            }
            // Every answer tells.
            Place::Remote(_) => Ok(()),
        }
    }

    /// The first extent of data that ends after `offset`, in bytes; `None` if
    /// there are only holes up to the end. Where holes cannot be told, all is
    /// data.
    pub fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let Place::File(file) = &self.place else {
            return Ok(Some(offset..size));
        };
        let before = self.part.start;
        let start = match seek(file, SeekFrom::Data(before + offset)) {
            Ok(start) => start - before,
            // Nothing but holes, or the file ends before `offset` now; then
            // the fingerprint tells.
            Err(Errno::NXIO) => return Ok(None),
            // A block device, or a file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset..size)),
            Err(errno) => return Err(self.read_error(offset, errno.into())),
        };
        let hole = seek(file, SeekFrom::Hole(before + start));
        let end = hole.map_or(size, |hole| hole - before);
        Ok((start < size).then(|| start..end.clamp(start + 1, size)))
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, which names the first byte that
    /// could not; [`ErrorKind::Integrity`] if the image ends before: it was not so
    /// short when it was opened.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.fetch(bytes, offset)?;
        match self.member.as_deref().map(|member| &member.manifest) {
            Some(Manifest::Tells(check)) => check.saw(self, bytes, offset),
            _ => Ok(()),
        }
    }

    /// From now on what is read of it is checked by the manifest of its archive. Whether
    /// that tells a digest of it; then [`finish_check`](Self::finish_check) ends it.
    pub(super) fn begin_check(&self) -> bool {
        match self.member.as_deref().map(|member| &member.manifest) {
            Some(Manifest::Tells(check)) => {
                check.begin();
                true
            }
            _ => false,
        }
    }

    /// Ends a check: reads what was not read since it began, and demands the digest that
    /// the manifest tells. Once it was found to be right that is known. Blocks, and gives
    /// up when `goes_on` says no.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if the digest is another one, or the file changed; what
    /// reading says; [`ErrorKind::Cancelled`] if it gave up.
    pub fn finish_check(&self, goes_on: &dyn Fn() -> bool) -> Result<()> {
        match self.member.as_deref().map(|member| &member.manifest) {
            Some(Manifest::Tells(check)) => check.finish(self, goes_on),
            _ => Ok(()),
        }
    }

    /// Fills `bytes` from `offset`, and tells nobody.
    pub(super) fn fetch(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        // What comes after a member is another one's.
        if self.member.is_some() && end.is_none_or(|end| end > self.size()) {
            return Err(self.read_error(offset, std::io::ErrorKind::UnexpectedEof.into()));
        }
        let file = match &self.place {
            Place::File(file) => file,
            Place::Remote(remote) => return remote.read_at(bytes, self.part.start + offset),
        };
        let mut done = 0;
        while done < bytes.len() {
            // A disk gives what is before a bad sector first.
            let at = offset + done as u64;
            match file.read_at(&mut bytes[done..], self.part.start + at) {
                Ok(0) => {
                    self.check_unchanged()?;
                    return Err(self.read_error(at, std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(n) => done += n,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    let len = bytes.len() - done;
                    let bad = match is_bad_sector(&cause) {
                        true => first_bad(file, self.part.start + at, len),
                        false => 0,
                    };
                    return Err(self.read_error(at + bad, cause));
                }
            }
        }
        Ok(())
    }

    fn read_error(&self, offset: u64, cause: std::io::Error) -> Error {
        let what = format!("Cannot read {} at byte {offset}", self.path.display());
        let is_bad = is_bad_sector(&cause);
        let error = Error::new(ErrorKind::Image, what).because(cause);
        if is_bad {
            return error.hint_to(
                "The disk fails there. Save what can be read to another one, with ddrescue for example, and upload that",
            );
        }
        error
    }
}

fn is_bad_sector(cause: &std::io::Error) -> bool {
    Errno::from_io_error(cause) == Some(Errno::IO)
}

/// How many of the `len` bytes at `offset`, which cannot be read together, are before
/// the first sector that cannot be read: the kernel may give up a larger piece as a
/// whole. 0 if each of them can be read now.
fn first_bad(file: &File, offset: u64, len: usize) -> u64 {
    const SECTOR_BYTES: u64 = 4096;
    // Else the kernel tries the same piece again.
    for advice in [Advice::DontNeed, Advice::Random] {
        let _ = fadvise(file, offset, NonZeroU64::new(len as u64), advice);
    }
    let mut sector = [0; SECTOR_BYTES as usize];
    let end = offset + len as u64;
    let mut at = offset;
    while at < end {
        let next = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
        let step = usize::try_from(next.min(end) - at).unwrap_or(0);
        match file.read_at(&mut sector[..step], at) {
            Err(cause) if is_bad_sector(&cause) => return at - offset,
            _ => at = next,
        }
    }
    0
}

/// A file, read from a place on without moving its offset, which others share.
struct InOrder {
    file: Arc<File>,
    part: Range<u64>,
}

impl Read for InOrder {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.part.end - self.part.start).unwrap_or(usize::MAX);
        let most = left.min(bytes.len());
        let n = self.file.read_at(&mut bytes[..most], self.part.start)?;
        self.part.start += n as u64;
        Ok(n)
    }
}

impl Disk for RawImage {
    fn size(&self) -> u64 {
        self.size()
    }

    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.data_after(offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(bytes, offset)
    }
}
