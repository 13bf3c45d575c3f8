//! What the help and the manual pages of all commands share: headings, and the parts that follow
//! the flags.
//!
//! Flags that most people need are listed under "Options", and `-h` shows only these. All other
//! flags have a different heading and `hide_short_help`.

#[rustfmt::skip]
mod sections;

use std::fmt::Write as _;

pub(super) use self::sections::{Entry, Sections};
use super::{command_line, screen};

/// The headings above flags.
pub(super) const DRIVE: &str = "Drive";
pub(super) const IMAGE: &str = "Image";
pub(super) const RESUMING: &str = "Resuming";
pub(super) const CHECKS: &str = "Checks";
pub(super) const SPEED: &str = "Speed and outages";
pub(super) const MACHINES: &str = "Several machines";
pub(super) const ENDPOINT: &str = "Endpoint and credentials";
pub(super) const OUTPUT: &str = "Output";

/// Maximum columns; clap wraps its own help at the same width.
const COLUMNS: usize = 80;

/// The sections of a command, which is given by its word, or by its name with dashes, as in
/// `openhosting-image-info`.
pub(super) fn sections(command: &str) -> Sections {
    let of = |command: &str| {
        let mut all = sections::ALL.iter();
        let found = all.find(|(name, _)| *name == command);
        found.map_or(sections::NOTHING, |(_, sections)| *sections)
    };
    match command.strip_prefix("openhosting-").unwrap_or(command) {
        // The values are of the flags of its subcommand.
        "image" => Sections {
            values: &[],
            ..of("image-info")
        },
        command => of(command),
    }
}

/// The text at the end of `--help`.
pub(super) fn after(command: &str) -> String {
    let Sections {
        examples,
        values,
        environment,
        exit_status,
        ..
    } = sections(command);
    let mut text = String::new();
    if !examples.is_empty() {
        text.push_str("Examples:\n");
    }
    for (what, command) in examples {
        let _ = writeln!(text, "  {what}:\n      {command}");
    }
    list(&mut text, "Values", values);
    list(&mut text, "Environment", environment);
    list(&mut text, "Exit codes", exit_status);
    if matches!(command, "upload" | "download") && !command_line::is_one_program() {
        let _ = writeln!(text, "\nIn place of the provider's script:");
        let lines = screen::wrap(&of_the_script(command), COLUMNS - 2);
        lines.iter().for_each(|line| _ = writeln!(text, "  {line}"));
    }
    text.trim_end().to_owned()
}

/// How the program in the place of the provider's script differs from the command of `openhosting`.
fn of_the_script(command: &str) -> String {
    format!(
        "If stdout is not a terminal, this program prints what the script of the same name prints, \
         with a dot for each chunk. It also accepts some values that \"openhosting {command}\" \
         refuses, such as chunks below 4 KiB, because the script accepts them."
    )
}

/// A part of the help with a term and its explanation on each line.
fn list(text: &mut String, title: &str, entries: &[Entry]) {
    if entries.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    let width = |(term, _): &Entry| term.len();
    let width = entries.iter().map(width).filter(|width| *width < 24).max();
    let width = width.unwrap_or_default();
    for (term, what) in entries {
        let mut lines = screen::wrap(what, COLUMNS - width - 4).into_iter();
        match term.len() > width {
            true => _ = writeln!(text, "  {term}"),
            false => {
                let first = lines.next().unwrap_or_default();
                let _ = writeln!(text, "  {term:width$}  {first}");
            }
        }
        for line in lines {
            let _ = writeln!(text, "  {:width$}  {line}", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command_list;
    use super::*;

    #[test]
    fn lists_stay_in_their_columns() {
        let text = after("upload");
        let (_, environment) = text.split_once("Environment:\n").unwrap();
        let (environment, _) = environment.split_once("\n\n").unwrap();
        for line in environment.lines() {
            assert!(line.len() < COLUMNS, "{line}");
            let column = line.len() - line.trim_start().len();
            assert!(column == 2 || column == 23, "{line}");
        }
        assert!(environment.contains(" EHAUTH is an\n"), "{environment}");
    }

    #[test]
    fn every_command_has_examples_that_begin_with_it() {
        for own in command_list::COMMANDS {
            let Sections {
                examples,
                exit_status,
                ..
            } = sections(own.word);
            assert!(
                !examples.is_empty() && !exit_status.is_empty(),
                "{}",
                own.word
            );
            for (what, command) in examples {
                let is_about = command.contains(&format!("openhosting {}", own.word));
                assert!(is_about, "{what}: {command}");
                assert!(!what.ends_with(['.', ':']), "{what}");
            }
        }
    }
}
