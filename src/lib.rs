//! Moves disk images in and out of an OpenHosting cloud.

pub mod cli;
pub mod credentials;
pub mod drive;
pub mod error;
pub mod wire;

pub use credentials::Credentials;
pub use error::{Error, ErrorKind, Result};
