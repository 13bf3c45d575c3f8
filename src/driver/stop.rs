//! Asking a transfer to stop.

use std::future::Future;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind};

/// How urgently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    #[default]
    Go,
    /// Nothing new; what is in flight may finish.
    Drain,
    /// At once.
    Abort,
}

/// The end of the channel that asks.
#[derive(Clone, Debug)]
pub struct StopHandle(watch::Sender<Urgency>);

/// The end that a transfer listens to.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Urgency>);

/// A way to stop a transfer from outside.
pub fn stop_channel() -> (StopHandle, Stop) {
    let (sender, receiver) = watch::channel(Urgency::Go);
    (StopHandle(sender), Stop(receiver))
}

impl StopHandle {
    /// No new requests; those in flight may finish.
    pub fn drain(&self) {
        self.0.send_replace(Urgency::Drain);
    }

    /// At once.
    pub fn abort(&self) {
        self.0.send_replace(Urgency::Abort);
    }
}

impl Stop {
    /// Never asks to stop.
    pub fn never() -> Self {
        stop_channel().1
    }

    /// Waits until it is asked to stop, in whatever way.
    pub async fn asked(&mut self) {
        self.reached(Urgency::Drain).await;
    }

    /// Does what can be left at any moment, unless it is asked to stop before its end.
    pub(crate) async fn unless_asked<T, E: From<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            done = work => done,
            () = self.asked() => Err(stopped().into()),
        }
    }

    /// Whether it was asked to stop, in whatever way.
    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow() >= Urgency::Drain
    }

    /// Waits until it is asked to stop at once.
    pub(crate) async fn asked_at_once(&mut self) {
        self.reached(Urgency::Abort).await;
    }

    async fn reached(&mut self, urgency: Urgency) {
        // A dropped handle asks for nothing: it cannot ask any more.
        if self.0.wait_for(|asked| *asked >= urgency).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The error of what was asked to stop.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "Stopped")
}
