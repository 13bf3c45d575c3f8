//! Requests a transfer to stop.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};

/// How long requests in flight may take when a transfer ends early. Those that complete need not be
/// repeated by the next run, while the user waits for the end of this one. The time is a choice.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// How urgent the request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    #[default]
    Go,
    /// Start nothing new; what is in flight may finish.
    Drain,
    /// Stop at once.
    Abort,
}

/// The sending end.
#[derive(Clone, Debug)]
pub struct StopHandle {
    urgency: watch::Sender<Urgency>,
    interruptible: Arc<AtomicUsize>,
}

/// The end that a transfer listens to.
#[derive(Clone, Debug)]
pub struct Stop {
    urgency: watch::Receiver<Urgency>,
    /// The number of pieces of work in progress that a request to stop interrupts at once.
    interruptible: Arc<AtomicUsize>,
}

/// Creates a way to stop a transfer from outside.
pub fn stop_channel() -> (StopHandle, Stop) {
    let (sender, receiver) = watch::channel(Urgency::Go);
    let interruptible = Arc::<AtomicUsize>::default();
    let handle = StopHandle {
        urgency: sender,
        interruptible: interruptible.clone(),
    };
    let stop = Stop {
        urgency: receiver,
        interruptible,
    };
    (handle, stop)
}

impl StopHandle {
    /// Lets requests in flight finish, and starts no new ones.
    pub fn drain(&self) {
        self.urgency.send_replace(Urgency::Drain);
    }

    /// Stops at once.
    pub fn abort(&self) {
        self.urgency.send_replace(Urgency::Abort);
    }

    /// Whether [`drain`](Self::drain) ends the current work at once, because no request in flight
    /// is worth finishing.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    pub(crate) fn ends_at_once(&self) -> bool {
        self.interruptible.load(Ordering::Relaxed) > 0
    }
}

/// Counts a piece of interruptible work while it lives.
struct Interruptible(Arc<AtomicUsize>);

impl Interruptible {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stop {
    /// Is never asked to stop.
    pub fn never() -> Self {
        stop_channel().1
    }

    /// Waits for a request to stop, whatever its urgency.
    pub async fn asked(&mut self) {
        self.reached(Urgency::Drain).await;
    }

    /// Does work that can be interrupted at any moment, unless it is asked to stop first.
    pub(crate) async fn unless_asked<T, E: From<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let _counted = Interruptible::new(&self.interruptible);
        tokio::select! {
            biased;
            done = work => done,
            () = self.asked() => Err(stopped().into()),
        }
    }

    /// Whether it was asked to stop, with whatever urgency.
    pub(crate) fn is_asked(&self) -> bool {
        *self.urgency.borrow() >= Urgency::Drain
    }

    /// For work that blocks: call it before each step.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] if it was asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_asked() {
            true => Err(stopped().hint_to("The same command continues")),
            false => Ok(()),
        }
    }

    /// Waits for a request to stop at once.
    pub(crate) async fn asked_at_once(&mut self) {
        self.reached(Urgency::Abort).await;
    }

    async fn reached(&mut self, urgency: Urgency) {
        // Without a handle, no request can arrive any more.
        if self
            .urgency
            .wait_for(|asked| *asked >= urgency)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

/// The error of work that was asked to stop.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "Stopped")
}
