//! `openhosting-download`.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, ValueEnum};

use super::command_line::Changes;
use super::continuation::Continuation;
use super::display::{Display, to_be_joined};
use super::drive_reference::DriveReference;
use super::drive_state;
use super::other_journals::others;
use super::reached::findings_of;
use super::showing::Way;
use super::shown_run::RunOutcome;
use super::transfer_command::{self, CommonArguments, CompleteTransfer, Tool};
use super::written_files::{WrittenFile, check_is_file, check_written, is_same};
use super::{arguments, candidates, checksum_line, command_line, complete, exit, help, quote};
use crate::advice::Remedy;
use crate::api::Client;
use crate::codec::Packing;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{directory_of, with_suffix};
use crate::findings::Findings;
use crate::image::{ClusterPacking, TargetFormat, part_of};
use crate::journal::Direction;
use crate::nonblocking;
use crate::publish::selection::Several;
use crate::shard::Shard;
use crate::transfer::{
    Destination, DownloadInterrupted, DownloadOptions, Downloaded, JournalOptions, READ_CHUNK,
    Shards, Stop, blocking, download, join_download,
};
use openhosting_base::advice;

const PROGRAM: &str = "openhosting-download";

/// Downloads a drive to a disk image
///
/// FILE appears when the image is complete and on the disk; until then it is FILE.oh-part.
/// Run the same command again to continue a download that stopped.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = PROGRAM, version, after_long_help = help::after("download"), args_override_self = true)]
pub(super) struct DownloadArguments {
    /// Set the size of a chunk, the part that one request fetches
    ///
    /// A resumed download keeps the chunk size of the first run. If CHUNK is smaller than that,
    /// each chunk is fetched in several requests.
    #[arg(short, long, value_name = "CHUNK", default_value_t = READ_CHUNK, value_parser = arguments::transfer_chunk, hide_short_help = true, help_heading = help::SPEED)]
    chunk: NonZeroU64,

    /// Write FILE in place from this byte on, and keep what is before it
    #[arg(short, long, value_name = "OFFSET", value_parser = arguments::bytes, hide_short_help = true, help_heading = help::RESUMING)]
    offset: Option<u64>,

    /// Overwrite FILE; needed for a block device
    #[arg(long)]
    force: bool,

    /// Download the drive even if it is in use or changes meanwhile
    #[arg(long, hide_short_help = true, help_heading = help::DRIVE)]
    allow_live: bool,

    /// Store the journal of this download at PATH [default: FILE.ohj]
    #[arg(long, value_name = "PATH", add = candidates::files(), hide_short_help = true, help_heading = help::RESUMING)]
    journal: Option<PathBuf>,

    /// Write FILE as raw or qcow2
    ///
    /// A qcow2 contains only the data, without the zeros, and resumes like raw. Stdout and
    /// devices accept raw only.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        conflicts_with = "offset"
    )]
    format: FileFormat,

    /// Compress FILE: gz, zst, xz; or zlib, zstd in a qcow2
    ///
    /// gz, zst and xz compress a raw image as a whole. Such a download cannot resume: it starts
    /// over. zlib and zstd compress the clusters of a qcow2. Every QEMU reads zlib, and QEMU 5.1 or
    /// newer reads zstd.
    #[arg(long, value_name = "METHOD", value_enum, hide_possible_values = true, conflicts_with_all = ["gzip", "zstd", "offset"])]
    compress: Option<Method>,

    /// Do the same as --compress gz
    #[arg(long, conflicts_with_all = ["offset", "journal", "zstd", "format"], hide_short_help = true, help_heading = help::IMAGE)]
    gzip: bool,

    /// Do the same as --compress zst
    #[arg(long, conflicts_with_all = ["offset", "journal", "format"], hide_short_help = true, help_heading = help::IMAGE)]
    zstd: bool,

    /// Print the SHA-256, and write it to FILE.sha256
    ///
    /// "sha256sum -c FILE.sha256" checks the file later.
    #[arg(long)]
    checksum: bool,

    /// Fetch shard I of N, while other machines fetch the others
    ///
    /// I counts from 1. All shards go to FILE.oh-part, and --join finishes the file.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["offset", "format", "compress", "gzip", "zstd", "checksum"], hide_short_help = true, help_heading = help::MACHINES)]
    shard: Option<Shard>,

    /// Check that all N shards are there, verify, and create FILE
    #[arg(long, value_name = "N", value_parser = arguments::number::<NonZeroU32>, conflicts_with_all = ["shard", "offset", "format", "compress", "gzip", "zstd", "journal", "restart"], hide_short_help = true, help_heading = help::MACHINES)]
    join: Option<NonZeroU32>,

    #[command(flatten)]
    common: CommonArguments,

    /// Drive to download: a UUID, 4 or more digits of it, or a name
    ///
    /// NAME~1 is the published drive before the newest one of this name.
    #[arg(value_name = "DRIVE", add = complete::drives())]
    drive: DriveReference,

    /// File or block device to write to, or - for stdout
    #[arg(value_name = "FILE", add = candidates::files_or_stdio())]
    file: PathBuf,
}

