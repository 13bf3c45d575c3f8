//! The fault matrix: each fault of networks and clouds, applied to each request of a transfer: at
//! its start, in its middle, at its end, and permanently. The built tools and the built server are
//! used, with a proxy between them. An upload creates a drive only once, so that request has no
//! middle and no end.
//!
//! In every cell the following holds:
//!
//! - The run succeeds and every byte is right, or its exit code says that another run can succeed
//!   (75) or that it was refused (1). Then the fault is removed, and one more run of the same
//!   command succeeds.
//! - No chunk is transferred twice unless a fault hit it: the proxy counts the bodies over both
//!   runs.
//! - There is exactly one drive at the end, and nothing is left of the transfer. (A create that is
//!   delivered twice makes two drives, which no client can detect.)
//! - The secret key is nowhere (`support/cli.rs` looks for it after each run).
//!
//! `OH_CELL='write, last: 409'` runs only the cells whose name contains these words.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::noise;
use crate::support::proxy::{Fault, FaultProxy, Request, answer, refusal};
use crate::support::server::TestServer;

/// Not the length of a sample: a read of this many bytes is one of a chunk.
const C: u64 = 24 * 1024;
/// The last chunk is shorter, but longer than a sample.
const SIZE: u64 = 12 * C + 20 * 1024;
/// All zeros, and left out of an upload.
const ZERO: u64 = 4 * C;
const MIDDLE: u64 = 6 * C;
const LAST: u64 = 12 * C;

/// The fault that is applied to a request.
#[derive(Clone, Copy)]
struct Wrong {
    name: &'static str,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Before the body if the request has one; otherwise before the answer.
    ResetBefore,
    ResetWithin,
    ResetAfter,
    Stall,
    Truncated,
    /// The server carries the request out, but the answer is lost.
    Lost,
    Busy409,
    Throttled429,
    Failed500,
    System500,
    Page502,
    Unavailable503,
    Full507,
    Slow,
    Duplicate,
}

const WRONGS: [Wrong; 15] = {
    const fn wrong(name: &'static str, what: What) -> Wrong {
        Wrong { name, what }
    }
    [
        wrong("reset before the body", What::ResetBefore),
        wrong("reset within the body", What::ResetWithin),
        wrong("reset after the body", What::ResetAfter),
        wrong("stall", What::Stall),
        wrong("truncated answer", What::Truncated),
        wrong("answer lost after commit", What::Lost),
        wrong("409 busy", What::Busy409),
        wrong("429 with Retry-After", What::Throttled429),
        wrong("500 failed", What::Failed500),
        wrong("500 system", What::System500),
        wrong("502 from a proxy", What::Page502),
        wrong("503", What::Unavailable503),
        wrong("507 full", What::Full507),
        wrong("slow", What::Slow),
        wrong("duplicate delivery", What::Duplicate),
    ]
};

/// The command to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    /// An upload to a new drive.
    Upload,
    /// An upload to an existing drive.
    UploadTo,
    Download,
}

/// The request to which the fault is applied.
#[derive(Clone, Copy)]
struct Place {
    name: &'static str,
    command: Command,
    is_it: fn(&Request) -> bool,
    /// How many of these pass before.
    skip: usize,
    is_for_good: bool,
}

