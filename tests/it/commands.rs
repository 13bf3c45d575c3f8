//! The commands of `openhosting`, and words that are not commands.

use std::net::{IpAddr, UdpSocket};

use crate::support::cli::{DOWNLOAD, Desk, Outcome, SIMPLE, UPLOAD, has_terminals};
use crate::support::http::{assert_drive, create, drives};
use crate::support::needs::{Need, needs};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer};

const SERVER: &str = env!("CARGO_BIN_EXE_openhosting-server");

#[test]
fn an_unknown_command_is_refused_and_sends_nothing() {
    let desk = Desk::new();
    let proxy = FaultProxy::stub(|_| answer(200, &[], b"ok\n"));
    let cases = [
        (
            "uplaod a.img",
            "There is no command \"uplaod\"",
            "Did you mean \"upload\"?",
        ),
        (
            "dowload x y",
            "There is no command \"dowload\"",
            "Did you mean \"download\"?",
        ),
        (
            "drive list",
            "There is no command \"drive\"",
            "Did you mean \"drives\"?",
        ),
        ("list", "There is no command \"list\"", "Did you mean"),
        ("/nope", "There is no command \"/nope\"", "openhosting help"),
        (
            "resume",
            "There is no command \"resume\"",
            "Run the command that stopped again: it continues",
        ),
        (
            "profiles",
            "There is no command \"profiles\"",
            "\"openhosting login\" stores a profile",
        ),
        (
            "-j probes",
            "There is no command \"probes\"",
            "Did you mean \"probe\"?",
        ),
        (
            "-v ls",
            "The flags of \"ls\" follow it",
            "openhosting ls --help",
        ),
        (
            "help uplaod",
            "There is no command \"uplaod\"",
            "Did you mean \"upload\"?",
        ),
        ("", "Usage: openhosting COMMAND", "Upload an image"),
    ];
    for (words, what, hint) in cases {
        let outcome = desk.simple(&proxy.uri()).args(words).run().code(2);
        let outcome = outcome.says(what).says(hint);
        assert!(outcome.stdout.is_empty(), "{words}");
    }
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn the_calls_of_the_providers_script_are_calls() {
    let desk = Desk::new();
    let proxy = FaultProxy::stub(|_| answer(200, &[], b"ok\n"));
    let cases = [
        ("drives list", "/drives/list"),
        ("/servers/list", "/servers/list"),
        ("resources ip list", "/resources/ip/list"),
        ("-j profile info", "/profile/info"),
        ("api drives list", "/drives/list"),
        ("api -j health", "/health"),
    ];
    for (words, path) in cases {
        proxy.forget();
        let outcome = desk.simple(&proxy.uri()).args(words).run().code(0);
        assert_eq!(outcome.text(), "ok\n");
        assert_eq!(proxy.requests()[0].path, path, "{words}");
    }
}

#[test]
fn openhosting_does_what_the_other_programs_do() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(5, 100_000);
    desk.file("a.img", &image);
    let outcome = desk
        .simple(&server.uri)
        .args("upload -q a.img")
        .run()
        .code(0);
    let drive = outcome.created();
    assert_drive(&server, &drive, &image);
    let words = format!("download -q {drive} b.img");
    let _ = desk.simple(&server.uri).args(&words).run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    let version = format!("openhosting {}\n", env!("CARGO_PKG_VERSION"));
    for words in ["version", "--version", "-V"] {
        let outcome = desk.tool(SIMPLE).args(words).run().code(0);
        assert_eq!(outcome.text(), version);
    }
    let outcome = desk.tool(SIMPLE).args("version --verbose").run().code(0);
    let about = outcome.text();
    for line in [
        "\ncommit   ",
        "\ntarget   ",
        "\nfeatures cli, server, signing\n",
        "\nstate    /",
    ] {
        assert!(about.contains(line), "{line:?} is not in {about}");
    }
}

