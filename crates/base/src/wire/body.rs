//! Bodies of requests and responses: objects in text or JSON.

use super::{Format, Properties, WireError, json, text};

impl Properties {
    /// Parses a body of at most one object. An empty body is an object without keys (libcloud sends
    /// one with `Content-Type: application/json`).
    ///
    /// # Errors
    /// See [`Properties::parse_all`]; [`WireError::NotOne`] for several.
    pub fn parse(format: Format, body: &[u8]) -> Result<Self, WireError> {
        let mut objects = Self::parse_all(format, body)?;
        match objects.len() {
            0 => Ok(Self::new()),
            1 => Ok(objects.swap_remove(0)),
            n => Err(WireError::NotOne(n)),
        }
    }

    /// Parses a body of any number of objects.
    ///
    /// # Errors
    /// A [`WireError`] that says what violates the grammar.
    pub fn parse_all(format: Format, body: &[u8]) -> Result<Vec<Self>, WireError> {
        let body = std::str::from_utf8(body).map_err(|_| WireError::NotUtf8)?;
        match format {
            Format::Text => text::parse(body),
            Format::Json => json::parse(body),
        }
    }

    /// Prints one object.
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Text => text::print(std::slice::from_ref(self)),
            Format::Json => json::print_one(self),
        }
    }

    /// Prints several objects: separated by a blank line in text, as an array in JSON.
    pub fn print_all(objects: &[Self], format: Format) -> String {
        match format {
            Format::Text => text::print(objects),
            Format::Json => json::print_all(objects),
        }
    }
}
