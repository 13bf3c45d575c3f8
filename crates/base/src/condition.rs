//! The condition of a drive: one word for lists, and the warning for those that read it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::drive::{
    CHECK_FAILED, CHECK_KEY, DriveId, DriveInfo, PUBLISHED, claimed, claiming_server, imaging,
    is_unfinished, is_uploading, state_of,
};
use crate::wire::Properties;

/// What can be said of a drive, from its keys and from the journals of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Another drive is being copied into it, with the progress.
    Copying(String),
    /// Servers use it. The first of them, if the claim names it.
    InUse(Option<Uuid>),
    /// An upload of this machine writes to it now.
    Uploading,
    /// An upload found that it holds wrong bytes.
    CheckFailed,
    /// Published and verified.
    Published,
    /// A publication or an upload that did not end, here or on another machine.
    Unfinished,
    /// It can be used.
    Ready,
    /// A copy into it failed.
    Inactive,
    /// Another status, in the words of the endpoint.
    Status(String),
}

/// The drives of uploads that this machine has journals of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalUploads {
    /// An upload writes to them now.
    pub running: BTreeSet<DriveId>,
    /// An upload of them stopped.
    pub stopped: BTreeSet<DriveId>,
}

/// An upload to a drive that this machine has a journal of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalUpload {
    /// It writes to the drive now.
    Running,
    /// It stopped before its end.
    Stopped,
}

impl LocalUploads {
    fn of(&self, drive: DriveId) -> Option<LocalUpload> {
        if self.running.contains(&drive) {
            return Some(LocalUpload::Running);
        }
        self.stopped
            .contains(&drive)
            .then_some(LocalUpload::Stopped)
    }
}

impl Condition {
    /// The condition of a drive.
    pub fn of(drive: &DriveInfo, uploads: &LocalUploads) -> Self {
        Self::of_keys(&drive.properties, uploads.of(drive.id))
    }

    /// The condition of a drive with these keys, to which an upload writes or wrote from here.
    pub fn of_keys(keys: &Properties, here: Option<LocalUpload>) -> Self {
        if let Some(progress) = imaging(keys) {
            return Self::Copying(progress.to_owned());
        }
        if let Some(claims) = claimed(keys) {
            return Self::InUse(claiming_server(claims));
        }
        Self::of_bytes(keys, here)
    }

    /// The condition of what is on a drive, whoever uses it.
    fn of_bytes(keys: &Properties, here: Option<LocalUpload>) -> Self {
        let key = |key| {
            keys.get(key)
                .map(str::trim)
                .filter(|value| !value.is_empty())
        };
        if here == Some(LocalUpload::Running) {
            return Self::Uploading;
        }
        if key(CHECK_KEY) == Some(CHECK_FAILED) {
            return Self::CheckFailed;
        }
        if state_of(keys) == Some(PUBLISHED) {
            return Self::Published;
        }
        if is_unfinished(keys) || here.is_some() {
            return Self::Unfinished;
        }
        match key("status") {
            None | Some("active") => Self::Ready,
            Some("inactive") => Self::Inactive,
            Some(status) => Self::Status(status.to_owned()),
        }
    }

    /// The warning for those that read a drive whose bytes may be wrong or incomplete.
    pub fn warning(drive: &DriveInfo, uploads: &LocalUploads) -> Option<String> {
        const MISSING: &str = "parts of the disk may be missing";
        let id = drive.id;
        let here = uploads.of(id);
        match Self::of_bytes(&drive.properties, here) {
            Self::Uploading => Some(format!(
                "An upload from this machine to drive {id} is running: {MISSING}"
            )),
            Self::CheckFailed => Some(format!(
                "Do not use drive {id}: the check of an upload to it failed, so it holds wrong bytes"
            )),
            Self::Unfinished if here.is_some() => Some(format!(
                "An upload from this machine to drive {id} has not ended: {MISSING}"
            )),
            Self::Unfinished => Some(format!(
                "An upload to drive {id} has not ended, and another machine may still work on it: {MISSING}"
            )),
            Self::Inactive => Some(format!(
                "Do not use drive {id}: it is inactive, because a copy into it failed"
            )),
            Self::Copying(_) | Self::InUse(_) | Self::Published | Self::Ready | Self::Status(_) => {
                None
            }
        }
    }

    /// Whether an upload to the drive has not ended that no journal of this machine is about: it
    /// cannot be found out whether anything still works on it.
    pub fn is_of_elsewhere(drive: &DriveInfo, uploads: &LocalUploads) -> bool {
        let here = uploads.of(drive.id);
        here.is_none()
            && is_uploading(&drive.properties)
            && Self::of_bytes(&drive.properties, here) == Self::Unfinished
    }

    /// Its name for programs. It must not change, because docs/user/json.md documents it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Copying(_) => "copying",
            Self::InUse(_) => "in_use",
            Self::Uploading => "uploading",
            Self::CheckFailed => "check_failed",
            Self::Unfinished => "unfinished",
            Self::Published => "published",
            Self::Ready => "ready",
            Self::Inactive | Self::Status(_) => "other",
        }
    }

    /// The server that uses it.
    pub fn server(&self) -> Option<Uuid> {
        match self {
            Self::InUse(server) => *server,
            _ => None,
        }
    }

    /// Its words for people, on every surface. `servers` are the names of servers, as far as they
    /// are known.
    pub fn words(&self, servers: &BTreeMap<Uuid, String>) -> String {
        match self {
            Self::Copying(progress) => format!("copying {progress}"),
            Self::InUse(None) => "in use".to_owned(),
            Self::InUse(Some(server)) => match servers.get(server) {
                Some(name) => format!("in use by {name}"),
                None => format!("in use by {}", &server.to_string()[..8]),
            },
            Self::CheckFailed => "do not use: check failed".to_owned(),
            Self::Inactive => "do not use: inactive".to_owned(),
            Self::Status(status) => status.clone(),
            Self::Uploading | Self::Unfinished | Self::Published | Self::Ready => {
                self.name().to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Format;

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
                false => &mut uploads.stopped,
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
            let state = Condition::of(&drive, &uploads);
            assert_eq!(state.words(&servers), words, "{keys}");
        }
    }
}
