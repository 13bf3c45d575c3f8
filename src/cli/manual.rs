//! `openhosting completions` and `openhosting man`, generated from the clap definitions, so they
//! cannot be out of date.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser};
use clap_mangen::Man;

use super::complete::Shell;
use super::help::{self, Entry, Sections};
use super::written_files::{WrittenFile, cannot_write, check_written, start_of};
use super::{download, exit, quote, server, upload, usage};
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, replace};

/// Prints the completions for a shell
///
/// They complete commands, flags and values of all programs, and also drives and profiles.
#[derive(Debug, Parser)]
#[command(
    name = "openhosting-completions",
    bin_name = "openhosting completions",
    version,
    after_long_help = help::after("completions")
)]
pub(super) struct Completions {
    /// Complete for this shell: bash, zsh, fish or powershell
    #[arg(value_name = "SHELL", value_enum, hide_possible_values = true)]
    shell: Shell,

    /// Write a file for each program into DIR instead
    ///
    /// The files have the names that the shell looks for.
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

/// Prints or writes the manual pages
#[derive(Debug, Parser)]
#[command(name = "openhosting-man", bin_name = "openhosting man", version, after_long_help = help::after("man"))]
pub(super) struct Manual {
    /// Print this page, for example openhosting-publish
    #[arg(long, value_name = "NAME", conflicts_with = "directory")]
    page: Option<String>,

