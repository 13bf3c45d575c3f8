//! Archives: an OVA, which is a tar of a machine's description (OVF, DMTF DSP0243) and its disks,
//! and other tars. Nothing is unpacked: a disk is read from where its bytes are in the archive, in
//! one piece or in several. Archives come from anywhere and are not trusted.

mod check;
mod headers;
mod in_order;
mod manifest;
mod names;
mod ovf;
mod sparse;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::format::is_vmdk_description;
use super::pieces::Pieces;
use super::signs::HEAD_BYTES;
use super::stream::StreamFormat;
use super::{Format, ImageOptions, RawImage, extraction, head_of, unpack_all};
use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::{quote, quote_file};
use headers::{BLOCK_BYTES, Headers, Kind, Source};
use names::Likeness;
pub(super) use names::is_companion;
use ovf::Description;

pub(super) use check::{Check, Checked, Manifest};
pub(super) use headers::is_start_of_one;
pub(super) use in_order::{Described, DiskInOrder};

/// Maximum bytes of a description and of a manifest, which are read into memory. Actual ones have
/// some KiB.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of names that an error lists; any number that fits a screen will do.
const NAMES_MAX: usize = 20;
/// Maximum number of links to follow from one name to the next, in case they form a loop. Archives
/// have one or two.
const LINKS_MAX: usize = 8;
/// Digits at the end of the name of a piece of a file (DSP0243, 7.1).
const PIECE_DIGITS: usize = 9;

/// Opens the disk in an archive, or the file itself if it is not an archive or must not be treated
/// as one.
///
/// # Errors
/// [`ErrorKind::Image`] if there is no such disk, nothing says which of several it is, or
/// the archive or its description are not sound.
pub(super) fn opened(file: RawImage, options: &ImageOptions) -> Result<RawImage> {
    let may_be_one = match (&options.disk, options.format) {
        (Some(_), _) => true,
        // A guest may have written the first bytes of these formats, so they must not decide that
        // the file is an archive.
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
    if is_one
        && options.disk.is_none()
        && options.format.is_none()
        && Format::of(&file)? == Format::Vhd
    {
        let name = file.path().display();
        let what = format!("{name} begins as a tar does, and ends as a VHD does");
        return Err(Error::new(ErrorKind::Image, what).hint_to(advice![
            "Choose: ",
            Remedy::ChooseDisk,
            " takes a disk out of the tar, ",
            Remedy::Format("vhd"),
            " takes the VHD, whose disk begins with the tar",
        ]));
    }
    match (is_one, &options.disk) {
        (true, wanted) => Archive::open(&file)?.disk(wanted.as_deref()),
        (false, None) => Ok(file),
        // The content of a compressed file is inspected when it is decompressed.
        (false, Some(_)) if StreamFormat::of_file(&file)?.is_some() => Ok(file),
        (false, Some(wanted)) => Err(no_archive(&file.path().display().to_string(), wanted)),
    }
}

/// The error for an image that is not an archive although the user named a disk in it.
pub(super) fn no_archive(name: &str, wanted: &str) -> Error {
    let what = format!("{name} is no OVA or other tar, so there is no {wanted:?} in it");
    Error::new(ErrorKind::Image, what).hint_to(advice!["Leave ", Remedy::NameDisk, " out"])
}

/// The error for a disk that is compressed within its archive.
pub(super) fn packed_member(file: &RawImage, format: StreamFormat) -> Error {
    let what = format!("{} is packed with {format}", file.path().display());
    let error = Error::new(ErrorKind::Image, what);
    let Some((archive, member)) = file.archive().zip(file.member()) else {
        return error;
    };
    let name = names::base(&member.name);
    let unpacked = name.rsplit_once('.').map_or("disk", |(stem, _)| stem);
    let (tool, to) = (format.decompress_command(), quote(unpacked));
    let out = unpack_to_stdout(file, &archive.to_string_lossy());
    error.hint_to(advice![
        format!("Unpack it, and upload that file: {out} | {tool} > {to} && "),
        Remedy::Upload(unpacked.to_owned()),
    ])
}

/// A command that writes a member, as the archive stores it, to standard output.
fn unpack_to_stdout(file: &RawImage, archive: &str) -> String {
    let names = file.stored_names();
    match names {
        [name] => format!(
            "tar -xOf {} {}",
            quote_file(archive),
            extraction::members(&[name])
        ),
        // tar would write them in the order of the archive.
        _ => format!(
            "{} && cat {}",
            extraction::untar(archive, names),
            extraction::files(names)
        ),
    }
}

/// An open archive.
struct Archive<'a> {
    file: &'a RawImage,
    members: Vec<Entry>,
}

