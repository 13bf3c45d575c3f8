//! Long work for a single user: digests, extents and imagings. One mechanism keeps it fair and
//! stops it.
//!
//! Work is done in slices of some milliseconds. Before each slice, a [`Job`] waits for a turn, and
//! turns go to the user who has the fewest at that moment, so that each user gets the same share
//! however many jobs they have. The jobs of one user get their turns in the order of their arrival.
//!
//! Nothing runs between two slices. Dropping the future of a job stops its work at the end of the
//! current slice, and the job leaves the queue at once.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::tasks::blocking;
use openhosting_base::locks::lock;
use openhosting_tenancy::Refusal;

/// Length of a slice: long enough that switching threads costs nothing, short enough that others do
/// not notice the wait.
const SLICE: Duration = Duration::from_millis(25);

/// Turns for one kind of work.
pub(super) struct Turns {
    queue: Mutex<Queue>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turns({:?})", self.load())
    }
}

struct Queue {
    /// Unused turns. Unless this is 0, no job waits.
    free: usize,
    users: HashMap<Arc<str>, UserJobs>,
    /// Number of jobs that have arrived.
    tickets: u64,
    /// Number of turns that were given.
    given: u64,
}

#[derive(Default)]
struct UserJobs {
    jobs: usize,
    /// Turns that this user has now.
    turns: usize,
    /// When this user last got a turn, counted in turns.
    last: u64,
    /// The jobs that wait for a turn, by ticket.
    waiting: BTreeMap<u64, (Arc<Job>, oneshot::Sender<WorkTurn>)>,
}

/// The number of jobs for one kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Jobs with a turn.
    pub(super) running: usize,
    /// Jobs that wait for one.
    pub(super) waiting: usize,
}

/// A job of one user. It counts until it is dropped.
pub(super) struct Job {
    turns: Arc<Turns>,
    user: Arc<str>,
    ticket: u64,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} of {})", self.ticket, self.user)
    }
}

/// The right to work for one slice; when it is dropped, the next job gets it.
#[derive(Debug)]
pub(super) struct WorkTurn(Arc<Job>);

impl Turns {
    /// Turns for `at_once` concurrent jobs, which must be at least 1.
    pub(super) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(Queue {
                free: at_once.max(1),
                users: HashMap::new(),
                tickets: 0,
                given: 0,
            }),
        })
    }

    /// A new job of `user`. The caller must take a share of a budget first, because nothing here
    /// limits the number of jobs.
    pub(super) fn join(self: &Arc<Self>, user: &Arc<str>) -> Arc<Job> {
        let mut queue = lock(&self.queue);
        queue.users.entry(Arc::clone(user)).or_default().jobs += 1;
        queue.tickets += 1;
        Arc::new(Job {
            turns: Arc::clone(self),
            user: Arc::clone(user),
            ticket: queue.tickets,
        })
    }

    /// The current number of jobs.
    pub(super) fn load(&self) -> Load {
        let queue = lock(&self.queue);
        let users = queue.users.values();
        users.fold(Load::default(), |load, user| Load {
            running: load.running + user.turns,
            waiting: load.waiting + user.waiting.len(),
        })
    }

    /// Gives free turns to waiting jobs.
    fn give(self: &Arc<Self>) {
        loop {
            let Some((job, sender)) = lock(&self.queue).take_next() else {
                return;
            };
            // Outside of the lock: if the job no longer waits, its turn is dropped here, which
            // locks again.
            let _ = sender.send(WorkTurn(job));
        }
    }
}

impl Queue {
    /// The job that gets the next turn, which then counts as given; `None` if no turn is free or no
    /// job waits.
    fn take_next(&mut self) -> Option<(Arc<Job>, oneshot::Sender<WorkTurn>)> {
        self.free = self.free.checked_sub(1)?;
        let waiting = self.users.values_mut().filter(|u| !u.waiting.is_empty());
        let next = waiting.min_by_key(|user| (user.turns, user.last));
        let next = next.and_then(|user| {
            let (_, next) = user.waiting.pop_first()?;
            self.given += 1;
            (user.turns, user.last) = (user.turns + 1, self.given);
            Some(next)
        });
        if next.is_none() {
            self.free += 1;
        }
        next
    }
}

