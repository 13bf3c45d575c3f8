//! Images on web servers with peculiarities: mirrors, signatures that expire, short answers,
//! content encodings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::cli::{Desk, Outcome};
use crate::support::http::{assert_drive, drives};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Request, answer};
use crate::support::server::TestServer;

const SIZE: usize = 3 << 20;

/// How a server answers requests for ranges of a file.
#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    tag: &'static str,
    /// The most bytes in one answer.
    most: usize,
    states_size: bool,
    encoding: Option<&'static str>,
}

impl File {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: Arc::new(bytes.to_vec()),
            tag: "\"a\"",
            most: usize::MAX,
            states_size: true,
            encoding: None,
        }
    }

    fn answer(&self, request: &Request) -> Vec<u8> {
        let tag = format!("ETag: {}", self.tag);
        let mut headers = vec![tag];
        headers.extend(
            self.encoding
                .map(|name| format!("Content-Encoding: {name}")),
        );
        let size = self.bytes.len();
        let condition = request.header("if-range").unwrap_or(self.tag);
        let range = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        // If the request names a different tag than this server's, the answer is the whole file.
        let Some((from, last)) = range
            .filter(|_| condition == self.tag)
            .and_then(|range| range.split_once('-'))
        else {
            let headers: Vec<_> = headers.iter().map(String::as_str).collect();
            return answer(200, &headers, &self.bytes);
        };
        let from: usize = from.parse().unwrap();
        if from >= size {
            return answer(416, &[&format!("Content-Range: bytes */{size}")], b"");
        }
        let last: usize = last.parse().unwrap_or(usize::MAX).min(size - 1);
        let last = last.min(from.saturating_add(self.most) - 1);
        let whole_size = match self.states_size {
            true => size.to_string(),
            false => "*".into(),
        };
        headers.push(format!("Content-Range: bytes {from}-{last}/{whole_size}"));
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        answer(206, &headers, &self.bytes[from..=last])
    }

    fn serve(&self) -> FaultProxy {
        let file = self.clone();
        FaultProxy::stub(move |request| file.answer(request))
    }
}

struct Scene {
    desk: Desk,
    server: TestServer,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let image = noise(7, SIZE);
        Self {
            desk,
            server,
            image,
        }
    }

    fn upload(&self, args: &str) -> Outcome {
        let tool = self.desk.upload(&self.server.uri);
        tool.args("-c 262144 --format raw").args(args).run()
    }

    #[track_caller]
    fn arrives(&self, url: &str) {
        let outcome = self.upload(url).code(0);
        assert_drive(&self.server, &outcome.created(), &self.image);
    }
}

#[test]
fn an_image_host_that_is_not_there_is_reported_at_once() {
    let scene = Scene::new();
    // A label this long is in no name, which the resolver knows without a network.
    let nowhere = format!("{}.invalid", "b".repeat(64));
    let urls = [
        (
            "http://127.0.0.1:1/x.img".to_owned(),
            "cannot connect to 127.0.0.1:1: connection refused",
        ),
        (
            format!("http://{nowhere}/x.img"),
            "the host name cannot be resolved",
        ),
    ];
    // No flag limits the time: if it were an outage, the watchdog would end the test.
    for (url, why) in urls {
        // Repeating the command does not help, so the code is not 75.
        let outcome = scene.upload(&url).code(1);
        let outcome = outcome.says(&format!("Cannot fetch {url}: cannot connect to "));
        let outcome = outcome.says(why).says("Check the URL");
        assert!(!outcome.stderr.contains("waiting"), "{outcome:?}");
    }
    assert_eq!(drives(&scene.server), Vec::<String>::new());
}

#[test]
fn a_refusal_of_the_image_exits_with_75_only_if_it_may_go_away() {
    let scene = Scene::new();
    for (status, code) in [
        (403, 1),
        (404, 1),
        (410, 1),
        (501, 1),
        (505, 1),
        (507, 1),
        (429, 75),
        (500, 75),
        (503, 75),
    ] {
        let web = FaultProxy::stub(move |_| answer(status, &[], b""));
        let url = format!("{}x.img", web.uri());
        let outcome = scene.upload(&format!("--max-outage 1s {url}")).code(code);
        let outcome = outcome.says(&format!("its server answered {status}"));
        // What can succeed later ends with the command to run then.
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert_eq!(last.ends_with(&url), code == 75, "{outcome:?}");
        // So does a list of digests.
        scene.desk.file("a.img", &scene.image);
        let outcome = scene.upload(&format!("--max-outage 1s --sha256-file {url} a.img"));
        let _ = outcome.code(code);
    }
    assert_eq!(drives(&scene.server), Vec::<String>::new());
}

