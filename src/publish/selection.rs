//! Finds the drive for a word: a UUID, the beginning of one, a name, or `NAME~N`.

use std::collections::BTreeMap;

use super::keys::{newest_first, publication};
use super::now_ms;
use crate::amounts::{age, size};
use crate::drive::{Condition, DriveInfo, LocalUploads, named};
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::quote;

/// Minimum characters for the beginning of a UUID.
const PREFIX_MIN: usize = 4;
/// Maximum number of drives that an error lists.
const CANDIDATES_MAX: usize = 10;
const LIST: &str = "List your drives with: openhosting ls";

/// How to treat a name that several published drives have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Several {
    /// Select the newest of them: for commands that change nothing.
    Newest,
    /// Refuse: for commands that would destroy data.
    Refuse,
}

/// Checks a name for a new drive.
///
/// # Errors
/// [`ErrorKind::Usage`] for a name in the form `NAME~N`, which means an earlier drive.
pub fn check_new_name(name: &str) -> Result<()> {
    if counted(name).is_none() {
        return Ok(());
    }
    let what = format!("A new drive cannot have the name {name:?}: NAME~N means an earlier drive");
    Err(Error::new(ErrorKind::Usage, what).hint_to("Choose a name without ~N at its end"))
}

/// Whether a word could refer to this drive.
pub fn is_candidate(drive: &DriveInfo, word: &str) -> bool {
    has_name(drive, word)
        || has_prefix(drive, word)
        || counted(word).is_some_and(|(name, _)| has_name(drive, name))
}

/// The drive that a word refers to, among all that [`is_candidate`] selects.
///
/// A name has priority over the beginning of a UUID. Other programs can create a drive with a name
/// such as `NAME~1`: if this is also a published drive of NAME, the word is refused.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Usage`] if there are several, with a list
/// of them.
pub fn select<'d>(drives: &'d [DriveInfo], word: &str, several: Several) -> Result<&'d DriveInfo> {
    select_knowing(&LocalUploads::default(), drives, word, several)
}

/// As [`select`]. The list of drives in an error has their conditions as far as the journals of
/// this machine show them too, like every other list.
pub(crate) fn select_knowing<'d>(
    uploads: &LocalUploads,
    drives: &'d [DriveInfo],
    word: &str,
    several: Several,
) -> Result<&'d DriveInfo> {
    let ambiguous = |what, hint: &str, drives: &[_]| ambiguous(uploads, what, hint, drives);
    let mut of_name: Vec<_> = named(drives, word).collect();
    let earlier =
        counted(word).and_then(|(name, index)| published_of(drives, name).get(index).copied());
    if let (false, Some(earlier)) = (of_name.is_empty(), earlier) {
        of_name.push(earlier);
        let what = format!("{word:?} is the name of a drive and also means an earlier one");
        return Err(ambiguous(what, "Use a UUID", &of_name));
    }
    match &*of_name {
        [] => {}
        [drive] => return Ok(drive),
        all => {
            let published = all.iter().filter(|drive| published_ms(drive).is_some());
            let published = published.count();
            if several == Several::Newest && published == all.len() {
                return sorted(all).first().copied().ok_or_else(|| none(word));
            }
            let what = format!("{} drives are named {word:?}", all.len());
            let nth = |n: usize| quote(&format!("{word}~{n}"));
            let hint = match published {
                0 => "Use a UUID".to_owned(),
                1 => format!("Use a UUID, or {} for the published one", nth(0)),
                _ => format!(
                    "Use a UUID, or {} for the newest published one, {} for the one before",
                    nth(0),
                    nth(1)
                ),
            };
            return Err(ambiguous(what, &hint, all));
        }
    }
    if let Some((name, index)) = counted(word) {
        let published = published_of(drives, name);
        if let Some(drive) = published.get(index) {
            return Ok(drive);
        }
        if !published.is_empty() {
            let what = format!(
                "There is no {word}: of the name {name:?}, {} published {}",
                published.len(),
                if published.len() == 1 {
                    "drive exists"
                } else {
                    "drives exist"
                },
            );
            return Err(Error::new(ErrorKind::NotFound, what).hint_to(LIST));
        }
    }
    let of_prefix: Vec<_> = drives
        .iter()
        .filter(|drive| has_prefix(drive, word))
        .collect();
    match &*of_prefix {
        [drive] => Ok(drive),
        [] => Err(none(word)),
        all => {
            let what = format!("{} drives have UUIDs that begin with {word}", all.len());
            Err(ambiguous(what, "Use more of the UUID", all))
        }
    }
}

