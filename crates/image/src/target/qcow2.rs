//! Writes a qcow2 file (version 3) during a download, in which the parts of the disk arrive in any
//! order: QEMU's `docs/interop/qcow2.rst`.
//!
//! Clusters are placed in the order in which their bytes arrive, so that the file is as long as its
//! data and no longer. The tables that refer to them are written as they change, before the data.
//! What the journal records as done was therefore synced together with its table entries, and
//! another run finds it through them. A crash may leave an entry without its data, or a cluster
//! without its entry. Both belong to a chunk that is not recorded as done: the former is written
//! again, the latter counts as free. Reference counts are written at the end, and until then the
//! header marks the file as unfinished.
//!
//! Memory holds the first-level table, 8 bytes for 512 MiB of the disk, and one block of reference
//! counts at a time.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use bytes::BufMut;
use openhosting_system::FileAt;

use crate::chunk::is_zero;
use crate::codec::{ClusterPacker, Pack};

/// Bytes of a cluster: QEMU's default.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Bytes of the disk that one second-level table covers: 512 MiB.
const REACH: u64 = CLUSTER / 8 * CLUSTER;
/// Maximum bytes of the first-level table: QEMU's limit.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Reference counts in a block of them, of 16 bits each.
const COUNTS: u64 = CLUSTER / 2;
/// QEMU counts the disk in sectors, and would omit a last partial sector.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Maximum slices of one vectored write (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is referenced only once, so it may be overwritten.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The position of the number of further sectors in the entry of a compressed cluster.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// The reference counts are not valid yet.
const DIRTY: u64 = 1 << 0;
const COMPRESSION_TYPE: u64 = 1 << 3;
const HEADER_BYTES: usize = 112;
/// The bytes of the header that differ between an unfinished and a finished file: where the
/// reference counts are, and whether the file is dirty.
const COUNTS_IN_HEADER: Range<usize> = 48..60;
const DIRTY_IN_HEADER: usize = 79;

/// A qcow2 file that is being written.
#[derive(Debug)]
pub(super) struct Qcow2File {
    file: File,
    /// Bytes of the disk; the file states the next whole sector.
    size: u64,
    pack: Option<Pack>,
    /// Whether the file was empty when it was opened.
    is_fresh: bool,
    map: Mutex<Map>,
    packers: Mutex<Vec<ClusterPacker>>,
}

/// The tables that refer to clusters, and the free space.
#[derive(Debug)]
struct Map {
    l1: Vec<u64>,
    /// The first byte after all allocated clusters.
    next: u64,
    /// Where the next compressed cluster may begin, if the cluster that it is in ends at `next`.
    packed: u64,
}

/// One cluster of the disk, or the part of it that is in one chunk.
struct Part<'a> {
    /// First byte on the disk.
    offset: u64,
    len: u64,
    /// Empty for zeros.
    bytes: Cow<'a, [u8]>,
    /// What the file stores instead, if that is shorter.
    packed: Option<Vec<u8>>,
}

impl Part<'_> {
    fn is_zero(&self) -> bool {
        self.bytes.is_empty()
    }

    fn within_cluster(&self) -> u64 {
        self.offset % CLUSTER
    }
}

