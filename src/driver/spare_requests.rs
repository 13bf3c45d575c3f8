//! Allowed requests beyond one for each chunk: over a slow link, requests share chunks, and at the
//! end of a transfer there are fewer chunks than allowed requests. The shell sets their number, and
//! attempts take them for further pieces of their chunks.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
struct Counts {
    allowed: u32,
    taken: u32,
    /// When `taken` last changed, and its integral over time until then.
    changed: Instant,
    taken_for: Duration,
}

impl Counts {
    fn has_one(&self) -> bool {
        self.taken < self.allowed
    }

    /// The integral of `taken` over time until now.
    fn taken_for(&self) -> Duration {
        self.taken_for + self.changed.elapsed() * self.taken
    }

    fn set_taken(&mut self, taken: u32) {
        self.taken_for = self.taken_for();
        self.changed = Instant::now();
        self.taken = taken;
    }
}

/// See the [module](self). Clones share the same requests.
#[derive(Clone, Debug)]
pub(crate) struct Spare(watch::Sender<Counts>);

/// The right to one more request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(watch::Sender<Counts>);

impl Default for Spare {
    /// None is allowed.
    fn default() -> Self {
        Self(watch::Sender::new(Counts {
            allowed: 0,
            taken: 0,
            changed: Instant::now(),
            taken_for: Duration::ZERO,
        }))
    }
}

impl Spare {
    /// How many are taken now.
    pub(crate) fn taken(&self) -> u32 {
        self.0.borrow().taken
    }

    /// How long requests were taken until now: the sum over all of them.
    pub(crate) fn taken_for(&self) -> Duration {
        self.0.borrow().taken_for()
    }

    /// Sets the allowed number. If more are taken, none is available before enough were returned.
    pub(crate) fn allow(&self, requests: u32) {
        self.0.send_if_modified(|counts| {
            let before = std::mem::replace(&mut counts.allowed, requests);
            before != requests
        });
    }

    /// Waits for one. Cancel-safe.
    pub(crate) async fn take(&self) -> Permit {
        let mut counts = self.0.subscribe();
        loop {
            // Fails only without a sender, but `self` is one.
            let _ = counts.wait_for(Counts::has_one).await;
            let is_taken = self.0.send_if_modified(|counts| {
                let has_one = counts.has_one();
                if has_one {
                    counts.set_taken(counts.taken + 1);
                }
                has_one
            });
            if is_taken {
                return Permit(self.0.clone());
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0
            .send_modify(|counts| counts.set_taken(counts.taken - 1));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Takes one if it is available now.
    fn taken(spare: &Spare) -> Option<Permit> {
        match pin!(spare.take()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[test]
    fn spare_requests_start_at_zero_and_reach_the_allowed_number() {
        let spare = Spare::default();
        assert!(taken(&spare).is_none());
        spare.allow(2);
        let (one, two) = (taken(&spare).unwrap(), taken(&spare.clone()).unwrap());
        assert!(taken(&spare).is_none());
        // Fewer are allowed: the next one is available when both were returned.
        spare.allow(1);
        drop(one);
        assert!(taken(&spare).is_none());
        drop(two);
        assert!(taken(&spare).is_some());
        spare.allow(0);
        assert!(taken(&spare).is_none());
    }

    #[tokio::test]
    async fn a_returned_request_goes_to_the_waiting_task() {
        let spare = Spare::default();
        let waiting = tokio::spawn({
            let spare = spare.clone();
            async move { spare.take().await }
        });
        tokio::task::yield_now().await;
        spare.allow(1);
        let permit = waiting.await.unwrap();
        let (_, next) = tokio::join!(async { drop(permit) }, spare.take());
        assert!(taken(&spare).is_none());
        drop(next);
    }
}
