//! One builder for each direction, with the options that most callers need. They collect step by
//! step what [`transfer::upload`](crate::transfer::upload) and
//! [`transfer::download`](crate::transfer::download) take.
//!
//! Nothing is done here. Start reading at [`Upload`].

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use crate::api::Client;
use crate::drive::{DriveId, DriveSpec};
use crate::image::Image;
use crate::monitor::{Monitor, Silent};
use crate::transfer::{
    Destination, DownloadInterrupted, DownloadOptions, Downloaded, Interrupted, JournalOptions,
    Stop, Target, UploadOptions, Uploaded, Verify, download, upload,
};

/// Uploads an image to a drive: call [`new`](Self::new), then set what should differ from the
/// defaults, then [`run`](Self::run). The same call with the same journal continues an upload that
/// did not finish, and sends only what is missing.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/cloud.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cloud = Cloud::start().await?;
/// # let client = &cloud.client;
/// # let (path, journal) = (cloud.image()?, cloud.work.path().join("nightly.journal"));
/// use std::num::NonZeroU32;
/// use openhosting::image::{Image, ImageOptions};
/// use openhosting::transfer::Verify;
/// use openhosting::{ErrorKind, Upload};
///
/// // An image of any format, which its content shows.
/// let image = Image::open(&path, &ImageOptions::default())?;
/// let done = Upload::new(client, image, "nightly")
///     .journal(&journal)
///     .jobs(NonZeroU32::new(8).unwrap())
///     .verify(Verify::Full)
///     .run()
///     .await;
/// match done {
///     Ok(uploaded) => println!("drive {} holds the image", uploaded.drive),
///     Err(interrupted) if interrupted.error.kind() == ErrorKind::Unavailable => {
///         println!("try again later: {}", interrupted.error.chain());
///     }
///     Err(interrupted) => return Err(interrupted.into()),
/// }
/// # assert_eq!(client.drives().await.map_err(|failure| failure.into_error("list"))?.len(), 1);
/// # Ok(()) }
/// ```
pub struct Upload<'a> {
    client: &'a Client,
    image: Image,
    options: UploadOptions,
    monitor: Box<dyn Monitor + 'a>,
    stop: Stop,
}

impl<'a> Upload<'a> {
    /// An upload to a new drive `name` on the tier `disk`, as large as the image. A sample
    /// is verified; there is no journal.
    pub fn new(client: &'a Client, image: Image, name: impl Into<String>) -> Self {
        let drive = DriveSpec {
            name: name.into(),
            size: image.length().first(),
            tier: "disk".into(),
            shared: false,
        };
        Self {
            client,
            image,
            options: UploadOptions::to(Target::New(drive)),
            monitor: Box::new(Silent),
            stop: Stop::never(),
        }
    }

    /// Writes to this drive instead of a new one.
    #[must_use]
    pub fn to_drive(mut self, drive: DriveId) -> Self {
        self.options.target = Target::Existing(drive);
        self
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk(mut self, bytes: NonZeroU64) -> Self {
        self.options.chunk = bytes;
        self
    }

    /// Maximum number of requests in flight.
    #[must_use]
    pub fn jobs(mut self, jobs: NonZeroU32) -> Self {
        self.options.jobs = jobs;
        self
    }

    /// How much to read back at the end.
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.options.verify = verify;
        self
    }

    /// Where the run records what it did. A later run with the same file continues this one.
    #[must_use]
    pub fn journal(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.journal = journal(self.client, path.into());
        self
    }

    /// Receives the events: a closure, or another [`Monitor`]. It must not block.
    #[must_use]
    pub fn monitor(mut self, monitor: impl Monitor + 'a) -> Self {
        self.monitor = Box::new(monitor);
        self
    }

    /// What stops the run from outside
    /// ([`stop_channel`](crate::transfer::stop_channel)).
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Changes any other option.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut UploadOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Interrupted`] has the reason, and where to continue.
    pub async fn run(mut self) -> Result<Uploaded, Interrupted> {
        let monitor = &mut *self.monitor;
        upload(self.client, self.image, &self.options, monitor, self.stop).await
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Upload");
        shown
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Downloads a drive: call [`new`](Self::new), then set what should differ from the defaults, then
/// [`run`](Self::run). The file gets its name when it is complete.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/cloud.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cloud = Cloud::start().await?;
/// # let client = &cloud.client;
/// # let image = openhosting::image::Image::open_raw(&cloud.image()?)?;
/// # let drive = openhosting::Upload::new(client, image, "nightly").run().await?.drive;
/// # let path = cloud.work.path().join("copy.qcow2");
/// use openhosting::Download;
/// use openhosting::image::TargetFormat;
/// use openhosting::monitor::Event;
///
/// let mut warnings = Vec::new();
/// Download::new(client, drive, &path)
///     .configure(|options| options.format = TargetFormat::Qcow2(None))
///     .monitor(|event: &Event| {
///         if let Event::Warning(line) = event {
///             warnings.push(line.clone());
///         }
///     })
///     .run()
///     .await?;
/// assert!(std::fs::read(&path)?.starts_with(b"QFI\xfb"));
/// # Ok(()) }
/// ```
pub struct Download<'a> {
    client: &'a Client,
    destination: Destination,
    options: DownloadOptions,
    monitor: Box<dyn Monitor + 'a>,
    stop: Stop,
}

impl<'a> Download<'a> {
    /// A download of `drive` to a new file. A sample is verified; there is no journal.
    pub fn new(client: &'a Client, drive: DriveId, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            client,
            destination: Destination::File { path, force: false },
            options: DownloadOptions::of(drive),
            monitor: Box::new(Silent),
            stop: Stop::never(),
        }
    }

    /// Writes there instead of a new file: over a file, to a device, or to a stream.
    #[must_use]
    pub fn to(mut self, destination: Destination) -> Self {
        self.destination = destination;
        self
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk(mut self, bytes: NonZeroU64) -> Self {
        self.options.chunk = bytes;
        self
    }

    /// Maximum number of requests in flight.
    #[must_use]
    pub fn jobs(mut self, jobs: NonZeroU32) -> Self {
        self.options.jobs = jobs;
        self
    }

    /// How much to read again at the end.
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.options.verify = verify;
        self
    }

    /// Where the run records what it did. A later run with the same file continues this one.
    #[must_use]
    pub fn journal(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.journal = journal(self.client, path.into());
        self
    }

    /// Receives the events: a closure, or another [`Monitor`]. It must not block.
    #[must_use]
    pub fn monitor(mut self, monitor: impl Monitor + 'a) -> Self {
        self.monitor = Box::new(monitor);
        self
    }

    /// What stops the run from outside
    /// ([`stop_channel`](crate::transfer::stop_channel)).
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Changes any other option.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut DownloadOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`DownloadInterrupted`] has the reason, and where to continue.
    pub async fn run(mut self) -> Result<Downloaded, DownloadInterrupted> {
        let (to, monitor) = (self.destination, &mut *self.monitor);
        download(self.client, to, &self.options, monitor, self.stop).await
    }
}

impl fmt::Debug for Download<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Download");
        shown
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A journal in this file, for a transfer with the client's endpoint.
fn journal(client: &Client, path: PathBuf) -> JournalOptions {
    JournalOptions {
        path: Some(path),
        endpoint: client.endpoint().to_string(),
        ..JournalOptions::default()
    }
}
