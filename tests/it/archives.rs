//! Archives and disks in several files, as people and other tools create them: which disk is
//! selected, and that each refusal names a command that works.

use std::os::unix::fs::symlink;
use std::path::Path;

use openhosting::digest::Digest;

use crate::formats::Bench;
use crate::ova::{check, command, header, octal, pack, padded, sum};
use crate::support::cli::{Outcome, SIMPLE, UPLOAD};
use crate::support::http::{Ask, assert_drive, drives};
use crate::support::{gzip, noise};

/// A small disk with a boot signature, data and holes, which depend on the seed.
fn disk(bench: &Bench, name: &str, seed: u64) -> Vec<u8> {
    let mut boot = noise(seed, 512);
    boot[446..510].fill(0);
    boot[510..].copy_from_slice(b"\x55\xaa");
    let pieces: [(u64, &[u8]); 3] = [
        (0, &boot),
        (200_000, &noise(seed + 1, 70_000)),
        (600_000, b"end"),
    ];
    bench.desk.sparse(name, 1 << 20, &pieces);
    std::fs::read(bench.path(name)).unwrap()
}

/// A description of disks with these files, in this order.
fn ovf(files: &[&str]) -> String {
    let files: Vec<_> = (0..).zip(files).collect();
    let references = files
        .iter()
        .map(|(i, name)| format!("<File ovf:id=\"f{i}\" ovf:href=\"{name}\"/>"));
    let disks = files
        .iter()
        .map(|(i, _)| format!("<Disk ovf:diskId=\"d{i}\" ovf:fileRef=\"f{i}\"/>"));
    format!(
        "<Envelope xmlns:ovf=\"u\"><References>{}</References><DiskSection>{}</DiskSection></Envelope>",
        references.collect::<String>(),
        disks.collect::<String>()
    )
}

/// Writes a tar of these files, byte by byte, as `image.iso`.
fn write_tar(bench: &Bench, members: &[(&str, &[u8])]) {
    let mut tar = Vec::new();
    for (name, bytes) in members {
        tar.extend(header(name, b'0', &octal(bytes.len() as u64)));
        tar.extend(padded(bytes.to_vec()));
    }
    bench.desk.file("image.iso", &tar);
}

/// Destroys the only drive, which must hold this.
#[track_caller]
fn take_drive(bench: &Bench, expected: &[u8]) {
    let drive = bench.only_drive();
    assert_drive(&bench.server, &drive, expected);
    let path = format!("/drives/{drive}/destroy");
    Ask::of(&bench.server).post(&path, []).expect(204);
}

/// Runs a command in a shell that finds our programs.
fn shell(bench: &Bench, script: &str) -> Outcome {
    let bins = Path::new(SIMPLE).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let tool = bench
        .desk
        .tool("bash")
        .list(["-euo", "pipefail", "-c", script]);
    let tool = tool.env("PATH", format!("{}:{path}", bins.display()));
    tool.env("OHURI", &bench.server.uri).run()
}

/// An upload that is refused before anything is created; returns the hint.
#[track_caller]
fn hint(bench: &Bench, args: &[&str], says: &str) -> String {
    let tool = bench.desk.upload(&bench.server.uri).list(args);
    let outcome = tool.run().code(1).says(says);
    assert_eq!(drives(&bench.server), Vec::<String>::new());
    let hint = outcome.stderr.lines().last().unwrap().to_owned();
    // Who calls `openhosting upload` reads that.
    let tool = bench.desk.simple(&bench.server.uri);
    let same = tool.arg("upload").list(args).run().code(1);
    let named = hint.replace("openhosting-upload", "openhosting upload");
    assert_eq!(same.stderr.lines().last(), Some(&*named));
    hint
}

/// Runs the complete command that a refusal names, which uploads.
#[track_caller]
fn follow(bench: &Bench, args: &[&str], says: &str, expected: &[u8]) {
    let hint = hint(bench, args, says);
    let (_, script) = hint.split_once(": ").unwrap();
    eprintln!("{script}");
    let _ = shell(bench, script).code(0);
    for entry in std::fs::read_dir(bench.desk.work()).unwrap() {
        bench.desk.own(&entry.unwrap().path());
    }
    take_drive(bench, expected);
}

/// Uploads again with each option that a refusal names.
#[track_caller]
fn options_of(hint: &str) -> Vec<String> {
    let (_, options) = hint.split_once("--disk ").unwrap();
    options
        .split(" or --disk ")
        .map(|name| name.trim_matches('\'').to_owned())
        .collect()
}

