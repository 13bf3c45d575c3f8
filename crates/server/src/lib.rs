//! The API server: drives, servers and resources (docs/dev/reference.md, 1) for
//! several users, on a directory of sparse files and with QEMU.
//!
//! This crate answers requests and serves the drives; `openhosting-vm` runs the servers, and
//! `openhosting-tenancy` has what both need. It never uses code of the clients, because no test
//! would find a bug that both sides share. Start reading at `connection`, which dispatches a
//! request, and continue with `drives`.
//!
//! ```text
//! run -> connection -> faults -> auth -> routes -> drives -> store -> hosted (one drive)
//!       socket, tls, record    guard      |          |   metadata, fill       ^
//!                                         |          +-> body -> writing -> sparse
//!                                         |          +-> reading, imaging    |
//!                                         +-> servers -> vm::machines -------+ vm::claims
//!
//! shared: what all requests share   tasks: work that goes on when its client has gone
//! work, digests, peer: work in fair turns, which ends with the client it is for
//! operator, metrics, page, sessions: for people who look at it
//! ```
//!
//! The async runtime's threads only move bytes and use state in memory; everything that accesses
//! the disk or decompresses gzip runs on a thread that may block. Behaviour that the sources do not
//! define (docs/dev/reference.md, 7):
//!
//! - Sizes are exact; rounding to 4 MiB is a switch.
//! - A read is of at most 4 MiB, or up to the end of the drive by `read` and
//!   `read/OFFSET`; it is never short. Past the end is 400 `usage`.
//! - A write past the end is 400 `usage` with nothing written; so is one whose
//!   gzip is cut short, damaged, followed by anything but gzip, or too long.
//! - 204 says that the bytes survive a crash of this process. They are not
//!   synced against a loss of power; metadata is.
//! - A write that finds no space is 507 `full` and may leave a beginning.
//! - What does not go together with a use under way is 409 `busy` at once.
//!   Writes go together, unless one writer is all that is allowed.
//! - `list` and `info` show a user's own drives. Drives whose `readers` name the
//!   user, or everyone, can be looked at, read and imaged from by their UUID;
//!   to all else, and to everybody else, they are 404 `missing` in the same
//!   bytes as a drive that never was. The standard drives are those that
//!   everyone may read.
//! - Keys that `create` and `set` do not know are 400 `usage`, by name.
//! - `image` answers 204. Both drives show `claimed` while imaging. An imaging that the
//!   end of the server interrupted is resumed at the next start. A failed one shows as
//!   status `inactive` until the next write or imaging.
//! - Counters begin at 4096 and 1 as recorded. They are kept when metadata
//!   changes and at a graceful end; a crash loses what came since.
//! - Answers with several objects are printed while they are sent, with chunked coding
//!   where they are longer than 32 KiB: what changes meanwhile shows in them or not.
//! - What a browser sends for a page of another site is 400 `usage`, with the right key
//!   too; so is a request of HTTP/1.1 without one valid `Host`.
//! - A request with a query is 404 `missing`: the API has none. A method other
//!   than GET and POST is 405 `method`.
//! - `drives/UUID/digest/OFFSET/SIZE` and `drives/UUID/extents/OFFSET/SIZE` are
//!   extensions of our own: 200 with the key `sha256`, or with `data` and `end`, of
//!   a range, where a read would be answered (docs/dev/extensions.md).
//!   `info` and `create` announce them by `X-Openhosting-Extensions`. A server with
//!   a fault plan plays another cloud, and has no extension.
//! - A server is started by QEMU; its drives are claimed from its start to its end,
//!   and 409 `busy` to all that changes them. `start` answers 200 with the object.
//!   `shutdown`, `reset` and the like of a server that is not active are 400 `usage`,
//!   and `stop` is 204. Without QEMU a start is 500 `failed` (docs/user/servers.md).
//! - A write waits at most 10 s for the memory of its body, then is 429 if its user
//!   has too many bodies under way, or 503 if all together have (`budget`).
//!
//! - A user's limits are 402 `billing`: the account does not cover more. Too many
//!   requests of a user, and too many wrong keys from an address, are 429 `busy`.
//! - `GET /health` is answered to everybody, and is no part of the API; nor is the
//!   web page at `/ui/`.
//!
//! On addresses other than loopback, it serves only with TLS, unless configured otherwise.

