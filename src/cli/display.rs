//! The output of a transfer: the lines of the original scripts on stdout, and progress on stderr as
//! a bar, as plain lines or as JSON (docs/user/progress.md).

mod script_output;

use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::script_output::ScriptOutput;
use super::bar::{Bar, percent};
use super::command_line::Changes;
use super::exit::Notice;
use super::github::{Github, Report};
use super::showing::{ShownRun, Way};
use super::{arguments, command_line, exit, findings_file, remedies, screen, wait_lines};
use crate::advice::Advice;
use crate::amounts::{counted, duration, size};
use crate::api::Client;
use crate::drive::DriveId;
use crate::error::ErrorKind;
use crate::image::part_of as staged_of;
use crate::locks::lock;
use crate::monitor::{Event, Monitor, Phase, Progress};
use crate::shard::Shard;

/// Minimum time between two plain lines; a shorter transfer prints no progress.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Minimum time between two JSON lines.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Maximum notices that wait for the next plain line; further ones are only counted, so that a log
/// does not fill with them.
const WAITING_MAX: usize = 8;
/// Maximum warnings for the JSON object.
const WARNINGS_MAX: usize = 100;

/// The verb for a phase, before the name of the object.
fn verb_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "Prepare",
        Phase::Hash => "Hash",
        Phase::Copy => "Copy",
        Phase::Compare => "Compare",
        Phase::Check => "Check",
    }
}

/// Progress as lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    Plain,
    Json,
}

/// How a transfer ended.
#[derive(Debug)]
pub(super) struct RunEnd {
    /// Bytes that were verified, if it is complete.
    pub(super) verified_bytes: Option<u64>,
    /// 0 if it is complete.
    pub(super) exit_code: u8,
    /// Where another run would continue.
    pub(super) resume: Option<(DriveId, u64)>,
    /// The lines that say what was done, if they are better than those of the display.
    pub(super) summary: Option<Vec<String>>,
}

/// What the display knows at the end of a transfer.
#[derive(Debug)]
pub(super) struct ShownEnd {
    /// As `outcome` in docs/user/progress.md.
    pub(super) outcome: &'static str,
    pub(super) took: Duration,
    /// The position in the disk and its size, once the transfer of chunks began.
    pub(super) position: Option<(u64, Option<u64>)>,
    pub(super) github: Github,
}

impl RunEnd {
    /// Follows from the exit code alone: docs/user/json.md.
    fn outcome(&self) -> &'static str {
        match self.exit_code {
            0 => "complete",
            exit::DEADLINE => "gave_up",
            exit::SIGINT | exit::SIGTERM => "stopped",
            code if code == exit::code_of(ErrorKind::Integrity) => "integrity",
            _ => "failed",
        }
    }
}

/// Displays a transfer.
#[derive(Debug)]
pub(super) struct Display {
    way: Way,
    program: &'static str,
    /// The name of the image or another object of the command, for the bar.
    name: String,
    /// Whether to print neither dots nor progress nor notes.
    quiet: bool,
    script: ScriptOutput,
    /// The format of progress lines, if there are any.
    lines: Option<Lines>,
    /// Time since `began` of the last progress line or notice; zero means none yet.
    last_line_at: Duration,
    /// Notices to print with the next plain line, and how many more there are.
    waiting: Vec<String>,
    waiting_more: usize,
    /// Whether to print a summary beside plain lines: one of progress was printed, or the run has
    /// one however short it is.
    is_long: bool,
    github: Github,
    /// An event reports it, unless the command knows it before.
    pub(super) drive: Option<DriveId>,
    /// The part that this run transfers, if it is not the whole.
    pub(super) part: Option<Shard>,
    /// The smallest body in bytes that the endpoint refused for its size, and the largest that has
    /// been sent since.
    refused: Option<(u64, u64)>,
    /// `None` while the number is unknown.
    chunks: Option<u64>,
    bar: Option<Arc<Mutex<Bar>>>,
    /// Bytes to transfer, if known.
    bytes: Option<u64>,
    /// Bytes of the disk that need not be transferred.
    earlier_bytes: u64,
    /// The byte of the disk at which the run begins, as far as the user chose it.
    pub(super) offset: u64,
    /// Bytes of the disk, including those that need not be transferred.
    disk_bytes: Option<u64>,
    /// Start of the program.
    since: Instant,
    /// Start of the transfer of chunks, or before it of the current phase.
    began: Instant,
    pub(super) progress: Progress,
    /// The current phase, if no chunks are transferred.
    phase: Option<(Phase, Option<u64>)>,
    notice: Option<String>,
    /// For the JSON object.
    warnings: Vec<String>,
    started: bool,
    /// Whether this run found what an earlier one stored.
    pub(super) has_resumed: bool,
}

