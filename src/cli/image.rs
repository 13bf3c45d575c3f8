//! `openhosting image info`: what an image holds and what sending it will cost.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::answer::{Answer, Form};
use super::arguments::{self, ImageArguments};
use super::signals::Heard;
use crate::codec::Level;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Census, Disk, Format, Image, StreamImage};
use crate::plan::{CHUNK_BYTES_DEFAULT, Plan};

const PROGRAM: &str = "openhosting image";
const FORM: Form = Form {
    program: PROGRAM,
    schema: "image-info/1",
    short: Some("-j"),
};
/// Levels that are tried: none, the default, and the default and highest of gzip.
const LEVELS: [&str; 4] = ["0", "1", "6", "9"];
/// Parts of the map in a line.
const COLUMNS: usize = 64;
/// Lines of the map.
const LINES: u64 = 8;
/// Pixels of a part in the picture.
const PIXELS: usize = 14;

/// Tells about disk images on this machine
#[derive(Debug, Parser)]
#[command(name = "openhosting-image", bin_name = PROGRAM, version)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tells what an image holds, and what sending it will cost
    ///
    /// It walks over the map of the image and reads up to 32 chunks of its data; with
    /// more data than that, what depends on content is an estimate. Nothing is sent.
    Info(Info),
}

#[derive(Debug, Args)]
struct Info {
    /// Print one JSON object instead of text (docs/json.md)
    #[arg(short, long)]
    json: bool,

    /// Write the map of what is allocated to FILE, as a picture in SVG
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,

    /// Size of chunks in bytes
    #[arg(short, long, value_name = "CHUNK", default_value_t = default_chunk(), value_parser = arguments::chunk)]
    chunk: NonZeroU64,

    #[command(flatten)]
    image: ImageArguments,
}

fn default_chunk() -> NonZeroU64 {
    NonZeroU64::new(CHUNK_BYTES_DEFAULT).unwrap_or(NonZeroU64::MIN)
}

/// The command.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    let arguments: Arguments = match FORM.parse(words) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let What::Info(info) = arguments.what;
    FORM.finish(info.json, &Heard::default(), run(&info))
}

fn run(info: &Info) -> Result<Answer> {
    if let Some(url) = info.image.url()? {
        let what = format!("{url} is not on this machine: info is for files and devices");
        return Err(Error::new(ErrorKind::Usage, what));
    }
    let image = Image::open(&info.image.path, &info.image.options())?;
    let disk = match &image {
        Image::Stream(stream) => return of_stream(info, stream),
        Image::Raw(image) => image as &dyn Disk,
        Image::Mapped(image) => &**image,
    };
    let levels = LEVELS.map(str::parse::<Level>);
    let levels = levels.into_iter().collect::<Result<Vec<_>>>()?;
    let plan = Plan::new(disk.size(), info.chunk);
    let census = Census::take(disk, plan, COLUMNS as u64 * LINES, &levels)?;
    image.check_unchanged()?;
    if let Some(path) = &info.map {
        write_new(path, &svg(&census, image.format()))?;
    }
    Ok(Answer::new(text(&census, &image), object(&census, &image)))
}

/// What is told of an image that is packed as a whole, which is not unpacked for it.
fn of_stream(info: &Info, stream: &StreamImage) -> Result<Answer> {
    if info.map.is_some() {
        let what = "There is no map of a packed image without unpacking it";
        return Err(Error::new(ErrorKind::Image, what));
    }
    let (size, packed) = (stream.length().expected(), stream.packed_size());
    let object = json!({
        "format": Format::Raw.name(),
        "packed_with": stream.format().name(),
        "packed_bytes": packed,
        "disk_bytes": size,
    });
    let bytes = |size: u64| format!("{size} bytes, {}", HumanBytes(size));
    let text = format!(
        "{:<12} raw, packed with {}\n{:<12} {}\n{:<12} {}\n",
        "Format",
        stream.format(),
        "Packed",
        packed.map_or("not known".to_owned(), bytes),
        "Disk",
        size.map_or("not known before it is unpacked".to_owned(), bytes),
    );
    Ok(Answer::new(text, object))
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| {
            let what = format!("Cannot write the map {}", path.display());
            let is_there = cause.kind() == std::io::ErrorKind::AlreadyExists;
            let error = Error::new(ErrorKind::Local, what).because(cause);
            match is_there {
                true => error.hint_to("Nothing is overwritten: choose another name"),
                false => error,
            }
        })
}