#![cfg(target_os = "linux")]

mod admission;
mod answer;
mod auth;
mod body;
mod budget;
mod connection;
mod digests;
mod drives;
mod faults;
mod fill;
mod guard;
mod hosted;
mod imaging;
mod line;
mod listing;
mod metadata;
mod metrics;
mod operator;
mod origin;
mod page;
mod peer;
mod reading;
mod record;
mod routes;
mod servers;
mod sessions;
mod shared;
mod socket;
mod sparse;
mod store;
mod tasks;
mod tls;
pub mod users;
mod work;
mod writing;

pub use faults::FaultPlan;
pub use openhosting_tenancy::Rate;
pub use openhosting_vm::Reach;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use self::admission::{Admission, Admitted, ConnectionLimits};
use self::connection::Client;
use self::faults::{Faults, LargeReads, ReportedExtents};
use self::imaging::Imagings;
use self::store::Store;
use openhosting_base::advice;
use openhosting_base::advice::Remedy;
use openhosting_base::credentials::Credentials;
use openhosting_base::error::{Error, ErrorKind, Result};
use openhosting_base::wire::READ_BYTES_MAX;
use openhosting_tenancy::{QuotaKind, QuotaLimits, Quotas};
use openhosting_vm::{Backing, Cgroup, Drives, GuestNetwork, Machines, Qemu};

/// Maximum time for a TLS handshake. It takes two round trips, so any client on earth needs less.
/// An idle connection is closed after it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for requests in flight to finish when the server stops; the rest is then cut off, and
/// clients repeat it. The time is a choice. What stops the server should wait for longer.
const SHUTDOWN_MAX: Duration = Duration::from_secs(30);

/// Default limits for one user: more than most users need, and so few that a hundred users do not
/// use up all descriptors and addresses. The number of cores is that of one server with the
/// maximum.
const DRIVES_MAX: u64 = 1000;
const SERVERS_MAX: u64 = 100;
const ADDRESSES_MAX: u64 = 100;
const VLANS_MAX: u64 = 100;
const GUEST_CORES_MAX: u64 = 64;

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the drives; created if it does not exist.
    pub directory: PathBuf,
    /// The users. If the list is empty, a user is generated and stored in the directory.
    pub users: Vec<Credentials>,
    /// PEM files with the certificate chain and its key. Without them, the server uses plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether plain HTTP is allowed on addresses other than loopback, where others on the network
    /// can read the secret keys.
    pub insecure_listen: bool,
    /// Whether a second concurrent write to a drive is refused with 409, as some clouds of this
    /// family do (docs/dev/reference.md, 1.8).
    pub one_writer: bool,
    /// Whether sizes are rounded up to a multiple of 4 MiB (docs/dev/reference.md, 1.6).
    pub round_size: bool,
    /// Maximum bytes of one read.
    pub read_bytes_max: u64,
    /// Whether there is a web page at `/ui/`.
    pub has_page: bool,
    /// Maximum number of drives of one user; more are 402 `billing`. `None` is no limit, here and
    /// below.
    pub drives_max: Option<u64>,
    /// Maximum bytes of all drives of one user, by their sizes; more are 402 `billing`.
    pub drive_bytes_max: Option<u64>,
    /// Maximum number of servers of one user; more are 402 `billing`, as for the following limits.
    pub servers_max: Option<u64>,
    /// Maximum addresses of one user that are resources, not counting those of active servers.
    pub addresses_max: Option<u64>,
    /// Maximum private networks of one user.
    pub vlans_max: Option<u64>,
    /// Maximum memory of all active servers of one user, in bytes.
    pub guest_memory_bytes_max: Option<u64>,
    /// Maximum cores of all active servers of one user.
    pub guest_cores_max: Option<u64>,
    /// Maximum rate of requests of one user; more are 429 with `Retry-After`.
    pub requests_max: Option<Rate>,
    /// Maximum connections of one user; a request on another one is 429.
    pub connections_max: usize,
    /// Maximum rate of wrong keys from one address (for IPv6, its first 64 bits); beyond it, every
    /// key is answered with 429, including right ones.
    pub wrong_keys_max: Option<Rate>,
    /// What the server does wrong, for tests of clients.
    pub faults: FaultPlan,
    /// The program that runs servers: a path, or a name to look up.
    pub qemu: PathBuf,
    /// The complete environment of that program. It needs what finds programs and libraries, and
    /// must contain no secret, because the program runs guests.
    pub qemu_environment: Vec<(OsString, OsString)>,
    /// TCP ports at the address of a server that are forwarded to its guest.
    pub forward: Vec<u16>,
    /// What guests can reach over the network.
    pub guest_network: Reach,
    /// Whether screens of servers are available over VNC, at port 5900 of their addresses.
    pub has_vnc_port: bool,
    /// A directory of the cgroup file system, version 2, in which servers get their shares of the
    /// processors. Without it, all servers have equal shares.
    pub cgroup: Option<PathBuf>,
}

