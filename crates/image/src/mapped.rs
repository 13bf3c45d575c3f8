//! A disk in an image format, with its backing files or the several files that it consists of.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use openhosting_system::{FileId, is_of_drive_letter, path_of_bytes};

use super::format::{
    BackingName, DISK_BYTES_MAX, Format, Layout, Packed, Part, Place, Run, checked_run, parts_of,
    survey,
};
use super::holes::{FalseHole, Holes};
use super::{Disk, Fingerprint, RawImage, Use};
use crate::advice;
use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};

/// Maximum depth of backing files. Each is an open file, and a read may have to ask all of them.
/// Chains have a few; the value is a choice.
const LAYERS_MAX: usize = 64;
/// Decompressed units in memory, because a chunk may begin or end within one, and the next chunk
/// needs it again. Several threads read at the same time, so there are a few.
const UNPACKED_MAX: usize = 4;

/// An open image in a format with a map.
#[derive(Debug)]
pub struct MappedImage {
    /// The file of the image, and its format.
    file: RawImage,
    format: Format,
    size: u64,
    /// The first layer that has a byte of the disk determines it; backing files come after the
    /// image. If the disk consists of several files, their parts do not overlap.
    layers: Vec<Layer>,
    fingerprint: Fingerprint,
    unpacked: Mutex<Vec<Unpacked>>,
}

/// The part of a disk in one file.
#[derive(Debug)]
struct Layer {
    layout: Box<dyn Layout>,
    /// The bytes of the disk that it may have.
    part: Range<u64>,
}

/// A decompressed unit: its layer, its offset in the disk of that layer, and its bytes.
type Unpacked = (usize, u64, Arc<[u8]>);

impl MappedImage {
    /// Opens a file of this format and its backing files, if each is listed in `allowed` or is
    /// below a listed directory.
    pub(super) fn open(file: RawImage, format: Format, allowed: &[PathBuf]) -> Result<Self> {
        if let Some(parts) = parts_of(&file, format)? {
            return Self::in_parts(file, format, parts);
        }
        let mut seen = HashSet::new();
        let mut layers: Vec<Layer> = Vec::new();
        let main = file.clone();
        let mut next = Some((file, format));
        while let Some((file, format)) = next.take() {
            // A file without a name, such as a descriptor, has no backing file beside it.
            seen.extend(std::fs::canonicalize(file.path()));
            let layout = format.open(file)?;
            survey(&*layout)?;
            if let Some(backing) = layout.backing() {
                let (path, format) = resolve(&*layout, backing, allowed)?;
                let is_loop = seen.contains(&path);
                if is_loop || layers.len() + 1 == LAYERS_MAX {
                    let why = match is_loop {
                        true => "are written on top of each other in a circle",
                        false => "are too many",
                    };
                    let what = format!("The files that {} needs {why}", layout.container().name());
                    return Err(Error::new(ErrorKind::Image, what));
                }
                next = Some((opened(&path)?, format));
            }
            // Beyond the end of a file there are zeros, whatever its backing file has there.
            let end = layers.last().map_or(u64::MAX, |layer| layer.part.end);
            let part = 0..layout.size().min(end);
            layers.push(Layer { layout, part });
        }
        let size = layers.first().map_or(0, |layer| layer.part.end);
        Ok(Self::of(main, format, size, layers))
    }

    /// Opens a disk that consists of several files.
    fn in_parts(file: RawImage, format: Format, parts: Vec<Part>) -> Result<Self> {
        let mut layers = Vec::new();
        let mut size = 0_u64;
        for (len, layout) in parts {
            let end = size.checked_add(len).filter(|end| *end <= DISK_BYTES_MAX);
            let part = size..end.ok_or_else(|| {
                let what = format!(
                    "{} describes a disk larger than any can be",
                    file.path().display()
                );
                Error::new(ErrorKind::Image, what)
            })?;
            size = part.end;
            if let Some(layout) = layout {
                survey(&*layout)?;
                layers.push(Layer { layout, part });
            }
        }
        Ok(Self::of(file, format, size, layers))
    }

    fn of(file: RawImage, format: Format, size: u64, layers: Vec<Layer>) -> Self {
        let mut image = Self {
            file,
            format,
            size,
            layers,
            fingerprint: Fingerprint::default(),
            unpacked: Mutex::default(),
        };
        let prints = image.files().map(RawImage::fingerprint);
        image.fingerprint = Fingerprint::of_all(format.name(), prints);
        image
    }

    /// Opens a file that is being written. Its map refers to everything that is in it, and possibly
    /// to more.
    pub(super) fn unfinished(file: RawImage, format: Format) -> Result<Self> {
        let layout = format.open(file.clone())?;
        Ok(Self {
            fingerprint: file.fingerprint().clone(),
            size: layout.size(),
            layers: vec![Layer {
                part: 0..layout.size(),
                layout,
            }],
            file,
            format,
            unpacked: Mutex::default(),
        })
    }