fn none(word: &str) -> Error {
    let digits = word.bytes().filter(|byte| *byte != b'-').count();
    let what = match is_prefix(word) {
        // It was meant to be a whole one.
        true if digits >= 28 => format!(
            "No drive has the name {word:?}: as a UUID it has {digits} digits, and a UUID has 32"
        ),
        true => format!("No drive has the name {word:?}, nor a UUID that begins so"),
        false if word.len() < PREFIX_MIN && word.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            format!(
                "No drive has the name {word:?}, and of a UUID at least {PREFIX_MIN} digits are needed"
            )
        }
        false => format!("No drive has the name {word:?}"),
    };
    Error::new(ErrorKind::NotFound, what).hint_to(LIST)
}

/// Splits `NAME~N`.
fn counted(word: &str) -> Option<(&str, usize)> {
    let (name, index) = word.rsplit_once('~')?;
    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !name.is_empty()).then_some((name, index.parse().ok()?))
}

fn has_name(drive: &DriveInfo, name: &str) -> bool {
    drive.name() == Some(name)
}

fn is_prefix(word: &str) -> bool {
    word.len() >= PREFIX_MIN
        && word
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Whether its UUID begins with this, with or without hyphens.
fn has_prefix(drive: &DriveInfo, word: &str) -> bool {
    let id = drive.id.to_string();
    let word = word.to_ascii_lowercase();
    is_prefix(&word) && (id.starts_with(&word) || id.replace('-', "").starts_with(&word))
}

/// When it was published, if it was: 0 if the time is unknown.
fn published_ms(drive: &DriveInfo) -> Option<u64> {
    let publication = publication(drive).filter(|publication| publication.state == "published")?;
    Some(publication.published_ms.unwrap_or(0))
}

/// The published drives of this name, the newest first.
fn published_of<'d>(drives: &'d [DriveInfo], name: &str) -> Vec<&'d DriveInfo> {
    let published = named(drives, name).filter(|drive| published_ms(drive).is_some());
    sorted(&published.collect::<Vec<_>>())
}

/// These drives, the newest published first.
fn sorted<'d>(drives: &[&'d DriveInfo]) -> Vec<&'d DriveInfo> {
    let mut drives = drives.to_vec();
    drives.sort_by_key(|drive| newest_first(drive));
    drives
}

