//! The output of the tools for pipelines: commands, outputs and summaries of GitHub Actions, and
//! logs that hostile text cannot affect.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::http::{assert_drive, info};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Request, answer, refusal};

const C: usize = 65536;

/// A command, as the runner reads it from a line: `::NAME KEY=VALUE,...::DATA`.
#[derive(Debug, PartialEq)]
struct Command {
    name: String,
    title: String,
    data: String,
}

/// The commands as the runner parses them, and the other lines.
fn commands(stderr: &str) -> (Vec<Command>, Vec<String>) {
    let (mut commands, mut others) = (Vec::new(), Vec::new());
    for line in stderr.lines() {
        assert!(!line.contains("##["), "an older command in {line}");
        let Some(rest) = line.trim().strip_prefix("::") else {
            others.push(line.to_owned());
            continue;
        };
        let (head, data) = rest.split_once("::").unwrap();
        let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
        let mut title = String::new();
        for property in properties.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = property.split_once('=').unwrap();
            assert_eq!(key, "title");
            let value = value.replace("%3A", ":").replace("%2C", ",");
            title = unescaped(&value);
        }
        commands.push(Command {
            name: name.to_owned(),
            title,
            data: unescaped(data),
        });
    }
    (commands, others)
}

fn unescaped(text: &str) -> String {
    let text = text.replace("%0D", "\r").replace("%0A", "\n");
    text.replace("%25", "%")
}

fn named<'a>(commands: &'a [Command], name: &str) -> Vec<&'a Command> {
    commands.iter().filter(|c| c.name == name).collect()
}

/// The files that a runner creates for a step.
struct Step {
    output: PathBuf,
    summary: PathBuf,
}

impl Step {
    fn new(desk: &Desk) -> Self {
        Self {
            output: desk.file("github-output", b"before=1"),
            summary: desk.file("github-summary", b""),
        }
    }

    fn run<'a>(&self, tool: Tool<'a>) -> Tool<'a> {
        tool.env("GITHUB_ACTIONS", "true")
            .env("GITHUB_OUTPUT", &self.output)
            .env("GITHUB_STEP_SUMMARY", &self.summary)
    }

    /// Returns the outputs, each of one line, and the summary, and clears both.
    fn left(&self) -> (Vec<(String, String)>, String) {
        let read = |path| std::fs::read_to_string(path).unwrap();
        let (output, summary) = (read(&self.output), read(&self.summary));
        std::fs::write(&self.output, "before=1").unwrap();
        std::fs::write(&self.summary, "").unwrap();
        let mut lines = output.lines();
        assert_eq!(lines.next(), Some("before=1"));
        let pair = |line: &str| {
            let (name, value) = line.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        (lines.map(pair).collect(), summary)
    }
}

fn get<'a>(outputs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut all = outputs.iter().filter(|(n, _)| n == name);
    let found = all.next().map(|(_, value)| value.as_str());
    assert!(all.next().is_none(), "{name} twice in {outputs:?}");
    found
}

/// Checks that there is a table of two columns below a heading.
#[track_caller]
fn assert_table(summary: &str, heading: &str) {
    let lines: Vec<_> = summary.lines().collect();
    assert_eq!(lines[0], heading, "{summary}");
    assert_eq!(lines[1..4], ["", "| | |", "|---|---|"]);
    assert!(
        lines.len() > 7 && lines[lines.len() - 1].is_empty(),
        "{summary}"
    );
    for row in &lines[2..lines.len() - 1] {
        let row = row.replace("\\|", "");
        assert!(row.starts_with('|') && row.ends_with('|'), "{row}");
        assert_eq!(row.matches('|').count(), 3, "{row}");
    }
}

