//! Image formats that store a disk in pieces, with a map of them: one file for each format, all
//! behind [`Layout`]. Images come from anywhere and are not trusted. Maps are read in pages as they
//! are needed, every offset in them is checked against the size of the file before it is used, and
//! nothing is allocated whose size only the file decides.
//!
//! The readers are our own because the existing crates are not sufficient: imago 0.2.6 supports
//! neither Zstandard nor subclusters of qcow2 nor sparse VMDK, treats an encrypted qcow2 as a plain
//! one, and reads a truncated file as zeros. The crates for VHD and VHDX cannot report holes.

mod qcow2;
mod survey;
mod table;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use super::{RawImage, extraction, head_of};
use crate::codec::{Pack, UnpackError, Unpacker};
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote_file;

pub(super) use survey::survey;
pub(super) use vhd::{Ending as VhdEnding, Footer as VhdFooter, ending as vhd_ending};
pub(super) use vmdk::{is_description as is_vmdk_description, part_error as vmdk_part_error};

/// Bytes of a sector in most formats, whatever the sector of the disk itself.
const SECTOR_BYTES: u64 = 512;
/// Maximum size of a disk: larger offsets do not fit a signed 64-bit integer.
pub(super) const DISK_BYTES_MAX: u64 = i64::MAX.cast_unsigned();

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// As it is, byte by byte.
    Raw,
    /// QEMU's, versions 2 and 3.
    Qcow2,
    /// VMware's: in one sparse file, or in several files.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Microsoft's older one, of Virtual PC and Azure.
    Vhd,
    /// Microsoft's newer one, of Hyper-V.
    Vhdx,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Raw,
        Self::Qcow2,
        Self::Vmdk,
        Self::Vdi,
        Self::Vhd,
        Self::Vhdx,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// Its name in QEMU.
    fn name_in_qemu(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// Recognises the format by content; the name of the file does not matter. A file that matches
    /// no other format is raw.
    ///
    /// Whoever can write to a raw disk can make it look like one of the other formats. If that may
    /// be an untrusted person, the user must give the format explicitly.
    pub(super) fn of(file: &RawImage) -> Result<Self> {
        Ok(match Self::of_head(&head_of(file, HEAD_BYTES)?) {
            Some(format) => format,
            None if vhd::is_known_by_its_end(file)? => Self::Vhd,
            None => Self::Raw,
        })
    }

    /// Recognises a format by its first bytes; `None` if they look raw. A fixed VHD looks raw here,
    /// because only its end identifies it.
    pub(super) fn of_head(head: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| head.starts_with(magic);
        let is_vdi = head
            .get(vdi::MAGIC_AT..)
            .is_some_and(|rest| rest.starts_with(vdi::MAGIC));
        if starts(qcow2::MAGIC) {
            Some(Self::Qcow2)
        } else if vmdk::MAGICS.iter().any(|magic| starts(magic))
            || vmdk::starts_as_description(head)
        {
            Some(Self::Vmdk)
        } else if is_vdi {
            Some(Self::Vdi)
        } else if starts(vhdx::MAGIC) {
            Some(Self::Vhdx)
        } else if starts(vhd::MAGIC) {
            Some(Self::Vhd)
        } else {
            None
        }
    }

    /// Reads the header of a file of this format.
    pub(super) fn open(self, file: RawImage) -> Result<Box<dyn Layout>> {
        let container = Container { file, format: self };
        Ok(match self {
            Self::Raw => Box::new(Flat::new(container)),
            Self::Qcow2 => Box::new(qcow2::Qcow2::open(container)?),
            Self::Vmdk => Box::new(vmdk::Vmdk::open(container)?),
            Self::Vdi => Box::new(vdi::Vdi::open(container)?),
            Self::Vhd => vhd::open(container)?,
            Self::Vhdx => Box::new(vhdx::Vhdx::open(container)?),
        })
    }
}

