//! The mark on a drive that an upload to it has not ended. Every machine sees it, also where no
//! journal says so.
//!
//! With the mark, an upload stores its own token on the drive. Of two uploads that run at the same
//! time, each finds at its end, or when it resumes, that the token is no longer its own:
//!
//! - The one that began first finds the token of the other, says so, and replaces it by one that is
//!   nobody's. By that, the other finds out too.
//! - The one that began last may end first, while the other still writes. If it found the mark of
//!   the other when it began, it reads back everything at its end.

use uuid::Uuid;

use crate::advice::Remedy;
use crate::api::Client;
use crate::drive::{
    CHECK_FAILED, CHECK_KEY, CHECK_PASSED, DriveInfo, PUBLISHED, READY, STATE_KEY, UPLOADING,
    state_of,
};
use crate::driver::patience::Unanswered;
use crate::error::{Error, ErrorKind, Result};
use crate::policy::{Operation, TOKEN_KEY, is_about_input};
use crate::wire::Properties;
use openhosting_base::advice;

use super::options::UploadOptions;

/// The mark, as a key of a new drive: it has the mark from its first moment.
pub(super) const MARK: (&str, &str) = (STATE_KEY, UPLOADING);

/// The mark of a drive, as an upload finds or makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// There is none that this upload has to end.
    None,
    /// This upload has to end it.
    Ours,
    /// As [`Ours`](Self::Ours), and it was that of another upload, which may still run.
    TakenOver,
}

impl Mark {
    /// The mark of a drive that was created with it, or without.
    pub(super) fn of_new(is_marked: bool) -> Self {
        match is_marked {
            true => Self::Ours,
            false => Self::None,
        }
    }
}

/// Whether the drive is published.
pub(super) fn is_published(drive: &DriveInfo) -> bool {
    state_of(&drive.properties) == Some(PUBLISHED)
}

/// Marks a drive that existed before, before the first byte is written to it: from then on it holds
/// neither what it held nor the image. That also ends its publication. `token` is that of this
/// upload.
pub(super) async fn mark(
    client: &Client,
    drive: &DriveInfo,
    token: &str,
    options: &UploadOptions,
) -> Result<Mark> {
    let then = state_of(&drive.properties).unwrap_or_default();
    let (keys, mark) = match (options.shard, then) {
        // No shard knows whether the others have ended, so none could end the mark.
        (Some(_), PUBLISHED) => (properties([(STATE_KEY, READY)])?, Mark::None),
        (Some(_), _) => return Ok(Mark::None),
        // Of an earlier run of this upload.
        (None, UPLOADING) if token_of(drive) == Some(token) => return Ok(Mark::Ours),
        (None, "" | UPLOADING | READY | PUBLISHED) => {
            // Who compares, or names an offset, knows of the other upload and continues it.
            let continues = options.compare || options.offset > 0;
            let mark = match then == UPLOADING && !continues {
                true => Mark::TakenOver,
                false => Mark::Ours,
            };
            (properties([MARK, (TOKEN_KEY, token)])?, mark)
        }
        // A publication that did not end. It sets its own states.
        (None, _) => return Ok(Mark::None),
    };
    match set(client, drive, &keys, options).await {
        Ok(()) => Ok(mark),
        // The endpoint takes no such key. That costs the mark, and nothing else.
        Err(refused) if then != PUBLISHED && is_about_input(&refused.failure) => Ok(Mark::None),
        Err(unanswered) => {
            let what = match then {
                PUBLISHED => format!("Cannot end the publication of drive {}", drive.id),
                _ => format!("Cannot mark drive {} as unfinished", drive.id),
            };
            Err(unanswered.into_error(&what))
        }
    }
}

/// Ends the mark, and sets `more` in the same request. `drive` is as this run found it.
///
/// # Errors
/// [`ErrorKind::Integrity`] if another upload has written to the drive meanwhile. Otherwise errors
/// of the endpoint. The upload can be resumed then: nothing is left to do but this.
pub(super) async fn end(
    client: &Client,
    drive: &DriveInfo,
    token: &str,
    more: Option<(&str, &str)>,
    options: &UploadOptions,
) -> Result<()> {
    let id = drive.id;
    let failed = |unanswered: Unanswered| {
        unanswered.into_error(&format!(
            "All of the image is on drive {id}, but the drive cannot be marked as ready"
        ))
    };
    let info = || client.info(id);
    let now = options.patience.call(client, Operation::Read, info).await;
    let now = now.map_err(failed)?;
    // An endpoint that does not store the token still has that of earlier.
    if token_of(&now).is_some_and(|now| now != token && Some(now) != token_of(drive)) {
        let what = format!(
            "Another upload has written to drive {id} at the same time: the drive may hold parts of both images"
        );
        return Err(Error::new(ErrorKind::Integrity, what).hint_to(format!(
            "Wait until that one has ended, and then upload the right image again with -d {id}"
        )));
    }
    let keys = properties(std::iter::once((STATE_KEY, READY)).chain(more))?;
    set(client, drive, &keys, options).await.map_err(failed)
}

/// The error for an upload that resumes, if another one has written to its drive meanwhile: what
/// the journal calls done may be gone.
pub(super) fn check_resumed(drive: &DriveInfo, token: &str) -> Result<()> {
    let is_marked = [UPLOADING, READY, PUBLISHED]
        .map(Some)
        .contains(&state_of(&drive.properties));
    if !is_marked || token_of(drive).is_none_or(|now| now == token) {
        return Ok(());
    }
    let what = format!(
        "Another upload has written to drive {} since this one stopped",
        drive.id
    );
    Err(Error::new(ErrorKind::Integrity, what).hint_to(advice![
        "Compare with the drive with ",
        Remedy::Restart,
        " ",
        Remedy::CompareWithDrive(Some(drive.id.into())),
        ", or send everything again with ",
        Remedy::Restart,
    ]))
}

/// The keys of a drive that holds wrong bytes. The new token is nobody's, so that any other upload
/// that runs finds at its end that it was not alone.
pub(super) fn keys_of_failed() -> Result<Properties> {
    let token = Uuid::new_v4().as_simple().to_string();
    properties([(CHECK_KEY, CHECK_FAILED), (TOKEN_KEY, &token)])
}

/// The keys of a drive that held wrong bytes, and holds the image now.
pub(super) fn keys_of_passed() -> Result<Properties> {
    properties([(CHECK_KEY, CHECK_PASSED)])
}

fn token_of(drive: &DriveInfo) -> Option<&str> {
    drive
        .properties
        .get(TOKEN_KEY)
        .map(str::trim)
        .filter(|token| !token.is_empty())
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
