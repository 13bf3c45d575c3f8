//! Content that is not a raw disk is refused before a drive is created, with the command that
//! converts it to a disk. And notices about disks that are sent.

use std::process::{Command, Stdio};

use openhosting::image::{Image, ImageOptions};

use crate::streams::Site;
use crate::support::cli::{Desk, Outcome, SIMPLE};
use crate::support::http::{assert_drive, drives, info};
use crate::support::needs::{Need, needs};
use crate::support::server::TestServer;
use crate::support::{gzip, noise};

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;

struct Scene {
    desk: Desk,
    server: TestServer,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        Self { desk, server }
    }

    fn upload(&self, args: &[&str]) -> Outcome {
        let tool = self.desk.upload(&self.server.uri);
        tool.list(args.iter().copied()).run()
    }

    fn pipe(&self, args: &[&str], input: &[u8]) -> Outcome {
        let tool = self.desk.upload(&self.server.uri);
        tool.list(args.iter().copied()).input(input).run()
    }

    fn simple(&self, args: &[&str]) -> Outcome {
        let tool = self.desk.simple(&self.server.uri);
        tool.list(args.iter().copied()).run()
    }

    #[track_caller]
    fn holds(&self, outcome: Outcome, disk: &[u8]) -> Outcome {
        let outcome = outcome.code(0);
        let drive = outcome.created();
        assert_drive(&self.server, &drive, disk);
        let size = info(&self.server, &drive, "size").unwrap();
        assert_eq!(size, disk.len().to_string());
        outcome
    }

    /// Runs a shell command in the directory of the tools.
    #[track_caller]
    fn shell(&self, command: &str) {
        let upload = std::path::Path::new(crate::support::cli::UPLOAD);
        let path = format!(
            "{}:{}:/usr/sbin:/sbin",
            upload.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let run = Command::new("bash")
            .args(["-c", &format!("set -o pipefail; {command}")])
            .current_dir(self.desk.work())
            .env("PATH", path)
            .env("OHURI", &self.server.uri)
            .env("OHAUTH", self.desk.auth())
            .env("HOME", self.desk.path("."))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{command}: {said}");
        for entry in std::fs::read_dir(self.desk.work()).unwrap() {
            self.desk.own(&entry.unwrap().path());
        }
    }
}

