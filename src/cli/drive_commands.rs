//! `openhosting ls`, `show` and `rm`: drives for people. `openhosting drives ...` is the unchanged
//! call of the API.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::Access;
use super::drive_reference::DriveReference;
use super::drive_state;
use super::drive_table::{self, Row, time};
use super::drives::{drives_that, each_drive, look_at_drive, remove_drive};
use super::json_list::JsonList;
use super::other_journals::Other;
use super::output::{CommandOutput, OutputForm, error_object};
use super::signals::{self, Heard};
use super::text_table::table;
use super::wait_lines::{self, WaitLines};
use super::{complete, exit, help, printable, prompt, quote, screen};
use crate::amounts::{exact_size, size};
use crate::api::Client;
use crate::drive::{Condition, DriveInfo, LocalUploads};
use crate::error::{Error, ErrorKind, Result};
use crate::publish::keys::{newest_first, publication};
use crate::publish::selection::{Several, is_candidate, select_knowing};
use crate::transfer::{Patience, Stop, stopped};

/// The prefix of the keys with which our own commands mark drives.
const INTERNAL: &str = "user:oh-";

pub(super) const LS: OutputForm = OutputForm::new("openhosting ls", "ls/1").with_j();
pub(super) const SHOW: OutputForm = OutputForm::new("openhosting show", "show/1").with_j();
pub(super) const RM: OutputForm = OutputForm::new("openhosting rm", "rm/1").with_j();

/// Lists your drives with their size and state, and the age of published ones
///
/// The age is the time since a drive was published. The API reports no other times.
#[derive(Debug, Parser)]
#[command(name = "openhosting-ls", bin_name = "openhosting ls", version, after_long_help = help::after("ls"))]
pub(super) struct LsArguments {
    /// Show whole UUIDs, sizes in bytes, times, and who uses the drives
    #[arg(short, long)]
    long: bool,

    /// Print one JSON object instead of a table
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    #[command(flatten)]
    access: Access,
}

/// Shows the details of a drive
#[derive(Debug, Parser)]
#[command(name = "openhosting-show", bin_name = "openhosting show", version, after_long_help = help::after("show"))]
pub(super) struct ShowArguments {
    /// Show all keys, those of publications too
    #[arg(short, long)]
    long: bool,

    /// Print one JSON object instead of lines
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Drive to show: a UUID, 4 or more digits of it, or a name
    ///
    /// NAME~1 is the published drive before the newest one of this name.
    #[arg(value_name = "DRIVE", add = complete::drives())]
    drive: DriveReference,
}

/// Destroys drives and all that is on them
///
/// If one of the drives is not found, none is destroyed. A drive that a virtual machine uses is
/// not destroyed.
#[derive(Debug, Parser)]
#[command(name = "openhosting-rm", bin_name = "openhosting rm", version, after_long_help = help::after("rm"))]
pub(super) struct RmArguments {
    /// Do not ask; needed where there is no terminal
    #[arg(short, long)]
    yes: bool,

    /// Print one JSON object instead of lines
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Drives to destroy: UUIDs, their beginnings, or names
    ///
    /// NAME~0 is the newest published drive of this name, and NAME~1 the one before it.
    #[arg(value_name = "DRIVE", required = true, add = complete::drives())]
    drives: Vec<DriveReference>,
}

/// Runs one of these commands.
fn main(
    form: OutputForm,
    is_json: bool,
    access: &Access,
    run: impl AsyncFnOnce(&Client, &Patience, Stop) -> Result<CommandOutput>,
) -> ExitCode {
    let (result, heard) = hearing(form, access, run);
    form.finish(is_json, &heard, result)
}

/// Makes the calls of one of these commands; returns the result, and what stopped it.
fn hearing<T>(
    form: OutputForm,
    access: &Access,
    run: impl AsyncFnOnce(&Client, &Patience, Stop) -> Result<T>,
) -> (Result<T>, Heard) {
    signals::hearing(Some(form.program), None, async |mut stop| {
        let client = access.client(wait_lines::config(), &mut stop).await?;
        let patience = wait_lines::patience();
        let work = run(&client, &patience, stop);
        patience.watching(&mut WaitLines(form.program), work).await
    })
}

