//! The questions of a probe, and how to interpret what an endpoint does.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::notes::Notes;
use crate::api::{Client, Upload};
use crate::chunk::{Encoding, is_zero};
use crate::codec::gzip_zeros;
use crate::drive::{DriveId, DriveInfo};
use crate::driver::patience::{Patience, Trial};
use crate::failure::Failure;
use crate::findings::{
    Counts, Finding, GzipWrites, LargeReads, LargestBody, ParallelWrites, PastEnd, ReportedIn,
    Taken, WriteCounters,
};
use crate::policy::{Operation, TOKEN_KEY};
use crate::wire::{Properties, READ_BYTES_MAX};

/// Name of the drive.
pub(crate) const PROBE_NAME: &str = "openhosting-probe";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Maximum time for one question, so that one that hangs leaves time for others (`TIME` in
/// `run.rs`).
const TIME_EACH: Duration = Duration::from_secs(40);
/// How long an outage may last during one question. It is short because the probe does not fail
/// without an answer: the finding stays unknown.
const OUTAGE: Duration = Duration::from_secs(5);
/// How long concurrent writes are held open before their last bytes are sent: long enough that all
/// of them have begun.
const HOLD: Duration = Duration::from_secs(2);
/// How often to check for late counters, and the wait before each check.
const LATE_LOOKS: u32 = 3;
const LATE_WAIT: Duration = Duration::from_millis(500);

/// The offset on the drive at which each question writes. Unwritten ranges are read before any of
/// them.
const COUNTED_AT: u64 = 12 * MIB;
const GZIP_AT: u64 = 14 * MIB;
const PARALLEL_AT: u64 = 16 * MIB;
/// Bytes of the small writes.
const PIECE: u64 = 64 * KIB;
/// Sizes of bodies to try, one after the other: the default chunk, and larger ones that a user may
/// choose.
const BODIES: [u64; 3] = [5 * MIB, 16 * MIB, 32 * MIB];
/// Tried if the first of these is refused: the default limit of nginx.
const SMALL_BODY: u64 = MIB;

/// Why a question has no answer, in our own words only.
struct Why(String);

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        Self(match failure {
            Failure::Refused(refusal) => format!("endpoint answered {}", refusal.status),
            Failure::NotApi(_) => "the answer was not one of the API".to_owned(),
            Failure::WrongLength(_) => "the answer has the wrong length".to_owned(),
            Failure::Broken(_) => "the connection broke".to_owned(),
            Failure::Connect(_) | Failure::NoServer(_) | Failure::Barred(_) => {
                "no connection".to_owned()
            }
            Failure::Certificate(_) => "the certificate was not accepted".to_owned(),
            failure @ Failure::Stalled(_) => failure.to_string(),
        })
    }
}

impl From<&str> for Why {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

type Asked<T> = std::result::Result<T, Why>;

/// Asks one question, with a time limit.
async fn limited<T>(question: impl Future<Output = Asked<T>>) -> Finding<T> {
    match timeout(TIME_EACH, question).await {
        Ok(Ok(answer)) => Finding::Known(answer),
        Ok(Err(Why(why))) => Finding::Unknown(why),
        Err(_) => Finding::Unknown(format!("no answer within {} s", TIME_EACH.as_secs())),
    }
}

/// The status with which an endpoint clearly refuses this; `None` if the result may differ the next
/// time.
fn refused_with(failure: &Failure) -> Option<u16> {
    match failure {
        Failure::Refused(refusal) => match refusal.status {
            // Not all that `Transient` lists: some clouds refuse what they do not support with 500.
            401 | 403 | 408 | 409 | 425 | 429 | 502..=504 | 520..=524 => None,
            status => Some(status),
        },
        _ => None,
    }
}

/// Asks the questions.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) client: Client,
    pub(super) drive: DriveInfo,
    /// The token with which the drive was created.
    pub(super) token: String,
    pub(super) notes: Notes,
    pub(super) rng: fastrand::Rng,
}

