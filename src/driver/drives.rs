//! Drives as people see them: all of them, one by its name, one less. Requests that may
//! be made again are.

use super::claim::{claim, in_use};
use super::patience::{Patience, Trial, Unanswered};
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::policy::Operation;
use crate::wire::ErrorType;
use uuid::Uuid;

/// Attempts to remove a drive that is in use, as far as is seen at the attempt only.
const BUSY_ATTEMPTS: u32 = 3;

/// All drives of the user, each as it comes; again from the first one where that broke off.
///
/// # Errors
/// What the endpoint says.
pub async fn each_drive(
    client: &Client,
    patience: &Patience,
    mut each: impl AsyncFnMut(DriveInfo),
) -> Result<()> {
    let mut trial = Trial::of(patience);
    loop {
        match trial.attempt(client.each_drive(&mut each)).await {
            Ok(()) => {
                trial.answered();
                return Ok(());
            }
            Err(failure) => {
                let again = trial.after(Operation::Read, failure, client.has_answered());
                again.await.map_err(cannot_list)?;
            }
        }
    }
}

/// Those drives of the user that are wanted.
///
/// # Errors
/// What the endpoint says.
pub async fn drives_that(
    client: &Client,
    patience: &Patience,
    is_wanted: impl Fn(&DriveInfo) -> bool,
) -> Result<Vec<DriveInfo>> {
    let drives = || client.drives_that(&is_wanted);
    let drives = patience.call(client, Operation::Read, drives);
    drives.await.map_err(cannot_list)
}

fn cannot_list(unanswered: Unanswered) -> Error {
    unanswered.into_error("Cannot list the drives")
}

/// One drive, with its counters where the endpoint tells them in full info only.
///
/// # Errors
/// What the endpoint says; [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there
/// is no such drive.
pub async fn look_at_drive(
    client: &Client,
    drive: DriveId,
    patience: &Patience,
) -> Result<DriveInfo> {
    let look = || async move {
        match client.info_full(drive).await {
            // A cloud that does not know the call, or no such drive: the plain one tells.
            Err(Failure::Refused(refusal)) if matches!(refusal.status, 400 | 404 | 405) => {
                client.info(drive).await
            }
            full => full,
        }
    };
    let info = patience.call(client, Operation::Read, look).await;
    info.map_err(|unanswered| unanswered.into_error(&format!("Cannot look at drive {drive}")))
}

/// The name of a server, if the endpoint tells it. Asked once: it is for people only.
pub async fn server_name(client: &Client, server: Uuid) -> Option<String> {
    client.server_name(server).await.ok().flatten()
}

/// Destroys a drive and all that is on it, unless somebody uses it.
///
/// # Errors
/// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if it is in use; else what the
/// endpoint says.
pub async fn remove_drive(client: &Client, drive: DriveId, patience: &Patience) -> Result<()> {
    let what = format!("Cannot remove drive {drive}");
    let info = patience.call(client, Operation::Read, || client.info(drive));
    let info = info
        .await
        .map_err(|unanswered| unanswered.into_error(&what))?;
    if let Some(by) = claim(&info) {
        return Err(in_use(client, &info, &by, "").await);
    }
    let mut trial = Trial::of(patience);
    let (mut is_repeated, mut busy) = (false, 0);
    loop {
        let failure = match trial.attempt(client.destroy(drive)).await {
            Ok(_) => {
                trial.answered();
                return Ok(());
            }
            // An attempt before was done, and its answer lost.
            Err(Failure::Refused(refusal)) if refusal.status == 404 && is_repeated => {
                return Ok(());
            }
            Err(failure) => failure,
        };
        is_repeated |= failure.is_ambiguous();
        busy += u32::from(is_busy(&failure));
        if busy >= BUSY_ATTEMPTS {
            return Err(failure.into_error(&what));
        }
        let again = trial.after(Operation::Write, failure, client.has_answered());
        again
            .await
            .map_err(|unanswered| unanswered.into_error(&what))?;
    }
}

fn is_busy(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(refusal) => {
            refusal.status == 409 || refusal.error == Some(ErrorType::Busy)
        }
        _ => false,
    }
}
