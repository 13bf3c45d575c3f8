//! One direction of the link: a thread that reads packets into the queue, and another one that
//! writes them when they are due.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The shortest sleep of a writer. At 800 Mbit/s about seven packets become due in this time, so
/// one wake-up passes on several. It adds no more than this to the delay.
const GRAIN: Duration = Duration::from_micros(100);
/// Packets that are passed on later than this are counted: the machine was too busy to emulate the
/// link.
const LATE: Duration = Duration::from_millis(3);
/// More than any packet of a device whose MTU is 1500.
const PACKET_BYTES_MAX: usize = 65_536;

/// The properties of the link, which are the same in both directions.
#[derive(Clone, Copy)]
pub struct Settings {
    pub bytes_per_s: f64,
    pub delay: Duration,
    /// Probability that a packet is lost, from 0 to 1.
    pub loss: f64,
    /// Bytes that may wait in the queue. A packet that would exceed this is dropped.
    pub queue_bytes: f64,
    pub seed: u64,
}

impl Settings {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut next = |name: &str| words.next().ok_or_else(|| format!("{name} is missing"));
        Ok(Self {
            bytes_per_s: positive(&next("RATE_MBIT")?)? * BYTES_PER_MBIT,
            delay: Duration::from_secs_f64(number(&next("DELAY_MS")?)? / 1000.0),
            loss: number(&next("LOSS_PERCENT")?)? / 100.0,
            queue_bytes: number(&next("QUEUE_BYTES")?)?,
            seed: number(&next("SEED")?)? as u64,
        })
    }
}

const BYTES_PER_MBIT: f64 = 125_000.0;

fn number(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..=1e15).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a number from 0 on")),
    }
}

pub fn positive(text: &str) -> Result<f64, String> {
    match number(text)? {
        0.0 => Err("a rate is more than 0".to_owned()),
        number => Ok(number),
    }
}

struct Packet {
    /// When its last bit has left the queue; it arrives one delay later.
    leaves: Instant,
    data: Box<[u8]>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Packets and bytes that were delivered.
    packets: u64,
    bytes: u64,
    /// Packets lost at random, dropped by a full queue, and swallowed by a hole.
    lost: u64,
    dropped: u64,
    swallowed: u64,
    /// Packets that were delivered more than [`LATE`] after they were due.
    late: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            packets,
            bytes,
            lost,
            dropped,
            swallowed,
            late,
        } = self;
        write!(
            f,
            "{{\"packets\": {packets}, \"bytes\": {bytes}, \"lost\": {lost}, \
             \"dropped\": {dropped}, \"swallowed\": {swallowed}, \"late\": {late}}}"
        )
    }
}

struct State {
    /// Packets in the order in which they leave.
    packets: VecDeque<Packet>,
    bytes_per_s: f64,
    /// When the last packet of the queue has left.
    free_at: Instant,
    is_hole: bool,
    random: u64,
    counts: Counts,
}

impl State {
    /// A number from 0 to 1, by SplitMix64.
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Puts a packet into the queue, or drops it.
    fn take(&mut self, data: &[u8], settings: &Settings, now: Instant) {
        // One draw for each packet, so that a hole does not shift the later draws.
        let is_lost = self.draw() < settings.loss;
        let start = self.free_at.max(now);
        let backlog_bytes = (start - now).as_secs_f64() * self.bytes_per_s;
        if self.is_hole {
            self.counts.swallowed += 1;
        } else if is_lost {
            self.counts.lost += 1;
        } else if backlog_bytes > settings.queue_bytes {
            self.counts.dropped += 1;
        } else {
            self.free_at = start + self.time_of(data.len());
            self.packets.push_back(Packet {
                leaves: self.free_at,
                data: data.into(),
            });
        }
    }

    /// How long the link needs for this many bytes.
    fn time_of(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_s)
    }

    /// Changes the rate, also for the packets that wait in the queue.
    fn set_rate(&mut self, bytes_per_s: f64, now: Instant) {
        self.bytes_per_s = bytes_per_s;
        let mut free_at = now;
        for index in self.packets.partition_point(|packet| packet.leaves <= now)..self.packets.len()
        {
            free_at += self.time_of(self.packets[index].data.len());
            self.packets[index].leaves = free_at;
        }
        self.free_at = free_at;
    }
}

/// One way of the link.
pub struct Way {
    settings: Settings,
    state: Mutex<State>,
    /// Notified when the queue is no longer empty.
    filled: Condvar,
}

