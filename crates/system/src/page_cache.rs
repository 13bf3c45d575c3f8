//! Identifies the page cache that holds bytes that were written to a file but not synced.
//!
//! These bytes survive the death of the process that wrote them, including `kill -9`, but not a
//! loss of power. So a later run may rely on them as long as the same kernel is running and the
//! same file system is still mounted.
//!
//! Only Linux is supported; on other systems nothing can be concluded.

use std::fs::File;

/// A file, and the page cache that holds what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCache {
    /// The random id of the kernel's current boot.
    pub boot: [u8; 16],
    /// The device of the file system, major and minor number.
    pub device: u64,
    /// Identifies one use of the file system, from mount to unmount. It changes if a disk was
    /// unplugged and mounted again.
    pub mount: u64,
    /// The inode of the file.
    pub inode: u64,
}

impl PageCache {
    /// The page cache of an open regular file; `None` if nothing can be concluded from it.
    pub fn of(file: &File) -> Option<Self> {
        of(file)
    }
}

#[cfg(target_os = "linux")]
use linux::of;

#[cfg(not(target_os = "linux"))]
fn of(_: &File) -> Option<PageCache> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{AtFlags, FileType, StatxFlags, fstatfs, statx};
    use uuid::Uuid;

    use super::PageCache;

    /// File systems whose pages are in the kernel that this program runs on, by the numbers of
    /// `statfs(2)`. With any other one, such as NFS or FUSE, pages may be elsewhere.
    const LOCAL: [u64; 10] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0x0102_1994, // tmpfs
        0x794c_7630, // overlayfs: its files are those of a file system below
        0xca45_1a4e, // bcachefs
        0x2fc1_2fc1, // ZFS
        0x2011_bab0, // exFAT
        0x4d44,      // FAT
    ];

    /// `STATX_MNT_ID_UNIQUE`, of Linux 6.8: an id that is not reused within one boot, unlike that
    /// of `STATX_MNT_ID`.
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

    /// See [`PageCache::of`].
    pub(super) fn of(file: &File) -> Option<PageCache> {
        let kind = fstatfs(file).ok()?.f_type;
        // Signed on some architectures: the number is in the lower 32 bits.
        let kind = u64::try_from(kind & 0xffff_ffff).ok()?;
        if !LOCAL.contains(&kind) {
            return None;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let boot = Uuid::try_parse(boot.trim()).ok()?;
        let wanted = StatxFlags::BASIC_STATS | MNT_ID_UNIQUE;
        let status = statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
        if FileType::from_raw_mode(status.stx_mode.into()) != FileType::RegularFile {
            return None;
        }
        let (major, minor) = (status.stx_dev_major, status.stx_dev_minor);
        let unique = (status.stx_mask & MNT_ID_UNIQUE.bits() != 0).then_some(status.stx_mnt_id);
        Some(PageCache {
            boot: boot.into_bytes(),
            device: u64::from(major) << 32 | u64::from(minor),
            mount: superblock(major, minor).or(unique)?,
            inode: status.stx_ino,
        })
    }

    /// Distinguishes one use of the file system on a block device from the next: the inode number
    /// of its directory in sysfs, which is created at the mount and has a new number each time.
    /// Unlike the id of a mount, it is the same in all containers, so it survives a container that
    /// was killed and started again.
    fn superblock(major: u32, minor: u32) -> Option<u64> {
        let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let name = device.file_name()?;
        let mut directories = ["ext4", "xfs", "f2fs"].iter().filter_map(|kind| {
            std::fs::metadata(format!("/sys/fs/{kind}/{}", name.display())).ok()
        });
        directories.next().map(|directory| directory.ino())
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::PageCache;

        #[test]
        fn a_file_has_one_page_cache_however_it_is_opened() {
            let directory = tempfile::tempdir().unwrap();
            let (a, b) = (directory.path().join("a"), directory.path().join("b"));
            let open = |path| PageCache::of(&File::create(path).unwrap());
            // The tests of the tools report where no page cache is trusted.
            let Some(first) = open(&a) else {
                return;
            };
            assert_eq!(open(&a), Some(first));
            let other = open(&b).unwrap();
            assert_ne!(other.inode, first.inode);
            assert_eq!(
                PageCache {
                    inode: first.inode,
                    ..other
                },
                first
            );
        }

        #[test]
        fn only_the_page_cache_of_local_files_is_trusted() {
            for path in ["/proc/self/status", "/dev/null"] {
                let file = File::open(path).unwrap();
                assert_eq!(PageCache::of(&file), None, "{path}");
            }
            assert_eq!(superblock(u32::MAX, u32::MAX), None);
        }
    }
}
