//! `openhosting-server`: flags to [`Config`], two lines on stdout, signals.

mod banner;
mod self_signed;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{CommandFactory, Parser};
use rustix::fs::Mode;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use self::banner::Banner;
use super::arguments;
use super::output::OutputForm;
use super::signals::{Heard, exit_code_of};
use super::{
    candidates, complete, environment, exit, help, limits, printable, quote, screen,
    transfer_command,
};
use crate::credentials::Credentials;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::read_named;
use crate::server::{Config, FaultPlan, Rate, Reach, Server, users};
use crate::system::{BASE_OF_DATA, Signal, Signals};
use crate::wire::READ_BYTES_MAX;

const PROGRAM: &str = "openhosting-server";
/// Where it listens by default: always at the same port, so that a client that was stopped finds
/// it again after a restart.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8463);
/// Threads for work that blocks: more than requests and steps of reads can take
/// (`crates/server/src/budget.rs`).
const BLOCKING_THREADS_MAX: usize = 1024;
/// Headings of flags that no other command has.
const LIMITS: &str = "Limits for each user, unless stated otherwise";
const SERVERS: &str = "Virtual machines";
const TESTING: &str = "Testing clients";
const COMMAND: &str = "openhosting server";

/// Serves the API, with drives in a directory and virtual machines in QEMU
///
/// When the server accepts connections, it prints two lines on stdout: export OHURI=... and
/// export OHAUTH=... with the key of the first user. Paste them into another terminal, and the other
/// commands use this server. The second line is missing with --users-file, and if stdout is the log
/// of systemd.
// No Debug: it holds keys.
#[derive(Parser)]
#[command(name = PROGRAM, version, after_long_help = help::after("server"))]
pub(super) struct ServerArguments {
    /// Listen on this address and port; port 0 is any free one
    ///
    /// The default is 127.0.0.1:8463, or any free port if another program uses that one. A port
    /// below 1024 needs root or CAP_NET_BIND_SERVICE.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket)]
    listen: Option<SocketAddr>,

    /// Store the drives in DIR
    ///
    /// By default it is openhosting-server in $XDG_DATA_HOME or ~/.local/share.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    data: Option<PathBuf>,

    /// Serve this user; may be given several times
    ///
    /// Other users of this machine can see the key: prefer --users-file. If neither flag is
    /// given, the server generates a user and stores it.
    #[arg(long, value_name = "UUID:KEY")]
    user: Vec<String>,

    /// Read users from FILE, with one UUID:KEY a line
    ///
    /// Only its owner may have access to it: use mode 0600.
    #[arg(long, value_name = "FILE", add = candidates::files())]
    users_file: Option<PathBuf>,

    /// Use this certificate chain for TLS (PEM)
    #[arg(long, value_name = "FILE", add = candidates::files(), requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Use this private key for TLS (PEM)
    #[arg(long, value_name = "FILE", add = candidates::files(), requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Make a certificate for TLS, and store it beside the drives
    ///
    /// The certificate is for localhost and the address of --listen, or for the host name and all
    /// addresses of this machine if that address is 0.0.0.0 or [::]. The file is
    /// self-signed-ADDRESS.pem in DIR of --data. Clients need a copy of it: --cacert FILE.
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    tls_self_signed: bool,

    /// Serve API or metrics to other machines without TLS
    ///
    /// Everybody on the network between can read the traffic, keys included. The client programs
    /// refuse such an endpoint: put a proxy with TLS in front of it.
    #[arg(long)]
    insecure_listen: bool,

    /// Accept one write to a drive at a time, and answer others with 409
    ///
    /// Some clouds do that.
    #[arg(long, hide_short_help = true, help_heading = TESTING)]
    one_writer: bool,

    /// Round sizes of drives up to a multiple of 4 MiB
    ///
    /// Some clouds do that.
    #[arg(long, hide_short_help = true, help_heading = TESTING)]
    round_size: bool,

    /// Refuse reads of more than this many bytes, as clouds do
    #[arg(long, value_name = "BYTES", default_value_t = READ_BYTES_MAX, value_parser = arguments::bytes, hide_short_help = true, help_heading = TESTING)]
    read_max: u64,

    /// Serve no web page at /ui/
    #[arg(long)]
    no_page: bool,

