//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::admission::Admission;
use super::auth::Users;
use super::budget::{Budgets, Share};
use super::digests::Zeros;
use super::faults::{Faults, PastEnd, ToldExtents};
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

/// What all requests share.
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
    /// Who looks at the web page, if there is one.
    pub(super) page: Option<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    /// Most drives of all users: each is an open file.
    pub(super) drives_max: usize,
    pub(super) writers_max: u32,
    pub(super) round_size: bool,
    pub(super) read_bytes_max: u64,
    pub(super) past_end: PastEnd,
    pub(super) faults: Faults,
    /// Buffers of reads.
    pub(super) steps: Steps,
    /// Digests, extents and maps of drives: a turn takes a core.
    pub(super) digests: Arc<Turns>,
    /// What digests of zeros begin with.
    pub(super) zeros: Arc<Zeros>,
    /// Whether there is more than the API has.
    pub(super) has_extensions: bool,
    pub(super) told_extents: ToldExtents,
}

impl Api {
    /// A place in the queue of digests and the like, or 429 where `user` has too many.
    pub(super) async fn join_digests(&self, user: &Arc<str>) -> Result<(Share, Arc<Job>), Refusal> {
        let share = self.budgets.digests.take_within(user, 1, Duration::ZERO);
        Ok((share.await?, self.digests.join(user)))
    }
}