#[test]
fn every_command_has_help_that_names_it() {
    let desk = Desk::new();
    let list = desk.tool(SIMPLE).args("help").run().code(0);
    let commands: Vec<_> = list
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.starts_with('-'))
        .map(str::to_owned)
        .collect();
    assert!(commands.len() >= 14, "{commands:?}");
    for command in commands {
        let by_flag = desk.tool(SIMPLE).args(&format!("{command} --help"));
        let by_flag = by_flag.run().code(0).text().to_owned();
        let usage = format!("Usage: openhosting {command}");
        assert!(by_flag.contains(&usage), "{command}: {by_flag}");
        let by_word = desk.tool(SIMPLE).args(&format!("help {command}"));
        assert_eq!(by_word.run().code(0).text(), by_flag, "{command}");
    }
    let api = desk.tool(SIMPLE).args("help api").run().code(0);
    let drives = desk.tool(SIMPLE).args("help drives").run().code(0);
    assert_eq!(drives.text(), api.text());
    for (program, name) in [
        (UPLOAD, "openhosting-upload"),
        (DOWNLOAD, "openhosting-download"),
    ] {
        let help = desk.tool(program).args("--help").run().code(0);
        assert!(help.text().contains(&format!("Usage: {name} ")), "{help:?}");
    }
    let list = desk.tool(SIMPLE).arg("help").run().code(0);
    for words in ["help help", "help --help"] {
        let about = desk.tool(SIMPLE).args(words).run().code(0);
        assert_eq!(about.text(), list.text());
    }
}

#[test]
fn a_command_in_a_pipe_prints_plain_lines_and_no_dots() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(5, 100_000));
    let uploaded = desk.simple(&server.uri).args("upload -c 4096 a.img").run();
    let uploaded = uploaded.code(0).says("Uploaded a.img (98 KiB) to drive ");
    let drive = uploaded.created();
    assert_eq!(
        uploaded.text(),
        format!("Created drive {drive} of size 100000\n")
    );
    // The program of the same name prints what the providers' script does.
    let script = desk
        .upload(&server.uri)
        .args("-c 4096 -d")
        .arg(&drive)
        .arg("a.img");
    assert!(script.run().code(0).text().contains(" bytes: ....."));
    let words = format!("download {drive} a.qcow2");
    let downloaded = desk.simple(&server.uri).args(&words).run().code(0);
    assert_eq!(downloaded.text(), "");
    let _ = downloaded
        .says("openhosting download: note: a.qcow2 will hold a raw image: for a qcow2 add --format qcow2")
        .says("Downloaded drive ");
    // One letter for JSON in all commands.
    for words in [
        format!("show -J {drive}"),
        "ls -J".into(),
        "upload -J a.img".into(),
    ] {
        let done = desk.simple(&server.uri).args(&words).run().code(0);
        let _: serde_json::Value = serde_json::from_str(done.text()).unwrap();
    }
}

#[test]
fn a_server_on_a_terminal_prints_the_next_steps() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let server = desk.on_a_screen(80, "Ctrl-C stops", SERVER);
    let outcome = server.args("--data drives --listen 127.0.0.1:0").run();
    let shown = outcome.text();
    for line in [
        "Drives:       drives",
        "Web page:     http://127.0.0.1:",
        "to keep it: --listen 127.0.0.1:",
        "export OHURI=http://127.0.0.1:",
        "export OHAUTH=",
        "Ctrl-C stops the server",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // A line of the log has a short time and no module, and the address is not printed again.
    let stopping = shown.lines().find_map(|line| line.split_once("Stopping"));
    let before = stopping.unwrap_or_else(|| panic!("{shown}")).0;
    let before = before.trim_start_matches("^C");
    let time = before.split_whitespace().next();
    assert_eq!(time.map(str::len), Some("18:21:05Z".len()), "{shown}");
    assert!(before.ends_with("Z  INFO "), "{shown}");
    assert!(!shown.contains("Serving address"), "{shown}");
    // The key of a made-up user is for whoever started it.
    desk.own(&desk.path("drives"));
}

#[test]
fn a_server_listens_on_its_default_port_or_a_free_one() {
    let desk = Desk::new();
    let start = |data: &str| {
        let server = desk.tool(SERVER).args("--json --data").arg(data).spawn();
        server.wait_stderr("Serving");
        server
    };
    let servers = [start("a"), start("b")];
    let ports = servers.map(|server| {
        server.signal("TERM");
        let outcome = server.wait().code(0);
        let value: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        value["endpoint"].as_str().unwrap().to_owned()
    });
    assert_ne!(ports[0], ports[1]);
    // Another program of this machine may use it.
    let is_free = std::net::TcpListener::bind("127.0.0.1:8463").is_ok();
    assert!(
        !is_free || ports[0] == "http://127.0.0.1:8463/",
        "{ports:?}"
    );
}

#[test]
fn a_self_signed_server_serves_clients_that_have_its_certificate() {
    let desk = Desk::new();
    let server = desk.server_with(&["--tls-self-signed"]);
    assert!(
        server.uri.starts_with("https://127.0.0.1:"),
        "{}",
        server.uri
    );
    let certificate = server.data.join("self-signed-127.0.0.1.pem");
    let ls = || desk.simple(&server.uri).arg("ls");
    let _ = ls().arg("--cacert").arg(&certificate).run().code(0);
    let outcome = ls().run();
    assert_ne!(outcome.status.code(), Some(0));
}

