//! Repeats with our tools what was recorded of the original bash tools, request by request. A table
//! lists each intentional difference and its reason. A listed difference that does not occur is a
//! failure too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::cli::{Desk, SIMPLE, UPLOAD};
use crate::support::http::basic;
use crate::support::proxy::{Fault, FaultProxy, Request, answer};
use crate::support::{ramp, recorded};

/// The user of the recordings.
const USER: &str = "11111111-2222-3333-4444-555555555555";
/// Makes our upload tool work like the original: its default size of chunks, one request at a time,
/// compressed even though the endpoint is near, and without a second attempt.
const AS_THE_ORIGINAL: &str =
    "-c 4194304 -j 1 --level 1 --max-outage 0s --verify none --no-journal";

/// What a run did, as far as a script or an endpoint can see.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    code: i32,
    stdout: String,
    /// Each of these is contained in stderr.
    stderr: Vec<String>,
    requests: Vec<Asked>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    path: String,
    content_type: Option<String>,
    encoding: Option<String>,
    accept: Option<String>,
    /// Bytes of the body, unpacked.
    len: u64,
    /// The body, unless it contains bytes of a drive.
    body: Option<String>,
}

/// The case, the change to what is expected, and its reason.
type Difference = (&'static str, fn(&mut Record), &'static str);

const USAGE: &str =
    "a mistake of the user has an exit code of its own, 2, and the usage text is clap's";
const TOKEN: &str = "a drive bears a token by which it is found when the answer to create is lost, and a mark that it is unfinished";
const MARK: &str = "a drive is marked as unfinished until the upload to it has ended well";
const LOOK: &str = "a drive that exists is looked at before anything is written to it";
const DIFFERENCES: &[Difference] = &[
    ("simple: no arguments", usage, USAGE),
    (
        "simple: bad option",
        |r| {
            r.code = 2;
            r.stderr = vec!["There is no flag -x\n".into()];
        },
        USAGE,
    ),
    ("simple: EHURI unset", code_2, USAGE),
    (
        "simple: connection refused",
        |r| r.code = 75,
        "no tool uses curl's exit codes: 75 is for what may work later",
    ),
    ("upload: two files", usage, USAGE),
    ("upload: EHURI unset", code_2, USAGE),
    ("upload: EHAUTH unset", code_2, USAGE),
    ("upload: -c 0", value, USAGE),
    ("upload: -o 01", value, USAGE),
    (
        "upload: -z",
        |r| r.stderr = vec!["ten.raw is not sound gzip".into()],
        "-z of 2011 is there again, and measures by unpacking",
    ),
    (
        "upload: empty.raw",
        |r| r.stderr = vec!["empty.raw is empty".into()],
        "the file exists: say what is wrong with it",
    ),
    (
        "upload: dir",
        |r| r.stderr = vec!["Cannot upload dir: it is a directory".into()],
        "the directory exists: say what is wrong with it",
    ),
    ("upload: default", token, TOKEN),
    ("upload: default", end_mark, MARK),
    ("upload: existing drive", look, LOOK),
    ("upload: existing drive", mark, MARK),
    ("upload: existing drive", end_mark, MARK),
    ("upload: -o not a multiple of chunk", look, LOOK),
    ("upload: -o not a multiple of chunk", mark, MARK),
    ("upload: -o not a multiple of chunk", end_mark, MARK),
    ("upload: -o beyond end", look, LOOK),
    (
        "upload: -o beyond end",
        |r| r.stdout = r.stdout.replace("-1 chunks", "0 chunks"),
        "there are no negative chunks",
    ),
    ("upload: -o without -d", token, TOKEN),
    ("upload: -o without -d", end_mark, MARK),
    ("upload: create refused", token, TOKEN),
    (
        "upload: create refused",
        |r| {
            r.stderr =
                vec!["Failed to create drive of size 10000000: endpoint answered 402".into()];
        },
        "say what the endpoint answered",
    ),
    ("upload: second chunk refused", look, LOOK),
    ("upload: second chunk refused", mark, MARK),
    ("upload: refused while resuming", look, LOOK),
    ("upload: refused while resuming", mark, MARK),
    (
        "upload: refused while resuming",
        |r| r.stderr[0] = "Failed to write chunk 2 of 3: aborting".into(),
        "chunks are counted over the whole image, all of them",
    ),
    ("upload: connection dropped", look, LOOK),
    ("upload: connection dropped", mark, MARK),
    (
        "upload: connection dropped",
        |r| r.code = 75,
        "75 is for what may work later",
    ),
    (
        "upload: unknown drive",
        |r| {
            r.stdout.clear();
            r.stderr = vec!["No drive has the name \"nosuch\"".into()];
            r.requests = vec![get("/drives/info")];
        },
        "what is no UUID is a name, which is looked for: nothing is written without it",
    ),
    (
        "upload: name with a space, path in another directory",
        token,
        TOKEN,
    ),
    (
        "upload: name with a space, path in another directory",
        |r| r.requests[1].encoding = None,
        "what gzip does not make smaller is sent as it is",
    ),
    (
        "upload: name with a space, path in another directory",
        end_mark,
        MARK,
    ),
];

