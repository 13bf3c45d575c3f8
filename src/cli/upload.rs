//! `openhosting-upload`.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::arguments::{ImageArguments, open_image};
use super::candidates::{self, TIERS};
use super::command_line::Changes;
use super::continuation::{Continuation, with_removal};
use super::display::{Display, others_are_done, short_id};
use super::drive_reference::DriveReference;
use super::drive_state::{Written, forget_uploads};
use super::other_journals::{Other, others};
use super::reached::{LOCAL, Reached, endpoint_name, how_to_serve, jobs_for};
use super::showing::Way;
use super::shown_run::RunOutcome;
use super::trace::{TraceMonitor, is_trace};
use super::transfer_command::{self, CommonArguments, CompleteTransfer, Tool};
use super::written_files::{WrittenFile, check_written};
use super::{arguments, command_line, complete, environment, exit, help, image_notices, quote};
use crate::advice::Remedy;
use crate::amounts::{age, size};
use crate::api::Client;
use crate::codec::Compression;
use crate::commands::Commands;
use crate::digest::{Digest, digest_for};
use crate::drive::{DriveId, DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{directory_of, read_named};
use crate::findings::Findings;
use crate::image::{Format, Image, ImageOptions, Length, StreamFormat, StreamOptions};
use crate::journal::Direction;
use crate::plan::CHUNK_BYTES_DEFAULT;
use crate::policy::TOKEN_KEY;
use crate::publish::check_new_name;
use crate::publish::keys::{newest_first, publication};
use crate::publish::selection::Several;
use crate::shard::Shard;
use crate::transfer::{
    Interrupted, JournalOptions, Patience, Stop, Target, UploadOptions, Uploaded, WebConfig,
    blocking, fetch_text, upload,
};
use uuid::Uuid;

const PROGRAM: &str = "openhosting-upload";
/// The storage tier of a new drive, unless the user chooses another one.
const TIER: &str = "disk";
/// The flags with values that are for new drives only.
const NEW_DRIVE_VALUES: &[&str] = &["--grow", "-n", "--name", "-t", "--tier"];

/// Uploads a disk image to a new or an existing drive
///
/// An upload that stops can be continued: run the same command again, and it sends only what
/// is missing.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = PROGRAM, version, after_long_help = help::after("upload"), args_override_self = true)]
pub(super) struct UploadArguments {
    /// Set the size of a chunk, the part that one request sends
    ///
    /// A resumed upload keeps the chunk size of the first run. If CHUNK is smaller than that, each
    /// chunk is sent in several requests.
    #[arg(short, long, value_name = "CHUNK", default_value_t = CHUNK_BYTES_DEFAULT, value_parser = arguments::transfer_chunk, hide_short_help = true, help_heading = help::SPEED)]
    chunk: NonZeroU64,

    /// Write to this existing drive: a UUID or a name
    ///
    /// Without it a new drive is created. The first 4 digits of a UUID, or more, are enough.
    #[arg(short, long, value_name = "DRIVE", add = complete::drives())]
    drive: Option<DriveReference>,

    /// Name the new drive [default: file name of IMAGE]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,

    /// Resume at this byte, rounded down to the start of a chunk
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = arguments::bytes, hide_short_help = true, help_heading = help::RESUMING)]
    offset: u64,

    /// Make the new drive larger: SIZE in total, or +SIZE more
    ///
    /// For example 40G, or +10G.
    #[arg(long, value_name = "SIZE", value_parser = arguments::grow, conflicts_with_all = ["drive", "resume_from_drive"], hide_short_help = true, help_heading = help::DRIVE)]
    grow: Option<arguments::Grow>,

    /// Create the drive on this storage tier
    ///
    /// The default is disk.
    #[arg(short, long, value_name = "TIER", add = candidates::words(TIERS), hide_short_help = true, help_heading = help::DRIVE)]
    tier: Option<String>,

    /// Let several virtual machines use the new drive at the same time
    #[arg(short, long, hide_short_help = true, help_heading = help::DRIVE)]
    shared: bool,

    /// Decompress IMAGE, which is gzip, while it is sent
    ///
    /// Compressed images are recognised without this flag.
    #[arg(short = 'z', long, conflicts_with_all = ["format", "disk", "allow_backing"], hide_short_help = true, help_heading = help::IMAGE)]
    gunzip: bool,

    /// State the size of the disk, where IMAGE does not contain it
    ///
    /// Some compressed images, and images from a pipe, do not contain the size of the disk. With
    /// this flag, the drive is created at its final size. A disk of another size is an error.
    #[arg(long, value_name = "SIZE", value_parser = arguments::size, hide_short_help = true, help_heading = help::IMAGE)]
    size: Option<u64>,

    /// Upload into directory DIR instead; needs no account
    ///
    /// A server inside this program stores the drive there.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, conflicts_with_all = ["endpoint", "profile"])]
    local: Option<PathBuf>,

    /// Set the compression: auto, 0 (none), 1 (fastest) to 12 (smallest)
    ///
    /// auto adapts the level to the link and the processor.
    #[arg(long, value_name = "LEVEL", default_value_t, value_parser = arguments::compression(), hide_possible_values = true, hide_short_help = true, help_heading = help::SPEED)]
    level: Compression,

    /// Write how each chunk was compressed to FILE, as JSON lines
    #[arg(long, value_name = "FILE", add = candidates::files(), hide_short_help = true, help_heading = help::OUTPUT)]
    trace: Option<PathBuf>,

    /// Store the journal of this upload at PATH
    ///
    /// By default it is a file in openhosting/journals below the directory of XDG_STATE_HOME.
    #[arg(long, value_name = "PATH", add = candidates::files(), conflicts_with = "no_journal", hide_short_help = true, help_heading = help::RESUMING)]
    journal: Option<PathBuf>,

    /// Keep no journal of this upload
    ///
    /// It can then resume with --resume-from-drive, or with -d and -o.
    #[arg(long, hide_short_help = true, help_heading = help::RESUMING)]
    no_journal: bool,

    /// Resume although the image changed since the earlier run, and send what changed
    #[arg(long, hide_short_help = true, help_heading = help::RESUMING)]
    changed_ok: bool,

    /// Compare with this drive, and send only what differs
    ///
    /// It needs no journal: use it where the drive holds part of the image already.
    #[arg(long, value_name = "DRIVE", conflicts_with = "drive", add = complete::drives(), hide_short_help = true, help_heading = help::RESUMING)]
    resume_from_drive: Option<DriveReference>,

    /// Print the SHA-256 of the whole disk as the last line
    ///
    /// The digest needs every byte, so an upload that resumes reads the whole image again. It sends
    /// only what is missing.
    #[arg(long)]
    checksum: bool,

    /// Demand that the file IMAGE has this SHA-256
    ///
    /// The digest is that of the file itself, not of the disk in it. If it differs, the exit code
    /// is 4, and the drive must not be used.
    #[arg(long, value_name = "HEX", value_parser = arguments::sha256, hide_short_help = true, help_heading = help::CHECKS)]
    sha256: Option<Digest>,

    /// Demand the SHA-256 that FILE or URL lists for IMAGE
    ///
    /// FILE has lines as sha256sum or BSD print them, or a digest alone.
    #[arg(long, value_name = "FILE|URL", add = candidates::files(), conflicts_with = "sha256", hide_short_help = true, help_heading = help::CHECKS)]
    sha256_file: Option<PathBuf>,

    /// Send shard I of N, while other machines send the others
    ///
    /// I counts from 1. All machines write to the same drive. Create it first, and name it with
    /// -d DRIVE. Without -d, the command prints how to create it.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["offset", "checksum", "resume_from_drive"], hide_short_help = true, help_heading = help::MACHINES)]
    shard: Option<Shard>,

    #[command(flatten)]
    common: CommonArguments,

    #[command(flatten)]
    image: ImageArguments,
}

