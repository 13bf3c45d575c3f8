//! The driver: what uploads, downloads and checks have in common.
//!
//! One task, the [`shell`], owns the [`Engine`](crate::policy::Engine): it performs the engine's
//! actions and reports their outcomes back. There is no lock, and no other place that decides.
//! Around it are the requests that are not about chunks, with their `patience`, and the `session`,
//! which is one transfer over several runs.
//!
//! The driver does not know in which direction the bytes move, and never makes a decision of the
//! engine. Start reading at [`shell`]: each direction implements its trait `Job`.

use std::num::NonZeroU32;

pub(crate) mod checksum;
pub(crate) mod claim;
pub(crate) mod create_drive;
pub(crate) mod data_ranges;
pub(crate) mod differing;
mod in_flight;
pub(crate) mod info_full;
pub(crate) mod patience;
pub(crate) mod phases;
pub(crate) mod pieces;
pub(crate) mod rate_limit;
pub(crate) mod read_range;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod spare_requests;
pub(crate) mod stop;

pub(crate) use crate::blocking;

/// Default maximum of requests in flight. Few links need that many: only long, fast and lossy ones
/// do (docs/dev/performance.md, "Links with latency"). Memory is used only for requests that are
/// actually made.
pub(crate) const JOBS_DEFAULT: NonZeroU32 = NonZeroU32::new(64).unwrap();
