//! Opens the destination of a download, and resumes an earlier run.

use std::path::{Path, PathBuf};

use super::check_earlier::accept_unsynced;
use super::drive_unchanged::{check_same_drive, counters};
use super::options::{Destination, DownloadOptions};
use super::sink::{Ordered, Packed, Sink};
use crate::amounts::size as size_of;
use crate::api::Client;
use crate::drive::DriveInfo;
use crate::driver::blocking::blocking;
use crate::driver::differing::differing;
use crate::driver::session::{Identity, JournalOptions, Session, gaps};
use crate::driver::stop::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{directory_of, open_to_read};
use crate::image::{Fingerprint, ImageTarget, TargetFormat, part_of};
use crate::journal::{Direction, Record};
use crate::monitor::{Event, Monitor};
use crate::plan::Plan;
use crate::system::{allocated_bytes, free_bytes};

/// A destination that is open, and what an earlier run left there.
pub(super) struct Opened {
    pub(super) sink: Sink,
    pub(super) session: Session,
}

/// What is known about a download before its destination is open.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a DownloadOptions,
    pub(super) info: &'a DriveInfo,
    pub(super) plan: Plan,
}

impl Opening<'_> {
    /// Opens the destination and resumes an earlier run.
    pub(super) async fn open(
        self,
        destination: Destination,
        monitor: &mut dyn Monitor,
        stop: &Stop,
    ) -> Result<Opened> {
        let options = self.options;
        let (path, force) = match destination {
            Destination::Stream(_) if options.format != TargetFormat::Raw => {
                let what = format!(
                    "A stream cannot hold {}: it is not written in order",
                    options.format
                );
                return Err(Error::new(ErrorKind::Usage, what).hint_to("Name a file"));
            }
            Destination::Stream(stream) => {
                let session = self.without_journal().await?;
                let sink = Sink::Stream(Ordered::start(stream, self.plan.count(), options)?);
                return Ok(Opened { sink, session });
            }
            Destination::File { path, force } => (path, force),
        };
        let size = self.info.size;
        check_chunk(options)?;
        let file_size = options.format.size_of(size);
        if file_size > size {
            monitor.notice(format!(
                "{} knows whole sectors only: {} zeros follow the last byte",
                options.format,
                file_size - size
            ));
        }
        // On another thread: whatever a path names, signals and the deadline still work.
        let (name, asked) = (path.clone(), options.clone());
        let room = blocking(move || Ok(room_notice(&name, file_size, &asked)));
        let room = stop.clone().unless_asked(room).await?;
        room.into_iter().for_each(|line| monitor.notice(line));
        if options.packing.is_some() {
            let sink = Packed::create(path, force, self.plan.count(), options).await?;
            let (sink, session) = (Sink::Packed(sink), self.without_journal().await?);
            return Ok(Opened { sink, session });
        }
        if let Some(offset) = options.offset {
            let opened = blocking(move || {
                let line = gap_before(&path, offset);
                Ok((line, ImageTarget::in_place(&path, size, force)?))
            });
            let (line, target) = opened.await?;
            line.into_iter().for_each(|line| monitor.warn(line));
            let (sink, session) = (Sink::File(target), self.without_journal().await?);
            return Ok(Opened { sink, session });
        }
        // The journal would create the directory, which is wrong if the path has a typo.
        let name = path.clone();
        blocking(move || ImageTarget::check_directory(&name)).await?;
        let (target, session) = match options.shard {
            Some(_) => self.share(path, force, monitor).await?,
            None => self.file(path, force, monitor, stop).await?,
        };
        let sink = Sink::File(target);
        Ok(Opened { sink, session })
    }

    /// A session without a journal.
    async fn without_journal(self) -> Result<Session> {
        Session::begin(&JournalOptions::default(), self.identity(TargetFormat::Raw)).await
    }

    /// Opens a file that only this run writes: that of an earlier run, or a new one.
    async fn file(
        self,
        path: PathBuf,
        force: bool,
        monitor: &mut dyn Monitor,
        stop: &Stop,
    ) -> Result<(ImageTarget, Session)> {
        let (options, size, format) = (self.options, self.info.size, self.options.format);
        let mut session = Session::begin(&options.journal, self.identity(format)).await?;
        let mut restart = options.journal.restart;
        if session.is_resumed && session.state.drive.is_none() {
            // The earlier run ended before it knew its drive, so what it staged, if anything, is
            // useless.
            restart = true;
            session.journal = None;
            session = begin_again(options, self.identity(format)).await?;
        }
        if session.is_resumed {
            let resumed = self
                .resume(&path, force, &mut session, monitor, stop)
                .await?;
            if let Some(target) = resumed {
                return Ok((target, session));
            }
            // The staged file is gone, so what the journal says about it no longer applies.
            session.journal = None;
            session = begin_again(options, self.identity(format)).await?;
        }
        let target = blocking(move || {
            if restart {
                ImageTarget::discard(&path)?;
            }
            ImageTarget::create(&path, size, force, format)
        });
        let target = match target.await {
            Ok(target) => target,
            Err(error) => {
                // Nothing was begun, so leave nothing behind.
                if let Some(journal) = session.journal.take() {
                    blocking(move || journal.remove()).await?;
                }
                return Err(error);
            }
        };
        note_drive(&session, options, self.info).await?;
        Ok((target, session))
    }

    /// Opens what an earlier run left; `None` if it is gone.
    async fn resume(
        self,
        path: &Path,
        force: bool,
        session: &mut Session,
        monitor: &mut dyn Monitor,
        stop: &Stop,
    ) -> Result<Option<ImageTarget>> {
        let (options, size, format) = (self.options, self.info.size, self.options.format);
        check_same_drive(&session.state, options, self.info)?;
        let plan = session.plan;
        if let Some(target) = published(path, &plan, format, session, stop).await? {
            monitor.notice("The earlier run had finished the image");
            return Ok(Some(target));
        }
        let name = path.to_owned();
        let target = blocking(move || ImageTarget::resume(&name, size, force, format)).await?;
        let Some(target) = target else {
            return Ok(None);
        };
        let target = take_whole(target, &plan, session).await?;
        session.report_chunk(options.chunk, monitor);
        accept_unsynced(&target, options, session, monitor, stop).await?;
        let there = session.state.settled_bytes(&plan);
        monitor.event(&Event::Resuming {
            done_bytes: there,
            size: Some(size),
            line: format!("Resuming: {there} of {size} bytes are there"),
        });
        Ok(Some(target))
    }

    /// Opens the file that shards write to, and resumes an earlier run of this one. Its journal
    /// describes that very file: another file with the same name counts as new.
    async fn share(
        self,
        path: PathBuf,
        force: bool,
        monitor: &mut dyn Monitor,
    ) -> Result<(ImageTarget, Session)> {
        let (options, size) = (self.options, self.plan.size());
        check_shards_chunk(options)?;
        let target = blocking(move || ImageTarget::share(&path, size, force)).await?;
        let file = staged(size, target.inode()?);
        let identity = || Identity {
            source: Some(file.clone()),
            ..self.identity(TargetFormat::Raw)
        };
        let mut session = Session::begin(&options.journal, identity()).await?;
        if session.is_resumed
            && (session.state.drive.is_none() || session.source.as_ref() != Some(&file))
        {
            session.journal = None;
            session = begin_again(options, identity()).await?;
        }
        if session.is_resumed {
            check_same_drive(&session.state, options, self.info)?;
            session.report_chunk(options.chunk, monitor);
            let there = session.state.settled_bytes(&session.plan);
            monitor.event(&Event::Resuming {
                done_bytes: there,
                size: None,
                line: format!("Resuming: {there} bytes of this shard are there"),
            });
        } else {
            note_drive(&session, options, self.info).await?;
        }
        Ok((target, session))
    }

    /// The identity, which is the same in every run of this download.
    fn identity(self, format: TargetFormat) -> Identity {
        Identity {
            direction: match format {
                TargetFormat::Raw => Direction::Download,
                TargetFormat::Qcow2(_) => Direction::DownloadAsQcow2,
            },
            user: self.client.user().to_owned(),
            plan: self.plan,
            is_chunk_fixed: false,
            offset: 0,
            source: None,
        }
    }
}

