//! Sparse files: zeros are stored as holes where the file system supports it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use openhosting_filesystem::put_zeros;

/// Zeros are recognised in blocks of this size: a page, and the block of most file systems.
const BLOCK_BYTES: usize = 4096;
/// Shorter holes are not reported, because skipping one costs the client an additional request.
const HOLE_BYTES_MIN: u64 = 64 * 1024;
/// Maximum extents of one answer, about 25 bytes each: 100 KB. The answer says where it ends, and
/// the client asks for the rest.
const EXTENTS_MAX: usize = 4096;
/// Maximum queries of the file system for one answer, a microsecond each: a file may have many
/// holes that are not reported.
const LOOKS_MAX: usize = 32 * 1024;
/// Maximum queries in one step.
const LOOKS_OF_STEP: usize = 256;

/// Places to read in a hole that the file system reports, a microsecond each.
const PLACES_OF_HOLE: u64 = 6;
/// A longer range is punched without checking whether it already is a hole.
const LOOKED_AT_BYTES_MAX: u64 = 1 << 20;

/// Writes `data` at `offset`. Runs of zeros become holes, in blocks of 4 KiB of the file. Old bytes
/// are never visible again.
pub(super) fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    let mut start = 0;
    while start < data.len() {
        let (end, is_zero) = run_end(data, start, offset);
        let at = offset + start as u64;
        if is_zero {
            zero_at(file, at, (end - start) as u64)?;
        } else {
            file.write_all_at(&data[start..end], at)?;
        }
        start = end;
    }
    Ok(())
}

/// The end of the run of blocks of the same kind that begins at `start`, and whether it is zeros.
fn run_end(data: &[u8], start: usize, offset: u64) -> (usize, bool) {
    let first = block_end(data, start, offset);
    let is_zero = all_zero(&data[start..first]);
    let mut end = first;
    while end < data.len() {
        let next = block_end(data, end, offset);
        if all_zero(&data[end..next]) != is_zero {
            break;
        }
        end = next;
    }
    (end, is_zero)
}

/// The end of the block (of the file, not of `data`) that contains `start`.
fn block_end(data: &[u8], start: usize, offset: u64) -> usize {
    let into_block = ((offset + start as u64) % BLOCK_BYTES as u64) as usize;
    data.len().min(start + BLOCK_BYTES - into_block)
}

/// Whether all bytes are zero. Combining words without an early exit compiles to vector code; the
/// first check avoids most of that work for real data.
pub(super) fn all_zero(block: &[u8]) -> bool {
    if block.first().is_some_and(|&b| b != 0) {
        return false;
    }
    let (lines, rest) = block.as_chunks::<64>();
    lines
        .iter()
        .all(|line| line.iter().fold(0, |or, &b| or | b) == 0)
        && rest.iter().all(|&b| b == 0)
}

/// Makes `len` bytes (not 0) at `offset` read as zeros, with a hole if possible.
pub(super) fn zero_at(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match is_hole(file, offset, len) {
        true => Ok(()),
        false => put_zeros(file, offset, len),
    }
}

/// Whether the range is a hole and reads as zeros. The report of the file system is not enough,
/// because old bytes would be visible again if it is wrong.
fn is_hole(file: &File, offset: u64, len: u64) -> bool {
    let end = offset + len;
    len <= LOOKED_AT_BYTES_MAX
        && reported_data(file, offset, end) == end
        && reads_as_zeros(file, offset, len)
}

/// The first data at or after `offset`, up to `end`. If the file system does not report it, or
/// reports a hole that contains data, the result is `offset`: file systems have reported holes
/// where data had just been written.
pub(super) fn next_data(file: &File, offset: u64, end: u64) -> u64 {
    let data = reported_data(file, offset, end);
    match is_likely_a_hole(file, offset..data) {
        true => data,
        false => offset,
    }
}

fn reported_data(file: &File, offset: u64, end: u64) -> u64 {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data.clamp(offset, end),
        // There is no more data up to the end of the file.
        Err(Errno::NXIO) => end,
        Err(_) => offset,
    }
}

/// Whether a sample of these bytes is zeros: both ends, and places in between.
fn is_likely_a_hole(file: &File, hole: Range<u64>) -> bool {
    let (len, block) = (hole.end - hole.start, BLOCK_BYTES as u64);
    if len <= 2 * block {
        return reads_as_zeros(file, hole.start, len);
    }
    let last = hole.end - block;
    let between = (0..PLACES_OF_HOLE.min(len / HOLE_BYTES_MIN))
        .map(|_| fastrand::u64(hole.start..=last) / block * block);
    [hole.start, last]
        .into_iter()
        .chain(between)
        .all(|at| reads_as_zeros(file, at.max(hole.start), block))
}

/// Whether these bytes are zeros; `false` if they cannot be read.
fn reads_as_zeros(file: &File, offset: u64, len: u64) -> bool {
    let mut bytes = [0; 4 * BLOCK_BYTES];
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let step = (end - at).min(bytes.len() as u64);
        let step = &mut bytes[..step as usize];
        if file.read_exact_at(step, at).is_err() || !all_zero(step) {
            return false;
        }
        at += step.len() as u64;
    }
    true
}

/// A walk over the data in a range of a file, step by step. It ends at the end of the range, or
/// when the answer is long enough. Reported data may be zeros, but holes are always zeros.
#[derive(Debug)]
pub(super) struct Extents {
    data: Vec<Range<u64>>,
    at: u64,
    end: u64,
    looks: usize,
}

