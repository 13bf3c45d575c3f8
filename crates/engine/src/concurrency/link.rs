//! A model of TCP connections over one link, for tests of
//! [`Concurrency`](super::Concurrency) and [`Tail`](super::super::tail::Tail): a bottleneck
//! with a rate and a queue, latency, loss, and an endpoint that takes time for each request
//! and may refuse more than some. Bytes are a fluid within a step; losses are drawn for each
//! connection and step. Windows grow as in slow start and CUBIC (RFC 9438). Checked against
//! an emulated link in docs/dev/performance.md, "Links with latency".

use std::time::Duration;

use super::{Concurrency, Moved};

/// Bytes of a packet's payload.
const MSS: f64 = 1448.0;
/// Bytes of a body that HTTP and TLS buffer above the socket, and bytes that are not counted at
/// first.
const USER_BUFFER: f64 = 450_000.0;
const UNCOUNTED: f64 = 458_752.0;
/// Windows in packets: of a new connection, and the least.
const WINDOW_FIRST: f64 = 10.0;
const WINDOW_MIN: f64 = 2.0;
/// CUBIC's parameters.
const BETA: f64 = 0.7;
const C: f64 = 0.4;

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Link {
    /// Bytes per second.
    pub(in super::super) rate: f64,
    /// Seconds of a round trip with an empty queue.
    pub(in super::super) rtt: f64,
    /// Probability that a packet is lost.
    pub(in super::super) loss: f64,
    /// Bytes that the queue holds.
    pub(in super::super) queue: f64,
    /// Seconds that the endpoint takes for each request.
    pub(in super::super) server: f64,
    /// Maximum concurrent requests; more are refused.
    pub(in super::super) most: usize,
    /// Bytes of a request's body.
    pub(in super::super) chunk: f64,
    /// In an upload, the bytes that have arrived are computed from those handed over and those that
    /// the system's buffers hold. What HTTP and TLS buffer is a guess.
    pub(in super::super) is_upload: bool,
    /// From the first number on, in seconds, the rate is multiplied by the second.
    pub(in super::super) change: Option<(f64, f64)>,
    /// The time from one pause of the link to the next, and the length of a pause, in seconds. In a
    /// pause almost nothing arrives, and after it, for as long again, twice the rate.
    pub(in super::super) pauses: Option<(f64, f64)>,
}

impl Link {
    /// A link with a rate in Mbit/s and a round trip in milliseconds, whose queue holds half of
    /// their product.
    pub(in super::super) fn new(mbit: f64, rtt_ms: f64, loss: f64) -> Self {
        let rate = mbit * 125_000.0;
        Self {
            rate,
            rtt: rtt_ms / 1000.0,
            loss,
            queue: (rate * rtt_ms / 1000.0 / 2.0).max(65_536.0),
            server: 0.0,
            most: usize::MAX,
            chunk: f64::from(4 << 20),
            is_upload: true,
            change: None,
            pauses: None,
        }
    }
}

/// A connection, as its sender sees it.
#[derive(Clone, Debug)]
struct Tcp {
    window: f64,
    slow_start_below: f64,
    /// The window before the last loss, and the time of that loss.
    window_max: f64,
    lost_at: f64,
    idle_since: f64,
}

impl Tcp {
    fn new() -> Self {
        Self {
            window: WINDOW_FIRST,
            slow_start_below: f64::MAX,
            window_max: 0.0,
            lost_at: f64::MIN,
            idle_since: 0.0,
        }
    }

    /// A packet was lost. Further losses within a round trip belong to the same event.
    fn lose(&mut self, now: f64, rtt: f64) {
        if now < self.lost_at + rtt {
            return;
        }
        self.window_max = self.window;
        self.window = (self.window * BETA).max(WINDOW_MIN);
        self.slow_start_below = self.window;
        self.lost_at = now;
    }

