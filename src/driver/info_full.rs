//! A drive with its counters, which some endpoints report only in `info/full`, and which others do
//! not report at all.

use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::failure::Failure;

/// One drive, with its counters if the endpoint reports them. A single attempt.
pub(crate) async fn info_full(client: &Client, drive: DriveId) -> Result<DriveInfo, Failure> {
    match client.info_full(drive).await {
        // The cloud does not support the call, or the drive does not exist: plain `info` will show
        // which. How a cloud answers a call that it does not know is not documented, so 400 (bad
        // input) and 405 (method not allowed) count as well as 404.
        Err(Failure::Refused(refusal)) if matches!(refusal.status, 400 | 404 | 405) => {
            client.info(drive).await
        }
        full => full,
    }
}