#[test]
fn files_that_accompany_a_disk_on_other_systems_are_ignored() {
    let bench = Bench::new();
    let disk = disk(&bench, "disk.img", 1);
    let double = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ";
    let mf = format!("SHA256(disk.img)= {}\n", Digest::of(&disk));
    let description = ovf(&["disk.img"]);
    let companions = [
        ("./._box.ovf", &double[..]),
        ("./._box.mf", double),
        ("__MACOSX/disk.img", double),
        ("._disk.img", double),
        (".DS_Store", double),
        ("PaxHeaders.7/disk.raw", b"30 mtime=1.5\n"),
    ];
    for own in [
        &[("disk.img", &disk[..])][..],
        &[
            ("./box.ovf", description.as_bytes()),
            ("./box.mf", mf.as_bytes()),
            ("./disk.img", &disk),
        ],
    ] {
        write_tar(&bench, &[&companions[..], own].concat());
        check(&bench, &["image.iso"], &disk);
        check(&bench, &["--disk", "disk.img", "image.iso"], &disk);
        let hint = hint(
            &bench,
            &["--disk", "._disk.img", "image.iso"],
            "There is no file",
        );
        assert!(!hint.contains("._"), "{hint}");
    }
    write_tar(&bench, &[&companions[..], &[("disk.img", &disk)]].concat());
    let tar = std::fs::read(bench.path("image.iso")).unwrap();
    bench.desk.file("image.tar.gz", &gzip(&tar));
    check(&bench, &["image.tar.gz"], &disk);
}

#[test]
fn a_description_is_decoded_and_a_named_disk_needs_none() {
    let bench = Bench::new();
    let first = disk(&bench, "für.img", 1);
    disk(&bench, "other.img", 2);
    let text = ovf(&["für.img", "other.img"]);
    let latin1 = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
    let declared = |name: &str| format!("<?xml version=\"1.0\" encoding=\"{name}\"?>{text}");
    let utf16 = declared("UTF-16");
    let utf16 = format!("\u{feff}{utf16}");
    let utf16: Vec<u8> = utf16.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for description in [
        latin1(&declared("ISO-8859-1")),
        latin1(&declared("windows-1252")),
        utf16,
        format!("\u{feff}{}", declared("UTF-8")).into_bytes(),
        [declared("utf-8").as_bytes(), &[0; 99]].concat(),
    ] {
        bench.desk.file("box.ovf", &description);
        pack(&bench, "gnu", &["box.ovf", "other.img", "für.img"]);
        check(&bench, &["image.iso"], &first);
    }
    for broken in [
        &b"<Envelope><References>"[..],
        b"",
        b"\xff\xfe\0\0",
        &[b' '; 2 << 20],
    ] {
        bench.desk.file("box.ovf", broken);
        pack(&bench, "gnu", &["box.ovf", "other.img", "für.img"]);
        let hint = hint(&bench, &["image.iso"], "is no sound OVA");
        let options = options_of(&hint);
        assert_eq!(options, ["other.img", "für.img"]);
        check(&bench, &["--disk", &options[1], "image.iso"], &first);
    }
}

#[test]
fn a_disk_is_found_beside_its_description() {
    let bench = Bench::new();
    let bytes = disk(&bench, "disk", 1);
    let upload = |ovf_at: &str, reference: &str, at: &str| {
        write_tar(
            &bench,
            &[(ovf_at, ovf(&[reference]).as_bytes()), (at, &bytes)],
        );
        check(&bench, &["image.iso"], &bytes);
    };
    upload("vm/box.ovf", "disk.raw", "vm/disk.raw");
    upload("./vm/box.ovf", "./disk.raw", "vm/disk.raw");
    upload("/vm/box.ovf", "disk.raw", "/vm/disk.raw");
    upload("box.ovf", "file:///disk.raw", "disk.raw");
    upload("vm/box.ovf", "disks/disk.raw", "vm/disks/disk.raw");
    upload("vm/box.ovf", "vm/disk.raw", "vm/disk.raw");
    upload("vm/box.ovf", "a%20disk.raw", "vm/a disk.raw");
    upload("vm/box.ovf", "a%20disk.raw", "vm/a%20disk.raw");
    upload("box.ovf", "Gr\u{f6}sse.raw", "Gro\u{308}sse.raw");
    // A file that may be another format is not selected, but named.
    write_tar(
        &bench,
        &[
            ("box.ovf", ovf(&["Disk.RAW"]).as_bytes()),
            ("vm/disk.raw", &bytes),
        ],
    );
    let hint = hint(&bench, &["image.iso"], "There is no file \"Disk.RAW\"");
    for name in options_of(&hint)
        .iter()
        .map(String::as_str)
        .chain(["/vm/disk.raw"])
    {
        check(&bench, &["--disk", name, "image.iso"], &bytes);
    }
}

