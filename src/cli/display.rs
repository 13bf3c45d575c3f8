//! What a transfer shows: the original's lines on stdout, and progress on stderr
//! as a bar, as plain lines or as JSON (docs/progress.md).

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::github::{BytesOutput, Github, Report, When};
use super::{arguments, exit, findings_file, wait_lines};
use crate::api::Client;
use crate::drive::DriveId;
use crate::error::ErrorKind;
use crate::monitor::{Event, Monitor, Progress};
use crate::nonblocking::Waiting;

/// Between two plain lines; a transfer that takes less has none of progress.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Between two JSON lines.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Notices that wait for the next plain line; more are counted.
const WAITING_MAX: usize = 8;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
    /// Down to stdout, which holds the image then: lines go to stderr.
    DownToStdout,
    /// Up, by a command of our own: stdout is its own, too.
    Publish,
    /// Down, to be compared: stdout is the command's own.
    Verify,
}

impl Way {
    /// What `--progress json` calls it.
    fn direction(self) -> &'static str {
        match self {
            Self::Up | Self::Publish => "upload",
            Self::Down | Self::DownToStdout => "download",
            Self::Verify => "verify",
        }
    }

    /// What was done, in a sentence.
    fn done(self) -> &'static str {
        match self {
            Self::Up | Self::Publish => "Uploaded",
            Self::Down | Self::DownToStdout => "Downloaded",
            Self::Verify => "Compared",
        }
    }
}

/// Progress as lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    Plain,
    Json,
}

/// How a transfer ended, for the display.
#[derive(Debug)]
pub(super) struct RunEnd {
    /// Bytes that were verified, if it is complete.
    pub(super) verified_bytes: Option<u64>,
    /// What went wrong, if anything did.
    pub(super) error: Option<ErrorKind>,
    pub(super) exit_code: u8,
    /// Where another run would go on.
    pub(super) resume: Option<(DriveId, u64)>,
}

/// What was shown of a transfer that is over.
#[derive(Debug)]
pub(super) struct ShownEnd {
    /// As `outcome` in docs/progress.md.
    pub(super) outcome: &'static str,
    pub(super) took: Duration,
    pub(super) github: Github,
}

impl RunEnd {
    fn outcome(&self) -> &'static str {
        match self.error {
            None => "complete",
            Some(_) if self.exit_code == exit::DEADLINE => "gave_up",
            Some(ErrorKind::Cancelled) => "stopped",
            Some(ErrorKind::Integrity) => "integrity",
            Some(_) => "failed",
        }
    }
}

/// Whole seconds that have passed, as in `1m 2s`.
fn in_seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

/// The flags that tell how to show a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct DisplayArguments {
    /// How to show progress on stderr: auto (a bar on a terminal, plain elsewhere),
    /// bar, plain (a line every 10 s), json (docs/progress.md), or none
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub(super) progress: arguments::ProgressMode,

    /// Neither dots nor progress
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Speak to GitHub Actions: groups, warnings and errors, outputs of the step, and a
    /// summary (docs/pipelines.md). --github=auto does so only within a job of it
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t,
        default_missing_value = "always",
        hide_possible_values = true
    )]
    pub(super) github: When,
}

/// Shows a transfer.
#[derive(Debug)]
pub(super) struct Display {
    way: Way,
    program: &'static str,
    /// Neither dots nor progress nor notices.
    quiet: bool,
    /// Somebody else prints on stdout.
    is_stdout_left: bool,
    /// What is printed line by line, if anything is.
    lines: Option<Lines>,
    /// When the last line of progress was due, or a plain one was told.
    told_at: Duration,
    /// Notices that are to be told with the next plain line, and how many more.
    waiting: Vec<String>,
    waiting_more: usize,
    /// Whether a plain line of progress was told.
    is_long: bool,
    github: Github,
    drive: Option<DriveId>,
    /// The smallest body in bytes that the endpoint refused for its size, and the largest
    /// that was sent since.
    refused: Option<(u64, u64)>,
    /// Unless nobody knows.
    chunks: Option<u64>,
    /// The line of dots, for a stdout that nobody watches.
    dots: bool,
    dots_printed: u64,
    bar: Option<ProgressBar>,
    /// Unless nobody knows.
    bytes: Option<u64>,
    /// When the program began, and the chunks.
    since: Instant,
    began: Instant,
    progress: Progress,
    notice: Option<String>,
    /// What is waited for.
    wait: Option<String>,
    started: bool,
}

