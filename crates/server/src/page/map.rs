//! Where a drive holds data, in a few hundred digits for the page.

use super::super::hosted::Hosted;
use super::super::sparse::Extents;

/// Number of parts in a map: a choice that fits the width of a page.
const CELLS: u64 = 256;
/// Maximum queries for 4096 extents of a file for one map. Of a file with more extents, only the
/// beginning is shown.
const LOOKS: usize = 8;

/// A map in progress.
pub(super) struct Map {
    size: u64,
    cell_bytes: u64,
    /// Bytes of data in each cell.
    data: Vec<u64>,
    extents: Extents,
    /// Number of queries so far.
    looks: usize,
}

impl Map {
    pub(super) fn new(drive: &Hosted) -> Self {
        let size = drive.size();
        let cell_bytes = size.div_ceil(CELLS).max(1);
        Self {
            size,
            cell_bytes,
            data: vec![0; size.div_ceil(cell_bytes) as usize],
            extents: Extents::new(0..size),
            looks: 0,
        }
    }

    /// Works for a moment; returns the digits at the end.
    pub(super) fn step(&mut self, drive: &Hosted) -> Option<String> {
        let (extents, at) = self.extents.step(&drive.file)?;
        for extent in extents {
            let mut start = extent.start;
            while start < extent.end {
                let cell = start / self.cell_bytes;
                let end = extent.end.min((cell + 1) * self.cell_bytes);
                self.data[cell as usize] += end - start;
                start = end;
            }
        }
        self.looks += 1;
        if at < self.size && self.looks < LOOKS {
            self.extents = Extents::new(at..self.size);
            return None;
        }
        Some(self.digits(at))
    }

    fn digits(&self, at: u64) -> String {
        let digit = |(i, &bytes): (usize, &u64)| {
            let start = i as u64 * self.cell_bytes;
            let len = self.cell_bytes.min(self.size - start);
            match start + len > at {
                true => '?',
                // Rounded up, so that little data is visible too.
                false => char::from(b'0' + (bytes as f64 * 9.0 / len as f64).ceil().min(9.0) as u8),
            }
        };
        self.data.iter().enumerate().map(digit).collect()
    }
}
