//! A receipt is a JSON file that describes the content of a published drive and how it came there
//! (docs/user/receipts.md). With it, the drive can be verified without the image, and the next
//! image can be sent as a delta.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::advice::Remedy;
use crate::content::{
    BLOCK_BYTES, BLOCK_DIGEST_BYTES, CHUNK_DIGEST_BYTES, CONTENT_CHUNK_BYTES, Content, Digests, Run,
};
use crate::digest::Digest;
use crate::drive::{DRIVE_BYTES_MAX, DriveId};
use crate::error::{Error, ErrorKind, Result};
use openhosting_base::advice;

/// The version of the format that this program writes and reads.
const VERSION: u64 = 1;
/// Maximum number of digests in one string, because some JSON parsers limit the length of strings.
/// A string is then at most 175 KB long. Receipts with any other number can be read as well.
const DIGESTS_IN_A_STRING: usize = 4096;

/// How a drive got its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Everything was sent, except zeros.
    Full,
    /// The cloud copied this drive, and the differences were sent.
    Delta(DriveId),
    /// Nothing was sent: the drive existed.
    Nothing,
}

impl How {
    /// Its name in a receipt.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta(_) => "delta",
            Self::Nothing => "nothing",
        }
    }

    /// The drive that was copied, if any.
    pub fn base(self) -> Option<DriveId> {
        match self {
            Self::Delta(base) => Some(base),
            Self::Full | Self::Nothing => None,
        }
    }
}

/// How much of a drive was compared with its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Coverage {
    /// Number of blocks that were compared, each selected with equal probability.
    #[serde(rename = "blocks")]
    pub checked: u64,
    /// Total number of blocks.
    pub of: u64,
}

/// Maximum factors of a product to multiply one by one, because a receipt may state any number. A
/// million of them take some milliseconds.
const FACTORS_MAX: u64 = 1 << 20;

impl Coverage {
    /// The probability, from 0 to 1, that a change of `changed` blocks at any positions would have
    /// been detected.
    ///
    /// The change is missed if none of the changed blocks was selected: C(of - changed, checked) /
    /// C(of, checked).
    pub fn confidence(&self, changed: u64) -> f64 {
        let changed = changed.min(self.of);
        if changed == 0 || self.checked == 0 {
            return 0.0;
        }
        if self.checked.saturating_add(changed) > self.of {
            return 1.0;
        }
        // The formula is symmetric in both, so the shorter product is used.
        let (few, many) = (self.checked.min(changed), self.checked.max(changed));
        let missed_by = |of: u64| (1.0 - many as f64 / of as f64).ln();
        let missed: f64 = match few <= FACTORS_MAX {
            true => (0..few).map(|i| missed_by(self.of - i)).sum(),
            // As if each block could be selected twice, which gives a slightly lower value.
            false => few as f64 * missed_by(self.of),
        };
        -missed.exp_m1()
    }

    /// The confidence in words.
    pub fn statement(&self) -> String {
        if self.checked >= self.of {
            return match self.of {
                1 => "the only block was compared".to_owned(),
                of => format!("every one of {of} blocks was compared"),
            };
        }
        let odds = self.odds();
        format!(
            "{} of {} blocks were compared. {odds}",
            self.checked, self.of
        )
    }

    /// The probability that a change would have been found, in words.
    pub(crate) fn odds(&self) -> String {
        let of_a_hundred = self.of.div_ceil(100);
        format!(
            "If 1 % of the blocks had changed, the probability to find it would be {}; for a single changed block, {}",
            percent(self.confidence(of_a_hundred)),
            percent(self.confidence(1)),
        )
    }
}

/// Rounded down, so that it never claims too much.
fn percent(share: f64) -> String {
    let hundredths = (share * 10_000.0).floor();
    format!("{:.2} %", hundredths / 100.0)
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The drive with the content.
    pub drive: DriveId,
    /// Its endpoint.
    pub endpoint: String,
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Content,
    /// How it got its content.
    pub how: How,
    /// Bytes of bodies that were sent for it.
    pub sent_bytes: u64,
    /// When the work began, in seconds since 1970.
    pub began: u64,
    /// How long it took.
    pub took: Duration,
    /// How much of it was read back at that time.
    pub verified: Coverage,
}