/// A file in an archive.
#[derive(Clone, Debug)]
struct Entry {
    /// Its name, normalized.
    name: String,
    /// Where its bytes are in the archive.
    pieces: Pieces,
    /// The members that hold the file: each with its name in the archive and the range of the
    /// file's bytes in it.
    stored: Arc<[(String, Range<u64>)]>,
    /// Whether it is a link, so that the same file has another name.
    is_link: bool,
    /// For a file that was joined from pieces: whether more pieces follow after a gap.
    joined: Option<bool>,
}

impl Entry {
    /// Whether its name has this extension.
    fn is(&self, extension: &str) -> bool {
        self.name.to_lowercase().ends_with(extension)
    }

    /// Its name without the extension.
    fn stem(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(&*self.name, |(stem, _)| stem)
    }

    fn size(&self) -> u64 {
        self.pieces.size()
    }

    /// Whether it is stored in several members.
    fn is_joined(&self) -> bool {
        self.stored.len() > 1
    }
}

/// The headers of an archive in a file.
struct InFile<'a> {
    file: &'a RawImage,
    at: u64,
}

impl Source for InFile<'_> {
    fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let there = self.file.size().saturating_sub(self.at);
        let len = usize::try_from(there.min(bytes.len() as u64)).unwrap_or(0);
        let read = self.file.read_at(&mut bytes[..len], self.at);
        read.map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }

    fn skip(&mut self, len: u64) -> io::Result<()> {
        self.at = self.at.saturating_add(len);
        Ok(())
    }
}

impl<'a> Archive<'a> {
    /// Opens an archive and reads its headers.
    fn open(file: &'a RawImage) -> Result<Self> {
        let mut archive = Self {
            file,
            members: Vec::new(),
        };
        let mut links = Vec::new();
        let mut headers = Headers::new(InFile { file, at: 0 });
        let to_error = |cause: io::Error| {
            let unreadable = |cause| {
                let what = format!("Cannot read {}", file.path().display());
                Error::new(ErrorKind::Image, what).because(cause)
            };
            cause.downcast::<Error>().unwrap_or_else(unreadable)
        };
        while let Some(member) = headers.next().map_err(to_error)? {
            let name = names::plain(&member.name);
            if names::is_companion(&name) {
                continue;
            }
            match member.kind {
                Kind::Other => {}
                Kind::Link {
                    target,
                    is_symbolic,
                } => {
                    let target = match is_symbolic {
                        true => names::linked(&name, &target),
                        false => names::plain(&target),
                    };
                    links.push((name, target));
                }
                Kind::File(_) if member.stored.end > file.size() => {
                    let Range { start, end } = member.stored;
                    let what = format!(
                        "{} was cut off, or is damaged: {name:?} in it, {} bytes from byte {start} on, lies beyond its end",
                        archive.shown(),
                        end - start
                    );
                    return Err(Error::new(ErrorKind::Image, what)
                        .hint_to("Fetch it again from where it came"));
                }
                Kind::File(pieces) => archive.members.push(Entry {
                    stored: Arc::new([(member.name, 0..pieces.size())]),
                    name,
                    pieces,
                    is_link: false,
                    joined: None,
                }),
            }
        }
        archive.join()?;
        archive.link(&links);
        Ok(archive)
    }

