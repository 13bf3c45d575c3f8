//! How long a run goes on while nothing succeeds, for everything that is not a chunk; and
//! what it says meanwhile. When to try again is [`Attempts`]' to decide; here is the clock
//! that it is given.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_channel::{Receiver, Sender, bounded};
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Client;
use crate::error::{Error, ErrorKind};
use crate::failure::Failure;
use crate::locks::lock;
use crate::monitor::{Event, Monitor, Waiting};
use crate::policy::{Attempts, Next, Operation, Outlook, Wait, Waits};

/// A request without an answer for this long is reported: until then it is slow.
const SILENCE: Duration = Duration::from_secs(15);
/// An attempt during an outage ends with it, but has at least this long.
const LAST_ATTEMPT: Duration = Duration::from_secs(2);
/// Events that wait to be reported; there is about one in ten seconds.
const EVENTS_MAX: usize = 64;
/// Later than any run ends.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The patience of one run. It belongs to everything of the run: requests that are made
/// on their own, chunks, and images on a web server. Clones share what was reported.
#[derive(Clone, Debug)]
pub struct Patience {
    max_outage: Duration,
    deadline: Option<Instant>,
    /// Who is waited for, as "the endpoint".
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
    /// A run that gives up when nothing succeeded for `max_outage`.
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

    /// The same for a run that ends after this time. That it ends is not decided here:
    /// it only does not begin a wait that the endpoint asks for and that ends later.
    #[must_use]
    pub fn until(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline.and_then(|time| Instant::now().checked_add(time));
        self
    }

    /// The same for another server, whose outages are its own.
    pub(crate) fn of(&self, who: &str) -> Self {
        Self {
            who: Arc::from(who),
            waits: Arc::default(),
            ..self.clone()
        }
    }

    /// How long an outage is borne.
    pub fn max_outage(&self) -> Duration {
        self.max_outage
    }

    /// The time that is left of the run, if it ends at some time.
    pub(crate) fn left(&self) -> Option<Duration> {
        let now = Instant::now();
        self.deadline.map(|at| at.saturating_duration_since(now))
    }

    /// Does `work`, and meanwhile tells `monitor` what is waited for.
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

    /// Tells what there is to tell now.
    pub(crate) fn report(&self, monitor: &mut dyn Monitor) {
        while let Ok(event) = self.events.1.try_recv() {
            monitor.event(&event);
        }
    }

    /// The next thing to tell. Dropping the future loses nothing.
    pub(crate) async fn event(&self) -> Event {
        match self.events.1.recv().await {
            Ok(event) => event,
            // Not while this one has a sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// Makes attempts at a request until one succeeds, none can, or the outage is too
    /// long. `operation` is not [`Operation::Create`], which is `Creation`'s.
    pub(crate) async fn call<T, F>(
        &self,
        client: &Client,
        operation: Operation,
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
                    let is_known = client.has_answered();
                    trial.after(operation, failure, is_known).await?;
                }
            }
        }
    }

    /// The attempts at a request, of which none was made.
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

    /// Something succeeded.
    pub(crate) fn answered(&self) {
        if let Some(time) = self.lock().succeeded(self.now()) {
            self.tell(Event::WaitOver {
                who: self.who.to_string(),
                time,
            });
        }
    }

    /// Something failed and is tried again in a while.
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
            self.tell(Event::Waiting(Waiting::after(
                failure,
                &self.who,
                wait,
                outlook.gives_up_at.saturating_sub(now),
            )));
        }
    }

    /// Nothing came for so long, and nothing failed.
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
            self.tell(Event::Waiting(waiting));
        }
    }

    fn tell(&self, event: Event) {
        // Without anybody who takes them they are lost.
        let _ = self.events.0.try_send(event);
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        // Nothing in it can be half done.
        lock(&self.waits)
    }
}

/// A request that got no answer to work with, though it was made again as often as that
/// could help.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// What came of the last attempt.
    pub(crate) failure: Failure,
    /// The longest outage that was borne, if there was one and that is why it ended.
    pub(crate) outage: Option<Duration>,
}

