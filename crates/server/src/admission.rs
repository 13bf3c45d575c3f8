//! Decides which connections stay open when there are too many.
//!
//! A connection is a stranger until a request on it proves a user. Strangers and users have
//! separate limits, so clients without a key cannot take connections from users. No new stranger is
//! rejected; instead, it replaces the oldest one from the address with the most strangers. So a
//! request with a key, or for `/health`, always gets through, even behind a proxy where all clients
//! have one address. A stranger that proves no user in time is closed.
//!
//! A connection belongs to the last user that it proved. If a user has too many, those that wait
//! for their next request are closed, the longest idle first; if all are busy, the new one is
//! refused with 429. If all users together have too many, the same is done to the user with the
//! most, and the refusal is 503.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use openhosting_base::locks::lock;
use openhosting_tenancy::Refusal;

/// Maximum connections of strangers, of one user and of all users, if the limit of open files
/// allows it. The numbers are choices: our client opens up to 64 for a transfer by default, so one
/// user has room for several transfers, and the users together for four such users.
const STRANGERS: usize = 256;
pub(super) const OF_ONE_USER: usize = 256;
const OF_ALL_USERS: usize = 1024;
/// The next answer to a stranger older than this closes the connection. So no request of a client
/// that only asks for `/health` is cut off.
const STRANGER_LAST_ANSWER: Duration = Duration::from_secs(30);
/// A stranger older than this is closed, whatever it is doing.
const STRANGER_END: Duration = Duration::from_secs(60);

/// The maximum numbers of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    pub(super) strangers: usize,
    pub(super) of_one_user: usize,
    pub(super) of_all_users: usize,
}

impl ConnectionLimits {
    /// The limits of a server that may open `files` files, with `of_one_user` connections for each
    /// user. A connection uses up to three files, and half of all files are reserved for drives.
    pub(super) fn new(of_one_user: usize, files: usize) -> Self {
        let of_all_users = OF_ALL_USERS.max(4 * of_one_user).min(files / 8).max(4);
        Self {
            strangers: STRANGERS.min(files / 32).max(4),
            of_one_user: of_one_user.min(of_all_users),
            of_all_users,
        }
    }

    /// The limits of a listener without users.
    pub(super) fn strangers_only(strangers: usize) -> Self {
        Self {
            strangers,
            of_one_user: 0,
            of_all_users: 0,
        }
    }
}

/// Why a connection was closed; a label in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A newer stranger took its place.
    StrangersFull,
    /// It proved no user in time.
    NeverAuthenticated,
    /// Its user, or all users, have too many.
    UsersFull,
}

impl Reason {
    pub(super) const ALL: [Self; 3] = [
        Self::StrangersFull,
        Self::NeverAuthenticated,
        Self::UsersFull,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::StrangersFull => "strangers_full",
            Self::NeverAuthenticated => "never_authenticated",
            Self::UsersFull => "users_full",
        }
    }
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Admission {
    limits: ConnectionLimits,
    open: Mutex<Open>,
    closed: [AtomicU64; Reason::ALL.len()],
}

#[derive(Debug, Default)]
struct Open {
    /// By number, so that the oldest come first.
    connections: BTreeMap<u64, Connection>,
    /// Counts connections and completed requests.
    clock: u64,
}

#[derive(Debug)]
struct Connection {
    network: IpAddr,
    user: Option<Arc<str>>,
    requests: u32,
    /// The clock when its last request ended.
    idle_since: u64,
    end: Arc<Notify>,
}

/// The slot of one connection, which becomes free when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    number: u64,
    from: IpAddr,
    began: Instant,
    end: Arc<Notify>,
}

