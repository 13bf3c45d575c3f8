//! Signatures of content that is not a disk. Each has at least four bytes or a second condition, so
//! that the beginning of a disk does not match one by accident.
//!
//! `file-format` knows hundreds of other documents, media and programs. This table has what it does
//! not know, and where a command helps.

use super::{Foreign, Way};
use crate::number::{be16, le16, le32, le64};

/// Content that its first bytes identify.
struct Entry {
    what: &'static str,
    at: usize,
    magics: &'static [&'static [u8]],
    /// An additional condition.
    and: Option<fn(&[u8]) -> bool>,
    way: Way,
}

const fn entry(what: &'static str, magics: &'static [&'static [u8]], way: Way) -> Entry {
    Entry {
        what,
        at: 0,
        magics,
        and: None,
        way,
    }
}

impl Entry {
    const fn at(self, at: usize) -> Self {
        Self { at, ..self }
    }

    const fn and(self, and: fn(&[u8]) -> bool) -> Self {
        Self {
            and: Some(and),
            ..self
        }
    }
}

const fn convert(command: &'static str) -> Way {
    Way::Run("Convert it with", command)
}

const fn unpack(command: &'static str) -> Way {
    Way::Run("Unpack it with", command)
}

const fn advise(sentence: &'static str) -> Way {
    Way::Advice(sentence)
}

const SEVEN_ZIP: Way = unpack("7z x {in}");
const LOOK: Way = Way::Run("Look at what it is with", "file {in}");
const MEMORY: Way = advise("It holds the memory of a machine: name the file of its disk instead");
const FIRMWARE: Way =
    advise("It is written to the flash memory of a device: there is no disk in it");
const STREAM_OF_BLOCKS: Way =
    advise("It is a description of chunks that are elsewhere: restore the image first");
const ON_MACOS: Way = Way::Run(
    "Convert it on macOS with",
    "hdiutil convert {in} -format UDTO -o {out}",
);

// A row has what it is, its signatures, and what to do with it. rustfmt would give a row ten lines.

/// Disks of hypervisors, emulators and imagers.
#[rustfmt::skip]
const DISKS: &[Entry] = &[
    entry("a QED image", &[b"QED\0"],
        convert("qemu-img convert -f qed -O qcow2 {in} {stem}.qcow2"))
        .and(|head| le32(head, 4).is_some_and(u32::is_power_of_two)),
    entry("a Parallels image", &[b"WithoutFreeSpace", b"WithouFreSpacExt"],
        convert("qemu-img convert -f parallels -O qcow2 {in} {stem}.qcow2")),
    entry("a Bochs image", &[b"Bochs Virtual HD Image"],
        convert("qemu-img convert -f bochs -O qcow2 {in} {stem}.qcow2")),
    entry("a Bochs image", &[&[0xce, 0x8a, 0x46, 0x02]],
        convert("bximage -func=convert -imgmode=flat -q {in} {out}")),
    entry("a cloop image", &[b"#!/bin/sh\n#V2.0 Format\n"],
        convert("qemu-img convert -f cloop -O qcow2 {in} {stem}.qcow2")),
    entry("an Android sparse image", &[&[0x3a, 0xff, 0x26, 0xed]], convert("simg2img {in} {out}")),
    entry("a part of a VMware disk (seSparse)", &[&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0]],
        advise("The description of the disk is beside it: qemu-img convert -f vmdk -O qcow2 DESCRIPTION.vmdk NEW.qcow2")),
    entry("an encrypted Apple disk image", &[b"encrcdsa"], ON_MACOS),
    entry("an Apple sparse image", &[b"sprs\0\0\0"], ON_MACOS),
    entry("a CHD image of MAME", &[b"MComprHD"], convert("chdman extracthd -i {in} -o {out}")),
    entry("a compressed ISO image (CSO)", &[b"CISO"],
        convert("maxcso --decompress {in} -o {out}"))
        .and(|head| head.get(8..16).is_some_and(|size| size.iter().any(|byte| *byte != 0))),
    entry("a compressed ISO image (ZSO)", &[b"ZISO"], convert("maxcso --decompress {in} -o {out}")),
    entry("a compressed ISO image (DAX)", &[b"DAX\0"],
        convert("maxcso --decompress {in} -o {out}")),
    entry("a compressed ISO image (ISZ)", &[b"IsZ!"],
        advise("Unpack it with UltraISO, or another program that knows it")),
    entry("a PowerISO image (DAA)", &[b"DAA\0\0\0"],
        advise("Convert it with PowerISO, or another program that knows it")),
    entry("a description of a CD image (MDS)", &[b"MEDIA DESCRIPTOR"],
        advise("The image is in the file beside it whose name ends in .mdf")),
    entry("an image of raw CD sectors",
        &[&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]], convert("ccd2iso {in} {out}")),
    entry("a copy-on-write file of User-mode Linux", &[b"OOOM\0\0\0", b"MOOO\x01\0\0\0"],
        convert("uml_moo {in} {out}")),
    entry("a disk of a mainframe emulator", &[b"CKD_P370", b"CKD_C370", b"FBA_C370"],
        advise("Restore it with the emulator that made it (Hercules)")),
    entry("a backup of Proxmox (VMA)", &[b"VMA\0\0\0\0\x01"], unpack("vma extract {in} {stem}")),
    entry("an index of Proxmox Backup",
        &[&[47, 127, 65, 237, 145, 253, 15, 205], &[28, 145, 78, 165, 25, 186, 179, 205]], STREAM_OF_BLOCKS),
    entry("a blob of Proxmox Backup",
        &[&[66, 171, 56, 7, 190, 131, 112, 161], &[49, 185, 88, 66, 111, 182, 163, 127]], STREAM_OF_BLOCKS),
    entry("an EWF (EnCase) image", &[b"EVF\x09\x0d\x0a\xff\0", b"EVF2\x0d\x0a\x81\0"],
        convert("ewfexport -u -f raw -t {stem} {in}")),
    entry("an EWF (EnCase) archive of files", &[b"LVF\x09\x0d\x0a\xff\0", b"LEF2\x0d\x0a\x81\0"],
        advise("It holds files, not a disk")),
    entry("an AFF image", &[b"AFF10\r\n\0"], convert("affconvert -r {in}")),
    entry("a Partclone image", &[b"partclone-image"],
        convert("partclone.restore -C -W -L /dev/null -s {in} -o {out}")),
    entry("a Partimage image", &[b"PaRtImAgE-VoLuMe"],
        advise("Restore it with partimage, and upload what it was restored to")),
    entry("a backup of FSArchiver", &[b"FsA0"],
        advise("Restore it with: fsarchiver restfs IMAGE id=0,dest=DEVICE, and upload DEVICE")),
    entry("an ntfsclone image", &[b"\0ntfsclone-image"],
        convert("ntfsclone --restore-image --output {out} {in}")),
    entry("a Ghost image", &[&[0xfe, 0xef, 0x01]],
        advise("Restore it with Norton Ghost, and upload what it was restored to"))
        .and(|head| head.get(3).is_some_and(|kind| *kind <= 10)),
    entry("a backup of Acronis",
        &[&[0xce, 0x24, 0xb9, 0xa2, 0x20, 0, 0, 0], &[0xb4, 0x6e, 0x68, 0x44]],
        advise("Restore it with Acronis, and upload what it was restored to")),
    entry("a Windows image (WIM), which holds files", &[b"MSWIM\0\0\0"], unpack("7z x {in}")),
    entry("a Windows image (WIM), which holds files", &[b"WLPWM\0\0\0"],
        unpack("wimlib-imagex extract {in} 1")),
    entry("a dump of a file system", &[&60012_u32.to_le_bytes()],
        unpack("restore -x -f {in}")).at(24).and(|head| le32(head, 0) == Some(1)),
    entry("a dump of a file system", &[&60012_u32.to_be_bytes()],
        unpack("restore -x -f {in}")).at(24).and(|head| le32(head, 0) == Some(1 << 24)),
    entry("a dump of an XFS file system", &[b"xFSdump0"], unpack("xfsrestore -f {in} DIRECTORY")),
    entry("a stream of zfs send", &[&0x2_f5ba_cbac_u64.to_le_bytes()],
        Way::Run("Receive it with", "zfs receive POOL/NAME < {in}")).at(8),
    entry("a stream of btrfs send", &[b"btrfs-stream\0"],
        Way::Run("Receive it with", "btrfs receive -f {in} DIRECTORY")),
    entry("an export of Ceph", &[b"rbd image v"],
        convert("rbd import --export-format 2 {in} POOL/IMAGE && rbd export POOL/IMAGE {out}")),
    entry("a difference of two images of Ceph", &[b"rbd diff v"],
        advise("It holds only what differs from another image: export the whole image with rbd export")),
    entry("an index of casync", &[&0x9682_4d9c_7b12_9ff9_u64.to_le_bytes()],
        STREAM_OF_BLOCKS).at(8),
    entry("an archive of bita", &[b"BITA1\0"], convert("bita clone {in} {out}")),
    entry("a zchunk file", &[b"\0ZCK1"], unpack("unzck {in}")),
    entry("a zchunk header", &[b"\0ZHR1"], STREAM_OF_BLOCKS),
    entry("a difference of two files (VCDIFF)", &[&[0xd6, 0xc3, 0xc4]],
        advise("Apply it to the file that it was made from, with xdelta3 -d -s OLD"))
        .and(|head| matches!(head.get(3), Some(0 | b'S'))),
    entry("a difference of two files (bsdiff)", &[b"BSDIFF40"],
        advise("Apply it to the file that it was made from, with bspatch")),
    entry("a difference of two files (rdiff)", &[&[b'r', b's', 0x02, 0x36]],
        advise("Apply it to the file that it was made from, with rdiff patch")),
];