fn bug(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

fn len_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Entries of the first-level table for a disk of `size` bytes.
fn l1_entries(size: u64) -> u64 {
    size.div_ceil(REACH)
}

/// Where clusters of the disk begin: after the header and the first-level table.
fn first_cluster(size: u64) -> u64 {
    CLUSTER + (l1_entries(size) * 8).next_multiple_of(CLUSTER)
}

/// The entry of a compressed cluster of `len` bytes at `at`.
fn packed_entry(at: u64, len: u64) -> u64 {
    let sectors = (at + len - 1) / SECTOR_BYTES - at / SECTOR_BYTES;
    COMPRESSED | sectors << SECTORS_SHIFT | at
}

/// The bytes of the file that an entry of the second level refers to.
fn place_of(entry: u64) -> Range<u64> {
    if entry & COMPRESSED == 0 {
        let at = entry & OFFSET_MASK;
        return at..at.saturating_add(if at == 0 { 0 } else { CLUSTER });
    }
    let at = entry & ((1 << SECTORS_SHIFT) - 1);
    let sectors = (entry & (COMPRESSED - 1)) >> SECTORS_SHIFT;
    at..(at / SECTOR_BYTES + sectors + 1) * SECTOR_BYTES
}

/// The header of a finished file, whose table of reference counts is at the given offset and has
/// the given number of clusters; or, with `None`, of an unfinished file.
fn header(size: u64, pack: Option<Pack>, counts: Option<(u64, u64)>) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut out = &mut bytes[..];
    out.put_slice(b"QFI\xfb");
    out.put_u32(3);
    // No backing file.
    out.put_u64(0);
    out.put_u32(0);
    out.put_u32(CLUSTER_BITS);
    out.put_u64(size.next_multiple_of(SECTOR_BYTES));
    // Not encrypted.
    out.put_u32(0);
    // It fits, because the table does not exceed 32 MiB.
    out.put_u32(u32::try_from(l1_entries(size)).unwrap_or(u32::MAX));
    out.put_u64(CLUSTER);
    let (at, clusters) = counts.unwrap_or_default();
    out.put_u64(at);
    out.put_u32(u32::try_from(clusters).unwrap_or(u32::MAX));
    // No snapshots.
    out.put_u32(0);
    out.put_u64(0);
    let dirty = if counts.is_none() { DIRTY } else { 0 };
    let is_zstd = pack == Some(Pack::Zstd);
    out.put_u64(dirty | if is_zstd { COMPRESSION_TYPE } else { 0 });
    out.put_u64(0);
    out.put_u64(0);
    // Counts of 2^4 bits.
    out.put_u32(4);
    // Extensions follow; eight zeros end them.
    out.put_u32(112);
    out.put_u8(u8::from(is_zstd));
    bytes
}

/// Whether this is the header of a file that was begun with the same parameters (`Some`), and
/// whether it is finished.
fn is_alike(found: &[u8; HEADER_BYTES], size: u64, pack: Option<Pack>) -> Option<bool> {
    let mut expected = header(size, pack, None);
    expected[COUNTS_IN_HEADER].copy_from_slice(&found[COUNTS_IN_HEADER]);
    if found[DIRTY_IN_HEADER] & 1 == 0 {
        expected[DIRTY_IN_HEADER] &= !1;
    }
    (expected == *found).then_some(found[DIRTY_IN_HEADER] & 1 == 0)
}

/// Reads as if zeros followed the end of the file.
fn read_padded(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => {
                bytes[done..].fill(0);
                break;
            }
            Ok(n) => done += n,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn read_entries(file: &File, at: u64, count: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; len_of(count * 8)];
    read_padded(file, &mut bytes, at)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries
        .iter()
        .map(|entry| u64::from_be_bytes(*entry))
        .collect())
}

fn write_entries(file: &File, at: u64, entries: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect();
    file.write_all_at(&bytes, at)
}

impl Qcow2File {
    /// Whether a disk of `size` bytes can be stored.
    pub(super) fn holds(size: u64) -> bool {
        l1_entries(size) * 8 <= L1_BYTES_MAX
    }

    /// Begins a file, which must be empty.
    pub(super) fn create(file: File, size: u64, pack: Option<Pack>) -> io::Result<Self> {
        let next = first_cluster(size);
        file.set_len(next)?;
        file.write_all_at(&header(size, pack, None), 0)?;
        let l1 = vec![0; len_of(l1_entries(size))];
        Ok(Self {
            is_fresh: true,
            ..Self::over(file, size, pack, (l1, next))
        })
    }

