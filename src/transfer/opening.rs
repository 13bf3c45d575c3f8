//! Opening the destination of a download, and taking up an earlier run.

use std::path::Path;

use super::download::{Destination, DownloadOptions};
use super::session::{Identity, JournalOptions, Session, blocking, gaps};
use super::sink::{Ordered, Packed, Sink};
use crate::api::Client;
use crate::digest::Digest;
use crate::drive::DriveInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageTarget;
use crate::journal::{Direction, Record};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;
/// Opens the destination and takes up an earlier run.
pub(super) async fn open(
    client: &Client,
    destination: Destination,
    options: &DownloadOptions,
    info: &DriveInfo,
    plan: Plan,
    monitor: &mut dyn Monitor,
) -> Result<(bool, Sink, Session)> {
    let (path, force) = match destination {
        Destination::Stream(stream) => {
            let session =
                Session::begin(&JournalOptions::default(), identity(client, plan)).await?;
            let sink = Ordered::start(stream, plan.count(), options)?;
            return Ok((false, Sink::Stream(sink), session));
        }
        Destination::File { path, force } => (path, force),
    };
    let size = info.size;
    if options.packing.is_some() {
        let sink = Packed::create(path, force, plan.count(), options).await?;
        let session = Session::begin(&JournalOptions::default(), identity(client, plan)).await?;
        return Ok((force, Sink::Packed(sink), session));
    }
    if options.offset.is_some() {
        let target = blocking(move || ImageTarget::in_place(&path, size)).await?;
        let session = Session::begin(&JournalOptions::default(), identity(client, plan)).await?;
        return Ok((force, Sink::File(target), session));
    }
    // The journal would make its directory, and this is no name for a new one.
    let name = path.clone();
    blocking(move || ImageTarget::check_directory(&name)).await?;
    let mut session = Session::begin(&options.journal, identity(client, plan)).await?;
    let mut restart = options.journal.restart;
    if session.is_resumed && session.state.drive.is_none() {
        // It ended before it knew its drive: what it staged, if anything, is void.
        restart = true;
        drop(session.journal.take());
        session = begin_again(client, options, plan).await?;
    }
    if session.is_resumed {
        check_same_drive(&session, options, info)?;
        if let Some(target) = published(&path, &plan, &mut session).await? {
            monitor.event(&Event::Notice(
                "The earlier run had finished the image".into(),
            ));
            return Ok((force, Sink::File(target), session));
        }
        let name = path.clone();
        if let Some(target) = blocking(move || ImageTarget::resume(&name, size, force)).await? {
            let there = session.state.settled();
            let there: u64 = there.iter().map(|range| plan.bytes_in(range)).sum();
            monitor.event(&Event::Notice(format!(
                "Resuming: {there} of {size} bytes are there"
            )));
            return Ok((force, Sink::File(target), session));
        }
        // The image is gone, so what the journal says of it is void.
        drop(session.journal.take());
        session = begin_again(client, options, plan).await?;
    }
    let target = blocking(move || {
        if restart {
            ImageTarget::discard(&path)?;
        }
        ImageTarget::create(&path, size, force)
    });
    let target = match target.await {
        Ok(target) => target,
        Err(error) => {
            // Nothing began, so nothing is left behind.
            if let Some(journal) = session.journal.take() {
                blocking(move || journal.remove()).await?;
            }
            return Err(error);
        }
    };
    if let Some((write_bytes, write_requests)) = counters(info) {
        let state = Record::Drivestate {
            write_bytes,
            write_requests,
        };
        session.record(state).await?;
    }
    // Last: a journal without it is one that never began.
    session
        .record(Record::Drive {
            id: options.drive,
            is_ours: false,
        })
        .await?;
    Ok((force, Sink::File(target), session))
}

/// Forgets the earlier run.
async fn begin_again(client: &Client, options: &DownloadOptions, plan: Plan) -> Result<Session> {
    let again = JournalOptions {
        restart: true,
        ..options.journal.clone()
    };
    Session::begin(&again, identity(client, plan)).await
}

/// The image, if the earlier run ended between giving it its name and removing
/// the journal: every chunk is as the journal says.
async fn published(path: &Path, plan: &Plan, session: &mut Session) -> Result<Option<ImageTarget>> {
    if !gaps(plan, 0, &session.state.settled()).is_empty() {
        return Ok(None);
    }
    let Some(journal) = session.journal.take() else {
        return Ok(None);
    };
    let (path, plan, holes) = (path.to_owned(), *plan, session.state.holes.clone());
    let (target, journal) = blocking(move || {
        let Some(target) = ImageTarget::published(&path, plan.size())? else {
            return Ok((None, journal));
        };
        let mut bytes = Vec::new();
        for (index, digest) in journal.digests()? {
            let Some(span) = plan.span(index) else {
                return Ok((None, journal));
            };
            bytes.resize(usize::try_from(span.len).unwrap_or(0), 0);
            target.get(&mut bytes, span.offset)?;
            if Digest::of(&bytes) != digest {
                return Ok((None, journal));
            }
        }
        for chunks in holes.iter() {
            let bytes = plan.bytes_of(chunks);
            if !target.is_zero(bytes.start, bytes.end - bytes.start)? {
                return Ok((None, journal));
            }
        }
        Ok((Some(target), journal))
    })
    .await?;
    session.journal = Some(journal);
    Ok(target)
}

fn identity(client: &Client, plan: Plan) -> Identity {
    Identity {
        direction: Direction::Download,
        user: client.user().to_owned(),
        plan,
        first: 0,
        source: None,
    }
}

/// Refuses to mix two drives, or two states of one, in one image.
fn check_same_drive(session: &Session, options: &DownloadOptions, info: &DriveInfo) -> Result<()> {
    let over = "Start over with --restart";
    match session.state.drive {
        Some((id, _)) if id != options.drive => {
            let what = format!(
                "The earlier run downloaded drive {id}, not {}",
                options.drive
            );
            return Err(Error::new(ErrorKind::Usage, what).hint_to(over));
        }
        _ => {}
    }
    let then = session.state.counters;
    if !options.allow_live && then.is_some() && then != counters(info) {
        let what = format!("Drive {} was written to since the earlier run", info.id);
        return Err(Error::new(ErrorKind::Integrity, what).hint_to(over));
    }
    Ok(())
}
/// How much was written to a drive, as far as it tells.
pub(crate) fn counters(drive: &DriveInfo) -> Option<(u64, u64)> {
    let counter = |key| drive.properties.get(key)?.trim().parse().ok();
    Some((counter("write:bytes")?, counter("write:requests")?))
}
