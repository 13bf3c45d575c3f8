//! `openhosting publish`: creates a drive from an image. The drive gets its name only when it is
//! complete and verified.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use super::arguments::{open_image, web_url};
use super::candidates::{self, TIERS};
use super::command_line::Changes;
use super::continuation::{Continuation, with_removal};
use super::display::{Display, shard_of_many, short_id, to_be_joined};
use super::github::Report;
use super::output::OutputForm;
use super::reached::{endpoint_name, how_to_serve, jobs_for};
use super::showing::{ShownRun, Way};
use super::shown_run::RunOutcome;
use super::signals::Heard;
use super::signing::{Signer, is_signature, signature_of};
use super::transfer_command::CommonArguments;
use super::written_files::{WrittenFile, check_written};
use super::{arguments, complete, environment, help, image_notices, quote};
use crate::amounts::{duration, size};
use crate::api::Client;
use crate::codec::Compression;
use crate::content::BLOCK_BYTES;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Holes, ImageOptions};
use crate::monitor::{Event, Monitor};
use crate::publish::receipts::read_receipt;
use crate::publish::{
    Base, PublishOptions, Published, Role, Unpublished, check_new_name, check_receipt, clean_up,
    publish, readers,
};
use crate::receipt::How;
use crate::shard::Shard;
use crate::transfer::Stop;

const PROGRAM: &str = "openhosting publish";
pub(super) const FORM: OutputForm = OutputForm::new(PROGRAM, "publish/1");

/// Publishes an image as a drive with a name, and prints its UUID
///
/// The image is written to a drive named "NAME (unfinished)". When everything is confirmed and
/// verified, the drive gets the name NAME. If a run stops, the same command continues it.
///
/// If the cloud can copy the drive that was last published under the name, only the blocks that
/// differ are sent, otherwise the whole image. If a published drive of the name already holds the
/// image, nothing is sent.
#[derive(Debug, Parser)]
#[command(name = "openhosting-publish", bin_name = PROGRAM, version, after_long_help = help::after("publish"))]
pub(super) struct PublishArguments {
    /// Publish under this name
    #[arg(short, long, value_name = "NAME", value_parser = new_name)]
    name: String,

    /// Copy this drive and send what differs: auto, none or DRIVE
    ///
    /// The cloud makes the copy. auto is the newest drive that was published under the name. none
    /// means that the whole image is sent. DRIVE is a UUID or a name.
    #[arg(long, value_name = "BASE", add = complete::bases(), default_value = "auto", hide_short_help = true, help_heading = help::DRIVE)]
    base: String,

    /// Give the drive this tag; may be given more than once
    #[arg(long = "tag", value_name = "TAG", value_parser = tag, hide_short_help = true, help_heading = help::DRIVE)]
    tags: Vec<String>,

    /// Let others read it: all, or user UUIDs separated by commas
    #[arg(long, value_name = "USERS", add = candidates::words(&["all"]), hide_short_help = true, help_heading = help::DRIVE)]
    readers: Option<String>,

    /// Keep the newest N of this name, destroy older ones
    ///
    /// N includes the new one. Drives that a virtual machine uses stay. By default all drives stay.
    #[arg(long, value_name = "N", value_parser = arguments::number::<NonZeroU32>)]
    keep: Option<NonZeroU32>,

    /// Remove unfinished drives of the name, before IMAGE is published
    ///
    /// They include a drive that another run could still finish. So in a nightly job, publish first,
    /// and after a success run a second command with --cleanup and without IMAGE.
    #[arg(long)]
    cleanup: bool,

    /// Read the old receipt from FILE, write the new one
    ///
    /// The cloud copies the last published drive. The old receipt lists what is on it, so the copy
    /// need not be read. A missing FILE is not an error. With --shard, FILE is only read.
    #[arg(long, value_name = "FILE", add = candidates::files())]
    receipt: Option<PathBuf>,