/// The error that lists the possible drives, the newest first.
fn ambiguous(uploads: &LocalUploads, what: String, hint: &str, drives: &[&DriveInfo]) -> Error {
    let mut lines = vec![format!("{hint}:")];
    let all = sorted(drives);
    let name = |drive: &DriveInfo| drive.name().unwrap_or_default().to_owned();
    let is_one_name = all.windows(2).all(|pair| name(pair[0]) == name(pair[1]));
    for drive in all.iter().take(CANDIDATES_MAX) {
        let mut line = format!("  {}  {}", drive.id, size(drive.size));
        let condition = Condition::of(drive, uploads);
        line += &format!("  {}", condition.words(&BTreeMap::new()));
        // The API reports no other time.
        if let Some(ms) = published_ms(drive).filter(|ms| *ms > 0) {
            line += &format!(" {} ago", age(ms, now_ms()));
        }
        if !is_one_name {
            line += &format!("  {:?}", name(drive));
        }
        lines.push(line);
    }
    if let Some(more) = all
        .len()
        .checked_sub(CANDIDATES_MAX)
        .filter(|more| *more > 0)
    {
        lines.push(format!("  and {more} more; all with: openhosting ls -l"));
    }
    Error::new(ErrorKind::Usage, what).hint_to(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::keys::tests::drive;
    use super::*;

    fn published(number: u8, at: u64) -> DriveInfo {
        let more =
            format!("name n\nuser:oh-publish t\nuser:oh-state published\nuser:oh-published {at}");
        drive(number, &more)
    }

    #[test]
    fn a_name_means_the_newest_published_drive_unless_it_would_be_changed() {
        let drives = [published(1, 5), published(2, 9), published(3, 7)];
        let id = |word| select(&drives, word, Several::Newest).unwrap().id;
        assert_eq!(id("n"), drives[1].id);
        assert_eq!(id("n~0"), drives[1].id);
        assert_eq!(id("n~1"), drives[2].id);
        assert_eq!(id("n~2"), drives[0].id);
        let error = |word, several| select(&drives, word, several).unwrap_err();
        assert_eq!(error("n~3", Several::Newest).kind(), ErrorKind::NotFound);
        let refused = error("n", Several::Refuse);
        assert_eq!(refused.to_string(), "3 drives are named \"n\"");
        let hint = refused.hint().unwrap().to_string();
        let lines: Vec<_> = hint.lines().collect();
        assert!(lines[1].contains(&drives[1].id.to_string()), "{hint}");
        assert!(
            lines[3].contains("published ") && lines[3].ends_with(" ago"),
            "{hint}"
        );
        assert_eq!(
            select(&drives, "n~2", Several::Refuse).unwrap().id,
            drives[0].id
        );
    }

    #[test]
    fn a_name_that_also_means_an_earlier_drive_is_refused() {
        let drives = [published(1, 5), published(2, 9), drive(3, "name n~1")];
        for several in [Several::Newest, Several::Refuse] {
            let error = select(&drives, "n~1", several).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            let hint = error.hint().unwrap().to_string();
            for drive in [&drives[0], &drives[2]] {
                assert!(hint.contains(&drive.id.to_string()), "{hint}");
            }
        }
        for name in ["n~1", "n~0", "a b~22"] {
            assert!(check_new_name(name).is_err(), "{name}");
        }
        for name in ["n~", "~1", "n~a", "n~1.img", "n"] {
            check_new_name(name).unwrap();
        }
    }

    #[test]
    fn a_plain_drive_of_the_name_makes_it_ambiguous() {
        let drives = [published(1, 5), drive(2, "name n"), drive(3, "name x~1")];
        let error = select(&drives, "n", Several::Newest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let hint = |drives: &[DriveInfo]| {
            let error = select(drives, "n", Several::Refuse).unwrap_err();
            error.hint().unwrap().to_string()
        };
        let hinted = "Use a UUID, or 'n~0' for the published one:\n";
        assert!(hint(&drives).starts_with(hinted), "{}", hint(&drives));
        assert_eq!(
            select(&drives, "n~0", Several::Refuse).unwrap().id,
            drives[0].id
        );
        // Without a published drive, there is no n~0.
        let plain = [drive(2, "name n"), drive(3, "name n")];
        assert!(
            hint(&plain).starts_with("Use a UUID:\n"),
            "{}",
            hint(&plain)
        );
        assert!(select(&plain, "n~0", Several::Refuse).is_err());
        let two = [published(1, 5), published(3, 7), drive(2, "name n")];
        let hinted =
            "Use a UUID, or 'n~0' for the newest published one, 'n~1' for the one before:\n";
        assert!(hint(&two).starts_with(hinted), "{}", hint(&two));
        // A name has priority.
        assert_eq!(
            select(&drives, "x~1", Several::Refuse).unwrap().id,
            drives[2].id
        );
    }

    #[test]
    fn a_unique_beginning_of_a_uuid_is_accepted() {
        let drives = [
            drive(0x11, "name a"),
            drive(0x22, "name 1111"),
            drive(0x22, "name b"),
        ];
        let id = |word| select(&drives, word, Several::Refuse).map(|drive| drive.id);
        assert_eq!(id("11111").unwrap(), drives[0].id);
        assert_eq!(id("11111111-11").unwrap(), drives[0].id);
        assert_eq!(id("1111111111").unwrap(), drives[0].id);
        assert_eq!(id("1111").unwrap(), drives[1].id);
        assert_eq!(id("2222").unwrap_err().kind(), ErrorKind::Usage);
        for none in ["111", "11112", "", "~1", "n~"] {
            assert_eq!(id(none).unwrap_err().kind(), ErrorKind::NotFound, "{none}");
        }
    }
}
