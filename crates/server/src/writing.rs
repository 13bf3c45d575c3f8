//! Writes a body to a drive, on a thread that may block.
//!
//! A body of at most 8 MiB, decompressed, is held in memory until it is complete and verified, and
//! then written to the drive at once. So an invalid or incomplete body changes nothing. A longer
//! body is first written to a nameless file, and copied from there. An exception is a raw body of
//! known length: it is written to the drive directly, in steps of 1 MiB, and if it breaks off, its
//! beginning stays on the drive and it gets no 204. The nameless files for a drive have at most as
//! many bytes as the drive. Two overlapping writes are applied one after the other: completely if
//! held in memory, otherwise step by step.

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::body::{Encoding, Frames};
use super::budget::BODY_ON_THREAD_BYTES;
use super::faults::PastEnd;
use super::hosted::{Hosted, Pass};
use super::sparse;
use super::store::Store;
use openhosting_base::codec::{Gunzip, GunzipError, Trailing};
use openhosting_base::locks::lock;
use openhosting_tenancy::Refusal;

/// Maximum decompressed bytes of a body that are held in memory until it is complete. It has to
/// exceed the 5 MiB of a default chunk, so that such a write is applied completely or not at all.
const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a step for a long raw body.
const STEP_BYTES: usize = 1024 * 1024;
/// Buffers to keep for the next writes.
const KEPT_BUFFERS: usize = 4;

/// When a client should repeat a body that was refused because of others: they end soon.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One write.
pub(super) struct Write {
    pub(super) pass: Pass,
    /// Offset on the drive; not beyond its end.
    pub(super) offset: u64,
    pub(super) encoding: Encoding,
    /// Length of the body as sent, if it was declared.
    pub(super) body_bytes: Option<u64>,
    pub(super) past_end: PastEnd,
}

/// Reusable buffers. The budget for bodies limits their number.
#[derive(Debug, Default)]
pub(super) struct Memory {
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer with undefined content, which is reused for the next write.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    back: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = lock(&self.back);
        if self.bytes.len() == HELD_BYTES_MAX && kept.len() < KEPT_BUFFERS {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Memory {
    /// A buffer for `write`, within the reserved memory.
    pub(super) fn buffer(&self, write: &Write) -> Buffer {
        let len = write.held_bytes().unwrap_or_else(|| write.buffer_bytes());
        let kept = match len > STEP_BYTES {
            true => lock(&self.buffers).pop(),
            false => Some(vec![0; len]),
        };
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; HELD_BYTES_MAX]),
            len,
            back: Arc::clone(&self.buffers),
        }
    }
}

impl Write {
    /// Bytes from the offset to the end of the drive.
    fn room(&self) -> u64 {
        self.pass.drive.size().saturating_sub(self.offset)
    }

    /// Whether the body is written to the drive while it arrives.
    fn is_streamed(&self) -> bool {
        let is_long = |bytes| bytes > HELD_BYTES_MAX as u64;
        self.encoding == Encoding::Raw && self.body_bytes.is_some_and(is_long)
    }

    /// The length of a body that need not be decoded and can be held in memory: it is collected on
    /// the async runtime, and needs a thread only for writing.
    pub(super) fn held_bytes(&self) -> Option<usize> {
        let is_all_written = self.past_end != PastEnd::Truncated;
        let fits = |bytes: &u64| *bytes <= self.room().min(HELD_BYTES_MAX as u64);
        let bytes = self.body_bytes.filter(fits)?;
        (self.encoding == Encoding::Raw && is_all_written).then_some(bytes as usize)
    }

    /// Writes a whole body and returns its length.
    pub(super) fn land(&self, body: &[u8]) -> Result<u64, Refusal> {
        land(&self.pass.drive, body, self.offset)?;
        Ok(body.len() as u64)
    }

    /// The share of the budget for bodies that it takes, in bytes.
    pub(super) fn share_bytes(&self) -> u64 {
        let bytes = self.buffer_bytes() as u64;
        match self.held_bytes() {
            Some(_) => bytes,
            None => bytes.max(BODY_ON_THREAD_BYTES),
        }
    }

    /// The memory that the body needs, in bytes.
    fn buffer_bytes(&self) -> usize {
        if self.is_streamed() {
            return STEP_BYTES;
        }
        // One byte more than there is space for, so that a body that is too long is detected.
        let room = self.room().saturating_add(1);
        let bytes = match (self.encoding, self.body_bytes) {
            (Encoding::Raw, Some(bytes)) => room.min(bytes.saturating_add(1)),
            _ => room,
        };
        bytes.min(HELD_BYTES_MAX as u64) as usize
    }

