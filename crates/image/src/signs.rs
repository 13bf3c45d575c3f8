//! Recognises a raw disk by its beginning: a partition table, a boot sector or a file system. They
//! are only parsed as far as necessary to be sure.

use super::Gpt;

/// Bytes from the start of a disk that can contain such a sign. The last sign is the first label of
/// a ZFS pool.
pub(super) const HEAD_BYTES: usize = 128 * 1024;

/// The sign of a disk that is encrypted as a whole.
pub(super) const LUKS: &str = "a LUKS container";

/// A signature at a fixed offset.
type Mark = (&'static str, usize, &'static [u8]);

/// Signatures of at least four bytes: other content does not have them there by accident.
const MARKS: &[Mark] = &[
    ("an Apple partition map", 512, b"PM\0\0"),
    ("an SGI partition table", 0, &[0x0b, 0xe5, 0xa9, 0x41]),
    ("a BSD disk label", 512, &[0x57, 0x45, 0x56, 0x82]),
    ("a BSD disk label", 64, &[0x57, 0x45, 0x56, 0x82]),
    ("a BSD disk label", 0, &[0x57, 0x45, 0x56, 0x82]),
    (
        "a disk label of a mainframe",
        8196,
        &[0xe5, 0xd6, 0xd3, 0xf1],
    ),
    (
        "a disk label of a mainframe",
        4100,
        &[0xe5, 0xd6, 0xd3, 0xf1],
    ),
    ("an XFS file system", 0, b"XFSB"),
    (LUKS, 0, b"LUKS\xba\xbe"),
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
    (
        "a bcache device",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
    ),
    (
        "a Bcachefs file system",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9],
    ),
    ("a Ceph device", 0, b"bluestore block device\n"),
    ("an ISO 9660 file system", 32769, b"CD001"),
    ("a UDF file system", 32769, b"BEA01"),
    ("a UFS file system", 8192 + 1372, &[0x54, 0x19, 0x01, 0x00]),
    ("a UFS file system", 8192 + 1372, &[0x00, 0x01, 0x19, 0x54]),
    ("a UFS file system", 65536 + 1372, &[0x19, 0x01, 0x54, 0x19]),
    ("a UFS file system", 65536 + 1372, &[0x19, 0x54, 0x01, 0x19]),
    ("a BFS file system", 0, &[0xce, 0xfa, 0xad, 0x1b]),
    ("a BeOS file system", 32, b"1SFB"),
    ("a BeOS file system", 512 + 32, b"1SFB"),
    ("an Amiga disk", 0, b"RDSK"),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x03, 0x20]),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x01, 0xe0]),
    ("a JFFS2 file system", 0, &[0x85, 0x19, 0x02, 0xe0]),
    ("an Android super partition", 4096, b"gDla"),
];

/// Where OCFS2 stores its super block, for each block size.
const OCFS2_AT: [usize; 4] = [1024, 2048, 4096, 8192];
/// Page sizes; a swap area has its signature at the end of a page.
const PAGES_BYTES: [usize; 5] = [4096, 8192, 16384, 32768, 65536];
const SECTOR_BYTES: usize = 512;

/// The kind of disk that begins like this, if it is one. `head` has [`HEAD_BYTES`], or fewer if
/// there are no more.
pub(super) fn sign_of(head: &[u8]) -> Option<&'static str> {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if Gpt::of_head(head).is_some() || has(512, b"EFI PART") || has(4096, b"EFI PART") {
        return Some("a GPT");
    }
    if let Some((name, ..)) = MARKS.iter().find(|(_, at, magic)| has(*at, magic)) {
        return Some(name);
    }
    if has(0, b"ER") && (has(512, b"PM") || number16_be(head, 2).is_some_and(is_sector)) {
        return Some("an Apple partition map");
    }
    if has(0, b"DOS") && head.get(3).is_some_and(|kind| *kind < 8) {
        return Some("an Amiga disk");
    }
    if is_sun_label(head) {
        return Some("a Sun disk label");
    }
    if is_boot_sector(head) {
        return Some("a boot sector");
    }
    let physical = (0..4).any(|sector| has(sector * SECTOR_BYTES, b"LABELONE"));
    if physical {
        return Some("an LVM volume");
    }
    let swap = PAGES_BYTES
        .iter()
        .any(|page| has(page - 10, b"SWAPSPACE2") || has(page - 10, b"SWAP-SPACE"));
    if swap {
        return Some("a swap area");
    }
    if OCFS2_AT.iter().any(|at| has(*at, b"OCFSV2")) {
        return Some("an OCFS2 file system");
    }
    if is_ext(head) {
        return Some("an ext file system");
    }
    if is_hfs(head) {
        return Some("an HFS file system");
    }
    if is_nilfs(head) {
        return Some("a NILFS2 file system");
    }
    if is_minix(head) {
        return Some("a Minix file system");
    }
    is_zfs(head).then_some("a ZFS pool")
}

