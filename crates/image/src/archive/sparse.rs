//! Members that are stored without their holes, as GNU tar does with `-S`: in its own format, or in
//! one of three versions of pax records.

use std::ops::Range;

use crate::pieces::{Pieces, Stretch};

/// Maximum entries of a map, which bounds its memory to 4 MiB.
const ENTRIES_MAX: usize = 1 << 18;

/// Where the data of a sparse member are in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    /// Size of the file in bytes.
    size: u64,
    /// Offset and length of each piece of data.
    data: Vec<(u64, u64)>,
}

/// What the headers of a member state about its map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// The file's name.
    pub(super) name: Option<String>,
    map: Option<Map>,
    size: Option<u64>,
    is_version_1: bool,
    /// The numbers of records of version 0, in their order.
    numbers: Vec<u64>,
    is_damaged: bool,
}

/// Parses a decimal number.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits)
        .ok()
        .filter(|_| is_plain)?
        .parse()
        .ok()
}

impl Records {
    /// Stores a record of an extended header.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"GNU.sparse.name" => self.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"GNU.sparse.major" => self.is_version_1 = value == b"1",
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => match number(value) {
                Some(size) => self.size = Some(size),
                None => self.is_damaged = true,
            },
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.take(value),
            b"GNU.sparse.map" if !value.is_empty() => {
                value
                    .split(|byte| *byte == b',')
                    .for_each(|value| self.take(value));
            }
            _ => {}
        }
    }

    fn take(&mut self, value: &[u8]) {
        match number(value).filter(|_| self.numbers.len() < 2 * ENTRIES_MAX) {
            Some(value) => self.numbers.push(value),
            None => self.is_damaged = true,
        }
    }

    /// Whether the map is stored at the beginning of the member's bytes.
    pub(super) fn is_before_data(&self) -> bool {
        self.is_version_1 && self.size.is_some()
    }

    /// The map, if the headers contain all of it; `None` if the member is not sparse.
    pub(super) fn map(&self) -> Result<Option<Map>, &'static str> {
        match (&self.map, self.size) {
            _ if self.is_damaged => Err("is not sound"),
            (Some(map), _) => Ok(Some(map.clone())),
            (None, None) if self.numbers.is_empty() => Ok(None),
            (None, None) => Err("comes without the size of the file"),
            (None, Some(size)) => Map::paired(size, &self.numbers).map(Some),
        }
    }

    /// The number of lines of a map whose first line is `first`.
    pub(super) fn lines(&self, first: &[u8]) -> Result<usize, &'static str> {
        let count = number(first).ok_or("is not sound")?;
        let count = usize::try_from(count).ok();
        let count = count.filter(|count| *count <= ENTRIES_MAX);
        Ok(1 + 2 * count.ok_or("is too long")?)
    }

    /// Parses the map at the beginning of the member's bytes.
    pub(super) fn parse(&self, text: &[u8]) -> Result<Map, &'static str> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let count = self.lines(lines.next().unwrap_or_default())? - 1;
        let numbers: Option<Vec<u64>> = lines.take(count).map(number).collect();
        match numbers.filter(|numbers| numbers.len() == count && !self.is_damaged) {
            Some(numbers) => Map::paired(self.size.unwrap_or(0), &numbers),
            None => Err("is not sound"),
        }
    }
}

impl From<Map> for Records {
    fn from(map: Map) -> Self {
        Self {
            map: Some(map),
            ..Self::default()
        }
    }
}

impl Map {
    /// A map of a file of `size` bytes, without any data so far.
    pub(super) fn of(size: u64) -> Self {
        Self {
            size,
            data: Vec::new(),
        }
    }

