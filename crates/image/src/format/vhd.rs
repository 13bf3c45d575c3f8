//! VHD: Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0. Numbers are
//! big-endian. The size is in a footer. A fixed file is the disk followed by the footer; a dynamic
//! file has a table of blocks.
//!
//! Each block begins with a bitmap of the sectors that were written. The other sectors are zeros,
//! whatever bytes the block has there: on a logical volume that was used before, these are old
//! bytes. VirtualBox, Xen and libvhdi read it that way. QEMU ignores the bitmap. Therefore, if a
//! bitmap is all zeros, the writer must have ignored bitmaps (nothing allocates a block in order to
//! write nothing to it), and the whole block counts as data, as in QEMU.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::table::{Tables, be32, be64};
use super::{Container, Flat, Grid, Layout, Place, Run, SECTOR_BYTES};
use crate::RawImage;
use crate::chunk::is_zero;
use crate::error::Result;

/// A footer begins with this. So does a dynamic file, whose first sector is a copy of the footer.
pub(super) const MAGIC: &[u8] = b"conectix";

const FOOTER_BYTES: usize = 512;
const DYNAMIC_MAGIC: &[u8] = b"cxsparse";
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// The entry of a block that was never written.
const FREE: u32 = 0xffff_ffff;
/// Allowed sizes of a block; actual files use 512 KiB or 2 MiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 4096..=1 << 28;

/// Between the end of a disk and its footer, at most this many bytes are read to check that they
/// are zeros. If the gap is larger, the file does not count as a VHD. The value is a choice.
const GAP_BYTES_MAX: u64 = 16 << 20;
/// Bytes to read at a time for that check.
const GAP_STEP_BYTES: usize = 64 << 10;

/// The content of 512 bytes that are a footer or look like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Bytes of the disk.
    pub(crate) size: u64,
    kind: u32,
    /// Offset of the second header in a file with tables.
    header: u64,
    /// Whether the checksum is right.
    is_sound: bool,
}

impl Footer {
    /// Parses bytes that begin like a footer.
    fn of(bytes: &[u8; FOOTER_BYTES]) -> Option<Self> {
        bytes.starts_with(MAGIC).then(|| Self {
            size: be64(bytes, 48),
            kind: be32(bytes, 60),
            header: be64(bytes, 16),
            is_sound: be32(bytes, 64) == checksum(bytes, 64),
        })
    }

    /// Whether a file with `before` bytes in front of this footer is read as a fixed VHD.
    pub(crate) fn fits(&self, before: u64) -> bool {
        self.kind == FIXED && self.is_sound && (1..=before).contains(&self.size)
    }

    /// Whether this footer belongs to a fixed file with exactly its disk in front of it. That is no
    /// coincidence, even if the checksum is wrong.
    fn is_of_all(&self, before: u64) -> bool {
        self.kind == FIXED && self.size == before
    }
}

/// The last sector of a file, as to whether it is a VHD footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Something else.
    Other,
    /// The footer of a fixed disk, whose bytes are everything before it, with the right checksum.
    Whole,
    /// A footer that does not match what is before it, or is damaged.
    Doubtful(Option<Footer>),
}

/// Classifies the end of a file: `tail` has its last 512 bytes, or all if there are fewer, and
/// `before` bytes precede it.
pub(crate) fn ending(tail: &[u8], before: u64) -> Ending {
    let footer = tail.first_chunk().and_then(Footer::of);
    // The first versions of Virtual PC wrote one byte less.
    let is_short = tail.get(1..).is_some_and(|tail| tail.starts_with(MAGIC));
    match footer {
        Some(footer) if footer.is_sound && footer.is_of_all(before) => Ending::Whole,
        None if is_short => Ending::Doubtful(None),
        None => Ending::Other,
        some => Ending::Doubtful(some),
    }
}

/// The last 512 bytes of a file, and how many bytes precede them.
fn footer_of(file: &RawImage) -> Result<Option<([u8; FOOTER_BYTES], u64)>> {
    let Some(at) = file.size().checked_sub(FOOTER_BYTES as u64) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER_BYTES];
    file.read_at(&mut footer, at)?;
    Ok(Some((footer, at)))
}

/// Whether the last sector is the footer of a complete fixed file. More than the signature must
/// match, because it could be the end of another disk.
fn is_fixed(file: &RawImage) -> Result<bool> {
    let footer = footer_of(file)?;
    Ok(footer
        .is_some_and(|(footer, at)| Footer::of(&footer).is_some_and(|footer| footer.is_of_all(at))))
}

