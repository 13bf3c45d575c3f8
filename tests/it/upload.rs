//! `openhosting-upload` against a real server, through a proxy that counts requests and bytes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::cli::{Desk, Outcome};
use crate::support::http::{Ask, assert_drive, create, drives, info};
use crate::support::needs::{Need, needs};
use crate::support::proxy::{FaultProxy, Request};
use crate::support::{gzip, noise, ramp};

const C: u64 = 65536;

fn offsets(proxy: &FaultProxy) -> Vec<u64> {
    let requests = proxy.requests();
    let writes = requests.iter().filter(|r| r.is_write());
    let mut offsets: Vec<_> = writes.map(Request::offset).collect();
    offsets.sort_unstable();
    offsets
}

fn expect_stdout(outcome: &Outcome, chunks: u64, chunk: u64, size: u64) {
    let drive = outcome.created();
    let dots = ".".repeat(chunks as usize);
    assert_eq!(
        outcome.text(),
        format!(
            "Created drive {drive} of size {size}\nUploading {chunks} chunks of {chunk} bytes: {dots} completed\n"
        )
    );
    // Images of any size are uploaded, and those that contain only zeros with a notice.
    let is_notice = |line: &&str| {
        line.contains("not a multiple of the sector size") || line.contains("No boot signature")
    };
    let others: Vec<_> = outcome.stderr.lines().filter(|l| !is_notice(l)).collect();
    assert_eq!(others, Vec::<&str>::new());
}

#[test]
fn the_example_of_the_documentation() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = ramp(0, 10_000_000);
    desk.file("disk.img", &image);
    let outcome = desk.upload(&proxy.uri()).arg("disk.img").run().code(0);
    expect_stdout(&outcome, 2, 5_242_880, 10_000_000);
    let drive = outcome.created();
    assert_drive(&server, &drive, &image);
    assert_eq!(drives(&server), [drive.as_str()]);
    assert_eq!(info(&server, &drive, "name").as_deref(), Some("disk.img"));
    // Both chunks were sampled: 16 KiB of each were read back, perhaps while the other was
    // sent, and then a second time at the end.
    let sampled = proxy.count(|request| request.path.ends_with("/16384"));
    assert!((2..=4).contains(&sampled), "{sampled}");
    // The others create the drive, read its token, and end its mark.
    assert_eq!(proxy.requests().len(), 5 + sampled);
    assert_eq!(offsets(&proxy), [0, 5_242_880]);
    // Each request has credentials, and none uses chunked encoding.
    for request in proxy.requests() {
        assert!(request.header("authorization").is_some());
        assert_eq!(request.header("transfer-encoding"), None);
        let has_length = request.header("content-length").is_some();
        assert_eq!(has_length, request.method == "POST");
    }
    desk.check_hidden("the log of the server", server.log().as_bytes());
}

#[test]
fn sizes_around_a_chunk() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    for size in [1, C - 1, C, C + 1, 3 * C] {
        let image = noise(size, size as usize);
        desk.file("a.img", &image);
        let tool = desk.upload(&proxy.uri()).args("-c 65536 a.img");
        let outcome = tool.run().code(0);
        expect_stdout(&outcome, size.div_ceil(C), C, size);
        assert_drive(&server, &outcome.created(), &image);
    }
    proxy.forget();
    desk.file("empty.img", b"");
    let outcome = desk.upload(&proxy.uri()).arg("empty.img").run().code(1);
    let _ = outcome.says("empty.img is empty");
    assert!(proxy.requests().is_empty());
}

#[test]
fn an_image_of_four_gib_and_one_byte_is_uploaded() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = (4 << 30) + 1;
    let pieces: [(u64, &[u8]); 3] = [(0, b"first"), (3 << 30, b"middle"), (4 << 30, b"!")];
    desk.sparse("big.img", size, &pieces);
    let outcome = desk.upload(&proxy.uri()).arg("big.img").run().code(0);
    expect_stdout(&outcome, 820, 5_242_880, size);
    let drive = outcome.created();
    let metadata = std::fs::metadata(server.drive_file(&drive)).unwrap();
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() * 512 <= 16 << 20, "{metadata:?}");
    for (offset, bytes) in pieces {
        let path = format!("/drives/{drive}/read/{offset}/{}", bytes.len());
        assert_eq!(Ask::of(&server).get(&path).expect(200).body, bytes);
    }
    // Whether zeros before the data are sent depends on when it is known that the drive is zero.
    let chunk = |offset: u64| offset / 5_242_880;
    let chunks: Vec<_> = offsets(&proxy).into_iter().map(chunk).collect();
    assert_eq!(chunks, [0, chunk(3 << 30), chunk(4 << 30)]);
}

