//! What stops a transfer: SIGINT or Ctrl-C, SIGTERM, and the deadline. The first one stops it
//! cleanly, and a later signal at once.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::exit::Notice;
use super::{block_on, exit};
use crate::amounts::duration;
use crate::driver::stop::GRACE;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Signal, Signals};
use crate::transfer::{Stop, stop_channel};

/// The signal that was received first, or the deadline.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicU8>);

impl Heard {
    /// Its exit code; 0 if there was none.
    pub(super) fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// The exit code of a transfer that ended with such an error.
    pub(super) fn exit_code(&self, kind: ErrorKind) -> u8 {
        match kind {
            ErrorKind::Cancelled if self.code() != 0 => self.code(),
            kind => exit::code_of(kind),
        }
    }
}

/// The exit code of a program that a signal stopped.
pub(super) fn exit_code_of(signal: Signal) -> u8 {
    match signal {
        Signal::Interrupt => exit::SIGINT,
        Signal::Terminate => exit::SIGTERM,
    }
}

/// Runs a command that signals and the deadline stop; returns its result, and what stopped it. The
/// stop is announced in the name of `program`, or not at all. It is not announced either while the
/// command does something that a stop ends at once, such as asking a question.
pub(super) fn hearing<T>(
    program: Option<&'static str>,
    deadline: Option<Duration>,
    run: impl AsyncFnOnce(Stop) -> Result<T>,
) -> (Result<T>, Heard) {
    let heard = Heard::default();
    let result = block_on(async {
        let stop = listen(program, deadline, heard.clone())?;
        run(stop).await
    });
    (result, heard)
}

/// The line that announces a stop.
fn announcement(program: &str, is_deadline: bool) -> String {
    let grace = duration(GRACE);
    if !std::io::stderr().is_terminal() {
        let line = match is_deadline {
            true => format!(
                "the deadline is reached; finishing the requests in flight, for at most {grace}"
            ),
            false => format!(
                "finishing the requests in flight, for at most {grace}; a second signal stops at once"
            ),
        };
        return format!("{program}: {}", Notice::Note.labelled(program, &line));
    }
    let (why, again) = match is_deadline {
        true => ("The deadline is reached. ", ""),
        false => ("", " again"),
    };
    format!(
        "{why}Stopping after the current requests, in {grace} at the latest. Press Ctrl-C{again} to stop now"
    )
}

/// Listens from now on, records in `heard` what it hears, and starts the time until the deadline.
/// Needs a runtime. A clean stop is announced in the name of `program`, or not at all.
fn listen(program: Option<&'static str>, deadline: Option<Duration>, heard: Heard) -> Result<Stop> {
    let mut signals = Signals::listen()
        .map_err(|cause| Error::new(ErrorKind::Local, "Cannot hear signals").because(cause))?;
    let (handle, stop) = stop_channel();
    tokio::spawn(async move {
        let mut is_over = Box::pin(async move {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        });
        let mut is_awaited = true;
        loop {
            let code = tokio::select! {
                signal = signals.next() => exit_code_of(signal),
                () = &mut is_over, if is_awaited => exit::DEADLINE,
            };
            is_awaited &= code != exit::DEADLINE;
            if heard.code() == 0 {
                heard.0.store(code, Ordering::Relaxed);
                // The work may end as soon as it is asked to, so what concerns it comes before.
                let ends_at_once = handle.ends_at_once();
                if ends_at_once && program.is_some() && std::io::stderr().is_terminal() {
                    // What follows begins on a line of its own, not behind a question and ^C.
                    exit::say("");
                }
                handle.drain();
                if let Some(program) = program.filter(|_| !ends_at_once) {
                    exit::say_wrapped(&announcement(program, code == exit::DEADLINE));
                }
            } else if code != exit::DEADLINE {
                handle.abort();
            }
        }
    });
    Ok(stop)
}
