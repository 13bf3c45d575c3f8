//! How large the pieces of a chunk should be, so that one request takes no longer than some
//! seconds, and less at the end of a transfer. There, fewer chunks are left than requests are
//! allowed. Where a request takes seconds, those that are done early would wait for the last
//! ones; so the last chunks are cut into smaller pieces, and the free requests help with them.
//!
//! The size depends on what one connection carries. That is the number of bytes that moved,
//! divided by the time that requests were in flight, over some seconds.

use std::time::Duration;

/// How long one piece should take at the end of a transfer, in seconds. Each costs a round
/// trip in which its connection idles, and at the end some requests idle for one piece at
/// most.
const LAST_PIECE_S: f64 = 0.75;
/// How long one piece should take before that. A chunk that one connection carries in less
/// time than this goes in one request. On a slower link a broken request loses at most this
/// much work, and the end of the transfer finds no chunk that still takes minutes.
const PIECE_S: f64 = 3.0;
/// Seconds of requests in flight before the speed counts as known, and seconds over which it is
/// averaged.
const KNOWN_S: f64 = 0.5;
const KEPT_S: f64 = 15.0;

/// Measures what one connection carries. See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    at: Duration,
    /// Bytes that had moved at that time.
    moved: u64,
    /// Bytes that moved within the average, and the sum of the seconds that requests took.
    bytes: f64,
    requests_s: f64,
    /// Seconds within the average in which at least one request was in flight.
    s: f64,
}

impl Tail {
    /// Reports that `moved` bytes of bodies have moved since the start, with `in_flight` requests
    /// since the last call. With 0 requests, the time does not count.
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