    /// A file that was begun earlier, with this L1 table, and this free cluster at its end.
    fn over(file: File, size: u64, pack: Option<Pack>, (l1, next): (Vec<u64>, u64)) -> Self {
        let packed = next;
        Self {
            file,
            size,
            pack,
            is_fresh: false,
            map: Mutex::new(Map { l1, next, packed }),
            packers: Mutex::default(),
        }
    }

    /// Whether `file` is a finished file of such a disk.
    pub(super) fn is_finished(file: &File, size: u64, pack: Option<Pack>) -> io::Result<bool> {
        let mut found = [0; HEADER_BYTES];
        read_padded(file, &mut found, 0)?;
        Ok(is_alike(&found, size, pack) == Some(true))
    }

    /// Resumes a file that was begun earlier; `None` if it is a different one. Entries that refer
    /// beyond the end of the file are cleared, because their data never reached the disk.
    pub(super) fn resume(file: File, size: u64, pack: Option<Pack>) -> io::Result<Option<Self>> {
        let mut found = [0; HEADER_BYTES];
        read_padded(&file, &mut found, 0)?;
        if is_alike(&found, size, pack).is_none() {
            return Ok(None);
        }
        file.write_all_at(&header(size, pack, None), 0)?;
        let first = first_cluster(size);
        let end = file.metadata()?.len().next_multiple_of(CLUSTER);
        let is_there =
            |place: &Range<u64>| place.start >= first && place.end.next_multiple_of(CLUSTER) <= end;
        let mut next = first;
        let mut l1 = read_entries(&file, CLUSTER, l1_entries(size))?;
        for entry in &mut l1 {
            let table = place_of(*entry & OFFSET_MASK);
            if !table.start.is_multiple_of(CLUSTER) || !is_there(&table) {
                *entry = 0;
                continue;
            }
            next = next.max(table.end);
            let mut entries = read_entries(&file, table.start, CLUSTER / 8)?;
            let mut is_sound = true;
            for entry in &mut entries {
                let place = place_of(*entry);
                let is_whole = *entry & COMPRESSED != 0 || place.start.is_multiple_of(CLUSTER);
                if *entry != 0 && !(is_whole && is_there(&place)) {
                    (*entry, is_sound) = (0, false);
                } else {
                    next = next.max(place.end.next_multiple_of(CLUSTER));
                }
            }
            if !is_sound {
                write_entries(&file, table.start, &entries)?;
            }
        }
        write_entries(&file, CLUSTER, &l1)?;
        // What follows belongs to no entry, and new clusters must read as zeros.
        file.set_len(next)?;
        Ok(Some(Self::over(file, size, pack, (l1, next))))
    }

    /// Whether zeros need not be written at all.
    pub(super) fn leaves_zeros(&self) -> bool {
        self.is_fresh
    }

    /// Writes the bytes of `range`: the given runs of data, in order, and zeros between them. With
    /// compression, every cluster except the last must be complete.
    pub(super) fn put<'a>(
        &self,
        range: Range<u64>,
        runs: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> io::Result<()> {
        let mut parts = parts(&range, runs);
        if let Some(pack) = self.pack {
            self.pack(pack, &mut parts)?;
        }
        let places = self.allocate(&parts)?;
        self.write(&parts, &places)
    }

    /// Compresses the parts that become shorter by it.
    fn pack(&self, pack: Pack, parts: &mut [Part<'_>]) -> io::Result<()> {
        let idle = self.packers.lock().ok().and_then(|mut idle| idle.pop());
        let mut packer = match idle {
            Some(packer) => packer,
            None => ClusterPacker::new(pack)?,
        };
        let mut padded = Vec::new();
        for part in parts.iter_mut().filter(|part| !part.is_zero()) {
            if part.within_cluster() != 0
                || (part.len < CLUSTER && part.offset + part.len < self.size)
            {
                return Err(bug("a part of a cluster cannot be packed"));
            }
            part.packed = match part.bytes.len() as u64 {
                CLUSTER => packer.pack(&part.bytes)?,
                _ => {
                    padded.clear();
                    padded.extend_from_slice(&part.bytes);
                    padded.resize(len_of(CLUSTER), 0);
                    packer.pack(&padded)?
                }
            };
        }
        if let Ok(mut idle) = self.packers.lock() {
            idle.push(packer);
        }
        Ok(())
    }

    fn map(&self) -> io::Result<MutexGuard<'_, Map>> {
        self.map
            .lock()
            .map_err(|_| bug("a thread that wrote to the file panicked"))
    }