    /// Limit the drives; none for no limit
    ///
    /// By default 1000, or a quarter of ulimit -n if that is less, because each drive is an open
    /// file.
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_drives: Option<OrNone<u64>>,

    /// Limit the sizes of all drives together
    ///
    /// The whole size of a drive counts, even if it takes less space on the disk.
    #[arg(long, value_name = "SIZE", value_parser = arguments::bytes, hide_short_help = true, help_heading = LIMITS)]
    max_bytes: Option<u64>,

    /// Limit the virtual machines; none for no limit [default: 100]
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_servers: Option<OrNone<u64>>,

    /// Limit the reserved addresses; none for no limit [default: 100]
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_addresses: Option<OrNone<u64>>,

    /// Limit the private networks; none for no limit [default: 100]
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_vlans: Option<OrNone<u64>>,

    /// Limit the memory of active virtual machines; none for no limit
    ///
    /// The default is half of the memory of this machine.
    #[arg(long, value_name = "SIZE", value_parser = size_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_memory: Option<OrNone<u64>>,

    /// Limit the cores of active virtual machines; none for no limit [default: 64]
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none, hide_short_help = true, help_heading = LIMITS)]
    max_cores: Option<OrNone<u64>>,

    /// Limit the requests: 20/s, 600/m or 10000/h
    #[arg(long, value_name = "RATE", hide_short_help = true, help_heading = LIMITS)]
    rate_limit: Option<Rate>,

    /// Limit the connections
    #[arg(long, value_name = "NUMBER", default_value = "256", value_parser = arguments::number::<NonZeroUsize>, hide_short_help = true, help_heading = LIMITS)]
    max_connections: NonZeroUsize,

    /// Limit the wrong keys from one address; none for no limit
    ///
    /// Above the limit, every request from that address is answered with 429. The default is 60/m.
    #[arg(long, value_name = "RATE", value_parser = rate_or_none, hide_short_help = true, help_heading = LIMITS)]
    wrong_key_limit: Option<OrNone<Rate>>,

    /// Serve /metrics to everybody at this address, without TLS
    ///
    /// An address that other machines reach needs --insecure-listen, even if the API has TLS.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket, hide_short_help = true, help_heading = help::OUTPUT)]
    metrics: Option<SocketAddr>,

    /// Cause the faults that FILE lists, or behave as other clouds do
    ///
    /// FILE is TOML or JSON.
    #[arg(long = "faults", alias = "fault-plan", value_name = "FILE", add = candidates::files(), hide_short_help = true, help_heading = TESTING)]
    fault_plan: Option<PathBuf>,

    /// Run virtual machines with this QEMU
    #[arg(long, value_name = "PROGRAM", add = candidates::files(), default_value = "qemu-system-x86_64", hide_short_help = true, help_heading = SERVERS)]
    qemu: PathBuf,

    /// Forward this TCP port of a virtual machine's address to its guest
    ///
    /// May be given several times.
    #[arg(long, value_name = "PORT", value_parser = arguments::number::<u16>, hide_short_help = true, help_heading = SERVERS)]
    forward: Vec<u16>,

    /// Choose what guests reach: none, internet or host
    ///
    /// With none, guests answer only at the ports of --forward. With internet they also reach
    /// public IPv4 addresses and DNS, and nothing of this machine or its network. With host they
    /// reach everything that this machine reaches, its loopback interface too: only for guests
    /// that you trust.
    #[arg(long, value_name = "NETWORK", default_value = "none", hide_possible_values = true, hide_short_help = true, help_heading = SERVERS)]
    guest_network: GuestNetwork,

    /// Switch off VNC
    ///
    /// By default, VNC viewers can connect to port 5900 of the address of each virtual machine.
    #[arg(long, hide_short_help = true, help_heading = SERVERS)]
    no_vnc_port: bool,

    /// Limit the processor time of each virtual machine by its key cpu
    ///
    /// DIR is a directory of cgroup version 2 with the controller cpu. By default all virtual
    /// machines get equal shares of the processors.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, hide_short_help = true, help_heading = SERVERS)]
    cgroup: Option<PathBuf>,

    /// Log every request
    #[arg(short, long)]
    verbose: bool,

    /// Log as text, or as json with one object a line
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true, hide_short_help = true, help_heading = help::OUTPUT)]
    log_format: LogFormat,

    /// Print one JSON object instead of the two lines
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One object a line, for programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum GuestNetwork {
    /// Nothing: guests only answer at the ports of --forward
    None,
    /// Public IPv4 addresses and DNS, nothing of this machine or its network
    Internet,
    /// All that this machine reaches, its loopback interface included: for guests
    /// that you trust
    Host,
}

