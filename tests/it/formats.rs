//! Images that qemu-img created, of every kind that it supports, compared with what qemu-img reads
//! from them; and damaged images.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use openhosting::image::{Disk, Format, Image, ImageOptions};

use crate::support::cli::{Desk, UPLOAD};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::needs::{Need, skip};
use crate::support::proxy::{Fault, FaultProxy, Request, refusal};
use crate::support::server::TestServer;
use crate::support::{gzip, noise, ramp};

const MIB: u64 = 1 << 20;

/// A desk with a disk on it, and a server.
pub(crate) struct Bench {
    pub(crate) desk: Desk,
    pub(crate) server: TestServer,
}

impl Bench {
    /// `disk.raw` is an ext4 file system with files, compressible and incompressible data at
    /// cluster boundaries of any size, holes, zeros that are stored as data, and an end within a
    /// cluster.
    pub(crate) fn new() -> Self {
        let desk = Desk::new();
        let server = desk.server();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read(root.join("fixtures/images/disk.img")).unwrap();
        let pieces: [(u64, &[u8]); 6] = [
            (0, &files),
            (11 * MIB - 700, &noise(1, 70_000)),
            (13 * MIB, &ramp(0, 3 << 20)),
            (18 * MIB + 512, b"three"),
            (20 * MIB, &vec![0; 300_000]),
            (24 * MIB + 1024, &noise(2, 512)),
        ];
        desk.sparse("disk.raw", 24 * MIB + 1536, &pieces);
        Self { desk, server }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    /// Runs qemu-img with these words.
    #[track_caller]
    pub(crate) fn qemu_img(&self, words: &str) {
        let run = Command::new("qemu-img")
            .args(words.split_whitespace())
            .current_dir(self.desk.work())
            .output()
            .expect("qemu-img of qemu-utils is missing");
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "qemu-img {words}: {stderr}");
    }

    /// Changes an image as a guest would.
    #[track_caller]
    fn qemu_io(&self, name: &str, command: &str) {
        let run = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", command, name])
            .current_dir(self.desk.work())
            .output()
            .expect("qemu-io of qemu-utils is missing");
        assert!(run.status.success(), "{command}: {run:?}");
    }

    /// Converts `disk.raw` to another format, with these options of qemu-img.
    #[track_caller]
    pub(crate) fn make(&self, name: &str, format: &str, options: &str) {
        self.qemu_img(&format!(
            "convert -f raw -O {format} {options} disk.raw {name}"
        ));
        self.desk.own(&self.path(name));
    }

    /// What qemu-img reads from an image.
    #[track_caller]
    pub(crate) fn reference(&self, name: &str, format: &str) -> Vec<u8> {
        self.qemu_img(&format!("convert -f {format} -O raw {name} reference.raw"));
        let path = self.path("reference.raw");
        self.desk.own(&path);
        std::fs::read(path).unwrap()
    }

    /// Uploads an image with a misleading name, which must be recognised by its content, and
    /// compares the drive with what qemu-img reads.
    #[track_caller]
    fn check(&self, name: &str, format: &str, more: &str) {
        let expected = self.reference(name, format);
        let lie = self.path("image.iso");
        std::fs::rename(self.path(name), &lie).unwrap();
        self.desk.own(&lie);
        let tool = self.desk.upload(&self.server.uri);
        let outcome = tool.args(more).arg("image.iso").run().code(0);
        let ours = if format == "vpc" { "vhd" } else { format };
        let _ = outcome.says(&format!("By its content the image is {ours}"));
        let drive = self.only_drive();
        assert_drive(&self.server, &drive, &expected);
        let destroy = format!("/drives/{drive}/destroy");
        Ask::of(&self.server).post(&destroy, []).expect(204);
        std::fs::rename(lie, self.path(name)).unwrap();
    }

    pub(crate) fn only_drive(&self) -> String {
        let drives = drives(&self.server);
        assert_eq!(drives.len(), 1);
        drives[0].clone()
    }

    /// An upload that is refused before anything is created, with one line and possibly a hint,
    /// within bounded memory and time.
    #[track_caller]
    pub(crate) fn refused(&self, args: &str, says: &str) {
        eprintln!("{args}: {says}");
        let limits = "ulimit -v 4000000 -t 100; exec \"$@\"";
        let tool = self.desk.tool("bash").list(["-c", limits, "bash", UPLOAD]);
        let tool = tool.env("OHURI", &self.server.uri);
        let outcome = tool.args(args).run().code(1).says(says);
        let lines = outcome
            .stderr
            .lines()
            .filter(|line| !line.contains("By its content"));
        let lines: Vec<_> = lines.collect();
        assert!(lines.len() <= 2, "{lines:?}");
        assert!(lines[0].starts_with("openhosting-upload: "), "{lines:?}");
        assert_eq!(outcome.text(), "");
        assert!(drives(&self.server).is_empty(), "a drive was made");
    }