    /// Sign the receipt with this minisign key; needs --receipt
    ///
    /// The signature is written to FILE.minisig, where FILE is the receipt. The password of the
    /// key, if it has one, is read from OHSIGNPASSWORD or asked for.
    #[arg(
        long,
        value_name = "KEY",
        add = candidates::files(),
        requires = "receipt",
        conflicts_with = "shard",
        hide_short_help = true,
        help_heading = help::CHECKS
    )]
    sign_key: Option<PathBuf>,

    /// Mark the drives of this publication with TOKEN
    ///
    /// --keep and --cleanup remove only drives with the same mark. By default it is derived from
    /// the user and the name.
    #[arg(long, value_name = "TOKEN", hide_short_help = true, help_heading = help::DRIVE)]
    token: Option<String>,

    /// Do shard I of N; --join publishes when all are done
    ///
    /// I counts from 1. All N machines work on the same drive.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["cleanup", "keep"], hide_short_help = true, help_heading = help::MACHINES)]
    shard: Option<Shard>,

    /// Publish what all shards have sent
    #[arg(long, conflicts_with_all = ["shard", "cleanup"], hide_short_help = true, help_heading = help::MACHINES)]
    join: bool,

    /// Create the drive on this storage tier
    #[arg(short, long, value_name = "TIER", add = candidates::words(TIERS), default_value = "disk", hide_short_help = true, help_heading = help::DRIVE)]
    tier: String,

    /// Set the compression: auto, 0 (none), 1 (fastest) to 12 (smallest)
    ///
    /// auto adapts the level to the link and the processor. If only differences are sent, auto
    /// is level 6.
    #[arg(long, value_name = "LEVEL", default_value_t, value_parser = arguments::compression(), hide_possible_values = true, hide_short_help = true, help_heading = help::SPEED)]
    level: Compression,

    /// Publish into directory DIR instead; needs no account
    ///
    /// A server inside this program stores the drive there.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, conflicts_with_all = ["endpoint", "profile"])]
    local: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArguments,

    /// Treat IMAGE as raw, qcow2, vmdk, vdi, vhd or vhdx
    ///
    /// By default the content decides, and a block device is raw. Use raw for a raw image that
    /// somebody you do not trust could write to: it could be made to look like another format.
    #[arg(long, value_name = "FORMAT", value_parser = arguments::format(), hide_possible_values = true, hide_short_help = true, help_heading = help::IMAGE)]
    format: Option<Format>,

    /// Select the disk in an archive (OVA or tar) by its name
    ///
    /// By default it is the disk that boots, or the only one. --format is then the format of that
    /// disk.
    #[arg(long, value_name = "NAME", hide_short_help = true, help_heading = help::IMAGE)]
    disk: Option<String>,

    /// Allow a backing file of IMAGE, or a directory of them
    ///
    /// May be given more than once.
    #[arg(long, value_name = "PATH", hide_short_help = true, help_heading = help::IMAGE)]
    allow_backing: Vec<PathBuf>,

    /// Choose how holes are checked: trust, sample or read
    ///
    /// Holes are parts that the file system reports as empty, which can be wrong. trust skips them,
    /// sample reads some bytes of each hole, and read reads all bytes. On Windows and macOS, all
    /// holes are always read.
    #[arg(long, value_name = "HOW", default_value_t = Holes::Read, value_parser = arguments::holes(), hide_possible_values = true, hide_short_help = true, help_heading = help::IMAGE)]
    holes: Holes,

    /// Disk image, block device or URL of an image
    ///
    /// The web server must support range requests. Stdin and compressed images are refused. IMAGE
    /// is not needed for --cleanup alone.
    #[arg(value_name = "IMAGE", add = candidates::files())]
    image: Option<PathBuf>,
}

/// Reads a name for drives.
fn new_name(text: &str) -> Result<String> {
    if text.is_empty() {
        let what = "a name has at least one character";
        return Err(Error::new(ErrorKind::Usage, what).hint_to("Write --name NAME"));
    }
    check_new_name(text)?;
    Ok(text.to_owned())
}

/// Tags are separated by spaces.
fn tag(text: &str) -> Result<String, String> {
    let is_one = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let tag = is_one.then(|| text.to_owned());
    tag.ok_or_else(|| "a tag has no spaces. Give --tag once for each tag".into())
}