impl Display {
    pub(super) fn new(run: &ShownRun<'_>) -> Self {
        use arguments::ProgressMode as How;
        let (program, way) = (run.form.program, run.way);
        let quiet = run.showing.quiet;
        let mut github = Github::new(program, run.showing.github);
        github.group(run.about);
        let (has_bar, lines) = match run.showing.progress {
            _ if quiet => (false, None),
            How::Auto | How::Bar if screen::can_draw() => (true, None),
            How::Auto | How::Plain => (false, Some(Lines::Plain)),
            How::Json => (false, Some(Lines::Json)),
            How::Bar | How::None => (false, None),
        };
        let name = name_of(way, run.about);
        let bar = has_bar.then(|| Bar::new(way.verb(), &name, Instant::now()));
        let shows = has_bar || lines.is_some();
        let is_transfer = matches!(way, Way::Up | Way::Down | Way::DownToStdout);
        Self {
            way,
            program,
            name,
            quiet,
            script: ScriptOutput::new(run, shows, lines == Some(Lines::Json)),
            lines,
            last_line_at: Duration::ZERO,
            waiting: Vec::new(),
            waiting_more: 0,
            is_long: is_transfer && command_line::is_one_program(),
            github,
            drive: None,
            part: None,
            chunks: None,
            bar: bar.map(|bar| Arc::new(Mutex::new(bar))),
            bytes: None,
            earlier_bytes: 0,
            offset: 0,
            disk_bytes: None,
            since: Instant::now(),
            began: Instant::now(),
            progress: Progress::default(),
            phase: None,
            notice: None,
            warnings: Vec::new(),
            refused: None,
            started: false,
            has_resumed: false,
        }
    }

    /// Shows the line of progress from now on: nothing is asked on the terminal any more. No
    /// rate above `rate_max` bytes per second is shown.
    pub(super) fn begin(&mut self, rate_max: Option<NonZeroU64>) {
        self.begin_phase(Phase::Prepare, None);
        if let Some(bar) = &self.bar {
            lock(bar).rate_max = rate_max.map(NonZeroU64::get);
            screen::show(Arc::clone(bar));
        }
    }

    /// Prints the summary also if the run was too short for progress.
    pub(super) fn always_sum_up(&mut self) {
        self.is_long = true;
    }

    /// Fails if a part of the output was not written, unless nothing reads it any more.
    pub(super) fn check_written(&mut self) -> crate::Result<()> {
        match self.script.unwritten.take() {
            Some(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(exit::cannot_print(cause))
            }
            _ => Ok(()),
        }
    }

    /// Figures about the transfer so far, for the report of this run.
    pub(super) fn report(&self, rows: Vec<(&'static str, String)>) -> Report {
        Report {
            drive: self.drive,
            bytes: (self.way.moved(), self.progress.wire_bytes),
            rows,
            ..Report::default()
        }
    }

    /// Prints notices.
    pub(super) fn notices(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            self.notice(&line, Notice::Note);
        }
    }

    /// The warnings so far.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Time since the program began.
    pub(super) fn took(&self) -> Duration {
        self.since.elapsed()
    }

    /// The position in the disk in bytes, including what earlier runs did, and the size of the
    /// disk, if known.
    fn position(&self) -> (u64, Option<u64>) {
        let done = self.earlier_bytes + self.progress.done_bytes;
        (done, self.disk_bytes.map(|total| total.max(done)))
    }

    /// The result for programs: the keys of the final progress line `end`, without those that only
    /// matter during the transfer. Its keys are a promise: docs/user/json.md.
    pub(super) fn object(&self, end: &RunEnd) -> serde_json::Value {
        let mut object = self.json("end", self.began.elapsed(), Some(end));
        if let Some(keys) = object.as_object_mut() {
            for key in ["event", "in_flight", "workers"] {
                keys.remove(key);
            }
        }
        object
    }

