//! The state of a drive in words for people.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::environment;
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::journal::{Direction, others};
use crate::publish::publication;
use crate::transfer::server_name;

/// Maximum servers whose names are requested, one request for each.
const SERVERS_MAX: usize = 16;

/// The state of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DriveState {
    /// Another drive is being copied into it, with the progress.
    Copying(String),
    /// A server uses it, if known with its UUID.
    InUse(Option<Uuid>),
    /// An unfinished publication, or an unfinished upload of this machine.
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
    pub(super) fn of(drive: &DriveInfo, unfinished: &BTreeSet<DriveId>) -> Self {
        if let Some(progress) = drive.imaging() {
            return Self::Copying(progress.to_owned());
        }
        if drive.claimed().is_some() {
            return Self::InUse(drive.claiming_server());
        }
        let publication = publication(drive).map(|publication| publication.state);
        match (publication, drive.properties.get("status")) {
            (Some("published"), _) => Self::Published,
            (Some(_), _) => Self::Unfinished,
            (None, _) if unfinished.contains(&drive.id) => Self::Unfinished,
            (None, None | Some("active" | "")) => Self::Ready,
            // A copy into it failed.
            (None, Some("inactive")) => Self::Other("do not use: inactive".to_owned()),
            (None, Some(status)) => Self::Other(status.to_owned()),
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
            Self::Copying(progress) => format!("copying {progress}"),
            Self::InUse(None) => "in use".to_owned(),
            Self::InUse(Some(server)) => match servers.get(server) {
                Some(name) => format!("in use by {name}"),
                None => format!("in use by {}", &server.to_string()[..8]),
            },
            Self::Unfinished => "unfinished".to_owned(),
            Self::Published => "published".to_owned(),
            Self::Ready => "ready".to_owned(),
            Self::Other(status) => status.clone(),
        }
    }
}

/// The drives of unfinished uploads that this machine knows. Blocks.
pub(super) fn unfinished_uploads() -> BTreeSet<DriveId> {
    let Some(directory) = environment::state_of("journals") else {
        return BTreeSet::new();
    };
    let all = others(&directory, Direction::Upload, environment::is_journal_name);
    all.map(|other| other.drive).collect()
}

/// The names of these servers, as far as the endpoint reports them.
pub(super) async fn server_names(
    client: &Client,
    servers: impl IntoIterator<Item = Uuid>,
) -> BTreeMap<Uuid, String> {
    let servers: BTreeSet<Uuid> = servers.into_iter().collect();
    let mut names = BTreeMap::new();
    for server in servers.into_iter().take(SERVERS_MAX) {
        if let Some(name) = server_name(client, server).await {
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
        let publishing = "user:oh-publish t\nuser:oh-state";
        for (keys, unfinished, words) in [
            ("status active".to_owned(), false, "ready"),
            ("status active".to_owned(), true, "unfinished"),
            ("status inactive".to_owned(), false, "do not use: inactive"),
            ("status inactive\nimaging 5%".to_owned(), true, "copying 5%"),
            (
                format!("claimed {ID}:guest:{ID}:ide:0:0"),
                false,
                "in use by web",
            ),
            ("claimed 2:guest:a:ide:0:0".to_owned(), false, "in use"),
            (format!("{publishing} writing"), false, "unfinished"),
            (format!("{publishing} published"), false, "published"),
        ] {
            let text = format!("drive {ID}\nsize 1\n{keys}\n");
            let properties = Properties::parse(Format::Text, text.as_bytes()).unwrap();
            let drive = DriveInfo::from_properties(properties).unwrap();
            let all = BTreeSet::from_iter(unfinished.then_some(drive.id));
            assert_eq!(
                DriveState::of(&drive, &all).words(&servers),
                words,
                "{keys}"
            );
        }
    }
}