/// The outcome of the command.
enum PublishOutcome {
    Published(Published),
    CleanedUp(Vec<DriveId>),
}

/// The command.
pub(super) fn main(arguments: &PublishArguments) -> ExitCode {
    let common = &arguments.common;
    if let Err(error) = common.check() {
        return FORM.finish(common.json, &Heard::default(), Err(error));
    }
    let run = ShownRun {
        form: FORM,
        is_json: common.json,
        way: Way::Publish,
        showing: &common.showing,
        about: &arguments.name,
        deadline: common.deadline,
    };
    run.run(async |display, stop| {
        let done = publish_or_clean_up(arguments, display, stop).await;
        if let Ok(PublishOutcome::Published(done)) = &done
            && (done.is_newest_again || !done.destroyed.is_empty())
        {
            // Readers of the name get another drive than before this run, or drives are gone.
            display.always_sum_up();
        }
        let report = Report {
            drive: None,
            ..display.report(rows(arguments))
        };
        match done {
            Ok(PublishOutcome::Published(done)) => RunOutcome {
                summary: Some(summary(arguments, &done, display.took())),
                ..published(&done, report)
            },
            Ok(PublishOutcome::CleanedUp(removed)) => RunOutcome {
                summary: Some(vec![cleanup_summary(&arguments.name, removed.len())]),
                ..cleaned_up(&removed, report)
            },
            Err(unpublished) => unfinished(arguments, unpublished, report),
        }
    })
}

/// The rows of the summary, whatever the outcome.
fn rows(arguments: &PublishArguments) -> Vec<(&'static str, String)> {
    let mut rows = vec![("Name", arguments.name.clone())];
    if let Some(image) = &arguments.image {
        rows.push(("Image", image.to_string_lossy().into_owned()));
    }
    if let Some(shard) = arguments.shard {
        rows.push(("Shard", format!("{} of {}", shard.index(), shard.count())));
    }
    rows
}

/// The lines that say what was done.
fn summary(arguments: &PublishArguments, done: &Published, took: Duration) -> Vec<String> {
    let (name, drive) = (&arguments.name, short_id(done.drive));
    let removed = done.destroyed.iter().map(|drive| short_id(*drive));
    let removed: Vec<_> = removed.collect();
    let removed = (!removed.is_empty())
        .then(|| format!("Removed older drives of {name}: {}", removed.join(" ")));
    if done.how == How::Nothing {
        let same = match done.is_newest_again {
            true => format!(
                "{name} means the earlier drive {drive} again, which holds this image: nothing to send"
            ),
            false => format!("{name} is up to date: nothing to send (drive {drive})"),
        };
        let local = arguments.local.as_deref().map(how_to_serve);
        return std::iter::once(same).chain(removed).chain(local).collect();
    }
    let image = arguments.image.as_deref().and_then(Path::file_name);
    let image = image.unwrap_or_default().to_string_lossy();
    let (disk, took) = (size(done.size), duration(took));
    let did = match (done.is_published, arguments.shard) {
        (false, Some(shard)) => format!(
            "Sent {} of {image} to drive {drive} in {took}",
            shard_of_many(shard)
        ),
        _ => format!("Published {image} ({disk}) as {name} (drive {drive}) in {took}"),
    };
    let base = done.how.base();
    let on_top = base.map_or(String::new(), |base| {
        format!(" on top of drive {}", short_id(base))
    });
    let verified = match (done.verified.checked, done.verified.of) {
        (0, _) => "not verified",
        (checked, of) if checked >= of => "all verified",
        _ => "sample verified",
    };
    let sent = format!("{} sent{on_top}, {verified}", size(done.sent_bytes));
    let next = arguments.shard.filter(|_| !done.is_published);
    let next = next.map(|shard| {
        let join = Changes {
            without: &["--restart"],
            without_values: &["--shard"],
            flags: "--join",
        };
        to_be_joined(name, shard, PROGRAM, join)
    });
    let local = arguments.local.as_deref().map(how_to_serve);
    let lines = [did, sent].into_iter().chain(removed);
    lines.chain(next).chain(local).collect()
}

