//! `--json` of all commands: one object on stdout that follows docs/schema, whatever the outcome.

use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::streams::Site;
use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::http::{create, drives};
use crate::support::noise;
use crate::support::proxy::{Fault, Request, refusal};
use crate::support::schema::{object, validate};

const NONE: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

/// The object of a successful run.
#[track_caller]
fn json_of(schema: &str, tool: Tool<'_>) -> Value {
    let outcome = tool.run().code(0);
    let value = object(schema, &outcome.stdout);
    assert_eq!(value.get("error"), None, "{value:#}");
    value
}

/// The object of a failed run, and the messages.
#[track_caller]
fn failed(schema: &str, tool: Tool<'_>, code: i32, kind: &str) -> (Value, Outcome) {
    let outcome = tool.run().code(code);
    let value = object(schema, &outcome.stdout);
    let error = &value["error"];
    assert_eq!(error["kind"], kind, "{value:#}");
    assert_eq!(error["exit_code"], code, "{value:#}");
    // The message for people has the same words.
    let message = error["message"].as_str().unwrap();
    let words = outcome.stderr.split_whitespace().collect::<Vec<_>>();
    assert!(words.join(" ").contains(message), "{outcome:?}");
    if let Some(hint) = error["hint"].as_str() {
        assert!(outcome.stderr.contains(hint), "{outcome:?}");
    }
    (value, outcome)
}

#[test]
fn transfers_report_how_they_ended() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(1, 300_000);
    desk.file("a.img", &image);
    let upload = |words: &str| {
        desk.upload(&proxy.uri())
            .args("--json -c 65536")
            .args(words)
    };
    let done = json_of("upload/1", upload("--checksum a.img"));
    assert_eq!(done["drive"], drives(&server)[0]);
    assert_eq!(
        (&done["direction"], &done["outcome"]),
        (&"upload".into(), &"complete".into())
    );
    assert_eq!(
        (&done["bytes_done"], &done["chunks_done"]),
        (&300_000.into(), &5.into())
    );
    let sum = desk.tool("sha256sum").arg("a.img").run().code(0);
    assert_eq!(done["sha256"], sum.text().split(' ').next().unwrap());

    let drive = done["drive"].as_str().unwrap();
    let download = |words: &str| desk.download(&proxy.uri()).args("--json").args(words);
    let done = json_of("download/1", download(&format!("{drive} b.img")));
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    assert_eq!(
        (&done["direction"], &done["drive"]),
        (&"download".into(), &drive.into())
    );
    assert_eq!(done["sha256"], Value::Null);

    // If it can be resumed, the object says so.
    proxy.fault_after(2, Request::is_write, 9, Fault::Answer(refusal(507, "full")));
    let (value, outcome) = failed("upload/1", upload("-j 1 a.img"), 1, "rejected");
    assert_eq!(value["outcome"], "failed");
    assert_eq!(value["resume"]["drive"], value["drive"]);
    let (drive, offset) = outcome.hint();
    assert_eq!(
        value["resume"],
        serde_json::json!({"drive": drive, "offset": offset})
    );
    proxy.heal();
    let none = download(&format!("{NONE} c.img"));
    let (value, _) = failed("download/1", none, 1, "not_found");
    assert_eq!(value["resume"], Value::Null);
    let gone = desk
        .upload("http://127.0.0.1:1/")
        .args("--json --max-outage 0s a.img");
    let (value, _) = failed("upload/1", gone, 75, "unavailable");
    assert_eq!(value["outcome"], "gave_up");

    // stdout is used for the image.
    let both = download(&format!("{drive} -")).run().code(2);
    assert_eq!(both.says("--json and - both need stdout").text(), "");
    // Progress is on stderr, and its last line has the same content.
    let both = upload("--progress json --restart a.img").run().code(0);
    let last: Value = serde_json::from_str(both.stderr.lines().last().unwrap()).unwrap();
    let value = object("upload/1", &both.stdout);
    for key in [
        "drive",
        "bytes_done",
        "bytes_wire",
        "verified_bytes",
        "outcome",
    ] {
        assert_eq!(last[key], value[key], "{key}");
    }
}

