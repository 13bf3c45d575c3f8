//! What a hostile guest can reach and exhaust. The guest is fixtures/images/net.img, which sends
//! the frames that a test puts into it and prints the frames that it receives.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::servers::has_qemu;
use crate::support::http::{Ask, Reply};
use crate::support::server::{TestServer, working_below};

/// A guard against hanging; it does not promise any speed.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Where net.img has the letter of its mode, and its table of frames.
const LETTER_AT: usize = 512;
const FRAMES_AT: usize = 1024;
const SLOT_BYTES: usize = 256;
/// How many times a guest must have sent all frames before a missing one counts as lost.
const ROUNDS: usize = 6;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// QEMU's user network answers with this address.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST_PORT: u16 = 4000;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

// ---- Frames ----

fn frame(kind: u16, to: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &GUEST_MAC, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Asks for the gateway's hardware address; from this request, the network learns where the guest
/// is.
fn arp() -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let (from, to) = (GUEST.octets(), GATEWAY.octets());
    let payload = [&head[..], &GUEST_MAC, &from, &[0; 6], &to].concat();
    frame(ARP, [0xff; 6], &payload)
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ipv4(protocol: u8, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let (source, target) = (GUEST.octets(), to.octets());
    let head = [&[0x45, 0], &len[..], &[0, 0, 0, 0, 64, protocol]].concat();
    let sum = checksum(&[&head, &source, &target]);
    frame(
        IPV4,
        GATEWAY_MAC,
        &[&head, &sum[..], &source, &target, payload].concat(),
    )
}

fn with_checksum(protocol: u8, to: Ipv4Addr, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let len = (segment.len() as u16).to_be_bytes();
    let (source, target) = (GUEST.octets(), to.octets());
    let sum = checksum(&[&source, &target, &[0, protocol], &len, &segment]);
    segment[at..at + 2].copy_from_slice(&sum);
    ipv4(protocol, to, &segment)
}

/// The first packet of a TCP connection.
fn syn(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let ports = [GUEST_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0];
    with_checksum(6, to, [&ports[..], &rest].concat(), 16)
}

fn udp(to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let ports = [GUEST_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    let len = (8 + payload.len() as u16).to_be_bytes();
    with_checksum(17, to, [&ports[..], &len, &[0, 0], payload].concat(), 6)
}

/// A query to a resolver for the address of `localhost`.
fn dns_query() -> Vec<u8> {
    let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&head[..], b"\x09localhost\0\0\x01\0\x01"].concat()
}

/// The frames that a console shows as received, and how often all frames were sent.
fn received(console: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut frames, mut rounds, mut rest) = (Vec::new(), 0, console);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(b"sent\r\n") {
            (rounds, rest) = (rounds + 1, after);
        } else if let Some([low, high, after @ ..]) = rest.strip_prefix(b"RX") {
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(96);
            let Some((frame, after)) = after.split_at_checked(len) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = after;
        } else {
            // The output of the BIOS, and the end of a console that is still being written.
            rest = &rest[1..];
        }
    }
    (frames, rounds)
}

