//! `openhosting publish` and `openhosting verify`: complete, as a delta, in parts, and interrupted
//! in every way.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::streams::Site;
use crate::support::cli::{Desk, Tool};
use crate::support::http::{Ask, assert_drive, drives, info};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer, refusal};
use crate::support::schema::object;
use crate::support::server::TestServer;
use crate::support::slow::SlowLink;
use crate::support::{noise, rounds, seed};

const BLOCK: usize = 64 * 1024;
const CHUNK: usize = 64 * BLOCK;
/// Two chunks and a part of one, whose last block is short.
const SIZE: usize = 2 * CHUNK + 20 * BLOCK + 12_345;

/// Noise, with a hole within a chunk and a chunk that is a hole.
fn image() -> Vec<u8> {
    let mut image = noise(1, SIZE);
    image[3 * BLOCK..9 * BLOCK].fill(0);
    image[CHUNK..2 * CHUNK].fill(0);
    image
}

/// The same image with these blocks changed.
fn changed(image: &[u8], blocks: &[usize]) -> Vec<u8> {
    let mut changed = image.to_vec();
    for block in blocks {
        changed[block * BLOCK + 17] ^= 0x55;
    }
    changed
}

fn publish<'a>(desk: &'a Desk, uri: &str, words: &str) -> Tool<'a> {
    desk.simple(uri).args(&format!("publish {words}"))
}

/// Publishes, and returns the UUID.
#[track_caller]
fn published(desk: &Desk, uri: &str, words: &str) -> String {
    let done = publish(desk, uri, words).run().code(0);
    let mut lines = done.text().lines();
    let drive = lines.next().unwrap().to_owned();
    assert_eq!((drive.len(), lines.next()), (36, None), "{done:?}");
    drive
}

/// Publishes, and returns the object.
#[track_caller]
fn publication(desk: &Desk, uri: &str, words: &str) -> Value {
    let done = publish(desk, uri, &format!("{words} --json")).run().code(0);
    serde_json::from_slice(&done.stdout).unwrap()
}

fn receipts(desk: &Desk) -> PathBuf {
    desk.path("../home/.local/state/openhosting/receipts")
}

fn writes(proxy: &FaultProxy) -> Vec<Request> {
    let requests = proxy.requests().into_iter();
    requests.filter(Request::is_write).collect()
}

/// Bytes of the disk that were written.
fn written(proxy: &FaultProxy) -> usize {
    writes(proxy).iter().map(|write| write.plain().len()).sum()
}

fn is_image_call(request: &Request) -> bool {
    request.path.contains("/image/")
}

/// Drives with this name, and the others.
fn by_name(server: &TestServer, name: &str) -> (Vec<String>, Vec<String>) {
    let all = drives(server).into_iter();
    all.partition(|drive| info(server, drive, "name").as_deref() == Some(name))
}

/// A server without our extensions.
fn plain_server(desk: &Desk) -> TestServer {
    let plan = desk.file("plan.json", br#"{"past_end": "full"}"#);
    desk.server_with(&["--fault-plan", plan.to_str().unwrap()])
}

#[test]
fn a_name_that_means_an_earlier_drive_again_is_reported() {
    let desk = Desk::new();
    let server = desk.server();
    let run = |seed| {
        desk.file("a.img", &noise(seed, BLOCK));
        let done = publish(&desk, &server.uri, "a.img --name n").run().code(0);
        (done.text().trim().to_owned(), done)
    };
    let [(first, _), (second, _)] = [run(1), run(2)];
    let (again, done) = run(1);
    assert_eq!(again, first);
    let _ = done.says(&format!(
        "n means the earlier drive {} again, which holds this image: nothing to send",
        &first[..8]
    ));
    // The name means that drive, and a further run changes nothing.
    let shown = desk.simple(&server.uri).args("show n").run().code(0);
    assert!(shown.text().contains(&first) && !shown.text().contains(&second));
    let (_, done) = run(1);
    assert!(!done.stderr.contains("again"), "{done:?}");
}

#[test]
fn an_image_is_published_and_the_second_time_nothing_is_sent() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let readers = "0012e24a-6eae-4279-9912-3432f698cec8";
    let words = format!("a.img --name nightly --tag ci --tag main --readers {readers}");
    let drive = published(&desk, &proxy.uri(), &words);
    assert_drive(&server, &drive, &image());
    let key = |key| info(&server, &drive, key);
    assert_eq!(key("name").as_deref(), Some("nightly"));
    assert_eq!(key("tags").as_deref(), Some("ci main"));
    assert_eq!(key("readers").as_deref(), Some(readers));
    assert_eq!(key("user:oh-state").as_deref(), Some("published"));
    assert!(desk.journals().is_empty());
    // Zeros were not sent.
    assert!(written(&proxy) <= SIZE - CHUNK, "{}", written(&proxy));
    // Its name, readers, tags and digest were set in one request, after all writes.
    let requests = proxy.requests();
    let set = requests.iter().rposition(|r| r.path.ends_with("/set"));
    let set = set.unwrap();
    for line in [
        "name nightly",
        "tags ci main",
        "readers ",
        "user:oh-digest ",
    ] {
        let says = |request: &Request| {
            let is_it = |l: &str| l == line || line.ends_with(' ') && l.starts_with(line);
            let is_about = request.path.ends_with("/set") || request.is_create();
            is_about && request.text().lines().any(is_it)
        };
        assert!(says(&requests[set]), "{line}");
        assert!(!requests[..set].iter().any(says), "{line}");
    }
    assert!(requests.iter().rposition(Request::is_write).unwrap() < set);
    proxy.forget();
    assert_eq!(published(&desk, &proxy.uri(), &words), drive);
    let posts: Vec<_> = proxy
        .requests()
        .into_iter()
        .filter(|r| r.method == "POST")
        .collect();
    assert!(posts.is_empty(), "{posts:?}");
    assert_eq!(drives(&server).len(), 1);
    // On another machine as well.
    let (again, elsewhere) = (Desk::new(), proxy.uri());
    again.file("b.img", &image());
    let there = publish(&again, &elsewhere, "b.img --name nightly").env("OHAUTH", desk.auth());
    assert_eq!(there.run().code(0).text().trim(), drive);
    assert_eq!(writes(&proxy).len(), 0);
}

