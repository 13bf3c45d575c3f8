//! The life of a download: a drive goes to a file, a device or a stream.
//!
//! `begin` opens the destination, `check_earlier` looks at what an earlier run wrote,
//! `hole_survey` asks which parts hold data, `fetch_chunk` reads one chunk of them, `sink`
//! puts it to its place, and `run` holds these together until the file gets its name. Where
//! several machines made one file, `join_shards` ends it.
//!
//! It never writes to a drive, and never gives a file its name that is not whole.
//! Start reading at [`run::download`].

mod begin;
mod check_earlier;
pub(crate) mod drive_unchanged;
mod fetch_chunk;
mod hole_survey;
pub(crate) mod join_shards;
pub(crate) mod options;
pub(crate) mod run;
mod sink;
