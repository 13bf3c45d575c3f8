//! The base of a delta: which drive it is, its content, and the copy of it that the cloud makes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::{Holds, Mark, newest_first};
use super::receipts::{read_receipt, receipt_file};
use super::selection::{Several, select};
use super::{
    Base, Copied, LOOK_EVERY_MAX, LOOK_EVERY_MIN, Publisher, Work, if_there, is_broken, pick,
};
use crate::content::{Content, set_of};
use crate::drive::{Condition, DriveId, DriveInfo, LocalUploads, named};
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{Failure, Transient};
use crate::monitor::{Event, Phase};
use crate::transfer::{blocking, counters};

/// Blocks of a copy to compare with the receipt of its base. The counters already show that the
/// base is unchanged, so this is for a cloud that copies wrongly.
const BASE_BLOCKS: u64 = 100;
/// The number of consecutive queries without the key of an imaging before the imaging counts as
/// ended: two clients saw the key missing for a moment while it was still running
/// (docs/dev/reference.md, 5.2).
const LOOKS_WITHOUT: u32 = 3;

/// What the options select as the base.
pub(super) enum Candidate {
    /// Nothing.
    None,
    /// This drive, with its content if known.
    Fit(DriveId, Option<Arc<Content>>),
    /// A drive that cannot be the base, for this reason.
    Unfit(String),
}

/// The result of requesting a copy.
enum Cloned {
    Yes,
    /// It was refused: the drive is unchanged.
    Refused(Error),
    /// It began, and something went wrong.
    Failed(String),
}

