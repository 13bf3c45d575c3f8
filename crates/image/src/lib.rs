//! Images on this machine. For reading: the format of an image, its size, its holes, and whether it
//! stays unchanged while it is read. For writing: a file that is staged, sparse, and published when
//! it is complete. Everything here blocks, so it runs on threads of its own and never on the async
//! runtime. Nothing here uses the network, except through a [`Remote`] that the caller provides.
//!
//! Start at [`Image::open`] and [`ImageReader`] for reading, at [`ImageTarget`] for writing.

mod archive;
mod census;
mod content;
mod extraction;
mod fingerprint;
mod foreign;
mod format;
mod gpt;
mod holes;
mod mapped;
mod notices;
mod number;
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

use openhosting_base::{advice, amounts, buffer, chunk, codec, digest, error, plan, quoting};
use openhosting_filesystem::{self as filesystem, nonblocking};

use crate::advice::{Advice, Remedy};
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
pub use reader::{ImageReader, Unchecked, Unread};
pub use stream::{
    Input, Length, Sought, StreamEnd, StreamFormat, StreamImage, StreamOptions, Trailer,
    xz_content_size,
};
pub use target::{ClusterPacking, ImageTarget, TargetFormat, data_blocks, part_of};

/// The bytes of a disk, which can be read at any offset and from several threads at once.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The first extent of data that ends after `offset`, in bytes, or the part of it from there;
    /// `None` if only holes follow. If holes are unknown or not believed, everything is data.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if the extents cannot be determined.
    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read; [`ErrorKind::Integrity`] if the image ends
    /// earlier, although it was longer when it was opened.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// Checks that the image is unchanged since it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it changed.
    fn check_unchanged(&self) -> Result<()>;
}

/// The first bytes of a disk: `bytes_max`, or all if there are fewer.
fn head_of(disk: &dyn Disk, bytes_max: usize) -> Result<Vec<u8>> {
    let len = usize::try_from(disk.size()).unwrap_or(usize::MAX);
    let mut head = vec![0; len.min(bytes_max)];
    disk.read_at(&mut head, 0)?;
    Ok(head)
}

/// How to open an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Its format. `None` recognises it by content, which is not safe for a raw image that an
    /// untrusted person could write to: whoever can make it look like another format decides which
    /// files are read. For an archive, this is the format of the disk in it. But raw and VHD, which
    /// begin with bytes that a guest wrote, are the format of the image itself, unless a disk is
    /// selected.
    pub format: Option<Format>,
    /// The member of an archive to read. `None` for the first disk.
    pub disk: Option<String>,
    /// The backing files that are allowed, or directories of them. A backing file that only the
    /// image names is not opened.
    pub allow_backing: Vec<PathBuf>,
    /// How to read the image if it can only be read in order.
    pub stream: StreamOptions,
}

/// How to upload a disk that consists of several files of an archive, one of which is `file`.
fn unpack_all(archive: &str, file: &str) -> Advice {
    let archive = quoting::quote_file(archive);
    advice![
        format!("Unpack all of them, and upload that one: tar -xf {archive} && "),
        Remedy::Upload(file.to_owned()),
    ]
}

/// The error for an image format that cannot be read in order.
fn not_in_order(name: impl fmt::Display, format: Format) -> Error {
    let what = format!("{name} comes in order, and {format} has to be read at any place");
    Error::new(ErrorKind::Image, what).hint_to(into_a_file())
}

/// The advice on an image that comes in order, and cannot be read so.
fn into_a_file() -> Advice {
    advice!["Put it into ", Remedy::File, " first"]
}

/// An image to read from.
#[derive(Debug)]
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawImage),
    /// A file in an image format, with a map of the disk.
    Mapped(Arc<MappedImage>),
    /// An image that can only be read in order; its content is the bytes of the disk.
    Stream(Box<StreamImage>),
}

