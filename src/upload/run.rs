//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use rangemap::RangeSet;

use super::begin::{Begun, begin};
use super::growing_drive::Room;
use super::options::{Interrupted, Resume, Target, UploadOptions, Uploaded};
use super::pace::Pace;
use super::pipeline::{Earlier, Pipeline, PipelineConfig};
use super::send_chunks::Upload;
use super::wire_speed::{Sounding, sound};
use crate::api::Client;
use crate::chunk::RequestSize;
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::driver::blocking::blocking;
use crate::driver::checksum::SourceHash;
use crate::driver::session::{Ended, Session, finish, gaps, refuted};
use crate::driver::shell::Shell;
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Holes, Image, RawImage};
use crate::journal::{Journal, Keeper, State};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;
use crate::policy::{Ending, Engine, EngineConfig, Operation, PiecesConfig};
use crate::shard::Shard;
use crate::verify::early_checks::{CheckFailure, CheckedDrive, EarlyChecks, run_checked};
use crate::verify::read_back::{
    Again, Digests, Expected, Local, ReadFrom, Sampler, ZeroDigests, verify,
};

/// Uploads `image`. It is done when every chunk was confirmed by the endpoint,
/// or is a hole on a drive that is proven to read as zeros there.
///
/// # Errors
/// [`Interrupted`]: why, and where to resume.
pub async fn upload(
    client: &Client,
    image: Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let mut rng = fastrand::Rng::new();
    let (image, are_read) = match options.selection {
        // Whoever made the selection has read the image and decided that.
        Some(_) => (image, false),
        None => decide_holes(image, options.holes(), monitor).await?,
    };
    let begun = begin(client, image, are_read, options, monitor, stop.clone()).await?;
    let mut resume = Resume {
        drive: begun.drive.id,
        offset: 0,
        chunk: begun.first,
        chunks: (!begun.plan.is_endless()).then(|| begun.plan.count()),
        size: (!begun.plan.is_endless()).then(|| begun.plan.size()),
        is_ours: matches!(options.target, Target::New(_)),
        is_journaled: begun.session.journal.is_some(),
    };
    let chunk_bytes = begun.plan.chunk_bytes();
    match send(client, begun, options, monitor, stop, &mut rng, &mut resume).await {
        Ok(uploaded) => Ok(uploaded),
        Err(error) => {
            let offset = resume.chunk.saturating_mul(chunk_bytes);
            resume.offset = offset.min(resume.size.unwrap_or(u64::MAX));
            Err(Interrupted {
                error,
                resume: Some(resume),
            })
        }
    }
}

/// Bytes of this run's part of the image that need not be sent.
fn earlier_bytes(plan: &Plan, shard: Option<Shard>, passed: &RangeSet<u64>, first: u64) -> u64 {
    let mut there = passed.clone();
    if first > 0 {
        there.insert(0..first);
    }
    if let Some(shard) = shard {
        for others in shard.others(plan.count()) {
            there.remove(others);
        }
    }
    there.iter().map(|range| plan.bytes_in(range)).sum()
}

/// Decides how far the holes of the image are believed. Gives it back, and whether what
/// is called a hole is read.
async fn decide_holes(
    image: Image,
    how: Holes,
    monitor: &mut dyn Monitor,
) -> Result<(Image, bool)> {
    let (image, found) = blocking(move || {
        let found = image.decide_holes(how);
        Ok((image, found))
    })
    .await?;
    for hole in &found {
        monitor.event(&Event::Warning(hole.to_string()));
    }
    Ok((image, how == Holes::Read || !found.is_empty()))
}

