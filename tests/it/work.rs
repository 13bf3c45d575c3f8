//! Expensive requests to the server: their cost is shared fairly, the work ends when the client
//! disconnects, and holes cost almost nothing. The tests compare the amount of work that the
//! metrics count, and never times.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use sha2::Digest;

use crate::neighbours::{HONEST, HOSTILE, Scene};
use crate::servers::has_qemu;
use crate::support::http::{Reply, read_reply};
use crate::support::server::working_below;
use crate::support::{noise, ramp};

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

/// The digest of these bytes with this many zeros before and after them.
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

/// A drive of one GiB that needs only one block on disk, but must be hashed completely, because its
/// first byte is not zero.
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
    // Some digests were already being calculated, which continues for up to a second.
    let hashed = scene.metric(HASHED).unwrap_or(0.0);
    assert!(hashed < 30.0 * GIB as f64, "{hashed} bytes were hashed");
    let gone = "openhosting_requests_total{call=\"digest\",status=\"\"}";
    assert!(scene.metric(gone).unwrap_or(0.0) > 50.0);
    assert_eq!(scene.metric(WAITING), Some(0.0));
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
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
fn digests_of_different_users_take_turns() {
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
    // More than 128 GiB of work was queued before this request.
    let hashed = scene.metric(HASHED).unwrap();
    assert!(hashed < 10.0 * GIB as f64, "{hashed} bytes were hashed");
    // The user with too many requests is refused.
    let refused = scene.by(HOSTILE).get(&path);
    assert_eq!(refused.error(), (429, "busy"));
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("128"), "{}", refused.text());
    // The requests that were accepted before are completed nevertheless.
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
    // The cost of one digest is limited.
    let refused = digest(0, GIB + 1);
    assert_eq!(refused.error(), (400, "usage"));
    assert!(refused.text().contains(&GIB.to_string()));

    // Data is found anywhere, however little it is, and only bytes after it are hashed.
    let at = 3 * GIB + 100_000_000;
    write(&scene, HONEST, &drive, at, b"data");
    assert_eq!(sha256(digest(1, len)), digest_between(0, b"", len));
    assert_eq!(scene.metric(HASHED).unwrap_or(0.0), 0.0);
    let expected = digest_between(100_000_000, b"data", 1_000_000);
    assert_eq!(sha256(digest(3 * GIB, 101_000_004)), expected);
    let hashed = scene.metric(HASHED).unwrap();
    assert!((1e6..2e6).contains(&hashed), "{hashed}");
}

/// The value of a key in a drive's info, if it has that key.
fn info(scene: &Scene, auth: &str, drive: &str, key: &str) -> Option<String> {
    let info = scene.by(auth).get(&format!("/drives/{drive}/info"));
    info.expect(200).key(key).map(str::to_owned)
}

fn image(scene: &Scene, auth: &str, to: &str, from: &str) -> Reply {
    scene
        .by(auth)
        .post(&format!("/drives/{to}/image/{from}"), "")
}