fn kind(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

/// Whether `frame` is TCP from this address and port to the guest, with these flags.
fn is_tcp(frame: &[u8], from: Option<Ipv4Addr>, ports: (u16, u16), flags: u8) -> bool {
    let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    kind(frame) == IPV4
        && frame[23] == 6
        && from.is_none_or(|from| frame[26..30] == from.octets())
        && frame[34..38] == ports
        && frame[47] & 0x3f == flags
}
const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

// ---- Guests ----

fn image(letter: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/net.img");
    let mut image = std::fs::read(path).unwrap();
    image[LETTER_AT] = letter;
    for (n, frame) in frames.iter().enumerate() {
        let slot = &mut image[FRAMES_AT + n * SLOT_BYTES..][..SLOT_BYTES];
        slot[..2].copy_from_slice(&(frame.len() as u16).to_le_bytes());
        slot[2..2 + frame.len()].copy_from_slice(frame);
    }
    image
}

fn post(server: &TestServer, path: &str, body: impl AsRef<[u8]>) -> Reply {
    Ask::of(server).post(path, body)
}

/// Starts a guest with this table; returns the answer.
fn start(server: &TestServer, letter: u8, frames: &[Vec<u8>], keys: &str) -> Reply {
    let image = image(letter, frames);
    let made = post(
        server,
        "/drives/create",
        format!("name net\nsize {}", image.len()),
    );
    let drive = made.expect(200).key("drive").unwrap().to_owned();
    post(server, &format!("/drives/{drive}/write"), image).expect(204);
    let body = format!(
        "name guest\ncpu 500\nmem 16\nide:0:0 {drive}\nboot ide:0:0\n\
         nic:0:model rtl8139\nnic:0:dhcp auto\n{keys}"
    );
    post(server, "/servers/create", body).expect(200)
}

fn id(reply: &Reply) -> String {
    reply.key("server").unwrap().to_owned()
}

fn address(reply: &Reply, key: &str) -> Ipv4Addr {
    reply.key(key).unwrap().parse().unwrap()
}

fn console(server: &TestServer, id: &str) -> Vec<u8> {
    let path = format!("/servers/{id}/console");
    Ask::of(server).get(&path).expect(200).body
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The frames that the guest received after it sent all of its frames often enough.
fn frames_after_rounds(server: &TestServer, id: &str) -> Vec<Vec<u8>> {
    wait_until("the guest has sent its frames", || {
        received(&console(server, id)).1 >= ROUNDS
    });
    let (frames, _) = received(&console(server, id));
    let is_answered = frames.iter().any(|frame| kind(frame) == ARP);
    assert!(is_answered, "the network does not see this guest");
    frames
}

const NONE: [&[u8]; 0] = [];

/// The frames that are answers from another host: everything except what the user network itself
/// sends, which resolves addresses and resets refused connections.
fn answers(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    let is_reset = |frame: &[u8]| kind(frame) == IPV4 && frame[23] == 6 && frame[47] & 4 != 0;
    let answers = frames.iter().map(|frame| &frame[..]);
    answers
        .filter(|frame| kind(frame) != ARP && !is_reset(frame))
        .collect()
}

/// The single process of a server's guests.
fn process(server: &TestServer) -> u32 {
    match working_below(&server.data.join("servers"))[..] {
        [process] => process,
        _ => panic!("not one process"),
    }
}

// ---- What a guest reaches ----

/// Listeners on this machine that a guest tries to reach.
struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Host {
    fn new() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp, udp }
    }

    fn ports(&self) -> (u16, u16) {
        let tcp = self.tcp.local_addr().unwrap().port();
        (tcp, self.udp.local_addr().unwrap().port())
    }

    fn has_connection(&self) -> bool {
        match self.tcp.accept() {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// No guest reached the loopback interface.
    #[track_caller]
    fn assert_untouched(&self) {
        let reached = "a guest reaches the loopback interface";
        assert!(!self.has_connection(), "{reached}");
        assert!(!self.has_datagram(), "{reached}");
    }

    fn has_datagram(&self) -> bool {
        match self.udp.recv(&mut [0; 64]) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Frames to everything that exists here, through the gateway and directly to the loopback
    /// addresses: to the API of `server`, to the screen of the guest at `victim`, to the metadata
    /// service of a cloud, and to the resolver.
    fn frames(&self, server: &TestServer, victim: Ipv4Addr) -> Vec<Vec<u8>> {
        let (tcp, udp_port) = self.ports();
        let own = Ipv4Addr::LOCALHOST;
        vec![
            arp(),
            syn(GATEWAY, tcp),
            syn(own, tcp),
            syn(Ipv4Addr::UNSPECIFIED, tcp),
            syn(RESOLVER, tcp),
            syn(GATEWAY, server.address().port()),
            syn(victim, 5900),
            syn(METADATA, 80),
            udp(GATEWAY, udp_port, b"hello"),
            udp(own, udp_port, b"hello"),
            udp(RESOLVER, udp_port, b"hello"),
            udp(Ipv4Addr::new(10, 0, 2, 255), udp_port, b"hello"),
            udp(Ipv4Addr::BROADCAST, udp_port, b"hello"),
            udp(METADATA, udp_port, b"hello"),
        ]
    }
}

#[test]
fn a_guest_reaches_nothing_of_this_machine_and_no_other_guest() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let victim = start(&server, b'w', &[], "vnc auto\npassword secret");
    let victim = address(&victim, "vnc:ip");
    // The screen is available with the password.
    let mut hello = [0; 12];
    let mut stream = TcpStream::connect((victim, 5900)).unwrap();
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"RFB 003.008\n");

    let host = Host::new();
    let mut frames = host.frames(&server, victim);
    frames.push(udp(RESOLVER, 53, &dns_query()));
    let guest = id(&start(&server, b'w', &frames, ""));
    let frames = frames_after_rounds(&server, &guest);
    host.assert_untouched();
    assert_eq!(answers(&frames), NONE);
}

/// The restrictions in the test above are not due to the guest: if the operator allows it, the
/// guest reaches everything.
#[test]
fn a_guest_with_the_network_of_the_host_reaches_all_of_it() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::with_args(&["--guest-network", "host"]);
    let victim = start(&server, b'w', &[], "vnc auto\npassword secret");
    let victim = address(&victim, "vnc:ip");
    let host = Host::new();
    let guest = id(&start(&server, b'w', &host.frames(&server, victim), ""));
    let ports = (5900, GUEST_PORT);
    wait_until("it reaches this machine and a neighbour", || {
        let (frames, _) = received(&console(&server, &guest));
        frames
            .iter()
            .any(|frame| is_tcp(frame, Some(victim), ports, SYN_ACK))
    });
    wait_until("a connection", || host.has_connection());
    wait_until("a datagram", || host.has_datagram());
}

