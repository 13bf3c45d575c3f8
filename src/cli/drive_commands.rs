//! `openhosting ls`, `show` and `rm`: drives for people. `openhosting drives ...` is the
//! call of the API, and stays what it is.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::access::Access;
use super::json_list::JsonList;
use super::named::Named;
use super::output::{CommandOutput, OutputForm, error_object};
use super::signals::{self, Heard};
use super::text_table::table;
use super::wait_lines::{self, WaitLines};
use super::{exit, printable};
use crate::api::{Client, ClientConfig};
use crate::drive::{DriveInfo, only_named};
use crate::error::{Error, ErrorKind, Result};
use crate::publish::{Publication, publication};
use crate::transfer::{
    Patience, Stop, drives_that, each_drive, look_at_drive, remove_drive, stopped,
};

pub(super) const LS: OutputForm = OutputForm {
    program: "openhosting ls",
    schema: "ls/1",
    short: Some("-j"),
};
pub(super) const SHOW: OutputForm = OutputForm {
    program: "openhosting show",
    schema: "show/1",
    short: Some("-j"),
};
pub(super) const RM: OutputForm = OutputForm {
    program: "openhosting rm",
    schema: "rm/1",
    short: Some("-j"),
};

/// Lists your drives: name, size, what they are doing, and what was published to them
///
/// The endpoint and who you are come from a profile (docs/config.md), or from the
/// environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
#[derive(Debug, Parser)]
#[command(name = "openhosting-ls", bin_name = "openhosting ls", version, after_help = exit::EXIT_CODES)]
pub(super) struct LsArguments {
    /// Print one JSON object instead of a table (docs/json.md)
    #[arg(short, long)]
    json: bool,

    #[command(flatten)]
    access: Access,
}

/// Tells all that is known of a drive
///
/// The endpoint and who you are come from a profile (docs/config.md), or from the
/// environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
#[derive(Debug, Parser)]
#[command(name = "openhosting-show", bin_name = "openhosting show", version, after_help = exit::EXIT_CODES)]
pub(super) struct ShowArguments {
    /// Print one JSON object instead of lines (docs/json.md)
    #[arg(short, long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// The drive, by its UUID or its name
    #[arg(value_name = "DRIVE")]
    drive: Named,
}

/// Destroys drives and all that is on them
///
/// A drive that somebody uses is refused and stays. Nothing is destroyed before all
/// drives that were named are found, each of them once.
///
/// The endpoint and who you are come from a profile (docs/config.md), or from the
/// environment:
/// OHURI=<API endpoint URI> and OHAUTH=<user uuid>:<secret API key>
#[derive(Debug, Parser)]
#[command(name = "openhosting-rm", bin_name = "openhosting rm", version, after_help = exit::EXIT_CODES)]
pub(super) struct RmArguments {
    /// Do not ask; needed where there is no terminal to ask on
    #[arg(short, long)]
    yes: bool,

    /// Print one JSON object instead of lines (docs/json.md)
    #[arg(short, long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// The drives, by their UUIDs or their names
    #[arg(value_name = "DRIVE", required = true)]
    drives: Vec<Named>,
}

fn client_config() -> ClientConfig {
    ClientConfig {
        outage: wait_lines::MAX_OUTAGE,
        ..ClientConfig::default()
    }
}

/// Runs one of these commands.
fn main(
    form: OutputForm,
    is_json: bool,
    access: &Access,
    run: impl AsyncFnOnce(&Client, &Patience, Stop) -> Result<CommandOutput>,
) -> ExitCode {
    form.run(is_json, async |mut stop| {
        let client = access.client(client_config(), &mut stop).await?;
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
            let rows = stop.unless_asked(rows(client, patience)).await?;
            Ok(CommandOutput::new(listed(rows), Value::Null))
        },
    )
}

/// `openhosting ls --json`: the drives in the order in which the endpoint gives them, each
/// printed as it comes.
fn ls_json(access: &Access) -> ExitCode {
    let list = JsonList::start(LS, "drives");
    let items = list.items();
    let done = signals::hearing(LS.program, None, async |mut stop| {
        let client = access.client(client_config(), &mut stop).await?;
        let patience = wait_lines::patience();
        let drives = each_drive(&client, &patience, async |drive| {
            // It fails where nobody reads stdout any more: the end of the list says so.
            let _ = items.send((drive.id.to_bytes(), object(&drive))).await;
        });
        let drives = stop.unless_asked(drives);
        patience.watching(&mut WaitLines(LS.program), drives).await
    });
    let (result, heard) = done.unwrap_or_else(|error| (Err(error), Heard::default()));
    list.finish(result, &heard)
}

