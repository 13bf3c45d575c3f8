//! One transfer over several runs: its journal, opened or begun.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rangemap::RangeSet;
use uuid::Uuid;

use super::blocking::blocking;
use crate::advice::{Amount, Remedy};
use crate::digest::ChunkDigest;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Weakness, once};
use crate::image::Fingerprint;
use crate::journal::{Direction, Header, Journal, Note, Record, Replay, State, may_be_journal};
use crate::monitor::Monitor;
use crate::plan::{Plan, Span};
use openhosting_base::advice;

/// Where a transfer stores its progress, and how it resumes an earlier run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalOptions {
    /// The journal's file; `None` for no journal.
    pub path: Option<PathBuf>,
    /// Identifies the endpoint: its URL, unless that differs in each run.
    pub endpoint: String,
    /// Start over and discard the earlier run.
    pub restart: bool,
    /// Continue even if the image changed since the earlier run, and send again what changed.
    pub changed_ok: bool,
}

/// What has to be the same in every run of a transfer.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) direction: Direction,
    pub(crate) user: String,
    /// The plan of a first run. A resumed run keeps the chunk size of its journal.
    pub(crate) plan: Plan,
    /// Whether the chunk size must not change either.
    pub(crate) is_chunk_fixed: bool,
    /// The byte of the image at which it begins, rounded down to a chunk.
    pub(crate) offset: u64,
    pub(crate) source: Option<Fingerprint>,
}

/// A transfer that begins or is resumed.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) journal: Option<Journal>,
    /// The division into chunks, as in the first run.
    pub(crate) plan: Plan,
    /// The first chunk of the transfer.
    pub(crate) first: u64,
    pub(crate) state: State,
    /// Identifies a new drive.
    pub(crate) token: [u8; 16],
    /// The fingerprint of the image when the first run began.
    pub(crate) source: Option<Fingerprint>,
    pub(crate) is_resumed: bool,
    /// What the last run of a download wrote without a sync, and is intact.
    pub(crate) accepted: Vec<Note>,
    /// Whether the journal was damaged: then chunks without a record may be done as well.
    pub(crate) is_damaged: bool,
    /// The drive that a discarded run created.
    pub(crate) left_behind: Option<DriveId>,
    /// Whether an existing drive may have the token of this transfer: a request to set it was sent,
    /// and its answer is not known.
    pub(crate) may_have_marked: bool,
}

impl Session {
    /// Opens the journal of an earlier run, or begins one, on another thread.
    pub(crate) async fn begin(options: &JournalOptions, identity: Identity) -> Result<Self> {
        let options = options.clone();
        blocking(move || Self::begin_blocking(&options, identity)).await
    }

    fn begin_blocking(options: &JournalOptions, identity: Identity) -> Result<Self> {
        let first_of = |plan: &Plan| plan.index_of(identity.offset).min(plan.count());
        let header = Header {
            direction: identity.direction,
            session: Uuid::new_v4().into_bytes(),
            token: Uuid::new_v4().into_bytes(),
            size: identity.plan.size(),
            chunk: identity.plan.chunk_bytes(),
            first: first_of(&identity.plan),
            source: identity.source,
            endpoint: options.endpoint.clone(),
            user: identity.user,
        };
        let mut session = Self {
            journal: None,
            plan: identity.plan,
            first: header.first,
            state: State::default(),
            token: header.token,
            source: header.source.clone(),
            is_resumed: false,
            accepted: Vec::new(),
            is_damaged: false,
            left_behind: None,
            may_have_marked: false,
        };
        let Some(path) = &options.path else {
            return Ok(session);
        };
        if let Some((journal, replay)) = open(path, options.restart)? {
            if options.restart {
                session.left_behind = replay.as_ref().and_then(created_drive);
                journal.remove()?;
            } else if let Some(replay) = replay {
                let plan = match NonZeroU64::new(replay.header.chunk) {
                    Some(chunk) if !identity.is_chunk_fixed => identity.plan.in_chunks_of(chunk),
                    _ => identity.plan,
                };
                let header = Header {
                    chunk: plan.chunk_bytes(),
                    first: first_of(&plan),
                    ..header
                };
                check_same(path, &header, &replay.header)?;
                return Ok(Self {
                    plan,
                    first: header.first,
                    journal: Some(journal),
                    state: replay.state,
                    token: replay.header.token,
                    source: replay.header.source,
                    is_resumed: true,
                    is_damaged: replay.is_damaged,
                    ..session
                });
            }
        }
        session.journal = Some(Journal::create(path, &header)?);
        Ok(session)
    }

