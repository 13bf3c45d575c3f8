//! The cloud, the network in front of it, and virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::drive::{DriveId, STATE_KEY};
use crate::failure::{Failure, Refusal};
use crate::policy::TOKEN_KEY;
use crate::wire::{ErrorType, Properties};

pub const S: Duration = Duration::from_secs(1);

/// What may go wrong, and how often.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The number of faulty requests among a thousand.
    pub per_mille: u32,
    /// The number of single faults that are left.
    pub left: u32,
    /// Periods without any connection.
    pub outages: Vec<(Duration, Duration)>,
    /// Periods in which each request is answered with 5xx or 429.
    pub storms: Vec<(Duration, Duration)>,
    /// Periods in which somebody else claims the drive.
    pub busy: Vec<(Duration, Duration)>,
    /// Periods in which the endpoint is down.
    pub deaths: Vec<(Duration, Duration)>,
    /// The number of a request that is refused permanently, and its status.
    pub refusal: Option<(u64, u16)>,
}

/// The largest requests that the network path allows, independently of faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bears {
    /// Longer writes break the connection.
    pub write: Option<usize>,
    /// Longer reads break the connection.
    pub read: Option<usize>,
    /// Writes with a longer body are refused.
    pub refused: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum Call {
    Create(Properties),
    List,
    Info(DriveId),
    Set {
        drive: DriveId,
        keys: Properties,
    },
    Write {
        drive: DriveId,
        offset: usize,
        body: Vec<u8>,
    },
    Read {
        drive: DriveId,
        offset: usize,
        len: usize,
    },
}

#[derive(Clone, Debug)]
pub enum Reply {
    Objects(Vec<Properties>),
    Bytes(Vec<u8>),
    Done,
}

pub type Answer = Result<Reply, Failure>;

#[derive(Debug)]
pub struct Drive {
    pub id: DriveId,
    /// Its keys, except those that every drive has.
    keys: Properties,
    pub bytes: Vec<u8>,
    known_from: Duration,
    /// The numbers of the writes that are under way.
    writing: Vec<u64>,
}

impl Drive {
    /// The mark of an upload, if it has one.
    pub fn state(&self) -> Option<&str> {
        self.keys.get(STATE_KEY)
    }

    fn described(&self) -> Properties {
        let mut object = self.keys.clone();
        object.insert("drive", self.id.to_string()).unwrap();
        object.insert("size", self.bytes.len().to_string()).unwrap();
        object
    }
}

#[derive(Debug)]
enum Event {
    /// A request reaches the endpoint. Without `number` nobody receives the answer.
    Arrive { call: Call, number: Option<u64> },
    /// A write takes effect.
    Effect {
        drive: DriveId,
        offset: usize,
        body: Vec<u8>,
        write: u64,
        number: Option<u64>,
        epoch: u64,
    },
    /// The client receives the answer.
    Answer { number: u64, answer: Answer },
    /// The endpoint dies.
    Death,
}

/// See the [module](self).
pub struct World {
    pub now: Duration,
    pub rng: fastrand::Rng,
    pub faults: Faults,
    pub bears: Bears,
    pub drives: Vec<Drive>,
    /// A new drive holds garbage and not zeros.
    pub garbage: bool,
    pub one_writer: bool,
    pub drops_keys: bool,
    /// A new drive is unknown for a while after its creation.
    pub is_slow_to_know: bool,
    /// Requests that clients sent.
    pub requests: u64,
    /// Drives that were created.
    pub created: u32,
    down_until: Duration,
    epoch: u64,
    serial: u64,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    pending: std::collections::BTreeMap<u64, Event>,
    pub trace: bool,
}

fn refused(status: u16, error: Option<ErrorType>, retry_after: Option<Duration>) -> Failure {
    Failure::Refused(Refusal {
        status,
        error,
        message: String::new(),
        retry_after,
    })
}