/// Archives and files that are compressed as a whole. Supported formats never get here.
#[rustfmt::skip]
const PACKED: &[Entry] = &[
    entry("a tar archive whose header is damaged", &[b"ustar"], unpack("tar -xf {in}")).at(257),
    entry("a ZIP archive", &[b"PK\x03\x04"], unpack("unzip {in}")),
    entry("a ZIP archive without files", &[b"PK\x05\x06"], LOOK),
    entry("a part of a ZIP archive", &[b"PK\x07\x08", b"PK00PK\x03\x04"], unpack("7z x {in}")),
    entry("a 7z archive", &[b"7z\xbc\xaf\x27\x1c"], SEVEN_ZIP),
    entry("a RAR archive", &[b"Rar!\x1a\x07", b"RE\x7e\x5e"], SEVEN_ZIP),
    entry("a cabinet file", &[b"MSCF\0\0\0\0"], unpack("cabextract {in}")),
    entry("a cabinet file of InstallShield", &[b"ISc("], unpack("unshield x {in}")),
    entry("an ARJ archive", &[&[0x60, 0xea]], SEVEN_ZIP).and(is_arj),
    entry("an LHA archive", &[b"-l"], SEVEN_ZIP).at(2).and(is_lha),
    entry("an ACE archive", &[b"**ACE**"], unpack("unace x {in}")).at(7),
    entry("a zoo archive", &[&[0xdc, 0xa7, 0xc4, 0xfd]], unpack("zoo x {in}")).at(20),
    entry("a StuffIt archive", &[b"StuffIt ", b"SIT!\0"], unpack("unar {in}")),
    entry("an archive of ALZip", &[b"ALZ\x01"], unpack("unalz {in}")),
    entry("an archive of ALZip", &[b"EGGA"],
        advise("Unpack it with ALZip, and upload the disk in it")),
    entry("a ZPAQ archive", &[b"7kSt"], unpack("zpaq x {in}")),
    entry("a ZPAQ archive", &[b"zPQ"],
        unpack("zpaq x {in}")).and(|head| matches!(head.get(3..5), Some([1 | 2, 1]))),
    entry("an xar archive", &[b"xar!\0\x1c"], SEVEN_ZIP),
    entry("a Debian package", &[b"!<arch>\ndebian-binary"], unpack("dpkg-deb -x {in} {stem}")),
    entry("an ar archive", &[b"!<arch>\n"], unpack("ar x {in}")),
    entry("an ar archive without its files", &[b"!<thin>\n"], LOOK),
    entry("an RPM package", &[&[0xed, 0xab, 0xee, 0xdb]], unpack("rpm2cpio {in} | cpio -idm")),
    entry("a cpio archive", &[b"070701", b"070702"],
        unpack("cpio -idm < {in}"))
        .and(|head| head.get(6..14).is_some_and(|inode| inode.iter().all(u8::is_ascii_hexdigit))),
    entry("a cpio archive", &[b"070707"],
        unpack("cpio -idm < {in}"))
        .and(|head| head.get(6..18).is_some_and(|inode| inode.iter().all(u8::is_ascii_digit))),
    entry("a cpio archive", &[&[0xc7, 0x71]],
        unpack("cpio -idm < {in}")).and(|head| is_binary_cpio(head, le16)),
    entry("a cpio archive", &[&[0x71, 0xc7]],
        unpack("cpio -idm < {in}")).and(|head| is_binary_cpio(head, be16)),
    entry("a dar archive", &[&[0, 0, 0, 0x7b]],
        unpack("dar -x {stem}")).and(|head| matches!(head.get(14), Some(b'N' | b'T' | b'E'))),
    entry("a Nix archive", &[b"\x0d\0\0\0\0\0\0\0nix-archive-1"],
        unpack("nix-store --restore {stem} < {in}")),
    entry("an archive of KGB", &[b"KGB_arch"], LOOK),
    entry("a file compressed with lzop", &[b"\x89LZO\0\x0d\x0a\x1a\x0a"],
        unpack("lzop -d -o {out} {in}")),
    entry("a file compressed with lrzip", &[b"LRZI"], unpack("lrzip -d -o {out} {in}")),
    entry("a file compressed with rzip", &[b"RZIP"], unpack("rzip -d -o {out} {in}")),
    entry("a file compressed with compress", &[&[0x1f, 0x9d]],
        unpack("gzip -dc {in} > {out}")).and(is_compress),
    entry("a file compressed with lz4", &[&[0x04, 0x22, 0x4d, 0x18], &[0x02, 0x21, 0x4c, 0x18]],
        unpack("lz4 -d {in} {out}")),
    entry("a file compressed with LZ5", &[&[0x05, 0x22, 0x4d, 0x18]], unpack("lz5 -d {in} {out}")),
    entry("a file compressed with Lizard", &[&[0x06, 0x22, 0x4d, 0x18]],
        unpack("lizard -d {in} {out}")),
    entry("a file compressed with lzip", &[b"LZIP"],
        unpack("lzip -dc {in} > {out}")).and(|head| matches!(head.get(4), Some(0 | 1))),
    entry("a file compressed with LZMA", &[&[0x5d, 0, 0]],
        unpack("xz --format=lzma -dc {in} > {out}")).and(is_lzma),
    entry("a file compressed with bzip3", &[b"BZ3v1"], unpack("bzip3 -dc {in} > {out}")),
    entry("a file compressed with bzip", &[b"BZ0"],
        unpack("bzip -d {in}"))
        .and(|head| head.get(4..10) == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59])),
    entry("a file compressed with snappy", &[b"\xff\x06\0\0sNaPpY"],
        unpack("snzip -dc {in} > {out}")),
    entry("a file compressed with LZFSE", &[b"bvx2", b"bvxn", b"bvx-"],
        unpack("lzfse -decode -i {in} -o {out}")),
    entry("a file compressed with qpress", &[b"qpress10"], unpack("qpress -d {in} .")),
    entry("a file compressed with zlib", &[&[0x78]],
        unpack("pigz -dc < {in} > {out}")).and(is_zlib),
    entry("a file compressed by Microsoft's compress", &[b"SZDD\x88\xf0\x27\x33"],
        unpack("msexpand < {in} > {out}")),
    entry("a file compressed by Microsoft's compress", &[b"KWAJ\x88\xf0\x27\xd1"],
        unpack("7z x {in}")),
    entry("a file of an old Zstandard", &[&[0xb5, 0x2f, 0xfd]],
        unpack("zstd -d {in} -o {out}")).at(1)
        .and(|head| matches!(head.first(), Some(0x22..=0x27))),
    entry("a file of skippable frames", &[&[0x2a, 0x4d, 0x18]],
        unpack("zstd -d {in} -o {out}")).at(1)
        .and(|head| matches!(head.first(), Some(0x50..=0x5f))),
    entry("a file encrypted by openssl", &[b"Salted__"],
        advise("Decrypt it first with: openssl enc -d")),
    entry("a file encrypted with age", &[b"age-encryption.org/v"],
        Way::Run("Decrypt it with", "age -d -o {out} {in}")),
    entry("a file encrypted with OpenPGP", &[&[0x8c, 0x0d, 0x04]],
        Way::Run("Decrypt it with", "gpg -o {out} -d {in}"))
        .and(|head| matches!(head.get(3..5), Some([1..=11, 3]))),
    entry("a file encrypted with OpenPGP", &[&[0x8c, 0x0d, 0x05]],
        Way::Run("Decrypt it with", "gpg -o {out} -d {in}"))
        .and(|head| matches!(head.get(3..5), Some([1..=11, _]))),
    entry("a file encrypted with OpenPGP", &[&[0x85]],
        Way::Run("Decrypt it with", "gpg -o {out} -d {in}"))
        .and(|head| matches!(head, [_, 1..=4, _, 3, ..]) && matches!(head.get(12), Some(1 | 2 | 16 | 18))),
    entry("a file encrypted with AES Crypt", &[b"AES\x02\0"],
        Way::Run("Decrypt it with", "aescrypt -d -o {out} {in}")),
];

