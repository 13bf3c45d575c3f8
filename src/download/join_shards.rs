//! Completes a download by several machines: checks that all shards are complete and that the file
//! matches the drive, and then gives the file its name.

use std::path::{Path, PathBuf};

use rangemap::RangeSet;

use super::begin::staged;
use super::check_earlier::Recheck;
use super::drive_unchanged::{
    allow_changes, check_same_drive, check_still, look, warn_of_condition,
};
use super::options::{DownloadInterrupted, DownloadOptions, Downloaded};
use super::sink::digest_of;
use crate::advice::Remedy;
use crate::amounts::counted;
use crate::api::Client;
use crate::content::set_of;
use crate::driver::blocking::blocking;
use crate::driver::session::{Ended, gaps, warn};
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::with_suffix;
use crate::image::{ImageTarget, TargetFormat};
use crate::journal::{Journal, State};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::Plan;
use crate::shard::{Shard, missing};
use crate::verify::read_back::Passed;
use crate::verify::read_back::{Again, Digests, Local, ReadFrom, Sampler, verify};
use crate::verify::sample_places::HolePlaces;
use openhosting_base::advice;

/// The shards of a download, and where they wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// How many there are.
    pub count: u32,
    /// The file that they wrote to, by its final name.
    pub path: PathBuf,
    /// Whether an existing file of that name may be overwritten.
    pub force: bool,
}

impl Shards {
    /// The path of the journal of one shard, beside the file.
    pub fn journal(path: &Path, shard: Shard) -> PathBuf {
        with_suffix(
            path,
            &format!(".{}-of-{}.ohj", shard.index(), shard.count()),
        )
    }
}

/// Gives the file its name if every shard is complete, all are of this drive in its current state,
/// and a sample of the file (or all of it, as [`DownloadOptions::verify`] says) matches the drive.
/// Removes their journals.
///
/// # Errors
/// [`DownloadInterrupted`], with the reason. Nothing is lost: the same call succeeds once the
/// missing shards were run.
pub async fn join_download(
    client: &Client,
    shards: Shards,
    options: &DownloadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
) -> Result<Downloaded, DownloadInterrupted> {
    let mut rng = fastrand::Rng::new();
    let info = stop.unless_asked(look(client, options));
    let info = options.patience.watching(monitor, info).await?;
    warn_of_condition(&info, options, monitor);
    let plan = Plan::new(info.size, options.chunk);
    let (force, count) = (shards.force, shards.count);
    let (target, journals) = blocking(move || opened(&shards, &plan)).await?;
    let of_journals = journals
        .iter()
        .flat_map(|(journal, _)| journal.weaknesses());
    warn(target.weaknesses().iter().chain(of_journals), monitor);
    for (_, state) in &journals {
        check_same_drive(state, options, &info)?;
    }
    monitor.event(&Event::Started {
        chunks: Some(0),
        chunk_bytes: plan.chunk_bytes(),
        offset: 0,
        bytes: Some(0),
        earlier_bytes: plan.size(),
    });
    let sampler = Sampler::new(options.verify, &plan, rng.u64(..), Digests::Unwanted, true);
    let recheck = Recheck {
        plan: &plan,
        sampler: &sampler,
        stop: &stop,
    };
    let (ended, holes) = recheck_shards(recheck, journals, &target, count, monitor).await?;
    let mut hole_places = HolePlaces::new(rng.u64(..));
    for chunks in holes.iter() {
        hole_places.hole(plan.bytes_of(chunks));
    }
    sampler.look_into(hole_places.take());
    let local = Local::Again(Again {
        disk: target.to_disk(TargetFormat::Raw)?.into(),
        is_image: false,
        plan,
        base: 0,
        chunks: set_of(0..plan.count()),
        holes,
    });
    let from = ReadFrom {
        client,
        drive: options.drive,
        open: 1,
        jobs: options.jobs.get(),
        patience: &options.patience,
        passed: Passed::default(),
    };
    let verified = verify(from, &sampler, local, monitor, stop.clone()).await;
    let verified = allow_changes(verified, client, options, &info, monitor).await;
    let verified = verified.map_err(with_advice)?;
    let check = stop.unless_asked(check_still(client, options, &info));
    options.patience.watching(monitor, check).await?;
    let is_wanted = options.checksum;
    let (checksum, weaknesses) = blocking(move || {
        let handle = is_wanted.then(|| target.handle()).transpose()?;
        let digest = handle.as_ref().map(digest_of).transpose()?;
        Ok((digest, target.publish(force)?))
    })
    .await?;
    warn(&weaknesses, monitor);
    Ok(Downloaded {
        progress: Progress::default(),
        verified,
        checksum,
        journal: Ended::of(ended),
    })
}

