//! `text/plain`: one `KEY VALUE` a line, split at the first space; a blank line
//! between objects (REFERENCE section 2).
//!
//! A newline in a value is written as backslash and `n`. How the service
//! escapes a backslash is not known, so a backslash stands for itself wherever
//! it cannot be mistaken, and is doubled only where it could: before an `n`,
//! another backslash or a newline. So ordinary values are sent as they are and
//! printing then parsing is still the identity.

use super::{Properties, WireError};

pub(super) fn print(objects: &[Properties]) -> String {
    let mut out = String::new();
    for (i, object) in objects.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        for (key, value) in object {
            out.push_str(key);
            out.push(' ');
            escape_into(&mut out, value);
            out.push('\n');
        }
    }
    out
}

pub(super) fn parse(body: &str) -> Result<Vec<Properties>, WireError> {
    let mut objects = Vec::new();
    let mut object = Properties::new();
    for line in body.split('\n') {
        let line = line.trim_start_matches([' ', '\t', '\r']);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            if !object.is_empty() {
                objects.push(std::mem::take(&mut object));
            }
            continue;
        }
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        object.insert(key, unescape(value))?;
    }
    if !object.is_empty() {
        objects.push(object);
    }
    Ok(objects)
}

fn escape_into(out: &mut String, value: &str) {
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => out.push_str("\\n"),
            '\\' if matches!(chars.peek(), Some('n' | '\\' | '\n')) => out.push_str("\\\\"),
            c => out.push(c),
        }
    }
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('n')) => {
                chars.next();
                out.push('\n');
            }
            ('\\', Some('\\')) => {
                chars.next();
                out.push('\\');
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(body: &str) -> Properties {
        let mut objects = parse(body).unwrap();
        assert_eq!(objects.len(), 1, "{body:?}");
        objects.remove(0)
    }

    #[test]
    fn the_value_is_all_after_the_first_space() {
        let object = one("name with space.img\nsize 3\ntier disk");
        assert_eq!(object.get("name"), Some("with space.img"));
        assert_eq!(object.get("size"), Some("3"));
        assert_eq!(object.get("tier"), Some("disk"));
    }

    #[test]
    fn line_ends_blank_lines_and_duplicates() {
        let objects = parse("\n\r\n a 1\r\na 2\nb\n\n\n\nc  x\n").unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0].get("a"), Some("2"));
        assert_eq!(objects[0].get("b"), Some(""));
        assert_eq!(objects[1].get("c"), Some(" x"));
    }

    #[test]
    fn a_newline_travels_as_backslash_n() {
        let mut object = Properties::new();
        object.insert("name", "a\nsize 1").unwrap();
        assert_eq!(print(std::slice::from_ref(&object)), "name a\\nsize 1\n");
        assert_eq!(one("name a\\nsize 1"), object);
    }

    #[test]
    fn a_backslash_is_doubled_only_where_it_could_be_mistaken() {
        let cases = [
            ("C:\\temp", "C:\\temp"),
            ("C:\\new", "C:\\\\new"),
            ("\\\\", "\\\\\\"),
            ("end\\", "end\\"),
        ];
        for (value, printed) in cases {
            let mut object = Properties::new();
            object.insert("k", value).unwrap();
            assert_eq!(
                print(std::slice::from_ref(&object)),
                format!("k {printed}\n")
            );
            assert_eq!(one(&format!("k {printed}\n")), object);
        }
    }
}
