//! A drive as the user refers to it: by its UUID, by the first digits of that, or by its name.

use std::str::FromStr;

use super::drives::{drives_that, look_at_drive};
use super::{drive_state, usage};
use crate::advice::Remedy;
use crate::api::Client;
use crate::drive::{DriveId, DriveInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::publish::selection::{Several, is_candidate, select, select_knowing};
use crate::transfer::Patience;
use openhosting_base::advice;

/// A reference to a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DriveReference {
    /// The drive with this UUID. A word in the form of a UUID is always taken as one.
    Id(DriveId),
    /// A word that must be looked up at the endpoint: see [`select`].
    Word(String),
}

impl FromStr for DriveReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        match is_broken_uuid(text) {
            true if let Some(odd) = text.chars().find(|c| !c.is_ascii_hexdigit() && *c != '-') => {
                Err(format!(
                    "not a UUID: {odd:?} is no hexadecimal digit. List your drives with: openhosting ls"
                ))
            }
            true => Err(format!(
                "not a UUID: it has {} digits, and a UUID has 32 in groups of 8, 4, 4, 4 and 12. List your drives with: openhosting ls",
                text.bytes().filter(|byte| *byte != b'-').count()
            )),
            false => Ok(Self::Word(text.to_owned())),
        }
    }
}

/// Whether the word looks like a UUID with a mistake: neither a complete one nor the beginning of
/// one. Such a word is not looked up as a name, so that the user learns of the mistake.
fn is_broken_uuid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    let digits: usize = groups.iter().map(|group| group.len()).sum();
    // Up to four digits too few or too many, and letters that look like digits.
    let is_meant = groups.len() == 5
        && (28..=36).contains(&digits)
        && groups
            .concat()
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'o' | b'O' | b'l' | b'I'));
    let is_hex = groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit());
    let begins = [8, 4, 4, 4]
        .iter()
        .zip(&groups)
        .all(|(len, group)| group.len() == *len);
    is_meant && !(is_hex && begins && digits < 32)
}

impl DriveReference {
    /// The UUID, if it is known without asking the endpoint.
    pub(super) fn id(&self) -> Option<DriveId> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Word(_) => None,
        }
    }

    /// The UUID, which is looked up at the endpoint if necessary.
    ///
    /// # Errors
    /// The errors of the endpoint, and those of [`select`].
    pub(super) async fn find(
        &self,
        client: &Client,
        patience: &Patience,
        several: Several,
    ) -> Result<DriveId> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Word(word) => {
                // Drives with similar names are for the advice if no other one is meant.
                let is_wanted =
                    |drive: &DriveInfo| is_candidate(drive, word) || is_similar(drive, word);
                let drives = drives_that(client, patience, is_wanted).await?;
                let (candidates, similar): (Vec<_>, Vec<_>) = drives
                    .into_iter()
                    .partition(|drive| is_candidate(drive, word));
                let selected = match select(&candidates, word, several) {
                    // Only the list of drives in this error needs what the journals say.
                    Err(error) if error.kind() == ErrorKind::Usage => {
                        select_knowing(&drive_state::look().await?, &candidates, word, several)
                    }
                    selected => selected,
                };
                selected
                    .map(|drive| drive.id)
                    .map_err(|error| match error.kind() {
                        ErrorKind::NotFound => with_nearest(error, &similar, word),
                        _ => error,
                    })
            }
        }
    }

    /// All that the endpoint reports about the drive.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub(super) async fn look(&self, client: &Client, patience: &Patience) -> Result<DriveInfo> {
        let id = self.find(client, patience, Several::Newest).await?;
        look_at_drive(client, id, patience).await
    }
}

/// Whether the word may be the drive's name, mistyped.
fn is_similar(drive: &DriveInfo, word: &str) -> bool {
    usage::nearest(word, drive.name()).is_some()
}

/// Adds the name of the drive that was probably meant.
fn with_nearest(error: Error, similar: &[DriveInfo], word: &str) -> Error {
    match usage::nearest(word, similar.iter().filter_map(DriveInfo::name)) {
        Some(name) => error.hint_to(advice![
            format!("Did you mean {name:?}? List your drives with: "),
            Remedy::ListDrives,
        ]),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_of_the_wrong_length_is_not_a_name() {
        for good in [
            "nightly",
            "0012e24a",
            "0012e24a-6eae-4279-9912-3432f698cec",
            "2026-11-29-01-02",
            "a-b-c-d-e",
        ] {
            assert_eq!(good.parse(), Ok(DriveReference::Word(good.into())));
        }
        for bad in [
            "0012e24-6eae-4279-9912-3432f698cec8",
            "0012e24a-6eae-4279-9912-3432f698cec8a",
            "0012e24a-6eae-4279-9912-3432f698cecO",
            "0012e24a-6eae-429-9912-3432f698cec8",
        ] {
            assert!(bad.parse::<DriveReference>().is_err(), "{bad}");
        }
    }
}
