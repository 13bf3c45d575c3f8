//! Where a file holds data, as its file system reports it, and how far that report is believed.
//!
//! Some file systems have reported holes where there was data: OpenZFS for files that were just
//! written, APFS, and network file systems. Holes are neither sent nor hashed, so a wrong report
//! produces a wrong drive. Therefore one walk over the file, before anything of it is used, decides
//! for the whole run: either the report is believed, or the whole file counts as data.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::str::FromStr;
use std::sync::OnceLock;

use openhosting_system::{FileAt, NextData, allocated_bytes, next_data, next_hole};

use crate::chunk::is_zero;
use crate::error::{Error, ErrorKind};
use crate::filesystem::sync_data;

/// Maximum extents of data to remember, 16 bytes each. In a file with more extents, the shortest
/// holes are read as data.
const EXTENTS_MAX: usize = 1 << 20;
/// Bytes to read at each sampled place: a page, the smallest unit that a file system can make a
/// hole.
const PLACE_BYTES: u64 = 4096;
/// At least one place is sampled in every stretch of this length within a hole, unless that would
/// be too many places.
const STRETCH_BYTES_MIN: u64 = 64 * 1024;
/// Minimum places for every hole that is long enough. Reading a place takes a microsecond, sending
/// the data beside the hole takes hundreds of them.
const PLACES_OF_HOLE: u64 = 4;
/// Places for all holes of a file together, distributed by length; this takes milliseconds.
const PLACES: u64 = 1 << 12;
/// Places for all holes of a file that occupies more space than its data: its holes may be
/// preallocated space, or data that is not reported. Holes of up to 64 GiB are sampled every 64
/// KiB, which takes a second or two.
const PLACES_IF_DOUBTFUL: u64 = 1 << 20;
/// Bytes of space that the file system may need for a file itself: in total, and for each extent.
const OVERHEAD_BYTES: u64 = 64 * 1024;
const OVERHEAD_BYTES_OF_EXTENT: u64 = 64;

/// How far the holes that a file system reports are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holes {
    /// Believe the report without a check.
    Trust,
    /// Read a sample of every hole. If it finds data, or the file occupies space but no data is
    /// reported, read everything.
    #[default]
    Sample,
    /// Read everything.
    Read,
}

impl FromStr for Holes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "trust" => Ok(Self::Trust),
            "sample" => Ok(Self::Sample),
            "read" => Ok(Self::Read),
            _ => {
                let what = format!("{text:?} is not trust, sample or read");
                Err(Error::new(ErrorKind::Usage, what))
            }
        }
    }
}

impl fmt::Display for Holes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "trust",
            Self::Sample => "sample",
            Self::Read => "read",
        })
    }
}

/// A hole that a file system reported and that holds data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FalseHole {
    /// The file's name, safe to print.
    pub file: String,
    /// Offset of a place that is not zeros.
    pub offset: u64,
}

impl fmt::Display for FalseHole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset } = self;
        write!(
            f,
            "The file system reports a hole in {file} at byte {offset}, where there is data: all of the file is read"
        )
    }
}

/// What is known about the holes of one file. It is decided once, when it is first needed.
#[derive(Debug, Default)]
pub(super) struct HoleMap {
    how: OnceLock<Holes>,
    known: OnceLock<Known>,
}

#[derive(Debug)]
struct Known {
    /// Extents of data in order, in bytes of the file. `None` if the whole file counts as data.
    data: Option<Vec<Range<u64>>>,
    /// A place with data in a reported hole.
    false_hole: Option<u64>,
}

impl Known {
    fn all_is_data(false_hole: Option<u64>) -> Self {
        Self {
            data: None,
            false_hole,
        }
    }
}

impl HoleMap {
    /// Decides, for a file of `size` bytes; only the first call has an effect. Returns a place with
    /// data in a reported hole, if one was found. Blocks.
    pub(super) fn decide(&self, file: &File, size: u64, how: Holes) -> Option<u64> {
        let how = *self.how.get_or_init(|| how);
        self.known(file, size, how).false_hole
    }

    fn known(&self, file: &File, size: u64, how: Holes) -> &Known {
        self.known.get_or_init(|| look(file, size, how))
    }

    /// The first extent of data that ends after `offset`, or the rest of it, in a file of `size`
    /// bytes; `None` if there is none.
    pub(super) fn data_after(&self, file: &File, size: u64, offset: u64) -> Option<Range<u64>> {
        let how = *self.how.get_or_init(Holes::default);
        match &self.known(file, size, how).data {
            None => (offset < size).then_some(offset..size),
            Some(data) => {
                let next = data.partition_point(|extent| extent.end <= offset);
                let extent = data.get(next)?;
                Some(extent.start.max(offset)..extent.end)
            }
        }
    }
}