/// The program.
pub fn main() -> ExitCode {
    if complete::answered(UploadArguments::command) {
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = std::env::args_os().collect();
    transfer_command::main::<UploadArguments>(&words)
}

/// `openhosting upload`.
pub(super) fn main_of(words: &[OsString]) -> ExitCode {
    transfer_command::main::<UploadArguments>(&transfer_command::as_program(words))
}

impl UploadArguments {
    /// The existing drive to write to, if the user gave one.
    fn existing(&self) -> Option<&DriveReference> {
        self.drive.as_ref().or(self.resume_from_drive.as_ref())
    }

    /// Commands for messages.
    fn commands(&self) -> Commands {
        match &self.local {
            Some(directory) => Commands::of_directory(directory),
            None => Commands::with_flags(self.common.access.given()),
        }
    }

    /// How to fetch images and digests from web servers.
    fn web(&self, patience: &Patience) -> Result<WebConfig> {
        self.common.web(self.local.is_some(), patience)
    }
}

impl Tool for UploadArguments {
    const PROGRAM: &'static str = PROGRAM;
    const COMMAND: &'static str = "openhosting upload";
    const SCHEMA: &'static str = "upload/1";

    fn common(&self) -> &CommonArguments {
        &self.common
    }

    fn way(&self) -> Way {
        Way::Up
    }

    fn image(&self) -> &Path {
        self.image.shown()
    }

    async fn transfer(
        &self,
        display: &mut Display,
        stop: Stop,
    ) -> Result<CompleteTransfer, RunOutcome<'static>> {
        match run(self, display, stop).await {
            Ok(uploaded) => Ok(CompleteTransfer {
                verified_bytes: uploaded.verified.bytes,
                checksum: uploaded.checksum,
                journal: uploaded.journal,
                next: match self.shard.and_then(others_are_done) {
                    Some(others) => Some(format!("The drive is complete when {others}")),
                    None => self.local.as_deref().map(how_to_serve),
                },
            }),
            Err(interrupted) => {
                let resume = interrupted.resume;
                let resume = resume.filter(|_| can_continue(&interrupted.error));
                Err(RunOutcome {
                    original: original(&interrupted),
                    left_behind: left_behind(self, &interrupted),
                    continuation: continuation(self, &interrupted),
                    resumes: display.has_resumed && !self.common.restart,
                    resume: resume.map(|resume| (resume.drive, resume.offset)),
                    error: Some(interrupted.error),
                    ..RunOutcome::default()
                })
            }
        }
    }
}

