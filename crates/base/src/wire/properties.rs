//! One object of the API: its keys and values, independent of the format.

use std::collections::BTreeMap;
use std::collections::btree_map;

use super::WireError;

/// One object: keys and their values, sorted by key as the second generation of the service prints
/// them (docs/dev/reference.md, 7).
///
/// A value is always a string here; which values are numbers in JSON is decided when printing
/// (docs/dev/reference.md, 2.4). An empty value stands for a key to be unset, and JSON `null` is
/// parsed as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// An object without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// These keys and values.
    ///
    /// # Errors
    /// As of [`insert`](Self::insert).
    pub fn of<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, WireError> {
        let mut properties = Self::new();
        for (key, value) in pairs {
            properties.insert(key, value)?;
        }
        Ok(properties)
    }

    /// Sets a key. A second value replaces the first, so of two in one body the last one counts
    /// (docs/dev/reference.md, 2.2).
    ///
    /// # Errors
    /// [`WireError::BadKey`] and [`WireError::BadValue`] for what a line of text cannot represent.
    /// A newline in a value is allowed; it is escaped.
    pub fn insert(
        &mut self,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<(), WireError> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(WireError::BadKey(key));
        }
        if value.ends_with('\r') {
            return Err(WireError::BadValue(key));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All keys with their values, sorted by key.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Properties {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Format;

    fn object() -> impl Strategy<Value = Properties> {
        let key = "[a-zA-Z0-9:_.-]{1,20}";
        // Mostly values that escaping could get wrong.
        let value = prop_oneof!["[\\\\n\n ]{0,12}", "[0-9]{1,20}", any::<String>()];
        proptest::collection::btree_map(key, value, 1..8).prop_map(|map| {
            let mut object = Properties::new();
            for (key, value) in map {
                let value = value.trim_end_matches('\r').to_owned();
                object.insert(key, value).unwrap();
            }
            object
        })
    }

    proptest! {
        #[test]
        fn print_then_parse_is_the_identity(objects in proptest::collection::vec(object(), 0..4)) {
            for format in [Format::Text, Format::Json] {
                let printed = Properties::print_all(&objects, format);
                prop_assert_eq!(
                    Properties::parse_all(format, printed.as_bytes()).unwrap(),
                    objects.clone()
                );
            }
        }

        #[test]
        fn a_printed_object_parses_back(object in object()) {
            for format in [Format::Text, Format::Json] {
                let printed = object.print(format);
                prop_assert_eq!(Properties::parse(format, printed.as_bytes()).unwrap(), object.clone());
            }
        }

        #[test]
        fn no_body_makes_the_parser_panic(body in any::<Vec<u8>>()) {
            let _ = Properties::parse_all(Format::Text, &body);
            let _ = Properties::parse_all(Format::Json, &body);
        }
    }

    #[test]
    fn a_key_or_value_that_no_line_can_carry_is_refused() {
        let mut object = Properties::new();
        for key in ["", "a b", "a\nb", "a\tb"] {
            assert!(object.insert(key, "x").is_err(), "{key:?}");
        }
        assert!(object.insert("key", "x\r").is_err());
        assert!(object.is_empty());
    }
}
