//! One of several machines that share a transfer (docs/user/many-machines.md).

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use openhosting_base::advice;

/// One of several machines that work on one drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// Shard `index` of `count`, both from 1 on; `None` if it does not exist.
    pub fn new(index: u32, count: u32) -> Option<Self> {
        (1..=count)
            .contains(&index)
            .then_some(Self { index, count })
    }

    /// Its number, from 1 on.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many shards there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Its part of `of` items. Together the parts are all items, no two overlap, and their sizes
    /// differ by at most one.
    pub fn part(self, of: u64) -> Range<u64> {
        let cut = |index: u32| {
            let at = u128::from(of) * u128::from(index) / u128::from(self.count);
            u64::try_from(at).unwrap_or(of)
        };
        cut(self.index - 1)..cut(self.index)
    }

    /// The parts of the other shards.
    pub fn others(self, of: u64) -> impl Iterator<Item = Range<u64>> {
        let part = self.part(of);
        let around = [0..part.start, part.end..of];
        around.into_iter().filter(|range| !range.is_empty())
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// Parses `I/N`.
    fn from_str(text: &str) -> Result<Self> {
        let shard = text.split_once('/').and_then(|(index, count)| {
            let number = |text: &str| {
                let is_plain = text.bytes().all(|b| b.is_ascii_digit());
                is_plain.then(|| text.parse().ok()).flatten()
            };
            Self::new(number(index)?, number(count)?)
        });
        shard.ok_or_else(|| {
            let what = format!("{text:?} is not I/N with I from 1 to N");
            Error::new(ErrorKind::Usage, what)
                .hint_to("Write it as in 1/3, the first of three shards")
        })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// The error for a transfer of which these of `count` shards are not done.
pub(crate) fn missing(shards: &[u32], count: u32) -> Error {
    const SHOWN: usize = 10;
    let some: Vec<_> = shards.iter().take(SHOWN).map(u32::to_string).collect();
    let more = match shards.len() > some.len() {
        true => ", ...",
        false => "",
    };
    let what = format!(
        "{} of {count} shards are missing: {}{more}",
        shards.len(),
        some.join(", ")
    );
    Error::new(ErrorKind::Unavailable, what).hint_to(advice![
        "Run these shards, then ",
        Remedy::Join,
        " again"
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_are_written_as_i_of_n() {
        let shard: Shard = "3/8".parse().unwrap();
        assert_eq!((shard.index(), shard.count()), (3, 8));
        assert_eq!(shard.to_string(), "3/8");
        for bad in ["", "1", "0/1", "2/1", "1/0", "+1/2", "1/2/3", "a/b", "1 /2"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_long_list_of_missing_shards_is_shortened() {
        let text = |shards: &[u32]| missing(shards, 20).chain();
        assert!(text(&[3, 7]).contains("2 of 20 shards are missing: 3, 7"));
        let all: Vec<u32> = (1..=20).collect();
        assert!(text(&all).contains("8, 9, 10, ..."));
    }

    proptest! {
        #[test]
        fn shards_cover_everything_and_never_overlap(of in 0_u64..1 << 40, count in 1_u32..300) {
            let mut next = 0;
            for index in 1..=count {
                let part = Shard::new(index, count).unwrap().part(of);
                prop_assert_eq!(part.start, next);
                let others = Shard::new(index, count).unwrap().others(of);
                let others: u64 = others.map(|range| range.end - range.start).sum();
                prop_assert_eq!(others + part.end - part.start, of);
                let len = part.end - part.start;
                prop_assert!(len.abs_diff(of / u64::from(count)) <= 1);
                next = part.end;
            }
            prop_assert_eq!(next, of);
        }
    }
}