/// Whether a file that does not begin like a VHD is read as one because of its end: a complete
/// fixed file, one with zeros between the disk and the footer, or a file with tables whose first
/// footer is damaged.
pub(super) fn is_known_by_its_end(file: &RawImage) -> Result<bool> {
    let Some((footer, at)) = footer_of(file)? else {
        return Ok(false);
    };
    let Some(footer) = Footer::of(&footer) else {
        return Ok(false);
    };
    match footer.kind {
        _ if footer.is_of_all(at) => Ok(true),
        FIXED if footer.is_sound => is_zero_between(file, footer.size, at),
        DYNAMIC | DIFFERENCING if footer.is_sound => {
            let mut cookie = [0; DYNAMIC_MAGIC.len()];
            let end = footer.header.checked_add(cookie.len() as u64);
            let is_within = end.is_some_and(|end| end <= at);
            if is_within {
                file.read_at(&mut cookie, footer.header)?;
            }
            Ok(cookie == DYNAMIC_MAGIC)
        }
        _ => Ok(false),
    }
}

/// Whether these bytes of a file are zeros, and few enough to check.
fn is_zero_between(file: &RawImage, start: u64, end: u64) -> Result<bool> {
    let is_few = (end.checked_sub(start)).is_some_and(|gap| gap <= GAP_BYTES_MAX);
    if start == 0 || !is_few {
        return Ok(false);
    }
    let mut step = vec![0; GAP_STEP_BYTES];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX);
        let some = &mut step[..len.min(GAP_STEP_BYTES)];
        file.read_at(some, at)?;
        if !is_zero(some) {
            return Ok(false);
        }
        at += some.len() as u64;
    }
    Ok(true)
}

/// Opens a VHD file of either kind.
pub(super) fn open(container: Container) -> Result<Box<dyn Layout>> {
    let end = container.file.size().saturating_sub(FOOTER_BYTES as u64);
    let at_start: [u8; FOOTER_BYTES] = container.array("its footer", 0)?;
    // A fixed file begins with the disk, which may contain anything.
    let is_dynamic = at_start.starts_with(MAGIC) && !is_fixed(&container.file)?;
    let footer = match is_dynamic {
        true => at_start,
        false => container.array("its footer", end)?,
    };
    if !footer.starts_with(MAGIC) {
        return Err(container.damaged("it has no footer: it was cut off, or is no such file"));
    }
    let is_whole = Footer::of(&footer).is_some_and(|footer| footer.is_of_all(end));
    if !is_whole && be32(&footer, 64) != checksum(&footer, 64) {
        return Err(container.damaged("the checksum of its footer is wrong"));
    }
    let (size, kind) = (be64(&footer, 48), be32(&footer, 60));
    container.check_size(size)?;
    match kind {
        FIXED if is_dynamic => Err(container.damaged("it was cut off, or is damaged")),
        FIXED if size > end => Err(container.damaged(&format!(
            "its disk has {size} bytes and the file {end}: it was cut off"
        ))),
        FIXED => Ok(Box::new(Flat { container, size })),
        DYNAMIC => Dynamic::open(container, &footer, size)
            .map(|dynamic| -> Box<dyn Layout> { Box::new(dynamic) }),
        DIFFERENCING => {
            let what = "it holds only what differs from another file";
            Err(container.unsupported(what).hint_to(container.merged()))
        }
        _ => Err(container.damaged(&format!("it is of kind {kind}, not 2 to 4"))),
    }
}

/// The complement of the sum of all bytes except the checksum itself at `at`.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

/// Maximum bitmaps in memory for one file: a chunk is in a few blocks.
const BITMAPS_MAX: usize = 16;

/// The most recently read bitmaps, by the index of their block; `None` if the whole block counts as
/// data.
type Bitmaps = Mutex<VecDeque<(u64, Option<Arc<[u8]>>)>>;

/// A file with a table of blocks.
#[derive(Debug)]
struct Dynamic {
    container: Container,
    size: u64,
    block: u64,
    /// Bytes of the bitmap in front of each block.
    bitmap: u64,
    table: u64,
    tables: Tables,
    bitmaps: Bitmaps,
}

impl Dynamic {
    fn open(container: Container, footer: &[u8], size: u64) -> Result<Self> {
        let header: [u8; 1024] = container.array("its second header", be64(footer, 16))?;
        if !header.starts_with(DYNAMIC_MAGIC) {
            return Err(container.damaged("it has no second header"));
        }
        if be32(&header, 36) != checksum(&header, 36) {
            return Err(container.damaged("the checksum of its second header is wrong"));
        }
        let (table, blocks, block) = (
            be64(&header, 16),
            u64::from(be32(&header, 28)),
            be32(&header, 32),
        );
        if !BLOCK_BYTES.contains(&block) || !block.is_power_of_two() {
            let what = format!("its blocks have {block} bytes");
            return Err(container.damaged(&what));
        }
        let block = u64::from(block);
        let needed = size.div_ceil(block);
        if blocks < needed {
            let what = format!("its table has {blocks} entries where {needed} are needed");
            return Err(container.damaged(&what));
        }
        if !table.is_multiple_of(SECTOR_BYTES) {
            return Err(container.damaged(&format!("its table is at byte {table}")));
        }
        container.within("its table", table, needed * 4)?;
        Ok(Self {
            size,
            block,
            bitmap: (block / SECTOR_BYTES)
                .div_ceil(8)
                .next_multiple_of(SECTOR_BYTES),
            table,
            tables: Tables::default(),
            bitmaps: Bitmaps::default(),
            container,
        })
    }