    /// Joins files that are stored in pieces: NAME.000000000, NAME.000000001 and so on.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if such a file is larger than any can be.
    fn join(&mut self) -> Result<()> {
        let number = |name: &str| {
            let (stem, digits) = name.rsplit_once('.')?;
            let is_number =
                digits.len() == PIECE_DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit());
            let number = digits.parse::<usize>().ok().filter(|_| is_number)?;
            Some((stem.to_owned(), number))
        };
        let (pieces, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|entry| number(&entry.name).is_some());
        self.members = others;
        for first in pieces
            .iter()
            .filter(|entry| number(&entry.name).is_some_and(|(_, number)| number == 0))
        {
            let Some((stem, _)) = number(&first.name) else {
                continue;
            };
            let same = self.members.iter().filter(|entry| entry.name == stem);
            // Two files of one name are refused. More of them would only take memory.
            if same.filter(|entry| entry.joined.is_some()).count() == 2 {
                continue;
            }
            let piece = |number: usize| {
                let name = format!("{stem}.{number:0PIECE_DIGITS$}");
                pieces.iter().find(|entry| entry.name == name)
            };
            let parts: Vec<&Entry> = (0..).map_while(piece).collect();
            let mut size = 0_u64;
            let mut stored = Vec::new();
            for (name, part) in parts.iter().flat_map(|part| part.stored.iter()) {
                let start = size;
                let end = start.checked_add(part.end - part.start);
                size = end.ok_or_else(|| {
                    let what = format!("{stem:?} in {} is larger than any disk", self.shown());
                    Error::new(ErrorKind::Image, what)
                })?;
                stored.push((name.clone(), start..size));
            }
            self.members.push(Entry {
                stored: stored.into(),
                pieces: parts.iter().flat_map(|part| part.pieces.iter()).collect(),
                joined: Some(pieces.iter().any(|entry| {
                    number(&entry.name)
                        .is_some_and(|(other, number)| other == stem && number > parts.len())
                })),
                name: stem,
                is_link: false,
            });
        }
        // Pieces after a gap belong to no file, but the user may ask for one by its own name.
        self.members.extend(pieces.into_iter().map(|entry| Entry {
            is_link: true,
            ..entry
        }));
        Ok(())
    }

    /// Adds an entry for each link to a file.
    fn link(&mut self, links: &[(String, String)]) {
        for (name, target) in links {
            let mut target = target;
            for _ in 0..LINKS_MAX {
                match links.iter().find(|(name, _)| name == target) {
                    Some((_, next)) => target = next,
                    None => break,
                }
            }
            let found = self.members.iter().find(|entry| entry.name == *target);
            if let Some(entry) = found {
                let mut entry = entry.clone();
                entry.is_link = true;
                entry.name.clone_from(name);
                self.members.push(entry);
            }
        }
    }

    /// The disk with the wanted name. Without a name, the disk that the machine boots according to
    /// the description, or the only disk.
    fn disk(&self, wanted: Option<&str>) -> Result<RawImage> {
        let ovf = self.members.iter().find(|entry| entry.is(".ovf"));
        let described = ovf.map(|ovf| self.described(ovf)).transpose();
        let (entry, disks) = match wanted {
            // The description is not needed.
            Some(wanted) => {
                let disks = match described {
                    Ok(Some(disks)) => disks.into_iter().flatten().collect(),
                    _ => self.disks_by_content()?,
                };
                let entry = self.named(wanted)?;
                self.check_pieces(entry, None)?;
                (entry, disks)
            }
            None => {
                let mut disks = described?.unwrap_or_default().into_iter();
                match disks.next() {
                    Some(first) => {
                        let first = first?;
                        let others = disks.flatten();
                        (first, std::iter::once(first).chain(others).collect())
                    }
                    None => {
                        let (disk, disks) = self.only_disk(ovf.is_none())?;
                        self.check_pieces(disk, None)?;
                        (disk, disks)
                    }
                }
            }
        };
        if entry.size() == 0 {
            let what = format!(
                "{:?} in {} is empty: there is nothing to upload",
                entry.name,
                self.shown()
            );
            return Err(Error::new(ErrorKind::Image, what).hint_to(self.names_hint()));
        }
        let others = disks.iter().filter(|disk| disk.pieces != entry.pieces);
        let others: Vec<_> = others.map(|disk| disk.name.clone()).collect();
        let manifest = self.manifest(entry, ovf)?;
        Ok(self.member(entry, &others, manifest))
    }

    fn member(&self, entry: &Entry, others: &[String], manifest: Manifest) -> RawImage {
        let stored = entry.stored.iter().map(|(name, _)| name.clone()).collect();
        let pieces = entry.pieces.clone();
        self.file
            .with_member(&entry.name, stored, pieces, others, manifest)
    }

    /// The checks of a file according to the archive's manifest: the one with the same name as the
    /// description, or else the first. Its position does not matter. The standard wants it right
    /// after the description, but some tools and people put it at the end.
    fn manifest(&self, entry: &Entry, ovf: Option<&Entry>) -> Result<Manifest> {
        let mut manifests = self.members.iter().filter(|entry| entry.is(".mf"));
        let is_called_so = |entry: &&Entry| ovf.is_some_and(|ovf| ovf.stem() == entry.stem());
        let manifest = manifests.clone().find(is_called_so);
        let Some(manifest) = manifest.or_else(|| manifests.next()) else {
            return Ok(Manifest::Absent);
        };
        let what = format!("Its manifest {:?}", manifest.name);
        let text = self.text(manifest, &what)?;
        let text = String::from_utf8_lossy(&text);
        let beside = names::directory(&manifest.name);
        let digest = |wanted: &[&str]| {
            let is_it = |listed: &str| {
                let meant = names::meant(listed, beside);
                let is = |name: &&str| meant.iter().any(|meant| is_called(meant, name));
                wanted.iter().any(is)
            };
            let digest = manifest::digest_of(&text, is_it);
            digest.map_err(|why| self.not_sound(&what, &why))
        };
        let check = |listed, part: &Range<u64>| Check::new(&manifest.name, listed, part.clone());
        let plain: Vec<_> = entry
            .stored
            .iter()
            .map(|(name, _)| names::plain(name))
            .collect();
        let mut checks = Vec::new();
        // A manifest may use either name of a link, and may list a joined file piece by piece.
        if !entry.is_joined() {
            let mut wanted = vec![&*entry.name];
            wanted.extend(plain.iter().map(String::as_str));
            if let Some(listed) = digest(&wanted)? {
                checks.push(check(listed, &(0..entry.size())));
            }
        } else if let Some(listed) = digest(&[&*entry.name])? {
            checks.push(check(listed, &(0..entry.size())));
        } else {
            for (name, (_, part)) in plain.iter().zip(entry.stored.iter()) {
                if let Some(listed) = digest(&[name])? {
                    checks.push(check(listed, part));
                }
            }
        }
        let covered: u64 = checks.iter().map(Check::len).sum();
        Ok(match covered == entry.size() {
            true => Manifest::Lists(checks),
            false => Manifest::Silent,
        })
    }

    /// The files of the disks in the description, the boot disk first. Each may be one that cannot
    /// be read.
    fn described(&self, ovf: &Entry) -> Result<Vec<Result<&Entry>>> {
        let what = format!("Its description {:?}", ovf.name);
        let text = self.text(ovf, &what)?;
        let unsound = |why: String| self.not_sound(&what, &why);
        let text = ovf::decoded(&text).map_err(unsound)?;
        let description = Description::parse(&text).map_err(unsound)?;
        let disks = description.disks().map_err(unsound)?;
        let disks = disks.iter().map(|file| self.of_description(file, ovf));
        Ok(disks.collect())
    }

    /// The file that a description refers to, if it can be read as it is stored.
    fn of_description(&self, file: &ovf::File, ovf: &Entry) -> Result<&Entry> {
        let meant = names::meant(&file.reference, names::directory(&ovf.name));
        let mut found = meant.iter().filter_map(|name| self.find(name).transpose());
        let Some(entry) = found.next().transpose()? else {
            return Err(self.missing(&names::plain(&file.reference)));
        };
        let refuse = |how: &str| {
            let what = format!("The disk {:?} in {} is {how}", entry.name, self.shown());
            Err(Error::new(ErrorKind::Image, what))
        };
        if file.has_parent {
            return refuse("what differs from another disk (parentRef)").map_err(|error| {
                error.hint_to("Export the machine again when its snapshots are removed or merged")
            });
        }
        self.check_pieces(entry, Some(file))?;
        if let Some(how) = &file.compression
            && StreamFormat::of_file(&self.member(entry, &[], Manifest::Absent))?.is_none()
        {
            return refuse(&format!("packed (compression {how:?})")).map_err(|error| {
                let untar = extraction::untar(&self.shown(), &[&entry.stored[0].0]);
                error.hint_to(advice![
                    format!("Unpack it, first with: {untar}. If the description is wrong: "),
                    Remedy::Disk(entry.name.clone()),
                ])
            });
        }
        Ok(entry)
    }

    /// Fails unless the pieces of a joined file are complete.
    fn check_pieces(&self, entry: &Entry, listed: Option<&ovf::File>) -> Result<()> {
        let Some(why) = wrong_pieces(entry, listed) else {
            return Ok(());
        };
        let names: Vec<_> = entry.stored.iter().map(|(name, _)| name).collect();
        let what = format!("The disk {:?} in {} is {why}", entry.name, self.shown());
        Err(Error::new(ErrorKind::Image, what).hint_to(advice![
            format!(
                "If it is, join the pieces and upload that file: {} && cat {} > disk && ",
                extraction::untar(&self.shown(), &names),
                extraction::files(&names)
            ),
            Remedy::Upload("disk".to_owned()),
        ]))
    }

    /// The only file that is a disk, if the description names none. Disks are recognised by
    /// content, or, if `by_name` and there is none, by name.
    fn only_disk(&self, by_name: bool) -> Result<(&Entry, Vec<&Entry>)> {
        let mut disks = self.disks_by_content()?;
        if disks.is_empty() && by_name {
            disks = self.disks_by_name();
        }
        match disks.as_slice() {
            [disk] => Ok((disk, disks.clone())),
            [] => {
                let what = format!("{} is a tar, and no disk is in it", self.shown());
                let hint = advice![
                    self.names_hint(),
                    ". ",
                    Remedy::Format("raw"),
                    " sends all of it as it is",
                ];
                Err(Error::new(ErrorKind::Image, what).hint_to(hint))
            }
            several => self.which(several),
        }
    }

    /// The error for several disks when nothing decides between them.
    fn which<T>(&self, disks: &[&Entry]) -> Result<T> {
        // If two disks have the same name, no name can select one.
        for disk in disks {
            self.find(&disk.name)?;
        }
        let description = disks.iter().find(|disk| {
            let file = self.member(disk, &[], Manifest::Absent);
            is_vmdk_description(&file).unwrap_or(false)
        });
        if let Some(disk) = description {
            let what = format!(
                "{} holds a VMDK in several files, which {:?} describes",
                self.shown(),
                disk.name
            );
            let hint = unpack_all(&self.shown(), &disk.stored[0].0);
            return Err(Error::new(ErrorKind::Image, what).hint_to(hint));
        }
        let what = format!(
            "{} holds {} disks, and nothing in it says which one boots",
            self.shown(),
            disks.len()
        );
        let options = disks.iter().take(NAMES_MAX);
        let options: Vec<_> = options.map(|disk| disk.name.clone()).collect();
        let hint = advice!["Name one of them: ", any_of(&options)];
        Err(Error::new(ErrorKind::Image, what).hint_to(hint))
    }

    /// Files whose content begins like a disk: with the header of an image format, a partition
    /// table, a boot sector or a file system.
    fn disks_by_content(&self) -> Result<Vec<&Entry>> {
        let mut disks = Vec::new();
        for entry in self.members.iter().filter(|entry| !entry.is_link) {
            let file = self.member(entry, &[], Manifest::Absent);
            let head = head_of(&file, HEAD_BYTES)?;
            if is_disk(&head) || Format::of(&file)? != Format::Raw {
                disks.push(entry);
            }
        }
        Ok(disks)
    }

    /// Files whose name is that of a disk.
    fn disks_by_name(&self) -> Vec<&Entry> {
        let is_called = |entry: &&Entry| entry.is(".img") || entry.is(".raw");
        let files = self.members.iter().filter(|entry| !entry.is_link);
        files.filter(is_called).collect()
    }

    /// The file with this name, trying the strictest comparison first; `None` if there is none.
    fn find(&self, name: &str) -> Result<Option<&Entry>> {
        for likeness in Likeness::CERTAIN {
            let wanted = likeness.of(name);
            let is_it = |entry: &&Entry| likeness.of(&entry.name) == wanted;
            let mut found = self.members.iter().filter(is_it);
            match (found.next(), found.next()) {
                (None, _) => {}
                (Some(entry), None) => return Ok(Some(entry)),
                (Some(_), Some(_)) => {
                    let what = format!("There are several files {name:?} in {}", self.shown());
                    return Err(Error::new(ErrorKind::Image, what).hint_to(
                        "It is unknown which of them is the disk: unpack it with tar first",
                    ));
                }
            }
        }
        Ok(None)
    }

    /// The file that the user named.
    fn named(&self, wanted: &str) -> Result<&Entry> {
        let name = names::plain(wanted);
        self.find(&name)?.ok_or_else(|| self.missing(&name))
    }

    /// The error for a file that does not exist, with similar names.
    fn missing(&self, name: &str) -> Error {
        let what = format!("There is no file {name:?} in {}", self.shown());
        let wanted = Likeness::AnyCase.of(names::base(name));
        let alike = self
            .members
            .iter()
            .filter(|entry| Likeness::AnyCase.of(names::base(&entry.name)) == wanted);
        let alike: Vec<_> = alike
            .take(NAMES_MAX)
            .map(|entry| entry.name.clone())
            .collect();
        Error::new(ErrorKind::Image, what).hint_to(match alike.is_empty() {
            true => self.names_hint(),
            false => advice!["If this is it, name it so: ", any_of(&alike)],
        })
    }

    /// A hint that says how to select a file, and lists the files.
    fn names_hint(&self) -> Advice {
        let names = self.members.iter().map(|entry| format!("{:?}", entry.name));
        let names: Vec<_> = names.take(NAMES_MAX).collect();
        let more = match self.members.len() > NAMES_MAX {
            true => " and others",
            false => "",
        };
        match names.is_empty() {
            true => "No file is in it".into(),
            false => advice![
                Remedy::ChooseDisk,
                format!(" takes another file. In it are {}{more}", names.join(", ")),
            ],
        }
    }

    /// Reads a short file.
    fn text(&self, entry: &Entry, what: &str) -> Result<Vec<u8>> {
        let size = entry.size();
        if size > TEXT_BYTES_MAX {
            let why = format!("it is longer than {TEXT_BYTES_MAX} bytes");
            return Err(self.not_sound(what, &why));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        self.member(entry, &[], Manifest::Absent)
            .read_at(&mut text, 0)?;
        Ok(text)
    }

    fn shown(&self) -> String {
        self.file.path().display().to_string()
    }

    /// An error about the description or the manifest.
    fn not_sound(&self, what: &str, why: &str) -> Error {
        let error = Error::new(
            ErrorKind::Image,
            format!("{} is no sound OVA. {what}: {why}", self.shown()),
        );
        let disks = self.disks_by_content().unwrap_or_default();
        let disks = disks.into_iter().take(NAMES_MAX);
        let options: Vec<_> = disks.map(|disk| disk.name.clone()).collect();
        error.hint_to(match options.is_empty() {
            true => self.names_hint(),
            false => advice!["Name the disk: ", any_of(&options)],
        })
    }
}

