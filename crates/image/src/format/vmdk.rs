//! VMDK: VMware's "Virtual Disk Format", version 5.0. Numbers are little-endian, offsets are in
//! sectors. In a sparse file (`monolithicSparse`, `streamOptimized`), a directory refers to tables,
//! and these to grains. In a stream, grains are compressed, and each follows a marker with its
//! number. If a disk is in several files, a small text file describes them (`description.rs`).

mod description;

use std::sync::Mutex;

use super::table::{Tables, le16, le32, le64};
use super::{Container, Grid, Layout, Packed, Place, Run, SECTOR_BYTES};
use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::codec::{Pack, Unpacker};
use crate::error::Result;
use crate::quoting::{quote, quote_file};
use description::Description;

pub(super) use description::{ExtentPlace, extents, starts_as_description};
pub(crate) use description::{is_description, part_error};

const SPARSE: &[u8] = b"KDMV";
/// Signatures of files in this format, except a description of several files: a sparse file, and
/// two kinds of ESX.
pub(super) const MAGICS: [&[u8]; 3] = [SPARSE, COWD, SESPARSE];
const COWD: &[u8] = b"COWD\x01\0\0\0";
const SESPARSE: &[u8] = b"\xbe\xba\xfe\xca\0\0\0\0\x01\0\0\0\x02\0\0\0";

const HEADER_BYTES: usize = 512;
/// The offset of the directory if only the footer has it.
const AT_END: u64 = u64::MAX;
/// Maximum bytes at the end of a file in which to look for the footer. Some writers pad the file
/// with zeros. The value is a choice: if the padding is longer, the file is reported as truncated.
const PADDING_BYTES_MAX: u64 = 4 << 20;
/// Bytes to read at a time in search of a footer.
const STEP_BYTES: u64 = 64 << 10;
/// Maximum sectors of a description within a file to read: 1 MiB. Actual ones have one or a few
/// KiB.
const DESCRIPTION_SECTORS_MAX: u64 = 2048;
/// Sizes of a grain, in sectors: 4 KiB to 8 MiB.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=16384;
/// Maximum entries of a table; QEMU has the same limit.
const TABLE_ENTRIES_MAX: u64 = 512;
/// Maximum bytes of the directory. It bounds the time to read one of zeros, which takes no space in a
/// sparse member of an archive. With the default grains of 64 KiB, it covers 256 TiB.
const DIRECTORY_BYTES_MAX: u64 = 32 << 20;
/// Bytes of the marker in front of a compressed grain.
const MARKER_BYTES: u64 = 12;

const HAS_LINE_ENDS: u32 = 1 << 0;
const HAS_ZERO_GRAINS: u32 = 1 << 2;
const IS_COMPRESSED: u32 = 1 << 16;
const HAS_MARKERS: u32 = 1 << 17;

/// An open VMDK file.
#[derive(Debug)]
pub(super) struct Vmdk {
    container: Container,
    size: u64,
    /// Bytes of a grain.
    grain: u64,
    /// Entries of a table.
    entries: u64,
    directory: u64,
    /// Where grains begin.
    overhead: u64,
    has_zeros: bool,
    is_packed: bool,
    tables: Tables,
    unpackers: Mutex<Vec<Unpacker>>,
}

impl Vmdk {
    /// Opens a file that is a whole disk.
    pub(super) fn open(container: Container) -> Result<Self> {
        let len = container.file.size().min(HEADER_BYTES as u64);
        let head = container.bytes("its header", 0, len)?;
        if head.starts_with(COWD) || head.starts_with(SESPARSE) {
            let what = "it is one of the files of a disk or a snapshot of ESX";
            return Err(container.unsupported(what).hint_to(of_several(&container)));
        }
        let first = header(&container)?;
        check_description(&container, &first)?;
        Self::of(container, first)
    }

    /// Opens a file that holds `size` bytes of a disk according to a separate description.
    pub(super) fn open_part(container: Container, size: u64) -> Result<Self> {
        let first = header(&container)?;
        let part = Self::of(container, first)?;
        match part.size >= size {
            true => Ok(part),
            false => Err(part.container.damaged(&format!(
                "it holds {} bytes of the disk, but its description states {size}",
                part.size
            ))),
        }
    }

