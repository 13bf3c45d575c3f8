//! Recognises content that is certainly not a raw disk: images in unsupported formats, archives,
//! unsupported compression, programs, and web pages or pointers that were downloaded instead of an
//! image. Sent as it is, such content would make a drive that no server can use.
//!
//! A sign of a disk (`signs`) has priority, because a disk may begin with any bytes before its
//! first file system. Content without either counts as a disk.

mod table;
mod text;

use std::borrow::Cow;
use std::path::Path;

use file_format::{FileFormat, Kind};

use super::RawImage;
use super::extraction;
use super::format::{VhdEnding, VhdFooter, vhd_ending};
use super::head_of;
use super::signs::{self, has_sign};
use super::stream::StreamFormat;
use crate::advice;
use crate::advice::{Advice, Remedy};
use crate::error::{Error, ErrorKind, Result};
use crate::quoting::{no_option, quote_file};

/// Content that is not a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    /// What it is, with the article: "an ISO image".
    what: Cow<'static, str>,
    way: Way,
}

/// What the user can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The words before a command, and the command. `{in}` stands for the file, `{out}` for a raw
    /// image beside it, and `{stem}` for its name without the extension.
    Run(&'static str, &'static str),
    /// A sentence.
    Advice(&'static str),
    /// It is a list of digests, not an image.
    ListOfDigests,
}

/// What messages call HTML.
const WEB_PAGE: &str = "a web page";

/// Recognises content by its first bytes. `head` has [`signs::HEAD_BYTES`], or fewer if there are
/// no more.
pub(super) fn of_head(head: &[u8]) -> Option<Foreign> {
    if let Some(found) = table::surely(head) {
        return Some(found);
    }
    if has_sign(head) {
        return None;
    }
    let found = table::of_head(head).or_else(|| text::of_head(head));
    found.or_else(|| by_crate(head))
}

/// What the `file-format` crate says, if the signature it found is long enough.
fn by_crate(head: &[u8]) -> Option<Foreign> {
    let format = FileFormat::from_bytes(head);
    if is_weak(format) || is_short(format, head) {
        return None;
    }
    let way = match format.kind() {
        Kind::Archive | Kind::Compressed | Kind::Package => {
            Way::Advice("Unpack it first, and upload the disk in it")
        }
        _ => Way::Run("Look at what it is with", "file {in}"),
    };
    Some(Foreign {
        what: Cow::Owned(format.name().to_owned()),
        way,
    })
}

/// Whether only three bytes identify this format. An encrypted disk or random bytes contain any
/// three bytes sooner or later.
fn is_short(format: FileFormat, head: &[u8]) -> bool {
    const FEW: usize = 3;
    let other = |(at, byte): (usize, &u8)| if at < FEW { *byte } else { !byte };
    let others: Vec<u8> = head.iter().enumerate().map(other).collect();
    FileFormat::from_bytes(others) == format
}

/// Whether this is no particular format, or a disk, or a format whose first bytes a disk may also
/// have: small numbers, or a few bytes further on.
fn is_weak(format: FileFormat) -> bool {
    use FileFormat as F;
    matches!(
        format,
        F::ArbitraryBinaryData
            | F::Empty
            | F::PlainText
            | F::AmigaDiskFile
            | F::Iso9660
            | F::Squashfs
            | F::AndroidBinaryXml
            | F::AndroidResourceStorageContainer
            | F::ArchivedByRobertJung
            | F::AutodeskAnimator
            | F::AutodeskAnimatorPro
            | F::BdavMpeg2TransportStream
            | F::Commodore64Program
            | F::MicrosoftWorksWordProcessor
            | F::Mpeg12Video
            | F::Mpeg2TransportStream
            | F::PictureExchange
            | F::Shapefile
            | F::Truetype
            | F::WindowsCursor
            | F::WindowsIcon
            | F::WindowsMetafile
    )
}

/// Number of bytes at the end of a file to inspect: the longest trailers, of a DMG and of a VHD,
/// have 512. Of a stream that ends with a VHD footer, this many bytes are left out, so the number
/// must be that of the footer.
pub(super) const TAIL_BYTES: usize = 512;

