//! `openhosting verify`: does a drive hold what its receipt lists?

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rangemap::RangeSet;
use serde_json::{Value, json};

use super::access::Access;
use super::display::{Display, shard_of_many};
use super::drive_reference::DriveReference;
use super::drive_state;
use super::drives::look_at_drive;
use super::github::Report;
use super::output::OutputForm;
use super::showing::{DisplayArguments, ShownRun, Way};
use super::shown_run::RunOutcome;
use super::{arguments, candidates, complete, help, screen, signing};
use crate::advice::{Advice, Remedy};
use crate::amounts::{counted, exact_size};
use crate::api::ClientConfig;
use crate::content::{Content, blocks_in, count, set_of};
use crate::drive::{Condition, DriveId, DriveInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Event, Monitor as _};
use crate::plan::Plan;
use crate::publish::keys::publication;
use crate::publish::pick;
use crate::publish::receipts::read_receipt_if;
use crate::publish::selection::Several;
use crate::receipt::{Coverage, Receipt};
use crate::shard::Shard;
use crate::transfer::{InspectOptions, Inspection, JOBS_DEFAULT, Patience, Stop};

const PROGRAM: &str = "openhosting verify";
pub(super) const FORM: OutputForm = OutputForm::new(PROGRAM, "verify/1");

/// Compares a drive with the receipt of its publication
///
/// It compares all blocks, or a random sample. After a sample, it prints how likely the sample was
/// to find a change. If the endpoint can compute digests, no byte of the drive is transferred.
#[derive(Debug, Parser)]
#[command(name = "openhosting-verify", bin_name = PROGRAM, version, after_long_help = help::after("verify"))]
pub(super) struct VerifyArguments {
    /// Compare P percent of the blocks, at random [default: all]
    #[arg(long, value_name = "P", value_parser = percent)]
    sample: Option<f64>,

    /// Compare shard I of N
    ///
    /// I counts from 1.
    #[arg(long, value_name = "I/N", hide_short_help = true, help_heading = help::MACHINES)]
    shard: Option<Shard>,

    /// Refuse RECEIPT unless it has a valid signature by KEY
    ///
    /// The signature is in RECEIPT.minisig. KEY is a public key of minisign: a file, or the line
    /// in it.
    #[arg(long, value_name = "KEY", add = candidates::files())]
    pubkey: Option<String>,

    /// Compare this drive instead of the receipt's
    #[arg(short, long, value_name = "DRIVE", add = complete::drives())]
    drive: Option<DriveReference>,

    /// Print one JSON object instead of a line
    #[arg(short = 'J', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Use at most N concurrent requests [default: 64]
    ///
    /// The number adapts to the link.
    #[arg(hide_default_value = true, short, long, value_name = "N", default_value_t = JOBS_DEFAULT, value_parser = arguments::jobs)]
    jobs: NonZeroU32,

    /// Give up after this long without progress
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = arguments::time, hide_short_help = true, help_heading = help::SPEED)]
    max_outage: Duration,

    #[command(flatten)]
    showing: DisplayArguments,

    /// Receipt that "openhosting publish --receipt" wrote
    #[arg(value_name = "RECEIPT", add = candidates::files())]
    receipt: PathBuf,
}

/// The line about a receipt whose signature was demanded.
const SIGNED: &str = "The signature of the receipt is valid";

/// Parses a percentage.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err(format!(
            "{text:?} is not a percentage. Use a number above 0 and up to 100"
        )),
    }
}

/// The command.
pub(super) fn main(arguments: &VerifyArguments) -> ExitCode {
    let receipt = arguments.receipt.to_string_lossy();
    let run = ShownRun {
        form: FORM,
        is_json: arguments.json,
        way: Way::Verify,
        showing: &arguments.showing,
        about: &receipt,
        deadline: None,
    };
    run.run(async |display, stop| {
        display.drive = arguments.drive.as_ref().and_then(DriveReference::id);
        let compared = compare(arguments, display, stop).await;
        let report = display.report(vec![("Receipt", receipt.clone().into_owned())]);
        match compared {
            Ok(compared) => compared.outcome(report),
            Err(error) => RunOutcome::failed(error, Some(Value::Null), report),
        }
    })
}

/// The result of a comparison.
struct Compared {
    drive: DriveId,
    /// The drive that the receipt is of.
    receipt_drive: DriveId,
    /// Whether the drive that was compared was published, so that there is a receipt of it.
    is_published: bool,
    /// Whether the receipt has a valid signature by the key of --pubkey.
    is_signed: bool,
    content: Arc<Content>,
    shard: Option<Shard>,
    /// The blocks that were compared, and how many there are.
    blocks: RangeSet<u64>,
    of: u64,
    /// The blocks that differ.
    differing: RangeSet<u64>,
}