    /// Allocates space for each part and writes the table entries for it. Returns the offsets in
    /// the file; `None` for zeros that need not be written.
    fn allocate(&self, parts: &[Part<'_>]) -> io::Result<Vec<Option<u64>>> {
        let mut places = Vec::with_capacity(parts.len());
        let mut map = self.map()?;
        for parts in parts.chunk_by(|a, b| a.offset / REACH == b.offset / REACH) {
            let Some(first) = parts.first() else { continue };
            let table = len_of(first.offset / REACH);
            let known = map.l1.get(table).copied().unwrap_or(0) & OFFSET_MASK;
            if known == 0 && parts.iter().all(Part::is_zero) {
                places.extend(parts.iter().map(|_| None));
                continue;
            }
            let known = match known {
                0 => self.add_table(&mut map, table)?,
                known => known,
            };
            let at = known + first.offset % REACH / CLUSTER * 8;
            let before = read_entries(&self.file, at, parts.len() as u64)?;
            let mut entries = before.clone();
            map.place(parts, &mut entries);
            if entries != before {
                write_entries(&self.file, at, &entries)?;
            }
            places.extend(parts.iter().zip(&entries).map(|(part, entry)| {
                let place = place_of(*entry);
                let into = if part.packed.is_some() {
                    0
                } else {
                    part.within_cluster()
                };
                (!place.is_empty()).then_some(place.start + into)
            }));
        }
        Ok(places)
    }

    /// Adds a second-level table, which is all zeros.
    fn add_table(&self, map: &mut Map, index: usize) -> io::Result<u64> {
        let at = map.take();
        let entry = at | COPIED;
        write_entries(&self.file, CLUSTER + index as u64 * 8, &[entry])?;
        // Only after it was written: otherwise another chunk could use a table that the file does
        // not refer to.
        match map.l1.get_mut(index) {
            Some(known) => *known = entry,
            None => return Err(bug("a byte beyond the end of the disk")),
        }
        Ok(at)
    }

    /// Writes the parts that have a place, neighbours in one call.
    fn write(&self, parts: &[Part<'_>], places: &[Option<u64>]) -> io::Result<()> {
        let zeros = vec![0; if self.is_fresh { 0 } else { len_of(CLUSTER) }];
        let mut pieces: Vec<(u64, &[u8])> = parts
            .iter()
            .zip(places)
            .filter_map(|(part, place)| {
                let bytes = match &part.packed {
                    Some(packed) => packed,
                    None if part.is_zero() => zeros.get(..len_of(part.len))?,
                    None => &part.bytes,
                };
                Some(((*place)?, bytes))
            })
            .collect();
        pieces.sort_by_key(|(at, _)| *at);
        let mut rest = &pieces[..];
        while let Some((at, _)) = rest.first() {
            let mut end = *at;
            let together = rest
                .iter()
                .take(SLICES_MAX)
                .take_while(|(at, bytes)| {
                    let is_next = *at == end;
                    end += bytes.len() as u64;
                    is_next
                })
                .count();
            let (now, after) = rest.split_at(together);
            let mut slices: Vec<_> = now.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
            self.file.write_all_slices_at(&mut slices, *at)?;
            rest = after;
        }
        Ok(())
    }

    /// Extends the file to the end of its last cluster, so that it can be read before it is
    /// finished: what was written last may be only a part of a cluster.
    pub(super) fn pad(&self) -> io::Result<()> {
        let map = self.map()?;
        match self.file.metadata()?.len() < map.next {
            true => self.file.set_len(map.next),
            false => Ok(()),
        }
    }

    /// Writes the reference counts and a clean header, which makes it a file that other programs
    /// can read. No thread may write to it any more.
    pub(super) fn finish(&self) -> io::Result<()> {
        let map = self.map()?;
        let used = map.next / CLUSTER;
        // The clusters of the counts need counts themselves, so their number is found by iteration.
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let all = used + blocks + tables;
            let needed = (
                all.div_ceil(COUNTS),
                (all.div_ceil(COUNTS) * 8).div_ceil(CLUSTER),
            );
            if needed == (blocks, tables) {
                break;
            }
            (blocks, tables) = needed;
        }
        let first_block = map.next + tables * CLUSTER;
        // Removes counts that an earlier run may have written.
        self.file.set_len(map.next)?;
        self.file.set_len(first_block + blocks * CLUSTER)?;
        let in_table: Vec<u64> = (0..blocks).map(|i| first_block + i * CLUSTER).collect();
        write_entries(&self.file, map.next, &in_table)?;
        let mut counts = Counts::new(&self.file, first_block);
        counts.add(0..first_cluster(self.size))?;
        counts.add(map.next..first_block + blocks * CLUSTER)?;
        for table in map.l1.iter().map(|entry| entry & OFFSET_MASK) {
            if table == 0 {
                continue;
            }
            counts.add(table..table + CLUSTER)?;
            for entry in read_entries(&self.file, table, CLUSTER / 8)? {
                counts.add(place_of(entry))?;
            }
        }
        counts.flush()?;
        let header = header(self.size, self.pack, Some((map.next, tables)));
        self.file.write_all_at(&header, 0)
    }
}

impl Map {
    /// Allocates a cluster.
    fn take(&mut self) -> u64 {
        let at = self.next;
        self.next += CLUSTER;
        at
    }

