//! An upload: image → chunk → zero check → gzip → POST → confirmed.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rangemap::RangeSet;

use super::begin::{Beginning, Begun, chunks_there};
use super::growing_drive::Room;
use super::marks::{self, Mark};
use super::options::{Interrupted, Resume, Target, UploadOptions, Uploaded};
use super::pace::Pace;
use super::pipeline::{Earlier, Pipeline, PipelineConfig};
use super::send_chunks::{ToSend, Upload};
use super::wire_speed::{Sounding, WireProbe};
use crate::advice::Advice;
use crate::amounts::exact_size;
use crate::api::Client;
use crate::chunk::RequestSize;
use crate::content::count;
use crate::digest::Digest;
use crate::drive::{CHECK_FAILED, CHECK_KEY, CHECK_PASSED, DriveInfo};
use crate::driver::blocking::blocking;
use crate::driver::checksum::SourceHash;
use crate::driver::pieces::at_most;
use crate::driver::session::{Ended, Session, finish, gaps, refuted};
use crate::driver::shell::Shell;
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Holes, Image, LateNotices, RawImage, Trailer};
use crate::journal::{Journal, State};
use crate::monitor::{Event, Monitor, Progress};
use crate::plan::Plan;
use crate::policy::{Ending, Engine, EngineConfig, Operation, PiecesConfig, Zeros};
use crate::verify::early_checks::{CheckFailure, CheckedDrive, EarlyChecks, run_checked};
use crate::verify::read_back::{
    Again, Digests, Expected, Local, ReadFrom, Sampler, Verify, verify,
};
use crate::wire::Properties;

/// Uploads `image`. It is done when every chunk was confirmed by the endpoint, or is a hole on a
/// drive that is proven to read as zeros there.
///
/// # Errors
/// [`Interrupted`], with the reason and where to resume.
pub async fn upload(
    client: &Client,
    image: Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
) -> Result<Uploaded, Interrupted> {
    let (image, holes_are_read) = match options.selection {
        // Whoever made the selection has already read the image and decided that.
        Some(_) => (image, false),
        None => {
            let decided = decide_holes(image, options.holes(), monitor);
            stop.clone().unless_asked(decided).await?
        }
    };
    let beginning = Beginning {
        client,
        options,
        holes_are_read,
    };
    let begun = beginning.begin(image, monitor, stop.clone()).await?;
    let mut run = Run::of(client, options, &begun, stop);
    let chunk_bytes = begun.plan.chunk_bytes();
    match run.send(begun, monitor).await {
        Ok(uploaded) => Ok(uploaded),
        Err(error) => {
            let mut resume = run.resume;
            // An offset at the end would be refused, so a run that sent everything names its last
            // chunk.
            let last = resume.chunks.map_or(u64::MAX, |n| n.saturating_sub(1));
            resume.offset = resume.chunk.min(last).saturating_mul(chunk_bytes);
            Err(Interrupted {
                error,
                resume: Some(resume),
            })
        }
    }
}

/// Decides how far the holes of the image are believed. Returns the image, and whether reported
/// holes are read.
pub(crate) async fn decide_holes(
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
        monitor.warn(hole.to_string());
    }
    Ok((image, how == Holes::Read || !found.is_empty()))
}

/// An upload whose drive exists.
struct Run<'a> {
    client: &'a Client,
    options: &'a UploadOptions,
    stop: Stop,
    drive: DriveInfo,
    mark: Mark,
    /// Identifies this upload on the drive.
    token: String,
    verify: Verify,
    /// The first chunk of the upload.
    first: u64,
    /// Where another run would resume if this one ended now.
    resume: Resume,
}

/// What there is to send.
struct Scope {
    /// Chunks that earlier runs settled.
    settled: RangeSet<u64>,
    /// Chunks that do not concern this run: they are neither sent nor verified.
    others: RangeSet<u64>,
    /// The union of both.
    passed: RangeSet<u64>,
    todo: Vec<Range<u64>>,
}