/// The addresses that this machine uses towards others, if it has a route to them.
fn own_address(any: &str, other: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Nothing is sent.
    socket.connect((other, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[test]
fn a_self_signed_certificate_for_all_addresses_names_the_machine_and_each_address() {
    let desk = Desk::new();
    let is_v6 = UdpSocket::bind("[::1]:0").is_ok();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        if listen.starts_with('[') && !is_v6 {
            continue;
        }
        let server = desk.server_with(&["--tls-self-signed", "--listen", listen]);
        let address = listen.trim_end_matches(":0").trim_matches(['[', ']']);
        let file = format!("self-signed-{}.pem", address.replace(':', "-"));
        let certificate = server.data.join(file);
        let port = server.uri.trim_end_matches('/').rsplit(':').next().unwrap();
        let v4 = own_address("0.0.0.0", "192.0.2.1").map(|ip| ip.to_string());
        let v6 = own_address("::", "2001:db8::1").filter(|_| listen.starts_with('['));
        let v6 = v6.map(|ip| format!("[{ip}]"));
        let hosts = ["localhost", "127.0.0.1"].map(str::to_owned);
        let hosts = hosts.into_iter().chain(v4).chain(v6);
        let uris = hosts.map(|host| format!("https://{host}:{port}/"));
        // The printed address works on this machine.
        for uri in uris.chain([server.uri.clone()]) {
            let ls = desk.simple(&uri).arg("ls").arg("--cacert");
            let _ = ls.arg(&certificate).run().code(0);
        }
        if !needs(&[Need::Command("curl")]) {
            return;
        }
        // The host name, whether or not it can be resolved here.
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let name = name.trim();
        let curl = desk.tool("curl").args("-sS -o /dev/null --cacert");
        let curl = curl.arg(&certificate).arg("--resolve");
        let curl = curl.arg(format!("{name}:{port}:127.0.0.1"));
        let curl = curl.arg(format!("https://{name}:{port}/health"));
        let _ = curl.run().code(0);
    }
}

#[test]
fn downloading_an_unfinished_upload_is_reported() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &noise(7, 1 << 20));
    let upload = desk.upload(&server.uri).args("-c 65536 --limit-rate 100k");
    let _ = upload.args("--deadline 1s a.img").run().code(75);
    let drive = drives(&server)[0].clone();
    let download = || desk.simple(&server.uri).args("download --force");
    let outcome = download().arg(&drive).arg("b.img").run().code(0);
    let _ = outcome.says("parts of the disk may be missing");
    let _ = desk
        .upload(&server.uri)
        .args("-c 65536 a.img")
        .run()
        .code(0);
    let outcome = download().arg(&drive).arg("b.img").run().code(0);
    assert!(!outcome.stderr.contains("may be missing"), "{outcome:?}");
}

#[test]
fn a_page_of_the_manual_is_found_by_its_command() {
    let desk = Desk::new();
    let outcome = desk.tool(SIMPLE).args("man upload").run().code(0);
    assert!(outcome.text().contains("OPENHOSTING-UPLOAD"), "{outcome:?}");
    assert!(!desk.path("upload").exists());
    let _ = desk.tool(SIMPLE).args("man --page login").run().code(0);
}

#[test]
fn messages_of_the_server_use_the_name_it_was_started_by() {
    let desk = Desk::new();
    for (tool, name) in [
        (desk.tool(SIMPLE).arg("server"), "openhosting server"),
        (desk.tool(SERVER), "openhosting-server"),
    ] {
        let help = tool.arg("-h").run().code(0);
        assert!(
            help.text().contains(&format!("Usage: {name} [OPTIONS]")),
            "{}",
            help.text()
        );
    }
    for (tool, name) in [
        (desk.tool(SIMPLE).arg("server"), "openhosting server"),
        (desk.tool(SERVER), "openhosting-server"),
    ] {
        let wrong = tool.args("--data drives --tls-cert nosuch --tls-key nosuch");
        let wrong = wrong.run();
        assert!(
            wrong.stderr.starts_with(&format!("{name}: ")),
            "{}",
            wrong.stderr
        );
    }
}

