//! Requests of a transfer that are not for chunks: independent ones are made concurrently, and
//! samples are read back while the transfer runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::support::cli::{Desk, Running};
use crate::support::http::{assert_drive, drives};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, refusal};
use crate::support::server::TestServer;

const C: usize = 64 * 1024;
const CHUNKS: usize = 16;
const SIZE: usize = CHUNKS * C;
/// Two requests at a time, so that a chunk and a check can be under way together.
const TWO: &str = "--min-jobs 2 -j 2";

/// More requests at a time than the last chunks need.
const FOUR: &str = "--min-jobs 4 -j 4";

struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let image = noise(5, SIZE);
        desk.file("a.img", &image);
        Self {
            desk,
            server,
            proxy,
            image,
        }
    }

    fn upload(&self, flags: &str) -> Running<'_> {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 65536").args(flags).arg("a.img").spawn()
    }

    /// Holds back the request for the last chunk.
    fn hold_last(&self) -> Gate {
        let gate = Gate::default();
        let last = format!("/{}", SIZE - C);
        let is_last =
            move |r: &Request| r.path.ends_with(&last) || r.path.ends_with(&format!("{last}/{C}"));
        self.proxy.fault(is_last, 1, Fault::Hold(gate.clone()));
        gate
    }

    fn drive(&self) -> String {
        drives(&self.server).pop().unwrap()
    }

    /// Changes the bytes of some chunks on the drive.
    fn spoil(&self, chunks: std::ops::Range<usize>) {
        let path = self.server.drive_file(&self.drive());
        let file = File::options().write(true).open(path).unwrap();
        let bytes: Vec<u8> = chunks_of(&self.image, &chunks).map(|byte| !byte).collect();
        file.write_all_at(&bytes, (chunks.start * C) as u64)
            .unwrap();
    }

    fn writes_answered(&self) -> usize {
        self.proxy.count(|r| r.is_write() && r.status == 204)
    }
}

fn chunks_of<'a>(image: &'a [u8], chunks: &std::ops::Range<usize>) -> impl Iterator<Item = &'a u8> {
    image[chunks.start * C..chunks.end * C].iter()
}

/// The offset of a read.
fn offset(request: &Request) -> u64 {
    request.path.split('/').nth(4).unwrap().parse().unwrap()
}

/// How many reads were answered.
fn read(requests: &[Request]) -> usize {
    let read = |r: &&Request| r.reads_back() && r.status == 200;
    requests.iter().filter(read).count()
}

/// All chunks but the last are checked before the last one is written. Only three round trips are
/// left then: the remaining checks are under way at the same time, then the token of the drive is
/// compared, and then its mark ends.
#[test]
fn an_upload_ends_three_round_trips_after_its_last_chunk() {
    let scene = Scene::new();
    let gate = scene.hold_last();
    let running = scene.upload(TWO);
    scene
        .proxy
        .wait_for("the early checks", |requests| read(requests) == CHUNKS - 1);
    let at_end = Gate::default();
    let hold = Fault::Hold(at_end.clone());
    scene.proxy.fault(Request::reads_back, usize::MAX, hold);
    gate.open();
    scene.proxy.wait_for("the last look", |requests| {
        requests.iter().filter(|r| r.reads_back()).count() == CHUNKS + 1
    });
    at_end.open();
    let _ = running.wait().code(0);
    // The last two checks are of both ends of the drive, and only the mark follows them.
    assert_eq!(scene.proxy.count(Request::reads_back), CHUNKS + 1);
    let mut requests = scene.proxy.requests();
    assert!(requests.pop().unwrap().path.ends_with("/set"));
    assert!(requests.pop().unwrap().is_info());
    let mut last: Vec<_> = requests[requests.len() - 2..].iter().map(offset).collect();
    last.sort_unstable();
    let (first_end, last_start) = (C as u64, (SIZE - C) as u64);
    assert!(last[0] < first_end && last[1] >= last_start, "{last:?}");
    assert_drive(&scene.server, &scene.drive(), &scene.image);
}

/// The last chunk never gets through, so it must be the mismatch that ends the run.
#[test]
fn a_mismatch_in_the_middle_ends_the_upload_before_the_rest_is_sent() {
    for flags in ["", "--verify full"] {
        let scene = Scene::new();
        let (last, reads) = (scene.hold_last(), Gate::default());
        let hold = Fault::Hold(reads.clone());
        scene.proxy.fault(Request::reads_back, 1, hold);
        let running = scene.upload(&format!("{TWO} {flags}"));
        scene.proxy.wait_for("the writes and a read", |requests| {
            let written = |r: &&Request| r.is_write() && r.status == 204;
            requests.iter().filter(written).count() == CHUNKS - 1
                && requests.iter().any(Request::reads_back)
        });
        // The chunks change after they were confirmed and before they are read back.
        scene.spoil(0..CHUNKS - 1);
        reads.open();
        let outcome = running.wait().code(4);
        let outcome = outcome.says("does not hold what was transferred");
        assert!(!outcome.text().contains("completed"), "{outcome:?}");
        assert_eq!(scene.writes_answered(), CHUNKS - 1);
        last.open();
    }
}

