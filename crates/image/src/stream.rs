//! An image that can be read only once and in order: compressed as a whole, or from a pipe. The
//! compression is recognised by the first bytes, never by the name.

mod ending;
mod format;
mod limit;
mod lz4;
mod lzma;
mod member;
mod members;
mod skippable;
mod source;
mod xz;
mod zip;
mod zstd;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::archive::{self, Described, DiskInOrder};
use super::foreign::{self, Location};
use super::format::{VhdEnding, vhd_ending};
use super::raw::STDIN;
use super::{Fingerprint, Format, Gpt, Member, RawImage, Use, extraction, signs};
use crate::advice;
use crate::advice::Remedy;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::nonblocking::Waiting;
use crate::quoting::{quote, quote_file};

use ending::HeldBack;
pub use ending::StreamEnd;
pub use format::StreamFormat;
use format::{EXPECTED_BYTES_MAX, HEAD_BYTES, is_credible};
use limit::OverLimit;
use lzma::Lzma;
use members::Members;
pub use members::Trailer;
use source::{Packed, Source, Tap};
pub use xz::content_size as xz_content_size;
use zip::Zip;
pub(super) use zip::{Entry as ZipEntry, find as find_in_zip};

/// Bytes to read at a time, before and after decompression.
const STEP_BYTES: usize = 256 * 1024;
/// Minimum initial size of a drive whose image does not state its own size. The drive grows as
/// needed and is cut at the end, so the value is a choice: most system images need this much.
const FIRST_BYTES_MIN: u64 = 1 << 30;

/// The size of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Known. For a stream, the user or the archive stated it, and it is checked at the end.
    Known(u64),
    /// Unknown until the end is reached.
    Unknown {
        /// The size with which to create the drive.
        first: u64,
        /// The size according to a header or index, which may be wrong or incomplete.
        expected: Option<u64>,
    },
}

impl Length {
    /// The size of a stream that is not known for certain: what its header says, or else twice its
    /// compressed size.
    fn guessed(expected: Option<u64>, packed_size: Option<u64>) -> Self {
        let guess = packed_size.unwrap_or(0).saturating_mul(2);
        let first = expected.unwrap_or(guess.clamp(FIRST_BYTES_MIN, EXPECTED_BYTES_MAX));
        Self::Unknown { first, expected }
    }

    /// The bytes, if known.
    pub fn known(self) -> Option<u64> {
        match self {
            Self::Known(bytes) => Some(bytes),
            Self::Unknown { .. } => None,
        }
    }

    /// The size with which to create the drive.
    pub fn first(self) -> u64 {
        match self {
            Self::Known(bytes) | Self::Unknown { first: bytes, .. } => bytes,
        }
    }

    /// The bytes, if anything states them.
    pub fn expected(self) -> Option<u64> {
        match self {
            Self::Known(bytes) => Some(bytes),
            Self::Unknown { expected, .. } => expected,
        }
    }
}

/// Bytes in order, before decompression.
pub struct Input {
    /// Their source.
    pub read: Box<dyn Read + Send>,
    /// The name for messages.
    pub name: String,
    /// How many bytes there are, if known.
    pub size: Option<u64>,
    /// Distinguishes the input from another.
    pub fingerprint: Fingerprint,
    /// The file that is read, in order to detect changes.
    pub file: Option<RawImage>,
}

impl Input {
    /// Reads a file or a remote image from its start.
    pub(super) fn of(image: RawImage) -> Self {
        Self {
            read: image.in_order(),
            name: image.path().display().to_string(),
            size: Some(image.size()),
            fingerprint: image.fingerprint().clone(),
            file: Some(image),
        }
    }

    /// The standard input of this process. It has no fingerprint that distinguishes it from
    /// another.
    pub fn stdin() -> Self {
        Self {
            read: Box::new(Waiting(io::stdin())),
            name: STDIN.to_owned(),
            size: None,
            fingerprint: Fingerprint::default(),
            file: None,
        }
    }