#[test]
fn a_wrong_command_line_is_reported_as_an_object() {
    let desk = Desk::new();
    let simple = |words: &str| desk.simple("http://127.0.0.1:1/").args(words);
    for (schema, words) in [
        ("ls/1", "ls --json --nosuch"),
        ("ls/1", "ls -j --nosuch"),
        ("show/1", "show --json"),
        ("rm/1", "rm --json"),
        ("publish/1", "publish --json a.img"),
        ("publish/1", "publish --json --name n"),
        ("publish/1", "publish --json --name n --min-jobs 8 -j 4 a"),
        ("verify/1", "verify -J"),
        ("probe/1", "probe --json x"),
        ("image-info/1", "image info --json"),
        ("image-info/1", "image info --json http://"),
        ("rm/1", "rm --json x --endpoint nosuch"),
        ("ls/1", "ls --json --profile nosuch"),
    ] {
        let _ = failed(schema, simple(words), 2, "usage");
    }
    let _ = failed("verify/1", simple("verify --json nosuch.json"), 1, "local");
    let upload = || desk.upload("http://127.0.0.1:1/").arg("--json");
    let _ = failed("upload/1", upload(), 2, "usage");
    let _ = failed("upload/1", upload().args("-c 4X a"), 2, "usage");
    let _ = failed("upload/1", upload().args("--min-jobs 8 -j 4 a"), 2, "usage");
    let _ = failed("upload/1", upload().arg("nosuch"), 1, "image");
    let download = desk.download("http://127.0.0.1:1/").args("--json a");
    let _ = failed("download/1", download, 2, "usage");
    // Without the flag there is nothing on stdout, and --help succeeds.
    assert_eq!(simple("ls --nosuch").run().code(2).text(), "");
    assert!(
        simple("ls --json --help")
            .run()
            .code(0)
            .text()
            .contains("Usage:")
    );
}

#[test]
fn publish_and_verify_print_their_results_as_objects() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let mut image = noise(2, 400_000);
    desk.file("a.img", &image);
    let own = |words: &str| desk.simple(&proxy.uri()).args(words);
    let publish = "publish a.img --name n --keep 1 --receipt r.json --json";
    assert_eq!(json_of("publish/1", own(publish))["how"], "full");
    let receipt = std::fs::read(desk.path("r.json")).unwrap();
    validate(
        "schema/receipt.schema.json",
        &serde_json::from_slice(&receipt).unwrap(),
    );
    assert_eq!(json_of("publish/1", own(publish))["bytes_sent"], 0);
    image[70_000] ^= 1;
    desk.file("a.img", &image);
    let delta = json_of("publish/1", own(publish));
    assert_eq!(delta["how"], "delta");
    assert_eq!(delta["destroyed"].as_array().unwrap().len(), 1);
    let same = json_of("verify/1", own("verify -J r.json"));
    assert_eq!(same["is_same"], true);
    // Progress counts the bytes that are compared.
    let shown = own("verify --progress json r.json").run().code(0);
    let last: Value = serde_json::from_str(shown.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["direction"]),
        (&"end".into(), &"verify".into())
    );
    for key in ["bytes_total", "bytes_done", "verified_bytes"] {
        assert_eq!(last[key], 400_000, "{key}");
    }
    assert_eq!(last["drive"], delta["drive"]);

    let drive = delta["drive"].as_str().unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(server.drive_file(drive));
    file.unwrap().write_all_at(b"!", 200_000).unwrap();
    let differs = own("verify --json r.json");
    let (value, _) = failed("verify/1", differs, 4, "integrity");
    assert_eq!(
        (&value["is_same"], &value["differing"]),
        (&false.into(), &1.into())
    );

    image[1] ^= 1;
    desk.file("a.img", &image);
    proxy.fault(Request::is_write, 99, Fault::Answer(refusal(507, "full")));
    let (value, outcome) = failed("publish/1", own(publish), 1, "rejected");
    let unfinished = value["unfinished"].as_str().unwrap();
    let outcome = outcome.says(&format!("\nDrive {unfinished} is unfinished"));
    // The last line is the command that continues.
    let last = outcome.stderr.lines().last().unwrap();
    assert_eq!(last, format!("openhosting {publish}"));
    proxy.heal();
    let removed = json_of("publish/1", own("publish --name n --cleanup --json"));
    assert_eq!(removed["removed"], serde_json::json!([unfinished]));
}

