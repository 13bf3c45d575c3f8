//! The state of a drive in words for people.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::environment;
use super::other_journals::{Other, others};
use crate::api::Client;
use crate::drive::{Condition, DriveId, DriveInfo, is_uploading};
use crate::filesystem::{self, Lock, Locked, open_own};
use crate::journal::Direction;
use crate::transfer::blocking;

/// Maximum servers whose names are requested, one request for each.
const SERVERS_MAX: usize = 16;

/// The state of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DriveState {
    /// Another drive is being copied into it, with the progress.
    Copying(String),
    /// A server uses it, if known with its UUID.
    InUse(Option<Uuid>),
    /// An upload of this machine writes to it now.
    Uploading,
    /// An upload found that it holds wrong bytes.
    CheckFailed,
    /// A publication or an upload that has not ended, here or on another machine.
    Unfinished,
    /// Published and verified.
    Published,
    /// It can be used.
    Ready,
    /// Another state, in the words of the endpoint.
    Other(String),
}

impl DriveState {
    /// The state according to the endpoint and the journals.
    pub(super) fn of(drive: &DriveInfo, uploads: &LocalUploads) -> Self {
        let condition = Condition::of(&drive.properties);
        match condition {
            Condition::Copying(progress) => Self::Copying(progress.to_owned()),
            Condition::InUse(_) => Self::InUse(drive.claiming_server()),
            _ if uploads.is_running(drive.id) => Self::Uploading,
            Condition::CheckFailed => Self::CheckFailed,
            Condition::Published => Self::Published,
            Condition::Unfinished => Self::Unfinished,
            _ if uploads.unfinished.contains(&drive.id) => Self::Unfinished,
            Condition::Ready => Self::Ready,
            Condition::Status(_) => Self::Other(condition.words()),
        }
    }

    /// Its name for programs. It must not change, because docs/user/json.md documents it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Copying(_) => "copying",
            Self::InUse(_) => "in_use",
            Self::Uploading => "uploading",
            Self::CheckFailed => "check_failed",
            Self::Unfinished => "unfinished",
            Self::Published => "published",
            Self::Ready => "ready",
            Self::Other(_) => "other",
        }
    }

    /// The server that uses it.
    pub(super) fn server(&self) -> Option<Uuid> {
        match self {
            Self::InUse(server) => *server,
            _ => None,
        }
    }

    /// The state in words, with the names of servers.
    pub(super) fn words(&self, servers: &BTreeMap<Uuid, String>) -> String {
        match self {
            Self::Copying(progress) => Condition::Copying(progress).words(),
            Self::InUse(None) => Condition::InUse("").words(),
            Self::InUse(Some(server)) => match servers.get(server) {
                Some(name) => format!("in use by {name}"),
                None => format!("in use by {}", &server.to_string()[..8]),
            },
            Self::Uploading => "uploading".to_owned(),
            Self::CheckFailed => Condition::CheckFailed.words(),
            Self::Unfinished => Condition::Unfinished.words(),
            Self::Published => Condition::Published.words(),
            Self::Ready => Condition::Ready.words(),
            Self::Other(status) => status.clone(),
        }
    }
}

/// The drives of uploads that this machine has journals of.
#[derive(Debug, Default)]
pub(super) struct LocalUploads {
    /// An upload writes to them now.
    running: BTreeSet<DriveId>,
    /// An upload of them stopped.
    unfinished: BTreeSet<DriveId>,
}

impl LocalUploads {
    /// Whether an upload of this machine writes to this drive now.
    pub(super) fn is_running(&self, drive: DriveId) -> bool {
        self.running.contains(&drive)
    }

    /// The warning about reading this drive if an upload to it has not ended, as far as the journals
    /// say.
    pub(super) fn warning(&self, drive: DriveId) -> Option<String> {
        let how = match self.running.contains(&drive) {
            true => "is running",
            false if self.unfinished.contains(&drive) => "has not ended",
            false => return None,
        };
        Some(format!(
            "An upload from this machine to drive {drive} {how}: parts of the disk may be missing"
        ))
    }

    /// What to know about a drive that an upload has marked as unfinished, and no journal here is
    /// about: it cannot be found out whether anything still works on it.
    pub(super) fn elsewhere(&self, drive: &DriveInfo) -> Option<&'static str> {
        let is_elsewhere = is_uploading(&drive.properties) && self.warning(drive.id).is_none();
        is_elsewhere.then_some("has not ended; another machine may still work on it")
    }

    /// Reads the journals. Blocks.
    pub(super) fn look() -> Self {
        let mut uploads = Self::default();
        for other in local_uploads() {
            match other.is_running {
                true => uploads.running.insert(other.drive),
                false => uploads.unfinished.insert(other.drive),
            };
        }
        uploads
    }
}