#[test]
fn a_guest_with_the_internet_reaches_nothing_of_this_machine() {
    if !has_qemu() {
        return;
    }
    let mut server = TestServer::with_args(&["--guest-network", "internet", "--forward", "8022"]);
    let victim = start(&server, b'w', &[], "vnc auto\npassword secret");
    let victim = address(&victim, "vnc:ip");
    let host = Host::new();
    let guest = start(&server, b'w', &host.frames(&server, victim), "");
    let (address, guest) = (address(&guest, "nic:0:ip"), id(&guest));
    // ARP is answered, which shows that frames pass through the filter in both directions.
    let frames = frames_after_rounds(&server, &guest);
    assert_eq!(answers(&frames), NONE);
    // Connections through a forwarded port work as well.
    let comes_in = |server: &TestServer| {
        let _stream = TcpStream::connect((address, 8022)).unwrap();
        wait_until("a connection from outside", || {
            let (frames, _) = received(&console(server, &guest));
            let mut packets = frames.iter().filter(|frame| kind(frame) == IPV4);
            packets.any(|frame| frame[36..38] == 8022u16.to_be_bytes() && frame[47] == SYN)
        });
    };
    comes_in(&server);
    // A filter that has ended opens nothing, and the next server has one again.
    server.kill9();
    server.start_again();
    let rounds = received(&console(&server, &guest)).1;
    let arps = |frames: &[Vec<u8>]| frames.iter().filter(|frame| kind(frame) == ARP).count();
    let before = arps(&received(&console(&server, &guest)).0);
    wait_until("it sends on, and is answered again", || {
        let (frames, now) = received(&console(&server, &guest));
        now >= rounds + ROUNDS && arps(&frames) > before + 2
    });
    host.assert_untouched();
}

#[test]
fn a_guest_without_network_is_reachable_at_a_forwarded_port() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::with_args(&["--forward", "8022"]);
    let guest = start(&server, b'w', &[arp()], "");
    let (address, guest) = (address(&guest, "nic:0:ip"), id(&guest));
    frames_after_rounds(&server, &guest);
    let _stream = TcpStream::connect((address, 8022)).unwrap();
    wait_until("the connection is in the guest", || {
        let (frames, _) = received(&console(&server, &guest));
        let mut packets = frames.iter().filter(|frame| kind(frame) == IPV4);
        packets.any(|frame| frame[36..38] == 8022u16.to_be_bytes() && frame[47] == SYN)
    });
}

// ---- A guest's screen ----

/// A viewer with a wrong password; returns whether it was asked for one.
fn is_asked_for_password(address: Ipv4Addr) -> bool {
    let mut stream = TcpStream::connect((address, 5900)).unwrap();
    let mut hello = [0; 12];
    stream.read_exact(&mut hello).unwrap();
    stream.write_all(&hello).unwrap();
    let mut ways = [0];
    stream.read_exact(&mut ways).unwrap();
    if ways == [0] {
        let mut why = Vec::new();
        stream.read_to_end(&mut why).unwrap();
        assert!(why.ends_with(b"try again in a minute"), "{why:?}");
        return false;
    }
    let (mut way, mut challenge, mut result) = ([0], [0; 16], [0; 4]);
    stream.read_exact(&mut way).unwrap();
    stream.write_all(&way).unwrap();
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&[7; 16]).unwrap();
    stream.read_exact(&mut result).unwrap();
    assert_eq!(result, [0, 0, 0, 1], "a wrong password is right");
    true
}

/// The program that listens on the VNC port, according to the kernel.
fn listens_at(address: Ipv4Addr) -> Vec<PathBuf> {
    let local = u32::from_ne_bytes(address.octets());
    let local = format!("{local:08X}:{:04X}", 5900);
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes = table.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[1] == local && words[3] == "0A").then(|| format!("socket:[{}]", words[9]))
    });
    let inodes: Vec<_> = inodes.collect();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let files = std::fs::read_dir(process.path().join("fd"));
        let mut links = files.into_iter().flatten().flatten();
        let has_it = links.any(|file| {
            let link = std::fs::read_link(file.path()).unwrap_or_default();
            inodes.iter().any(|inode| link == Path::new(inode))
        });
        if has_it {
            found.push(std::fs::read_link(process.path().join("exe")).unwrap());
        }
    }
    found
}

