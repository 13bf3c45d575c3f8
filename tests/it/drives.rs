//! `openhosting ls`, `show` and `rm`, and names instead of UUIDs.

use crate::support::cli::{Desk, SIMPLE, Tool, has_terminals};
use crate::support::http::{Ask, assert_drive, create, drives};
use crate::support::noise;
use crate::support::proxy::{
    Fault, FaultProxy, Gate, Request, answer, claimed, claimed_by, refusal,
};
use crate::support::schema::object;
use crate::support::server::TestServer;

/// Creates a drive with these keys.
fn make(server: &TestServer, keys: &str) -> String {
    let made = Ask::of(server).post("/drives/create", keys.as_bytes());
    made.expect(200).key("drive").unwrap().to_owned()
}

fn own<'a>(desk: &'a Desk, uri: &str, words: &str) -> Tool<'a> {
    desk.simple(uri).args(words)
}

#[test]
fn on_a_terminal_an_age_is_shown_if_a_drive_has_one() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    let _ = make(&server, "name b\nsize 4096\n");
    let ls = || {
        let tool = desk.on_a_screen(80, "", SIMPLE).args("ls");
        tool.env("OHURI", &server.uri).run().code(0)
    };
    assert!(!ls().text().contains("AGE"));
    desk.file("a.img", &noise(1, 4096));
    let _ = own(&desk, &server.uri, "publish a.img -n c").run().code(0);
    assert!(ls().text().contains("AGE"));
}

#[test]
fn ls_and_show_describe_drives_and_publications() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    assert_eq!(
        own(&desk, uri, "ls").run().code(0).text(),
        "NAME  SIZE  STATE  AGE  UUID\n"
    );
    desk.file("a.img", &noise(1, 100_000));
    let publish = "publish a.img --name nightly --tag ci --readers all";
    let published = own(&desk, uri, publish)
        .run()
        .code(0)
        .text()
        .trim()
        .to_owned();
    let plain = make(&server, "name b\nsize 5368709120\nuser:mine x y\n");

    let table = own(&desk, uri, "ls").run().code(0);
    let lines: Vec<_> = table.text().lines().collect();
    assert_eq!(lines.len(), 3, "{table:?}");
    assert!(
        lines[1].starts_with("b        5.0 GiB  ready "),
        "{table:?}"
    );
    assert!(lines[1].ends_with(&plain[..8]) && lines[2].ends_with(&published[..8]));
    assert!(
        lines[2].starts_with("nightly   98 KiB  published "),
        "{table:?}"
    );
    let long = own(&desk, uri, "ls -l").run().code(0);
    let long = long.text().lines().last().unwrap().to_owned();
    assert!(long.ends_with(&published), "{long}");
    // The time, in UTC.
    let time = long.split_whitespace().rev().nth(1).unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{long}");

    let listed = own(&desk, uri, "ls --json").run().code(0);
    let listed = object("ls/1", &listed.stdout);
    // In the order of the server, not sorted by name.
    let drive = |uuid: &str| {
        let mut drives = listed["drives"].as_array().unwrap().iter();
        drives.find(|drive| drive["drive"] == *uuid).unwrap()
    };
    assert_eq!(drive(&plain)["publication"], serde_json::Value::Null);
    let of = drive(&published);
    assert_eq!(of["publication"]["state"], "published");
    assert_eq!(of["tags"], serde_json::json!(["ci"]));
    assert_eq!(of["size"], 100_000);

    for drive in [&*published, "nightly", "nightly~0", &published[..13]] {
        let shown = own(&desk, uri, "show").arg(drive).run().code(0);
        // Two tables: ours, and the keys of the API.
        let tables: Vec<_> = shown.text().split("\n\n").collect();
        assert_eq!(tables.len(), 2, "{shown:?}");
        for table in tables {
            let value_at = |line: &str| line.rfind("  ").map(|at| at + 2);
            let columns: Vec<_> = table.lines().map(value_at).collect();
            assert!(columns.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
        let line = |key: &str| {
            let mut lines = shown.text().lines();
            lines
                .find_map(|line| line.strip_prefix(key).map(str::trim))
                .map(str::to_owned)
        };
        assert_eq!(line("UUID").as_deref(), Some(&*published));
        assert_eq!(line("Size").as_deref(), Some("98 KiB (100000 bytes)"));
        assert_eq!(line("State").as_deref(), Some("published"));
        assert!(!shown.text().contains("user:oh-"), "{shown:?}");
        assert_eq!(line("tags").as_deref(), Some("ci"));
        let root = of["publication"]["root"].as_str().unwrap();
        assert_eq!(line("Root").as_deref(), Some(root));
        let shown = own(&desk, uri, "show --json").arg(drive).run().code(0);
        let shown = object("show/1", &shown.stdout);
        assert_eq!(shown["properties"]["user:oh-digest"], root);
        assert_eq!(shown["publication"], of["publication"]);
    }
    // The API call is unchanged.
    let mut listed = [plain, published];
    listed.sort();
    let mut lines: Vec<_> = own(&desk, uri, "drives list")
        .run()
        .code(0)
        .text()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, listed);
}