/// A format of the downloaded file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FileFormat {
    #[default]
    Raw,
    Qcow2,
}

/// A compression method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Gz,
    Zst,
    Xz,
    Zlib,
    Zstd,
}

/// The program.
pub fn main() -> ExitCode {
    if complete::answered(DownloadArguments::command) {
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = std::env::args_os().collect();
    transfer_command::main::<DownloadArguments>(&words)
}

/// `openhosting download`.
pub(super) fn main_of(words: &[OsString]) -> ExitCode {
    transfer_command::main::<DownloadArguments>(&transfer_command::as_program(words))
}

impl Tool for DownloadArguments {
    const PROGRAM: &'static str = PROGRAM;
    const COMMAND: &'static str = "openhosting download";
    const SCHEMA: &'static str = "download/1";

    fn common(&self) -> &CommonArguments {
        &self.common
    }

    fn way(&self) -> Way {
        match self.is_stdout() {
            true => Way::DownToStdout,
            false => Way::Down,
        }
    }

    fn image(&self) -> &Path {
        &self.file
    }

    async fn transfer(
        &self,
        display: &mut Display,
        stop: Stop,
    ) -> Result<CompleteTransfer, RunOutcome<'static>> {
        let mut drive = None;
        match run(self, &mut drive, display, stop).await {
            Ok(downloaded) => Ok(CompleteTransfer {
                verified_bytes: downloaded.verified.bytes,
                checksum: downloaded.checksum,
                journal: downloaded.journal,
                next: self.shard.map(|shard| next_step(self, shard)),
            }),
            Err(interrupted) => Err(RunOutcome {
                original: original(self, &interrupted),
                continuation: continuation(self, &interrupted, drive),
                resumes: resumes(self),
                resume: drive.zip(interrupted.resume_at),
                error: Some(with_command(interrupted.error)),
                ..RunOutcome::default()
            }),
        }
    }
}

