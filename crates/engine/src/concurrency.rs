//! Adapts the number of requests in flight: as many as make the transfer faster, and no more.
//!
//! The best number is unknown. A lossy link needs many connections, because each is slowed down by
//! its own losses (docs/dev/faults.md, 1.5). A few connections fill a clean link. Some clouds
//! accept one writer per drive (docs/dev/faults.md, 1.1), and an overloaded endpoint needs fewer
//! requests. So the controller tries numbers and measures:
//!
//! - **Up while it helps.** A transfer starts with a few requests, or with more if a round trip is
//!   long, and doubles their number as long as that clearly increases the bytes per second. Later it
//!   tries more again, at intervals that double each time it does not help.
//! - **Up when the goodput falls.** A new connection sends fast until its first losses. A few of
//!   them can fill a link for a second or two, which shows the link's capacity, and then slow down.
//!   So the controller remembers the best goodput, and sends more requests while the goodput is
//!   below it.
//! - **Down at once on errors** that overload explains, and when a drive is busy.
//! - **Down step by step where more did not help**: by a quarter at a time, as long as the goodput
//!   stays the same. Closing half of the connections at once would be a mistake: the other half
//!   would need seconds to grow before it carries as much.
//!
//! The measure is how many bytes of bodies move in each quarter of a second, over all requests. It
//! works for requests of any length, and gives a result within the first second. Two things distort
//! the measure, and such ticks do not count: the first ticks after a change, when connections open
//! and buffers fill, and ticks in which fewer requests were in flight than allowed, because then
//! something else limits the transfer (compressors, a slow disk). A pause of the link, and the
//! burst after it, are in the lowest and the highest samples, so the mean of the middle third is
//! used. Requests that begin and end together move bytes in bursts; therefore a measurement lasts
//! longer than one request where requests are short.
//!
//! The constants are a compromise between finding the best number soon and mistaking noise for an
//! effect. They were chosen on simulated links (`concurrency/link.rs`) and on emulated ones
//! (`benches/links/run`). Fewer samples, or factors closer to 1, react sooner and wander on noisy
//! links; more make short transfers end before the best number is found. After a change, run both.
//! The tests in this file fail if the number ends far from the best one.

use std::time::Duration;

/// Requests in flight at the start.
const START: u32 = 4;
/// Requests in flight at the start, for an endpoint whose round trip takes longer than [`FAR`]. A
/// new connection needs several round trips until it carries much, and a measurement takes longer
/// than that. So doubling a small number would take seconds on such a link, and a few connections
/// never fill it.
const START_FAR: u32 = 32;
/// An endpoint is far if a round trip to it takes longer than this.
const FAR: Duration = Duration::from_millis(50);
/// How long bytes are counted for one sample.
const TICK: Duration = Duration::from_millis(250);
/// Ticks that do not count after a change of the number.
const SKIPPED_TICKS: u32 = 2;
/// Minimum number of samples for a decision. In this order: while the number doubles, to see
/// whether the goodput changed; while a number is held, to see that the goodput fell, or is the
/// best so far; for a trial of more requests; for a trial of fewer.
const GROWING_SAMPLES: usize = 2;
const HOLDING_SAMPLES: usize = 6;
const BEST_SAMPLES: usize = 12;
const MORE_SAMPLES: usize = 8;
const FEWER_SAMPLES: usize = 12;
/// A trial of fewer ends early if these first samples are as low as [`FALLEN`].
const FEWER_EARLY_SAMPLES: usize = 3;
/// Maximum number of samples for a decision, even if requests take longer than these.
const SAMPLES_MAX: usize = 12;
/// The goodput of a number that is held is the mean of at most this many latest samples.
const SAMPLES_KEPT: usize = 32;
/// If the last sample exceeds the mean of those before it by this factor, the connections are still
/// growing. The decision then waits, for at most this many further samples.
const STILL_RISING: f64 = 1.1;
const RISING_SAMPLES: usize = 8;
/// A larger number is worth having if the goodput grows by the first factor, and an even larger one
/// is tried at once if it grows by the second. Twice the requests give a factor of 2 at best;
/// anything below the first factor is noise on many links.
const HELPS: f64 = 1.1;
const GROWS: f64 = 1.2;
/// As [`HELPS`], for a trial, which measures for longer and so can detect a smaller difference.
const MORE_HELPS: f64 = 1.05;
/// A trial of fewer requests is successful if they reach at least this part of the best goodput.
const FEWER_KEEPS: f64 = 0.97;
/// Below this number, fewer requests are tried only if fewer did better before: a connection idles
/// for a round trip after each request, and the others have to fill the link in that time.
const FEWER_MIN: u32 = 8;
/// If the goodput is less than this part of the best, more requests are sent.
const FALLEN: f64 = 0.85;
/// After the goodput fell, this many consecutive doublings that do not help mean that the link
/// itself has become slower.
const VAIN_MAX: u32 = 2;
/// If the goodput rises by this factor without a change of the number, the link has changed, and
/// the controller tries larger numbers again.
const RISEN: f64 = 1.5;
/// A tick counts only if the average number in flight differed from the limit by at most this part
/// of the limit.
const DIFFERENCE_MAX: f64 = 0.1;
/// How long a number is held before a larger one is tried again: the first time, and at most.
const HOLD_MIN: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(16 * 60);
/// How long fewer requests are held before even fewer are tried.
const FEWER_HOLD: Duration = Duration::from_secs(3);
/// How long a number that led to errors is not tried again: the first time, at most, and as a
/// minimum multiple of the duration of a request.
const BARRED_MIN: Duration = Duration::from_secs(60);
const BARRED_MAX: Duration = Duration::from_secs(16 * 60);
const BARRED_REQUESTS: u32 = 8;
/// Errors this soon after the number grew, or within this many durations of a request, are
/// attributed to the larger number. Later errors count as an accident: they halve the number, but
/// it may grow back at once.
const TROUBLE_SOON: Duration = Duration::from_secs(10);
const TROUBLE_SOON_REQUESTS: u32 = 3;

