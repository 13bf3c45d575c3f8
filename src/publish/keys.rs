//! The `user:` keys of a drive that is published, or is about to be. They contain everything that
//! one run passes on to the next, or to another machine.
//!
//! The names of keys and the words of states must not change: drives that earlier versions
//! published have them, other versions look for them, and other programs may do so too
//! (docs/user/publishing.md). New keys can be added, because programs ignore keys that they do not
//! know. A new state hides a drive from older versions, see [`Mark::of`].
//!
//! The key of the state is `STATE_KEY` in `base::drive`, because an upload has to end a publication,
//! and marks its own drives with it. Its words, `uploading` and `ready`, are of no publication.
//! `user:oh-token` (`TOKEN_KEY` of the engine) is not a key of publications either: each drive has it,
//! so that it is found again if the answer to its creation is lost.

use std::cmp::Reverse;

use crate::digest::Digest;
use crate::drive::{DriveId, DriveInfo, PUBLISHED, named};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Properties;

/// The token of everything that is published under one name.
pub(crate) const PUBLISH_KEY: &str = "user:oh-publish";
/// The state of the drive: see `DriveState`.
pub(crate) use crate::drive::STATE_KEY;
/// The root of the content that the drive will have.
pub(crate) const GOAL_KEY: &str = "user:oh-goal";
/// Distinguishes the image from others while its content is unknown: a digest of its fingerprint.
pub(crate) const SOURCE_KEY: &str = "user:oh-source";
/// What an unfinished drive holds where no byte of its goal was written yet: see `Holds`. It stays
/// on a published drive, and nothing reads it there.
pub(crate) const HOLDS_KEY: &str = "user:oh-holds";
/// Number of shards that work on it.
pub(crate) const SHARDS_KEY: &str = "user:oh-shards";
/// The root of its content: only on published drives.
pub(crate) const DIGEST_KEY: &str = "user:oh-digest";
/// When it was published, in milliseconds since 1970.
pub(crate) const PUBLISHED_KEY: &str = "user:oh-published";
/// Its write counters when it was published, `BYTES REQUESTS`.
pub(crate) const WRITES_KEY: &str = "user:oh-writes";

/// The key of a completed shard, from 1 on; its value is the root.
pub(super) fn shard_key(index: u32, count: u32) -> String {
    format!("user:oh-shard-{index}-of-{count}")
}

/// The state of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DriveState {
    /// It was created, and nothing was written to it.
    Making,
    /// The cloud copies another drive into it, or was about to.
    Cloning,
    /// What it `Holds` is fixed, and bytes of its goal are being written.
    Writing,
    /// It holds its goal, which was verified, and has its name.
    Published,
}

impl DriveState {
    /// Every state with its word. A state that is missing here would be printed as an empty word.
    const ALL: [(Self, &str); 4] = [
        (Self::Making, "making"),
        (Self::Cloning, "cloning"),
        (Self::Writing, "writing"),
        (Self::Published, PUBLISHED),
    ];

    pub(super) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(state, _)| *state == self);
        found.map_or("", |(_, name)| name)
    }
}

/// What an unfinished drive holds where no byte of its goal was written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Zeros, which was proven when it was created.
    Zeros,
    /// What this drive held when it was copied.
    Base(DriveId),
    /// Unknown.
    Unknown,
}

impl Holds {
    fn parse(text: &str) -> Self {
        match (text, text.strip_prefix("base ")) {
            ("zeros", _) => Self::Zeros,
            (_, Some(id)) => id.parse().map_or(Self::Unknown, Self::Base),
            _ => Self::Unknown,
        }
    }

    pub(super) fn print(self) -> String {
        match self {
            Self::Zeros => "zeros".into(),
            Self::Base(id) => format!("base {id}"),
            Self::Unknown => "unknown".into(),
        }
    }
}

/// The information in the keys of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) token: String,
    pub(super) state: DriveState,
    /// `None` while the image is being read. A malformed value is `None` too: the drive then has
    /// to match by `source`, so without that key no run resumes it.
    pub(super) goal: Option<Digest>,
    pub(super) source: Option<String>,
    pub(super) holds: Holds,
    pub(super) shards: Option<u32>,
    /// Only for a published drive.
    pub(super) digest: Option<Digest>,
    /// In milliseconds since 1970; 0 if the key is missing or malformed, so that the drive counts
    /// as the oldest.
    pub(super) published: u64,
    /// Its counters when it was published.
    pub(super) writes: Option<(u64, u64)>,
}

