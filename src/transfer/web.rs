//! Images on web servers: fetched by ranges, several at a time, where the server has
//! these, else once and in order. What broke goes on, as the policy says; a file that
//! changes meanwhile is an error.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::patient::Patience;
use super::session::blocking;
use crate::api::{Pin, Web, WebAnswer, WebUrl};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::image::{Fingerprint, Image, ImageOptions, Input, RawImage, Remote};
use crate::policy::Operation;

/// Bytes that are asked for first: they tell the format as well.
const FIRST_BYTES: u64 = 64 * 1024;
/// Ranges of one read that are fetched at a time.
const RANGES_MAX: u64 = 4;
/// Shorter ranges are not worth a request of their own.
const RANGE_BYTES_MIN: u64 = 1 << 20;
/// What a short read fetches whole, since others follow beside it: the bytes of a packed
/// cluster end within a page, and the next ones begin there.
const PAGE_BYTES: u64 = 64 * 1024;
/// Pages that are kept: 4 MiB.
const PAGES_MAX: usize = 64;
/// Parts of a body that wait to be read in order.
const PARTS_MAX: usize = 16;
/// Most bytes of a text.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// How to fetch.
#[derive(Clone, Debug)]
pub struct WebConfig {
    /// The client.
    pub web: Web,
    /// Give up when nothing succeeded for so long.
    pub max_outage: Duration,
}

/// Opens an image on a web server, as [`Image::open`] does.
///
/// # Errors
/// As [`Image::open`]; [`ErrorKind::Unavailable`] if the server does not recover.
pub async fn open_web(url: &WebUrl, options: &ImageOptions, config: &WebConfig) -> Result<Image> {
    let file = WebFile::new(url, config);
    let answer = file.patiently(0..FIRST_BYTES).await?;
    let options = options.clone();
    if answer.from.is_some() && answer.pin.size.is_some() {
        if answer.pin.size == Some(0) {
            let what = format!("{url} is empty: there is nothing to upload");
            return Err(Error::new(ErrorKind::Image, what));
        }
        let file = WebFile {
            pin: Some(answer.pin),
            ..file
        };
        return blocking(move || Image::of(RawImage::remote(Arc::new(file)), &options)).await;
    }
    let input = Input {
        name: url.to_string(),
        size: answer.pin.size,
        fingerprint: fingerprint(url, &answer.pin),
        file: None,
        read: Box::new(file.pump(Some(answer), None)),
    };
    blocking(move || Image::in_order(input, &options)).await
}

