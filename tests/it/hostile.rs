//! A server that answers whatever it likes: which answers the client rejects, and that it always
//! ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openhosting::Credentials;
use openhosting::api::{Client, ClientConfig, Web, WebUrl};
use openhosting::drive::DriveId;
use openhosting::failure::Failure;
use openhosting::wire::Properties;

use crate::support::cli::Desk;
use crate::support::proxy::{FaultProxy, Request, answer};

const DRIVE: &str = "0012e24a-6eae-4279-9912-3432f698cec8";
const OTHER: &str = "11111111-6eae-4279-9912-3432f698cec8";

fn drive() -> DriveId {
    DRIVE.parse().unwrap()
}

fn config() -> ClientConfig {
    ClientConfig {
        stall: Duration::from_secs(2),
        outage: Duration::from_secs(2),
        ..ClientConfig::default()
    }
}

fn client(address: impl std::fmt::Display) -> Client {
    let endpoint = format!("http://{address}/").parse().unwrap();
    let credentials = Credentials::new(DRIVE, "key").unwrap();
    Client::new(endpoint, &credentials, &config()).unwrap()
}

/// Answers each request with these bytes, and then closes the connection.
fn serve(bytes: Vec<u8>) -> SocketAddr {
    serve_each(move |_| bytes.clone())
}

/// Answers each request according to its number, declares that it closes the connection so that the
/// client does not reuse it, and closes it after the client did: with unread bytes, the kernel
/// would reset the connection and could drop the answer.
fn serve_each(answer: impl Fn(usize) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let mut answer = answer(number);
            if let Some(line) = answer.windows(2).position(|pair| pair == b"\r\n") {
                let close = b"\r\nConnection: close".iter().copied();
                answer.splice(line..line, close);
            }
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(Shutdown::Write);
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    address
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn info_of(drive: &str, size: &str) -> Vec<u8> {
    format!("drive {drive}\nsize {size}\nname a\n").into_bytes()
}

/// The client's result for an answer to `info`.
fn info(answer: Vec<u8>) -> Result<u64, Failure> {
    let client = client(serve(answer));
    runtime()
        .block_on(client.info(drive()))
        .map(|info| info.size)
}

/// The client's result for an answer to a read of four bytes.
fn read(answer: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let client = client(serve(answer));
    let read = runtime().block_on(client.read(drive(), 0, 4));
    read.map(|bytes| bytes.to_vec())
}

#[track_caller]
fn refuses<T: std::fmt::Debug>(answered: Result<T, Failure>, why: &str) {
    match answered {
        Err(Failure::NotApi(what)) => assert!(what.contains(why), "{what:?} has no {why:?}"),
        other => panic!("{why:?} is taken for an answer of the API: {other:?}"),
    }
}

#[test]
fn answers_of_real_endpoints_are_accepted() {
    for headers in [
        &[][..],
        &["Content-Type: text/plain"],
        &["Content-Type: text/plain; charset=utf-8"],
        &["Content-Type: Text/Plain", "X-Elastic-Output: properties"],
        &["Content-Type: application/octet-stream"],
        &["Content-Encoding: identity"],
    ] {
        let info = info(answer(200, headers, &info_of(DRIVE, "5")));
        assert_eq!(info, Ok(5), "{headers:?}");
    }
    for headers in [
        &[][..],
        &["Content-Type: application/octet-stream"],
        &["Content-Type: application/octet-stream; charset=binary"],
    ] {
        assert_eq!(read(answer(200, headers, b"abcd")).unwrap(), b"abcd");
    }
    let upper = DRIVE.to_ascii_uppercase();
    assert_eq!(info(answer(200, &[], &info_of(&upper, "5"))), Ok(5));
    // The whole body, ended by closing the connection.
    let body = b"HTTP/1.0 200 OK\r\n\r\nabcd".to_vec();
    assert_eq!(read(body).unwrap(), b"abcd");
}

#[test]
fn an_answer_about_another_drive_is_ignored() {
    refuses(info(answer(200, &[], &info_of(OTHER, "5"))), OTHER);
    let runtime = runtime();
    let other = answer(200, &[], &info_of(OTHER, "5"));
    let client = client(serve(other));
    let changes = Properties::new();
    refuses(runtime.block_on(client.set(drive(), &changes)), OTHER);
    refuses(runtime.block_on(client.info_full(drive())), OTHER);
    refuses(runtime.block_on(client.destroy(drive())), OTHER);
    // The object of an imaging may be about any drive.
    let image = runtime.block_on(client.image(drive(), OTHER.parse().unwrap()));
    assert_eq!(image, Ok(()));
}

#[test]
fn an_answer_with_another_content_type_or_encoding_is_refused() {
    let page = &["Content-Type: text/html; charset=utf-8"][..];
    refuses(info(answer(200, page, &info_of(DRIVE, "5"))), "HTML");
    refuses(read(answer(200, page, b"abcd")), "HTML");
    // A page that says OK does not mean that anything was destroyed.
    let portal = client(serve(answer(200, page, b"<html>Please log in")));
    refuses(runtime().block_on(portal.destroy(drive())), "HTML");
    for (header, why) in [
        ("Content-Type: application/json", "application/json"),
        ("Content-Type: image/png", "image/png"),
        ("Content-Encoding: gzip", "gzip"),
        ("Content-Range: bytes 0-3/9", "bytes 0-3/9"),
    ] {
        refuses(info(answer(200, &[header], &info_of(DRIVE, "5"))), why);
        refuses(read(answer(200, &[header], b"abcd")), why);
    }
    refuses(
        read(answer(200, &["Content-Type: text/plain"], b"abcd")),
        "text/plain",
    );
    refuses(
        read(answer(206, &["Content-Range: bytes 100-103/200"], b"abcd")),
        "bytes 100-103",
    );
    refuses(read(answer(206, &[], b"abcd")), "part");
    let length = client(serve(answer(200, page, b"abcd")));
    refuses(
        runtime().block_on(length.read_length(drive(), 0, 4)),
        "HTML",
    );
}

#[test]
fn huge_numbers_in_answers_do_not_overflow() {
    for size in ["18446744073709551615", "9223372036854775807", "16777215T"] {
        refuses(
            info(answer(200, &[], &info_of(DRIVE, size))),
            "no drive has",
        );
    }
    let head = "HTTP/1.1 200 OK\r\n";
    for broken in [
        "Content-Length: 18446744073709551615\r\n\r\nabcd",
        "Content-Length: 18446744073709551616\r\n\r\nabcd",
        "Content-Length: -4\r\n\r\nabcd",
        "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabcd",
        "Transfer-Encoding: chunked\r\n\r\n10000000000000004\r\nabcd\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-4\r\nabcd\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nabcd",
        "Content-Length\r\n\r\nabcd",
    ] {
        let answered = read(format!("{head}{broken}").into_bytes());
        assert!(answered.is_err(), "{broken:?} is taken: {answered:?}");
        assert!(
            info(format!("{head}{broken}").into_bytes()).is_err(),
            "{broken:?}"
        );
    }
    let many: String = (0..100_000).map(|i| format!("X-{i}: {i}\r\n")).collect();
    let answered = read(format!("{head}{many}\r\nabcd").into_bytes());
    assert!(answered.is_err(), "{answered:?}");
    let long = "x".repeat(2 << 20);
    let one = format!("{head}\r\ndrive {DRIVE}\nsize 5\nname {long}\n");
    refuses(info(one.clone().into_bytes()), "bytes");
    let list = client(serve(one.into_bytes()));
    refuses(runtime().block_on(list.drives()), "bytes");
}

#[test]
fn an_answer_head_that_arrives_too_slowly_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).unwrap() > 0);
        let mut bytes = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        while stream.write_all(&bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            bytes = b"x".to_vec();
        }
    });
    let answered = runtime().block_on(client(address).info(drive()));
    assert!(matches!(answered, Err(Failure::Stalled(_))), "{answered:?}");
}

