//! Selects the bytes of a drive that are read back for a sample.

use std::ops::Range;

use rangemap::RangeSet;

use crate::content::{count, elements_at};
use crate::plan::Plan;

/// Bytes to read at each place.
pub(crate) const SAMPLE_BYTES: u64 = 16 * 1024;
/// Minimum number of chunks to sample in a large image.
const SAMPLES_MIN: u64 = 16;
/// Maximum number of chunks to sample: if one chunk in a hundred is damaged, 300 samples find one
/// with 95 % probability.
const SAMPLES_MAX: u64 = 300;
/// Maximum number of places in all reported holes together.
const HOLE_PLACES_MAX: usize = 300;

/// Maximum number of chunks to sample of those that were left out as holes, which are more likely
/// to be right.
pub(crate) const HOLE_SAMPLES_MAX: u64 = 32;

/// How many of `chunks` chunks to sample.
pub(crate) fn wanted(chunks: u64) -> u64 {
    (chunks / 100).clamp(SAMPLES_MIN, SAMPLES_MAX)
}

/// Selects places in these chunks of a plan, in bytes of the plan: in the first chunk, in the last,
/// and one in each of at most `most` equal parts in between.
pub(crate) fn spread(
    plan: &Plan,
    chunks: &RangeSet<u64>,
    most: u64,
    rng: &mut fastrand::Rng,
) -> Vec<Range<u64>> {
    let all = count(chunks.iter());
    let Some(last) = all.checked_sub(1) else {
        return Vec::new();
    };
    let wanted = wanted(all).min(most).min(all);
    let mut numbers = vec![0, last];
    for part in 0..wanted {
        // At most 300 times the number of chunks, which fits.
        let (start, end) = (part * all / wanted, (part + 1) * all / wanted);
        numbers.push(rng.u64(start..end.max(start + 1)));
    }
    numbers.sort_unstable();
    numbers.dedup();
    let spans = elements_at(chunks, numbers).filter_map(|index| plan.span(index));
    spans
        .map(|span| place_in(span.offset..span.end(), rng))
        .collect()
}

/// A random place in these bytes.
pub(crate) fn place_in(bytes: Range<u64>, rng: &mut fastrand::Rng) -> Range<u64> {
    let len = (bytes.end - bytes.start).min(SAMPLE_BYTES);
    let start = rng.u64(bytes.start..=bytes.end - len);
    start..start + len
}

/// Places in holes that were reported, of which there may be any number: both ends of each, where a
/// wrong report is most likely wrong, and one in between. If there are too many, a random selection
/// is remembered, with equal probability.
#[derive(Clone, Debug)]
pub(crate) struct HolePlaces {
    places: Vec<Range<u64>>,
    seen: u64,
    /// The last reported hole, which may continue.
    last: Range<u64>,
    rng: fastrand::Rng,
}

impl HolePlaces {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            places: Vec::new(),
            seen: 0,
            last: 0..0,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Reports that these bytes are a hole, or continue the previous one.
    pub(crate) fn hole(&mut self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        if bytes.start == self.last.end && !self.last.is_empty() {
            self.last.end = bytes.end;
            return;
        }
        let before = std::mem::replace(&mut self.last, bytes);
        self.draw(before);
    }

    fn draw(&mut self, hole: Range<u64>) {
        let len = (hole.end - hole.start).min(SAMPLE_BYTES);
        if len == 0 {
            return;
        }
        self.remember(hole.start..hole.start + len);
        if hole.end - hole.start > len {
            self.remember(hole.end - len..hole.end);
            let between = place_in(hole, &mut self.rng);
            self.remember(between);
        }
    }

    fn remember(&mut self, place: Range<u64>) {
        self.seen += 1;
        if self.places.len() < HOLE_PLACES_MAX {
            self.places.push(place);
        } else if let Ok(at) = usize::try_from(self.rng.u64(..self.seen))
            && let Some(other) = self.places.get_mut(at)
        {
            *other = place;
        }
    }

    /// The selected places, in bytes of the drive.
    pub(crate) fn take(mut self) -> Vec<Range<u64>> {
        let last = std::mem::replace(&mut self.last, 0..0);
        self.draw(last);
        self.places
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_sample_is_bounded_and_has_both_ends_and_every_part() {
        let chunk = NonZeroU64::new(100_000).unwrap();
        for count in [1, 2, 16, 100, 10_000, 1_000_000] {
            let plan = Plan::new(count * 100_000 - 7, chunk);
            let mut rng = fastrand::Rng::with_seed(count);
            let all = std::iter::once(0..count).collect();
            let places = spread(&plan, &all, u64::MAX, &mut rng);
            let chunks: Vec<u64> = places
                .iter()
                .map(|place| {
                    assert!(place.end <= plan.size() && place.start < place.end);
                    assert!(place.end - place.start <= SAMPLE_BYTES);
                    assert_eq!(plan.index_of(place.start), plan.index_of(place.end - 1));
                    plan.index_of(place.start)
                })
                .collect();
            assert_eq!(chunks.first(), Some(&0));
            assert_eq!(chunks.last(), Some(&(count - 1)));
            assert!(chunks.len() as u64 >= count.min(SAMPLES_MIN), "{count}");
            assert!(chunks.len() as u64 <= SAMPLES_MAX + 2, "{count}");
            let widest = chunks.windows(2).map(|pair| pair[1] - pair[0]).max();
            assert!(widest.unwrap_or(0) <= 2 * count.div_ceil(wanted(count).min(count)));
        }
    }

    #[test]
    fn only_these_chunks_are_sampled() {
        let plan = Plan::new(1_000_000, NonZeroU64::new(100).unwrap());
        let chunks: RangeSet<u64> = [3..5, 700..701, 9000..9900].into_iter().collect();
        let mut rng = fastrand::Rng::with_seed(1);
        let places = spread(&plan, &chunks, u64::MAX, &mut rng);
        assert!(
            places
                .iter()
                .all(|place| chunks.contains(&plan.index_of(place.start)))
        );
        assert!(spread(&plan, &RangeSet::new(), u64::MAX, &mut rng).is_empty());
    }

    #[test]
    fn every_hole_has_places_at_its_ends_and_many_holes_have_some_each() {
        let mut few = HolePlaces::new(1);
        // A hole that is reported in pieces counts as one.
        few.hole(0..100_000);
        few.hole(100_000..1 << 40);
        few.hole((1 << 40) + 5..(1 << 40) + 6);
        let places = few.take();
        assert_eq!(places.len(), 4);
        assert_eq!(places[0], 0..SAMPLE_BYTES);
        assert_eq!(places[1], (1 << 40) - SAMPLE_BYTES..1 << 40);
        assert_eq!(places[3], (1 << 40) + 5..(1 << 40) + 6);
        let mut many = HolePlaces::new(1);
        for hole in 0..10_000_u64 {
            many.hole(hole << 20..(hole << 20) + 70_000);
        }
        let places = many.take();
        assert_eq!(places.len(), HOLE_PLACES_MAX);
        for tenth in 0..10_u64 {
            let part = (tenth * 1000) << 20..((tenth + 1) * 1000) << 20;
            assert!(
                places.iter().any(|place| part.contains(&place.start)),
                "{tenth}"
            );
        }
    }
}
