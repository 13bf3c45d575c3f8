//! `openhosting`, the simple tool.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use crate::support::cli::{Desk, SIMPLE, has_terminals};
use crate::support::http::{assert_drive, create, drives};
use crate::support::needs::{Need, skip};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer, refusal};
use crate::support::{noise, ramp};

/// A stub that answers each request with `ok`.
fn ok() -> FaultProxy {
    FaultProxy::stub(|_| answer(200, &["Content-Type: text/plain"], b"ok\n"))
}

#[test]
fn raw_calls_create_list_write_and_destroy_a_drive() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let call = |args: &str| desk.simple(&proxy.uri()).args(args);
    let outcome = call("-c drives create").input(b"name a\nsize 5000\n").run();
    let outcome = outcome.code(0);
    let drive = drives(&server).remove(0);
    assert!(outcome.text().contains(&format!("drive {drive}\n")));
    assert_eq!(outcome.stderr, "");

    desk.file("a.img", &ramp(0, 5000));
    let outcome = call("-f a.img drives").arg(&drive).arg("write").run();
    assert_eq!(outcome.code(0).text(), "");
    assert_drive(&server, &drive, &ramp(0, 5000));

    // The output is byte for byte the answer, whatever that contains.
    let read = call("drives").arg(&drive).args("read 250 300").run();
    assert!(read.code(0).stdout == ramp(250, 300));
    let json = call("-j drives info").run().code(0);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[0]["size"], 5000);

    let destroy = format!("drives {drive} destroy");
    let _ = desk.simple(&proxy.uri()).arg(destroy).run().code(0);
    assert!(drives(&server).is_empty());
}

#[test]
fn a_raw_answer_cannot_control_a_terminal_and_others_get_it_unchanged() {
    let desk = Desk::new();
    let sent = "name a\x1b[2J\x1b]0;b\x07\u{9b}1m\u{202e}\u{200b}\x7f\rc\r\nsize\t5 \u{e9}\n";
    let shown = "name a\\u{1b}[2J\\u{1b}]0;b\\u{7}\\u{9b}1m\\u{202e}\\u{200b}\\u{7f}\\rc\nsize\t5 \u{e9}\n\u{fffd}";
    let sent = [sent.as_bytes(), b"\x9b"].concat();
    for status in [200, 400] {
        let body = sent.clone();
        let stub = FaultProxy::stub(move |_| answer(status, &[], &body));
        let piped = desk.simple(&stub.uri()).args("drives list").run().code(0);
        assert_eq!(piped.stdout, sent);
        if has_terminals() {
            let tool = desk.on_a_terminal("", SIMPLE).args("api drives list");
            let on_terminal = tool.env("OHURI", stub.uri()).run().code(0);
            // The terminal adds a carriage return to each line end.
            let text = on_terminal.text().replace("\r\n", "\n");
            assert!(text.starts_with(shown), "{text:?}");
        }
    }
}

#[test]
fn arguments_are_neither_expanded_nor_reordered() {
    let desk = Desk::new();
    let proxy = ok();
    let cases: [(&[&str], &str); 8] = [
        (&["drives", "[1-3]"], "/drives/[1-3]"),
        (&["drives", "{a,b}"], "/drives/%7Ba,b%7D"),
        (&["a?b", "c#d"], "/a%3Fb/c%23d"),
        (&["50%", "%41"], "/50%25/%2541"),
        (&["\"<>`"], "/%22%3C%3E%60"),
        (&["é"], "/%C3%A9"),
        (&["//x//", "", " y "], "/x/y"),
        (&["-c", "--", "--fail"], "/--fail"),
    ];
    for (args, path) in cases {
        proxy.forget();
        let tool = desk.simple(&proxy.uri()).arg("api");
        let _ = tool.list(args.iter().copied()).run().code(0);
        let requests = proxy.requests();
        assert_eq!(requests.len(), 1, "{args:?}");
        assert_eq!(requests[0].path, path, "{args:?}");
    }
    proxy.forget();
    let bad: [&[&str]; 3] = [&["drives", ".."], &[".", "x"], &["drives\nlist"]];
    for args in bad {
        let tool = desk.simple(&proxy.uri()).arg("api");
        let tool = tool.list(args.iter().copied());
        let _ = tool.run().code(2).says("cannot be part of a call");
    }
    assert!(proxy.requests().is_empty());
}

