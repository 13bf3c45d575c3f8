//! The mark on a drive that an upload to it has not ended, as other machines see it.

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::http::{Ask, assert_drive, create, drives, info};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, refusal};
use crate::support::schema::object;
use crate::support::server::TestServer;

const SIZE: usize = 300_000;
const STILL_RUNS: &str = "If it still runs on another machine, stop it";
const ELSEWHERE: &str = "has not ended, and another machine may still work on it";

/// A server, a proxy, and an image of five chunks.
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
        let image = noise(1, SIZE);
        desk.file("a.img", &image);
        Self {
            desk,
            server,
            proxy,
            image,
        }
    }

    fn upload(&self, args: &str) -> Tool<'_> {
        let tool = self.desk.simple(&self.proxy.uri());
        tool.args("upload -c 65536 -j 1 a.img").args(args)
    }

    /// A command on another machine, which has no journals of this one.
    fn elsewhere(&self, words: &str) -> Tool<'_> {
        let tool = self.desk.simple(&self.server.uri).args(words);
        tool.env("XDG_STATE_HOME", self.desk.path("elsewhere"))
    }

    /// As [`elsewhere`](Self::elsewhere), through a proxy of its own.
    fn second(&self, proxy: &FaultProxy, drive: &str) -> Tool<'_> {
        self.desk.file("b.img", &noise(2, SIZE));
        let words = format!("upload -c 65536 -j 1 b.img -d {drive} --verify none");
        self.elsewhere(&words).env("OHURI", proxy.uri())
    }

    /// The program of the old script.
    fn script(&self, args: &str) -> Tool<'_> {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 65536 -j 1").args(args)
    }

    /// The drive and the offset that the program of the old script names, after two chunks.
    fn fail_at_the_third_chunk(&self, flags: &str) -> (String, u64) {
        let fault = Fault::Answer(refusal(400, "usage"));
        self.proxy
            .fault_after(2, Request::is_write, usize::MAX, fault);
        let failed = self.script(&format!("{flags} a.img")).run().code(1);
        self.proxy.heal();
        let (drive, offset) = failed.hint();
        assert!(offset > 0);
        (drive, offset)
    }

    /// Kills an upload with `kill -9` when its second chunk is on the way.
    fn kill_half_way(&self, args: &str) {
        let gate = Gate::default();
        let hold = Fault::Hold(gate.clone());
        self.proxy
            .fault_after(1, Request::is_write, usize::MAX, hold);
        let upload = self.upload(args).spawn();
        self.proxy.wait_for("the second write", |requests| {
            requests.iter().filter(|r| r.is_write()).count() >= 2
        });
        let _ = upload.kill9();
        gate.open();
        self.proxy.heal();
        self.proxy.settle();
        self.proxy.forget();
    }

    /// The only drive.
    fn drive(&self) -> String {
        let drives = drives(&self.server);
        assert_eq!(drives.len(), 1, "{drives:?}");
        drives[0].clone()
    }

    /// The state that every list of another machine shows, and the lines of `show`.
    #[track_caller]
    fn seen(&self) -> (String, String) {
        let drive = self.drive();
        let shown = self.elsewhere("show").arg(&drive).run().code(0);
        let shown = shown.text().to_owned();
        let mut lines = shown.lines();
        let state = lines.find_map(|line| line.strip_prefix("State "));
        let state = state.unwrap().trim().to_owned();
        let table = self.elsewhere("ls").run().code(0);
        assert!(table.text().contains(&format!("  {state}  ")), "{table:?}");
        for command in ["ls --json", "show --json"] {
            let json = self.elsewhere(command);
            let json = match command {
                "ls --json" => object("ls/1", &json.run().code(0).stdout)["drives"][0].clone(),
                _ => object("show/1", &json.arg(&drive).run().code(0).stdout),
            };
            assert_eq!(json["state"], *state, "{command}");
            assert_eq!(json["publication"], serde_json::Value::Null);
        }
        (state, shown)
    }

    #[track_caller]
    fn is_seen(&self, state: &str) {
        assert_eq!(self.seen().0, state);
    }

    #[track_caller]
    fn is_not_to_be_used(&self) {
        let table = self.elsewhere("ls").run().code(0);
        assert!(
            table.text().contains("do not use: check failed"),
            "{table:?}"
        );
    }

    /// Checks that the drive holds the image and is ready on every machine.
    #[track_caller]
    fn is_ready(&self) {
        let (state, shown) = self.seen();
        assert_eq!(state, "ready");
        assert!(!shown.contains("has not ended"), "{shown}");
        assert_drive(&self.server, &self.drive(), &self.image);
        let here = self.desk.simple(&self.server.uri).args("ls --json").run();
        let here = object("ls/1", &here.code(0).stdout)["drives"][0].clone();
        assert_eq!(here["state"], "ready");
    }

    fn state_key(&self) -> Option<String> {
        info(&self.server, &self.drive(), "user:oh-state")
    }
}