/// Recognises content by its last bytes (`tail` has [`TAIL_BYTES`]): some formats have their header
/// after the disk.
pub(super) fn of_tail(tail: &[u8]) -> Option<Foreign> {
    const MACRIUM_7: &[u8] = b"__79241006_2651_11D4_";
    let last = |n: usize| tail.len().checked_sub(n).and_then(|at| tail.get(at..));
    let is_at = |n, magic: &[u8]| last(n).is_some_and(|end| end.starts_with(magic));
    let (what, way) = if is_at(512, b"koly\0\0\0\x04\0\0\x02\0") {
        let command = "qemu-img convert -f dmg -O raw {in} {out}";
        (
            "an Apple disk image (DMG)",
            Way::Run("Convert it with", command),
        )
    } else if is_at(8, b"cdsaencr") {
        let command = "hdiutil convert {in} -format UDTO -o {out}";
        (
            "an encrypted Apple disk image",
            Way::Run("Convert it on macOS with", command),
        )
    } else if is_at(12, b"MACRIUM_FILE")
        || last(54).is_some_and(|end| end.windows(MACRIUM_7.len()).any(|part| part == MACRIUM_7))
    {
        let advice = "Restore it with Macrium Reflect, and upload what it was restored to";
        ("a backup of Macrium Reflect", Way::Advice(advice))
    } else if is_at(12, b"NER5") || is_at(8, b"NERO") {
        (
            "an image of Nero (NRG)",
            Way::Run("Convert it with", "nrg2iso {in} {stem}.iso"),
        )
    } else if is_at(64, b"bbis") {
        (
            "a compressed ISO image (UIF)",
            Way::Run("Convert it with", "uif2iso {in} {stem}.iso"),
        )
    } else {
        return None;
    };
    Some(Foreign::new(what, way))
}

/// Fails if a file that no reader supports is known to be something else than a raw disk.
///
/// # Errors
/// [`ErrorKind::Image`] if so, with the command that converts it to a disk.
pub(super) fn check(file: &RawImage) -> Result<()> {
    let head = head_of(file, signs::HEAD_BYTES)?;
    let start = file.size().saturating_sub(TAIL_BYTES as u64);
    let mut tail = [0; TAIL_BYTES];
    let len = usize::try_from(file.size() - start).unwrap_or(0);
    let tail = &mut tail[..len];
    file.read_at(tail, start)?;
    let (name, place) = (file.path().display().to_string(), Location::of(file));
    if let Some(found) = of_head(&head).or_else(|| of_tail(tail)) {
        return Err(found.refuse(&name, &place));
    }
    match vhd_ending(tail, start) {
        VhdEnding::Doubtful(footer) => Err(doubtful_vhd(&name, footer, start, &place)),
        VhdEnding::Other | VhdEnding::Whole => Ok(()),
    }
}

/// The error for a file that ends with a VHD footer that does not match the `before` bytes in front
/// of it.
pub(super) fn doubtful_vhd(
    name: &str,
    footer: Option<VhdFooter>,
    before: u64,
    place: &Location<'_>,
) -> Error {
    let how = match footer {
        Some(VhdFooter { size, .. }) if size != before => {
            format!("of a VHD with a disk of {size} bytes, and has {before} bytes before it")
        }
        _ => "of a VHD, which is damaged".to_owned(),
    };
    let what = format!("{name} ends with the footer {how}");
    let leave_out = place.hint(
        "Leave the footer out, and upload the rest, with",
        "head -c -512 {in} > {out}",
    );
    let vhd = match (place, footer) {
        (Location::File(_), Some(footer)) if footer.fits(before) => {
            let size = footer.size;
            advice![
                "; ",
                Remedy::Format("vhd"),
                format!(" takes its first {size} bytes"),
            ]
        }
        _ => Advice::default(),
    };
    Error::new(ErrorKind::Image, what)
        .permanent()
        .hint_to(advice![leave_out, " (", place.forced(), vhd, ")"])
}