impl Way {
    /// Starts to carry packets, until the program ends.
    pub fn start(source: File, sink: File, settings: Settings, seed: u64) -> Arc<Self> {
        let way = Arc::new(Self {
            settings,
            state: Mutex::new(State {
                packets: VecDeque::new(),
                bytes_per_s: settings.bytes_per_s,
                free_at: Instant::now(),
                is_hole: false,
                random: seed,
                counts: Counts::default(),
            }),
            filled: Condvar::new(),
        });
        let (reader, writer) = (way.clone(), way.clone());
        thread::spawn(move || reader.read(source));
        thread::spawn(move || writer.write(sink));
        way
    }

    pub fn set_hole(&self, is_hole: bool) {
        self.state().is_hole = is_hole;
    }

    pub fn set_rate(&self, mbit: f64) {
        self.state().set_rate(mbit * BYTES_PER_MBIT, Instant::now());
    }

    pub fn counts(&self) -> impl fmt::Display + use<> {
        self.state().counts
    }

    /// A thread that panicked leaves counters and a queue that are still usable.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, mut source: File) {
        let mut buffer = [0; PACKET_BYTES_MAX];
        // An error means that the device was removed, and the link with it.
        while let Ok(length) = source.read(&mut buffer) {
            let mut state = self.state();
            state.take(&buffer[..length], &self.settings, Instant::now());
            if state.packets.len() == 1 {
                self.filled.notify_one();
            }
        }
    }

    fn write(&self, mut sink: File) {
        let mut due = Vec::new();
        loop {
            let wait = self.take_due(&mut due);
            for packet in due.drain(..) {
                // Packets that the device cannot accept are lost, as on a real link.
                let _ = sink.write(&packet);
            }
            if let Some(wait) = wait {
                thread::sleep(wait.max(GRAIN));
            }
        }
    }

    /// Takes all packets that are due, or returns the time until the next one. Waits while the
    /// queue is empty.
    fn take_due(&self, due: &mut Vec<Box<[u8]>>) -> Option<Duration> {
        let mut state = self.state();
        while state.packets.is_empty() {
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let now = Instant::now();
        while let Some(first) = state.packets.front() {
            let arrives = first.leaves + self.settings.delay;
            if arrives > now {
                return due.is_empty().then(|| arrives - now);
            }
            let Some(packet) = state.packets.pop_front() else {
                break;
            };
            state.counts.packets += 1;
            state.counts.bytes += packet.data.len() as u64;
            state.counts.late += u64::from(now - arrives > LATE);
            due.push(packet.data);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        bytes_per_s: 1000.0,
        delay: Duration::from_millis(50),
        loss: 0.0,
        queue_bytes: 2000.0,
        seed: 7,
    };

    fn state(now: Instant) -> State {
        State {
            packets: VecDeque::new(),
            bytes_per_s: SETTINGS.bytes_per_s,
            free_at: now,
            is_hole: false,
            random: SETTINGS.seed,
            counts: Counts::default(),
        }
    }

    fn leave_ms(state: &State, now: Instant) -> Vec<u128> {
        state
            .packets
            .iter()
            .map(|packet| (packet.leaves - now).as_millis())
            .collect()
    }

    #[test]
    fn packets_leave_one_after_another_and_a_full_queue_drops() {
        let now = Instant::now();
        let mut state = state(now);
        for _ in 0..5 {
            state.take(&[0; 1000], &SETTINGS, now);
        }
        // The third finds 2000 bytes, which is not more than the queue takes.
        assert_eq!(leave_ms(&state, now), [1000, 2000, 3000]);
        assert_eq!(state.counts.dropped, 2);
    }

    #[test]
    fn a_changed_rate_holds_for_what_waits() {
        let now = Instant::now();
        let mut state = state(now);
        for _ in 0..3 {
            state.take(&[0; 1000], &SETTINGS, now);
        }
        state.set_rate(4000.0, now + Duration::from_millis(1000));
        assert_eq!(leave_ms(&state, now), [1000, 1250, 1500]);
        state.take(&[0; 1000], &SETTINGS, now + Duration::from_millis(1000));
        assert_eq!(leave_ms(&state, now), [1000, 1250, 1500, 1750]);
    }

    #[test]
    fn losses_are_as_frequent_as_asked_and_the_same_for_the_same_seed() {
        let now = Instant::now();
        let settings = Settings {
            loss: 0.01,
            queue_bytes: 1e9,
            ..SETTINGS
        };
        let lost = || {
            let mut state = state(now);
            (0..100_000).for_each(|_| state.take(&[0], &settings, now));
            state.counts.lost
        };
        let first = lost();
        assert!((900..1100).contains(&first), "{first}");
        assert_eq!(first, lost());
    }

    #[test]
    fn settings_that_are_no_link_are_refused() {
        let parse = |words: &str| Settings::parse(words.split(' ').map(str::to_owned));
        assert!(parse("10 5 0.1 65536 1").is_ok());
        for words in [
            "10 5 0.1 65536",
            "0 5 0.1 65536 1",
            "10 -5 0 65536 1",
            "x 5 0 1 1",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
