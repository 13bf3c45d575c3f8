//! Chooses the compression level of the next chunk. While the wire is busy, chunks are compressed
//! as hard as there is time for; where compression is what keeps the wire waiting, they are sent
//! raw.
//!
//! Two things are measured during the transfer: the processor time and the time on the wire for
//! each byte. From these the controller computes the level at which both take equally long, so that
//! neither waits for the other. If other programs use the processors too, a compressor waits for
//! them; that is measured as well (`stretch`). Measurements are never exact. Their error shows in
//! who actually waits, the wire for chunks or chunks for the wire, and the controller corrects the
//! level by that (`trim`). In terms of control theory, the measurements are the feed-forward part,
//! and the queue of ready chunks drives a proportional and an integral part.
//!
//! The tests simulate machines and links, and compare the time of a transfer with that at the best
//! fixed level. So the gains and weights below may change as long as those tests pass; `LADDER` has
//! to be measured again (`benches/stages.rs`) when the compressor changes. A wrong choice costs
//! time or bytes on the wire, never data.

use std::time::Duration;

use crate::codec::Level;

/// A level that `auto` uses.
#[derive(Clone, Copy, Debug)]
struct Rung {
    level: u8,
    /// Processor time, relative to level 1.
    cost: f64,
    /// Bytes of a body, relative to level 1. For level 0, relative to the chunk.
    ratio: f64,
}

impl Rung {
    const fn new(level: u8, cost: f64, ratio: f64) -> Self {
        Self { level, cost, ratio }
    }
}

/// The levels worth using, as measured on chunks of files of a Linux system (`benches/stages.rs`).
/// A level is missing here if a mixture of two others is better: 2 costs as much as 3 and saves
/// less, and above 9 the cost is many times as high for less than one percent.
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

/// Guesses until there are measurements: processor seconds per byte at level 1 (200 MB/s), and for
/// everything but compression (2 GB/s); bytes of a body per byte at level 1. They only matter for
/// the first chunks.
const COST_GUESS: f64 = 5e-9;
const BASE_GUESS: f64 = 5e-10;
const RATIO_GUESS: f64 = 0.4;
/// Maximum for [`Machine::stretch`]. A longer pause is an accident, such as a suspended machine.
const STRETCH_MAX: f64 = 100.0;
/// Weight of the latest observation once there are many. Chunks differ, so a single one must not
/// count for much; a link that changes is noticed sooner by who waits.
const LATEST: f64 = 0.05;
/// The speed of the wire counts as known when this many bytes have been confirmed.
const KNOWN_BYTES_MIN: f64 = 128.0 * 1024.0;
/// At most this many chunks may be under way for each confirmed chunk if more are to be sent raw.
/// The first chunks may have been fast only because the buffers of the link were empty.
const UNDER_WAY_MAX: u64 = 2;

/// If the second, larger sounding was not slower than the first, assume that its bytes took this
/// part of its time: the first may have had to wait for its connection.
const SOUNDED_PART: f64 = 0.25;
/// The endpoint counts as a process on this machine if its time per byte is less than this part of
/// a compressor's. Something slower on a local address is a tunnel to another machine: at 1 Gbit/s,
/// a byte takes longer than compressing it.
const LOCAL_PART: f64 = 0.75;
/// Waiting for a confirmation is worthwhile if the wire takes less than this part of the
/// compressors' time. Some chunks are in flight at once, and most of the others are nearly through
/// when the first one is.
const WAIT_PART: f64 = 0.5;

/// The number of chunks that should be ready while all workers are busy, so that a worker that
/// becomes free finds the next one.
const READY_TARGET: f64 = 1.0;
/// How many missing chunks each idle worker counts as. Less than one, since a few requests in
/// flight may fill the wire.
const IDLE: f64 = 0.3;
/// How many missing chunks it counts as if at most one chunk is in flight.
const STARVED: f64 = 1.5;
/// Maximum surplus or lack, in chunks, that counts.
const SURPLUS_MAX: f64 = 3.0;
/// How many rungs to go up or down for each chunk too many or too few: for the current decision
/// (proportional), and permanently (integral).
const PROPORTIONAL: f64 = 0.3;
const INTEGRAL: f64 = 0.04;
/// Maximum number of rungs by which the integral part may correct the measurements.
const TRIM_MAX: f64 = 2.0;

