//! Moves disk images in and out of an OpenHosting cloud, or one of the same
//! family.
//!
//! An image is read chunk by chunk ([`image`], [`plan`], [`chunk`]), zeros are left
//! out, the rest is compressed ([`codec`]) and written to a drive ([`api`]); what is
//! to be done next is decided without I/O ([`policy`]) and done by one task
//! ([`transfer`]), which keeps what it did ([`journal`]) so that a later run goes
//! on. A download is the mirror of it. [`server`] is the API on
//! one machine, and [`cli`] what the four programs are made of.
//!
//! Start at [`transfer::upload`] and [`transfer::download`]. The README's example
//! is run as a test of this documentation.

pub mod api;
pub mod cli;
pub mod commands;
pub mod findings;
pub mod journal;
pub mod monitor;
pub mod publish;
pub mod receipt;
pub mod shard;
pub mod transfer;

mod download;
mod driver;
mod probe;
mod upload;
mod verify;
mod web_image;

pub use openhosting_base::{
    buffer, chunk, codec, content, credentials, digest, drive, error, failure, plan, wire,
};
use openhosting_base::{locks, quoting};
use openhosting_filesystem::{self as filesystem, nonblocking};
use openhosting_system as system;

pub use openhosting_engine as policy;
pub use openhosting_image as image;
#[cfg(target_os = "linux")]
pub use openhosting_server as server;

pub use credentials::Credentials;
pub use error::{Error, ErrorKind, Result};

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
