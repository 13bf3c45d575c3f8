//! What there is to read of a drive. Where the endpoint tells which bytes hold data
//! (docs/dev/extensions.md), holes are settled without being read.
//!
//! A task goes ahead of the reads, a window of chunks at most. What the endpoint
//! does not tell is read as ever, so nothing depends on its answers but speed; and
//! however little an answer tells, a chunk is got over with, so that no endpoint is
//! asked more often than it would be for the bytes.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::sink::Sink;
use crate::api::Client;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::data_ranges::not_told;
use crate::error::Result;
use crate::failure::Failure;
use crate::plan::Plan;
use crate::wire::Extents;

/// Extents are not asked for any more when that failed so often in a row, with a chunk
/// that was read after each failure. A bad link breaks a few requests and is no reason to
/// fetch terabytes of holes.
const FAILURES_MAX: u32 = 6;
/// Shorter holes between the data of a chunk are read: to leave one out takes a
/// request more, and on a long way that costs more than to carry a MiB.
const LEFT_OUT_BYTES_MIN: u64 = 1 << 20;

/// Something of the drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A chunk that may hold something, in these bytes of the drive: in order, each
    /// to be read.
    Chunk(u64, Vec<Range<u64>>),
    /// Chunks that are holes, and settled.
    Holes(Range<u64>),
}

/// What a survey is about.
#[derive(Debug)]
pub(super) struct SurveyConfig {
    pub(super) client: Client,
    pub(super) drive: DriveId,
    pub(super) plan: Plan,
    /// Byte of the drive that the plan begins at.
    pub(super) base: u64,
    /// Chunks that are missing, in order.
    pub(super) todo: Vec<Range<u64>>,
    /// Where holes go.
    pub(super) sink: Arc<Sink>,
    /// Chunks that may be under way or wait to be written in order.
    pub(super) window: Arc<Semaphore>,
}

/// A survey under way; dropped, it ends.
#[derive(Debug)]
pub(super) struct Survey {
    found: mpsc::Receiver<Result<Found>>,
    settled: watch::Sender<()>,
    task: JoinSet<()>,
}

impl Survey {
    pub(super) fn start(config: SurveyConfig) -> Self {
        // The window bounds what is found ahead.
        let (to, found) = mpsc::channel(1);
        let (settled, seen) = watch::channel(());
        let surveyor = Surveyor {
            config,
            to,
            settled: seen,
            failures: 0,
            is_over: false,
        };
        let mut task = JoinSet::new();
        task.spawn(surveyor.run());
        Self {
            found,
            settled,
            task,
        }
    }

    /// What is next, in order; `None` at the end. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<Found>> {
        self.found.recv().await
    }

    /// A read succeeded: the endpoint can be reached.
    pub(super) fn settled(&self) {
        self.settled.send_replace(());
    }

    /// Ends it, and lets go of what it used.
    pub(super) async fn end(mut self) {
        self.task.shutdown().await;
    }
}

/// Nobody wants to know any more.
struct Closed;

struct Surveyor {
    config: SurveyConfig,
    to: mpsc::Sender<Result<Found>>,
    settled: watch::Receiver<()>,
    /// How often asking failed in a row, while chunks were read.
    failures: u32,
    /// The endpoint tells nothing, whatever it announced.
    is_over: bool,
}

impl Surveyor {
    async fn run(mut self) {
        for range in std::mem::take(&mut self.config.todo) {
            if self.survey(range).await.is_err() {
                return;
            }
        }
    }

    async fn survey(&mut self, mut chunks: Range<u64>) -> Result<(), Closed> {
        let (plan, base) = (self.config.plan, self.config.base);
        while !chunks.is_empty() {
            let bytes = plan.bytes_of(&chunks);
            let asked = base + bytes.start..base + bytes.end;
            let told = match self.ask(asked).await {
                Ok(extents) => {
                    self.failures = 0;
                    extents
                }
                Err(_) => {
                    self.failures += 1;
                    // Reads get through and this does not.
                    self.is_over = self.failures >= FAILURES_MAX;
                    None
                }
            };
            let known = told.as_ref().map_or(chunks.start, |extents| {
                let known = plan.within(bytes.start..extents.end() - base);
                known.end.clamp(chunks.start, chunks.end)
            });
            if let Some(extents) = &told
                && known > chunks.start
            {
                for found in divide(&plan, base, chunks.start..known, extents.data()) {
                    self.hand_over(found).await?;
                }
                chunks.start = known;
                continue;
            }
            // Nothing is known of this one.
            self.settled.mark_unchanged();
            if let Some(span) = plan.span(chunks.start) {
                let data = base + span.offset..base + span.end();
                self.hand_over(Found::Chunk(span.index, vec![data])).await?;
            }
            chunks.start += 1;
            if self.failures > 0 && !self.is_over {
                // That chunk tells whether it is an outage; how to bear one is
                // decided where chunks are sent.
                self.settled.changed().await.map_err(|_| Closed)?;
            }
        }
        Ok(())
    }

    async fn ask(&mut self, bytes: Range<u64>) -> Result<Option<Extents>, Failure> {
        if self.is_over {
            return Ok(None);
        }
        // Once: whether it is an outage a chunk tells.
        let told = self.config.client.extents(self.config.drive, bytes).await;
        let told = told.or_else(not_told);
        self.is_over = matches!(told, Ok(None));
        told
    }

    async fn hand_over(&mut self, found: Found) -> Result<(), Closed> {
        if let Found::Holes(chunks) = found {
            return self.settle(chunks).await;
        }
        self.admit().await?;
        self.to.send(Ok(found)).await.map_err(|_| Closed)
    }

