//! Opens connections before there are requests for them.
//!
//! A new connection costs two round trips, and three with TLS before the first answer. While a
//! drive is created or looked up, the connections for its first chunks can be opened at the same
//! time. The pool of the HTTP client has no call for that, but a layer around its connector can
//! open connections and hand them out later: [`Ahead::opening`] marks a request whose connection is
//! opened and set aside; the request itself is dropped before it is sent.
//!
//! The pool also opens a connection for each request that finds none idle, even if one becomes idle
//! right after it. Such a connection is set aside, too, instead of becoming one more in the pool.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::locks::lock;
use tokio::task::{self, JoinHandle};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service};

/// How long a connection waits for a request before it is closed. Some servers allow a new
/// connection five seconds for its first request.
const AGE_MAX: Duration = Duration::from_secs(4);
/// How long a request waits for a connection to become idle before it opens another one. A
/// connection becomes idle a moment after its answer was read, and the HTTP client opens one
/// whenever none is idle, so a request that follows an answer at once would add a connection each
/// time. This is longer than that moment on a busy machine, and shorter than connecting takes.
const RETURN_MAX: Duration = Duration::from_millis(2);
/// Nobody sees this error: it ends a task of the HTTP client.
const NOT_NEEDED: &str = "the request received another connection";

tokio::task_local! {
    /// Set while a request is polled whose connection is to be set aside.
    static OPENING: ();
}

type Cause = Box<dyn std::error::Error + Send + Sync>;
/// An [`Opening`]. The HTTP client's connection type is private, so the type is known only where
/// connections are made.
type AnyOpening = Box<dyn Any + Send>;

/// A task that connects; dropping this aborts it.
struct Opening<T>(JoinHandle<Result<T, Cause>>);

impl<T> Opening<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T, Cause>> {
        let connecting = Pin::new(&mut self.0).poll(context);
        connecting.map(|ended| ended.unwrap_or_else(|lost| Err(lost.into())))
    }
}

impl<T> Drop for Opening<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Waiting = Arc<Mutex<VecDeque<(Instant, AnyOpening)>>>;

/// The layer around the connector of a client. When its last clone is dropped, waiting connections
/// are closed.
#[derive(Clone, Debug, Default)]
pub(super) struct Ahead {
    waiting: Waiting,
    quickest: Arc<Mutex<Option<Duration>>>,
}

impl Ahead {
    /// The shortest time in which a connection was made, TLS included. No server has work to do
    /// for that, so it depends on the round trip alone. `None` before the first one.
    pub(super) fn quickest(&self) -> Option<Duration> {
        *lock(&self.quickest)
    }