#[test]
fn the_boot_disk_is_sent() {
    let bench = Bench::new();
    let boot = disk(&bench, "boot.img", 1);
    let data = disk(&bench, "data.img", 2);
    let item = |address: u8, number: u8| {
        format!(
            "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent>\
             <rasd:HostResource>ovf:/disk/d{number}</rasd:HostResource>\
             <rasd:Parent>3</rasd:Parent></Item>"
        )
    };
    let machine = format!(
        "<VirtualSystem><VirtualHardwareSection>{}{}</VirtualHardwareSection></VirtualSystem></Envelope>",
        item(1, 0),
        item(0, 1)
    );
    let text = ovf(&["data.img", "boot.img"]);
    bench.desk.file("a.ovf", text.as_bytes());
    pack(&bench, "ustar", &["a.ovf", "data.img", "boot.img"]);
    check(&bench, &["image.iso"], &data);
    let text = text.replace("</Envelope>", &machine);
    bench.desk.file("a.ovf", text.as_bytes());
    pack(&bench, "ustar", &["a.ovf", "data.img", "boot.img"]);
    let _ = check(&bench, &["image.iso"], &boot).says("--disk takes another one: data.img");
    check(&bench, &["--disk", "data.img", "image.iso"], &data);
    // publish reports which one it selects as well.
    let tool = bench.desk.simple(&bench.server.uri);
    let _ = tool
        .args("publish image.iso --name n")
        .run()
        .code(0)
        .says("the disk boot.img in it is raw");
    take_drive(&bench, &boot);
    let tool = bench.desk.simple(&bench.server.uri);
    let _ = tool
        .args("publish --disk data.img image.iso --name n")
        .run()
        .code(0)
        .says("the disk data.img in it is raw");
    take_drive(&bench, &data);
}

#[test]
fn content_takes_precedence_over_names_and_several_disks_are_refused() {
    let bench = Bench::new();
    let first = disk(&bench, "disk", 1);
    let second = disk(&bench, "firmware.bin", 2);
    // Neither text nor the beginning of any known format.
    let notes = [0x80, 0xff, 0, 1, 0xfe, 2, 0x99];
    bench.desk.file("notes.img", &notes);
    bench.desk.file("README", b"read me");
    let mut kernel = noise(3, 4096);
    kernel[510..512].copy_from_slice(b"\x55\xaa");
    kernel[514..518].copy_from_slice(b"HdrS");
    bench.desk.file("vmlinuz", &kernel);
    pack(&bench, "ustar", &["README", "notes.img", "vmlinuz", "disk"]);
    check(&bench, &["image.iso"], &first);
    pack(&bench, "ustar", &["README", "notes.img"]);
    check(&bench, &["image.iso"], &notes);
    pack(&bench, "ustar", &["README", "firmware.bin", "disk"]);
    let hint = hint(&bench, &["image.iso"], "nothing in it says which one boots");
    assert_eq!(options_of(&hint), ["firmware.bin", "disk"]);
    check(&bench, &["--disk", "disk", "image.iso"], &first);
    check(&bench, &["--disk", "firmware.bin", "image.iso"], &second);
    // The oldest headers have no magic number.
    for format in ["v7", "oldgnu"] {
        pack(&bench, format, &["README", "disk"]);
        check(&bench, &["image.iso"], &first);
    }
    // Links in the archive refer to its files, and are no separate disks.
    symlink("disk", bench.path("soft.img")).unwrap();
    std::fs::hard_link(bench.path("disk"), bench.path("hard.img")).unwrap();
    for name in ["soft.img", "hard.img"] {
        bench.desk.file("a.ovf", ovf(&[name]).as_bytes());
        pack(&bench, "gnu", &["a.ovf", "disk", "soft.img", "hard.img"]);
        check(&bench, &["image.iso"], &first);
        check(&bench, &["--disk", name, "image.iso"], &first);
        pack(&bench, "gnu", &["disk", "soft.img", "hard.img"]);
        check(&bench, &["image.iso"], &first);
    }
    // With two candidates, none is guessed.
    pack(&bench, "ustar", &["disk"]);
    let tar = std::fs::read(bench.path("image.iso")).unwrap();
    bench.desk.file("tar.raw", &tar);
    bench.qemu_img("convert -f raw -O vpc -o subformat=fixed,force_size=on tar.raw image.cosi");
    bench.desk.own(&bench.path("image.cosi"));
    bench.refused("image.cosi", "begins as a tar does, and ends as a VHD does");
    check(&bench, &["--disk", "disk", "image.cosi"], &first);
    check(&bench, &["--format", "vhd", "image.cosi"], &tar);
}