async fn run(
    arguments: &UploadArguments,
    display: &mut Display,
    mut stop: Stop,
) -> Result<Uploaded, Interrupted> {
    check_new_drive_flags(arguments)?;
    check_files(arguments)?;
    display.part = arguments.shard;
    display.offset = arguments.offset;
    let local = arguments.local.as_deref();
    let reached = arguments.common.reach(local, display, &mut stop).await?;
    let result = send(arguments, &reached, display, stop).await;
    reached.leave(display).await;
    result
}

/// Checks that the files of --journal and --trace replace nothing else. Blocks.
fn check_files(arguments: &UploadArguments) -> Result<()> {
    let mut written = Vec::new();
    if let Some(path) = &arguments.journal {
        written.push(WrittenFile::journal(path));
    }
    if let Some(path) = &arguments.trace {
        written.push(WrittenFile {
            what: "trace",
            path,
            is_kind: is_trace,
        });
    }
    let digests = arguments.sha256_file.as_deref();
    let mut others = arguments.common.access.files();
    others.push(("image", arguments.image.path.as_path()));
    others.extend(digests.map(|path| ("file of --sha256-file", path)));
    check_written(&written, &others)
}

/// Begins with bodies that the endpoint is known to accept. Chunks are made small enough for one
/// request each, unless there are shards, which must all use the same size of chunks.
fn limit_bodies(options: &mut UploadOptions, findings: &Findings) {
    options.body_bytes_max = findings.body_bytes_max().and_then(NonZeroU64::new);
    if let (Some(most), None) = (options.body_bytes_max, options.shard) {
        // A multiple of the blocks of a drive.
        let blocks = NonZeroU64::new(most.get() / 4096 * 4096).unwrap_or(most);
        options.chunk = options.chunk.min(blocks);
    }
}

async fn send(
    arguments: &UploadArguments,
    Reached {
        client, findings, ..
    }: &Reached,
    display: &mut Display,
    mut stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let patience = arguments.common.patience();
    let opened = async {
        // Looked up before the image is opened, which may take a while.
        let drive = match arguments.existing() {
            Some(named) => Some(named.find(client, &patience, Several::Refuse).await?),
            None => None,
        };
        let sha256 = sha256(arguments, &patience).await?;
        Ok::<_, Error>((drive, sha256, open(arguments, &patience).await?))
    };
    let opened = stop.unless_asked(opened);
    let (drive, sha256, image) = patience.watching(display, opened).await?;
    check_sha256(arguments, &image)?;
    check_offset(arguments, image.length())?;
    display.notices(packed(arguments, &image));
    let given = arguments.image.format;
    let image = image_notices::show(image, given, "sends", display, &mut stop).await?;
    let size = drive_size(arguments, image.length())?;
    let mut options = options(arguments, drive, size, patience);
    check_new_drive(arguments, &options.target)?;
    options.jobs = jobs_for(arguments.common.jobs, findings);
    if options.jobs < arguments.common.jobs {
        let line = format!("-j lowered to {}: more were busy when probed", options.jobs);
        arguments.notice(&line);
    }
    limit_bodies(&mut options, findings);
    if options.chunk < arguments.chunk {
        let line = format!(
            "-c lowered to {}: the endpoint refused more before (openhosting probe looks again)",
            options.chunk
        );
        arguments.notice(&line);
    }
    options.sha256 = sha256;
    options.journal = journal(arguments, drive, client)?;
    display.notices(without_effect(arguments));
    let earlier = unfinished(arguments, &options, &image, client);
    let earlier = stop.unless_asked(earlier).await?;
    if !exit::is_old_script(<UploadArguments as Tool>::name()) && !arguments.common.showing.quiet {
        let known = earlier.as_ref().map(|(drive, _)| *drive);
        let same = same_name(client, &options, known);
        display.notices(stop.unless_asked(same).await?);
    }
    display.notices(earlier.map(|(_, line)| line));
    if let Some(line) = growing(&options, image.length()) {
        arguments.notice(&line);
    }
    let written = Written {
        image: image.fingerprint().clone(),
        offset: arguments.offset,
    };
    let uploaded = match &arguments.trace {
        None => upload(client, image, &options, display, stop).await?,
        Some(file) => {
            let mut trace = TraceMonitor::create(file, display)?;
            let uploaded = upload(client, image, &options, &mut trace, stop).await;
            if let Err(error) = trace.finish() {
                // The trace failed, which does not affect the transfer.
                arguments.notice(&error.chain());
            }
            uploaded?
        }
    };
    if arguments.shard.is_none() {
        forget_uploads(uploaded.drive, Some(written)).await;
    }
    Ok(uploaded)
}

