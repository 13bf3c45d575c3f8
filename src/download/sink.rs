//! Where the chunks of a download are written: to their place in a file, or in order to a stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use tokio::sync::OwnedSemaphorePermit;

use super::fetch_chunk::{Fetched, Run};
use super::options::DownloadOptions;
use crate::chunk::zeros;
use crate::codec::Packer;
use crate::digest::Digest;
use crate::driver::blocking::{blocking, thread};
use crate::driver::checksum::Hasher;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Weakness, remedy};
use crate::image::{Disk, ImageTarget, TargetFormat};
use crate::journal::{Data, Note};
use crate::plan::Plan;

/// Maximum bytes of a hole to write at a time: a fraction of a second's work, after which other
/// chunks have their turn.
const HOLE_BYTES_MAX: u64 = 64 << 20;

/// The destination of chunks.
#[derive(Debug)]
pub(super) enum Sink {
    File(ImageTarget),
    Stream(Ordered),
    Packed(Packed),
}

impl Sink {
    /// What the journal of a download has to know about its file. `accepted` is what the last run
    /// wrote there without a sync.
    pub(super) fn data(&self, accepted: Vec<Note>) -> Result<Option<Data>> {
        let Self::File(target) = self else {
            return Ok(None);
        };
        Ok(Some(Data {
            file: target.handle()?,
            page_cache: target.page_cache(),
            accepted,
        }))
    }

    /// The file, if its bytes are written at their offsets.
    pub(super) fn handle(&self) -> Result<Option<File>> {
        match self {
            Self::File(target) => target.handle().map(Some),
            Self::Stream(_) | Self::Packed(_) => Ok(None),
        }
    }

    /// The disk as far as it is in the file, which has this `format`; `None` for a stream.
    pub(super) fn to_disk(&self, format: TargetFormat) -> Result<Option<Arc<dyn Disk>>> {
        match self {
            Self::File(target) => Ok(Some(target.to_disk(format)?.into())),
            Self::Stream(_) | Self::Packed(_) => Ok(None),
        }
    }

    /// Writes a chunk to its place. Blocks. Gives up its place in the window when it is written.
    /// For a raw file, the result is the number of its blocks with data.
    pub(super) fn put(&self, chunk: Fetched, permit: OwnedSemaphorePermit) -> Result<u64> {
        match self {
            Self::File(target) => {
                let span = chunk.span();
                let data = chunk.runs().filter_map(|(offset, run)| match run {
                    Run::Bytes(bytes) => Some((offset, bytes)),
                    Run::Zeros(_) => None,
                });
                target.put_all(span.offset..span.end(), data)
            }
            Self::Stream(_) | Self::Packed(_) => {
                let index = chunk.span().index;
                let chunk = Piece::Chunk(chunk);
                self.ordered()?.put(index, chunk, Some(permit)).map(|()| 0)
            }
        }
    }

