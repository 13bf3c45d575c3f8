//! The output of our own commands on stdout: text for people, or with `--json` one object for
//! programs (docs/user/json.md), whatever the outcome.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};

use super::signals::{self, Heard};
use super::{exit, printable};
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::Stop;

/// The result of a command.
#[derive(Debug)]
pub(super) struct CommandOutput {
    /// For people.
    pub(super) text: String,
    /// For programs: the keys of its schema, except `schema` and `error`.
    pub(super) object: Value,
    /// The error, if the command failed but still has a result.
    pub(super) error: Option<Error>,
    /// For programs, what to do about an error that does not say it itself.
    pub(super) hint: Option<String>,
}

impl CommandOutput {
    /// The result of a command that succeeded.
    pub(super) fn new(text: String, object: Value) -> Self {
        Self {
            text,
            object,
            error: None,
            hint: None,
        }
    }
}

/// The form of a command's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputForm {
    /// The name at the beginning of each line on stderr.
    pub(super) program: &'static str,
    /// Name and version of the object, as in `ls/1`. Its schema is in docs/schema.
    pub(super) schema: &'static str,
    /// A short flag for `--json` in addition to `-J`, which all commands have.
    short: Option<&'static str>,
}

impl OutputForm {
    /// The form of a program's output.
    pub(super) const fn new(program: &'static str, schema: &'static str) -> Self {
        Self {
            program,
            schema,
            short: None,
        }
    }

    /// The same, and `-j` means `--json`.
    pub(super) const fn with_j(self) -> Self {
        Self {
            short: Some("-j"),
            ..self
        }
    }

    /// Parses the command line. If it is invalid, or contains `--help`, the command ends.
    ///
    /// # Errors
    /// The exit code, after the message was printed.
    pub(super) fn parse<T: Parser>(self, words: &[OsString]) -> Result<T, ExitCode> {
        exit::parse(self.program, words, |error| {
            if self.is_json(words) {
                let failure = (error, exit::code_of(error.kind()));
                let _ = exit::print(&self.print(Value::Null, Some(failure)));
            }
        })
    }

    /// Parses the command line of a command, and runs the command.
    pub(super) fn main<T: Parser>(
        self,
        words: &[OsString],
        run: impl FnOnce(&T) -> ExitCode,
    ) -> ExitCode {
        self.parse(words)
            .map_or_else(|code| code, |arguments| run(&arguments))
    }

    /// Whether words that could not be parsed request an object. The parser reports nothing about
    /// the flags of an invalid command line, and programs expect an object nevertheless.
    fn is_json(self, words: &[OsString]) -> bool {
        let mut flags = words.iter().take_while(|word| *word != "--");
        let is_json = |word: &OsString| {
            word == "--json" || word == "-J" || self.short.is_some_and(|short| word == short)
        };
        flags.any(is_json)
    }

    /// Runs a command that can be stopped by signals, and reports its outcome.
    pub(super) fn run(
        self,
        is_json: bool,
        work: impl AsyncFnOnce(Stop) -> Result<CommandOutput>,
    ) -> ExitCode {
        let (result, heard) = signals::hearing(Some(self.program), None, work);
        self.finish(is_json, &heard, result)
    }

    /// Reports the outcome of a command, and returns its exit code.
    pub(super) fn finish(
        self,
        is_json: bool,
        heard: &Heard,
        result: Result<CommandOutput>,
    ) -> ExitCode {
        let print = |error: &Error| exit::print_error(self.program, error);
        self.finish_printing(is_json, heard, result, print)
    }