async fn compare(
    arguments: &VerifyArguments,
    display: &mut Display,
    mut stop: Stop,
) -> Result<Compared> {
    let receipt = receipt_of(arguments).map_err(with_other_way)?;
    let patience = Patience::new(arguments.max_outage);
    let config = ClientConfig {
        outage: arguments.max_outage,
        ..ClientConfig::default()
    };
    let client = arguments.access.client(config, &mut stop).await?;
    display.part = arguments.shard;
    display.begin(None);
    let looked = stop.unless_asked(async {
        let drive = match &arguments.drive {
            None => receipt.drive,
            Some(named) => named.find(&client, &patience, Several::Newest).await?,
        };
        look_at_drive(&client, drive, &patience).await
    });
    let info = patience.watching(display, looked).await?;
    let drive = info.id;
    display.drive = Some(drive);
    warn_of_condition(&info, display).await?;
    let content = Arc::new(receipt.content);
    if info.size < content.size() {
        let what = format!(
            "Drive {drive} has {}, less than the {} of its receipt",
            exact_size(info.size),
            exact_size(content.size())
        );
        return Err(Error::new(ErrorKind::Integrity, what));
    }
    let all = content.block_plan().count();
    let blocks = part(arguments.shard, content.plan().count(), all);
    let of = count(blocks.iter());
    let blocks = match arguments.sample {
        // At least one block, because the percentage is above zero.
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
        widens: false,
        open: 1,
        jobs: arguments.jobs.get(),
        patience,
    };
    let differing = if blocks.is_empty() {
        RangeSet::new()
    } else {
        let inspection = Inspection {
            client: &client,
            drive,
            content: &content,
            options: &options,
        };
        inspection.run(display, stop).await?
    };
    Ok(Compared {
        drive,
        receipt_drive: receipt.drive,
        is_published: publication(&info).is_some_and(|it| it.published_ms.is_some()),
        is_signed: arguments.pubkey.is_some(),
        content,
        shard: arguments.shard,
        blocks,
        of,
        differing,
    })
}

/// Reads the receipt, and checks its signature if that is demanded.
fn receipt_of(arguments: &VerifyArguments) -> Result<Receipt> {
    let path = &arguments.receipt;
    read_receipt_if(path, |bytes| match &arguments.pubkey {
        Some(public) => signing::check(path, bytes, public),
        None => Ok(()),
    })
}

/// Adds to the advice to publish with a receipt what needs none.
fn with_other_way(error: Error) -> Error {
    let is_it = |hint: &Advice| hint.remedies().any(|it| *it == Remedy::WriteReceipt);
    match error.hint().filter(|hint| is_it(hint)).cloned() {
        Some(mut hint) => {
            hint.push(". An upload with --verify full compares the drive with the image itself");
            error.hint_to(hint)
        }
        None => error,
    }
}

/// Warns if what the drive holds may be wrong or incomplete: differences are expected then.
async fn warn_of_condition(drive: &DriveInfo, display: &mut Display) -> Result<()> {
    let uploads = drive_state::look().await?;
    if let Some(line) = Condition::warning(drive, &uploads) {
        display.event(&Event::Warning(line.into()));
    }
    Ok(())
}

impl Compared {
    fn outcome(&self, mut report: Report) -> RunOutcome<'static> {
        let (drive, root) = (self.drive, self.content.root());
        let coverage = Coverage {
            checked: count(self.blocks.iter()),
            of: self.of,
        };
        let differing = count(self.differing.iter());
        let plan = self.content.block_plan();
        let first = self.differing.first();
        let first = first.map(|range| range.start * plan.chunk_bytes());
        report.digest = Some(root);
        report.rows.push(("Compared", coverage.statement()));
        report
            .rows
            .push(("Blocks that differ", differing.to_string()));
        let mut outcome = RunOutcome {
            verified_bytes: Some(bytes_of(&self.blocks, &plan)),
            object: Some(json!({
                "drive": drive.to_string(),
                "root": root.to_string(),
                "is_same": first.is_none(),
                "blocks": coverage.checked,
                "of": coverage.of,
                "differing": differing,
                "first_differing_byte": first,
                "sees_change_of_1_percent": coverage.confidence(coverage.of.div_ceil(100)),
                "sees_change_of_one_block": coverage.confidence(1),
            })),
            report,
            ..RunOutcome::default()
        };
        if let Some(first) = first {
            let (subject, hint) = match self.receipt_drive {
                its if its == drive => (
                    format!("Drive {drive} does not hold what its receipt lists"),
                    "Do not use it; publish the image again".to_owned(),
                ),
                other => (
                    format!("Drive {drive} does not hold what the receipt of drive {other} lists"),
                    match self.is_published {
                        true => format!("Use the receipt of drive {drive}"),
                        false => format!("Drive {drive} was not published, so it has no receipt"),
                    },
                ),
            };
            let what = format!(
                "{subject}: it differs in {differing} of {} that were compared, the first at byte {first}",
                counted(coverage.checked, "block"),
            );
            outcome.error = Some(Error::new(ErrorKind::Integrity, what).hint_to(hint));
        } else {
            let of_what = match self.shard {
                Some(shard) => format!("{}: ", shard_of_many(shard)),
                None => String::new(),
            };
            let Coverage { checked, of } = coverage;
            let line = match checked >= of {
                true => format!(
                    "Drive {drive} holds what its receipt lists: {of_what}{}",
                    coverage.statement()
                ),
                // The rest of the drive may differ.
                false => format!(
                    "Drive {drive}: {of_what}no difference in {checked} of {of} blocks. {}",
                    coverage.odds()
                ),
            };
            let signature = self.is_signed.then_some(SIGNED);
            let lines = signature.into_iter().chain([&*line]);
            let lines = lines.flat_map(|line| screen::stdout_lines(line, 0));
            outcome.text = lines.map(|line| line + "\n").collect();
        }
        outcome
    }
}

/// Total bytes of these blocks.
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
