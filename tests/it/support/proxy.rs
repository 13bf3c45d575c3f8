//! A proxy that speaks HTTP/1.1 without a library. It records each request, and does to selected
//! ones what networks and clouds do. Without a server behind it, it is a stub that answers
//! everything itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connections::Connections;
use super::gunzip;
use super::server::TestServer;

/// Longer bodies are counted, but not kept.
const KEPT_BYTES: usize = 8 << 20;
/// Only guards against a test that hangs; the time is no requirement.
const WATCHDOG: Duration = Duration::from_secs(100);

/// A request that the proxy received.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub head: String,
    /// Bytes of the body that arrived.
    pub len: u64,
    /// The body, unless it is too long.
    pub body: Vec<u8>,
    /// The status of the answer that was sent, or 0 before that.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub answered: u64,
    /// Whether a fault was applied to it.
    pub is_faulted: bool,
    /// The number of the connection that it came on.
    pub connection: usize,
}

impl Request {
    /// A header, by its name in lower-case letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The body, unpacked if it is gzip.
    pub fn plain(&self) -> Vec<u8> {
        assert_eq!(self.len as usize, self.body.len(), "body was not kept");
        match self.header("content-encoding") {
            Some("gzip") => gunzip(&self.body),
            _ => self.body.clone(),
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn is_create(&self) -> bool {
        self.path.ends_with("/drives/create")
    }

    pub fn is_write(&self) -> bool {
        self.path.contains("/write")
    }

    pub fn reads_back(&self) -> bool {
        self.is_read() || self.path.contains("/digest/")
    }

    /// A read of bytes.
    pub fn is_read(&self) -> bool {
        self.path.contains("/read/")
    }

    pub fn is_info(&self) -> bool {
        self.path.ends_with("/info")
    }

    /// The offset of a write.
    #[track_caller]
    pub fn offset(&self) -> u64 {
        self.path.rsplit('/').next().unwrap().parse().unwrap()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Builds the bytes of an answer.
pub fn answer(status: u16, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Made up\r\n");
    for header in headers {
        head += header;
        head += "\r\n";
    }
    if status != 204 {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    [head.as_bytes(), body].concat()
}

/// An error answer in the form of the service.
pub fn refusal(status: u16, error: &str) -> Vec<u8> {
    let error = format!("X-Elastic-Error: {error}");
    answer(status, &[&error, "Content-Type: text/plain"], b"Made up.\n")
}

/// A page like that of a captive portal.
pub fn page() -> Vec<u8> {
    let body = b"<html><body>Please log in</body></html>";
    answer(200, &["Content-Type: text/html; charset=utf-8"], body)
}

/// Holds requests back until the gate is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open.
    pub fn wait(&self) {
        let closed = self.0.0.lock().unwrap();
        let wait = self.0.1.wait_timeout_while(closed, WATCHDOG, |open| !*open);
        drop(wait.unwrap());
    }
}

type Rewrite = Arc<dyn Fn(&Request, Vec<u8>) -> Vec<u8> + Send + Sync>;

/// A fault, which is applied to a request.
#[derive(Clone)]
pub enum Fault {
    /// Reads the body, does not forward the request, and sends this answer.
    Answer(Vec<u8>),
    /// Forwards the request, and sends this answer in place of the server's.
    AnswerInstead(Vec<u8>),
    /// Forwards the request, and changes the answer.
    Rewrite(Rewrite),
    /// Resets the connection after the head arrived.
    ResetBeforeBody,
    /// Resets the connection after half of the body arrived.
    ResetMidBody,
    /// Resets the connection after the whole body arrived. Nothing is forwarded.
    ResetAfterBody,
    /// Forwards the request and resets the connection: it is executed, but the client never learns
    /// that.
    LoseAnswer,
    /// Forwards the request, and sends the answer without its last bytes.
    CutAnswer,
    /// Forwards the request, and resets the connection in the middle of the answer's body.
    ResetMidAnswer,
    /// Forwards the request, and resets the connection after the answer.
    ResetAfterAnswer,
    /// Forwards the request twice, and sends the first answer.
    Duplicate,
    /// Forwards the request, and passes the bodies on in eight steps with a pause after each.
    Trickle(Duration),
    /// Reads the request and never answers.
    Stall,
    /// Forwards the request, and sends the answer's body byte by byte with a pause after each.
    Drip(Duration),
    /// Forwards the request when the gate is open.
    Hold(Gate),
}

impl Fault {
    pub fn rewrite(f: impl Fn(&Request, Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Rewrite(Arc::new(f))
    }
}

/// Forwards a request for info, and adds to the answer that a server claims the drive.
pub fn claimed() -> Fault {
    claimed_by("2:guest:a:ide:0:0")
}

/// The same, with this claim.
pub fn claimed_by(claim: &str) -> Fault {
    let claim = claim.to_owned();
    Fault::rewrite(move |_, reply| {
        let text = String::from_utf8(reply).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body = format!("{body}claimed {claim}\n");
        answer(200, &["Content-Type: text/plain"], body.as_bytes())
    })
}

type Matcher = Box<dyn Fn(&Request) -> bool + Send>;

struct Rule {
    matches: Matcher,
    skip: usize,
    times: usize,
    fault: Fault,
}

type Handler = Arc<dyn Fn(&Request) -> Vec<u8> + Send + Sync>;

#[derive(Clone)]
enum Behind {
    Server(SocketAddr),
    Stub(Handler),
}

struct State {
    requests: Vec<Request>,
    rules: Vec<Rule>,
    behind: Behind,
    connections: usize,
    writes: Peak,
    reads: Peak,
    /// A write that matches is answered with busy while another one is under way.
    one_writer: Option<Matcher>,
}

/// The number of requests that are under way.
#[derive(Default)]
struct Peak {
    now: usize,
    most: usize,
}

impl Peak {
    fn begin(&mut self) {
        self.now += 1;
        self.most = self.most.max(self.now);
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    open: Arc<Connections>,
    ended: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.lock());
        self.changed.notify_all();
    }
}

/// See the module.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// A proxy that forwards to `server`.
    pub fn to(server: &TestServer) -> Self {
        Self::start(Behind::Server(server.address()))
    }

    /// A stub that answers with `handler`.
    pub fn stub(handler: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(Behind::Stub(Arc::new(handler)))
    }

    fn start(behind: Behind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                requests: Vec::new(),
                rules: Vec::new(),
                behind,
                connections: 0,
                writes: Peak::default(),
                reads: Peak::default(),
                one_writer: None,
            }),
            changed: Condvar::new(),
            open: Arc::default(),
            ended: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            loop {
                let accepted = listener.accept();
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok((stream, from)) = accepted else {
                    continue;
                };
                let Some(open) = accepting.open.accepted(from) else {
                    continue;
                };
                let shared = Arc::clone(&accepting);
                let mut number = 0;
                shared.change(|state| {
                    number = state.connections;
                    state.connections += 1;
                });
                std::thread::spawn(move || {
                    Connection::new(stream, number, shared).serve();
                    drop(open);
                });
            }
        });
        Self { address, shared }
    }

    /// The address, as in `OHURI`.
    pub fn uri(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Forwards new connections to another server from now on.
    pub fn redirect_to(&self, server: &TestServer) {
        let address = server.address();
        self.shared
            .change(|state| state.behind = Behind::Server(address));
    }

    /// Applies `fault` to the first `times` requests that match.
    pub fn fault(
        &self,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        times: usize,
        fault: Fault,
    ) {
        self.fault_after(0, matches, times, fault);
    }

    /// The same, but lets the first `skip` requests that match pass.
    pub fn fault_after(
        &self,
        skip: usize,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        times: usize,
        fault: Fault,
    ) {
        let matches = Box::new(matches);
        self.shared.change(|state| {
            state.rules.push(Rule {
                matches,
                skip,
                times,
                fault,
            });
        });
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.change(|state| state.rules.clear());
    }

    /// All requests so far, ordered by the time when their heads arrived.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// The number of requests that match.
    pub fn count(&self, matches: impl Fn(&Request) -> bool) -> usize {
        self.shared
            .lock()
            .requests
            .iter()
            .filter(|r| matches(r))
            .count()
    }

    /// Removes the requests so far from the record.
    pub fn forget(&self) {
        self.shared.up.store(0, Ordering::SeqCst);
        self.shared.down.store(0, Ordering::SeqCst);
        self.shared.change(|state| state.requests.clear());
    }

    /// Waits until `is` returns true for the requests.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is: impl Fn(&[Request]) -> bool) {
        let state = self.shared.lock();
        let (state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(state, WATCHDOG, |state| !is(&state.requests))
            .unwrap();
        let seen = state.requests.len();
        drop(state);
        assert!(!timeout.timed_out(), "{what} never came; {seen} requests");
    }

    /// After a client ended: waits until all that it sent is recorded and answered. Requests that
    /// are held back must be released before.
    #[track_caller]
    pub fn settle(&self) {
        self.shared.open.settle(self.address);
    }

    /// Bytes received from the client, including heads.
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst)
    }

    /// Bytes sent to the client.
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.load(Ordering::SeqCst)
    }

    /// The number of connections that the client opened.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// The highest number of writes at a time.
    pub fn writes_peak(&self) -> usize {
        self.shared.lock().writes.most
    }

    /// The highest number of reads at a time.
    pub fn reads_peak(&self) -> usize {
        self.shared.lock().reads.most
    }

    /// From now on, a write that matches is answered with 409 busy while another write is under
    /// way.
    pub fn allow_one_writer(&self, matches: impl Fn(&Request) -> bool + Send + 'static) {
        self.shared
            .change(|state| state.one_writer = Some(Box::new(matches)));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
        if std::thread::panicking() {
            eprintln!("What the proxy saw:");
            for r in &self.shared.lock().requests {
                eprintln!(
                    "  {} {} {} bytes: {}",
                    r.method,
                    r.path,
                    r.body.len(),
                    r.status
                );
            }
        }
    }
}