/// Enough bytes to recognise every format but a fixed VHD. A VMDK description may begin with empty
/// lines.
const HEAD_BYTES: usize = 512;

/// A part of a disk: its bytes, and its layout; `None` if it is all zeros.
pub(super) type Part = (u64, Option<Box<dyn Layout>>);

/// The parts of the disk, if the file is a description of several files.
///
/// # Errors
/// [`ErrorKind::Image`] if one of the files is missing, invalid, or may not be read.
pub(super) fn parts_of(file: &RawImage, format: Format) -> Result<Option<Vec<Part>>> {
    if format != Format::Vmdk || !vmdk::is_description(file)? {
        return Ok(None);
    }
    let container = |file, format| Container { file, format };
    let extents = vmdk::extents(&container(file.clone(), format))?;
    let parts = extents.into_iter().map(|extent| {
        let layout: Option<Box<dyn Layout>> = match extent.place {
            vmdk::ExtentPlace::Zero => None,
            vmdk::ExtentPlace::Flat(file) => {
                Some(Box::new(Flat::new(container(file, Format::Raw))))
            }
            vmdk::ExtentPlace::Sparse(file) => {
                let part = vmdk::Vmdk::open_part(container(file, format), extent.size)?;
                Some(Box::new(part))
            }
        };
        Ok((extent.size, layout))
    });
    parts.collect::<Result<_>>().map(Some)
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let what = format!("Format {text:?} is none of {names}");
            Error::new(ErrorKind::Usage, what)
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The reader of one format. Everything that does not depend on the format is elsewhere.
pub(super) trait Layout: fmt::Debug + Send + Sync {
    /// The file that it reads.
    fn container(&self) -> &Container;

    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The run of the disk that contains `offset`, which is less than the size: from `offset` to
    /// the run's end, all bytes are in the same place. It may be shorter than possible, but has at
    /// least one byte.
    fn run_at(&self, offset: u64) -> Result<Run>;

    /// As [`run_at`](Self::run_at), but for a look at the tables alone: the run may be a whole unit
    /// although another table declares parts of it zero.
    fn unit_at(&self, offset: u64) -> Result<Run> {
        self.run_at(offset)
    }

    /// Decompresses the start of a compressed unit.
    fn unpack(&self, packed: &Packed, bytes: &mut [u8]) -> Result<()> {
        let _ = bytes;
        let what = format!("Nothing is packed at byte {}", packed.at);
        Err(Error::new(ErrorKind::Bug, what))
    }

    /// The backing file that this file names, if any.
    fn backing(&self) -> Option<&BackingName> {
        None
    }

    /// Bytes of a sector of the disk, if the file states them.
    fn sector(&self) -> Option<u64> {
        None
    }

    /// Where in the file units of the disk can be.
    fn grid(&self) -> Grid;
}

/// Consecutive bytes of the disk that are in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first byte of the disk after it.
    pub(super) end: u64,
    /// Where its bytes are.
    pub(super) place: Place,
    /// Offset in the file of the second-level table that the run was found in.
    pub(super) table: Option<u64>,
}

/// Where bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: they are zeros.
    Zero,
    /// Not in this file: the backing file holds them. Without a backing file they are zeros.
    Backing,
    /// In the file, at this offset.
    File(u64),
    /// In a compressed unit.
    Packed(Packed),
}

/// A unit of the disk that is compressed on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Its offset in the file.
    pub(super) at: u64,
    /// Maximum bytes in the file; 0 if only the file itself states the length, at `at`.
    pub(super) len: u64,
    /// Which bytes of the disk it holds. The last of them may be beyond the end of the disk.
    pub(super) unit: (u64, u64),
}

