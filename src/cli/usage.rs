//! Errors in a command line: one line says what is wrong, and another one what to do.

use clap::error::{ContextKind, ContextValue, ErrorKind as Wrong};

use super::remedies;
use crate::error::{Error, ErrorKind};
use crate::quoting::quote;

/// If the similarity of an unknown flag to a known one (Jaro-Winkler, 0 to 1) is above this value,
/// that flag is suggested. The value is a choice. It is higher than for commands, because the
/// common `--` makes all flags similar.
const SIMILARITY_MIN: f64 = 0.85;

/// As [`SIMILARITY_MIN`], for commands and pages of the manual. Lower values suggest unrelated
/// words, higher ones miss words with two wrong letters.
const WORD_SIMILARITY_MIN: f64 = 0.75;

/// Flags of other commands or programs, the commands that lack them, and what to do instead.
const OTHER_FLAGS: &[(&str, &[&str], &str)] = &[
    (
        "--sha256",
        &["download"],
        "--checksum prints the SHA-256 of the disk",
    ),
    ("-f", &["rm"], "-y destroys drives without a question"),
    ("--force", &["rm"], "-y destroys drives without a question"),
    (
        "--local",
        &["ls", "show", "rm", "download", "verify"],
        "Start a server for the directory: openhosting server --data DIR",
    ),
];

/// The name that an unknown word was probably meant to be. Upper and lower case count as the same.
pub(super) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let names = names.into_iter();
    let word = word.to_lowercase();
    let likely = names
        .map(|name| (strsim::jaro_winkler(&name.to_lowercase(), &word), name))
        .filter(|(similarity, _)| *similarity > WORD_SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    likely.map(|(_, name)| name)
}

/// The error for a command line of `program`, in our own words.
pub(super) fn error_of(error: &clap::Error, program: &str) -> Error {
    let program = match program {
        // Flags without a command belong to a raw call.
        "openhosting" => "openhosting api",
        program => program,
    };
    let see = format!("Run \"{program} -h\" for its arguments and flags");
    let words = words();
    let (what, hint) = match error.kind() {
        Wrong::ValueValidation => invalid(error),
        Wrong::InvalidValue => not_listed(error),
        Wrong::UnknownArgument => unknown(error, program, &words, &see),
        Wrong::MissingRequiredArgument => {
            let missing = all(error, ContextKind::InvalidArg);
            let missing: Vec<_> = missing.iter().map(|name| plain_name(name)).collect();
            let verb = if missing.len() == 1 { "is" } else { "are" };
            (format!("{} {verb} missing", missing.join(" and ")), None)
        }
        Wrong::ArgumentConflict => conflict(error),
        Wrong::MissingSubcommand => {
            let known = all(error, ContextKind::ValidSubcommand);
            let hint = (!known.is_empty()).then(|| format!("Use {}", any_of(&known)));
            ("A command is missing".to_owned(), hint)
        }
        Wrong::InvalidSubcommand => {
            let word = one(error, ContextKind::InvalidSubcommand);
            let like = all(error, ContextKind::SuggestedSubcommand);
            let hint = like.first().map(|like| format!("Did you mean {like:?}?"));
            let is_image = program == "openhosting image"
                && (word.contains(['.', '/']) || std::path::Path::new(&word).exists());
            let hint = hint.filter(|_| !is_image).or_else(|| {
                let word = quote(&word);
                is_image.then(|| format!("Run: openhosting image info {word}"))
            });
            (format!("There is no command {word:?}"), hint)
        }
        Wrong::NoEquals => {
            let flag = flag_of(error);
            let what = format!("{flag} takes its value after an equals sign");
            (what, Some(format!("Write {flag}=VALUE")))
        }
        _ => (first_paragraph(&error.render().to_string()), None),
    };
    let hint = hint.or_else(|| file_like_a_flag(&words));
    let hint = hint.unwrap_or_else(|| match one(error, ContextKind::Usage) {
        usage if usage.is_empty() => see,
        usage => first_paragraph(&usage),
    });
    Error::new(ErrorKind::Usage, what).hint_to(hint)
}

