//! A user, or somebody without a key, who takes as much of one resource as the server gives, while
//! others work. Each attack is on one budget of `crates/server/src/budget.rs` or one limit of
//! `crates/server/src/admission.rs`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;

use super::client;

/// The user who attacks, if a key is needed.
pub const USER: &str = "00000000-0000-4000-8000-ffffffffffff:key-hostile";
const TICK: Duration = Duration::from_millis(50);
/// Ticks between two requests on a connection.
const TICKS_BETWEEN: usize = 20;
/// The size of a drive that needs no space, but takes long to read, to digest and to image.
const HUGE: u64 = 1 << 40;

/// Bytes of data on a drive. They are not zero, because holes need no hashing.
const DATA: usize = 64 << 20;

/// The resource that is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Connections without a key that send one request after another.
    Strangers,
    /// Connections of a user that send one request after another.
    Connections,
    /// Memory for the bodies of requests, which arrive at 20 kB/s.
    Bodies,
    /// Memory for answers that nobody reads.
    Answers,
    /// A hundred digests of data at the same time.
    Digests,
    /// Imagings of compressed drives of a terabyte.
    Imagings,
}

impl Attack {
    pub const ALL: [Self; 6] = [
        Self::Strangers,
        Self::Connections,
        Self::Bodies,
        Self::Answers,
        Self::Digests,
        Self::Imagings,
    ];
}

/// A running attack, which ends when this is dropped.
#[derive(Debug)]
pub struct Held {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the connections of an attack do.
struct Plan {
    connections: usize,
    request: String,
    /// Bytes of the body that are sent at each tick.
    drip: usize,
    /// Whether answers are read, and the request is then sent again.
    asks_again: bool,
}

/// Begins an attack. When this function returns, all connections have sent their first request.
///
/// # Errors
/// If the server refuses the preparations.
pub fn begin(address: SocketAddr, attack: Attack) -> io::Result<Held> {
    let plan = plan(address, attack)?;
    let mut lines: Vec<Line> = (0..plan.connections).map(Line::new).collect();
    for line in &mut lines {
        line.tick(address, &plan, 0);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut ticks = 1;
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            for line in &mut lines {
                line.tick(address, &plan, ticks);
            }
            ticks += 1;
        }
    });
    Ok(Held {
        stop,
        thread: Some(thread),
    })
}

fn plan(address: SocketAddr, attack: Attack) -> io::Result<Plan> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(USER);
    let auth = format!("Authorization: Basic {encoded}\r\n");
    let get = |auth: &str, path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n");
    let drive = || client::create(address, USER, HUGE);
    let plan = |connections, request, drip, asks_again| Plan {
        connections,
        request,
        drip,
        asks_again,
    };
    Ok(match attack {
        Attack::Strangers => plan(600, get("", "/drives/list"), 0, true),
        Attack::Connections => plan(400, get(&auth, "/drives/list/standard"), 0, true),
        Attack::Bodies => {
            let head = format!(
                "POST /drives/{}/write HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 8000000\r\n\r\n",
                drive()?
            );
            plan(60, head, 1024, false)
        }
        Attack::Answers => plan(
            200,
            get(&auth, &format!("/drives/{}/read", drive()?)),
            0,
            false,
        ),
        Attack::Digests => {
            let drive = client::create(address, USER, DATA as u64)?;
            fill(address, &auth, &drive)?;
            let path = format!("/drives/{drive}/digest/0/{DATA}");
            plan(100, get(&auth, &path), 0, true)
        }
        Attack::Imagings => {
            let path = format!("/drives/{}/image/{}/gzip", drive()?, drive()?);
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 0\r\n\r\n");
            plan(8, head, 0, true)
        }
    })
}

fn fill(address: SocketAddr, auth: &str, drive: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!(
        "POST /drives/{drive}/write HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: {DATA}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&vec![b'x'; DATA])?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    match answer.ends_with(b"204") {
        true => Ok(()),
        false => Err(io::Error::other("the drive was not filled")),
    }
}

/// One connection of an attack, which is opened again when it ends.
struct Line {
    stream: Option<TcpStream>,
    /// The tick at which it sends again, so that connections do not all send at once.
    phase: usize,
}

impl Line {
    fn new(number: usize) -> Self {
        Self {
            stream: None,
            phase: number % TICKS_BETWEEN,
        }
    }

    fn tick(&mut self, address: SocketAddr, plan: &Plan, ticks: usize) {
        // If anything goes wrong, the next tick opens a new connection.
        if self.try_tick(address, plan, ticks).is_err() {
            self.stream = None;
        }
    }

    fn try_tick(&mut self, address: SocketAddr, plan: &Plan, ticks: usize) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(plan.request.as_bytes())?;
            stream.set_nonblocking(true)?;
            self.stream = Some(stream);
            return Ok(());
        };
        if plan.drip > 0 {
            let _ = stream.write(&vec![b'x'; plan.drip])?;
        }
        if plan.asks_again && ticks % TICKS_BETWEEN == self.phase {
            let mut answer = [0; 4096];
            match stream.read(&mut answer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Answers are short, so after any bytes the request is sent again.
                Ok(_) => stream.write_all(plan.request.as_bytes())?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