#[test]
fn each_tool_leaves_its_outputs_and_a_summary() {
    let desk = Desk::new();
    let server = desk.server();
    let step = Step::new(&desk);
    let image = noise(1, 3 * C);
    desk.file("a,b: 50%.img", &image);
    // One that is no drop of the others.
    let upload = step.run(
        desk.upload(&server.uri)
            .args("--github -c 65536 --checksum"),
    );
    let up = upload.arg("a,b: 50%.img").run().code(0);
    let drive = up.created();
    let sha256 = up.text().lines().last().unwrap()[..64].to_owned();
    let (printed, others) = commands(&up.stderr);
    assert_eq!((printed.len(), others.len()), (2, 0), "{}", up.stderr);
    assert_eq!(printed[0].name, "group");
    assert_eq!(printed[0].data, "openhosting-upload a,b: 50%.img");
    assert_eq!(printed[1].name, "endgroup");
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "outcome"), Some("complete"));
    assert_eq!(get(&outputs, "drive"), Some(&*drive));
    assert_eq!(get(&outputs, "digest"), Some(&*sha256));
    let sent: usize = get(&outputs, "bytes_sent").unwrap().parse().unwrap();
    assert!(sent >= image.len(), "{sent}");
    assert_table(&summary, "### openhosting\\-upload: complete");
    assert!(
        summary.contains("| Image | a\\,b\\: 50\\%\\.img |"),
        "{summary}"
    );

    let download = step.run(desk.download(&server.uri).args("--github").arg(&drive));
    download.arg("out.img").run().code(0);
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "drive"), Some(&*drive));
    assert_eq!(
        (get(&outputs, "digest"), get(&outputs, "bytes_sent")),
        (None, None)
    );
    let received: usize = get(&outputs, "bytes_received").unwrap().parse().unwrap();
    assert!(received > 0);
    assert_table(&summary, "### openhosting\\-download: complete");

    let publish = "publish --name nightly --github --receipt r.json";
    let publish = || step.run(desk.simple(&server.uri).args(publish).arg("a,b: 50%.img"));
    let done = publish().run().code(0);
    let (outputs, summary) = step.left();
    let published = done.text().trim().to_owned();
    assert_eq!(get(&outputs, "drive"), Some(&*published));
    let root = info(&server, &published, "user:oh-digest");
    assert_eq!(get(&outputs, "digest"), root.as_deref());
    assert!(
        get(&outputs, "bytes_sent")
            .unwrap()
            .parse::<usize>()
            .unwrap()
            >= image.len()
    );
    assert_table(&summary, "### openhosting publish: complete");
    publish().run().code(0);
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "drive"), Some(&*published));
    assert_eq!(get(&outputs, "bytes_sent"), Some("0"));
    assert!(summary.contains("| Sent as | nothing |"), "{summary}");

    let verify = || step.run(desk.simple(&server.uri).args("verify r.json --github"));
    verify().run().code(0);
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "outcome"), Some("complete"));
    assert_eq!(get(&outputs, "digest"), root.as_deref());
    assert_table(&summary, "### openhosting verify: complete");
    let mut bytes = image.clone();
    bytes[C] ^= 1;
    std::fs::write(server.drive_file(&published), &bytes).unwrap();
    let (printed, _) = commands(&verify().run().code(4).stderr);
    let errors = named(&printed, "error");
    assert_eq!((errors.len(), &*errors[0].title), (1, "openhosting verify"));
    assert!(
        errors[0]
            .data
            .contains("the first at byte 65536\nDo not use it")
    );
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "outcome"), Some("integrity"));
    assert!(summary.contains("| Blocks that differ | 1 |"), "{summary}");
}

#[test]
fn an_error_is_one_annotation_after_the_group() {
    let desk = Desk::new();
    let step = Step::new(&desk);
    let server = desk.server();
    let proxy = FaultProxy::to(&server);
    proxy.fault(
        Request::is_write,
        usize::MAX,
        Fault::Answer(refusal(402, "unpaid")),
    );
    desk.file("a.img", &noise(2, 3 * C));
    let upload = step.run(desk.upload(&proxy.uri()).args("--github -c 65536 a.img"));
    let done = upload.run().code(1);
    let (printed, others) = commands(&done.stderr);
    assert!(others.is_empty(), "{others:?}");
    let names: Vec<_> = printed.iter().map(|command| &*command.name).collect();
    assert_eq!(names, ["group", "endgroup", "error"]);
    let error = printed.last().unwrap();
    assert_eq!(error.title, "openhosting-upload");
    // The error, its hint, and how to continue.
    let lines: Vec<_> = error.data.lines().collect();
    assert!(lines[0].contains("402"), "{error:?}");
    assert!(lines[1].contains("balance"), "{error:?}");
    assert!(error.data.contains("\nRestart with '-d "), "{error:?}");
    let (outputs, summary) = step.left();
    assert_eq!(get(&outputs, "outcome"), Some("failed"));
    assert_eq!(get(&outputs, "drive"), Some(&*done.created()));
    assert!(summary.contains("| To go on | Restart with"), "{summary}");
}

