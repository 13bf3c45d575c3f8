//! Servers and resources: the answers of the API, and guests that really run.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::cli::Desk;
use crate::support::http::{Ask, Reply, create, info, read_all};
use crate::support::needs::{Need, needs, skip};
use crate::support::server::{TestServer, working_below};
use crate::support::{noise, recorded};

/// Only guards against a test that hangs; the time is no requirement.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Where the letter is in boot.img that selects how its guest ends (see
/// fixtures/images/make-boot.py).
const LETTER_AT: usize = 512;
/// Where the guest counts its boots.
const COUNT_AT: usize = 1024;
const NOBODY: &str = "0012e24a-6eae-4279-9912-3432f698cec8";
const OTHER: &str = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";

/// Whether guests can run on this machine.
pub(crate) fn has_qemu() -> bool {
    needs(&[Need::Command("qemu-system-x86_64")])
}

/// The bootable image, with a guest that ignores the power button (`i`), heeds it (`b`)
/// or switches itself off (`o`).
pub(crate) fn image(letter: u8) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/boot.img");
    let mut image = std::fs::read(path).unwrap();
    image[LETTER_AT] = letter;
    image
}

/// Creates a drive with this image.
fn drive(server: &TestServer, letter: u8, keys: &str) -> String {
    let image = image(letter);
    let body = format!("name boot\nsize {}\n{keys}", image.len());
    let made = Ask::of(server).post("/drives/create", body).expect(200);
    let drive = made.key("drive").unwrap().to_owned();
    post_bytes(server, &drive, &image);
    drive
}

/// The keys of a small server that boots from `drive`.
fn keys(drive: &str) -> String {
    format!("name guest\ncpu 500\nmem 16\nide:0:0 {drive}\nboot ide:0:0\n")
}

fn post(server: &TestServer, path: &str, body: &str) -> Reply {
    Ask::of(server).post(path, body)
}

fn made(server: &TestServer, path: &str, body: &str) -> String {
    let reply = post(server, path, body).expect(200);
    reply.key("server").unwrap().to_owned()
}

fn command(server: &TestServer, id: &str, command: &str) -> Reply {
    post(server, &format!("/servers/{id}/{command}"), "")
}

fn key(server: &TestServer, id: &str, key: &str) -> Option<String> {
    let info = Ask::of(server).get(&format!("/servers/{id}/info"));
    info.expect(200).key(key).map(str::to_owned)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(50));
    }
}

fn wait_console(server: &TestServer, id: &str, line: &str) {
    wait_until(line, || {
        let console = Ask::of(server).get(&format!("/servers/{id}/console"));
        console.expect(200).text().contains(line)
    });
}

fn wait_status(server: &TestServer, id: &str, status: &str) {
    wait_until(status, || {
        key(server, id, "status").as_deref() == Some(status)
    });
}

fn wait_gone(server: &TestServer, id: &str) {
    let path = format!("/servers/{id}/info");
    wait_until("gone", || Ask::of(server).get(&path).status == 404);
}

/// The processes of this server's guests.
fn processes(server: &TestServer) -> Vec<u32> {
    working_below(&server.data.join("servers"))
}

/// The section "Now, let's boot a server from the drive" of the documentation, with our tools, and
/// with an image that prints when it runs.
#[test]
fn the_worked_example_of_the_documentation_runs() {
    if !has_qemu() {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    desk.file("image.raw", &image(b'i'));
    let drive = desk
        .upload(&server.uri)
        .args("image.raw")
        .run()
        .code(0)
        .created();

    let request = format!(
        "name TestServer\ncpu 2000\nmem 1024\nide:0:0 {drive}\nboot ide:0:0\nnic:0:model e1000\nnic:0:dhcp auto\nvnc:ip auto\nvnc:password XXXXXXXX\n"
    );
    let simple = |args: &str| desk.simple(&server.uri).args(args);
    let outcome = simple("-c servers create").input(request.as_bytes()).run();
    let outcome = outcome.code(0);
    let value_of = |key: &str| {
        let mut lines = outcome.text().lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {key}: {}", outcome.text()))
    };
    for (key, value) in [
        ("name", "TestServer"),
        ("cpu", "2000"),
        ("mem", "1024"),
        ("ide:0:0", &drive),
        ("boot", "ide:0:0"),
        ("nic:0:model", "e1000"),
        ("nic:0:dhcp", "auto"),
        ("vnc:password", "XXXXXXXX"),
        ("status", "active"),
        ("smp:cores", "1"),
    ] {
        assert_eq!(value_of(key), value, "{key}");
    }
    // Without the keys of the first generation that the second one lacks, and that nothing here
    // could measure.
    for line in recorded("retyped/servers_create.txt")
        .lines()
        .filter(|line| !line.starts_with("rx ") && !line.starts_with("tx "))
    {
        value_of(line.split(' ').next().unwrap());
    }
    let id = value_of("server").to_owned();
    wait_until("the guest runs", || {
        let console = simple(&format!("servers {id} console")).run().code(0);
        console
            .text()
            .contains("this guest runs from its drive, boot 1\r\n")
    });

    // VNC listens at the address in the answer, and asks for the password.
    let mut vnc = TcpStream::connect((value_of("vnc:ip"), 5900)).unwrap();
    let mut said = [0; 12];
    vnc.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"RFB 003.008\n");
    vnc.write_all(&said).unwrap();
    let mut security = [0; 2];
    vnc.read_exact(&mut security).unwrap();
    assert_eq!(security, [1, 2], "one way in, by password");
    // The password is not part of any command line.
    let [process] = processes(&server)[..] else {
        panic!("not one process");
    };
    let words = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let words = String::from_utf8(words).unwrap();
    assert!(
        words.contains(&id) && !words.contains("XXXXXXXX"),
        "{words}"
    );

    // The guest counted its boot on the drive.
    assert_eq!(read_all(&server, &drive)[COUNT_AT], b'1');
    assert!(
        info(&server, &drive, "claimed")
            .unwrap()
            .ends_with(&format!(":guest:{id}:ide:0:0"))
    );
    assert_eq!(
        simple(&format!("servers {id} stop")).run().code(0).text(),
        ""
    );
    wait_gone(&server, &id);
    assert_eq!(info(&server, &drive, "claimed"), None);
    assert!(processes(&server).is_empty());
}