#[test]
fn an_image_of_zeros_sends_almost_nothing() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 20_000_000;
    // One image is a hole, and the other one has zeros on the disk.
    desk.sparse("hole.img", size, &[]);
    desk.file("zeros.img", &vec![0; size as usize]);
    for name in ["hole.img", "zeros.img"] {
        proxy.forget();
        let outcome = desk.upload(&proxy.uri()).arg(name).run().code(0);
        expect_stdout(&outcome, 4, 5_242_880, size);
        let requests = proxy.requests();
        // The creation, one read that shows that the drive is zero, and a sample of the four holes,
        // once or twice. Then the token of the drive is read, and its mark ends.
        assert!(requests.len() <= 2 + 8 + 2, "{requests:?}");
        assert!(requests[0].is_create());
        let [_, reads @ .., token, end] = &requests[..] else {
            panic!("{requests:?}");
        };
        assert!(reads.iter().all(Request::is_read));
        assert!(token.is_info() && end.path.ends_with("/set"));
        // The heads of twelve requests at most, and the description of the drive.
        assert!(proxy.bytes_up() < 5000, "{} bytes up", proxy.bytes_up());
        assert_drive(&server, &outcome.created(), &vec![0; size as usize]);
    }
}

#[test]
fn zeros_within_a_chunk_are_left_out_of_a_new_drive_only() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 64 * C as usize;
    let mut image = vec![0; size];
    for chunk in 0..64 {
        // Chunks with an even number are holes.
        let at = chunk * C as usize + 30_000;
        image[at..at + 5000].fill(chunk as u8 % 2);
    }
    desk.file("a.img", &image);
    let flags = "-j 1 --level 0 -c 65536 a.img";
    let outcome = desk.upload(&proxy.uri()).args(flags).run().code(0);
    assert_drive(&server, &outcome.created(), &image);
    let up = proxy.bytes_up();
    assert!(up < size as u64 / 4, "{up} bytes up");

    let drive = create(&server, size as u64);
    let path = format!("/drives/{drive}/write/0");
    Ask::of(&server).post(&path, noise(1, size)).expect(204);
    let tool = desk.upload(&proxy.uri()).args(flags).args("-d");
    let _ = tool.arg(&drive).run().code(0);
    assert_drive(&server, &drive, &image);
}

#[test]
fn a_trace_has_a_line_for_each_chunk() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = [ramp(0, 4 * C as usize), noise(2, 8 * C as usize)].concat();
    desk.file("a.img", &image);
    for level in ["auto", "3"] {
        let flags = format!("-c 262144 --level {level} --trace trace.jsonl a.img");
        let outcome = desk.upload(&proxy.uri()).args(&flags).run().code(0);
        assert_drive(&server, &outcome.created(), &image);
        let trace = std::fs::read_to_string(desk.path("trace.jsonl")).unwrap();
        let mut lines: Vec<serde_json::Value> = trace
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        lines.sort_by_key(|line| line["chunk"].as_u64());
        let values_of = |key: &str| {
            lines
                .iter()
                .map(|line| line[key].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(values_of("chunk"), [0, 1, 2]);
        assert_eq!(values_of("raw_bytes"), [262_144; 3]);
        if level == "3" {
            assert_eq!(
                values_of("reason"),
                ["fixed", "incompressible", "incompressible"]
            );
            assert_eq!(values_of("level"), [3, 0, 0]);
        }
        assert_eq!(lines[1]["body_bytes"], 262_144);
        for key in ["at_ms", "effort", "ready", "in_flight", "encode_us"] {
            assert!(lines[0][key].is_number(), "{key}");
        }
    }
    // Symbolic links are not followed.
    std::os::unix::fs::symlink("elsewhere", desk.path("link")).unwrap();
    let tool = desk.upload(&proxy.uri()).args("--trace link a.img");
    let _ = tool.run().code(1).says("Cannot write the trace link");
    assert!(!desk.path("elsewhere").exists());
}

#[test]
fn compressible_chunks_are_sent_compressed_and_noise_raw() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 10 * C as usize + 5;
    for (image, level) in [(noise(1, size), 1), (ramp(0, size), 1), (ramp(0, size), 0)] {
        proxy.forget();
        desk.file("a.img", &image);
        let flags = "-c 65536 --verify none a.img --level";
        let tool = desk.upload(&proxy.uri()).args(flags);
        let outcome = tool.arg(level.to_string()).run().code(0);
        assert_drive(&server, &outcome.created(), &image);
        let packs = level == 1 && image[..251] == ramp(0, 251);
        let limit = if packs { size / 2 } else { size + 8000 };
        let up = proxy.bytes_up();
        assert!(up <= limit as u64, "{up} bytes up of {size}");
        for request in proxy.requests().iter().filter(|r| r.is_write()) {
            let at = request.offset() as usize;
            assert!(request.plain() == image[at..size.min(at + C as usize)]);
            let is_last = at == 10 * C as usize;
            let encoding = request.header("content-encoding");
            assert!(is_last || (encoding == Some("gzip")) == packs);
        }
    }
}

