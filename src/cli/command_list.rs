//! The commands of `openhosting`, which is one program for everything.
//!
//! The first word selects a command. The first words of the API's own calls (`drives`, `servers`,
//! `resources`, `profile`) make a raw call, as in the providers' script of the same name; any
//! other raw call is made with `api`. Nothing else is sent to an endpoint. A new command is one
//! entry in [`COMMANDS`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, PathCompleter, ValueCompleter as _};

use super::{
    candidates, command_line, complete, doctor, download, drive_commands, exit, image, login,
    manual, probe, publish, raw_call, server, upload, usage, verify, version,
};
use crate::error::{Error, ErrorKind};

const PROGRAM: &str = "openhosting";

/// What other tools call our commands.
const OTHER_WORDS: [(&str, &str); 8] = [
    ("delete", "rm"),
    ("destroy", "rm"),
    ("export", "download"),
    ("get", "download"),
    ("import", "upload"),
    ("info", "show"),
    ("put", "upload"),
    ("remove", "rm"),
];

/// Commands of other tools that have no counterpart here, and what does their work.
const OTHER_TASKS: &[(&[&str], &str)] = &[
    (
        &["continue", "restart", "resume", "retry"],
        "Run the command that stopped again: it continues",
    ),
    (
        &["config", "configure", "profiles", "whoami"],
        "\"openhosting login\" stores a profile in ~/.config/openhosting/config.toml, and \"openhosting doctor\" shows what is used",
    ),
    (
        &["logout"],
        "Remove the profile from ~/.config/openhosting/config.toml, and its key file beside it",
    ),
    (
        &["status"],
        "\"openhosting ls\" shows the state of your drives, and \"openhosting doctor\" checks what a transfer needs",
    ),
];

/// The groups in which commands are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Transfers,
    Drives,
    Endpoint,
    Program,
}

impl Group {
    const ALL: [Self; 4] = [Self::Transfers, Self::Drives, Self::Endpoint, Self::Program];

    fn title(self) -> &'static str {
        match self {
            Self::Transfers => "Move images",
            Self::Drives => "Look at drives and images",
            Self::Endpoint => "Work with an endpoint",
            Self::Program => "About this program",
        }
    }
}

/// A command.
pub(super) struct OwnCommand {
    pub(super) word: &'static str,
    group: Group,
    /// One line for the list.
    about: &'static str,
    /// The function that runs it, with its word and all that follow.
    main: fn(&[OsString]) -> ExitCode,
    /// Its definition for clap.
    command: fn() -> clap::Command,
}