const PLACES: [Place; 20] = {
    const fn place(name: &'static str, command: Command, is_it: fn(&Request) -> bool) -> Place {
        Place {
            name,
            command,
            is_it,
            skip: 0,
            is_for_good: false,
        }
    }
    const fn after(skip: usize, place: Place) -> Place {
        Place { skip, ..place }
    }
    const fn for_good(place: Place) -> Place {
        let is_for_good = true;
        Place {
            is_for_good,
            ..place
        }
    }
    use Command::{Download, Upload, UploadTo};
    [
        place("create, first", Upload, Request::is_create),
        // The first request is refused with 429: a second one is sent only if the first was
        // certainly refused.
        after(1, place("create, second", Upload, Request::is_create)),
        for_good(place("create, for good", Upload, Request::is_create)),
        place("info, before an upload", UploadTo, Request::is_info),
        // Five writes fail; then this request is repeated until it is answered.
        place("info, in an outage", Upload, Request::is_info),
        place("info, before a download", Download, Request::is_info),
        after(
            1,
            place("info, after a download", Download, Request::is_info),
        ),
        for_good(place("info, before, for good", Download, Request::is_info)),
        for_good(after(
            1,
            place("info, after, for good", Download, Request::is_info),
        )),
        place("write, first", Upload, |r| is_write_of(r, 0)),
        place("write, middle", Upload, |r| is_write_of(r, MIDDLE)),
        place("write, last", Upload, |r| is_write_of(r, LAST)),
        for_good(after(
            6,
            place("write, for good", Upload, Request::is_write),
        )),
        place("read, first", Download, |r| is_read_of(r, 0)),
        place("read, middle", Download, |r| is_read_of(r, MIDDLE)),
        place("read, last", Download, |r| is_read_of(r, LAST)),
        for_good(after(
            6,
            place("read, for good", Download, is_read_of_a_chunk),
        )),
        place("read, of never-written bytes", Upload, |r| {
            r.path.contains(&format!("/read/{ZERO}/"))
        }),
        place("read, back of a sample", Upload, |r| {
            r.is_read() && r.path.ends_with("/16384")
        }),
        // After everything else, it ends the mark of the drive.
        place("set, last", Upload, |r| r.path.ends_with("/set")),
    ]
};

fn is_write_of(request: &Request, offset: u64) -> bool {
    request.path.ends_with(&format!("/write/{offset}"))
}

fn is_read_of(request: &Request, offset: u64) -> bool {
    request.path.contains(&format!("/read/{offset}/")) && is_read_of_a_chunk(request)
}

fn is_read_of_a_chunk(request: &Request) -> bool {
    request.is_read() && !request.path.ends_with("/16384")
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    /// It gave up for now.
    Later,
    Refused,
}

impl End {
    fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Later => 75,
            Self::Refused => 1,
        }
    }
}

/// One fault, applied to one request.
#[derive(Clone, Copy)]
struct Cell {
    wrong: &'static Wrong,
    place: &'static Place,
}

impl Cell {
    fn name(self) -> String {
        format!("{}: {}", self.place.name, self.wrong.name)
    }

    fn is_create(self) -> bool {
        self.place.name.starts_with("create")
    }

    fn has_body(self) -> bool {
        self.is_create() || self.place.name.starts_with("write")
    }

    fn fault(self) -> Fault {
        let page = b"<html><h1>Bad gateway</h1></html>";
        match self.wrong.what {
            What::ResetBefore => Fault::ResetBeforeBody,
            What::ResetWithin if self.has_body() => Fault::ResetMidBody,
            What::ResetWithin => Fault::ResetMidAnswer,
            What::ResetAfter if self.has_body() => Fault::ResetAfterBody,
            What::ResetAfter => Fault::ResetAfterAnswer,
            What::Stall => Fault::Stall,
            What::Truncated => Fault::CutAnswer,
            What::Lost => Fault::LoseAnswer,
            What::Busy409 => Fault::Answer(refusal(409, "busy")),
            What::Throttled429 => Fault::Answer(answer(429, &["Retry-After: 1"], b"")),
            What::Failed500 => Fault::Answer(refusal(500, "failed")),
            What::System500 => Fault::Answer(refusal(500, "system")),
            What::Page502 => Fault::Answer(answer(502, &["Content-Type: text/html"], page)),
            What::Unavailable503 => Fault::Answer(answer(503, &[], b"")),
            What::Full507 => Fault::Answer(refusal(507, "full")),
            What::Slow => Fault::Trickle(Duration::from_millis(50)),
            What::Duplicate => Fault::Duplicate,
        }
    }

