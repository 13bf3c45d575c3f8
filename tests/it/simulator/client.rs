//! One run of the program: what `src/transfer` does around the engine, but in a single thread and
//! in virtual time. Each part names the function that it mirrors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::ops::Range;
use std::time::Duration;

use openhosting::chunk::RequestSize;
use openhosting::digest::{ChunkDigest, Digest};
use openhosting::drive::DriveId;
use openhosting::failure::Failure;
use openhosting::image::data_blocks;
use openhosting::journal::{
    Direction, HEADER_BYTES, Header, PageCache, Proof, RECORD_BYTES, Record, State, replay,
};
use openhosting::plan::{Plan, Span};
use openhosting::policy::{
    Action, Attempts, Body, Class, CreateStep, Creation, Ending, Engine, EngineConfig, Limits,
    Next, Operation, PiecesConfig, Requests, Zeros, classify_known,
};
use rangemap::RangeSet;

use super::disk::{Eio, SimFile};
use super::world::{Answer, Call, Reply, S, World};

/// A run with more events than this is taken for one that never ends.
const EVENTS_MAX: u64 = 60_000;
/// As in the journal's keeper.
const KEEPER_WAIT: Duration = S;
/// All chunks are small here.
const KEEPER_SMALL: usize = 64;
/// The smallest piece, as `PIECE_BYTES_MIN`.
pub const LEAST_BYTES: u64 = 3;
/// As in the shell.
const GRACE: Duration = Duration::from_secs(10);

/// A piece of the image, as the pipeline gives it.
#[derive(Clone, Debug)]
pub enum Piece {
    Chunk(u64),
    Hole(Range<u64>),
}

/// What stays the same in every run.
pub struct Scenario {
    pub direction: Direction,
    pub plan: Plan,
    pub source: Vec<u8>,
    /// Chunks in which the file has no data.
    pub holes: RangeSet<u64>,
    pub jobs: u32,
    pub max_outage: Duration,
    /// The drive that the user names; `None` for a new one.
    pub existing: Option<DriveId>,
}

/// What is on the client's disk.
#[derive(Default)]
pub struct Disk {
    pub journal: Option<SimFile>,
    pub part: Option<SimFile>,
    pub published: Option<SimFile>,
    /// How many of a thousand syncs fail.
    pub eio_per_mille: u32,
    /// How often power was lost.
    pub boots: u8,
}

impl Disk {
    /// As `PageCache::of` the staged file.
    fn page_cache(&self) -> PageCache {
        PageCache {
            boot: [self.boots; 16],
            device: 1,
            mount: 2,
            inode: 3,
        }
    }
}

/// What the checks remember across runs.
#[derive(Default)]
pub struct Ledger {
    /// Chunks whose record was synced. They may never be sent again.
    pub synced: BTreeSet<u64>,
    /// Chunks whose record was written. They may be sent again only if power was lost or a sync
    /// failed.
    pub written: BTreeSet<u64>,
    pub ever_sent: BTreeSet<u64>,
    pub sends: u64,
    pub failures: u64,
    /// The sum over all runs of chunks that may have to be sent again.
    pub exposed: u64,
    pub probes: u64,
    pub resent: u64,
    /// How often the number of workers was reduced after trouble.
    pub falls: u64,
    pub most_workers: u32,
    /// Pieces of chunks, without the last piece of each chunk.
    pub pieces: u64,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    Complete,
    Crashed,
    Doubt,
    Ended(String),
    /// The user has to start over.
    Restart,
}

/// The process was killed.
pub struct Crash;

enum End {
    Crash,
    Error(String),
    Doubt,
    Restart,
}

impl From<Crash> for End {
    fn from(_: Crash) -> Self {
        Self::Crash
    }
}

impl From<Eio> for End {
    fn from(_: Eio) -> Self {
        Self::Error("EIO".into())
    }
}

/// What a request in flight is for.
#[derive(Clone, Copy, Debug)]
enum Job {
    Compare(Span, Body),
    Chunk(Span, Body),
    Proof,
    Probe,
    Look,
}

/// Mirrors `journal::Journal` and its `Log`.
struct Journal {
    session: [u8; 16],
    records: u64,
    synced: u64,
    is_broken: bool,
}

pub struct Client<'a> {
    pub scenario: &'a Scenario,
    pub world: &'a mut World,
    pub disk: &'a mut Disk,
    pub ledger: &'a mut Ledger,
    /// The number of the event at which the process is killed.
    pub crash_at: Option<u64>,
    /// The number of the event at which the user asks it to stop.
    pub stop_at: Option<u64>,
    pub events: u64,
    /// As `api::Client::has_answered`.
    pub has_answered: bool,
}

/// The state of [`Client::work`].
struct Work {
    engine: Engine,
    began: Duration,
    drive: DriveId,
    compare: bool,
    journal: Journal,
    /// Mirrors the keeper's thread: the records that wait to be written, and until when they wait.
    batch: Vec<Record>,
    batch_until: Duration,
    keeper_failed: bool,
    in_flight: BTreeMap<u64, Job>,
    pieces: VecDeque<Piece>,
    feed_at: Duration,
    fed: bool,
    proof: Option<(Attempts, Span)>,
    proof_at: Option<Duration>,
    /// Chunks that were given to the engine as data.
    data: BTreeSet<u64>,
    /// Downloads: as `Download::window`.
    window: u32,
    /// As `Download::served`.
    served: u32,
    /// The drive or file is new, so it holds zeros already.
    leave_zeros: bool,
    local_error: bool,
    not_before: Duration,
    refused: bool,
    one_writer_known: bool,
    /// How often the limit fell and how many good answers arrived. `then` holds both numbers as of
    /// the time when each chunk was sent.
    falls: u64,
    goods: u64,
    /// Bytes of chunks with a good answer.
    moved: u64,
    then: BTreeMap<u64, (u64, u64)>,
    /// As `Upload::confirmed` and `Partials`: the bytes of a chunk that need not be transferred
    /// again, and for downloads their content.
    confirmed: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Attempts that are under way, with their limits and their requests so far.
    attempts: BTreeMap<u64, (Limits, Requests)>,
}

