//! How fast bodies may move, and how much of them has moved. What the limit is
//! decided from is not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Tells when bytes of bodies may move.
pub trait Meter: fmt::Debug + Send + Sync {
    /// Most bytes to ask for at a time.
    fn step_bytes(&self) -> usize;
    /// Reserves `bytes`, and tells how long to wait before they move.
    fn take(&self, bytes: usize) -> Duration;
}

/// What the bodies of a client's requests and answers go through; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    pub(super) meter: Option<Arc<dyn Meter>>,
    moved: Arc<AtomicU64>,
}

impl Traffic {
    pub(super) fn new(meter: Option<Arc<dyn Meter>>) -> Self {
        Self {
            meter,
            moved: Arc::default(),
        }
    }

    /// Another count under the same meter.
    pub(super) fn apart(&self) -> Self {
        Self::new(self.meter.clone())
    }

    /// So many bytes went through a connection.
    pub(super) fn count(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that were counted.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}