impl Job {
    /// Waits for a turn. A job has only one at a time: its `last` one goes to the next job, which
    /// is this job again if no other waits.
    async fn turn_after(self: &Arc<Self>, mut last: Option<WorkTurn>) -> WorkTurn {
        loop {
            let (sender, receiver) = oneshot::channel();
            self.with_user(|user| user.waiting.insert(self.ticket, (Arc::clone(self), sender)));
            // Not earlier, because this job may be the next one.
            drop(last.take());
            self.turns.give();
            let waiting = Waiting(self);
            let turn = receiver.await;
            drop(waiting);
            // The sender always sends before it is dropped.
            if let Ok(turn) = turn {
                return turn;
            }
        }
    }

    fn with_user<T>(&self, change: impl FnOnce(&mut UserJobs) -> T) -> T {
        let mut queue = lock(&self.turns.queue);
        change(queue.users.entry(Arc::clone(&self.user)).or_default())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut queue = lock(&self.turns.queue);
        if let Some(user) = queue.users.get_mut(&self.user) {
            user.jobs = user.jobs.saturating_sub(1);
            if user.jobs == 0 {
                queue.users.remove(&self.user);
            }
        }
    }
}

/// Removes a waiting job from the queue when dropped.
struct Waiting<'a>(&'a Job);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Dropped outside of the lock, because it holds the job.
        let left = self.0.with_user(|user| user.waiting.remove(&self.0.ticket));
        drop(left);
    }
}

impl Drop for WorkTurn {
    fn drop(&mut self) {
        self.0.with_user(|user| user.turns -= 1);
        lock(&self.0.turns.queue).free += 1;
        self.0.turns.give();
    }
}

/// Works until the end of a slice, or until there is a result. A step should take about a
/// millisecond.
pub(super) fn slice<T, E>(mut step: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let began = Instant::now();
    loop {
        if let Some(done) = step()? {
            return Ok(Some(done));
        }
        if began.elapsed() >= SLICE {
            return Ok(None);
        }
    }
}

/// How work ended that can be halted.
pub(super) enum Worked<T, H> {
    /// It is complete, with this result.
    Done(T),
    /// It was halted, for this reason.
    Halted(H),
}

/// Calls `step` in turns, on threads that may block, until it returns a result. If this future is
/// dropped, the work ends with the current slice.
pub(super) async fn in_turns<T: Send + 'static>(
    job: Arc<Job>,
    step: impl FnMut() -> Result<Option<T>, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match in_turns_until(job, pending::<Infallible>(), step).await? {
        Worked::Done(done) => Ok(done),
        Worked::Halted(never) => match never {},
    }
}

