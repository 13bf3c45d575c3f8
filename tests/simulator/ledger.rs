//! What the checks remember across runs, and the checks of one shell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::failure::Failure;
use crate::journal::{HEADER_BYTES, Header, RECORD_BYTES, Record};
use crate::plan::Span;
use crate::policy::{Action, Class, Engine, Limits, Operation, Requests, classify_known};

use super::{LEAST_BYTES, S, is_on, with};

/// What happened in all runs of a seed.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The session of the journal.
    session: Option<[u8; 16]>,
    /// Chunks whose final record was written.
    recorded: BTreeSet<u64>,
    /// Chunks whose record was synced. They may never be sent again.
    pub synced: BTreeSet<u64>,
    /// Chunks whose record was written. They may be sent again only if power was lost or a sync
    /// failed.
    pub written: BTreeSet<u64>,
    pub ever_sent: BTreeSet<u64>,
    pub sends: u64,
    pub failures: u64,
    /// The sum over all runs of chunks that may have to be sent again.
    pub exposed: u64,
    pub resent: u64,
    /// How often the number of workers was reduced after trouble.
    pub falls: u64,
    pub most_workers: u32,
    /// Requests for a chunk after its first one.
    pub pieces: u64,
    /// Shells of this run. The first one transfers, the others verify.
    pub shells: u32,
    /// Whether records of chunks that are not synced count.
    pub is_trusted: bool,
    /// Whether the program may start over without being told.
    pub may_forget: bool,
}

/// The header of a journal, if these are the bytes of one.
fn header(bytes: &[u8]) -> Option<Header> {
    let bytes = bytes.get(..HEADER_BYTES)?;
    Header::decode(bytes.try_into().ok()?).ok()
}

impl Ledger {
    /// Records were written at this byte of a journal, whose content is now `journal`.
    pub fn wrote(&mut self, journal: &[u8], at: u64, len: usize) {
        let session = header(journal).unwrap().session;
        self.is_of(session);
        let first = (at as usize - HEADER_BYTES) / RECORD_BYTES;
        let bytes = &journal[at as usize..at as usize + len];
        for (number, bytes) in (first as u64..).zip(bytes.chunks_exact(RECORD_BYTES)) {
            match Record::decode(bytes.try_into().unwrap(), number, &session).unwrap() {
                Record::Done { index, .. } => {
                    self.recorded.insert(index);
                    self.written.insert(index);
                }
                // After a failed sync, such a record has no meaning.
                Record::Written { index, .. } if self.is_trusted => {
                    self.written.insert(index);
                }
                Record::Run(page_cache) => self.is_trusted = page_cache.is_some(),
                Record::Holes { first, count } => {
                    self.recorded.extend(first..first + count);
                    self.written.extend(first..first + count);
                }
                _ => {}
            }
        }
    }

    /// A file was synced.
    pub fn synced(&mut self, content: &[u8]) {
        if let Some(header) = header(content) {
            self.is_of(header.session);
            self.synced.extend(&self.recorded);
        }
    }

    /// Notices a journal that begins anew.
    fn is_of(&mut self, session: [u8; 16]) {
        if self.session != Some(session) {
            assert!(
                self.synced.is_empty() || self.may_forget,
                "a journal with synced records was discarded"
            );
            self.forget();
            self.session = Some(session);
        }
    }

    /// The user starts over, or the image is gone, so nothing that was recorded counts.
    pub fn forget(&mut self) {
        self.session = None;
        self.recorded.clear();
        self.synced.clear();
        self.written.clear();
    }

    /// Called after a loss of power or a failed sync: only synced records still count.
    pub fn lose_what_was_not_synced(&mut self) {
        self.exposed += self.written.difference(&self.synced).count() as u64;
        self.written.clone_from(&self.synced);
        self.recorded.clone_from(&self.synced);
    }

    /// A run has ended: chunks that were sent and are not recorded may be sent again.
    pub fn run_ended(&mut self) {
        let exposed = self.ever_sent.difference(&self.written).count();
        self.exposed += exposed as u64;
    }
}

/// The checks of one shell. Without a simulation it does nothing.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Whether it transfers chunks, not checks.
    transfers: bool,
    now: Duration,
    /// Attempts in flight.
    in_flight: u32,
    not_before: Duration,
    refused: bool,
    one_writer_known: bool,
    /// How often the limit fell and how many good answers arrived. `then` holds both numbers as of
    /// the time when each chunk was sent.
    falls: u64,
    goods: u64,
    then: BTreeMap<u64, (u64, u64)>,
    /// The limits of the engine before it heard of an answer.
    before: (u32, Limits),
}

impl Default for Watch {
    fn default() -> Self {
        let transfers = is_on()
            && with(|sim| {
                sim.ledger.shells += 1;
                sim.ledger.shells == 1
            });
        Self {
            transfers,
            now: Duration::ZERO,
            in_flight: 0,
            not_before: Duration::ZERO,
            refused: false,
            one_writer_known: false,
            falls: 0,
            goods: 0,
            then: BTreeMap::new(),
            before: (0, Limits::NONE),
        }
    }
}

impl Watch {
    /// The shell waits.
    pub(crate) fn waits(&self, until: Option<Duration>, now: Duration) {
        if is_on()
            && let Some(until) = until
        {
            assert!(
                until > now,
                "a wait that is over already: the shell would spin"
            );
        }
    }

