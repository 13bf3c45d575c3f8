//! Writing to drives: encodings, bounds, holes, crashes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;

use crate::support::http::{Ask, Reply, create, raw, read_all, read_reply};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{gzip, ramp};

fn write(server: &TestServer, drive: &str, offset: u64, body: &[u8]) -> Reply {
    Ask::of(server).post(&format!("/drives/{drive}/write/{offset}"), body)
}

fn write_gzip(server: &TestServer, drive: &str, offset: u64, body: &[u8]) -> Reply {
    Ask::of(server).post_gzip(&format!("/drives/{drive}/write/{offset}"), body)
}

#[test]
fn raw_and_gzip_bodies_are_written_at_their_offset() {
    let server = TestServer::start();
    let drive = create(&server, 100_000);
    let mut model = vec![0; 100_000];
    let mut both = gzip(&ramp(3, 5000));
    both.extend(gzip(&ramp(5003, 777)));
    let writes = [
        (0, ramp(9, 3), None),
        (99_999, vec![7], None),
        (4096, ramp(1, 8192), Some(gzip(&ramp(1, 8192)))),
        (50_001, ramp(3, 5777), Some(both)),
        (4100, vec![0; 5000], Some(gzip(&[0; 5000]))),
        (100_000, vec![], None),
        (100_000, vec![], Some(gzip(&[]))),
    ];
    for (offset, plain, packed) in writes {
        let reply = match packed {
            Some(packed) => write_gzip(&server, &drive, offset, &packed),
            None => write(&server, &drive, offset, &plain),
        };
        assert!(reply.expect(204).body.is_empty());
        let start = offset as usize;
        model[start..start + plain.len()].copy_from_slice(&plain);
        assert!(
            read_all(&server, &drive) == model,
            "after the write at {offset}"
        );
    }
    let identity = Ask::of(&server).with("Content-Encoding: identity");
    identity
        .post(&format!("/drives/{drive}/write"), "x")
        .expect(204);
}

#[test]
fn a_bad_body_does_not_change_the_drive() {
    let server = TestServer::start();
    let len = 20_000;
    let drive = create(&server, len as u64);
    let before = ramp(5, len);
    write(&server, &drive, 0, &before).expect(204);
    let good = gzip(&ramp(77, 9000));
    let altered = |back: usize| {
        let mut bad = good.clone();
        let at = bad.len() - back;
        bad[at] ^= 0x55;
        bad
    };
    let bomb = gzip(&vec![0; 64 << 20]);
    let cases: [(&str, Vec<u8>); 10] = [
        ("empty", vec![]),
        ("not gzip", b"hello".to_vec()),
        ("wrong length", altered(1)),
        ("wrong checksum", altered(8)),
        ("damaged data", altered(good.len() / 2)),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("cut in the header", good[..5].to_vec()),
        ("trailing garbage", [&good[..], b"garbage"].concat()),
        ("trailing zeros", [&good[..], &[0; 512]].concat()),
        ("bomb", bomb),
    ];
    for (name, body) in cases {
        let reply = write_gzip(&server, &drive, 0, &body);
        assert_eq!(reply.error(), (400, "usage"), "{name}");
    }
    let fits = write_gzip(&server, &drive, len as u64 - 9000, &good);
    fits.expect(204);
    write(&server, &drive, 0, &before).expect(204);
    let past = [
        write_gzip(&server, &drive, len as u64 - 8999, &good),
        write(&server, &drive, len as u64 - 1, b"xy"),
        write(&server, &drive, len as u64 + 1, b""),
        write(&server, &drive, u64::MAX, b"xy"),
        write(&server, &drive, 0, &vec![1; len + 1]),
    ];
    for reply in past {
        assert_eq!(reply.error(), (400, "usage"));
    }
    let unknown = Ask::of(&server).with("Content-Encoding: br");
    let unknown = unknown.post(&format!("/drives/{drive}/write"), "x");
    assert_eq!(unknown.error(), (400, "usage"));
    assert!(read_all(&server, &drive) == before);
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = TestServer::start();
    let drive = create(&server, 10);
    // More than the buffers of both sockets can hold.
    let body = vec![1; 40 << 20];
    let refused = write(&server, &drive, 0, &body);
    assert_eq!(refused.error(), (400, "usage"));
    let auth = Ask::of(&server)
        .by("x:y")
        .post(&format!("/drives/{drive}/write"), &body);
    assert_eq!(auth.error(), (401, "auth"));
}