    /// Print page PAGE, or write all pages into directory DIR
    ///
    /// For example openhosting-upload, or ~/.local/share/man/man1. Without an argument, the page of
    /// openhosting is printed. Write a new directory with a slash: ./DIR.
    #[arg(value_name = "PAGE|DIR", value_hint = clap::ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

/// All programs; `root` is `openhosting` with its commands.
fn programs(root: Command) -> [Command; 4] {
    [
        root,
        upload::UploadArguments::command(),
        download::DownloadArguments::command(),
        server::ServerArguments::command(),
    ]
}

/// `openhosting completions`.
pub(super) fn completions(words: &[OsString], root: Command) -> ExitCode {
    const PROGRAM: &str = "openhosting completions";
    exit::main(PROGRAM, words, |arguments: &Completions| {
        exit::finish(PROGRAM, complete(arguments, root))
    })
}

fn complete(arguments: &Completions, root: Command) -> Result<()> {
    let shell = arguments.shell;
    let mut all = String::new();
    for program in programs(root) {
        let name = program.get_name();
        let script = shell.registration(name).map_err(|cause| {
            Error::new(ErrorKind::Bug, "Cannot make the completions").because(cause)
        })?;
        match &arguments.directory {
            Some(directory) => put(directory, &shell.file_name(name), script.as_bytes())?,
            None => all.push_str(&script),
        }
    }
    exit::print(&all)
}

/// Puts a file into a directory, which is created if it is missing. A link with its name is
/// replaced, not followed.
fn put(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(cannot_write(directory))?;
    let file = directory.join(name);
    let written = WrittenFile {
        what: "file of openhosting",
        path: &file,
        is_kind: is_ours,
    };
    check_written(&[written], &[])?;
    replace(&file, Access::Usual, bytes).map_err(cannot_write(&file))
}

/// Whether a file is a page or a script of any version: each contains a name of a program.
fn is_ours(path: &Path) -> bool {
    let name = b"openhosting";
    let start = start_of(path);
    start
        .windows(name.len())
        .any(|bytes| bytes.eq_ignore_ascii_case(name))
}

/// `openhosting man`.
pub(super) fn man(words: &[OsString], root: Command) -> ExitCode {
    const PROGRAM: &str = "openhosting man";
    exit::main(PROGRAM, words, |arguments: &Manual| {
        exit::finish(PROGRAM, write(arguments, root))
    })
}

fn write(arguments: &Manual, root: Command) -> Result<()> {
    let pages = pages(root)?;
    let word = arguments.page.as_deref().map(Path::new);
    let word = word.or(arguments.directory.as_deref());
    let name = word.map_or("openhosting".into(), Path::to_string_lossy);
    let page = page_named(&pages, &name);
    // Only what looks like a directory is one, so that a typing error creates no files.
    if let Some(directory) = arguments.directory.as_deref()
        && page.is_none()
        && is_directory(directory)
    {
        return write_all(&pages, directory);
    }
    match page {
        Some(_) if std::io::stdout().is_terminal() => {
            let mut command = "openhosting man".to_owned();
            if let Some(word) = word {
                let _ = write!(command, " {}", word.display());
            }
            exit::print(&format!("To read the page, run: {command} | man -l -\n"))
        }
        Some(page) => exit::print(page),
        None => {
            let error = no_page(&pages, &name);
            Err(match (arguments.directory.as_ref(), error.hint()) {
                (Some(word), Some(hint)) => {
                    let directory = quote(&format!("./{}", word.display()));
                    let hint = format!("{hint} For a new directory, write: {directory}");
                    error.hint_to(hint)
                }
                _ => error,
            })
        }
    }
}

/// Whether the word means a directory: it contains a separator, or exists.
fn is_directory(word: &Path) -> bool {
    let text = word.to_string_lossy();
    text.contains(std::path::is_separator) || word.is_dir()
}

/// Writes all pages into a directory, and says so.
fn write_all(pages: &[(String, String)], directory: &Path) -> Result<()> {
    for (name, page) in pages {
        put(directory, &format!("{name}.1"), page.as_bytes())?;
    }
    let count = pages.len();
    exit::print(&format!("Wrote {count} pages to {}\n", directory.display()))
}

/// The error for a name that no page has.
fn no_page(pages: &[(String, String)], word: &str) -> Error {
    let names = pages.iter().map(|(name, _)| name.as_str());
    let commands = names.clone().map(command_of);
    let hint = match usage::nearest(command_of(word), commands) {
        Some(command) => format!("Did you mean {command:?}?"),
        None => format!("The pages are: {}.", names.collect::<Vec<_>>().join(" ")),
    };
    Error::new(ErrorKind::Usage, format!("There is no page {word:?}")).hint_to(hint)
}

/// The command that a page is about.
fn command_of(page: &str) -> &str {
    page.strip_prefix("openhosting-").unwrap_or(page)
}

/// The page of this name, or of this command.
fn page_named<'p>(pages: &'p [(String, String)], name: &str) -> Option<&'p str> {
    let of_command = format!("openhosting-{name}");
    let mut pages = pages.iter();
    let found = pages.find(|(page, _)| page == name || *page == of_command);
    found.map(|(_, page)| page.as_str())
}

/// The names of all pages.
pub(super) fn page_names(root: Command) -> Vec<String> {
    let pages = pages(root).unwrap_or_default();
    pages.into_iter().map(|(name, _)| name).collect()
}

/// All pages, by their names. `openhosting upload` and `openhosting-upload` are the same, and so
/// are their pages.
fn pages(mut root: Command) -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    root.build();
    add(root, &mut pages)?;
    Ok(pages)
}

