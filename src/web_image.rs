//! Images on web servers. They are downloaded by several concurrent range requests if the server
//! supports ranges, and otherwise once in order. Interrupted requests are resumed, as the policy
//! decides. If the file changes meanwhile, that is an error.
//!
//! `mirrors` decides which of several servers to use. What the image is used for is not known here.
//! Start reading at [`open_web`].

mod mirrors;

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::advice::Remedy;
use crate::api::{Pin, TRICKLE_BYTES_MAX, Web, WebAnswer, WebUrl};
use crate::digest::Digest;
use crate::driver::blocking::blocking;
use crate::driver::patience::{Patience, Trial, Unanswered};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{CANNOT_CONNECT, Failure, Transient};
use crate::image::{Fingerprint, Image, ImageOptions, Input, RawImage, Remote};
use crate::locks::lock;
use crate::policy::Operation;
use crate::quoting::quote;
use crate::web_image::mirrors::{Known, Mirrors};
use openhosting_base::advice;

/// Bytes of the first request, which are also used to recognise the format.
const FIRST_BYTES: u64 = 64 * 1024;
/// Maximum concurrent ranges of one read.
const RANGES_MAX: u64 = 4;
/// Minimum bytes of a range, because shorter ones are not worth a request.
const RANGE_BYTES_MIN: u64 = 1 << 20;
/// A short read downloads a whole page, because other reads follow next to it: the bytes of a
/// compressed cluster end within a page, and the next cluster begins there.
const PAGE_BYTES: u64 = 64 * 1024;
/// Pages in memory: 4 MiB.
const PAGES_MAX: usize = 64;
/// Parts of a body that wait to be read in order.
const PARTS_MAX: usize = 16;
/// A shorter answer to a request for more counts as a failure.
const SHORT_ANSWER_BYTES: usize = 4096;
/// Maximum bytes of a text.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// How to download.
#[derive(Clone, Debug)]
pub struct WebConfig {
    /// The client.
    pub web: Web,
    /// How long to continue without any success.
    pub patience: Patience,
}

/// Opens an image on a web server, as [`Image::open`] does for a file.
///
/// # Errors
/// As [`Image::open`], and [`ErrorKind::Image`] if the first request finds no server or the server
/// refuses it; [`ErrorKind::Unavailable`] if the server does not recover.
pub async fn open_web(url: &WebUrl, options: &ImageOptions, config: &WebConfig) -> Result<Image> {
    let file = WebFile::new(url, config);
    let answer = file.patiently(Some(0..FIRST_BYTES)).await?;
    let (options, encoding) = (options.clone(), answer.encoding.clone());
    // From here on, a part of the file cannot be mistaken for the whole.
    if answer.from.is_some() {
        let file = file.pinned(&answer).await?;
        let opened = blocking(move || Image::of(RawImage::remote(Arc::new(file)), &options));
        return check_encoding(opened.await?, encoding.as_deref(), url);
    }
    let input = Input {
        name: url.to_string(),
        size: answer.pin.size,
        fingerprint: fingerprint(url, &answer.pin),
        file: None,
        read: Box::new(file.pump(Some(answer), None)),
    };
    let opened = blocking(move || Image::in_order(input, &options)).await;
    let opened = opened.map_err(|error| without_ranges(error, url));
    check_encoding(opened?, encoding.as_deref(), url)
}

/// The error for an image that has to be read at any place, with what prevents that.
fn without_ranges(error: Error, url: &WebUrl) -> Error {
    if !error.advises(&Remedy::File) {
        return error;
    }
    let what = format!("{error}: its server does not support range requests");
    let shown = match url.is_shown_whole() {
        true => quote(&url.to_string()),
        false => "URL".to_owned(),
    };
    Error::new(error.kind(), what)
        .permanent()
        .hint_to(format!("Download it first: curl -fLO {shown}"))
}

/// Checks an encoding that was not accepted. Usually it is the compression of the file itself,
/// which is recognised by its content. Any other encoding would end up on the drive.
fn check_encoding(image: Image, encoding: Option<&str>, url: &WebUrl) -> Result<Image> {
    let Some(encoding) = encoding else {
        return Ok(image);
    };
    let packing = match &image {
        Image::Stream(stream) => stream.format().name(),
        Image::Raw(_) | Image::Mapped(_) => "raw",
    };
    if encoding.trim_start_matches("x-") == packing {
        return Ok(image);
    }
    let what = format!(
        "Cannot read {url}: its server says that the body is encoded with {encoding:?}, and its content is {packing}"
    );
    Err(Error::new(ErrorKind::Image, what)
        .hint_to("Fetch it with a program that decodes it, and upload the file"))
}