impl Publisher<'_> {
    /// The base, with its content if known. `None` if there is no suitable one, which is reported.
    pub(super) async fn base(
        &mut self,
        drives: &[DriveInfo],
    ) -> Result<Option<(DriveId, Option<Arc<Content>>)>> {
        Ok(match self.look_at_base(drives).await? {
            Candidate::None => None,
            Candidate::Fit(id, content) => {
                if content.is_none() {
                    self.monitor.warn(format!(
                        "There is no receipt of base {id}: its copy is compared with the image"
                    ));
                }
                Some((id, content))
            }
            Candidate::Unfit(why) => {
                self.monitor.warn(format!("{why}: everything is sent"));
                None
            }
        })
    }

    /// Looks at the drive that the options select as the base.
    pub(super) async fn look_at_base(&mut self, drives: &[DriveInfo]) -> Result<Candidate> {
        let drive = match &self.options.base {
            Base::None => return Ok(Candidate::None),
            Base::Auto => match newest(drives, &self.options.name) {
                Some(drive) => drive.clone(),
                None => return Ok(Candidate::None),
            },
            Base::Name(name) => by_name(drives, name)?.clone(),
            Base::Drive(id) => {
                let id = *id;
                // A drive of another user is suitable if it is readable.
                self.info(id).await?
            }
        };
        let id = drive.id;
        let Some(full) = if_there(self.info_full(id).await)? else {
            return Ok(Candidate::Unfit(format!("Base {id} is gone")));
        };
        if let Some(why) = unfit(&full, self.content.size()) {
            return Ok(Candidate::Unfit(format!("Base {id} {why}")));
        }
        let mark = Mark::of(&full).filter(|mark| !mark.is_unfinished());
        if let Some(then) = mark.and_then(|mark| mark.writes)
            && counters(&full).is_some_and(|now| now != then)
        {
            return Ok(Candidate::Unfit(format!(
                "Base {id} was written to since it was published, so its receipt is not true"
            )));
        }
        Ok(Candidate::Fit(id, self.base_content(id).await))
    }

    /// The content of the base of an unfinished drive, if known.
    pub(super) async fn content_under(&mut self, holds: Holds) -> Option<Arc<Content>> {
        match holds {
            Holds::Base(id) => self.base_content(id).await,
            Holds::Zeros | Holds::Unknown => None,
        }
    }

    /// The content of a published drive, from the receipts on this machine. The digest on the drive
    /// shows which receipt is right.
    async fn base_content(&mut self, id: DriveId) -> Option<Arc<Content>> {
        let mark = Mark::of(&self.info(id).await.ok()?)?;
        let root = mark.digest?;
        let own = self.options.receipts.as_deref();
        let files = [
            self.options.receipt.clone(),
            own.map(|directory| receipt_file(directory, id)),
        ];
        let found = blocking(move || {
            let receipts = files.into_iter().flatten().filter(|file| file.exists());
            let mut receipts = receipts.filter_map(|file| read_receipt(&file).ok());
            let is_of = |content: &Content| content.root() == root;
            Ok(receipts
                .find(|receipt| receipt.drive == id && is_of(&receipt.content))
                .map(|receipt| receipt.content))
        });
        found.await.ok().flatten().map(Arc::new)
    }

    /// Has the cloud copy the base into the drive, which is new or of an earlier run. If that is
    /// not possible, or the copy does not match the receipt, everything is sent.
    pub(super) async fn clone_base(
        &mut self,
        drive: DriveId,
        base: DriveId,
        content: Option<Arc<Content>>,
        is_new: bool,
    ) -> Result<Work> {
        if !is_new {
            // An earlier run may have begun it.
            self.wait_for_imaging(drive).await?;
        }
        let copied = self.copy_base(drive, base, content).await?;
        self.begin_on(drive, copied, is_new).await
    }

    /// Records that from now on bytes of the image are written, over a copy or not.
    pub(super) async fn begin_on(
        &mut self,
        drive: DriveId,
        copied: Copied,
        is_new: bool,
    ) -> Result<Work> {
        let (holds, content) = match copied {
            Copied::Base(base, content) => (Holds::Base(base), content),
            Copied::Nothing if is_new => return self.make_ready(drive).await,
            // An earlier run may have had its copy, and the base may be gone by now.
            Copied::Nothing | Copied::Unknown => (Holds::Unknown, None),
        };
        self.begin_writing(drive, holds, true, content).await
    }

    /// Has the cloud copy the base into a drive, and checks a sample of the copy.
    pub(super) async fn copy_base(
        &mut self,
        drive: DriveId,
        base: DriveId,
        content: Option<Arc<Content>>,
    ) -> Result<Copied> {
        match self.copy(drive, base).await? {
            Cloned::Yes => {}
            Cloned::Refused(error) => {
                self.monitor
                    .warn(format!("{}: everything is sent", error.chain()));
                return Ok(Copied::Nothing);
            }
            Cloned::Failed(why) => {
                self.monitor
                    .warn(format!("The copy of base {base} {why}: everything is sent"));
                return Ok(Copied::Unknown);
            }
        }
        if let Some(content) = &content {
            let all = set_of(0..content.block_plan().count());
            let sample = pick(&all, BASE_BLOCKS, &mut self.rng);
            if !self.inspect(drive, content, sample).await?.is_empty() {
                self.monitor.warn(format!(
                    "Base {base} does not match its receipt: everything is sent"
                ));
                return Ok(Copied::Unknown);
            }
        }
        Ok(Copied::Base(base, content))
    }

    async fn copy(&mut self, drive: DriveId, base: DriveId) -> Result<Cloned> {
        let client = self.client;
        let what = format!("The cloud does not copy base {base}");
        let asked = self
            .call(&what, || async move {
                match client.image(drive, base).await {
                    Err(failure) if is_final(&failure) => Ok(Some(failure)),
                    answer => answer.map(|()| None),
                }
            })
            .await;
        match asked {
            Ok(None) => {}
            Ok(Some(refused)) => return Ok(Cloned::Refused(refused.into_error(&what))),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "image");
                // It is unknown whether the copy began.
                self.wait_for_imaging(drive).await?;
                return Ok(Cloned::Failed("failed".into()));
            }
        }
        let after = self.wait_for_imaging(drive).await?;
        if is_broken(&after) {
            return Ok(Cloned::Failed("failed".into()));
        }
        Ok(Cloned::Yes)
    }

    /// Waits until nothing is being copied into a drive, and returns its state then.
    pub(super) async fn wait_for_imaging(&mut self, drive: DriveId) -> Result<DriveInfo> {
        let began = Instant::now();
        let (mut without, mut reported) = (0, None);
        let mut moved = Instant::now();
        loop {
            let info = self.info_full(drive).await?;
            let Some(progress) = info.imaging().map(str::to_owned) else {
                without += 1;
                if without >= LOOKS_WITHOUT {
                    return Ok(info);
                }
                self.pause(Duration::from_millis(100)).await?;
                continue;
            };
            without = 0;
            if reported.as_ref() != Some(&progress) {
                moved = Instant::now();
                if reported.is_none() {
                    self.monitor.notice("The cloud copies the base");
                    self.monitor.event(&Event::Phase {
                        phase: Phase::Copy,
                        bytes: Some(info.size),
                    });
                }
                // It is a percentage, with or without the sign, or a word.
                if let Ok(percent) = progress.trim_end_matches('%').parse::<f64>() {
                    let share = (percent / 100.0).clamp(0.0, 1.0);
                    self.monitor.event(&Event::PhaseProgress {
                        done_bytes: (info.size as f64 * share) as u64,
                    });
                }
                reported = Some(progress);
            } else if moved.elapsed() >= self.options.patience.max_outage() {
                let what = format!("The copy into drive {drive} makes no progress");
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            // This way, the end is noticed at most a tenth of the time too late.
            let every = began.elapsed() / 10;
            self.pause(every.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX))
                .await?;
        }
    }
}

