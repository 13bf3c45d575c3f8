//! Images that are read from their start to their end: compressed as a whole, or from a pipe.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::cli::{Desk, Outcome, Running, SIMPLE, UPLOAD};
use crate::support::http::{assert_drive, drives, info};
use crate::support::needs::{Need, needs, skip};
use crate::support::proxy::{Fault, FaultProxy, Gate, Request, answer};
use crate::support::server::TestServer;
use crate::support::watchdog::wait_until;
use crate::support::{gzip, noise};

const C: usize = 16 * 1024;
const GIB: u64 = 1 << 30;

fn xz(plain: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A frame that states the size of its content.
fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 1).unwrap()
}

/// A frame that does not state the size of its content.
fn zstd_of_a_pipe(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).unwrap()
}

fn bzip2(plain: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn lz4(plain: &[u8]) -> Vec<u8> {
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    let info = FrameInfo::new().block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn lzma(plain: &[u8]) -> Vec<u8> {
    let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The content of an .lzma file, with the header and the footer of lzip.
fn lzip(plain: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(plain);
    let body = &lzma(plain)[13..];
    let mut member = [&b"LZIP\x01\x14"[..], body, &crc.sum().to_le_bytes()].concat();
    member.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    member.extend_from_slice(&(member.len() as u64 + 8).to_le_bytes());
    member
}

/// An archive with one file, as written by programs that cannot seek in their output: checksum and
/// sizes are after the file.
fn zip(plain: &[u8]) -> Vec<u8> {
    use flate2::{Compression, Crc, write::DeflateEncoder};
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    let packed = encoder.finish().unwrap();
    let mut crc = Crc::new();
    crc.update(plain);
    let low = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let sums = [crc.sum().to_le_bytes(), low(packed.len()), low(plain.len())].concat();
    let fields = b"\x14\0\x08\0\x08\0\0\0\0\0";
    let file = [
        b"PK\x03\x04",
        &fields[..],
        &[0; 12],
        b"\x08\0\0\0disk.img",
        &packed,
    ]
    .concat();
    let file = [&file[..], b"PK\x07\x08", &sums].concat();
    let entry = [
        b"PK\x01\x02\x14\0",
        &fields[..],
        &sums,
        b"\x08\0",
        &[0; 16],
        b"disk.img",
    ]
    .concat();
    let end = [
        b"PK\x05\x06\0\0\0\0\x01\0\x01\0",
        &low(entry.len())[..],
        &low(file.len()),
        &[0; 2],
    ];
    [&file[..], &entry, &end.concat()].concat()
}

type Pack = fn(&[u8]) -> Vec<u8>;
const PACKS: [(&str, Pack); 9] = [
    ("gzip", gzip),
    ("xz", xz),
    ("zstd", zstd),
    ("zstd", zstd_of_a_pipe),
    ("bzip2", bzip2),
    ("lz4", lz4),
    ("lzma", lzma),
    ("lzip", lzip),
    ("zip", zip),
];
/// Formats that consist of one stream.
const SINGLE: [&str; 2] = ["lzma", "zip"];
/// Formats whose tools ignore bytes after the compressed data.
const TOLERANT: [&str; 3] = ["gzip", "bzip2", "lzip"];

/// Data, zeros and data. The length is not a multiple of the size of a chunk.
fn content() -> Vec<u8> {
    [noise(1, 5 * C), vec![0; 7 * C], noise(2, 3 * C + 77)].concat()
}

struct Scene {
    desk: Desk,
    server: TestServer,
    proxy: FaultProxy,
}

impl Scene {
    fn new() -> Self {
        let desk = Desk::new();
        let (server, proxy) = desk.pair();
        Self {
            desk,
            server,
            proxy,
        }
    }

    fn upload(&self, args: &str) -> Outcome {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 16384").args(args).run()
    }

    fn pipe(&self, args: &str, input: &[u8]) -> Outcome {
        let tool = self.desk.upload(&self.proxy.uri());
        tool.args("-c 16384 -j 4").args(args).input(input).run()
    }

    /// The drive has the size and the content of the image, and no other files of the transfer
    /// remain.
    #[track_caller]
    fn check(&self, drive: &str, image: &[u8]) {
        assert_drive(&self.server, drive, image);
        let size = info(&self.server, drive, "size").unwrap();
        assert_eq!(size, image.len().to_string());
        assert_eq!(self.desk.journals(), Vec::<PathBuf>::new());
    }

    fn sets(&self) -> Vec<u64> {
        let requests = self.proxy.requests();
        let sets = requests.iter().filter(|r| r.path.ends_with("/set"));
        let sizes = sets.map(|r| r.text().to_owned());
        sizes
            .filter_map(|text| {
                let line = text.lines().find(|line| line.starts_with("size "));
                Some(line?[5..].parse().unwrap())
            })
            .collect()
    }

    fn writes(&self) -> usize {
        self.proxy.count(Request::is_write)
    }

    /// Runs until `passed` writes were answered, and kills the tool while the others are held back.
    fn killed(&self, args: &str, input: Option<&[u8]>, passed: usize) {
        let gate = Gate::default();
        self.proxy.fault_after(
            passed,
            Request::is_write,
            usize::MAX,
            Fault::Hold(gate.clone()),
        );
        let tool = self.desk.upload(&self.proxy.uri());
        let tool = tool.args("-c 16384 -j 1").args(args);
        let running: Running<'_> = match input {
            Some(input) => tool.input(input).spawn(),
            None => tool.spawn(),
        };
        self.proxy.wait_for("the writes", |requests| {
            requests.iter().filter(|r| r.is_write()).count() > passed
        });
        // The keeper waits a second at most for more records before it writes them.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        running.kill9();
        gate.open();
        self.proxy.settle();
        self.proxy.heal();
        self.proxy.forget();
    }
}

#[test]
fn a_compressed_image_is_recognised_by_its_content() {
    let scene = Scene::new();
    let content = content();
    for (i, (format, pack)) in PACKS.into_iter().enumerate() {
        // The name does not show the format.
        let name = format!("{i}.img");
        scene.desk.file(&name, &pack(&content));
        let outcome = scene.upload(&name).code(0);
        let outcome = outcome.says(&format!("packed with {format}"));
        scene.check(&outcome.created(), &content);
    }
}

#[test]
fn a_declared_size_creates_the_drive_at_once() {
    let scene = Scene::new();
    let content = content();
    // The xz index, the members of lzip and a Zstandard frame contain the size of the image.
    // Programs that compress a pipe do not know it.
    for (i, (format, pack)) in PACKS.into_iter().enumerate() {
        scene.proxy.forget();
        let name = format!("{i}.img");
        scene.desk.file(&name, &pack(&content));
        let size_line = format!("of size {}\n", content.len());
        let outcome = scene.upload(&name).code(0);
        let count = content.len().div_ceil(C);
        let many = format!("Uploading {count} chunks of 16384 bytes: ....");
        let is_known = ["xz", "lzip", "zip"].contains(&format) || i == 2;
        assert_eq!(outcome.text().contains(&size_line), is_known, "{format}");
        assert_eq!(outcome.text().contains(&many), is_known, "{format}");
        let first = if is_known { content.len() as u64 } else { GIB };
        assert!(outcome.text().contains(&format!("of size {first}\n")));
        let cuts = if is_known {
            vec![]
        } else {
            vec![content.len() as u64]
        };
        assert_eq!(scene.sets(), cuts, "{format}");
        let outcome = scene.upload(&format!("--size {} -n x {name}", content.len()));
        let outcome = outcome.code(0);
        assert!(outcome.text().contains(&size_line), "{}", outcome.text());
        scene.check(&outcome.created(), &content);
    }
}

#[test]
fn concatenated_members_are_one_image() {
    let scene = Scene::new();
    let content = content();
    let (first, rest) = content.split_at(4 * C + 5);
    let packs = PACKS
        .into_iter()
        .filter(|(format, _)| !SINGLE.contains(format));
    for (i, (_, pack)) in packs.enumerate() {
        let packed = [pack(first), pack(rest)].concat();
        let name = format!("{i}.img");
        scene.desk.file(&name, &packed);
        let outcome = scene.upload(&name).code(0);
        scene.check(&outcome.created(), &content);
    }
}

#[test]
fn the_drive_grows_ahead_of_the_image_and_is_cut_to_its_size() {
    let scene = Scene::new();
    // The first frame states 100 000 bytes, and more frames follow.
    let content = [
        noise(1, 100_000),
        vec![0; 900_000],
        noise(2, 1_000_000),
        vec![0; 3_000_000],
    ]
    .concat();
    let packed = [zstd(&content[..100_000]), zstd(&content[100_000..])].concat();
    scene.desk.file("a.zst", &packed);
    let outcome = scene.upload("a.zst").code(0);
    assert!(outcome.text().contains("of size 100000\n"));
    scene.check(&outcome.created(), &content);
    let sizes = scene.sets();
    assert_eq!(sizes.last(), Some(&(content.len() as u64)));
    assert!(sizes.len() <= 10, "{sizes:?}");
    let grown = &sizes[..sizes.len() - 1];
    assert!(
        grown.windows(2).all(|pair| pair[1] >= 2 * pair[0]),
        "{sizes:?}"
    );
    // Zeros were skipped nevertheless.
    assert!(
        scene.proxy.bytes_up() < 1_500_000,
        "{}",
        scene.proxy.bytes_up()
    );
    let names = scene.proxy.requests();
    let is_of_size = |r: &&Request| r.path.ends_with("/set") && r.text().contains("size ");
    let mut names = names.iter().filter(is_of_size);
    assert!(names.all(|r| r.text().contains("name a.zst\n")));
}

#[test]
fn zeros_are_not_left_out_where_added_space_has_other_bytes() {
    let scene = Scene::new();
    let content = [noise(1, 2 * C), vec![0; 2 * C], noise(2, 60 * C)].concat();
    let packed = [zstd(&content[..100_000]), zstd(&content[100_000..])].concat();
    scene.desk.file("a.zst", &packed);
    // Whether zeros may be left out becomes known only after the drive has grown.
    let gate = Gate::default();
    let is_proof = |request: &Request| request.path.contains("/read/32768/");
    scene
        .proxy
        .fault(is_proof, usize::MAX, Fault::Hold(gate.clone()));
    let dirty = Fault::rewrite(|_, mut answer| {
        *answer.last_mut().unwrap() = 7;
        answer
    });
    let is_added = |request: &Request| request.path.contains("/read/100000/");
    scene.proxy.fault(is_added, usize::MAX, dirty);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 16384 a.zst").spawn();
    let is_growth =
        |r: &Request| r.path.ends_with("/set") && r.status > 0 && r.text().contains("size ");
    scene
        .proxy
        .wait_for("the growth", |requests| requests.iter().any(is_growth));
    gate.open();
    let outcome = running.wait().code(1);
    let outcome = outcome.says("grew by is not proven to read as zeros");
    outcome.says("Pass --size and --restart");
}

#[test]
fn a_refused_growth_is_repeated_in_smaller_steps() {
    let scene = Scene::new();
    let content = noise(1, 1_000_000);
    let packed = [zstd(&content[..600_000]), zstd(&content[600_000..])].concat();
    scene.desk.file("a.zst", &packed);
    let is_too_much = |request: &Request| {
        request.path.ends_with("/set") && request.text().contains("size 1200000")
    };
    let refused = crate::support::proxy::refusal(402, "billing");
    scene
        .proxy
        .fault(is_too_much, usize::MAX, Fault::Answer(refused.clone()));
    let outcome = scene.upload("a.zst").code(0);
    scene.check(&outcome.created(), &content);
    // If the first drive is too large for the account, creating it fails, because its size is only
    // a guess.
    let is_create = |request: &Request| request.path.ends_with("/create");
    scene.proxy.heal();
    scene
        .proxy
        .fault(is_create, usize::MAX, Fault::Answer(refused));
    let _ = scene
        .upload("-n first a.zst")
        .code(1)
        .says("Pass its size with --size");
    // If the drive cannot grow at all, the error says so and names a solution.
    let refused = crate::support::proxy::refusal(402, "billing");
    scene.proxy.heal();
    let is_set = |request: &Request| request.path.ends_with("/set");
    scene
        .proxy
        .fault(is_set, usize::MAX, Fault::Answer(refused));
    scene
        .upload("-n other a.zst")
        .code(1)
        .says("Cannot grow drive");
}

#[test]
fn an_existing_drive_is_neither_grown_nor_cut() {
    let scene = Scene::new();
    let content = content();
    scene.desk.file("a.gz", &gzip(&content));
    let larger = content.len() as u64 + 50_000;
    let drive = crate::support::http::create(&scene.server, larger);
    scene.upload(&format!("-d {drive} a.gz")).code(0);
    let mut expected = content.clone();
    expected.resize(larger as usize, 0);
    assert_drive(&scene.server, &drive, &expected);
    let drive = crate::support::http::create(&scene.server, 100_000);
    scene
        .upload(&format!("-d {drive} a.gz"))
        .code(1)
        .says("it does not fit")
        .says("Grow the drive first");
    assert_eq!(scene.sets(), Vec::<u64>::new());
}

#[test]
fn a_damaged_stream_is_an_error_that_does_not_advise_to_repeat_the_command() {
    let scene = Scene::new();
    let content = noise(1, 20 * C);
    for (i, (format, pack)) in PACKS.into_iter().enumerate() {
        // The end of the file is read before anything is sent.
        if format == "zip" {
            continue;
        }
        let packed = pack(&content);
        let name = format!("{i}.img");
        let cut = packed[..packed.len() - 9].to_vec();
        let behind = [&packed[..], b"trailing garbage"].concat();
        let mut damaged = packed.clone();
        damaged[packed.len() / 2] ^= 0x55;
        damaged[packed.len() / 2 + 1] ^= 0x55;
        for (bytes, said) in [
            (cut, "was cut off"),
            (behind, "is not sound"),
            (damaged, "is not sound"),
        ] {
            let is_fine = match said {
                "is not sound" if bytes.len() > packed.len() => TOLERANT.contains(&format),
                // These formats have no checksums.
                "is not sound" => ["zstd", "lz4", "lzma"].contains(&format),
                _ => false,
            };
            if is_fine {
                continue;
            }
            scene.desk.file(&name, &bytes);
            let outcome = scene.upload(&format!("--restart {name}")).code(1);
            let drive = outcome.created();
            let outcome = outcome.says(said).says(format);
            let line = outcome.stderr.lines().find(|line| line.contains(said));
            assert!(line.unwrap().len() < 250, "{line:?}");
            assert!(!outcome.text().contains("completed"));
            // The advice is not to run the same command again, and it names the drive that remains.
            let outcome = outcome.says(&format!("Drive {drive}, created for this upload"));
            for wrong in [
                "Restart with",
                "run the same command again",
                "Failed to write",
            ] {
                assert!(!outcome.stderr.contains(wrong), "{}", outcome.stderr);
            }
        }
        // With a complete file the same command continues.
        scene.desk.file(&name, &packed[..packed.len() - 9]);
        scene.upload(&format!("--restart {name}")).code(1);
        scene.proxy.forget();
        scene.desk.file(&name, &packed);
        scene.upload(&name).code(0).says("Resuming: ");
        assert!(scene.writes() < 20, "{format}: {} writes", scene.writes());
        assert_eq!(scene.desk.journals(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_zip_with_one_file_is_read_and_an_invalid_zip_is_refused() {
    let scene = Scene::new();
    let content = content();
    let packed = zip(&content);
    scene.desk.file("a.zip", &packed);
    let outcome = scene.upload("a.zip").code(0);
    let outcome = outcome.says("packed with zip (disk.img in it)");
    scene.check(&outcome.created(), &content);
    // The digest is of the whole archive, which is the file that the user named.
    let digest = sha256(&packed);
    for outcome in [
        scene.upload(&format!("--sha256 {digest} a.zip")),
        scene.pipe(&format!("--sha256 {digest} -"), &packed),
    ] {
        scene.check(&outcome.code(0).created(), &content);
    }
    for has_no_ranges in [false, true] {
        let site = Site {
            has_no_ranges,
            ..Site::of(&packed)
        };
        let web = site.serve();
        let outcome = scene.upload(&format!("{}a.zip", web.uri()));
        scene.check(&outcome.code(0).created(), &content);
    }
    let outcome = scene.upload("--disk disk.img a.zip").code(0);
    scene.check(&outcome.created(), &content);
    let all = drives(&scene.server);
    scene
        .upload("--disk other.img a.zip")
        .code(1)
        .says("\"disk.img\"");
    for cut in [packed.len() - 1, packed.len() - 30, packed.len() / 2] {
        scene.desk.file("cut.zip", &packed[..cut]);
        let outcome = scene.upload("cut.zip").code(1);
        outcome
            .says("was cut off, or is damaged")
            .says("unzip -t cut.zip");
    }
    assert_eq!(drives(&scene.server), all);
    // In a pipe the missing end is noticed only after everything was sent.
    let outcome = scene.pipe("-n cut -", &packed[..packed.len() - 1]).code(1);
    let drive = outcome.created();
    outcome.says(&format!("(to remove it: openhosting rm {drive})"));
    let damaged = {
        let mut packed = packed.clone();
        packed[100] ^= 0xff;
        packed
    };
    scene.desk.file("damaged.zip", &damaged);
    scene.upload("damaged.zip").code(1);
    scene.upload("--format raw a.zip").code(0);
}

/// The command at the end of a line of stderr.
#[track_caller]
fn command<'a>(outcome: &'a Outcome, before: &str) -> &'a str {
    let line = outcome
        .stderr
        .lines()
        .find_map(|line| line.split_once(before));
    line.unwrap_or_else(|| panic!("no {before:?} in {}", outcome.stderr))
        .1
}

/// The command that removes the drive, which is in parentheses.
#[track_caller]
fn removal(outcome: &Outcome) -> &str {
    let rest = command(outcome, "(to remove it: ");
    rest.strip_suffix(')').expect("a parenthesis")
}

#[test]
fn after_a_truncated_image_the_last_line_continues_with_an_undamaged_one() {
    let content = content();
    let packed = gzip(&content);
    let cut = &packed[..packed.len() - 9];
    for is_piped in [false, true] {
        let scene = Scene::new();
        let args = if is_piped { "-n cut -" } else { "cut.gz" };
        let run = |packed: &[u8], args: &str| {
            scene.desk.file("cut.gz", packed);
            match is_piped {
                true => scene.pipe(args, packed),
                false => scene.upload(args),
            }
        };
        let outcome = run(cut, args).code(1);
        let drive = outcome.created();
        assert_eq!(removal(&outcome), format!("openhosting rm {drive}"));
        let lines: Vec<_> = outcome.stderr.lines().collect();
        let [.., before, last] = &lines[..] else {
            panic!("{outcome:?}");
        };
        assert!(
            before.contains("hen continue with an undamaged image"),
            "{outcome:?}"
        );
        let jobs = if is_piped { "-j 4 " } else { "" };
        assert_eq!(*last, format!("openhosting-upload -c 16384 {jobs}{args}"));
        let _ = run(&packed, args).code(0).says("Resuming: ");
        assert_eq!(drives(&scene.server), std::slice::from_ref(&drive));
        scene.check(&drive, &content);
    }
}

#[test]
fn a_drive_too_small_for_the_image_is_named_with_its_removal_command() {
    let scene = Scene::new();
    let packed = gzip(&content());
    scene.desk.file("cut.gz", &packed[..packed.len() - 9]);
    let outcome = scene.upload("cut.gz").code(1);
    let drive = outcome.created();
    assert_eq!(removal(&outcome), format!("openhosting rm {drive}"));
    let remove = |words: &str| {
        let words = words.strip_prefix("openhosting ").unwrap();
        // No terminal is available for a question.
        let tool = scene.desk.simple(&scene.proxy.uri()).args(words);
        tool.args("--yes").run().code(0)
    };
    remove(removal(&outcome));
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    // If flags selected the cloud, the commands contain these flags.
    let tool = scene.desk.tool(UPLOAD).env("OHAUTH", scene.desk.auth());
    let tool = tool
        .args("--restart cut.gz --endpoint")
        .arg(scene.proxy.uri());
    let outcome = tool.run().code(1);
    let command = removal(&outcome);
    let endpoint = format!("openhosting rm --endpoint {} ", scene.proxy.uri());
    assert!(command.starts_with(&endpoint), "{command}");
    remove(command);
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    // A drive that existed before belongs to the user, so no command that removes it is shown.
    let drive = crate::support::http::create(&scene.server, 1 << 20);
    let outcome = scene.upload(&format!("-d {drive} cut.gz")).code(1);
    let outcome = outcome.says(&format!("Drive {drive} holds part of this upload"));
    assert!(!outcome.stderr.contains("remove it"), "{}", outcome.stderr);
    // A size that is not the image's, and a digest that is not the image's.
    scene.desk.file("a.gz", &packed);
    let other = sha256(b"other");
    for (args, code) in [
        ("--size 5 a.gz", 1),
        (&*format!("--sha256 {other} -n b a.gz"), 4),
    ] {
        let outcome = scene.upload(args).code(code);
        let drive = outcome.created();
        assert!(removal(&outcome).ends_with(&drive));
        // No last line is a command, because the same one would fail again.
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(last.ends_with(')'), "{last}");
    }
    // A directory on this machine has no endpoint.
    let tool = scene.desk.tool(UPLOAD);
    let outcome = tool
        .args("--local")
        .arg("my cloud")
        .args("cut.gz")
        .run()
        .code(1);
    let removal = removal(&outcome).to_owned();
    let files = || {
        std::fs::read_dir(scene.desk.path("my cloud/drives"))
            .unwrap()
            .count()
    };
    assert_ne!(files(), 0);
    let removed = std::process::Command::new("sh")
        .args(["-c", &removal])
        .current_dir(scene.desk.work())
        .status();
    assert!(removed.unwrap().success(), "{removal}");
    assert_eq!(files(), 0, "{removal}");
    // With the whole image the upload continues there, or starts over.
    scene.desk.file("cut.gz", &packed);
    let tool = scene.desk.tool(UPLOAD);
    let args = "--restart --local";
    tool.args(args).arg("my cloud").args("cut.gz").run().code(0);
}

#[test]
fn trailing_data_is_treated_as_by_the_tool_of_the_format() {
    let scene = Scene::new();
    let content = content();
    for (i, (format, pack)) in PACKS.into_iter().enumerate() {
        if !TOLERANT.contains(&format) {
            continue;
        }
        let packed = pack(&content);
        let zeros = vec![0; 300_000];
        for behind in [
            &b"\n"[..],
            b"trailer",
            &zeros,
            &[&[0; 8][..], b"FWx0"].concat(),
        ] {
            let name = format!("{i}.img");
            scene.desk.file(&name, &[&packed[..], behind].concat());
            let outcome = scene.upload(&format!("--verify full {name}")).code(0);
            scene.check(&outcome.created(), &content);
            let is_padding = format == "gzip" && behind == zeros;
            let line = format!(
                "The {format} data of the image ends at byte {}: ignoring {} byte{} after it",
                packed.len(),
                behind.len(),
                if behind.len() == 1 { "" } else { "s" }
            );
            assert_eq!(
                outcome.stderr.contains(&line),
                !is_padding,
                "{}",
                outcome.stderr
            );
        }
    }
    // A digest that the user demands covers all bytes, including those after the compressed data.
    let bytes = [&gzip(&content)[..], b"\n"].concat();
    let outcome = scene.pipe(&format!("--sha256 {} -", sha256(&bytes)), &bytes);
    let outcome = outcome.code(0).says("ignoring 1 byte after it");
    scene.check(&outcome.created(), &content);
    scene.desk.file("a.gz", &bytes);
    let outcome = scene
        .upload("-z a.gz")
        .code(0)
        .says("ignoring 1 byte after it");
    scene.check(&outcome.created(), &content);
}

#[test]
fn frames_without_content_are_skipped_in_files_and_pipes() {
    let scene = Scene::new();
    let content = content();
    for (name, pack) in [("zstd", zstd as Pack), ("lz4", lz4)] {
        for (variant, held) in [(0, 4), (1, 100), (14, 700_000), (15, 0)] {
            let frame = [
                &[0x50 + variant, 0x2a, 0x4d, 0x18][..],
                &u32::try_from(held).unwrap().to_le_bytes(),
                &vec![9; held],
            ]
            .concat();
            let packed = [&frame[..], &pack(&content), &frame].concat();
            scene.desk.file("a.img", &packed);
            let outcome = scene.upload("a.img").code(0);
            let outcome = outcome.says(&format!("packed with {name}"));
            scene.check(&outcome.created(), &content);
            // The header of the next frame states the size.
            if name == "zstd" {
                let size = format!("of size {}\n", content.len());
                assert!(outcome.text().contains(&size), "{}", outcome.text());
            }
            let outcome = scene.pipe("-", &packed).code(0);
            scene.check(&outcome.created(), &content);
        }
    }
}

/// An .xz stream whose header demands a dictionary of 3 GiB.
fn xz_over_the_limit(plain: &[u8]) -> Vec<u8> {
    let mut bytes = xz(plain);
    let header = 12..12 + (usize::from(bytes[12]) + 1) * 4;
    assert_eq!(bytes[14..16], [0x21, 1], "LZMA2, one byte of properties");
    bytes[16] = 39;
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[header.start..header.end - 4]);
    bytes[header.end - 4..header.end].copy_from_slice(&crc.sum().to_le_bytes());
    bytes
}

#[test]
fn the_command_for_an_image_over_the_memory_limit_works() {
    let scene = Scene::new();
    let content = content();
    let packed = xz_over_the_limit(&content);
    scene.desk.file("it's large.xz", &packed);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let outcome = tool.args("-c 16384").arg("it's large.xz").run().code(1);
    let outcome = outcome
        .says("MiB of memory to decompress, and the limit is 2048")
        .says("needs 307");
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    let pipe = command(&outcome, "decompress it: ");
    let (first, second) = pipe.split_once(" | openhosting-upload ").unwrap();
    let unpacked = std::process::Command::new("sh")
        .args(["-c", first])
        .current_dir(scene.desk.work())
        .output()
        .unwrap();
    if !unpacked.status.success() {
        skip(Need::Other("xz, and memory for it"), "xz fails");
        return;
    }
    let name = second.strip_suffix(" -").unwrap();
    assert_eq!(name, "-n 'it'\\''s large.xz'");
    let outcome = scene.pipe("-n large -", &unpacked.stdout).code(0);
    scene.check(&outcome.created(), &content);
}

#[test]
fn a_declared_size_that_is_wrong_is_an_error() {
    let scene = Scene::new();
    let content = content();
    for (_, pack) in PACKS {
        scene.desk.file("a.img", &pack(&content));
        for wrong in [content.len() - 1, content.len() + 1] {
            let args = format!("--restart --size {wrong} a.img");
            let outcome = scene.upload(&args).code(1);
            outcome.says("declared");
        }
    }
    scene.desk.file("raw.img", &content);
    scene
        .upload("--size 5 raw.img")
        .code(2)
        .says("not the 5 of --size");
}

#[test]
fn formats_with_a_map_are_refused_in_a_stream() {
    let scene = Scene::new();
    let qcow2 = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 100_000]].concat();
    for (format, pack) in PACKS {
        scene.desk.file("a.img", &pack(&qcow2));
        let what = format!("is qcow2 within {format}");
        scene.upload("a.img").code(1).says(&what).says("Unpack it");
        scene.desk.file("b.img", &pack(&gzip(&qcow2)));
        scene.upload("b.img").code(1).says("is gzip within");
    }
    let outcome = scene.pipe("-", &qcow2).code(1);
    outcome.says("stdin is qcow2, which has to be read at any place");
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    scene.desk.file("c.img", &gzip(&qcow2));
    scene
        .upload("-z c.img")
        .code(1)
        .says("is qcow2 within gzip");
    assert_eq!(drives(&scene.server), Vec::<String>::new());
    // A format that the user gives is not questioned.
    let outcome = scene.pipe("--format raw -", &qcow2).code(0);
    scene.check(&outcome.created(), &qcow2);
    scene.desk.file("d.img", &gzip(&qcow2));
    let outcome = scene.upload("--format raw d.img").code(0);
    scene.check(&outcome.created(), &gzip(&qcow2));
}

#[test]
fn stdin_is_read_raw_or_compressed() {
    let scene = Scene::new();
    let content = content();
    for (_, pack) in PACKS {
        let outcome = scene.pipe("-", &pack(&content)).code(0);
        scene.check(&outcome.created(), &content);
    }
    for input in [&content[..], &content[..4 * C], &content[..1]] {
        let outcome = scene.pipe("-n a -", input).code(0);
        let drive = outcome.created();
        scene.check(&drive, input);
        let name = info(&scene.server, &drive, "name");
        assert_eq!(name.as_deref(), Some("a"));
    }
    scene.pipe("-", b"").code(1).says("stdin is empty");
    // A file is recognized as a file, though its name is unknown.
    let path = scene.desk.file("a.img", &content);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let file = std::fs::File::open(path).unwrap();
    let outcome = tool.args("-c 16384 -").stdin(file).run().code(0);
    assert!(
        outcome
            .text()
            .contains(&format!("of size {}\n", content.len()))
    );
    scene.check(&outcome.created(), &content);
}

#[test]
fn a_killed_upload_of_a_stream_sends_only_what_is_missing() {
    const CHUNKS: usize = 60;
    let content = noise(9, CHUNKS * C);
    for (args, input) in [
        ("a.gz", None),
        ("a.xz", None),
        ("-", Some(content.clone())),
        ("-", Some(gzip(&content))),
    ] {
        let scene = Scene::new();
        scene.desk.file("a.gz", &gzip(&content));
        scene.desk.file("a.xz", &xz(&content));
        let input = input.as_deref();
        scene.killed(args, input, 40);
        let before = scene.proxy.bytes_up();
        let outcome = match input {
            Some(input) => scene.pipe(args, input),
            None => scene.upload(args),
        };
        outcome.code(0).says("Resuming: ");
        let sent = scene.proxy.bytes_up() - before;
        assert!(scene.writes() <= CHUNKS - 40, "{args}: {}", scene.writes());
        assert!(sent < ((CHUNKS - 40 + 4) * C) as u64, "{args}: {sent}");
        let drive = &drives(&scene.server)[0];
        scene.check(drive, &content);
    }
}

#[test]
fn changed_bytes_on_stdin_are_detected_when_resuming() {
    let content = noise(9, 60 * C);
    let scene = Scene::new();
    scene.killed("-", Some(&content), 40);
    let mut other = content.clone();
    other[3 * C] ^= 1;
    let outcome = scene.pipe("-", &other).code(4);
    outcome.says("The image changed").says("at byte 49152");
    let outcome = scene.pipe("-", &content[..20 * C]).code(4);
    outcome.says("The image changed");
    scene.pipe("--changed-ok -", &other).code(0);
    scene.check(&drives(&scene.server)[0], &other);
}

#[test]
fn zeros_of_a_stream_that_became_data_are_verified_as_data() {
    let content = content();
    let scene = Scene::new();
    scene.killed("-", Some(&content), 6);
    let mut other = content.clone();
    other[6 * C] ^= 1;
    scene.pipe("--changed-ok --verify full -", &other).code(0);
    scene.check(&drives(&scene.server)[0], &other);
}

#[test]
fn bytes_that_are_as_in_the_first_run_again_are_compared() {
    let content = noise(9, 60 * C);
    let scene = Scene::new();
    scene.killed("-", Some(&content), 40);
    let mut other = content.clone();
    other[3 * C] ^= 1;
    // The next run sends other bytes, and is killed before it knows that they are on the drive.
    let (gate, written) = (Gate::default(), Arc::<AtomicBool>::default());
    let (held, reached) = (gate.clone(), Arc::clone(&written));
    let answer_late = Fault::rewrite(move |_, answer| {
        reached.store(true, Ordering::SeqCst);
        held.wait();
        answer
    });
    let is_changed = |r: &Request| r.is_write() && r.offset() == 3 * C as u64;
    scene.proxy.fault(is_changed, usize::MAX, answer_late);
    let tool = scene.desk.upload(&scene.proxy.uri());
    let running = tool.args("-c 16384 --changed-ok -").input(&other).spawn();
    wait_until("the chunk was written", || written.load(Ordering::SeqCst));
    running.kill9();
    gate.open();
    scene.proxy.settle();
    scene.proxy.heal();
    let refused = scene.pipe("-", &content).code(4);
    refused.says("The image changed").says("at byte 49152");
    scene.pipe("--changed-ok -", &content).code(0);
    scene.check(&drives(&scene.server)[0], &content);
}

#[test]
fn a_full_verification_of_a_stream_reads_all_of_it_back() {
    let scene = Scene::new();
    let content = content();
    scene.killed("-", Some(&content), 5);
    scene.pipe("--verify full --checksum -", &content).code(0);
    scene.check(&drives(&scene.server)[0], &content);
    scene.proxy.forget();
    // Data that was lost on the drive is found by the sample too, in its last chunk.
    let rewrite = Fault::Answer(answer(204, &[], b""));
    let is_last = |request: &Request| request.is_write() && request.offset() == 15 * C as u64;
    scene.proxy.fault(is_last, 1, rewrite);
    let outcome = scene.pipe("-n lost -", &content).code(4);
    outcome.says("does not hold what was transferred");
}

#[test]
fn info_shows_what_is_known_about_a_compressed_image() {
    let scene = Scene::new();
    let content = content();
    let info = |name: &str, args: &str| {
        let tool = scene.desk.tool(SIMPLE);
        tool.args("image info").args(args).arg(name).run()
    };
    for (i, (format, pack)) in PACKS.into_iter().enumerate() {
        let packed = pack(&content);
        let name = format!("{i}.img");
        scene.desk.file(&name, &packed);
        let outcome = info(&name, "").code(0);
        assert!(outcome.text().contains(&format!("packed with {format}")));
        let object: serde_json::Value =
            serde_json::from_slice(&info(&name, "-j").code(0).stdout).unwrap();
        assert_eq!(object["packed_with"], format);
        assert_eq!(object["packed_bytes"], packed.len());
        let is_known = ["xz", "lzip", "zip"].contains(&format) || i == 2;
        let size = is_known.then_some(content.len());
        assert_eq!(object["disk_bytes"], serde_json::json!(size));
    }
    let map = info("0.img", "--map x.svg").code(1);
    map.says("without unpacking it");
    assert!(!Path::new(&scene.desk.path("x.svg")).exists());
}

/// The digest, in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    openhosting::digest::Digest::of(bytes).to_string()
}

