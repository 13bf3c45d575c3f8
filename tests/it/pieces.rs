//! Links that cannot carry a whole chunk: connections that break before one is transferred, and
//! endpoints that refuse its size.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::support::cli::Desk;
use super::support::http::assert_drive;
use super::support::noise;
use super::support::proxy::{Fault, FaultProxy, Request, answer};
use super::support::server::TestServer;
use super::support::slow::{Cut, SlowLink};
use crate::support::needs::{Need, needs};
use crate::support::watchdog::wait_until;

const KIB: u64 = 1024;
const MIB: u64 = 1 << 20;
/// How many bytes a connection carries: less than a chunk of 5 MiB, and not a power of two.
const LIVES: u64 = 600_000;
const NO_PAUSE: Duration = Duration::ZERO;

/// Text with as much noise in it that gzip halves its length.
fn half_noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = noise(seed, len);
    for block in bytes.chunks_mut(1000) {
        let half = block.len() / 2;
        block[..half].fill(b'x');
    }
    bytes
}

/// A drive that holds this, created by an undisturbed upload.
fn holding(desk: &Desk, server: &TestServer, image: &[u8]) -> String {
    desk.file("held.img", image);
    let tool = desk.upload(&server.uri).args("--level 0 held.img");
    tool.run().code(0).created()
}

fn declared(request: &Request) -> u64 {
    let len = request.header("content-length");
    len.map_or(0, |len| len.parse().unwrap())
}

// ---- Connections that break ----

#[test]
fn an_upload_succeeds_over_connections_shorter_than_a_chunk() {
    for (image, flags) in [
        (noise(1, 12 << 20), "-j 4"),
        // One chunk, and nothing else that could succeed.
        (half_noise(3, 5 << 20), "--level 1"),
    ] {
        let desk = Desk::new();
        let server = desk.server();
        let link = SlowLink::cutting(&server, NO_PAUSE, Cut::Up(LIVES));
        desk.file("a.img", &image);
        let tool = desk.upload(&link.uri()).args(flags).arg("a.img");
        let outcome = tool.run().code(0);
        assert_drive(&server, &outcome.created(), &image);
        let outcome = outcome.says("Connections break before a chunk gets through");
        let (up, _) = link.take_counts();
        // Sent in vain are at most: two chunks for each of four workers, one for each halving down
        // to a size that succeeds, and one or two when a larger size is tried again.
        let most = image.len() as u64 + 14 * LIVES;
        assert!(up <= most, "{up} bytes for {}: {outcome:?}", image.len());
    }
}

#[test]
fn an_upload_succeeds_over_short_lived_connections() {
    let desk = Desk::new();
    let server = desk.server();
    // 16 KiB in 10 ms: at best half of a chunk.
    let lives = Cut::After(Duration::from_secs(1));
    let link = SlowLink::cutting(&server, Duration::from_millis(10), lives);
    let image = noise(4, 6 << 20);
    desk.file("a.img", &image);
    let outcome = desk.upload(&link.uri()).arg("a.img").run().code(0);
    assert_drive(&server, &outcome.created(), &image);
    let (up, _) = link.take_counts();
    assert!(up <= 4 * image.len() as u64, "{up} bytes");
}

#[test]
fn a_download_keeps_the_gapless_beginning_of_a_chunk() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(5, 12 << 20);
    let drive = holding(&desk, &server, &image);
    for (cut, pause) in [
        (Cut::Down(LIVES), 0),
        (Cut::After(Duration::from_millis(400)), 10),
    ] {
        let link = SlowLink::cutting(&server, Duration::from_millis(pause), cut);
        let tool = desk.download(&link.uri()).args("-c 5242880");
        let _ = tool.arg(&drive).arg("b.img").run().code(0);
        let held = std::fs::read(desk.path("b.img")).unwrap();
        assert!(held == image, "{cut:?}");
        std::fs::remove_file(desk.path("b.img")).unwrap();
        let (_, down) = link.take_counts();
        // What is lost is what was in flight in the link, and headers.
        let most = image.len() as u64 + link.cuts() * 40 * KIB;
        assert!(link.cuts() > 5 && down <= most, "{down} bytes, {cut:?}");
    }
    let link = SlowLink::cutting(&server, NO_PAUSE, Cut::Down(LIVES));
    let tool = desk.download(&link.uri()).arg(&drive).arg("-");
    assert!(tool.run().code(0).stdout == image);
}