/// The line that says what was removed.
fn cleanup_summary(name: &str, removed: usize) -> String {
    match removed {
        0 => format!("Nothing unfinished is left of {name}"),
        1 => format!("Removed the unfinished drive of {name}"),
        many => format!("Removed {many} unfinished drives of {name}"),
    }
}

/// The result of a publication. The object's keys must not change, because docs/user/publishing.md
/// documents them.
fn published(done: &Published, mut report: Report) -> RunOutcome<'static> {
    report.drive = Some(done.drive);
    report.digest = Some(done.root);
    report.bytes.1 = done.sent_bytes;
    let how = match done.how.base() {
        Some(base) => format!("{} on top of {base}", done.how.name()),
        None => done.how.name().to_owned(),
    };
    report.rows.extend([
        ("Size", format!("{} bytes", done.size)),
        ("Sent as", how),
        ("Verified", done.verified.statement()),
    ]);
    let destroyed = texts(&done.destroyed);
    if !destroyed.is_empty() {
        report.rows.push(("Destroyed", destroyed.join(" ")));
    }
    RunOutcome {
        text: format!("{}\n", done.drive),
        object: Some(json!({
            "drive": done.drive.to_string(),
            "published": done.is_published,
            "root": done.root.to_string(),
            "size": done.size,
            "how": done.how.name(),
            "base": done.how.base().map(|base| base.to_string()),
            "bytes_sent": done.sent_bytes,
            "verified": done.verified,
            "destroyed": destroyed,
        })),
        verified_bytes: Some(done.verified.checked * BLOCK_BYTES.get()),
        report,
        ..RunOutcome::default()
    }
}

fn cleaned_up(removed: &[DriveId], mut report: Report) -> RunOutcome<'static> {
    let removed = texts(removed);
    report.rows.push(("Removed", removed.join(" ")));
    RunOutcome {
        object: Some(json!({ "removed": removed })),
        verified_bytes: Some(0),
        report,
        ..RunOutcome::default()
    }
}

fn unfinished(
    arguments: &PublishArguments,
    Unpublished { error, unfinished }: Unpublished,
    mut report: Report,
) -> RunOutcome<'static> {
    report.drive = unfinished;
    let is_permanent = error.is_permanent();
    let left_behind = unfinished.map(|drive| left_behind(arguments, drive));
    let continuation = unfinished
        .filter(|_| !is_permanent)
        .map(|drive| Continuation {
            resumes: true,
            place: Some(format!("on drive {}", short_id(drive))),
            ..Continuation::again(PROGRAM)
        });
    let drive = unfinished.map(|drive| drive.to_string());
    RunOutcome {
        left_behind,
        continuation,
        ..RunOutcome::failed(error, Some(json!({ "unfinished": drive })), report)
    }
}

fn texts(drives: &[DriveId]) -> Vec<String> {
    drives.iter().map(ToString::to_string).collect()
}

/// The line about the unfinished drive, and how to remove it.
fn left_behind(arguments: &PublishArguments, drive: DriveId) -> String {
    let mut cleanup = format!(
        "openhosting publish --name {}{}",
        quote(&arguments.name),
        arguments.common.access.given()
    );
    for (flag, value) in [
        (
            "--local",
            arguments.local.as_deref().map(Path::to_string_lossy),
        ),
        ("--token", arguments.token.as_deref().map(Cow::from)),
    ] {
        if let Some(value) = value {
            cleanup.push_str(&format!(" {flag} {}", quote(&value)));
        }
    }
    let what = format!("Drive {drive} is unfinished");
    with_removal(&what, &format!("{cleanup} --cleanup"))
}