    /// Ends the display: prints the last lines of the original scripts, and the requested output.
    pub(super) fn ended(mut self, end: &RunEnd) -> ShownEnd {
        screen::end();
        self.script.dots(self.progress.chunks_in_order);
        let line_end = match end.verified_bytes {
            Some(_) => " completed\n",
            None => "E\n",
        };
        self.script.end(self.started.then_some(line_end));
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
        if let Some(verified) = end.verified_bytes
            && is_summed
        {
            let lines = end.summary.clone();
            let lines = lines.unwrap_or_else(|| self.summary(verified));
            match self.bar {
                Some(_) => lines.iter().for_each(|line| exit::say_wrapped(line)),
                None => exit::say(&lines.join(": ")),
            }
        }
        ShownEnd {
            outcome: end.outcome(),
            took: self.since.elapsed(),
            position: self.started.then(|| self.position()),
            github: self.github,
        }
    }

    /// The kind of line that is due, if one is. It counts as printed.
    fn take_due(&mut self, elapsed: Duration) -> Option<Lines> {
        let lines = self.lines?;
        let every = match lines {
            Lines::Plain => PLAIN_EVERY,
            Lines::Json => JSON_EVERY,
        };
        if elapsed < self.last_line_at + every {
            return None;
        }
        self.last_line_at = elapsed;
        Some(lines)
    }

    /// Prints a line of progress if one is due.
    fn print_progress_if_due(&mut self, elapsed: Duration) {
        if !self.started {
            return;
        }
        match self.take_due(elapsed) {
            None => {}
            Some(Lines::Json) => exit::say_object(&self.json("progress", elapsed, None)),
            Some(Lines::Plain) => {
                self.is_long = true;
                let mut line = self.plain(elapsed);
                if let Some(notices) = self.take_waiting() {
                    line += &format!("; {notices}");
                }
                self.say(&line);
            }
        }
    }

    /// Prints a line about a phase without chunks, if one is due.
    fn print_phase_if_due(&mut self, phase: Phase, done: u64, bytes: Option<u64>) {
        let (elapsed, verb) = (self.began.elapsed(), verb_of(phase));
        match self.take_due(elapsed) {
            None => {}
            Some(Lines::Json) => exit::say_object(&phase_object(verb, done, bytes)),
            Some(Lines::Plain) => {
                let of = bytes.map_or(String::new(), |bytes| format!(" of {}", size(bytes)));
                let line = format!("{verb}: {}{of} in {}", size(done), duration(elapsed));
                self.say(&line);
            }
        }
    }

    /// Prints a line on stderr, where an incomplete line of dots may be.
    fn say(&self, line: &str) {
        if self.started {
            self.script.separate();
        }
        exit::say_wrapped(&format!("{}: {line}", self.program));
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
        let (done, total) = self.position();
        let moved = progress.done_bytes - progress.skipped_bytes;
        let rate = moved as f64 / elapsed.as_secs_f64().max(0.001);
        let of = total.map_or(String::new(), |total| {
            let percent = percent(done, total).map_or(String::new(), |p| format!(" ({p} %)"));
            format!(" of {}{percent}", size(total))
        });
        let mut line = format!(
            "{}{of} in {}, {}/s, {} on the wire, {}",
            size(done),
            duration(elapsed),
            size(rate as u64),
            size(progress.wire_bytes),
            counted(progress.workers.into(), "worker"),
        );
        if progress.skipped_bytes > 0 {
            line += &format!(", {} of zeros left out", size(progress.skipped_bytes));
        }
        if progress.retries > 0 {
            line += &format!(", {}", counted(progress.retries, "retry"));
        }
        if let Some(total) = total
            && rate >= 1.0
        {
            let left = total.saturating_sub(done) as f64 / rate;
            line += &format!(", ETA {}", duration(Duration::from_secs_f64(left.min(1e9))));
        }
        line
    }

    /// A line for programs. Its keys are a promise: docs/user/progress.md.
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
        if end.is_none() {
            line["bytes_in_flight"] = progress.in_flight_bytes.into();
        }
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

