//! `openhosting doctor`: looks for problems that would stop a transfer, before one is started.
//!
//! Each check prints a line: `ok`, `warning` or `failed`, the result, and what to do about it.
//! Where possible, checks do not depend on each other, so that one run shows all problems. The
//! command makes one call, which lists drives, and leaves nothing behind.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use serde_json::{Value, json};

use super::access::{self, Access};
use super::config::ConfigFile;
use super::output::{CommandOutput, OutputForm};
use super::{environment, exit, help, screen, wait_lines};
use crate::amounts::{duration, size};
use crate::api::{Client, Endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{Failure, Transient};
use crate::journal::Journal;
use crate::system::{allocated_bytes, free_bytes};
use crate::transfer::{Stop, blocking};

/// Where the text of a check begins in its line.
const TEXT_COLUMN: usize = 22;
const FORM: OutputForm = OutputForm::new("openhosting doctor", "doctor/1").with_j();

/// The clocks of both ends may differ by this much. Certificates, and the dates of published
/// drives, depend on the clock; signatures of requests do not exist in this API.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(300);
/// Less free space than this is reported.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// The length of the file with which it is tested whether holes need space.
const HOLE_BYTES: u64 = 8 << 20;

/// Finds out what would stop a transfer
///
/// Checks the config, the endpoint, the connection, TLS, the credentials, the clock, the
/// state directory, and the file system of the directory that you are in. It makes one call,
/// which lists drives.
#[derive(Debug, Parser)]
#[command(name = "openhosting-doctor", bin_name = "openhosting doctor", version, after_long_help = help::after("doctor"))]
pub(super) struct DoctorArguments {
    /// Print one JSON object instead of lines
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    #[command(flatten)]
    access: Access,
}

pub(super) fn main(words: &[OsString]) -> ExitCode {
    FORM.main(words, |arguments: &DoctorArguments| {
        FORM.run(arguments.json, async |stop| {
            Ok(report(&checks(arguments, stop).await?))
        })
    })
}

/// The result of a check.
enum Found {
    Fine(String),
    /// A transfer works, but not as well as it could. The second text says what to do.
    Weak(String, &'static str),
    /// A transfer would fail with this error.
    Broken(Error),
}

/// What was checked, and the result.
struct Check(&'static str, Found);

/// All checks, in the order in which a transfer would encounter the problems.
async fn checks(arguments: &DoctorArguments, mut stop: Stop) -> Result<Vec<Check>> {
    let mut checks = vec![Check("config", config())];
    match arguments.access.resolve() {
        Err(error) => checks.push(Check("endpoint", Found::Broken(error))),
        Ok(resolved) => {
            let (endpoint, from) = resolved.endpoint();
            let address = Address {
                endpoint: endpoint.clone(),
                from: from.to_owned(),
                credentials_from: resolved.credentials_from(),
                if_refused: resolved.if_refused(),
            };
            let proxy = proxy(&resolved)?;
            let client = resolved.client(wait_lines::config(), &mut stop).await;
            let (wrong_endpoint, called) = match client {
                Err(error) => (None, vec![Check("credentials", Found::Broken(error))]),
                Ok(client) => {
                    let called = async { Ok(call(&client, &address).await) };
                    stop.unless_asked(called).await?
                }
            };
            let endpoint = wrong_endpoint.unwrap_or_else(|| Found::Fine(address.named()));
            checks.push(Check("endpoint", endpoint));
            checks.extend(proxy);
            checks.extend(called);
        }
    }
    checks.extend(blocking(|| Ok(places())).await?);
    Ok(checks)
}

fn config() -> Found {
    let Some(path) = environment::config_file() else {
        return Found::Fine("none: HOME and XDG_CONFIG_HOME are not set".to_owned());
    };
    match ConfigFile::open(&path) {
        Err(error) => Found::Broken(error),
        Ok(None) => Found::Fine(format!("none; it would be {}", path.display())),
        Ok(Some(_)) => Found::Fine(path.display().to_string()),
    }
}

/// The proxy for calls, if there is one.
fn proxy(resolved: &access::ResolvedAccess) -> Result<Option<Check>> {
    let proxy = resolved.proxy(&access::route()?);
    Ok(proxy.map(|proxy| Check("proxy", Found::Fine(proxy))))
}

/// An endpoint, and where it is defined.
struct Address {
    endpoint: Endpoint,
    from: String,
    /// Where the credentials are defined.
    credentials_from: String,
    /// What to do if the endpoint refuses the credentials.
    if_refused: String,
}

/// Makes a call, which shows whether endpoint, connection, credentials and clock are correct.
async fn call(client: &Client, address: &Address) -> (Option<Found>, Vec<Check>) {
    let began = Instant::now();
    let (date, answer) = match client.first_contact().await {
        Ok(contact) => contact,
        Err(failure) => {
            let error = failure.into_error("Cannot make a call");
            return (None, vec![Check("connection", Found::Broken(error))]);
        }
    };
    let took = began.elapsed();
    let connection = format!("the first call took {} ms", took.as_millis());
    let mut checks = vec![Check("connection", Found::Fine(connection))];
    let mut wrong_endpoint = None;
    match answer.map_err(|failure| Answer::of(failure, address)) {
        Ok(()) => {
            let from = &address.credentials_from;
            let accepted = format!("accepted, of the user {} (from {from})", client.user());
            checks.push(Check("credentials", Found::Fine(accepted)));
        }
        Err(Answer::Endpoint(error)) => wrong_endpoint = Some(Found::Broken(error)),
        Err(Answer::Credentials(error)) => {
            checks.push(Check("credentials", Found::Broken(error)));
        }
        Err(Answer::Connection(error)) => {
            checks = vec![Check("connection", Found::Broken(error))];
        }
    }
    checks.extend(date.map(|date| Check("clock", clock(date, SystemTime::now()))));
    (wrong_endpoint, checks)
}

/// What is wrong according to an answer.
enum Answer {
    /// What answers there is not this API, or does not work.
    Endpoint(Error),
    Credentials(Error),
    Connection(Error),
}

impl Answer {
    fn of(failure: Failure, address: &Address) -> Self {
        let status = match &failure {
            Failure::Refused(refusal) => Some(refusal.status),
            _ => None,
        };
        match status {
            // A page that asks for a password is of a web server, not of the API.
            Some(401 | 403) if !has_page(&failure) => Self::Credentials(
                Error::new(
                    ErrorKind::Unauthenticated,
                    format!(
                        "The endpoint refuses them (from {}): {failure}",
                        address.credentials_from
                    ),
                )
                .hint_to(address.if_refused.clone()),
            ),
            Some(402) => Self::Credentials(failure.into_error("The endpoint refuses the account")),
            // Any 5xx, not only one that may pass: the advice to ask who runs the endpoint is right
            // for a server that cannot do this (501) or is full (507) as well.
            Some(status) if status >= 500 || Transient::of(status).is_some() => Self::Endpoint(
                Error::new(
                    ErrorKind::Unavailable,
                    format!("{} does not work now: {failure}", address.named()),
                )
                .hint_to("Try again later. If it stays so, ask who runs the endpoint"),
            ),
            None if failure.is_break() => {
                Self::Connection(failure.into_error("Cannot read the answer"))
            }
            _ => Self::Endpoint(address.is_wrong(&failure)),
        }
    }
}

/// Whether the body of an error answer is a web page.
fn has_page(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal) if refusal.is_page())
}

impl Address {
    fn named(&self) -> String {
        format!("{} (from {})", self.endpoint, self.from)
    }

    /// The error for an endpoint that answered in a way in which this API does not answer a request
    /// for the list of drives.
    fn is_wrong(&self, failure: &Failure) -> Error {
        let is_api = matches!(failure, Failure::Refused(refusal) if refusal.error.is_some());
        let what = match is_api {
            true => format!("{} has no drives at this path: {failure}", self.named()),
            false => format!("{} is no OpenHosting API: {failure}", self.named()),
        };
        let hint = match self.endpoint.without_path() {
            Some(root) => format!("The API has no path at most providers: try {root}"),
            None => {
                "Use the URI that your provider names, such as https://api-east1.openhosting.com/"
                    .to_owned()
            }
        };
        let hint = match is_api {
            true => hint,
            false => format!(
                "{hint}\nIf the URI is right, something else answers in its place: a proxy, or the login page of a network"
            ),
        };
        Error::new(ErrorKind::Protocol, what).hint_to(hint)
    }
}

fn clock(theirs: SystemTime, ours: SystemTime) -> Found {
    let difference = ours
        .duration_since(theirs)
        .unwrap_or_else(|error| error.duration());
    let text = format!("differs from the endpoint's by {}", duration(difference));
    match difference > CLOCK_DIFFERENCE_MAX {
        true => Found::Weak(text, "Set the clock, or start a time service (NTP)"),
        false => Found::Fine(text),
    }
}

/// The directories that a transfer writes to.
fn places() -> Vec<Check> {
    let state = match environment::state_of("journals") {
        None => Found::Broken(environment::no_state_directory("journals")),
        Some(directory) => {
            let usable = environment::usable_state(&directory);
            match usable.and_then(|()| Journal::check_place(&directory)) {
                Err(error) => Found::Broken(error),
                Ok(()) => Found::Fine(directory.display().to_string()),
            }
        }
    };
    let here = Path::new(".");
    let mut checks = vec![Check("state", state)];
    checks.extend(free_bytes(here).map(|free| {
        let text = format!("{} in this directory", size(free));
        let found = match free < FREE_BYTES_MIN {
            true => Found::Weak(text, "Download to another file system, or make room"),
            false => Found::Fine(text),
        };
        Check("free space", found)
    }));
    checks.push(Check("holes", holes(here)));
    checks
}

/// Checks whether a hole needs space in a directory.
fn holes(directory: &Path) -> Found {
    const HINT: &str = "A download takes the whole size of the drive here: use another file system if there is too little room";
    let allocated = tempfile::tempfile_in(directory).and_then(|file| {
        file.set_len(HOLE_BYTES)?;
        Ok(allocated_bytes(&file))
    });
    match allocated {
        Err(cause) => Found::Weak(
            format!("unknown: nothing can be created in this directory ({cause})"),
            "Downloads to this directory would fail: check its permissions",
        ),
        Ok(None) => Found::Weak("unknown on this system".to_owned(), HINT),
        Ok(Some(bytes)) if bytes >= HOLE_BYTES => {
            Found::Weak("this file system has none".to_owned(), HINT)
        }
        Ok(Some(_)) => Found::Fine("zeros take no room in this directory".to_owned()),
    }
}

/// The report. Its error is the first problem that would stop a transfer.
fn report(checks: &[Check]) -> CommandOutput {
    let mut text = String::new();
    let mut list = Vec::new();
    let mut broken = None;
    for Check(name, found) in checks {
        let (word, what, hint) = match found {
            Found::Fine(what) => ("ok", what.clone(), None),
            Found::Weak(what, hint) => ("warning", what.clone(), Some((*hint).to_owned())),
            Found::Broken(error) => ("failed", error.chain().to_string(), exit::hint_of(error)),
        };
        let lines = std::iter::once(&*what).chain(hint.iter().flat_map(|hint| hint.lines()));
        let mut start = format!("{word:<8} {name:<12} ");
        for line in lines.flat_map(|line| screen::stdout_lines(line, TEXT_COLUMN)) {
            let _ = writeln!(text, "{start:TEXT_COLUMN$}{line}");
            start.clear();
        }
        if let Found::Broken(error) = found {
            broken.get_or_insert_with(|| {
                let what = format!("A transfer would fail: see \"{name}\"");
                Error::new(error.kind(), what)
            });
        }
        list.push(json!({ "check": name, "found": word, "text": what, "hint": hint }));
    }
    CommandOutput {
        text,
        object: json!({ "checks": Value::Array(list) }),
        error: broken,
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_minutes_off() {
        let now = SystemTime::now();
        let s = Duration::from_secs;
        assert!(matches!(clock(now, now + s(299)), Found::Fine(_)));
        assert!(matches!(clock(now + s(299), now), Found::Fine(_)));
        for (theirs, ours) in [(now, now + s(400)), (now + s(400), now)] {
            assert!(matches!(clock(theirs, ours), Found::Weak(..)));
        }
    }

    #[test]
    fn the_first_failed_check_decides_the_exit_code() {
        let broken = |kind| Found::Broken(Error::new(kind, "why").hint_to("do\nthat"));
        let output = report(&[
            Check("a", Found::Fine("good".into())),
            Check("b", Found::Weak("so so".into(), "better")),
            Check("c", broken(ErrorKind::Usage)),
            Check("d", broken(ErrorKind::Unavailable)),
        ]);
        let error = output.error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(error.to_string(), "A transfer would fail: see \"c\"");
        let lines: Vec<_> = output.text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "ok       a            good");
        assert_eq!(lines[2], "better");
        assert_eq!(&lines[4..6], ["do", "that"]);
        assert_eq!(output.object["checks"][3]["found"], "failed");
    }
}
