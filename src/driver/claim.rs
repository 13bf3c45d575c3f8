//! A drive that something else uses.

use crate::advice::Advice;
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind};
use openhosting_base::advice;

/// What claims a drive, in words.
pub(crate) fn claim(drive: &DriveInfo) -> Option<String> {
    if let Some(server) = drive.claiming_server() {
        return Some(format!("in use by server {server}"));
    }
    if let Some(by) = drive.claimed() {
        return Some(format!("claimed by {by}"));
    }
    drive
        .imaging()
        .map(|progress| format!("being imaged ({progress})"))
}

pub(crate) fn claimed(drive: DriveId, by: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("Drive {drive} is {by}"))
        .hint_to("Stop the server that uses it, or wait until the imaging is done")
}

/// The error for a drive that is used as `by` says. If a server uses it, the endpoint is asked
/// once for its name, and the hint is the command that shuts it down; `or` says what else can be
/// done.
pub(crate) async fn in_use(client: &Client, drive: &DriveInfo, by: &str, or: Advice) -> Error {
    let error = claimed(drive.id, by);
    let Some(server) = drive.claiming_server() else {
        return match or.is_empty() {
            true => error,
            false => error.hint_to(advice![
                "Stop the server that uses it, or wait until the imaging is done",
                or,
            ]),
        };
    };
    let name = client.server_name(server).await.ok().flatten();
    let error = match name {
        Some(name) => claimed(drive.id, &format!("in use by server {name}")),
        None => error,
    };
    let words = format!("servers {server} shutdown");
    let shutdown = client.commands().call(&words);
    error.hint_to(advice!["Shut it down first: ", shutdown, or])
}
