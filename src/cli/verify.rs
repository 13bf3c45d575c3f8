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
use super::{arguments, exit, signals, signing};
use crate::api::ClientConfig;
use crate::content::{blocks_in, count, set_of};
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::publish::{Shard, pick, read_receipt_if};
use crate::receipt::{Coverage, Receipt};
use crate::transfer::{InspectOptions, JOBS_DEFAULT, Stop, inspect};

const PROGRAM: &str = "openhosting verify";

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
struct Arguments {
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

    /// The drive to compare, if it is another one than the receipt's
    #[arg(short, long, value_name = "DRIVE-UUID")]
    drive: Option<DriveId>,

    /// Print one JSON object instead of a line
    #[arg(short = 'J', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Most requests in flight
    #[arg(short, long, value_name = "N", default_value_t = JOBS_DEFAULT, value_parser = arguments::jobs)]
    jobs: NonZeroU32,

    /// Give up when nothing succeeded for so long
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    max_outage: Duration,

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
    let arguments = Arguments::parse_from(words);
    match signals::hearing(PROGRAM, None, async |stop| run(&arguments, stop).await) {
        Ok((Err(error), heard)) => {
            exit::tell(PROGRAM, &error);
            ExitCode::from(heard.exit_code(error.kind()))
        }
        Ok((Ok(()), _)) => ExitCode::SUCCESS,
        Err(error) => exit::finish(PROGRAM, Err(error)),
    }
}

async fn run(arguments: &Arguments, stop: Stop) -> Result<()> {
    let path = &arguments.receipt;
    let receipt = read_receipt_if(path, |bytes| match &arguments.pubkey {
        Some(public) => signing::check(path, bytes, public),
        None => Ok(()),
    })?;
    let client = arguments.access.client(ClientConfig::default())?;
    let drive = arguments.drive.unwrap_or(receipt.drive);
    let info = client
        .info(drive)
        .await
        .map_err(|failure| failure.into_error(&format!("Cannot look at drive {drive}")))?;
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
        jobs: arguments.jobs.get(),
        max_outage: arguments.max_outage,
    };
    let root = content.root();
    let content = Arc::new(content);
    let differing = match blocks.is_empty() {
        true => RangeSet::new(),
        false => inspect(&client, drive, &content, &options, stop).await?,
    };
    let coverage = Coverage {
        checked: count(&blocks),
        of,
    };
    let first = differing
        .first()
        .map(|range| range.start * content.block_plan().chunk_bytes());
    if arguments.json {
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
        exit::print(&format!("{object:#}\n"))?;
    }
    if let Some(first) = first {
        let what = format!(
            "Drive {drive} does not hold what its receipt tells: {} of {} blocks that were compared differ, the first at byte {first}",
            count(&differing),
            coverage.checked,
        );
        return Err(Error::new(ErrorKind::Integrity, what)
            .hint_to("Do not use it; publish the image again"));
    }
    if !arguments.json {
        let of_what = match arguments.shard {
            Some(shard) => format!("part {} of {}: ", shard.index(), shard.count()),
            None => String::new(),
        };
        let statement = coverage.statement();
        exit::print(&format!(
            "Drive {drive} holds what its receipt tells: {of_what}{statement}\n"
        ))?;
    }
    Ok(())
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