/// Identifies a request to the controller: issued when the request is sent, returned when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    sent_at: Duration,
    /// The era ([`Concurrency::era`]) in which the request was sent.
    era: u64,
}

/// What all requests have moved since the start of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of bodies.
    pub bytes: u64,
    /// How long spare requests have been in flight, as the sum over all of them. These are the
    /// requests for further pieces of a chunk for which one is in flight already.
    /// [`Concurrency::sent`] counts only that one.
    pub spare: Duration,
}

impl Moved {
    /// What has moved since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            spare: self.spare.saturating_sub(earlier.spare),
        }
    }
}

/// A number of requests in flight, and the goodput that it had, in bytes per second.
#[derive(Clone, Copy, Debug)]
struct Known {
    level: u32,
    rate: f64,
}

/// The purpose of the current measurement.
#[derive(Clone, Copy, Debug)]
enum Search {
    /// Is this number better than the smaller one before it? `None` at the start, when there is
    /// none.
    Growing(Option<Known>),
    /// Does this number restore the goodput, which fell to the given value? With the number of
    /// steps that did not help.
    Recovering(Known, u32),
    /// Does the goodput stay the same? Another number is tried at this time.
    Holding(Duration),
    /// Is a larger number better than this one?
    More(Known),
    /// Are fewer requests as good as this number?
    Fewer(Known),
}

/// Numbers of requests that must not be tried before a time, because they led to errors.
#[derive(Clone, Copy, Debug)]
struct Barred {
    /// This number and all larger ones.
    from: u32,
    until: Duration,
    hold: Duration,
}

/// Decides how many requests may be in flight. The head of this file describes how.
#[derive(Clone, Debug)]
pub struct Concurrency {
    limit: u32,
    floor: u32,
    ceiling: u32,
    in_flight: u32,
    search: Search,
    /// When the limit last grew.
    grew: Option<Duration>,
    /// Number of changes of the limit so far.
    era: u64,
    /// The first era after the limit last fell. An error of a request from an earlier era was
    /// caused by the old limit, to which the fall was already the reaction.
    fell: u64,
    /// Duration of the last successful request.
    took: Duration,
    /// When `in_flight` or `limit` last changed.
    at: Duration,
    /// Integral over this tick: requests in flight, times seconds.
    in_flight_s: f64,
    /// What had moved when this tick began, and when that was.
    tick: Option<(Duration, Moved)>,
    skipped: u32,
    /// Goodput in each tick at this limit, in bytes per second.
    samples: Vec<f64>,
    /// The goodput to expect at this limit.
    expected: Option<f64>,
    hold: Duration,
    /// This number and larger ones did not help in the last trial.
    useless: Option<u32>,
    /// Fewer than this number were worse in the last trial.
    needed: Option<u32>,
    /// Fewer than this number are not tried.
    fewer_min: u32,
    /// The best recent goodput that lasted for some samples.
    best_rate: f64,
    /// Numbers that led to errors.
    barred: Option<Barred>,
    /// The limit before the first failure since the last success. After an outage, the transfer
    /// continues with half of it.
    before: Option<u32>,
}

impl Concurrency {
    /// A controller that allows between `floor` and `ceiling` requests, and starts with few. If
    /// both are equal, the number is fixed, unless errors of the endpoint lower it. `round_trip` is
    /// about how long a small answer takes that needs no work.
    pub fn new(floor: u32, ceiling: u32, round_trip: Duration) -> Self {
        let ceiling = ceiling.max(1);
        let floor = floor.clamp(1, ceiling);
        Self {
            limit: Self::first(floor, ceiling, round_trip),
            floor,
            ceiling,
            in_flight: 0,
            search: Search::Growing(None),
            grew: None,
            era: 0,
            fell: 0,
            took: Duration::ZERO,
            at: Duration::ZERO,
            in_flight_s: 0.0,
            tick: None,
            skipped: 0,
            samples: Vec::new(),
            expected: None,
            hold: HOLD_MIN,
            useless: None,
            needed: None,
            fewer_min: FEWER_MIN,
            best_rate: 0.0,
            barred: None,
            before: None,
        }
    }

    /// How many requests may be in flight at the start.
    pub fn first(floor: u32, ceiling: u32, round_trip: Duration) -> u32 {
        let start = if is_far(round_trip) { START_FAR } else { START };
        start.max(floor).min(ceiling.max(1))
    }

    /// How many requests may be in flight now; never more than the ceiling.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// A request is sent. Pass the ticket back when it has ended.
    pub fn sent(&mut self, now: Duration) -> Ticket {
        self.advance(now);
        self.in_flight += 1;
        Ticket {
            sent_at: now,
            era: self.era,
        }
    }

    /// A request succeeded.
    pub fn succeeded(&mut self, ticket: Ticket, now: Duration) {
        self.before = None;
        self.took = now.saturating_sub(ticket.sent_at);
        self.left(now);
    }

    /// A request failed for a reason that has nothing to do with the number of requests.
    pub fn failed(&mut self, now: Duration) {
        self.left(now);
    }

    /// A request failed in a way that overload or a bad link explains.
    pub fn troubled(&mut self, ticket: Ticket, now: Duration) {
        self.left(now);
        self.before.get_or_insert(self.limit);
        if ticket.era < self.fell {
            return;
        }
        let soon = TROUBLE_SOON.max(self.took * TROUBLE_SOON_REQUESTS);
        if self.grew.is_some_and(|grew| now < grew + soon) {
            self.bar(now);
        }
        self.fall(now);
    }