#[test]
fn a_refused_local_port_is_reported_at_once() {
    let desk = Desk::new();
    desk.file("a.img", &[1; 1000]);
    // No flag limits the time: if it were an outage, the watchdog would end the test.
    for words in ["upload a.img", "ls", "publish -n n a.img"] {
        let tool = desk.simple("http://127.0.0.1:1/").args(words);
        let refused = tool.run().code(75);
        let refused =
            refused.says("cannot connect to 127.0.0.1:1 (from OHURI): connection refused");
        let refused = refused.says("Is the server running");
        assert!(
            !refused.stderr.contains("does not answer"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn an_unwritable_destination_is_reported_before_the_transfer() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &[1; 1000]);
    std::fs::create_dir(desk.path("dir")).unwrap();
    std::fs::create_dir(desk.path("out.sha256")).unwrap();
    for receipt in ["dir", "a.img/r.json", "/proc/r.json"] {
        let publish = desk
            .simple(&server.uri)
            .args("publish -n n a.img --receipt");
        let refused = publish.arg(receipt).run().code(1);
        let _ = refused.says(&format!("Cannot write the receipt {receipt}"));
    }
    assert!(drives(&server).is_empty());
    let drive = create(&server, 1000);
    let download = desk.simple(&server.uri).args("download --checksum");
    let refused = download.arg(&drive).arg("out").run().code(1);
    let _ = refused.says("Cannot write out.sha256");
    assert!(!desk.path("out").exists() && !desk.path("out.oh-part").exists());
}

#[test]
fn flags_without_an_effect_are_reported() {
    let desk = Desk::new();
    let server = desk.server();
    desk.file("a.img", &[1; 1000]);
    let drive = create(&server, 1000);
    // The original script ignores them as well.
    let upload = desk.upload(&server.uri).args("-n x -t ssd -s a.img -d");
    let mut done = upload.arg(&drive).run().code(0);
    for flag in ["-n", "-t", "-s"] {
        done = done.says(&format!("{flag} has no effect here"));
    }
    let _ = desk
        .upload(&server.uri)
        .list(["-n", "", "a.img"])
        .run()
        .code(0);
    let upload = desk
        .simple(&server.uri)
        .args("upload --no-journal --restart a.img");
    let _ = upload
        .run()
        .code(0)
        .says("note: --restart has no effect beside --no-journal");
}

#[test]
fn a_stop_without_a_terminal_prints_the_lines_of_the_script_or_ours() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    desk.file("a.img", &noise(1, 300_000));
    for (tool, program, is_script) in [
        (UPLOAD, "openhosting-upload", true),
        (SIMPLE, "openhosting upload", false),
    ] {
        let gate = Gate::default();
        proxy.heal();
        proxy.forget();
        proxy.fault_after(1, Request::is_write, usize::MAX, Fault::Hold(gate.clone()));
        let words = match is_script {
            true => "",
            false => "upload ",
        };
        let words = format!("{words}-c 65536 -j 1 -n {} a.img", words.len());
        let upload = desk.tool(tool).env("OHURI", proxy.uri()).args(&words);
        let upload = upload.spawn();
        proxy.wait_for("the second write", |requests| {
            requests.iter().filter(|r| r.is_write()).count() == 2
        });
        upload.signal("INT");
        upload.wait_stderr("finishing the requests in flight");
        gate.open();
        let stopped = upload.wait().code(130);
        let says = |text: &str| stopped.stderr.contains(text);
        assert_eq!(says("Restart with '-d "), is_script, "{stopped:?}");
        assert_eq!(says("Stopped at "), !is_script, "{stopped:?}");
        let last = stopped.stderr.trim_end().lines().last().unwrap();
        assert!(last.starts_with(program), "{stopped:?}");
    }
}

#[test]
fn a_renamed_program_keeps_its_commands() {
    let desk = Desk::new();
    desk.file("a.img", &noise(1, 4096));
    let renamed = desk.path("openhosting-0.1");
    std::os::unix::fs::symlink(SIMPLE, &renamed).unwrap();
    let tool = desk.tool(&renamed).env("OHURI", "http://127.0.0.1:1/");
    let outcome = tool.args("upload a.img").run().code(75);
    assert!(
        outcome.stderr.starts_with("openhosting upload: "),
        "{outcome:?}"
    );
    let last = outcome.stderr.lines().last().unwrap();
    assert_eq!(last, "openhosting-0.1 upload a.img");
}

#[test]
fn a_program_in_place_of_a_script_says_how_it_differs() {
    let desk = Desk::new();
    let says = |outcome: Outcome| {
        let outcome = outcome.code(0);
        outcome
            .text()
            .contains("In place of the provider's script:")
    };
    for (program, word) in [(UPLOAD, "upload"), (DOWNLOAD, "download")] {
        assert!(says(desk.tool(program).arg("--help").run()), "{word}");
        let own = desk.tool(SIMPLE).args(word).arg("--help").run();
        assert!(!says(own), "{word}");
    }
}
