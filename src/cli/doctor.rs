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
use super::{environment, help, remedies, screen, wait_lines};
use crate::amounts::{duration, size};
use crate::api::{Client, ClientConfig, RawCall, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::private_directory;
use crate::system::{allocated_bytes, free_bytes};
use crate::transfer::{Stop, blocking};

/// Where the text of a check begins in its line.
const TEXT_COLUMN: usize = 22;
const FORM: OutputForm = OutputForm {
    program: "openhosting doctor",
    schema: "doctor/1",
    short: Some("-j"),
};

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
            let endpoint = format!("{endpoint} (from {from})");
            checks.push(Check("endpoint", Found::Fine(endpoint)));
            checks.extend(proxy(&resolved)?);
            let config = ClientConfig {
                outage: wait_lines::MAX_OUTAGE,
                ..ClientConfig::default()
            };
            match arguments.access.connect(resolved, config, &mut stop).await {
                Err(error) => checks.push(Check("credentials", Found::Broken(error))),
                Ok(client) => {
                    checks.extend(stop.unless_asked(call(&client)).await?);
                }
            }
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

/// Makes a call, which shows whether connection, credentials and clock are correct.
async fn call(client: &Client) -> Result<Vec<Check>> {
    let began = Instant::now();
    let call = RawCall {
        url: client.endpoint().url(["drives", "list"])?,
        body: Upload::empty(),
        content_type: "application/octet-stream",
        accept: Some("application/json"),
    };
    let response = match client.raw(call).await {
        Ok(response) => response,
        Err(failure) => {
            let error = failure.into_error("Cannot make a call");
            return Ok(vec![Check("connection", Found::Broken(error))]);
        }
    };
    let took = began.elapsed();
    let connection = format!("the first call took {} ms", took.as_millis());
    let mut checks = vec![Check("connection", Found::Fine(connection))];
    let status = response.status();
    let found = match status.as_u16() {
        200..300 => Found::Fine(format!("accepted, of the user {}", client.user())),
        401 | 403 => Found::Broken(
            Error::new(
                ErrorKind::Unauthenticated,
                format!("The endpoint refuses them ({status})"),
            )
            .hint_to("Check the user UUID and the key, or run: openhosting login"),
        ),
        _ => Found::Broken(Error::new(
            ErrorKind::Rejected,
            format!("The endpoint answers {status} to a list of drives: is it an OpenHosting API?"),
        )),
    };
    checks.push(Check("credentials", found));
    let date = response.headers().get("date");
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    checks.extend(date.map(|date| Check("clock", clock(date, SystemTime::now()))));
    Ok(checks)
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
        Some(directory) => match private_directory(&directory) {
            Err(cause) => {
                let what = format!("Cannot use {}", directory.display());
                Found::Broken(
                    Error::new(ErrorKind::Local, what)
                        .because(cause)
                        .hint_to(environment::SET_STATE),
                )
            }
            Ok(()) => Found::Fine(directory.display().to_string()),
        },
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
            Found::Broken(error) => (
                "failed",
                error.chain().to_string(),
                error.hint().map(remedies::worded),
            ),
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
