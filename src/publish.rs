//! Publishes an image as a drive, and never shows a drive as finished that is not.
//!
//! ```text
//! image ─▶ content ─▶ is there one that holds it? ─▶ done, nothing is sent
//!                └─▶ a drive under another name: new, or the one of an earlier run
//!                      making ─▶ cloning ─▶ writing ─▶ verified ─▶ published
//! ```
//!
//! Everything that determines what the next run does is stored on the drive itself, in `user:` keys
//! (`keys`), so another machine can continue. A drive gets its name, its readers and its digest in
//! a single request, after its whole content was confirmed and verified. A drive is removed only if
//! it has the token of this publication.

mod base;
pub(crate) mod keys;
pub(crate) mod receipts;
pub(crate) mod selection;
mod sending_blocks;

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rangemap::RangeSet;
use tokio::sync::Notify;

use crate::advice::{Advice, Remedy};
use crate::amounts::counted;
use crate::api::Client;
use crate::chunk::is_zero;
use crate::codec::Compression;
use crate::content::{Content, blocks_in, count, elements_at, set_of};
use crate::digest::Digest;
use crate::drive::{DriveId, DriveInfo, DriveSpec, named};
use crate::driver::patience::Unanswered;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::{Disk, Fingerprint, Holes, Image, content_of};
use crate::journal::Journal;
use crate::monitor::{Event, Monitor, Phase};
use crate::plan::Span;
use crate::policy::{FRESH_FOR, Operation};
use crate::receipt::{Coverage, How, Receipt};
use crate::shard::{self, Shard};
use crate::transfer::{
    AsPhase, InspectOptions, Inspection, NewDrive, Patience, Stop, Verify, blocking, claim,
    counters, create, decide_holes, in_use, info_full, reporting, stopped,
};
use crate::wire::Properties;
use openhosting_base::advice;

use keys::{
    DIGEST_KEY, DriveState, GOAL_KEY, HOLDS_KEY, Holds, Mark, PUBLISH_KEY, PUBLISHED_KEY,
    SHARDS_KEY, SOURCE_KEY, STATE_KEY, WRITES_KEY, properties,
};
pub use receipts::check_receipt;
use receipts::write_receipt;
pub use selection::{Several, check_new_name, is_candidate, select};

/// Blocks to read back of a whole drive: if one in a hundred is damaged, this finds it with 95 %
/// probability.
const SAMPLE_BLOCKS: u64 = 300;
/// Blocks to read back of those that were written.
const WRITTEN_BLOCKS: u64 = 100;
/// Everyone, in the `readers` key (docs/dev/reference.md, 1.4).
const EVERYONE: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";
/// Minimum time between two checks of what the cloud is doing.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
/// Maximum time between two checks of what another machine, or the cloud, is doing.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(5);

/// The drive that a delta is applied to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// The newest drive that was published under this name.
    #[default]
    Auto,
    /// None: everything is sent.
    None,
    /// This drive.
    Drive(DriveId),
    /// The newest drive that was published under another name, or the only drive of that name.
    Name(String),
}

/// The part of the work that a run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    #[default]
    Whole,
    /// A part of the chunks. The first shard creates the drive, and the others wait for it.
    Shard(Shard),
    /// Check whether all shards are done, verify, and publish.
    Join,
}

/// The options of a publication.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// The name of the drive.
    pub name: String,
    /// Identifies all that is published under one name. By default, it is derived from the user and
    /// the name.
    pub token: Option<String>,
    /// The base of a delta.
    pub base: Base,
    /// Tags of the published drive.
    pub tags: Vec<String>,
    /// Who else may read it, in the form of the API; see [`readers`].
    pub readers: Option<String>,
    /// How many drives of this name to keep, including the new one; `None` for all.
    pub keep: Option<NonZeroU32>,
    /// Remove what unfinished runs left, and start over.
    pub clean_up: bool,
    /// What this run does.
    pub role: Role,
    /// Storage tier of a new drive.
    pub tier: String,
    /// Maximum number of requests in flight.
    pub jobs: NonZeroU32,
    /// Minimum number of requests in flight. Errors of the endpoint may lower the number below it.
    pub jobs_min: NonZeroU32,
    /// The compression level.
    pub compression: Compression,
    /// Maximum bytes of a request body, if the endpoint is known to refuse more.
    pub body_bytes_max: Option<NonZeroU64>,
    /// How long to continue without any success.
    pub patience: Patience,
    /// How much to read back.
    pub verify: Verify,
    /// How far holes that the file system reports are believed.
    pub holes: Holes,
    /// Directory for journals; `None` for no journals.
    pub journals: Option<PathBuf>,
    /// Directory for receipts, by drive; `None` for none.
    pub receipts: Option<PathBuf>,
    /// The file of the last receipt, which is replaced by the new one.
    pub receipt: Option<PathBuf>,
    /// Identifies the endpoint: its URL, unless that differs in each run.
    pub endpoint: String,
}

impl PublishOptions {
    /// The default options for a name: nothing is stored on this machine.
    pub fn to(name: impl Into<String>, endpoint: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            token: None,
            base: Base::default(),
            tags: Vec::new(),
            readers: None,
            keep: None,
            clean_up: false,
            role: Role::default(),
            tier: "disk".into(),
            jobs: crate::transfer::JOBS_DEFAULT,
            jobs_min: NonZeroU32::MIN,
            compression: Compression::default(),
            body_bytes_max: None,
            patience: Patience::default(),
            verify: Verify::default(),
            // The published digest must cover every byte.
            holes: Holes::Read,
            journals: None,
            receipts: None,
            receipt: None,
            endpoint: endpoint.into(),
        }
    }
}

/// The value of the `readers` key: `all`, or UUIDs separated by commas.
///
/// # Errors
/// [`ErrorKind::Usage`] for anything else.
pub fn readers(text: &str) -> Result<String> {
    if text == "all" {
        return Ok(EVERYONE.into());
    }
    // The identifier of a user has the same form as that of a drive.
    let users = text.split(',').map(|user| user.trim().parse::<DriveId>());
    let users: Option<Vec<String>> = users.map(|user| Some(user.ok()?.to_string())).collect();
    users.map(|users| users.join(" ")).ok_or_else(|| {
        let what =
            format!("Readers {text:?} are neither \"all\" nor user UUIDs with commas between");
        Error::new(ErrorKind::Usage, what).hint_to(advice!["Use ", Remedy::NameReaders])
    })
}

