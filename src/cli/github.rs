//! GitHub Actions: commands in the output of a step, and what the step leaves for later steps and
//! for the page of the run (docs/user/pipelines.md).
//!
//! Commands are printed on stderr, which the runner reads like stdout, so that stdout stays
//! unchanged. No command contains the secret. To mask a secret, a program would have to print it,
//! which is dangerous because the output may go elsewhere; the action of this repository does it
//! instead.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::{exit, printable, screen};
use crate::amounts::duration;
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::error::Error;
use crate::monitor::capital;
use crate::system::{FileAt, Guard, OpenGuarded};

/// The file that outputs of a step are appended to.
const OUTPUT: &str = "GITHUB_OUTPUT";
/// The file that a step's summary, in Markdown, is appended to.
const SUMMARY: &str = "GITHUB_STEP_SUMMARY";
/// A larger summary is dropped as a whole by GitHub.
const SUMMARY_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of distinct warnings to report as such: GitHub shows at most ten for each step.
const WARNINGS_MAX: usize = 10;

/// When to print commands for GitHub Actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum When {
    /// Never
    #[default]
    Never,
    /// Within a job of GitHub Actions
    Auto,
    /// Always
    Always,
}

/// Prints commands for GitHub Actions if that was requested, and otherwise plain output.
#[derive(Debug)]
pub(super) struct Github {
    program: &'static str,
    is_on: bool,
    is_grouped: bool,
    /// Warnings that were reported.
    reported: Vec<String>,
}

/// The result of a run, for later steps.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// As `outcome` in docs/user/progress.md.
    pub(super) outcome: &'static str,
    pub(super) drive: Option<DriveId>,
    pub(super) digest: Option<Digest>,
    /// Bytes of bodies, and their direction.
    pub(super) bytes: (Moved, u64),
    pub(super) took: Duration,
    /// Further rows for the table of the summary.
    pub(super) rows: Vec<(&'static str, String)>,
}

/// What happened to the bytes of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Moved {
    #[default]
    Sent,
    Received,
}

impl Moved {
    /// As in "5 bytes sent".
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

impl Github {
    pub(super) fn new(program: &'static str, when: When) -> Self {
        let is_on = match when {
            When::Never => false,
            When::Always => true,
            When::Auto => std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true"),
        };
        Self {
            program,
            is_on,
            is_grouped: false,
            reported: Vec::new(),
        }
    }

    /// Begins a group of lines, until [`end_group`](Self::end_group).
    pub(super) fn group(&mut self, about: &str) {
        if self.is_on {
            let title = format!("{} {}", self.program, printable::line(about));
            say(&format!("::group::{}", data(title.trim_end())));
            self.is_grouped = true;
        }
    }

    pub(super) fn end_group(&mut self) {
        if std::mem::take(&mut self.is_grouped) {
            say("::endgroup::");
        }
    }

    /// Reports a warning unless it was already reported; returns whether it did.
    pub(super) fn warn(&mut self, line: &str) -> bool {
        let is_new = !self.reported.iter().any(|reported| reported == line);
        if !self.is_on || !is_new || self.reported.len() == WARNINGS_MAX {
            return false;
        }
        self.reported.push(line.to_owned());
        self.annotate("warning", &printable::line(line));
        true
    }

    /// Prints the error, its hint and `advice`. If `is_message_known`, earlier lines already say what
    /// happened, and only the hint and `advice` follow.
    pub(super) fn report_error(&self, error: &Error, is_message_known: bool, advice: &[String]) {
        let hint = exit::hint_of(error);
        if !self.is_on {
            match (is_message_known, hint) {
                (false, _) => exit::print_error(self.program, error),
                (true, Some(hint)) => exit::say_wrapped(&hint),
                (true, None) => {}
            }
            for line in advice {
                exit::say_wrapped(line);
            }
            return;
        }
        let chain = error.chain();
        let lines = [&*chain].into_iter().chain(hint.as_deref());
        let lines = lines.chain(advice.iter().map(String::as_str));
        let lines: Vec<_> = lines.map(printable::line).collect();
        self.annotate("error", &lines.join("\n"));
    }

