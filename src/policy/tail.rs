//! The end of a transfer, when fewer chunks are left than requests are allowed. Where a
//! request takes seconds, those that are done early would wait for the last ones; so the
//! last chunks are cut into pieces, and requests to spare help with them.
//!
//! How large a piece should be depends on what one connection carries. That is the number of
//! bytes that moved, divided by the time that requests were in flight, over some seconds.

use std::time::Duration;

/// How long one piece should take. Each costs a round trip in which its connection idles,
/// and at the end of a transfer some requests idle for one piece at most.
const PIECE_S: f64 = 0.75;
/// How long requests have to be in flight before anything is known, and how long what is
/// known counts, in seconds of each request.
const KNOWN_S: f64 = 0.5;
const KEPT_S: f64 = 15.0;

/// What one connection carries. See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    at: Duration,
    /// Bytes that had moved at that time.
    moved: u64,
    /// Bytes that count, and the sum of seconds that requests took for them.
    bytes: f64,
    requests_s: f64,
    /// Seconds in which at least one request was in flight.
    s: f64,
}

impl Tail {
    /// `moved` bytes of bodies have moved since the start; since the last call, this many
    /// requests were in flight. With 0 that time counts for nothing.
    pub(super) fn moved(&mut self, moved: u64, in_flight: usize, now: Duration) {
        let s = now.saturating_sub(self.at).as_secs_f64();
        if in_flight > 0 {
            self.bytes += moved.saturating_sub(self.moved) as f64;
            self.requests_s += s * in_flight as f64;
            self.s += s;
        }
        (self.at, self.moved) = (self.at.max(now), moved);
        if self.s > KEPT_S {
            self.bytes /= 2.0;
            self.requests_s /= 2.0;
            self.s /= 2.0;
        }
    }

    /// Bytes on the wire that one request carries in the time of a piece; `u64::MAX` while
    /// that is unknown.
    pub(super) fn piece_bytes(&self) -> u64 {
        match self.s < KNOWN_S {
            true => u64::MAX,
            // No more than what `as` makes of it.
            false => (self.bytes / self.requests_s * PIECE_S) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `in_flight` requests that carry this many bytes per second each, for some seconds.
    fn play(tail: &mut Tail, rate: u64, in_flight: usize, seconds: u64) {
        for _ in 0..seconds * 4 {
            let moved = tail.moved + rate * in_flight as u64 / 4;
            tail.moved(moved, in_flight, tail.at + Duration::from_millis(250));
        }
    }

    #[test]
    fn a_piece_takes_less_than_a_second() {
        let mut tail = Tail::default();
        assert_eq!(tail.piece_bytes(), u64::MAX);
        tail.moved(0, 0, Duration::from_secs(5));
        tail.moved(1000, 1, Duration::from_millis(5400));
        assert_eq!(tail.piece_bytes(), u64::MAX);
        let mut tail = Tail::default();
        play(&mut tail, 1_000_000, 8, 3);
        assert_eq!(tail.piece_bytes(), 750_000);
        // Nothing is in flight, or in flight and not counted.
        tail.moved(tail.moved + 5_000_000, 0, tail.at + Duration::from_secs(9));
        assert_eq!(tail.piece_bytes(), 750_000);
        // It follows what the link does.
        play(&mut tail, 100_000, 64, 60);
        assert!((75_000..80_000).contains(&tail.piece_bytes()));
    }
}
