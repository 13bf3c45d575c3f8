//! The blocking half of an upload: threads that read, check and compress.

use std::ops::Range;
use std::thread;

use async_channel::{Receiver, Sender, bounded};

use super::verify::Sampler;
use crate::buffer::BufferPool;
use crate::chunk::{Checked, EncodedChunk, RawChunk};
use crate::codec::{Gzip, Level};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageReader, Piece};
use crate::plan::Plan;

/// What comes out of the pipeline, in any order.
#[derive(Debug)]
pub(super) enum Prepared {
    /// A chunk that is ready to be sent.
    Chunk(EncodedChunk),
    /// Chunks that are all zero.
    Hole(Range<u64>),
}

/// The running threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pipeline {
    prepared: Receiver<Result<Prepared>>,
    pool: BufferPool,
}

impl Pipeline {
    /// Starts to read the chunks of `plan` that are in `todo`. Holds at most
    /// three buffers of a chunk per job.
    pub(super) fn start(
        image: Image,
        plan: Plan,
        todo: Vec<Range<u64>>,
        level: Level,
        jobs: usize,
        sampler: &Sampler,
    ) -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let compressors = jobs.min(cores);
        // One per request in flight, one ready for each of these, one to read
        // into, and what each compressor writes to.
        let pool = BufferPool::new(2 * jobs + 1 + compressors);
        let (to_check, raw) = bounded(jobs);
        let (to_send, prepared) = bounded(jobs);

        for number in 0..compressors {
            let Some(scratch) = pool.take(0) else { break };
            let gzip = Gzip::new(level, scratch);
            let (raw, to_send, sampler) = (raw.clone(), to_send.clone(), sampler.clone());
            spawn(format!("gzip-{number}"), move || {
                compress(&raw, gzip, &sampler, &to_send);
            })?;
        }
        let reader = ImageReader::new(image, plan, todo, pool.clone());
        spawn("reader".into(), move || read(reader, &to_check, &to_send))?;
        Ok(Self { prepared, pool })
    }

    /// The next piece that is ready; `None` at the end of the image.
    pub(super) async fn next(&self) -> Option<Result<Prepared>> {
        self.prepared.recv().await.ok()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
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

/// Ends when the image does, or when nobody takes any more.
fn read(mut reader: ImageReader, to_check: &Sender<RawChunk>, to_send: &Sender<Result<Prepared>>) {
    loop {
        let taken = match reader.next_piece() {
            Ok(Some(Piece::Chunk(chunk))) => to_check.send_blocking(chunk).is_ok(),
            Ok(Some(Piece::Hole(chunks))) => {
                to_send.send_blocking(Ok(Prepared::Hole(chunks))).is_ok()
            }
            Ok(None) => false,
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
    sampler: &Sampler,
    to_send: &Sender<Result<Prepared>>,
) {
    while let Ok(chunk) = raw.recv_blocking() {
        let prepared = match chunk.check() {
            Checked::Hole(span) => Prepared::Hole(span.index..span.index + 1),
            Checked::Data(chunk) => {
                sampler.look_at(chunk.span(), chunk.bytes());
                let digest = sampler.wants_digests().then(|| Digest::of(chunk.bytes()));
                let chunk = gzip.encode(chunk);
                Prepared::Chunk(EncodedChunk { digest, ..chunk })
            }
        };
        if to_send.send_blocking(Ok(prepared)).is_err() {
            return;
        }
    }
}
