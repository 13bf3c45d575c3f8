//! Work that users make the server do: it is shared fairly, it ends with the client that
//! asked for it, and holes cost next to nothing. What is compared is work that was done,
//! as the metrics count it, never time.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use sha2::Digest;

use crate::neighbours::{HONEST, HOSTILE, Scene};
use crate::support::http::{Reply, read_reply};

const GIB: u64 = 1 << 30;
const HASHED: &str = "openhosting_digest_bytes_total{how=\"hashed\"}";
const ZEROS: &str = "openhosting_digest_bytes_total{how=\"zeros\"}";
const WAITING: &str = "openhosting_digests{state=\"queued\"}";
const IN_FLIGHT: &str = "openhosting_requests_in_flight";

fn send(scene: &Scene, auth: &str, path: &str) -> TcpStream {
    let head = scene.by(auth).head("GET", path);
    let mut stream = TcpStream::connect(scene.server.address()).unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream
}

fn write(scene: &Scene, auth: &str, drive: &str, offset: u64, bytes: &[u8]) {
    let path = format!("/drives/{drive}/write/{offset}");
    scene.by(auth).post(&path, bytes).expect(204);
}

fn sha256(reply: Reply) -> String {
    reply.expect(200).key("sha256").unwrap().to_owned()
}

/// The digest of these bytes with so many zeros before and after them.
fn digest_between(before: u64, bytes: &[u8], after: u64) -> String {
    let mut hasher = sha2::Sha256::new();
    let zeros = vec![0; 1 << 20];
    let hash_zeros = |hasher: &mut sha2::Sha256, mut len: u64| {
        while len > 0 {
            let step = len.min(zeros.len() as u64);
            hasher.update(&zeros[..step as usize]);
            len -= step;
        }
    };
    hash_zeros(&mut hasher, before);
    hasher.update(bytes);
    hash_zeros(&mut hasher, after);
    let digest = hasher.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A drive of a GiB that takes a block of the disk, and all of which has to be hashed:
/// there is nothing but zeros after its first byte.
fn long_to_digest(scene: &Scene, auth: &str) -> String {
    let drive = scene.create(auth, GIB);
    write(scene, auth, &drive, 0, b"x");
    format!("/drives/{drive}/digest/0/{GIB}")
}

#[test]
fn digests_end_with_their_clients() {
    let scene = Scene::new(&[]);
    let path = long_to_digest(&scene, HOSTILE);
    let streams: Vec<_> = (0..100).map(|_| send(&scene, HOSTILE, &path)).collect();
    scene.wait_for(WAITING, |n| n > 50.0);
    drop(streams);
    scene.wait_for(IN_FLIGHT, |n| n == 0.0);
    // Some were under way, and went on for a second.
    let hashed = scene.metric(HASHED).unwrap_or(0.0);
    assert!(hashed < 30.0 * GIB as f64, "{hashed} bytes were hashed");
    let gone = "openhosting_requests_total{call=\"digest\",status=\"\"}";
    assert!(scene.metric(gone).unwrap_or(0.0) > 50.0);
    assert_eq!(scene.metric(WAITING), Some(0.0));
}

#[test]
fn a_client_that_only_finished_sending_still_gets_its_answer() {
    let scene = Scene::new(&[]);
    let drive = scene.create(HONEST, 1 << 20);
    write(&scene, HONEST, &drive, 0, b"abc");
    for what in [
        "digest/0/1048576",
        "extents/0/1048576",
        "read/0/1048576",
        "info",
    ] {
        let mut stream = send(&scene, HONEST, &format!("/drives/{drive}/{what}"));
        stream.shutdown(Shutdown::Write).unwrap();
        read_reply(&mut stream).expect(what).expect(200);
    }
}

#[test]
fn nobody_waits_for_more_than_a_share_of_the_digests_of_others() {
    let scene = Scene::new(&[]);
    let path = long_to_digest(&scene, HOSTILE);
    let small = scene.create(HONEST, 32 << 20);
    write(&scene, HONEST, &small, 0, b"y");
    let mut streams: Vec<_> = (0..128).map(|_| send(&scene, HOSTILE, &path)).collect();
    scene.wait_for(WAITING, |n| n > 100.0);
    for call in [
        format!("/drives/{small}/digest/0/{}", 32 << 20),
        format!("/drives/{small}/extents/0/{}", 32 << 20),
    ] {
        scene.by(HONEST).get(&call).expect(200);
    }
    // Of more than 128 GiB that came before.
    let hashed = scene.metric(HASHED).unwrap();
    assert!(hashed < 10.0 * GIB as f64, "{hashed} bytes were hashed");
    // The one who asks too much is told so.
    let refused = scene.by(HOSTILE).get(&path);
    assert_eq!(refused.error(), (429, "busy"));
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("128"), "{}", refused.text());
    // And what they asked for is done all the same.
    let expected = digest_between(0, b"x", GIB - 1);
    let first = read_reply(&mut streams[0]).unwrap();
    assert_eq!(sha256(first), expected);
}

#[test]
fn holes_are_not_hashed_and_an_empty_drive_is_not_even_read() {
    let scene = Scene::new(&[]);
    let tib = 1u64 << 40;
    let drive = scene.create(HONEST, 15 * tib);
    let digest = |offset: u64, len: u64| {
        let path = format!("/drives/{drive}/digest/{offset}/{len}");
        scene.by(HONEST).get(&path)
    };
    let zeros = digest_between(0, b"", GIB);
    for offset in [0, 7 * tib + 5, 15 * tib - GIB] {
        assert_eq!(sha256(digest(offset, GIB)), zeros);
    }
    let len = (100 << 20) + 17;
    assert_eq!(sha256(digest(1, len)), digest_between(0, b"", len));
    assert_eq!(sha256(digest(5, 0)), digest_between(0, b"", 0));
    assert_eq!(scene.metric(HASHED).unwrap_or(0.0), 0.0);
    assert_eq!(scene.metric(ZEROS).unwrap(), (3 * GIB + len) as f64);
    // What one digest costs is bounded.
    let refused = digest(0, GIB + 1);
    assert_eq!(refused.error(), (400, "usage"));
    assert!(refused.text().contains(&GIB.to_string()));

    // Data is found wherever it is, small as it may be, and only what follows is hashed.
    let at = 3 * GIB + 100_000_000;
    write(&scene, HONEST, &drive, at, b"data");
    assert_eq!(sha256(digest(1, len)), digest_between(0, b"", len));
    assert_eq!(scene.metric(HASHED).unwrap_or(0.0), 0.0);
    let expected = digest_between(100_000_000, b"data", 1_000_000);
    assert_eq!(sha256(digest(3 * GIB, 101_000_004)), expected);
    let hashed = scene.metric(HASHED).unwrap();
    assert!((1e6..2e6).contains(&hashed), "{hashed}");
}
