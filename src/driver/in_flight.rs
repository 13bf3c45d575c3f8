//! Estimates how much of the image the requests in flight have moved, so that progress can be shown
//! before a whole chunk is confirmed. Nothing here is ever counted as done.
//!
//! Only one number is measured: how many bytes of bodies have arrived
//! ([`Delivery`](crate::api::Delivery)). Which chunk they belong to is computed from the lengths of
//! the bodies in flight.

use std::collections::HashMap;

use super::phases::share;

/// A chunk in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Moving {
    /// Bytes of the image that are not confirmed.
    image_bytes: u64,
    /// Bytes of the bodies that carry them.
    body_bytes: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct InFlight {
    /// The chunks in flight, by index.
    chunks: HashMap<u64, Moving>,
    /// Arrived bytes that belong to no chunk in flight: to confirmed chunks and failed attempts.
    spent_bytes: u64,
    /// The last reading of the arrived bytes.
    arrived_bytes: u64,
    /// The highest number of bytes that was ever reported, done and in flight together.
    furthest: u64,
}

impl InFlight {
    /// Nothing is in flight, and this many bytes have arrived before.
    pub(super) fn new(arrived_bytes: u64) -> Self {
        Self {
            chunks: HashMap::new(),
            spent_bytes: arrived_bytes,
            arrived_bytes,
            furthest: 0,
        }
    }

    /// An attempt at a chunk begins.
    pub(super) fn begins(&mut self, chunk: u64, image_bytes: u64, body_bytes: u64) {
        let moving = Moving {
            image_bytes,
            body_bytes,
        };
        self.chunks.insert(chunk, moving);
    }

    /// A chunk was confirmed: all of its bodies have arrived.
    pub(super) fn confirmed(&mut self, chunk: u64) {
        let moving = self.chunks.remove(&chunk).unwrap_or_default();
        self.spent_bytes = self.spent_bytes.saturating_add(moving.body_bytes);
    }

    /// An attempt failed. How much of it arrived is unknown, so it gets its share.
    pub(super) fn failed(&mut self, chunk: u64) {
        let all = self.all();
        let Some(moving) = self.chunks.remove(&chunk) else {
            return;
        };
        let spent = share(self.moved_bytes(), moving.body_bytes, all.body_bytes);
        self.spent_bytes = self.spent_bytes.saturating_add(spent);
    }

    /// This many bytes have arrived until now.
    pub(super) fn arrived(&mut self, bytes: u64) {
        self.arrived_bytes = bytes;
        // Where the shares were wrong, or bytes arrived for other requests, the count starts again
        // from what is possible.
        let least = bytes.saturating_sub(self.all().body_bytes);
        self.spent_bytes = self.spent_bytes.clamp(least, bytes);
    }

    /// Bytes of the image to show beyond the `done_bytes` that are settled. The sum never decreases,
    /// and is not complete before everything is settled.
    pub(super) fn beyond(&mut self, done_bytes: u64) -> u64 {
        let all = self.all();
        let moved = share(all.image_bytes, self.moved_bytes(), all.body_bytes);
        let most = all.image_bytes.saturating_sub(1);
        let shown = done_bytes.saturating_add(moved.min(most));
        self.furthest = self.furthest.max(shown);
        self.furthest - done_bytes
    }

    /// Bytes of bodies that have arrived for the chunks in flight. A chunk may be confirmed before
    /// the next reading shows that it has arrived.
    fn moved_bytes(&self) -> u64 {
        self.arrived_bytes.saturating_sub(self.spent_bytes)
    }

    fn all(&self) -> Moving {
        let chunks = self.chunks.values();
        chunks.fold(Moving::default(), |all, chunk| Moving {
            image_bytes: all.image_bytes.saturating_add(chunk.image_bytes),
            body_bytes: all.body_bytes.saturating_add(chunk.body_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_in_flight_count_in_proportion_to_the_disk() {
        let mut flight = InFlight::new(70);
        flight.begins(0, 1000, 100);
        flight.begins(1, 1000, 100);
        assert_eq!(flight.beyond(0), 0);
        flight.arrived(70 + 50);
        assert_eq!(flight.beyond(0), 500);
        flight.confirmed(0);
        // The confirmed chunk counts as done, and what arrived belongs to it.
        assert_eq!(flight.beyond(1000), 0);
        flight.arrived(70 + 130);
        assert_eq!(flight.beyond(1000), 300);
        flight.arrived(70 + 200);
        assert_eq!(flight.beyond(1000), 999);
        flight.confirmed(1);
        assert_eq!(flight.beyond(2000), 0);
    }

    #[test]
    fn a_failure_holds_the_position_until_it_is_reached_again() {
        let mut flight = InFlight::new(0);
        flight.begins(0, 1000, 100);
        flight.arrived(80);
        assert_eq!(flight.beyond(0), 800);
        flight.failed(0);
        assert_eq!(flight.beyond(0), 800);
        flight.begins(0, 1000, 100);
        flight.arrived(120);
        assert_eq!(flight.beyond(0), 800);
        flight.arrived(170);
        assert_eq!(flight.beyond(0), 900);
    }

    proptest! {
        /// Whatever fails, is confirmed or arrives.
        #[test]
        fn the_position_never_decreases_and_is_never_complete_too_early(
            events in proptest::collection::vec((0_u64..5, 0_u8..4, 0_u64..300), 0..60),
        ) {
            let (mut flight, mut arrived) = (InFlight::new(0), 0);
            let (mut done, mut open, mut before) = (0, vec![true; 5], 0);
            for (chunk, kind, bytes) in events {
                let at = usize::try_from(chunk).unwrap();
                let is_moving = flight.chunks.contains_key(&chunk);
                match kind {
                    0 if open[at] && !is_moving => flight.begins(chunk, 100, 40),
                    1 if is_moving => {
                        flight.confirmed(chunk);
                        open[at] = false;
                        done += 100;
                    }
                    2 => flight.failed(chunk),
                    _ => {
                        arrived += bytes;
                        flight.arrived(arrived);
                    }
                }
                let shown = done + flight.beyond(done);
                prop_assert!(shown >= before);
                prop_assert!(shown < 500 || done == 500);
                before = shown;
            }
        }
    }
}
