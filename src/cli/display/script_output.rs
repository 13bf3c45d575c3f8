//! What the original scripts print: the line about the drive, and a line with a dot for each chunk.

use std::io::{IsTerminal, Write};

use crate::cli::github::Moved;
use crate::cli::showing::{ShownRun, Way};
use crate::cli::{command_line, screen};
use crate::nonblocking::Waiting;
use crate::system::Stream;

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Stdout,
    /// To stdout at the end, because its reader could print it on the terminal that shows progress,
    /// as `tee` does.
    StdoutAtTheEnd,
    Stderr,
    Nowhere,
}

/// A part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Whole lines.
    Whole,
    /// More of the current line.
    Middle,
    /// The end of a line.
    End,
}

#[derive(Debug)]
pub(super) struct ScriptOutput {
    place: Place,
    /// Whether to print the line of dots.
    has_dots: bool,
    dots_printed: u64,
    /// Text to print at the end.
    held: String,
    /// Why a part was not written, the first time.
    pub(super) unwritten: Option<std::io::Error>,
}

impl ScriptOutput {
    /// `shows` says whether progress is shown on stderr, and `is_json` whether as JSON objects.
    pub(super) fn new(run: &ShownRun<'_>, shows: bool, is_json: bool) -> Self {
        let quiet = run.showing.quiet;
        let is_terminal = std::io::stderr().is_terminal();
        let (place, has_dots) = match run.way {
            Way::Publish | Way::Verify => (Place::Nowhere, false),
            // They would garble the bar or the JSON objects.
            Way::DownToStdout => (Place::Stderr, !is_terminal && !is_json),
            // An object goes there when all is over.
            Way::Up | Way::Down if run.is_json => (Place::Nowhere, false),
            Way::Up | Way::Down if quiet => (Place::Stdout, false),
            Way::Up | Way::Down if std::io::stdout().is_terminal() => {
                (Place::Stdout, !is_terminal && !Stream::Stderr.is_piped())
            }
            Way::Up | Way::Down if screen::is_stdout_journal() => (Place::Stdout, false),
            Way::Up | Way::Down if is_terminal && shows && Stream::Stdout.is_piped() => {
                (Place::StdoutAtTheEnd, true)
            }
            Way::Up | Way::Down => (Place::Stdout, true),
        };
        Self {
            place,
            // The commands print plain lines instead.
            has_dots: has_dots && !quiet && !command_line::is_one_program(),
            dots_printed: 0,
            held: String::new(),
            unwritten: None,
        }
    }

    /// Prints whole lines.
    pub(super) fn lines(&mut self, text: &str) {
        self.print(Part::Whole, text);
    }

    /// Prints what precedes the dots, if there are dots.
    pub(super) fn start(
        &mut self,
        moved: Moved,
        chunks: Option<u64>,
        chunk_bytes: u64,
        offset: u64,
    ) {
        let many = chunks.map_or(String::new(), |chunks| format!("{chunks} "));
        let chunks = format!("{many}chunks of {chunk_bytes} bytes");
        let line = match moved {
            Moved::Sent => format!("Uploading {chunks}: "),
            Moved::Received => format!("Downloading {chunks} starting at {offset}: "),
        };
        if self.has_dots {
            self.print(Part::Middle, &line);
        }
    }

    /// Prints the dots that are missing to this many.
    pub(super) fn dots(&mut self, count: u64) {
        // A hole of a terabyte prints many dots.
        const LINE: &str = "................................................................";
        let mut left = count - self.dots_printed;
        self.dots_printed = count;
        while self.has_dots && left > 0 {
            let n = left.min(LINE.len() as u64);
            self.print(Part::Middle, &LINE[..usize::try_from(n).unwrap_or(0)]);
            left -= n;
        }
    }

    /// Ends the line of dots with this text, if it was begun, and prints what was held.
    pub(super) fn end(&mut self, text: Option<&str>) {
        if let Some(text) = text.filter(|_| self.has_dots) {
            self.print(Part::End, text);
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            // It goes to a pipe. If its reader has ended, the summary and the exit code still say
            // how the transfer ended.
            let _ = write_out(&mut Waiting(std::io::stdout()), &held);
        }
    }

    /// Separates a line on stderr from the dots before it, if they are there too.
    pub(super) fn separate(&self) {
        if self.has_dots && self.place == Place::Stderr {
            let _ = write_out(&mut Waiting(std::io::stderr()), " ");
        }
    }

    fn print(&mut self, part: Part, text: &str) {
        match self.place {
            Place::Nowhere => {}
            Place::StdoutAtTheEnd => self.held += text,
            Place::Stdout => {
                let mut written = Ok(());
                let write = || written = write_out(&mut Waiting(std::io::stdout()), text);
                match part {
                    Part::Whole => screen::write(write),
                    Part::Middle => screen::write_part(write),
                    Part::End => screen::write_end(write),
                }
                if let Err(cause) = written {
                    self.unwritten.get_or_insert(cause);
                }
            }
            Place::Stderr => {
                // It is not an error if stderr is closed.
                let _ = write_out(&mut Waiting(std::io::stderr()), text);
            }
        }
    }
}

/// Writes without a buffer, so that each dot appears when its chunk is complete.
fn write_out(out: &mut dyn Write, text: &str) -> std::io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}
