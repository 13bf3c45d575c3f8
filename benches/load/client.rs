//! Many users who write at the same time, as fast as they can. At the end it is checked that
//! everything was stored. HTTP without a library, with one connection and one thread for each user.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use hdrhistogram::Histogram;

/// The length of the stamp that makes each uncompressed body different.
const STAMP_BYTES: usize = 16;
/// The number of different bodies. More of them would not change the results.
const BODIES: usize = 8;

/// How bodies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Uncompressed.
    Raw,
    /// Compressed with gzip, and unpacked by the server.
    Gzip,
    /// Uncompressed and compressed in turn.
    Both,
}

/// Where bodies are sent.
#[derive(Clone, Debug)]
pub enum Place {
    /// A drive of the user `UUID:KEY`.
    Drive { id: String, auth: String },
    /// Files below a path of a WebDAV server.
    Files { path: String },
}

/// What each user does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub kind: Kind,
    /// Bytes of one body before compression.
    pub body_bytes: usize,
    /// The number of places to which each user writes in turn.
    pub slots: usize,
    pub time: Duration,
}

/// The results.
#[derive(Debug)]
pub struct Report {
    pub requests: u64,
    /// Bytes of bodies, before compression and as sent.
    pub bytes: u64,
    pub sent_bytes: u64,
    pub took: Duration,
    /// Bytes that were read back and compared.
    pub verified_bytes: u64,
    /// What went wrong, which is empty if everything succeeded.
    pub errors: Vec<String>,
    /// Times from request to answer, in microseconds.
    pub latencies: Histogram<u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        let seconds = self.took.as_secs_f64();
        write!(
            f,
            "{} requests, {:.0}/s, {:.0} MB/s of the drives, {:.0} MB/s sent, \
             p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, {} MiB verified, {} errors",
            self.requests,
            self.requests as f64 / seconds,
            self.bytes as f64 / 1e6 / seconds,
            self.sent_bytes as f64 / 1e6 / seconds,
            ms(self.latencies.value_at_quantile(0.5)),
            ms(self.latencies.value_at_quantile(0.99)),
            ms(self.latencies.max()),
            self.verified_bytes >> 20,
            self.errors.len(),
        )
    }
}

struct Body {
    raw: Vec<u8>,
    packed: Vec<u8>,
}

/// Bodies of which about half can be compressed away, as is typical for disks.
fn bodies(len: usize) -> Vec<Body> {
    let mut random = fastrand::Rng::with_seed(64);
    (0..BODIES)
        .map(|_| {
            let mut raw = vec![0; len];
            for (i, page) in raw.chunks_mut(4096).enumerate() {
                match i % 2 {
                    0 => random.fill(page),
                    _ => page.fill(random.u8(1..)),
                }
            }
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(&raw).unwrap();
            let packed = encoder.finish().unwrap();
            Body { raw, packed }
        })
        .collect()
}

/// Lets a user for each of `places` write to `address`, then verifies.
pub fn run(address: SocketAddr, places: &[Place], load: Load) -> Report {
    let bodies = bodies(load.body_bytes);
    let began = Instant::now();
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let users: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(number, place)| {
                let bodies = &bodies;
                scope.spawn(move || User::new(address, number, place, load, bodies).run(began))
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).collect()
    });
    let mut all = empty();
    for report in reports {
        all.requests += report.requests;
        all.bytes += report.bytes;
        all.sent_bytes += report.sent_bytes;
        all.verified_bytes += report.verified_bytes;
        all.took = all.took.max(report.took);
        all.errors.extend(report.errors);
        all.latencies.add(&report.latencies).unwrap();
    }
    all
}

fn empty() -> Report {
    Report {
        requests: 0,
        bytes: 0,
        sent_bytes: 0,
        took: Duration::ZERO,
        verified_bytes: 0,
        errors: Vec::new(),
        latencies: Histogram::new(3).unwrap(),
    }
}

struct User<'a> {
    address: SocketAddr,
    place: &'a Place,
    load: Load,
    bodies: &'a [Body],
    stream: Option<BufReader<TcpStream>>,
    /// The body that was confirmed last in each slot.
    confirmed: Vec<Option<Written>>,
    number: u64,
}

/// The number of the body, and its stamp.
#[derive(Clone, Copy)]
struct Written {
    body: usize,
    stamp: Option<[u8; STAMP_BYTES]>,
}

impl<'a> User<'a> {
    fn new(
        address: SocketAddr,
        number: usize,
        place: &'a Place,
        load: Load,
        bodies: &'a [Body],
    ) -> Self {
        Self {
            address,
            place,
            load,
            bodies,
            stream: None,
            confirmed: vec![None; load.slots],
            number: number as u64,
        }
    }