    /// A copy of an image with these bytes replaced.
    fn patched(&self, name: &str, patches: &[(u64, &[u8])]) -> File {
        let path = self.path("patched");
        std::fs::copy(self.path(name), &path).unwrap();
        self.desk.own(&path);
        let file = File::options().read(true).write(true).open(path).unwrap();
        for (at, bytes) in patches {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }
}

/// All bytes of the disk of an image, read as the upload does.
fn read_all(path: &Path, format: Option<Format>) -> openhosting::Result<Vec<u8>> {
    let options = ImageOptions {
        format,
        ..ImageOptions::default()
    };
    let image = Image::open(path, &options)?;
    let disk = image.disk().unwrap();
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    read_data(disk, &mut bytes)?;
    Ok(bytes)
}

fn read_data(disk: &dyn Disk, bytes: &mut [u8]) -> openhosting::Result<()> {
    let mut at = 0;
    while let Some(data) = disk.data_after(at)? {
        assert!(data.start >= at && data.start < data.end && data.end <= disk.size());
        let range = data.start as usize..data.end as usize;
        disk.read_at(&mut bytes[range], data.start)?;
        at = data.end;
    }
    Ok(())
}

#[test]
fn qcow2_of_every_cluster_size() {
    let bench = Bench::new();
    for bits in 9..=21 {
        let size = 1 << bits;
        for compat in ["0.10", "1.1"] {
            let options = format!("-o cluster_size={size},compat={compat}");
            bench.make("a", "qcow2", &options);
            // Chunks that begin and end within clusters.
            bench.check("a", "qcow2", "-c 1000000");
        }
    }
}

#[test]
fn qcow2_compressed_with_zlib_and_zstd() {
    let bench = Bench::new();
    for bits in [9, 12, 16, 21] {
        for kind in ["zlib", "zstd"] {
            // QEMU compresses with zstd from 4 KiB on.
            let size = 1 << bits;
            let options = format!("-c -o cluster_size={size},compression_type={kind}");
            bench.make("a", "qcow2", &options);
            bench.check("a", "qcow2", "-c 1000000");
        }
    }
    bench.make("a", "qcow2", "-c -o compat=0.10");
    bench.check("a", "qcow2", "");
}

#[test]
fn qcow2_with_subclusters_and_other_options() {
    let bench = Bench::new();
    for size in ["16k", "64k", "2M"] {
        for pack in ["", "-c"] {
            let options = format!("{pack} -o extended_l2=on,cluster_size={size}");
            bench.make("a", "qcow2", &options);
            bench.check("a", "qcow2", "-c 1000000");
        }
    }
    for options in [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata,extended_l2=on",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
    ] {
        bench.make("a", "qcow2", &format!("-o {options}"));
        bench.check("a", "qcow2", "");
    }
}

#[test]
fn a_qcow2_after_guest_writes_is_read() {
    let bench = Bench::new();
    for options in ["", "-o extended_l2=on", "-c", "-o compat=0.10"] {
        bench.make("a", "qcow2", options);
        // Zeros over data, data over zeros, data within clusters, a snapshot that must not be
        // visible, and a discard.
        for command in [
            "write -P 0x5a 100k 3k",
            "write -z 1M 200k",
            "write -P 0xa5 19M 1k",
            "discard 13M 256k",
        ] {
            bench.qemu_io("a", command);
            if command.contains("0x5a") {
                bench.qemu_img("snapshot -c before a");
            }
        }
        bench.check("a", "qcow2", "-c 65536");
    }
}

#[test]
fn vmdk_in_one_file() {
    let bench = Bench::new();
    for options in [
        "subformat=monolithicSparse",
        "subformat=streamOptimized",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicSparse,compat6=on",
        "subformat=streamOptimized,adapter_type=lsilogic",
    ] {
        bench.make("a", "vmdk", &format!("-o {options}"));
        bench.check("a", "vmdk", "-c 1000000");
    }
    // The footer contains the offset of the directory, as VMware's own tools write a stream.
    bench.make("a", "vmdk", "-o subformat=streamOptimized");
    let expected = bench.reference("a", "vmdk");
    let bytes = std::fs::read(bench.path("a")).unwrap();
    let mut header = bytes[..512].to_vec();
    header[56..64].fill(0xff);
    let footer = bytes[..512].to_vec();
    let marker = |kind: u32| {
        let mut marker = vec![0; 512];
        marker[0] = 1;
        marker[12..16].copy_from_slice(&kind.to_le_bytes());
        marker
    };
    let end = bytes.len().next_multiple_of(512);
    let mut streamed = header;
    streamed.extend(&bytes[512..]);
    streamed.resize(end, 0);
    streamed.extend([marker(3), footer, vec![0; 512]].concat());
    bench.desk.file("footer.vmdk", &streamed);
    let read = read_all(&bench.path("footer.vmdk"), None).unwrap();
    assert!(read == expected);
}

#[test]
fn vdi_dynamic_and_static() {
    let bench = Bench::new();
    for options in ["static=off", "static=on"] {
        bench.make("a", "vdi", &format!("-o {options}"));
        bench.check("a", "vdi", "-c 1000000");
    }
}

#[test]
fn vhd_dynamic_and_fixed() {
    let bench = Bench::new();
    for kind in ["dynamic", "fixed"] {
        for force in ["on", "off"] {
            let options = format!("-o subformat={kind},force_size={force}");
            bench.make("a", "vpc", &options);
            bench.check("a", "vpc", "-c 1000000");
        }
    }
}

#[test]
fn vhdx_dynamic_and_fixed() {
    let bench = Bench::new();
    for options in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=256M",
        "subformat=fixed,block_size=2M",
        "subformat=fixed,block_size=1M,block_state_zero=off",
        "subformat=dynamic,log_size=8M",
    ] {
        bench.make("a", "vhdx", &format!("-o {options}"));
        bench.check("a", "vhdx", "-c 1000000");
    }
}

#[test]
fn terabyte_disks_cost_only_their_data() {
    let bench = Bench::new();
    let images = [
        ("qcow2", "-o cluster_size=2M", "1000T"),
        ("qcow2", "-o cluster_size=4k", "1T"),
        ("vmdk", "", "2T"),
        ("vdi", "", "2T"),
        ("vpc", "-o force_size=on", "2040G"),
        ("vhdx", "", "64T"),
    ];
    for (format, options, size) in images {
        bench.qemu_img(&format!("create -q -f {format} {options} a {size}"));
        bench.desk.own(&bench.path("a"));
        let image = Image::open(&bench.path("a"), &ImageOptions::default()).unwrap();
        let disk = image.disk().unwrap();
        assert_eq!(disk.data_after(0).unwrap(), None, "{format}");
        let mut end = [1; 512];
        disk.read_at(&mut end, disk.size() - 512).unwrap();
        assert_eq!(end, [0; 512], "{format}");
    }
}

