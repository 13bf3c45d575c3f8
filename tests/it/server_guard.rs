//! Who may use the server, where it listens, and how it handles damaged data.

use std::io::{BufRead, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::http::{Ask, basic, create, raw, read_all, read_reply};
use crate::support::needs::{Need, skip};
use crate::support::ramp;
use crate::support::server::TestServer;

const A: &str = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:it's a \"key\"";

#[test]
fn only_the_right_key_is_let_in_and_no_secret_is_logged() {
    let server = TestServer::with_args(&["--user", A]);
    let user = &server.user;
    for auth in [
        format!("{user}:wrong"),
        format!("{user}:"),
        user.clone(),
        "2164ce57-591c-43ee-ade5-000000000000:it's a \"key\"".to_owned(),
    ] {
        let reply = Ask::of(&server).by(&auth).get("/drives/list");
        assert_eq!(reply.error(), (401, "auth"), "{auth}");
        let challenge = reply.header("www-authenticate").unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
    let nobody = raw(server.address(), b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(nobody.error(), (401, "auth"));
    // Quotes and spaces in the key belong to it.
    let auth = server.auth();
    assert_eq!(auth, A);
    Ask::of(&server).by(&auth).get("/drives/list").expect(200);
    assert!(!server.log().contains("it's"), "{}", server.log());
    let encoded = basic(&auth);
    assert!(!server.log().contains(&encoded[21..40]));
}

#[test]
fn the_two_lines_can_be_evaluated_by_a_shell() {
    for args in [&[][..], &["--user", A][..]] {
        let data = tempfile::tempdir().unwrap();
        let script = ": >\"$1.out\"; \"$0\" --data \"$1\" \"${@:2}\" >\"$1.out\" 2>/dev/null & \
            while [ \"$(wc -l <\"$1.out\")\" -lt 2 ]; do sleep 0.05; done; kill $!; \
            eval \"$(cat \"$1.out\")\"; printf '%s\\n%s\\n' \"$OHURI\" \"$OHAUTH\"; \
            wc -l <\"$1.out\"";
        let out = Command::new("bash")
            .args(["-c", script, env!("CARGO_BIN_EXE_openhosting-server")])
            .arg(data.path().join("data"))
            .args(args)
            .output()
            .unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].starts_with("http://127.0.0.1:") && lines[0].ends_with('/'));
        match args {
            [] => assert_eq!(lines[1].split(':').next().unwrap().len(), 36),
            _ => assert_eq!(lines[1], A),
        }
        assert_eq!(lines[2].trim(), "2");
    }
}

#[test]
fn a_restart_keeps_the_user_and_the_drives() {
    let mut server = TestServer::start();
    let auth = server.auth();
    let drive = create(&server, 100);
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write"), ramp(0, 100))
        .expect(204);
    server.restart();
    assert_eq!(server.auth(), auth);
    assert_eq!(read_all(&server, &drive), ramp(0, 100));
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
    assert_eq!(info.key("write:bytes"), Some("4196"));
    let mode = |path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(server.data.clone()), 0o700);
    assert_eq!(mode(server.data.join("user")), 0o600);
    assert_eq!(mode(server.drive_file(&drive)), 0o600);
    assert_eq!(mode(server.metadata_file(&drive)), 0o600);
}

