//! A filter of network frames: what a guest may send if it has the network `internet`.
//!
//! QEMU's user network connects from this machine to whatever a guest requests: its loopback
//! interface, its neighbours, the metadata service of its cloud. QEMU can only restrict it
//! completely or not at all. Therefore QEMU passes each frame of the guest to this program over one
//! socket, and takes back over another what may pass. While nothing is connected, QEMU drops the
//! frames: without this program, the guest has no network, rather than an unfiltered one.
//!
//! These are two filters of QEMU (`filter-redirector`). The one that takes frames out exists from
//! the guest's first instruction to its last. The one that takes them in is created anew by each
//! run of this program, because it ends with its connection.
//!
//! A frame may pass if its packet goes to a public IPv4 address that this machine does not have, or
//! is one of the few that the user network itself needs. That network has QEMU's default addresses.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::qmp::{Qmp, connect};
use crate::hypervisor::Failure;

/// Maximum network cards of a server.
const CARDS: u8 = 4;
/// More than the longest frame of QEMU's network cards: virtio hands over segments of up to 64 KiB
/// with a header, before they are split. A longer length means that the stream is out of step, and
/// ends the filter, and with it the guest's network.
const FRAME_BYTES_MAX: usize = 128 * 1024;
/// Maximum frames that wait to be taken back. Further ones are dropped, as networks do.
const WAITING_MAX: usize = 64;
/// How often the addresses of this machine are read. An address that this machine gets is open to
/// guests for at most this time. Reading the table for each frame would slow down the network.
const ADDRESSES_AGE: Duration = Duration::from_secs(10);

/// The addresses of the gateway and the resolver in QEMU's user network (its documented defaults).
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const TCP: u8 = 6;
const UDP: u8 = 17;

fn sockets(card: u8) -> (String, String) {
    (format!("to-filter{card}"), format!("from-filter{card}"))
}

/// The arguments with which QEMU passes on the frames of a card.
pub(super) fn arguments(card: u8) -> [[String; 2]; 2] {
    let (to, _) = sockets(card);
    // "rx" is what the network receives, that is, what the guest sends.
    let filter =
        format!("filter-redirector,id=filter-out{card},netdev=nic{card},queue=rx,outdev={to}");
    [
        [
            "-chardev".into(),
            format!("socket,id={to},path={to},server=on,wait=off"),
        ],
        ["-object".into(), filter],
    ]
}

/// Filters the frames of the server in `directory`, which `qmp` controls, until it ends; does
/// nothing if it was started without the filter.
pub(super) async fn attend(qmp: &Qmp, directory: &Path) -> Result<(), Failure> {
    for card in 0..CARDS {
        let (to, from) = sockets(card);
        if !directory.join(&to).exists() {
            continue;
        }
        take_frames(qmp, card, &from).await?;
        let to = connect(directory, &to).await?;
        let from = connect(directory, &from).await?;
        tokio::spawn(async move {
            if let Err(error) = filter(to, from).await {
                tracing::debug!(%error, "A filter of frames has ended");
            }
        });
    }
    Ok(())
}