#[test]
fn verbose_shows_headers_and_no_secret() {
    let desk = Desk::new();
    let proxy = ok();
    for args in ["-v drives list", "-jvc drives list"] {
        let outcome = desk.simple(&proxy.uri()).args(args).run().code(0);
        assert_eq!(outcome.text(), "ok\n");
        for line in [
            "> POST /drives/list HTTP/1.1\n",
            "> Authorization: Basic <masked>\n",
            "> Content-Length: 0\n",
            "< HTTP/1.1 200 OK\n",
            "< content-type: text/plain\n",
        ] {
            assert!(outcome.stderr.contains(line), "{line}: {outcome:?}");
        }
    }
}

#[test]
fn an_endpoint_error_is_printed_and_fail_makes_it_exit_code_1() {
    let desk = Desk::new();
    let location = "Location: http://127.0.0.1:1/";
    let cases = [
        (refusal(404, "missing"), "Made up.\n", "404 missing"),
        (refusal(500, "system"), "Made up.\n", "500 system"),
        (answer(302, &[location], b"moved"), "moved", "302"),
        (answer(429, &["Retry-After: 9"], b""), "", "429"),
    ];
    for (reply, body, says) in cases {
        let proxy = FaultProxy::stub(move |_| reply.clone());
        for (flag, code) in [("", 0), ("--fail", 1)] {
            let tool = desk.simple(&proxy.uri()).args(flag).args("drives x info");
            let outcome = tool.run().code(code);
            assert_eq!(outcome.text(), body);
            assert_eq!(
                outcome.stderr,
                format!("openhosting: endpoint answered {says}\n")
            );
        }
        // One call is one request: none is repeated, and no redirection is followed.
        assert_eq!(proxy.requests().len(), 2);
    }
    let proxy = ok();
    let tool = desk.simple(&proxy.uri()).args("--fail drives list");
    let _ = tool.run().code(0);
}

#[test]
fn a_missing_or_truncated_answer_is_never_success() {
    let desk = Desk::new();
    let proxy = FaultProxy::stub(|_| answer(200, &[], &ramp(0, 1000)));
    for fault in [
        Fault::ResetBeforeBody,
        Fault::ResetAfterBody,
        Fault::CutAnswer,
    ] {
        let cut = matches!(fault, Fault::CutAnswer);
        proxy.forget();
        proxy.fault(|_| true, 1, fault);
        let tool = desk.simple(&proxy.uri()).args("-c drives x read");
        let outcome = tool.input(b"data").run().code(75);
        assert_eq!(outcome.stdout.len(), if cut { 990 } else { 0 });
        assert_eq!(proxy.requests().len(), 1);
    }
    let tool = desk.simple("http://127.0.0.1:1/").args("drives list");
    let _ = tool.run().code(75).says("cannot connect");
}