#[test]
fn notices_are_printed_as_warnings() {
    let desk = Desk::new();
    let server = desk.server();
    let step = Step::new(&desk);
    desk.file("a.img", &noise(3, C));
    let publish = |words: &str| {
        let tool = desk
            .simple(&server.uri)
            .args("publish a.img --github --name");
        step.run(tool.args(words)).run().code(0)
    };
    publish("n");
    desk.file("a.img", &noise(4, C));
    std::fs::remove_dir_all(desk.path("../home/.local/state/openhosting/receipts")).unwrap();
    let (printed, others) = commands(&publish("n").stderr);
    let warnings = named(&printed, "warning");
    assert_eq!(warnings.len(), 1, "{printed:?} {others:?}");
    assert_eq!(warnings[0].title, "openhosting publish");
    assert!(warnings[0].data.starts_with("There is no receipt of base"));
    // With --quiet there is nothing but what remains.
    step.left();
    let (printed, others) = commands(&publish("n -q").stderr);
    assert_eq!(
        (printed.len(), others.len()),
        (2, 0),
        "{printed:?} {others:?}"
    );
    assert_eq!(get(&step.left().0, "outcome"), Some("complete"));
}

#[test]
fn missing_files_are_reported_without_failing_the_transfer() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(5, C);
    desk.file("a.img", &image);
    let upload = desk.upload(&server.uri).args("--github a.img");
    let nosuch = desk.path("nosuch");
    let done = upload.env("GITHUB_OUTPUT", &nosuch).run().code(0);
    assert_drive(&server, &done.created(), &image);
    let (printed, _) = commands(&done.stderr);
    let warnings = named(&printed, "warning");
    assert_eq!(warnings.len(), 2, "{printed:?}");
    assert!(warnings[0].data.starts_with("GITHUB_OUTPUT names "));
    assert!(warnings[0].data.ends_with(": nothing is left there"));
    assert_eq!(
        warnings[1].data,
        "GITHUB_STEP_SUMMARY is not set: nothing is left there"
    );
    assert!(!nosuch.exists());
    // The target of a link is not written to either.
    let target = desk.file("target", b"");
    let link = desk.path("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let upload = desk.upload(&server.uri).args("--github a.img -n b");
    let upload = upload.env("GITHUB_OUTPUT", &link);
    upload.env("GITHUB_STEP_SUMMARY", "").run().code(0);
    assert_eq!(std::fs::read(&target).unwrap(), b"");
}

#[test]
fn auto_is_for_jobs_of_github_only() {
    let desk = Desk::new();
    let server = desk.server();
    let step = Step::new(&desk);
    desk.file("a.img", &noise(6, C));
    let upload = |flags: &str| desk.upload(&server.uri).args(flags).arg("a.img");
    let speaks = |outcome: &Outcome| outcome.stderr.contains("::group::");
    assert!(!speaks(&upload("--github=auto").run().code(0)));
    assert!(speaks(&step.run(upload("--github=auto")).run().code(0)));
    step.left();
    // A tool with the original flags prints what it always printed.
    for flags in ["", "--github=never"] {
        let done = step.run(upload(flags)).run().code(0);
        assert_eq!(done.stderr, "", "{flags}");
        assert_eq!(step.left().0, []);
    }
    // The flag does not consume the word that is the image.
    let bad = upload("--github=a.img").run().code(2);
    bad.says("--github cannot be \"a.img\"");
}