    /// The bitmap of the block with this index, which is in the file at `at`; `None` if the whole
    /// block counts as data.
    fn bitmap_of(&self, index: u64, at: u64) -> Result<Option<Arc<[u8]>>> {
        if let Ok(kept) = self.bitmaps.lock()
            && let Some((_, bitmap)) = kept.iter().find(|(block, _)| *block == index)
        {
            return Ok(bitmap.clone());
        }
        let used = self.block / SECTOR_BYTES / 8;
        let bits = self.container.bytes("a bitmap of sectors", at, used)?;
        let is_all = |byte| bits.iter().all(|bits| *bits == byte);
        let bitmap: Option<Arc<[u8]>> = match is_all(0) || is_all(0xff) {
            true => None,
            false => Some(bits.into()),
        };
        if let Ok(mut kept) = self.bitmaps.lock() {
            kept.truncate(BITMAPS_MAX - 1);
            kept.push_front((index, bitmap.clone()));
        }
        Ok(bitmap)
    }
}

/// Whether a sector of a block was written, and the first later sector for which that is different,
/// up to the end of the bitmap.
fn written_from(bitmap: &[u8], sector: u64) -> (bool, u64) {
    let byte = |sector: u64| {
        let at = usize::try_from(sector / 8).unwrap_or(usize::MAX);
        bitmap.get(at).copied().unwrap_or(0)
    };
    let is_written = |sector| byte(sector) & (0x80 >> (sector % 8)) != 0;
    let first = is_written(sector);
    let alike = if first { 0xff } else { 0 };
    let end = bitmap.len() as u64 * 8;
    let mut next = sector + 1;
    while next < end {
        if next.is_multiple_of(8) && byte(next) == alike {
            next += 8;
        } else if is_written(next) == first {
            next += 1;
        } else {
            break;
        }
    }
    (first, next)
}

impl Layout for Dynamic {
    fn container(&self) -> &Container {
        &self.container
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let unit = self.unit_at(offset)?;
        let Place::File(place) = unit.place else {
            return Ok(unit);
        };
        let (index, within) = (offset / self.block, offset % self.block);
        let Some(bitmap) = self.bitmap_of(index, place - within - self.bitmap)? else {
            return Ok(unit);
        };
        let (is_written, next) = written_from(&bitmap, within / SECTOR_BYTES);
        Ok(Run {
            end: index * self.block + next * SECTOR_BYTES,
            place: match is_written {
                true => unit.place,
                false => Place::Zero,
            },
            table: None,
        })
    }

    fn unit_at(&self, offset: u64) -> Result<Run> {
        let index = offset / self.block;
        let at = self.table + index * 4;
        let entries = self.tables.entries(&self.container, at, 4)?;
        let most = entries.count(4).min(self.size.div_ceil(self.block) - index);
        let entry = be32(&entries, 0);
        let (blocks, place) = if entry == FREE {
            let places = entries.chunks_exact(4).skip(1);
            let places = places.map(|entry| match be32(entry, 0) {
                FREE => Ok(Place::Zero),
                _ => Ok(Place::File(0)),
            });
            (
                super::count_contiguous(Place::Zero, self.block, places, most)?,
                Place::Zero,
            )
        } else {
            let at = u64::from(entry) * SECTOR_BYTES;
            if at < self.bitmap {
                return Err(self
                    .container
                    .damaged(&format!("a block is at byte {at}, within its header")));
            }
            (1, Place::File(at + self.bitmap + offset % self.block))
        };
        Ok(Run {
            end: (index + blocks).saturating_mul(self.block),
            place,
            table: None,
        })
    }

    fn grid(&self) -> Grid {
        // Most writers put the blocks one after the other, directly after the table.
        let blocks = self.size.div_ceil(self.block);
        let first = (self.table + blocks * 4).next_multiple_of(SECTOR_BYTES);
        Grid::of(self.bitmap + self.block, first + self.bitmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sectors_are_merged_into_one_run() {
        let bitmap = [0b1100_0000, 0, 0, 0b0000_0001, 0xff, 0xff];
        let mut runs = Vec::new();
        let mut sector = 0;
        while sector < 48 {
            let (is_written, next) = written_from(&bitmap, sector);
            runs.push((is_written, sector..next));
            sector = next;
        }
        assert_eq!(runs, [(true, 0..2), (false, 2..31), (true, 31..48)]);
        assert_eq!(written_from(&bitmap, 1), (true, 2));
        assert_eq!(written_from(&bitmap, 40), (true, 48));
    }
}