#[test]
fn sparse_members_are_read_with_their_maps() {
    let bench = Bench::new();
    // More pieces than fit a header of GNU tar, and a hole at the end.
    let data = noise(1, 4096);
    let pieces: Vec<(u64, &[u8])> = (0..60).map(|i| (i * 65_536, &*data)).collect();
    bench.desk.sparse("disk.raw", 5 << 20, &pieces);
    let expected = std::fs::read(bench.path("disk.raw")).unwrap();
    let mf = format!(
        "SHA256(disk.raw)= {}\n",
        sum(&bench, "sha256sum", "disk.raw")
    );
    bench.desk.file("a.mf", mf.as_bytes());
    for format in [
        &["--format=oldgnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let options = [
            "-S",
            "--hole-detection=raw",
            "-cf",
            "image.iso",
            "a.mf",
            "disk.raw",
        ];
        command(&bench, "tar", &[format, &options].concat());
        bench.desk.own(&bench.path("image.iso"));
        let len = std::fs::metadata(bench.path("image.iso")).unwrap().len();
        assert!(len < 1 << 20, "{format:?}: {len}");
        let outcome = check(&bench, &["image.iso"], &expected);
        assert!(
            !outcome.stderr.contains("not checked"),
            "{}",
            outcome.stderr
        );
        check(&bench, &["--disk", "disk.raw", "image.iso"], &expected);
        // When read in order as well.
        let options = [
            "-S",
            "--hole-detection=raw",
            "-czf",
            "image.tgz",
            "disk.raw",
        ];
        command(&bench, "tar", &[format, &options].concat());
        bench.desk.own(&bench.path("image.tgz"));
        check(&bench, &["image.tgz"], &expected);
    }
}

#[test]
fn a_disk_in_pieces_is_joined_and_checked_piece_by_piece() {
    let bench = Bench::new();
    let bytes = disk(&bench, "disk", 1);
    let chunk = 300_000;
    let pieces: Vec<(String, &[u8])> = (0..)
        .zip(bytes.chunks(chunk))
        .map(|(i, piece)| (format!("vm/disk.raw.{i:09}"), piece))
        .collect();
    let description = ovf(&["disk.raw"]).replace("ovf:href", "ovf:chunkSize=\"300000\" ovf:href");
    let line = |(name, piece): &(String, &[u8])| {
        let name = name.strip_prefix("vm/").unwrap();
        format!("SHA256({name})= {}\n", Digest::of(piece))
    };
    let sound: String = pieces.iter().map(line).collect();
    let spoiled = sound.replacen(&Digest::of(pieces[1].1).to_string(), &"0".repeat(64), 1);
    let members = |mf: &str, pieces: &[(String, &[u8])]| {
        let mut members = vec![
            ("vm/box.ovf", description.as_bytes()),
            ("vm/box.mf", mf.as_bytes()),
        ];
        members.extend(pieces.iter().map(|(name, piece)| (name.as_str(), *piece)));
        write_tar(&bench, &members);
    };
    members(&sound, &pieces);
    let outcome = check(&bench, &["image.iso"], &bytes);
    assert!(
        !outcome.stderr.contains("not checked"),
        "{}",
        outcome.stderr
    );
    check(&bench, &["--disk", "vm/disk.raw", "image.iso"], &bytes);
    members(&spoiled, &pieces);
    let tool = bench.desk.upload(&bench.server.uri);
    let _ = tool
        .arg("image.iso")
        .run()
        .code(4)
        .says("but the manifest vm/box.mf lists");
    take_drive(&bench, &bytes);
    // A missing piece, at the end and in the middle.
    members(&sound, &pieces[..3]);
    let joined = pieces[..3].iter().flat_map(|(_, piece)| *piece).copied();
    let joined: Vec<u8> = joined.collect();
    follow(
        &bench,
        &["image.iso"],
        "nothing shows that these are all",
        &joined,
    );
    let gap: Vec<_> = [&pieces[..1], &pieces[2..]].concat();
    members(&sound, &gap);
    bench.refused("image.iso", "nothing shows that these are all");
    bench.refused(
        "--disk vm/disk.raw image.iso",
        "nothing shows that these are all",
    );
}

#[test]
fn compressed_disks_in_archives_are_refused_with_a_command() {
    let bench = Bench::new();
    let bytes = disk(&bench, "disk", 1);
    let packed = gzip(&bytes);
    let text = ovf(&["a disk.raw.gz"]).replace("ovf:href", "ovf:compression=\"gzip\" ovf:href");
    for members in [
        &[("box.ovf", text.as_bytes()), ("a disk.raw.gz", &packed)][..],
        &[("a disk.img", &packed)],
    ] {
        write_tar(&bench, members);
        follow(&bench, &["image.iso"], "is packed with gzip", &bytes);
    }
}

