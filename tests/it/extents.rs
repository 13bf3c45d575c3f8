//! Drives with holes: what the server reports about them, and that a download transfers and a
//! verification reads everything that holds data, whatever the endpoint reports.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use serde_json::json;

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::disk::LoopDevice;
use crate::support::http::{Ask, create};
use crate::support::needs::{Need, skip};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer, page, refusal};
use crate::support::server::TestServer;
use crate::support::{gunzip, noise};

const C: u64 = 16 * 1024;
/// Shorter holes are not reported.
const HOLE: u64 = 64 * 1024;
/// Maximum bytes to read back at one place of a sample.
const SAMPLE: u64 = 16 * 1024;
const CHUNKS: u64 = 1000;
const SIZE: u64 = CHUNKS * C - 77;
/// Where there is data: across chunk boundaries, at both ends, and isolated.
const DATA: [(u64, usize); 4] = [
    (0, 100),
    (100 * C - 5000, 10_000),
    (500 * C, 70 * 1024),
    (SIZE - 3, 3),
];

/// A server with a drive that consists mostly of holes, and a proxy.
struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    drive: String,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let drive = create(&server, SIZE);
        let mut image = vec![0; SIZE as usize];
        for (offset, len) in DATA {
            let bytes = noise(offset, len);
            image[offset as usize..][..len].copy_from_slice(&bytes);
            let path = format!("/drives/{drive}/write/{offset}");
            Ask::of(&server).post(&path, &bytes).expect(204);
        }
        Self {
            desk,
            server,
            proxy,
            drive,
            image,
        }
    }

    fn tool(&self, flags: &str) -> Tool<'_> {
        let tool = self.desk.download(&self.proxy.uri()).args("-c 16384");
        tool.args(flags).arg(&self.drive)
    }

    fn run(&self, flags: &str, out: &str) -> Outcome {
        self.tool(flags).arg(out).run()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    #[track_caller]
    fn check(&self, name: &str) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        assert_eq!(bytes.len(), self.image.len());
        let wrong = bytes.iter().zip(&self.image).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "first byte that differs");
    }

    /// Clears the requests, and removes what a run created.
    fn again(&self) {
        self.proxy.forget();
        self.proxy.heal();
        let _ = std::fs::remove_file(self.path("out"));
    }
}

fn is_extents(request: &Request) -> bool {
    request.path.contains("/extents/")
}

fn is_digest(request: &Request) -> bool {
    request.path.contains("/digest/")
}

/// The offset and size in a path like `/drives/ID/read/OFFSET/SIZE`.
fn asked(request: &Request) -> (u64, u64) {
    let mut words = request.path.rsplit('/').map(|word| word.parse().unwrap());
    let size = words.next().unwrap();
    (words.next().unwrap(), size)
}

/// The number of bytes that were read.
fn read_bytes(proxy: &FaultProxy) -> u64 {
    let requests = proxy.requests();
    let reads = requests.iter().filter(|request| request.is_read());
    reads.map(|request| asked(request).1).sum()
}

/// Whether the file system of the tests supports holes; otherwise there is nothing to test.
fn has_holes(server: &TestServer, drive: &str) -> bool {
    let file = server.drive_file(drive).metadata().unwrap();
    let has = file.blocks() * 512 < file.len();
    if !has {
        skip(Need::Other("a file system with holes"), "there are none");
    }
    has
}

// ---- What the server reports ----