/// Makes QEMU accept frames that may pass on the socket `from`.
async fn take_frames(qmp: &Qmp, card: u8, from: &str) -> Result<(), Failure> {
    let filter = format!("filter-in{card}");
    // Removes what an earlier run of this program left, if anything.
    for (command, id) in [("object-del", &*filter), ("chardev-remove", from)] {
        match qmp.run(command, json!({"id": id})).await {
            Ok(_) | Err(Failure::Refused(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    let address = json!({"type": "unix", "data": {"path": from}});
    let data = json!({"addr": address, "server": true, "wait": false});
    let backend = json!({"type": "socket", "data": data});
    qmp.run("chardev-add", json!({"id": from, "backend": backend}))
        .await?;
    // Frames pass the filters from the last to the first. Those that come in here must not reach
    // the filter that takes them out.
    let filter = json!({
        "qom-type": "filter-redirector", "id": filter, "netdev": format!("nic{card}"),
        "queue": "rx", "indev": from, "position": "head",
    });
    qmp.run("object-add", filter).await.map(drop)
}

/// Reads frames from `from_guest` and writes those that may pass to `to_network`. Each is its
/// length in four bytes, followed by the frame.
async fn filter(from_guest: UnixStream, to_network: UnixStream) -> io::Result<()> {
    let mut from_guest = BufReader::new(from_guest);
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let writer = tokio::spawn(write_all(to_network, receiver));
    let mut here: Vec<Subnet> = Vec::new();
    let mut asked: Option<Instant> = None;
    loop {
        let len = from_guest.read_u32().await? as usize;
        if len > FRAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; len];
        from_guest.read_exact(&mut frame).await?;
        if asked.is_none_or(|asked| asked.elapsed() > ADDRESSES_AGE) {
            here = spawn_blocking(own_networks).await??;
            asked = Some(Instant::now());
        }
        // While QEMU passes on a frame, it waits and takes none back. Therefore this must never
        // wait for QEMU.
        if may_pass(&frame, &here) {
            let _ = sender.try_send(frame);
        }
        if writer.is_finished() {
            return Ok(());
        }
    }
}

async fn write_all(
    mut to_network: UnixStream,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&frame);
        to_network.write_all(&bytes).await?;
    }
    Ok(())
}

/// Whether a frame of a guest may pass. `here` contains the addresses of this machine.
fn may_pass(frame: &[u8], here: &[Subnet]) -> bool {
    let Some((_, rest)) = frame.split_first_chunk::<12>() else {
        return false;
    };
    match rest.split_first_chunk::<2>() {
        // ARP resolves addresses within the user network.
        Some((&ARP, _)) => true,
        Some((&IPV4, packet)) => may_packet_pass(packet, here).unwrap_or(false),
        _ => false,
    }
}

/// `None` for an incomplete packet.
fn may_packet_pass(packet: &[u8], here: &[Subnet]) -> Option<bool> {
    let (head, _) = packet.split_first_chunk::<20>()?;
    // Version 4 and a header of five words. Options are refused, because they could contain other
    // addresses.
    if head[0] != 0x45 {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let payload = packet.get(20..len)?;
    // The bit "more fragments", and the offset of the fragment.
    let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let protocol = head[9];
    let to = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    if is_public(to) {
        return Some(!here.iter().any(|network| network.contains(to)));
    }
    // Everything else must be for the user network itself, and a port decides. Only the first
    // fragment of a packet has one, so fragments are refused.
    if is_fragment {
        return None;
    }
    let port = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
    Some(match (protocol, to, port) {
        // DHCP.
        (UDP, GATEWAY | Ipv4Addr::BROADCAST, 67) => true,
        (UDP | TCP, RESOLVER, 53) => true,
        // Answers to connections through a forwarded port, which the guest sees as coming from the
        // gateway. Of the flags SYN (0x02) and ACK (0x10), only SYN alone opens a connection.
        (TCP, GATEWAY, _) => payload.get(13)? & 0x12 != 0x02,
        _ => false,
    })
}

/// Whether an address is a public one, and not reserved (RFC 6890).
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18)
        // Multicast, reserved, broadcast.
        || a >= 224)
}

/// A range of addresses with the same prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    address: u32,
    bits: u32,
}

impl Subnet {
    fn contains(self, address: Ipv4Addr) -> bool {
        let differs = self.address ^ u32::from(address);
        self.bits == 0 || differs >> (32 - self.bits) == 0
    }
}

/// The addresses of this machine itself.
fn own_networks() -> io::Result<Vec<Subnet>> {
    Ok(parse_fib_trie(&fs::read_to_string("/proc/net/fib_trie")?))
}