fn is_set(request: &Request) -> bool {
    request.path.ends_with("/set")
}

/// The last line of stderr, which is the command that continues.
fn last_line(outcome: &Outcome) -> &str {
    outcome.stderr.lines().last().unwrap()
}

#[test]
fn a_half_done_upload_is_unfinished_on_every_machine_until_it_ends() {
    let scene = Scene::new();
    scene.kill_half_way("");
    let drive = scene.drive();
    let (state, shown) = scene.seen();
    assert_eq!(state, "unfinished");
    let hint = "has not ended; another machine may still work on it\n";
    assert!(shown.contains(hint), "{shown}");
    // This machine knows what it is.
    let here = scene.desk.simple(&scene.server.uri).arg("show").arg(&drive);
    let here = here.run().code(0);
    assert!(!here.text().contains("another machine"), "{here:?}");
    // The same command goes on, and ends the mark.
    let done = scene.upload("").run().code(0);
    let _ = done.says("Resuming");
    assert_eq!(scene.proxy.count(Request::is_create), 0);
    assert_eq!(scene.proxy.count(is_set), 1);
    scene.is_ready();
    assert_eq!(scene.state_key().as_deref(), Some("ready"));
}

#[test]
fn a_running_upload_is_uploading_here_and_unfinished_elsewhere() {
    let scene = Scene::new();
    let gate = Gate::default();
    let hold = Fault::Hold(gate.clone());
    scene
        .proxy
        .fault_after(1, Request::is_write, usize::MAX, hold);
    let upload = scene.upload("").spawn();
    scene.proxy.wait_for("the second write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() >= 2
    });
    scene.is_seen("unfinished");
    let here = scene.desk.simple(&scene.server.uri).args("ls --json").run();
    let here = object("ls/1", &here.code(0).stdout)["drives"][0].clone();
    assert_eq!(here["state"], "uploading");
    gate.open();
    let _ = upload.wait().code(0);
    scene.is_ready();
}

#[test]
fn who_reads_an_unfinished_drive_is_warned_in_one_line() {
    let scene = Scene::new();
    let publish = "publish a.img --name n --receipt r.json";
    let _ = scene.elsewhere(publish).run().code(0);
    let published = scene.drive();
    scene.kill_half_way("");
    let all = drives(&scene.server);
    let drive = all.iter().find(|drive| **drive != published).unwrap();
    let count = |outcome: &Outcome| {
        let lines = outcome.stderr.lines();
        lines
            .filter(|line| line.contains("parts of the disk may be missing"))
            .count()
    };
    for (words, code) in [
        (format!("download {drive} b.img"), 0),
        (format!("download --shard 1/1 {drive} c.img"), 0),
        (format!("download --join 1 {drive} c.img"), 0),
        (format!("verify r.json -d {drive}"), 4),
    ] {
        let outcome = scene.elsewhere(&words).run().code(code);
        let outcome = outcome.says(&format!("An upload to drive {drive} {ELSEWHERE}"));
        assert_eq!(count(&outcome), 1, "{words}: {outcome:?}");
    }
    // This machine knows more, and says it once.
    for (words, code) in [
        (format!("download {drive} d.img"), 0),
        (format!("verify r.json -d {drive}"), 4),
    ] {
        let outcome = scene.desk.simple(&scene.server.uri).args(&words).run();
        let outcome = outcome.code(code).says("An upload from this machine");
        assert_eq!(count(&outcome), 1, "{words}: {outcome:?}");
    }
    // The program of the old script prints to stdout what the script printed.
    let tool = scene.desk.download(&scene.server.uri).arg(drive);
    let tool = tool.env("XDG_STATE_HOME", scene.desk.path("elsewhere"));
    let outcome = tool.arg("e.img").run().code(0).says(ELSEWHERE);
    assert!(outcome.text().starts_with("Downloading "), "{outcome:?}");
    assert_eq!(outcome.text().lines().count(), 1, "{outcome:?}");
    // A drive that is complete needs no warning.
    let outcome = scene.elsewhere("verify r.json").run().code(0);
    assert_eq!(count(&outcome), 0, "{outcome:?}");
}