/// A write of a body in chunks, without its end.
fn chunked(server: &TestServer, drive: &str, body: &[u8], headers: &str) -> Vec<u8> {
    let mut head = Ask::of(server).with("Transfer-Encoding: chunked");
    if !headers.is_empty() {
        head = head.with(headers);
    }
    let head = head.head("POST", &format!("/drives/{drive}/write"));
    let mut request = format!("{head}\r\n").into_bytes();
    for chunk in body.chunks(700_001) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend_from_slice(chunk);
        request.extend(b"\r\n");
    }
    request
}

#[test]
fn long_bodies_take_no_more_disk_space_than_their_drive() {
    let server = TestServer::start();
    let len = 20_000_000;
    let drive = create(&server, len);
    // Two of these fit, and a third does not.
    let request = chunked(&server, &drive, &ramp(0, 9_000_000), "");
    let mut streams: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let _ = stream.write_all(&request);
            stream
        })
        .collect();
    let mut refused = None;
    wait_until("one of the bodies is refused", || {
        refused = streams.iter().position(|stream| {
            stream.set_nonblocking(true).unwrap();
            let is_answered = stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0);
            stream.set_nonblocking(false).unwrap();
            is_answered
        });
        refused.is_some()
    });
    let reply = read_reply(&mut streams.remove(refused.unwrap())).unwrap();
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("retry-after"), Some("1"));
    for mut stream in streams {
        stream.write_all(b"0\r\n\r\n").unwrap();
        read_reply(&mut stream).unwrap().expect(204);
    }
    // All is returned.
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let whole = chunked(&server, &drive, &ramp(1, len as usize), "");
    stream.write_all(&whole).unwrap();
    stream.write_all(b"0\r\n\r\n").unwrap();
    read_reply(&mut stream).unwrap().expect(204);
    assert!(read_all(&server, &drive) == ramp(1, len as usize));
}

#[test]
fn chunked_bodies_of_any_length() {
    let server = TestServer::start();
    let len = 20_000_000;
    let drive = create(&server, len as u64);
    let data = ramp(0, len);
    let chunked = |body: &[u8], headers: &str| chunked(&server, &drive, body, headers);
    let send = |mut request: Vec<u8>, end: &[u8]| {
        request.extend_from_slice(end);
        raw(server.address(), &request)
    };
    // Sizes that are held in memory, and sizes that are too large for that.
    for part in [3_000_000, 8 << 20, (8 << 20) + 1, len] {
        let reply = send(chunked(&data[..part], ""), b"0\r\n\r\n").unwrap();
        reply.expect(204);
        assert!(read_all(&server, &drive)[..part] == data[..part], "{part}");
    }
    let zeros = vec![0; len];
    let packed = gzip(&zeros);
    send(chunked(&packed, "Content-Encoding: gzip"), b"0\r\n\r\n")
        .unwrap()
        .expect(204);
    assert!(read_all(&server, &drive) == zeros);
    // One byte too many, and compressed data without an end.
    let long = [&data[..], b"x"].concat();
    let reply = send(chunked(&long, ""), b"0\r\n\r\n").unwrap();
    assert_eq!(reply.error(), (400, "usage"));
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(&chunked(&data[..9_000_000], "")).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    if let Some(reply) = read_reply(&mut stream) {
        assert_eq!(reply.status, 400);
    }
    assert!(read_all(&server, &drive) == zeros);
    let spilled = std::fs::read_dir(server.data.join("staging")).unwrap();
    assert_eq!(spilled.count(), 0);
}

#[test]
fn a_long_raw_body_streams_and_a_short_one_gets_no_204() {
    let server = TestServer::start();
    let len = 30_000_000;
    let drive = create(&server, len as u64);
    let data = ramp(0, len);
    write(&server, &drive, 0, &data).expect(204);
    assert!(read_all(&server, &drive) == data);

    for sent in [100, 12_000_000] {
        let head = Ask::of(&server)
            .with(&format!("Content-Length: {}", sent + 1))
            .head("POST", &format!("/drives/{drive}/write"));
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(&vec![0xee; sent]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        if let Some(reply) = read_reply(&mut stream) {
            assert_eq!(reply.status, 400);
        }
        // The part that was first held in memory was not written.
        let is_untouched = read_all(&server, &drive) == data;
        assert!(is_untouched == (sent < 8 << 20));
    }
}

#[test]
fn expect_continue_is_answered_or_refused_before_the_body() {
    let server = TestServer::start();
    let drive = create(&server, 4);
    let head = |len: usize| {
        Ask::of(&server)
            .with("Expect: 100-continue")
            .with(&format!("Content-Length: {len}"))
            .head("POST", &format!("/drives/{drive}/write"))
    };
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(format!("{}\r\n", head(4)).as_bytes())
        .unwrap();
    let go = read_reply(&mut stream).unwrap();
    assert_eq!(go.status, 100);
    stream.write_all(b"abcd").unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().status, 204);
    let refused = raw(server.address(), format!("{}\r\n", head(5)).as_bytes());
    assert_eq!(refused.unwrap().error(), (400, "usage"));
    assert_eq!(read_all(&server, &drive), b"abcd");
}