#[test]
fn the_demanded_digest_is_that_of_the_given_file() {
    let scene = Scene::new();
    let content = content();
    scene.desk.file("a.gz", &gzip(&content));
    scene.desk.sparse("a.raw", 100_000, &[(50_000, b"x")]);
    let mut raw = vec![0; 100_000];
    raw[50_000] = b'x';
    for (name, bytes, image) in [
        ("a.gz", gzip(&content), &content),
        ("a.raw", raw.clone(), &raw),
    ] {
        let right = sha256(&bytes);
        let outcome = scene.upload(&format!("--sha256 {right} {name}")).code(0);
        scene.check(&outcome.created(), image);
        let wrong = sha256(b"other");
        let outcome = scene.upload(&format!("--sha256 {wrong} {name}")).code(4);
        let drive = outcome.created();
        let outcome = outcome
            .says(&format!("has the SHA-256 {right}, not {wrong}"))
            .says(&format!("drive {drive} must not be used"));
        assert!(!outcome.text().contains("completed"));
        assert_eq!(scene.desk.journals(), Vec::<PathBuf>::new());

        let sums = format!("{}  b\n{right} *dir/{name}\n", sha256(b"b"));
        scene.desk.file("SHA256SUMS", sums.as_bytes());
        scene
            .upload(&format!("--sha256-file SHA256SUMS {name}"))
            .code(0);
        scene.desk.file(
            "SHA256SUMS",
            format!("SHA256 ({name}) = {wrong}\n").as_bytes(),
        );
        scene
            .upload(&format!("--sha256-file SHA256SUMS {name}"))
            .code(4);
        scene
            .desk
            .file("SHA256SUMS", format!("{right}  other\n").as_bytes());
        scene
            .upload(&format!("--sha256-file SHA256SUMS {name}"))
            .code(2)
            .says("There is no SHA-256 for");
    }
    let digest = sha256(&xz(&content));
    let outcome = scene
        .pipe(&format!("--sha256 {digest} -"), &xz(&content))
        .code(0);
    scene.check(&outcome.created(), &content);
    scene
        .pipe(&format!("--sha256 {digest} -n x -"), &content)
        .code(4);
}