#[test]
fn unallocated_parts_are_never_read() {
    let bench = Bench::new();
    bench
        .desk
        .sparse("disk.raw", 512 * MIB, &[(300 * MIB, b"data")]);
    // Allocated in the image, but a hole in the file.
    let images = [
        ("qcow2", "-o preallocation=metadata"),
        ("qcow2", ""),
        ("vmdk", ""),
        ("vdi", "-o static=on"),
        ("vpc", "-o subformat=fixed"),
        ("vhdx", "-o subformat=fixed"),
    ];
    let probe = Command::new("strace")
        .args(["-e", "trace=pread64", "true"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        skip(Need::Other("tracing of system calls"), "strace fails");
        return;
    }
    for (format, options) in images {
        bench.make("a", format, options);
        // One file for each thread, so that lines are not mixed.
        let traces = bench.path("traces");
        std::fs::create_dir(&traces).unwrap();
        let tool = bench
            .desk
            .tool("strace")
            .args("-ff -y -s 0 -e trace=read,readv,pread64,preadv,mmap -o");
        let tool = tool
            .arg(traces.join("of"))
            .args(UPLOAD)
            .args("--local cloud --no-journal --holes trust a");
        tool.run().code(0);
        let name = format!("<{}>", bench.path("a").display());
        let mut sum = 0;
        for entry in std::fs::read_dir(&traces).unwrap() {
            let trace = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for call in trace.lines().filter(|line| line.contains(&name)) {
                let bytes = call.rsplit("= ").next().unwrap();
                sum += bytes.parse::<u64>().unwrap_or_else(|_| panic!("{call}"));
            }
        }
        std::fs::remove_dir_all(traces).unwrap();
        // One block of data, and pages of the image's tables.
        assert!(
            sum > 0 && sum < 4 * MIB,
            "{format} {options}: {sum} bytes read"
        );
    }
}

#[test]
fn a_given_format_overrides_detection() {
    let bench = Bench::new();
    // A guest wrote this at the start of its disk.
    bench.make("a.qcow2", "qcow2", "");
    let fake = std::fs::read(bench.path("a.qcow2")).unwrap();
    bench.desk.file("guest.raw", &fake);
    let uri = bench.server.uri.clone();
    let tool = bench.desk.upload(&uri).args("--format raw guest.raw");
    let outcome = tool.run().code(0);
    assert_eq!(outcome.stderr, "");
    assert_drive(&bench.server, &outcome.created(), &fake);
    let destroy = format!("/drives/{}/destroy", outcome.created());
    Ask::of(&bench.server).post(&destroy, []).expect(204);
    // A wrong format is refused; gzip is not among the formats.
    for format in ["vmdk", "vdi", "vhd", "vhdx"] {
        let says = format!("is not sound {format}");
        bench.refused(&format!("--format {format} guest.raw"), &says);
        bench.refused(&format!("--format {format} disk.raw"), &says);
    }
    let upload = || bench.desk.upload(&uri);
    let _ = upload()
        .args("--format qcow3 a")
        .run()
        .code(2)
        .says("Use raw, qcow2");
    let _ = upload().args("-z --format raw a").run().code(2);
}

fn own_all(bench: &Bench) {
    for entry in std::fs::read_dir(bench.desk.work()).unwrap() {
        bench.desk.own(&entry.unwrap().path());
    }
}

#[test]
fn a_backing_file_is_read_only_if_allowed() {
    let bench = Bench::new();
    let (desk, uri) = (&bench.desk, bench.server.uri.clone());
    std::fs::create_dir(bench.path("bases")).unwrap();
    std::fs::create_dir(bench.path("other")).unwrap();
    bench.qemu_img("convert -O qcow2 -c disk.raw bases/middle.qcow2");
    // Smaller and larger than the backing files.
    bench.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 bases/top.qcow2 12M");
    bench.qemu_img("create -q -f qcow2 -b bases/top.qcow2 -F qcow2 a.qcow2 40M");
    bench.qemu_io("a.qcow2", "write -P 7 3M 100k");
    own_all(&bench);
    desk.own(&bench.path("bases/middle.qcow2"));
    let expected = bench.reference("a.qcow2", "qcow2");
    bench.refused(
        "a.qcow2",
        "needs the file \"bases/top.qcow2\", which was not allowed",
    );
    bench.refused("--allow-backing other a.qcow2", "which was not allowed");
    bench.refused(
        "--allow-backing bases/top.qcow2 a.qcow2",
        "\"middle.qcow2\"",
    );
    for allowed in [
        "--allow-backing bases",
        "--allow-backing bases/middle.qcow2 --allow-backing bases/top.qcow2",
        "--allow-backing .",
    ] {
        let outcome = desk.upload(&uri).args(allowed).arg("a.qcow2").run().code(0);
        let drive = outcome.created();
        assert_drive(&bench.server, &drive, &expected);
        let destroy = format!("/drives/{drive}/destroy");
        Ask::of(&bench.server).post(&destroy, []).expect(204);
    }

    // A symbolic link that leads out of the allowed directory.
    std::os::unix::fs::symlink("/etc/passwd", bench.path("bases/link")).unwrap();
    let hostile = [
        ("/etc/passwd", "raw", "which was not allowed"),
        ("bases/link", "raw", "which was not allowed"),
        (
            "bases/../../../../../etc/passwd",
            "raw",
            "which was not allowed",
        ),
        ("nbd://localhost/x", "raw", "is no path"),
        ("json:{\"driver\":\"null-co\"}", "raw", "is no path"),
        ("bases/nothing", "raw", "Cannot open"),
        ("bases/top.qcow2", "luks", "of a format that is not read"),
        ("bases", "raw", "a directory"),
    ];
    for (name, format, says) in hostile {
        let create = [
            "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", name, "b", "1M",
        ];
        let run = Command::new("qemu-img")
            .args(create)
            .current_dir(desk.work())
            .output();
        assert!(run.unwrap().status.success(), "{name}");
        bench.refused("--allow-backing bases b", says);
        bench.refused("b", "which was not allowed");
    }
    bench.qemu_img("create -q -u -f qcow2 -b ./self.qcow2 -F qcow2 self.qcow2 1M");
    bench.refused("--allow-backing . self.qcow2", "in a circle");
    // Without a stated format it is unknown; qemu-img no longer creates such a file.
    bench.qemu_img("create -q -u -f qcow2 -b bases/top.qcow2 -F qcow2 c 1M");
    let at = find(&bench.path("c"), &0xe279_2aca_u32.to_be_bytes());
    let file = File::options().write(true).open(bench.path("c")).unwrap();
    file.write_all_at(&0x1234_5678_u32.to_be_bytes(), at)
        .unwrap();
    bench.refused("--allow-backing bases c", "does not state its format");
}

fn find(path: &Path, needle: &[u8]) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    at.unwrap() as u64
}

