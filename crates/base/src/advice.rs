//! Advice on an error, as data: text, with the remedies in it that are options of this library.
//!
//! [`Display`](fmt::Display) names them as a programmer knows them. A program words each as its
//! users do ([`Advice::worded`]), and one without users can act on them ([`Advice::remedies`]).

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::amounts::{counted, size};

/// What helps against an error, with what a program needs to do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Start over, without what an earlier run left: `JournalOptions::restart`.
    Restart,
    /// Send what changed since an earlier run: `JournalOptions::changed_ok`.
    ChangedOk,
    /// Put the journal elsewhere: `JournalOptions::path`.
    JournalElsewhere,
    /// Compare with the drive, and send only what differs: `UploadOptions::compare`. The drive, if
    /// it is known.
    CompareWithDrive(Option<Uuid>),
    /// Download the drive of the earlier run: `DownloadOptions::drive`.
    EarlierDrive(Uuid),
    /// Pass the options of the earlier run.
    SameOptions,
    /// State the size of an image that can only be read in order: `StreamOptions::size`.
    GiveSize,
    /// Accept a drive that is in use: `DownloadOptions::allow_live`.
    AllowLive,
    /// Overwrite the file: `Destination::File`.
    Force,
    /// Give up later: [`Patience`](https://docs.rs/openhosting) of at least this long.
    LongerOutage(Duration),
    /// Check the endpoint, or set another.
    CheckEndpoint,
    /// Connect to this endpoint.
    Endpoint(String),
    /// Check the credentials.
    CheckCredentials,
    /// List the drives.
    ListDrives,
    /// Trust another certificate: `ClientConfig::certificates`.
    TrustCertificate,
    /// Pass a certificate of this client: `ClientConfig::identity`.
    ClientCertificate,
    /// Name the readers: `all`, or users.
    NameReaders,
    /// Do the work after all shards: `PublishOptions::role`.
    Join,
    /// Remove what unfinished runs left: `PublishOptions::clean_up`.
    CleanUp,
    /// Have a publication write its receipt to a file: `PublishOptions::receipt`.
    WriteReceipt,
    /// Take this format, instead of the one that the content shows: `ImageOptions::format`.
    Format(&'static str),
    /// Take any file of the archive: `ImageOptions::disk`.
    ChooseDisk,
    /// Take this file of the archive: `ImageOptions::disk`.
    Disk(String),
    /// The option that selects a file of an archive: `ImageOptions::disk`.
    NameDisk,
    /// Allow a backing file: `ImageOptions::allow_backing`.
    AllowBacking,
    /// Check the image with a list of digests.
    ListOfDigests,
    /// Choose the directory of a server's drives.
    DataDirectory,
    /// Give a server its certificate and key.
    ServerCertificate,
    /// Let a server listen without TLS: `Config::insecure_listen`.
    InsecureListen,
    /// Read the image from a file, because a pipe or a stream can only be read in order.
    File,
    /// Upload this file instead.
    Upload(String),
    /// Upload this file of this archive.
    UploadDisk {
        /// The name in the archive.
        disk: String,
        /// The archive.
        archive: String,
    },
    /// Upload the output of the command before, as raw bytes.
    UploadOutput,
    /// Upload what comes on standard input, under this name.
    UploadStdin(Option<String>),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Restart => "`restart`",
            Self::ChangedOk => "`changed_ok`",
            Self::JournalElsewhere => "another journal `path`",
            Self::CompareWithDrive(_) => "`compare`",
            Self::EarlierDrive(id) => return write!(f, "the `drive` {id}"),
            Self::SameOptions => "options",
            Self::GiveSize => "`size`",
            Self::AllowLive => "`allow_live`",
            Self::Force => "`force`",
            Self::LongerOutage(outage) => {
                return write!(f, "a `Patience` of {} s", outage.as_secs());
            }
            Self::CheckEndpoint => "the endpoint",
            Self::Endpoint(endpoint) => return write!(f, "the endpoint {endpoint}"),
            Self::CheckCredentials => "the credentials",
            Self::ListDrives => "`Client::drives`",
            Self::TrustCertificate => "`certificates`",
            Self::ClientCertificate => "an `identity`",
            Self::NameReaders => "\"all\", or the UUIDs of users",
            Self::Join => "`Role::Join`",
            Self::CleanUp => "`clean_up`",
            Self::WriteReceipt => "`PublishOptions::receipt`",
            Self::Format(format) => return write!(f, "the `format` {format}"),
            Self::ChooseDisk => "the name of a `disk`",
            Self::Disk(name) => return write!(f, "the `disk` {name:?}"),
            Self::NameDisk => "`disk`",
            Self::AllowBacking => "`allow_backing`",
            Self::ListOfDigests => "the digests",
            Self::File => "a file",
            Self::Upload(path) => return write!(f, "the image {path:?}"),
            Self::UploadDisk { disk, archive } => {
                return write!(f, "the `disk` {disk:?} of {archive:?}");
            }
            Self::DataDirectory => "the path of a `Config`",
            Self::ServerCertificate => "a certificate and its key",
            Self::InsecureListen => "`insecure_listen`",
            Self::UploadOutput => "an upload of a raw stream",
            Self::UploadStdin(_) => "an upload of a stream",
        };
        f.write_str(name)
    }
}

/// A size in a text: exact for programs, and rounded for people ([`Advice::rounded`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// `5242880 bytes`, or `5.0 MiB`.
    Bytes(u64),
    /// `5242880`, or `5.0 MiB`.
    Number(u64),
}

