//! How long a run continues without success, for every request that is not about a chunk, and what
//! it reports meanwhile. [`Attempts`] decides when to try again; this module provides the clock.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_channel::{Receiver, Sender, bounded};
use tokio::time::{Instant, sleep, sleep_until};

use crate::advice::Remedy;
use crate::amounts::duration;
use crate::api::Client;
use crate::error::{Error, ErrorKind};
use crate::failure::{CANNOT_CONNECT, Failure};
use crate::locks::lock;
use crate::monitor::{Event, Monitor, Waiting};
use crate::policy::{Attempts, Next, Operation, Outlook, Wait, Waits};
use openhosting_base::advice;

/// A silence of this long while requests are in flight is reported; until then they count as slow.
/// A longer wait that the endpoint asks for is worth a hint. The time is a choice.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// An attempt during an outage ends with the outage, but may take at least this long: otherwise an
/// attempt that begins shortly before the end could not succeed.
const LAST_ATTEMPT: Duration = Duration::from_secs(2);
/// Maximum events that wait to be reported; there is about one in ten seconds.
const EVENTS_MAX: usize = 64;
/// Later than the end of any run.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The patience of one run. All requests of the run share it: chunks, other requests, and those for
/// images on a web server. Clones share what was reported.
#[derive(Clone, Debug)]
pub struct Patience {
    max_outage: Duration,
    deadline: Option<Instant>,
    /// What the run waits for, such as "the endpoint".
    who: Arc<str>,
    began: Instant,
    waits: Arc<Mutex<Waits>>,
    events: (Sender<Event>, Receiver<Event>),
}

impl PartialEq for Patience {
    fn eq(&self, other: &Self) -> bool {
        (self.max_outage, self.deadline) == (other.max_outage, other.deadline)
    }
}

impl Eq for Patience {}

impl Default for Patience {
    fn default() -> Self {
        Self::new(Duration::from_secs(15 * 60))
    }
}

impl Patience {
    /// Patience that gives up after `max_outage` without success.
    pub fn new(max_outage: Duration) -> Self {
        Self {
            max_outage,
            deadline: None,
            who: Arc::from("the endpoint"),
            began: Instant::now(),
            waits: Arc::default(),
            events: bounded(EVENTS_MAX),
        }
    }

    /// This patience for a run that ends at this time. It does not end the run; it only avoids a
    /// wait that the endpoint asks for and that would end later.
    #[must_use]
    pub fn until(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline.and_then(|time| Instant::now().checked_add(time));
        self
    }

    /// This patience for another server, `who` in messages. Its outages are separate.
    pub(crate) fn of(&self, who: &str) -> Self {
        Self {
            who: Arc::from(who),
            waits: Arc::default(),
            ..self.clone()
        }
    }

    /// How long an outage may last.
    pub fn max_outage(&self) -> Duration {
        self.max_outage
    }

    /// The time that is left of the run, if it ends at a fixed time.
    pub(crate) fn left(&self) -> Option<Duration> {
        let now = Instant::now();
        self.deadline.map(|at| at.saturating_duration_since(now))
    }

