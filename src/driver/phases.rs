//! Phases of a run whose progress is separate from that of the transfer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::monitor::{Event, Monitor, Phase};

/// Time between two reports of the progress of a phase.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Reports the chunks of another engine as a phase of this run, and what it waits for.
pub(crate) struct AsPhase<'a> {
    pub(crate) monitor: &'a mut dyn Monitor,
    pub(crate) phase: Phase,
    /// The total bytes of its chunks, and their number, if it only counts chunks.
    pub(crate) scale: Option<(u64, u64)>,
}

impl AsPhase<'_> {
    /// Reports that a phase over `bytes` begins.
    pub(crate) fn begin(&mut self, bytes: Option<u64>) {
        let phase = self.phase;
        self.monitor.event(&Event::Phase { phase, bytes });
    }
}

impl Monitor for AsPhase<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { bytes, .. } => self.begin(*bytes),
            Event::Progress(progress) => {
                let done_bytes = match self.scale {
                    None => progress.done_bytes,
                    Some((bytes, chunks)) => share(bytes, progress.done_chunks, chunks),
                };
                self.monitor.event(&Event::PhaseProgress { done_bytes });
            }
            Event::Waiting(_) | Event::WaitOver { .. } => self.monitor.event(event),
            _ => {}
        }
    }
}

/// The part of `bytes` that `done` of `all` is.
pub(crate) fn share(bytes: u64, done: u64, all: u64) -> u64 {
    let part = u128::from(bytes) * u128::from(done.min(all));
    let part = part.checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(part).unwrap_or(bytes)
}

/// Waits for `work`, and reports its progress: it counts the bytes that it has processed in `done`.
pub(crate) async fn reporting<T>(
    monitor: &mut dyn Monitor,
    done: &Arc<AtomicU64>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = tick.tick() => monitor.event(&Event::PhaseProgress {
                done_bytes: done.load(Ordering::Relaxed),
            }),
        }
    }
}
