//! The manifest of an appliance (OVF, DMTF DSP0243, 7.1 and the annex on packages) lists the
//! digests of its files, one on each line: `SHA256(box-disk1.vmdk)= 9f86...`. A file is hashed
//! while something else reads it. As long as it is read roughly in order, no byte has to be read
//! twice.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha512};

use crate::chunk::zeros;

/// Maximum bytes to store because they were read before the bytes in front of them. Several threads
/// read, each a chunk ahead of the other.
const AHEAD_BYTES_MAX: usize = 32 << 20;
/// A gap between two reads (padding, tables, the space for headers) is read for the digest if it
/// has at most this many bytes.
pub(super) const GAP_BYTES_MAX: u64 = 128 << 10;

/// A digest listed in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedDigest {
    pub(super) kind: Kind,
    /// In lower case.
    pub(super) hex: String,
}

/// The algorithms that OVF 1 and 2 and their tools use, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Sha1,
    Sha256,
    Sha512,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        let name = name.trim().replace('-', "").to_ascii_uppercase();
        let kinds = [Self::Sha1, Self::Sha256, Self::Sha512];
        kinds.into_iter().find(|kind| kind.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Finds the digest in a manifest of the file whose name `is_it` accepts: the strongest, if there
/// are several; `None` without one. Lines that are no digests are ignored. The error says why the
/// manifest is invalid: the digest of that file is malformed, or there are two different ones.
pub(super) fn digest_of(
    text: &str,
    is_it: impl Fn(&str) -> bool,
) -> Result<Option<ListedDigest>, String> {
    let mut found: Option<ListedDigest> = None;
    for line in text.lines() {
        let Some((kind, name, hex)) = parts(line) else {
            continue;
        };
        if !is_it(name) {
            continue;
        }
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex.len() != kind.hex_digits() || !is_hex {
            return Err(format!("what it lists for {name:?} is not a {kind}"));
        }
        let hex = hex.to_ascii_lowercase();
        match &found {
            Some(other) if other.kind == kind && other.hex != hex => {
                return Err(format!("it lists two digests of {name:?}"));
            }
            Some(other) if other.kind >= kind => {}
            _ => found = Some(ListedDigest { kind, hex }),
        }
    }
    Ok(found)
}

/// Splits a line into algorithm, name and digest: in the form of the standard, or as `sha256sum`
/// prints it, where the length of the digest determines the algorithm.
fn parts(line: &str) -> Option<(Kind, &str, &str)> {
    let Some((kind, rest)) = line
        .split_once('(')
        .filter(|(kind, _)| Kind::of(kind).is_some())
    else {
        let (hex, name) = line.trim_end().split_once([' ', '\t'])?;
        let kinds = [Kind::Sha1, Kind::Sha256, Kind::Sha512];
        let kind = kinds
            .into_iter()
            .find(|kind| kind.hex_digits() == hex.len())?;
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let name = name.trim_start().trim_start_matches('*');
        return is_hex.then_some((kind, name, hex));
    };
    // A name may contain brackets, but a digest cannot.
    let (name, rest) = rest.rsplit_once(')')?;
    let hex = rest.trim_start().strip_prefix('=')?.trim();
    Some((Kind::of(kind)?, name.trim(), hex))
}

/// Hashes a file in order while it is read in any order.
pub(super) struct Passing {
    hasher: Box<dyn DynDigest + Send>,
    /// The file is hashed up to here.
    next: u64,
    /// Bytes that were read too early to be hashed, by offset.
    ahead: BTreeMap<u64, Vec<u8>>,
    ahead_bytes: usize,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Passing {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            hasher: match kind {
                Kind::Sha1 => Box::new(Sha1::default()),
                Kind::Sha256 => Box::new(Sha256::default()),
                Kind::Sha512 => Box::new(Sha512::default()),
            },
            next: 0,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
        }
    }

    /// The file is hashed up to this byte.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Reports bytes that were read from `offset`.
    pub(super) fn saw(&mut self, bytes: &[u8], offset: u64) {
        if offset > self.next {
            let has_more = |kept: &Vec<u8>| kept.len() >= bytes.len();
            if !self.ahead.get(&offset).is_some_and(has_more) {
                self.ahead_bytes += bytes.len();
                let before = self.ahead.insert(offset, bytes.to_owned());
                self.ahead_bytes -= before.map_or(0, |before| before.len());
            }
            return;
        }
        self.take(bytes, offset);
        self.catch_up();
    }

    /// Reports that the next `len` bytes are zeros.
    pub(super) fn saw_zeros(&mut self, len: u64) {
        for step in zeros(len) {
            self.hasher.update(step);
        }
        self.next += len;
        self.catch_up();
    }

    /// Whether everything before `offset` must be read now, so that `len` bytes from there can be
    /// hashed: because only little is missing, or because too many bytes are already stored.
    /// Otherwise the regular reader will probably get there.
    pub(super) fn has_to_reach(&self, offset: u64, len: usize) -> bool {
        offset.saturating_sub(self.next) <= GAP_BYTES_MAX
            || self.ahead_bytes.saturating_add(len) > AHEAD_BYTES_MAX
    }

    /// Where a short gap that starts at the next byte ends.
    pub(super) fn gap(&self) -> Option<u64> {
        let first = self.ahead_from()?;
        (first - self.next <= GAP_BYTES_MAX).then_some(first)
    }

    /// Where a short gap between stored bytes and `offset` begins.
    pub(super) fn left_out_before(&self, offset: u64) -> Option<u64> {
        let (at, bytes) = self.ahead.range(..offset).next_back()?;
        let end = at + bytes.len() as u64;
        (end < offset && offset - end <= GAP_BYTES_MAX).then_some(end)
    }

    /// Offset of the first bytes that are stored because they were read ahead.
    pub(super) fn ahead_from(&self) -> Option<u64> {
        self.ahead.first_key_value().map(|(first, _)| *first)
    }

    /// Hashes the part of these bytes that is not hashed yet. They begin at or before the next
    /// byte.
    fn take(&mut self, bytes: &[u8], offset: u64) {
        let from = usize::try_from(self.next - offset).unwrap_or(usize::MAX);
        let new = bytes.get(from..).unwrap_or_default();
        self.hasher.update(new);
        self.next += new.len() as u64;
    }

    /// Hashes stored bytes that have become the next ones.
    fn catch_up(&mut self) {
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= self.next
        {
            let (offset, bytes) = entry.remove_entry();
            self.ahead_bytes -= bytes.len();
            self.take(&bytes, offset);
        }
    }

    /// The digest of all bytes, in lower case.
    pub(super) fn finish(self) -> String {
        hex(&self.hasher.finalize())
    }
}

