//! Completions for shells.
//!
//! `openhosting completions` prints a registration for each program. With it the shell runs the
//! program at each completion, with [`VARIABLE`] set, and the program prints what can follow. So
//! commands, flags and values are never out of date, and drives and profiles can be completed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use clap::Command;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{EnvCompleter, Fish, Powershell};

use super::access::Access;
use super::candidates::{candidates, is_plain};
use crate::amounts::size;
use crate::api::ClientConfig;
use crate::drive::DriveInfo;
use crate::publish::selection::{Several, select};

/// A shell sets this variable to its name when it asks for completions.
const VARIABLE: &str = "OPENHOSTING_COMPLETE";

/// Registers a program with bash, and with zsh.
const BASH: &str = include_str!("complete/bash.sh");
const ZSH: &str = include_str!("complete/completion.zsh");

/// The user is waiting for the list of drives in the middle of typing.
const DRIVES_MAX_TIME: Duration = Duration::from_secs(2);

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl Shell {
    /// The script that registers a program.
    ///
    /// # Errors
    /// None, as it is written to memory.
    pub(super) fn registration(self, program: &str) -> io::Result<String> {
        let completer: &dyn EnvCompleter = match self {
            // The scripts of clap for these two insert some names of files in a form that the
            // shell reads as something else.
            Self::Bash => return Ok(of_program(BASH, program)),
            Self::Zsh => return Ok(of_program(ZSH, program)),
            Self::Fish => &Fish,
            Self::Powershell => &Powershell,
        };
        let mut script = Vec::new();
        completer.write_registration(VARIABLE, program, program, program, &mut script)?;
        Ok(String::from_utf8_lossy(&script).into_owned())
    }

    /// The name under which the shell looks for the script of a program.
    pub(super) fn file_name(self, program: &str) -> String {
        match self {
            Self::Bash => format!("{program}.bash"),
            Self::Zsh => format!("_{program}"),
            Self::Fish => format!("{program}.fish"),
            Self::Powershell => format!("_{program}.ps1"),
        }
    }
}

/// A script for a program.
fn of_program(script: &str, program: &str) -> String {
    let script = script.replace("VARIABLE", VARIABLE);
    let script = script.replace("FUNCTION", &program.replace('-', "_"));
    script.replace("PROGRAM", program)
}

/// Answers a shell if it asks for completions, and returns whether it did: then the program has to
/// end. Errors are not printed, because the shell would mix them with the line that is being typed.
pub(super) fn answered(program: impl Fn() -> Command) -> bool {
    if env::var_os(VARIABLE).is_none_or(|shell| shell.is_empty()) {
        return false;
    }
    let here = env::current_dir().ok();
    let is_new_word = words().last().is_none_or(|word| word.is_empty());
    let program = || {
        let mut program = program();
        program.build();
        match is_new_word {
            true => without_flags(program),
            false => program,
        }
    };
    let completion = CompleteEnv::with_factory(program).var(VARIABLE);
    completion
        .try_complete(env::args_os(), here.as_deref())
        .unwrap_or(true)
}

/// The words of the command line to the one that is completed, as the shell passes them.
pub(super) fn words() -> Vec<OsString> {
    let words = env::args_os().skip_while(|word| word != "--").skip(1);
    let index = env::var("_CLAP_COMPLETE_INDEX").ok();
    // fish passes only these words.
    let index = index.and_then(|index| index.parse().ok());
    words
        .take(index.map_or(usize::MAX, |index: usize| index + 1))
        .collect()
}

/// The program such that flags are offered only if nothing else can follow: before the user types
/// a dash, they would hide the files, drives or words among them.
fn without_flags(command: Command) -> Command {
    let hidden = command.mut_args(|argument| match argument.is_positional() {
        true => argument,
        false => argument.hide(true),
    });
    hidden.mut_subcommands(without_flags)
}

/// Completes drives of the user at the endpoint that the command line and the environment name.
pub(super) fn drives() -> ArgValueCompleter {
    ArgValueCompleter::new(drives_that_begin)
}

fn drives_that_begin(current: &OsStr) -> Vec<CompletionCandidate> {
    let access = Access::of_words(&env::args_os().collect::<Vec<_>>());
    let drives = list(&access).unwrap_or_default();
    let words = drives
        .iter()
        .flat_map(|drive| words_of(drive, &drives, current));
    candidates(words, current)
}

/// Completes what a delta can be based on.
pub(super) fn bases() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let words = ["auto", "none"].map(|word| (word.to_owned(), None));
        let mut all = candidates(words, current);
        all.extend(drives_that_begin(current));
        all
    })
}

/// The drives, if they can be listed quickly and without asking the user.
fn list(access: &Access) -> Option<Vec<DriveInfo>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let listed = runtime.block_on(async {
        let listed = async {
            let client = access.quiet_client(ClientConfig::default()).await?;
            client.drives().await.ok()
        };
        tokio::time::timeout(DRIVES_MAX_TIME, listed).await.ok()?
    });
    runtime.shutdown_background();
    listed
}

/// The words that complete a drive: its name, unless a shell would have to quote it or it does not
/// mean one drive, and its UUID if the user began to type that or the name cannot be used.
fn words_of(
    drive: &DriveInfo,
    all: &[DriveInfo],
    current: &OsStr,
) -> Vec<(String, Option<String>)> {
    let name = drive.name().unwrap_or_default();
    let is_meant = || select(all, name, Several::Newest).is_ok_and(|meant| meant.id == drive.id);
    let is_usable = is_plain(name) && is_meant();
    let what = |word: &str| Some(format!("{word}, {}", size(drive.size)));
    let id = drive.id.to_string();
    let mut words = Vec::new();
    if is_usable {
        words.push((name.to_owned(), what(&id[..8])));
    }
    if !is_usable || !current.is_empty() {
        words.push((id, what(name)));
    }
    words
}
