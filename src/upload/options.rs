//! The options and results of an upload.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use super::selection::Selection;
use crate::codec::Compression;
use crate::digest::Digest;
use crate::drive::{DriveId, DriveSpec};
use crate::driver::JOBS_DEFAULT;
use crate::driver::patience::Patience;
use crate::driver::session::{Ended, JournalOptions};
use crate::error::Error;
use crate::image::Holes;
use crate::monitor::Progress;
use crate::plan::CHUNK_BYTES_DEFAULT;
use crate::shard::Shard;
use crate::verify::read_back::{Verified, Verify};

/// The destination of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An existing drive. Everything is written to it, including zeros.
    Existing(DriveId),
    /// A drive to be created, with the size of the image. If that is unknown, the drive is enlarged
    /// while the image is read, and cut to its size at the end.
    New(DriveSpec),
    /// A drive that was created for this very image, and to which only bytes of it were ever
    /// written: treated as a [`New`](Self::New) one.
    Made(DriveId),
}

/// How to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// The destination.
    pub target: Target,
    /// The byte of the image to start at; rounded down to a chunk.
    pub offset: u64,
    /// Bytes of a chunk. A resumed upload keeps the chunk size of its journal; this then limits the
    /// bytes of a request.
    pub chunk: NonZeroU64,
    /// Maximum bytes of a request body, if the endpoint is known to refuse more.
    pub body_bytes_max: Option<NonZeroU64>,
    /// Maximum number of requests in flight.
    pub jobs: NonZeroU32,
    /// Minimum number of requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: NonZeroU32,
    /// The compression level.
    pub compression: Compression,
    /// How long to continue without any success.
    pub patience: Patience,
    /// Where to store the progress.
    pub journal: JournalOptions,
    /// Read each chunk from the drive first, and write only chunks that differ.
    pub compare: bool,
    /// How much to read back at the end.
    pub verify: Verify,
    /// Whether to compute the digest of the whole image, including what earlier runs settled.
    pub checksum: bool,
    /// The part of the image to send, in chunks of
    /// [`CONTENT_CHUNK_BYTES`](crate::content::CONTENT_CHUNK_BYTES); `None` for all of it.
    pub(crate) selection: Option<Arc<Selection>>,
    /// The part of the chunks to send; `None` for all. Only for an existing drive and an image of
    /// known size.
    pub shard: Option<Shard>,
    /// The expected SHA-256 of the image file as it was given: compressed, or in its format.
    pub sha256: Option<Digest>,
    /// How far holes that the file system reports are believed. `None` for the default: a sample,
    /// or not at all if something was requested that depends on every byte: a full verification, a
    /// checksum, or a SHA-256.
    pub holes: Option<Holes>,
}

impl UploadOptions {
    /// The default options for a target: no journal, and a sample is verified.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            offset: 0,
            chunk: CHUNK_BYTES_DEFAULT,
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
    /// The drive that now holds the image.
    pub drive: DriveId,
    /// What was transferred.
    pub progress: Progress,
    /// What was read back.
    pub verified: Verified,
    /// The digest of the image, if requested.
    pub checksum: Option<Digest>,
    /// The journal, which is removed when this is dropped.
    pub journal: Ended,
}

/// An upload that did not finish.
#[derive(Debug)]
pub struct Interrupted {
    /// The reason.
    pub error: Error,
    /// How to continue, once there is a drive.
    pub resume: Option<Resume>,
}

/// Where to continue an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The drive that holds a part of the image.
    pub drive: DriveId,
    /// The byte to continue at: everything before it is on the drive.
    pub offset: u64,
    /// The chunk at that offset, counted over the whole image.
    pub chunk: u64,
    /// Number of chunks of the whole image, if known.
    pub chunks: Option<u64>,
    /// Bytes of the image, if known.
    pub size: Option<u64>,
    /// Whether this transfer created the drive, in this run or an earlier one.
    pub is_ours: bool,
    /// Whether there is a journal: then the same command resumes the upload, and sends less.
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

displays_as_its_error!(Interrupted);
