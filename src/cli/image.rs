//! `openhosting image info`: what an image contains, and how many bytes an upload would send.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::arguments::{self, ImageArguments, open_image};
use super::bar::Bar;
use super::output::{CommandOutput, OutputForm};
use super::screen::{stdout_columns, stdout_lines};
use super::wait_lines::{self, WaitLines};
use super::{access, candidates, help, screen};
use crate::api::ClientConfig;
use crate::codec::Level;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, check_replace, create_new};
use crate::image::{Census, Disk, FalseHole, Format, Gpt, Holes, Image, StreamFormat, StreamImage};
use crate::locks::lock;
use crate::plan::{CHUNK_BYTES_DEFAULT, Plan};
use crate::transfer::blocking;

const PROGRAM: &str = "openhosting image";
pub(super) const FORM: OutputForm = OutputForm::new(PROGRAM, "image-info/1").with_j();
/// The levels that are tried: no compression, the default, and the default and maximum of gzip.
const LEVELS: [&str; 4] = ["0", "1", "6", "9"];
/// Parts of the map in one line.
const COLUMNS: usize = 64;
/// Columns of a name. Its value begins behind it, after a space.
const NAME_WIDTH: usize = 12;
/// Lines of the map.
const LINES: u64 = 8;
/// The width and height in pixels of a part in the picture.
const PIXELS: usize = 14;

/// Examines disk images: files, and URLs of images
#[derive(Debug, Parser)]
#[command(name = "openhosting-image", bin_name = PROGRAM, version, arg_required_else_help = false, after_long_help = help::after("image"))]
pub(super) struct ImageCommand {
    #[command(subcommand)]
    what: ImageSubcommand,
}

#[derive(Debug, Subcommand)]
enum ImageSubcommand {
    /// Shows what an image holds, and what an upload would send
    ///
    /// Nothing is sent. Up to 32 chunks of the data are read; if there are more, the share of
    /// zeros and the compressed sizes are estimates. Of an image on a web server, no data is read,
    /// and these values are not known.
    #[command(after_long_help = help::after("image-info"))]
    Info(InfoArguments),
}

#[derive(Debug, Args)]
struct InfoArguments {
    /// Print one JSON object instead of text
    #[arg(short = 'J', short_alias = 'j', long)]
    json: bool,

    /// Write a map of the data to FILE, as an SVG picture
    #[arg(long, value_name = "FILE", add = candidates::files())]
    map: Option<PathBuf>,

    /// Set the size of a chunk
    #[arg(short, long, value_name = "CHUNK", default_value_t = CHUNK_BYTES_DEFAULT, value_parser = arguments::chunk)]
    chunk: NonZeroU64,

    /// Trust the certificates in FILE (PEM) as well
    ///
    /// They are for an image on a web server.
    #[arg(long, value_name = "FILE", add = candidates::files(), hide_short_help = true, help_heading = help::ENDPOINT)]
    cacert: Option<PathBuf>,

    #[command(flatten)]
    image: ImageArguments,
}

/// The command.
pub(super) fn main(arguments: &ImageCommand) -> ExitCode {
    let ImageSubcommand::Info(info) = &arguments.what;
    FORM.run(info.json, async |mut stop| {
        stop.unless_asked(run(info)).await
    })
}

/// Opens the image. If it is on a web server, only headers and tables are fetched.
async fn open(info: &InfoArguments) -> Result<Image> {
    let patience = wait_lines::patience();
    let web = || {
        let certificates = info.cacert.as_deref().map(access::certificates);
        access::web(
            certificates.transpose()?,
            ClientConfig::default(),
            &patience,
        )
    };
    let opened = open_image(&info.image.path, info.image.options(), web);
    patience
        .watching(&mut WaitLines(FORM.program), opened)
        .await
}