    /// Gives each part a place, and updates the entries of these parts.
    fn place(&mut self, parts: &[Part<'_>], entries: &mut [u64]) {
        // Compressed clusters are stored without gaps, also those of another chunk, unless
        // something else was allocated in between.
        if self.packed.next_multiple_of(CLUSTER) != self.next {
            self.packed = self.next;
        }
        for (part, entry) in parts.iter().zip(&mut *entries) {
            if let Some(packed) = &part.packed {
                let len = packed.len() as u64;
                *entry = packed_entry(self.packed, len);
                self.packed += len;
            }
        }
        self.next = self.next.max(self.packed.next_multiple_of(CLUSTER));
        for (part, entry) in parts.iter().zip(entries) {
            if part.packed.is_some() {
                continue;
            }
            // A partial cluster that already has a place stays there, and a whole cluster of zeros
            // needs no place.
            let is_plain = *entry != 0 && *entry & COMPRESSED == 0;
            if part.is_zero() && (part.len == CLUSTER || !is_plain) {
                *entry = 0;
            } else if !is_plain {
                *entry = self.take() | COPIED;
            }
        }
    }
}

/// Divides a range of the disk at cluster boundaries.
fn parts<'a>(range: &Range<u64>, runs: impl Iterator<Item = (u64, &'a [u8])>) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut runs = runs.peekable();
    let mut offset = range.start;
    while offset < range.end {
        let end = range.end.min(offset - offset % CLUSTER + CLUSTER);
        let mut bytes: Cow<'a, [u8]> = Cow::Borrowed(&[]);
        while let Some((at, run)) = runs.peek().copied() {
            let run_end = at + run.len() as u64;
            if at >= end {
                break;
            }
            let (from, to) = (at.max(offset), run_end.min(end));
            let data = run.get(len_of(from - at)..len_of(to.max(from) - at));
            let data = data.unwrap_or_default();
            if from == offset && to == end {
                bytes = Cow::Borrowed(data);
            } else if !is_zero(data) {
                let bytes = bytes.to_mut();
                bytes.resize(len_of(end - offset), 0);
                let into = len_of(from - offset);
                bytes[into..into + data.len()].copy_from_slice(data);
            }
            if run_end > end {
                break;
            }
            runs.next();
        }
        if is_zero(&bytes) {
            bytes = Cow::Borrowed(&[]);
        }
        parts.push(Part {
            offset,
            len: end - offset,
            bytes,
            packed: None,
        });
        offset = end;
    }
    parts
}