#[test]
fn extents_are_where_the_data_is() {
    let scene = Scene::new();
    if !has_holes(&scene.server, &scene.drive) {
        return;
    }
    let ask = |range: &str| {
        let path = format!("/drives/{}/extents/{range}", scene.drive);
        Ask::of(&scene.server).get(&path).expect(200)
    };
    let all = ask(&format!("0/{SIZE}"));
    assert_eq!(all.header("content-type"), Some("text/plain"));
    assert_eq!(all.key("end"), Some(SIZE.to_string().as_str()));
    let data = all.key("data").unwrap();
    let extents: Vec<(u64, u64)> = data
        .split(' ')
        .map(|extent| {
            let (offset, size) = extent.split_once('/').unwrap();
            (offset.parse().unwrap(), size.parse().unwrap())
        })
        .collect();
    assert_eq!(extents.len(), DATA.len(), "{data}");
    for ((start, size), (offset, len)) in extents.into_iter().zip(DATA) {
        assert!(start <= offset && offset + len as u64 <= start + size);
        assert!(size < len as u64 + 2 * HOLE, "{size} for {len}");
    }
    // Within a hole, within data, across both, and an empty range.
    let text = |range: &str| ask(range).text().to_owned();
    assert_eq!(text("200000/300"), "data \nend 200300\n");
    let at = 500 * C + 7;
    let end = at + 9;
    assert_eq!(
        text(&format!("{at}/9")),
        format!("data {at}/9\nend {end}\n")
    );
    assert_eq!(text(&format!("{at}/0")), format!("data \nend {at}\n"));
    let path = format!("/drives/{}/extents/0/{}", scene.drive, 2 * HOLE);
    let reply = Ask::of(&scene.server).with("Accept: application/json");
    let reply = reply.get(&path).expect(200);
    let data = reply.json()["data"].as_str().unwrap().to_owned();
    assert!(data.starts_with("0/"), "{data}");
    let expected = json!({"data": data, "end": (2 * HOLE).to_string()});
    assert_eq!(reply.json(), expected);
    // These requests read nothing.
    let info = Ask::of(&scene.server).get(&format!("/drives/{}/info", scene.drive));
    assert_eq!(info.key("read:requests"), Some("1"));
    assert_eq!(
        info.header("x-openhosting-extensions"),
        Some("digest, extents, cancel")
    );
}

#[test]
fn extents_have_the_permissions_of_a_read() {
    let scene = Scene::new();
    let refused = |path: &str| {
        let reply = Ask::of(&scene.server).get(&path.replace("ID", &scene.drive));
        let (status, error) = reply.error();
        format!("{status} {error}")
    };
    let past = [
        format!("{SIZE}/1"),
        format!("1/{SIZE}"),
        "1/18446744073709551615".into(),
    ];
    for range in past {
        assert_eq!(refused(&format!("/drives/ID/extents/{range}")), "400 usage");
    }
    assert_eq!(refused("/drives/ID/extents/0/x"), "400 usage");
    assert_eq!(refused("/drives/ID/extents/0"), "404 missing");
    let nobody = "0012e24a-6eae-4279-9912-3432f698cec8";
    assert_eq!(
        refused(&format!("/drives/{nobody}/extents/0/1")),
        "404 missing"
    );
    let path = format!("/drives/{}/extents/0/1", scene.drive);
    Ask::of(&scene.server)
        .by("nobody:nothing")
        .get(&path)
        .expect(401);
    // Another cloud has no extension, and announces none.
    let plan = scene.desk.file("plan", br#"{"writers_max": 1}"#);
    let server = scene
        .desk
        .server_with(&["--fault-plan", plan.to_str().unwrap()]);
    let drive = create(&server, 10);
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
    assert_eq!(info.header("x-openhosting-extensions"), None);
    let reply = Ask::of(&server).get(&format!("/drives/{drive}/extents/0/1"));
    assert_eq!(reply.error(), (404, "missing"));
}

// ---- What a download does with it ----

#[test]
fn a_download_reads_what_holds_data() {
    let scene = Scene::new();
    let outcome = scene.run("--verify none --progress json", "out").code(0);
    scene.check("out");
    if !has_holes(&scene.server, &scene.drive) {
        return;
    }
    let bytes: u64 = DATA.iter().map(|(_, len)| *len as u64 + 2 * HOLE).sum();
    let read = read_bytes(&scene.proxy);
    assert!(read < bytes, "{read} bytes were read");
    assert_eq!(scene.proxy.count(is_extents), 1);
    let last = outcome.stderr.lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["bytes_done"], SIZE);
    assert_eq!(last["chunks_done"], CHUNKS);
    assert_eq!(last["bytes_wire"], read);
    let skipped = last["bytes_skipped"].as_u64().unwrap();
    assert!(
        skipped > SIZE - bytes && skipped < SIZE,
        "{skipped} skipped"
    );
    let blocks = scene.path("out").metadata().unwrap().blocks();
    assert!(blocks * 512 < bytes, "{blocks} blocks");
}

