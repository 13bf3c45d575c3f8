//! Connections that are opened before there are requests for them.
//!
//! A new connection costs two round trips, with TLS three until the first answer. While a
//! drive is created, or looked at, those for its first chunks can be opened at the same
//! time. The pool of the HTTP client has no call for that, but a layer around its connector
//! can open connections and hand them over later: [`Ahead::opening`] marks a request whose
//! connection is opened and set aside, and which is dropped before it is sent.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tower_layer::Layer;
use tower_service::Service;

/// Older connections are not used: servers close what is idle.
const AGE_MAX: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// Set while a request is polled whose connection is to be set aside.
    static OPENING: ();
}

type Cause = Box<dyn std::error::Error + Send + Sync>;
/// A task that connects. What the HTTP client calls a connection has no name, so that the
/// type is known only where connections are made.
type Connecting = Box<dyn Any + Send>;

/// The layer around the connector of a client.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    connect: Duration,
    waiting: Arc<Mutex<VecDeque<(Instant, Connecting)>>>,
}

impl Ahead {
    /// Gives up connecting after this time.
    pub(super) fn new(connect: Duration) -> Self {
        Self {
            connect,
            waiting: Arc::default(),
        }
    }

    /// Opens a connection as `request` would, and sets it aside. The request is not sent.
    pub(super) async fn opening(request: impl Future) {
        let mut request = std::pin::pin!(OPENING.scope((), request));
        // The connector is called at the first poll, if no connection is idle.
        std::future::poll_fn(|context| {
            let _ = request.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
    }

    fn set_aside<T: Send + 'static>(&self, connecting: JoinHandle<T>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((Instant::now(), Box::new(connecting)));
    }

    /// The oldest connection that was set aside and is young enough.
    fn take<T: 'static>(&self) -> Option<JoinHandle<T>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((since, connecting)) = waiting.pop_front() {
            if since.elapsed() < AGE_MAX
                && let Ok(connecting) = connecting.downcast()
            {
                return Some(*connecting);
            }
        }
        None
    }
}

impl<S> Layer<S> for Ahead {
    type Service = Connector<S>;

    fn layer(&self, connector: S) -> Connector<S> {
        Connector {
            connector,
            ahead: self.clone(),
        }
    }
}

/// A connector that uses what was opened ahead.
#[derive(Clone, Debug)]
pub(super) struct Connector<S> {
    connector: S,
    ahead: Ahead,
}

impl<S, To> Service<To> for Connector<S>
where
    S: Service<To, Error = Cause> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Future: Send + 'static,
    To: Send + 'static,
{
    type Response = S::Response;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Cause>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, to: To) -> Self::Future {
        // The one that is ready is used; its clone may not be.
        let next = self.connector.clone();
        let mut connector = std::mem::replace(&mut self.connector, next);
        if OPENING.try_with(|()| ()).is_ok() {
            let connecting = timeout(self.ahead.connect, connector.call(to));
            self.ahead
                .set_aside(tokio::spawn(async move { connecting.await.ok()?.ok() }));
            return Box::pin(std::future::pending());
        }
        let opened = self.ahead.take::<Option<S::Response>>();
        Box::pin(async move {
            if let Some(opened) = opened
                && let Ok(Some(connection)) = opened.await
            {
                return Ok(connection);
            }
            connector.call(to).await
        })
    }
}
