//! Drives as people see them: all of them, one by its name, one less. Requests that may
//! be made again are.

use tokio::time::sleep;

use super::patient::{CALL_ATTEMPTS, patiently};
use super::shell::{claim, claimed};
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo, only_named};
use crate::error::Result;
use crate::failure::Failure;
use crate::policy::{Attempts, Operation};

/// All drives of the user.
///
/// # Errors
/// What the endpoint says.
pub async fn list_drives(client: &Client) -> Result<Vec<DriveInfo>> {
    let mut rng = fastrand::Rng::new();
    let drives = patiently(CALL_ATTEMPTS, &mut rng, || client.drives()).await;
    drives.map_err(|failure| failure.into_error("Cannot list the drives"))
}

/// One drive, with its counters where the endpoint tells them in full info only.
///
/// # Errors
/// What the endpoint says; [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there
/// is no such drive.
pub async fn look_at_drive(client: &Client, drive: DriveId) -> Result<DriveInfo> {
    let mut rng = fastrand::Rng::new();
    let full = patiently(CALL_ATTEMPTS, &mut rng, || client.info_full(drive)).await;
    let info = match full {
        // A cloud that does not know the call, or no such drive: the plain one tells.
        Err(Failure::Refused(refusal)) if matches!(refusal.status, 400 | 404 | 405) => {
            patiently(CALL_ATTEMPTS, &mut rng, || client.info(drive)).await
        }
        full => full,
    };
    info.map_err(|failure| failure.into_error(&format!("Cannot look at drive {drive}")))
}

/// The one drive of this name.
///
/// # Errors
/// What the endpoint says, and that of [`only_named`].
pub async fn find_drive(client: &Client, name: &str) -> Result<DriveInfo> {
    let drives = list_drives(client).await?;
    only_named(&drives, name).cloned()
}

/// Destroys a drive and all that is on it, unless somebody uses it.
///
/// # Errors
/// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if it is in use; else what the
/// endpoint says.
pub async fn remove_drive(client: &Client, drive: DriveId) -> Result<()> {
    let mut rng = fastrand::Rng::new();
    let what = format!("Cannot remove drive {drive}");
    let info = patiently(CALL_ATTEMPTS, &mut rng, || client.info(drive)).await;
    let info = info.map_err(|failure| failure.into_error(&what))?;
    if let Some(by) = claim(&info) {
        return Err(claimed(drive, &by));
    }
    let mut attempts = Attempts::at_most(CALL_ATTEMPTS);
    let mut is_repeated = false;
    loop {
        let failure = match client.destroy(drive).await {
            Ok(_) => return Ok(()),
            // An attempt before was done, and its answer lost.
            Err(Failure::Refused(refusal)) if refusal.status == 404 && is_repeated => {
                return Ok(());
            }
            Err(failure) => failure,
        };
        is_repeated |= failure.is_ambiguous();
        match attempts.failed(Operation::Write, &failure, &mut rng) {
            Some(wait) => sleep(wait).await,
            None => return Err(failure.into_error(&what)),
        }
    }
}