/// Writes the reference counts of a file, with one block of them in memory.
struct Counts<'a> {
    file: &'a File,
    /// Where the consecutive blocks of counts begin.
    at: u64,
    block: u64,
    counts: Vec<u16>,
}

impl<'a> Counts<'a> {
    fn new(file: &'a File, at: u64) -> Self {
        Self {
            file,
            at,
            block: 0,
            counts: vec![0; len_of(COUNTS)],
        }
    }

    /// Counts a reference to each cluster that these bytes touch.
    fn add(&mut self, bytes: Range<u64>) -> io::Result<()> {
        for cluster in bytes.start / CLUSTER..bytes.end.div_ceil(CLUSTER) {
            if cluster / COUNTS != self.block {
                self.flush()?;
                self.load(cluster / COUNTS)?;
            }
            let count = self.counts.get_mut(len_of(cluster % COUNTS));
            let more = count.as_ref().and_then(|count| count.checked_add(1));
            if let (Some(count), Some(more)) = (count, more) {
                *count = more;
            } else {
                return Err(bug("a cluster is used too often"));
            }
        }
        Ok(())
    }

    fn load(&mut self, block: u64) -> io::Result<()> {
        let mut bytes = vec![0; len_of(CLUSTER)];
        self.file
            .read_exact_at(&mut bytes, self.at + block * CLUSTER)?;
        let (counts, _) = bytes.as_chunks::<2>();
        self.counts.clear();
        self.counts
            .extend(counts.iter().map(|count| u16::from_be_bytes(*count)));
        self.block = block;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let counts = self.counts.iter();
        let bytes: Vec<u8> = counts.flat_map(|count| count.to_be_bytes()).collect();
        self.file
            .write_all_at(&bytes, self.at + self.block * CLUSTER)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{ClusterPacking, ImageTarget, TargetFormat};
    use super::*;
    use crate::{Image, ImageOptions};

    const REACH: u64 = super::REACH;

    #[test]
    fn a_compressed_cluster_entry_covers_whole_sectors() {
        assert_eq!(place_of(0), 0..0);
        assert_eq!(place_of((3 * CLUSTER) | COPIED), 3 * CLUSTER..4 * CLUSTER);
        for (at, len, end) in [
            (65_536, 1, 66_048),
            (65_536, 512, 66_048),
            (65_536, 513, 66_560),
            (66_047, 1, 66_048),
            (66_047, 2, 66_560),
            (100_000, 65_535, 165_888),
        ] {
            assert_eq!(place_of(packed_entry(at, len)), at..end, "{at} {len}");
        }
    }

    #[test]
    fn parts_are_clusters_with_their_bytes() {
        let data = [7; 200_000];
        let runs = [(70_000, &data[..10]), (70_100, &data[..100_000])];
        let parts = parts(&(1000..300_000), runs.into_iter());
        let found: Vec<_> = parts
            .iter()
            .map(|part| {
                (
                    part.offset,
                    part.len,
                    part.bytes.iter().filter(|b| **b == 7).count(),
                )
            })
            .collect();
        let expected = [
            (1000, 64_536, 0),
            (65_536, 65_536, 10 + 131_072 - 70_100),
            (131_072, 65_536, 170_100 - 131_072),
            (196_608, 65_536, 0),
            (262_144, 37_856, 0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn too_large_a_disk_is_refused() {
        let most = L1_BYTES_MAX / 8 * REACH;
        assert!(Qcow2File::holds(most));
        assert!(!Qcow2File::holds(most + 1));
        assert!(!Qcow2File::holds(u64::MAX));
    }

    fn open(path: &Path) -> Image {
        Image::open(path, &ImageOptions::default()).unwrap()
    }

    /// What is written: where, and the byte it consists of.
    type Write = (Range<u64>, Vec<(Range<u64>, u8)>);

    fn put(target: &ImageTarget, content: &mut [u8], (range, runs): &Write) {
        let runs: Vec<_> = runs
            .iter()
            .map(|(run, byte)| {
                // Not all bytes are equal, so that a displacement is detected.
                let bytes: Vec<u8> = run.clone().map(|at| byte ^ (at >> 9) as u8).collect();
                (run.start, bytes)
            })
            .collect();
        content[len_of(range.start)..len_of(range.end)].fill(0);
        for (at, bytes) in &runs {
            content[len_of(*at)..len_of(*at) + bytes.len()].copy_from_slice(bytes);
        }
        let runs = runs.iter().map(|(at, bytes)| (*at, &bytes[..]));
        target.put_all(range.clone(), runs).unwrap();
    }

    fn writes(size: u64, chunk: u64, cuts: &[u64], order: u64) -> Vec<Write> {
        let mut writes: Vec<Write> = (0..size.div_ceil(chunk))
            .map(|i| {
                let range = i * chunk..((i + 1) * chunk).min(size);
                let runs = cuts
                    .chunks_exact(2)
                    .map(|cut| cut[0].max(range.start)..cut[1].min(range.end))
                    .filter(|run| run.start < run.end)
                    .map(|run| {
                        let byte = (run.start % 251) as u8;
                        (run, byte)
                    })
                    .collect();
                (range, runs)
            })
            .collect();
        fastrand::Rng::with_seed(order).shuffle(&mut writes);
        writes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn clusters_written_in_any_order_over_two_runs_read_back(
            size in 1_u64..1_500_000,
            chunk in 5000_u64..400_000,
            cuts in proptest::collection::btree_set(0_u64..1_500_000, 0..14),
            order in any::<u64>(),
            settled in 0_usize..40,
            torn in 0_usize..40,
            cut_off in 0_u64..300_000,
            packing in 0..3,
        ) {
            let format = TargetFormat::Qcow2(
                [None, Some(ClusterPacking::Zlib), Some(ClusterPacking::Zstd)][packing as usize],
            );
            let chunk = chunk.next_multiple_of(format.chunk_multiple());
            let cuts: Vec<u64> = cuts.into_iter().map(|cut| cut.min(size)).collect();
            let writes = writes(size, chunk, &cuts, order);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let mut content = vec![0; len_of(size)];
            let target = ImageTarget::create(&path, size, false, format).unwrap();
            let settled = settled.min(writes.len());
            let (first, rest) = writes.split_at(settled);
            for write in first {
                put(&target, &mut content, write);
            }
            // Only half of what is not settled was written when the first run ends.
            let safe = target.handle().unwrap().metadata().unwrap().len();
            for write in rest.iter().take(torn) {
                put(&target, &mut content, write);
            }
            let file = target.handle().unwrap();
            let len = file.metadata().unwrap().len();
            file.set_len(len.saturating_sub(cut_off).max(safe)).unwrap();
            drop((file, target));
            let target = ImageTarget::resume(&path, size, false, format).unwrap().unwrap();
            // Different bytes this time, so that old ones are detected.
            for (range, runs) in rest {
                let runs = runs.iter().filter(|(run, _)| run.start % 3 > 0);
                let runs = runs.map(|(run, byte)| (run.clone(), byte ^ 0x55)).collect();
                put(&target, &mut content, &(range.clone(), runs));
            }
            target.complete().unwrap();
            // Completing twice is harmless: a run may end before the file gets its name.
            target.complete().unwrap();
            target.publish(false).unwrap();
            prop_assert!(ImageTarget::published(&path, size, format).unwrap().is_some());
            let image = open(&path);
            let disk = image.disk().unwrap();
            prop_assert_eq!(disk.size(), format.size_of(size));
            let mut read = vec![1; len_of(disk.size())];
            disk.read_at(&mut read, 0).unwrap();
            content.resize(read.len(), 0);
            let wrong = read.iter().zip(&content).position(|(a, b)| a != b);
            prop_assert_eq!(wrong, None);
        }
    }

    #[test]
    fn zeros_take_no_cluster_and_each_table_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let size = 1 << 40;
        let target = ImageTarget::create(&path, size, false, TargetFormat::Qcow2(None)).unwrap();
        target.put_zeros(0, size).unwrap();
        let data = [9; 100];
        for at in [REACH - 50, 700 * REACH, size - 100, 700 * REACH + 100] {
            let run = std::iter::once((at, &data[..]));
            target.put_all(at - 20..(at + 200).min(size), run).unwrap();
        }
        target.complete().unwrap();
        target.publish(false).unwrap();
        let clusters = path.metadata().unwrap().len() / CLUSTER;
        // The header, the first-level table, four second-level tables, four clusters of data, the
        // table of counts and a block of counts.
        assert_eq!(clusters, 12);
        let image = open(&path);
        let disk = image.disk().unwrap();
        let mut read = [0; 120];
        disk.read_at(&mut read, REACH - 60).unwrap();
        assert_eq!(read, *[&[0; 10][..], &data, &[0; 10]].concat());
        disk.read_at(&mut read, size - 120).unwrap();
        assert_eq!(read, *[&[0; 20][..], &data].concat());
    }

    #[test]
    fn a_qcow2_of_another_run_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let zstd = TargetFormat::Qcow2(Some(ClusterPacking::Zstd));
        let plain = TargetFormat::Qcow2(None);
        drop(ImageTarget::create(&path, 1 << 20, false, zstd).unwrap());
        let resume = |size, format| ImageTarget::resume(&path, size, false, format);
        assert!(resume(1 << 20, zstd).unwrap().is_some());
        let len = dir.path().join("out.oh-part").metadata().unwrap().len();
        for (size, format) in [
            (1 << 21, zstd),
            (1 << 20, plain),
            (1 << 20, TargetFormat::Raw),
        ] {
            let error = resume(size, format).unwrap_err();
            assert!(
                error.chain().contains("is not what the earlier run left"),
                "{len}"
            );
        }
    }

    #[test]
    fn an_entry_that_points_to_no_cluster_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let size = 4 * REACH;
        let made = Qcow2File::create(file.try_clone().unwrap(), size, None).unwrap();
        made.put(0..5, std::iter::once((0, &b"hello"[..]))).unwrap();
        let far = file.metadata().unwrap().len().next_multiple_of(CLUSTER);
        // In its table: an entry beyond the end, and one within a cluster. In the first-level
        // table: a table beyond the end, and one at the header.
        let table = first_cluster(size);
        write_entries(&file, table + 8, &[far | COPIED, 512, !COMPRESSED]).unwrap();
        write_entries(&file, CLUSTER + 8, &[far, 1 << 55, CLUSTER]).unwrap();
        let resumed = Qcow2File::resume(file.try_clone().unwrap(), size, None)
            .unwrap()
            .unwrap();
        let map = resumed.map().unwrap();
        assert_eq!(map.l1, [table | COPIED, 0, 0, 0]);
        assert_eq!(map.next, table + 2 * CLUSTER);
        let entries = read_entries(&file, table, 4).unwrap();
        assert_eq!(entries, [(table + CLUSTER) | COPIED, 0, 0, 0]);
    }
}
