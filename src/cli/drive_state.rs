//! What this machine knows of drives: its uploads to them, from their journals, and the names of
//! servers that use them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use uuid::Uuid;

use super::environment;
use super::other_journals::{Other, others};
use crate::api::Client;
use crate::drive::{DriveId, LocalUploads};
use crate::error::Result;
use crate::filesystem::{self, Lock, Locked, open_own};
use crate::image::Fingerprint;
use crate::journal::{Direction, replay};
use crate::transfer::blocking;

/// Maximum servers whose names are requested, one request for each.
const SERVERS_MAX: usize = 16;

/// Reads the journals.
pub(super) async fn look() -> Result<LocalUploads> {
    let look = || {
        let mut uploads = LocalUploads::default();
        for other in local_uploads() {
            match other.is_running {
                true => uploads.running.insert(other.drive),
                false => uploads.stopped.insert(other.drive),
            };
        }
        Ok(uploads)
    };
    blocking(look).await
}

/// The uploads of this machine whose journals are in their usual place.
fn local_uploads() -> Vec<Other> {
    let all = environment::state_of("journals").map(|directory| {
        others(&directory, Direction::Upload, environment::is_journal_name).collect()
    });
    all.unwrap_or_default()
}

/// The upload of this machine to the drive that stopped; `None` if there is none or there are
/// several, of which each needs a command of its own.
pub(super) async fn stopped_upload(drive: DriveId) -> Result<Option<Other>> {
    let look = move || {
        let is_it = |other: &Other| other.drive == drive && !other.is_running;
        let mut all = local_uploads().into_iter().filter(is_it);
        Ok(all.next().filter(|_| all.next().is_none()))
    };
    blocking(look).await
}

/// What an upload wrote to a drive: an image, from this byte on.
pub(super) struct Written {
    pub(super) image: Fingerprint,
    pub(super) offset: u64,
}

/// Removes the journals of uploads to this drive which stopped: the drive is gone (`written` is
/// `None`), or another upload has written what they lack. Their commands then make new drives.
/// Removes only journals it can lock. A running upload holds its lock; where locks do not work,
/// journals stay, and `ls` may show an outdated state.
pub(super) async fn forget_uploads(drive: DriveId, written: Option<Written>) {
    let forget = move || {
        forget(drive, written.as_ref());
        Ok(())
    };
    // A thread that panics costs nothing else.
    let _ = blocking(forget).await;
}

/// As [`forget_uploads`]. Blocks.
fn forget(drive: DriveId, written: Option<&Written>) {
    let all = local_uploads().into_iter();
    for other in all.filter(|other| other.drive == drive) {
        let Ok(file) = open_own(&other.path) else {
            continue;
        };
        if filesystem::lock(&file, Lock::Exclusive) == Locked::Held
            && written.is_none_or(|written| is_completed(&file, written))
        {
            let _ = std::fs::remove_file(&other.path);
        }
    }
}

/// Whether the upload of this journal needs nothing more after `written`. An image that was written
/// as a whole replaces whatever an upload wrote. From an offset on, it has to be the same image, and
/// the journal has to have all that is before the offset.
fn is_completed(journal: &File, written: &Written) -> bool {
    if written.offset == 0 {
        return true;
    }
    let Ok(replay) = replay(journal, |_, _, _| {}) else {
        return false;
    };
    let header = replay.header;
    // A pipe has no size, and nothing else distinguishes it from another one.
    let is_same = written.image.size > 0 && header.source.as_ref() == Some(&written.image);
    let chunk = header.chunk.max(1);
    let before = header.first..written.offset.div_ceil(chunk);
    is_same && (before.is_empty() || replay.state.settled().gaps(&before).next().is_none())
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