/// Checks that no line affects a terminal or a runner.
#[track_caller]
fn assert_harmless(what: &str, text: &str) {
    for line in text.lines() {
        let bad = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!line.contains(bad), "{what}: {line:?}");
        assert!(!line.trim_start().starts_with("::"), "{what}: {line}");
        assert!(!line.contains("##["), "{what}: {line}");
    }
}

#[test]
fn hostile_names_do_not_reach_the_log() {
    let desk = Desk::new();
    let server = desk.server();
    let hostile = "x\x1b[31m\r\n::error::y\n##[error]z\u{9b}\u{202e}\x07.img";
    let image = noise(7, 2 * C);
    desk.file(hostile, &image);
    desk.file("plain.img", &image);
    // The answer of a server, in a body and in a header.
    let stub = FaultProxy::stub(|_| {
        let body = b"no\x1b]0;owned\x07 \xc2\x9b ##[error]x\n::error::y\n";
        answer(
            400,
            &["X-Elastic-Error: no ##[error]x", "Content-Type: text/plain"],
            body,
        )
    });
    let there = desk.upload(&server.uri).args("-n d plain.img").run();
    let there = there.code(0).created();
    let bad = format!("no{hostile}");
    let (up, stub_up) = (|| desk.upload(&server.uri), || desk.upload(&stub.uri()));
    let down = || desk.download(&server.uri);
    let own = |words: &str| desk.simple(&server.uri).args(words);
    for (what, tool) in [
        ("an image", up().args("--checksum -n n").arg(hostile)),
        ("no image", up().arg(&bad)),
        ("a name", up().arg("-n").list([hostile, "plain.img"])),
        ("a number", up().args("plain.img -j").arg(hostile)),
        ("a time", up().args("plain.img --deadline").arg(hostile)),
        ("a flag", up().arg(format!("--{hostile}"))),
        ("an endpoint", desk.upload(hostile).arg("plain.img")),
        ("a second image", up().list(["plain.img", hostile])),
        ("an answer", stub_up().arg("plain.img")),
        ("a file", down().list(["--checksum", &there, &bad])),
        ("a file that is there", down().list([&there, hostile])),
        ("a drive", down().list([hostile, "out"])),
        (
            "a published name",
            own("publish plain.img --name").arg(hostile),
        ),
        (
            "a base",
            own("publish plain.img --name n --base").arg(hostile),
        ),
        (
            "readers",
            own("publish plain.img --name n --readers").arg(hostile),
        ),
        ("a receipt", own("verify").arg(hostile)),
        ("a part", own("verify r --shard").arg(hostile)),
        ("an object", own("verify --progress json").arg(hostile)),
        ("an image to look at", own("image info").arg(&bad)),
    ] {
        let outcome = tool.run();
        assert_harmless(what, outcome.text());
        assert_harmless(what, &outcome.stderr);
        assert_ne!(outcome.stdout.len() + outcome.stderr.len(), 0, "{what}");
    }
    // Commands for GitHub do not treat any of it as a command either.
    let step = Step::new(&desk);
    let upload = step.run(stub_up().args("--github -n n").arg(hostile));
    let (printed, others) = commands(&upload.run().code(1).stderr);
    assert_eq!(others.len(), 0, "{others:?}");
    let names: Vec<_> = printed.iter().map(|command| &*command.name).collect();
    assert_eq!(names, ["group", "endgroup", "error"]);
    assert!(
        printed
            .iter()
            .all(|c| !c.data.replace('\n', "").contains(char::is_control))
    );
    assert_table(&step.left().1, "### openhosting\\-upload: failed");
}

/// When a plain line was printed, in whole seconds since the transfer began.
fn time_of(line: &str) -> u64 {
    let time = match line.split_once(" in ") {
        Some((_, rest)) => rest.split(',').next().unwrap(),
        None => {
            let (_, rest) = line.rsplit_once("(after ").unwrap();
            rest.strip_suffix(')').unwrap()
        }
    };
    humantime::parse_duration(time).unwrap().as_secs()
}