impl Admission {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            open: Mutex::default(),
            closed: Default::default(),
        })
    }

    /// Accepts the next connection, with its place.
    pub(super) async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
    ) -> (TcpStream, Arc<Admitted>) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Without it, small answers would wait for acknowledgements.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "Cannot set TCP_NODELAY");
                    }
                    return (stream, self.admit(from.ip()));
                }
                // Most likely there are no free descriptors; other connections will release some.
                Err(error) => {
                    tracing::warn!(%error, "Cannot accept a connection");
                    self.relieve();
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Registers a new connection, and closes another one if necessary.
    fn admit(self: &Arc<Self>, from: IpAddr) -> Arc<Admitted> {
        let end = Arc::new(Notify::new());
        let mut open = lock(&self.open);
        if open.strangers().count() >= self.limits.strangers {
            self.close_a_stranger(&mut open);
        }
        let number = open.tick();
        open.connections.insert(
            number,
            Connection {
                network: network(from),
                user: None,
                requests: 0,
                idle_since: number,
                end: Arc::clone(&end),
            },
        );
        Arc::new(Admitted {
            admission: Arc::clone(self),
            number,
            from,
            began: Instant::now(),
            end,
        })
    }

    /// Closes one of the least important connections, because the process has no free descriptor.
    fn relieve(&self) {
        let mut open = lock(&self.open);
        if !self.close_a_stranger(&mut open) {
            self.close_an_idle(&mut open, None);
        }
    }

    /// Number of connections of strangers and of users.
    pub(super) fn count(&self) -> (usize, usize) {
        let open = lock(&self.open);
        let strangers = open.strangers().count();
        (strangers, open.connections.len() - strangers)
    }

    /// Number of connections that were closed for `reason`.
    pub(super) fn closed(&self, reason: Reason) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    fn close_a_stranger(&self, open: &mut Open) -> bool {
        let mut of_network = HashMap::new();
        for (_, connection) in open.strangers() {
            *of_network.entry(connection.network).or_insert(0usize) += 1;
        }
        let most = of_network.values().max().copied();
        let crowded = open
            .strangers()
            .find(|(_, connection)| of_network.get(&connection.network).copied() == most);
        let number = crowded.map(|(number, _)| number);
        self.close(open, number, Reason::StrangersFull)
    }

    /// Closes the connection of `user`, or of the user with the most connections, that has been
    /// idle the longest.
    fn close_an_idle(&self, open: &mut Open, user: Option<&Arc<str>>) -> bool {
        let mut of_user = HashMap::new();
        for connection in open.connections.values() {
            *of_user.entry(&connection.user).or_insert(0usize) += 1;
        }
        let idle = open.connections.iter().filter(|(_, connection)| {
            let owner = connection.user.as_ref();
            connection.requests == 0
                && owner.is_some_and(|owner| user.is_none_or(|user| user == owner))
        });
        let of_owner = |connection: &Connection| of_user.get(&connection.user).copied();
        let longest = idle.max_by_key(|(_, c)| (of_owner(c), Reverse(c.idle_since)));
        let number = longest.map(|(&number, _)| number);
        self.close(open, number, Reason::UsersFull)
    }

    fn close(&self, open: &mut Open, number: Option<u64>, reason: Reason) -> bool {
        let Some(connection) = number.and_then(|number| open.connections.remove(&number)) else {
            return false;
        };
        connection.end.notify_one();
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn strangers(&self) -> impl Iterator<Item = (u64, &Connection)> {
        let all = self.connections.iter();
        all.filter(|(_, connection)| connection.user.is_none())
            .map(|(&number, connection)| (number, connection))
    }

    fn of_user(&self, user: &Arc<str>) -> usize {
        let owners = self.connections.values();
        owners.filter(|c| c.user.as_ref() == Some(user)).count()
    }
}

impl Admitted {
    /// The address of the client.
    pub(super) fn from(&self) -> IpAddr {
        self.from
    }

    /// Completes when the connection has to be closed.
    pub(super) async fn closed(&self) {
        tokio::select! {
            () = self.end.notified() => return,
            () = sleep(STRANGER_END) => {}
        }
        {
            let mut open = lock(&self.admission.open);
            let connection = open.connections.get(&self.number);
            if connection.is_some_and(|connection| connection.user.is_none()) {
                let reason = Reason::NeverAuthenticated;
                self.admission.close(&mut open, Some(self.number), reason);
            }
        }
        self.end.notified().await;
    }

    /// Whether the next answer should be the last one.
    pub(super) fn is_overdue(&self) -> bool {
        self.began.elapsed() >= STRANGER_LAST_ANSWER && {
            let open = lock(&self.admission.open);
            let connection = open.connections.get(&self.number);
            connection.is_none_or(|connection| connection.user.is_none())
        }
    }

    /// A request began on the connection.
    pub(super) fn begin_request(&self) {
        let mut open = lock(&self.admission.open);
        if let Some(connection) = open.connections.get_mut(&self.number) {
            connection.requests += 1;
        }
    }

    /// A request ended, including its answer.
    pub(super) fn end_request(&self) {
        let mut open = lock(&self.admission.open);
        let now = open.tick();
        if let Some(connection) = open.connections.get_mut(&self.number) {
            connection.requests -= 1;
            connection.idle_since = now;
        }
    }

    /// The current request proved `user`, to whom the connection belongs from now on.
    ///
    /// # Errors
    /// 429 if all connections that this user may have are busy, 503 if those of all users are. The
    /// connection closes after that answer.
    pub(super) fn set_user(&self, user: &Arc<str>) -> Result<(), Refusal> {
        let admission = &self.admission;
        let ConnectionLimits {
            of_one_user,
            of_all_users,
            ..
        } = admission.limits;
        let mut open = lock(&admission.open);
        let Some(connection) = open.connections.get(&self.number) else {
            // The connection is already being closed.
            return Err(Refusal::overloaded().and_last());
        };
        if connection.user.as_ref() == Some(user) {
            return Ok(());
        }
        let is_new = connection.user.is_none();
        if open.of_user(user) >= of_one_user && !admission.close_an_idle(&mut open, Some(user)) {
            let sentence =
                format!("This user has as many connections as one user may have: {of_one_user}");
            return Err(Refusal::too_many(Duration::from_secs(1), sentence).and_last());
        }
        let of_users = open.connections.len() - open.strangers().count();
        if is_new && of_users >= of_all_users && !admission.close_an_idle(&mut open, None) {
            return Err(Refusal::overloaded().and_last());
        }
        if let Some(connection) = open.connections.get_mut(&self.number) {
            connection.user = Some(Arc::clone(user));
        }
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.admission.open).connections.remove(&self.number);
    }
}

