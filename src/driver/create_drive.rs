//! Creates exactly one drive, even if answers are lost. [`Creation`] makes the decisions; this
//! module performs them.

use std::ops::ControlFlow;

use super::patience::{Patience, bounded_by, gave_up, waits_for};
use crate::api::Client;
use crate::drive::{DriveInfo, DriveSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::policy::{CreateStep, Creation, TOKEN_KEY};
use crate::wire::Properties;

/// A drive that was just created.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) drive: DriveInfo,
    /// The status of the answer, unless that was lost.
    pub(crate) status: Option<u16>,
    /// Whether it was created with the [`NewDrive::optional`] keys; `None` if the answer was lost,
    /// and the keys of the drive are those that the endpoint lists.
    pub(crate) has_optional: Option<bool>,
}

/// No drive was created, as far as is known.
#[derive(Debug)]
pub(crate) struct NotCreated {
    pub(crate) error: Error,
    /// Whether a drive may have been created nevertheless.
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

/// A drive to create, with keys that it has from the first moment.
pub(crate) struct NewDrive<'a> {
    pub(crate) spec: &'a DriveSpec,
    pub(crate) keys: &'a Properties,
    /// More such keys, which are left out if the endpoint refuses them.
    pub(crate) optional: &'a [(&'a str, &'a str)],
    /// Distinguishes it from drives of other runs.
    pub(crate) token: &'a str,
}

/// Creates a drive. If an earlier run may have done so with this token, looks for its drive first.
pub(crate) async fn create(
    client: &Client,
    new: &NewDrive<'_>,
    is_resumed: bool,
    patience: &Patience,
) -> Result<Created, NotCreated> {
    let mut making = Making {
        client,
        new,
        body: new.body(true)?,
        patience,
        creation: Creation::new(patience.attempts(), !new.optional.is_empty()),
        has_optional: true,
        rng: fastrand::Rng::new(),
        last: None,
        is_unclear: is_resumed,
    };
    let mut step = if is_resumed {
        making.creation.resume()
    } else {
        CreateStep::Post {
            after: std::time::Duration::ZERO,
        }
    };
    loop {
        let next = match step {
            CreateStep::Post { after } => {
                tokio::time::sleep(after).await;
                making.post().await
            }
            CreateStep::PostWithout => {
                making.body = new.body(false)?;
                making.has_optional = false;
                making.post().await
            }
            CreateStep::Look { after } => {
                tokio::time::sleep(after).await;
                making.look().await
            }
            step => return Err(making.ended(step)),
        };
        match next {
            ControlFlow::Continue(next) => step = next,
            ControlFlow::Break(created) => return Ok(created),
        }
    }
}

impl NewDrive<'_> {
    /// The body of the request, with the optional keys or without.
    fn body(&self, has_optional: bool) -> Result<Properties> {
        let mut body = self.spec.to_properties()?;
        let token = std::iter::once((TOKEN_KEY, self.token));
        let optional = self.optional.iter().filter(|_| has_optional);
        for (key, value) in self
            .keys
            .into_iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .chain(token)
            .chain(optional.copied())
        {
            body.insert(key, value).map_err(|error| {
                Error::new(ErrorKind::Bug, "Cannot describe the drive").because(error)
            })?;
        }
        Ok(body)
    }
}

/// The creation of one drive in progress.
struct Making<'a> {
    client: &'a Client,
    new: &'a NewDrive<'a>,
    body: Properties,
    patience: &'a Patience,
    creation: Creation,
    /// Whether the body has the optional keys.
    has_optional: bool,
    rng: fastrand::Rng,
    /// Why there is no drive yet.
    last: Option<Failure>,
    /// Whether a drive may have been created nevertheless.
    is_unclear: bool,
}