impl World {
    pub fn new(rng: fastrand::Rng, trace: bool) -> Self {
        Self {
            now: Duration::ZERO,
            rng,
            faults: Faults::default(),
            bears: Bears::default(),
            drives: Vec::new(),
            garbage: false,
            one_writer: false,
            drops_keys: false,
            is_slow_to_know: false,
            requests: 0,
            created: 0,
            down_until: Duration::ZERO,
            epoch: 0,
            serial: 0,
            events: BinaryHeap::new(),
            pending: std::collections::BTreeMap::new(),
            trace,
        }
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.3} {}", self.now.as_secs_f64(), what());
        }
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }

    /// Adds a drive that exists before the first run.
    pub fn add_drive(&mut self, bytes: Vec<u8>) -> DriveId {
        let mut id = [0; 16];
        self.rng.fill(&mut id);
        let id = DriveId::from_bytes(id);
        self.drives.push(Drive {
            id,
            keys: Properties::new(),
            bytes,
            known_from: Duration::ZERO,
            writing: Vec::new(),
        });
        id
    }

    pub fn plan_deaths(&mut self) {
        for (at, _) in self.faults.deaths.clone() {
            self.push(at, Event::Death);
        }
    }

    /// Ends all faults, while requests that are under way continue.
    pub fn calm(&mut self) {
        self.faults = Faults::default();
        self.down_until = Duration::ZERO;
    }

    pub fn drive(&self, id: DriveId) -> Option<&Drive> {
        self.drives.iter().find(|drive| drive.id == id)
    }

    fn push(&mut self, at: Duration, event: Event) -> u64 {
        self.serial += 1;
        self.events.push(Reverse((at.max(self.now), self.serial)));
        self.pending.insert(self.serial, event);
        self.serial
    }

    fn is_in(&self, windows: &[(Duration, Duration)]) -> bool {
        windows
            .iter()
            .any(|(from, to)| (*from..*to).contains(&self.now))
    }

    /// A client sends a request. The number that is returned also comes with the answer.
    pub fn send(&mut self, call: Call) -> u64 {
        self.requests += 1;
        let number = self.requests;
        let is_write = matches!(call, Call::Write { .. });
        let there = if self.rng.u8(..40) == 0 {
            self.ms(1000, 20_000)
        } else {
            self.ms(2, 200)
        };
        let (arrive, lost) = (self.now + there, self.now + self.ms(1, 300));
        if let Some((at, status)) = self.faults.refusal
            && self.requests >= at
            && is_write
        {
            self.faults.refusal = None;
            self.answer(lost, number, Err(refused(status, None, None)));
            return number;
        }
        let (len, cut) = match &call {
            Call::Write { body, .. } => (body.len(), self.bears.write),
            Call::Read { len, .. } => (*len, self.bears.read),
            _ => (0, None),
        };
        if is_write && self.bears.refused.is_some_and(|most| len > most) {
            self.answer(lost, number, Err(refused(413, None, None)));
            return number;
        }
        if cut.is_some_and(|most| len > most) {
            let failure = Failure::Broken("cut".into());
            self.answer(lost, number, Err(failure));
            return number;
        }
        if self.is_in(&self.faults.outages) {
            match self.rng.u8(..3) {
                0 => self.answer(lost, number, Err(Failure::Connect("unreachable".into()))),
                1 => self.answer(lost, number, Err(Failure::Broken("reset".into()))),
                // It is never answered.
                _ => {}
            }
            return number;
        }
        if self.is_in(&self.faults.storms) {
            let failure = self.storm();
            self.answer(lost, number, Err(failure));
            return number;
        }
        if self.faults.left == 0 || self.rng.u32(..1000) >= self.faults.per_mille {
            self.push(
                arrive,
                Event::Arrive {
                    call,
                    number: Some(number),
                },
            );
            return number;
        }
        self.faults.left -= 1;
        // The time at which the endpoint executes the request, of which the client never learns, or
        // for which it no longer waits.
        let late = self.now + self.ms(5, 25_000);
        match self.rng.u8(..9) {
            0 => self.answer(lost, number, Err(Failure::Connect("refused".into()))),
            1 => self.answer(lost, number, Err(Failure::Broken("reset".into()))),
            2 => {
                self.push(late, Event::Arrive { call, number: None });
                self.answer(lost, number, Err(Failure::Broken("reset".into())));
            }
            3 => {
                // It is never answered.
                self.push(late, Event::Arrive { call, number: None });
            }
            4 => {
                // Delivered twice, the second time late. A network does not repeat a POST by
                // itself, but a proxy may repeat requests that are safe to repeat.
                if is_write {
                    self.push(
                        late,
                        Event::Arrive {
                            call: call.clone(),
                            number: None,
                        },
                    );
                }
                self.push(
                    arrive,
                    Event::Arrive {
                        call,
                        number: Some(number),
                    },
                );
            }
            5 => {
                // The request is executed, and then answered with an error nevertheless.
                self.push(arrive, Event::Arrive { call, number: None });
                let at = arrive + self.ms(300, 2000);
                let status = [500, 502, 504][self.rng.usize(..3)];
                self.answer(at, number, Err(refused(status, None, None)));
            }
            6 => self.answer(lost, number, Err(Failure::NotApi("a page".into()))),
            7 => {
                let failure = refused(500, Some(ErrorType::Failed), None);
                self.answer(lost, number, Err(failure));
            }
            _ => {
                let failure = self.storm();
                self.answer(lost, number, Err(failure));
            }
        }
        number
    }

    fn storm(&mut self) -> Failure {
        let asked = [
            None,
            Some(self.ms(1000, 400_000)),
            Some(self.ms(1000, 9000)),
        ][self.rng.usize(..3)];
        match self.rng.u8(..5) {
            0 => refused(500, Some(ErrorType::System), None),
            1 => refused(502, None, None),
            2 => refused(429, None, asked),
            3 => refused(503, None, asked),
            _ => refused(504, None, None),
        }
    }

    fn answer(&mut self, at: Duration, number: u64, answer: Answer) {
        self.push(at, Event::Answer { number, answer });
    }

    fn back(&mut self, number: Option<u64>, answer: Answer) {
        if let Some(number) = number {
            let at = self.now + self.ms(2, 200);
            self.answer(at, number, answer);
        }
    }

    /// When the next event happens.
    pub fn next_at(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse((at, _))| *at)
    }

    /// Executes the next event. Returns the answer if a client receives one.
    pub fn step(&mut self) -> Option<(u64, Answer)> {
        let Reverse((at, serial)) = self.events.pop()?;
        self.now = self.now.max(at);
        match self.pending.remove(&serial)? {
            Event::Answer { number, answer } => return Some((number, answer)),
            Event::Arrive { call, number } => self.arrive(call, number),
            Event::Effect {
                drive,
                offset,
                body,
                write,
                number,
                epoch,
            } => {
                let answer = match self.drives.iter_mut().find(|d| d.id == drive) {
                    Some(drive) if epoch == self.epoch => {
                        drive.writing.retain(|other| *other != write);
                        drive.bytes[offset..offset + body.len()].copy_from_slice(&body);
                        Ok(Reply::Done)
                    }
                    Some(drive) => {
                        // The endpoint died during the write, so a part of it was written.
                        let len = self.rng.usize(..=body.len());
                        drive.bytes[offset..offset + len].copy_from_slice(&body[..len]);
                        Err(Failure::Broken("reset".into()))
                    }
                    None => Err(refused(404, Some(ErrorType::Missing), None)),
                };
                self.say(|| format!("    effect at {offset} {:?}", answer.is_ok()));
                self.back(number, answer);
            }
            Event::Death => {
                let windows = self.faults.deaths.clone();
                if let Some((_, until)) = windows.iter().find(|(from, _)| *from == at) {
                    self.say(|| "    the endpoint dies".into());
                    self.down_until = *until;
                    self.epoch += 1;
                    for drive in &mut self.drives {
                        drive.writing.clear();
                    }
                }
            }
        }
        None
    }

    /// Executes all events that are still to come.
    pub fn drain(&mut self) {
        while !self.events.is_empty() {
            self.step();
        }
    }

    fn arrive(&mut self, call: Call, number: Option<u64>) {
        if self.now < self.down_until {
            return self.back(number, Err(Failure::Connect("refused".into())));
        }
        let now = self.now;
        let missing = || refused(404, Some(ErrorType::Missing), None);
        let known = |drives: &[Drive], id| {
            drives
                .iter()
                .position(|d| d.id == id && d.known_from <= now)
        };
        let answer = match call {
            Call::Create(mut keys) => {
                self.created += 1;
                let size = keys.remove("size").unwrap().parse().unwrap();
                let mut bytes = vec![0; size];
                if self.garbage {
                    bytes.fill_with(|| self.rng.u8(1..));
                }
                let id = self.add_drive(bytes);
                let delay = if self.is_slow_to_know {
                    self.ms(0, 3000)
                } else {
                    Duration::ZERO
                };
                if self.drops_keys {
                    keys.remove(TOKEN_KEY);
                }
                self.say(|| format!("    created {id}"));
                let drive = self.drives.last_mut().unwrap();
                drive.keys = keys;
                drive.known_from = now + delay;
                Ok(Reply::Objects(vec![drive.described()]))
            }
            Call::List => {
                let drives = self.drives.iter().filter(|d| d.known_from <= now);
                Ok(Reply::Objects(drives.map(Drive::described).collect()))
            }
            Call::Info(id) => known(&self.drives, id)
                .map(|at| Reply::Objects(vec![self.drives[at].described()]))
                .ok_or_else(missing),
            Call::Set { drive, keys } => match known(&self.drives, drive) {
                None => Err(missing()),
                Some(at) => {
                    for (key, value) in &keys {
                        let merged = self.drives[at].keys.insert(key, value);
                        merged.unwrap();
                    }
                    Ok(Reply::Done)
                }
            },
            Call::Read { drive, offset, len } => known(&self.drives, drive)
                .map(|at| Reply::Bytes(self.drives[at].bytes[offset..offset + len].to_vec()))
                .ok_or_else(missing),
            Call::Write {
                drive,
                offset,
                body,
            } => match known(&self.drives, drive) {
                None => Err(missing()),
                Some(at)
                    if self.is_in(&self.faults.busy)
                        || self.one_writer && !self.drives[at].writing.is_empty() =>
                {
                    Err(refused(409, Some(ErrorType::Busy), None))
                }
                Some(at) => {
                    self.serial += 1;
                    let (write, epoch) = (self.serial, self.epoch);
                    self.drives[at].writing.push(write);
                    let effect = now + self.ms(1, 400);
                    self.push(
                        effect,
                        Event::Effect {
                            drive,
                            offset,
                            body,
                            write,
                            number,
                            epoch,
                        },
                    );
                    return;
                }
            },
        };
        self.back(number, answer);
    }
}
