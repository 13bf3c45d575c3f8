//! Exit codes, which are the same for all tools, and how errors are printed.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use super::screen::Stdout;
use super::{printable, remedies, screen, usage};
use crate::error::{Error, ErrorKind, causes};
use crate::nonblocking::Waiting;

/// Stopped by SIGINT, with the number that shells use.
pub(super) const SIGINT: u8 = 130;
/// Stopped by SIGTERM.
pub(super) const SIGTERM: u8 = 143;

/// Stopped at the deadline. The code is that of an endpoint that did not recover, because another
/// run may succeed.
pub(super) const DEADLINE: u8 = 75;

/// The program that read stdout ended, as in `... | head`. It is the code that a shell reports for
/// a program that SIGPIPE stopped.
pub(super) const READER_ENDED: u8 = 141;

/// Whether an error is that nothing reads stdout any more. Like other Unix tools, the programs then
/// end without a message.
pub(super) fn is_reader_gone(error: &Error) -> bool {
    let is_broken_pipe = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.kind() == ErrorKind::Local
        && causes(error).any(|cause| cause.downcast_ref().is_some_and(is_broken_pipe))
}

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

/// Prints an error on one line, followed by its hint. On a terminal, the lines are wrapped between
/// words.
pub(super) fn print_error(program: &str, error: &Error) {
    say_wrapped(&format!("{program}: {}", error.chain()));
    let hint = hint_of(error).unwrap_or_default();
    hint.lines().for_each(say_wrapped);
}

/// Whether this run prints what the providers' script prints, because another program reads it.
pub(super) fn is_old_script(program: &str) -> bool {
    let is_script = matches!(
        program,
        "openhosting" | "openhosting-upload" | "openhosting-download"
    );
    is_script && !std::io::stdout().is_terminal()
}

/// A line on stderr that is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Information.
    Note,
    /// Something that the user should check, or may have to wait for.
    Warning,
}

impl Notice {
    /// The word for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
        }
    }

    /// Prefixes the line with `note: ` or `warning: `. Programs that replace a provider's script omit
    /// the prefix.
    pub(super) fn labelled(self, program: &str, line: &str) -> String {
        match is_old_script(program) {
            true => line.to_owned(),
            false => format!("{}: {line}", self.name()),
        }
    }

    /// Prints the line, wrapped between words if stderr is a terminal.
    pub(super) fn say(self, program: &str, line: &str) {
        say_wrapped(&format!("{program}: {}", self.labelled(program, line)));
    }
}

/// Prints one line on stderr, which is wrapped between words if that is a terminal.
pub(super) fn say_wrapped(line: &str) {
    match std::io::stderr().is_terminal() {
        true => screen::wrapped(line).iter().for_each(|line| say(line)),
        false => say(line),
    }
}

/// What to do about an error: its own hint, or what helps against an error of the operating system.
pub(super) fn hint_of(error: &Error) -> Option<String> {
    if let Some(hint) = error.hint() {
        return Some(remedies::worded(hint));
    }
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
    let chain = error.chain();
    let words = chain.split_whitespace();
    let mut paths = words.map(|word| Path::new(word.trim_matches(['"', ':'])));
    // Where a relative path begins is of no use for an absolute one.
    match paths.any(Path::is_absolute) && cause.kind() == std::io::ErrorKind::NotFound {
        true => Some("Check the path".to_owned()),
        false => advice_on(cause.kind()),
    }
}

/// What to do about an error of the operating system that concerns a file.
pub(super) fn advice_on(kind: std::io::ErrorKind) -> Option<String> {
    use std::io::ErrorKind as Io;
    let advice = match kind {
        Io::NotFound => {
            let here = std::env::current_dir().unwrap_or_default();
            return Some(format!(
                "Check the path; a relative one in an argument begins at {}",
                here.display()
            ));
        }
        Io::PermissionDenied => {
            "Check the owner and the permissions of the file, and of its directories"
        }
        Io::NotADirectory | Io::AlreadyExists => {
            "A file has the name of a directory that is needed: use another path"
        }
        Io::IsADirectory => "It is a directory: use another name",
        Io::StorageFull | Io::QuotaExceeded => "Free some space, or write to another place",
        Io::ReadOnlyFilesystem => "The file system is read-only: write to another place",
        Io::AddrInUse => "Another program listens on this port: use another one, or stop it",
        _ => return None,
    };
    Some(advice.to_owned())
}