/// An upload that can send requests.
struct Sending {
    shell: Shell<Upload>,
    sounding: Sounding,
    early_checks: Option<EarlyChecks>,
    sampler: Sampler,
    /// How to read the image again, if that is possible.
    again: Option<Again>,
    checks: SourceChecks,
    /// The state that earlier runs left.
    state: State,
}

/// What the image must be, which is checked when all of it was read.
struct SourceChecks {
    sha256: Option<(Digest, SourceHash)>,
    /// A member of an archive whose manifest has its digest.
    member: Option<RawImage>,
    trailer: Option<Arc<OnceLock<Trailer>>>,
    late: LateNotices,
}

/// An upload whose chunks are all settled.
struct Sent {
    /// The plan including the end of the image, which may have been unknown before.
    plan: Plan,
    progress: Progress,
    journal: Option<Journal>,
    pipeline: Pipeline,
    room: Option<Room>,
    to_verify: Expected,
    /// Holes that this run left out.
    holes: RangeSet<u64>,
    early_checks: Option<EarlyChecks>,
    sampler: Sampler,
    again: Option<Again>,
    checks: SourceChecks,
    state: State,
}

impl<'a> Run<'a> {
    fn of(client: &'a Client, options: &'a UploadOptions, begun: &Begun, stop: Stop) -> Self {
        Self {
            client,
            options,
            stop,
            drive: begun.drive.clone(),
            mark: begun.mark,
            token: begun.session.token(),
            verify: match (begun.mark, options.verify) {
                // A sample is no proof against another upload that overwrites parts of this one.
                (Mark::TakenOver, Verify::Sample) => Verify::Full,
                (_, verify) => verify,
            },
            first: begun.first,
            resume: Resume {
                drive: begun.drive.id,
                offset: 0,
                chunk: begun.first,
                chunks: (!begun.plan.is_endless()).then(|| begun.plan.count()),
                size: (!begun.plan.is_endless()).then(|| begun.plan.size()),
                is_ours: matches!(options.target, Target::New(_)),
                is_journaled: begun.session.journal.is_some(),
            },
        }
    }

    /// Sends what is missing, verifies, and ends the journal.
    async fn send(&mut self, begun: Begun, monitor: &mut dyn Monitor) -> Result<Uploaded> {
        let sending = self.start(begun, monitor).await?;
        let mut sent = self.transfer(sending, monitor).await?;
        self.check_sent(&mut sent, monitor).await?;
        self.finish(sent, monitor).await
    }

    /// Marks the drive with the good end of this upload.
    async fn end_marks(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        // Where the wrong bytes are is unknown, so a part of the image may have left them there.
        let is_whole = self.options.shard.is_none()
            && (self.options.offset == 0 || self.options.verify == Verify::Full);
        let has_failed = is_whole && self.drive.properties.get(CHECK_KEY) == Some(CHECK_FAILED);
        if self.mark == Mark::None {
            if has_failed {
                self.mark_check(marks::keys_of_passed()).await;
            }
            return Ok(());
        }
        let more = has_failed.then_some((CHECK_KEY, CHECK_PASSED));
        let (client, drive, token) = (self.client, &self.drive, &*self.token);
        let end = marks::end(client, drive, token, more, self.options);
        let end = self.stop.unless_asked(end);
        self.options.patience.watching(monitor, end).await
    }

    /// Marks the drive with the result of its check, for `openhosting ls` on any machine. The error
    /// says the same, so a mark that cannot be made changes nothing else. A publication has marks of
    /// its own.
    async fn mark_check(&self, keys: Result<Properties>) {
        if let (Ok(keys), false) = (keys, matches!(self.options.target, Target::Made(_))) {
            let _ = self.client.set(self.drive.id, &keys).await;
        }
    }

    fn scope(&self, plan: &Plan, state: &State) -> Scope {
        let settled = state.settled();
        let mut others = RangeSet::new();
        if let Some(selection) = &self.options.selection {
            others.extend(selection.left_out());
        }
        if let Some(shard) = self.options.shard {
            others.extend(shard.others(plan.count()));
        }
        let mut passed = settled.clone();
        passed.extend(others.clone());
        Scope {
            todo: gaps(plan, self.first, &passed),
            settled,
            others,
            passed,
        }
    }

