//! Recognises a raw disk by its beginning: a partition table, a boot sector or a file system.
//!
//! Content with such a sign counts as a disk, whatever its first bytes look like otherwise
//! (`foreign`), and no notice says that it may not be one (`notices`). So a sign must not occur in
//! other content by accident: it has at least four bytes, or a second condition. To add one, add a
//! row to [`SIGNS`], or a function if a signature at a fixed offset is not enough. The order does
//! not matter.

use super::number::{be16, be32, le16, le32};

/// Bytes from the start of a disk to inspect. All of [`SIGNS`] are within them (the farthest is that
/// of UFS2), and so is what `foreign` looks at; 128 KiB are the next power of two.
pub(super) const HEAD_BYTES: usize = 128 * 1024;

const SECTOR_BYTES: usize = 512;

/// The first bytes of a disk that is encrypted as a whole.
const LUKS: &[u8] = b"LUKS\xba\xbe";

/// What has this signature, the offset of the signature, and its bytes. They are from the
/// documentation or the source code of what they identify; libblkid and file(1) know most of them as
/// well. The names are for readers of this table only.
type Sign = (&'static str, usize, &'static [u8]);

#[rustfmt::skip]
const SIGNS: &[Sign] = &[
    ("a GPT", 512, b"EFI PART"),
    ("a GPT with sectors of 4096 bytes", 4096, b"EFI PART"),
    ("an Apple partition map", 512, b"PM\0\0"),
    ("an SGI partition table", 0, &[0x0b, 0xe5, 0xa9, 0x41]),
    ("a BSD disk label", 512, &[0x57, 0x45, 0x56, 0x82]),
    ("a BSD disk label", 64, &[0x57, 0x45, 0x56, 0x82]),
    ("a BSD disk label", 0, &[0x57, 0x45, 0x56, 0x82]),
    ("a disk label of a mainframe", 8196, &[0xe5, 0xd6, 0xd3, 0xf1]),
    ("a disk label of a mainframe", 4100, &[0xe5, 0xd6, 0xd3, 0xf1]),
    ("an XFS file system", 0, b"XFSB"),
    ("a LUKS container", 0, LUKS),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a ReFS file system", 3, b"ReFS\0\0\0\0"),
    ("a FAT file system", 54, b"FAT12   "),
    ("a FAT file system", 54, b"FAT16   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("an APFS container", 32, b"NXSB"),
    ("a SquashFS file system", 0, b"hsqs"),
    ("a SquashFS file system", 0, b"sqsh"),
    ("a romfs file system", 0, b"-rom1fs-"),
    ("a cramfs file system", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    ("a cramfs file system", 512, &[0x45, 0x3d, 0xcd, 0x28]),
    ("a UBI image", 0, b"UBI#\x01"),
    ("a UBIFS file system", 0, &[0x31, 0x18, 0x10, 0x06]),
    ("an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("a VDO volume", 0, b"dmvdo001"),
    ("a dm-integrity volume", 0, b"integrt\0"),
    ("a dm-verity volume", 0, b"verity\0\0"),
    ("a Stratis pool", 528, b"!Stra0tis\x86\xff\x02^A\rh"),
    ("a RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("an LVM 1 volume", 0, b"HM\x01\0"),
    ("an HPFS file system", 8192, &[0x49, 0xe8, 0x95, 0xf9]),
    ("a JFS file system", 32768, b"JFS1"),
    ("a GFS2 file system", 65536, &[0x01, 0x16, 0x19, 0x70]),
    ("a Btrfs file system", 65536 + 64, b"_BHRfS_M"),
    ("a ReiserFS file system", 65536 + 52, b"ReIsEr"),
    ("a ReiserFS file system", 8192 + 52, b"ReIsEr"),
    ("a Reiser4 file system", 65536, b"ReIsEr4"),
    ("a bcache device", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("a Bcachefs file system", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    ("a Ceph device", 0, b"bluestore block device\n"),
    ("an ISO 9660 file system", 32769, b"CD001"),
    ("a UDF file system", 32769, b"BEA01"),
    ("a UFS file system", 8192 + 1372, &[0x54, 0x19, 0x01, 0x00]),
    ("a UFS file system", 8192 + 1372, &[0x00, 0x01, 0x19, 0x54]),
    ("a UFS file system", 65536 + 1372, &[0x19, 0x01, 0x54, 0x19]),
    ("a UFS file system", 65536 + 1372, &[0x19, 0x54, 0x01, 0x19]),
    // In block 2, counted from 0. A block has 512 to 4096 bytes.
    ("an OCFS2 file system", 1024, b"OCFSV2"),
    ("an OCFS2 file system", 2048, b"OCFSV2"),
    ("an OCFS2 file system", 4096, b"OCFSV2"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a BFS file system", 0, &[0xce, 0xfa, 0xad, 0x1b]),
    ("a BeOS file system", 32, b"1SFB"),
    ("a BeOS file system", 512 + 32, b"1SFB"),
    ("an Amiga disk", 0, b"RDSK"),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x03, 0x20]),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x01, 0xe0]),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x02, 0xe0]),
    ("an Android super partition", 4096, b"gDla"),
];

// A sign beyond the bytes that are inspected would never be found.
const _: () = {
    let mut i = 0;
    while i < SIGNS.len() {
        let (_, at, magic) = SIGNS[i];
        assert!(at + magic.len() <= HEAD_BYTES);
        i += 1;
    }
};

/// Whether a disk with this beginning has a sign. `head` has [`HEAD_BYTES`], or fewer if there are
/// no more.
pub(super) fn has_sign(head: &[u8]) -> bool {
    SIGNS.iter().any(|(_, at, magic)| has(head, *at, magic))
        || is_apple_map(head)
        || is_amiga(head)
        || is_sun_label(head)
        || is_boot_sector(head)
        || is_lvm(head)
        || is_swap(head)
        || is_ext(head)
        || is_hfs(head)
        || is_nilfs(head)
        || is_minix(head)
        || is_zfs(head)
}

/// Whether a disk with this beginning is encrypted as a whole with LUKS.
pub(super) fn is_luks(head: &[u8]) -> bool {
    head.starts_with(LUKS)
}

/// Whether the first sector has a BIOS boot signature, whatever else is in it.
pub(super) fn has_boot_signature(head: &[u8]) -> bool {
    has(head, 510, &[0x55, 0xaa])
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// The driver map of an Apple disk has only two bytes of signature. After it, the size of a sector
/// follows; after the sector, the first entry of the partition map.
fn is_apple_map(head: &[u8]) -> bool {
    has(head, 0, b"ER") && (has(head, 512, b"PM") || be16(head, 2).is_some_and(is_sector))
}

/// A floppy disk or a partition of an Amiga; the number stands for the variant of its file system.
fn is_amiga(head: &[u8]) -> bool {
    matches!(head, [b'D', b'O', b'S', 0..=7, ..])
}

/// A boot signature, and before it a partition table, or a jump instruction and the sector size of a
/// FAT or NTFS file system: the two bytes of the signature alone prove nothing.
fn is_boot_sector(head: &[u8]) -> bool {
    let Some(sector) = head.get(..SECTOR_BYTES) else {
        return false;
    };
    if !has_boot_signature(sector) {
        return false;
    }
    // The table has four entries of 16 bytes. Each begins with 0, or 0x80 if it is active.
    let entries = sector.get(446..510).unwrap_or_default().chunks_exact(16);
    let is_table = entries
        .into_iter()
        .all(|entry| matches!(entry.first(), Some(0 | 0x80)));
    let jumps = matches!(sector.first(), Some(0xeb | 0xe9));
    is_table || jumps && le16(sector, 11).is_some_and(is_sector)
}

fn is_sector(bytes: u16) -> bool {
    matches!(bytes, 512 | 1024 | 2048 | 4096)
}

/// A signature of two bytes, and a checksum that makes all 16-bit words of the sector 0 when they
/// are combined with XOR.
fn is_sun_label(head: &[u8]) -> bool {
    let Some(sector) = head.get(..SECTOR_BYTES) else {
        return false;
    };
    let words = sector.chunks_exact(2);
    let sum = words.fold(0, |sum, word| sum ^ u16::from_be_bytes([word[0], word[1]]));
    has(sector, 508, &[0xda, 0xbe]) && sum == 0
}

/// The label of an LVM 2 volume is in one of the first four sectors.
fn is_lvm(head: &[u8]) -> bool {
    (0..4).any(|sector| has(head, sector * SECTOR_BYTES, b"LABELONE"))
}

/// A swap area has its signature, of ten bytes, at the end of the first page. The size of a page
/// depends on the machine.
fn is_swap(head: &[u8]) -> bool {
    [4096, 8192, 16384, 32768, 65536].iter().any(|page| {
        let at = page - 10;
        has(head, at, b"SWAPSPACE2") || has(head, at, b"SWAP-SPACE")
    })
}

/// The super block is at 1024. Its signature has only two bytes, so the size of a block (1024 to
/// 65536 bytes, as a power of two) and the revision (0 or 1) have to be valid too.
fn is_ext(head: &[u8]) -> bool {
    let magic = le16(head, 1024 + 56) == Some(0xef53);
    let block = le32(head, 1024 + 24).is_some_and(|log| log <= 6);
    let revision = le32(head, 1024 + 76).is_some_and(|revision| revision <= 1);
    magic && block && revision
}

/// HFS+ and HFSX with their versions, 4 and 5; or HFS, whose allocation blocks are whole sectors.
fn is_hfs(head: &[u8]) -> bool {
    match head.get(1024..1028) {
        Some([b'H', b'+', 0, 4] | [b'H', b'X', 0, 5]) => true,
        Some([b'B', b'D', ..]) => {
            be32(head, 1024 + 20).is_some_and(|block| block > 0 && block.is_multiple_of(512))
        }
        _ => false,
    }
}

/// The super block is at 1024: revision 2, and a signature of two bytes.
fn is_nilfs(head: &[u8]) -> bool {
    le32(head, 1024) == Some(2) && le16(head, 1024 + 6) == Some(0x3434)
}

/// The super block is at 1024. Versions 1 and 2 have four signatures, of two bytes each, for two
/// lengths of file names. Their state has two bits (valid, has errors), and a zone is always one
/// block. Version 3 has a signature elsewhere, and states the size of a block.
fn is_minix(head: &[u8]) -> bool {
    let is_old = matches!(
        le16(head, 1024 + 16),
        Some(0x137f | 0x138f | 0x2468 | 0x2478)
    );
    let state = le16(head, 1024 + 18).is_some_and(|state| state <= 3);
    let zones = le16(head, 1024 + 10) == Some(0);
    let is_third = le16(head, 1024 + 24) == Some(0x4d5a)
        && matches!(le16(head, 1024 + 28), Some(1024 | 2048 | 4096));
    is_old && state && zones || is_third
}

/// The first label of a ZFS device has a list of names and values at 16 KiB. Four bytes say how it
/// is encoded (native or XDR, byte order, two unused), and its first name is `version`, which is
/// well within 64 bytes.
fn is_zfs(head: &[u8]) -> bool {
    const LIST_AT: usize = 16 * 1024;
    let Some(list) = head.get(LIST_AT..LIST_AT + 64) else {
        return false;
    };
    matches!(list, [0 | 1, 0 | 1, 0, 0, ..]) && list.windows(7).any(|name| name == b"version")
}