impl Mark {
    /// `None` for a drive that has no token or no state, or a state that this program does not know,
    /// which a newer version may have set. Such a drive is left alone. Unknown keys are ignored,
    /// and a malformed value counts as a missing one.
    pub(super) fn of(drive: &DriveInfo) -> Option<Self> {
        let value = |key| drive.properties.get(key).map(str::trim);
        let state = value(STATE_KEY)?;
        let (state, _) = DriveState::ALL.iter().find(|(_, name)| *name == state)?;
        let writes = value(WRITES_KEY).and_then(|text| {
            let (bytes, requests) = text.split_once(' ')?;
            Some((bytes.parse().ok()?, requests.parse().ok()?))
        });
        let digest = value(DIGEST_KEY).and_then(|text| text.parse().ok());
        Some(Self {
            token: value(PUBLISH_KEY)?.to_owned(),
            state: *state,
            goal: value(GOAL_KEY).and_then(|text| text.parse().ok()),
            source: value(SOURCE_KEY).map(str::to_owned),
            holds: value(HOLDS_KEY).map_or(Holds::Unknown, Holds::parse),
            shards: value(SHARDS_KEY).and_then(|text| text.parse().ok()),
            digest: digest.filter(|_| *state == DriveState::Published),
            published: value(PUBLISHED_KEY)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            writes,
        })
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.state != DriveState::Published
    }
}

/// What the keys of a drive say about its publication, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Identifies the publication.
    pub token: String,
    /// `making`, `cloning`, `writing` or `published`; only the last is finished.
    pub state: &'static str,
    /// The root of its content; for an unfinished drive, of the content that it will have.
    pub root: Option<Digest>,
    /// When it was finished, in milliseconds since 1970.
    pub published_ms: Option<u64>,
}

/// What the keys of a drive say about its publication; `None` if it is not part of one.
pub(crate) fn publication(drive: &DriveInfo) -> Option<Publication> {
    let mark = Mark::of(drive)?;
    let is_finished = !mark.is_unfinished();
    Some(Publication {
        state: mark.state.name(),
        root: if is_finished { mark.digest } else { mark.goal },
        published_ms: Some(mark.published).filter(|ms| is_finished && *ms > 0),
        token: mark.token,
    })
}

/// The place of a drive among those of its name: the newest published one is the first, drives that
/// were not published follow. Where the times are the same, the UUID decides.
///
/// Everything that selects or lists drives of one name uses this order, so that `NAME~1` is the
/// second line of the list.
pub(crate) fn newest_first(drive: &DriveInfo) -> (Reverse<Option<u64>>, DriveId) {
    let mark = Mark::of(drive).filter(|mark| !mark.is_unfinished());
    (Reverse(mark.map(|mark| mark.published)), drive.id)
}

/// Keys and values to set.
pub(super) fn properties<'k>(
    pairs: impl IntoIterator<Item = (&'k str, String)>,
) -> Result<Properties> {
    Properties::of(pairs)
        .map_err(|cause| Error::new(ErrorKind::Usage, "Cannot describe the drive").because(cause))
}

/// The drives of a publication, with the information in their keys.
pub(super) fn of_token<'d>(
    drives: impl IntoIterator<Item = &'d DriveInfo>,
    token: &str,
) -> impl Iterator<Item = (Mark, &'d DriveInfo)> {
    drives
        .into_iter()
        .filter_map(|drive| Some((Mark::of(drive)?, drive)))
        .filter(move |(mark, _)| mark.token == token)
}

