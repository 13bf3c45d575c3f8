//! An image of a format with a map, and the files that it is written on top of.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::format::{BackingName, Format, Layout, Packed, Place, Run, checked_run, survey};
use super::{Disk, Fingerprint, RawImage, Use};
use crate::error::{Error, ErrorKind, Result};

/// Most files that are written on top of each other.
const LAYERS_MAX: usize = 64;
/// Unpacked units that are kept, since a chunk may begin or end within one.
const UNPACKED_MAX: usize = 4;

/// An open image of a format with a map.
#[derive(Debug)]
pub struct MappedImage {
    /// The image itself, and then what each is written on top of.
    layers: Vec<Box<dyn Layout>>,
    fingerprint: Fingerprint,
    unpacked: Mutex<Vec<Unpacked>>,
}

/// A unit that was unpacked: of which layer, from where, and its bytes.
type Unpacked = (usize, u64, Arc<[u8]>);

impl MappedImage {
    /// Opens a file of this format, and what it is written on top of as far as
    /// that is one of `allowed` or lies below one.
    pub(super) fn open(file: RawImage, format: Format, allowed: &[PathBuf]) -> Result<Self> {
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        let mut next = Some((file, format));
        while let Some((file, format)) = next.take() {
            // A file without a name, as of a descriptor, has no other beside it.
            seen.extend(std::fs::canonicalize(file.path()));
            let layer = format.open(file)?;
            survey(&*layer)?;
            if let Some(backing) = layer.backing() {
                let (path, format) = resolve(&*layer, backing, allowed)?;
                let is_loop = seen.contains(&path);
                if is_loop || layers.len() + 1 == LAYERS_MAX {
                    let why = match is_loop {
                        true => "are written on top of each other in a circle",
                        false => "are too many",
                    };
                    let what = format!("The files that {} needs {why}", layer.container().name());
                    return Err(Error::new(ErrorKind::Image, what));
                }
                next = Some((RawImage::open(&path)?, format));
            }
            layers.push(layer);
        }
        let prints = layers
            .iter()
            .map(|layer| layer.container().file.fingerprint());
        Ok(Self {
            fingerprint: Fingerprint::of_all(format.name(), prints),
            layers,
            unpacked: Mutex::default(),
        })
    }

    /// Opens a file that is being made: its map leads to all that is in it, and
    /// may lead to more.
    pub(super) fn unfinished(file: RawImage, format: Format) -> Result<Self> {
        let layer = format.open(file)?;
        Ok(Self {
            fingerprint: layer.container().file.fingerprint().clone(),
            layers: vec![layer],
            unpacked: Mutex::default(),
        })
    }

    /// The format of the image.
    pub fn format(&self) -> Format {
        self.layers
            .first()
            .map_or(Format::Raw, |layer| layer.container().format)
    }

    /// The image's own file.
    pub(super) fn file(&self) -> Option<&RawImage> {
        self.layers.first().map(|layer| &layer.container().file)
    }

    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.layers
            .iter()
            .try_for_each(|layer| layer.container().file.check_unchanged())
    }

    /// Who else uses the devices, or ones over the files.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        let files = self.layers.iter().map(|layer| &layer.container().file);
        files.flat_map(RawImage::uses).collect()
    }

    /// The run that holds `offset`, in the first layer that has it, and the number
    /// of that layer.
    fn run_at(&self, offset: u64) -> Result<(usize, Run)> {
        let mut end = self.size();
        for (number, layer) in self.layers.iter().enumerate() {
            if offset >= layer.size() {
                break;
            }
            let run = checked_run(&**layer, offset)?;
            end = end.min(run.end);
            if run.place != Place::Backing {
                return Ok((number, Run { end, ..run }));
            }
        }
        // Nobody has it.
        let run = Run {
            end,
            place: Place::Zero,
            table: None,
        };
        Ok((0, run))
    }

    /// Fills `bytes` from byte `from` of a packed unit of a layer.
    fn unpack(&self, number: usize, packed: &Packed, from: u64, bytes: &mut [u8]) -> Result<()> {
        let Some(layer) = self.layers.get(number) else {
            return Ok(());
        };
        // Beyond the end of the disk nothing has to be in it.
        let unit = packed.unit.1.min(layer.size()) - packed.unit.0;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        if bytes.len() as u64 == unit {
            return layer.unpack(packed, bytes);
        }
        let part = from..from.saturating_add(bytes.len());
        if let Some(unpacked) = self.kept(number, packed.at) {
            bytes.copy_from_slice(unpacked.get(part).unwrap_or_default());
            return Ok(());
        }
        let mut unpacked = vec![0; usize::try_from(unit).unwrap_or(0)];
        layer.unpack(packed, &mut unpacked)?;
        bytes.copy_from_slice(unpacked.get(part).unwrap_or_default());
        if let Ok(mut kept) = self.unpacked.lock() {
            if kept.len() == UNPACKED_MAX {
                kept.remove(0);
            }
            kept.push((number, packed.at, unpacked.into()));
        }
        Ok(())
    }

    fn kept(&self, number: usize, at: u64) -> Option<Arc<[u8]>> {
        let kept = self.unpacked.lock().ok()?;
        let found = kept.iter().find(|unit| (unit.0, unit.1) == (number, at))?;
        Some(Arc::clone(&found.2))
    }
}

impl Disk for MappedImage {
    fn size(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.size())
    }

    fn data_after(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut offset = offset;
        while offset < self.size() {
            let (number, run) = self.run_at(offset)?;
            match (run.place, self.layers.get(number)) {
                (Place::Packed(_), _) => return Ok(Some(offset..run.end)),
                (Place::File(at), Some(layer)) => {
                    // What is allocated may be a hole of the file all the same.
                    let len = run.end - offset;
                    let data = layer
                        .container()
                        .file
                        .data_after(at)?
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
                (Place::File(at), Some(layer)) => layer.container().file.read_at(part, at)?,
                (Place::Packed(packed), _) => {
                    self.unpack(number, &packed, offset - packed.unit.0, part)?;
                }
                _ => part.fill(0),
            }
            offset += part.len() as u64;
            rest = after;
        }
        Ok(())
    }
}

/// The file that a layer is written on top of and its format, if both are told
/// and the user allowed it.
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
        return Err(refuse("which was not allowed").hint_to(
            "If you trust the image, name that file, or a directory above it, with --allow-backing",
        ));
    }
    // A scheme before the first slash, as in nbd: or json:.
    let scheme = backing.name.split(|byte| *byte == b'/').next();
    if backing.name.contains(&0) || scheme.is_some_and(|scheme| scheme.contains(&b':')) {
        return Err(refuse("which is no path"));
    }
    let Some(format) = &backing.format else {
        return Err(refuse("and does not tell its format").hint_to(format!(
            "To guess it is not safe. Tell it: qemu-img rebase -u -f {} -F FORMAT -b BACKING {}",
            layer.container().format,
            layer.container().name()
        )));
    };
    let format = match String::from_utf8_lossy(format).as_ref() {
        // As QEMU calls it.
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
    let path = beside.join(OsStr::from_bytes(&backing.name));
    let real = |path: &Path| {
        std::fs::canonicalize(path).map_err(|cause| {
            let what = format!("Cannot open {}", path.display());
            Error::new(ErrorKind::Image, what).because(cause)
        })
    };
    let path = real(&path)?;
    for allowed in allowed {
        if path.starts_with(real(allowed)?) {
            return Ok((path, format));
        }
    }
    Err(refuse("which was not allowed").hint_to(format!(
        "It is {}: if you trust the image, name it with --allow-backing",
        path.display()
    )))
}