/// Where content is, for building commands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Location<'a> {
    /// A file on this machine, all of it.
    File(&'a Path),
    /// A member of an archive on this machine, by its name there.
    Member(&'a Path, &'a str),
    /// The content of a compressed file on this machine.
    Packed(&'a Path, StreamFormat),
    /// A pipe or a web server, and the compression.
    Elsewhere(StreamFormat),
}

impl<'a> Location<'a> {
    /// The place of a file, or of a member of an archive.
    pub(super) fn of(file: &'a RawImage) -> Self {
        match file.member() {
            _ if !file.is_local() || file.is_stdin() => Self::Elsewhere(StreamFormat::Raw),
            Some(member) => match file.archive() {
                Some(archive) => Self::Member(archive, &member.name),
                None => Self::File(file.path()),
            },
            None => Self::File(file.path()),
        }
    }

    /// The file for a command, and the commands that create it first.
    pub(super) fn file(&self) -> (String, String) {
        match self {
            Self::File(path) => (path.to_string_lossy().into_owned(), String::new()),
            Self::Member(archive, name) => {
                let untar = extraction::untar(&archive.to_string_lossy(), &[name]);
                ((*name).to_owned(), format!("{untar} && "))
            }
            Self::Packed(path, format) => {
                let path = path.to_string_lossy();
                let unpacked = stem(&path);
                let first = format!(
                    "{} {} > {} && ",
                    format.decompress_command(),
                    quote_file(&path),
                    quote_file(&unpacked)
                );
                (unpacked, first)
            }
            Self::Elsewhere(_) => ("FILE".to_owned(), String::new()),
        }
    }

    /// What the user has to do before the command.
    fn before(&self) -> &'static str {
        match self {
            Self::Elsewhere(StreamFormat::Raw) => "Put it into a file first. ",
            Self::Elsewhere(_) => "Unpack it into a file first. ",
            Self::File(_) | Self::Member(..) | Self::Packed(..) => "",
        }
    }

    /// How to send it unchanged nevertheless.
    fn forced(&self) -> Advice {
        match self {
            Self::File(_) | Self::Elsewhere(StreamFormat::Raw) => {
                advice![Remedy::Format("raw"), " sends it as it is"]
            }
            Self::Member(_, name) => advice![
                Remedy::Disk(no_option(name).into_owned()),
                " ",
                Remedy::Format("raw"),
                " sends it as it is",
            ],
            Self::Packed(path, format) => advice![
                format!(
                    "to send that as it is: {} {} | ",
                    format.decompress_command(),
                    quote_file(&path.to_string_lossy())
                ),
                Remedy::UploadOutput,
            ],
            Self::Elsewhere(_) => advice![
                "to send that as it is, unpack it before the pipe, with ",
                Remedy::Format("raw"),
            ],
        }
    }

    /// A hint that ends with a command about the file. In the command, `{in}`, `{out}` and `{stem}`
    /// are replaced.
    pub(super) fn hint(&self, words: &str, command: &str) -> String {
        let (file, first) = self.file();
        let (stem, out) = match self {
            Self::Elsewhere(_) => ("DISK".to_owned(), "DISK.img".to_owned()),
            _ => (stem(&file), raw_of(&file, &stem(&file))),
        };
        let names = [("in}", file), ("out}", out), ("stem}", stem)];
        let command = with_names(command, &names);
        format!("{}{words}: {first}{command}", self.before())
    }
}

impl Foreign {
    const fn new(what: &'static str, way: Way) -> Self {
        Self {
            what: Cow::Borrowed(what),
            way,
        }
    }

    /// The error that refuses this content.
    pub(super) fn refuse(self, name: &str, place: &Location<'_>) -> Error {
        let within = match place {
            Location::Packed(_, format) | Location::Elsewhere(format)
                if *format != StreamFormat::Raw =>
            {
                format!(" within {format}")
            }
            _ => String::new(),
        };
        let Self { what, way } = self;
        let line = format!("{name} is {what}{within}, not a raw disk");
        // If a file does not exist, a web server often answers with a page.
        let is_on_the_web = matches!(place, Location::Elsewhere(_)) && name.contains("://");
        let way = match way {
            _ if is_on_the_web && what == WEB_PAGE => {
                "Check the URL: it leads to a page, and not to a file".into()
            }
            Way::Run(words, command) => place.hint(words, command).into(),
            Way::Advice(sentence) => sentence.into(),
            Way::ListOfDigests => advice![
                "Name the image that it is about instead, and the list with ",
                Remedy::ListOfDigests,
            ],
        };
        Error::new(ErrorKind::Image, line)
            .permanent()
            .hint_to(advice![way, " (", place.forced(), ")"])
    }
}

/// Replaces the placeholders of a command, all at once: a name may look like one itself.
fn with_names(command: &str, names: &[(&str, String)]) -> String {
    let mut parts = command.split('{');
    let mut done = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let found = names
            .iter()
            .find_map(|(mark, name)| Some((name, part.strip_prefix(mark)?)));
        match found {
            Some((name, rest)) => {
                done.push_str(&quote_file(name));
                done.push_str(rest);
            }
            None => {
                done.push('{');
                done.push_str(part);
            }
        }
    }
    done
}