    /// The drive was busy. Returns true if our own other requests may be the cause, in which case
    /// the limit is now lower, and false if this was the only request.
    pub fn busy(&mut self, ticket: Ticket, now: Duration) -> bool {
        self.left(now);
        if ticket.era < self.fell {
            return true;
        }
        if self.limit == 1 {
            return false;
        }
        self.fall(now);
        // Never try this number again: each trial costs a chunk sent in vain.
        self.ceiling = self.limit;
        true
    }

    /// An outage ended: continue with half of the number before it, to be careful. Not with one: an
    /// interrupted link says nothing about how many requests it carries.
    pub fn outage_ended(&mut self, now: Duration) {
        let before = self.before.take().unwrap_or(self.limit);
        self.barred = None;
        self.restart((before / 2).max(1), now);
    }

    /// Reports what has moved since the start, over all requests. Call it at least when
    /// [`tick_at`](Self::tick_at) is reached.
    pub fn moved(&mut self, moved: Moved, now: Duration) {
        self.advance(now);
        if let Some((began, before)) = self.tick {
            let tick = now.saturating_sub(began);
            if tick < TICK {
                return;
            }
            self.ticked(moved.since(before), tick.as_secs_f64(), now);
        }
        self.tick = Some((now, moved));
        self.in_flight_s = 0.0;
    }

    /// A tick ended, in which this moved.
    fn ticked(&mut self, moved: Moved, tick_s: f64, now: Duration) {
        let in_flight_s = self.in_flight_s + moved.spare.as_secs_f64();
        let allowed_s = f64::from(self.limit) * tick_s;
        // After the limit fell, more requests than allowed are in flight for a while.
        if (in_flight_s - allowed_s).abs() > DIFFERENCE_MAX * allowed_s {
            return;
        }
        if self.skipped < SKIPPED_TICKS {
            self.skipped += 1;
            return;
        }
        if self.samples.len() == SAMPLES_KEPT {
            self.samples.remove(0);
        }
        self.samples.push(moved.bytes as f64 / tick_s);
        self.judge(now);
    }

    /// When to call [`moved`](Self::moved) at the latest; `None` while no decision depends on it.
    pub fn tick_at(&self) -> Option<Duration> {
        let (began, _) = self.tick?;
        (self.in_flight > 0 && self.floor < self.ceiling).then(|| began + TICK)
    }

    /// A tick counted. Decides what to do if there are enough samples.
    fn judge(&mut self, now: Duration) {
        match self.search {
            Search::Growing(None) => {
                if let Some(here) = self.grown() {
                    self.best_rate = here.rate;
                    // Many at the start are enough for now: while their connections grow,
                    // more would seem to help.
                    if self.era == 0 && self.limit >= START_FAR {
                        self.keep(here.rate, now);
                    } else {
                        self.go_on(here, now);
                    }
                }
            }
            Search::Growing(Some(before)) => self.growing(before, now),
            Search::Recovering(fallen, vain) => {
                if let Some(here) = self.grown() {
                    self.recovering(here, fallen, vain, now);
                }
            }
            Search::Holding(until) => self.holding(until, now),
            Search::More(before) => {
                if let Some(here) = self.measured(MORE_SAMPLES) {
                    if here.rate >= before.rate * MORE_HELPS {
                        self.hold = HOLD_MIN;
                        self.useless = None;
                        self.keep(here.rate, now);
                    } else {
                        self.useless = Some(here.level);
                        self.go_back(before, now);
                    }
                }
            }
            Search::Fewer(before) => self.with_fewer(before, now),
        }
    }

    /// The number was doubled. An improvement can be detected early; that there is none is certain
    /// only when the new connections have grown. Even then the number is held for now: connections
    /// that exist do no harm for a while, and a lossy link will need them.
    fn growing(&mut self, before: Known, now: Duration) {
        let early = self.measured(GROWING_SAMPLES);
        if let Some(here) = early.filter(|here| here.rate >= before.rate * GROWS) {
            self.go_on(here, now);
        } else if let Some(here) = self.grown() {
            let is_useless = here.rate < before.rate * HELPS;
            self.useless = is_useless.then_some(here.level);
            self.keep(here.rate.max(before.rate), now);
        }
    }

    /// The number was doubled because the goodput had fallen.
    fn recovering(&mut self, here: Known, fallen: Known, vain: u32, now: Duration) {
        let helps = here.rate >= fallen.rate * HELPS;
        let (reached, vain) = if helps { (here, 0) } else { (fallen, vain + 1) };
        if here.rate >= self.best_rate * FALLEN {
            self.keep(here.rate, now);
        } else if vain < VAIN_MAX
            && let Some(twice) = self.twice(now)
        {
            self.set(twice, now);
            self.search = Search::Recovering(reached, vain);
        } else {
            if !helps {
                self.useless = Some(here.level);
            }
            self.best_rate = reached.rate;
            self.go_back(reached, now);
        }
    }

    /// The number is held: checks whether the link has changed, or whether it is time to try
    /// another number.
    fn holding(&mut self, until: Duration, now: Duration) {
        let Some(here) = self.measured(HOLDING_SAMPLES) else {
            return;
        };
        if let Some(long) = self.measured(BEST_SAMPLES) {
            self.best_rate = self.best_rate.max(long.rate);
        }
        let expected = *self.expected.get_or_insert(here.rate);
        if here.rate < self.best_rate * FALLEN {
            self.hold = HOLD_MIN;
            self.useless = None;
            match self.twice(now) {
                Some(twice) => {
                    self.set(twice, now);
                    self.search = Search::Recovering(here, 0);
                }
                // The lower goodput is what the link gives now. Perhaps fewer requests are as good.
                None => {
                    self.best_rate = here.rate;
                    self.useless = Some(here.level);
                    self.hold(now);
                }
            }
        } else if here.rate > expected * RISEN {
            self.hold = HOLD_MIN;
            self.useless = None;
            self.expected = Some(here.rate);
            self.go_on(here, now);
        } else if now >= until {
            let rate = middle_mean(&self.samples);
            self.try_another(Known { rate, ..here }, now);
        }
    }