    /// Bytes on the wire that one request carries in the time of a piece, which is shorter at
    /// the end of a transfer; `None` while that is unknown.
    pub(super) fn piece_bytes(&self, is_end: bool) -> Option<u64> {
        let piece_s = if is_end { LAST_PIECE_S } else { PIECE_S };
        // `as` saturates.
        (self.s >= KNOWN_S).then_some((self.bytes / self.requests_s * piece_s) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    use rangemap::RangeSet;

    use super::super::concurrency::link::{Ended, Link, Network};
    use super::super::{
        Action, Ending, Engine, EngineConfig, Operation, PiecesConfig, Requests, Zeros,
    };
    use super::*;
    use crate::chunk::RequestSize;
    use crate::plan::Plan;

    /// For some seconds, `in_flight` requests carry `rate` bytes per second each.
    fn play(tail: &mut Tail, rate: u64, in_flight: usize, seconds: u64) {
        for _ in 0..seconds * 4 {
            let moved = tail.moved + rate * in_flight as u64 / 4;
            tail.moved(moved, in_flight, tail.at + Duration::from_millis(250));
        }
    }

    #[test]
    fn a_piece_takes_less_than_a_second() {
        let mut tail = Tail::default();
        assert_eq!(tail.piece_bytes(true), None);
        tail.moved(0, 0, Duration::from_secs(5));
        tail.moved(1000, 1, Duration::from_millis(5400));
        assert_eq!(tail.piece_bytes(true), None);
        let mut tail = Tail::default();
        play(&mut tail, 1_000_000, 8, 3);
        assert_eq!(tail.piece_bytes(true), Some(750_000));
        assert_eq!(tail.piece_bytes(false), Some(3_000_000));
        // Nothing is in flight, or in flight and not counted.
        tail.moved(tail.moved + 5_000_000, 0, tail.at + Duration::from_secs(9));
        assert_eq!(tail.piece_bytes(true), Some(750_000));
        // It follows what the link does.
        play(&mut tail, 100_000, 64, 60);
        let piece = tail.piece_bytes(true).unwrap();
        assert!((75_000..80_000).contains(&piece), "{piece}");
    }

    /// One attempt: the pieces that were not sent yet, and how many are in flight.
    #[derive(Default)]
    struct Attempt {
        unsent: Vec<u64>,
        under_way: u32,
    }

    /// Seconds of a transfer of chunks of 4 MiB over a modelled link, with the last chunks divided
    /// or not.
    fn transfer(
        link: Link,
        [jobs_min, jobs]: [u32; 2],
        chunks: u64,
        divides: bool,
        seed: u64,
    ) -> f64 {
        let chunk = NonZeroU64::new(4 << 20).unwrap();
        let mut engine = Engine::new(EngineConfig {
            plan: Plan::new(chunks * chunk.get(), chunk),
            first: 0,
            settled: RangeSet::new(),
            jobs_min,
            jobs,
            zeros: Zeros::Write,
            operation: Operation::Write,
            is_fresh: false,
            max_outage: Duration::from_secs(900),
            round_trip: Duration::ZERO,
            pieces: PiecesConfig::default(),
            seed,
        });
        let mut network = Network::new(link, seed);
        let mut attempts = BTreeMap::<u64, Attempt>::new();
        let mut given = 0;
        loop {
            let now = network.now();
            engine.arrived(network.moved(), now);
            while engine.wants_chunk() && given < chunks {
                engine.chunk(given, ());
                given += 1;
            }
            if given == chunks {
                engine.image_ended();
            }
            match engine.next(now) {
                Action::Send { span, .. } => {
                    let mut limits = engine.limits();
                    if !divides {
                        limits.shared_bytes = u64::MAX;
                    }
                    let piece = limits.piece_of(RequestSize::plain(span.len));
                    let starts = (0..span.len).step_by(usize::try_from(piece).unwrap());
                    let unsent = starts.map(|start| piece.min(span.len - start)).collect();
                    attempts.entry(span.index).or_default().unsent = unsent;
                }
                Action::End(ending) => {
                    assert_eq!(ending, Ending::Complete);
                    return network.now().as_secs_f64();
                }
                _ => {
                    for ended in network.step() {
                        let Ended::Done(index) = ended else {
                            panic!("refused");
                        };
                        let attempt = attempts.get_mut(&index).unwrap();
                        attempt.under_way -= 1;
                        if attempt.under_way == 0 && attempt.unsent.is_empty() {
                            attempts.remove(&index);
                            engine.confirmed(index, &Requests::default(), network.now());
                        }
                    }
                }
            }
            let helping = attempts.values().map(|one| one.under_way.saturating_sub(1));
            let mut spare = engine.spare(network.now()).saturating_sub(helping.sum());
            for (index, attempt) in &mut attempts {
                while attempt.under_way == 0 || spare > 0 {
                    let Some(bytes) = attempt.unsent.pop() else {
                        break;
                    };
                    spare -= u32::from(attempt.under_way > 0);
                    attempt.under_way += 1;
                    network.send_bytes(*index, bytes as f64);
                }
            }
        }
    }

    #[test]
    fn divided_chunks_shorten_the_end_of_a_transfer() {
        // The maximum time, as a part of the time without dividing.
        let links = [
            ("50, 20 ms", Link::new(50.0, 20.0, 0.0), 1.02),
            ("200, 100 ms", Link::new(200.0, 100.0, 0.0), 1.0),
            ("200, 100 ms, 0.1 %", Link::new(200.0, 100.0, 0.001), 0.95),
            ("200, 100 ms, 1 %", Link::new(200.0, 100.0, 0.01), 0.9),
            ("100, 250 ms", Link::new(100.0, 250.0, 0.0), 1.0),
        ];
        for (name, link, most) in links {
            for is_upload in [true, false] {
                let link = Link { is_upload, ..link };
                let seconds = |divides| -> f64 {
                    let one = |seed| transfer(link, [64, 64], 80, divides, seed);
                    (1..3).map(one).sum()
                };
                let part = seconds(true) / seconds(false);
                assert!(part <= most, "{name}, upload: {is_upload}: {part:.2}");
            }
        }
    }
}