pub(super) const COMMANDS: &[OwnCommand] = &[
    OwnCommand {
        word: "upload",
        group: Group::Transfers,
        about: "Upload an image to a new or an existing drive",
        main: upload::main_of,
        command: upload::UploadArguments::command,
    },
    OwnCommand {
        word: "download",
        group: Group::Transfers,
        about: "Download a drive to a file",
        main: download::main_of,
        command: download::DownloadArguments::command,
    },
    OwnCommand {
        word: "publish",
        group: Group::Transfers,
        about: "Make a named drive of an image, and send only what changed",
        main: |words| publish::FORM.main(words, publish::main),
        command: publish::PublishArguments::command,
    },
    OwnCommand {
        word: "verify",
        group: Group::Transfers,
        about: "Compare a drive with the receipt of its publication",
        main: |words| verify::FORM.main(words, verify::main),
        command: verify::VerifyArguments::command,
    },
    OwnCommand {
        word: "ls",
        group: Group::Drives,
        about: "List your drives",
        main: |words| drive_commands::LS.main(words, drive_commands::ls),
        command: drive_commands::LsArguments::command,
    },
    OwnCommand {
        word: "show",
        group: Group::Drives,
        about: "Show the details of a drive",
        main: |words| drive_commands::SHOW.main(words, drive_commands::show),
        command: drive_commands::ShowArguments::command,
    },
    OwnCommand {
        word: "rm",
        group: Group::Drives,
        about: "Destroy drives",
        main: |words| drive_commands::RM.main(words, drive_commands::rm),
        command: drive_commands::RmArguments::command,
    },
    OwnCommand {
        word: "image",
        group: Group::Drives,
        about: "Examine disk images: files, and URLs of images",
        main: |words| image::FORM.main(words, image::main),
        command: image::ImageCommand::command,
    },
    OwnCommand {
        word: "login",
        group: Group::Endpoint,
        about: "Store an endpoint and your credentials as a profile",
        main: login::main,
        command: login::LoginArguments::command,
    },
    OwnCommand {
        word: "doctor",
        group: Group::Endpoint,
        about: "Find out what would stop a transfer",
        main: doctor::main,
        command: doctor::DoctorArguments::command,
    },
    OwnCommand {
        word: "api",
        group: Group::Endpoint,
        about: "Make a raw call of the API and print the answer",
        main: raw_call::main,
        command: raw_call::CallArguments::command,
    },
    OwnCommand {
        word: "probe",
        group: Group::Endpoint,
        about: "Find out how an endpoint behaves",
        main: |words| probe::FORM.main(words, probe::main),
        command: probe::ProbeArguments::command,
    },
    OwnCommand {
        word: "server",
        group: Group::Endpoint,
        about: "Run the API on this machine",
        main: server::main_of,
        command: server::ServerArguments::command,
    },
    OwnCommand {
        word: "completions",
        group: Group::Program,
        about: "Print the completions for a shell",
        main: |words| manual::completions(words, root()),
        command: manual::Completions::command,
    },
    OwnCommand {
        word: "man",
        group: Group::Program,
        about: "Print or write the manual pages",
        main: |words| manual::man(words, root()),
        command: man_command,
    },
    OwnCommand {
        word: "version",
        group: Group::Program,
        about: "Print the version; -v adds commit, target, features and paths",
        main: version::main,
        command: version::Version::command,
    },
];

/// The definition of the whole program for clap, from which completions and manuals are made.
pub(super) fn root() -> clap::Command {
    let commands = COMMANDS.iter().map(|own| {
        // A name of two words is only for the help of the command itself.
        (own.command)()
            .name(own.word)
            .about(own.about)
            .bin_name(format!("{PROGRAM} {}", own.word))
            .display_name(format!("{PROGRAM}-{}", own.word))
    });
    clap::Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Moves disk images in and out of an OpenHosting cloud")
        .long_about(LONG_ABOUT)
        .subcommand_required(true)
        .subcommands(commands)
        .disable_help_subcommand(true)
}

/// `man`, with completions for its pages.
fn man_command() -> clap::Command {
    let pages = |current: &OsStr| {
        let names = manual::page_names(root()).into_iter();
        candidates::candidates(names.map(|name| (name, None)), current)
    };
    // The words of commands mean pages too, and are shorter.
    let pages_or_directories = move |current: &OsStr| {
        let words = COMMANDS.iter().map(|own| (own.word.to_owned(), None));
        let mut all = candidates::candidates(words, current);
        if !current.is_empty() {
            all.extend(pages(current));
        }
        all.extend(PathCompleter::dir().complete(current));
        all
    };
    let pages = ArgValueCompleter::new(pages);
    let pages_or_directories = ArgValueCompleter::new(pages_or_directories);
    manual::Manual::command()
        .mut_arg("page", |page| page.add(pages))
        .mut_arg("directory", |word| word.add(pages_or_directories))
}

/// `help`, which completions know as a command.
fn help_command() -> clap::Command {
    let words = COMMANDS.iter().map(|own| own.word);
    let command = clap::Arg::new("command").value_parser(words.collect::<Vec<_>>());
    clap::Command::new("help")
        .about("Describe a command")
        .arg(command)
}

const LONG_ABOUT: &str = "Moves disk images in and out of an OpenHosting cloud: the API that \
ElasticHosts, Serverlove, SkaliCloud and others run. The first word is a command. Raw calls \
of the API (drives, servers, resources, profile) work as in the providers' script of the same \
name: openhosting drives list";