impl DownloadArguments {
    /// Whether the disk goes to stdout.
    fn is_stdout(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    /// The format of the file, and its compression as a whole.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the two cannot be combined.
    fn output(&self) -> Result<(TargetFormat, Option<Packing>)> {
        let method = match (self.gzip, self.zstd) {
            (true, _) => Some(Method::Gz),
            (false, true) => Some(Method::Zst),
            (false, false) => self.compress,
        };
        let refuse = |what: &str, hint: &str| {
            Err(Error::new(ErrorKind::Usage, what.to_owned()).hint_to(hint.to_owned()))
        };
        let packing = match (self.format, method) {
            (FileFormat::Raw, None) => None,
            (FileFormat::Raw, Some(Method::Gz)) => Some(Packing::Gzip),
            (FileFormat::Raw, Some(Method::Zst)) => Some(Packing::Zstd),
            (FileFormat::Raw, Some(Method::Xz)) => Some(Packing::Xz),
            (FileFormat::Raw, Some(Method::Zlib | Method::Zstd)) => {
                return refuse(
                    "--compress zlib and zstd pack the clusters of a qcow2",
                    "Add --format qcow2, or use --compress gz, zst or xz",
                );
            }
            (FileFormat::Qcow2, Some(Method::Gz | Method::Zst | Method::Xz)) => {
                return refuse(
                    "--compress gz, zst and xz pack a raw image",
                    "Pack the clusters of a qcow2 with --compress zlib or zstd",
                );
            }
            (FileFormat::Qcow2, clusters) => {
                let clusters = clusters.map(|method| match method {
                    Method::Zstd => ClusterPacking::Zstd,
                    _ => ClusterPacking::Zlib,
                });
                return Ok((TargetFormat::Qcow2(clusters), None));
            }
        };
        if packing.is_some() && self.journal.is_some() {
            return refuse(
                "A raw image that is packed keeps no journal: it cannot go on",
                "Leave --journal out",
            );
        }
        Ok((TargetFormat::Raw, packing))
    }
}

async fn run(
    arguments: &DownloadArguments,
    known: &mut Option<DriveId>,
    display: &mut Display,
    mut stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    display.drive = arguments.drive.id();
    let (format, packing) = arguments.output()?;
    display.part = arguments.shard;
    display.offset = arguments.offset.unwrap_or_default();
    check_target(arguments)?;
    check_stdout(arguments)?;
    check_files(arguments)?;
    check_parts(arguments)?;
    check_offset(arguments)?;
    if arguments.checksum && !arguments.is_stdout() {
        checksum_line::check(&arguments.file)?;
    }
    let client = arguments.common.client(&mut stop).await?;
    display.begin(arguments.common.limit_rate);
    let patience = arguments.common.patience();
    let found = stop.unless_asked(arguments.drive.find(&client, &patience, Several::Newest));
    let drive = patience.watching(display, found).await?;
    *known = Some(drive);
    display.drive = Some(drive);
    let destination = match arguments.is_stdout() {
        true => {
            let stdout = nonblocking::stdout().map_err(exit::cannot_print)?;
            Destination::Stream(Box::new(stdout))
        }
        false => Destination::File {
            path: arguments.file.clone(),
            force: arguments.force,
        },
    };
    let findings = findings_of(&client, display);
    let options = DownloadOptions {
        format,
        packing,
        patience,
        uploads: drive_state::look().await?,
        ..options(arguments, drive, &client, &findings)
    };
    display.notices(suffix_notice(&arguments.file, format, packing));
    display.notices(unfinished(arguments, &options, &client).await?);
    let done = match arguments.join {
        Some(count) => {
            let shards = Shards {
                count: count.get(),
                path: arguments.file.clone(),
                force: arguments.force,
            };
            join_download(&client, shards, &options, display, stop).await?
        }
        None => download(&client, destination, &options, display, stop).await?,
    };
    if let Some(digest) = done.checksum
        && !arguments.is_stdout()
    {
        checksum_line::keep(digest, &arguments.file)?;
    }
    Ok(done)
}

/// Checks that FILE and --journal are two files, and none that --force should not replace. Blocks.
fn check_files(arguments: &DownloadArguments) -> Result<()> {
    let mut others = arguments.common.access.files();
    let file = arguments.file.as_path();
    for (what, path) in &others {
        if !arguments.is_stdout() && is_same(file, path) {
            let what = format!("Cannot write {}: it is the {what}", file.display());
            return Err(Error::new(ErrorKind::Usage, what).hint_to("Choose another name"));
        }
    }
    let part = part_of(file);
    others.extend([
        ("file of the download", file),
        ("file of the download", &part),
    ]);
    let journal = arguments.journal.as_deref().map(WrittenFile::journal);
    check_written(journal.as_slice(), &others)
}

/// How to make the file of its parts.
fn next_step(arguments: &DownloadArguments, shard: Shard) -> String {
    let join = Changes {
        without: &["--restart"],
        without_values: &["--shard", "--journal"],
        flags: &format!("--join {}", shard.count()),
    };
    let file = arguments.file.to_string_lossy();
    to_be_joined(&file, shard, PROGRAM, join)
}

/// Refuses a directory, and the path of one, before any question is asked.
fn check_target(arguments: &DownloadArguments) -> Result<()> {
    let file = &arguments.file;
    if arguments.is_stdout() {
        return Ok(());
    }
    if !file.is_dir() {
        return check_is_file(file);
    }
    let what = format!("{} is a directory", file.display());
    let named = file.join("disk.img");
    Err(Error::new(ErrorKind::Local, what).hint_to(format!(
        "Name a file in it, for example {}",
        quote(&named.to_string_lossy())
    )))
}

/// Refuses to download to a file of which other machines, or earlier runs, have fetched parts: the
/// advice to start over would discard them.
fn check_parts(arguments: &DownloadArguments) -> Result<()> {
    let is_whole = arguments.shard.is_none() && arguments.join.is_none();
    let part = part_of(&arguments.file);
    let is_new = !part.exists() || journal_of(arguments).exists();
    if arguments.is_stdout() || !is_whole || is_new || arguments.common.restart {
        return Ok(());
    }
    let start = with_suffix(&arguments.file, ".");
    let start = start.file_name().unwrap_or_default().to_string_lossy();
    let shard_of = |name: &str| {
        let name = name.strip_prefix(&*start)?.strip_suffix(".ohj")?;
        name.replacen("-of-", "/", 1).parse::<Shard>().ok()
    };
    let entries = std::fs::read_dir(directory_of(&arguments.file)).ok();
    let mut names = entries.into_iter().flatten().flatten();
    let found = names.find_map(|entry| shard_of(&entry.file_name().to_string_lossy()));
    if let Some(shard) = found {
        let what = format!(
            "{} holds shard {shard} of a download in shards",
            part.display()
        );
        return Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
            "Fetch the other shards with --shard I/{count}, then run it with --join {count}; or name another file",
            count = shard.count()
        )));
    }
    Ok(())
}