#[test]
fn a_file_that_is_not_an_image_is_refused_with_a_remedy() {
    let scene = Scene::new();
    std::fs::create_dir(scene.desk.path("dir")).unwrap();
    for (name, said) in [
        ("disk*.img", "One image is uploaded at a time"),
        ("dir", "it is a directory"),
        ("ftp://h/a.img", "ftp: is no scheme that is read"),
        ("none.img", "No such file"),
    ] {
        scene.upload(name).code(1).says(said);
    }
    assert_eq!(drives(&scene.server), Vec::<String>::new());
}

/// A web server with one file, which it serves for each path, and how it behaves.
#[derive(Clone, Default)]
pub(crate) struct Site {
    file: Arc<Mutex<Vec<u8>>>,
    has_no_ranges: bool,
    has_no_tag: bool,
}

impl Site {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            file: Arc::new(Mutex::new(bytes.to_vec())),
            ..Self::default()
        }
    }

    pub(crate) fn without_ranges(bytes: &[u8]) -> Self {
        Self {
            has_no_ranges: true,
            ..Self::of(bytes)
        }
    }

    pub(crate) fn serve(&self) -> FaultProxy {
        let site = self.clone();
        FaultProxy::stub(move |request| site.answer(request))
    }

    fn answer(&self, request: &Request) -> Vec<u8> {
        assert_eq!(request.method, "GET");
        let file = self.file.lock().unwrap();
        let tag = format!("ETag: \"{}\"", sha256(&file));
        let mut headers = vec![];
        if !self.has_no_tag {
            headers.push(&*tag);
        }
        let range = request.header("range").filter(|_| !self.has_no_ranges);
        let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
            return answer(200, &headers, &file);
        };
        if let Some(condition) = request.header("if-range")
            && !tag.ends_with(condition)
        {
            return answer(200, &headers, &file);
        }
        let (from, last) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let last: usize = last.parse().unwrap_or(usize::MAX).min(file.len() - 1);
        let content_range = format!("Content-Range: bytes {from}-{last}/{}", file.len());
        headers.push(&content_range);
        answer(206, &headers, &file[from..=last])
    }
}