/// Bytes of a body that are passed on in one step.
const STEP_BYTES: usize = 64 * 1024;

struct Connection {
    client: TcpStream,
    number: usize,
    shared: Arc<Shared>,
    /// The pause after each step of a body.
    pause: Duration,
}

/// The connection must be closed: properly, or with a reset.
enum Close {
    Properly,
    Reset,
}

impl Connection {
    fn new(client: TcpStream, number: usize, shared: Arc<Shared>) -> Self {
        let _ = client.set_nodelay(true);
        Self {
            client,
            number,
            shared,
            pause: Duration::ZERO,
        }
    }

    fn serve(mut self) {
        loop {
            match self.serve_one() {
                Ok(()) => {}
                Err(Close::Properly) => return,
                Err(Close::Reset) => {
                    let _ =
                        rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO));
                    return;
                }
            }
        }
    }

    fn serve_one(&mut self) -> Result<(), Close> {
        let head = read_head(&mut self.client).ok_or(Close::Properly)?;
        self.count_up(head.len());
        let mut words = head.split(' ');
        let request = Request {
            method: words.next().unwrap_or_default().to_owned(),
            path: words.next().unwrap_or_default().to_owned(),
            head: head.clone(),
            connection: self.number,
            ..Request::default()
        };
        let len: u64 = request
            .header("content-length")
            .map_or(0, |len| len.parse().unwrap());
        let (is_write, is_read) = (request.is_write(), request.is_read());
        let (mut index, mut fault) = (0, None);
        let mut behind = None;
        self.shared.change(|state| {
            index = state.requests.len();
            let is_one = state.one_writer.as_ref();
            fault = match is_write && state.writes.now > 0 && is_one.is_some_and(|f| f(&request)) {
                true => Some(Fault::Answer(refusal(409, "busy"))),
                false => pick(&mut state.rules, &request),
            };
            state.requests.push(Request {
                is_faulted: fault.is_some(),
                ..request
            });
            behind = Some(state.behind.clone());
            if is_write {
                state.writes.begin();
            }
            if is_read {
                state.reads.begin();
            }
        });
        let result = self.handle(index, len, fault, &behind.unwrap());
        self.shared.change(|state| {
            state.writes.now -= usize::from(is_write);
            state.reads.now -= usize::from(is_read);
        });
        result
    }

    fn handle(
        &mut self,
        index: usize,
        len: u64,
        fault: Option<Fault>,
        behind: &Behind,
    ) -> Result<(), Close> {
        match &fault {
            Some(Fault::ResetBeforeBody) => return Err(Close::Reset),
            Some(Fault::ResetMidBody) => {
                self.take_body(index, len / 2, None)?;
                return Err(Close::Reset);
            }
            Some(Fault::ResetAfterBody) => {
                self.take_body(index, len, None)?;
                return Err(Close::Reset);
            }
            Some(Fault::Stall) => {
                self.take_body(index, len, None)?;
                // Waits until the client closes the connection.
                let _ = self.client.read(&mut [0]);
                return Err(Close::Properly);
            }
            Some(Fault::Answer(answer)) => {
                self.take_body(index, len, None)?;
                return self.reply(index, answer);
            }
            Some(Fault::Hold(gate)) => gate.wait(),
            _ => {}
        }
        self.pause = match fault {
            Some(Fault::Trickle(pause)) => pause,
            _ => Duration::ZERO,
        };
        let answer = match behind {
            Behind::Server(address) => self.forward(index, len, *address)?,
            Behind::Stub(handler) => {
                self.take_body(index, len, None)?;
                let request = self.request(index);
                handler(&request)
            }
        };
        match fault {
            Some(Fault::LoseAnswer) => Err(Close::Reset),
            Some(Fault::CutAnswer) => {
                let cut = &answer[..answer.len() - answer.len().min(20) / 2];
                self.reply(index, cut)?;
                Err(Close::Properly)
            }
            Some(Fault::ResetMidAnswer) => {
                let body = answer.len() - head_len(&answer);
                // If the answer has no body, it is cut within its head.
                let cut = if body == 0 { answer.len() } else { body } / 2;
                self.reply(index, &answer[..answer.len() - cut])?;
                Err(Close::Reset)
            }
            Some(Fault::ResetAfterAnswer) => {
                self.reply(index, &answer)?;
                Err(Close::Reset)
            }
            Some(Fault::Duplicate) => {
                if let Behind::Server(address) = behind {
                    let request = self.request(index);
                    deliver(&request, *address).ok_or(Close::Reset)?;
                }
                self.reply(index, &answer)
            }
            Some(Fault::AnswerInstead(answer)) => self.reply(index, &answer),
            Some(Fault::Drip(pause)) => {
                let (head, body) = answer.split_at(head_len(&answer));
                self.reply(index, head)?;
                for byte in body {
                    std::thread::sleep(pause);
                    self.client
                        .write_all(&[*byte])
                        .map_err(|_| Close::Properly)?;
                }
                Ok(())
            }
            Some(Fault::Rewrite(rewrite)) => {
                let answer = rewrite(&self.request(index), answer);
                self.reply(index, &answer)
            }
            _ => self.reply(index, &answer),
        }
    }

    fn request(&self, index: usize) -> Request {
        let state = self.shared.lock();
        state.requests.get(index).cloned().unwrap_or_default()
    }

    /// Forwards the request and reads the whole answer.
    fn forward(&mut self, index: usize, len: u64, address: SocketAddr) -> Result<Vec<u8>, Close> {
        // Each request has a new connection, because an old one that the server closes between two
        // requests would look like a fault.
        let mut upstream = TcpStream::connect(address).map_err(|_| Close::Reset)?;
        let _ = upstream.set_nodelay(true);
        let head = self.request(index).head;
        // The server may answer before it has read everything.
        let mut to = upstream.try_clone().map_err(|_| Close::Reset)?;
        let _ = to.write_all(head.as_bytes());
        self.take_body(index, len, Some(&mut to))?;
        read_answer(&mut upstream).ok_or(Close::Reset)
    }

    /// Reads `len` bytes of the body and passes them on.
    fn take_body(
        &mut self,
        index: usize,
        len: u64,
        mut to: Option<&mut TcpStream>,
    ) -> Result<(), Close> {
        let mut step = vec![0; STEP_BYTES];
        let mut left = len;
        let most = self.step_of(len);
        let mut kept = Vec::new();
        let mut taken = 0_u64;
        while left > 0 {
            let want = most.min(usize::try_from(left).unwrap_or(STEP_BYTES));
            let n = match self.client.read(&mut step[..want]) {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            std::thread::sleep(self.pause);
            self.count_up(n);
            left -= n as u64;
            taken += n as u64;
            if kept.len() + n <= KEPT_BYTES {
                kept.extend_from_slice(&step[..n]);
            }
            if let Some(upstream) = to.as_deref_mut() {
                let _ = upstream.write_all(&step[..n]);
            }
        }
        self.shared.change(|state| {
            if let Some(request) = state.requests.get_mut(index) {
                request.len = taken;
                request.body = kept;
            }
        });
        if left == 0 {
            Ok(())
        } else {
            Err(Close::Properly)
        }
    }

    fn reply(&mut self, index: usize, answer: &[u8]) -> Result<(), Close> {
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse();
        self.shared.change(|state| {
            if let Some(request) = state.requests.get_mut(index) {
                request.status = status.unwrap();
                request.answered += (answer.len() - head_len(answer)) as u64;
            }
        });
        let most = self.step_of(answer.len() as u64);
        let sent = answer.chunks(most).try_for_each(|step| {
            std::thread::sleep(self.pause);
            self.client.write_all(step)
        });
        self.shared
            .down
            .fetch_add(answer.len() as u64, Ordering::SeqCst);
        sent.map_err(|_| Close::Properly)
    }

    /// The number of bytes, out of `len`, that are passed on in one step.
    fn step_of(&self, len: u64) -> usize {
        if self.pause.is_zero() {
            return STEP_BYTES;
        }
        usize::try_from(len.div_ceil(8)).map_or(STEP_BYTES, |step| step.clamp(1, STEP_BYTES))
    }

    fn count_up(&self, n: usize) {
        self.shared.up.fetch_add(n as u64, Ordering::SeqCst);
    }
}

