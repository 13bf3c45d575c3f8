//! The description of a VMDK: lines of text, within a sparse file or in a small separate file,
//! which then names the files that hold the disk.
//!
//! These files are opened only if they are regular files with plain names in the directory of the
//! description, so a description cannot refer to another directory. A guest cannot turn its raw
//! disk into a description, which has at most 64 KiB of text without NUL bytes.

use std::collections::HashMap;
use std::path::PathBuf;

use encoding_rs::{Encoding, UTF_8};

use super::super::{Container, Format, HEAD_BYTES, SECTOR_BYTES};
use crate::RawImage;
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::{quote, quote_file};
use crate::{head_of, unpack_all};

/// Maximum bytes of a description in a separate file.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// The relevant content of a description.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) kind: String,
    /// The content ID of the parent.
    parent: Option<String>,
    /// Whether it names the file of the parent.
    names_parent: bool,
    pub(super) extents: Vec<Line>,
}

/// A line that says where a part of the disk is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    is_readable: bool,
    pub(super) sectors: u64,
    pub(super) kind: String,
    file: String,
    /// The sector of the file at which it begins, if stated.
    offset: Option<u64>,
    is_sound: bool,
}

/// A part of a disk, in bytes.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    pub(crate) place: ExtentPlace,
}

/// Where a part of a disk is.
#[derive(Debug)]
pub(crate) enum ExtentPlace {
    /// Nowhere: it is zeros.
    Zero,
    /// In this file, as it is.
    Flat(RawImage),
    /// In this sparse file.
    Sparse(RawImage),
}

/// Whether a file with this beginning is a description of several files. Some writers begin with a
/// UTF-8 byte order mark, empty lines, or an extra space.
pub(crate) fn starts_as_description(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let words = head.trim_ascii_start();
    let letters = words.iter().take(32).filter(|byte| **byte != b' ');
    let letters: Vec<u8> = letters.map(u8::to_ascii_lowercase).collect();
    letters.starts_with(b"#diskdescriptorfile")
}

/// Whether a file is a description of several files.
pub(crate) fn is_description(file: &RawImage) -> Result<bool> {
    let head = head_of(file, HEAD_BYTES)?;
    Ok(starts_as_description(&head))
}

/// Reads the description in a file; `None` if the file is none.
fn read(file: &RawImage) -> Result<Option<Description>> {
    if file.size() > TEXT_BYTES_MAX || !is_description(file)? {
        return Ok(None);
    }
    let mut text = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    file.read_at(&mut text, 0)?;
    // Some writers fill the last sectors with zeros.
    let end = text.iter().rposition(|byte| *byte != 0);
    text.truncate(end.map_or(0, |end| end + 1));
    Ok((!text.contains(&0)).then(|| Description::parse(&text)))
}