/// The warning about a drive whose check failed, as often as it is printed.
fn check_warnings(outcome: &Outcome, drive: &str) -> usize {
    let warning = format!("Do not use drive {drive}: the check of an upload to it failed");
    outcome.stderr.matches(&warning).count()
}

#[test]
fn who_reads_a_drive_whose_check_failed_is_warned_of_that_alone() {
    let scene = Scene::new();
    let publish = scene.elsewhere("publish a.img --name n --receipt r.json");
    let published = publish.run().code(0).text().trim().to_owned();
    let wrong = format!("--sha256 {}", "0".repeat(64));
    let _ = scene.upload(&wrong).run().code(4).says("must not be used");
    let all = drives(&scene.server);
    let bad = all.iter().find(|drive| **drive != published).unwrap();
    // Of the other, the mark of the upload has ended as well.
    let ended = create(&scene.server, SIZE as u64);
    let path = format!("/drives/{ended}/set");
    let failed = "user:oh-state ready\nuser:oh-check failed";
    let _ = Ask::of(&scene.server).post(&path, failed).expect(200);
    for (i, drive) in [bad, &ended].into_iter().enumerate() {
        let verified = if i == 0 { 0 } else { 4 };
        for (words, code) in [
            (format!("download {drive} b{i}.img"), 0),
            (format!("download --shard 1/1 {drive} c{i}.img"), 0),
            (format!("download --join 1 {drive} c{i}.img"), 0),
            (format!("verify r.json -d {drive}"), verified),
        ] {
            let outcome = scene.elsewhere(&words).run().code(code);
            assert_eq!(check_warnings(&outcome, drive), 1, "{words}: {outcome:?}");
            assert!(!outcome.stderr.contains("has not ended"), "{outcome:?}");
        }
        let base = format!("publish a.img --name m{i} --base {drive}");
        let outcome = scene.elsewhere(&base).run().code(0);
        let _ = outcome.says(&format!(
            "Base {drive} must not be used: the check of an upload to it failed: everything is sent"
        ));
        let shown = scene.elsewhere(&format!("show {drive}")).run().code(0);
        assert!(
            shown.text().contains("do not use: check failed"),
            "{shown:?}"
        );
        assert!(!shown.text().contains("has not ended"), "{shown:?}");
    }
}

