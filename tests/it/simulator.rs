//! Whole transfers in virtual time, with all kinds of faults, each determined by one seed.
//!
//! ```sh
//! cargo test --test it simulator                          # 500 seeds
//! OH_SEEDS=50000 cargo test --test it simulator           # the longer run
//! OH_SEED=123 cargo test --test it simulator -- --nocapture  # one, with a trace
//! ```
//!
//! The real code makes the decisions: the engine, the creation of a drive, and the bytes of the
//! journal. Only the code that acts, `src/transfer` and `journal::Keeper`, is replaced by `client`,
//! which performs the same steps in the same order. docs/dev/reliability.md lists what is checked.

#![allow(unreachable_pub)]

mod client;
mod disk;
mod world;

use std::time::Duration;

use openhosting::journal::Direction;
use rangemap::RangeSet;

use client::{Client, Disk, LEAST_BYTES, Ledger, Outcome, Scenario, plan};
use world::{S, World};

/// Runs with faults. The runs after these have no faults and must succeed.
const FAULTY_RUNS: u32 = 10;

/// Prints, when a test fails, how to repeat the run.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed}; again with: OH_SEED={seed} cargo test --test it simulator -- --nocapture"
            );
        }
    }
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

#[test]
fn every_seed_ends_with_the_same_bytes() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let (seeds, trace) = match number("OH_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (0..number("OH_SEEDS").unwrap_or(500), false),
    };
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