/// A tar whose names of members act as options or as commands, if a hint does not quote them.
#[test]
fn names_in_an_archive_are_never_executed() {
    let bench = Bench::new();
    let image = |version: u32, fields: &[(usize, &[u8])]| {
        let mut image = vec![0; 2 << 16];
        image[..4].copy_from_slice(b"QFI\xfb");
        image[4..8].copy_from_slice(&version.to_be_bytes());
        // Clusters of 64 KiB, a disk of one of them, and an empty table at the second.
        image[23] = 16;
        image[24..32].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        image[36..40].copy_from_slice(&1_u32.to_be_bytes());
        image[40..48].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        for (at, bytes) in fields {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        image
    };
    let cases = [
        ("--to-command=sh", image(9, &[]), "it has version 9"),
        (
            "$(touch executed).img",
            image(3, &[(79, &[2]), (103, &[104])]),
            "it is marked as corrupt",
        ),
        (
            "$(touch executed).img",
            image(2, &[(15, &[80]), (19, &[4]), (80, b"base")]),
            "does not state its format",
        ),
    ];
    for (name, image, says) in &cases {
        let members = [("script", &b"touch executed\n"[..]), (*name, image)];
        write_tar(&bench, &members);
        command(&bench, "gzip", &["-kf", "-S", ".gz", "image.iso"]);
        bench.desk.own(&bench.path("image.iso.gz"));
        for (archive, says) in [
            ("image.iso", *says),
            ("image.iso.gz", "cannot be read in order"),
        ] {
            let hint = hint(&bench, &["--allow-backing", ".", archive], says);
            let (_, script) = hint.split_once(": ").unwrap();
            let _ = shell(&bench, script);
            assert!(!bench.path("executed").exists(), "{script}");
            // The member was extracted, by its name.
            std::fs::remove_file(bench.path(name)).unwrap();
        }
    }
}

#[test]
fn a_disk_in_a_compressed_or_piped_tar_is_read_in_order() {
    let bench = Bench::new();
    let bytes = disk(&bench, "disk.raw", 1);
    let other = disk(&bench, "other.raw", 2);
    bench.desk.file("notes.txt", b"nothing");
    for (packer, name) in [
        ("-z", "a.tar.gz"),
        ("-J", "a.tar.xz"),
        ("--zstd", "a.tar.zst"),
    ] {
        command(
            &bench,
            "tar",
            &[packer, "-cf", name, "notes.txt", "disk.raw", "notes.txt"],
        );
        bench.desk.own(&bench.path(name));
        let _ = check(&bench, &[name], &bytes).says("the disk disk.raw in it is raw");
        // Its size is known, so the drive is created with its final size.
        let sum = Digest::of(&std::fs::read(bench.path(name)).unwrap()).to_string();
        check(&bench, &["--sha256", &sum, name], &bytes);
        check(
            &bench,
            &["--disk", "./disk.raw", "--format", "raw", name],
            &bytes,
        );
        let tool = bench
            .desk
            .simple(&bench.server.uri)
            .args("image info --json")
            .arg(name);
        let info: serde_json::Value = serde_json::from_str(tool.run().code(0).text()).unwrap();
        assert_eq!(info["disk_bytes"], bytes.len());
        assert_eq!(info["archived_as"], "disk.raw");
    }
    command(&bench, "tar", &["-cf", "a.tar", "notes.txt", "disk.raw"]);
    let tar = std::fs::read(bench.path("a.tar")).unwrap();
    bench.desk.own(&bench.path("a.tar"));
    let piped = |args: &str, input: &[u8]| {
        let tool = bench.desk.upload(&bench.server.uri);
        tool.args(args).arg("-").input(input).run()
    };
    let _ = piped("", &tar).code(0);
    take_drive(&bench, &bytes);
    let _ = piped("--disk nothing.raw", &tar)
        .code(1)
        .says("\"notes.txt\", \"disk.raw\"");
    let _ = piped("--disk disk.raw", &bytes)
        .code(1)
        .says("is no OVA or other tar");
    let _ = piped("--disk disk.raw --format qcow2", &tar)
        .code(1)
        .says("has to be read at any place");
    // The whole content, if that is requested.
    let _ = piped("--format raw", &tar).code(0);
    take_drive(&bench, &tar);
    // Two disks: no verification succeeds unless one is selected.
    command(&bench, "tar", &["-czf", "two.tgz", "disk.raw", "other.raw"]);
    bench.desk.own(&bench.path("two.tgz"));
    let tool = bench.desk.upload(&bench.server.uri).arg("two.tgz");
    let outcome = tool
        .run()
        .code(1)
        .says("nothing in it says which one boots");
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.contains("Name one of them"));
    assert_eq!(options_of(line.unwrap()), ["disk.raw", "other.raw"]);
    let drive = bench.only_drive();
    Ask::of(&bench.server)
        .post(&format!("/drives/{drive}/destroy"), [])
        .expect(204);
    check(&bench, &["--disk", "other.raw", "two.tgz"], &other);
    check(&bench, &["--disk", "disk.raw", "two.tgz"], &bytes);
    // A truncated archive is never accepted.
    for cut in [tar.len() - 10_240 - (300 << 10), 700, 512] {
        let outcome = piped("", &tar[..cut]);
        assert_eq!(outcome.status.code(), Some(1), "{cut}: {}", outcome.stderr);
        for drive in drives(&bench.server) {
            let path = format!("/drives/{drive}/destroy");
            Ask::of(&bench.server).post(&path, []).expect(204);
        }
    }
    // A format that cannot be read in order.
    bench.make("box.qcow2", "qcow2", "");
    let expected = bench.reference("box.qcow2", "qcow2");
    command(
        &bench,
        "tar",
        &["-czf", "map.tgz", "notes.txt", "box.qcow2"],
    );
    std::fs::remove_file(bench.path("box.qcow2")).unwrap();
    bench.desk.own(&bench.path("map.tgz"));
    follow(&bench, &["map.tgz"], "cannot be read in order", &expected);
    let description = ovf(&["disk.raw"]);
    bench.desk.file("box.ovf", description.as_bytes());
    command(&bench, "tar", &["-czf", "ova.tgz", "box.ovf", "disk.raw"]);
    bench.desk.own(&bench.path("ova.tgz"));
    follow(&bench, &["ova.tgz"], "is an OVA", &bytes);
}