#[test]
fn an_upload_that_stopped_is_resumed_from_the_same_disk() {
    const PASSED: usize = 5;
    let bench = Bench::new();
    let images = [
        ("qcow2", "-c -o compression_type=zstd", false),
        ("vmdk", "", false),
        ("qcow2", "", true),
    ];
    for (format, options, is_changed) in images {
        bench.make("a", format, options);
        let proxy = FaultProxy::to(&bench.server);
        let upload = |more: &str| {
            let tool = bench.desk.upload(&proxy.uri());
            let tool = tool.args("-c 1000000 -j 1 --level 1 --checksum --verify full");
            tool.args(more).arg("a").run()
        };
        let refused = Fault::Answer(refusal(403, "access"));
        proxy.fault_after(PASSED, Request::is_write, usize::MAX, refused);
        let _ = upload("").code(1);
        proxy.heal();
        if is_changed {
            bench.qemu_io("a", "write -P 3 100k 64k");
            let _ = upload("")
                .code(4)
                .says("it differs in 1 chunk that this upload has sent");
        }
        proxy.forget();
        let outcome = upload(if is_changed { "--changed-ok" } else { "" }).code(0);
        let expected = bench.reference("a", format);
        let drive = bench.only_drive();
        assert_drive(&bench.server, &drive, &expected);
        let digest = openhosting::digest::Digest::of(&expected).to_string();
        assert!(outcome.text().contains(&digest), "{}", outcome.text());
        let has_data = |chunk: &&[u8]| chunk.iter().any(|byte| *byte != 0);
        let data = expected.chunks(1_000_000).filter(has_data).count();
        let sent = proxy.count(Request::is_write);
        // What changed is sent again, and zeros may no longer be a hole of the drive.
        match is_changed {
            true => assert!(sent <= expected.len().div_ceil(1_000_000) - PASSED + 1),
            false => assert_eq!(sent, data - PASSED, "{format}"),
        }
        let destroy = format!("/drives/{drive}/destroy");
        Ask::of(&bench.server).post(&destroy, []).expect(204);
    }
}

#[test]
fn another_format_or_a_changed_backing_file_is_a_changed_image() {
    let bench = Bench::new();
    bench.qemu_img("create -q -f qcow2 -b disk.raw -F raw a 25167360");
    own_all(&bench);
    let open = |format| {
        let options = ImageOptions {
            format,
            allow_backing: vec![bench.desk.work()],
            ..ImageOptions::default()
        };
        Image::open(&bench.path("a"), &options).unwrap()
    };
    let image = open(None);
    assert_ne!(image.fingerprint(), open(Some(Format::Raw)).fingerprint());
    assert_eq!(image.fingerprint(), open(Some(Format::Qcow2)).fingerprint());
    image.check_unchanged().unwrap();
    let backing = File::options()
        .write(true)
        .open(bench.path("disk.raw"))
        .unwrap();
    backing.write_all_at(b"changed", 0).unwrap();
    let error = image.check_unchanged().unwrap_err();
    assert_eq!(error.kind(), openhosting::ErrorKind::Integrity);
    assert_ne!(image.fingerprint(), open(None).fingerprint());
}

