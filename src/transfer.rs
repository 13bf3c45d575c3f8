//! Transfers: uploads, downloads, and related work with drives. This module re-exports the modules
//! `upload`, `download`, `verify`, `probe`, `web_image`, and `driver`, which contains what these
//! share.
//!
//! A transfer succeeds if and only if every chunk is in the engine's ledger. Dropping the future of
//! a transfer aborts it: requests in flight are cancelled, the drive keeps what was confirmed, and
//! nothing is destroyed.
//!
//! Nothing is done here. Start reading at `src/upload.rs` or `src/download.rs`.

pub use crate::download::join_shards::{Shards, join_download};
pub use crate::download::options::{Destination, DownloadInterrupted, DownloadOptions, Downloaded};
pub use crate::download::run::download;
pub use crate::driver::patience::Patience;
pub use crate::driver::rate_limit::RateLimit;
pub use crate::driver::session::{Ended, JournalOptions};
pub use crate::driver::stop::{Stop, StopHandle, stop_channel};
pub use crate::probe::run::{Probed, probe};
pub use crate::upload::options::{Interrupted, Resume, Target, UploadOptions, Uploaded};
pub use crate::upload::run::upload;
pub use crate::verify::read_back::{Verified, Verify};
pub use crate::web_image::{WebConfig, fetch_text, open_web};

pub(crate) use crate::download::drive_unchanged::counters;
#[cfg(feature = "cli")]
pub(crate) use crate::download::options::READ_CHUNK;
pub(crate) use crate::driver::JOBS_DEFAULT;
pub(crate) use crate::driver::blocking::blocking;
pub(crate) use crate::driver::claim::{claim, in_use};
pub(crate) use crate::driver::create_drive::{NewDrive, create};
pub(crate) use crate::driver::info_full::info_full;
pub(crate) use crate::driver::phases::{AsPhase, reporting};
pub(crate) use crate::driver::stop::stopped;
pub(crate) use crate::upload::run::decide_holes;
pub(crate) use crate::upload::selection::Selection;
pub(crate) use crate::verify::inspect::{InspectOptions, Inspection};
