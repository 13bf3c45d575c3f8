//! Reads a range of a drive. What was received in order before a connection broke is kept, and only
//! the rest is requested again.

use crate::api::{Client, TRICKLE_BYTES_MAX};
use crate::chunk::RequestSize;
use crate::drive::DriveId;
use crate::failure::Failure;
use crate::policy::{PIECE_BYTES_MIN, Requests};

// Otherwise a server could trickle for ever: what each answer brought before it was aborted would
// count as progress.
const _: () = assert!(TRICKLE_BYTES_MAX <= PIECE_BYTES_MIN);

/// Reads one drive, in requests of at most `step_max` bytes.
#[derive(Clone, Copy)]
pub(crate) struct DriveReader<'a> {
    pub(crate) client: &'a Client,
    pub(crate) drive: DriveId,
    pub(crate) step_max: u64,
}

impl DriveReader<'_> {
    /// Fills `bytes` from `offset` of the drive. If a connection breaks after some bytes were
    /// received, the rest is requested at once; the caller decides about other failures.
    ///
    /// # Errors
    /// The failure of a request that returned almost nothing. As many bytes as
    /// `requests.advanced_bytes` increased by are valid nevertheless.
    pub(crate) async fn read(
        self,
        offset: u64,
        bytes: &mut [u8],
        requests: &mut Requests,
    ) -> Result<(), Failure> {
        let step_max = usize::try_from(self.step_max).unwrap_or(usize::MAX).max(1);
        let mut filled = 0;
        while filled < bytes.len() {
            let end = bytes.len().min(filled.saturating_add(step_max));
            let step = &mut bytes[filled..end];
            let size = RequestSize::plain(step.len() as u64);
            let mut came = 0;
            let read = self
                .client
                .read_into(self.drive, offset + filled as u64, step, &mut came)
                .await;
            filled += came;
            match read {
                Ok(()) => requests.confirm(size),
                Err(failure) => {
                    requests.advanced_bytes += came as u64;
                    if came as u64 >= PIECE_BYTES_MIN && failure.is_break() {
                        tracing::debug!(offset, came, %failure, "requesting the rest");
                        continue;
                    }
                    requests.failed = Some(size);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// As [`DriveReader::read`], for a caller that needs only the bytes.
    ///
    /// # Errors
    /// The failure of a request that returned almost nothing.
    pub(crate) async fn read_all(
        self,
        offset: u64,
        len: u64,
        requests: &mut Requests,
    ) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(offset, &mut bytes, requests).await?;
        Ok(bytes)
    }
}