    /// What was done, and how long it took.
    fn summary(&self, verified_bytes: u64) -> Vec<String> {
        let progress = self.progress;
        let (done, _) = self.position();
        let (name, disk) = (&self.name, size(done));
        let took = duration(self.since.elapsed());
        let drive = self.drive.map_or("?".to_owned(), short_id);
        let did = match (self.way, self.part.map(shard_of_many)) {
            (Way::Up | Way::Publish, None) => {
                format!("Uploaded {name} ({disk}) to drive {drive}")
            }
            (Way::Up | Way::Publish, Some(part)) => {
                format!("Uploaded {part} of {name} ({disk}) to drive {drive}")
            }
            (Way::Down, None) => format!("Downloaded drive {drive} ({disk}) to {name}"),
            (Way::Down, Some(part)) => {
                let file = staged_of(Path::new(name));
                format!(
                    "Downloaded {part} of drive {drive} ({disk}) to {}",
                    file.display()
                )
            }
            (Way::DownToStdout, _) => format!("Downloaded drive {drive} ({disk})"),
            (Way::Verify, None) => format!("Compared {disk} of drive {drive}"),
            (Way::Verify, Some(part)) => format!("Compared {part} of drive {drive} ({disk})"),
        };
        let moved = self.way.moved().verb();
        let mut parts = Vec::new();
        if progress.wire_bytes > 0 || self.way != Way::Verify {
            // All other sizes are of the disk: the line says that this one is not.
            let data = progress.done_bytes - progress.skipped_bytes;
            let is_less = moved == "sent" && progress.wire_bytes < data;
            let compressed = if is_less { " compressed" } else { "" };
            parts.push(format!("{} {moved}{compressed}", size(progress.wire_bytes)));
        }
        if progress.skipped_bytes > 0 {
            parts.push(format!("{} of zeros skipped", size(progress.skipped_bytes)));
        }
        // Nothing is known about the bytes before an offset, so they do not count as done.
        let left_out = self.offset.min(self.earlier_bytes);
        if left_out > 0 {
            parts.push(format!("{} before -o left out", size(left_out)));
        }
        if self.earlier_bytes > left_out {
            let earlier = self.earlier_bytes - left_out;
            parts.push(format!("{} done before", size(earlier)));
        }
        if progress.retries > 0 {
            parts.push(counted(progress.retries, "retry"));
        }
        if self.way != Way::Verify {
            parts.push(match verified_bytes {
                0 => "not verified".to_owned(),
                bytes if bytes >= done => "all verified".to_owned(),
                _ if left_out > 0 => "sample verified from -o on".to_owned(),
                _ => "sample verified".to_owned(),
            });
        }
        let mut lines = vec![format!("{did} in {took}")];
        if !parts.is_empty() {
            lines.push(parts.join(", "));
        }
        if let (Way::Verify, Some(others)) = (self.way, self.part.and_then(other_shards)) {
            lines.push(format!("This run did not compare {others}"));
        }
        lines
    }

    /// Changes what the bar shows.
    fn draw(&self, change: impl FnOnce(&mut Bar, Instant)) {
        if let Some(bar) = &self.bar {
            change(&mut lock(bar), Instant::now());
        }
    }

    fn draw_progress(&self) {
        let (progress, (done, total)) = (self.progress, self.position());
        // Only the bar moves before a chunk is confirmed.
        let done = done + progress.in_flight_bytes;
        let moved = match self.way {
            // If the endpoint computes digests, nothing else is counted.
            Way::Verify => progress.done_bytes,
            _ => progress.wire_bytes,
        };
        let verb = self.way.moved().verb();
        self.draw(|bar, now| {
            bar.total = total.or(bar.total);
            bar.at(done, moved, now);
            let mut details = vec![format!("{} {verb}", size(progress.wire_bytes))];
            if progress.skipped_bytes > 0 {
                details.push(format!("{} of zeros", size(progress.skipped_bytes)));
            }
            if progress.retries > 0 {
                details.push(counted(progress.retries, "retry"));
            }
            bar.details = details;
        });
    }

    fn begin_phase(&mut self, phase: Phase, bytes: Option<u64>) {
        self.phase = Some((phase, bytes));
        if self.lines == Some(Lines::Json) {
            exit::say_object(&phase_object(verb_of(phase), 0, bytes));
        }
        if !self.started {
            self.began = Instant::now();
            self.last_line_at = Duration::ZERO;
        }
        self.draw(|bar, now| bar.begin(verb_of(phase), 0, bytes, now));
        screen::draw_now();
    }