#[test]
fn a_screen_is_shown_and_password_attempts_are_limited() {
    if !has_qemu() {
        return;
    }
    let mut server = TestServer::start();
    let guest = start(
        &server,
        b'w',
        &[],
        "vnc auto\npassword secret\npersistent true",
    );
    let (address, guest) = (address(&guest, "vnc:ip"), id(&guest));
    let run = server.data.join(format!("servers/{guest}.run"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&run), 0o700);
    for socket in ["vnc", "qmp"] {
        let path = run.join(socket);
        assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
        assert_eq!(mode(&path), 0o600, "{socket}");
    }
    let own = Path::new(env!("CARGO_BIN_EXE_openhosting-server")).canonicalize();
    assert_eq!(listens_at(address), [own.unwrap()]);

    // A viewer without the password gets some guesses, and then is refused.
    let asked = (0..60).filter(|_| is_asked_for_password(address)).count();
    assert!((5..=40).contains(&asked), "{asked} guesses in a row");
    // The limit is separate for each server: the screen of another one is available.
    let other = start(&server, b'w', &[], "vnc auto\npassword secret");
    assert!(is_asked_for_password(self::address(&other, "vnc:ip")));

    // The screen is available after a restart of the program, and gone with the server.
    server.kill9();
    assert!(TcpStream::connect((address, 5900)).is_err());
    server.start_again();
    // It answers once it has found its servers.
    Ask::of(&server).get("/servers/list").expect(200);
    assert!(is_asked_for_password(address));
    for _ in 0..3 {
        post(&server, &format!("/servers/{guest}/stop"), "").expect(204);
        assert!(TcpStream::connect((address, 5900)).is_err());
        post(&server, &format!("/servers/{guest}/start"), "").expect(200);
    }
}

#[test]
fn the_vnc_port_can_be_disabled() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::with_args(&["--no-vnc-port"]);
    let guest = start(&server, b'w', &[], "vnc auto\npassword secret");
    assert!(TcpStream::connect((address(&guest, "vnc:ip"), 5900)).is_err());
    let screen = format!("/servers/{}/screen", id(&guest));
    let picture = Ask::of(&server).get(&screen).expect(200);
    assert!(picture.body.starts_with(b"\x89PNG"));
}

// ---- What a guest exhausts ----

#[test]
fn pictures_that_nobody_waits_for_leave_one_file_at_most() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let guest = id(&start(&server, b'w', &[], ""));
    let path = format!("/servers/{guest}/screen");
    for _ in 0..30 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let request = format!("{}\r\n", Ask::of(&server).head("GET", &path));
        stream.write_all(request.as_bytes()).unwrap();
        drop(stream);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ask::of(&server).get(&path).expect(200);
    let run = server.data.join(format!("servers/{guest}.run"));
    let files = std::fs::read_dir(run).unwrap().flatten();
    let pictures = files.filter(|file| file.file_name().to_string_lossy().contains("screen"));
    assert!(pictures.count() <= 1);
}

/// The space that files below `directory` occupy on the disk.
fn disk_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let bytes = |entry: std::fs::DirEntry| entry.metadata().unwrap().blocks() * 512;
    entries.map(bytes).sum()
}