    /// Writes a record to the disk before anything else happens.
    pub(crate) async fn record(&self, record: Record) -> Result<()> {
        match self.journal.clone() {
            Some(journal) => blocking(move || journal.record(&[record])).await,
            None => Ok(()),
        }
    }

    /// Removes the journal of a run that ended before it did anything and left nothing behind: it
    /// would only confuse the next run. But if the drive may have the token, only the journal says
    /// that it is that of this transfer.
    pub(crate) async fn forget(&mut self) {
        if !self.is_resumed
            && !self.may_have_marked
            && let Some(journal) = self.journal.take()
        {
            // If the journal stays, the next run looks for a drive that does not exist, and nothing
            // worse.
            let _ = blocking(move || journal.remove()).await;
        }
    }

    /// Removes from the state and the journal what they say about chunks that are sent again. If
    /// the image is not that of the first run, from now on the journal is about no image: every
    /// later run compares what it calls done.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if the journal cannot be read or written.
    pub(crate) async fn retract(&mut self, chunks: RangeSet<u64>, is_same: bool) -> Result<()> {
        for range in chunks.iter() {
            self.state.done.remove(range.clone());
            self.state.holes.remove(range.clone());
        }
        let identifies = self
            .source
            .as_ref()
            .is_some_and(Fingerprint::detects_changes);
        let is_true = chunks.is_empty() && (is_same || !identifies);
        let Some(journal) = self.journal.clone().filter(|_| !is_true) else {
            return Ok(());
        };
        let retracted = blocking(move || match is_same {
            true => journal.without(&chunks),
            false => journal.of_another_image(&chunks),
        });
        self.journal = Some(retracted.await?);
        Ok(())
    }

    /// What the file system cannot guarantee for the journal.
    pub(crate) fn weaknesses(&self) -> &[Weakness] {
        self.journal.as_ref().map_or(&[], Journal::weaknesses)
    }

    /// Reports that the chunks are smaller than those of a new transfer, which would have `chunk`.
    pub(crate) fn report_chunk(&self, chunk: NonZeroU64, monitor: &mut dyn Monitor) {
        let kept = self.plan.chunk_bytes();
        if kept < chunk.get() {
            monitor.notice(advice![
                "Chunks stay at ",
                Amount::Bytes(kept),
                ", as the earlier run began; to use ",
                Amount::Number(chunk.get()),
                ", start over with ",
                Remedy::Restart
            ]);
        }
    }

    /// The token as text, as it is stored on a drive.
    pub(crate) fn token(&self) -> String {
        Uuid::from_bytes(self.token).as_simple().to_string()
    }
}

/// Warns about what the file system cannot guarantee, once for each kind.
pub(crate) fn warn<'a>(
    weaknesses: impl IntoIterator<Item = &'a Weakness>,
    monitor: &mut dyn Monitor,
) {
    for weakness in once(weaknesses.into_iter().cloned()) {
        monitor.warn(weakness.advice());
    }
}

/// Handles a mismatch of what was transferred: removes the journal, because it calls chunks done
/// that are wrong.
pub(crate) async fn refuted(error: Error, journal: Option<Journal>) -> Error {
    let Some(journal) = journal else {
        return error;
    };
    match blocking(move || journal.remove()).await {
        Ok(()) => error,
        Err(left) => error.hint_to(format!("{}. Remove it by hand", left.chain())),
    }
}

/// The journal of a complete transfer, or those of its shards. It stays until the success was
/// reported. If the process is killed before, it leaves a journal in which everything is done, and
/// the same command reports that, instead of starting over.
///
/// Dropping it removes the journal, which blocks for a moment.
#[derive(Debug, Default)]
pub struct Ended(Vec<Journal>);

impl Ended {
    pub(crate) fn of(journals: impl IntoIterator<Item = Journal>) -> Self {
        Self(journals.into_iter().collect())
    }