/// Downloads a short text.
///
/// # Errors
/// [`ErrorKind::Usage`] if it is too long, [`ErrorKind::Image`] if the first request finds no server
/// or the server refuses it, [`ErrorKind::Unavailable`] if the server does not recover.
pub async fn fetch_text(url: &WebUrl, config: &WebConfig) -> Result<Vec<u8>> {
    let file = WebFile::new(url, config);
    let mut answer = file.patiently(None).await?;
    let mut text = Vec::new();
    while let Some(part) = answer.next_part().await.map_err(|f| file.error(f))? {
        text.extend_from_slice(&part);
        if text.len() > TEXT_BYTES_MAX {
            let what = format!("{url} is longer than such a file is");
            return Err(Error::new(ErrorKind::Usage, what));
        }
    }
    Ok(text)
}

/// Distinguishes a file from another; with an inode of 0 if nothing does.
fn fingerprint(url: &WebUrl, pin: &Pin) -> Fingerprint {
    let number = |text: &str| {
        let digest = Digest::of(text.as_bytes());
        let first = digest.as_bytes().first_chunk();
        first.copied().map_or(0, i128::from_le_bytes)
    };
    let place = number(&url.identity()).unsigned_abs();
    Fingerprint {
        size: pin.size.unwrap_or(0),
        device: 0,
        inode: match pin.detects_changes() {
            true => u64::try_from(place & u128::from(u64::MAX)).unwrap_or(0) | 1,
            false => 0,
        },
        modified_ns: number(&pin.to_text()),
    }
}

/// What the status of an answer means, and what to do about it, where that is always the same. The
/// text of such an answer, often a page, says no more.
fn meaning_and_advice(status: u16) -> Option<(&'static str, &'static str)> {
    Some(match status {
        401 => (
            "it needs a user and a password",
            "Write them into the URL: https://USER:PASSWORD@HOST/PATH, or fetch the file first and upload that",
        ),
        403 => (
            "access is refused",
            "Check that the URL is complete and has not expired, or get a new one",
        ),
        404 => (
            "not found",
            "Check the path in the URL, upper and lower case too",
        ),
        410 => ("it was removed", "Look for the file under another URL"),
        _ => return None,
    })
}

/// A file on a web server that supports ranges.
#[derive(Clone, Debug)]
struct WebFile {
    url: WebUrl,
    config: WebConfig,
    /// Its state when it was opened.
    pin: Option<Pin>,
    mirrors: Mirrors,
    handle: Handle,
    /// The most recently used page is the last.
    pages: Arc<Mutex<Vec<(u64, Bytes)>>>,
    /// Whether one of its servers was reached.
    is_reached: Arc<AtomicBool>,
}

impl WebFile {
    /// A file about which nothing is known yet.
    fn new(url: &WebUrl, config: &WebConfig) -> Self {
        let config = WebConfig {
            patience: config.patience.of("the image's server"),
            ..config.clone()
        };
        Self {
            url: url.clone(),
            config,
            pin: None,
            mirrors: Mirrors::default(),
            handle: Handle::current(),
            pages: Arc::default(),
            is_reached: Arc::default(),
        }
    }

    fn size(&self) -> u64 {
        self.pin.as_ref().and_then(|pin| pin.size).unwrap_or(0)
    }

    /// The error to report.
    fn error(&self, failure: Failure) -> Error {
        let (meaning, advice) = match &failure {
            Failure::Refused(refusal) => meaning_and_advice(refusal.status).unzip(),
            _ => (None, None),
        };
        let why = match &failure {
            Failure::Refused(refusal) => match meaning.unwrap_or(&refusal.message) {
                "" => format!("its server answered {}", refusal.status),
                meaning => format!("its server answered {} ({meaning})", refusal.status),
            },
            Failure::NotApi(why) | Failure::WrongLength(why) => why.clone(),
            other => other.to_string(),
        };
        let what = format!("Cannot fetch {}: {why}", self.url);
        match failure {
            // The first connection failed in a way that does not go away by itself.
            Failure::NoServer(_) => Error::new(ErrorKind::Image, what).hint_to("Check the URL"),
            Failure::Connect(_) => Error::new(ErrorKind::Unavailable, what).hint_to(CANNOT_CONNECT),
            Failure::Broken(_) | Failure::Stalled(_) => Error::new(ErrorKind::Unavailable, what),
            Failure::Refused(refusal) if Transient::of(refusal.status).is_some() => {
                Error::new(ErrorKind::Unavailable, what)
            }
            _ => Error::new(ErrorKind::Image, what).hint_if(advice),
        }
    }

