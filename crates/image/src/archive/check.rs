//! The check of a disk by the manifest of its archive, while it is read.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::manifest::{Passing, Told};
use crate::error::{Error, ErrorKind, Result};
use openhosting_base::locks::lock;

/// Bytes that are read at a time.
const STEP_BYTES: u64 = 256 * 1024;
/// Bytes of a hole that are hashed at a time.
const HOLE_BYTES_MAX: u64 = 1 << 30;

/// What the manifest of an archive tells of a file in it.
#[derive(Debug)]
pub(crate) enum Manifest {
    /// There is none.
    Absent,
    /// Nothing.
    Silent,
    /// Its digest, or those of its pieces.
    Tells(Vec<Check>),
}

/// A disk in a file, of which a check reads what nobody else read.
pub(crate) trait Checked {
    /// Fills `bytes` from the byte `offset` of the disk on, unchecked.
    fn fetch(&self, bytes: &mut [u8], offset: u64) -> Result<()>;
    /// The first extent of data that ends after `offset`.
    fn data_after(&self, offset: u64) -> Option<Range<u64>>;
    /// Fails if the file was written to since it was opened.
    fn check_unchanged(&self) -> Result<()>;
    /// Its name.
    fn path(&self) -> &Path;
}

/// What a manifest tells of a file of its archive, which is a disk or a piece of one, and
/// how far that was checked.
#[derive(Debug)]
pub(crate) struct Check {
    /// The bytes of the disk that the file holds.
    part: Range<u64>,
    /// Its name, as it may be shown.
    manifest: String,
    told: Told,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Nobody asked for it.
    Idle,
    Running(Box<Passing>),
    /// The file is as the manifest says.
    Passed,
}

impl Check {
    /// By the manifest of this name, of this part of a disk.
    pub(super) fn new(manifest: &str, told: Told, part: Range<u64>) -> Self {
        Self {
            part,
            manifest: manifest.escape_debug().to_string(),
            told,
            state: Mutex::new(State::Idle),
        }
    }

    /// Bytes of the disk that it is about.
    pub(super) fn len(&self) -> u64 {
        self.part.end - self.part.start
    }

    fn part_of<'a>(&self, disk: &'a dyn Checked) -> Part<'a> {
        Part {
            disk,
            start: self.part.start,
            size: self.len(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// From now on what is read is checked, unless it was before.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        if matches!(*state, State::Idle) {
            *state = State::Running(Box::new(Passing::new(self.told.kind)));
        }
    }

    /// These bytes of the file were read. What was left out just before them is read as
    /// well.
    ///
    /// # Errors
    /// What reading says.
    pub(crate) fn saw(&self, file: &dyn Checked, bytes: &[u8], offset: u64) -> Result<()> {
        let start = offset.max(self.part.start);
        let end = (offset + bytes.len() as u64).min(self.part.end);
        if start >= end {
            return Ok(());
        }
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        let bytes = &bytes[within(start)..within(end)];
        let mut state = self.state();
        let State::Running(passing) = &mut *state else {
            return Ok(());
        };
        let file = self.part_of(file);
        let offset = start - self.part.start;
        if passing.has_to_reach(offset, bytes.len()) {
            while passing.next() < offset {
                let end = passing.kept_from().unwrap_or(offset);
                fill(passing, &file, end.min(offset))?;
            }
        } else if let Some(start) = passing.left_out_before(offset) {
            // Now it is at hand most likely: read from elsewhere, in the same page.
            let mut left_out = vec![0; usize::try_from(offset - start).unwrap_or(0)];
            file.fetch(&mut left_out, start)?;
            passing.saw(&left_out, start);
        }
        passing.saw(bytes, offset);
        while let Some(end) = passing.gap() {
            fill(passing, &file, end)?;
        }
        Ok(())
    }

    /// Reads what nobody read, and demands the digest. Blocks. Gives up when `goes_on`
    /// says no.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if it is another one, or the file changed;
    /// [`ErrorKind::Cancelled`] if it gave up.
    pub(crate) fn finish(&self, file: &dyn Checked, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let mut state = self.state();
        let State::Running(passing) = &mut *state else {
            return Ok(());
        };
        let (whole, file) = (file, self.part_of(file));
        while passing.next() < file.size {
            if !goes_on() {
                return Err(Error::new(ErrorKind::Cancelled, "Stopped"));
            }
            let end = passing.kept_from().unwrap_or(file.size);
            let most = passing.next().saturating_add(HOLE_BYTES_MAX);
            fill(passing, &file, end.min(most))?;
        }
        whole.check_unchanged()?;
        let State::Running(passing) = std::mem::replace(&mut *state, State::Passed) else {
            return Ok(());
        };
        let (kind, hex) = (self.told.kind, passing.finish());
        if hex == self.told.hex {
            return Ok(());
        }
        *state = State::Idle;
        let what = format!(
            "{} has the {kind} {hex}, and the manifest {} tells {}",
            whole.path().display(),
            self.manifest,
            self.told.hex
        );
        Err(Error::new(ErrorKind::Integrity, what)
            .hint_to("Fetch the archive again from where it came, and compare it with the digest that is told there"))
    }
}

/// The part of a disk that one file of the archive holds. Offsets are those in the file.
struct Part<'a> {
    disk: &'a dyn Checked,
    start: u64,
    size: u64,
}

impl Part<'_> {
    /// Where the first data from `at` on begins, in the file or behind it.
    fn data_from(&self, at: u64) -> Result<Option<u64>> {
        let data = self.disk.data_after(self.start + at);
        Ok(data.map(|data| data.start - self.start))
    }

    fn fetch(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.disk.fetch(bytes, self.start + at)
    }
}

/// Hashes up to `end`, but no more than a step of data.
fn fill(passing: &mut Passing, file: &Part<'_>, end: u64) -> Result<()> {
    let at = passing.next();
    let data = file.data_from(at)?.map_or(end, |data| data.min(end));
    if data > at {
        passing.saw_zeros(data - at);
        return Ok(());
    }
    let len = usize::try_from((end - at).min(STEP_BYTES)).unwrap_or(0);
    let mut step = vec![0; len];
    file.fetch(&mut step, at)?;
    passing.saw(&step, at);
    Ok(())
}
