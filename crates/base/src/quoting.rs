//! Quotes words of commands in messages.

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
}
