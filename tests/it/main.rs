//! Tests of the built programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod access;
mod archives;
mod citations;
mod commands;
mod disks;
mod download;
mod drives;
mod examples;
mod extents;
mod faults;
mod features;
mod filesystems;
mod foreign;
mod formats;
mod full;
mod guests;
mod holes;
mod hostile;
mod json;
mod kill;
mod killed;
mod libcloud;
mod load;
mod login;
mod manual;
mod marks;
mod matrix;
mod mistakes;
mod neighbours;
mod outputs;
mod ova;
mod page;
mod patience;
mod pieces;
mod pipelines;
mod places;
mod planted;
mod powerloss;
mod probe;
mod process;
mod publish;
mod quotas;
mod recorded;
mod resume;
mod round_trips;
mod server_guard;
mod server_operator;
mod server_state;
mod server_wire;
mod server_writes;
mod servers;
mod shaped_link;
mod shards;
mod simple;
mod skips;
mod state_model;
mod streams;
mod support;
mod tail;
mod terminal;
mod tls;
mod transcripts;
mod upload;
mod upload_faults;
mod web;
mod work;
