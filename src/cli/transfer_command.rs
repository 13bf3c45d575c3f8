//! What the upload and the download tool share: flags, access to the endpoint, and how the programs
//! run and end.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::access::Access;
use super::display::Display;
use super::exit::Notice;
use super::github::Report;
use super::output::OutputForm;
use super::showing::{DisplayArguments, ShownRun, Way};
use super::shown_run::RunOutcome;
use super::signals::Heard;
use super::{access, arguments, checksum_line, command_line, exit, help};
use crate::api::{Client, ClientConfig};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Progress;
use crate::transfer::{Ended, JOBS_DEFAULT, Patience, RateLimit, Stop, Verify, WebConfig};

/// The flags that mean the same to both, whichever way the bytes go.
#[derive(Debug, clap::Args, PartialEq, Eq)]
pub(super) struct CommonArguments {
    /// Use at most N concurrent requests [default: 64]
    ///
    /// The number adapts to the link.
    #[arg(hide_default_value = true, short, long, value_name = "N", default_value_t = JOBS_DEFAULT, value_parser = arguments::jobs)]
    pub(super) jobs: NonZeroU32,

    /// Use at least N concurrent requests, if the endpoint accepts them
    ///
    /// A transfer starts with 4 requests (32 if a round trip takes more than 50 ms), or with N if
    /// that is more. With the same N for --jobs, the number does not change.
    #[arg(long, value_name = "N", default_value = "1", value_parser = arguments::jobs, hide_short_help = true, help_heading = help::SPEED)]
    pub(super) min_jobs: NonZeroU32,

    #[command(flatten)]
    pub(super) access: Access,

    /// Give up after this long without progress (resumable)
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = arguments::time, hide_short_help = true, help_heading = help::SPEED)]
    pub(super) max_outage: Duration,

    /// Stop cleanly after this time with exit code 75 (resumable)
    #[arg(long, value_name = "TIME", value_parser = arguments::time, hide_short_help = true, help_heading = help::SPEED)]
    pub(super) deadline: Option<Duration>,

    /// Limit the bytes per second, for example 20M
    ///
    /// The limit is for all requests together.
    #[arg(long, value_name = "BYTES", value_parser = arguments::rate)]
    pub(super) limit_rate: Option<NonZeroU64>,

    /// Abort and repeat a request after this long without data
    ///
    /// A request counts as without data if it moves less than 32 bytes per second in TIME, or less
    /// than 16 KiB in ten times TIME.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = arguments::patience, hide_short_help = true, help_heading = help::SPEED)]
    pub(super) stall_timeout: Duration,

    /// Compare the drive and the image: none, sample or full [default: sample]
    ///
    /// sample reads a small part of the drive, and full reads all of it.
    #[arg(hide_default_value = true, long, value_name = "HOW", default_value_t = Verify::default(), value_parser = arguments::one_of::<Verify>(&["none", "sample", "full"]), hide_possible_values = true)]
    pub(super) verify: Verify,

    /// Forget an earlier run of this transfer, and start over
    #[arg(long, hide_short_help = true, help_heading = help::RESUMING)]
    pub(super) restart: bool,

    #[command(flatten)]
    pub(super) showing: DisplayArguments,

    /// Print one JSON object on stdout, at the end
    #[arg(short = 'J', long)]
    pub(super) json: bool,
}

impl CommonArguments {
    /// Refuses flags that contradict each other.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub(super) fn check(&self) -> Result<()> {
        if self.min_jobs <= self.jobs {
            return Ok(());
        }
        let what = format!(
            "--min-jobs {} is more than --jobs {}",
            self.min_jobs, self.jobs
        );
        Err(Error::new(ErrorKind::Usage, what).hint_to("Raise --jobs, or lower --min-jobs"))
    }

    /// The settings of a client of the endpoint.
    pub(super) fn config(&self) -> ClientConfig {
        ClientConfig {
            stall: self.stall_timeout,
            outage: self.max_outage,
            meter: self.limit_rate.map(RateLimit::meter),
            ..ClientConfig::default()
        }
    }

    /// How long the run continues while nothing succeeds. The whole run shares one patience, so
    /// that the display learns of every wait.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.max_outage).until(self.deadline)
    }

    /// How to download images and digests from web servers. With --local no endpoint is configured.
    pub(super) fn web(&self, is_local: bool, patience: &Patience) -> Result<WebConfig> {
        let certificates = match is_local {
            true => self.access.certificates()?,
            false => self.access.resolve()?.certificates(),
        };
        access::web(certificates, self.config(), patience)
    }

    /// Creates a client of the configured endpoint. `stop` ends the wait for a key.
    pub(super) async fn client(&self, stop: &mut Stop) -> Result<Client> {
        self.access.client(self.config(), stop).await
    }
}

