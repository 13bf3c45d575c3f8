//! A file or block device whose bytes are the disk's.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openhosting_filesystem::nonblocking;
use openhosting_system::{FileAt, FileId, Guard, Kind, OpenGuarded, is_bad_sector, read_afresh};

use super::archive::{Check, Checked, Manifest};
use super::holes::{FalseHole, HoleMap, Holes};
use super::pieces::Pieces;
use super::{Disk, Fingerprint, Use};
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote;
use openhosting_system::uses_of;

/// The name of standard input in messages.
pub(super) const STDIN: &str = "stdin";

/// An open raw image.
#[derive(Clone, Debug)]
pub struct RawImage {
    place: Storage,
    path: PathBuf,
    /// The fingerprint of the whole file.
    fingerprint: Fingerprint,
    /// Where the image is in the file: all of it, or parts.
    pieces: Pieces,
    /// Present if the image is a member of an archive.
    member: Option<Arc<InArchive>>,
}

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive, safe to print.
    pub name: String,
    /// The names of the other disks in the archive, safe to print.
    pub others: Vec<String>,
    /// Whether the archive has a manifest that does not list it.
    pub is_left_out: bool,
}

impl Member {
    /// A member with this name. The names are those in the archive; this function escapes them.
    pub(super) fn new(name: &str, others: &[String]) -> Self {
        let shown = |name: &str| name.escape_debug().to_string();
        Self {
            name: shown(name),
            others: others.iter().map(|other| shown(other)).collect(),
            is_left_out: false,
        }
    }
}

/// A member of an archive that is read as an image.
#[derive(Debug)]
struct InArchive {
    member: Member,
    archive: PathBuf,
    /// The members that hold it, by their names in the archive.
    stored: Vec<String>,
    fingerprint: Fingerprint,
    manifest: Manifest,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
enum Storage {
    File(Arc<LocalFile>),
    Remote(Arc<dyn Remote>),
}

/// A file on this machine. All its readers share what is known about its holes.
#[derive(Debug)]
struct LocalFile {
    file: File,
    holes: HoleMap,
}

impl Storage {
    fn file(file: File) -> Self {
        let holes = HoleMap::default();
        Self::File(Arc::new(LocalFile { file, holes }))
    }
}

/// A remote image that can be read at any offset.
pub trait Remote: fmt::Debug + Send + Sync {
    /// Its name for messages, without secrets.
    fn name(&self) -> String;

    /// Distinguishes it from another image; includes its size.
    fn fingerprint(&self) -> Fingerprint;

    /// Fills `bytes` from `offset`. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] or [`ErrorKind::Unavailable`] if it cannot be downloaded,
    /// [`ErrorKind::Integrity`] if it changed since it was opened.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Its bytes in order, downloaded ahead of the reader.
    fn in_order(&self) -> Box<dyn Read + Send>;
}

/// Opens a file for reading and takes its fingerprint. Never blocks on a pipe that has no writer.
pub(super) fn open(path: &Path) -> Result<(File, Fingerprint)> {
    // Opening and closing a named pipe would kill the process that writes to it.
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_pipe()) {
        return Err(pipe_error(path));
    }
    let file = OpenOptions::new()
        .read(true)
        .guarded(Guard::NoWait)
        .open(path)
        .map_err(|cause| cannot_open(path, cause))?;
    let fingerprint = Fingerprint::of(&file, path)?;
    if fingerprint.size == 0 {
        return Err(empty(path));
    }
    Ok((file, fingerprint))
}

/// The error for a file that cannot be opened. If it does not exist, the hint says what the name
/// may have been meant for.
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

