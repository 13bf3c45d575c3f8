//! `openhosting probe`: finds out how an endpoint behaves, and stores the answers.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use super::access::Access;
use super::bar::Bar;
use super::exit::Notice;
use super::output::{CommandOutput, OutputForm};
use super::text_table::table;
use super::{findings_file, help, screen, wait_lines};
use crate::amounts::duration;
use crate::api::ClientConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::findings::{
    Counts, Finding, Findings, GzipWrites, LargestBody, ParallelWrites, PastEnd, ReportedIn,
    RetryAfter, Size, Taken, WriteCounters,
};
use crate::monitor::{Event, Monitor};
use crate::plan::CHUNK_BYTES_DEFAULT;
use crate::transfer::{Probed, Stop, probe};
use crate::wire::READ_BYTES_MAX;

const PROGRAM: &str = "openhosting probe";
pub(super) const FORM: OutputForm = OutputForm::new(PROGRAM, "probe/1").with_j();
/// How long a request of a probe may move no bytes. It is less than in a transfer, because a probe
/// has little time and loses nothing.
const STALL: Duration = Duration::from_secs(10);

/// Finds out how an endpoint behaves where clouds differ
///
/// The providers do not document everything. This command creates a drive of 40 MiB that is named
/// openhosting-probe, uses it to find out how the endpoint behaves, and destroys it, even if you
/// stop the command. This takes up to two minutes and sends up to 60 MiB. The answers are saved as
/// the findings about the endpoint, which later transfers use.
#[derive(Debug, Parser)]
#[command(name = "openhosting-probe", bin_name = PROGRAM, version, after_long_help = help::after("probe"))]
pub(super) struct ProbeArguments {
    /// Print one JSON object instead of a table
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    #[command(flatten)]
    access: Access,

    /// Leave the saved findings as they are
    #[arg(long, alias = "keep-profile")]
    no_save: bool,
}

/// The command.
pub(super) fn main(arguments: &ProbeArguments) -> ExitCode {
    FORM.run(arguments.json, async |stop| run(arguments, stop).await)
}

async fn run(arguments: &ProbeArguments, mut stop: Stop) -> Result<CommandOutput> {
    let config = ClientConfig {
        stall: STALL,
        ..ClientConfig::default()
    };
    let client = arguments.access.client(config, &mut stop).await?;
    // Determined before a drive is created, because it may fail.
    let file = match arguments.no_save {
        true => None,
        false => Some(findings_file::path(&client.endpoint().to_string())?),
    };
    file.as_deref().map_or(Ok(()), findings_file::check)?;
    let mut said = ProbeLines(std::io::stderr().is_terminal());
    if screen::can_draw() {
        let bar = Bar::new("Probe", &client.endpoint().to_string(), Instant::now());
        screen::show(Arc::new(Mutex::new(bar)));
    }
    let probed = probe(&client, &mut said, stop).await;
    screen::end();
    let probed = probed?;
    if probed.is_stopped {
        let what = "Stopped before all was asked, nothing is kept";
        let stopped = Error::new(ErrorKind::Cancelled, what);
        return Err(match probed.removal {
            Ok(()) => stopped,
            Err(left) => {
                let hint = left.hint().cloned().unwrap_or_default();
                stopped.because(left).hint_to(hint)
            }
        });
    }
    let saved = file
        .as_ref()
        .map(|file| findings_file::save(&probed.findings, file));
    let saved = saved.transpose();
    let kept = saved.as_ref().ok().and(file);
    let mut answer = CommandOutput::new(
        answers(&rows(&probed.findings)),
        object(&probed, kept.as_ref()),
    );
    // If both failed, the drive that could not be removed is reported rather than the file.
    answer.error = probed.removal.err().or(saved.err());
    Ok(answer)
}

/// Prints progress for a user at a terminal.
struct ProbeLines(bool);

impl Monitor for ProbeLines {
    fn event(&mut self, event: &Event) {
        wait_lines::WaitLines(PROGRAM).event(event);
        if let (true, Event::Drive { id, .. }) = (self.0, event) {
            let line = format!("Asking, with drive {id}, for up to two minutes");
            Notice::Note.say(PROGRAM, &line);
        }
    }
}

/// The findings, with two more keys: `drive`, with its `uuid` and whether it was `removed`, and
/// `saved`, with the path of the findings or null.
fn object(probed: &Probed, saved: Option<&PathBuf>) -> Value {
    let mut object = probed.findings.to_json();
    object["drive"] = json!({
        "uuid": probed.drive.to_string(),
        "removed": probed.removal.is_ok(),
    });
    object["saved"] = saved.map(|path| path.to_string_lossy()).into();
    object
}

