//! The API server. See [`openhosting::server`].

use std::process::ExitCode;

fn main() -> ExitCode {
    openhosting::cli::server_main()
}