#[test]
fn holes_are_skipped_on_a_new_drive_and_written_to_an_existing_one() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 20 * C + 100;
    let pieces: [(u64, &[u8]); 3] = [
        (0, &ramp(0, 10)),
        (7 * C - 3, &ramp(7, 10)),
        (20 * C, &ramp(3, 100)),
    ];
    let path = desk.sparse("a.img", size, &pieces);
    let image = std::fs::read(path).unwrap();
    let outcome = desk.upload(&proxy.uri()).args("-c 65536 a.img").run();
    expect_stdout(&outcome, 21, C, size);
    assert_drive(&server, &outcome.created(), &image);
    // Whether zeros before the data are sent depends on when it is known that the drive is zero.
    let chunks: Vec<_> = offsets(&proxy).into_iter().map(|at| at / C).collect();
    assert_eq!(chunks, [0, 6, 7, 20]);

    // Earlier content of a drive must be overwritten where the image has holes.
    let old = create(&server, size);
    let mut stale = vec![0xff; size as usize];
    // The first hole is zero on the drive, so looking at that one alone would be misleading.
    stale[C as usize..2 * C as usize].fill(0);
    let write = format!("/drives/{old}/write");
    Ask::of(&server).post(&write, stale).expect(204);
    proxy.forget();
    let tool = desk.upload(&proxy.uri()).args("-c 65536 a.img -d");
    let outcome = tool.arg(&old).run().code(0);
    assert_eq!(
        outcome.text(),
        format!(
            "Using existing drive {old}\nUploading 21 chunks of 65536 bytes: {} completed\n",
            ".".repeat(21)
        )
    );
    assert_drive(&server, &old, &image);
    let all: Vec<u64> = (0..21).map(|n| n * C).collect();
    assert_eq!(offsets(&proxy), all);
    // The drive is not created, and its info is read before anything is written.
    assert!(proxy.requests()[0].is_info());
    assert_eq!(proxy.count(Request::is_create), 0);
    // Zeros are sent compressed even if nothing else is.
    assert!(proxy.bytes_up() < 5 * C + 20_000);
}

#[test]
fn a_larger_drive_keeps_what_is_beyond_the_image() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let drive = create(&server, 1000);
    let write = format!("/drives/{drive}/write");
    Ask::of(&server).post(&write, [7; 1000]).expect(204);
    let mut image = ramp(0, 900);
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri()).args("-c 100 a.img -d");
    let _ = tool.arg(&drive).run().code(0);
    image.resize(1000, 7);
    assert_drive(&server, &drive, &image);
}

