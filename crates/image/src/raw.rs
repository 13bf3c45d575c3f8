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
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote;
use openhosting_system::uses_of;

/// What stdin is called.
pub(super) const STDIN: &str = "stdin";

/// An open raw image.
#[derive(Clone, Debug)]
pub struct RawImage {
    place: Place,
    path: PathBuf,
    /// That of the file, all of it.
    fingerprint: Fingerprint,
    /// Where the image is in the file: all of it, or parts.
    pieces: Pieces,
    /// What the parts are, if they are a member of an archive.
    member: Option<Arc<InArchive>>,
}

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive, as it may be shown.
    pub name: String,
    /// The names of the other disks in the archive, as they may be shown.
    pub others: Vec<String>,
    /// Whether the archive has a manifest without a digest of it.
    pub is_left_out: bool,
}

impl Member {
    /// The member of this name. Names are those in the archive, and escaped here.
    pub(super) fn new(name: &str, others: &[String]) -> Self {
        let shown = |name: &str| name.escape_debug().to_string();
        Self {
            name: shown(name),
            others: others.iter().map(|other| shown(other)).collect(),
            is_left_out: false,
        }
    }
}

/// A member that is read as an image.
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
enum Place {
    File(Arc<LocalFile>),
    Remote(Arc<dyn Remote>),
}

/// A file on this machine. Whoever reads it shares what is known of its holes.
#[derive(Debug)]
struct LocalFile {
    file: File,
    holes: HoleMap,
}

