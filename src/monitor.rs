//! What a transfer tells while it runs. The library reports, the terminal draws.

use std::time::Duration;

use crate::drive::DriveId;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The drive is known, and fit for the transfer.
    Drive {
        /// Which one.
        id: DriveId,
        /// Its size in bytes; of a drive made just now the size that was asked for.
        size: u64,
        /// Whether this transfer created it.
        is_new: bool,
    },
    /// The chunks begin to move.
    Started {
        /// How many there are to transfer, if that is known.
        chunks: Option<u64>,
        /// Bytes of each but the last.
        chunk_bytes: u64,
        /// Byte of the image that the transfer starts at.
        offset: u64,
        /// Bytes of all of them, if that is known.
        bytes: Option<u64>,
    },
    /// The end of an image was found whose size nobody knew.
    Ended {
        /// How many chunks there are to transfer.
        chunks: u64,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// How far it is now.
    Progress(Progress),
    /// A chunk was compressed, or not.
    Encoded(Encoded),
    /// The endpoint refused requests for their size. Comes when the last chunk has moved, or
    /// no more will.
    BodyRefused {
        /// The smallest body in bytes that was refused.
        refused_bytes: u64,
        /// The largest that was sent since.
        accepted_bytes: u64,
    },
    /// The user may want to know this: one line.
    Notice(String),
    /// The user should look at this: something is not as it should be, or costs more
    /// than it had to. One line.
    Warning(String),
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

/// How a chunk was encoded, and why so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// When a compressor took it up, since the transfer began.
    pub at: Duration,
    /// Its index.
    pub chunk: u64,
    /// The level; 0 if it was left as it is.
    pub level: u8,
    /// What the level would be if it were no whole number: for `auto` a place on the
    /// controller's ladder, from 0.
    pub effort: f64,
    /// Chunks that waited to be sent at that moment.
    pub ready: usize,
    /// Requests in flight at that moment.
    pub in_flight: usize,
    /// Bytes of the chunk.
    pub raw_bytes: u64,
    /// Bytes of its bodies.
    pub body_bytes: u64,
    /// Time of a processor that it took.
    pub took: Duration,
    /// Why this level.
    pub reason: Reason,
}

/// Why a chunk has its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The controller chose it.
    Auto,
    /// It is the level of all chunks.
    Fixed,
    /// It would not get smaller.
    Incompressible,
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