    /// Removes it. Blocks for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if it cannot be removed.
    pub fn remove(mut self) -> Result<()> {
        let removed = self.0.drain(..).try_for_each(Journal::remove);
        removed.map_err(|error| {
            error.hint_to("All is transferred. Remove the journal by hand: while it is there the same command makes no new transfer")
        })
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        for journal in self.0.drain(..) {
            // If it cannot be removed, it describes a complete transfer.
            let _ = journal.remove();
        }
    }
}

/// Opens a journal. One that cannot be read can only be discarded.
fn open(path: &Path, restart: bool) -> Result<Option<(Journal, Option<Replay>)>> {
    match Journal::open(path) {
        Ok(None) => Ok(None),
        Ok(Some((journal, replay))) => Ok(Some((journal, Some(replay)))),
        Err(error) if restart && error.hint().is_some() && may_be_journal(path) => {
            // Its start is damaged, and the user wants to start over.
            std::fs::remove_file(path).map_err(|cause| {
                let what = format!("Cannot remove the journal {}", path.display());
                Error::new(ErrorKind::Local, what)
                    .because(cause)
                    .hint_to(advice!["Put it elsewhere with ", Remedy::JournalElsewhere])
            })?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The drive of an earlier run, if that run created it.
fn created_drive(replay: &Replay) -> Option<DriveId> {
    let (id, was_created) = replay.state.drive?;
    was_created.then_some(id)
}

/// Fails for the journal of another transfer.
fn check_same(path: &Path, now: &Header, then: &Header) -> Result<()> {
    let differs = |what: &str, then: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
        let what = format!(
            "The journal {} is of another transfer: {what} was {then} and is {now}",
            path.display()
        );
        Err(Error::new(ErrorKind::Usage, what).hint_to(advice![
            "Use the same ",
            Remedy::SameOptions,
            " as before, or start over with ",
            Remedy::Restart,
        ]))
    };
    let direction = |direction| match direction {
        Direction::Upload => "upload",
        Direction::Download => "download",
        Direction::DownloadAsQcow2 => "download as qcow2",
    };
    if now.direction != then.direction {
        let (then, now) = (direction(then.direction), direction(now.direction));
        return differs("the direction", &then, &now);
    }
    if now.endpoint != then.endpoint {
        let error = differs("the endpoint", &then.endpoint, &now.endpoint);
        return error.map_err(|error| {
            error.hint_to(advice![
                "If both are names of one cloud, continue under the earlier one, as with ",
                Remedy::Endpoint(then.endpoint.clone()),
                ", or start over with ",
                Remedy::Restart,
            ])
        });
    }
    if now.user != then.user {
        return differs("the user", &then.user, &now.user);
    }
    if now.chunk != then.chunk {
        return differs("the chunk size", &then.chunk, &now.chunk);
    }
    if now.first != then.first {
        return differs("the first chunk", &then.first, &now.first);
    }
    let is_endless = |header: &Header| {
        NonZeroU64::new(header.chunk).is_some_and(|c| Plan::new(header.size, c).is_endless())
    };
    if is_endless(now) != is_endless(then) {
        let (then, now) = match is_endless(now) {
            true => (then.size.to_string(), "not known".to_owned()),
            false => ("not known".to_owned(), now.size.to_string()),
        };
        return differs("the size", &then, &now);
    }
    if now.size != then.size {
        let what = format!(
            "The size was {} bytes when this transfer began and is {} now",
            then.size, now.size
        );
        return Err(Error::new(ErrorKind::Integrity, what).hint_to(advice![
            "It is not the same any more: start over with ",
            Remedy::Restart,
        ]));
    }
    Ok(())
}

/// The chunks from `first` on that are not settled.
pub(crate) fn gaps(plan: &Plan, first: u64, settled: &RangeSet<u64>) -> Vec<Range<u64>> {
    let all = first..plan.count();
    if all.is_empty() {
        return Vec::new();
    }
    settled.gaps(&all).collect()
}

/// A record that a chunk is done; `None` without a digest, because nothing could check the chunk
/// later.
pub(crate) fn done(span: Span, digest: Option<ChunkDigest>) -> Option<Record> {
    Some(Record::Done {
        index: span.index,
        len: u32::try_from(span.len).ok()?,
        digest: digest?,
    })
}

/// As [`Journal::finish`], if there is a journal.
pub(crate) async fn finish(journal: Option<&Journal>) -> Result<Vec<Span>> {
    match journal {
        Some(journal) => journal.finish().await,
        None => Ok(Vec::new()),
    }
}
