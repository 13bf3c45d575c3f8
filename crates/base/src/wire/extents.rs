//! Which bytes of a range of a drive hold data: the answer of our own extension
//! (docs/dev/extensions.md).

use std::ops::Range;

use super::{Properties, WireError};

/// What is known about a range of a drive, in bytes. Everything that is not in [`data`](Self::data)
/// reads as zeros up to [`end`](Self::end); nothing is known beyond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    data: Vec<Range<u64>>,
    end: u64,
}

impl Extents {
    /// States that, of the bytes of `asked` before `end`, only those of `data` may be nonzero.
    ///
    /// # Errors
    /// [`WireError::BadExtents`] for extents that are empty, out of order, overlapping, or beyond
    /// `end` or the requested range; and if `end` is not after the start, because repeated requests
    /// would then make no progress.
    pub fn new(asked: &Range<u64>, data: Vec<Range<u64>>, end: u64) -> Result<Self, WireError> {
        let gets_on = end > asked.start || asked.is_empty();
        if !gets_on || !(asked.start..=asked.end).contains(&end) {
            return Err(WireError::BadExtents("the end is not within the range"));
        }
        let mut reached = asked.start;
        for extent in &data {
            if extent.is_empty() || extent.start < reached || extent.end > end {
                return Err(WireError::BadExtents(
                    "an extent is empty, out of order or out of the range",
                ));
            }
            reached = extent.end;
        }
        Ok(Self { data, end })
    }

    /// The ranges that may have data: in order, not overlapping, none of them empty.
    pub fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// The end of what is known.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Converts to keys and values: `data`, as `OFFSET/SIZE` separated by spaces, and `end`.
    ///
    /// # Errors
    /// Does not happen: numbers are valid values.
    pub fn to_properties(&self) -> Result<Properties, WireError> {
        let extents = self.data.iter();
        let extents: Vec<String> = extents
            .map(|extent| {
                format!(
                    "{}/{}",
                    extent.start,
                    extent.end.saturating_sub(extent.start)
                )
            })
            .collect();
        let mut properties = Properties::new();
        properties.insert("data", extents.join(" "))?;
        properties.insert("end", self.end.to_string())?;
        Ok(properties)
    }

    /// Parses the answer to a request about `asked`.
    ///
    /// # Errors
    /// [`WireError::BadExtents`] if it is malformed; see also [`new`](Self::new).
    pub fn from_properties(properties: &Properties, asked: &Range<u64>) -> Result<Self, WireError> {
        let value = |key| {
            let missing = WireError::BadExtents("a key is missing");
            properties.get(key).ok_or(missing)
        };
        let end = number(value("end")?)?;
        let data = value("data")?.split_ascii_whitespace().map(extent);
        Self::new(asked, data.collect::<Result<_, _>>()?, end)
    }
}

/// `OFFSET/SIZE`.
fn extent(text: &str) -> Result<Range<u64>, WireError> {
    let bad = WireError::BadExtents("an extent is not OFFSET/SIZE");
    let (offset, size) = text.split_once('/').ok_or(bad.clone())?;
    let (offset, size) = (number(offset)?, number(size)?);
    Ok(offset..offset.checked_add(size).ok_or(bad)?)
}

/// Digits only.
fn number(text: &str) -> Result<u64, WireError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or(WireError::BadExtents("an offset or size is not a number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Format;

    fn read(body: &str, asked: Range<u64>) -> Result<Extents, WireError> {
        let properties = Properties::parse(Format::Text, body.as_bytes())?;
        Extents::from_properties(&properties, &asked)
    }

    #[test]
    fn an_answer_is_two_keys() {
        let extents = Extents::new(&(10..90), vec![10..20, 20..21, 70..80], 80).unwrap();
        let text = extents.to_properties().unwrap().print(Format::Text);
        assert_eq!(text, "data 10/10 20/1 70/10\nend 80\n");
        assert_eq!(read(&text, 10..90), Ok(extents));
        let hole = read("data\nend 9", 5..9).unwrap();
        assert!(hole.data().is_empty());
        assert_eq!(read("data\nend 9", 9..9).unwrap().end(), 9);
    }

    #[test]
    fn a_malformed_extents_answer_is_refused() {
        for bad in [
            "",
            "end 90",
            "data 10/5",
            "data 10/5\nend",
            "data 10/5\nend x",
            "data 10/5\nend +90",
            "data 10\nend 90",
            "data 10-20\nend 90",
            "data 10/\nend 90",
            "data /5\nend 90",
            "data -10/5\nend 90",
            "data 10/0\nend 90",
            // Before the range, beyond it, beyond the end, and beyond 64 bits.
            "data 9/5\nend 90",
            "data 85/6\nend 90",
            "data 15/10\nend 20",
            "data 10/18446744073709551615\nend 90",
            "data 18446744073709551616/1\nend 90",
            // Out of order, overlapping, duplicate.
            "data 30/5 20/5\nend 90",
            "data 20/11 30/5\nend 90",
            "data 20/5 20/5\nend 90",
            // Ends that make no progress.
            "data\nend 10",
            "data\nend 5",
            "data\nend 91",
            "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(read(bad, 10..90).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_extents_are_sorted_and_within_the_range(
            body in "(data( [0-9]{1,2}/[0-9]{1,2}){0,4}\nend [0-9]{1,3}|data .{0,30}\nend .{0,5})",
            start in 0_u64..50,
            len in 1_u64..100,
        ) {
            let asked = start..start + len;
            if let Ok(extents) = read(&body, asked.clone()) {
                let mut reached = asked.start;
                for extent in extents.data() {
                    prop_assert!(reached <= extent.start && extent.start < extent.end);
                    reached = extent.end;
                }
                prop_assert!(reached <= extents.end() && extents.end() <= asked.end);
                prop_assert!(extents.end() > asked.start);
                for format in [Format::Text, Format::Json] {
                    let printed = extents.to_properties().unwrap().print(format);
                    let parsed = Properties::parse(format, printed.as_bytes()).unwrap();
                    let again = Extents::from_properties(&parsed, &asked);
                    prop_assert_eq!(again.as_ref(), Ok(&extents));
                }
            }
        }
    }
}
