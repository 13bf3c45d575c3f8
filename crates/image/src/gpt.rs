//! The partition table of a disk, as far as it matters for a drive that is larger than the image: a
//! GPT stores a copy of its header in the last sector (UEFI specification, 5.3).

use flate2::Crc;

use super::Disk;
use super::number::{le32, le64};

const MAGIC: &[u8; 8] = b"EFI PART";
/// The sizes of a sector of disks with such a table.
const SECTORS_BYTES: [u64; 2] = [512, 4096];
/// Bytes of a header to look at, and the minimum size that it may state.
const HEADER_BYTES: usize = 92;

/// A GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// Bytes of a sector.
    pub sector: u64,
    /// Offset of the copy on the disk, according to the header.
    pub backup: u64,
}

impl Gpt {
    /// The table of a disk; `None` if there is no valid one, or the disk cannot be read. What is
    /// wrong with the image is reported when it is sent.
    pub fn of(disk: &dyn Disk) -> Option<Self> {
        SECTORS_BYTES
            .into_iter()
            .find_map(|sector| Self::with_sectors(disk, sector))
    }

    /// The table of a disk with this beginning; `None` if there is no valid one, or it begins
    /// later.
    pub(super) fn of_head(head: &[u8]) -> Option<Self> {
        SECTORS_BYTES.into_iter().find_map(|sector| {
            let at = usize::try_from(sector).ok()?;
            Self::of_header(head.get(at..)?.first_chunk()?, sector)
        })
    }

    fn with_sectors(disk: &dyn Disk, sector: u64) -> Option<Self> {
        if disk.size() < 2 * sector {
            return None;
        }
        let mut header = [0; HEADER_BYTES];
        disk.read_at(&mut header, sector).ok()?;
        Self::of_header(&header, sector)
    }

    fn of_header(header: &[u8; HEADER_BYTES], sector: u64) -> Option<Self> {
        let is_sound = header.starts_with(MAGIC)
            && le32(header, 12)? as usize == HEADER_BYTES
            && le32(header, 16)? == checksum(header)
            && le64(header, 24)? == 1;
        let backup = le64(header, 32)?.checked_mul(sector)?;
        is_sound.then_some(Self { sector, backup })
    }

    /// A notice if the copy is not at the end of a drive of `drive` bytes after an image of `image`
    /// bytes was written to it; `None` if it is.
    pub fn misplaced(&self, image: u64, drive: u64) -> Option<String> {
        let backup = self.backup;
        // The image does not contain the copy at all, even if the drive ends at its offset.
        if backup.saturating_add(self.sector) > image {
            return Some(format!(
                "The copy of the GPT should be at byte {backup}, beyond the end of the image: was it cut off? In the guest, write one with: sgdisk -e DISK"
            ));
        }
        if self.is_at_end(drive) {
            return None;
        }
        Some(format!(
            "The copy of the GPT is at byte {backup}, not at the end of the drive. In the guest, move it with: sgdisk -e DISK (growpart does so too)"
        ))
    }

    /// Whether the copy is in the last sector of a disk of `size` bytes.
    pub fn is_at_end(&self, size: u64) -> bool {
        let last = (size / self.sector).checked_sub(1);
        last.and_then(|last| last.checked_mul(self.sector)) == Some(self.backup)
    }
}

/// The checksum of a header, computed with zeros in its own place.
fn checksum(header: &[u8; HEADER_BYTES]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&header[..16]);
    crc.update(&[0; 4]);
    crc.update(&header[20..]);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;

    /// A disk with a header that states the offset of its copy.
    fn disk(sector: u64, backup: u64, spoil: Option<usize>) -> (tempfile::NamedTempFile, Image) {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        header[32..40].copy_from_slice(&backup.to_le_bytes());
        let sum = checksum(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        if let Some(at) = spoil {
            header[at] ^= 1;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; 1 << 20];
        let at = sector as usize;
        bytes[at..at + HEADER_BYTES].copy_from_slice(&header);
        std::fs::write(file.path(), bytes).unwrap();
        let image = Image::open_raw(file.path()).unwrap();
        (file, image)
    }

    #[test]
    fn a_gpt_is_recognised_with_both_sector_sizes() {
        for sector in SECTORS_BYTES {
            let last = (1 << 20) / sector - 1;
            let (_file, image) = disk(sector, last, None);
            let gpt = Gpt::of(image.disk().unwrap()).unwrap();
            assert_eq!((gpt.sector, gpt.backup), (sector, last * sector));
            assert!(gpt.is_at_end(1 << 20));
            // Bytes after the last whole sector do not count.
            assert!(gpt.is_at_end((1 << 20) + sector - 1));
            assert!(!gpt.is_at_end((1 << 20) + sector));
            assert!(!gpt.is_at_end((1 << 20) - 1));
            assert!(!gpt.is_at_end(0));
        }
    }

    #[test]
    fn an_invalid_gpt_is_ignored() {
        for spoil in [0, 13, 16, 24, 33, 91] {
            let (_file, image) = disk(512, 2047, Some(spoil));
            assert_eq!(Gpt::of(image.disk().unwrap()), None, "{spoil}");
        }
        let (_file, image) = disk(512, u64::MAX / 2, None);
        assert_eq!(Gpt::of(image.disk().unwrap()), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0; 600]).unwrap();
        let image = Image::open_raw(file.path()).unwrap();
        assert_eq!(Gpt::of(image.disk().unwrap()), None);
    }
}
