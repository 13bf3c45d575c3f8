//! Replacements for the server and `--local` on systems other than Linux, and in a program that was
//! built without the feature `server`.

use crate::error::{Error, ErrorKind};

fn needs_linux(what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{what} runs on Linux only, in a program with the feature \"server\""))
        .hint_to("Run openhosting-server on a Linux machine, or in WSL, and name its address with --endpoint or OHURI")
}

/// `openhosting-server`.
pub(super) mod server {
    use std::ffi::OsString;
    use std::process::ExitCode;

    use clap::Parser;

    use crate::cli::without_server::needs_linux;
    use crate::cli::{exit, help};

    const PROGRAM: &str = "openhosting-server";

    /// Whether this program has the server.
    pub(in crate::cli) const IS_HERE: bool = false;

    /// Serves the API. It runs on Linux only.
    #[derive(Debug, Parser)]
    #[command(name = PROGRAM, version, after_long_help = help::after("server"))]
    pub(in crate::cli) struct ServerArguments {
        /// Whatever the server understands
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _arguments: Vec<OsString>,
    }

    /// Says that there is no server.
    pub fn main() -> ExitCode {
        main_of(&std::env::args_os().collect::<Vec<_>>())
    }

    /// `openhosting server`.
    pub(in crate::cli) fn main_of(words: &[OsString]) -> ExitCode {
        exit::main(PROGRAM, words, |_: &ServerArguments| {
            exit::finish(PROGRAM, Err(needs_linux("The server")))
        })
    }
}

/// `--local DIR`.
pub(super) mod local_server {
    use std::convert::Infallible;
    use std::path::Path;

    use crate::api::{Client, ClientConfig};
    use crate::cli::without_server::needs_linux;
    use crate::error::Result;

    /// There is none.
    #[derive(Debug)]
    pub(in crate::cli) struct Local(Infallible);

    impl Local {
        /// Fails.
        pub(in crate::cli) async fn start(_: &Path, _: &ClientConfig) -> Result<(Self, Client)> {
            Err(needs_linux("The server of --local"))
        }

        /// Cannot be called.
        pub(in crate::cli) async fn stop(self) {
            match self.0 {}
        }
    }
}