/// Advice to take one of these files.
pub(super) fn any_of(names: &[String]) -> Advice {
    let mut advice = Advice::default();
    for name in names {
        if !advice.is_empty() {
            advice.push(" or ");
        }
        advice.push(Remedy::Disk(name.clone()));
    }
    advice
}

/// Whether two names refer to the same file.
fn is_called(one: &str, other: &str) -> bool {
    Likeness::Composed.of(one) == Likeness::Composed.of(other)
}

/// Explains why the pieces of a file may be incomplete; `None` if they are complete. A description
/// may state the size of each piece and of the whole file. Without it, only a shorter last piece
/// shows that no more pieces follow.
fn wrong_pieces(entry: &Entry, listed: Option<&ovf::File>) -> Option<String> {
    let has_more = entry.joined?;
    let size = listed.and_then(|file| file.size);
    let piece_bytes = listed.and_then(|file| file.piece_bytes.as_deref());
    let len = |(_, part): &(String, Range<u64>)| part.end - part.start;
    let (last, before) = entry.stored.split_last()?;
    let piece_bytes = match piece_bytes {
        Some(listed) => listed.parse().ok(),
        None => before.first().map(len),
    };
    let is_whole = !has_more
        && before.iter().all(|part| Some(len(part)) == piece_bytes)
        && match size {
            Some(size) => size == entry.size(),
            None => Some(len(last)) != piece_bytes,
        };
    let size = size.map_or_else(|| "no size".to_owned(), |size| format!("{size} bytes"));
    (!is_whole).then(|| {
        format!(
            "in {} pieces of {} bytes in total, and nothing shows that these are all: the description states {size}",
            entry.stored.len(),
            entry.size(),
        )
    })
}

