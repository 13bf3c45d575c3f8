//! Room on the drive for an image of unknown size. The drive is enlarged in steps, ahead of what is
//! written to it, and cut to its size at the end.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio::task::JoinHandle;

use crate::advice::Remedy;
use crate::amounts::exact_size;
use crate::api::Client;
use crate::chunk::is_zero;
use crate::drive::{DriveId, DriveInfo};
use crate::driver::patience::{Patience, Trial, Unanswered};
use crate::driver::read_range::DriveReader;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::policy::{Class, Operation, Requests, classify};
use crate::wire::{Properties, READ_BYTES_MAX};
use openhosting_base::advice;

/// The drive doubles, but grows by at most this much at once: more than necessary costs money, and
/// may exceed what the account allows.
const STEP_BYTES_MAX: u64 = 256 << 30;

/// The room on a drive.
#[derive(Debug)]
pub(super) struct Room {
    drive: Drive,
    size: u64,
    /// Whether the drive may be resized. A drive that existed before keeps its size.
    is_ours: bool,
    growth: Option<JoinHandle<Result<Grown>>>,
    /// Whether zeros are left out. Then all added space must read as zeros.
    leaves_zeros: bool,
    /// Whether all space that was added so far reads as zeros.
    is_zero: bool,
}

/// A drive after its growth.
#[derive(Debug)]
struct Grown {
    size: u64,
    /// Whether the start of the added space was proven to read as zeros.
    is_zero: bool,
}

#[derive(Clone, Debug)]
struct Drive {
    client: Client,
    id: DriveId,
    name: Option<String>,
    /// Each write holds this for reading, because a drive cannot be resized while it is written to.
    writes: Arc<RwLock<()>>,
    patience: Patience,
}

impl Room {
    pub(super) fn of(
        client: &Client,
        drive: &DriveInfo,
        is_ours: bool,
        patience: &Patience,
    ) -> Self {
        Self {
            drive: Drive {
                client: client.clone(),
                id: drive.id,
                name: drive.name().map(str::to_owned),
                writes: Arc::default(),
                patience: patience.clone(),
            },
            size: drive.size,
            is_ours,
            growth: None,
            leaves_zeros: false,
            is_zero: true,
        }
    }

    /// From now on zeros are left out.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if that would leave old bytes in added space.
    pub(super) fn leave_zeros(&mut self) -> Result<()> {
        self.leaves_zeros = true;
        self.check()
    }

    /// Space is added and zeros are left out at the same time, so both check this.
    fn check(&self) -> Result<()> {
        if self.is_zero || !self.leaves_zeros {
            return Ok(());
        }
        let what = format!(
            "What drive {} grew by is not proven to read as zeros",
            self.drive.id
        );
        Err(Error::new(ErrorKind::Rejected, what).hint_to(advice![
            "Pass ",
            Remedy::GiveSize,
            " and ",
            Remedy::Restart,
            " so that the drive is created at its final size",
        ]))
    }