/// A chunk that is sent in pieces may be read back only when its last piece is confirmed.
#[test]
fn a_chunk_is_not_read_back_while_a_piece_of_it_is_missing() {
    const HELD: u64 = 5 * C as u64;
    let scene = Scene::new();
    let len = |r: &Request| -> usize { r.header("content-length").unwrap().parse().unwrap() };
    let is_large = move |r: &Request| r.is_write() && len(r) > C / 4;
    let too_large = Fault::Answer(refusal(413, "size"));
    scene.proxy.fault(is_large, usize::MAX, too_large);
    let gate = Gate::default();
    let chunk = HELD..HELD + C as u64;
    let last = chunk.end - C as u64 / 4;
    let is_last = move |r: &Request| r.is_write() && r.offset() == last && !is_large(r);
    scene.proxy.fault(is_last, 1, Fault::Hold(gate.clone()));
    let running = scene.upload(FOUR);
    scene
        .proxy
        .wait_for("the other chunks", |requests| read(requests) == CHUNKS - 1);
    let of_it = |requests: &[Request]| -> Vec<Request> {
        let of_it = |r: &&Request| r.reads_back() && chunk.contains(&offset(r));
        requests.iter().filter(of_it).cloned().collect()
    };
    let requests = scene.proxy.requests();
    let pieces = |r: &&Request| r.is_write() && r.status == 204 && chunk.contains(&r.offset());
    assert_eq!(requests.iter().filter(pieces).count(), 3);
    assert!(of_it(&requests).is_empty());
    gate.open();
    let _ = running.wait().code(0);
    assert!(!of_it(&scene.proxy.requests()).is_empty());
    assert_drive(&scene.server, &scene.drive(), &scene.image);
}

/// While chunks use all requests that the user allows, no check is made in addition.
#[test]
fn a_check_is_one_of_the_requests_that_are_allowed() {
    let scene = Scene::new();
    let gate = Gate::default();
    let is_late = |r: &Request| r.is_write() && r.offset() >= (CHUNKS / 2 * C) as u64;
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(is_late, usize::MAX, hold);
    let running = scene.upload(TWO);
    // The proxy records a status after it has passed the answer on.
    scene
        .proxy
        .wait_for("two late writes after all others", |requests| {
            let writes = |status| {
                requests
                    .iter()
                    .filter(move |r| r.is_write() && r.status == status)
            };
            writes(0).filter(|r| is_late(r)).count() == 2 && writes(204).count() >= CHUNKS / 2
        });
    assert_eq!(scene.proxy.count(Request::reads_back), 0);
    gate.open();
    let _ = running.wait().code(0);
    assert!(scene.proxy.count(Request::reads_back) >= CHUNKS);
}

/// The image changed and not the drive, so the error says that, and the journal stays valid.
#[test]
fn an_image_that_changes_while_it_is_sent_keeps_its_journal() {
    let scene = Scene::new();
    let (last, reads) = (scene.hold_last(), Gate::default());
    let hold = Fault::Hold(reads.clone());
    scene.proxy.fault(Request::reads_back, 1, hold);
    let running = scene.upload(TWO);
    scene.proxy.wait_for("the writes and a read", |requests| {
        let written = |r: &&Request| r.is_write() && r.status == 204;
        requests.iter().filter(written).count() == CHUNKS - 1
            && requests.iter().any(Request::reads_back)
    });
    let changed = noise(6, SIZE);
    scene.desk.file("a.img", &changed);
    reads.open();
    let _ = running.wait().code(4).says("changed");
    last.open();
    scene.proxy.heal();
    let drive = scene.drive();
    let _ = scene.upload("--changed-ok").wait().code(0);
    assert_eq!(drives(&scene.server), [drive.as_str()]);
    assert_drive(&scene.server, &drive, &changed);
}

/// Data that was right when it was first checked, and was lost afterwards.
#[test]
fn bytes_lost_after_their_check_are_found_at_the_end() {
    for lost in [0..1, 1..CHUNKS - 1] {
        // One round trip has room either for checks of all chunks, or of both ends of the drive.
        let jobs = if lost.len() > 1 { 4 } else { 2 };
        let scene = Scene::new();
        let gate = scene.hold_last();
        let running = scene.upload(&format!("--min-jobs {jobs} -j {jobs}"));
        scene
            .proxy
            .wait_for("the early checks", |requests| read(requests) == CHUNKS - 1);
        scene.spoil(lost);
        gate.open();
        let outcome = running.wait().code(4);
        let _ = outcome.says("does not hold what was transferred");
    }
}

