//! A limit to how fast bodies move. What it is decided from is not known here.

use std::fmt;
use std::time::Duration;

/// Tells when bytes of bodies may move.
pub trait Meter: fmt::Debug + Send + Sync {
    /// Most bytes to ask for at a time.
    fn step_bytes(&self) -> usize;
    /// Reserves `bytes`, and tells how long to wait before they move.
    fn take(&self, bytes: usize) -> Duration;
}
