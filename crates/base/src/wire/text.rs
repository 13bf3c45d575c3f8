//! `text/plain`: one `KEY VALUE` on each line, split at the first space, with a blank line between
//! objects (docs/dev/reference.md, 2.2).
//!
//! A newline in a value is written as backslash and `n`. It is unknown how the service escapes a
//! backslash. Therefore a backslash stands for itself where that is unambiguous, and is doubled
//! only where it is not: before an `n`, another backslash or a newline. This sends ordinary values
//! unchanged, and parsing still returns exactly what was printed.

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
    let mut reader = ObjectReader::new(usize::MAX);
    let mut objects = Vec::new();
    let mut rest = body.as_bytes();
    while let Some(object) = reader.read(&mut rest)? {
        objects.push(object);
    }
    objects.extend(reader.finish()?);
    Ok(objects)
}

/// Reads objects from a body that arrives in parts; memory holds at most one object.
#[derive(Debug)]
pub struct ObjectReader {
    /// An incomplete line.
    line: Vec<u8>,
    object: Properties,
    /// Bytes of the lines of the current object, without line ends, and their maximum.
    object_bytes: usize,
    object_bytes_max: usize,
}

impl ObjectReader {
    /// A reader of objects of at most `object_bytes_max` bytes each.
    pub fn new(object_bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            object: Properties::new(),
            object_bytes: 0,
            object_bytes_max,
        }
    }

    /// Consumes bytes from `part` up to the end of an object; `None` if all were consumed without
    /// completing one.
    ///
    /// # Errors
    /// What violates the grammar; [`WireError::TooLong`] for an object that is too large.
    pub fn read(&mut self, part: &mut &[u8]) -> Result<Option<Properties>, WireError> {
        while let Some(end) = part.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = part.split_at(end);
            *part = rest.get(1..).unwrap_or_default();
            self.count(line.len())?;
            let ended = if self.line.is_empty() {
                self.take_line(line)?
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.take_line(&whole)?
            };
            if ended.is_some() {
                return Ok(ended);
            }
        }
        self.count(part.len())?;
        self.line.extend_from_slice(std::mem::take(part));
        Ok(None)
    }

    /// The last object, which the end of the body completes.
    ///
    /// # Errors
    /// What violates the grammar.
    pub fn finish(&mut self) -> Result<Option<Properties>, WireError> {
        let line = std::mem::take(&mut self.line);
        if let Some(object) = self.take_line(&line)? {
            return Ok(Some(object));
        }
        Ok(self.end_object())
    }

    /// Counts bytes of the current object, and fails if there are too many.
    fn count(&mut self, bytes: usize) -> Result<(), WireError> {
        self.object_bytes = self.object_bytes.saturating_add(bytes);
        match self.object_bytes > self.object_bytes_max {
            true => Err(WireError::TooLong(self.object_bytes_max)),
            false => Ok(()),
        }
    }

    /// Processes a line without its line end. A blank line completes an object, if there is one.
    fn take_line(&mut self, line: &[u8]) -> Result<Option<Properties>, WireError> {
        let line = std::str::from_utf8(line).map_err(|_| WireError::NotUtf8)?;
        let line = line.trim_start_matches([' ', '\t', '\r']);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            return Ok(self.end_object());
        }
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        self.object.insert(key, unescape(value))?;
        Ok(None)
    }

    /// Ends the current object; `None` if it has no keys.
    fn end_object(&mut self) -> Option<Properties> {
        self.object_bytes = 0;
        (!self.object.is_empty()).then(|| std::mem::take(&mut self.object))
    }
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
    fn a_body_that_arrives_in_parts_parses_the_same() {
        let body = "\n a 1\r\nb ä ö\n\n\nc\n\nd 4";
        let whole = parse(body).unwrap();
        for step in 1..body.len() {
            let mut reader = ObjectReader::new(1000);
            let mut objects = Vec::new();
            for mut part in body.as_bytes().chunks(step) {
                while let Some(object) = reader.read(&mut part).unwrap() {
                    objects.push(object);
                }
            }
            objects.extend(reader.finish().unwrap());
            assert_eq!(objects, whole, "in parts of {step}");
        }
    }

    #[test]
    fn the_size_limit_of_an_object_holds_across_parts() {
        let read = |parts: &[&str]| {
            let mut reader = ObjectReader::new(8);
            let mut read = 0;
            for part in parts {
                let mut part = part.as_bytes();
                while reader.read(&mut part)?.is_some() {
                    read += 1;
                }
            }
            reader
                .finish()
                .map(|last| read + usize::from(last.is_some()))
        };
        assert_eq!(read(&["a 1\nb 2\n\na 1\nb 2\n\na", " 1"]), Ok(3));
        for parts in [
            &["aaaaaaaaa"][..],
            &["a 1\n", "b 2\n", "c 3\n"],
            &["aaaa", "aaaa", "a"],
        ] {
            assert_eq!(read(parts), Err(WireError::TooLong(8)), "{parts:?}");
        }
    }

    #[test]
    fn a_newline_travels_as_backslash_n() {
        let mut object = Properties::new();
        object.insert("name", "a\nsize 1").unwrap();
        assert_eq!(print(std::slice::from_ref(&object)), "name a\\nsize 1\n");
        assert_eq!(one("name a\\nsize 1"), object);
    }

    #[test]
    fn a_backslash_is_doubled_only_where_it_is_ambiguous() {
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