#[test]
fn image_info_shows_what_an_upload_will_send() {
    let bench = Bench::new();
    let info = |args: &str| {
        let tool = bench.desk.simple("http://127.0.0.1:1").unset("OHAUTH");
        tool.args("image info").args(args).run()
    };
    for (format, options) in [("raw", ""), ("qcow2", "-c"), ("vmdk", ""), ("vhdx", "")] {
        bench.make("a", format, options);
        let outcome = info("--json -c 1000000 a").code(0);
        let info: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        let number = |key: &str| info[key].as_u64().unwrap();
        assert_eq!(info["format"], format);
        assert_eq!(info["is_estimate"], false);
        let disk = read_all(&bench.path("a"), None).unwrap();
        assert_eq!(number("disk_bytes"), disk.len() as u64);
        let blocks = disk
            .chunks(4096)
            .filter(|b| b.iter().all(|byte| *byte == 0));
        let zeros: usize = blocks.map(<[u8]>::len).sum();
        assert!(number("zero_bytes").abs_diff(zeros as u64) < 64 * 1024);
        assert!(number("allocated_bytes") >= (disk.len() - zeros) as u64 - 64 * 1024);
        let map = info["map_data_bytes"].as_array().unwrap();
        let sum: u64 = map.iter().map(|part| part.as_u64().unwrap()).sum();
        assert_eq!(sum, number("allocated_bytes"));
        // The chunks as a whole, as the upload sends them. Once it has the proof that the drive
        // reads as zeros, it leaves out zeros within a chunk.
        let proxy = FaultProxy::to(&bench.server);
        for level in ["0", "1"] {
            proxy.forget();
            let tool = bench.desk.upload(&proxy.uri());
            let args = format!("--no-journal --verify none -c 1000000 --level {level} a");
            let _ = tool.args(&args).run().code(0);
            let requests = proxy.requests();
            let writes: Vec<_> = requests.iter().filter(|r| r.is_write()).collect();
            let chunks: BTreeSet<u64> = writes.iter().map(|r| r.offset() / 1_000_000).collect();
            assert_eq!(chunks.len() as u64, number("chunks_to_send"), "{format}");
            let sent: u64 = writes.iter().map(|write| write.len).sum();
            let estimated = info["wire_bytes"][level].as_u64().unwrap();
            // In gzip, less than one byte in two hundred.
            let zeros_left = match level {
                "0" => disk.len() as u64,
                _ => disk.len() as u64 / 200,
            };
            assert!(
                sent <= estimated && estimated <= sent + zeros_left,
                "{format} at level {level}: {sent} sent, {estimated} estimated"
            );
        }
    }
    let text = info("--map map.svg a").code(0);
    let text = text.text().to_owned();
    for line in [
        "Format       vhdx",
        " at level 1\n",
        "Chunks       5, each of up to 5242880 bytes",
        "\u{2588}",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let svg = std::fs::read_to_string(bench.path("map.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<title>").count(), 512);
    let _ = info("--map map.svg a")
        .code(1)
        .says("Nothing is overwritten");
    let _ = info("nothing").code(1).says("Cannot open nothing");
    let _ = info("").code(2);
}

/// A big-endian number, as in the files.
fn be(bytes: usize, number: u64) -> Vec<u8> {
    number.to_be_bytes()[8 - bytes..].to_vec()
}

fn le(bytes: usize, number: u64) -> Vec<u8> {
    number.to_le_bytes()[..bytes].to_vec()
}

fn number_at(file: &File, at: u64, bytes: usize, is_big: bool) -> u64 {
    let mut number = [0; 8];
    if is_big {
        file.read_exact_at(&mut number[8 - bytes..], at).unwrap();
        u64::from_be_bytes(number)
    } else {
        file.read_exact_at(&mut number[..bytes], at).unwrap();
        u64::from_le_bytes(number)
    }
}

#[test]
fn hostile_qcow2() {
    let bench = Bench::new();
    bench.make("a", "qcow2", "-o cluster_size=4k");
    let file = bench.patched("a", &[]);
    let l1 = number_at(&file, 40, 8, true);
    let l2 = number_at(&file, l1, 8, true) & 0x00ff_ffff_ffff_fe00;
    let first = number_at(&file, l2, 8, true);
    let end = file.metadata().unwrap().len();
    type Patch = (u64, Vec<u8>);
    let cases: Vec<(Vec<Patch>, &str)> = vec![
        (vec![(4, be(4, 1))], "version 1"),
        (vec![(4, be(4, 4))], "version 4"),
        (vec![(20, be(4, 63))], "2^63"),
        (vec![(20, be(4, 8))], "2^8"),
        (vec![(20, be(4, 22))], "2^22"),
        (vec![(24, be(8, 0))], "no bytes"),
        (vec![(24, be(8, 1 << 63))], "larger than any"),
        (vec![(24, be(8, u64::MAX))], "larger than any"),
        (vec![(24, be(8, (1 << 63) - 1))], "entries are needed|where"),
        (
            vec![(24, be(8, (1 << 63) - 1)), (36, be(4, u32::MAX.into()))],
            "needed",
        ),
        (
            vec![(24, be(8, 1 << 42)), (36, be(4, 1 << 22))],
            "beyond its end",
        ),
        (
            vec![(36, be(4, u32::MAX.into()))],
            "4294967295 entries, more than any has",
        ),
        (vec![(32, be(4, 1))], "encrypted"),
        (vec![(36, be(4, 0))], "0 entries"),
        (vec![(40, be(8, 1 << 62))], "beyond its end"),
        (vec![(40, be(8, u64::MAX - 4095))], "beyond its end"),
        (vec![(40, be(8, l1 + 8))], "first table is at byte"),
        (vec![(40, be(8, 0))], "first table is at byte 0"),
        (vec![(72, be(8, 1 << 40))], "feature 40"),
        (vec![(72, be(8, 1 << 2))], "in another file"),
        (vec![(72, be(8, 1 << 1))], "corrupt"),
        (vec![(72, be(8, 1 << 3)), (104, be(1, 9))], "number 9"),
        (vec![(72, be(8, 1 << 4))], "too small for subclusters"),
        (vec![(100, be(4, 8))], "its header has 8 bytes"),
        (vec![(100, be(4, u32::MAX.into()))], "its header has"),
        (
            vec![(8, be(8, 1 << 60)), (16, be(4, 5))],
            "backing file has 5 bytes",
        ),
        (
            vec![(8, be(8, 512)), (16, be(4, u32::MAX.into()))],
            "backing file has",
        ),
        // Every entry refers to the same table; a table is the first table; a table is the header.
        (vec![(l1 + 8, be(8, l2))], "used twice"),
        (vec![(l1, be(8, l1))], "used twice"),
        (vec![(l1, be(8, end - 4096 + 512))], "within a cluster"),
        (vec![(l1, be(8, 1 << 50))], "beyond its end"),
        (vec![(l2 + 8, be(8, first))], "used twice"),
        (vec![(l2, be(8, 0x00ff_ffff_ffff_f000))], "beyond its end"),
        (
            vec![(l2, be(8, end.next_multiple_of(4096)))],
            "beyond its end",
        ),
        (vec![(l2, be(8, 4096 + 512))], "within another"),
        (
            vec![(l2, be(8, 1 << 62 | ((1 << 54) - 1)))],
            "beyond its end",
        ),
    ];
    for (patches, says) in &cases {
        let patches: Vec<(u64, &[u8])> = patches.iter().map(|(at, b)| (*at, &**b)).collect();
        bench.patched("a", &patches);
        bench.refused(
            "--format qcow2 patched",
            says.split('|').next_back().unwrap(),
        );
    }
    // Entries of a version 2 file that only version 3 allows.
    bench.make("v2", "qcow2", "-o compat=0.10,cluster_size=4k");
    let file = bench.patched("v2", &[]);
    let l1 = number_at(&file, 40, 8, true);
    let l2 = number_at(&file, l1, 8, true) & 0x00ff_ffff_ffff_fe00;
    bench.patched("v2", &[(l2, &be(8, 1))]);
    bench.refused("patched", "which version 2 does not know");
    // Subclusters with contradicting states, or without a place.
    bench.make("e", "qcow2", "-o extended_l2=on");
    let file = bench.patched("e", &[]);
    let l1 = number_at(&file, 40, 8, true);
    let l2 = number_at(&file, l1, 8, true) & 0x00ff_ffff_ffff_fe00;
    bench.patched("e", &[(l2 + 8, &[0xff; 8])]);
    bench.refused("patched", "as zeros and as data");
    bench.patched("e", &[(l2, &[0; 8])]);
    bench.refused("patched", "is nowhere");
}

#[test]
fn compressed_clusters_that_share_their_bytes_are_read() {
    let bench = Bench::new();
    let cluster: Vec<u8> = (0..2_u32 << 20).map(|at| (at / 4096) as u8).collect();
    let packed = gzip(&cluster);
    // Without the header and the checksum of gzip.
    let packed = &packed[10..packed.len() - 8];
    // Eight clusters of 2 MiB, of which the last is short.
    let size = (15_u64 << 20) + (64 << 10);
    let at = 6_u64 << 20;
    let descriptor = 1 << 62 | (packed.len() as u64 / 512) << 49 | at;
    let table = be(8, descriptor).repeat(8);
    let fields: [(u64, &[u8]); 9] = [
        (0, b"QFI\xfb"),
        (4, &be(4, 2)),
        (20, &be(4, 21)),
        (24, &be(8, size)),
        (36, &be(4, 1)),
        (40, &be(8, 2 << 20)),
        (2 << 20, &be(8, 4 << 20)),
        (4 << 20, &table),
        (at, packed),
    ];
    bench.desk.sparse("a", 9 << 20, &fields);
    let image = Image::open(&bench.path("a"), &ImageOptions::default()).unwrap();
    let disk = image.disk().unwrap();
    let mut bytes = [0; 4096];
    // A part of the last one, then a part of the first one where the last one has nothing.
    for offset in [14 << 20, 0x18_0000] {
        disk.read_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, [(offset % (2 << 20) / 4096) as u8; 4096], "{offset}");
    }
}

