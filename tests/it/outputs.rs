//! Downloads to other formats and compressions, checked with qemu-img.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::cli::{Desk, Outcome, Tool};
use crate::support::disk::LoopDevice;
use crate::support::http::{Ask, assert_drive, create, drives};
use crate::support::needs::{Need, skip};
use crate::support::server::TestServer;
use crate::support::slow::SlowLink;
use crate::support::{gunzip, noise, ramp, seed};

const MIB: u64 = 1 << 20;
/// The ways to create a qcow2.
const QCOW2: [&str; 3] = [
    "--format qcow2",
    "--format qcow2 --compress zlib",
    "--format qcow2 --compress zstd",
];

/// A desk, a server, and a drive with compressible and incompressible data at the ends of clusters,
/// zeros, and an end within a sector. `disk.raw` holds the same.
struct Bench {
    desk: Desk,
    server: TestServer,
    drive: String,
    image: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let mut image = vec![0; (24 * MIB + 1537) as usize];
        for (at, bytes) in [
            (0, noise(1, 300_000)),
            (3 * MIB + 5, noise(2, 70_000)),
            (5 * MIB - 700, ramp(0, 5 << 20)),
            (18 * MIB + 512, b"three".to_vec()),
            (24 * MIB + 1000, noise(3, 537)),
        ] {
            let at = at as usize;
            image[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        desk.file("disk.raw", &image);
        let tool = desk.upload(&server.uri).arg("disk.raw");
        let drive = tool.run().code(0).created();
        Self {
            desk,
            server,
            drive,
            image,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    fn tool(&self, uri: &str, args: &str) -> Tool<'_> {
        self.desk.download(uri).args(args).arg(&self.drive)
    }

    fn run(&self, args: &str, to: &str) -> Outcome {
        self.tool(&self.server.uri, args).arg(to).run()
    }

    /// Checks that qemu-img finds no error in a qcow2, and the bytes of `disk.raw` in it, and that
    /// nothing else is left.
    #[track_caller]
    fn judge(&self, name: &str) {
        self.judge_content(name);
        for end in ["oh-part", "ohj"] {
            let left = self.path(&format!("{name}.{end}"));
            assert!(left.symlink_metadata().is_err(), "{left:?} is left");
        }
    }
}

impl Bench {
    #[track_caller]
    fn judge_content(&self, name: &str) {
        qemu_img(&self.desk, &format!("check -f qcow2 {name}"));
        qemu_img(
            &self.desk,
            &format!("compare -f raw -F qcow2 disk.raw {name}"),
        );
    }
}

#[track_caller]
fn qemu_img(desk: &Desk, words: &str) {
    let run = Command::new("qemu-img")
        .args(words.split_whitespace())
        .current_dir(desk.work())
        .output()
        .expect("qemu-img of qemu-utils is missing");
    assert!(run.status.success(), "qemu-img {words}: {run:?}");
}

/// Flags that name a file to write never cost a file of another kind, even with --restart.
#[test]
fn a_file_to_write_replaces_no_file_of_another_kind() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(4, 100_000);
    desk.file("a.img", &image);
    desk.file("notes.txt", b"three weeks of work");
    desk.file("b.img.sha256", b"three weeks of work");
    std::fs::create_dir(desk.path("pages")).unwrap();
    desk.file("pages/openhosting.1", b"three weeks of work");
    let drive = desk
        .upload(&server.uri)
        .arg("a.img")
        .run()
        .code(0)
        .created();
    for (words, what) in [
        ("upload --restart --journal a.img a.img", "it is the image"),
        (
            "upload --restart --journal notes.txt a.img",
            "not a journal",
        ),
        ("upload --trace a.img a.img", "it is the image"),
        ("upload --trace notes.txt a.img", "not a trace"),
        ("upload --trace t --journal ./t a.img", "it is the journal"),
        (
            "download --journal b.img DRIVE b.img",
            "it is the file of the download",
        ),
        (
            "download --restart --journal a.img DRIVE b.img",
            "not a journal",
        ),
        ("download --checksum DRIVE b.img", "not a SHA-256 line"),
        ("man ./pages", "not a file of openhosting"),
    ] {
        let words = words.replace("DRIVE", &drive);
        let outcome = desk.simple(&server.uri).args(&words).run();
        let code = outcome.status.code().unwrap();
        assert!(code == 1 || code == 2, "{words}: {outcome:?}");
        let _ = outcome.says(what);
        assert!(!desk.path("b.img").exists(), "{words}");
    }
    assert_eq!(drives(&server).len(), 1);
    assert_eq!(std::fs::read(desk.path("a.img")).unwrap(), image);
    for name in ["notes.txt", "b.img.sha256", "pages/openhosting.1"] {
        let left = std::fs::read(desk.path(name)).unwrap();
        assert_eq!(left, b"three weeks of work", "{name}");
    }
    // Files of the kind are replaced as before.
    for _ in 0..2 {
        let tool = desk.simple(&server.uri).args("upload --trace t.jsonl -d");
        let _ = tool.arg(&drive).arg("a.img").run().code(0);
        let _ = desk.simple(&server.uri).args("man ./new").run().code(0);
        let tool = desk.simple(&server.uri).args("download --force --checksum");
        let _ = tool.arg(&drive).arg("c.img").run().code(0);
    }
}

#[test]
fn qemu_img_finds_the_drive_in_a_qcow2() {
    let bench = Bench::new();
    // Chunks of whole clusters, and, if possible, of parts of clusters.
    for (i, (flags, chunk)) in QCOW2
        .iter()
        .flat_map(|flags| [4_194_304, 65_536, 999_983].map(|chunk| (flags, chunk)))
        .filter(|(flags, chunk)| !flags.contains("compress") || chunk % 65_536 == 0)
        .enumerate()
    {
        let name = format!("{i}.qcow2");
        let run = bench
            .run(&format!("{flags} --checksum -c {chunk}"), &name)
            .code(0);
        let _ = run.says("511 zeros follow the last byte");
        bench.judge(&name);
        let metadata = bench.path(&name).metadata().unwrap();
        let most = if flags.contains("compress") { 2 } else { 8 };
        assert!(metadata.len() < most * MIB, "{flags}: {}", metadata.len());
        assert_eq!(metadata.mode() & 0o077, 0o044, "{flags}");
        let list = File::open(bench.path(&format!("{name}.sha256"))).unwrap();
        let sums = Command::new("sha256sum")
            .arg("-c")
            .stdin(Stdio::from(list))
            .current_dir(bench.desk.work())
            .output()
            .unwrap();
        assert!(sums.status.success(), "{sums:?}");
        bench.desk.own(&bench.path(&name));
    }
}

#[test]
fn a_qcow2_whose_download_was_killed_is_finished_by_the_same_command() {
    let bench = Bench::new();
    let link = SlowLink::to(&bench.server, Duration::from_millis(1));
    let mut rng = fastrand::Rng::with_seed(seed("qcow2"));
    let (mut found, size) = (0, bench.image.len() as u64);
    // Repeats until a kill came between a record and the end, which most of a dozen do not.
    for (i, flags) in QCOW2.iter().cycle().take(100).enumerate() {
        if i >= 12 && found > 0 {
            break;
        }
        let name = format!("{i}.qcow2");
        // Compressed chunks consist of whole clusters; others share some.
        let chunk = if flags.contains("compress") {
            65_536
        } else {
            70_000
        };
        let args = format!("{flags} -j 4 -c {chunk}");
        let run = || bench.tool(&link.uri(), &args).arg(&name);
        link.take_counts();
        let moment = rng.u64(..7 * MIB);
        let mut running = run().spawn();
        while link.passed() < moment && !running.has_ended() {
            std::thread::sleep(Duration::from_micros(300));
        }
        let killed = running.kill9();
        link.settle();
        let was_there = bench.path(&name).exists();
        if was_there {
            bench.judge_content(&name);
        }
        link.take_counts();
        if was_there && !bench.path(&format!("{name}.ohj")).exists() {
            continue;
        }
        let again = run().run().code(0);
        let (_, fetched) = link.take_counts();
        let settled = again.stderr.split_once("Resuming: ").map(|(_, rest)| {
            let bytes = rest.split(' ').next().unwrap_or_default();
            bytes.parse::<u64>().unwrap()
        });
        found += u64::from(settled.is_some_and(|bytes| bytes > 0));
        let most = size - settled.unwrap_or(0) + 40 * 16_384 + 256 * 1024;
        assert!(fetched <= most, "{fetched} fetched: {killed:?} {again:?}");
        bench.judge(&name);
        std::fs::remove_file(bench.path(&name)).unwrap();
    }
    assert!(found > 0, "no run found what another one did");
}

#[test]
fn a_qcow2_of_a_tebibyte_takes_what_its_data_takes() {
    let desk = Desk::new();
    let server = desk.server();
    let size = 1 << 40;
    let drive = create(&server, size);
    let file = File::create(desk.path("disk.raw")).unwrap();
    file.set_len(size).unwrap();
    for (i, at) in [0, (1 << 29) - 1000, 1 << 39, size - 5000]
        .into_iter()
        .enumerate()
    {
        let bytes = noise(i as u64, 5000);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
        let ask = Ask::of(&server).with("Content-Type: application/octet-stream");
        let path = format!("/drives/{drive}/write/{at}");
        ask.post(&path, &bytes).expect(204);
    }
    for flags in QCOW2 {
        let tool = desk.download(&server.uri).args(flags).arg(&drive);
        let _ = tool.arg("big.qcow2").run().code(0);
        qemu_img(&desk, "check -f qcow2 big.qcow2");
        qemu_img(&desk, "compare -f raw -F qcow2 disk.raw big.qcow2");
        let len = desk.path("big.qcow2").metadata().unwrap().len();
        assert!(len <= MIB, "{flags}: {len}");
        std::fs::remove_file(desk.path("big.qcow2")).unwrap();
    }
    std::fs::remove_file(desk.path("disk.raw")).unwrap();
    std::fs::remove_file(server.drive_file(&drive)).unwrap();
}

#[test]
fn impossible_qcow2_downloads_are_refused() {
    let bench = Bench::new();
    let qcow2 = |flags: &str, to: &str| bench.run(&format!("--format qcow2 {flags}"), to);
    let _ = qcow2("", "-").code(2).says("A stream cannot hold qcow2");
    let _ = qcow2("--compress gz", "a").code(2).says("pack a raw image");
    let _ = bench
        .run("--compress zlib", "a")
        .code(2)
        .says("Add --format qcow2");
    let refused = qcow2("--compress zstd -c 70000", "a").code(2);
    let _ = refused.says("chunks of a multiple of 65536 bytes");
    let _ = qcow2("-o 0", "a").code(2);
    assert!(!bench.path("a").exists() && !bench.path("a.oh-part").exists());
    let under = bench.path("device");
    File::create(&under).unwrap().set_len(32 * MIB).unwrap();
    let Some(device) = LoopDevice::over(&under, &[]) else {
        return;
    };
    let refused = qcow2("--force", &device.0).code(2);
    let _ = refused.says("is a device: it cannot hold qcow2");
}

#[test]
fn a_download_in_another_format_is_not_resumed() {
    let bench = Bench::new();
    let link = SlowLink::to(&bench.server, Duration::from_millis(2));
    let start = |flags: &str| {
        bench
            .tool(&link.uri(), &format!("{flags} -c 65536"))
            .arg("out")
    };
    let formats = ["", QCOW2[0], QCOW2[2]];
    for first in formats {
        link.take_counts();
        let mut running = start(first).spawn();
        while link.passed() < MIB && !running.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = running.kill9();
        for other in formats.iter().filter(|other| **other != first) {
            let refused = start(other).run();
            assert_ne!(refused.status.code(), Some(0), "{first} {other}");
            let _ = refused.says("--restart");
        }
        let _ = start(&format!("{first} --restart")).run().code(0);
        std::fs::remove_file(bench.path("out")).unwrap();
    }
}

#[test]
fn a_compressed_download_unpacks_to_the_drive() {
    type Unpack = fn(&[u8]) -> Vec<u8>;
    let bench = Bench::new();
    let unpack: [(&str, Unpack); 3] = [
        ("gz", gunzip),
        ("zst", |packed| zstd::decode_all(packed).unwrap()),
        ("xz", unxz),
    ];
    for (method, unpack) in unpack {
        let name = format!("disk.{method}");
        let flags = format!("--compress {method}");
        let _ = bench.run(&flags, &name).code(0);
        let packed = std::fs::read(bench.path(&name)).unwrap();
        assert!(packed.len() < 2 << 20, "{method}: {}", packed.len());
        assert!(unpack(&packed) == bench.image, "{method}");
        let outcome = bench.run(&flags, "-").code(0);
        assert!(unpack(&outcome.stdout) == bench.image, "{method}");
    }
}

fn unxz(packed: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    let mut decoder = liblzma::read::XzDecoder::new(packed);
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

/// A disk with a GPT for sectors of this size, whose header states where its copy is.
fn with_gpt(size: u64, sector: u64, backup: u64) -> Vec<u8> {
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&1_u64.to_le_bytes());
    header[32..40].copy_from_slice(&(backup / sector).to_le_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    header[16..20].copy_from_slice(&crc.sum().to_le_bytes());
    let mut disk = noise(sector, size as usize);
    let at = sector as usize;
    disk[at..at + 92].copy_from_slice(&header);
    disk
}

#[test]
fn the_summary_of_an_upload_says_that_what_was_sent_is_compressed() {
    let desk = Desk::new();
    let server = desk.server();
    let ramp: Vec<u8> = (0..=255).collect();
    desk.file("ramp.img", &ramp.repeat(1 << 12));
    desk.file("noise.img", &noise(3, 1 << 20));
    let run = |words: &str| {
        let done = desk.simple(&server.uri).args(words).run().code(0);
        let said = done.stderr.lines().find(|line| line.contains(" sent"));
        said.unwrap_or_else(|| panic!("{done:?}")).to_owned()
    };
    let said = run("upload ramp.img");
    assert!(said.contains(" sent compressed, "), "{said}");
    for words in ["upload noise.img", "upload --level 0 ramp.img"] {
        let said = run(words);
        assert!(said.contains("1.0 MiB sent, "), "{words}: {said}");
    }
}

#[test]
fn a_drive_is_made_larger_than_its_image() {
    let desk = Desk::new();
    let server = desk.server();
    let image = noise(1, 3_000_000);
    desk.file("a.img", &image);
    let run = |args: &str| desk.upload(&server.uri).args(args).arg("a.img").run();
    for (grow, size) in [
        ("+1M", 3_000_000 + MIB),
        ("8M", 8 * MIB),
        ("3000000", 3_000_000),
    ] {
        let outcome = run(&format!("--grow {grow}")).code(0);
        let drive = outcome.created();
        let line = format!("Created drive {drive} of size {size}\n");
        assert!(outcome.text().starts_with(&line), "{outcome:?}");
        assert!(!outcome.stderr.contains("GPT"), "{outcome:?}");
        let mut expected = image.clone();
        expected.resize(size as usize, 0);
        assert_drive(&server, &drive, &expected);
    }
    let before = drives(&server).len();
    let refused = run("--grow 2M").code(2);
    let refused = refused.says(
        "asks for a drive of 2.0 MiB (2097152 bytes), and the image has 2.9 MiB (3000000 bytes)",
    );
    let _ = refused.says("--grow +10G");
    // Decimal and binary units are easily mistaken.
    let _ = run("--grow 2970KB")
        .code(2)
        .says("Did you mean --grow 2970KiB?");
    let drive = create(&server, 4 << 20);
    let _ = run(&format!("-d {drive} --grow +1M")).code(2);
    assert_eq!(drives(&server).len(), before + 1);
}

#[test]
fn a_gpt_whose_copy_is_not_at_the_end_is_reported() {
    const SIZE: u64 = 2 * MIB;
    let desk = Desk::new();
    let server = desk.server();
    let moved = "not at the end of the drive. In the guest, move it with: sgdisk -e DISK";
    let cut = "beyond the end of the image: was it cut off?";
    for sector in [512, 4096] {
        let (right, early, late) = (SIZE - sector, SIZE / 2, SIZE + sector);
        let existing = format!("-d {}", create(&server, 3 * MIB));
        for (backup, flags, expected) in [
            (right, "", None),
            (right, "--grow 2M", None),
            (right, "--grow +4096", Some(moved)),
            (right, existing.as_str(), Some(moved)),
            (early, "", Some(moved)),
            (late, "", Some(cut)),
            (late, "--grow +8192", Some(cut)),
        ] {
            desk.file("a.img", &with_gpt(SIZE, sector, backup));
            let tool = desk.upload(&server.uri).args(flags).arg("a.img");
            let outcome = tool.run().code(0);
            let lines: Vec<_> = outcome
                .stderr
                .lines()
                .filter(|l| l.contains("GPT"))
                .collect();
            assert_eq!(
                lines.len(),
                usize::from(expected.is_some()),
                "{flags}: {outcome:?}"
            );
            if let Some(expected) = expected {
                let byte = format!("byte {backup}");
                assert!(
                    lines[0].contains(expected) && lines[0].contains(&byte),
                    "{lines:?}"
                );
            }
        }
    }
}

/// A mount, for as long as the value exists.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &str, point: &Path) -> Option<Self> {
        std::fs::create_dir_all(point).unwrap();
        let mounted = Command::new("mount")
            .args(["-o", "ro", device])
            .arg(point)
            .status();
        let is_mounted = mounted.is_ok_and(|status| status.success());
        if !is_mounted {
            skip(Need::Other("mounting of loop devices"), "mount fails");
        }
        is_mounted.then(|| Self(point.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_is_mounted_is_reported_before_anything_is_sent() {
    let desk = Desk::new();
    let server = desk.server();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(root.join("fixtures/images/disk.img")).unwrap();
    let image = desk.file("disk.img", &bytes);
    let Some(device) = LoopDevice::over(&image, &["-r"]) else {
        return;
    };
    let upload = |what: &str| {
        let tool = desk.upload(&server.uri).args("--format raw -n a").arg(what);
        tool.run().code(0).stderr
    };
    // A loop device alone is not a use.
    for what in [device.0.as_str(), "disk.img"] {
        let said = upload(what);
        assert!(!said.contains("mounted"), "{what}: {said}");
    }
    let temporary = tempfile::tempdir().unwrap();
    let point = temporary.path().join("a mount");
    let Some(_mounted) = Mounted::at(&device.0, &point) else {
        return;
    };
    let line = format!("The image is mounted at {}: ", point.display());
    for what in [device.0.as_str(), "disk.img"] {
        let said = upload(what);
        assert_eq!(said.matches(&line).count(), 1, "{what}: {said}");
    }
}
