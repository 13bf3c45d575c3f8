//! The blocking part of an upload: threads that read, check and compress.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_channel::{Receiver, Sender, bounded};
use rangemap::RangeSet;

use super::pace::Pace;
use super::selection::Selection;
use crate::advice::Remedy;
use crate::buffer::BufferPool;
use crate::chunk::{EncodedChunk, Encoding, Found, RawChunk, is_zero};
use crate::codec::Gzip;
use crate::digest::{ChunkDigest, Digest};
use crate::driver::blocking::thread;
use crate::driver::checksum::Hasher;
use crate::driver::session::done;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageReader, Unchecked};
use crate::journal::Journal;
use crate::monitor::Encoded;
use crate::plan::{Plan, Span};
use crate::policy::READY_MAX;
use crate::verify::read_back::Sampler;
use openhosting_base::advice;

/// A chunk that is ready to be sent, and how it was compressed.
pub(super) type Prepared = (EncodedChunk, Encoded);

/// The parameters of a pipeline.
#[derive(Debug)]
pub(super) struct PipelineConfig {
    pub(super) image: Image,
    pub(super) plan: Plan,
    /// Chunks to send, in order.
    pub(super) todo: Vec<Range<u64>>,
    /// Maximum number of chunks in flight.
    pub(super) jobs: usize,
    pub(super) pace: Pace,
    /// Whether to hash the whole image: then chunks that are not sent are read as well.
    pub(super) checksum: bool,
    pub(super) earlier: Earlier,
    /// The part of the chunks to send; `None` for all.
    pub(super) selection: Option<Arc<Selection>>,
}

/// What earlier runs settled of an image that is read in order: it is read again, and compared.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// The digests of chunks that were sent.
    pub(super) digests: BTreeMap<u64, ChunkDigest>,
    /// Chunks that were left out as zeros.
    pub(super) holes: RangeSet<u64>,
    /// Whether to send again what changed.
    pub(super) changed_ok: bool,
    /// The journal that says so.
    pub(super) journal: Option<Journal>,
}

impl Earlier {
    /// Whether a chunk is the same as in an earlier run.
    fn is_same(&self, chunk: &RawChunk) -> bool {
        let index = chunk.span().index;
        match self.digests.get(&index) {
            Some(digest) => digest.is_of(chunk.bytes()),
            None => self.holes.contains(&index) && is_zero(chunk.bytes()),
        }
    }

    /// Whether any of these chunks has this index or a later one.
    fn reaches(&self, count: u64) -> bool {
        self.digests.range(count..).next().is_some()
            || self.holes.overlapping(&(count..u64::MAX)).next().is_some()
    }

    /// Records, before other bytes of a chunk are sent, that it has none of the bytes that the
    /// journal knows: if this run ends before they are confirmed, the drive has either. The digest
    /// is that of no bytes, which no chunk has.
    fn retract(&self, span: Span) -> Result<()> {
        let record = done(span, Some(Digest::of(&[]).into()));
        match (&self.journal, record) {
            (Some(journal), Some(record)) => journal.record(&[record]),
            _ => Ok(()),
        }
    }
}

fn changed(at: u64) -> Error {
    let what = format!(
        "The image changed since the upload began: at byte {at} it differs from what was sent"
    );
    Error::new(ErrorKind::Integrity, what).hint_to(advice![
        "Send what changed with ",
        Remedy::ChangedOk,
        ", or start over with ",
        Remedy::Restart
    ])
}

/// The running threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pipeline {
    prepared: Receiver<Result<Found<Prepared>>>,
    checksum: Receiver<Digest>,
    pool: BufferPool,
    pace: Pace,
}

/// The number of buffers for `workers` requests: one for each chunk in flight, one for each chunk
/// that is ready, one for the reader, and an output buffer for each compressor.
fn buffers(workers: usize, compressors: usize) -> usize {
    workers + workers.min(READY_MAX) + 1 + compressors
}

