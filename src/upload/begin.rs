//! Begins an upload: resumes an earlier run, and creates or checks the drive.

use rangemap::RangeSet;

use super::growing_drive::too_small;
use super::marks::{self, MARK, Mark, is_published};
use super::options::{Target, UploadOptions};
use super::wire_speed::WORTH_BYTES_MIN;
use crate::advice::{Advice, Amount, Remedy};
use crate::amounts::{self, counted, exact_size};
use crate::api::Client;
use crate::content::count;
use crate::drive::{DriveInfo, DriveSpec, is_uploading};
use crate::driver::blocking::blocking;
use crate::driver::claim::{claim, in_use};
use crate::driver::create_drive::{NewDrive, create};
use crate::driver::differing::differing;
use crate::driver::session::{Identity, Session, warn};
use crate::driver::stop::{Stop, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::{Gpt, Image, Length};
use crate::journal::{Direction, Journal, Record, State};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;
use crate::policy::{Concurrency, Operation, Zeros};
use crate::shard::Shard;
use crate::verify::read_back::Verify;
use crate::wire::Properties;
use openhosting_base::advice;

/// Bytes at the end of a stream that may not be part of the disk.
const FOOTER_BYTES: u64 = 512;

/// An upload whose drive is known and suitable.
pub(super) struct Begun {
    pub(super) image: Image,
    pub(super) plan: Plan,
    pub(super) first: u64,
    pub(super) session: Session,
    pub(super) drive: DriveInfo,
    /// Whether this run created it.
    pub(super) is_new: bool,
    pub(super) mark: Mark,
    pub(super) zeros: Zeros,
}

/// The parameters of the beginning.
#[derive(Clone, Copy)]
pub(super) struct Beginning<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a UploadOptions,
    /// Whether this run also reads what is reported as a hole.
    pub(super) holes_are_read: bool,
}

/// Some endpoints round the size of a drive up to a multiple of this.
const SIZE_ROUNDING: u64 = 4 << 20;