/// Processor time of a process, in ticks of usually 10 ms.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A replacement for QEMU that starts to write to stderr without end, as a guest can cause QEMU to
/// do, and then executes QEMU.
fn talkative_qemu(directory: &Path) -> PathBuf {
    let path = directory.join("qemu");
    let script = "#!/bin/sh\n\
        case \"$*\" in *accel=kvm*) exit 1;; esac\n\
        (trap '' PIPE; n=0; while [ $n -lt 40000 ]; do n=$((n+1)); echo \"line $n of many words that nobody wants to read at all\"; done; exec sleep 600) >&2 &\n\
        exec qemu-system-x86_64 \"$@\"\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn endless_guest_output_takes_bounded_disk_space() {
    if !has_qemu() {
        return;
    }
    let programs = tempfile::tempdir().unwrap();
    let qemu = talkative_qemu(programs.path());
    let mut server = TestServer::with_args(&["--qemu", qemu.to_str().unwrap()]);
    let guest = id(&start(&server, b'f', &[], "persistent true"));
    let run = server.data.join(format!("servers/{guest}.run"));
    let writes = |process: u32, much: u64| {
        let begin = ticks(process);
        wait_until("the guest has had the processor", || {
            ticks(process) >= begin + much
        });
    };
    let qemu_of = |server: &TestServer| {
        let all = working_below(&server.data.join("servers"));
        let is_qemu = |process: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
            name.unwrap_or_default().starts_with("qemu-system")
        };
        all.into_iter().find(is_qemu).expect("no QEMU runs")
    };
    let process = qemu_of(&server);
    wait_until("it writes", || console(&server, &guest).len() > 1000);
    server.kill9();
    let before = disk_bytes(&run);
    writes(process, 150);
    assert_eq!(
        disk_bytes(&run),
        before,
        "the disk fills while the server is down"
    );
    server.start_again();
    // The end of the output is available.
    let shown = console(&server, &guest);
    assert!(
        shown.len() > 10_000 && shown.len() <= 1 << 20,
        "{}",
        shown.len()
    );
    for _ in 0..3 {
        writes(process, 50);
        assert!(console(&server, &guest).len() <= 1 << 20);
        assert!(disk_bytes(&run) <= 5 << 19, "{}", disk_bytes(&run));
    }
    // It can be read after the guest's end, and so can the beginning of QEMU's messages.
    post(&server, &format!("/servers/{guest}/stop"), "").expect(204);
    assert!(console(&server, &guest).len() > 10_000);
    let log = std::fs::read_to_string(run.join("log")).unwrap();
    assert!(log.starts_with("line 1 of many") && log.len() <= 64 * 1024);
}

#[test]
fn a_process_of_a_guest_is_confined() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    start(&server, b'w', &[arp()], "vnc auto\npassword secret");
    let process = process(&server);
    let read = |name: &str| std::fs::read(format!("/proc/{process}/{name}")).unwrap();
    let text = |name: &str| String::from_utf8(read(name)).unwrap();
    let limits = text("limits");
    let limit = |name: &str| -> u64 {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let word = line.unwrap().split_whitespace().next().unwrap();
        word.parse().unwrap_or(u64::MAX)
    };
    // No core file with the memory of a guest, no more descriptors than necessary, and no file
    // larger than a drive.
    assert_eq!(limit("Max core file size"), 0);
    assert!(limit("Max open files") <= 4096);
    assert!(limit("Max file size") <= 64 << 20);
    let status = text("status");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    // Nothing of the environment except what finds programs.
    for entry in read("environ").split(|&byte| byte == 0) {
        let name = String::from_utf8_lossy(entry.split(|&byte| byte == b'=').next().unwrap());
        let is_known = ["", "PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG"].contains(&&*name);
        assert!(is_known, "{name}");
    }
    // No file of this program except its own log.
    for file in std::fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .flatten()
    {
        let link = std::fs::read_link(file.path()).unwrap_or_default();
        let is_foreign = link.ends_with("host") || link.extension().is_some_and(|e| e == "meta");
        assert!(!is_foreign, "{}", link.display());
    }
}

// ---- Which processes the server takes for a guest ----

#[test]
fn other_processes_in_the_directory_of_a_server_survive() {
    if !has_qemu() {
        return;
    }
    let mut server = TestServer::start();
    let guest = start(&server, b'w', &[], "persistent true");
    let guest = id(&guest);
    let orphan = process(&server);
    let run = server.data.join(format!("servers/{guest}.run"));
    let mut shells: Vec<_> = [&run, &server.data]
        .map(|at| {
            Command::new("sleep")
                .arg("600")
                .current_dir(at)
                .spawn()
                .unwrap()
        })
        .into();
    // A restart of the guest looks for leftovers in its directory.
    for command in ["stop", "start"] {
        post(&server, &format!("/servers/{guest}/{command}"), "");
    }
    let is_alive = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert!(!is_alive(orphan));
    assert!(shells.iter().all(|shell| is_alive(shell.id())));

    // A guest without a record belongs to nothing: it is ended, and again only that process.
    let orphans: Vec<_> = working_below(&run)
        .into_iter()
        .filter(|process| shells.iter().all(|shell| shell.id() != *process))
        .collect();
    assert_eq!(orphans.len(), 1);
    let in_run = Command::new("sleep").arg("600").current_dir(&run).spawn();
    shells.push(in_run.unwrap());
    server.kill9();
    std::fs::remove_file(server.data.join(format!("servers/{guest}.meta"))).unwrap();
    server.start_again();
    wait_until("the orphan has ended", || {
        !is_alive(orphans[0]) && !run.exists()
    });
    for mut shell in shells {
        assert!(is_alive(shell.id()), "the server killed a stranger");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}
