//! What a download is asked to do, and what comes of it.

use std::fmt;
use std::io::Write;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use crate::codec::Packing;
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::driver::jobs::JOBS_DEFAULT;
use crate::driver::patience::Patience;
use crate::driver::session::{Ended, JournalOptions};
use crate::error::Error;
use crate::image::TargetFormat;
use crate::monitor::Progress;
use crate::shard::Shard;
use crate::verify::read_back::{Verified, Verify};
use crate::wire::READ_BYTES_MAX;

/// Where a download goes.
pub enum Destination {
    /// A file or block device.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether what is there may be overwritten.
        force: bool,
    },
    /// A stream, in order: stdout, say.
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// How to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadOptions {
    /// What to download.
    pub drive: DriveId,
    /// Byte to start at. With one, a file is written in place and what is before
    /// that byte stays as it is; without, it is staged.
    pub offset: Option<u64>,
    /// Bytes of a chunk; read in steps of at most `read_bytes_max`. A download that goes on
    /// keeps the chunks of its journal, and reads in steps of at most this.
    pub chunk: NonZeroU64,
    /// Most bytes of one read: [`READ_BYTES_MAX`], unless the endpoint is known to
    /// answer more. If it does not after all, it is that from then on.
    pub read_bytes_max: NonZeroU64,
    /// Fewest requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: NonZeroU32,
    /// Most requests in flight.
    pub jobs: NonZeroU32,
    /// How long it goes on while nothing succeeds.
    pub patience: Patience,
    /// Whether a drive may be in use or change meanwhile.
    pub allow_live: bool,
    /// The part of the chunks that is fetched, to a raw file that other machines write
    /// the others to; all of them without.
    pub shard: Option<Shard>,
    /// Where to keep what was done.
    pub journal: JournalOptions,
    /// How much to read again at the end.
    pub verify: Verify,
    /// How a file holds the disk. Only raw goes to a stream or a device.
    pub format: TargetFormat,
    /// Pack what is written, in order. A file is staged as ever, but there is no
    /// journal: a run that stops leaves nothing to go on from.
    pub packing: Option<Packing>,
    /// Whether to hash what is written, all of it; packed, if it is.
    pub checksum: bool,
}

impl DownloadOptions {
    /// The defaults, for a drive: no journal, a sample is verified.
    pub fn of(drive: DriveId) -> Self {
        Self {
            drive,
            offset: None,
            chunk: NonZeroU64::new(READ_BYTES_MAX).unwrap_or(NonZeroU64::MIN),
            read_bytes_max: NonZeroU64::new(READ_BYTES_MAX).unwrap_or(NonZeroU64::MIN),
            jobs_min: NonZeroU32::MIN,
            jobs: JOBS_DEFAULT,
            patience: Patience::default(),
            allow_live: false,
            shard: None,
            journal: JournalOptions::default(),
            verify: Verify::default(),
            format: TargetFormat::Raw,
            packing: None,
            checksum: false,
        }
    }
}

/// A finished download.
#[derive(Debug)]
pub struct Downloaded {
    /// What moved.
    pub progress: Progress,
    /// What was read again.
    pub verified: Verified,
    /// The digest of what was written, if it was asked for.
    pub checksum: Option<Digest>,
    /// Its journal, which goes when this is dropped.
    pub journal: Ended,
}

/// A download that did not finish.
#[derive(Debug)]
pub struct DownloadInterrupted {
    /// Why.
    pub error: Error,
    /// The byte to go on at, once anything was to be read.
    pub resume_at: Option<u64>,
    /// Whether all had come, and what failed was something else.
    pub is_whole: bool,
    /// Whether the same command goes on by itself.
    pub is_journaled: bool,
}

impl From<Error> for DownloadInterrupted {
    fn from(error: Error) -> Self {
        Self {
            error,
            resume_at: None,
            is_whole: false,
            is_journaled: false,
        }
    }
}

impl fmt::Display for DownloadInterrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for DownloadInterrupted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
