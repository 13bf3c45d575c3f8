//! Checks a disk by the manifest of its archive, while it is read.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::manifest::{GAP_BYTES_MAX, ListedDigest, Passing};
use crate::error::{Error, ErrorKind, Result};
use openhosting_base::locks::lock;

/// Bytes to read at a time.
const STEP_BYTES: u64 = 256 * 1024;
/// Bytes of a hole to hash at a time.
const HOLE_BYTES_MAX: u64 = 1 << 30;

/// Bytes to read for each byte that was read ahead of them, when no more of these can be stored. The
/// reader waits for it, and so do the others, so it is little.
const BESIDE_RATIO: u64 = 4;
/// At least this many bytes are read then: a gap that is always read.
const BESIDE_BYTES_MIN: u64 = GAP_BYTES_MAX;

/// What the manifest of an archive states about a file in it.
#[derive(Debug)]
pub(crate) enum Manifest {
    /// The archive has no manifest.
    Absent,
    /// The manifest does not list the file.
    Silent,
    /// The digest of the file, or those of its pieces.
    Lists(Vec<Check>),
}

/// The disk that is checked. The check reads those parts of it that nothing else read.
pub(crate) trait Checked {
    /// Fills `bytes` from `offset` of the disk, without checking them.
    fn fetch(&self, bytes: &mut [u8], offset: u64) -> Result<()>;
    /// The first extent of data that ends after `offset`.
    fn data_after(&self, offset: u64) -> Option<Range<u64>>;
    /// Fails if the file was written to after it was opened.
    fn check_unchanged(&self) -> Result<()>;
    /// The file's name.
    fn path(&self) -> &Path;
}

/// A check of a file in an archive, which is a disk or a piece of one: the digest from the
/// manifest, and the progress of computing it.
#[derive(Debug)]
pub(crate) struct Check {
    /// Which bytes of the disk are in the file.
    part: Range<u64>,
    /// The name of the manifest, safe to print.
    manifest: String,
    listed: ListedDigest,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// The check was not requested.
    Idle,
    Running(Box<Passing>),
    /// The file has the digest in the manifest.
    Passed,
}

impl Check {
    /// A check by the manifest of this name of a part of a disk.
    pub(super) fn new(manifest: &str, listed: ListedDigest, part: Range<u64>) -> Self {
        Self {
            part,
            manifest: manifest.escape_debug().to_string(),
            listed,
            state: Mutex::new(State::Idle),
        }
    }

    /// Bytes of the disk that it covers.
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

    /// Starts the check: from now on, what is read is hashed. Does nothing if it has already
    /// started.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        if matches!(*state, State::Idle) {
            *state = State::Running(Box::new(Passing::new(self.listed.kind)));
        }
    }

    /// Reports that these bytes of the file were read. A short part just before them that was left
    /// out is read here. If much before them was not read, as in a run that resumes, a little of that
    /// is read at each call, and what does not fit into memory until then is read again at the end.
    ///
    /// # Errors
    /// Errors of reading.
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
            let most = BESIDE_BYTES_MIN.max(BESIDE_RATIO * bytes.len() as u64);
            let until = passing.next().saturating_add(most).min(offset);
            while passing.next() < until {
                let end = passing.ahead_from().unwrap_or(until);
                fill(passing, &file, end.min(until))?;
            }
            if passing.next() < offset {
                return Ok(());
            }
        } else if let Some(start) = passing.left_out_before(offset) {
            // The part is probably still cached, or in the same page of a remote file.
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

    /// Reads the parts that nothing has read, and compares the digest. Blocks. Stops when
    /// `should_continue` returns false.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] if the digest differs or the file changed; [`ErrorKind::Cancelled`]
    /// if it stopped early.
    pub(crate) fn finish(
        &self,
        file: &dyn Checked,
        should_continue: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut state = self.state();
        let State::Running(passing) = &mut *state else {
            return Ok(());
        };
        let (whole, file) = (file, self.part_of(file));
        while passing.next() < file.size {
            if !should_continue() {
                return Err(Error::new(ErrorKind::Cancelled, "Stopped"));
            }
            let end = passing.ahead_from().unwrap_or(file.size);
            let most = passing.next().saturating_add(HOLE_BYTES_MAX);
            fill(passing, &file, end.min(most))?;
        }
        whole.check_unchanged()?;
        let State::Running(passing) = std::mem::replace(&mut *state, State::Passed) else {
            return Ok(());
        };
        let (kind, hex) = (self.listed.kind, passing.finish());
        if hex == self.listed.hex {
            return Ok(());
        }
        *state = State::Idle;
        let what = format!(
            "{} has the {kind} {hex}, but the manifest {} lists {}",
            whole.path().display(),
            self.manifest,
            self.listed.hex
        );
        Err(Error::new(ErrorKind::Integrity, what).hint_to(
            "Download the archive again, and compare it with the digest that its publisher states",
        ))
    }
}

/// The part of a disk that is in one file of the archive. Offsets are relative to that file.
struct Part<'a> {
    disk: &'a dyn Checked,
    start: u64,
    size: u64,
}

impl Part<'_> {
    /// Where the first data at or after `at` begins; may be beyond the end of the file.
    fn data_from(&self, at: u64) -> Result<Option<u64>> {
        let data = self.disk.data_after(self.start + at);
        Ok(data.map(|data| data.start - self.start))
    }

    fn fetch(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.disk.fetch(bytes, self.start + at)
    }
}

/// Hashes up to `end`, but at most one step of data.
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

#[cfg(test)]
mod tests {
    use super::super::manifest::Kind;
    use super::*;
    use crate::RawImage;
    use crate::digest::Digest;

    #[test]
    fn what_a_resumed_run_left_out_is_read_a_little_at_a_time() {
        const MIB: u64 = 1 << 20;
        let bytes = vec![7_u8; 64 * MIB as usize];
        for content in [&bytes[..], &vec![0; bytes.len()]] {
            let file = tempfile::NamedTempFile::new().unwrap();
            // In the second round, all of it is a hole.
            file.as_file().set_len(content.len() as u64).unwrap();
            if content[0] != 0 {
                std::fs::write(file.path(), content).unwrap();
            }
            let image = RawImage::open(file.path()).unwrap();
            let listed = ListedDigest {
                kind: Kind::Sha256,
                hex: Digest::of(content).to_string(),
            };
            let check = Check::new("a.mf", listed, 0..content.len() as u64);
            check.begin();
            let next = || match &*check.state() {
                State::Running(passing) => passing.next(),
                other => panic!("{other:?}"),
            };
            // The bytes before these were sent by an earlier run.
            for at in (24..64).map(|number| number * MIB) {
                let before = next();
                let read = &content[at as usize..][..MIB as usize];
                check.saw(&image, read, at).unwrap();
                assert!(next() <= before + 4 * MIB || before + 4 * MIB >= 24 * MIB);
            }
            assert!(next() > 0);
            check.finish(&image, &|| true).unwrap();
        }
    }
}