#[test]
fn drives_of_one_name_are_listed_newest_first_as_name_n_counts_them() {
    let desk = Desk::new();
    let server = desk.server();
    let plain = make(&server, "name n\nsize 4096\n");
    let publish = |at: u32| {
        let keys = "user:oh-publish t\nuser:oh-state published\nuser:oh-published";
        make(&server, &format!("name n\nsize 4096\n{keys} {at}000\n"))
    };
    let times = [30, 10, 50, 20, 40, 20, 60];
    let mut made: Vec<_> = times.map(|at| (at, publish(at))).into();
    // Equal times are sorted by UUID.
    made.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let expected: Vec<_> = made.into_iter().map(|(_, drive)| drive).collect();
    let listed = own(&desk, &server.uri, "ls -l").run().code(0);
    let lines = listed.text().lines().skip(1);
    let mut listed: Vec<_> = lines
        .map(|line| line.split(' ').next_back().unwrap().to_owned())
        .collect();
    assert_eq!(listed.pop(), Some(plain));
    assert_eq!(listed, expected);
    for (n, drive) in expected.iter().enumerate() {
        let shown = own(&desk, &server.uri, &format!("show n~{n}")).run();
        assert!(shown.code(0).text().contains(drive), "n~{n}");
    }
    // The error about an ambiguous name has the same order.
    let refused = own(&desk, &server.uri, "rm --yes n").run().code(2);
    let at: Vec<_> = expected.iter().map(|id| refused.stderr.find(id)).collect();
    assert!(at.is_sorted() && at[0].is_some(), "{refused:?}");
}

#[test]
fn a_name_of_several_drives_is_an_error_that_lists_them() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &noise(1, 1000));
    let two = [1, 2].map(|_| make(&server, "name twice\nsize 1000\n"));
    let words = [
        "show twice",
        "rm --yes twice",
        "rm --yes nosuch twice",
        "show nosuch",
    ];
    for words in words {
        let outcome = own(&desk, &proxy.uri(), words).run();
        match words.contains("nosuch") {
            true => drop(outcome.code(1).says("No drive has the name \"nosuch\"")),
            false => {
                let outcome = outcome
                    .code(2)
                    .says("2 drives are named \"twice\"")
                    .says("Use a UUID:\n");
                for drive in &two {
                    let line = format!("\n  {drive}  1000 B  ready\n");
                    assert!(outcome.stderr.contains(&line), "{outcome:?}");
                }
            }
        }
    }
    let tools = [
        desk.upload(&proxy.uri()).args("-d twice a.img"),
        desk.upload(&proxy.uri())
            .args("--resume-from-drive twice a.img"),
        desk.download(&proxy.uri()).args("twice b.img"),
    ];
    for tool in tools {
        let _ = tool.run().code(2).says("2 drives are named \"twice\"");
    }
    assert!(!desk.path("b.img").exists());
    assert_eq!(proxy.count(Request::is_write), 0);
    assert_eq!(drives(&server).len(), 2);
}