#[test]
fn data_comes_from_a_pipe_a_file_or_the_rest_of_a_file() {
    let desk = Desk::new();
    let proxy = ok();
    let data = noise(8, 3_000_000);
    let path = desk.file("data", &data);
    let sent = || {
        let requests = proxy.requests();
        proxy.forget();
        assert_eq!(requests.len(), 1);
        let len = requests[0].header("content-length").unwrap().to_owned();
        assert_eq!(len, requests[0].len.to_string());
        assert_eq!(requests[0].header("transfer-encoding"), None);
        assert_eq!(requests[0].header("expect"), None);
        let octets = Some("application/octet-stream");
        assert_eq!(requests[0].header("content-type"), octets);
        requests[0].body.clone()
    };
    let call = |args: &str| desk.simple(&proxy.uri()).args(args);
    let _ = call("-c drives x write").input(&data).run().code(0);
    assert!(sent() == data);
    let _ = call("-f data drives x write").run().code(0);
    assert!(sent() == data);
    let mut file = File::open(&path).unwrap();
    file.seek(SeekFrom::Start(1000)).unwrap();
    let _ = call("-c drives x write").stdin(file).run().code(0);
    assert!(sent() == data[1000..]);
    for args in ["-c drives x", "-f /dev/null drives x"] {
        let _ = call(args).run().code(0);
        assert!(sent().is_empty());
    }
    let stdin = File::open(&path).unwrap();
    let _ = call("-f /dev/stdin drives x").stdin(stdin).run().code(0);
    assert!(sent() == data);
    let _ = call("-f /dev/stdin drives x").input(&data).run().code(0);
    assert!(sent() == data);
}

#[test]
fn an_unreadable_input_file_is_an_error_and_nothing_is_sent() {
    let desk = Desk::new();
    let proxy = ok();
    std::fs::create_dir(desk.path("dir")).unwrap();
    for (args, code, says) in [
        ("-f nope drives list", 1, "openhosting: nope not found\n"),
        ("-f dir drives list", 1, "openhosting: dir is a directory\n"),
        ("-c -f dir drives list", 2, "cannot be used with"),
        ("-f", 2, "-f needs a value"),
    ] {
        let tool = desk.simple(&proxy.uri()).args(args);
        let outcome = tool.run().code(code).says(says);
        assert!(outcome.stdout.is_empty());
    }
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn a_file_larger_than_memory_is_streamed() {
    const SIZE: u64 = 200 << 20;
    let desk = Desk::new();
    let gate = Gate::default();
    let held = gate.clone();
    let proxy = FaultProxy::stub(move |_| {
        held.wait();
        answer(204, &[], b"")
    });
    desk.sparse("big.img", SIZE, &[]);
    let tool = desk.simple(&proxy.uri()).args("-f big.img drives x write");
    let running = tool.spawn();
    proxy.wait_for("all of the body", |requests| {
        requests.iter().any(|r| r.len == SIZE)
    });
    // The most memory that it had so far, while it waits for the answer.
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()));
    gate.open();
    let _ = running.wait().code(0);
    let Ok(status) = status else {
        skip(Need::Other("/proc"), "there is no status of a process");
        return;
    };
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words = line.unwrap().split_whitespace();
    let peak_kib: u64 = words.clone().nth(1).unwrap().parse().unwrap();
    assert!(peak_kib < 64 * 1024, "{peak_kib} KiB");
}

#[test]
fn a_closed_stdout_ends_a_raw_call_quietly() {
    let desk = Desk::new();
    let proxy = FaultProxy::stub(|_| answer(200, &[], &ramp(0, 3_000_000)));
    let tool = desk.simple(&proxy.uri()).args("drives x read");
    let outcome = tool.closed_stdout().run().code(141);
    assert_eq!(outcome.stderr, "");
    for words in [
        "ls",
        "ls --json",
        "version",
        "help",
        "image info --json a.img",
    ] {
        desk.file("a.img", &noise(1, 4096));
        let server = desk.server();
        let tool = desk.simple(&server.uri).args(words);
        let outcome = tool.closed_stdout().run().code(141);
        assert_eq!(outcome.stderr, "", "{words}");
    }
}

#[test]
fn a_drive_is_printed_byte_for_byte() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(1, 9_000_000);
    let drive = create(&server, image.len() as u64);
    desk.file("a.img", &image);
    let write = format!("drives {drive} write");
    let tool = desk.simple(&proxy.uri()).args("-f a.img").arg(write);
    let _ = tool.run().code(0);
    let read = format!("drives {drive} read");
    let outcome = desk.simple(&server.uri).arg(read).run().code(0);
    assert!(outcome.stdout == image);
    assert_eq!(proxy.count(Request::is_write), 1);
}