/// Programs, memory dumps, firmware, and companion files of images.
#[rustfmt::skip]
const OTHERS: &[Entry] = &[
    entry("a core dump", &[b"\x7fELF"],
        MEMORY).and(|head| is_elf(head) && matches!(head.get(16..18), Some([4, 0] | [0, 4]))),
    entry("a program (ELF)", &[b"\x7fELF"], LOOK).and(is_elf),
    entry("a program of Windows", &[b"MZ"], LOOK).and(is_pe),
    entry("a picture (JPEG)", &[&[0xff, 0xd8, 0xff]],
        LOOK).and(|head| matches!(head.get(3), Some(0xc0..=0xfe)) && head.get(4) == Some(&0)),
    entry("a picture (BMP)", &[b"BM"], LOOK).and(is_bmp),
    entry("a kernel dump", &[b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0"], MEMORY),
    entry("a crash dump of Windows", &[b"PAGEDUMP", b"PAGEDU64", b"MDMP\x93\xa7"], MEMORY),
    entry("a saved state of libvirt", &[b"LibvirtQemudSave", b"LibvirtQemudPart"], MEMORY),
    entry("a saved state of QEMU", &[b"QEVM\0\0\0"], MEMORY),
    entry("a saved state of Xen", &[b"LinuxGuestRecord", b"XenSavedDomain"], MEMORY),
    entry("a saved state of VirtualBox", &[b"\x7fVirtualBox SavedState V"], MEMORY),
    entry("a saved state of VMware", &[&[0xbe, 0xd2, 0xbe]],
        MEMORY).at(1).and(|head| matches!(head.first(), Some(0xd0..=0xd3))),
    entry("a firmware file (UF2)", &[b"UF2\n\x57\x51\x5d\x9e"], FIRMWARE),
    entry("a U-Boot image", &[&[0x27, 0x05, 0x19, 0x56]], FIRMWARE),
    entry("a device tree or FIT image", &[&[0xd0, 0x0d, 0xfe, 0xed]],
        FIRMWARE).and(|head| matches!(head.get(20..24), Some([0, 0, 0, 1..=17]))),
    entry("an Android boot image", &[b"ANDROID!", b"VNDRBOOT"], FIRMWARE),
    entry("an update of Android or Chrome OS", &[b"CrAU\0\0\0"], unpack("payload-dumper-go {in}")),
    entry("a firmware file (TRX)", &[b"HDR0"], FIRMWARE),
    entry("a firmware of UEFI", &[b"_FVH"], FIRMWARE).at(40),
    entry("a firmware of a PC", &[&[0x5a, 0xa5, 0xf0, 0x0f]], FIRMWARE).at(16),
    entry("an AppleDouble file, a companion of another one", &[&[0, 5, 0x16, 7, 0, 2, 0, 0]],
        advise("The image is the file whose name is the same without ._ before it")),
    entry("an AppleSingle file", &[&[0, 5, 0x16, 0, 0, 2, 0, 0]], unpack("unar {in}")),
    entry("a description of a macOS directory", &[b"\0\0\0\x01Bud1"], LOOK),
    entry("a pack of git", &[b"PACK\0\0\0"], LOOK).and(|head| matches!(head.get(7), Some(2 | 3))),
    entry("a torrent", &[b"d8:announce", b"d7:comment", b"d10:created by", b"d13:announce-list"],
        Way::Run("Fetch what it describes with", "aria2c {in}")),
];

/// Content that is not a disk although it begins with a boot sector (so that boot loaders can start
/// it) or contains a file system.
#[rustfmt::skip]
const IN_SPITE_OF_A_SIGN: &[Entry] = &[
    entry("a Linux kernel", &[b"HdrS"],
        advise("A machine boots it from a disk: there is none in it")).at(514),
    entry("a Linux kernel", &[b"ARM\x64", b"RSC\x05"],
        advise("A machine boots it from a disk: there is none in it")).at(56),
    entry("an AppImage", &[b"\x7fELF"],
        LOOK).and(|head| matches!(head.get(8..11), Some([b'A', b'I', 1 | 2]))),
];

/// Content that is recognised even if there is a sign of a disk.
pub(super) fn surely(head: &[u8]) -> Option<Foreign> {
    find(&[IN_SPITE_OF_A_SIGN], head)
}

/// Recognises content by its first bytes.
pub(super) fn of_head(head: &[u8]) -> Option<Foreign> {
    find(&[DISKS, PACKED, OTHERS], head)
}

fn find(tables: &[&[Entry]], head: &[u8]) -> Option<Foreign> {
    let is_it = |entry: &&Entry| {
        let rest = head.get(entry.at..);
        rest.is_some_and(|rest| entry.magics.iter().any(|magic| rest.starts_with(magic)))
            && entry.and.is_none_or(|is_right| is_right(head))
    };
    let mut entries = tables.iter().copied().flatten();
    let found = entries.find(is_it)?;
    Some(Foreign::new(found.what, found.way))
}

/// Two bytes, then plausible sizes of headers, and the file type of the archive itself.
fn is_arj(head: &[u8]) -> bool {
    let size = le16(head, 2).unwrap_or(0);
    let first = u16::from(head.get(4).copied().unwrap_or(0));
    (30..=2600).contains(&size) && (30..=size).contains(&first) && head.get(10) == Some(&2)
}

/// `-lh5-` and its like.
fn is_lha(head: &[u8]) -> bool {
    let method = head.get(4..7);
    matches!(
        method,
        Some([b'h' | b'z', b'0'..=b'9' | b'd' | b's' | b'x', b'-'])
    )
}

/// The name of the first file ends with its only NUL, where its length says.
fn is_binary_cpio(head: &[u8], read: fn(&[u8], usize) -> Option<u16>) -> bool {
    let len = usize::from(read(head, 20).unwrap_or(0));
    let name = head.get(26..26 + len).unwrap_or_default();
    let end = name.iter().position(|byte| *byte == 0);
    len > 1 && end == Some(len - 1) && name.iter().all(|byte| *byte == 0 || *byte >= b' ')
}

/// A valid number of bits, no reserved bits, and a first code that stands for one byte.
fn is_compress(head: &[u8]) -> bool {
    let flags = head.get(2).copied().unwrap_or(0);
    let first = le16(head, 3).unwrap_or(u16::MAX) & 0x1ff;
    flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1f)) && first < 256
}

