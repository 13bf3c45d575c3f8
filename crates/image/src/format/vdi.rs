//! VDI, version 1.1: VirtualBox's `VDICore.h`. Numbers are little-endian. One table maps each block
//! of the disk to a block of the file.

use super::table::{Tables, le32, le64};
use super::{Container, Grid, Layout, Place, Run, SECTOR_BYTES};
use crate::error::Result;

/// The signature, which follows a line of text.
pub(super) const MAGIC: &[u8] = &0xbeda_107f_u32.to_le_bytes();
/// Offset of the signature.
pub(super) const MAGIC_AT: usize = 64;

const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;
/// The types of images that have a parent.
const ON_TOP: std::ops::RangeInclusive<u32> = 3..=4;
/// An entry of a block that was never written.
const FREE: u32 = 0xffff_ffff;
/// An entry of a block that was discarded.
const DISCARDED: u32 = 0xffff_fffe;
/// Sizes that a block may have; VirtualBox and QEMU make blocks of 1 MiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 4096..=1 << 28;

/// An open VDI file.
#[derive(Debug)]
pub(super) struct Vdi {
    container: Container,
    size: u64,
    block: u64,
    map: u64,
    data: u64,
    tables: Tables,
}

/// The hint for a file that only VirtualBox reads: one of an old version, or a snapshot, whose
/// parents VirtualBox knows.
fn clone(container: &Container) -> String {
    let clone = container
        .command(|name| format!("VBoxManage clonemedium disk {name} NEW.vdi --format VDI"));
    format!("Write all of it to a new file with VirtualBox, on the host that it is from: {clone}")
}

impl Vdi {
    pub(super) fn open(container: Container) -> Result<Self> {
        let header: [u8; 512] = container.array("its header", 0)?;
        if !header[MAGIC_AT..].starts_with(MAGIC) {
            return Err(container.damaged("it does not begin as such a file does"));
        }
        let (version, kind) = (le32(&header, 68), le32(&header, 76));
        if version != VERSION {
            let (major, minor) = (version >> 16, version & 0xffff);
            let what = format!("it has version {major}.{minor}, not 1.1");
            return Err(container.unsupported(&what).hint_to(clone(&container)));
        }
        // A parent or snapshot is identified by a UUID.
        let is_linked = header[424..456].iter().any(|byte| *byte != 0);
        if ON_TOP.contains(&kind) || is_linked {
            let what = "it holds only what differs from another file";
            return Err(container.unsupported(what).hint_to(clone(&container)));
        }
        if kind != DYNAMIC && kind != STATIC {
            return Err(container.unsupported(&format!("it is of kind {kind}, not 1 or 2")));
        }
        let (map, data) = (le32(&header, 340), le32(&header, 344));
        for (what, at) in [("map", map), ("data", data)] {
            if !u64::from(at).is_multiple_of(SECTOR_BYTES) || at == 0 {
                return Err(container.damaged(&format!("its {what} is at byte {at}")));
            }
        }
        let (size, block) = (le64(&header, 368), le32(&header, 376));
        container.check_size(size)?;
        if !BLOCK_BYTES.contains(&block) || !block.is_power_of_two() {
            return Err(container.damaged(&format!("its blocks have {block} bytes")));
        }
        if le32(&header, 380) != 0 {
            return Err(container.unsupported("its blocks have more than data"));
        }
        let (blocks, needed) = (le32(&header, 384), size.div_ceil(u64::from(block)));
        if u64::from(blocks) < needed {
            let what = format!("it has {blocks} blocks where {needed} are needed");
            return Err(container.damaged(&what));
        }
        let map = u64::from(map);
        container.within("its map", map, needed * 4)?;
        Ok(Self {
            size,
            block: u64::from(block),
            map,
            data: u64::from(data),
            tables: Tables::default(),
            container,
        })
    }

    /// The place of the block with this entry.
    fn place(&self, entry: u32) -> Result<Place> {
        if matches!(entry, FREE | DISCARDED) {
            return Ok(Place::Zero);
        }
        let at = u64::from(entry) * self.block + self.data;
        if at >= self.container.file.size() {
            return Err(self
                .container
                .damaged(&format!("its map names block {entry}, beyond its end")));
        }
        Ok(Place::File(at))
    }
}

impl Layout for Vdi {
    fn container(&self) -> &Container {
        &self.container
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let (index, within) = (offset / self.block, offset % self.block);
        let at = self.map + index * 4;
        let entries = self.tables.entries(&self.container, at, 4)?;
        let most = entries.count(4).min(self.size.div_ceil(self.block) - index);
        let mut places = entries
            .chunks_exact(4)
            .map(|entry| self.place(le32(entry, 0)));
        let first = places.next().unwrap_or(Ok(Place::Zero))?;
        let blocks = super::count_contiguous(first, self.block, places, most)?;
        Ok(Run {
            end: (index + blocks).saturating_mul(self.block),
            place: first.advanced_by(within),
            table: None,
        })
    }

    fn grid(&self) -> Grid {
        Grid::of(self.block, self.data)
    }
}