/// The program `openhosting`.
pub fn main() -> ExitCode {
    command_line::become_one_program();
    if complete::answered(|| root().subcommand(help_command())) {
        return ExitCode::SUCCESS;
    }
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    let Some(first) = words.first().map(|word| word.to_string_lossy()) else {
        list().lines().for_each(exit::say);
        return ExitCode::from(exit::code_of(ErrorKind::Usage));
    };
    if let Some(own) = own(&first) {
        return (own.main)(&words);
    }
    match first.as_ref() {
        "help" => help(&words[1..]),
        "-h" | "--help" => exit::finish(PROGRAM, exit::print(&list())),
        "-V" | "--version" => version::main(&[]),
        // A program that reads it gets the answer of the providers' script, where -v is a flag.
        "-v" if words.len() == 1 && std::io::stdout().is_terminal() => version::main(&[]),
        _ => of_the_script(&words),
    }
}

fn own(word: &str) -> Option<&'static OwnCommand> {
    COMMANDS.iter().find(|own| own.word == word)
}

/// `openhosting help [COMMAND]`.
fn help(words: &[OsString]) -> ExitCode {
    let is_about_help = |word: &&OsString| ["help", "-h", "--help"].iter().any(|it| **word == **it);
    let Some(word) = words.first().filter(|word| !is_about_help(word)) else {
        return exit::finish(PROGRAM, exit::print(&list()));
    };
    // A raw call is described by the command that makes it.
    let word = match begins_call(&word.to_string_lossy()) {
        true => &OsString::from("api"),
        false => word,
    };
    match own(&word.to_string_lossy()) {
        Some(own) => {
            let rest = words[1..].iter().cloned();
            let words: Vec<_> = [word.clone()].into_iter().chain(rest).collect();
            (own.main)(&[&words[..], &["--help".into()]].concat())
        }
        None => exit::finish(PROGRAM, Err(unknown(&word.to_string_lossy()))),
    }
}

/// Makes a raw call as the providers' script does, without the word `api`, if the API has such an
/// object.
fn of_the_script(words: &[OsString]) -> ExitCode {
    let texts: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let first = texts.first().map_or("", |word| &**word);
    if !first.starts_with('-') && !begins_call(first) {
        return exit::finish(PROGRAM, Err(unknown(first)));
    }
    let mut commands = texts.iter().filter_map(|word| own(word));
    if let Some(own) = commands.next()
        && !texts.iter().any(|word| begins_call(word))
    {
        let what = format!("The flags of \"{}\" follow it", own.word);
        let error = Error::new(ErrorKind::Usage, what)
            .hint_to(format!("Run: {PROGRAM} {} --help", own.word));
        return exit::finish(PROGRAM, Err(error));
    }
    if let Some(flag @ ("-h" | "--help")) = texts.last().map(|word| &**word) {
        return raw_call::main(&["api".into(), flag.into()]);
    }
    let mut words: Vec<_> = [OsString::from(PROGRAM)]
        .into_iter()
        .chain(words.iter().cloned())
        .collect();
    // The providers' script takes flags after the path for words of it.
    if exit::is_old_script(PROGRAM)
        && let Some(at) = raw_call::path_begins(&words)
    {
        words.insert(at, "--".into());
    }
    exit::main(PROGRAM, &words, |arguments: &raw_call::CallArguments| {
        let command = arguments.first_word();
        match begins_call(command) {
            true => raw_call::call(arguments),
            false => exit::finish(PROGRAM, Err(unknown(command))),
        }
    })
}

/// Whether a call of the API begins with this word.
fn begins_call(command: &str) -> bool {
    let mut segments = command.split([' ', '/']).filter(|word| !word.is_empty());
    segments
        .next()
        .is_some_and(|first| raw_call::API_OBJECTS.contains(&first))
}

