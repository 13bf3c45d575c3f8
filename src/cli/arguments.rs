//! Arguments that several tools take.

use std::fmt;
use std::io::IsTerminal;
use std::num::{IntErrorKind, NonZeroU32, NonZeroU64, ParseIntError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{candidates, command_line, help};
use crate::amounts::exact_size;
use crate::api::WebUrl;
use crate::codec::Compression;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Holes, Image, ImageOptions, StreamOptions};
use crate::transfer::{WebConfig, blocking, open_web};

/// Largest chunk: a chunk is held in memory, several times.
const CHUNK_BYTES_MAX: u64 = 1 << 30;
/// Minimum bytes of a chunk in `openhosting upload` and `openhosting download`.
const CHUNK_BYTES_MIN: u64 = 4096;

/// Reads a size in bytes: digits, maybe with a suffix. `4M` and `4MiB` are powers of 1024, as in
/// the API; `4MB` is a power of 1000, as in dd. No other reader of sizes is on a command line.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let error = || format!("{text:?} is not a size. Use bytes or a suffix, for example 4M");
    let is_unit = |number: &&str| number.ends_with(['k', 'K', 'M', 'G', 'T']);
    let number = text.strip_suffix("iB").filter(is_unit).unwrap_or(text);
    if let Some(decimal) = number.strip_suffix('B').filter(is_unit) {
        let (digits, unit) = decimal.split_at(decimal.len() - 1);
        let power = 1 + "kMGT".find(&unit.replace('K', "k")).unwrap_or(0) as u32;
        let factor = 1000_u64.pow(power);
        return bytes(digits)
            .ok()
            .filter(|_| !digits.ends_with(|last: char| !last.is_ascii_digit()))
            .and_then(|number| number.checked_mul(factor))
            .ok_or_else(error);
    }
    // Shells and C read a leading zero as octal; white space is a mistake.
    let is_octal = number.len() > 1 && number.starts_with('0');
    if is_octal || number.contains(char::is_whitespace) {
        return Err(error());
    }
    crate::wire::parse_size(number).map_err(|_| error())
}

/// Reads one of a few words, which shells complete and whose list an error shows.
pub(super) fn one_of<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

/// Reads the format of an image.
pub(super) fn format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|word| word.parse())
}

/// Reads how holes are checked.
pub(super) fn holes() -> impl TypedValueParser<Value = Holes> {
    one_of(&["trust", "sample", "read"])
}

/// Reads how hard to compress.
pub(super) fn compression() -> impl TypedValueParser<Value = Compression> {
    one_of(&[
        "auto", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12",
    ])
}

/// Reads CHUNK.
pub(super) fn chunk(text: &str) -> Result<NonZeroU64, String> {
    let bytes = bytes(text)?;
    if bytes > CHUNK_BYTES_MAX {
        return Err(format!(
            "{text:?} is too large a chunk. Use at most 1G, which is {CHUNK_BYTES_MAX} bytes"
        ));
    }
    NonZeroU64::new(bytes).ok_or_else(|| {
        "a chunk has at least one byte. Use bytes or a suffix, for example 4M".to_owned()
    })
}

/// Reads CHUNK of a transfer, which sends or fetches one chunk with each request. The original
/// scripts accept any chunk, and so do the programs that replace them.
pub(super) fn transfer_chunk(text: &str) -> Result<NonZeroU64, String> {
    let chunk = chunk(text)?;
    match chunk.get() < CHUNK_BYTES_MIN && command_line::is_one_program() {
        true => Err(format!(
            "{text:?} is too small a chunk, because each one needs a request. Use at least 4K, which is {CHUNK_BYTES_MIN} bytes"
        )),
        false => Ok(chunk),
    }
}

/// Reads the size of a disk.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("a disk has at least one byte. Use bytes or a suffix, for example 20G".to_owned()),
        bytes if bytes >= i64::MAX.cast_unsigned() => {
            Err("larger than a disk can be. Use bytes or a suffix, for example 20G".to_owned())
        }
        bytes => Ok(bytes),
    }
}

