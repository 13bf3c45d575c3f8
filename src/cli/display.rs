//! What a transfer shows: the original's lines on stdout, and on a terminal a
//! bar on stderr.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

use super::exit;
use crate::monitor::{Event, Monitor, Progress};
use crate::transfer::Verified;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
    /// Down to stdout, which holds the image then: lines go to stderr.
    DownToStdout,
}

/// Shows a transfer.
#[derive(Debug)]
pub(super) struct Display {
    way: Way,
    program: &'static str,
    /// Neither dots nor bar.
    quiet: bool,
    /// The line of dots, for a stdout that nobody watches.
    dots: bool,
    dots_printed: u64,
    bar: Option<ProgressBar>,
    bytes: u64,
    began: Instant,
    progress: Progress,
    notice: Option<String>,
    started: bool,
}

impl Display {
    pub(super) fn new(program: &'static str, way: Way, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = (on_terminal && !quiet).then(|| {
            let bar = ProgressBar::new(0);
            let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        let lines_on_terminal = match way {
            Way::Up | Way::Down => std::io::stdout().is_terminal(),
            Way::DownToStdout => true,
        };
        Self {
            way,
            program,
            quiet,
            // A line of dots would cross the bar.
            dots: !(quiet || on_terminal && lines_on_terminal),
            dots_printed: 0,
            bar,
            bytes: 0,
            began: Instant::now(),
            progress: Progress::default(),
            notice: None,
            started: false,
        }
    }

    /// The transfer is over, and complete if something is given. What the original
    /// prints then.
    pub(super) fn ended(mut self, verified: Option<Verified>) {
        let is_complete = verified.is_some();
        self.print_dots();
        if self.dots && self.started {
            self.print(if is_complete { " completed\n" } else { "E\n" });
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            if let Some(verified) = verified {
                exit::say(&self.summary(verified));
            }
        }
    }

    fn summary(&self, verified: Verified) -> String {
        let progress = self.progress;
        let data = progress.done_bytes - progress.skipped_bytes;
        let elapsed = self.began.elapsed();
        let rate = data as f64 / elapsed.as_secs_f64().max(0.001);
        format!(
            "{} {} in {:.1} s ({}/s): {} on the wire, {} of zeros left out, {} retries, {} verified",
            if self.way == Way::Up {
                "Uploaded"
            } else {
                "Downloaded"
            },
            HumanBytes(data),
            elapsed.as_secs_f64(),
            HumanBytes(rate as u64),
            HumanBytes(progress.wire_bytes),
            HumanBytes(progress.skipped_bytes),
            progress.retries,
            HumanBytes(verified.bytes),
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
        let mut stdout = std::io::stdout();
        let mut stderr = std::io::stderr();
        let out: &mut dyn Write = match self.way {
            Way::Up | Way::Down => &mut stdout,
            Way::DownToStdout => &mut stderr,
        };
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }

    fn draw(&self) {
        let Some(bar) = &self.bar else { return };
        let progress = self.progress;
        // Zeros left out are no work done: they count neither as bytes moved nor
        // in the rate.
        bar.set_length(self.bytes - progress.skipped_bytes);
        bar.set_position(progress.done_bytes - progress.skipped_bytes);
        let mut message = format!("wire {}", HumanBytes(progress.wire_bytes));
        if progress.skipped_bytes > 0 {
            message += &format!(", zeros {}", HumanBytes(progress.skipped_bytes));
        }
        if progress.retries > 0 {
            message += &format!(", {} retries", progress.retries);
        }
        bar.set_message(message);
    }

    fn notice(&mut self, line: &str) {
        if self.quiet || self.notice.as_deref() == Some(line) {
            return;
        }
        self.notice = Some(line.to_owned());
        let since = HumanDuration(self.began.elapsed());
        let line = format!("{}: {line} (after {since})", self.program);
        match &self.bar {
            Some(bar) => bar.suspend(|| exit::say(&line)),
            None => exit::say(&line),
        }
    }
}

impl Monitor for Display {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Drive { id, size, is_new } => {
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
                self.began = Instant::now();
                if self.dots {
                    self.print(&match self.way {
                        Way::Up => format!("Uploading {chunks} chunks of {chunk_bytes} bytes: "),
                        Way::Down | Way::DownToStdout => format!(
                            "Downloading {chunks} chunks of {chunk_bytes} bytes starting at {offset}: "
                        ),
                    });
                }
                if let Some(bar) = &self.bar {
                    bar.enable_steady_tick(std::time::Duration::from_millis(200));
                }
                self.draw();
            }
            Event::Progress(progress) => {
                if progress.done_bytes > self.progress.done_bytes {
                    self.notice = None;
                }
                self.progress = *progress;
                self.print_dots();
                self.draw();
            }
            Event::Notice(line) => self.notice(line),
        }
    }
}
