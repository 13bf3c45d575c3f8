//! What an earlier run left of a download, against what its journal says of it: the
//! disk may have failed meanwhile, or somebody wrote to the file.

use rangemap::RangeSet;

use super::changed::differing;
use super::session::{Session, blocking};
use super::shell::stopped;
use super::sink::Sink;
use super::stop::Stop;
use super::verify::Sampler;
use crate::digest::ChunkDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Disk, TargetFormat};
use crate::journal::{Journal, State};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;

/// Bytes that are read before somebody who wants to stop is heard.
const STEP_BYTES: u64 = 64 << 20;

/// Reads what an earlier run wrote: all chunks of it, or those that the sampler
/// picks, and then all if one of these differs. What is not as the journal says is
/// taken back there, so that it is fetched again, by this run or another one.
///
/// # Errors
/// [`ErrorKind::Image`] if the file cannot be read, [`ErrorKind::Local`] if the
/// journal cannot be written, [`ErrorKind::Cancelled`].
pub(super) async fn check_earlier(
    sink: &Sink,
    format: TargetFormat,
    plan: &Plan,
    session: &mut Session,
    sampler: &Sampler,
    monitor: &mut dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    let Sink::File(target) = sink else {
        return Ok(());
    };
    // What has its name already was read to find that out.
    if !session.is_resumed || sampler.is_off() || !target.is_staged() {
        return Ok(());
    }
    let Some(journal) = session.journal.take() else {
        return Ok(());
    };
    let image = target.to_disk(format)?;
    let (journal, wrong) =
        take_back(journal, &mut session.state, image, plan, sampler, stop).await?;
    session.journal = Some(journal);
    if wrong > 0 {
        monitor.event(&Event::Warning(format!(
            "{wrong} chunks on the disk are not what the earlier run wrote: they are fetched again"
        )));
    }
    Ok(())
}

/// Does it for one journal, of which `state` is the sum. Gives it back, and how many
/// chunks were not as it said.
pub(super) async fn take_back(
    journal: Journal,
    state: &mut State,
    image: Box<dyn Disk>,
    plan: &Plan,
    sampler: &Sampler,
    stop: &Stop,
) -> Result<(Journal, u64)> {
    let (plan, stop) = (*plan, stop.clone());
    let (holes, sampler) = (state.holes.clone(), sampler.clone());
    let (journal, wrong) = blocking(move || {
        let digests: Vec<_> = journal.digests()?.into_iter().collect();
        let picks = |(index, _): &&(u64, ChunkDigest)| sampler.is_full() || sampler.picks(*index);
        let picked: Vec<_> = digests.iter().filter(picks).copied().collect();
        let mut wrong = differing(&*image, &plan, [], &holes)?;
        wrong.extend(in_steps(&*image, &plan, &picked, &stop)?);
        if !wrong.is_empty() && picked.len() < digests.len() {
            wrong.extend(in_steps(&*image, &plan, &digests, &stop)?);
        }
        if wrong.is_empty() {
            return Ok((journal, wrong));
        }
        Ok((journal.without(&wrong)?, wrong))
    })
    .await?;
    for range in wrong.iter() {
        state.done.remove(range.clone());
        state.holes.remove(range.clone());
    }
    let count = wrong.iter().map(|range| range.end - range.start).sum();
    Ok((journal, count))
}

/// The chunks that do not have these digests. Blocks.
fn in_steps(
    image: &dyn Disk,
    plan: &Plan,
    digests: &[(u64, ChunkDigest)],
    stop: &Stop,
) -> Result<RangeSet<u64>> {
    let step = usize::try_from(STEP_BYTES / plan.chunk_bytes()).unwrap_or(1);
    let mut wrong = RangeSet::new();
    for step in digests.chunks(step.max(1)) {
        if stop.is_asked() {
            return Err(stopped().hint_to("The same command goes on"));
        }
        let differing = differing(image, plan, step.iter().copied(), &RangeSet::new());
        wrong.extend(differing.map_err(unreadable)?);
    }
    Ok(wrong)
}

/// Of an image that is uploaded other advice is given.
fn unreadable(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Image => error.hint_to("Start over on another disk"),
        _ => error,
    }
}