/// Reads a time.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a time. Use a number and a unit, for example 30s, 15m or 2h")
    })
}

/// Reads a SHA-256.
pub(super) fn sha256(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|_| {
        "not a SHA-256. It has 64 hexadecimal digits, as sha256sum prints them".to_owned()
    })
}

/// Reads how many requests may be in flight.
pub(super) fn jobs(text: &str) -> Result<NonZeroU32, String> {
    const JOBS_MAX: u32 = 256;
    match text.parse::<NonZeroU32>() {
        Ok(jobs) if jobs.get() <= JOBS_MAX => Ok(jobs),
        _ => Err(format!(
            "{text:?} is not a number of requests. Use 1 to {JOBS_MAX}"
        )),
    }
}

/// Reads a whole number.
pub(super) fn number<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| {
        let (rule, hint) = match error.kind() {
            IntErrorKind::Zero => ("must be at least 1", "1 or more"),
            IntErrorKind::PosOverflow => ("is too large", "a smaller number"),
            IntErrorKind::NegOverflow => ("is too small", "a larger number"),
            _ => ("is not a whole number", "digits"),
        };
        format!("{text:?} {rule}. Use {hint}, for example 3")
    })
}

/// Reads how long to wait for progress.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    match time(text)? {
        time if time >= Duration::from_millis(100) => Ok(time),
        _ => Err("the time is too short. Use at least 100ms, for example 30s".into()),
    }
}

/// Reads a number of bytes per second.
pub(super) fn rate(text: &str) -> Result<NonZeroU64, String> {
    const RATE_MIN: u64 = 1024;
    let rate = bytes(text)?;
    match NonZeroU64::new(rate) {
        Some(rate) if rate.get() >= RATE_MIN => Ok(rate),
        _ => Err(format!(
            "the rate is too low. Use at least {RATE_MIN} bytes per second, for example 20M"
        )),
    }
}

/// How large a drive is to be for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grow {
    /// A total size in bytes.
    To(u64),
    /// This many bytes more than the image.
    By(u64),
}

impl Grow {
    /// Bytes of the drive for an image of `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the image does not fit, or it is more than any drive.
    pub(super) fn applied_to(self, size: u64) -> crate::Result<u64> {
        let refuse = |what| Err(Error::new(ErrorKind::Usage, what));
        match self {
            Self::To(to) if to < size => refuse(format!(
                "--grow asks for a drive of {}, and the image has {}",
                exact_size(to),
                exact_size(size)
            ))
            .map_err(|error| {
                let binary = binary_size(to).filter(|(_, bytes)| *bytes >= size);
                error.hint_to(match binary {
                    Some((text, _)) => {
                        format!("Did you mean --grow {text}? Or give what is added: --grow +10G")
                    }
                    None => "Say how much larger it is to be, as in --grow +10G".to_owned(),
                })
            }),
            Self::To(to) => Ok(to),
            Self::By(by) => match size.checked_add(by) {
                Some(to) => Ok(to),
                None => refuse(format!(
                    "{} and {} more are more than any drive has",
                    exact_size(size),
                    exact_size(by)
                )),
            },
        }
    }
}

