//! Detects whether a file changed.

use std::fs::File;
use std::path::Path;

pub use openhosting_system::modified_ns;
use openhosting_system::{FileId, Kind, device_size};
use sha2::{Digest as _, Sha256};

use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};

/// Distinguishes one state of a file from another without reading it: device, inode, size, and time
/// of the last write in nanoseconds. Renaming the file or changing its permissions does not count,
/// because it is no reason to give up. A block device has only its size, because its node has none
/// of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Size in bytes.
    pub size: u64,
    /// Device of the file system; 0 for a block device.
    pub device: u64,
    /// Inode; 0 for a block device.
    pub inode: u64,
    /// Time of the last write, in nanoseconds since 1970; 0 for a block device. For an image that
    /// is not raw, a digest of the fingerprints of all its files.
    pub modified_ns: i128,
}

impl Fingerprint {
    /// The fingerprint of an open regular file or block device.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is neither, or cannot be measured.
    pub fn of(file: &File, path: &Path) -> Result<Self> {
        let fail = |cause: std::io::Error| {
            Error::new(
                ErrorKind::Image,
                format!("Cannot measure {}", path.display()),
            )
            .because(cause)
        };
        let metadata = file.metadata().map_err(fail)?;
        if metadata.file_type().is_block() {
            return Ok(Self {
                size: device_size(file).map_err(fail)?,
                ..Self::default()
            });
        }
        if !metadata.is_file() {
            let kind = if metadata.is_dir() {
                "a directory"
            } else {
                "neither a regular file nor a block device"
            };
            let what = format!("Cannot upload {}: it is {kind}", path.display());
            return Err(Error::new(ErrorKind::Image, what)
                .hint_to("Name one disk image, or the block device of a disk"));
        }
        let FileId { device, inode } = FileId::of(file).map_err(fail)?;
        Ok(Self {
            size: metadata.len(),
            device,
            inode,
            modified_ns: modified_ns(&metadata),
        })
    }

    /// The fingerprint of an image of this format that consists of these files, its own file first.
    /// Only the time covers all files, as a digest; everything else is that of the first.
    pub(super) fn of_all<'a>(format: &str, files: impl Iterator<Item = &'a Self>) -> Self {
        let mut digest = Sha256::new_with_prefix(format);
        let mut first = None;
        let mut detects_changes = true;
        for file in files {
            digest.update(file.size.to_le_bytes());
            digest.update(file.device.to_le_bytes());
            digest.update(file.inode.to_le_bytes());
            digest.update(file.modified_ns.to_le_bytes());
            detects_changes &= file.detects_changes();
            first.get_or_insert(file);
        }
        let first = first.cloned().unwrap_or_default();
        let digest = digest.finalize();
        Self {
            inode: if detects_changes { first.inode } else { 0 },
            modified_ns: digest.first_chunk().copied().map_or(0, i128::from_le_bytes),
            ..first
        }
    }

    /// Identifies the file on its file system.
    pub(super) fn file_id(&self) -> FileId {
        FileId {
            device: self.device,
            inode: self.inode,
        }
    }

    /// Whether an equal fingerprint implies equal content. That is not so for a block device.
    pub fn detects_changes(&self) -> bool {
        self.inode != 0
    }

    /// Compares with an earlier fingerprint of the same file.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`], which says what changed.
    pub fn check_same(&self, earlier: &Self, path: &Path) -> Result<()> {
        let path = path.display();
        let what = if self.size != earlier.size {
            format!(
                "{path} changed while it was read: its size was {} bytes and is {}",
                earlier.size, self.size
            )
        } else if self != earlier {
            format!("{path} changed while it was read: it was written to or replaced")
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Integrity, what).hint_to(advice![
            "Stop what writes to the image, or take a snapshot. Then start over with ",
            Remedy::Restart,
            ", or send what changed, because the drive holds a mixture now, with ",
            Remedy::ChangedOk,
        ]))
    }
}