/// The size of a new drive for an image of this length.
fn drive_size(arguments: &UploadArguments, length: Length) -> Result<u64> {
    match (arguments.grow, length) {
        (Some(grow), Length::Known(size)) => grow.applied_to(size),
        (Some(_), Length::Unknown { .. }) => {
            let what = "--grow needs the size of the image, which is not known before its end";
            Err(Error::new(ErrorKind::Usage, what).hint_to("Tell it with --size"))
        }
        (None, length) => Ok(length.first()),
    }
}

/// The line about a new drive whose size is a guess: its owner sees it before the image has ended.
fn growing(options: &UploadOptions, length: Length) -> Option<String> {
    let (Target::New(spec), Length::Unknown { expected: None, .. }) = (&options.target, length)
    else {
        return None;
    };
    let path = options.journal.path.as_deref();
    // An earlier run has created the drive, and said this.
    let is_resumed = path.is_some_and(|path| path.symlink_metadata().is_ok());
    (!is_resumed || options.journal.restart).then(|| {
        format!(
            "The size of the image is unknown: the drive starts at {}, and is cut to size at the end. --size SIZE avoids this",
            size(spec.size)
        )
    })
}

/// The line about a compressed image if no flag says that it is compressed.
fn packed(arguments: &UploadArguments, image: &Image) -> Option<String> {
    let Image::Stream(stream) = image else {
        return None;
    };
    let format = stream.format();
    let member = stream.entry();
    let member = member.map_or(String::new(), |member| format!(" ({member} in it)"));
    let is_found = format != StreamFormat::Raw && !arguments.gunzip;
    is_found.then(|| {
        format!(
            "By its content the image is packed with {format}{member}, and is unpacked; --format raw sends it as it is"
        )
    })
}

/// Opens the image.
async fn open(arguments: &UploadArguments, patience: &Patience) -> Result<Image> {
    let image = &arguments.image;
    let options = ImageOptions {
        stream: StreamOptions {
            size: arguments.size,
            hashes: arguments.sha256.is_some() || arguments.sha256_file.is_some(),
        },
        ..image.options()
    };
    if arguments.gunzip && (image.url()?.is_some() || image.is_stdin()) {
        let what = "-z is for files: what is fetched or piped is known by its content";
        return Err(Error::new(ErrorKind::Usage, what).hint_to("Leave -z out"));
    }
    let opened = match arguments.gunzip {
        true => {
            let path = image.path.clone();
            let opened = move || Image::open_gzip(&path, options.stream).map_err(without_z);
            blocking(opened).await?
        }
        false => open_image(&image.path, options, || arguments.web(patience)).await?,
    };
    check_size(&opened, arguments.size)?;
    Ok(opened)
}

/// The error of an image that -z calls gzip. Its advice is for an image whose format was found by
/// its content, and names a flag that does not go together with -z.
fn without_z(error: Error) -> Error {
    match error.advises(&Remedy::Format("raw")) {
        true => error.hint_to(
            "Leave -z out: packed images are recognised by their content, and all else is sent as it is",
        ),
        false => error,
    }
}

/// Maximum bytes of a file with digests.
const SUMS_BYTES_MAX: u64 = 4 << 20;

/// The expected digest of the image, if one was given.
async fn sha256(arguments: &UploadArguments, patience: &Patience) -> Result<Option<Digest>> {
    let Some(path) = &arguments.sha256_file else {
        return Ok(arguments.sha256);
    };
    let (shown, text) = match arguments::web_url(path)? {
        Some(url) => (
            url.to_string(),
            fetch_text(&url, &arguments.web(patience)?).await?,
        ),
        None => {
            let text = read_named(path, SUMS_BYTES_MAX).map_err(|cause| {
                let what = format!("Cannot read the digests in {}", path.display());
                Error::new(ErrorKind::Local, what).because(cause)
            })?;
            (path.display().to_string(), text)
        }
    };
    let is_named = !arguments.image.is_stdin();
    let name = is_named.then(|| arguments.image.name()).transpose()?;
    let digest = digest_for(&String::from_utf8_lossy(&text), name.as_deref());
    digest.map(Some).map_err(|error| {
        let what = format!("Cannot tell the SHA-256 of the image by {shown}");
        Error::new(ErrorKind::Usage, what)
            .because(error)
            .hint_to("Give the digest itself with --sha256 HEX")
    })
}