/// The same number in the binary unit, with its bytes, for bytes that are a whole number of a
/// decimal one: 40GB is 40 * 1000^3, and the image has perhaps 40GiB, which is 40 * 1024^3.
fn binary_size(bytes: u64) -> Option<(String, u64)> {
    let units = [("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)];
    let (unit, power) = units
        .into_iter()
        .find(|(_, power)| bytes > 0 && bytes.is_multiple_of(1000_u64.pow(*power)))?;
    let number = bytes / 1000_u64.pow(power);
    let bytes = number.checked_mul(1024_u64.pow(power))?;
    Some((format!("{number}{unit}"), bytes))
}

/// Reads how large a drive is to be.
pub(super) fn grow(text: &str) -> Result<Grow, String> {
    match text.strip_prefix('+') {
        Some(by) => bytes(by).map(Grow::By),
        None => bytes(text).map(Grow::To),
    }
}

/// An image that is read.
#[derive(Clone, PartialEq, Eq, clap::Args)]
pub(super) struct ImageArguments {
    /// Treat IMAGE as raw, qcow2, vmdk, vdi, vhd or vhdx
    ///
    /// By default the content decides, and a block device is raw. Use raw for a raw image that
    /// somebody you do not trust could write to: it could be made to look like another format.
    #[arg(long, value_name = "FORMAT", value_parser = format(), hide_possible_values = true)]
    pub(super) format: Option<Format>,

    /// Select the disk in an archive (OVA, tar or zip) by its name
    ///
    /// By default it is the disk that boots, or the only one. --format is then the format of that
    /// disk.
    #[arg(long, value_name = "NAME", hide_short_help = true, help_heading = help::IMAGE)]
    pub(super) disk: Option<String>,

    /// Allow a backing file of IMAGE, or a directory of them
    ///
    /// May be given more than once.
    #[arg(long, value_name = "PATH", hide_short_help = true, help_heading = help::IMAGE)]
    pub(super) allow_backing: Vec<PathBuf>,

    /// Choose how holes are checked: trust, sample or read
    ///
    /// Holes are parts that the file system reports as empty, which can be wrong. trust skips them,
    /// sample reads some bytes of each hole, and read reads all bytes. The default is sample, or
    /// read for an upload with --checksum, --sha256, --sha256-file or --verify full. On Windows and
    /// macOS, all holes are always read.
    #[arg(long, value_name = "HOW", value_parser = holes(), hide_possible_values = true, hide_short_help = true, help_heading = help::IMAGE)]
    pub(super) holes: Option<Holes>,

    /// Disk image, block device or URL of an image; - is stdin
    ///
    /// It may be compressed with gzip, xz, zstd, bzip2, lz4, lzma, lzip or zip.
    #[arg(value_name = "IMAGE", add = candidates::files_or_stdio())]
    pub(super) path: PathBuf,
}

impl fmt::Debug for ImageArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageArguments")
            .field("format", &self.format)
            .field("disk", &self.disk)
            .field("allow_backing", &self.allow_backing)
            .field("holes", &self.holes)
            .field("image", &self.shown())
            .finish()
    }
}

/// The URL that an argument is, if it is meant to be one.
pub(super) fn web_url(path: &Path) -> Result<Option<WebUrl>> {
    match path.to_str() {
        Some(text) if WebUrl::is_meant(text) => text.parse().map(Some),
        _ => Ok(None),
    }
}