/// A name without its extension. If it has none, one is added, so that no command overwrites its
/// input.
fn stem(name: &str) -> String {
    const EXTENSION_BYTES_MAX: usize = 8;
    let base = name.rsplit('/').next().unwrap_or(name);
    let split = base.rsplit_once('.').filter(|(stem, extension)| {
        !stem.is_empty() && (1..=EXTENSION_BYTES_MAX).contains(&extension.len())
    });
    match split {
        Some((_, extension)) => name[..name.len() - extension.len() - 1].to_owned(),
        None => format!("{name}.out"),
    }
}

/// A name for the raw image that is made of a file.
fn raw_of(name: &str, stem: &str) -> String {
    let is_raw = |name: &str| name.ends_with(".img") || name.ends_with(".raw");
    match format!("{stem}.img") {
        _ if is_raw(stem) => stem.to_owned(),
        same if same == name => format!("{stem}.raw"),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are neither text nor a disk.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    fn what(head: &[u8]) -> Option<String> {
        of_head(head).map(|found| found.what.into_owned())
    }

    #[test]
    fn two_bytes_match_no_foreign_format() {
        let mut head = noise(1, 600);
        for start in 0..=u16::MAX {
            head[..2].copy_from_slice(&start.to_le_bytes());
            assert_eq!(what(&head), None, "{start:04x}");
        }
    }

    #[test]
    fn noise_zeros_and_patterns_match_no_format() {
        for seed in 0..2000 {
            assert_eq!(what(&noise(seed, 4096)), None, "{seed}");
        }
        for byte in 0..=255 {
            assert_eq!(what(&[byte; 5000]), None, "{byte:02x}");
            // As programs that wipe or mark disks write it.
            let mut marked = vec![0; 5000];
            marked[..4].fill(byte);
            assert_eq!(what(&marked), None, "{byte:02x}");
        }
        for len in [0, 1, 2, 3, 511] {
            assert_eq!(what(&noise(7, len)), None, "{len}");
        }
    }

    #[test]
    fn a_sign_of_a_disk_takes_precedence() {
        let starts: [&[u8]; 4] = [
            b"7z\xbc\xaf\x27\x1c",
            b"%PDF-1.4\n",
            b"\x7fELF\x02\x01\x01",
            b"a text\n",
        ];
        for start in starts {
            let mut disk = noise(3, signs::HEAD_BYTES);
            disk[..start.len()].copy_from_slice(start);
            if start != b"a text\n" {
                assert!(what(&disk).is_some(), "{start:?}");
            }
            for (at, sign) in [
                (32769, &b"CD001"[..]),
                (65536 + 64, b"_BHRfS_M"),
                (512, b"EFI PART"),
                (4096, b"EFI PART"),
                (512, b"LABELONE"),
                (4086, b"SWAPSPACE2"),
                (510, b"\x55\xaa"),
            ] {
                let mut disk = disk.clone();
                disk[446..510].fill(0);
                disk[at..at + sign.len()].copy_from_slice(sign);
                assert_eq!(what(&disk), None, "{start:?} {sign:?}");
            }
        }
        // Boot loaders start it from its own first sector, but it is no disk.
        let mut kernel = noise(3, 4096);
        kernel[446..510].fill(0);
        kernel[510..518].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS");
        assert_eq!(what(&kernel).as_deref(), Some("a Linux kernel"));
    }

    #[test]
    fn the_kind_of_a_text_is_recognised_by_its_content() {
        let lines = |line: &str| line.repeat(300);
        let digest = format!("{}  disk.img\n", "0a".repeat(32));
        let cases: [(String, Option<&str>); 27] = [
            ("<!DOCTYPE HTML>\n<html>".into(), Some("a web page")),
            ("\u{feff}  <!-- x --><HTML>".into(), Some("a web page")),
            (
                "<?xml version=\"1.0\"?><!-- a --><bmap version=\"2.0\">".into(),
                Some("a block map, which describes an image"),
            ),
            (
                "<ovf:Envelope>".into(),
                Some("a description of a machine (OVF)"),
            ),
            (
                "<Error><Code>AccessDenied</Code></Error>".into(),
                Some("an XML document"),
            ),
            ("{\"error\": \"not found\"}".into(), Some("a JSON document")),
            (
                "../.git/annex/objects/0/1".into(),
                Some("a pointer of git-annex, not the file"),
            ),
            (
                "/annex/objects/SHA256E-s1--00.img\n".into(),
                Some("a pointer of git-annex, not the file"),
            ),
            (
                "version https://git-lfs.github.com/spec/v1\n".into(),
                Some("a pointer of Git LFS, not the file"),
            ),
            ("#!/bin/sh\nexec true\n".into(), Some("a script")),
            (
                "#!/bin/sh\n#V2.0 Format\nmodprobe cloop".into(),
                Some("a cloop image"),
            ),
            (digest.clone(), Some("a list of checksums")),
            (lines(&digest), Some("a list of checksums")),
            (
                format!("SHA256 (disk.img) = {}\n", "0A".repeat(32)),
                Some("a list of checksums"),
            ),
            (
                lines(":10010000214601360121470136007EFE09D2190140\r\n"),
                Some("a firmware file (Intel HEX)"),
            ),
            (
                lines("S1137AF00A0A0D0000000000000000000000000061\n"),
                Some("a firmware file (S-record)"),
            ),
            (
                "# Disk DescriptorFile\nversion=1\n".into(),
                Some("a description of a VMDK, whose disk is in other files"),
            ),
            (
                "\r\n\r\n# Disk Descriptor File \r\n".into(),
                Some("a description of a VMDK, whose disk is in other files"),
            ),
            (
                "-----BEGIN PGP MESSAGE-----\n".into(),
                Some("a file encrypted with OpenPGP"),
            ),
            ("d8:announce30:http://example".into(), Some("a torrent")),
            ("404: Not Found".into(), Some("a text file")),
            ("Zugriff verweigert, für alle\n".into(), Some("a text file")),
            (lines("what a log says\n"), Some("a text file")),
            (format!("<html>{}", "\0".repeat(600)), Some("a web page")),
            (format!("a label{}", "\0".repeat(600)), None),
            ("U".repeat(5000), None),
            ("a\u{1}b".into(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(what(text.as_bytes()).as_deref(), expected, "{text:.60}");
        }
        // In other encodings.
        let latin = b"F\xfcr alle, d\xe9j\xe0 vu\r\n".repeat(9);
        assert_eq!(what(&latin).as_deref(), Some("a text file"));
        for (mark, bytes) in [
            (0xfeff_u16, u16::to_be_bytes as fn(u16) -> [u8; 2]),
            (0xfeff, u16::to_le_bytes),
        ] {
            let wide: Vec<u8> = std::iter::once(mark)
                .chain("<html>".encode_utf16())
                .flat_map(bytes)
                .collect();
            assert_eq!(what(&wide).as_deref(), Some("a web page"));
        }
        assert_eq!(what(b"\xff\xfe\0\0\0\0\0\0"), None);
    }

    #[test]
    fn media_documents_and_programs_are_recognised() {
        let pad = |start: &[u8]| [start, &noise(5, 500)].concat();
        for start in [
            &b"\x89PNG\r\n\x1a\n"[..],
            b"\xff\xd8\xff\xe0\0\x10JFIF\0",
            b"GIF89a",
            b"%PDF-1.7",
            b"SQLite format 3\0",
            b"fLaC",
            b"OggS",
            b"ID3\x04",
            b"RIFF\x10\0\0\0WAVE",
            b"\x1a\x45\xdf\xa3",
            b"wOF2",
            b"\xca\xfe\xba\xbe",
            b"\0asm\x01\0\0\0",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            b"bvx2",
            b"Rar!\x1a\x07\x01\0",
            b"RZIP\x02\x01",
        ] {
            assert!(what(&pad(start)).is_some(), "{start:?}");
        }
    }

    #[test]
    fn a_name_is_a_word_of_a_suggested_command() {
        let place = Location::Member(Path::new("a.ova"), "-{out}$(id).qed");
        assert_eq!(
            place.hint("Convert it with", "convert {in} {other} {out}"),
            "Convert it with: tar -xf a.ova -- '-{out}$(id).qed' && convert './-{out}$(id).qed' {other} './-{out}$(id).img'"
        );
    }

    #[test]
    fn a_suggested_command_never_overwrites_its_input() {
        let cases = [
            ("a.simg", "a", "a.img"),
            ("a.img", "a", "a.raw"),
            ("a.img.lzo", "a.img", "a.img"),
            ("dir.d/disk", "dir.d/disk.out", "dir.d/disk.out.img"),
            ("dir/.disk", "dir/.disk.out", "dir/.disk.out.img"),
            (
                "a.not-an-extension",
                "a.not-an-extension.out",
                "a.not-an-extension.out.img",
            ),
        ];
        for (name, expected_stem, raw) in cases {
            let stem = stem(name);
            assert_eq!((&*stem, &*raw_of(name, &stem)), (expected_stem, raw));
        }
    }
}
