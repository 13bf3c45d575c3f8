//! Images on this machine. Reading one: what it is, how large, where its holes
//! are, and whether it stays the same while it is read. Writing one: staged, sparse,
//! and published when it is whole. Everything here blocks; it runs on threads
//! of its own, never on the reactor.

mod census;
mod content;
mod fingerprint;
mod format;
mod gzip;
mod mapped;
mod raw;
mod reader;
mod target;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::Result;

pub use census::Census;
pub use content::content_of;
pub use fingerprint::Fingerprint;
pub use format::Format;
pub use gzip::GzipImage;
pub use mapped::MappedImage;
pub use raw::RawImage;
pub use reader::{ImageReader, Piece};
pub use target::ImageTarget;

/// The bytes of a disk, which can be read at any place and from several threads at
/// once.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The first extent of data that ends after `offset`, in bytes, or a part of it
    /// that begins where it does; `None` if there are only holes up to the end.
    /// Where holes cannot be told, all is data.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if it cannot be told.
    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if it cannot be read, [`ErrorKind::Integrity`](crate::ErrorKind::Integrity) if the
    /// image ends before: it was not so short when it was opened.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;
}

/// How to open an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// What it is. `None` tells it by its content, which is not safe for a raw
    /// image that somebody not trusted could write to: who can make it look like
    /// another format decides what is read.
    pub format: Option<Format>,
    /// The files that it may be written on top of, and directories of such files.
    /// What the image itself names counts for nothing.
    pub allow_backing: Vec<PathBuf>,
}

/// An image to read from.
#[derive(Debug)]
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawImage),
    /// A file of a format that has a map of the disk.
    Mapped(Box<MappedImage>),
    /// A gzip file whose content is the disk's bytes.
    Gzip(Box<GzipImage>),
}

impl Image {
    /// Opens a regular file or block device of any format. One that is not raw is
    /// walked over once, tables only, so that a damaged one is told here.
    ///
    /// A block device is raw unless its format is told.
    ///
    /// # Errors
    /// [`ErrorKind::Image`](crate::ErrorKind::Image) if it is neither, is empty, cannot be opened, is not
    /// sound, or needs a file that was not allowed.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self> {
        let file = RawImage::open(path)?;
        let format = match options.format {
            Some(format) => format,
            None if file.is_device() => Format::Raw,
            None => Format::of(&file)?,
        };
        match format {
            Format::Raw => Ok(Self::Raw(file)),
            _ => MappedImage::open(file, format, &options.allow_backing)
                .map(Box::new)
                .map(Self::Mapped),
        }
    }

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

    /// Its format; of gzip, that of its content.
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) | Self::Gzip(_) => Format::Raw,
            Self::Mapped(image) => image.format(),
        }
    }

    /// The disk, if it can be read at any place: gzip can be read in order only.
    pub fn disk(&self) -> Option<&dyn Disk> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Mapped(image) => Some(&**image),
            Self::Gzip(_) => None,
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw(image) => image.size(),
            Self::Mapped(image) => image.size(),
            Self::Gzip(image) => image.size(),
        }
    }

    /// What it was when it was opened.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Self::Raw(image) => image.fingerprint(),
            Self::Mapped(image) => image.fingerprint(),
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
            Self::Mapped(image) => image.check_unchanged(),
            Self::Gzip(image) => image.check_unchanged(),
        }
    }
}