/// A piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Remedy(Remedy),
    Amount(Amount),
}

/// What to do about an error, in a sentence or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice(Vec<Part>);

impl Advice {
    /// Adds text, a remedy, or other advice.
    pub fn push(&mut self, more: impl Into<Self>) {
        for part in more.into().0 {
            match (self.0.last_mut(), part) {
                (Some(Part::Text(text)), Part::Text(more)) => text.push_str(&more),
                (_, part) => self.0.push(part),
            }
        }
    }

    /// The remedies in it, in their order.
    pub fn remedies(&self) -> impl Iterator<Item = &Remedy> {
        self.0.iter().filter_map(|part| match part {
            Part::Remedy(remedy) => Some(remedy),
            Part::Text(_) | Part::Amount(_) => None,
        })
    }

    /// This advice without the remedies that `lacks` names. Such a remedy has to be the last of
    /// several: it goes together with the words before it, from the last ", or " or the last full
    /// stop on. One that is the only advice stays.
    #[must_use]
    pub fn without(&self, lacks: impl Fn(&Remedy) -> bool) -> Self {
        let mut kept: Vec<Part> = Vec::new();
        for part in &self.0 {
            let before = match (part, kept.last_mut()) {
                (Part::Remedy(remedy), Some(Part::Text(before))) if lacks(remedy) => before,
                _ => {
                    kept.push(part.clone());
                    continue;
                }
            };
            match before.rfind(", or ").max(before.rfind(". ")) {
                Some(at) => before.truncate(at),
                None => kept.push(part.clone()),
            }
        }
        Self(kept)
    }

    /// The advice as text, with each remedy in the words of the caller.
    pub fn worded(&self, word: impl Fn(&Remedy) -> String) -> String {
        let words = self.0.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Remedy(remedy) => word(remedy),
            Part::Amount(Amount::Bytes(bytes)) => counted(*bytes, "byte"),
            Part::Amount(Amount::Number(bytes)) => bytes.to_string(),
        });
        words.collect()
    }

    /// This advice with sizes for people, who read `5.0 MiB` and not the number of bytes.
    #[must_use]
    pub fn rounded(&self) -> Self {
        let mut rounded = Self::default();
        for part in &self.0 {
            match part {
                Part::Amount(Amount::Bytes(bytes) | Amount::Number(bytes)) => {
                    rounded.push(size(*bytes));
                }
                part => rounded.push(Self(vec![part.clone()])),
            }
        }
        rounded
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.worded(Remedy::to_string))
    }
}

impl From<String> for Advice {
    fn from(text: String) -> Self {
        Self(match text.is_empty() {
            true => Vec::new(),
            false => vec![Part::Text(text)],
        })
    }
}

impl From<&str> for Advice {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Remedy> for Advice {
    fn from(remedy: Remedy) -> Self {
        Self(vec![Part::Remedy(remedy)])
    }
}

impl From<Amount> for Advice {
    fn from(amount: Amount) -> Self {
        Self(vec![Part::Amount(amount)])
    }
}

impl From<&Self> for Advice {
    fn from(advice: &Self) -> Self {
        advice.clone()
    }
}

/// Advice of parts in a row: text, remedies, sizes, other advice.
#[macro_export]
macro_rules! advice {
    ($($part:expr),+ $(,)?) => {{
        let mut advice = $crate::advice::Advice::default();
        $(advice.push($part);)+
        advice
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_data_and_is_worded_by_the_caller() {
        let inner = crate::advice!["start over with ", Remedy::Restart];
        let advice = crate::advice!["Pass ", Remedy::GiveSize, ", or ", &inner, "."];
        assert_eq!(
            advice.to_string(),
            "Pass `size`, or start over with `restart`."
        );
        let worded = advice.worded(|remedy| format!("{remedy:?}"));
        assert_eq!(worded, "Pass GiveSize, or start over with Restart.");
        let remedies: Vec<_> = advice.remedies().collect();
        assert_eq!(remedies, [&Remedy::GiveSize, &Remedy::Restart]);
        assert!(Advice::from("").is_empty());
    }

    #[test]
    fn a_remedy_that_the_caller_lacks_goes_with_its_clause() {
        let lacks = |remedy: &Remedy| *remedy == Remedy::GiveSize;
        let advice = crate::advice!["Use ", Remedy::Restart, ", or set ", Remedy::GiveSize];
        assert_eq!(advice.without(lacks).to_string(), "Use `restart`");
        let only = crate::advice!["Set ", Remedy::GiveSize];
        assert_eq!(only.without(lacks), only);
        let first = "Stop it, or wait. Then use ";
        let advice = crate::advice![first, Remedy::Restart, ", or set ", Remedy::GiveSize];
        let rest = advice.without(lacks).to_string();
        assert_eq!(rest, "Stop it, or wait. Then use `restart`");
        assert_eq!(advice.without(|_| true).to_string(), "Stop it, or wait");
    }

    #[test]
    fn sizes_are_exact_for_programs_and_rounded_for_people() {
        let (is, asked) = (Amount::Bytes(5 << 20), Amount::Number(1 << 30));
        let advice = crate::advice!["It has ", is, " and not ", asked, ": ", Remedy::Restart];
        let exact = "It has 5242880 bytes and not 1073741824: `restart`";
        assert_eq!(advice.to_string(), exact);
        let rounded = "It has 5.0 MiB and not 1.0 GiB: `restart`";
        assert_eq!(advice.rounded().to_string(), rounded);
    }
}