    /// Stores what the transfer learned about the endpoint for the next one. A failure to do so
    /// does not make the transfer fail.
    pub(super) fn remember(&mut self, client: &Client) {
        let endpoint = client.endpoint().to_string();
        if let Err(error) = findings_file::remember(&endpoint, self.refused) {
            self.notice(&error.chain(), Notice::Warning);
        }
    }

    /// Reports what the run waits for, or that the wait is over. There are few such lines, and they
    /// are printed at once whatever was printed before, because the user wants to know why nothing
    /// happens.
    fn wait(&mut self, event: &Event) {
        let Some(line) = wait_lines::line(event) else {
            return;
        };
        self.draw(|bar, now| match event {
            Event::Waiting(waiting) => {
                let gives_up_at = waiting.gives_up_in.and_then(|time| now.checked_add(time));
                bar.wait(&waiting.cause, gives_up_at);
            }
            _ => bar.go_on(),
        });
        if self.quiet {
            return;
        }
        if self.lines == Some(Lines::Json) {
            exit::say_object(&waiting(event, &line));
            return;
        }
        let is_wait = matches!(event, Event::Waiting(_));
        let kind = wait_lines::kind(event);
        if is_wait && self.github.warn(&line) {
            return;
        }
        match (&self.bar, is_wait) {
            // The bar shows it, with the time left.
            (Some(_), true) => {}
            (Some(_), false) => self.say(&kind.labelled(self.program, &line)),
            (None, _) => {
                let line = format!("{line} (after {})", duration(self.began.elapsed()));
                self.say(&kind.labelled(self.program, &line));
            }
        }
    }

    fn notice(&mut self, line: &str, kind: Notice) {
        let is_hidden = self.quiet && kind != Notice::Warning;
        if is_hidden || self.notice.as_deref() == Some(line) {
            return;
        }
        self.notice = Some(line.to_owned());
        if kind == Notice::Warning && self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(line.to_owned());
        }
        if self.lines == Some(Lines::Json) {
            exit::say_object(&serde_json::json!({
                "event": "notice",
                "level": kind.name(),
                "message": line,
            }));
            return;
        }
        if kind == Notice::Warning && self.github.warn(line) {
            return;
        }
        let elapsed = self.began.elapsed();
        let line = match self.started && self.bar.is_none() {
            true => format!("{line} (after {})", duration(elapsed)),
            // It may end with a command to copy.
            false => line.to_owned(),
        };
        let line = kind.labelled(self.program, &line);
        // Before the transfer begins, everything is printed at once.
        match self.started && self.lines.is_some() {
            true => self.notice_in_time(line, elapsed),
            false => self.say(&line),
        }
    }

    fn size_known(&mut self, chunks: u64, bytes: u64, earlier_bytes: u64) {
        self.bytes = Some(bytes);
        self.chunks = Some(chunks);
        self.earlier_bytes = earlier_bytes;
        self.disk_bytes = Some(bytes + earlier_bytes);
        self.draw_progress();
    }

    /// Whether a person reads the notices. Programs get exact numbers.
    fn is_for_people(&self) -> bool {
        self.lines != Some(Lines::Json) && std::io::stderr().is_terminal()
    }

    fn worded(&self, line: &Advice) -> String {
        match self.is_for_people() {
            true => remedies::worded(&line.rounded()),
            false => remedies::worded(line),
        }
    }

    /// Reports that this run continues an earlier one, and where.
    fn resuming(&mut self, done: u64, total: Option<u64>, line: &str) {
        self.has_resumed = true;
        if !self.is_for_people() {
            return self.notice(line, Notice::Note);
        }
        let share = total.and_then(|total| percent(done, total));
        let share = share.map_or(String::new(), |share| format!(" at {share} %"));
        let of = total.map_or(String::new(), |total| format!(" of {}", size(total)));
        let part = self.part.map(shard_of_many);
        let part = part.map_or(String::new(), |part| format!(", {part}"));
        let (name, done) = (self.name.clone(), size(done));
        self.notice(
            &format!("Resuming {name}{part}{share} ({done}{of} already done)"),
            Notice::Note,
        );
    }

    /// Prints a notice at once, or together with the next plain line if one was printed recently.
    fn notice_in_time(&mut self, line: String, elapsed: Duration) {
        let is_first = self.last_line_at == Duration::ZERO && self.waiting.is_empty();
        if is_first || elapsed >= self.last_line_at + PLAIN_EVERY {
            self.last_line_at = elapsed.max(Duration::from_nanos(1));
            self.say(&line);
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push(line);
        } else {
            self.waiting_more += 1;
        }
    }
}

