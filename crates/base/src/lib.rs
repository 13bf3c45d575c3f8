//! The vocabulary that all parts of openhosting share: errors, drives and their names,
//! credentials, plans, chunks, digests and contents, gzip and Zstandard, and the grammar of the
//! API.
//!
//! Functions over bytes, and data: nothing here opens a file or a socket, reads a clock or the
//! environment, or prints. What takes long is to encode a chunk (xz does it on threads of its
//! own); what waits is the buffer pool.
//!
//! Start at [`chunk`], which is the path of a chunk as types, and at [`wire`], which is the
//! grammar of the API.

pub mod buffer;
pub mod chunk;
pub mod codec;
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
