//! Wrong holes: file systems that report holes where there is data, and endpoints that do. Either
//! the drive equals the image (or the file the drive), or the exit code reports it.

use openhosting::digest::Digest;

use crate::support::cli::{DOWNLOAD, Desk, Outcome, SIMPLE, Tool, UPLOAD};
use crate::support::http::{assert_drive, create, drives};
use crate::support::lying::{self, ENXIO, Lie, SEEK_DATA, SEEK_HOLE, no_data, with_lies};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Request, answer, refusal};
use crate::support::server::TestServer;

const MIB: u64 = 1 << 20;
const C: u64 = 64 * 1024;
const SIZE: u64 = 3 * MIB + 12_345;
/// Where there is data: at the start, in the middle, and at the end.
const DATA: [(u64, usize); 3] = [(0, 100_000), (2 * MIB + 5, 400_000), (SIZE - 77, 77)];
/// Some of the wrong reports begin here, after the first data.
const LATER: u64 = MIB / 2;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const EOPNOTSUPP: u32 = 95;

/// The image, on the desk as `a.img`.
fn image(desk: &Desk) -> Vec<u8> {
    let pieces: Vec<_> = DATA
        .iter()
        .map(|(offset, len)| (*offset, noise(*offset, *len)))
        .collect();
    let borrowed: Vec<_> = pieces
        .iter()
        .map(|(offset, bytes)| (*offset, &bytes[..]))
        .collect();
    desk.sparse("a.img", SIZE, &borrowed);
    std::fs::read(desk.path("a.img")).unwrap()
}

/// An upload by a tool whose file system reports holes wrongly, to the server in `here` within the
/// same process, which gets the same reports.
fn upload_here<'a>(desk: &'a Desk, lie: Lie, flags: &str) -> Tool<'a> {
    let tool = with_lies(desk, lie, UPLOAD).args("--local here -c 65536");
    tool.args(flags).arg("a.img")
}

#[track_caller]
fn drive_here(desk: &Desk, outcome: &Outcome) -> Vec<u8> {
    let drive = outcome.created();
    std::fs::read(desk.path(format!("here/drives/{drive}.data"))).unwrap()
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "first byte that differs: {what}");
}

// ---- Uploads ----

#[test]
fn an_uploaded_drive_equals_the_image_despite_wrong_hole_reports() {
    if !lying::can() {
        return;
    }
    let desk = Desk::new();
    let image = image(&desk);
    let digest = Digest::of(&image).to_string();
    let lie = |whence, errno, from| Lie {
        whence,
        errno,
        from,
    };
    let most = [
        "--verify none",
        "--verify sample",
        "--verify full",
        "--verify none --checksum",
        "--verify none --holes read",
        &format!("--verify none --sha256 {digest}"),
    ];
    let lies = [
        no_data(0),
        no_data(LATER),
        no_data(3 * MIB),
        lie(SEEK_DATA, EIO, 0),
        lie(SEEK_DATA, EINVAL, 0),
        lie(SEEK_DATA, EOPNOTSUPP, LATER),
        lie(SEEK_HOLE, ENXIO, 0),
        lie(SEEK_HOLE, EIO, LATER),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let all = if number < 2 { &most[..] } else { &most[1..3] };
        for flags in all {
            let what = format!("{lie:?} {flags}");
            let outcome = upload_here(&desk, lie, flags).run().code(0);
            assert_same(&drive_here(&desk, &outcome), &image, &what);
            if flags.contains("--checksum") {
                let last = outcome.text().lines().last().unwrap();
                assert!(last.contains(&digest), "{what}: {last}");
            }
        }
    }
}

#[test]
fn a_hole_with_data_is_reported_once() {
    if !lying::can() {
        return;
    }
    let desk = Desk::new();
    let image = image(&desk);
    let outcome = upload_here(&desk, no_data(LATER), "").run().code(0);
    let line = "The file system reports a hole in a.img at byte ";
    assert_eq!(outcome.stderr.matches(line).count(), 1, "{outcome:?}");
    assert_same(&drive_here(&desk, &outcome), &image, "sample");
    // No notice is needed if everything is read anyway, or if the holes are real.
    let outcome = upload_here(&desk, no_data(LATER), "--checksum").run();
    assert!(!outcome.code(0).stderr.contains("reports a hole"));
    let honest = desk.upload("").args("--local here a.img");
    assert!(!honest.run().code(0).stderr.contains("reports a hole"));
    let info = with_lies(&desk, no_data(LATER), SIMPLE).args("image info a.img");
    assert!(info.run().code(0).text().contains(line));
    let info = with_lies(&desk, no_data(LATER), SIMPLE).args("image info --json a.img");
    let info: serde_json::Value = serde_json::from_slice(&info.run().code(0).stdout).unwrap();
    assert_eq!(info["false_holes"][0]["file"], "a.img");
    assert_eq!(info["chunks_with_data"], info["chunks"]);
}