    /// Does `work`, and reports meanwhile to `monitor` what it waits for.
    pub async fn watching<T>(&self, monitor: &mut dyn Monitor, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                event = self.event() => monitor.event(&event),
                done = &mut work => break done,
            }
        };
        self.report(monitor);
        done
    }

    /// Reports pending events.
    pub(crate) fn report(&self, monitor: &mut dyn Monitor) {
        while let Ok(event) = self.events.1.try_recv() {
            monitor.event(&event);
        }
    }

    /// The next event. Cancel-safe: dropping the future loses nothing.
    pub(crate) async fn event(&self) -> Event {
        match self.events.1.recv().await {
            Ok(event) => event,
            // Cannot happen while `self` has a sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// Repeats a request to the endpoint, as [`retry`](Self::retry) does.
    pub(crate) async fn call<T, F>(
        &self,
        client: &Client,
        operation: Operation,
        request: impl FnMut() -> F,
    ) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let is_known = |_: &Failure| client.has_answered();
        self.retry(operation, is_known, request).await
    }

    /// Repeats a request until it succeeds, cannot succeed, or the outage lasts too long.
    /// `is_known` is whether the server has answered before, so that an answer of something else
    /// is worth another attempt. Not for [`Operation::Create`], which
    /// [`Creation`](crate::policy::Creation) handles, and not for what makes progress by parts,
    /// which uses a [`Trial`].
    pub(crate) async fn retry<T, F>(
        &self,
        operation: Operation,
        is_known: impl Fn(&Failure) -> bool,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut trial = Trial::of(self);
        loop {
            match trial.attempt(request()).await {
                Ok(answer) => {
                    trial.answered();
                    return Ok(answer);
                }
                Err(failure) => {
                    let is_known = is_known(&failure);
                    trial.after(operation, failure, is_known).await?;
                }
            }
        }
    }

    /// New attempts at a request.
    pub(crate) fn attempts(&self) -> Attempts {
        let deadline = self
            .deadline
            .map(|at| at.saturating_duration_since(self.began));
        Attempts::new(self.max_outage).until(deadline)
    }

    /// Time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reports that a request succeeded.
    pub(crate) fn answered(&self) {
        if let Some(time) = self.lock().succeeded(self.now()) {
            self.queue(Event::WaitOver {
                who: self.who.to_string(),
                time,
            });
        }
    }

    /// Reports that a request failed and will be repeated.
    pub(crate) fn failed(&self, failure: &Failure, outlook: Outlook, now: Duration) {
        let why = Waiting::why(failure);
        let ours = self.now();
        let wait = outlook.next.saturating_sub(now);
        let reported = Wait {
            why: &why,
            next: ours.saturating_add(wait),
            is_asked: failure.retry_after().is_some(),
            is_outage: outlook.is_outage,
        };
        if self.lock().failed(reported, ours) {
            self.queue(Event::Waiting(Waiting::after(
                failure,
                &self.who,
                wait,
                outlook.gives_up_at.saturating_sub(now),
            )));
        }
    }

    /// Reports that no byte has moved for this long, although nothing failed.
    pub(crate) fn silent(&self, silence: Duration) {
        let ours = self.now();
        let reported = Wait {
            why: "silence",
            next: ours,
            is_asked: false,
            is_outage: true,
        };
        if self.lock().failed(reported, ours) {
            let waiting = Waiting::silent(&self.who, silence);
            self.queue(Event::Waiting(waiting));
        }
    }

    /// Queues an event until it is reported to a monitor.
    fn queue(&self, event: Event) {
        // Without a receiver, events are dropped.
        let _ = self.events.0.try_send(event);
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        // Plain data that is always consistent.
        lock(&self.waits)
    }
}

/// A request that failed, although it was repeated as often as that could help.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// The failure of the last attempt.
    pub(crate) failure: Failure,
    /// How long an outage may last, if the request ended because one lasted longer.
    pub(crate) outage: Option<Duration>,
}

impl Unanswered {
    /// The error to report, as [`Failure::into_error`] creates it.
    pub(crate) fn into_error(self, what: &str) -> Error {
        self.error(what, Failure::into_error)
    }

    /// As [`Failure::into_error_without_drive`] creates it.
    pub(crate) fn into_error_without_drive(self, what: &str) -> Error {
        self.error(what, Failure::into_error_without_drive)
    }

    fn error(self, what: &str, of: impl FnOnce(Failure, &str) -> Error) -> Error {
        match self.outage {
            None => of(self.failure, what),
            Some(max_outage) => gave_up(what, &self.failure, max_outage),
        }
    }
}

/// The error of a run that gives up for now. `what` is what was being done, as in "Cannot read
/// drive X".
pub(crate) fn gave_up(what: &str, failure: &Failure, max_outage: Duration) -> Error {
    let error = |why: String| {
        let error = Error::new(ErrorKind::Unavailable, format!("{what}: {why}"));
        match failure {
            Failure::Connect(_) => error.hint_to(CANNOT_CONNECT),
            _ => error,
        }
    };
    match failure.retry_after() {
        Some(asked) if asked > SILENCE => {
            let time = duration(asked);
            let why = format!("{failure}, and asks to come back in {time}");
            error(why).hint_to(advice![
                "Run the same command again then, or wait longer with: ",
                Remedy::LongerOutage(asked),
            ])
        }
        _ if max_outage.is_zero() => error(failure.to_string()),
        _ => {
            let time = duration(max_outage);
            error(format!("{failure}; nothing succeeded for {time}"))
        }
    }
}

