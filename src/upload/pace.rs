//! Between the wire and the compressors: the shell tells how the wire is doing, the
//! compressors ask how hard to compress.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::codec::{Compression, Level, ZeroRuns};
use crate::locks::lock;
use crate::monitor::{Encoded, Reason};
use crate::plan::Span;
use crate::policy::{Choice, LevelConfig, LevelController, Wire};
use crate::system::{process_time, thread_time};

/// How long a compressor waits for the first chunk to be confirmed: where that is
/// soon, all that is compressed before is compressed in vain.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// And for any other while few were, where the wire was found to be fast: about as long
/// as a chunk takes to be compressed.
const NEXT_WAIT: Duration = Duration::from_millis(20);

/// Shared by the shell and all compressors; cheap to clone. The lock is taken a few
/// times for each chunk.
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
    /// Whether compressors wait for nothing any more.
    goes_on: bool,
}

/// The first chunk goes ahead, to find out how fast the wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nobody has taken it up.
    Untouched,
    /// It is being compressed.
    Compressing,
    /// It is on its way since then.
    Sent(Instant),
    /// It was confirmed, or that takes long.
    Over,
}

/// What was decided for a chunk that is being compressed.
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
    /// For a transfer with at most so many requests in flight; `is_local` if the
    /// endpoint is on this machine.
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
            goes_on: fixed.is_some(),
        };
        Self {
            began: Instant::now(),
            compressors: config.compressors,
            fixed,
            shared: Arc::new((Mutex::new(shared), Condvar::new())),
            leaves_zeros: Arc::default(),
        }
    }

    /// How many threads compress.
    pub(super) fn compressors(&self) -> usize {
        self.compressors
    }

    /// What the wire is doing now.
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

    /// Whether the level is told and not found.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Before the first chunk: so many bytes alone on the wire took so long.
    pub(super) fn sounded(&self, bytes: u64, took: Duration) {
        self.lock().controller.sounded(bytes, took);
    }

    /// A chunk of so many bytes was confirmed, and so many bytes of bodies.
    pub(super) fn confirmed(&self, bytes: u64, body_bytes: u64) {
        let (now, processor) = (self.began.elapsed(), process_time());
        let mut shared = self.lock();
        shared
            .controller
            .confirmed(bytes, body_bytes, now, processor);
        self.over(&mut shared);
    }

    /// There is nothing to wait for, or nobody who would.
    pub(super) fn close(&self) {
        let mut shared = self.lock();
        shared.goes_on = true;
        self.over(&mut shared);
    }

    /// Nobody waits for the first one any more; who waits for another looks again.
    fn over(&self, shared: &mut Shared) {
        shared.start = Start::Over;
        self.shared.1.notify_all();
    }

    /// From now on zeros within a chunk may be left out: the drive was found to
    /// have them.
    pub(super) fn leave_zeros(&self) {
        self.leaves_zeros.store(true, Ordering::Relaxed);
    }

    pub(super) fn zeros(&self) -> ZeroRuns {
        match self.leaves_zeros.load(Ordering::Relaxed) {
            true => ZeroRuns::Leave,
            false => ZeroRuns::Send,
        }
    }

    /// A compressor takes up a chunk: how hard to compress it. Blocks for a moment
    /// while the first ones find out how fast the wire is.
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

    /// Waits for a confirmation while that is sooner than to go on without. Once it was
    /// not, nobody waits again.
    fn wait_for_the_next<'a>(&self, mut shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        let began = Instant::now();
        while !shared.goes_on && shared.controller.is_worth_waiting() {
            let waited = began.elapsed();
            if waited >= NEXT_WAIT {
                shared.goes_on = true;
                self.shared.1.notify_all();
                break;
            }
            let wait = self.shared.1.wait_timeout(shared, NEXT_WAIT - waited);
            shared = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        shared
    }

    /// It is done with it.
    pub(super) fn done(&self, task: &Task, span: Span, body_bytes: u64, is_raw: bool) -> Encoded {
        let took = thread_time().saturating_sub(task.processor);
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
            took,
            reason: match (is_random, self.fixed) {
                (true, _) => Reason::Incompressible,
                (false, Some(_)) => Reason::Fixed,
                (false, None) => Reason::Auto,
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing in it can be half done.
        lock(&self.shared.0)
    }
}
