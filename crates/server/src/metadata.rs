//! Everything about a drive except its bytes, and the file that stores it (`stored_file.rs`).

use std::io;
use std::path::Path;

use openhosting_base::drive::{DriveId, parse_uuid};
use openhosting_base::wire::{Properties, parse_size};
use openhosting_tenancy::{
    Counters, Refusal, check_length, one_of, put, put_label, put_or_unset, set, stored_file,
};

/// Everyone, in the `readers` key (docs/dev/reference.md, 1.4).
pub(super) const EVERYONE: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

/// The key that says how the cloud encrypts a drive, and what this server says: it does not encrypt.
const CIPHER_KEY: &str = "encryption:cipher";
const CIPHER: &str = "none";

/// The counters of a new drive, as recorded from real systems, which access it themselves.
const NEW_COUNTERS: Counters = Counters {
    read_bytes: 4096,
    read_requests: 1,
    write_bytes: 4096,
    write_requests: 1,
};

/// Everything about a drive except its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Its owner.
    pub(super) user: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// `name`, `tier`, `tags` and other keys of a client, as they are shown.
    pub(super) settings: Properties,
    pub(super) counters: Counters,
}

impl Metadata {
    /// The metadata of a new drive from the body of `drives/create`.
    ///
    /// `round` is applied to `size`. Unknown keys are refused by name, so that a mistyped key is
    /// not silently dropped. A request for the clouds' usual cipher is accepted, because their clients
    /// make it, but the answer states that the drive is not encrypted.
    pub(super) fn create(
        user: &str,
        body: &Properties,
        round: impl Fn(u64) -> Result<u64, Refusal>,
    ) -> Result<Self, Refusal> {
        let mut metadata = Self {
            user: user.to_owned(),
            size: 0,
            settings: Properties::new(),
            counters: NEW_COUNTERS,
        };
        let wanted = body.get(CIPHER_KEY).filter(|v| !v.is_empty());
        one_of(
            CIPHER_KEY,
            wanted.unwrap_or(CIPHER),
            &[CIPHER, "aes-xts-plain"],
        )?;
        put(&mut metadata.settings, CIPHER_KEY, CIPHER)?;
        put(&mut metadata.settings, "tier", "disk")?;
        let mut others = body.clone();
        others.remove(CIPHER_KEY);
        metadata.merge(&others, round)?;
        if metadata.size == 0 {
            return Err(Refusal::usage("Key \"size\" is missing"));
        }
        Ok(metadata)
    }

    /// Merges the body of `set`: keys that are not in it stay, and an empty value unsets a key
    /// (docs/dev/reference.md, 1.5).
    pub(super) fn merge(
        &mut self,
        body: &Properties,
        round: impl Fn(u64) -> Result<u64, Refusal>,
    ) -> Result<(), Refusal> {
        for (key, value) in body {
            match key.as_str() {
                "size" => self.size = round(size(value)?)?,
                // Accepted and not shown: there is only one place.
                "avoid" => {}
                CIPHER_KEY => {
                    if value != CIPHER && !value.is_empty() {
                        let sentence = "Key \"encryption:cipher\" can be set at creation only";
                        return Err(Refusal::usage(sentence));
                    }
                }
                "claim:type" => match value.as_str() {
                    "" | "exclusive" => drop(self.settings.remove(key)),
                    "shared" => put(&mut self.settings, key, value)?,
                    _ => one_of(key, value, &["exclusive", "shared"])?,
                },
                "tier" => match value.as_str() {
                    "" => put(&mut self.settings, key, "disk")?,
                    _ => {
                        one_of(key, value, &["disk", "ssd"])?;
                        put(&mut self.settings, key, value)?;
                    }
                },
                "readers" => {
                    readers(value)?;
                    put_or_unset(&mut self.settings, key, value)?;
                }
                _ => put_label(&mut self.settings, key, value)?,
            }
        }
        check_length(&self.settings, "drive")
    }

    /// Whether `user` may see and read the drive.
    pub(super) fn may_read(&self, user: &str) -> bool {
        self.user == user || self.is_read_by(user) || self.is_standard()
    }

    /// Whether everyone may read the drive, which makes it a standard drive.
    pub(super) fn is_standard(&self) -> bool {
        self.is_read_by(EVERYONE)
    }

    /// Whether more than one server may claim the drive.
    pub(super) fn is_shared(&self) -> bool {
        self.settings.get("claim:type") == Some("shared")
    }

    fn is_read_by(&self, user: &str) -> bool {
        let readers = self.settings.get("readers").unwrap_or_default();
        readers
            .split_whitespace()
            .any(|r| r.eq_ignore_ascii_case(user))
    }