    /// Tries fewer requests if this many did not help, and more otherwise.
    fn try_another(&mut self, here: Known, now: Duration) {
        self.hold = (self.hold * 2).min(HOLD_MAX);
        let is_useless = self.useless.is_some_and(|useless| here.level >= useless);
        let is_needed = self.needed.is_some_and(|needed| here.level <= needed);
        let least = self.floor.max(self.fewer_min);
        let fewer = (here.level - (here.level / 4).max(1)).max(least);
        if is_useless && !is_needed && fewer < here.level {
            self.set(fewer, now);
            self.search = Search::Fewer(here);
        } else if let Some(more) = self.more(now) {
            self.best_rate = here.rate;
            self.set(more, now);
            self.search = Search::More(here);
        } else {
            self.useless = None;
            self.needed = None;
            self.hold(now);
        }
    }

    /// A trial of fewer requests than before is running.
    fn with_fewer(&mut self, before: Known, now: Duration) {
        let early = self.measured(FEWER_EARLY_SAMPLES);
        let is_worse = early.is_some_and(|here| here.rate < before.rate * FALLEN);
        let here = self.measured(FEWER_SAMPLES);
        if let Some(here) = here.filter(|here| here.rate >= self.best_rate * FEWER_KEEPS) {
            if here.rate >= before.rate * MORE_HELPS {
                self.fewer_min = 1;
            }
            self.hold = HOLD_MIN;
            self.useless = Some(here.level);
            self.keep(here.rate, now);
            self.search = Search::Holding(now + FEWER_HOLD);
        } else if is_worse || here.is_some() {
            self.fewer_min = FEWER_MIN;
            self.needed = Some(before.level);
            self.go_back(before, now);
        }
    }

    /// Holds the current number, whose goodput is `rate`.
    fn keep(&mut self, rate: f64, now: Duration) {
        self.expected = Some(rate);
        self.best_rate = self.best_rate.max(rate);
        self.samples.clear();
        self.hold(now);
    }

    /// Returns to an earlier number and its goodput.
    fn go_back(&mut self, to: Known, now: Duration) {
        if to.level != self.limit {
            self.set(to.level, now);
        }
        self.expected = Some(to.rate);
        self.hold(now);
    }

    /// Doubles the number, if that is allowed.
    fn go_on(&mut self, here: Known, now: Duration) {
        match self.more(now) {
            Some(more) => {
                self.set(more, now);
                self.search = Search::Growing(Some(here));
            }
            None => self.hold(now),
        }
    }

    fn hold(&mut self, now: Duration) {
        self.search = Search::Holding(now + self.hold);
    }

    /// The number and goodput at this limit, if there are at least `least` samples.
    fn measured(&self, least: usize) -> Option<Known> {
        Some(Known {
            level: self.limit,
            rate: middle_mean(self.latest(least)?),
        })
    }

    /// The latest samples at this limit, as many as a decision needs, which is at least `least`.
    fn latest(&self, least: usize) -> Option<&[f64]> {
        let from = self.samples.len().checked_sub(self.needed(least))?;
        self.samples.get(from..)
    }

    /// As [`measured`](Self::measured), but only once the connections have stopped growing.
    fn grown(&self) -> Option<Known> {
        let here = self.measured(GROWING_SAMPLES)?;
        let (last, earlier) = self.samples.split_last()?;
        let is_rising = *last > mean(earlier) * STILL_RISING;
        (!is_rising || self.samples.len() >= RISING_SAMPLES).then_some(here)
    }

    /// How many samples a decision needs: if requests are short, more than one request takes.
    fn needed(&self, least: usize) -> usize {
        let ticks = self.took.as_secs_f64() * 1.5 / TICK.as_secs_f64();
        (ticks.ceil() as usize).clamp(least, SAMPLES_MAX)
    }

    /// The larger number to try next: twice as many, or half as many more. Many connections more at
    /// once would overflow the queue of the link for a while.
    fn more(&self, now: Duration) -> Option<u32> {
        let useless = self.useless.map_or(u32::MAX, |from| from - 1);
        let most = self.most(now).min(useless);
        let level = self.limit;
        let twice = (level < START_FAR).then_some(level.saturating_mul(2).min(self.ceiling));
        let half_more = (level + level / 2).min(self.ceiling);
        twice
            .into_iter()
            .chain([half_more])
            .find(|more| (level + 1..=most).contains(more))
    }

    /// Twice the number, or the largest that is allowed now; `None` if that is not larger.
    fn twice(&self, now: Duration) -> Option<u32> {
        let twice = self.limit.saturating_mul(2).min(self.most(now));
        (twice > self.limit).then_some(twice)
    }

    /// The largest number that may be tried now.
    fn most(&self, now: Duration) -> u32 {
        let barred = self.barred.filter(|barred| now < barred.until);
        barred.map_or(self.ceiling, |barred| self.ceiling.min(barred.from - 1))
    }

    /// The current number led to errors: neither it nor a larger one is tried for a while, which
    /// gets longer each time.
    fn bar(&mut self, now: Duration) {
        let hold = match self.barred {
            Some(barred) if now < barred.until => barred.hold,
            Some(barred) => (barred.hold * 2).min(BARRED_MAX),
            None => BARRED_MIN,
        };
        self.barred = Some(Barred {
            from: self.limit.max(2),
            until: now + hold.max(self.took * BARRED_REQUESTS),
            hold,
        });
    }

