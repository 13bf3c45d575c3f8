//! The default number of concurrent requests.

use std::num::NonZeroU32;

/// Default maximum of requests in flight. Few links need that many: only long, fast and lossy ones
/// do (docs/dev/performance.md, "Links with latency"). Memory is used only for requests that are
/// actually made.
pub(crate) const JOBS_DEFAULT: NonZeroU32 = match NonZeroU32::new(64) {
    Some(jobs) => jobs,
    None => NonZeroU32::MIN,
};