#[test]
fn a_terabyte_of_holes_is_a_few_requests() {
    let scene = Scene::new();
    let size = 1_u64 << 40;
    let drive = create(&scene.server, size);
    if !has_holes(&scene.server, &drive) {
        return;
    }
    let data = noise(5, 1 << 20);
    let at = 700_u64 << 30;
    let path = format!("/drives/{drive}/write/{at}");
    Ask::of(&scene.server).post(&path, &data).expect(204);
    let out = scene.path("out");
    scene.desk.own(&out);
    let tool = scene.desk.download(&scene.proxy.uri()).arg(&drive);
    let _ = tool.arg(&out).run().code(0);
    // The chunk with data is read, and samples of it and of the holes.
    let samples = scene.proxy.count(Request::is_read) as u64 - 1;
    assert!(samples > 4 && samples < 64, "{samples}");
    assert!(read_bytes(&scene.proxy) <= data.len() as u64 + samples * SAMPLE);
    assert_eq!(scene.proxy.count(is_extents), 1);
    assert_eq!(out.metadata().unwrap().len(), size);
    let mut bytes = vec![1; data.len() + 2];
    let file = File::open(&out).unwrap();
    file.read_exact_at(&mut bytes, at - 1).unwrap();
    assert!(bytes[0] == 0 && bytes[1..=data.len()] == data && bytes[data.len() + 1] == 0);
}

#[test]
fn a_download_to_stdout_contains_the_zeros() {
    let scene = Scene::new();
    let outcome = scene.run("--checksum", "-").code(0);
    assert!(
        outcome.stdout.starts_with(&scene.image),
        "stdout is not the image"
    );
    let digest = openhosting::digest::Digest::of(&scene.image).to_string();
    assert!(outcome.stderr.contains(&digest), "{}", outcome.stderr);
    let _ = scene.run("--gzip", "out.gz").code(0);
    let packed = std::fs::read(scene.path("out.gz")).unwrap();
    assert!(gunzip(&packed) == scene.image);
    // Larger than one step of zeros: in order, and bounded by the window.
    let size = (200 << 20) + 5;
    let drive = create(&scene.server, size);
    let path = format!("/drives/{drive}/write/{}", size - 1);
    Ask::of(&scene.server).post(&path, b"x").expect(204);
    let tool = scene.desk.download(&scene.server.uri).arg(&drive);
    let outcome = tool.args("-q -j 1 -").run().code(0);
    assert_eq!(outcome.stdout.len() as u64, size);
    assert!(outcome.stdout[..size as usize - 1].iter().all(|&b| b == 0));
    assert_eq!(outcome.stdout.last(), Some(&b'x'));
}

#[test]
fn a_checksum_covers_the_holes() {
    let scene = Scene::new();
    let _ = scene.run("--checksum", "out").code(0);
    scene.check("out");
    let sums = std::fs::read_to_string(scene.path("out.sha256")).unwrap();
    let digest = openhosting::digest::Digest::of(&scene.image).to_string();
    assert!(sums.starts_with(&digest), "{sums}");
}

#[test]
fn holes_contain_no_old_bytes() {
    let scene = Scene::new();
    // In place, over a file with other bytes.
    scene.desk.file("out", &vec![7; SIZE as usize]);
    let _ = scene.run("-o 100", "out").code(0);
    let bytes = std::fs::read(scene.path("out")).unwrap();
    assert!(bytes[..100] == [7; 100] && bytes[100..] == scene.image[100..]);
    scene.again();
    // Staged by an earlier run that was killed after it wrote something that its journal does not
    // mention.
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(is_extents, 1, hold);
    let running = scene.tool("").arg("out").spawn();
    scene
        .proxy
        .wait_for("the question", |requests| requests.iter().any(is_extents));
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    let part = File::options().write(true).open(scene.path("out.oh-part"));
    part.unwrap()
        .write_all_at(&vec![7; SIZE as usize], 0)
        .unwrap();
    let _ = scene.run("", "out").code(0).says("Resuming: 0 of");
    scene.check("out");
}