#[test]
fn an_offset_is_rounded_down_and_may_lie_beyond_the_end() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let size = 4 * C + 10;
    let image = noise(4, size as usize);
    desk.file("a.img", &image);
    // The offset, and the first chunk that is sent.
    let cases = [
        (0, 0),
        (1, 0),
        (C, 1),
        (2 * C - 1, 1),
        (4 * C, 4),
        (size, 4),
        (size + C, 5),
        (u64::MAX, 5),
    ];
    for (offset, first) in cases {
        let drive = create(&server, size);
        proxy.forget();
        let tool = desk
            .upload(&proxy.uri())
            .args("--verify none -c 65536 a.img -d");
        let tool = tool.arg(&drive).arg("-o").arg(offset.to_string());
        let outcome = tool.run().code(0);
        let n = 5 - first;
        let dots = ".".repeat(n as usize);
        let expected = format!(
            "Using existing drive {drive}\nUploading {n} chunks of 65536 bytes: {dots} completed\n"
        );
        assert_eq!(outcome.text(), expected, "-o {offset}");
        let expected: Vec<u64> = (first..5).map(|n| n * C).collect();
        assert_eq!(offsets(&proxy), expected, "-o {offset}");
        let mut on_drive = vec![0; size as usize];
        let from = size.min(first * C) as usize;
        on_drive[from..].copy_from_slice(&image[from..]);
        assert_drive(&server, &drive, &on_drive);
        // Chunks before the offset are not sent again.
        assert!(proxy.bytes_up() < size - from as u64 + 500 * (n + 4));
    }
}

#[test]
fn an_offset_never_hides_that_a_part_of_the_image_is_missing() {
    let desk = Desk::new();
    let server = desk.server();
    let size = 4 * C + 10;
    let image = noise(4, size as usize);
    desk.file("a.img", &image);
    let run = |words: &str| {
        let tool = desk
            .simple(&server.uri)
            .args("upload --no-journal -c 65536");
        tool.args(words).arg("a.img").run()
    };
    let _ = run(&format!("-n x -o {C}")).code(2).says("-d DRIVE");
    assert!(drives(&server).is_empty());
    let drive = run("").code(0).created();
    for offset in [size, 100 * size] {
        let outcome = run(&format!("-d {drive} -o {offset}")).code(2);
        let _ = outcome.says(&format!(
            "-o {offset} is not within the image, which has {size} "
        ));
    }
    // Everything is compared, also what is before the offset.
    Ask::of(&server)
        .post(&format!("/drives/{drive}/write/100"), "other")
        .expect(204);
    let outcome = run(&format!("-d {drive} -o {}", 2 * C)).code(0);
    let said = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(said.contains("128 KiB before -o left out"), "{said}");
    assert!(said.contains("sample verified from -o on"), "{said}");
    assert!(!said.contains("done before"), "{said}");
    let outcome = run(&format!("--verify full -d {drive} -o {}", 2 * C));
    let _ = outcome.code(4).says("does not hold what was transferred");
    // In the place of the script, which accepts them, there is a warning.
    for (words, says) in [
        (format!("-n x -o {C}"), "The drive is new"),
        (format!("-d {drive} -o {size}"), "nothing is sent"),
    ] {
        let tool = desk.upload(&server.uri).args("--no-journal -c 65536");
        let _ = tool.args(&words).arg("a.img").run().code(0).says(says);
    }
}

#[test]
fn name_tier_and_sharing_reach_the_drive() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", b"abc");
    let tool = desk.upload(&proxy.uri()).args("-t ssd -s a.img -n");
    let outcome = tool.arg("my drive").run().code(0);
    let drive = outcome.created();
    let expected = [
        ("name", "my drive"),
        ("tier", "ssd"),
        ("claim:type", "shared"),
        ("size", "3"),
    ];
    for (key, value) in expected {
        assert_eq!(info(&server, &drive, key).as_deref(), Some(value), "{key}");
    }
    // An empty name is the same as no name. Without -s the request does not mention sharing.
    let tool = desk.upload(&proxy.uri()).arg("-n").arg("");
    let drive = tool.arg("./a.img").run().code(0).created();
    assert_eq!(info(&server, &drive, "name").as_deref(), Some("a.img"));
    assert_eq!(info(&server, &drive, "tier").as_deref(), Some("disk"));
    let create = proxy.requests().into_iter().rfind(Request::is_create);
    assert!(!create.unwrap().text().contains("claim"));
}

