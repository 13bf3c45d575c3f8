//! `openhosting probe` against every answer that the server can be configured to give.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use openhosting::digest::Digest;
use openhosting::findings::{Finding, Findings, LargeReads, Taken};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http::{Ask, create, read_all};
use crate::support::ramp;
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;

const MIB: u64 = 1024 * 1024;
/// A guard against hanging; it does not promise any speed.
const WATCHDOG: Duration = Duration::from_secs(300);

/// A user with a separate home directory.
struct User<'a> {
    server: &'a TestServer,
    home: TempDir,
}

impl<'a> User<'a> {
    fn of(server: &'a TestServer) -> Self {
        let home = TempDir::new().unwrap();
        Self { server, home }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("OHURI", &self.server.uri)
            .env("OHAUTH", self.server.auth())
            .env("HOME", self.home.path())
            .env_remove("XDG_STATE_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let child = self.command(program, args).spawn().unwrap();
        self.checked(finish(child))
    }

    fn openhosting(&self, args: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_openhosting"), args)
    }

    fn download(&self, args: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_openhosting-download"), args)
    }

    fn upload(&self, args: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_openhosting-upload"), args)
    }

    /// Stores findings where the tools look for them.
    fn keep(&self, findings: &Findings) {
        let hash = Digest::of(self.server.uri.trim_end_matches('/').as_bytes()).to_string();
        let file = format!(".local/state/openhosting/findings/{}.json", &hash[..16]);
        let file = self.home.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, findings.to_json().to_string()).unwrap();
    }

    /// Checks that no output contains the secret.
    fn checked(&self, out: Output) -> Output {
        let key = &self.server.key;
        assert!(key.len() > 20);
        for text in [&out.stdout, &out.stderr] {
            assert!(!String::from_utf8_lossy(text).contains(key.as_str()));
        }
        for file in self.files() {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(!text.contains(key.as_str()));
        }
        out
    }

    /// Probes with --json, which must succeed and leave no drive.
    #[track_caller]
    fn probe(&self) -> Value {
        let out = self.openhosting(&["probe", "--json"]);
        assert_eq!(out.status.code(), Some(0), "{}", said(&out));
        assert_eq!(said(&out), "");
        self.expect_no_drive();
        let object: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(object["version"], json!(1));
        assert_eq!(object["endpoint"], json!(self.server.uri));
        assert_eq!(object["drive"]["removed"], json!(true));
        object["answers"].clone()
    }

    #[track_caller]
    fn expect_no_drive(&self) {
        let drives = self.server.data.join("drives");
        assert_eq!(std::fs::read_dir(drives).unwrap().count(), 0);
    }

