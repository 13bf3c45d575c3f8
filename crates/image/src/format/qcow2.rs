//! qcow2, versions 2 and 3: QEMU's `docs/interop/qcow2.rst`. Numbers are
//! big-endian. Two levels of tables lead to clusters; a cluster may be packed, be
//! zeros, be in the backing file, or be made of 32 subclusters of which each is
//! one of these.
//!
//! The state that is read is the active one: internal snapshots are not.

use std::sync::Mutex;

use super::table::{Tables, be32, be64};
use super::{BackingName, Container, Grid, Layout, Packed, Place, Run, SECTOR_BYTES};
use crate::codec::{Pack, Unpacker};
use crate::error::Result;

/// The first bytes of a qcow2 file.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";

/// Maximum bytes of the first-level table; QEMU has the same limit.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Maximum bytes of the name of a backing file, according to the specification of the format.
const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Maximum number of header extensions to look at, in case of a damaged header. The format has
/// fewer than ten kinds, and each occurs once.
const EXTENSIONS_MAX: usize = 64;
/// The offset in an entry of either table.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster is zeros, whatever its offset.
const ZERO: u64 = 1;

/// Incompatible features, by bit.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// An open qcow2 file.
#[derive(Debug)]
pub(super) struct Qcow2 {
    container: Container,
    size: u64,
    has_zeros: bool,
    cluster_bits: u32,
    /// Whether clusters have 32 subclusters and entries have 16 bytes.
    is_extended: bool,
    l1: u64,
    pack: Pack,
    backing: Option<BackingName>,
    tables: Tables,
    unpackers: Mutex<Vec<Unpacker>>,
}

impl Qcow2 {
    pub(super) fn open(container: Container) -> Result<Self> {
        let header: [u8; 72] = container.array("its header", 0)?;
        if !header.starts_with(MAGIC) {
            return Err(container.damaged("it does not begin as such a file does"));
        }
        let version = be32(&header, 4);
        if !(2..=3).contains(&version) {
            let what = format!("it has version {version}, not 2 or 3");
            return Err(container.unsupported(&what));
        }
        let cluster_bits = be32(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(container.damaged(&format!(
                "its clusters are of 2^{cluster_bits} bytes, not 2^9 to 2^21"
            )));
        }
        let size = be64(&header, 24);
        container.check_size(size)?;
        if be32(&header, 32) != 0 {
            return Err(container.unsupported("it is encrypted").hint_to(
                "Decrypt it with its key first: qemu-img convert --object secret,... --image-opts",
            ));
        }
        let (features, header_bytes) = match version {
            2 => (0, 72),
            _ => {
                let more: [u8; 32] = container.array("its header", 72)?;
                (be64(&more, 0), be32(&more, 28))
            }
        };
        if version == 3 && !(104..=1 << cluster_bits).contains(&header_bytes) {
            return Err(container.damaged(&format!("its header has {header_bytes} bytes")));
        }
        check_features(&container, features)?;
        let pack = match features & COMPRESSION_TYPE {
            0 => Pack::Deflate,
            _ if header_bytes < 112 => {
                return Err(container.damaged("it does not state its compression"));
            }
            _ => {
                let [kind]: [u8; 1] = container.array("its header", 104)?;
                match kind {
                    0 => Pack::Deflate,
                    1 => Pack::Zstd,
                    _ => {
                        let what = format!("its compression has number {kind}, not 0 or 1");
                        return Err(container.unsupported(&what));
                    }
                }
            }
        };
        let is_extended = features & EXTENDED_L2 != 0;
        if is_extended && cluster_bits < 14 {
            return Err(container.damaged(&format!(
                "its clusters of 2^{cluster_bits} bytes are too small for subclusters"
            )));
        }
        let backing = backing_name(&container, &header, cluster_bits, u64::from(header_bytes))?;
        let image = Self {
            size,
            has_zeros: version >= 3,
            cluster_bits,
            is_extended,
            l1: be64(&header, 40),
            pack,
            backing,
            tables: Tables::default(),
            unpackers: Mutex::default(),
            container,
        };
        image.check_l1(u64::from(be32(&header, 36)))?;
        Ok(image)
    }