#[test]
fn a_read_back_that_fails_does_not_fail_the_upload() {
    let faults = [
        Fault::ResetBeforeBody,
        Fault::LoseAnswer,
        Fault::CutAnswer,
        Fault::Answer(refusal(503, "busy")),
        Fault::Answer(refusal(409, "busy")),
        Fault::Answer(refusal(500, "failed")),
    ];
    for fault in faults {
        let scene = Scene::new();
        let gate = scene.hold_last();
        scene.proxy.fault(Request::reads_back, 2, fault);
        let running = scene.upload(TWO);
        scene.proxy.wait_for("the writes and a read", |requests| {
            let written = |r: &&Request| r.is_write() && r.status == 204;
            requests.iter().filter(written).count() == CHUNKS - 1
                && requests.iter().any(Request::reads_back)
        });
        gate.open();
        let _ = running.wait().code(0);
        assert_drive(&scene.server, &scene.drive(), &scene.image);
        // Every chunk was checked in spite of the failure.
        let mut chunks: Vec<u64> = scene
            .proxy
            .requests()
            .iter()
            .filter(|r| r.reads_back() && r.status == 200 && !r.is_faulted)
            .map(|r| offset(r) / C as u64)
            .collect();
        chunks.sort_unstable();
        chunks.dedup();
        assert_eq!(chunks.len(), CHUNKS);
    }
}

/// An endpoint that refuses reads during the writes is asked only once. With a limit of one request
/// at a time it is not asked at all before the last chunk is written.
#[test]
fn an_endpoint_that_limits_requests_is_read_back_at_the_end_only() {
    for (flags, before) in [(TWO, 1), ("-j 1", 0)] {
        let scene = Scene::new();
        let gate = scene.hold_last();
        let busy = Fault::Answer(refusal(409, "busy"));
        scene.proxy.fault(Request::reads_back, usize::MAX, busy);
        let running = scene.upload(flags);
        scene.proxy.wait_for("the last write", |requests| {
            requests.iter().filter(|r| r.is_write()).count() == CHUNKS
                && requests.iter().filter(|r| r.status == 204).count() == CHUNKS - 1
                && requests.iter().filter(|r| r.reads_back()).count() >= before
        });
        assert_eq!(scene.proxy.count(Request::reads_back), before, "{flags}");
        scene.proxy.heal();
        gate.open();
        let _ = running.wait().code(0);
        assert!(scene.proxy.count(Request::reads_back) >= CHUNKS);
    }
}

/// Bytes that are read back are not bytes that are sent. So the summary counts neither the early
/// checks nor the last one as bytes on the wire, and it counts a chunk that is checked twice only
/// once.
#[test]
fn the_summary_does_not_depend_on_when_the_sample_is_read() {
    let mut summaries = Vec::new();
    for flags in [TWO, "-j 1"] {
        let scene = Scene::new();
        let gate = scene.hold_last();
        let running = scene.upload(&format!("{flags} --level 0 --json"));
        if flags == TWO {
            scene
                .proxy
                .wait_for("the early checks", |requests| read(requests) == CHUNKS - 1);
        }
        gate.open();
        let outcome = running.wait().code(0);
        let object: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        summaries.push(["bytes_on_wire", "verified_bytes"].map(|key| object[key].clone()));
    }
    assert_eq!(summaries[0], summaries[1]);
    assert_eq!(summaries[0][1], (CHUNKS * 16 * 1024) as u64);
}

/// The connections for the first chunks are opened without waiting for any answer, and without an
/// additional request.
#[test]
fn connections_for_the_first_chunks_are_opened_before_there_is_a_drive() {
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene.proxy.fault(Request::is_create, 1, hold);
    let running = scene.upload("--min-jobs 4");
    scene.proxy.wait_for("the creation", |requests| {
        requests.iter().any(Request::is_create)
    });
    for _ in 0..10_000 {
        if scene.proxy.connections() >= 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(scene.proxy.connections(), 4);
    assert_eq!(scene.proxy.requests().len(), 1);
    gate.open();
    let _ = running.wait().code(0);
    let requests = scene.proxy.requests();
    assert!(requests.iter().all(|r| !r.path.ends_with("drives/info")));
    let mut used: Vec<_> = requests.iter().map(|r| r.connection).collect();
    used.sort_unstable();
    used.dedup();
    assert!(used.starts_with(&[0, 1, 2, 3]), "{used:?}");
}

/// One small write measures how slow the link is. The first chunks do not wait for its answer.
#[test]
fn the_first_chunk_does_not_wait_for_the_speed_measurement() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let data = noise(7, 1 << 20);
    desk.sparse("a.img", 64 << 20, &[(0, &data)]);
    let gate = Gate::default();
    let is_sounding = |r: &Request| r.is_write() && r.header("content-length") == Some("65536");
    proxy.fault(is_sounding, 1, Fault::Hold(gate.clone()));
    let running = desk.upload(&proxy.uri()).arg("a.img").spawn();
    proxy.wait_for("the sounding", |requests| requests.iter().any(is_sounding));
    // Longer than it takes to read a chunk, and shorter than any wait for the answer.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        gate.open();
    });
    proxy.wait_for("the first chunk", |requests| {
        requests.iter().filter(|r| r.is_write()).count() > 1
    });
    let sounding = proxy.requests().into_iter().find(|r| is_sounding(r));
    assert_eq!(sounding.unwrap().status, 0, "it was answered before");
    let outcome = running.wait().code(0);
    let mut image = vec![0; 64 << 20];
    image[..data.len()].copy_from_slice(&data);
    assert_drive(&server, &outcome.created(), &image);
}

