//! Recognises text, with which no disk begins: a page that explains why there is no image, a
//! pointer to the image, a description of it, or something else that was downloaded instead.

use super::{Foreign, WEB_PAGE, Way};

/// How many bytes have to be text.
const TEXT_BYTES: usize = 4096;
/// With fewer bytes, text cannot be distinguished from other content.
const FEW_BYTES: usize = 4;
/// A word that identifies a document has to be within this many bytes.
const START_BYTES: usize = 1024;

const LOOK: Way = Way::Run("Look at what it says with", "head -c 1000 {in}");
const NAME_DISK: Way = Way::Advice("Name the disk that it describes instead");

/// Kinds of text by their first words, in lower case and without leading spaces.
#[rustfmt::skip]
const STARTS: &[(&[&str], &str, Way)] = &[
    (&["version https://git-lfs.github.com/"], "a pointer of Git LFS, not the file",
        Way::Run("Fetch the file with", "git lfs pull --include {in}")),
    (&["/annex/objects/", "../.git/annex/objects/", ".git/annex/objects/"],
        "a pointer of git-annex, not the file",
        Way::Run("Fetch the file with", "git annex get {in}")),
    (&["<!doctype html", "<html", "<head", "<body"], WEB_PAGE, LOOK),
    (&["-----begin pgp message"], "a file encrypted with OpenPGP",
        Way::Run("Decrypt it with", "gpg -o {out} -d {in}")),
    (&["-----begin pgp"], "a signature or key of OpenPGP", LOOK),
    (&["-----begin "], "a certificate or key", LOOK),
    (&["untrusted comment:"], "a signature of minisign", LOOK),
    (&["# mapfile. created by gnu ddrescue"], "a map file of ddrescue",
        Way::Advice("Name the image that ddrescue wrote instead")),
    (&["#!"], "a script", LOOK),
    (&["http/1."], "an answer of a web server, with its header", LOOK),
];

/// Kinds of XML documents by their first element, in lower case and without its namespace.
#[rustfmt::skip]
const ELEMENTS: &[(&str, &str, Way)] = &[
    ("html", WEB_PAGE, LOOK),
    ("bmap", "a block map, which describes an image",
        Way::Advice("Name the image that it describes instead")),
    ("envelope", "a description of a machine (OVF)",
        Way::Advice("Name the disk that it describes, or the OVA, instead")),
    ("domain", "a description of a machine (libvirt)", NAME_DISK),
    ("virtualbox", "a description of a machine (VirtualBox)", NAME_DISK),
    ("parallels_disk_image", "a description of a disk of Parallels",
        Way::Advice("Name the .hds file beside it instead")),
    ("metalink", "a Metalink", Way::Run("Fetch what it describes with", "aria2c {in}")),
    ("plist", "a property list of macOS", LOOK),
];

/// Recognises a text; `None` if `head` is not text. Bytes that are all the same are not text.
pub(super) fn of_head(head: &[u8]) -> Option<Foreign> {
    let wide = decoded_16(head);
    let head = wide.as_deref().map_or(head, str::as_bytes);
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let zeros = head.iter().rposition(|byte| *byte != 0)?;
    let (text, is_padded) = match head.iter().position(|byte| *byte == 0) {
        // Zeros up to the end of `head` are padding.
        Some(end) if zeros < end => (head.get(..end)?, true),
        Some(_) => return None,
        None => (head, false),
    };
    let seen = text.get(..TEXT_BYTES).unwrap_or(text);
    if !is_text(seen) {
        return None;
    }
    let start = lower_start(seen);
    if let Some(known) = known(&start) {
        return Some(known);
    }
    // A label, followed by zeros, may be the beginning of a disk.
    let is_alike = seen.iter().all(|byte| Some(byte) == seen.first());
    let is_short = seen.len() < FEW_BYTES;
    (!is_padded && !is_alike && !is_short).then(|| by_lines(seen))
}

/// Whether this may be a VMDK description. The reader of that format then has to read or refuse it.
pub(super) fn is_vmdk_description(start: &str) -> bool {
    let first = start.lines().find(|line| !line.trim().is_empty());
    let words: String = first
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    words == "#diskdescriptorfile"
        || start.starts_with('#') && start.contains("createtype") && start.contains("parentcid")
}

fn known(start: &str) -> Option<Foreign> {
    let foreign = |what, way| Some(Foreign::new(what, way));
    if is_vmdk_description(start) {
        return foreign(
            "a description of a VMDK, whose disk is in other files",
            Way::Run(
                "Convert it with",
                "qemu-img convert -f vmdk -O qcow2 {in} {stem}.qcow2",
            ),
        );
    }
    let begins = |words: &[&str]| words.iter().any(|word| start.starts_with(word));
    if let Some((_, what, way)) = STARTS.iter().find(|(words, ..)| begins(words)) {
        return foreign(what, *way);
    }
    if !start.starts_with('<') {
        return None;
    }
    let Some(element) = first_element(start) else {
        return match start.starts_with("<?xml") {
            true => foreign("an XML document", LOOK),
            false => None,
        };
    };
    match ELEMENTS.iter().find(|(name, ..)| *name == element) {
        Some((_, what, way)) => foreign(what, *way),
        None => foreign("an XML document", LOOK),
    }
}

