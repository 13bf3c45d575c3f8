//! Transfers: how reader, compressors, requests and decisions meet.
//!
//! ```text
//! image ─ reader ─▶ RawChunk ─ gzip threads ─▶ EncodedChunk ─▶ shell ─▶ POST
//!            │                     │                             │  ▲
//!            └── holes ────────────┴──── zero chunks ──────────▶ engine
//! ```
//!
//! The reader and the compressors are threads, and block; their buffers come
//! from a pool, so a slow wire stops the reader and memory stays bounded by jobs
//! times chunk. One task, the shell, owns the [`Engine`](crate::policy::Engine):
//! it does what the engine says and tells it what came of it. There is no lock
//! and no second place that decides. A transfer is a success when the engine's
//! ledger has every chunk, and only then.
//!
//! Dropping the future of a transfer aborts it: requests in flight are cut, the
//! drive keeps what was confirmed, and nothing is destroyed.

mod beginning;
mod changed;
mod checksum;
mod create;
mod download;
mod drives;
mod earlier;
mod early_checks;
mod fetch;
mod inspect;
mod join;
mod mirror;
mod opening;
mod pace;
mod patience;
mod pipeline;
mod places;
mod probe;
mod rate;
mod reading;
mod room;
mod selection;
mod sending;
mod session;
mod sharing;
mod shell;
mod sink;
mod sounding;
mod spare;
mod stop;
mod survey;
mod upload;
mod verify;
mod web;

pub(crate) use create::create_bearing;
pub use download::{Destination, DownloadInterrupted, DownloadOptions, Downloaded, download};
pub use drives::{drives_that, each_drive, find_drive, look_at_drive, remove_drive};
pub(crate) use opening::counters;
pub use patience::Patience;
pub(crate) use patience::WaitsOnly;
pub(crate) use session::blocking;
pub(crate) use shell::{claim, stopped};

pub use inspect::{InspectOptions, inspect};
pub use join::{Shards, join_download};
pub use probe::{PROBE_NAME, Probed, probe};
pub use rate::RateLimit;
pub use selection::Selection;
pub use session::{Ended, JournalOptions};
pub use stop::{Stop, StopHandle, stop_channel};
pub use upload::{Interrupted, Resume, Target, UploadOptions, Uploaded, upload};
pub use verify::{Verified, Verify};
pub use web::{WebConfig, fetch_text, open_web};

use std::num::NonZeroU32;

/// Most requests in flight unless the user says otherwise. Few links need so many: one that
/// is long and fast and loses packets does (docs/PERFORMANCE.md, "Links with latency").
/// Memory is taken only for those that are used.
pub const JOBS_DEFAULT: NonZeroU32 = match NonZeroU32::new(64) {
    Some(jobs) => jobs,
    None => NonZeroU32::MIN,
};
