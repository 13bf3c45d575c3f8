//! How hard to compress the next chunk: as hard as there is time for while the
//! wire is busy, and not at all where compression is what keeps it waiting.
//!
//! Two things are measured as the transfer goes: what the processors take for a
//! byte, and what the wire takes. They give the level at which both take the same
//! time. What is wrong with the measurements shows in who waits, the wire for chunks
//! or chunks for the wire, and trims that level up or down.

use std::time::Duration;

use crate::codec::Level;

/// A level that `auto` uses.
#[derive(Clone, Copy, Debug)]
struct Rung {
    level: u8,
    /// Time of a processor, against level 1.
    cost: f64,
    /// Bytes of a body, against level 1; of level 0, against the chunk.
    ratio: f64,
}

impl Rung {
    const fn new(level: u8, cost: f64, ratio: f64) -> Self {
        Self { level, cost, ratio }
    }
}

/// The levels that no mixture of two others beats, as measured on chunks of files of
/// a Linux system (`benches/stages.rs`): 2 costs as much as 3 and saves less, and
/// beyond 9 the cost is many times as high for less than one in a hundred.
const LADDER: [Rung; 7] = [
    Rung::new(0, 0.0, 1.0),
    Rung::new(1, 1.0, 1.0),
    Rung::new(3, 1.45, 0.952),
    Rung::new(5, 1.90, 0.931),
    Rung::new(6, 2.21, 0.925),
    Rung::new(7, 3.07, 0.922),
    Rung::new(9, 6.49, 0.919),
];
const TOP: f64 = (LADDER.len() - 1) as f64;

/// Before anything was measured: seconds of a processor for a byte at level 1, and
/// for all that is not compression; bytes of a body for a byte at level 1.
const COST_GUESS: f64 = 5e-9;
const BASE_GUESS: f64 = 5e-10;
const RATIO_GUESS: f64 = 0.4;
/// What the latest observation weighs against all before, when there are many: one
/// chunk is not like the other, and a link that changes shows in who waits.
const LATEST: f64 = 0.05;
/// Bytes that have to come through before anything is known of the wire.
const KNOWN_BYTES_MIN: f64 = 128.0 * 1024.0;
/// Chunks that may be under way, for each that came through, if more are to go raw:
/// what came first may have been fast for having the link's buffers to itself.
const UNDER_WAY_MAX: u64 = 2;

/// What a second sounding took that was no longer than the first: this part of it. The
/// first one may have had to wait for its connection.
const SOUNDED_PART: f64 = 0.25;
/// An endpoint on this machine takes less for a byte than this part of what a compressor
/// takes. One that does not is a tunnel: at 1 Gbit/s it takes more than a compressor.
const LOCAL_PART: f64 = 0.75;
/// A confirmation is waited for where the wire takes less than this part of the time
/// that the compressors take: some chunks are in flight at once, and the first of them
/// is not through before most of the others are.
const WAIT_PART: f64 = 0.5;

/// Chunks that should wait to be sent while all workers are busy: the next one is
/// there when one of them is free.
const READY_TARGET: f64 = 1.0;
/// What an idle worker counts, in chunks too few: less than one, since a few in
/// flight may fill the wire.
const IDLE: f64 = 0.3;
/// What it counts if the wire has one chunk or none.
const STARVED: f64 = 1.5;
/// Most chunks too many that count.
const SURPLUS_MAX: f64 = 3.0;
/// Rungs for each chunk too many or too few: now, and from now on.
const PROPORTIONAL: f64 = 0.3;
const INTEGRAL: f64 = 0.04;
/// Most rungs by which who waits overrules what was measured for long.
const TRIM_MAX: f64 = 2.0;

/// So near to the first rung it is on it.
const NEARLY: f64 = 0.6;

/// Decides on the level of each chunk. It is told how the transfer goes, and asked
/// before a chunk is compressed.
#[derive(Clone, Debug)]
pub struct LevelController {
    config: LevelConfig,
    machine: Machine,
    link: Link,
    /// Rungs that who waits adds to what was measured.
    trim: f64,
    /// What rounding to a rung left over: two rungs are taken in turn, so often that
    /// it comes out right.
    carry: f64,
    /// Chunks that were asked about.
    chosen: u64,
    /// Chunks that are being compressed.
    compressing: usize,
}