impl Unanswered {
    /// The error to show for it, as [`Failure::into_error`] makes it.
    pub(crate) fn into_error(self, what: &str) -> Error {
        match self.outage {
            None => self.failure.into_error(what),
            Some(max_outage) => gave_up(what, &self.failure, max_outage),
        }
    }
}

/// The error of a run that gives up for now. `what` was being done, as in "Cannot read
/// drive X".
pub(crate) fn gave_up(what: &str, failure: &Failure, max_outage: Duration) -> Error {
    let error = |why: String| Error::new(ErrorKind::Unavailable, format!("{what}: {why}"));
    match failure.retry_after() {
        Some(asked) if asked > SILENCE => {
            let asked = humantime::format_duration(Duration::from_secs(asked.as_secs()));
            let why = format!("{failure}, and asks to come back in {asked}");
            error(why).hint_to(format!(
                "Run the same command again then, or wait longer with: --max-outage {}",
                asked.to_string().replace(' ', "")
            ))
        }
        _ if max_outage.is_zero() => error(failure.to_string()),
        _ => {
            let time = humantime::format_duration(max_outage);
            error(format!("{failure}; nothing succeeded for {time}"))
        }
    }
}

/// Attempts at one request, or at several that follow each other and share an outage.
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

    /// Makes an attempt. During an outage it ends with it, whatever the request waits for.
    /// Whether an answer ends the outage the caller knows: [`answered`](Self::answered).
    pub(crate) async fn attempt<T>(
        &self,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        bounded_by(&self.patience, self.attempts.gives_up_at(), request).await
    }

    /// What was asked for came, or some of it: the outage is over.
    pub(crate) fn answered(&mut self) {
        self.attempts.answered();
        self.patience.answered();
    }

    /// Waits before another attempt at `operation`.
    ///
    /// # Errors
    /// If there is none.
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

/// Waits for a request, but during an outage, which has an end then, only until that.
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

    /// Calls something that fails with these, one after the other, then with the last one
    /// for ever, or until it succeeds at a time: what came of it, when, and what was told.
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
    async fn a_call_bears_an_outage_and_says_so() {
        let patience = Patience::new(900 * S);
        let (answer, took, lines) = call(&patience, refused(502, None), Some(400 * S)).await;
        assert!(
            answer.is_ok() && took >= 400 * S && took < 431 * S,
            "{took:?}"
        );
        let first = "502 from the endpoint (bad gateway), trying again for up to 15 min";
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
    async fn a_call_that_hangs_in_an_outage_ends_with_it() {
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
    async fn a_wait_that_does_not_fit_is_the_end_at_once_and_the_hint_is_a_flag() {
        let failure = refused(429, Some(3600 * S));
        let (answer, took, _) = call(&Patience::new(900 * S), failure, None).await;
        assert_eq!(took, Duration::ZERO);
        let error = answer.unwrap_err().into_error("Cannot look");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let said = "Cannot look: endpoint answered 429, and asks to come back in 1h";
        assert_eq!(error.to_string(), said);
        assert!(error.hint().unwrap().ends_with("--max-outage 1h"));
        let short = refused(429, Some(300 * S));
        let patience = Patience::new(900 * S);
        let (answer, took, lines) = call(&patience, short.clone(), Some(S)).await;
        assert!(answer.is_ok() && took >= 300 * S);
        assert_eq!(lines[0], "429 from the endpoint, waiting 300 s");
        let hurried = Patience::new(900 * S).until(Some(100 * S));
        let (answer, took, _) = call(&hurried, short, Some(S)).await;
        assert!(answer.is_err() && took.is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_reported_before_it_is_a_failure() {
        let patience = Patience::new(900 * S);
        let slow = || async {
            sleep(40 * S).await;
            Ok(())
        };
        let (client, mut lines) = (client(), Lines::default());
        let call = patience.call(&client, Operation::Read, slow);
        patience.watching(&mut lines, call).await.unwrap();
        let expected = [
            "The endpoint does not answer, waiting (nothing came for 15 s)",
            "over after 25s",
        ];
        assert_eq!(lines.0, expected);
    }
}
