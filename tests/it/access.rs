//! Access to a cloud: the config and its profiles, certificates, proxies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine;

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::http::{assert_drive, create};
use crate::support::noise;
use crate::support::proxy::{FaultProxy, answer};
use crate::support::server::TestServer;

/// Writes the config, with permissions that others cannot write.
fn config(desk: &Desk, text: &str) -> PathBuf {
    let directory = desk.path("../home/.config/openhosting");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("config.toml");
    std::fs::write(&path, text).unwrap();
    chmod(&path, 0o644);
    path
}

/// Writes a file with credentials beside the config.
fn credentials(desk: &Desk, name: &str, auth: &str) -> PathBuf {
    let path = desk.path("../home/.config/openhosting").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("# made by a test\n{auth}\n")).unwrap();
    chmod(&path, 0o600);
    // The check for leaked secrets must ignore this file.
    desk.own(&std::fs::canonicalize(&path).unwrap());
    desk.own(&path);
    path
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A tool without any settings in its environment.
fn bare<'a>(tool: Tool<'a>) -> Tool<'a> {
    tool.unset("OHURI").unset("OHAUTH")
}

/// Starts a server, and writes a config with a profile for it, which is also the default.
fn with_profile(desk: &Desk) -> TestServer {
    let server = desk.server();
    credentials(desk, "work.key", &desk.auth());
    let text = format!(
        "default = \"work\"\n[profiles.work]\nendpoint = \"{}\"\ncredentials.file = \"work.key\"\n",
        server.uri
    );
    config(desk, &text);
    server
}

#[test]
fn every_tool_takes_a_profile() {
    let desk = Desk::new();
    let server = with_profile(&desk);
    let image = noise(1, 100_000);
    desk.file("a.img", &image);
    let simple = || bare(desk.simple(""));
    let upload = bare(desk.upload("")).args("--profile work a.img").run();
    let drive = upload.code(0).created();
    assert_drive(&server, &drive, &image);
    let download = bare(desk.download("")).env("OPENHOSTING_PROFILE", "work");
    let _ = download.arg(&drive).arg("b.img").run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    // The config's default profile is used.
    let list = simple().args("drives list").run().code(0);
    assert_eq!(list.text(), format!("{drive}\n"));
    let publish = "publish --profile work a.img --name n --receipt r.json";
    let _ = simple().args(publish).run().code(0);
    let _ = simple().args("verify --profile work r.json").run().code(0);
    let _ = simple().args("probe --profile work").run().code(0);
}

#[test]
fn the_config_is_found_in_xdg_config_home() {
    let desk = Desk::new();
    let server = with_profile(&desk);
    let drive = create(&server, 5);
    std::fs::rename(desk.path("../home/.config"), desk.path("settings")).unwrap();
    desk.own(&desk.path("settings/openhosting/work.key"));
    let list = || bare(desk.simple("")).args("drives list");
    let _ = list().run().code(2).says("Please set OHURI");
    let there = list().env("XDG_CONFIG_HOME", desk.path("settings"));
    assert_eq!(there.run().code(0).text(), format!("{drive}\n"));
    // A relative path is ignored.
    let relative = list().env("XDG_CONFIG_HOME", "settings");
    let _ = relative.run().code(2).says("Please set OHURI");
}

#[test]
fn flags_override_the_environment_and_that_overrides_the_config() {
    let desk = Desk::new();
    let server = with_profile(&desk);
    let drive = create(&server, 5);
    let listed = format!("{drive}\n");
    let other = FaultProxy::stub(|_| answer(200, &["Content-Type: text/plain"], b"other\n"));
    let list = |flags: &str| desk.simple(&other.uri()).args(flags).args("drives list");
    let text = |tool: Tool<'_>| tool.run().code(0).text().to_owned();
    // OHURI has priority over the default, and over OPENHOSTING_PROFILE.
    assert_eq!(text(list("")), "other\n");
    assert_eq!(text(list("").env("OPENHOSTING_PROFILE", "work")), "other\n");
    // A profile that a flag selects has priority over both; another flag does not change that.
    assert_eq!(text(list("--profile work")), listed);
    // Flags may follow the path; without "api", a script has words of the path there.
    for words in [
        "api drives list --profile work",
        "api drives --profile work list",
    ] {
        assert_eq!(text(desk.simple(&other.uri()).args(words)), listed);
    }
    let endpoint = format!("--profile work --endpoint {}", other.uri());
    assert_eq!(text(list(&endpoint)), "other\n");
    // What is missing in the environment is taken from the profile.
    assert_eq!(text(list("").unset("OHURI")), listed);
    let mine = desk.simple(&server.uri).unset("OHAUTH").args("drives list");
    assert_eq!(text(mine), listed);
    // But a secret is only sent to its own endpoint.
    other.forget();
    let outcome = list("").unset("OHAUTH").run().code(2);
    let _ = outcome.says("The credentials of the profile \"work\" are for ");
    assert!(other.requests().is_empty());
    // If the environment defines everything, a broken config is not even read.
    config(&desk, "default = ");
    assert_eq!(text(list("")), "other\n");
    let _ = list("--profile work")
        .run()
        .code(2)
        .says("Line 1 of the config ");
}

