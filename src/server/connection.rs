//! One connection: HTTP/1.1 requests and their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;

use super::admission::Place;
use super::answer::{Answer, Held, Refusal};
use super::body::Incoming;
use super::budget::PATIENCE;
use super::drives::Api;
use super::faults::Reset;
use super::operator;
use super::origin::{check_host, check_site};
use super::page;
use super::peer::Peer;
use super::record::Record;
use super::routes::Call;

/// Longest wait for the header of a request, and for the next request.
pub(super) const HEADER_WAIT: Duration = Duration::from_secs(10);
pub(super) const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Serves requests until the client or `watcher` ends it, or it is to be reset:
/// then `is_reset` is set.
pub(super) async fn serve<S>(
    stream: S,
    api: Arc<Api>,
    watcher: Watcher,
    is_reset: Arc<AtomicBool>,
    peer: Option<Peer>,
    place: Arc<Place>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Arc::new(peer);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (api, peer) = (Arc::clone(&api), Arc::clone(&peer));
        let is_reset = Arc::clone(&is_reset);
        let place = Arc::clone(&place);
        async move {
            let (method, path) = (request.method().clone(), request.uri().path());
            let record = Arc::new(Record::new(method, path, place, &api.metrics));
            let span = record.span().clone();
            let request = request.map(|body| Incoming::counted(body, Arc::clone(&record)));
            let work = answer(&api, request, Arc::clone(&record)).instrument(span);
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                // What only serves the client ends here, wherever it is.
                () = gone(peer.as_ref().as_ref(), &record) => Err(Reset),
            };
            answer.inspect_err(|Reset| is_reset.store(true, Ordering::Relaxed))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_header_size(HEADER_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "Connection ended");
    }
}

/// Waits until the client of a request has gone that changes nothing. Other requests are
/// carried out once they are there as a whole. Ask only after the request was begun.
async fn gone(peer: Option<&Peer>, record: &Record) {
    match peer {
        Some(peer) if record.ends_with_client() => peer.gone().await,
        _ => std::future::pending().await,
    }
}

async fn answer(
    api: &Arc<Api>,
    request: Request<Incoming>,
    record: Arc<Record>,
) -> Result<Answer, Reset> {
    if let Err(refusal) = check_host(&request) {
        return Ok(record.answer(refusal.to_answer(), Some(refusal)));
    }
    if request.uri().path() == operator::HEALTH {
        record.set_call("health");
        let answer = operator::health(api, request.method()).await;
        return Ok(record.answer(answer, None));
    }
    if let Some(page) = &api.page
        && page::is_for(&request)
    {
        record.set_call("page");
        if request.method() == Method::GET {
            record.end_with_client();
        }
        let answer = page::answer(api, page, request, &record).await;
        return Ok(hold(api, record, Ok(answer)).await);
    }
    let served = api
        .faults
        .play(request, |request| dispatch(api, request, &record))
        .await?;
    Ok(hold(api, record, served).await)
}

/// The answer to a request, which holds its share of the budget until it was sent.
async fn hold(api: &Arc<Api>, record: Arc<Record>, served: Result<Answer, Refusal>) -> Answer {
    let held = match served {
        Ok(answer) => take_share(api, &record, answer).await,
        refused => refused,
    };
    match held {
        Ok(answer) => record.answer(answer, None),
        Err(refusal) => record.answer(refusal.to_answer(), Some(refusal)),
    }
}

async fn take_share(
    api: &Arc<Api>,
    record: &Record,
    mut answer: Answer,
) -> Result<Answer, Refusal> {
    let held = answer.extensions_mut().remove::<Held>();
    if let (Some(Held(bytes)), Some(user)) = (held, record.user()) {
        let share = api.budgets.answers.take_within(user, bytes, PATIENCE);
        record.hold(share.await?);
    }
    Ok(answer)
}

/// Who, then what, then how; so that nobody without credentials learns which
/// commands or drives there are, and no body is read for nothing.
async fn dispatch(
    api: &Arc<Api>,
    request: Request<Incoming>,
    record: &Record,
) -> Result<Answer, Refusal> {
    // Before the key: a page of another site must not use up the guesses of its visitor.
    check_site(request.headers())?;
    // To come without a key is no guess.
    let header = request.headers().get(AUTHORIZATION);
    let header = header.ok_or_else(Refusal::auth)?;
    let prove = || api.users.prove(header.as_bytes());
    let user = api.guard.prove(record.from(), prove)?;
    record.set_user(&user)?;
    api.guard.request(&user)?;
    check_framing(&request)?;
    let is_post = match *request.method() {
        Method::POST => true,
        Method::GET => false,
        _ => {
            let sentence = "The API knows GET and POST only";
            return Err(Refusal::method("GET, POST", sentence));
        }
    };
    if request.uri().query().is_some() {
        return Err(Refusal::no_command());
    }
    let call = Call::parse(request.uri().path())?;
    record.set_call(call.name());
    if let Some(id) = call.moves()
        && let Ok(drive) = api.store.readable(&user, id)
    {
        record.set_traffic(&drive.traffic);
    }
    if call.changes() && !is_post {
        return Err(Refusal::method("POST", "The command needs POST"));
    }
    if !call.changes() {
        record.end_with_client();
    }
    let _turn = match call.has_own_budget() {
        true => None,
        false => Some(api.budgets.requests.take_within(&user, 1, PATIENCE).await?),
    };
    api.call(user, call, request).await
}

/// hyper refuses most of what could be understood in two ways; this is the
/// rest: a transfer coding on top of chunked.
fn check_framing(request: &Request<Incoming>) -> Result<(), Refusal> {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::framing("Transfer-Encoding is not chunked")),
    }
}
