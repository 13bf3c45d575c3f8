//! Checks what an earlier run of a download left against its journal: the disk may have failed
//! meanwhile, or something may have written to the file.

use rangemap::RangeSet;

use super::options::DownloadOptions;
use super::sink::Sink;
use crate::amounts::counted;
use crate::content::count;
use crate::digest::{ChunkDigest, Digest};
use crate::driver::blocking::blocking;
use crate::driver::differing::differing;
use crate::driver::session::{Session, done};
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Disk, ImageTarget, TargetFormat, data_blocks};
use crate::journal::{Journal, Note, Proof, Record, State};
use crate::monitor::Monitor;
use crate::plan::{Plan, Span};
use crate::verify::read_back::{Sampler, Verify};

/// How to read again what is in a file.
#[derive(Clone, Copy)]
pub(super) struct Recheck<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sampler: &'a Sampler,
    pub(super) stop: &'a Stop,
}

impl Recheck<'_> {
    /// Reads chunks that an earlier run wrote, and compares them with the journal: all of them, or
    /// a sample, and if a chunk of the sample differs, all. A chunk that differs is removed from
    /// the journal, so that this run or a later one downloads it again.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if the file cannot be read, [`ErrorKind::Local`] if the
    /// journal cannot be written, [`ErrorKind::Cancelled`].
    pub(super) async fn check_earlier(
        self,
        sink: &Sink,
        format: TargetFormat,
        session: &mut Session,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let Self { plan, sampler, .. } = self;
        let Sink::File(target) = sink else {
            return Ok(());
        };
        // If the earlier run gave the file its name, all of it was compared when it was opened.
        if !session.is_resumed || sampler.is_off() || !target.is_staged() {
            return Ok(());
        }
        let Some(journal) = session.journal.clone() else {
            return Ok(());
        };
        let image = target.to_disk(format)?;
        let (journal, wrong) = self
            .check_journal(journal, &mut session.state, image)
            .await?;
        session.journal = Some(journal);
        warn_of_differing(wrong, monitor);
        // The chunks that were accepted without a sync have no digest in the journal, so they are
        // compared with the drive.
        let accepted = session.accepted.iter().filter_map(index_of);
        let accepted = accepted.map(|index| index..index + 1).collect();
        let (image, plan, sampler) = (target.to_disk(format)?, *plan, sampler.clone());
        blocking(move || sampler.look_back(&*image, &plan, &accepted)).await
    }

    /// As [`check_earlier`](Self::check_earlier), for one journal with the state `state`. Returns
    /// the journal without the chunks that differ, and their number.
    pub(super) async fn check_journal(
        self,
        journal: Journal,
        state: &mut State,
        image: Box<dyn Disk>,
    ) -> Result<(Journal, u64)> {
        let (plan, stop) = (*self.plan, self.stop.clone());
        let (holes, sampler) = (state.holes.clone(), self.sampler.clone());
        let (journal, wrong) = blocking(move || {
            let digests: Vec<_> = journal.digests()?.into_iter().collect();
            let picks =
                |(index, _): &&(u64, ChunkDigest)| sampler.is_full() || sampler.picks(*index);
            let picked: Vec<_> = digests.iter().filter(picks).copied().collect();
            let compare = |digests: Vec<_>, holes: &RangeSet<u64>| {
                differing(&*image, &plan, digests, holes, &stop).map_err(unreadable)
            };
            let is_part = picked.len() < digests.len();
            let mut wrong = compare(picked, &holes)?;
            if !wrong.is_empty() && is_part {
                wrong.extend(compare(digests, &RangeSet::new())?);
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
        Ok((journal, count(wrong.iter())))
    }
}

/// Reports that this many chunks differ from the journal and are downloaded again.
fn warn_of_differing(wrong: u64, monitor: &mut dyn Monitor) {
    if wrong > 0 {
        monitor.warn(format!(
            "Fetching {} again: what the earlier run wrote has changed on the disk",
            counted(wrong, "chunk")
        ));
    }
}

/// The chunk of a note.
fn index_of(note: &Note) -> Option<u64> {
    match note {
        Note::Written { span, .. } => Some(span.index),
        Note::Record(Record::Done { index, .. }) => Some(*index),
        Note::Record(_) | Note::Whole => None,
    }
}

/// Accepts what the last run wrote to the file and did not sync, if its page cache still exists.
/// Such a chunk counts as settled, and is synced and recorded as if this run had written it.
///
/// # Errors
/// [`ErrorKind::Cancelled`].
pub(super) async fn accept_unsynced(
    target: &ImageTarget,
    options: &DownloadOptions,
    session: &mut Session,
    monitor: &mut dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    let mut written = std::mem::take(&mut session.state.written);
    let settled = session.state.settled();
    written.retain(|index, _| !settled.contains(index));
    if written.is_empty() || target.page_cache() != session.state.page_cache() {
        return Ok(());
    }
    let image = target.to_disk(options.format)?;
    let (plan, stop) = (session.plan, stop.clone());
    let (is_raw, is_full) = (target.is_raw(), options.verify == Verify::Full);
    let (accepted, wrong) = blocking(move || {
        let (mut accepted, mut wrong) = (Vec::new(), 0);
        let mut bytes = Vec::new();
        for (index, (len, proof)) in written {
            stop.check()?;
            let span = plan.span(index).filter(|span| span.len == u64::from(len));
            let Some(span) = span else { continue };
            bytes.resize(usize::try_from(span.len).unwrap_or(0), 0);
            // A chunk that cannot be read counts as missing.
            let read = image.read_at(&mut bytes, span.offset);
            let note = match read.is_ok() {
                true => note_if_unchanged(span, &bytes, proof, is_raw, is_full),
                false => None,
            };
            match note {
                Some(note) => accepted.push(note),
                None => wrong += 1,
            }
        }
        Ok((accepted, wrong))
    })
    .await?;
    warn_of_differing(wrong, monitor);
    let indexes = accepted.iter().filter_map(index_of);
    session
        .state
        .done
        .extend(indexes.map(|index| index..index + 1));
    session.accepted = accepted;
    Ok(())
}

/// The note for a chunk whose bytes are as they were written, with a digest if `is_full`; `None` if
/// they differ.
fn note_if_unchanged(
    span: Span,
    bytes: &[u8],
    proof: Proof,
    is_raw: bool,
    is_full: bool,
) -> Option<Note> {
    let digest = match proof {
        Proof::Blocks(blocks) if is_raw && data_blocks(bytes, span.offset) == blocks => {
            if !is_full {
                return Some(Note::Written { span, blocks });
            }
            Digest::of(bytes)
        }
        Proof::Blocks(_) => return None,
        Proof::Digest(digest) if Digest::of(bytes) == digest => digest,
        Proof::Digest(_) => return None,
    };
    done(span, Some(digest.into())).map(Note::Record)
}

/// Replaces the advice, which is meant for an image that is uploaded.
fn unreadable(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Image => error.hint_to("Start over on another disk"),
        _ => error,
    }
}