/// The image may have changed since it was hashed. So there is no write before the first chunk was
/// compared with its digest, as an upload of this size has, to measure the speed.
#[test]
fn every_written_byte_of_a_large_image_was_checked() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let data = noise(1, CHUNK);
    desk.sparse("a.img", 80 << 20, &[(0, &data)]);
    let drive = published(&desk, &proxy.uri(), "a.img --name n");
    assert_eq!(written(&proxy), CHUNK);
    let mut image = data;
    image.resize(80 << 20, 0);
    assert_drive(&server, &drive, &image);
}

#[test]
fn only_blocks_that_differ_are_sent_to_a_copy() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let base = published(&desk, &proxy.uri(), "a.img --name nightly");
    // Two neighbours, an isolated one, one in zeros, and the short one at the end.
    let blocks = [1, 2, 20, 70, 148];
    let next = changed(&image(), &blocks);
    desk.file("b.img", &next);
    proxy.forget();
    let done = publication(&desk, &proxy.uri(), "b.img --name nightly");
    assert_eq!(
        (done["how"].as_str(), done["base"].as_str()),
        (Some("delta"), Some(&*base))
    );
    let drive = done["drive"].as_str().unwrap();
    assert_drive(&server, drive, &next);
    assert_drive(&server, &base, &image());
    assert_eq!(proxy.count(is_image_call), 1);
    let expected = 4 * BLOCK + 12_345;
    assert_eq!(written(&proxy), expected);
    assert_eq!(writes(&proxy).len(), 4, "neighbours go together");
    // Back to zeros: the newest drive is the base now.
    proxy.forget();
    let mut zeroed = next.clone();
    zeroed[70 * BLOCK..71 * BLOCK].fill(0);
    desk.file("c.img", &zeroed);
    let done = publication(&desk, &proxy.uri(), "c.img --name nightly");
    assert_eq!(done["base"].as_str(), Some(drive));
    assert_drive(&server, done["drive"].as_str().unwrap(), &zeroed);
    // There is nothing to send, but a separate drive is created, as a copy of known content.
    proxy.forget();
    let done = publication(&desk, &proxy.uri(), "c.img --name other --base nightly");
    assert_eq!(writes(&proxy).len(), 0);
    assert_drive(&server, done["drive"].as_str().unwrap(), &zeroed);
}

#[test]
fn a_drive_created_before_hashing_is_reused_for_its_image_only() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let old = published(&desk, &proxy.uri(), "a.img --name n");
    let next = changed(&image(), &[5]);
    desk.file("b.img", &next);
    // The copy is created, and then the run ends.
    let is_set = |request: &Request| request.path.ends_with("/set");
    proxy.fault(is_set, 9, Fault::Answer(refusal(403, "auth")));
    publish(&desk, &proxy.uri(), "b.img --name n")
        .run()
        .says("is unfinished");
    let (_, left) = by_name(&server, "n");
    let [left] = &*left else {
        panic!("one is unfinished: {left:?}");
    };
    assert_eq!(info(&server, left, "user:oh-goal"), None);
    assert!(info(&server, left, "user:oh-source").is_some());
    // An unfinished drive of another image is reported, and left alone.
    let other = changed(&image(), &[6]);
    desk.file("c.img", &other);
    let done = publish(&desk, &server.uri, "c.img --name n --base none")
        .run()
        .code(0)
        .says(&format!(
            "Unfinished, with another image: {left}; --cleanup removes it"
        ));
    let done = done.text().trim().to_owned();
    assert_drive(&server, &done, &other);
    assert_drive(&server, left, &image());
    let done = publish(&desk, &server.uri, "b.img --name n")
        .run()
        .code(0)
        .says("Resuming on the unfinished drive");
    assert_eq!(done.text().trim(), left);
    assert_drive(&server, left, &next);
    assert_drive(&server, &old, &image());
    assert_eq!(drives(&server).len(), 3);
}

#[test]
fn a_delta_that_stops_and_resumes_counts_what_the_base_holds_both_times() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let _ = published(&desk, &proxy.uri(), "a.img --name n");
    // The chunk between them is the same on the base.
    let next = changed(&image(), &[5, 130]);
    desk.file("b.img", &next);
    let fault = Fault::Answer(refusal(400, "usage"));
    proxy.fault_after(1, Request::is_write, usize::MAX, fault);
    let run = || publish(&desk, &proxy.uri(), "b.img --name n -j 1").run();
    let _ = run().code(1).says("(8.0 MiB of 9.3 MiB are on drive ");
    proxy.heal();
    let resumes = format!("Resuming: {} of {SIZE} bytes are done", 2 * CHUNK);
    let done = run().code(0).says(&resumes);
    assert_drive(&server, done.text().trim(), &next);
}

