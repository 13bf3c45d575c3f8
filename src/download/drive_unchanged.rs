//! Checks whether the drive changed: during a download, and since an earlier run.

use tokio::task::JoinSet;

use super::options::DownloadOptions;
use crate::advice::Remedy;
use crate::api::Client;
use crate::drive::{Condition, DriveInfo};
use crate::driver::claim::{claim, in_use};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::State;
use crate::monitor::Monitor;
use crate::policy::Operation;
use crate::verify::read_back::Verified;
use openhosting_base::advice;

/// A check of the drive that runs concurrently with other requests. If only one request is allowed
/// at a time, it begins when its result is needed.
pub(super) struct StillThere {
    client: Client,
    options: DownloadOptions,
    before: DriveInfo,
    looking: JoinSet<Result<()>>,
}

impl StillThere {
    pub(super) fn of(client: &Client, options: &DownloadOptions, before: &DriveInfo) -> Self {
        let mut this = Self {
            client: client.clone(),
            options: options.clone(),
            before: before.clone(),
            looking: JoinSet::new(),
        };
        if options.jobs.get() > 1 {
            this.begin();
        }
        this
    }

    fn begin(&mut self) {
        let (client, options) = (self.client.clone(), self.options.clone());
        let before = self.before.clone();
        let look = async move { check_still(&client, &options, &before).await };
        self.looking.spawn(look);
    }

    /// Waits for the result; as [`check_still`].
    pub(super) async fn check(&mut self) -> Result<()> {
        if self.looking.is_empty() {
            self.begin();
        }
        match self.looking.join_next().await {
            Some(Ok(checked)) => checked,
            _ => Err(Error::new(ErrorKind::Bug, "A task panicked")),
        }
    }
}

/// The current state of the drive; an error if it is in use.
pub(super) async fn look(client: &Client, options: &DownloadOptions) -> Result<DriveInfo> {
    let drive = options.drive;
    let info = || client.info(drive);
    let info = options
        .patience
        .call(client, Operation::Read, info)
        .await
        .map_err(|unanswered| unanswered.into_error(&format!("Cannot read drive {drive}")))?;
    match claim(&info) {
        Some(by) if !options.allow_live => {
            let or = advice![
                "; or take what comes with ",
                Remedy::AllowLive,
                ", as it may change while it is copied",
            ];
            Err(in_use(client, &info, &by, or).await)
        }
        _ => Ok(info),
    }
}

/// Warns if what the drive holds may be wrong or incomplete.
pub(super) fn warn_of_condition(
    drive: &DriveInfo,
    options: &DownloadOptions,
    monitor: &mut dyn Monitor,
) {
    if let Some(line) = Condition::warning(drive, &options.uploads) {
        monitor.warn(line);
    }
}

/// Fails if the drive changed since the download began.
pub(super) async fn check_still(
    client: &Client,
    options: &DownloadOptions,
    before: &DriveInfo,
) -> Result<()> {
    if options.allow_live {
        return Ok(());
    }
    let after = look(client, options).await?;
    let what = if after.size != before.size {
        "its size changed"
    } else if counters(&after) != counters(before) {
        "it was written to"
    } else {
        return Ok(());
    };
    let what = format!(
        "Drive {} is not what it was: {what} meanwhile",
        options.drive
    );
    Err(Error::new(ErrorKind::Integrity, what).hint_to(advice![
        "Start over with ",
        Remedy::Restart,
        " when nothing writes to it, or take what comes with ",
        Remedy::AllowLive,
    ]))
}

/// The result of comparing the drive with what was downloaded. If the drive may change meanwhile, a
/// difference is only a warning, unless the drive reports that nothing was written to it.
pub(super) async fn allow_changes(
    verified: Result<Verified>,
    client: &Client,
    options: &DownloadOptions,
    before: &DriveInfo,
    monitor: &mut dyn Monitor,
) -> Result<Verified> {
    let error = match verified {
        Err(error) if options.allow_live && error.kind() == ErrorKind::Integrity => error,
        other => return other,
    };
    if let Ok(after) = client.info(options.drive).await
        && [before, &after].iter().all(|info| claim(info).is_none())
        && counters(before).is_some_and(|then| counters(&after) == Some(then))
    {
        return Err(error);
    }
    monitor.warn(advice![
        format!("{}. This is not an error because of ", error.chain()),
        Remedy::AllowLive,
        ": the drive may have changed while it was downloaded",
    ]);
    Ok(Verified::default())
}

/// Fails rather than mixing two drives, or two states of one drive, in one image.
pub(super) fn check_same_drive(
    state: &State,
    options: &DownloadOptions,
    info: &DriveInfo,
) -> Result<()> {
    let over = advice!["Start over with ", Remedy::Restart];
    match state.drive {
        Some((id, _)) if id != options.drive => {
            let what = format!(
                "The earlier run downloaded drive {id}, not {}",
                options.drive
            );
            let other = advice![over, ", or continue with ", Remedy::EarlierDrive(id.into())];
            return Err(Error::new(ErrorKind::Usage, what).hint_to(other));
        }
        _ => {}
    }
    let then = state.counters;
    if !options.allow_live && then.is_some() && then != counters(info) {
        let what = format!("Drive {} was written to since the earlier run", info.id);
        return Err(Error::new(ErrorKind::Integrity, what).hint_to(over));
    }
    Ok(())
}

/// How many bytes and requests were written to a drive, if it reports that.
pub(crate) fn counters(drive: &DriveInfo) -> Option<(u64, u64)> {
    let counter = |key| drive.properties.get(key)?.trim().parse().ok();
    Some((counter("write:bytes")?, counter("write:requests")?))
}
