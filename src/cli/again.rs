//! The command of this very run, changed, for a message.

use std::ffi::OsStr;

use super::quote;

/// The command line of this run, quoted for a shell: `other` gives what to print for a word
/// instead, and `flags`, which are quoted already, follow the flags that were given.
pub(super) fn command(
    program: &str,
    other: impl Fn(&OsStr) -> Option<String>,
    flags: &str,
) -> String {
    let words = std::env::args_os().skip(1);
    let mut words: Vec<String> = words
        .map(|word| other(&word).unwrap_or_else(|| quote(&word.to_string_lossy())))
        .collect();
    if !flags.is_empty() {
        // What follows -- is no flag.
        let end = words.iter().position(|word| word == "--");
        words.insert(end.unwrap_or(words.len()), flags.to_owned());
    }
    format!("{program} {}", words.join(" "))
}