#[test]
fn an_image_of_an_older_published_drive_creates_no_drive() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    desk.file("b.img", &changed(&image(), &[5]));
    let old = published(&desk, &proxy.uri(), "a.img --name n");
    let new = published(&desk, &proxy.uri(), "b.img --name n");
    let is_create = |request: &Request| request.path.ends_with("/create");
    for (image, drive, made) in [("b.img", &new, 0), ("a.img", &old, 1)] {
        proxy.forget();
        assert_eq!(
            published(&desk, &proxy.uri(), &format!("{image} --name n")),
            *drive
        );
        assert_eq!(written(&proxy), 0);
        // Back to an older content: only at its end is it known that it is not new.
        assert_eq!(proxy.count(is_create), made);
        assert_eq!(drives(&server).len(), 2);
        // The name means what was published last, though it was there before.
        let shown = desk.simple(&server.uri).args("show --json n").run().code(0);
        assert_eq!(object("show/1", &shown.stdout)["drive"], **drive);
    }
}

#[test]
fn a_disk_on_a_web_server_is_published_by_its_ranges() {
    let desk = Desk::new();
    let server = desk.server();
    let old = Site::of(&image()).serve();
    let next = changed(&image(), &[5]);
    let new = Site::of(&next).serve();
    let words = |site: &FaultProxy| format!("{}disk.img --name n", site.uri());
    published(&desk, &server.uri, &words(&old));
    let done = publication(&desk, &server.uri, &words(&new));
    assert_eq!(done["how"], "delta");
    let drive = done["drive"].as_str().unwrap();
    assert_drive(&server, drive, &next);
    // An image that can be read only once.
    let piped = Site::without_ranges(&next).serve();
    publish(&desk, &server.uri, &words(&piped))
        .run()
        .code(2)
        .says("only be read once");
    publish(&desk, &server.uri, "- --name n")
        .run()
        .code(2)
        .says("from stdin");
    assert_eq!(drives(&server).len(), 2);
}

#[test]
fn an_image_that_grew_is_a_delta_and_one_that_shrank_is_not() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    published(&desk, &proxy.uri(), "a.img --name n");
    let mut grown = image();
    grown.resize(SIZE + 3 * CHUNK, 0);
    grown[SIZE + CHUNK] = 1;
    desk.file("b.img", &grown);
    proxy.forget();
    let done = publication(&desk, &proxy.uri(), "b.img --name n");
    assert_eq!(done["how"], "delta");
    assert_drive(&server, done["drive"].as_str().unwrap(), &grown);
    let out = publish(&desk, &proxy.uri(), "a.img --name m --base n")
        .run()
        .code(0);
    let out = out.says("is larger than the image: everything is sent");
    assert_drive(&server, out.text().trim(), &image());
}

#[test]
fn without_a_receipt_the_copy_is_compared() {
    for has_digests in [true, false] {
        let desk = Desk::new();
        let server = match has_digests {
            true => desk.server(),
            false => plain_server(&desk),
        };
        let proxy = FaultProxy::to(&server);
        desk.file("a.img", &image());
        published(&desk, &proxy.uri(), "a.img --name n");
        std::fs::remove_dir_all(receipts(&desk)).unwrap();
        let next = changed(&image(), &[0, 30, 100]);
        desk.file("b.img", &next);
        proxy.forget();
        let done = publish(&desk, &proxy.uri(), "b.img --name n --verify full").run();
        let done = done.code(0).says("There is no receipt of base");
        assert_drive(&server, done.text().trim(), &next);
        assert_eq!(written(&proxy), 3 * BLOCK);
        assert_eq!(proxy.count(Request::is_read) == 0, has_digests);
    }
}

/// What a command writes replaces neither its own image, whatever its name there, nor a file of
/// another kind. Nothing is sent then.
#[test]
fn a_receipt_replaces_only_a_receipt() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let file = desk.file("a.img", &image());
    desk.file("notes.txt", b"three weeks of work");
    std::fs::hard_link(&file, desk.path("hard")).unwrap();
    std::os::unix::fs::symlink(&file, desk.path("soft")).unwrap();
    for (name, code) in [("notes.txt", 1), ("a.img", 2), ("hard", 2), ("soft", 2)] {
        let refused = publish(&desk, &proxy.uri(), "a.img --name n --receipt").arg(name);
        let refused = refused.run().code(code).says("Cannot write the receipt");
        let why = match code {
            1 => "it exists and is not a receipt",
            _ => "it is the image",
        };
        let _ = refused.says(why);
    }
    desk.file("s.json.minisig", b"three weeks of work");
    let words = "a.img --name n --receipt s.json --sign-key key";
    let signed = publish(&desk, &proxy.uri(), words).run().code(1);
    let _ = signed.says("Cannot write the signature");
    assert!(proxy.requests().is_empty());
    assert!(drives(&server).is_empty());
    for name in ["a.img", "hard", "soft"] {
        assert_eq!(std::fs::read(desk.path(name)).unwrap(), image(), "{name}");
    }
    for name in ["notes.txt", "s.json.minisig"] {
        assert_eq!(
            std::fs::read(desk.path(name)).unwrap(),
            b"three weeks of work"
        );
    }
    // A job that passes the receipt of its last run, and one whose file is new and empty.
    desk.file("r.json", b"");
    for _ in 0..2 {
        published(&desk, &server.uri, "a.img --name n --receipt r.json");
    }
}

