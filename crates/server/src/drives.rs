//! The commands about drives: one method for each.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Body;
use hyper::header::HeaderValue;

use super::answer::{self, Answer};
use super::body::{self, Incoming, encoding, keys_and_values};
use super::budget::{SHARE_WAIT_MAX, Share};
use super::digests::{DIGEST_BYTES_MAX, Digesting};
use super::faults::ReportedExtents;
use super::fill::{Fill, Order, Packing};
use super::hosted::{Hosted, Purpose};
use super::metadata::Metadata;
use super::reading::DriveBytes;
use super::routes::Part;
use super::shared::Api;
use super::sparse;
use super::tasks::{blocking, detached};
use super::work::in_turns;
use super::writing::Write;
use openhosting_base::drive::DriveId;
use openhosting_base::wire::{
    EXTENSION_CANCEL, EXTENSION_DIGEST, EXTENSION_EXTENTS, Extents, Format, Properties,
    X_OPENHOSTING_EXTENSIONS,
};
use openhosting_tenancy::Refusal;

/// Sizes are rounded up to this if the server is configured to (docs/dev/reference.md, 1.6).
const ROUND_BYTES: u64 = 4 * 1024 * 1024;

type Result<T = Answer> = std::result::Result<T, Refusal>;

impl Api {
    /// The drives that `is_wanted`, in the order of their UUIDs, looked up one at a time.
    pub(super) fn drives(
        &self,
        is_wanted: impl Fn(&Metadata) -> bool + Send + Sync + 'static,
    ) -> impl Iterator<Item = Arc<Hosted>> + Send + Sync + 'static {
        let store = Arc::clone(&self.store);
        let mut last = None;
        std::iter::from_fn(move || {
            let drive = store.next(last, &is_wanted)?;
            last = Some(drive.id);
            Some(drive)
        })
    }

    pub(super) fn info(&self, user: &str, id: DriveId, is_full: bool, format: Format) -> Result {
        let drive = self.store.readable(user, id)?;
        Ok(self.announce(answer::object(&drive.info(is_full), format)))
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        user: Arc<str>,
        request: Request<Incoming>,
        format: Format,
    ) -> Result {
        let body = keys_and_values(request).await?;
        let metadata = Metadata::create(&user, &body, |size| self.round(size))?;
        if self.store.len() >= self.drives_max {
            tracing::warn!(
                drives = self.drives_max,
                "No file may be opened for another drive"
            );
            return Err(Refusal::full());
        }
        let api = Arc::clone(self);
        let drive = blocking(move || api.store.create(metadata)).await?;
        Ok(self.announce(answer::object(&drive.info(false), format)))
    }

    pub(super) async fn destroy(self: &Arc<Self>, user: &str, id: DriveId) -> Result {
        let api = Arc::clone(self);
        match self.store.own(user, id) {
            Ok(drive) => {
                // Nobody needs what is filling it any more.
                drive.cancel_imaging().await;
                let turn = drive.turn().await?;
                blocking(move || api.store.destroy(&turn)).await?;
            }
            Err(refusal) => {
                let user = user.to_owned();
                let damaged = move || api.store.destroy_damaged(&user, id);
                if !blocking(damaged).await? {
                    return Err(refusal);
                }
            }
        }
        Ok(answer::no_content())
    }

    pub(super) async fn set(
        self: &Arc<Self>,
        user: &str,
        id: DriveId,
        request: Request<Incoming>,
        format: Format,
    ) -> Result {
        let drive = self.store.own(user, id)?;
        let body = keys_and_values(request).await?;
        let turn = drive.turn().await?;
        let api = Arc::clone(self);
        let info = blocking(move || {
            let change = |metadata: &mut Metadata| metadata.merge(&body, |size| api.round(size));
            api.store.change(&turn, change)?;
            Ok(turn.drive().info(false))
        })
        .await?;
        Ok(answer::object(&info, format))
    }

    /// Answers when both drives are claimed and have the key `imaging`; the rest happens in the
    /// background (docs/dev/reference.md, 5.2).
    pub(super) async fn image(
        &self,
        user: &Arc<str>,
        id: DriveId,
        source: DriveId,
        packing: Packing,
    ) -> Result {
        let destination = self.store.own(user, id)?;
        let source = self.store.readable(user, source)?;
        let order = Order {
            source: source.id,
            packing,
            offset: 0,
        };
        let share = self.budgets.imagings.take_within(user, 1, Duration::ZERO);
        let share = share.await?;
        let imagings = Arc::clone(&self.imagings);
        // Once it is stored, it is carried out even if the client has gone.
        detached(async move {
            let turn = destination.turn().await?;
            let begins = Arc::clone(&imagings);
            let imaging = blocking(move || begins.begin(&turn, &source, order)).await?;
            tokio::spawn(imagings.run(imaging, Some(share)));
            Ok(answer::no_content())
        })
        .await
    }

    /// Cancels an imaging into a drive. If there is none, that is no error.
    pub(super) async fn cancel_image(&self, user: &str, id: DriveId) -> Result {
        if !self.has_extensions {
            return Err(Refusal::no_command());
        }
        self.store.own(user, id)?.cancel_imaging().await;
        Ok(answer::no_content())
    }

    pub(super) fn read(&self, user: &str, id: DriveId, offset: u64, size: Option<u64>) -> Result {
        let drive = self.store.readable(user, id)?;
        drive.check_readable()?;
        let past_the_end = || Refusal::usage("The read goes past the end of the drive");
        let rest = drive.size().checked_sub(offset).ok_or_else(past_the_end)?;
        if size.is_some_and(|size| size > self.read_bytes_max) {
            let most = self.read_bytes_max;
            let sentence = format!("A read is of at most {most} bytes");
            return Err(Refusal::usage(sentence));
        }
        let size = size.unwrap_or(rest);
        if size > rest {
            return Err(past_the_end());
        }
        drive.count_read(size);
        drive.traffic.reads_from(offset);
        let steps = self.steps.clone();
        Ok(answer::bytes(
            DriveBytes::new(drive, offset, size, steps).boxed(),
        ))
    }

    /// The SHA-256 of a range, so that a client can compare without reading it.
    pub(super) async fn digest(&self, user: &Arc<str>, part: Part, format: Format) -> Result {
        let drive = self.extended(user, part.drive)?;
        let range = check_range(&drive, part)?;
        if part.size > DIGEST_BYTES_MAX {
            let sentence = format!("A digest is of at most {DIGEST_BYTES_MAX} bytes");
            return Err(Refusal::usage(sentence));
        }
        let (_share, job) = self.join_digests(user).await?;
        drive.count_read(part.size);
        let (zeros, metrics) = (Arc::clone(&self.zeros), Arc::clone(&self.metrics));
        let read = Arc::clone(&drive);
        let mut digesting = Digesting::new(read, range, zeros, metrics);
        let digest = in_turns(job, move || Ok(digesting.step()?)).await;
        // If the drive was destroyed or shrank meanwhile, the range does not exist, whatever the
        // digest is.
        drive.check_readable()?;
        check_range(&drive, part)?;
        let digest = digest?;
        let mut properties = Properties::new();
        properties
            .insert("sha256", digest.to_string())
            .map_err(|_| Refusal::system("Cannot report the digest"))?;
        Ok(answer::object(&properties, format))
    }

    /// Where in a range the drive holds data, so that a client need not read the rest.
    pub(super) async fn extents(&self, user: &Arc<str>, part: Part, format: Format) -> Result {
        let drive = self.extended(user, part.drive)?;
        let requested = check_range(&drive, part)?;
        let (_share, job) = self.join_digests(user).await?;
        let (data, end) = match self.reported_extents {
            ReportedExtents::True => {
                let mut extents = sparse::Extents::new(requested.clone());
                let drive = Arc::clone(&drive);
                in_turns(job, move || Ok(extents.step(&drive.file))).await?
            }
            ReportedExtents::Hidden => (Vec::new(), requested.end),
        };
        // Something that began meanwhile may have moved the data.
        drive.check_readable()?;
        check_range(&drive, part)?;
        let extents =
            Extents::new(&requested, data, end).and_then(|extents| extents.to_properties());
        let properties = extents.map_err(|_| Refusal::system("Cannot report the extents"))?;
        Ok(answer::object(&properties, format))
    }

    /// A drive that can be read now, for an extension that no cloud has.
    fn extended(&self, user: &str, id: DriveId) -> Result<Arc<Hosted>> {
        if !self.has_extensions {
            return Err(Refusal::no_command());
        }
        let drive = self.store.readable(user, id)?;
        drive.check_readable()?;
        Ok(drive)
    }

    fn announce(&self, mut answer: Answer) -> Answer {
        if self.has_extensions {
            let names = format!("{EXTENSION_DIGEST}, {EXTENSION_EXTENTS}, {EXTENSION_CANCEL}");
            if let Ok(names) = HeaderValue::try_from(names) {
                answer.headers_mut().insert(X_OPENHOSTING_EXTENSIONS, names);
            }
        }
        answer
    }

    pub(super) async fn write(
        self: &Arc<Self>,
        user: &Arc<str>,
        id: DriveId,
        offset: u64,
        request: Request<Incoming>,
    ) -> Result {
        let drive = self.store.own(user, id)?;
        let encoding = encoding(request.headers())?;
        let at_most = self.writers_max;
        let write = Write {
            pass: drive.pass(Purpose::Write { at_most })?,
            offset,
            encoding,
            body_bytes: request.body().size_hint().exact(),
            past_end: self.past_end,
        };
        write.check()?;
        let bytes = write.share_bytes();
        let share = self.budgets.bodies.take_within(user, bytes, SHARE_WAIT_MAX);
        let share = share.await?;
        if write.held_bytes().is_some() {
            let mut buffer = self.memory.buffer(&write);
            body::fill(request.into_body(), &mut buffer).await?;
            let land = move |write: &Write, _: &Self| write.land(&buffer);
            return self.finish(write, share, land).await;
        }
        let (pump, frames) = body::stream(request.into_body());
        let work = self.finish(write, share, |write, api| {
            write.run(frames, &api.store, &api.memory)
        });
        tokio::pin!(work);
        // Do not wait for a refused body.
        tokio::select! {
            result = &mut work => result,
            () = pump => work.await,
        }
    }

    /// Carries out a write, and everything that follows it.
    async fn finish(
        self: &Arc<Self>,
        write: Write,
        share: Share,
        run: impl FnOnce(&Write, &Self) -> Result<u64> + Send + 'static,
    ) -> Result {
        let api = Arc::clone(self);
        let work = blocking(move || {
            let _share = share;
            let bytes = run(&write, &api)?;
            let drive = &write.pass.drive;
            drive.count_write(bytes);
            drive.traffic.wrote_to(write.offset.saturating_add(bytes));
            if drive.fill() == Fill::Incomplete {
                api.store.mark_whole(&drive.turn_blocking()?)?;
            }
            // Before the answer, because the client may destroy the drive as soon as it has it.
            drop(write);
            Ok(())
        });
        work.await.map(|()| answer::no_content())
    }

    fn round(&self, size: u64) -> Result<u64> {
        if !self.round_size {
            return Ok(size);
        }
        size.checked_next_multiple_of(ROUND_BYTES)
            .ok_or_else(|| Refusal::usage("The size is too large"))
    }
}

/// The bytes of a part; fails if it extends beyond the end of the drive.
fn check_range(drive: &Hosted, part: Part) -> Result<Range<u64>> {
    match part.offset.checked_add(part.size) {
        Some(end) if end <= drive.size() => Ok(part.offset..end),
        _ => Err(Refusal::usage("The range goes past the end of the drive")),
    }
}

pub(super) fn list(
    drives: impl Iterator<Item = Arc<Hosted>> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    answer::list("drive", drives.map(|drive| drive.id.to_string()), format)
}

pub(super) fn infos(
    drives: impl Iterator<Item = Arc<Hosted>> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    answer::objects(drives.map(|drive| drive.info(false)), format)
}