#[test]
fn the_received_part_of_a_chunk_survives_a_failed_attempt() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(6, 4 << 20);
    let drive = holding(&desk, &server, &image);
    // Half of the chunk arrives, and then, for some attempts, nothing at all.
    let half = |_: &Request, answer: Vec<u8>| answer[..answer.len() / 2].to_vec();
    proxy.fault(Request::is_read, 1, Fault::rewrite(half));
    proxy.fault(Request::is_read, 3, Fault::ResetBeforeBody);
    let tool = desk.download(&proxy.uri());
    let tool = tool.args("--verify none -j 1 --stall-timeout 1s");
    let _ = tool.arg(&drive).arg("b.img").run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    let down = proxy.bytes_down();
    let most = image.len() as u64 + 64 * KIB;
    assert!(down <= most, "{down} bytes for {}", image.len());
}

#[test]
fn chunks_that_never_complete_do_not_count_as_progress() {
    const CHUNK: usize = 24_576;
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let drive = holding(&desk, &server, &noise(20, 40 * CHUNK));
    // The first part of each chunk arrives, the rest never.
    let never = |request: &Request| request.is_read() && !request.path.ends_with("/16384");
    proxy.fault(never, usize::MAX, Fault::Answer(answer(502, &[], b"")));
    let tool = desk.download(&proxy.uri()).args("-c 24576 --max-outage 1s");
    let _ = tool.arg(&drive).arg("b.img").run().code(75);
    let reads = proxy.count(Request::is_read);
    assert!(reads < 1000, "{reads} reads");
}

#[test]
fn reads_get_smaller_where_whole_ones_never_get_through() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(7, 8 << 20);
    let drive = holding(&desk, &server, &image);
    // A proxy that accepts answers of up to half a MiB, and refuses others in its own way.
    let is_large = |request: &Request| {
        let len = request.path.rsplit('/').next().unwrap();
        request.is_read() && len.parse::<u64>().unwrap() > MIB / 2
    };
    for page in [
        answer(502, &["Content-Type: text/html"], b"<html>too large</html>"),
        answer(413, &[], b""),
    ] {
        proxy.heal();
        proxy.forget();
        proxy.fault(is_large, usize::MAX, Fault::Answer(page));
        let tool = desk.download(&proxy.uri()).args("-c 4194304 --verify none");
        let _ = tool.arg(&drive).arg("b.img").run().code(0);
        assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
        std::fs::remove_file(desk.path("b.img")).unwrap();
        let large = proxy.count(is_large);
        assert!(large <= 16, "{large} reads in vain");
    }
}

