//! What an endpoint reports about the data on a drive (docs/dev/extensions.md).

use std::ops::Range;

use super::patience::Patience;
use crate::api::Client;
use crate::drive::DriveId;
use crate::error::Result;
use crate::failure::Failure;
use crate::policy::Operation;
use crate::wire::{Extents, READ_BYTES_MAX};

/// Maximum number of extents that a verification remembers, 16 bytes each; what follows counts as
/// data, so it is read, which is correct and slower.
const UNPROVEN_MAX: usize = 1 << 16;

/// Treats an invalid answer about extents as no answer.
pub(crate) fn none_if_invalid(failure: Failure) -> Result<Option<Extents>, Failure> {
    match failure {
        Failure::NotApi(why) | Failure::WrongLength(why) => {
            tracing::debug!(
                why,
                "The endpoint does not report extents although it announced that"
            );
            Ok(None)
        }
        failure => Err(failure),
    }
}

/// The parts of these ranges, which should be zeros, that the endpoint does not report as a hole:
/// everything if it does not report holes. The order is that of `zeros`.
///
/// # Errors
/// If the endpoint does not answer for longer than an outage may last.
pub(crate) async fn not_holes(
    client: &Client,
    drive: DriveId,
    zeros: impl IntoIterator<Item = Range<u64>>,
    patience: &Patience,
) -> Result<Vec<Range<u64>>> {
    let mut left: Vec<Range<u64>> = Vec::new();
    let mut is_over = false;
    for mut range in zeros {
        while !range.is_empty() {
            let reported = match is_over {
                true => None,
                false => ask(client, drive, &range, patience).await?,
            };
            let Some(extents) =
                reported.filter(|extents| left.len() + extents.data().len() < UNPROVEN_MAX)
            else {
                is_over = true;
                add(&mut left, range);
                break;
            };
            // One read checks this much anyway. If an answer is about less, its start counts as
            // data, so that an endpoint with tiny answers does not cause endless requests.
            let read_end = range.end.min(range.start + READ_BYTES_MAX);
            if extents.end() < read_end {
                add(&mut left, range.start..read_end);
                range.start = read_end;
                continue;
            }
            for extent in extents.data() {
                add(&mut left, extent.clone());
            }
            range.start = extents.end();
        }
    }
    Ok(left)
}

/// What the endpoint reports about a range; `None` if it does not.
async fn ask(
    client: &Client,
    drive: DriveId,
    range: &Range<u64>,
    patience: &Patience,
) -> Result<Option<Extents>> {
    let ask = || async {
        client
            .extents(drive, range.clone())
            .await
            .or_else(none_if_invalid)
    };
    match patience.call(client, Operation::Read, ask).await {
        Ok(extents) => Ok(extents),
        Err(unanswered) if unanswered.outage.is_some() => {
            Err(unanswered.into_error(&format!("Cannot read drive {drive}")))
        }
        Err(_) => Ok(None),
    }
}

/// Appends a range that is after all others, or extends the last one if they touch.
fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