/// Attempts at one request, or at several consecutive ones that share an outage.
pub(crate) struct Trial {
    patience: Patience,
    attempts: Attempts,
    rng: fastrand::Rng,
}

impl Trial {
    pub(crate) fn of(patience: &Patience) -> Self {
        Self {
            patience: patience.clone(),
            attempts: patience.attempts(),
            rng: fastrand::Rng::new(),
        }
    }

    /// Makes an attempt. During an outage, the attempt ends with the outage, whatever the request
    /// waits for. The caller reports whether the answer ends the outage: see
    /// [`answered`](Self::answered).
    pub(crate) async fn attempt<T>(
        &self,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        bounded_by(&self.patience, self.attempts.gives_up_at(), request).await
    }

    /// Reports that at least a part of the request succeeded, which ends an outage.
    pub(crate) fn answered(&mut self) {
        self.attempts.answered();
        self.patience.answered();
    }

    /// Waits before another attempt at `operation`.
    ///
    /// # Errors
    /// If no other attempt should be made.
    pub(crate) async fn after(
        &mut self,
        operation: Operation,
        failure: Failure,
        is_known: bool,
    ) -> Result<(), Unanswered> {
        let now = self.patience.now();
        let rng = &mut self.rng;
        let next = self
            .attempts
            .failed(operation, &failure, is_known, now, rng);
        let wait = match next {
            Next::Again(wait) => wait,
            Next::Refused | Next::Unclear => {
                let outage = None;
                return Err(Unanswered { failure, outage });
            }
            Next::GaveUp => {
                let outage = Some(self.attempts.max_outage());
                return Err(Unanswered { failure, outage });
            }
        };
        tracing::debug!(%failure, ?wait, "attempt");
        waits_for(&self.patience, &failure, wait, self.attempts.gives_up_at());
        sleep(wait).await;
        Ok(())
    }
}

/// Reports that another attempt is made after `wait`.
pub(crate) fn waits_for(
    patience: &Patience,
    failure: &Failure,
    wait: Duration,
    gives_up_at: Option<Duration>,
) {
    let now = patience.now();
    let next = now.saturating_add(wait);
    let outlook = Outlook {
        next,
        gives_up_at: gives_up_at.unwrap_or(next),
        is_outage: false,
    };
    patience.failed(failure, outlook, now);
}

