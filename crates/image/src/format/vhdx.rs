//! VHDX, version 1: Microsoft's [MS-VHDX]. Numbers are little-endian. A file has two headers, of
//! which the newer valid one counts, two copies of a table of regions, a table of metadata, and one
//! table of blocks.

use super::table::{Tables, le16, le32, le64};
use super::{Container, Grid, Layout, Place, Run};
use crate::error::Result;

/// The first bytes of a VHDX file.
pub(super) const MAGIC: &[u8] = b"vhdxfile";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
const HEADER_BYTES: usize = 4 << 10;
const REGIONS_AT: [u64; 2] = [192 * KIB, 256 * KIB];
const REGIONS_BYTES: u64 = 64 << 10;
/// Maximum entries of either table (MS-VHDX 2.2.3, 2.6.1).
const ENTRIES_MAX: usize = 2047;
const METADATA_TABLE_BYTES: u64 = 64 << 10;
/// Maximum size of a disk: 64 TiB.
const DISK_BYTES_MAX: u64 = 64 << 40;
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;

/// GUIDs in the byte order of the file.
const BAT_REGION: u128 = 0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08;
const METADATA_REGION: u128 = 0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e;
const FILE_PARAMETERS: u128 = 0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b;
const DISK_SIZE: u128 = 0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8;
const DISK_ID: u128 = 0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746;
const LOGICAL_SECTOR: u128 = 0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f;
const PHYSICAL_SECTOR: u128 = 0xcda3_48c7_445d_4471_9cc9_e988_5251_c556;
const PARENT_LOCATOR: u128 = 0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c;

/// States of a block (MS-VHDX 2.5.1.1).
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// Not present, undefined, zero, unmapped; and QEMU's older number for the last.
const ABSENT: [u64; 5] = [0, 1, 2, 3, 5];

/// An open VHDX file.
#[derive(Debug)]
pub(super) struct Vhdx {
    container: Container,
    size: u64,
    block: u64,
    sector: u64,
    /// In the table, an entry of another kind follows after this many blocks.
    chunk_ratio: u64,
    bat: u64,
    tables: Tables,
}

/// The relevant metadata.
#[derive(Debug, Default)]
struct Metadata {
    block: u64,
    has_parent: bool,
    size: u64,
    sector: u64,
}

impl Vhdx {
    pub(super) fn open(container: Container) -> Result<Self> {
        let start: [u8; 8] = container.array("its header", 0)?;
        if !start.starts_with(MAGIC) {
            return Err(container.damaged("it does not begin as such a file does"));
        }
        check_header(&container)?;
        let (bat, metadata) = regions(&container)?;
        let metadata = metadata_of(&container, metadata)?;
        if metadata.has_parent {
            let what = "it holds only what differs from another file";
            return Err(container.unsupported(what).hint_to(container.merged()));
        }
        let Metadata {
            block,
            size,
            sector,
            ..
        } = metadata;
        container.check_size(size)?;
        if size > DISK_BYTES_MAX {
            return Err(
                container.damaged(&format!("its disk of {size} bytes is larger than 64 TiB"))
            );
        }
        if !BLOCK_BYTES.contains(&block) || !block.is_power_of_two() {
            return Err(container.damaged(&format!("its blocks have {block} bytes")));
        }
        if sector != 512 && sector != 4096 {
            return Err(container.damaged(&format!("its sectors have {sector} bytes")));
        }
        let image = Self {
            size,
            block,
            sector,
            chunk_ratio: (sector << 23) / block,
            bat: bat.0,
            tables: Tables::default(),
            container,
        };
        let blocks = size.div_ceil(block);
        let needed = (blocks + (blocks - 1) / image.chunk_ratio) * 8;
        if needed > bat.1 {
            let what = format!("its table has {} bytes where {needed} are needed", bat.1);
            return Err(image.container.damaged(&what));
        }
        image.container.within("its table", bat.0, needed)?;
        Ok(image)
    }

    /// The place of the block with this entry.
    fn place(&self, entry: u64) -> Result<Place> {
        let (state, at) = (entry & 7, entry >> 20 << 20);
        match state {
            FULLY_PRESENT if at == 0 => Err(self
                .container
                .damaged("a block is at byte 0, within its header")),
            FULLY_PRESENT => Ok(Place::File(at)),
            PARTIALLY_PRESENT => Err(self.container.damaged("a block is partly in another file")),
            _ if ABSENT.contains(&state) => Ok(Place::Zero),
            _ => Err(self
                .container
                .damaged(&format!("a block has the undefined state {state}"))),
        }
    }
}

impl Layout for Vhdx {
    fn container(&self) -> &Container {
        &self.container
    }

    fn sector(&self) -> Option<u64> {
        Some(self.sector)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let index = offset / self.block;
        let at = self.bat + (index + index / self.chunk_ratio) * 8;
        let entries = self.tables.entries(&self.container, at, 8)?;
        // Up to the next entry of the other kind.
        let most = entries
            .count(8)
            .min(self.size.div_ceil(self.block) - index)
            .min(self.chunk_ratio - index % self.chunk_ratio);
        let mut places = entries
            .chunks_exact(8)
            .map(|entry| self.place(le64(entry, 0)));
        let first = places.next().unwrap_or(Ok(Place::Zero))?;
        let blocks = super::count_contiguous(first, self.block, places, most)?;
        Ok(Run {
            end: (index + blocks).saturating_mul(self.block),
            place: first.advanced_by(offset % self.block),
            table: None,
        })
    }