/// The error for a pipe, which can only be read as standard input.
fn pipe_error(path: &Path) -> Error {
    let what = format!("Cannot upload {}: it is a pipe", path.display());
    // A shell created it for `<(COMMAND)`, and it is gone when this process ends.
    let is_of_shell = path.starts_with("/dev/fd") || path.starts_with("/proc");
    let hint = match is_of_shell {
        true => advice![
            "A pipe is read in order, as stdin: COMMAND | ",
            Remedy::UploadStdin(None),
        ],
        false => advice![
            "A pipe is read in order, as stdin: ",
            Remedy::UploadStdin(None),
            format!(" < {}", quote(&path.to_string_lossy())),
        ],
    };
    Error::new(ErrorKind::Image, what).hint_to(hint)
}

fn empty(path: &Path) -> Error {
    let what = format!("{} is empty: there is nothing to upload", path.display());
    Error::new(ErrorKind::Image, what).hint_to("Check that this is the disk image that you mean")
}

impl RawImage {
    fn whole(place: Storage, path: PathBuf, fingerprint: Fingerprint) -> Self {
        Self {
            place,
            path,
            pieces: Pieces::one(0..fingerprint.size),
            fingerprint,
            member: None,
        }
    }

    /// The member of this name of the archive, stored in these pieces of the members `stored`,
    /// which are all within the file. Names are those in the archive.
    pub(super) fn with_member(
        &self,
        name: &str,
        stored: Vec<String>,
        pieces: Pieces,
        others: &[String],
        manifest: Manifest,
    ) -> Self {
        let member = Member {
            is_left_out: matches!(manifest, Manifest::Silent),
            ..Member::new(name, others)
        };
        let mut path = self.path.clone().into_os_string();
        path.push("/");
        path.push(&member.name);
        let mut place = "member".to_owned();
        for stretch in pieces.iter() {
            let _ = match stretch.at {
                Some(at) => write!(place, " {at} {}", at + stretch.len),
                None => write!(place, " - {}", stretch.len),
            };
        }
        Self {
            place: self.place.clone(),
            path: path.into(),
            fingerprint: self.fingerprint.clone(),
            member: Some(Arc::new(InArchive {
                member,
                archive: self.path.clone(),
                stored,
                manifest,
                fingerprint: Fingerprint::of_all(&place, std::iter::once(&self.fingerprint)),
            })),
            pieces,
        }
    }

    /// A part of the file, which must be within it.
    pub(super) fn with_part(&self, part: Range<u64>) -> Self {
        Self {
            pieces: Pieces::one(part),
            ..self.clone()
        }
    }