    /// The shell does what the engine decided.
    pub(crate) fn starts<P>(&mut self, action: &Action<P>, engine: &Engine<P>, now: Duration) {
        if !is_on() {
            return;
        }
        with(|sim| {
            assert!(
                now >= self.not_before,
                "a request before Retry-After allows it"
            );
            assert!(!self.refused, "a request after a refusal for good");
            let Action::Send { span, .. } = *action else {
                return;
            };
            sim.world.say(|| format!("{span:?}"));
            if self.transfers {
                sim.ledger.sends(span.index);
            }
            self.then.insert(span.index, (self.falls, self.goods));
            self.in_flight += 1;
            let (in_flight, jobs) = (self.in_flight, sim.jobs);
            assert!(in_flight <= jobs, "{in_flight} in flight");
            let limit = engine.limit();
            check_limit(limit, jobs);
            assert!(
                in_flight <= limit,
                "{in_flight} in flight, and the limit is {limit}"
            );
            let is_alone = in_flight <= 1 || !self.one_writer_known;
            assert!(is_alone, "two writers again");
            sim.ledger.most_workers = sim.ledger.most_workers.max(limit);
        });
    }

    /// The engine is about to hear of an answer.
    pub(crate) fn begins<P>(&mut self, engine: &Engine<P>, now: Duration) {
        self.before = (engine.limit(), engine.limits());
        self.now = now;
    }

    /// The engine heard of an attempt.
    pub(crate) fn attempted<P>(
        &mut self,
        span: Span,
        requests: &Requests,
        failure: Option<&Failure>,
        engine: &Engine<P>,
    ) {
        if !is_on() {
            return;
        }
        self.in_flight -= 1;
        let advanced = requests.confirmed;
        with(|sim| {
            sim.world
                .say(|| format!("  -> {span:?} {requests:?} {failure:?}"));
            if self.transfers {
                sim.ledger.pieces += u64::from(advanced.saturating_sub(1));
                sim.ledger.failures += u64::from(failure.is_some());
            }
            check_limit(engine.limit(), sim.jobs);
        });
        match failure {
            Some(failure) => self.failed(span, requests, failure, engine),
            None => {
                self.goods += 1;
                if self.transfers {
                    with(|sim| sim.disk.written(span.offset..span.end()));
                }
            }
        }
    }

    fn failed<P>(
        &mut self,
        span: Span,
        requests: &Requests,
        failure: &Failure,
        engine: &Engine<P>,
    ) {
        let is_small = requests
            .failed
            .is_none_or(|size| size.body <= LEAST_BYTES && size.range <= LEAST_BYTES);
        self.heard(failure, is_small, self.now);
        let ((before, limits), after) = (self.before, engine.limit());
        let class = classify_known(Operation::Write, failure);
        if class == Class::Busy && before > 1 && after == 1 {
            self.one_writer_known = true;
        }
        if engine.ending().is_some() {
            return;
        }
        // Part of the chunk got through, which ends an outage.
        let has_advanced = requests.advanced_bytes >= LEAST_BYTES;
        // The failure of a chunk that was sent before the last reduction is no reason for another
        // one. The same holds for chunks sent before a good answer, because that may have ended an
        // outage.
        let is_new = self.then.remove(&span.index) == Some((self.falls, self.goods));
        let is_trouble = matches!(class, Class::Transient | Class::Throttle | Class::Busy);
        let is_about_size = has_advanced || engine.limits() != limits;
        self.goods += u64::from(has_advanced);
        if is_trouble && !is_about_size {
            assert!(
                after <= before,
                "{class:?} and {after} workers, not {before}"
            );
            let falls = is_new && before > 1;
            assert!(
                !falls || after < before,
                "{class:?} and still {after} workers"
            );
        }
        if after < before {
            self.falls += 1;
            with(|sim| sim.ledger.falls += 1);
        }
    }

    /// A probe was answered.
    pub(crate) fn probed(&mut self, failure: Option<&Failure>, now: Duration) {
        match failure {
            Some(failure) => self.heard(failure, true, now),
            None => self.goods += 1,
        }
    }

    /// What the checks conclude from a failure.
    fn heard(&mut self, failure: &Failure, is_small: bool, now: Duration) {
        let Failure::Refused(refusal) = failure else {
            return;
        };
        if let (429 | 503, Some(after)) = (refusal.status, refusal.retry_after) {
            self.not_before = self.not_before.max(now + after);
        }
        let is_too_new = refusal.status == 404 && now < 60 * S;
        // If the size was refused, smaller pieces are tried.
        let is_final = !is_too_new && (is_small || !failure.is_about_size());
        if classify_known(Operation::Write, failure) == Class::Permanent && is_final {
            self.refused = true;
        }
    }
}

fn check_limit(limit: u32, jobs: u32) {
    assert!((1..=jobs).contains(&limit), "{limit} workers of {jobs}");
}

impl Ledger {
    /// A chunk is sent, which no record may forbid.
    fn sends(&mut self, index: u64) {
        self.sends += 1;
        assert!(
            !self.synced.contains(&index),
            "chunk {index} is sent again though its record was synced"
        );
        assert!(
            !self.written.contains(&index),
            "chunk {index} is sent again though its record was written"
        );
        self.resent += u64::from(!self.ever_sent.insert(index));
    }
}
