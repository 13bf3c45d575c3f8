//! `openhosting-download`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::display::{Display, End, Way};
use super::{arguments, block_on, checksum, environment, exit, signals};
use crate::api::{Client, ClientConfig};
use crate::codec::Packing;
use crate::drive::DriveId;
use crate::error::Result;
use crate::transfer::{
    Destination, DownloadInterrupted, DownloadOptions, Downloaded, JournalOptions, RateLimit, Stop,
    Verify, download,
};
use crate::wire::READ_BYTES_MAX;

const PROGRAM: &str = "openhosting-download";

/// Downloads a drive to a disk image
///
/// The image appears as FILE when it is whole and on the disk; until then it is
/// FILE.oh-part, and FILE.ohj tells what of it is there. The same command goes
/// on where an earlier one ended.
///
/// The endpoint and who you are come from the environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = PROGRAM, version, after_help = exit::EXIT_CODES)]
struct Arguments {
    /// Size of chunks in bytes
    #[arg(short, long, value_name = "CHUNK", default_value_t = default_chunk(), value_parser = arguments::chunk)]
    chunk: NonZeroU64,

    /// Byte offset to start at: FILE is written in place from there on, and what
    /// is before it stays
    #[arg(short, long, value_name = "OFFSET", value_parser = arguments::number)]
    offset: Option<u64>,

    /// Most requests in flight
    #[arg(short, long, value_name = "N", default_value = "4", value_parser = arguments::jobs)]
    jobs: NonZeroU32,

    /// Endpoint URI, instead of OHURI
    #[arg(long, value_name = "URI")]
    endpoint: Option<String>,

    /// Overwrite FILE if it is there; needed for a block device
    #[arg(long)]
    force: bool,

    /// Download a drive that is in use, or changes meanwhile
    #[arg(long)]
    allow_live: bool,

    /// Read again what was written: none, sample (16 KiB of some chunks), or full
    #[arg(long, value_name = "HOW", default_value_t = Verify::default())]
    verify: Verify,

    /// Where to keep what was done [default: FILE.ohj]
    #[arg(long, value_name = "PATH")]
    journal: Option<PathBuf>,

    /// Forget an earlier run of this download and start over
    #[arg(long)]
    restart: bool,

    /// Give up when nothing succeeded for so long; can be resumed
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    max_outage: Duration,

    /// Stop cleanly when it took so long, with exit code 75; can be resumed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,

    /// Most bytes of bodies per second, over all requests together, as in 20M
    #[arg(long, value_name = "BYTES", value_parser = arguments::rate)]
    limit_rate: Option<NonZeroU64>,

    /// Take a request for hung when nothing moved for so long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = arguments::patience)]
    stall_timeout: Duration,

    /// Pack what is written as gzip. Such a download cannot go on when it stopped:
    /// it starts over
    #[arg(long, conflicts_with_all = ["offset", "journal", "zstd"])]
    gzip: bool,

    /// The same as Zstandard
    #[arg(long, conflicts_with_all = ["offset", "journal"])]
    zstd: bool,

    /// Print the SHA-256 of what was written as the last line, and write it to
    /// FILE.sha256, for sha256sum -c
    #[arg(long)]
    checksum: bool,

    /// How to show progress on stderr: auto (a bar on a terminal, plain elsewhere),
    /// bar, plain (a line every 10 s), json (docs/progress.md), or none
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    progress: arguments::Progress,

    /// Neither dots nor progress
    #[arg(short, long)]
    quiet: bool,

    /// The drive to download
    #[arg(value_name = "DRIVE-UUID")]
    drive: DriveId,

