//! The drives of the API: the identifier of a drive, its properties, and what is needed to create
//! one.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Properties, parse_size};

/// Identifies a drive: a UUID. It is parsed to 128 bits and printed again, so that no text from
/// outside reaches a path or a URL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriveId(Uuid);

impl DriveId {
    /// A new, unique identifier.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Its 128 bits.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The identifier with these 128 bits.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl From<DriveId> for Uuid {
    fn from(id: DriveId) -> Self {
        id.0
    }
}

/// Parses a UUID, only in its usual form of 36 characters, in upper or lower case.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

impl FromStr for DriveId {
    type Err = Error;

    /// Accepts only the usual form of 36 characters, in upper or lower case.
    fn from_str(text: &str) -> Result<Self> {
        parse_uuid(text).map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is not a drive UUID"))
                .hint_to(advice!["List your drives with: ", Remedy::ListDrives])
        })
    }
}

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Maximum size of a drive, 4 EiB. With larger sizes, sums of offsets and sizes could overflow; and
/// no file system supports a file as large.
pub const DRIVE_BYTES_MAX: u64 = 1 << 62;

/// The key of a drive with the result of the check of an upload, if that failed once.
pub const CHECK_KEY: &str = "user:oh-check";
/// The value of [`CHECK_KEY`] while the drive holds wrong bytes and must not be used.
pub const CHECK_FAILED: &str = "failed";
/// The value of [`CHECK_KEY`] after a later upload replaced the wrong bytes.
pub const CHECK_PASSED: &str = "passed";

/// The key of a drive with the state of its publication, or of the upload that fills it. Each value
/// but [`PUBLISHED`] and [`READY`] means that the drive is unfinished.
pub const STATE_KEY: &str = "user:oh-state";
/// The value of [`STATE_KEY`] once a publication is confirmed and verified.
pub const PUBLISHED: &str = "published";
/// The value of [`STATE_KEY`] from before the first byte of an upload until it ended well.
pub const UPLOADING: &str = "uploading";
/// The value of [`STATE_KEY`] after an upload ended well: the same as no value.
///
/// The mark is not removed, because no source says for certain how: an empty value in text is
/// unknown, and JSON `null` only likely. That `set` stores a value is certain
/// (docs/dev/reference.md, 1.5).
pub const READY: &str = "ready";

/// The properties of a drive in the API (docs/dev/reference.md, 1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveInfo {
    /// Its identifier.
    pub id: DriveId,
    /// Its size in bytes, at most [`DRIVE_BYTES_MAX`].
    pub size: u64,
    /// All keys of the answer, including those above.
    pub properties: Properties,
}

impl DriveInfo {
    /// Converts one object of an `info`, `create` or `set` answer.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if `drive` or `size` is missing or malformed: then this is not an
    /// answer of the API.
    pub fn from_properties(properties: Properties) -> Result<Self> {
        let field = |key: &'static str| {
            properties.get(key).map(str::trim).ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    format!("The answer has no key {key:?}"),
                )
            })
        };
        let id = field("drive")?.parse().map_err(|error: Error| {
            Error::new(ErrorKind::Protocol, "The answer names no drive").because(error)
        })?;
        let size = parse_size(field("size")?).map_err(|error| {
            Error::new(ErrorKind::Protocol, "The answer has no readable size").because(error)
        })?;
        if size > DRIVE_BYTES_MAX {
            let what = format!("The answer gives a size of {size} bytes, which no drive has");
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        Ok(Self {
            id,
            size,
            properties,
        })
    }

    /// Its name. Drives may have the same one.
    pub fn name(&self) -> Option<&str> {
        self.properties.get("name")
    }

    /// The claim on the drive: the running server that uses it, if any.
    pub fn claimed(&self) -> Option<&str> {
        claimed(&self.properties)
    }

    /// The server whose claim that is, as in `USER:guest:SERVER:ide:0:0`.
    pub fn claiming_server(&self) -> Option<Uuid> {
        claiming_server(self.claimed()?)
    }

    /// The progress of an imaging of this drive, if one is running (docs/dev/reference.md, 5.2).
    pub fn imaging(&self) -> Option<&str> {
        imaging(&self.properties)
    }
}

pub(crate) fn claimed(keys: &Properties) -> Option<&str> {
    keys.get("claimed").filter(|claims| !claims.is_empty())
}

/// The mock of an old client uses `false` for none.
pub(crate) fn imaging(keys: &Properties) -> Option<&str> {
    keys.get("imaging")
        .filter(|progress| !progress.is_empty() && *progress != "false")
}