#[test]
fn a_missing_profile_is_reported_with_the_existing_ones() {
    let desk = Desk::new();
    let list = |flags: &str| bare(desk.simple("")).args(flags).args("drives list");
    let none = list("--profile home").run().code(2);
    let _ = none
        .says("there is no config ")
        .says("/.config/openhosting/config.toml");
    let _server = with_profile(&desk);
    let none = list("--profile home").run().code(2);
    let none = none.says("There is no profile \"home\", which --profile names, in ");
    let _ = none.says("Its profiles are: work");
    let none = list("").env("OPENHOSTING_PROFILE", "home").run().code(2);
    let _ = none.says("which OPENHOSTING_PROFILE names");
    config(&desk, "default = \"home\"\n");
    let none = list("").run().code(2);
    let _ = none
        .says("which default names")
        .says("It has no profile at all");
}

#[test]
fn files_that_others_may_use_are_refused() {
    let desk = Desk::new();
    let _server = with_profile(&desk);
    let list = || bare(desk.simple("")).args("drives list");
    let file = desk.path("../home/.config/openhosting/config.toml");
    for mode in [0o664, 0o646] {
        chmod(&file, mode);
        let refused = list().run().code(2).says("others can write to it");
        let _ = refused.says("Run: chmod go-w ");
    }
    chmod(&file, 0o644);
    let key = desk.path("../home/.config/openhosting/work.key");
    for mode in [0o640, 0o604, 0o620] {
        chmod(&key, mode);
        let refused = list().run().code(2).says("others can read it");
        let _ = refused.says("Run: chmod 600 ");
    }
    chmod(&key, 0o400);
    let _ = list().run().code(0);
}

#[test]
fn credentials_come_from_a_file_a_variable_or_a_command_and_never_inline() {
    let desk = Desk::new();
    let server = desk.server();
    let drive = create(&server, 5);
    let home = credentials(&desk, "a b.key", &desk.auth());
    let home = std::fs::canonicalize(home).unwrap();
    let (uri, home) = (&server.uri, home.to_str().unwrap());
    let list = |credentials: &str| {
        let text = format!("[profiles.p]\nendpoint = \"{uri}\"\n{credentials}\n");
        let file = config(&desk, &text);
        desk.own(&std::fs::canonicalize(file).unwrap());
        bare(desk.simple("")).args("--profile p drives list")
    };
    for setting in [
        "credentials.file = \"a b.key\"".to_owned(),
        "credentials.file = \"~/.config/openhosting/a b.key\"".to_owned(),
        format!("credentials = {{ file = \"{home}\" }}"),
        "credentials.env = \"MINE\"".to_owned(),
        format!("credentials.command = [\"cat\", \"{home}\"]"),
    ] {
        let outcome = list(&setting).env("MINE", desk.auth()).run().code(0);
        assert_eq!(outcome.text(), format!("{drive}\n"), "{setting}");
    }
    for (setting, why) in [
        (
            "credentials.file = \"nosuch\"",
            "Cannot read the credentials ",
        ),
        (
            "credentials.env = \"MINE\"",
            "are in MINE, which is not set",
        ),
        (
            "credentials.command = [\"false\"]",
            "ended with exit status: 1",
        ),
        (
            "credentials.command = [\"echo\"]",
            "the command printed nothing",
        ),
        (
            "credentials.command = [\"echo\", \"u\"]",
            "The credentials of the profile \"p\" do not begin with the UUID of a user",
        ),
        (
            "credentials.command = [\"echo\", \"0012e24a-6eae-4279-9912-3432f698cec8\"]",
            "there is no terminal to ask on",
        ),
        ("", "Please set OHAUTH"),
    ] {
        let is_missing = setting.contains("nosuch");
        let code = if is_missing { 1 } else { 2 };
        let _ = list(setting).run().code(code).says(why);
    }
    // Nothing of it is printed; the desk checks that.
    let toml = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let (auth, key) = (toml(&desk.auth()), toml(&desk.key));
    for setting in [
        format!("credentials = \"{auth}\""),
        format!("key = \"{key}\""),
        format!("credentials.env = \"{auth}\""),
        format!("credentials.file = \"x\" {auth}"),
    ] {
        let outcome = list(&setting).run().code(2);
        let _ = outcome.says("Line 3 of the config ");
    }
}