impl Config {
    /// The default settings, with drives in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            users: Vec::new(),
            tls: None,
            insecure_listen: false,
            one_writer: false,
            round_size: false,
            read_bytes_max: READ_BYTES_MAX,
            has_page: true,
            drives_max: Some(DRIVES_MAX),
            drive_bytes_max: None,
            servers_max: Some(SERVERS_MAX),
            addresses_max: Some(ADDRESSES_MAX),
            vlans_max: Some(VLANS_MAX),
            guest_memory_bytes_max: metrics::bytes_in_proc("/proc/meminfo", "MemTotal:")
                .map(|bytes| bytes / 2),
            guest_cores_max: Some(GUEST_CORES_MAX),
            requests_max: None,
            connections_max: admission::OF_ONE_USER,
            wrong_keys_max: Some(Rate::WRONG_KEYS),
            faults: FaultPlan::default(),
            qemu: "qemu-system-x86_64".into(),
            qemu_environment: Vec::new(),
            forward: Vec::new(),
            guest_network: Reach::None,
            has_vnc_port: true,
            cgroup: None,
        }
    }
}

/// A server that is ready to run: its directory is locked and loaded.
#[derive(Debug)]
pub struct Server {
    api: Arc<shared::Api>,
    credentials: Credentials,
    tls: Option<Tls>,
    insecure_listen: bool,
    metrics: Option<TcpListener>,
}

struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Server {
    /// Locks and loads the directory. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the directory, or that of control groups, cannot be used or another
    /// server uses it; [`ErrorKind::Usage`] for invalid TLS files, or a duplicate user.
    pub fn open(mut config: Config) -> Result<Self> {
        let tls = config.tls.as_ref();
        let tls = tls.map(|(certificate, key)| tls::acceptor(certificate, key));
        let tls = tls.transpose()?.map(Tls);
        let store = Store::open(
            &config.directory,
            config.faults.fresh_reads,
            quotas(&config),
        )?;
        let store = Arc::new(store);
        let machines = open_machines(&mut config, &store)?;
        let mut users = std::mem::take(&mut config.users);
        if users.is_empty() {
            users.push(store.generated_user()?);
        }
        for (i, user) in users.iter().enumerate() {
            if users[..i].iter().any(|other| other.user() == user.user()) {
                let what = format!("User {} is given twice", user.user());
                return Err(Error::new(ErrorKind::Usage, what));
            }
        }
        let credentials = users[0].clone();
        let files = getrlimit(Resource::Nofile).current;
        let files = files.and_then(|files| usize::try_from(files).ok());
        let files = files.unwrap_or(usize::MAX);
        let limits = ConnectionLimits::new(config.connections_max, files);
        let plan = config.faults;
        let metrics = Arc::new(metrics::Metrics::new());
        let imagings = Imagings::new(
            Arc::clone(&store),
            Arc::clone(&metrics),
            plan.imaging_bytes_per_s,
        );
        let api = shared::Api {
            store,
            machines: Arc::new(machines),
            users: auth::Users::new(&users),
            memory: writing::Memory::default(),
            budgets: budget::Budgets::new(),
            admission: Admission::new(limits),
            drives_max: files / 2,
            health: tokio::sync::Mutex::default(),
            imagings,
            is_stopping: AtomicBool::new(false),
            guard: guard::Guard::new(config.requests_max, config.wrong_keys_max),
            page: config
                .has_page
                .then(|| sessions::Sessions::new(config.tls.is_some())),
            metrics,
            writers_max: match config.one_writer {
                true => 1,
                false => plan.writers_max.unwrap_or(u32::MAX),
            },
            round_size: config.round_size || plan.round_size,
            read_bytes_max: match plan.large_reads {
                LargeReads::Allowed => u64::MAX,
                LargeReads::Refused | LargeReads::Short => config.read_bytes_max,
            },
            past_end: plan.past_end,
            steps: reading::Steps::default(),
            digests: work::Turns::new(std::thread::available_parallelism().map_or(1, usize::from)),
            zeros: Arc::default(),
            // Other clouds have no extensions, unless the fault is in the extension itself.
            has_extensions: plan == FaultPlan::default() || plan.extents == ReportedExtents::Hidden,
            reported_extents: plan.extents,
            faults: Faults::new(plan),
        };
        Ok(Self {
            api: Arc::new(api),
            credentials,
            tls,
            insecure_listen: config.insecure_listen,
            metrics: None,
        })
    }

    /// Credentials of the first user.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Whether this server may listen on `address`; check before binding it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for plain HTTP beyond the loopback interface.
    pub fn check_address(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() || self.tls.is_some() || self.insecure_listen {
            return Ok(());
        }
        let what = format!("Refused to listen on {address} without TLS");
        Err(Error::new(ErrorKind::Usage, what).hint_to(advice![
            "Give ",
            Remedy::ServerCertificate,
            ", or listen on 127.0.0.1"
        ]))
    }

    /// Whether this server may show its metrics on `address`; check before binding it. Everybody
    /// can read them there, without TLS.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an address other than loopback.
    pub fn check_metrics_address(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() || self.insecure_listen {
            return Ok(());
        }
        let what = format!("Refused to serve the metrics to everybody on {address}");
        Err(Error::new(ErrorKind::Usage, what).hint_to(advice![
            "Choose 127.0.0.1, or pass ",
            Remedy::InsecureListen
        ]))
    }

    /// Also answers `/metrics` and `/health` on `listener`, while it runs.
    #[must_use]
    pub fn with_metrics(mut self, listener: TcpListener) -> Self {
        self.metrics = Some(listener);
        self
    }

    /// Serves until `shutdown` completes. The runtime needs 1024 threads for work that blocks, so
    /// that some are free whatever slow clients hold. After `shutdown`, it accepts no more requests,
    /// lets requests in flight and imagings finish for up to 30 s, and stores the counters. Dropping
    /// the future instead interrupts what is in flight; no byte that was answered with 204 is lost.
    ///
    /// # Errors
    /// See [`check_address`](Self::check_address).
    pub async fn run(
        mut self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Local, "Cannot read the listener's address").because(error)
        })?;
        self.check_address(address)?;
        self.api.imagings.resume_stored();
        // It ends when it is dropped together with this future.
        let mut metrics = JoinSet::new();
        if let Some(listener) = self.metrics.take() {
            metrics.spawn(operator::serve_metrics(listener, Arc::clone(&self.api)));
        }
        self.api.machines.find_running().await;
        let mut connections = JoinSet::new();
        let graceful = GracefulShutdown::new();
        tokio::pin!(shutdown);
        loop {
            let (stream, place) = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.api.admission.accept(&listener) => accepted,
            };
            let tls = self.tls.as_ref().map(|Tls(acceptor)| acceptor.clone());
            let (api, watcher) = (Arc::clone(&self.api), graceful.watcher());
            let serve = serve(stream, tls, api, watcher, Arc::clone(&place));
            connections.spawn(async move {
                tokio::select! {
                    () = serve => {}
                    () = place.closed() => tracing::debug!("A connection was closed"),
                }
            });
        }
        drop(listener);
        self.stop(connections, graceful).await;
        Ok(())
    }

    async fn stop(self, mut connections: JoinSet<()>, graceful: GracefulShutdown) {
        tracing::info!("Stopping, requests in flight may finish");
        self.api.is_stopping.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + SHUTDOWN_MAX;
        let finished = async {
            graceful.shutdown().await;
            while connections.join_next().await.is_some() {}
        };
        if timeout_at(deadline, finished).await.is_err() {
            tracing::warn!("Broke off requests that did not finish in time");
            connections.shutdown().await;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.api.imagings.stop(left).await;
        self.api.machines.count_all().await;
        let api = self.api;
        let _ = tokio::task::spawn_blocking(move || api.store.store_counters()).await;
    }
}