#[test]
fn a_damaged_drive_does_not_affect_others() {
    let owner = "2164ce57-591c-43ee-ade5-e2fe0ee13c3e:key-a";
    let other = "58ca3c1f-7629-4771-9b71-863f40153ba4:key-b";
    let nobody = "2164ce57-591c-43ee-ade5-000000000000";
    let mut server = TestServer::with_args(&["--user", owner, "--user", other]);
    let [bad, short, torn, good] = [(); 4].map(|()| create(&server, 10));
    let stopped = server.stop();
    assert!(stopped.success());
    let metadata = std::fs::read_to_string(server.metadata_file(&bad)).unwrap();
    std::fs::write(
        server.metadata_file(&bad),
        metadata.replace("size 10", "size 11"),
    )
    .unwrap();
    std::fs::write(server.drive_file(&short), "x").unwrap();
    std::fs::write(server.metadata_file(&torn), "size 10\nuser").unwrap();
    std::fs::write(server.data.join("staging/left"), "x").unwrap();
    server.start_again();
    let ask = |auth: &str, drive: &str, command: &str| {
        let ask = Ask::of(&server).by(auth);
        ask.post(&format!("/drives/{drive}/{command}"), "")
    };
    // Other users do not learn whether such a drive exists. That includes its real owner if the
    // metadata no longer says who owns it.
    for command in ["info", "read", "destroy", "set", "write"] {
        for (auth, drive) in [(other, &bad), (other, &short), (owner, &torn)] {
            let (reply, nothing) = (ask(auth, drive, command), ask(auth, nobody, command));
            assert_eq!(reply.error(), (404, "missing"), "{command}");
            assert_eq!(reply.body, nothing.body);
        }
    }
    for drive in [&bad, &short] {
        for command in ["info", "read", "set", "write"] {
            let reply = ask(owner, drive, command);
            assert_eq!(reply.error(), (500, "system"), "{command}");
        }
        ask(owner, drive, "destroy").expect(204);
        assert_eq!(ask(owner, drive, "info").error(), (404, "missing"));
        assert!(!server.metadata_file(drive).exists() && !server.drive_file(drive).exists());
    }
    assert_eq!(
        Ask::of(&server).get("/drives/list").expect(200).text(),
        format!("{good}\n")
    );
    assert_eq!(read_all(&server, &good), [0; 10]);
    assert!(!server.data.join("staging/left").exists());
    assert!(server.log().contains(&bad));
}

/// Starts the server where it should refuse to start. Returns its exit code and what it printed.
fn refused(args: &[&str]) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_openhosting-server"));
    if !args.contains(&"--data") {
        command.arg("--data").arg(directory.path());
    }
    let out = command.args(args).output().unwrap();
    assert!(out.stdout.is_empty());
    (
        out.status.code().unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    )
}

#[test]
fn the_server_refuses_to_start_with_bad_settings() {
    let server = TestServer::start();
    let (code, message) = refused(&["--data", server.data.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(message.contains("Another server uses"), "{message}");

    let (code, message) = refused(&["--listen", "0.0.0.0:0"]);
    assert_eq!(code, 2);
    assert!(
        message.contains("without TLS") && message.contains("--tls-cert"),
        "{message}"
    );
    let (code, _) = refused(&["--listen", "[::]:0"]);
    assert_eq!(code, 2);

    let (code, message) = refused(&["--user", "canary:canary"]);
    assert_eq!(code, 2);
    assert!(!message.contains("canary"), "{message}");
    let (code, message) = refused(&["--user", A, "--user", A]);
    assert_eq!(code, 2);
    assert!(
        message.contains("twice") && !message.contains("key\""),
        "{message}"
    );
    let (code, _) = refused(&["--tls-cert", "/nosuch", "--tls-key", "/nosuch"]);
    assert_eq!(code, 1);
}

#[test]
fn the_server_listens_at_the_given_address() {
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let server = TestServer::with_args(&["--listen", "[::1]:0"]);
        assert!(server.uri.starts_with("http://[::1]:"));
        create(&server, 1);
    } else {
        skip(Need::Other("IPv6"), "::1 cannot be bound");
    }
    let server = TestServer::with_args(&["--listen", "0.0.0.0:0", "--insecure-listen"]);
    assert!(server.uri.starts_with("http://0.0.0.0:"));
    create(&server, 1);
}

#[test]
fn users_are_read_from_a_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    std::fs::write(&file, format!("# ours\n{A}\n")).unwrap();
    let path = file.to_str().unwrap();
    let (code, message) = refused(&["--users-file", path]);
    assert_eq!(code, 2);
    assert!(message.contains("chmod 600"), "{message}");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let server = TestServer::with_args(&["--users-file", path]);
    Ask::of(&server).by(A).get("/drives/list").expect(200);
}