#[test]
fn a_name_cannot_add_keys_to_a_request() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let name = "a\nsize 1\nreaders ffffffff-ffff-ffff-ffff-ffffffffffff";
    desk.file(name, &ramp(0, 5000));
    for by_flag in [false, true] {
        let mut tool = desk.upload(&proxy.uri());
        if by_flag {
            tool = tool.arg("-n").arg(name);
        }
        let drive = tool.arg(name).run().code(0).created();
        assert_eq!(info(&server, &drive, "size").as_deref(), Some("5000"));
        assert_eq!(info(&server, &drive, "readers"), None);
        assert_drive(&server, &drive, &ramp(0, 5000));
    }
    for create in proxy.requests().iter().filter(|r| r.is_create()) {
        let lines = create.text().lines();
        let keys: Vec<_> = lines.filter_map(|line| line.split(' ').next()).collect();
        let ours = ["user:oh-state", "user:oh-token"];
        assert_eq!(keys, [&["name", "size", "tier"][..], &ours].concat());
    }
    // A name that cannot be escaped is refused before any request.
    proxy.forget();
    let tool = desk.upload(&proxy.uri()).arg("-n").arg("a\rb").arg(name);
    let _ = tool.run().code(2).says("control character");
    assert!(proxy.requests().is_empty());
}

#[test]
fn all_members_of_a_gzip_are_sent() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = [ramp(0, 100_000), vec![0; 200_000], noise(2, 70_000)].concat();
    let mut packed = gzip(&image[..100_000]);
    packed.extend(gzip(&[]));
    packed.extend(gzip(&image[100_000..]));
    desk.file("a.img.gz", &packed);
    let tool = desk.upload(&proxy.uri()).args("-z -c 65536 a.img.gz");
    let outcome = tool.run().code(0);
    expect_stdout(&outcome, 6, C, 370_000);
    assert_drive(&server, &outcome.created(), &image);
    let drive = create(&server, 370_000);
    let tool = desk.upload(&proxy.uri()).args("-z -c 65536 a.img.gz -d");
    let _ = tool.arg(&drive).args("-o 131073").run().code(0);
    let mut rest = image.clone();
    rest[..131_072].fill(0);
    assert_drive(&server, &drive, &rest);

    // A damaged image is refused before any request, and its intact part is not sent.
    proxy.forget();
    let mut corrupt = packed.clone();
    let at = corrupt.len() - 6;
    corrupt[at] ^= 1;
    let cut = &packed[..packed.len() - 20];
    let bad: [(&[u8], &str); 3] = [
        (&corrupt, "is not sound gzip"),
        (cut, "bad.gz was cut off: its gzip ends in the middle"),
        (b"this is not gzip at all", "is not sound gzip"),
    ];
    for (bytes, said) in bad {
        desk.file("bad.gz", bytes);
        let outcome = desk.upload(&proxy.uri()).args("-z bad.gz").run();
        let _ = outcome.code(1).says(said);
    }
    assert!(proxy.requests().is_empty());
}

#[test]
fn local_needs_no_account_and_can_be_repeated() {
    let desk = Desk::new();
    let image = noise(3, 300_001);
    desk.file("a.img", &image);
    let mut made = Vec::new();
    for _ in 0..2 {
        let tool = desk.upload("").args("--local here -c 65536 a.img");
        let outcome = tool.unset("OHURI").unset("OHAUTH").run().code(0);
        expect_stdout(&outcome, 5, C, 300_001);
        made.push(outcome.created());
    }
    for drive in &made {
        let file = desk.path(format!("here/drives/{drive}.data"));
        assert!(std::fs::read(file).unwrap() == image);
    }
    // The user and key that it created can only be read by their owner.
    for entry in std::fs::read_dir(desk.path("here")).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{:?} {mode:o}", entry.file_name());
    }
    let tool = desk.upload("").args("--local here -c 65536 a.img -d");
    let outcome = tool.arg(&made[0]).unset("OHURI").unset("OHAUTH").run();
    assert!(outcome.code(0).text().starts_with("Using existing drive"));
}

