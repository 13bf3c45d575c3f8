//! Tests of the built programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod faults;
mod features;
mod libcloud;
mod probe;
mod server_guard;
mod server_wire;
mod server_writes;
mod simple;
mod support;
mod transcripts;
mod upload;
mod upload_faults;