fn wait_for_end(scene: &Scene, auth: &str, drive: &str) {
    while info(scene, auth, drive, "imaging").is_some() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A server on which copying 60 kB takes a minute, and the directory with its fault plan.
fn slow_imagings() -> (Scene, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let plan = directory.path().join("plan.json");
    // With hidden extents the server keeps its extensions, which other fault plans switch off.
    let text = r#"{"imaging_bytes_per_s": 1000, "extents": "hidden"}"#;
    std::fs::write(&plan, text).unwrap();
    let scene = Scene::new(&["--faults", plan.to_str().unwrap()]);
    (scene, directory)
}

#[test]
fn imagings_of_different_users_take_turns() {
    let (scene, _plan) = slow_imagings();
    let source = scene.create(HOSTILE, 60_000);
    write(&scene, HOSTILE, &source, 0, &noise(3, 60_000));
    let taken = [(); 4].map(|()| scene.create(HOSTILE, 60_000));
    for drive in &taken {
        image(&scene, HOSTILE, drive, &source).expect(204);
    }
    let own = scene.create(HONEST, 100);
    write(&scene, HONEST, &own, 0, &ramp(1, 100));
    let [copy, packed] = [(); 2].map(|()| scene.create(HONEST, 200));
    image(&scene, HONEST, &copy, &own).expect(204);
    image(&scene, HONEST, &packed, &format!("{own}/gzip")).expect(204);
    for drive in [&copy, &packed] {
        wait_for_end(&scene, HONEST, drive);
        assert_eq!(info(&scene, HONEST, drive, "status").unwrap(), "active");
    }
    let states = taken
        .each_ref()
        .map(|drive| info(&scene, HOSTILE, drive, "imaging"));
    let states = states.each_ref().map(Option::as_deref);
    // The oldest imagings of a user come first.
    let expected = [Some("true"), Some("true"), Some("queued"), Some("queued")];
    assert_eq!(states, expected);
    let read = scene.by(HONEST).get(&format!("/drives/{copy}/read/0/100"));
    assert_eq!(read.expect(200).body, ramp(1, 100));
}

#[test]
fn an_imaging_is_cancelled_by_its_owner_or_with_its_drive() {
    let (mut scene, _plan) = slow_imagings();
    let source = scene.create(HOSTILE, 60_000);
    write(&scene, HOSTILE, &source, 0, &noise(3, 60_000));
    let [first, second, third] = [(); 3].map(|()| scene.create(HOSTILE, 60_000));
    for drive in [&first, &second, &third] {
        image(&scene, HOSTILE, drive, &source).expect(204);
    }
    let cancel = format!("/drives/{first}/image/cancel");
    assert_eq!(scene.by(HOSTILE).get(&cancel).error(), (405, "method"));
    assert_eq!(scene.by(HONEST).post(&cancel, "").error(), (404, "missing"));
    for _ in 0..2 {
        scene.by(HOSTILE).post(&cancel, "").expect(204);
        assert_eq!(info(&scene, HOSTILE, &first, "imaging"), None);
        assert_eq!(info(&scene, HOSTILE, &first, "claimed"), None);
        assert_eq!(info(&scene, HOSTILE, &first, "status").unwrap(), "inactive");
    }
    // The running imaging and the one that waits both end when their drives are destroyed.
    for drive in [&third, &second] {
        scene
            .by(HOSTILE)
            .post(&format!("/drives/{drive}/destroy"), "")
            .expect(204);
        let info = scene.by(HOSTILE).get(&format!("/drives/{drive}/info"));
        assert_eq!(info.error(), (404, "missing"));
    }
    // Nothing claims the source any more.
    assert_eq!(info(&scene, HOSTILE, &source, "claimed"), None);
    write(&scene, HOSTILE, &source, 0, b"x");
    // The imaging does not restart after a restart of the server.
    scene.server.restart();
    assert_eq!(info(&scene, HOSTILE, &first, "imaging"), None);
    assert_eq!(info(&scene, HOSTILE, &first, "status").unwrap(), "inactive");
    write(&scene, HOSTILE, &first, 0, b"x");
    assert_eq!(info(&scene, HOSTILE, &first, "status").unwrap(), "active");
}

#[test]
fn imaging_compresses_holes_without_reading_them() {
    let scene = Scene::new(&[]);
    let source = scene.create(HONEST, GIB);
    let pieces = [0, 100_000_000, GIB - 300_000];
    for (seed, offset) in pieces.into_iter().enumerate() {
        write(
            &scene,
            HONEST,
            &source,
            offset,
            &noise(seed as u64, 300_000),
        );
    }
    let packed = scene.create(HONEST, 8 << 20);
    image(&scene, HONEST, &packed, &format!("{source}/gzip")).expect(204);
    wait_for_end(&scene, HONEST, &packed);
    assert_eq!(info(&scene, HONEST, &packed, "status").unwrap(), "active");
    let data = scene.metric("openhosting_imaging_bytes_total{how=\"data\"}");
    assert!(data.unwrap() < f64::from(8 << 20), "{data:?}");
    let file = std::fs::File::open(scene.server.drive_file(&packed)).unwrap();
    let mut plain = flate2::read::GzDecoder::new(std::io::BufReader::new(file));
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut plain, &mut buffer).unwrap() {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let digest = hasher.finalize();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let hashed = scene
        .by(HONEST)
        .get(&format!("/drives/{source}/digest/0/{GIB}"));
    assert_eq!(sha256(hashed), digest);
    // The reverse: unpack the compressed drive into a new one.
    let copy = scene.create(HONEST, GIB);
    image(&scene, HONEST, &copy, &format!("{packed}/gunzip")).expect(204);
    wait_for_end(&scene, HONEST, &copy);
    let hashed = scene
        .by(HONEST)
        .get(&format!("/drives/{copy}/digest/0/{GIB}"));
    assert_eq!(sha256(hashed), digest);
}

#[test]
fn a_call_to_a_hanging_guest_ends_with_its_client() {
    if !has_qemu() {
        return;
    }
    let scene = Scene::new(&[]);
    let made = scene
        .by(HONEST)
        .post("/servers/create", "name guest\ncpu 500\nmem 16");
    let id = made.expect(200).key("server").unwrap().to_owned();
    let pids = working_below(&scene.server.data.join("servers"));
    let signal = |name: &str| {
        for pid in &pids {
            let mut kill = std::process::Command::new("kill");
            let status = kill.args([name, &pid.to_string()]).status();
            assert!(status.unwrap().success());
        }
    };
    signal("-STOP");
    for (what, call) in [("screen", "servers-screen"), ("info", "servers-info")] {
        drop(send(&scene, HONEST, &format!("/servers/{id}/{what}")));
        let gone = format!("openhosting_requests_total{{call=\"{call}\",status=\"\"}}");
        let ended = format!("openhosting_request_duration_seconds_count{{call=\"{call}\"}}");
        scene.wait_for(&ended, |n| n >= 1.0);
        // The client closed the connection, and not the server.
        assert_eq!(scene.metric(&gone), Some(1.0), "{what}");
    }
    signal("-CONT");
}