/// The name of an image or drive for the bar, from a path, a URL or a name.
fn name_of(way: Way, about: &str) -> String {
    let name = about.split(['?', '#']).next().unwrap_or_default();
    let name = name.trim_end_matches('/').rsplit('/').next();
    match (way, name) {
        (Way::Up, Some("-")) => "stdin".to_owned(),
        (Way::DownToStdout, _) => "to stdout".to_owned(),
        (Way::Publish, _) | (_, None) => about.to_owned(),
        (_, Some(name)) => name.to_owned(),
    }
}

/// A shard in words: `shard 1 of 4`.
pub(super) fn shard_of_many(shard: Shard) -> String {
    format!("shard {} of {}", shard.index(), shard.count())
}

/// The other shards in words: `shard 2 of 2`, or `the other 3 shards`.
fn other_shards(shard: Shard) -> Option<String> {
    match shard.count() {
        0 | 1 => None,
        2 => Some(format!("shard {} of 2", 3 - shard.index())),
        count => Some(format!("the other {} shards", count - 1)),
    }
}

/// What makes a transfer complete after this shard. It is unknown which other shards are done.
pub(super) fn others_are_done(shard: Shard) -> Option<String> {
    let verb = if shard.count() == 2 { "is" } else { "are" };
    Some(format!("{} {verb} done too", other_shards(shard)?))
}

/// The line after a shard: what else is needed, and the command that then makes it whole.
pub(super) fn to_be_joined(what: &str, shard: Shard, program: &str, join: Changes<'_>) -> String {
    let join = command_line::changed(program, join);
    match others_are_done(shard) {
        Some(others) => format!("When {others}, finish {what} with: {join}"),
        None => format!("Finish {what} with: {join}"),
    }
}

/// The start of a UUID, which is enough to distinguish a user's drives.
pub(super) fn short_id(drive: DriveId) -> String {
    drive.to_string().chars().take(8).collect()
}

/// A line about a phase for programs: its name is the word of the bar. Its keys are a promise:
/// docs/user/progress.md.
fn phase_object(verb: &str, done: u64, bytes: Option<u64>) -> serde_json::Value {
    serde_json::json!({
        "event": "phase",
        "phase": verb.to_lowercase(),
        "bytes_done": done,
        "bytes_total": bytes,
    })
}