/// A line about a file that ends before the offset: the bytes between stay zeros. The command line
/// refuses it, except in the place of the original script, which accepts it.
fn gap_before(path: &Path, offset: u64) -> Option<String> {
    let len = match path.metadata() {
        Ok(there) if !there.is_file() => return None,
        there => there.map_or(0, |there| there.len()),
    };
    (len < offset).then(|| {
        format!(
            "{} has {len} bytes, and the download starts at byte {offset}: what is between is not fetched",
            path.display()
        )
    })
}

/// A line about a file system that has less room than the disk is large. It is no error: a file
/// needs no room for zeros, and how much of the drive is zeros may not be known yet.
fn room_notice(path: &Path, size: u64, options: &DownloadOptions) -> Option<String> {
    let is_whole = options.packing.is_none() && options.offset.is_none() && options.shard.is_none();
    if !is_whole || path.metadata().is_ok_and(|there| !there.is_file()) {
        return None;
    }
    let directory = directory_of(path);
    // What is not a file of this user is reported later: it may be a named pipe or a link.
    let there = open_to_read(&part_of(path)).ok();
    let there = there.and_then(|part| allocated_bytes(&part));
    let needed = size.saturating_sub(there.unwrap_or(0));
    let free = free_bytes(directory).filter(|free| *free < needed)?;
    Some(format!(
        "Only {} are free in {}, and the disk needs up to {}: the download stops if more than that is data",
        size_of(free),
        directory.display(),
        size_of(needed)
    ))
}

