//! Prints the command of the current run with changes, for messages.

use std::env::consts::EXE_SUFFIX;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::OnceLock;

use super::printable;
use crate::quoting::quote;
use crate::system::bytes_of;

/// Replaces a URL that contains credentials.
const HIDDEN_URL: &str = "URL";

/// The changes to the command.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes<'a> {
    /// Flags to omit.
    pub(super) without: &'a [&'a str],
    /// Flags to omit together with their values.
    pub(super) without_values: &'a [&'a str],
    /// Flags to insert after the given ones, quoted for a shell.
    pub(super) flags: &'a str,
}

/// The command line of this run with these changes, quoted for a shell. URLs that may contain
/// credentials are replaced.
pub(super) fn changed(program: &str, changes: Changes<'_>) -> String {
    let all: Vec<OsString> = std::env::args_os().collect();
    changed_words(&all, program, changes)
}

/// As [`changed`], for these words in place of the command line.
pub(super) fn changed_words(words: &[OsString], program: &str, changes: Changes<'_>) -> String {
    let is_endpoint = |flags: &str| flags.contains("--endpoint ");
    // A command that continues at another endpoint names that one.
    let implied = match is_endpoint(implied()) && is_endpoint(changes.flags) {
        true => "",
        false => implied(),
    };
    let flags = format!("{implied} {}", changes.flags);
    let changes = Changes {
        flags: flags.trim(),
        ..changes
    };
    of_words(words, is_one_program(), program, changes)
}

/// See [`implied`].
static IMPLIED: OnceLock<String> = OnceLock::new();

/// The flags without which a printed command may reach another endpoint than this run, each after
/// a space: variables of the environment select the endpoint of this run, and the shell into which
/// the command is pasted may not have them.
pub(super) fn implied() -> &'static str {
    IMPLIED.get().map_or("", String::as_str)
}

/// From now on, printed commands have these flags.
pub(super) fn imply(flags: String) {
    let _ = IMPLIED.set(flags);
}

/// As [`changed_words`], for a process of `openhosting` or of another program.
fn of_words(all: &[OsString], is_one_program: bool, program: &str, changes: Changes<'_>) -> String {
    let (program, given) = split(all, program, is_one_program);
    let mut words = Vec::new();
    let mut given = given.iter();
    while let Some(word) = given.next() {
        if word == "--" {
            words.push((true, "--".to_owned()));
            words.extend(given.map(|word| (false, shown(word))));
            break;
        }
        let word_text = word.to_str().unwrap_or_default();
        let flag = word_text.split_once('=');
        let flag = flag.map_or(word_text, |(flag, _)| flag);
        if changes.without.contains(&flag) {
            continue;
        }
        if changes.without_values.contains(&flag) {
            if word == flag {
                given.next();
            }
            continue;
        }
        // The value of a short flag may follow it in the same word.
        let is_short = |flag: &&str| !flag.starts_with("--") && word_text.starts_with(*flag);
        if changes.without_values.iter().any(is_short) {
            continue;
        }
        words.push((false, shown(word)));
    }
    if !changes.flags.is_empty() {
        // Words after -- are no flags.
        let end = words.iter().position(|(is_end, _)| *is_end);
        let end = end.unwrap_or(words.len());
        words.insert(end, (false, changes.flags.to_owned()));
    }
    let words = words.into_iter().map(|(_, word)| word);
    let words: Vec<String> = std::iter::once(program).chain(words).collect();
    words.join(" ")
}

/// Set in the process of `openhosting`, whatever its file is named.
static ONE_PROGRAM: OnceLock<()> = OnceLock::new();

/// The first word of the command line selects a command: this is not one of the programs that are
/// named as the providers' scripts.
pub(super) fn is_one_program() -> bool {
    ONE_PROGRAM.get().is_some()
}

/// From now on, [`is_one_program`] is true.
pub(super) fn become_one_program() {
    let _ = ONE_PROGRAM.set(());
}

/// Splits off the program as it was called, because `openhosting upload` is the same as
/// `openhosting-upload`.
fn split<'a>(all: &'a [OsString], program: &str, is_one_program: bool) -> (String, &'a [OsString]) {
    let (own, rest) = match all {
        [] => return (program.to_owned(), &[]),
        [own, rest @ ..] => (Path::new(own).file_name(), rest),
    };
    let word = program
        .strip_prefix("openhosting-")
        .or_else(|| program.strip_prefix("openhosting "));
    match (word, own, rest) {
        (Some(word), Some(own), [first, rest @ ..]) if is_one_program && first == word => {
            let own = quoted(own);
            let own = own.strip_suffix(EXE_SUFFIX).unwrap_or(&own);
            (format!("{own} {word}"), rest)
        }
        _ => (program.to_owned(), rest),
    }
}