    /// The chunks to compare at the end. A full verification also compares what is before the
    /// offset: nobody has proven that the drive holds it.
    fn to_verify(&self, plan: &Plan, others: &RangeSet<u64>) -> RangeSet<u64> {
        let first = match self.verify {
            Verify::Full => 0,
            Verify::None | Verify::Sample => self.first,
        };
        gaps(plan, first, others).into_iter().collect()
    }

    /// The chunks of this run's part of the image that need not be sent.
    fn there(&self, plan: &Plan, passed: &RangeSet<u64>) -> RangeSet<u64> {
        chunks_there(self.options, plan, self.first, passed.clone())
    }

    /// Reports how much there is to do. The size that the image states may be wrong, which its end
    /// will show.
    fn announce(&self, begun: &Begun, passed: &RangeSet<u64>, monitor: &mut dyn Monitor) {
        let plan = &begun.plan;
        let length = begun.image.length();
        let expected = length.expected().map(|size| plan.ending_at(size));
        let counted = expected.unwrap_or_else(|| begun.session.state.ending(plan));
        let so_far = expected.map(|plan| (plan, gaps(&plan, self.first, passed)));
        let so_far = so_far.as_ref();
        monitor.event(&Event::Started {
            chunks: so_far.map(|(_, gaps)| count(gaps)),
            chunk_bytes: plan.chunk_bytes(),
            offset: self.options.offset,
            bytes: so_far.map(|(plan, gaps)| plan.bytes_in_all(gaps)),
            earlier_bytes: counted.bytes_in_all(self.there(&counted, passed).iter()),
        });
    }

