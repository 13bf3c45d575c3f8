//! The scenario of a seed, its runs, and what must hold after each of them.

use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::disk::content;
use super::world::Drive;
use super::{LEAST_BYTES, S, Simulation, World, go_on, with};
use crate::advice::{Advice, Remedy};
use crate::api::{Client, ClientConfig};
use crate::codec::{Compression, Level};
use crate::drive::{DriveId, DriveSpec, READY};
use crate::error::{Error, ErrorKind};
use crate::image::{Image, part_of};
use crate::journal::replay;
use crate::monitor::Silent;
use crate::plan::Plan;
use crate::transfer::{
    Destination, DownloadOptions, JournalOptions, Patience, Stop, Target, UploadOptions, Verify,
    download, stop_channel, upload,
};

/// Runs with faults. The runs after these have no faults and must succeed.
const FAULTY_RUNS: u32 = 10;
/// No run takes as long.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What stays the same in every run.
struct Scenario {
    is_upload: bool,
    plan: Plan,
    source: Vec<u8>,
    jobs: NonZeroU32,
    max_outage: Duration,
    verify: Verify,
    level: Level,
    /// The drive that the user names; `None` for a new one.
    existing: Option<DriveId>,
    /// The names of its files.
    directory: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
enum Outcome {
    Complete,
    Crashed,
    Doubt,
    Ended(String),
    /// The user has to start over.
    Restart,
}

/// What happened with all seeds, so that a simulator that no longer causes faults is noticed.
#[derive(Debug, Default)]
struct Seen {
    runs: u64,
    crashes: u64,
    requests: u64,
    resent: u64,
    doubts: u64,
    restarts: u64,
    ended: u64,
    first_run: u64,
    falls: u64,
    most_workers: u32,
    pieces: u64,
}

/// Prints, when a test fails, how to repeat the run.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed}; again with: OH_SEED={seed} cargo test --lib simulator -- --nocapture"
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_seed_ends_with_the_same_bytes() {
    match number("OH_SEED") {
        Some(seed) => play_all(seed..seed + 1, true),
        None => play_all(0..500, false),
    }
}

#[test]
#[ignore = "takes an hour"]
fn every_one_of_many_seeds_ends_with_the_same_bytes() {
    play_all(0..number("OH_SEEDS").unwrap_or(50_000), false);
}

#[test]
fn a_seed_determines_everything() {
    for seed in 0..20 {
        let (mut once, mut again) = (Seen::default(), Seen::default());
        play(seed, false, &mut once);
        play(seed, false, &mut again);
        assert_eq!(format!("{once:?}"), format!("{again:?}"), "seed {seed}");
    }
}

fn play_all(seeds: std::ops::Range<u64>, trace: bool) {
    let all = seeds.end - seeds.start;
    let mut seen = Seen::default();
    for seed in seeds {
        let _replay = Replay(seed);
        play(seed, trace, &mut seen);
    }
    eprintln!("{all} seeds: {seen:?}");
    if all >= 500 {
        assert!(seen.crashes > all / 4 && seen.ended > all / 20, "{seen:?}");
        assert!(seen.first_run > all / 10 && seen.doubts > 0, "{seen:?}");
        assert!(seen.falls > all / 4 && seen.most_workers >= 8, "{seen:?}");
        assert!(seen.pieces > all, "{seen:?}");
    }
}

/// The image: chunks of data and chunks of zeros. Its size is close to a multiple of the size of a
/// chunk. Also returns whether the file has holes where it can.
fn image(rng: &mut fastrand::Rng) -> (Vec<u8>, u64) {
    // A file can have holes only of whole blocks.
    let chunk = match rng.u8(..6) {
        0 => 4096,
        _ => rng.u64(1..=48),
    };
    let chunks = if rng.u8(..4) == 0 && chunk < 4096 {
        rng.u64(60..300)
    } else {
        rng.u64(1..40)
    };
    let size = match rng.u8(..4) {
        0 => chunks * chunk,
        1 => chunks * chunk + 1,
        2 => (chunks * chunk - 1).max(1),
        _ => rng.u64(1..=chunks * chunk),
    };
    let mut source = vec![0; size as usize];
    let data = rng.u8(..=10);
    for chunk in source.chunks_mut(chunk as usize) {
        if rng.u8(..10) < data {
            chunk.fill_with(|| rng.u8(..));
        }
    }
    (source, chunk)
}

/// Periods in which something is wrong.
fn windows(world: &mut World, most: u32, longest: Duration) -> Vec<(Duration, Duration)> {
    let rng = &mut world.rng;
    let count = rng.u32(..=most);
    let spread = [20_000, 2_000_000][rng.usize(..2)];
    (0..count)
        .map(|_| {
            let from = Duration::from_millis(rng.u64(..spread));
            (from, from + longest.mul_f64(rng.f64().powi(3)))
        })
        .collect()
}

/// What may go wrong.
fn faults(world: &mut World, is_upload: bool, is_small: bool) {
    world.garbage = world.rng.u8(..3) == 0;
    world.one_writer = world.rng.u8(..3) == 0;
    world.drops_keys = world.rng.u8(..6) == 0;
    world.is_slow_to_know = world.rng.u8(..4) == 0;
    if world.rng.u8(..4) == 0 && is_small {
        let most = |rng: &mut fastrand::Rng| rng.usize(LEAST_BYTES as usize..30);
        let cut = world.rng.bool().then(|| most(&mut world.rng));
        match is_upload {
            true => world.bears.write = cut,
            false => world.bears.read = cut,
        }
        world.bears.refused = world.rng.bool().then(|| most(&mut world.rng));
    }
    if world.rng.u8(..8) > 0 {
        world.faults.per_mille = [5, 50, 300, 900][world.rng.usize(..4)];
        world.faults.left = world.rng.u32(..80);
        world.faults.outages = windows(world, 2, 1200 * S);
        world.faults.storms = windows(world, 1, 600 * S);
        world.faults.busy = windows(world, 1, 700 * S);
        world.faults.deaths = windows(world, 2, 60 * S);
        if world.rng.u8(..8) == 0 {
            let status = [302, 400, 401, 402, 403, 413, 501, 507][world.rng.usize(..8)];
            world.faults.refusal = Some((world.rng.u64(1..60), status));
        }
        world.plan_deaths();
    }
}

impl Scenario {
    fn new(world: &mut World, directory: &Path) -> Self {
        let (source, chunk) = image(&mut world.rng);
        let is_upload = world.rng.u8(..5) < 3;
        faults(world, is_upload, chunk < 4096);
        let existing = match is_upload {
            false => Some(world.add_drive(source.clone())),
            true if world.rng.u8(..4) == 0 => {
                let mut old = source.clone();
                old.fill_with(|| world.rng.u8(..));
                old.extend([7; 5]);
                Some(world.add_drive(old))
            }
            true => None,
        };
        let rng = &mut world.rng;
        let scenario = Self {
            is_upload,
            plan: Plan::new(source.len() as u64, NonZeroU64::new(chunk).unwrap()),
            source,
            jobs: NonZeroU32::new(rng.u32(1..=12)).unwrap(),
            max_outage: [60 * S, 900 * S][rng.usize(..2)],
            verify: [Verify::None, Verify::Sample, Verify::Full][rng.usize(..3)],
            level: Level::new(rng.u8(..3)).unwrap(),
            existing,
            directory: directory.to_owned(),
        };
        if is_upload {
            scenario.write_image();
        }
        scenario
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What this machine stores of a transfer.
    fn files(&self) -> [PathBuf; 3] {
        [self.path("journal"), self.part(), self.path("copy")]
    }

    fn part(&self) -> PathBuf {
        part_of(&self.path("copy"))
    }

    /// The image, with holes where it is zero.
    fn write_image(&self) {
        let file = File::create(self.path("image")).unwrap();
        file.set_len(self.source.len() as u64).unwrap();
        for (at, block) in self.source.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at as u64 * 4096).unwrap();
            }
        }
    }

    /// One run, as if the user started it.
    fn run(&self, restart: bool) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build();
        let done = runtime.unwrap().block_on(async {
            let (handle, stop) = stop_channel();
            with(|sim| sim.run_begins(handle));
            tokio::select! {
                biased;
                () = go_on() => None,
                done = timeout(FAR, self.transfer(restart, stop)) => {
                    Some(done.expect("the run waits and nothing is under way"))
                }
            }
        });
        with(|sim| {
            sim.set_time();
            sim.began = None;
            sim.ledger.run_ended();
        });
        match done {
            Some(Ok(())) => Outcome::Complete,
            _ if with(|sim| sim.is_killed) => Outcome::Crashed,
            Some(Err(error)) => self.ended(&error),
            None => unreachable!(),
        }
    }

    fn ended(&self, error: &Error) -> Outcome {
        let line = error.chain();
        let mut remedies = error.hint().into_iter().flat_map(Advice::remedies);
        let is = |kind| error.kind() == kind;
        assert!(!is(ErrorKind::Bug) && !is(ErrorKind::Integrity), "{line}");
        if is(ErrorKind::Conflict) && line.contains("any of these drives may be the one") {
            return Outcome::Doubt;
        }
        if !self.is_upload
            && is(ErrorKind::Local)
            && remedies.any(|remedy| *remedy == Remedy::Restart)
        {
            return Outcome::Restart;
        }
        Outcome::Ended(line)
    }

    async fn transfer(&self, restart: bool, stop: Stop) -> Result<(), Error> {
        let endpoint = "http://127.0.0.1:1/".parse()?;
        let credentials = crate::Credentials::new("u", "k")?;
        let client = Client::new(endpoint, &credentials, &ClientConfig::default())?;
        let journal = JournalOptions {
            path: Some(self.path("journal")),
            endpoint: "sim".into(),
            restart,
            changed_ok: false,
        };
        let patience = Patience::new(self.max_outage);
        let chunk = NonZeroU64::new(self.plan.chunk_bytes()).unwrap();
        if self.is_upload {
            let target = match self.existing {
                Some(drive) => Target::Existing(drive),
                None => Target::New(DriveSpec {
                    name: "simulated".into(),
                    size: self.source.len() as u64,
                    tier: "disk".into(),
                    shared: false,
                }),
            };
            let options = UploadOptions {
                chunk,
                jobs: self.jobs,
                compression: Compression::Fixed(self.level),
                patience,
                journal,
                verify: self.verify,
                ..UploadOptions::to(target)
            };
            let image = Image::open_raw(&self.path("image"))?;
            let done = upload(&client, image, &options, &mut Silent, stop).await;
            let done = done.map_err(|interrupted| interrupted.error)?;
            self.check_whole(Some(done.drive));
            // Of a drive that existed before, the beginning of the mark may arrive late.
            let state = with(|sim| {
                sim.world
                    .drive(done.drive)
                    .unwrap()
                    .state()
                    .map(str::to_owned)
            });
            let is_ready = state.as_deref() == Some(READY);
            assert!(
                is_ready || self.existing.is_some(),
                "complete, and {state:?}"
            );
        } else {
            let options = DownloadOptions {
                chunk,
                jobs: self.jobs,
                patience,
                journal,
                verify: self.verify,
                ..DownloadOptions::of(self.existing.unwrap())
            };
            let destination = Destination::File {
                path: self.path("copy"),
                force: false,
            };
            let done = download(&client, destination, &options, &mut Silent, stop).await;
            done.map_err(|interrupted| interrupted.error)?;
            self.check_whole(None);
        }
        Ok(())
    }

    /// Checks everything when the transfer reports that it is complete.
    fn check_whole(&self, drive: Option<DriveId>) {
        assert!(
            self.held(drive).get(..self.source.len()) == Some(&self.source[..]),
            "it is called complete and is not"
        );
    }

    /// What the drive of an upload holds, or the file of a download.
    fn held(&self, drive: Option<DriveId>) -> Vec<u8> {
        if self.is_upload {
            let Some(id) = drive else {
                return Vec::new();
            };
            return with(|sim| match sim.world.drive(id) {
                Some(drive) => drive.bytes.clone(),
                None => panic!("the journal names drive {id}, and there is none"),
            });
        }
        let file = File::open(self.part()).or_else(|_| File::open(self.path("copy")));
        file.map_or_else(|_| Vec::new(), |file| content(&file))
    }

    /// Checks that a drive which is marked as ready holds the image, whatever happened to the run.
    fn check_mark(&self) {
        with(|sim| {
            let ready = |drive: &&Drive| self.is_upload && drive.state() == Some(READY);
            for drive in sim.world.drives.iter().filter(ready) {
                let is_whole = drive.bytes.get(..self.source.len()) == Some(&self.source[..]);
                assert!(is_whole, "ready, and it does not hold the image");
            }
        });
    }

    /// Checks before a run that what the surviving journal says is true.
    fn check_journal(&self) {
        let (has_part, has_copy) = (self.part().exists(), self.path("copy").exists());
        let is_gone = !self.is_upload && !has_part && !has_copy;
        with(|sim| sim.ledger.may_forget = is_gone);
        let synced = with(|sim| sim.ledger.synced.clone());
        let Ok(bytes) = std::fs::read(self.path("journal")) else {
            assert!(synced.is_empty(), "the journal is lost");
            return;
        };
        let replay = replay(&bytes[..], |_, _, _| {})
            .expect("a header that was synced before anything else is damaged");
        let state = replay.state;
        with(|sim| {
            sim.ledger.is_trusted = state.page_cache().is_some();
            sim.world
                .say(|| format!("damaged {}, {state:?}", replay.is_damaged));
        });
        for index in &synced {
            let kept = state.done.contains(index) || state.holes.contains(index);
            assert!(kept, "the record of chunk {index} was synced and is lost");
        }
        if is_gone || !self.is_upload && state.drive.is_none() {
            assert!(is_gone || synced.is_empty());
            return;
        }
        let held = self.held(state.drive.map(|(id, _)| id));
        if !self.is_upload && held.len() != self.source.len() {
            assert!(synced.is_empty(), "a synced target lost its length");
            return;
        }
        for index in state.settled().into_iter().flatten() {
            let Some(span) = self.plan.span(index) else {
                panic!("a record of chunk {index}, which is none");
            };
            let range = span.offset as usize..span.end() as usize;
            assert!(
                held.get(range.clone()) == Some(&self.source[range]),
                "the journal says chunk {index} is settled, and it is not there"
            );
        }
    }

    /// The kernel may have reused the memory of files that could not be synced. For the journal it
    /// always did, because otherwise a later sync could seem to repair one that failed.
    fn evict(&self) {
        with(|sim| {
            sim.disk.keep(&self.files());
            sim.disk.evict(&self.path("journal"));
            if sim.world.rng.bool() {
                sim.disk.evict(&self.part());
            }
        });
    }

    fn power_loss(&self) {
        with(|sim| {
            sim.world.say(|| "--- power loss".into());
            sim.disk.boots += 1;
            sim.ledger.lose_what_was_not_synced();
            for path in self.files() {
                sim.disk.power_loss(&path, &mut sim.world.rng);
            }
        });
    }

    /// Decides what happens in a run, from outside of it.
    fn prepare(&self, is_calm: bool, crashes: bool) {
        with(|sim| {
            if is_calm {
                sim.world.calm();
                sim.disk.eio_per_mille = 0;
            }
            let events = self.plan.count() * 4 + 20;
            let rng = &mut sim.world.rng;
            let is_killed = crashes && !is_calm && rng.u8(..3) > 0;
            sim.crash_at = is_killed.then(|| rng.u64(1..=events));
            let is_stopped = !is_calm && rng.u8(..10) == 0;
            sim.stop_at = is_stopped.then(|| rng.u64(1..=events));
        });
    }

    /// Runs until a run is complete, or there is nothing more to try.
    fn play(&self, seen: &mut Seen) {
        let crashes = with(|sim| sim.world.rng.bool());
        let (mut restart, mut doubts, mut run) = (false, 0, 0);
        loop {
            run += 1;
            assert!(run < FAULTY_RUNS + 6, "no run without faults gets through");
            let is_calm = run > FAULTY_RUNS;
            self.prepare(is_calm, crashes);
            self.evict();
            if restart {
                with(|sim| sim.ledger.forget());
            }
            self.check_journal();
            self.check_mark();
            with(|sim| {
                let (killed, stopped) = (sim.crash_at, sim.stop_at);
                sim.ledger.may_forget |= restart;
                let line =
                    || format!("--- run {run}, killed at {killed:?}, stopped at {stopped:?}");
                sim.world.say(line);
            });
            let outcome = self.run(restart);
            with(|sim| sim.world.say(|| format!("--- {outcome:?}")));
            restart = false;
            seen.runs += 1;
            match outcome {
                Outcome::Complete => {
                    seen.first_run += u64::from(run == 1);
                    return;
                }
                Outcome::Doubt => {
                    let drops = with(|sim| sim.world.drops_keys);
                    assert!(drops, "doubt though the cloud keeps the token");
                    seen.doubts += 1;
                    doubts += 1;
                    // The user may try again, which must not create a second drive either.
                    if doubts > 2 {
                        return;
                    }
                }
                Outcome::Crashed => {
                    seen.crashes += 1;
                    if with(|sim| sim.world.rng.bool()) {
                        self.power_loss();
                    }
                }
                Outcome::Restart => {
                    seen.restarts += 1;
                    restart = true;
                }
                Outcome::Ended(why) => {
                    assert!(!is_calm, "without faults it ends with {why}");
                    seen.ended += 1;
                    if with(|sim| sim.world.rng.u8(..4) == 0) {
                        self.power_loss();
                    }
                }
            }
            // The time until the next run. By then `info` knows each drive that was created. If it
            // does not, the run ends with the error that the drive is gone.
            with(|sim| sim.world.now += sim.world.rng.u32(4..60) * S);
        }
    }

    /// What must hold at the end, after all late deliveries.
    fn check(&self) {
        with(|sim| {
            let (world, ledger) = (&mut sim.world, &sim.ledger);
            world.drain();
            assert!(world.created <= 1, "{} drives were made", world.created);
            // A chunk is sent for the first time, or after a failure, or because it was in flight
            // or not in the journal when a run ended.
            let most = self.plan.count() + ledger.failures + ledger.exposed;
            assert!(
                ledger.sends <= most,
                "{} sends, at most {most} explained",
                ledger.sends
            );
        });
        if let Ok(published) = std::fs::read(self.path("copy")) {
            assert!(published == self.source, "published and not the same");
        }
        if !self.is_upload || self.path("journal").exists() {
            return;
        }
        with(|sim| {
            let Some(drive) = sim.world.drives.last() else {
                return;
            };
            let (image, rest) = drive.bytes.split_at(self.source.len());
            assert!(image == self.source, "a late delivery broke the drive");
            if self.existing.is_some() {
                assert!(rest == [7; 5], "written beyond the image");
            }
        });
    }
}

fn play(seed: u64, trace: bool, seen: &mut Seen) {
    fastrand::seed(seed);
    let directory = tempfile::tempdir().unwrap();
    fastrand::seed(seed);
    let mut world = World::new(fastrand::Rng::with_seed(seed), trace);
    let scenario = Scenario::new(&mut world, directory.path());
    let mut simulation = Simulation::new(world);
    simulation.jobs = scenario.jobs.get();
    simulation.disk.part = scenario.part();
    if simulation.world.rng.u8(..4) == 0 {
        simulation.disk.eio_per_mille = simulation.world.rng.u32(..200);
    }
    simulation.begin();
    let _end = End;
    scenario.play(seen);
    scenario.check();
    with(|sim| {
        let ledger = &sim.ledger;
        seen.requests += sim.world.requests;
        seen.resent += ledger.resent;
        seen.falls += ledger.falls;
        seen.pieces += ledger.pieces;
        seen.most_workers = seen.most_workers.max(ledger.most_workers);
    });
}

/// Ends the simulation, also after a failure.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        Simulation::end();
    }
}