#[test]
fn quiet_prints_nothing_and_one_job_sends_one_request_at_a_time() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(3, 300_001);
    desk.file("a.img", &image);
    let tool = desk
        .upload(&proxy.uri())
        .args("-q --verify none -c 65536 -j 1 a.img");
    let outcome = tool.run().code(0);
    let drive = outcome.created();
    let line = format!("Created drive {drive} of size 300001\n");
    assert_eq!((outcome.text(), outcome.stderr.as_str()), (&*line, ""));
    assert_drive(&server, &drive, &image);
    assert_eq!(proxy.writes_peak(), 1);
    assert_eq!(proxy.connections(), 1, "connections are used again");
}

#[test]
fn the_environment_of_the_script_works_without_its_leaks() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", b"abc");
    let tool = || {
        let tool = desk.upload("").unset("OHURI").unset("OHAUTH").arg("a.img");
        // Variables with these names from the environment changed the original tool.
        tool.env("NAME", "x").env("SIZE", "9").env("TIER", "y")
    };
    let drive = tool()
        .env("EHURI", proxy.uri())
        .env("EHAUTH", desk.auth())
        .run()
        .code(0)
        .created();
    assert_eq!(info(&server, &drive, "name").as_deref(), Some("a.img"));
    assert_eq!(info(&server, &drive, "size").as_deref(), Some("3"));
    // OHURI has priority over EHURI, an empty variable is the same as none, and the slash at the
    // end is optional.
    let tool = tool().env("EHURI", proxy.uri().trim_end_matches('/'));
    let _ = tool
        .env("OHURI", "")
        .env("OHAUTH", desk.auth())
        .env("EHAUTH", "x:y")
        .run()
        .code(0);
    let tool = desk.upload("http://127.0.0.1:1/").arg("a.img");
    let _ = tool.arg("--endpoint").arg(proxy.uri()).run().code(0);
}

/// A command that is refused before any request: arguments, environment, exit code, and a part of
/// the message.
#[test]
fn errors_are_reported_before_any_request() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    desk.file("a.img", b"abc");
    std::fs::create_dir(desk.path("dir")).unwrap();
    let uuid = "0012e24a-6eae-4279-9912-3432f698cec8";
    let cases = [
        ("", 2, "Usage:"),
        ("a.img b.img", 2, "Usage:"),
        ("-x a.img", 2, "There is no flag -x"),
        ("-c 0 a.img", 2, "at least one byte"),
        (
            "-c 4x a.img",
            2,
            "\"4x\" is not a size\nUse bytes or a suffix, for example 4M\n",
        ),
        ("-c 04 a.img", 2, "\"04\" is not a size"),
        ("-c 1073741825 a.img", 2, "Use at most 1G"),
        ("-o 01 a.img", 2, "\"01\" is not a size"),
        ("-o -1 a.img", 2, ""),
        ("-j 0 a.img", 2, "Use 1 to 256"),
        (
            "--level 13 a.img",
            2,
            "--level cannot be \"13\"\nUse auto, 0, 1,",
        ),
        ("nosuch.img", 1, "nosuch.img: No such file or directory"),
        ("dir", 1, "it is a directory"),
        ("/dev/null", 1, "neither a regular file nor a block device"),
        (&format!("-d {uuid} dir"), 1, "it is a directory"),
    ];
    for (args, code, says) in cases {
        let outcome = desk.upload(&proxy.uri()).args(args).run().code(code);
        assert!(outcome.stdout.is_empty(), "{args}: {outcome:?}");
        let _ = outcome.says(says);
    }
    let or = "Or run \"openhosting login\"; to try it without an account, run \"openhosting server\", or: openhosting upload --local DIR IMAGE\n";
    let set_uri = format!("openhosting-upload: Please set OHURI=<API endpoint URI>\n{or}");
    let set_auth =
        format!("openhosting-upload: Please set OHAUTH=<user uuid>:<secret API key>\n{or}");
    let plain = "plain http: the secret key would travel in the clear";
    let environments = [
        ("OHURI", "", &*set_uri),
        ("OHAUTH", "", &*set_auth),
        ("OHURI", "no url", "is not a URL"),
        ("OHURI", "127.0.0.1", "is not a URL"),
        ("OHURI", "http://192.0.2.1/", plain),
        ("OHURI", "http://localhost.example/", plain),
        ("OHURI", "ftp://127.0.0.1/", "not https"),
        ("OHAUTH", ":key", "The user of the credentials is empty"),
    ];
    for (variable, value, says) in environments {
        let tool = desk.upload(&proxy.uri()).arg("a.img");
        let outcome = tool.env(variable, value).run().code(2).says(says);
        assert!(outcome.stdout.is_empty(), "{variable}={value}");
    }
    // If both are missing, the error is about the endpoint first, as in the original.
    let tool = desk.upload("").unset("OHURI").unset("OHAUTH").arg("a.img");
    assert_eq!(tool.run().code(2).stderr, set_uri);
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn the_last_of_a_repeated_option_wins() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    desk.file("a.img", b"abc");
    let tool = desk.upload(&proxy.uri()).args("-c 1 -s -n x -c 2 -s a.img");
    let outcome = tool.run().code(0);
    assert!(
        outcome.text().contains("2 chunks of 2 bytes"),
        "{outcome:?}"
    );
    let simple = desk.simple(&proxy.uri()).args("-jj -c -c drives info");
    assert!(simple.run().code(0).text().starts_with('['));
}