/// A server with a certificate for this name.
fn with_tls(desk: &Desk, name: &str) -> (TestServer, PathBuf) {
    let [cert, key] = desk.certificate(name);
    let (c, k) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = desk.server_with(&["--tls-cert", c, "--tls-key", k]);
    (server, cert)
}

#[test]
fn every_tool_takes_certificates() {
    let desk = Desk::new();
    let (server, cert) = with_tls(&desk, "localhost");
    let [other, _] = desk.certificate("other");
    let uri = server.uri.replace("127.0.0.1", "localhost");
    let image = noise(2, 200_000);
    desk.file("a.img", &image);
    let upload = || desk.upload(&uri).arg("a.img").arg("--cacert");
    let drive = upload().arg(&cert).run().code(0).created();
    let on_drive = std::fs::read(server.drive_file(&drive)).unwrap();
    assert!(on_drive == image);
    let download = desk.download(&uri).arg("--cacert").arg(&cert);
    let _ = download.arg(&drive).arg("b.img").run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    let own = |words: &str| desk.simple(&uri).args(words).arg("--cacert").arg(&cert);
    let publish = "publish a.img --name n --receipt r.json";
    let _ = own(publish).run().code(0);
    let _ = own("verify r.json").run().code(0);
    let _ = own("probe").run().code(0);
    let simple = || desk.simple(&uri).arg("--cacert");
    let _ = simple().arg(&cert).args("drives list").run().code(0);

    // The certificates of this machine are not trusted in addition.
    let refused = simple().arg(&other).args("drives list");
    let refused = refused.env("SSL_CERT_FILE", &cert).run().code(1);
    let _ = refused
        .says("certificate not accepted")
        .says("--cacert FILE");
    let none = simple().arg("nosuch.pem").args("drives list").run();
    let _ = none.code(1).says("Cannot read the certificates nosuch.pem");
    let none = simple().arg("a.img").args("drives list").run().code(2);
    assert!(none.stderr.contains(" the certificates a.img"), "{none:?}");
    desk.file("text", b"no PEM");
    let none = simple().arg("text").args("drives list").run().code(2);
    let _ = none.says("Cannot use the certificates text: There is no certificate in PEM form");

    // A profile can have them as well, for its own endpoint.
    credentials(&desk, "work.key", &desk.auth());
    let text = format!(
        "default = \"work\"\n[profiles.work]\nendpoint = \"{uri}\"\ncredentials.file = \"work.key\"\ncacert = \"{}\"\n",
        cert.display()
    );
    config(&desk, &text);
    let list = || desk.simple(&uri).args("drives list");
    let _ = bare(list()).run().code(0);
    let refused = list().run().code(1);
    let _ = refused.says("certificate not accepted");
}

