//! Limits clients: users with too many requests, and addresses with too many wrong keys.
//!
//! An address that used up its wrong keys is refused whatever it sends, including right keys:
//! otherwise the answer would still distinguish right keys from wrong ones. It may try again as
//! soon as one more wrong key would be allowed. Behind a proxy, all clients share one address.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::admission::network;
use openhosting_tenancy::{Limiter, Rate, Refusal};

/// The limits of a server.
#[derive(Debug)]
pub(super) struct Guard {
    users: Option<Limiter<Arc<str>>>,
    addresses: Option<Limiter<IpAddr>>,
}

impl Guard {
    pub(super) fn new(requests: Option<Rate>, wrong_keys: Option<Rate>) -> Self {
        Self {
            users: requests.map(Limiter::new),
            addresses: wrong_keys.map(Limiter::new),
        }
    }

    /// Checks a key from this address; `proof` returns its owner. This is the only place where keys
    /// are checked. Whether the address may try another key, the check, and the count of a wrong
    /// key are one step, so that concurrent guesses count like others.
    ///
    /// # Errors
    /// 429 if the address has used up its wrong keys, 401 for a wrong key.
    pub(super) fn prove<T>(
        &self,
        from: IpAddr,
        proof: impl FnOnce() -> Option<T>,
    ) -> Result<T, Refusal> {
        let proved = match &self.addresses {
            None => Ok(proof()),
            Some(addresses) => addresses.attempt(network(from), Instant::now(), proof),
        };
        match proved {
            Ok(proved) => proved.ok_or_else(Refusal::auth),
            Err(wait) => {
                let sentence = "Too many wrong keys from this address";
                Err(Refusal::too_many(wait, sentence))
            }
        }
    }

    /// Counts a request of `user`, and fails if it exceeds the limit.
    pub(super) fn request(&self, user: &Arc<str>) -> Result<(), Refusal> {
        let Some(users) = &self.users else {
            return Ok(());
        };
        users
            .take(Arc::clone(user), Instant::now())
            .map_err(|wait| Refusal::too_many(wait, "Too many requests of this user"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_block_an_address_and_its_ipv6_network() {
        let guard = Guard::new(None, Some("2/h".parse().unwrap()));
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let right = |from| guard.prove(at(from), || Some(()));
        for from in [
            "192.0.2.1",
            "::ffff:192.0.2.1",
            "2001:db8::1",
            "2001:db8::2:1",
        ] {
            assert_eq!(right(from), Ok(()));
            let wrong = guard.prove(at(from), || None::<()>);
            assert_eq!(wrong.unwrap_err().status(), 401);
        }
        for from in ["192.0.2.1", "2001:db8::99"] {
            let refusal = right(from).unwrap_err();
            assert_eq!(refusal.status(), 429);
            let wait = refusal.retry_after_s().unwrap();
            assert!((1..=1800).contains(&wait), "{wait}");
        }
        for from in ["192.0.2.2", "2001:db8:0:1::1"] {
            assert_eq!(right(from), Ok(()));
        }
        assert_eq!(guard.request(&"u".into()), Ok(()));
    }
}