    /// All files below the home directory.
    fn files(&self) -> Vec<PathBuf> {
        let directory = self.home.path().join(".local/state/openhosting/findings");
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn finish(child: std::process::Child) -> Output {
    let id = child.id().to_string();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    receiver.recv_timeout(WATCHDOG).unwrap_or_else(|_| {
        let _ = Command::new("kill").args(["-KILL", &id]).status();
        panic!("the command hangs")
    })
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn known(value: impl Into<Value>) -> Value {
    json!({"known": true, "value": value.into()})
}

fn unknown(why: &str) -> Value {
    json!({"known": false, "why": why})
}

#[test]
fn a_server_without_faults_is_described_as_it_is() {
    let server = TestServer::start();
    let user = User::of(&server);
    let answers = user.probe();
    let expected = json!({
        "parallel_writes": known(json!({"accepted": 8, "busy_from": null, "loses_bytes": false})),
        "write_counters": known(json!({
            "told": "info", "counts": "exact", "is_late": false, "start_bytes": 4096,
        })),
        "fresh_reads_zero": known(json!(true)),
        "large_reads": known(json!({"4194305": {"refused": 400}, "8388608": {"refused": 400}})),
        "past_end": known(json!({"status": 400, "is_written": false, "grows": false})),
        "user_keys_created": known(json!(true)),
        "user_keys_set": known(json!(true)),
        "largest_body": known(json!({
            "accepted_bytes": 32 * MIB, "refused_bytes": null, "refused_status": null,
        })),
        "gzip_writes": known(json!("decoded")),
        "retry_after": unknown("no 429 or 503 was answered"),
        "size": known(json!({"asked_bytes": 41_944_040, "given_bytes": 41_944_040})),
        "create_status": known(json!(200)),
        "destroy_status": known(json!(204)),
    });
    assert_eq!(answers, expected);
}

#[test]
fn each_question_of_a_probe_can_have_the_other_answer() {
    let server = TestServer::with_plan(&json!({
        "writers_max": 1,
        "counters": "absent",
        "fresh_reads": "pattern",
        "large_reads": "allowed",
        "past_end": "full",
        "user_keys": "dropped",
        "gzip_writes": "stored",
        "body_bytes_max": 5 * MIB,
        "round_size": true,
        "faults": [
            {"request": "POST /drives/*/destroy", "answer": {"status": 200, "done": true}},
        ],
    }));
    let user = User::of(&server);
    let answers = user.probe();
    let expected = json!({
        "parallel_writes": known(json!({"accepted": 1, "busy_from": 2, "loses_bytes": false})),
        "write_counters": known(json!({
            "told": "nowhere", "counts": "nothing", "is_late": false, "start_bytes": null,
        })),
        "fresh_reads_zero": known(json!(false)),
        "large_reads": known(json!({"4194305": "accepted", "8388608": "accepted"})),
        "past_end": known(json!({"status": 507, "is_written": false, "grows": false})),
        "user_keys_created": known(json!(false)),
        "user_keys_set": known(json!(false)),
        "largest_body": known(json!({
            "accepted_bytes": 5 * MIB, "refused_bytes": 16 * MIB, "refused_status": 413,
        })),
        "gzip_writes": known(json!("stored")),
        "retry_after": unknown("no 429 or 503 was answered"),
        "size": known(json!({"asked_bytes": 41_944_040, "given_bytes": 44 * MIB})),
        "create_status": known(json!(200)),
        "destroy_status": known(json!(200)),
    });
    assert_eq!(answers, expected);

    // An upload does not start if its gzip would be stored.
    let image = user.home.path().join("image");
    std::fs::write(&image, ramp(0, 10)).unwrap();
    let out = user.upload(&[image.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(said(&out).contains("openhosting probe"), "{}", said(&out));
    user.expect_no_drive();
}

#[test]
fn a_probe_finds_limits_between_the_extremes() {
    let server = TestServer::with_plan(&json!({
        "writers_max": 3,
        "counters": "lagging",
        "large_reads": "short",
        "past_end": "truncated",
        "body_bytes_max": MIB,
    }));
    let answers = User::of(&server).probe();
    let expected = json!({"accepted": 3, "busy_from": 4, "loses_bytes": false});
    assert_eq!(answers["parallel_writes"], known(expected));
    let expected = json!({"told": "info", "counts": "exact", "is_late": true, "start_bytes": 4096});
    assert_eq!(answers["write_counters"], known(expected));
    let short = json!({"short_bytes": 4 * MIB});
    let expected = json!({"4194305": short, "8388608": short});
    assert_eq!(answers["large_reads"], known(expected));
    let expected = json!({"status": 204, "is_written": true, "grows": false});
    assert_eq!(answers["past_end"], known(expected));
    let expected = json!({"accepted_bytes": MIB, "refused_bytes": 5 * MIB, "refused_status": 413});
    assert_eq!(answers["largest_body"], known(expected));
}

#[test]
fn counters_in_info_full_and_a_connection_that_breaks_at_a_large_body() {
    let write = "POST /drives/*/write/0";
    let server = TestServer::with_plan(&json!({
        "counters": "full",
        "writers_max": 1,
        "faults": [{"request": write, "nth": 2, "times": 30, "reset": "before"}],
    }));
    let answers = User::of(&server).probe();
    let expected =
        json!({"told": "info/full", "counts": "exact", "is_late": false, "start_bytes": 4096});
    assert_eq!(answers["write_counters"], known(expected));
    let expected = json!({
        "accepted_bytes": 5 * MIB, "refused_bytes": 16 * MIB, "refused_status": null,
    });
    assert_eq!(answers["largest_body"], known(expected));
}

#[test]
fn one_failed_question_does_not_affect_the_others() {
    let server = TestServer::with_plan(&json!({"writers_max": 1, "faults": [
        {"request": "POST /drives/*/set", "times": 9, "answer": {"status": 402}},
        // The answer says that the drive was destroyed, but it was not: only a check reveals it.
        {"request": "POST /drives/*/destroy", "answer": {"status": 200}},
        {"request": "GET /drives/*/read/**", "times": 30, "truncate_bytes": 9},
        {"request": "POST /drives/*/write/12582912", "times": 30,
         "answer": {"status": 200, "done": true}},
        {"request": "POST /drives/*/write/14680064", "times": 30, "reset": "after"},
    ]}));
    let answers = User::of(&server).probe();
    assert_eq!(answers["user_keys_set"], unknown("endpoint answered 402"));
    assert_eq!(answers["fresh_reads_zero"], unknown("the connection broke"));
    assert_eq!(answers["gzip_writes"], unknown("the connection broke"));
    assert_eq!(answers["write_counters"]["value"]["counts"], json!("exact"));
    assert_eq!(answers["user_keys_created"], known(json!(true)));
    assert_eq!(
        answers["largest_body"]["value"]["accepted_bytes"],
        json!(32 * MIB)
    );
}

#[test]
fn a_probe_with_many_faults_still_removes_its_drive() {
    let server = TestServer::with_plan(&json!({
        "writers_max": 1,
        "every": {"requests": 7, "status": 503, "retry_after_s": 1},
        "faults": [
            // The drive is created, but no answer arrives.
            {"request": "POST /drives/create", "reset": "after"},
            {"request": "GET /drives/*/info", "reset": "before"},
            {"request": "POST /drives/*/destroy", "nth": 1, "reset": "before"},
            {"request": "POST /drives/*/destroy", "nth": 2, "answer": {"status": 200}},
            {"request": "POST /drives/*/destroy", "nth": 3, "reset": "after"},
        ],
    }));
    let answers = User::of(&server).probe();
    let expected = json!({"status": 503, "seconds": 1});
    assert_eq!(answers["retry_after"], known(expected));
    assert_eq!(
        answers["create_status"],
        unknown("the answer to the create was lost")
    );
    assert_eq!(
        answers["destroy_status"],
        unknown("the answer to the destroy was lost")
    );
    assert_eq!(answers["fresh_reads_zero"], known(json!(true)));
}

#[test]
fn a_drive_that_cannot_be_removed_is_reported_with_the_command() {
    let server = TestServer::with_plan(&json!({"writers_max": 1, "faults": [
        {"request": "POST /drives/*/destroy", "answer": {"status": 402, "error": "billing"}},
    ]}));
    let user = User::of(&server);
    let out = user.openhosting(&["probe"]);
    assert_eq!(out.status.code(), Some(1));
    // The answers are printed nevertheless.
    assert!(String::from_utf8_lossy(&out.stdout).contains("Body in gzip"));
    let said = said(&out);
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[0].starts_with("openhosting probe: The probe's drive "),
        "{said}"
    );
    assert!(lines[0].contains("402"), "{said}");
    let command = lines[1].strip_prefix("Run openhosting rm ").unwrap();
    let drive = command.strip_suffix(" to remove it").unwrap();
    // It would ask, which needs a terminal.
    let args = ["rm", "--yes", drive];
    assert!(user.openhosting(&args).status.success());
    user.expect_no_drive();
}

/// Starts a probe, waits until the server plays a fault, and interrupts it.
fn interrupted(user: &User<'_>, signal: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_openhosting");
    let child = user.command(program, &["probe"]).spawn().unwrap();
    wait_until("the fault", || user.server.log().contains("Plays a fault"));
    let id = child.id().to_string();
    let status = Command::new("kill").args([signal, &id]).status();
    assert!(status.unwrap().success());
    user.checked(finish(child))
}

#[test]
fn a_stopped_probe_removes_its_drive() {
    let faults = [
        json!({"request": "POST /drives/create", "delay_ms": 1000}),
        json!({"request": "GET /drives/*/read/**", "stall": true}),
        json!({"request": "POST /drives/*/write/**", "nth": 3, "stall": true}),
    ];
    for (fault, (signal, code)) in faults
        .iter()
        .zip([("-INT", 130), ("-TERM", 143), ("-INT", 130)])
    {
        let server = TestServer::with_plan(&json!({ "faults": [fault] }));
        let user = User::of(&server);
        let out = interrupted(&user, signal);
        assert_eq!(out.status.code(), Some(code), "{fault}: {}", said(&out));
        assert!(said(&out).contains("Stopped"), "{}", said(&out));
        assert!(out.stdout.is_empty());
        user.expect_no_drive();
        assert!(server.log().contains("/destroy"));
        // Incomplete answers are not stored as findings.
        assert!(user.files().is_empty());
    }
}

#[test]
fn the_findings_are_stored_and_used() {
    use std::os::unix::fs::PermissionsExt;
    let server = TestServer::with_plan(&json!({"writers_max": 1}));
    let user = User::of(&server);
    assert!(user.openhosting(&["probe", "--no-save"]).status.success());
    assert!(user.files().is_empty());
    let out = user.openhosting(&["probe"]);
    assert!(out.status.success());
    let table = String::from_utf8(out.stdout).unwrap();
    assert!(table.contains("1 accepted, but not 2 at a time"), "{table}");
    assert_eq!(table.lines().count(), 13);
    let files = user.files();
    assert_eq!(files.len(), 1);
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.len() == 21 && name.ends_with(".json"), "{name}");
    let mode = std::fs::metadata(&files[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept: Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    let mut keys: Vec<_> = kept.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["answers", "endpoint", "probed_at_s", "version"]);

    // With the findings no write is ever busy, whatever -j says.
    let image = user.home.path().join("image");
    let data = ramp(0, 782 * 512);
    std::fs::write(&image, &data).unwrap();
    let busy = |log: String| log.matches("status=409").count();
    let before = busy(server.log());
    let path = image.to_str().unwrap();
    for breaks in [false, true] {
        if breaks {
            std::fs::write(&files[0], "{\"version\": 99}").unwrap();
        }
        let out = user.upload(&["-c", "20000", "-j", "8", path]);
        assert!(out.status.success(), "{}", said(&out));
        let printed = String::from_utf8_lossy(&out.stdout);
        let drive = printed.split(' ').nth(2).unwrap().to_owned();
        assert!(read_all(&server, &drive) == data);
        if !breaks {
            assert_eq!(busy(server.log()), before);
            // stderr is not a terminal, so no progress is printed.
            assert_eq!(said(&out), "");
        }
    }
}

#[test]
fn a_download_reads_as_much_as_the_findings_allow() {
    const CHUNK: u64 = 8 * MIB;
    for now in ["allowed", "refused", "short"] {
        let server = TestServer::with_plan(&json!({"large_reads": now}));
        let user = User::of(&server);
        let image = user.home.path().join("image");
        let data = ramp(3, 18_000_000);
        std::fs::write(&image, &data).unwrap();
        let out = user.upload(&[image.to_str().unwrap()]);
        let printed = String::from_utf8_lossy(&out.stdout);
        let drive = printed.split(' ').nth(2).unwrap().to_owned();
        let copy = user.home.path().join("copy");
        let copy = copy.to_str().unwrap();
        let reads = |len: u64| {
            let read = format!("/{len}\"");
            let log = server.log();
            let lines = log.lines().filter(|line| line.contains(&drive));
            lines
                .filter(|line| line.contains("/read/") && line.contains(&read))
                .count()
        };
        let chunk = CHUNK.to_string();
        let args = ["-c", &chunk, "--force", "--verify", "none", &drive, copy];
        // Without findings, no read exceeds what the API documents.
        assert!(user.download(&args).status.success());
        assert!(std::fs::read(copy).unwrap() == data);
        assert_eq!((reads(CHUNK), reads(CHUNK / 2)), (0, 4));
        // An earlier probe found that longer reads are answered.
        let mut findings = Findings::unknown(&*server.uri, "");
        findings.large_reads = Finding::Known(LargeReads {
            above: Taken::Accepted,
            double: Taken::Accepted,
        });
        user.keep(&findings);
        let out = user.download(&args);
        assert!(out.status.success(), "{now}: {}", said(&out));
        assert!(std::fs::read(copy).unwrap() == data, "{now}");
        let (large, small) = (reads(CHUNK), reads(CHUNK / 2) - 4);
        if now == "allowed" {
            assert_eq!((large, small), (2, 0));
        } else {
            // That no longer holds: the requests in flight are repeated with a smaller size.
            assert!(
                (1..=2).contains(&large) && small == 4,
                "{now}: {large} {small}"
            );
        }
    }
}

#[test]
fn only_the_first_word_selects_an_own_command() {
    let server = TestServer::start();
    let user = User::of(&server);
    let drive = create(&server, 1);
    let list = user.openhosting(&["drives", "list"]);
    assert_eq!(
        String::from_utf8(list.stdout).unwrap(),
        format!("{drive}\n")
    );
    let out = user.openhosting(&["drives", "probe"]);
    assert_eq!(out.stdout, b"No such command\n");
    for args in [&["-j", "probe"][..], &["/probe"]] {
        let out = user.openhosting(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty(), "{args:?}");
    }
    for bad in [&["probe", "drives"][..], &["probe", "--nosuch"]] {
        assert_eq!(user.openhosting(bad).status.code(), Some(2), "{bad:?}");
    }
    assert!(user.openhosting(&["probe", "--help"]).status.success());
    let list = Ask::of(&server).get("/drives/list").expect(200);
    assert_eq!(list.text(), format!("{drive}\n"));
    let wrong = format!("{}:wrong", server.user);
    let mut command = user.command(env!("CARGO_BIN_EXE_openhosting"), &["probe"]);
    let out = command.env("OHAUTH", wrong).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(said(&out).contains("401 auth"), "{}", said(&out));
    assert!(!said(&out).contains("may have been made"), "{}", said(&out));
}