async fn run(info: &InfoArguments) -> Result<CommandOutput> {
    if let Some(map) = &info.map {
        check_new(map)?;
    }
    let (image, chunk, map) = (open(info).await?, info.chunk, info.map.clone());
    let is_format_given = info.image.format.is_some();
    let holes = info.image.holes.unwrap_or_default();
    let progress = ProgressLine::show(info.image.shown());
    let mut report = progress.reporter();
    blocking(move || {
        let survey = ImageSurvey::of(image, chunk, is_format_given, holes, &mut report)?;
        if let Some(path) = &map {
            write_new(path, &svg(survey.census()?, survey.image.format()))?;
        }
        Ok(CommandOutput::new(text(&survey), object(&survey)))
    })
    .await
}

/// The line of progress, if stderr is a terminal. It is removed when this is dropped, which a
/// signal does while the image is still being read.
struct ProgressLine(Option<Arc<Mutex<Bar>>>);

impl ProgressLine {
    /// Shows the line for this image.
    fn show(image: &Path) -> Self {
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let bar = || Arc::new(Mutex::new(Bar::new("Examine", &name, Instant::now())));
        let bar = screen::can_draw().then(bar);
        if let Some(bar) = &bar {
            screen::show(Arc::clone(bar));
        }
        Self(bar)
    }

    /// Sets how many bytes were read, and how many there are to read.
    fn reporter(&self) -> impl FnMut(u64, u64) + use<> {
        let bar = self.0.clone();
        move |done, all| {
            if let Some(bar) = &bar {
                let mut bar = lock(bar);
                bar.total = Some(all);
                bar.at(done, done, Instant::now());
            }
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.0.is_some() {
            screen::end();
        }
    }
}

/// The results of the examination.
struct ImageSurvey {
    image: Image,
    chunk: NonZeroU64,
    /// The measured content, if the disk can be read at any position and its map is known.
    census: Option<Census>,
    /// Lines that an upload of it prints.
    notices: Vec<String>,
    /// Reported holes that hold data.
    false_holes: Vec<FalseHole>,
}

impl ImageSurvey {
    /// Examines an image. `is_format_given` is set if the user named the format. Blocks.
    fn of(
        image: Image,
        chunk: NonZeroU64,
        is_format_given: bool,
        holes: Holes,
        report: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let false_holes = image.decide_holes(holes);
        let mut notices = image.notices(is_format_given);
        let table = image
            .disk()
            .and_then(|disk| Some((Gpt::of(disk)?, disk.size())));
        notices.extend(table.and_then(|(table, size)| table.misplaced(size, size)));
        let levels = LEVELS.map(str::parse::<Level>);
        let levels = levels.into_iter().collect::<Result<Vec<_>>>()?;
        let disk = match &image {
            Image::Stream(_) => None,
            // The holes of a raw image on a web server are unknown.
            Image::Raw(raw) if !raw.is_local() => None,
            Image::Raw(raw) => Some(raw as &dyn Disk),
            Image::Mapped(mapped) => Some(&**mapped as &dyn Disk),
        };
        let census = disk.map(|disk| {
            let plan = Plan::new(disk.size(), chunk);
            let parts = COLUMNS as u64 * LINES;
            match image.is_local() {
                true => Census::take(disk, plan, parts, &levels, report),
                false => Census::of_map(disk, plan, parts, &levels),
            }
        });
        let census = census.transpose()?;
        image.check_unchanged()?;
        Ok(Self {
            image,
            chunk,
            census,
            notices,
            false_holes,
        })
    }

    /// The census, or an error if a picture needs it and it does not exist.
    fn census(&self) -> Result<&Census> {
        self.census.as_ref().ok_or_else(|| {
            let what = match self.packed() {
                Some(_) => "There is no map of a packed image without unpacking it",
                None => "There is no map of a raw image without reading all of it",
            };
            Error::new(ErrorKind::Image, what)
        })
    }

    /// The stream, if the image as a whole is compressed.
    fn packed(&self) -> Option<&StreamImage> {
        match &self.image {
            Image::Stream(stream) if stream.format() != StreamFormat::Raw => Some(stream),
            _ => None,
        }
    }