/// Sends what is missing, reads back what was asked for, and ends the journal.
/// Keeps `resume` true to how far it came.
async fn send(
    client: &Client,
    begun: Begun,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
    rng: &mut fastrand::Rng,
    resume: &mut Resume,
) -> Result<Uploaded> {
    let (plan, mut session, drive) = (begun.plan, begun.session, begun.drive.id);
    let settled = session.state.settled();
    // What is nothing to this run: it is neither sent nor verified.
    let mut others = RangeSet::new();
    if let Some(selection) = &options.selection {
        others.extend(selection.left_out());
    }
    if let Some(shard) = options.shard {
        others.extend(shard.others(plan.count()));
    }
    let mut passed = settled.clone();
    passed.extend(others.clone());
    let todo = gaps(&plan, begun.first, &passed);
    // What is told may be wrong; the end tells.
    let expected = begun
        .image
        .length()
        .expected()
        .map(|size| plan.ending_at(size));
    let so_far = expected.map(|plan| gaps(&plan, begun.first, &passed));
    let sum =
        |of: &dyn Fn(&Range<u64>) -> u64| so_far.as_ref().map(|gaps| gaps.iter().map(of).sum());
    monitor.event(&Event::Started {
        chunks: sum(&|range| range.end - range.start),
        chunk_bytes: plan.chunk_bytes(),
        offset: options.offset,
        bytes: sum(&|range| expected.map_or(0, |plan| plan.bytes_in(range))),
        earlier_bytes: earlier_bytes(
            &expected.unwrap_or(plan),
            options.shard,
            &passed,
            begun.first,
        ),
    });
    let compare = options.compare || session.is_damaged;
    let digests = match session.journal {
        _ if compare => Digests::Whole,
        Some(_) => Digests::Quick,
        None => Digests::Unwanted,
    };
    let late = begun.image.late_notices();
    let again = begun.image.to_disk().map(|disk| Again {
        disk,
        is_image: true,
        plan,
        base: 0,
        chunks: gaps(&plan, begun.first, &others).into_iter().collect(),
        holes: session.state.holes.clone(),
    });
    let seed = rng.u64(..);
    let sampler = Sampler::new(options.verify, &plan, seed, digests, again.is_some());
    let image = look_back(begun.image, &plan, &settled, &sampler).await?;
    let earlier = earlier(&image, &mut session, options).await?;
    let source = match options.sha256 {
        Some(expected) => Some((expected, SourceHash::start(&image)?)),
        None => None,
    };
    let member = image.begin_check();
    let trailer = match &image {
        Image::Stream(stream) => Some(stream.trailer()),
        Image::Raw(_) | Image::Mapped(_) => None,
    };
    let room = plan.is_endless().then(|| {
        let is_ours = matches!(options.target, Target::New(_));
        Room::of(client, &begun.drive, is_ours, &options.patience)
    });
    let engine = Engine::new(EngineConfig {
        plan,
        first: begun.first,
        settled: passed,
        jobs_min: options.jobs_min.get(),
        jobs: options.jobs.get(),
        zeros: begun.zeros,
        operation: Operation::Write,
        is_fresh: begun.is_new,
        max_outage: options.patience.max_outage(),
        round_trip: client.round_trip(),
        pieces: PiecesConfig {
            most: RequestSize {
                body: options.body_bytes_max.map_or(u64::MAX, NonZeroU64::get),
                // Fewer where an earlier run began with larger chunks.
                range: options.chunk.get(),
            },
            ..PiecesConfig::default()
        },
        seed: rng.u64(..),
    });
    let body_bytes_max = options.body_bytes_max.map_or(u64::MAX, NonZeroU64::get);
    let jobs = usize::try_from(options.jobs.get()).unwrap_or(usize::MAX);
    let is_local = client.endpoint().is_loopback();
    let pace = Pace::new(options.compression, jobs, is_local);
    let (image, mut sounding) = match compare {
        // Nothing is written that is there already.
        true => (image, Sounding::default()),
        false => sound(client, drive, image, &plan, &todo, &pace, body_bytes_max).await?,
    };
    // It is one of the requests that the user allows, and more may be sent before it ends.
    if engine.limit().saturating_mul(4) >= options.jobs.get() {
        sounding.end().await;
    }
    let keep = |journal| Keeper::start(journal, None);
    let config = PipelineConfig {
        image,
        plan,
        todo,
        jobs,
        pace,
        checksum: options.checksum,
        earlier,
        selection: options.selection.clone(),
    };
    let early_checks = EarlyChecks::new(&sampler, plan, 0, options.jobs.get(), rng.u64(..));
    if let Some(early_checks) = &early_checks {
        early_checks.settled_before(&settled, &session.state.holes);
    }
    let job = Upload {
        client: client.clone(),
        drive,
        plan,
        pipeline: Pipeline::start(config, &sampler)?,
        bodies: HashMap::new(),
        confirmed: HashMap::new(),
        zeros: HashMap::new(),
        compare,
        keeper: session.journal.take().map(keep).transpose()?,
        early_checks: early_checks.clone(),
        to_verify: sampler.collects().then(Expected::default),
        holes: RangeSet::new(),
        zero_digests: ZeroDigests::default(),
        first: begun.first,
        room,
        waiting: None,
    };
    let mut shell = Shell::new(client.clone(), drive, engine, job, &options.patience);
    let checked = CheckedDrive {
        client,
        drive,
        disk: again.as_ref().map(|again| Arc::clone(&again.disk)),
        is_image: true,
        spare: shell.spare(),
    };
    let ending = run_checked(
        shell.run(monitor, stop.clone()),
        early_checks.as_ref(),
        checked,
    );
    let ending = ending.await;
    match ending {
        Ok(Ending::Complete) => sounding.end().await,
        Ok(_) => {}
        Err(_) => shell.abort(monitor).await,
    }
    let progress = shell.progress();
    resume.chunk = shell.first_open();
    let (outcome, mismatch) = match ending {
        Ok(ending) => (shell.outcome(ending, "write to"), None),
        Err(CheckFailure::Changed(error)) => (Err(error), None),
        Err(CheckFailure::Mismatch(error)) => (Ok(()), Some(error)),
    };
    let mut job = shell.into_job();
    let (plan, room) = (job.plan, job.room.take());
    if !plan.is_endless() {
        resume.chunks = Some(plan.count());
        resume.size = Some(plan.size());
    }
    let (to_verify, holes) = (job.to_verify.unwrap_or_default(), job.holes);
    let pipeline = job.pipeline;
    // Whatever happened: what was confirmed is kept.
    let kept = finish(job.keeper).await;
    if let Some(error) = mismatch {
        let journal = kept?.map(|kept| kept.journal);
        return Err(mismatched(error, begun.first, journal, resume).await);
    }
    outcome.inspect_err(|error| {
        // What changed while it was read has to be read again from its start.
        if error.kind() == ErrorKind::Integrity {
            resume.chunk = begun.first;
        }
    })?;
    if let Some(trailer) = trailer.as_ref().and_then(|trailer| trailer.get()) {
        monitor.event(&Event::Warning(trailer.to_string()));
    }
    let journal = kept?.map(|kept| kept.journal);
    let journal = match source {
        Some((expected, source)) => {
            check_source(expected, source, drive, journal, resume, stop.clone()).await?
        }
        None => journal,
    };
    let journal = match member {
        Some(member) => check_member(member, drive, journal, resume, stop.clone()).await?,
        None => journal,
    };
    let checksum = match options.checksum {
        true => Some(stop.clone().unless_asked(pipeline.checksum()).await?),
        false => None,
    };
    let mut drive_size = begun.drive.size;
    if let Some(room) = room {
        drive_size = room.size_for(plan.size());
        let cut = options.patience.watching(monitor, room.cut(plan.size()));
        if let Some(failure) = cut.await? {
            monitor.event(&Event::Warning(format!(
                "The drive stays larger than the image, which has {} bytes: {failure}",
                plan.size()
            )));
        }
    }
    for line in late.notices(plan.size()) {
        monitor.event(&Event::Notice(line));
    }
    if let Some(line) = late.warning(plan.size(), drive_size) {
        monitor.event(&Event::Warning(line));
    }
    let (journal, local) = match again {
        Some(mut again) => {
            again.holes.extend(holes);
            (journal, Local::Again(again))
        }
        None => {
            let (journal, seen) =
                everything_settled(journal, session.state, &plan, to_verify, &sampler).await?;
            (journal, Local::Seen(seen))
        }
    };
    let from = ReadFrom {
        client,
        drive,
        open: progress.workers,
        jobs: options.jobs.get(),
        patience: &options.patience,
        passed: early_checks.map(EarlyChecks::end).unwrap_or_default(),
    };
    let verified = match verify(from, &sampler, local, monitor, stop).await {
        Ok(verified) => verified,
        Err(error) => return Err(mismatched(error, begun.first, journal, resume).await),
    };
    Ok(Uploaded {
        drive,
        progress,
        verified,
        checksum,
        journal: Ended::of(journal),
    })
}