/// A tool that makes one transfer: its arguments, and how it makes the transfer.
pub(super) trait Tool: Parser {
    /// Its name, which begins each line on stderr.
    const PROGRAM: &'static str;

    /// The name of the same tool as a command of `openhosting`.
    const COMMAND: &'static str;

    /// The name and version of its JSON object.
    const SCHEMA: &'static str;

    /// The flags that both tools have.
    fn common(&self) -> &CommonArguments;

    /// The direction of the transfer.
    fn way(&self) -> Way;

    /// The image, as the user named it.
    fn image(&self) -> &Path;

    /// Makes the transfer.
    ///
    /// # Errors
    /// A [`RunOutcome`] with the cause and how to continue.
    async fn transfer(
        &self,
        display: &mut Display,
        stop: Stop,
    ) -> Result<CompleteTransfer, RunOutcome<'static>>;

    /// Prints a line if a person reads it at a terminal.
    fn notice(&self, line: &str) {
        if !self.common().showing.quiet && std::io::stderr().is_terminal() {
            Notice::Note.say(Self::name(), line);
        }
    }

    /// The name under which the tool was run.
    fn name() -> &'static str {
        match command_line::is_one_program() {
            true => Self::COMMAND,
            false => Self::PROGRAM,
        }
    }
}

/// A transfer that is complete.
#[derive(Debug)]
pub(super) struct CompleteTransfer {
    pub(super) verified_bytes: u64,
    /// The digest of the image, if it was requested.
    pub(super) checksum: Option<Digest>,
    /// Removed after the outcome was reported.
    pub(super) journal: Ended,
    /// What a person can do next, if that is not obvious.
    pub(super) next: Option<String>,
}

/// The words of a command of `openhosting`, as if it were a program of its own.
pub(super) fn as_program(words: &[OsString]) -> Vec<OsString> {
    let mut all = words.to_vec();
    if let Some(first) = all.first_mut() {
        let mut name = OsString::from("openhosting ");
        name.push(&*first);
        *first = name;
    }
    all
}

/// Runs the program: shows the transfer, stops it on request, and reports how it ended. The first
/// word is the program's name.
pub(super) fn main<T: Tool>(words: &[OsString]) -> ExitCode {
    let form = OutputForm::new(T::name(), T::SCHEMA);
    let tool: T = match form.parse(words) {
        Ok(tool) => tool,
        Err(code) => return code,
    };
    let (common, way) = (tool.common(), tool.way());
    if common.json && way == Way::DownToStdout {
        let what = "--json and - both need stdout";
        let error = Error::new(ErrorKind::Usage, what)
            .hint_to("--progress json prints the same on stderr at the end");
        // No object either: stdout is for the disk.
        return exit::finish(form.program, Err(error));
    }
    if let Err(error) = common.check() {
        return form.finish(common.json, &Heard::default(), Err(error));
    }
    let image = tool.image().to_string_lossy();
    let run = ShownRun {
        form,
        is_json: common.json,
        way,
        showing: &common.showing,
        about: &image,
        deadline: common.deadline,
    };
    run.run(async |display, stop| {
        let transferred = tool.transfer(display, stop).await;
        let report = display.report(rows(display.progress, &image));
        match transferred {
            Ok(done) => complete(&tool, done, report, display.check_written()),
            Err(unfinished) => RunOutcome {
                report,
                ..unfinished
            },
        }
    })
}

/// The outcome of a complete transfer. Its digest is printed and its journal removed at the very
/// end. `written`: the result of writing the dots and the line about the drive.
fn complete<T: Tool>(
    tool: &T,
    done: CompleteTransfer,
    mut report: Report,
    written: Result<()>,
) -> RunOutcome<'_> {
    report.digest = done.checksum;
    let verified = done.verified_bytes;
    report.rows.push(("Verified", format!("{verified} bytes")));
    RunOutcome {
        verified_bytes: Some(verified),
        report,
        at_end: Some(Box::new(move || {
            let printed = match (done.checksum, tool.common().json) {
                (Some(digest), false) => {
                    checksum_line::print(digest, tool.image(), tool.way() != Way::DownToStdout)
                }
                _ => Ok(()),
            };
            if let Some(next) = &done.next {
                tool.notice(next);
            }
            done.journal.remove().and(printed).and(written)
        })),
        ..RunOutcome::default()
    }
}

/// The rows of the summary for a transfer of this image.
fn rows(progress: Progress, image: &str) -> Vec<(&'static str, String)> {
    let data = progress.done_bytes - progress.skipped_bytes;
    let zeros = progress.skipped_bytes;
    vec![
        ("Image", image.to_owned()),
        ("Data", format!("{data} bytes")),
        ("Zeros left out", format!("{zeros} bytes")),
        ("Retries", progress.retries.to_string()),
    ]
}