#[test]
fn a_receipt_from_elsewhere_describes_the_base() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    published(&desk, &proxy.uri(), "a.img --name n --receipt r.json");
    std::fs::remove_dir_all(receipts(&desk)).unwrap();
    let next = changed(&image(), &[5]);
    desk.file("b.img", &next);
    proxy.forget();
    let done = publish(&desk, &proxy.uri(), "b.img --name n --receipt r.json")
        .run()
        .code(0);
    assert!(!done.stderr.contains("receipt"), "{}", done.stderr);
    assert_eq!(written(&proxy), BLOCK);
    let receipt: Value =
        serde_json::from_slice(&std::fs::read(desk.path("r.json")).unwrap()).unwrap();
    assert_eq!(receipt["drive"].as_str(), Some(done.text().trim()));
    assert_eq!(
        (receipt["receipt"].as_u64(), receipt["size"].as_u64()),
        (Some(1), Some(SIZE as u64))
    );
    let root = info(&server, done.text().trim(), "user:oh-digest");
    assert_eq!(receipt["root"].as_str(), root.as_deref());
}

#[test]
fn everything_is_sent_if_the_cloud_refuses_to_copy() {
    for refused in [
        refusal(404, "missing"),
        refusal(405, "method"),
        refusal(400, "usage"),
    ] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("a.img", &image());
        published(&desk, &proxy.uri(), "a.img --name n");
        let next = changed(&image(), &[0]);
        desk.file("b.img", &next);
        proxy.forget();
        proxy.fault(is_image_call, 9, Fault::Answer(refused));
        let done = publish(&desk, &proxy.uri(), "b.img --name n").run().code(0);
        let done = done.says("does not copy base").says("everything is sent");
        assert_drive(&server, done.text().trim(), &next);
        assert_eq!(drives(&server).len(), 2);
    }
}

#[test]
fn a_copy_that_the_cloud_puts_off_is_requested_again() {
    for later in [refusal(429, "system"), refusal(503, "")] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("a.img", &image());
        published(&desk, &proxy.uri(), "a.img --name n");
        let next = changed(&image(), &[0]);
        desk.file("b.img", &next);
        proxy.forget();
        proxy.fault(is_image_call, 2, Fault::Answer(later));
        let done = publish(&desk, &proxy.uri(), "b.img --name n").run().code(0);
        assert!(!done.stderr.contains("everything is sent"), "{done:?}");
        assert_drive(&server, done.text().trim(), &next);
        assert_eq!(proxy.count(is_image_call), 3);
        assert_eq!(written(&proxy), BLOCK);
    }
}

#[test]
fn a_cloud_without_full_info_is_published_to() {
    for refused in [refusal(404, "missing"), refusal(405, "method")] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let is_full = |request: &Request| request.path.ends_with("/info/full");
        proxy.fault(is_full, usize::MAX, Fault::Answer(refused));
        desk.file("a.img", &image());
        let first = published(&desk, &proxy.uri(), "a.img --name n");
        assert_eq!(published(&desk, &proxy.uri(), "a.img --name n"), first);
        let next = changed(&image(), &[0]);
        desk.file("b.img", &next);
        proxy.forget();
        let second = published(&desk, &proxy.uri(), "b.img --name n");
        assert_drive(&server, &second, &next);
        assert_eq!(written(&proxy), BLOCK, "it is a delta");
    }
}

#[test]
fn a_base_that_differs_from_its_receipt_is_not_trusted() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let base = published(&desk, &proxy.uri(), "a.img --name n");
    let next = changed(&image(), &[0]);
    desk.file("b.img", &next);
    // Changed without the server's knowledge, so its counters show nothing.
    let file = std::fs::File::options()
        .write(true)
        .open(server.drive_file(&base))
        .unwrap();
    file.write_all_at(&noise(9, SIZE), 0).unwrap();
    let done = publish(&desk, &proxy.uri(), "b.img --name n").run().code(0);
    let done = done.says("does not match its receipt: everything is sent");
    assert_drive(&server, done.text().trim(), &next);
    // A write that the server counts.
    let newest = done.text().trim().to_owned();
    Ask::of(&server)
        .post(&format!("/drives/{newest}/write/0"), "x")
        .expect(204);
    let after = changed(&image(), &[1]);
    desk.file("c.img", &after);
    let done = publish(&desk, &proxy.uri(), "c.img --name n").run().code(0);
    let done = done.says("was written to since it was published");
    assert_drive(&server, done.text().trim(), &after);
}

#[test]
fn a_published_drive_that_was_changed_is_published_again() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &image());
    let first = published(&desk, &server.uri, "a.img --name n");
    // The same bytes: it was written to, but has the same content.
    Ask::of(&server)
        .post(&format!("/drives/{first}/write/0"), &image()[..3])
        .expect(204);
    assert_eq!(published(&desk, &server.uri, "a.img --name n"), first);
    Ask::of(&server)
        .post(&format!("/drives/{first}/write/{CHUNK}"), "x")
        .expect(204);
    let done = publish(&desk, &server.uri, "a.img --name n").run().code(0);
    let done = done.says("does not hold any more what was published");
    let second = done.text().trim();
    assert_ne!(second, first);
    assert_drive(&server, second, &image());
}

