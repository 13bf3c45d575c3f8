//! The SHA-256 of a whole image, in order.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use rangemap::RangeSet;

use super::blocking::thread;
use crate::chunk::zeros;
use crate::digest::{self, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, RawImage};
use crate::plan::Plan;
use crate::system::FileAt;

/// Bytes to hash at a time.
const STEP_BYTES: usize = 256 * 1024;
/// Bytes of a hole to hash at a time.
const HOLE_BYTES_MAX: u64 = 1 << 30;

/// A hash that accepts zeros as a number.
pub(crate) struct Hasher {
    sha256: digest::Hasher,
    step: Vec<u8>,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self {
            sha256: digest::Hasher::default(),
            step: vec![0; STEP_BYTES],
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
    }

    pub(crate) fn zeros(&mut self, len: u64) {
        for step in zeros(len) {
            self.sha256.update(step);
        }
    }

    /// Hashes a range of a file.
    fn file(&mut self, file: &File, range: Range<u64>) -> std::io::Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let n = (range.end - offset).min(STEP_BYTES as u64);
            let step = &mut self.step[..usize::try_from(n).unwrap_or(0)];
            file.read_exact_at(step, offset)?;
            self.sha256.update(step);
            offset += n;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Digest {
        self.sha256.finish()
    }
}

/// The SHA-256 of the bytes of an image as it was given. A stream is hashed while it is read. A
/// file is hashed by a separate thread, concurrently with its other readers.
#[derive(Debug)]
pub(crate) enum SourceHash {
    /// The digest is set when the stream was read to its end.
    Stream(Arc<OnceLock<Digest>>),
    /// A file is read.
    File {
        thread: Option<JoinHandle<Result<Digest>>>,
        is_over: Arc<AtomicBool>,
    },
}

impl SourceHash {
    pub(crate) fn start(image: &Image) -> Result<Self> {
        if let Image::Stream(stream) = image {
            return Ok(Self::Stream(stream.digest()));
        }
        let file = image
            .file()
            .map(RawImage::as_given)
            .ok_or_else(|| Error::new(ErrorKind::Bug, "The image has no file"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread("sha256", move || hash_of(&file, &ends))?;
        Ok(Self::File {
            thread: Some(thread),
            is_over,
        })
    }

    /// The digest, once everything was read. Blocks.
    pub(crate) fn finish(mut self) -> Result<Digest> {
        let none = || Error::new(ErrorKind::Bug, "The image was not hashed");
        match &mut self {
            Self::Stream(digest) => digest.get().copied().ok_or_else(none),
            Self::File { thread, .. } => match thread.take().map(JoinHandle::join) {
                Some(Ok(digest)) => digest,
                _ => Err(none()),
            },
        }
    }
}

impl Drop for SourceHash {
    fn drop(&mut self) {
        if let Self::File { is_over, .. } = self {
            is_over.store(true, Ordering::Relaxed);
        }
    }
}

/// The digest of a file, whose holes are not read; ends early if it is no longer needed.
fn hash_of(file: &RawImage, is_over: &AtomicBool) -> Result<Digest> {
    let mut hasher = Hasher::new();
    let mut step = vec![0; STEP_BYTES];
    let mut at = 0;
    while at < file.size() && !is_over.load(Ordering::Relaxed) {
        let data = file.data_after(at).unwrap_or(file.size()..file.size());
        // Long holes are hashed in steps, so that it can end in between.
        let start = data.start.min(at.saturating_add(HOLE_BYTES_MAX));
        hasher.zeros(start.saturating_sub(at));
        at = at.max(start);
        if start < data.start || at >= data.end {
            continue;
        }
        let n = (data.end - at).min(STEP_BYTES as u64);
        let step = &mut step[..usize::try_from(n).unwrap_or(0)];
        file.read_at(step, at)?;
        hasher.bytes(step);
        at += n;
    }
    Ok(hasher.finish())
}

/// Follows a file that is written in any order, on a separate thread: hashes everything that has no
/// gap before it. This includes what an earlier run wrote, or what precedes the first byte of this
/// one.
#[derive(Debug)]
pub(crate) struct Follower {
    plan: Plan,
    /// The byte of the file at which the plan begins.
    base: u64,
    there: RangeSet<u64>,
    reached: mpsc::Sender<u64>,
    thread: JoinHandle<std::io::Result<Digest>>,
}

impl Follower {
    pub(crate) fn start(file: File, plan: Plan, base: u64, there: RangeSet<u64>) -> Result<Self> {
        let (reached, ends) = mpsc::channel::<u64>();
        let thread = thread("checksum", move || {
            let mut hasher = Hasher::new();
            let mut at = 0;
            for end in ends {
                hasher.file(&file, at..end)?;
                at = at.max(end);
            }
            Ok(hasher.finish())
        })?;
        let follower = Self {
            plan,
            base,
            there,
            reached,
            thread,
        };
        follower.report_reached();
        Ok(follower)
    }

    /// Reports that chunks (at least one) are in the file.
    pub(crate) fn settled(&mut self, chunks: Range<u64>) {
        self.there.insert(chunks);
        self.report_reached();
    }

    /// Sends the thread the offset up to which the file is complete.
    fn report_reached(&self) {
        let first_open = self.there.get(&0).map_or(0, |range| range.end);
        let span = self.plan.span(first_open);
        let end = self.base + span.map_or(self.plan.size(), |span| span.offset);
        // If the thread is gone, it has failed, and `finish` returns the error.
        let _ = self.reached.send(end);
    }

    /// The digest, once the whole file was written. Blocks.
    pub(crate) fn finish(self) -> Result<Digest> {
        drop(self.reached);
        let digest = self.thread.join();
        digest
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
            .map_err(|cause| {
                Error::new(ErrorKind::Local, "Cannot read the image for its checksum")
                    .because(cause)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn bytes_written_in_any_order_are_hashed_in_order() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
        // The 100 bytes before the plan, and the third chunk, are there.
        file.write_all_at(&bytes[..100], 0).unwrap();
        file.write_all_at(&bytes[220..280], 220).unwrap();
        let plan = Plan::new(900, NonZeroU64::new(60).unwrap());
        let there = RangeSet::from_iter(std::iter::once(2..3));
        let handle = file.try_clone().unwrap();
        let mut follower = Follower::start(handle, plan, 100, there).unwrap();
        for index in [1, 0, 14, 13, 12, 3, 5, 4, 6, 7, 11, 10, 9, 8] {
            let from = 100 + 60 * index as usize;
            file.write_all_at(&bytes[from..from + 60], from as u64)
                .unwrap();
            follower.settled(index..index + 1);
        }
        assert_eq!(follower.finish().unwrap(), Digest::of(&bytes));
    }

    #[test]
    fn a_file_is_hashed_with_its_holes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; 3_000_001];
        file.as_file().set_len(3_000_001).unwrap();
        for at in [0, 700_000, 2_999_000] {
            bytes[at..at + 1001].fill(7);
            file.as_file().write_all_at(&[7; 1001], at as u64).unwrap();
        }
        let image = Image::open_raw(file.path()).unwrap();
        let digest = SourceHash::start(&image).unwrap().finish().unwrap();
        assert_eq!(digest, Digest::of(&bytes));
    }

    #[test]
    fn unwritten_zeros_are_hashed() {
        let mut hasher = Hasher::new();
        hasher.bytes(b"a");
        hasher.zeros(600_000);
        hasher.bytes(b"b");
        let bytes = [&b"a"[..], &vec![0; 600_000], b"b"].concat();
        assert_eq!(hasher.finish(), Digest::of(&bytes));
    }
}
