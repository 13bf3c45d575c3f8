//! Making exactly one drive, whatever becomes of the answers. The decisions are
//! [`Creation`]'s; here is what they act on.

use super::patience::{Patience, bounded_by, gave_up, waits_for};
use crate::api::Client;
use crate::drive::{DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::policy::{CreateStep, Creation, TOKEN_KEY};
use crate::wire::Properties;

/// A drive that was made just now.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) drive: DriveInfo,
    /// The status of the answer, unless it was lost.
    pub(crate) status: Option<u16>,
}

/// No drive, as far as is known.
#[derive(Debug)]
pub(crate) struct NotCreated {
    pub(crate) error: Error,
    /// Whether one may have been made all the same.
    pub(crate) is_unclear: bool,
}

impl From<Error> for NotCreated {
    fn from(error: Error) -> Self {
        Self {
            error,
            is_unclear: false,
        }
    }
}

/// Creates a drive as `spec` says, bearing `token`. If an earlier run may have
/// done so with this very token, its drive is looked for first.
pub(crate) async fn create(
    client: &Client,
    spec: &DriveSpec,
    token: &str,
    is_resumed: bool,
    patience: &Patience,
) -> Result<Created, NotCreated> {
    let keys = Properties::new();
    create_bearing(client, spec, &keys, token, is_resumed, patience).await
}

/// As [`create`], a drive that bears these `keys` from its first moment.
pub(crate) async fn create_bearing(
    client: &Client,
    spec: &DriveSpec,
    keys: &Properties,
    token: &str,
    is_resumed: bool,
    patience: &Patience,
) -> Result<Created, NotCreated> {
    let mut body = spec.to_properties()?;
    let mut set = |key: &str, value: &str| {
        body.insert(key, value)
            .map_err(|error| Error::new(ErrorKind::Bug, "Cannot describe the drive").because(error))
    };
    for (key, value) in keys {
        set(key, value)?;
    }
    set(TOKEN_KEY, token)?;

    let what = format!("Failed to create drive of size {}", spec.size);
    let mut creation = Creation::new(patience.attempts());
    let mut rng = fastrand::Rng::new();
    let mut step = if is_resumed {
        creation.resume()
    } else {
        CreateStep::Post {
            after: std::time::Duration::ZERO,
        }
    };
    let mut last = None;
    let mut is_unclear = is_resumed;
    loop {
        step = match step {
            CreateStep::Post { after } => {
                tokio::time::sleep(after).await;
                let create = client.create_with_status(&body);
                match bounded_by(patience, creation.gives_up_at(), create).await {
                    Ok((drive, status)) => {
                        patience.answered();
                        let status = Some(status);
                        return Ok(Created { drive, status });
                    }
                    Err(failure) => {
                        tracing::debug!(%failure, "create");
                        is_unclear |= failure.is_ambiguous();
                        let (is_known, now) = (client.has_answered(), patience.now());
                        let step = creation.post_failed(&failure, is_known, now, &mut rng);
                        announce(patience, &failure, &step, &creation);
                        last = Some(failure);
                        step
                    }
                }
            }
            CreateStep::Look { after } => {
                tokio::time::sleep(after).await;
                let drives = client.drives();
                match bounded_by(patience, creation.gives_up_at(), drives).await {
                    Ok(drives) => {
                        patience.answered();
                        let (found, alike) = candidates(drives, spec, token);
                        let ids: Vec<_> = found.iter().map(|drive| drive.id).collect();
                        match creation.looked(&ids, &alike) {
                            CreateStep::Adopt(id) => {
                                // It is among those found.
                                if let Some(drive) = found.into_iter().find(|d| d.id == id) {
                                    tracing::info!(drive = %id, "found the drive of a lost answer");
                                    let status = None;
                                    return Ok(Created { drive, status });
                                }
                                CreateStep::GiveUp { is_outage: false }
                            }
                            step => step,
                        }
                    }
                    Err(failure) => {
                        let (is_known, now) = (client.has_answered(), patience.now());
                        let step = creation.look_failed(&failure, is_known, now, &mut rng);
                        announce(patience, &failure, &step, &creation);
                        // What became of asking tells more.
                        last.get_or_insert(failure);
                        step
                    }
                }
            }
            CreateStep::GiveUp { is_outage: true } if let Some(why) = &last => {
                let error = gave_up(&what, why, patience.max_outage());
                return Err(NotCreated { error, is_unclear });
            }
            CreateStep::Adopt(_) | CreateStep::GiveUp { .. } => {
                let why = last.unwrap_or_else(|| Failure::NotApi("it names no drive".into()));
                let error = why.into_error(&what);
                return Err(NotCreated { error, is_unclear });
            }
            CreateStep::Doubt(drives) => {
                let list: Vec<_> = drives.iter().map(ToString::to_string).collect();
                let which = format!(
                    "{what}: the answer was lost, and any of these drives may be the one: {}",
                    list.join(" ")
                );
                let error = Error::new(ErrorKind::Conflict, which).hint_to(format!(
                    "Nothing was destroyed. Upload to the right one with -d UUID; look at one with: {}",
                    client.commands().call("drives UUID info")
                ));
                let is_unclear = true;
                return Err(NotCreated { error, is_unclear });
            }
        };
    }
}

/// Reports the wait before the next step, unless there is none.
fn announce(patience: &Patience, failure: &Failure, step: &CreateStep, creation: &Creation) {
    if let CreateStep::Post { after } | CreateStep::Look { after } = step {
        waits_for(patience, failure, *after, creation.gives_up_at());
    }
}

type Found = (Vec<DriveInfo>, Vec<crate::drive::DriveId>);

/// The drives that bear the token, and those that look like ours and bear none.
fn candidates(drives: Vec<DriveInfo>, spec: &DriveSpec, token: &str) -> Found {
    let (mut found, mut alike) = (Vec::new(), Vec::new());
    for drive in drives {
        match drive.properties.get(TOKEN_KEY) {
            Some(theirs) if theirs.trim() == token => found.push(drive),
            Some(_) => {}
            None => {
                let is_alike = drive.size >= spec.size
                    && drive.properties.get("name") == Some(spec.name.as_str());
                if is_alike {
                    alike.push(drive.id);
                }
            }
        }
    }
    (found, alike)
}
