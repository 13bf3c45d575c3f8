//! Compares the parser of the text format with a second one, which was written from the grammar
//! without looking at the first: both return the same objects, or both refuse.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use openhosting::wire::{Format, Properties};

type Object = BTreeMap<String, String>;

fuzz_target!(|body: &[u8]| {
    let ours = Properties::parse_all(Format::Text, body).ok();
    let ours = ours.map(|objects| {
        let plain = |object: &Properties| -> Object {
            object.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        objects.iter().map(plain).collect::<Vec<_>>()
    });
    assert_eq!(ours, model(body));
});

/// One `KEY VALUE` per line, split at the first space. Blank lines separate objects. If a key
/// occurs twice, the last value counts.
fn model(body: &[u8]) -> Option<Vec<Object>> {
    let body = String::from_utf8(body.to_vec()).ok()?;
    let mut objects = vec![Object::new()];
    for line in body.split('\n') {
        let line = line.trim_end_matches('\r');
        let line = line.trim_start_matches(|c| matches!(c, ' ' | '\t' | '\r'));
        if line.is_empty() {
            objects.push(Object::new());
            continue;
        }
        let space = line.find(' ').unwrap_or(line.len());
        let (key, value) = (&line[..space], line.get(space + 1..).unwrap_or(""));
        if key.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let last = objects.last_mut()?;
        last.insert(key.to_owned(), unescape(value));
    }
    objects.retain(|object| !object.is_empty());
    Some(objects)
}

/// From left to right: `\\` is one backslash, `
/// ` is a line end, and any other backslash is itself. Splitting at `\\` first keeps escapes on
/// both sides of it apart.
fn unescape(value: &str) -> String {
    match value.find("\\\\") {
        Some(at) => {
            let (head, tail) = (&value[..at], &value[at + 2..]);
            head.replace("\\n", "\n") + "\\" + &unescape(tail)
        }
        None => value.replace("\\n", "\n"),
    }
}