impl Client<'_> {
    /// One run, as if the user started it, with `--restart` if `restart` is set.
    pub fn run(&mut self, restart: bool) -> Outcome {
        if restart {
            self.disk.journal = None;
            self.disk.part = None;
            self.ledger.forget();
        }
        match self.transfer() {
            Ok(()) => Outcome::Complete,
            Err(End::Crash) => Outcome::Crashed,
            Err(End::Doubt) => Outcome::Doubt,
            Err(End::Restart) => Outcome::Restart,
            Err(End::Error(why)) => Outcome::Ended(why),
        }
    }

    /// Counts an event. The process may be killed here.
    fn tick(&mut self) -> Result<(), Crash> {
        self.events += 1;
        assert!(self.events < EVENTS_MAX, "the run does not end");
        if self.crash_at.is_some_and(|at| self.events >= at) {
            return Err(Crash);
        }
        Ok(())
    }

    fn eio(&mut self) -> bool {
        let fails = self.world.rng.u32(..1000) < self.disk.eio_per_mille;
        if fails {
            self.world.say(|| "fdatasync: EIO".into());
        }
        fails
    }

    /// Waits for one answer while no other request is under way.
    fn call(&mut self, call: Call) -> Result<Answer, Crash> {
        self.world.say(|| format!("call {}", name(&call)));
        let number = self.world.send(call);
        loop {
            self.tick()?;
            if let Some((of, answer)) = self.world.step()
                && of == number
            {
                self.world
                    .say(|| format!("  -> {:?}", answer.as_ref().map(|_| ())));
                self.has_answered |= answer.is_ok();
                return Ok(answer);
            }
        }
    }

    fn sleep(&mut self, wait: Duration) -> Result<(), Crash> {
        let until = self.world.now + wait;
        while self.world.next_at().is_some_and(|at| at <= until) {
            self.tick()?;
            self.world.step();
        }
        self.world.now = until;
        self.tick()
    }

    /// Mirrors `driver::patience::Patience::call`.
    fn patiently(&mut self, call: &Call) -> Result<Answer, Crash> {
        let mut attempts = Attempts::new(self.scenario.max_outage);
        loop {
            let failure = match self.call(call.clone())? {
                Ok(reply) => return Ok(Ok(reply)),
                Err(failure) => failure,
            };
            let (now, rng) = (self.world.now, &mut self.world.rng);
            match attempts.failed(Operation::Read, &failure, self.has_answered, now, rng) {
                Next::Again(wait) => self.sleep(wait)?,
                Next::Refused | Next::Unclear | Next::GaveUp => return Ok(Err(failure)),
            }
        }
    }

    /// Mirrors `Session::record`.
    fn record(&mut self, journal: &mut Journal, record: Record) -> Result<(), End> {
        self.write(journal, &[record])?;
        self.sync(journal)
    }

    /// Mirrors `Log::write`.
    fn write(&mut self, journal: &mut Journal, records: &[Record]) -> Result<(), End> {
        if journal.is_broken {
            return Err(Eio.into());
        }
        let at = HEADER_BYTES + journal.records as usize * RECORD_BYTES;
        let mut bytes = Vec::new();
        for (number, record) in (journal.records..).zip(records) {
            bytes.extend_from_slice(&record.encode(number, &journal.session));
        }
        let cut = self.world.rng.usize(..=bytes.len());
        let Some(file) = &mut self.disk.journal else {
            panic!("no journal");
        };
        // A process that is killed during a write leaves the first part of it.
        file.write(at, &bytes[..cut]);
        self.tick()?;
        let Some(file) = &mut self.disk.journal else {
            panic!("no journal");
        };
        file.write(at, &bytes);
        journal.records += records.len() as u64;
        for record in records {
            match *record {
                Record::Done { index, .. } | Record::Written { index, .. } => {
                    _ = self.ledger.written.insert(index);
                }
                Record::Holes { first, count } => self.ledger.written.extend(first..first + count),
                _ => {}
            }
        }
        Ok(())
    }

    /// Mirrors `Log::sync`.
    fn sync(&mut self, journal: &mut Journal) -> Result<(), End> {
        if journal.is_broken {
            return Err(Eio.into());
        }
        if journal.synced == journal.records {
            return Ok(());
        }
        self.tick()?;
        let fails = self.eio();
        let Some(file) = &mut self.disk.journal else {
            panic!("no journal");
        };
        let synced = file.sync(fails, &mut self.world.rng);
        journal.is_broken = synced.is_err();
        if synced.is_err() {
            self.ledger.lose_what_was_not_synced();
        }
        synced?;
        self.tick()?;
        let records = journal.records;
        self.write(journal, &[Record::Synced { records }])?;
        journal.synced = journal.records;
        Ok(())
    }

    /// Mirrors `Keeping::sync_data`.
    fn sync_data(&mut self, journal: &mut Journal) -> Result<(), End> {
        let fails = self.eio();
        let Some(part) = &mut self.disk.part else {
            return Ok(());
        };
        let synced = part.sync(fails, &mut self.world.rng);
        if synced.is_err() {
            // As `Log::revoke`.
            self.ledger.lose_what_was_not_synced();
            self.write(journal, &[Record::Run(None)])?;
            let fails = self.eio();
            if let Some(file) = &mut self.disk.journal {
                file.sync(fails, &mut self.world.rng)?;
            }
        }
        synced?;
        self.tick()?;
        Ok(())
    }

    /// Mirrors `Session::begin`, `Journal::create` and `Journal::open`.
    fn begin(&mut self) -> Result<(Journal, State, Header, bool, bool), End> {
        self.tick()?;
        // Otherwise a later sync could seem to repair one that failed.
        self.disk.journal.iter_mut().for_each(SimFile::evict);
        if self.world.rng.bool() {
            self.disk.part.iter_mut().for_each(SimFile::evict);
        }
        if let Some(file) = &mut self.disk.journal {
            let Ok(replay) = replay(file.bytes(), |_, _, _| {}) else {
                panic!("a header that was synced before anything else is damaged");
            };
            file.set_len(HEADER_BYTES + replay.records as usize * RECORD_BYTES);
            let journal = Journal {
                session: replay.header.session,
                records: replay.records,
                synced: replay.records,
                is_broken: false,
            };
            return Ok((
                journal,
                replay.state,
                replay.header,
                true,
                replay.is_damaged,
            ));
        }
        let (mut session, mut token) = ([0; 16], [0; 16]);
        self.world.rng.fill(&mut session);
        self.world.rng.fill(&mut token);
        let header = Header {
            direction: self.scenario.direction,
            session,
            token,
            size: self.scenario.plan.size(),
            chunk: self.scenario.plan.chunk_bytes(),
            first: 0,
            source: None,
            endpoint: "sim".into(),
            user: "u".into(),
        };
        let Some(bytes) = header.encode() else {
            panic!("a header that does not fit");
        };
        // Completely or not at all: temporary file, fsync, rename, fsync of the directory.
        self.disk.journal = Some(SimFile::synced(bytes.to_vec()));
        let journal = Journal {
            session,
            records: 0,
            synced: 0,
            is_broken: false,
        };
        Ok((journal, State::default(), header, false, false))
    }

    /// Checks that what the surviving journal says is true.
    fn check_state(&self, state: &State, drive: Option<DriveId>) {
        let plan = self.scenario.plan;
        let held: &[u8] = match (self.scenario.direction, drive) {
            (Direction::Upload, Some(id)) => match self.world.drive(id) {
                Some(drive) => &drive.bytes,
                None => panic!("the journal names drive {id}, and there is none"),
            },
            (Direction::Upload, None) => &[],
            (Direction::Download | Direction::DownloadAsQcow2, _) => {
                self.disk.part.as_ref().map_or(&[], |part| part.bytes())
            }
        };
        for index in state.settled().into_iter().flatten() {
            let Some(span) = plan.span(index) else {
                panic!("a record of chunk {index}, which is none");
            };
            let range = span.offset as usize..span.end() as usize;
            assert!(
                held.get(range.clone()) == Some(&self.scenario.source[range]),
                "the journal says chunk {index} is settled, and it is not there"
            );
        }
        for index in &self.ledger.synced {
            let kept = state.done.contains(index) || state.holes.contains(index);
            assert!(kept, "the record of chunk {index} was synced and is lost");
        }
    }

    /// Mirrors `upload::run::upload` and `download::run::download`.
    fn transfer(&mut self) -> Result<(), End> {
        let is_upload = self.scenario.direction == Direction::Upload;
        if !is_upload {
            // As in `download`: the drive is looked at first.
            let Some(id) = self.scenario.existing else {
                panic!("nothing to download")
            };
            if let Err(failure) = self.patiently(&Call::Info(id))? {
                return Err(End::Error(failure.to_string()));
            }
        }
        let (mut journal, state, header, is_resumed, is_damaged) = self.begin()?;
        self.world
            .say(|| format!("resumed {is_resumed}, damaged {is_damaged}, {state:?}"));
        let mut state = state;
        let mut leave_zeros = true;
        let mut taken = Vec::new();
        let drive = if is_upload {
            self.check_state(&state, state.drive.map(|(id, _)| id));
            self.prepare(&state, &header, is_resumed)?
        } else {
            let size = self.scenario.plan.size() as usize;
            let mut is_resumed = is_resumed;
            if is_resumed && state.drive.is_none() {
                // The previous run ended before it knew its drive, so what it staged is not used.
                assert!(self.ledger.synced.is_empty());
                self.disk.part = None;
                self.disk.journal = None;
                self.tick()?;
                (journal, state, ..) = self.begin()?;
                is_resumed = false;
            }
            if is_resumed && self.disk.part.is_some() {
                // As `ImageTarget::resume`.
                let len = self.disk.part.as_ref().map_or(0, |part| part.bytes().len());
                if len != size {
                    assert!(
                        self.ledger.synced.is_empty(),
                        "a synced target lost its length"
                    );
                    return Err(End::Restart);
                }
                taken = self.take_unsynced(&mut state);
                self.check_state(&state, None);
                leave_zeros = false;
            } else {
                if is_resumed {
                    // The file of the image is gone, so what the journal says about it is not used.
                    self.disk.journal = None;
                    self.ledger.forget();
                    self.tick()?;
                    (journal, state, ..) = self.begin()?;
                }
                if self.disk.part.is_some() {
                    return Err(End::Restart);
                }
                let mut part = SimFile::default();
                part.set_len(size);
                self.disk.part = Some(part);
                self.tick()?;
            }
            self.scenario.existing.unwrap_or_else(|| unreachable!())
        };
        let is_ours = is_upload && self.scenario.existing.is_none();
        let was_proven = state.drive.is_none() || !state.holes.is_empty();
        if is_upload || state.drive.is_none() {
            self.record(
                &mut journal,
                Record::Drive {
                    id: drive,
                    is_ours: is_upload && is_ours,
                },
            )?;
        }
        let settled = state.settled();
        let plan = self.scenario.plan;
        let todo: Vec<Range<u64>> = settled.gaps(&(0..plan.count())).collect();
        let is_new = is_ours && state.drive.is_none();
        let engine = Engine::new(EngineConfig {
            plan,
            first: 0,
            settled,
            jobs_min: 1,
            jobs: self.scenario.jobs,
            zeros: if is_upload {
                // An earlier run may have written zeros whose record did not survive.
                Zeros::for_drive(is_ours && was_proven)
            } else {
                Zeros::Write
            },
            operation: if is_upload {
                Operation::Write
            } else {
                Operation::Read
            },
            is_fresh: is_new,
            max_outage: self.scenario.max_outage,
            round_trip: Duration::ZERO,
            pieces: PiecesConfig {
                // All chunks are small here.
                least_bytes: LEAST_BYTES,
                ..PiecesConfig::default()
            },
            seed: self.world.rng.u64(..),
        });
        if !is_upload {
            // As `Log::begin_run`.
            let page_cache = Some(self.disk.page_cache());
            if state.page_cache() != page_cache {
                self.write(&mut journal, &[Record::Run(page_cache)])?;
            }
        }
        let batch = taken.iter().map(|index| self.done(*index)).collect();
        let work = Work {
            engine,
            began: self.world.now,
            drive,
            compare: is_damaged && is_upload,
            journal,
            batch,
            batch_until: self.world.now + KEEPER_WAIT,
            keeper_failed: false,
            in_flight: BTreeMap::new(),
            pieces: self.pieces(&todo),
            feed_at: self.world.now,
            fed: false,
            proof: None,
            proof_at: None,
            data: BTreeSet::new(),
            window: 0,
            served: 0,
            leave_zeros,
            local_error: false,
            not_before: Duration::ZERO,
            refused: false,
            one_writer_known: false,
            falls: 0,
            goods: 0,
            moved: 0,
            then: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            attempts: BTreeMap::new(),
        };
        self.work(work)
    }

    /// Mirrors `upload::begin::prepare`.
    fn prepare(
        &mut self,
        state: &State,
        header: &Header,
        is_resumed: bool,
    ) -> Result<DriveId, End> {
        let named = self.scenario.existing.or(state.drive.map(|(id, _)| id));
        let Some(id) = named else {
            return self.create(header, is_resumed);
        };
        match self.patiently(&Call::Info(id))? {
            Ok(_) => Ok(id),
            Err(failure) => Err(End::Error(failure.to_string())),
        }
    }

    /// Mirrors `driver::create_drive::create`.
    fn create(&mut self, header: &Header, is_resumed: bool) -> Result<DriveId, End> {
        let token = format!("{:?}", header.token);
        let size = self.scenario.source.len();
        let mut creation = Creation::new(Attempts::new(self.scenario.max_outage));
        let mut is_unclear = is_resumed;
        let mut step = if is_resumed {
            creation.resume()
        } else {
            CreateStep::Post {
                after: Duration::ZERO,
            }
        };
        loop {
            step = match step {
                CreateStep::Post { after } => {
                    self.sleep(after)?;
                    match self.call(Call::Create {
                        token: token.clone(),
                        size,
                    })? {
                        Ok(Reply::Drive(id)) => return Ok(id),
                        Ok(other) => panic!("{other:?}"),
                        Err(failure) => {
                            is_unclear |= failure.is_ambiguous();
                            let (now, rng) = (self.world.now, &mut self.world.rng);
                            creation.post_failed(&failure, self.has_answered, now, rng)
                        }
                    }
                }
                CreateStep::Look { after } => {
                    self.sleep(after)?;
                    match self.call(Call::List)? {
                        Ok(Reply::Drives(drives)) => {
                            let bears =
                                |d: &&super::world::Listed| d.token.as_deref() == Some(&token);
                            let found: Vec<_> = drives.iter().filter(bears).map(|d| d.id).collect();
                            let none = drives.iter().filter(|d| d.token.is_none());
                            let alike: Vec<_> = none.map(|d| d.id).collect();
                            creation.looked(&found, &alike)
                        }
                        Ok(other) => panic!("{other:?}"),
                        Err(failure) => {
                            let (now, rng) = (self.world.now, &mut self.world.rng);
                            creation.look_failed(&failure, self.has_answered, now, rng)
                        }
                    }
                }
                CreateStep::Adopt(id) => return Ok(id),
                CreateStep::GiveUp { .. } => {
                    if !is_unclear {
                        // As `Session::forget`.
                        self.disk.journal = None;
                    }
                    return Err(End::Error("create".into()));
                }
                CreateStep::Doubt(_) => return Err(End::Doubt),
            };
        }
    }

    /// The image as it comes out of `ImageReader` and `Pipeline`: in order, except that the
    /// compressors may exchange chunks.
    fn pieces(&mut self, todo: &[Range<u64>]) -> VecDeque<Piece> {
        let mut pieces = Vec::new();
        if self.scenario.direction == Direction::Download {
            return todo.iter().cloned().flatten().map(Piece::Chunk).collect();
        }
        for range in todo {
            let mut index = range.start;
            while index < range.end {
                if let Some(hole) = self.scenario.holes.get(&index) {
                    let end = hole.end.min(range.end);
                    pieces.push(Piece::Hole(index..end));
                    index = end;
                    continue;
                }
                let is_zero = self.scenario.plan.span(index).is_some_and(|span| {
                    let bytes = &self.scenario.source[span.offset as usize..span.end() as usize];
                    bytes.iter().all(|byte| *byte == 0)
                });
                pieces.push(if is_zero {
                    Piece::Hole(index..index + 1)
                } else {
                    Piece::Chunk(index)
                });
                index += 1;
            }
        }
        for at in 1..pieces.len() {
            if self.world.rng.u8(..4) == 0 {
                pieces.swap(at - 1, at);
            }
        }
        pieces.into()
    }

    /// Mirrors `Shell::work`, and the end of `upload` and `download`.
    fn work(&mut self, mut w: Work) -> Result<(), End> {
        let ending = self.shell(&mut w);
        if ending.is_err() {
            self.count_exposed();
        }
        let ending = ending?;
        self.world.say(|| format!("{ending:?}"));
        // As `session::finish`: what is known is recorded, however the run ended.
        let kept = if w.keeper_failed {
            Err(Eio.into())
        } else {
            self.keep(&mut w)
        };
        self.count_exposed();
        if ending != Ending::Complete {
            return Err(End::Error(format!("{ending:?}")));
        }
        self.check_whole(&w);
        kept?;
        if self.scenario.direction == Direction::Download {
            // As `ImageTarget::publish`: sync, rename, sync of the directory.
            let fails = self.eio();
            if let Some(part) = &mut self.disk.part {
                part.sync(fails, &mut self.world.rng)?;
            }
            self.tick()?;
            self.disk.published = self.disk.part.take();
            self.tick()?;
        }
        self.disk.journal = None;
        Ok(())
    }

    fn count_exposed(&mut self) {
        let exposed = self
            .ledger
            .ever_sent
            .difference(&self.ledger.written)
            .count();
        self.ledger.exposed += exposed as u64;
    }

    /// Checks everything when the transfer reports that it is complete.
    fn check_whole(&self, w: &Work) {
        let held = match self.scenario.direction {
            Direction::Upload => self.world.drive(w.drive).map(|drive| &drive.bytes[..]),
            Direction::Download | Direction::DownloadAsQcow2 => {
                self.disk.part.as_ref().map(SimFile::bytes)
            }
        };
        let source = &self.scenario.source;
        assert!(
            held.and_then(|held| held.get(..source.len())) == Some(&source[..]),
            "it is called complete and is not"
        );
    }

    fn shell(&mut self, w: &mut Work) -> Result<Ending, End> {
        let mut grace = None;
        self.serve(w);
        loop {
            self.keep_if_due(w)?;
            if self.stop_at.is_some_and(|at| self.events >= at) && w.engine.ending().is_none() {
                self.world.say(|| "stop".into());
                w.engine.stop();
            }
            let now = self.world.now - w.began;
            w.engine.moved(w.moved, now);
            w.engine.arrived(w.moved, now);
            let wait = match w.engine.next(now) {
                Action::End(ending) => return Ok(ending),
                Action::Wait(until) => until,
                action => {
                    self.start(w, &action, now);
                    continue;
                }
            };
            if let Some(until) = wait {
                assert!(
                    until > now,
                    "a wait that is over already: the shell would spin"
                );
            }
            if let Some(ending) = w.engine.ending() {
                if w.engine.in_flight() == 0 || w.engine.is_hopeless(now) {
                    return Ok(ending.clone());
                }
                let at = *grace.get_or_insert(self.world.now + GRACE);
                if self.world.now >= at {
                    return Ok(ending.clone());
                }
            }
            let wake = grace.or_else(|| wait.map(|until| w.began + until));
            let wants = w.engine.wants_chunk()
                && !w.fed
                && (w.window > 0
                    || w.pieces.is_empty()
                    || self.scenario.direction == Direction::Upload);
            let feed = wants.then_some(w.feed_at.max(self.world.now));
            let keeper = (!w.batch.is_empty()).then_some(w.batch_until);
            let answer =
                if w.in_flight.is_empty() && wake.is_none() && feed.is_none() && keeper.is_none() {
                    None
                } else {
                    self.world.next_at()
                };
            let times = [wake, feed, keeper, w.proof_at, answer];
            let Some(at) = times.into_iter().flatten().min() else {
                panic!("nothing is under way and it waits");
            };
            self.tick()?;
            if answer == Some(at) {
                if let Some((number, answer)) = self.world.step() {
                    self.answered(w, number, answer)?;
                }
            } else {
                self.world.now = self.world.now.max(at);
                if w.proof_at == Some(at) {
                    w.proof_at = None;
                    self.prove(w);
                } else if feed == Some(at) {
                    self.feed(w);
                }
            }
            self.report(w)?;
        }
    }

    fn feed(&mut self, w: &mut Work) {
        w.feed_at = self.world.now + self.world.ms(0, 20);
        match w.pieces.pop_front() {
            Some(Piece::Chunk(index)) => {
                w.data.insert(index);
                w.window = w.window.saturating_sub(1);
                w.engine.chunk(index);
            }
            Some(Piece::Hole(chunks)) => w.engine.hole(chunks),
            None => {
                w.fed = true;
                w.engine.image_ended();
            }
        }
    }

    /// Mirrors `Shell::start`.
    fn start(&mut self, w: &mut Work, action: &Action, now: Duration) {
        self.world.say(|| format!("{action:?}"));
        assert!(
            now >= w.not_before,
            "a request before Retry-After allows it"
        );
        assert!(!w.refused, "a request after a refusal for good");
        match *action {
            Action::Send(span, body) => {
                self.ledger.sends += 1;
                assert!(
                    !self.ledger.synced.contains(&span.index),
                    "chunk {} is sent again though its record was synced",
                    span.index
                );
                assert!(
                    !self.ledger.written.contains(&span.index),
                    "chunk {} is sent again though its record was written",
                    span.index
                );
                if !self.ledger.ever_sent.insert(span.index) {
                    self.ledger.resent += 1;
                }
                w.then.insert(span.index, (w.falls, w.goods));
                w.attempts
                    .insert(span.index, (w.engine.limits(), Requests::default()));
                let job = if w.compare {
                    Job::Compare(span, body)
                } else {
                    Job::Chunk(span, body)
                };
                self.attempt(w, job, span);
                let chunks = |job: &&Job| matches!(job, Job::Chunk(..) | Job::Compare(..));
                let in_flight = w.in_flight.values().filter(chunks).count();
                assert!(
                    in_flight <= self.scenario.jobs as usize,
                    "{in_flight} in flight"
                );
                self.check_limit(w);
                assert!(
                    in_flight <= w.engine.limit() as usize,
                    "{in_flight} in flight, and the limit is {}",
                    w.engine.limit()
                );
                assert!(in_flight <= 1 || !w.one_writer_known, "two writers again");
            }
            Action::ProveZeros(span) => {
                w.proof = Some((Attempts::new(self.scenario.max_outage), span));
                self.prove(w);
            }
            Action::Probe => {
                self.ledger.probes += 1;
                let number = self.world.send(Call::Info(w.drive));
                w.in_flight.insert(number, Job::Probe);
            }
            Action::Look => {
                let number = self.world.send(Call::Info(w.drive));
                w.in_flight.insert(number, Job::Look);
            }
            Action::Wait(_) | Action::End(_) => {}
        }
    }

    /// The piece of a chunk that is transferred next, in bytes of the drive.
    fn piece(w: &Work, span: Span) -> Range<u64> {
        let confirmed = w.confirmed.get(&span.index).map_or(0, |(bytes, _)| *bytes);
        let (limits, _) = w.attempts[&span.index];
        let start = span.offset + confirmed;
        start
            ..span
                .end()
                .min(start.saturating_add(limits.read_bytes_max()))
    }

    /// Mirrors `Upload::attempt` and `Download::attempt`. Called once for each piece of a chunk.
    fn attempt(&mut self, w: &mut Work, job: Job, span: Span) {
        let bytes = match job {
            Job::Chunk(..) => Self::piece(w, span),
            _ => span.offset..span.end(),
        };
        let (offset, len) = (bytes.start as usize, (bytes.end - bytes.start) as usize);
        let drive = w.drive;
        let is_upload = self.scenario.direction == Direction::Upload;
        let call = if let (Job::Chunk(_, kind), true) = (&job, is_upload) {
            let body = match kind {
                Body::Zeros => vec![0; len],
                Body::Given => {
                    assert!(w.data.contains(&span.index), "{span:?} has no body");
                    self.scenario.source[offset..offset + len].to_vec()
                }
            };
            Call::Write {
                drive,
                offset,
                body,
            }
        } else {
            Call::Read { drive, offset, len }
        };
        let number = self.world.send(call);
        w.in_flight.insert(number, job);
    }

    fn prove(&mut self, w: &mut Work) {
        if let Some((_, span)) = w.proof {
            let (offset, len) = (span.offset as usize, span.len as usize);
            let number = self.world.send(Call::Read {
                drive: w.drive,
                offset,
                len,
            });
            w.in_flight.insert(number, Job::Proof);
        }
    }

    /// Mirrors `Shell::answered`.
    fn answered(&mut self, w: &mut Work, number: u64, answer: Answer) -> Result<(), End> {
        let Some(job) = w.in_flight.remove(&number) else {
            return Ok(());
        };
        let now = self.world.now - w.began;
        self.world
            .say(|| format!("  -> {job:?} {:?}", answer.as_ref().map(|_| ())));
        if let Err(failure) = &answer
            && !matches!(job, Job::Proof | Job::Look)
        {
            let is_small = match job {
                Job::Chunk(span, _) => {
                    let piece = Self::piece(w, span);
                    piece.end - piece.start <= LEAST_BYTES
                }
                _ => true,
            };
            self.heard(w, failure, is_small, now);
        }
        match job {
            Job::Compare(span, body) => match answer {
                Ok(Reply::Bytes(bytes)) => {
                    let range = span.offset as usize..span.end() as usize;
                    if Digest::of(&bytes) == Digest::of(&self.scenario.source[range]) {
                        self.settled(w, span)?;
                        w.goods += 1;
                        w.moved += span.len;
                        w.engine.answered(span.index, Ok(()), now);
                    } else {
                        self.attempt(w, Job::Chunk(span, body), span);
                    }
                }
                Ok(other) => panic!("{other:?}"),
                Err(failure) => self.failed(w, span, failure, now),
            },
            Job::Chunk(span, _) => match answer {
                Ok(reply) => {
                    let piece = Self::piece(w, span);
                    let len = piece.end - piece.start;
                    let (confirmed, came) = w.confirmed.entry(span.index).or_default();
                    *confirmed += len;
                    if let Reply::Bytes(bytes) = reply {
                        came.extend(bytes);
                    }
                    if let Some((_, requests)) = w.attempts.get_mut(&span.index) {
                        requests.confirm(RequestSize::plain(len));
                    }
                    if piece.end < span.end() {
                        self.ledger.pieces += 1;
                        self.attempt(w, job, span);
                        return Ok(());
                    }
                    let came = w.confirmed.remove(&span.index);
                    if self.scenario.direction != Direction::Upload {
                        self.put(w, span, &came.unwrap_or_default().1);
                    }
                    self.settled(w, span)?;
                    w.goods += 1;
                    w.moved += span.len;
                    let requests = w.attempts.remove(&span.index).unwrap_or_else(no_attempt).1;
                    w.engine.attempted(span.index, &requests, Ok(()), now);
                }
                Err(failure) => {
                    let piece = Self::piece(w, span);
                    if let Some((_, requests)) = w.attempts.get_mut(&span.index) {
                        requests.failed = Some(RequestSize::plain(piece.end - piece.start));
                    }
                    self.failed(w, span, failure, now);
                }
            },
            Job::Proof => {
                let failure = match answer {
                    Ok(Reply::Bytes(bytes)) => {
                        w.proof = None;
                        w.engine.proved(bytes.iter().all(|byte| *byte == 0));
                        return Ok(());
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(failure) => failure,
                };
                let attempts = w.proof.as_mut().map(|(attempts, _)| attempts);
                let (now, rng) = (self.world.now, &mut self.world.rng);
                match attempts.map(|a| a.failed(Operation::Read, &failure, true, now, rng)) {
                    Some(Next::Again(wait)) => w.proof_at = Some(now + wait),
                    Some(Next::GaveUp) => {
                        w.proof = None;
                        w.engine.unproved(failure);
                    }
                    Some(Next::Refused | Next::Unclear) | None => {
                        w.proof = None;
                        w.engine.proved(false);
                    }
                }
            }
            Job::Probe => {
                w.goods += u64::from(answer.is_ok());
                w.engine.probed(answer.map(|_| ()), now);
            }
            Job::Look => w.engine.looked(None),
        }
        Ok(())
    }

    /// What the checks conclude from a failure.
    fn heard(&mut self, w: &mut Work, failure: &Failure, is_small: bool, now: Duration) {
        let Failure::Refused(refusal) = failure else {
            return;
        };
        if let (429 | 503, Some(after)) = (refusal.status, refusal.retry_after) {
            w.not_before = w.not_before.max(now + after);
        }
        let is_too_new = refusal.status == 404 && now < 60 * S;
        // If the size was refused, smaller pieces are tried.
        let is_final = !is_too_new && (is_small || !failure.is_about_size());
        if classify_known(Operation::Write, failure) == Class::Permanent && is_final {
            w.refused = true;
        }
    }

    fn failed(&mut self, w: &mut Work, span: Span, failure: Failure, now: Duration) {
        self.ledger.failures += 1;
        let (before, limits) = (w.engine.limit(), w.engine.limits());
        let class = classify_known(Operation::Write, &failure);
        let (_, requests) = w.attempts.remove(&span.index).unwrap_or_else(no_attempt);
        // Part of the chunk got through, which ends an outage.
        let has_advanced = requests.advanced_bytes >= LEAST_BYTES;
        w.engine.attempted(span.index, &requests, Err(failure), now);
        let after = w.engine.limit();
        if class == Class::Busy && before > 1 && after == 1 {
            w.one_writer_known = true;
        }
        self.check_limit(w);
        if w.engine.ending().is_some() {
            return;
        }
        // The failure of a chunk that was sent before the last reduction is no reason for another
        // one. The same holds for chunks sent before a good answer, because that may have ended an
        // outage.
        let is_new = w.then.remove(&span.index) == Some((w.falls, w.goods));
        let is_trouble = matches!(class, Class::Transient | Class::Throttle | Class::Busy);
        let is_about_size = has_advanced || w.engine.limits() != limits;
        w.goods += u64::from(has_advanced);
        if is_trouble && !is_about_size {
            assert!(
                after <= before,
                "{class:?} and {after} workers, not {before}"
            );
            let falls = is_new && before > 1;
            assert!(
                !falls || after < before,
                "{class:?} and still {after} workers"
            );
        }
        if after < before {
            w.falls += 1;
            self.ledger.falls += 1;
        }
    }

    fn check_limit(&self, w: &Work) {
        let (limit, jobs) = (w.engine.limit(), self.scenario.jobs);
        assert!((1..=jobs).contains(&limit), "{limit} workers of {jobs}");
    }

    /// Mirrors `ImageTarget::put`.
    fn put(&mut self, w: &mut Work, span: Span, bytes: &[u8]) {
        w.window += 1;
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        if let Some(part) = &mut self.disk.part
            && !(is_zero && w.leave_zeros)
        {
            part.write(span.offset as usize, bytes);
        }
    }

    /// Mirrors `Upload::settled` and `Download::settled`.
    fn settled(&mut self, w: &mut Work, span: Span) -> Result<(), End> {
        self.note(w, self.done(span.index))
    }

    fn bytes_of(&self, index: u64) -> (Span, &[u8]) {
        let Some(span) = self.scenario.plan.span(index) else {
            panic!("chunk {index} is none");
        };
        let range = span.offset as usize..span.end() as usize;
        (span, &self.scenario.source[range])
    }

    fn done(&self, index: u64) -> Record {
        let (span, bytes) = self.bytes_of(index);
        Record::Done {
            index,
            len: span.len as u32,
            digest: ChunkDigest::of(bytes),
        }
    }

    /// Mirrors `Note::unsynced`.
    fn unsynced(&self, index: u64) -> Record {
        let (span, bytes) = self.bytes_of(index);
        Record::Written {
            index,
            len: span.len as u32,
            proof: Proof::Blocks(data_blocks(bytes, span.offset)),
        }
    }

    /// Mirrors `download::check_earlier::take_unsynced`.
    fn take_unsynced(&self, state: &mut State) -> Vec<u64> {
        if state.page_cache() != Some(self.disk.page_cache()) {
            return Vec::new();
        }
        let part = self.disk.part.as_ref().map_or(&[][..], SimFile::bytes);
        let settled = state.settled();
        let written = std::mem::take(&mut state.written);
        let is_there = |(index, (_, proof)): &(u64, (u32, Proof))| {
            let (span, _) = self.bytes_of(*index);
            let bytes = &part[span.offset as usize..span.end() as usize];
            !settled.contains(index) && *proof == Proof::Blocks(data_blocks(bytes, span.offset))
        };
        let taken = written.into_iter().filter(is_there);
        let taken: Vec<_> = taken.map(|(index, _)| index).collect();
        state
            .done
            .extend(taken.iter().map(|index| *index..index + 1));
        taken
    }

    /// Mirrors `Shell::report`.
    fn report(&mut self, w: &mut Work) -> Result<(), End> {
        self.serve(w);
        for chunks in w.engine.take_skipped() {
            self.note(
                w,
                Record::Holes {
                    first: chunks.start,
                    count: chunks.end - chunks.start,
                },
            )?;
        }
        Ok(())
    }

    /// Mirrors `Download::serve`.
    fn serve(&mut self, w: &mut Work) {
        let more = w.engine.limit().saturating_sub(w.served);
        w.window += 2 * more;
        w.served += more;
        self.ledger.most_workers = self.ledger.most_workers.max(w.served);
    }

    /// Mirrors `Keeper::note`, and `Shell::fail` where that fails.
    fn note(&mut self, w: &mut Work, record: Record) -> Result<(), End> {
        if w.keeper_failed {
            w.local_error = true;
            w.engine.image_failed();
            return Ok(());
        }
        // As `Writing::run`.
        let at_once = match (self.scenario.direction, &record) {
            (Direction::Upload, record) => Some(record.clone()),
            (_, Record::Done { index, .. }) => Some(self.unsynced(*index)),
            _ => None,
        };
        if let Some(record) = at_once {
            match self.write(&mut w.journal, &[record]) {
                Err(End::Error(_)) => w.keeper_failed = true,
                other => other?,
            }
        }
        if w.batch.is_empty() {
            w.batch_until = self.world.now + KEEPER_WAIT;
        }
        w.batch.push(record);
        Ok(())
    }

    fn keep_if_due(&mut self, w: &mut Work) -> Result<(), End> {
        let is_chunk = |record: &&Record| matches!(record, Record::Done { .. });
        let chunks = w.batch.iter().filter(is_chunk).count();
        let is_due = chunks >= KEEPER_SMALL || self.world.now >= w.batch_until;
        if w.batch.is_empty() || !is_due {
            return Ok(());
        }
        match self.keep(w) {
            Err(End::Error(_)) => w.keeper_failed = true,
            other => other?,
        }
        Ok(())
    }

    /// Mirrors `journal::keeper::keep`: first the data that the records are about is synced, and
    /// then the records are written.
    fn keep(&mut self, w: &mut Work) -> Result<(), End> {
        if w.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut w.batch);
        if self.scenario.direction == Direction::Download {
            self.sync_data(&mut w.journal)?;
            self.write(&mut w.journal, &batch)?;
        }
        // The records count from the end of the sync, though the process may be killed before it
        // learns about that.
        self.sync(&mut w.journal)?;
        for record in batch {
            match record {
                Record::Done { index, .. } => _ = self.ledger.synced.insert(index),
                Record::Holes { first, count } => self.ledger.synced.extend(first..first + count),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// The user starts over, or the image is gone, so nothing that was recorded counts.
    fn forget(&mut self) {
        self.synced.clear();
        self.written.clear();
    }

    /// Called after a loss of power or a failed sync: only synced records still count.
    pub fn lose_what_was_not_synced(&mut self) {
        self.exposed += self.written.difference(&self.synced).count() as u64;
        self.written.clone_from(&self.synced);
    }
}

/// Fails the run: a chunk without an attempt got an answer.
fn no_attempt() -> (Limits, Requests) {
    panic!("no such attempt")
}

fn name(call: &Call) -> String {
    match call {
        Call::Create { .. } => "create".into(),
        Call::List => "list".into(),
        Call::Info(_) => "info".into(),
        Call::Write { offset, .. } => format!("write {offset}"),
        Call::Read { offset, .. } => format!("read {offset}"),
    }
}

/// The plan of an image.
pub fn plan(size: usize, chunk: u64) -> Plan {
    Plan::new(
        size as u64,
        NonZeroU64::new(chunk).unwrap_or(NonZeroU64::MIN),
    )
}