#[test]
fn quiet_leaves_no_warning_out() {
    let scene = Scene::new();
    let publish = "publish a.img --name n --receipt r.json -q";
    let published = scene.elsewhere(publish).run().code(0);
    assert_eq!(published.stderr, "");
    scene.kill_half_way("");
    let all = drives(&scene.server);
    let is_other = |drive: &&String| published.text().trim() != **drive;
    let drive = all.iter().find(is_other).unwrap();
    let tool = scene.desk.download(&scene.server.uri).arg(drive);
    let tool = tool.env("XDG_STATE_HOME", scene.desk.path("elsewhere"));
    for (tool, code) in [
        (tool.args("-q e.img"), 0),
        (scene.elsewhere(&format!("download -q {drive} b.img")), 0),
        (scene.elsewhere(&format!("download -q {drive} -")), 0),
        (scene.elsewhere(&format!("verify -q r.json -d {drive}")), 4),
    ] {
        let outcome = tool.run().code(code);
        assert!(outcome.stderr.contains(ELSEWHERE), "{outcome:?}");
        assert!(
            code != 0 || outcome.stderr.lines().count() == 1,
            "{outcome:?}"
        );
    }
    // For programs, the warning is in the object too.
    for (words, schema, code) in [
        (format!("download -q --json {drive} c.img"), "download/1", 0),
        (format!("verify --json r.json -d {drive}"), "verify/1", 4),
    ] {
        let outcome = scene.elsewhere(&words).run().code(code).says(ELSEWHERE);
        let warnings = &object(schema, &outcome.stdout)["warnings"];
        assert_eq!(warnings.as_array().unwrap().len(), 1, "{outcome:?}");
        assert!(warnings[0].as_str().unwrap().contains(ELSEWHERE));
    }
    // Of an upload as well.
    let smaller = format!("upload -q --json -d {} small.img", published.text().trim());
    scene.desk.file("small.img", &scene.image[..65536]);
    let outcome = scene.elsewhere(&smaller).run().code(0);
    let outcome = outcome.says("was published as");
    let warnings = &object("upload/1", &outcome.stdout)["warnings"];
    assert_eq!(warnings.as_array().unwrap().len(), 1, "{warnings}");
}

#[test]
fn another_upload_takes_over_the_mark() {
    for flags in [
        "upload a.img --resume-from-drive",
        "upload a.img --no-journal -d",
    ] {
        let scene = Scene::new();
        scene.kill_half_way("");
        let drive = scene.drive();
        let outcome = scene.elsewhere(flags).arg(&drive).run().code(0);
        // Who compares with the drive knows that there was another upload.
        let is_warned = outcome.stderr.contains(STILL_RUNS);
        assert_eq!(is_warned, flags.ends_with("-d"), "{outcome:?}");
        assert_eq!(scene.state_key().as_deref(), Some("ready"), "{flags}");
        scene.is_seen("ready");
    }
    // It can be removed as any drive.
    let scene = Scene::new();
    scene.kill_half_way("");
    let drive = scene.drive();
    let _ = scene.elsewhere("rm --yes").arg(&drive).run().code(0);
    assert!(drives(&scene.server).is_empty());
}

#[test]
fn the_offset_that_the_old_script_names_ends_the_mark() {
    for flags in ["--no-journal", ""] {
        let scene = Scene::new();
        let (drive, offset) = scene.fail_at_the_third_chunk(flags);
        scene.is_seen("unfinished");
        let rest = format!("{flags} -d {drive} -o {offset} a.img");
        let _ = scene.script(&rest).run().code(0);
        scene.is_ready();
    }
}

#[test]
fn an_offset_that_leaves_a_gap_or_another_image_does_not_complete_an_upload() {
    for (image, further) in [("a.img", 65536), ("b.img", 0)] {
        let scene = Scene::new();
        scene.desk.file("b.img", &noise(2, SIZE));
        let (drive, offset) = scene.fail_at_the_third_chunk("");
        let rest = format!("-d {drive} -o {} {image}", offset + further);
        let _ = scene.script(&rest).run().code(0);
        let here = scene.desk.simple(&scene.server.uri).args("ls --json").run();
        let here = object("ls/1", &here.code(0).stdout)["drives"][0].clone();
        assert_eq!(here["state"], "unfinished", "{image}");
    }
}

#[test]
fn a_part_of_an_image_does_not_clear_a_failed_check() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    let path = format!("/drives/{drive}/set");
    let failed = "user:oh-check failed";
    let _ = Ask::of(&scene.server).post(&path, failed).expect(200);
    for (part, state) in [
        ("-o 65536", "check_failed"),
        ("--shard 1/2", "check_failed"),
        ("", "ready"),
    ] {
        let tool = scene.upload(&format!("-d {drive} {part}"));
        let _ = tool.run().code(0);
        let list = scene.elsewhere("ls --json").run().code(0);
        let list = object("ls/1", &list.stdout);
        assert_eq!(list["drives"][0]["state"], state, "{part}");
    }
}

