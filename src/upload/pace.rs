//! Connects the wire and the compressors: the shell reports the state of the wire, and the
//! compressors ask for the compression level of each chunk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::codec::{Compression, Level, ZeroRuns};
use crate::locks::lock;
use crate::monitor::{Encoded, Reason};
use crate::plan::Span;
use crate::policy::{Choice, LevelConfig, LevelController, Took, Wire};
use crate::system::{process_time, thread_time};

/// How long a compressor waits for the confirmation of the first chunk. If that arrives so soon,
/// the wire is fast, and everything compressed before would be compressed in vain.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// How long a compressor waits for a later confirmation while there were few, if the wire was found
/// to be fast: about the time to compress a chunk.
const NEXT_WAIT: Duration = Duration::from_millis(20);

/// Shared by the shell and all compressors; cheap to clone. The lock is taken a few times for each
/// chunk.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    began: Instant,
    compressors: usize,
    fixed: Option<Level>,
    shared: Arc<(Mutex<Shared>, Condvar)>,
    leaves_zeros: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Shared {
    controller: LevelController,
    wire: Wire,
    start: Start,
    /// Whether compressors no longer wait for confirmations.
    waits_no_more: bool,
}

/// The state of the first chunk, which is sent ahead to find out how fast the wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// No compressor has taken it yet.
    Untouched,
    /// It is being compressed.
    Compressing,
    /// It was sent at this time.
    Sent(Instant),
    /// It was confirmed, or that took too long.
    Over,
}

/// The decision for a chunk that is being compressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    choice: Choice,
    wire: Wire,
    at: Duration,
    processor: Duration,
}

impl Task {
    pub(super) fn level(&self) -> Level {
        self.choice.level
    }
}

impl Pace {
    /// For a transfer with at most `jobs` requests in flight. `is_local` says whether the endpoint
    /// is on this machine.
    pub(super) fn new(compression: Compression, jobs: usize, is_local: bool) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let config = LevelConfig {
            compressors: jobs.min(processors),
            processors,
            is_local,
        };
        let (fixed, start) = match compression {
            Compression::Auto => (None, Start::Untouched),
            Compression::Fixed(level) => (Some(level), Start::Over),
        };
        let shared = Shared {
            controller: LevelController::new(config),
            wire: Wire::default(),
            start,
            waits_no_more: fixed.is_some(),
        };
        Self {
            began: Instant::now(),
            compressors: config.compressors,
            fixed,
            shared: Arc::new((Mutex::new(shared), Condvar::new())),
            leaves_zeros: Arc::default(),
        }
    }

    /// Number of threads that compress.
    pub(super) fn compressors(&self) -> usize {
        self.compressors
    }

    /// Reports the current state of the wire.
    pub(super) fn observe(&self, wire: Wire) {
        let now = self.began.elapsed();
        let mut shared = self.lock();
        shared.wire = wire;
        shared.controller.observe(wire, now);
        if shared.start == Start::Compressing && wire.in_flight > 0 {
            shared.start = Start::Sent(Instant::now());
            self.shared.1.notify_all();
        }
    }

    /// Whether the user chose the level.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Reports that, before the first chunk, `bytes` alone on the wire took `took`.
    pub(super) fn sounded(&self, bytes: u64, took: Duration) {
        self.lock().controller.sounded(bytes, took);
    }

    /// Reports that a chunk of `bytes` was confirmed, with `body_bytes` of bodies.
    pub(super) fn confirmed(&self, bytes: u64, body_bytes: u64) {
        let (now, processor) = (self.began.elapsed(), process_time());
        let mut shared = self.lock();
        shared
            .controller
            .confirmed(bytes, body_bytes, now, processor);
        self.over(&mut shared);
    }

    /// Ends all waiting, because there is nothing to wait for.
    pub(super) fn close(&self) {
        let mut shared = self.lock();
        shared.waits_no_more = true;
        self.over(&mut shared);
    }

    /// Ends the wait for the first chunk. Compressors that wait for a later one check again.
    fn over(&self, shared: &mut Shared) {
        shared.start = Start::Over;
        self.shared.1.notify_all();
    }

    /// From now on, zeros within a chunk may be left out, because the drive was found to read as
    /// zeros.
    pub(super) fn leave_zeros(&self) {
        self.leaves_zeros.store(true, Ordering::Relaxed);
    }

    pub(super) fn zeros(&self) -> ZeroRuns {
        match self.leaves_zeros.load(Ordering::Relaxed) {
            true => ZeroRuns::Leave,
            false => ZeroRuns::Send,
        }
    }

    /// Chooses the level for a chunk that a compressor is about to compress. Blocks for a moment
    /// while the first chunks find out how fast the wire is.
    pub(super) fn take_up(&self) -> Task {
        let mut shared = self.wait_for_the_next(self.wait_for_the_first());
        let at = self.began.elapsed();
        let choice = match self.fixed {
            Some(level) => Choice {
                level,
                effort: f64::from(level.get()),
            },
            None => shared.controller.choose(at),
        };
        Task {
            choice,
            wire: shared.wire,
            at,
            processor: thread_time(),
        }
    }

    fn wait_for_the_first(&self) -> MutexGuard<'_, Shared> {
        let mut shared = self.lock();
        loop {
            let waited = match shared.start {
                Start::Untouched => {
                    shared.start = Start::Compressing;
                    return shared;
                }
                Start::Over => return shared,
                Start::Compressing => Duration::ZERO,
                Start::Sent(since) => since.elapsed(),
            };
            if waited >= FIRST_WAIT {
                self.over(&mut shared);
                return shared;
            }
            let wait = self.shared.1.wait_timeout(shared, FIRST_WAIT - waited);
            shared = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a confirmation while that is likely to be faster than compressing. If one wait was
    /// in vain, no compressor waits again.
    fn wait_for_the_next<'a>(&self, mut shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        let began = Instant::now();
        while !shared.waits_no_more && shared.controller.is_worth_waiting() {
            let waited = began.elapsed();
            if waited >= NEXT_WAIT {
                shared.waits_no_more = true;
                self.shared.1.notify_all();
                break;
            }
            let wait = self.shared.1.wait_timeout(shared, NEXT_WAIT - waited);
            shared = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        shared
    }

    /// Reports that the chunk was compressed.
    pub(super) fn done(&self, task: &Task, span: Span, body_bytes: u64, is_raw: bool) -> Encoded {
        let took = Took {
            processor: thread_time().saturating_sub(task.processor),
            elapsed: self.began.elapsed().saturating_sub(task.at),
        };
        let level = task.level();
        let is_random = is_raw && level != Level::RAW;
        if self.fixed.is_none() && !is_random {
            let mut shared = self.lock();
            shared.controller.encoded(level, span.len, body_bytes, took);
        }
        Encoded {
            at: task.at,
            chunk: span.index,
            level: if is_raw { 0 } else { level.get() },
            effort: task.choice.effort,
            ready: task.wire.ready,
            in_flight: task.wire.in_flight,
            raw_bytes: span.len,
            body_bytes,
            took: took.processor,
            reason: match (is_random, self.fixed) {
                (true, _) => Reason::Incompressible,
                (false, Some(_)) => Reason::Fixed,
                (false, None) => Reason::Auto,
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Plain data that is always consistent.
        lock(&self.shared.0)
    }
}
