//! `openhosting verify`: does a drive hold what its receipt tells?

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rangemap::RangeSet;
use serde_json::json;

use super::access::Access;
use super::answer::{Answer, Form};
use super::display::{Display, End, Showing, Way};
use super::github::{BytesOutput, Report};
use super::named::Named;
use super::signals::{self, Heard};
use super::{arguments, exit, signing};
use crate::api::ClientConfig;
use crate::content::{blocks_in, count, set_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::publish::{pick, read_receipt_if};
use crate::receipt::{Coverage, Receipt};
use crate::shard::Shard;
use crate::transfer::{
    InspectOptions, JOBS_DEFAULT, Patience, Stop, Verified, inspect, look_at_drive,
};

const PROGRAM: &str = "openhosting verify";
const FORM: Form = Form {
    program: PROGRAM,
    schema: "verify/1",
    short: Some("-J"),
};

/// Compares a drive with the receipt of its publication
///
/// All of it, or a sample of its blocks, and tells what that is worth. Where the
/// endpoint makes digests no byte of the drive moves.
///
/// The endpoint and who you are come from a profile (docs/config.md), or from the
/// environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
#[derive(Debug, Parser)]
#[command(name = "openhosting-verify", bin_name = PROGRAM, version, after_help = exit::EXIT_CODES)]
pub(super) struct Arguments {
    /// Compare P percent of the blocks, picked by chance [default: all]
    #[arg(long, value_name = "P", value_parser = percent)]
    sample: Option<f64>,

    /// Compare one of N parts, I from 1 on
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,

    /// Believe the receipt only if RECEIPT.minisig is its signature with this key of
    /// minisign, a file or the line in it
    #[arg(long, value_name = "KEY")]
    pubkey: Option<String>,

    /// The drive to compare, by its UUID or its name, if it is another one than the
    /// receipt's
    #[arg(short, long, value_name = "DRIVE")]
    drive: Option<Named>,

    /// Print one JSON object instead of a line (docs/json.md)
    #[arg(short = 'J', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Most requests in flight
    #[arg(short, long, value_name = "N", default_value_t = JOBS_DEFAULT, value_parser = arguments::jobs)]
    jobs: NonZeroU32,

    /// Give up when nothing succeeded for this long
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    max_outage: Duration,

    #[command(flatten)]
    showing: Showing,

    /// The receipt (docs/receipt.md)
    #[arg(value_name = "RECEIPT")]
    receipt: PathBuf,
}

/// Reads a percentage.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("not a percentage above 0 and up to 100".into()),
    }
}

/// The command.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    let arguments: Arguments = match FORM.parse(words) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let drive = arguments.drive.as_ref().and_then(Named::id);
    let receipt = arguments.receipt.to_string_lossy();
    let mut display = Display::new(PROGRAM, Way::Verify, drive, &arguments.showing, &receipt);
    let result = signals::hearing(PROGRAM, None, async |stop| {
        run(&arguments, &mut display, stop).await
    });
    let (result, heard) = result.unwrap_or_else(|error| (Err(error), Heard::default()));
    let error = match &result {
        Ok(found) => found.answer.error.as_ref(),
        Err(error) => Some(error),
    };
    let kind = error.map(Error::kind);
    let found = result.as_ref().ok();
    let mut shown = display.ended(&End {
        verified: found.map(|found| found.verified),
        error: kind,
        exit_code: kind.map_or(0, |kind| heard.exit_code(kind)),
        resume: None,
    });
    let mut report = Report {
        outcome: shown.outcome,
        drive: shown.drive,
        digest: found.map(|found| found.root),
        bytes: (BytesOutput::Received, shown.progress.wire_bytes),
        took: shown.took,
        rows: vec![("Receipt", receipt.into_owned())],
    };
    if let Some(found) = found {
        let differing = found.differing.to_string();
        report.rows.push(("Compared", found.coverage.statement()));
        report.rows.push(("Blocks that differ", differing));
    }
    shown.github.leave(&report, error);
    let answer = result.map(|found| found.answer);
    FORM.finish_telling(arguments.json, &heard, answer, |error| {
        shown.github.tell(error, &[]);
    })
}

/// What was found.
struct Found {
    answer: Answer,
    verified: Verified,
    root: Digest,
    coverage: Coverage,
    /// Blocks that differ.
    differing: u64,
}

