//! Budgets limit how much of a resource each user, and all users together, may hold at a time.
//!
//! Everything that a request can hold for as long as its client likes has a budget: memory for
//! bodies, bytes of answers that are not read, processor work. A request takes a [`Share`] and
//! returns it by dropping it. It first waits for other requests of its own user, then for those of
//! others. So one user never holds, nor queues for, more than the part of one user, and the rest
//! stays available to the others.
//!
//! If a user's part is used up, the request is refused with 429 `busy`; if the whole budget is,
//! with 503 `busy`. Both have `Retry-After`. The metrics `openhosting_budget_*` show each budget by
//! its name (docs/user/operating.md).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use openhosting_base::locks::lock;
use openhosting_tenancy::Refusal;

const MIB: u64 = 1024 * 1024;
/// Maximum time that a request waits for a share before it is refused. It should be clearly shorter
/// than the time after which clients abort a request without an answer; ours waits for 30 s by
/// default.
pub(super) const SHARE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a refused client should wait. Shares are returned when a body or an answer ends, which
/// is soon for an honest client.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The resource of a budget, and its amount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Its name in metrics: letters and underscores.
    pub(super) name: &'static str,
    /// Its name in the sentence of a refusal, with its unit.
    pub(super) noun: &'static str,
    /// Maximum for one user.
    pub(super) each: u64,
    /// Maximum for all users together.
    pub(super) all: u64,
    /// Amounts are rounded up to a multiple of this, and at least to this.
    pub(super) step: u64,
}

/// What a body counts at least if it occupies a thread until it is complete, which a client can
/// delay: it bounds these threads to 320.
pub(super) const BODY_ON_THREAD_BYTES: u64 = 4 * MIB;

/// Memory for the bodies of writes. At least 1 MiB counts for each body. Our clients send up to 64
/// chunks of 4 MiB concurrently on a lossy link, each for many seconds.
const BODIES: Limit = Limit {
    name: "body_bytes",
    noun: "bytes of request bodies in memory",
    each: 320 * MIB,
    all: 1280 * MIB,
    step: MIB,
};

/// Memory for answers of more than 64 KiB, whether the client reads them or not.
const ANSWERS: Limit = Limit {
    name: "answer_bytes",
    noun: "bytes of answers that were not read yet",
    each: 64 * MIB,
    all: 256 * MIB,
    step: MIB / 16,
};

/// Requests in progress, until their answers begin, except those that other budgets bound. Each may
/// use one of the runtime's threads for blocking work, which `/health`, writes and the steps of
/// reads need as well.
const REQUESTS: Limit = Limit {
    name: "requests",
    noun: "requests under way",
    each: 64,
    all: 448,
    step: 1,
};

/// Digests, lists of extents and maps, including those that wait for their turn. Our clients have
/// up to 64 workers.
const DIGESTS: Limit = Limit {
    name: "digests",
    noun: "digests, lists of extents and maps under way",
    each: 128,
    all: 16 * 1024,
    step: 1,
};

/// Imagings that have not ended, including those that wait for their turn.
const IMAGINGS: Limit = Limit {
    name: "imagings",
    noun: "imagings under way",
    each: 100,
    all: 16 * 1024,
    step: 1,
};

/// All budgets of a server.
#[derive(Debug)]
pub(super) struct Budgets {
    pub(super) bodies: Budget,
    pub(super) answers: Budget,
    pub(super) requests: Budget,
    pub(super) digests: Budget,
    pub(super) imagings: Budget,
}

impl Budgets {
    pub(super) fn new() -> Self {
        Self {
            bodies: Budget::new(BODIES),
            answers: Budget::new(ANSWERS),
            requests: Budget::new(REQUESTS),
            digests: Budget::new(DIGESTS),
            imagings: Budget::new(IMAGINGS),
        }
    }

    /// Every budget, for the metrics.
    pub(super) fn all(&self) -> [&Budget; 5] {
        let Self {
            bodies,
            answers,
            requests,
            digests,
            imagings,
        } = self;
        [bodies, answers, requests, digests, imagings]
    }
}

/// How much of one resource the users hold.
#[derive(Debug)]
pub(super) struct Budget {
    limit: Limit,
    all: Arc<Semaphore>,
    /// The part of each user that ever took a share. The number of users is fixed.
    users: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
    refused_to_user: AtomicU64,
    refused_to_all: AtomicU64,
}

/// A part of a budget; returned when dropped.
#[derive(Debug)]
#[must_use = "a share that is dropped is returned"]
pub(super) struct Share {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// The figures of a budget for the metrics, in the unit of its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetFigures {
    pub(super) name: &'static str,
    pub(super) used: u64,
    pub(super) each: u64,
    pub(super) all: u64,
    /// Number of refusals because one user, or all users together, held too much.
    pub(super) refused_to_user: u64,
    pub(super) refused_to_all: u64,
}

