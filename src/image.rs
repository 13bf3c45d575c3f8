//! Images on this machine. Reading one: what it is, how large, where its holes
//! are, and whether it stays the same while it is read. Writing one: staged, sparse,
//! and published when it is whole. Everything here blocks; it runs on threads
//! of its own, never on the reactor.

mod fingerprint;
mod gzip;
mod raw;
mod reader;
mod target;

use std::path::Path;

use crate::error::Result;

pub use fingerprint::Fingerprint;
pub use gzip::GzipImage;
pub use raw::RawImage;
pub use reader::{ImageReader, Piece};
pub use target::ImageTarget;

/// An image to read from.
#[derive(Debug)]
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawImage),
    /// A gzip file whose content is the disk's bytes.
    Gzip(Box<GzipImage>),
}

impl Image {
    /// Opens a regular file or block device whose bytes are the disk's.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if it is neither, is empty, or cannot be opened.
    pub fn open_raw(path: &Path) -> Result<Self> {
        RawImage::open(path).map(Self::Raw)
    }

    /// Opens a gzip file whose content is the disk's bytes. It is unpacked once
    /// to measure and check it: the length that gzip stores is modulo 4 GiB and
    /// only of its last member (REFERENCE 4.4, fault 13).
    ///
    /// # Errors
    /// As [`Image::open_raw`], and for a file that is not sound gzip.
    pub fn open_gzip(path: &Path) -> Result<Self> {
        GzipImage::open(path).map(Box::new).map(Self::Gzip)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw(image) => image.size(),
            Self::Gzip(image) => image.size(),
        }
    }

    /// What it was when it was opened.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Self::Raw(image) => image.fingerprint(),
            Self::Gzip(image) => image.fingerprint(),
        }
    }

    /// Whether the image is still what it was when it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`](crate::ErrorKind::Integrity) if it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        match self {
            Self::Raw(image) => image.check_unchanged(),
            Self::Gzip(image) => image.check_unchanged(),
        }
    }
}