/// `openhosting ls`.
pub(super) fn ls(arguments: &LsArguments) -> ExitCode {
    if arguments.json {
        return ls_json(&arguments.access);
    }
    main(
        LS,
        false,
        &arguments.access,
        async |client, patience, mut stop| {
            let text = stop.unless_asked(listed(client, patience, arguments.long));
            Ok(CommandOutput::new(text.await?, Value::Null))
        },
    )
}

/// `openhosting ls --json`: the drives in the order of the endpoint, each printed as it arrives.
fn ls_json(access: &Access) -> ExitCode {
    let list = JsonList::start(LS, "drives");
    let items = list.items();
    let (result, heard) = hearing(LS, access, async |client, patience, mut stop| {
        let uploads = drive_state::look().await?;
        let drives = each_drive(client, patience, async |drive| {
            // It fails if nothing reads stdout any more, which the end of the list reports.
            let object = object(&drive, &uploads);
            let _ = items.send((drive.id.to_bytes(), object)).await;
        });
        stop.unless_asked(drives).await
    });
    list.finish(result, &heard)
}

/// `openhosting ls`, for people.
async fn listed(client: &Client, patience: &Patience, is_long: bool) -> Result<String> {
    let mut rows = BTreeMap::new();
    let uploads = drive_state::look().await?;
    let list = each_drive(client, patience, async |drive| {
        let row = Row {
            id: drive.id,
            name: drive.name().unwrap_or_default().to_owned(),
            size: drive.size,
            state: Condition::of(&drive, &uploads),
            published_ms: publication(&drive).and_then(|publication| publication.published_ms),
            place: newest_first(&drive),
            claimed: drive.claimed().map(str::to_owned),
            status: drive.properties.get("status").map(str::to_owned),
        };
        rows.insert(row.id, row);
    });
    list.await?;
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by(|a, b| (&a.name, a.place).cmp(&(&b.name, b.place)));
    let servers = rows.iter().filter_map(|row| row.state.server());
    let servers = drive_state::server_names(client, servers).await;
    let columns = screen::stdout_columns();
    Ok(match is_long {
        true => drive_table::long(&rows, &servers, columns),
        false => drive_table::short(&rows, &servers, columns, crate::publish::now_ms()),
    })
}

/// `openhosting show`.
pub(super) fn show(arguments: &ShowArguments) -> ExitCode {
    main(
        SHOW,
        arguments.json,
        &arguments.access,
        async |client, patience, mut stop| {
            let drive = stop.unless_asked(arguments.drive.look(client, patience));
            let drive = drive.await?;
            let uploads = drive_state::look().await?;
            let mut object = object(&drive, &uploads);
            let properties = drive.properties.iter();
            object["properties"] = properties
                .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
                .collect::<serde_json::Map<_, _>>()
                .into();
            let state = Condition::of(&drive, &uploads);
            let servers = drive_state::server_names(client, state.server()).await;
            let mut lines = vec![("State", state.words(&servers))];
            if Condition::is_of_elsewhere(&drive, &uploads) {
                let how = "has not ended; another machine may still work on it";
                lines.push(("Upload", how.to_owned()));
            }
            if let (Condition::Unfinished, Some(upload)) =
                (&state, drive_state::stopped_upload(drive.id).await?)
            {
                lines.push(("Resume", resuming(&upload, client, &arguments.access)));
            }
            let text = described(&drive, &lines, arguments.long);
            Ok(CommandOutput::new(text, object))
        },
    )
}

/// The command that continues this upload. The journal does not contain the path of the image.
fn resuming(upload: &Other, client: &Client, access: &Access) -> String {
    let (drive, journal) = (upload.drive, quote(&upload.path.to_string_lossy()));
    let is_here = upload.header.endpoint == client.endpoint().to_string()
        && upload.header.user == client.user();
    let how = match (is_here, upload.is_ours) {
        (true, true) => format!("--journal {journal}"),
        (true, false) => format!("-d {drive} --journal {journal}"),
        // The endpoint had another name then, to which the journal belongs.
        (false, _) => format!("--resume-from-drive {drive}"),
    };
    format!("openhosting upload{} {how} IMAGE", access.given())
}

