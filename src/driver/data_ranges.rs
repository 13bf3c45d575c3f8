//! What an endpoint tells of the data on a drive (docs/dev/extensions.md).

use std::ops::Range;

use super::patience::Patience;
use crate::api::Client;
use crate::drive::DriveId;
use crate::error::Result;
use crate::failure::Failure;
use crate::policy::Operation;
use crate::wire::{Extents, READ_BYTES_MAX};

/// Most extents that a verification keeps in mind; what follows counts as data.
const UNPROVEN_MAX: usize = 1 << 16;

/// An answer about extents that cannot be one counts as none.
pub(crate) fn not_told(failure: Failure) -> Result<Option<Extents>, Failure> {
    match failure {
        Failure::NotApi(why) | Failure::WrongLength(why) => {
            tracing::debug!(why, "The endpoint does not tell extents after all");
            Ok(None)
        }
        failure => Err(failure),
    }
}

/// What of these bytes, which should be zeros, the endpoint does not call a hole:
/// all of it where it does not tell. In order, if they are.
///
/// # Errors
/// If the endpoint does not answer for longer than an outage is borne.
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
            let told = match is_over {
                true => None,
                false => ask(client, drive, &range, patience).await?,
            };
            let Some(extents) = told.filter(|told| left.len() + told.data().len() < UNPROVEN_MAX)
            else {
                is_over = true;
                add(&mut left, range);
                break;
            };
            let least = range.end.min(range.start + READ_BYTES_MAX);
            if extents.end() < least {
                add(&mut left, range.start..least);
                range.start = least;
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

/// What the endpoint tells of a range; `None` where it does not.
async fn ask(
    client: &Client,
    drive: DriveId,
    range: &Range<u64>,
    patience: &Patience,
) -> Result<Option<Extents>> {
    let ask = || async { client.extents(drive, range.clone()).await.or_else(not_told) };
    match patience.call(client, Operation::Read, ask).await {
        Ok(told) => Ok(told),
        Err(unanswered) if unanswered.outage.is_some() => {
            Err(unanswered.into_error(&format!("Cannot read drive {drive}")))
        }
        Err(_) => Ok(None),
    }
}

/// Adds a range after all others.
fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