impl Pipeline {
    /// Starts to read what there is to send. Holds at most three buffers of a chunk for each worker
    /// announced by [`Pipeline::serve`].
    pub(super) fn start(config: PipelineConfig, sampler: &Sampler) -> Result<Self> {
        let PipelineConfig {
            image,
            plan,
            todo,
            jobs,
            pace,
            checksum,
            earlier,
            selection,
        } = config;
        let compressors = pace.compressors();
        let pool = BufferPool::new(buffers(1, compressors));
        // Before the reader takes the rest.
        let scratches: Vec<_> = (0..compressors).map_while(|_| pool.take(0)).collect();
        // A simulation has no threads: each step is complete before the next one begins.
        #[cfg(test)]
        let jobs = crate::simulator::room(&pool, &plan).unwrap_or(jobs);
        let (to_check, raw) = bounded(jobs);
        let (to_send, prepared) = bounded(jobs);
        // Of a stream, the reader reads all chunks in any case.
        let to_read = match checksum {
            true => std::iter::once(0..plan.count()).collect(),
            false => todo.clone(),
        };
        let reader = ImageReader::new(image, plan, to_read, pool.clone());
        let (hashed, checksum_of) = bounded(1);
        let hasher = checksum.then(|| (Hasher::new(), hashed));
        let todo = todo.into_iter().filter(|range| !range.is_empty()).collect();
        let mut reading = Reading {
            plan,
            todo,
            earlier,
            selection: selection.clone(),
            hasher,
            sampler: sampler.clone(),
            to_check,
            to_send: to_send.clone(),
        };
        spawn("reader", move || reading.run(reader))?;
        for (number, scratch) in scratches.into_iter().enumerate() {
            let mut compressor = Compressor {
                gzip: Gzip::new(scratch),
                pace: pace.clone(),
                sampler: sampler.clone(),
                selection: selection.clone(),
            };
            let (raw, to_send) = (raw.clone(), to_send.clone());
            spawn(&format!("gzip-{number}"), move || {
                compressor.run(&raw, &to_send);
            })?;
        }
        drop((raw, to_send));
        #[cfg(test)]
        let prepared = crate::simulator::delayed(prepared);
        Ok(Self {
            prepared,
            checksum: checksum_of,
            pool,
            pace,
        })
    }

    /// Provides memory for `workers` requests in flight.
    pub(super) fn serve(&self, workers: usize) {
        self.pool.grow(buffers(workers, self.pace.compressors()));
    }

    /// The next result, in any order; `None` at the end of the image.
    pub(super) async fn next(&self) -> Option<Result<Found<Prepared>>> {
        self.prepared.recv().await.ok()
    }

    /// Number of results that are ready and were not taken.
    pub(super) fn ready(&self) -> usize {
        self.prepared.len()
    }

    /// What determines the compression level.
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The digest of the whole image, once it was read to its end.
    pub(super) async fn checksum(&self) -> Result<Digest> {
        while let Ok(prepared) = self.prepared.recv().await {
            prepared?;
        }
        self.checksum
            .recv()
            .await
            .map_err(|cause| Error::new(ErrorKind::Bug, "The image was not hashed").because(cause))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.pace.close();
        self.pool.close();
        self.prepared.close();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    #[cfg(test)]
    if crate::simulator::is_on() {
        work();
        return Ok(());
    }
    thread(name, work).map(drop)
}

/// The reading thread. What is not in `todo` is only hashed, or compared.
struct Reading {
    plan: Plan,
    todo: RangeSet<u64>,
    earlier: Earlier,
    selection: Option<Arc<Selection>>,
    hasher: Option<(Hasher, Sender<Digest>)>,
    sampler: Sampler,
    to_check: Sender<Unchecked>,
    to_send: Sender<Result<Found<Prepared>>>,
}

impl Reading {
    /// Runs until the image ends, or nothing takes the results any more.
    fn run(&mut self, mut reader: ImageReader) {
        loop {
            let taken = match reader.read_next() {
                Ok(Some(found)) => self.hand_over(found),
                Ok(None) => {
                    if let Some((hasher, hashed)) = self.hasher.take() {
                        let _ = hashed.send_blocking(hasher.finish());
                    }
                    return;
                }
                Err(error) => Err(error),
            };
            match taken {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = self.to_send.send_blocking(Err(error));
                    return;
                }
            }
        }
    }