#[test]
fn an_image_is_fetched_from_a_web_server() {
    let scene = Scene::new();
    let content = content();
    for has_no_ranges in [false, true] {
        let packs: [Pack; 3] = [|plain| plain.to_vec(), gzip, xz];
        for (i, pack) in packs.into_iter().enumerate() {
            let packed = pack(&content);
            let site = Site {
                has_no_ranges,
                ..Site::of(&packed)
            };
            let web = site.serve();
            let url = format!("{}dir/image%20{i}.img?sig=secret", web.uri());
            let url = url.replace("http://", "http://someone:secret@");
            let outcome = scene.upload(&url).code(0);
            assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
            let drive = outcome.created();
            scene.check(&drive, &content);
            let name = info(&scene.server, &drive, "name").unwrap();
            assert_eq!(name, format!("image {i}.img"));
            // The secret key is not sent to the web server, since it is for the cloud only.
            for request in web.requests() {
                let given = request.header("authorization").unwrap();
                let line = format!("Authorization: {given}\r\n");
                assert_eq!(line, crate::support::http::basic("someone:secret"));
            }
            let digest = sha256(&packed);
            let sums = format!("{digest}  image {i}.img");
            let sums = Site::of(sums.as_bytes()).serve();
            let args = format!("-n x --sha256-file {}SUMS {url}", sums.uri());
            scene.upload(&args).code(0);
            let args = format!("-n x --sha256 {} {url}", sha256(b"other"));
            scene.upload(&args).code(4).says("must not be used");
        }
    }
}