/// Creates a disk in several files of this kind from `disk.raw`.
fn make_parts(bench: &Bench, name: &str, kind: &str) -> Vec<u8> {
    bench.make(name, "vmdk", &format!("-o subformat={kind}"));
    for entry in std::fs::read_dir(bench.desk.work()).unwrap() {
        bench.desk.own(&entry.unwrap().path());
    }
    bench.reference(name, "vmdk")
}

#[test]
fn a_vmdk_in_several_files_is_read() {
    let bench = Bench::new();
    disk(&bench, "disk.raw", 7);
    std::fs::create_dir(bench.path("vm")).unwrap();
    for kind in [
        "monolithicFlat",
        "twoGbMaxExtentFlat",
        "twoGbMaxExtentSparse",
    ] {
        let expected = make_parts(&bench, "a.vmdk", kind);
        check(&bench, &["a.vmdk"], &expected);
        check(&bench, &["--format", "vmdk", "a.vmdk"], &expected);
        symlink("../a.vmdk", bench.path("vm/link.vmdk")).unwrap();
        check(&bench, &["vm/link.vmdk"], &expected);
        std::fs::remove_file(bench.path("vm/link.vmdk")).unwrap();
        let text = std::fs::read_to_string(bench.path("a.vmdk")).unwrap();
        let text = text.trim_end_matches('\0');
        for text in [
            text.replace('\n', "\r\n"),
            format!("\u{feff}{text}"),
            format!("\n\r\n{text}"),
            text.replacen("DescriptorFile", "Descriptor File", 1),
            text.replacen("RW ", "RDONLY ", 1),
        ] {
            bench.desk.file("b.vmdk", text.as_bytes());
            check(&bench, &["b.vmdk"], &expected);
        }
    }
    // Each disk has different parts: offsets within one file, zeros, and sparse files after them.
    let flat = noise(1, 8 * 512);
    bench.desk.file("flat", &flat);
    bench.desk.file("raw", &noise(2, 1 << 20));
    bench.qemu_img("convert -f raw -O vmdk raw sparse");
    let text = "# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                RW 3 FLAT \"flat\" 5\nRW 2 ZERO\nRW 2048 SPARSE \"sparse\"\nRW 2 VMFS \"flat\"\n";
    bench.desk.file("c.vmdk", text.as_bytes());
    let raw = std::fs::read(bench.path("raw")).unwrap();
    let expected = [&flat[5 * 512..], &[0; 1024], &raw, &flat[..1024]].concat();
    check(&bench, &["c.vmdk"], &expected);
    // ESX's own format.
    let disk = disk(&bench, "d-flat.vmdk", 1);
    let text = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                RW 2048 VMFS \"d-flat.vmdk\"\n";
    bench.desk.file("d.vmdk", text.as_bytes());
    check(&bench, &["d.vmdk"], &disk);
    check(&bench, &["d-flat.vmdk"], &disk);
}

