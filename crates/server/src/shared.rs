//! The state that all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::admission::Admission;
use super::auth::Users;
use super::budget::{Budgets, Share};
use super::digests::Zeros;
use super::faults::{Faults, PastEnd, ReportedExtents};
use super::guard::Guard;
use super::imaging::Imagings;
use super::metrics::Metrics;
use super::reading::Steps;
use super::sessions::Sessions;
use super::store::Store;
use super::work::{Job, Turns};
use super::writing::Memory;
use openhosting_tenancy::Refusal;
use openhosting_vm::Machines;

/// The state that all requests share.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) store: Arc<Store>,
    pub(super) machines: Arc<Machines>,
    pub(super) users: Users,
    pub(super) memory: Memory,
    pub(super) budgets: Budgets,
    pub(super) admission: Arc<Admission>,
    /// Held while the data directory is checked.
    pub(super) health: tokio::sync::Mutex<()>,
    pub(super) imagings: Arc<Imagings>,
    pub(super) is_stopping: AtomicBool,
    pub(super) guard: Guard,
    /// The sessions of the web page, if there is one.
    pub(super) page: Option<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    /// Maximum drives of all users: each is an open file.
    pub(super) drives_max: usize,
    pub(super) writers_max: u32,
    pub(super) round_size: bool,
    pub(super) read_bytes_max: u64,
    pub(super) past_end: PastEnd,
    pub(super) faults: Faults,
    /// Buffers for reads.
    pub(super) steps: Steps,
    /// Turns for digests, extents and maps of drives: each uses a core.
    pub(super) digests: Arc<Turns>,
    /// The table for digests of zeros.
    pub(super) zeros: Arc<Zeros>,
    /// Whether the extensions of the API are available.
    pub(super) has_extensions: bool,
    pub(super) reported_extents: ReportedExtents,
}

impl Api {
    /// Enters the queue for digests and similar work, or fails with 429 if `user` has too many.
    pub(super) async fn join_digests(&self, user: &Arc<str>) -> Result<(Share, Arc<Job>), Refusal> {
        let share = self.budgets.digests.take_within(user, 1, Duration::ZERO);
        Ok((share.await?, self.digests.join(user)))
    }
}