    /// Passes on what was found; returns whether something takes it.
    fn hand_over(&mut self, found: Found<Unchecked>) -> Result<bool> {
        Ok(match found {
            // What is hashed is read here, because that has to be in order. Otherwise several
            // compressors read in parallel.
            Found::Chunk(chunk @ Unchecked::Unread(_)) if self.hasher.is_none() => {
                self.to_check.send_blocking(chunk).is_ok()
            }
            Found::Chunk(chunk) => {
                let chunk = chunk.read()?;
                if let Some((hasher, _)) = &mut self.hasher {
                    hasher.bytes(chunk.bytes());
                }
                let is_wanted = self.todo.contains(&chunk.span().index) || self.differs(&chunk)?;
                !is_wanted || self.to_check.send_blocking(Unchecked::Read(chunk)).is_ok()
            }
            Found::Hole(chunks) => {
                if let Some((hasher, _)) = &mut self.hasher {
                    hasher.zeros(self.plan.bytes_in(&chunks));
                }
                self.todo.overlapping(&chunks).all(|range| {
                    let hole = range.start.max(chunks.start)..range.end.min(chunks.end);
                    let checked = match &self.selection {
                        Some(selection) => hole
                            .clone()
                            .try_for_each(|index| selection.check(index, None)),
                        None => Ok(()),
                    };
                    let is_same = checked.is_ok();
                    let hole = checked.map(|()| Found::Hole(hole));
                    self.to_send.send_blocking(hole).is_ok() && is_same
                })
            }
            Found::SizeKnown(size) => {
                self.plan = self.plan.ending_at(size);
                self.sampler.ends_at(&self.plan);
                if self.earlier.reaches(self.plan.count()) && !self.earlier.changed_ok {
                    return Err(changed(size));
                }
                let size = Ok(Found::SizeKnown(size));
                self.to_send.send_blocking(size).is_ok()
            }
        })
    }

    /// Whether a chunk that earlier runs settled differs now, and has to be sent again.
    fn differs(&self, chunk: &RawChunk) -> Result<bool> {
        let span = chunk.span();
        let is_known = self.earlier.digests.contains_key(&span.index)
            || self.earlier.holes.contains(&span.index);
        if !is_known {
            return Ok(false);
        }
        match self.earlier.is_same(chunk) {
            true => {
                self.sampler.look_at(span, chunk.bytes());
                Ok(false)
            }
            false if self.earlier.changed_ok => {
                self.earlier.retract(span)?;
                Ok(true)
            }
            false => Err(changed(span.offset)),
        }
    }
}

/// A thread that checks and compresses.
struct Compressor {
    gzip: Gzip,
    pace: Pace,
    sampler: Sampler,
    selection: Option<Arc<Selection>>,
}

impl Compressor {
    /// Runs until there is no more input, or nothing takes the results.
    fn run(&mut self, raw: &Receiver<Unchecked>, to_send: &Sender<Result<Found<Prepared>>>) {
        while let Ok(chunk) = raw.recv_blocking() {
            let prepared = chunk.read().and_then(|chunk| self.prepare(chunk));
            let is_same = prepared.is_ok();
            if to_send.send_blocking(prepared).is_err() || !is_same {
                return;
            }
        }
    }

    /// Converts a chunk to what is sent of it.
    fn prepare(&mut self, chunk: RawChunk) -> Result<Found<Prepared>> {
        let Self {
            gzip,
            pace,
            sampler,
            selection,
        } = self;
        let selection = selection.as_deref();
        let span = chunk.span();
        let Some(chunk) = chunk.check() else {
            selection.map_or(Ok(()), |selection| selection.check(span.index, None))?;
            return Ok(Found::Hole(span.index..span.index + 1));
        };
        sampler.look_at(span, chunk.bytes());
        let digest = match selection {
            Some(selection) => Some(selection.check_data(&chunk)?.into()),
            None => sampler.digest(&chunk),
        };
        let ranges = selection.and_then(|selection| selection.ranges(&chunk));
        let task = pace.take_up();
        let chunk = match ranges {
            Some(ranges) => gzip.encode_ranges(&chunk, task.level(), &ranges),
            None => gzip.encode(chunk, task.level(), pace.zeros()),
        };
        let is_raw = chunk
            .parts
            .iter()
            .all(|part| part.encoding == Encoding::Identity);
        let encoded = pace.done(&task, span, chunk.body_bytes(), is_raw);
        Ok(Found::Chunk((EncodedChunk { digest, ..chunk }, encoded)))
    }
}
