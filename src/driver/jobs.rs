//! How many requests at a time.

use std::num::NonZeroU32;

/// Most requests in flight unless the user says otherwise. Few links need so many: one that
/// is long and fast and loses packets does (docs/dev/performance.md, "Links with latency").
/// Memory is taken only for those that are used.
pub const JOBS_DEFAULT: NonZeroU32 = match NonZeroU32::new(64) {
    Some(jobs) => jobs,
    None => NonZeroU32::MIN,
};
