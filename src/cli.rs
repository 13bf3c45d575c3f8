//! The command line: the only place that prints, reads the environment, asks
//! on the terminal and hears signals.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod exit;
mod server;

pub use server::main as server_main;