#[test]
fn zeros_are_written_to_a_device() {
    let scene = Scene::new();
    let old = scene.desk.file("disk", &vec![7; 1 << 25]);
    let Some(device) = LoopDevice::over(&old, &[]) else {
        return;
    };
    let _ = scene.run("--force", &device.0).code(0);
    drop(device);
    let bytes = std::fs::read(&old).unwrap();
    let (image, rest) = bytes.split_at(SIZE as usize);
    let wrong = image.iter().zip(&scene.image).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs");
    assert!(rest.iter().all(|&b| b == 7), "written beyond the end");
}

#[test]
fn holes_are_remembered() {
    let scene = Scene::new();
    if !has_holes(&scene.server, &scene.drive) {
        return;
    }
    // The data in the middle is held back.
    let gate = Gate::default();
    let is_held = |request: &Request| request.is_read() && asked(request).0 >= 400 * C;
    scene
        .proxy
        .fault(is_held, usize::MAX, Fault::Hold(gate.clone()));
    let running = scene.tool("-j 1").arg("out").spawn();
    scene
        .proxy
        .wait_for("the middle", |requests| requests.iter().any(is_held));
    running.signal("INT");
    running.wait_stderr("finishing the requests in flight");
    gate.open();
    let _ = running.wait().code(130);
    let read = scene.proxy.count(Request::is_read);
    let last = scene.proxy.requests().into_iter().rfind(Request::is_read);
    let (offset, size) = asked(&last.unwrap());
    scene.proxy.heal();
    scene.proxy.forget();
    let again = scene.run("--verify none", "out").code(0);
    scene.check("out");
    let (_, resumed) = again.stderr.split_once("Resuming: ").unwrap();
    let there: u64 = resumed.split(' ').next().unwrap().parse().unwrap();
    assert!(there >= 400 * C, "{there} bytes of {read} reads");
    // Nothing that was received is read again, and no hole is requested twice.
    for request in scene.proxy.requests() {
        if request.is_read() || is_extents(&request) {
            assert!(asked(&request).0 >= offset + size, "{}", request.path);
        }
    }
}

#[test]
fn a_finished_image_with_holes_is_recognised() {
    let scene = Scene::new();
    // Killed between naming the image and removing the journal: the journal of a run that was
    // stopped at its last read has all chunks but that one.
    let gate = Gate::default();
    let is_info_at_the_end = |request: &Request| request.is_info();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault_after(1, is_info_at_the_end, 1, hold);
    let running = scene.tool("--verify none").arg("out").spawn();
    scene.proxy.wait_for("the last look", |requests| {
        requests.iter().filter(|request| request.is_info()).count() == 2
    });
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    let name = |from: &str, to: &str| std::fs::rename(scene.path(from), scene.path(to)).unwrap();
    name("out.oh-part", "out");
    scene.again_but_keep();
    let _ = scene.run("", "out").code(0).says("had finished the image");
    // It is compared with the drive, and nothing else is read.
    for request in scene.proxy.requests().iter().filter(|one| one.is_read()) {
        assert!(asked(request).1 <= SAMPLE, "{}", request.path);
    }
    scene.check("out");
    // A file in which a hole now has data is not accepted.
    let _ = std::fs::remove_file(scene.path("out"));
    scene.proxy.heal();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault_after(1, is_info_at_the_end, 1, hold);
    scene.proxy.forget();
    let running = scene.tool("--verify none").arg("out").spawn();
    scene.proxy.wait_for("the last look", |requests| {
        requests.iter().filter(|request| request.is_info()).count() == 2
    });
    let _ = running.kill9();
    gate.open();
    scene.proxy.settle();
    name("out.oh-part", "out");
    let file = File::options().write(true).open(scene.path("out")).unwrap();
    file.write_all_at(b"x", 300 * C).unwrap();
    scene.again_but_keep();
    let _ = scene.run("", "out").code(1).says("--force");
}