impl Prober {
    /// Asks all questions: those that need an untouched drive first, and those that take longest
    /// last.
    pub(super) async fn run(mut self) {
        let notes = self.notes.clone();
        let found = limited(self.fresh_reads_zero()).await;
        notes.change(|f| f.findings.fresh_reads_zero = found);
        let found = limited(self.user_keys_created()).await;
        notes.change(|f| f.findings.user_keys_created = found);
        let found = limited(self.user_keys_set()).await;
        notes.change(|f| f.findings.user_keys_set = found);
        let found = limited(self.write_counters()).await;
        notes.change(|f| f.findings.write_counters = found);
        let found = limited(self.large_reads()).await;
        notes.change(|f| f.findings.large_reads = found);
        let found = limited(self.gzip_writes()).await;
        notes.change(|f| f.findings.gzip_writes = found);
        let found = limited(self.past_end()).await;
        notes.change(|f| f.findings.past_end = found);
        let found = limited(self.parallel_writes()).await;
        notes.change(|f| f.findings.parallel_writes = found);
        // The largest bodies may use up the remaining time.
        self.largest_body().await;
    }

    /// Makes a request, and repeats it after a transient failure.
    async fn ask<T, F>(
        &mut self,
        request: impl Fn(Client, DriveId) -> F,
    ) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, Failure>>,
    {
        let mut trial = Trial::of(&Patience::new(OUTAGE));
        loop {
            let failure = match request(self.client.clone(), self.drive.id).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            self.notes.note(&failure);
            tracing::debug!(%failure, "probe");
            let again = trial.after(Operation::Write, failure, true);
            again.await.map_err(|unanswered| unanswered.failure)?;
        }
    }

    async fn read(&mut self, offset: u64, len: u64) -> Asked<Bytes> {
        let read = |client: Client, drive| async move { client.read(drive, offset, len).await };
        Ok(self.ask(read).await?)
    }

    async fn info(&mut self) -> Asked<DriveInfo> {
        let info = |client: Client, drive| async move { client.info(drive).await };
        Ok(self.ask(info).await?)
    }

    /// Writes `body` at `offset`.
    async fn write(
        &mut self,
        offset: u64,
        encoding: Encoding,
        body: &Bytes,
    ) -> std::result::Result<u16, Failure> {
        let write = |client: Client, drive| {
            let body = Upload::Bytes(body.clone());
            async move { client.write_body(drive, offset, encoding, body).await }
        };
        self.ask(write).await
    }

    /// Random bytes, which are nowhere else by coincidence.
    fn random(&mut self, len: u64) -> Bytes {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.rng.fill(&mut bytes);
        bytes.into()
    }