/// The error of a verification. If the drive does not hold what was sent, its journal goes,
/// and all of it has to be sent again.
async fn mismatched(
    error: Error,
    first: u64,
    journal: Option<Journal>,
    resume: &mut Resume,
) -> Error {
    if error.kind() != ErrorKind::Integrity {
        return error;
    }
    resume.chunk = first;
    resume.is_journaled = false;
    refuted(error, journal).await
}

/// Demands that what was read has the digest that it has to have. Gives the journal
/// back, or removes it: it calls done what is not the image that was meant.
async fn check_source(
    expected: Digest,
    source: SourceHash,
    drive: DriveId,
    journal: Option<Journal>,
    resume: &mut Resume,
    mut stop: Stop,
) -> Result<Option<Journal>> {
    let digest = stop.unless_asked(blocking(move || source.finish())).await?;
    if digest == expected {
        return Ok(journal);
    }
    let what = format!("The image has the SHA-256 {digest}, not {expected}");
    let fetch = "Fetch the image again, or look at where the digest is from";
    Err(unusable(&what, fetch, drive, journal, resume).await)
}

/// Demands that a member of an archive has the digest that its manifest tells: all of it,
/// whatever of it was read in this run. Gives the journal back, or removes it, as
/// [`check_source`] does.
async fn check_member(
    member: RawImage,
    drive: DriveId,
    journal: Option<Journal>,
    resume: &mut Resume,
    mut stop: Stop,
) -> Result<Option<Journal>> {
    let watched = stop.clone();
    let check = blocking(move || member.finish_check(&|| !watched.is_asked()));
    let Err(error) = stop.unless_asked(check).await else {
        return Ok(journal);
    };
    if error.kind() != ErrorKind::Integrity {
        return Err(error);
    }
    let fetch = error.hint().unwrap_or("Fetch the archive again");
    Err(unusable(&error.to_string(), fetch, drive, journal, resume).await)
}