impl From<GuestNetwork> for Reach {
    fn from(network: GuestNetwork) -> Self {
        match network {
            GuestNetwork::None => Self::None,
            GuestNetwork::Internet => Self::Internet,
            GuestNetwork::Host => Self::Host,
        }
    }
}

/// Reads an address and a port to listen on.
fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not an address and a port. Use numbers, for example 127.0.0.1:8463 or [::1]:8463"
        )
    })
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug)]
struct OrNone<T>(Option<T>);

impl<T> OrNone<T> {
    fn parse<E>(text: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<Self, E> {
        match text {
            "none" => Ok(Self(None)),
            text => parse(text).map(|limit| Self(Some(limit))),
        }
    }

    /// What was given, else the usual limit.
    fn or(given: Option<Self>, usual: Option<T>) -> Option<T> {
        given.map_or(usual, |Self(most)| most)
    }
}

fn rate_or_none(text: &str) -> Result<OrNone<Rate>> {
    OrNone::parse(text, str::parse)
}

fn number_or_none(text: &str) -> Result<OrNone<u64>, String> {
    OrNone::parse(text, |number| {
        number.parse().map_err(|_| {
            format!(
                "{number:?} is neither a whole number nor \"none\". Use digits, for example 100"
            )
        })
    })
}

fn size_or_none(text: &str) -> Result<OrNone<u64>, String> {
    OrNone::parse(text, arguments::bytes)
}

/// Whether this program has the server.
pub(super) const IS_HERE: bool = true;

/// Runs the server until SIGINT or SIGTERM, and gives the exit code.
pub fn main() -> ExitCode {
    if complete::answered(ServerArguments::command) {
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = std::env::args_os().collect();
    run(PROGRAM, &words)
}

/// `openhosting server`.
pub(super) fn main_of(words: &[OsString]) -> ExitCode {
    run(COMMAND, &transfer_command::as_program(words))
}

/// The form of the output of the server, under the name by which it was started.
fn form(program: &'static str) -> OutputForm {
    OutputForm::new(program, "server/1")
}

fn run(program: &'static str, words: &[OsString]) -> ExitCode {
    let form = form(program);
    let args: ServerArguments = match form.parse(words) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let is_json = args.json;
    let level = if args.verbose {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let log = tracing_subscriber::fmt()
        .with_writer(log_writer(args.log_format))
        .with_max_level(level)
        .with_ansi(false);
    // Fails only if a subscriber is installed already; that one is used.
    let _ = match args.log_format {
        // A person who watches it needs neither the date nor the modules of this program.
        LogFormat::Text if io::stderr().is_terminal() => {
            log.with_target(false).with_timer(TimeOfDay).try_init()
        }
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
    };
    let (runtime, listening) = match start(args) {
        Ok(started) => started,
        Err(error) => return form.finish(is_json, &Heard::default(), Err(error)),
    };
    // Only one object is printed, so an error from now on is reported on stderr only.
    let ended = runtime.block_on(serve(listening));
    // Do not wait for blocked threads for more than a second.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(signal)) => {
            let name = match signal {
                Signal::Interrupt => "SIGINT",
                Signal::Terminate => "SIGTERM",
            };
            let what = format!("Stopped by {name} before requests in flight had finished");
            let error = Error::new(ErrorKind::Cancelled, what);
            exit::failed(program, &error, exit_code_of(signal))
        }
        Err(error) => exit::finish(program, Err(error)),
    }
}

/// The time of day in UTC, such as `18:21:05Z`.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let second = now.unwrap_or_default().as_secs() % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(line, "{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Where lines of the log go: to stderr, without characters that change how a terminal
/// shows a line. What clients send, such as paths and names of keys, can hold them.
fn log_writer(format: LogFormat) -> impl Fn() -> Printable<io::Stderr> + Send + Sync + 'static {
    move || Printable {
        to: io::stderr(),
        format,
    }
}