    /// Halves the number, or returns to half of the number before the trial.
    fn fall(&mut self, now: Duration) {
        let half = (self.limit / 2).max(1);
        let level = match self.search {
            Search::Growing(Some(fewer)) | Search::Recovering(fewer, _) | Search::More(fewer) => {
                fewer.level.max(half)
            }
            _ => half,
        };
        self.restart(level, now);
    }

    /// Continues with another number. The measured goodputs no longer apply, so more requests are
    /// tried as soon as there is a measurement.
    fn restart(&mut self, level: u32, now: Duration) {
        self.fell = self.era + 1;
        self.set(level, now);
        self.search = Search::Growing(None);
        self.best_rate = 0.0;
        self.needed = None;
        self.useless = None;
    }

    fn set(&mut self, limit: u32, now: Duration) {
        self.advance(now);
        let limit = limit.min(self.ceiling);
        if limit > self.limit {
            self.grew = Some(now);
        }
        self.limit = limit;
        self.era += 1;
        self.samples.clear();
        self.skipped = 0;
        self.expected = None;
        self.tick = None;
    }

    fn advance(&mut self, now: Duration) {
        let time = now.saturating_sub(self.at);
        self.in_flight_s += f64::from(self.in_flight) * time.as_secs_f64();
        self.at = self.at.max(now);
    }

    /// A request has ended.
    fn left(&mut self, now: Duration) {
        self.advance(now);
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

/// Whether a round trip takes more than [`FAR`]: the search for the number of requests, and the
/// division of chunks, cannot wait for a measurement then.
pub(super) fn is_far(round_trip: Duration) -> bool {
    round_trip > FAR
}

/// The mean of the middle third of the samples. A pause of the link, and the burst after it, change
/// the other two thirds only.
fn middle_mean(samples: &[f64]) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    let third = samples.len() / 3;
    let middle = third..samples.len() - third;
    mean(samples.get(middle).unwrap_or_default())
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len().max(1) as f64
}

#[cfg(test)]
pub(super) mod link;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::link::{Link as Wire, bytes_moved, transfer};
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MIB: f64 = 1_048_576.0;

    /// Goodput of all requests together, in bytes per second, by their number.
    type Carries = fn(f64) -> f64;

    /// A model of a link whose behaviour depends on the number of requests in flight.
    struct Link {
        carries: Carries,
        /// How many of a thousand requests break, by the number in flight.
        breaks_per_mille: fn(u32) -> u32,
        /// With more concurrent writes than this, the drive is busy.
        writers: u32,
        /// Bytes of a chunk.
        chunk: f64,
        /// Each request is faster or slower than the mean by up to this part, at random.
        noise: f64,
        /// How many requests there are chunks for: more would wait for the compressors.
        supply: u32,
    }

    impl Default for Link {
        fn default() -> Self {
            Self {
                carries: |n| n * MIB,
                breaks_per_mille: |_| 0,
                writers: u32::MAX,
                chunk: 4.0 * MIB,
                noise: 0.2,
                supply: u32::MAX,
            }
        }
    }

    /// What happened during a run over a link.
    #[derive(Debug, Default)]
    struct Seen {
        bytes: f64,
        changes: u32,
        busy: u32,
        broken: u32,
        most: u32,
    }

    struct Request {
        ticket: Ticket,
        left: f64,
        speed: f64,
        /// Requests break when this many bytes are left.
        breaks_at: f64,
    }

    /// Requests over a link in virtual time, as many as the controller allows.
    struct Run {
        concurrency: Concurrency,
        rng: fastrand::Rng,
        now: f64,
        moved: f64,
        requests: Vec<Request>,
    }

    impl Run {
        fn new(ceiling: u32, seed: u64) -> Self {
            Self {
                concurrency: Concurrency::new(1, ceiling, Duration::ZERO),
                rng: fastrand::Rng::with_seed(seed),
                now: 0.0,
                moved: 0.0,
                requests: Vec::new(),
            }
        }

        fn time(&self) -> Duration {
            Duration::from_secs_f64(self.now)
        }

        fn go(&mut self, link: &Link, seconds: f64) -> Seen {
            let mut seen = Seen::default();
            let until = self.now + seconds;
            while self.now < until {
                let limit = self.concurrency.limit();
                self.begin(link, &mut seen);
                self.concurrency
                    .moved(bytes_moved(self.moved as u64), self.time());
                self.begin(link, &mut seen);
                self.step(link, &mut seen);
                seen.changes += u32::from(limit != self.concurrency.limit());
                seen.most = seen.most.max(self.concurrency.limit());
            }
            seen
        }

        fn begin(&mut self, link: &Link, seen: &mut Seen) {
            let may = |run: &Self| run.concurrency.limit().min(link.supply) as usize;
            while self.requests.len() < may(self) {
                let ticket = self.concurrency.sent(self.time());
                let breaks = (link.breaks_per_mille)(self.concurrency.limit());
                if self.requests.len() as u32 >= link.writers {
                    seen.busy += 1;
                    self.now += 0.1;
                    let _ = self.concurrency.busy(ticket, self.time());
                    continue;
                }
                let is_broken = self.rng.u32(..1000) < breaks;
                let breaks_at = if is_broken {
                    self.rng.f64() * link.chunk
                } else {
                    -1.0
                };
                self.requests.push(Request {
                    ticket,
                    left: link.chunk,
                    speed: 1.0 + link.noise * (2.0 * self.rng.f64() - 1.0),
                    breaks_at,
                });
            }
        }

