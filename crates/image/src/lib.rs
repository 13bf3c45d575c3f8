//! Images on this machine. Reading one: what it is, how large, where its holes
//! are, and whether it stays the same while it is read. Writing one: staged, sparse,
//! and published when it is whole. Everything here blocks; it runs on threads
//! of its own, never on the reactor. There is no network, but for a [`Remote`] that the
//! caller brings.
//!
//! Start at [`Image::open`] and [`ImageReader`] for reading, at [`ImageTarget`] for writing.

mod archive;
mod census;
mod content;
mod fingerprint;
mod foreign;
mod format;
mod gpt;
mod holes;
mod mapped;
mod notices;
mod pieces;
mod raw;
mod reader;
mod signs;
mod stream;
mod target;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openhosting_base::{buffer, chunk, codec, digest, error, plan, quoting};
use openhosting_filesystem::{self as filesystem, nonblocking};

use crate::error::{Error, ErrorKind, Result};

pub use census::Census;
pub use content::content_of;
pub use fingerprint::{Fingerprint, modified_ns};
pub use format::Format;
pub use gpt::Gpt;
pub use holes::{FalseHole, Holes};
pub use mapped::MappedImage;
pub use notices::LateNotices;
pub use openhosting_system::Use;
pub use raw::{Member, RawImage, Remote};
pub use reader::{ImageReader, Piece, Unread};
pub use stream::{
    Input, Length, Sought, StreamEnd, StreamFormat, StreamImage, StreamOptions, Trailer,
    xz_index_size,
};
pub use target::{ClusterPacking, ImageTarget, TargetFormat, data_blocks, part_of};

/// The bytes of a disk, which can be read at any place and from several threads at
/// once.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The first extent of data that ends after `offset`, in bytes, or a part of it
    /// that begins where it does; `None` if there are only holes up to the end.
    /// Where holes are unknown or not believed, all is data.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be told.
    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, [`ErrorKind::Integrity`] if the
    /// image ends before: it was not so short when it was opened.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Whether it is still what it was when it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it is not.
    fn check_unchanged(&self) -> Result<()>;
}

/// How to open an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// What it is. `None` tells it by its content, which is not safe for a raw
    /// image that somebody not trusted could write to: who can make it look like
    /// another format decides what is read. Of an archive it is that of the disk in it;
    /// but raw and VHD, which begin with what a guest wrote, are the image's own unless
    /// a disk is named.
    pub format: Option<Format>,
    /// The member of the archive that it is to be. `None` for the first disk, if it is
    /// an archive.
    pub disk: Option<String>,
    /// The files that it may be written on top of, and directories of such files.
    /// What the image itself names counts for nothing.
    pub allow_backing: Vec<PathBuf>,
    /// How to read it if it can be read in order only.
    pub stream: StreamOptions,
}

/// The error of a format with a map in what comes in order.
fn not_in_order(name: impl fmt::Display, format: Format) -> Error {
    let what = format!("{name} comes in order, and {format} has to be read at any place");
    Error::new(ErrorKind::Image, what).hint_to("Put it into a file first")
}

/// An image to read from.
#[derive(Debug)]
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawImage),
    /// A file of a format that has a map of the disk.
    Mapped(Arc<MappedImage>),
    /// Something that can be read in order only, whose content is the disk's bytes.
    Stream(Box<StreamImage>),
}