#[test]
fn an_image_with_a_map_is_fetched_by_its_ranges() {
    if !needs(&[Need::Command("qemu-img")]) {
        return;
    }
    let scene = Scene::new();
    let path = scene.desk.path("a.qcow2");
    let raw = scene.desk.file("a.raw", &content());
    let made = std::process::Command::new("qemu-img")
        .args(["convert", "-q", "-O", "qcow2"])
        .args([&raw, &path])
        .status();
    assert!(made.unwrap().success());
    scene.desk.own(&path);
    let bytes = std::fs::read(&path).unwrap();
    let web = Site::of(&bytes).serve();
    let outcome = scene.upload(&format!("{}a.qcow2", web.uri())).code(0);
    let mut expected = content();
    expected.resize(expected.len().next_multiple_of(512), 0);
    scene.check(&outcome.created(), &expected);
    assert!(web.bytes_down() < 2 * bytes.len() as u64);
    let web = Site::without_ranges(&bytes).serve();
    let url = format!("{}a.qcow2", web.uri());
    let cause = "has to be read at any place, not in order: its server does not support range requests\nDownload it first: curl -fLO ";
    let said = format!("{cause}{url}\n");
    let _ = scene.upload(&url).code(1).says(&said);
    for command in ["publish --name n", "image info"] {
        let tool = scene.desk.simple(&scene.server.uri).args(command);
        let _ = tool.arg(&url).run().code(1).says(&said);
    }
    // A signature in a URL is not shown.
    let secret = scene.upload(&format!("{url}?sign=secret")).code(1);
    let _ = secret.says("Download it first: curl -fLO URL\n");
}