impl Image {
    /// Opens a regular file or block device of any format. The map of an image format is walked
    /// once (only tables are read), so that damage is reported here. A file that is compressed as a
    /// whole is opened as a stream.
    ///
    /// A block device is raw unless a format is given. For an appliance (OVA), a disk in it is
    /// opened.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is neither a file nor a device, is empty, cannot be opened, is
    /// damaged, or needs a file that was not allowed.
    pub fn open(path: &Path, options: &ImageOptions) -> Result<Self> {
        Self::of(RawImage::open(path)?, options)
    }

    /// Opens the standard input of this process. A file can be read at any offset, a pipe only in
    /// order.
    ///
    /// # Errors
    /// As [`Image::open`]; and for a pipe whose format cannot be read in order.
    pub fn open_stdin(options: &ImageOptions) -> Result<Self> {
        if let Some(file) = RawImage::stdin()? {
            return Self::of(file, options);
        }
        Self::in_order(Input::stdin(), options)
    }

    /// Opens a file that is already open, or a remote image: see [`Image::open`].
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
            let format = StreamFormat::of_file(&file)?.unwrap_or(StreamFormat::Raw);
            return StreamImage::open(Input::of(file), format, sought, options.stream)
                .map(Self::stream);
        }
        let format = match options.format {
            Some(format) => format,
            None if file.is_device() && !is_member => Format::Raw,
            None => {
                let packing = StreamFormat::of_file(&file)?;
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
            // If the image must be hashed, it is downloaded in order, so that it is downloaded only
            // once.
            Format::Raw if options.stream.hashes && !file.is_local() && !is_member => {
                let (format, options) = (StreamFormat::Raw, options.stream);
                StreamImage::open(Input::of(file), format, Sought::Disk, options).map(Self::stream)
            }
            Format::Raw => match format::vmdk_part_error(&file) {
                Some(error) if options.format.is_none() => Err(error),
                _ => Ok(Self::Raw(file)),
            },
            _ => MappedImage::open(file, format, &options.allow_backing)
                .map(Arc::new)
                .map(Self::Mapped),
        }
    }

    /// The file in a zip archive, if this is one and may be treated as one.
    fn of_zip(file: &RawImage, options: &ImageOptions) -> Result<Option<Self>> {
        let is_wanted = options.disk.is_some() || (options.format.is_none() && !file.is_device());
        if !is_wanted || StreamFormat::of_file(file)? != Some(StreamFormat::Zip) {
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

    /// Opens an image that can only be read in order: raw, or compressed as a whole. Formats that
    /// need access at any offset are refused.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is refused, damaged, or empty.
    pub fn in_order(mut input: Input, options: &ImageOptions) -> Result<Self> {
        if let Some(disk) = &options.disk {
            let sought = Self::sought(disk, options.format, &input.name)?;
            let format = StreamFormat::of(&input.head()?).unwrap_or(StreamFormat::Raw);
            if format == StreamFormat::Zip {
                let what = format!(
                    "{} comes in order, and the disk {disk:?} in a zip has to be read at any place",
                    input.name
                );
                return Err(Error::new(ErrorKind::Image, what).hint_to(into_a_file()));
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

    /// What to look for in an archive that is read in order.
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
    /// [`ErrorKind::Image`] if it is neither a file nor a device, is empty, or cannot be opened.
    pub fn open_raw(path: &Path) -> Result<Self> {
        RawImage::open(path).map(Self::Raw)
    }

    /// Opens a gzip file whose content is the bytes of the disk. It is decompressed once to measure
    /// and check it, because the length that gzip stores is modulo 4 GiB and only that of the last
    /// member (docs/dev/reference.md, T13).
    ///
    /// # Errors
    /// As [`Image::open_raw`], and for a file that is not valid gzip.
    pub fn open_gzip(path: &Path, options: StreamOptions) -> Result<Self> {
        StreamImage::open_gzip(path, options).map(Self::stream)
    }

    /// Its format; for a stream, the format of the content.
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) | Self::Stream(_) => Format::Raw,
            Self::Mapped(image) => image.format(),
        }
    }

    /// The disk, if it can be read at any offset.
    pub fn disk(&self) -> Option<&dyn Disk> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Mapped(image) => Some(&**image),
            Self::Stream(_) => None,
        }
    }

    /// As [`disk`](Self::disk), for a caller that reads it again later. Only for an image on this
    /// machine, which can be read twice without cost to anyone else.
    pub fn to_disk(&self) -> Option<Arc<dyn Disk>> {
        match self {
            _ if !self.is_local() => None,
            Self::Raw(image) => Some(Arc::new(image.clone())),
            Self::Mapped(image) => Some(Arc::<MappedImage>::clone(image)),
            Self::Stream(_) => None,
        }
    }

    /// Decides how far the reported holes of all files of this image are believed. Only the first
    /// call has an effect, and it must be made before the image is read; without it,
    /// [`Holes::Sample`] applies. Returns the reported holes that contain data; those files are
    /// then read as if they had no holes. Blocks.
    pub fn decide_holes(&self, how: Holes) -> Vec<FalseHole> {
        match self {
            Self::Raw(image) => image.decide_holes(how).into_iter().collect(),
            Self::Mapped(image) => image.decide_holes(how),
            // It is read in order, including holes.
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

    /// The file of the image, for reading it independently; `None` for a stream, which is hashed
    /// while it is read.
    pub fn file(&self) -> Option<&RawImage> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Mapped(image) => Some(image.file()),
            Self::Stream(_) => None,
        }
    }

    /// Whether it is on this machine, so that reading it costs nobody else anything.
    pub fn is_local(&self) -> bool {
        self.file().is_some_and(RawImage::is_local)
    }

    /// Whether the content of the disk also depends on other files than [`file`](Self::file).
    pub fn is_in_several_files(&self) -> bool {
        matches!(self, Self::Mapped(image) if image.is_in_several_files())
    }

    /// Starts checking what is read by the manifest of the archive. Returns the file on which to
    /// call [`finish_check`](RawImage::finish_check); `None` without an archive, or if its manifest
    /// has no digest of the image.
    pub fn begin_check(&self) -> Option<RawImage> {
        self.file().filter(|file| file.begin_check()).cloned()
    }

    /// The member of an archive that is read, if any.
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::Stream(image) => image.member(),
            Self::Raw(_) | Self::Mapped(_) => self.file().and_then(RawImage::member),
        }
    }

    /// How other processes currently use the files of this image. What they write meanwhile may or
    /// may not be included. A mounted file system is in use.
    pub fn uses(&self) -> BTreeSet<Use> {
        match self {
            Self::Raw(image) => image.uses(),
            Self::Mapped(image) => image.uses(),
            Self::Stream(image) => image.uses(),
        }
    }

    /// Notices for the user before the image is sent, each one line. Unless `is_format_given`, a
    /// raw image is checked for whether it looks like a disk. Blocks.
    pub fn notices(&self, is_format_given: bool) -> Vec<String> {
        notices::of(self, is_format_given)
    }

    /// The notices that are known only at the end of the image.
    pub fn late_notices(&self) -> LateNotices {
        LateNotices::of(self)
    }

    /// The fingerprint at the time it was opened.
    pub fn fingerprint(&self) -> &Fingerprint {
        match self {
            Self::Raw(image) => image.fingerprint(),
            Self::Mapped(image) => image.fingerprint(),
            Self::Stream(image) => image.fingerprint(),
        }
    }

    /// Checks that the image is unchanged since it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it changed.
    pub fn check_unchanged(&self) -> Result<()> {
        match self {
            Self::Raw(image) => image.check_unchanged(),
            Self::Mapped(image) => image.check_unchanged(),
            Self::Stream(image) => image.check_unchanged(),
        }
    }
}

/// The error for a thread that the system did not create.
fn no_thread(cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)
}