#[test]
fn a_server_that_cannot_be_removed_is_still_there() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let boot = drive(&server, b'i', "");
    let id = made(&server, "/servers/create/stopped", &keys(&boot));
    let record = server.data.join(format!("servers/{id}.meta"));
    let text = std::fs::read(&record).unwrap();
    // No file can be removed here.
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    assert_eq!(command(&server, &id, "destroy").status, 500);
    assert_eq!(key(&server, &id, "status").as_deref(), Some("stopped"));
    std::fs::remove_dir(&record).unwrap();
    std::fs::write(&record, text).unwrap();
    command(&server, &id, "destroy").expect(204);
    assert!(!record.exists());
    command(&server, &id, "destroy").expect(404);
}

#[test]
fn a_persistent_server_passes_through_all_states() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let boot = drive(&server, b'i', "");
    let keys = keys(&boot) + "persistent true\nsmp auto\nuser:a b";
    let id = made(&server, "/servers/create/stopped", &keys);
    let is = |name: &str, value: &str| {
        assert_eq!(key(&server, &id, name).as_deref(), Some(value), "{name}");
    };
    is("status", "stopped");
    assert_eq!(key(&server, &id, "started"), None);
    for name in ["shutdown", "reset", "suspend", "resume"] {
        assert_eq!(
            command(&server, &id, name).error(),
            (400, "usage"),
            "{name}"
        );
    }
    command(&server, &id, "stop").expect(204);

    let started = command(&server, &id, "start").expect(200);
    assert_eq!(started.key("status"), Some("active"));
    assert_eq!(command(&server, &id, "start").error(), (409, "busy"));
    wait_console(&server, &id, "boot 1");
    // A reset keeps the power on and clears the memory.
    command(&server, &id, "reset").expect(204);
    wait_console(&server, &id, "boot 2");
    command(&server, &id, "suspend").expect(204);
    wait_status(&server, &id, "paused");
    assert_eq!(command(&server, &id, "start").error(), (409, "busy"));
    command(&server, &id, "resume").expect(204);
    wait_status(&server, &id, "active");
    // This guest ignores the power button.
    command(&server, &id, "shutdown").expect(204);

    let set = format!("/servers/{id}/set");
    let changed = post(
        &server,
        &set,
        "name b c\ncpu 800\ntags t\nuser:a\npassword new",
    )
    .expect(200);
    assert_eq!(
        (changed.key("name"), changed.key("cpu")),
        (Some("b c"), Some("800"))
    );
    assert_eq!(
        (changed.key("user:a"), changed.key("vnc:ip").is_some()),
        (None, true)
    );
    assert_eq!(post(&server, &set, "mem 32").error(), (409, "busy"));
    is("mem", "16");

    // Nobody can change a drive that a guest uses, but it can be read.
    let path = |command: &str| format!("/drives/{boot}/{command}");
    let other = create(&server, 4 << 20);
    for (path, body) in [
        (path("destroy"), ""),
        (path("write/0"), "x"),
        (path("set"), "size 1M"),
        (path(&format!("image/{other}")), ""),
        (format!("/drives/{other}/image/{boot}"), ""),
    ] {
        assert_eq!(post(&server, &path, body).error(), (409, "busy"), "{path}");
    }
    post(&server, &path("set"), "name still").expect(200);
    Ask::of(&server).get(&path("read/0/512")).expect(200);
    // What the guest reads and writes is counted for the server and for the drive.
    let counted = |name: &str| -> u64 { key(&server, &id, name).unwrap().parse().unwrap() };
    assert!(counted("ide:0:0:read:bytes") >= 1536);
    assert_eq!(counted("ide:0:0:write:bytes"), 1024);
    assert_eq!(counted("ide:0:0:write:requests"), 2);
    let written: u64 = info(&server, &boot, "write:bytes")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(written, 4096 + (2 << 20) + 1024);
    let screen = Ask::of(&server)
        .get(&format!("/servers/{id}/screen"))
        .expect(200);
    assert_eq!(screen.header("content-type"), Some("image/png"));
    assert!(screen.body.starts_with(b"\x89PNG"));

    command(&server, &id, "stop").expect(204);
    is("status", "stopped");
    assert_eq!(info(&server, &boot, "claimed"), None);
    // The console output of the last run can still be read.
    wait_console(&server, &id, "boot 2");
    post(
        &server,
        &set,
        "mem 32\nboot\nide:0:0\nblock:3 DRIVE\nboot block:3"
            .replace("DRIVE", &boot)
            .as_str(),
    )
    .expect(200);
    command(&server, &id, "start").expect(200);
    wait_console(&server, &id, "boot 3");
    // The server and its process are gone, and the drive remains.
    command(&server, &id, "destroy").expect(204);
    assert_eq!(command(&server, &id, "info").error(), (404, "missing"));
    assert!(processes(&server).is_empty());
    assert_eq!(read_all(&server, &boot)[COUNT_AT], b'3');
    post(&server, &path("destroy"), "").expect(204);
}