/// What the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelConfig {
    /// Threads that compress.
    pub compressors: usize,
    /// Processors that they share with all else.
    pub processors: usize,
    /// Whether the endpoint runs on the same processors.
    pub is_local: bool,
}

/// What the wire is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Chunks that are encoded and wait to be sent.
    pub ready: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// How many there may be.
    pub limit: usize,
    /// Bytes of the bodies in flight.
    pub bytes: u64,
}

/// How to compress one chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The level.
    pub level: Level,
    /// What it would be if levels were not whole numbers: a place on the ladder,
    /// from 0 on.
    pub effort: f64,
}

impl LevelController {
    /// At the start of a transfer, which is time 0.
    pub fn new(config: LevelConfig) -> Self {
        Self {
            config,
            machine: Machine::new(),
            link: Link::default(),
            trim: 0.0,
            carry: 0.0,
            chosen: 0,
            compressing: 0,
        }
    }

    /// What the wire is doing from now on.
    pub fn observe(&mut self, wire: Wire, now: Duration) {
        self.link.observe(wire, now);
    }

    /// Before the first chunk, `bytes` alone on the wire took so long. Of two what counts
    /// is by how much the longer one took longer. It decides on one chunk: a link that
    /// lets a burst through takes less than a chunk in one.
    pub fn sounded(&mut self, bytes: u64, took: Duration) {
        self.link.sounded(bytes, took);
    }

    /// A chunk of `bytes` was confirmed, whose bodies had `body_bytes`. Until now
    /// the whole program had `processor` of the processors' time.
    pub fn confirmed(&mut self, bytes: u64, body_bytes: u64, now: Duration, processor: Duration) {
        self.link.confirmed(bytes, body_bytes, now);
        self.machine.confirmed(bytes, processor);
    }

    /// A chunk of `bytes` became bodies of `body_bytes` at `level`, which took
    /// `processor` of a processor's time.
    pub fn encoded(&mut self, level: Level, bytes: u64, body_bytes: u64, processor: Duration) {
        if level != Level::RAW {
            self.compressing = self.compressing.saturating_sub(1);
        }
        self.machine.encoded(level, bytes, body_bytes, processor);
    }

    /// How to compress the next chunk. [`encoded`](Self::encoded) tells when that is
    /// done.
    pub fn choose(&mut self, now: Duration) -> Choice {
        self.link.observe(self.link.wire, now);
        let balance = self.balance(self.link.seconds_per_byte());
        let effort = if self.link.is_known() {
            let surplus = self.wire().surplus();
            self.trim = (self.trim + INTEGRAL * surplus).clamp(-TRIM_MAX, TRIM_MAX);
            let trim = self.trim + PROPORTIONAL * surplus;
            if balance >= NEARLY {
                // What is raw fills the wire for long: not for a moment's wait.
                let lowest = (TRIM_MAX + self.trim).clamp(0.0, 1.0);
                // What waits is no reason to leave the first rung for a higher one as
                // long as even that was computed to be too much.
                let beyond = ((balance - NEARLY) / (1.0 - NEARLY)).min(1.0);
                (balance.max(1.0) + trim.min(trim * beyond)).max(lowest)
            } else if self.would_starve() {
                0.0
            } else {
                // A little goes a long way here, and more than was computed takes
                // processors from those who send: what waits counts the more, the
                // nearer the first rung is.
                (balance * (1.0 + trim.min(trim * balance))).min(1.0)
            }
        } else {
            balance
        };
        let effort = match self.is_loopback() {
            true => 0.0,
            false => effort.clamp(if self.is_early() { 1.0 } else { 0.0 }, TOP),
        };
        self.chosen += 1;
        let rung = (effort + self.carry).round().clamp(0.0, TOP);
        self.carry = (self.carry + effort - rung).clamp(-1.0, 1.0);
        // From 0 to TOP, which are places on the ladder.
        let level = LADDER.get(rung as usize).map_or(0, |rung| rung.level);
        let level = Level::new(level).unwrap_or_default();
        if level != Level::RAW {
            self.compressing += 1;
        }
        Choice { level, effort }
    }