#[test]
fn compressed_clusters_that_are_damaged_are_reported() {
    let bench = Bench::new();
    let images = [
        ("qcow2", "-c", "packed cluster at byte"),
        (
            "qcow2",
            "-c -o compression_type=zstd",
            "packed cluster at byte",
        ),
        (
            "vmdk",
            "-o subformat=streamOptimized",
            "packed grain at byte",
        ),
    ];
    for (format, options, says) in images {
        bench.make("a", format, options);
        // The cluster with the beginning of the disk.
        let file = bench.patched("a", &[]);
        let first = match format {
            "qcow2" => {
                let l1 = number_at(&file, 40, 8, true);
                let l2 = number_at(&file, l1, 8, true) & 0x00ff_ffff_ffff_fe00;
                number_at(&file, l2, 8, true) & ((1 << 54) - 1)
            }
            _ => {
                let directory = number_at(&file, 56, 8, false) * 512;
                let table = number_at(&file, directory, 4, false) * 512;
                number_at(&file, table, 4, false) * 512 + 12
            }
        };
        bench.patched("a", &[(first + 2, &[0xff; 40])]);
        let tool = bench.desk.upload(&bench.server.uri);
        let tool = tool.args("--no-journal patched");
        let _ = tool.run().code(1).says(says);
        let destroy = format!("/drives/{}/destroy", bench.only_drive());
        Ask::of(&bench.server).post(&destroy, []).expect(204);
    }
}

#[test]
fn hostile_vmdk() {
    let bench = Bench::new();
    bench.make("a", "vmdk", "");
    let file = bench.patched("a", &[]);
    let directory = number_at(&file, 56, 8, false) * 512;
    let table = number_at(&file, directory, 4, false) * 512;
    let first = number_at(&file, table, 4, false);
    let mut text = vec![0; 10240];
    file.read_exact_at(&mut text, 512).unwrap();
    let replaced = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&text).replace(from, to);
        let mut text = text.into_bytes();
        text.resize(10240, 0);
        vec![(512, text)]
    };
    type Patch = (u64, Vec<u8>);
    let cases: Vec<(Vec<Patch>, &str)> = vec![
        (vec![(4, le(4, 9))], "version 9"),
        (vec![(12, le(8, 0))], "no bytes"),
        (vec![(12, le(8, u64::MAX))], "larger than any"),
        (vec![(12, le(8, (1 << 54) - 1))], "more than any has"),
        (vec![(12, le(8, 1 << 38))], "beyond its end"),
        (vec![(20, le(8, 0))], "grains have 0 sectors"),
        (vec![(20, le(8, 100))], "grains have 100 sectors"),
        (vec![(20, le(8, 1 << 63))], "grains have"),
        (vec![(28, le(8, 0))], "one of several files"),
        (vec![(28, le(8, u64::MAX))], "description is at sector"),
        (vec![(28, le(8, 1 << 50))], "beyond its end"),
        (vec![(44, le(4, 0))], "tables have 0 entries"),
        (vec![(44, le(4, u32::MAX.into()))], "tables have"),
        (vec![(56, le(8, 1 << 53))], "beyond its end"),
        (vec![(56, le(8, (1 << 55) + 1))], "directory is at sector"),
        (vec![(56, le(8, u64::MAX))], "no footer"),
        (vec![(73, b"\n \n\n".to_vec())], "line ends were changed"),
        (vec![(8, le(4, 3 | 1 << 16)), (77, le(2, 7))], "number 7"),
        (vec![(directory, le(4, u32::MAX.into()))], "beyond its end"),
        (vec![(table, le(4, u32::MAX.into()))], "beyond its end"),
        (vec![(table + 4, le(4, first))], "used twice"),
        (replaced("monolithicSparse", "vmfsSparse"), "vmfsSparse"),
        (
            replaced("parentCID=ffffffff", "parentCID=12345678"),
            "differs from another",
        ),
        (replaced("SPARSE", "SPARSX"), "does not fit it"),
        (
            replaced("createType", "creatXType"),
            "does not state its kind",
        ),
        (
            vec![(0, b"COWD\x01\0\0\0".to_vec())],
            "one of the files of a disk or a snapshot of ESX",
        ),
    ];
    for (patches, says) in &cases {
        let patches: Vec<(u64, &[u8])> = patches.iter().map(|(at, b)| (*at, &**b)).collect();
        bench.patched("a", &patches);
        bench.refused("patched", says);
    }
    // Two entries of the directory for one table.
    bench
        .desk
        .sparse("disk.raw", 80 * MIB, &[(0, b"one"), (40 * MIB, b"two")]);
    bench.make("t", "vmdk", "");
    let file = bench.patched("t", &[]);
    let directory = number_at(&file, 56, 8, false) * 512;
    let table = number_at(&file, directory, 4, false);
    bench.patched("t", &[(directory + 4, &le(4, table))]);
    bench.refused("patched", "used twice");
    // Two entries of a stream for one grain: the marker of the grain reveals it.
    bench.make("s", "vmdk", "-o subformat=streamOptimized");
    let file = bench.patched("s", &[]);
    let directory = number_at(&file, 56, 8, false) * 512;
    let table = number_at(&file, directory, 4, false) * 512;
    let first = number_at(&file, table, 4, false);
    bench.patched("s", &[(table + 4, &le(4, first))]);
    let error = read_all(&bench.path("patched"), None).unwrap_err();
    assert!(
        error.to_string().contains("is of sector 0, not 128"),
        "{error}"
    );
}