#[test]
fn a_part_that_is_named_many_times_is_opened_once() {
    let bench = Bench::new();
    bench.desk.file("flat", &noise(3, 512));
    let start = "# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"custom\"\n";
    let lines = "RW 1 FLAT \"flat\"\n".repeat(2048);
    bench
        .desk
        .file("a.vmdk", format!("{start}{lines}").as_bytes());
    let limits = "ulimit -n 100; exec \"$@\"";
    let tool = bench.desk.tool("bash").list(["-c", limits, "bash", UPLOAD]);
    let tool = tool.env("OHURI", &bench.server.uri).arg("a.vmdk");
    let _ = tool.run().code(0);
    take_drive(&bench, &noise(3, 512).repeat(2048));
    let lines = "RW 1 SPARSE \"flat\"\n".repeat(2);
    bench
        .desk
        .file("a.vmdk", format!("{start}{lines}").as_bytes());
    bench.refused("a.vmdk", "names the sparse file \"flat\" twice");
}

#[test]
fn a_changed_part_of_a_split_disk_is_detected() {
    let bench = Bench::new();
    disk(&bench, "disk.raw", 7);
    make_parts(&bench, "a.vmdk", "twoGbMaxExtentFlat");
    let open = || {
        let options = openhosting::image::ImageOptions::default();
        openhosting::image::Image::open(&bench.path("a.vmdk"), &options).unwrap()
    };
    let image = open();
    let before = image.fingerprint().clone();
    image.check_unchanged().unwrap();
    let part = bench.path("a-f001.vmdk");
    let file = std::fs::File::options().write(true).open(part).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 5000).unwrap();
    assert!(image.check_unchanged().is_err());
    assert_ne!(open().fingerprint(), &before);
    // The digest of the description would not cover the disk.
    let sum = sum(&bench, "sha256sum", "a.vmdk");
    let tool = bench.desk.upload(&bench.server.uri);
    let _ = tool
        .list(["--sha256", &sum, "a.vmdk"])
        .run()
        .code(2)
        .says("is in several files");
    assert_eq!(drives(&bench.server), Vec::<String>::new());
}

#[test]
fn a_description_cannot_name_files_elsewhere() {
    let bench = Bench::new();
    disk(&bench, "data", 1);
    std::fs::create_dir(bench.path("sub")).unwrap();
    disk(&bench, "sub/data", 1);
    symlink("data", bench.path("link")).unwrap();
    let secret = bench.path("sub/data").display().to_string();
    let text = |line: &str| {
        format!("# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"vmfs\"\n{line}\n")
    };
    for (line, says) in [
        ("RW 8 FLAT \"sub/data\" 0", "no plain name"),
        (&format!("RW 8 FLAT \"{secret}\" 0"), "no plain name"),
        ("RW 8 FLAT \"../data\" 0", "no plain name"),
        ("RW 8 FLAT \"..\" 0", "no plain name"),
        ("RW 8 FLAT \"\" 0", "no plain name"),
        ("RW 8 FLAT \"sub\\\\data\" 0", "no plain name"),
        ("RW 8 FLAT \"/dev/sda\" 0", "no plain name"),
        ("RW 8 FLAT \"link\" 0", "no link"),
        ("RW 8 FLAT \"sub\" 0", "no link"),
        ("RW 8 FLAT \"none\" 0", "not beside it"),
        ("RW 8 FLAT \"data\" 2041", "is shorter than"),
        ("RW 8 FLAT \"data\" 36028797018963968", "is shorter than"),
        ("RW 36028797018963968 FLAT \"data\" 0", "is not sound"),
        (
            "RW 18014398509481983 ZERO\nRW 18014398509481983 ZERO",
            "larger than any can be",
        ),
        ("RW 0 FLAT \"data\" 0", "is not sound"),
        ("RW x FLAT \"data\" 0", "is not sound"),
        ("RW 8 FLAT \"data\" x", "is not sound"),
        ("RW 8 SPARSE \"data\"", "does not begin as such a file does"),
        ("NOACCESS 8 FLAT \"data\" 0", "may not be read"),
        ("RW 8 SESPARSE \"data\"", "of kind \"SESPARSE\""),
        ("RW 8 VMFSRDM \"data\"", "of kind \"VMFSRDM\""),
        (
            "parentFileNameHint=\"base.vmdk\"\nRW 8 FLAT \"data\" 0",
            "differs from another",
        ),
        (
            "createType=\"fullDevice\"\nRW 8 FLAT \"data\" 0",
            "on a device",
        ),
        ("", "names no file with data"),
    ] {
        bench.desk.file("a.vmdk", text(line).as_bytes());
        bench.refused("a.vmdk", says);
    }
    // A raw disk cannot be mistaken for a description: it is larger, and not text.
    let sound = text("RW 8 FLAT \"data\" 0");
    check(
        &bench,
        &["data"],
        &std::fs::read(bench.path("data")).unwrap(),
    );
    for spoiled in [
        [sound.as_bytes(), b"\0", b"more"].concat(),
        [sound.as_bytes(), &[b' '; 64 << 10]].concat(),
    ] {
        bench.desk.file("a.vmdk", &spoiled);
        bench.refused("a.vmdk", "is no text of at most 65536 bytes");
        check(&bench, &["--format", "raw", "a.vmdk"], &spoiled);
    }
    // Without other files beside it.
    let tool = bench.desk.upload(&bench.server.uri);
    bench.desk.file("a.vmdk", sound.as_bytes());
    let stdin = std::fs::File::open(bench.path("a.vmdk")).unwrap();
    let _ = tool
        .arg("-")
        .stdin(stdin)
        .run()
        .code(1)
        .says("has to be beside it");
    let data = std::fs::read(bench.path("data")).unwrap();
    pack(&bench, "ustar", &["a.vmdk", "data"]);
    follow(
        &bench,
        &["image.iso"],
        "a VMDK in several files",
        &data[..4096],
    );
}