#[test]
fn a_name_of_published_drives_means_the_newest_for_reading() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let uri = &proxy.uri();
    let publish = |seed| {
        desk.file("a.img", &noise(seed, 100_000));
        let publish = "publish a.img --name nightly --keep 3";
        let published = own(&desk, uri, publish).run().code(0);
        published.text().trim().to_owned()
    };
    let [old, new] = [publish(1), publish(2)];
    let download = |drive: &str, file: &str| {
        let tool = desk.download(uri).arg(drive).arg(file);
        let _ = tool.run().code(0);
        std::fs::read(desk.path(file)).unwrap()
    };
    assert!(download("nightly", "new.img") == noise(2, 100_000));
    assert!(download("nightly~1", "old.img") == noise(1, 100_000));
    assert!(download(&old[..18], "old2.img") == noise(1, 100_000));
    let writes = proxy.count(Request::is_write);
    for refused in [
        own(&desk, uri, "rm --yes nightly"),
        desk.upload(uri).args("-d nightly a.img"),
    ] {
        let refused = refused.run().code(2);
        let refused = refused.says("2 drives are named \"nightly\"");
        // The newest first, with size and time.
        let at = |id: &str| refused.stderr.find(id).unwrap();
        assert!(at(&new) < at(&old), "{}", refused.stderr);
        let _ = refused.says("98 KiB  published ");
    }
    let missing = own(&desk, uri, "show nightly~2").run().code(1);
    let _ = missing.says("There is no nightly~2");
    assert_eq!(proxy.count(Request::is_write), writes);
    let done = own(&desk, uri, "rm --yes nightly~1").run().code(0);
    assert_eq!(done.text(), format!("Removed {old} nightly\n"));
    assert_eq!(drives(&server), [&*new]);
}

#[test]
fn the_tools_take_names() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(2, 200_000);
    desk.file("a.img", &image);
    let drive = make(&server, "name my drive\nsize 200000\n");
    let upload = || desk.upload(&server.uri).arg("a.img");
    let outcome = upload().arg("-d").arg("my drive").run().code(0);
    let first = outcome.text().lines().next();
    assert_eq!(first, Some(&*format!("Using existing drive {drive}")));
    assert_drive(&server, &drive, &image);
    let again = upload().arg("--resume-from-drive").arg("my drive");
    let _ = again.run().code(0);
    let download = desk.download(&server.uri).arg("my drive").arg("b.img");
    let outcome = download.arg("--progress").arg("json").run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    // The progress names the drive that was selected.
    let last = outcome.stderr.lines().last().unwrap();
    let end: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(end["drive"], *drive);
    let publish = "publish a.img --name n --receipt r.json";
    let _ = own(&desk, &server.uri, publish).run().code(0);
    let verify = own(&desk, &server.uri, "verify r.json -d");
    let _ = verify.arg("my drive").run().code(0);
    // A drive that differs may be fine: the receipt is not its own.
    let other = make(&server, &format!("name other\nsize {}\n", image.len()));
    let verify = own(&desk, &server.uri, "verify r.json -d other");
    let differs = verify.run().code(4).says(&other);
    let differs = differs.says("was not published, so it has no receipt");
    assert!(!differs.stderr.contains("Do not use"), "{differs:?}");
}

#[test]
fn rm_removes_what_is_named_and_nothing_else() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let uri = &proxy.uri();
    let a = make(&server, "name a\nsize 1000\n");
    let b = make(&server, "name b\nsize 1000\n");
    let c = make(&server, "name c\nsize 1000\n");
    // Without a terminal for the question, nothing is done.
    let refused = own(&desk, uri, "rm a").run().code(2);
    let refused = refused.says("Nothing is removed: there is no terminal to ask on");
    let _ = refused.says("--yes");
    assert_eq!(drives(&server).len(), 3);
    // The same drive given twice counts once; each drive is reported.
    let done = own(&desk, uri, "rm --yes a b").arg(&a).run().code(0);
    assert_eq!(done.text(), format!("Removed {a} a\nRemoved {b} b\n"));
    assert_eq!(drives(&server), [&*c]);
    let gone = own(&desk, uri, "rm --yes").arg(&a).run().code(1);
    let _ = gone.says("404 missing");
}

