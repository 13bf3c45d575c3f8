//! Where the chunks of a download go: to their place in a file, or in order to a
//! stream.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::BytesMut;
use tokio::sync::Semaphore;

use super::checksum::Hasher;
use super::download::DownloadOptions;
use super::session::blocking;
use crate::codec::Packer;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageTarget;
use crate::plan::Span;
/// Where chunks go.
#[derive(Debug)]
pub(super) enum Sink {
    File(ImageTarget),
    Stream(Ordered),
    Packed(Packed),
}

impl Sink {
    /// What has to be synced before a chunk counts as there.
    pub(super) fn handle(&self) -> Result<Option<std::fs::File>> {
        match self {
            Self::File(target) => target.handle().map(Some),
            Self::Stream(_) | Self::Packed(_) => Ok(None),
        }
    }

    pub(super) fn put(&self, span: Span, bytes: BytesMut, window: &Arc<Semaphore>) -> Result<()> {
        match self {
            Self::File(target) => {
                target.put(&bytes, span.offset)?;
                window.add_permits(1);
                Ok(())
            }
            Self::Stream(ordered) => ordered.put(span.index, bytes, Arc::clone(window)),
            Self::Packed(packed) => match &packed.ordered {
                Some(ordered) => ordered.put(span.index, bytes, Arc::clone(window)),
                None => Err(Error::new(ErrorKind::Bug, "The output is finished already")),
            },
        }
    }

    /// The digest of what a stream was given, if it was asked for.
    pub(super) fn finish(self, force: bool) -> Result<Option<Digest>> {
        match self {
            Self::File(target) => target.publish(force).map(|()| None),
            Self::Stream(ordered) => ordered.finish(),
            Self::Packed(packed) => packed.finish(force),
        }
    }
}

/// A staged file that is written in order, packed. Dropped before its end it takes
/// the file with it: nobody could go on with it.
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
            ImageTarget::create(&name, 0, force)
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

    pub(super) fn finish(mut self, force: bool) -> Result<Option<Digest>> {
        let digest = self.ordered.take().map(Ordered::finish).transpose()?;
        if let Some(target) = self.target.take() {
            target.publish(force)?;
        }
        Ok(digest.flatten())
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            target.abandon();
        }
    }
}

/// A stream that hashes what it takes, if that was asked for.
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

/// Writes chunks to a stream in order, on a thread of its own. How many wait for
/// an earlier one is bounded by the window.
#[derive(Debug)]
pub(super) struct Ordered {
    chunks: mpsc::Sender<(u64, BytesMut, Arc<Semaphore>)>,
    thread: std::thread::JoinHandle<std::io::Result<Option<Digest>>>,
    count: u64,
}

impl Ordered {
    pub(super) fn start(
        stream: Box<dyn Write + Send>,
        count: u64,
        options: &DownloadOptions,
    ) -> Result<Self> {
        let (packing, checksum) = (options.packing, options.checksum);
        let (chunks, incoming) = mpsc::channel::<(u64, BytesMut, Arc<Semaphore>)>();
        let thread = std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let hasher = checksum.then(Hasher::new);
                let mut stream = Packer::new(packing, Hashed { stream, hasher })?;
                let mut early = BTreeMap::new();
                let mut next = 0;
                for (index, bytes, window) in incoming {
                    early.insert(index, (bytes, window));
                    while let Some((bytes, window)) = early.remove(&next) {
                        stream.write_all(&bytes)?;
                        window.add_permits(1);
                        next += 1;
                    }
                }
                if next < count {
                    // No end is written: nobody takes it for whole.
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                Ok(stream.finish()?.hasher.map(Hasher::finish))
            })
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot start a thread").because(cause)
            })?;
        Ok(Self {
            chunks,
            thread,
            count,
        })
    }

    pub(super) fn put(&self, index: u64, bytes: BytesMut, window: Arc<Semaphore>) -> Result<()> {
        debug_assert!(index < self.count);
        self.chunks.send((index, bytes, window)).map_err(|_| {
            Error::new(
                ErrorKind::Local,
                "Cannot write to the output: it was closed",
            )
        })
    }

    pub(super) fn finish(self) -> Result<Option<Digest>> {
        drop(self.chunks);
        let written = self.thread.join();
        written
            .unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")))
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot write to the output").because(cause)
            })
    }
}