#[test]
fn a_range_other_than_the_requested_one_is_refused() {
    let web = Web::new(&config()).unwrap();
    let get = |headers: &[&str], body: &[u8]| {
        let address = serve(answer(206, headers, body));
        let url: WebUrl = format!("http://{address}/a.img").parse().unwrap();
        runtime().block_on(async {
            let mut answer = web.get(&url, Some(10..14), None, true).await?;
            let mut bytes = Vec::new();
            while let Some(part) = answer.next_part().await? {
                bytes.extend_from_slice(&part);
            }
            Ok::<_, Failure>(bytes)
        })
    };
    assert_eq!(
        get(&["Content-Range: bytes 10-13/99"], b"abcd").unwrap(),
        b"abcd"
    );
    assert_eq!(
        get(&["Content-Range: bytes 10-11/*"], b"ab").unwrap(),
        b"ab"
    );
    for range in [
        "bytes 0-3/99",
        "bytes 10-14/99",
        "bytes 10-98/99",
        "bytes 10-12/99",
        "bytes 13-10/99",
        "bytes 10-13/12",
        "bytes 10-18446744073709551615/*",
    ] {
        let header = format!("Content-Range: {range}");
        refuses(get(&[&header], b"abcd"), "another range");
    }
    refuses(
        get(
            &["Content-Range: bytes 10-13/18446744073709551615"],
            b"abcd",
        ),
        "no file has",
    );
    // Without a declared length, a body must not be longer than its range either.
    let endless = b"HTTP/1.1 206 Made up\r\nContent-Range: bytes 10-13/99\r\n\r\nabcdefgh".to_vec();
    let url: WebUrl = format!("http://{}/a.img", serve(endless)).parse().unwrap();
    let read = runtime().block_on(async {
        let mut answer = web.get(&url, Some(10..14), None, true).await?;
        while answer.next_part().await?.is_some() {}
        Ok::<_, Failure>(())
    });
    assert!(matches!(read, Err(Failure::WrongLength(_))), "{read:?}");
}

