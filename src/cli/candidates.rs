//! Words that a shell can complete, and those of the config file.

use std::ffi::{OsStr, OsString};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter};

use super::config::ConfigFile;
use super::{environment, printable};

/// Completes profiles of the config file.
pub(super) fn profiles() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let config = environment::config_file().and_then(|path| ConfigFile::open(&path).ok()?);
        let names = config.map(ConfigFile::into_names).unwrap_or_default();
        candidates(names.into_iter().map(|name| (name, None)), current)
    })
}

/// The storage tiers that providers have.
pub(super) const TIERS: &[&str] = &["disk", "ssd"];

/// Completes files of any kind, such as block devices too, and directories on the way to them.
pub(super) fn files() -> ArgValueCompleter {
    ArgValueCompleter::new(any_file())
}

/// As [`files`], and `-` for stdin or stdout.
pub(super) fn files_or_stdio() -> ArgValueCompleter {
    ArgValueCompleter::new(any_file().stdio())
}

fn any_file() -> PathCompleter {
    PathCompleter::any().filter(|path| !path.is_dir())
}

/// Completes these words. Others may be valid too.
pub(super) fn words(words: &'static [&'static str]) -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let words = words.iter().map(|word| ((*word).to_owned(), None));
        candidates(words, current)
    })
}

/// Whether no shell would have to quote a word.
pub(super) fn is_plain(word: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+@-".contains(c);
    word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(is_plain)
}

/// Those of these words that begin with what was typed.
pub(super) fn candidates(
    words: impl IntoIterator<Item = (String, Option<String>)>,
    current: &OsStr,
) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let begins = words
        .into_iter()
        .filter(|(word, _)| is_plain(word) && word.starts_with(&*current));
    let candidate = |(word, what): (String, Option<String>)| {
        let what = what.map(|what| printable::line(&what).into());
        CompletionCandidate::new(OsString::from(word)).help(what)
    };
    begins.map(candidate).collect()
}