/// Opens an image: a file, stdin, or a URL that is fetched as `web` says.
///
/// # Errors
/// [`ErrorKind::Usage`] if it would be read from the keyboard; those of [`Image::open`],
/// [`Image::open_stdin`] and [`open_web`].
pub(super) async fn open_image(
    path: &Path,
    options: ImageOptions,
    web: impl FnOnce() -> Result<WebConfig>,
) -> Result<Image> {
    if let Some(url) = web_url(path)? {
        return open_web(&url, &options, &web()?).await;
    }
    let (path, is_stdin) = (path.to_owned(), is_stdin(path));
    if is_stdin && std::io::stdin().is_terminal() {
        let what = "Standard input is a terminal, and not an image";
        return Err(Error::new(ErrorKind::Usage, what)
            .hint_to("Name a file instead of -, or pipe an image into the command"));
    }
    // Determining the size of gzip data, or reading the map of a large image, takes a while.
    let opened = move || match is_stdin {
        true => Image::open_stdin(&options),
        false => Image::open(&path, &options),
    };
    blocking(opened).await
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl ImageArguments {
    /// The URL that it is, if it is one.
    pub(super) fn url(&self) -> Result<Option<WebUrl>> {
        web_url(&self.path)
    }

    /// Whether it is stdin.
    pub(super) fn is_stdin(&self) -> bool {
        is_stdin(&self.path)
    }

    /// Its base name.
    pub(super) fn name(&self) -> Result<String> {
        Ok(match self.url()? {
            Some(url) => url.base_name(),
            None => {
                let base = self.path.file_name().unwrap_or_default();
                base.to_string_lossy().into_owned()
            }
        })
    }

    /// What may be shown of it: of a URL the last part of its path, since there may be
    /// secrets in the others.
    pub(super) fn shown(&self) -> &Path {
        match self.path.to_str() {
            Some(text) if WebUrl::is_meant(text) => {
                let path = text.split(['?', '#']).next().unwrap_or_default();
                let path = path.split_once("://").map_or(path, |(_, rest)| rest);
                let after = path.split_once('/').map_or("", |(_, path)| path);
                Path::new(after.rsplit('/').next().unwrap_or_default())
            }
            _ => &self.path,
        }
    }

    /// How to open it.
    pub(super) fn options(&self) -> ImageOptions {
        ImageOptions {
            format: self.format,
            disk: self.disk.clone(),
            allow_backing: self.allow_backing.clone(),
            stream: StreamOptions::default(),
        }
    }
}

/// How progress is shown on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ProgressMode {
    /// A bar on a terminal, plain lines elsewhere
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line every 10 s
    Plain,
    /// JSON objects, a line each
    Json,
    /// Nothing
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_flags_read_sizes_alike() {
        for (text, expected) in [
            ("0", 0),
            ("5242880", 5_242_880),
            ("4k", 4096),
            ("4M", 4 << 20),
            ("4MiB", 4 << 20),
            ("4MB", 4_000_000),
            ("1kB", 1000),
            ("1KB", 1000),
            ("2TB", 2_000_000_000_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        let bad = [
            "",
            "01",
            "4 M",
            "-1",
            "+1",
            " 1",
            "1.5G",
            "B",
            "iB",
            "MiB",
            "4B",
            "4iB",
            "4m",
            "0x10",
            "99999999999999999999",
        ];
        for bad in bad {
            let error = bytes(bad).unwrap_err();
            assert_eq!(
                error,
                format!("{bad:?} is not a size. Use bytes or a suffix, for example 4M")
            );
        }
        assert!(chunk("0").is_err());
        assert!(chunk("1073741825").is_err());
        assert_eq!(chunk("1").map(NonZeroU64::get), Ok(1));
    }

    #[test]
    fn grow_takes_a_total_size_or_an_increment() {
        let grown = |text: &str, size| {
            let grow = grow(text).unwrap();
            grow.applied_to(size).map_err(|error| error.kind())
        };
        assert_eq!(grown("40G", 5), Ok(40 << 30));
        assert_eq!(grown("+10G", 5), Ok((10 << 30) + 5));
        assert_eq!(grown("5", 5), Ok(5));
        assert_eq!(grown("4", 5), Err(ErrorKind::Usage));
        assert_eq!(grown("+5", u64::MAX - 4), Err(ErrorKind::Usage));
        let hint = |text: &str, size| {
            let error = grow(text).unwrap().applied_to(size).unwrap_err();
            error.hint().unwrap().to_string()
        };
        assert!(hint("40GB", 40 << 30).starts_with("Did you mean --grow 40GiB? "));
        assert!(hint("40000000000", 40 << 30).starts_with("Did you mean --grow 40GiB? "));
        // The binary unit would not help.
        assert!(!hint("40GB", 50 << 30).contains("mean"));
        assert!(!hint("39G", 40 << 30).contains("mean"));
        for bad in ["", "+", "++1G", "-1G", "1.5G", "10 GB"] {
            assert!(grow(bad).is_err(), "{bad}");
        }
    }
}