impl Display {
    pub(super) fn new(
        program: &'static str,
        way: Way,
        drive: Option<DriveId>,
        showing: &DisplayArguments,
        about: &str,
    ) -> Self {
        use arguments::ProgressMode as How;
        let (progress, quiet) = (showing.progress, showing.quiet);
        let mut github = Github::new(program, showing.github);
        github.group(about);
        let on_terminal = std::io::stderr().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let (has_bar, lines) = match progress {
            _ if quiet => (false, None),
            How::Auto if on_terminal && !is_dumb => (true, None),
            How::Bar => (true, None),
            How::Auto | How::Plain => (false, Some(Lines::Plain)),
            How::Json => (false, Some(Lines::Json)),
            How::None => (false, None),
        };
        let bar = has_bar.then(|| {
            let bar = ProgressBar::new(0);
            let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        // A line of dots would cross the bar, or the objects.
        let is_crossed = match way {
            Way::Up | Way::Down => on_terminal && std::io::stdout().is_terminal(),
            Way::DownToStdout => on_terminal || lines == Some(Lines::Json),
            Way::Publish | Way::Verify => true,
        };
        Self {
            way,
            program,
            quiet,
            is_stdout_left: false,
            lines,
            told_at: Duration::ZERO,
            waiting: Vec::new(),
            waiting_more: 0,
            is_long: false,
            github,
            drive,
            chunks: None,
            dots: !(quiet || is_crossed),
            dots_printed: 0,
            bar,
            bytes: None,
            since: Instant::now(),
            began: Instant::now(),
            progress: Progress::default(),
            notice: None,
            refused: None,
            wait: None,
            started: false,
        }
    }

    /// Prints nothing on stdout: an object goes there when all is over.
    pub(super) fn leave_stdout(&mut self) {
        self.is_stdout_left = true;
        self.dots = false;
    }

    /// The drive is known by now, and not told by an event.
    pub(super) fn set_drive(&mut self, drive: DriveId) {
        self.drive = Some(drive);
    }

    /// What moved so far, for whoever comes after this run.
    pub(super) fn report(&self, rows: Vec<(&'static str, String)>) -> Report {
        let bytes = match self.way {
            Way::Up | Way::Publish => BytesOutput::Sent,
            Way::Down | Way::DownToStdout | Way::Verify => BytesOutput::Received,
        };
        Report {
            drive: self.drive,
            bytes: (bytes, self.progress.wire_bytes),
            rows,
            ..Report::default()
        }
    }

    /// Shows lines that the user has to know.
    pub(super) fn notices(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            self.notice(&line, false);
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// What is told at the end, for programs: what `end` of the progress tells, but for
    /// what was only so meanwhile. Its keys are a promise: docs/json.md.
    pub(super) fn object(&self, end: &RunEnd) -> serde_json::Value {
        let mut object = self.json("end", self.began.elapsed(), Some(end));
        if let Some(keys) = object.as_object_mut() {
            for key in ["event", "in_flight", "workers"] {
                keys.remove(key);
            }
        }
        object
    }

    /// The transfer is over. What the original prints then, and what was asked for
    /// besides.
    pub(super) fn ended(mut self, end: &RunEnd) -> ShownEnd {
        self.print_dots();
        if self.dots && self.started {
            self.print(if end.verified_bytes.is_some() {
                " completed\n"
            } else {
                "E\n"
            });
        }
        let is_summed = match self.lines {
            None => self.bar.is_some(),
            Some(Lines::Plain) => self.is_long,
            Some(Lines::Json) => {
                exit::say_object(&self.json("end", self.began.elapsed(), Some(end)));
                false
            }
        };
        if let Some(notices) = self.take_waiting() {
            exit::say(&format!("{}: {notices}", self.program));
        }
        self.github.end_group();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(verified) = end.verified_bytes
            && is_summed
        {
            exit::say(&self.summary(verified));
        }
        ShownEnd {
            outcome: end.outcome(),
            took: self.since.elapsed(),
            github: self.github,
        }
    }

    /// Prints a line of progress if one is due.
    fn tell(&mut self, elapsed: Duration) {
        let every = match self.lines {
            None => return,
            Some(Lines::Plain) => PLAIN_EVERY,
            Some(Lines::Json) => JSON_EVERY,
        };
        if !self.started || elapsed < self.told_at + every {
            return;
        }
        self.told_at = elapsed;
        if self.lines == Some(Lines::Json) {
            exit::say_object(&self.json("progress", elapsed, None));
            return;
        }
        self.is_long = true;
        let mut line = self.plain(elapsed);
        if let Some(notices) = self.take_waiting() {
            line += &format!("; {notices}");
        }
        self.say(&line);
    }

    /// Says a line, where dots may be on stderr as well.
    fn say(&self, line: &str) {
        if self.dots && self.started && self.way == Way::DownToStdout {
            self.print(" ");
        }
        exit::say(&format!("{}: {line}", self.program));
    }

    fn take_waiting(&mut self) -> Option<String> {
        let more = std::mem::take(&mut self.waiting_more);
        let mut notices = std::mem::take(&mut self.waiting);
        if more > 0 {
            notices.push(format!("and {more} more"));
        }
        (!notices.is_empty()).then(|| notices.join("; "))
    }

    fn plain(&self, elapsed: Duration) -> String {
        let progress = self.progress;
        let data = progress.done_bytes - progress.skipped_bytes;
        let rate = data as f64 / elapsed.as_secs_f64().max(0.001);
        let mut line = format!(
            "{}{} in {}, {}/s, {} on the wire, {} workers",
            HumanBytes(progress.done_bytes),
            self.bytes
                .map_or(String::new(), |bytes| format!(" of {}", HumanBytes(bytes))),
            in_seconds(elapsed),
            HumanBytes(rate as u64),
            HumanBytes(progress.wire_bytes),
            progress.workers,
        );
        if progress.skipped_bytes > 0 {
            line += &format!(", {} of zeros left out", HumanBytes(progress.skipped_bytes));
        }
        if progress.retries > 0 {
            line += &format!(", {} retries", progress.retries);
        }
        if let Some(bytes) = self.bytes
            && rate >= 1.0
        {
            let left = bytes.saturating_sub(progress.done_bytes) as f64 / rate;
            line += &format!(
                ", ETA {}",
                in_seconds(Duration::from_secs_f64(left.min(1e9)))
            );
        }
        line
    }

    /// A line for programs. Its keys are a promise: docs/progress.md.
    fn json(&self, event: &str, elapsed: Duration, end: Option<&RunEnd>) -> serde_json::Value {
        let progress = self.progress;
        let mut line = serde_json::json!({
            "event": event,
            "direction": self.way.direction(),
            "drive": self.drive.map(|id| id.to_string()),
            "bytes_total": self.bytes,
            "bytes_done": progress.done_bytes,
            "bytes_wire": progress.wire_bytes,
            "bytes_skipped": progress.skipped_bytes,
            "chunks_total": self.chunks,
            "chunks_done": progress.done_chunks,
            "in_flight": progress.in_flight,
            "workers": progress.workers,
            "retries": progress.retries,
            "elapsed_s": (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        });
        if let Some(end) = end {
            let resume = end.resume.map(
                |(drive, offset)| serde_json::json!({"drive": drive.to_string(), "offset": offset}),
            );
            line["outcome"] = end.outcome().into();
            line["exit_code"] = end.exit_code.into();
            line["verified_bytes"] = end.verified_bytes.unwrap_or(0).into();
            line["resume"] = resume.into();
        }
        line
    }

    fn summary(&self, verified_bytes: u64) -> String {
        let progress = self.progress;
        let data = progress.done_bytes - progress.skipped_bytes;
        let elapsed = self.began.elapsed();
        let rate = data as f64 / elapsed.as_secs_f64().max(0.001);
        format!(
            "{} {} in {:.1} s ({}/s): {} on the wire, {} of zeros left out, {} retries, {} verified",
            self.way.done(),
            HumanBytes(data),
            elapsed.as_secs_f64(),
            HumanBytes(rate as u64),
            HumanBytes(progress.wire_bytes),
            HumanBytes(progress.skipped_bytes),
            progress.retries,
            HumanBytes(verified_bytes),
        )
    }

    fn print_dots(&mut self) {
        let new = self.progress.chunks_in_order - self.dots_printed;
        if self.dots && new > 0 {
            // A hole of a terabyte is many dots.
            const LINE: &str = "................................................................";
            let mut left = new;
            while left > 0 {
                let n = left.min(LINE.len() as u64);
                self.print(&LINE[..usize::try_from(n).unwrap_or(0)]);
                left -= n;
            }
        }
        self.dots_printed += new;
    }

    /// Prints a line of the original, at once. A reader that went away is no
    /// reason to stop a transfer.
    fn print(&self, text: &str) {
        let mut stdout = Waiting(std::io::stdout());
        let mut stderr = Waiting(std::io::stderr());
        let out: &mut dyn Write = match self.way {
            Way::Up | Way::Down if self.is_stdout_left => return,
            Way::Up | Way::Down => &mut stdout,
            Way::DownToStdout => &mut stderr,
            Way::Publish | Way::Verify => return,
        };
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    fn draw(&self) {
        let Some(bar) = &self.bar else { return };
        let progress = self.progress;
        // Zeros left out are no work done: they count neither as bytes moved nor
        // in the rate.
        let bytes = self.bytes.unwrap_or(progress.done_bytes);
        bar.set_length(bytes.saturating_sub(progress.skipped_bytes));
        bar.set_position(progress.done_bytes - progress.skipped_bytes);
        let mut message = format!("wire {}", HumanBytes(progress.wire_bytes));
        if progress.skipped_bytes > 0 {
            message += &format!(", zeros {}", HumanBytes(progress.skipped_bytes));
        }
        if progress.retries > 0 {
            message += &format!(", {} retries", progress.retries);
        }
        if let Some(wait) = &self.wait {
            message += &format!(", {wait}");
        }
        bar.set_message(message);
    }

    /// What the transfer learned of the endpoint is remembered for the next one. That this
    /// cannot be done is no failure of the transfer.
    pub(super) fn remember(&mut self, client: &Client) {
        let endpoint = client.endpoint().to_string();
        if let Err(error) = findings_file::remember(&endpoint, self.refused) {
            self.notice(&error.chain(), false);
        }
    }

    /// Tells what is waited for, or that it is over. Such lines are few, and are told at
    /// once whatever was told before: whoever waits wants to know why.
    fn wait(&mut self, event: &Event) {
        let Some(line) = wait_lines::line(event) else {
            return;
        };
        self.wait = match event {
            Event::Waiting(_) => Some(line.clone()),
            _ => None,
        };
        self.draw();
        if self.quiet {
            return;
        }
        if self.lines == Some(Lines::Json) {
            exit::say_object(&waiting(event, &line));
            return;
        }
        if self.wait.is_some() && self.github.warn(&line) {
            return;
        }
        let elapsed = self.began.elapsed();
        let line = format!("{line} (after {})", in_seconds(elapsed));
        match &self.bar {
            Some(bar) => bar.suspend(|| self.say(&line)),
            None => self.say(&line),
        }
    }

    fn notice(&mut self, line: &str, is_warning: bool) {
        if self.quiet || self.notice.as_deref() == Some(line) {
            return;
        }
        self.notice = Some(line.to_owned());
        if self.lines == Some(Lines::Json) {
            exit::say_object(&serde_json::json!({"event": "notice", "message": line}));
            return;
        }
        if is_warning && self.github.warn(line) {
            return;
        }
        let elapsed = self.began.elapsed();
        let line = match self.started {
            true => format!("{line} (after {})", in_seconds(elapsed)),
            // It may end with a command to be copied.
            false => line.to_owned(),
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| self.say(&line)),
            // What there is to know before it begins is told at once.
            None if !self.started || self.lines.is_none() => self.say(&line),
            None => self.notice_in_time(line, elapsed),
        }
    }

    /// Tells a notice at once, or, within the time of another plain line, with the next
    /// one.
    fn notice_in_time(&mut self, line: String, elapsed: Duration) {
        let is_first = self.told_at == Duration::ZERO && self.waiting.is_empty();
        if is_first || elapsed >= self.told_at + PLAIN_EVERY {
            self.told_at = elapsed.max(Duration::from_nanos(1));
            self.say(&line);
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push(line);
        } else {
            self.waiting_more += 1;
        }
    }
}

/// A line about a wait for programs. Its keys are a promise: docs/progress.md.
fn waiting(event: &Event, line: &str) -> serde_json::Value {
    match event {
        Event::Waiting(waiting) => serde_json::json!({
            "event": "waiting",
            "message": line,
            "status": waiting.status,
            "wait_s": waiting.wait.as_secs_f64().round(),
            "gives_up_in_s": waiting.gives_up_in.map(|time| time.as_secs_f64().round()),
        }),
        Event::WaitOver { time, .. } => serde_json::json!({
            "event": "wait_over",
            "message": line,
            "waited_s": time.as_secs_f64().round(),
        }),
        _ => serde_json::Value::Null,
    }
}

impl Monitor for Display {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Drive { id, size, is_new } => {
                self.drive = Some(*id);
                if *is_new {
                    self.print(&format!("Created drive {id} of size {size}\n"));
                } else {
                    self.print(&format!("Using existing drive {id}\n"));
                }
            }
            Event::Started {
                chunks,
                chunk_bytes,
                offset,
                bytes,
            } => {
                self.started = true;
                self.bytes = *bytes;
                self.chunks = *chunks;
                self.began = Instant::now();
                let many = chunks.map_or(String::new(), |chunks| format!("{chunks} "));
                if self.dots {
                    self.print(&match self.way {
                        Way::Up | Way::Publish | Way::Verify => {
                            format!("Uploading {many}chunks of {chunk_bytes} bytes: ")
                        }
                        Way::Down | Way::DownToStdout => format!(
                            "Downloading {many}chunks of {chunk_bytes} bytes starting at {offset}: "
                        ),
                    });
                }
                if let Some(bar) = &self.bar {
                    bar.enable_steady_tick(Duration::from_millis(200));
                }
                if self.lines == Some(Lines::Json) {
                    exit::say_object(&self.json("start", Duration::ZERO, None));
                }
                self.draw();
            }
            Event::Ended { chunks, bytes } => {
                self.bytes = Some(*bytes);
                self.chunks = Some(*chunks);
                self.draw();
            }
            Event::Progress(progress) => {
                if progress.done_bytes > self.progress.done_bytes {
                    self.notice = None;
                }
                self.progress = *progress;
                self.print_dots();
                self.draw();
                self.tell(self.began.elapsed());
            }
            Event::Encoded(_) => {}
            Event::BodyRefused {
                refused_bytes,
                accepted_bytes,
            } => self.refused = Some((*refused_bytes, *accepted_bytes)),
            Event::Waiting(_) | Event::WaitOver { .. } => self.wait(event),
            Event::Notice(line) => self.notice(line, false),
            Event::Warning(line) => self.notice(line, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn display(progress: arguments::ProgressMode) -> Display {
        let showing = DisplayArguments {
            progress,
            ..DisplayArguments::default()
        };
        let mut display = Display::new("tool", Way::Up, None, &showing, "");
        display.started = true;
        display.bytes = Some(4 << 30);
        display.progress = Progress {
            done_bytes: 2 << 30,
            skipped_bytes: 1 << 30,
            wire_bytes: 400 << 20,
            retries: 3,
            workers: 8,
            ..Progress::default()
        };
        display
    }

    #[test]
    fn a_plain_line_tells_all_and_controls_nothing() {
        let line = display(arguments::ProgressMode::Plain).plain(Duration::from_secs(10));
        assert_eq!(
            line,
            "2.00 GiB of 4.00 GiB in 10s, 102.40 MiB/s, 400.00 MiB on the wire, 8 workers, \
             1.00 GiB of zeros left out, 3 retries, ETA 20s"
        );
        assert!(!line.contains(char::is_control));
    }

    #[test]
    fn lines_are_told_at_their_pace() {
        use arguments::ProgressMode::{Json, None, Plain};
        let paces = [(Plain, [0, 10, 20]), (Json, [9, 10, 29]), (None, [0, 0, 0])];
        for (how, expected) in paces {
            let mut display = display(how);
            let told = [9, 10, 29].map(|until| {
                for s in 0..=until {
                    display.tell(Duration::from_secs(s));
                }
                display.told_at.as_secs()
            });
            assert_eq!(told, expected, "{how:?}");
        }
    }

    #[test]
    fn notices_wait_for_the_next_plain_line() {
        let mut display = display(arguments::ProgressMode::Plain);
        let at = Duration::from_secs;
        display.notice_in_time("a".into(), at(3));
        assert_eq!((display.told_at, display.waiting.len()), (at(3), 0));
        for s in 4..=12 {
            display.notice_in_time(format!("b{s}"), at(s));
            display.tell(at(s));
        }
        assert_eq!((display.told_at, display.is_long), (at(3), false));
        assert_eq!(
            (display.waiting.len(), display.waiting_more),
            (WAITING_MAX, 1)
        );
        display.tell(at(13));
        assert_eq!((display.told_at, display.is_long), (at(13), true));
        assert_eq!(display.take_waiting(), None);
        display.notice_in_time("c".into(), at(14));
        assert_eq!(display.take_waiting().as_deref(), Some("c"));
    }

    #[test]
    fn the_keys_of_json() {
        let display = display(arguments::ProgressMode::Json);
        let end = RunEnd {
            verified_bytes: None,
            error: Some(ErrorKind::Cancelled),
            exit_code: exit::SIGINT,
            resume: None,
        };
        let object = display.json("end", Duration::from_millis(1500), Some(&end));
        let mut keys: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        assert_eq!(
            keys.join(" "),
            "bytes_done bytes_skipped bytes_total bytes_wire chunks_done chunks_total direction \
             drive elapsed_s event exit_code in_flight outcome resume retries verified_bytes workers"
        );
        assert_eq!(object["outcome"], "stopped");
        assert_eq!(object["elapsed_s"], 1.5);
    }
}
