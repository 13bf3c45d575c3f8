//! Beginning an upload: taking up an earlier run, and the drive, made or looked at.

use super::changed::changed;
use super::create::create;
use super::patient::{CALL_ATTEMPTS, patiently};
use super::session::{Identity, Session, blocking};
use super::shell::{claim, claimed, stopped};
use super::stop::Stop;
use super::upload::{Target, UploadOptions};
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::journal::{Direction, Record};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;
use crate::policy::Zeros;

/// An upload whose drive is known and fit.
pub(super) struct Begun {
    pub(super) image: Image,
    pub(super) plan: Plan,
    pub(super) first: u64,
    pub(super) session: Session,
    pub(super) drive: DriveId,
    /// Whether this very run created it.
    pub(super) is_new: bool,
    pub(super) zeros: Zeros,
}

/// Takes up an earlier run or begins a new one; makes the drive, or looks at the
/// one that is there.
pub(super) async fn begin(
    client: &Client,
    image: Image,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
    mut stop: Stop,
    rng: &mut fastrand::Rng,
) -> Result<Begun> {
    let size = image.size();
    let plan = Plan::new(size, options.chunk);
    let first = plan.index_of(options.offset).min(plan.count());
    let identity = Identity {
        direction: Direction::Upload,
        user: client.user().to_owned(),
        source: Some(image.fingerprint().clone()),
        plan,
        first,
    };
    let mut session = Session::begin(&options.journal, identity).await?;
    let (image, is_changed) = take_up(image, &plan, &mut session, options, monitor).await?;
    let prepared = tokio::select! {
        drive = prepare(client, size, options, &mut session, rng) => drive,
        () = stop.asked() => Err(stopped().hint_to(
            "A drive may have been made: the same command takes it up, or list yours with: openhosting drives info",
        )),
    };
    let drive = match prepared {
        Ok(drive) => drive,
        Err(error) => {
            if !matches!(options.target, Target::New(_)) {
                session.forget().await;
            }
            return Err(error);
        }
    };
    let is_ours = !matches!(options.target, Target::Existing(_));
    // An earlier run wrote to the drive, and where is known of what it told only:
    // a range that reads as zeros proves nothing, if these are zeros it wrote.
    // Holes that it left out are the proof that it had one.
    let was_proven = session.state.drive.is_none() || !session.state.holes.is_empty();
    session
        .record(Record::Drive {
            id: drive.id,
            is_ours,
        })
        .await?;
    // A run that was cut off before its drive was known leaves it to this one.
    let is_new = is_ours && session.state.drive.is_none();
    monitor.event(&Event::Drive {
        id: drive.id,
        size: if is_new { size } else { drive.size },
        is_new,
    });
    Ok(Begun {
        image,
        plan,
        first,
        session,
        drive: drive.id,
        is_new,
        // What held data once may be zero now: then zeros are no hole.
        zeros: Zeros::for_drive(is_ours && was_proven && !is_changed),
    })
}

/// Takes up an earlier run: what it settled stays settled, if the image is the
/// same. Gives the image back, and whether it changed.
async fn take_up(
    image: Image,
    plan: &Plan,
    session: &mut Session,
    options: &UploadOptions,
    monitor: &mut dyn Monitor,
) -> Result<(Image, bool)> {
    if let Some(drive) = session.left_behind {
        monitor.event(&Event::Notice(format!(
            "The earlier run left drive {drive}; remove it with: openhosting drives {drive} destroy"
        )));
    }
    if !session.is_resumed {
        return Ok((image, false));
    }
    if session.is_damaged {
        let what = "The journal is damaged: what it does not tell is compared with the drive";
        monitor.event(&Event::Notice(what.into()));
    }
    let there = session.state.settled();
    let there: u64 = there.iter().map(|range| plan.bytes_in(range)).sum();
    monitor.event(&Event::Notice(format!(
        "Resuming: {there} of {} bytes are settled",
        plan.size()
    )));
    let Some(journal) = session.journal.take() else {
        return Ok((image, false));
    };
    let now = image.fingerprint();
    if now.tells_changes() && session.source.as_ref() == Some(now) {
        session.journal = Some(journal);
        return Ok((image, false));
    }
    let (plan, state) = (*plan, session.state.clone());
    let (image, journal, changed) = blocking(move || {
        let changed = changed(&image, &plan, &journal, &state)?;
        Ok((image, journal, changed))
    })
    .await?;
    session.journal = Some(journal);
    let count: u64 = changed.iter().map(|range| range.end - range.start).sum();
    // With no difference found it still counts as changed: a chunk whose record
    // was lost may be on the drive, and be zero now.
    if count > 0 && !options.journal.changed_ok {
        let what = format!(
            "The image changed since the upload began: {count} chunks that were sent differ now"
        );
        return Err(Error::new(ErrorKind::Integrity, what)
            .hint_to("Send what changed with --changed-ok, or start over with --restart"));
    }
    for range in changed.iter() {
        session.state.done.remove(range.clone());
        session.state.holes.remove(range.clone());
    }
    Ok((image, true))
}

/// Makes the drive, or looks at the one that is there: nothing is written to a
/// drive that cannot take the image.
async fn prepare(
    client: &Client,
    size: u64,
    options: &UploadOptions,
    session: &mut Session,
    rng: &mut fastrand::Rng,
) -> Result<DriveInfo> {
    let id = match (&options.target, session.state.drive) {
        (Target::Existing(id) | Target::Made(id), _) => *id,
        (Target::New(_), Some((id, _))) => id,
        (Target::New(spec), None) => {
            let token = session.token();
            let created = create(client, spec, &token, session.is_resumed, rng).await;
            let drive = match created {
                Ok(created) => created.drive,
                Err(not) => {
                    if !not.is_unclear {
                        session.forget().await;
                    }
                    return Err(not.error);
                }
            };
            return if drive.size >= size {
                Ok(drive)
            } else {
                Err(too_small(&drive, size))
            };
        }
    };
    let drive = patiently(CALL_ATTEMPTS, rng, || client.info(id))
        .await
        .map_err(|failure| {
            let error = failure.into_error(&format!("Cannot use drive {id}"));
            if session.is_resumed && error.kind() == ErrorKind::NotFound {
                return error.hint_to("The earlier run's drive is gone: start over with --restart. If it was made a moment ago, wait and run the same command again");
            }
            error
        })?;
    if drive.size < size {
        return Err(too_small(&drive, size));
    }
    if let Some(by) = claim(&drive) {
        return Err(claimed(id, &by));
    }
    Ok(drive)
}

fn too_small(drive: &DriveInfo, size: u64) -> Error {
    let what = format!(
        "Drive {} has {} bytes and the image {size}: it does not fit",
        drive.id, drive.size
    );
    Error::new(ErrorKind::Rejected, what).hint_to(format!(
        "Nothing was written. Grow the drive first: echo 'size {size}' | openhosting -c drives {} set",
        drive.id
    ))
}