    /// Waits before another attempt, or returns the error if there should be none.
    async fn again(&self, trial: &mut Trial, failure: Failure) -> Result<()> {
        let is_known = self.is_known(&failure);
        let again = trial.after(Operation::Read, failure, is_known).await;
        again.map_err(|unanswered| self.unanswered(unanswered))
    }

    /// Whether something else than the server of the file may have answered. Before the first
    /// answer, an HTML page means that there is no such file.
    fn is_known(&self, failure: &Failure) -> bool {
        self.pin.is_some() && matches!(failure, Failure::Certificate(_))
    }

    /// The error to report when no other attempt is made.
    fn unanswered(&self, unanswered: Unanswered) -> Error {
        let error = self.error(unanswered.failure);
        if unanswered.outage.is_none() {
            return error;
        }
        Error::new(ErrorKind::Unavailable, error.to_string()).hint_if(error.hint())
    }

    fn changed(&self) -> Error {
        let what = format!("{} changed while it was read", self.url);
        Error::new(ErrorKind::Integrity, what).hint_to(advice![
            "A drive that was written to holds a mixture. Start over with ",
            Remedy::Restart,
            ", from a file that stays as it is",
        ])
    }

    /// Records the current state of the file from the answer for its first range.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it is empty, or its size cannot be determined.
    async fn pinned(self, first: &WebAnswer) -> Result<Self> {
        let mut pin = first.pin.clone();
        if pin.size.is_none() {
            // A range may omit the size of the file; a request for the whole file states it.
            let whole = self.patiently(None).await?.pin;
            let is_same = whole.fits(&pin);
            pin.size = whole.size.filter(|_| is_same);
        }
        let cannot = |why: &str| Error::new(ErrorKind::Image, format!("{} {why}", self.url));
        match pin.size {
            Some(0) => return Err(cannot("is empty: there is nothing to upload")),
            Some(_) => {}
            None => {
                let error = cannot("has no size that its server states");
                return Err(error.hint_to("Fetch it first, and upload the file"));
            }
        }
        let known = Known {
            place: first.place.clone(),
            pin: pin.clone(),
        };
        self.mirrors.accept(&self.url, known, None);
        Ok(Self {
            pin: Some(pin),
            ..self
        })
    }

    /// Requests a range, or everything, until there is an answer.
    async fn patiently(&self, range: Option<Range<u64>>) -> Result<WebAnswer> {
        let get = || self.get(range.clone());
        let is_known = |failure: &Failure| self.is_known(failure);
        let patience = &self.config.patience;
        let answer = patience.retry(Operation::Read, is_known, get).await;
        let answer = answer.map_err(|unanswered| self.unanswered(unanswered))?;
        answer.ok_or_else(|| self.changed())
    }

    /// One attempt; `None` if the file changed.
    async fn get(&self, range: Option<Range<u64>>) -> Result<Option<WebAnswer>, Failure> {
        let Some(first) = &self.pin else {
            let answer = self.request(&self.url, range, None).await?;
            return Ok(Some(answer));
        };
        let answer = self.get_from_mirror(range).await?;
        let known = Known {
            place: answer.place.clone(),
            pin: answer.pin.clone(),
        };
        match (
            self.mirrors.accept(&self.url, known, first.size),
            answer.from,
        ) {
            (false, _) => Ok(None),
            (true, None) => Err(Failure::NotApi(
                "it does not give a part of the file any more".into(),
            )),
            (true, Some(_)) => Ok(Some(answer)),
        }
    }

    /// Asks the server that answered before; if it fails, the one to which the URL of the image
    /// leads now.
    async fn get_from_mirror(&self, range: Option<Range<u64>>) -> Result<WebAnswer, Failure> {
        let (mirror, pin) = self.mirrors.current(&self.url);
        let Some(mirror) = mirror else {
            return self.request(&self.url, range, pin.as_ref()).await;
        };
        match self.request(&mirror, range.clone(), pin.as_ref()).await {
            Ok(answer) => Ok(answer),
            Err(failure) => {
                tracing::debug!(%failure, %mirror, "the redirector is asked again");
                self.mirrors.leave(&mirror);
                self.request(&self.url, range, None).await
            }
        }
    }