/// Advice for shards that do not match the drive.
fn with_advice(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Integrity => error.hint_to(advice![
            "Run all shards again with ",
            Remedy::Restart,
            ", and nothing may write to the drive",
        ]),
        _ => error,
    }
}

/// Reads a sample of what the shards wrote again. Returns their journals, and the chunks that are
/// holes.
///
/// # Errors
/// [`ErrorKind::Unavailable`] if a shard has to run again; errors of reading.
async fn recheck_shards(
    recheck: Recheck<'_>,
    journals: Vec<(Journal, State)>,
    target: &ImageTarget,
    count: u32,
    monitor: &mut dyn Monitor,
) -> Result<(Vec<Journal>, RangeSet<u64>)> {
    let mut holes = RangeSet::new();
    let (mut ended, mut torn) = (Vec::new(), Vec::new());
    for (index, (mut journal, mut state)) in (1..).zip(journals) {
        if !recheck.sampler.is_off() {
            let image = target.to_disk(TargetFormat::Raw)?;
            let wrong;
            (journal, wrong) = recheck.check_journal(journal, &mut state, image).await?;
            if wrong > 0 {
                let chunks = counted(wrong, "chunk");
                monitor.warn(format!("What shard {index} wrote has changed in {chunks}"));
                torn.push(index);
            }
        }
        holes.extend(state.holes);
        ended.push(journal);
    }
    match torn.is_empty() {
        true => Ok((ended, holes)),
        false => Err(missing(&torn, count)),
    }
}

/// Opens the file that the shards wrote to, and their journals. Blocks.
fn opened(shards: &Shards, plan: &Plan) -> Result<(ImageTarget, Vec<(Journal, State)>)> {
    let (path, force) = (&shards.path, shards.force);
    let target = ImageTarget::resume(path, plan.size(), force, TargetFormat::Raw)?;
    let target = target.ok_or_else(|| {
        let what = format!("No shard has begun {}", path.display());
        Error::new(ErrorKind::Unavailable, what).hint_to("Run the shards first")
    })?;
    let journals = journals(shards, plan, &target)?;
    Ok((target, journals))
}

/// Opens the journals of all shards; fails unless each is complete. Blocks.
fn journals(shards: &Shards, plan: &Plan, target: &ImageTarget) -> Result<Vec<(Journal, State)>> {
    let file = staged(plan.size(), target.inode()?);
    let (mut done, mut open) = (Vec::new(), Vec::new());
    for index in 1..=shards.count {
        let Some(shard) = Shard::new(index, shards.count) else {
            continue;
        };
        match Journal::open(&Shards::journal(&shards.path, shard))? {
            Some((journal, replay))
                if replay.header.source.as_ref() == Some(&file)
                    && is_done(shard, plan, replay.header.chunk, &replay.state) =>
            {
                done.push((journal, replay.state));
            }
            _ => open.push(index),
        }
    }
    match open.is_empty() {
        true => Ok(done),
        false => Err(missing(&open, shards.count)),
    }
}

/// Whether a shard has settled its whole part.
fn is_done(shard: Shard, plan: &Plan, chunk: u64, state: &State) -> bool {
    let mut settled = state.settled();
    settled.extend(shard.others(plan.count()));
    chunk == plan.chunk_bytes() && gaps(plan, 0, &settled).is_empty()
}