#[test]
fn verification_finds_data_left_out_by_a_wrong_hole_report() {
    if !lying::can() {
        return;
    }
    let desk = Desk::new();
    let image = image(&desk);
    for lie in [no_data(0), no_data(LATER)] {
        // The wrong report is effective: this is the result without any check.
        let tool = upload_here(&desk, lie, "--holes trust --verify none");
        let outcome = tool.run().code(0);
        assert_ne!(drive_here(&desk, &outcome), image);
        for verify in ["sample", "full"] {
            let flags = format!("--holes trust --verify {verify}");
            let _ = upload_here(&desk, lie, &flags)
                .run()
                .code(4)
                .says("does not hold what was transferred");
        }
    }
}

#[test]
fn a_published_drive_equals_the_image_despite_wrong_hole_reports() {
    if !lying::can() {
        return;
    }
    for lie in [no_data(0), no_data(LATER)] {
        for how in ["", "--holes sample"] {
            let desk = Desk::new();
            let image = image(&desk);
            let words = format!("publish --local here --name n {how} a.img");
            let done = with_lies(&desk, lie, SIMPLE).args(&words).run().code(0);
            let drive = done.text().lines().next().unwrap();
            let drive = std::fs::read(desk.path(format!("here/drives/{drive}.data"))).unwrap();
            assert_same(&drive, &image, &format!("{lie:?} {how}"));
        }
    }
}

#[test]
fn holes_of_a_backing_file_are_checked() {
    if !lying::can() {
        return;
    }
    let bench = crate::formats::Bench::new();
    let desk = &bench.desk;
    let base = image(desk);
    bench.qemu_img("create -q -f qcow2 -b a.img -F raw top.qcow2 8M");
    desk.own(&desk.path("top.qcow2"));
    let mut disk = base;
    disk.resize(8 << 20, 0);
    for lie in [no_data(0), no_data(LATER)] {
        for flags in ["", "--verify full"] {
            let tool = with_lies(desk, lie, UPLOAD).args("--local here --allow-backing a.img");
            let outcome = tool.args(flags).arg("top.qcow2").run().code(0);
            let what = format!("{lie:?} {flags}");
            assert_same(&drive_here(desk, &outcome), &disk, &what);
        }
    }
}

#[test]
fn data_left_out_by_an_earlier_run_is_sent_by_the_next() {
    if !lying::can() {
        return;
    }
    for flags in ["", "--checksum", "--holes read", "--verify full"] {
        let desk = Desk::new();
        let image = image(&desk);
        let (server, proxy) = desk.pair();
        let tool = |lie, flags: &str| {
            let tool = with_lies(&desk, lie, UPLOAD).env("OHURI", proxy.uri());
            tool.args("-c 65536 -j 1 --level 0").args(flags)
        };
        // The first run sees holes in the second half of a chunk, and everywhere behind it; it is
        // stopped at its last chunk.
        let lie = no_data(2 * MIB + 200_000);
        proxy.fault_after(
            6,
            Request::is_write,
            99,
            Fault::Answer(refusal(507, "full")),
        );
        let first = tool(lie, "--holes trust --verify none").arg("a.img");
        let _ = first.run().code(1);
        proxy.heal();
        let next = tool(lie, flags).arg("a.img").run().code(0);
        let next = next.says("Resuming: ");
        let [drive] = &drives(&server)[..] else {
            panic!("not one drive: {next:?}");
        };
        assert_drive(&server, drive, &image);
    }
}

// ---- Downloads ----

