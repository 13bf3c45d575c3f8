//! The life of an upload: an image is sent to a drive.
//!
//! ```text
//! image ─ reader ─▶ RawChunk ─ gzip threads ─▶ EncodedChunk ─▶ shell ─▶ POST
//!            │                     │                             │  ▲
//!            └── holes ────────────┴──── zero chunks ──────────▶ engine
//! ```
//!
//! `begin` resumes an earlier run and creates the drive, `marks` says on the drive that the upload has
//! not ended, `pipeline` reads, checks and compresses, `send_chunks` makes the requests, and `run`
//! connects these to the end. The reader and the compressors are blocking threads. Their buffers
//! come from a pool, so a slow wire stops the reader, and memory is bounded by jobs times chunk size.
//!
//! An upload never calls a chunk settled that the endpoint did not confirm, and never destroys a
//! drive. Start reading at [`run::upload`].

mod begin;
mod growing_drive;
mod marks;
pub(crate) mod options;
mod pace;
mod pipeline;
pub(crate) mod run;
pub(crate) mod selection;
mod send_chunks;
mod wire_speed;
