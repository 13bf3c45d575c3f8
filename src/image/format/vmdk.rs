//! VMDK in one file: VMware's "Virtual Disk Format", version 5.0, the kinds
//! `monolithicSparse` and `streamOptimized`. Numbers are little-endian, places are
//! in sectors. A directory leads to tables, which lead to grains; in a stream a
//! grain is packed, behind a marker that tells which grain it is.

use std::sync::Mutex;

use super::table::{Tables, le16, le32, le64};
use super::{Container, Grid, Layout, Packed, Place, Run, SECTOR_BYTES};
use crate::codec::{Pack, Unpacker};
use crate::error::{Error, Result};

const SPARSE: &[u8] = b"KDMV";
const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// What files of this format begin with: a sparse extent, one of ESX, and a
/// description of several files.
pub(super) const MAGICS: [&[u8]; 3] = [SPARSE, b"COWD\x01\0\0\0", DESCRIPTOR];

const HEADER_BYTES: usize = 512;
/// Where the directory is if only the footer tells.
const AT_END: u64 = u64::MAX;
/// The end of a file of which the footer tells: a marker, the footer, and a
/// marker of the end.
const FOOTER_BYTES: u64 = 1024;
/// Longest description, in sectors.
const DESCRIPTOR_SECTORS_MAX: u64 = 2048;
/// Sizes of a grain, in sectors: 4 KiB to 8 MiB.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=16384;
/// Most entries of a table: QEMU's limit as well.
const TABLE_ENTRIES_MAX: u64 = 512;
/// Bytes of a marker before a packed grain.
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
    pub(super) fn open(container: Container) -> Result<Self> {
        let len = container.file.size().min(HEADER_BYTES as u64);
        let head = container.bytes("its header", 0, len)?;
        if head.starts_with(DESCRIPTOR) {
            let text = text(&container, 0, container.file.size())?;
            return Err(refuse(&container, &Descriptor::parse(&text)));
        }
        if head.starts_with(MAGICS[1]) {
            let what = "it is part of a disk of ESX";
            return Err(container
                .unsupported(what)
                .hint_to("Name the flat file or an export of the machine instead"));
        }
        let first: [u8; HEADER_BYTES] = container.array("its header", 0)?;
        if !first.starts_with(SPARSE) {
            return Err(container.damaged("it does not begin as such a file does"));
        }
        check_descriptor(&container, &first)?;
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

    /// Where the grain that begins at `grain` is, by its entry.
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
        let grains = super::alike(first, self.grain, places, most)?;
        Ok(Run {
            end: start.saturating_add(grains * self.grain),
            place: first.further(offset - start),
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

/// A place in sectors, in bytes.
fn in_bytes(container: &Container, what: &str, sector: u64) -> Result<u64> {
    sector.checked_mul(SECTOR_BYTES).ok_or_else(|| {
        let what = format!("{what} is at sector {sector}");
        container.damaged(&what)
    })
}

/// The footer, which is a header as it is at the end.
fn footer(container: &Container) -> Result<[u8; HEADER_BYTES]> {
    let at = container.file.size().saturating_sub(FOOTER_BYTES);
    let footer: [u8; HEADER_BYTES] = container.array("its footer", at)?;
    if !footer.starts_with(SPARSE) || le64(&footer, 56) == AT_END {
        let what = "it has no footer: it was cut off, or is damaged";
        return Err(container.damaged(what));
    }
    Ok(footer)
}

/// The text of a description.
fn text(container: &Container, at: u64, len: u64) -> Result<String> {
    let len = len.min(DESCRIPTOR_SECTORS_MAX * SECTOR_BYTES);
    let mut bytes = container.bytes("its description", at, len)?;
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Demands that the file is the disk, all of it and nothing else.
fn check_descriptor(container: &Container, header: &[u8]) -> Result<()> {
    let at = in_bytes(container, "its description", le64(header, 28))?;
    let len = in_bytes(container, "its description", le64(header, 36))?;
    let descriptor = match at {
        0 => Descriptor::default(),
        _ => Descriptor::parse(&text(container, at, len)?),
    };
    if descriptor == Descriptor::default() {
        let what = "it is one of several files of a disk";
        return Err(container.unsupported(what).hint_to(
            "Convert the disk: qemu-img convert -O qcow2 DISK.vmdk NEW.qcow2, with the small file that names the others",
        ));
    }
    let is_whole = matches!(&*descriptor.kind, "monolithicSparse" | "streamOptimized")
        && descriptor.extents == ["SPARSE"]
        && descriptor
            .parent
            .as_deref()
            .is_none_or(|parent| parent == "ffffffff");
    match is_whole {
        true => Ok(()),
        false => Err(refuse(container, &descriptor)),
    }
}

/// What a description tells, as far as it is needed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Descriptor {
    kind: String,
    /// The number of what it is written on top of.
    parent: Option<String>,
    /// The kinds of its extents.
    extents: Vec<String>,
}

impl Descriptor {
    fn parse(text: &str) -> Self {
        let mut descriptor = Self::default();
        for line in text.lines().map(str::trim) {
            let mut words = line.split_whitespace();
            if matches!(words.next(), Some("RW" | "RDONLY" | "NOACCESS")) {
                let kind = words.nth(1).unwrap_or_default().to_owned();
                descriptor.extents.push(kind);
            } else if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                match key.trim() {
                    "createType" => value.clone_into(&mut descriptor.kind),
                    "parentCID" => descriptor.parent = Some(value.to_lowercase()),
                    _ => {}
                }
            }
        }
        descriptor
    }
}

/// Why a disk with this description is not read, and what to do about it.
fn refuse(container: &Container, descriptor: &Descriptor) -> Error {
    if descriptor
        .parent
        .as_deref()
        .is_some_and(|parent| parent != "ffffffff")
    {
        let what = "it holds only what differs from another file";
        return container.unsupported(what);
    }
    let what = match (&*descriptor.kind, descriptor.extents.len()) {
        ("", _) => "its description does not tell its kind".to_owned(),
        ("monolithicSparse" | "streamOptimized", 0 | 1) => {
            "its description does not fit it".to_owned()
        }
        (kind, _) => format!("it is of kind {kind:?}, and its data is in other files"),
    };
    let refused = container.unsupported(&what);
    match &*descriptor.kind {
        "monolithicFlat" | "vmfs" => refused
            .hint_to("Name the file with the data, which ends with -flat.vmdk, with --format raw"),
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_tells_kind_parent_and_extents() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=5f\nparentCID=FFFFFFFF\n\
                    createType=\"twoGbMaxExtentSparse\"\n\n# Extent description\n\
                    RW 4192256 SPARSE \"a b-s001.vmdk\"\nRDONLY 1 ZERO\n\nddb.x = \"y\"\n";
        let expected = Descriptor {
            kind: "twoGbMaxExtentSparse".into(),
            parent: Some("ffffffff".into()),
            extents: vec!["SPARSE".into(), "ZERO".into()],
        };
        assert_eq!(Descriptor::parse(text), expected);
        assert_eq!(Descriptor::parse("\0\u{fffd}="), Descriptor::default());
    }
}