    fn annotate(&self, command: &str, message: &str) {
        let title = property(self.program);
        say(&format!("::{command} title={title}::{}", data(message)));
    }

    /// Writes the outputs of the step and its summary. If that fails, a warning is printed, and the
    /// command does not fail.
    pub(super) fn leave(&mut self, report: &Report, error: Option<&Error>) {
        if !self.is_on {
            return;
        }
        let outputs = report.outputs();
        let summary = report.summary(self.program, error);
        for (name, text, most) in [
            (OUTPUT, outputs, u64::MAX),
            (SUMMARY, summary, SUMMARY_BYTES_MAX),
        ] {
            if let Err(why) = leave(std::env::var_os(name), &text, most) {
                self.warn(&format!("{name} {why}: nothing is left there"));
            }
        }
    }
}

impl Report {
    /// Lines `name=value`. No value can contain a line end.
    fn outputs(&self) -> String {
        let (moved, bytes) = self.bytes;
        let mut lines = format!("outcome={}\n", self.outcome);
        if let Some(drive) = self.drive {
            lines += &format!("drive={drive}\n");
        }
        if let Some(digest) = self.digest {
            lines += &format!("digest={digest}\n");
        }
        lines + &format!("bytes_{}={bytes}\n", moved.verb())
    }

    fn summary(&self, program: &str, error: Option<&Error>) -> String {
        let outcome = match self.outcome {
            "gave_up" => "gave up",
            outcome => outcome,
        };
        let mut text = format!("### {}: {outcome}\n\n| | |\n|---|---|\n", markdown(program));
        let mut row = |name: &str, value: &str| {
            text += &format!("| {name} | {} |\n", markdown(value));
        };
        for (name, value) in &self.rows {
            row(name, value);
        }
        if let Some(drive) = self.drive {
            row("Drive", &drive.to_string());
        }
        if let Some(digest) = self.digest {
            row("Digest", &digest.to_string());
        }
        let (moved, bytes) = self.bytes;
        row(&capital(moved.verb()), &format!("{bytes} bytes"));
        row("Time", &duration(self.took));
        if let Some(error) = error {
            row("Error", &error.chain());
            if let Some(hint) = exit::hint_of(error) {
                row("What to do", &hint);
            }
        }
        text.push('\n');
        text
    }
}

/// Appends to a file that a variable names. The runner has created it, so it is neither created
/// here nor followed if it is a link.
fn leave(path: Option<OsString>, text: &str, most: u64) -> Result<(), String> {
    let path = path.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| "is not set".to_owned())?;
    append(Path::new(&path), text, most).map_err(|cause| {
        let path = Path::new(&path).display();
        format!("names {path}, which cannot be appended to: {cause}")
    })
}

fn append(path: &Path, text: &str, most: u64) -> std::io::Result<()> {
    // Opening a named pipe would block the process until it has a reader.
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .guarded(Guard::NoFollowNoWait)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    // The step itself may have written an incomplete line.
    let mut last = [b'\n'];
    if metadata.len() > 0 {
        file.read_exact_at(&mut last, metadata.len() - 1)?;
    }
    let text = match last {
        [b'\n'] => text.to_owned(),
        _ => format!("\n{text}"),
    };
    if metadata.len().saturating_add(text.len() as u64) > most {
        return Err(std::io::Error::other(format!(
            "it would have more than {most} bytes"
        )));
    }
    // In one write, because others may append as well.
    file.write_all(text.as_bytes())
}

/// Prints a command, whose foreign parts were made printable and escaped.
fn say(command: &str) {
    screen::write(|| {
        let _ = writeln!(std::io::stderr(), "{command}");
    });
}