    /// All files of the image, each once, and its own first.
    fn files(&self) -> impl Iterator<Item = &RawImage> {
        let layers = self.layers.iter();
        let others = layers.map(|layer| &layer.layout.container().file);
        let mut seen = HashSet::from([self.file.path()]);
        std::iter::once(&self.file).chain(others.filter(move |file| seen.insert(file.path())))
    }

    /// Whether the content of the disk also depends on other files than its own.
    pub(super) fn is_in_several_files(&self) -> bool {
        self.files().nth(1).is_some()
    }

    /// The format of the image.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of a sector of the disk, if the format states them.
    pub(super) fn sector(&self) -> Option<u64> {
        self.layers.first().and_then(|layer| layer.layout.sector())
    }

    /// The image's own file.
    pub(super) fn file(&self) -> &RawImage {
        &self.file
    }

    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.files().try_for_each(RawImage::check_unchanged)
    }

    /// As [`RawImage::decide_holes`], for every file.
    pub(super) fn decide_holes(&self, how: Holes) -> Vec<FalseHole> {
        self.files()
            .filter_map(|file| file.decide_holes(how))
            .collect()
    }

    /// Other uses of the devices, or of devices that are made from the files.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        self.files().flat_map(RawImage::uses).collect()
    }

    /// The run that contains `offset` in the first layer that has it, and the number of that layer.
    fn run_at(&self, offset: u64) -> Result<(usize, Run)> {
        let mut end = self.size;
        for (number, layer) in self.layers.iter().enumerate() {
            let Range { start, end: last } = layer.part;
            if offset < start {
                end = end.min(start);
            }
            if !layer.part.contains(&offset) {
                continue;
            }
            let run = checked_run(&*layer.layout, offset - start)?;
            end = end.min(run.end.saturating_add(start)).min(last);
            if run.place != Place::Backing {
                return Ok((number, Run { end, ..run }));
            }
        }
        // No layer has it.
        let run = Run {
            end,
            place: Place::Zero,
            table: None,
        };
        Ok((0, run))
    }

    /// Fills `bytes` from byte `from` of a compressed unit of a layer.
    fn unpack(&self, number: usize, packed: &Packed, from: u64, bytes: &mut [u8]) -> Result<()> {
        let Some(Layer { layout: layer, .. }) = self.layers.get(number) else {
            return Ok(());
        };
        // Nothing beyond the end of the disk has to be in the unit.
        let unit = packed.unit.1.min(layer.size()) - packed.unit.0;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        if bytes.len() as u64 == unit {
            return layer.unpack(packed, bytes);
        }
        // Units of a hostile image may share bytes of the file, and still differ in their length.
        let start = packed.unit.0;
        let unpacked = match self.cached(number, start) {
            Some(unpacked) => unpacked,
            None => {
                let mut unpacked = vec![0; usize::try_from(unit).unwrap_or(0)];
                layer.unpack(packed, &mut unpacked)?;
                let unpacked: Arc<[u8]> = unpacked.into();
                if let Ok(mut cached) = self.unpacked.lock() {
                    if cached.len() == UNPACKED_MAX {
                        cached.remove(0);
                    }
                    cached.push((number, start, Arc::clone(&unpacked)));
                }
                unpacked
            }
        };
        let part = unpacked.get(from..from.saturating_add(bytes.len()));
        let part = part.ok_or_else(|| {
            let what = format!("Byte {from} is beyond the end of a compressed unit");
            Error::new(ErrorKind::Bug, what)
        })?;
        bytes.copy_from_slice(part);
        Ok(())
    }

    /// The bytes of the unit of a layer that begins at byte `start` of it.
    fn cached(&self, number: usize, start: u64) -> Option<Arc<[u8]>> {
        let cached = self.unpacked.lock().ok()?;
        let found = cached
            .iter()
            .find(|unit| (unit.0, unit.1) == (number, start))?;
        Some(Arc::clone(&found.2))
    }
}