#[test]
fn a_refused_connection_after_the_first_answer_is_an_outage() {
    let scene = Scene::new();
    let image = &scene.image[..128 << 10];
    let file = File::of(image);
    let served = AtomicUsize::new(0);
    // The second read is redirected to a port that refuses, and so is its second request.
    let web = FaultProxy::stub(
        move |request| match served.fetch_add(1, Ordering::Relaxed) {
            1 | 2 => answer(302, &["Location: http://127.0.0.1:1/x.img"], b""),
            _ => file.answer(request),
        },
    );
    let outcome = scene.upload(&format!("-j 1 {}image", web.uri())).code(0);
    assert_drive(&scene.server, &outcome.created(), image);
    assert!(web.requests().len() > 3, "{outcome:?}");
}

#[test]
fn all_ranges_come_from_the_mirror_that_answered_first() {
    let scene = Scene::new();
    let file = File::of(&scene.image);
    let mirrors = [
        file.serve(),
        File {
            tag: "\"other\"",
            ..file
        }
        .serve(),
    ];
    let places = [0, 1].map(|i| format!("Location: {}image", mirrors[i].uri()));
    let count = AtomicUsize::new(0);
    let redirector = FaultProxy::stub(move |_| {
        let turn = count.fetch_add(1, Ordering::Relaxed) % 2;
        answer(302, &[&places[turn]], b"")
    });
    scene.arrives(&format!("{}image", redirector.uri()));
    assert_eq!(redirector.requests().len(), 1);
    assert_eq!(mirrors[1].requests().len(), 0);
}

#[test]
fn a_failed_mirror_is_replaced_by_the_next_redirect() {
    let scene = Scene::new();
    let file = File::of(&scene.image);
    let served = AtomicUsize::new(0);
    let first = {
        let file = file.clone();
        FaultProxy::stub(
            move |request| match served.fetch_add(1, Ordering::Relaxed) {
                0..3 => file.answer(request),
                _ => answer(403, &[], b"Request has expired"),
            },
        )
    };
    let second = File {
        tag: "\"other\"",
        ..file.clone()
    }
    .serve();
    let places = [&first, &second].map(|place| format!("Location: {}image", place.uri()));
    let count = AtomicUsize::new(0);
    let redirector = FaultProxy::stub(move |_| {
        let turn = count.fetch_add(1, Ordering::Relaxed).min(1);
        answer(302, &[&places[turn]], b"")
    });
    scene.arrives(&format!("{}image", redirector.uri()));
    assert_eq!(redirector.requests().len(), 2);
    assert!(second.requests().len() > 3);
}

#[test]
fn a_mirror_with_a_file_of_another_size_is_refused() {
    let scene = Scene::new();
    let (good, bad) = (File::of(&scene.image), File::of(&scene.image[1..]).serve());
    let (served, place) = (AtomicUsize::new(0), format!("Location: {}image", bad.uri()));
    let web = FaultProxy::stub(
        move |request| match served.fetch_add(1, Ordering::Relaxed) {
            0..3 => good.answer(request),
            _ => answer(302, &[&place], b""),
        },
    );
    let outcome = scene.upload(&format!("{}image", web.uri())).code(4);
    let _ = outcome.says("changed while it was read");
}