/// Waits for a request; during an outage that will end at a known time, only until then.
pub(crate) async fn bounded_by<T>(
    patience: &Patience,
    gives_up_at: Option<Duration>,
    request: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    let far = began + FAR;
    let end = gives_up_at.map_or(far, |at| {
        let end = patience.began.checked_add(at).unwrap_or(far);
        end.max(began + LAST_ATTEMPT)
    });
    let mut request = pin!(request);
    let mut is_silent = false;
    loop {
        tokio::select! {
            // An answer counts even if it comes at the last moment.
            biased;
            answer = &mut request => return answer,
            () = sleep_until(end) => return Err(Failure::Stalled(began.elapsed())),
            () = sleep(SILENCE), if !is_silent => {
                is_silent = true;
                patience.silent(began.elapsed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ClientConfig;
    use crate::failure::Refusal;

    const S: Duration = Duration::from_secs(1);

    fn refused(status: u16, retry_after: Option<Duration>) -> Failure {
        Failure::Refused(Refusal {
            status,
            error: None,
            message: String::new(),
            retry_after,
        })
    }

    fn client() -> Client {
        let endpoint = "https://127.0.0.1:1/".parse().unwrap();
        let credentials = crate::Credentials::new("u", "k").unwrap();
        Client::new(endpoint, &credentials, &ClientConfig::default()).unwrap()
    }

    #[derive(Default)]
    struct Lines(Vec<String>);

    impl Monitor for Lines {
        fn event(&mut self, event: &Event) {
            match event {
                Event::Waiting(waiting) => self.0.push(waiting.to_string()),
                Event::WaitOver { time, .. } => self.0.push(format!("over after {time:?}")),
                _ => {}
            }
        }
    }

    /// Calls something that fails with these failures, one after the other, and then for ever with
    /// the last, or until it succeeds at a given time. Returns the result, the time, and what was
    /// reported.
    async fn call(
        patience: &Patience,
        failure: Failure,
        good_after: Option<Duration>,
    ) -> (Result<(), Unanswered>, Duration, Vec<String>) {
        let began = Instant::now();
        let request = || {
            let failure = failure.clone();
            async move {
                match good_after.is_some_and(|at| began.elapsed() >= at) {
                    true => Ok(()),
                    false => Err(failure),
                }
            }
        };
        let (client, mut lines) = (client(), Lines::default());
        let call = patience.call(&client, Operation::Read, request);
        let answer = patience.watching(&mut lines, call).await;
        (answer, began.elapsed(), lines.0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_survives_and_reports_an_outage() {
        let patience = Patience::new(900 * S);
        let (answer, took, lines) = call(&patience, refused(502, None), Some(400 * S)).await;
        assert!(
            answer.is_ok() && took >= 400 * S && took < 431 * S,
            "{took:?}"
        );
        let first = "502 from the endpoint (bad gateway), trying again for up to 15m";
        assert_eq!(lines.first().map(String::as_str), Some(first));
        assert!(
            lines
                .last()
                .is_some_and(|line| line.starts_with("over after"))
        );
        assert!((5..10).contains(&lines.len()), "{lines:#?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_gives_up_when_the_outage_is_too_long() {
        let failure = Failure::Connect("refused".into());
        let (answer, took, lines) = call(&Patience::new(10 * S), failure, None).await;
        assert_eq!(took, 10 * S);
        let error = answer.unwrap_err().into_error("Cannot look");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let said = "Cannot look: cannot connect to refused; nothing succeeded for 10s";
        assert_eq!(error.to_string(), said);
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_call_does_not_outlast_the_patience() {
        let patience = Patience::new(10 * S);
        let (began, mut calls) = (Instant::now(), 0);
        let request = || {
            calls += 1;
            let is_first = calls == 1;
            async move {
                if !is_first {
                    std::future::pending::<()>().await;
                }
                Err::<(), _>(Failure::Stalled(30 * S))
            }
        };
        let answer = patience.call(&client(), Operation::Read, request).await;
        assert!(answer.unwrap_err().outage.is_some());
        assert!(began.elapsed() <= 13 * S, "{:?}", began.elapsed());
        assert_eq!(calls, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_requested_wait_beyond_the_patience_ends_the_call_with_a_hint() {
        let failure = refused(429, Some(3600 * S));
        let (answer, took, _) = call(&Patience::new(900 * S), failure, None).await;
        assert_eq!(took, Duration::ZERO);
        let error = answer.unwrap_err().into_error("Cannot look");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let said = "Cannot look: endpoint answered 429, and asks to come back in 1h";
        assert_eq!(error.to_string(), said);
        let longer = Remedy::LongerOutage(Duration::from_secs(3600));
        assert!(error.hint().unwrap().remedies().eq([&longer]));
        let short = refused(429, Some(300 * S));
        let patience = Patience::new(900 * S);
        let (answer, took, lines) = call(&patience, short.clone(), Some(S)).await;
        assert!(answer.is_ok() && took >= 300 * S);
        assert_eq!(lines[0], "429 from the endpoint, waiting 5m");
        let hurried = Patience::new(900 * S).until(Some(100 * S));
        let (answer, took, _) = call(&hurried, short, Some(S)).await;
        assert!(answer.is_err() && took.is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_is_reported_before_the_call_fails() {
        let patience = Patience::new(900 * S);
        let slow = || async {
            sleep(40 * S).await;
            Ok(())
        };
        let (client, mut lines) = (client(), Lines::default());
        let call = patience.call(&client, Operation::Read, slow);
        patience.watching(&mut lines, call).await.unwrap();
        let expected = [
            "The endpoint has sent nothing for 15s, waiting",
            "over after 25s",
        ];
        assert_eq!(lines.0, expected);
    }
}
