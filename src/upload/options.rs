//! What an upload is asked to do, and what comes of it.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use super::selection::Selection;
use crate::codec::Compression;
use crate::digest::Digest;
use crate::drive::{DriveId, DriveSpec};
use crate::driver::jobs::JOBS_DEFAULT;
use crate::driver::patience::Patience;
use crate::driver::session::{Ended, JournalOptions};
use crate::error::Error;
use crate::image::Holes;
use crate::monitor::Progress;
use crate::plan::CHUNK_BYTES_DEFAULT;
use crate::shard::Shard;
use crate::verify::read_back::{Verified, Verify};

/// The drive to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One that exists. Everything is written to it, zeros as well.
    Existing(DriveId),
    /// One to be created. Its size is the image's; where nobody knows that, it is made
    /// larger while the image is read, and cut to size at the end.
    New(DriveSpec),
    /// One that was created for this very image, and to which nothing but bytes of
    /// it was ever written: as one of [`New`](Self::New).
    Made(DriveId),
}

/// How to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// Where to.
    pub target: Target,
    /// Byte of the image to start at; rounded down to a chunk.
    pub offset: u64,
    /// Bytes of a chunk. An upload that goes on keeps the chunks of its journal; then no
    /// request is about more bytes than this.
    pub chunk: NonZeroU64,
    /// Most bytes of the body of one request, if the endpoint is known to refuse more.
    pub body_bytes_max: Option<NonZeroU64>,
    /// Most requests in flight.
    pub jobs: NonZeroU32,
    /// Fewest requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: NonZeroU32,
    /// How hard to compress.
    pub compression: Compression,
    /// How long it goes on while nothing succeeds.
    pub patience: Patience,
    /// Where to keep what was done.
    pub journal: JournalOptions,
    /// Read each chunk of the drive first, and write only what differs.
    pub compare: bool,
    /// How much to read back at the end.
    pub verify: Verify,
    /// Whether to hash the whole image, what earlier runs settled included.
    pub checksum: bool,
    /// What of the image is sent, in chunks of
    /// [`CONTENT_CHUNK_BYTES`](crate::content::CONTENT_CHUNK_BYTES); all of it without.
    pub selection: Option<Arc<Selection>>,
    /// The part of the chunks that is sent; all of them without. Only to a drive that
    /// is there, and of an image whose size is known.
    pub shard: Option<Shard>,
    /// The SHA-256 that the image has to have, of its bytes as they were given: packed,
    /// or in their format.
    pub sha256: Option<Digest>,
    /// How far holes that the file system reports are believed. `None` for a sample, or
    /// for not at all where something is asked for that goes by every byte: a full
    /// verification, a checksum, or a SHA-256.
    pub holes: Option<Holes>,
}

impl UploadOptions {
    /// The defaults, for a target: no journal, a sample is verified.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            offset: 0,
            chunk: NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN),
            body_bytes_max: None,
            jobs: JOBS_DEFAULT,
            jobs_min: NonZeroU32::MIN,
            compression: Compression::default(),
            patience: Patience::default(),
            journal: JournalOptions::default(),
            compare: false,
            verify: Verify::default(),
            checksum: false,
            selection: None,
            shard: None,
            sha256: None,
            holes: None,
        }
    }

    /// How far holes are believed.
    pub(super) fn holes(&self) -> Holes {
        let goes_by_every_byte =
            self.verify == Verify::Full || self.checksum || self.sha256.is_some();
        self.holes.unwrap_or(match goes_by_every_byte {
            true => Holes::Read,
            false => Holes::Sample,
        })
    }
}

/// A finished upload.
#[derive(Debug)]
pub struct Uploaded {
    /// The drive that holds the image now.
    pub drive: DriveId,
    /// What moved.
    pub progress: Progress,
    /// What was read back.
    pub verified: Verified,
    /// The digest of the image, if it was asked for.
    pub checksum: Option<Digest>,
    /// Its journal, which goes when this is dropped.
    pub journal: Ended,
}

/// An upload that did not finish.
#[derive(Debug)]
pub struct Interrupted {
    /// Why.
    pub error: Error,
    /// How to go on, once there is a drive.
    pub resume: Option<Resume>,
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The drive that holds part of the image.
    pub drive: DriveId,
    /// The byte to go on at: all before it is on the drive.
    pub offset: u64,
    /// Its chunk, over the whole image.
    pub chunk: u64,
    /// Chunks of the whole image, if that is known.
    pub chunks: Option<u64>,
    /// Bytes of the image, if that is known.
    pub size: Option<u64>,
    /// Whether this transfer created the drive, in this run or an earlier one.
    pub is_ours: bool,
    /// Whether there is a journal: then the same command goes on by itself, and
    /// sends less.
    pub is_journaled: bool,
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Self {
        Self {
            error,
            resume: None,
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Interrupted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