/// A line about a wait for programs. Its keys are a promise: docs/user/progress.md.
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
                let line = match is_new {
                    true if std::io::stdout().is_terminal() => {
                        format!("Created drive {id} ({})\n", crate::amounts::size(*size))
                    }
                    // The line of the original script.
                    true => format!("Created drive {id} of size {size}\n"),
                    false => format!("Using existing drive {id}\n"),
                };
                self.script.lines(&line);
            }
            Event::Started {
                chunks,
                chunk_bytes,
                offset,
                bytes,
                earlier_bytes,
            } => {
                self.started = true;
                self.phase = None;
                self.bytes = *bytes;
                self.chunks = *chunks;
                self.earlier_bytes = *earlier_bytes;
                if self.way == Way::Up {
                    self.offset -= self.offset % chunk_bytes.max(&1);
                }
                self.disk_bytes = bytes.map(|bytes| bytes + earlier_bytes);
                self.began = Instant::now();
                self.last_line_at = Duration::ZERO;
                let moved = self.way.moved();
                self.script.start(moved, *chunks, *chunk_bytes, *offset);
                if self.lines == Some(Lines::Json) {
                    let (done, total) = self.position();
                    exit::say_object(&phase_object(self.way.verb(), done, total));
                    exit::say_object(&self.json("start", Duration::ZERO, None));
                }
                let (done, total) = self.position();
                let verb = self.way.verb();
                self.draw(|bar, now| bar.begin(verb, done, total, now));
                screen::draw_now();
            }
            Event::SizeKnown {
                chunks,
                bytes,
                earlier_bytes,
            } => self.size_known(*chunks, *bytes, *earlier_bytes),
            Event::Progress(progress) => {
                if progress.done_bytes > self.progress.done_bytes {
                    self.notice = None;
                }
                self.progress = *progress;
                self.script.dots(progress.chunks_in_order);
                self.draw_progress();
                self.print_progress_if_due(self.began.elapsed());
            }
            Event::Phase { phase, bytes } => self.begin_phase(*phase, *bytes),
            Event::PhaseProgress { done_bytes } => {
                if let Some((phase, bytes)) = self.phase {
                    self.draw(|bar, now| bar.at(*done_bytes, *done_bytes, now));
                    self.print_phase_if_due(phase, *done_bytes, bytes);
                }
            }
            Event::Resuming {
                done_bytes,
                size,
                line,
            } => self.resuming(*done_bytes, *size, line),
            Event::Encoded(_) => {}
            Event::BodyRefused {
                refused_bytes,
                accepted_bytes,
            } => self.refused = Some((*refused_bytes, *accepted_bytes)),
            Event::Waiting(_) | Event::WaitOver { .. } => self.wait(event),
            Event::Notice(line) => self.notice(&self.worded(line), Notice::Note),
            Event::Warning(line) => self.notice(&self.worded(line), Notice::Warning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::OutputForm;
    use crate::cli::showing::DisplayArguments;

    fn display(progress: arguments::ProgressMode) -> Display {
        let showing = DisplayArguments {
            progress,
            ..DisplayArguments::default()
        };
        let mut display = Display::new(&ShownRun {
            form: OutputForm::new("tool", "tool/1"),
            is_json: false,
            way: Way::Up,
            showing: &showing,
            about: "",
            deadline: None,
        });
        display.started = true;
        display.bytes = Some(4 << 30);
        display.disk_bytes = Some(4 << 30);
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
    fn a_plain_line_is_complete_and_has_no_control_characters() {
        let line = display(arguments::ProgressMode::Plain).plain(Duration::from_secs(10));
        assert_eq!(
            line,
            "2.0 GiB of 4.0 GiB (50 %) in 10s, 102 MiB/s, 400 MiB on the wire, 8 workers, \
             1.0 GiB of zeros left out, 3 retries, ETA 20s"
        );
        assert!(!line.contains(char::is_control));
    }

    #[test]
    fn lines_are_printed_at_the_interval_of_each_mode() {
        use arguments::ProgressMode::{Json, None, Plain};
        let paces = [(Plain, [0, 10, 20]), (Json, [9, 10, 29]), (None, [0, 0, 0])];
        for (how, expected) in paces {
            let mut display = display(how);
            let seconds = [9, 10, 29].map(|until| {
                for s in 0..=until {
                    display.print_progress_if_due(Duration::from_secs(s));
                }
                display.last_line_at.as_secs()
            });
            assert_eq!(seconds, expected, "{how:?}");
        }
    }

    #[test]
    fn notices_wait_for_the_next_plain_line() {
        let mut display = display(arguments::ProgressMode::Plain);
        let at = Duration::from_secs;
        display.notice_in_time("a".into(), at(3));
        assert_eq!((display.last_line_at, display.waiting.len()), (at(3), 0));
        for s in 4..=12 {
            display.notice_in_time(format!("b{s}"), at(s));
            display.print_progress_if_due(at(s));
        }
        assert_eq!((display.last_line_at, display.is_long), (at(3), false));
        assert_eq!(
            (display.waiting.len(), display.waiting_more),
            (WAITING_MAX, 1)
        );
        display.print_progress_if_due(at(13));
        assert_eq!((display.last_line_at, display.is_long), (at(13), true));
        assert_eq!(display.take_waiting(), None);
        display.notice_in_time("c".into(), at(14));
        assert_eq!(display.take_waiting().as_deref(), Some("c"));
    }

    #[test]
    fn the_keys_of_json() {
        let display = display(arguments::ProgressMode::Json);
        let end = RunEnd {
            verified_bytes: None,
            exit_code: exit::SIGINT,
            resume: None,
            summary: None,
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
