//! Numbers in headers and tables, and tables of any length that are read in pages.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use super::Container;
use crate::error::Result;
use crate::number;

/// Bytes of a page, and its alignment: the usual size of one table.
const PAGE_BYTES: u64 = 64 * 1024;
/// Maximum pages in memory for one file: 2 MiB.
const PAGES_MAX: usize = 32;

/// The big-endian number at `at`; 0 beyond the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    number::be32(bytes, at).unwrap_or(0)
}

/// See [`be32`].
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    number::be64(bytes, at).unwrap_or(0)
}

/// The little-endian number at `at`; 0 beyond the end.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    number::le16(bytes, at).unwrap_or(0)
}

/// See [`le16`].
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    number::le32(bytes, at).unwrap_or(0)
}

/// See [`le16`].
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    number::le64(bytes, at).unwrap_or(0)
}

/// A cache of the tables of one file. Pages are read when needed, and the most recently used pages
/// stay in memory, whatever the length of the tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// The most recently used page is the last.
    pages: Mutex<Vec<(u64, Arc<[u8]>)>>,
}

/// Bytes of a table, from the requested entry to the end of its page or of the file.
#[derive(Debug)]
pub(super) struct Entries {
    page: Arc<[u8]>,
    from: usize,
}

impl Tables {
    /// The entries from `at` on. `entry` is the size of an entry, a power of two, and `at` is a
    /// multiple of it. Returns at least one entry.
    pub(super) fn entries(&self, container: &Container, at: u64, entry: u64) -> Result<Entries> {
        container.within("a table", at, entry)?;
        let number = at / PAGE_BYTES;
        let from = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
        if let Some(page) = self.cached(number) {
            return Ok(Entries { page, from });
        }
        let start = number * PAGE_BYTES;
        let len = PAGE_BYTES.min(container.file.size() - start);
        let page: Arc<[u8]> = container.bytes("a table", start, len)?.into();
        if let Ok(mut pages) = self.pages.lock() {
            if pages.len() == PAGES_MAX {
                pages.remove(0);
            }
            pages.push((number, Arc::clone(&page)));
        }
        Ok(Entries { page, from })
    }

    fn cached(&self, number: u64) -> Option<Arc<[u8]>> {
        let mut pages = self.pages.lock().ok()?;
        let at = pages.iter().rposition(|(kept, _)| *kept == number)?;
        pages[at..].rotate_left(1);
        pages.last().map(|(_, page)| Arc::clone(page))
    }
}

impl Deref for Entries {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.page[self.from..]
    }
}

impl Entries {
    /// The number of entries of `entry` bytes.
    pub(super) fn count(&self, entry: u64) -> u64 {
        self.len() as u64 / entry
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;
    use crate::RawImage;

    #[test]
    fn pages_are_read_once_and_few_stay_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = (PAGES_MAX as u64 + 10) * PAGE_BYTES + 12;
        let bytes: Vec<u8> = (0..size / 4)
            .flat_map(|i| u32::to_le_bytes(i as u32))
            .collect();
        std::fs::write(file.path(), bytes).unwrap();
        let container = Container {
            file: RawImage::open(file.path()).unwrap(),
            format: Format::Vdi,
        };
        let tables = Tables::default();
        let entry = |at| {
            let entries = tables.entries(&container, at, 4)?;
            Ok::<_, crate::Error>((le32(&entries, 0), entries.count(4)))
        };
        for at in (0..size).step_by(PAGE_BYTES as usize) {
            assert_eq!(entry(at).unwrap().0, (at / 4) as u32);
        }
        assert_eq!(tables.pages.lock().unwrap().len(), PAGES_MAX);
        // Up to the end of the page, and of the file.
        assert_eq!(entry(PAGE_BYTES + 8).unwrap(), (16386, 16382));
        assert_eq!(entry(size - 4).unwrap().1, 1);
        assert!(entry(size).is_err());
        assert!(entry(u64::MAX - 1).is_err());
        // Cached pages are not read again: the file is empty now.
        std::fs::write(file.path(), b"").unwrap();
        assert_eq!(entry(PAGE_BYTES).unwrap().0, 16384);
        assert!(entry(5 * PAGE_BYTES).is_err());
    }
}