        /// Advances to the next end of a request or a tick.
        fn step(&mut self, link: &Link, seen: &mut Seen) {
            let all: f64 = self.requests.iter().map(|r| r.speed).sum();
            let carries = (link.carries)(self.requests.len() as f64);
            let left = |r: &Request| (r.left - r.breaks_at.max(0.0)) / (carries * r.speed / all);
            let (at, wait) = self
                .requests
                .iter()
                .map(left)
                .enumerate()
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap();
            let tick = self.concurrency.tick_at();
            let tick = tick.map_or(f64::MAX, |at| at.as_secs_f64() - self.now);
            let is_tick = tick < wait;
            let wait = if is_tick { tick.max(0.0) + 1e-6 } else { wait };
            self.now += wait;
            self.moved += wait * carries;
            for request in &mut self.requests {
                request.left -= wait * carries * request.speed / all;
            }
            if is_tick {
                return;
            }
            let done = self.requests.swap_remove(at);
            if done.breaks_at > 0.0 {
                seen.broken += 1;
                self.concurrency.troubled(done.ticket, self.time());
            } else {
                seen.bytes += link.chunk;
                self.concurrency.succeeded(done.ticket, self.time());
            }
        }
    }

    /// Runs until the controller should have settled, and then for half an hour.
    fn settled(link: &Link, ceiling: u32, seed: u64) -> (Run, Seen, f64) {
        let mut run = Run::new(ceiling, seed);
        run.go(link, 300.0);
        let from = run.now;
        let seen = run.go(link, 1800.0);
        let rate = seen.bytes / (run.now - from);
        (run, seen, rate)
    }

    #[test]
    fn concurrency_finds_the_best_number_and_keeps_it() {
        // Each link with the part of the best goodput that the controller has to reach. Below a
        // knee it comes close. On a slope it stops where doubling the number brings less than a
        // fifth, and it does not look for a better number between two that it tried.
        let links: [(&str, f64, Carries); 10] = [
            ("one is enough", 0.9, |n| n.min(1.0) * MIB),
            ("three", 0.9, |n| n.min(3.0) * MIB),
            ("five", 0.9, |n| n.min(5.0) * MIB),
            ("six", 0.9, |n| n.min(6.0) * MIB),
            ("eight", 0.9, |n| n.min(8.0) * MIB),
            ("twelve", 0.9, |n| n.min(12.0) * MIB),
            ("all help", 0.9, |n| n * MIB),
            ("fast", 0.9, |n| n.min(10.0) * 100.0 * MIB),
            ("cubic, docs/dev/faults.md, 1.5", 0.85, |n| {
                1.25 * MIB * n / (n + 3.0)
            }),
            ("more than six do harm", 0.7, |n| {
                n.min(6.0) * MIB / (1.0 + 0.15 * (n - 6.0).max(0.0))
            }),
        ];
        for (name, part, carries) in links {
            for seed in 0..20 {
                let link = Link {
                    carries,
                    ..Link::default()
                };
                let best = (1..=16).map(|n| carries(f64::from(n))).fold(0.0, f64::max);
                let (run, seen, rate) = settled(&link, 16, seed);
                let limit = run.concurrency.limit();
                assert!(rate > part * best, "{name}, seed {seed}: {limit}, {seen:?}");
                // Two changes for each trial of a number that does not help.
                assert!(seen.changes <= 16, "{name}, seed {seed}: {limit}, {seen:?}");
            }
        }
    }

    #[test]
    fn concurrency_reaches_the_best_number_after_a_few_chunks() {
        // Each request takes 32 s whatever the others do, so more requests always help.
        let link = Link {
            carries: |n| n * MIB / 8.0,
            ..Link::default()
        };
        let mut run = Run::new(16, 1);
        // A decision is made before any of these requests has ended.
        run.go(&link, 18.0);
        assert_eq!(run.concurrency.limit(), 16);
        // Each takes 4 s, which is too short for that.
        let link = Link {
            carries: |n| n * MIB,
            ..Link::default()
        };
        let mut run = Run::new(16, 1);
        run.go(&link, 30.0);
        assert_eq!(run.concurrency.limit(), 16);
    }

    #[test]
    fn concurrency_adapts_again_after_the_link_changed() {
        for seed in 0..20 {
            let small = Link {
                carries: |n| n.min(4.0) * MIB / 4.0,
                ..Link::default()
            };
            let large = Link {
                carries: |n| n.min(12.0) * MIB,
                ..Link::default()
            };
            let mut run = Run::new(16, seed);
            run.go(&small, 1800.0);
            assert!(run.concurrency.limit() <= 8, "seed {seed}");
            run.go(&large, 120.0);
            assert!(run.concurrency.limit() >= 12, "seed {seed}");
        }
    }

    #[test]
    fn concurrency_falls_when_more_requests_do_harm_over_time() {
        for seed in 0..20 {
            let good = Link {
                carries: |n| n * MIB,
                ..Link::default()
            };
            let bad = Link {
                carries: |n| n.min(4.0) * MIB / (1.0 + 0.2 * (n - 4.0).max(0.0)),
                ..Link::default()
            };
            let mut run = Run::new(16, seed);
            run.go(&good, 300.0);
            assert_eq!(run.concurrency.limit(), 16, "seed {seed}");
            run.go(&bad, 300.0);
            let from = run.now;
            let rate = run.go(&bad, 1800.0).bytes / (run.now - from);
            assert!(rate > 0.85 * 4.0 * MIB, "seed {seed}: {rate}");
        }
    }

    #[test]
    fn waiting_for_compressors_does_not_change_concurrency() {
        for (supply, most) in [(1, 4), (3, 4), (5, 8), (7, 8)] {
            let link = Link {
                supply,
                ..Link::default()
            };
            let mut run = Run::new(16, 1);
            let seen = run.go(&link, 1800.0);
            assert_eq!(seen.most, most, "supply {supply}");
        }
    }

