//! The vocabulary that all parts of openhosting share: errors, drives and their names,
//! credentials, plans, chunks, digests and contents, gzip and Zstandard, and the grammar of the
//! API.
//!
//! Everything here is a function over bytes, or data. Nothing opens a file or a socket, reads a
//! clock or the environment, or prints. Encoding a chunk takes long (xz uses threads of its own),
//! and the buffer pool may wait.
//!
//! Start at [`chunk`], the path of a chunk as types, and at [`wire`], the grammar of the API.

pub mod advice;
pub mod amounts;
pub mod buffer;
pub mod chunk;
pub mod codec;
pub mod condition;
pub mod content;
pub mod credentials;
pub mod digest;
pub mod drive;
pub mod error;
pub mod failure;
pub mod locks;
pub mod plan;
pub mod quoting;
pub mod wire;
mod zeros;