impl fmt::Debug for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passing")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn manifest_lines_of_common_tools_are_read() {
        let one = hex(&Sha256::digest(b"1"));
        let sha1 = hex(&Sha1::digest(b"1"));
        let digest = |text: &str| digest_of(text, |name| name == "a (1).vmdk");
        let of = |kind, hex: &str| {
            Ok(Some(ListedDigest {
                kind,
                hex: hex.to_owned(),
            }))
        };
        for line in [
            format!("SHA256(a (1).vmdk)= {one}"),
            format!("SHA256 (a (1).vmdk) = {}\r\n", one.to_uppercase()),
            format!("sha-256(a (1).vmdk)={one}"),
            format!("{one}  a (1).vmdk"),
            format!("{one} *a (1).vmdk\r\n"),
            format!("garbage\n\nSHA256(b)= 00\nSHA256(a (1).vmdk)= {one}\nMD5(a (1).vmdk)= 0"),
            // The strongest digest counts, wherever it is listed.
            format!("SHA256(a (1).vmdk)= {one}\nSHA1(a (1).vmdk)= {sha1}"),
            format!("SHA1(a (1).vmdk)= {sha1}\nSHA256(a (1).vmdk)= {one}"),
        ] {
            assert_eq!(digest(&line), of(Kind::Sha256, &one), "{line}");
        }
        assert_eq!(
            digest(&format!("SHA1(a (1).vmdk)= {sha1}")),
            of(Kind::Sha1, &sha1)
        );
        for none in [
            "",
            "SHA256(b)= 00",
            "SHA256(a (1).vmdk) 00",
            "SHA256 a (1).vmdk",
        ] {
            assert_eq!(digest(none), Ok(None), "{none}");
        }
        for bad in [
            "SHA256(a (1).vmdk)= 00".to_owned(),
            format!("SHA1(a (1).vmdk)= {one}"),
            format!("SHA256(a (1).vmdk)= {}", "é".repeat(32)),
            format!(
                "SHA256(a (1).vmdk)= {one}\nSHA256(a (1).vmdk)= {}",
                "0".repeat(64)
            ),
        ] {
            assert!(digest(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_read_in_any_order_are_hashed_in_order() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        for (kind, expected) in [
            (Kind::Sha1, hex(&Sha1::digest(&bytes))),
            (Kind::Sha256, hex(&Sha256::digest(&bytes))),
            (Kind::Sha512, hex(&Sha512::digest(&bytes))),
        ] {
            let mut rng = fastrand::Rng::with_seed(7);
            let mut passing = Passing::new(kind);
            while passing.next() < bytes.len() as u64 {
                let from = rng.usize(..bytes.len());
                let to = bytes.len().min(from + rng.usize(..200_000));
                passing.saw(&bytes[from..to], from as u64);
                // Read the gaps.
                while let Some(end) = passing.gap() {
                    let at = passing.next();
                    let gap = &bytes[at as usize..end as usize];
                    passing.saw(gap, at);
                }
            }
            assert_eq!(passing.ahead_bytes, 0);
            assert_eq!(passing.finish(), expected);
        }
    }

    #[test]
    fn bytes_that_wait_to_be_hashed_are_bounded() {
        let mut passing = Passing::new(Kind::Sha1);
        let step = vec![0; 1 << 20];
        let mut at = 1 << 20;
        while !passing.has_to_reach(at, step.len()) {
            passing.saw(&step, at);
            at += 1 << 20;
        }
        assert_eq!(passing.ahead_bytes, AHEAD_BYTES_MAX);
        passing.saw_zeros(1 << 20);
        assert_eq!((passing.next(), passing.ahead_bytes), (at, 0));
    }
}