    /// Begins to connect, and counts how long it takes.
    fn open<T: Send + 'static>(
        &self,
        connecting: impl Future<Output = Result<T, Cause>> + Send + 'static,
    ) -> Opening<T> {
        let quickest = Arc::clone(&self.quickest);
        Opening(tokio::spawn(async move {
            let began = Instant::now();
            let connection = connecting.await?;
            let took = began.elapsed();
            let mut quickest = lock(&quickest);
            *quickest = Some(quickest.map_or(took, |quickest| quickest.min(took)));
            Ok(connection)
        }))
    }

    /// The connection for the request of this task. The HTTP client continues in a task of its own
    /// if the request received another connection meanwhile. Then this one is set aside for the
    /// next request, which would open yet another one otherwise.
    async fn needed_by<T: Send + 'static>(
        &self,
        request: Option<task::Id>,
        opening: Opening<T>,
    ) -> Result<T, Cause> {
        let mut opening = Some(opening);
        std::future::poll_fn(|context| {
            if task::try_id() == request {
                return match &mut opening {
                    Some(opening) => opening.poll(context),
                    None => Poll::Ready(Err(NOT_NEEDED.into())),
                };
            }
            if let Some(opening) = opening.take() {
                self.set_aside(opening);
            }
            Poll::Ready(Err(NOT_NEEDED.into()))
        })
        .await
    }

    /// The oldest connection that was set aside, for the request of this task.
    async fn waiting<T: Send + 'static>(&self, request: Option<task::Id>) -> Option<T> {
        let opening = self.take()?;
        self.needed_by(request, opening).await.ok()
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

    fn set_aside<T: Send + 'static>(&self, opening: Opening<T>) {
        lock(&self.waiting).push_back((Instant::now(), Box::new(opening)));
        let waiting = Arc::downgrade(&self.waiting);
        tokio::spawn(async move {
            sleep(AGE_MAX).await;
            if let Some(waiting) = waiting.upgrade() {
                lock(&waiting).retain(|(since, _)| since.elapsed() < AGE_MAX);
            }
        });
    }

    /// The oldest connection that was set aside and is not too old.
    fn take<T: 'static>(&self) -> Option<Opening<T>> {
        let mut waiting = lock(&self.waiting);
        while let Some((since, opening)) = waiting.pop_front() {
            if since.elapsed() < AGE_MAX
                && let Ok(opening) = opening.downcast()
            {
                return Some(*opening);
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

/// A connector that first uses connections that were opened ahead.
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
        // This connector is ready, but a clone of it may not be.
        let next = self.connector.clone();
        let mut connector = std::mem::replace(&mut self.connector, next);
        let ahead = self.ahead.clone();
        if OPENING.try_with(|()| ()).is_ok() {
            ahead.set_aside(ahead.open(connector.call(to)));
            return Box::pin(std::future::pending());
        }
        Box::pin(async move {
            let request = task::try_id();
            if let Some(connection) = ahead.waiting(request).await {
                return Ok(connection);
            }
            if ahead.quickest().is_some() {
                sleep(RETURN_MAX).await;
                if task::try_id() != request {
                    return Err(NOT_NEEDED.into());
                }
                if let Some(connection) = ahead.waiting(request).await {
                    return Ok(connection);
                }
            }
            // The time limit began before the wait for the other connection, and the error that
            // ends it is that of this request's own connection.
            let own = ahead.open(connector.call(to));
            ahead.needed_by(request, own).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts what happened to connections.
    #[derive(Debug, Default)]
    struct Counts {
        begun: AtomicU32,
        open: AtomicU32,
    }

    /// Connects in one second, unless this attempt should fail then, or never end.
    #[derive(Clone)]
    struct Network {
        counts: Arc<Counts>,
        failing: std::ops::Range<u32>,
        hanging: std::ops::Range<u32>,
    }

    struct Connection(u32, Arc<Counts>);

    impl Drop for Connection {
        fn drop(&mut self) {
            self.1.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Service<()> for Network {
        type Response = Connection;
        type Error = Cause;
        type Future = Pin<Box<dyn Future<Output = Result<Connection, Cause>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Cause>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            let counts = Arc::clone(&self.counts);
            let number = counts.begun.fetch_add(1, Ordering::Relaxed);
            let fails = self.failing.contains(&number);
            let hangs = self.hanging.contains(&number);
            Box::pin(async move {
                sleep(Duration::from_secs(1)).await;
                if hangs {
                    std::future::pending::<()>().await;
                }
                if fails {
                    return Err(format!("attempt {number}").into());
                }
                counts.open.fetch_add(1, Ordering::Relaxed);
                Ok(Connection(number, counts))
            })
        }
    }

    struct Scene {
        counts: Arc<Counts>,
        connector: Connector<Network>,
    }

    impl Scene {
        fn new(failing: std::ops::Range<u32>, hanging: std::ops::Range<u32>) -> Self {
            let counts = Arc::<Counts>::default();
            let network = Network {
                counts: Arc::clone(&counts),
                failing,
                hanging,
            };
            let connector = Ahead::default().layer(network);
            Self { counts, connector }
        }

        async fn opening(&self, connections: u32) {
            for _ in 0..connections {
                let mut connector = self.connector.clone();
                Ahead::opening(async move { connector.call(()).await }).await;
            }
        }

        /// The number of the attempt that the request's connection came from, or its error; and how
        /// many seconds that took.
        async fn connects(&mut self) -> (Result<Connection, String>, u64) {
            let began = Instant::now();
            let connected = self.connector.call(()).await;
            let connected = connected.map_err(|error| error.to_string());
            (connected, began.elapsed().as_secs())
        }

        fn counts(&self) -> (u32, u32) {
            let Counts { begun, open } = &*self.counts;
            (begun.load(Ordering::Relaxed), open.load(Ordering::Relaxed))
        }
    }

    fn number((connected, seconds): (Result<Connection, String>, u64)) -> (u32, u64) {
        (connected.map(|connection| connection.0).unwrap(), seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_use_spare_connections_first() {
        let mut scene = Scene::new(0..0, 0..0);
        scene.opening(2).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.counts(), (2, 2));
        assert_eq!(number(scene.connects().await), (0, 0));
        assert_eq!(number(scene.connects().await), (1, 0));
        assert_eq!(number(scene.connects().await), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_the_quickest_connection_is_known() {
        let mut scene = Scene::new(0..1, 0..0);
        assert_eq!(scene.connector.ahead.quickest(), None);
        assert!(scene.connects().await.0.is_err());
        assert_eq!(scene.connector.ahead.quickest(), None);
        assert_eq!(number(scene.connects().await), (1, 1));
        assert_eq!(
            scene.connector.ahead.quickest(),
            Some(Duration::from_secs(1))
        );
    }

    /// A request that received another connection after it had called the connector: the HTTP client
    /// polls the rest in a task of its own.
    async fn no_longer_needed(connector: &mut Connector<Network>) -> bool {
        let mut connecting = connector.call(());
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(connecting.as_mut().poll(context).is_pending())
        });
        assert!(polled.await);
        tokio::spawn(connecting).await.unwrap().is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_its_request_no_longer_needs_is_for_the_next_one() {
        let mut scene = Scene::new(0..0, 0..0);
        assert!(no_longer_needed(&mut scene.connector).await);
        assert_eq!(number(scene.connects().await), (0, 1));
        assert_eq!(scene.counts().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn no_connection_is_opened_for_a_request_that_receives_another_one_at_once() {
        let mut scene = Scene::new(0..0, 0..0);
        assert_eq!(number(scene.connects().await), (0, 1));
        assert!(no_longer_needed(&mut scene.connector).await);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.counts().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn unused_spare_connections_are_closed_soon() {
        let mut scene = Scene::new(0..0, 0..0);
        scene.opening(3).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.counts(), (3, 3));
        sleep(AGE_MAX).await;
        assert_eq!(scene.counts(), (3, 0));
        assert_eq!(number(scene.connects().await), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_client_closes_spare_connections() {
        let scene = Scene::new(0..0, 0..0);
        scene.opening(2).await;
        sleep(Duration::from_secs(2)).await;
        // Another connection, which is not open yet.
        scene.opening(1).await;
        let Scene { counts, connector } = scene;
        drop(connector);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(counts.open.load(Ordering::Relaxed), 0);
    }

    /// Its error does not replace that of the request's own connection either.
    #[tokio::test(start_paused = true)]
    async fn a_failed_spare_connection_fails_no_request() {
        let mut scene = Scene::new(0..1, 0..0);
        scene.opening(1).await;
        assert_eq!(number(scene.connects().await), (1, 2));
        let mut scene = Scene::new(0..9, 0..0);
        scene.opening(1).await;
        let (failed, seconds) = scene.connects().await;
        assert_eq!((failed.err().unwrap().as_str(), seconds), ("attempt 1", 2));
    }
}