/// Fetches a short text.
///
/// # Errors
/// [`ErrorKind::Usage`] if it is not there or too long, [`ErrorKind::Unavailable`] if the server does not
/// recover.
pub async fn fetch_text(url: &WebUrl, config: &WebConfig) -> Result<Vec<u8>> {
    let file = WebFile::new(url, config);
    let mut answer = file.patiently(0..u64::MAX).await?;
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

/// What tells a file from another: an inode of 0 where nothing does.
fn fingerprint(url: &WebUrl, pin: &Pin) -> Fingerprint {
    let number = |text: &str| {
        let digest = Sha256::digest(text.as_bytes());
        digest.first_chunk().copied().map_or(0, i128::from_le_bytes)
    };
    let place = number(&url.identity()).unsigned_abs();
    Fingerprint {
        size: pin.size.unwrap_or(0),
        device: 0,
        inode: match pin.tells_changes() {
            true => u64::try_from(place & u128::from(u64::MAX)).unwrap_or(0) | 1,
            false => 0,
        },
        modified_ns: number(&pin.to_text()),
    }
}

/// A file on a web server that has ranges.
#[derive(Clone, Debug)]
struct WebFile {
    url: WebUrl,
    config: WebConfig,
    /// Its state when it was opened.
    pin: Option<Pin>,
    handle: Handle,
    /// The page that was asked for last is the last one.
    pages: Arc<Mutex<Vec<(u64, Bytes)>>>,
}

impl WebFile {
    /// One of which nothing is known.
    fn new(url: &WebUrl, config: &WebConfig) -> Self {
        Self {
            url: url.clone(),
            config: config.clone(),
            pin: None,
            handle: Handle::current(),
            pages: Arc::default(),
        }
    }

    fn size(&self) -> u64 {
        self.pin.as_ref().and_then(|pin| pin.size).unwrap_or(0)
    }

    /// The error to show.
    fn error(&self, failure: Failure) -> Error {
        let why = match &failure {
            Failure::Refused(refusal) => match refusal.message.as_str() {
                "" => format!("its server answered {}", refusal.status),
                message => format!("its server answered {} ({message})", refusal.status),
            },
            Failure::NotApi(why) => why.clone(),
            other => other.to_string(),
        };
        let what = format!("Cannot fetch {}: {why}", self.url);
        match failure {
            Failure::Connect(_) | Failure::Broken(_) | Failure::Stalled(_) => {
                Error::new(ErrorKind::Unavailable, what)
            }
            Failure::Refused(refusal) if refusal.status >= 500 || refusal.status == 429 => {
                Error::new(ErrorKind::Unavailable, what)
            }
            _ => Error::new(ErrorKind::Image, what),
        }
    }

    fn changed(&self) -> Error {
        let what = format!("{} changed while it was read", self.url);
        Error::new(ErrorKind::Integrity, what).hint_to(
            "The drive holds a mixture now. Start over with --restart, from a file that stays as it is",
        )
    }

    /// Asks for a range until there is an answer.
    async fn patiently(&self, range: Range<u64>) -> Result<WebAnswer> {
        let mut patience = Patience::new(Operation::Read, self.config.max_outage);
        loop {
            match self.get(range.clone()).await {
                Ok(answer) => return answer,
                Err(failure) => patience.after(failure).await.map_err(|f| self.error(f))?,
            }
        }
    }

    /// One attempt; the inner error is of a file that changed.
    async fn get(&self, range: Range<u64>) -> Result<Result<WebAnswer>, Failure> {
        let answer = self
            .config
            .web
            .get(&self.url, range.clone(), self.pin.as_ref())
            .await?;
        let Some(pin) = &self.pin else {
            return Ok(Ok(answer));
        };
        match answer.from {
            Some(_) if answer.pin == *pin => Ok(Ok(answer)),
            None if answer.pin == *pin => Err(Failure::NotApi(
                "it does not give a part of the file any more".into(),
            )),
            _ => Ok(Err(self.changed())),
        }
    }

    /// All bytes of a range.
    async fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(len);
        let mut patience = Patience::new(Operation::Read, self.config.max_outage);
        while bytes.len() < len {
            let failure = match self.get(range.start + bytes.len() as u64..range.end).await {
                Ok(answer) => {
                    let mut answer = answer?;
                    loop {
                        match answer.next_part().await {
                            Ok(Some(part)) => {
                                patience.reset();
                                let left = len - bytes.len();
                                bytes.extend_from_slice(part.get(..left).unwrap_or(&part));
                            }
                            Ok(None) => break Failure::Broken("it ended too early".into()),
                            Err(failure) => break failure,
                        }
                        if bytes.len() == len {
                            return Ok(bytes);
                        }
                    }
                }
                Err(failure) => failure,
            };
            patience.after(failure).await.map_err(|f| self.error(f))?;
        }
        Ok(bytes)
    }

    /// Fetches in several ranges at a time. Called off the runtime, on which all of it
    /// happens: if that ends, so does this.
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

    /// The page that begins at `at`, if it is kept.
    fn kept(&self, at: u64) -> Option<Bytes> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pages.iter().position(|page| page.0 == at)?;
        let page = pages.remove(found);
        let bytes = page.1.clone();
        pages.push(page);
        Some(bytes)
    }

    fn keep(&self, at: u64, bytes: Bytes) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have fetched it as well.
        pages.retain(|page| page.0 != at);
        if pages.len() >= PAGES_MAX {
            pages.remove(0);
        }
        pages.push((at, bytes));
    }

    /// The pages from `start` to `end`, each with where it begins. Those that are not kept
    /// are fetched, as many as follow each other in one request.
    fn pages(&self, start: u64, end: u64) -> Result<Vec<(u64, Bytes)>> {
        let starts = (start..end).step_by(usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX));
        let mut pages: Vec<_> = starts.map(|at| (at, self.kept(at))).collect();
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

    /// Begins to fetch in order, with an answer that is there or a request of its own.
    /// Without `end` the server has no ranges, and what breaks cannot go on.
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
        let mut patience = Patience::new(Operation::Read, self.config.max_outage);
        let mut at = 0;
        loop {
            if size == Some(at) && end.is_some() {
                return Ok(());
            }
            let failure = match &mut answer {
                None => match self.get(at..u64::MAX).await {
                    Ok(fetched) => {
                        answer = Some(fetched?);
                        continue;
                    }
                    Err(failure) => failure,
                },
                Some(open) => match open.next_part().await {
                    Ok(Some(part)) => {
                        patience.reset();
                        at += part.len() as u64;
                        if parts.send(Ok(part)).await.is_err() {
                            // Nobody reads any more.
                            return Ok(());
                        }
                        continue;
                    }
                    Ok(None) if size.is_none_or(|size| at >= size) => return Ok(()),
                    Ok(None) => Failure::Broken("it ended too early".into()),
                    Err(failure) => failure,
                },
            };
            answer = None;
            if end.is_none() {
                let what = format!(
                    "{} broke off after {at} bytes, and its server cannot go on there: {failure}",
                    self.url
                );
                return Err(Error::new(ErrorKind::Unavailable, what)
                    .hint_to("It is fetched from its start by the same command, which sends only what is missing"));
            }
            patience.after(failure).await.map_err(|f| self.error(f))?;
        }
    }
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

/// A body as it comes.
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