    fn grow(&mut self, packets: f64, now: f64, rtt: f64) {
        if self.window < self.slow_start_below {
            self.window += packets;
            return;
        }
        let since = now - self.lost_at;
        let k = (self.window_max * (1.0 - BETA) / C).cbrt();
        let cubic = C * (since + rtt - k).powi(3) + self.window_max;
        let reno = self.window_max * BETA + 0.53 * since / rtt;
        let target = cubic.max(reno).min(self.window * 1.5);
        if target > self.window {
            self.window += (target - self.window) * (packets / self.window).min(1.0);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Until this time, the connection is being opened or the answer is on its way.
    Opening(f64),
    Moving,
    /// The whole body has arrived; the answer arrives at this time.
    Answered(f64),
}

#[derive(Debug)]
struct Request<T> {
    ticket: T,
    connection: usize,
    state: State,
    /// Bytes of its body.
    bytes: f64,
    arrived: f64,
    moved: f64,
    /// When its body was begun, and when it was handed over completely.
    began: Option<f64>,
    handed_over: Option<f64>,
    is_refused: bool,
}

impl<T> Request<T> {
    /// Bytes of an upload that count as arrived, if the system buffers `kept` bytes.
    fn counted(&mut self, kept: f64, now: f64) -> f64 {
        let began = *self.began.get_or_insert(now);
        let kept = kept.min(self.bytes - self.arrived);
        let handed = (self.arrived + kept + USER_BUFFER).min(self.bytes);
        if handed < self.bytes {
            return (handed - UNCOUNTED).max(0.0) - kept;
        }
        let ended = *self.handed_over.get_or_insert(now);
        let buffered = UNCOUNTED.min(self.bytes);
        let drains = (ended - began) * buffered / (self.bytes - buffered).max(1.0);
        let left = (1.0 - (now - ended) / drains.max(1e-9)).max(0.0);
        self.bytes - buffered * left - kept
    }
}

/// The outcome of a request.
#[derive(Debug)]
pub(in super::super) enum Ended<T> {
    Done(T),
    Refused(T),
}

/// Requests under way on a [`Link`], in virtual time.
#[derive(Debug)]
pub(in super::super) struct Network<T> {
    link: Link,
    now: f64,
    connections: Vec<Tcp>,
    idle: Vec<usize>,
    requests: Vec<Request<T>>,
    /// Bytes in the queue.
    queued: f64,
    moved: f64,
    rng: fastrand::Rng,
}

impl<T> Network<T> {
    pub(in super::super) fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            now: 0.0,
            connections: Vec::new(),
            idle: Vec::new(),
            requests: Vec::new(),
            queued: 0.0,
            moved: 0.0,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    pub(in super::super) fn now(&self) -> Duration {
        Duration::from_secs_f64(self.now)
    }

    pub(in super::super) fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Bytes of bodies that the client counts as moved.
    pub(in super::super) fn moved(&self) -> u64 {
        // Never below 0, because `as` saturates.
        self.moved as u64
    }

    pub(in super::super) fn send(&mut self, ticket: T) {
        self.send_bytes(ticket, self.link.chunk);
    }

    /// A request for a piece of a chunk.
    pub(in super::super) fn send_bytes(&mut self, ticket: T, bytes: f64) {
        let link = self.link;
        let answer = match link.is_upload {
            true => 0.0,
            false => link.rtt + link.server,
        };
        let (connection, opening) = match self.idle.pop() {
            Some(connection) => {
                if let Some(tcp) = self.connections.get_mut(connection)
                    && self.now - tcp.idle_since > (2.0 * link.rtt).max(1.0)
                {
                    tcp.window = tcp.window.min(WINDOW_FIRST);
                }
                (connection, answer)
            }
            None => {
                self.connections.push(Tcp::new());
                // Round trips for TCP, for TLS, and for the request.
                (self.connections.len() - 1, 3.0 * link.rtt + answer)
            }
        };
        self.requests.push(Request {
            ticket,
            connection,
            state: State::Opening(self.now + opening),
            bytes,
            arrived: 0.0,
            moved: 0.0,
            began: None,
            handed_over: None,
            is_refused: self.requests.len() >= link.most,
        });
    }

    /// Seconds since the last pause began.
    fn since_pause(&self) -> f64 {
        let every = self.link.pauses.map_or(f64::MAX, |(every, _)| every);
        if self.now < every {
            f64::MAX
        } else {
            self.now % every
        }
    }

    /// Advances by one step of time, and returns the requests that ended in it.
    pub(in super::super) fn step(&mut self) -> Vec<Ended<T>> {
        let link = self.link;
        let step = (link.rtt / 8.0).min(0.01);
        let rate = match link.change {
            Some((at, times)) if self.now >= at => link.rate * times,
            _ => link.rate,
        };
        let rate = match link.pauses {
            Some((_, seconds)) if self.since_pause() < seconds => rate / 1000.0,
            Some((_, seconds)) if self.since_pause() < 2.0 * seconds => rate * 2.0,
            _ => rate,
        };
        self.now += step;
        let rtt = link.rtt + self.queued / rate;
        let mut wanted = 0.0;
        for request in &mut self.requests {
            if let State::Opening(until) = request.state
                && self.now >= until
            {
                request.state = State::Moving;
            }
            if matches!(request.state, State::Moving) {
                wanted += self.connections[request.connection].window * MSS / rtt;
            }
        }
        let carried = match self.queued > 0.0 {
            true => rate,
            false => wanted.min(rate),
        };
        let part = if wanted > 0.0 {
            (carried / wanted).min(1.0)
        } else {
            0.0
        };
        self.queued = (self.queued + (wanted - rate) * step).max(0.0);
        let overflow = (self.queued - link.queue).max(0.0);
        self.queued = self.queued.min(link.queue);
        let dropped = if wanted > 0.0 {
            (overflow / (wanted * step)).min(1.0)
        } else {
            0.0
        };
        let mut ended = Vec::new();
        let mut i = 0;
        while let Some(request) = self.requests.get_mut(i) {
            let tcp = &mut self.connections[request.connection];
            match request.state {
                State::Opening(_) => {}
                State::Moving => {
                    let sent = tcp.window * MSS / rtt * step;
                    let packets = sent / MSS;
                    let none_lost =
                        (1.0 - link.loss).powf(packets) * (1.0 - dropped).powf(packets.min(8.0));
                    if self.rng.f64() >= none_lost {
                        tcp.lose(self.now, rtt);
                    }
                    let arrived =
                        (sent * part * (1.0 - link.loss)).min(request.bytes - request.arrived);
                    request.arrived += arrived;
                    tcp.grow(arrived / MSS, self.now, rtt);
                    let moved = match link.is_upload {
                        true => request.counted(2.0 * tcp.window * MSS, self.now),
                        false => request.arrived,
                    };
                    self.moved += moved - request.moved;
                    request.moved = moved;
                    if request.arrived >= request.bytes - 1.0 || request.is_refused {
                        let answer = match link.is_upload {
                            true => rtt + link.server,
                            false => 0.0,
                        };
                        request.state = State::Answered(self.now + answer);
                    }
                }
                State::Answered(at) if self.now >= at => {
                    let request = self.requests.swap_remove(i);
                    self.connections[request.connection].idle_since = self.now;
                    self.idle.push(request.connection);
                    ended.push(match request.is_refused {
                        true => Ended::Refused(request.ticket),
                        false => Ended::Done(request.ticket),
                    });
                    continue;
                }
                State::Answered(_) => {}
            }
            i += 1;
        }
        ended
    }
}

/// What has moved without spare requests.
pub(in super::super) fn bytes_moved(bytes: u64) -> Moved {
    Moved {
        bytes,
        ..Moved::default()
    }
}

/// Simulates a transfer of whole chunks over a link, with a fixed number of requests or with the
/// controller. Returns the bytes per second, and the largest number of requests.
pub(in super::super) fn transfer(
    link: Link,
    mut concurrency: Concurrency,
    bytes: f64,
    seed: u64,
) -> (f64, u32) {
    let mut network = Network::new(link, seed);
    let mut unsent = (bytes / link.chunk).ceil() as u64;
    let mut open = unsent;
    let total = open as f64 * link.chunk;
    let (mut most, mut resume_at) = (0, Duration::ZERO);
    while open > 0 {
        let now = network.now();
        concurrency.moved(bytes_moved(network.moved()), now);
        most = most.max(concurrency.limit());
        while unsent > 0 && now >= resume_at && network.in_flight() < concurrency.limit() as usize {
            unsent -= 1;
            network.send(concurrency.sent(now));
        }
        for ended in network.step() {
            let now = network.now();
            match ended {
                Ended::Done(ticket) => {
                    open -= 1;
                    concurrency.succeeded(ticket, now);
                }
                Ended::Refused(ticket) => {
                    unsent += 1;
                    resume_at = now + Duration::from_secs(1);
                    concurrency.troubled(ticket, now);
                }
            }
        }
    }
    (total / network.now().as_secs_f64(), most)
}