    fn size(&self) -> Option<u64> {
        self.image.length().expected()
    }

    /// The number of chunks, if known.
    fn chunks(&self) -> Option<u64> {
        self.size().map(|size| Plan::new(size, self.chunk).count())
    }
}

/// Writes a new file. It is an error if the file exists.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let file = create_new(path, Access::Usual);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| cannot_write(path, cause))
}

/// Checks before the image is read that [`write_new`] can write the file.
fn check_new(path: &Path) -> Result<()> {
    let can = match path.symlink_metadata() {
        Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
        Err(_) => check_replace(path, Access::Usual),
    };
    can.map_err(|cause| cannot_write(path, cause))
}

fn cannot_write(path: &Path, cause: std::io::Error) -> Error {
    if cause.kind() == std::io::ErrorKind::AlreadyExists {
        let what = format!("{} is there already", path.display());
        return Error::new(ErrorKind::Local, what)
            .hint_to("Nothing is overwritten: choose another name");
    }
    let what = format!("Cannot write the map {}", path.display());
    Error::new(ErrorKind::Local, what).because(cause)
}

/// The ratio `much / of`, in percent with one decimal.
fn percent(much: u64, of: u64) -> String {
    let tenths = u128::from(much) * 1000 / u128::from(of.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn bytes(size: u64) -> String {
    format!("{size} bytes, {}", HumanBytes(size))
}

/// Lines with a term and its explanation.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, name: &str, value: impl Display) {
        // A value that does not fit goes on below itself.
        for (index, part) in stdout_lines(&value.to_string(), NAME_WIDTH + 1)
            .iter()
            .enumerate()
        {
            let name = if index == 0 { name } else { "" };
            let _ = writeln!(self.0, "{name:<NAME_WIDTH$} {part}");
        }
    }
}

fn text(survey: &ImageSurvey) -> String {
    let mut text = Text::default();
    if let Some(member) = survey.image.member() {
        let others = match member.others.as_slice() {
            [] => String::new(),
            others => format!(" (others: {})", others.join(", ")),
        };
        text.line("Archived as", format!("{}{others}", member.name));
    }
    match (survey.packed(), &survey.census) {
        (Some(stream), _) => about_packed(&mut text, survey, stream),
        (None, None) => about_unknown(&mut text, survey),
        (None, Some(census)) => about_disk(&mut text, survey, census),
    }
    for notice in &survey.notices {
        text.line("Notice", notice);
    }
    text.0
}

fn about_packed(text: &mut Text, survey: &ImageSurvey, stream: &StreamImage) {
    let (format, method) = (survey.image.format(), stream.format());
    let not_known = || "not known before it is unpacked".to_owned();
    let packed = stream.packed_size();
    text.line("Format", format!("{format}, packed with {method}"));
    text.line("Packed", packed.map_or("not known".to_owned(), bytes));
    text.line("Disk", survey.size().map_or_else(not_known, bytes));
}

/// Describes a disk of which only the beginning was read.
fn about_unknown(text: &mut Text, survey: &ImageSurvey) {
    let not_known = || "not known before its end".to_owned();
    text.line("Format", survey.image.format());
    text.line("Disk", survey.size().map_or_else(not_known, bytes));
    if let Some(count) = survey.chunks() {
        text.line(
            "Chunks",
            format!("{count}, each of up to {} bytes", survey.chunk),
        );
    }
    let what = "zeros and compressed size: only the start of the image was read";
    text.line("Not known", what);
}