    /// Whether what the wire takes is work of the same processors, which compression
    /// would add to: it leads to this machine, and no further.
    fn is_loopback(&self) -> bool {
        self.config.is_local
            && self.link.is_known()
            && self.link.seconds_per_byte() < LOCAL_PART * self.machine.cost.value
    }

    /// Whether so little came through, for what is under way, that no more may go raw.
    fn is_early(&self) -> bool {
        let under_way = self.chosen.saturating_sub(self.link.chunks);
        under_way > UNDER_WAY_MAX.saturating_mul(self.link.chunks) || !self.link.is_known()
    }

    /// Whether the next chunk should wait for a confirmation: without one it would be
    /// compressed only to be safe, and by all that is known that takes longer.
    pub fn is_worth_waiting(&self) -> bool {
        self.link.is_known()
            && !self.is_loopback()
            && self.chosen > self.link.chunks
            && self.is_early()
            && self.link.seconds_per_byte() < WAIT_PART * self.machine.cost.value
    }

    /// Where on the ladder processors and wire take the same time for a byte of the
    /// image, if the wire takes `wire` seconds for one of a body.
    fn balance(&self, wire: f64) -> f64 {
        let compressors = self.config.compressors.max(1) as f64;
        let processors = self.config.processors.max(1) as f64;
        let ends = if self.config.is_local { 2.0 } else { 1.0 };
        // By how much the wire is later than the processors: less and less, from
        // rung to rung.
        let lag = |rung: &Rung| {
            let cost = rung.cost * self.machine.cost.value;
            let all = cost + ends * self.machine.base.value;
            let ratio = match rung.level {
                0 => 1.0,
                _ => rung.ratio * self.machine.ratio.value,
            };
            wire * ratio - (cost / compressors).max(all / processors)
        };
        let mut at = 0.0;
        for pair in LADDER.windows(2) {
            let [lower, upper] = pair else { break };
            let (lower, upper) = (lag(lower), lag(upper));
            if upper < 0.0 {
                return at + (lower / (lower - upper)).clamp(0.0, 1.0);
            }
            at += 1.0;
        }
        TOP
    }

    /// What the wire has: what was chosen to go raw is on its way at once, before
    /// anybody looks at the wire again.
    fn wire(&self) -> Wire {
        let mut wire = self.link.wire;
        let chosen = self.chosen.saturating_sub(self.link.chunks);
        let on_their_way = chosen.saturating_sub(self.compressing as u64) as usize;
        let unseen = on_their_way.saturating_sub(wire.ready + wire.in_flight);
        let sent = unseen.min(wire.limit.saturating_sub(wire.in_flight));
        wire.in_flight += sent;
        wire.ready += unseen - sent;
        wire
    }

    /// Whether the wire would be done with all it has while every compressor is at
    /// work on a chunk.
    fn would_starve(&self) -> bool {
        let chunk = self.link.chunk_bytes;
        let wire = self.wire();
        let chunks = (wire.ready + wire.in_flight) as f64;
        self.compressing + 1 >= self.config.compressors
            && chunks * chunk * self.link.seconds_per_byte() < chunk * self.machine.cost.value
    }
}

impl Wire {
    /// Chunks too many, or too few if it is negative.
    fn surplus(&self) -> f64 {
        let surplus = if self.ready > 0 || self.in_flight >= self.limit {
            self.ready as f64 - READY_TARGET
        } else if self.in_flight > 1 {
            -IDLE * (self.limit - self.in_flight) as f64
        } else {
            -STARVED
        };
        surplus.clamp(-SURPLUS_MAX, SURPLUS_MAX)
    }
}

/// What the processors take.
#[derive(Clone, Debug)]
struct Machine {
    /// Seconds of a processor for a byte at level 1, and for all that is not
    /// compression.
    cost: Mean,
    base: Mean,
    /// Bytes of a body for a byte at level 1.
    ratio: Mean,
    /// Seconds of a processor that compression took.
    compression: f64,
    /// And all else, until the last confirmation.
    others: Option<f64>,
}

impl Machine {
    fn new() -> Self {
        Self {
            cost: Mean::guess(COST_GUESS),
            base: Mean::guess(BASE_GUESS),
            ratio: Mean::guess(RATIO_GUESS),
            compression: 0.0,
            others: None,
        }
    }

