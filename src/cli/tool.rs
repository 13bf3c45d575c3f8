//! What the two tools that make a transfer have in common: flags, the way to the
//! endpoint, and how such a program runs and ends.

use std::io::IsTerminal;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::access::Access;
use super::answer::{Answer, Form};
use super::display::{Display, End, Showing, Shown, Way};
use super::github::{BytesOutput, Report};
use super::signals::{self, Heard};
use super::{access, arguments, checksum, exit, findings};
use crate::api::{Client, ClientConfig, Web};
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::findings::Findings;
use crate::transfer::{
    Ended, JOBS_DEFAULT, Patience, RateLimit, Stop, Verified, Verify, WebConfig,
};

/// The flags that mean the same to both, whichever way the bytes go.
#[derive(Debug, clap::Args, PartialEq, Eq)]
pub(super) struct Common {
    /// Most requests in flight; a transfer begins with 4, and uses as many as help
    #[arg(short, long, value_name = "N", default_value_t = JOBS_DEFAULT, value_parser = arguments::jobs)]
    pub(super) jobs: NonZeroU32,

    /// Fewest requests in flight, from the start; the same number as --jobs makes it fixed
    #[arg(long, value_name = "N", default_value = "1", value_parser = arguments::jobs)]
    pub(super) min_jobs: NonZeroU32,

    #[command(flatten)]
    pub(super) access: Access,

    /// Give up when nothing succeeded for this long, from the first request of the run to
    /// the last (resumable)
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    pub(super) max_outage: Duration,

    /// Stop cleanly when it took so long, with exit code 75; can be resumed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) deadline: Option<Duration>,

    /// Most bytes of bodies per second, over all requests together, as in 20M
    #[arg(long, value_name = "BYTES", value_parser = arguments::rate)]
    pub(super) limit_rate: Option<NonZeroU64>,

    /// Abort a request when it moved nothing for this long, or less than 32 bytes per second
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = arguments::patience)]
    pub(super) stall_timeout: Duration,

    /// Read back what was transferred: none, sample (16 KiB of some chunks), or full
    #[arg(long, value_name = "HOW", default_value_t = Verify::default())]
    pub(super) verify: Verify,

    /// Forget an earlier run of this transfer and start over
    #[arg(long)]
    pub(super) restart: bool,

    #[command(flatten)]
    pub(super) showing: Showing,

    /// Print one JSON object on stdout, when all is over, and nothing else (docs/json.md)
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    /// How a client of the endpoint is to behave.
    pub(super) fn config(&self) -> ClientConfig {
        ClientConfig {
            stall: self.stall_timeout,
            outage: self.max_outage,
            meter: self.limit_rate.map(RateLimit::meter),
            ..ClientConfig::default()
        }
    }

    /// How long the run goes on while nothing succeeds: one for all of it, so that the
    /// display knows of every wait.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.max_outage).until(self.deadline)
    }

    /// How images and digests are fetched from web servers. With --local there is no
    /// endpoint to be told.
    pub(super) fn web(&self, is_local: bool, patience: &Patience) -> Result<WebConfig> {
        let certificates = match is_local {
            true => self.access.certificates()?,
            false => self.access.resolve()?.certificates(),
        };
        let config = ClientConfig {
            certificates,
            route: access::route()?,
            ..self.config()
        };
        Ok(WebConfig {
            web: Web::new(&config)?,
            patience: patience.clone(),
        })
    }

    /// A client of the endpoint that is told. `stop` ends the wait for a key.
    pub(super) async fn client(&self, stop: &mut Stop) -> Result<Client> {
        self.access.client(self.config(), stop).await
    }
}

/// A tool that makes one transfer: its arguments, and what it does with them.
pub(super) trait Tool: Parser {
    /// Its name, which begins each line it says.
    const PROGRAM: &'static str;

    /// Name and version of its object.
    const SCHEMA: &'static str;

    /// The flags that both tools have.
    fn common(&self) -> &Common;

    /// Which way the bytes go.
    fn way(&self) -> Way;

    /// The image, as it was named.
    fn image(&self) -> &Path;

    /// The drive, where it is known before the transfer tells it.
    fn drive(&self) -> Option<DriveId>;

    /// Makes the transfer.
    ///
    /// # Errors
    /// [`Unfinished`]: why, and how to go on.
    async fn transfer(&self, display: &mut Display, stop: Stop) -> Result<Done, Unfinished>;

    /// Says a line to somebody at a terminal.
    fn notice(&self, line: &str) {
        if !self.common().showing.quiet && std::io::stderr().is_terminal() {
            exit::say(&format!("{}: {line}", Self::PROGRAM));
        }
    }

