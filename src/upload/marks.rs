//! The mark on a drive that an upload to it has not ended. Every machine sees it, also where no
//! journal says so.

use crate::api::Client;
use crate::drive::{DriveInfo, PUBLISHED, READY, STATE_KEY, UPLOADING, state_of};
use crate::driver::patience::Unanswered;
use crate::error::{Error, ErrorKind, Result};
use crate::policy::{Operation, is_about_input};
use crate::wire::Properties;

use super::options::UploadOptions;

/// The mark, as a key of a new drive: it has the mark from its first moment.
pub(super) const MARK: (&str, &str) = (STATE_KEY, UPLOADING);

/// Whether the drive is published.
pub(super) fn is_published(drive: &DriveInfo) -> bool {
    state_of(&drive.properties) == Some(PUBLISHED)
}

/// Marks a drive that existed before, before the first byte is written to it: from then on it holds
/// neither what it held nor the image. That also ends its publication. Returns whether this upload
/// has to end the mark.
pub(super) async fn mark(
    client: &Client,
    drive: &DriveInfo,
    options: &UploadOptions,
) -> Result<bool> {
    let then = state_of(&drive.properties).unwrap_or_default();
    let now = match (options.shard, then) {
        // No shard knows whether the others have ended, so none could end the mark.
        (Some(_), PUBLISHED) => READY,
        (Some(_), _) => return Ok(false),
        // Of an upload that did not end: this one takes its place.
        (None, UPLOADING) => return Ok(true),
        (None, "" | READY | PUBLISHED) => UPLOADING,
        // A publication that did not end. It sets its own states.
        (None, _) => return Ok(false),
    };
    let keys = properties([(STATE_KEY, now)])?;
    match set(client, drive, &keys, options).await {
        Ok(()) => Ok(now == UPLOADING),
        // The endpoint takes no such key. That costs the mark, and nothing else.
        Err(refused) if then != PUBLISHED && is_about_input(&refused.failure) => Ok(false),
        Err(unanswered) => {
            let what = match then {
                PUBLISHED => format!("Cannot end the publication of drive {}", drive.id),
                _ => format!("Cannot mark drive {} as unfinished", drive.id),
            };
            Err(unanswered.into_error(&what))
        }
    }
}

/// Ends the mark, and sets `more` in the same request.
///
/// # Errors
/// Errors of the endpoint. The upload can be resumed then: nothing is left to do but this.
pub(super) async fn end(
    client: &Client,
    drive: &DriveInfo,
    more: Option<(&str, &str)>,
    options: &UploadOptions,
) -> Result<()> {
    let keys = properties(std::iter::once((STATE_KEY, READY)).chain(more))?;
    set(client, drive, &keys, options)
        .await
        .map_err(|unanswered| {
            let id = drive.id;
            unanswered.into_error(&format!(
                "All of the image is on drive {id}, but the drive cannot be marked as ready"
            ))
        })
}

fn properties<'k>(pairs: impl IntoIterator<Item = (&'k str, &'k str)>) -> Result<Properties> {
    Properties::of(pairs)
        .map_err(|cause| Error::new(ErrorKind::Bug, "Cannot describe the drive").because(cause))
}

async fn set(
    client: &Client,
    drive: &DriveInfo,
    keys: &Properties,
    options: &UploadOptions,
) -> Result<(), Unanswered> {
    let set = || client.set(drive.id, keys);
    options.patience.call(client, Operation::Write, set).await
}
