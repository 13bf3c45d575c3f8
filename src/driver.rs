//! The driver: what uploads, downloads and checks have in common.
//!
//! One task, the [`shell`], owns the [`Engine`](crate::policy::Engine): it does what the
//! engine says and tells it what came of it. There is no lock and no second place that
//! decides. Around it are the requests that are not about chunks, with their `patience`,
//! and the `session`: one transfer over several runs.
//!
//! It never knows which way the bytes go, and never decides what the engine decides.
//! Start reading at [`shell`]: its trait `Job` is what the directions fill in.

pub(crate) mod blocking;
pub(crate) mod checksum;
pub(crate) mod claim;
pub(crate) mod create_drive;
pub(crate) mod data_ranges;
pub(crate) mod differing;
pub(crate) mod drives;
pub(crate) mod jobs;
pub(crate) mod patience;
pub(crate) mod phases;
pub(crate) mod pieces;
pub(crate) mod rate_limit;
pub(crate) mod read_range;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod spare_requests;
pub(crate) mod stop;