/// Where in the file units of the disk can begin: at `base`, and every `unit` bytes from there. Two
/// units that begin in the same cell overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Bytes of a cell.
    pub(super) unit: u64,
    /// Where a cell begins.
    pub(super) base: u64,
    /// Bytes of a second-level table; 0 if there is none.
    pub(super) table: u64,
    /// Ranges of the file that hold neither units nor tables, if all keep to this grid.
    pub(super) header: [(u64, u64); 2],
    /// Whether tables are on the same grid.
    pub(super) has_tables_in_it: bool,
}

impl Grid {
    /// A grid of units alone.
    fn of(unit: u64, base: u64) -> Self {
        Self {
            unit,
            base,
            table: 0,
            header: [(0, 0); 2],
            has_tables_in_it: false,
        }
    }
}

/// The backing file that a file names. None of it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackingName {
    /// Its name, as bytes.
    pub(super) name: Vec<u8>,
    /// Its format, if stated.
    pub(super) format: Option<Vec<u8>>,
}

/// The run that contains `offset`, checked: it is not empty, ends within the disk, and its bytes
/// are within the file.
///
/// # Errors
/// [`ErrorKind::Image`] if the file is too short.
pub(super) fn checked_run(layout: &dyn Layout, offset: u64) -> Result<Run> {
    checked(layout, offset, layout.run_at(offset)?)
}

/// The [unit](Layout::unit_at) that contains `offset`, with the same checks.
///
/// # Errors
/// As [`checked_run`].
fn checked_unit(layout: &dyn Layout, offset: u64) -> Result<Run> {
    checked(layout, offset, layout.unit_at(offset)?)
}

fn checked(layout: &dyn Layout, offset: u64, mut run: Run) -> Result<Run> {
    run.end = run.end.min(layout.size());
    if run.end <= offset {
        let what = format!(
            "The reader of {} returned an empty run",
            layout.container().format
        );
        return Err(Error::new(ErrorKind::Bug, what));
    }
    let (at, len) = match run.place {
        Place::File(at) => (at, run.end - offset),
        Place::Packed(packed) => (packed.at, 1),
        Place::Zero | Place::Backing => return Ok(run),
    };
    layout.container().within("data", at, len)?;
    Ok(run)
}

/// A file in one of the formats. Nothing in it is trusted.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) file: RawImage,
    pub(super) format: Format,
}

impl Container {
    /// Its name for messages.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }

    /// An error about a file that violates its format.
    fn damaged(&self, what: &str) -> Error {
        let what = format!("{} is not sound {}: {what}", self.name(), self.format);
        let error = Error::new(ErrorKind::Image, what).permanent();
        error.hint_to(match self.format {
            Format::Raw | Format::Vhd => "Copy it again from where it came".to_owned(),
            _ => {
                let check = self.command(|name| format!("qemu-img check {name}"));
                format!("Check it with: {check}")
            }
        })
    }

    /// An error about a file that may be valid but uses an unsupported feature.
    fn unsupported(&self, what: &str) -> Error {
        let what = format!(
            "{} is {} that is not read: {what}",
            self.name(),
            self.format
        );
        let error = Error::new(ErrorKind::Image, what).permanent();
        let convert = self.command(|name| {
            let format = self.format.name_in_qemu();
            format!("qemu-img convert -f {format} -O qcow2 {name} NEW.qcow2")
        });
        error.hint_to(format!("Convert it: {convert}"))
    }

    /// The hint for a differencing disk in one of Microsoft's formats, which QEMU does not read.
    fn merged(&self) -> String {
        let convert = self.command(|name| {
            format!("Convert-VHD -Path {name} -DestinationPath NEW.vhdx -VHDType Dynamic")
        });
        let clone =
            self.command(|name| format!("VBoxManage clonemedium disk {name} NEW.vdi --format VDI"));
        format!(
            "With its parent beside it, write all of it to a new file, in PowerShell with Hyper-V: {convert}; or with VirtualBox: {clone}"
        )
    }