/// A proxy. For a tunnel, by HTTP or by SOCKS 5, it always connects to the same place, whatever the
/// name is. A request in plain text it answers itself.
struct Forward {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Forward {
    fn to(target: SocketAddr, status: &'static str, body: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || Self::serve(stream, target, status, body, &seen));
            }
        });
        Self { address, heads }
    }

    fn serve(
        mut stream: TcpStream,
        target: SocketAddr,
        status: &str,
        body: &[u8],
        seen: &Mutex<Vec<String>>,
    ) -> Option<()> {
        let mut head = vec![0; 1];
        stream.read_exact(&mut head).ok()?;
        if head == [5] {
            let mut rest = [0; 2];
            stream.read_exact(&mut rest).ok()?;
            stream.write_all(&[5, 0]).ok()?;
            // Version, connect, reserved, and a name with its length in a byte.
            let mut request = [0; 5];
            stream.read_exact(&mut request).ok()?;
            assert_eq!(request[..4], [5, 1, 0, 3]);
            let mut name = vec![0; usize::from(request[4]) + 2];
            stream.read_exact(&mut name).ok()?;
            let name = String::from_utf8_lossy(&name[..name.len() - 2]).into_owned();
            seen.lock().unwrap().push(format!("SOCKS {name}"));
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
            return Self::pass(stream, target);
        }
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let is_tunnel = head.starts_with("CONNECT ");
        seen.lock().unwrap().push(head);
        if !is_tunnel {
            let headers = [
                "Content-Type: application/octet-stream",
                "Connection: close",
            ];
            return stream.write_all(&answer(200, &headers, body)).ok();
        }
        write!(stream, "HTTP/1.1 {status}\r\n\r\n").ok()?;
        match status.starts_with("200") {
            true => Self::pass(stream, target),
            false => None,
        }
    }

    fn pass(stream: TcpStream, target: SocketAddr) -> Option<()> {
        let upstream = TcpStream::connect(target).ok()?;
        let (mut from, mut to) = (stream.try_clone().ok()?, upstream.try_clone().ok()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let (mut from, mut to) = (upstream, stream);
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
        Some(())
    }

    fn uri(&self, scheme: &str, who: &str) -> String {
        format!("{scheme}://{who}{}", self.address)
    }

    /// The requests since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().unwrap())
    }
}

/// A secret that must never be shown.
const PROXY_SECRET: &str = "proxy-canary-51";

fn encoded_proxy_auth() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("u:{PROXY_SECRET}"))
}

#[track_caller]
fn hides(outcome: Outcome) -> Outcome {
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    let encoded = encoded_proxy_auth();
    for shown in [&*stdout, &outcome.stderr] {
        assert!(!shown.contains(PROXY_SECRET), "{outcome:?}");
        assert!(!shown.contains(&encoded), "{outcome:?}");
    }
    outcome
}

#[test]
fn environment_proxies_are_used_and_their_secrets_hidden() {
    let desk = Desk::new();
    let (server, cert) = with_tls(&desk, "cloud.test");
    let proxy = Forward::to(server.address(), "200 OK", b"");
    let who = format!("u:{PROXY_SECRET}@");
    let image = noise(3, 300_000);
    desk.file("a.img", &image);
    // A name that only the proxy can resolve.
    let upload = || {
        let tool = desk
            .upload("https://cloud.test:7/")
            .arg("--cacert")
            .arg(&cert);
        tool.args("-c 65536 --max-outage 1s a.img")
    };
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy"] {
        let tool = upload().env(name, proxy.uri("http", &who));
        let drive = hides(tool.run()).code(0).created();
        let on_drive = std::fs::read(server.drive_file(&drive)).unwrap();
        assert!(on_drive == image);
        let asked = proxy.asked();
        let expected = format!("proxy-authorization: Basic {}\r\n", encoded_proxy_auth());
        for head in &asked {
            assert!(
                head.starts_with("CONNECT cloud.test:7 HTTP/1.1\r\n"),
                "{head}"
            );
            assert!(head.contains(&expected), "{head}");
        }
        assert!(!asked.is_empty(), "{name}");
    }
    let tool = upload().env("all_proxy", proxy.uri("socks5h", ""));
    let _ = tool.run().code(0);
    assert!(proxy.asked().contains(&"SOCKS cloud.test".to_owned()));
    // Excluded from the proxy, the name is resolved locally, which fails.
    let tool = upload().env("https_proxy", proxy.uri("http", &who));
    let _ = hides(tool.env("no_proxy", "cloud.test").run()).code(75);
    assert!(proxy.asked().is_empty());
}