impl Beginning<'_> {
    /// Resumes an earlier run or begins a new one; creates the drive, or checks an existing one.
    pub(super) async fn begin(
        self,
        image: Image,
        monitor: &mut dyn Monitor,
        mut stop: Stop,
    ) -> Result<Begun> {
        let (client, options) = (self.client, self.options);
        let length = image.length();
        // The room for more is made when more data arrives.
        let size = length.known().unwrap_or(0);
        let mut session = open_session(client, &image, options, monitor).await?;
        let (plan, first) = (session.plan, session.first);
        let sends_something = sends_something(&session);
        let (image, is_changed) = self.take_up(image, &mut session, monitor, &stop).await?;
        let (image, table) = look_at_image(image, monitor).await?;
        let needed = bytes_needed(&options.target, length, plan.is_endless());
        client.open_ahead(at_once(client, &plan, options)).await;
        let prepared = tokio::select! {
            biased;
            drive = options.patience.watching(
                monitor,
                prepare(client, needed, options, &mut session),
            ) => drive,
            () = stop.asked() => Err(stopped().hint_to(format!(
                "A drive may have been made: the same command takes it up, or list yours with: {}",
                client.commands().call("drives info")
            ))),
        };
        let (drive, mark) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                if !matches!(options.target, Target::New(_)) {
                    session.forget().await;
                }
                return Err(error);
            }
        };
        let unlike = unlike(&drive, &options.target, plan.is_endless());
        let unlike = unlike.filter(|_| session.state.drive.is_some());
        unlike.into_iter().for_each(|line| monitor.notice(line));
        let is_ours = !matches!(options.target, Target::Existing(_));
        // An earlier run wrote to the drive, and only what it recorded is known. A range that reads
        // as zeros proves nothing, because that run may have written these zeros. But if it left
        // out holes, it had the proof.
        let was_proven = session.state.drive.is_none() || !session.state.holes.is_empty();
        session
            .record(Record::Drive {
                id: drive.id,
                is_ours,
            })
            .await?;
        // If an earlier run ended before it recorded its drive, this run reports the drive.
        let is_new = is_ours && session.state.drive.is_none();
        monitor.event(&Event::Drive {
            id: drive.id,
            size: match (is_new, plan.is_endless()) {
                (false, _) => drive.size,
                (true, true) => length.first(),
                (true, false) => needed,
            },
            is_new,
        });
        let overwritten = overwritten(&drive, &options.target, size).filter(|_| sends_something);
        let misplaced = table.and_then(|table| table.misplaced(size, drive.size));
        let taken_over = taken_over(&drive, mark, options);
        let warnings = overwritten.into_iter().chain(taken_over).chain(misplaced);
        warnings.for_each(|line| monitor.warn(line));
        Ok(Begun {
            image,
            plan,
            first,
            session,
            drive,
            is_new,
            mark,
            // What held data before may be zeros now; such zeros are not a hole of the drive.
            zeros: Zeros::for_drive(is_ours && was_proven && !is_changed),
        })
    }

    /// Resumes an earlier run: what it settled stays settled if the image is the same. Returns the
    /// image, and whether it changed. If this run reads holes, the earlier one may have left out
    /// data in them; then everything that it settled is read again.
    async fn take_up(
        self,
        image: Image,
        session: &mut Session,
        monitor: &mut dyn Monitor,
        stop: &Stop,
    ) -> Result<(Image, bool)> {
        let plan = session.plan;
        if !session.is_resumed {
            return Ok((image, false));
        }
        if session.is_damaged {
            let what =
                "The journal is damaged: chunks without a record are compared with the drive";
            monitor.notice(what);
        }
        let there = chunks_there(self.options, &plan, session.first, session.state.settled());
        let there = session.state.ending(&plan).bytes_in_all(there.iter());
        let of = match plan.is_endless() {
            true => String::new(),
            false => format!(" of {}", plan.size()),
        };
        monitor.event(&Event::Resuming {
            done_bytes: there,
            size: (!plan.is_endless()).then(|| plan.size()),
            line: format!("Resuming: {there}{of} bytes are done"),
        });
        let Some(journal) = session.journal.clone() else {
            return Ok((image, false));
        };
        let now = image.fingerprint();
        let is_same = now.detects_changes() && session.source.as_ref() == Some(now);
        if is_same && !(self.holes_are_read && image.is_local()) {
            return Ok((image, false));
        }
        if image.disk().is_none() {
            // A stream is read again from its start, and compared then.
            session.retract(RangeSet::new(), false).await?;
            return Ok((image, true));
        }
        let (state, stop) = (session.state.clone(), stop.clone());
        let (image, changed) = blocking(move || {
            let changed = changed(&image, &plan, &journal, &state, &stop)?;
            Ok((image, changed))
        })
        .await?;
        let count = count(changed.iter());
        // Even without a difference, the image counts as changed: a chunk whose record was lost may
        // be on the drive, and be zero now.
        if count > 0 && is_same {
            monitor.warn(format!(
                "Sending {} again: the earlier run, which left holes out, read other bytes",
                counted(count, "chunk")
            ));
        } else if count > 0 && !self.options.journal.changed_ok {
            let what = format!(
                "The image changed since the upload began: it differs in {} that this upload has sent",
                counted(count, "chunk")
            );
            return Err(Error::new(ErrorKind::Integrity, what).hint_to(advice![
                "Send what changed with ",
                Remedy::ChangedOk,
                ", or start over with ",
                Remedy::Restart
            ]));
        }
        // Before anything is sent: what is on the drive is unknown from the first request on.
        session.retract(changed, is_same).await?;
        Ok((image, !is_same))
    }
}

