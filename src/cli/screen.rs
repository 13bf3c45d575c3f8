//! The terminal on stdout and stderr. All lines are written through [`write`], so that they and the
//! line of progress do not garble each other. What may hold foreign bytes goes to stdout through
//! [`Stdout`].
//!
//! A thread draws the line of progress a few times per second. If the terminal is stopped (Ctrl-S),
//! that blocks the thread, but not the transfer.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use unicode_width::UnicodeWidthStr;

use super::bar::{Bar, Style};
use super::printable;
use crate::locks::lock;
use crate::nonblocking::{self, Waiting};
use crate::system::{self, Stream};

/// Time between two drawings of the line. A shorter one costs more and cannot be read; a longer one
/// looks as if the program hung.
const DRAW_EVERY: Duration = Duration::from_millis(150);
/// The width of a terminal that does not report it.
const COLUMNS_DEFAULT: usize = 80;

static SCREEN: Mutex<Screen> = Mutex::new(Screen {
    bar: None,
    drawn: String::new(),
    style: Style {
        has_color: false,
        is_unicode: false,
    },
    taskbar: None,
    is_stdout_open: false,
});

/// Stdout without a buffer. A terminal gets printable text (see [`printable::Parts`]), and anything
/// else the same bytes.
#[derive(Debug)]
pub(super) struct Stdout {
    to: Waiting<File>,
    /// `None` if it is not a terminal.
    printable: Option<printable::Parts>,
}

impl Stdout {
    /// # Errors
    /// If stdout is closed, or the process has no more file descriptors.
    pub(super) fn open() -> io::Result<Self> {
        let to = nonblocking::stdout()?;
        let printable = to.0.is_terminal().then(printable::Parts::default);
        Ok(Self { to, printable })
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(printable) = &mut self.printable else {
            return self.to.write(bytes);
        };
        self.to.write_all(printable.next(bytes).as_bytes())?;
        Ok(bytes.len())
    }

    /// Call it at the end: the last bytes may be the beginning of a character.
    fn flush(&mut self) -> io::Result<()> {
        if let Some(printable) = &mut self.printable {
            self.to.write_all(printable.end().as_bytes())?;
        }
        self.to.flush()
    }
}

/// The state of the terminal.
struct Screen {
    /// The line of progress, if there is one.
    bar: Option<Arc<Mutex<Bar>>>,
    /// What is currently drawn of it.
    drawn: String,
    style: Style,
    /// What the taskbar shows, if the terminal supports that.
    taskbar: Option<String>,
    /// Whether an incomplete line of dots was written to the same place as stderr.
    is_stdout_open: bool,
}

/// Writes whole lines to stdout or stderr; the line of progress is removed meanwhile.
pub(super) fn write<T>(lines: impl FnOnce() -> T) -> T {
    let mut screen = lock(&SCREEN);
    screen.clear();
    if std::mem::take(&mut screen.is_stdout_open) {
        put("\n");
    }
    let written = lines();
    screen.draw();
    written
}

/// Writes a part of a line to stdout, which may be the same file as stderr: the next output on
/// stderr then begins a new line.
pub(super) fn write_part(part: impl FnOnce()) {
    let mut screen = lock(&SCREEN);
    part();
    screen.is_stdout_open = is_same_file();
}

/// Writes the end of a line of parts.
pub(super) fn write_end(end: impl FnOnce()) {
    let mut screen = lock(&SCREEN);
    end();
    screen.is_stdout_open = false;
}

/// Shows the line of progress from now on.
pub(super) fn show(bar: Arc<Mutex<Bar>>) {
    let mut screen = lock(&SCREEN);
    screen.style = style();
    screen.taskbar = has_taskbar(|name| std::env::var(name).ok()).then(String::new);
    let weak = Arc::downgrade(&bar);
    screen.bar = Some(bar);
    screen.draw();
    drop(screen);
    let drawing = thread::Builder::new().name("progress".into());
    // Without this thread, the line is drawn only together with other lines.
    let _ = drawing.spawn(move || {
        while weak.strong_count() > 0 {
            thread::sleep(DRAW_EVERY);
            let mut screen = lock(&SCREEN);
            screen.draw();
        }
    });
}

/// Draws the line at once, because another phase has begun.
pub(super) fn draw_now() {
    if let Ok(mut screen) = SCREEN.try_lock() {
        screen.draw();
    }
}

/// Removes the line of progress from the terminal.
pub(super) fn end() {
    let mut screen = lock(&SCREEN);
    screen.clear();
    screen.bar = None;
    if screen.taskbar.take().is_some_and(|shown| !shown.is_empty()) {
        put(&taskbar_sequence(TASKBAR_OFF, ""));
    }
}

