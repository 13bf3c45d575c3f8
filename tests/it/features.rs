//! Progress, deadline, rate, checksums and compressed downloads.

use std::os::unix::fs::FileExt;

use openhosting::digest::Digest;

use crate::support::cli::{Desk, Tool};
use crate::support::http::{Ask, assert_drive, create, drives, read_all};
use crate::support::proxy::{Fault, Gate, Request, refusal};
use crate::support::schema::validate;
use crate::support::{gunzip, noise};

const C: u64 = 65536;

fn download<'a>(desk: &'a Desk, endpoint: &str) -> Tool<'a> {
    let program = env!("CARGO_BIN_EXE_openhosting-download");
    desk.tool(program).env("OHURI", endpoint)
}

fn is_digest(request: &Request) -> bool {
    request.path.contains("/digest/")
}

fn events(stderr: &str) -> Vec<serde_json::Value> {
    let objects = stderr.lines().filter(|line| line.starts_with('{'));
    objects
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn json_has_the_start_and_the_end_in_both_directions() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(1, 5 * C as usize);
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri());
    let up = tool.args("-c 65536 --progress json a.img").run().code(0);
    let drive = up.created();
    assert!(up.text().ends_with(": ..... completed\n"), "{}", up.text());
    let tool = download(&desk, &proxy.uri()).args("-c 65536 --progress json");
    let down = tool.arg(&drive).arg("-").run().code(0);
    assert!(down.stdout == image);
    for (outcome, direction) in [(&up, "upload"), (&down, "download")] {
        let events = events(&outcome.stderr);
        // stderr contains nothing else.
        assert_eq!(events.len(), outcome.stderr.lines().count());
        for event in &events {
            validate("schema/progress.schema.json", event);
        }
        let phase = |event: &serde_json::Value| event["phase"].as_str().map(str::to_owned);
        let phases: Vec<_> = events.iter().filter_map(phase).collect();
        assert_eq!(phases[0], "prepare");
        assert!(phases.contains(&direction.to_owned()), "{phases:?}");
        if direction == "upload" {
            assert_eq!(phases.last().unwrap(), "check");
        }
        let start = events.iter().find(|event| event["event"] == "start");
        let (first, last) = (start.unwrap(), events.last().unwrap());
        for event in [first, last] {
            assert_eq!(event["direction"], direction);
            assert_eq!(event["drive"], drive.as_str());
            assert_eq!(event["bytes_total"], 5 * C);
            assert_eq!(event["chunks_total"], 5);
        }
        assert_eq!(first["bytes_done"], 0);
        assert_eq!(last["event"], "end");
        assert_eq!(last["outcome"], "complete");
        assert_eq!(last["exit_code"], 0);
        assert_eq!(last["bytes_done"], 5 * C);
        assert_eq!(last["chunks_done"], 5);
        assert_eq!(last["in_flight"], 0);
        assert_eq!(last["resume"], serde_json::Value::Null);
        assert!(last["verified_bytes"].as_u64().unwrap() > 0);
    }
    assert_drive(&server, &drive, &image);
}

#[test]
fn json_of_a_stop_says_where_to_continue() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    desk.file("a.img", &noise(2, 5 * C as usize));
    let gate = Gate::default();
    proxy.fault_after(2, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    let tool = desk.upload(&proxy.uri()).args("-c 65536 -j 1 a.img");
    let running = tool.args("--progress json").spawn();
    proxy.wait_for("the third write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() == 3
    });
    running.signal("INT");
    running.wait_stderr("finishing the requests in flight");
    gate.open();
    let outcome = running.wait().code(130);
    let (drive, offset) = outcome.hint();
    let last = events(&outcome.stderr).pop().unwrap();
    assert_eq!(last["outcome"], "stopped");
    assert_eq!(last["exit_code"], 130);
    assert_eq!(
        last["resume"],
        serde_json::json!({"drive": drive, "offset": offset})
    );
    assert_eq!(offset, 3 * C);
}

#[test]
fn a_failure_before_the_transfer_also_prints_an_end() {
    let desk = Desk::new();
    let tool = desk.upload("http://127.0.0.1:9/").args("--progress json");
    let outcome = tool.arg("nosuch.img").run().code(1);
    let events = events(&outcome.stderr);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["phase"], "prepare");
    assert_eq!(events[1]["event"], "end");
    assert_eq!(events[1]["outcome"], "failed");
    assert_eq!(events[1]["exit_code"], 1);
}

#[test]
fn a_short_transfer_has_no_plain_line() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(1, 102_400));
    let proxy = crate::support::proxy::FaultProxy::to(&server);
    for how in ["auto", "plain", "none"] {
        let tool = desk.upload(&proxy.uri()).args("a.img --progress");
        let outcome = tool.arg(how).run().code(0);
        assert_eq!(outcome.stderr, "", "{how}");
        assert!(outcome.text().ends_with(": . completed\n"), "{how}");
    }
}

