//! Moves disk images in and out of an OpenHosting cloud.

pub mod cli;
mod codec;
pub mod credentials;
pub mod drive;
pub mod error;
pub mod server;
pub mod wire;

pub use credentials::Credentials;
pub use error::{Error, ErrorKind, Result};