/// Refuses a size that differs from the image's.
fn check_size(image: &Image, declared: Option<u64>) -> Result<()> {
    match (image.length(), declared) {
        (Length::Known(size), Some(declared)) if size != declared => {
            let what = format!("The image has {size} bytes, not the {declared} of --size");
            Err(Error::new(ErrorKind::Usage, what)
                .hint_to("Leave --size out: the image says how large it is"))
        }
        _ => Ok(()),
    }
}

/// Refuses an offset that is not within the image, of which nothing would be sent.
/// `openhosting-upload` accepts it with a warning, because the original script accepts it.
fn check_offset(arguments: &UploadArguments, length: Length) -> Result<()> {
    let offset = arguments.offset;
    match length {
        Length::Known(size) if command_line::is_one_program() && offset > 0 && offset >= size => {
            let what = format!("-o {offset} is not within the image, which has {size} bytes");
            Err(Error::new(ErrorKind::Usage, what)
                .hint_to("Name a byte of the image, or leave out -o"))
        }
        _ => Ok(()),
    }
}

/// Refuses a digest if the image's file is only the description of a disk in several files. Such a
/// digest would not protect the data of the disk.
fn check_sha256(arguments: &UploadArguments, image: &Image) -> Result<()> {
    let is_demanded = arguments.sha256.is_some() || arguments.sha256_file.is_some();
    if !is_demanded || image.format() != Format::Vmdk || !image.is_in_several_files() {
        return Ok(());
    }
    let what = "The disk is in several files, and --sha256 is about one file";
    Err(Error::new(ErrorKind::Usage, what)
        .hint_to("Check all of its files before, with: sha256sum -c FILE"))
}

/// Before anything is created, refuses a new drive for shards, each of which would create its own,
/// and a name that drives cannot have. Often it is the file name of the image.
fn check_new_drive(arguments: &UploadArguments, target: &Target) -> Result<()> {
    let Target::New(spec) = target else {
        return Ok(());
    };
    if arguments.shard.is_some() {
        let what = "--shard needs a drive that exists, which -d names";
        let (name, size) = (quote(&spec.name), spec.size);
        let hint = match &arguments.local {
            Some(_) => "Leave out --shard, or upload the image without it first".to_owned(),
            None => {
                let create = arguments.commands().call("-c drives create");
                let create = format!(r"printf 'name %s\nsize %s\n' {name} {size} | {create}");
                let changes = Changes {
                    without: &["-s", "--shared"],
                    without_values: NEW_DRIVE_VALUES,
                    flags: "-d UUID",
                };
                let send = command_line::changed(PROGRAM, changes);
                format!(
                    "Create the drive: {create}\nThen send each shard to the UUID that this prints: {send}"
                )
            }
        };
        return Err(Error::new(ErrorKind::Usage, what).hint_to(hint));
    }
    let checked = check_new_name(&spec.name).and_then(|()| spec.to_properties().map(|_| ()));
    checked.map_err(|error| {
        let image = quote(&arguments.image.path.to_string_lossy());
        let program = <UploadArguments as Tool>::name();
        error.hint_to(format!("Name the drive with -n: {program} -n NAME {image}"))
    })
}

/// The options of an upload to this drive, or to a new one of `size` bytes.
fn options(
    arguments: &UploadArguments,
    drive: Option<DriveId>,
    size: u64,
    patience: Patience,
) -> UploadOptions {
    let target = match drive {
        Some(id) => Target::Existing(id),
        None => Target::New(DriveSpec {
            name: name(arguments),
            size,
            tier: arguments.tier.clone().unwrap_or_else(|| TIER.to_owned()),
            shared: arguments.shared,
        }),
    };
    UploadOptions {
        offset: arguments.offset,
        chunk: arguments.chunk,
        jobs: arguments.common.jobs,
        jobs_min: arguments.common.min_jobs,
        compression: arguments.level,
        patience,
        compare: arguments.resume_from_drive.is_some(),
        verify: arguments.common.verify,
        checksum: arguments.checksum,
        shard: arguments.shard,
        holes: arguments.image.holes,
        ..UploadOptions::to(target)
    }
}

/// The options of the journal. The same command always has the same path.
fn journal(
    arguments: &UploadArguments,
    drive: Option<DriveId>,
    client: &Client,
) -> Result<JournalOptions> {
    let endpoint = match &arguments.local {
        Some(directory) => endpoint_name(directory),
        None => client.endpoint().to_string(),
    };
    Ok(JournalOptions {
        path: match (&arguments.journal, arguments.no_journal) {
            (Some(path), _) => Some(path.clone()),
            (None, true) => None,
            (None, false) => {
                let name = journal_name(arguments, drive, &endpoint, client.user());
                Some(environment::journal_path(&name)?)
            }
        },
        endpoint,
        restart: arguments.common.restart,
        changed_ok: arguments.changed_ok,
    })
}