/// Refuses a stdout that cannot receive the disk, before anything is fetched.
fn check_stdout(arguments: &DownloadArguments) -> Result<()> {
    if !arguments.is_stdout() {
        return Ok(());
    }
    if arguments.shard.is_some() || arguments.join.is_some() {
        let what = "--shard and --join need a file, not stdout";
        return Err(Error::new(ErrorKind::Usage, what).hint_to("Name a file instead of -"));
    }
    if std::io::stdout().is_terminal() {
        let what = "The bytes of a disk would garble the terminal";
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("Name a file instead of -, or send the output to a file or a program"));
    }
    if nonblocking::is_stdout_closed() {
        let what =
            "Nothing can receive the disk: stdout is closed, or /dev/null opened for reading";
        return Err(Error::new(ErrorKind::Local, what)
            .hint_to("Send the output to a file or a program, or name a file instead of -"));
    }
    Ok(())
}

/// Refuses an offset past the end of FILE, before any question is asked: nothing would fetch what is
/// between. `openhosting-download` accepts it with a warning, because the original script accepts it.
fn check_offset(arguments: &DownloadArguments) -> Result<()> {
    let offset = arguments.offset.unwrap_or_default();
    if offset == 0 || arguments.is_stdout() || !command_line::is_one_program() {
        return Ok(());
    }
    let file = arguments.file.display();
    let what = match arguments.file.metadata() {
        Ok(there) if !there.is_file() || there.len() >= offset => return Ok(()),
        Ok(there) => format!(
            "{file} has {} bytes, fewer than the {offset} of -o",
            there.len()
        ),
        Err(_) => format!("-o {offset} continues a file, and {file} does not exist"),
    };
    Err(Error::new(ErrorKind::Usage, what)
        .hint_to("Start at the number of bytes that the file has already, or leave out -o"))
}

