//! The run of a command that transfers much data, as its command line requests it, for the display.

use std::time::Duration;

use super::github::{Moved, When};
use super::output::OutputForm;
use super::{arguments, help};
use crate::error::{Error, ErrorKind};

/// The kind of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
    /// A download to stdout, so lines go to stderr.
    DownToStdout,
    /// An upload by one of our own commands, which prints its own output on stdout.
    Publish,
    /// A comparison with a drive; the command prints its own output on stdout.
    Verify,
}

impl Way {
    /// Its name in `--progress json`.
    pub(super) fn direction(self) -> &'static str {
        match self {
            Self::Up | Self::Publish => "upload",
            Self::Down | Self::DownToStdout => "download",
            Self::Verify => "verify",
        }
    }

    /// The verb before the name of the object.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Up => "Upload",
            Self::Down | Self::DownToStdout => "Download",
            Self::Publish => "Publish",
            Self::Verify => "Verify",
        }
    }

    /// The direction of the bytes on the wire.
    pub(super) fn moved(self) -> Moved {
        match self {
            Self::Up | Self::Publish => Moved::Sent,
            Self::Down | Self::DownToStdout | Self::Verify => Moved::Received,
        }
    }
}

/// The flags for the output of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct DisplayArguments {
    /// Show progress as auto, bar, plain, json or none
    ///
    /// auto draws a bar on a terminal, and prints plain lines elsewhere: one every 10 s.
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_short_help = true,
        help_heading = help::OUTPUT
    )]
    pub(super) progress: arguments::ProgressMode,

    /// Print no progress and no notes
    ///
    /// Warnings, errors, how to resume, and results such as the line "Created drive" are still
    /// printed.
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Print for GitHub Actions: always, auto or never
    ///
    /// It prints groups, warnings and errors, sets outputs of the step, and writes a summary.
    /// auto does so only within a job. --github without a value means always.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t,
        default_missing_value = "always",
        hide_possible_values = true,
        hide_short_help = true,
        help_heading = help::OUTPUT
    )]
    pub(super) github: When,
}

impl DisplayArguments {
    /// The error if one flag asks for what another one forbids.
    pub(super) fn contradiction(&self) -> Option<Error> {
        use arguments::ProgressMode::{Bar, Json, Plain};
        let is_asked = matches!(self.progress, Bar | Plain | Json);
        (self.quiet && is_asked).then(|| {
            let what = "--quiet shows no progress, and --progress asks for it";
            Error::new(ErrorKind::Usage, what).hint_to("Leave out one of them")
        })
    }
}

/// A command that is about to run.
pub(super) struct ShownRun<'a> {
    pub(super) form: OutputForm,
    pub(super) is_json: bool,
    pub(super) way: Way,
    pub(super) showing: &'a DisplayArguments,
    /// The image, receipt or name in the title of the display.
    pub(super) about: &'a str,
    pub(super) deadline: Option<Duration>,
}