impl Making<'_> {
    /// Requests the drive.
    async fn post(&mut self) -> ControlFlow<Created, CreateStep> {
        let (client, patience) = (self.client, self.patience);
        let create = client.create_with_status(&self.body);
        match bounded_by(patience, self.creation.gives_up_at(), create).await {
            Ok((drive, status)) => {
                patience.answered();
                ControlFlow::Break(Created {
                    drive,
                    status: Some(status),
                    has_optional: Some(self.has_optional),
                })
            }
            Err(failure) => {
                tracing::debug!(%failure, "create");
                self.is_unclear |= failure.is_ambiguous();
                let (is_known, now) = (client.has_answered(), patience.now());
                let creation = &mut self.creation;
                let step = creation.post_failed(&failure, is_known, now, &mut self.rng);
                announce(patience, &failure, &step, creation);
                self.last = Some(failure);
                ControlFlow::Continue(step)
            }
        }
    }

    /// Looks for the drive of a request whose answer was lost.
    async fn look(&mut self) -> ControlFlow<Created, CreateStep> {
        let (client, patience) = (self.client, self.patience);
        match bounded_by(patience, self.creation.gives_up_at(), client.drives()).await {
            Ok(drives) => {
                patience.answered();
                let (found, alike) = candidates(drives, self.new.spec, self.new.token);
                let ids: Vec<_> = found.iter().map(|drive| drive.id).collect();
                let step = self.creation.looked(&ids, &alike);
                let CreateStep::Adopt(id) = step else {
                    return ControlFlow::Continue(step);
                };
                // It is one of those that were found.
                match found.into_iter().find(|drive| drive.id == id) {
                    Some(drive) => {
                        tracing::info!(drive = %id, "found the drive of a lost answer");
                        ControlFlow::Break(Created {
                            drive,
                            status: None,
                            has_optional: None,
                        })
                    }
                    None => ControlFlow::Continue(CreateStep::GiveUp { is_outage: false }),
                }
            }
            Err(failure) => {
                let (is_known, now) = (client.has_answered(), patience.now());
                let creation = &mut self.creation;
                let step = creation.look_failed(&failure, is_known, now, &mut self.rng);
                announce(patience, &failure, &step, creation);
                // The failure of the create request is more informative.
                self.last.get_or_insert(failure);
                ControlFlow::Continue(step)
            }
        }
    }

    /// The error for an end without a drive.
    fn ended(self, step: CreateStep) -> NotCreated {
        let what = format!("Failed to create drive of size {}", self.new.spec.size);
        let mut is_unclear = self.is_unclear;
        let error = match (step, self.last) {
            (CreateStep::Doubt(drives), _) => {
                is_unclear = true;
                let list: Vec<_> = drives.iter().map(ToString::to_string).collect();
                let which = format!(
                    "{what}: the answer was lost, and any of these drives may be the one: {}",
                    list.join(" ")
                );
                Error::new(ErrorKind::Conflict, which).hint_to(format!(
                    "Nothing was destroyed. Upload to the right one with -d UUID; look at one with: {}",
                    self.client.commands().call("drives UUID info")
                ))
            }
            (CreateStep::GiveUp { is_outage: true }, Some(why)) => {
                gave_up(&what, &why, self.patience.max_outage())
            }
            (_, why) => {
                let why = why.unwrap_or_else(|| Failure::NotApi("it names no drive".into()));
                why.into_error_without_drive(&what)
            }
        };
        NotCreated { error, is_unclear }
    }
}

/// Reports the wait before the next step, if there is one.
fn announce(patience: &Patience, failure: &Failure, step: &CreateStep, creation: &Creation) {
    if let CreateStep::Post { after } | CreateStep::Look { after } = step {
        waits_for(patience, failure, *after, creation.gives_up_at());
    }
}

type Found = (Vec<DriveInfo>, Vec<crate::drive::DriveId>);

/// The drives with the token, and those that look like ours and have no token.
fn candidates(drives: Vec<DriveInfo>, spec: &DriveSpec, token: &str) -> Found {
    let (mut found, mut alike) = (Vec::new(), Vec::new());
    for drive in drives {
        match drive.properties.get(TOKEN_KEY) {
            Some(theirs) if theirs.trim() == token => found.push(drive),
            Some(_) => {}
            None => {
                let is_alike = drive.size >= spec.size && drive.name() == Some(spec.name.as_str());
                if is_alike {
                    alike.push(drive.id);
                }
            }
        }
    }
    (found, alike)
}