#[test]
fn zeros_become_holes() {
    let server = TestServer::start();
    let len = 8 << 20;
    let drive = create(&server, len);
    let blocks = || {
        std::fs::metadata(server.drive_file(&drive))
            .unwrap()
            .blocks()
    };
    assert_eq!(blocks(), 0);
    let mut data = vec![0; len as usize];
    write_gzip(&server, &drive, 0, &gzip(&data)).expect(204);
    assert_eq!(blocks(), 0);
    data[4 << 20..].copy_from_slice(&ramp(1, 4 << 20));
    write_gzip(&server, &drive, 0, &gzip(&data)).expect(204);
    std::fs::File::open(server.drive_file(&drive))
        .unwrap()
        .sync_all()
        .unwrap();
    let half = blocks();
    assert!(half * 512 >= 4 << 20 && half * 512 < 5 << 20, "{half}");
    assert!(read_all(&server, &drive) == data);
    write(&server, &drive, 0, &vec![0; len as usize]).expect(204);
    assert!(blocks() < half, "zeros over data take as much as the data");
    assert!(read_all(&server, &drive) == vec![0; len as usize]);
}

/// Sends the head of a write and a part of its body.
fn begin_write(server: &TestServer, drive: &str) -> TcpStream {
    let head = Ask::of(server)
        .with("Content-Length: 4")
        .with("Expect: 100-continue")
        .head("POST", &format!("/drives/{drive}/write"));
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // After this answer the write is certainly under way.
    assert_eq!(read_reply(&mut stream).unwrap().status, 100);
    stream.write_all(b"ab").unwrap();
    stream
}

#[test]
fn a_write_in_progress_excludes_other_writers() {
    for (args, second) in [(&[][..], 204), (&["--one-writer"][..], 409)] {
        let server = TestServer::with_args(args);
        let drive = create(&server, 10);
        let other = create(&server, 10);
        let mut first = begin_write(&server, &drive);
        assert_eq!(write(&server, &drive, 4, b"zz").status, second);
        write(&server, &other, 4, b"zz").expect(204);
        for (command, body) in [("destroy", ""), ("set", "size 5"), ("set", "size 50")] {
            let reply = Ask::of(&server).post(&format!("/drives/{drive}/{command}"), body);
            assert_eq!(reply.error(), (409, "busy"), "{command} {body}");
        }
        let named = Ask::of(&server).post(&format!("/drives/{drive}/set"), "name x\nsize 10");
        named.expect(200);
        first.write_all(b"cd").unwrap();
        assert_eq!(read_reply(&mut first).unwrap().status, 204);
        assert_eq!(read_all(&server, &drive)[..4], *b"abcd");
        write(&server, &drive, 4, b"yy").expect(204);
        Ask::of(&server)
            .post(&format!("/drives/{drive}/destroy"), "")
            .expect(204);
        assert_eq!(write(&server, &drive, 4, b"yy").error(), (404, "missing"));
    }
}

#[test]
fn a_stop_lets_the_write_under_way_finish() {
    let mut server = TestServer::start();
    let drive = create(&server, 10);
    let mut first = begin_write(&server, &drive);
    server.terminate();
    // After a moment it accepts no more connections.
    wait_until("no more connections", || {
        TcpStream::connect(server.address()).is_err()
    });
    first.write_all(b"cd").unwrap();
    assert_eq!(read_reply(&mut first).unwrap().status, 204);
    drop(first);
    assert!(server.wait().success(), "{}", server.log());
    server.start_again();
    assert_eq!(read_all(&server, &drive), b"abcd\0\0\0\0\0\0");
    let info = Ask::of(&server).get(&format!("/drives/{drive}/info"));
    assert_eq!(info.key("write:bytes"), Some("4100"));
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut server = TestServer::start();
    let drive = create(&server, 10);
    let first = begin_write(&server, &drive);
    server.terminate();
    wait_until("no more connections", || {
        TcpStream::connect(server.address()).is_err()
    });
    server.terminate();
    assert_eq!(server.wait().code(), Some(143));
    drop(first);
    server.start_again();
    assert_eq!(read_all(&server, &drive), [0; 10]);
}