/// What makes a member a disk: the offset of a signature, and its bytes. These are fewer than in
/// `signs`, because other files of an archive may be file systems as well, such as the SquashFS of
/// an installer, and several disks make it unclear which one is meant.
const DISKS: &[(usize, &[u8])] = &[
    (510, b"\x55\xaa"),        // A boot sector
    (512, b"EFI PART"),        // A GPT
    (4096, b"EFI PART"),       // A GPT with sectors of 4096 bytes
    (1080, b"\x53\xef"),       // ext
    (0, b"XFSB"),              // XFS
    (32769, b"CD001"),         // ISO 9660
    (65536 + 64, b"_BHRfS_M"), // Btrfs
];

/// Whether a file with this beginning is a disk.
fn is_disk(head: &[u8]) -> bool {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    // A Linux kernel has the signature of a boot sector as well.
    let is_kernel = has(514, b"HdrS");
    !is_kernel && DISKS.iter().any(|(at, magic)| has(*at, magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signs::has_sign;

    #[test]
    fn a_member_counts_as_a_disk_by_a_sign_of_a_disk() {
        for (at, magic) in DISKS {
            let mut head = vec![0; HEAD_BYTES];
            assert!(!is_disk(&head) && !has_sign(&head));
            head[*at..][..magic.len()].copy_from_slice(magic);
            assert!(is_disk(&head) && has_sign(&head), "{at}");
        }
    }
}
