//! The end of a transfer over a link where each request takes seconds: the last chunk is divided
//! into pieces, so that the connections that are idle by then help to transfer it.

use std::ops::Range;
use std::time::Duration;

use super::support::cli::{Desk, Tool};
use super::support::http::{assert_drive, drives};
use super::support::noise;
use super::support::proxy::{Fault, FaultProxy, Gate, Request, refusal};
use super::support::server::TestServer;

const CHUNK: u64 = 2 << 20;
/// Four chunks at a time, and then one alone. In a download that is the last chunk, and in an
/// upload the chunk that was compressed last.
const SIZE: u64 = 5 * CHUNK;
/// The pause after each 64 KiB. A chunk takes more than three seconds then.
const PAUSE: Duration = Duration::from_millis(100);
const FLAGS: &str = "-c 2097152 -j 4 --min-jobs 4";

fn image(seed: u64) -> Vec<u8> {
    noise(seed, SIZE as usize)
}

/// The bytes of the drive that a request reads or writes.
fn range(request: &Request) -> Range<u64> {
    if request.is_write() {
        let offset = request.offset();
        return offset..offset + request.plain().len() as u64;
    }
    let mut numbers = request.path.rsplit('/').map(str::parse::<u64>);
    let (len, offset) = (numbers.next().unwrap(), numbers.next().unwrap());
    let (len, offset) = (len.unwrap(), offset.unwrap());
    offset..offset + len
}

fn moves(request: &Request) -> bool {
    request.is_write() || request.is_read()
}

/// Whether a request is for a piece of a chunk. The body of a piece is smaller than that of any
/// whole chunk, which has half as many bytes when compressed.
fn is_piece(request: &Request) -> bool {
    let bytes = match request.is_write() {
        true => request.header("content-length").unwrap().parse().unwrap(),
        false if request.is_read() => {
            let range = range(request);
            range.end - range.start
        }
        false => return false,
    };
    bytes < CHUNK * 3 / 8
}

/// Makes bodies pass slowly. Faults for some of them must be set before.
fn slow_down(proxy: &FaultProxy) {
    proxy.fault(moves, usize::MAX, Fault::Trickle(PAUSE));
}

/// Waits until this many requests for pieces are under way at the same time.
fn wait_for_pieces(proxy: &FaultProxy, count: usize) {
    proxy.wait_for("a piece beside others", |requests| {
        let pieces = requests.iter().filter(|request| is_piece(request));
        pieces.filter(|request| request.status == 0).count() >= count
    });
}

/// Checks that a chunk was transferred in pieces, and each byte of the image exactly once.
#[track_caller]
fn assert_divided(proxy: &FaultProxy) {
    let requests = proxy.requests();
    assert!(requests.iter().filter(|request| is_piece(request)).count() >= 3);
    let mut ranges: Vec<_> = requests.iter().filter(|r| moves(r)).map(range).collect();
    ranges.sort_by_key(|range| range.start);
    assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, SIZE));
    assert!(
        ranges.windows(2).all(|pair| pair[0].end == pair[1].start),
        "{ranges:?}"
    );
}

/// A drive that holds the image, uploaded without faults.
fn holding(desk: &Desk, server: &TestServer, image: &[u8]) -> String {
    desk.file("held.img", image);
    let tool = desk.upload(&server.uri).args("--level 0 held.img");
    tool.run().code(0).created()
}

#[test]
fn the_pieces_of_the_last_chunk_are_written_concurrently() {
    // Uncompressed, and compressed to half the size.
    for (level, step) in [("0", 1), ("1", 2)] {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        let mut image = image(1);
        for bytes in image.chunks_mut(1000) {
            let zeros = bytes.len() - bytes.len() / step;
            bytes[..zeros].fill(b'x');
        }
        let gate = Gate::default();
        proxy.fault(is_piece, 3, Fault::Hold(gate.clone()));
        // Compressed data has half as many bytes.
        proxy.fault(moves, usize::MAX, Fault::Trickle(PAUSE * step as u32));
        desk.file("a.img", &image);
        let tool = desk.upload(&proxy.uri()).args(FLAGS);
        let tool = tool.args("--verify none --level").arg(level).arg("a.img");
        let running = tool.spawn();
        wait_for_pieces(&proxy, 3);
        gate.open();
        let outcome = running.wait().code(0);
        assert_drive(&server, &outcome.created(), &image);
        assert_divided(&proxy);
        assert!(proxy.writes_peak() <= 4, "{}", proxy.writes_peak());
    }
}

#[test]
fn the_pieces_of_the_last_chunk_are_read_concurrently() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = image(2);
    let drive = holding(&desk, &server, &image);
    let gate = Gate::default();
    proxy.fault(is_piece, 3, Fault::Hold(gate.clone()));
    slow_down(&proxy);
    let tool = desk.download(&proxy.uri()).args(FLAGS);
    let tool = tool.args("--verify none").arg(&drive).arg("b.img");
    let running = tool.spawn();
    wait_for_pieces(&proxy, 3);
    gate.open();
    let _ = running.wait().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    assert_divided(&proxy);
    assert!(proxy.reads_peak() <= 4, "{}", proxy.reads_peak());
}

