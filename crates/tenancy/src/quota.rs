//! What a user may have: drives and their bytes, servers, addresses, private networks, and
//! the memory and cores of servers that are active.
//!
//! The bytes of a user are the declared sizes of drives, not the space that they occupy on the
//! disk. So a user can predict the total, and what was granted can always be written. Exceeding a
//! quota is refused with 402 `billing`, because the account does not cover more. 507 `full` is
//! reserved for a disk that has no space left for anybody (docs/dev/reference.md, 3.3).

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use openhosting_base::locks::lock;

use crate::refusal::Refusal;

/// The kinds of things that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaKind {
    /// Drives.
    Drives,
    /// Bytes of drives.
    Bytes,
    /// Servers, active or not.
    Servers,
    /// Addresses that are resources.
    Addresses,
    /// Private networks.
    Vlans,
    /// Bytes of memory of active servers.
    Memory,
    /// Cores of active servers.
    Cores,
}

impl QuotaKind {
    /// Every kind, in order.
    pub const ALL: [Self; 7] = [
        Self::Drives,
        Self::Bytes,
        Self::Servers,
        Self::Addresses,
        Self::Vlans,
        Self::Memory,
        Self::Cores,
    ];

    /// Their names in the metrics, and in a sentence after a number, in order.
    const NAMES: [(&'static str, &'static str); 7] = [
        ("drives", "drives"),
        ("drive_bytes", "bytes of drives"),
        ("servers", "servers"),
        ("addresses", "addresses"),
        ("vlans", "private networks"),
        ("guest_memory_bytes", "bytes of memory of active servers"),
        ("guest_cores", "cores of active servers"),
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }

    /// Its name in a sentence, after a number.
    fn noun(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

/// An amount for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts([u64; QuotaKind::ALL.len()]);

impl Amounts {
    /// These amounts, and zero of the other kinds.
    pub fn of<const N: usize>(amounts: [(QuotaKind, u64); N]) -> Self {
        let mut all = Self::default();
        for (kind, amount) in amounts {
            all[kind] = amount;
        }
        all
    }

    fn change(&mut self, by: &Self, change: fn(u64, u64) -> u64) {
        for kind in QuotaKind::ALL {
            self[kind] = change(self[kind], by[kind]);
        }
    }
}

impl Index<QuotaKind> for Amounts {
    type Output = u64;

    fn index(&self, kind: QuotaKind) -> &u64 {
        &self.0[kind as usize]
    }
}

impl IndexMut<QuotaKind> for Amounts {
    fn index_mut(&mut self, kind: QuotaKind) -> &mut u64 {
        &mut self.0[kind as usize]
    }
}

/// The maximum that one user may have of each kind; `u64::MAX` if there is no limit.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits(Amounts);

impl QuotaLimits {
    /// These limits if they are set, and no limit for the other kinds.
    pub fn new(limits: impl IntoIterator<Item = (QuotaKind, Option<u64>)>) -> Self {
        let mut all = Self::default();
        for (kind, limit) in limits {
            all.0[kind] = limit.unwrap_or(u64::MAX);
        }
        all
    }
}

impl Default for QuotaLimits {
    fn default() -> Self {
        Self(Amounts([u64::MAX; QuotaKind::ALL.len()]))
    }
}

/// What the users of a server hold, and how much they may hold. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct Quotas(Arc<Accounts>);

#[derive(Debug, Default)]
struct Accounts {
    limits: QuotaLimits,
    held: Mutex<HashMap<String, Amounts>>,
    refused: [AtomicU64; QuotaKind::ALL.len()],
}

/// An amount that was granted to a user. Dropping it returns the amount, unless it was
/// [kept](Self::keep).
#[derive(Debug)]
#[must_use = "what is dropped is given back"]
pub struct Grant {
    quotas: Quotas,
    user: String,
    amounts: Amounts,
}

impl Grant {
    /// Keeps the amount: it exists from now on, and is returned by [`Quotas::release`].
    pub fn keep(mut self) {
        self.amounts = Amounts::default();
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.quotas.release(&self.user, &self.amounts);
    }
}

/// The figures of one kind for the metrics.
#[derive(Clone, Copy, Debug)]
pub struct QuotaFigures {
    /// The kind.
    pub kind: QuotaKind,
    /// What all users hold in total.
    pub used: u64,
    /// The limit for one user; `None` without a limit.
    pub limit: Option<u64>,
    /// How many requests were refused because of it.
    pub refused: u64,
}

impl Quotas {
    /// Quotas of users who hold nothing yet.
    pub fn new(limits: QuotaLimits) -> Self {
        Self(Arc::new(Accounts {
            limits,
            ..Accounts::default()
        }))
    }

    /// Grants these additional amounts, or refuses with 402.
    pub fn hold(&self, user: &str, amounts: Amounts) -> Result<Grant, Refusal> {
        let mut all = lock(&self.0.held);
        let held = all.get(user).copied().unwrap_or_default();
        for kind in QuotaKind::ALL {
            let (more, most) = (amounts[kind], self.0.limits.0[kind]);
            // A user who already exceeds a limit may still get more of the other kinds.
            if more > 0 && held[kind].saturating_add(more) > most {
                self.0.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
                let (noun, left) = (kind.noun(), most.saturating_sub(held[kind]));
                return Err(Refusal::billing(format!(
                    "The account may have {most} {noun}, of which {left} are left: \
                     {more} more are not covered"
                )));
            }
        }
        let held = all.entry(user.to_owned()).or_default();
        held.change(&amounts, u64::saturating_add);
        Ok(self.grant(user, amounts))
    }

    /// Counts amounts that exist already, even beyond a limit.
    pub fn hold_anyway(&self, user: &str, amounts: Amounts) -> Grant {
        let mut all = lock(&self.0.held);
        let held = all.entry(user.to_owned()).or_default();
        held.change(&amounts, u64::saturating_add);
        self.grant(user, amounts)
    }

    fn grant(&self, user: &str, amounts: Amounts) -> Grant {
        Grant {
            quotas: self.clone(),
            user: user.to_owned(),
            amounts,
        }
    }

    /// Returns amounts of a user.
    pub fn release(&self, user: &str, amounts: &Amounts) {
        let mut all = lock(&self.0.held);
        if let Some(held) = all.get_mut(user) {
            held.change(amounts, u64::saturating_sub);
            if *held == Amounts::default() {
                all.remove(user);
            }
        }
    }

    /// The figures of every kind, for the metrics.
    pub fn figures(&self) -> [QuotaFigures; QuotaKind::ALL.len()] {
        let mut used = Amounts::default();
        for held in lock(&self.0.held).values() {
            used.change(held, u64::saturating_add);
        }
        QuotaKind::ALL.map(|kind| QuotaFigures {
            kind,
            used: used[kind],
            limit: Some(self.0.limits.0[kind]).filter(|limit| *limit < u64::MAX),
            refused: self.0.refused[kind as usize].load(Ordering::Relaxed),
        })
    }

    /// Counts a drive that exists already, even beyond a limit.
    pub fn count(&self, user: &str, bytes: u64) {
        self.hold_anyway(user, drives(1, bytes)).keep();
    }

    /// Grants more drives and bytes, or refuses with 402.
    pub fn take(&self, user: &str, number: u64, bytes: u64) -> Result<Grant, Refusal> {
        self.hold(user, drives(number, bytes))
    }

    /// Returns drives and bytes of a user.
    pub fn give_back(&self, user: &str, number: u64, bytes: u64) {
        self.release(user, &drives(number, bytes));
    }
}

fn drives(number: u64, bytes: u64) -> Amounts {
    Amounts::of([(QuotaKind::Drives, number), (QuotaKind::Bytes, bytes)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::ErrorType;

    #[test]
    fn an_unused_reservation_is_returned_and_users_have_separate_quotas() {
        let quotas = Quotas::new(QuotaLimits::new([
            (QuotaKind::Drives, Some(2)),
            (QuotaKind::Bytes, Some(100)),
        ]));
        let error = |result: Result<Grant, Refusal>| result.map(drop).map_err(|r| r.error());
        quotas.take("a", 1, 60).unwrap().keep();
        drop(quotas.take("a", 1, 40).unwrap());
        assert_eq!(error(quotas.take("a", 1, 41)), Err(ErrorType::Billing));
        assert_eq!(error(quotas.take("a", 0, 41)), Err(ErrorType::Billing));
        quotas.take("a", 1, 40).unwrap().keep();
        assert_eq!(error(quotas.take("a", 1, 0)), Err(ErrorType::Billing));
        assert_eq!(error(quotas.take("a", 0, 0)), Ok(()));
        quotas.take("b", 2, 100).unwrap().keep();
        quotas.give_back("a", 1, 60);
        quotas.give_back("a", 1, 40);
        assert!(!lock(&quotas.0.held).contains_key("a"));
        // A limit that was introduced later only applies to what comes later.
        quotas.count("a", u64::MAX);
        assert_eq!(error(quotas.take("a", 1, 1)), Err(ErrorType::Billing));
        assert_eq!(error(quotas.take("a", 0, 0)), Ok(()));
    }

    #[test]
    fn each_kind_is_counted_and_limited_on_its_own() {
        for kind in QuotaKind::ALL {
            let mut limits = QuotaLimits::default();
            limits.0[kind] = 5;
            let quotas = Quotas::new(limits);
            let held = quotas.hold("a", Amounts::of([(kind, 3)])).unwrap();
            let refusal = quotas.hold("a", Amounts::of([(kind, 3)])).unwrap_err();
            assert_eq!(refusal.error(), ErrorType::Billing);
            assert!(refusal.to_string().contains("2 are left"), "{refusal}");
            for other in QuotaKind::ALL.into_iter().filter(|other| *other != kind) {
                drop(quotas.hold("a", Amounts::of([(other, u64::MAX)])).unwrap());
            }
            let figures = quotas.figures()[kind as usize];
            assert_eq!((figures.kind, figures.used), (kind, 3));
            assert_eq!((figures.limit, figures.refused), (Some(5), 1));
            drop(held);
            assert_eq!(quotas.figures()[kind as usize].used, 0);
        }
    }
}