#[test]
fn an_offset_beyond_the_image_ends_no_mark() {
    let scene = Scene::new();
    scene.kill_half_way("");
    let drive = scene.drive();
    let tool = scene.desk.upload(&scene.proxy.uri());
    let tool = tool.args(&format!("-c 65536 -d {drive} -o 400000 a.img"));
    let _ = tool.run().code(0).says("nothing is sent");
    assert_eq!(scene.proxy.count(is_set), 0);
    scene.is_seen("unfinished");
}

#[test]
fn the_drives_of_a_name_have_the_states_that_ls_prints() {
    let scene = Scene::new();
    let publish = "publish a.img --name n --receipt r.json";
    let published = scene.elsewhere(publish).run().code(0);
    let remove = format!("rm --yes {}", published.text().trim());
    let _ = scene.elsewhere(&remove).run().code(0);
    // Another machine completes it. The journal is still here, so this machine cannot know.
    scene.kill_half_way("-n other");
    let drive = scene.drive();
    let complete = format!("upload a.img --resume-from-drive {drive}");
    let _ = scene.elsewhere(&complete).run().code(0);
    let _ = scene.elsewhere("upload -n other a.img").run().code(0);
    let here = || scene.desk.simple(&scene.server.uri);
    let list = object("ls/1", &here().args("ls --json").run().code(0).stdout);
    let list = list["drives"].as_array().unwrap().clone();
    assert_eq!(list.len(), 2);
    for words in [
        "rm --yes other",
        "show other",
        "download other b.img",
        "verify -d other r.json",
        "upload -d other a.img",
    ] {
        let refused = here().args(words).run().code(2);
        for drive in &list {
            let id = drive["drive"].as_str().unwrap();
            let line = refused.stderr.lines().find(|line| line.contains(id));
            let state = drive["state"].as_str().unwrap();
            assert!(line.unwrap().ends_with(state), "{words}: {refused:?}");
        }
    }
    let states: Vec<_> = list.iter().map(|drive| drive["state"].clone()).collect();
    assert!(states.contains(&"unfinished".into()), "{states:?}");
    assert!(states.contains(&"ready".into()), "{states:?}");
}

#[test]
fn an_existing_drive_is_marked_before_its_first_byte_changes() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    scene.is_seen("ready");
    scene.kill_half_way(&format!("-d {drive}"));
    scene.is_seen("unfinished");
    let _ = scene.upload(&format!("-d {drive}")).run().code(0);
    scene.is_ready();
    // Another one over it.
    scene.proxy.forget();
    let _ = scene.upload(&format!("-d {drive}")).run().code(0);
    let requests = scene.proxy.requests();
    let bodies: Vec<_> = requests.iter().filter(|r| is_set(r)).collect();
    let bodies: Vec<_> = bodies.iter().map(|r| r.text()).collect();
    let token = info(&scene.server, &drive, "user:oh-token").unwrap();
    let mark = format!("user:oh-state uploading\nuser:oh-token {token}\n");
    assert_eq!(bodies, [&*mark, "user:oh-state ready\n"]);
    let at = |is: &dyn Fn(&Request) -> bool| requests.iter().position(is).unwrap();
    assert!(at(&is_set) < at(&Request::is_write));
    scene.is_ready();
}

#[test]
fn a_published_drive_that_is_half_overwritten_is_unfinished() {
    let scene = Scene::new();
    let publish = scene.elsewhere("publish a.img --name n").run().code(0);
    let drive = publish.text().trim().to_owned();
    scene.desk.file("a.img", &noise(2, SIZE));
    scene.kill_half_way(&format!("-d {drive}"));
    scene.is_seen("unfinished");
    let _ = scene.upload(&format!("-d {drive}")).run().code(0);
    scene.is_seen("ready");
    assert_drive(&scene.server, &drive, &noise(2, SIZE));
}

