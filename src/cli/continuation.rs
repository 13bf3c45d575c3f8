//! The last lines of a command that did not finish: how far it got, and, always last, the command
//! that continues.

use super::bar::percent;
use super::command_line::{self, Changes};
use super::exit;
use crate::amounts::size;
use crate::error::ErrorKind;

/// How to continue a command that did not finish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Continuation {
    /// The command, complete.
    pub(super) command: String,
    /// Whether the command continues with what is stored; otherwise it starts over.
    pub(super) resumes: bool,
    /// Where the progress of this run is, such as `on drive 31a9bd80`.
    pub(super) place: Option<String>,
    /// What the command also needs, such as `with the same image on stdin`.
    pub(super) needs: Option<&'static str>,
}

impl Continuation {
    /// The same command, which starts over.
    pub(super) fn again(program: &str) -> Self {
        let changes = Changes {
            without: &["--restart", "--cleanup"],
            ..Changes::default()
        };
        Self {
            command: command_line::changed(program, changes),
            resumes: false,
            place: None,
            needs: None,
        }
    }

    /// The command as advice, on one line.
    pub(super) fn advice(&self) -> String {
        let what_for = match self.resumes {
            true => "Continue",
            false => "Start again",
        };
        let needs = self.needs.unwrap_or("with");
        format!("{what_for} {needs}: {}", self.command)
    }
}

/// The line about what a run leaves on the endpoint, such as `Drive 31a9bd80 is unfinished`, with
/// the command that removes it. The line never ends with the command, so that nobody takes the
/// removal for the command that continues.
pub(super) fn with_removal(what: &str, removal: &str) -> String {
    format!("{what} (to remove it: {removal})")
}

/// The end of a run that did not finish.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfinished {
    pub(super) kind: ErrorKind,
    pub(super) exit_code: u8,
    /// The position in the disk and its size, once the transfer of chunks began.
    pub(super) position: Option<(u64, Option<u64>)>,
}

impl Unfinished {
    /// Whether the table of exit codes in the README says that the run can be continued.
    pub(super) fn is_resumable(self) -> bool {
        matches!(
            self.exit_code,
            exit::DEADLINE | exit::SIGINT | exit::SIGTERM
        )
    }

    /// The last two lines.
    pub(super) fn lines(self, continuation: &Continuation) -> [String; 2] {
        let is_stopped = self.kind == ErrorKind::Cancelled;
        let what_for = match (continuation.resumes, self.kind) {
            (true, ErrorKind::Cancelled) => "Continue",
            (true, ErrorKind::Unavailable) => "Continue later",
            // The error has already said what to do first.
            (true, _) => "Then continue",
            (false, _) => "Start again",
        };
        let needs = continuation.needs.unwrap_or("with");
        let deadline = match self.exit_code {
            exit::DEADLINE if is_stopped => " at the deadline",
            _ => "",
        };
        let done = match self.position.filter(|(done, _)| *done > 0) {
            None if is_stopped => {
                format!("Stopped{deadline} before the first chunk was complete. ")
            }
            None => String::new(),
            Some((done, Some(total))) if is_stopped && done >= total => {
                let place = continuation.place.as_ref();
                let place = place.map_or(String::new(), |place| format!(" is {place}"));
                format!("Stopped{deadline} during the final check: all of the disk{place}. ")
            }
            Some((done, total)) => {
                let of = total.map_or(String::new(), |total| format!(" of {}", size(total)));
                let place = continuation.place.as_ref();
                // The next run starts over, so do not report progress.
                if place.is_none() && !is_stopped {
                    return [format!("{what_for} {needs}:"), continuation.command.clone()];
                }
                let place = place.map_or(String::new(), |place| format!(" are {place}"));
                let share = total.and_then(|total| percent(done, total));
                let part = format!("{}{of}{place}", size(done));
                match (is_stopped, share) {
                    (true, Some(share)) => format!("Stopped{deadline} at {share} % ({part}). "),
                    (true, None) => format!("Stopped{deadline} ({part}). "),
                    (false, Some(share)) => format!("{share} % is done ({part}). "),
                    (false, None) => format!("Part of it is done ({part}). "),
                }
            }
        };
        [
            format!("{done}{what_for} {needs}:"),
            continuation.command.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(
        kind: ErrorKind,
        exit_code: u8,
        position: Option<(u64, Option<u64>)>,
        place: Option<&str>,
        resumes: bool,
    ) -> String {
        let unfinished = Unfinished {
            kind,
            exit_code,
            position,
        };
        let [line, command] = unfinished.lines(&Continuation {
            command: "c".into(),
            resumes,
            place: place.map(str::to_owned),
            needs: None,
        });
        assert_eq!(command, "c");
        line
    }

    #[test]
    fn one_line_says_how_far_it_got() {
        let at = Some((173_015_040, Some(1 << 31)));
        let on = Some("on drive 31a9bd80");
        use ErrorKind::{Cancelled, Local, Unavailable};
        for (kind, code, position, place, line) in [
            (
                Cancelled,
                130,
                at,
                on,
                "Stopped at 8 % (165 MiB of 2.0 GiB are on drive 31a9bd80). Continue with:",
            ),
            (
                Cancelled,
                130,
                Some((1 << 31, Some(1 << 31))),
                on,
                "Stopped during the final check: all of the disk is on drive 31a9bd80. Continue with:",
            ),
            (
                Cancelled,
                75,
                at,
                on,
                "Stopped at the deadline at 8 % (165 MiB of 2.0 GiB are on drive 31a9bd80). Continue with:",
            ),
            (
                Cancelled,
                143,
                None,
                on,
                "Stopped before the first chunk was complete. Continue with:",
            ),
            (
                Cancelled,
                130,
                None,
                None,
                "Stopped before the first chunk was complete. Start again with:",
            ),
            (
                Cancelled,
                130,
                Some((5 << 20, None)),
                on,
                "Stopped (5.0 MiB are on drive 31a9bd80). Continue with:",
            ),
            (
                Unavailable,
                75,
                at,
                on,
                "8 % is done (165 MiB of 2.0 GiB are on drive 31a9bd80). Continue later with:",
            ),
            (Unavailable, 75, None, None, "Start again with:"),
            (Unavailable, 75, at, None, "Start again with:"),
            (
                Local,
                1,
                at,
                Some("in x.oh-part"),
                "8 % is done (165 MiB of 2.0 GiB are in x.oh-part). Then continue with:",
            ),
            (
                Cancelled,
                130,
                at,
                None,
                "Stopped at 8 % (165 MiB of 2.0 GiB). Start again with:",
            ),
        ] {
            assert_eq!(lines(kind, code, position, place, place.is_some()), line);
        }
    }

    #[test]
    fn a_run_that_failed_before_it_moved_anything_continues_the_earlier_one() {
        for (kind, code, position, line) in [
            (ErrorKind::Unavailable, 75, None, "Continue later with:"),
            (
                ErrorKind::Unavailable,
                75,
                Some((5 << 20, None)),
                "Continue later with:",
            ),
            (
                ErrorKind::Cancelled,
                130,
                None,
                "Stopped before the first chunk was complete. Continue with:",
            ),
        ] {
            assert_eq!(lines(kind, code, position, None, true), line);
        }
    }
}