#[test]
fn drives_images_and_endpoints_are_printed_as_objects() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let own = |words: &str| desk.simple(&proxy.uri()).args(words);
    assert_eq!(
        json_of("ls/1", own("ls --json"))["drives"],
        serde_json::json!([])
    );
    let drive = create(&server, 1000);
    assert_eq!(json_of("ls/1", own("ls -j"))["drives"][0]["drive"], *drive);
    let show = own("show --json").arg(&drive);
    assert_eq!(json_of("show/1", show)["size"], 1000);
    let _ = failed("show/1", own("show --json").arg(NONE), 1, "not_found");
    let _ = failed("rm/1", own("rm --json").arg(&drive), 2, "usage");
    let removed = json_of("rm/1", own("rm --json --yes").arg(&drive));
    assert_eq!(removed["drives"][0]["removed"], true);
    assert_eq!(
        json_of("probe/1", own("probe --json"))["drive"]["removed"],
        true
    );
    proxy.fault(
        |r| r.path == "/drives/info",
        99,
        Fault::Answer(refusal(401, "auth")),
    );
    let _ = failed("ls/1", own("ls --json"), 1, "unauthenticated");
    proxy.fault(
        Request::is_create,
        99,
        Fault::Answer(refusal(402, "billing")),
    );
    let _ = failed("probe/1", own("probe --json"), 1, "rejected");

    desk.file("a.img", &noise(3, 100_000));
    let _ = desk.tool("gzip").args("-k a.img").run().code(0);
    assert_eq!(
        json_of("image-info/1", own("image info --json a.img"))["disk_bytes"],
        100_000
    );
    let packed = json_of("image-info/1", own("image info -j a.img.gz"));
    assert_eq!(packed["packed_with"], "gzip");
    let _ = failed("image-info/1", own("image info -j nosuch"), 1, "image");
    let web = Site::of(&noise(3, 100_000)).serve();
    let url = format!("{}a.img", web.uri());
    let object = json_of("image-info/1", own("image info -j").arg(&url));
    assert_eq!(object["disk_bytes"], 100_000);
    let piped = own("image info -j -").input(&noise(3, 100_000));
    let object = json_of("image-info/1", piped);
    assert_eq!(object["disk_bytes"], serde_json::Value::Null);
}

#[test]
fn a_server_prints_its_address_or_an_error_as_an_object() {
    let desk = Desk::new();
    let server = || {
        desk.tool(env!("CARGO_BIN_EXE_openhosting-server"))
            .arg("--json")
    };
    let none = "--tls-cert nosuch --tls-key nosuch --data d";
    let _ = failed("server/1", server().args(none), 1, "local");
    let _ = failed("server/1", server().arg("--listen"), 2, "usage");
    let running = server().args("--data d").spawn();
    running.wait_stderr("Serving");
    running.signal("TERM");
    let ended = running.wait().code(0);
    let value = object("server/1", &ended.stdout);
    assert!(
        value["endpoint"]
            .as_str()
            .unwrap()
            .starts_with("http://127.0.0.1:")
    );
    assert_eq!(value["auth"].as_str().unwrap().find(':'), Some(36));
}
