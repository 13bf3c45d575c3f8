//! What prevents access to an endpoint: certificates, versions of TLS, the wrong protocol, proxies.
//! The error names the cause and a solution, and the request is not repeated.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::cli::{Desk, Tool, has_terminals};
use crate::support::http::{assert_drive, create};
use crate::support::needs::{Need, needs};
use crate::support::noise;
use crate::support::proxy::{FaultProxy, answer};

/// An OpenSSL server that sends one answer. Its arguments are the certificate, the key, and the
/// certificates of clients or a version of TLS.
const PEER: &str = r#"
import http.server, ssl, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")
    def log_message(self, *_):
        pass
cert, key, what = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
if what.startswith("old"):
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
else:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(what)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

struct Peer {
    child: Child,
    uri: String,
}

impl Peer {
    fn start(cert: &Path, key: &Path, what: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PEER])
            .args([cert, key, what])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let uri = format!("https://localhost:{}/", line.trim());
        Self { child, uri }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A self-signed certificate from `openssl req -x509`, which marks it as a CA's. Without openssl
/// the test is skipped, and `None` is returned.
fn by_openssl(desk: &Desk, name: &str, days: &str) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (
        desk.path(format!("{name}.pem")),
        desk.path(format!("{name}.key")),
    );
    if !needs(&[Need::Command("openssl")]) {
        return None;
    }
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-subj", &format!("/CN={name}"), "-days", days])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    Some((cert, key))
}

fn server(desk: &Desk, cert: &Path, key: &Path) -> (crate::support::server::TestServer, String) {
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = desk.server_with(&["--tls-cert", cert, "--tls-key", key]);
    let uri = server.uri.replace("127.0.0.1", "localhost");
    (server, uri)
}

fn list<'a>(desk: &'a Desk, uri: &str, cacert: &Path) -> Tool<'a> {
    with_cacert(desk, uri, cacert).args("drives list")
}

fn with_cacert<'a>(desk: &'a Desk, uri: &str, cacert: &Path) -> Tool<'a> {
    desk.simple(uri).arg("--cacert").arg(cacert)
}

#[test]
fn a_self_signed_certificate_is_accepted_with_cacert() {
    let desk = Desk::new();
    let Some((cert, key)) = by_openssl(&desk, "localhost", "30") else {
        return;
    };
    let (server, uri) = server(&desk, &cert, &key);
    let image = noise(1, 100_000);
    desk.file("a.img", &image);
    let upload = desk.upload(&uri).arg("--cacert").arg(&cert).arg("a.img");
    let drive = upload.run().code(0).created();
    assert_drive(&server, &drive, &image);
    // Another certificate for the same name is not trusted.
    let other = Desk::new();
    let (other, _) = by_openssl(&other, "localhost", "30").unwrap();
    let refused = list(&desk, &uri, &other).run().code(1);
    let _ = refused.says("certificate not accepted");
    // The certificate is valid for its name only.
    let wrong = server_name(&uri, "127.0.0.1");
    let refused = list(&desk, &wrong, &cert).run().code(1);
    let _ = refused.says("it is for another name");
}

fn server_name(uri: &str, name: &str) -> String {
    uri.replace("localhost", name)
}

#[test]
fn an_expired_certificate_is_refused_even_with_cacert() {
    let desk = Desk::new();
    let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = parameters.self_signed(&key).unwrap().pem();
    let (cert, key) = (
        desk.file("c", cert.as_bytes()),
        desk.file("k", key.serialize_pem().as_bytes()),
    );
    crate::support::only_for_its_owner(&key);
    let (_server, uri) = server(&desk, &cert, &key);
    let refused = list(&desk, &uri, &cert).run().code(1);
    let _ = refused.says("it has expired");
}

