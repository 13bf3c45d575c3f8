//! The life of an upload: an image goes to a drive.
//!
//! ```text
//! image ─ reader ─▶ RawChunk ─ gzip threads ─▶ EncodedChunk ─▶ shell ─▶ POST
//!            │                     │                             │  ▲
//!            └── holes ────────────┴──── zero chunks ──────────▶ engine
//! ```
//!
//! `begin` takes up an earlier run and makes the drive, `pipeline` reads, checks and
//! compresses, `send_chunks` makes the requests, and `run` holds these together to the end.
//! The reader and the compressors are threads, and block; their buffers come from a pool, so
//! a slow wire stops the reader and memory stays bounded by jobs times chunk.
//!
//! It never calls a chunk settled that the endpoint did not confirm, and never destroys a
//! drive. Start reading at [`run::upload`].

mod begin;
mod growing_drive;
pub(crate) mod options;
mod pace;
mod pipeline;
pub(crate) mod run;
pub(crate) mod selection;
mod send_chunks;
mod wire_speed;
