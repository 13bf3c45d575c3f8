//! How a command that moves much data runs: it is shown meanwhile, signals and its deadline
//! stop it, and then stdout, stderr and GitHub Actions get what became of it.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::display::{Display, DisplayArguments, RunEnd, Way};
use super::github::Report;
use super::output::{CommandOutput, OutputForm};
use super::signals::{self, Heard};
use crate::drive::DriveId;
use crate::error::{Error, Result};
use crate::transfer::Stop;

/// A command that is about to run.
pub(super) struct ShownRun<'a> {
    pub(super) form: OutputForm,
    pub(super) is_json: bool,
    pub(super) way: Way,
    pub(super) showing: &'a DisplayArguments,
    /// The image, receipt or name in the title of what is shown.
    pub(super) about: &'a str,
    /// The drive, where it is known before an event tells it.
    pub(super) drive: Option<DriveId>,
    pub(super) deadline: Option<Duration>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct RunOutcome<'a> {
    /// Bytes that were verified, if the run is complete.
    pub(super) verified_bytes: Option<u64>,
    pub(super) error: Option<Error>,
    /// The drive, and the byte at which another run would go on.
    pub(super) resume: Option<(DriveId, u64)>,
    /// The lines that say how to go on.
    pub(super) advice: Vec<String>,
    /// For people.
    pub(super) text: String,
    /// For programs; without it what the display tells at the end.
    pub(super) object: Option<Value>,
    /// For whoever comes after this run, but for how it ended.
    pub(super) report: Report,
    /// What is left to do once nothing is shown any more.
    pub(super) at_end: Option<Box<dyn FnOnce() -> Result<()> + 'a>>,
}

impl RunOutcome<'_> {
    /// Of a run that failed.
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
    /// Runs the command to its end, and gives the exit code.
    pub(super) fn run<'a>(
        self,
        work: impl AsyncFnOnce(&mut Display, Stop) -> RunOutcome<'a>,
    ) -> ExitCode {
        let (form, is_json) = (self.form, self.is_json);
        let mut display =
            Display::new(form.program, self.way, self.drive, self.showing, self.about);
        if is_json {
            display.leave_stdout();
        }
        let done = signals::hearing(form.program, self.deadline, async |stop| {
            work(&mut display, stop).await
        });
        let (outcome, heard) = match done {
            Ok(done) => done,
            Err(error) => return form.finish(is_json, &Heard::default(), Err(error)),
        };
        let (mut report, mut error) = (outcome.report, outcome.error);
        let kind = error.as_ref().map(Error::kind);
        let end = RunEnd {
            verified_bytes: outcome.verified_bytes,
            error: kind,
            exit_code: kind.map_or(0, |kind| heard.exit_code(kind)),
            resume: outcome.resume,
        };
        let object = outcome.object.unwrap_or_else(|| {
            let mut object = display.object(&end);
            object["sha256"] = report.digest.map(|digest| digest.to_string()).into();
            object
        });
        let mut shown = display.ended(&end);
        report.outcome = shown.outcome;
        report.took = shown.took;
        let go_on = outcome.advice.iter().map(|line| ("To go on", line.clone()));
        report.rows.extend(go_on);
        if let Some(at_end) = outcome.at_end {
            error = at_end().err().or(error);
        }
        shown.github.leave(&report, error.as_ref());
        let answer = CommandOutput {
            text: outcome.text,
            object,
            error,
        };
        form.finish_telling(is_json, &heard, Ok(answer), |error| {
            shown.github.tell(error, &outcome.advice);
        })
    }
}