#[test]
fn a_web_page_in_place_of_an_image_leads_back_to_the_url() {
    let scene = Scene::new();
    let page = b"<!DOCTYPE html><html><title>Index of /</title></html>";
    for site in [Site::of(page), Site::without_ranges(page)] {
        let web = site.serve();
        let outcome = scene.upload(&web.uri()).code(1);
        let _ = outcome.says("Check the URL: it leads to a page, and not to a file (");
    }
    scene.desk.file("a.img", page);
    let _ = scene.upload("a.img").code(1).says("Look at what it says");
}

/// The output of `image info` as text and as JSON.
#[track_caller]
fn image_info(scene: &Scene, image: &str) -> (String, serde_json::Value) {
    let info = |args: &str| {
        let tool = scene.desk.tool(SIMPLE);
        tool.args(args).arg(image).run().code(0)
    };
    let text = info("image info -c 1000000").text().to_owned();
    let object = serde_json::from_slice(&info("image info -j -c 1000000").stdout);
    (text, object.unwrap())
}

#[test]
fn info_of_an_image_on_a_web_server_fetches_headers_and_the_map_only() {
    const SIZE: usize = 48 << 20;
    let scene = Scene::new();
    let content = noise(5, SIZE);
    let web = Site::of(&content).serve();
    let (text, object) = image_info(&scene, &format!("{}a.img", web.uri()));
    assert!(web.bytes_down() < 1 << 20, "{}", web.bytes_down());
    assert!(
        text.contains("Chunks       51, each of up to 1000000 bytes\n"),
        "{text}"
    );
    assert_eq!(
        (&object["format"], &object["chunks"]),
        (&"raw".into(), &51.into())
    );
    for key in [
        "allocated_bytes",
        "zero_bytes",
        "chunks_to_send",
        "wire_bytes",
    ] {
        assert_eq!(object[key], serde_json::Value::Null, "{key}");
    }
    // Everything that does not depend on the data is the same as for a file.
    scene
        .desk
        .sparse("a.raw", 3 * SIZE as u64, &[(SIZE as u64, &content)]);
    for (format, options) in [
        ("qcow2", "cluster_size=65536"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vdi", "static=off"),
        ("vpc", "subformat=dynamic"),
        ("vhdx", "subformat=dynamic"),
    ] {
        let made = std::process::Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, "-o", options])
            .args(["a.raw", "a"])
            .current_dir(scene.desk.work())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "{format}");
        scene.desk.own(&scene.desk.path("a"));
        let web = Site::of(&std::fs::read(scene.desk.path("a")).unwrap()).serve();
        let url = format!("{}a", web.uri());
        let (text, object) = image_info(&scene, &url);
        assert!(web.bytes_down() < 8 << 20, "{format}: {}", web.bytes_down());
        let (_, of_file) = image_info(&scene, "a");
        for key in [
            "format",
            "disk_bytes",
            "allocated_bytes",
            "chunks_with_data",
            "map_data_bytes",
        ] {
            assert_eq!(object[key], of_file[key], "{format}: {key}");
            assert_ne!(object[key], serde_json::Value::Null);
        }
        assert_eq!(object["zero_bytes"], serde_json::Value::Null);
        assert!(
            text.contains("\u{2588}") && text.contains("no data was fetched"),
            "{text}"
        );
        let map = scene
            .desk
            .tool(SIMPLE)
            .args("image info --map")
            .arg(format!("{format}.svg"));
        map.arg(&url).run().code(0);
    }
}

