//! A drive that forgets: as much of the drives API as the tools need, over a link of
//! any speed. What is written to it is counted and dropped; what is read from it is
//! a file, or zeros. For `benches/run.py`, so that it measures a client and not what
//! a server does with the bytes.
//!
//! ```text
//! cargo run --release --example sink -- --rate 100M --file disk.img
//! ```
//!
//! It prints OHURI and OHAUTH as `openhosting-server` does, and at SIGINT or SIGTERM
//! one line of JSON: the requests and the bytes of their bodies.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use openhosting_base::wire::{Format, Properties, READ_BYTES_MAX, parse_size};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Sleep, sleep_until};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The one drive there is.
const DRIVE: &str = "00000000-0000-4000-8000-000000000051";
const USER: &str = "00000000-0000-4000-8000-000000000001";

/// How long an idle link saves up what it could have carried. More than a tick of
/// the timer and a turn of the scheduler: compressors on the same cores wake us late,
/// which would slow down no real link.
const BURST: Duration = Duration::from_millis(20);
/// Most bytes that pass a slow link at once: as much as it carries in this time.
const QUANTUM: Duration = Duration::from_millis(2);
/// Bounds of it, in bytes. The upper one is what hyper reads at a time by itself.
const QUANTUM_BYTES: (usize, usize) = (16 * 1024, 400 * 1024);

/// Takes what is written, and forgets it
#[derive(Debug, Parser)]
struct Args {
    /// Address and port to listen on; port 0 is any free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Bits per second of the link, each way, over all connections together, as in
    /// 100M (powers of ten) [default: as fast as it goes]
    #[arg(long, value_name = "BITS", value_parser = bits)]
    rate: Option<u64>,

    /// What reads are answered with, whatever was written [default: zeros]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A number of bits per second, with an optional k, M or G.
fn bits(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|bits| *bits >= 8)
        .ok_or_else(|| format!("{text:?} is not a number of bits per second, as in 100M"))
}

/// What is counted, and what there is to read.
#[derive(Debug, Default)]
struct Sink {
    requests: AtomicU64,
    writes: AtomicU64,
    /// Those with `Content-Encoding: gzip`.
    gzip_writes: AtomicU64,
    /// Bytes of bodies as they came over the wire.
    write_bytes: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    /// The size of the drive in bytes; 0 before it is created.
    size: AtomicU64,
    file: Option<File>,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let file = args.file.as_ref().map(File::open).transpose()?;
    let size = file.as_ref().map(File::metadata).transpose()?;
    let sink = Arc::new(Sink {
        size: size.map_or(0, |metadata| metadata.len()).into(),
        file,
        ..Sink::default()
    });
    let links = args.rate.map(Links::new);
    let mut http = http1::Builder::new();
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if let Some(links) = &links {
        http.max_buf_size(links.quantum_bytes);
        // What waits in the kernel is on the link already, as far as the other side
        // can tell: little of it may fit.
        let bytes = u32::try_from(4 * links.quantum_bytes)?;
        socket.set_recv_buffer_size(bytes)?;
        socket.set_send_buffer_size(bytes)?;
    }
    socket.bind(args.listen)?;
    let listener = socket.listen(1024)?;
    let mut stdout = io::stdout();
    writeln!(stdout, "export OHURI=http://{}/", listener.local_addr()?)?;
    writeln!(stdout, "export OHAUTH={USER}:any")?;
    stdout.flush()?;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        stream.set_nodelay(true)?;
        let socket = TokioIo::new(Socket {
            stream,
            links: links.clone(),
            wait_to_read: None,
            wait_to_write: None,
        });
        let (sink, http) = (Arc::clone(&sink), http.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(Arc::clone(&sink), request));
            // A client that goes away is none of our business.
            let _ = http.serve_connection(socket, answer).await;
        });
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counted = serde_json::json!({
        "requests": count(&sink.requests),
        "writes": count(&sink.writes),
        "gzip_writes": count(&sink.gzip_writes),
        "write_bytes": count(&sink.write_bytes),
        "reads": count(&sink.reads),
        "read_bytes": count(&sink.read_bytes),
    });
    writeln!(stdout, "{counted}")?;
    Ok(())
}

