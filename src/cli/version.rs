//! `openhosting version`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use super::{environment, exit, help, server};

const PROGRAM: &str = "openhosting version";

/// Prints the version
#[derive(Debug, Parser)]
#[command(name = "openhosting-version", bin_name = PROGRAM, after_long_help = help::after("version"))]
pub(super) struct Version {
    /// Also print commit, target, features and paths
    #[arg(short, long)]
    verbose: bool,
}

/// The features in Cargo.toml, each with whether this program has it.
const FEATURES: [(&str, bool); 3] = [
    ("cli", true),
    // A server that was requested is left out on a system that it does not run on.
    ("server", server::IS_HERE),
    ("signing", cfg!(feature = "signing")),
];

/// The command.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    exit::main(PROGRAM, words, |arguments: &Version| {
        exit::finish(PROGRAM, exit::print(&text(arguments)))
    })
}

fn text(arguments: &Version) -> String {
    let mut text = format!("openhosting {}\n", env!("CARGO_PKG_VERSION"));
    if arguments.verbose {
        let features = FEATURES.iter().filter(|(_, is_here)| *is_here);
        let features: Vec<_> = features.map(|(name, _)| *name).collect();
        let path = |path: Option<std::path::PathBuf>| {
            path.map_or("none".to_owned(), |path| path.display().to_string())
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
            ("features", features.join(", ")),
            ("config", path(environment::config_file())),
            ("state", path(environment::state_directory())),
        ] {
            text += &format!("{name:<8} {value}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_feature_is_missing() {
        let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
        let listed = manifest["features"].as_table().unwrap().keys();
        let listed: Vec<_> = listed.filter(|name| *name != "default").collect();
        let mut known: Vec<_> = FEATURES.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        assert_eq!(listed, known);
    }
}