    /// What is known of the endpoint. Without it everything goes as well, so that a
    /// finding that cannot be used is no reason to fail.
    fn findings(&self, client: &Client) -> Findings {
        findings::load(&client.endpoint().to_string())
            .unwrap_or_else(|error| {
                self.notice(&format!("{}; left out", error.chain()));
                None
            })
            .unwrap_or_default()
    }
}

/// A transfer that is complete.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) verified: Verified,
    /// The digest of the image, if it was asked for.
    pub(super) checksum: Option<Digest>,
    /// To be removed when it was told.
    pub(super) journal: Ended,
}

/// A transfer that is not.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) error: Error,
    /// The drive, and the byte at which another run would go on.
    pub(super) resume: Option<(DriveId, u64)>,
    /// The lines that say how to go on.
    pub(super) advice: Vec<String>,
}

/// The program: shows the transfer, stops it when it is told to, and says how it
/// ended.
pub(super) fn main<T: Tool>() -> ExitCode {
    let form = Form {
        program: T::PROGRAM,
        schema: T::SCHEMA,
        short: None,
    };
    let words: Vec<_> = std::env::args_os().collect();
    let tool: T = match form.parse(&words) {
        Ok(tool) => tool,
        Err(code) => return code,
    };
    let common = tool.common();
    if common.min_jobs > common.jobs {
        let what = format!(
            "--min-jobs {} is more than --jobs {}",
            common.min_jobs, common.jobs
        );
        return exit::finish(T::PROGRAM, Err(Error::new(ErrorKind::Usage, what)));
    }
    let (way, drive) = (tool.way(), tool.drive());
    if common.json && way == Way::DownToStdout {
        let what = "--json and - both need stdout";
        let error = Error::new(ErrorKind::Usage, what)
            .hint_to("--progress json tells the same on stderr when all is over");
        return exit::finish(T::PROGRAM, Err(error));
    }
    let image = tool.image().to_string_lossy();
    let mut display = Display::new(T::PROGRAM, way, drive, &common.showing, &image);
    if common.json {
        display.leave_stdout();
    }
    let result = signals::hearing(T::PROGRAM, common.deadline, async |stop| {
        tool.transfer(&mut display, stop).await
    });
    let (outcome, heard) = match result {
        Ok(done) => done,
        Err(error) => return form.finish(common.json, &Heard::default(), Err(error)),
    };
    let end = match &outcome {
        Ok(done) => End {
            verified: Some(done.verified),
            error: None,
            exit_code: 0,
            resume: None,
        },
        Err(unfinished) => {
            let kind = unfinished.error.kind();
            End {
                verified: None,
                error: Some(kind),
                exit_code: heard.exit_code(kind),
                resume: unfinished.resume,
            }
        }
    };
    let mut object = display.object(&end);
    let checksum = outcome.as_ref().ok().and_then(|done| done.checksum);
    object["sha256"] = checksum.map(|digest| digest.to_string()).into();
    let mut shown = display.ended(&end);
    let mut report = report(&shown, way, &image);
    let (error, advice) = match outcome {
        Ok(done) => {
            report.digest = done.checksum;
            let verified = format!("{} bytes", done.verified.bytes);
            report.rows.push(("Verified", verified));
            if let (Some(digest), false) = (done.checksum, common.json) {
                checksum::print(digest, tool.image(), way != Way::DownToStdout);
            }
            (done.journal.remove().err(), Vec::new())
        }
        Err(unfinished) => {
            let go_on = unfinished.advice.iter();
            let go_on = go_on.map(|line| ("To go on", line.clone()));
            report.rows.extend(go_on);
            (Some(unfinished.error), unfinished.advice)
        }
    };
    shown.github.leave(&report, error.as_ref());
    let answer = Answer {
        error,
        ..Answer::new(String::new(), object)
    };
    form.finish_telling(common.json, &heard, Ok(answer), |error| {
        shown.github.tell(error, &advice);
    })
}

/// What there is to leave for others about a transfer of this image.
fn report(shown: &Shown, way: Way, image: &str) -> Report {
    let progress = shown.progress;
    let bytes = match way {
        Way::Up | Way::Publish => BytesOutput::Sent,
        Way::Down | Way::DownToStdout | Way::Verify => BytesOutput::Received,
    };
    let data = progress.done_bytes - progress.skipped_bytes;
    Report {
        outcome: shown.outcome,
        drive: shown.drive,
        digest: None,
        bytes: (bytes, progress.wire_bytes),
        took: shown.took,
        rows: vec![
            ("Image", image.to_owned()),
            ("Data", format!("{data} bytes")),
            (
                "Zeros left out",
                format!("{} bytes", progress.skipped_bytes),
            ),
            ("Retries", progress.retries.to_string()),
        ],
    }
}