fn usage(record: &mut Record) {
    record.code = 2;
    record.stderr = vec!["Usage: ".into()];
}

fn value(record: &mut Record) {
    record.code = 2;
    record.stderr = vec!["\nUse bytes or a suffix, for example 4M\n".into()];
}

fn code_2(record: &mut Record) {
    record.code = 2;
}

/// What the originals refuse and our tools accept.
const ACCEPTED: &[(&str, &str)] = &[("upload: -c 4M", "a size may have a suffix")];

fn token(record: &mut Record) {
    let body = record.requests[0].body.as_mut().unwrap();
    *body += "\nuser:oh-state uploading\nuser:oh-token TOKEN\n";
    record.requests[0].len = body.len() as u64;
}

fn look(record: &mut Record) {
    let path = record.stdout.split_whitespace().nth(3).unwrap();
    record
        .requests
        .insert(0, get(&format!("/drives/{path}/info")));
}

/// Marks the drive before the first write, if it existed.
fn mark(record: &mut Record) {
    let look = &record.requests[0];
    let drive = look.path.strip_suffix("/info").unwrap();
    let set = set(drive, "uploading\nuser:oh-token TOKEN");
    record.requests.insert(1, set);
}

/// Ends the mark after the last write, if no other upload has replaced the token.
fn end_mark(record: &mut Record) {
    let last = record.requests.last().unwrap();
    let (drive, _) = last.path.split_once("/write").unwrap();
    let ready = set(drive, "ready");
    record
        .requests
        .extend([get(&format!("{drive}/info")), ready]);
}

fn set(drive: &str, state: &str) -> Asked {
    let body = format!("user:oh-state {state}\n");
    Asked {
        method: "POST".into(),
        content_type: Some("text/plain".into()),
        len: body.len() as u64,
        body: Some(body),
        ..get(&format!("{drive}/set"))
    }
}

/// A request that only our tools make.
fn get(path: &str) -> Asked {
    Asked {
        method: "GET".into(),
        path: path.into(),
        content_type: None,
        encoding: None,
        accept: Some("*/*".into()),
        len: 0,
        body: Some(String::new()),
    }
}

#[test]
fn our_programs_behave_as_the_recorded_scripts() {
    let recorded: Value = serde_json::from_str(&recorded("original-tools.json")).unwrap();
    let mut desk = Desk::new();
    desk.user = USER.to_owned();
    let ten = ramp(0, 10_000_000);
    for (name, bytes) in [
        ("ten.raw", &ten[..]),
        ("img.raw", &ramp(0, 100_000)),
        ("empty.raw", b""),
        ("with space.img", b"abc"),
        ("a", b"a"),
        ("b", b"b"),
    ] {
        desk.file(name, bytes);
    }
    std::fs::create_dir(desk.path("dir")).unwrap();
    let stub = Stub::new(&desk);
    let (mut replayed, mut differences, mut accepted) = (0, 0, 0);
    for case in recorded["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if let Some((_, reason)) = ACCEPTED.iter().find(|(case, _)| *case == name) {
            assert_ne!(case["rc"], 0, "{name}: no difference: {reason}");
            stub.prepare(case, name);
            let got = replay(case, &desk, &stub);
            assert_eq!(got.code, 0, "{name}: {reason}: {got:?}");
            accepted += 1;
            continue;
        }
        let mut expected = expected(case, &desk);
        for (_, change, reason) in DIFFERENCES.iter().filter(|(case, ..)| *case == name) {
            let before = expected.clone();
            change(&mut expected);
            assert_ne!(expected, before, "{name}: no difference: {reason}");
            differences += 1;
        }
        stub.prepare(case, name);
        let got = replay(case, &desk, &stub);
        assert_eq!(got.code, expected.code, "{name}: {got:?}");
        assert_eq!(got.stdout, expected.stdout, "{name}: {got:?}");
        assert_eq!(got.requests, expected.requests, "{name}");
        for line in &expected.stderr {
            assert!(got.stderr[0].contains(line), "{name}: no {line:?}: {got:?}");
        }
        replayed += 1;
    }
    assert_eq!(differences, DIFFERENCES.len(), "a case is not there");
    assert_eq!(accepted, ACCEPTED.len(), "a case is not there");
    assert!(replayed >= 30, "{replayed}");
    eprintln!("{replayed} transcripts, {differences} differences");
}