/// Adds the page of a command, and those of its own.
fn add(command: Command, pages: &mut Vec<(String, String)>) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let name = name.to_owned();
    let own: Vec<_> = command.get_subcommands().cloned().collect();
    let mut page = Vec::new();
    let usage = command.clone().render_usage().to_string();
    let usage = roff(usage.trim_start_matches("Usage: "));
    // A page has the help of all flags, those that `-h` leaves out as well.
    let man = Man::new(command.mut_args(|flag| flag.hide_short_help(false)))
        .title(name.to_uppercase())
        // Without a word in its place the others would move up.
        .date(" ")
        .source(concat!("openhosting ", env!("CARGO_PKG_VERSION")))
        .manual("openhosting");
    let rendered = [
        man.render_title(&mut page),
        man.render_name_section(&mut page),
        writeln!(page, ".SH SYNOPSIS\n\\fB{usage}\\fR"),
        man.render_description_section(&mut page),
        man.render_options_section(&mut page),
        match own.is_empty() {
            true => Ok(()),
            false => man.render_subcommands_section(&mut page),
        },
    ];
    for rendered in rendered {
        rendered.map_err(|cause| {
            Error::new(ErrorKind::Bug, format!("Cannot make the page {name}")).because(cause)
        })?;
    }
    page.extend(further_sections(&name).into_bytes());
    pages.push((name, String::from_utf8_lossy(&page).into_owned()));
    for command in own {
        if command.get_name() != "help" {
            add(command, pages)?;
        }
    }
    Ok(())
}

/// The sections after those of the flags, in the language of man.
fn further_sections(name: &str) -> String {
    let sections: Sections = help::sections(name);
    let mut text = String::new();
    let lists: [(&str, &[Entry]); 4] = [
        ("VALUES", sections.values),
        ("ENVIRONMENT", sections.environment),
        ("FILES", sections.files),
        ("EXIT STATUS", sections.exit_status),
    ];
    for (title, entries) in lists {
        if !entries.is_empty() {
            let _ = writeln!(text, ".SH \"{title}\"");
        }
        for (term, what) in entries {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{}", roff(term), roff(what));
        }
    }
    if !sections.examples.is_empty() {
        text.push_str(".SH EXAMPLES\n");
    }
    for (what, command) in sections.examples {
        let (what, command) = (roff(what), roff(command));
        let _ = writeln!(text, ".PP\n{what}:\n.PP\n.RS 4\n.nf\n{command}\n.fi\n.RE");
    }
    text
}

/// A line as man shows it: what would be a command or a typographic sign is escaped.
fn roff(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    let line = line.replace('\'', "\\(aq").replace('~', "\\(ti");
    match line.starts_with('.') {
        true => format!("\\&{line}"),
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::super::command_list;
    use super::*;

    /// A command, and those below it.
    fn all(command: &Command, found: &mut Vec<Command>) {
        found.push(command.clone());
        for below in command.get_subcommands() {
            all(below, found);
        }
    }

    #[test]
    fn the_flags_of_all_tools_are_consistent() {
        for program in programs(command_list::root()) {
            program.debug_assert();
        }
    }

    #[test]
    fn every_command_and_every_flag_has_its_place_in_the_manual() {
        let pages = pages(command_list::root()).unwrap();
        let mut commands = Vec::new();
        let mut root = command_list::root();
        root.build();
        all(&root, &mut commands);
        commands.retain(|command| command.get_name() != "help");
        assert_eq!(pages.len(), commands.len());
        for command in commands {
            let name = command.get_display_name().unwrap_or(command.get_name());
            let (_, page) = pages.iter().find(|(page, _)| page == name).unwrap();
            let page = page.replace("\\-", "-");
            for argument in command.get_arguments() {
                let flag = match (argument.get_long(), argument.get_short()) {
                    (Some(long), _) => format!("--{long}"),
                    (None, Some(short)) => format!("-{short}"),
                    (None, None) => argument.get_id().to_string().to_uppercase(),
                };
                let place = match argument.get_value_names() {
                    Some([value]) if argument.is_positional() => value.to_string(),
                    _ => flag,
                };
                assert!(page.contains(&place), "{name}: no {place}");
                let help = argument.get_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                // The help of --help depends on what else a command has.
                let help = help.split(['\'', '"', '(']).next().unwrap();
                assert!(page.contains(help), "{name}: no help of {place}");
            }
        }
        // The tools and every command of ours are among them.
        for own in command_list::COMMANDS {
            let name = format!("openhosting-{}", own.word);
            assert!(pages.iter().any(|(page, _)| *page == name), "{name}");
        }
    }
}