#[test]
fn uploading_a_part_of_a_split_disk_names_its_description() {
    let bench = Bench::new();
    disk(&bench, "disk.raw", 7);
    let expected = make_parts(&bench, "a.vmdk", "twoGbMaxExtentSparse");
    follow(&bench, &["a-s001.vmdk"], "has no description", &expected);
    std::fs::rename(bench.path("a-s001.vmdk"), bench.path("alone")).unwrap();
    follow(&bench, &["alone"], "has no description", &expected);
    // One flat file of two.
    let first = disk(&bench, "b-f001.vmdk", 1);
    bench.refused("b-f001.vmdk", "called as one of several files");
    check(&bench, &["--format", "raw", "b-f001.vmdk"], &first);
    let second = disk(&bench, "b-f002.vmdk", 2);
    let text = "# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\
                RW 2048 FLAT \"b-f001.vmdk\" 0\nRW 2048 FLAT \"b-f002.vmdk\" 0\n";
    bench.desk.file("b.vmdk", text.as_bytes());
    let both = [first, second].concat();
    let what = "is a part of the disk that b.vmdk describes";
    let hint = self::hint(&bench, &["b-f002.vmdk"], what);
    let (_, script) = hint.split_once(": ").unwrap();
    let _ = shell(&bench, script.split(". --format").next().unwrap()).code(0);
    take_drive(&bench, &both);
    // A differencing disk, according to its description.
    std::fs::rename(bench.path("alone"), bench.path("a-s001.vmdk")).unwrap();
    bench.qemu_img("create -f vmdk -b a.vmdk -F vmdk child.vmdk");
    bench.refused("child.vmdk", "differs from another file");
}

#[test]
fn archives_on_pipes_and_invalid_names_are_refused_with_a_remedy() {
    let bench = Bench::new();
    let bytes = disk(&bench, "a\tdisk", 1);
    let tool = bench.desk.upload(&bench.server.uri);
    let outcome = tool
        .arg("a\tdisk")
        .run()
        .code(2)
        .says("holds a control character");
    let (_, script) = outcome.stderr.rsplit_once(": ").unwrap();
    let _ = shell(&bench, &script.replace("NAME", "name")).code(0);
    take_drive(&bench, &bytes);
    let _ = shell(&bench, "mkfifo pipe").code(0);
    bench.desk.own(&bench.path("pipe"));
    let hint = hint(&bench, &["pipe"], "it is a pipe");
    let (_, script) = hint.rsplit_once(": ").unwrap();
    let script = format!("cat a$'\\t'disk > pipe & {script}");
    let _ = shell(&bench, &script).code(0);
    take_drive(&bench, &bytes);
    let outcome = shell(&bench, "openhosting-upload <(cat a$'\\t'disk)").code(1);
    let (_, script) = outcome.stderr.rsplit_once(": ").unwrap();
    let script = script.replace("COMMAND", "cat a$'\\t'disk");
    let _ = shell(&bench, &script).code(0);
    take_drive(&bench, &bytes);
}