    /// A turn to write, which ends when dropped.
    pub(super) fn turn(&self) -> impl Future<Output = OwnedRwLockReadGuard<()>> + Send + 'static {
        Arc::clone(&self.drive.writes).read_owned()
    }

    /// Makes room for all bytes before `end`. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if there is no more room; errors of the endpoint.
    pub(super) async fn reach(&mut self, end: u64) -> Result<()> {
        while self.size < end {
            if !self.is_ours {
                return Err(too_small(
                    &self.drive.client,
                    self.drive.id,
                    self.size,
                    end,
                    false,
                ));
            }
            let growth = match &mut self.growth {
                Some(growth) => growth,
                none => {
                    let (drive, size) = (self.drive.clone(), self.size);
                    none.insert(tokio::spawn(async move { drive.grow(size, end).await }))
                }
            };
            let grown = growth.await;
            self.growth = None;
            let panicked = |cause| Err(Error::new(ErrorKind::Bug, "Cannot grow").because(cause));
            let grown = grown.unwrap_or_else(panicked)?;
            self.size = grown.size;
            self.is_zero &= grown.is_zero;
            self.check()?;
        }
        Ok(())
    }

    /// The size of the drive for an image of `size` bytes.
    pub(super) fn size_for(&self, size: u64) -> u64 {
        if self.is_ours { size } else { self.size }
    }

    /// Cuts the drive to `size`, that of the image. Returns the reason if the endpoint refuses:
    /// then the drive is correct, but larger.
    ///
    /// # Errors
    /// Errors of the endpoint if another attempt may succeed.
    pub(super) async fn cut(self, size: u64) -> Result<Option<Failure>> {
        if !self.is_ours || self.size == size {
            return Ok(None);
        }
        match self.drive.set_size(size).await {
            Ok(_) => Ok(None),
            Err(unanswered) if is_refused(&unanswered) => Ok(Some(unanswered.failure)),
            Err(unanswered) => {
                let what = format!("Cannot cut drive {} to {}", self.drive.id, exact_size(size));
                Err(unanswered.into_error(&what))
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(growth) = &self.growth {
            growth.abort();
        }
    }
}

impl Drive {
    /// Enlarges the drive to hold at least all bytes before `end`, while nothing is written to it.
    async fn grow(&self, size: u64, end: u64) -> Result<Grown> {
        let mut wanted = next_size(size, end);
        let grown = loop {
            match self.set_size(wanted).await {
                Ok(grown) if grown >= end => break grown,
                Ok(grown) => return Err(too_small(&self.client, self.id, grown, end, true)),
                // This may exceed what the account allows; a smaller step may succeed.
                Err(unanswered) if wanted > end && is_refused(&unanswered) => wanted = end,
                Err(unanswered) => {
                    let what = format!("Cannot grow drive {} to {}", self.id, exact_size(wanted));
                    return Err(unanswered.into_error(&what));
                }
            }
        };
        Ok(Grown {
            size: grown,
            is_zero: self.is_zero(size..grown).await?,
        })
    }

    /// Whether the start of added space reads as zeros. A refusal proves nothing.
    async fn is_zero(&self, added: Range<u64>) -> Result<bool> {
        let (start, len) = (added.start, READ_BYTES_MAX.min(added.end - added.start));
        let reader = DriveReader {
            client: &self.client,
            drive: self.id,
            step_max: READ_BYTES_MAX,
        };
        let read = || async move {
            let mut requests = Requests::default();
            reader.read_all(start, len, &mut requests).await
        };
        let read = self
            .patience
            .call(&self.client, Operation::Read, read)
            .await;
        match read {
            Ok(bytes) => Ok(is_zero(&bytes)),
            Err(unanswered) if unanswered.outage.is_some() => {
                Err(unanswered.into_error(&format!("Cannot read drive {}", self.id)))
            }
            Err(_) => Ok(false),
        }
    }

    /// Sets the size, with repeated attempts, and returns the resulting size. Repeating it is
    /// harmless.
    async fn set_size(&self, size: u64) -> Result<u64, Unanswered> {
        let mut changes = Properties::new();
        let name = self.name.as_deref();
        // Both keys are always sent, as the service's own clients do (docs/dev/reference.md, 1.5).
        for (key, value) in [("name", name), ("size", Some(&*size.to_string()))] {
            if let Some(value) = value {
                let inserted = changes.insert(key, value);
                inserted.map_err(|error| Unanswered {
                    failure: Failure::NotApi(error.to_string()),
                    outage: None,
                })?;
            }
        }
        let mut trial = Trial::of(&self.patience);
        loop {
            let alone = self.writes.write().await;
            let done = trial.attempt(async {
                self.client.set(self.id, &changes).await?;
                self.client.info(self.id).await.map(|drive| drive.size)
            });
            let done = done.await;
            drop(alone);
            let failure = match done {
                Ok(size) => {
                    trial.answered();
                    return Ok(size);
                }
                Err(failure) => failure,
            };
            let is_known = self.client.has_answered();
            trial.after(Operation::Write, failure, is_known).await?;
        }
    }
}

/// Whether another attempt cannot succeed.
fn is_refused(unanswered: &Unanswered) -> bool {
    classify(Operation::Write, &unanswered.failure) == Class::Permanent
        && unanswered.outage.is_none()
}

/// The next size of a drive of `size` bytes that has to hold all bytes before `end`.
fn next_size(size: u64, end: u64) -> u64 {
    size.saturating_add(size.min(STEP_BYTES_MAX)).max(end)
}

/// The error for a drive of `has` bytes that needs `needed`.
pub(super) fn too_small(
    client: &Client,
    drive: DriveId,
    has: u64,
    needed: u64,
    is_ours: bool,
) -> Error {
    let who = match is_ours {
        true => "should have",
        false => "the image",
    };
    let what = format!(
        "Drive {drive} has {} and {who} {}: it does not fit",
        exact_size(has),
        exact_size(needed)
    );
    let set = client.commands().call(&format!("-c drives {drive} set"));
    Error::new(ErrorKind::Rejected, what).hint_to(format!(
        "Grow the drive first: echo 'size {needed}' | {set}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_drive_doubles_up_to_a_maximum_step() {
        const GIB: u64 = 1 << 30;
        assert_eq!(next_size(GIB, GIB + 1), 2 * GIB);
        assert_eq!(next_size(GIB, 5 * GIB), 5 * GIB);
        assert_eq!(next_size(1024 * GIB, 1025 * GIB), 1280 * GIB);
        assert_eq!(next_size(u64::MAX, u64::MAX), u64::MAX);
    }
}
