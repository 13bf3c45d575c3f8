//! What a transfer tells while it runs. The library reports, the terminal draws.

use crate::drive::DriveId;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The drive is known, and fit for the transfer.
    Drive {
        /// Which one.
        id: DriveId,
        /// Its size in bytes; of a drive made just now the image's size.
        size: u64,
        /// Whether this transfer created it.
        is_new: bool,
    },
    /// The chunks begin to move.
    Started {
        /// How many there are to transfer.
        chunks: u64,
        /// Bytes of each but the last.
        chunk_bytes: u64,
        /// Byte of the image that the transfer starts at.
        offset: u64,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// How far it is now.
    Progress(Progress),
    /// The user may want to know this: one line.
    Notice(String),
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chunks settled without a gap from the first one on.
    pub chunks_in_order: u64,
    /// Chunks that are settled.
    pub done_chunks: u64,
    /// Bytes of the image that are settled: confirmed, or left out as zero.
    pub done_bytes: u64,
    /// Bytes of bodies sent or received, those of failed attempts included.
    pub wire_bytes: u64,
    /// Bytes of zeros that were left out.
    pub skipped_bytes: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// How many there may be now.
    pub workers: u32,
    /// Attempts beyond the first one of each chunk.
    pub retries: u64,
}

/// Somebody who wants to know.
pub trait Monitor: Send {
    /// Something happened. Called often: must not block.
    fn event(&mut self, event: &Event);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&mut self, _: &Event) {}
}