/// The server that a value of the key `claimed` names, as in `USER:guest:SERVER:ide:0:0`.
pub fn claiming_server(claimed: &str) -> Option<Uuid> {
    let claim = claimed.split_whitespace().next()?;
    let mut parts = claim.split(':').skip_while(|part| *part != "guest").skip(1);
    parse_uuid(parts.next()?)
}

/// Whether a drive is marked as that of an upload that did not end.
pub fn is_uploading(keys: &Properties) -> bool {
    state_of(keys) == Some(UPLOADING)
}

/// Whether a publication of this drive, or an upload to it, did not end.
pub fn is_unfinished(keys: &Properties) -> bool {
    state_of(keys).is_some_and(|state| ![PUBLISHED, READY].contains(&state))
}

/// The value of [`STATE_KEY`]; `None` if it is missing or empty.
pub fn state_of(keys: &Properties) -> Option<&str> {
    keys.get(STATE_KEY)
        .map(str::trim)
        .filter(|state| !state.is_empty())
}

/// The drives with this name.
pub fn named<'d>(drives: &'d [DriveInfo], name: &str) -> impl Iterator<Item = &'d DriveInfo> {
    drives
        .iter()
        .filter(move |drive| drive.name() == Some(name))
}

/// The parameters of a new drive: the body of `drives/create` (docs/dev/reference.md, 1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveSpec {
    /// Any text; a newline in it is escaped on the wire.
    pub name: String,
    /// Size in bytes, more than 0.
    pub size: u64,
    /// `disk` or `ssd`; the endpoint decides which values exist.
    pub tier: String,
    /// Whether several servers may claim the drive at once.
    pub shared: bool,
}

impl DriveSpec {
    /// The keys and values to send.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the name or tier contains what the format cannot represent.
    pub fn to_properties(&self) -> Result<Properties> {
        let mut properties = Properties::new();
        let mut set = |key: &str, value: &str| {
            if value.contains(|c: char| c.is_control() && c != '\n') {
                let what = format!("The drive's {key} {value:?} holds a control character");
                return Err(Error::new(ErrorKind::Usage, what));
            }
            properties.insert(key, value).map_err(|error| {
                Error::new(ErrorKind::Usage, "Cannot describe the drive").because(error)
            })
        };
        set("name", &self.name)?;
        set("size", &self.size.to_string())?;
        set("tier", &self.tier)?;
        if self.shared {
            set("claim:type", "shared")?;
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Format;

    #[test]
    fn only_the_usual_form_names_a_drive() {
        let id: DriveId = "0012E24A-6eae-4279-9912-3432f698cec8".parse().unwrap();
        assert_eq!(id.to_string(), "0012e24a-6eae-4279-9912-3432f698cec8");
        for bad in [
            "",
            "nosuch",
            "../../etc/passwd",
            "0012e24a6eae427999123432f698cec8",
            "{0012e24a-6eae-4279-9912-3432f698cec8}",
            "0012e24a-6eae-4279-9912-3432f698cec8a",
        ] {
            assert!(bad.parse::<DriveId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_create_body_equals_that_of_the_script() {
        let spec = DriveSpec {
            name: "with space.img".into(),
            size: 3,
            tier: "disk".into(),
            shared: false,
        };
        let body = spec.to_properties().unwrap().print(Format::Text);
        assert_eq!(body, "name with space.img\nsize 3\ntier disk\n");
    }

    #[test]
    fn a_name_cannot_inject_a_key() {
        let spec = DriveSpec {
            name: "x\nsize 1".into(),
            size: 3,
            tier: "disk".into(),
            shared: true,
        };
        let properties = spec.to_properties().unwrap();
        let body = properties.print(Format::Text);
        assert_eq!(
            body,
            "claim:type shared\nname x\\nsize 1\nsize 3\ntier disk\n"
        );
        let spec = DriveSpec {
            name: "bell\u{7}".into(),
            ..spec
        };
        assert_eq!(spec.to_properties().unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_size_that_could_overflow_is_refused() {
        let drive = |size: &str| {
            let text = format!("drive 0012e24a-6eae-4279-9912-3432f698cec8\nsize {size}\n");
            DriveInfo::from_properties(Properties::parse(Format::Text, text.as_bytes()).unwrap())
        };
        assert_eq!(drive("4194304T").unwrap().size, DRIVE_BYTES_MAX);
        for size in ["4194305T", "9223372036854775807", "18446744073709551615"] {
            assert_eq!(
                drive(size).unwrap_err().kind(),
                ErrorKind::Protocol,
                "{size}"
            );
        }
    }

    #[test]
    fn info_without_a_drive_is_not_from_the_api() {
        let html = Properties::parse(Format::Text, b"<html>\n<body>hello</body>").unwrap();
        let error = DriveInfo::from_properties(html).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}