/// Escapes what is written, which is one line at a time.
struct Printable<W> {
    to: W,
    format: LogFormat,
}

impl<W: io::Write> io::Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let safe = match self.format {
            LogFormat::Json => printable::safe_json(&text),
            LogFormat::Text => {
                let lines = text.split_inclusive('\n').map(|line| {
                    let end = if line.ends_with('\n') { "\n" } else { "" };
                    printable::line(line.trim_end_matches('\n')) + end
                });
                lines.collect()
            }
        };
        self.to.write_all(safe.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Opens the server, listens, and prints the address.
fn start(args: ServerArguments) -> Result<(Runtime, ListeningServer)> {
    let addresses = Addresses {
        listen: args.listen,
        metrics: args.metrics,
    };
    let (is_json, is_self_signed) = (args.json, args.tls_self_signed);
    // Others may read the journal of systemd, and what it holds stays.
    let shows_key = args.users_file.is_none() && !screen::is_stdout_journal();
    let files = allow_many_files();
    // Whatever is made, by programs that run servers too, is for this user only.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let mut config = config(args, files)?;
    let self_signed = match is_self_signed {
        true => {
            let listen = addresses.listen.unwrap_or(LISTEN);
            let files = self_signed::files(&config.directory, listen)?;
            config.tls = Some((files.certificate.clone(), files.key.clone()));
            Some(files)
        }
        false => None,
    };
    let greeting = Greeting {
        is_json,
        shows_key,
        banner: Banner {
            data: config.directory.clone(),
            has_page: config.has_page,
            self_signed,
        },
    };
    let server = Server::open(config)?;
    server.check_address(addresses.listen.unwrap_or(LISTEN))?;
    if let Some(address) = addresses.metrics {
        server.check_metrics_address(address)?;
    }
    limits::check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(|error| Error::new(ErrorKind::Local, "Cannot start the runtime").because(error))?;
    let listening = runtime.block_on(listen_on(server, addresses, &greeting))?;
    Ok((runtime, listening))
}

/// Where a user's programs keep their data.
fn data_directory() -> Option<PathBuf> {
    environment::base_directory("XDG_DATA_HOME")
        .or_else(|| environment::base_of_system(BASE_OF_DATA))
}

/// What other programs need to find programs and libraries, and nothing else.
fn environment_of_programs() -> Vec<(OsString, OsString)> {
    let names = ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG"];
    let pair = |name| Some((OsString::from(name), std::env::var_os(name)?));
    names.into_iter().filter_map(pair).collect()
}

/// Raises the limit of open files as far as it goes, and returns it. Every drive is an
/// open file, and the usual soft limit is 1024.
fn allow_many_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "Cannot raise the number of open files");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The configuration for a process that may open `files` files.
fn config(args: ServerArguments, files: u64) -> Result<Config> {
    let directory = match args.data {
        Some(directory) => directory,
        None => default_directory()?,
    };
    let mut users: Vec<Credentials> = Vec::new();
    for user in &args.user {
        users.push(users::parse_line(user)?);
    }
    if let Some(path) = &args.users_file {
        users.extend(users::read_file(path)?);
    }
    let faults = args.fault_plan.as_deref().map(fault_plan).transpose()?;
    let usual = Config::new(directory);
    let drives_max = usual.drives_max.map(|most| most.min(files / 4));
    Ok(Config {
        wrong_keys_max: OrNone::or(args.wrong_key_limit, usual.wrong_keys_max),
        faults: faults.unwrap_or_default(),
        users,
        tls: args.tls_cert.zip(args.tls_key),
        insecure_listen: args.insecure_listen,
        one_writer: args.one_writer,
        round_size: args.round_size,
        read_bytes_max: args.read_max,
        has_page: !args.no_page,
        drives_max: OrNone::or(args.max_drives, drives_max),
        drive_bytes_max: args.max_bytes,
        servers_max: OrNone::or(args.max_servers, usual.servers_max),
        addresses_max: OrNone::or(args.max_addresses, usual.addresses_max),
        vlans_max: OrNone::or(args.max_vlans, usual.vlans_max),
        guest_memory_bytes_max: OrNone::or(args.max_memory, usual.guest_memory_bytes_max),
        guest_cores_max: OrNone::or(args.max_cores, usual.guest_cores_max),
        requests_max: args.rate_limit,
        connections_max: args.max_connections.get(),
        qemu: args.qemu,
        qemu_environment: environment_of_programs(),
        forward: args.forward,
        guest_network: args.guest_network.into(),
        has_vnc_port: !args.no_vnc_port,
        cgroup: args.cgroup,
        ..usual
    })
}