    /// As [`finish`](Self::finish), with `print` to print the error on stderr.
    pub(super) fn finish_printing(
        self,
        is_json: bool,
        heard: &Heard,
        result: Result<CommandOutput>,
        print: impl FnOnce(&Error),
    ) -> ExitCode {
        let (answer, error) = match result {
            Ok(mut answer) => {
                let error = answer.error.take();
                (Some(answer), error)
            }
            Err(error) => (None, Some(error)),
        };
        let code = error
            .as_ref()
            .map_or(0, |error| heard.exit_code(error.kind()));
        let failure = error.as_ref().map(|error| (error, code));
        let printed = match (is_json, answer) {
            (true, answer) => {
                let (object, hint) =
                    answer.map_or((Value::Null, None), |answer| (answer.object, answer.hint));
                let mut object = self.object(object, failure);
                if let (Some(error), Some(hint)) = (object.get_mut("error"), hint)
                    && error["hint"].is_null()
                {
                    error["hint"] = hint.into();
                }
                exit::print(&text_of(object))
            }
            (false, Some(answer)) => exit::print(&answer.text),
            (false, None) => Ok(()),
        };
        match (error, printed) {
            // The error of the command matters more than a failure to print its result.
            (Some(error), _) if exit::is_reader_gone(&error) => ExitCode::from(exit::READER_ENDED),
            (Some(error), _) => {
                print(&error);
                ExitCode::from(code)
            }
            (None, printed) => exit::finish(self.program, printed),
        }
    }

    /// The object as text, with a line end.
    pub(super) fn print(self, object: Value, error: Option<(&Error, u8)>) -> String {
        text_of(self.object(object, error))
    }

    /// The object, with its schema and the error.
    fn object(self, object: Value, error: Option<(&Error, u8)>) -> serde_json::Map<String, Value> {
        let mut object = match object {
            Value::Object(keys) => keys,
            _ => serde_json::Map::new(),
        };
        object.insert("schema".into(), self.schema.into());
        if let Some((error, code)) = error {
            object.insert("error".into(), error_object(error, code));
        }
        object
    }
}

fn text_of(object: serde_json::Map<String, Value>) -> String {
    printable::safe_json(&format!("{:#}\n", Value::Object(object)))
}

/// An error for programs.
pub(super) fn error_object(error: &Error, exit_code: u8) -> Value {
    let kind = kind_name(error.kind(), exit_code);
    let message = match kind {
        DEADLINE => format!("{} at the deadline", error.chain()),
        _ => error.chain(),
    };
    json!({
        "kind": kind,
        "message": message,
        "hint": exit::hint_of(error),
        "exit_code": exit_code,
    })
}

/// The kind of an error if the deadline stopped the run.
const DEADLINE: &str = "deadline";

/// The name of a kind. It must not change, because programs compare it (docs/user/json.md). A new
/// kind needs a line there and in docs/schema/error.schema.json. The deadline stops a run as a signal
/// does, but another run may continue by itself, so its name is different.
fn kind_name(kind: ErrorKind, exit_code: u8) -> &'static str {
    match kind {
        ErrorKind::Cancelled if exit_code == exit::DEADLINE => DEADLINE,
        ErrorKind::Usage => "usage",
        ErrorKind::Image => "image",
        ErrorKind::Unauthenticated => "unauthenticated",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Rejected => "rejected",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Protocol => "protocol",
        ErrorKind::Integrity => "integrity",
        ErrorKind::Cancelled => "cancelled",
        ErrorKind::Local => "local",
        ErrorKind::Bug => "bug",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: OutputForm = OutputForm::new("openhosting x", "x/1").with_j();

    #[test]
    fn a_json_object_states_its_schema_and_error() {
        let text = FORM.print(json!({"a": 1}), None);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, json!({"schema": "x/1", "a": 1}));
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorKind::Local, "Cannot write").because(cause);
        let text = FORM.print(Value::Null, Some((&error.hint_to("Run"), 1)));
        let value: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({"kind": "local", "message": "Cannot write: disk on fire", "hint": "Run", "exit_code": 1});
        assert_eq!(value, json!({"schema": "x/1", "error": expected}));
    }

    #[test]
    fn json_is_recognised_only_as_a_flag() {
        let is_json = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            FORM.is_json(&words)
        };
        assert!(is_json("x --json --nosuch") && is_json("x -j --nosuch"));
        assert!(!is_json("x --nosuch") && !is_json("x -- --json") && is_json("x -J"));
    }
}