#[test]
fn the_end_of_a_server_is_noticed_in_every_way() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let heeds = drive(&server, b'b', "");
    let body = keys(&heeds);
    // The shutdown is repeated until the guest has started and notices it.
    let id = made(&server, "/servers/create", &body);
    wait_console(&server, &id, "boot 1");
    wait_until("the guest heeds the button", || {
        matches!(command(&server, &id, "shutdown").status, 400 | 404)
    });
    wait_gone(&server, &id);
    assert_eq!(info(&server, &heeds, "claimed"), None);

    let off = drive(&server, b'o', "");
    let id = made(
        &server,
        "/servers/create",
        &(keys(&off) + "persistent true"),
    );
    wait_status(&server, &id, "stopped");
    wait_console(&server, &id, "boot 1");

    let stays = drive(&server, b'i', "");
    let persistent = made(
        &server,
        "/servers/create",
        &(keys(&stays) + "persistent true"),
    );
    let kill = |server: &TestServer| {
        for process in processes(server) {
            let process = process.to_string();
            assert!(
                Command::new("kill")
                    .args(["-KILL", &process])
                    .status()
                    .unwrap()
                    .success()
            );
        }
    };
    kill(&server);
    wait_status(&server, &persistent, "dead");
    assert_eq!(info(&server, &stays, "claimed"), None);
    command(&server, &persistent, "start").expect(200);
    command(&server, &persistent, "stop").expect(204);
    let id = made(&server, "/servers/create", &keys(&stays));
    kill(&server);
    wait_gone(&server, &id);
    assert!(processes(&server).is_empty());
}

#[test]
fn guests_survive_a_restart_of_the_server() {
    if !has_qemu() {
        return;
    }
    let mut server = TestServer::start();
    let boots = [(); 3].map(|()| drive(&server, b'i', ""));
    let run = |server: &TestServer, n: usize, keys_: &str| {
        made(server, "/servers/create", &(keys(&boots[n]) + keys_))
    };
    let first = run(
        &server,
        0,
        "persistent true\npassword secret\nnic:0:dhcp auto",
    );
    let second = run(&server, 1, "");
    command(&server, &second, "suspend").expect(204);
    wait_console(&server, &first, "boot 1");
    let address = key(&server, &first, "vnc:ip");
    // Asking for the info of a server also updates its counters.
    wait_status(&server, &first, "active");
    let counted = info(&server, &boots[0], "write:bytes");
    let before = processes(&server);
    assert_eq!(before.len(), 2);

    server.restart();
    assert_eq!(processes(&server), before);
    assert_eq!(info(&server, &boots[0], "write:bytes"), counted);
    server.kill9();
    server.start_again();
    assert_eq!(processes(&server), before);
    assert_eq!(key(&server, &first, "vnc:ip"), address);
    wait_status(&server, &second, "paused");
    // The server that was found again still claims its drives.
    let refused = post(&server, "/servers/create", &keys(&boots[1]));
    assert_eq!(refused.error(), (409, "busy"));
    command(&server, &first, "reset").expect(204);
    wait_console(&server, &first, "boot 2");

    // One process dies while nobody asks. A foreign process that merely works in the directory is
    // not mistaken for a server.
    server.kill9();
    for process in &before {
        Command::new("kill")
            .args(["-KILL", &process.to_string()])
            .status()
            .unwrap();
    }
    let stray = server.data.join("servers").join(format!("{NOBODY}.run"));
    std::fs::create_dir(&stray).unwrap();
    let mut stranger = Command::new("sleep")
        .arg("600")
        .current_dir(&stray)
        .spawn()
        .unwrap();
    wait_until("they are dead", || processes(&server).len() == 1);
    server.start_again();
    wait_status(&server, &first, "dead");
    wait_gone(&server, &second);
    assert_eq!(processes(&server), [stranger.id()]);
    assert!(!stray.exists());
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    command(&server, &first, "start").expect(200);
    wait_console(&server, &first, "boot 3");
}

