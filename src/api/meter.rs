//! How fast bodies may move, and how much of them has moved. What the limit is
//! decided from is not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::buffers::Buffers;

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
    has_sent: Arc<AtomicBool>,
    pub(super) buffers: Buffers,
}

impl Traffic {
    pub(super) fn new(meter: Option<Arc<dyn Meter>>) -> Self {
        Self {
            meter,
            moved: Arc::default(),
            has_sent: Arc::default(),
            buffers: Buffers::default(),
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

    /// So many bytes of a request went into a connection.
    pub(super) fn sent(&self, bytes: u64) {
        self.has_sent.store(true, Ordering::Relaxed);
        self.count(bytes);
    }

    /// Whether any request had a body.
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent.load(Ordering::Relaxed)
    }

    /// Bytes that were counted.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}
