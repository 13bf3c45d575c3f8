//! The keys of an object: those that the server sets, and those that a client may set.

use super::refusal::Refusal;
use openhosting_base::wire::{Format, Properties};

/// Maximum bytes of the keys that a client can set, printed.
const SETTINGS_BYTES_MAX: usize = 64 * 1024;

/// Sets a key of the server's own, which is always valid.
pub fn set(object: &mut Properties, key: &str, value: impl Into<String>) {
    let result = object.insert(key, value);
    debug_assert!(result.is_ok(), "{key}: {result:?}");
}

/// Sets a client's key; an empty value unsets it.
pub fn put_or_unset(object: &mut Properties, key: &str, value: &str) -> Result<(), Refusal> {
    if value.is_empty() {
        object.remove(key);
        return Ok(());
    }
    put(object, key, value)
}

/// Sets a client's key.
pub fn put(object: &mut Properties, key: &str, value: &str) -> Result<(), Refusal> {
    let control = |c: char| c.is_control() && c != '\n';
    if value.contains(control) {
        let sentence = format!("Value of {key:?} holds a control character");
        return Err(Refusal::usage(sentence));
    }
    object
        .insert(key, value)
        .map_err(|error| Refusal::usage(error.to_string()))
}

/// Sets `name`, `tags` and `user:` keys of a client. Any other key is refused by name, so that a
/// mistyped key is not silently dropped.
pub fn put_label(object: &mut Properties, key: &str, value: &str) -> Result<(), Refusal> {
    match key {
        "name" | "tags" => put_or_unset(object, key, value),
        _ if key.starts_with("user:") && key.len() > 5 => put_or_unset(object, key, value),
        _ => Err(unknown(key)),
    }
}

/// The refusal of an unknown key.
pub fn unknown(key: &str) -> Refusal {
    Refusal::usage(format!("Key {key:?} is unknown or cannot be set"))
}

/// Refuses an object (of the kind `what`) with more keys than can be stored.
pub fn check_length(object: &Properties, what: &str) -> Result<(), Refusal> {
    match object.print(Format::Text).len() > SETTINGS_BYTES_MAX {
        true => Err(Refusal::usage(format!(
            "The keys of the {what} are too long"
        ))),
        false => Ok(()),
    }
}

/// Refuses a value that is not one of `allowed`.
pub fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<(), Refusal> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let allowed = allowed.join(" or ");
    Err(Refusal::usage(format!(
        "Value {value:?} of {key:?} is invalid, it is {allowed}"
    )))
}
