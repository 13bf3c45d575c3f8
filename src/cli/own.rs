//! Commands of our own in the simple tool. The first word selects one of them;
//! everything else is a call of the API, as in the original, which knows no
//! object of these names (docs/dev/reference.md, 1.1). A new command is one entry here.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use super::{call, drive_commands, image, manual, probe, publish, verify};

/// A command.
pub(super) struct OwnCommand {
    pub(super) word: &'static str,
    /// Gets its word and all that follows.
    main: fn(&[OsString]) -> ExitCode,
    /// What clap knows of it.
    command: fn() -> clap::Command,
}

pub(super) const COMMANDS: &[OwnCommand] = &[
    OwnCommand {
        word: "completions",
        main: |words| manual::completions(words, commands()),
        command: manual::Completions::command,
    },
    OwnCommand {
        word: "image",
        main: |words| image::FORM.main(words, image::main),
        command: image::ImageCommand::command,
    },
    OwnCommand {
        word: "ls",
        main: |words| drive_commands::LS.main(words, drive_commands::ls),
        command: drive_commands::LsArguments::command,
    },
    OwnCommand {
        word: "man",
        main: |words| manual::man(words, commands()),
        command: manual::Manual::command,
    },
    OwnCommand {
        word: "probe",
        main: |words| probe::FORM.main(words, probe::main),
        command: probe::ProbeArguments::command,
    },
    OwnCommand {
        word: "publish",
        main: |words| publish::FORM.main(words, publish::main),
        command: publish::PublishArguments::command,
    },
    OwnCommand {
        word: "rm",
        main: |words| drive_commands::RM.main(words, drive_commands::rm),
        command: drive_commands::RmArguments::command,
    },
    OwnCommand {
        word: "show",
        main: |words| drive_commands::SHOW.main(words, drive_commands::show),
        command: drive_commands::ShowArguments::command,
    },
    OwnCommand {
        word: "verify",
        main: |words| verify::FORM.main(words, verify::main),
        command: verify::VerifyArguments::command,
    },
];

/// What clap knows of them all, for completions and the manual.
pub(super) fn commands() -> Vec<clap::Command> {
    let commands = COMMANDS.iter().map(|own| {
        // A name of two words is for the help of the command itself.
        (own.command)()
            .name(own.word)
            .bin_name(format!("openhosting {}", own.word))
            .display_name(format!("openhosting-{}", own.word))
    });
    commands.collect()
}

/// The program `openhosting`.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    match own(&words) {
        Some(own) => (own.main)(&words),
        None => call::main(),
    }
}

fn own(words: &[OsString]) -> Option<&'static OwnCommand> {
    let first = words.first()?;
    COMMANDS.iter().find(|own| first == own.word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_word_selects_a_command_of_ours() {
        let word = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            own(&words).map(|own| own.word)
        };
        assert_eq!(word("probe --json"), Some("probe"));
        assert_eq!(word("publish a.img"), Some("publish"));
        for call in [
            "drives list",
            "-j probe",
            "drives probe",
            "probes",
            "/probe",
            "",
        ] {
            assert_eq!(word(call), None, "{call}");
        }
        assert!(own(&[]).is_none());
    }

    #[test]
    fn the_help_tells_them_all() {
        let help = call::help();
        for own in COMMANDS {
            assert!(
                help.contains(&format!("openhosting {}", own.word)),
                "{}",
                own.word
            );
        }
    }
}