/// The name of the journal of this upload for this endpoint and user, unless a flag names another.
fn journal_name(
    arguments: &UploadArguments,
    drive: Option<DriveId>,
    endpoint: &str,
    user: &str,
) -> String {
    let canonical = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let target = match drive {
        Some(id) => id.to_string(),
        None => format!("new {}", name(arguments)),
    };
    // The identity of a URL does not contain the credentials in it.
    let image = match arguments.image.url() {
        Ok(Some(url)) => PathBuf::from(url.identity()),
        _ => canonical(&arguments.image.path),
    };
    let image = image.to_string_lossy();
    let mut what = vec!["upload", endpoint, user, &image, &target];
    what.extend(arguments.image.disk.as_deref());
    let shard = arguments.shard.map(|shard| format!("shard {shard}"));
    what.extend(shard.as_deref());
    environment::journal_name(&what)
}

/// The flags for a new drive that were given although the drive exists.
fn ignored(arguments: &UploadArguments) -> impl Iterator<Item = &'static str> {
    let of_new_drives = [
        ("-n", arguments.name.is_some()),
        ("-t", arguments.tier.is_some()),
        ("-s", arguments.shared),
    ];
    let exists = arguments.existing().is_some();
    of_new_drives
        .into_iter()
        .filter_map(move |(flag, is_given)| (exists && is_given).then_some(flag))
}

/// Refuses flags for a new drive beside a drive that exists, and an empty name, before anything is
/// written: the user expects something else than what would happen. `openhosting-upload` takes them
/// as the original script does.
fn check_new_drive_flags(arguments: &UploadArguments) -> Result<()> {
    if !command_line::is_one_program() {
        return Ok(());
    }
    if arguments.name.as_deref() == Some("") {
        return Err(Error::new(ErrorKind::Usage, "The name of -n is empty")
            .hint_to("Write -n NAME, or leave -n out: then the drive has the name of the file"));
    }
    if arguments.offset > 0 && arguments.existing().is_none() {
        let what = format!(
            "-o {} is for a drive that exists: a new one would hold zeros before this byte",
            arguments.offset
        );
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("Add -d DRIVE to resume an upload to that drive, or leave out -o"));
    }
    let Some(flag) = ignored(arguments).next() else {
        return Ok(());
    };
    let selecting = match arguments.drive {
        Some(_) => "-d",
        None => "--resume-from-drive",
    };
    let what = format!("{flag} is for a new drive, and {selecting} selects one that exists");
    Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
        "Leave out {flag}, or leave out {selecting} to create a drive"
    )))
}

/// The lines about flags that have no effect beside other flags. The original script ignores them
/// too, so they are no errors of `openhosting-upload`.
fn without_effect(arguments: &UploadArguments) -> Vec<String> {
    let mut lines: Vec<_> = ignored(arguments)
        .map(|flag| {
            format!("{flag} has no effect here: it is for a new drive, and this one exists")
        })
        .collect();
    if arguments.no_journal && arguments.common.restart {
        lines.push("--restart has no effect beside --no-journal".to_owned());
    }
    if arguments.no_journal && arguments.changed_ok {
        lines.push("--changed-ok has no effect beside --no-journal".to_owned());
    }
    lines
}

/// A line about drives that have the name of the new one, unless an earlier run has created the
/// drive already. It is information only, so it is left out if the endpoint does not answer. The
/// drive that is `known` has a line of its own.
async fn same_name(
    client: &Client,
    options: &UploadOptions,
    known: Option<DriveId>,
) -> Result<Option<String>> {
    let Target::New(spec) = &options.target else {
        return Ok(None);
    };
    let path = options.journal.path.as_deref();
    if path.is_some_and(|path| path.symlink_metadata().is_ok()) {
        return Ok(None);
    }
    let has_name = |drive: &DriveInfo| drive.name() == Some(&*spec.name) && Some(drive.id) != known;
    let Ok(drives) = client.drives_that(has_name).await else {
        return Ok(None);
    };
    let published = |drive: &DriveInfo| publication(drive).and_then(|it| it.published_ms);
    let Some(drive) = drives.iter().min_by_key(|drive| newest_first(drive)) else {
        return Ok(None);
    };
    let name = &spec.name;
    let described = match published(drive) {
        Some(ms) => format!(
            "{}, published {} ago",
            drive.id,
            age(ms, crate::publish::now_ms())
        ),
        None => format!("{}, {}", drive.id, size(drive.size)),
    };
    let others = match drives.len() {
        1 => format!("Drive {described}, already has the name {name:?}"),
        many => format!("{many} drives already have the name {name:?}, such as {described}"),
    };
    Ok(Some(format!(
        "{others}. This upload creates another drive; -d writes to an existing one"
    )))
}