#[test]
fn rm_destroys_all_but_drives_in_use() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let uri = &proxy.uri();
    let a = make(&server, "name a\nsize 1000\n");
    let b = make(&server, "name b\nsize 1000\n");
    let path = format!("/drives/{a}/info");
    proxy.fault(move |r| r.path == path, 99, claimed());
    let done = own(&desk, uri, "rm --yes --json a b").run().code(1);
    let report = object("rm/1", &done.stdout);
    assert_eq!(report["drives"][0]["removed"], false);
    assert_eq!(report["drives"][0]["error"]["kind"], "conflict");
    assert_eq!(report["drives"][1]["removed"], true);
    assert_eq!(report["error"]["exit_code"], 1);
    let done = done.says(&format!("Drive {a} is claimed by 2:guest:a:ide:0:0"));
    let _ = done.says("Stop the server that uses it");
    assert_eq!(drives(&server), [&*a]);
    // A drive that is claimed between the check and the request: the endpoint decides.
    proxy.heal();
    let path = format!("/drives/{a}/destroy");
    proxy.fault(
        move |r| r.path == path,
        99,
        Fault::Answer(refusal(409, "busy")),
    );
    let done = own(&desk, uri, "rm --yes a").run().code(1);
    let _ = done.says("409 busy");
    assert_eq!(drives(&server), [&*a]);
    let _ = b;
}

#[test]
fn a_stopped_rm_reports_the_signal_for_each_drive_that_is_left() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let a = make(&server, "name a\nsize 1000\n");
    let b = make(&server, "name b\nsize 1000\n");
    let gate = Gate::default();
    let destroy = format!("/drives/{a}/destroy");
    let path = destroy.clone();
    proxy.fault(move |r| r.path == path, 1, Fault::Hold(gate.clone()));
    let remove = own(&desk, &proxy.uri(), "rm --yes --json a b").spawn();
    proxy.wait_for("the first removal", |requests| {
        requests.iter().any(|r| r.path == destroy)
    });
    remove.signal("TERM");
    remove.wait_stderr("finishing the requests in flight");
    gate.open();
    let done = remove.wait().code(143);
    let report = object("rm/1", &done.stdout);
    assert_eq!(report["drives"][0]["removed"], true);
    for error in [&report["drives"][1]["error"], &report["error"]] {
        assert_eq!(error["kind"], "cancelled");
        assert_eq!(error["exit_code"], 143);
    }
    assert_eq!(drives(&server), [&*b]);
}

#[test]
fn a_removal_whose_answer_is_lost_succeeds() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let a = make(&server, "name a\nsize 1000\n");
    let path = format!("/drives/{a}/destroy");
    proxy.fault(move |r| r.path == path, 1, Fault::LoseAnswer);
    let done = own(&desk, &proxy.uri(), "rm --yes a").run().code(0);
    assert_eq!(done.text(), format!("Removed {a} a\n"));
    assert!(drives(&server).is_empty());
}

#[test]
fn rm_asks_first_on_a_terminal() {
    let desk = Desk::new();
    if !has_terminals() {
        return;
    }
    let server = desk.server();
    let drive = create(&server, 1000);
    let ask = |typed: &str| {
        let tool = desk.on_a_terminal(typed, SIMPLE).arg("rm").arg(&drive);
        tool.env("OHURI", &server.uri).run()
    };
    for no in ["\n", "n\n", "x\n"] {
        let left = ask(no).code(1);
        assert!(left.text().contains(&drive), "{left:?}");
        assert!(
            left.text()
                .contains("Destroy this drive and all that is on it? [y/N]")
        );
        assert!(left.text().contains("the answer was not yes"), "{left:?}");
    }
    // Ctrl-C does not count as an answer.
    assert!(!ask("\x03").status.success());
    assert_eq!(drives(&server).len(), 1);
    let done = ask("y\n").code(0);
    assert!(
        done.text().contains(&format!("Removed {drive}")),
        "{done:?}"
    );
    assert!(drives(&server).is_empty());
}