#[test]
fn hostile_vdi() {
    let bench = Bench::new();
    bench.make("a", "vdi", "");
    let map = number_at(&bench.patched("a", &[]), 340, 4, false);
    type Patch = (u64, Vec<u8>);
    let cases: Vec<(Vec<Patch>, &str)> = vec![
        (vec![(68, le(4, 1))], "version 0.1"),
        (vec![(76, le(4, 4))], "differs from another"),
        (vec![(76, le(4, 9))], "kind 9"),
        (vec![(430, vec![1])], "differs from another"),
        (vec![(340, le(4, 3))], "map is at byte 3"),
        (vec![(340, le(4, 0xffff_fe00))], "beyond its end"),
        (vec![(344, le(4, 0))], "data is at byte 0"),
        (vec![(344, le(4, 0xffff_fe00))], "beyond its end"),
        (vec![(368, le(8, 0))], "no bytes"),
        (vec![(368, le(8, u64::MAX))], "larger than any"),
        (vec![(368, le(8, 1 << 62))], "are needed"),
        (
            vec![(368, le(8, 1 << 50)), (384, le(4, u32::MAX.into()))],
            "beyond its end",
        ),
        (vec![(376, le(4, 0))], "blocks have 0 bytes"),
        (vec![(376, le(4, 3 << 20))], "blocks have 3145728 bytes"),
        (vec![(380, le(4, 8))], "more than data"),
        (vec![(384, le(4, 1))], "1 blocks"),
        (vec![(map, le(4, 0xffff_fffd))], "beyond its end"),
        (vec![(map + 4, le(4, 0))], "used twice"),
    ];
    for (patches, says) in &cases {
        let patches: Vec<(u64, &[u8])> = patches.iter().map(|(at, b)| (*at, &**b)).collect();
        bench.patched("a", &patches);
        bench.refused("patched", says);
    }
}

/// Corrects the checksum of a VHD structure.
fn seal_vhd(file: &File, at: u64, len: usize, field: u64) {
    let mut bytes = vec![0; len];
    file.write_all_at(&[0; 4], at + field).unwrap();
    file.read_exact_at(&mut bytes, at).unwrap();
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    file.write_all_at(&(!sum).to_be_bytes(), at + field)
        .unwrap();
}

#[test]
fn hostile_vhd() {
    let bench = Bench::new();
    bench.make("a", "vpc", "-o force_size=on");
    let table = number_at(&bench.patched("a", &[]), 512 + 16, 8, true);
    let first = number_at(&bench.patched("a", &[]), table, 4, true);
    bench.patched("a", &[(64, &[1])]);
    bench.refused("patched", "checksum of its footer");
    bench.patched("a", &[(512 + 36, &[1])]);
    bench.refused("patched", "checksum of its second header");
    type Patch = (u64, Vec<u8>);
    let cases: Vec<(Vec<Patch>, &str)> = vec![
        (
            vec![(16, be(8, u64::MAX))],
            "second header at byte 18446744073709551615 lies beyond",
        ),
        (vec![(16, be(8, 0))], "no second header"),
        (vec![(48, be(8, 0))], "no bytes"),
        (vec![(48, be(8, u64::MAX))], "larger than any"),
        (vec![(48, be(8, 1 << 62))], "are needed"),
        (
            vec![(48, be(8, 1 << 50)), (512 + 28, be(4, u32::MAX.into()))],
            "beyond its end",
        ),
        (vec![(60, be(4, 4))], "differs from another"),
        (vec![(60, be(4, 2))], "cut off"),
        (vec![(60, be(4, 7))], "kind 7"),
        (vec![(512 + 16, be(8, 1 << 62))], "beyond its end"),
        (vec![(512 + 16, be(8, 5))], "table is at byte 5"),
        (vec![(512 + 28, be(4, 1))], "1 entries"),
        (vec![(512 + 32, be(4, 0))], "blocks have 0 bytes"),
        (vec![(512 + 32, be(4, 12345))], "blocks have 12345 bytes"),
        (vec![(table, be(4, 0xffff_fffe))], "beyond its end"),
        (vec![(table, be(4, 0))], "within its header"),
        (vec![(table + 4, be(4, first))], "used twice"),
    ];
    for (patches, says) in &cases {
        let patches: Vec<(u64, &[u8])> = patches.iter().map(|(at, b)| (*at, &**b)).collect();
        let file = bench.patched("a", &patches);
        seal_vhd(&file, 0, 512, 64);
        seal_vhd(&file, 512, 1024, 36);
        bench.refused("patched", says);
    }
    // The footer of a fixed VHD must match the file, or it counts as the end of a raw disk.
    bench.make("f", "vpc", "-o subformat=fixed,force_size=on");
    let file = bench.patched("f", &[]);
    let len = file.metadata().unwrap().len();
    file.set_len(len - 512).unwrap();
    bench.refused("--format vhd patched", "no footer");
    let whole = std::fs::read(bench.path("f")).unwrap();
    bench.desk.file("longer", &[&[0; 512][..], &whole].concat());
    bench.refused("longer", "ends with the footer of a VHD");
    let raw = ImageOptions {
        format: Some(Format::Raw),
        ..ImageOptions::default()
    };
    let image = Image::open(&bench.path("longer"), &raw).unwrap();
    assert_eq!(
        (image.format(), image.length().known()),
        (Format::Raw, Some(len + 512))
    );
}

/// Corrects the checksum of a VHDX structure.
fn seal_vhdx(file: &File, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    file.write_all_at(&[0; 4], at + 4).unwrap();
    file.read_exact_at(&mut bytes, at).unwrap();
    let crc = crc32c::crc32c(&bytes);
    file.write_all_at(&crc.to_le_bytes(), at + 4).unwrap();
}