    fn confirmed(&mut self, bytes: u64, processor: Duration) {
        let others = (processor.as_secs_f64() - self.compression).max(0.0);
        if let Some(before) = self.others
            && bytes > 0
        {
            self.base.learn((others - before).max(0.0) / bytes as f64);
        }
        self.others = Some(others);
    }

    fn encoded(&mut self, level: Level, bytes: u64, body_bytes: u64, processor: Duration) {
        let seconds = processor.as_secs_f64();
        self.compression += seconds;
        let rung = LADDER.iter().find(|rung| rung.level == level.get());
        if let Some(rung) = rung
            && level != Level::RAW
            && bytes > 0
        {
            let ratio = body_bytes as f64 / bytes as f64;
            self.cost.learn(seconds / bytes as f64 / rung.cost);
            self.ratio.learn(ratio.min(1.0) / rung.ratio);
        }
    }
}

/// What the wire takes.
#[derive(Clone, Debug, Default)]
struct Link {
    wire: Wire,
    since: Duration,
    /// Seconds with a request in flight, since the last confirmation.
    busy_now: f64,
    /// Bytes that were sounded last, and the seconds they took.
    sounded: (f64, f64),
    /// Such seconds and bytes that came through, the latest weighing most.
    busy: f64,
    bytes: f64,
    /// Chunks that came through, and the bytes of the last one.
    chunks: u64,
    chunk_bytes: f64,
}

impl Link {
    fn observe(&mut self, wire: Wire, now: Duration) {
        if self.wire.in_flight > 0 {
            self.busy_now += now.saturating_sub(self.since).as_secs_f64();
        }
        self.since = now;
        self.wire = wire;
    }

    fn sounded(&mut self, bytes: u64, took: Duration) {
        let (bytes, took) = (bytes as f64, took.as_secs_f64());
        let (less_bytes, less) = std::mem::replace(&mut self.sounded, (bytes, took));
        self.busy = (took - less).max(SOUNDED_PART * took);
        self.bytes = (bytes - less_bytes).max(0.0);
        self.chunk_bytes = bytes;
    }

    fn confirmed(&mut self, bytes: u64, body_bytes: u64, now: Duration) {
        self.observe(self.wire, now);
        self.busy = self.busy * (1.0 - LATEST) + self.busy_now;
        self.bytes = self.bytes * (1.0 - LATEST) + body_bytes as f64;
        self.busy_now = 0.0;
        self.chunks += 1;
        self.chunk_bytes = bytes as f64;
    }

    /// Whether enough came through.
    fn is_known(&self) -> bool {
        self.bytes >= KNOWN_BYTES_MIN
    }

    /// What a byte of a body takes; at least, as long as that is not known: the
    /// longer nothing comes through, the slower is the wire.
    fn seconds_per_byte(&self) -> f64 {
        if self.is_known() {
            self.busy / self.bytes
        } else {
            (self.busy + self.busy_now) / (self.bytes + self.wire.bytes as f64).max(1.0)
        }
    }
}