#[test]
fn a_drive_that_fails_verification_is_not_named_and_the_next_run_repairs_it() {
    for is_delta in [false, true] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        desk.file("a.img", &image());
        let next = changed(&image(), &[1, 20, 140]);
        desk.file("b.img", &next);
        if is_delta {
            published(&desk, &proxy.uri(), "a.img --name n");
        }
        // One write is confirmed but not carried out.
        let lost = Fault::Answer(answer(204, &[], b""));
        proxy.fault_after(1, Request::is_write, 1, lost);
        let words = "b.img --name n --verify full";
        let failed = publish(&desk, &proxy.uri(), words).run().code(4);
        let failed = failed
            .says("does not hold what was sent")
            .says("is unfinished");
        assert!(failed.stdout.is_empty());
        let (named, others) = by_name(&server, "n");
        assert_eq!((named.len(), others.len()), (usize::from(is_delta), 1));
        assert_eq!(info(&server, &others[0], "user:oh-digest"), None);
        let mended = published(&desk, &proxy.uri(), words);
        assert_eq!(mended, others[0]);
        assert_drive(&server, &mended, &next);
    }
}

#[test]
fn zeros_are_written_to_a_new_drive_with_other_bytes() {
    let desk = Desk::new();
    let plan = desk.file("plan.json", br#"{"fresh_reads": "pattern"}"#);
    let server = desk.server_with(&["--fault-plan", plan.to_str().unwrap()]);
    desk.file("a.img", &image());
    let done = publish(&desk, &server.uri, "a.img --name n --verify full")
        .run()
        .code(0);
    let done = done.says("zeros are sent");
    assert_drive(&server, done.text().trim(), &image());
}

#[test]
fn a_cloud_that_drops_user_keys_is_left_as_it_was() {
    let desk = Desk::new();
    let plan = desk.file("plan.json", br#"{"user_keys": "dropped"}"#);
    let server = desk.server_with(&["--fault-plan", plan.to_str().unwrap()]);
    desk.file("a.img", &image());
    let done = publish(&desk, &server.uri, "a.img --name n").run().code(1);
    done.says("does not keep user: keys");
    assert!(drives(&server).is_empty());
}

/// The request for the state of a drive, and not that for the list.
fn is_look(request: &Request) -> bool {
    request.is_info() && !request.path.ends_with("/drives/info")
}

#[test]
fn a_new_drive_that_is_not_known_everywhere_yet_is_waited_for() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let missing = Fault::Answer(refusal(404, "missing"));
    proxy.fault(is_look, 2, missing);
    let drive = published(&desk, &proxy.uri(), "a.img --name n");
    assert_eq!(drives(&server), [drive]);
}

#[test]
fn a_new_drive_is_named_if_the_next_request_fails() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    proxy.fault(is_look, 1, Fault::Answer(refusal(403, "auth")));
    let failed = publish(&desk, &proxy.uri(), "a.img --name n").run().code(1);
    let drive = &drives(&server)[0];
    failed.says(&format!("Drive {drive} is unfinished"));
    assert_eq!(published(&desk, &proxy.uri(), "a.img --name n"), *drive);
}

#[test]
fn older_publications_are_removed_after_the_new_one_unless_in_use() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let mut all = Vec::new();
    for i in 0..4 {
        desk.file("a.img", &changed(&image(), &[i]));
        all.push(published(&desk, &proxy.uri(), "a.img --name n"));
    }
    // According to the list nothing uses it, but when it is about to be destroyed a server does.
    let claimed = format!("/drives/{}/info", all[1]);
    proxy.fault(
        move |request| request.path.ends_with(&claimed),
        99,
        Fault::rewrite(|_, publication| {
            let text = String::from_utf8(publication).unwrap();
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let body = format!("{body}claimed host:guest:x:ide:0:0\n");
            answer(200, &["Content-Type: text/plain"], body.as_bytes())
        }),
    );
    // A failed publication destroys nothing.
    desk.file("a.img", &changed(&image(), &[9]));
    proxy.fault(Request::is_write, 1, Fault::Answer(answer(204, &[], b"")));
    publish(&desk, &proxy.uri(), "a.img --name n --keep 1 --verify full")
        .run()
        .code(4);
    assert_eq!(drives(&server).len(), 5);
    let done = publication(&desk, &proxy.uri(), "a.img --name n --keep 2 --verify full");
    assert_eq!(done["destroyed"], json!([all[2], all[0]]));
    let (named, others) = by_name(&server, "n");
    assert_eq!((named.len(), others.len()), (3, 0));
    assert!(named.contains(&all[1]) && named.contains(&all[3]));
    // The limit also applies to what existed before.
    proxy.heal();
    let done = publication(&desk, &proxy.uri(), "a.img --name n --keep 1");
    assert_eq!(done["how"], "nothing");
    assert_eq!(drives(&server), [done["drive"].as_str().unwrap()]);
    // Without a terminal too, a drive does not vanish without a word.
    desk.file("a.img", &changed(&image(), &[3]));
    let words = "a.img --name n --keep 1";
    let removed = publish(&desk, &proxy.uri(), words).run().code(0);
    removed.says("Removed older drives of n: ");
}

/// Another publication of the same name removes them at the same time.
#[test]
fn older_publications_that_are_gone_do_not_fail_a_new_one() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let old = published(&desk, &proxy.uri(), "a.img --name n");
    let gone = format!("/drives/{old}/");
    proxy.fault(
        move |request| request.path.contains(&gone),
        usize::MAX,
        Fault::Answer(refusal(404, "missing")),
    );
    let next = changed(&image(), &[1]);
    desk.file("a.img", &next);
    let done = publish(&desk, &proxy.uri(), "a.img --name n --keep 1").run();
    let done = done.code(0).says("is gone: everything is sent");
    assert_drive(&server, done.text().trim(), &next);
    // The same content as that of a drive that is listed and gone.
    desk.file("a.img", &image());
    let again = published(&desk, &proxy.uri(), "a.img --name n --base none");
    assert_ne!(again, old);
}

