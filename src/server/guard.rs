//! Who asks too much: a user too often, an address with too many wrong keys.
//!
//! An address that used up its wrong keys is refused whatever it sends, right keys
//! too: an answer to these would tell a right key from a wrong one for nothing. It
//! may look again when one wrong key more would be allowed. Behind a proxy all
//! clients are one address.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use super::answer::Refusal;
use super::rate::{Limiter, Rate};

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

    /// Whether somebody from there may try a key.
    pub(super) fn let_in(&self, from: IpAddr) -> Result<(), Refusal> {
        let Some(addresses) = &self.addresses else {
            return Ok(());
        };
        match addresses.wait(&network(from), Instant::now()) {
            wait if wait.is_zero() => Ok(()),
            wait => Err(Refusal::too_many(
                wait,
                "Too many wrong keys from this address",
            )),
        }
    }

    /// The key was wrong.
    pub(super) fn wrong_key(&self, from: IpAddr) {
        if let Some(addresses) = &self.addresses
            && addresses.take(network(from), Instant::now()).is_err()
        {
            tracing::debug!(%from, "More wrong keys than allowed");
        }
    }

    /// Whether `user` may make a request now, which is counted.
    pub(super) fn request(&self, user: &Arc<str>) -> Result<(), Refusal> {
        let Some(users) = &self.users else {
            return Ok(());
        };
        users
            .take(Arc::clone(user), Instant::now())
            .map_err(|wait| Refusal::too_many(wait, "Too many requests of this user"))
    }
}

/// What one client has for itself: a whole address, of IPv6 the first 64 bits.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_back_and_its_neighbours_of_ipv6_with_it() {
        let guard = Guard::new(None, Some("2/h".parse().unwrap()));
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for from in [
            "192.0.2.1",
            "::ffff:192.0.2.1",
            "2001:db8::1",
            "2001:db8::2:1",
        ] {
            assert_eq!(guard.let_in(at(from)), Ok(()));
            guard.wrong_key(at(from));
        }
        for from in ["192.0.2.1", "2001:db8::99"] {
            let refusal = guard.let_in(at(from)).unwrap_err().to_answer();
            assert_eq!(refusal.status(), 429);
            let wait = refusal.headers()["retry-after"].to_str().unwrap();
            assert!((1..=1800).contains(&wait.parse::<u64>().unwrap()), "{wait}");
        }
        for from in ["192.0.2.2", "2001:db8:0:1::1"] {
            assert_eq!(guard.let_in(at(from)), Ok(()));
        }
        assert_eq!(guard.request(&"u".into()), Ok(()));
    }
}