/// As `timeout` and a terminal send one.
#[test]
fn a_signal_that_comes_twice_stops_an_idle_server_as_one_does() {
    for _ in 0..4 {
        let mut server = TestServer::start();
        let _ = create(&server, 10);
        let pid = server.pid();
        let twice = format!("kill -TERM {pid}; kill -INT {pid}");
        let sent = std::process::Command::new("sh")
            .args(["-c", &twice])
            .status();
        assert!(sent.is_ok());
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    }
}

#[test]
fn writes_answered_with_204_survive_kill_9() {
    const CHUNK: usize = 100_000;
    const CHUNKS: u64 = 40;
    let mut server = TestServer::start();
    for round in 0..4 {
        let drive = create(&server, CHUNK as u64 * CHUNKS);
        let other = create(&server, 1);
        let confirmed = std::sync::atomic::AtomicU64::new(0);
        let renamed = std::sync::atomic::AtomicU64::new(0);
        let address = server.address();
        let post = |path: String, gzipped: bool, body: &[u8]| {
            let mut ask = Ask::of(&server).with(&format!("Content-Length: {}", body.len()));
            if gzipped {
                ask = ask.with("Content-Encoding: gzip");
            }
            let head = ask.head("POST", &path);
            let request = [format!("{head}\r\n").as_bytes(), body].concat();
            let mut stream = TcpStream::connect(address).ok()?;
            stream.write_all(&request).ok()?;
            let mut answer = Vec::new();
            let _ = stream.shutdown(Shutdown::Write);
            stream.read_to_end(&mut answer).ok()?;
            Some(answer.starts_with(b"HTTP/1.1 20"))
        };
        std::thread::scope(|scope| {
            use std::sync::atomic::Ordering::SeqCst;
            let post = &post;
            let (confirmed, renamed, drive, other) = (&confirmed, &renamed, &drive, &other);
            let writer = scope.spawn(move || {
                for i in 0..CHUNKS {
                    let offset = i * CHUNK as u64;
                    let body = gzip(&ramp(offset + round, CHUNK));
                    let path = format!("/drives/{drive}/write/{offset}");
                    if post(path, true, &body) != Some(true) {
                        return;
                    }
                    confirmed.store(i + 1, SeqCst);
                }
            });
            scope.spawn(move || {
                for i in 1.. {
                    let path = format!("/drives/{other}/set");
                    let body = format!("name n{i}\nsize {i}");
                    if post(path, false, body.as_bytes()) != Some(true) {
                        return;
                    }
                    renamed.store(i, SeqCst);
                }
            });
            while confirmed.load(SeqCst) < 5 * (round + 1) && !writer.is_finished() {
                std::thread::yield_now();
            }
            let pid = server.pid().to_string();
            let status = std::process::Command::new("kill")
                .args(["-KILL", &pid])
                .status();
            assert!(status.unwrap().success());
        });
        server.wait();
        server.start_again();
        let confirmed = confirmed.into_inner() * CHUNK as u64;
        let data = read_all(&server, &drive);
        assert!(confirmed > 0);
        assert!(data[..confirmed as usize] == ramp(round, confirmed as usize));
        let info = Ask::of(&server)
            .get(&format!("/drives/{other}/info"))
            .expect(200);
        let size: u64 = info.key("size").unwrap().parse().unwrap();
        let renamed = renamed.into_inner();
        // The change without an answer may or may not have been made.
        assert!(
            size == renamed.max(1) || size == renamed + 1,
            "{size} {renamed}"
        );
    }
    let list = Ask::of(&server).get("/drives/list").expect(200);
    assert_eq!(list.text().lines().count(), 8);
}

#[test]
fn overlapping_writes_are_atomic() {
    const LEN: usize = 1 << 20;
    let server = TestServer::start();
    let drive = create(&server, LEN as u64);
    for round in 0..5 {
        std::thread::scope(|scope| {
            for byte in 1..=6 {
                let (server, drive) = (&server, &drive);
                // Zeros between the data make many small writes to the file.
                let mut body = vec![byte; LEN];
                for hole in body.chunks_mut(8192).skip(byte.into()).step_by(7) {
                    hole.fill(0);
                }
                scope.spawn(move || write_gzip(server, drive, 0, &gzip(&body)).expect(204));
            }
        });
        let mut data = read_all(&server, &drive);
        data.retain(|&byte| byte != 0);
        data.dedup();
        assert_eq!(data.len(), 1, "round {round}: a mix of {data:?}");
    }
}