#[test]
fn cleanup_removes_what_is_unfinished_and_nothing_else() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let good = published(&desk, &proxy.uri(), "a.img --name n");
    // Unfinished drives: of this name with two contents, and of another name.
    let lost = || Fault::Answer(answer(204, &[], b""));
    for (i, name) in ["n", "n", "m"].into_iter().enumerate() {
        desk.file("b.img", &changed(&image(), &[i]));
        proxy.fault(Request::is_write, 1, lost());
        let words = format!("b.img --name {name} --base none --verify full");
        publish(&desk, &proxy.uri(), &words).run().code(4);
    }
    // Another user's drive that looks like an unfinished one.
    let body = format!("name n (unfinished)\nsize {SIZE}\nuser:oh-state writing");
    let theirs = Ask::of(&server).post("/drives/create", body).expect(200);
    let theirs = theirs.key("drive").unwrap().to_owned();
    assert_eq!(drives(&server).len(), 5);
    let done = publish(&desk, &proxy.uri(), "--name n --cleanup --json")
        .run()
        .code(0);
    let removed: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(removed["removed"].as_array().unwrap().len(), 2);
    let left = drives(&server);
    assert_eq!(left.len(), 3);
    assert!(left.contains(&good) && left.contains(&theirs));
    let (_, others) = by_name(&server, "n");
    assert_eq!(others.len(), 2);
    // With an image: first the cleanup, then a complete publication.
    let done = publish(&desk, &proxy.uri(), "b.img --name m --cleanup")
        .run()
        .code(0);
    done.says("Removed the unfinished drive");
    assert_eq!(drives(&server).len(), 3);
    assert!(desk.journals().is_empty(), "{:?}", desk.journals());
}

#[test]
fn cleanup_never_removes_what_another_run_publishes() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let gate = Gate::default();
    proxy.fault(Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    let running = publish(&desk, &proxy.uri(), "a.img --name n").spawn();
    proxy.wait_for("the writes", |requests| {
        requests.iter().any(Request::is_write)
    });
    // On the same machine, the journal is in use.
    for words in [
        "--name n --cleanup",
        "a.img --name n --cleanup",
        "a.img --name n --restart",
    ] {
        publish(&desk, &proxy.uri(), words)
            .run()
            .code(1)
            .says("Another process is at this transfer");
    }
    // Elsewhere, the endpoint refuses to destroy a drive that something writes to.
    let busy = || Fault::Answer(refusal(409, "busy"));
    proxy.fault(|request| request.path.ends_with("/destroy"), 1, busy());
    publish(&desk, &proxy.uri(), "--name n --cleanup")
        .env("XDG_STATE_HOME", desk.path("elsewhere"))
        .run()
        .code(0)
        .says("is in use and stays");
    gate.open();
    let done = running.wait().code(0);
    assert_drive(&server, done.text().trim(), &image());
}

#[test]
fn impossible_publications_are_refused_before_anything_is_created() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &image());
    let uri = &server.uri;
    publish(&desk, uri, "--name n")
        .run()
        .code(2)
        .says("There is no image");
    publish(&desk, uri, "a.img --name n --base nosuch")
        .run()
        .code(1)
        .says("No drive has the name");
    publish(&desk, uri, "a.img --name n --readers bob")
        .run()
        .code(2)
        .says("bob");
    publish(&desk, uri, "a.img --name n --token")
        .arg("a b")
        .run()
        .code(2)
        .says("Token");
    publish(&desk, uri, "a.img --name n --join")
        .run()
        .code(75)
        .says("Run the shards first");
    publish(&desk, uri, "nosuch.img --name n").run().code(1);
    assert!(drives(&server).is_empty());
}

#[test]
fn shards_together_publish_the_same_drive() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let whole = published(&desk, &proxy.uri(), "a.img --name one");
    let next = changed(&image(), &[2, 66, 140]);
    desk.file("b.img", &next);
    for (file, base, expected) in [("a.img", "none", image()), ("b.img", "one", next)] {
        let name = format!("many-{base}");
        let words = format!("{file} --name {name} --base {base} --verify full");
        let shard =
            |index: u32| publish(&desk, &proxy.uri(), &format!("{words} --shard {index}/5"));
        // More shards than chunks, so some have nothing to do. The last one is late.
        let running: Vec<_> = [4, 3, 2, 1].map(|index| shard(index).spawn()).into();
        let drives: Vec<_> = running
            .into_iter()
            .map(|shard| shard.wait().code(0).text().trim().to_owned())
            .collect();
        assert!(drives.iter().all(|drive| *drive == drives[0]), "{drives:?}");
        let join = || publish(&desk, &proxy.uri(), &format!("{words} --join"));
        join().run().code(75).says("1 of 5 shards are missing: 5");
        assert_eq!(
            info(&server, &drives[0], "name"),
            Some(format!("{name} (unfinished)"))
        );
        let before = writes(&proxy).len();
        shard(1).run().code(0);
        assert_eq!(
            writes(&proxy).len(),
            before,
            "one that is done does nothing"
        );
        shard(5).run().code(0);
        let joined = join().run().code(0);
        assert_eq!(joined.text().trim(), drives[0]);
        assert_drive(&server, &drives[0], &expected);
        assert_eq!(info(&server, &drives[0], "name"), Some(name));
        // Late shards, and a second join, find the published drive.
        assert_eq!(shard(3).run().code(0).text().trim(), drives[0]);
        assert_eq!(join().run().code(0).text().trim(), drives[0]);
    }
    let digest = |drive: &str| info(&server, drive, "user:oh-digest");
    let (many, _) = by_name(&server, "many-none");
    assert_eq!(digest(&many[0]), digest(&whole));
}

