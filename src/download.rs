//! The life of a download: a drive goes to a file, a device or a stream.
//!
//! `begin` opens the destination, `check_earlier` checks what an earlier run wrote, `hole_survey`
//! finds out which parts hold data, `fetch_chunk` reads one chunk of them, `sink` writes it to its
//! place, and `run` connects these until the file gets its name. If several machines downloaded one
//! file, `join_shards` completes it.
//!
//! A download never writes to a drive, and never gives an incomplete file its name. Start reading
//! at [`run::download`].

mod begin;
mod check_earlier;
pub(crate) mod drive_unchanged;
mod fetch_chunk;
mod hole_survey;
pub(crate) mod join_shards;
pub(crate) mod options;
pub(crate) mod run;
mod sink;