/// A notice about a file name that suggests another format than the file will have.
fn suffix_notice(file: &Path, format: TargetFormat, packing: Option<Packing>) -> Option<String> {
    let suffix = file.extension()?.to_str()?.to_ascii_lowercase();
    let flags = match (&*suffix, format, packing) {
        ("qcow2", TargetFormat::Raw, _) => "for a qcow2 add --format qcow2",
        ("gz", TargetFormat::Raw, None) => "to compress it add --compress gz",
        ("xz", TargetFormat::Raw, None) => "to compress it add --compress xz",
        ("zst", TargetFormat::Raw, None) => "to compress it add --compress zst",
        ("vmdk" | "vdi" | "vhd" | "vhdx" | "vpc", _, _) => {
            "this program writes raw and qcow2 only; qemu-img converts them"
        }
        _ => return None,
    };
    let content = match format {
        TargetFormat::Raw => "a raw image",
        TargetFormat::Qcow2(_) => "a qcow2",
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Some(format!("{name} will hold {content}: {flags}"))
}

/// A notice about an interrupted download of this drive to another file in the same directory, if
/// this one starts from the beginning.
async fn unfinished(
    arguments: &DownloadArguments,
    options: &DownloadOptions,
    client: &Client,
) -> Result<Option<String>> {
    let is_resumable = !arguments.is_stdout()
        && options.packing.is_none()
        && arguments.offset.is_none()
        && arguments.shard.is_none()
        && arguments.join.is_none();
    let is_chosen = arguments.journal.is_some() || options.journal.restart;
    let Some(path) = options.journal.path.clone() else {
        return Ok(None);
    };
    if !is_resumable || is_chosen {
        return Ok(None);
    }
    let direction = match options.format {
        TargetFormat::Raw => Direction::Download,
        TargetFormat::Qcow2(_) => Direction::DownloadAsQcow2,
    };
    let (drive, user) = (options.drive, client.user().to_owned());
    let endpoint = options.journal.endpoint.clone();
    let other = blocking(move || {
        if path.symlink_metadata().is_ok() {
            return Ok(None);
        }
        let mut all = others(directory_of(&path), direction, |_| true);
        Ok(all.find_map(|other| {
            let header = &other.header;
            let is_same =
                (other.drive, &header.user, &header.endpoint) == (drive, &user, &endpoint);
            let file = other.path.with_extension("");
            let has_part = part_of(&file).symlink_metadata().is_ok();
            (is_same && has_part && !other.is_running).then_some(file)
        }))
    });
    Ok(other.await?.map(|file| {
        let again = match words_with(file.as_os_str(), |it| it.file == file) {
            Some(words) => command_line::changed_words(&words, PROGRAM, Changes::default()),
            None => command_line::changed(PROGRAM, Changes::default()),
        };
        format!(
            "An earlier download of this drive did not end: part of it is in {}. To continue that one instead: {again}",
            part_of(&file).display()
        )
    }))
}

/// The path of the journal.
fn journal_of(arguments: &DownloadArguments) -> PathBuf {
    if let Some(journal) = &arguments.journal {
        return journal.clone();
    }
    match arguments.shard {
        Some(shard) => Shards::journal(&arguments.file, shard),
        None => with_suffix(&arguments.file, ".ohj"),
    }
}

/// Whether the same command continues with what earlier runs, or the shards, stored.
fn resumes(arguments: &DownloadArguments) -> bool {
    let is_packed = matches!(arguments.output(), Ok((_, Some(_))));
    let is_staged = !arguments.is_stdout() && arguments.offset.is_none() && !is_packed;
    // A join has no journal of its own: it reads those of the shards.
    let has_journal = || arguments.join.is_some() || journal_of(arguments).exists();
    is_staged && !arguments.common.restart && part_of(&arguments.file).exists() && has_journal()
}

fn options(
    arguments: &DownloadArguments,
    drive: DriveId,
    client: &Client,
    findings: &Findings,
) -> DownloadOptions {
    DownloadOptions {
        offset: arguments.offset,
        chunk: arguments.chunk,
        read_bytes_max: NonZeroU64::new(findings.read_bytes_max()).unwrap_or(READ_CHUNK),
        jobs: arguments.common.jobs,
        jobs_min: arguments.common.min_jobs,
        allow_live: arguments.allow_live,
        shard: arguments.shard,
        journal: JournalOptions {
            path: Some(journal_of(arguments)),
            endpoint: client.endpoint().to_string(),
            restart: arguments.common.restart,
            changed_ok: false,
        },
        verify: arguments.common.verify,
        checksum: arguments.checksum,
        ..DownloadOptions::of(drive)
    }
}

/// The error, with the complete command where it advises to download the drive of the earlier run.
fn with_command(error: Error) -> Error {
    let earlier = |remedy: &Remedy| match remedy {
        Remedy::EarlierDrive(id) => Some(DriveId::from_bytes(id.into_bytes())),
        _ => None,
    };
    let earlier = error
        .hint()
        .and_then(|hint| hint.remedies().find_map(earlier));
    let Some(id) = earlier else {
        return error;
    };
    let again = command_for_drive(id, Changes::default());
    error.hint_to(advice![
        "Start over with ",
        Remedy::Restart,
        format!(", or continue the earlier one with: {again}"),
    ])
}

/// The command of this run with these changes, and with this drive in place of the given one.
fn command_for_drive(id: DriveId, changes: Changes<'_>) -> String {
    let is_drive = |it: &DownloadArguments| it.drive == DriveReference::Id(id);
    match words_with(OsStr::new(&id.to_string()), is_drive) {
        Some(words) => command_line::changed_words(&words, PROGRAM, changes),
        None => command_line::changed(PROGRAM, changes),
    }
}

/// The words of the command line in which the drive or the file was replaced by `word`. The same
/// word may stand for the drive, the file and the value of a flag, so each one is replaced in turn,
/// until the arguments `have` what is wanted.
fn words_with(word: &OsStr, have: impl Fn(&DownloadArguments) -> bool) -> Option<Vec<OsString>> {
    let all: Vec<_> = std::env::args_os().collect();
    let program = usize::from(command_line::is_one_program());
    (program + 1..all.len()).find_map(|place| {
        let mut words = all.clone();
        words[place] = word.to_owned();
        let parsed = DownloadArguments::try_parse_from(&words[program..]).ok()?;
        have(&parsed).then_some(words)
    })
}

/// The command that continues the download, or starts over. It names the UUID of a drive that was
/// given by its name, because the name may mean another drive when it runs.
fn continuation(
    arguments: &DownloadArguments,
    interrupted: &DownloadInterrupted,
    drive: Option<DriveId>,
) -> Option<Continuation> {
    let offset = interrupted.resume_at?;
    if interrupted.error.is_permanent() || interrupted.error.kind() == ErrorKind::Integrity {
        return None;
    }
    let is_in_place = arguments.offset.is_some();
    let flags = match is_in_place {
        true => format!("-o {offset}"),
        false => String::new(),
    };
    let changes = Changes {
        without: &["--restart"],
        flags: &flags,
        ..Changes::default()
    };
    let file = match is_in_place {
        true => arguments.file.clone(),
        false => part_of(&arguments.file),
    };
    let resumes = interrupted.is_journaled || is_in_place;
    let place = format!("in {}", file.to_string_lossy());
    let command = match drive {
        Some(id) if resumes && arguments.drive.id().is_none() => command_for_drive(id, changes),
        _ => command_line::changed(PROGRAM, changes),
    };
    Some(Continuation {
        command,
        resumes,
        place: resumes.then_some(place),
        needs: arguments.is_stdout().then_some("with stdout as before"),
    })
}

/// The lines of the original scripts about how to continue, followed by our own.
fn original(arguments: &DownloadArguments, interrupted: &DownloadInterrupted) -> Vec<String> {
    let Some(offset) = interrupted.resume_at else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if !interrupted.is_whole {
        lines.push(format!("Failed to read chunk at offset {offset}: aborting"));
    }
    if interrupted.error.is_permanent() || interrupted.error.kind() == ErrorKind::Integrity {
        // The same command would fail again: the error says what helps.
        return lines;
    }
    if interrupted.is_journaled {
        lines.push(
            "Run the same command again to resume the download: it fetches only what is missing"
                .into(),
        );
    } else if matches!(arguments.output(), Ok((_, Some(_)))) {
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

    fn parse(line: &str) -> Result<DownloadArguments, clap::Error> {
        DownloadArguments::try_parse_from(std::iter::once(PROGRAM).chain(line.split_whitespace()))
    }

    #[test]
    fn the_flags_of_the_script_are_accepted() {
        let short = parse(&format!("-c 1000 -o 5 {ID} out")).unwrap();
        let long = parse(&format!("--chunk 1000 --offset 5 {ID} out")).unwrap();
        assert_eq!(short, long);
        assert_eq!(parse(&format!("{ID} out")).unwrap().chunk.get(), 4_194_304);
        for line in ["", ID, &format!("-s 5 {ID} out")] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_file_name_that_does_not_match_the_format_is_reported() {
        let notice = |name: &str, format, packing| suffix_notice(Path::new(name), format, packing);
        let raw = TargetFormat::Raw;
        let line = notice("d/a.QCOW2", raw, None).unwrap();
        assert_eq!(
            line,
            "a.QCOW2 will hold a raw image: for a qcow2 add --format qcow2"
        );
        assert!(notice("a.gz", raw, None).is_some() && notice("a.vmdk", raw, None).is_some());
        assert_eq!(notice("a.gz", raw, Some(Packing::Gzip)), None);
        assert_eq!(notice("a.qcow2", TargetFormat::Qcow2(None), None), None);
        assert_eq!(notice("a.img", raw, None), None);
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for flags in [
            "--gzip --zstd",
            "--gzip --journal j",
            "--zstd -o 5",
            "--compress gz --zstd",
            "--compress xz -o 5",
            "--format qcow2 -o 5",
            "--format qcow2 --gzip",
        ] {
            let kind = parse(&format!("{flags} {ID} out")).unwrap_err().kind();
            assert_eq!(kind, clap::error::ErrorKind::ArgumentConflict, "{flags}");
        }
    }

    #[test]
    fn each_format_accepts_its_own_compressions() {
        let output = |flags: &str| parse(&format!("{flags} {ID} out")).unwrap().output();
        let qcow2 = |clusters| Ok((TargetFormat::Qcow2(clusters), None));
        let raw = |packing| Ok((TargetFormat::Raw, packing));
        for (flags, expected) in [
            ("", raw(None)),
            ("--gzip", raw(Some(Packing::Gzip))),
            ("--compress gz", raw(Some(Packing::Gzip))),
            ("--zstd", raw(Some(Packing::Zstd))),
            ("--format raw --compress xz", raw(Some(Packing::Xz))),
            ("--format qcow2", qcow2(None)),
            (
                "--format qcow2 --compress zlib",
                qcow2(Some(ClusterPacking::Zlib)),
            ),
            (
                "--format qcow2 --compress zstd",
                qcow2(Some(ClusterPacking::Zstd)),
            ),
            ("--compress zlib", Err(ErrorKind::Usage)),
            ("--compress gz --journal j", Err(ErrorKind::Usage)),
            ("--format qcow2 --compress xz", Err(ErrorKind::Usage)),
        ] {
            let output = output(flags).map_err(|error| error.kind());
            assert_eq!(output, expected, "{flags}");
        }
    }
}