impl Disk for MappedImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut offset = offset;
        while offset < self.size() {
            let (number, run) = self.run_at(offset)?;
            match (run.place, self.layers.get(number)) {
                (Place::Packed(_), _) => return Ok(Some(offset..run.end)),
                (Place::File(at), Some(layer)) => {
                    // Allocated bytes may still be in a hole of the file.
                    let len = run.end - offset;
                    let data = layer
                        .layout
                        .container()
                        .file
                        .data_after(at)
                        .unwrap_or(u64::MAX..u64::MAX);
                    if data.start < at + len {
                        let start = offset + data.start.saturating_sub(at);
                        return Ok(Some(start..offset + (data.end.min(at + len) - at)));
                    }
                }
                _ => {}
            }
            offset = run.end;
        }
        Ok(None)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let (mut rest, mut offset) = (bytes, offset);
        while !rest.is_empty() {
            if offset >= self.size() {
                let what = format!("Byte {offset} is beyond the end of the disk");
                return Err(Error::new(ErrorKind::Bug, what));
            }
            let (number, run) = self.run_at(offset)?;
            let len = usize::try_from(run.end - offset).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(len.min(rest.len()));
            match (run.place, self.layers.get(number)) {
                (Place::File(at), Some(layer)) => {
                    layer.layout.container().file.read_at(part, at)?;
                }
                (Place::Packed(packed), Some(layer)) => {
                    let from = offset - layer.part.start - packed.unit.0;
                    self.unpack(number, &packed, from, part)?;
                }
                _ => part.fill(0),
            }
            offset += part.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.check_unchanged()
    }
}

/// The path without links.
fn real(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|cause| {
        let what = format!("Cannot open {}", path.display());
        Error::new(ErrorKind::Image, what).because(cause)
    })
}

/// Opens the file at a path without links that was allowed.
///
/// # Errors
/// [`ErrorKind::Image`] if it cannot be opened.
fn opened(path: &Path) -> Result<RawImage> {
    let file = RawImage::open(path)?;
    check_is_at(&file, path)?;
    Ok(file)
}

/// Fails unless a file is the one at a path without links: whoever can write to a directory above
/// it may have put a link there before the file was opened.
fn check_is_at(file: &RawImage, path: &Path) -> Result<()> {
    let is_same = || {
        let id = file.fingerprint().file_id();
        // A device has no identity, and cannot be put into a directory by an ordinary user.
        file.is_device() || FileId::at(path).is_ok_and(|there| there == id)
    };
    match real(path)? == path && is_same() {
        true => Ok(()),
        false => {
            let what = format!("{} was replaced while it was opened", path.display());
            Err(Error::new(ErrorKind::Image, what))
        }
    }
}

/// The backing file of a layer and its format, if both are stated and the user allowed the file.
fn resolve(
    layer: &dyn Layout,
    backing: &BackingName,
    allowed: &[PathBuf],
) -> Result<(PathBuf, Format)> {
    let shown = String::from_utf8_lossy(&backing.name);
    let refuse = |why: &str| {
        let what = format!(
            "{} needs the file {shown:?}, {why}",
            layer.container().name()
        );
        Error::new(ErrorKind::Image, what)
    };
    if allowed.is_empty() {
        return Err(refuse("which was not allowed").hint_to(advice![
            "If you trust the image, name that file, or a directory above it, with ",
            Remedy::AllowBacking,
        ]));
    }
    // A scheme before the first slash, as in nbd: or json:.
    let scheme = backing.name.split(|byte| *byte == b'/').next();
    let has_scheme = scheme.is_some_and(|scheme| scheme.contains(&b':'));
    if backing.name.contains(&0) || has_scheme && !is_of_drive_letter(&backing.name) {
        return Err(refuse("which is no path"));
    }
    let Some(format) = &backing.format else {
        let container = layer.container();
        let rebase = container.command(|name| {
            let format = container.format;
            format!("qemu-img rebase -u -f {format} -F FORMAT -b BACKING {name}")
        });
        return Err(refuse("and does not state its format").hint_to(format!(
            "Guessing the format is not safe. Set it with: {rebase}"
        )));
    };
    let format = match String::from_utf8_lossy(format).as_ref() {
        // The name in QEMU.
        "vpc" => Format::Vhd,
        format => format
            .parse()
            .map_err(|cause: Error| refuse("of a format that is not read").because(cause))?,
    };
    let beside = layer
        .container()
        .file
        .path()
        .parent()
        .unwrap_or(Path::new(""));
    let path = beside.join(path_of_bytes(&backing.name));
    let path = real(&path)?;
    for allowed in allowed {
        if path.starts_with(real(allowed)?) {
            return Ok((path, format));
        }
    }
    Err(refuse("which was not allowed").hint_to(advice![
        format!(
            "It is {}: if you trust the image, name it with ",
            path.display()
        ),
        Remedy::AllowBacking,
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_file_that_was_replaced_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(directory.path())
            .unwrap()
            .join("base");
        std::fs::write(&path, "base").unwrap();
        let file = opened(&path).unwrap();
        std::fs::rename(&path, path.with_extension("moved")).unwrap();
        assert!(check_is_at(&file, &path).is_err());
        std::fs::write(&path, "other").unwrap();
        assert!(check_is_at(&file, &path).is_err());
        // By another way.
        let around = directory
            .path()
            .join(".")
            .join("..")
            .join(path.parent().and_then(Path::file_name).unwrap());
        assert!(opened(&around.join("base")).is_err());
    }
}