/// The rows of the table, by name.
async fn rows(client: &Client, patience: &Patience) -> Result<Vec<Row>> {
    let mut rows = std::collections::BTreeMap::new();
    let list = each_drive(client, patience, async |drive| {
        rows.insert((name(&drive).to_owned(), drive.id), row(&drive));
    });
    list.await?;
    Ok(rows.into_values().collect())
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
            let mut object = object(&drive);
            let properties = drive.properties.iter();
            object["properties"] = properties
                .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
                .collect::<serde_json::Map<_, _>>()
                .into();
            Ok(CommandOutput::new(told(&drive), object))
        },
    )
}

/// `openhosting rm`.
pub(super) fn rm(arguments: &RmArguments) -> ExitCode {
    main(
        RM,
        arguments.json,
        &arguments.access,
        async |client, patience, stop| remove(client, arguments, patience, stop).await,
    )
}

fn name(drive: &DriveInfo) -> &str {
    drive.properties.get("name").unwrap_or_default()
}

/// What it is doing, or the endpoint says it is.
fn status(drive: &DriveInfo) -> String {
    match drive.imaging() {
        Some(progress) => format!("imaging {progress}"),
        None => drive.properties.get("status").unwrap_or("?").to_owned(),
    }
}

/// When it was published, or how far it is.
fn published(publication: &Publication) -> String {
    match (publication.state, publication.published_ms) {
        ("published", Some(ms)) => time(ms),
        ("published", None) => "yes".to_owned(),
        (state, _) => format!("unfinished, {state}"),
    }
}

/// A time in milliseconds since 1970, as RFC 3339 writes it.
fn time(ms: u64) -> String {
    // Beyond the year 9999 there is no such text.
    const MS_MAX: u64 = 253_402_300_799_000;
    let time = UNIX_EPOCH + Duration::from_millis(ms.min(MS_MAX));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A row of the table of `ls`.
type Row = [String; 6];

fn row(drive: &DriveInfo) -> Row {
    [
        name(drive).to_owned(),
        HumanBytes(drive.size).to_string(),
        status(drive),
        drive.claimed().unwrap_or_default().to_owned(),
        publication(drive).map_or(String::new(), |told| published(&told)),
        drive.id.to_string(),
    ]
}

/// The table of `ls`.
fn listed(rows: Vec<Row>) -> String {
    let head = ["NAME", "SIZE", "STATUS", "USED BY", "PUBLISHED", "UUID"];
    let head = std::iter::once(head.map(str::to_owned));
    table(head.chain(rows), &[1])
}

/// The lines of `show`.
fn told(drive: &DriveInfo) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(
            text,
            "{:<12} {}",
            printable::line(key),
            printable::line(value)
        );
    };
    line("Name", name(drive));
    line("UUID", &drive.id.to_string());
    let size = format!("{} bytes, {}", drive.size, HumanBytes(drive.size));
    line("Size", &size);
    line("Status", &status(drive));
    line("Used by", drive.claimed().unwrap_or("nobody"));
    if let Some(publication) = publication(drive) {
        line("Published", &published(&publication));
        if let Some(root) = publication.root {
            let key = match publication.state {
                "published" => "Root",
                _ => "Root to be",
            };
            line(key, &root.to_string());
        }
    }
    // What was told above in other words.
    const TOLD: [&str; 6] = ["name", "drive", "size", "status", "claimed", "imaging"];
    let others = drive.properties.iter();
    for (key, value) in others.filter(|(key, _)| !TOLD.contains(&key.as_str())) {
        line(key, value);
    }
    text
}

