//! Whether the bytes of a drive are complete, stored as files beside its metadata:
//!
//! ```text
//! drives/UUID.imaging      the order of an imaging into the drive that has not ended
//! drives/UUID.incomplete   the last imaging into it failed
//! ```
//!
//! Only the start of an imaging needs space on the disk. Its end is a rename or an unlink, so an
//! imaging that fails because the disk is full can always be recorded as failed. Otherwise the next
//! start would carry out the order again, over what was written since, and from a source that has
//! changed.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind::NotFound};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use openhosting_base::drive::DriveId;
use openhosting_base::wire::Properties;
use openhosting_tenancy::{set, stored_file, sync_parent, unless_missing};

/// How imaging transforms the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Nothing.
    Copy,
    /// The destination receives the source compressed with gzip.
    Gzip,
    /// The destination receives the source decompressed.
    Gunzip,
}

impl Packing {
    const WORDS: [(Self, &'static str); 3] = [
        (Self::Copy, "copy"),
        (Self::Gzip, "gzip"),
        (Self::Gunzip, "gunzip"),
    ];
}

/// The task of an imaging: `copy UUID OFFSET`, where OFFSET is how many bytes of the source UUID
/// are safely on the destination's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) source: DriveId,
    pub(super) packing: Packing,
    pub(super) offset: u64,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, packing) = Packing::WORDS[self.packing as usize];
        write!(f, "{packing} {} {}", self.source, self.offset)
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let [packing, source, offset] = words[..] else {
            return Err(());
        };
        let mut known = Packing::WORDS.into_iter();
        let (packing, _) = known.find(|(_, word)| *word == packing).ok_or(())?;
        Ok(Self {
            packing,
            source: source.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}

/// The state of a drive's bytes with regard to imaging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// They are complete.
    Whole,
    /// This task is to be done, or done again.
    Imaging(Order),
    /// The last imaging failed, and nothing was written since.
    Incomplete,
}

/// The files of a drive that store its [`Fill`].
#[derive(Debug)]
pub(super) struct FillFiles {
    imaging: PathBuf,
    incomplete: PathBuf,
}

impl FillFiles {
    /// The files beside the one with the bytes of a drive.
    pub(super) fn beside(data: &Path) -> Self {
        Self {
            imaging: data.with_extension("imaging"),
            incomplete: data.with_extension("incomplete"),
        }
    }

    /// Reads the state. A damaged order cannot be carried out, so the drive is incomplete.
    pub(super) fn load(&self, id: DriveId) -> io::Result<Fill> {
        match stored_file::read(&self.imaging) {
            Ok(bytes) => match parse(id, &bytes) {
                Some(order) => Ok(Fill::Imaging(order)),
                None => {
                    tracing::error!(%id, "The order of an imaging is damaged");
                    self.fail().map(|()| Fill::Incomplete)
                }
            },
            Err(error) if error.kind() == NotFound => match self.incomplete.try_exists()? {
                true => Ok(Fill::Incomplete),
                false => Ok(Fill::Whole),
            },
            Err(error) => Err(error),
        }
    }

    /// Stores an order, or its progress. After an error, the old state is still stored.
    pub(super) fn store(&self, id: DriveId, order: Order, staging: &Path) -> io::Result<()> {
        let mut object = Properties::new();
        set(&mut object, "drive", id.to_string());
        set(&mut object, "imaging", order.to_string());
        stored_file::write(&stored_file::print(&object), &self.imaging, staging)
    }

    /// Converts the state in the metadata of an earlier version, which did not resume an imaging.
    pub(super) fn store_incomplete(&self, staging: &Path) -> io::Result<()> {
        stored_file::write("", &self.incomplete, staging)
    }

    /// Records that the imaging failed. After an error, it can be called again.
    pub(super) fn fail(&self) -> io::Result<()> {
        match fs::rename(&self.imaging, &self.incomplete) {
            // An earlier call renamed it, and could not sync the directory.
            Err(error) if error.kind() == NotFound && self.incomplete.try_exists()? => {}
            renamed => renamed?,
        }
        sync_parent(&self.imaging)
    }

    /// Records that the bytes are complete. The order is removed last: as long as it exists,
    /// everything can be done again.
    pub(super) fn finish(&self) -> io::Result<()> {
        unless_missing(fs::remove_file(&self.incomplete))?;
        unless_missing(fs::remove_file(&self.imaging))?;
        sync_parent(&self.imaging)
    }
}

fn parse(id: DriveId, bytes: &[u8]) -> Option<Order> {
    let mut object = stored_file::parse(bytes)?;
    (object.remove("drive")? == id.to_string()).then_some(())?;
    object.remove("imaging")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(packing: Packing) -> Order {
        Order {
            source: DriveId::random(),
            packing,
            offset: 77,
        }
    }

    #[test]
    fn a_stored_imaging_reads_back() {
        for packing in [Packing::Copy, Packing::Gzip, Packing::Gunzip] {
            let order = order(packing);
            assert_eq!(order.to_string().parse(), Ok(order));
        }
        for bad in [
            "",
            "copy",
            "copy x 1",
            "move 0012e24a-6eae-4279-9912-3432f698cec8 1",
        ] {
            assert_eq!(bad.parse::<Order>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn the_latest_stored_state_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let files = FillFiles::beside(&directory.path().join("x.data"));
        let id = DriveId::random();
        let fill = || files.load(id).unwrap();
        assert_eq!(fill(), Fill::Whole);
        let order = order(Packing::Copy);
        let begin = || files.store(id, order, directory.path()).unwrap();
        begin();
        assert_eq!(fill(), Fill::Imaging(order));
        files.fail().unwrap();
        assert_eq!(fill(), Fill::Incomplete);
        // Again, as after a directory that could not be synced.
        files.fail().unwrap();
        assert_eq!(fill(), Fill::Incomplete);
        begin();
        assert_eq!(fill(), Fill::Imaging(order));
        files.finish().unwrap();
        assert_eq!(fill(), Fill::Whole);
        begin();
        fs::write(&files.imaging, "imaging copy").unwrap();
        assert_eq!(fill(), Fill::Incomplete);
        files.finish().unwrap();
        assert_eq!(fill(), Fill::Whole);
        assert!(files.fail().is_err(), "there was no imaging");
    }
}
