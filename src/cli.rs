//! The command line: the only place that prints, reads the environment, uses the terminal and
//! receives signals.

mod access;
mod arguments;
mod bar;
mod candidates;
mod checksum_line;
mod command_line;
mod command_list;
mod complete;
mod config;
mod continuation;
mod display;
mod doctor;
mod download;
mod drive_commands;
mod drive_reference;
mod drive_state;
mod drive_table;
mod drives;
mod environment;
mod exit;
mod findings_file;
mod github;
mod help;
mod image;
mod image_notices;
mod json_list;
mod limits;
#[cfg(all(target_os = "linux", feature = "server"))]
mod local_server;
mod login;
mod manual;
mod other_journals;
mod output;
mod printable;
mod probe;
mod prompt;
mod proxies;
mod publish;
mod raw_call;
mod reached;
mod remedies;
mod screen;
mod secret_files;
#[cfg(all(target_os = "linux", feature = "server"))]
mod server;
mod showing;
mod shown_run;
mod signals;
#[cfg(feature = "signing")]
mod signing;
mod text_table;
mod trace;
mod transfer_command;
mod upload;
mod usage;
mod verify;
mod version;
mod wait_lines;
#[cfg(not(all(target_os = "linux", feature = "server")))]
mod without_server;
#[cfg(not(feature = "signing"))]
mod without_signing;
mod written_files;

#[cfg(not(all(target_os = "linux", feature = "server")))]
use without_server::{local_server, server};
#[cfg(not(feature = "signing"))]
use without_signing as signing;

pub use command_list::main as call_main;
pub use download::main as download_main;
pub use server::main as server_main;
pub use upload::main as upload_main;

use std::future::Future;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote;
use crate::system::survive_long_files;

/// Parses a config as if it were at `path`, and reports what is wrong with it.
///
/// # Errors
/// [`ErrorKind::Usage`] if it is invalid.
#[doc(hidden)]
pub fn check_config(text: &str, path: &Path) -> Result<()> {
    config::ConfigFile::parse(text, path).map(drop)
}

/// Runs a command to its end.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    limits::check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|cause| Error::new(ErrorKind::Local, "Cannot start").because(cause))?;
    {
        let _within = runtime.enter();
        survive_long_files();
    }
    let result = runtime.block_on(work);
    // Do not wait for threads that wait for a slow disk.
    runtime.shutdown_background();
    result
}