/// `openhosting rm`.
pub(super) fn rm(arguments: &RmArguments) -> ExitCode {
    let (removed, heard) = hearing(RM, &arguments.access, async |client, patience, stop| {
        remove(client, arguments, patience, stop).await
    });
    let output = removed.map(|removed| removal(removed, &heard));
    RM.finish(arguments.json, &heard, output)
}

/// The lines of `show`. `state` are those about the state of the drive.
fn described(drive: &DriveInfo, state: &[(&str, String)], is_long: bool) -> String {
    let pair = |key: &str, value: &str| [key, value].map(str::to_owned);
    let bytes = exact_size(drive.size);
    let mut lines = vec![
        pair("Name", drive.name().unwrap_or_default()),
        pair("UUID", &drive.id.to_string()),
        pair("Size", &bytes),
    ];
    lines.extend(state.iter().map(|(key, value)| pair(key, value)));
    if let Some(publication) = publication(drive) {
        if let Some(ms) = publication.published_ms {
            lines.push(pair("Published", &time(ms)));
        }
        if let Some(root) = publication.root {
            let key = match publication.state {
                "published" => "Root",
                _ => "Root to be",
            };
            lines.push(pair(key, &root.to_string()));
        }
    }
    let own_lines = lines.len();
    // Keys that are shown above in another form.
    const SHOWN: [&str; 3] = ["name", "drive", "size"];
    const SHOWN_SHORT: [&str; 3] = ["status", "claimed", "imaging"];
    let is_other = |key: &str| {
        !SHOWN.contains(&key)
            && (is_long || !SHOWN_SHORT.contains(&key) && !key.starts_with(INTERNAL))
    };
    let others = drive.properties.iter().filter(|(key, _)| is_other(key));
    lines.extend(others.map(|(key, value)| pair(key, value)));
    // Two tables with an empty line between: a digest would not fit beside the long keys of the API.
    let (ours, theirs) = lines.split_at(own_lines);
    let tables = [ours, theirs].into_iter().filter(|lines| !lines.is_empty());
    let tables: Vec<_> = tables
        .map(|lines| table(lines.iter().cloned(), &[]))
        .collect();
    tables.join("\n")
}