    fn run(mut self, began: Instant) -> Report {
        let mut report = empty();
        let mut round = 0u64;
        while began.elapsed() < self.load.time {
            let slot = (round % self.load.slots as u64) as usize;
            let body = ((round + self.number) % BODIES as u64) as usize;
            let is_packed = match self.load.kind {
                Kind::Raw => false,
                Kind::Gzip => true,
                Kind::Both => round % 2 == 1,
            };
            let stamp = (!is_packed).then(|| {
                let mut stamp = [0; STAMP_BYTES];
                stamp[..8].copy_from_slice(&self.number.to_le_bytes());
                stamp[8..].copy_from_slice(&round.to_le_bytes());
                stamp
            });
            round += 1;
            let asked = Instant::now();
            let written = Written { body, stamp };
            match self.write(slot, written, is_packed) {
                Ok(sent) => {
                    let took = u64::try_from(asked.elapsed().as_micros()).unwrap();
                    report.latencies.record(took.max(1)).unwrap();
                    report.requests += 1;
                    report.bytes += self.load.body_bytes as u64;
                    report.sent_bytes += sent as u64;
                    self.confirmed[slot] = Some(written);
                }
                Err(error) => {
                    report
                        .errors
                        .push(format!("user {} slot {slot}: {error}", self.number));
                    self.stream = None;
                    // Without an answer, nobody knows what the slot contains now.
                    self.confirmed[slot] = None;
                }
            }
        }
        report.took = began.elapsed();
        for slot in 0..self.load.slots {
            let Some(written) = self.confirmed[slot] else {
                continue;
            };
            match self.verify(slot, written) {
                Ok(()) => report.verified_bytes += self.load.body_bytes as u64,
                Err(error) => report.errors.push(format!(
                    "user {} slot {slot}, verifying: {error}",
                    self.number
                )),
            }
        }
        report
    }

    fn write(&mut self, slot: usize, written: Written, is_packed: bool) -> io::Result<usize> {
        let body = &self.bodies[written.body];
        let stamp = written.stamp.as_ref().map_or(&[][..], |stamp| &stamp[..]);
        let bytes = match is_packed {
            true => &body.packed[..],
            false => &body.raw[stamp.len()..],
        };
        let (method, path) = match self.place {
            Place::Drive { id, .. } => {
                let offset = slot * self.load.body_bytes;
                ("POST", format!("/drives/{id}/write/{offset}"))
            }
            Place::Files { path } => ("PUT", format!("{path}/{slot}")),
        };
        let len = stamp.len() + bytes.len();
        let encoding = match is_packed {
            true => "Content-Encoding: gzip\r\n",
            false => "",
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: load\r\n{}{encoding}Content-Length: {len}\r\n\r\n",
            self.auth()
        );
        let stream = self.stream()?;
        let socket = stream.get_mut();
        socket.write_all(&[head.as_bytes(), stamp].concat())?;
        socket.write_all(bytes)?;
        match read_reply(stream)? {
            (200..=299, _) => Ok(len),
            (status, body) => {
                let said = String::from_utf8_lossy(&body);
                Err(io::Error::other(format!(
                    "status {status}: {}",
                    said.trim()
                )))
            }
        }
    }

    fn verify(&mut self, slot: usize, written: Written) -> io::Result<()> {
        let len = self.load.body_bytes;
        let path = match self.place {
            Place::Drive { id, .. } => format!("/drives/{id}/read/{}/{len}", slot * len),
            Place::Files { path } => format!("{path}/{slot}"),
        };
        let auth = self.auth();
        let head = format!("GET {path} HTTP/1.1\r\nHost: load\r\n{auth}\r\n");
        let stream = self.stream()?;
        stream.get_mut().write_all(head.as_bytes())?;
        let (status, got) = read_reply(stream)?;
        if status != 200 || got.len() != len {
            return Err(io::Error::other(format!(
                "status {status}, {} bytes",
                got.len()
            )));
        }
        let stamp = written.stamp.as_ref().map_or(&[][..], |stamp| &stamp[..]);
        let wanted = &self.bodies[written.body].raw;
        if got[..stamp.len()] != *stamp || got[stamp.len()..] != wanted[stamp.len()..] {
            return Err(io::Error::other("not what was written last"));
        }
        Ok(())
    }

    fn auth(&self) -> String {
        match self.place {
            Place::Drive { auth, .. } => {
                let encoded = base64::engine::general_purpose::STANDARD.encode(auth);
                format!("Authorization: Basic {encoded}\r\n")
            }
            Place::Files { .. } => String::new(),
        }
    }

    fn stream(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address)?;
            stream.set_nodelay(true)?;
            // Only guards against a server that never answers.
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            self.stream = Some(BufReader::new(stream));
        }
        self.stream
            .as_mut()
            .ok_or(io::ErrorKind::NotConnected.into())
    }
}

/// Status and body of an answer.
fn read_reply(stream: &mut impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let mut line = String::new();
    let mut status = None;
    let mut len = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.trim_end();
        if status.is_none() {
            status = text.get(9..12).and_then(|code| code.parse().ok());
        } else if text.is_empty() {
            break;
        } else if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            len = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let status = status.ok_or_else(|| io::Error::other("no status"))?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok((status, body))
}

/// Creates a drive of this size for the user `UUID:KEY`.
pub fn create(address: SocketAddr, auth: &str, size: u64) -> io::Result<String> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(auth);
    let body = format!("name load\nsize {size}");
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    let head = format!(
        "POST /drives/create HTTP/1.1\r\nHost: load\r\nAuthorization: Basic {encoded}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(head.as_bytes())?;
    let (status, body) = read_reply(&mut stream)?;
    let text = String::from_utf8_lossy(&body);
    let drive = text.lines().find_map(|line| line.strip_prefix("drive "));
    match (status, drive) {
        (200, Some(drive)) => Ok(drive.to_owned()),
        _ => Err(io::Error::other(format!("status {status}: {text}"))),
    }
}

/// The most memory that a process had at one time, in bytes.
pub fn peak_resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