/// The result of a publication.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The drive. It has no name yet unless [`is_published`](Self::is_published).
    pub drive: DriveId,
    /// The root of its content.
    pub root: Digest,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether it has its name; `false` after a shard.
    pub is_published: bool,
    /// Whether it was published earlier, and another drive was the newest of the name since then.
    pub is_newest_again: bool,
    /// How its content came there.
    pub how: How,
    /// Bytes of chunk bodies that this run sent.
    pub sent_bytes: u64,
    /// How much was read back.
    pub verified: Coverage,
    /// Older drives that were destroyed.
    pub destroyed: Vec<DriveId>,
}

/// A publication that did not succeed.
#[derive(Debug)]
pub struct Unpublished {
    /// The reason.
    pub error: Error,
    /// The unfinished drive that is left: the same command resumes it.
    pub unfinished: Option<DriveId>,
}

displays_as_its_error!(Unpublished);

impl From<Error> for Unpublished {
    fn from(error: Error) -> Self {
        Self {
            error,
            unfinished: None,
        }
    }
}

/// Publishes an image. It is done when a drive has the name and the digest of the content, and
/// holds that content as far as `verify` requests a check.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/cloud.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cloud = Cloud::start().await?;
/// # let (client, path) = (&cloud.client, cloud.image()?);
/// # let endpoint = cloud.endpoint.clone();
/// use openhosting::image::Image;
/// use openhosting::monitor::Silent;
/// use openhosting::publish::{PublishOptions, publish};
/// use openhosting::transfer::Stop;
///
/// let options = PublishOptions::to("nightly", endpoint);
/// let image = Image::open_raw(&path)?;
/// let first = publish(client, image, &options, &mut Silent, Stop::never()).await?;
///
/// // The same content again: the drive is there, and nothing is sent.
/// let image = Image::open_raw(&path)?;
/// let again = publish(client, image, &options, &mut Silent, Stop::never()).await?;
/// assert_eq!((again.drive, again.sent_bytes), (first.drive, 0));
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Unpublished`], with the reason and what is left.
pub async fn publish(
    client: &Client,
    image: Image,
    options: &PublishOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
) -> Result<Published, Unpublished> {
    let clock = (SystemTime::now(), std::time::Instant::now());
    let decided = decide_holes(image, options.holes, monitor);
    let (image, _) = stop.clone().unless_asked(decided).await?;
    let Some(disk) = image.disk() else {
        let what = "An image that can only be read once cannot be published";
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("Publish a file that is not packed, or a URL whose server supports ranges")
            .into());
    };
    let blank = Content::new(disk.size());
    let mut publisher = Publisher::new(client, options, blank, monitor, stop)?;
    publisher.source = source(image.fingerprint());
    publisher.began = clock;
    match publisher.run(image).await {
        Ok(published) => Ok(published),
        Err(error) => {
            // What an upload can send later, a publication has to read again.
            let lacks = |remedy: &Remedy| *remedy == Remedy::ChangedOk;
            let hint = error.hint().map(|hint| hint.without(lacks));
            Err(Unpublished {
                error: error.hint_if(hint),
                unfinished: publisher.unfinished,
            })
        }
    }
}

/// Removes what unfinished runs left under this name, and nothing else: drives that have its token
/// and are not published. Returns their identifiers.
///
/// # Errors
/// Errors of the endpoint.
pub async fn clean_up(
    client: &Client,
    options: &PublishOptions,
    monitor: &mut dyn Monitor,
    stop: Stop,
) -> Result<Vec<DriveId>> {
    let mut publisher = Publisher::new(client, options, Content::new(0), monitor, stop)?;
    let drives = publisher.drives().await?;
    publisher.clean_up(&drives).await
}

/// The token of a name.
fn token(options: &PublishOptions, user: &str) -> Result<String> {
    let Some(token) = &options.token else {
        let what = format!("openhosting publish\n{user}\n{}", options.name);
        return Ok(Digest::of(what.as_bytes()).to_string()[..32].to_owned());
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=64).contains(&token.len()) && token.bytes().all(is_plain) {
        return Ok(token.clone());
    }
    let what =
        format!("Token {token:?} is not 1 to 64 letters, digits, dashes, underscores and dots");
    Err(Error::new(ErrorKind::Usage, what))
}

/// The name of an unfinished drive.
fn unfinished_name(name: &str) -> String {
    format!("{name} (unfinished)")
}

/// Distinguishes an image from others before it was read; `None` if that is impossible.
fn source(fingerprint: &Fingerprint) -> Option<String> {
    let Fingerprint {
        size,
        device,
        inode,
        modified_ns,
    } = fingerprint;
    let what = format!("openhosting source\n{size} {device} {inode} {modified_ns}");
    let digest = || Digest::of(what.as_bytes()).to_string()[..32].to_owned();
    fingerprint.detects_changes().then(digest)
}

/// Reads a whole image on another thread, and counts its bytes in `done`. Notifies `other` when it
/// has read something that `base` does not hold.
async fn read(
    image: Image,
    base: Option<Arc<Content>>,
    other: Arc<Notify>,
    done: Arc<AtomicU64>,
    mut stop: Stop,
) -> Result<(Image, Content)> {
    let watched = stop.clone();
    let read = blocking(move || {
        let Some(disk) = image.disk() else {
            return Err(Error::new(ErrorKind::Bug, "The image is a stream"));
        };
        let member = image.begin_check();
        let content = content_of(disk, base.as_deref(), |is_other, read_bytes| {
            if is_other {
                other.notify_one();
            }
            done.store(read_bytes, Ordering::Relaxed);
            !watched.is_asked()
        })?;
        if let Some(member) = member {
            member.finish_check(&|| !watched.is_asked())?;
        }
        image.check_unchanged()?;
        Ok((image, content))
    });
    tokio::select! {
        read = read => read,
        () = stop.asked_at_once() => Err(stopped()),
    }
}

/// One run.
struct Publisher<'a> {
    client: &'a Client,
    options: &'a PublishOptions,
    token: String,
    /// The content of the image; before it was read, only its size is right.
    content: Arc<Content>,
    root: Digest,
    /// See [`SOURCE_KEY`].
    source: Option<String>,
    monitor: &'a mut dyn Monitor,
    stop: Stop,
    rng: fastrand::Rng,
    unfinished: Option<DriveId>,
    /// Maximum number of open connections.
    open: u32,
    began: (SystemTime, std::time::Instant),
}

/// An unfinished drive, of an earlier run or new.
#[derive(Clone, Debug)]
struct Work {
    drive: DriveId,
    holds: Holds,
    /// Whether this run created it.
    is_new: bool,
    /// The content of its base, if known.
    base: Option<Arc<Content>>,
}

/// A drive into which the cloud copies while the image is still being read.
#[derive(Debug)]
struct Early {
    drive: DriveId,
    copied: Copied,
}

/// What a drive holds after the cloud was asked to copy a base into it.
#[derive(Debug)]
enum Copied {
    /// The base, with its content if known.
    Base(DriveId, Option<Arc<Content>>),
    /// The same as before.
    Nothing,
    /// Unknown.
    Unknown,
}

impl<'a> Publisher<'a> {
    fn new(
        client: &'a Client,
        options: &'a PublishOptions,
        content: Content,
        monitor: &'a mut dyn Monitor,
        stop: Stop,
    ) -> Result<Self> {
        Ok(Self {
            client,
            options,
            token: token(options, client.user())?,
            root: content.root(),
            content: Arc::new(content),
            source: None,
            monitor,
            stop,
            rng: fastrand::Rng::new(),
            unfinished: None,
            open: 1,
            began: (SystemTime::now(), std::time::Instant::now()),
        })
    }

    async fn run(&mut self, image: Image) -> Result<Published> {
        let mut drives = self.drives().await?;
        if self.options.clean_up {
            let gone = self.clean_up(&drives).await?;
            drives.retain(|drive| !gone.contains(&drive.id));
        }
        let (image, early) = self.read(image, &drives).await?;
        // Reading may have taken long.
        let drives = self.drives().await?;
        if let Some((drive, verified)) = self.published_already(&drives).await? {
            // Another drive with this content exists, so this one is not needed.
            if let Some(early) = early {
                self.destroy(early.drive).await?;
                self.unfinished = None;
            }
            // The run that published it may have been killed shortly after.
            if let Some(journal) = self.journal(drive) {
                let _ = blocking(move || Ok(std::fs::remove_file(journal))).await;
            }
            // The name means its newest drive, and the user wants it to mean this image.
            let newest = base::newest(&drives, &self.options.name);
            let is_newest_again = newest.is_some_and(|newest| newest.id != drive);
            if is_newest_again {
                self.name(drive).await?;
            }
            let done = self.complete(drive, How::Nothing, 0, verified).await?;
            return Ok(Published {
                is_newest_again,
                ..done
            });
        }
        match self.options.role {
            Role::Join => {
                let work = self.joined(&drives).await?;
                self.unfinished = Some(work.drive);
                let how = how(work.holds);
                self.finish(work.drive, how, 0, &RangeSet::new()).await
            }
            Role::Whole => {
                let work = match early {
                    Some(Early { drive, copied }) => self.begin_on(drive, copied, true).await?,
                    None => self.work(&drives, None).await?,
                };
                let all = 0..self.content.plan().count();
                let (journal, sent_bytes, written) = self.fill(image, &work, all).await?;
                let finished = self
                    .finish(work.drive, how(work.holds), sent_bytes, &written)
                    .await;
                // Not earlier: a run that is killed before this finds that everything was sent.
                drop(journal);
                finished
            }
            Role::Shard(shard) => self.shard(image, &drives, shard).await,
        }
    }

    /// Reads the image. As soon as it is known to differ from the base, the cloud starts to copy
    /// the base, because both may take long.
    async fn read(&mut self, image: Image, drives: &[DriveInfo]) -> Result<(Image, Option<Early>)> {
        let base = match self.options.role {
            Role::Whole => self.known_base(drives).await?,
            Role::Shard(_) | Role::Join => None,
        };
        let other = Arc::new(Notify::new());
        let content = base.as_ref().map(|(_, content)| Arc::clone(content));
        let done = Arc::<AtomicU64>::default();
        let size = image.disk().map(Disk::size);
        let hashing = Event::Phase {
            phase: Phase::Hash,
            bytes: size,
        };
        self.monitor.event(&hashing);
        let counted = Arc::clone(&done);
        let reading = read(
            image,
            content,
            Arc::clone(&other),
            counted,
            self.stop.clone(),
        );
        let mut reading = std::pin::pin!(reading);
        // An unfinished drive is resumed if it has this content, and reported otherwise.
        let is_first = keys::of_token(drives, &self.token).all(|(mark, _)| !mark.is_unfinished());
        let base = base.zip(self.source.clone()).filter(|_| is_first);
        let seen = async {
            tokio::select! {
                biased;
                () = other.notified() => Ok(()),
                read = &mut reading => Err(read),
            }
        };
        let seen = match reporting(self.monitor, &done, seen).await {
            Ok(()) => Ok(()),
            Err(read) => Err(read?),
        };
        let ((image, content), early) = match (seen, base) {
            (Err(read), _) => (read, None),
            (Ok(()), None) => (reporting(self.monitor, &done, reading).await?, None),
            (Ok(()), Some((base, source))) => {
                let mut read = None;
                let early = {
                    let mut early = std::pin::pin!(self.begin_early(base, source));
                    loop {
                        tokio::select! {
                            early = &mut early => break early?,
                            done = &mut reading, if read.is_none() => read = Some(done?),
                        }
                    }
                };
                let read = match read {
                    Some(read) => read,
                    None => {
                        self.monitor.event(&hashing);
                        reporting(self.monitor, &done, reading).await?
                    }
                };
                (read, Some(early))
            }
        };
        self.root = content.root();
        self.content = Arc::new(content);
        Ok((image, early))
    }

    /// The base, if its content is known. Problems with it are reported when it is needed.
    async fn known_base(
        &mut self,
        drives: &[DriveInfo],
    ) -> Result<Option<(DriveId, Arc<Content>)>> {
        match self.look_at_base(drives).await {
            Ok(base::Candidate::Fit(id, Some(content))) => Ok(Some((id, content))),
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            _ => Ok(None),
        }
    }

    /// Creates the drive and has the base copied into it, for an image of which is only known that
    /// it differs.
    async fn begin_early(
        &mut self,
        (base, content): (DriveId, Arc<Content>),
        source: String,
    ) -> Result<Early> {
        let keys = [
            (PUBLISH_KEY, self.token.clone()),
            (STATE_KEY, DriveState::Cloning.name().into()),
            (SOURCE_KEY, source),
            (HOLDS_KEY, Holds::Base(base).print()),
        ];
        let drive = self.create(&properties(keys)?).await?;
        let copied = self.copy_base(drive, base, Some(content)).await?;
        Ok(Early { drive, copied })
    }

    /// Sends a part of the chunks.
    async fn shard(
        &mut self,
        image: Image,
        drives: &[DriveInfo],
        shard: Shard,
    ) -> Result<Published> {
        let work = match shard.index() {
            1 => self.work(drives, Some(shard.count())).await?,
            _ => self.others_work(shard).await?,
        };
        let key = keys::shard_key(shard.index(), shard.count());
        let info = self.info(work.drive).await?;
        let is_done = info.properties.get(&key) == Some(&*self.root.to_string());
        let part = shard.part(self.content.plan().count());
        let (mut sent_bytes, mut verified) = (0, Coverage::default());
        if !is_done {
            let (journal, sent, written) = self.fill(image, &work, part.clone()).await?;
            sent_bytes = sent;
            let blocks = blocks_in(&part, self.content.block_plan().count());
            verified = self.verify(work.drive, blocks, &written).await?;
            self.set(work.drive, properties([(&*key, self.root.to_string())])?)
                .await?;
            drop(journal);
        }
        Ok(Published {
            drive: work.drive,
            root: self.root,
            size: self.content.size(),
            is_published: false,
            is_newest_again: false,
            how: how(work.holds),
            sent_bytes,
            verified,
            destroyed: Vec::new(),
        })
    }

    /// Waits for the drive that the first shard creates, until it may be written to.
    async fn others_work(&mut self, shard: Shard) -> Result<Work> {
        let began = std::time::Instant::now();
        let mut is_reported = false;
        loop {
            let drives = self.drives().await?;
            let found = self.mine(&drives).into_iter().find(|(mark, _)| {
                mark.state == DriveState::Writing && mark.shards == Some(shard.count())
            });
            if let Some((mark, drive)) = found {
                let (drive, holds) = (drive.id, mark.holds);
                self.unfinished = Some(drive);
                let base = self.content_under(holds).await;
                return Ok(Work {
                    drive,
                    holds,
                    is_new: false,
                    base,
                });
            }
            let other = self.of_another_image(&drives, Some(shard.count()));
            if began.elapsed() >= self.options.patience.max_outage() {
                return Err(self.no_drive(shard, other));
            }
            if !is_reported {
                let but = other.map_or(String::new(), |other| {
                    format!("; drive {other} is for another image")
                });
                self.monitor
                    .notice(format!("Waiting for the drive that shard 1 makes{but}"));
                is_reported = true;
            }
            self.pause(Duration::from_secs(1)).await?;
        }
    }

    /// A drive of this publication that shards fill with another image: as many shards as given.
    fn of_another_image(&self, drives: &[DriveInfo], shards: Option<u32>) -> Option<DriveId> {
        keys::of_token(drives, &self.token)
            .find(|(mark, _)| {
                mark.is_unfinished()
                    && mark.shards.is_some()
                    && (shards.is_none() || mark.shards == shards)
                    && mark.goal.is_some_and(|goal| goal != self.root)
            })
            .map(|(_, drive)| drive.id)
    }

    /// The error for a drive that shards fill with another image than that of this run. No
    /// repetition helps.
    fn other_image(&mut self, whose: &str, other: DriveId) -> Error {
        self.unfinished = Some(other);
        let what = format!(
            "The image of {whose} is not that of drive {other}, which the shards of {:?} fill",
            self.options.name
        );
        Error::new(ErrorKind::Integrity, what).permanent().hint_to(
            "Run all shards with the same image; to fill a new drive, remove that one first",
        )
    }

    /// The error after waiting for the drive of the first shard. The same command may find it later,
    /// unless that shard has another image: then no repetition helps.
    fn no_drive(&mut self, shard: Shard, other: Option<DriveId>) -> Error {
        let Some(other) = other else {
            let what = format!("Shard 1 of {} made no drive", shard.count());
            return Error::new(ErrorKind::Unavailable, what)
                .hint_to("Run all shards with the same image, name and token");
        };
        self.other_image(&format!("shard {shard}"), other)
    }

    /// The drive on which all shards have worked.
    async fn joined(&mut self, drives: &[DriveInfo]) -> Result<Work> {
        let mut mine = self.mine(drives).into_iter();
        let Some((mark, drive)) = mine.find(|(mark, _)| mark.state == DriveState::Writing) else {
            if let Some(other) = self.of_another_image(drives, None) {
                return Err(self.other_image("this command", other));
            }
            let what = format!(
                "No drive of shards of {:?} with this content",
                self.options.name
            );
            return Err(Error::new(ErrorKind::Unavailable, what)
                .hint_to("Run the shards first, with the same image, name and token"));
        };
        let Some(count) = mark.shards else {
            let what = format!("Drive {} is not made of shards", drive.id);
            return Err(Error::new(ErrorKind::Usage, what).hint_to(advice![
                "Finish it with the same command without ",
                Remedy::Join,
            ]));
        };
        let root = self.root.to_string();
        let is_missing =
            |index: &u32| drive.properties.get(&keys::shard_key(*index, count)) != Some(&*root);
        let missing: Vec<u32> = (1..=count).filter(is_missing).collect();
        if !missing.is_empty() {
            self.unfinished = Some(drive.id);
            return Err(shard::missing(&missing, count));
        }
        Ok(Work {
            drive: drive.id,
            holds: mark.holds,
            is_new: false,
            base: None,
        })
    }

    /// The unfinished drives with this token and content.
    fn mine<'d>(&self, drives: &'d [DriveInfo]) -> Vec<(Mark, &'d DriveInfo)> {
        let mine = keys::of_token(drives, &self.token).filter(|(mark, drive)| {
            // A drive that was created before its image was read was never written to.
            let is_goal = match mark.goal {
                Some(goal) => goal == self.root,
                None => mark.source.is_some() && mark.source == self.source,
            };
            mark.is_unfinished() && is_goal && drive.size >= self.content.size()
        });
        let mut mine: Vec<_> = mine.collect();
        mine.sort_by_key(|(_, drive)| drive.id);
        mine
    }

    /// A drive of this name that has this content according to its keys, and how much of it was
    /// compared to be sure.
    async fn published_already(
        &mut self,
        drives: &[DriveInfo],
    ) -> Result<Option<(DriveId, Coverage)>> {
        let mut same: Vec<_> = named(drives, &self.options.name).collect();
        same.sort_by_key(|drive| keys::newest_first(drive));
        let marked = same
            .into_iter()
            .filter_map(|drive| Some((Mark::of(drive)?, drive)));
        let same = marked.filter(|(mark, drive)| {
            mark.digest == Some(self.root) && drive.size >= self.content.size()
        });
        let same: Vec<_> = same.map(|(mark, drive)| (mark, drive.id)).collect();
        for (mark, id) in same {
            let Some(full) = if_there(self.info_full(id).await)? else {
                continue;
            };
            if full.imaging().is_some() || is_broken(&full) {
                continue;
            }
            let all = 0..self.content.block_plan().count();
            let to_check = match (mark.writes, counters(&full)) {
                (Some(then), Some(now)) if then == now => RangeSet::new(),
                // Something wrote to it, or the cloud counts its own accesses.
                (Some(_), Some(_)) => {
                    self.monitor.warn(format!(
                        "Drive {id} was written to since it was published: all of it is compared"
                    ));
                    set_of(all)
                }
                _ if self.options.verify == Verify::None => RangeSet::new(),
                _ => pick(&set_of(all), SAMPLE_BLOCKS, &mut self.rng),
            };
            let checked = count(to_check.iter());
            let differing = self
                .inspect(id, &Arc::clone(&self.content), to_check)
                .await?;
            if !differing.is_empty() {
                self.monitor.warn(format!(
                    "Drive {id} does not hold any more what was published: it is left alone"
                ));
                continue;
            }
            let of = self.content.block_plan().count();
            return Ok(Some((id, Coverage { checked, of })));
        }
        Ok(None)
    }

    /// The drive to work on: that of an earlier run, or a new one.
    async fn work(&mut self, drives: &[DriveInfo], shards: Option<u32>) -> Result<Work> {
        let mine = self.mine(drives);
        let is_mine = |drive: &DriveInfo| mine.iter().any(|(_, mine)| mine.id == drive.id);
        let others = keys::of_token(drives, &self.token)
            .filter(|(mark, drive)| mark.is_unfinished() && !is_mine(drive));
        let others: Vec<String> = others.map(|(_, drive)| drive.id.to_string()).collect();
        let taken = mine.first().map(|(mark, drive)| (mark.clone(), drive.id));
        if !others.is_empty() {
            self.monitor.warn(advice![
                format!("Unfinished, with another image: {}; ", others.join(" ")),
                Remedy::CleanUp,
                " removes it",
            ]);
        }
        let Some((mark, drive)) = taken else {
            return self.make(drives, shards).await;
        };
        self.unfinished = Some(drive);
        self.monitor
            .notice(format!("Resuming on the unfinished drive {drive}"));
        let info = self.info(drive).await?;
        if let (DriveState::Writing, Some(by)) = (mark.state, claim(&info)) {
            return Err(in_use(self.client, &info, &by, Advice::default()).await);
        }
        if shards.is_some() && mark.shards != shards {
            let count = shards.unwrap_or(0).to_string();
            self.set(drive, properties([(keys::SHARDS_KEY, count)])?)
                .await?;
        }
        let base = self.content_under(mark.holds).await;
        match mark.state {
            DriveState::Writing | DriveState::Published => Ok(Work {
                drive,
                holds: mark.holds,
                is_new: false,
                base,
            }),
            DriveState::Making => self.make_ready(drive).await,
            DriveState::Cloning => match mark.holds {
                Holds::Base(id) => self.clone_base(drive, id, base, false).await,
                _ => self.make_ready(drive).await,
            },
        }
    }

    /// Creates the drive, as a copy of the base if there is one.
    async fn make(&mut self, drives: &[DriveInfo], shards: Option<u32>) -> Result<Work> {
        let base = self.base(drives).await?;
        let (state, holds) = match &base {
            Some((base, _)) => (DriveState::Cloning, Holds::Base(*base)),
            None => (DriveState::Making, Holds::Unknown),
        };
        let keys = [
            (PUBLISH_KEY, self.token.clone()),
            (STATE_KEY, state.name().into()),
            (GOAL_KEY, self.root.to_string()),
            (HOLDS_KEY, holds.print()),
        ];
        let shards = shards.map(|shards| (SHARDS_KEY, shards.to_string()));
        let drive = self
            .create(&properties(keys.into_iter().chain(shards))?)
            .await?;
        match base {
            Some((id, content)) => self.clone_base(drive, id, content, true).await,
            None => self.make_ready(drive).await,
        }
    }

    async fn create(&mut self, keys: &Properties) -> Result<DriveId> {
        let spec = DriveSpec {
            name: unfinished_name(&self.options.name),
            size: self.content.size(),
            tier: self.options.tier.clone(),
            shared: false,
        };
        // Otherwise a run without a journal would leave a drive behind.
        if let Some(directory) = self.options.journals.clone() {
            blocking(move || Journal::check_place(&directory)).await?;
        }
        let once = uuid::Uuid::new_v4().as_simple().to_string();
        let mut stop = self.stop.clone();
        let new = NewDrive {
            spec: &spec,
            keys,
            optional: &[],
            token: &once,
        };
        let patience = &self.options.patience;
        let created = tokio::select! {
            created = patience.watching(
                self.monitor,
                create(self.client, &new, false, patience),
            ) => created,
            () = stop.asked() => return Err(stopped()),
        };
        let drive = created.map_err(|not| not.error)?.drive;
        self.unfinished = Some(drive.id);
        self.monitor.event(&Event::Drive {
            id: drive.id,
            size: drive.size,
            is_new: true,
        });
        let bears = self.info_of_new(drive.id).await?;
        if Mark::of(&bears).is_none_or(|mark| mark.token != self.token) {
            // Without its keys it would never be found again.
            self.destroy(drive.id).await?;
            self.unfinished = None;
            let what = "The endpoint does not keep user: keys, which publishing needs";
            return Err(Error::new(ErrorKind::Rejected, what)
                .hint_to("Upload the image instead, without publishing it"));
        }
        Ok(drive.id)
    }

    /// The state of a drive that was created a moment ago: not every part of the endpoint may know
    /// it yet.
    async fn info_of_new(&mut self, drive: DriveId) -> Result<DriveInfo> {
        let began = std::time::Instant::now();
        loop {
            match self.info(drive).await {
                Err(error)
                    if error.kind() == ErrorKind::NotFound && began.elapsed() < FRESH_FOR =>
                {
                    self.pause(Duration::from_secs(1)).await?;
                }
                looked => return looked,
            }
        }
    }

    /// Prepares a drive to which nothing was written: proves that it reads as zeros, before
    /// anything is written.
    async fn make_ready(&mut self, drive: DriveId) -> Result<Work> {
        let plan = self.content.block_plan();
        let last = plan.count().saturating_sub(1);
        let spans = [0, last / 2, last].map(|block| plan.span(block));
        let (client, patience) = (self.client, &self.options.patience);
        let reads_as_zeros = |span: Option<Span>| async move {
            let Some(span) = span else { return Ok(true) };
            let read = || client.read(drive, span.offset, span.len);
            let bytes = patience.call(client, Operation::Write, read).await;
            let what = "Cannot read the new drive";
            let bytes = bytes.map_err(|unanswered| unanswered.into_error(what))?;
            Ok::<_, Error>(is_zero(&bytes))
        };
        let [first, middle, last] = spans.map(reads_as_zeros);
        let proofs = async {
            if self.options.jobs.get() < 3 {
                return Ok((first.await?, middle.await?, last.await?));
            }
            tokio::try_join!(first, middle, last)
        };
        let proofs = self.stop.unless_asked(proofs);
        let (first, middle, last) = patience.watching(self.monitor, proofs).await?;
        let is_proven = first && middle && last;
        let holds = if is_proven {
            Holds::Zeros
        } else {
            self.monitor
                .warn("The new drive does not read as zeros: zeros are sent");
            Holds::Unknown
        };
        self.begin_writing(drive, holds, true, None).await
    }

    /// Records that from now on bytes of the image are written.
    async fn begin_writing(
        &mut self,
        drive: DriveId,
        holds: Holds,
        is_new: bool,
        base: Option<Arc<Content>>,
    ) -> Result<Work> {
        let keys = properties([
            (STATE_KEY, DriveState::Writing.name().into()),
            (GOAL_KEY, self.root.to_string()),
            (HOLDS_KEY, holds.print()),
        ])?;
        self.set(drive, keys).await?;
        Ok(Work {
            drive,
            holds,
            is_new,
            base,
        })
    }

    /// Reads back what `verify` requests. See [`differs`](Self::differs) for a drive that differs.
    async fn verify(
        &mut self,
        drive: DriveId,
        blocks: std::ops::Range<u64>,
        written: &RangeSet<u64>,
    ) -> Result<Coverage> {
        let of = self.content.block_plan().count();
        let all = set_of(blocks);
        let (sample, more) = match self.options.verify {
            Verify::None => return Ok(Coverage { checked: 0, of }),
            Verify::Full => (all, RangeSet::new()),
            Verify::Sample => (
                pick(&all, SAMPLE_BLOCKS, &mut self.rng),
                pick(written, WRITTEN_BLOCKS, &mut self.rng),
            ),
        };
        let checked = count(sample.iter());
        let mut to_check = sample;
        to_check.extend(more);
        let content = Arc::clone(&self.content);
        let differing = self.inspect(drive, &content, to_check).await?;
        let Some(first) = differing.first() else {
            return Ok(Coverage { checked, of });
        };
        let offset = first.start * self.content.block_plan().chunk_bytes();
        let what = format!(
            "Drive {drive} does not hold what was sent: it differs in {}, the first at byte {offset}",
            counted(count(differing.iter()), "block")
        );
        let hint = match (self.differs(drive).await, self.options.role) {
            (Err(error), _) => advice![
                format!(
                    "Nothing was published, and no key of the drive says that it differs: {}. Remove it with ",
                    error.chain()
                ),
                Remedy::CleanUp,
            ],
            (Ok(()), Role::Join) => advice![
                "Nothing was published. Run all shards again, which compare their parts and send what differs, then ",
                Remedy::Join,
                " again",
            ],
            (Ok(()), Role::Whole | Role::Shard(_)) => {
                "Nothing was published. The same command compares all of it and sends what differs"
                    .into()
            }
        };
        Err(Error::new(ErrorKind::Integrity, what).hint_to(hint))
    }

    /// Marks a drive that differs as having unknown content, so that the next run compares all of
    /// it. If it differs as a whole, no shard counts as done any more, because the sample does not
    /// show which one sent something else.
    async fn differs(&mut self, drive: DriveId) -> Result<()> {
        let info = self.info(drive).await?;
        let count = match self.options.role {
            Role::Shard(_) => None,
            Role::Whole | Role::Join => Mark::of(&info).and_then(|mark| mark.shards),
        };
        let count = count.unwrap_or(0);
        let shards = (1..=count).map(|index| keys::shard_key(index, count));
        let shards: Vec<_> = shards
            .filter(|key| info.properties.get(key).is_some())
            .collect();
        let shards = shards.iter().map(|key| (&**key, "differs".to_owned()));
        let holds = (HOLDS_KEY, Holds::Unknown.print());
        let keys = properties(std::iter::once(holds).chain(shards))?;
        self.set(drive, keys).await
    }

    /// Verifies a drive that has all of its bytes, and gives it its name.
    async fn finish(
        &mut self,
        drive: DriveId,
        how: How,
        sent_bytes: u64,
        written: &RangeSet<u64>,
    ) -> Result<Published> {
        let all = 0..self.content.block_plan().count();
        let verified = self.verify(drive, all, written).await?;
        self.name(drive).await?;
        self.unfinished = None;
        self.complete(drive, how, sent_bytes, verified).await
    }

    /// Gives a drive its name, readers, tags and digest in a single request, so that it never has
    /// only some of them.
    async fn name(&mut self, drive: DriveId) -> Result<()> {
        let full = self.info_full(drive).await?;
        let mut keys = vec![
            ("name", self.options.name.clone()),
            (STATE_KEY, DriveState::Published.name().into()),
            (DIGEST_KEY, self.root.to_string()),
            (PUBLISHED_KEY, now_ms().to_string()),
        ];
        if let Some((bytes, requests)) = counters(&full) {
            keys.push((WRITES_KEY, format!("{bytes} {requests}")));
        }
        if !self.options.tags.is_empty() {
            keys.push(("tags", self.options.tags.join(" ")));
        }
        if let Some(readers) = &self.options.readers {
            keys.push(("readers", readers.clone()));
        }
        self.set(drive, properties(keys)?).await?;
        let named = self.info(drive).await?;
        let is_named = named.name() == Some(&self.options.name)
            && Mark::of(&named).is_some_and(|mark| mark.digest == Some(self.root));
        if !is_named {
            let what = format!("Drive {drive} did not take its name and its keys");
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        Ok(())
    }

    /// Completes the work after a drive was published: stores the receipt, and removes what it
    /// supersedes.
    async fn complete(
        &mut self,
        drive: DriveId,
        how: How,
        sent_bytes: u64,
        verified: Coverage,
    ) -> Result<Published> {
        let (began, clock) = self.began;
        let receipt = Receipt {
            drive,
            endpoint: self.options.endpoint.clone(),
            name: self.options.name.clone(),
            content: (*self.content).clone(),
            how,
            sent_bytes,
            began: began
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            took: clock.elapsed(),
            verified,
        };
        let asked = self.options.receipt.clone();
        let own = self.options.receipts.clone();
        let own = own.map(|directory| receipts::receipt_file(&directory, drive));
        let written = blocking(move || {
            // The user did not request this receipt, so a failure is ignored.
            let spare = own.map_or(Ok(()), |path| write_receipt(&path, &receipt));
            asked.map_or(Ok(()), |path| write_receipt(&path, &receipt))?;
            Ok(spare)
        })
        .await?;
        if let Err(error) = written {
            self.monitor.warn(format!(
                "{}; the next delta has to read the drive",
                error.chain()
            ));
        }
        let destroyed = match self.options.keep {
            Some(keep) => self.keep(drive, keep).await?,
            None => Vec::new(),
        };
        Ok(Published {
            drive,
            root: self.root,
            size: self.content.size(),
            is_published: true,
            is_newest_again: false,
            how,
            sent_bytes,
            verified,
            destroyed,
        })
    }

    /// Destroys superseded drives, now that there is a newer one.
    async fn keep(&mut self, new: DriveId, keep: NonZeroU32) -> Result<Vec<DriveId>> {
        let drives = self.drives().await?;
        let (name, token) = (&self.options.name, &self.token);
        let old = keys::superseded(&drives, name, token, new, keep.get());
        let old: Vec<DriveId> = old.into_iter().map(|drive| drive.id).collect();
        let mut destroyed = Vec::new();
        for id in old {
            // A server may just have been started from it.
            match self.destroy_if(id, keys::is_idle).await? {
                Removal::Done => destroyed.push(id),
                Removal::Changed => {}
                Removal::InUse => self.monitor.warn(format!("Drive {id} is in use and stays")),
            }
        }
        Ok(destroyed)
    }

    async fn clean_up(&mut self, drives: &[DriveInfo]) -> Result<Vec<DriveId>> {
        let (left, published): (Vec<_>, Vec<_>) =
            keys::of_token(drives, &self.token).partition(|(mark, _)| mark.is_unfinished());
        let left: Vec<DriveId> = left.into_iter().map(|(_, drive)| drive.id).collect();
        // A run that was killed just after it published left its journal.
        let journals = published.iter();
        let journals: Vec<_> = journals
            .filter_map(|(_, drive)| self.journal(drive.id))
            .collect();
        blocking(move || {
            for journal in journals {
                let _ = std::fs::remove_file(journal);
            }
            Ok(())
        })
        .await?;
        let mut removed = Vec::new();
        for id in left {
            if let Some(journal) = self.journal(id) {
                blocking(move || Journal::check_unused(&journal)).await?;
            }
            if_there(self.wait_for_imaging(id).await)?;
            let token = self.token.clone();
            let is_unfinished = move |info: &DriveInfo| {
                Mark::of(info).is_some_and(|mark| mark.is_unfinished() && mark.token == token)
            };
            match self.destroy_if(id, is_unfinished).await? {
                Removal::Done => {
                    removed.push(id);
                    self.monitor
                        .notice(format!("Removed the unfinished drive {id}"));
                }
                Removal::Changed => self.monitor.notice(format!(
                    "Drive {id} stays: another run has published it meanwhile"
                )),
                Removal::InUse => self.monitor.warn(format!(
                    "Drive {id} is in use and stays; another run may be writing to it"
                )),
            }
        }
        Ok(removed)
    }

    /// Destroys a drive that nobody else uses, and the files on this machine about it.
    async fn destroy(&mut self, drive: DriveId) -> Result<()> {
        let client = self.client;
        let gone = self
            .call(&format!("Cannot remove drive {drive}"), || async move {
                match client.destroy(drive).await {
                    Err(Failure::Refused(refusal)) if refusal.status == 404 => Ok(()),
                    destroyed => destroyed.map(|_| ()),
                }
            })
            .await;
        gone?;
        self.forget(drive).await
    }

    /// Destroys a drive if it is as expected directly before each attempt, and the files on this
    /// machine about it. An endpoint refuses to destroy a drive while something writes to it, and
    /// what writes may be a publication that is about to end.
    async fn destroy_if(
        &mut self,
        drive: DriveId,
        is_expected: impl Fn(&DriveInfo) -> bool,
    ) -> Result<Removal> {
        let (client, is_expected) = (self.client, &is_expected);
        let removal = self
            .call(&format!("Cannot remove drive {drive}"), || async move {
                match client.info(drive).await {
                    Ok(info) if !is_expected(&info) => return Ok(Removal::Changed),
                    Err(Failure::Refused(refusal)) if refusal.status == 404 => {
                        return Ok(Removal::Done);
                    }
                    info => info?,
                };
                match client.destroy(drive).await {
                    Err(Failure::Refused(refusal)) if refusal.status == 404 => Ok(Removal::Done),
                    Err(Failure::Refused(refusal)) if refusal.status == 409 => Ok(Removal::InUse),
                    destroyed => destroyed.map(|_| Removal::Done),
                }
            })
            .await?;
        if removal == Removal::Done {
            self.forget(drive).await?;
        }
        Ok(removal)
    }

    /// Removes the files on this machine about a drive.
    async fn forget(&mut self, drive: DriveId) -> Result<()> {
        let receipts = self.options.receipts.clone();
        let files = [
            self.journal(drive),
            receipts.map(|directory| receipts::receipt_file(&directory, drive)),
        ];
        blocking(move || {
            for file in files.into_iter().flatten() {
                // Most of these files never existed, and a leftover one belongs to no drive.
                let _ = std::fs::remove_file(file);
            }
            Ok(())
        })
        .await
    }

    /// Compares blocks of a drive with a content, for verification.
    async fn inspect(
        &mut self,
        drive: DriveId,
        content: &Arc<Content>,
        blocks: RangeSet<u64>,
    ) -> Result<RangeSet<u64>> {
        self.compare(drive, content, blocks, false).await
    }

    /// As [`inspect`](Self::inspect). With `trusts_holes`, a hole that the endpoint reports counts
    /// as zeros, which is for finding out what to send.
    async fn compare(
        &mut self,
        drive: DriveId,
        content: &Arc<Content>,
        blocks: RangeSet<u64>,
        trusts_holes: bool,
    ) -> Result<RangeSet<u64>> {
        if blocks.is_empty() {
            return Ok(blocks);
        }
        let options = InspectOptions {
            blocks,
            trusts_holes,
            // When finding out what to send, only the requested blocks matter.
            widens: !trusts_holes,
            open: self.open,
            jobs: self.options.jobs.get(),
            patience: self.options.patience.clone(),
        };
        let stop = self.stop.clone();
        let phase = match trusts_holes {
            true => Phase::Compare,
            false => Phase::Check,
        };
        let monitor = &mut AsPhase {
            monitor: self.monitor,
            phase,
            scale: None,
        };
        let inspection = Inspection {
            client: self.client,
            drive,
            content,
            options: &options,
        };
        inspection.run(monitor, stop).await
    }

    async fn drives(&mut self) -> Result<Vec<DriveInfo>> {
        let client = self.client;
        let error =
            |unanswered: Unanswered| unanswered.into_error_without_drive("Cannot list the drives");
        self.call_or(error, || client.drives()).await
    }

    async fn info(&mut self, drive: DriveId) -> Result<DriveInfo> {
        let client = self.client;
        let what = format!("Cannot look at drive {drive}");
        self.call(&what, || client.info(drive)).await
    }

    async fn info_full(&mut self, drive: DriveId) -> Result<DriveInfo> {
        let client = self.client;
        let what = format!("Cannot look at drive {drive}");
        self.call(&what, || info_full(client, drive)).await
    }

    async fn set(&mut self, drive: DriveId, keys: Properties) -> Result<()> {
        let client = self.client;
        let what = format!("Cannot set keys of drive {drive}");
        self.call(&what, || client.set(drive, &keys)).await
    }

    /// Repeats a request about a drive until it succeeds, or until it is asked to stop.
    async fn call<T, F>(&mut self, what: &str, request: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let error = |unanswered: Unanswered| unanswered.into_error(what);
        self.call_or(error, request).await
    }

    async fn call_or<T, F>(
        &mut self,
        error: impl FnOnce(Unanswered) -> Error,
        request: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let patience = &self.options.patience;
        let answer = async {
            let answer = patience.call(self.client, Operation::Write, request).await;
            answer.map_err(error)
        };
        let answer = self.stop.unless_asked(answer);
        patience.watching(self.monitor, answer).await
    }

    async fn pause(&mut self, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.asked() => Err(stopped()),
        }
    }
}

/// What became of a drive that was to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It is gone.
    Done,
    /// It is not what it was when it was listed.
    Changed,
    /// Something uses it, or writes to it.
    InUse,
}

fn how(holds: Holds) -> How {
    match holds {
        Holds::Base(id) => How::Delta(id),
        Holds::Zeros | Holds::Unknown => How::Full,
    }
}

/// `None` for a drive that is gone: since it was listed, another publication may have removed it.
fn if_there(looked: Result<DriveInfo>) -> Result<Option<DriveInfo>> {
    match looked {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// After a failed imaging, a drive is not `active` (docs/dev/reference.md, 1.3).
fn is_broken(drive: &DriveInfo) -> bool {
    drive.properties.get("status") == Some("inactive")
}

/// The current time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Selects `wanted` of these blocks, each with equal probability; all if there are no more.
pub fn pick(from: &RangeSet<u64>, wanted: u64, rng: &mut fastrand::Rng) -> RangeSet<u64> {
    let all = count(from.iter());
    if all <= wanted {
        return from.clone();
    }
    let mut positions = BTreeSet::new();
    while (positions.len() as u64) < wanted {
        positions.insert(rng.u64(..all));
    }
    let blocks = elements_at(from, positions);
    blocks.map(|block| block..block + 1).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn readers_are_all_or_users() {
        let user = "0012e24a-6eae-4279-9912-3432f698cec8";
        assert_eq!(readers("all").unwrap(), EVERYONE);
        assert_eq!(readers(user).unwrap(), user);
        assert_eq!(
            readers(&format!("{user}, {user}")).unwrap(),
            format!("{user} {user}")
        );
        for bad in ["", "bob", &format!("{user},"), "all,all"] {
            assert!(readers(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_derived_from_user_and_name_or_given() {
        let mut options = PublishOptions::to("n", "e");
        let of = |options: &PublishOptions, user| token(options, user).unwrap();
        assert_eq!(of(&options, "u").len(), 32);
        assert_eq!(of(&options, "u"), of(&PublishOptions::to("n", "x"), "u"));
        assert_ne!(of(&options, "u"), of(&options, "v"));
        assert_ne!(of(&options, "u"), of(&PublishOptions::to("m", "e"), "u"));
        options.token = Some("ci-7.x_".into());
        assert_eq!(of(&options, "u"), "ci-7.x_");
        for bad in ["", "a b", "a\nb", "é", &"x".repeat(65)] {
            options.token = Some(bad.into());
            assert!(token(&options, "u").is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_picked_blocks_exist_and_have_the_requested_number(
            cuts in proptest::collection::btree_set(0_u64..5000, 0..20),
            wanted in 0_u64..400,
            seed in any::<u64>(),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let from: RangeSet<u64> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let picked = pick(&from, wanted, &mut fastrand::Rng::with_seed(seed));
            prop_assert_eq!(count(picked.iter()), wanted.min(count(from.iter())));
            for range in picked.iter() {
                prop_assert!(from.gaps(range).next().is_none());
            }
        }
    }
}