/// With this delay copying 4 MiB takes minutes, so it is still under way however long guests take
/// to boot.
const SLOW_IMAGING: u64 = 20_000;

#[test]
fn imagings_and_guests_resume_after_kill_9() {
    if !has_qemu() {
        return;
    }
    let mut server = TestServer::with_plan(&json!({"imaging_bytes_per_s": SLOW_IMAGING}));
    let bytes = noise(7, 4 << 20);
    let source = create(&server, bytes.len() as u64);
    post_bytes(&server, &source, &bytes);
    let copy = create(&server, bytes.len() as u64);
    let boot = drive(&server, b'i', "");
    // One guest on another drive, and one that only reads the source of the imaging: an imaging
    // allows nothing else at the same time.
    let writes = made(
        &server,
        "/servers/create",
        &(keys(&boot) + "persistent true"),
    );
    let boot_too = drive(&server, b'i', "");
    let cd = format!("{}ide:0:1 {source}\nide:0:1:media cdrom", keys(&boot_too));
    let reads = made(&server, "/servers/create", &cd);
    // Servers with imposed limits have no console, so guests count their boots on the drive.
    let booted = |server: &TestServer, number: u8| {
        for boot in [&boot, &boot_too] {
            wait_until("both have booted", || {
                read_all(server, boot)[COUNT_AT] == b'0' + number
            });
        }
    };
    booted(&server, 1);
    let path = format!("/drives/{copy}/image/{source}");
    post(&server, &path, "").expect(204);
    let guests = processes(&server);
    assert_eq!(guests.len(), 2);

    for round in 1..=2 {
        // The copy is somewhere in the middle. Progress is stored once per GiB, so after a crash it
        // begins anew.
        wait_until("it is under way", || {
            let full = Ask::of(&server).get(&format!("/drives/{copy}/info/full"));
            !matches!(full.expect(200).key("imaging"), Some("queued" | "0%"))
        });
        server.kill9();
        assert_eq!(processes(&server), guests, "a guest ended with the server");
        server.start_again();
        // Guests and imaging are as they were before the crash, from the first answer on.
        assert_eq!(processes(&server), guests);
        for id in [&writes, &reads] {
            assert_eq!(key(&server, id, "status").as_deref(), Some("active"));
        }
        let claimed = info(&server, &copy, "claimed");
        assert_eq!(claimed, Some(format!("imaging:{source}")), "round {round}");
        assert!(info(&server, &copy, "imaging").is_some());
        let claimed = info(&server, &boot, "claimed").unwrap();
        assert!(claimed.ends_with(&format!(":guest:{writes}:ide:0:0")));
        // Conflicts are still refused: a guest that writes to the source or the target of an
        // imaging, and an imaging from or into a drive that a guest writes to.
        for (path, body) in [
            ("/servers/create".to_owned(), keys(&source)),
            ("/servers/create".to_owned(), keys(&copy)),
            (format!("/drives/{source}/write"), "x".to_owned()),
            (format!("/drives/{copy}/image/{boot}"), String::new()),
            (format!("/drives/{boot}/image/{source}"), String::new()),
        ] {
            let refused = post(&server, &path, &body);
            assert_eq!(refused.error(), (409, "busy"), "{path} in round {round}");
        }
        // The guests still run, and still claim their drives.
        for id in [&writes, &reads] {
            command(&server, id, "reset").expect(204);
        }
        booted(&server, round + 1);
    }

    server.kill9();
    server.set_plan(&json!({}));
    server.start_again();
    wait_until("the copy is whole", || {
        info(&server, &copy, "imaging").is_none()
    });
    assert!(read_all(&server, &copy) == bytes);
    assert_eq!(info(&server, &copy, "status").as_deref(), Some("active"));
    assert_eq!(info(&server, &copy, "claimed"), None);
    let claimed = info(&server, &source, "claimed").unwrap();
    assert!(claimed.ends_with(&format!(":guest:{reads}:ide:0:1")));
    assert_eq!(read_all(&server, &boot)[COUNT_AT], b'3');
    for id in [&writes, &reads] {
        command(&server, id, "stop").expect(204);
    }
    assert_eq!(info(&server, &source, "claimed"), None);
}

