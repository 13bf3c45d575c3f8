//! Makes foreign text safe for a terminal and for the log of a pipeline: names of files and drives,
//! and answers of servers, may contain anything.

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
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

/// JSON in as many lines as before, without active characters. It parses to the same value.
pub(super) fn safe_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // JSON escapes the ASCII control characters except DEL.
        match c != '\n' && is_active(c) {
            true => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    safe += &format!("\\u{unit:04x}");
                }
            }
            false => safe.push(c),
        }
    }
    // This can only occur within strings.
    safe.replace(OLD_COMMAND, "##\\u005b")
}

/// Text for a terminal that arrives in parts, in any encoding. Line ends and tabs stay; other active
/// characters are escaped, and bytes that are no UTF-8 are replaced.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The beginning of a character, or of a line end, whose rest is in the next part.
    begun: Vec<u8>,
}

impl Parts {
    /// The printable text of the next part.
    pub(super) fn next(&mut self, part: &[u8]) -> String {
        self.begun.extend_from_slice(part);
        let open = match self.begun.utf8_chunks().last() {
            Some(last) if is_begun(last.invalid()) => last.invalid().len(),
            _ => usize::from(self.begun.ends_with(b"\r")),
        };
        let begun = self.begun.split_off(self.begun.len() - open);
        text(&std::mem::replace(&mut self.begun, begun))
    }

    /// The printable text of what is left at the end.
    pub(super) fn end(&mut self) -> String {
        text(&std::mem::take(&mut self.begun))
    }
}

/// Whether bytes are the beginning of a character.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn text(bytes: &[u8]) -> String {
    let foreign = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let mut text = String::with_capacity(foreign.len());
    for c in foreign.chars() {
        match is_active(c) && !matches!(c, '\n' | '\t') {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn active_characters_are_escaped_and_others_stay() {
        for (text, shown) in [
            ("Größe 5 µs – ok", "Größe 5 µs – ok"),
            ("a\x1b[31mb", "a\\u{1b}[31mb"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("a\u{9b}b\u{7f}", "a\\u{9b}b\\u{7f}"),
            ("a\u{202e}b\u{2028}", "a\\u{202e}b\\u{2028}"),
            ("a\u{200b}b\u{2060}", "a\\u{200b}b\\u{2060}"),
            ("a\u{206a}b\u{e0041}", "a\\u{206a}b\\u{e0041}"),
            ("::error::x", "\\::error::x"),
            (" \n::error::x", "\\ \\n::error::x"),
            ("a ::b:: ##[warning]c", "a ::b:: ##\\[warning]c"),
        ] {
            assert_eq!(line(text), shown);
        }
    }

    #[test]
    fn text_for_a_terminal_keeps_its_lines_and_tabs() {
        let shown = |parts: &[&[u8]]| {
            let mut printable = Parts::default();
            let shown: String = parts.iter().map(|part| printable.next(part)).collect();
            shown + &printable.end()
        };
        assert_eq!(
            shown(&[b"a\tb\r\nc\rd\x1b[2Je\n"]),
            "a\tb\nc\\rd\\u{1b}[2Je\n"
        );
        assert_eq!(shown(&[b"a\r", b"\nb\xe2", b"\x80\xaec"]), "a\nb\\u{202e}c");
        assert_eq!(
            shown(&[b"a\xc2", b"\x9b", b"b\xffc\xe2\x80"]),
            "a\\u{9b}b\u{fffd}c\u{fffd}"
        );
        assert_eq!(shown(&[b"a\r"]), "a\\r");
    }

    proptest! {
        #[test]
        fn text_for_a_terminal_is_the_same_however_it_arrives(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(0xe2), Just(0x80)], 0..40),
            cuts in prop::collection::vec(0_usize..40, 0..4),
        ) {
            let mut parts = Parts::default();
            let (mut shown, mut from) = (String::new(), 0);
            let mut cuts = cuts;
            cuts.sort_unstable();
            for cut in cuts.into_iter().map(|cut| cut.min(bytes.len())) {
                shown += &parts.next(&bytes[from..cut]);
                from = cut;
            }
            shown += &parts.next(&bytes[from..]);
            shown += &parts.end();
            prop_assert_eq!(&shown, &text(&bytes));
            prop_assert!(!shown.replace(['\n', '\t'], "").contains(is_active));
        }

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
            let safe = safe_json(&value.to_string());
            prop_assert!(!safe.contains(is_active) && !safe.contains(OLD_COMMAND));
            let back: Value = serde_json::from_str(&safe).unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
