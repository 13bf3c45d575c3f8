//! How large the pieces of a chunk should be, and how many chunks to send at a time.
//!
//! - **Pieces.** One request should take no longer than some seconds, and less at the end of a
//!   transfer. There, fewer chunks are left than requests are allowed. Where a request takes
//!   seconds, those that are done early would wait for the last ones; so the last chunks are cut
//!   into smaller pieces, and the free requests help with them.
//! - **Chunks at a time.** A chunk is settled when all of it has arrived, and only settled chunks
//!   survive a kill of the program. Over a slow link, many requests that carry a chunk each would
//!   settle none for minutes. So they share fewer chunks, as many as the link carries in some
//!   seconds.
//!
//! Both depend on what the connections carry. That is the number of bytes that moved, divided by the
//! time that requests were in flight, over some seconds. Before anything is known, it is the rate
//! that the user allows, if there is one.

use std::time::Duration;

use super::concurrency::Moved;
use super::pieces::Limits;
use crate::chunk::RequestSize;

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
/// How long the chunks that are in flight at a time should take, in seconds. This is about what a
/// kill of the program costs. In a shorter time there would not be enough pieces for all requests.
const CHUNKS_S: f64 = 10.0;
/// A transfer that moves this part of the rate that the user allows is limited by it, and not by the
/// link.
const LIMITED_PART: f64 = 0.8;
/// Pieces in flight and waiting, for each request that is allowed. Requests of one chunk do not end
/// together, so with less than this some would find no piece.
const PIECES_PER_REQUEST: u32 = 2;

/// Measures what one connection carries. See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    at: Duration,
    /// What had moved at that time.
    moved: Moved,
    /// Bytes that moved within the average, and the sum of the seconds that requests took.
    bytes: f64,
    requests_s: f64,
    /// Seconds within the average in which at least one request was in flight.
    s: f64,
    /// The average body of a chunk in bytes; `None` before the first one.
    body_bytes: Option<u64>,
    /// Bytes per second that all requests together may move, if that is limited.
    rate: Option<u64>,
}

impl Tail {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    /// Reports what has moved since the start, with `in_flight` chunks in flight since the last
    /// call. With none, the time does not count.
    pub(super) fn moved(&mut self, moved: Moved, in_flight: usize, now: Duration) {
        let s = now.saturating_sub(self.at).as_secs_f64();
        if in_flight > 0 {
            let news = moved.since(self.moved);
            self.bytes += news.bytes as f64;
            self.requests_s += s * in_flight as f64 + news.spare.as_secs_f64();
            self.s += s;
        }
        (self.at, self.moved) = (self.at.max(now), moved);
        if self.s > KEPT_S {
            self.bytes /= 2.0;
            self.requests_s /= 2.0;
            self.s /= 2.0;
        }
    }

    /// An attempt at a chunk begins, whose body has this many bytes.
    pub(super) fn begins(&mut self, body_bytes: u64) {
        let before = self.body_bytes.unwrap_or(body_bytes);
        self.body_bytes = Some(before - before / 8 + body_bytes / 8);
    }

    /// Bytes on the wire that one of `requests` carries in the time of a piece, which is shorter at
    /// the end of a transfer; `None` while that is unknown.
    pub(super) fn piece_bytes(&self, requests: u32, is_end: bool) -> Option<u64> {
        let piece_s = if is_end { LAST_PIECE_S } else { PIECE_S };
        let bytes_per_s = match (self.is_known(), self.rate) {
            (true, _) => self.bytes / self.requests_s,
            (false, Some(rate)) => rate as f64 / f64::from(requests.max(1)),
            (false, None) => return None,
        };
        // `as` saturates.
        Some((bytes_per_s * piece_s) as u64)
    }