#[test]
fn quiet_leaves_out_the_notice_that_the_run_stops() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(7, 1 << 20));
    for (quiet, name) in [("", "a"), ("-q", "b")] {
        let upload = desk.upload(&server.uri).args("-c 65536 --limit-rate 100k");
        let upload = upload
            .args(quiet)
            .args("--json --deadline 1s a.img -n")
            .arg(name);
        let outcome = upload.run().code(75);
        let is_announced = outcome.stderr.contains("the deadline is reached");
        assert_eq!(is_announced, quiet.is_empty(), "{outcome:?}");
        // Kind, outcome and exit code agree (docs/user/json.md).
        let object: serde_json::Value = serde_json::from_str(outcome.text()).unwrap();
        assert_eq!(object["error"]["kind"], "deadline");
        assert_eq!(object["error"]["exit_code"], 75);
        assert_eq!(object["error"]["message"], "Stopped at the deadline");
        let command = outcome.stderr.lines().last().unwrap();
        let hint = format!("Continue with: {command}");
        assert_eq!(object["error"]["hint"], hint, "{outcome:?}");
        assert_eq!(object["outcome"], "gave_up");
        assert_eq!(object["exit_code"], 75);
    }
}

#[test]
fn a_transfer_stops_at_the_deadline_and_resumes() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(3, 5 * C as usize);
    desk.file("a.img", &image);
    let gate = Gate::default();
    // The third write is in flight until the deadline has been reported.
    proxy.fault_after(2, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    let tool = desk.upload(&proxy.uri()).args("-c 65536 -j 1 a.img");
    let running = tool.args("--deadline 2s").spawn();
    running.wait_stderr("the deadline is reached; finishing the requests in flight");
    gate.open();
    let outcome = running.wait().code(75);
    let (drive, offset) = outcome.hint();
    let written = proxy.count(Request::is_write) as u64;
    assert_eq!(offset, written * C);
    proxy.heal();
    proxy.forget();
    let tool = desk.upload(&proxy.uri()).args("-c 65536 a.img");
    let _ = tool.args("--deadline 1h").run().code(0);
    assert_eq!(proxy.count(Request::is_write) as u64, 5 - written);
    assert_drive(&server, &drive, &image);

    let file = desk.path("b.img");
    proxy.forget();
    let gate = Gate::default();
    proxy.fault_after(1, Request::is_read, usize::MAX, Fault::Hold(gate.clone()));
    let tool = download(&desk, &proxy.uri()).args("-c 65536 -j 1 --deadline 2s");
    let running = tool.arg(&drive).arg(&file).spawn();
    running.wait_stderr("the deadline is reached");
    gate.open();
    let _ = running.wait().code(75).says("Run the same command again");
    proxy.heal();
    let tool = download(&desk, &proxy.uri()).args("-c 65536");
    let _ = tool.arg(&drive).arg(&file).run().code(0);
    assert!(std::fs::read(&file).unwrap() == image);
}

#[test]
fn a_limited_rate_changes_no_request() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(4, 5 * C as usize);
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri()).args("-c 65536 -j 3 a.img");
    let outcome = tool.args("--limit-rate 1M --verify none").run().code(0);
    let drive = outcome.created();
    assert_drive(&server, &drive, &image);
    let mut offsets: Vec<_> = proxy
        .requests()
        .iter()
        .filter(|r| r.is_write())
        .map(Request::offset)
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0, C, 2 * C, 3 * C, 4 * C]);
    proxy.forget();
    let tool = download(&desk, &proxy.uri()).args("-c 65536 --limit-rate 1M --verify none");
    let outcome = tool.arg(&drive).arg("-").run().code(0);
    assert!(outcome.stdout == image);
    assert_eq!(proxy.count(Request::is_read), 5);
    for bad in ["0", "1023", "1.5M", "fast"] {
        let tool = desk.upload(&proxy.uri()).args("a.img --limit-rate");
        let _ = tool.arg(bad).run().code(2);
    }
}