/// Whether the first sector has a BIOS boot signature, whatever else is in it.
pub(super) fn has_boot_signature(head: &[u8]) -> bool {
    head.get(510..512) == Some(&[0x55, 0xaa])
}

/// A boot signature, and before it a partition table, or a jump instruction and the sizes of a DOS
/// file system: the two bytes of the signature alone prove nothing.
fn is_boot_sector(head: &[u8]) -> bool {
    let Some(sector) = head.get(..SECTOR_BYTES) else {
        return false;
    };
    if !has_boot_signature(sector) {
        return false;
    }
    let entries = sector.get(446..510).unwrap_or_default().chunks_exact(16);
    let is_table = entries
        .into_iter()
        .all(|entry| matches!(entry.first(), Some(0 | 0x80)));
    let jumps = matches!(sector.first(), Some(0xeb | 0xe9));
    is_table || jumps && number16_le(sector, 11).is_some_and(is_sector)
}

fn is_sector(bytes: u16) -> bool {
    matches!(bytes, 512 | 1024 | 2048 | 4096)
}

/// The label's words, including the checksum, combine to zero.
fn is_sun_label(head: &[u8]) -> bool {
    let Some(sector) = head.get(..SECTOR_BYTES) else {
        return false;
    };
    let words = sector.chunks_exact(2);
    let sum = words.fold(0, |sum, word| sum ^ u16::from_be_bytes([word[0], word[1]]));
    sector[508..510] == [0xda, 0xbe] && sum == 0
}

/// The magic number has only two bytes, so the block size and the revision have to be valid too.
fn is_ext(head: &[u8]) -> bool {
    let magic = number16_le(head, 1024 + 56) == Some(0xef53);
    let block = number32_le(head, 1024 + 24).is_some_and(|log| log <= 6);
    let revision = number32_le(head, 1024 + 76).is_some_and(|revision| revision <= 1);
    magic && block && revision
}

/// HFS, or HFS+ with a valid version and block size.
fn is_hfs(head: &[u8]) -> bool {
    match head.get(1024..1028) {
        Some([b'H', b'+', 0, 4] | [b'H', b'X', 0, 5]) => true,
        Some([b'B', b'D', ..]) => {
            // Allocation blocks are whole sectors.
            number32_be(head, 1024 + 20).is_some_and(|block| block > 0 && block.is_multiple_of(512))
        }
        _ => false,
    }
}

fn is_nilfs(head: &[u8]) -> bool {
    number16_le(head, 1024 + 6) == Some(0x3434) && number32_le(head, 1024) == Some(2)
}

/// With the state of a file system that was or was not cleanly unmounted.
fn is_minix(head: &[u8]) -> bool {
    let magic = number16_le(head, 1024 + 16);
    let old = matches!(magic, Some(0x137f | 0x138f | 0x2468 | 0x2478));
    let state = number16_le(head, 1024 + 18).is_some_and(|state| state <= 3);
    let zones = number16_le(head, 1024 + 10).is_some_and(|log| log == 0);
    let third = number16_le(head, 1024 + 24) == Some(0x4d5a)
        && number16_le(head, 1024 + 28).is_some_and(is_minix_block);
    old && state && zones || third
}

fn is_minix_block(bytes: u16) -> bool {
    matches!(bytes, 1024 | 2048 | 4096)
}

/// The name-value list in the first label of a device: how it is encoded, and its first name.
fn is_zfs(head: &[u8]) -> bool {
    const LIST_AT: usize = 16 * 1024;
    let Some(list) = head.get(LIST_AT..LIST_AT + 64) else {
        return false;
    };
    matches!(list, [0 | 1, 0 | 1, 0, 0, ..]) && list.windows(7).any(|name| name == b"version")
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn number16_le(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn number16_be(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn number32_le(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn number32_be(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}