    #[test]
    fn a_level_that_caused_failures_is_tried_less_and_less_often() {
        for seed in 0..20 {
            let link = Link {
                breaks_per_mille: |n| if n > 4 { 300 } else { 0 },
                ..Link::default()
            };
            let (run, seen, rate) = settled(&link, 16, seed);
            let limit = run.concurrency.limit();
            assert!(rate > 0.9 * 4.0 * MIB, "seed {seed}: {limit}, {seen:?}");
            assert!(seen.broken < 40, "seed {seed}: {limit}, {seen:?}");
        }
    }

    #[test]
    fn occasional_broken_requests_do_not_keep_concurrency_low() {
        for seed in 0..20 {
            let link = Link {
                breaks_per_mille: |_| 3,
                ..Link::default()
            };
            let (run, seen, rate) = settled(&link, 8, seed);
            let limit = run.concurrency.limit();
            assert!(rate > 0.75 * 8.0 * MIB, "seed {seed}: {limit}, {seen:?}");
        }
    }

    #[test]
    fn occasional_loss_of_all_connections_does_not_keep_concurrency_low() {
        for seed in 0..20 {
            let link = Link::default();
            let mut run = Run::new(16, seed);
            let (from, mut bytes) = (run.now, 0.0);
            for _ in 0..60 {
                bytes += run.go(&link, 120.0).bytes;
                for request in run.requests.drain(..) {
                    run.concurrency
                        .troubled(request.ticket, Duration::from_secs_f64(run.now));
                }
            }
            let rate = bytes / (run.now - from);
            assert!(rate > 0.7 * 16.0 * MIB, "seed {seed}: {rate}");
        }
    }

    #[test]
    fn concurrency_stays_low_on_a_cloud_that_allows_few_writers() {
        for (writers, limit) in [(1, 1), (2, 2), (3, 2), (5, 4), (9, 8)] {
            let link = Link {
                writers,
                ..Link::default()
            };
            let mut run = Run::new(16, 1);
            let first = run.go(&link, 600.0);
            assert!(first.busy <= 8, "{writers}: {first:?}");
            assert_eq!(run.concurrency.limit(), limit);
            assert_eq!(run.go(&link, 7200.0).busy, 0, "{writers}");
        }
    }

    #[test]
    fn busy_lowers_concurrency_to_one_permanently() {
        let mut concurrency = Concurrency::new(1, 8, Duration::ZERO);
        for now in [1, 2] {
            let ticket = concurrency.sent(S * now);
            assert!(concurrency.busy(ticket, S * now));
        }
        assert_eq!(concurrency.limit(), 1);
        let mut now = 3 * S;
        let ticket = concurrency.sent(now);
        assert!(!concurrency.busy(ticket, now));
        for _ in 0..1000 {
            let ticket = concurrency.sent(now);
            now += S;
            concurrency.succeeded(ticket, now);
        }
        assert_eq!(concurrency.limit(), 1);
    }

    #[test]
    fn several_failures_at_once_lower_concurrency_only_once() {
        let mut concurrency = Concurrency::new(1, 4, Duration::ZERO);
        let tickets: Vec<_> = (0..4).map(|_| concurrency.sent(S)).collect();
        for ticket in &tickets[..3] {
            concurrency.troubled(*ticket, 2 * S);
        }
        assert_eq!(concurrency.limit(), 2);
        let later = concurrency.sent(3 * S);
        assert!(concurrency.busy(tickets[3], 4 * S));
        assert_eq!(concurrency.limit(), 2);
        concurrency.troubled(later, 5 * S);
        assert_eq!(concurrency.limit(), 1);
    }

    #[test]
    fn concurrency_survives_an_outage() {
        let mut concurrency = Concurrency::new(1, 4, Duration::ZERO);
        for now in 1..6 {
            let ticket = concurrency.sent(S * now);
            concurrency.troubled(ticket, S * now);
        }
        assert_eq!(concurrency.limit(), 1);
        concurrency.outage_ended(S * 60);
        assert_eq!(concurrency.limit(), 2);
        // Unless one follows another.
        for now in 61..66 {
            let ticket = concurrency.sent(S * now);
            concurrency.troubled(ticket, S * now);
        }
        concurrency.outage_ended(S * 120);
        assert_eq!(concurrency.limit(), 1);
    }

    /// The controller's goodput as a part of what the best fixed number reaches: the mean and the
    /// worst over some seeds.
    fn of_the_best(link: Wire, seconds: f64, seeds: u64) -> (f64, f64) {
        let bytes = link.rate * seconds * 0.8;
        let round_trip = Duration::from_secs_f64(link.rtt);
        let fixed = |jobs| transfer(link, Concurrency::new(jobs, jobs, Duration::ZERO), bytes, 1).0;
        let best = [4, 8, 16, 32, 64]
            .map(fixed)
            .into_iter()
            .fold(0.0, f64::max);
        let parts: Vec<f64> = (0..seeds)
            .map(|seed| transfer(link, Concurrency::new(1, 64, round_trip), bytes, seed).0 / best)
            .collect();
        let worst = parts.iter().copied().fold(f64::MAX, f64::min);
        (mean(&parts), worst)
    }

    #[test]
    fn concurrency_is_close_to_the_best_fixed_number_on_links_with_latency() {
        is_close_to_the_best(2);
    }

    #[test]
    #[ignore = "takes minutes: as the test before, with more seeds"]
    fn concurrency_is_close_to_the_best_fixed_number_with_many_seeds() {
        is_close_to_the_best(40);
    }