#[test]
fn a_digest_has_the_permissions_of_a_read() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(5, 3 * C as usize);
    // The second drive has holes, and its size is not a multiple of anything.
    let drive = create(&server, 20 * C + 17);
    for at in [0, 10 * C + 1] {
        let path = format!("/drives/{drive}/write/{at}");
        Ask::of(&server).post(&path, &image).expect(204);
    }
    let all = read_all(&server, &drive);
    for (offset, len) in [
        (0, all.len()),
        (1, 12 * C as usize),
        (5 * C as usize, 0),
        (5, 1),
    ] {
        let path = format!("/drives/{drive}/digest/{offset}/{len}");
        let reply = Ask::of(&server).get(&path).expect(200);
        assert_eq!(reply.header("content-type"), Some("text/plain"));
        let digest = Digest::of(&all[offset..offset + len]).to_string();
        assert_eq!(reply.text(), format!("sha256 {digest}\n"));
    }
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
    assert_eq!(
        info.header("x-openhosting-extensions"),
        Some("digest, extents, cancel")
    );
    let refused = |path: &str| {
        let reply = Ask::of(&server).get(&path.replace("ID", &drive));
        let (status, error) = reply.error();
        format!("{status} {error}")
    };
    assert_eq!(
        refused(&format!("/drives/ID/digest/{}/2", 20 * C + 16)),
        "400 usage"
    );
    assert_eq!(
        refused("/drives/ID/digest/1/18446744073709551615"),
        "400 usage"
    );
    assert_eq!(refused("/drives/ID/digest/0"), "404 missing");
    let nobody = "0012e24a-6eae-4279-9912-3432f698cec8";
    assert_eq!(
        refused(&format!("/drives/{nobody}/digest/0/1")),
        "404 missing"
    );
    let stranger = Ask::of(&server).by("nobody:nothing");
    stranger
        .get(&format!("/drives/{drive}/digest/0/1"))
        .expect(401);
}

#[test]
fn a_full_verification_uses_digests_of_the_endpoint() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(6, 20 * C as usize);
    desk.file("a.img", &image);
    // One request at a time, so nothing is checked before the end.
    let tool = desk
        .upload(&proxy.uri())
        .args("-c 65536 -j 1 --verify full");
    let outcome = tool.arg("a.img").run().code(0);
    let drive = outcome.created();
    assert!(proxy.bytes_down() < 20_000, "{} down", proxy.bytes_down());
    assert_eq!(proxy.count(Request::is_read), 0);
    assert_eq!(proxy.count(is_digest), 20);
    // The drive already holds everything: nothing is sent, and nothing is read.
    proxy.forget();
    let tool = desk
        .upload(&proxy.uri())
        .args("-c 65536 --no-journal --verify none");
    let tool = tool.arg("--resume-from-drive").arg(&drive);
    let _ = tool.arg("a.img").run().code(0);
    assert_eq!(proxy.count(Request::is_write), 0);
    assert!(proxy.bytes_down() < 20_000, "{} down", proxy.bytes_down());
    assert_drive(&server, &drive, &image);
}

#[test]
fn a_tampered_drive_is_found_by_its_digest() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &noise(7, 5 * C as usize));
    let gate = Gate::default();
    proxy.fault(is_digest, usize::MAX, Fault::Hold(gate.clone()));
    let tool = desk
        .upload(&proxy.uri())
        .args("-c 65536 -j 1 --verify full a.img");
    let running = tool.spawn();
    proxy.wait_for("a digest", |requests| requests.iter().any(is_digest));
    let drive = drives(&server).pop().unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(server.drive_file(&drive));
    file.unwrap().write_all_at(b"tampered", 3 * C + 5).unwrap();
    gate.open();
    let _ = running
        .wait()
        .code(4)
        .says("does not hold what was transferred");
}

#[test]
fn a_full_verification_reads_if_a_digest_fails() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(8, 5 * C as usize);
    desk.file("a.img", &image);
    for status in [404, 405] {
        proxy.forget();
        proxy.heal();
        let refused = Fault::Answer(refusal(status, "missing"));
        proxy.fault(is_digest, usize::MAX, refused);
        let tool = desk
            .upload(&proxy.uri())
            .args("-c 65536 -j 1 --verify full a.img");
        let outcome = tool.run().code(0);
        assert_eq!(proxy.count(is_digest), 1);
        assert_eq!(proxy.count(Request::is_read), 5);
        assert_drive(&server, &outcome.created(), &image);
    }
}

/// Whether `sha256sum -c` accepts a file in the directory of the tools.
fn is_accepted(desk: &Desk, name: &str) -> bool {
    let mut sha256sum = std::process::Command::new("sha256sum");
    let run = sha256sum.args(["-c", "--status", "--strict", name]);
    run.current_dir(desk.work()).status().unwrap().success()
}