    fn of(container: Container, first: [u8; HEADER_BYTES]) -> Result<Self> {
        let header = match le64(&first, 56) {
            AT_END => footer(&container)?,
            _ => first,
        };
        let (version, flags) = (le32(&header, 4), le32(&header, 8));
        if !(1..=3).contains(&version) {
            let what = format!("it has version {version}, not 1 to 3");
            return Err(container.unsupported(&what));
        }
        if flags & HAS_LINE_ENDS != 0 && header[73..77] != *b"\n \r\n" {
            return Err(container.damaged("its line ends were changed, as a transfer of text does"));
        }
        let (capacity, grain) = (le64(&header, 12), le64(&header, 20));
        let size = capacity.saturating_mul(SECTOR_BYTES);
        container.check_size(size)?;
        if !GRAIN_SECTORS.contains(&grain) || !grain.is_power_of_two() {
            return Err(container.damaged(&format!("its grains have {grain} sectors")));
        }
        let entries = u64::from(le32(&header, 44));
        if !(1..=TABLE_ENTRIES_MAX).contains(&entries) {
            return Err(container.damaged(&format!("its tables have {entries} entries")));
        }
        let is_packed = flags & IS_COMPRESSED != 0;
        if is_packed && (le16(&header, 77) != 1 || flags & HAS_MARKERS == 0) {
            let what = format!(
                "its grains are packed with number {}, not 1 with markers",
                le16(&header, 77)
            );
            return Err(container.unsupported(&what));
        }
        let image = Self {
            size,
            grain: grain * SECTOR_BYTES,
            entries,
            directory: in_bytes(&container, "its directory", le64(&header, 56))?,
            overhead: in_bytes(&container, "its data", le64(&header, 64))?,
            has_zeros: flags & HAS_ZERO_GRAINS != 0,
            is_packed,
            tables: Tables::default(),
            unpackers: Mutex::default(),
            container,
        };
        let len = image.tables() * 4;
        if len > DIRECTORY_BYTES_MAX {
            let what = format!("its directory would need {len} bytes, more than any has");
            return Err(image.container.damaged(&what));
        }
        image
            .container
            .within("its directory", image.directory, len)?;
        Ok(image)
    }

    /// Bytes of the disk that one table covers.
    fn reach(&self) -> u64 {
        self.entries * self.grain
    }

    /// Entries of the directory.
    fn tables(&self) -> u64 {
        self.size.div_ceil(self.reach())
    }

    /// The place of the grain that begins at `grain`, according to its entry.
    fn place(&self, entry: u32, grain: u64) -> Place {
        let at = u64::from(entry) * SECTOR_BYTES;
        match entry {
            0 => Place::Zero,
            1 if self.has_zeros => Place::Zero,
            _ if self.is_packed => Place::Packed(Packed {
                at,
                len: 0,
                unit: (grain, grain.saturating_add(self.grain)),
            }),
            _ => Place::File(at),
        }
    }
}

impl Layout for Vmdk {
    fn container(&self) -> &Container {
        &self.container
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let (reach, index) = (self.reach(), offset / self.reach());
        let at = self.directory + index * 4;
        let directory = self.tables.entries(&self.container, at, 4)?;
        let table = u64::from(le32(&directory, 0)) * SECTOR_BYTES;
        if table == 0 {
            let most = directory.count(4).min(self.tables() - index);
            let most = usize::try_from(most).unwrap_or(0);
            let rest = directory.chunks_exact(4).take(most).skip(1);
            let empty = rest.take_while(|entry| le32(entry, 0) == 0).count() as u64;
            return Ok(Run {
                end: (index + empty + 1).saturating_mul(reach),
                place: Place::Zero,
                table: None,
            });
        }
        self.container.within("a table", table, self.entries * 4)?;
        let grain = offset % reach / self.grain;
        let at = table + grain * 4;
        let entries = self.tables.entries(&self.container, at, 4)?;
        let start = offset - offset % self.grain;
        let most = entries
            .count(4)
            .min(self.entries - grain)
            .min((self.size - start).div_ceil(self.grain));
        let mut places = (0..)
            .zip(entries.chunks_exact(4))
            .map(|(i, entry)| Ok(self.place(le32(entry, 0), start.saturating_add(i * self.grain))));
        let first = places.next().unwrap_or(Ok(Place::Zero))?;
        let grains = super::count_contiguous(first, self.grain, places, most)?;
        Ok(Run {
            end: start.saturating_add(grains * self.grain),
            place: first.advanced_by(offset - start),
            table: Some(table),
        })
    }

    fn unpack(&self, packed: &Packed, bytes: &mut [u8]) -> Result<()> {
        let what = "the marker of a grain";
        let marker: [u8; MARKER_BYTES as usize] = self.container.array(what, packed.at)?;
        let (sector, len) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
        if sector != packed.unit.0 / SECTOR_BYTES {
            let what = format!(
                "the grain at byte {} is of sector {sector}, not {}",
                packed.at,
                packed.unit.0 / SECTOR_BYTES
            );
            return Err(self.container.damaged(&what));
        }
        if len == 0 || len > 2 * self.grain {
            let what = format!("the grain at byte {} has {len} packed bytes", packed.at);
            return Err(self.container.damaged(&what));
        }
        let at = packed.at + MARKER_BYTES;
        let from = self.container.bytes("a grain", at, len)?;
        super::unpack_with(&self.unpackers, Pack::Zlib, &from, bytes).map_err(|cause| {
            let what = format!("the packed grain at byte {} is damaged", packed.at);
            self.container.damaged(&what).because(cause)
        })
    }

    fn grid(&self) -> Grid {
        Grid {
            table: self.entries * 4,
            ..Grid::of(self.grain, self.overhead)
        }
    }
}