    /// One request. It also records whether a server was reached: until then, a host that does not
    /// exist or refuses the connection is an error at once.
    async fn request(
        &self,
        url: &WebUrl,
        range: Option<Range<u64>>,
        pin: Option<&Pin>,
    ) -> Result<WebAnswer, Failure> {
        let is_known = self.is_reached.load(Ordering::Relaxed);
        let answer = self.config.web.get(url, range, pin, is_known).await;
        if !matches!(answer, Err(Failure::Connect(_) | Failure::NoServer(_))) {
            self.is_reached.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Downloads all bytes of a range.
    async fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(len);
        let mut trial = Trial::of(&self.config.patience);
        while bytes.len() < len {
            let rest = Some(range.start + bytes.len() as u64..range.end);
            let failure = match trial.attempt(self.get(rest)).await {
                Ok(answer) => {
                    let mut answer = answer.ok_or_else(|| self.changed())?;
                    let before = bytes.len();
                    loop {
                        match answer.next_part().await {
                            Ok(Some(part)) => {
                                let left = len - bytes.len();
                                bytes.extend_from_slice(part.get(..left).unwrap_or(&part));
                                if is_progress(bytes.len() - before, bytes.len() == len) {
                                    trial.answered();
                                }
                            }
                            Ok(None) => break ended_early(bytes.len() - before),
                            Err(failure) => break Some(failure),
                        }
                        if bytes.len() == len {
                            return Ok(bytes);
                        }
                    }
                }
                Err(failure) => Some(failure),
            };
            if let Some(failure) = failure {
                self.again(&mut trial, failure).await?;
            }
        }
        Ok(bytes)
    }

    /// Downloads several ranges concurrently. Must be called outside of the async runtime, on which
    /// the work is done: if the runtime ends, this returns.
    fn fetch_blocking(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let (done, fetched) = mpsc::sync_channel(1);
        let file = self.clone();
        self.handle.spawn(async move {
            let _ = done.send(file.fetch_parts(range).await);
        });
        fetched
            .recv()
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "Stopped")))
    }

    async fn fetch_parts(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = range.end - range.start;
        let step = len.div_ceil(RANGES_MAX).max(RANGE_BYTES_MIN);
        let mut set = JoinSet::new();
        let mut at = range.start;
        let mut count = 0;
        while at < range.end {
            let (file, part) = (self.clone(), at..range.end.min(at.saturating_add(step)));
            at = part.end;
            let number = count;
            count += 1;
            set.spawn(async move { (number, file.fetch(part).await) });
        }
        let mut parts = vec![Vec::new(); count];
        while let Some(joined) = set.join_next().await {
            let (number, bytes) = joined
                .map_err(|cause| Error::new(ErrorKind::Bug, "Cannot fetch").because(cause))?;
            if let Some(part) = parts.get_mut(number) {
                *part = bytes?;
            }
        }
        Ok(match parts.len() {
            1 => parts.swap_remove(0),
            _ => parts.concat(),
        })
    }

    /// The page that begins at `at`, if it is in memory.
    fn cached(&self, at: u64) -> Option<Bytes> {
        let mut pages = lock(&self.pages);
        let found = pages.iter().position(|page| page.0 == at)?;
        let page = pages.remove(found);
        let bytes = page.1.clone();
        pages.push(page);
        Some(bytes)
    }

    fn keep(&self, at: u64, bytes: Bytes) {
        let mut pages = lock(&self.pages);
        // Another thread may have downloaded it as well.
        pages.retain(|page| page.0 != at);
        if pages.len() >= PAGES_MAX {
            pages.remove(0);
        }
        pages.push((at, bytes));
    }

    /// The pages from `start` to `end`, each with its offset. Those that are not in memory are
    /// downloaded, consecutive ones in a single request.
    fn pages(&self, start: u64, end: u64) -> Result<Vec<(u64, Bytes)>> {
        let starts = (start..end).step_by(usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX));
        let mut pages: Vec<_> = starts.map(|at| (at, self.cached(at))).collect();
        for missing in pages.chunk_by_mut(|a, b| a.1.is_none() == b.1.is_none()) {
            let Some((first, None)) = missing.first() else {
                continue;
            };
            let first = *first;
            let last = first.saturating_add(missing.len() as u64 * PAGE_BYTES);
            let fetched = self.fetch_blocking(first..last.min(self.size()))?;
            let parts = fetched.chunks(usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX));
            for ((at, page), part) in missing.iter_mut().zip(parts) {
                let part = Bytes::copy_from_slice(part);
                self.keep(*at, part.clone());
                *page = Some(part);
            }
        }
        let pages = pages.into_iter();
        Ok(pages
            .map(|(at, page)| (at, page.unwrap_or_default()))
            .collect())
    }

    /// Begins to download in order, with an existing answer or a new request. Without `end` the
    /// server does not support ranges, and an interrupted download cannot be resumed.
    fn pump(&self, answer: Option<WebAnswer>, end: Option<u64>) -> WebRead {
        let (parts, come) = async_channel::bounded(PARTS_MAX);
        let file = self.clone();
        self.handle.spawn(async move {
            if let Err(error) = file.run_pump(answer, end, &parts).await {
                let _ = parts.send(Err(error)).await;
            }
        });
        WebRead {
            parts: come,
            part: Bytes::new(),
        }
    }

    async fn run_pump(
        &self,
        mut answer: Option<WebAnswer>,
        end: Option<u64>,
        parts: &async_channel::Sender<Result<Bytes>>,
    ) -> Result<()> {
        let size = end.or_else(|| answer.as_ref().and_then(|answer| answer.pin.size));
        let mut trial = Trial::of(&self.config.patience);
        let (mut at, mut before) = (0, 0);
        loop {
            if size == Some(at) && end.is_some() {
                return Ok(());
            }
            let failure = match &mut answer {
                None => match trial.attempt(self.get(Some(at..u64::MAX))).await {
                    Ok(fetched) => {
                        answer = Some(fetched.ok_or_else(|| self.changed())?);
                        before = at;
                        continue;
                    }
                    Err(failure) => Some(failure),
                },
                Some(open) => match open.next_part().await {
                    Ok(Some(part)) => {
                        at += part.len() as u64;
                        let bytes = usize::try_from(at - before).unwrap_or(usize::MAX);
                        if is_progress(bytes, size == Some(at)) {
                            trial.answered();
                        }
                        if parts.send(Ok(part)).await.is_err() {
                            // Nothing reads the parts any more.
                            return Ok(());
                        }
                        continue;
                    }
                    Ok(None) if size.is_none_or(|size| at >= size) => return Ok(()),
                    Ok(None) => ended_early(usize::try_from(at - before).unwrap_or(usize::MAX)),
                    Err(failure) => Some(failure),
                },
            };
            answer = None;
            if end.is_none() {
                let failure = failure.unwrap_or_else(cut_short);
                let what = format!(
                    "{} broke off after {at} bytes, and its server cannot go on there: {failure}",
                    self.url
                );
                return Err(Error::new(ErrorKind::Unavailable, what)
                    .hint_to("It is fetched from its start by the same command, which sends only what is missing"));
            }
            if let Some(failure) = failure {
                self.again(&mut trial, failure).await?;
            }
        }
    }
}