    /// Whether the request had its effect, and the client learned that.
    fn is_harmless(self) -> bool {
        match self.wrong.what {
            What::Slow | What::Duplicate => true,
            What::ResetAfter => !self.has_body(),
            _ => false,
        }
    }

    /// How the first run ends.
    fn end(self) -> End {
        if self.is_harmless() || self.place.name == "read, of never-written bytes" {
            // Without an answer there is no proof, so zeros are written.
            return End::Done;
        }
        match self.wrong.what {
            What::Full507 => End::Refused,
            _ if !self.place.is_for_good => End::Done,
            // The drive is found by its token.
            What::Truncated | What::Lost if self.is_create() => End::Done,
            What::Busy409 => End::Refused,
            // For a create, it is unknown whether the drive was created.
            What::Failed500 if !self.is_create() => End::Refused,
            _ => End::Later,
        }
    }

    /// Whether the answer leaves open if there is a drive, so that the client looks for it: for a
    /// minute, if there is none.
    fn is_looked_for(self) -> bool {
        use What::{
            Failed500, Page502, ResetAfter, ResetBefore, ResetWithin, Stall, System500,
            Unavailable503,
        };
        let unclear = [
            ResetBefore,
            ResetWithin,
            ResetAfter,
            Stall,
            Failed500,
            System500,
            Page502,
            Unavailable503,
        ];
        self.is_create() && unclear.contains(&self.wrong.what)
    }

    /// A create that is delivered twice cannot be distinguished from two.
    fn makes_two_drives(self) -> bool {
        self.is_create() && self.wrong.what == What::Duplicate
    }
}

/// Runs cells one after the other.
struct Bench {
    desk: Desk,
    server: TestServer,
    image: Vec<u8>,
    /// The drive to download.
    source: String,
}