async fn publish_or_clean_up(
    arguments: &PublishArguments,
    display: &mut Display,
    mut stop: Stop,
) -> Result<PublishOutcome, Unpublished> {
    let mut options = options(arguments)?;
    // All of this is done before anything is sent, because the path may be wrong, and the user may
    // type a wrong password.
    if let (Some(receipt), Some(image)) = (&arguments.receipt, &arguments.image) {
        check_files(arguments, receipt, image)?;
        check_receipt(receipt)?;
    }
    let signer = match &arguments.sign_key {
        Some(path) => {
            let signature = arguments.receipt.as_deref().map(signature_of);
            signature.as_deref().map_or(Ok(()), check_receipt)?;
            Some(stop.unless_asked(Signer::open(path)).await?)
        }
        None => None,
    };
    if let (Some(directory), Some(_)) = (&options.journals, &arguments.image) {
        // A drive that is created before the journal fails would be left behind.
        environment::usable_state(directory)?;
    }
    if options.journals.is_none() {
        // Even without a journal the publication can be resumed with the keys of the drive, though
        // the drive must be compared then.
        let line = environment::no_state_directory("journals and receipts").to_string();
        display.event(&Event::Warning(line.into()));
    }
    let outcome = go(arguments, &mut options, display, stop).await?;
    if let (Some(signer), Some(file), PublishOutcome::Published(done)) =
        (signer, &arguments.receipt, &outcome)
    {
        let comment = format!("drive {} root {}", done.drive, done.root);
        signer.sign(file, &comment)?;
    }
    Ok(outcome)
}

/// Checks that the receipt and its signature replace nothing else. Blocks.
fn check_files(arguments: &PublishArguments, receipt: &Path, image: &Path) -> Result<()> {
    let signature = signature_of(receipt);
    let mut written = vec![WrittenFile {
        what: "receipt",
        path: receipt,
        is_kind: |path| read_receipt(path).is_ok(),
    }];
    if arguments.sign_key.is_some() {
        written.push(WrittenFile {
            what: "signature",
            path: &signature,
            is_kind: is_signature,
        });
    }
    let key = arguments.sign_key.as_deref().map(|key| ("key", key));
    let mut others = arguments.common.access.files();
    others.extend(key.into_iter().chain([("image", image)]));
    check_written(&written, &others)
}

async fn go(
    arguments: &PublishArguments,
    options: &mut PublishOptions,
    display: &mut Display,
    mut stop: Stop,
) -> Result<PublishOutcome, Unpublished> {
    let local = arguments.local.as_deref();
    let reached = arguments.common.reach(local, display, &mut stop).await?;
    let (client, findings) = (&reached.client, &reached.findings);
    if local.is_none() {
        options.endpoint = client.endpoint().to_string();
    }
    options.jobs = jobs_for(options.jobs, findings);
    options.body_bytes_max = findings.body_bytes_max().and_then(NonZeroU64::new);
    let result = work(arguments, client, options, display, stop).await;
    reached.leave(display).await;
    result
}

async fn work(
    arguments: &PublishArguments,
    client: &Client,
    options: &PublishOptions,
    display: &mut Display,
    mut stop: Stop,
) -> Result<PublishOutcome, Unpublished> {
    let Some(image) = &arguments.image else {
        let removed = clean_up(client, options, display, stop).await?;
        return Ok(PublishOutcome::CleanedUp(removed));
    };
    let how = ImageOptions {
        format: arguments.format,
        disk: arguments.disk.clone(),
        allow_backing: arguments.allow_backing.clone(),
        ..ImageOptions::default()
    };
    let path = image;
    let web = || {
        let is_local = arguments.local.is_some();
        arguments.common.web(is_local, &options.patience)
    };
    let image = stop.unless_asked(open_image(path, how, web));
    let image = options.patience.watching(display, image).await?;
    let given = arguments.format;
    let image = image_notices::show(image, given, "takes", display, &mut stop).await?;
    if image.disk().is_none() {
        return Err(read_once(path).into());
    }
    let published = publish(client, image, options, display, stop).await?;
    Ok(PublishOutcome::Published(published))
}

/// The error for an image that can only be read once, with the command that makes one that can be
/// published.
fn read_once(path: &Path) -> Error {
    let shown = quote(&path.to_string_lossy());
    let hint = match web_url(path) {
        Ok(Some(url)) if url.is_shown_whole() => {
            format!("Download it first: curl -fLO {shown}")
        }
        Ok(Some(_)) => "Download it first: curl -fLO URL".to_owned(),
        _ => match path.extension().and_then(OsStr::to_str) {
            Some("gz") => format!("Unpack it first: gzip -dk {shown}"),
            Some("xz") => format!("Unpack it first: xz -dk {shown}"),
            Some("zst") => format!("Unpack it first: zstd -dk {shown}"),
            Some("bz2") => format!("Unpack it first: bzip2 -dk {shown}"),
            _ => "Unpack it, and publish the file".to_owned(),
        },
    };
    let what = "An image that can only be read once cannot be published";
    Error::new(ErrorKind::Usage, what).hint_to(hint)
}