fn look(file: &File, size: u64, how: Holes) -> Known {
    if how == Holes::Read {
        return Known::all_is_data(None);
    }
    let Some(data) = walk(file, size) else {
        return Known::all_is_data(None);
    };
    if holes(&data, size).next().is_none() {
        return Known::all_is_data(None);
    }
    // Some file systems report data as a hole until it is on the disk, so it is synced first. If
    // that fails, on a read-only file system for example, no data is waiting to be written.
    let _ = sync_data(file);
    let Some(data) = walk(file, size) else {
        return Known::all_is_data(None);
    };
    if how == Holes::Trust {
        return Known {
            data: Some(data),
            false_hole: None,
        };
    }
    let space = allocated_bytes(file).unwrap_or(u64::MAX);
    if data.is_empty() && space > 0 {
        return Known::all_is_data(None);
    }
    let places = match is_doubtful(&data, space) {
        true => PLACES_IF_DOUBTFUL,
        false => PLACES,
    };
    match sample(file, &data, size, places) {
        Some(at) => Known::all_is_data(Some(at)),
        None => Known {
            data: Some(data),
            false_hole: None,
        },
    }
}

/// Whether the file occupies more space than the reported data explains.
fn is_doubtful(data: &[Range<u64>], space: u64) -> bool {
    let reported: u64 = data.iter().map(|extent| extent.end - extent.start).sum();
    let overhead = OVERHEAD_BYTES + OVERHEAD_BYTES_OF_EXTENT * data.len() as u64;
    space > reported.saturating_add(overhead)
}

/// All extents of data in order; `None` if the file system cannot report them, or the report is
/// inconsistent.
fn walk(file: &File, size: u64) -> Option<Vec<Range<u64>>> {
    let mut data: Vec<Range<u64>> = Vec::new();
    // Holes of up to this length count as data.
    let mut short = 0;
    let mut at = 0;
    while at < size {
        let start = match next_data(file, at) {
            NextData::At(start) if start < at => return None,
            NextData::At(start) if start < size => start,
            // There is no more data.
            NextData::At(_) | NextData::Nowhere => break,
            NextData::Unknown => return None,
        };
        let end = match next_hole(file, start) {
            Some(end) if end > start => end.min(size),
            _ => size,
        };
        match data.last_mut() {
            Some(last) if start - last.end <= short => last.end = end,
            _ => data.push(start..end),
        }
        while data.len() >= EXTENTS_MAX {
            short = (2 * short).max(STRETCH_BYTES_MIN);
            join(&mut data, short);
        }
        at = end;
    }
    Some(data)
}

/// Joins extents with holes of at most `short` bytes between them.
fn join(data: &mut Vec<Range<u64>>, short: u64) {
    data.dedup_by(|next, last| {
        let is_near = next.start - last.end <= short;
        if is_near {
            last.end = next.end;
        }
        is_near
    });
}

/// The holes of a file of `size` bytes.
fn holes(data: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = std::iter::once(0).chain(data.iter().map(|extent| extent.end));
    let ends = data.iter().map(|extent| extent.start);
    let holes = starts.zip(ends.chain(std::iter::once(size)));
    holes
        .map(|(start, end)| start..end)
        .filter(|hole| !hole.is_empty())
}

