//! `openhosting api`: the tool for raw calls. Each call is one request, and stdout is exactly the
//! answer of the endpoint, which a terminal shows without control characters.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{IsTerminal, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use bytes::Bytes;
use clap::Parser;
use clap_complete::engine::ArgValueCompleter;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use uuid::Uuid;

use super::access::Access;
use super::exit::Notice;
use super::screen::Stdout;
use super::transfer_command::as_program;
use super::{candidates, complete, exit, help, signals, usage};
use crate::api::{Client, ClientConfig, Flow, RawCall, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::nonblocking::{self, Waiting};
use crate::quoting::quote;
use crate::transfer::blocking;
use crate::wire::{Format, X_ELASTIC_ERROR};

const PROGRAM: &str = "openhosting";
/// The first words of the API's calls (docs/dev/reference.md, 1.1).
pub(super) const API_OBJECTS: [&str; 4] = ["drives", "servers", "resources", "profile"];
/// Bytes of a large body to read at a time.
const STEP_BYTES: usize = 256 * 1024;
/// A message is printed if a call had no answer for this long.
const SILENCE: Duration = Duration::from_secs(15);

/// Makes a raw call of the API and prints the answer
///
/// The words CMD are the path of the call: openhosting api drives list. "api" can be left out if
/// the path begins with drives, servers, resources or profile. "openhosting server" has no calls
/// about profiles. Without the word api and without a terminal, flags after the path are taken for
/// words of it, as by the providers' script.
///
/// If the endpoint answers with an error, the answer is printed. The exit code is then 0, as with
/// the providers' script, or 1 with --fail.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    version,
    after_long_help = help::after("api"),
    args_override_self = true
)]
pub(super) struct CallArguments {
    /// Send input data from stdin
    #[arg(short = 'c', conflicts_with = "file")]
    stdin: bool,

    /// Send input data from FILENAME
    #[arg(short, value_name = "FILENAME", add = candidates::files())]
    file: Option<PathBuf>,

    /// Send and receive JSON
    #[arg(short = 'j', short_alias = 'J', long)]
    json: bool,

    /// Show the headers, with the secret masked
    #[arg(short, long)]
    verbose: bool,

    /// Exit with 1 when the endpoint answers with an error
    #[arg(long)]
    fail: bool,

    #[command(flatten)]
    access: Access,

    /// Path of the call, in words
    #[arg(value_name = "CMD", required = true, add = objects())]
    command: Vec<String>,
}

/// Completes the first word of the path.
fn objects() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let words = complete::words();
        let is_object = |word: &OsString| API_OBJECTS.iter().any(|object| *word == **object);
        let has_object = words.iter().rev().skip(1).any(is_object);
        let objects = API_OBJECTS.into_iter().filter(|_| !has_object);
        candidates::candidates(objects.map(|word| (word.to_owned(), None)), current)
    })
}

/// `openhosting api`.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    exit::main(PROGRAM, &as_program(words), call)
}

/// Where the path begins in a command line, whose first word is the program.
pub(super) fn path_begins(words: &[OsString]) -> Option<usize> {
    (1..words.len()).find(|&at| {
        CallArguments::try_parse_from(&words[..=at])
            .is_ok_and(|parsed| *words[at] == *parsed.command.concat())
    })
}

/// Makes the call.
pub(super) fn call(arguments: &CallArguments) -> ExitCode {
    // One call is everything, so when it is interrupted nothing must be finished first.
    let (answer, heard) = signals::hearing(None, None, async |mut stop| {
        let client = arguments
            .access
            .client(ClientConfig::default(), &mut stop)
            .await?;
        stop.unless_asked(run(arguments, &client)).await
    });
    match answer {
        Ok(is_success) if is_success || !arguments.fail => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => exit::failed(PROGRAM, &error, heard.exit_code(error.kind())),
    }
}

/// Returns whether the endpoint answered with success.
async fn run(arguments: &CallArguments, client: &Client) -> Result<bool> {
    let url = client.endpoint().url(arguments.segments())?;
    // Input from a terminal or a pipe may block for any time, in which a signal must still be
    // heard.
    let body = match (arguments.file.clone(), arguments.stdin) {
        (Some(path), _) => Some(blocking(move || file_body(&path)).await?),
        (None, true) => Some(blocking(stdin_body).await?),
        (None, false) => None,
    };
    let json = arguments.json.then(|| Format::Json.media_type());
    let call = RawCall {
        content_type: match (&body, json) {
            (None, _) => Format::Text.media_type(),
            (Some(_), Some(json)) => json,
            (Some(_), None) => "application/octet-stream",
        },
        accept: json,
        body: body.unwrap_or_else(Upload::empty),
        url,
    };
    if arguments.verbose {
        show_request(&call);
    }
    let cannot = |failure: crate::failure::Failure| failure.into_error("No answer");
    let response = with_notice(client.raw(call)).await.map_err(cannot)?;
    if arguments.verbose {
        show_answer(&response);
    }
    let status = response.status();
    let error = response.headers().get(X_ELASTIC_ERROR).cloned();
    print_body(client.flow(), response).await?;
    if !status.is_success() {
        let word = error.as_ref().and_then(|value| value.to_str().ok());
        let line = format!(
            "{PROGRAM}: endpoint answered {} {}",
            status.as_u16(),
            word.unwrap_or_default()
        );
        exit::say(line.trim_end());
        // Programs read the same lines as from the providers' script.
        if status == StatusCode::NOT_FOUND && std::io::stdout().is_terminal() {
            let segments: Vec<_> = arguments.segments().collect();
            if let Some(advice) = advice_on_missing(&segments) {
                exit::say(&advice);
            }
        }
    }
    Ok(status.is_success())
}

