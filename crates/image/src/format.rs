//! Formats that keep a disk in pieces with a map of them: one file for each, all
//! behind [`Layout`]. Their bytes come from anywhere and are not trusted: maps are
//! read in pages as they are needed, every place that one names is checked
//! against the size of the file before it is read, and nothing is held in memory
//! whose size the file alone decides.
//!
//! They are our own, since what is there does not do: imago 0.2.6 knows neither
//! Zstandard nor subclusters of qcow2 nor sparse VMDK, takes an encrypted qcow2
//! for a plain one and reads a file that was cut off as zeros; the readers of VHD
//! and VHDX are cursors that cannot tell a hole.

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

use super::RawImage;
use crate::codec::{Pack, UnpackError, Unpacker};
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote;

pub(super) use survey::survey;
pub(super) use vhd::{Ending as VhdEnding, Footer as VhdFooter, ending as vhd_ending};
pub(super) use vmdk::{is_description as is_vmdk_description, is_part as is_vmdk_part};

/// Bytes of a sector, the unit of most formats whatever the disk's own.
const SECTOR_BYTES: u64 = 512;
/// Largest disk: more does not fit a signed 64-bit offset.
const DISK_BYTES_MAX: u64 = i64::MAX.cast_unsigned();

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

    /// Its name, as it is given on the command line.
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

    /// Its name, as QEMU calls it.
    fn name_in_qemu(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// What a file is by its content: its name tells nothing. A file that is none
    /// of the others is raw.
    ///
    /// Whoever can write to a raw disk can make it look like one of the others:
    /// where that is somebody not trusted, the format must be told, not asked for.
    pub(super) fn of(file: &RawImage) -> Result<Self> {
        let mut head = [0; HEAD_BYTES];
        let len = file.size().min(HEAD_BYTES as u64);
        file.read_at(&mut head[..usize::try_from(len).unwrap_or(0)], 0)?;
        Ok(match Self::of_head(&head) {
            Some(format) => format,
            None if vhd::is_known_by_its_end(file)? => Self::Vhd,
            None => Self::Raw,
        })
    }

    /// What begins so; `None` if it is raw, as a fixed VHD, known by its end only, is
    /// in all but that.
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

/// Bytes that all formats but a fixed VHD are known by: before a description of VMDK there
/// may be empty lines.
const HEAD_BYTES: usize = 512;

/// A part of a disk: its bytes, and its layout if it is not all zeros.
pub(super) type Part = (u64, Option<Box<dyn Layout>>);

/// The parts of the disk that a file describes, if it is a description of several files.
///
/// # Errors
/// [`ErrorKind::Image`] if one of them is not there, not sound, or may not be read.
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

/// What the reader of one format tells; all else is the same for all of them.
pub(super) trait Layout: fmt::Debug + Send + Sync {
    /// The file that it reads.
    fn container(&self) -> &Container;

    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The run of bytes of the disk that holds `offset`, which is less than the
    /// size: the same place for all from `offset` to its end. May end early;
    /// never before the byte after `offset`.
    fn run_at(&self, offset: u64) -> Result<Run>;

    /// As [`run_at`](Self::run_at), for a look at the tables alone: the run may be all of a
    /// unit, parts of which another table calls zeros.
    fn unit_at(&self, offset: u64) -> Result<Run> {
        self.run_at(offset)
    }

    /// Unpacks the start of a packed unit.
    fn unpack(&self, packed: &Packed, bytes: &mut [u8]) -> Result<()> {
        let _ = bytes;
        let what = format!("Nothing is packed at byte {}", packed.at);
        Err(Error::new(ErrorKind::Bug, what))
    }

    /// The file that this one is written on top of, if any.
    fn backing(&self) -> Option<&BackingName> {
        None
    }

    /// Bytes of a sector of the disk, where the file tells.
    fn sector(&self) -> Option<u64> {
        None
    }

    /// The grid that the places of the disk's bytes in the file lie on.
    fn grid(&self) -> Grid;
}

/// Bytes of the disk that are kept in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first byte of the disk after it.
    pub(super) end: u64,
    /// Where its bytes are.
    pub(super) place: Place,
    /// The table of a second level that told it, by its first byte in the file.
    pub(super) table: Option<u64>,
}