    fn grid(&self) -> Grid {
        // Blocks are aligned to MiB and have no grid of their own.
        Grid::of(MIB, 0)
    }
}

/// Whether a structure has the right checksum, which is at byte 4.
fn is_sound(bytes: &mut [u8]) -> bool {
    let stated = le32(bytes, 4);
    bytes[4..8].fill(0);
    let is_sound = crc32c::crc32c(bytes) == stated;
    bytes[4..8].copy_from_slice(&stated.to_le_bytes());
    is_sound
}

/// Finds the header that counts, and fails if the file cannot be used as it is.
fn check_header(container: &Container) -> Result<()> {
    let mut newest: Option<[u8; HEADER_BYTES]> = None;
    for at in HEADERS_AT {
        let mut header = container.array("its header", at)?;
        let is_newer = newest.is_none_or(|newest| le64(&header, 8) > le64(&newest, 8));
        if header.starts_with(b"head") && is_sound(&mut header) && is_newer {
            newest = Some(header);
        }
    }
    let Some(header) = newest else {
        return Err(container.damaged("neither of its headers is sound"));
    };
    let version = le16(&header, 66);
    if version != 1 {
        let what = format!("it has version {version}, not 1");
        return Err(container.unsupported(&what));
    }
    if header[48..64].iter().any(|byte| *byte != 0) {
        let what = "it was not closed: what its log holds is missing from it";
        return Err(container.unsupported(what).hint_to(format!(
            "Detach it where it is in use, or write the log to a copy of it: {}",
            container.command(|name| format!("qemu-img check -r all {name}"))
        )));
    }
    Ok(())
}

/// A GUID in the order in which it is printed.
fn guid(bytes: &[u8]) -> u128 {
    let head = u128::from(le32(bytes, 0)) << 96
        | u128::from(le16(bytes, 4)) << 80
        | u128::from(le16(bytes, 6)) << 64;
    let tail = bytes.get(8..16).and_then(|tail| tail.first_chunk());
    head | tail.map_or(0, |tail| u128::from(u64::from_be_bytes(*tail)))
}

/// Offset and length of the table of blocks, and of the metadata.
fn regions(container: &Container) -> Result<((u64, u64), (u64, u64))> {
    let mut sound = None;
    for at in REGIONS_AT {
        let mut table = container.bytes("its regions", at, REGIONS_BYTES)?;
        if table.starts_with(b"regi") && is_sound(&mut table) {
            sound = Some(table);
            break;
        }
    }
    let Some(table) = sound else {
        return Err(container.damaged("neither of its tables of regions is sound"));
    };
    let (mut bat, mut metadata) = (None, None);
    let count = le32(&table, 8) as usize;
    if count > ENTRIES_MAX {
        return Err(container.damaged(&format!("it has {count} regions")));
    }
    for entry in table[16..].chunks_exact(32).take(count) {
        let (id, range) = (guid(entry), (le64(entry, 16), u64::from(le32(entry, 24))));
        let place = match id {
            BAT_REGION => &mut bat,
            METADATA_REGION => &mut metadata,
            _ if le32(entry, 28) & 1 == 1 => {
                let what = format!("it needs the region {id:032x}, unknown here");
                return Err(container.unsupported(&what));
            }
            _ => continue,
        };
        if place.is_some() || !range.0.is_multiple_of(MIB) || range.0 < MIB {
            return Err(container.damaged(&format!("a region of it is at byte {}", range.0)));
        }
        *place = Some(range);
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok((bat, metadata)),
        _ => Err(container.damaged("it lacks a region")),
    }
}

/// Reads the relevant metadata.
fn metadata_of(container: &Container, (at, len): (u64, u64)) -> Result<Metadata> {
    if len < METADATA_TABLE_BYTES {
        return Err(container.damaged(&format!("its metadata have {len} bytes")));
    }
    let table = container.bytes("its metadata", at, METADATA_TABLE_BYTES)?;
    if !table.starts_with(b"metadata") {
        return Err(container.damaged("its metadata do not begin as such do"));
    }
    let count = usize::from(le16(&table, 10));
    if count > ENTRIES_MAX {
        return Err(container.damaged(&format!("it has {count} metadata")));
    }
    let mut metadata = Metadata::default();
    for entry in table[32..].chunks_exact(32).take(count) {
        let (offset, flags) = (u64::from(le32(entry, 16)), le32(entry, 24));
        let item = at.saturating_add(offset);
        let number = || -> Result<[u8; 8]> {
            if offset < METADATA_TABLE_BYTES || offset + 8 > len {
                return Err(container.damaged(&format!("a metadatum of it is at byte {item}")));
            }
            container.array("a metadatum", item)
        };
        match guid(entry) {
            FILE_PARAMETERS => {
                let value = number()?;
                metadata.block = u64::from(le32(&value, 0));
                metadata.has_parent = le32(&value, 4) & 2 != 0;
            }
            DISK_SIZE => metadata.size = le64(&number()?, 0),
            LOGICAL_SECTOR => metadata.sector = u64::from(le32(&number()?, 0)),
            DISK_ID | PHYSICAL_SECTOR => {}
            // The file parameters already state whether there is a parent.
            PARENT_LOCATOR => {}
            id if flags & 4 != 0 => {
                let what = format!("it needs the metadatum {id:032x}, unknown here");
                return Err(container.unsupported(&what));
            }
            _ => {}
        }
    }
    Ok(metadata)
}