    /// A command about this file. `command` receives its name, quoted for a shell. A file in an
    /// archive is unpacked first.
    pub(super) fn command(&self, command: impl FnOnce(&str) -> String) -> String {
        let Some(archive) = self.file.archive() else {
            return command(&quote_file(&self.name().to_string()));
        };
        let names = self.file.stored_names();
        let untar = extraction::untar(&archive.to_string_lossy(), names);
        let files = extraction::files(names);
        match names {
            [_] => format!("{untar} && {}", command(&files)),
            _ => format!("{untar} && cat {files} > disk && {}", command("disk")),
        }
    }

    /// Fails unless the `len` bytes from `at` are within the file.
    fn within(&self, what: &str, at: u64, len: u64) -> Result<()> {
        let is_within = at
            .checked_add(len)
            .is_some_and(|end| end <= self.file.size());
        match is_within {
            true => Ok(()),
            false => Err(self.damaged(&format!(
                "{what} at byte {at} lies beyond its end: it was cut off, or is damaged"
            ))),
        }
    }

    /// The bytes at `at`.
    fn array<const N: usize>(&self, what: &str, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.within(what, at, N as u64)?;
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Reads `len` bytes at `at`. The caller makes sure that there is memory for them.
    fn bytes(&self, what: &str, at: u64, len: u64) -> Result<Vec<u8>> {
        self.within(what, at, len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Fails if a disk of this size cannot be sent.
    fn check_size(&self, size: u64) -> Result<()> {
        match size {
            0 => Err(self.damaged("its disk has no bytes")),
            1..=DISK_BYTES_MAX => Ok(()),
            _ => {
                let what = format!("its disk of {size} bytes is larger than any can be");
                Err(self.damaged(&what))
            }
        }
    }
}

/// A disk whose bytes begin at the start of the file, unchanged.
#[derive(Debug)]
struct Flat {
    container: Container,
    size: u64,
}

impl Flat {
    fn new(container: Container) -> Self {
        Self {
            size: container.file.size(),
            container,
        }
    }
}

impl Layout for Flat {
    fn container(&self) -> &Container {
        &self.container
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        Ok(Run {
            end: self.size,
            place: Place::File(offset),
            table: None,
        })
    }

    fn grid(&self) -> Grid {
        Grid::of(self.size, 0)
    }
}

/// Decompresses with an idle decompressor, or with a new one.
fn unpack_with(
    idle: &Mutex<Vec<Unpacker>>,
    pack: Pack,
    packed: &[u8],
    bytes: &mut [u8],
) -> Result<(), UnpackError> {
    let taken = idle.lock().ok().and_then(|mut idle| idle.pop());
    let mut unpacker = match taken {
        Some(unpacker) => unpacker,
        None => Unpacker::new(pack)?,
    };
    let unpacked = unpacker.unpack(packed, bytes);
    if let Ok(mut idle) = idle.lock() {
        idle.push(unpacker);
    }
    unpacked
}

impl Place {
    /// The place of the byte that is `by` bytes further in the same run.
    fn advanced_by(self, by: u64) -> Self {
        match self {
            Self::File(at) => Self::File(at.saturating_add(by)),
            other => other,
        }
    }
}

/// How many consecutive units of `unit` bytes have the same place, at most `most`: all zeros, or
/// consecutive in the file. `next` returns the places of the units after the first.
fn count_contiguous(
    first: Place,
    unit: u64,
    next: impl Iterator<Item = Result<Place>>,
    most: u64,
) -> Result<u64> {
    let mut count = 1;
    // After the last unit there is no entry.
    let others = usize::try_from(most.saturating_sub(1)).unwrap_or(usize::MAX);
    for place in next.take(others) {
        let goes_on = match (first, place?) {
            (Place::File(first), Place::File(next)) => {
                first.checked_add(count * unit) == Some(next)
            }
            (first, next) => first == next,
        };
        if !goes_on {
            break;
        }
        count += 1;
    }
    Ok(count)
}