/// A mean in which the latest observations weigh most; the first ones weigh as in
/// any mean, and the guess before them as one.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    fn guess(value: f64) -> Self {
        Self { value, weight: 1.0 }
    }

    fn learn(&mut self, observed: f64) {
        self.weight = (self.weight / (1.0 + self.weight)).max(LATEST);
        self.value += self.weight * (observed - self.value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Time for a byte at each level, against level 1, and bytes of a body for one.
    const COSTS: [f64; 13] = [
        0.0, 1.0, 1.44, 1.45, 1.57, 1.90, 2.21, 3.07, 5.19, 6.49, 14.4, 23.2, 31.3,
    ];
    const RATIOS: [f64; 13] = [
        1.0, 0.3946, 0.3793, 0.3756, 0.3736, 0.3673, 0.3652, 0.3639, 0.3629, 0.3627, 0.361, 0.360,
        0.360,
    ];
    const CHUNK: f64 = 5.0 * 1024.0 * 1024.0;

    /// A machine and a link: what it takes to play an upload in no time.
    #[derive(Clone, Copy)]
    struct Scene {
        bytes_per_s: f64,
        /// Seconds of each request during which nothing moves.
        latency: f64,
        compressors: usize,
        jobs: usize,
        /// Seconds for a byte at level 1.
        cost: f64,
        /// Seconds for a byte whatever the level: reading and hashing.
        fixed: f64,
        chunks: usize,
    }

    struct Sending {
        left: f64,
        size: f64,
        starts_at: f64,
    }

    struct Encoding {
        ends_at: f64,
        size: f64,
        level: Level,
        took: f64,
    }

    impl Scene {
        /// Plays an upload; seconds it takes.
        fn play(&self, control: Option<&mut LevelController>, fixed: u8, seed: u64) -> f64 {
            self.play_to(control, fixed, seed, |_| {})
        }

        /// Plays an upload and tells of what was chosen; seconds it takes.
        fn play_to(
            &self,
            mut control: Option<&mut LevelController>,
            fixed: u8,
            seed: u64,
            mut tell: impl FnMut(f64),
        ) -> f64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut now = 0.0_f64;
            let mut processor = 0.0;
            let mut unread = self.chunks;
            let mut encoding: Vec<Encoding> = Vec::new();
            let mut ready: VecDeque<f64> = VecDeque::new();
            let mut sending: Vec<Sending> = Vec::new();
            let buffers = 2 * self.jobs + 1;
            loop {
                // Start what can start.
                while sending.len() < self.jobs
                    && let Some(left) = ready.pop_front()
                {
                    sending.push(Sending {
                        left,
                        size: left,
                        starts_at: now + self.latency,
                    });
                }
                if let Some(control) = &mut control {
                    let wire = Wire {
                        ready: ready.len(),
                        in_flight: sending.len(),
                        limit: self.jobs,
                        bytes: sending.iter().map(|one| one.size as u64).sum(),
                    };
                    control.observe(wire, Duration::from_secs_f64(now));
                }
                while unread > 0
                    && !(control.as_ref()).is_some_and(|control| control.is_worth_waiting())
                    && encoding.len() < self.compressors
                    && encoding.len() + ready.len() + sending.len() < buffers
                {
                    unread -= 1;
                    let level = match &mut control {
                        Some(control) => {
                            let choice = control.choose(Duration::from_secs_f64(now));
                            tell(choice.effort);
                            choice.level.get()
                        }
                        None => fixed,
                    };
                    let hard = 0.6 + 0.8 * rng.f64();
                    let encode = CHUNK * self.cost * COSTS[usize::from(level)] * hard;
                    let size = if level == 0 {
                        1.0
                    } else {
                        RATIOS[usize::from(level)] * (0.7 + 0.6 * rng.f64())
                    };
                    encoding.push(Encoding {
                        ends_at: now + CHUNK * self.fixed + encode,
                        size: CHUNK * size,
                        level: level_of(level),
                        took: encode,
                    });
                }
                if unread == 0 && encoding.is_empty() && sending.is_empty() && ready.is_empty() {
                    return now;
                }
                // What ends next?
                let active = sending.iter().filter(|one| one.starts_at <= now).count();
                let share = self.bytes_per_s / active.max(1) as f64;
                let mut next = f64::INFINITY;
                for one in &encoding {
                    next = next.min(one.ends_at);
                }
                for one in &sending {
                    next = next.min(if one.starts_at > now {
                        one.starts_at
                    } else {
                        now + one.left / share
                    });
                }
                let dt = next - now;
                for one in &mut sending {
                    if one.starts_at <= now {
                        one.left -= dt * share;
                    }
                }
                now = next;
                encoding.retain(|one| {
                    let is_done = one.ends_at <= now;
                    if is_done {
                        ready.push_back(one.size);
                        processor += CHUNK * self.fixed + one.took;
                        if let Some(control) = &mut control {
                            let took = Duration::from_secs_f64(one.took);
                            control.encoded(one.level, CHUNK as u64, one.size as u64, took);
                        }
                    }
                    !is_done
                });
                sending.retain(|one| {
                    let is_done = one.starts_at <= now && one.left <= 1e-3;
                    if is_done && let Some(control) = &mut control {
                        control.confirmed(
                            CHUNK as u64,
                            one.size as u64,
                            Duration::from_secs_f64(now),
                            Duration::from_secs_f64(processor),
                        );
                    }
                    !is_done
                });
            }
        }

        fn auto(&self, seed: u64) -> f64 {
            self.play(Some(&mut self.controller(false)), 0, seed)
        }

        fn controller(&self, is_local: bool) -> LevelController {
            LevelController::new(LevelConfig {
                compressors: self.compressors,
                processors: self.compressors,
                is_local,
            })
        }

        /// Seconds at the best level for all chunks.
        fn best(&self, seed: u64) -> f64 {
            let fixed = [0, 1, 2, 3, 6, 9].map(|level| self.play(None, level, seed));
            fixed.into_iter().fold(f64::INFINITY, f64::min)
        }

        /// The worst of a few seeds, against the best level for all chunks.
        fn against_the_best(&self) -> f64 {
            let worst = (0..3).map(|seed| self.auto(seed) / self.best(seed));
            worst.fold(0.0, f64::max)
        }
    }

    fn level_of(level: u8) -> Level {
        Level::new(level).unwrap()
    }

    fn scene(mbit: f64) -> Scene {
        Scene {
            bytes_per_s: mbit * 1e6 / 8.0,
            latency: 0.0005,
            compressors: 2,
            jobs: 4,
            cost: 5e-9,
            fixed: 6e-10,
            chunks: 1000,
        }
    }

    #[test]
    fn on_any_link_it_is_as_fast_as_the_best_level() {
        for mbit in [
            10.0, 30.0, 100.0, 300.0, 700.0, 1000.0, 3000.0, 10_000.0, 40_000.0,
        ] {
            let ratio = scene(mbit).against_the_best();
            assert!(ratio < 1.05, "{mbit} Mbit/s: {ratio:.3}");
        }
    }

    #[test]
    fn a_long_way_or_another_number_of_jobs_is_no_reason_to_be_slow() {
        for jobs in [2, 4, 8] {
            for (mbit, latency) in [(30.0, 0.03), (100.0, 0.1), (1000.0, 0.05), (10_000.0, 0.02)] {
                let scene = Scene {
                    jobs,
                    latency,
                    chunks: 400,
                    ..scene(mbit)
                };
                let ratio = scene.against_the_best();
                assert!(
                    ratio < 1.1,
                    "{mbit} Mbit/s, {latency} s, {jobs} jobs: {ratio:.3}"
                );
            }
        }
    }

    #[test]
    fn a_slower_machine_is_measured_and_a_faster_one_too() {
        for cost in [1e-9, 2e-8] {
            for mbit in [10.0, 100.0, 1000.0, 10_000.0] {
                let ratio = Scene {
                    cost,
                    ..scene(mbit)
                }
                .against_the_best();
                assert!(ratio < 1.08, "{cost}, {mbit} Mbit/s: {ratio:.3}");
            }
        }
    }

    #[test]
    fn what_a_start_costs_is_little() {
        for mbit in [10.0, 100.0, 300.0] {
            let scene = Scene {
                chunks: 20,
                ..scene(mbit)
            };
            let ratio = scene.against_the_best();
            assert!(ratio < 1.05, "{mbit} Mbit/s: {ratio:.3}");
        }
    }

    #[test]
    fn the_first_chunk_goes_by_what_the_wire_took_alone() {
        let config = LevelConfig {
            compressors: 2,
            processors: 2,
            is_local: false,
        };
        let first = |bytes, took| {
            let mut controller = LevelController::new(config);
            controller.sounded(bytes, took);
            controller.choose(Duration::ZERO).level
        };
        // 5 Gbit/s, and 10 Mbit/s.
        assert_eq!(first(512 * 1024, Duration::from_micros(800)), Level::RAW);
        assert!(first(64 * 1024, Duration::from_millis(52)).get() > 3);
    }

    #[test]
    fn where_the_wire_was_found_to_be_fast_nothing_is_compressed_to_be_safe() {
        for (mbit, is_fast) in [(10_000.0, true), (40_000.0, true), (100.0, false)] {
            let scene = Scene {
                chunks: 40,
                ..scene(mbit)
            };
            let mut control = scene.controller(false);
            let sounding = 512.0 * 1024.0;
            let took = scene.latency + sounding / scene.bytes_per_s;
            control.sounded(sounding as u64, Duration::from_secs_f64(took));
            let mut efforts = Vec::new();
            scene.play_to(Some(&mut control), 0, 0, |effort| efforts.push(effort));
            let is_less = efforts.iter().all(|effort| *effort < 1.0);
            assert_eq!(is_less, is_fast, "{mbit}: {efforts:?}");
        }
    }

    #[test]
    fn to_this_machine_all_goes_raw_unless_it_is_a_tunnel() {
        for (mbit, is_raw) in [
            (40_000.0, true),
            (3000.0, true),
            (1000.0, false),
            (300.0, false),
        ] {
            let scene = scene(mbit);
            let mut control = scene.controller(true);
            // All of it at once: nothing was confirmed when the last one is taken up.
            control.sounded(64 * 1024, Duration::from_millis(1));
            let took = 0.001 + 512.0 * 1024.0 / scene.bytes_per_s;
            control.sounded(512 * 1024, Duration::from_secs_f64(took));
            let raw = (0..12).map(|_| control.choose(Duration::ZERO).level);
            let is_all_raw = raw.into_iter().all(|level| level == Level::RAW);
            assert_eq!(is_all_raw, is_raw, "{mbit} Mbit/s");
        }
    }

    #[test]
    fn of_two_soundings_the_latency_does_not_count() {
        let ms = Duration::from_millis;
        let mut link = Link::default();
        link.sounded(64 * 1024, ms(10));
        link.sounded(512 * 1024, ms(17));
        assert!((link.seconds_per_byte() * 448.0 * 1024.0 - 0.007).abs() < 1e-9);
        // The first one had to connect.
        let mut link = Link::default();
        link.sounded(64 * 1024, ms(10));
        link.sounded(512 * 1024, ms(8));
        assert!((link.seconds_per_byte() * 448.0 * 1024.0 - 0.002).abs() < 1e-9);
    }

    #[test]
    fn a_wire_that_starves_gets_what_it_lacks_and_no_more() {
        let ms = Duration::from_millis;
        let mut control = LevelController::new(LevelConfig {
            compressors: 2,
            processors: 2,
            is_local: false,
        });
        // A wire that takes a raw chunk in 12 ms, and processors that take 40 for one.
        let chunk = CHUNK as u64;
        for at in 1..=20_u32 {
            control.observe(
                Wire {
                    ready: 1,
                    in_flight: 4,
                    limit: 4,
                    bytes: chunk,
                },
                ms(12) * (at - 1),
            );
            let _ = control.choose(ms(12) * (at - 1));
            control.encoded(level_of(1), chunk, chunk / 2, ms(40));
            control.confirmed(chunk, chunk, ms(12) * at, ms(44) * at);
        }
        // One is being compressed, and nobody looks at the wire meanwhile.
        let now = ms(240);
        (control.chosen, control.compressing) = (control.chosen + 1, 1);
        control.observe(
            Wire {
                limit: 4,
                ..Wire::default()
            },
            now,
        );
        let choices: Vec<_> = (0..12).map(|_| control.choose(now)).collect();
        let starving = choices.iter().filter(|choice| choice.effort == 0.0).count();
        assert!((1..=5).contains(&starving), "{choices:?}");
    }

    #[test]
    fn nothing_makes_it_leave_the_ladder() {
        let mut rng = fastrand::Rng::with_seed(5);
        let config = LevelConfig {
            compressors: 0,
            processors: 0,
            is_local: true,
        };
        let mut control = LevelController::new(config);
        for _ in 0..10_000 {
            // Times that go back, empty bodies, numbers out of this world.
            let time = Duration::from_nanos(rng.u64(..) >> rng.u32(0..64));
            let bytes = rng.u64(..) >> rng.u32(0..64);
            let wire = Wire {
                ready: rng.usize(0..100),
                in_flight: rng.usize(0..100),
                limit: rng.usize(0..100),
                bytes,
            };
            match rng.u8(0..4) {
                0 => control.observe(wire, time),
                1 => control.confirmed(bytes, rng.u64(..), time, time),
                2 => control.encoded(level_of(rng.u8(0..=12)), bytes, rng.u64(..), time),
                _ => {
                    let choice = control.choose(time);
                    assert!(choice.level.get() <= 9);
                    assert!((0.0..=TOP).contains(&choice.effort), "{choice:?}");
                }
            }
        }
    }
}