#[test]
fn jobs_1_sends_one_request_at_a_time() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = noise(3, 3 << 20);
    slow_down(&proxy);
    desk.file("a.img", &image);
    let flags = "-c 1048576 -j 1 --verify none";
    let tool = desk
        .upload(&proxy.uri())
        .args(flags)
        .args("--level 0 a.img");
    let drive = tool.run().code(0).created();
    assert_drive(&server, &drive, &image);
    let tool = desk.download(&proxy.uri()).args(flags);
    let _ = tool.arg(&drive).arg("b.img").run().code(0);
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
    assert_eq!((proxy.writes_peak(), proxy.reads_peak()), (1, 1));
    // No connection was idle, so nothing was divided.
    assert!(proxy.count(Request::is_write) <= 4);
}

#[test]
fn a_failed_piece_is_transferred_again() {
    std::thread::scope(|scope| {
        for fault in [
            Fault::ResetMidBody,
            Fault::LoseAnswer,
            Fault::ResetMidAnswer,
            Fault::Answer(refusal(500, "failed")),
            Fault::Answer(refusal(429, "busy")),
        ] {
            scope.spawn(move || {
                let desk = Desk::new();
                let (server, proxy) = desk.pair();
                let image = image(4);
                // The piece before it and those after it succeed.
                proxy.fault_after(1, is_piece, 1, fault);
                slow_down(&proxy);
                desk.file("a.img", &image);
                let flags = "--verify none";
                let tool = desk.upload(&proxy.uri()).args(FLAGS).args(flags);
                let outcome = tool.args("--level 0 a.img").run().code(0);
                assert_drive(&server, &outcome.created(), &image);
                let pieces = proxy.count(is_piece);
                // The number of other pieces depends on how fast the machine is.
                assert!(pieces >= 4, "{pieces}");
            });
        }
        for fault in [
            Fault::ResetBeforeBody,
            Fault::CutAnswer,
            Fault::ResetMidAnswer,
            Fault::Answer(refusal(500, "failed")),
        ] {
            scope.spawn(move || {
                let desk = Desk::new();
                let (server, proxy) = desk.pair();
                let image = image(5);
                let drive = holding(&desk, &server, &image);
                proxy.fault_after(1, is_piece, 1, fault);
                slow_down(&proxy);
                let tool = desk.download(&proxy.uri()).args(FLAGS);
                let tool = tool.args("--verify none").arg(&drive).arg("b.img");
                let _ = tool.run().code(0);
                assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
            });
        }
    });
}

/// Runs a tool, and kills it after its first piece was transferred and while the next ones are
/// under way.
fn kill_between_pieces(proxy: &FaultProxy, tool: Tool<'_>) {
    let gate = Gate::default();
    proxy.forget();
    proxy.fault_after(1, is_piece, usize::MAX, Fault::Hold(gate.clone()));
    slow_down(proxy);
    let running = tool.spawn();
    wait_for_pieces(proxy, 2);
    let _ = running.kill9();
    proxy.heal();
    gate.open();
}

#[test]
fn a_run_killed_between_pieces_resumes() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = image(6);
    desk.file("a.img", &image);
    let upload = || {
        let tool = desk.upload(&proxy.uri()).args(FLAGS);
        tool.args("--level 0 a.img")
    };
    kill_between_pieces(&proxy, upload());
    let _ = upload().run().code(0).says("Resuming: ");
    let drives = drives(&server);
    assert_eq!(drives.len(), 1);
    assert_drive(&server, &drives[0], &image);

    // A drive of its own, because late writes of the killed run may still change the first one.
    let source = desk.upload(&server.uri).args("-q a.img").run().code(0);
    let source = source.created();
    let download = || {
        let tool = desk.download(&proxy.uri()).args(FLAGS);
        tool.arg(&source).arg("b.img")
    };
    kill_between_pieces(&proxy, download());
    let _ = download().run().code(0).says("Resuming: ");
    assert!(std::fs::read(desk.path("b.img")).unwrap() == image);
}

#[test]
fn a_drive_that_allows_one_writer_gets_one_at_a_time() {
    let desk = Desk::new();
    let (server, proxy) = desk.pair();
    let image = image(7);
    desk.file("a.img", &image);
    // Only pieces are refused: whole chunks may be written at the same time.
    proxy.allow_one_writer(is_piece);
    slow_down(&proxy);
    let tool = desk.upload(&proxy.uri()).args(FLAGS);
    let outcome = tool.args("--verify none --level 0 a.img").run().code(0);
    assert_drive(&server, &outcome.created(), &image);
    // The limit falls from four pieces at a time to two, and then to one request for the rest.
    let busy = proxy.count(|request| request.status == 409);
    assert!((1..=6).contains(&busy), "{busy} were busy");
}
