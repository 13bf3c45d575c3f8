//! Whole transfers in virtual time, with all kinds of faults, each determined by one seed.
//!
//! ```sh
//! cargo test --lib simulator                             # 500 seeds
//! cargo test --lib simulator -- --ignored                # 50,000
//! OH_SEED=123 cargo test --lib simulator -- --nocapture  # one, with a trace
//! ```
//!
//! What runs is the product: `upload` and `download`, with the shell, the patience, the journal and
//! its keeper, and the checks of what was transferred. Only two things are replaced: requests are
//! answered by [`world`], and syncs of real files by [`disk`]. A few lines of the product that are
//! compiled only for tests ask [`is_on`] for that, and do everything on the one thread of the
//! simulation, so that a seed determines the order. docs/dev/reliability.md lists what is checked.

#![allow(unreachable_pub, clippy::print_stderr)]

mod disk;
mod ledger;
mod scenario;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::{Future, pending};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_channel::{Receiver, bounded};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use reqwest::{Response, Url};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Upload;
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::filesystem::simulated::Simulated;
use crate::plan::Plan;
use crate::transfer::StopHandle;
use crate::wire::{Format, Properties, X_ELASTIC_ERROR};

use disk::Disk;
use ledger::Ledger;
pub(crate) use ledger::Watch;
use world::{Answer, Call, Reply, S, World};

/// The smallest piece of a chunk, because all chunks are small.
const LEAST_BYTES: u64 = 3;
/// A run with more events than this is taken for one that never ends.
const EVENTS_MAX: u64 = 60_000;

/// The simulation of this thread.
struct Simulation {
    world: World,
    disk: Disk,
    ledger: Ledger,
    /// Maximum requests of a transfer in flight.
    jobs: u32,
    /// The number of the event at which the process is killed.
    crash_at: Option<u64>,
    /// The number of the event at which the user asks it to stop.
    stop_at: Option<u64>,
    events: u64,
    stop: Option<StopHandle>,
    is_killed: bool,
    killed: Arc<Notify>,
    /// Something new will happen in the world.
    changed: Arc<Notify>,
    /// Who waits for an answer, by the number of the request.
    waiting: BTreeMap<u64, oneshot::Sender<Result<Response, Failure>>>,
    /// When this run began, and the time of the world then.
    began: Option<(Instant, Duration)>,
}