    /// The first bytes. They can be read again.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read, or is empty.
    pub fn head(&mut self) -> Result<Vec<u8>> {
        let read = std::mem::replace(&mut self.read, Box::new(io::empty()));
        let (head, read) = peek(read, HEAD_BYTES).map_err(|cause| unreadable(&self.name, cause))?;
        self.read = Box::new(read);
        match head.is_empty() {
            true => {
                let what = format!("{} is empty: there is nothing to upload", self.name);
                Err(Error::new(ErrorKind::Image, what)
                    .hint_to("Check that this is the disk image that you mean"))
            }
            false => Ok(head),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Input").field(&self.name).finish()
    }
}

/// The first bytes of a reader, and a reader that returns them again.
type Peeked<R> = (Vec<u8>, Chain<Cursor<Vec<u8>>, Failing<R>>);

/// Reads the first bytes. An error after some of them is returned again at the same position.
fn peek<R: Read>(mut read: R, most: usize) -> io::Result<Peeked<R>> {
    let mut head = Vec::new();
    let failed = read.by_ref().take(most as u64).read_to_end(&mut head).err();
    if head.is_empty()
        && let Some(cause) = failed
    {
        return Err(cause);
    }
    let rest = Failing { failed, read };
    Ok((head.clone(), Cursor::new(head).chain(rest)))
}

/// A reader that fails once, with an error that occurred earlier.
struct Failing<R> {
    failed: Option<io::Error>,
    read: R,
}

impl<R: Read> Read for Failing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.failed.take() {
            Some(cause) => Err(cause),
            None => self.read.read(bytes),
        }
    }
}

/// How to read a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The size of its content according to the user; it is checked at the end.
    pub size: Option<u64>,
    /// Whether to hash it while it is read, before decompression.
    pub hashes: bool,
}

/// What to look for in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought<'a> {
    /// A disk that is the whole content, whatever its first bytes are.
    Disk,
    /// A disk, or the disk in an archive.
    Any,
    /// A disk in an archive.
    Member {
        /// Its name there.
        name: &'a str,
        /// Whether it is raw, whatever its first bytes are.
        is_raw: bool,
    },
}

impl Sought<'_> {
    /// Whether the first bytes of the content matter.
    fn is_looked_at(self) -> bool {
        !matches!(self, Self::Disk | Self::Member { is_raw: true, .. })
    }
}

/// The content of a stream, after decompression.
struct Content {
    /// The first bytes: [`signs::HEAD_BYTES`], or fewer if there are no more. `read` returns them
    /// again.
    head: Vec<u8>,
    read: Box<dyn Read + Send>,
    /// For a disk in an archive: the member, and its size in bytes.
    member: Option<(Member, u64)>,
}

impl Content {
    /// Finds what is sought: the whole content, or the disk if it is an archive.
    fn find(self, sought: Sought<'_>, name: &str, format: StreamFormat) -> Result<Self> {
        let wanted = match sought {
            Sought::Member { name, .. } => Some(name),
            Sought::Disk | Sought::Any => None,
        };
        match (archive::is_start_of_one(&self.head), wanted) {
            (false, Some(wanted)) => return Err(archive::no_archive(name, wanted)),
            (false, None) => return Ok(self),
            (true, _) if sought == Sought::Disk => return Ok(self),
            (true, _) => {}
        }
        let described = Described {
            name: name.to_owned(),
            unpack: command(name, format.decompress_command()),
        };
        let bad = |cause| not_sound(name, format, 0, cause);
        let (disk, member, size) = DiskInOrder::open(self.read, described, wanted).map_err(bad)?;
        let (head, disk) = peek(disk, signs::HEAD_BYTES).map_err(bad)?;
        Ok(Self {
            head,
            read: Box::new(disk),
            member: Some((member, size)),
        })
    }
}

/// An open stream, whose content is a raw disk.
pub struct StreamImage {
    content: Box<dyn BufRead + Send>,
    format: StreamFormat,
    name: String,
    length: Length,
    packed_size: Option<u64>,
    fingerprint: Fingerprint,
    file: Option<RawImage>,
    /// The name of the file in a zip archive that this is, safe to print.
    entry: Option<String>,
    digest: Arc<OnceLock<Digest>>,
    trailer: Arc<OnceLock<Trailer>>,
    member: Option<Member>,
    /// The first bytes of the content: [`signs::HEAD_BYTES`], or fewer if there are no more.
    head: Vec<u8>,
    ended: Arc<OnceLock<StreamEnd>>,
}