    /// Refuses a body that cannot fit before it is read.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let is_past = self.offset > self.pass.drive.size();
        let raw_bytes = match self.encoding {
            Encoding::Raw => self.body_bytes.unwrap_or(0),
            Encoding::Gzip => 0,
        };
        let is_truncated = self.past_end == PastEnd::Truncated;
        match (is_past || raw_bytes > self.room()) && !is_truncated {
            true => Err(self.worded(too_long())),
            false => Ok(()),
        }
    }

    /// The server's own wording for a body that is too long.
    fn worded(&self, refusal: Refusal) -> Refusal {
        match self.past_end {
            PastEnd::Full if refusal == too_long() => Refusal::full(),
            _ => refusal,
        }
    }

    /// Receives the body and writes it; returns how many bytes of the drive were written.
    pub(super) fn run(
        &self,
        frames: Frames,
        store: &Store,
        memory: &Memory,
    ) -> Result<u64, Refusal> {
        let is_truncated = self.past_end == PastEnd::Truncated;
        let unpacked_max = if is_truncated { u64::MAX } else { self.room() };
        let mut source = match self.encoding {
            Encoding::Raw => Source::Raw(frames),
            Encoding::Gzip => {
                let gunzip = Gunzip::new(frames, unpacked_max, Trailing::Refuse);
                Source::Gzip(Box::new(gunzip))
            }
        };
        let mut buffer = memory.buffer(self);
        let result = match (is_truncated, self.is_streamed()) {
            (true, _) => self.truncate(&mut source, &mut buffer),
            (false, true) => self.stream(&mut source, &mut buffer),
            (false, false) => self.hold(&mut source, &mut buffer, store),
        };
        result.map_err(|refusal| self.worded(refusal))
    }

    /// Writes a complete body that fits: at once if it fits into `buffer`.
    fn hold(&self, source: &mut Source, buffer: &mut [u8], store: &Store) -> Result<u64, Refusal> {
        let filled = source.fill(buffer)?;
        if filled as u64 > self.room() {
            return Err(too_long());
        }
        if filled == HELD_BYTES_MAX {
            return self.spill(source, buffer, store);
        }
        self.land(&buffer[..filled])
    }

    /// Writes what fits and silently drops the rest.
    fn truncate(&self, source: &mut Source, buffer: &mut [u8]) -> Result<u64, Refusal> {
        let mut written = 0;
        loop {
            let filled = source.fill(buffer)?;
            if filled == 0 {
                return Ok(written);
            }
            let fits = (self.room() - written).min(filled as u64);
            land(
                &self.pass.drive,
                &buffer[..fits as usize],
                self.offset + written,
            )?;
            written += fits;
        }
    }

    fn stream(&self, source: &mut Source, buffer: &mut [u8]) -> Result<u64, Refusal> {
        let mut written = 0;
        loop {
            let filled = source.fill(buffer)?;
            if filled == 0 {
                return Ok(written);
            }
            land(&self.pass.drive, &buffer[..filled], self.offset + written)?;
            written += filled as u64;
        }
    }

    /// Receives the rest of a body for which `buffer` is too small.
    fn spill(&self, source: &mut Source, buffer: &mut [u8], store: &Store) -> Result<u64, Refusal> {
        let mut count = SpilledBytes::new(&self.pass.drive);
        let spilled = store.unnamed_file()?;
        let mut len = 0;
        let mut filled = buffer.len();
        while filled > 0 {
            if len + filled as u64 > self.room() {
                return Err(too_long());
            }
            count.add(filled as u64)?;
            sparse::write_at(&spilled, &buffer[..filled], len)?;
            len += filled as u64;
            filled = source.fill(buffer)?;
        }
        spilled.set_len(len)?;
        self.copy_from(&spilled, len, &mut buffer[..STEP_BYTES])?;
        Ok(len)
    }

    fn copy_from(&self, spilled: &File, len: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(buffer.len() as u64) as usize;
            spilled.read_exact_at(&mut buffer[..step], done)?;
            land(&self.pass.drive, &buffer[..step], self.offset + done)?;
            done += step as u64;
        }
        Ok(())
    }
}

/// Counts the bytes of one body that is not on its drive yet, until it is dropped.
struct SpilledBytes<'a> {
    drive: &'a Hosted,
    bytes: u64,
}

impl<'a> SpilledBytes<'a> {
    fn new(drive: &'a Hosted) -> Self {
        Self { drive, bytes: 0 }
    }

    /// Refuses more bytes than the drive has: bodies for different places of it never have them,
    /// and quotas count only the drive.
    fn add(&mut self, bytes: u64) -> Result<(), Refusal> {
        let others = self.drive.spilled_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        match others.saturating_add(bytes) > self.drive.size() {
            true => Err(Refusal::too_many(
                RETRY_AFTER,
                "More bytes are being written to this drive than it has",
            )),
            false => Ok(()),
        }
    }
}

impl Drop for SpilledBytes<'_> {
    fn drop(&mut self) {
        let bytes = &self.drive.spilled_bytes;
        bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn land(drive: &Hosted, data: &[u8], offset: u64) -> Result<(), Refusal> {
    let _landing = lock(&drive.landing);
    Ok(sparse::write_at(&drive.file, data, offset)?)
}

fn too_long() -> Refusal {
    Refusal::usage("The write goes past the end of the drive")
}

/// A body, decoded to bytes of the drive.
enum Source {
    Raw(Frames),
    Gzip(Box<Gunzip<Frames>>),
}

impl Source {
    /// Fills `buffer`; fewer bytes mean the regular end of the body.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Refusal> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refusal> {
        match self {
            Self::Raw(frames) => frames.read(buffer).map_err(|_| frames.failure()),
            Self::Gzip(gunzip) => gunzip.read(buffer).map_err(|error| match error {
                GunzipError::TooLong(_) => too_long(),
                GunzipError::Truncated => Refusal::usage("The gzip body is cut short"),
                GunzipError::Invalid(_) => Refusal::usage("The body is not valid gzip"),
                GunzipError::Input(_) => Refusal::usage("The body was cut short"),
            }),
        }
    }
}
