//! One method for each call of the API, and one attempt for each method call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
#[cfg(feature = "cli")]
use std::time::SystemTime;

use bytes::Bytes;
#[cfg(feature = "cli")]
use reqwest::header::DATE;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue,
};
use reqwest::{Method, Response, Url};
use uuid::Uuid;

use super::ahead::Ahead;
use super::answer;
use super::body::{Upload, UploadBody};
use super::buffers::Buffers;
use super::cause::{Contact, no_answer, was_not_sent};
use super::endpoint::Endpoint;
use super::flow::Flow;
use super::meter::{Meter, Traffic};
use super::patience::{self, Progress};
use super::route::Route;
use super::trust::{Certificates, Identity, Trust, cannot};
use crate::chunk::{Encoding, Part};
use crate::commands::Commands;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::system::with_user_timeout;
use crate::wire::{
    EXTENSION_DIGEST, EXTENSION_EXTENTS, Extents, Format, Properties, X_OPENHOSTING_EXTENSIONS,
};

/// Maximum attempts at a request without a body whose connection was closed before anything was
/// sent. With TLS 1.3, a server that refuses a client says so only after the handshake, and whether
/// this is seen before the request is sent is a matter of chance.
const UNSENT_ATTEMPTS: usize = 5;
/// Maximum bytes of a list of drives; a longer one is an error. It is read one drive at a time, so
/// this only ends an answer without end. At 1 KiB for each drive, it is enough for 65,000.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// Maximum bytes of one drive's properties.
const INFO_BYTES_MAX: u64 = answer::OBJECT_BYTES_MAX as u64;

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Maximum time for a connection, including TLS.
    pub connect: Duration,
    /// A request counts as hung if no byte moves for this long.
    pub stall: Duration,
    /// The run gives up after this long without success, so no answer is awaited longer, unless
    /// `stall` is longer.
    pub outage: Duration,
    /// The limit of bytes per second in both directions; `None` for no limit.
    pub meter: Option<Arc<dyn Meter>>,
    /// The endpoint's certificate must be signed by one of these; by one that this machine trusts
    /// if `None`. A [`Web`](super::Web) trusts both.
    pub certificates: Option<Certificates>,
    /// The client certificate for the endpoint's TLS, if it asks for one. A [`Web`](super::Web)
    /// never sends it.
    pub identity: Option<Identity>,
    /// Where this was configured, for messages.
    pub route: Route,
}

impl ClientConfig {
    /// What all HTTP clients have in common.
    pub(super) fn builder(&self, tls: &rustls::ClientConfig) -> reqwest::ClientBuilder {
        // Bytes that the kernel accepted but the other side does not acknowledge.
        with_user_timeout!(reqwest::Client::builder(), self.stall)
            .tls_backend_preconfigured(tls.clone())
            .user_agent(concat!("openhosting/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect)
            .pool_idle_timeout(patience::IDLE_MAX)
            .referer(false)
            // `policy` decides what is worth repeating.
            .retry(reqwest::retry::never())
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            // With TLS this is two round trips, each of which takes eight seconds if other requests
            // fill the queue of a slow link (docs/dev/faults.md, P5).
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            outage: Duration::from_secs(15 * 60),
            meter: None,
            certificates: None,
            identity: None,
            route: Route::default(),
        }
    }
}

/// A client of one endpoint. Cheap to clone; clones share their connections. Each method makes one
/// attempt.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/cloud.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cloud = Cloud::start().await?;
/// # let client = &cloud.client;
/// use openhosting::wire::Properties;
///
/// let mut properties = Properties::new();
/// properties.insert("name", "nightly")?;
/// properties.insert("size", "1048576")?;
/// let made = client.create(&properties).await.map_err(|failure| failure.into_error("Cannot create it"))?;
/// let drives = client.drives().await.map_err(|failure| failure.into_error("Cannot list them"))?;
/// assert_eq!((drives.len(), drives[0].id), (1, made.id));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Opens connections for `http`, which shares its connector. No connection is ever idle in its
    /// own pool, so it never sends anything.
    opener: reqwest::Client,
    endpoint: Endpoint,
    user: String,
    stall: Duration,
    route: Route,
    /// Maximum wait for an answer after the whole request was sent.
    answer: Duration,
    traffic: Traffic,
    extensions: Arc<Extensions>,
    /// Whether the endpoint has given an answer of the API.
    has_answered: Arc<AtomicBool>,
    /// How both make connections.
    ahead: Ahead,
}