async fn answer(
    sink: Arc<Sink>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    sink.requests.fetch_add(1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    let path: Vec<&str> = head
        .uri
        .path()
        .split('/')
        .filter(|s| !s.is_empty())
        .collect();
    let answered = match path.as_slice() {
        ["drives", DRIVE, "write", _] => {
            let is_gzip = head.headers.contains_key(CONTENT_ENCODING);
            sink.write(body, is_gzip).await
        }
        ["drives", DRIVE, "read", offset, len] => sink.read(offset, len),
        ["drives", "create"] => sink.create(body).await,
        ["drives", DRIVE, "destroy"] => Ok(with(StatusCode::NO_CONTENT, Bytes::new())),
        ["drives", "info"] | ["drives", DRIVE, "info" | "set", ..] => Ok(sink.info()),
        _ => Ok(with(StatusCode::NOT_FOUND, "No such call\n".into())),
    };
    Ok(answered
        .unwrap_or_else(|failed| with(StatusCode::BAD_REQUEST, format!("{failed}\n").into())))
}

impl Sink {
    async fn write(
        &self,
        mut body: Incoming,
        is_gzip: bool,
    ) -> Result<Response<Full<Bytes>>, Failed> {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len) as u64;
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.gzip_writes
            .fetch_add(is_gzip.into(), Ordering::Relaxed);
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(with(StatusCode::NO_CONTENT, Bytes::new()))
    }

    fn read(&self, offset: &str, len: &str) -> Result<Response<Full<Bytes>>, Failed> {
        let (offset, len): (u64, u64) = (offset.parse()?, len.parse()?);
        if len > READ_BYTES_MAX {
            return Err(format!("A read is of {READ_BYTES_MAX} bytes at most").into());
        }
        let mut bytes = vec![0; usize::try_from(len)?];
        let mut filled = 0;
        while let Some(file) = &self.file {
            match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(len, Ordering::Relaxed);
        let mut answer = with(StatusCode::OK, bytes.into());
        let octets = "application/octet-stream".parse()?;
        answer.headers_mut().insert(CONTENT_TYPE, octets);
        Ok(answer)
    }

    async fn create(&self, body: Incoming) -> Result<Response<Full<Bytes>>, Failed> {
        let body = Limited::new(body, 64 * 1024).collect().await?.to_bytes();
        let spec = Properties::parse(Format::Text, &body)?;
        let size = parse_size(spec.get("size").unwrap_or_default())?;
        self.size.store(size, Ordering::Relaxed);
        Ok(self.info())
    }

    fn info(&self) -> Response<Full<Bytes>> {
        let size = self.size.load(Ordering::Relaxed);
        let text = format!("drive {DRIVE}\nname sink\nsize {size}\nstatus active\nuser {USER}\n");
        with(StatusCode::OK, text.into())
    }
}

fn with(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer
}

/// A link with the same speed in both directions.
#[derive(Clone, Debug)]
struct Links {
    up: Arc<Link>,
    down: Arc<Link>,
    quantum_bytes: usize,
}

impl Links {
    fn new(bits_per_s: u64) -> Self {
        let bytes_per_s = bits_per_s as f64 / 8.0;
        let (least, most) = QUANTUM_BYTES;
        let quantum_bytes = (bytes_per_s * QUANTUM.as_secs_f64()) as usize;
        let link = || {
            Arc::new(Link {
                bytes_per_s,
                free_at: Mutex::new(Instant::now()),
            })
        };
        Self {
            up: link(),
            down: link(),
            quantum_bytes: quantum_bytes.clamp(least, most),
        }
    }
}

/// One direction of a link. Whoever finds it free may let bytes pass and pays
/// afterwards: the others wait until all that passed has been carried.
#[derive(Debug)]
struct Link {
    bytes_per_s: f64,
    /// When all that passed has been carried.
    free_at: Mutex<Instant>,
}

impl Link {
    /// When it is free, if it is not.
    fn busy_until(&self) -> Option<Instant> {
        let free_at = *self.free_at.lock().ok()?;
        (free_at > Instant::now()).then_some(free_at)
    }

    fn passed(&self, bytes: usize) {
        let Ok(mut free_at) = self.free_at.lock() else {
            return;
        };
        let now = Instant::now();
        let from = now
            .checked_sub(BURST)
            .map_or(now, |earliest| earliest.max(*free_at));
        *free_at = from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
    }
}

/// Waits until `link` is free; `wait` is where the waiting is kept between calls.
fn poll_free(
    link: &Link,
    wait: &mut Option<Pin<Box<Sleep>>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    while let Some(until) = link.busy_until() {
        let sleep = wait.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(sleep.as_mut().poll(context));
        *wait = None;
    }
    Poll::Ready(())
}

/// A connection over the link, if there is one.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    links: Option<Links>,
    wait_to_read: Option<Pin<Box<Sleep>>>,
    wait_to_write: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(links) = &this.links else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        ready!(poll_free(&links.up, &mut this.wait_to_read, context));
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut this.stream).poll_read(context, buffer));
        links.up.passed(buffer.filled().len() - before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(links) = &this.links else {
            return Pin::new(&mut this.stream).poll_write(context, data);
        };
        ready!(poll_free(&links.down, &mut this.wait_to_write, context));
        let data = &data[..data.len().min(links.quantum_bytes)];
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, data))?;
        links.down.passed(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.links.is_none() && self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
