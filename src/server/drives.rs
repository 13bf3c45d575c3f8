//! The commands: one method for each.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Body;
use hyper::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::task::{JoinError, spawn_blocking};

use super::admission::Admission;
use super::answer::{self, Answer, Refusal};
use super::auth::Users;
use super::body::{self, Incoming};
use super::budget::{Budgets, PATIENCE, Share};
use super::digests::{DIGEST_BYTES_MAX, Digesting, Zeros};
use super::faults::{Faults, PastEnd, ToldExtents};
use super::fill::{Fill, Order};
use super::guard::Guard;
use super::hosted::{Hosted, Purpose};
use super::imaging::Imagings;
use super::machines::Machines;
use super::metadata::Metadata;
use super::metrics::Metrics;
use super::page::Page;
use super::reading::{DriveBytes, Steps};
use super::routes::{Call, Packing};
use super::sparse;
use super::store::Store;
use super::work::{Job, Turns, in_turns};
use super::writing::{Encoding, Memory, Write};
use crate::drive::DriveId;
use crate::wire::{
    EXTENSION_CANCEL, EXTENSION_DIGEST, EXTENSION_EXTENTS, Extents, Format, Properties,
    X_OPENHOSTING_EXTENSIONS,
};

/// Sizes are rounded up to this, where the server is told to (docs/dev/reference.md, 1.6).
const ROUND_BYTES: u64 = 4 * 1024 * 1024;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) store: Arc<Store>,
    pub(super) machines: Arc<Machines>,
    pub(super) users: Users,
    pub(super) memory: Memory,
    pub(super) budgets: Budgets,
    pub(super) admission: Arc<Admission>,
    /// Held while the data directory is checked.
    pub(super) health: tokio::sync::Mutex<()>,
    pub(super) imagings: Imagings,
    pub(super) is_stopping: AtomicBool,
    pub(super) guard: Guard,
    /// The web page, if there is one.
    pub(super) page: Option<Page>,
    pub(super) metrics: Arc<Metrics>,
    /// Most drives of all users: each is an open file.
    pub(super) drives_max: usize,
    pub(super) writers_max: u32,
    pub(super) round_size: bool,
    pub(super) read_bytes_max: u64,
    pub(super) past_end: PastEnd,
    pub(super) faults: Faults,
    /// Buffers of reads.
    pub(super) steps: Steps,
    /// Digests, extents and maps of drives: a turn takes a core.
    pub(super) digests: Arc<Turns>,
    /// What digests of zeros begin with.
    pub(super) zeros: Arc<Zeros>,
    /// Whether there is more than the API has.
    pub(super) has_extensions: bool,
    pub(super) told_extents: ToldExtents,
}

type Result<T = Answer> = std::result::Result<T, Refusal>;

impl Api {
    /// Does what `user` asks for.
    pub(super) async fn call(
        self: &Arc<Self>,
        user: Arc<str>,
        call: Call,
        request: Request<Incoming>,
    ) -> Result {
        let format = Format::of_accept(text(request.headers(), &ACCEPT));
        match call {
            Call::List => Ok(list(self.drives(move |m| *m.user == *user), format)),
            Call::ListStandard => Ok(list(self.drives(Metadata::is_standard), format)),
            Call::InfoAll => Ok(infos(self.drives(move |m| *m.user == *user), format)),
            Call::InfoStandard => Ok(infos(self.drives(Metadata::is_standard), format)),
            Call::Info(id) => self.info(&user, id, false, format),
            Call::InfoFull(id) => self.info(&user, id, true, format),
            Call::Create => self.create(user, request, format).await,
            Call::Destroy(id) => self.destroy(&user, id).await,
            Call::Set(id) => self.set(&user, id, request, format).await,
            Call::Image(id, source, packing) => self.image(&user, id, source, packing).await,
            Call::CancelImage(id) => self.cancel_image(&user, id).await,
            Call::Read(id, offset, size) => self.read(&user, id, offset, size),
            Call::Digest(id, offset, size) => self.digest(&user, id, offset, size, format).await,
            Call::Extents(id, offset, size) => self.extents(&user, id, offset, size, format).await,
            Call::Write(id, offset) => self.write(&user, id, offset, request).await,
            Call::Server(call) => self.call_server(user, call, request, format).await,
            Call::Resource(call) => self.call_resource(user, call, request, format).await,
        }
    }