impl Receipt {
    /// The content of the file: one JSON object and a newline.
    pub fn print(&self) -> String {
        let object = json!({
            "receipt": VERSION,
            "tool": concat!("openhosting ", env!("CARGO_PKG_VERSION")),
            "drive": self.drive.to_string(),
            "endpoint": self.endpoint,
            "name": self.name,
            "size": self.content.size(),
            "root": self.content.root().to_string(),
            "chunks": print_digests(self.content.chunks(), CONTENT_CHUNK_BYTES.get(), "sha256"),
            "blocks": print_digests(self.content.blocks(), BLOCK_BYTES.get(), "sha256/128"),
            "how": self.how.name(),
            "base": self.how.base().map(|base| base.to_string()),
            "bytes_sent": self.sent_bytes,
            "began": self.began,
            "seconds": (self.took.as_secs_f64() * 1000.0).round() / 1000.0,
            "verified": self.verified,
        });
        format!("{object:#}\n")
    }

    /// Parses a file. Unknown keys are ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it is not a receipt, has another version, or its digests do not
    /// match its root.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Usage, format!("It is no receipt: {what}"));
        let object: Value = serde_json::from_slice(bytes).map_err(|cause| {
            let error = Error::new(ErrorKind::Usage, "It is no receipt").hint_to(advice![
                "A receipt is a JSON file that ",
                Remedy::WriteReceipt,
                " wrote"
            ]);
            // The parser's error is of use only if the file was meant to be one.
            match bytes.trim_ascii_start().starts_with(b"{") {
                true => error.because(cause),
                false => error,
            }
        })?;
        let number = |key: &str| {
            let value = object.get(key).and_then(Value::as_u64);
            value.ok_or_else(|| wrong(&format!("{key:?} is missing or no whole number")))
        };
        let text = |key: &str| {
            let value = object.get(key).and_then(Value::as_str);
            value.ok_or_else(|| wrong(&format!("{key:?} is missing or no text")))
        };
        let version = number("receipt")?;
        if version != VERSION {
            let what = format!("The receipt is of version {version}, this program knows {VERSION}");
            return Err(Error::new(ErrorKind::Usage, what)
                .hint_to("Use the program that wrote it, or a newer one"));
        }
        let size = number("size")?;
        if size > DRIVE_BYTES_MAX {
            let what = format!("\"size\" is {size} bytes, which no drive has");
            return Err(wrong(&what));
        }
        let digests = |key: &str, bytes: u64, name: &str, width: usize| {
            let value = object.get(key).unwrap_or(&Value::Null);
            let count = size.div_ceil(bytes);
            parse_digests(value, bytes, name, width, count)
                .ok_or_else(|| wrong(&format!("{key:?} is not what a disk of {size} bytes has")))
        };
        let (chunk, block) = (CONTENT_CHUNK_BYTES.get(), BLOCK_BYTES.get());
        let chunks = digests("chunks", chunk, "sha256", CHUNK_DIGEST_BYTES)?;
        let blocks = digests("blocks", block, "sha256/128", BLOCK_DIGEST_BYTES)?;
        let content = Content::from_digests(size, chunks, blocks)
            .ok_or_else(|| wrong("it has too few digests"))?;
        let root: Digest = text("root")?.parse()?;
        if content.root() != root {
            return Err(wrong("its digests are not those of its root"));
        }
        let how = match text("how")? {
            "full" => How::Full,
            "nothing" => How::Nothing,
            "delta" => How::Delta(text("base")?.parse()?),
            other => return Err(wrong(&format!("{other:?} is no \"how\""))),
        };
        let verified = Coverage::deserialize(&object["verified"]);
        let seconds = object.get("seconds").and_then(Value::as_f64);
        Ok(Self {
            drive: text("drive")?.parse()?,
            endpoint: text("endpoint")?.to_owned(),
            name: text("name")?.to_owned(),
            content,
            how,
            sent_bytes: number("bytes_sent")?,
            began: number("began")?,
            took: seconds
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .ok_or_else(|| wrong("\"seconds\" is missing or no time"))?,
            verified: verified.map_err(|_| wrong("\"verified\" does not state blocks"))?,
        })
    }
}