#[test]
fn a_new_url_signature_resumes_the_same_upload() {
    let scene = Scene::new();
    let file = File::of(&scene.image);
    let has_expired = Arc::new(AtomicBool::new(false));
    let (expired, served) = (Arc::clone(&has_expired), AtomicUsize::new(0));
    let web = FaultProxy::stub(move |request| {
        let is_old = request.path.contains("X-Amz-Signature=old");
        if is_old && served.fetch_add(1, Ordering::Relaxed) >= 6 {
            expired.store(true, Ordering::Relaxed);
            return answer(403, &[], b"Request has expired");
        }
        file.answer(request)
    });
    let url = |signature: &str| {
        format!(
            "{}image?versionId=3&X-Amz-Signature={signature}&X-Amz-Expires=60",
            web.uri()
        )
    };
    let first = scene.upload(&format!("-j 1 {}", url("old"))).code(1);
    let drive = first.created();
    assert!(has_expired.load(Ordering::Relaxed));
    let second = scene.upload(&url("new")).code(0);
    assert_eq!(
        drives(&scene.server),
        std::slice::from_ref(&drive),
        "{second:?}"
    );
    assert_drive(&scene.server, &drive, &scene.image);
}

#[test]
fn a_short_range_is_progress() {
    let scene = Scene::new();
    let file = File {
        most: 100_000,
        ..File::of(&scene.image)
    };
    let web = file.serve();
    // If each answer were followed by a pause, that would count as an outage of this length.
    scene.arrives(&format!("--max-outage 1s {}image", web.uri()));
    assert!(web.bytes_down() < 2 * SIZE as u64);
}

#[test]
fn a_host_that_trickles_ends_an_upload_after_the_patience() {
    let scene = Scene::new();
    let web = File::of(&scene.image).serve();
    let trickle = Fault::Drip(Duration::from_millis(20));
    web.fault(|_| true, usize::MAX, trickle);
    let flags = "--stall-timeout 200ms --max-outage 1s";
    let outcome = scene.upload(&format!("{flags} {}image", web.uri()));
    let _ = outcome.code(75).says("Cannot fetch");
}

#[test]
fn a_range_may_lack_the_size_of_the_file() {
    let scene = Scene::new();
    let file = File {
        states_size: false,
        ..File::of(&scene.image)
    };
    let web = file.serve();
    scene.arrives(&format!("{}image", web.uri()));
    let requests = web.requests();
    let whole = requests.iter().filter(|r| r.header("range").is_none());
    assert_eq!(whole.count(), 1);
}

#[test]
fn an_empty_file_is_reported_as_empty() {
    let scene = Scene::new();
    let web = File::of(b"").serve();
    let outcome = scene.upload(&format!("{}image", web.uri())).code(1);
    let _ = outcome.says("the file is empty");
    assert_eq!(drives(&scene.server), Vec::<String>::new());
}

#[test]
fn a_content_encoding_matches_the_compression_or_is_refused() {
    let scene = Scene::new();
    let packed = crate::support::gzip(&scene.image);
    let file = |bytes: &[u8], encoding| {
        let file = File {
            encoding: Some(encoding),
            ..File::of(bytes)
        };
        file.serve()
    };
    for encoding in ["gzip", "x-gzip", "identity"] {
        let web = file(&packed, encoding);
        let url = format!("{}image.gz", web.uri());
        let tool = scene.desk.upload(&scene.server.uri);
        let outcome = tool.args(&format!("-n {encoding} {url}")).run().code(0);
        assert_drive(&scene.server, &outcome.created(), &scene.image);
        let asked = web.requests();
        assert!(
            asked
                .iter()
                .all(|r| r.header("accept-encoding") == Some("identity"))
        );
    }
    let before = drives(&scene.server).len();
    for (bytes, encoding) in [(&scene.image, "gzip"), (&packed, "br")] {
        let web = file(bytes, encoding);
        let url = format!("{}image", web.uri());
        let tool = scene.desk.upload(&scene.server.uri);
        let outcome = tool.args(&url).run().code(1);
        let _ = outcome.says("its server says that the body is encoded with");
    }
    assert_eq!(drives(&scene.server).len(), before);
}

#[test]
fn a_digest_file_without_the_image_lists_its_entries() {
    let scene = Scene::new();
    scene.desk.file("a.img", &scene.image);
    for (text, says) in [
        (
            format!("{}  b.img\n", "0a".repeat(32)),
            "only for \"b.img\"",
        ),
        (
            format!("{}  a.img\n", "0a".repeat(64)),
            "the digests are SHA-512",
        ),
    ] {
        scene.desk.file("SUMS", text.as_bytes());
        let outcome = scene.upload("--sha256-file SUMS a.img");
        let _ = outcome.code(2).says(says);
    }
}
