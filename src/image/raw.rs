//! A file or block device whose bytes are the disk's.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;

use super::uses::{Use, uses_of};
use super::{Disk, Fingerprint};
use crate::error::{Error, ErrorKind, Result};

/// An open raw image.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    fingerprint: Fingerprint,
}

/// Opens a file for reading without ever waiting for the other end of a pipe,
/// and takes its fingerprint.
pub(super) fn open(path: &Path) -> Result<(File, Fingerprint)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|cause| {
            Error::new(ErrorKind::Image, format!("Cannot open {}", path.display())).because(cause)
        })?;
    let fingerprint = Fingerprint::of(&file, path)?;
    if fingerprint.size == 0 {
        let what = format!("{} is empty: there is nothing to upload", path.display());
        return Err(Error::new(ErrorKind::Image, what));
    }
    Ok((file, fingerprint))
}

impl RawImage {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, fingerprint) = open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            fingerprint,
        })
    }

    /// An open file, to be read as an image.
    pub(super) fn over(file: File, path: PathBuf) -> Result<Self> {
        let fingerprint = Fingerprint::of(&file, &path)?;
        Ok(Self {
            file,
            path,
            fingerprint,
        })
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.fingerprint.size
    }

    /// Who else uses the device, or one over the file.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        uses_of(&self.file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        !self.fingerprint.tells_changes()
    }

    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        Fingerprint::of(&self.file, &self.path)?.check_same(&self.fingerprint, &self.path)
    }

    /// The first extent of data that ends after `offset`, in bytes; `None` if
    /// there are only holes up to the end. Where holes cannot be told, all is
    /// data.
    pub fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // Nothing but holes, or the file ends before `offset` now; then
            // the fingerprint tells.
            Err(Errno::NXIO) => return Ok(None),
            // A block device, or a file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset..size)),
            Err(errno) => return Err(self.read_error(offset, errno.into())),
        };
        let end = seek(&self.file, SeekFrom::Hole(start)).unwrap_or(size);
        Ok((start < size).then(|| start..end.clamp(start + 1, size)))
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, which names the first byte that
    /// could not; [`ErrorKind::Integrity`] if the image ends before: it was not so
    /// short when it was opened.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            // A disk gives what is before a bad sector first.
            let at = offset + done as u64;
            match self.file.read_at(&mut bytes[done..], at) {
                Ok(0) => {
                    self.check_unchanged()?;
                    return Err(self.read_error(at, std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(n) => done += n,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.read_error(at, cause)),
            }
        }
        Ok(())
    }

    fn read_error(&self, offset: u64, cause: std::io::Error) -> Error {
        let what = format!("Cannot read {} at byte {offset}", self.path.display());
        let is_bad_sector = Errno::from_io_error(&cause) == Some(Errno::IO);
        let error = Error::new(ErrorKind::Image, what).because(cause);
        if is_bad_sector {
            return error.hint_to(
                "The disk fails there. Save what can be read to another one, with ddrescue for example, and upload that",
            );
        }
        error
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