    /// Starts reading and compressing, and creates everything that the transfer needs.
    async fn start(&self, begun: Begun, monitor: &mut dyn Monitor) -> Result<Sending> {
        let (client, options, drive) = (self.client, self.options, self.drive.id);
        let scope = self.scope(&begun.plan, &begun.session.state);
        self.announce(&begun, &scope.passed, monitor);
        let (plan, session) = (begun.plan, begun.session);
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
            chunks: self.to_verify(&plan, &scope.others),
            holes: session.state.holes.clone(),
        });
        let seed = fastrand::u64(..);
        let sampler = Sampler::new(self.verify, &plan, seed, digests, again.is_some());
        let image = look_back(begun.image, &plan, &scope.settled, &sampler).await?;
        let earlier = earlier(&image, &session, options).await?;
        let checks = SourceChecks::begin(&image, options.sha256, late)?;
        let engine = self.engine(plan, scope.passed.clone(), begun.zeros, begun.is_new);
        let jobs = usize::try_from(options.jobs.get()).unwrap_or(usize::MAX);
        let pace = self.pace(jobs);
        let wire = WireProbe {
            client,
            drive,
            pace: &pace,
            body_bytes_max: options.body_bytes_max.map_or(u64::MAX, NonZeroU64::get),
        };
        let (image, mut sounding) = match compare || options.selection.is_some() {
            // With a comparison, nothing is written that the drive already has, and with a
            // selection, nothing that was not checked. So there is no sounding.
            true => (image, Sounding::default()),
            false => wire.sound(image, &plan, &scope.todo).await?,
        };
        // The sounding counts towards the allowed requests, and more are about to be sent.
        if engine.limit().saturating_mul(4) >= options.jobs.get() {
            sounding.end().await;
        }
        let config = PipelineConfig {
            image,
            plan,
            todo: scope.todo,
            jobs,
            pace,
            checksum: options.checksum,
            earlier,
            selection: options.selection.clone(),
        };
        let (jobs, seed) = (options.jobs.get(), fastrand::u64(..));
        let early_checks = EarlyChecks::new(&sampler, plan, 0, jobs, seed);
        if let Some(early_checks) = &early_checks {
            early_checks.settled_before(&scope.settled, &session.state.holes);
        }
        let pipeline = Pipeline::start(config, &sampler)?;
        let journal = session.journal.inspect(|journal| journal.begin(None));
        let job = Upload {
            compare,
            journal,
            early_checks: early_checks.clone(),
            to_verify: sampler.collects().then(Expected::default),
            passed: self.there(&plan, &scope.passed),
            room: plan.is_endless().then(|| self.room()),
            ..Upload::new(client.clone(), drive, plan, pipeline)
        };
        Ok(Sending {
            shell: Shell::new(client.clone(), drive, engine, job, &options.patience),
            sounding,
            early_checks,
            sampler,
            again,
            checks,
            state: session.state,
        })
    }

    fn pace(&self, jobs: usize) -> Pace {
        let is_local = self.client.endpoint().is_loopback();
        Pace::new(self.options.compression, jobs, is_local)
    }

    /// The room on the drive, for an image of unknown size.
    fn room(&self) -> Room {
        let is_ours = matches!(self.options.target, Target::New(_));
        Room::of(self.client, &self.drive, is_ours, &self.options.patience)
    }

    fn engine(
        &self,
        plan: Plan,
        settled: RangeSet<u64>,
        zeros: Zeros,
        is_fresh: bool,
    ) -> Engine<ToSend> {
        let options = self.options;
        Engine::new(EngineConfig {
            plan,
            first: self.first,
            settled,
            jobs_min: options.jobs_min.get(),
            jobs: options.jobs.get(),
            zeros,
            operation: Operation::Write,
            is_fresh,
            max_outage: options.patience.max_outage(),
            round_trip: self.client.round_trip(),
            pieces: PiecesConfig {
                rate: self.client.rate(),
                ..at_most(RequestSize {
                    body: options.body_bytes_max.map_or(u64::MAX, NonZeroU64::get),
                    // The chunks of an earlier run may be larger.
                    range: options.chunk.get(),
                })
            },
            seed: fastrand::u64(..),
        })
    }

    /// Sends every chunk. Whatever happens, what was confirmed stays in the journal.
    async fn transfer(&mut self, sending: Sending, monitor: &mut dyn Monitor) -> Result<Sent> {
        let Sending {
            mut shell,
            mut sounding,
            early_checks,
            again,
            ..
        } = sending;
        let checked = CheckedDrive {
            client: self.client,
            drive: self.drive.id,
            disk: again.as_ref().map(|again| Arc::clone(&again.disk)),
            is_image: true,
            spare: shell.spare(),
        };
        let transfer = shell.run(monitor, self.stop.clone());
        let ending = run_checked(transfer, early_checks.as_ref(), checked).await;
        match ending {
            Ok(Ending::Complete) => sounding.end().await,
            Ok(_) => {}
            Err(_) => shell.abort(monitor).await,
        }
        let progress = shell.progress();
        self.resume.chunk = shell.first_open();
        let (outcome, mismatch) = match ending {
            Ok(ending) => (shell.outcome(ending, "write to"), None),
            Err(CheckFailure::Changed(error)) => (Err(error), None),
            Err(CheckFailure::Mismatch(error)) => (Ok(()), Some(error)),
        };
        let job = shell.into_job();
        if !job.plan.is_endless() {
            self.resume.chunks = Some(job.plan.count());
            self.resume.size = Some(job.plan.size());
        }
        let finished = finish(job.journal.as_ref()).await;
        // Whatever became of the journal: what it calls done is not on the drive.
        if let Some(error) = mismatch {
            return Err(self.mismatched(error, job.journal).await);
        }
        outcome.inspect_err(|error| {
            // An image that changed while it was read has to be read again from its start.
            if error.kind() == ErrorKind::Integrity {
                self.resume.chunk = self.first;
            }
        })?;
        finished?;
        Ok(Sent {
            plan: job.plan,
            progress,
            journal: job.journal,
            pipeline: job.pipeline,
            room: job.room,
            to_verify: job.to_verify.unwrap_or_default(),
            holes: job.holes,
            early_checks,
            sampler: sending.sampler,
            again,
            checks: sending.checks,
            state: sending.state,
        })
    }

    /// Checks that what was sent is the image that was meant, and cuts the drive to its size. The
    /// checks are in the order in which a user has to know their results.
    async fn check_sent(&mut self, sent: &mut Sent, monitor: &mut dyn Monitor) -> Result<()> {
        self.check_offset(&sent.plan, sent.again.is_none())?;
        let trailer = sent.checks.trailer.as_ref();
        if let Some(trailer) = trailer.and_then(|trailer| trailer.get()) {
            monitor.warn(trailer.to_string());
        }
        if let Some((expected, source)) = sent.checks.sha256.take() {
            self.check_source(expected, source, &mut sent.journal)
                .await?;
        }
        if let Some(member) = sent.checks.member.take() {
            self.check_member(member, &mut sent.journal).await?;
        }
        Ok(())
    }

    /// Fails if a stream, whose size was unknown at first, ended before the offset.
    fn check_offset(&self, plan: &Plan, is_stream: bool) -> Result<()> {
        let (offset, size) = (self.options.offset, plan.size());
        if offset == 0 || offset < size || !is_stream {
            return Ok(());
        }
        let what = format!(
            "Offset {offset} is not within the image, which has {size} bytes: nothing was sent"
        );
        Err(Error::new(ErrorKind::Usage, what).permanent())
    }

    /// Cuts a drive that grew with the image to its size, and reports the late notices of the
    /// image.
    async fn fit_drive(
        &self,
        room: Option<Room>,
        late: &LateNotices,
        size: u64,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let mut drive_size = self.drive.size;
        if let Some(room) = room {
            drive_size = room.size_for(size);
            let cut = self.options.patience.watching(monitor, room.cut(size));
            if let Some(failure) = cut.await? {
                monitor.warn(format!(
                    "The drive stays larger than the image, which has {}: {failure}",
                    exact_size(size)
                ));
            }
        }
        for line in late.notices(size) {
            monitor.notice(line);
        }
        if let Some(line) = late.warning(size, drive_size) {
            monitor.warn(line);
        }
        Ok(())
    }

    /// Verifies as requested, and ends the marks of the drive and the journal.
    async fn finish(&mut self, sent: Sent, monitor: &mut dyn Monitor) -> Result<Uploaded> {
        let (options, plan, sampler) = (self.options, sent.plan, sent.sampler);
        let mut stop = self.stop.clone();
        let checksum = match options.checksum {
            true => Some(stop.unless_asked(sent.pipeline.checksum()).await?),
            false => None,
        };
        self.fit_drive(sent.room, &sent.checks.late, plan.size(), monitor)
            .await?;
        let journal = sent.journal;
        let local = match sent.again {
            Some(mut again) => {
                again.holes.extend(sent.holes);
                Local::Again(again)
            }
            None => {
                let (journal, to_verify) = (journal.clone(), sent.to_verify);
                let seen = everything_settled(journal, sent.state, &plan, to_verify, &sampler);
                Local::Seen(seen.await?)
            }
        };
        let early_checks = sent.early_checks;
        let from = ReadFrom {
            client: self.client,
            drive: self.drive.id,
            open: sent.progress.workers,
            jobs: options.jobs.get(),
            patience: &options.patience,
            passed: early_checks.map(EarlyChecks::end).unwrap_or_default(),
        };
        let verified = match verify(from, &sampler, local, monitor, stop).await {
            Ok(verified) => verified,
            Err(error) => return Err(self.mismatched(error, journal).await),
        };
        // Before the end of the journal: if this fails, another run does only this.
        if let Err(error) = self.end_marks(monitor).await {
            return Err(self.mismatched(error, journal).await);
        }
        Ok(Uploaded {
            drive: self.drive.id,
            progress: sent.progress,
            verified,
            checksum,
            journal: Ended::of(journal),
        })
    }

    /// The error of a verification. If the drive does not match what was sent, its journal is
    /// removed, so that everything will be sent again.
    async fn mismatched(&mut self, error: Error, journal: Option<Journal>) -> Error {
        if error.kind() != ErrorKind::Integrity {
            return error;
        }
        self.resume.chunk = self.first;
        self.resume.is_journaled = false;
        self.mark_check(marks::keys_of_failed()).await;
        refuted(error, journal).await
    }

    /// Checks that what was read has the expected digest. Otherwise removes the journal, because it
    /// calls chunks done that are not of the image that was meant.
    async fn check_source(
        &mut self,
        expected: Digest,
        source: SourceHash,
        journal: &mut Option<Journal>,
    ) -> Result<()> {
        let digest = blocking(move || source.finish());
        let digest = self.stop.clone().unless_asked(digest).await?;
        if digest == expected {
            return Ok(());
        }
        let what = format!("The image has the SHA-256 {digest}, not {expected}");
        let fetch = "Fetch the image again, or look at where the digest is from";
        Err(self.unusable(&what, fetch.into(), journal.take()).await)
    }

    /// Checks that a member of an archive has the digest in its manifest: all of it, whatever this
    /// run has read. Otherwise removes the journal, as [`Run::check_source`] does.
    async fn check_member(
        &mut self,
        member: RawImage,
        journal: &mut Option<Journal>,
    ) -> Result<()> {
        let watched = self.stop.clone();
        let check = blocking(move || member.finish_check(&|| !watched.is_asked()));
        let Err(error) = self.stop.clone().unless_asked(check).await else {
            return Ok(());
        };
        if error.kind() != ErrorKind::Integrity {
            return Err(error);
        }
        let again = || "Fetch the archive again".into();
        let fetch = error.hint().cloned().unwrap_or_else(again);
        let what = error.to_string();
        Err(self.unusable(&what, fetch, journal.take()).await)
    }

    /// The error for an upload of a wrong image. Its journal is removed, because it calls chunks
    /// done that must not be used.
    async fn unusable(&mut self, what: &str, fetch: Advice, journal: Option<Journal>) -> Error {
        let what = format!("{what}: drive {} must not be used", self.drive.id);
        let error = Error::new(ErrorKind::Integrity, what)
            .permanent()
            .hint_to(fetch);
        self.resume.is_journaled = false;
        self.mark_check(marks::keys_of_failed()).await;
        refuted(error, journal).await
    }
}