impl Image {
    /// Opens a regular file or block device of any format. One with a map is walked
    /// over once, tables only, so that a damaged one is told here. One that is packed
    /// as a whole is a stream.
    ///
    /// A block device is raw unless its format is told. Of an appliance (OVA) it is a
    /// disk in it.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is neither, is empty, cannot be opened, is not
    /// sound, or needs a file that was not allowed.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self> {
        Self::of(RawImage::open(path)?, options)
    }

    /// What this process reads from its stdin: at any place where that is a file,
    /// in order where it is a pipe.
    ///
    /// # Errors
    /// As [`Image::open`]; and for a pipe with what has to be read at any place.
    pub fn open_stdin(options: &ImageOptions) -> Result<Self> {
        if let Some(file) = RawImage::stdin()? {
            return Self::of(file, options);
        }
        Self::in_order(Input::stdin(), options)
    }

    /// An open file of any format, or what is elsewhere: see [`Image::open`].
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn of(file: RawImage, options: &ImageOptions) -> Result<Self> {
        if let Some(image) = Self::of_zip(&file, options)? {
            return Ok(image);
        }
        let file = archive::opened(file, options)?;
        let is_member = file.member().is_some();
        if let Some(name) = options.disk.as_deref().filter(|_| !is_member) {
            let sought = Self::sought(name, options.format, &file.path().display())?;
            let format = stream::packing_of(&file)?.unwrap_or(StreamFormat::Raw);
            return StreamImage::open(Input::of(file), format, sought, options.stream)
                .map(Self::stream);
        }
        let format = match options.format {
            Some(format) => format,
            None if file.is_device() && !is_member => Format::Raw,
            None => {
                let packing = stream::packing_of(&file)?;
                if let Some(format) = packing.filter(|_| is_member) {
                    return Err(archive::packed_member(&file, format));
                }
                if let Some(format) = packing {
                    return StreamImage::open(Input::of(file), format, Sought::Any, options.stream)
                        .map(Self::stream);
                }
                let format = Format::of(&file)?;
                if format == Format::Raw {
                    foreign::check(&file)?;
                }
                format
            }
        };
        match format {
            // What is fetched to be hashed is not fetched twice.
            Format::Raw if options.stream.hashes && !file.is_local() && !is_member => {
                let (format, options) = (StreamFormat::Raw, options.stream);
                StreamImage::open(Input::of(file), format, Sought::Disk, options).map(Self::stream)
            }
            Format::Raw => match format::is_vmdk_part(&file) {
                Some(error) if options.format.is_none() => Err(error),
                _ => Ok(Self::Raw(file)),
            },
            _ => MappedImage::open(file, format, &options.allow_backing)
                .map(Arc::new)
                .map(Self::Mapped),
        }
    }

    /// The file in a zip archive, if it is one and is to be taken for one.
    fn of_zip(file: &RawImage, options: &ImageOptions) -> Result<Option<Self>> {
        let is_wanted = options.disk.is_some() || (options.format.is_none() && !file.is_device());
        if !is_wanted || stream::packing_of(file)? != Some(StreamFormat::Zip) {
            return Ok(None);
        }
        let entry = stream::find_in_zip(file, options.disk.as_deref())?;
        let sought = match options.format {
            None => Sought::Any,
            Some(Format::Raw) => Sought::Disk,
            Some(format) => {
                let what = format!(
                    "{:?} in {} comes in order, and {format} has to be read at any place",
                    entry.name(),
                    file.path().display()
                );
                let error = Error::new(ErrorKind::Image, what);
                return Err(error.hint_to("Unpack it into a file first, and upload that"));
            }
        };
        let input = Input::of(file.clone());
        let (format, options) = (StreamFormat::Zip, options.stream);
        StreamImage::open_entry(input, format, Some(&entry), sought, options)
            .map(Self::stream)
            .map(Some)
    }

    /// What can be read in order only: raw, or packed as a whole. What has to be read at
    /// any place is refused.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] for what is refused, not sound, or holds nothing.
    pub fn in_order(mut input: Input, options: &ImageOptions) -> Result<Self> {
        if let Some(disk) = &options.disk {
            let sought = Self::sought(disk, options.format, &input.name)?;
            let format = StreamFormat::of(&input.head()?).unwrap_or(StreamFormat::Raw);
            if format == StreamFormat::Zip {
                let what = format!(
                    "{} comes in order, and the disk {disk:?} in a zip has to be read at any place",
                    input.name
                );
                return Err(Error::new(ErrorKind::Image, what).hint_to("Put it into a file first"));
            }
            return StreamImage::open(input, format, sought, options.stream).map(Self::stream);
        }
        let format = match options.format {
            Some(Format::Raw) => StreamFormat::Raw,
            Some(format) => return Err(not_in_order(&input.name, format)),
            None => StreamFormat::of(&input.head()?).unwrap_or(StreamFormat::Raw),
        };
        let sought = match options.format {
            Some(_) => Sought::Disk,
            None => Sought::Any,
        };
        StreamImage::open(input, format, sought, options.stream).map(Self::stream)
    }

    /// A disk in an archive that comes in order.
    fn sought<'a>(
        name: &'a str,
        format: Option<Format>,
        image: &dyn fmt::Display,
    ) -> Result<Sought<'a>> {
        match format {
            Some(format) if format != Format::Raw => Err(not_in_order(image, format)),
            format => Ok(Sought::Member {
                name,
                is_raw: format.is_some(),
            }),
        }
    }

    fn stream(image: StreamImage) -> Self {
        Self::Stream(Box::new(image))
    }

    /// Opens a regular file or block device whose bytes are the disk's.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is neither, is empty, or cannot be opened.
    pub fn open_raw(path: &Path) -> Result<Self> {
        RawImage::open(path).map(Self::Raw)
    }

    /// Opens a gzip file whose content is the disk's bytes. It is unpacked once
    /// to measure and check it: the length that gzip stores is modulo 4 GiB and
    /// only of its last member (docs/dev/reference.md, T13).
    ///
    /// # Errors
    /// As [`Image::open_raw`], and for a file that is not sound gzip.
    pub fn open_gzip(path: &Path, options: StreamOptions) -> Result<Self> {
        StreamImage::open_gzip(path, options).map(Self::stream)
    }

    /// Its format; of a stream, that of its content.
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) | Self::Stream(_) => Format::Raw,
            Self::Mapped(image) => image.format(),
        }
    }

    /// The disk, if it can be read at any place.
    pub fn disk(&self) -> Option<&dyn Disk> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Mapped(image) => Some(&**image),
            Self::Stream(_) => None,
        }
    }

    /// The disk as [`disk`](Self::disk) gives it, for whoever reads it again later. Only
    /// of what is on this machine: to read it twice costs nobody else anything.
    pub fn to_disk(&self) -> Option<Arc<dyn Disk>> {
        match self {
            _ if !self.is_local() => None,
            Self::Raw(image) => Some(Arc::new(image.clone())),
            Self::Mapped(image) => Some(Arc::<MappedImage>::clone(image)),
            Self::Stream(_) => None,
        }
    }

    /// Decides how far what the file system reports as holes is believed, for all files
    /// that the image is in. The first call counts, and it has to come before the image
    /// is read; without one it is [`Holes::Sample`]. Gives the reported holes that hold
    /// data: those files are read as if they had none. Blocks.
    pub fn decide_holes(&self, how: Holes) -> Vec<FalseHole> {
        match self {
            Self::Raw(image) => image.decide_holes(how).into_iter().collect(),
            Self::Mapped(image) => image.decide_holes(how),
            // It is read in order, holes and all.
            Self::Stream(_) => Vec::new(),
        }
    }

    /// Bytes of the disk.
    pub fn length(&self) -> Length {
        match self {
            Self::Raw(image) => Length::Known(image.size()),
            Self::Mapped(image) => Length::Known(image.size()),
            Self::Stream(image) => image.length(),
        }
    }

    /// The file that it is in, to be read besides; none of a stream, which is hashed as
    /// it passes by.
    pub fn file(&self) -> Option<&RawImage> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Mapped(image) => Some(image.file()),
            Self::Stream(_) => None,
        }
    }

    /// Whether it is on this machine, so that to read it costs nobody else anything.
    pub fn is_local(&self) -> bool {
        self.file().is_some_and(RawImage::is_local)
    }

    /// Whether other files than [`file`](Self::file) decide what the disk holds too.
    pub fn is_in_several_files(&self) -> bool {
        matches!(self, Self::Mapped(image) if image.is_in_several_files())
    }

    /// Begins to check what is read of it by the manifest of its archive. Gives the file
    /// that has to [`finish_check`](RawImage::finish_check); none if there is no archive,
    /// or it tells no digest.
    pub fn begin_check(&self) -> Option<RawImage> {
        self.file().filter(|file| file.begin_check()).cloned()
    }

    /// The member of an archive that it is, if it is one.
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::Stream(image) => image.member(),
            Self::Raw(_) | Self::Mapped(_) => self.file().and_then(RawImage::member),
        }
    }

    /// How others use what it is read from just now: what they write meanwhile may
    /// be in it or not. A file system that is mounted is not at rest.
    pub fn uses(&self) -> BTreeSet<Use> {
        match self {
            Self::Raw(image) => image.uses(),
            Self::Mapped(image) => image.uses(),
            Self::Stream(image) => image.uses(),
        }
    }

    /// What a user should know of it before it is sent, each in a line. Of a raw image it is
    /// asked whether it looks like a disk, unless its format `is_told`. Blocks.
    pub fn notices(&self, is_told: bool) -> Vec<String> {
        notices::of(self, is_told)
    }

    /// What can be told at its end only.
    pub fn late_notices(&self) -> LateNotices {
        LateNotices::of(self)
    }

    /// What it was when it was opened.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Self::Raw(image) => image.fingerprint(),
            Self::Mapped(image) => image.fingerprint(),
            Self::Stream(image) => image.fingerprint(),
        }
    }

    /// Whether the image is still what it was when it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        match self {
            Self::Raw(image) => image.check_unchanged(),
            Self::Mapped(image) => image.check_unchanged(),
            Self::Stream(image) => image.check_unchanged(),
        }
    }
}

/// The error of a thread that the system does not grant.
fn no_thread(cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)
}
