//! Which chunks are settled: confirmed by the endpoint, or holes that may be left out. A transfer is
//! complete when every chunk is settled ([`Ledger::is_complete`]). That is computed from the chunks
//! themselves. A counter, or the fact that all workers ended, could be wrong after a chunk was lost
//! between two queues, or settled twice, and the transfer would report success without its bytes.

use std::ops::Range;

use rangemap::RangeSet;

/// The settled chunks of a transfer, by index. They are stored as ranges, so memory grows with the
/// number of gaps and not with the number of chunks.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The chunks of this transfer. The end is a guess while the size of the image is unknown.
    all: Range<u64>,
    /// May contain chunks outside `all`, of another part of the image or beyond a guessed end.
    settled: RangeSet<u64>,
    /// Number of settled chunks in `all`, so that [`Ledger::open`] is cheap. Nothing else uses it.
    count: u64,
    /// Chunks that an earlier run settled.
    before: RangeSet<u64>,
}

impl Ledger {
    /// A ledger of the chunks in `all`, of which those in `before` are already settled.
    pub fn new(all: Range<u64>, before: RangeSet<u64>) -> Self {
        Self {
            count: count(&before, &all),
            all,
            settled: before.clone(),
            before,
        }
    }

    /// Marks chunks as settled.
    pub fn settle(&mut self, chunks: Range<u64>) {
        if !chunks.is_empty() {
            let new = chunks.start.max(self.all.start)..chunks.end.min(self.all.end);
            let known = count(&self.settled, &new);
            self.count += new.end.saturating_sub(new.start).saturating_sub(known);
            self.settled.insert(chunks);
        }
    }

    /// The number of chunks is now known to be `count`.
    pub fn ends_at(&mut self, count: u64) {
        self.all.end = count.max(self.all.start);
        self.count = self::count(&self.settled, &self.all);
    }

    /// Whether a chunk is settled.
    pub fn is_settled(&self, index: u64) -> bool {
        self.settled.contains(&index)
    }

    /// The first chunk that is not settled; the end if all are.
    pub fn first_open(&self) -> u64 {
        match self.settled.get(&self.all.start) {
            Some(range) => range.end.min(self.all.end),
            None => self.all.start,
        }
    }

    /// How many chunks this run settled without a gap, beginning with the first that was open before.
    /// The dots that the provider's scripts print stand for these.
    pub fn in_order(&self) -> u64 {
        let prefix = self.all.start..self.first_open();
        prefix.end.saturating_sub(prefix.start) - count(&self.before, &prefix)
    }

    /// How many chunks are not settled.
    pub fn open(&self) -> u64 {
        let all = self.all.end.saturating_sub(self.all.start);
        all.saturating_sub(self.count)
    }

    /// Whether every chunk is settled.
    pub fn is_complete(&self) -> bool {
        self.first_open() >= self.all.end
    }
}

/// How many of `chunks` are in `set`.
fn count(set: &RangeSet<u64>, chunks: &Range<u64>) -> u64 {
    if chunks.is_empty() {
        return 0;
    }
    let within = set.overlapping(chunks);
    within
        .map(|range| range.end.min(chunks.end) - range.start.max(chunks.start))
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn open_chunks_are_those_that_are_not_settled(
            first in 0..8_u64,
            end in 0..40_u64,
            before in proptest::collection::vec((0..45_u64, 1..8_u64), 0..4),
            settled in proptest::collection::vec((0..45_u64, 0..8_u64), 0..12),
            ends_at in proptest::option::of(0..45_u64),
        ) {
            let before = before.into_iter().map(|(start, len)| start..start + len).collect();
            let mut ledger = Ledger::new(first..end.max(first), before);
            let mut all = first..end.max(first);
            for (i, (start, len)) in settled.into_iter().enumerate() {
                if let (3, Some(end)) = (i, ends_at) {
                    ledger.ends_at(end);
                    all.end = end.max(first);
                }
                ledger.settle(start..start + len);
                let open = all.clone().filter(|index| !ledger.is_settled(*index)).count();
                prop_assert_eq!(ledger.open(), open as u64);
                prop_assert_eq!(ledger.open() == 0, ledger.is_complete());
            }
        }
    }

    #[test]
    fn the_ledger_is_complete_only_when_no_chunk_is_missing() {
        let mut ledger = Ledger::new(2..10, RangeSet::new());
        assert_eq!(ledger.first_open(), 2);
        ledger.settle(3..10);
        assert_eq!(ledger.first_open(), 2);
        assert!(!ledger.is_complete());
        ledger.settle(2..2);
        assert!(!ledger.is_complete());
        ledger.settle(2..3);
        assert!(ledger.is_complete());
        assert!(ledger.is_settled(9) && !ledger.is_settled(10));
        assert!(Ledger::new(5..5, RangeSet::new()).is_complete());
        // The number of settled chunks is right, but they are not those of this transfer.
        assert!(!Ledger::new(5..10, RangeSet::from_iter(std::iter::once(0..8))).is_complete());
    }

    #[test]
    fn chunks_of_an_earlier_run_are_not_counted() {
        let before = RangeSet::from_iter([0..3, 5..6, 8..9]);
        let mut ledger = Ledger::new(1..10, before);
        assert_eq!((ledger.first_open(), ledger.in_order()), (3, 0));
        ledger.settle(3..5);
        assert_eq!((ledger.first_open(), ledger.in_order()), (6, 2));
        ledger.settle(6..8);
        ledger.settle(9..10);
        assert!(ledger.is_complete());
        assert_eq!(ledger.in_order(), 5);
    }
}
