//! Determines which of the two formats a body has. The formats of request and response are
//! independent (docs/dev/reference.md, 2.1).

/// Format of a body of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `text/plain`: one `KEY VALUE` on each line. The default in both directions.
    #[default]
    Text,
    /// `application/json`: flat objects with the same keys.
    Json,
}

impl Format {
    /// The format of a body according to its `Content-Type`. Everything but `application/json`
    /// (with any parameters) is text, because clients are known to send octet-stream, form data, or
    /// nothing.
    pub fn of_content_type(value: Option<&str>) -> Self {
        match value {
            Some(value) if is_json(value) => Self::Json,
            _ => Self::Text,
        }
    }

    /// The format requested by an `Accept` header: the first supported one in it; text if there is
    /// none. Quality values (`q=`) are ignored.
    pub fn of_accept(value: Option<&str>) -> Self {
        for media_range in value.unwrap_or_default().split(',') {
            if is_json(media_range) {
                return Self::Json;
            }
            if matches!(
                media_type(media_range).as_str(),
                "text/plain" | "text/*" | "*/*"
            ) {
                return Self::Text;
            }
        }
        Self::Text
    }

    /// The value for `Content-Type` and `Accept`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Json => "application/json",
        }
    }
}

/// The type without parameters, such as `; charset=utf-8`, in lower case.
fn media_type(value: &str) -> String {
    let name = value.split(';').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

fn is_json(value: &str) -> bool {
    media_type(value) == "application/json"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_decide_the_formats_of_input_and_output() {
        use Format::{Json, Text};
        let input = [
            (None, Text),
            (Some("text/plain"), Text),
            (Some("application/octet-stream"), Text),
            (Some("header"), Text),
            (Some("application/json"), Json),
            (Some("Application/JSON; charset=utf-8"), Json),
        ];
        for (value, format) in input {
            assert_eq!(Format::of_content_type(value), format, "{value:?}");
        }
        let output = [
            (None, Text),
            (Some("*/*"), Text),
            (Some("application/json"), Json),
            (Some("application/json, */*;q=0.1"), Json),
            (Some("text/plain, application/json"), Text),
            (Some("image/png"), Text),
        ];
        for (value, format) in output {
            assert_eq!(Format::of_accept(value), format, "{value:?}");
        }
    }
}
