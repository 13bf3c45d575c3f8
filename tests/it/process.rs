//! Effects of the system on a process: signals while it waits for a person, limits of descriptors
//! and threads, secrets that an administrator mounts.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::support::cli::{DOWNLOAD, Desk, SIMPLE, Tool, UPLOAD, has_terminals};
use crate::support::needs::{Need, needs};

/// Runs the tool, sends it a signal as soon as the terminal hides what is typed, and prints its
/// exit code and the settings of the terminal.
const STOPPED_AT_THE_QUESTION: &str = r#"
"$@" & pid=$!
until stty -a </dev/tty | grep -q -- '-echo '; do sleep 0.05; done
[ -z "$SIGNAL" ] || kill -s "$SIGNAL" "$pid"
wait "$pid"
echo "code $?"
stty -a </dev/tty | tr ';' ' ' | tr '\n' ' '
"#;

/// An unprivileged user.
const NOBODY: u32 = 65534;

fn as_nobody(desk: &Desk) -> Tool<'_> {
    let user = format!("--reuid={NOBODY}");
    let group = format!("--regid={NOBODY}");
    desk.tool("setpriv")
        .list([user, group, "--clear-groups".into()])
}

#[test]
fn signals_and_the_deadline_end_the_question_for_the_key() {
    if !has_terminals() {
        return;
    }
    for (signal, words, code) in [
        ("TERM", "", 143),
        ("INT", "", 130),
        ("", "--deadline 300ms", 75),
    ] {
        let desk = Desk::new();
        let server = desk.server();
        desk.file("a.img", &[7; 5000]);
        for program in [UPLOAD, SIMPLE] {
            let arguments = match program {
                UPLOAD => format!("{words} a.img"),
                // A raw call has no deadline.
                _ if signal.is_empty() => continue,
                _ => "drives list".into(),
            };
            let outcome = desk
                .on_a_terminal("", "sh")
                .args("-c")
                .list([STOPPED_AT_THE_QUESTION, "sh", program])
                .args(&arguments)
                .env("SIGNAL", signal)
                .env("OHURI", &server.uri)
                .env("OHAUTH", &desk.user)
                .run()
                .code(0);
            let expected = format!("code {code}");
            assert!(outcome.text().contains(&expected), "{outcome:?}");
            assert!(outcome.text().contains(" echo "), "{outcome:?}");
            assert!(outcome.text().contains(" isig "), "{outcome:?}");
        }
    }
}

#[test]
fn a_credentials_command_ends_with_the_program() {
    let desk = Desk::new();
    let directory = desk.path("../home/.config/openhosting");
    std::fs::create_dir_all(&directory).unwrap();
    let config = directory.join("config.toml");
    let text = "[profiles.p]\nendpoint = \"http://127.0.0.1:9/\"\n\
                credentials.command = [\"sh\", \"-c\", \"echo $$ >pid; exec sleep 1000\"]\n";
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
    desk.file("a.img", &[7; 5000]);
    let tool = desk.tool(UPLOAD).unset("OHAUTH");
    let _ = tool
        .args("--profile p --deadline 500ms a.img")
        .run()
        .code(75);
    let pid = std::fs::read_to_string(desk.path("pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    // Killed, and reaped by the process that adopts it.
    let is_gone = || {
        let state = std::fs::read_to_string(process.join("stat"));
        state.is_err() || state.is_ok_and(|state| state.contains(") Z "))
    };
    for _ in 0..1000 {
        if is_gone() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {} still runs", pid.trim());
}

#[test]
fn too_few_descriptors_are_an_error_without_a_panic() {
    let desk = Desk::new();
    desk.file("a.img", &[7; 5000]);
    let server = env!("CARGO_BIN_EXE_openhosting-server");
    for (program, arguments) in [
        (UPLOAD, "--local cloud a.img"),
        (DOWNLOAD, "0012e24a-6eae-4279-9912-3432f698cec8 b.img"),
        (SIMPLE, "drives list"),
        (SIMPLE, "ls"),
        (server, "--data data"),
    ] {
        let outcome = desk
            .tool("sh")
            .args("-c")
            .list(["ulimit -n 16; exec \"$@\"", "sh", program])
            .args(arguments)
            .env("OHURI", "http://127.0.0.1:9/")
            .run()
            .code(1)
            .says("Cannot start: 32 files cannot be open at once")
            .says("ulimit -n 1024");
        assert!(!format!("{outcome:?}").contains("panicked"), "{outcome:?}");
    }
}

#[test]
fn too_few_threads_are_an_error_without_a_panic() {
    if !needs(&[Need::Root]) {
        return;
    }
    let desk = Desk::new();
    for (program, arguments) in [(UPLOAD, "--local cloud a.img"), (SIMPLE, "drives list")] {
        let outcome = as_nobody(&desk)
            .args("prlimit --nproc=1:1")
            .arg(program)
            .args(arguments)
            .env("OHURI", "http://127.0.0.1:9/")
            .run()
            .code(1)
            .says("threads cannot run at once")
            .says("ulimit -u");
        assert!(!format!("{outcome:?}").contains("panicked"), "{outcome:?}");
    }
}

#[test]
fn a_secret_that_is_mounted_for_the_group_is_accepted() {
    if !needs(&[Need::Root]) {
        return;
    }
    let desk = Desk::new();
    let server = desk.server();
    let directory = desk.path("../home/.config/openhosting");
    std::fs::create_dir_all(&directory).unwrap();
    let (config, key) = (directory.join("config.toml"), directory.join("key"));
    let text = format!(
        "[profiles.p]\nendpoint = \"{}\"\ncredentials.file = \"key\"\n",
        server.uri
    );
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&key, desk.auth()).unwrap();
    desk.own(&key);
    desk.own(&std::fs::canonicalize(&key).unwrap());
    chown(&key, Some(0), Some(NOBODY)).unwrap();
    let list = |tool: Tool<'_>| {
        let tool = tool.arg(SIMPLE).args("--profile p drives list");
        tool.unset("OHAUTH").run()
    };
    let set = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
    // As Kubernetes mounts it with fsGroup, and systemd with an access list.
    set(0o440);
    let _ = list(as_nobody(&desk)).code(0);
    for mode in [0o444, 0o460] {
        set(mode);
        let refused = list(as_nobody(&desk)).code(2).says("others can read it");
        let _ = refused.says("defaultMode of a Kubernetes volume");
    }
    // Root in a container: it owns the file, and the mount is read-only.
    set(0o440);
    let _ = list(desk.tool("env")).code(2).says("Run: chmod 600 ");
    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let mounted = desk
        .tool("unshare")
        .args("--mount sh -c")
        .arg(read_only)
        .arg(&directory);
    let _ = list(mounted).code(0);
}