#[test]
fn the_checksum_of_an_upload_is_that_of_the_whole_image() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    // Holes in between, zeros that are stored as data, and a short last chunk.
    let size = 20 * C + 17;
    let (data, zeros) = (noise(9, 2 * C as usize), vec![0; 2 * C as usize]);
    let pieces: [(u64, &[u8]); 4] = [
        (C, &data),
        (6 * C, &zeros),
        (12 * C + 5, &data),
        (20 * C, b"the end"),
    ];
    desk.sparse("a.img", size, &pieces);
    let image = std::fs::read(desk.path("a.img")).unwrap();
    let line = format!("{}  a.img\n", Digest::of(&image));
    let run = |more: &str| {
        let tool = desk.upload(&proxy.uri()).args("-c 65536 --checksum");
        tool.args(more).arg("a.img").run()
    };
    let outcome = run("-q").code(0);
    let created = format!("Created drive {} of size {size}\n", outcome.created());
    assert_eq!(outcome.text(), created + line.as_str());
    let outcome = run("").code(0);
    assert!(outcome.text().ends_with(&format!(" completed\n{line}")));
    assert_drive(&server, &outcome.created(), &image);
    // What an earlier run sent is hashed too, but not sent.
    let refused = Fault::Answer(refusal(400, "usage"));
    proxy.fault_after(3, Request::is_write, usize::MAX, refused);
    let _ = run("-j 1 -n other").code(1);
    proxy.heal();
    proxy.forget();
    let outcome = run("-j 1 -n other").code(0);
    assert!(outcome.text().ends_with(&line), "{}", outcome.text());
    let again = proxy.count(Request::is_write);
    assert!((1..=4).contains(&again), "{again}");
    // From the end on, but over the whole image.
    let drive = drives(&server).pop().unwrap();
    let outcome = run(&format!("-d {drive} -o {}", 20 * C)).code(0);
    assert!(outcome.text().ends_with(&line));
}

#[test]
fn sha256sum_accepts_the_checksum_of_a_download() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    let image = noise(10, 5 * C as usize + 17);
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri()).arg("a.img");
    let drive = tool.run().code(0).created();
    let digest = Digest::of(&image);
    let run = |more: &str, file: &str| {
        let tool = download(&desk, &proxy.uri()).args("-c 65536 -j 1 --checksum");
        tool.args(more).arg(&drive).arg(file).run()
    };
    let refused = Fault::Answer(refusal(400, "usage"));
    proxy.fault_after(2, Request::is_read, usize::MAX, refused);
    let _ = run("", "b.img").code(1);
    assert!(!desk.path("b.img.sha256").exists());
    proxy.heal();
    let outcome = run("", "b.img").code(0);
    assert!(
        outcome
            .text()
            .ends_with(&format!(" completed\n{digest}  b.img\n"))
    );
    let kept = std::fs::read_to_string(desk.path("b.img.sha256")).unwrap();
    assert_eq!(kept, format!("{digest}  b.img\n"));
    assert!(is_accepted(&desk, "b.img.sha256"));
    let _ = run("", "odd\\name\n.img").code(0);
    assert!(is_accepted(&desk, "odd\\name\n.img.sha256"));
    // From an offset on, the bytes before it are included.
    desk.file("c.img", &image[..2 * C as usize]);
    let _ = run(&format!("-o {}", 2 * C), "c.img").code(0);
    assert!(is_accepted(&desk, "c.img.sha256"));
    // If the image is on stdout, the line is not.
    let outcome = run("-q", "-").code(0);
    assert!(outcome.stdout == image);
    assert_eq!(outcome.stderr, format!("{digest}  -\n"));
}

#[test]
fn a_gzip_download_decompresses_to_the_drive() {
    type Unpack = fn(&[u8]) -> Vec<u8>;
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    let image = [
        noise(11, 3 * C as usize),
        vec![0; 4 * C as usize],
        b"end".into(),
    ]
    .concat();
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri()).arg("a.img");
    let drive = tool.run().code(0).created();
    let run = |args: &str| {
        let tool = download(&desk, &proxy.uri()).args("-c 65536").arg(&drive);
        tool.args(args).run()
    };
    let unpack: [(&str, Unpack); 2] = [
        ("--gzip", gunzip),
        ("--zstd", |packed| zstd::decode_all(packed).unwrap()),
    ];
    for (flag, unpack) in unpack {
        let _ = run(&format!("{flag} --checksum b{flag}")).code(0);
        let packed = std::fs::read(desk.path(format!("b{flag}"))).unwrap();
        assert!(packed.len() < 4 * C as usize, "{}", packed.len());
        assert!(unpack(&packed) == image);
        assert!(is_accepted(&desk, &format!("b{flag}.sha256")));
        assert!(unpack(&run(&format!("{flag} -")).code(0).stdout) == image);
        // An existing file stays, and an interrupted run leaves nothing.
        let _ = run(&format!("{flag} b{flag}"))
            .code(1)
            .says("is there already");
        let refused = Fault::Answer(refusal(400, "usage"));
        proxy.fault_after(3, Request::is_read, usize::MAX, refused);
        let stopped = run(&format!("{flag} c.img")).code(1);
        let _ = stopped.says("the same command starts over");
        proxy.heal();
        for name in ["c.img", "c.img.oh-part", "c.img.ohj"] {
            assert!(!desk.path(name).exists(), "{name}");
        }
    }
    let _ = run("--gzip --zstd x").code(2);
    let _ = run("--gzip -o 5 x").code(2);
}