/// Returns what a server prints that a shell script starts. The script receives the command of the
/// server as `$0` and `$@`.
fn printed(script: &str, args: &[&str]) -> String {
    let data = tempfile::tempdir().unwrap();
    let script = format!("{script} & server=$!; read -r _ <&3; kill $server; wait $server");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_openhosting-server")])
        .arg("--data")
        .arg(data.path().join("data"))
        .args(args)
        .stdin(reader)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let is_serving = |line: &String| line.contains("Serving");
    assert!(
        log.by_ref()
            .map_while(Result::ok)
            .any(|line| is_serving(&line))
    );
    drop(writer);
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn keys_are_not_printed_from_a_users_file_or_to_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users");
    std::fs::write(&file, format!("{A}\n")).unwrap();
    crate::support::only_for_its_owner(&file);
    let file = file.to_str().unwrap();
    let run = "exec 3<&0; \"$0\" \"$@\"";
    for (args, is_json) in [
        (vec!["--users-file", file], false),
        (vec!["--users-file", file, "--json"], true),
    ] {
        let out = printed(run, &args);
        assert!(out.contains("http://127.0.0.1:"), "{out}");
        assert!(!out.contains("it's") && !out.contains("key"), "{out}");
        assert_eq!(out.contains('{'), is_json);
    }
    // systemd sets this variable if stdout is connected to the journal.
    let journal = "exec 3<&0; export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/1); ";
    let journal = format!("exec 4>&1; {journal}").replace("fd/1", "fd/4");
    let out = printed(&format!("{journal} \"$0\" \"$@\""), &[]);
    assert!(out.contains("OHURI=") && !out.contains("OHAUTH="), "{out}");
    let out = printed("exec 3<&0; JOURNAL_STREAM=1:1 \"$0\" \"$@\"", &[]);
    assert!(out.contains("OHURI=") && out.contains("OHAUTH="), "{out}");
}

#[test]
fn a_tls_key_that_others_may_use_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let files = crate::support::certificate(directory.path(), "localhost");
    let [cert, key] = files.map(|file| file.to_str().unwrap().to_owned());
    let chmod = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
    for mode in [0o644, 0o604, 0o620, 0o666] {
        chmod(mode);
        let (code, message) = refused(&["--tls-cert", &cert, "--tls-key", &key]);
        assert_eq!(code, 2);
        assert!(message.contains(&format!("mode is 0{mode:o}")), "{message}");
        assert!(message.contains(&format!("chmod 600 {key}")), "{message}");
    }
    // The group may be able to read it, which is usual on Debian.
    for mode in [0o600, 0o400, 0o640] {
        chmod(mode);
        let server = TestServer::with_args(&["--tls-cert", &cert, "--tls-key", &key]);
        assert!(server.uri.starts_with("https://"));
    }
}

#[test]
fn requests_of_browsers_for_another_site_are_refused() {
    let server = TestServer::with_args(&["--user", A, "--wrong-key-limit", "1/h"]);
    let destroyed = create(&server, 10);
    let destroy = format!("/drives/{destroyed}/destroy");
    for header in [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Origin: https://elsewhere.example",
        "Origin: null",
    ] {
        let reply = Ask::of(&server).with(header).post(&destroy, "");
        assert_eq!(reply.error(), (400, "usage"), "{header}");
        assert!(reply.text().contains("another site"), "{}", reply.text());
        // Such a request does not count as a wrong key of the visitor either: another site must not
        // be able to lock a user out.
        let guess = Ask::of(&server)
            .by("u:wrong")
            .with(header)
            .get("/drives/list");
        assert_eq!(guess.error(), (400, "usage"), "{header}");
    }
    let own = Ask::of(&server).with("Sec-Fetch-Site: same-origin");
    own.get("/drives/list").expect(200);
    let typed = Ask::of(&server).with("Sec-Fetch-Site: none");
    typed.get("/drives/list").expect(200);
    let own = Ask::of(&server).with("Origin: http://test");
    own.post(&destroy, "").expect(204);
}