#[test]
fn image_info_of_a_stream_reads_only_its_start() {
    const SIZE: usize = 48 << 20;
    let scene = Scene::new();
    let content = noise(5, SIZE);
    let null = serde_json::Value::Null;
    for (name, pack) in [
        ("raw", (|plain| plain.to_vec()) as Pack),
        ("gzip", gzip),
        ("xz", xz),
        ("zstd", zstd),
    ] {
        let packed = pack(&content);
        for has_no_ranges in [false, true] {
            let site = Site {
                has_no_ranges,
                ..Site::of(&packed)
            };
            let web = site.serve();
            let (_, object) = image_info(&scene, &format!("{}a", web.uri()));
            let is_told = name == "raw" || (!has_no_ranges && name != "gzip");
            let size = is_told.then_some(SIZE);
            assert_eq!(object["disk_bytes"], serde_json::json!(size), "{name}");
            if name != "raw" {
                assert_eq!(object["packed_with"], name);
                assert_eq!(object["packed_bytes"], packed.len());
            }
        }
        let tool = scene.desk.tool(SIMPLE).args("image info -j -");
        let outcome = tool.input(&packed[..100_000]).run().code(0);
        let object: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(
            (&object["format"], &object["disk_bytes"]),
            (&"raw".into(), &null)
        );
        let packed_with = (name != "raw").then_some(name);
        assert_eq!(
            object.get("packed_with").cloned(),
            packed_with.map(Into::into)
        );
    }
    let info = |args: &str| scene.desk.tool(SIMPLE).args("image info").args(args);
    let qcow2 = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 1000]].concat();
    let outcome = info("-").input(&qcow2).run().code(1);
    outcome.says("has to be read at any place");
    let outcome = info("--map m.svg -").input(&content[..5000]).run().code(1);
    outcome.says("There is no map of a raw image without reading all of it");
    // A file as stdin is read like a file.
    let path = scene.desk.file("a.img", &content[..100_000]);
    let outcome = info("-j -")
        .stdin(std::fs::File::open(path).unwrap())
        .run()
        .code(0);
    let object: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(
        (&object["disk_bytes"], &object["chunks_read"]),
        (&100_000.into(), &1.into())
    );
}

