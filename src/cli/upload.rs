//! `openhosting-upload`.

use std::io::IsTerminal;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::display::{Display, End, Way};
use super::local::Local;
use super::{arguments, block_on, checksum, environment, exit, profile, signals};
use crate::api::{Client, ClientConfig};
use crate::codec::Level;
use crate::drive::{DriveId, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image, ImageOptions};
use crate::monitor::{Event, Monitor};
use crate::plan::CHUNK_BYTES_DEFAULT;
use crate::profile::{GzipWrites, Profile};
use crate::transfer::{
    Interrupted, JournalOptions, RateLimit, Stop, Target, UploadOptions, Uploaded, Verify, upload,
};

const PROGRAM: &str = "openhosting-upload";

/// Uploads a disk image to a drive
///
/// The endpoint and who you are come from the environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
/// (EHURI and EHAUTH are taken as well). Without a key in OHAUTH it is asked for
/// on the terminal.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = PROGRAM, version, after_help = exit::EXIT_CODES, args_override_self = true)]
struct Arguments {
    /// Size of chunks in bytes
    #[arg(short, long, value_name = "CHUNK", default_value_t = default_chunk(), value_parser = arguments::chunk)]
    chunk: NonZeroU64,

    /// UUID of an existing drive to write to [default: creates a new drive]
    #[arg(short, long, value_name = "DRIVE-UUID")]
    drive: Option<DriveId>,

    /// Name for a newly created drive [default: basename of IMAGE]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,

    /// Byte offset from which to resume; rounded down to a chunk
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = arguments::number)]
    offset: u64,

    /// Storage tier of a newly created drive
    #[arg(short, long, value_name = "TIER", default_value = "disk")]
    tier: String,

    /// Let several servers claim a newly created drive at once
    #[arg(short, long)]
    shared: bool,

    /// IMAGE is gzip: upload its content
    #[arg(short = 'z', long)]
    gunzip: bool,

    /// What IMAGE is: raw, qcow2, vmdk, vdi, vhd or vhdx [default: what its content
    /// says; a block device is raw]. Say raw of a raw image that somebody not
    /// trusted could write to: it could be made to look like another
    #[arg(long, value_name = "FORMAT", conflicts_with = "gunzip")]
    format: Option<Format>,

    /// A file that IMAGE may be written on top of (its backing file), or a directory
    /// of such files; may be given more than once
    #[arg(long, value_name = "PATH", conflicts_with = "gunzip")]
    allow_backing: Vec<PathBuf>,

    /// Most requests in flight; fewer when the drive turns out to be busy
    #[arg(short, long, value_name = "N", default_value = "4", value_parser = arguments::jobs)]
    jobs: NonZeroU32,

    /// Endpoint URI, instead of OHURI
    #[arg(long, value_name = "URI", conflicts_with = "local")]
    endpoint: Option<String>,

    /// Upload into DIR, served by a server inside this program: no account needed
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,

    /// How hard to compress: 0 sends raw, 1 is fastest, 12 smallest
    /// [default: 1, and 0 to an endpoint on this machine]
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,

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

    /// Read back what was written: none, sample (16 KiB of some chunks), or full
    #[arg(long, value_name = "HOW", default_value_t = Verify::default())]
    verify: Verify,

    /// Where to keep what was done [default: a file in $XDG_STATE_HOME/openhosting
    /// or ~/.local/state/openhosting]
    #[arg(long, value_name = "PATH", conflicts_with = "no_journal")]
    journal: Option<PathBuf>,

    /// Keep no journal: an upload that stops can only be resumed with -d and -o
    #[arg(long)]
    no_journal: bool,

    /// Forget an earlier run of this upload and start over
    #[arg(long)]
    restart: bool,

    /// Go on although the image changed since the earlier run: send what changed
    #[arg(long)]
    changed_ok: bool,

    /// Compare with this drive, which holds part of the image, and send only what
    /// differs; needs no journal
    #[arg(long, value_name = "DRIVE-UUID", conflicts_with = "drive")]
    resume_from_drive: Option<DriveId>,

    /// Print the SHA-256 of the whole image as the last line. Of an upload that goes
    /// on, what earlier runs sent is read again from the image
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

    /// Disk image, or block device
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
}

fn default_chunk() -> NonZeroU64 {
    NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN)
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut display = Display::new(PROGRAM, Way::Up, None, arguments.progress, arguments.quiet);
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
                checksum::print(digest, &arguments.image, true);
            }
            ExitCode::SUCCESS
        }
        Err(interrupted) => {
            let exit_code = heard.exit_code(interrupted.error.kind());
            display.ended(&End {
                verified: None,
                error: Some(interrupted.error.kind()),
                exit_code,
                resume: interrupted
                    .resume
                    .map(|resume| (resume.drive, resume.offset)),
            });
            tell(&interrupted);
            ExitCode::from(exit_code)
        }
    }
}

