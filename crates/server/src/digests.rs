//! Computes the SHA-256 of a range of a drive, step by step.
//!
//! Clients check reported holes by such digests, so a digest must not rely on the same report:
//! holes are read. However, zeros are not hashed, because a table has the state of SHA-256 after
//! any number of leading zeros, so a range of zeros costs no more than reading it. A drive that
//! occupies no space at all is not even read. In that case the file system has reported it twice,
//! by its blocks and its extents, and a sample of the range is read as well.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::hosted::Hosted;
use super::metrics::Metrics;
use super::sparse::{all_zero, next_data};
use openhosting_base::chunk::zeros;
use openhosting_base::digest::Digest;
use openhosting_base::locks::lock;

/// Maximum bytes of one digest: the longest chunk of our clients. It bounds the cost of one
/// request.
pub(super) const DIGEST_BYTES_MAX: u64 = 1 << 30;
/// Bytes to read at a time, few enough to stay in the processor's cache.
const STEP_BYTES: u64 = 256 * 1024;
/// Number of zeros between two states in the table.
const STATE_BYTES: u64 = 1 << 20;
/// A shorter file may be stored in its inode and use no blocks.
const EMPTY_BYTES_MIN: u64 = 1 << 20;

/// The state of SHA-256 after zeros, for every MiB up to [`DIGEST_BYTES_MAX`]: 120 kB when it is
/// complete, which costs one pass over a GiB.
#[derive(Debug, Default)]
pub(super) struct Zeros(Mutex<Vec<Sha256>>);

impl Zeros {
    /// The state after `len` zero bytes; `None` while the table is too short. Each call extends the
    /// table, which takes a millisecond.
    fn state(&self, len: u64) -> Option<Sha256> {
        let mut states = lock(&self.0);
        if states.is_empty() {
            states.push(Sha256::new());
        }
        let index = len / STATE_BYTES;
        let known = usize::try_from(index)
            .ok()
            .and_then(|index| states.get(index));
        let Some(known) = known.cloned() else {
            let next = states.last().cloned().unwrap_or_default();
            states.push(hash_zeros(next, STATE_BYTES));
            return None;
        };
        drop(states);
        Some(hash_zeros(known, len % STATE_BYTES))
    }
}

fn hash_zeros(mut hasher: Sha256, len: u64) -> Sha256 {
    for step in zeros(len) {
        hasher.update(step);
    }
    hasher
}

/// A digest in progress.
#[derive(Debug)]
pub(super) struct Digesting {
    drive: Arc<Hosted>,
    /// The next byte to read, and the end.
    offset: u64,
    end: u64,
    /// Number of zeros before the first nonzero byte; they are not hashed.
    zeros: u64,
    /// The hash of everything up to `offset`, once there was a nonzero byte.
    hasher: Option<Sha256>,
    buffer: Vec<u8>,
    table: Arc<Zeros>,
    metrics: Arc<Metrics>,
}

impl Digesting {
    /// The digest of `range` of the bytes of `drive`.
    pub(super) fn new(
        drive: Arc<Hosted>,
        range: Range<u64>,
        table: Arc<Zeros>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            drive,
            offset: range.start,
            end: range.end,
            zeros: 0,
            hasher: None,
            buffer: Vec::new(),
            table,
            metrics,
        }
    }

    /// Hashes the next bytes; returns the digest after the last ones. Blocks on the disk.
    pub(super) fn step(&mut self) -> io::Result<Option<Digest>> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; STEP_BYTES as usize];
            if self.is_empty() {
                self.zeros = self.end - self.offset;
                self.offset = self.end;
                self.metrics.digested_zeros(self.zeros);
            }
        }
        let len = STEP_BYTES.min(self.end - self.offset);
        let step = &mut self.buffer[..len as usize];
        self.drive.file.read_exact_at(step, self.offset)?;
        if self.hasher.is_none() && all_zero(step) && len > 0 {
            self.offset += len;
            self.zeros += len;
            self.metrics.digested_zeros(len);
            return Ok(None);
        }
        let Some(hasher) = &mut self.hasher else {
            // These bytes are read again once the table is long enough.
            self.hasher = self.table.state(self.zeros);
            return Ok(None);
        };
        hasher.update(step);
        self.metrics.digested(len);
        self.offset += len;
        if self.offset < self.end {
            return Ok(None);
        }
        let hash = std::mem::take(hasher).finalize();
        Ok(Some(Digest::from_bytes(hash.into())))
    }

    /// Whether the drive occupies no space, the file system reports no data in the range, and a
    /// sample of it reads as zeros.
    fn is_empty(&self) -> bool {
        self.end - self.offset >= EMPTY_BYTES_MIN
            && self.drive.takes_no_space()
            && next_data(&self.drive.file, self.offset, self.end) == self.end
    }
}