#[test]
fn a_request_of_http_1_1_names_one_host() {
    let server = TestServer::start();
    for hosts in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a b\r\n",
        "Host: u@a\r\n",
    ] {
        for path in ["/health", "/drives/list", "/ui/"] {
            let request = format!("GET {path} HTTP/1.1\r\n{hosts}\r\n");
            let reply = raw(server.address(), request.as_bytes()).unwrap();
            assert_eq!(reply.status, 400, "{request}");
            assert_eq!(reply.header("connection"), Some("close"), "{request}");
        }
    }
    // HTTP/1.0 does not require a Host header.
    let reply = raw(server.address(), b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(reply.status, 200);
}

#[test]
fn tls_is_served_and_plain_http_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let files = crate::support::certificate(directory.path(), "localhost");
    let [cert, key] = files.map(|file| file.to_str().unwrap().to_owned());
    let args = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--listen",
        "0.0.0.0:0",
    ];
    let server = TestServer::with_args(&args);
    assert!(server.uri.starts_with("https://0.0.0.0:"));

    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&cert).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(server.address()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let head = Ask::of(&server).head("GET", "/drives/list");
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().status, 200);

    let plain = raw(server.address(), format!("{head}\r\n").as_bytes());
    assert!(plain.is_none(), "{plain:?}");
}

#[test]
fn ambiguous_requests_are_refused() {
    let server = TestServer::start();
    let drive = create(&server, 4);
    let path = format!("/drives/{drive}/write");
    let head = Ask::of(&server).head("POST", &path);
    let chunks = "1\r\nx\r\n0\r\n\r\n";
    let cases = [
        (
            "two lengths",
            format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
        ),
        ("plus sign", format!("{head}Content-Length: +1\r\n\r\nx")),
        ("negative", format!("{head}Content-Length: -1\r\n\r\nx")),
        (
            "list of lengths",
            format!("{head}Content-Length: 1, 1\r\n\r\nx"),
        ),
        (
            "xchunked",
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n{chunks}"),
        ),
        (
            "gzip, chunked",
            format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n{chunks}"),
        ),
        (
            "chunked twice",
            format!("{head}Transfer-Encoding: chunked, chunked\r\n\r\n{chunks}"),
        ),
        (
            "space before colon",
            format!("{head}Content-Length : 1\r\n\r\nx"),
        ),
        (
            "folded header",
            format!("{head}X: a\r\n b\r\nContent-Length: 1\r\n\r\nx"),
        ),
        (
            "NUL",
            format!("{head}X: a\0b\r\nContent-Length: 1\r\n\r\nx"),
        ),
        (
            "bad chunk length",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n"),
        ),
        (
            "HTTP/1.0 chunked",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").replace("1.1", "1.0"),
        ),
        (
            "long header",
            format!("{head}X: {}\r\n\r\n", "x".repeat(17_000)),
        ),
        (
            "many headers",
            format!("{head}{}\r\n", "X: x\r\n".repeat(200)),
        ),
        ("not HTTP", "hello\r\n\r\n".to_owned()),
    ];
    for (name, request) in cases {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let _ = stream.write_all(request.as_bytes());
        if let Some(reply) = read_reply(&mut stream) {
            assert!(matches!(reply.status, 400 | 431), "{name}: {}", reply.head);
        }
        // Then the connection is closed: the bytes after the bad request are not taken for another
        // one.
        assert!(read_reply(&mut stream).is_none(), "{name}");
    }
    assert_eq!(read_all(&server, &drive), [0; 4]);
    // With both headers, `Transfer-Encoding` has priority over the length, as the standard demands,
    // and the connection is closed.
    let both = format!("{head}Content-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(both.as_bytes()).unwrap();
    assert!(matches!(read_reply(&mut stream).unwrap().status, 204 | 400));
    assert!(read_reply(&mut stream).is_none());
}
