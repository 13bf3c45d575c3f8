//! The speed at which bodies may move, and how many bytes have moved. What determines the limit is
//! not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::buffers::Buffers;

/// Decides when bytes of bodies may move.
pub trait Meter: fmt::Debug + Send + Sync {
    /// Maximum bytes to reserve at a time.
    fn step_bytes(&self) -> usize;
    /// Reserves `bytes`, and returns how long to wait before they may move.
    fn take(&self, bytes: usize) -> Duration;
    /// Bytes per second that may move in the long run; `None` if that is not known. A transfer
    /// with a low rate keeps fewer chunks in flight from its first request on.
    fn bytes_per_s(&self) -> Option<u64> {
        None
    }
}

/// Counts and limits the bodies of a client's requests and answers; clones share the state.
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

    /// A separate count under the same limit.
    pub(super) fn apart(&self) -> Self {
        Self::new(self.meter.clone())
    }

    /// Counts bytes that went through a connection.
    pub(super) fn count(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of a request that went into a connection.
    pub(super) fn sent(&self, bytes: u64) {
        self.has_sent.store(true, Ordering::Relaxed);
        self.count(bytes);
    }

    /// Whether any request had a body.
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent.load(Ordering::Relaxed)
    }

    /// Number of counted bytes.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}