async fn run(arguments: &Arguments, display: &mut Display, mut stop: Stop) -> Result<Found> {
    let path = &arguments.receipt;
    let receipt = read_receipt_if(path, |bytes| match &arguments.pubkey {
        Some(public) => signing::check(path, bytes, public),
        None => Ok(()),
    })?;
    let patience = Patience::new(arguments.max_outage);
    let config = ClientConfig {
        outage: arguments.max_outage,
        ..ClientConfig::default()
    };
    let client = arguments.access.client(config, &mut stop).await?;
    let looked = stop.unless_asked(async {
        let drive = match &arguments.drive {
            None => receipt.drive,
            Some(named) => named.find(&client, &patience).await?,
        };
        look_at_drive(&client, drive, &patience).await
    });
    let info = patience.watching(display, looked).await?;
    let drive = info.id;
    display.set_drive(drive);
    let size = receipt.content.size();
    if info.size < size {
        let what = format!(
            "Drive {drive} has {} bytes, less than the {size} of its receipt",
            info.size
        );
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    let Receipt { content, .. } = receipt;
    let all = content.block_plan().count();
    let blocks = part(arguments.shard, content.plan().count(), all);
    let of = count(&blocks);
    let blocks = match arguments.sample {
        // At least one: a percentage is above zero.
        Some(percent) => pick(
            &blocks,
            ((of as f64 * percent / 100.0).ceil() as u64).max(1),
            &mut fastrand::Rng::new(),
        ),
        None => blocks,
    };
    let options = InspectOptions {
        blocks: blocks.clone(),
        trusts_holes: false,
        jobs: arguments.jobs.get(),
        patience,
    };
    let root = content.root();
    let content = Arc::new(content);
    let differing = match blocks.is_empty() {
        true => RangeSet::new(),
        false => inspect(&client, drive, &content, &options, display, stop).await?,
    };
    let coverage = Coverage {
        checked: count(&blocks),
        of,
    };
    let first = differing
        .first()
        .map(|range| range.start * content.block_plan().chunk_bytes());
    let object = json!({
        "drive": drive.to_string(),
        "root": root.to_string(),
        "is_same": first.is_none(),
        "blocks": coverage.checked,
        "of": coverage.of,
        "differing": count(&differing),
        "first_differing_byte": first,
        "sees_change_of_1_percent": coverage.confidence(of.div_ceil(100)),
        "sees_change_of_one_block": coverage.confidence(1),
    });
    let verified = Verified {
        ranges: coverage.checked,
        bytes: bytes_of(&blocks, &content.block_plan()),
    };
    let found = |answer| Found {
        answer,
        verified,
        root,
        coverage,
        differing: count(&differing),
    };
    let Some(first) = first else {
        let of_what = match arguments.shard {
            Some(shard) => format!("part {} of {}: ", shard.index(), shard.count()),
            None => String::new(),
        };
        let statement = coverage.statement();
        let text = format!("Drive {drive} holds what its receipt tells: {of_what}{statement}\n");
        return Ok(found(Answer::new(text, object)));
    };
    let what = format!(
        "Drive {drive} does not hold what its receipt tells: {} of {} blocks that were compared differ, the first at byte {first}",
        count(&differing),
        coverage.checked,
    );
    let error =
        Error::new(ErrorKind::Integrity, what).hint_to("Do not use it; publish the image again");
    let answer = Answer {
        error: Some(error),
        ..Answer::new(String::new(), object)
    };
    Ok(found(answer))
}

/// Bytes of some blocks.
fn bytes_of(blocks: &RangeSet<u64>, plan: &Plan) -> u64 {
    let bytes = blocks.iter().map(|range| plan.bytes_of(range));
    bytes.map(|bytes| bytes.end - bytes.start).sum()
}

/// The blocks of a part of the chunks.
fn part(shard: Option<Shard>, chunks: u64, blocks: u64) -> RangeSet<u64> {
    let chunks = shard.map_or(0..chunks, |shard| shard.part(chunks));
    set_of(blocks_in(&chunks, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_above_zero() {
        assert_eq!(percent("5"), Ok(5.0));
        assert_eq!(percent("0.5%"), Ok(0.5));
        for bad in ["", "0", "-1", "101", "x", "nan", "inf"] {
            assert!(percent(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parts_are_whole_chunks() {
        let half = |index| part(Shard::new(index, 2), 3, 130);
        assert_eq!(half(1).into_iter().next(), Some(0..64));
        assert_eq!(half(2).into_iter().next(), Some(64..130));
        assert!(part(Shard::new(1, 5), 1, 3).is_empty());
    }
}