    /// Fails unless the first-level table covers the disk and is within the file.
    fn check_l1(&self, entries: u64) -> Result<()> {
        let needed = self.l1_entries();
        if entries < needed {
            let what = format!("its first table has {entries} entries where {needed} are needed");
            return Err(self.container.damaged(&what));
        }
        if needed * 8 > L1_BYTES_MAX {
            let what = format!("its first table would need {needed} entries, more than any has");
            return Err(self.container.damaged(&what));
        }
        // Entries beyond the disk are not read. QEMU refuses a larger table as well.
        if entries * 8 > L1_BYTES_MAX {
            let what = format!("its first table has {entries} entries, more than any has");
            return Err(self.container.damaged(&what));
        }
        if !self.l1.is_multiple_of(self.cluster()) || self.l1 == 0 {
            return Err(self
                .container
                .damaged(&format!("its first table is at byte {}", self.l1)));
        }
        self.container
            .within("its first table", self.l1, needed * 8)
    }

    /// Bytes of a cluster, and of a second-level table.
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the unit that is allocated on its own.
    fn unit(&self) -> u64 {
        self.cluster() >> if self.is_extended { 5 } else { 0 }
    }

    /// Bytes of an entry of a second-level table.
    fn entry(&self) -> u64 {
        if self.is_extended { 16 } else { 8 }
    }

    /// Entries of a second-level table.
    fn l2_entries(&self) -> u64 {
        self.cluster() / self.entry()
    }