/// Opens the journal of an earlier run or a new one, and reports what it found.
async fn open_session(
    client: &Client,
    image: &Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
) -> Result<Session> {
    let plan = match image.length() {
        Length::Known(size) => Plan::new(size, options.chunk),
        Length::Unknown { .. } => Plan::endless(options.chunk),
    };
    if let Some(shard) = options.shard {
        check_shard(shard, &options.target, &plan)?;
    }
    check_offset(image, options, monitor)?;
    let identity = Identity {
        direction: Direction::Upload,
        user: client.user().to_owned(),
        source: Some(image.fingerprint().clone()),
        plan,
        is_chunk_fixed: options.selection.is_some(),
        offset: options.offset,
    };
    let session = Session::begin(&options.journal, identity).await?;
    warn(session.weaknesses(), monitor);
    session.report_chunk(options.chunk, monitor);
    let target = match &options.target {
        Target::Existing(id) | Target::Made(id) => Some(*id),
        Target::New(_) => None,
    };
    let left = session.left_behind.filter(|left| Some(*left) != target);
    // Advice to start over is also given because that drive is gone.
    if let Some(drive) = left
        && !is_gone(client.info(drive).await)
    {
        let removal = client.commands().removal(drive);
        monitor.warn(format!(
            "The earlier run left drive {drive}; remove it with: {removal}"
        ));
    }
    Ok(session)
}

/// Whether the answer to a request about a drive is that there is none.
fn is_gone<T>(answer: Result<T, Failure>) -> bool {
    matches!(answer, Err(Failure::Refused(refusal)) if refusal.status == 404)
}

/// Warns about an offset that leaves the drive without a part of the image. The command line refuses
/// it, except in the place of the original script, which accepts it.
///
/// # Errors
/// [`ErrorKind::Usage`] if everything should be verified, and what is before the offset can only be
/// read once.
fn check_offset(image: &Image, options: &UploadOptions, monitor: &mut dyn Monitor) -> Result<()> {
    let offset = options.offset;
    if offset == 0 {
        return Ok(());
    }
    if options.verify == Verify::Full && image.disk().is_none() {
        let what = format!(
            "A full verification cannot compare what is before offset {offset}: this image is read once, in order"
        );
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("Leave the offset out, or decompress the image first"));
    }
    match image.length() {
        Length::Known(size) if offset >= size => monitor.warn(format!(
            "Offset {offset} is not within the image, which has {size} bytes: nothing is sent"
        )),
        _ if matches!(options.target, Target::New(_)) => monitor.warn(format!(
            "The drive is new, and what the image has before offset {offset} is not sent to it"
        )),
        _ => {}
    }
    Ok(())
}

/// Warns about other uses of the image, and returns it with its partition table.
async fn look_at_image(image: Image, monitor: &mut dyn Monitor) -> Result<(Image, Option<Gpt>)> {
    let (image, table, uses) = blocking(move || {
        let table = image.disk().and_then(Gpt::of);
        let uses = image.uses();
        Ok((image, table, uses))
    })
    .await?;
    for used in uses {
        monitor.warn(format!(
            "The image {used}: what is written there meanwhile may be missing or torn"
        ));
    }
    Ok((image, table))
}

/// How many bytes the drive must have, as far as that is known.
fn bytes_needed(target: &Target, length: Length, is_endless: bool) -> u64 {
    let size = length.known().unwrap_or(0);
    match target {
        Target::New(spec) if !is_endless => spec.size.max(size),
        Target::New(_) => size,
        // The expected size of a stream may include a footer that will be left out.
        Target::Existing(_) | Target::Made(_) => {
            let least = |bytes: u64| bytes.saturating_sub(FOOTER_BYTES);
            length.known().or(length.expected().map(least)).unwrap_or(0)
        }
    }
}

/// How many requests are sent at first: those for the first chunks, and one more if the speed of
/// the wire is probed at the same time.
fn at_once(client: &Client, plan: &Plan, options: &UploadOptions) -> u32 {
    let first = Concurrency::first(
        options.jobs_min.get(),
        options.jobs.get(),
        client.round_trip(),
    );
    let first = first.min(u32::try_from(plan.count()).unwrap_or(u32::MAX));
    match first < options.jobs.get() && plan.size() >= WORTH_BYTES_MIN {
        true => first.saturating_add(1),
        false => first,
    }
}

/// Reads the settled chunks of an image again and compares them with the journal. Holes are read
/// only where the file has data now. Blocks.
///
/// # Errors
/// [`ErrorKind::Integrity`] for an image that can only be read once in order; otherwise errors of
/// reading and [`ErrorKind::Cancelled`].
fn changed(
    image: &Image,
    plan: &Plan,
    journal: &Journal,
    state: &State,
    stop: &Stop,
) -> Result<RangeSet<u64>> {
    let Some(image) = image.disk() else {
        return Err(Error::new(
            ErrorKind::Integrity,
            "The image was written to since the upload began",
        )
        .hint_to(advice!["Start over with ", Remedy::Restart]));
    };
    differing(image, plan, journal.digests()?, &state.holes, stop)
}

