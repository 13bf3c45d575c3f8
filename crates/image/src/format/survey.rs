//! Walks the whole map of a file once before anything of the file is used, so that a truncated or
//! damaged file is reported before a drive is created. Only tables are read.

use std::collections::HashMap;

use super::{Grid, Layout, Place, checked_unit};
use crate::error::Result;

/// Cells of one page of [`UsedCells`].
const PAGE_CELLS: u64 = 4096;
/// Maximum pages of [`UsedCells`]: 64 MiB of bits. With cells of 64 KiB this covers a file of 32 TiB;
/// in a larger file, only the beginning is checked for overlaps.
const PAGES_MAX: usize = (64 << 20) / (PAGE_CELLS as usize / 8);

/// The cells of a file in which something begins.
struct UsedCells {
    unit: u64,
    base: u64,
    pages: HashMap<u64, Box<[u64; (PAGE_CELLS / 64) as usize]>>,
}

impl UsedCells {
    fn new(unit: u64, base: u64) -> Self {
        let unit = unit.max(1);
        Self {
            unit,
            base: base % unit,
            pages: HashMap::new(),
        }
    }

    /// Marks what begins at `at` and every unit from there, `len` bytes in total. The error is the
    /// first cell that was marked before.
    fn mark_used(&mut self, at: u64, len: u64) -> Result<(), u64> {
        // Numbers start one unit early, so that what is before the first cell has a number as well.
        let first = (at - at.min(self.base)) / self.unit + u64::from(at >= self.base);
        for cell in first..first.saturating_add(len.div_ceil(self.unit)) {
            let (page, bit) = (cell / PAGE_CELLS, cell % PAGE_CELLS);
            if !self.pages.contains_key(&page) && self.pages.len() >= PAGES_MAX {
                return Ok(());
            }
            let bits = self.pages.entry(page).or_insert_with(|| Box::new([0; _]));
            let word = &mut bits[usize::try_from(bit / 64).unwrap_or(0)];
            let mask = 1 << (bit % 64);
            if *word & mask != 0 {
                return Err(at.saturating_add((cell - first).saturating_mul(self.unit)));
            }
            *word |= mask;
        }
        Ok(())
    }
}

/// Walks the whole map.
///
/// # Errors
/// [`ErrorKind::Image`](crate::ErrorKind::Image) if the map refers beyond the end of the file, or
/// uses one place in the file for two parts of the disk.
pub(crate) fn survey(layout: &dyn Layout) -> Result<()> {
    let container = layout.container();
    let twice =
        |what: &str, at: u64| container.damaged(&format!("{what} at byte {at} is used twice"));
    let Grid {
        unit,
        base,
        table: table_bytes,
        header,
        has_tables_in_it,
    } = layout.grid();
    let mut units = UsedCells::new(unit, base);
    let mut tables = UsedCells::new(table_bytes, 0);
    for (start, end) in header {
        units
            .mark_used(start, end - start)
            .map_err(|at| twice("its header", at))?;
    }
    let (mut offset, mut table, mut stored) = (0, None, 0_u64);
    while offset < layout.size() {
        let run = checked_unit(layout, offset)?;
        if run.table.is_some() && run.table != table {
            table = run.table;
            let at = table.unwrap_or(0);
            let used = match has_tables_in_it {
                true => &mut units,
                false => &mut tables,
            };
            used.mark_used(at, table_bytes)
                .map_err(|at| twice("a table", at))?;
        }
        if let Place::File(at) = run.place {
            let len = run.end - offset;
            units.mark_used(at, len).map_err(|at| twice("data", at))?;
            stored = stored.saturating_add(len);
            // This holds even for places that the grid does not describe: the file cannot store
            // more than its own size.
            if stored > container.file.size() {
                return Err(twice("data", at));
            }
        }
        offset = run.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_in_one_cell_overlap() {
        let mut used = UsedCells::new(100, 30);
        used.mark_used(30, 100).unwrap();
        used.mark_used(130, 250).unwrap();
        assert_eq!(used.mark_used(230, 1), Err(230));
        // Before the first cell, and directly after the last.
        used.mark_used(29, 1).unwrap();
        assert_eq!(used.mark_used(0, 1), Err(0));
        used.mark_used(430, 100).unwrap();
        assert_eq!(used.mark_used(0, 0), Ok(()));
        assert_eq!(used.mark_used(529, 1), Err(529));
    }

    #[test]
    fn the_number_of_used_parts_is_bounded() {
        let mut used = UsedCells::new(1, 0);
        for page in 0..PAGES_MAX as u64 + 10 {
            used.mark_used(page * PAGE_CELLS, 1).unwrap();
        }
        assert_eq!(used.pages.len(), PAGES_MAX);
        assert!(used.mark_used(0, 1).is_err());
    }
}