impl fmt::Debug for StreamImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamImage")
            .field("name", &self.name)
            .field("format", &self.format)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl StreamImage {
    /// Opens a stream with this compression. Unless the content is declared raw, its first bytes
    /// are decompressed and inspected; in an archive, a disk is opened.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is damaged there, empty, compressed twice, or in a format that
    /// cannot be read in order.
    pub fn open(
        input: Input,
        format: StreamFormat,
        sought: Sought<'_>,
        options: StreamOptions,
    ) -> Result<Self> {
        Self::open_entry(input, format, None, sought, options)
    }

    /// As [`open`](Self::open), for a file that was found in a zip archive.
    pub(super) fn open_entry(
        input: Input,
        format: StreamFormat,
        entry: Option<&ZipEntry>,
        sought: Sought<'_>,
        options: StreamOptions,
    ) -> Result<Self> {
        let (name, digest) = (input.name, Arc::default());
        let trailer = Arc::default();
        let tap = Tap::new(input.read, options.hashes, &digest);
        let packed = Source::new(tap, STEP_BYTES);
        let unpacked = Unpacked::open(packed, format, entry, &trailer);
        let unpacked = unpacked.map_err(|cause| not_sound(&name, format, 0, cause))?;
        let Unpacked {
            format,
            content,
            member: entry_name,
        } = unpacked;
        let bad = |cause| not_sound(&name, format, 0, cause);
        let (head, content) = peek(content, signs::HEAD_BYTES).map_err(bad)?;
        if head.is_empty() {
            let what = format!("The content of {name} is empty");
            return Err(Error::new(ErrorKind::Image, what));
        }
        let content = Content {
            head,
            read: Box::new(content),
            member: None,
        };
        let content = content.find(sought, &name, format)?;
        let mut fingerprint = input.fingerprint;
        if let (Some((found, _)), Some(_)) = (&content.member, &input.file) {
            let place = format!("member {}", found.name);
            fingerprint = Fingerprint::of_all(&place, std::iter::once(&fingerprint));
        }
        let stated = match (&content.member, format) {
            // The archive states the size of its member; its end confirms it.
            (Some((_, size)), _) if is_credible(*size) => Some(*size),
            _ if options.size.is_some() => options.size,
            (None, StreamFormat::Raw) => input.size,
            _ => None,
        };
        let length = match stated {
            // The last bytes may not be part of the disk.
            Some(bytes) if options.size.is_none() && sought.is_looked_at() => Length::Unknown {
                first: bytes,
                expected: Some(bytes),
            },
            Some(bytes) => Length::Known(bytes),
            None => {
                let file = input.file.as_ref().filter(|_| content.member.is_none());
                Length::guessed(expected_size(entry, file, format), input.size)
            }
        };
        let mut image = Self {
            content: Box::new(io::empty()),
            format,
            name,
            length,
            packed_size: input.size,
            fingerprint,
            file: input.file,
            entry: entry_name,
            digest,
            trailer,
            member: content.member.map(|(member, _)| member),
            head: content.head,
            ended: Arc::default(),
        };
        let mut read = content.read;
        if sought.is_looked_at() {
            image.check_content()?;
            read = image.without_footer(read);
        }
        image.content = Box::new(BufReader::with_capacity(STEP_BYTES, read));
        Ok(image)
    }

    /// The content without a footer that follows the disk.
    fn without_footer(&self, read: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
        let (name, file, format) = (self.name.clone(), self.file.clone(), self.format);
        let judge =
            move |tail: &[u8], before| judge(tail, before, &name, &place(file.as_ref(), format));
        Box::new(HeldBack::new(
            read,
            Box::new(judge),
            Arc::clone(&self.ended),
        ))
    }

    /// Refuses content that cannot be read in order, is compressed twice, or is not a disk.
    fn check_content(&self) -> Result<()> {
        let (head, name) = (&*self.head, &self.name);
        let place = place(self.file.as_ref(), self.format);
        let (within, is_packed) = match (Format::of_head(head), StreamFormat::of(head)) {
            (_, Some(format)) if self.member.is_some() => (format.name(), true),
            _ if archive::is_start_of_one(head) => ("an archive", false),
            (Some(format), _) => (format.name(), false),
            (None, Some(format)) if self.format != StreamFormat::Raw => (format.name(), true),
            _ => {
                let found = foreign::of_head(head);
                return found.map_or(Ok(()), |found| Err(found.refuse(name, &place)));
            }
        };
        if let Some(member) = &self.member {
            let what = format!(
                "{:?} in {} is {within}, which cannot be read in order",
                member.name, self.name
            );
            let unpack = command(&self.name, self.format.decompress_command());
            let members = extraction::members(&[&member.name]);
            return Err(Error::new(ErrorKind::Image, what)
                .permanent()
                .hint_to(advice![
                    format!("Unpack it, and upload that file: {unpack} | tar -xf - {members} && "),
                    Remedy::Upload(member.name.clone()),
                ]));
        }
        let what = match self.format {
            StreamFormat::Raw => {
                format!("{name} is {within}, which has to be read at any place, not in order")
            }
            format => format!("{name} is {within} within {format}"),
        };
        let hint = match place {
            _ if self.format == StreamFormat::Raw => {
                let error = Error::new(ErrorKind::Image, what);
                return Err(error.permanent().hint_to(super::into_a_file()));
            }
            Location::Packed(path, format) if is_packed => {
                let command = format.decompress_command();
                let path = quote_file(&path.to_string_lossy());
                advice![
                    format!("Unpack it once: {command} {path} | "),
                    Remedy::UploadStdin(None),
                ]
            }
            Location::Packed(..) => {
                let (file, first) = place.file();
                advice![
                    format!("Unpack it into a file first: {first}"),
                    Remedy::Upload(file),
                ]
            }
            _ => {
                let within = within.trim_start_matches("an ");
                format!("Unpack it into a file first, and upload that {within}").into()
            }
        };
        Err(Error::new(ErrorKind::Image, what).permanent().hint_to(hint))
    }

    /// The GPT at the beginning of the content.
    pub(super) fn gpt(&self) -> Option<Gpt> {
        Gpt::of_head(&self.head)
    }

    /// The first bytes of the content.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Will hold how the stream ended, once it was read to its end, unless the content is not
    /// inspected.
    pub(super) fn ended(&self) -> Arc<OnceLock<StreamEnd>> {
        Arc::clone(&self.ended)
    }

    /// Opens a gzip file whose content is the disk. Decompresses it once to measure and check it,
    /// unless its size is given.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be opened, is not valid gzip, or its content is certainly
    /// not a raw disk.
    pub(super) fn open_gzip(path: &Path, mut options: StreamOptions) -> Result<Self> {
        let open = |options| {
            let input = Input::of(RawImage::open(path)?);
            Self::open(input, StreamFormat::Gzip, Sought::Any, options)
        };
        if options.size.is_none() {
            let mut measured = open(StreamOptions::default())?;
            let mut step = vec![0; STEP_BYTES];
            let mut size = 0;
            loop {
                match measured.read_next(&mut step, size)? {
                    0 => break,
                    n => size += n as u64,
                }
            }
            options.size = Some(size);
        }
        open(options)
    }

    /// The member of an archive that this is, if any.
    pub(super) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// The compression.
    pub fn format(&self) -> StreamFormat {
        self.format
    }

    /// The name of the file in a zip archive that this is, safe to print.
    pub fn entry(&self) -> Option<&str> {
        self.entry.as_deref()
    }

    /// Bytes of the content.
    pub fn length(&self) -> Length {
        self.length
    }

    /// Bytes before decompression, if known.
    pub fn packed_size(&self) -> Option<u64> {
        self.packed_size
    }

    /// Will hold the digest of the bytes before decompression, once all were read, if that was
    /// requested.
    pub fn digest(&self) -> Arc<OnceLock<Digest>> {
        Arc::clone(&self.digest)
    }

    /// Will hold what follows the compressed data and was ignored, once all was read; stays empty
    /// if there is nothing.
    pub fn trailer(&self) -> Arc<OnceLock<Trailer>> {
        Arc::clone(&self.trailer)
    }

    pub(super) fn uses(&self) -> BTreeSet<Use> {
        self.file
            .as_ref()
            .map_or_else(BTreeSet::new, RawImage::uses)
    }

    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), RawImage::check_unchanged)
    }

    /// Fills `bytes` from where the last call ended, which is byte `offset` of the content. Returns
    /// how many were read: fewer only at the end.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is damaged, [`ErrorKind::Integrity`] if it changed.
    pub(super) fn read_next(&mut self, bytes: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.content.read(&mut bytes[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.failed(offset + done as u64, cause)),
            }
        }
        Ok(done)
    }

    /// Whether nothing follows after byte `offset`, which is the next.
    ///
    /// # Errors
    /// As [`read_next`](Self::read_next).
    pub(super) fn is_at_end(&mut self, offset: u64) -> Result<bool> {
        loop {
            match self.content.fill_buf() {
                Ok(bytes) => return Ok(bytes.is_empty()),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.failed(offset, cause)),
            }
        }
    }

    fn failed(&self, offset: u64, cause: io::Error) -> Error {
        match self.check_unchanged() {
            Ok(()) => not_sound(&self.name, self.format, offset, cause),
            Err(changed) => changed,
        }
    }

    /// The error for a stream with another number of bytes than was declared.
    pub(super) fn wrong_size(&self, declared: u64, is_longer: bool, offset: u64) -> Error {
        let how = match is_longer {
            true => format!("more than the declared {declared} bytes"),
            false => format!("{offset} bytes, not the declared {declared}"),
        };
        let what = format!("{} holds {how}", self.name);
        Error::new(ErrorKind::Image, what)
            .permanent()
            .hint_to(advice![
                "Correct or omit ",
                Remedy::GiveSize,
                " if you passed it, and start over with ",
                Remedy::Restart,
            ])
    }
}