/// Parses the kernel's routes: an address follows `|--`, and below it is `/BITS host LOCAL` if it
/// is one of this machine.
fn parse_fib_trie(text: &str) -> Vec<Subnet> {
    let (mut address, mut found) = (None, Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("|--"), Some(text), _) => address = text.parse::<Ipv4Addr>().ok(),
            (Some(bits), Some("host"), Some("LOCAL")) => {
                let bits = bits.strip_prefix('/').and_then(|bits| bits.parse().ok());
                if let (Some(address), Some(bits @ 0..=32)) = (address, bits) {
                    let address = u32::from(address);
                    found.push(Subnet { address, bits });
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, to: &str, port: u16, flags: u8) -> Vec<u8> {
        let to: Ipv4Addr = to.parse().unwrap();
        let mut frame = [&[0; 12][..], &IPV4].concat();
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15]);
        frame.extend(to.octets());
        frame.extend([0x10, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame
    }

    fn here() -> Vec<Subnet> {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
            Local:\n     |-- 9.8.7.6\n        /32 host LOCAL\n     |-- 9.8.7.255\n        /32 link BROADCAST\n\
                 |-- 23.0.0.0\n        /8 host LOCAL\n";
        parse_fib_trie(trie)
    }

    #[test]
    fn a_guest_reaches_the_internet_but_not_this_machine() {
        let here = here();
        assert_eq!(here.len(), 2);
        for (to, may) in [
            ("1.1.1.1", true),
            ("9.8.7.5", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("100.63.0.1", true),
            ("198.17.255.255", true),
            ("223.255.255.255", true),
            // An address of this machine.
            ("9.8.7.6", false),
            ("23.4.5.6", false),
            // Its loopback interface, its neighbours and its cloud.
            ("127.0.0.1", false),
            ("127.70.1.2", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("10.0.2.2", false),
            ("10.0.2.3", false),
            ("10.0.2.255", false),
            ("100.64.0.1", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.192", false),
            ("192.168.0.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("239.1.2.3", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            for protocol in [TCP, UDP, 1] {
                let frame = packet(protocol, to, 80, 0x02);
                assert_eq!(may_pass(&frame, &here), may, "{to} {protocol}");
            }
        }
    }

    #[test]
    fn only_the_necessary_services_of_the_user_network_are_reachable() {
        for (protocol, to, port, flags, may) in [
            (UDP, "10.0.2.2", 67, 0, true),
            (UDP, "255.255.255.255", 67, 0, true),
            (UDP, "10.0.2.2", 69, 0, false),
            (UDP, "10.0.2.3", 53, 0, true),
            (TCP, "10.0.2.3", 53, 2, true),
            (TCP, "10.0.2.3", 80, 2, false),
            (1, "10.0.2.3", 53, 2, false),
            // Answers through forwarded ports are allowed, new connections are not.
            (TCP, "10.0.2.2", 40000, 0x12, true),
            (TCP, "10.0.2.2", 40000, 0x10, true),
            (TCP, "10.0.2.2", 40000, 0x04, true),
            (TCP, "10.0.2.2", 22, 0x02, false),
            (TCP, "10.0.2.2", 22, 0x2a, false),
        ] {
            let frame = packet(protocol, to, port, flags);
            assert_eq!(may_pass(&frame, &[]), may, "{protocol} {to} {port} {flags}");
            // One fragment hides its port, another one its flags.
            for fragment in [0x20, 0x01] {
                let mut frame = frame.clone();
                frame[14 + 6] = fragment;
                assert!(!may_pass(&frame, &[]), "{protocol} {to} {port} {flags}");
            }
        }
    }

    #[test]
    fn unknown_frames_are_dropped() {
        let good = packet(TCP, "1.1.1.1", 80, 2);
        assert!(may_pass(&good, &[]));
        for len in 0..good.len() {
            assert!(!may_pass(&good[..len], &[]), "{len}");
        }
        for (at, value) in [(12, 0x86), (13, 0x01), (14, 0x46), (14, 0x65), (16, 1)] {
            let mut frame = good.clone();
            frame[at] = value;
            assert!(!may_pass(&frame, &[]), "{at} {value}");
        }
        let arp = [&[0; 12][..], &ARP, &[0; 28]].concat();
        assert!(may_pass(&arp, &[]));
        assert!(!own_networks().unwrap().is_empty());
    }
}