fn about_disk(text: &mut Text, survey: &ImageSurvey, census: &Census) {
    let (plan, allocated) = (&census.plan, census.allocated);
    let (size, count) = (plan.size(), plan.count());
    text.line("Format", survey.image.format());
    text.line("Disk", bytes(size));
    for hole in &survey.false_holes {
        text.line("Holes", hole);
    }
    let share = percent(allocated, size);
    text.line("Allocated", format!("{allocated} bytes, {share}"));
    let chunks = format!("{count}, each of up to {} bytes", plan.chunk_bytes());
    if census.knows_content() {
        let about = if census.is_exact() { "" } else { "about " };
        let wire = census.wire();
        let wire =
            wire.map(|(level, bytes)| format!("{about}{} at level {level}", HumanBytes(bytes)));
        let to_send = census.chunks_to_send();
        text.line("Zeros", format!("{about}{}", percent(census.zeros(), size)));
        text.line("Chunks", format!("{chunks}; {about}{to_send} to send"));
        // Two levels in a line, which then fits 80 columns.
        let wire: Vec<_> = wire.collect();
        for (index, levels) in wire.chunks(2).enumerate() {
            let name = if index == 0 { "On the wire" } else { "" };
            text.line(name, levels.join(", "));
        }
    } else {
        let with_data = census.data_chunks;
        text.line("Chunks", format!("{chunks}; {with_data} with data"));
        let what = "zeros and compressed size: no data was fetched";
        text.line("Not known", what);
    }
    let part = census.part;
    text.line(
        "Map",
        format!("each character is {part} bytes, darker with more data"),
    );
    let columns = stdout_columns().unwrap_or(COLUMNS).clamp(1, COLUMNS);
    for parts in census.map.chunks(columns) {
        text.0.extend(parts.iter().map(|data| shade(*data, part)));
        text.0.push('\n');
    }
}

/// The character for a part of the map, which is darker the more data it contains.
fn shade(data: u64, part: u64) -> char {
    const SHADES: [char; 4] = ['░', '▒', '▓', '█'];
    match data {
        0 => '·',
        // The last part may be shorter, so only the share of it that is data counts.
        _ => {
            let at = u128::from(data) * 4 / u128::from(part.max(1));
            SHADES[usize::try_from(at).unwrap_or(3).min(3)]
        }
    }
}

fn object(survey: &ImageSurvey) -> Value {
    let mut object = content(survey);
    if let Some(member) = survey.image.member() {
        object["archived_as"] = json!(member.name);
        object["other_disks"] = json!(member.others);
    }
    object
}

/// The keys about the content of the disk.
fn content(survey: &ImageSurvey) -> Value {
    let (format, size) = (survey.image.format().name(), survey.size());
    if let Some(stream) = survey.packed() {
        return json!({
            "format": format,
            "packed_with": stream.format().name(),
            "packed_bytes": stream.packed_size(),
            "disk_bytes": size,
            "notices": survey.notices,
        });
    }
    let census = survey.census.as_ref();
    let content = census.filter(|census| census.knows_content());
    let wire = content.map(|census| {
        let wire = census.wire();
        wire.map(|(level, bytes)| (level.to_string(), json!(bytes)))
            .collect::<serde_json::Map<_, _>>()
    });
    let mut object = json!({
        "format": format,
        "disk_bytes": size,
        "allocated_bytes": census.map(|census| census.allocated),
        "zero_bytes": content.map(Census::zeros),
        "chunk_bytes": survey.chunk,
        "chunks": survey.chunks(),
        "chunks_with_data": census.map(|census| census.data_chunks),
        "chunks_to_send": content.map(Census::chunks_to_send),
        "chunks_read": census.map_or(0, |census| census.sampled),
        "is_estimate": content.is_some_and(|census| !census.is_exact()),
        "wire_bytes": wire,
        "map_part_bytes": census.map(|census| census.part),
        "map_data_bytes": census.map(|census| &census.map),
        "notices": survey.notices,
    });
    if !survey.false_holes.is_empty() {
        let holes = survey.false_holes.iter();
        object["false_holes"] = holes
            .map(|hole| json!({"file": hole.file, "offset": hole.offset}))
            .collect();
    }
    object
}

/// The map as a picture with a square for each part, which is darker the more data it contains.
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
        // Even very little data must be visible.
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