/// Within this distance of the first rung, treat the balance as the first rung.
const NEARLY: f64 = 0.6;

/// Decides the compression level of each chunk. The shell reports how the transfer proceeds, and a
/// compressor calls [`choose`](Self::choose) before each chunk.
#[derive(Clone, Debug)]
pub struct LevelController {
    config: LevelConfig,
    machine: Machine,
    link: Link,
    /// The integral part: rungs added to what was measured, because of who waits.
    trim: f64,
    /// What was lost by rounding to a rung. It is added to the next choice, so that two
    /// neighbouring rungs alternate in the proportion that averages to the computed effort.
    carry: f64,
    /// Chunks for which a level was chosen.
    chosen: u64,
    /// Chunks that are being compressed now.
    compressing: usize,
}

/// The machine on which the transfer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelConfig {
    /// Number of threads that compress.
    pub compressors: usize,
    /// Number of processors that they share with everything else.
    pub processors: usize,
    /// Whether the address of the endpoint is one of this machine.
    pub is_local: bool,
}

/// The state of the wire.
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

/// How long it took to compress a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    /// Processor time of the thread.
    pub processor: Duration,
    /// Time from start to end. It is longer if the thread had to wait for a processor.
    pub elapsed: Duration,
}

/// How to compress one chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The level.
    pub level: Level,
    /// The level before rounding, as a position on the ladder, from 0 on.
    pub effort: f64,
}

impl LevelController {
    /// A controller at the start of a transfer, which is time 0.
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

    /// Reports the state of the wire from now on.
    pub fn observe(&mut self, wire: Wire, now: Duration) {
        self.link.observe(wire, now);
    }

    /// Before the first chunk, a request of `bytes` was sent alone and took `took`. Of two such
    /// soundings, the difference counts, which cancels the latency of the link. The result is used
    /// for the first chunk only, because a link that lets short bursts through looks faster than it
    /// is.
    pub fn sounded(&mut self, bytes: u64, took: Duration) {
        self.link.sounded(bytes, took);
    }

    /// A chunk of `bytes` was confirmed; its bodies had `body_bytes`. `processor` is the processor
    /// time that the whole program has used so far.
    pub fn confirmed(&mut self, bytes: u64, body_bytes: u64, now: Duration, processor: Duration) {
        self.link.confirmed(bytes, body_bytes, now);
        self.machine.confirmed(bytes, processor);
    }

    /// A chunk of `bytes` was compressed at `level` to bodies of `body_bytes`.
    pub fn encoded(&mut self, level: Level, bytes: u64, body_bytes: u64, took: Took) {
        if level != Level::RAW {
            self.compressing = self.compressing.saturating_sub(1);
        }
        self.machine.encoded(level, bytes, body_bytes, took);
    }