#[test]
fn info_about_a_missing_url_is_an_error_with_one_line_of_advice() {
    let scene = Scene::new();
    let web = FaultProxy::stub(move |_| answer(404, &[], b"no"));
    let url = format!("{}a?sig=secret", web.uri()).replace("http://", "http://u:secret@");
    let outcome = scene
        .desk
        .tool(SIMPLE)
        .args("image info")
        .arg(&url)
        .run()
        .code(1);
    let outcome = outcome.says("Cannot fetch").says("answered 404");
    let outcome = outcome.says("Check the path in the URL");
    assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
    let web = Site::without_ranges(b"").serve();
    let outcome = scene
        .desk
        .tool(SIMPLE)
        .args("image info")
        .arg(format!("{}a", web.uri()))
        .run();
    outcome.code(1).says("is empty");
}

#[test]
fn broken_connections_resume_if_the_server_supports_ranges() {
    let scene = Scene::new();
    // More than the number of chunks that are read ahead.
    const CHUNKS: usize = 1024;
    let content = noise(3, CHUNKS * C);
    for packed in [content.clone(), gzip(&content)] {
        let web = Site::of(&packed).serve();
        let is_long = |request: &Request| request.header("range") != Some("bytes=0-65535");
        web.fault(is_long, 3, Fault::ResetMidAnswer);
        let outcome = scene.upload(&format!("{}a.img", web.uri())).code(0);
        scene.check(&outcome.created(), &content);
        let web = Site {
            has_no_ranges: true,
            ..Site::of(&packed)
        }
        .serve();
        web.fault(|_| true, 1, Fault::ResetMidAnswer);
        let url = format!("{}a.img", web.uri());
        scene
            .upload(&format!("-n b {url}"))
            .code(75)
            .says("its server cannot go on there");
        scene.proxy.forget();
        let outcome = scene.upload(&format!("-n b {url}")).code(0);
        outcome.says("Resuming: ");
        assert!(scene.writes() < CHUNKS, "{}", scene.writes());
        assert_eq!(scene.desk.journals(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_file_that_changes_on_its_server_is_reported() {
    let scene = Scene::new();
    let content = noise(3, 40 * C);
    let packs: [Pack; 2] = [|plain| plain.to_vec(), gzip];
    for pack in packs {
        let site = Site::of(&pack(&content));
        let web = site.serve();
        let gate = Gate::default();
        let tool = scene.desk.upload(&scene.proxy.uri());
        let url = format!("{}a.img", web.uri());
        // One connection breaks, and the one that continues waits until the file has changed.
        let is_more = |request: &Request| request.header("range") != Some("bytes=0-65535");
        web.fault(is_more, 1, Fault::ResetMidAnswer);
        web.fault(is_more, usize::MAX, Fault::Hold(gate.clone()));
        let running = tool.args("-c 16384 -j 1 --restart").arg(&url).spawn();
        web.wait_for("another range", |requests| {
            requests.iter().filter(|request| is_more(request)).count() >= 2
        });
        site.file.lock().unwrap()[5] ^= 1;
        gate.open();
        let changed = running.wait().code(4).says("changed while it was read");
        // Without a flag, the same command would refuse.
        let changed = changed.says("Start over with --restart");
        assert!(
            !changed.stderr.contains("same command again"),
            "{changed:?}"
        );
    }
}

#[test]
fn a_resumed_stream_counts_its_last_chunk_by_its_length() {
    // Both are half a chunk: data that was sent, and zeros that were left out.
    for end in [noise(4, C / 2), vec![0; C / 2]] {
        let scene = Scene::new();
        let image = [noise(3, 3 * C), end].concat();
        let upload = |words: &str| {
            let tool = scene.desk.simple(&scene.proxy.uri());
            let tool = tool.args(&format!("upload -c {C} -j 4 {words} -"));
            tool.input(&image).run()
        };
        let is_first = |request: &Request| request.is_write() && request.offset() == 0;
        scene.proxy.fault(is_first, usize::MAX, Fault::Stall);
        let _ = upload("--stall-timeout 1s --max-outage 3s").code(75);
        scene.proxy.heal();
        let done = upload("--json")
            .code(0)
            .says("Uploaded stdin (56 KiB) to drive");
        let done = done.says("40 KiB done before");
        let object: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let keys = ["bytes_total", "bytes_done", "chunks_total", "chunks_done"];
        let counts = keys.map(|key| object[key].as_u64());
        assert_eq!(counts, [Some(C as u64), Some(C as u64), Some(1), Some(1)]);
        scene.check(object["drive"].as_str().unwrap(), &image);
    }
}

#[test]
fn a_web_server_without_such_an_image_is_reported() {
    let scene = Scene::new();
    for (status, what, advice) in [
        (
            401,
            "it needs a user and a password",
            "Write them into the URL",
        ),
        (403, "access is refused", "has not expired"),
        (404, "not found", "Check the path in the URL"),
        (410, "it was removed", "under another URL"),
    ] {
        let page = b"<html><body>Sorry</body></html>";
        let web = FaultProxy::stub(move |_| answer(status, &[], page));
        let url = format!("{}a.img", web.uri());
        let failed = scene.upload(&url).code(1).says(advice);
        let said = format!("Cannot fetch {url}: its server answered {status} ({what})");
        assert_eq!(failed.stderr.lines().count(), 2, "{failed:?}");
        let _ = failed.says(&said);
    }
    let from = Site::of(b"\0image").serve();
    let to = from.uri();
    let web = FaultProxy::stub(move |_| {
        let location = format!("Location: {to}b.img");
        answer(302, &[location.as_str()], b"")
    });
    let outcome = scene.upload(&format!("{}a.img", web.uri())).code(0);
    scene.check(&outcome.created(), b"\0image");
    scene.upload("http:///").code(2);
    assert_eq!(drives(&scene.server).len(), 1);
}