/// The published drives to destroy so that only the newest `keep` remain, including `new` in any
/// case. Only drives of this name and token that nothing claims are destroyed.
pub(super) fn superseded<'a>(
    drives: &'a [DriveInfo],
    name: &str,
    token: &str,
    new: DriveId,
    keep: u32,
) -> Vec<&'a DriveInfo> {
    let others = named(drives, name).filter(|drive| drive.id != new);
    let mut ours: Vec<&DriveInfo> = of_token(others, token)
        .filter(|(mark, _)| !mark.is_unfinished())
        .map(|(_, drive)| drive)
        .collect();
    ours.sort_by_key(|drive| newest_first(drive));
    let others = usize::try_from(keep.saturating_sub(1)).unwrap_or(usize::MAX);
    let old = ours.into_iter().skip(others);
    old.filter(|drive| is_idle(drive)).collect()
}

/// Whether nothing uses a drive.
pub(super) fn is_idle(drive: &DriveInfo) -> bool {
    drive.claimed().is_none() && drive.imaging().is_none()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::Format;

    pub(in crate::publish) fn drive(number: u8, more: &str) -> DriveInfo {
        let id = DriveId::from_bytes([number; 16]);
        let text = format!("drive {id}\nsize 5\n{more}\n");
        let properties = Properties::parse(Format::Text, text.as_bytes()).unwrap();
        DriveInfo::from_properties(properties).unwrap()
    }

    fn published(number: u8, at: u64, more: &str) -> DriveInfo {
        let more = format!(
            "name n\nuser:oh-publish t\nuser:oh-state published\nuser:oh-published {at}\n{more}"
        );
        drive(number, &more)
    }

    #[test]
    fn a_drive_without_our_keys_has_no_mark() {
        for more in [
            "name n",
            "user:oh-publish t",
            "user:oh-state published",
            "user:oh-publish t\nuser:oh-state strange",
        ] {
            assert_eq!(Mark::of(&drive(1, more)), None, "{more}");
        }
    }

    #[test]
    fn the_digest_of_an_unfinished_drive_is_ignored() {
        let root = Digest::of(b"x");
        for (state, expected) in [("writing", None), ("published", Some(root))] {
            let more = format!("user:oh-publish t\nuser:oh-state {state}\nuser:oh-digest {root}");
            assert_eq!(Mark::of(&drive(1, &more)).unwrap().digest, expected);
        }
    }

    #[test]
    fn only_a_finished_drive_has_a_root() {
        let root = Digest::of(b"x");
        let of = |state: &str| {
            let more = format!(
                "user:oh-publish t\nuser:oh-state {state}\nuser:oh-digest {root}\nuser:oh-published 7"
            );
            publication(&drive(1, &more)).map(|found| (found.state, found.root, found.published_ms))
        };
        assert_eq!(of("published"), Some(("published", Some(root), Some(7))));
        assert_eq!(of("writing"), Some(("writing", None, None)));
        assert_eq!(of("strange"), None);
        assert_eq!(publication(&drive(1, "name n")), None);
    }

    #[test]
    fn the_key_about_what_a_drive_holds_reads_back() {
        let id = DriveId::random();
        for holds in [Holds::Zeros, Holds::Base(id), Holds::Unknown] {
            assert_eq!(Holds::parse(&holds.print()), holds);
        }
        assert_eq!(Holds::parse("base ../x"), Holds::Unknown);
    }

    #[test]
    fn keep_removes_the_oldest_but_none_that_is_claimed_or_foreign() {
        let new = DriveId::from_bytes([9; 16]);
        let drives = [
            published(9, 1, ""),
            published(1, 50, ""),
            published(2, 40, ""),
            published(3, 30, "claimed host:guest:x:ide"),
            published(4, 20, "imaging 5%"),
            published(5, 10, ""),
            drive(6, "name n\nuser:oh-publish t\nuser:oh-state writing"),
            drive(7, "name n\nuser:oh-publish other\nuser:oh-state published"),
            drive(8, "name m\nuser:oh-publish t\nuser:oh-state published"),
            drive(10, "name n"),
        ];
        let gone = |keep| -> Vec<u8> {
            let gone = superseded(&drives, "n", "t", new, keep);
            gone.iter().map(|drive| drive.id.to_bytes()[0]).collect()
        };
        // The new one counts as the newest, whatever the clocks said.
        assert_eq!(gone(1), [1, 2, 5]);
        assert_eq!(gone(2), [2, 5]);
        assert_eq!(gone(3), [5]);
        assert_eq!(gone(6), [0_u8; 0]);
    }
}