#[test]
fn a_redirect_to_another_scheme_is_refused_at_once() {
    let desk = Desk::new();
    let server = desk.server();
    for (place, why) in [
        (
            "ftp://127.0.0.1/a.img",
            "a redirect to ftp:, which is neither",
        ),
        ("file:///etc/passwd", "redirect, not followed"),
        ("data:,x", "a redirect to data:, which is neither"),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let stub = FaultProxy::stub(move |_: &Request| {
            count.fetch_add(1, Ordering::Relaxed);
            answer(302, &[&format!("Location: {place}")], b"")
        });
        let url = format!("{}a.img", stub.uri());
        let upload = desk.upload(&server.uri).args(&url).run().code(1);
        upload.says(why);
        assert_eq!(asked.load(Ordering::Relaxed), 1, "{place} is tried again");
    }
}

/// A list of drives, of these names.
fn listing(names: impl Iterator<Item = String>) -> Vec<u8> {
    let mut body = Vec::new();
    for (i, name) in names.enumerate() {
        let uuid = format!("{i:08x}-6eae-4279-9912-3432f698cec8");
        let keys =
            "size 10737418240\nstatus active\ntier disk\nuser 11111111-6eae-4279-9912-3432f698cec8";
        write!(body, "drive {uuid}\nname {name}\n{keys}\n\n").unwrap();
    }
    body
}

#[test]
fn a_long_list_is_printed_as_it_arrives() {
    const DRIVES: usize = 60_000;
    let body = listing((0..DRIVES).map(|i| format!("name {i} {}", "n".repeat(60))));
    let address = serve(answer(200, &["Content-Type: text/plain"], &body));
    let desk = Desk::new();
    let uri = format!("http://{address}/");
    // In memory as a whole, it needed fifty times its length: 13 MB.
    let limited = desk.tool("sh");
    let limited = limited.env("OHURI", &uri).env("OHAUTH", desk.auth());
    let command = format!(
        "ulimit -v 400000; exec {} ls --json",
        env!("CARGO_BIN_EXE_openhosting")
    );
    let listed = limited.list(["-c", &command]).run().code(0);
    let object: serde_json::Value = serde_json::from_str(listed.text()).unwrap();
    assert_eq!(object["schema"], "ls/1");
    let drives = object["drives"].as_array().unwrap();
    assert_eq!(drives.len(), DRIVES);
    assert_eq!(drives[7]["drive"], "00000007-6eae-4279-9912-3432f698cec8");
    assert_eq!(drives[7]["size"], 10_737_418_240_u64);
}

#[test]
fn an_interrupted_list_has_each_drive_once_and_is_valid_json() {
    let body = listing((0..50).map(|i| format!("name {i}")));
    let whole = answer(200, &["Content-Type: text/plain"], &body);
    let cut = whole[..whole.len() - 500].to_vec();
    let address = serve_each(move |number| match number {
        0 => cut.clone(),
        _ => whole.clone(),
    });
    let desk = Desk::new();
    let ls = |address| {
        let uri = format!("http://{address}/");
        desk.simple(&uri).args("ls --json").run()
    };
    let listed = ls(address).code(0);
    let object: serde_json::Value = serde_json::from_str(listed.text()).unwrap();
    assert_eq!(object["drives"].as_array().unwrap().len(), 50);
    // An error in the middle of the answer fails the command, and the objects before it are
    // printed.
    let mut wrong = listing((0..50).map(|i| format!("name {i}")));
    wrong.extend_from_slice(b"drive none\nsize 1\n");
    let listed = ls(serve(answer(200, &[], &wrong))).code(1);
    let object: serde_json::Value = serde_json::from_str(listed.text()).unwrap();
    assert_eq!(object["drives"].as_array().unwrap().len(), 50);
    assert_eq!(object["error"]["kind"], "protocol");
    assert_eq!(object["schema"], "ls/1");
    // No object at all is an empty list.
    let listed = ls(serve(answer(200, &[], b""))).code(0);
    let object: serde_json::Value = serde_json::from_str(listed.text()).unwrap();
    assert_eq!(object, serde_json::json!({"drives": [], "schema": "ls/1"}));
}
