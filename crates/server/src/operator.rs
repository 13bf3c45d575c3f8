//! Endpoints for the operator of the server: its health, and its metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_blocking};

use super::admission::{Admission, ConnectionLimits};
use super::answer::{self, Answer, full};
use super::metrics::{MEDIA_TYPE, Stock};
use super::origin::check_host;
use super::shared::Api;
use super::socket::{self, Socket};

/// The path at which anybody may ask whether the server is healthy.
pub(super) const HEALTH: &str = "/health";
const METRICS: &str = "/metrics";
/// Maximum concurrent connections for metrics: more than an installation has programs that collect
/// them.
const CONNECTIONS_MAX: usize = 16;

/// A short plain text answer that must not be cached.
fn text(status: StatusCode, media_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(full(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn plain(status: StatusCode, body: &str) -> Answer {
    text(status, "text/plain", format!("{body}\n"))
}

/// Whether requests are served: 200 `ok`, or 503 with the reason.
pub(super) async fn health(api: &Arc<Api>, method: &Method) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "Ask with GET");
    }
    if api.is_stopping.load(Ordering::Relaxed) {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    // One at a time: everybody may ask, and each check uses a thread and the disk.
    let turn = api.health.lock().await;
    let store = Arc::clone(api);
    let checked = spawn_blocking(move || store.store.check()).await;
    drop(turn);
    match checked {
        Ok(Ok(())) => plain(StatusCode::OK, "ok"),
        Ok(Err(error)) => {
            tracing::error!(%error, "The data directory cannot be used");
            plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the data directory cannot be used",
            )
        }
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "fault of the server"),
    }
}

/// Serves metrics until it is dropped.
pub(super) async fn serve_metrics(listener: TcpListener, api: Arc<Api>) {
    let mut connections = JoinSet::new();
    let admission = Admission::new(ConnectionLimits::strangers_only(CONNECTIONS_MAX));
    loop {
        let (stream, place) = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = admission.accept(&listener) => accepted,
        };
        let api = Arc::clone(&api);
        connections.spawn(async move {
            tokio::select! {
                () = serve_connection(stream, api) => {}
                () = place.closed() => {}
            }
        });
    }
}

async fn serve_connection(stream: TcpStream, api: Arc<Api>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let api = Arc::clone(&api);
        async move {
            if let Err(refusal) = check_host(&request) {
                return Ok(answer::refusal(&refusal));
            }
            let answer = match (request.uri().path(), request.method()) {
                (HEALTH, method) => health(&api, method).await,
                (METRICS, &(Method::GET | Method::HEAD)) => metrics(api).await,
                (METRICS, _) => plain(StatusCode::METHOD_NOT_ALLOWED, "Ask with GET"),
                _ => plain(StatusCode::NOT_FOUND, "There are /metrics and /health"),
            };
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let stream = TokioIo::new(Socket::new(stream));
    let connection = socket::http().serve_connection(stream, service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "A connection for figures ended");
    }
}

async fn metrics(api: Arc<Api>) -> Answer {
    let printed = spawn_blocking(move || {
        api.metrics
            .print(&stock(&api), &api.budgets, &api.admission)
    })
    .await;
    match printed {
        Ok(printed) => text(StatusCode::OK, MEDIA_TYPE, printed),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "fault of the server"),
    }
}

/// Collects the values of every drive. Blocks on the disk if the kernel has not cached them.
fn stock(api: &Api) -> Stock {
    let drives = api.store.select(|_| true);
    let mut stock = Stock {
        drives: drives.len() as u64,
        free: api.store.free_bytes(),
        digests: api.digests.load(),
        quotas: api.store.quotas().figures().to_vec(),
        ..Stock::default()
    };
    for drive in drives {
        stock.size = stock.size.saturating_add(drive.size());
        stock.allocated += drive.allocated_bytes();
        match drive.is_imaging_queued() {
            Some(true) => stock.imagings_queued += 1,
            Some(false) => stock.imagings_running += 1,
            None => {}
        }
    }
    stock
}