/// The uploads of this machine whose journals are in their usual place.
fn local_uploads() -> Vec<Other> {
    let all = environment::state_of("journals").map(|directory| {
        others(&directory, Direction::Upload, environment::is_journal_name).collect()
    });
    all.unwrap_or_default()
}

/// Removes the journals of uploads to this drive which stopped: the drive is gone, or another upload
/// has written all of it, so they describe bytes that are no longer there. Their commands then make
/// new drives.
/// Only a journal that can be locked here is one that nothing works on: that of this upload is still
/// locked, and a file system without locks does not tell. Others stay, which only costs the right
/// state in `ls`.
pub(super) async fn forget_uploads(drive: DriveId) {
    let forget = move || {
        forget(drive);
        Ok(())
    };
    // A thread that panics costs nothing else.
    let _ = blocking(forget).await;
}

/// As [`forget_uploads`]. Blocks.
fn forget(drive: DriveId) {
    let all = local_uploads().into_iter();
    for other in all.filter(|other| other.drive == drive) {
        let Ok(file) = open_own(&other.path) else {
            continue;
        };
        if filesystem::lock(&file, Lock::Exclusive) == Locked::Held {
            let _ = std::fs::remove_file(&other.path);
        }
    }
}

/// The names of these servers, as far as the endpoint reports them. A single attempt for each,
/// because names are only for people.
pub(super) async fn server_names(
    client: &Client,
    servers: impl IntoIterator<Item = Uuid>,
) -> BTreeMap<Uuid, String> {
    let servers: BTreeSet<Uuid> = servers.into_iter().collect();
    let mut names = BTreeMap::new();
    for server in servers.into_iter().take(SERVERS_MAX) {
        if let Ok(Some(name)) = client.server_name(server).await {
            names.insert(server, name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Format, Properties};

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    #[test]
    fn a_state_is_in_words() {
        let servers = BTreeMap::from([(ID.parse().unwrap(), "web".to_owned())]);
        let failed = "status active\nuser:oh-check failed".to_owned();
        let publishing = "user:oh-publish t\nuser:oh-state";
        let no = LocalUploads::default;
        let of = |is_running: bool| {
            let mut uploads = no();
            let set = match is_running {
                true => &mut uploads.running,
                false => &mut uploads.unfinished,
            };
            set.insert(ID.parse().unwrap());
            uploads
        };
        let (running, unfinished) = (|| of(true), || of(false));
        for (keys, uploads, words) in [
            ("status active".to_owned(), no(), "ready"),
            ("status active".to_owned(), unfinished(), "unfinished"),
            ("status active".to_owned(), running(), "uploading"),
            (failed.clone(), no(), "do not use: check failed"),
            (failed, running(), "uploading"),
            ("user:oh-check passed".to_owned(), no(), "ready"),
            ("status inactive".to_owned(), no(), "do not use: inactive"),
            (
                "status inactive\nimaging 5%".to_owned(),
                unfinished(),
                "copying 5%",
            ),
            (
                format!("claimed {ID}:guest:{ID}:ide:0:0"),
                no(),
                "in use by web",
            ),
            ("claimed 2:guest:a:ide:0:0".to_owned(), no(), "in use"),
            (format!("{publishing} writing"), no(), "unfinished"),
            (format!("{publishing} writing"), running(), "uploading"),
            (format!("{publishing} published"), no(), "published"),
            ("user:oh-state uploading".to_owned(), no(), "unfinished"),
            ("user:oh-state uploading".to_owned(), running(), "uploading"),
            ("user:oh-state ready".to_owned(), no(), "ready"),
            (
                "status inactive\nuser:oh-state ready".to_owned(),
                no(),
                "do not use: inactive",
            ),
        ] {
            let text = format!("drive {ID}\nsize 1\n{keys}\n");
            let properties = Properties::parse(Format::Text, text.as_bytes()).unwrap();
            let drive = DriveInfo::from_properties(properties).unwrap();
            let state = DriveState::of(&drive, &uploads);
            assert_eq!(state.words(&servers), words, "{keys}");
        }
    }
}