    /// File or block device to write to, or - for stdout
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

fn default_chunk() -> NonZeroU64 {
    NonZeroU64::new(READ_BYTES_MAX).unwrap_or(NonZeroU64::MIN)
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut display = Display::new(
        PROGRAM,
        way(&arguments),
        Some(arguments.drive),
        arguments.progress,
        arguments.quiet,
    );
    let result = block_on(async {
        let (stop, heard) = signals::listen(PROGRAM, arguments.deadline)?;
        let outcome = run(&arguments, &mut display, stop).await;
        Ok((outcome, heard))
    });
    let (outcome, heard) = match result {
        Ok(done) => done,
        Err(error) => return exit::finish(PROGRAM, Err(error)),
    };
    match outcome {
        Ok(done) => {
            display.ended(&End {
                verified: Some(done.verified),
                error: None,
                exit_code: 0,
                resume: None,
            });
            if let Some(digest) = done.checksum {
                let is_file = way(&arguments) == Way::Down;
                checksum::print(digest, &arguments.file, is_file);
            }
            // Now that it was told.
            exit::finish(PROGRAM, done.journal.remove())
        }
        Err(interrupted) => {
            let exit_code = heard.exit_code(interrupted.error.kind());
            display.ended(&End {
                verified: None,
                error: Some(interrupted.error.kind()),
                exit_code,
                resume: interrupted
                    .resume_at
                    .map(|offset| (arguments.drive, offset)),
            });
            tell(&arguments, &interrupted);
            ExitCode::from(exit_code)
        }
    }
}

impl Arguments {
    fn packing(&self) -> Option<Packing> {
        match (self.gzip, self.zstd) {
            (true, _) => Some(Packing::Gzip),
            (false, true) => Some(Packing::Zstd),
            (false, false) => None,
        }
    }
}

fn way(arguments: &Arguments) -> Way {
    if arguments.file.as_os_str() == "-" {
        Way::DownToStdout
    } else {
        Way::Down
    }
}

async fn run(
    arguments: &Arguments,
    display: &mut Display,
    stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    let config = ClientConfig {
        stall: arguments.stall_timeout,
        meter: arguments.limit_rate.map(RateLimit::meter),
        ..ClientConfig::default()
    };
    let client = environment::client(arguments.endpoint.as_deref(), &config)?;
    let destination = match way(arguments) {
        Way::DownToStdout => Destination::Stream(Box::new(std::io::stdout())),
        Way::Up | Way::Down => Destination::File {
            path: arguments.file.clone(),
            force: arguments.force,
        },
    };
    let options = options(arguments, &client);
    let done = download(&client, destination, &options, display, stop).await?;
    if let Some(digest) = done.checksum
        && way(arguments) == Way::Down
    {
        checksum::keep(digest, &arguments.file)?;
    }
    Ok(done)
}

fn options(arguments: &Arguments, client: &Client) -> DownloadOptions {
    let beside = || {
        let mut name = arguments.file.clone().into_os_string();
        name.push(".ohj");
        PathBuf::from(name)
    };
    DownloadOptions {
        drive: arguments.drive,
        offset: arguments.offset,
        chunk: arguments.chunk,
        jobs: arguments.jobs,
        max_outage: arguments.max_outage,
        allow_live: arguments.allow_live,
        journal: JournalOptions {
            path: Some(arguments.journal.clone().unwrap_or_else(beside)),
            endpoint: client.endpoint().to_string(),
            restart: arguments.restart,
            changed_ok: false,
        },
        verify: arguments.verify,
        packing: arguments.packing(),
        checksum: arguments.checksum,
    }
}

/// Says what went wrong and, last, how to go on.
fn tell(arguments: &Arguments, interrupted: &DownloadInterrupted) {
    exit::tell(PROGRAM, &interrupted.error);
    let Some(offset) = interrupted.resume_at else {
        return;
    };
    exit::say(&format!(
        "Failed to read chunk at offset {offset}: aborting"
    ));
    if interrupted.is_journaled {
        exit::say(
            "Run the same command again to resume the download: it fetches only what is missing",
        );
    } else if arguments.packing().is_some() {
        exit::say("A packed download cannot go on: the same command starts over");
    } else if arguments.offset.is_some() {
        exit::say(&format!(
            "Restart with '-o {offset}' to resume the download"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once(PROGRAM).chain(line.split_whitespace()))
    }

    #[test]
    fn flags_of_the_original() {
        let short = parse(&format!("-c 1000 -o 5 {ID} out")).unwrap();
        let long = parse(&format!("--chunk 1000 --offset 5 {ID} out")).unwrap();
        assert_eq!(short, long);
        assert_eq!(parse(&format!("{ID} out")).unwrap().chunk.get(), 4_194_304);
        for line in ["", ID, "nosuch out", &format!("-s 5 {ID} out")] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
