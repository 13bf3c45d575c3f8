//! The options and results of a download.

use std::fmt;
use std::io::Write;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use crate::codec::Packing;
use crate::digest::Digest;
use crate::drive::{DriveId, LocalUploads};
use crate::driver::JOBS_DEFAULT;
use crate::driver::patience::Patience;
use crate::driver::session::{Ended, JournalOptions};
use crate::error::Error;
use crate::image::TargetFormat;
use crate::monitor::Progress;
use crate::shard::Shard;
use crate::verify::read_back::{Verified, Verify};
use crate::wire::READ_BYTES_MAX;

/// Default bytes of a chunk, and of a read: the most that every endpoint answers.
pub(crate) const READ_CHUNK: NonZeroU64 = NonZeroU64::new(READ_BYTES_MAX).unwrap();

/// The destination of a download.
pub enum Destination {
    /// A file or block device.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether an existing file may be overwritten.
        force: bool,
    },
    /// A stream, written in order, such as standard output.
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
    /// The drive to download.
    pub drive: DriveId,
    /// The byte to start at. If set, a file is written in place, and its bytes before that offset
    /// stay; otherwise it is staged.
    pub offset: Option<u64>,
    /// Bytes of a chunk, which is read in steps of at most `read_bytes_max`. A resumed download
    /// keeps the chunk size of its journal, and this limits the steps.
    pub chunk: NonZeroU64,
    /// Maximum bytes of one read: [`READ_BYTES_MAX`], unless the endpoint is known to support more.
    /// If it refuses a longer read, the limit falls to that.
    pub read_bytes_max: NonZeroU64,
    /// Minimum number of requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: NonZeroU32,
    /// Maximum number of requests in flight.
    pub jobs: NonZeroU32,
    /// How long to continue without any success.
    pub patience: Patience,
    /// Whether the drive may be in use or change meanwhile.
    pub allow_live: bool,
    /// The part of the chunks to download, into a raw file to which other machines write the
    /// others; `None` for all chunks.
    pub shard: Option<Shard>,
    /// Where to store the progress.
    pub journal: JournalOptions,
    /// How much to read again at the end.
    pub verify: Verify,
    /// The format of the file. A stream or a device can only be raw.
    pub format: TargetFormat,
    /// Compress what is written, in order. The file is staged as usual, but there is no journal, so
    /// a run that stops cannot be resumed.
    pub packing: Option<Packing>,
    /// Whether to compute the digest of everything that is written; after compression, if any.
    pub checksum: bool,
    /// The uploads of this machine, for the warning about a drive that one of them has not filled.
    pub(crate) uploads: LocalUploads,
}

impl DownloadOptions {
    /// The default options for a drive: no journal, and a sample is verified.
    pub fn of(drive: DriveId) -> Self {
        Self {
            drive,
            offset: None,
            chunk: READ_CHUNK,
            read_bytes_max: READ_CHUNK,
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
            uploads: LocalUploads::default(),
        }
    }
}

/// A finished download.
#[derive(Debug)]
pub struct Downloaded {
    /// What was transferred.
    pub progress: Progress,
    /// What was read again.
    pub verified: Verified,
    /// The digest of what was written, if requested.
    pub checksum: Option<Digest>,
    /// The journal, which is removed when this is dropped.
    pub journal: Ended,
}

/// A download that did not finish.
#[derive(Debug)]
pub struct DownloadInterrupted {
    /// The reason.
    pub error: Error,
    /// The byte to continue at, once there was anything to read.
    pub resume_at: Option<u64>,
    /// Whether everything was downloaded, and something else failed.
    pub is_whole: bool,
    /// Whether the same command resumes the download.
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

displays_as_its_error!(DownloadInterrupted);
