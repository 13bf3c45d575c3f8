//! Which servers use a drive (docs/dev/reference.md, 5.3). An active server claims its drives from
//! its start to its end. A drive with `claim:type exclusive`, the default, has at most one claim; a
//! shared drive can have many.
//!
//! A claim is checked and added in one step under the lock of the drive ([`Drive::claim`]).
//! Otherwise two servers that start at the same time could both find an exclusive drive free.
//!
//! A claim ends when its [`Claim`] is dropped, so a server that fails to start leaves none behind.
//! Claims are not stored. After a restart, the servers whose QEMU still runs claim their drives again
//! before the first request is served; otherwise a request could change a drive under a guest.
//!
//! The component that serves the drives implements [`Drives`] and [`Drive`]. It uses these claims to
//! refuse writes, resizing and removal.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::ids::{MachineId, Slot};
use openhosting_base::drive::DriveId;
use openhosting_tenancy::{Counters, Refusal};

/// The drives that servers may use.
pub trait Drives: fmt::Debug + Send + Sync {
    /// The drive `id`, if `user` may read it.
    fn readable(&self, user: &str, id: DriveId) -> Result<Arc<dyn Drive>, Refusal>;
}

/// A drive that servers may use.
pub trait Drive: fmt::Debug + Send + Sync {
    /// Whether a server of `user` could claim it at `slot` now.
    fn check(&self, user: &str, slot: Slot, may_write: bool) -> Result<(), Refusal>;

    /// Claims it until the claim is dropped, if [`check`](Self::check) and its current users allow
    /// that at this moment.
    fn claim(self: Arc<Self>, holder: Holder) -> Result<Claim, Refusal>;

    /// Ends a claim.
    fn release(&self, holder: &Holder);

    /// The file with its bytes.
    fn path(&self) -> &Path;

    /// Its size in bytes, which does not change while it is claimed.
    fn size(&self) -> u64;

    /// Whether more than one server may claim it.
    fn is_shared(&self) -> bool;

    /// Adds what a guest read and wrote to the drive's counters.
    fn count_guest(&self, more: Counters);
}

/// The holder of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The owner of the server.
    pub user: String,
    /// The host that this server runs on.
    pub host: Uuid,
    /// The server.
    pub server: MachineId,
    /// Where the drive is attached to it.
    pub slot: Slot,
    /// Whether the guest may write to the drive.
    pub may_write: bool,
}

/// The claims on one drive.
#[derive(Debug, Default)]
pub struct Claims(Vec<Holder>);

impl Claims {
    /// Adds a claim, if the others allow it.
    pub fn add(&mut self, holder: Holder, is_shared: bool) -> Result<(), Refusal> {
        match self.0.first() {
            Some(first) if !is_shared => Err(Refusal::busy(format!(
                "Drive is busy: server {} claims it exclusively",
                first.server
            ))),
            _ => {
                self.0.push(holder);
                Ok(())
            }
        }
    }

    /// Removes the claim of `holder`.
    pub fn remove(&mut self, holder: &Holder) {
        self.0.retain(|other| other != holder);
    }

    /// Whether the drive has no claim.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all claims are those of other users than `owner`, whose servers cannot write.
    pub fn are_of_others(&self, owner: &str) -> bool {
        let mut all = self.0.iter();
        all.all(|holder| holder.user != owner && !holder.may_write)
    }

    /// Whether any guest may write to the drive.
    pub fn may_write(&self) -> bool {
        self.0.iter().any(|holder| holder.may_write)
    }

    /// The value of the key `claimed`, as in recorded answers: `HOST:guest:SERVER:DEVICE`,
    /// separated by spaces. `None` without a claim.
    pub fn as_text(&self) -> Option<String> {
        let one = |h: &Holder| format!("{}:guest:{}:{}", h.host, h.server, h.slot);
        let all: Vec<_> = self.0.iter().map(one).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

/// A claim; ends when dropped.
#[derive(Debug)]
pub struct Claim {
    pub(crate) drive: Arc<dyn Drive>,
    holder: Holder,
}

impl Claim {
    /// The claim that was just added to `drive`.
    pub fn new(drive: Arc<dyn Drive>, holder: Holder) -> Self {
        Self { drive, holder }
    }

    /// Where the drive is attached.
    pub fn slot(&self) -> Slot {
        self.holder.slot
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.drive.release(&self.holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(server: u128) -> Holder {
        Holder {
            user: "user".into(),
            host: Uuid::from_u128(1),
            server: MachineId::from_u128(server),
            slot: Slot::Ide(0, 0),
            may_write: true,
        }
    }

    #[test]
    fn an_exclusive_drive_has_one_claim_and_a_shared_one_many() {
        let mut claims = Claims::default();
        assert_eq!(claims.as_text(), None);
        claims.add(holder(2), false).unwrap();
        let refusal = claims.add(holder(3), false).unwrap_err();
        assert_eq!(refusal.error().status(), 409);
        claims.add(holder(3), true).unwrap();
        assert_eq!(
            claims.as_text().unwrap(),
            "00000000-0000-0000-0000-000000000001:guest:00000000-0000-0000-0000-000000000002:ide:0:0 \
             00000000-0000-0000-0000-000000000001:guest:00000000-0000-0000-0000-000000000003:ide:0:0"
        );
        claims.remove(&holder(2));
        assert!(claims.may_write());
        claims.remove(&holder(3));
        assert!(claims.is_empty());
    }
}