fn options(arguments: &PublishArguments) -> Result<PublishOptions> {
    if arguments.image.as_deref() == Some(Path::new("-")) {
        let what = "No image is published from stdin: it is read twice";
        return Err(Error::new(ErrorKind::Usage, what).hint_to(
            "Write it to a file and publish that, or send it with: openhosting upload -",
        ));
    }
    if arguments.image.is_none() && !arguments.cleanup {
        return Err(Error::new(ErrorKind::Usage, "There is no image to publish")
            .hint_to("Name an image; only --cleanup needs none"));
    }
    Ok(PublishOptions {
        token: arguments.token.clone(),
        base: match arguments.base.as_str() {
            "auto" => Base::Auto,
            "none" => Base::None,
            other => other
                .parse()
                .map_or_else(|_| Base::Name(other.to_owned()), Base::Drive),
        },
        tags: arguments.tags.clone(),
        readers: arguments.readers.as_deref().map(readers).transpose()?,
        keep: arguments.keep,
        clean_up: arguments.cleanup || arguments.common.restart,
        role: match (arguments.shard, arguments.join) {
            (Some(shard), _) => Role::Shard(shard),
            (None, true) => Role::Join,
            (None, false) => Role::Whole,
        },
        tier: arguments.tier.clone(),
        compression: arguments.level,
        jobs: arguments.common.jobs,
        jobs_min: arguments.common.min_jobs,
        patience: arguments.common.patience(),
        verify: arguments.common.verify,
        holes: arguments.holes,
        journals: environment::state_of("journals"),
        receipts: environment::state_of("receipts"),
        receipt: arguments.receipt.clone(),
        ..PublishOptions::to(
            arguments.name.clone(),
            arguments
                .local
                .as_deref()
                .map(endpoint_name)
                .unwrap_or_default(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<PublishArguments, clap::Error> {
        PublishArguments::try_parse_from(std::iter::once("publish").chain(line.split_whitespace()))
    }

    #[test]
    fn a_base_is_a_word_a_drive_or_a_name() {
        let base = |line: &str| options(&parse(line).unwrap()).unwrap().base;
        assert_eq!(base("a.img --name n"), Base::Auto);
        assert_eq!(base("a.img --name n --base none"), Base::None);
        assert_eq!(base("a.img --name n --base m"), Base::Name("m".into()));
        let id = "0012e24a-6eae-4279-9912-3432f698cec8";
        let line = format!("a.img --name n --base {id}");
        assert_eq!(base(&line), Base::Drive(id.parse().unwrap()));
    }

    #[test]
    fn an_image_is_required_except_for_cleanup() {
        let none = options(&parse("--name n").unwrap()).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::Usage);
        assert!(
            options(&parse("--name n --cleanup").unwrap())
                .unwrap()
                .clean_up
        );
        // `-` is not taken for the name of a file, and it is refused before the endpoint is asked.
        let piped = options(&parse("- --name n").unwrap()).unwrap_err();
        assert_eq!(piped.kind(), ErrorKind::Usage);
        let raw = parse("a.img --name n --format raw").unwrap();
        assert_eq!(raw.format, Some(Format::Raw));
    }

    #[test]
    fn contradictory_flags_are_refused() {
        for line in [
            "a.img",
            "a.img --name=",
            "a.img --name n --keep 0",
            "a.img --name n --shard 3/2",
            "a.img --name n --shard 1/2 --join",
            "a.img --name n --shard 1/2 --cleanup",
            "a.img --name n --local d --endpoint http://h",
            "a.img b.img --name n",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(tag("a b").is_err() && tag("").is_err() && tag("a").is_ok());
    }
}