/// Digests of chunks or blocks as JSON: a number stands for that many of them that are zeros, and a
/// string contains digests in base64.
fn print_digests(digests: &Digests, bytes: u64, name: &str) -> Value {
    let mut runs = Vec::new();
    for run in digests.runs() {
        match run {
            Run::Zeros(count) => runs.push(Value::from(*count)),
            Run::Data(all) => {
                let strings = all.chunks(digests.width() * DIGESTS_IN_A_STRING);
                runs.extend(strings.map(|some| Value::from(BASE64.encode(some))));
            }
        }
    }
    json!({ "bytes": bytes, "digest": name, "runs": runs })
}

/// The inverse of [`print_digests`]; `None` if these are not `count` digests of this kind.
fn parse_digests(
    value: &Value,
    bytes: u64,
    name: &str,
    width: usize,
    count: u64,
) -> Option<Digests> {
    if value.get("bytes")?.as_u64()? != bytes || value.get("digest")?.as_str()? != name {
        return None;
    }
    let mut digests = Digests::new(width);
    for run in value.get("runs")?.as_array()? {
        match run {
            Value::String(text) => digests.data(&BASE64.decode(text).ok()?)?,
            run => digests.zeros(run.as_u64()?)?,
        }
    }
    (digests.count() == count).then_some(digests)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::ChunkContent;

    const CHUNK: usize = 4 << 20;

    fn receipt(content: Content) -> Receipt {
        Receipt {
            drive: DriveId::random(),
            endpoint: "https://h/".into(),
            name: "nightly \"x\"".into(),
            content,
            how: How::Delta(DriveId::random()),
            sent_bytes: 5,
            began: 1_800_000_000,
            took: Duration::from_millis(1250),
            verified: Coverage {
                checked: 3,
                of: 100,
            },
        }
    }

    fn some_content() -> Content {
        let mut bytes = vec![0; 2 * CHUNK + 70_000];
        bytes[5] = 1;
        bytes[CHUNK - 1] = 2;
        bytes[2 * CHUNK + 69_000] = 3;
        let mut content = Content::new(bytes.len() as u64);
        for chunk in bytes.chunks(CHUNK) {
            content.push(&ChunkContent::of(chunk));
        }
        content
    }

    #[test]
    fn a_coverage_of_any_numbers_is_computed_at_once_and_never_too_high() {
        let exact = |checked, of, changed: u64| {
            let coverage = Coverage { checked, of };
            (coverage.confidence(changed), coverage.statement())
        };
        let (confidence, _) = exact(u64::MAX / 4, u64::MAX, u64::MAX / 8);
        assert!((0.0..=1.0).contains(&confidence), "{confidence}");
        // Near the limit of exact multiplication, both formulas agree.
        let few = FACTORS_MAX;
        let (below, _) = exact(few, few * few, few);
        let (above, _) = exact(few + 1, few * few, few + 1);
        assert!(above <= below + 0.001 && above > 0.6, "{below} {above}");
    }

    #[test]
    fn a_printed_receipt_reads_back() {
        for how in [How::Full, How::Nothing, How::Delta(DriveId::random())] {
            let receipt = Receipt {
                how,
                ..receipt(some_content())
            };
            assert_eq!(Receipt::parse(receipt.print().as_bytes()).unwrap(), receipt);
        }
    }

    #[test]
    fn a_receipt_of_a_sparse_tebibyte_is_small() {
        let mut content = Content::new(1 << 40);
        content.push_hole(100_000);
        content.push(&ChunkContent::of(&vec![1; CHUNK]));
        content.push_hole((1 << 18) - 100_001);
        let receipt = receipt(content);
        let text = receipt.print();
        assert!(text.len() < 4096, "{} bytes", text.len());
        assert_eq!(Receipt::parse(text.as_bytes()).unwrap(), receipt);
    }

    #[test]
    fn a_changed_receipt_is_refused() {
        let receipt = receipt(some_content());
        let good: Value = serde_json::from_str(&receipt.print()).unwrap();
        let mut changes: Vec<(&str, Value)> = vec![
            ("receipt", json!(2)),
            ("receipt", json!("1")),
            ("size", json!(receipt.content.size() + 1)),
            ("size", json!(u64::MAX)),
            ("size", json!(-1)),
            ("root", json!("00")),
            ("root", json!(Digest::of(b"x").to_string())),
            ("drive", json!("../x")),
            ("how", json!("delta?")),
            ("base", json!(null)),
            ("bytes_sent", json!(1.5)),
            ("seconds", json!(-1)),
            ("seconds", json!(1e300)),
            ("verified", json!({})),
        ];
        for runs in [
            json!([]),
            json!([u64::MAX, u64::MAX]),
            json!([3]),
            json!(["AAAA"]),
            json!(["?"]),
            json!([null]),
            json!("x"),
        ] {
            let chunks = json!({ "bytes": CHUNK, "digest": "sha256", "runs": runs });
            changes.push(("chunks", chunks));
        }
        let mut blocks = good["blocks"].clone();
        blocks["digest"] = json!("md5");
        changes.push(("blocks", blocks));
        for (key, value) in changes {
            let mut bad = good.clone();
            bad[key] = value;
            let error = Receipt::parse(bad.to_string().as_bytes()).unwrap_err();
            let kinds = [ErrorKind::Usage, ErrorKind::Protocol];
            assert!(kinds.contains(&error.kind()), "{key}: {error}");
            if key != "receipt" {
                let mut less = good.clone();
                less.as_object_mut().unwrap().remove(key);
                assert!(
                    Receipt::parse(less.to_string().as_bytes()).is_err(),
                    "{key}"
                );
            }
        }
        assert!(Receipt::parse(b"").is_err());
    }

    #[test]
    fn one_changed_digest_is_detected() {
        // Blocks determine what a delta sends. If the root did not cover them, an exchanged one
        // would remain undetected.
        let receipt = receipt(some_content());
        let mut object: Value = serde_json::from_str(&receipt.print()).unwrap();
        for key in ["chunks", "blocks"] {
            let runs = object[key]["runs"].as_array_mut().unwrap();
            let at = runs.iter().position(Value::is_string).unwrap();
            let before = runs[at].clone();
            let mut bytes = BASE64.decode(before.as_str().unwrap()).unwrap();
            bytes[3] ^= 1;
            runs[at] = BASE64.encode(bytes).into();
            assert!(
                Receipt::parse(object.to_string().as_bytes()).is_err(),
                "{key}"
            );
            object[key]["runs"][at] = before;
        }
        assert!(Receipt::parse(object.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn the_stated_confidence_matches_trials() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (of, changed, checked) in [(500, 5, 100), (500, 100, 5), (60, 1, 20), (2000, 20, 300)] {
            let coverage = Coverage { checked, of };
            let trials = 10_000;
            let seen = (0..trials)
                .filter(|_| {
                    let picked = rng.choose_multiple(0..of, checked as usize);
                    picked.iter().any(|block| *block < changed)
                })
                .count();
            let (found, claimed) = (
                seen as f64 / f64::from(trials),
                coverage.confidence(changed),
            );
            // Four standard deviations.
            let tolerance = 4.0 * (claimed * (1.0 - claimed) / f64::from(trials)).sqrt() + 1e-9;
            assert!(
                (found - claimed).abs() <= tolerance,
                "{coverage:?}: {found} found, {claimed} claimed"
            );
        }
    }

    #[test]
    fn the_stated_confidence_is_never_too_high() {
        let all = Coverage { checked: 9, of: 9 };
        assert_eq!(all.statement(), "every one of 9 blocks was compared");
        let most = Coverage {
            checked: 99_999,
            of: 100_000,
        };
        assert!(
            most.statement()
                .ends_with("for a single changed block, 99.99 %"),
            "{}",
            most.statement()
        );
        assert_eq!(most.confidence(2), 1.0);
        let none = Coverage { checked: 0, of: 9 };
        assert_eq!(none.confidence(9), 0.0);
        // The example in the documentation.
        let usual = Coverage {
            checked: 688,
            of: 1_000_000,
        };
        assert!((usual.confidence(10_000) - 0.999).abs() < 1e-4);
    }

    proptest! {
        #[test]
        fn no_file_makes_the_receipt_parser_panic(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = Receipt::parse(&bytes);
            let mut text = receipt(some_content()).print().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(receipt) = Receipt::parse(&text) {
                prop_assert_eq!(receipt.content.root(), some_content().root());
            }
        }
    }
}