/// Finds an unfinished upload of this image whose journal has another path, because the image, drive
/// or endpoint was named differently. Returns its drive and a notice with the command that continues
/// it.
async fn unfinished(
    arguments: &UploadArguments,
    options: &UploadOptions,
    image: &Image,
    client: &Client,
) -> Result<Option<(DriveId, String)>> {
    let source = image.fingerprint().clone();
    let is_chosen = arguments.journal.is_some() || options.journal.restart;
    let Some(path) = options.journal.path.clone().filter(|_| !is_chosen) else {
        return Ok(None);
    };
    if !matches!(options.target, Target::New(_)) || !source.detects_changes() {
        return Ok(None);
    }
    let user = client.user().to_owned();
    let all = blocking(move || {
        // This upload has a journal, so it continues and does not create a second drive.
        if path.symlink_metadata().is_ok() {
            return Ok(Vec::new());
        }
        let all = others(
            directory_of(&path),
            Direction::Upload,
            environment::is_journal_name,
        );
        let is_like_this = |other: &Other| {
            let is_idle = other.is_ours && !other.is_running;
            // Another user's upload can be continued by that user only.
            is_idle && other.header.user == user && other.header.source.as_ref() == Some(&source)
        };
        Ok(all.filter(is_like_this).collect())
    });
    let endpoint = &options.journal.endpoint;
    let is_meant = |other: &Other| {
        let there = &other.header.endpoint;
        let is_name =
            |name: &OsStr| *name == *journal_name(arguments, None, there, &other.header.user);
        there == endpoint || other.path.file_name().is_some_and(is_name)
    };
    let Some(other) = all.await?.into_iter().find(is_meant) else {
        return Ok(None);
    };
    let is_here = other.header.endpoint != *endpoint && has_drive_of(client, &other).await;
    let line = unfinished_line(arguments, &other, endpoint, is_here);
    Ok(Some((other.drive, line)))
}

/// Whether the endpoint has the drive that this upload created.
async fn has_drive_of(client: &Client, other: &Other) -> bool {
    let token = Uuid::from_bytes(other.header.token).as_simple().to_string();
    let drive = client.info(other.drive).await;
    drive.is_ok_and(|drive| drive.properties.get(TOKEN_KEY).map(str::trim) == Some(&*token))
}

/// The line about another upload. `is_here` says that its drive is at this endpoint, although the
/// endpoint had another name then.
fn unfinished_line(
    arguments: &UploadArguments,
    other: &Other,
    endpoint: &str,
    is_here: bool,
) -> String {
    let drive = other.drive;
    let journal = quote(&other.path.to_string_lossy());
    let is_local = arguments.local.is_some() || other.header.endpoint.starts_with(LOCAL);
    let by_drive = is_here || is_local && other.header.endpoint != endpoint;
    let (flags, place) = match &other.header.endpoint {
        there if there == endpoint => (format!("--journal {journal}"), String::new()),
        _ if is_here => (format!("--resume-from-drive {drive}"), String::new()),
        // A local directory cannot be selected with `--endpoint`, so the command names the drive
        // instead.
        there if is_local => (
            format!("--resume-from-drive {drive}"),
            format!(", which was at {there}"),
        ),
        there => (
            format!("--endpoint {} --journal {journal}", quote(there)),
            format!(", which was at {there}"),
        ),
    };
    let (without, without_values) = match by_drive {
        true => (&["-s", "--shared"][..], NEW_DRIVE_VALUES),
        false => (&[][..], &[][..]),
    };
    let changes = Changes {
        without,
        without_values,
        flags: &flags,
    };
    let again = command_line::changed(PROGRAM, changes);
    format!(
        "An earlier upload of this image did not end; its drive is {drive}{place}. This one creates another drive. To continue that one instead: {again}"
    )
}

/// The name for a new drive. As in the original script, an empty name is the same as none.
fn name(arguments: &UploadArguments) -> String {
    match &arguments.name {
        Some(name) if !name.is_empty() => name.clone(),
        _ if arguments.image.is_stdin() => "stdin".to_owned(),
        _ => {
            // An invalid URL has caused an error before this.
            arguments.image.name().unwrap_or_default()
        }
    }
}

/// Whether the same command can continue after this error, at once or with an undamaged image.
fn can_continue(error: &Error) -> bool {
    !error.is_permanent() || error.is_damage()
}

/// What the upload leaves behind, if the same command would fail again with the same image.
fn left_behind(arguments: &UploadArguments, interrupted: &Interrupted) -> Option<String> {
    let resume = interrupted.resume;
    let resume = resume.filter(|_| interrupted.error.is_permanent())?;
    let drive = resume.drive;
    Some(match resume.is_ours {
        true => {
            let what = format!("Drive {drive}, created for this upload, does not hold the image");
            with_removal(&what, &arguments.commands().removal(drive))
        }
        false => format!("Drive {drive} holds part of this upload, and not the image"),
    })
}

