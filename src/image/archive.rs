//! Appliances: OVA, which is a tar of a description of a machine (OVF, DMTF DSP0243) and
//! of its disks. Nothing is unpacked: a disk is read where it lies in the file. Both
//! come from anywhere and are not trusted.

mod check;
mod manifest;
mod ovf;

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use percent_encoding::percent_decode_str;

use super::{Format, ImageOptions, RawImage, StreamFormat};
use crate::error::{Error, ErrorKind, Result};
use check::Check;
use ovf::Description;

/// Bytes of a header, and what the sizes of members are rounded up to.
const BLOCK_BYTES: usize = 512;
/// Most bytes of headers, names and other attributes included: far more than those of
/// an appliance, and what bounds the number of members.
const HEADERS_BYTES_MAX: u64 = 1 << 20;
/// Longest description, and longest manifest.
const OVF_BYTES_MAX: u64 = 1 << 20;
/// Most names that an error lists.
const NAMES_MAX: usize = 20;

/// Whether something begins as a tar does: the name of the format, and a checksum that
/// is right.
pub(super) fn is_start_of_one(head: &[u8]) -> bool {
    const CHECKSUM: Range<usize> = 148..156;
    let Some(block) = head.get(..BLOCK_BYTES) else {
        return false;
    };
    let header = tar::Header::from_byte_slice(block);
    let is_named = block.get(257..262) == Some(b"ustar");
    let sum = |(at, byte): (usize, &u8)| match CHECKSUM.contains(&at) {
        true => u32::from(b' '),
        false => u32::from(*byte),
    };
    let sum: u32 = block.iter().enumerate().map(sum).sum();
    is_named && header.cksum().is_ok_and(|told| told == sum)
}

/// The disk in an archive, if it is one and is to be taken for one; else the file itself.
///
/// # Errors
/// [`ErrorKind::Image`] if there is no such disk, it is packed or in pieces, or the
/// archive or its description are not sound.
pub(super) fn opened(file: RawImage, options: &ImageOptions) -> Result<RawImage> {
    let may_be_one = match (&options.disk, options.format) {
        (Some(_), _) => true,
        // What they begin with a guest may have written.
        (None, Some(Format::Raw | Format::Vhd)) => false,
        (None, _) => !file.is_device(),
    };
    if !may_be_one {
        return Ok(file);
    }
    let mut head = [0; BLOCK_BYTES];
    let is_one = file.size() >= BLOCK_BYTES as u64 && {
        file.read_at(&mut head, 0)?;
        is_start_of_one(&head)
    };
    match (is_one, &options.disk) {
        (true, wanted) => Archive::open(&file)?.disk(wanted.as_deref()),
        (false, None) => Ok(file),
        (false, Some(wanted)) => {
            let name = file.path().display();
            let what = format!("{name} is no OVA or other tar, so there is no {wanted:?} in it");
            Err(
                Error::new(ErrorKind::Image, what).hint_to(match StreamFormat::of(&head) {
                    Some(format) => format!("It is packed with {format}: unpack it first"),
                    None => "Leave --disk out".to_owned(),
                }),
            )
        }
    }
}

/// The error of a disk that is packed within its archive.
pub(super) fn packed_member(file: &RawImage, format: StreamFormat) -> Error {
    let what = format!("{} is packed with {format}", file.path().display());
    Error::new(ErrorKind::Image, what)
        .hint_to("Unpack the archive with tar first, and upload that file")
}

/// An open archive.
struct Archive<'a> {
    file: &'a RawImage,
    members: Vec<Entry>,
}

/// A regular file in an archive.
struct Entry {
    name: String,
    /// Where its bytes are.
    part: Range<u64>,
    /// Whether its holes were left out, so that its bytes are not those of the file.
    is_sparse: bool,
}

impl Entry {
    /// Whether its name ends so.
    fn is(&self, extension: &str) -> bool {
        self.name.to_lowercase().ends_with(extension)
    }

    /// Its name without the extension.
    fn stem(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(&*self.name, |(stem, _)| stem)
    }
}

/// What the manifest of an archive tells of a file in it.
#[derive(Debug)]
pub(super) enum Manifest {
    /// There is none.
    Absent,
    /// Nothing.
    Silent,
    /// Its digest.
    Tells(Check),
}