#[test]
fn quiet_does_not_hide_that_a_published_drive_is_overwritten() {
    let scene = Scene::new();
    let publish = scene.elsewhere("publish a.img --name n").run().code(0);
    let drive = publish.text().trim().to_owned();
    let outcome = scene.upload(&format!("-q -d {drive}")).run().code(0);
    let outcome = outcome.says("was published as \"n\". This upload overwrites it");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
}

#[test]
fn an_endpoint_that_refuses_the_mark_gets_a_drive_without_it() {
    let scene = Scene::new();
    let refused = Fault::Answer(refusal(400, "usage"));
    scene.proxy.fault(Request::is_create, 1, refused.clone());
    let _ = scene.upload("").run().code(0);
    let creates = scene.proxy.requests();
    let creates: Vec<_> = creates.iter().filter(|r| r.is_create()).collect();
    assert_eq!(creates.len(), 2);
    let without = creates[0].text().replace("user:oh-state uploading\n", "");
    assert_eq!(creates[1].text(), without);
    assert_eq!(scene.proxy.count(is_set), 0);
    assert_eq!(scene.state_key(), None);
    scene.is_ready();
    // The same for a drive that exists.
    let drive = scene.drive();
    scene.proxy.forget();
    scene.proxy.fault(is_set, usize::MAX, refused);
    let _ = scene.upload(&format!("-d {drive}")).run().code(0);
    assert_eq!(scene.proxy.count(is_set), 1);
    scene.is_ready();
}

#[test]
fn a_create_refused_for_another_reason_is_repeated_once_at_most() {
    let scene = Scene::new();
    let refused = Fault::Answer(refusal(400, "usage"));
    scene.proxy.fault(Request::is_create, usize::MAX, refused);
    let outcome = scene.upload("").run().code(1);
    let _ = outcome.says(&format!("Failed to create drive of size {SIZE}: "));
    assert_eq!(scene.proxy.count(Request::is_create), 2);
    assert!(drives(&scene.server).is_empty());
    assert!(scene.desk.journals().is_empty());
}

#[test]
fn a_lost_answer_to_the_create_without_the_mark_makes_no_second_drive() {
    let scene = Scene::new();
    let refused = Fault::Answer(refusal(400, "usage"));
    scene.proxy.fault(Request::is_create, 1, refused);
    scene.proxy.fault(Request::is_create, 1, Fault::LoseAnswer);
    let _ = scene.upload("").run().code(0);
    assert_eq!(scene.proxy.count(Request::is_create), 2);
    scene.is_ready();
}

#[test]
fn a_lost_answer_to_the_end_of_the_mark_is_no_failure() {
    let scene = Scene::new();
    scene.proxy.fault(is_set, 1, Fault::LoseAnswer);
    let _ = scene.upload("").run().code(0);
    assert_eq!(scene.proxy.count(is_set), 2);
    scene.is_ready();
}

#[test]
fn an_upload_whose_mark_stays_has_failed_and_resumes() {
    for (status, error, code, says) in [
        (500, "system", 75, "Continue later with:"),
        (400, "usage", 1, "Then continue with:"),
    ] {
        let scene = Scene::new();
        let refused = Fault::Answer(refusal(status, error));
        scene.proxy.fault(is_set, usize::MAX, refused);
        let outcome = scene.upload("--max-outage 1s").run().code(code).says(says);
        let outcome = outcome.says(&format!(
            "All of the image is on drive {}, but the drive cannot be marked as ready",
            scene.drive()
        ));
        let command = last_line(&outcome);
        assert!(command.starts_with("openhosting upload "), "{outcome:?}");
        scene.is_seen("unfinished");
        scene.proxy.heal();
        scene.proxy.forget();
        let again = command.split_once(' ').unwrap().1;
        let tool = scene.desk.simple(&scene.proxy.uri()).args(again);
        let _ = tool.run().code(0);
        assert_eq!(scene.proxy.count(Request::is_write), 0);
        scene.is_ready();
        assert!(scene.desk.journals().is_empty());
    }
}