impl Scene {
    fn again_but_keep(&self) {
        self.proxy.forget();
        self.proxy.heal();
    }
}

// ---- What is not believed ----

#[test]
fn impossible_extents_are_refused() {
    let scene = Scene::new();
    let bodies = [
        String::new(),
        "data \n".to_owned(),
        format!("end {SIZE}\n"),
        // Beyond the end, beyond the requested range, and beyond 64 bits.
        format!("data 0/{}\nend {SIZE}\n", SIZE + 1),
        format!("data \nend {}\n", SIZE + 1),
        format!("data {SIZE}/18446744073709551615\nend {SIZE}\n"),
        // Out of order, overlapping, empty, without an end.
        format!("data 163840/100 0/100\nend {SIZE}\n"),
        format!("data 0/100 99/100\nend {SIZE}\n"),
        format!("data 0/0\nend {SIZE}\n"),
        "data \nend 0\n".to_owned(),
        format!("data \nend {SIZE}\n\ndata \nend {SIZE}\n"),
        format!("data 0-100\nend {SIZE}\n"),
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n".to_owned(),
    ];
    let chunks = |proxy: &FaultProxy| proxy.count(Request::is_read) as u64;
    for body in bodies {
        scene.again();
        let made_up = answer(200, &["Content-Type: text/plain"], body.as_bytes());
        scene
            .proxy
            .fault(is_extents, usize::MAX, Fault::Answer(made_up));
        let _ = scene.run("--verify none", "out").code(0);
        scene.check("out");
        assert_eq!(chunks(&scene.proxy), CHUNKS, "{body:?}");
    }
    for status in [404, 405] {
        scene.again();
        let refused = Fault::Answer(refusal(status, "missing"));
        scene.proxy.fault(is_extents, usize::MAX, refused);
        let _ = scene.run("--verify none", "out").code(0);
        scene.check("out");
        assert_eq!(scene.proxy.count(is_extents), 1);
        assert_eq!(chunks(&scene.proxy), CHUNKS);
    }
}

#[test]
fn failing_requests_for_extents_are_given_up() {
    let scene = Scene::new();
    for made_up in [page(), refusal(500, "system"), refusal(409, "busy")] {
        scene.again();
        scene
            .proxy
            .fault(is_extents, usize::MAX, Fault::Answer(made_up));
        let _ = scene.run("--verify none", "out").code(0);
        scene.check("out");
        assert!(scene.proxy.count(is_extents) <= 6);
    }
    // A transient failure: it is requested again.
    scene.again();
    scene.proxy.fault(is_extents, 2, Fault::ResetBeforeBody);
    let _ = scene.run("--verify none", "out").code(0);
    scene.check("out");
    if has_holes(&scene.server, &scene.drive) {
        assert!(scene.proxy.count(Request::is_read) < 30);
    }
}

#[test]
fn unhelpful_extents_cost_no_more_than_reading() {
    let scene = Scene::new();
    // One byte more each time, all of it data, or none.
    for [start, data] in [[0, 0], [0, 1]] {
        scene.again();
        scene.proxy.fault(
            is_extents,
            usize::MAX,
            Fault::rewrite(move |request, _| {
                let (offset, _) = asked(request);
                let data = match data {
                    0 => String::new(),
                    _ => format!("{}/1", offset + start),
                };
                let body = format!("data {data}\nend {}\n", offset + 1);
                answer(200, &["Content-Type: text/plain"], body.as_bytes())
            }),
        );
        let _ = scene.run("--verify none", "out").code(0);
        scene.check("out");
        assert_eq!(scene.proxy.count(is_extents) as u64, CHUNKS);
        assert_eq!(scene.proxy.count(Request::is_read) as u64, CHUNKS);
    }
    // Each answer covers a chunk and a half; only whole chunks count.
    scene.again();
    scene.proxy.fault(
        is_extents,
        usize::MAX,
        Fault::rewrite(|request, _| {
            let (offset, size) = asked(request);
            let end = offset + size.min(3 * C / 2);
            let data = format!("{offset}/{}", end - offset);
            let body = format!("data {data}\nend {end}\n");
            answer(200, &["Content-Type: text/plain"], body.as_bytes())
        }),
    );
    let _ = scene.run("--verify none", "out").code(0);
    scene.check("out");
    assert_eq!(scene.proxy.count(is_extents) as u64, CHUNKS);
    assert_eq!(read_bytes(&scene.proxy), SIZE);
}