/// The command that continues.
fn continuation(arguments: &UploadArguments, interrupted: &Interrupted) -> Option<Continuation> {
    let needs = match (interrupted.error.is_damage(), arguments.image.is_stdin()) {
        (true, true) => Some("with an undamaged image on stdin"),
        (true, false) => Some("with an undamaged image"),
        (false, true) => Some("with the same image on stdin"),
        (false, false) => None,
    };
    let resume = interrupted.resume;
    let resume = resume.filter(|_| can_continue(&interrupted.error));
    let resume = resume.filter(|_| interrupted.error.kind() != ErrorKind::Integrity)?;
    let flags = match (resume.is_journaled, arguments.shard) {
        (true, _) | (false, Some(_)) => String::new(),
        (false, None) if arguments.resume_from_drive.is_some() => format!("-o {}", resume.offset),
        (false, None) => format!("-d {} -o {}", resume.drive, resume.offset),
    };
    // Flags for a new drive do not go together with one that exists.
    let (without, without_values) = match flags.is_empty() {
        true => (&["--restart"][..], &[][..]),
        false => (&["--restart", "-s", "--shared"][..], NEW_DRIVE_VALUES),
    };
    let changes = Changes {
        without,
        without_values,
        flags: &flags,
    };
    Some(Continuation {
        command: command_line::changed(PROGRAM, changes),
        resumes: true,
        place: Some(format!("on drive {}", short_id(resume.drive))),
        needs,
    })
}

/// The original script's two lines about how to continue, followed by ours.
fn original(interrupted: &Interrupted) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(resume) = interrupted.resume else {
        return lines;
    };
    // After a failed check, the error names the flag that repairs the drive.
    let repairs = |remedy: &Remedy| matches!(remedy, Remedy::CompareWithDrive(_));
    let hint = interrupted.error.hint();
    if interrupted.error.is_permanent() || hint.is_some_and(|hint| hint.remedies().any(repairs)) {
        return lines;
    }
    // If the bytes are wrong, it is not a certain chunk that failed.
    let is_mixed = interrupted.error.kind() == ErrorKind::Integrity;
    if is_mixed && resume.chunks == Some(resume.chunk) {
        // Everything was sent, but it is the wrong image, so there is nothing to resume.
        return lines;
    }
    if resume.chunks.is_none_or(|chunks| resume.chunk < chunks) && !is_mixed {
        let of = resume
            .chunks
            .map_or(String::new(), |chunks| format!(" of {chunks}"));
        let chunk = resume.chunk;
        lines.push(format!("Failed to write chunk {chunk}{of}: aborting"));
    }
    lines.push(format!(
        "Restart with '-d {} -o {}' to resume the upload",
        resume.drive, resume.offset
    ));
    // If the image changed, the next run needs a flag, which the error names.
    if resume.is_journaled && !is_mixed {
        lines.push("Or run the same command again: it sends only what is missing".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    fn parse(line: &str) -> Result<UploadArguments, clap::Error> {
        UploadArguments::try_parse_from(std::iter::once(PROGRAM).chain(line.split_whitespace()))
    }

    #[test]
    fn short_flags_are_those_of_the_script() {
        let short = parse(&format!(
            "-c 1000 -d{ID} -n name -o 5 -t ssd -sz -j 2 a.img"
        ))
        .unwrap();
        let long = format!(
            "--chunk 1000 --drive {ID} --name name --offset 5 --tier ssd --shared --gunzip --jobs 2 a.img"
        );
        assert_eq!(short, parse(&long).unwrap());
        assert_eq!(short.chunk.get(), 1000);
        assert_eq!(
            short.existing(),
            Some(&DriveReference::Id(ID.parse().unwrap()))
        );
    }

    #[test]
    fn the_defaults() {
        let arguments = parse("dir/a.img").unwrap();
        assert_eq!(arguments.chunk.get(), 5_242_880);
        assert_eq!(
            options(&arguments, None, 7, Patience::default()),
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
    fn chunks_are_no_larger_than_the_endpoint_takes_but_those_of_shards_stay() {
        let mut findings = Findings::default();
        findings.body_was_refused(2 << 20, 1 << 20);
        for (shard, chunk) in [("", 1 << 20), ("--shard 1/2", 5_242_880)] {
            let arguments = parse(&format!("-d {ID} {shard} a.img")).unwrap();
            let mut options = options(&arguments, None, 7, Patience::default());
            limit_bodies(&mut options, &findings);
            assert_eq!(options.chunk.get(), chunk);
            assert_eq!(options.body_bytes_max, NonZeroU64::new(1 << 20));
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for line in [
            "--local d --endpoint http://h a",
            "--local d --profile p a",
            "--journal j --no-journal a",
            &format!("-d {ID} --grow 1G a"),
            &format!("--resume-from-drive {ID} --grow +1G a"),
            &format!("-d {ID} --resume-from-drive {ID} a"),
        ] {
            let kind = parse(line).unwrap_err().kind();
            assert_eq!(kind, clap::error::ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn what_the_script_refuses_is_refused() {
        for line in ["", "a b", "-c 0 a", "-c 4X a", "-o 01 a", "-x a", "-j 0 a"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