/// The quotas of each user.
fn quotas(config: &Config) -> Quotas {
    Quotas::new(QuotaLimits::new([
        (QuotaKind::Drives, config.drives_max),
        (QuotaKind::Bytes, config.drive_bytes_max),
        (QuotaKind::Servers, config.servers_max),
        (QuotaKind::Addresses, config.addresses_max),
        (QuotaKind::Vlans, config.vlans_max),
        (QuotaKind::Memory, config.guest_memory_bytes_max),
        (QuotaKind::Cores, config.guest_cores_max),
    ]))
}

/// The machines in the data directory, configured by `config`.
fn open_machines(config: &mut Config, store: &Arc<Store>) -> Result<Machines> {
    let cgroup = config.cgroup.as_deref().map(open_cgroup).transpose()?;
    let qemu = Qemu::new(
        std::mem::take(&mut config.qemu),
        std::mem::take(&mut config.qemu_environment),
        cgroup,
    );
    let network = GuestNetwork {
        forward: std::mem::take(&mut config.forward),
        reach: config.guest_network,
        has_vnc_port: config.has_vnc_port,
    };
    let backing = Backing {
        data: config.directory.clone(),
        staging: store.staging(),
        drives: Arc::clone(store) as Arc<dyn Drives>,
        quotas: store.quotas(),
    };
    Machines::open(backing, qemu, network).map_err(|error| {
        let what = format!("Cannot load the servers in {}", config.directory.display());
        Error::new(ErrorKind::Local, what).because(error)
    })
}

fn open_cgroup(directory: &Path) -> Result<Cgroup> {
    Cgroup::open(directory).map_err(|error| {
        let what = format!("Cannot use the control group {}", directory.display());
        Error::new(ErrorKind::Local, what)
            .because(error)
            .hint_to("Give a directory of cgroup version 2 that is yours, with the controller cpu")
    })
}

/// Serves one connection to its end.
async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    api: Arc<shared::Api>,
    watcher: Watcher,
    place: Arc<Admitted>,
) {
    let peer = peer::Peer::of(&stream).ok();
    let socket = socket::Socket::new(stream);
    let client = Client {
        is_reset: socket.reset_flag(),
        peer,
        place,
    };
    let Some(acceptor) = tls else {
        return connection::serve(socket, api, watcher, client).await;
    };
    match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => connection::serve(stream, api, watcher, client).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_embedded_server_runs_until_it_is_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::open(Config::new(directory.path())).unwrap();
        assert_eq!(server.scheme(), "http");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(server.run(listener, async {
            let _ = stopped.await;
        }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /drives/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
        // The directory is free again.
        Server::open(Config::new(directory.path())).unwrap();
    }

    #[test]
    fn plain_http_stays_on_the_loopback_interface() {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::open(Config::new(directory.path())).unwrap();
        for (address, is_allowed) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
        ] {
            let checked = server.check_address(address.parse().unwrap());
            assert_eq!(checked.is_ok(), is_allowed, "{address}");
        }
    }
}
