//! What an OVF (DMTF DSP0243, 1.x and 2.x, and VMware's 0.9 before it) tells of disks: the
//! files that the appliance has, and which of them are disks.

use percent_encoding::percent_decode_str;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::plain;

/// Deepest element: those of machines are a dozen deep.
const DEPTH_MAX: usize = 64;
/// Most files, and most disks.
const FILES_MAX: usize = 1000;

/// What is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Description {
    files: Vec<File>,
    disks: Vec<Disk>,
}

/// A file of the appliance.
#[derive(Debug, Default, PartialEq, Eq)]
struct File {
    id: String,
    /// As it is in the archive.
    name: String,
    /// How it is packed, if that is told.
    compression: Option<String>,
    is_chunked: bool,
}

/// A disk of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disk {
    /// The file that holds it; none for an empty one.
    file: Option<String>,
    has_parent: bool,
}

impl Description {
    /// Reads a description; why it is none, else. Entities are not expanded, and a
    /// document that defines its own is refused. `is_there` tells whether a file has
    /// this name.
    pub(super) fn parse(text: &str, is_there: impl Fn(&str) -> bool) -> Result<Self, String> {
        // What opened and is not closed.
        let mut open: Vec<String> = Vec::new();
        let mut told = Self::default();
        let mut has_root = false;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        loop {
            let (element, is_empty) = match reader.read_event().map_err(shown)? {
                Event::Start(element) => (element, false),
                Event::Empty(element) => (element, true),
                Event::End(_) => {
                    open.pop();
                    continue;
                }
                Event::DocType(_) => return Err("it defines a type of document".into()),
                Event::Eof if !open.is_empty() => return Err("it ends in the middle".into()),
                Event::Eof if !has_root => return Err("it is empty".into()),
                Event::Eof => return Ok(told),
                _ => continue,
            };
            let name = element.local_name().into_inner();
            if open.is_empty() && (has_root || name != "Envelope") {
                return Err(format!("it is {name:?}, not one Envelope"));
            }
            has_root = true;
            match (open.last().map(String::as_str), name) {
                (Some("References"), "File") => {
                    told.files.push(File::of(&element, &is_there)?);
                }
                (Some("DiskSection" | "Section"), "Disk") => told.disks.push(Disk::of(&element)?),
                _ => {}
            }
            if told.files.len().max(told.disks.len()) > FILES_MAX {
                return Err(format!("it tells of more than {FILES_MAX} files or disks"));
            }
            if !is_empty {
                if open.len() == DEPTH_MAX {
                    return Err(format!("its elements are more than {DEPTH_MAX} deep"));
                }
                open.push(name.to_owned());
            }
        }
    }

    /// The names of the files of disks, in the order of the disks; why not, if one of them
    /// is not told.
    pub(super) fn disks(&self) -> Result<Vec<&str>, String> {
        let mut names = Vec::new();
        for id in self.disks.iter().filter_map(|disk| disk.file.as_deref()) {
            let file = self.files.iter().find(|file| file.id == id);
            let file = file.ok_or_else(|| format!("it tells of no file {id:?}"))?;
            if !names.contains(&&*file.name) {
                names.push(&*file.name);
            }
        }
        Ok(names)
    }

    /// Why the file of this name cannot be read as it lies there.
    pub(super) fn not_read(&self, name: &str) -> Option<String> {
        let file = self.files.iter().find(|file| file.name == name)?;
        let has_parent = |disk: &Disk| disk.has_parent && disk.file.as_ref() == Some(&file.id);
        if file.is_chunked {
            Some("in several pieces (chunkSize)".to_owned())
        } else if let Some(how) = &file.compression {
            Some(format!("packed (compression {how:?})"))
        } else if self.disks.iter().any(has_parent) {
            Some("what differs from another disk (parentRef)".to_owned())
        } else {
            None
        }
    }
}

impl File {
    fn of(element: &BytesStart<'_>, is_there: impl Fn(&str) -> bool) -> Result<Self, String> {
        let mut file = Self::default();
        for (name, value) in attributes(element)? {
            match name.as_str() {
                "id" => file.id = value,
                // A relative URI, says the standard; many write the name as it is.
                "href" if is_there(plain(&value)) => file.name = plain(&value).to_owned(),
                "href" => {
                    let name = percent_decode_str(&value).decode_utf8_lossy();
                    file.name = plain(&name).to_owned();
                }
                "compression" if value != "identity" && !value.is_empty() => {
                    file.compression = Some(value);
                }
                "chunkSize" => file.is_chunked = true,
                _ => {}
            }
        }
        Ok(file)
    }
}

impl Disk {
    fn of(element: &BytesStart<'_>) -> Result<Self, String> {
        let mut disk = Self::default();
        for (name, value) in attributes(element)? {
            match name.as_str() {
                "fileRef" if !value.is_empty() => disk.file = Some(value),
                "parentRef" => disk.has_parent = true,
                _ => {}
            }
        }
        Ok(disk)
    }
}

/// The attributes of an element, without their prefixes.
fn attributes(element: &BytesStart<'_>) -> Result<Vec<(String, String)>, String> {
    let mut attributes = Vec::new();
    // To look for those that are there twice takes as long as all of them, each time.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(shown)?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(shown)?;
        let name = attribute.key.local_name().into_inner().to_owned();
        attributes.push((name, value.into_owned()));
    }
    Ok(attributes)
}

/// What is wrong, without what would act on a terminal.
fn shown(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.escape_debug().take(200).collect()
}