/// The failure for an answer that ended early, after this many bytes. A server may answer with less
/// than was requested: nothing failed then, and the rest is requested at once, unless the answers
/// are so short that it would take for ever.
fn ended_early(bytes: usize) -> Option<Failure> {
    (bytes < SHORT_ANSWER_BYTES).then(cut_short)
}

/// Whether this much of an answer ends an outage. A trickle that is aborted brings less, so it cannot
/// outlast `--max-outage`.
fn is_progress(bytes: usize, is_complete: bool) -> bool {
    is_complete || bytes as u64 >= TRICKLE_BYTES_MAX
}

fn cut_short() -> Failure {
    Failure::Broken("it ended too early".into())
}

impl Remote for WebFile {
    fn name(&self) -> String {
        self.url.to_string()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.pin
            .as_ref()
            .map_or_else(Fingerprint::default, |pin| fingerprint(&self.url, pin))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size() {
            let what = format!("Byte {end} is beyond the end of {}", self.url);
            return Err(Error::new(ErrorKind::Image, what));
        }
        if bytes.len() as u64 > RANGE_BYTES_MIN {
            bytes.copy_from_slice(&self.fetch_blocking(offset..end)?);
            return Ok(());
        }
        let (mut rest, mut offset) = (bytes, offset);
        for (start, page) in self.pages(offset - offset % PAGE_BYTES, end)? {
            let from = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let page = page.get(from..).unwrap_or_default();
            let (part, after) = rest.split_at_mut(page.len().min(rest.len()));
            part.copy_from_slice(&page[..part.len()]);
            offset += part.len() as u64;
            rest = after;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Bug, "A page is too short")),
        }
    }

    fn in_order(&self) -> Box<dyn Read + Send> {
        Box::new(self.pump(None, Some(self.size())))
    }
}

/// A body that is read while it is downloaded.
struct WebRead {
    parts: async_channel::Receiver<Result<Bytes>>,
    part: Bytes,
}

impl Read for WebRead {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.part.is_empty() {
            match self.parts.recv_blocking() {
                Ok(Ok(part)) => self.part = part,
                Ok(Err(error)) => return Err(io::Error::other(error)),
                Err(_) => return Ok(0),
            }
        }
        let n = self.part.len().min(bytes.len());
        self.part.copy_to_slice(&mut bytes[..n]);
        Ok(n)
    }
}