impl Bench {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let mut image = noise(SIZE, SIZE as usize);
        image[ZERO as usize..][..C as usize].fill(0);
        desk.file("a.img", &image);
        desk.own(&desk.path("out"));
        let up = desk.upload(&server.uri).args("-q a.img").run().code(0);
        Self {
            source: up.created(),
            desk,
            server,
            image,
        }
    }

    fn tool(&self, cell: Cell, proxy: &FaultProxy, drive: &str) -> Tool<'_> {
        let tool = match cell.place.command {
            Command::Upload => self.desk.upload(&proxy.uri()).args("a.img"),
            Command::UploadTo => self.desk.upload(&proxy.uri()).args("a.img -d").arg(drive),
            Command::Download => self.desk.download(&proxy.uri()).arg(drive).arg("out"),
        };
        let tool = match cell.wrong.what {
            What::Stall => tool.args("--stall-timeout 2s"),
            _ => tool,
        };
        let tool = match (cell.place.is_for_good, cell.place.name) {
            // Four attempts, instead of as many as there is time for.
            (true, _) if cell.wrong.what == What::Failed500 => tool,
            (true, _) => tool.args("--max-outage 1s"),
            // Five consecutive failures must hit one chunk.
            (_, "info, in an outage") => tool.args("-j 1"),
            // A check that is refused during the transfer is repeated after it.
            (_, "read, back of a sample") => tool.args("-j 1"),
            _ => tool,
        };
        tool.arg("-c").arg(C.to_string())
    }

    /// Plays a cell, and returns how the runs ended.
    fn play(&self, cell: Cell) -> String {
        let proxy = FaultProxy::to(&self.server);
        let drive = match cell.place.command {
            Command::UploadTo => crate::support::http::create(&self.server, SIZE),
            _ => self.source.clone(),
        };
        self.prepare(cell, &proxy);
        let mut tool = self.tool(cell, &proxy, &drive);
        if cell.is_looked_for() && cell.place.is_for_good {
            // Two minutes of looking for the drive; the rest is left to the next run.
            tool = tool.args("--deadline 4s");
        }
        let first = tool.run().code(cell.end().code());
        let played = proxy.count(|r| r.is_faulted);
        assert!(played > 0, "nothing was done to it: {first:?}");
        proxy.heal();
        if cell.end() != End::Done {
            let again = self.tool(cell, &proxy, &drive).run();
            self.check_done(cell, &again.code(0));
            self.check_wire(cell, &proxy);
            if cell.place.name == "read, back of a sample" {
                let read_back = |r: &Request| (cell.place.is_it)(r) && !r.is_faulted;
                let count = proxy.count(read_back);
                assert!(count > 12, "{count} samples in both runs");
            }
            return format!("{}, 0", cell.end().code());
        }
        self.check_done(cell, &first);
        self.check_wire(cell, &proxy);
        match cell.makes_two_drives() {
            true => "0 *".into(),
            false => "0".into(),
        }
    }

    fn prepare(&self, cell: Cell, proxy: &FaultProxy) {
        match cell.place.name {
            "create, second" => {
                let refused = Fault::Answer(answer(429, &[], b""));
                proxy.fault(Request::is_create, 1, refused);
            }
            "info, in an outage" => {
                let system = Fault::Answer(refusal(500, "system"));
                proxy.fault(Request::is_write, 5, system);
            }
            _ => {}
        }
        let times = if cell.place.is_for_good {
            usize::MAX
        } else {
            1
        };
        // What the setup refuses is not counted by the rule that follows it.
        let skip = match cell.place.name {
            "create, second" => 0,
            _ => cell.place.skip,
        };
        proxy.fault_after(skip, cell.place.is_it, times, cell.fault());
    }

    /// Checks a completed transfer: the bytes are right, there is one drive, and nothing is left.
    fn check_done(&self, cell: Cell, done: &Outcome) {
        let mut all = drives(&self.server);
        all.retain(|drive| *drive != self.source);
        match cell.place.command {
            Command::Download => {
                let bytes = std::fs::read(self.desk.path("out")).unwrap();
                assert!(bytes == self.image, "bytes differ: {done:?}");
                for end in ["oh-part", "ohj"] {
                    let left = self.desk.path(format!("out.{end}"));
                    assert!(!left.exists(), "{left:?} is left");
                }
                std::fs::remove_file(self.desk.path("out")).unwrap();
                assert!(all.is_empty(), "drives were made: {all:?}");
            }
            Command::Upload | Command::UploadTo => {
                let count = 1 + usize::from(cell.makes_two_drives());
                assert_eq!(all.len(), count, "drives: {all:?}");
                let text = done.text();
                let named = all.iter().filter(|drive| text.contains(drive.as_str()));
                let named: Vec<_> = named.collect();
                assert_eq!(named.len(), 1, "{done:?}");
                assert_drive(&self.server, named[0], &self.image);
                assert!(self.desk.journals().is_empty(), "a journal is left");
            }
        }
        for drive in all {
            let path = format!("/drives/{drive}/destroy");
            Ask::of(&self.server).post(&path, "").expect(204);
        }
    }

    /// Checks what was transferred in all runs: each chunk once, and once more for each fault.
    fn check_wire(&self, cell: Cell, proxy: &FaultProxy) {
        let requests = proxy.requests();
        let is_chunk = |r: &&Request| match cell.place.command {
            Command::Download => is_read_of_a_chunk(r),
            Command::Upload | Command::UploadTo => r.is_write(),
        };
        let mut moved: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut faulted, mut bytes) = (0, 0);
        for request in requests.iter().filter(is_chunk) {
            bytes += match cell.place.command {
                Command::Download => request.answered,
                Command::Upload | Command::UploadTo => request.len,
            };
            let has_moved = cell.is_harmless() && request.status < 300;
            if request.is_faulted && !has_moved {
                faulted += 1;
            } else {
                *moved.entry(request.path.as_str()).or_default() += 1;
            }
        }
        for (path, times) in &moved {
            assert_eq!(*times, 1, "{path} moved {times} times");
        }
        // Zeros are sent in gzip, if at all.
        let most = SIZE + faulted * C;
        let least = SIZE - C;
        assert!((least..=most).contains(&bytes), "{bytes} bytes moved");
        if !cell.place.is_for_good && !cell.place.name.starts_with("info, in an outage") {
            assert!(faulted <= 1, "{faulted} attempts were in vain");
        }
    }
}