fn default_directory() -> Result<PathBuf> {
    let data = data_directory();
    data.map(|data| data.join(PROGRAM)).ok_or_else(|| {
        let what = "XDG_DATA_HOME and HOME are not set, and this user has no home directory";
        Error::new(ErrorKind::Usage, what).hint_to("Say where to keep the drives with --data DIR")
    })
}

/// Most bytes of a fault plan.
const FAULT_PLAN_BYTES_MAX: u64 = 16 << 20;

fn fault_plan(path: &Path) -> Result<FaultPlan> {
    let text = read_named(path, FAULT_PLAN_BYTES_MAX).map_err(|error| {
        let what = format!("Cannot read the fault plan {}", path.display());
        Error::new(ErrorKind::Local, what).because(error)
    })?;
    let plan = String::from_utf8_lossy(&text).parse::<FaultPlan>();
    plan.map_err(|cause| {
        let what = format!("Cannot use the fault plan {}", path.display());
        Error::new(ErrorKind::Usage, what).because_of(cause)
    })
}

/// A server that accepts connections, and whose address was printed.
struct ListeningServer {
    server: Server,
    listener: TcpListener,
    signals: Signals,
}

/// Where to listen.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    /// `None` of the usual address.
    listen: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
}

/// What to print once the server accepts connections.
struct Greeting {
    is_json: bool,
    shows_key: bool,
    banner: Banner,
}

impl Greeting {
    /// Whether a person gets the lines of the [`Banner`], which include the address.
    fn has_banner(&self) -> bool {
        !self.is_json && io::stdout().is_terminal() && io::stderr().is_terminal()
    }
}

async fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind(address).await?;
    Ok((listener.local_addr()?, listener))
}

/// At the usual port, or at any free one if another program uses that.
async fn bind_usual() -> io::Result<(SocketAddr, TcpListener)> {
    match bind(LISTEN).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let bound = bind(SocketAddr::new(LISTEN.ip(), 0)).await?;
            let (usual, address) = (LISTEN.port(), bound.0);
            tracing::warn!(
                "Port {usual} is in use: listening on another one; to keep that one at the next start: --listen {address}"
            );
            Ok(bound)
        }
        bound => bound,
    }
}

async fn listen_on(
    mut server: Server,
    addresses: Addresses,
    greeting: &Greeting,
) -> Result<ListeningServer> {
    let failed = |what: String, error: io::Error| Error::new(ErrorKind::Local, what).because(error);
    let cannot_listen = |address| move |error| failed(format!("Cannot listen on {address}"), error);
    let (address, listener) = match addresses.listen {
        Some(address) => bind(address).await.map_err(cannot_listen(address))?,
        None => bind_usual().await.map_err(cannot_listen(LISTEN))?,
    };
    if let Some(metrics) = addresses.metrics {
        let (address, listener) = bind(metrics).await.map_err(cannot_listen(metrics))?;
        tracing::info!(%address, "Serving metrics");
        server = server.with_metrics(listener);
    }
    let signals = Signals::listen().map_err(|error| failed("Cannot hear signals".into(), error))?;
    let asked = addresses.listen.unwrap_or(LISTEN).port();
    announce(&server, address, asked != address.port(), greeting)?;
    if !greeting.shows_key {
        let user = server.credentials().user();
        tracing::info!(
            user,
            "Did not print the key of the first user, which is in a file"
        );
    }
    if let Some(files) = &greeting.banner.self_signed {
        let certificate = files.certificate.display();
        tracing::info!(%certificate, "Clients need this certificate: --cacert FILE");
        let missing = files.missing.join(" ");
        if !missing.is_empty() {
            tracing::warn!(
                %certificate,
                missing,
                "The certificate is older than these names of this machine: remove it to get a new one"
            );
        }
    }
    if !greeting.has_banner() {
        tracing::info!(%address, "Serving");
    }
    Ok(ListeningServer {
        server,
        listener,
        signals,
    })
}