async fn run(
    arguments: &Arguments,
    display: &mut Display,
    stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let config = ClientConfig {
        stall: arguments.stall_timeout,
        meter: arguments.limit_rate.map(RateLimit::meter),
        ..ClientConfig::default()
    };
    let Some(directory) = &arguments.local else {
        let client = environment::client(arguments.endpoint.as_deref(), &config)?;
        let profile = known(arguments, &client);
        check_gzip(&profile)?;
        return send(arguments, client, &profile, display, stop).await;
    };
    let (local, client) = Local::start(directory, &config).await?;
    let result = send(arguments, client, &Profile::default(), display, stop).await;
    local.stop().await;
    result
}

/// What is known of the endpoint. Without it everything goes as well, so that a
/// profile that cannot be used is no reason to fail.
fn known(arguments: &Arguments, client: &Client) -> Profile {
    profile::load(&client.endpoint().to_string())
        .unwrap_or_else(|error| {
            notice(arguments, &format!("{}; left out", error.chain()));
            None
        })
        .unwrap_or_default()
}

/// Chunks of zeros are sent in gzip whatever the level.
fn check_gzip(profile: &Profile) -> Result<()> {
    match profile.gzip_writes.known() {
        Some(GzipWrites::Stored | GzipWrites::Refused(_)) => Err(Error::new(
            ErrorKind::Rejected,
            "The endpoint does not unpack gzip, as a probe found",
        )
        .hint_to("If that has changed, probe again with: openhosting probe")),
        Some(GzipWrites::Decoded) | None => Ok(()),
    }
}

/// The requests in flight, lowered to what the endpoint is known to take.
fn jobs_for(jobs: NonZeroU32, profile: &Profile) -> NonZeroU32 {
    let most = profile.max_parallel_writes().and_then(NonZeroU32::new);
    most.map_or(jobs, |most| jobs.min(most))
}

/// Says a line to somebody at a terminal.
fn notice(arguments: &Arguments, line: &str) {
    if !arguments.quiet && std::io::stderr().is_terminal() {
        exit::say(&format!("{PROGRAM}: {line}"));
    }
}

async fn send(
    arguments: &Arguments,
    client: Client,
    profile: &Profile,
    display: &mut Display,
    mut stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let image = tokio::select! {
        image = open(arguments) => image?,
        () = stop.asked() => return Err(Error::new(ErrorKind::Cancelled, "Stopped").into()),
    };
    if arguments.format.is_none() && image.format() != Format::Raw {
        let format = image.format();
        let line = format!("By its content the image is {format}; --format raw sends it as it is");
        display.event(&Event::Notice(line));
    }
    let is_loopback = client.endpoint().is_loopback();
    let mut options = options(arguments, image.size(), is_loopback);
    options.jobs = jobs_for(arguments.jobs, profile);
    if options.jobs < arguments.jobs {
        let line = format!("-j lowered to {}: more were busy when probed", options.jobs);
        notice(arguments, &line);
    }
    options.journal = journal(arguments, &client);
    upload(&client, image, &options, display, stop).await
}

/// Opens the image on a thread of its own: measuring gzip, or reading the map of a
/// large image, takes a while.
async fn open(arguments: &Arguments) -> Result<Image> {
    let (path, gunzip) = (arguments.image.clone(), arguments.gunzip);
    let options = ImageOptions {
        format: arguments.format,
        allow_backing: arguments.allow_backing.clone(),
    };
    let opened = tokio::task::spawn_blocking(move || {
        if gunzip {
            Image::open_gzip(&path)
        } else {
            Image::open(&path, &options)
        }
    });
    opened
        .await
        .unwrap_or_else(|cause| Err(Error::new(ErrorKind::Bug, "Cannot open").because(cause)))
}

fn options(arguments: &Arguments, size: u64, is_loopback: bool) -> UploadOptions {
    // No link is faster than the compressors, but the one that is none.
    let default_level = if is_loopback {
        Level::RAW
    } else {
        Level::default()
    };
    let target = match arguments.drive.or(arguments.resume_from_drive) {
        Some(id) => Target::Existing(id),
        None => Target::New(DriveSpec {
            name: name(arguments),
            size,
            tier: arguments.tier.clone(),
            shared: arguments.shared,
        }),
    };
    UploadOptions {
        target,
        offset: arguments.offset,
        chunk: arguments.chunk,
        jobs: arguments.jobs,
        level: arguments.level.unwrap_or(default_level),
        max_outage: arguments.max_outage,
        journal: JournalOptions::default(),
        compare: arguments.resume_from_drive.is_some(),
        verify: arguments.verify,
        checksum: arguments.checksum,
    }
}

