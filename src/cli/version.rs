//! `openhosting version`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use super::{environment, exit, help, server};

/// Prints the version
#[derive(Debug, Parser)]
#[command(name = "openhosting-version", bin_name = "openhosting version", after_long_help = help::after("version"))]
pub(super) struct Version {
    /// Print also commit, target, features and paths
    #[arg(short, long)]
    verbose: bool,
}

/// Prints the version.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    let arguments: Version = exit::parse(words.to_vec());
    let mut text = format!("openhosting {}\n", env!("CARGO_PKG_VERSION"));
    if arguments.verbose {
        let path = |path: Option<std::path::PathBuf>| {
            path.map_or("none".to_owned(), |path| path.display().to_string())
        };
        let features = if server::IS_HERE {
            "cli, server"
        } else {
            "cli"
        };
        for (name, value) in [
            // ci/release/build.sh sets these two.
            (
                "commit",
                option_env!("OPENHOSTING_COMMIT")
                    .unwrap_or("unknown: not built by the release scripts")
                    .to_owned(),
            ),
            (
                "target",
                option_env!("OPENHOSTING_TARGET").map_or_else(
                    || format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
                    str::to_owned,
                ),
            ),
            ("features", features.to_owned()),
            ("config", path(environment::config_file())),
            (
                "state",
                path(environment::state_directory().map(|state| state.join("openhosting"))),
            ),
        ] {
            text += &format!("{name:<8} {value}\n");
        }
    }
    exit::finish("openhosting version", exit::print(&text))
}