    /// How many chunks should be in flight, if `requests` are allowed and share chunks as `limits`
    /// say: as many as the link carries in [`CHUNKS_S`], and enough for all requests to find pieces
    /// of them. Never more than `requests`. A chunk has `chunk_bytes` bytes of the drive.
    pub(super) fn chunks(&self, requests: u32, limits: &Limits, chunk_bytes: u64) -> u32 {
        let body = self.body_bytes.unwrap_or(chunk_bytes).max(1);
        let piece = limits.piece_of(RequestSize {
            body,
            range: chunk_bytes,
        });
        let pieces = u32::try_from(chunk_bytes.div_ceil(piece)).unwrap_or(u32::MAX);
        let enough = requests
            .saturating_mul(PIECES_PER_REQUEST)
            .div_ceil(pieces.max(1));
        let rate = self.rate.map_or(f64::INFINITY, |rate| rate as f64);
        let bytes_per_s = match self.is_known() {
            true => self.bytes / self.s,
            false if rate.is_finite() => rate,
            false => 0.0,
        };
        let carried = (bytes_per_s * CHUNKS_S / body as f64) as u32;
        // What the user allows is moved by fewer requests too.
        let needed = match bytes_per_s < LIMITED_PART * rate {
            true => carried.max(enough),
            false => carried,
        };
        needed.clamp(1, requests.max(1))
    }

