//! Exit codes, the same for all tools, and how an error is told.

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

/// The codes, as `--help` tells them.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    usage: a flag, an argument or the environment is wrong
  4    integrity: the image changed while it was read, or bytes differ
  75   gave up for now, or at the deadline: can be resumed or tried again later
  130  stopped by SIGINT, can be resumed
  143  stopped by SIGTERM, can be resumed";

/// Stopped by SIGINT, as shells count it.
pub(super) const SIGINT: u8 = 130;
/// Stopped by SIGTERM.
pub(super) const SIGTERM: u8 = 143;

/// Stopped at the deadline: as an endpoint that did not recover, a reason to come
/// back.
pub(super) const DEADLINE: u8 = 75;

/// The exit code for an error.
pub(super) fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => 2,
        ErrorKind::Integrity => 4,
        ErrorKind::Unavailable => DEADLINE,
        ErrorKind::Cancelled => SIGINT,
        _ => 1,
    }
}

/// Prints an error in one line and its hint in another.
pub(super) fn tell(program: &str, error: &Error) {
    say(&format!("{program}: {}", error.chain()));
    if let Some(hint) = error.hint() {
        say(hint);
    }
}

/// Prints a line on stderr. A stderr that is closed is no reason to fail.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints on stdout what a command was asked for.
///
/// # Errors
/// [`ErrorKind::Local`] if nobody takes it.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|cause| Error::new(ErrorKind::Local, "Cannot write to stdout").because(cause))
}

/// Tells an error, if there is one, and makes the exit code of it.
pub(super) fn finish(program: &str, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(program, &error);
            ExitCode::from(code_of(error.kind()))
        }
    }
}
