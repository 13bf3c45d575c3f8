//! `openhosting-download`.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::display::{Display, Way};
use super::tool::{self, Common, Done, Tool, Unfinished};
use super::{arguments, checksum, exit};
use crate::api::Client;
use crate::codec::Packing;
use crate::drive::DriveId;
use crate::error::Result;
use crate::profile::Profile;
use crate::transfer::{
    Destination, DownloadInterrupted, DownloadOptions, Downloaded, JournalOptions, Stop, download,
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

    /// Overwrite FILE if it is there; needed for a block device
    #[arg(long)]
    force: bool,

    /// Download a drive that is in use, or changes meanwhile
    #[arg(long)]
    allow_live: bool,

    /// Where to keep what was done [default: FILE.ohj]
    #[arg(long, value_name = "PATH")]
    journal: Option<PathBuf>,

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

    #[command(flatten)]
    common: Common,

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
    tool::main::<Arguments>()
}

impl Tool for Arguments {
    const PROGRAM: &'static str = PROGRAM;

    fn common(&self) -> &Common {
        &self.common
    }

    fn way(&self) -> Way {
        if self.file.as_os_str() == "-" {
            Way::DownToStdout
        } else {
            Way::Down
        }
    }

    fn image(&self) -> &Path {
        &self.file
    }

    fn drive(&self) -> Option<DriveId> {
        Some(self.drive)
    }

    async fn transfer(&self, display: &mut Display, stop: Stop) -> Result<Done, Unfinished> {
        match run(self, display, stop).await {
            Ok(downloaded) => Ok(Done {
                verified: downloaded.verified,
                checksum: downloaded.checksum,
                journal: downloaded.journal,
            }),
            Err(interrupted) => Err(Unfinished {
                advice: advice(self, &interrupted),
                resume: interrupted.resume_at.map(|offset| (self.drive, offset)),
                error: interrupted.error,
            }),
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

async fn run(
    arguments: &Arguments,
    display: &mut Display,
    stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    let client = arguments.common.client()?;
    let destination = match arguments.way() {
        Way::DownToStdout => Destination::Stream(Box::new(std::io::stdout())),
        Way::Up | Way::Down | Way::Publish => Destination::File {
            path: arguments.file.clone(),
            force: arguments.force,
        },
    };
    let profile = arguments.profile(&client);
    let options = options(arguments, &client, &profile);
    let done = download(&client, destination, &options, display, stop).await?;
    if let Some(digest) = done.checksum
        && arguments.way() == Way::Down
    {
        checksum::keep(digest, &arguments.file)?;
    }
    Ok(done)
}

fn options(arguments: &Arguments, client: &Client, profile: &Profile) -> DownloadOptions {
    let beside = || {
        let mut name = arguments.file.clone().into_os_string();
        name.push(".ohj");
        PathBuf::from(name)
    };
    DownloadOptions {
        drive: arguments.drive,
        offset: arguments.offset,
        chunk: arguments.chunk,
        read_bytes_max: NonZeroU64::new(profile.read_bytes_max()).unwrap_or_else(default_chunk),
        jobs: arguments.common.jobs,
        max_outage: arguments.common.max_outage,
        allow_live: arguments.allow_live,
        journal: JournalOptions {
            path: Some(arguments.journal.clone().unwrap_or_else(beside)),
            endpoint: client.endpoint().to_string(),
            restart: arguments.common.restart,
            changed_ok: false,
        },
        verify: arguments.common.verify,
        packing: arguments.packing(),
        checksum: arguments.checksum,
    }
}

/// How to go on.
fn advice(arguments: &Arguments, interrupted: &DownloadInterrupted) -> Vec<String> {
    let Some(offset) = interrupted.resume_at else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if !interrupted.is_whole {
        lines.push(format!("Failed to read chunk at offset {offset}: aborting"));
    }
    if interrupted.is_journaled {
        lines.push(
            "Run the same command again to resume the download: it fetches only what is missing"
                .into(),
        );
    } else if arguments.packing().is_some() {
        lines.push("A packed download cannot go on: the same command starts over".into());
    } else if arguments.offset.is_some() {
        lines.push(format!("Restart with '-o {offset}' to resume the download"));
    }
    lines
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

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for flags in ["--gzip --zstd", "--gzip --journal j", "--zstd -o 5"] {
            let kind = parse(&format!("{flags} {ID} out")).unwrap_err().kind();
            assert_eq!(kind, clap::error::ErrorKind::ArgumentConflict, "{flags}");
        }
    }
}