    /// Waits for room in the window.
    async fn admit(&self) -> Result<(), Closed> {
        match self.config.window.acquire().await {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(_) => {
                // The output closed it.
                let _ = self.to.send(Err(self.config.sink.failed())).await;
                Err(Closed)
            }
        }
    }

    /// Puts holes where they belong, in steps that leave room for other things.
    async fn settle(&mut self, mut chunks: Range<u64>) -> Result<(), Closed> {
        let (plan, base) = (self.config.plan, self.config.base);
        let step = (self.config.sink.hole_bytes_max() / plan.chunk_bytes()).max(1);
        while !chunks.is_empty() {
            let holes = chunks.start..chunks.end.min(chunks.start.saturating_add(step));
            chunks.start = holes.end;
            let sink = Arc::clone(&self.config.sink);
            if sink.is_ordered() {
                self.admit().await?;
            }
            let window = Arc::clone(&self.config.window);
            let put = holes.clone();
            let put = blocking(move || sink.put_holes(&plan, base, put, &window)).await;
            let found = put.map(|()| Found::Holes(holes));
            self.to.send(found).await.map_err(|_| Closed)?;
        }
        Ok(())
    }
}

/// What is in these chunks of a plan that begins at byte `base` of the drive, given
/// all data there is in them, in order.
fn divide<'a>(
    plan: &Plan,
    base: u64,
    chunks: Range<u64>,
    data: &'a [Range<u64>],
) -> impl Iterator<Item = Found> + use<'a> {
    let plan = *plan;
    let (mut chunks, mut data) = (chunks, data);
    std::iter::from_fn(move || {
        let span = plan.span(chunks.start).filter(|_| !chunks.is_empty())?;
        let (start, end) = (base + span.offset, base + span.end());
        while data.first().is_some_and(|extent| extent.end <= start) {
            data = &data[1..];
        }
        let next = data.first().map_or(u64::MAX, |extent| extent.start);
        if next >= end {
            let first = plan.index_of(next - base).clamp(span.index + 1, chunks.end);
            chunks.start = first;
            return Some(Found::Holes(span.index..first));
        }
        chunks.start += 1;
        Some(Found::Chunk(span.index, parts(start..end, data)))
    })
}

/// The parts of a chunk that have to be read.
fn parts(chunk: Range<u64>, data: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for extent in data.iter().take_while(|extent| extent.start < chunk.end) {
        let part = extent.start.max(chunk.start)..extent.end.min(chunk.end);
        match parts.last_mut() {
            Some(last) if part.start - last.end < LEFT_OUT_BYTES_MIN => last.end = part.end,
            _ => parts.push(part),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn divided(data: &[Range<u64>], chunks: Range<u64>) -> Vec<Found> {
        let plan = Plan::new(38 * MIB, NonZeroU64::new(4 * MIB).unwrap());
        divide(&plan, MIB, chunks, data).collect()
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn holes_are_left_out_where_that_saves_more_than_it_costs() {
        use Found::{Chunk, Holes};
        assert_eq!(divided(&[], 0..10), [Holes(0..10)]);
        // The ends of a chunk cost nothing to leave out, between them it takes a
        // request more.
        let data = [
            MIB..MIB + 1,
            10 * MIB..10 * MIB + 5,
            10 * MIB + 9..11 * MIB,
            12 * MIB - 1..14 * MIB,
        ];
        let all = [
            Chunk(0, vec![MIB..MIB + 1]),
            Holes(1..2),
            Chunk(2, vec![10 * MIB..13 * MIB]),
            Chunk(3, vec![13 * MIB..14 * MIB]),
            Holes(4..10),
        ];
        assert_eq!(divided(&data, 0..10), all);
        assert_eq!(divided(&data, 3..5), [all[3].clone(), Holes(4..5)]);
        let data = [10 * MIB..10 * MIB + 1, 11 * MIB + 1..11 * MIB + 2];
        assert_eq!(divided(&data, 2..3), [Chunk(2, data.to_vec())]);
    }

    proptest! {
        #[test]
        fn every_byte_of_data_is_read_and_every_chunk_told_once(
            size in 1_u64..3000,
            chunk in 1_u64..300,
            base in 0_u64..500,
            cuts in proptest::collection::btree_set(0_u64..3500, 0..20),
            first in 0_u64..10,
            count in 0_u64..3000,
        ) {
            let plan = Plan::new(size, NonZeroU64::new(chunk).unwrap());
            let chunks = first.min(plan.count())..(first + count).min(plan.count());
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let data: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let mut next = chunks.start;
            for found in divide(&plan, base, chunks.clone(), &data) {
                let (told, parts) = match found {
                    Found::Holes(told) => (told, Vec::new()),
                    Found::Chunk(index, parts) => {
                        prop_assert!(!parts.is_empty());
                        (index..index + 1, parts)
                    }
                };
                prop_assert_eq!(told.start, next);
                prop_assert!(told.start < told.end);
                next = told.end;
                let start = base + told.start * chunk;
                let end = start + plan.bytes_in(&told);
                let mut reached = start;
                for part in &parts {
                    prop_assert!(reached <= part.start && part.start < part.end);
                    reached = part.end;
                }
                prop_assert!(reached <= end);
                for byte in start..end {
                    let is_data = data.iter().any(|extent| extent.contains(&byte));
                    let is_read = parts.iter().any(|part| part.contains(&byte));
                    prop_assert!(is_read || !is_data, "byte {} is lost", byte);
                }
            }
            prop_assert_eq!(next, chunks.end);
        }
    }
}