#[test]
fn hostile_vhdx() {
    const KIB: u64 = 1 << 10;
    const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
    const REGIONS: u64 = 192 * KIB;
    let bench = Bench::new();
    bench.make("a", "vhdx", "-o block_size=1M");
    let path = bench.path("a");
    // GUIDs in the byte order of the file.
    let bat_region = find(&path, b"\x66\x77\xc2\x2d\x23\xf6\x00\x42");
    let metadata_region = find(&path, b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b");
    let file = bench.patched("a", &[]);
    let bat = number_at(&file, bat_region + 16, 8, false);
    let metadata = number_at(&file, metadata_region + 16, 8, false);
    let item = |id: &[u8]| {
        let entry = find(&path, id);
        metadata + number_at(&file, entry + 16, 4, false)
    };
    let parameters = item(b"\x37\x67\xa1\xca\x36\xfa\x43\x4d");
    let size = item(b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48");
    let sector = item(b"\x1d\xbf\x41\x81\x6f\xa9\x09\x47");
    let first = number_at(&file, bat, 8, false);
    type Patch = (u64, Vec<u8>);
    let both = |field: u64, bytes: Vec<u8>| -> Vec<Patch> {
        HEADERS
            .iter()
            .map(|at| (at + field, bytes.clone()))
            .collect()
    };
    let cases: Vec<(Vec<Patch>, &str)> = vec![
        (both(0, b"dead".to_vec()), "neither of its headers"),
        (both(66, le(2, 7)), "version 7"),
        (both(48, le(8, 7)), "its log holds is missing"),
        (
            vec![(REGIONS, le(4, 0)), (256 * KIB, le(4, 0))],
            "neither of its tables of regions",
        ),
        (vec![(REGIONS + 8, le(4, 5000))], "5000 regions"),
        (vec![(REGIONS + 8, le(4, 1))], "lacks a region"),
        (
            vec![(bat_region, le(8, 7)), (bat_region + 28, le(4, 1))],
            "needs the region",
        ),
        (vec![(bat_region, le(8, 7))], "lacks a region"),
        (vec![(bat_region + 16, le(8, 1 << 63))], "beyond its end"),
        (
            vec![(bat_region + 16, le(8, 5))],
            "a region of it is at byte 5",
        ),
        (vec![(bat_region + 24, le(4, 8))], "table has 8 bytes"),
        (
            vec![(metadata_region + 16, le(8, u64::MAX << 20))],
            "beyond its end",
        ),
        (
            vec![(metadata_region + 24, le(4, 8))],
            "metadata have 8 bytes",
        ),
        (vec![(metadata, le(8, 0))], "metadata do not begin"),
        (vec![(metadata + 10, le(2, 9999))], "9999 metadata"),
        (vec![(metadata + 32, le(8, 7))], "needs the metadatum"),
        (vec![(metadata + 32 + 16, le(4, 5))], "a metadatum of it"),
        (vec![(parameters, le(4, 0))], "blocks have 0 bytes"),
        (
            vec![(parameters, le(4, 3 << 20))],
            "blocks have 3145728 bytes",
        ),
        (vec![(parameters + 4, le(4, 2))], "differs from another"),
        (vec![(size, le(8, 0))], "no bytes"),
        (vec![(size, le(8, u64::MAX))], "larger than any"),
        (vec![(size, le(8, 65 << 40))], "larger than 64 TiB"),
        (vec![(size, le(8, 64 << 40))], "are needed"),
        (vec![(sector, le(4, 100))], "sectors have 100 bytes"),
        (vec![(bat, le(8, 4))], "state 4"),
        (
            vec![(bat, le(8, (first & !7) | 7))],
            "partly in another file",
        ),
        (vec![(bat, le(8, 6))], "within its header"),
        (vec![(bat, le(8, !7 | 6))], "beyond its end"),
        (vec![(bat + 8, le(8, first))], "used twice"),
    ];
    for (patches, says) in &cases {
        let patches: Vec<(u64, &[u8])> = patches.iter().map(|(at, b)| (*at, &**b)).collect();
        let file = bench.patched("a", &patches);
        for at in HEADERS {
            seal_vhdx(&file, at, 4096);
        }
        seal_vhdx(&file, REGIONS, 65536);
        bench.refused("patched", says);
    }
    // One of two headers is enough, and the newer valid one counts.
    let sound = read_all(&path, None).unwrap();
    for at in HEADERS {
        bench.patched("a", &[(at + 100, &[1])]);
        assert!(read_all(&bench.path("patched"), None).unwrap() == sound);
    }
    bench.patched("a", &[(REGIONS + 100, &[1])]);
    assert!(read_all(&bench.path("patched"), None).unwrap() == sound);
}

/// A truncated image reads as the whole one or not at all: missing data never reads as zeros.
#[test]
fn a_truncated_file_is_never_read_as_zeros() {
    let bench = Bench::new();
    let images = [
        ("qcow2", "", Format::Qcow2),
        ("qcow2", "-c", Format::Qcow2),
        ("qcow2", "-o extended_l2=on", Format::Qcow2),
        ("vmdk", "", Format::Vmdk),
        ("vmdk", "-o subformat=streamOptimized", Format::Vmdk),
        ("vdi", "", Format::Vdi),
        ("vpc", "", Format::Vhd),
        ("vpc", "-o subformat=fixed", Format::Vhd),
        ("vhdx", "", Format::Vhdx),
    ];
    for (format, options, ours) in images {
        bench.make("a", format, options);
        let expected = read_all(&bench.path("a"), Some(ours)).unwrap();
        let file = bench.patched("a", &[]);
        let len = file.metadata().unwrap().len();
        let mut refused = 0;
        let mut cuts: Vec<u64> = (0..60).map(|i| len - 1 - i * len / 60).collect();
        cuts.extend([len - 512, len - 4096, 513, 511, 100, 1]);
        // Missing data must not read as zeros.
        cuts.sort_unstable();
        for cut in cuts.into_iter().rev() {
            file.set_len(cut).unwrap();
            match read_all(&bench.path("patched"), Some(ours)) {
                Ok(read) => assert!(read == expected, "{format} {options} cut at {cut}"),
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.kind(), openhosting::ErrorKind::Image, "{error}");
                }
            }
        }
        assert!(refused >= 40, "{format} {options}: {refused}");
    }
}