/// The rows as a table, or as paragraphs if the terminal would break its lines within words.
fn answers(rows: &[[String; 3]]) -> String {
    let text = table(rows.iter().cloned(), &[]);
    if screen::stdout_columns().is_none_or(|columns| screen::fits(&text, columns)) {
        return text;
    }
    let paragraph = |[question, answer, then]: &[String; 3]| {
        let below = [answer, then].map(|text| screen::stdout_lines(text, 2));
        let below: String = below
            .concat()
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect();
        format!("{question}\n{below}")
    };
    // Without the header.
    rows.iter().skip(1).map(paragraph).collect()
}

/// The rows of the table for people: a question, its answer, and what the tools do because of it.
fn rows(findings: &Findings) -> Vec<[String; 3]> {
    let row = |question: &str, (answer, then): (String, &str)| {
        [question.to_owned(), answer, then.to_owned()]
    };
    let above = findings.large_reads.known().map(|reads| reads.above);
    let double = findings.large_reads.known().map(|reads| reads.double);
    let reads = |taken: Option<Taken>| match (taken, &findings.large_reads) {
        (None, Finding::Unknown(why)) => Finding::Unknown(why.clone()),
        (None, Finding::Known(_)) => Finding::default(),
        (Some(taken), _) => Finding::Known(taken),
    };
    let of_reads = match findings.read_bytes_max() > READ_BYTES_MAX {
        true => "a download with -c 8388608 reads 8 MiB at a time",
        false => "reads are of 4 MiB at most",
    };
    vec![
        row("QUESTION", ("ANSWER".to_owned(), "WHAT THE TOOLS DO")),
        row(
            "Writes to one drive at a time",
            parallel_writes(&findings.parallel_writes),
        ),
        row(
            "Counters of writes",
            (
                answer_of(&findings.write_counters, write_counters),
                "download and publish compare them, to notice writes",
            ),
        ),
        row(
            "Never-written bytes of a new drive",
            fresh_reads(&findings.fresh_reads_zero),
        ),
        row(
            "Read of 4 MiB and a byte",
            (answer_of(&reads(above), taken), of_reads),
        ),
        row(
            "Read of 8 MiB",
            (answer_of(&reads(double), taken), of_reads),
        ),
        row(
            "Write past the end",
            (
                answer_of(&findings.past_end, past_end),
                "an image that does not fit is not sent",
            ),
        ),
        row("user: keys", user_keys(findings)),
        row("Largest raw body", largest_body(&findings.largest_body)),
        row("Body in gzip", gzip_writes(&findings.gzip_writes)),
        row(
            "Retry-After",
            (
                answer_of(&findings.retry_after, retry_after),
                "the tools wait as long as it says",
            ),
        ),
        row(
            "Size of a drive",
            (
                answer_of(&findings.size, size),
                "a drive may be larger than its image",
            ),
        ),
        row(
            "Status of create and destroy",
            (
                format!(
                    "{} and {}",
                    answer_of(&findings.create_status, u16::to_string),
                    answer_of(&findings.destroy_status, u16::to_string)
                ),
                "every status 2xx counts as success",
            ),
        ),
    ]
}

/// A finding in words.
fn answer_of<T>(finding: &Finding<T>, say: impl FnOnce(&T) -> String) -> String {
    match finding {
        Finding::Known(answer) => say(answer),
        Finding::Unknown(why) => format!("unknown: {why}"),
    }
}

fn parallel_writes(finding: &Finding<ParallelWrites>) -> (String, &'static str) {
    let answer = answer_of(finding, |writes| {
        let accepted = writes.accepted;
        match (writes.loses_bytes, writes.busy_from) {
            (true, _) => "accepted, and bytes were lost".to_owned(),
            (false, Some(from)) => format!("{accepted} accepted, but not {from} at a time"),
            (false, None) => format!("{accepted} accepted, more were not tried"),
        }
    });
    let is_limited = finding
        .known()
        .is_some_and(|writes| writes.loses_bytes || writes.busy_from.is_some());
    let then = match is_limited {
        true => "an upload sends no more at a time",
        false => "an upload sends -j at a time, fewer when busy",
    };
    (answer, then)
}