    fn paired(size: u64, numbers: &[u64]) -> Result<Self, &'static str> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        match rest {
            [] => Ok(Self {
                size,
                data: pairs.iter().map(|[offset, len]| (*offset, *len)).collect(),
            }),
            _ => Err("is not sound"),
        }
    }

    /// Adds entries of a header; those after the last one are empty.
    pub(super) fn add_gnu(&mut self, entries: &[tar::GnuSparseHeader]) -> Result<(), ()> {
        for entry in entries.iter().filter(|entry| !entry.is_empty()) {
            let (Ok(offset), Ok(len)) = (entry.offset(), entry.length()) else {
                return Err(());
            };
            if self.data.len() == ENTRIES_MAX {
                return Err(());
            }
            self.data.push((offset, len));
        }
        Ok(())
    }

    /// Where the bytes of the file are, if `stored` are its stored bytes. The error says why the
    /// map does not match them.
    pub(super) fn pieces(&self, stored: Range<u64>) -> Result<Pieces, &'static str> {
        let mut stretches = Vec::with_capacity(2 * self.data.len() + 1);
        let (mut offset, mut at) = (0_u64, stored.start);
        for (start, len) in &self.data {
            let hole = start.checked_sub(offset).ok_or("is not in order")?;
            let end = start.checked_add(*len);
            let end = end.filter(|end| *end <= self.size);
            offset = end.ok_or("leads beyond the end of the file")?;
            stretches.push(Stretch {
                at: None,
                len: hole,
            });
            stretches.push(Stretch {
                at: Some(at),
                len: *len,
            });
            at = at.saturating_add(*len);
        }
        stretches.push(Stretch {
            at: None,
            len: self.size - offset,
        });
        match at == stored.end {
            true => Ok(stretches.into_iter().collect()),
            false => Err("has another length than its data"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Records {
        let mut records = Records::default();
        for (key, value) in pairs {
            records.record(key.as_bytes(), value.as_bytes());
        }
        records
    }

    #[test]
    fn sparse_maps_of_every_version_are_read() {
        let expected = Map {
            size: 100,
            data: vec![(10, 5), (100, 0)],
        };
        let size = ("GNU.sparse.size", "100");
        for records in [
            &[
                size,
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "10"),
                ("GNU.sparse.numbytes", "5"),
                ("GNU.sparse.offset", "100"),
                ("GNU.sparse.numbytes", "0"),
            ][..],
            &[size, ("GNU.sparse.map", "10,5,100,0")],
        ] {
            assert_eq!(
                self::records(records).map(),
                Ok(Some(expected.clone())),
                "{records:?}"
            );
        }
        let records = records(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "100"),
            ("GNU.sparse.name", "disk.raw"),
        ]);
        assert!(records.is_before_data());
        assert_eq!(records.name.as_deref(), Some("disk.raw"));
        assert_eq!(records.parse(b"2\n10\n5\n100\n0\n\0\0"), Ok(expected));
        assert_eq!(records.lines(b"2"), Ok(5));
        for bad in [
            "",
            "x\n",
            "999999999\n",
            "1\n-1\n5\n",
            "1\n10\n\n",
            "2\n10\n5\n100\n",
        ] {
            assert!(records.parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(Records::default().map(), Ok(None));
    }

    #[test]
    fn a_sparse_map_that_does_not_fit_its_data_is_refused() {
        let map = |data: &[(u64, u64)]| Map {
            size: 100,
            data: data.to_vec(),
        };
        let pieces = map(&[(10, 5), (20, 30)]).pieces(512..547).unwrap();
        assert_eq!(pieces.size(), 100);
        assert_eq!(pieces.at(12).unwrap().at, Some(514));
        assert_eq!(pieces.at(20).unwrap().at, Some(517));
        assert_eq!(pieces.at(50).unwrap(), Stretch { at: None, len: 50 });
        for (data, stored) in [
            (&[(10, 5), (12, 1)][..], 6),
            (&[(90, 11)], 11),
            (&[(u64::MAX, 2)], 2),
            (&[(0, 5)], 6),
            (&[(0, 5)], 4),
        ] {
            assert!(map(data).pieces(0..stored).is_err(), "{data:?}");
        }
    }
}