fn pick(rules: &mut [Rule], request: &Request) -> Option<Fault> {
    for rule in rules {
        if rule.times == 0 || !(rule.matches)(request) {
            continue;
        }
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        rule.times -= 1;
        return Some(rule.fault.clone());
    }
    None
}

/// The offset of the body in an answer, which is the answer's end if there is no body.
fn head_len(answer: &[u8]) -> usize {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    end.map_or(answer.len(), |at| at + 4)
}

/// Reads a whole answer.
fn read_answer(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let head = read_head(stream)?;
    let len = header(&head, "content-length").map_or(0, |len| len.parse().unwrap());
    let mut answer = head.into_bytes();
    let body_at = answer.len();
    answer.resize(body_at + len, 0);
    stream.read_exact(&mut answer[body_at..]).ok()?;
    Some(answer)
}

/// Sends a recorded request once more.
fn deliver(request: &Request, address: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(request.head.as_bytes()).ok()?;
    stream.write_all(&request.body).ok()?;
    read_answer(&mut stream)
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    // The head is read byte by byte, but peeked at in the kernel's buffer at once, so that the
    // bytes after the blank line stay there.
    let mut ahead = [0; 4096];
    loop {
        let n = match stream.peek(&mut ahead) {
            Ok(0) | Err(_) => return None,
            Ok(n) => n,
        };
        let before = head.len();
        head.extend_from_slice(&ahead[..n]);
        let from = before.saturating_sub(3);
        let end = head[from..].windows(4).position(|w| w == b"\r\n\r\n");
        let len = end.map_or(head.len(), |at| from + at + 4);
        stream.read_exact(&mut ahead[..len - before]).ok()?;
        if end.is_some() {
            head.truncate(len);
            return String::from_utf8(head).ok();
        }
    }
}