    fn is_close_to_the_best(seeds: u64) {
        let slow_server = Wire {
            server: 0.3,
            ..Wire::new(200.0, 20.0, 0.0)
        };
        let large_queue = Wire {
            queue: 12.5e6,
            ..Wire::new(50.0, 20.0, 0.0)
        };
        let few_requests = Wire {
            most: 4,
            ..Wire::new(200.0, 100.0, 0.0)
        };
        let change = |times| Wire {
            change: Some((30.0, times)),
            ..Wire::new(100.0, 100.0, 0.0)
        };
        // The part of the best goodput that has to be reached in 20 seconds, and in two minutes.
        let links = [
            ("20 Mbit/s, 30 ms", Wire::new(20.0, 30.0, 0.0), 0.95, 0.95),
            ("50 Mbit/s, 20 ms", Wire::new(50.0, 20.0, 0.0), 0.95, 0.95),
            ("a large queue", large_queue, 0.86, 0.93),
            (
                "100, 80 ms, 0.1 %",
                Wire::new(100.0, 80.0, 0.001),
                0.87,
                0.95,
            ),
            ("200, 100 ms", Wire::new(200.0, 100.0, 0.0), 0.87, 0.95),
            (
                "200, 100 ms, 0.1 %",
                Wire::new(200.0, 100.0, 0.001),
                0.88,
                0.95,
            ),
            (
                "200, 100 ms, 1 %",
                Wire::new(200.0, 100.0, 0.01),
                0.95,
                0.95,
            ),
            ("100, 250 ms", Wire::new(100.0, 250.0, 0.0), 0.95, 0.95),
            ("800, 10 ms", Wire::new(800.0, 10.0, 0.0), 0.92, 0.95),
            ("10, 100 ms, 1 %", Wire::new(10.0, 100.0, 0.01), 0.95, 0.95),
            ("rate / 4", change(0.25), 0.9, 0.95),
            ("rate x 4", change(4.0), 0.9, 0.95),
            ("four requests", few_requests, 0.85, 0.94),
            ("slow server", slow_server, 0.92, 0.95),
        ];
        for (name, link, short, long) in links {
            for is_upload in [true, false] {
                let link = Wire { is_upload, ..link };
                for (seconds, part) in [(20.0, short), (120.0, long)] {
                    let (mean, worst) = of_the_best(link, seconds, seeds);
                    let what = format!(
                        "{name}, upload: {is_upload}, {seconds} s: {mean:.2}, worst {worst:.2}"
                    );
                    assert!(mean > part && worst > part - 0.1, "{what}");
                }
            }
        }
    }

    /// As on a wireless link: nothing arrives for a moment, and more than usual after it.
    #[test]
    fn pauses_of_the_link_do_not_lead_to_ever_more_requests() {
        for (mbit, rtt_ms) in [(20.0, 30.0), (50.0, 20.0), (100.0, 40.0)] {
            for (is_upload, seed) in [(true, 0), (true, 1), (true, 2), (false, 0), (false, 1)] {
                let link = Wire {
                    is_upload,
                    pauses: Some((7.0, 0.6)),
                    ..Wire::new(mbit, rtt_ms, 0.0)
                };
                let concurrency = Concurrency::new(1, 64, Duration::from_secs_f64(link.rtt));
                let (_, most) = transfer(link, concurrency, link.rate * 100.0, seed);
                assert!(
                    most <= 32,
                    "{mbit} Mbit/s, upload: {is_upload}, seed {seed}: {most}"
                );
            }
        }
    }

    #[test]
    fn a_fixed_number_of_requests_never_changes() {
        let link = Wire::new(100.0, 80.0, 0.001);
        for jobs in [1, 7, 64] {
            let concurrency = Concurrency::new(jobs, jobs, Duration::ZERO);
            assert_eq!(concurrency.limit(), jobs);
            assert_eq!(transfer(link, concurrency, 100e6, 1).1, jobs);
        }
        // The number never falls below the floor.
        let mut concurrency = Concurrency::new(12, 64, Duration::ZERO);
        assert_eq!(concurrency.limit(), 12);
        let ticket = concurrency.sent(S);
        concurrency.succeeded(ticket, 2 * S);
        assert!(concurrency.limit() >= 12);
    }

    proptest! {
        /// For any answers in any order.
        #[test]
        fn the_limit_stays_between_one_and_the_ceiling(
            ceiling in 0_u32..40,
            events in prop::collection::vec((0_u8..8, any::<u16>(), 0_u64..5000), 0..300),
        ) {
            let mut concurrency = Concurrency::new(1, ceiling, Duration::ZERO);
            let mut sent: Vec<(Ticket, u32)> = Vec::new();
            let (mut now, mut falls) = (Duration::ZERO, 0);
            for (event, which, ms) in events {
                now += Duration::from_millis(ms);
                while sent.len() < concurrency.limit() as usize {
                    sent.push((concurrency.sent(now), falls));
                }
                let (ticket, falls_then) = sent.swap_remove(usize::from(which) % sent.len());
                let before = concurrency.limit();
                match event {
                    0 | 1 => {
                        if event == 0 {
                            concurrency.troubled(ticket, now);
                        } else {
                            let _ = concurrency.busy(ticket, now);
                        }
                        // The fall was already the reaction to requests that were sent before it.
                        let is_heard = falls_then < falls || before == 1;
                        prop_assert_eq!(concurrency.limit() < before, !is_heard);
                        falls += u32::from(!is_heard);
                    }
                    2 => concurrency.failed(now),
                    3 => {
                        concurrency.outage_ended(now);
                        falls += 1;
                    }
                    _ => concurrency.succeeded(ticket, now),
                }
                prop_assert!((1..=ceiling.max(1)).contains(&concurrency.limit()));
            }
        }
    }
}