/// The chunks of this run's part of the image that need not be sent, with those that are `settled`.
/// What a run prints when it stops and what the next one prints when it resumes both count these.
pub(super) fn chunks_there(
    options: &UploadOptions,
    plan: &Plan,
    first: u64,
    settled: RangeSet<u64>,
) -> RangeSet<u64> {
    let mut there = settled;
    if let Some(selection) = &options.selection {
        there.extend(selection.left_out());
    }
    if first > 0 {
        there.insert(0..first);
    }
    if let Some(shard) = options.shard {
        for others in shard.others(plan.count()) {
            there.remove(others);
        }
    }
    there
}

/// Whether any chunk is sent: none is if the offset is not within the image. Such an upload changes
/// no mark.
fn sends_something(session: &Session) -> bool {
    session.first < session.plan.count()
}

/// Creates the drive, or checks the existing one. Nothing is written to a drive that cannot hold
/// the image. Returns the drive's mark as well.
async fn prepare(
    client: &Client,
    needed: u64,
    options: &UploadOptions,
    session: &mut Session,
) -> Result<(DriveInfo, Mark)> {
    let token = session.token();
    let id = match (&options.target, session.state.drive) {
        (Target::Existing(id) | Target::Made(id), _) => *id,
        (Target::New(_), Some((id, _))) => id,
        (Target::New(spec), None) => {
            return create_drive(client, spec, needed, options, session).await;
        }
    };
    let info = || client.info(id);
    let drive = options
        .patience
        .call(client, Operation::Read, info)
        .await
        .map_err(|unanswered| {
            let error = unanswered.into_error(&format!("Cannot use drive {id}"));
            if session.is_resumed && error.kind() == ErrorKind::NotFound {
                return error.hint_to(advice![
                    "The earlier run's drive is gone: start over with ",
                    Remedy::Restart,
                    ". If it was made a moment ago, wait and run the same command again",
                ]);
            }
            error
        })?;
    if drive.size < needed {
        let is_ours = matches!(options.target, Target::New(_));
        return Err(too_small(client, drive.id, drive.size, needed, is_ours));
    }
    if let Some(by) = claim(&drive) {
        return Err(in_use(client, &drive, &by, Advice::default()).await);
    }
    let is_ours = !matches!(options.target, Target::Made(_));
    if session.state.drive.is_some() && is_ours && options.shard.is_none() {
        marks::check_resumed(&drive, &token)?;
    }
    let mark = match options.target {
        _ if !sends_something(session) => Mark::None,
        Target::New(_) => Mark::of_new(is_uploading(&drive.properties)),
        Target::Existing(_) => {
            session.may_have_marked = true;
            let marked = marks::mark(client, &drive, &token, options).await;
            // With a refusal, it is certain that the endpoint has set nothing.
            marked.inspect_err(|error| {
                session.may_have_marked = error.kind() != ErrorKind::Rejected;
            })?
        }
        // Of a drive that was made for a publication, that sets the states.
        Target::Made(_) => Mark::None,
    };
    Ok((drive, mark))
}

/// Creates the drive, and returns it with its mark.
async fn create_drive(
    client: &Client,
    spec: &DriveSpec,
    needed: u64,
    options: &UploadOptions,
    session: &mut Session,
) -> Result<(DriveInfo, Mark)> {
    let token = session.token();
    let new = NewDrive {
        spec,
        keys: &Properties::new(),
        optional: &[MARK],
        token: &token,
    };
    let created = create(client, &new, session.is_resumed, &options.patience).await;
    let created = match created {
        Ok(created) => created,
        Err(not) => {
            if !not.is_unclear {
                session.forget().await;
            }
            return Err(match not.error.kind() {
                // The size was a guess, and may exceed what the account allows.
                ErrorKind::Rejected if needed < spec.size => not.error.hint_to(advice![
                    format!(
                        "The image does not state its size, so a drive of {} was requested. Pass its size with ",
                        amounts::size(spec.size)
                    ),
                    Remedy::GiveSize,
                ]),
                _ => not.error,
            });
        }
    };
    let drive = created.drive;
    if drive.size < needed {
        return Err(too_small(client, drive.id, drive.size, needed, true));
    }
    // An answer that arrived may not list every key that the drive has.
    let is_marked = created.has_optional;
    let is_marked = is_marked.unwrap_or_else(|| is_uploading(&drive.properties));
    Ok((drive, Mark::of_new(is_marked && sends_something(session))))
}

