//! See [`openhosting::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    openhosting::cli::download_main()
}