    /// Whether a chunk waits for the ones before it, and so for room in the window.
    pub(super) fn is_ordered(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Packed(_))
    }

    /// How many bytes of a hole to pass at a time: a fraction of a second's work.
    pub(super) fn hole_bytes_max(&self) -> u64 {
        match self {
            Self::File(target) if target.leaves_zeros() => u64::MAX,
            _ => HOLE_BYTES_MAX,
        }
    }

    /// Settles these chunks of a plan that begins at byte `base`, which are holes. Blocks. In a
    /// stream they have a place in the window, which they give up when they are written.
    pub(super) fn put_holes(
        &self,
        plan: &Plan,
        base: u64,
        chunks: Range<u64>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<()> {
        let bytes = plan.bytes_of(&chunks);
        let (offset, bytes) = (base + bytes.start, bytes.end - bytes.start);
        match self {
            Self::File(target) => target.put_zeros(offset, bytes),
            Self::Stream(_) | Self::Packed(_) => {
                let count = chunks.end - chunks.start;
                let zeros = Piece::Zeros { count, bytes };
                self.ordered()?.put(chunks.start, zeros, permit)
            }
        }
    }

    /// What the file system cannot guarantee for the file.
    pub(super) fn weaknesses(&self) -> &[Weakness] {
        match self {
            Self::File(target) => target.weaknesses(),
            Self::Packed(packed) => packed.target.as_ref().map_or(&[], ImageTarget::weaknesses),
            Self::Stream(_) => &[],
        }
    }

    /// Why a stream accepts no more data.
    pub(super) fn failed(&self) -> Error {
        self.ordered().map_or_else(|error| error, Ordered::failed)
    }

    fn ordered(&self) -> Result<&Ordered> {
        let ordered = match self {
            Self::Stream(ordered) => Some(ordered),
            Self::Packed(packed) => packed.ordered.as_ref(),
            Self::File(_) => None,
        };
        ordered.ok_or_else(|| Error::new(ErrorKind::Bug, "The output is finished already"))
    }

    /// Completes the output. If the bytes of a file are not those of the disk, its digest is
    /// computed if `checksum`.
    pub(super) fn finish(self, force: bool, checksum: bool) -> Result<Finished> {
        match self {
            Self::File(target) => {
                target.complete()?;
                let digest = match checksum && !target.is_raw() {
                    true => Some(digest_of(&target.handle()?)?),
                    false => None,
                };
                let weaknesses = target.publish(force)?;
                Ok(Finished { digest, weaknesses })
            }
            Self::Stream(ordered) => Ok(Finished {
                digest: ordered.finish()?,
                weaknesses: Vec::new(),
            }),
            Self::Packed(packed) => packed.finish(force),
        }
    }
}

/// The completed output.
#[derive(Debug)]
pub(super) struct Finished {
    /// The digest of the stream or the file, if requested.
    pub(super) digest: Option<Digest>,
    /// What the file system could not guarantee at the end, and had not reported before.
    pub(super) weaknesses: Vec<Weakness>,
}

/// The digest of a file that nothing writes to.
pub(super) fn digest_of(file: &File) -> Result<Digest> {
    let digest = file
        .metadata()
        .and_then(|metadata| crate::filesystem::digest_of(file, 0..metadata.len()));
    digest.map_err(|cause| {
        Error::new(ErrorKind::Local, "Cannot read what was written").because(cause)
    })
}

/// A staged file that is compressed and written in order. If it is dropped before its end, the file
/// is removed, because it cannot be resumed.
#[derive(Debug)]
pub(super) struct Packed {
    ordered: Option<Ordered>,
    target: Option<ImageTarget>,
}

impl Packed {
    pub(super) async fn create(
        path: PathBuf,
        force: bool,
        count: u64,
        options: &DownloadOptions,
    ) -> Result<Self> {
        let (name, restart) = (path.clone(), options.journal.restart);
        let target = blocking(move || {
            if restart {
                ImageTarget::discard(&name)?;
            }
            ImageTarget::create(&name, 0, force, TargetFormat::Raw)
        })
        .await?;
        if !target.is_staged() {
            let what = format!("{} is a device: it cannot be packed", path.display());
            return Err(Error::new(ErrorKind::Usage, what));
        }
        let mut packed = Self {
            ordered: None,
            target: None,
        };
        let file = Box::new(target.handle()?);
        packed.target = Some(target);
        packed.ordered = Some(Ordered::start(file, count, options)?);
        Ok(packed)
    }

    fn finish(mut self, force: bool) -> Result<Finished> {
        let digest = self.ordered.take().map(Ordered::finish).transpose()?;
        let weaknesses = match self.target.take() {
            Some(target) => target.publish(force)?,
            None => Vec::new(),
        };
        Ok(Finished {
            digest: digest.flatten(),
            weaknesses,
        })
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            target.abandon();
        }
    }
}