/// Runs cells on several benches until none is left.
fn play_all(benches: usize, cells: &Mutex<Vec<Cell>>, outcomes: &Mutex<BTreeMap<String, String>>) {
    std::thread::scope(|scope| {
        for _ in 0..benches {
            scope.spawn(|| {
                let mut bench = None;
                loop {
                    let Some(cell) = cells.lock().unwrap().pop() else {
                        return;
                    };
                    let playing = bench.take().unwrap_or_else(Bench::new);
                    let play = AssertUnwindSafe(|| playing.play(cell));
                    let what = match catch_unwind(play) {
                        Ok(ended) => {
                            bench = Some(playing);
                            ended
                        }
                        // The bench is no longer clean.
                        Err(_) => "FAILED".into(),
                    };
                    outcomes.lock().unwrap().insert(cell.name(), what);
                }
            });
        }
    });
}

/// A line for each fault, a column for each place.
fn table(outcomes: &BTreeMap<String, String>) -> String {
    let mut table = String::new();
    for (number, place) in PLACES.iter().enumerate() {
        table += &format!("{:>3} {}\n", number + 1, place.name);
    }
    table += &format!("\n{:25}", "");
    for number in 1..=PLACES.len() {
        table += &format!("{number:>6}");
    }
    for wrong in &WRONGS {
        table += &format!("\n{:25}", wrong.name);
        for place in &PLACES {
            let cell = Cell { wrong, place };
            let outcomes = outcomes.get(&cell.name()).map_or("", String::as_str);
            table += &format!("{outcomes:>6}");
        }
    }
    table + "\n\n* and a second drive, which the same create made\n"
}

#[test]
fn a_transfer_ends_correctly_after_any_fault_at_any_place() {
    let began = Instant::now();
    let wanted = std::env::var("OH_CELL").unwrap_or_default();
    let outcomes = Mutex::new(BTreeMap::new());
    let all = WRONGS
        .iter()
        .flat_map(|wrong| PLACES.iter().map(move |place| Cell { wrong, place }));
    let (mut waiting, mut busy) = (Vec::new(), Vec::new());
    for cell in all.filter(|cell| cell.name().contains(&wanted)) {
        if cell.is_looked_for() || cell.wrong.what == What::Stall {
            waiting.push(cell);
        } else {
            busy.push(cell);
        }
    }
    assert!(
        !waiting.is_empty() || !busy.is_empty(),
        "no cell {wanted:?}"
    );
    let (waiting, busy) = (Mutex::new(waiting), Mutex::new(busy));
    std::thread::scope(|scope| {
        // These cells are idle for most of their time.
        scope.spawn(|| play_all(32, &waiting, &outcomes));
        scope.spawn(|| play_all(4, &busy, &outcomes));
    });
    let outcomes = outcomes.into_inner().unwrap();
    eprintln!("{}", table(&outcomes));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for what in outcomes.values() {
        *counts.entry(what).or_default() += 1;
    }
    eprintln!(
        "matrix: {} cells in {:?}: {counts:?}",
        outcomes.len(),
        began.elapsed()
    );
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(_, what)| *what == "FAILED")
        .collect();
    for (name, _) in &failed {
        eprintln!("again: OH_CELL='{name}' cargo test --test it matrix:: -- --nocapture");
    }
    assert!(failed.is_empty(), "{} cells failed", failed.len());
}
