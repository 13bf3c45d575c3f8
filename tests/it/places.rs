//! Where journals, findings and the config are stored, with and without a home directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::cli::{Desk, SIMPLE, Tool, UPLOAD};
use crate::support::http::{assert_drive, drives};
use crate::support::needs::{Need, skip};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;

const C: usize = 24 * 1024;
const CHUNKS: usize = 160;

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
        let image = noise(3, CHUNKS * C);
        desk.file("a.img", &image);
        Self {
            desk,
            server,
            proxy,
            image,
        }
    }

    /// Runs a tool without `HOME`, and with this home directory in the passwd entry. `None`, with a
    /// message, if that is not possible.
    fn homeless(&self, home: &Path, tool: &str) -> Option<Tool<'_>> {
        let passwd = format!("root:x:0:0::{}:/bin/sh\n", home.display());
        let passwd = self.desk.file("passwd", passwd.as_bytes());
        let script = "mount --bind \"$1\" /etc/passwd && shift && exec \"$@\"";
        let script = self.desk.file("with-passwd", script.as_bytes());
        let run = |program: &str| {
            let unshare = self.desk.tool("unshare").args("-m sh");
            let unshare = unshare.arg(&script).arg(&passwd).arg(program);
            unshare.unset("HOME").env("OHURI", self.proxy.uri())
        };
        let probe = run("true").run();
        if !probe.status.success() {
            skip(Need::Other("mount namespaces"), format_args!("{probe:?}"));
            return None;
        }
        Some(run(tool))
    }

    /// The command is killed on the way and run again: it resumes with the same drive.
    fn resumes<'a>(&'a self, tool: impl Fn() -> Tool<'a>, journals: &Path) {
        let run = || tool().arg("-c").arg(C.to_string()).arg("a.img");
        let hold = Fault::Hold(Gate::default());
        self.proxy
            .fault_after(70, Request::is_write, usize::MAX, hold);
        let running = run().spawn();
        wait_until("the records", || records(journals) >= 64);
        let _ = running.kill9();
        self.proxy.heal();
        let _ = run().run().code(0).says("Resuming: ");
        let all = drives(&self.server);
        assert_eq!(all.len(), 1, "drives: {all:?}");
        assert_drive(&self.server, &all[0], &self.image);
    }
}

/// Number of records in the only journal of a directory.
fn records(journals: &Path) -> u64 {
    let journal = std::fs::read_dir(journals)
        .ok()
        .and_then(|mut all| all.next());
    let len = journal.and_then(|journal| journal.ok()?.metadata().ok());
    len.map_or(0, |metadata| metadata.len().saturating_sub(4096) / 64)
}

fn journals(state: &Path) -> PathBuf {
    state.join("openhosting/journals")
}

#[test]
fn an_upload_without_home_resumes_from_the_passwd_home() {
    let scene = Scene::new();
    let home = scene.desk.path("the home");
    std::fs::create_dir(&home).unwrap();
    if scene.homeless(&home, UPLOAD).is_none() {
        return;
    }
    let tool = || scene.homeless(&home, UPLOAD).unwrap();
    let state = home.join(".local/state");
    scene.resumes(tool, &journals(&state));
    // Other users may not read it.
    let mode = journals(&state).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn an_upload_of_a_service_resumes_from_its_state_directory() {
    let scene = Scene::new();
    let (first, second) = (scene.desk.path("first"), scene.desk.path("second"));
    let both = format!("{}:{}", first.display(), second.display());
    let tool = || {
        let tool = scene.desk.upload(&scene.proxy.uri());
        tool.env("STATE_DIRECTORY", &both)
    };
    scene.resumes(tool, &journals(&first));
    assert!(!second.exists());
    // XDG_STATE_HOME has priority, if it is absolute.
    for (xdg, place) in [
        (scene.desk.path("xdg"), "xdg"),
        ("relative".into(), "first"),
    ] {
        let journals = journals(&scene.desk.path(place));
        let _ = std::fs::remove_dir_all(&journals);
        let _ = tool().env("XDG_STATE_HOME", xdg).arg("a.img").run().code(0);
        assert!(journals.exists());
    }
    assert!(!scene.desk.path("relative").exists());
    assert!(scene.desk.journals().is_empty(), "HOME comes last");
}

/// Three services that are killed would otherwise leave three drives.
#[test]
fn without_any_place_for_a_journal_nothing_is_uploaded() {
    let scene = Scene::new();
    let none = scene.desk.path("none");
    if scene.homeless(&none, UPLOAD).is_none() {
        return;
    }
    let tool = || scene.homeless(&none, UPLOAD).unwrap();
    let outcome = tool().arg("a.img").run().code(2);
    let _ = outcome
        .says("There is no place for the journal: ")
        .says("--journal PATH")
        .says("--no-journal");
    assert!(drives(&scene.server).is_empty() && !none.exists());
    for flags in ["--no-journal", "--journal j.ohj"] {
        let _ = tool().args(flags).arg("a.img").run().code(0);
    }
    assert_eq!(drives(&scene.server).len(), 2);
    let probe = scene.homeless(&none, SIMPLE).unwrap().arg("probe").run();
    let _ = probe
        .code(2)
        .says("There is no place for the findings: ")
        .says("--no-save");
}

#[test]
fn an_unusable_home_is_named() {
    let scene = Scene::new();
    let file = scene.desk.file("file", b"x");
    let upload = scene.desk.upload(&scene.proxy.uri()).arg("a.img");
    let outcome = upload.env("HOME", &file).run().code(2);
    let line = format!(
        "Cannot use the directory of the journal {}/.local/state/openhosting/journals: ",
        file.display()
    );
    let _ = outcome
        .says(&line)
        .says("--journal PATH")
        .says("--no-journal");
    assert!(drives(&scene.server).is_empty());
}

#[test]
fn the_config_and_the_findings_are_below_the_home_of_the_passwd_entry() {
    let scene = Scene::new();
    let home = scene.desk.path("home");
    let config = home.join(".config/openhosting/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let text = format!("[profiles.p]\nendpoint = \"{}\"\n", scene.proxy.uri());
    std::fs::write(config, text).unwrap();
    let Some(tool) = scene.homeless(&home, SIMPLE) else {
        return;
    };
    let _ = tool.unset("OHURI").args("ls --profile p").run().code(0);
    let probe = scene.homeless(&home, SIMPLE).unwrap().arg("probe");
    let _ = probe.run().code(0);
    assert!(home.join(".local/state/openhosting/findings").exists());
}