/// Where bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: they are zeros.
    Zero,
    /// Not in this file: what it is written on top of has them, and without such
    /// a file they are zeros.
    Backing,
    /// In the file, from this byte on.
    File(u64),
    /// In a unit that is packed.
    Packed(Packed),
}

/// A unit of the disk that is packed on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Its first byte in the file.
    pub(super) at: u64,
    /// Bytes in the file, at most; 0 if the file tells only there.
    pub(super) len: u64,
    /// The bytes of the disk that it holds; the last of them may lie beyond the
    /// disk's end.
    pub(super) unit: (u64, u64),
}

/// Where in the file units of the disk can begin: at `base`, and from there on
/// every `unit` bytes. Two that begin in the same cell overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Bytes of a cell.
    pub(super) unit: u64,
    /// Where a cell begins.
    pub(super) base: u64,
    /// Bytes of a table of the second level; 0 if there is none.
    pub(super) table: u64,
    /// Ranges of the file that hold neither, where all keep to this grid.
    pub(super) header: [(u64, u64); 2],
    /// Whether tables lie on the same grid.
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

/// What a file says that it is written on top of. None of it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackingName {
    /// Its name, as bytes.
    pub(super) name: Vec<u8>,
    /// Its format, if that is told.
    pub(super) format: Option<Vec<u8>>,
}

/// The run that holds `offset`, checked: it goes on, it ends within the disk, and
/// its bytes are within the file.
///
/// # Errors
/// [`ErrorKind::Image`] if the file ends before.
pub(super) fn checked_run(layout: &dyn Layout, offset: u64) -> Result<Run> {
    checked(layout, offset, layout.run_at(offset)?)
}

/// The [unit](Layout::unit_at) that holds `offset`, checked as a run is.
///
/// # Errors
/// As [`checked_run`].
fn checked_unit(layout: &dyn Layout, offset: u64) -> Result<Run> {
    checked(layout, offset, layout.unit_at(offset)?)
}

fn checked(layout: &dyn Layout, offset: u64, mut run: Run) -> Result<Run> {
    run.end = run.end.min(layout.size());
    if run.end <= offset {
        let what = format!("The map of {} stands still", layout.container().format);
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

/// A file of a format, of which nothing is trusted.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) file: RawImage,
    pub(super) format: Format,
}

impl Container {
    /// Its name, to be shown.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }

    /// An error about a file that is not what its format demands.
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

    /// An error about a file that may be sound, but is of a kind that is not read.
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

    /// The hint for a differencing disk of Microsoft's formats, which QEMU does not read.
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

    /// A command about this file, whose name it is given as a word for a shell. What is in
    /// an archive is unpacked first.
    fn command(&self, command: impl FnOnce(&str) -> String) -> String {
        let names = self.file.stored_names().iter().map(|name| quote(name));
        let names: Vec<_> = names.collect();
        match (self.file.archive(), names.as_slice()) {
            (Some(archive), [name]) => {
                let archive = quote(&archive.to_string_lossy());
                // tar makes names relative.
                format!(
                    "tar -xf {archive} {name} && {}",
                    command(name.trim_start_matches('/'))
                )
            }
            (Some(archive), _) => {
                let (archive, names) = (quote(&archive.to_string_lossy()), names.join(" "));
                let joined = command("disk");
                format!("tar -xf {archive} {names} && cat {names} > disk && {joined}")
            }
            (None, _) => command(&quote(&self.name().to_string())),
        }
    }

    /// Demands that so many bytes from `at` on lie within the file.
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

    /// So many bytes at `at`, for which memory has to be there.
    fn bytes(&self, what: &str, at: u64, len: u64) -> Result<Vec<u8>> {
        self.within(what, at, len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Demands a size of a disk that can be sent.
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

/// A disk that begins with the file, byte by byte.
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

/// Unpacks with one of the unpackers that nobody uses just now, or a new one.
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
    /// The place of a byte that is so much further in the same run.
    fn further(self, by: u64) -> Self {
        match self {
            Self::File(at) => Self::File(at.saturating_add(by)),
            other => other,
        }
    }
}

/// How many units of `unit` bytes from a first one on are in one place, at most
/// `most`: all zeros, or one after the other in the file. `next` tells where the
/// ones after the first are.
fn alike(
    first: Place,
    unit: u64,
    next: impl Iterator<Item = Result<Place>>,
    most: u64,
) -> Result<u64> {
    let mut count = 1;
    // What comes after the last unit is no entry.
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