/// The parts of the disk that a file describes, in order.
///
/// # Errors
/// [`ErrorKind::Image`] if it describes no supported disk, or one of the files is missing or must
/// not be opened.
pub(crate) fn extents(container: &Container) -> Result<Vec<Extent>> {
    let file = &container.file;
    let Some(description) = read(file)? else {
        let what = format!(
            "it begins as a description does, and is no text of at most {TEXT_BYTES_MAX} bytes"
        );
        return Err(container.unsupported(&what).hint_to(advice![
            "If it is a raw disk, ",
            Remedy::Format("raw"),
            " sends it as it is"
        ]));
    };
    if let Some(why) = description.why_incomplete() {
        return Err(description.refuse(container, &why));
    }
    if description.extents.is_empty() {
        return Err(container.damaged("it names no file with data"));
    }
    if let Some(archive) = file.archive() {
        let name = file.stored_names().first().map_or("", String::as_str);
        return Err(container
            .unsupported("its data is in other files of the archive")
            .hint_to(unpack_all(&archive.to_string_lossy(), name)));
    }
    let mut extents: Vec<Extent> = Vec::new();
    let mut files: HashMap<&str, RawImage> = HashMap::new();
    for line in &description.extents {
        let size = line
            .sectors
            .checked_mul(SECTOR_BYTES)
            .filter(|_| line.is_sound);
        let size = size.filter(|size| *size > 0);
        let size =
            size.ok_or_else(|| container.damaged("a line about a part of it is not sound"))?;
        if !line.is_readable {
            return Err(description.refuse(container, "a part of it may not be read"));
        }
        let place = match &*line.kind {
            "ZERO" => ExtentPlace::Zero,
            "FLAT" | "VMFS" => {
                let file = match files.get(&*line.file) {
                    Some(file) => file.clone(),
                    None => opened(container, &line.file)?,
                };
                files.insert(&line.file, file.clone());
                let start = line.offset.unwrap_or(0).checked_mul(SECTOR_BYTES);
                let end = start.and_then(|start| start.checked_add(size));
                let part = start.zip(end).filter(|(_, end)| *end <= file.size());
                let (start, end) = part.ok_or_else(|| {
                    container.damaged(&format!(
                        "{:?} is shorter than the part of the disk that it holds",
                        line.file
                    ))
                })?;
                ExtentPlace::Flat(file.with_part(start..end))
            }
            "SPARSE" if files.contains_key(&*line.file) => {
                let what = format!("it names the sparse file {:?} twice", line.file);
                return Err(container.damaged(&what));
            }
            "SPARSE" => {
                let file = opened(container, &line.file)?;
                files.insert(&line.file, file.clone());
                ExtentPlace::Sparse(file)
            }
            kind => {
                let what = format!("a part of it is of kind {kind:?}");
                return Err(description.refuse(container, &what));
            }
        };
        extents.push(Extent { size, place });
    }
    Ok(extents)
}

/// Opens a file that a description names: a regular file in the same directory, by a plain name.
fn opened(container: &Container, name: &str) -> Result<RawImage> {
    let refuse = |why: &str| {
        let what = format!("it names the file {name:?}, {why}");
        container.unsupported(&what)
    };
    let is_plain = !name.is_empty()
        && !matches!(name, "." | "..")
        && !name.contains(['/', '\\', '\0'])
        && !name.chars().any(char::is_control);
    if !is_plain {
        return Err(
            refuse("which is no plain name of a file beside it").hint_to(format!(
                "If you trust it: qemu-img convert -O qcow2 {} NEW.qcow2",
                quote_file(&container.name().to_string())
            )),
        );
    }
    let directory = container.file.directory();
    let directory = directory.ok_or_else(|| {
        refuse("which has to be beside it, and it is not a file with a name here")
            .hint_to("Put all of its files into one directory, and name that which describes them")
    })?;
    let path = directory.join(name);
    RawImage::open_regular(&path).map_err(|error| {
        let is_missing = !path.exists();
        let error = refuse(match is_missing {
            true => "which is not beside it",
            false => "which cannot be opened as a regular file that is no link",
        })
        .because(error);
        match is_missing {
            true => error.hint_to(format!(
                "Copy all files of the disk into {}",
                quote(&directory.to_string_lossy())
            )),
            false => error.hint_to("Copy the file itself there, in place of a link to it"),
        }
    })
}

/// The description in the same directory that names this file as one of its parts, and whether the
/// file as it is is the whole disk.
pub(super) fn beside(file: &RawImage) -> Option<(PathBuf, bool)> {
    let directory = file.directory()?;
    let name = file.path().file_name()?.to_str()?;
    let disk = disk_of(name)?;
    for suffix in ["vmdk", "VMDK"] {
        let path = directory.join(format!("{disk}.{suffix}"));
        let Ok(other) = RawImage::open_regular(&path) else {
            continue;
        };
        let Ok(Some(description)) = read(&other) else {
            continue;
        };
        if description.extents.iter().any(|line| line.file == name) {
            let is_all = match description.extents.as_slice() {
                [line] => {
                    matches!(&*line.kind, "FLAT" | "VMFS")
                        && line.offset.unwrap_or(0) == 0
                        && line.sectors.checked_mul(SECTOR_BYTES) == Some(file.size())
                        && description.why_incomplete().is_none()
                }
                _ => false,
            };
            let shown = file.path().with_file_name(format!("{disk}.{suffix}"));
            return Some((shown, is_all));
        }
    }
    None
}