/// A drive for programs. Its keys are a promise: docs/json.md.
fn object(drive: &DriveInfo) -> Value {
    let text = |key| drive.properties.get(key).filter(|text| !text.is_empty());
    let list = |key| {
        let words = text(key).unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    json!({
        "drive": drive.id.to_string(),
        "name": text("name"),
        "size": drive.size,
        "status": text("status"),
        "claimed": drive.claimed(),
        "imaging": drive.imaging(),
        "tier": text("tier"),
        "tags": list("tags"),
        "readers": list("readers"),
        "publication": publication(drive).map(|told| json!({
            "token": told.token,
            "state": told.state,
            "root": told.root.map(|root| root.to_string()),
            "published_ms": told.published_ms,
        })),
    })
}

async fn remove(
    client: &Client,
    arguments: &RmArguments,
    patience: &Patience,
    mut stop: Stop,
) -> Result<CommandOutput> {
    let drives = stop.unless_asked(async {
        let drives = found(client, &arguments.drives, patience).await?;
        if !arguments.yes {
            ask(&drives).await?;
        }
        Ok(drives)
    });
    let drives = drives.await?;
    let mut answer = CommandOutput::new(String::new(), Value::Null);
    let mut objects = Vec::new();
    for drive in &drives {
        // One whose destruction was asked for is waited for, as ever.
        let removed = if stop.is_asked() {
            Err(stopped())
        } else {
            tokio::select! {
                removed = remove_drive(client, drive.id, patience) => removed,
                () = stop.asked_at_once() => Err(stopped()),
            }
        };
        let mut object = json!({
            "drive": drive.id.to_string(),
            "name": drive.properties.get("name"),
            "removed": removed.is_ok(),
        });
        match removed {
            Ok(()) => {
                let _ = writeln!(
                    answer.text,
                    "Removed {} {}",
                    drive.id,
                    printable::line(name(drive))
                );
            }
            Err(error) => {
                object["error"] = error_object(&error, exit::code_of(error.kind()));
                // The last one is told as that of the command.
                if let Some(before) = answer.error.replace(error) {
                    exit::tell(RM.program, &before);
                }
            }
        }
        objects.push(object);
    }
    answer.object = json!({ "drives": objects });
    Ok(answer)
}

/// The drives that are meant, each once.
async fn found(client: &Client, named: &[Named], patience: &Patience) -> Result<Vec<DriveInfo>> {
    let has_names = named.iter().any(|named| named.id().is_none());
    let all = match has_names {
        true => {
            let is_named = |drive: &DriveInfo| {
                let is_it =
                    |named: &Named| matches!(named, Named::Name(other) if other == name(drive));
                named.iter().any(is_it)
            };
            drives_that(client, patience, is_named).await?
        }
        false => Vec::new(),
    };
    let mut found: Vec<DriveInfo> = Vec::new();
    for named in named {
        let drive = match named {
            Named::Id(id) => look_at_drive(client, *id, patience).await?,
            Named::Name(name) => only_named(&all, name)?.clone(),
        };
        if found.iter().all(|other| other.id != drive.id) {
            found.push(drive);
        }
    }
    Ok(found)
}

/// Asks whether these drives are to go.
async fn ask(drives: &[DriveInfo]) -> Result<()> {
    let refuse = |what: &str| Error::new(ErrorKind::Usage, format!("Nothing is removed: {what}"));
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refuse("there is no terminal to ask on")
            .hint_to("Say --yes to destroy them without a question"));
    }
    for drive in drives {
        let size = HumanBytes(drive.size);
        let used = match drive.claimed() {
            Some(by) => format!(", in use by {}", printable::line(by)),
            None => String::new(),
        };
        exit::say(&format!(
            "{}  {}, {size}{used}",
            drive.id,
            printable::line(name(drive))
        ));
    }
    let (what, them) = match drives.len() {
        1 => ("this drive".to_owned(), "it"),
        many => (format!("these {many} drives"), "them"),
    };
    exit::say(&format!("Destroy {what} and all that is on {them}? [y/N]"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = answer.await.ok().and_then(std::io::Result::ok);
    let is_meant = is_yes(&answer.unwrap_or_default());
    is_meant
        .then_some(())
        .ok_or_else(|| refuse("the answer was not yes"))
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Format, Properties};

    const ID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

    fn drive(more: &str) -> DriveInfo {
        let text = format!("drive {ID}\nsize 10737418240\n{more}\n");
        let properties = Properties::parse(Format::Text, text.as_bytes()).unwrap();
        DriveInfo::from_properties(properties).unwrap()
    }

    #[test]
    fn the_table_tells_what_a_drive_is_doing() {
        let publishing = "user:oh-publish t\nuser:oh-state";
        let drives = [
            drive("name a\nstatus active\nclaimed s1"),
            drive("status inactive\nimaging 5%"),
            drive(&format!(
                "name b\n{publishing} published\nuser:oh-published 1700000000000"
            )),
            drive(&format!("name c\n{publishing} writing")),
        ];
        let table = listed(drives.iter().map(row).collect());
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines[0],
            ["NAME", "SIZE", "STATUS", "USED BY", "PUBLISHED", "UUID"]
        );
        assert_eq!(lines[1], ["a", "10.00 GiB", "active", "s1", ID]);
        assert_eq!(lines[2], ["10.00 GiB", "imaging 5%", ID]);
        assert_eq!(
            lines[3],
            ["b", "10.00 GiB", "?", "2023-11-14T22:13:20Z", ID]
        );
        assert_eq!(lines[4], ["c", "10.00 GiB", "?", "unfinished, writing", ID]);
    }

    #[test]
    fn no_time_is_too_late() {
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn only_yes_is_yes() {
        for yes in ["y", "Y\n", "yes\n", " YES "] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "no", "yess", "ja"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