    fn is_known(&self) -> bool {
        self.s >= KNOWN_S
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    use rangemap::RangeSet;

    use super::super::concurrency::link::{self, Ended, Link, Network, bytes_moved};
    use super::super::{
        Action, Concurrency, Ending, Engine, EngineConfig, Operation, PiecesConfig, Requests, Zeros,
    };
    use super::*;
    use crate::chunk::RequestSize;
    use crate::plan::Plan;

    /// For some seconds, `in_flight` requests carry `rate` bytes per second each.
    fn play(tail: &mut Tail, rate: u64, in_flight: usize, seconds: u64) {
        for _ in 0..seconds * 4 {
            let moved = tail.moved.bytes + rate * in_flight as u64 / 4;
            tail.moved(
                bytes_moved(moved),
                in_flight,
                tail.at + Duration::from_millis(250),
            );
        }
    }

    #[test]
    fn a_piece_takes_less_than_a_second() {
        let mut tail = Tail::default();
        assert_eq!(tail.piece_bytes(8, true), None);
        tail.moved(bytes_moved(0), 0, Duration::from_secs(5));
        tail.moved(bytes_moved(1000), 1, Duration::from_millis(5400));
        assert_eq!(tail.piece_bytes(8, true), None);
        let mut tail = Tail::default();
        play(&mut tail, 1_000_000, 8, 3);
        assert_eq!(tail.piece_bytes(8, true), Some(750_000));
        assert_eq!(tail.piece_bytes(8, false), Some(3_000_000));
        // Nothing is in flight, or in flight and not counted.
        tail.moved(
            bytes_moved(tail.moved.bytes + 5_000_000),
            0,
            tail.at + Duration::from_secs(9),
        );
        assert_eq!(tail.piece_bytes(8, true), Some(750_000));
        // It follows what the link does.
        play(&mut tail, 100_000, 64, 60);
        let piece = tail.piece_bytes(8, true).unwrap();
        assert!((75_000..80_000).contains(&piece), "{piece}");
    }

    /// One attempt: the pieces that were not sent yet, and how many are in flight.
    #[derive(Default)]
    struct Attempt {
        unsent: Vec<u64>,
        under_way: u32,
    }

    /// Spare requests in flight.
    fn helping(attempts: &BTreeMap<u64, Attempt>) -> u32 {
        let helping = attempts.values().map(|one| one.under_way.saturating_sub(1));
        helping.sum()
    }

    /// What a simulated transfer showed.
    #[derive(Debug)]
    struct Seen {
        seconds: f64,
        /// The most that a kill of the program would have cost: bytes of chunks that were not
        /// settled, as seconds at the average goodput until then.
        at_risk_s: f64,
    }

    /// A transfer of chunks of 4 MiB over a modelled link.
    fn transfer(link: Link, [jobs_min, jobs]: [u32; 2], chunks: u64, seed: u64) -> Seen {
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
            round_trip: Duration::from_secs_f64(link.rtt),
            pieces: PiecesConfig::default(),
            seed,
        });
        let mut network = Network::new(link, seed);
        let mut attempts = BTreeMap::<u64, Attempt>::new();
        let mut given = 0;
        let (mut before, mut spare_s) = (Duration::ZERO, 0.0);
        let (mut settled, mut at_risk_s) = (0, 0.0_f64);
        loop {
            let now = network.now();
            spare_s += f64::from(helping(&attempts)) * (now - before).as_secs_f64();
            before = now;
            let moved = Moved {
                bytes: network.moved(),
                spare: Duration::from_secs_f64(spare_s),
            };
            engine.arrived(moved, now);
            engine.spare_taken(helping(&attempts));
            let at_risk = network.moved().saturating_sub(settled * chunk.get());
            let goodput = network.moved().max(1) as f64 / now.as_secs_f64();
            at_risk_s = at_risk_s.max(at_risk as f64 / goodput);
            while engine.wants_chunk() && given < chunks {
                engine.chunk(given, ());
                given += 1;
            }
            if given == chunks {
                engine.image_ended();
            }
            match engine.next(now) {
                Action::Send { span, .. } => {
                    let piece = engine.limits().piece_of(RequestSize::plain(span.len));
                    let starts = (0..span.len).step_by(usize::try_from(piece).unwrap());
                    let unsent = starts.map(|start| piece.min(span.len - start)).collect();
                    attempts.entry(span.index).or_default().unsent = unsent;
                    engine.begins(span.len);
                    continue;
                }
                Action::End(ending) => {
                    assert_eq!(ending, Ending::Complete);
                    return Seen {
                        seconds: now.as_secs_f64(),
                        at_risk_s,
                    };
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
                            settled += 1;
                            engine.confirmed(index, &Requests::default(), network.now());
                        }
                    }
                }
            }
            let allowed = engine.spare(network.now());
            let mut spare = allowed.saturating_sub(helping(&attempts));
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

    /// The seconds that two transfers without divided chunks take together.
    fn whole_chunks(link: Link, [jobs_min, jobs]: [u32; 2], chunks: u64) -> f64 {
        let round_trip = Duration::from_secs_f64(link.rtt);
        let bytes = chunks as f64 * link.chunk;
        let one = |seed| {
            let concurrency = Concurrency::new(jobs_min, jobs, round_trip);
            bytes / link::transfer(link, concurrency, bytes, seed).0
        };
        (1..3).map(one).sum()
    }

    #[test]
    fn a_kill_costs_some_seconds_of_a_slow_link() {
        // The most that a kill may cost in seconds, and the maximum time of the transfer, as a part
        // of the time without sharing chunks.
        let links = [
            ("10, 100 ms, 1 %", Link::new(10.0, 100.0, 0.01), 30.0, 1.02),
            ("16, 20 ms", Link::new(16.0, 20.0, 0.0), 15.0, 1.02),
            ("50, 20 ms", Link::new(50.0, 20.0, 0.0), 12.0, 1.02),
            ("100, 250 ms", Link::new(100.0, 250.0, 0.0), 12.0, 1.02),
            (
                "200, 100 ms, 1 %",
                Link::new(200.0, 100.0, 0.01),
                12.0,
                0.96,
            ),
        ];
        for (name, link, most_s, most) in links {
            for is_upload in [true, false] {
                let link = Link { is_upload, ..link };
                let chunks = (link.rate * 50.0 / link.chunk) as u64;
                let seen = [1, 2].map(|seed| transfer(link, [1, 64], chunks, seed));
                let seconds: f64 = seen.iter().map(|seen| seen.seconds).sum();
                let part = seconds / whole_chunks(link, [1, 64], chunks);
                let what = format!("{name}, upload: {is_upload}: {part:.2} of the time, {seen:?}");
                assert!(part <= most, "{what}");
                assert!(seen.iter().all(|seen| seen.at_risk_s <= most_s), "{what}");
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
                let divided = |seed| transfer(link, [64, 64], 80, seed).seconds;
                let part = (1..3).map(divided).sum::<f64>() / whole_chunks(link, [64, 64], 80);
                assert!(part <= most, "{name}, upload: {is_upload}: {part:.2}");
            }
        }
    }
}