/// The name of the first element after declarations and comments.
fn first_element(start: &str) -> Option<&str> {
    let mut rest = start;
    loop {
        rest = rest.trim_start().strip_prefix('<')?;
        let end = match rest {
            _ if rest.starts_with('?') => "?>",
            _ if rest.starts_with("!--") => "-->",
            _ if rest.starts_with('!') => ">",
            _ => break,
        };
        rest = rest.split_once(end)?.1;
    }
    let name = rest
        .split(|c: char| c.is_whitespace() || "/>".contains(c))
        .next()?;
    let is_name = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || "_:-.".contains(c));
    is_name.then(|| name.rsplit(':').next().unwrap_or(name))
}

/// Recognises a text by the form of its lines.
fn by_lines(seen: &[u8]) -> Foreign {
    let text = String::from_utf8_lossy(seen);
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    // The last line may be incomplete.
    if lines.len() > 1 && seen.len() == TEXT_BYTES {
        lines.pop();
    }
    let all = |is_so: fn(&str) -> bool| !lines.is_empty() && lines.iter().all(|line| is_so(line));
    let (what, way) = if all(is_digest_line) {
        ("a list of checksums", Way::ListOfDigests)
    } else if all(|line| is_record(line, ':')) {
        (
            "a firmware file (Intel HEX)",
            Way::Run("Convert it with", "objcopy -I ihex -O binary {in} {out}"),
        )
    } else if all(|line| is_record(line, 'S')) {
        (
            "a firmware file (S-record)",
            Way::Run("Convert it with", "objcopy -I srec -O binary {in} {out}"),
        )
    } else if matches!(text.trim_start().chars().next(), Some('{' | '[')) {
        ("a JSON document", LOOK)
    } else {
        ("a text file", LOOK)
    };
    Foreign::new(what, way)
}

/// Whether a line has nothing but hexadecimal digits behind its mark.
fn is_record(line: &str, mark: char) -> bool {
    let digits = line.strip_prefix(mark);
    digits.is_some_and(|digits| is_hex(digits.trim_end()))
}

fn is_hex(text: &str) -> bool {
    text.len() >= 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A line in the format of md5sum and similar programs, or of their BSD versions.
fn is_digest_line(line: &str) -> bool {
    const DIGITS: [usize; 6] = [32, 40, 56, 64, 96, 128];
    let mut words = line.split_whitespace();
    let is_digest =
        |word: Option<&str>| word.is_some_and(|word| DIGITS.contains(&word.len()) && is_hex(word));
    is_digest(words.next()) || is_digest(words.last()) && line.contains(") = ")
}

/// Whether this is text, mostly ASCII, in an encoding that contains ASCII. Control characters that
/// only devices use are not allowed.
fn is_text(bytes: &[u8]) -> bool {
    let is_control = |byte: &u8| matches!(byte, 0..=6 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f);
    let ascii = bytes.iter().filter(|byte| byte.is_ascii()).count();
    !bytes.is_empty()
        && !bytes.iter().any(is_control)
        && (ascii * 2 >= bytes.len() || is_utf8(bytes))
}

/// Whether this is UTF-8; the last character may be incomplete.
fn is_utf8(bytes: &[u8]) -> bool {
    match str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    }
}

fn lower_start(seen: &[u8]) -> String {
    let start = seen.get(..START_BYTES).unwrap_or(seen);
    let start = String::from_utf8_lossy(start).to_lowercase();
    start.trim_start().to_owned()
}

/// Decodes UTF-16 with a byte order mark.
fn decoded_16(head: &[u8]) -> Option<String> {
    let (read, rest): (fn([u8; 2]) -> u16, _) = match head {
        [0xff, 0xfe, rest @ ..] => (u16::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => (u16::from_be_bytes, rest),
        _ => return None,
    };
    let some = rest.get(..2 * TEXT_BYTES).unwrap_or(rest);
    let units = some.as_chunks::<2>().0.iter().map(|pair| read(*pair));
    let mut text = String::new();
    for c in char::decode_utf16(units) {
        match c {
            Ok(c) => text.push(c),
            // A pair of code units is incomplete at the end.
            Err(_) if text.chars().count() + 1 >= some.len() / 2 => {}
            Err(_) => return None,
        }
    }
    Some(text)
}