impl Place {
    fn file(file: File) -> Self {
        let holes = HoleMap::default();
        Self::File(Arc::new(LocalFile { file, holes }))
    }
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
    // To open a named pipe and close it again would end whoever writes to it.
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_pipe()) {
        return Err(is_pipe(path));
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

/// The error of a pipe, which is read as stdin only.
fn is_pipe(path: &Path) -> Error {
    let what = format!("Cannot upload {}: it is a pipe", path.display());
    // A shell made it for `<(COMMAND)`, and it is gone with this process.
    let is_of_shell = path.starts_with("/dev/fd") || path.starts_with("/proc");
    let hint = match is_of_shell {
        true => {
            "A pipe is read in order, as stdin: COMMAND | openhosting-upload -n NAME -".to_owned()
        }
        false => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let (name, path) = (quote(&name), quote(&path.to_string_lossy()));
            format!("A pipe is read in order, as stdin: openhosting-upload -n {name} - < {path}")
        }
    };
    Error::new(ErrorKind::Image, what).hint_to(hint)
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
            pieces: Pieces::one(0..fingerprint.size),
            fingerprint,
            member: None,
        }
    }

    /// The member of this name of the archive that it is, which lies in these pieces of the
    /// members `stored`, all within it. Names are those in the archive.
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

    /// A part of the file, which is all within it.
    pub(super) fn with_part(&self, part: Range<u64>) -> Self {
        Self {
            pieces: Pieces::one(part),
            ..self.clone()
        }
    }

    /// The member of an archive that it is, if it is one.
    pub fn member(&self) -> Option<&Member> {
        self.member.as_deref().map(|within| &within.member)
    }

    /// The archive that it is a member of, if it is one.
    pub(super) fn archive(&self) -> Option<&Path> {
        self.member.as_deref().map(|within| &*within.archive)
    }

    /// The members of the archive that hold it, by their names there.
    pub(super) fn stored_names(&self) -> &[String] {
        self.member.as_deref().map_or(&[], |within| &within.stored)
    }

    /// What the manifest of its archive tells of it.
    fn manifest(&self) -> Option<&Manifest> {
        self.member.as_deref().map(|within| &within.manifest)
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
        Ok(Self::whole(Place::file(file), path.to_owned(), fingerprint))
    }

    /// Opens a regular file that is no link.
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

    /// The directory that the file itself is in, if it is known: not of a member of an
    /// archive, nor of what has another name here or none.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        if self.member.is_some() {
            return None;
        }
        let path = std::fs::canonicalize(&self.path).ok()?;
        let is_it = FileId::at(&path).ok()? == self.fingerprint.file_id();
        path.parent().filter(|_| is_it).map(Path::to_owned)
    }

    /// What this process reads from its stdin, if that is a file and nothing of it
    /// was read.
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

    /// Whether it was opened as stdin, so that it has no name for a command.
    pub(super) fn is_stdin(&self) -> bool {
        self.as_given().path.as_os_str() == STDIN
    }

    /// Its bytes in order. Of what is elsewhere no member can be had so.
    pub(super) fn in_order(&self) -> Box<dyn Read + Send> {
        match &self.place {
            Place::File(local) => Box::new(InOrder {
                local: Arc::clone(local),
                part: 0..self.size(),
            }),
            Place::Remote(remote) => remote.in_order(),
        }
    }

    /// The file on this machine.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.place {
            Place::File(local) => Some(&local.file),
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
        Ok(Self::whole(Place::file(file), path, fingerprint))
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.pieces.size()
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
            Place::File(local) => {
                Fingerprint::of(&local.file, &self.path)?.check_same(&self.fingerprint, &self.path)
            }
            // Every answer tells.
            Place::Remote(_) => Ok(()),
        }
    }

    /// Decides how far the holes of the file are believed; see [`Image::decide_holes`].
    /// Whatever else reads the file, all of it, goes by that too. Blocks.
    ///
    /// [`Image::decide_holes`]: super::Image::decide_holes
    pub(super) fn decide_holes(&self, how: Holes) -> Option<FalseHole> {
        let Place::File(local) = &self.place else {
            return None;
        };
        let found = local.holes.decide(&local.file, self.fingerprint.size, how);
        found.map(|offset| FalseHole {
            file: self.as_given().path.display().to_string(),
            offset,
        })
    }

    /// The first extent of data that ends after `offset`, in bytes; `None` if
    /// there are only holes up to the end. Where holes are unknown or not believed, all
    /// is data.
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
        let Place::File(local) = &self.place else {
            return Some(part);
        };
        let size = self.fingerprint.size;
        let data = local.holes.data_after(&local.file, size, part.start)?;
        (data.start < part.end).then(|| data.start..data.end.min(part.end))
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, which names the first byte that
    /// could not; [`ErrorKind::Integrity`] if the image ends before: it was not so
    /// short when it was opened.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.fetch(bytes, offset)?;
        match self.manifest() {
            Some(Manifest::Tells(checks)) => checks
                .iter()
                .try_for_each(|check| check.saw(self, bytes, offset)),
            _ => Ok(()),
        }
    }

    /// From now on what is read of it is checked by the manifest of its archive. Whether
    /// that tells a digest of it; then [`finish_check`](Self::finish_check) ends it.
    pub(super) fn begin_check(&self) -> bool {
        match self.manifest() {
            Some(Manifest::Tells(checks)) => {
                checks.iter().for_each(Check::begin);
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
        match self.manifest() {
            Some(Manifest::Tells(checks)) => checks
                .iter()
                .try_for_each(|check| check.finish(self, goes_on)),
            _ => Ok(()),
        }
    }

    /// Fills `bytes` from `offset`, and tells nobody.
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
            Place::File(local) => &local.file,
            Place::Remote(remote) => return remote.read_at(bytes, start),
        };
        let mut done = 0;
        while done < bytes.len() {
            // A disk gives what is before a bad sector first.
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

/// How many of the `len` bytes at `offset`, which cannot be read together, are before
/// the first sector that cannot be read: the kernel may give up a larger piece as a
/// whole. 0 if each of them can be read now.
fn first_bad(file: &File, offset: u64, len: usize) -> u64 {
    const SECTOR_BYTES: u64 = 4096;
    // Else the kernel tries the same piece again.
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

/// A file, read from a place on without moving its offset, which others share.
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
