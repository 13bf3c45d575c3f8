//! One connection: HTTP/1.1 requests and their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::{ACCEPT, AUTHORIZATION, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::Watcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;

use super::admission::Admitted;
use super::answer::{self, Answer, Held};
use super::body::{Incoming, text};
use super::budget::SHARE_WAIT_MAX;
use super::faults::Reset;
use super::metadata::Metadata;
use super::origin::{check_host, check_site};
use super::peer::Peer;
use super::record::RequestRecord;
use super::routes::Call;
use super::shared::Api;
use super::{drives, operator, page, socket};
use openhosting_base::wire::Format;
use openhosting_tenancy::Refusal;

/// What is known about the client of a connection.
pub(super) struct Client {
    /// Set it to end the connection with a reset.
    pub(super) is_reset: Arc<AtomicBool>,
    /// Detects that the client has gone; if it is missing, only that does not work.
    pub(super) peer: Option<Peer>,
    pub(super) place: Arc<Admitted>,
}

/// Serves requests until the client or `watcher` ends the connection, or it is reset.
pub(super) async fn serve<S>(stream: S, api: Arc<Api>, watcher: Watcher, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = Arc::new(client);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (api, client) = (Arc::clone(&api), Arc::clone(&client));
        async move {
            let (method, path) = (request.method().clone(), request.uri().path());
            let place = Arc::clone(&client.place);
            let record = Arc::new(RequestRecord::new(method, path, place, &api.metrics));
            let span = record.span().clone();
            let request = request.map(|body| Incoming::counted(body, Arc::clone(&record)));
            let work = answer(&api, request, Arc::clone(&record)).instrument(span);
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                // Work that only serves the client ends here, at whatever point it is.
                () = gone(client.peer.as_ref(), &record) => Err(Reset),
            };
            answer.inspect_err(|Reset| client.is_reset.store(true, Ordering::Relaxed))
        }
    });
    let connection = socket::http()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "Connection ended");
    }
}

/// Waits until the client has gone, for a request that changes nothing. Other requests are carried
/// out once they have been received completely. Call it only after the request began.
async fn gone(peer: Option<&Peer>, record: &RequestRecord) {
    match peer {
        Some(peer) if record.ends_with_client() => peer.gone().await,
        _ => std::future::pending().await,
    }
}

async fn answer(
    api: &Arc<Api>,
    request: Request<Incoming>,
    record: Arc<RequestRecord>,
) -> Result<Answer, Reset> {
    if let Err(refusal) = check_host(&request) {
        return Ok(record.answer(answer::refusal(&refusal), Some(refusal)));
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

/// Answers a request. The answer holds its share of the budget until it was sent.
async fn hold(
    api: &Arc<Api>,
    record: Arc<RequestRecord>,
    served: Result<Answer, Refusal>,
) -> Answer {
    let held = match served {
        Ok(answer) => take_share(api, &record, answer).await,
        refused => refused,
    };
    match held {
        Ok(answer) => record.answer(answer, None),
        Err(refusal) => record.answer(answer::refusal(&refusal), Some(refusal)),
    }
}

async fn take_share(
    api: &Arc<Api>,
    record: &RequestRecord,
    mut answer: Answer,
) -> Result<Answer, Refusal> {
    let held = answer.extensions_mut().remove::<Held>();
    if let (Some(Held(bytes)), Some(user)) = (held, record.user()) {
        let share = api.budgets.answers.take_within(user, bytes, SHARE_WAIT_MAX);
        record.hold(share.await?);
    }
    Ok(answer)
}

/// Checks the user first, then the command, then its arguments, so that a client without
/// credentials cannot learn which commands or drives exist, and no body is read in vain.
async fn dispatch(
    api: &Arc<Api>,
    request: Request<Incoming>,
    record: &RequestRecord,
) -> Result<Answer, Refusal> {
    // Before the key is checked, because a page of another site must not use up the guesses of its
    // visitor.
    check_site(request.headers())?;
    // A request without a key is not a guess.
    let mut keys = request.headers().get_all(AUTHORIZATION).iter();
    let header = keys.next().ok_or_else(Refusal::auth)?;
    if keys.next().is_some() {
        return Err(Refusal::framing(
            "The request has several Authorization headers",
        ));
    }
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
        false => Some(
            api.budgets
                .requests
                .take_within(&user, 1, SHARE_WAIT_MAX)
                .await?,
        ),
    };
    carry_out(api, user, call, request).await
}

/// Carries out a command of `user`.
async fn carry_out(
    api: &Arc<Api>,
    user: Arc<str>,
    call: Call,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let format = Format::of_accept(text(request.headers(), &ACCEPT));
    match call {
        Call::List => Ok(drives::list(api.drives(move |m| *m.user == *user), format)),
        Call::ListStandard => Ok(drives::list(api.drives(Metadata::is_standard), format)),
        Call::InfoAll => Ok(drives::infos(api.drives(move |m| *m.user == *user), format)),
        Call::InfoStandard => Ok(drives::infos(api.drives(Metadata::is_standard), format)),
        Call::Info(id) => api.info(&user, id, false, format),
        Call::InfoFull(id) => api.info(&user, id, true, format),
        Call::Create => api.create(user, request, format).await,
        Call::Destroy(id) => api.destroy(&user, id).await,
        Call::Set(id) => api.set(&user, id, request, format).await,
        Call::Image(id, source, packing) => api.image(&user, id, source, packing).await,
        Call::CancelImage(id) => api.cancel_image(&user, id).await,
        Call::Read(id, offset, size) => api.read(&user, id, offset, size),
        Call::Digest(part) => api.digest(&user, part, format).await,
        Call::Extents(part) => api.extents(&user, part, format).await,
        Call::Write(id, offset) => api.write(&user, id, offset, request).await,
        Call::Server(call) => api.call_server(user, call, request, format).await,
        Call::Resource(call) => api.call_resource(user, call, request, format).await,
    }
}

/// hyper refuses most of what could be interpreted in two ways. This refuses the rest: another
/// transfer coding in addition to chunked.
fn check_framing(request: &Request<Incoming>) -> Result<(), Refusal> {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::framing("Transfer-Encoding is not chunked")),
    }
}
