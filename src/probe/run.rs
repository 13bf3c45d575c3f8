//! One probe: creates its drive, asks the questions, and removes the drive.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use super::notes::{Found, Notes};
use super::questions::{PROBE_NAME, Prober};
use crate::api::Client;
use crate::drive::{DriveId, DriveSpec};
use crate::driver::create_drive::{Created, NewDrive, NotCreated, create};
use crate::driver::patience::{Patience, Trial, Unanswered};
use crate::driver::stop::{Stop, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::findings::{Finding, Findings, Size};
use crate::monitor::{Event, Monitor};
use crate::policy::{Operation, TOKEN_KEY};
use crate::wire::Properties;

const MIB: u64 = 1024 * 1024;
/// The requested size: room for the largest body, and not a multiple of anything, so that rounding
/// is visible (docs/dev/reference.md, 1.6).
const SIZE: u64 = 40 * MIB + 1000;
/// The size to request if odd sizes are refused.
const ROUND_SIZE: u64 = 40 * MIB;
/// Maximum time for all questions; removing the drive has its own limit. Together they take at most
/// the two minutes that the help of the command states, unless the endpoint does not answer.
const TIME: Duration = Duration::from_secs(100);
/// How long an outage may last before the drive is created, and when it is removed.
const OUTAGE: Duration = Duration::from_secs(90);

/// The result of a probe whose drive was created.
#[derive(Debug)]
pub struct Probed {
    /// The answers.
    pub findings: Findings,
    /// The drive that was used.
    pub drive: DriveId,
    /// Whether the drive was removed. The hint of the error contains the command that removes it.
    pub removal: Result<()>,
    /// Whether the probe was asked to stop before all questions were asked.
    pub is_stopped: bool,
}

/// Asks the endpoint of `client` all questions, using a new drive of 40 MiB that is destroyed at
/// the end whatever happens. `stop` ends the questions early.
///
/// # Errors
/// If no drive could be created. If that is uncertain, the hint says how to look for it.
pub async fn probe(client: &Client, monitor: &mut dyn Monitor, mut stop: Stop) -> Result<Probed> {
    let token = Uuid::new_v4().as_simple().to_string();
    let (mut abort, patience) = (stop.clone(), Patience::new(OUTAGE));
    // A stop request now waits until it is certain whether there is a drive.
    let (created, asked) = tokio::select! {
        created = patience.watching(monitor, make(client, &token, &patience)) => created?,
        () = abort.asked_at_once() => return Err(stopped().hint_to(may_be_left(client, &token))),
    };
    let drive = created.drive.id;
    monitor.event(&Event::Drive {
        id: drive,
        size: created.drive.size,
        is_new: true,
    });

    let mut findings = Findings::unknown(client.endpoint().to_string(), "there was no time for it");
    findings.probed_at_s = seconds_since_1970();
    findings.size = Finding::Known(Size {
        asked_bytes: asked,
        given_bytes: created.drive.size,
    });
    let lost = || "the answer to the create was lost".to_owned();
    findings.create_status = created.status.ok_or_else(lost).into();
    let notes = Notes(Arc::new(Mutex::new(Found {
        findings,
        retry_after: None,
    })));
    let prober = Prober {
        client: client.clone(),
        drive: created.drive,
        token,
        notes: notes.clone(),
        rng: fastrand::Rng::new(),
    };
    let mut questions = JoinSet::new();
    questions.spawn(prober.run());
    let is_stopped = tokio::select! {
        biased;
        () = stop.asked() => true,
        _ = questions.join_next() => false,
        () = sleep(TIME) => false,
    };
    questions.shutdown().await;

    let removed = tokio::select! {
        removed = patience.watching(monitor, remove(client, drive, &notes, &patience)) => removed,
        () = abort.asked_at_once() => Err(stopped()),
    };
    let Found {
        mut findings,
        retry_after,
    } = notes.take();
    let none = || "no 429 or 503 was answered".to_owned();
    findings.retry_after = retry_after.ok_or_else(none).into();
    let removal = match removed {
        Ok(status) => {
            let lost = || "the answer to the destroy was lost".to_owned();
            findings.destroy_status = status.ok_or_else(lost).into();
            Ok(())
        }
        Err(cause) => {
            findings.destroy_status = Finding::Unknown("the drive could not be destroyed".into());
            Err(is_left(client, drive, cause))
        }
    };
    Ok(Probed {
        findings,
        drive,
        removal,
        is_stopped,
    })
}

/// The error for a drive that could not be removed. Another probe would create another drive, so it
/// is no reason to repeat the command.
fn is_left(client: &Client, drive: DriveId, cause: Error) -> Error {
    let kind = match cause.kind() {
        ErrorKind::Unavailable => ErrorKind::Rejected,
        kind => kind,
    };
    let removal = client.commands().removal(drive);
    Error::new(kind, format!("The probe's drive {drive} is left"))
        .because(cause)
        .hint_to(format!("Run {removal} to remove it"))
}

/// Creates the drive, and returns the size that was requested.
async fn make(client: &Client, token: &str, patience: &Patience) -> Result<(Created, u64)> {
    let spec_of = |size| DriveSpec {
        name: PROBE_NAME.to_owned(),
        size,
        tier: "disk".to_owned(),
        shared: false,
    };
    let keys = Properties::new();
    let (mut spec, round) = (&spec_of(SIZE), &spec_of(ROUND_SIZE));
    let new = |spec| NewDrive {
        spec,
        keys: &keys,
        optional: &[],
        token,
    };
    let mut made = create(client, &new(spec), false, patience).await;
    // It may have been refused for its size; then no drive was created.
    if let Err(NotCreated { error, is_unclear }) = &made
        && (error.kind(), *is_unclear) == (ErrorKind::Rejected, false)
    {
        spec = round;
        made = create(client, &new(spec), false, patience).await;
    }
    match made {
        Ok(created) => Ok((created, spec.size)),
        Err(not) if not.is_unclear => Err(not.error.hint_to(may_be_left(client, token))),
        Err(not) => Err(not.error),
    }
}

/// What to do if it is unknown whether a drive was created.
fn may_be_left(client: &Client, token: &str) -> String {
    format!(
        "A drive may have been made all the same: look for {TOKEN_KEY} {token} with: {}",
        client.commands().call("drives info")
    )
}

/// Destroys the drive, repeatedly until it is gone, and returns the status of the answer if there
/// was one.
async fn remove(
    client: &Client,
    drive: DriveId,
    notes: &Notes,
    patience: &Patience,
) -> Result<Option<u16>> {
    let mut trial = Trial::of(patience);
    let mut status = None;
    let is_missing = |failure: &Failure| matches!(failure, Failure::Refused(r) if r.status == 404);
    loop {
        // The answer is one result; whether the drive is gone is another.
        let destroyed = trial.attempt(client.destroy(drive)).await;
        let looked = trial.attempt(client.info(drive)).await;
        status = status.or(destroyed.as_ref().ok().copied());
        let failure = match (destroyed, looked) {
            (_, Err(failure)) if is_missing(&failure) => return Ok(status),
            (Err(failure), Err(_)) if is_missing(&failure) => return Ok(status),
            (Err(failure), _) | (Ok(_), Err(failure)) => failure,
            (Ok(_), Ok(_)) => Failure::NotApi("the drive is still there".into()),
        };
        notes.note(&failure);
        tracing::debug!(%failure, "destroy");
        // Destroying a drive again is harmless, as for a write.
        let again = trial.after(Operation::Write, failure, client.has_answered());
        let cannot = |unanswered: Unanswered| unanswered.into_error("Cannot destroy it");
        again.await.map_err(cannot)?;
    }
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