#[test]
fn a_drive_in_use_is_refused_with_the_command_that_shuts_its_server_down() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &[1; 1000]);
    let drive = make(&server, "name a\nsize 1000\n");
    let machine = uuid::Uuid::new_v4();
    let info = format!("/drives/{drive}/info");
    let claim = format!("{}:guest:{machine}:ide:0:0", desk.user);
    proxy.fault(move |r| r.path == info, 99, claimed_by(&claim));
    let path = format!("/servers/{machine}/info");
    let text = format!("server {machine}\nname Linux2\n");
    let named = Fault::Answer(answer(200, &["Content-Type: text/plain"], text.as_bytes()));
    proxy.fault(move |r| r.path == path, 99, named);
    let commands = [
        format!("rm --yes {drive}"),
        format!("upload -d {drive} a.img"),
        format!("download {drive} out"),
    ];
    for command in &commands {
        let done = own(&desk, &proxy.uri(), command).run().code(1);
        let done = done.says(&format!("Drive {drive} is in use by server Linux2\n"));
        let shutdown = format!("Shut it down first: openhosting servers {machine} shutdown");
        let _ = done.says(&shutdown);
    }
    // The question names the server too.
    if has_terminals() {
        let full = format!("/drives/{drive}/info/full");
        proxy.fault(move |r| r.path == full, 99, claimed_by(&claim));
        let ask = desk
            .on_a_terminal("n\n", SIMPLE)
            .args(&format!("rm {drive}"));
        let asked = ask.env("OHURI", proxy.uri()).run().code(1);
        assert!(
            asked.text().contains("a, 1000 B, in use by Linux2"),
            "{asked:?}"
        );
        assert!(!asked.text().contains(":guest:"), "{asked:?}");
    }
    // Without its name it is its UUID.
    proxy.heal();
    let info = format!("/drives/{drive}/info");
    proxy.fault(move |r| r.path == info, 99, claimed_by(&claim));
    let done = own(&desk, &proxy.uri(), &commands[0]).run().code(1);
    let _ = done.says(&format!("is in use by server {machine}\n"));
}

/// The state of the first drive in the table, and the word for programs.
fn state(desk: &Desk, uri: &str) -> (String, String) {
    let table = own(desk, uri, "ls").run().code(0);
    let line = table.text().lines().nth(1).unwrap().to_owned();
    let drive = line.rsplit(' ').next().unwrap();
    let shown = own(desk, uri, "show").arg(drive).run().code(0);
    let words = shown
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("State  "))
        .unwrap()
        .trim()
        .to_owned();
    assert!(line.contains(&format!("  {words}  ")), "{line}");
    let listed = own(desk, uri, "ls --json").run().code(0);
    let state = object("ls/1", &listed.stdout)["drives"][0]["state"].clone();
    (words, state.as_str().unwrap().to_owned())
}

#[test]
fn a_drive_is_uploading_then_unfinished_then_ready() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let uri = &server.uri;
    desk.file("a.img", &noise(1, 300_000));
    desk.file("b.img", &noise(2, 300_000));
    let gate = Gate::default();
    proxy.fault_after(1, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    let upload = own(&desk, &proxy.uri(), "upload -c 65536 -j 1 a.img").spawn();
    proxy.wait_for("the second write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() == 2
    });
    assert_eq!(state(&desk, uri), ("uploading".into(), "uploading".into()));
    upload.signal("INT");
    upload.wait_stderr("finishing the requests in flight");
    gate.open();
    let _ = upload.wait().code(130);
    assert_eq!(
        state(&desk, uri),
        ("unfinished".into(), "unfinished".into())
    );
    // Another upload replaces all of it, so the journal of the first one describes nothing.
    assert_eq!(desk.journals().len(), 1);
    let drive = drives(&server).remove(0);
    let over = own(&desk, uri, "upload b.img -d").arg(&drive);
    let _ = over.run().code(0);
    assert_eq!(state(&desk, uri), ("ready".into(), "ready".into()));
    assert!(desk.journals().is_empty());
}

