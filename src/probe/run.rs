//! One probe: its drive, the questions, and the end of the drive.

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
/// Size that is asked for: room for the largest body, and no multiple of
/// anything, so that rounding shows (docs/dev/reference.md, 1.6).
const SIZE: u64 = 40 * MIB + 1000;
/// The same where odd sizes are refused.
const ROUND_SIZE: u64 = 40 * MIB;
/// Time for all questions together; removing the drive has its own.
const TIME: Duration = Duration::from_secs(100);
/// How long an outage may last before the drive is made, and when it is removed.
const OUTAGE: Duration = Duration::from_secs(90);

/// What came of a probe whose drive was made.
#[derive(Debug)]
pub struct Probed {
    /// The answers.
    pub findings: Findings,
    /// The drive that was used.
    pub drive: DriveId,
    /// Whether the drive is gone. The error's hint is the command that removes
    /// it.
    pub removal: Result<()>,
    /// Whether somebody asked to stop before all questions were asked.
    pub is_stopped: bool,
}

/// Asks the endpoint of `client` all questions with a new drive of 40 MiB, which
/// is destroyed at the end whatever happens; `stop` ends the questions early.
///
/// # Errors
/// If no drive could be made. Its hint tells how to look for one where that is
/// not certain.
pub async fn probe(client: &Client, monitor: &mut dyn Monitor, mut stop: Stop) -> Result<Probed> {
    let token = Uuid::new_v4().as_simple().to_string();
    let (mut abort, patience) = (stop.clone(), Patience::new(OUTAGE));
    // Whoever asks to stop now waits until it is clear whether there is a drive.
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
            let what = format!("The probe's drive {drive} is left");
            Err(Error::new(cause.kind(), what)
                .because(cause)
                .hint_to(format!(
                    "Remove it with: {}",
                    client.commands().call(&format!("drives {drive} destroy"))
                )))
        }
    };
    Ok(Probed {
        findings,
        drive,
        removal,
        is_stopped,
    })
}

/// Makes the drive, and tells the size that was asked for.
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
        token,
    };
    let mut made = create(client, &new(spec), false, patience).await;
    // Refused maybe for its size: then nothing was made.
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

/// What to do when nobody knows whether a drive was made.
fn may_be_left(client: &Client, token: &str) -> String {
    format!(
        "A drive may have been made all the same: look for {TOKEN_KEY} {token} with: {}",
        client.commands().call("drives info")
    )
}

/// Destroys the drive until it is gone, and gives the status of the answer if
/// there was one.
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
        // What is answered is one thing, whether the drive is gone another.
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
        // Destroying what is destroyed does no harm, as with a write.
        let again = trial.after(Operation::Write, failure, client.has_answered());
        let cannot = |unanswered: Unanswered| unanswered.into_error("Cannot destroy it");
        again.await.map_err(cannot)?;
    }
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