fn write_counters(counters: &WriteCounters) -> String {
    let place = match counters.reported_in {
        ReportedIn::Info => "in info",
        ReportedIn::InfoFull => "in info/full",
        ReportedIn::Nowhere => return "none".to_owned(),
    };
    let counts = match counters.counts {
        Counts::Exact => "exact",
        Counts::Pages => "in pages of 4096",
        Counts::Nothing => "not of API writes",
        Counts::Otherwise => "in another way",
    };
    let late = if counters.is_late { ", late" } else { "" };
    let start = counters.start_bytes.unwrap_or_default();
    format!("{place}, {counts}{late}, starting at {start} bytes")
}

fn fresh_reads(finding: &Finding<bool>) -> (String, &'static str) {
    let word = |is_zero: &bool| if *is_zero { "zeros" } else { "not zeros" };
    let answer = answer_of(finding, |is_zero| word(is_zero).to_owned());
    let then = match finding.known() {
        Some(false) => "zeros are sent",
        _ => "zeros are left out if the new drive reads as zeros",
    };
    (answer, then)
}

fn taken(taken: &Taken) -> String {
    match taken {
        Taken::Accepted => "accepted".to_owned(),
        Taken::Refused(status) => format!("refused with {status}"),
        Taken::Short(bytes) => format!("short: {bytes} bytes"),
    }
}

fn past_end(past: &PastEnd) -> String {
    let written = match (past.grows, past.is_written) {
        (true, _) => "the drive grew",
        (false, true) => "part was written",
        (false, false) => "nothing was written",
    };
    format!("{}, {written}", past.status)
}

fn user_keys(findings: &Findings) -> (String, &'static str) {
    let say = |kept: &bool| if *kept { "kept" } else { "dropped" }.to_owned();
    let created = answer_of(&findings.user_keys_created, say);
    let set = answer_of(&findings.user_keys_set, say);
    let then = match findings.user_keys_created.known() {
        Some(false) => "if the answer to a create is lost, look for the drive",
        _ => "a drive is found again by its key user:oh-token",
    };
    (format!("{created} on create, {set} by set"), then)
}

fn largest_body(finding: &Finding<LargestBody>) -> (String, &'static str) {
    let mib = |bytes: u64| match bytes % (1 << 20) {
        0 => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    };
    let answer = answer_of(finding, |body| {
        let accepted = match body.accepted_bytes {
            0 => "none".to_owned(),
            bytes => format!("{} accepted", mib(bytes)),
        };
        match (body.refused_bytes, body.refused_status) {
            (None, _) => format!("{accepted}, more was not tried"),
            (Some(bytes), Some(status)) => {
                format!("{accepted}, {} refused with {status}", mib(bytes))
            }
            (Some(bytes), None) => format!("{accepted}, {} did not get through", mib(bytes)),
        }
    });
    let is_small = |body: &LargestBody| body.accepted_bytes < CHUNK_BYTES_DEFAULT.get();
    let then = match finding.known().is_some_and(is_small) {
        true => "requests are made no larger",
        false => "chunks are of 5 MiB unless -c is given",
    };
    (answer, then)
}

fn gzip_writes(finding: &Finding<GzipWrites>) -> (String, &'static str) {
    let answer = answer_of(finding, |gzip| match gzip {
        GzipWrites::Decoded => "decompressed".to_owned(),
        GzipWrites::Stored => "stored as it is".to_owned(),
        GzipWrites::Refused(status) => format!("refused with {status}"),
    });
    let then = match finding.known() {
        Some(GzipWrites::Stored | GzipWrites::Refused(_)) => "an upload refuses to start",
        _ => "chunks are sent in gzip",
    };
    (answer, then)
}

fn retry_after(seen: &RetryAfter) -> String {
    match seen.seconds {
        Some(seconds) => format!(
            "{} with {}",
            duration(Duration::from_secs(seconds)),
            seen.status
        ),
        None => format!("none with {}", seen.status),
    }
}

fn size(size: &Size) -> String {
    match (size.asked_bytes, size.given_bytes) {
        (asked, given) if asked == given => "as requested".to_owned(),
        (asked, given) => format!("{given} bytes, requested {asked}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_answer() {
        let rows = rows(&Findings::unknown("https://h/", "no time"));
        assert_eq!(rows.len(), 13);
        for row in &rows[1..] {
            assert!(row[1].contains("unknown: no time"), "{row:?}");
            assert!(!row[2].is_empty(), "{row:?}");
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        ProbeArguments::command().debug_assert();
        let parse = |flag| ProbeArguments::try_parse_from(["probe", flag]).unwrap();
        assert!(parse("--no-save").no_save && parse("--keep-profile").no_save);
    }
}