impl SourceChecks {
    fn begin(image: &Image, sha256: Option<Digest>, late: LateNotices) -> Result<Self> {
        let sha256 = match sha256 {
            Some(expected) => Some((expected, SourceHash::start(image)?)),
            None => None,
        };
        Ok(Self {
            sha256,
            member: image.begin_check(),
            trailer: match image {
                Image::Stream(stream) => Some(stream.trailer()),
                Image::Raw(_) | Image::Mapped(_) => None,
            },
            late,
        })
    }
}

/// What earlier runs settled of an image that is read in order.
async fn earlier(image: &Image, session: &Session, options: &UploadOptions) -> Result<Earlier> {
    let (None, Some(journal)) = (image.disk(), session.journal.clone()) else {
        return Ok(Earlier::default());
    };
    let read = journal.clone();
    Ok(Earlier {
        digests: blocking(move || read.digests()).await?,
        journal: Some(journal),
        holes: session.state.holes.clone(),
        changed_ok: options.journal.changed_ok,
    })
}

/// Takes samples of what earlier runs settled. In a compressed image this is not possible without
/// reading everything before.
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

/// The digests of all chunks, including those of earlier runs, for a full verification.
pub(super) async fn everything_settled(
    journal: Option<Journal>,
    earlier: State,
    plan: &Plan,
    mut to_verify: Expected,
    sampler: &Sampler,
) -> Result<Expected> {
    if !sampler.collects() {
        return Ok(to_verify);
    }
    let plan = *plan;
    blocking(move || {
        let digests = journal.as_ref().map(Journal::digests).transpose()?;
        let digests = digests.unwrap_or_default();
        let mut holes = earlier.holes;
        for index in digests.keys() {
            // It became data, and was sent.
            holes.remove(*index..*index + 1);
        }
        for chunks in holes.iter() {
            to_verify.zeros(plan.bytes_of(chunks));
        }
        let digests = digests.into_iter();
        for (index, digest) in digests.filter(|(index, _)| earlier.done.contains(index)) {
            if let Some(span) = plan.span(index) {
                to_verify.chunk(span, digest);
            }
        }
        Ok(to_verify)
    })
    .await
}