impl Extents {
    pub(super) fn new(range: Range<u64>) -> Self {
        Self {
            data: Vec::new(),
            at: range.start,
            end: range.end,
            looks: 0,
        }
    }

    /// Works for about a millisecond. At the end, returns the data and the end of what was
    /// examined: at least a block, unless the range is empty.
    pub(super) fn step(&mut self, file: &File) -> Option<(Vec<Range<u64>>, u64)> {
        for _ in 0..LOOKS_OF_STEP {
            if self.looks == LOOKS_MAX || !self.look(file) {
                return Some((std::mem::take(&mut self.data), self.at));
            }
            self.looks += 1;
        }
        None
    }

    /// Finds the next extent; returns `false` at the end.
    fn look(&mut self, file: &File) -> bool {
        self.at = next_data(file, self.at, self.end);
        if self.at >= self.end {
            return false;
        }
        let end = next_hole(file, self.at, self.end);
        let is_full = self.data.len() == EXTENTS_MAX;
        match self.data.last_mut() {
            Some(last) if self.at - last.end < HOLE_BYTES_MIN => last.end = end,
            _ if is_full => return false,
            _ => self.data.push(self.at..end),
        }
        self.at = end;
        true
    }
}

/// The end of the data at `offset`, at most `end`. If the file system now reports a hole there,
/// everything counts as data.
pub(super) fn next_hole(file: &File, offset: u64, end: u64) -> u64 {
    match seek(file, SeekFrom::Hole(offset)) {
        Ok(hole) if hole > offset => hole.min(end),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn data_extents(file: &File, range: Range<u64>) -> (Vec<Range<u64>>, u64) {
        let mut extents = Extents::new(range);
        loop {
            if let Some(found) = extents.step(file) {
                return found;
            }
        }
    }

    fn read(file: &File) -> Vec<u8> {
        let mut all = vec![1; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn random_writes_equal_a_plain_buffer() {
        let file = tempfile::tempfile().unwrap();
        let len = 64 * 1024;
        file.set_len(len as u64).unwrap();
        let mut model = vec![0u8; len];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..400 {
            let start = random.usize(..len);
            let end = start + random.usize(..=(len - start).min(20_000));
            let mut data = vec![0u8; end - start];
            for block in data.chunks_mut(random.usize(1..6000)) {
                if random.bool() {
                    block.fill(random.u8(..));
                }
            }
            write_at(&file, &data, start as u64).unwrap();
            model[start..end].copy_from_slice(&data);
            assert!(read(&file) == model);
        }
    }

    #[test]
    fn zeros_written_over_data_become_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        write_at(&file, &[7; 1 << 20], 0).unwrap();
        let full = file.metadata().unwrap().blocks();
        write_at(&file, &vec![0; (1 << 20) - 100], 50).unwrap();
        let all = read(&file);
        assert!(all[..50].iter().all(|&b| b == 7));
        assert!(all[50..(1 << 20) - 50].iter().all(|&b| b == 0));
        assert!(all[(1 << 20) - 50..].iter().all(|&b| b == 7));
        // Not every file system has holes; without them, there is nothing to check.
        assert!(file.metadata().unwrap().blocks() <= full);
    }

    #[test]
    fn ranges_without_data_are_zero() {
        let file = tempfile::tempfile().unwrap();
        let len = 4 << 20;
        file.set_len(len).unwrap();
        let mut random = fastrand::Rng::with_seed(8);
        for round in 0..200 {
            let at = random.u64(..len - 5000);
            let bytes = vec![1 + random.u8(..200); random.usize(1..5000)];
            file.write_all_at(&bytes, at).unwrap();
            if round % 3 == 0 {
                zero_at(&file, random.u64(..len - (1 << 19)), 1 << 19).unwrap();
            }
            let all = read(&file);
            let start = random.u64(..len);
            let range = start..random.u64(start..=len);
            let (data, end) = data_extents(&file, range.clone());
            assert_eq!(end, range.end);
            let mut reached = range.start;
            for extent in data {
                // Reported holes are long, except the first and the last.
                let is_long = extent.start - reached >= HOLE_BYTES_MIN;
                assert!(is_long || reached == range.start, "{extent:?}");
                assert!(all_zero(&all[reached as usize..extent.start as usize]));
                assert!(extent.start < extent.end && extent.end <= end);
                reached = extent.end;
            }
            assert!(all_zero(&all[reached as usize..end as usize]));
        }
    }

    #[test]
    fn an_answer_about_extents_is_bounded() {
        let file = tempfile::tempfile().unwrap();
        let places = EXTENTS_MAX as u64 + 10;
        let size = places * 3 * HOLE_BYTES_MIN;
        file.set_len(size).unwrap();
        for i in 0..places {
            file.write_all_at(b"x", i * 3 * HOLE_BYTES_MIN).unwrap();
        }
        let (data, end) = data_extents(&file, 0..size);
        assert_eq!(data.len(), EXTENTS_MAX);
        assert_eq!(end, EXTENTS_MAX as u64 * 3 * HOLE_BYTES_MIN);
        let (rest, end) = data_extents(&file, end..size);
        assert_eq!((rest.len(), end), (10, size));
    }

    #[test]
    fn zeros_are_distinguished_from_data() {
        assert!(all_zero(&[]));
        for len in [1, 63, 64, 65, 4096] {
            let mut block = vec![0; len];
            assert!(all_zero(&block));
            for at in [0, len / 2, len - 1] {
                block[at] = 1;
                assert!(!all_zero(&block), "{len} {at}");
                block[at] = 0;
            }
        }
    }
}
