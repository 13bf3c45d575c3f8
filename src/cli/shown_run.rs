//! Runs a command that transfers much data: displays its progress, stops it on signals and at its
//! deadline, and then reports the outcome on stdout, on stderr and to GitHub Actions.

use std::io::IsTerminal;
use std::process::ExitCode;

use serde_json::Value;

use super::continuation::{Continuation, Unfinished};
use super::display::{Display, RunEnd};
use super::github::Report;
use super::output::CommandOutput;
use super::showing::ShownRun;
use super::signals::{self, Heard};
use super::{exit, screen};
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::Stop;

/// The outcome of a command.
#[derive(Default)]
pub(super) struct RunOutcome<'a> {
    /// Bytes that were verified, if the run is complete.
    pub(super) verified_bytes: Option<u64>,
    pub(super) error: Option<Error>,
    /// The drive, and the byte at which another run would continue.
    pub(super) resume: Option<(DriveId, u64)>,
    /// The lines of the original scripts about how to continue, which logs still contain.
    pub(super) original: Vec<String>,
    /// A line about what the run leaves on the endpoint.
    pub(super) left_behind: Option<String>,
    /// How another run continues this one, if it can.
    pub(super) continuation: Option<Continuation>,
    /// Whether the same command continues with what earlier runs stored, if `continuation` is
    /// `None`.
    pub(super) resumes: bool,
    /// The lines that say what was done, if they are better than those of the display.
    pub(super) summary: Option<Vec<String>>,
    /// The result as text for people.
    pub(super) text: String,
    /// For programs; if `None`, the object of the display is used.
    pub(super) object: Option<Value>,
    /// The report for later steps, except how the run ended.
    pub(super) report: Report,
    /// What to do after the display has ended.
    pub(super) at_end: Option<Box<dyn FnOnce() -> Result<()> + 'a>>,
}

impl RunOutcome<'_> {
    /// The outcome of a run that failed.
    pub(super) fn failed(error: Error, object: Option<Value>, report: Report) -> Self {
        Self {
            error: Some(error),
            object,
            report,
            ..Self::default()
        }
    }
}

impl ShownRun<'_> {
    /// Runs the command to its end, and returns the exit code.
    pub(super) fn run<'a>(
        self,
        work: impl AsyncFnOnce(&mut Display, Stop) -> RunOutcome<'a>,
    ) -> ExitCode {
        let (form, is_json) = (self.form, self.is_json);
        if let Some(error) = self.showing.contradiction() {
            return form.finish(is_json, &Heard::default(), Err(error));
        }
        let mut display = Display::new(&self);
        let announced = (!self.showing.quiet).then_some(form.program);
        let (outcome, heard) = signals::hearing(announced, self.deadline, async |stop| {
            Ok(work(&mut display, stop).await)
        });
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return form.finish(is_json, &heard, Err(error)),
        };
        let (mut report, mut error) = (outcome.report, outcome.error);
        let kind = error.as_ref().map(Error::kind);
        let end = RunEnd {
            verified_bytes: outcome.verified_bytes,
            exit_code: match &error {
                Some(error) if exit::is_reader_gone(error) => exit::READER_ENDED,
                Some(error) => heard.exit_code(error.kind()),
                None => 0,
            },
            resume: outcome.resume,
            summary: outcome.summary,
        };
        let mut object = outcome.object.unwrap_or_else(|| {
            let mut object = display.object(&end);
            object["sha256"] = report.digest.map(|digest| digest.to_string()).into();
            object
        });
        // Also where a run failed before there was an object.
        object["warnings"] = display.warnings().into();
        let mut shown = display.ended(&end);
        report.outcome = shown.outcome;
        report.took = shown.took;
        if let Some(at_end) = outcome.at_end {
            error = at_end().err().or(error);
        }
        let unfinished = kind.map(|kind| Unfinished {
            kind,
            exit_code: end.exit_code,
            position: shown.position,
        });
        let continuation = outcome.continuation.or_else(|| {
            let command = || Continuation {
                resumes: outcome.resumes,
                ..Continuation::again(form.program)
            };
            unfinished?.is_resumable().then(command)
        });
        let hint = continuation.as_ref().map(Continuation::advice);
        let lines = last_lines(
            form.program,
            outcome.original,
            outcome.left_behind,
            continuation,
            unfinished,
        );
        let go_on = lines.iter().map(|line| ("To go on", line.clone()));
        report.rows.extend(go_on);
        shown.github.leave(&report, error.as_ref());
        let answer = CommandOutput {
            text: outcome.text,
            object,
            error,
            hint,
        };
        form.finish_printing(is_json, &heard, Ok(answer), |error| {
            // The line about the progress already says that it stopped.
            let is_message_known =
                !exit::is_old_script(form.program) && error.kind() == ErrorKind::Cancelled;
            shown.github.report_error(error, is_message_known, &lines);
        })
    }
}

/// The last lines of a run: those of the original script or ours, which say the same, what the run
/// leaves behind, and the command that continues. A last line that is a command always continues
/// the run: users and their programs run it without reading it.
fn last_lines(
    program: &str,
    original: Vec<String>,
    left_behind: Option<String>,
    continuation: Option<Continuation>,
    unfinished: Option<Unfinished>,
) -> Vec<String> {
    let has_original =
        !original.is_empty() && (continuation.is_none() || exit::is_old_script(program));
    let mut lines = match has_original {
        true => original,
        false => Vec::new(),
    };
    lines.extend(left_behind);
    let Some(unfinished) = unfinished else {
        return lines;
    };
    if let Some(next) = continuation {
        let [how_far, command] = unfinished.lines(&next);
        // The lines of the original script say how far it got.
        if !has_original || next.needs.is_some() {
            match std::io::stderr().is_terminal() {
                true => lines.extend(screen::wrapped(&how_far)),
                false => lines.push(how_far),
            }
        }
        lines.push(command);
    }
    lines
}
