//! Makes foreign text safe for a terminal and for the log of a pipeline: names of files and drives,
//! and answers of servers, may contain anything.

use serde_json::Value;

/// The older form of a GitHub runner's command, anywhere in a line.
const OLD_COMMAND: &str = "##[";
/// The current form, at the start of a line.
const COMMAND: &str = "::";

/// Whether a character affects a terminal or the structure of lines instead of being visible: ASCII
/// and Latin 1 control characters, line ends, characters that change the direction of text, and
/// characters without a width, with which two different names look the same.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// `text` as one line: active characters are escaped, as in `\u{1b}`, and nothing in it is a
/// command for a GitHub runner.
pub(super) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    if text.trim_start().starts_with(COMMAND) {
        line.push('\\');
    }
    for c in text.chars() {
        match is_active(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line.replace(OLD_COMMAND, "##\\[")
}

/// An object in one line, without active characters. It parses to the same object.
pub(super) fn object(value: &Value) -> String {
    safe_json(&value.to_string())
}

/// JSON in as many lines as before, without active characters. It parses to the same value.
pub(super) fn safe_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // JSON escapes the ASCII control characters except DEL; all these characters have four
        // digits.
        match c != '\n' && is_active(c) {
            true => safe += &format!("\\u{:04x}", u32::from(c)),
            false => safe.push(c),
        }
    }
    // This can only occur within strings.
    safe.replace(OLD_COMMAND, "##\\u005b")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn active_characters_are_escaped_and_others_stay() {
        for (text, shown) in [
            ("Größe 5 µs – ok", "Größe 5 µs – ok"),
            ("a\x1b[31mb", "a\\u{1b}[31mb"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("a\u{9b}b\u{7f}", "a\\u{9b}b\\u{7f}"),
            ("a\u{202e}b\u{2028}", "a\\u{202e}b\\u{2028}"),
            ("a\u{200b}b\u{2060}", "a\\u{200b}b\\u{2060}"),
            ("::error::x", "\\::error::x"),
            (" \n::error::x", "\\ \\n::error::x"),
            ("a ::b:: ##[warning]c", "a ::b:: ##\\[warning]c"),
        ] {
            assert_eq!(line(text), shown);
        }
    }

    proptest! {
        #[test]
        fn a_printable_line_has_no_breaks_or_control_characters(text in any::<String>()) {
            let line = line(&text);
            prop_assert!(!line.contains(is_active));
            prop_assert!(!line.contains(OLD_COMMAND));
            prop_assert!(!line.trim_start().starts_with(COMMAND));
        }

        #[test]
        fn escaping_json_does_not_change_its_value(text in any::<String>()) {
            let value = serde_json::json!({ &*text: [&*text, "##[error]\u{9b}"] });
            let safe = object(&value);
            prop_assert!(!safe.contains(is_active) && !safe.contains(OLD_COMMAND));
            let back: Value = serde_json::from_str(&safe).unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