#[test]
fn a_kill_at_the_end_of_the_mark_loses_nothing() {
    // The request is sent and not answered, and it arrives or does not.
    for fault in [Fault::Stall, Fault::LoseAnswer] {
        let scene = Scene::new();
        scene.proxy.fault(is_set, 1, fault);
        scene.proxy.fault(is_set, usize::MAX, Fault::Stall);
        let upload = scene.upload("").spawn();
        scene.proxy.wait_for("the end of the mark", |requests| {
            requests.iter().any(is_set)
        });
        let _ = upload.kill9();
        scene.proxy.heal();
        scene.proxy.forget();
        let _ = scene.upload("").run().code(0);
        assert_eq!(scene.proxy.count(Request::is_write), 0);
        assert_eq!(scene.proxy.count(Request::is_create), 0);
        scene.is_ready();
    }
}

#[test]
fn shards_leave_the_mark_as_it_is() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    let shards = || {
        for shard in ["1/2", "2/2"] {
            let flags = format!("-d {drive} --shard {shard}");
            let _ = scene.upload(&flags).run().code(0);
        }
    };
    shards();
    assert_eq!(scene.proxy.count(is_set), 0);
    scene.is_ready();
    // None of them knows whether the others are done.
    let mark = "user:oh-state uploading";
    let path = format!("/drives/{drive}/set");
    let _ = Ask::of(&scene.server).post(&path, mark).expect(200);
    shards();
    assert_eq!(scene.proxy.count(is_set), 0);
    scene.is_seen("unfinished");
    // A publication ends, whoever writes to it.
    let published = "user:oh-state published";
    let _ = Ask::of(&scene.server).post(&path, published).expect(200);
    shards();
    assert_eq!(scene.proxy.count(is_set), 1);
    scene.is_ready();
}

#[test]
fn a_stream_of_unknown_size_and_a_local_drive_are_marked_too() {
    let scene = Scene::new();
    let tool = scene.desk.simple(&scene.proxy.uri());
    let tool = tool.args("upload -n s -").input(&scene.image);
    let _ = tool.run().code(0);
    let requests = scene.proxy.requests();
    let create = requests.iter().find(|r| r.is_create()).unwrap();
    assert!(create.text().contains("user:oh-state uploading\n"));
    scene.is_ready();
    let local = scene.desk.tool(crate::support::cli::UPLOAD);
    let _ = local.args("--local cloud a.img").run().code(0);
    let drives = std::fs::read_dir(scene.desk.path("cloud/drives")).unwrap();
    let texts = drives
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end != "data"))
        .map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
    assert!(
        texts
            .into_iter()
            .any(|text| text.contains("user:oh-state ready"))
    );
}