impl<'a> Archive<'a> {
    /// Reads the headers.
    fn open(file: &'a RawImage) -> Result<Self> {
        let mut archive = Self {
            file,
            members: Vec::new(),
        };
        let mut tar = tar::Archive::new(Headers {
            file,
            at: 0,
            left: HEADERS_BYTES_MAX,
        });
        let entries = tar
            .entries_with_seek()
            .map_err(|cause| archive.broken(cause))?;
        for entry in entries {
            let mut entry = entry.map_err(|cause| archive.broken(cause))?;
            let kind = entry.header().entry_type();
            if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()) {
                continue;
            }
            let mut name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut is_sparse = kind.is_gnu_sparse();
            let extensions = entry.pax_extensions();
            let extensions = extensions.map_err(|cause| archive.broken(cause))?;
            for extension in extensions.into_iter().flatten().flatten() {
                is_sparse |= extension.key_bytes().starts_with(b"GNU.sparse.");
                // Its path is one for those who do not know how it is stored.
                if extension.key_bytes() == b"GNU.sparse.name" {
                    name = String::from_utf8_lossy(extension.value_bytes()).into_owned();
                }
            }
            let name = plain(&name).to_owned();
            let (at, size) = (entry.raw_file_position(), entry.size());
            let end = at.checked_add(size);
            let part = match end.filter(|end| *end <= file.size()) {
                Some(end) => at..end,
                None if is_sparse => at..at,
                None => {
                    let what = format!(
                        "{} was cut off, or is damaged: {name:?} in it, {size} bytes from byte {at} on, lies beyond its end",
                        file.path().display()
                    );
                    return Err(Error::new(ErrorKind::Image, what)
                        .hint_to("Fetch it again from where it came"));
                }
            };
            archive.members.push(Entry {
                name,
                part,
                is_sparse,
            });
        }
        Ok(archive)
    }

    /// The disk of this name, or the first.
    fn disk(&self, wanted: Option<&str>) -> Result<RawImage> {
        let ovf = self.members.iter().find(|entry| entry.is(".ovf"));
        let description = ovf.map(|entry| self.described(entry)).transpose()?;
        let disks = match &description {
            Some(description) => self.told_by(description)?,
            None => self.disks_by_content()?,
        };
        let name = match (wanted, disks.first()) {
            (Some(wanted), _) => plain(wanted),
            (None, Some(first)) => first,
            (None, None) => {
                let what = format!("{} is a tar, and no disk is in it", self.shown());
                return Err(Error::new(ErrorKind::Image, what).hint_to(
                    "Name a file in it with --disk, or send it as it is with --format raw",
                ));
            }
        };
        if let Some(how) = description.as_ref().and_then(|told| told.not_read(name)) {
            let what = format!("The disk {name:?} in {} is {how}", self.shown());
            return Err(Error::new(ErrorKind::Image, what)
                .hint_to("Convert the appliance first, or unpack its disk and upload that"));
        }
        let entry = self.member(name)?;
        if entry.is_sparse {
            let what = format!("{name:?} in {} is stored without its holes", self.shown());
            return Err(Error::new(ErrorKind::Image, what)
                .hint_to("Unpack it with tar first, and upload that file"));
        }
        if entry.part.is_empty() {
            let what = format!(
                "{name:?} in {} is empty: there is nothing to upload",
                self.shown()
            );
            return Err(Error::new(ErrorKind::Image, what));
        }
        let others: Vec<_> = disks.iter().filter(|disk| *disk != name).cloned().collect();
        let manifest = self.manifest(name, ovf)?;
        let member = self
            .file
            .with_member(name, entry.part.clone(), &others, manifest);
        Ok(member)
    }

    /// What the manifest tells of a file: the one that is called as the description, or
    /// else the first. Where it lies is not looked at, though the standard wants it right
    /// behind the description: tools and people put it at the end as well.
    fn manifest(&self, name: &str, ovf: Option<&Entry>) -> Result<Manifest> {
        let mut manifests = self.members.iter().filter(|entry| entry.is(".mf"));
        let is_called_so = |entry: &&Entry| ovf.is_some_and(|ovf| ovf.stem() == entry.stem());
        let manifest = manifests.clone().find(is_called_so);
        let Some(manifest) = manifest.or_else(|| manifests.next()) else {
            return Ok(Manifest::Absent);
        };
        let what = format!("Its manifest {:?}", manifest.name);
        let text = self.text(manifest, &what)?;
        let is_it = |told: &str| {
            let decoded = percent_decode_str(told).decode_utf8_lossy();
            plain(told) == name || plain(&decoded) == name
        };
        let told = manifest::digest_of(&String::from_utf8_lossy(&text), is_it);
        let told = told.map_err(|why| self.not_sound(&what, &why))?;
        Ok(told.map_or(Manifest::Silent, |told| {
            Manifest::Tells(Check::new(&manifest.name, told))
        }))
    }

    /// The disks that a description tells, by the names that they have in the archive.
    fn told_by(&self, description: &Description) -> Result<Vec<String>> {
        let disks = description.disks();
        let disks = disks.map_err(|why| self.not_sound("Its description", &why))?;
        Ok(disks.into_iter().map(str::to_owned).collect())
    }

    /// Without a description: what is a disk by its content, or called so.
    fn disks_by_content(&self) -> Result<Vec<String>> {
        let mut disks = Vec::new();
        for entry in self.members.iter().filter(|entry| !entry.is_sparse) {
            let name = entry.name.to_lowercase();
            let is_called = name.ends_with(".img") || name.ends_with(".raw");
            let file =
                self.file
                    .with_member(&entry.name, entry.part.clone(), &[], Manifest::Absent);
            if is_called || Format::of(&file)? != Format::Raw {
                disks.push(entry.name.clone());
            }
        }
        Ok(disks)
    }

    /// The one file of this name.
    fn member(&self, name: &str) -> Result<&Entry> {
        let mut found = self.members.iter().filter(|entry| entry.name == name);
        match (found.next(), found.next()) {
            (Some(entry), None) => Ok(entry),
            (Some(_), Some(_)) => {
                let what = format!("There are several files {name:?} in {}", self.shown());
                Err(Error::new(ErrorKind::Image, what)
                    .hint_to("Which of them is the disk nobody can tell: unpack it with tar first"))
            }
            (None, _) => {
                let names = self.members.iter().map(|entry| format!("{:?}", entry.name));
                let names: Vec<_> = names.take(NAMES_MAX).collect();
                let more = match self.members.len() > NAMES_MAX {
                    true => " and others",
                    false => "",
                };
                let what = format!("There is no file {name:?} in {}", self.shown());
                let hint = format!("In it are {}{more}", names.join(", "));
                Err(Error::new(ErrorKind::Image, what).hint_to(hint))
            }
        }
    }

    /// Reads the description.
    fn described(&self, entry: &Entry) -> Result<Description> {
        let what = format!("Its description {:?}", entry.name);
        let text = self.text(entry, &what)?;
        let text =
            str::from_utf8(&text).map_err(|_| self.not_sound(&what, "it is not in UTF-8"))?;
        let is_there = |name: &str| self.members.iter().any(|entry| entry.name == name);
        Description::parse(text, is_there).map_err(|why| self.not_sound(&what, &why))
    }

    /// The bytes of a short file.
    fn text(&self, entry: &Entry, what: &str) -> Result<Vec<u8>> {
        let size = entry.part.end - entry.part.start;
        if size > OVF_BYTES_MAX || entry.is_sparse {
            let why = format!("it is longer than {OVF_BYTES_MAX} bytes, or has holes");
            return Err(self.not_sound(what, &why));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        self.file.read_at(&mut text, entry.part.start)?;
        Ok(text)
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }

    /// An error about the description.
    fn not_sound(&self, what: &str, why: &str) -> Error {
        let what = format!("{} is no sound OVA. {what}: {why}", self.shown());
        Error::new(ErrorKind::Image, what)
            .hint_to("Unpack it with tar, and upload the disk that you want")
    }

    /// An error about the headers. What tells of it may show what is in the file.
    fn broken(&self, cause: io::Error) -> Error {
        let cause = match cause.downcast::<Error>() {
            Ok(ours) => return ours,
            Err(cause) => cause,
        };
        let shown = cause
            .to_string()
            .escape_debug()
            .take(200)
            .collect::<String>();
        let what = format!("{} is not a sound tar", self.shown());
        Error::new(ErrorKind::Image, what)
            .because(io::Error::new(cause.kind(), shown))
            .hint_to("Fetch it again from where it came, or send it as it is with --format raw")
    }
}

/// A name without the `./` that tar is told to put before it.
fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

/// The headers of an archive: so many bytes of them, since each says itself how long its
/// names are.
struct Headers<'a> {
    file: &'a RawImage,
    at: u64,
    left: u64,
}

impl Read for Headers<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let there = self.file.size().saturating_sub(self.at);
        let n = there.min(bytes.len() as u64);
        let Some(left) = self.left.checked_sub(n) else {
            let what = format!(
                "{} is a tar with more than {HEADERS_BYTES_MAX} bytes of names and headers, as no OVA has",
                self.file.path().display()
            );
            let error = Error::new(ErrorKind::Image, what)
                .hint_to("Unpack the disk with tar first, or send it as it is with --format raw");
            return Err(io::Error::other(error));
        };
        let len = usize::try_from(n).unwrap_or(0);
        self.file
            .read_at(&mut bytes[..len], self.at)
            .map_err(io::Error::other)?;
        self.left = left;
        self.at += n;
        Ok(len)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.size().checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
