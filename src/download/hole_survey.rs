//! Finds out what has to be read of a drive. If the endpoint reports which bytes hold data
//! (docs/dev/extensions.md), holes are settled without being read.
//!
//! A task runs ahead of the reads, by at most a window of chunks. What the endpoint does not report
//! is read normally, so only the speed depends on its answers. However short an answer is, the
//! survey advances by at least a chunk, so that an endpoint never gets more such requests than it
//! would get reads.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::fetch_chunk::ToRead;
use super::sink::Sink;
use crate::api::Client;
use crate::chunk::Found;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::data_ranges::none_if_invalid;
use crate::driver::shell::{Feed, NewChunk};
use crate::error::Result;
use crate::failure::Failure;
use crate::plan::Plan;
use crate::wire::Extents;

/// The survey stops requesting extents after this many consecutive failures, if a chunk was read
/// after each of them. A bad link breaks a few requests, which is no reason to download terabytes
/// of holes.
const FAILURES_MAX: u32 = 6;
/// Shorter holes between the data of a chunk are read: leaving one out needs another request, which
/// on a link with high latency costs more than transferring a MiB.
const LEFT_OUT_BYTES_MIN: u64 = 1 << 20;

/// What the endpoint reported.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reported {
    /// A chunk that may contain data, with the bytes of the drive to read, in order.
    Chunk(u64, Vec<Range<u64>>),
    /// Chunks that are holes.
    Holes(Range<u64>),
}

/// The parameters of a survey.
#[derive(Debug)]
pub(super) struct SurveyConfig {
    pub(super) client: Client,
    pub(super) drive: DriveId,
    pub(super) plan: Plan,
    /// The byte of the drive at which the plan begins.
    pub(super) base: u64,
    /// Chunks that are missing, in order.
    pub(super) todo: Vec<Range<u64>>,
    /// Where holes go.
    pub(super) sink: Arc<Sink>,
    /// Permits for chunks in flight or waiting to be written in order.
    pub(super) window: Arc<Semaphore>,
}

/// A survey in progress. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Survey {
    found: mpsc::Receiver<Result<Found<NewChunk<ToRead>>>>,
    settled: watch::Sender<()>,
    task: JoinSet<()>,
}

impl Survey {
    pub(super) fn start(config: SurveyConfig) -> Self {
        // The window limits how far the survey runs ahead.
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

    /// The next result, in order; holes are settled. Cancel-safe.
    pub(super) async fn next(&mut self) -> Feed<ToRead> {
        self.found.recv().await
    }

    /// Reports that a read succeeded, which shows that the endpoint can be reached.
    pub(super) fn settled(&self) {
        self.settled.send_replace(());
    }

    /// Ends the survey, and releases its resources.
    pub(super) async fn end(mut self) {
        self.task.shutdown().await;
    }
}

/// Nothing receives the results any more.
struct Closed;

struct Surveyor {
    config: SurveyConfig,
    to: mpsc::Sender<Result<Found<NewChunk<ToRead>>>>,
    settled: watch::Receiver<()>,
    /// Number of consecutive failures of requests for extents, while chunks were read.
    failures: u32,
    /// Whether the endpoint reports no extents, although it announced the extension.
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
            let known_extents = match self.ask(asked).await {
                Ok(extents) => {
                    self.failures = 0;
                    extents
                }
                Err(_) => {
                    self.failures += 1;
                    // Reads succeed and these requests do not.
                    self.is_over = self.failures >= FAILURES_MAX;
                    None
                }
            };
            let known = known_extents.as_ref().map_or(chunks.start, |extents| {
                let known = plan.within(bytes.start..extents.end() - base);
                known.end.clamp(chunks.start, chunks.end)
            });
            if let Some(extents) = &known_extents
                && known > chunks.start
            {
                for found in divide(&plan, base, chunks.start..known, extents.data()) {
                    self.hand_over(found).await?;
                }
                chunks.start = known;
                continue;
            }
            // Nothing is known about this chunk.
            self.settled.mark_unchanged();
            if let Some(span) = plan.span(chunks.start) {
                let data = base + span.offset..base + span.end();
                self.hand_over(Reported::Chunk(span.index, vec![data]))
                    .await?;
            }
            chunks.start += 1;
            if self.failures > 0 && !self.is_over {
                // Reading that chunk will show whether this is an outage. The engine decides
                // what to do about one.
                self.settled.changed().await.map_err(|_| Closed)?;
            }
        }
        Ok(())
    }

    async fn ask(&mut self, bytes: Range<u64>) -> Result<Option<Extents>, Failure> {
        if self.is_over {
            return Ok(None);
        }
        // A single attempt: if it fails, reading a chunk will show whether this is an outage.
        let extents = self.config.client.extents(self.config.drive, bytes).await;
        let extents = extents.or_else(none_if_invalid);
        self.is_over = matches!(extents, Ok(None));
        extents
    }

    async fn hand_over(&mut self, found: Reported) -> Result<(), Closed> {
        match found {
            Reported::Holes(chunks) => self.settle(chunks).await,
            Reported::Chunk(index, parts) => {
                let permit = self.admit().await?;
                let chunk = NewChunk::plain(index, ToRead { parts, permit });
                let chunk = Ok(Found::Chunk(chunk));
                self.to.send(chunk).await.map_err(|_| Closed)
            }
        }
    }

    /// Waits for a place in the window.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Closed> {
        match Arc::clone(&self.config.window).acquire_owned().await {
            Ok(permit) => Ok(permit),
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
            let permit = match sink.is_ordered() {
                true => Some(self.admit().await?),
                false => None,
            };
            let put = holes.clone();
            let put = blocking(move || sink.put_holes(&plan, base, put, permit)).await;
            let settled = put.map(|()| Found::Hole(holes));
            self.to.send(settled).await.map_err(|_| Closed)?;
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
) -> impl Iterator<Item = Reported> + use<'a> {
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
            return Some(Reported::Holes(span.index..first));
        }
        chunks.start += 1;
        Some(Reported::Chunk(span.index, parts(start..end, data)))
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

    fn divided(data: &[Range<u64>], chunks: Range<u64>) -> Vec<Reported> {
        let plan = Plan::new(38 * MIB, NonZeroU64::new(4 * MIB).unwrap());
        divide(&plan, MIB, chunks, data).collect()
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn holes_are_left_out_where_that_saves_more_than_it_costs() {
        use Reported::{Chunk, Holes};
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
        fn every_byte_of_data_is_read_and_every_chunk_reported_once(
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
                let (chunks, parts) = match found {
                    Reported::Holes(chunks) => (chunks, Vec::new()),
                    Reported::Chunk(index, parts) => {
                        prop_assert!(!parts.is_empty());
                        (index..index + 1, parts)
                    }
                };
                prop_assert_eq!(chunks.start, next);
                prop_assert!(chunks.start < chunks.end);
                next = chunks.end;
                let start = base + chunks.start * chunk;
                let end = start + plan.bytes_in(&chunks);
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
