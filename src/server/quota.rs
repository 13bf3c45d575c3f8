//! How many drives a user may have, and how many bytes in all.
//!
//! What a user holds is the sizes of drives as they are told, not what they take on
//! the disk: a user can reckon with it, and what was granted can be written. It is
//! the account that does not cover more, so the refusal is 402 `billing`; 507 `full`
//! stays what says that there is no space left for anybody (REFERENCE section 3).

use std::collections::HashMap;
use std::sync::Mutex;

use super::answer::Refusal;
use super::hosted::lock;

/// What the users of a server hold, and how much they may.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    drives_max: Option<u64>,
    bytes_max: Option<u64>,
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    drives: u64,
    bytes: u64,
}

/// What was granted; given back when dropped before it is kept.
#[derive(Debug)]
#[must_use = "what is dropped is given back"]
pub(super) struct Grant<'a> {
    quotas: &'a Quotas,
    user: &'a str,
    held: Held,
}

impl Grant<'_> {
    /// The drive is there.
    pub(super) fn keep(mut self) {
        self.held = Held::default();
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let Held { drives, bytes } = self.held;
        self.quotas.give_back(self.user, drives, bytes);
    }
}

impl Quotas {
    pub(super) fn new(drives_max: Option<u64>, bytes_max: Option<u64>) -> Self {
        Self {
            drives_max,
            bytes_max,
            held: Mutex::default(),
        }
    }

    /// Counts a drive that is there already, however much that makes.
    pub(super) fn count(&self, user: &str, bytes: u64) {
        let mut held = lock(&self.held);
        let held = held.entry(user.to_owned()).or_default();
        held.drives += 1;
        held.bytes = held.bytes.saturating_add(bytes);
    }

    /// Grants so many more drives and bytes, or 402.
    pub(super) fn take<'a>(
        &'a self,
        user: &'a str,
        drives: u64,
        bytes: u64,
    ) -> Result<Grant<'a>, Refusal> {
        let mut all = lock(&self.held);
        let held = all.entry(user.to_owned()).or_default();
        if let Some(most) = self.drives_max
            && drives > 0
            && held.drives.saturating_add(drives) > most
        {
            let has = held.drives;
            let sentence = format!("The account may have {most} drives, and has {has}");
            return Err(Refusal::billing(sentence));
        }
        if let Some(most) = self.bytes_max
            && bytes > 0
            && held.bytes.saturating_add(bytes) > most
        {
            let left = most.saturating_sub(held.bytes);
            let sentence = format!(
                "The account may have {most} bytes of drives, of which {left} are left: \
                 {bytes} more are not covered"
            );
            return Err(Refusal::billing(sentence));
        }
        let granted = Held { drives, bytes };
        held.drives += drives;
        held.bytes = held.bytes.saturating_add(bytes);
        Ok(Grant {
            quotas: self,
            user,
            held: granted,
        })
    }

    /// A user holds so much less.
    pub(super) fn give_back(&self, user: &str, drives: u64, bytes: u64) {
        let mut all = lock(&self.held);
        if let Some(held) = all.get_mut(user) {
            held.drives = held.drives.saturating_sub(drives);
            held.bytes = held.bytes.saturating_sub(bytes);
            if *held == Held::default() {
                all.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ErrorType;

    #[test]
    fn what_is_not_kept_is_given_back_and_users_do_not_share() {
        let quotas = Quotas::new(Some(2), Some(100));
        let error = |result: Result<Grant<'_>, Refusal>| result.map(drop).map_err(|r| r.error());
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
        assert!(!lock(&quotas.held).contains_key("a"));
        // A limit that came later holds for what comes later.
        quotas.count("a", u64::MAX);
        assert_eq!(error(quotas.take("a", 1, 1)), Err(ErrorType::Billing));
        assert_eq!(error(quotas.take("a", 0, 0)), Ok(()));
    }
}