/// The name of the disk that a file with this name is a part of, by VMware's naming scheme.
fn disk_of(name: &str) -> Option<&str> {
    let stem = name
        .strip_suffix(".vmdk")
        .or_else(|| name.strip_suffix(".VMDK"))?;
    let (disk, part) = stem.rsplit_once('-')?;
    let is_numbered = part.len() >= 4
        && part.starts_with(['f', 's'])
        && part[1..].bytes().all(|digit| digit.is_ascii_digit());
    let is_part = is_numbered || matches!(part, "flat" | "delta" | "sesparse");
    (is_part && !disk.is_empty()).then_some(disk)
}

/// The error for a raw file that is only a part of a disk, according to its name and the
/// description in the same directory.
pub(crate) fn part_error(file: &RawImage) -> Option<Error> {
    let name = file.path().file_name()?.to_str()?;
    let disk = disk_of(name)?;
    let what = match beside(file) {
        Some((_, true)) => return None,
        Some((path, false)) => {
            let path = path.to_string_lossy();
            let what = format!(
                "{} is a part of the disk that {path} describes",
                file.path().display()
            );
            return Some(Error::new(ErrorKind::Image, what).hint_to(advice![
                "Upload that disk: ",
                Remedy::Upload(path.into_owned()),
                ". ",
                Remedy::Format("raw"),
                " sends this file as it is",
            ]));
        }
        // A disk in one flat file is complete.
        None if name.to_lowercase().ends_with("-flat.vmdk") => return None,
        None => format!(
            "{} is called as one of several files of a disk are",
            file.path().display()
        ),
    };
    Some(Error::new(ErrorKind::Image, what).hint_to(advice![
        format!("Name the file that describes all of them, {disk}.vmdk, beside it. "),
        Remedy::Format("raw"),
        " sends this file as it is",
    ]))
}

impl Description {
    /// Parses a description in the encoding that it declares.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let encoding = text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            let value = value.trim().trim_matches('"');
            (key.trim() == "encoding").then(|| Encoding::for_label(value.as_bytes()))?
        });
        let (text, ..) = encoding.unwrap_or(UTF_8).decode(bytes);
        Self::of(&text)
    }

    fn of(text: &str) -> Self {
        let mut description = Self::default();
        for line in text.lines().map(str::trim) {
            let first = line.split_whitespace().next();
            if let Some("RW" | "RDONLY" | "NOACCESS") = first {
                description.extents.push(Line::of(line));
            } else if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                match key.trim() {
                    "createType" => value.clone_into(&mut description.kind),
                    "parentCID" => description.parent = Some(value.to_lowercase()),
                    "parentFileNameHint" => description.names_parent = true,
                    _ => {}
                }
            }
        }
        description
    }

    /// Why the files of this description do not hold the whole disk; `None` if they do. Some
    /// writers use zeros as the content ID of a missing parent.
    pub(super) fn why_incomplete(&self) -> Option<String> {
        let parent = self.parent.as_deref().unwrap_or("ffffffff");
        let is_none = matches!(parent, "ffffffff" | "00000000");
        if self.names_parent || !is_none {
            return Some("it holds only what differs from another file".to_owned());
        }
        matches!(
            &*self.kind,
            "fullDevice" | "partitionedDevice" | "vmfsRaw" | "vmfsRDM"
        )
        .then(|| format!("it is of kind {:?}: its data is on a device", self.kind))
    }

    /// The error for a disk whose description is not supported, with what to do about it.
    pub(super) fn refuse(&self, container: &Container, why: &str) -> Error {
        let error = container.unsupported(why);
        let is_alone = container.file.archive().is_none();
        match self.why_incomplete().is_some() && is_alone && container.format == Format::Vmdk {
            true => error.hint_to(format!(
                "With all its files beside it: qemu-img convert -f vmdk -O qcow2 {name} NEW.qcow2; on the host: vmkfstools -i {name} NEW.vmdk",
                name = quote_file(&container.name().to_string())
            )),
            false => error,
        }
    }
}

