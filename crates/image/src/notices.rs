//! Notices about an image that is sent nevertheless: it may not be a disk, or the drive may not be
//! usable.

use std::sync::{Arc, OnceLock};

use super::signs::{HEAD_BYTES, has_boot_signature, has_sign, is_luks};
use super::{Format, Gpt, Image, Length, StreamEnd, head_of};
use crate::amounts::counted;

/// Bytes of a sector of a drive.
const SECTOR_BYTES: u64 = 512;

/// Notices about an image before it is sent, one line each. A raw image is checked for whether it
/// looks like a disk, unless `is_format_given`. Read errors are reported when the image is sent.
/// Blocks.
pub(super) fn of(image: &Image, is_format_given: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let read = image.disk().map(|disk| head_of(disk, HEAD_BYTES));
    let head = match (image, &read) {
        (Image::Stream(stream), _) => stream.head(),
        (_, Some(Ok(head))) => head,
        (_, Some(Err(_)) | None) => return lines,
    };
    let is_raw = image.format() == Format::Raw;
    if is_raw && !is_format_given && !has_sign(head) && !has_boot_signature(head) {
        lines.push(
            "No boot signature, partition table or known file system was found in the image: check that it is a disk"
                .to_owned(),
        );
    }
    if is_raw && is_luks(head) {
        lines.push(
            "The image is a LUKS container, and will be one on the drive: the guest has to open it with its key"
                .to_owned(),
        );
    }
    let sector = match image {
        Image::Mapped(mapped) => mapped.sector(),
        Image::Raw(_) | Image::Stream(_) => None,
    };
    let table = Gpt::of_head(head).map(|table| table.sector);
    let mut sectors = [table, sector].into_iter().flatten();
    if let Some(sector) = sectors.find(|sector| *sector != SECTOR_BYTES) {
        lines.push(format!(
            "The image was made for sectors of {sector} bytes: on a drive with sectors of {SECTOR_BYTES} bytes, which is usual, the guest may not find its partitions"
        ));
    }
    if let Length::Known(size) = image.length() {
        lines.extend(of_size(size));
    }
    lines
}

/// A notice about the size of an image.
fn of_size(size: u64) -> Option<String> {
    let rest = size % SECTOR_BYTES;
    (rest != 0).then(|| {
        format!(
            "The image has {size} bytes, which is not a multiple of the sector size of {SECTOR_BYTES}: the guest may not see the last {}",
            counted(rest, "byte")
        )
    })
}

/// Notices about a stream that are known only at its end.
#[derive(Clone, Debug, Default)]
pub struct LateNotices {
    table: Option<Gpt>,
    is_size_new: bool,
    ended: Arc<OnceLock<StreamEnd>>,
}

impl LateNotices {
    pub(super) fn of(image: &Image) -> Self {
        match image {
            Image::Raw(_) | Image::Mapped(_) => Self::default(),
            Image::Stream(stream) => Self {
                table: stream.gpt(),
                is_size_new: stream.length().known().is_none(),
                ended: stream.ended(),
            },
        }
    }

    /// The notices about an image of `size` bytes, once all of it was read.
    pub fn notices(&self, size: u64) -> Vec<String> {
        let mut lines = Vec::new();
        if self.ended.get() == Some(&StreamEnd::FooterLeftOut) {
            lines.push(
                "The image is a fixed VHD: its footer, the last 512 bytes, was left out".to_owned(),
            );
        }
        lines.extend(of_size(size).filter(|_| self.is_size_new));
        lines
    }

    /// What is wrong with the image on a drive of `drive` bytes.
    pub fn warning(&self, size: u64, drive: u64) -> Option<String> {
        self.table?.misplaced(size, drive)
    }
}