    async fn fresh_reads_zero(&mut self) -> Asked<bool> {
        let end = self.drive.size;
        let ranges = [(0, MIB), (end / 2, MIB), (end.saturating_sub(PIECE), PIECE)];
        for (offset, len) in ranges {
            if !is_zero(&self.read(offset, len).await?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the token of the create request is in its answer, and in later ones.
    async fn user_keys_created(&mut self) -> Asked<bool> {
        let info = self.info().await?;
        let is_ours = |drive: &DriveInfo| {
            let value = drive.properties.get(TOKEN_KEY);
            value.is_some_and(|value| value.trim() == self.token)
        };
        Ok(is_ours(&self.drive) && is_ours(&info))
    }

    async fn user_keys_set(&mut self) -> Asked<bool> {
        const KEY: &str = "user:oh-probe";
        // With name and size, because existing clients always send them.
        let mut changes = Properties::new();
        let size = self.drive.size.to_string();
        for (key, value) in [("name", PROBE_NAME), ("size", &size), (KEY, "kept")] {
            let inserted = changes.insert(key, value);
            inserted.map_err(|_| Why::from("the keys cannot be sent"))?;
        }
        let changes = &changes;
        let set = |client: Client, drive| async move { client.set(drive, changes).await };
        match self.ask(set).await {
            Ok(()) => {}
            Err(failure) if refused_with(&failure) == Some(400) => return Ok(false),
            Err(failure) => return Err(failure.into()),
        }
        let info = self.info().await?;
        Ok(info
            .properties
            .get(KEY)
            .is_some_and(|value| value.trim() == "kept"))
    }

    async fn write_counters(&mut self) -> Asked<WriteCounters> {
        let plain = self.info().await?;
        let mut counters = WriteCounters {
            reported_in: ReportedIn::Info,
            counts: Counts::Nothing,
            is_late: false,
            start_bytes: None,
        };
        let mut start = counted(&plain);
        if start.is_none() {
            counters.reported_in = ReportedIn::InfoFull;
            start = counted(&self.info_full().await?);
        }
        let Some((start_bytes, _)) = start else {
            counters.reported_in = ReportedIn::Nowhere;
            return Ok(counters);
        };
        counters.start_bytes = Some(start_bytes);

        // One write, the same again, and a write of a part of a page.
        let body = self.random(PIECE);
        let writes = [
            (COUNTED_AT, body.clone()),
            (COUNTED_AT, body.clone()),
            (COUNTED_AT + 3, body.slice(..100)),
        ];
        let (mut exact, mut pages, mut nothing) = (true, true, true);
        for (offset, body) in writes {
            let len = body.len() as u64;
            let (bytes, requests) = self.count(offset, body, &mut counters).await?;
            exact &= (bytes, requests) == (len, 1);
            pages &= bytes == len.next_multiple_of(4 * KIB);
            nothing &= bytes == 0 && requests == 0;
        }
        counters.counts = match (exact, pages, nothing) {
            (true, ..) => Counts::Exact,
            (_, true, _) => Counts::Pages,
            (.., true) => Counts::Nothing,
            _ => Counts::Otherwise,
        };
        // Counters that never change are not late.
        counters.is_late &= counters.counts != Counts::Nothing;
        Ok(counters)
    }

    async fn info_full(&mut self) -> Asked<DriveInfo> {
        let info = |client: Client, drive| async move { client.info_full(drive).await };
        Ok(self.ask(info).await?)
    }

    async fn look(&mut self, place: ReportedIn) -> Asked<(u64, u64)> {
        let drive = match place {
            ReportedIn::Info => self.info().await?,
            ReportedIn::InfoFull | ReportedIn::Nowhere => self.info_full().await?,
        };
        counted(&drive).ok_or_else(|| "the counters were gone".into())
    }

    /// How much one write adds to the counters, in bytes and requests.
    async fn count(
        &mut self,
        offset: u64,
        body: Bytes,
        counters: &mut WriteCounters,
    ) -> Asked<(u64, u64)> {
        let expected = (body.len() as u64, 1);
        let mut trial = Trial::of(&Patience::new(OUTAGE));
        loop {
            let before = self.look(counters.reported_in).await?;
            // A second attempt would count as well, so after a failure everything is measured
            // again.
            let upload = Upload::Bytes(body.clone());
            let id = self.drive.id;
            let written = self
                .client
                .write_body(id, offset, Encoding::Identity, upload);
            if let Err(failure) = written.await {
                self.notes.note(&failure);
                let again = trial.after(Operation::Write, failure, true);
                again.await.map_err(|unanswered| unanswered.failure)?;
                continue;
            }
            let added = |after: (u64, u64)| {
                let bytes = after.0.saturating_sub(before.0);
                (bytes, after.1.saturating_sub(before.1))
            };
            let first = added(self.look(counters.reported_in).await?);
            let mut last = first;
            for _ in 0..LATE_LOOKS {
                if last == expected {
                    break;
                }
                sleep(LATE_WAIT).await;
                last = added(self.look(counters.reported_in).await?);
            }
            counters.is_late |= last != first;
            return Ok(last);
        }
    }

    async fn large_reads(&mut self) -> Asked<LargeReads> {
        Ok(LargeReads {
            above: self.large_read(READ_BYTES_MAX + 1).await?,
            double: self.large_read(2 * READ_BYTES_MAX).await?,
        })
    }

    async fn large_read(&mut self, len: u64) -> Asked<Taken> {
        let read = |client: Client, drive| async move { client.read_length(drive, 0, len).await };
        match self.ask(read).await {
            Ok(came) if came == len => Ok(Taken::Accepted),
            Ok(came) => Ok(Taken::Short(came)),
            Err(failure) => match refused_with(&failure) {
                Some(status) => Ok(Taken::Refused(status)),
                None => Err(failure.into()),
            },
        }
    }

    /// Writes zeros in gzip over other bytes: if the endpoint decompresses them, zeros are read.
    async fn gzip_writes(&mut self) -> Asked<GzipWrites> {
        let before = self.random(PIECE);
        self.write(GZIP_AT, Encoding::Identity, &before).await?;
        let packed = gzip_zeros(PIECE);
        match self.write(GZIP_AT, Encoding::Gzip, &packed).await {
            Ok(_) => {}
            Err(failure) => match refused_with(&failure) {
                Some(status) => return Ok(GzipWrites::Refused(status)),
                None => return Err(failure.into()),
            },
        }
        let after = self.read(GZIP_AT, PIECE).await?;
        if is_zero(&after) {
            Ok(GzipWrites::Decoded)
        } else if after.starts_with(&packed) {
            Ok(GzipWrites::Stored)
        } else {
            Err("neither the gzip nor its content was there afterwards".into())
        }
    }

    async fn past_end(&mut self) -> Asked<PastEnd> {
        const TAIL: u64 = 4 * KIB;
        let size = self.drive.size;
        let at = size.checked_sub(TAIL).ok_or("the drive is too small")?;
        let before = self.read(at, TAIL).await?;
        let body = self.random(2 * TAIL);
        let status = match self.write(at, Encoding::Identity, &body).await {
            Ok(status) => status,
            Err(failure) => match refused_with(&failure) {
                Some(status) => status,
                None => return Err(failure.into()),
            },
        };
        let after = self.read(at, TAIL).await?;
        Ok(PastEnd {
            status,
            is_written: after != before,
            grows: self.info().await?.size > size,
        })
    }

    async fn parallel_writes(&mut self) -> Asked<ParallelWrites> {
        let mut writes = ParallelWrites {
            accepted: 1,
            busy_from: None,
            loses_bytes: false,
        };
        for at_a_time in [2, 4, 8] {
            let (accepted, is_lost) = self.write_at_a_time(at_a_time).await?;
            writes.loses_bytes |= is_lost;
            if accepted < at_a_time {
                writes.accepted = writes.accepted.max(accepted);
                writes.busy_from = Some(at_a_time);
                break;
            }
            writes.accepted = at_a_time;
        }
        Ok(writes)
    }

    /// Begins `number` writes and completes them at the same time. Returns how many were accepted,
    /// if the others were busy, and whether bytes of accepted ones are missing.
    async fn write_at_a_time(&mut self, number: u32) -> Asked<(u32, bool)> {
        let mut trial = Trial::of(&Patience::new(OUTAGE));
        loop {
            let bodies: Vec<_> = (0..number).map(|_| self.random(PIECE)).collect();
            let answers = hold(&self.client, self.drive.id, &bodies).await;
            let mut failed = answers.iter().filter_map(|answer| match answer {
                Some(Err(failure)) if !is_busy(failure) => Some(failure.clone()),
                Some(_) => None,
                None => Some(Failure::Broken("a write broke off".into())),
            });
            let busy = answers
                .iter()
                .flatten()
                .find_map(|a| a.as_ref().err().cloned());
            let is_ok = |answer: &Option<_>| matches!(answer, Some(Ok(_)));
            let accepted = answers.iter().filter(|answer| is_ok(answer)).count();
            let failure = match failed.next() {
                Some(failure) => Some(failure),
                // If all of them are busy, something else is writing.
                None if accepted == 0 => busy,
                None => None,
            };
            if let Some(failure) = failure {
                self.notes.note(&failure);
                let again = trial.after(Operation::Write, failure, true);
                again.await.map_err(|unanswered| unanswered.failure)?;
                continue;
            }
            let there = self.read(PARALLEL_AT, PIECE * u64::from(number)).await?;
            let pieces = there.chunks(bodies.first().map_or(1, Bytes::len));
            let mut accepted_pieces = answers.iter().zip(&bodies).zip(pieces);
            let is_lost =
                accepted_pieces.any(|((answer, body), piece)| is_ok(answer) && body != piece);
            return Ok((u32::try_from(accepted).unwrap_or(number), is_lost));
        }
    }

    /// Recorded after each size, because the next one may never finish.
    async fn largest_body(&mut self) {
        let mut body = LargestBody {
            accepted_bytes: 0,
            refused_bytes: None,
            refused_status: None,
        };
        let bytes = self.random(BODIES.into_iter().max().unwrap_or_default());
        let size = self.drive.size;
        for len in BODIES.into_iter().filter(|len| *len <= size) {
            let piece = bytes.slice(..usize::try_from(len).unwrap_or_default());
            let written = self.write(0, Encoding::Identity, &piece).await;
            let found = match written {
                Ok(_) => {
                    body.accepted_bytes = len;
                    Finding::Known(body)
                }
                Err(failure) => {
                    body.refused_bytes = Some(len);
                    body.refused_status = refused_with(&failure);
                    // Breaking the connection is also a way to refuse.
                    let is_clear =
                        body.refused_status.is_some() || matches!(failure, Failure::Broken(_));
                    match is_clear || body.accepted_bytes > 0 {
                        true => Finding::Known(body),
                        false => Finding::Unknown(Why::from(failure).0),
                    }
                }
            };
            self.notes
                .change(|f| f.findings.largest_body = found.clone());
            if body.refused_bytes.is_none() {
                continue;
            }
            let piece = bytes.slice(..usize::try_from(SMALL_BODY).unwrap_or_default());
            if body.accepted_bytes == 0
                && found.known().is_some()
                && self.write(0, Encoding::Identity, &piece).await.is_ok()
            {
                body.accepted_bytes = SMALL_BODY;
                let found = Finding::Known(body);
                self.notes.change(|f| f.findings.largest_body = found);
            }
            return;
        }
    }
}

/// The values of `write:bytes` and `write:requests`, if reported.
fn counted(drive: &DriveInfo) -> Option<(u64, u64)> {
    let number = |key| drive.properties.get(key)?.trim().parse().ok();
    Some((number("write:bytes")?, number("write:requests")?))
}

fn is_busy(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal) if refusal.status == 409)
}

type Written = std::result::Result<u16, Failure>;

/// Writes `bodies` one behind the other, all concurrently: the first half of each, then nothing
/// until all but one were answered or [`HOLD`] is over, then the rest. If a task broke off, its
/// answer is missing.
async fn hold(client: &Client, drive: DriveId, bodies: &[Bytes]) -> Vec<Option<Written>> {
    let (go, wait) = watch::channel(false);
    let (mut writes, mut feeders) = (JoinSet::new(), JoinSet::new());
    for (number, body) in bodies.iter().enumerate() {
        let (sender, parts) = async_channel::bounded(2);
        let half = body.len() / 2;
        // Cannot fail, because the channel has room for two.
        let _ = sender.try_send(Ok(body.slice(..half)));
        let (rest, mut wait) = (body.slice(half..), wait.clone());
        feeders.spawn(async move {
            let _ = wait.wait_for(|go| *go).await;
            let _ = sender.send(Ok(rest)).await;
        });
        let len = body.len() as u64;
        let (client, offset) = (client.clone(), PARALLEL_AT + number as u64 * len);
        writes.spawn(async move {
            let upload = Upload::Stream { len, parts };
            let written = client.write_body(drive, offset, Encoding::Identity, upload);
            (number, written.await)
        });
    }
    let mut answers: Vec<Option<Written>> = vec![None; bodies.len()];
    let mut left = bodies.len();
    let held = sleep(HOLD);
    tokio::pin!(held);
    while left > 0 {
        let is_held = left > 1 && !*go.borrow();
        tokio::select! {
            Some(joined) = writes.join_next() => {
                left -= 1;
                if let Ok((number, written)) = joined {
                    answers[number] = Some(written);
                }
            }
            () = &mut held, if is_held => drop(go.send(true)),
        }
        if left <= 1 {
            let _ = go.send(true);
        }
    }
    answers
}