fn post_bytes(server: &TestServer, drive: &str, bytes: &[u8]) {
    let path = format!("/drives/{drive}/write");
    Ask::of(server).post(&path, bytes).expect(204);
}

/// A directory of control groups (version 2) with the controller `cpu` that belongs to this test,
/// if the kernel and the environment allow one.
struct Groups(PathBuf);

impl Groups {
    fn make() -> Option<Self> {
        let lacks = |why: &str| {
            skip(
                Need::Other("control groups of version 2 for processors"),
                why,
            );
            None
        };
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let mount = mounts.find_map(|mut words| {
            let (path, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let Some(mount) = mount else {
            return lacks("no cgroup version 2 is mounted");
        };
        let directory = mount.join(format!("openhosting-test-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&directory) {
            return lacks(&format!("{}: {error}", directory.display()));
        }
        let groups = Self(directory);
        let controllers = std::fs::read_to_string(groups.0.join("cgroup.controllers"));
        match controllers.unwrap().split(' ').any(|c| c.trim() == "cpu") {
            true => Some(groups),
            false => lacks("groups of version 2 have no controller cpu here"),
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The server must remove its groups. If one is left, removing the directory fails.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_guest_has_its_share_of_the_processors_in_the_kernels_groups() {
    let Some(groups) = Groups::make().filter(|_| has_qemu()) else {
        return;
    };
    let mut server = TestServer::with_args(&["--cgroup", groups.0.to_str().unwrap()]);
    let boot = drive(&server, b'i', "");
    let id = made(
        &server,
        "/servers/create",
        &(keys(&boot) + "persistent true"),
    );
    let group = groups.0.join(&id);
    let setting = |name: &str| std::fs::read_to_string(group.join(name)).unwrap();
    assert_eq!(setting("cpu.weight").trim(), "50");
    let [guest] = processes(&server)[..] else {
        panic!("not one process");
    };
    assert_eq!(setting("cgroup.procs").trim(), guest.to_string());
    wait_console(&server, &id, "boot 1");
    // The limit can be changed while the guest runs, also by a server that was started later.
    server.kill9();
    server.start_again();
    assert_eq!(setting("cgroup.procs").trim(), guest.to_string());
    post(&server, &format!("/servers/{id}/set"), "cpu 3000").expect(200);
    assert_eq!(setting("cpu.weight").trim(), "300");
    command(&server, &id, "stop").expect(204);
    assert!(!group.exists());
    command(&server, &id, "start").expect(200);
    assert_eq!(setting("cpu.weight").trim(), "300");
    command(&server, &id, "destroy").expect(204);
    assert!(!group.exists());
}

#[test]
fn drives_are_claimed_by_their_mode() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::with_args(&["--user", &format!("{NOBODY}:key-a"), "--user", OTHER]);
    let exclusive = drive(&server, b'i', "");
    let everyone = "claim:type shared\nreaders ffffffff-ffff-ffff-ffff-ffffffffffff";
    let shared = drive(&server, b'i', everyone);
    let first = made(
        &server,
        "/servers/create",
        &(keys(&exclusive) + format!("ide:0:1 {shared}").as_str()),
    );
    // None of the servers is started, and none of them remains.
    let refused = post(&server, "/servers/create", &keys(&exclusive));
    assert_eq!(refused.error(), (409, "busy"));
    let list = Ask::of(&server).get("/servers/list").expect(200);
    assert_eq!(list.text(), format!("{first}\n"));
    let second = made(&server, "/servers/create", &keys(&shared));
    let claimed = info(&server, &shared, "claimed").unwrap();
    assert_eq!(claimed.split(' ').count(), 2);
    assert!(
        claimed.contains(&format!(":guest:{first}:ide:0:1")),
        "{claimed}"
    );

    // Another user may look at a shared drive, but not change it.
    let by_other = |path: &str, body: &str| Ask::of(&server).by(OTHER).post(path, body);
    let refused = by_other("/servers/create/stopped", &keys(&shared));
    assert_eq!(refused.error(), (400, "usage"));
    let refused = by_other("/servers/create/stopped", &keys(&exclusive));
    assert_eq!(refused.error(), (404, "missing"));
    let cd = keys(&shared) + "ide:0:0:media cdrom";
    let third = by_other("/servers/create", &cd).expect(200);
    let third = third.key("server").unwrap();
    assert_eq!(command(&server, third, "info").error(), (404, "missing"));
    assert_eq!(by_other("/servers/list", "").text(), format!("{third}\n"));
    by_other(&format!("/servers/{third}/destroy"), "").expect(204);
    for id in [first, second] {
        command(&server, &id, "destroy").expect(204);
    }
    assert_eq!(info(&server, &shared, "claimed"), None);
    // A drive that is in use in a conflicting way cannot be claimed.
    let missing = post(&server, "/servers/create", &keys(NOBODY));
    assert_eq!(missing.error(), (404, "missing"));
}

#[test]
fn each_bus_boots_and_each_card_is_there() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::start();
    let vlan = post(&server, "/resources/vlan/create", "name net").expect(200);
    let vlan = vlan.key("resource").unwrap();
    let ip = post(&server, "/resources/ip/create", "").expect(200);
    let ip = ip.key("resource").unwrap();
    for (slot, nics) in [
        ("ide:1:1", "nic:0:model e1000\nnic:0:dhcp auto".to_owned()),
        ("scsi:0:3", format!("nic:0:model rtl8139\nnic:0:dhcp {ip}")),
        (
            "block:0",
            format!("nic:0:model virtio\nnic:0:dhcp auto\nnic:1:vlan {vlan}"),
        ),
        ("ata:0:4", String::new()),
    ] {
        let boot = drive(&server, b'i', "");
        let body = format!("name s\ncpu 500\nmem 32\nboot {slot}\n{slot} {boot}\n{nics}");
        let reply = post(&server, "/servers/create", &body).expect(200);
        let id = reply.key("server").unwrap();
        wait_console(&server, id, "boot 1");
        if nics.contains(ip) {
            assert_eq!(reply.key("nic:0:dhcp:ip"), Some(ip));
            let destroy = format!("/resources/ip/{ip}/destroy");
            assert_eq!(post(&server, &destroy, "").error(), (409, "busy"));
            let again = post(
                &server,
                "/servers/create",
                &format!("cpu 500\nmem 16\n{nics}"),
            );
            assert_eq!(again.error(), (409, "busy"));
        }
        if nics.contains(vlan) {
            let destroy = format!("/resources/vlan/{vlan}/destroy");
            assert_eq!(post(&server, &destroy, "").error(), (409, "busy"));
            assert!(reply.key("nic:1:mac").is_some());
        }
        command(&server, id, "destroy").expect(204);
    }
    post(&server, &format!("/resources/vlan/{vlan}/destroy"), "").expect(204);
}

#[test]
fn a_forwarded_port_reaches_the_guest() {
    if !has_qemu() {
        return;
    }
    let server = TestServer::with_args(&["--forward", "8022"]);
    let boot = drive(&server, b'i', "");
    let body = keys(&boot) + "nic:0:dhcp auto";
    let reply = post(&server, "/servers/create", &body).expect(200);
    // QEMU accepts the connection. This guest never answers.
    TcpStream::connect((reply.key("nic:0:ip").unwrap(), 8022)).unwrap();
    let id = reply.key("server").unwrap();
    command(&server, id, "destroy").expect(204);
}

#[test]
fn without_qemu_only_starting_fails() {
    let server = TestServer::with_args(&["--qemu", "/nonexistent/qemu"]);
    let boot = drive(&server, b'i', "");
    let refused = post(&server, "/servers/create", &keys(&boot));
    assert_eq!(refused.error(), (500, "failed"));
    assert!(
        refused.text().contains("qemu-system-x86"),
        "{}",
        refused.text()
    );
    assert_eq!(Ask::of(&server).get("/servers/list").expect(200).text(), "");
    assert_eq!(info(&server, &boot, "claimed"), None);
    let id = made(&server, "/servers/create/stopped", &keys(&boot));
    assert_eq!(command(&server, &id, "start").error(), (500, "failed"));
    assert_eq!(key(&server, &id, "status").as_deref(), Some("stopped"));
    command(&server, &id, "destroy").expect(204);
}

#[test]
fn a_stopped_server_is_shown_in_both_formats_and_remains() {
    let mut server = TestServer::start();
    let boot = drive(&server, b'i', "");
    let body = json!({
        "name": "n", "cpu": "500", "mem": 64, "smp": 2, "persistent": true,
        "ide:0:0": boot, "ide:0:0:media": "disk", "boot": ["ide:0:0"],
        "nic:0:model": "virtio", "nic:0:dhcp": "auto", "vnc": "auto", "vnc:password": "pw",
    });
    let ask = || {
        Ask::of(&server)
            .with("Content-Type: application/json")
            .with("Accept: application/json")
    };
    let made = ask()
        .post("/servers/create/stopped", body.to_string())
        .expect(200);
    assert_eq!(
        made.header("x-openhosting-extensions"),
        Some("console, screen, suspend")
    );
    let object = made.json();
    let id = object["server"].as_str().unwrap().to_owned();
    assert_eq!(
        object,
        json!({
            "boot": "ide:0:0", "cpu": 500, "ide:0:0": boot, "ide:0:0:media": "disk", "mem": 64,
            "name": "n", "nic:0:dhcp": "auto", "nic:0:mac": object["nic:0:mac"],
            "nic:0:model": "virtio", "persistent": "true", "server": id, "smp": 2,
            "status": "stopped", "type": "vm", "user": server.user, "vnc": "auto",
            "vnc:password": "pw",
        })
    );
    assert_eq!(
        ask().get("/servers/list").expect(200).json(),
        json!([{"server": id, "uuid": id}])
    );
    assert_eq!(
        ask().get("/servers/info").expect(200).json(),
        json!([object])
    );
    let path = format!("/servers/{id}/info/full");
    assert_eq!(ask().send("POST", &path, b"").expect(200).json(), object);
    let text = Ask::of(&server).get(&path).expect(200);
    assert_eq!(text.header("x-elastic-output"), Some("properties"));
    assert!(
        text.text().starts_with("boot ide:0:0\ncpu 500\n"),
        "{}",
        text.text()
    );

    // A GET changes nothing. An unknown key is refused with its name. A server of another user does
    // not exist for this one.
    for name in ["start", "stop", "destroy", "set", "suspend"] {
        let refused = Ask::of(&server).get(&format!("/servers/{id}/{name}"));
        assert_eq!(refused.error(), (405, "method"), "{name}");
    }
    let refused = post(&server, &format!("/servers/{id}/set"), "memory 5");
    assert!(refused.text().contains("\"memory\""), "{}", refused.text());
    for name in ["info", "start", "console", "screen"] {
        assert_eq!(
            command(&server, NOBODY, name).error(),
            (404, "missing"),
            "{name}"
        );
    }
    server.kill9();
    server.start_again();
    let text_again = Ask::of(&server).get(&path).expect(200);
    assert_eq!(text_again.text(), text.text());
    // A damaged record is not a server, and does not disturb others.
    server.kill9();
    let file = server.data.join("servers").join(format!("{id}.meta"));
    let record = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, record.replace("cpu 500", "cpu 501")).unwrap();
    server.start_again();
    assert_eq!(Ask::of(&server).get("/servers/list").expect(200).text(), "");
}

#[test]
fn a_fault_plan_hides_the_extensions() {
    let server = TestServer::with_plan(&json!({"counters": "full"}));
    let id = made(&server, "/servers/create/stopped", "cpu 500\nmem 16");
    let info = command(&server, &id, "info").expect(200);
    assert_eq!(info.header("x-openhosting-extensions"), None);
    for name in ["console", "screen", "suspend", "resume"] {
        assert_eq!(
            command(&server, &id, name).error(),
            (404, "missing"),
            "{name}"
        );
    }
}

#[test]
fn resources_are_created_shown_changed_and_destroyed() {
    let mut server = TestServer::start();
    let vlan = post(&server, "/resources/vlan/create", "name 2G").expect(200);
    let name = vlan.key("resource").unwrap().to_owned();
    let theirs = recorded("mattparker/resources_vlan_create.txt");
    let ours = vlan.text().replace(&name, "{guid}");
    let ours = ours.replace(&server.user, "cccccccc-0000-cccc-8888-eeeeeeeeeee");
    assert_eq!(ours.trim_end(), theirs.trim_end());
    let ip = post(&server, "/resources/ip/create", "name a").expect(200);
    let address = ip.key("resource").unwrap().to_owned();
    let get = |path: &str| Ask::of(&server).get(path).expect(200);
    let list = get("/resources/list");
    assert_eq!(list.text(), format!("ip {address}\nvlan {name}\n"));
    assert_eq!(list.header("x-elastic-output"), Some("list"));
    assert_eq!(get("/resources/vlan/list").text(), format!("vlan {name}\n"));
    let json = Ask::of(&server).with("Accept: application/json");
    let json = json.get("/resources/ip/list").expect(200).json();
    assert_eq!(json, json!([{"type": "ip", "resource": address}]));
    assert_eq!(get("/resources/info").text().split("\n\n").count(), 2);
    let path = |command: &str| format!("/resources/ip/{address}/{command}");
    let changed = post(&server, &path("set"), "name b").expect(200);
    assert_eq!(changed.key("name"), Some("b"));
    assert_eq!(
        post(&server, &path("set"), "type vlan").error(),
        (400, "usage")
    );
    assert_eq!(
        Ask::of(&server).get(&path("destroy")).error(),
        (405, "method")
    );
    // A static address must belong to the user.
    let keys = "cpu 500\nmem 16\nnic:0:dhcp ";
    let refused = post(
        &server,
        "/servers/create/stopped",
        &format!("{keys}192.0.2.1"),
    );
    assert_eq!(refused.error(), (404, "missing"));
    post(
        &server,
        "/servers/create/stopped",
        &format!("{keys}{address}"),
    )
    .expect(200);

    server.kill9();
    server.start_again();
    let again = Ask::of(&server).get(&path("info")).expect(200);
    assert_eq!(again.text(), changed.text());
    post(&server, &path("destroy"), "").expect(204);
    assert_eq!(post(&server, &path("info"), "").error(), (404, "missing"));
}

/// Requests of the original tool and of other clients, sent with curl, and compared with answers
/// that were recorded from the real systems. Each of their keys is in our answer, with the same
/// value unless it is specific to their installation.
#[test]
fn curl_with_the_requests_of_the_original_tools_gets_the_recorded_answers() {
    let server = TestServer::start();
    let boot = drive(&server, b'i', "");
    let curl = |path: &str, media_type: &str, accept: Option<&str>, body: &str| {
        let mut command = Command::new("curl");
        command
            .args(["-s", "-S", "-K", "-", "-X", "POST", "-H", "Expect:"])
            .args(["-H", &format!("Content-Type: {media_type}")])
            .args(
                accept
                    .iter()
                    .flat_map(|a| ["-H".to_owned(), format!("Accept: {a}")]),
            )
            .args(["--data-binary", body])
            .arg(format!("{}{path}", server.uri.trim_end_matches('/')));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let user = format!("user = \"{}\"\n", server.auth());
        child
            .stdin
            .take()
            .unwrap()
            .write_all(user.as_bytes())
            .unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{path}");
        String::from_utf8(out.stdout).unwrap()
    };
    let can_start = has_qemu();
    let path = match can_start {
        true => "/servers/create",
        false => "/servers/create/stopped",
    };
    let value = |text: &str, key: &str| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.map(str::to_owned)
    };
    // Bodies as they were recorded, but with a drive that exists. The answers have the recorded
    // keys if the server runs.
    let cases = [
        (
            "retyped/servers_create.request.txt",
            "retyped/servers_create.txt",
        ),
        (
            "jclouds/create_server_2010.txt",
            "jclouds/new_server_2010.txt",
        ),
        ("jclouds/create_server.txt", "mattparker/servers_create.txt"),
    ];
    for (request, answer) in cases {
        let (request, answer) = (recorded(request), recorded(answer));
        let sent = request.replace("08c92dd5-70a0-4f51-83d2-835919d254df", &boot);
        let sent = sent.replace("mem 1024", "mem 16");
        let reply = curl(path, "application/octet-stream", None, &sent);
        let id = value(&reply, "server").unwrap_or_else(|| panic!("{reply}"));
        for line in answer.lines() {
            let (key, _) = line.split_once(' ').unwrap();
            let is_there = value(&reply, key).is_some();
            match key {
                // The network of a cloud counts these bytes, and blocks these ports.
                "rx" | "tx" | "rx:packets" | "tx:packets" | "nic:0:block" => assert!(!is_there),
                // Present only if the request contains it.
                "persistent" | "ide:0:0:media" | "vnc:password" | "nic:0:dhcp"
                | "nic:0:dhcp:ip" => {
                    let is_asked = sent.contains(&format!("{} ", key.trim_end_matches(":ip")))
                        && !sent.contains("persistent false");
                    if is_asked && can_start {
                        assert!(is_there, "{key}: {reply}");
                    }
                }
                _ if can_start => assert!(is_there, "{key}: {reply}"),
                _ => {}
            }
        }
        for line in sent.lines() {
            let (key, wanted) = line.split_once(' ').unwrap();
            let wanted = match (key, wanted) {
                ("persistent", "false") | ("vnc:ip", _) => continue,
                _ => wanted,
            };
            assert_eq!(value(&reply, key).as_deref(), Some(wanted), "{key}");
        }
        // The tool sends this without data: an empty POST with any content type.
        let form = "application/x-www-form-urlencoded";
        let info = curl(&format!("/servers/{id}/info"), form, None, "");
        assert_eq!(value(&info, "server"), Some(id.clone()));
        let json = curl(
            "/servers/info",
            "application/json",
            Some("application/json"),
            "",
        );
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json[0]["server"], &json[0]["cpu"]),
            (&json!(id), &json!(2000))
        );
        // The meaningless body and content type that a backup script sends.
        assert_eq!(
            curl(
                &format!("/servers/{id}/destroy"),
                "header",
                None,
                "/servers/x/destroy"
            ),
            ""
        );
    }
    assert_eq!(curl("/servers/list", "text/plain", None, ""), "");
}