/// The image: chunks of data, chunks of zeros and holes. Its size is close to a multiple of the
/// size of a chunk.
fn image(world: &mut World) -> (Vec<u8>, u64, RangeSet<u64>) {
    let rng = &mut world.rng;
    let chunk = rng.u64(1..=48);
    let chunks = if rng.u8(..4) == 0 {
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
    let mut holes = RangeSet::new();
    let (data, hole) = (rng.u8(..=10), rng.u8(..=10));
    for index in 0..size.div_ceil(chunk) {
        let at = (index * chunk) as usize..((index + 1) * chunk).min(size) as usize;
        if rng.u8(..10) < data {
            source[at].fill_with(|| rng.u8(..));
        } else if rng.u8(..10) < hole {
            holes.insert(index..index + 1);
        }
    }
    (source, chunk, holes)
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

fn play(seed: u64, trace: bool, seen: &mut Seen) {
    let mut world = World::new(fastrand::Rng::with_seed(seed), trace);
    let (source, chunk, holes) = image(&mut world);
    let direction = if world.rng.u8(..5) < 3 {
        Direction::Upload
    } else {
        Direction::Download
    };
    world.garbage = world.rng.u8(..3) == 0;
    world.one_writer = world.rng.u8(..3) == 0;
    world.drops_keys = world.rng.u8(..6) == 0;
    world.is_slow_to_know = world.rng.u8(..4) == 0;
    if world.rng.u8(..4) == 0 {
        let most = |rng: &mut fastrand::Rng| rng.usize(LEAST_BYTES as usize..30);
        let cut = world.rng.bool().then(|| most(&mut world.rng));
        match direction {
            Direction::Upload => world.bears.write = cut,
            Direction::Download | Direction::DownloadAsQcow2 => world.bears.read = cut,
        }
        world.bears.refused = world.rng.bool().then(|| most(&mut world.rng));
    }
    let existing = match direction {
        Direction::Download | Direction::DownloadAsQcow2 => Some(world.add_drive(source.clone())),
        Direction::Upload if world.rng.u8(..4) == 0 => {
            let mut old = source.clone();
            old.fill_with(|| world.rng.u8(..));
            old.extend([7; 5]);
            Some(world.add_drive(old))
        }
        Direction::Upload => None,
    };
    if world.rng.u8(..8) > 0 {
        world.faults.per_mille = [5, 50, 300, 900][world.rng.usize(..4)];
        world.faults.left = world.rng.u32(..80);
        world.faults.outages = windows(&mut world, 2, 1200 * S);
        world.faults.storms = windows(&mut world, 1, 600 * S);
        world.faults.busy = windows(&mut world, 1, 700 * S);
        world.faults.deaths = windows(&mut world, 2, 60 * S);
        if world.rng.u8(..8) == 0 {
            let status = [302, 400, 401, 402, 403, 413, 501, 507][world.rng.usize(..8)];
            world.faults.refusal = Some((world.rng.u64(1..60), status));
        }
        world.plan_deaths();
    }
    let scenario = Scenario {
        direction,
        plan: plan(source.len(), chunk),
        source,
        holes,
        jobs: world.rng.u32(1..=12),
        max_outage: [60 * S, 900 * S][world.rng.usize(..2)],
        existing,
    };
    let mut disk = Disk::default();
    if world.rng.u8(..4) == 0 {
        disk.eio_per_mille = world.rng.u32(..200);
    }
    let crashes = world.rng.bool();
    let mut ledger = Ledger::default();
    let (mut restart, mut doubts) = (false, 0);
    let mut run = 0;
    loop {
        run += 1;
        assert!(run < FAULTY_RUNS + 6, "no run without faults gets through");
        let is_calm = run > FAULTY_RUNS;
        if is_calm {
            world.calm();
            disk.eio_per_mille = 0;
        }
        let events = scenario.plan.count() * 4 + 20;
        let at = |rng: &mut fastrand::Rng, is_so: bool| is_so.then(|| rng.u64(1..=events));
        let is_killed = crashes && !is_calm && world.rng.u8(..3) > 0;
        let crash_at = at(&mut world.rng, is_killed);
        let is_stopped = !is_calm && world.rng.u8(..10) == 0;
        let stop_at = at(&mut world.rng, is_stopped);
        world.say(|| format!("--- run {run}, killed at {crash_at:?}, stopped at {stop_at:?}"));
        let mut client = Client {
            scenario: &scenario,
            world: &mut world,
            disk: &mut disk,
            ledger: &mut ledger,
            crash_at,
            stop_at,
            events: 0,
            has_answered: false,
        };
        let outcome = client.run(restart);
        world.say(|| format!("--- {outcome:?}"));
        restart = false;
        seen.runs += 1;
        match outcome {
            Outcome::Complete => {
                seen.first_run += u64::from(run == 1);
                break;
            }
            Outcome::Doubt => {
                assert!(world.drops_keys, "doubt though the cloud keeps the token");
                seen.doubts += 1;
                doubts += 1;
                // The user may try again, which must not create a second drive either.
                if doubts > 2 {
                    break;
                }
            }
            Outcome::Crashed => {
                seen.crashes += 1;
                if world.rng.bool() {
                    power_loss(&mut disk, &mut ledger, &mut world);
                }
                if disk.published.is_some() {
                    break;
                }
            }
            Outcome::Restart => {
                seen.restarts += 1;
                restart = true;
            }
            Outcome::Ended(why) => {
                assert!(!is_calm, "without faults it ends with {why}");
                seen.ended += 1;
                if world.rng.u8(..4) == 0 {
                    power_loss(&mut disk, &mut ledger, &mut world);
                }
            }
        }
        // The time until the next run. By then `info` knows each drive that was created. If it does
        // not, the run ends with the error that the drive is gone.
        world.now += world.rng.u32(4..60) * S;
    }
    check(&scenario, &mut world, &disk, &ledger);
    seen.requests += world.requests;
    seen.resent += ledger.resent;
    seen.falls += ledger.falls;
    seen.pieces += ledger.pieces;
    seen.most_workers = seen.most_workers.max(ledger.most_workers);
}

fn power_loss(disk: &mut Disk, ledger: &mut Ledger, world: &mut World) {
    world.say(|| "--- power loss".into());
    disk.boots += 1;
    ledger.lose_what_was_not_synced();
    for file in [&mut disk.journal, &mut disk.part].into_iter().flatten() {
        file.power_loss(&mut world.rng);
    }
}

/// What must hold at the end, after all late deliveries.
fn check(scenario: &Scenario, world: &mut World, disk: &Disk, ledger: &Ledger) {
    world.drain();
    assert!(world.created <= 1, "{} drives were made", world.created);
    // A chunk is sent for the first time, or after a failure, or because it was in flight or not in
    // the journal when a run ended.
    let most = scenario.plan.count() + ledger.failures + ledger.exposed;
    assert!(
        ledger.sends <= most,
        "{} sends, at most {most} explained",
        ledger.sends
    );
    if let Some(published) = &disk.published {
        assert!(
            published.bytes() == scenario.source,
            "published and not the same"
        );
    }
    if let (Direction::Upload, Some(drive)) = (scenario.direction, world.drives.last())
        && disk.journal.is_none()
    {
        let len = scenario.source.len();
        assert!(
            drive.bytes[..len] == scenario.source,
            "a late delivery broke the drive"
        );
        if scenario.existing.is_some() {
            assert!(drive.bytes[len..] == [7; 5], "written beyond the image");
        }
    }
}