/// What to do after the answer 404 to a call with this path.
fn advice_on_missing(path: &[&str]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    if !API_OBJECTS.contains(first) {
        return Some(match usage::nearest(first, API_OBJECTS) {
            Some(object) => {
                let rest: String = rest
                    .iter()
                    .map(|word| format!(" {}", quote(word)))
                    .collect();
                format!("Did you mean: {PROGRAM} {object}{rest}")
            }
            None => "A call begins with drives, servers, resources or profile".to_owned(),
        });
    }
    match rest {
        [name, _, ..] if *first == "drives" && name.parse::<Uuid>().is_err() => Some(format!(
            "Raw calls take the UUID of a drive, which this prints: {PROGRAM} show {}",
            quote(name)
        )),
        // The advice must not be the call that has failed.
        ["list" | "info"] => Some(format!("This endpoint has no call {:?}", path.join(" "))),
        // An endpoint without one call about profiles has none.
        _ if *first == "profile" => Some("This endpoint has no such call".to_owned()),
        _ => Some(format!("A call that exists: {PROGRAM} {first} list")),
    }
}

/// Waits for an answer. As in the original script, the call is made once. But if it hangs, a
/// message says so.
async fn with_notice<T>(answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => return answer,
        () = tokio::time::sleep(SILENCE) => {}
    }
    let silence = SILENCE.as_secs();
    let line = format!("No answer from the endpoint for {silence} s, waiting");
    Notice::Warning.say(PROGRAM, &line);
    answer.await
}