/// Prints the error of a command, and returns its exit code. This is for commands that have nothing
/// to resume: they do not say with which command to start again, because it is the same.
pub(super) fn failed(program: &str, error: &Error, code: u8) -> ExitCode {
    if is_reader_gone(error) {
        return ExitCode::from(READER_ENDED);
    }
    print_error(program, error);
    ExitCode::from(code)
}

/// Prints one line on stderr without control characters, whatever the text contains. It is not an
/// error if stderr is closed.
pub(super) fn say(line: &str) {
    let line = printable::line(line);
    screen::write(|| {
        let _ = writeln!(Waiting(std::io::stderr()), "{line}");
    });
}

/// Prints a question on stderr, without a line end.
pub(super) fn ask(question: &str) {
    let question = printable::line(question);
    screen::write(|| {
        let _ = write!(Waiting(std::io::stderr()), "{question}");
    });
}

/// Prints an object on stderr, on one line.
pub(super) fn say_object(object: &serde_json::Value) {
    let object = printable::safe_json(&object.to_string());
    screen::write(|| {
        let _ = writeln!(Waiting(std::io::stderr()), "{object}");
    });
}

/// Parses the command line of `program`, and runs it.
pub(super) fn main<T: clap::Parser>(
    program: &str,
    words: &[OsString],
    run: impl FnOnce(&T) -> ExitCode,
) -> ExitCode {
    parse(program, words, |_| ()).map_or_else(|code| code, |arguments| run(&arguments))
}

/// Parses the command line of `program`. If it is invalid, or asks for help, the program has to
/// end. `before` gets an error before it is printed.
///
/// # Errors
/// The exit code, after the message was printed.
pub(super) fn parse<T: clap::Parser>(
    program: &str,
    words: &[OsString],
    before: impl FnOnce(&Error),
) -> Result<T, ExitCode> {
    try_parse(words).map_err(|error: clap::Error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let error = usage::error_of(&error, program);
        before(&error);
        print_error(program, &error);
        ExitCode::from(code_of(ErrorKind::Usage))
    })
}

/// Parses the command line.
///
/// # Errors
/// The error, or the help, without control characters even if the words contain some.
fn try_parse<T: clap::Parser>(words: &[OsString]) -> Result<T, clap::Error> {
    remedies::command_is(T::command);
    T::try_parse_from(words).map_err(|error| {
        // Messages quote the words in several ways, so they are made from words whose control
        // characters are escaped.
        let shown = words.iter();
        let shown = shown.map(|word| printable::line(&word.to_string_lossy()));
        let Err(shown) = T::try_parse_from(shown) else {
            let what = "An argument holds control characters, or is not UTF-8";
            return T::command().error(error.kind(), what);
        };
        shown
    })
}

/// Prints on stdout the result for which a command was run.
///
/// # Errors
/// [`ErrorKind::Local`] if stdout cannot be written.
pub(super) fn print(text: &str) -> Result<(), Error> {
    // Empty text is not written, so that a closed stdout does not matter then.
    if text.is_empty() {
        return Ok(());
    }
    let written = screen::write(|| {
        let mut out = Stdout::open()?;
        out.write_all(text.as_bytes())?;
        out.flush()
    });
    written.map_err(cannot_print)
}

/// The error if stdout cannot be written to.
pub(super) fn cannot_print(cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Local, "Cannot write to stdout").because(cause)
}

/// Prints an error, if there is one, and returns its exit code.
pub(super) fn finish(program: &str, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(program, &error, code_of(error.kind())),
    }
}