impl Budget {
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            limit,
            all: Arc::new(Semaphore::new((limit.all / limit.step) as usize)),
            users: Mutex::default(),
            refused_to_user: AtomicU64::new(0),
            refused_to_all: AtomicU64::new(0),
        }
    }

    /// Waits for a share for at most `patience`, then refuses: with 429 if the user holds too much,
    /// otherwise with 503.
    pub(super) async fn take_within(
        &self,
        user: &Arc<str>,
        amount: u64,
        patience: Duration,
    ) -> Result<Share, Refusal> {
        let permits = self.permits(amount);
        let deadline = Instant::now() + patience;
        let own = timeout_at(deadline, self.part(user).acquire_many_owned(permits)).await;
        let Ok(Ok(own)) = own else {
            return Err(self.refuse_user());
        };
        let all = Arc::clone(&self.all).acquire_many_owned(permits);
        let Ok(Ok(all)) = timeout_at(deadline, all).await else {
            return Err(self.refuse_all());
        };
        Ok(Share {
            _own: own,
            _all: all,
        })
    }

    pub(super) fn figures(&self) -> BudgetFigures {
        let limit = self.limit;
        let free = self.all.available_permits() as u64 * limit.step;
        BudgetFigures {
            name: limit.name,
            used: limit.all.saturating_sub(free),
            each: limit.each,
            all: limit.all,
            refused_to_user: self.refused_to_user.load(Ordering::Relaxed),
            refused_to_all: self.refused_to_all.load(Ordering::Relaxed),
        }
    }

    /// The permits for `amount`, but at most the whole part of a user: more could never be granted.
    fn permits(&self, amount: u64) -> u32 {
        let amount = amount.min(self.limit.each.min(self.limit.all));
        let permits = amount.div_ceil(self.limit.step).max(1);
        u32::try_from(permits).unwrap_or(u32::MAX)
    }

    fn part(&self, user: &Arc<str>) -> Arc<Semaphore> {
        let mut users = lock(&self.users);
        if let Some(part) = users.get(user) {
            return Arc::clone(part);
        }
        let permits = self.limit.each.min(self.limit.all) / self.limit.step;
        let part = Arc::new(Semaphore::new(permits as usize));
        users.insert(Arc::clone(user), Arc::clone(&part));
        part
    }

    fn refuse_user(&self) -> Refusal {
        self.refused_to_user.fetch_add(1, Ordering::Relaxed);
        let Limit { noun, each, .. } = self.limit;
        let sentence = format!("This user has as many {noun} as one user may have: {each}");
        Refusal::too_many(RETRY_AFTER, sentence)
    }

    fn refuse_all(&self) -> Refusal {
        self.refused_to_all.fetch_add(1, Ordering::Relaxed);
        Refusal::overloaded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_stay_free_whatever_clients_hold() {
        // As documented at `Server::run`.
        let threads = BODIES.all / BODY_ON_THREAD_BYTES + REQUESTS.all;
        assert!(threads <= 1024 - 256, "{threads}");
    }

    const LIMIT: Limit = Limit {
        name: "test_bytes",
        noun: "bytes of tests",
        each: 40,
        all: 100,
        step: 10,
    };

    fn user(name: &str) -> Arc<str> {
        name.into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_cannot_hold_more_than_its_part_of_a_budget() {
        let budget = Budget::new(LIMIT);
        let (greedy, modest) = (user("greedy"), user("modest"));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(
                budget
                    .take_within(&greedy, 1, SHARE_WAIT_MAX)
                    .await
                    .unwrap(),
            );
        }
        // Requests of the greedy user wait for each other, and not in the common queue.
        let queue = (0..50).map(|_| budget.take_within(&greedy, 10, SHARE_WAIT_MAX));
        let mut queue: Vec<_> = queue.map(Box::pin).collect();
        for waiting in &mut queue {
            assert!(futures_poll(waiting.as_mut()).is_pending());
        }
        let share = budget.take_within(&modest, 40, Duration::ZERO).await;
        assert_eq!(budget.figures().used, 80);
        let refusal = queue.remove(0).await.unwrap_err();
        assert_eq!(refusal.status(), 429);
        assert_eq!(refusal.retry_after_s(), Some(1));
        assert_eq!(budget.figures().refused_to_user, 1);
        drop((share, queue, held));
        assert_eq!(budget.figures().used, 0);
        // A request for more than the whole part of a user gets that part.
        let all = budget
            .take_within(&greedy, u64::MAX, SHARE_WAIT_MAX)
            .await
            .unwrap();
        assert_eq!(budget.figures().used, 40);
        drop(all);
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_of_all_users_together_is_bounded() {
        let budget = Budget::new(LIMIT);
        let mut held = Vec::new();
        for name in ["a", "b", "c"] {
            held.push(
                budget
                    .take_within(&user(name), 30, SHARE_WAIT_MAX)
                    .await
                    .unwrap(),
            );
        }
        let refused = budget.take_within(&user("d"), 20, SHARE_WAIT_MAX).await;
        assert_eq!(refused.unwrap_err().status(), 503);
        let figures = budget.figures();
        assert_eq!((figures.used, figures.refused_to_all), (90, 1));
        // The refused request returned what it held of its user's part.
        held.pop();
        held.push(
            budget
                .take_within(&user("d"), 40, SHARE_WAIT_MAX)
                .await
                .unwrap(),
        );
        assert_eq!(budget.figures().used, 100);
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context)
    }
}