    /// Chooses the level of the next chunk. The caller must call [`encoded`](Self::encoded) when it
    /// is compressed.
    pub fn choose(&mut self, now: Duration) -> Choice {
        self.link.observe(self.link.wire, now);
        let balance = self.balance(self.link.seconds_per_byte());
        let effort = if self.link.is_known() {
            let surplus = self.wire().surplus();
            self.trim = (self.trim + INTEGRAL * surplus).clamp(-TRIM_MAX, TRIM_MAX);
            let trim = self.trim + PROPORTIONAL * surplus;
            if balance >= NEARLY {
                // The wire is the slower part. A raw chunk would occupy it for long, so a short
                // wait of the wire is no reason to send one: the effort falls below the first rung
                // only when `trim` says that the wire has been starving for some time.
                let lowest = (TRIM_MAX + self.trim).clamp(0.0, 1.0);
                // Chunks that wait are no reason to go above the first rung as long as even that
                // rung was computed to be too much, so the correction upwards grows only as the
                // balance approaches the first rung.
                let beyond = ((balance - NEARLY) / (1.0 - NEARLY)).min(1.0);
                (balance.max(1.0) + trim.min(trim * beyond)).max(lowest)
            } else if self.would_starve() {
                0.0
            } else {
                // Compression is the slower part. Compressing only a few chunks already relieves
                // the wire a lot, and more than was computed would take processor time from the
                // threads that send. So a correction upwards is scaled down, the more the further
                // the balance is below the first rung.
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
        // `rung` is between 0 and TOP, which are the positions on the ladder.
        let level = LADDER.get(rung as usize).map_or(0, |rung| rung.level);
        let level = Level::new(level).unwrap_or_default();
        if level != Level::RAW {
            self.compressing += 1;
        }
        Choice { level, effort }
    }

    /// Whether the endpoint is a process on this machine. The time on the wire is then processor
    /// time as well, and compression could only add to it.
    fn is_loopback(&self) -> bool {
        self.config.is_local
            && self.link.is_known()
            && self.link.seconds_per_byte() < LOCAL_PART * self.machine.cost.value
    }

    /// Whether too few chunks were confirmed to send more raw, given how many are under way.
    fn is_early(&self) -> bool {
        let under_way = self.chosen.saturating_sub(self.link.chunks);
        under_way > UNDER_WAY_MAX.saturating_mul(self.link.chunks) || !self.link.is_known()
    }

    /// Whether it is faster to wait for a confirmation than to compress the next chunk. True if the
    /// only reason to compress would be `is_early`, and a raw chunk is, as far as is known, the
    /// better choice.
    pub fn is_worth_waiting(&self) -> bool {
        self.link.is_known()
            && !self.is_loopback()
            && self.chosen > self.link.chunks
            && self.is_early()
            && self.link.seconds_per_byte() < WAIT_PART * self.machine.cost.value
    }

    /// The position on the ladder at which processors and wire take the same time per byte of the
    /// image, if the wire takes `wire` seconds per byte of a body.
    fn balance(&self, wire: f64) -> f64 {
        let compressors = self.config.compressors.max(1) as f64;
        let processors = self.config.processors.max(1) as f64;
        let ends = if self.config.is_local { 2.0 } else { 1.0 };
        // How much longer the wire takes than the processors. This falls from rung to rung, so the
        // first change of sign is the position.
        let lag = |rung: &Rung| {
            let cost = rung.cost * self.machine.cost.value;
            let all = cost + ends * self.machine.base.value;
            let ratio = match rung.level {
                0 => 1.0,
                _ => rung.ratio * self.machine.ratio.value,
            };
            let compression = cost * self.machine.stretch.value / compressors;
            wire * ratio - compression.max(all / processors)
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

    /// The state of the wire, including the chunks for which raw was chosen since it was last
    /// observed: they are on the wire at once, or wait for it.
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

    /// Whether the wire would run out of chunks while every compressor is busy with one.
    fn would_starve(&self) -> bool {
        let chunk = self.link.chunk_bytes;
        let wire = self.wire();
        let chunks = (wire.ready + wire.in_flight) as f64;
        self.compressing + 1 >= self.config.compressors
            && chunks * chunk * self.link.seconds_per_byte() < chunk * self.machine.cost.value
    }
}

impl Wire {
    /// How many chunks too many are ready; negative if there are too few.
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

/// What was measured of the processors.
#[derive(Clone, Debug)]
struct Machine {
    /// Processor seconds per byte: at level 1, and for everything but compression.
    cost: Mean,
    base: Mean,
    /// How many seconds pass while a compressor uses one second of processor time. More than 1 if
    /// it has to share the processors.
    stretch: Mean,
    /// Bytes of a body per byte of the image, at level 1.
    ratio: Mean,
    /// Processor seconds that compression has used so far.
    compression: f64,
    /// Processor seconds that everything else had used at the last confirmation.
    others: Option<f64>,
}

impl Machine {
    fn new() -> Self {
        Self {
            cost: Mean::guess(COST_GUESS),
            base: Mean::guess(BASE_GUESS),
            stretch: Mean::guess(1.0),
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

    fn encoded(&mut self, level: Level, bytes: u64, body_bytes: u64, took: Took) {
        let seconds = took.processor.as_secs_f64();
        self.compression += seconds;
        let rung = LADDER.iter().find(|rung| rung.level == level.get());
        if let Some(rung) = rung
            && level != Level::RAW
            && bytes > 0
        {
            let ratio = body_bytes as f64 / bytes as f64;
            self.cost.learn(seconds / bytes as f64 / rung.cost);
            if seconds > 0.0 {
                let stretch = took.elapsed.as_secs_f64() / seconds;
                self.stretch.learn(stretch.clamp(1.0, STRETCH_MAX));
            }
            self.ratio.learn(ratio.min(1.0) / rung.ratio);
        }
    }
}

/// What was measured of the wire.
#[derive(Clone, Debug, Default)]
struct Link {
    wire: Wire,
    since: Duration,
    /// Seconds with at least one request in flight, since the last confirmation.
    busy_now: f64,
    /// Bytes of the last sounding, and the seconds that it took.
    sounded: (f64, f64),
    /// Seconds with a request in flight, and bytes confirmed in them. Older values decay, so that
    /// the latest weigh most.
    busy: f64,
    bytes: f64,
    /// Number of confirmed chunks, and the bytes of the last one.
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

    /// Whether enough bytes were confirmed to know the speed of the wire.
    fn is_known(&self) -> bool {
        self.bytes >= KNOWN_BYTES_MIN
    }

    /// Seconds per byte of a body. While the speed is unknown this is an estimate that grows with
    /// the time in which nothing is confirmed.
    fn seconds_per_byte(&self) -> f64 {
        if self.is_known() {
            self.busy / self.bytes
        } else {
            (self.busy + self.busy_now) / (self.bytes + self.wire.bytes as f64).max(1.0)
        }
    }
}

/// A mean in which the latest observations weigh most. It starts as the plain mean of all
/// observations, with the guess as one of them.
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

    /// Measured per byte at each level: the time relative to level 1, and the bytes of a body.
    const COSTS: [f64; 13] = [
        0.0, 1.0, 1.44, 1.45, 1.57, 1.90, 2.21, 3.07, 5.19, 6.49, 14.4, 23.2, 31.3,
    ];
    const RATIOS: [f64; 13] = [
        1.0, 0.3946, 0.3793, 0.3756, 0.3736, 0.3673, 0.3652, 0.3639, 0.3629, 0.3627, 0.361, 0.360,
        0.360,
    ];
    const CHUNK: f64 = 5.0 * 1024.0 * 1024.0;

    /// A machine and a link on which an upload is simulated.
    #[derive(Clone, Copy)]
    struct Scene {
        bytes_per_s: f64,
        /// Seconds of each request in which no byte moves.
        latency: f64,
        compressors: usize,
        jobs: usize,
        /// Seconds per byte at level 1.
        cost: f64,
        /// Seconds per byte at any level, for reading and hashing.
        fixed: f64,
        /// Seconds for each second of processor time.
        stretch: f64,
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
        took: Took,
    }

    impl Scene {
        /// Simulates an upload, and returns the seconds that it takes.
        fn play(&self, control: Option<&mut LevelController>, fixed: u8, seed: u64) -> f64 {
            self.play_to(control, fixed, seed, |_| {})
        }

        /// As [`play`](Self::play), and passes each choice to a function.
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
                // Start everything that can start.
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
                    let elapsed = encode * self.stretch;
                    encoding.push(Encoding {
                        ends_at: now + CHUNK * self.fixed * self.stretch + elapsed,
                        size: CHUNK * size,
                        level: level_of(level),
                        took: Took {
                            processor: Duration::from_secs_f64(encode),
                            elapsed: Duration::from_secs_f64(elapsed),
                        },
                    });
                }
                if unread == 0 && encoding.is_empty() && sending.is_empty() && ready.is_empty() {
                    return now;
                }
                // Find what ends next.
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
                        processor += CHUNK * self.fixed + one.took.processor.as_secs_f64();
                        if let Some(control) = &mut control {
                            control.encoded(one.level, CHUNK as u64, one.size as u64, one.took);
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

        /// Seconds with the one level that is best for all chunks.
        fn best(&self, seed: u64) -> f64 {
            let fixed = [0, 1, 2, 3, 6, 9].map(|level| self.play(None, level, seed));
            fixed.into_iter().fold(f64::INFINITY, f64::min)
        }

        /// The worst ratio over some seeds, against the one level that is best for all chunks.
        fn against_the_best(&self) -> f64 {
            let worst = (0..3).map(|seed| self.auto(seed) / self.best(seed));
            worst.fold(0.0, f64::max)
        }
    }

    fn level_of(level: u8) -> Level {
        Level::new(level).unwrap()
    }

    fn took(processor: Duration) -> Took {
        Took {
            processor,
            elapsed: processor,
        }
    }

    fn scene(mbit: f64) -> Scene {
        Scene {
            bytes_per_s: mbit * 1e6 / 8.0,
            latency: 0.0005,
            compressors: 2,
            jobs: 4,
            cost: 5e-9,
            fixed: 6e-10,
            stretch: 1.0,
            chunks: 1000,
        }
    }

    #[test]
    fn the_automatic_level_is_as_fast_as_the_best_fixed_one() {
        for mbit in [
            10.0, 30.0, 100.0, 300.0, 700.0, 1000.0, 3000.0, 10_000.0, 40_000.0,
        ] {
            let ratio = scene(mbit).against_the_best();
            assert!(ratio < 1.05, "{mbit} Mbit/s: {ratio:.3}");
        }
    }

    #[test]
    fn latency_and_jobs_do_not_slow_down_compression() {
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
    fn the_costs_of_levels_adapt_to_the_speed_of_the_machine() {
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
    fn a_level_is_found_for_a_machine_that_is_busy_with_other_programs() {
        for stretch in [2.0, 6.0, 20.0] {
            for mbit in [10.0, 50.0, 100.0, 300.0] {
                let scene = Scene {
                    stretch,
                    chunks: 200,
                    ..scene(mbit)
                };
                let ratio = scene.against_the_best();
                assert!(ratio < 1.1, "{stretch}, {mbit} Mbit/s: {ratio:.3}");
            }
        }
    }

    #[test]
    fn the_start_of_the_automatic_level_costs_little_time() {
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
    fn the_first_level_depends_on_the_measured_link_only() {
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
        // 5 Gbit/s, then 10 Mbit/s.
        assert_eq!(first(512 * 1024, Duration::from_micros(800)), Level::RAW);
        assert!(first(64 * 1024, Duration::from_millis(52)).get() > 3);
    }

    #[test]
    fn on_a_link_measured_as_fast_most_chunks_are_sent_raw() {
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
    fn a_fast_loopback_endpoint_gets_raw_chunks_and_a_slow_one_compressed_ones() {
        for (mbit, is_raw) in [
            (40_000.0, true),
            (3000.0, true),
            (1000.0, false),
            (300.0, false),
        ] {
            let scene = scene(mbit);
            let mut control = scene.controller(true);
            // All levels are chosen before anything is confirmed.
            control.sounded(64 * 1024, Duration::from_millis(1));
            let took = 0.001 + 512.0 * 1024.0 / scene.bytes_per_s;
            control.sounded(512 * 1024, Duration::from_secs_f64(took));
            let raw = (0..12).map(|_| control.choose(Duration::ZERO).level);
            let is_all_raw = raw.into_iter().all(|level| level == Level::RAW);
            assert_eq!(is_all_raw, is_raw, "{mbit} Mbit/s");
        }
    }

    #[test]
    fn two_soundings_measure_the_link_without_its_latency() {
        let ms = Duration::from_millis;
        let mut link = Link::default();
        link.sounded(64 * 1024, ms(10));
        link.sounded(512 * 1024, ms(17));
        assert!((link.seconds_per_byte() * 448.0 * 1024.0 - 0.007).abs() < 1e-9);
        // The first sounding also had to connect.
        let mut link = Link::default();
        link.sounded(64 * 1024, ms(10));
        link.sounded(512 * 1024, ms(8));
        assert!((link.seconds_per_byte() * 448.0 * 1024.0 - 0.002).abs() < 1e-9);
    }

    #[test]
    fn a_starving_link_gets_only_as_many_raw_chunks_as_it_lacks() {
        let ms = Duration::from_millis;
        let mut control = LevelController::new(LevelConfig {
            compressors: 2,
            processors: 2,
            is_local: false,
        });
        // The wire takes 12 ms for a raw chunk, and a processor 40 ms to compress one.
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
            control.encoded(level_of(1), chunk, chunk / 2, took(ms(40)));
            control.confirmed(chunk, chunk, ms(12) * at, ms(44) * at);
        }
        // One chunk is being compressed, and the wire is not observed meanwhile.
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
    fn every_choice_is_a_level_of_the_ladder() {
        let mut rng = fastrand::Rng::with_seed(5);
        let config = LevelConfig {
            compressors: 0,
            processors: 0,
            is_local: true,
        };
        let mut control = LevelController::new(config);
        for _ in 0..10_000 {
            // Times that run backwards, empty bodies, absurd numbers.
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
                2 => control.encoded(level_of(rng.u8(0..=12)), bytes, rng.u64(..), took(time)),
                _ => {
                    let choice = control.choose(time);
                    assert!(choice.level.get() <= 9);
                    assert!((0.0..=TOP).contains(&choice.effort), "{choice:?}");
                }
            }
        }
    }
}