/// Records in a new journal which drive it is about, and the drive's state.
async fn note_drive(session: &Session, options: &DownloadOptions, info: &DriveInfo) -> Result<()> {
    if let Some((write_bytes, write_requests)) = counters(info) {
        let state = Record::Drivestate {
            write_bytes,
            write_requests,
        };
        session.record(state).await?;
    }
    // This is last, because a journal without it counts as one that never began.
    session
        .record(Record::Drive {
            id: options.drive,
            is_ours: false,
        })
        .await
}

/// The staged file of shards, as their journals identify it. The time of its last write is
/// meaningless, and its device number differs between machines.
pub(super) fn staged(size: u64, inode: u64) -> Fingerprint {
    Fingerprint {
        size,
        inode,
        ..Fingerprint::default()
    }
}

/// Checks the chunk size for shards: on a file system that is not local, two machines that write to
/// the same page of a file would undo each other's work.
fn check_shards_chunk(options: &DownloadOptions) -> Result<()> {
    const PAGE_BYTES: u64 = 64 * 1024;
    if options.chunk.get().is_multiple_of(PAGE_BYTES) {
        return Ok(());
    }
    let what = format!(
        "Shards cannot meet within a page: a chunk has {} bytes",
        options.chunk
    );
    Err(Error::new(ErrorKind::Usage, what)
        .hint_to(format!("Make it a multiple of {PAGE_BYTES} bytes")))
}

/// Checks the chunk size for compressed clusters, which must not span two chunks.
fn check_chunk(options: &DownloadOptions) -> Result<()> {
    let multiple = options.format.chunk_multiple();
    if options.chunk.get().is_multiple_of(multiple) {
        return Ok(());
    }
    let what = format!(
        "A chunk of {} bytes does not hold whole clusters",
        options.chunk
    );
    Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
        "Packed clusters need chunks of a multiple of {multiple} bytes"
    )))
}

/// Discards the earlier run and begins again.
async fn begin_again(options: &DownloadOptions, identity: Identity) -> Result<Session> {
    let again = JournalOptions {
        restart: true,
        ..options.journal.clone()
    };
    Session::begin(&again, identity).await
}

/// Opens the finished file, if the earlier run ended after giving it its name and before removing
/// the journal: every chunk is as the journal says.
async fn published(
    path: &Path,
    plan: &Plan,
    format: TargetFormat,
    session: &mut Session,
    stop: &Stop,
) -> Result<Option<ImageTarget>> {
    let is_recorded = gaps(plan, 0, &session.state.settled()).is_empty();
    let whole = session.state.whole;
    if !is_recorded && whole.is_none() {
        return Ok(None);
    }
    let Some(journal) = session.journal.clone() else {
        return Ok(None);
    };
    let (path, all, holes) = (path.to_owned(), *plan, session.state.holes.clone());
    let stop = stop.clone();
    let target = blocking(move || {
        let plan = all;
        let Some(target) = ImageTarget::published(&path, plan.size(), format)? else {
            return Ok(None);
        };
        if !is_recorded && !is_whole(&target, whole) {
            return Ok(None);
        }
        let disk = target.to_disk(format)?;
        let wrong = differing(&*disk, &plan, journal.digests()?, &holes, &stop)?;
        Ok(wrong.is_empty().then_some(target))
    });
    match target.await? {
        Some(target) => take_whole(target, plan, session).await.map(Some),
        None => Ok(None),
    }
}

/// Whether this is the very file that a journal calls complete.
fn is_whole(target: &ImageTarget, whole: Option<(u64, i128)>) -> bool {
    whole.is_some_and(|(inode, modified_ns)| target.is_as_it_was(inode, modified_ns))
}

/// If the file is still the one that the journal calls complete, records every chunk that has no
/// record yet.
async fn take_whole(
    target: ImageTarget,
    plan: &Plan,
    session: &mut Session,
) -> Result<ImageTarget> {
    let missing = gaps(plan, 0, &session.state.settled());
    if missing.is_empty() || !is_whole(&target, session.state.whole) {
        return Ok(target);
    }
    let Some(journal) = session.journal.clone() else {
        return Ok(target);
    };
    session.state.done.extend(missing.iter().cloned());
    let (plan, data) = (*plan, target.handle()?);
    blocking(move || {
        let chunks = missing.into_iter().flatten();
        journal.remember(&data, chunks.filter_map(|index| plan.span(index)))
    })
    .await?;
    Ok(target)
}
