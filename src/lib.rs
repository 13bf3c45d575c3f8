//! Moves disk images in and out of an OpenHosting cloud.

pub mod api;
pub mod buffer;
pub mod chunk;
pub mod cli;
pub mod codec;
pub mod credentials;
pub mod digest;
pub mod drive;
pub mod error;
pub mod failure;
pub mod image;
pub mod journal;
pub mod monitor;
pub mod plan;
pub mod policy;
pub mod profile;
pub mod server;
pub mod transfer;
pub mod wire;

pub use credentials::Credentials;
pub use error::{Error, ErrorKind, Result};