    /// The member of an archive that this is, if any.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_deref().map(|within| &within.member)
    }

    /// The archive that this is a member of, if any.
    pub(super) fn archive(&self) -> Option<&Path> {
        self.member.as_deref().map(|within| &*within.archive)
    }

    /// The members of the archive that hold it, by their names there.
    pub(super) fn stored_names(&self) -> &[String] {
        self.member.as_deref().map_or(&[], |within| &within.stored)
    }

    /// What the manifest of its archive states about it.
    fn manifest(&self) -> Option<&Manifest> {
        self.member.as_deref().map(|within| &within.manifest)
    }

    /// The file that the user gave: for a member, the archive.
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

    /// A remote image.
    pub fn remote(remote: Arc<dyn Remote>) -> Self {
        let (path, fingerprint) = (PathBuf::from(remote.name()), remote.fingerprint());
        Self::whole(Storage::Remote(remote), path, fingerprint)
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, fingerprint) = open(path)?;
        Ok(Self::whole(
            Storage::file(file),
            path.to_owned(),
            fingerprint,
        ))
    }

    /// Opens a regular file; fails for a symbolic link.
    pub(super) fn open_regular(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .guarded(Guard::NoFollowNoWait)
            .open(path)
            .map_err(|cause| cannot_open(path, cause))?;
        let image = Self::over(file, path.to_owned())?;
        match image.is_device() {
            true => {
                let what = format!("{} is no regular file", path.display());
                Err(Error::new(ErrorKind::Image, what))
            }
            false => Ok(image),
        }
    }

    /// The directory of the file, if known: not for a member of an archive, and not for a file
    /// whose name is unknown or differs here.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        if self.member.is_some() {
            return None;
        }
        let path = std::fs::canonicalize(&self.path).ok()?;
        let is_it = FileId::at(&path).ok()? == self.fingerprint.file_id();
        path.parent().filter(|_| is_it).map(Path::to_owned)
    }

    /// The standard input of this process, if that is a file of which nothing was read.
    pub(super) fn stdin() -> Result<Option<Self>> {
        let path = PathBuf::from(STDIN);
        let mut file = nonblocking::stdin()
            .map_err(|cause| Error::new(ErrorKind::Image, "Cannot read stdin").because(cause))?;
        let is_file = file.metadata().is_ok_and(|metadata| {
            let kind = metadata.file_type();
            kind.is_file() || kind.is_block()
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

    /// Whether it was opened as standard input, so that no command can name it.
    pub(super) fn is_stdin(&self) -> bool {
        self.as_given().path.as_os_str() == STDIN
    }

    /// Its bytes in order. Not available for a member of a remote archive.
    pub(super) fn in_order(&self) -> Box<dyn Read + Send> {
        match &self.place {
            Storage::File(local) => Box::new(InOrder {
                local: Arc::clone(local),
                part: 0..self.size(),
            }),
            Storage::Remote(remote) => remote.in_order(),
        }
    }

    /// The file, if it is on this machine.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.place {
            Storage::File(local) => Some(&local.file),
            Storage::Remote(_) => None,
        }
    }

    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        self.file().is_some()
    }

    /// An open file, to be read as an image.
    pub(super) fn over(file: File, path: PathBuf) -> Result<Self> {
        let fingerprint = Fingerprint::of(&file, &path)?;
        Ok(Self::whole(Storage::file(file), path, fingerprint))
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.pieces.size()
    }

    /// Other uses of the device, or of devices that are made from the file.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        self.file().map_or_else(BTreeSet::new, uses_of)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.is_local() && !self.fingerprint.detects_changes()
    }

    /// Distinguishes it from another image; for a member, also by its position.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        match &self.member {
            Some(member) => &member.fingerprint,
            None => &self.fingerprint,
        }
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        match &self.place {
            Storage::File(local) => {
                Fingerprint::of(&local.file, &self.path)?.check_same(&self.fingerprint, &self.path)
            }
            // Every response of the server is checked for that.
            Storage::Remote(_) => Ok(()),
        }
    }

    /// Decides how far the holes of the file are believed; see [`Image::decide_holes`]. This
    /// applies to all readers of the file. Blocks.
    ///
    /// [`Image::decide_holes`]: super::Image::decide_holes
    pub(super) fn decide_holes(&self, how: Holes) -> Option<FalseHole> {
        let Storage::File(local) = &self.place else {
            return None;
        };
        let found = local.holes.decide(&local.file, self.fingerprint.size, how);
        found.map(|offset| FalseHole {
            file: self.as_given().path.display().to_string(),
            offset,
        })
    }

    /// The first extent of data that ends after `offset`, in bytes; `None` if only holes follow. If
    /// holes are unknown or not believed, everything is data.
    pub fn data_after(&self, offset: u64) -> Option<Range<u64>> {
        let mut offset = offset;
        while let Some(stretch) = self.pieces.at(offset) {
            if let Some(at) = stretch.at
                && let Some(data) = self.data_in(at..at + stretch.len)
            {
                return Some(offset + (data.start - at)..offset + (data.end - at));
            }
            offset += stretch.len;
        }
        None
    }

    /// The first extent of data in a part of the file.
    fn data_in(&self, part: Range<u64>) -> Option<Range<u64>> {
        let Storage::File(local) = &self.place else {
            return Some(part);
        };
        let size = self.fingerprint.size;
        let data = local.holes.data_after(&local.file, size, part.start)?;
        (data.start < part.end).then(|| data.start..data.end.min(part.end))
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, with the offset of the first byte that failed;
    /// [`ErrorKind::Integrity`] if the image ends earlier, although it was longer when it was
    /// opened.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.fetch(bytes, offset)?;
        match self.manifest() {
            Some(Manifest::Lists(checks)) => checks
                .iter()
                .try_for_each(|check| check.saw(self, bytes, offset)),
            _ => Ok(()),
        }
    }

    /// Starts checking what is read by the manifest of the archive. Returns whether the manifest
    /// has a digest; if so, [`finish_check`](Self::finish_check) completes the check.
    pub(super) fn begin_check(&self) -> bool {
        match self.manifest() {
            Some(Manifest::Lists(checks)) => {
                checks.iter().for_each(Check::begin);
                true
            }
            _ => false,
        }
    }

    /// Completes a check: reads what was not read since it began, and compares the digest with the
    /// manifest. A successful result is remembered. Blocks, and stops when `should_continue`
    /// returns false.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if the digest differs or the file changed; errors of reading;
    /// [`ErrorKind::Cancelled`] if it stopped early.
    pub fn finish_check(&self, should_continue: &dyn Fn() -> bool) -> Result<()> {
        match self.manifest() {
            Some(Manifest::Lists(checks)) => checks
                .iter()
                .try_for_each(|check| check.finish(self, should_continue)),
            _ => Ok(()),
        }
    }

    /// Fills `bytes` from `offset`, without reporting them to a check.
    pub(super) fn fetch(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let (mut rest, mut offset) = (bytes, offset);
        while !rest.is_empty() {
            let Some(stretch) = self.pieces.at(offset) else {
                self.check_unchanged()?;
                return Err(self.read_error(offset, std::io::ErrorKind::UnexpectedEof.into()));
            };
            let len = usize::try_from(stretch.len).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(len.min(rest.len()));
            match stretch.at {
                Some(at) => self.fetch_from(at, part, offset)?,
                None => part.fill(0),
            }
            offset += part.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Fills `bytes`, which begin at `offset` of the image, from byte `start` of the file.
    fn fetch_from(&self, start: u64, bytes: &mut [u8], offset: u64) -> Result<()> {
        let file = match &self.place {
            Storage::File(local) => &local.file,
            Storage::Remote(remote) => return remote.read_at(bytes, start),
        };
        let mut done = 0;
        while done < bytes.len() {
            // A read returns the bytes before a bad sector first.
            let (at, from) = (offset + done as u64, start + done as u64);
            match file.read_at(&mut bytes[done..], from) {
                Ok(0) => {
                    self.check_unchanged()?;
                    return Err(self.read_error(at, std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(n) => done += n,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    let len = bytes.len() - done;
                    let bad = match is_bad_sector(&cause) {
                        true => first_bad(file, from, len),
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

/// How many of the `len` bytes at `offset`, which could not be read together, precede the first
/// unreadable sector: the kernel may fail a larger read as a whole. 0 if each of them can be read
/// now.
fn first_bad(file: &File, offset: u64, len: usize) -> u64 {
    const SECTOR_BYTES: u64 = 4096;
    // Otherwise the kernel would repeat the read of the same cached piece.
    read_afresh(file, offset, len);
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

/// Reads a file from an offset on, without moving the file's own offset, which other readers share.
struct InOrder {
    local: Arc<LocalFile>,
    part: Range<u64>,
}

impl Read for InOrder {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.part.end - self.part.start).unwrap_or(usize::MAX);
        let most = left.min(bytes.len());
        let n = self
            .local
            .file
            .read_at(&mut bytes[..most], self.part.start)?;
        self.part.start += n as u64;
        Ok(n)
    }
}

impl Checked for RawImage {
    fn fetch(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.fetch(bytes, offset)
    }

    fn data_after(&self, offset: u64) -> Option<Range<u64>> {
        self.data_after(offset)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.check_unchanged()
    }

    fn path(&self) -> &Path {
        self.path()
    }
}

impl Disk for RawImage {
    fn size(&self) -> u64 {
        self.size()
    }

    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok(self.data_after(offset))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(bytes, offset)
    }

    fn check_unchanged(&self) -> Result<()> {
        self.check_unchanged()
    }
}