/// What this upload of `size` bytes does to a drive that the user chose, if that is not obvious.
fn overwritten(drive: &DriveInfo, target: &Target, size: u64) -> Option<String> {
    if !matches!(target, Target::Existing(_)) {
        return None;
    }
    let id = drive.id;
    if is_published(drive) {
        let name = drive.name().unwrap_or_default();
        return Some(format!(
            "Drive {id} was published as {name:?}. This upload overwrites it, so it does not count as published any more"
        ));
    }
    (size > 0 && drive.size > size).then(|| {
        format!(
            "Drive {id} has {} and the image {}: the rest of the drive stays as it is",
            exact_size(drive.size),
            exact_size(size)
        )
    })
}

/// The warning about an upload to the drive that another one may work on.
fn taken_over(drive: &DriveInfo, mark: Mark, options: &UploadOptions) -> Option<String> {
    let checked = match options.verify {
        Verify::None => "",
        Verify::Sample | Verify::Full => ". This one reads back everything at its end",
    };
    (mark == Mark::TakenOver).then(|| {
        format!(
            "An upload to drive {} has not ended. If it still runs on another machine, stop it{checked}",
            drive.id
        )
    })
}

/// How the drive that an earlier run created differs from what this run was asked to create.
/// `is_growing` is whether the size of the drive is not decided yet.
fn unlike(drive: &DriveInfo, target: &Target, is_growing: bool) -> Option<Advice> {
    let Target::New(spec) = target else {
        return None;
    };
    let key = |key| drive.properties.get(key);
    let mut differences: Vec<Advice> = Vec::new();
    // Some endpoints do not report every key.
    for (what, is, asked) in [
        ("name", key("name"), &spec.name),
        ("tier", key("tier"), &spec.tier),
    ] {
        if let Some(is) = is.filter(|is| *is != asked) {
            differences.push(format!("its {what} is {is:?} and not {asked:?}").into());
        }
    }
    match (key("claim:type") == Some("shared"), spec.shared) {
        (true, false) => differences.push("several servers may claim it at once".into()),
        (false, true) => differences.push("only one server may claim it at a time".into()),
        _ => {}
    }
    if !is_growing && drive.size > spec.size.saturating_add(SIZE_ROUNDING) {
        let (is, asked) = (drive.size, spec.size);
        differences.push(match amounts::size(is) == amounts::size(asked) {
            // Rounded, there would be no difference.
            true => format!("it has {is} bytes and not {asked}").into(),
            false => advice![
                "it has ",
                Amount::Bytes(is),
                " and not ",
                Amount::Number(asked)
            ],
        });
    }
    let mut line = advice!["This upload continues on the drive of an earlier run, as it is: "];
    for (index, difference) in differences.iter().enumerate() {
        if index > 0 {
            line.push(", ");
        }
        line.push(difference);
    }
    line.push(". To create another drive, start over with ");
    line.push(Remedy::Restart);
    (!differences.is_empty()).then_some(line)
}

/// Checks that all shards refer to the same drive and the same parts of it.
fn check_shard(shard: Shard, target: &Target, plan: &Plan) -> Result<()> {
    let refuse = |what: &str, hint: Advice| {
        let what = format!("Shard {shard} needs {what}");
        Err(Error::new(ErrorKind::Usage, what).hint_to(hint))
    };
    if matches!(target, Target::New(_)) {
        return refuse(
            "a drive that is there",
            "Make it first, and name it to all shards".into(),
        );
    }
    if plan.is_endless() {
        return refuse(
            "the size of the image",
            advice!["Pass it with ", Remedy::GiveSize],
        );
    }
    Ok(())
}
