//! Compares HTTP/1.1 with HTTP/2 for the requests of the uploader: several bodies of 5 MiB at the
//! same time, to a server that drops them. docs/dev/performance.md says what was decided because of
//! the results.
//!
//! ```text
//! cargo run --release --manifest-path benches/http2/Cargo.toml
//! ```
//!
//! With HTTP/1.1 each request in flight has a connection, and with HTTP/2 all share one. Both are
//! from hyper, as in the tools. The windows of HTTP/2 are set by the receiver, which for uploads is
//! the endpoint: measured are the defaults of the RFC, which most servers use, and very large ones.
//! Each setting runs for two seconds, three times, alternating with the others. CPU times are those
//! of both ends, which run in this process.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

type Failed = Box<dyn Error + Send + Sync>;

const BODY_BYTES: usize = 5 << 20;
const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
const JOBS: [usize; 3] = [1, 4, 16];
/// Round-trip times: within this machine, and to a cloud that is not far away.
const ROUND_TRIPS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
/// The unit of the times in /proc, which is the same on all Linux systems.
const TICKS_PER_S: f64 = 100.0;

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    /// HTTP/2, with the windows of a stream and of the connection in bytes.
    Http2(u32, u32),
}

const PROTOCOLS: [(&str, Protocol); 3] = [
    ("HTTP/1.1", Protocol::Http1),
    ("HTTP/2, windows of 64 KiB", Protocol::Http2(65_535, 65_535)),
    (
        "HTTP/2, windows of 8 and 128 MiB",
        Protocol::Http2(8 << 20, 128 << 20),
    ),
];

#[tokio::main]
async fn main() -> Result<(), Failed> {
    println!("| | round trip | requests at a time | MB/s | CPU s per GB |");
    println!("|---|--:|--:|--:|--:|");
    for round_trip in ROUND_TRIPS {
        for jobs in JOBS {
            let mut measured = vec![Vec::new(); PROTOCOLS.len()];
            for _ in 0..ROUNDS {
                for (of, (_, protocol)) in measured.iter_mut().zip(PROTOCOLS) {
                    of.push(measure(protocol, jobs, round_trip).await?);
                }
            }
            for (mut of, (name, _)) in measured.into_iter().zip(PROTOCOLS) {
                of.sort_by(|one, other| one.0.total_cmp(&other.0));
                let (rate, cpu) = of[ROUNDS / 2];
                println!(
                    "| {name} | {} ms | {jobs} | {rate:.0} | {cpu:.2} |",
                    round_trip.as_millis()
                );
            }
        }
    }
    Ok(())
}

/// MB per second, and CPU seconds per GB.
async fn measure(
    protocol: Protocol,
    jobs: usize,
    round_trip: Duration,
) -> Result<(f64, f64), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut address = listener.local_addr()?;
    let received = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, protocol, Arc::clone(&received)));
    if !round_trip.is_zero() {
        let relay = TcpListener::bind("127.0.0.1:0").await?;
        let there = std::mem::replace(&mut address, relay.local_addr()?);
        tasks.spawn(relay_all(relay, there, round_trip / 2));
    }
    send_all(&mut tasks, protocol, jobs, address).await?;
    // First, windows open and connections warm up.
    sleep(TIME / 4).await;
    let (begin, bytes, cpu_s) = (Instant::now(), received.load(Ordering::Relaxed), cpu_s()?);
    sleep(TIME).await;
    let bytes = (received.load(Ordering::Relaxed) - bytes) as f64;
    let (wall_s, cpu_s) = (begin.elapsed().as_secs_f64(), self::cpu_s()? - cpu_s);
    tasks.shutdown().await;
    Ok((bytes / wall_s / 1e6, cpu_s / bytes * 1e9))
}

async fn serve(listener: TcpListener, protocol: Protocol, received: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let received = Arc::clone(&received);
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            let io = TokioIo::new(stream);
            let forget = service_fn(|request| forget(request, Arc::clone(&received)));
            match protocol {
                Protocol::Http1 => {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(io, forget).await;
                }
                Protocol::Http2(stream, connection) => {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .initial_stream_window_size(stream)
                        .initial_connection_window_size(connection)
                        .serve_connection(io, forget)
                        .await;
                }
            }
        });
    }
}

async fn forget(
    mut request: Request<Incoming>,
    received: Arc<AtomicU64>,
) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    while let Some(frame) = request.frame().await {
        let bytes = frame?.data_ref().map_or(0, Bytes::len);
        received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}

/// Starts this many senders, each of which sends one body after the other.
async fn send_all(
    tasks: &mut JoinSet<()>,
    protocol: Protocol,
    jobs: usize,
    address: SocketAddr,
) -> Result<(), Failed> {
    let body = Bytes::from(vec![1; BODY_BYTES]);
    if let Protocol::Http2(..) = protocol {
        let io = TokioIo::new(connect(address).await?);
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(io)
            .await?;
        tasks.spawn(async move {
            let _ = connection.await;
        });
        for _ in 0..jobs {
            let (mut sender, body) = (sender.clone(), body.clone());
            tasks.spawn(async move {
                while sender.ready().await.is_ok() {
                    let answer = sender.send_request(write(address, &body));
                    if answer.await.is_err() {
                        return;
                    }
                }
            });
        }
        return Ok(());
    }
    for _ in 0..jobs {
        let io = TokioIo::new(connect(address).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let body = body.clone();
        tasks.spawn(async move {
            while sender.ready().await.is_ok() {
                let answer = sender.send_request(write(address, &body));
                if answer.await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn write(address: SocketAddr, body: &Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = Method::POST;
    let path = format!("http://{address}/drives/00000000-0000-4000-8000-000000000051/write/0");
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failed> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A relay that adds a delay: bytes are passed on after this time, in both directions.
async fn relay_all(listener: TcpListener, there: SocketAddr, delay: Duration) {
    let mut lines = JoinSet::new();
    while let Ok((here, _)) = listener.accept().await {
        let Ok(there) = connect(there).await else {
            return;
        };
        let (from_here, to_here) = here.into_split();
        let (from_there, to_there) = there.into_split();
        lines.spawn(relay(from_here, to_there, delay));
        lines.spawn(relay(from_there, to_here, delay));
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    // Bytes that are on the way do not delay those that follow, because the line has no limit.
    let (enter, mut leave) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(256 * 1024);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let part = (Instant::now() + delay, buffer.split().freeze());
            if enter.send(part).is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = leave.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// User and system time of this process so far.
fn cpu_s() -> Result<f64, Failed> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').ok_or("No times in /proc/self/stat")?;
    let times = rest.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<f64>, _> = times.map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / TICKS_PER_S)
}