#[test]
fn a_hole_that_is_filled_during_the_download_is_reported() {
    let scene = Scene::new();
    let gate = Gate::default();
    scene
        .proxy
        .fault(Request::is_read, usize::MAX, Fault::Hold(gate.clone()));
    let running = scene.tool("").arg("out").spawn();
    scene
        .proxy
        .wait_for("a read", |requests| requests.iter().any(Request::is_read));
    let path = format!("/drives/{}/write/{}", scene.drive, 300 * C);
    Ask::of(&scene.server).post(&path, b"late").expect(204);
    gate.open();
    let _ = running.wait().code(4).says("it was written to meanwhile");
    assert!(!scene.path("out").exists());
}

#[test]
fn a_full_verification_finds_data_in_reported_holes() {
    let scene = Scene::new();
    // Trusted at first: a hole that contains data.
    let rest = 600 * C;
    let lie = format!("data {rest}/{}\nend {SIZE}\n", SIZE - rest);
    let lie = answer(200, &["Content-Type: text/plain"], lie.as_bytes());
    scene.proxy.fault(is_extents, 1, Fault::Answer(lie));
    let _ = scene
        .run("--verify full", "out")
        .code(4)
        .says("does not hold what was transferred");
    assert!(!scene.path("out").exists());
}

// ---- Verifying an upload ----

#[test]
fn holes_of_an_upload_are_verified_despite_reported_extents() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 64_u64 << 20;
    let data = noise(9, 100_000);
    desk.sparse("a.img", size, &[(30 << 20, &data)]);
    let tool = desk
        .upload(&proxy.uri())
        // One request at a time, so nothing is checked before the end.
        .args("-j 1 --verify full --progress json");
    let outcome = tool.arg("a.img").run().code(0);
    let drive = outcome.created();
    let last = outcome.stderr.lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["verified_bytes"], size);
    assert_eq!(proxy.count(is_extents), 0);
    let requests = proxy.requests();
    let digests = requests.iter().filter(|request| is_digest(request));
    assert_eq!(digests.map(|digest| asked(digest).1).sum::<u64>(), size);
    // A nonzero byte there is found.
    proxy.forget();
    let gate = Gate::default();
    proxy.fault(is_digest, usize::MAX, Fault::Hold(gate.clone()));
    let flags = "-c 1048576 -j 1 --verify full";
    let tool = desk.upload(&proxy.uri()).args(flags);
    let running = tool.arg("-d").arg(&drive).arg("a.img").spawn();
    proxy.wait_for("a digest", |requests| requests.iter().any(is_digest));
    let file = File::options().write(true).open(server.drive_file(&drive));
    file.unwrap().write_all_at(b"x", 50 << 20).unwrap();
    gate.open();
    let _ = running
        .wait()
        .code(4)
        .says("does not hold what was transferred: the 1048576 bytes at 52428800 differ");
}

#[test]
fn zeros_are_read_without_the_extension() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let data = noise(9, 100_000);
    desk.sparse("a.img", 20 << 20, &[(512 << 10, &data)]);
    let gone = Fault::Answer(refusal(404, "missing"));
    proxy.fault(is_extents, usize::MAX, gone.clone());
    proxy.fault(is_digest, usize::MAX, gone);
    let tool = desk.upload(&proxy.uri()).args("-c 1048576 --verify full");
    let _ = tool.arg("a.img").run().code(0);
    // This includes the proof of zeros.
    assert!(read_bytes(&proxy) >= 20 << 20);
    drop(server);
}