/// So much of so much, in tenths of a percent.
fn percent(much: u64, of: u64) -> String {
    let tenths = u128::from(much) * 1000 / u128::from(of.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn text(census: &Census, image: &Image) -> String {
    let size = census.plan.size();
    let about = if census.is_exact() { "" } else { "about " };
    let wire: Vec<_> = census
        .wire()
        .map(|(level, bytes)| format!("{about}{} at level {level}", HumanBytes(bytes)))
        .collect();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    if let Some(member) = image.member() {
        let others = match member.others.as_slice() {
            [] => String::new(),
            others => format!(" (others: {})", others.join(", ")),
        };
        line("Archived as", format!("{}{others}", member.name));
    }
    line("Format", image.format().to_string());
    line("Disk", format!("{size} bytes, {}", HumanBytes(size)));
    line(
        "Allocated",
        format!(
            "{} bytes, {}",
            census.allocated,
            percent(census.allocated, size)
        ),
    );
    line("Zeros", format!("{about}{}", percent(census.zeros(), size)));
    line(
        "Chunks",
        format!(
            "{} of {} bytes, {about}{} of them to send",
            census.plan.count(),
            census.plan.chunk_bytes(),
            census.chunks_to_send()
        ),
    );
    line("On the wire", wire.join(", "));
    line(
        "Map",
        format!("of parts of {} bytes, darker with more data", census.part),
    );
    for parts in census.map.chunks(COLUMNS) {
        text.extend(parts.iter().map(|data| shade(*data, census.part)));
        text.push('\n');
    }
    text
}

/// A character for a part of the map.
fn shade(data: u64, part: u64) -> char {
    const SHADES: [char; 4] = ['░', '▒', '▓', '█'];
    match data {
        0 => '·',
        // The last part may be shorter, and is not dark then.
        _ => {
            let at = u128::from(data) * 4 / u128::from(part.max(1));
            SHADES[usize::try_from(at).unwrap_or(3).min(3)]
        }
    }
}

fn object(census: &Census, image: &Image) -> Value {
    let wire: serde_json::Map<_, _> = census
        .wire()
        .map(|(level, bytes)| (level.to_string(), json!(bytes)))
        .collect();
    let mut object = json!({
        "format": image.format().name(),
        "disk_bytes": census.plan.size(),
        "allocated_bytes": census.allocated,
        "zero_bytes": census.zeros(),
        "chunk_bytes": census.plan.chunk_bytes(),
        "chunks": census.plan.count(),
        "chunks_with_data": census.data_chunks,
        "chunks_to_send": census.chunks_to_send(),
        "chunks_read": census.sampled,
        "is_estimate": !census.is_exact(),
        "wire_bytes": wire,
        "map_part_bytes": census.part,
        "map_data_bytes": census.map,
    });
    if let Some(member) = image.member() {
        object["archived_as"] = json!(member.name);
        object["other_disks"] = json!(member.others);
    }
    object
}

/// The map as a picture: a square for each part, the more data the darker.
fn svg(census: &Census, format: Format) -> String {
    let lines = census.map.len().div_ceil(COLUMNS);
    let (width, height) = (COLUMNS * PIXELS, lines * PIXELS + 2 * PIXELS);
    let size = census.plan.size();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"1\" y=\"14\">{format}, {}, {} allocated; a square is {}</text>\n",
        HumanBytes(size),
        percent(census.allocated, size),
        HumanBytes(census.part),
    );
    for (i, data) in census.map.iter().enumerate() {
        let (x, y) = (i % COLUMNS * PIXELS, i / COLUMNS * PIXELS + 2 * PIXELS);
        let offset = census.part.saturating_mul(i as u64);
        let part = census.part.min(size.saturating_sub(offset));
        let share = u128::from(*data) * 100 / u128::from(part.max(1));
        // What little there is should be seen.
        let opacity = if *data == 0 { 0 } else { share.clamp(15, 100) };
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" stroke=\"#cbd5e0\" \
             fill=\"#2b6cb0\" fill-opacity=\"{}.{:02}\"><title>byte {offset}: {}</title></rect>",
            opacity / 100,
            opacity % 100,
            percent(*data, part),
            side = PIXELS - 2,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_shades() {
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.0 %");
        let shades: String = [0, 1, 25, 50, 75, 99, 100]
            .iter()
            .map(|n| shade(*n, 100))
            .collect();
        assert_eq!(shades, "·░▒▓███");
    }
}