/// As [`in_turns`], unless `halted` completes while the job waits for a turn: then `step` is
/// dropped and never called again.
pub(super) async fn in_turns_until<T: Send + 'static, H>(
    job: Arc<Job>,
    halted: impl Future<Output = H>,
    mut step: impl FnMut() -> Result<Option<T>, Refusal> + Send + 'static,
) -> Result<Worked<T, H>, Refusal> {
    tokio::pin!(halted);
    let mut last = None;
    loop {
        let turn = tokio::select! {
            biased;
            why = &mut halted => return Ok(Worked::Halted(why)),
            turn = job.turn_after(last.take()) => turn,
        };
        let sliced = blocking(move || {
            let done = slice(&mut step)?;
            Ok((turn, step, done))
        });
        let (turn, again, done) = sliced.await?;
        if let Some(done) = done {
            return Ok(Worked::Done(done));
        }
        (last, step) = (Some(turn), again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn renew(turn: WorkTurn) -> WorkTurn {
        let job = Arc::clone(&turn.0);
        job.turn_after(Some(turn)).await
    }

    fn users(turns: &Turns) -> usize {
        lock(&turns.queue).users.len()
    }

    #[tokio::test]
    async fn each_user_gets_the_same_share_however_many_jobs_they_have() {
        for at_once in 1..4 {
            let turns = Turns::new(at_once);
            let (many, one): (Arc<str>, Arc<str>) = ("many".into(), "one".into());
            let jobs: Vec<_> = (0..10).map(|_| turns.join(&many)).collect();
            let greedy: Vec<_> = jobs
                .iter()
                .map(|job| {
                    let job = Arc::clone(job);
                    tokio::spawn(async move {
                        let mut turn = job.turn_after(None).await;
                        for slices in 0.. {
                            tokio::task::yield_now().await;
                            turn = renew(turn).await;
                            assert!(slices < 1_000_000, "never ends");
                        }
                    })
                })
                .collect();
            while turns.load().running < at_once {
                tokio::task::yield_now().await;
            }
            let before = lock(&turns.queue).given;
            let mut turn = {
                let job = turns.join(&one);
                job.turn_after(None).await
            };
            const SLICES: u64 = 1000;
            for _ in 0..SLICES {
                tokio::task::yield_now().await;
                turn = renew(turn).await;
            }
            let others = lock(&turns.queue).given - before - SLICES;
            // One job has one turn at a time; the others share the rest.
            let fair = (at_once as u64 - 1).max(1) * SLICES;
            assert!(others <= fair + 20, "{others} of {fair} with {at_once}");
            for job in greedy {
                job.abort();
                assert!(job.await.unwrap_err().is_cancelled());
            }
            drop((jobs, turn));
            assert_eq!((turns.load(), users(&turns)), (Load::default(), 0));
        }
    }

    #[tokio::test]
    async fn jobs_of_one_user_run_in_order() {
        let turns = Turns::new(1);
        let user: Arc<str> = "u".into();
        let [first, second, third] = [(); 3].map(|()| turns.join(&user));
        let mut turn = first.turn_after(None).await;
        let later = tokio::spawn(async move { third.turn_after(None).await.0.ticket });
        let sooner = tokio::spawn(async move { second.turn_after(None).await.0.ticket });
        while turns.load().waiting < 2 {
            tokio::task::yield_now().await;
        }
        // The oldest job continues until it is done.
        for _ in 0..100 {
            turn = renew(turn).await;
        }
        assert_eq!(
            turns.load(),
            Load {
                running: 1,
                waiting: 2
            }
        );
        drop((turn, first));
        assert_eq!((sooner.await.unwrap(), later.await.unwrap()), (2, 3));
        assert_eq!((turns.load(), users(&turns)), (Load::default(), 0));
    }

    #[tokio::test]
    async fn a_job_that_stops_waiting_takes_no_turn() {
        let turns = Turns::new(2);
        let mut random = fastrand::Rng::with_seed(3);
        let names: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
        let mut held = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..5000 {
            match random.u8(..4) {
                0 => {
                    let job = turns.join(&names[random.usize(..3)]);
                    waiting.push(Box::pin(async move { job.turn_after(None).await }));
                }
                1 if !waiting.is_empty() => {
                    // Whether it has got a turn by now or not.
                    drop(waiting.swap_remove(random.usize(..waiting.len())));
                }
                2 if !held.is_empty() => drop(held.swap_remove(random.usize(..held.len()))),
                _ if !waiting.is_empty() => {
                    let at = random.usize(..waiting.len());
                    let polled = tokio::select! {
                        biased;
                        turn = &mut waiting[at] => Some(turn),
                        () = std::future::ready(()) => None,
                    };
                    if let Some(turn) = polled {
                        held.push(turn);
                        drop(waiting.swap_remove(at));
                    }
                }
                _ => {}
            }
            let load = turns.load();
            assert!(held.len() <= load.running && load.running <= 2);
        }
        drop((held, waiting));
        assert_eq!((turns.load(), users(&turns)), (Load::default(), 0));
        assert_eq!(lock(&turns.queue).free, 2);
    }
}