#[test]
fn a_plain_log_has_a_line_every_ten_seconds_at_most() {
    let desk = Desk::new();
    let server = desk.server();
    let proxy = FaultProxy::to(&server);
    // Every other write is refused for a moment, and each time is reported.
    let writes = AtomicUsize::new(0);
    let every_other =
        move |r: &Request| r.is_write() && writes.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
    proxy.fault(every_other, usize::MAX, Fault::Answer(refusal(409, "busy")));
    let image = noise(8, 10 * 32768);
    desk.file("a.img", &image);
    let upload = desk
        .upload(&proxy.uri())
        .args("-c 32768 -j 1 --level 0 --limit-rate 26000");
    let done = upload.arg("a.img").run().code(0);
    assert_drive(&server, &done.created(), &image);
    assert_harmless("stderr", &done.stderr);
    assert!(!done.stderr.contains('\r'));
    let lines: Vec<_> = done.stderr.lines().collect();
    let (summary, lines) = lines.split_last().unwrap();
    assert!(
        summary.contains("Uploaded a.img (320 KiB) to drive "),
        "{}",
        done.stderr
    );
    let (last, lines) = lines.split_last().unwrap();
    let mut lines = lines.to_vec();
    // A notice that waited for a line that never came has no time of its own.
    if last.contains(" in ") {
        lines.push(*last);
    }
    let times: Vec<u64> = lines.iter().map(|line| time_of(line)).collect();
    assert!(times.len() >= 3, "{}", done.stderr);
    assert!(
        times.windows(2).all(|two| two[1] >= two[0] + 10),
        "{times:?}"
    );
    // Those in between are reported as well, in the same lines.
    let waits = done
        .stderr
        .matches("The drive is busy, waiting (after ")
        .count();
    let more: usize = done.stderr.matches("; and ").count();
    assert!(waits >= 5 || more > 0, "{}", done.stderr);
}

#[test]
fn verify_reports_its_progress() {
    let desk = Desk::new();
    let plan = desk.file("plan.json", br#"{"past_end": "full"}"#);
    for has_digests in [true, false] {
        let server = match has_digests {
            true => desk.server(),
            false => desk.server_with(&["--fault-plan", plan.to_str().unwrap()]),
        };
        let mut image = noise(9, 5 << 20);
        image[C..4 * C].fill(0);
        desk.file("a.img", &image);
        let words = "publish a.img --name n --receipt r.json";
        let drive = desk.simple(&server.uri).args(words).run().code(0);
        let verify = desk
            .simple(&server.uri)
            .args("verify r.json --progress json");
        let done = verify.run().code(0);
        let events: Vec<serde_json::Value> = done
            .stderr
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let start = events.iter().find(|event| event["event"] == "start");
        let (first, last) = (start.unwrap(), &events[events.len() - 1]);
        assert_eq!(last["event"], "end");
        for event in [first, last] {
            assert_eq!(event["direction"], "verify");
            assert_eq!(event["drive"], drive.text().trim());
            assert_eq!(event["bytes_total"], 5 << 20);
        }
        assert_eq!(last["bytes_done"], 5 << 20);
        assert_eq!(last["outcome"], "complete");
        assert_eq!(last["bytes_wire"].as_u64() > Some(4 << 20), !has_digests);
        assert_eq!(last["verified_bytes"], 5 << 20);
    }
}

#[test]
fn a_file_that_cannot_be_written_to_is_reported() {
    let desk = Desk::new();
    let server = desk.server();
    let step = Step::new(&desk);
    desk.file("a.img", &noise(10, C));
    // Root could write to a read-only file, but nobody can append to a directory.
    let upload = step.run(desk.upload(&server.uri).args("--github a.img"));
    let done = upload.env("GITHUB_OUTPUT", desk.work()).run().code(0);
    let (printed, _) = commands(&done.stderr);
    assert_eq!(named(&printed, "warning").len(), 1, "{printed:?}");
    // The other file was written nevertheless.
    assert_table(&step.left().1, "### openhosting\\-upload: complete");
}
