//! `application/json`: flat objects with the keys of the text format; several
//! objects are an array (docs/dev/reference.md, 2.3).

use serde_json::{Map, Value};

use super::{Properties, WireError};

/// Keys whose values are numbers in the recorded answers (docs/dev/reference.md, 2.4). All other
/// values are strings, including the counters of drives.
const NUMBERS: [&str; 12] = [
    "cpu",
    "mem",
    "nic:0:rx:bytes",
    "nic:0:rx:packets",
    "nic:0:tx:bytes",
    "nic:0:tx:packets",
    "rawsize",
    "rx",
    "size",
    "smp:cores",
    "started",
    "tx",
];
/// Keys that are numbers if the value is a count: `smp` may also be `auto`.
const COUNTS: [&str; 2] = ["rx:packets", "smp"];

pub(super) fn print_one(object: &Properties) -> String {
    line(&to_value(object))
}

pub(super) fn print_all(objects: &[Properties]) -> String {
    line(&Value::Array(objects.iter().map(to_value).collect()))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn to_value(object: &Properties) -> Value {
    let mut map = Map::new();
    for (key, value) in object {
        map.insert(key.clone(), scalar(key, value));
    }
    Value::Object(map)
}

fn scalar(key: &str, value: &str) -> Value {
    if NUMBERS.contains(&key) || COUNTS.contains(&key) {
        // A value becomes a number only if the number prints as the same text.
        if let Ok(number) = value.parse::<u64>()
            && number.to_string() == value
        {
            return Value::from(number);
        }
    }
    Value::from(value)
}

pub(super) fn parse(body: &str) -> Result<Vec<Properties>, WireError> {
    if body.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: Value =
        serde_json::from_str(body).map_err(|error| WireError::NotJson(error.to_string()))?;
    match value {
        Value::Array(values) => values.into_iter().map(from_value).collect(),
        value => Ok(vec![from_value(value)?]),
    }
}

fn from_value(value: Value) -> Result<Properties, WireError> {
    let Value::Object(map) = value else {
        return Err(WireError::Shape("expected an object of keys and values"));
    };
    let mut object = Properties::new();
    for (key, value) in map {
        object.insert(key, plain(value)?)?;
    }
    Ok(object)
}

/// A value as text. Numbers and booleans are converted, because clients send both for any key. An
/// array becomes a list separated by spaces, as in the text format.
fn plain(value: Value) -> Result<String, WireError> {
    Ok(match value {
        Value::Null => String::new(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s,
        Value::Array(values) => {
            let items: Result<Vec<_>, _> = values.into_iter().map(item).collect();
            items?.join(" ")
        }
        Value::Object(_) => return Err(WireError::Shape("a value is an object")),
    })
}

fn item(value: Value) -> Result<String, WireError> {
    match value {
        Value::Array(_) | Value::Object(_) => Err(WireError::Shape("a list within a list")),
        value => plain(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_booleans_null_and_lists_read_as_text() {
        let body = r#"{"size": 1, "name": "n", "persistent": true, "x": null, "l": ["a", 2]}"#;
        let object = parse(body).unwrap().remove(0);
        assert_eq!(object.get("size"), Some("1"));
        assert_eq!(object.get("persistent"), Some("true"));
        assert_eq!(object.get("x"), Some(""));
        assert_eq!(object.get("l"), Some("a 2"));
    }

    #[test]
    fn size_is_a_number_and_a_counter_a_string() {
        let mut object = Properties::new();
        object.insert("size", "10737418240").unwrap();
        object.insert("read:bytes", "4096").unwrap();
        object.insert("smp", "auto").unwrap();
        assert_eq!(
            print_one(&object),
            "{\"read:bytes\":\"4096\",\"size\":10737418240,\"smp\":\"auto\"}\n"
        );
    }

    #[test]
    fn nested_shapes_are_refused() {
        for body in ["[1]", "3", "{\"a\":{}}", "{\"a\":[[1]]}", "{", "[[]]"] {
            assert!(parse(body).is_err(), "{body}");
        }
    }

    #[test]
    fn an_empty_json_body_is_refused() {
        assert_eq!(parse(" \n").unwrap(), Vec::new());
    }
}