#[test]
fn a_failing_proxy_is_reported_without_its_secret() {
    let desk = Desk::new();
    let (server, cert) = with_tls(&desk, "cloud.test");
    let who = format!("u:{PROXY_SECRET}@");
    let list = |name: &str, value: &str| {
        let tool = desk
            .simple("https://cloud.test/")
            .arg("--cacert")
            .arg(&cert);
        hides(tool.args("-v drives list").env(name, value).run())
    };
    let refusing = Forward::to(server.address(), "407 Who are you", b"");
    let refused = list("https_proxy", &refusing.uri("http", &who)).code(1);
    let _ = refused.says("cannot connect");
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = format!("http://{who}{nobody}");
    let _ = list("https_proxy", &nobody).code(75).says("cannot connect");
    // A proxy that cannot be used is an error, and not ignored.
    for bad in [format!("ftp://{who}h"), format!("http://{who}h:99999")] {
        let refused = list("https_proxy", &bad).code(2);
        let _ = refused.says("The variable https_proxy does not name a proxy");
    }
    // Proxies do not affect connections within this machine.
    let (local, _) = desk.pair();
    let tool = desk.simple(&local.uri).args("drives list");
    let _ = tool.env("https_proxy", "ftp://h").run().code(0);
}

#[test]
fn images_of_other_machines_are_fetched_through_the_proxy() {
    const IMAGE: &[u8] = b"\0n image of a few bytes";
    let desk = Desk::new();
    let server = desk.server();
    let proxy = Forward::to(server.address(), "200 OK", IMAGE);
    let web = FaultProxy::stub(|_| answer(200, &[], b"\0f this machine"));
    let upload = |image: &str| {
        let tool = desk.upload(&server.uri).arg(image);
        let tool = tool.env("http_proxy", proxy.uri("http", ""));
        tool.run().code(0).created()
    };
    let drive = upload("http://images.test/a.img");
    assert_drive(&server, &drive, IMAGE);
    let asked = proxy.asked();
    assert!(
        asked[0].starts_with("GET http://images.test/a.img HTTP/1.1\r\n"),
        "{asked:?}"
    );
    let drive = upload(&format!("{}a.img", web.uri()));
    assert_drive(&server, &drive, b"\0f this machine");
    assert!(proxy.asked().is_empty());
    // A proxy that cannot be used is an error, and not ignored, also without a cloud.
    let local = desk
        .simple("")
        .args("upload --local d http://images.test/a.img");
    let refused = local.env("http_proxy", "ftp://h").run().code(2);
    let _ = refused.says("The variable http_proxy does not name a proxy");
}

/// Whoever pastes a command may lack the variables, and must not reach another cloud then.
#[test]
fn a_printed_command_reaches_the_endpoint_that_the_environment_selected() {
    let desk = Desk::new();
    let server = desk.server();
    credentials(&desk, "home.key", &desk.auth());
    credentials(&desk, "work.key", &desk.auth());
    let profile = |name: &str, uri: &str| {
        format!("[profiles.{name}]\nendpoint = \"{uri}\"\ncredentials.file = \"{name}.key\"\n")
    };
    let profiles = profile("home", "http://127.0.0.1:1/") + profile("work", &server.uri).as_str();
    config(&desk, &format!("default = \"home\"\n{profiles}"));
    desk.file("disk.img", &noise(5, 1 << 20));
    let stopped = |name: &str, variables: &[(&str, &str)]| {
        let words = "upload -c 65536 --limit-rate 40K --deadline 1s disk.img -n";
        let mut tool = bare(desk.simple("")).args(words).arg(name);
        for (variable, value) in variables {
            tool = tool.env(variable, value);
        }
        let outcome = tool.run().code(75);
        let command = outcome.stderr.lines().last().unwrap().to_owned();
        assert!(command.starts_with("openhosting upload "), "{outcome:?}");
        command
    };
    let command = stopped("a", &[("OPENHOSTING_PROFILE", "work")]);
    assert!(command.ends_with("-n a --profile work"), "{command}");
    let command = command.replace("--deadline 1s", "").replace("40K", "40M");
    let words = command.strip_prefix("openhosting ").unwrap();
    let _ = bare(desk.simple("")).args(words).run().code(0);
    let (uri, auth) = (server.uri.as_str(), desk.auth());
    let command = stopped("b", &[("OHURI", uri), ("OHAUTH", &auth)]);
    assert!(
        command.ends_with(&format!("-n b --endpoint {uri}")),
        "{command}"
    );
    // The default profile reaches the same endpoint.
    config(&desk, &format!("default = \"work\"\n{profiles}"));
    for variables in [
        &[("OPENHOSTING_PROFILE", "work")][..],
        &[("OHURI", uri), ("OHAUTH", &auth)],
    ] {
        let command = stopped("c", variables);
        assert!(command.ends_with("-n c"), "{command}");
    }
}
