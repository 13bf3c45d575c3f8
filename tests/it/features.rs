//! Progress, deadline, rate, checksums and compressed downloads.

use crate::support::cli::{Desk, Tool};
use crate::support::http::assert_drive;
use crate::support::noise;
use crate::support::proxy::{Fault, Gate, Request};

const C: u64 = 65536;

fn download<'a>(desk: &'a Desk, endpoint: &str) -> Tool<'a> {
    let program = env!("CARGO_BIN_EXE_openhosting-download");
    desk.tool(program).env("OHURI", endpoint)
}

fn events(stderr: &str) -> Vec<serde_json::Value> {
    let objects = stderr.lines().filter(|line| line.starts_with('{'));
    objects
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn json_tells_the_start_and_the_end_of_both_ways() {
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
        // Nothing else is on stderr.
        assert_eq!(events.len(), outcome.stderr.lines().count());
        let (first, last) = (events.first().unwrap(), events.last().unwrap());
        for event in [first, last] {
            assert_eq!(event["direction"], direction);
            assert_eq!(event["drive"], drive.as_str());
            assert_eq!(event["bytes_total"], 5 * C);
            assert_eq!(event["chunks_total"], 5);
        }
        assert_eq!(first["event"], "start");
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
fn json_of_a_stop_tells_where_to_go_on() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    desk.file("a.img", &noise(2, 5 * C as usize));
    let gate = Gate::default();
    proxy.fault_after(2, |r| r.is_write(), usize::MAX, Fault::Hold(gate.clone()));
    let tool = desk.upload(&proxy.uri()).args("-c 65536 -j 1 a.img");
    let running = tool.args("--progress json").spawn();
    proxy.wait_for("the third write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() == 3
    });
    running.signal("INT");
    running.wait_stderr("finishing what is in flight");
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
fn a_failure_before_the_transfer_has_an_end_too() {
    let desk = Desk::new();
    let tool = desk.upload("http://127.0.0.1:9/").args("--progress json");
    let outcome = tool.arg("nosuch.img").run().code(1);
    let events = events(&outcome.stderr);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"], "end");
    assert_eq!(events[0]["outcome"], "failed");
    assert_eq!(events[0]["exit_code"], 1);
}

#[test]
fn a_short_transfer_has_no_plain_line() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(1, 100_000));
    let proxy = crate::support::proxy::FaultProxy::to(&server);
    for how in ["auto", "plain", "none"] {
        let tool = desk.upload(&proxy.uri()).args("a.img --progress");
        let outcome = tool.arg(how).run().code(0);
        assert_eq!(outcome.stderr, "", "{how}");
        assert!(outcome.text().ends_with(": . completed\n"), "{how}");
    }
}

#[test]
fn at_the_deadline_it_stops_cleanly_and_can_go_on() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(3, 5 * C as usize);
    desk.file("a.img", &image);
    let gate = Gate::default();
    // The third write is in flight until the deadline has been told.
    proxy.fault_after(2, |r| r.is_write(), usize::MAX, Fault::Hold(gate.clone()));
    let tool = desk.upload(&proxy.uri()).args("-c 65536 -j 1 a.img");
    let running = tool.args("--deadline 2s").spawn();
    running.wait_stderr("the deadline is reached, finishing what is in flight");
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
    proxy.fault_after(1, |r| r.is_read(), usize::MAX, Fault::Hold(gate.clone()));
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