/// The text after the second `::` of a command, escaped as GitHub's own toolkit does.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// The value of a property of a command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text as the cell of a table. In Markdown, a backslash escapes any ASCII punctuation.
fn markdown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in printable::line(text).chars() {
        if c.is_ascii_punctuation() {
            shown.push('\\');
        }
        shown.push(c);
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::error::ErrorKind;

    fn report() -> Report {
        Report {
            outcome: "gave_up",
            drive: "0012e24a-6eae-4279-9912-3432f698cec8".parse().ok(),
            digest: Some(Digest::of(b"")),
            bytes: (Moved::Sent, 17),
            took: Duration::from_millis(1500),
            rows: vec![("Image", "a|b`<i>\n*c*.img".into())],
        }
    }

    #[test]
    fn commands_are_escaped_as_the_toolkit_does() {
        assert_eq!(data("50%\r\n::a,b"), "50%25%0D%0A::a,b");
        assert_eq!(property("50%\r\n::a,b"), "50%25%0D%0A%3A%3Aa%2Cb");
        // Not escaped twice.
        assert_eq!(data("%0A"), "%250A");
    }

    #[test]
    fn each_output_is_one_line() {
        assert_eq!(
            report().outputs(),
            "outcome=gave_up\ndrive=0012e24a-6eae-4279-9912-3432f698cec8\n\
             digest=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nbytes_sent=17\n"
        );
    }

    #[test]
    fn values_cannot_break_the_table_of_the_summary() {
        let error = Error::new(ErrorKind::Unavailable, "No | answer").hint_to("Try `later`");
        let summary = report().summary("openhosting-upload", Some(&error));
        let lines: Vec<_> = summary.lines().collect();
        assert_eq!(lines[0], "### openhosting\\-upload: gave up");
        assert_eq!(lines[2..4], ["| | |", "|---|---|"]);
        assert_eq!(lines[4], "| Image | a\\|b\\`\\<i\\>\\\\n\\*c\\*\\.img |");
        assert_eq!(lines[9], "| Error | No \\| answer |");
        assert_eq!(lines[10], "| What to do | Try \\`later\\` |");
        for row in &lines[2..11] {
            let row = row.replace("\\|", "");
            assert_eq!(row.matches('|').count(), 3, "{row}");
        }
        assert_eq!(lines.len(), 12);
        // An error of the operating system has no hint of its own.
        let cause = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = Error::new(ErrorKind::Local, "Cannot write").because(cause);
        let summary = report().summary("openhosting-upload", Some(&error));
        assert!(summary.contains("| What to do | Check the owner and"));
    }

    #[test]
    fn only_an_existing_regular_file_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        append(&file, "a=1\n", 99).unwrap_err();
        assert!(!file.exists());
        std::fs::write(&file, "x=0").unwrap();
        append(&file, "a=1\n", 99).unwrap();
        append(&file, "b=2\n", 12).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x=0\na=1\nb=2\n");
        append(&file, "c", 12).unwrap_err();
        let link = directory.path().join("link");
        symlink(&file, &link).unwrap();
        append(&link, "d", 99).unwrap_err();
        append(directory.path(), "d", 99).unwrap_err();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        append(&pipe, "d", 99).unwrap_err();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x=0\na=1\nb=2\n");
        assert_eq!(leave(None, "", 9), Err("is not set".into()));
        assert_eq!(leave(Some("".into()), "", 9), Err("is not set".into()));
    }

    #[test]
    fn a_warning_is_reported_once_and_at_most_ten_are() {
        let mut github = Github::new("tool", When::Always);
        assert!(github.warn("a"));
        assert!(!github.warn("a"));
        for i in 1..WARNINGS_MAX {
            assert!(github.warn(&i.to_string()));
        }
        assert!(!github.warn("b"));
        assert!(!Github::new("tool", When::Never).warn("a"));
    }
}