#[test]
fn show_prints_the_command_that_resumes_an_upload() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    let image = noise(1, 1 << 20);
    desk.file("a.img", &image);
    let stopped = "upload -c 65536 --limit-rate 40K --deadline 1s a.img";
    let _ = own(&desk, uri, stopped).run().code(75);
    let shown = own(&desk, uri, "show a.img").run().code(0);
    let mut lines = shown.text().lines();
    let command = lines.find_map(|line| line.strip_prefix("Resume "));
    let command = command.unwrap().trim().strip_prefix("openhosting ");
    let command = command.unwrap().replace("IMAGE", "a.img");
    let resumed = own(&desk, uri, &command).run().code(0);
    let _ = resumed.says("Resuming: ");
    let drive = drives(&server).remove(0);
    assert_drive(&server, &drive, &image);
    assert!(desk.journals().is_empty());
    let shown = own(&desk, uri, "show a.img").run().code(0);
    assert!(!shown.text().contains("Resume"), "{shown:?}");
    // The same server by another name.
    let _ = own(&desk, uri, &stopped.replace("a.img", "-n b a.img"))
        .run()
        .code(75);
    let proxy = FaultProxy::to(&server);
    let shown = own(&desk, &proxy.uri(), "show b").run().code(0);
    let command = "openhosting upload --resume-from-drive ";
    assert!(shown.text().contains(command), "{shown:?}");
}

#[test]
fn a_drive_with_wrong_bytes_is_not_ready_until_it_is_written_again() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    desk.file("a.img", &noise(1, 300_000));
    let wrong = format!("upload a.img --sha256 {}", "0".repeat(64));
    let _ = own(&desk, uri, &wrong)
        .run()
        .code(4)
        .says("must not be used");
    assert_eq!(
        state(&desk, uri),
        ("do not use: check failed".into(), "check_failed".into())
    );
    let drive = drives(&server).remove(0);
    let again = own(&desk, uri, "upload a.img -d").arg(&drive);
    let _ = again.run().code(0);
    assert_eq!(state(&desk, uri), ("ready".into(), "ready".into()));
}

#[test]
fn a_second_drive_of_the_same_name_is_reported() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    desk.file("a.img", &noise(1, 102_400));
    let upload = || own(&desk, uri, "upload a.img").run().code(0);
    let first = upload();
    assert!(!first.stderr.contains("already"), "{}", first.stderr);
    let first = first.created();
    let second = upload().says("openhosting upload: note: Drive ");
    let _ = second.says(&format!("{first}, 100 KiB, already has the name \"a.img\""));
    let _ = upload().says("2 drives already have the name \"a.img\"");
    // In the place of the provider's script there are no new lines.
    let script = desk.upload(uri).arg("a.img").run().code(0);
    assert_eq!(script.stderr, "");
    let published = own(&desk, uri, "publish -n b a.img").run().code(0);
    let published = published.text().trim().to_owned();
    let third = own(&desk, uri, "upload -n b a.img").run().code(0);
    let third = third.says(&format!("Drive {published}, published "));
    let _ = third.says(" ago, already has the name \"b\"");
}