/// Reads a sample of every hole: both ends, because a wrong report is most likely wrong at the
/// edges of data, and places in between. Returns one that is not zeros or cannot be read; in the
/// latter case the regular reader will report the error.
fn sample(file: &File, data: &[Range<u64>], size: u64, places: u64) -> Option<u64> {
    let all: u64 = holes(data, size).map(|hole| hole.end - hole.start).sum();
    let stretch = (all / places).max(STRETCH_BYTES_MIN);
    let mut rng = fastrand::Rng::new();
    let mut bytes = [0; PLACE_BYTES as usize];
    let mut is_data = |at: u64, hole: &Range<u64>| {
        let len = usize::try_from((hole.end - at).min(PLACE_BYTES)).unwrap_or(0);
        let bytes = &mut bytes[..len];
        let read = file.read_exact_at(bytes, at);
        read.is_err() || !is_zero(bytes)
    };
    for hole in holes(data, size) {
        let len = hole.end - hole.start;
        let ends = [
            hole.start,
            hole.end.saturating_sub(PLACE_BYTES).max(hole.start),
        ];
        let count = (len / STRETCH_BYTES_MIN)
            .min(PLACES_OF_HOLE)
            .max(len / stretch);
        let step = len / count.max(1);
        let within = (0..count).map(|i| {
            let at = hole.start + i * step + rng.u64(..step);
            (at / PLACE_BYTES * PLACE_BYTES).max(hole.start)
        });
        if let Some(at) = ends
            .into_iter()
            .chain(within)
            .find(|at| is_data(*at, &hole))
        {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    fn sparse(size: u64, writes: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in writes {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    /// All data, requested one extent after the other.
    fn found(map: &HoleMap, file: &File, size: u64) -> Vec<Range<u64>> {
        let (mut all, mut at) = (Vec::new(), 0);
        while let Some(data) = map.data_after(file, size, at) {
            assert!(at <= data.start && data.start < data.end && data.end <= size);
            at = data.end;
            all.push(data);
        }
        all
    }

    #[test]
    fn an_empty_terabyte_is_one_hole_unless_holes_are_read() {
        let size = 1 << 40;
        let file = sparse(size, &[]);
        for (how, expected) in [
            (Holes::Trust, None),
            (Holes::Sample, None),
            (Holes::Read, Some(0..size)),
        ] {
            let expected = Vec::from_iter(expected);
            let map = HoleMap::default();
            assert_eq!(map.decide(&file, size, how), None);
            assert_eq!(found(&map, &file, size), expected, "{how}");
            // Only the first decision has an effect.
            let _ = map.decide(&file, size, Holes::Read);
            assert_eq!(found(&map, &file, size), expected, "{how}");
        }
    }

    #[test]
    fn a_sample_of_a_hole_finds_data_at_likely_places() {
        // A report that omits all extents but the first.
        let size = 64 << 20;
        for (at, len) in [
            // The ends of the hole, and a place within it.
            (1 << 20, 1),
            (size - 1, 1),
            (20 << 20, 30 << 20),
        ] {
            let file = sparse(size, &[(0, &[7; 4096]), (at, &vec![7; len])]);
            let reported = std::slice::from_ref(&(0..1 << 20));
            let found = sample(&file, reported, size, PLACES);
            assert!(found.is_some(), "{at}");
        }
        let file = sparse(size, &[(0, &[7; 4096])]);
        let reported = std::slice::from_ref(&(0..1 << 20));
        assert_eq!(sample(&file, reported, size, PLACES), None);
        // Space that the report does not explain is sampled every 64 KiB.
        let file = sparse(size, &[(0, &[7; 4096]), (33 << 20, &[7; 200 << 10])]);
        let space = allocated_bytes(&file).unwrap();
        assert!(
            is_doubtful(std::slice::from_ref(&(0..4096)), space),
            "{space}"
        );
        let found = sample(&file, reported, size, PLACES_IF_DOUBTFUL);
        assert!(
            found.is_some_and(|at| (33 << 20..34 << 20).contains(&at)),
            "{found:?}"
        );
    }

    #[test]
    fn preallocated_space_is_read_unless_it_is_beside_data() {
        let size = 8 << 20;
        let file = sparse(size, &[]);
        fallocate(&file, FallocateFlags::empty(), 0, size).unwrap();
        let all = |file: &File| found(&HoleMap::default(), file, size);
        assert_eq!(
            all(&file),
            [Range {
                start: 0,
                end: size
            }]
        );
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        let data: u64 = all(&file).iter().map(|data| data.end - data.start).sum();
        assert!(data < size, "{data}");
    }

    #[test]
    fn short_holes_count_as_data_when_there_are_too_many() {
        let mut data = vec![0..10, 20..30, 40..50, 100..110];
        join(&mut data, 10);
        assert_eq!(data, [0..50, 100..110]);
        let holes: Vec<_> = holes(&data, 200).collect();
        assert_eq!(holes, [50..100, 110..200]);
        assert_eq!(super::holes(&[Range { start: 0, end: 5 }], 5).count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_data_is_reported_as_a_hole(
            size in 1_u64..400_000,
            writes in proptest::collection::vec((0_u64..400_000, 1_usize..60_000), 0..6),
        ) {
            let file = sparse(size, &[]);
            for (offset, len) in writes {
                let len = len.min(usize::try_from(size.saturating_sub(offset)).unwrap());
                file.write_all_at(&vec![7; len], offset).unwrap();
            }
            file.set_len(size).unwrap();
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let map = HoleMap::default();
            let mut at = 0;
            for data in found(&map, &file, size) {
                prop_assert!(is_zero(&bytes[at..data.start as usize]));
                at = data.end as usize;
            }
            prop_assert!(is_zero(&bytes[at..]));
        }
    }
}