/// Converts an offset in sectors to bytes.
fn in_bytes(container: &Container, what: &str, sector: u64) -> Result<u64> {
    sector.checked_mul(SECTOR_BYTES).ok_or_else(|| {
        let what = format!("{what} is at sector {sector}");
        container.damaged(&what)
    })
}

/// The footer, a second header at the end of the file. A marker of zeros follows it, although some
/// writers omit that, and possibly padding.
fn footer(container: &Container) -> Result<[u8; HEADER_BYTES]> {
    let cut_off = || {
        let what = "it has no footer: it was cut off, or is damaged";
        container.damaged(what)
    };
    let size = container.file.size();
    let mut end = size - size % SECTOR_BYTES;
    let first = end.saturating_sub(PADDING_BYTES_MAX);
    while end > first {
        let start = end.saturating_sub(STEP_BYTES).max(first);
        let bytes = container.bytes("its end", start, end - start)?;
        let mut sectors = bytes.chunks_exact(HEADER_BYTES).rev();
        if let Some(last) = sectors.find(|sector| sector.iter().any(|byte| *byte != 0)) {
            let footer = last.first_chunk().copied();
            return footer
                .filter(|footer| footer.starts_with(SPARSE) && le64(footer, 56) != AT_END)
                .ok_or_else(cut_off);
        }
        end = start;
    }
    Err(cut_off())
}

/// The header.
fn header(container: &Container) -> Result<[u8; HEADER_BYTES]> {
    let header: [u8; HEADER_BYTES] = container.array("its header", 0)?;
    match header.starts_with(SPARSE) {
        true => Ok(header),
        false => Err(container.damaged("it does not begin as such a file does")),
    }
}

/// Fails unless the file is the disk, all of it and nothing else.
fn check_description(container: &Container, header: &[u8]) -> Result<()> {
    let at = in_bytes(container, "its description", le64(header, 28))?;
    let len = in_bytes(container, "its description", le64(header, 36))?;
    let description = match at {
        0 => Description::default(),
        _ => {
            let len = len.min(DESCRIPTION_SECTORS_MAX * SECTOR_BYTES);
            let mut bytes = container.bytes("its description", at, len)?;
            let end = bytes.iter().position(|byte| *byte == 0);
            bytes.truncate(end.unwrap_or(bytes.len()));
            Description::parse(&bytes)
        }
    };
    if description == Description::default() {
        let what = "it has no description, as one of several files of a disk has none";
        return Err(container
            .unsupported(what)
            .hint_to(undescribed(container, header)));
    }
    if let Some(why) = description.why_incomplete() {
        return Err(description.refuse(container, &why));
    }
    let capacity = le64(header, 12);
    let is_whole = match (&*description.kind, description.extents.as_slice()) {
        ("monolithicSparse" | "streamOptimized", [extent]) => extent.kind == "SPARSE",
        // Other programs use this name for the same type.
        ("custom", [extent]) => extent.kind == "SPARSE" && extent.sectors == capacity,
        _ => false,
    };
    match is_whole {
        true => Ok(()),
        false => {
            let what = match (&*description.kind, description.extents.len()) {
                ("", _) => "its description does not state its kind".to_owned(),
                ("monolithicSparse" | "streamOptimized" | "custom", 0 | 1) => {
                    "its description does not fit it".to_owned()
                }
                (kind, _) => format!("it is of kind {kind:?}, and its data is in other files"),
            };
            Err(description.refuse(container, &what))
        }
    }
}

/// The hint for a file that is one of several: the name of the description, if that is in the same
/// directory.
fn of_several(container: &Container) -> String {
    let name = container.name().to_string();
    let (name, or) = match description::beside(&container.file) {
        Some((path, _)) => (path.to_string_lossy().into_owned(), ""),
        None => (
            name,
            ", or the same with the small file that describes all of them",
        ),
    };
    let name = quote_file(&name);
    format!("Convert it: qemu-img convert -f vmdk -O qcow2 {name} NEW.qcow2{or}")
}

/// The hint for a sparse file without a description: to name the description, or to write one.
fn undescribed(container: &Container, header: &[u8]) -> Advice {
    if let Some((path, _)) = description::beside(&container.file) {
        let path = path.to_string_lossy().into_owned();
        return advice!["Name the file that describes them: ", Remedy::Upload(path)];
    }
    let path = container.file.path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lines = [
        "# Disk DescriptorFile".to_owned(),
        "createType=\"monolithicSparse\"".to_owned(),
        format!("RW {} SPARSE \"{name}\"", le64(header, 12)),
    ];
    let lines: Vec<_> = lines.iter().map(|line| quote(line)).collect();
    let new = path.with_file_name("NEW.vmdk");
    let new = new.to_string_lossy();
    advice![
        format!(
            "Name the small file that describes all of them. If it is all of the disk, describe it: printf '%s\\n' {} > {} && ",
            lines.join(" "),
            quote_file(&new)
        ),
        Remedy::Upload(new.clone().into_owned()),
    ]
}