#[test]
fn a_name_that_also_means_an_earlier_drive_is_never_guessed() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    desk.file("a.img", &noise(1, 100_000));
    let mut all: Vec<_> = (0..2)
        .map(|number| {
            desk.file("a.img", &noise(number, 100_000));
            let publish = own(&desk, uri, "publish -n n --base none a.img");
            publish.run().code(0).text().trim().to_owned()
        })
        .collect();
    let other = make(&server, "name n~1\nsize 1000\n");
    for command in ["rm --yes n~1", "show n~1", "download n~1 out"] {
        let refused = own(&desk, uri, command).run().code(2);
        let refused = refused.says("\"n~1\" is the name of a drive and also means an earlier one");
        let _ = refused.says(&other).says(&all[0]);
    }
    all.push(other.clone());
    all.sort();
    let mut left = drives(&server);
    left.sort();
    assert_eq!(left, all);
    let _ = own(&desk, uri, "rm --yes n~0").run().code(0);
    assert!(drives(&server).contains(&other));
    for command in ["upload -n x~1 a.img", "publish -n x~1 a.img"] {
        let refused = own(&desk, uri, command).run().code(2);
        let _ = refused.says("NAME~N means an earlier drive");
    }
}

#[test]
fn ls_with_all_columns_fits_a_terminal() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    let drive = make(
        &server,
        "name a rather long name of a drive\nsize 5368709120\n",
    );
    let tool = desk.on_a_screen(80, "", SIMPLE).args("ls -l");
    let shown = tool.env("OHURI", &server.uri).run().code(0);
    let text = shown.text().replace("\r\n", "\n");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    assert!(text.contains(&format!("UUID:    {drive}\n")), "{text}");
    let piped = own(&desk, &server.uri, "ls -l").run().code(0);
    assert_eq!(piped.text().lines().count(), 2);
}

#[test]
fn an_upload_over_a_published_drive_ends_its_publication() {
    let desk = Desk::new();
    let server = desk.server();
    let uri = &server.uri;
    desk.file("a.img", &noise(1, 100_000));
    let b = desk.file("b.img", &noise(2, 50_000));
    let publish = own(&desk, uri, "publish a.img --name nightly")
        .run()
        .code(0);
    let drive = publish.text().trim().to_owned();
    let over = own(&desk, uri, "upload b.img -d").arg(&drive).run().code(0);
    let _ = over.says(&format!("Drive {drive} was published as \"nightly\""));
    let shown = own(&desk, uri, "show --json nightly").run().code(0);
    let shown = object("show/1", &shown.stdout);
    assert_eq!(
        (&shown["state"], &shown["publication"]),
        (&"ready".into(), &serde_json::Value::Null)
    );
    // The same image again is not taken for published, and the user's drive stays.
    let again = own(&desk, uri, "publish a.img --name nightly --keep 1")
        .run()
        .code(0);
    assert_ne!(again.text().trim(), drive);
    assert_eq!(drives(&server).len(), 2);

    // Behind a shorter image the drive keeps its bytes, which the user learns.
    let over = own(&desk, uri, "upload b.img -d").arg(&drive).run().code(0);
    let _ = over.says("has 98 KiB (100000 bytes) and the image 49 KiB (50000 bytes): the rest of the drive stays as it is");
    let mut holds = noise(1, 100_000);
    holds[..50_000].copy_from_slice(&std::fs::read(b).unwrap());
    assert_drive(&server, &drive, &holds);
}

#[test]
fn after_rm_the_upload_of_that_drive_begins_anew() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &noise(1, 200_000));
    let words = "upload a.img -c 65536 -j 1 --verify none";
    let is_second = |request: &Request| request.is_write() && request.offset() == 65536;
    proxy.fault(is_second, 99, Fault::Answer(refusal(401, "auth")));
    let _ = own(&desk, &proxy.uri(), words).run();
    proxy.heal();
    assert_eq!((desk.journals().len(), drives(&server).len()), (1, 1));
    let _ = own(&desk, &server.uri, "rm --yes a.img").run().code(0);
    assert_eq!((desk.journals().len(), drives(&server).len()), (0, 0));
    let _ = own(&desk, &proxy.uri(), words).run().code(0);
    assert_eq!(drives(&server).len(), 1);
}