/// No later join publishes it, whatever its own sample finds.
#[test]
fn a_drive_that_a_join_found_wrong_is_not_published_before_its_shards_ran_again() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &image());
    let run = |words: &str| {
        let words = format!("a.img --name n {words}");
        publish(&desk, &proxy.uri(), &words).run()
    };
    // A write is confirmed but not carried out.
    proxy.fault(Request::is_write, 1, Fault::Answer(answer(204, &[], b"")));
    for shard in ["1/2", "2/2"] {
        run(&format!("--shard {shard} --verify none")).code(0);
    }
    let failed = run("--join --verify full").code(4);
    failed
        .says("does not hold what was sent")
        .says("Run all shards again");
    let missing = run("--join --verify none").code(75);
    missing.says("2 of 2 shards are missing: 1, 2");
    for shard in ["1/2", "2/2"] {
        run(&format!("--shard {shard} --verify none")).code(0);
    }
    let joined = run("--join --verify none").code(0);
    assert_drive(&server, joined.text().trim(), &image());
}

#[test]
fn a_shard_of_another_image_is_a_final_error() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &image());
    let words = "a.img --name n --max-outage 1s --verify none";
    let shard = |index: u32| {
        let words = format!("{words} --shard {index}/2");
        publish(&desk, &server.uri, &words).run()
    };
    // Nothing is there yet, so the same command may succeed later.
    shard(2).code(75).says("Shard 1 of 2 made no drive");
    let drive = shard(1).code(0).text().trim().to_owned();
    desk.file("a.img", &changed(&image(), &[2]));
    let other = shard(2).code(4).says("is not that of drive");
    assert!(!other.stderr.contains("same command"), "{other:?}");
    let advice = format!(
        "Drive {drive} is unfinished (to remove it: openhosting publish --name n --cleanup)"
    );
    let other = other
        .says("Run all shards with the same image")
        .says(&advice);
    assert!(other.stderr.trim_end().ends_with(&advice), "{other:?}");
    publish(&desk, &server.uri, "--name n --cleanup")
        .run()
        .code(0);
    let drives = [1, 2].map(|index| shard(index).code(0).text().trim().to_owned());
    assert_eq!(drives[0], drives[1]);
}

#[test]
fn a_join_with_another_image_is_a_final_error() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &image());
    desk.file("b.img", &changed(&image(), &[2]));
    let run = |words: &str| {
        let words = format!("{words} --name n --verify none");
        publish(&desk, &server.uri, &words).run()
    };
    run("a.img --shard 1/2").code(0);
    let other = run("b.img --join").code(4).says("is not that of drive");
    assert!(!other.stderr.contains("again with"), "{other:?}");
    // What is missing may come: what the other shards sent is kept.
    let missing = run("a.img --join").code(75).says("shards are missing: 2");
    let missing = missing.says("Continue later with:");
    let last = missing.stderr.lines().last().unwrap_or_default();
    assert!(
        last.ends_with("a.img --join --name n --verify none"),
        "{last}"
    );
    run("a.img --shard 2/2").code(0);
    run("a.img --join").code(0);
}

#[test]
fn a_drive_is_verified_against_its_receipt() {
    for has_digests in [true, false] {
        let desk = Desk::new();
        let server = match has_digests {
            true => desk.server(),
            false => plain_server(&desk),
        };
        desk.file("a.img", &image());
        let drive = published(&desk, &server.uri, "a.img --name n --receipt r.json");
        let verify = |words: &str| {
            desk.simple(&server.uri)
                .args(&format!("verify r.json {words}"))
        };
        let all = verify("").run().code(0);
        assert!(
            all.text().contains("every one of 149 blocks was compared"),
            "{all:?}"
        );
        let some = verify("--sample 10").run().code(0);
        assert!(
            some.text()
                .contains(": no difference in 15 of 149 blocks. If 1 % of"),
            "{some:?}"
        );
        // One flipped bit: in zeros, in data, and in what should be a hole.
        let file = std::fs::File::options()
            .write(true)
            .open(server.drive_file(&drive))
            .unwrap();
        for at in [4 * BLOCK, 20 * BLOCK, CHUNK + 5, SIZE - 1] {
            file.write_all_at(&[image()[at] ^ 4], at as u64).unwrap();
            let found = verify("-J")
                .run()
                .code(4)
                .says("does not hold what its receipt lists");
            let object: Value = serde_json::from_slice(&found.stdout).unwrap();
            assert_eq!(object["is_same"], false);
            assert_eq!(object["differing"], 1);
            assert_eq!(
                object["first_differing_byte"].as_u64(),
                Some((at / BLOCK * BLOCK) as u64)
            );
            // Each shard covers some chunks: one of three finds it.
            let codes: Vec<_> = (1..=3)
                .map(|i| verify(&format!("--shard {i}/3")).run().status.code())
                .collect();
            let seen = (0..3).map(|i| if i == at / CHUNK { Some(4) } else { Some(0) });
            assert_eq!(codes, seen.collect::<Vec<_>>());
            file.write_all_at(&image()[at..=at], at as u64).unwrap();
        }
        verify("").run().code(0);
        let text = std::fs::read_to_string(desk.path("r.json")).unwrap();
        desk.file(
            "bad.json",
            text.replace("\"size\": 9", "\"size\": 8").as_bytes(),
        );
        let bad = desk
            .simple(&server.uri)
            .args("verify bad.json")
            .run()
            .code(2);
        bad.says("Cannot use the receipt");
    }
}