/// A value that could not be parsed. The parser's message may end with what to do, after a full
/// stop or as the hint of its error.
fn invalid(error: &clap::Error) -> (String, Option<String>) {
    let (flag, value) = (flag_of(error), one(error, ContextKind::InvalidValue));
    let Some(cause) = std::error::Error::source(error) else {
        return not_listed(error);
    };
    let (why, hint) = match cause.downcast_ref::<Error>() {
        Some(error) => (error.chain(), error.hint().map(remedies::worded)),
        None => {
            let text = cause.to_string();
            match text.split_once(". ") {
                Some((why, hint)) => (why.to_owned(), Some(hint.to_owned())),
                None => (text, None),
            }
        }
    };
    let what = match why.contains(&value) && !value.is_empty() {
        true => format!("{flag}: {why}"),
        false => format!("{flag} {value:?}: {why}"),
    };
    (what, hint)
}

/// A value that is missing or not in a list.
fn not_listed(error: &clap::Error) -> (String, Option<String>) {
    let (flag, value) = (flag_of(error), one(error, ContextKind::InvalidValue));
    let known = all(error, ContextKind::ValidValue);
    let hint = (!known.is_empty()).then(|| format!("Use {}", any_of(&known)));
    let what = match value.is_empty() {
        true => format!("{flag} needs a value"),
        false => format!("{flag} cannot be {value:?}"),
    };
    let hint = hint.or_else(|| {
        let name = one(error, ContextKind::InvalidArg);
        let name = name.split_once(' ').map(|(_, name)| name.to_owned())?;
        Some(format!("Write {flag} {}", plain_name(&name)))
    });
    (what, hint)
}

/// A flag that does not exist, or one word too many.
fn unknown(
    error: &clap::Error,
    program: &str,
    words: &[String],
    see: &str,
) -> (String, Option<String>) {
    let word = one(error, ContextKind::InvalidArg);
    if !word.starts_with('-') || word == "-" {
        let hint = name_without_flag(words, program);
        return (format!("There is one word too many: {word:?}"), hint);
    }
    if let Some(hint) = file_like_a_flag(words) {
        return (format!("There is no flag {word}"), Some(hint));
    }
    let other = OTHER_FLAGS.iter().find(|(flag, programs, _)| {
        let command = program.strip_prefix("openhosting ").unwrap_or(program);
        *flag == word && programs.contains(&command)
    });
    if let Some((_, _, hint)) = other {
        return (format!("There is no flag {word}"), Some((*hint).to_owned()));
    }
    let like = one(error, ContextKind::SuggestedArg);
    let like = like.split(' ').next().unwrap_or_default();
    let is_like = !like.is_empty() && strsim::jaro_winkler(like, &word) > SIMILARITY_MIN;
    // With a suggestion, the usage text would add nothing.
    let hint = match is_like {
        true => format!("Did you mean {like}?"),
        false => see.to_owned(),
    };
    (format!("There is no flag {word}"), Some(hint))
}