/// Our UUID for the n-th drive of the recordings.
fn uuid(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// Replaces the placeholders of the recordings by our values.
fn fill(text: &str, desk: &Desk) -> String {
    let mut text = text.replace("<CWD>", desk.work().to_str().unwrap());
    for n in 1..10 {
        text = text.replace(&format!("<DRIVE-{n}>"), &uuid(n));
    }
    text
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn expected(case: &Value, desk: &Desk) -> Record {
    let stderr = fill(case["stderr"].as_str().unwrap(), desk);
    let ours = stderr.replace("EHURI", "OHURI").replace("EHAUTH", "OHAUTH");
    let requests = case["requests"].as_array().unwrap().iter().map(|r| {
        let headers = &r["headers"];
        let encoding = string(&headers["Content-Encoding"]);
        let packed = encoding.is_some();
        let body = string(&r["body"]);
        let path = fill(r["path"].as_str().unwrap(), desk);
        // The length of a body was not recorded if the write was refused. It follows from the
        // offset.
        let unpacked = || {
            let offset: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
            (10_000_000 - offset).min(4_194_304)
        };
        let len = match (r["decoded_len"].as_u64(), packed) {
            (Some(len), _) => len,
            (None, true) => unpacked(),
            (None, false) => body.as_ref().unwrap().len() as u64,
        };
        Asked {
            method: string(&r["method"]).unwrap(),
            content_type: string(&headers["Content-Type"]),
            accept: string(&headers["Accept"]),
            body,
            len,
            encoding,
            path,
        }
    });
    Record {
        code: case["rc"].as_i64().unwrap() as i32,
        stdout: fill(case["stdout"].as_str().unwrap(), desk),
        stderr: ours.lines().map(str::to_owned).collect(),
        requests: requests.collect(),
    }
}

/// Runs our tool with the arguments of the original.
fn replay(case: &Value, desk: &Desk, stub: &Stub) -> Record {
    let argv: Vec<_> = case["argv"].as_array().unwrap().iter().collect();
    let argv: Vec<_> = argv
        .iter()
        .map(|word| fill(word.as_str().unwrap(), desk))
        .collect();
    let mut tool = match argv[0].as_str() {
        "elastichosts.sh" => desk.tool(SIMPLE),
        "elastichosts-upload.sh" => {
            let tool = desk.tool(UPLOAD);
            let own = AS_THE_ORIGINAL.split(' ');
            // An option of the case itself has priority.
            let has_chunk = argv.iter().any(|word| word == "-c");
            tool.list(own.skip(if has_chunk { 2 } else { 0 }))
        }
        other => panic!("{other}"),
    };
    let mut auth = desk.auth();
    tool = tool.env("OHURI", stub.proxy.uri()).list(argv[1..].to_vec());
    for (name, value) in case["env"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap();
        let host = stub.proxy.uri().replace("http://", "").replace('/', "");
        let value = value.replace("HOST", &host);
        if name == "EHAUTH" {
            auth.clone_from(&value);
        }
        tool = tool.env(&name.replace("EH", "OH"), value);
    }
    tool = tool.env("OHAUTH", &auth);
    for name in case["unset"].as_array().into_iter().flatten() {
        tool = tool.unset(&name.as_str().unwrap().replace("EH", "OH"));
    }
    let stdin = case["stdin"].as_str().unwrap_or_default();
    let outcome = tool.input(stdin.as_bytes()).run();

    let header = basic(&auth);
    let (_, credentials) = header.trim().split_once(": ").unwrap();
    let requests = stub.proxy.requests();
    let asked = requests.iter().map(|r| {
        // The header is exactly this, whatever characters the key contains.
        assert_eq!(r.header("authorization"), Some(credentials));
        let is_write = r.path.contains("/write");
        let plain = r.plain();
        let body = (!is_write).then(|| without_token(&plain));
        Asked {
            method: r.method.clone(),
            path: r.path.clone(),
            content_type: r.header("content-type").map(str::to_owned),
            encoding: r.header("content-encoding").map(str::to_owned),
            accept: r.header("accept").map(str::to_owned),
            len: body.as_ref().map_or(plain.len(), String::len) as u64,
            body,
        }
    });
    Record {
        code: outcome.status.code().unwrap(),
        stdout: String::from_utf8(outcome.stdout.clone()).unwrap(),
        requests: asked.collect(),
        stderr: vec![outcome.stderr],
    }
}

/// Replaces the token, which is different each time.
fn without_token(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).unwrap();
    let Some((before, token)) = text.split_once("user:oh-token ") else {
        return text.to_owned();
    };
    assert!(token.len() == 33 && token.ends_with('\n'), "{token:?}");
    format!("{before}user:oh-token TOKEN\n")
}

/// Behaves like the server with which the originals were recorded.
struct Stub {
    proxy: FaultProxy,
    drives: Arc<Mutex<Drives>>,
}

#[derive(Default)]
struct Drives {
    /// Names and sizes of drives, by UUID.
    made: BTreeMap<String, (String, String)>,
    next: String,
}

impl Stub {
    fn new(desk: &Desk) -> Self {
        let drives: Arc<Mutex<Drives>> = Arc::default();
        let inside = Arc::clone(&drives);
        let auth = desk.auth();
        Self {
            proxy: FaultProxy::stub(move |request| {
                let header = basic(&auth);
                let (_, credentials) = header.trim().split_once(": ").unwrap();
                if request.header("authorization") != Some(credentials) {
                    return answer(401, &[], b"bad auth\n");
                }
                inside.lock().unwrap().answer(request)
            }),
            drives,
        }
    }

    /// Prepares the answers that were recorded in this case.
    fn prepare(&self, case: &Value, name: &str) {
        self.proxy.heal();
        self.proxy.forget();
        let stdout = case["stdout"].as_str().unwrap();
        if let Some(at) = stdout.find("<DRIVE-") {
            let n: u32 = stdout[at + 7..at + 8].parse().unwrap();
            self.drives.lock().unwrap().next = uuid(n);
        }
        for request in case["requests"].as_array().unwrap() {
            let path = fill_path(request["path"].as_str().unwrap());
            let fault = match request["stub_status"].as_u64() {
                None => Fault::ResetAfterBody,
                Some(status @ (402 | 409)) => Fault::Answer(answer(status as u16, &[], b"")),
                Some(_) => continue,
            };
            assert!(name.starts_with("upload"));
            self.proxy.fault(move |r| r.path == path, usize::MAX, fault);
        }
    }
}

fn fill_path(path: &str) -> String {
    (1..10).fold(path.to_owned(), |path, n| {
        path.replace(&format!("<DRIVE-{n}>"), &uuid(n))
    })
}

impl Drives {
    fn answer(&mut self, request: &Request) -> Vec<u8> {
        let json = request.header("accept") == Some("application/json");
        let words: Vec<_> = request.path.split('/').skip(1).collect();
        let text = |body: String| answer(200, &[], body.as_bytes());
        match words[..] {
            ["drives", "create"] => {
                let (name, size) = if json {
                    let object: Value = serde_json::from_slice(&request.body).unwrap();
                    assert_eq!(object["size"], "1M");
                    (string(&object["name"]).unwrap(), "1048576".to_owned())
                } else {
                    let value = |key: &str| {
                        let mut lines = request.text().lines();
                        let value = lines.find_map(|line| line.strip_prefix(key));
                        value.unwrap().to_owned()
                    };
                    (value("name "), value("size "))
                };
                let id = self.next.clone();
                self.made.insert(id.clone(), (name, size));
                text(self.show(&id, json))
            }
            ["drives", "list", ..] if json => {
                let each = self
                    .made
                    .keys()
                    .map(|id| format!("{{\"drive\": \"{id}\"}}"));
                text(format!("[{}]", each.collect::<Vec<_>>().join(", ")))
            }
            ["drives", "list", ..] => text(self.made.keys().map(|id| format!("{id}\n")).collect()),
            ["drives", "info"] => {
                let each = self.made.keys().map(|id| self.show(id, json));
                text(each.collect::<Vec<_>>().join("\n"))
            }
            ["drives", id, command, ..] if self.made.contains_key(id) => match command {
                "info" => text(self.show(id, json)),
                "write" | "set" => answer(204, &[], b""),
                "destroy" => {
                    self.made.remove(id);
                    answer(204, &[], b"")
                }
                _ => answer(404, &[], b"not found\n"),
            },
            _ => answer(404, &[], b"not found\n"),
        }
    }

    fn show(&self, id: &str, json: bool) -> String {
        let (name, size) = &self.made[id];
        if json {
            format!(
                "{{\"drive\": \"{id}\", \"encryption:cipher\": \"aes-xts-plain\", \"name\": \"{name}\", \"size\": {size}, \"status\": \"active\", \"user\": \"{USER}\"}}"
            )
        } else {
            format!(
                "drive {id}\nencryption:cipher aes-xts-plain\nname {name}\nsize {size}\nstatus active\nuser {USER}\n"
            )
        }
    }
}