/// Where the journal of this upload is: the same file for the same command.
fn journal(arguments: &Arguments, client: &Client) -> JournalOptions {
    let canonical = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let endpoint = match &arguments.local {
        // Its port is another one each time.
        Some(directory) => format!("local {}", canonical(directory).display()),
        None => client.endpoint().to_string(),
    };
    let target = match arguments.drive.or(arguments.resume_from_drive) {
        Some(id) => id.to_string(),
        None => format!("new {}", name(arguments)),
    };
    let image = canonical(&arguments.image);
    let what = [
        "upload",
        &endpoint,
        client.user(),
        &image.to_string_lossy(),
        &target,
    ];
    JournalOptions {
        path: match (&arguments.journal, arguments.no_journal) {
            (Some(path), _) => Some(path.clone()),
            (None, true) => None,
            (None, false) => environment::journal_path(&what),
        },
        endpoint,
        restart: arguments.restart,
        changed_ok: arguments.changed_ok,
    }
}

/// The name for a new drive; an empty one counts as none, as in the original.
fn name(arguments: &Arguments) -> String {
    match &arguments.name {
        Some(name) if !name.is_empty() => name.clone(),
        _ => {
            let base = arguments.image.file_name().unwrap_or_default();
            base.to_string_lossy().into_owned()
        }
    }
}

/// Says what went wrong and, last, how to go on: the original's two lines.
fn tell(interrupted: &Interrupted) {
    exit::tell(PROGRAM, &interrupted.error);
    let Some(resume) = interrupted.resume else {
        return;
    };
    // With wrong bytes no chunk in particular failed.
    let is_mixed = interrupted.error.kind() == ErrorKind::Integrity;
    if resume.chunk < resume.chunks && !is_mixed {
        exit::say(&format!(
            "Failed to write chunk {} of {}: aborting",
            resume.chunk, resume.chunks
        ));
    }
    exit::say(&format!(
        "Restart with '-d {} -o {}' to resume the upload",
        resume.drive, resume.offset
    ));
    if resume.is_journaled {
        exit::say("Or run the same command again: it sends only what is missing");
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
    fn short_flags_are_the_original_s() {
        let short = parse(&format!(
            "-c 1000 -d{ID} -n name -o 5 -t ssd -sz -j 2 a.img"
        ))
        .unwrap();
        let long = format!(
            "--chunk 1000 --drive {ID} --name name --offset 5 --tier ssd --shared --gunzip --jobs 2 a.img"
        );
        assert_eq!(short, parse(&long).unwrap());
        assert_eq!(short.chunk.get(), 1000);
        assert_eq!(short.drive.map(|id| id.to_string()).as_deref(), Some(ID));
    }

    #[test]
    fn the_defaults() {
        let arguments = parse("dir/a.img").unwrap();
        assert_eq!(arguments.chunk.get(), 5_242_880);
        assert_eq!(
            options(&arguments, 7, false),
            UploadOptions::to(Target::New(DriveSpec {
                name: "a.img".into(),
                size: 7,
                tier: "disk".into(),
                shared: false,
            }))
        );
        assert_eq!(name(&parse("-n= a.img").unwrap()), "a.img");
    }

    #[test]
    fn a_profile_lowers_jobs_and_never_raises_them() {
        use crate::profile::{Finding, ParallelWrites};
        let jobs = |jobs, accepted, busy_from| {
            let profile = Profile {
                parallel_writes: Finding::Known(ParallelWrites {
                    accepted,
                    busy_from,
                    loses_bytes: false,
                }),
                ..Profile::default()
            };
            jobs_for(NonZeroU32::new(jobs).unwrap(), &profile).get()
        };
        assert_eq!(jobs(4, 1, Some(2)), 1);
        assert_eq!(jobs(2, 3, Some(4)), 2);
        assert_eq!(jobs(16, 8, None), 16);
        let four = NonZeroU32::new(4).unwrap();
        assert_eq!(jobs_for(four, &Profile::default()), four);
    }

    #[test]
    fn gzip_that_is_known_not_to_be_unpacked_is_not_sent() {
        use crate::profile::Finding;
        let mut profile = Profile::default();
        check_gzip(&profile).unwrap();
        profile.gzip_writes = Finding::Known(GzipWrites::Stored);
        assert_eq!(
            check_gzip(&profile).unwrap_err().kind(),
            ErrorKind::Rejected
        );
    }

    #[test]
    fn what_the_original_refuses_is_refused() {
        for line in [
            "",
            "a b",
            "-c 0 a",
            "-c 4M a",
            "-o 01 a",
            "-x a",
            "-d nosuch a",
            "-j 0 a",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