/// The error of an upload of what is not the image that was meant, without its journal:
/// that calls done what must not be used.
async fn unusable(
    what: &str,
    fetch: &str,
    drive: DriveId,
    journal: Option<Journal>,
    resume: &mut Resume,
) -> Error {
    let what = format!("{what}: drive {drive} must not be used");
    let error = Error::new(ErrorKind::Integrity, what)
        .permanent()
        .hint_to(fetch);
    resume.is_journaled = false;
    refuted(error, journal).await
}

/// What earlier runs settled of an image that is read in order.
async fn earlier(image: &Image, session: &mut Session, options: &UploadOptions) -> Result<Earlier> {
    if image.disk().is_some() {
        return Ok(Earlier::default());
    }
    let Some(journal) = session.journal.take() else {
        return Ok(Earlier::default());
    };
    let (journal, digests) = blocking(move || {
        let digests = journal.digests()?;
        Ok((journal, digests))
    })
    .await?;
    session.journal = Some(journal);
    Ok(Earlier {
        digests,
        holes: session.state.holes.clone(),
        changed_ok: options.journal.changed_ok,
    })
}

/// Takes samples of what earlier runs settled. A packed image cannot be read there
/// without all that is before.
async fn look_back(
    image: Image,
    plan: &Plan,
    settled: &RangeSet<u64>,
    sampler: &Sampler,
) -> Result<Image> {
    let (plan, settled, sampler) = (*plan, settled.clone(), sampler.clone());
    blocking(move || {
        if let Some(disk) = image.disk() {
            sampler.look_back(disk, &plan, &settled)?;
        }
        Ok(image)
    })
    .await
}

/// For a full verification: the digests of all chunks, those of earlier runs
/// included.
pub(super) async fn everything_settled(
    journal: Option<Journal>,
    earlier: State,
    plan: &Plan,
    mut to_verify: Expected,
    sampler: &Sampler,
) -> Result<(Option<Journal>, Expected)> {
    if !sampler.collects() {
        return Ok((journal, to_verify));
    }
    let plan = *plan;
    blocking(move || {
        for chunks in earlier.holes.iter() {
            to_verify.zeros(plan.bytes_of(chunks));
        }
        let digests = journal.as_ref().map(Journal::digests).transpose()?;
        let digests = digests.into_iter().flatten();
        for (index, digest) in digests.filter(|(index, _)| earlier.done.contains(index)) {
            if let Some(span) = plan.span(index) {
                to_verify.chunk(span, digest);
            }
        }
        Ok((journal, to_verify))
    })
    .await
}
