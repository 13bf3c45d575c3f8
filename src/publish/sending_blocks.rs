//! Sends what a drive does not hold yet.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rangemap::RangeSet;

use super::keys::Holds;
use super::{Publisher, Role, Work};
use crate::codec::{Compression, Level};
use crate::content::{CONTENT_CHUNK_BYTES, blocks_in, set_of};
use crate::digest::Digest;
use crate::drive::DriveId;
use crate::error::Result;
use crate::image::Image;
use crate::transfer::{
    Ended, JournalOptions, Selection, Target, UploadOptions, Verify, blocking, upload,
};

/// The compression level of a delta, unless the user chose one: that of gzip.
const DELTA_LEVEL: Option<Level> = Level::new(6);

impl Publisher<'_> {
    /// Sends the parts of these chunks that the drive does not hold. Returns the journal (to be
    /// dropped when everything was reported), the bytes that were sent, and the blocks.
    pub(super) async fn fill(
        &mut self,
        image: Image,
        work: &Work,
        chunks: Range<u64>,
    ) -> Result<(Ended, u64, RangeSet<u64>)> {
        let count = self.content.block_plan().count();
        let blocks = blocks_in(&chunks, count);
        let all = set_of(chunks);
        let journal = self.journal(work.drive);
        let path = journal.clone();
        let is_journaled = blocking(move || Ok(path.is_some_and(|path| path.exists()))).await?;
        let is_shard = matches!(self.options.role, Role::Shard(_));
        let content = Arc::clone(&self.content);
        // Whatever was written to it are bytes of this content, by whichever run. So it is always
        // correct to write everything that differs from its base or from zeros. Comparing first is
        // better if that may be much.
        let (target, selection, restart, written) = match (work.holds, &work.base) {
            (Holds::Zeros, _) if work.is_new || is_journaled || is_shard => {
                let written = some_of(&self.data_blocks(), &blocks);
                let selection = Selection::chunks(content, all);
                (Target::Made(work.drive), selection, false, written)
            }
            (Holds::Base(_), Some(base)) => {
                let differing = some_of(&content.differing(base), &blocks);
                let selection = Selection::blocks(content, differing.clone());
                (Target::Existing(work.drive), selection, false, differing)
            }
            (Holds::Unknown, _) if work.is_new => {
                let selection = Selection::chunks(content, all);
                (
                    Target::Existing(work.drive),
                    selection,
                    false,
                    set_of(blocks),
                )
            }
            _ => {
                let blocks = set_of(blocks);
                let differing = self.compare(work.drive, &content, blocks, true).await?;
                let selection = Selection::blocks(content, differing.clone());
                (Target::Existing(work.drive), selection, true, differing)
            }
        };
        if written.is_empty() {
            return Ok((Ended::default(), 0, written));
        }
        let chunk: NonZeroU64 = CONTENT_CHUNK_BYTES;
        // A delta ends before anything is known about the link, and its purpose is to send little.
        let compression = match (selection.is_of_blocks(), self.options.compression) {
            (true, Compression::Auto) => DELTA_LEVEL.map_or(Compression::Auto, Compression::Fixed),
            (_, compression) => compression,
        };
        let options = UploadOptions {
            chunk,
            body_bytes_max: self.options.body_bytes_max,
            jobs: self.options.jobs,
            jobs_min: self.options.jobs_min,
            compression,
            patience: self.options.patience.clone(),
            journal: JournalOptions {
                path: journal,
                endpoint: self.options.endpoint.clone(),
                restart,
                // The selection checks each chunk against the content.
                changed_ok: true,
            },
            // Verification happens at the end, for the whole drive.
            verify: Verify::None,
            selection: Some(Arc::new(selection)),
            ..UploadOptions::to(target)
        };
        let stop = self.stop.clone();
        let uploaded = upload(self.client, image, &options, self.monitor, stop)
            .await
            .map_err(|interrupted| interrupted.error)?;
        self.open = uploaded.progress.workers;
        Ok((uploaded.journal, uploaded.progress.wire_bytes, written))
    }

    /// The blocks that are not zeros.
    fn data_blocks(&self) -> RangeSet<u64> {
        let all = 0..self.content.block_plan().count();
        let zeros = self.content.zero_blocks();
        zeros.gaps(&all).collect()
    }

    /// The journal for this run's part of a drive.
    pub(super) fn journal(&self, drive: DriveId) -> Option<PathBuf> {
        let part = match self.options.role {
            Role::Shard(shard) => format!("shard {shard}"),
            Role::Whole | Role::Join => "whole".into(),
        };
        let (endpoint, user) = (&self.options.endpoint, self.client.user());
        let what = format!("publish\n{endpoint}\n{user}\n{drive}\n{part}");
        let name = Digest::of(what.as_bytes()).to_string();
        let directory = self.options.journals.as_ref()?;
        // Distinct from journals of uploads, which the upload command resumes.
        Some(directory.join(format!("publish-{}.ohj", &name[..16])))
    }
}

/// The blocks of this set within a range.
fn some_of(blocks: &RangeSet<u64>, within: &Range<u64>) -> RangeSet<u64> {
    if within.is_empty() {
        return RangeSet::new();
    }
    let overlapping = blocks.overlapping(within);
    overlapping
        .map(|range| range.start.max(within.start)..range.end.min(within.end))
        .collect()
}