/// A dictionary of a usual size, a size that is unknown or plausible, and the zero byte that all
/// such streams begin with.
fn is_lzma(head: &[u8]) -> bool {
    let dictionary = le32(head, 1).unwrap_or(0);
    let is_usual = dictionary.is_power_of_two()
        || (dictionary.checked_mul(2)).is_some_and(|twice| (twice / 3).is_power_of_two());
    let size = le64(head, 5).unwrap_or(0);
    let is_size = size == u64::MAX || (1..1 << 48).contains(&size);
    is_usual && is_size && head.get(13) == Some(&0)
}

/// A header whose checksum is right, and data that can be decompressed as far as it is there.
fn is_zlib(head: &[u8]) -> bool {
    const SOME_BYTES: usize = 4096;
    let [first, second, ..] = head else {
        return false;
    };
    let is_header = u16::from_be_bytes([*first, *second]).is_multiple_of(31) && second & 0x20 == 0;
    let mut plain = [0; SOME_BYTES];
    let packed = head.get(..SOME_BYTES).unwrap_or(head);
    let mut inflate = flate2::Decompress::new(true);
    let inflated = inflate.decompress(packed, &mut plain, flate2::FlushDecompress::None);
    is_header && inflated.is_ok() && inflate.total_out() >= 64
}

fn is_elf(head: &[u8]) -> bool {
    matches!(head.get(4..7), Some([1 | 2, 1 | 2, 1]))
}

/// The offset of a second header, and the signature there.
fn is_pe(head: &[u8]) -> bool {
    let at = le32(head, 0x3c).and_then(|at| usize::try_from(at).ok());
    let second = at
        .and_then(|at| head.get(at..))
        .and_then(|rest| rest.get(..4));
    matches!(
        second,
        Some([b'P', b'E', 0, 0] | [b'N' | b'L', b'E' | b'X', ..])
    )
}

/// Zeros in the reserved bytes, and a second header with one of the existing sizes.
fn is_bmp(head: &[u8]) -> bool {
    let header = le32(head, 14);
    le32(head, 6) == Some(0) && matches!(header, Some(12 | 40 | 52 | 56 | 64 | 108 | 124))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_has_four_bytes_or_a_second_condition() {
        for entry in [DISKS, PACKED, OTHERS, IN_SPITE_OF_A_SIGN]
            .into_iter()
            .flatten()
        {
            let is_long = entry.magics.iter().all(|magic| magic.len() >= 4);
            assert!(is_long || entry.and.is_some(), "{}", entry.what);
        }
    }
}
