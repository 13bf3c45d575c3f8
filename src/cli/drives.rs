//! Requests about drives that several commands make: list them, look at one, and remove one. A
//! request that fails is repeated, except where a function says otherwise.

use crate::advice::Advice;
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::driver::claim::{claim, in_use};
use crate::driver::info_full::info_full;
use crate::driver::patience::{Patience, Trial, Unanswered};
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::policy::Operation;
use crate::wire::ErrorType;

/// Maximum attempts to remove a drive that is busy although its `info` shows no claim. It may be
/// busy for a moment, while the endpoint ends an earlier request, so one refusal says little. If it
/// is still busy after two waits, something uses it, and waiting longer would not help the user.
const BUSY_ATTEMPTS: u32 = 3;

/// Passes each drive of the user on as it arrives.
///
/// If the answer breaks off, the list is requested again and starts over, so `each` may get a drive
/// twice: it has to recognise drives by their UUIDs.
///
/// # Errors
/// Errors of the endpoint.
pub(super) async fn each_drive(
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

/// The drives of the user that `is_wanted`.
///
/// # Errors
/// Errors of the endpoint.
pub(super) async fn drives_that(
    client: &Client,
    patience: &Patience,
    is_wanted: impl Fn(&DriveInfo) -> bool,
) -> Result<Vec<DriveInfo>> {
    let drives = || client.drives_that(&is_wanted);
    let drives = patience.call(client, Operation::Read, drives);
    drives.await.map_err(cannot_list)
}

fn cannot_list(unanswered: Unanswered) -> Error {
    unanswered.into_error_without_drive("Cannot list the drives")
}

/// One drive, with its counters, which some endpoints report only in `info/full`.
///
/// # Errors
/// Errors of the endpoint; [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if the drive does
/// not exist.
pub(super) async fn look_at_drive(
    client: &Client,
    drive: DriveId,
    patience: &Patience,
) -> Result<DriveInfo> {
    let look = || info_full(client, drive);
    let info = patience.call(client, Operation::Read, look).await;
    info.map_err(|unanswered| unanswered.into_error(&format!("Cannot look at drive {drive}")))
}

/// Destroys a drive with all its data, unless something uses it.
///
/// # Errors
/// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if it is in use; otherwise errors of the
/// endpoint.
pub(super) async fn remove_drive(
    client: &Client,
    drive: DriveId,
    patience: &Patience,
) -> Result<()> {
    let what = format!("Cannot remove drive {drive}");
    let info = patience.call(client, Operation::Read, || client.info(drive));
    let info = info
        .await
        .map_err(|unanswered| unanswered.into_error(&what))?;
    if let Some(by) = claim(&info) {
        return Err(in_use(client, &info, &by, Advice::default()).await);
    }
    let mut trial = Trial::of(patience);
    let (mut is_repeated, mut busy) = (false, 0);
    loop {
        let failure = match trial.attempt(client.destroy(drive)).await {
            Ok(_) => {
                trial.answered();
                return Ok(());
            }
            // An earlier attempt succeeded, and its answer was lost.
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