impl Line {
    /// Parses a line such as `RW 63 FLAT "disk-f001.vmdk" 0`.
    fn of(line: &str) -> Self {
        let mut rest = line;
        let mut word = || {
            let trimmed = rest.trim_start();
            let end = trimmed.find(char::is_whitespace).unwrap_or(trimmed.len());
            let (word, after) = trimmed.split_at(end);
            rest = after;
            word
        };
        let (access, sectors, kind) = (word(), word(), word());
        let sectors = sectors.parse::<u64>();
        let quoted = rest
            .trim()
            .strip_prefix('"')
            .and_then(|rest| rest.rsplit_once('"'));
        let (file, offset) = quoted.unwrap_or_default();
        let offset = offset.split_whitespace().next().map(str::parse::<u64>);
        let is_zero = kind == "ZERO";
        Self {
            is_readable: access != "NOACCESS",
            is_sound: sectors.is_ok()
                && (is_zero || quoted.is_some())
                && !matches!(offset, Some(Err(_))),
            sectors: sectors.unwrap_or(0),
            kind: kind.to_owned(),
            file: file.to_owned(),
            offset: offset.and_then(Result::ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_states_kind_parent_and_extents() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=5f\nparentCID=FFFFFFFF\n\
                    createType=\"twoGbMaxExtentSparse\"\n\n# Extent description\n\
                    RW 4192256 SPARSE \"a b-s001.vmdk\"\r\nRDONLY 1 ZERO\nRW  7 FLAT  \"x\" 8\n\
                    RW x FLAT \"x\"\nNOACCESS 1 FLAT x\n\nddb.x = \"y\"\n";
        let description = Description::of(text);
        assert_eq!(description.kind, "twoGbMaxExtentSparse");
        assert_eq!(description.why_incomplete(), None);
        let lines = description.extents.iter().map(|line| {
            let Line {
                is_readable,
                sectors,
                kind,
                file,
                offset,
                is_sound,
            } = line;
            (
                *is_sound && *is_readable,
                *sectors,
                &**kind,
                &**file,
                *offset,
            )
        });
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                (true, 4_192_256, "SPARSE", "a b-s001.vmdk", None),
                (true, 1, "ZERO", "", None),
                (true, 7, "FLAT", "x", Some(8)),
                (false, 0, "FLAT", "x", None),
                (false, 1, "FLAT", "", None),
            ]
        );
        assert_eq!(Description::parse(b"\0\xff="), Description::default());
        let latin1 = b"encoding=\"windows-1252\"\nRW 1 FLAT \"Gr\xf6sse\"";
        assert_eq!(Description::parse(latin1).extents[0].file, "Gr\u{f6}sse");
        for text in [
            "parentCID=12345678",
            "parentCID=ffffffff\nparentFileNameHint=\"base.vmdk\"",
            "createType=\"fullDevice\"",
        ] {
            assert!(Description::of(text).why_incomplete().is_some(), "{text}");
        }
        assert_eq!(Description::of("parentCID=00000000").why_incomplete(), None);
    }

    #[test]
    fn vmdk_descriptions_are_recognised_by_any_first_line() {
        for text in [
            "# Disk DescriptorFile\n",
            "# Disk Descriptor File\r\n",
            "\u{feff}\n\r\n  #Disk DescriptorFile",
            "# disk descriptorfile",
        ] {
            assert!(starts_as_description(text.as_bytes()), "{text:?}");
        }
        for text in [
            "",
            "# Disk",
            "Disk DescriptorFile",
            "x# Disk DescriptorFile",
        ] {
            assert!(!starts_as_description(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn parts_of_a_split_vmdk_are_recognised_by_their_names() {
        for (name, disk) in [
            ("a-flat.vmdk", Some("a")),
            ("a-b-f001.vmdk", Some("a-b")),
            ("a-s012.vmdk", Some("a")),
            ("a-000001-sesparse.vmdk", Some("a-000001")),
            ("a-disk1.vmdk", None),
            ("a-s1.vmdk", None),
            ("-flat.vmdk", None),
            ("a-flat.img", None),
            ("ubuntu-f.vmdk", None),
        ] {
            assert_eq!(disk_of(name), disk, "{name}");
        }
    }
}