thread_local! {
    static SIMULATION: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

fn with<T>(work: impl FnOnce(&mut Simulation) -> T) -> T {
    SIMULATION.with(|slot| work(slot.borrow_mut().as_mut().unwrap()))
}

/// Whether this thread is simulated.
pub(crate) fn is_on() -> bool {
    SIMULATION.with(|slot| slot.borrow().is_some())
}

/// Answers a request. Returns the answer, and the length of the body.
pub(crate) fn request(
    url: &Url,
    headers: &[(HeaderName, &'static str)],
    body: &Upload,
) -> (
    impl Future<Output = Result<Response, Failure>> + Send + use<>,
    u64,
) {
    let Upload::Bytes(bytes) = body else {
        panic!("a transfer sends what it has in memory");
    };
    let is_packed = headers.contains(&(CONTENT_ENCODING, "gzip"));
    let call = call_of(url.path(), bytes, is_packed);
    let (answer, answered) = oneshot::channel();
    with(|sim| sim.request(call, answer));
    let answer = async move {
        match answered.await {
            Ok(answer) => answer,
            // The process is dead.
            Err(_) => pending().await,
        }
    };
    (answer, body.len())
}

fn call_of(path: &str, body: &[u8], is_packed: bool) -> Call {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let number = |text: &str| text.parse().unwrap();
    match parts[..] {
        ["drives", "create"] => Call::Create(Properties::parse(Format::Text, body).unwrap()),
        ["drives", "info"] => Call::List,
        ["drives", id, "info"] | ["drives", id, "info", "full"] => Call::Info(id.parse().unwrap()),
        ["drives", id, "set"] => Call::Set {
            drive: id.parse().unwrap(),
            keys: Properties::parse(Format::Text, body).unwrap(),
        },
        ["drives", id, "read", offset, len] => Call::Read {
            drive: id.parse().unwrap(),
            offset: number(offset),
            len: number(len),
        },
        ["drives", id, "write", offset] => {
            let mut plain = body.to_vec();
            if is_packed {
                plain.clear();
                let mut decoder = flate2::read::GzDecoder::new(body);
                decoder.read_to_end(&mut plain).unwrap();
            }
            Call::Write {
                drive: id.parse().unwrap(),
                offset: number(offset),
                body: plain,
            }
        }
        _ => panic!("no such call: {path}"),
    }
}

/// An answer as the endpoint sends it.
fn response(answer: Answer) -> Result<Response, Failure> {
    let (status, kind, body) = match answer {
        Ok(Reply::Objects(objects)) => {
            let text = Properties::print_all(&objects, Format::Text);
            (200, "text/plain", text.into_bytes())
        }
        Ok(Reply::Bytes(bytes)) => (200, "application/octet-stream", bytes),
        Ok(Reply::Done) => (204, "text/plain", Vec::new()),
        Err(Failure::NotApi(page)) => (200, "text/html", page.into_bytes()),
        Err(Failure::Refused(refusal)) => {
            let mut answer = hyper::Response::builder().status(refusal.status);
            if let Some(error) = refusal.error {
                answer = answer.header(X_ELASTIC_ERROR, error.as_str());
            }
            if let Some(after) = refusal.retry_after {
                answer = answer.header(RETRY_AFTER, after.as_secs());
            }
            return Ok(answer.body(Vec::new()).unwrap().into());
        }
        Err(failure) => return Err(failure),
    };
    let answer = hyper::Response::builder().status(status);
    let answer = answer.header(CONTENT_TYPE, kind).body(body);
    Ok(answer.unwrap().into())
}

/// Writes records to the journal.
pub(crate) fn write(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    with(|sim| {
        sim.set_time();
        // A process that is killed during a write leaves the first part of it.
        let was_killed = sim.is_killed;
        sim.tick();
        if sim.is_killed {
            let cut = sim.world.rng.usize(..=bytes.len());
            if !was_killed {
                file.write_all_at(&bytes[..cut], at)?;
            }
            return Err(killed());
        }
        file.write_all_at(bytes, at)?;
        sim.ledger.wrote(&disk::content(file), at, bytes.len());
        Ok(())
    })
}

fn killed() -> io::Error {
    io::Error::other("the process is dead")
}

/// Syncs and boots of this thread.
#[derive(Debug)]
struct OwnDisk;

impl Simulated for OwnDisk {
    fn sync(&self, file: &File) -> io::Result<()> {
        with(|sim| sim.sync(file))
    }

    fn boot(&self) -> [u8; 16] {
        with(|sim| [sim.disk.boots; 16])
    }
}

/// How many results the pipeline of a simulation has room for: all, with a buffer for each.
pub(crate) fn room(pool: &BufferPool, plan: &Plan) -> Option<usize> {
    if !is_on() {
        return None;
    }
    let room = plan.count() as usize + 1;
    pool.grow(3 * room + 100);
    Some(room)
}

/// The same results, each after a moment, and some exchanged, as threads do.
pub(crate) fn delayed<T: Send + 'static>(from: Receiver<T>) -> Receiver<T> {
    if !is_on() {
        return from;
    }
    let mut all: Vec<T> = std::iter::from_fn(|| from.try_recv().ok()).collect();
    let mut wait = Vec::new();
    with(|sim| {
        for at in 1..all.len() {
            if sim.world.rng.u8(..4) == 0 {
                all.swap(at - 1, at);
            }
        }
        wait.extend(all.iter().map(|_| sim.world.ms(0, 20)));
    });
    let (to, delayed) = bounded(1);
    tokio::spawn(async move {
        for (one, wait) in all.into_iter().zip(wait) {
            sleep(wait).await;
            if to.send(one).await.is_err() {
                return;
            }
        }
    });
    delayed
}

/// The smallest piece of a chunk.
pub(crate) fn least_bytes() -> u64 {
    match is_on() {
        true => LEAST_BYTES,
        false => crate::policy::PiecesConfig::default().least_bytes,
    }
}

impl Simulation {
    fn new(world: World) -> Self {
        Self {
            world,
            disk: Disk::default(),
            ledger: Ledger::default(),
            jobs: 1,
            crash_at: None,
            stop_at: None,
            events: 0,
            stop: None,
            is_killed: false,
            killed: Arc::default(),
            changed: Arc::default(),
            waiting: BTreeMap::new(),
            began: None,
        }
    }

    /// From now on this thread is simulated.
    fn begin(self) {
        SIMULATION.with(|slot| *slot.borrow_mut() = Some(self));
        crate::filesystem::simulated::simulate(Some(Rc::new(OwnDisk)));
    }

    fn end() {
        SIMULATION.with(|slot| slot.borrow_mut().take());
        crate::filesystem::simulated::simulate(None);
    }

    /// A run begins.
    fn run_begins(&mut self, stop: StopHandle) {
        self.events = 0;
        self.stop = Some(stop);
        self.is_killed = false;
        (self.killed, self.changed) = Default::default();
        self.ledger.shells = 0;
        self.waiting.clear();
        self.began = Some((Instant::now(), self.world.now));
    }

    /// The world has the time of the runtime.
    fn set_time(&mut self) {
        if let Some((began, then)) = self.began {
            self.world.now = self.world.now.max(then + began.elapsed());
        }
    }

    /// When something happens next.
    fn next_at(&self) -> Option<Instant> {
        let (began, then) = self.began?;
        Some(began + self.world.next_at()?.saturating_sub(then))
    }

    /// Counts an event. The process may be killed here, or asked to stop.
    fn tick(&mut self) {
        self.events += 1;
        assert!(self.events < EVENTS_MAX, "the run does not end");
        if self.crash_at.is_some_and(|at| self.events >= at) && !self.is_killed {
            self.world.say(|| "killed".into());
            self.is_killed = true;
            self.killed.notify_one();
        }
        if self.stop_at.is_some_and(|at| self.events == at)
            && let Some(stop) = &self.stop
        {
            self.world.say(|| "stop".into());
            stop.drain();
        }
    }

    fn request(&mut self, call: Call, answer: oneshot::Sender<Result<Response, Failure>>) {
        if self.is_killed {
            return;
        }
        self.set_time();
        self.world.say(|| format!("call {}", name(&call)));
        let number = self.world.send(call);
        self.waiting.insert(number, answer);
        self.changed.notify_one();
    }

    /// The next event of the world happens.
    fn step(&mut self) {
        self.set_time();
        self.tick();
        if self.is_killed {
            return;
        }
        if let Some((number, answer)) = self.world.step()
            && let Some(waiting) = self.waiting.remove(&number)
        {
            let _ = waiting.send(response(answer));
        }
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        self.set_time();
        self.tick();
        if self.is_killed {
            return Err(killed());
        }
        let fails = self.world.rng.u32(..1000) < self.disk.eio_per_mille;
        let synced = self.disk.sync(file, fails, &mut self.world.rng);
        self.world.say(|| format!("sync: {synced:?}"));
        match synced {
            Ok(()) => self.ledger.synced(&disk::content(file)),
            Err(_) => self.ledger.lose_what_was_not_synced(),
        }
        synced
    }
}

/// Lets the world go on. Returns when the process is killed.
async fn go_on() {
    let (killed, changed) = with(|sim| (Arc::clone(&sim.killed), Arc::clone(&sim.changed)));
    loop {
        let next = with(|sim| sim.next_at());
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = killed.notified() => return,
            () = wait => with(Simulation::step),
            () = changed.notified() => {}
        }
    }
}

fn name(call: &Call) -> String {
    match call {
        Call::Create(_) => "create".into(),
        Call::List => "list".into(),
        Call::Info(_) => "info".into(),
        Call::Set { keys, .. } => format!("set {}", keys.print(Format::Text).trim()),
        Call::Write { offset, body, .. } => format!("write {offset}+{}", body.len()),
        Call::Read { offset, len, .. } => format!("read {offset}+{len}"),
    }
}
