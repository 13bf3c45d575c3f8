//! The blocking half of an upload: threads that read, check and compress.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use async_channel::{Receiver, Sender, bounded};
use rangemap::RangeSet;

use super::checksum::Hasher;
use super::pace::Pace;
use super::selection::Selection;
use super::verify::Sampler;
use crate::buffer::BufferPool;
use crate::chunk::{Checked, EncodedChunk, Encoding, RawChunk};
use crate::codec::Gzip;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageReader, Piece};
use crate::monitor::Encoded;
use crate::plan::Plan;

/// What comes out of the pipeline, in any order.
#[derive(Debug)]
pub(super) enum Prepared {
    /// A chunk that is ready to be sent, and how it was made.
    Chunk(EncodedChunk, Encoded),
    /// Chunks that are all zero.
    Hole(Range<u64>),
}

/// The running threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pipeline {
    prepared: Receiver<Result<Prepared>>,
    checksum: Receiver<Digest>,
    pool: BufferPool,
    pace: Pace,
}

/// Which chunks go through, and what of them.
#[derive(Clone, Debug)]
pub(super) struct Todo {
    /// By index, in order.
    pub(super) chunks: Vec<Range<u64>>,
    pub(super) selection: Option<Arc<Selection>>,
}

/// Buffers for so many requests: one for each in flight, one ready for each of
/// these, one to read into, and what each compressor writes to.
fn buffers(workers: usize, compressors: usize) -> usize {
    2 * workers + 1 + compressors
}

impl Pipeline {
    /// Starts to read the chunks of `plan` that are `todo`, at most `jobs` of
    /// which will be in flight. Holds at most three buffers of a chunk for each
    /// that [`Pipeline::serve`] is told of. With `checksum` it reads the other
    /// chunks as well, for the hash alone.
    pub(super) fn start(
        image: Image,
        plan: Plan,
        todo: Todo,
        jobs: usize,
        pace: Pace,
        sampler: &Sampler,
        checksum: bool,
    ) -> Result<Self> {
        let compressors = pace.compressors();
        let pool = BufferPool::new(buffers(1, compressors));
        let (to_check, raw) = bounded(jobs);
        let (to_send, prepared) = bounded(jobs);

        for number in 0..compressors {
            let Some(scratch) = pool.take(0) else { break };
            let gzip = Gzip::new(scratch);
            let (raw, to_send, sampler) = (raw.clone(), to_send.clone(), sampler.clone());
            let (pace, selection) = (pace.clone(), todo.selection.clone());
            spawn(format!("gzip-{number}"), move || {
                compress(&raw, gzip, &pace, &sampler, selection.as_deref(), &to_send);
            })?;
        }
        let all = match checksum {
            true => std::iter::once(0..plan.count()).collect(),
            false => todo.chunks.clone(),
        };
        let reader = ImageReader::new(image, plan, all, pool.clone());
        let (hashed, checksum_of) = bounded(1);
        let hasher = checksum.then(|| (Hasher::new(), hashed));
        let Todo { chunks, selection } = todo;
        let todo = chunks.into_iter().filter(|range| !range.is_empty());
        let todo = todo.collect();
        spawn("reader".into(), move || {
            let selection = selection.as_deref();
            read(reader, plan, &todo, selection, hasher, &to_check, &to_send);
        })?;
        Ok(Self {
            prepared,
            checksum: checksum_of,
            pool,
            pace,
        })
    }

    /// So many requests may be in flight from now on: takes the memory for it.
    pub(super) fn serve(&self, workers: usize) {
        self.pool.grow(buffers(workers, self.pace.compressors()));
    }

    /// The next piece that is ready; `None` at the end of the image.
    pub(super) async fn next(&self) -> Option<Result<Prepared>> {
        self.prepared.recv().await.ok()
    }

    /// Pieces that are ready and were not taken.
    pub(super) fn ready(&self) -> usize {
        self.prepared.len()
    }

    /// What the compressors go by.
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The digest of the whole image, when it has been read to its end.
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

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    match thread::Builder::new().name(name).spawn(work) {
        Ok(_) => Ok(()),
        Err(cause) => Err(Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)),
    }
}

/// Ends when the image does, or when nobody takes any more. What is not in `todo`
/// is hashed only.
fn read(
    mut reader: ImageReader,
    plan: Plan,
    todo: &RangeSet<u64>,
    selection: Option<&Selection>,
    mut hasher: Option<(Hasher, Sender<Digest>)>,
    to_check: &Sender<RawChunk>,
    to_send: &Sender<Result<Prepared>>,
) {
    loop {
        let taken = match reader.next_piece() {
            Ok(Some(Piece::Chunk(chunk))) => {
                if let Some((hasher, _)) = &mut hasher {
                    hasher.bytes(chunk.bytes());
                }
                !todo.contains(&chunk.span().index) || to_check.send_blocking(chunk).is_ok()
            }
            Ok(Some(Piece::Hole(chunks))) => {
                if let Some((hasher, _)) = &mut hasher {
                    hasher.zeros(plan.bytes_in(&chunks));
                }
                todo.overlapping(&chunks).all(|range| {
                    let hole = range.start.max(chunks.start)..range.end.min(chunks.end);
                    let checked = match selection {
                        Some(selection) => hole
                            .clone()
                            .try_for_each(|index| selection.check(index, None)),
                        None => Ok(()),
                    };
                    let is_same = checked.is_ok();
                    let prepared = checked.map(|()| Prepared::Hole(hole));
                    to_send.send_blocking(prepared).is_ok() && is_same
                })
            }
            Ok(None) => {
                if let Some((hasher, hashed)) = hasher {
                    let _ = hashed.send_blocking(hasher.finish());
                }
                return;
            }
            Err(error) => {
                let _ = to_send.send_blocking(Err(error));
                false
            }
        };
        if !taken {
            return;
        }
    }
}

fn compress(
    raw: &Receiver<RawChunk>,
    mut gzip: Gzip,
    pace: &Pace,
    sampler: &Sampler,
    selection: Option<&Selection>,
    to_send: &Sender<Result<Prepared>>,
) {
    while let Ok(chunk) = raw.recv_blocking() {
        let prepared = match chunk.check() {
            Checked::Hole(span) => {
                let checked = selection.map_or(Ok(()), |only| only.check(span.index, None));
                checked.map(|()| Prepared::Hole(span.index..span.index + 1))
            }
            Checked::Data(chunk) => {
                let span = chunk.span();
                sampler.look_at(span, chunk.bytes());
                let digest = sampler.wants_digests().then(|| Digest::of(chunk.bytes()));
                let checked =
                    selection.map_or(Ok(()), |only| only.check(span.index, digest.as_ref()));
                let ranges = selection.and_then(|only| only.ranges(&chunk));
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
                checked.map(|()| Prepared::Chunk(EncodedChunk { digest, ..chunk }, encoded))
            }
        };
        let is_same = prepared.is_ok();
        if to_send.send_blocking(prepared).is_err() || !is_same {
            return;
        }
    }
}