/// Reads the content of a stream.
struct Unpacked {
    /// The format. If the stream begins with frames without content, only what follows them
    /// determines it.
    format: StreamFormat,
    content: Box<dyn Read + Send>,
    member: Option<String>,
}

impl Unpacked {
    fn open(
        mut packed: Packed,
        format: StreamFormat,
        entry: Option<&ZipEntry>,
        trailer: &Arc<OnceLock<Trailer>>,
    ) -> io::Result<Self> {
        let format = match format {
            StreamFormat::Zstd | StreamFormat::Lz4 => {
                skippable::skip(&mut packed)?;
                let head = packed.peek(HEAD_BYTES)?;
                match StreamFormat::of_frame(head) {
                    Some(found) => found,
                    // Nothing but frames without content.
                    None if head.is_empty() => format,
                    None => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
            other => other,
        };
        let mut member = None;
        let content: Box<dyn Read + Send> = match format {
            StreamFormat::Raw => Box::new(packed),
            StreamFormat::Zstd => Box::new(zstd::Zstd::open(packed)?),
            StreamFormat::Xz => Box::new(Lzma::xz(packed)?),
            StreamFormat::Lzma => Box::new(Lzma::alone(packed)?),
            StreamFormat::Gzip | StreamFormat::Bzip2 | StreamFormat::Lzip | StreamFormat::Lz4 => {
                Box::new(Members::new(packed, format, Arc::clone(trailer)))
            }
            StreamFormat::Zip => {
                let (zip, name) = Zip::open(packed, entry, Arc::clone(trailer))?;
                member = Some(name);
                Box::new(zip)
            }
        };
        Ok(Self {
            format,
            content,
            member,
        })
    }
}

/// The size that the directory of an archive, or the compressed file, states.
fn expected_size(
    entry: Option<&ZipEntry>,
    file: Option<&RawImage>,
    format: StreamFormat,
) -> Option<u64> {
    match entry {
        Some(entry) => Some(entry.size).filter(|size| is_credible(*size)),
        None => file.and_then(|file| format.stated_size(file)),
    }
}

/// Where the content of a stream is, for building commands.
fn place(file: Option<&RawImage>, format: StreamFormat) -> Location<'_> {
    match file.filter(|file| file.is_local() && !file.is_stdin()) {
        Some(file) if format != StreamFormat::Raw => Location::Packed(file.path(), format),
        _ => Location::Elsewhere(format),
    }
}

/// Decides how a stream ended from its last bytes and from how many preceded them.
fn judge(tail: &[u8], before: u64, name: &str, place: &Location<'_>) -> Result<StreamEnd> {
    if let Some(found) = foreign::of_tail(tail) {
        return Err(found.refuse(name, place));
    }
    match vhd_ending(tail, before) {
        VhdEnding::Other => Ok(StreamEnd::Whole),
        VhdEnding::Whole if before > 0 => Ok(StreamEnd::FooterLeftOut),
        VhdEnding::Whole => Err(foreign::doubtful_vhd(name, None, before, place)),
        VhdEnding::Doubtful(footer) => Err(foreign::doubtful_vhd(name, footer, before, place)),
    }
}

/// Takes an error with its own message and hint, which a reader wrapped to pass it through a
/// decoder, out of `cause`. Any other cause is returned as it is.
fn unwrap_error(cause: io::Error) -> Result<Error, io::Error> {
    cause.downcast::<Error>()
}

fn unreadable(name: &str, cause: io::Error) -> Error {
    match unwrap_error(cause) {
        Ok(error) => error,
        Err(cause) => Error::new(ErrorKind::Image, format!("Cannot read {name}")).because(cause),
    }
}

/// The error for a stream that cannot be decompressed, at this byte of its content.
fn not_sound(name: &str, format: StreamFormat, offset: u64, cause: io::Error) -> Error {
    let cause = match unwrap_error(cause) {
        Ok(error) => return error,
        Err(cause) => cause,
    };
    let over = cause.get_ref().and_then(|cause| cause.downcast_ref());
    if let Some(over) = over {
        return over_limit(name, format, over);
    }
    let (what, hint) = match (format, cause.kind()) {
        // The content is not at fault; reading it failed.
        _ if format == StreamFormat::Raw || cause.raw_os_error().is_some() => {
            let what = format!("Cannot read {name} at byte {offset}");
            return Error::new(ErrorKind::Image, what).because(cause);
        }
        (_, io::ErrorKind::OutOfMemory) => {
            let what = format!("There is not enough memory to decompress {name}");
            return Error::new(ErrorKind::Local, what);
        }
        (_, io::ErrorKind::UnexpectedEof) => (
            format!(
                "{name} was cut off: its {format} ends in the middle, at byte {offset} of its content"
            ),
            "Get an undamaged copy of the image: with it, the same command resumes".into(),
        ),
        _ => (
            format!("{name} is not sound {format} at byte {offset} of its content"),
            match (command(name, format.test_command()), offset) {
                (test, 0) => advice![
                    format!("Test it with: {test}. "),
                    Remedy::Format("raw"),
                    " sends it as it is",
                ],
                (test, _) => format!(
                    "Test it with: {test}. With an undamaged copy of the image, the same command resumes"
                )
                .into(),
            },
        ),
    };
    let error = Error::new(ErrorKind::Image, what)
        .because(cause)
        .hint_to(hint);
    // Content that is damaged from its first byte may be of another format.
    match offset {
        0 => error.permanent(),
        _ => error.damaged(),
    }
}

/// The error for an image that needs more memory than allowed.
fn over_limit(name: &str, format: StreamFormat, over: &OverLimit) -> Error {
    let what = format!("{name} {over}");
    let file = name.rsplit('/').next().unwrap_or(name);
    Error::new(ErrorKind::Image, what)
        .permanent()
        .hint_to(advice![
            format!(
                "Let {format}'s own tool decompress it: {} | ",
                command(name, format.decompress_command())
            ),
            Remedy::UploadStdin(Some(file.to_owned())),
        ])
}

/// A shell command about the source of a stream.
fn command(name: &str, command: &str) -> String {
    match name {
        STDIN => command.to_owned(),
        name if name.contains("://") => format!("curl -fsSL {} | {command}", quote(name)),
        name => format!("{command} {}", quote_file(name)),
    }
}

#[cfg(test)]
mod tests;