#[test]
fn help_and_version_need_no_configuration() {
    let desk = Desk::new();
    for (flag, says) in [
        ("--help", "Exit codes:"),
        ("--version", "openhosting-upload "),
    ] {
        let tool = desk.upload("").unset("OHURI").unset("OHAUTH").arg(flag);
        let outcome = tool.run().code(0);
        assert!(outcome.text().contains(says), "{outcome:?}");
    }
    // A raw call without a configuration would be an error.
    for words in [
        "drives --help",
        "-c servers create -h",
        "api drives list --help",
    ] {
        let tool = desk.simple("").unset("OHURI").unset("OHAUTH").args(words);
        let outcome = tool.run().code(0);
        let help = outcome.text();
        assert!(
            help.contains("Usage: openhosting api "),
            "{words}: {outcome:?}"
        );
    }
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    let mut mkfifo = std::process::Command::new("mkfifo");
    let made = mkfifo.arg(desk.path("fifo")).status().unwrap();
    assert!(made.success());
    let outcome = desk.upload(&proxy.uri()).arg("fifo").run().code(1);
    let _ = outcome.says("it is a pipe");
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let desk = Desk::new();
    let (_server, proxy) = desk.pair();
    let path = desk.file("secret.img", b"abc");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let tool = if std::fs::File::open(&path).is_err() {
        desk.tool(crate::support::cli::UPLOAD)
    } else if Path::new("/usr/bin/setpriv").exists() {
        // Root can read everything, so the test runs as nobody.
        desk.tool("/usr/bin/setpriv")
            .args("--reuid=65534 --regid=65534 --clear-groups")
            .arg(crate::support::cli::UPLOAD)
    } else {
        needs(&[Need::Command("setpriv")]);
        return;
    };
    let tool = tool.env("OHURI", proxy.uri()).arg("secret.img");
    let _ = tool.run().code(1).says("Permission denied");
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn an_unsuitable_drive_is_not_written_to() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    desk.file("a.img", &ramp(0, 5000));
    let small = create(&server, 4999);
    let nobody = "0012e24a-6eae-4279-9912-3432f698cec8";
    for (drive, says) in [
        (nobody, "endpoint answered 404 missing"),
        (
            &small,
            "has 4.9 KiB (4999 bytes) and the image 4.9 KiB (5000 bytes): it does not fit",
        ),
    ] {
        let tool = desk.upload(&proxy.uri()).args("a.img -d").arg(drive);
        let outcome = tool.run().code(1).says(says);
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
    }
    assert_eq!(proxy.count(Request::is_info), 2);
    assert_eq!(proxy.requests().len(), 2);
    assert_drive(&server, &small, &[0; 4999]);
}

#[test]
fn an_upload_succeeds_with_a_closed_stdout() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(3, 300_001);
    desk.file("a.img", &image);
    let tool = desk.upload(&proxy.uri()).args("-c 65536 a.img");
    let _ = tool.closed_stdout().run().code(0);
    assert_drive(&server, &drives(&server)[0], &image);
}