impl CallArguments {
    /// The first word of the path.
    pub(super) fn first_word(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// The segments of the path. As in the original script, a space within an argument separates
    /// segments too.
    fn segments(&self) -> impl Iterator<Item = &str> {
        self.command
            .iter()
            .flat_map(|word| word.split([' ', '/']))
            .filter(|word| !word.is_empty())
    }
}

/// A body from a file of any size. It is streamed, and its length is known beforehand.
fn file_body(path: &Path) -> Result<Upload> {
    let cannot = |what: &str| Error::new(ErrorKind::Local, format!("{} {what}", path.display()));
    let file = File::open(path).map_err(|cause| match cause.kind() {
        kind @ std::io::ErrorKind::NotFound => {
            let hint = match path.is_absolute() {
                true => Some("Check the path".to_owned()),
                false => exit::advice_on(kind),
            };
            cannot("not found").hint_to(hint.unwrap_or_default())
        }
        _ => cannot("cannot be opened").because(cause),
    })?;
    let metadata = file
        .metadata()
        .map_err(|cause| cannot("cannot be measured").because(cause))?;
    if metadata.is_dir() {
        return Err(cannot("is a directory").hint_to("Name a file that holds the input data"));
    }
    if metadata.is_file() {
        Ok(stream(file, metadata.len()))
    } else {
        spool(file)
    }
}

/// A body from stdin. A file is streamed from its current position. The length of anything else is
/// only known at its end.
fn stdin_body() -> Result<Upload> {
    let unreadable = |cause| Error::new(ErrorKind::Local, "Cannot read stdin").because(cause);
    let mut file = nonblocking::stdin().map_err(unreadable)?;
    // Some systems cannot report metadata of a pipe.
    let metadata = file.metadata().ok().filter(Metadata::is_file);
    if let Some(metadata) = metadata {
        let position = file.stream_position().map_err(unreadable)?;
        return Ok(stream(file, metadata.len().saturating_sub(position)));
    }
    spool(file)
}

/// Stores input of unknown length in a temporary file without a name, because the service requires
/// the length, and the input may not fit into memory.
fn spool(source: File) -> Result<Upload> {
    let cannot = |cause| Error::new(ErrorKind::Local, "Cannot keep the input data").because(cause);
    if source.is_terminal() {
        exit::say("Type the input; Ctrl-D ends it");
    }
    let mut spooled = tempfile::tempfile().map_err(cannot)?;
    let len = std::io::copy(&mut Waiting(source), &mut spooled).map_err(cannot)?;
    spooled.rewind().map_err(cannot)?;
    Ok(stream(spooled, len))
}

fn stream(file: File, len: u64) -> Upload {
    if len == 0 {
        return Upload::empty();
    }
    let (sender, parts) = async_channel::bounded(4);
    tokio::task::spawn_blocking(move || read_parts(file, len, &sender));
    Upload::Stream { len, parts }
}

/// Reads exactly `len` bytes. It is an error if the file shrinks, and bytes that are added to it
/// are ignored.
fn read_parts(mut file: File, len: u64, sender: &Sender<std::io::Result<Bytes>>) {
    let mut left = len;
    while left > 0 {
        let step = STEP_BYTES.min(usize::try_from(left).unwrap_or(STEP_BYTES));
        let mut part = vec![0; step];
        let read = file.read_exact(&mut part).map(|()| Bytes::from(part));
        let failed = read.is_err();
        left -= step as u64;
        if sender.send_blocking(read).is_err() || failed {
            return;
        }
    }
}

async fn print_body(mut flow: Flow, mut response: Response) -> Result<()> {
    let cannot = |failure: crate::failure::Failure| failure.into_error("The answer is incomplete");
    let (sender, parts) = async_channel::bounded::<Bytes>(4);
    // Output to a terminal or a pipe may block for any time, which must not block the async
    // runtime.
    let printer = tokio::task::spawn_blocking(move || print_parts(&parts));
    let mut incomplete = Ok(());
    loop {
        match flow.next_part(&mut response).await {
            Ok(Some(part)) => {
                if sender.send(part).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(failure) => {
                incomplete = Err(cannot(failure));
                break;
            }
        }
    }
    drop(sender);
    let printed = printer
        .await
        .unwrap_or_else(|cause| Err(std::io::Error::other(cause)));
    printed.map_err(exit::cannot_print)?;
    incomplete
}

fn print_parts(parts: &Receiver<Bytes>) -> std::io::Result<()> {
    let mut stdout = Stdout::open()?;
    while let Ok(part) = parts.recv_blocking() {
        stdout.write_all(&part)?;
    }
    stdout.flush()
}

fn show_request(call: &RawCall) {
    exit::say(&format!("> POST {} HTTP/1.1", call.url.path()));
    exit::say(&format!("> Host: {}", call.url.authority()));
    exit::say("> Authorization: Basic <masked>");
    exit::say(&format!("> Content-Type: {}", call.content_type));
    exit::say(&format!("> Accept: {}", call.accept.unwrap_or("*/*")));
    exit::say(&format!("> Content-Length: {}", call.body.len()));
    exit::say(">");
}

fn show_answer(response: &Response) {
    exit::say(&format!("< {:?} {}", response.version(), response.status()));
    let headers: &HeaderMap<HeaderValue> = response.headers();
    for (name, value) in headers {
        exit::say(&format!(
            "< {name}: {}",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    exit::say("<");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_slashes_and_flags_may_be_anywhere() {
        for line in [
            &["-jv", "--fail", "drives list"][..],
            &["-jv", "drives", "list", "-j", "--fail"],
            &["drives", "-jv", "/list/", "--fail"],
        ] {
            let words = std::iter::once("openhosting").chain(line.iter().copied());
            let arguments = CallArguments::try_parse_from(words).unwrap();
            assert!(arguments.json && arguments.verbose && arguments.fail);
            let path: Vec<_> = arguments.segments().collect();
            assert_eq!(path, ["drives", "list"]);
        }
        let begins = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            path_begins(&words)
        };
        assert_eq!(begins("openhosting drives list -j"), Some(1));
        assert_eq!(
            begins("openhosting -j --profile drives drives list"),
            Some(4)
        );
        assert_eq!(begins("openhosting -j"), None);
        assert!(CallArguments::try_parse_from(["openhosting"]).is_err());
        assert!(CallArguments::try_parse_from(["openhosting", "-x", "drives"]).is_err());
    }
    /// Whatever failed is not advised again, and what is advised can exist.
    #[test]
    fn the_advice_after_404_is_another_call() {
        for (path, advice) in [
            ("drives", "A call that exists: openhosting drives list"),
            ("drives lst", "A call that exists: openhosting drives list"),
            (
                "servers x start",
                "A call that exists: openhosting servers list",
            ),
            ("drives list", "This endpoint has no call \"drives list\""),
            ("profile info", "This endpoint has no call \"profile info\""),
            ("profile lst", "This endpoint has no such call"),
            (
                "list",
                "A call begins with drives, servers, resources or profile",
            ),
            ("drive list", "Did you mean: openhosting drives list"),
            (
                "drives web-1 info",
                "Raw calls take the UUID of a drive, which this prints: openhosting show web-1",
            ),
            (
                "drives 7cdd6a1d-0c3c-4d4f-8f3f-5d4c9b8b2f6a info",
                "A call that exists: openhosting drives list",
            ),
        ] {
            let words: Vec<_> = path.split(' ').collect();
            assert_eq!(advice_on_missing(&words).as_deref(), Some(advice), "{path}");
        }
    }
}