/// Holds each write from the second one on, until the gate opens.
fn hold_writes(proxy: &FaultProxy) -> Gate {
    let gate = Gate::default();
    proxy.fault_after(1, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
    gate
}

fn wait_for_a_held_write(proxy: &FaultProxy) {
    proxy.wait_for("the second write", |requests| {
        requests.iter().filter(|r| r.is_write()).count() >= 2
    });
}

#[test]
fn an_upload_that_another_one_overtook_fails_and_the_drive_is_not_to_be_used() {
    for is_new in [false, true] {
        let scene = Scene::new();
        let first = hold_writes(&scene.proxy);
        let flags = match is_new {
            true => String::new(),
            false => format!("-d {}", create(&scene.server, SIZE as u64)),
        };
        // A sample that is read back may find it, too.
        let upload = scene.upload(&flags).args("--verify none").spawn();
        wait_for_a_held_write(&scene.proxy);
        let drive = scene.drive();
        // It ends while the first one is still there. All it can know is that there was one.
        let second = FaultProxy::to(&scene.server);
        let outcome = scene.second(&second, &drive).run().code(0);
        let _ = outcome.says(STILL_RUNS);
        first.open();
        let outcome = upload.wait().code(4);
        let outcome = outcome.says(&format!(
            "Another upload has written to drive {drive} at the same time"
        ));
        let _ = outcome.says(&format!("-d {drive}"));
        scene.is_not_to_be_used();
        assert!(scene.desk.journals().is_empty());
        // The next one that is alone makes it good.
        scene.proxy.heal();
        let _ = scene.upload(&format!("-d {drive}")).run().code(0);
        scene.is_ready();
    }
}

#[test]
fn of_two_uploads_that_begin_at_once_none_succeeds() {
    let scene = Scene::new();
    let drive = create(&scene.server, SIZE as u64);
    let second = FaultProxy::to(&scene.server);
    let (first_writes, second_writes) = (hold_writes(&scene.proxy), hold_writes(&second));
    let marks = Gate::default();
    second.fault(is_set, 1, Fault::Hold(marks.clone()));
    let b = scene.second(&second, &drive).spawn();
    second.wait_for("the mark", |requests| requests.iter().any(is_set));
    // Neither has seen the mark of the other.
    let a = scene.upload(&format!("-d {drive} --verify none")).spawn();
    wait_for_a_held_write(&scene.proxy);
    marks.open();
    wait_for_a_held_write(&second);
    first_writes.open();
    let says = format!("Another upload has written to drive {drive} at the same time");
    let outcome = a.wait().code(4).says(&says);
    assert!(!outcome.stderr.contains(STILL_RUNS), "{outcome:?}");
    second_writes.open();
    let outcome = b.wait().code(4).says(&says);
    assert!(!outcome.stderr.contains(STILL_RUNS), "{outcome:?}");
    scene.is_not_to_be_used();
}

#[test]
fn who_takes_over_a_mark_reads_back_everything() {
    let scene = Scene::new();
    scene.kill_half_way("");
    let drive = scene.drive();
    let second = FaultProxy::to(&scene.server);
    let writes = hold_writes(&second);
    let b = scene
        .second(&second, &drive)
        .args("--verify sample")
        .spawn();
    wait_for_a_held_write(&second);
    // A byte that the first upload still writes into what the second one has written.
    let write = format!("/drives/{drive}/write/12345");
    let _ = Ask::of(&scene.server).post(&write, [0]).expect(204);
    writes.open();
    let outcome = b.wait().code(4).says("reads back everything at its end");
    let _ = outcome.says("does not hold what was transferred");
}

#[test]
fn a_mark_whose_answer_was_lost_is_recognised_by_the_next_run() {
    let scene = Scene::new();
    let flags = format!("-d {} --max-outage 1s", create(&scene.server, SIZE as u64));
    scene.proxy.fault(is_set, usize::MAX, Fault::LoseAnswer);
    let _ = scene.upload(&flags).run().code(75);
    assert_eq!(scene.state_key().as_deref(), Some("uploading"));
    scene.proxy.heal();
    let again = scene.upload(&flags).run().code(0);
    assert!(!again.stderr.contains(STILL_RUNS), "{again:?}");
    scene.is_ready();
}

#[test]
fn an_upload_resumes_only_if_no_other_one_wrote_to_its_drive() {
    for is_new in [false, true] {
        let scene = Scene::new();
        let flags = match is_new {
            true => String::new(),
            false => format!("-d {}", create(&scene.server, SIZE as u64)),
        };
        scene.kill_half_way(&flags);
        let drive = scene.drive();
        let second = FaultProxy::to(&scene.server);
        let _ = scene.second(&second, &drive).run().code(0);
        scene.is_seen("ready");
        let outcome = scene.upload(&flags).run().code(4);
        let outcome = outcome.says(&format!(
            "Another upload has written to drive {drive} since this one stopped"
        ));
        let _ = outcome.says("--restart");
        assert_eq!(scene.proxy.count(Request::is_write), 0);
        assert_eq!(scene.proxy.count(is_set), 0);
        scene.is_seen("ready");
        assert_drive(&scene.server, &drive, &noise(2, SIZE));
        let compare = format!("upload a.img --restart --resume-from-drive {drive}");
        let tool = scene.desk.simple(&scene.proxy.uri()).args(&compare);
        let _ = tool.run().code(0);
        scene.is_ready();
    }
}