fn shown(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    match text.split_once("://") {
        Some((before, after)) if is_secret(after) => match before.split_once('=') {
            Some((flag, _)) if flag.starts_with("--") => format!("{flag}={HIDDEN_URL}"),
            _ => HIDDEN_URL.to_owned(),
        },
        _ => quoted(word),
    }
}

/// Whether the rest of a URL may contain credentials.
fn is_secret(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.contains('@') || rest.contains(['?', '#'])
}

/// Quotes a word for a shell, whatever bytes it contains: a byte that cannot be printed becomes an
/// escape in `$'...'`, which bash, zsh, ksh and POSIX since 2024 support.
fn quoted(word: &OsStr) -> String {
    if let Some(text) = word.to_str() {
        let quoted = quote(text);
        if printable::line(&quoted) == quoted {
            return quoted;
        }
    }
    let bytes = bytes_of(word);
    let escaped = bytes.iter().map(|byte| match byte {
        b' ' | b'_' | b'.' | b'/' | b'-' | b'=' | b',' | b'+' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        // Always three digits, so that following digits do not belong to it.
        byte => format!("\\{byte:03o}"),
    });
    format!("$'{}'", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::path_of_bytes;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn of(line: &str, program: &str, changes: Changes<'_>) -> String {
        let is_one_program = line.contains("openhosting ");
        of_words(&words(line), is_one_program, program, changes)
    }

    #[test]
    fn the_program_is_named_as_it_was_called() {
        let of = |line, program| of(line, program, Changes::default());
        assert_eq!(
            of("./openhosting-upload -q a", "openhosting-upload"),
            "openhosting-upload -q a"
        );
        assert_eq!(
            of("/bin/openhosting upload a", "openhosting-upload"),
            "openhosting upload a"
        );
        assert_eq!(
            of("./new-openhosting upload a", "openhosting-upload"),
            "new-openhosting upload a"
        );
        assert_eq!(
            of("openhosting publish a --name n", "openhosting publish"),
            "openhosting publish a --name n"
        );
        assert_eq!(
            of("openhosting drives info", "openhosting"),
            "openhosting drives info"
        );
    }

    #[test]
    fn flags_are_added_and_removed_only_before_the_end_of_flags() {
        let changes = Changes {
            without: &["--restart"],
            without_values: &["--grow", "-n"],
            flags: "-d x -o 5",
        };
        for (line, expected) in [
            ("u --restart a", "u a -d x -o 5"),
            ("u --grow 40G a", "u a -d x -o 5"),
            ("u --grow=40G a", "u a -d x -o 5"),
            ("u -n 1 a", "u a -d x -o 5"),
            ("u -n1 --no-journal a", "u --no-journal a -d x -o 5"),
            ("u a -- --restart", "u a -d x -o 5 -- --restart"),
        ] {
            assert_eq!(of(line, "u", changes), expected);
        }
    }

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        for (word, expected) in [
            ("https://h/a.img", "https://h/a.img"),
            ("https://u:p@h/a.img", "URL"),
            ("https://h/a.img?sig=secret", "URL"),
            ("--sha256-file=https://h/a?x", "--sha256-file=URL"),
            ("https://h/a@b.img", "https://h/a@b.img"),
        ] {
            assert_eq!(shown(OsStr::new(word)), expected);
        }
    }

    #[test]
    fn a_printed_command_is_quoted_for_a_shell() {
        for bytes in [
            &b"a b"[..],
            b"it's",
            b"",
            b"$(reboot) `x` \"y\"",
            b"new\nline\x1b[31m\x7f",
            b"\xff\xfe7",
            "r\u{202e}l".as_bytes(),
            b"##[error]x",
            b"::warning::x",
            b"-x=##[a]",
        ] {
            let word = path_of_bytes(bytes);
            let quoted = quoted(&word);
            assert_eq!(
                printable::line(&format!("x {quoted}")),
                format!("x {quoted}")
            );
            let run = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {quoted}")])
                .output()
                .unwrap();
            assert_eq!(run.stdout, bytes, "{quoted}");
        }
    }
}