    /// The keys of `info` for the drive when it is not in use (docs/dev/reference.md, 1.3).
    pub(super) fn to_info(&self, id: DriveId) -> Properties {
        let mut info = self.settings.clone();
        set(&mut info, "drive", id.to_string());
        set(&mut info, "size", self.size.to_string());
        set(&mut info, "status", "active");
        set(&mut info, "user", &self.user);
        // Earlier versions stored the name of a cipher.
        set(&mut info, CIPHER_KEY, CIPHER);
        for (key, value) in { self.counters }.fields() {
            set(&mut info, key, value.to_string());
        }
        info
    }

    /// Stores it in the file `path`, crash-safe. `staging` is a directory on the same file system
    /// for the temporary file.
    pub(super) fn keep(&self, id: DriveId, path: &Path, staging: &Path) -> io::Result<()> {
        stored_file::write(&self.print(id), path, staging)
    }

    fn print(&self, id: DriveId) -> String {
        let mut kept = self.to_info(id);
        kept.remove("status");
        stored_file::print(&kept)
    }

    /// Parses what [`keep`](Self::keep) wrote; `None` if it is damaged. The second value is the
    /// state of the bytes that an earlier version stored here (now in `fill.rs`).
    pub(super) fn parse(id: DriveId, bytes: &[u8]) -> Option<(Self, bool)> {
        let mut kept = stored_file::parse(bytes)?;
        if kept.remove("drive")? != id.to_string() {
            return None;
        }
        let mut counters = NEW_COUNTERS;
        for (key, value) in counters.fields() {
            *value = kept.remove(key)?.parse().ok()?;
        }
        let was_complete = kept.remove("complete").is_none_or(|value| value == "true");
        let was_imaged = kept.remove("imaging").is_some_and(|value| value != "false");
        let metadata = Self {
            user: kept.remove("user")?,
            size: kept.remove("size")?.parse().ok()?,
            counters,
            settings: kept,
        };
        Some((metadata, was_complete && !was_imaged))
    }
}

/// The owner of a drive with damaged metadata, if that line is intact. This is enough to let the
/// owner know about the damage, and destroy the drive. No client can write such a line, because the
/// keys of clients begin differently and their values are one line each.
pub(super) fn owner_of_damaged(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut owners = text.lines().filter_map(|line| line.strip_prefix("user "));
    let owner = owners.next().filter(|owner| parse_uuid(owner).is_some())?;
    owners.next().is_none().then(|| owner.to_owned())
}

fn size(value: &str) -> Result<u64, Refusal> {
    match parse_size(value).map_err(|error| Refusal::usage(error.to_string()))? {
        0 => Err(Refusal::usage("Size must not be zero or negative")),
        // No file can be longer.
        size if i64::try_from(size).is_err() => Err(Refusal::usage("Size is too large")),
        size => Ok(size),
    }
}

fn readers(value: &str) -> Result<(), Refusal> {
    match value
        .split_whitespace()
        .find(|reader| uuid::Uuid::try_parse(reader).is_err())
    {
        Some(reader) => Err(Refusal::usage(format!("Reader {reader:?} is not a UUID"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openhosting_base::wire::Format;

    fn create(body: &str) -> Result<Metadata, Refusal> {
        let body = Properties::parse(Format::Text, body.as_bytes()).unwrap();
        Metadata::create("owner", &body, Ok)
    }

    #[test]
    fn stored_metadata_reads_back_and_garbled_metadata_does_not() {
        let id = DriveId::random();
        let metadata = create("name digest x\\ndigest\nsize 1k\ntags a b\nuser:x y").unwrap();
        let kept = metadata.print(id);
        assert_eq!(Metadata::parse(id, kept.as_bytes()), Some((metadata, true)));
        assert_eq!(Metadata::parse(DriveId::random(), kept.as_bytes()), None);
        for at in 0..kept.len() {
            let mut bad = kept.clone().into_bytes();
            bad[at] ^= 1;
            assert_eq!(Metadata::parse(id, &bad), None, "flipped at {at}");
            assert_eq!(Metadata::parse(id, &bad[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for body in [
            "",
            "name x",
            "size 0",
            "size x",
            "size -1",
            "size 1\ntier gold",
            "size 1\nclaim:type both",
            "size 1\nencryption:cipher rot13",
            "size 1\nreaders bob",
            "size 1\nsiez 2",
            "size 1\nuser: x",
            "size 1\nname a\u{7}b",
        ] {
            let error = create(body).unwrap_err().error();
            assert_eq!(error, openhosting_base::wire::ErrorType::Usage, "{body}");
        }
    }

    #[test]
    fn set_merges_and_an_empty_value_unsets() {
        let mut metadata = create("size 1\nname a\ntags x\nclaim:type shared").unwrap();
        let body = Properties::parse(Format::Text, b"tags\nclaim:type\nsize 2k").unwrap();
        metadata.merge(&body, Ok).unwrap();
        assert_eq!(metadata.size, 2048);
        assert_eq!(metadata.settings.get("name"), Some("a"));
        assert_eq!(metadata.settings.get("tags"), None);
        assert_eq!(metadata.settings.get("claim:type"), None);
    }
}