/// The words of the command line after the program's name. In one that is not UTF-8, the wrong
/// bytes are replaced: it is compared with names, and no command is made of it.
fn words() -> Vec<String> {
    let words = std::env::args_os().skip(1);
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// `upload IMAGE NAME` or `publish NAME IMAGE`, without other words: the command that was meant.
fn name_without_flag(words: &[String], program: &str) -> Option<String> {
    let [_, one, two] = words else {
        return None;
    };
    let is_image = |word: &str| std::path::Path::new(word).is_file() || word.contains("://");
    let (name, image) = match (is_image(one), is_image(two)) {
        (false, true) => (one, two),
        (true, false) => (two, one),
        _ => return None,
    };
    // This is rather another image.
    if name.contains(['.', '/']) {
        return None;
    }
    let mut commands = ["publish", "upload"].into_iter();
    let command = commands.find(|command| program.ends_with(command))?;
    Some(format!(
        "Run: openhosting {command} -n {} {}",
        quote(name),
        quote(image)
    ))
}

/// Advice about the first of these words that is the name of a file and looks like a flag.
fn file_like_a_flag(words: &[String]) -> Option<String> {
    let mut words = words.iter().take_while(|word| *word != "--");
    let is_file = |word: &&String| word.starts_with('-') && std::path::Path::new(word).is_file();
    let file = words.find(is_file)?;
    let path = quote(&format!("./{file}"));
    Some(format!("For the file {file}, write: {path}"))
}

/// Two flags that exclude each other, or a flag that was given twice.
fn conflict(error: &clap::Error) -> (String, Option<String>) {
    let flag = flag_of(error);
    let others = all(error, ContextKind::PriorArg);
    let others: Vec<_> = others.iter().map(|other| plain_name(other)).collect();
    let what = match others.as_slice() {
        [other] if *other == flag => {
            let hint = Some(format!("Give {flag} once"));
            return (format!("{flag} cannot be used several times"), hint);
        }
        [] => format!("{flag} cannot be used with the other flags"),
        others => format!("{flag} cannot be used with {}", others.join(" or ")),
    };
    (what, Some(format!("Leave out {flag} or the other flag")))
}

/// The flag or argument that is wrong, as the user types it.
fn flag_of(error: &clap::Error) -> String {
    plain_name(&one(error, ContextKind::InvalidArg))
}

/// `--format <FORMAT>` as `--format`, and `<IMAGE>` as `IMAGE`.
fn plain_name(name: &str) -> String {
    let word = name.split([' ', '=']).next().unwrap_or_default();
    let word = word.trim_end_matches("...").trim_end_matches('[');
    word.trim_matches(['<', '>', '[', ']']).to_owned()
}

fn one(error: &clap::Error, kind: ContextKind) -> String {
    all(error, kind).into_iter().next().unwrap_or_default()
}

fn all(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        Some(ContextValue::StyledStrs(texts)) => texts.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

/// The words of a list, as in `raw, qcow2 or vmdk`.
fn any_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}

/// The first paragraph of clap's message, on one line.
fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::upload::UploadArguments;

    #[test]
    fn a_wrong_command_line_prints_an_error_and_a_remedy() {
        for (line, what, hint) in [
            ("", "IMAGE is missing", "Usage: up <IMAGE>"),
            (
                "a b",
                "There is one word too many: \"b\"",
                "Usage: up [OPTIONS] <IMAGE>",
            ),
            (
                "--force a",
                "There is no flag --force",
                "Run \"up -h\" for its arguments and flags",
            ),
            (
                "--verfy full a",
                "There is no flag --verfy",
                "Did you mean --verify?",
            ),
            (
                "--chunk 4x a",
                "--chunk: \"4x\" is not a size",
                "Use bytes or a suffix, for example 4M",
            ),
            (
                "--verify yes a",
                "--verify cannot be \"yes\"",
                "Use none, sample or full",
            ),
            ("--name", "--name needs a value", "Write --name NAME"),
            (
                "--local d --endpoint e a",
                "--local cannot be used with --endpoint",
                "Leave out --local or the other flag",
            ),
        ] {
            let words = ["up"].into_iter().chain(line.split_whitespace());
            let error = UploadArguments::try_parse_from(words).unwrap_err();
            let error = error_of(&error, "up");
            assert_eq!(error.to_string(), what, "{line}");
            let advice = error.hint().map(ToString::to_string).unwrap_or_default();
            assert!(
                advice.starts_with(hint) && !advice.is_empty(),
                "{line}: {advice}"
            );
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        assert_eq!(first_paragraph("error: a\n  b\n\nc"), "a b");
    }
}