/// The extensions that the endpoint announced.
#[derive(Debug, Default)]
struct Extensions {
    digest: AtomicBool,
    extents: AtomicBool,
}

/// A call of any kind, for the simple script's command.
#[derive(Debug)]
pub struct RawCall {
    /// The URL.
    pub url: Url,
    /// The body.
    pub body: Upload,
    /// `Content-Type` of the body.
    pub content_type: &'static str,
    /// `Accept`, if a format is requested.
    pub accept: Option<&'static str>,
}

impl Client {
    /// A client of `endpoint` that sends `credentials` with every request, and to no other host.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] if this machine's certificates cannot be loaded.
    pub fn new(
        endpoint: Endpoint,
        credentials: &Credentials,
        config: &ClientConfig,
    ) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, basic(credentials)?);
        let trust = match &config.certificates {
            // Loading the certificates of this machine would take longer than everything else at
            // the start.
            _ if endpoint.is_plain() => Trust::Nobody,
            Some(certificates) => Trust::Only(certificates),
            None => Trust::Machine,
        };
        let tls = trust.tls(config.identity.as_ref())?;
        let ahead = Ahead::default();
        let is_excluded = endpoint
            .url([])
            .is_ok_and(|url| config.route.excludes(&url));
        let build = || {
            let mut builder = config
                .builder(&tls)
                .connector_layer(ahead.clone())
                .default_headers(headers.clone())
                // Credentials go only to the endpoint that the user gave.
                .redirect(reqwest::redirect::Policy::none());
            if endpoint.is_loopback() || is_excluded {
                // A proxy would receive the credentials in plain text.
                builder = builder.no_proxy();
            }
            if endpoint.is_localhost() {
                // Port 0 stands for the port of the URL.
                let loopback = [
                    IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(Ipv6Addr::LOCALHOST),
                ];
                builder = builder
                    .resolve_to_addrs("localhost", &loopback.map(|ip| SocketAddr::new(ip, 0)));
            }
            builder.build().map_err(cannot)
        };
        Ok(Self {
            http: build()?,
            opener: build()?,
            endpoint,
            user: credentials.user().to_owned(),
            stall: config.stall,
            route: config.route.clone(),
            answer: config.stall.max(config.outage),
            traffic: Traffic::new(config.meter.clone()),
            extensions: Arc::default(),
            has_answered: Arc::default(),
            ahead,
        })
    }

    /// The endpoint of this client.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Commands for messages, which reach the same endpoint.
    pub(crate) fn commands(&self) -> &Commands {
        &self.route.commands
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Bytes of bodies that were handed over to connections or received by [`read`](Self::read), by
    /// this client and its clones, since it was created.
    pub fn moved_bytes(&self) -> u64 {
        self.traffic.moved()
    }

    /// Begins to open connections for this many concurrent requests, which should follow within a
    /// few seconds. A failure is no error: the request will open another connection. Through a
    /// proxy none are opened, because one that refuses a password would receive it several times.
    pub(crate) async fn open_ahead(&self, requests: u32) {
        let Ok(url) = self.url(["drives", "info"]) else {
            return;
        };
        #[cfg(test)]
        if crate::simulator::is_on() {
            return;
        }
        if self.route.proxy(&url).is_some() {
            return;
        }
        // The connection of the last answer is still open.
        let is_open = u32::from(self.has_answered());
        for _ in is_open..requests {
            Ahead::opening(self.opener.get(url.clone()).send()).await;
        }
    }

    /// The same client with a separate count of [`moved_bytes`](Self::moved_bytes). Both share a
    /// rate limit.
    #[must_use]
    pub(crate) fn apart(&self) -> Self {
        Self {
            traffic: self.traffic.apart(),
            ..self.clone()
        }
    }

    /// Whether any request had a body.
    pub(super) fn has_sent(&self) -> bool {
        self.traffic.has_sent()
    }

    /// The estimate of buffered bytes.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.traffic.buffers
    }

    /// Bytes per second that requests may move, if that is limited.
    pub(crate) fn rate(&self) -> Option<u64> {
        let meter = self.traffic.meter.as_ref()?;
        meter.bytes_per_s()
    }

    /// About how long a round trip to the endpoint takes: half of the time of the quickest
    /// connection, because TLS needs a round trip too. Zero before the first connection. The time
    /// of an answer would be no measure: an endpoint may work on it for seconds.
    pub(crate) fn round_trip(&self) -> Duration {
        let quickest = self.ahead.quickest().unwrap_or_default();
        quickest.checked_div(2).unwrap_or_default()
    }

    /// Whether the endpoint has given an answer of the API to this client or one of its clones:
    /// then its address is right, and its certificate was.
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// Records whether this is an answer of the API.
    fn noted<T>(&self, answer: Result<T, Failure>) -> Result<T, Failure> {
        if answer.is_ok() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// `drives/UUID/info` (docs/dev/reference.md, 1.3).
    ///
    /// # Errors
    /// Any [`Failure`]; 404 if there is no such drive.
    pub async fn info(&self, drive: DriveId) -> Result<DriveInfo, Failure> {
        let url = self.drive_url(drive, &["info"])?;
        self.info_of(drive, url).await
    }

    /// `drives/UUID/info/full`: info with the counters, if plain info does not have them
    /// (docs/dev/reference.md, 1.3).
    ///
    /// # Errors
    /// Any [`Failure`]; 404 if there is no such drive.
    pub async fn info_full(&self, drive: DriveId) -> Result<DriveInfo, Failure> {
        let url = self.drive_url(drive, &["info", "full"])?;
        self.info_of(drive, url).await
    }

    /// Reads an answer, which must be about this drive.
    async fn info_of(&self, asked: DriveId, url: Url) -> Result<DriveInfo, Failure> {
        let response = self.get(url).await?;
        self.note_extensions(&response);
        let objects = answer::properties(response, INFO_BYTES_MAX, self.stall).await?;
        let info = one_drive(objects)?;
        match info.id == asked {
            true => self.noted(Ok(info)),
            false => Err(answer::another_drive(&info.id.to_string(), asked)),
        }
    }

    /// The name in `servers/UUID/info`, if there is one.
    ///
    /// # Errors
    /// Any [`Failure`]; 404 if there is no such server.
    pub async fn server_name(&self, server: Uuid) -> Result<Option<String>, Failure> {
        let url = self.url(["servers", &server.to_string(), "info"])?;
        let response = self.get(url).await?;
        let objects = answer::properties(response, INFO_BYTES_MAX, self.stall).await?;
        let name = objects.first().and_then(|server| server.get("name"));
        self.noted(Ok(name.map(str::to_owned)))
    }

    /// `drives/info`: all drives of the user.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn drives(&self) -> Result<Vec<DriveInfo>, Failure> {
        self.drives_that(|_| true).await
    }

    /// As [`drives`](Self::drives), but only those that `is_wanted` selects are held in memory.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn drives_that(
        &self,
        is_wanted: impl Fn(&DriveInfo) -> bool,
    ) -> Result<Vec<DriveInfo>, Failure> {
        let mut drives = Vec::new();
        self.each_drive(async |drive| {
            if is_wanted(&drive) {
                drives.push(drive);
            }
        })
        .await?;
        Ok(drives)
    }

    /// `drives/info`, passing each drive on as it arrives. If it fails, some of them may have been
    /// passed on.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn each_drive(&self, each: impl AsyncFnMut(DriveInfo)) -> Result<(), Failure> {
        let response = self.list().await?;
        self.each_listed(response, each).await
    }

    /// Requests the list of drives.
    async fn list(&self) -> Result<Response, Failure> {
        let url = self.url(["drives", "info"])?;
        self.send(Method::GET, url, &[], Upload::empty()).await
    }

    /// Checks and reads the answer with the list of drives.
    async fn each_listed(
        &self,
        response: Response,
        mut each: impl AsyncFnMut(DriveInfo),
    ) -> Result<(), Failure> {
        let response = answer::check(response, self.stall).await?;
        let mut objects = answer::Objects::of(response, LIST_BYTES_MAX, self.stall)?;
        while let Some(object) = objects.next().await? {
            each(drive(object)?).await;
        }
        self.noted(Ok(()))
    }

    /// Requests the list of drives to find out whether an endpoint is this API and accepts the
    /// credentials. Returns the time at the endpoint, if it reports one, with the outcome.
    ///
    /// # Errors
    /// A [`Failure`] without any answer.
    #[cfg(feature = "cli")]
    pub(crate) async fn first_contact(
        &self,
    ) -> Result<(Option<SystemTime>, Result<(), Failure>), Failure> {
        let response = self.list().await?;
        let date = response.headers().get(DATE);
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        Ok((date, self.each_listed(response, async |_| {}).await))
    }

    /// `drives/create`.
    ///
    /// # Errors
    /// Any [`Failure`]. Repeating an ambiguous one creates a second drive.
    pub async fn create(&self, spec: &Properties) -> Result<DriveInfo, Failure> {
        self.create_with_status(spec).await.map(|(drive, _)| drive)
    }

    /// As [`create`](Self::create), and returns the status of the answer as well.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_with_status(&self, spec: &Properties) -> Result<(DriveInfo, u16), Failure> {
        let url = self.url(["drives", "create"])?;
        let response = self.command(url, Some(spec)).await?;
        self.note_extensions(&response);
        let status = response.status().as_u16();
        let objects = answer::properties(response, INFO_BYTES_MAX, self.stall).await?;
        Ok((self.noted(one_drive(objects))?, status))
    }

    /// `drives/UUID/set`: merges `changes` into the keys of a drive. Use [`info`](Self::info) to
    /// see the result, because some clouds answer 204.
    ///
    /// # Errors
    /// Any [`Failure`]. Repeating an ambiguous one is harmless as long as nothing else sets the
    /// same keys, in particular `size`.
    pub async fn set(&self, drive: DriveId, changes: &Properties) -> Result<(), Failure> {
        let url = self.drive_url(drive, &["set"])?;
        let response = self.command(url, Some(changes)).await?;
        answer::nothing(response, Some(drive), self.stall).await
    }

    /// `drives/UUID/destroy`: destroys a drive with all its data, and returns the status of the
    /// answer.
    ///
    /// # Errors
    /// Any [`Failure`]; 404 if the drive does not exist, which after an ambiguous attempt means
    /// that it was destroyed.
    pub async fn destroy(&self, drive: DriveId) -> Result<u16, Failure> {
        let url = self.drive_url(drive, &["destroy"])?;
        let response = self.command(url, None).await?;
        let status = response.status().as_u16();
        answer::nothing(response, Some(drive), self.stall).await?;
        Ok(status)
    }

    /// `drives/DESTINATION/image/SOURCE`: begins to copy one drive into another within the cloud.
    /// [`info`](Self::info) shows the progress (docs/dev/reference.md, 5.2).
    ///
    /// # Errors
    /// Any [`Failure`]. Repeating it starts over, with the same outcome.
    pub async fn image(&self, destination: DriveId, source: DriveId) -> Result<(), Failure> {
        let url = self.drive_url(destination, &["image", &source.to_string()])?;
        let response = self.command(url, None).await?;
        answer::nothing(response, None, self.stall).await
    }

    /// `drives/UUID/write/OFFSET`: writes a part of a chunk to its place.
    ///
    /// # Errors
    /// Any [`Failure`]. Repeating it with the same part is harmless.
    pub async fn write(&self, drive: DriveId, part: Part) -> Result<(), Failure> {
        let body = Upload::Bytes(part.body);
        let written = self.write_body(drive, part.offset, part.encoding, body);
        written.await.map(|_| ())
    }

    /// As [`write`](Self::write), over a connection that is closed afterwards.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_alone(&self, drive: DriveId, part: Part) -> Result<(), Failure> {
        let body = Upload::Bytes(part.body);
        let close = &[(CONNECTION, "close")];
        let written = self.write_with(drive, part.offset, part.encoding, body, close);
        written.await.map(|_| ())
    }

    /// As [`write`](Self::write), for any body at `offset`; returns the status of the answer.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_body(
        &self,
        drive: DriveId,
        offset: u64,
        encoding: Encoding,
        body: Upload,
    ) -> Result<u16, Failure> {
        self.write_with(drive, offset, encoding, body, &[]).await
    }

    async fn write_with(
        &self,
        drive: DriveId,
        offset: u64,
        encoding: Encoding,
        body: Upload,
        more: &[(HeaderName, &'static str)],
    ) -> Result<u16, Failure> {
        let url = self.drive_url(drive, &["write", &offset.to_string()])?;
        let mut headers = vec![(CONTENT_TYPE, "application/octet-stream")];
        if encoding == Encoding::Gzip {
            headers.push((CONTENT_ENCODING, "gzip"));
        }
        headers.extend_from_slice(more);
        let response = self.post(url, &headers, body).await?;
        let status = response.status().as_u16();
        answer::nothing(response, Some(drive), self.stall).await?;
        Ok(status)
    }

    /// `drives/UUID/read/OFFSET/SIZE`: reads `len` bytes from `offset`. More than
    /// [`READ_BYTES_MAX`](crate::wire::READ_BYTES_MAX) is refused or shortened, unless a probe
    /// found otherwise.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::WrongLength`] for an answer of another length.
    pub async fn read(&self, drive: DriveId, offset: u64, len: u64) -> Result<Bytes, Failure> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read_into(drive, offset, &mut bytes, &mut 0).await?;
        Ok(bytes.into())
    }

    /// As [`read`](Self::read), into `bytes`. `came` is set to the number of valid bytes, also
    /// after a failure: the first ones of an answer of the right length.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_into(
        &self,
        drive: DriveId,
        offset: u64,
        bytes: &mut [u8],
        came: &mut usize,
    ) -> Result<(), Failure> {
        *came = 0;
        let url = self.range_url(drive, "read", offset, bytes.len() as u64)?;
        let response = self.get(url).await?;
        let filled = answer::fill(response, bytes, self.stall, Some(&self.traffic), came).await;
        self.noted(filled)
    }

    /// `drives/UUID/digest/OFFSET/SIZE`: the SHA-256 of a range, if the endpoint announced that it
    /// computes digests; `None` if it did not, or does not after all.
    ///
    /// # Errors
    /// Any [`Failure`], except that the call does not exist.
    pub async fn digest(
        &self,
        drive: DriveId,
        offset: u64,
        len: u64,
    ) -> Result<Option<Digest>, Failure> {
        let extension = &self.extensions.digest;
        let Some(object) = self
            .extended(extension, drive, EXTENSION_DIGEST, offset, len)
            .await?
        else {
            return Ok(None);
        };
        let digest = object.get("sha256");
        let digest = digest.and_then(|text| text.trim().parse().ok());
        let no_digest = || Failure::NotApi("an answer without a SHA-256".into());
        digest.map(Some).ok_or_else(no_digest)
    }

    /// Whether the endpoint announced that it computes digests.
    pub fn makes_digests(&self) -> bool {
        self.extensions.digest.load(Ordering::Relaxed)
    }

    /// `drives/UUID/extents/OFFSET/SIZE`: which bytes of a nonempty range hold data, from its start
    /// up to where the answer ends; `None` if the endpoint did not announce this, does not support
    /// it after all, or gives an invalid answer. In the latter cases it is not asked again.
    ///
    /// # Errors
    /// Any [`Failure`], except that the call does not exist.
    pub async fn extents(
        &self,
        drive: DriveId,
        range: Range<u64>,
    ) -> Result<Option<Extents>, Failure> {
        let extension = &self.extensions.extents;
        let (offset, len) = (range.start, range.end.saturating_sub(range.start));
        let object = self.extended(extension, drive, EXTENSION_EXTENTS, offset, len);
        let Some(object) = object.await? else {
            return Ok(None);
        };
        match Extents::from_properties(&object, &range) {
            Ok(extents) => Ok(Some(extents)),
            Err(error) => {
                tracing::debug!(%error, "The endpoint does not report extents although it announced that");
                extension.store(false, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// Calls an extension about a range, if the endpoint has it.
    async fn extended(
        &self,
        extension: &AtomicBool,
        drive: DriveId,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Properties>, Failure> {
        if !extension.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let url = self.range_url(drive, name, offset, len)?;
        let response = match self.get(url).await {
            Ok(response) => response,
            Err(Failure::Refused(refusal)) if matches!(refusal.status, 404 | 405) => {
                extension.store(false, Ordering::Relaxed);
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        };
        let objects = answer::properties(response, INFO_BYTES_MAX, self.stall).await?;
        match <[Properties; 1]>::try_from(objects) {
            Ok([object]) => Ok(Some(object)),
            Err(objects) => {
                let what = format!("{} objects instead of one", objects.len());
                Err(Failure::NotApi(what))
            }
        }
    }

    fn note_extensions(&self, response: &Response) {
        let names = response.headers().get_all(X_OPENHOSTING_EXTENSIONS).iter();
        let names = names.filter_map(|names| names.to_str().ok());
        for name in names.flat_map(|names| names.split(',')) {
            match name.trim() {
                EXTENSION_DIGEST => self.extensions.digest.store(true, Ordering::Relaxed),
                EXTENSION_EXTENTS => self.extensions.extents.store(true, Ordering::Relaxed),
                _ => {}
            }
        }
    }

    /// `drives/UUID/read/OFFSET/SIZE` of any size: returns how many bytes were received, and
    /// discards them.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::WrongLength`] for an answer that is longer.
    pub async fn read_length(&self, drive: DriveId, offset: u64, len: u64) -> Result<u64, Failure> {
        let url = self.range_url(drive, "read", offset, len)?;
        let response = self.get(url).await?;
        answer::length(response, len, self.stall).await
    }

    /// Any call at all, by POST, for the simple script's command; the answer is returned whatever
    /// its status is (docs/dev/reference.md, 4.2).
    ///
    /// # Errors
    /// A [`Failure`] if there is no answer.
    pub async fn raw(&self, call: RawCall) -> Result<Response, Failure> {
        let mut headers = vec![(CONTENT_TYPE, call.content_type)];
        headers.extend(call.accept.map(|accept| (ACCEPT, accept)));
        self.send(Method::POST, call.url, &headers, call.body).await
    }

    /// Reads the body of an answer with a timeout for each part.
    pub fn flow(&self) -> Flow {
        Flow::of(self.stall)
    }

    async fn get(&self, url: Url) -> Result<Response, Failure> {
        let response = self.send(Method::GET, url, &[], Upload::empty()).await?;
        answer::check(response, self.stall).await
    }

    /// A call with properties as text, or with an empty body.
    async fn command(&self, url: Url, body: Option<&Properties>) -> Result<Response, Failure> {
        let headers = [(CONTENT_TYPE, Format::Text.media_type())];
        let body = body.map_or_else(Upload::empty, |properties| {
            Upload::Bytes(properties.print(Format::Text).into())
        });
        self.post(url, &headers, body).await
    }

    async fn post(
        &self,
        url: Url,
        headers: &[(HeaderName, &'static str)],
        body: Upload,
    ) -> Result<Response, Failure> {
        let response = self.send(Method::POST, url, headers, body).await?;
        answer::check(response, self.stall).await
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &[(HeaderName, &'static str)],
        body: Upload,
    ) -> Result<Response, Failure> {
        let progress = Progress::of(body.len());
        #[cfg(test)]
        if crate::simulator::is_on() {
            let (answer, bytes) = crate::simulator::request(&url, headers, &body);
            self.traffic.count(bytes);
            progress.advance(bytes);
            return patience::answer(answer, &progress, self.stall, self.answer).await?;
        }
        let mut request = self.http.request(method.clone(), url);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if method == Method::POST {
            // An empty POST declares its length, because the service requires one.
            request = if body.is_empty() {
                request.header(reqwest::header::CONTENT_LENGTH, 0)
            } else {
                request.body(reqwest::Body::wrap(UploadBody::new(
                    body,
                    progress.clone(),
                    self.traffic.clone(),
                )))
            };
        }
        for _ in 0..UNSENT_ATTEMPTS {
            let again = request.try_clone();
            let answer =
                patience::answer(request.send(), &progress, self.stall, self.answer).await?;
            match (answer, again) {
                (Err(error), Some(again)) if was_not_sent(&error) => request = again,
                (Err(error), _) => {
                    let contact = match self.has_answered() {
                        true => Contact::Again,
                        false => Contact::FirstOfEndpoint,
                    };
                    return Err(no_answer(error, &self.route, contact));
                }
                (Ok(answer), _) => return Ok(answer),
            }
        }
        Err(Failure::Broken(
            "the connection closed before a request was sent".into(),
        ))
    }

    fn drive_url(&self, drive: DriveId, action: &[&str]) -> Result<Url, Failure> {
        let id = drive.to_string();
        let path = ["drives", &id].into_iter().chain(action.iter().copied());
        self.url(path)
    }

    /// The URL of a call about a range of a drive.
    fn range_url(&self, drive: DriveId, call: &str, at: u64, len: u64) -> Result<Url, Failure> {
        self.drive_url(drive, &[call, &at.to_string(), &len.to_string()])
    }

    fn url<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Result<Url, Failure> {
        // Our own paths never contain what a URL cannot represent.
        self.endpoint
            .url(path)
            .map_err(|error| Failure::Connect(error.to_string()))
    }
}

fn one_drive(mut objects: Vec<Properties>) -> Result<DriveInfo, Failure> {
    match objects.len() {
        1 => drive(objects.swap_remove(0)),
        n => Err(Failure::NotApi(format!("{n} objects instead of one drive"))),
    }
}

fn drive(properties: Properties) -> Result<DriveInfo, Failure> {
    DriveInfo::from_properties(properties).map_err(|error| Failure::NotApi(error.chain()))
}

/// The value of `Authorization`, marked so that no log contains it.
fn basic(credentials: &Credentials) -> Result<HeaderValue> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let encoded = STANDARD.encode(credentials.expose().as_bytes());
    // The header takes the text over: there is no copy of it to wipe.
    let mut value = HeaderValue::try_from(format!("Basic {encoded}"))
        .map_err(|_| Error::new(ErrorKind::Bug, "Credentials do not fit a header"))?;
    value.set_sensitive(true);
    Ok(value)
}
