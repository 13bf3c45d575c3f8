//! Quotes words of commands in messages.

use std::borrow::Cow;

/// Quotes a word for a POSIX shell if necessary. Characters that could act on a terminal are
/// written as bash's `$'...'` escapes.
pub fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.:/@%+,=-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if text.chars().any(char::is_control) {
        let escaped = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_ascii_control() => format!("\\x{:02x}", u32::from(c)),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        return format!("$'{}'", text.chars().map(escaped).collect::<String>());
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Quotes the name of a file as a word that no command takes for an option.
pub fn quote_file(name: &str) -> String {
    quote(&no_option(name))
}

/// The name of a file, such that no command takes it for an option.
pub fn no_option(name: &str) -> Cow<'_, str> {
    match name.starts_with('-') {
        true => format!("./{name}").into(),
        false => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_quoted_word_as_one_argument() {
        for text in [
            "plain-1.0",
            "",
            "two words",
            "it's",
            "a\tb",
            "a\n'b\\",
            "\u{85}ü",
        ] {
            let script = format!("printf %s {}", quote(text));
            let run = std::process::Command::new("bash")
                .env("LC_ALL", "C.UTF-8")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&run.stdout), text, "{script}");
            assert!(!quote(text).contains('\t'), "{script}");
        }
    }

    #[test]
    fn the_name_of_a_file_is_never_an_option() {
        for (name, expected) in [
            ("-a", "./-a"),
            ("--b c", "'./--b c'"),
            ("a -b", "'a -b'"),
            ("d/-a", "d/-a"),
        ] {
            assert_eq!(quote_file(name), expected);
        }
    }
}