/// What counts as one client: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(super) fn network(from: IpAddr) -> IpAddr {
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

    fn admission(strangers: usize, of_one_user: usize, of_all_users: usize) -> Arc<Admission> {
        Admission::new(ConnectionLimits {
            strangers,
            of_one_user,
            of_all_users,
        })
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_open(place: &Admitted) -> bool {
        lock(&place.admission.open)
            .connections
            .contains_key(&place.number)
    }

    #[test]
    fn a_new_stranger_replaces_the_oldest_of_the_busiest_address() {
        let admission = admission(4, 1, 1);
        let other = admission.admit(at("192.0.2.9"));
        let crowd: Vec<_> = (0..9)
            .map(|i| admission.admit(at(&format!("2001:db8::{i}"))))
            .collect();
        let is_open: Vec<bool> = crowd.iter().map(|place| is_open(place)).collect();
        assert_eq!(
            is_open,
            [false, false, false, false, false, false, true, true, true]
        );
        assert!(super::tests::is_open(&other));
        assert_eq!(admission.count(), (4, 0));
        assert_eq!(admission.closed(Reason::StrangersFull), 6);
        drop(crowd);
        assert_eq!(admission.count(), (1, 0));
    }

    #[test]
    fn a_user_loses_idle_connections_first_and_is_refused_when_all_are_busy() {
        let admission = admission(8, 2, 3);
        let user = |name: &str| -> Arc<str> { name.into() };
        let place = |name: &str| {
            let place = admission.admit(at("192.0.2.1"));
            place.begin_request();
            place.set_user(&user(name)).map(|()| place)
        };
        let (first, second) = (place("a").unwrap(), place("a").unwrap());
        let refused = place("a").unwrap_err();
        assert_eq!(refused.status(), 429);
        assert!(refused.is_last());
        // A user may always send requests on a connection that it already has.
        first.set_user(&user("a")).unwrap();
        second.end_request();
        let third = place("a").unwrap();
        assert!(is_open(&first) && !is_open(&second) && is_open(&third));
        // If all users have too many, an idle connection of the user with the most is closed.
        let _fourth = place("b").unwrap();
        assert_eq!(place("c").unwrap_err().status(), 503);
        first.end_request();
        let fifth = place("c").unwrap();
        assert!(!is_open(&first));
        assert_eq!(admission.count(), (0, 3));
        // A proxy may send requests of several users on one connection.
        fifth.set_user(&user("b")).unwrap();
        assert_eq!(fifth.set_user(&user("b")), Ok(()));
        assert_eq!(admission.closed(Reason::UsersFull), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_is_closed_in_time_and_a_user_is_not() {
        let admission = admission(8, 2, 3);
        let (stranger, known) = (admission.admit(at("::1")), admission.admit(at("::1")));
        known.set_user(&"u".into()).unwrap();
        stranger.closed().await;
        assert_eq!(admission.closed(Reason::NeverAuthenticated), 1);
        assert!(!is_open(&stranger));
        let closed = tokio::time::timeout(STRANGER_END * 10, known.closed());
        assert!(closed.await.is_err());
    }

    #[test]
    fn half_of_the_file_descriptors_stay_free_for_drives() {
        for files in [256, 1024, 4096, 8192, 1 << 20] {
            let limits = ConnectionLimits::new(OF_ONE_USER, files);
            assert!(
                3 * (limits.strangers + limits.of_all_users) <= files / 2,
                "{limits:?}"
            );
            assert!(limits.of_one_user <= limits.of_all_users);
        }
        assert_eq!(
            ConnectionLimits::new(OF_ONE_USER, 1 << 20).of_all_users,
            1024
        );
    }
}