/// A server that reports every drive as a single hole, and a drive that holds the image.
fn hiding(desk: &Desk) -> (TestServer, String) {
    let plan = desk.file("plan.json", br#"{"extents": "hidden"}"#);
    let server = desk.server_with(&["--fault-plan", plan.to_str().unwrap()]);
    let outcome = desk.upload(&server.uri).arg("a.img").run().code(0);
    let drive = outcome.created();
    (server, drive)
}

#[test]
fn a_download_detects_a_server_that_hides_data() {
    let desk = Desk::new();
    let image = image(&desk);
    let (server, drive) = hiding(&desk);
    assert_drive(&server, &drive, &image);
    let download = |flags: &str, out: &str| {
        let tool = desk.download(&server.uri).args("-c 65536").args(flags);
        tool.arg(&drive).arg(out).run()
    };
    let differs = "does not hold what was transferred";
    for flags in [
        "",
        "--verify sample",
        "--verify full",
        "--format qcow2",
        "--format qcow2 --compress zlib",
        "--format qcow2 --verify full",
        "--gzip",
        "--gzip --verify full",
        "--checksum",
    ] {
        let _ = download(flags, "out").code(4).says(differs);
        assert!(!desk.path("out").exists(), "{flags}");
        let _ = std::fs::remove_file(desk.path("out.oh-part"));
    }
    for flags in ["", "--verify full"] {
        let _ = download(flags, "-").code(4).says(differs);
    }
    // In place, and not from the start.
    desk.file("there", &[7; 1000]);
    let _ = download("-o 1000", "there").code(4).says(differs);
    // This is what the checks prevent.
    let _ = download("--verify none", "zeros").code(0);
    let zeros = std::fs::read(desk.path("zeros")).unwrap();
    assert!(zeros.len() == image.len() && zeros.iter().all(|&byte| byte == 0));
}

#[test]
fn shards_detect_a_server_that_hides_data() {
    let desk = Desk::new();
    let _ = image(&desk);
    let (server, drive) = hiding(&desk);
    let shard = |flags: &str| {
        let tool = desk.download(&server.uri).args("-c 65536").args(flags);
        tool.arg(&drive).arg("out").run()
    };
    let differs = "does not hold what was transferred";
    let _ = shard("--shard 1/2").code(4).says(differs);
    let _ = shard("--shard 1/2 --verify none").code(0);
    let _ = shard("--shard 2/2 --verify none").code(0);
    let _ = shard("--join 2").code(4).says(differs);
    assert!(!desk.path("out").exists());
}

/// Makes the endpoint report this part as a hole, whatever it really is.
fn hide(proxy: &FaultProxy, from: u64, to: u64) {
    let is_extents = |request: &Request| request.path.contains("/extents/");
    let lie = Fault::rewrite(move |request, _| {
        let words: Vec<u64> = request
            .path
            .rsplit('/')
            .take(2)
            .map(|word| word.parse().unwrap())
            .collect();
        let (start, end) = (words[1], words[1] + words[0]);
        let parts = [(start, end.min(from)), (start.max(to), end)];
        let data: Vec<_> = parts
            .into_iter()
            .filter(|(start, end)| start < end)
            .map(|(start, end)| format!("{start}/{}", end - start))
            .collect();
        let body = format!("data {}\nend {end}\n", data.join(" "));
        answer(200, &["Content-Type: text/plain"], body.as_bytes())
    });
    proxy.fault(is_extents, usize::MAX, lie);
}

#[test]
fn hidden_data_is_found_by_this_run_and_the_next() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let drive = create(&server, 64 * MIB);
    let bytes = noise(5, 64 << 20);
    for at in (0..64_u64).step_by(4) {
        let part = &bytes[(at * MIB) as usize..((at + 4) * MIB) as usize];
        let path = format!("/drives/{drive}/write/{}", at * MIB);
        crate::support::http::Ask::of(&server)
            .post(&path, part)
            .expect(204);
    }
    let download = |flags: &str| {
        let tool = desk.download(&proxy.uri()).args("-c 1048576 -j 1");
        tool.args(flags).arg(&drive).arg("out").run()
    };
    let differs = "does not hold what was transferred";
    // Within a chunk, and across several.
    for (from, to) in [(10 * MIB + C, 11 * MIB), (30 * MIB - C, 31 * MIB + C)] {
        proxy.heal();
        hide(&proxy, from, to);
        let _ = download("").code(4).says(differs);
        let _ = download("--restart --verify full").code(4).says(differs);
        let _ = std::fs::remove_file(desk.path("out.oh-part"));
    }
    // The hole is in the journal of a run that was stopped behind it.
    let is_late = |request: &Request| request.is_read() && request.path.contains("/62914560/");
    let stop = Fault::Answer(refusal(403, "auth"));
    proxy.fault(is_late, usize::MAX, stop);
    let _ = download("--restart").code(1);
    proxy.heal();
    let _ = download("").code(4).says("Resuming: ").says(differs);
    assert!(!desk.path("out").exists());
}

#[test]
fn wrong_hole_reports_do_not_harm_a_download() {
    if !lying::can() {
        return;
    }
    let desk = Desk::new();
    let (server, _proxy) = desk.pair();
    let image = image(&desk);
    let outcome = desk.upload(&server.uri).arg("a.img").run().code(0);
    let drive = outcome.created();
    for lie in [no_data(0), no_data(LATER)] {
        for flags in ["--force", "--force --verify full", "--force --format qcow2"] {
            let tool = with_lies(&desk, lie, DOWNLOAD).env("OHURI", &server.uri);
            let tool = tool.args("-c 65536").args(flags).arg(&drive).arg("out");
            let _ = tool.run().code(0);
            if !flags.contains("qcow2") {
                let found = std::fs::read(desk.path("out")).unwrap();
                assert_same(&found, &image, &format!("{lie:?} {flags}"));
            }
        }
        // Old bytes where the drive has holes.
        desk.file("old", &vec![7; SIZE as usize]);
        let tool = with_lies(&desk, lie, DOWNLOAD).env("OHURI", &server.uri);
        let tool = tool.args("-c 65536 -o 1").arg(&drive).arg("old");
        let _ = tool.run().code(0);
        let found = std::fs::read(desk.path("old")).unwrap();
        assert!(found[0] == 7);
        assert_same(&found[1..], &image[1..], &format!("{lie:?} in place"));
    }
}
