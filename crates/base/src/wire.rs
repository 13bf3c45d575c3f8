//! The grammar of the API: the representation of keys and values on the wire in both formats
//! (docs/dev/reference.md, 2), and the types of errors (docs/dev/reference.md, 3). Pure functions
//! over bytes: no I/O, no network.

// Numbers from the network are checked before they are added: release builds wrap on overflow.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod body;
mod error_type;
mod extents;
mod format;
mod json;
mod properties;
mod size;
mod text;

pub use error_type::ErrorType;
pub use extents::Extents;
pub use format::Format;
pub use properties::Properties;
pub use size::parse_size;
pub use text::ObjectReader;

/// Name of the header with the type of an error (docs/dev/reference.md, 3.2).
pub const X_ELASTIC_ERROR: &str = "x-elastic-error";
/// Name of the header that says what a text answer contains: `properties` or `list`
/// (docs/dev/reference.md, 2.5).
pub const X_ELASTIC_OUTPUT: &str = "x-elastic-output";
/// Name of the header that lists the extensions of our own server, separated by commas. No cloud
/// has it.
pub const X_OPENHOSTING_EXTENSIONS: &str = "x-openhosting-extensions";
/// The extension `drives/UUID/digest/OFFSET/SIZE`.
pub const EXTENSION_DIGEST: &str = "digest";
/// The extension `drives/UUID/extents/OFFSET/SIZE`.
pub const EXTENSION_EXTENTS: &str = "extents";
/// The extension `image/cancel`, with which our own server stops an imaging.
pub const EXTENSION_CANCEL: &str = "cancel";
/// The extensions `servers/UUID/console`, `servers/UUID/screen`, and
/// `servers/UUID/suspend` with `servers/UUID/resume`.
pub const EXTENSIONS_OF_SERVERS: &str = "console, screen, suspend";
/// Maximum bytes of one read: 4096k (docs/dev/reference.md, 1.7).
pub const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A body that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are not UTF-8.
    #[error("Body is not UTF-8")]
    NotUtf8,
    /// A key is empty, or holds white space or a control character.
    #[error("Key {0:?} is empty or holds white space or a control character")]
    BadKey(String),
    /// A value ends in a carriage return, which a line of text cannot carry.
    #[error("Value of {0:?} ends in a carriage return")]
    BadValue(String),
    /// The bytes are not JSON.
    #[error("Body is not JSON: {0}")]
    NotJson(String),
    /// The JSON is not a flat object, or an array of flat objects.
    #[error("JSON of an unexpected shape: {0}")]
    Shape(&'static str),
    /// An object is longer than any valid one.
    #[error("An object has more than {0} bytes")]
    TooLong(usize),
    /// Another number of objects than one.
    #[error("Expected one object and found {0}")]
    NotOne(usize),
    /// Not an answer about extents.
    #[error("Not the extents of a drive: {0}")]
    BadExtents(&'static str),
    /// Not a size: an integer, optionally followed by k, M, G or T.
    #[error("Size {0:?} is not a whole number with an optional k, M, G or T")]
    BadSize(String),
}