#[test]
fn everything_is_read_back_over_connections_that_break() {
    let desk = Desk::new();
    // A cloud without extensions: verification must read the bytes.
    let plan = desk.file("plan.json", br#"{"counters": "absent"}"#);
    let server = desk.server_with(&["--faults", plan.to_str().unwrap()]);
    let link = SlowLink::cutting(&server, NO_PAUSE, Cut::Down(LIVES));
    let image = noise(8, 6 << 20);
    desk.file("a.img", &image);
    let tool = desk.upload(&link.uri()).args("--verify full a.img");
    let outcome = tool.run().code(0);
    assert_drive(&server, &outcome.created(), &image);
    let (_, down) = link.take_counts();
    assert!(link.cuts() > 5);
    let most = image.len() as u64 + link.cuts() * 40 * KIB;
    assert!(down <= most, "{down} bytes");
}

#[test]
fn a_run_killed_between_two_pieces_resumes() {
    let desk = Desk::new();
    let server = desk.server();
    let pause = Duration::from_millis(2);
    let link = SlowLink::cutting(&server, pause, Cut::Up(LIVES));
    let image = noise(9, 24 << 20);
    desk.file("a.img", &image);
    let running = desk.upload(&link.uri()).arg("a.img").spawn();
    running.wait_stderr("smaller pieces");
    wait_until("14 MiB", || link.passed() >= 14 * MIB);
    let _ = running.kill9();
    let outcome = desk.upload(&link.uri()).arg("a.img").run().code(0);
    let outcome = outcome.says("Resuming: ");
    let drives = super::support::http::drives(&server);
    assert_eq!(drives.len(), 1, "{outcome:?}");
    assert_drive(&server, &drives[0], &image);
}

// ---- Sizes that are refused ----

/// Answers 413 to bodies of more than `most` bytes, before it receives them.
fn refusing(server: &TestServer, most: u64) -> FaultProxy {
    let proxy = FaultProxy::to(server);
    let page = answer(413, &["Content-Type: text/html"], b"<html>too large</html>");
    let is_large = move |request: &Request| declared(request) > most;
    proxy.fault(is_large, usize::MAX, Fault::Answer(page));
    proxy
}

#[test]
fn a_refused_request_size_is_halved_and_remembered() {
    for (most, image) in [
        (1_000_000, noise(10, 12 << 20)),
        (100_000, noise(11, 3 << 20)),
        (20_000, half_noise(12, 1 << 20)),
    ] {
        let desk = Desk::new();
        let server = desk.server();
        let proxy = refusing(&server, most);
        desk.file("a.img", &image);
        let run = || desk.upload(&proxy.uri()).arg("a.img").run().code(0);
        let outcome = run();
        assert_drive(&server, &outcome.created(), &image);
        let _ = outcome.says("The endpoint refuses requests of");
        let refused = |request: &Request| request.status == 413;
        let times = proxy.count(refused);
        // Four workers, and at most one halving for each at a time.
        assert!((1..=32).contains(&times), "{times} refused of {most}");
        let largest = |requests: &[Request]| {
            let writes = requests.iter().filter(|r| r.is_write() && r.status == 204);
            writes.map(|r| r.len).max().unwrap()
        };
        assert!(largest(&proxy.requests()) > most / 4);
        // The next run knows the limit.
        proxy.forget();
        let outcome = run();
        assert_drive(&server, &outcome.created(), &image);
        assert_eq!(proxy.count(refused), 0, "{most}");
    }
}

#[test]
fn a_refused_decompressed_size_is_halved() {
    let desk = Desk::new();
    let server = desk.server();
    let proxy = FaultProxy::to(&server);
    // A front that decompresses bodies to measure them.
    let refuse = |request: &Request, answered| match request.plain().len() > 1_000_000 {
        true => answer(413, &[], b""),
        false => answered,
    };
    let is_write = |request: &Request| request.is_write();
    proxy.fault(is_write, usize::MAX, Fault::rewrite(refuse));
    let mut image = half_noise(13, 6 << 20);
    image.extend(vec![b'x'; 6 << 20]);
    image.extend(vec![0; 6 << 20]);
    desk.file("a.img", &image);
    let target = super::support::http::create(&server, image.len() as u64);
    let tool = desk.upload(&proxy.uri()).arg("-d").arg(&target);
    let _ = tool.args("--level 1 a.img").run().code(0);
    assert_drive(&server, &target, &image);
}

#[test]
fn a_limit_below_the_minimum_size_is_reported() {
    let desk = Desk::new();
    let server = desk.server();
    let proxy = refusing(&server, 10_000);
    desk.file("a.img", &noise(14, 1 << 20));
    let outcome = desk.upload(&proxy.uri()).arg("a.img").run().code(1);
    let outcome = outcome.says("endpoint answered 413");
    let _ = outcome.says("client_max_body_size");
    let writes = proxy.count(|request| request.status == 413);
    assert!(writes <= 40, "{writes}");
}

#[test]
fn publish_halves_refused_requests() {
    let desk = Desk::new();
    let server = desk.server();
    let proxy = refusing(&server, 700_000);
    let image = noise(15, 9 << 20);
    desk.file("a.img", &image);
    let run = || {
        let tool = desk
            .simple(&proxy.uri())
            .args("publish --name golden a.img");
        tool.run().code(0)
    };
    let outcome = run();
    let drive = outcome.text().lines().next().unwrap().to_owned();
    assert_drive(&server, drive.trim(), &image);
    // Another image under another name: the refused size is known.
    proxy.forget();
    desk.file("a.img", &noise(16, 9 << 20));
    let tool = desk.simple(&proxy.uri()).args("publish --name other a.img");
    let _ = tool.run().code(0);
    assert_eq!(proxy.count(|request| request.status == 413), 0);
}

/// The address of nginx.
const NGINX: &str = "127.0.0.2";

/// nginx in front of a server; killed when dropped.
struct Nginx {
    process: Child,
    _directory: tempfile::TempDir,
    uri: String,
}

impl Nginx {
    /// Starts nginx with these lines in its configuration. `None`, with a message, if nginx is not
    /// installed.
    fn before(server: &TestServer, lines: &str) -> Option<Self> {
        if !needs(&[Need::Command("nginx")]) {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // nginx cannot choose a free port itself. No other test listens on this address, so the
        // port stays free.
        let port = {
            let listener = std::net::TcpListener::bind((NGINX, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let at = directory.path().display();
        let behind = server.address();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .collect();
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/error.log;\n\
             events {{}}\nhttp {{\naccess_log off;\n{temporary}\
             server {{\nlisten {NGINX}:{port};\n{lines}\n\
             location / {{ proxy_pass http://{behind}; }}\n}}\n}}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let process = Command::new("nginx")
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            process,
            _directory: directory,
            uri: format!("http://{NGINX}:{port}/"),
        };
        for _ in 0..1000 {
            if std::net::TcpStream::connect((NGINX, port)).is_ok() {
                return Some(nginx);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nginx does not start");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_upload_succeeds_through_nginx_with_a_body_limit() {
    let desk = Desk::new();
    let server = desk.server();
    let Some(nginx) = Nginx::before(&server, "client_max_body_size 1m;") else {
        return;
    };
    let image = noise(17, 12 << 20);
    desk.file("a.img", &image);
    let outcome = desk.upload(&nginx.uri).arg("a.img").run().code(0);
    assert_drive(&server, &outcome.created(), &image);
    let _ = outcome.says("The endpoint refuses requests of");
    let tool = desk.simple(&nginx.uri).args("publish --name golden a.img");
    let drive = tool.run().code(0).text().trim().to_owned();
    assert_drive(&server, &drive, &image);
}

// ---- Another chunk size ----

/// A run that stops after some chunks of 256 KiB; returns the confirmed bytes.
fn interrupted(desk: &Desk, proxy: &FaultProxy) -> u64 {
    let is_write = |request: &Request| request.is_write();
    let refused = Fault::Answer(answer(507, &[], b""));
    proxy.fault_after(8, is_write, usize::MAX, refused);
    let tool = desk.upload(&proxy.uri());
    let _ = tool.args("-c 262144 -j 2 --level 0 a.img").run().code(1);
    proxy.heal();
    let confirmed = proxy.requests();
    let confirmed = confirmed.iter().filter(|r| r.is_write() && r.status == 204);
    confirmed.map(|request| request.len).sum()
}

#[test]
fn a_resumed_upload_may_use_another_chunk_size() {
    let image = noise(18, 4 << 20);
    for chunk in [65_536, 1_000_000, 5_242_880] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("a.img", &image);
        let confirmed = interrupted(&desk, &proxy);
        proxy.forget();
        let tool = desk.upload(&proxy.uri()).args("--level 0 -c");
        let outcome = tool.arg(chunk.to_string()).arg("a.img").run().code(0);
        let outcome = outcome.says("Resuming: ");
        let says = outcome.stderr.contains("Chunks stay at 262144 bytes");
        assert_eq!(says, chunk > 262_144, "{outcome:?}");
        let drives = super::support::http::drives(&server);
        assert_eq!(drives.len(), 1);
        assert_drive(&server, &drives[0], &image);
        let requests = proxy.requests();
        let writes: Vec<_> = requests.iter().filter(|r| r.is_write()).collect();
        assert!(writes.iter().all(|request| request.len <= chunk));
        let sent: u64 = writes.iter().map(|request| request.len).sum();
        assert_eq!(sent, image.len() as u64 - confirmed, "{chunk}");
    }
}

#[test]
fn a_resumed_download_may_use_another_chunk_size() {
    let image = noise(19, 8 << 20);
    for chunk in [65_536, 1_000_000, 5_242_880] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let drive = holding(&desk, &server, &image);
        let refused = Fault::Answer(answer(507, &[], b""));
        proxy.fault_after(8, Request::is_read, usize::MAX, refused);
        let tool = desk.download(&proxy.uri()).args("-c 262144 -j 2");
        let _ = tool.arg(&drive).arg("b.img").run().code(1);
        proxy.heal();
        proxy.forget();
        let tool = desk.download(&proxy.uri()).args("--verify none -c");
        let tool = tool.arg(chunk.to_string()).arg(&drive).arg("b.img");
        let outcome = tool.run().code(0).says("Resuming: ");
        let says = outcome.stderr.contains("Chunks stay at 262144 bytes");
        assert_eq!(says, chunk > 262_144, "{outcome:?}");
        assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
        let requests = proxy.requests();
        let reads: Vec<_> = requests.iter().filter(|r| r.is_read()).collect();
        assert!(reads.iter().all(|request| request.answered <= chunk));
        let came: u64 = reads.iter().map(|request| request.answered).sum();
        assert!(came < image.len() as u64, "{came} bytes, {chunk}");
    }
}