/// A stream that hashes what is written to it, if requested.
struct Hashed {
    stream: Box<dyn Write + Send>,
    hasher: Option<Hasher>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.stream.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.bytes(&bytes[..n]);
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// The error for an output that accepts no more data.
fn cannot_write(cause: std::io::Error) -> Error {
    let remedy = remedy(&cause);
    Error::new(ErrorKind::Local, "Cannot write to the output")
        .because(cause)
        .hint_if(remedy)
}

/// Why an output accepts no more data, for all who use it.
type Failed = Arc<OnceLock<std::io::Error>>;

/// A copy of the error: the standard library has no other way to create one.
fn copy(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(number) => std::io::Error::from_raw_os_error(number),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

/// The next piece of a stream.
#[derive(Debug)]
enum Piece {
    /// A chunk.
    Chunk(Fetched),
    /// This many chunks of zeros, with this many bytes in total.
    Zeros { count: u64, bytes: u64 },
}

impl Piece {
    fn count(&self) -> u64 {
        match self {
            Self::Chunk(_) => 1,
            Self::Zeros { count, .. } => *count,
        }
    }

    fn write_to<W: Write>(&self, stream: &mut Packer<W>) -> std::io::Result<()> {
        match self {
            Self::Chunk(chunk) => chunk.write_to(|bytes| stream.write_all(bytes)),
            Self::Zeros { bytes, .. } => zeros(*bytes).try_for_each(|step| stream.write_all(step)),
        }
    }
}

/// A piece with the index of its first chunk and its place in the window.
type Waiting = (u64, Piece, Option<OwnedSemaphorePermit>);

/// Writes chunks to a stream in order, on a separate thread. The window limits how many wait for an
/// earlier one.
#[derive(Debug)]
pub(super) struct Ordered {
    pieces: mpsc::Sender<Waiting>,
    thread: std::thread::JoinHandle<std::io::Result<Option<Digest>>>,
    failed: Failed,
    count: u64,
}

impl Ordered {
    pub(super) fn start(
        stream: Box<dyn Write + Send>,
        count: u64,
        options: &DownloadOptions,
    ) -> Result<Self> {
        let (packing, checksum) = (options.packing, options.checksum);
        let (pieces, incoming) = mpsc::channel::<Waiting>();
        let failed = Failed::default();
        let slot = Arc::clone(&failed);
        let thread = thread("output", move || {
            let hasher = checksum.then(Hasher::new);
            let mut stream = Packer::new(packing, Hashed { stream, hasher })?;
            let mut early = BTreeMap::new();
            let mut next = 0;
            for (index, piece, permit) in incoming {
                early.insert(index, (piece, permit));
                while let Some((piece, permit)) = early.remove(&next) {
                    let written = piece.write_to(&mut stream);
                    written.inspect_err(|cause| {
                        let _ = slot.set(copy(cause));
                        // Otherwise those who wait for room would wait for ever.
                        permit.iter().for_each(|permit| permit.semaphore().close());
                    })?;
                    next += piece.count();
                }
            }
            if next < count {
                // No regular end is written, so that nobody mistakes the output for complete.
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            Ok(stream.finish()?.hasher.map(Hasher::finish))
        })?;
        Ok(Self {
            pieces,
            thread,
            failed,
            count,
        })
    }

    fn put(&self, index: u64, piece: Piece, permit: Option<OwnedSemaphorePermit>) -> Result<()> {
        debug_assert!(index + piece.count() <= self.count);
        let sent = self.pieces.send((index, piece, permit));
        sent.map_err(|_| self.failed())
    }

    /// Why nothing more can be written.
    fn failed(&self) -> Error {
        let cause = self.failed.get().map(copy);
        cannot_write(cause.unwrap_or_else(|| std::io::Error::other("its thread ended")))
    }

    pub(super) fn finish(self) -> Result<Option<Digest>> {
        drop(self.pieces);
        let written = self.thread.join();
        written
            .unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")))
            .map_err(cannot_write)
    }
}