#[test]
fn a_signed_receipt_is_accepted_only_with_its_key() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &image());
    let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let key = desk.file("key", keys.sk.to_box(None).unwrap().to_string().as_bytes());
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    desk.file("key.pub", keys.pk.to_box().unwrap().to_string().as_bytes());
    published(
        &desk,
        &server.uri,
        "a.img --name n --receipt r.json --sign-key key",
    );
    let verify = |words: &str| desk.simple(&server.uri).args(&format!("verify {words}"));
    let signed = verify("r.json --pubkey key.pub").run().code(0);
    let line = "The signature of the receipt is valid\n";
    assert!(signed.text().starts_with(line), "{signed:?}");
    verify("r.json --pubkey")
        .arg(keys.pk.to_base64())
        .run()
        .code(0);
    let other = minisign::KeyPair::generate_unencrypted_keypair()
        .unwrap()
        .pk;
    let wrong = verify("r.json --pubkey")
        .arg(other.to_base64())
        .run()
        .code(4);
    wrong.says("is not signed with this key");
    // White space that changes nothing else.
    let text = std::fs::read(desk.path("r.json")).unwrap();
    desk.file("r.json", &[&text, &b" "[..]].concat());
    verify("r.json").run().code(0);
    verify("r.json --pubkey key.pub").run().code(4);
    // A key that cannot be used is reported before anything is sent.
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let words = "a.img --name m --receipt s.json --sign-key key";
    publish(&desk, &server.uri, words)
        .run()
        .code(2)
        .says("others can read it");
    assert_eq!(drives(&server).len(), 1);
}

/// Every drive of the name is complete, and no other one claims to be.
#[track_caller]
fn check_nothing_seems_finished(server: &TestServer, images: &[&[u8]]) -> usize {
    let (named, others) = by_name(server, "n");
    for drive in &named {
        let bytes = std::fs::read(server.drive_file(drive)).unwrap();
        assert!(
            images.iter().any(|image| bytes == *image),
            "drive {drive} is torn"
        );
        let state = info(server, drive, "user:oh-state");
        assert_eq!(state.as_deref(), Some("published"));
    }
    for drive in &others {
        assert_eq!(
            info(server, drive, "name").as_deref(),
            Some("n (unfinished)")
        );
        assert_eq!(info(server, drive, "user:oh-digest"), None);
        assert_eq!(info(server, drive, "readers"), None);
    }
    others.len()
}

/// `kill -9` at any moment of a publication, full or as a delta: nothing looks finished that is
/// not, one more run succeeds, and --cleanup leaves nothing. Use `OH_ROUNDS=200` for more rounds.
#[test]
fn a_publication_killed_at_any_moment_finishes_or_is_removed() {
    let mut rng = fastrand::Rng::with_seed(seed("publish"));
    let desk = Desk::new();
    let server = desk.server();
    let link = SlowLink::to(&server, Duration::from_micros(150));
    let old = image();
    let next = changed(&old, &(0..149).step_by(3).collect::<Vec<_>>());
    desk.file("old.img", &old);
    desk.file("new.img", &next);
    let first = published(&desk, &server.uri, "old.img --name n");
    let words = |base: &str| format!("new.img --name n --readers all --base {base}");
    // How many bytes an undisturbed run transfers.
    let mut usual = BTreeMap::new();
    let mut counts = BTreeMap::<&str, u32>::new();
    let forget = |keep: &str| {
        for drive in drives(&server).into_iter().filter(|drive| drive != keep) {
            Ask::of(&server)
                .post(&format!("/drives/{drive}/destroy"), "")
                .expect(204);
        }
    };
    for base in ["none", "auto"] {
        link.take_counts();
        published(&desk, &link.uri(), &words(base));
        let (up, down) = link.take_counts();
        usual.insert(base, up + down);
        forget(&first);
    }
    for round in 0..rounds(16) {
        let base = ["none", "auto"][round % 2];
        link.take_counts();
        let moment = rng.u64(..usual[base] * 21 / 20);
        let mut running = publish(&desk, &link.uri(), &words(base)).spawn();
        while link.passed() < moment && !running.has_ended() {
            std::thread::sleep(Duration::from_micros(300));
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..3000)));
        running.kill9();
        let unfinished = check_nothing_seems_finished(&server, &[&old, &next]);
        assert!(unfinished <= 1);
        if rng.bool() {
            let done = publish(&desk, &link.uri(), &words(base)).run().code(0);
            let drive = done.text().trim();
            assert_drive(&server, drive, &next);
            assert_eq!(info(&server, drive, "name").as_deref(), Some("n"));
            *counts.entry("one more run").or_default() += 1;
        } else {
            publish(&desk, &link.uri(), "--name n --cleanup")
                .run()
                .code(0);
            *counts.entry("cleaned up").or_default() += 1;
        }
        *counts
            .entry(["nothing unfinished", "one unfinished"][unfinished])
            .or_default() += 1;
        assert_eq!(check_nothing_seems_finished(&server, &[&old, &next]), 0);
        assert!(drives(&server).len() <= 2 && desk.journals().is_empty());
        forget(&first);
    }
    eprintln!("publish: {counts:?}");
}