/// Whether the answer to the request for a copy says that there will be none: then everything is
/// sent at once. What may be different the next time is repeated, as any request.
fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal)
        if Transient::of(refusal.status) != Some(Transient::Pace) && !failure.is_ambiguous())
}

/// Why a drive cannot be the base for a disk of `size` bytes; `None` if it can.
fn unfit(drive: &DriveInfo, size: u64) -> Option<&'static str> {
    const COPYING: &str = "is being copied into, or was not copied into in full";
    if drive.size > size {
        return Some("is larger than the image");
    }
    match Condition::of(drive, &LocalUploads::default()) {
        Condition::InUse(_) => Some("is in use"),
        Condition::Copying(_) => Some(COPYING),
        _ if is_broken(drive) => Some(COPYING),
        Condition::CheckFailed => Some("must not be used: the check of an upload to it failed"),
        Condition::Unfinished => Some("is not finished"),
        _ => None,
    }
}

/// The newest drive that was published under a name.
pub(super) fn newest<'d>(drives: &'d [DriveInfo], name: &str) -> Option<&'d DriveInfo> {
    let has_digest = |drive: &&DriveInfo| Mark::of(drive).is_some_and(|mark| mark.digest.is_some());
    let published = named(drives, name).filter(has_digest);
    published.min_by_key(|drive| newest_first(drive))
}

/// The newest drive that was published under a name, or the only one with that name.
fn by_name<'d>(drives: &'d [DriveInfo], name: &str) -> Result<&'d DriveInfo> {
    if let Some(drive) = newest(drives, name) {
        return Ok(drive);
    }
    select(drives, name, Several::Newest)
}

#[cfg(test)]
mod tests {
    use super::super::keys::tests::drive;
    use super::*;

    fn published(number: u8, at: u64) -> DriveInfo {
        let root = crate::digest::Digest::of(b"x");
        let more = format!(
            "name n\nuser:oh-publish t\nuser:oh-state published\nuser:oh-published {at}\nuser:oh-digest {root}"
        );
        drive(number, &more)
    }

    #[test]
    fn a_base_name_means_the_newest_published_or_only_drive() {
        let drives = [
            published(1, 5),
            published(2, 7),
            drive(3, "name n"),
            drive(4, "name m"),
        ];
        assert_eq!(by_name(&drives, "n").unwrap().id, drives[1].id);
        assert_eq!(by_name(&drives, "m").unwrap().id, drives[3].id);
        let twice = [drive(1, "name m"), drive(2, "name m")];
        let error = by_name(&twice, "m").unwrap_err();
        assert!(
            error
                .hint()
                .unwrap()
                .to_string()
                .contains(&twice[1].id.to_string())
        );
        assert_eq!(
            by_name(&twice, "x").unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn drives_in_use_or_larger_or_unfinished_are_not_used_as_base() {
        assert_eq!(unfit(&published(1, 5), 5), None);
        assert!(unfit(&published(1, 5), 4).is_some());
        for more in [
            "claimed x",
            "imaging true",
            "status inactive",
            "user:oh-publish t\nuser:oh-state writing",
            "user:oh-state uploading",
        ] {
            assert!(unfit(&drive(1, more), 5).is_some(), "{more}");
        }
    }
}