/// The error for a word that is neither a command nor an object of the API.
fn unknown(word: &str) -> Error {
    let lower = word.to_lowercase();
    let commands = COMMANDS.iter().map(|own| own.word);
    let like = usage::nearest(word, raw_call::API_OBJECTS.into_iter().chain(commands));
    let other_tools = OTHER_WORDS.iter().find(|(other, _)| *other == lower);
    let command = other_tools.map(|(_, command)| *command).or(like);
    let mut tasks = OTHER_TASKS.iter();
    let task = tasks.find(|(words, _)| words.contains(&&*lower));
    let hint = match (task, command) {
        (Some((_, hint)), _) => (*hint).to_owned(),
        (None, Some(command)) => format!("Did you mean \"{command}\"?"),
        (None, None) => {
            format!("\"{PROGRAM} help\" lists the commands, and \"{PROGRAM} api\" makes raw calls")
        }
    };
    Error::new(ErrorKind::Usage, format!("There is no command {word:?}")).hint_to(hint)
}

/// The list of all commands.
fn list() -> String {
    let mut text = format!(
        "Moves disk images in and out of an OpenHosting cloud\n\nUsage: {PROGRAM} COMMAND [ARGUMENTS]\n"
    );
    for group in Group::ALL {
        let _ = write!(text, "\n{}:\n", group.title());
        for own in COMMANDS.iter().filter(|own| own.group == group) {
            let _ = writeln!(text, "  {:<12} {}", own.word, own.about);
        }
    }
    let _ = write!(
        text,
        "\nOptions:\n  -h, --help     Print this list\n  -V, --version  Print the version\n\
         \n\"{PROGRAM} COMMAND --help\" describes a command.\n\
         Raw calls of the API work as in the providers' script: {PROGRAM} drives list\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The help of each flag that has the same name in several commands and means the same there.
    #[test]
    fn a_flag_has_the_same_help_everywhere() {
        // What these do depends on the command.
        const OWN: &[&str] = &[
            "cacert",
            "cert",
            "checksum",
            "chunk",
            "disk",
            "drive",
            "endpoint",
            "format",
            "join",
            "journal",
            "json",
            "key",
            "local",
            "long",
            "max-outage",
            "name",
            "offset",
            "shard",
            "user",
            "verbose",
            "verify",
            "yes",
        ];
        fn collect(
            command: &clap::Command,
            seen: &mut std::collections::BTreeMap<String, Vec<(String, String)>>,
        ) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                let help = argument.get_help().map(ToString::to_string);
                let all = seen.entry(long.to_owned()).or_default();
                all.push((help.unwrap_or_default(), command.get_name().to_owned()));
            }
            command.get_subcommands().for_each(|sub| collect(sub, seen));
        }
        let commands: Vec<_> = COMMANDS.iter().map(|own| (own.command)()).collect();
        let mut seen = std::collections::BTreeMap::new();
        commands
            .iter()
            .for_each(|command| collect(command, &mut seen));
        assert!(seen["profile"].len() > 5);
        let mut faults = Vec::new();
        for (flag, all) in seen.iter().filter(|(flag, _)| !OWN.contains(&&***flag)) {
            if all.iter().any(|(help, _)| *help != all[0].0) {
                faults.push(format!("--{flag}: {all:#?}"));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn every_command_is_in_the_list_and_a_typing_error_names_it() {
        let list = list();
        for own in COMMANDS {
            assert!(list.contains(&format!("\n  {} ", own.word)), "{}", own.word);
            assert!(list.lines().all(|line| line.len() <= 80));
        }
        for (word, command) in [
            ("uplaod", "upload"),
            ("donwload", "download"),
            ("pubish", "publish"),
            ("verison", "version"),
            ("delete", "rm"),
            ("info", "show"),
            ("drive", "drives"),
            ("resource", "resources"),
        ] {
            let hint = unknown(word).hint().unwrap().to_string();
            assert_eq!(hint, format!("Did you mean {command:?}?"), "{word}");
        }
        let hint = unknown("xyzzy").hint().unwrap().to_string();
        assert!(hint.contains("openhosting help"), "{hint}");
    }
}