#[test]
fn an_endpoint_that_requires_a_client_certificate_gets_it() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let (Some((cert, key)), Some((ours, our_key))) = (
        by_openssl(&desk, "localhost", "30"),
        by_openssl(&desk, "client", "30"),
    ) else {
        return;
    };
    let peer = Peer::start(&cert, &key, &ours);
    // Flags are in front of the words of a call.
    let trusting = || with_cacert(&desk, &peer.uri, &cert);
    let run = |tool: Tool<'_>| tool.args("drives list").run();
    for (certificate, code) in [
        (None, 1),
        (Some((&cert, &key)), 1),
        (Some((&ours, &our_key)), 0),
    ] {
        let tool = match certificate {
            None => trusting(),
            Some((cert, key)) => trusting().arg("--cert").arg(cert).arg("--key").arg(key),
        };
        let outcome = run(tool).code(code);
        match code {
            0 => assert_eq!(outcome.text(), "hello\n"),
            _ => {
                let _ = outcome
                    .says("client certificate is required")
                    .says("--cert FILE");
            }
        }
    }
    // Certificate and key in one file, selected by a profile.
    let both = [&ours, &our_key]
        .map(|path| std::fs::read(path).unwrap())
        .concat();
    let both = desk.file("both.pem", &both);
    std::fs::set_permissions(&both, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let _ = run(trusting().arg("--cert").arg(&both)).code(0);
    let directory = desk.path("../home/.config/openhosting");
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!(
        "[profiles.p]\nendpoint = \"{}\"\ncacert = {cert:?}\ncert = {ours:?}\ncert-key = {our_key:?}\n",
        peer.uri
    );
    let config = directory.join("config.toml");
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let tool = desk
        .simple("")
        .unset("OHURI")
        .args("--profile p drives list");
    let _ = tool.run().code(0);
    // A key that others can read, or that is not a key, is refused before any call.
    std::fs::set_permissions(
        &our_key,
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let open = trusting()
        .arg("--cert")
        .arg(&ours)
        .arg("--key")
        .arg(&our_key);
    let _ = run(open).code(2).says("others can read it");
    let _ = run(trusting().arg("--cert").arg(&ours)).code(2);
}

#[test]
fn the_wrong_protocol_is_named() {
    let desk = Desk::new();
    let Some((cert, key)) = by_openssl(&desk, "localhost", "30") else {
        return;
    };
    let (_server, uri) = server(&desk, &cert, &key);
    let plain = uri.replace("https://", "http://");
    let refused = desk.simple(&plain).args("drives list").run().code(1);
    let _ = refused.says("the answer is not HTTP").says("https://");
    let (open, _) = desk.pair();
    let tls = open
        .uri
        .replace("http://", "https://")
        .replace("127.0.0.1", "localhost");
    let refused = list(&desk, &tls, &cert).run().code(1);
    let _ = refused
        .says("the answer is not TLS")
        .says("http://")
        .says("(from OHURI)");
}

#[test]
fn a_version_of_tls_that_is_too_old_is_named() {
    if !has_terminals() {
        return;
    }
    let desk = Desk::new();
    let Some((cert, key)) = by_openssl(&desk, "localhost", "30") else {
        return;
    };
    let peer = Peer::start(&cert, &key, Path::new("old"));
    let refused = list(&desk, &peer.uri, &cert).run().code(1);
    let _ = refused
        .says("no version or cipher of TLS in common")
        .says("TLS 1.2 and 1.3");
}

#[test]
fn a_refusing_proxy_is_named_and_not_tried_again() {
    let desk = Desk::new();
    for (status, says) in [
        (407, "wants a user and a password"),
        (403, "refuses the way"),
    ] {
        let proxy = FaultProxy::stub(move |_| answer(status, &[], b"no"));
        let place = proxy.uri().trim_end_matches('/').replace("http://", "");
        let outcome = desk
            .simple("https://cloud.test/")
            .args("drives list")
            .env("https_proxy", format!("http://u:hidden@{place}"))
            .run()
            .code(1)
            .says(says)
            .says(&format!(
                "through the proxy http://{place} (from https_proxy)"
            ));
        assert!(!outcome.stderr.contains("hidden"), "{outcome:?}");
        assert_eq!(proxy.requests().len(), 1);
        desk.file("a.img", &[1; 1000]);
        let upload = desk.upload("https://cloud.test/").arg("a.img");
        let _ = upload
            .env("HTTPS_PROXY", format!("http://{place}"))
            .run()
            .code(1)
            .says(says);
        assert_eq!(proxy.requests().len(), 2);
    }
}

#[test]
fn no_proxy_may_name_a_port() {
    let desk = Desk::new();
    let proxy = FaultProxy::stub(|_| answer(403, &[], b"no"));
    let list = |excluded: &str| {
        let tool = desk.simple("https://cloud.test:7443/").args("drives list");
        let tool = tool.env("https_proxy", proxy.uri());
        tool.env("no_proxy", excluded).run()
    };
    let _ = list("x.test, cloud.test:7443").code(75);
    assert_eq!(proxy.requests().len(), 0);
    let _ = list("cloud.test:443").code(1);
    assert_eq!(proxy.requests().len(), 1);
    // The same holds for images on web servers.
    let info = |excluded: &str| {
        let tool = desk
            .simple("")
            .args("image info https://cloud.test:7443/a.img");
        let tool = tool.env("https_proxy", proxy.uri());
        tool.env("no_proxy", excluded).run().code(1)
    };
    let _ = info("cloud.test:7443");
    assert_eq!(proxy.requests().len(), 1);
    let _ = info("cloud.test:443").says("through the proxy");
    assert_eq!(proxy.requests().len(), 2);
}

#[test]
fn an_unreachable_endpoint_is_named_with_its_source() {
    let desk = Desk::new();
    let tool = desk.simple("http://127.0.0.1:9/").args("drives list");
    let _ = tool
        .run()
        .code(75)
        .says("cannot connect to 127.0.0.1:9 (from OHURI): connection refused");
    let tool = desk
        .simple("")
        .args("--endpoint http://127.0.0.1:9/ drives list");
    let _ = tool.run().code(75).says("127.0.0.1:9 (from --endpoint): ");
}

#[test]
fn a_web_page_of_a_proxy_is_not_an_answer_of_the_api() {
    let desk = Desk::new();
    let page = b"<html><head><TITLE>\n404 Not Found\n</TITLE></head>";
    let front =
        |status| FaultProxy::stub(move |_| answer(status, &["Content-Type: text/html"], page));
    let drive = {
        let (server, _) = desk.pair();
        create(&server, 5)
    };
    for status in [403, 404] {
        let outcome = desk
            .download(&front(status).uri())
            .arg(&drive)
            .arg("b.img")
            .run()
            .code(1)
            .says("an HTML page, \"404 Not Found\"")
            .says("Check OHURI");
        assert!(!outcome.stderr.contains("openhosting ls"), "{outcome:?}");
        assert!(!outcome.stderr.contains("OHAUTH"), "{outcome:?}");
    }
}