/// The check that the drive is still the same and the last checks of the sample run at the same
/// time: together they are the three requests that the user allows.
#[test]
fn a_download_ends_one_round_trip_after_its_last_chunk() {
    let scene = Scene::new();
    let _ = scene.upload("").wait().code(0);
    let drive = scene.drive();
    scene.proxy.forget();
    let gate = scene.hold_last();
    let tool = scene.desk.download(&scene.proxy.uri());
    let tool = tool
        .args("-c 65536")
        .args("--min-jobs 3 -j 3")
        .arg(&drive)
        .arg("out");
    let running = tool.spawn();
    let sampled = |r: &&Request| r.path.ends_with("/16384");
    scene.proxy.wait_for("the early checks", |requests| {
        let answered = |r: &&Request| sampled(r) && r.status == 200;
        requests.iter().filter(answered).count() == CHUNKS - 1
    });
    let at_end = Gate::default();
    let hold = Fault::Hold(at_end.clone());
    let is_any = |_: &Request| true;
    scene.proxy.fault(is_any, usize::MAX, hold);
    gate.open();
    scene.proxy.wait_for("the last look", |requests| {
        requests.iter().filter(sampled).count() == CHUNKS + 1
            && requests.iter().filter(|r| r.is_info()).count() == 2
    });
    at_end.open();
    let before = scene.proxy.requests().len();
    let _ = running.wait().code(0);
    assert_eq!(scene.proxy.requests().len(), before);
    assert!(std::fs::read(scene.desk.path("out")).unwrap() == scene.image);
}

/// The drive is written to by somebody else while it is downloaded.
#[test]
fn a_chunk_that_changed_after_it_was_read_ends_the_download_early() {
    let scene = Scene::new();
    let _ = scene.upload("").wait().code(0);
    let drive = scene.drive();
    scene.proxy.forget();
    let (last, reads) = (scene.hold_last(), Gate::default());
    let hold = Fault::Hold(reads.clone());
    let is_sample = |r: &Request| r.path.ends_with("/16384");
    scene.proxy.fault(is_sample, 1, hold);
    let tool = scene.desk.download(&scene.proxy.uri());
    let tool = tool.args("-c 65536").args(TWO).arg(&drive).arg("out");
    let running = tool.spawn();
    scene.proxy.wait_for("a sample", |requests| {
        let came = |r: &&Request| r.is_read() && r.status == 200;
        requests.iter().any(is_sample) && requests.iter().filter(came).count() == CHUNKS - 1
    });
    scene.spoil(0..CHUNKS - 1);
    reads.open();
    let outcome = running.wait().code(4);
    let _ = outcome.says("does not hold what was transferred");
    assert!(!scene.desk.path("out").exists());
    last.open();
}

/// Asking for the proofs of a new drive takes one round trip, and checking the sample takes one
/// digest for each chunk.
#[test]
fn a_publication_makes_few_requests_beside_its_chunks() {
    const CHUNK: u64 = 4 << 20;
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let data = noise(7, 1 << 20);
    desk.sparse("a.img", 10 * CHUNK, &[(0, &data), (7 * CHUNK, &data)]);
    let gate = Gate::default();
    proxy.fault(Request::is_read, 3, Fault::Hold(gate.clone()));
    let tool = desk.simple(&proxy.uri());
    let running = tool.args("publish --name a a.img").spawn();
    proxy.wait_for("all proofs at once", |requests| {
        requests.iter().filter(|r| r.is_read()).count() == 3
    });
    gate.open();
    let _ = running.wait().code(0);
    let digests = proxy.count(|r| r.path.contains("/digest/"));
    assert!((1..=10).contains(&digests), "{digests} digests");
    assert_eq!(drives(&server).len(), 1);
}