impl Screen {
    fn clear(&mut self) {
        if !self.drawn.is_empty() {
            put("\r\u{1b}[K");
            self.drawn.clear();
        }
    }

    fn draw(&mut self) {
        let Some(bar) = &self.bar else { return };
        // The terminal must never block the transfer.
        let bar = lock(bar).clone();
        let now = Instant::now();
        let line = bar.line(columns(), now, self.style);
        let mut text = String::new();
        if line != self.drawn {
            text += &format!("\r{line}\u{1b}[K");
            self.drawn = line;
        }
        if let Some(shown) = &mut self.taskbar {
            let next = taskbar(&bar);
            if next != *shown {
                text += &next;
                *shown = next;
            }
        }
        if !text.is_empty() {
            put(&text);
        }
    }
}

/// A terminal that went away is not an error.
fn put(text: &str) {
    let mut stderr = Waiting(std::io::stderr());
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// The width of the terminal on stderr.
fn columns() -> usize {
    system::columns().unwrap_or(COLUMNS_DEFAULT)
}

/// Text for the terminal on stderr, wrapped between words. A command at its end stays whole, on a
/// line of its own if necessary, so that it can be copied.
pub(super) fn wrapped(line: &str) -> Vec<String> {
    wrap(&printable::line(line), columns())
}

/// The width of the terminal on stdout; `None` if stdout is not a terminal, or its width is
/// unknown.
pub(super) fn stdout_columns() -> Option<usize> {
    let columns = std::io::stdout().is_terminal().then(system::columns);
    columns.flatten()
}

/// Whether every line of a text fits in this many columns.
pub(super) fn fits(text: &str, columns: usize) -> bool {
    text.lines().all(|line| line.width() <= columns)
}

/// A line for stdout that begins in this column: wrapped as [`wrapped`] if stdout is a terminal,
/// else whole.
pub(super) fn stdout_lines(line: &str, column: usize) -> Vec<String> {
    let line = printable::line(line);
    match stdout_columns() {
        Some(columns) => wrap(&line, columns.saturating_sub(column)),
        None => vec![line],
    }
}

/// Whether a line that begins with a program's name is a command and not a message of it, as in
/// `openhosting publish: The image`.
fn is_command(line: &str) -> bool {
    let is_word = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let message = line.split_once(": ");
    let message = message.filter(|(program, _)| program.split(' ').all(is_word));
    line.starts_with("openhosting") && message.is_none()
}

/// As [`wrapped`], for a printable line and a number of columns.
pub(super) fn wrap(line: &str, columns: usize) -> Vec<String> {
    if is_command(line) || line.width() < columns {
        return vec![line.to_owned()];
    }
    // What a command at the end of our messages starts with. The name of the program at the start
    // of the line is not one, since nothing precedes it.
    let commands = [
        "openhosting",
        "rm ",
        "sgdisk ",
        "echo ",
        "printf ",
        "minisign ",
        "curl ",
        "gzip ",
        "xz ",
        "zstd ",
        "bzip2 ",
    ];
    let starts = commands.iter().filter_map(|command| {
        let before = format!(": {command}");
        Some((line.match_indices(&before).last()?.0 + 2, *command))
    });
    // Of several, the first one: a pipe has more of them.
    if let Some((start, _)) = starts.min() {
        let (text, command) = line.split_at(start);
        let mut lines = wrap(text.trim_end(), columns);
        lines.push(command.to_owned());
        return lines;
    }
    // The lines of a list are indented.
    let text = line.trim_start_matches(' ');
    let indent = &line[..line.len() - text.len()];
    let mut words = text.split(' ');
    let first = words.next().unwrap_or_default();
    let mut lines = vec![format!("{indent}{first}")];
    for word in words {
        match lines.last_mut() {
            Some(last) if last.width() + 1 + word.width() < columns => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Whether stderr is a terminal on which a line can be redrawn.
pub(super) fn can_draw() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !is_dumb && system::takes_sequences()
}

fn style() -> Style {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(variable);
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    Style {
        has_color: variable("NO_COLOR").is_none(),
        is_unicode: locale.contains("utf-8") || locale.contains("utf8"),
    }
}

/// Whether the terminal is known to show progress in the taskbar or its title (OSC 9;4). Others may
/// show a notification instead, so unknown terminals get nothing.
fn has_taskbar(variable: impl Fn(&str) -> Option<String>) -> bool {
    // The effect in a multiplexer is unknown.
    if variable("TMUX").is_some() || variable("STY").is_some() {
        return false;
    }
    let program = variable("TERM_PROGRAM").unwrap_or_default();
    let has_feature = || variable("TERM_FEATURES").is_some_and(|features| features.contains('P'));
    variable("WT_SESSION").is_some()
        || variable("ConEmuANSI").is_some_and(|value| value == "ON")
        || matches!(&*program, "WezTerm" | "ghostty")
        || program == "iTerm.app" && has_feature()
}

// The states of progress in the control sequence of ConEmu that other terminals have adopted.
const TASKBAR_OFF: u8 = 0;
const TASKBAR_PROGRESS: u8 = 1;
const TASKBAR_UNKNOWN: u8 = 3;
const TASKBAR_PAUSED: u8 = 4;

/// The control sequence that shows the state of the line of progress in the taskbar.
fn taskbar(bar: &Bar) -> String {
    let (state, percent) = match (bar.is_waiting(), bar.percent()) {
        (false, Some(percent)) => (TASKBAR_PROGRESS, percent),
        (true, Some(percent)) => (TASKBAR_PAUSED, percent),
        (_, None) => (TASKBAR_UNKNOWN, 0),
    };
    taskbar_sequence(state, &percent.to_string())
}

fn taskbar_sequence(state: u8, percent: &str) -> String {
    format!("\u{1b}]9;4;{state};{percent}\u{1b}\\")
}

/// Whether stdout and stderr are the same file, pipe or socket.
fn is_same_file() -> bool {
    let out = Stream::Stdout.file_id();
    out.is_some() && out == Stream::Stderr.file_id()
}

/// Whether stdout is the systemd journal, which stores each line separately.
pub(super) fn is_stdout_journal() -> bool {
    match (Stream::Stdout.file_id(), std::env::var("JOURNAL_STREAM")) {
        (Some(id), Ok(journal)) => journal == format!("{}:{}", id.device, id.inode),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_words_and_commands_are_not_cut() {
        assert_eq!(wrap("one two  three", 8), ["one two", " three"]);
        assert_eq!(wrap("a-very-long-word b", 5), ["a-very-long-word", "b"]);
        let command = "openhosting-upload --journal a b.img";
        assert_eq!(
            wrap(&format!("tool: To continue that one: {command}"), 20),
            ["tool: To continue", "that one:", command]
        );
        assert_eq!(
            wrap(
                "tool: Grow it first: echo 'size 1' | openhosting drives x set",
                30
            ),
            [
                "tool: Grow it first:",
                "echo 'size 1' | openhosting drives x set"
            ]
        );
        let command = "openhosting-upload -n 'a: b' img";
        assert_eq!(wrap(command, 20), [command]);
        assert_eq!(wrap("  5ce4a7da  1 B", 12), ["  5ce4a7da", "  1 B"]);
        let own = "openhosting publish: The cloud copies the base";
        assert_eq!(
            wrap(own, 24),
            ["openhosting publish:", "The cloud copies the", "base"]
        );
    }

    #[test]
    fn only_terminals_that_are_known_for_it_get_progress_in_the_taskbar() {
        let has = |set: &[(&str, &str)]| {
            has_taskbar(|name| {
                let found = set.iter().find(|(set, _)| *set == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!has(&[]));
        assert!(has(&[("WT_SESSION", "x")]));
        assert!(!has(&[("WT_SESSION", "x"), ("TMUX", "y")]));
        assert!(has(&[("ConEmuANSI", "ON")]) && !has(&[("ConEmuANSI", "OFF")]));
        assert!(has(&[("TERM_PROGRAM", "ghostty")]));
        assert!(!has(&[("TERM_PROGRAM", "iTerm.app")]));
        assert!(has(&[
            ("TERM_PROGRAM", "iTerm.app"),
            ("TERM_FEATURES", "T3P")
        ]));
        assert!(!has(&[("TERM_PROGRAM", "Apple_Terminal")]));
    }

    #[test]
    fn the_taskbar_shows_percent_a_wait_or_that_something_is_done() {
        let now = Instant::now();
        let mut bar = Bar::new("Upload", "x", now);
        assert_eq!(taskbar(&bar), "\u{1b}]9;4;3;0\u{1b}\\");
        bar.begin("Upload", 1, Some(4), now);
        assert_eq!(taskbar(&bar), "\u{1b}]9;4;1;25\u{1b}\\");
        bar.wait("why", None);
        assert_eq!(taskbar(&bar), "\u{1b}]9;4;4;25\u{1b}\\");
    }
}