/// How long a server without requests in flight may take to end.
const END_OF_IDLE: Duration = Duration::from_millis(300);

/// Serves until a signal stops it. Returns a second signal that ended it before requests in flight
/// had finished.
async fn serve(listening: ListeningServer) -> Result<Option<Signal>> {
    let ListeningServer {
        server,
        listener,
        mut signals,
    } = listening;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = server.run(listener, async {
        let _ = stopped.await;
    });
    tokio::pin!(running);
    tokio::select! {
        result = &mut running => return result.map(|()| None),
        _ = signals.next() => drop(stop),
    }
    // The second signal is from somebody who does not want to wait, unless the first one was sent
    // twice: without requests in flight, the server ends within this time.
    let signal = tokio::select! {
        result = &mut running => return result.map(|()| None),
        signal = signals.next() => signal,
    };
    match tokio::time::timeout(END_OF_IDLE, running).await {
        Ok(result) => result.map(|()| None),
        Err(_) => Ok(Some(signal)),
    }
}

/// Prints the two lines, or the object; on a terminal with a banner around the lines, on stderr.
/// The kernel accepts connections already.
fn announce(
    server: &Server,
    address: SocketAddr,
    is_any_port: bool,
    greeting: &Greeting,
) -> Result<()> {
    let uri = format!("{}://{address}/", server.scheme());
    let lines = announcement(server, &uri, greeting);
    if !greeting.has_banner() {
        return exit::print(&lines);
    }
    let banner = &greeting.banner;
    let above = banner.above(&uri, address, is_any_port);
    above.lines().for_each(exit::say);
    exit::print(&lines)?;
    let below = banner.below(&uri, is_any_port);
    below.lines().for_each(exit::say);
    Ok(())
}

/// The two lines, or the object.
fn announcement(server: &Server, uri: &str, greeting: &Greeting) -> String {
    let auth = greeting.shows_key.then(|| server.credentials().expose());
    if greeting.is_json {
        let mut object = json!({ "endpoint": uri });
        if let Some(auth) = auth {
            object["auth"] = auth.as_str().into();
        }
        return form(PROGRAM).print(object, None);
    }
    let mut lines = format!("export OHURI={}\n", quote(uri));
    if let Some(auth) = auth {
        lines += &format!("export OHAUTH={}\n", quote(&auth));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_values_are_quoted_for_a_shell() {
        assert_eq!(quote("0012-ab:Key/1+2="), "0012-ab:Key/1+2=");
        assert_eq!(quote("u:a$b"), "'u:a$b'");
        assert_eq!(quote("u:it's"), "'u:it'\\''s'");
        assert_eq!(quote("u:é"), "'u:é'");
    }

    #[test]
    fn a_log_line_has_no_control_characters() {
        use std::io::Write;
        for (format, line) in [
            (LogFormat::Text, "a\\u{202e}b\\u{1b}\n"),
            (LogFormat::Json, "a\\u202eb\\u001b\n"),
        ] {
            let mut log = Printable {
                to: Vec::new(),
                format,
            };
            log.write_all("a\u{202e}b\x1b\n".as_bytes()).unwrap();
            assert_eq!(String::from_utf8(log.to).unwrap(), line);
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        ServerArguments::command().debug_assert();
    }

    #[test]
    fn flags_become_a_config() {
        let args = [
            PROGRAM,
            "--data",
            "d",
            "--user",
            "0012e24a-6eae-4279-9912-3432f698cec8:k",
            "--one-writer",
            "--read-max",
            "9",
        ];
        let config = config(ServerArguments::parse_from(args), 2048).unwrap();
        assert_eq!(config.drives_max, Some(512));
        assert_eq!(config.directory, PathBuf::from("d"));
        assert_eq!(config.users[0].expose_key(), "k");
        assert!(config.one_writer && !config.round_size && config.tls.is_none());
        assert_eq!(config.read_bytes_max, 9);
        assert!(ServerArguments::try_parse_from([PROGRAM, "--tls-cert", "c"]).is_err());
    }
}