/// A drive for programs. Its keys are a promise: docs/user/json.md.
fn object(drive: &DriveInfo, uploads: &LocalUploads) -> Value {
    let text = |key| drive.properties.get(key).filter(|text| !text.is_empty());
    let list = |key| {
        let words = text(key).unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    json!({
        "drive": drive.id.to_string(),
        "name": text("name"),
        "size": drive.size,
        "state": Condition::of(drive, uploads).name(),
        "status": text("status"),
        "claimed": drive.claimed(),
        "imaging": drive.imaging(),
        "tier": text("tier"),
        "tags": list("tags"),
        "readers": list("readers"),
        "publication": publication(drive).map(|it| json!({
            "token": it.token,
            "state": it.state,
            "root": it.root.map(|root| root.to_string()),
            "published_ms": it.published_ms,
        })),
    })
}

/// Removes the drives. Returns each of them with whether it was removed.
async fn remove(
    client: &Client,
    arguments: &RmArguments,
    patience: &Patience,
    mut stop: Stop,
) -> Result<Vec<(DriveInfo, Result<()>)>> {
    let drives = stop.unless_asked(async {
        let uploads = drive_state::look().await?;
        let drives = found(client, &arguments.drives, patience, &uploads).await?;
        if let Some(drive) = drives
            .iter()
            .find(|drive| uploads.running.contains(&drive.id))
        {
            let what = format!(
                "Nothing is removed: an upload from this machine to drive {} is running",
                drive.id
            );
            return Err(Error::new(ErrorKind::Conflict, what)
                .hint_to("Stop the upload with Ctrl-C, or wait until it ends"));
        }
        if !arguments.yes {
            let servers = drives.iter().filter_map(DriveInfo::claiming_server);
            let servers = drive_state::server_names(client, servers).await;
            ask(&drives, &servers).await?;
        }
        Ok(drives)
    });
    let drives = drives.await.map_err(|error| match error.kind() {
        ErrorKind::Cancelled => Error::new(ErrorKind::Cancelled, "Nothing was removed"),
        _ => error,
    })?;
    let mut all = Vec::new();
    for drive in drives {
        // If its destruction was requested, the command waits for it as usual.
        let removed = if stop.is_asked() {
            Err(stopped())
        } else {
            tokio::select! {
                removed = remove_drive(client, drive.id, patience) => removed,
                () = stop.asked_at_once() => Err(stopped()),
            }
        };
        if removed.is_ok() {
            // Otherwise the next upload of that image would look for this drive.
            drive_state::forget_uploads(drive.id, None).await;
        }
        all.push((drive, removed));
    }
    Ok(all)
}

/// The output about these drives, each with whether it was removed.
fn removal(drives: Vec<(DriveInfo, Result<()>)>, heard: &Heard) -> CommandOutput {
    let mut answer = CommandOutput::new(String::new(), Value::Null);
    let mut objects = Vec::new();
    for (drive, removed) in drives {
        let mut object = json!({
            "drive": drive.id.to_string(),
            "name": drive.name(),
            "removed": removed.is_ok(),
        });
        match removed {
            Ok(()) => {
                let _ = writeln!(
                    answer.text,
                    "Removed {} {}",
                    drive.id,
                    printable::line(drive.name().unwrap_or_default())
                );
            }
            Err(error) => {
                object["error"] = error_object(&error, heard.exit_code(error.kind()));
                // The last error is reported as that of the command.
                if let Some(before) = answer.error.replace(error) {
                    exit::print_error(RM.program, &before);
                }
            }
        }
        objects.push(object);
    }
    answer.object = json!({ "drives": objects });
    answer
}

/// The drives that the words refer to, each once.
async fn found(
    client: &Client,
    named: &[DriveReference],
    patience: &Patience,
    uploads: &LocalUploads,
) -> Result<Vec<DriveInfo>> {
    let words: Vec<&str> = named
        .iter()
        .filter_map(|named| match named {
            DriveReference::Word(word) => Some(&**word),
            DriveReference::Id(_) => None,
        })
        .collect();
    let all = match words.is_empty() {
        true => Vec::new(),
        false => {
            let is_meant = |drive: &DriveInfo| words.iter().any(|word| is_candidate(drive, word));
            drives_that(client, patience, is_meant).await?
        }
    };
    let mut found: Vec<DriveInfo> = Vec::new();
    for named in named {
        let drive = match named {
            DriveReference::Id(id) => look_at_drive(client, *id, patience).await?,
            DriveReference::Word(word) => {
                select_knowing(uploads, &all, word, Several::Refuse)?.clone()
            }
        };
        if found.iter().all(|other| other.id != drive.id) {
            found.push(drive);
        }
    }
    Ok(found)
}

/// Asks for confirmation to destroy these drives. `servers` has the names of servers that use them.
async fn ask(drives: &[DriveInfo], servers: &BTreeMap<Uuid, String>) -> Result<()> {
    let refuse = |kind, why: &str| Error::new(kind, format!("Nothing is removed: {why}"));
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refuse(ErrorKind::Usage, "there is no terminal to ask on")
            .hint_to("Say --yes to destroy them without a question"));
    }
    for drive in drives {
        let size = size(drive.size);
        let used = drive.claimed().map_or(String::new(), |_| {
            let state = Condition::InUse(drive.claiming_server());
            format!(", {}", printable::line(&state.words(servers)))
        });
        exit::say(&format!(
            "{}  {}, {size}{used}",
            drive.id,
            printable::line(drive.name().unwrap_or_default())
        ));
    }
    let (what, them) = match drives.len() {
        1 => ("this drive".to_owned(), "it"),
        many => (format!("these {many} drives"), "them"),
    };
    exit::ask(&format!("Destroy {what} and all that is on {them}? [y/N] "));
    let is_meant = is_yes(&prompt::line().await.unwrap_or_default());
    is_meant
        .then_some(())
        .ok_or_else(|| refuse(ErrorKind::Local, "the answer was not yes"))
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_confirms_a_removal() {
        for yes in ["y", "Y\n", "yes\n", " YES "] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "no", "yess", "ja"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