    /// The drives that `is_wanted`, by UUID, looked up one by one.
    fn drives(
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

    fn info(&self, user: &str, id: DriveId, is_full: bool, format: Format) -> Result {
        let drive = self.store.readable(user, id)?;
        Ok(self.announce(answer::object(&drive.info(is_full), format)))
    }

    async fn create(
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

    async fn destroy(self: &Arc<Self>, user: &str, id: DriveId) -> Result {
        let api = Arc::clone(self);
        match self.store.own(user, id) {
            Ok(drive) => {
                // What fills it is for nobody any more.
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

    async fn set(
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

    /// Answers when both drives are claimed and the key `imaging` is there; the
    /// rest happens in the background (docs/dev/reference.md, 5.2).
    async fn image(
        self: &Arc<Self>,
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
        let api = Arc::clone(self);
        // What is stored is carried out, also where the client has gone by then.
        let begun = tokio::spawn(async move {
            let turn = destination.turn().await?;
            let begins = Arc::clone(&api);
            let imaging = blocking(move || begins.begin_imaging(&turn, &source, order)).await?;
            tokio::spawn(api.image_in_background(imaging, Some(share)));
            Ok(answer::no_content())
        });
        begun.await.unwrap_or_else(|error| Err(broke_off(&error)))
    }

    /// Ends an imaging into a drive. There may be none: then all is as wanted.
    async fn cancel_image(&self, user: &str, id: DriveId) -> Result {
        if !self.has_extensions {
            return Err(Refusal::no_command());
        }
        self.store.own(user, id)?.cancel_imaging().await;
        Ok(answer::no_content())
    }

    fn read(&self, user: &str, id: DriveId, offset: u64, size: Option<u64>) -> Result {
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
        let steps = self.steps.clone();
        Ok(answer::bytes(
            DriveBytes::new(drive, offset, size, steps).boxed(),
        ))
    }

    /// The SHA-256 of a range, so that a client need not read it to compare.
    async fn digest(
        &self,
        user: &Arc<str>,
        id: DriveId,
        offset: u64,
        size: u64,
        format: Format,
    ) -> Result {
        let drive = self.extended(user, id)?;
        range(&drive, offset, size)?;
        if size > DIGEST_BYTES_MAX {
            let sentence = format!("A digest is of at most {DIGEST_BYTES_MAX} bytes");
            return Err(Refusal::usage(sentence));
        }
        let (_share, job) = self.join_digests(user).await?;
        drive.count_read(size);
        let (zeros, metrics) = (Arc::clone(&self.zeros), Arc::clone(&self.metrics));
        let read = Arc::clone(&drive);
        let mut digesting = Digesting::new(read, offset, size, zeros, metrics);
        let digest = in_turns(job, move || Ok(digesting.step()?)).await;
        // A drive that was destroyed or shrank meanwhile has no such range, whatever came
        // of it.
        drive.check_readable()?;
        range(&drive, offset, size)?;
        let digest = digest?;
        let mut properties = Properties::new();
        properties
            .insert("sha256", digest.to_string())
            .map_err(|_| Refusal::system("Cannot tell the digest"))?;
        Ok(answer::object(&properties, format))
    }

    /// Where in a range the drive holds data, so that a client need not read the
    /// rest.
    async fn extents(
        &self,
        user: &Arc<str>,
        id: DriveId,
        offset: u64,
        size: u64,
        format: Format,
    ) -> Result {
        let drive = self.extended(user, id)?;
        let asked = range(&drive, offset, size)?;
        let (_share, job) = self.join_digests(user).await?;
        let (data, end) = match self.told_extents {
            ToldExtents::True => {
                let mut extents = sparse::Extents::new(asked.clone());
                let drive = Arc::clone(&drive);
                in_turns(job, move || Ok(extents.step(&drive.file))).await?
            }
            ToldExtents::Hidden => (Vec::new(), asked.end),
        };
        // What began meanwhile may have moved the data.
        drive.check_readable()?;
        range(&drive, offset, size)?;
        let extents = Extents::new(&asked, data, end).and_then(|extents| extents.to_properties());
        let properties = extents.map_err(|_| Refusal::system("Cannot tell the extents"))?;
        Ok(answer::object(&properties, format))
    }

    /// A place in the queue of digests and the like, or 429 where `user` has too many.
    pub(super) async fn join_digests(&self, user: &Arc<str>) -> Result<(Share, Arc<Job>)> {
        let share = self.budgets.digests.take_within(user, 1, Duration::ZERO);
        Ok((share.await?, self.digests.join(user)))
    }

    /// A drive that may be read now, for a command that no cloud has.
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
            let name = HeaderName::from_static(X_OPENHOSTING_EXTENSIONS);
            let names = format!("{EXTENSION_DIGEST}, {EXTENSION_EXTENTS}, {EXTENSION_CANCEL}");
            if let Ok(names) = HeaderValue::try_from(names) {
                answer.headers_mut().insert(name, names);
            }
        }
        answer
    }

    async fn write(
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
        let bytes = write.buffer_bytes() as u64;
        let share = self.budgets.bodies.take_within(user, bytes, PATIENCE);
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
        // A refused body is not waited for.
        tokio::select! {
            result = &mut work => result,
            () = pump => work.await,
        }
    }

    /// Does the writing of a write, and all that follows.
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
            if drive.fill() == Fill::Incomplete {
                api.store.mark_whole(&drive.turn_blocking()?)?;
            }
            // Before the answer: who has it may destroy the drive at once.
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

/// The bytes of a drive from `offset` on, none past its end.
fn range(drive: &Hosted, offset: u64, size: u64) -> Result<Range<u64>> {
    match offset.checked_add(size) {
        Some(end) if end <= drive.size() => Ok(offset..end),
        _ => Err(Refusal::usage("The range goes past the end of the drive")),
    }
}

fn list(
    drives: impl Iterator<Item = Arc<Hosted>> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    answer::list("drive", drives.map(|drive| drive.id.to_string()), format)
}

fn infos(
    drives: impl Iterator<Item = Arc<Hosted>> + Send + Sync + 'static,
    format: Format,
) -> Answer {
    answer::objects(drives.map(|drive| drive.info(false)), format)
}

pub(super) async fn keys_and_values(request: Request<Incoming>) -> Result<Properties> {
    let format = Format::of_content_type(text(request.headers(), &CONTENT_TYPE));
    if encoding(request.headers())? != Encoding::Raw {
        return Err(Refusal::usage("Only the body of a write may be gzip"));
    }
    let body = body::small(request.into_body()).await?;
    Properties::parse(format, &body).map_err(|error| Refusal::usage(error.to_string()))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match values.next() {
        None => return Ok(Encoding::Raw),
        Some(value) => value.to_str().unwrap_or_default().to_ascii_lowercase(),
    };
    match (encoding.trim(), values.next()) {
        ("identity" | "", None) => Ok(Encoding::Raw),
        ("gzip" | "x-gzip", None) => Ok(Encoding::Gzip),
        _ => Err(Refusal::usage(
            "Content-Encoding is neither gzip nor identity",
        )),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Does `work` where it may block. It goes on when the client has gone.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    let work = spawn_blocking(move || span.in_scope(work));
    work.await.unwrap_or_else(|error| Err(broke_off(&error)))
}

/// What is answered for a command whose task did not come to its end.
pub(super) fn broke_off(error: &JoinError) -> Refusal {
    tracing::error!(%error, "A command broke off");
    Refusal::system("Internal fault of the server, its log tells more")
}