    /// Bytes of the disk that one entry of the first level covers.
    fn reach(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    fn l1_entries(&self) -> u64 {
        self.size.div_ceil(self.reach())
    }

    /// The place of the unit that begins at `unit`, according to its entry.
    fn place(&self, entry: &[u8], unit: u64) -> Result<Place> {
        let (descriptor, subcluster) = (be64(entry, 0), unit % self.cluster() / self.unit());
        if descriptor & COMPRESSED != 0 {
            return Ok(Place::Packed(self.packed(descriptor, unit)));
        }
        let host = descriptor & OFFSET_MASK;
        if !host.is_multiple_of(self.cluster()) {
            return Err(self
                .container
                .damaged(&format!("a cluster is at byte {host}, within another")));
        }
        let (is_zero, is_there) = if self.is_extended {
            let bits = be64(entry, 8);
            let (zero, there) = (bits >> (32 + subcluster) & 1, bits >> subcluster & 1);
            (zero == 1, there == 1)
        } else {
            (descriptor & ZERO != 0, host != 0)
        };
        match (is_zero, is_there) {
            (true, true) if self.is_extended => Err(self
                .container
                .damaged("a subcluster is marked as zeros and as data")),
            (true, _) if !self.has_zeros => Err(self
                .container
                .damaged("a cluster is marked as zeros, which version 2 does not know")),
            (true, _) => Ok(Place::Zero),
            (false, true) if host == 0 => {
                Err(self.container.damaged("a subcluster of data is nowhere"))
            }
            (false, true) => Ok(Place::File(host + subcluster * self.unit())),
            (false, false) => Ok(Place::Backing),
        }
    }

    fn packed(&self, descriptor: u64, unit: u64) -> Packed {
        // The bits above the offset are the number of further sectors.
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = descriptor & ((1 << offset_bits) - 1);
        let sectors = (descriptor & (COMPRESSED - 1)) >> offset_bits;
        let start = unit - unit % self.cluster();
        Packed {
            at,
            len: (sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES,
            unit: (start, start.saturating_add(self.cluster())),
        }
    }
}

impl Layout for Qcow2 {
    fn container(&self) -> &Container {
        &self.container
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let reach = self.reach();
        let index = offset / reach;
        let l1 = self.l1 + index * 8;
        let entries = self.tables.entries(&self.container, l1, 8)?;
        let table = be64(&entries, 0) & OFFSET_MASK;
        if table == 0 {
            let most = entries.count(8).min(self.l1_entries() - index);
            let empty = (1..most)
                .take_while(|i| be64(&entries, index_of(*i, 8)) & OFFSET_MASK == 0)
                .count() as u64;
            return Ok(Run {
                end: (index + empty + 1).saturating_mul(reach),
                place: Place::Backing,
                table: None,
            });
        }
        if !table.is_multiple_of(self.cluster()) {
            return Err(self
                .container
                .damaged(&format!("a table is at byte {table}, within a cluster")));
        }
        self.container.within("a table", table, self.cluster())?;
        let (entry, unit) = (self.entry(), self.unit());
        let cluster = (offset % reach) >> self.cluster_bits;
        let at = table + cluster * entry;
        let entries = self.tables.entries(&self.container, at, entry)?;
        let most = entries.count(entry).min(self.l2_entries() - cluster);
        let first = offset - offset % self.cluster();
        let last = first
            .saturating_add(most << self.cluster_bits)
            .min(self.size);
        let place_of = |start: u64| {
            let entry_at = index_of((start - first) >> self.cluster_bits, entry);
            self.place(entries.get(entry_at..).unwrap_or_default(), start)
        };
        let mut end = offset - offset % unit;
        let mut place = place_of(end)?;
        if let Place::File(at) = &mut place {
            *at += offset - end;
        }
        loop {
            end = match place {
                Place::Packed(packed) => packed.unit.1,
                _ => end.saturating_add(unit),
            };
            let goes_on = end < last
                && match (place, place_of(end)?) {
                    (Place::File(at), Place::File(next)) => next == at + (end - offset),
                    (Place::Packed(_), _) => false,
                    (this, next) => this == next,
                };
            if !goes_on {
                break;
            }
        }
        Ok(Run {
            end,
            place,
            table: Some(table),
        })
    }

    fn unpack(&self, packed: &Packed, bytes: &mut [u8]) -> Result<()> {
        let end = packed
            .at
            .saturating_add(packed.len)
            .min(self.container.file.size());
        let len = end.saturating_sub(packed.at);
        // At most twice a cluster, because the length has few bits.
        let from = self.container.bytes("a cluster", packed.at, len)?;
        super::unpack_with(&self.unpackers, self.pack, &from, bytes).map_err(|cause| {
            let what = format!("the packed cluster at byte {} is damaged", packed.at);
            self.container.damaged(&what).because(cause)
        })
    }

    fn backing(&self) -> Option<&BackingName> {
        self.backing.as_ref()
    }

    fn grid(&self) -> Grid {
        let l1 = self.l1..self.l1 + self.l1_entries() * 8;
        Grid {
            unit: self.unit(),
            base: 0,
            table: self.cluster(),
            header: [(0, self.cluster()), (l1.start, l1.end)],
            has_tables_in_it: true,
        }
    }
}

fn index_of(entry: u64, bytes: u64) -> usize {
    usize::try_from(entry * bytes).unwrap_or(usize::MAX)
}

/// Refuses features that cannot be read.
fn check_features(container: &Container, features: u64) -> Result<()> {
    // In a dirty file, only the reference counts may be wrong, and they are not read.
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2);
    if unknown != 0 {
        let number = unknown.trailing_zeros();
        let what = format!("it needs feature {number}, unknown here");
        return Err(container.unsupported(&what));
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(container.unsupported("its data is in another file"));
    }
    if features & CORRUPT != 0 {
        let repair = container.command(|name| format!("qemu-img check -r all {name}"));
        let hint = format!("Repair a copy of it: {repair}");
        return Err(container.damaged("it is marked as corrupt").hint_to(hint));
    }
    Ok(())
}

/// The backing file that the header names.
fn backing_name(
    container: &Container,
    header: &[u8],
    cluster_bits: u32,
    header_bytes: u64,
) -> Result<Option<BackingName>> {
    let (at, len) = (be64(header, 8), be32(header, 16));
    if at == 0 {
        return Ok(None);
    }
    let end = at.saturating_add(u64::from(len));
    if len == 0 || len > BACKING_NAME_BYTES_MAX || end > 1 << cluster_bits {
        let what = format!("the name of its backing file has {len} bytes at byte {at}");
        return Err(container.damaged(&what));
    }
    let what = "the name of its backing file";
    let name = container.bytes(what, at, u64::from(len))?;
    Ok(Some(BackingName {
        name,
        format: backing_format(container, header_bytes, at)?,
    }))
}

/// Finds the extension with the format of the backing file. The extensions end before its name.
fn backing_format(container: &Container, mut at: u64, end: u64) -> Result<Option<Vec<u8>>> {
    for _ in 0..EXTENSIONS_MAX {
        if at.saturating_add(8) > end {
            break;
        }
        let head: [u8; 8] = container.array("its header", at)?;
        let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
        at += 8;
        if kind == 0 || at.saturating_add(len) > end {
            break;
        }
        if kind == BACKING_FORMAT {
            return container.bytes("its header", at, len).map(Some);
        }
        at += len.next_multiple_of(8);
    }
    Ok(None)
}
