//! Load test: many users write at the same time, each to a drive of their own, uncompressed and
//! compressed bodies, as fast as they can. At the end everything is read back and compared.
//!
//! ```sh
//! cargo bench --bench load -- --users 64 --seconds 60
//! cargo bench --bench load -- --users 64 --seconds 60 --kind raw --peer nginx
//! ```
//!
//! With `--hostile` the same load runs without an attack, and then with one user who exhausts each
//! budget of the server in turn. The output shows how much that affects the others.
//!
//! ```sh
//! cargo bench --bench load -- --hostile --users 64 --seconds 20
//! ```
//!
//! nginx (Debian: nginx-light, or nginx with its WebDAV module) receives the same bodies by PUT, as
//! a reference for how fast bytes can be written to the disk. The exit code is 1 if anything failed
//! or is missing at the end.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "load/client.rs"]
#[allow(unreachable_pub)]
mod client;
#[path = "load/hostile.rs"]
#[allow(unreachable_pub)]
mod hostile;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use client::{Kind, Load, Place};

#[derive(Parser)]
struct Args {
    /// Users, each with a connection
    #[arg(long, default_value_t = 64)]
    users: usize,

    /// How long they write
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Bytes of one body, unpacked
    #[arg(long, default_value_t = 1 << 20)]
    body: usize,

    /// Places that each user writes to in turn
    #[arg(long, default_value_t = 16)]
    slots: usize,

    /// How bodies are sent
    #[arg(long, default_value = "both")]
    kind: Bodies,

    /// Who takes them
    #[arg(long, default_value = "server")]
    peer: Peer,

    /// Also run with one user who exhausts each budget in turn
    #[arg(long)]
    hostile: bool,

    /// Where the drives are; a directory below it is made and removed again
    #[arg(long, default_value = "/tmp")]
    directory: std::path::PathBuf,

    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Bodies {
    Raw,
    Gzip,
    Both,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Peer {
    Server,
    Nginx,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let directory = tempfile::tempdir_in(&args.directory).unwrap();
    let load = Load {
        kind: match args.kind {
            Bodies::Raw => Kind::Raw,
            Bodies::Gzip => Kind::Gzip,
            Bodies::Both => Kind::Both,
        },
        body_bytes: args.body,
        slots: args.slots,
        time: Duration::from_secs(args.seconds),
    };
    let (name, mut child, address, places) = match args.peer {
        Peer::Server => server(&args, directory.path()),
        Peer::Nginx if args.kind != Bodies::Raw => {
            println!("nginx does not unpack bodies: --kind raw");
            return ExitCode::from(2);
        }
        Peer::Nginx => nginx(&args, directory.path()),
    };
    let report = client::run(address, &places, load);
    let mut is_fair = true;
    if args.hostile {
        is_fair = with_hostile_neighbours(address, &places, load, &report);
    }
    let peak = peak_bytes(child.id());
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    println!("{name}, {} users, {} s: {report}", args.users, args.seconds);
    println!("{name}: at most {} MiB of memory", peak >> 20);
    for error in report.errors.iter().take(20) {
        println!("error: {error}");
    }
    match report.errors.is_empty() && report.verified_bytes > 0 && is_fair {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs the load with each attack, and prints how it compares with the run before the attacks.
/// Returns whether no honest request failed.
fn with_hostile_neighbours(
    address: SocketAddr,
    places: &[Place],
    load: Load,
    quiet: &client::Report,
) -> bool {
    let p99 = |report: &client::Report| report.latencies.value_at_quantile(0.99) as f64 / 1000.0;
    let quiet_p99 = p99(quiet);
    println!("| one user takes | requests | failures | p50 ms | p99 ms | p99 to that without |");
    println!("|---|--:|--:|--:|--:|--:|");
    let row = |name: &str, report: &client::Report| {
        let p50 = report.latencies.value_at_quantile(0.5) as f64 / 1000.0;
        let (requests, failures) = (report.requests, report.errors.len());
        let p99 = p99(report);
        let ratio = p99 / quiet_p99;
        println!("| {name} | {requests} | {failures} | {p50:.1} | {p99:.1} | {ratio:.2} |");
    };
    row("nothing", quiet);
    let mut failures = 0;
    for attack in hostile::Attack::ALL {
        let held = hostile::begin(address, attack).unwrap();
        let report = client::run(address, places, load);
        drop(held);
        row(&format!("{attack:?}").to_lowercase(), &report);
        for error in report.errors.iter().take(3) {
            println!("error: {error}");
        }
        failures += report.errors.len();
    }
    failures == 0
}

/// The peak memory of a process and its children.
fn peak_bytes(pid: u32) -> u64 {
    let own = client::peak_resident_bytes(pid).unwrap_or(0);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    own + children.map(peak_bytes).sum::<u64>()
}

type Running = (&'static str, Child, SocketAddr, Vec<Place>);

fn server(args: &Args, directory: &Path) -> Running {
    let users: Vec<String> = (0..args.users)
        .map(|i| format!("00000000-0000-4000-8000-{i:012}:key-{i}"))
        .collect();
    let file = directory.join("users");
    let mut lines = users.join("\n");
    if args.hostile {
        lines = format!("{lines}\n{}", hostile::USER);
    }
    std::fs::write(&file, lines).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_openhosting-server"))
        .arg("--data")
        .arg(directory.join("data"))
        .arg("--users-file")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let (_, address) = line.trim_end().split_once("http://").unwrap();
    let address: SocketAddr = address.trim_end_matches(['/', '\'']).parse().unwrap();
    let size = (args.body * args.slots) as u64;
    let places = users
        .into_iter()
        .map(|auth| Place::Drive {
            id: client::create(address, &auth, size).unwrap(),
            auth,
        })
        .collect();
    ("openhosting-server", child, address, places)
}

fn nginx(args: &Args, directory: &Path) -> Running {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut config = String::new();
    let here = directory.display();
    // The module may also be a part of the program.
    for module in ["/usr/lib/nginx/modules/ngx_http_dav_module.so"] {
        if Path::new(module).exists() {
            writeln!(config, "load_module {module};").unwrap();
        }
    }
    // Settings that make the comparison fair: no access log, bodies of any size, staged on the same
    // file system, so that they can be renamed.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    writeln!(
        config,
        "{user} daemon off; worker_processes auto; pid {here}/pid; error_log {here}/error;
         events {{ worker_connections 1024; }}
         http {{ access_log off; client_max_body_size 0; client_body_temp_path {here}/staging;
           keepalive_requests 1000000; keepalive_timeout 600;
           server {{ listen 127.0.0.1:{port}; root {here}/files;
             location / {{ dav_methods PUT; create_full_put_path on; }} }} }}"
    )
    .unwrap();
    let file = directory.join("nginx.conf");
    std::fs::create_dir(directory.join("files")).unwrap();
    std::fs::write(&file, config).unwrap();
    let child = Command::new("nginx").arg("-c").arg(&file).spawn();
    let Ok(child) = child else {
        println!("There is no nginx: apt-get install nginx-light");
        std::process::exit(2);
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    while TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let places = (0..args.users).map(|i| Place::Files {
        path: format!("/user-{i}"),
    });
    let places = places.collect();
    ("nginx", child, address, places)
}