/// A disk with a partition table, so that it is certainly recognised.
fn disk(seed: u64) -> Vec<u8> {
    let mut disk = noise(seed, MIB + 3 * SECTOR);
    disk[..MIB / 2].fill(0);
    disk[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// The command in a hint: after the words before it, and without the text in brackets after it.
fn command_of(outcome: &Outcome) -> String {
    let hint = outcome.stderr.lines().nth(1).unwrap();
    let (_, command) = hint.split_once(": ").unwrap();
    let end = command.rfind(" (").unwrap_or(command.len());
    command[..end].to_owned()
}

/// Whether these programs are installed; without them, a part of a test is skipped.
#[track_caller]
fn has(programs: &[&'static str]) -> bool {
    let programs: Vec<_> = programs.iter().copied().map(Need::Command).collect();
    needs(&programs)
}

/// The header of an Android sparse image, and one chunk with everything.
fn sparse(plain: &[u8]) -> Vec<u8> {
    let blocks = (plain.len() / SECTOR) as u32;
    let mut image = vec![0x3a, 0xff, 0x26, 0xed, 1, 0, 0, 0, 28, 0, 12, 0];
    for number in [SECTOR as u32, blocks, 1, 0] {
        image.extend(number.to_le_bytes());
    }
    image.extend([0xc1, 0xca, 0, 0]);
    image.extend(blocks.to_le_bytes());
    image.extend((12 + plain.len() as u32).to_le_bytes());
    [image, plain.to_vec()].concat()
}

/// An empty QED image with QEMU's defaults.
fn qed() -> Vec<u8> {
    let mut image = b"QED\0\0\0\x01\0\x04\0\0\0\x01\0\0\0".to_vec();
    image.resize(4 << 16, 0);
    image
}

fn foreign() -> Vec<(&'static str, Vec<u8>)> {
    let page = "<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n";
    let wide: Vec<u8> = page.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let pad = |start: &[u8]| [start, &noise(1, 5000)].concat();
    vec![
        ("an Android sparse image", sparse(&disk(1))),
        ("a QED image", qed()),
        ("a web page", page.into()),
        ("a web page", [&b"\xff\xfe"[..], &wide].concat()),
        ("a web page", "\n\n<?xml version='1.0'?>\n<html/>".into()),
        ("a pointer of Git LFS", lfs.into()),
        ("an EWF (EnCase) image", pad(b"EVF\x09\x0d\x0a\xff\0")),
        ("a 7z archive", pad(b"7z\xbc\xaf\x27\x1c")),
        (
            "a program (ELF)",
            pad(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0"),
        ),
        (
            "Portable Document Format",
            pad(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
        ),
    ]
}

#[test]
fn content_that_is_not_a_disk_is_refused_before_a_drive_is_created() {
    let scene = Scene::new();
    for (i, (what, bytes)) in foreign().into_iter().enumerate() {
        let refused = |outcome: Outcome, within: &str| {
            let outcome = outcome.code(1).says(&format!(" is {what}")).says(within);
            outcome.says("not a raw disk").says("--format raw")
        };
        let (name, packed) = (format!("{i}.img"), format!("{i}.img.gz"));
        scene.desk.file(&name, &bytes);
        scene.desk.file(&packed, &gzip(&bytes));
        refused(scene.upload(&[&name]), "");
        refused(scene.upload(&[&packed]), "within gzip");
        refused(scene.upload(&["-z", &packed]), "within gzip");
        refused(scene.pipe(&["-"], &bytes), "");
        refused(scene.pipe(&["-"], &gzip(&bytes)), "within gzip");
        refused(scene.simple(&["publish", &name, "--name", "n"]), "");
        refused(scene.simple(&["image", "info", &name]), "");
        refused(scene.simple(&["image", "info", &packed]), "within gzip");
        let tar = format!("{i}.tar");
        scene.shell(&format!("tar -cf {tar} {name}"));
        refused(scene.upload(&["--disk", &name, &tar]), "");
        for site in [Site::of(&bytes), Site::without_ranges(&bytes)] {
            let web = site.serve();
            refused(scene.upload(&[&format!("{}a", web.uri())]), "");
        }
        let json = scene.upload(&["--json", &name]).code(1);
        let object: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(object["error"]["kind"], "image", "{object}");
    }
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    let (_, bytes) = &foreign()[0];
    scene.holds(scene.upload(&["--format", "raw", "0.img"]), bytes);
    scene.holds(scene.pipe(&["--format", "raw", "-"], bytes), bytes);
    let member = ["--disk", "0.img", "--format", "raw", "0.tar"];
    scene.holds(scene.upload(&member), bytes);
}

#[test]
fn a_device_is_treated_by_its_content() {
    let scene = Scene::new();
    let image = sparse(&disk(1));
    let image = [
        &image[..],
        &vec![0; image.len().next_multiple_of(SECTOR) - image.len()],
    ]
    .concat();
    let path = scene.desk.file("a.img", &image);
    let Some(device) = crate::support::disk::LoopDevice::over(&path, &[]) else {
        return;
    };
    scene.holds(scene.upload(&["-n", "a", &device.0]), &image);
}

/// Formats that a command creates from `disk` in a file of this name, and the programs that this
/// and the way back need.
const MADE: &[(&str, &str, &[&str])] = &[
    (
        "a.qed",
        "qemu-img convert -f raw -O qed disk a.qed",
        &["qemu-img"],
    ),
    (
        "a.hdd",
        "qemu-img convert -f raw -O parallels disk a.hdd",
        &["qemu-img"],
    ),
    (
        "a b.simg",
        "truncate -s %4096 disk && img2simg disk 'a b.simg' 4096",
        &["img2simg", "simg2img"],
    ),
    (
        "a.E01",
        "ewfacquire -u -l /dev/null -t \"$PWD\"/a \"$PWD\"/disk.raw >/dev/null",
        &["ewfacquire", "ewfexport"],
    ),
    (
        "a.aff",
        "cp disk b.raw && affconvert -q b.raw && mv b.aff a.aff",
        &["affconvert"],
    ),
    ("a.img.lzo", "lzop -o a.img.lzo disk", &["lzop"]),
    ("a.img.lrz", "lrzip -q -o a.img.lrz disk", &["lrzip"]),
    (
        "a.img.Z",
        "compress -c disk > a.img.Z",
        &["compress", "gzip"],
    ),
    ("a.img.bz3", "bzip3 -e -c disk > a.img.bz3", &["bzip3"]),
    ("a.img.zz", "pigz -zc disk > a.img.zz", &["pigz"]),
    ("-a.7z", "7z a -bd ./-a.7z disk.raw >/dev/null", &["7z"]),
    (
        "a.cpio",
        "echo disk.raw | cpio -o -H newc > a.cpio",
        &["cpio"],
    ),
    ("b.cpio", "echo disk.raw | cpio -o > b.cpio", &["cpio"]),
    ("a.a", "ar rc a.a disk.raw", &["ar"]),
    ("a.zpaq", "zpaq a a.zpaq disk.raw", &["zpaq"]),
    (
        "a.wim",
        "mkdir w && mv disk.raw w && wimlib-imagex capture w a.wim",
        &["wimlib-imagex", "7z"],
    ),
    (
        "a.pc",
        "truncate -s 2M disk && mke2fs -q -F -t ext4 disk && partclone.ext4 -c -L /dev/null -s disk -o a.pc",
        &["mke2fs", "partclone.ext4", "partclone.restore"],
    ),
    (
        "a.img.gz",
        "truncate -s %4096 disk && img2simg disk a.img 4096 && gzip a.img",
        &["img2simg", "simg2img", "gzip"],
    ),
    (
        "a.qcow2.xz",
        "qemu-img convert -f raw -O qcow2 disk a.qcow2 && xz a.qcow2",
        &["qemu-img", "xz"],
    ),
    (
        "m.tar",
        "7z a -bd m.7z disk.raw >/dev/null && mv m.7z ./-m.img && tar -cf m.tar -- -m.img && rm ./-m.img",
        &["7z", "tar"],
    ),
    (
        "b.img.gz.gz",
        "gzip -c disk | gzip -c > b.img.gz.gz",
        &["gzip"],
    ),
];

#[test]
fn the_command_of_the_hint_makes_the_disk() {
    for (name, make, programs) in MADE {
        if !has(programs) {
            continue;
        }
        let scene = Scene::new();
        let content = disk(2);
        scene.desk.file("disk", &content);
        scene.desk.file("disk.raw", &content);
        scene.shell(make);
        let content = match name.ends_with(".pc") {
            true => std::fs::read(scene.desk.path("disk")).unwrap(),
            false => content,
        };
        let _ = std::fs::remove_file(scene.desk.path("disk"));
        let _ = std::fs::remove_file(scene.desk.path("disk.raw"));
        let before: Vec<_> = std::fs::read_dir(scene.desk.work())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let outcome = scene.upload(&["--", name]).code(1);
        assert_eq!(drives(&scene.server), Vec::<String>::new(), "{name}");
        scene.shell(&command_of(&outcome));
        let mut drive = drives(&scene.server).pop();
        if drive.is_none() {
            // The command created a file, or the archive contained one.
            let made = std::fs::read_dir(scene.desk.work())
                .unwrap()
                .map(|entry| entry.unwrap().path());
            let mut made: Vec<_> = made
                .filter(|path| path.is_file() && !before.contains(path))
                .collect();
            made.retain(|path| {
                path.extension()
                    .is_none_or(|extension| extension != "info" && extension != "simg")
            });
            made.sort_by_key(|path| path.metadata().unwrap().len());
            let made = made.pop().unwrap_or_else(|| panic!("{name}: {outcome:?}"));
            let outcome = scene.upload(&["-n", "a", &made.to_string_lossy()]).code(0);
            drive = Some(outcome.created());
        }
        let drive = drive.unwrap();
        let mut content = content;
        let size: usize = info(&scene.server, &drive, "size")
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            size >= content.len() && size - content.len() < 4096,
            "{name}: {size}"
        );
        content.resize(size, 0);
        assert_drive(&scene.server, &drive, &content);
    }
}

/// The footer of a VHD of this kind with a disk of `size` bytes.
fn footer(size: usize, kind: u8) -> Vec<u8> {
    let mut footer = vec![0; SECTOR];
    footer[..8].copy_from_slice(b"conectix");
    footer[8..16].copy_from_slice(&[0, 0, 0, 2, 0, 1, 0, 0]);
    footer[16..24].fill(0xff);
    footer[40..48].copy_from_slice(&(size as u64).to_be_bytes());
    footer[48..56].copy_from_slice(&(size as u64).to_be_bytes());
    footer[63] = kind;
    let sum = footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

fn spoiled(mut footer: Vec<u8>, at: usize) -> Vec<u8> {
    footer[at] ^= 1;
    footer
}

fn koly() -> Vec<u8> {
    let mut koly = b"koly\0\0\0\x04\0\0\x02\0".to_vec();
    koly.resize(SECTOR, 0);
    koly
}

#[test]
fn the_footer_of_a_fixed_vhd_is_not_sent() {
    let scene = Scene::new();
    // The last sector is split by a chunk, or is the only one in it.
    for len in [MIB + 3 * SECTOR, MIB, MIB - SECTOR, 100 * SECTOR] {
        let disk = &disk(3)[..len];
        let vhd = [disk, &footer(len, 2)].concat();
        scene.desk.file("a.vhd", &vhd);
        scene.desk.file("a.vhd.gz", &gzip(&vhd));
        let chunk = ["-c", "1048576"];
        let said = "its footer, the last 512 bytes, was left out";
        let left_out = |outcome: Outcome| {
            let outcome = scene.holds(outcome, disk);
            assert_eq!(outcome.stderr.matches(said).count(), 1, "{outcome:?}");
        };
        scene.holds(scene.upload(&[&chunk[..], &["a.vhd"]].concat()), disk);
        for args in [
            &["a.vhd.gz"][..],
            &["-z", "a.vhd.gz"],
            &["--size", &len.to_string(), "a.vhd.gz"],
        ] {
            left_out(scene.upload(&[&chunk[..], args, &["--verify", "full"]].concat()));
        }
        for input in [&vhd, &gzip(&vhd)] {
            left_out(scene.pipe(&[&chunk[..], &["-"]].concat(), input));
            let web = Site::without_ranges(input).serve();
            left_out(scene.upload(&[&chunk[..], &[&format!("{}a", web.uri())]].concat()));
        }
        let web = Site::of(&vhd).serve();
        scene.holds(scene.upload(&[&format!("{}a", web.uri())]), disk);
        // With --format raw, everything is part of the disk.
        scene.holds(scene.pipe(&["--format", "raw", "-"], &vhd), &vhd);
        scene
            .upload(&["--no-journal", "--size", &vhd.len().to_string(), "a.vhd.gz"])
            .code(1)
            .says("declared");
    }
}

#[test]
fn a_vhd_with_a_damaged_footer_is_read_if_unambiguous() {
    let scene = Scene::new();
    let disk = disk(4);
    let len = disk.len();
    let sure = [
        [&disk[..], &spoiled(footer(len, 2), 65)].concat(),
        [&disk[..], &vec![0; 5 * SECTOR], &footer(len, 2)].concat(),
    ];
    for vhd in sure {
        scene.desk.file("a.vhd", &vhd);
        scene.holds(scene.upload(&["a.vhd"]), &disk).says("is vhd");
    }
    let gap = noise(9, 5 * SECTOR);
    for (vhd, has_size) in [
        ([&disk[..], &gap, &footer(len, 2)].concat(), true),
        (
            [&disk[..], &spoiled(footer(len + SECTOR, 2), 65)].concat(),
            false,
        ),
        ([&disk[..], &footer(len + SECTOR, 2)].concat(), false),
        ([&disk[..], &footer(len, 3)].concat(), false),
        ([&disk[..], &footer(len, 2)[..511]].concat(), false),
    ] {
        let known = drives(&scene.server);
        scene.desk.file("a.vhd", &vhd);
        let outcome = scene.upload(&["a.vhd"]).code(1);
        let outcome = outcome
            .says("ends with the footer of a VHD")
            .says("--format raw sends it");
        assert_eq!(drives(&scene.server), known);
        scene.holds(scene.upload(&["--format", "raw", "a.vhd"]), &vhd);
        if has_size {
            let outcome = outcome.says(&format!("--format vhd takes its first {len} bytes"));
            scene.holds(scene.upload(&["--format", "vhd", "a.vhd"]), &disk);
            scene.shell(&command_of(&outcome));
            let rest = &vhd[..vhd.len() - SECTOR];
            scene.holds(scene.upload(&["a.img"]), rest);
        }
    }
}

/// A dynamic VHD with blocks of 32 KiB: for each existing block its bitmap and its bytes.
fn dynamic(blocks: &[Option<(Vec<u8>, Vec<u8>)>]) -> Vec<u8> {
    const BLOCK: usize = 32 << 10;
    let mut footer = footer(blocks.len() * BLOCK, 3);
    footer[16..24].copy_from_slice(&512_u64.to_be_bytes());
    footer[64..68].fill(0);
    let sum = |bytes: &[u8]| !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let checksum = sum(&footer);
    footer[64..68].copy_from_slice(&checksum.to_be_bytes());
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[24..28].copy_from_slice(&[0, 1, 0, 0]);
    header[28..32].copy_from_slice(&(blocks.len() as u32).to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    let checksum = sum(&header);
    header[36..40].copy_from_slice(&checksum.to_be_bytes());
    let (mut table, mut body) = (vec![0xff; SECTOR], Vec::new());
    for (i, block) in blocks.iter().enumerate() {
        let Some((bitmap, bytes)) = block else {
            continue;
        };
        let at = (2048 + body.len()) as u32 / 512;
        table[4 * i..4 * i + 4].copy_from_slice(&at.to_be_bytes());
        body.extend_from_slice(bitmap);
        body.resize(body.len() + SECTOR - bitmap.len(), 0);
        body.extend_from_slice(bytes);
    }
    [footer.clone(), header, table, body, footer].concat()
}

#[test]
fn unwritten_sectors_of_a_dynamic_vhd_are_zeros() {
    const BLOCK: usize = 32 << 10;
    let scene = Scene::new();
    let all = noise(11, 4 * BLOCK);
    let block = |i: usize| all[i * BLOCK..(i + 1) * BLOCK].to_vec();
    // Every sector except those of the second KiB, and the last one; a block whose writer ignored
    // the bitmap; a complete block; and a missing one.
    let mut bitmap = vec![0xff; 8];
    (bitmap[0], bitmap[7]) = (0b1100_1111, 0xfe);
    let blocks = [
        Some((bitmap, block(0))),
        Some((vec![0; 8], block(1))),
        Some((vec![0xff; 8], block(2))),
        None,
    ];
    let mut disk = all.clone();
    disk[1024..2048].fill(0);
    disk[BLOCK - SECTOR..BLOCK].fill(0);
    disk[3 * BLOCK..].fill(0);
    scene.desk.file("a.vhd", &dynamic(&blocks));
    for flags in ["", "-c 512 --holes trust", "-c 5000 --checksum"] {
        let mut args: Vec<_> = flags.split_whitespace().collect();
        args.push("a.vhd");
        scene.holds(scene.upload(&args), &disk);
    }
    let mapped = scene.simple(&["image", "info", "-j", "a.vhd"]).code(0);
    let info: serde_json::Value = serde_json::from_str(mapped.text()).unwrap();
    let data = (3 * BLOCK - 3 * SECTOR) as u64;
    assert_eq!(info["allocated_bytes"], data, "{info}");
}

#[test]
fn a_stream_with_a_foreign_footer_is_not_complete() {
    let scene = Scene::new();
    let disk = disk(5);
    let len = disk.len();
    for (i, (tail, what)) in [
        (koly(), "an Apple disk image (DMG)"),
        (spoiled(footer(len, 2), 65), "the footer of a VHD"),
        (footer(len + SECTOR, 2), "the footer of a VHD"),
        (footer(len, 3), "the footer of a VHD"),
        (
            [&[0; 500][..], b"MACRIUM_FILE"].concat(),
            "a backup of Macrium Reflect",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = |way: &str| format!("{way}{i}");
        let bytes = [&disk[..], &tail].concat();
        scene.desk.file("a.img", &bytes);
        scene.desk.file("a.img.gz", &gzip(&bytes));
        let web = Site::without_ranges(&bytes).serve();
        let before = drives(&scene.server);
        // It is known before a drive is created. For a file, which can be inspected in advance, a
        // footer with a wrong checksum is sufficient.
        if i != 1 {
            scene.upload(&["a.img"]).code(1).says(what);
        }
        scene.upload(&["-z", "a.img.gz"]).code(1).says(what);
        assert_eq!(drives(&scene.server), before);
        for outcome in [
            scene.upload(&["-n", &name("file"), "a.img.gz"]),
            scene.pipe(&["-n", &name("pipe"), "-"], &bytes),
            scene.pipe(&["-n", &name("packed"), "-"], &gzip(&bytes)),
            scene.upload(&[&format!("{}a", web.uri())]),
        ] {
            let outcome = outcome.code(1).says(what).says("--format raw");
            let drive = outcome.created();
            let removal = format!("(to remove it: openhosting rm {drive})");
            let outcome = outcome.says(&removal);
            assert!(!outcome.text().contains("completed"), "{outcome:?}");
        }
    }
}

/// A disk with a GPT for sectors of this size, whose header states where its copy is.
fn with_gpt(size: usize, sector: usize, backup: usize) -> Vec<u8> {
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&1_u64.to_le_bytes());
    header[32..40].copy_from_slice(&((backup / sector) as u64).to_le_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    header[16..20].copy_from_slice(&crc.sum().to_le_bytes());
    let mut disk = noise(7, size);
    disk[510..512].fill(0);
    disk[sector..sector + 92].copy_from_slice(&header);
    disk
}

const NO_SIGN: &str = "No boot signature, partition table or known file system";
const NO_SECTORS: &str = "is not a multiple of the sector size";
const OTHER_SECTORS: &str = "made for sectors of 4096 bytes";
const CUT: &str = "beyond the end of the image: was it cut off?";
const MOVED: &str = "not at the end of the drive";

#[test]
fn peculiarities_of_a_disk_are_reported_once() {
    let scene = Scene::new();
    let size = 2 * MIB;
    let last = |sector| size - sector;
    let cases: [(Vec<u8>, &[&str]); 7] = [
        (disk(1), &[]),
        (with_gpt(size, 512, last(512)), &[]),
        (noise(1, size)[512..].to_vec(), &[NO_SIGN]),
        (noise(1, size)[511..].to_vec(), &[NO_SIGN, NO_SECTORS]),
        (with_gpt(size, 4096, last(4096)), &[OTHER_SECTORS]),
        (with_gpt(size, 512, size + 512), &[CUT]),
        (with_gpt(size + 4096, 512, last(512)), &[MOVED]),
    ];
    for (image, expected) in cases {
        scene.desk.file("a.img", &image);
        scene.desk.file("a.img.gz", &gzip(&image));
        let web = Site::without_ranges(&image).serve();
        let all = [NO_SIGN, NO_SECTORS, OTHER_SECTORS, CUT, MOVED];
        let said = |text: &str| -> Vec<&str> {
            let lines = all.into_iter();
            let count = |line| std::iter::repeat_n(line, text.matches(line).count());
            lines.flat_map(count).collect()
        };
        for outcome in [
            scene.upload(&["a.img"]),
            scene.upload(&["a.img.gz"]),
            scene.upload(&["--size", &image.len().to_string(), "a.img.gz"]),
            scene.upload(&["-z", "a.img.gz"]),
            scene.pipe(&["-"], &image),
            scene.upload(&[&format!("{}a", web.uri())]),
        ] {
            let outcome = scene.holds(outcome, &image);
            assert_eq!(said(&outcome.stderr), expected, "{outcome:?}");
        }
        let drive = scene
            .simple(&[
                "publish",
                "--cleanup",
                "--base",
                "none",
                "--name",
                &format!("n{}", image.len()),
                "a.img",
            ])
            .code(0);
        // Notices about the drive are printed when the drive is written.
        let of_image: Vec<_> = expected
            .iter()
            .copied()
            .filter(|line| ![CUT, MOVED].contains(line))
            .collect();
        let published = said(&drive.stderr)
            .into_iter()
            .filter(|line| ![CUT, MOVED].contains(line));
        assert_eq!(published.collect::<Vec<_>>(), of_image, "{drive:?}");
        let text = scene.simple(&["image", "info", "a.img"]).code(0);
        assert_eq!(said(text.text()), expected);
        let json = scene.simple(&["image", "info", "-j", "a.img"]).code(0);
        let object: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        let notices = object["notices"].as_array().unwrap();
        assert_eq!(notices.len(), expected.len(), "{object}");
        assert_eq!(said(&object["notices"].to_string()), expected);
        // For a compressed image, only what its first bytes show.
        let packed = scene.simple(&["image", "info", "-j", "a.img.gz"]).code(0);
        let object: serde_json::Value = serde_json::from_slice(&packed.stdout).unwrap();
        let early: Vec<_> = expected
            .iter()
            .copied()
            .filter(|line| [NO_SIGN, OTHER_SECTORS].contains(line))
            .collect();
        assert_eq!(said(&object["notices"].to_string()), early);
        let outcome = scene.upload(&["--format", "raw", "a.img"]).code(0);
        assert!(!outcome.stderr.contains(NO_SIGN), "{outcome:?}");
    }
    let quiet = scene.upload(&["-q", "a.img"]).code(0);
    assert_eq!(quiet.stderr.lines().count(), 1, "{quiet:?}");
    let _ = quiet.says(MOVED);
}

#[test]
fn a_vhdx_with_large_sectors_is_named_as_one() {
    if !has(&["qemu-img"]) {
        return;
    }
    let scene = Scene::new();
    let disk = disk(6);
    scene.desk.file("disk", &disk);
    scene.shell("qemu-img convert -f raw -O vhdx disk a.vhdx");
    let mut image = std::fs::read(scene.desk.path("a.vhdx")).unwrap();
    // The metadata with this GUID, and 4 bytes with the sector size.
    let guid = [
        0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab,
        0x5f,
    ];
    let item = image.windows(16).position(|bytes| bytes == guid).unwrap();
    let table = image
        .windows(8)
        .position(|bytes| bytes == b"metadata")
        .unwrap();
    let at = u32::from_le_bytes(image[item + 16..item + 20].try_into().unwrap()) as usize;
    image[table + at..table + at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    scene.desk.file("a.vhdx", &image);
    scene.upload(&["a.vhdx"]).code(0).says(OTHER_SECTORS);
    let json = scene.simple(&["image", "info", "-j", "a.vhdx"]).code(0);
    assert!(String::from_utf8_lossy(&json.stdout).contains(OTHER_SECTORS));
}

/// Commands that create a disk in a file of 64 MiB, and the programs that they need.
const DISKS: &[(&str, &[&str])] = &[
    ("printf 'label: gpt\\n,20M\\n,' | sfdisk -q d", &["sfdisk"]),
    ("printf 'label: dos\\n,20M\\n,' | sfdisk -q d", &["sfdisk"]),
    ("printf 'label: sun\\n,20M\\n' | sfdisk -q d", &["sfdisk"]),
    ("printf 'label: sgi\\n,20M\\n' | sfdisk -q d", &["sfdisk"]),
    ("mke2fs -q -F -t ext2 d", &["mke2fs"]),
    ("mke2fs -q -F -t ext4 d", &["mke2fs"]),
    ("mke2fs -q -F -t ext4 -b 1024 d", &["mke2fs"]),
    ("truncate -s 400M d && mkfs.xfs -q -f d", &["mkfs.xfs"]),
    ("mkswap -q d", &["mkswap"]),
    ("mkfs.minix -3 d >/dev/null", &["mkfs.minix"]),
    ("mkfs.minix -1 d >/dev/null", &["mkfs.minix"]),
    ("mkfs.bfs d", &["mkfs.bfs"]),
    ("mkfs.cramfs . d.c && mv d.c d", &["mkfs.cramfs"]),
    ("mkfs.fat d >/dev/null", &["mkfs.fat"]),
    ("mkfs.fat -F 32 d >/dev/null", &["mkfs.fat"]),
    ("mkfs.ntfs -q -F d", &["mkfs.ntfs"]),
    ("mkfs.exfat d >/dev/null", &["mkfs.exfat"]),
    ("truncate -s 300M d && mkfs.btrfs -q d", &["mkfs.btrfs"]),
    ("mkfs.f2fs -q d", &["mkfs.f2fs"]),
    ("mkfs.jfs -q d", &["mkfs.jfs"]),
    ("mkfs.nilfs2 -q d", &["mkfs.nilfs2"]),
    ("mkfs.udf -b 2048 d >/dev/null", &["mkfs.udf"]),
    (
        "mksquashfs . e -quiet -no-progress >/dev/null && mv e d",
        &["mksquashfs"],
    ),
    ("genisoimage -quiet -o e . && mv e d", &["genisoimage"]),
    ("mkfs.erofs d /etc/apt >/dev/null", &["mkfs.erofs"]),
    (
        "qemu-img create -q -f luks --object secret,id=s,data=a -o key-secret=s,iter-time=10 d 20M",
        &["qemu-img"],
    ),
];

#[test]
fn disks_of_all_kinds_are_recognised() {
    let scene = Scene::new();
    for (make, programs) in DISKS {
        if !has(programs) {
            continue;
        }
        let path = scene.desk.sparse("d", 64 << 20, &[]);
        scene.shell(make);
        let image = Image::open(&path, &ImageOptions::default()).unwrap();
        let notices = image.notices(false).join("\n");
        assert!(!notices.contains(NO_SIGN), "{make}");
        // Even if something else precedes it.
        let image = std::fs::read(&path).unwrap();
        let start = image.iter().position(|byte| *byte != 0).unwrap();
        if start >= 512 {
            let polyglot = [&b"7z\xbc\xaf\x27\x1c"[..], &image[6..]].concat();
            let path = scene.desk.file("p", &polyglot);
            Image::open(&path, &ImageOptions::default())
                .unwrap_or_else(|error| panic!("{make}: {error}"));
        }
        std::fs::remove_file(&path).unwrap();
    }
    let tool = scene.desk.tool(SIMPLE).args("image info d");
    let _ = tool.run().code(1);
}
