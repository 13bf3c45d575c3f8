//! Carries out an imaging step by step, so that it can wait for its turn, or be stopped, between
//! two steps.
//!
//! A copy shares the blocks of the source if the file system can (`FICLONE`). Otherwise the kernel
//! copies (`copy_file_range`, which also shares blocks where possible), and if it cannot, this
//! program does. Holes stay holes. With compression, long runs of zeros are compressed only once,
//! and holes are not even read.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::super::fill::{Order, Packing};
use super::super::hosted::{Hosted, Progress};
use super::super::metrics::Metrics;
use super::super::sparse;
use openhosting_base::codec::{Gunzip, GunzipError, SparseGzip, Trailing, UNIT_BYTES};

const STEP_BYTES: u64 = 1024 * 1024;
/// Bytes that the kernel copies in one call: some milliseconds, in which the progress is not
/// updated and a stop request is not noticed.
const KERNEL_STEP_BYTES: u64 = 16 * 1024 * 1024;
/// If a part of a hole takes this long to copy, the next part is short: the file system has no holes
/// and writes zeros, or frees much space. Otherwise the next part is twice as long.
const HOLE_STEP_MAX: Duration = Duration::from_millis(5);
/// After this many bytes, a copy is synced and its progress is stored. After a crash, at most this
/// much is copied again: a second or a few of work.
const KEPT_EVERY_BYTES: u64 = 1024 * 1024 * 1024;
/// Maximum sleep of an imaging that is slowed down on purpose, because it has to notice a stop
/// request.
const NAP: Duration = Duration::from_millis(100);
/// Units of zeros to compress in one step, which gives 1 MB of gzip.
const UNITS_OF_STEP: u64 = 1024;

/// The parameters of a [`Filling`].
pub(super) struct Task {
    pub(super) source: Arc<Hosted>,
    pub(super) destination: Arc<Hosted>,
    pub(super) order: Order,
    pub(super) progress: Arc<Progress>,
    pub(super) metrics: Arc<Metrics>,
    /// Maximum bytes of the source per second, if a fault plan limits it.
    pub(super) bytes_per_s: Option<u64>,
    /// Fails if the imaging has to stop; called before each step.
    pub(super) check: Box<dyn Fn() -> io::Result<()> + Send>,
    /// Makes the copy durable up to an offset.
    pub(super) keep: Box<dyn Fn(u64) -> io::Result<()> + Send>,
}

/// An imaging in progress.
pub(super) struct Filling {
    to: Writer,
    how: How,
    keep: Box<dyn Fn(u64) -> io::Result<()> + Send>,
    begun: u64,
}

enum How {
    Copy(Copying),
    Gzip(Gzip),
    Gunzip(Box<Unpack>),
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Copy(_) => "copy",
            How::Gzip(_) => "gzip",
            How::Gunzip(_) => "gunzip",
        };
        write!(f, "Filling({how} up to {})", self.to.offset)
    }
}

impl Filling {
    /// Prepares an imaging. Nothing happens before the first step.
    pub(super) fn new(task: Task) -> Self {
        let begun = match task.order.packing {
            Packing::Copy => task.order.offset,
            Packing::Gzip | Packing::Gunzip => 0,
        };
        let from = Reader {
            end: task.source.size(),
            drive: task.source,
            offset: begun,
            progress: task.progress,
            metrics: task.metrics,
            bytes_per_s: task.bytes_per_s,
            began: None,
            begun,
            check: task.check,
            pauses: false,
        };
        let to = Writer {
            end: task.destination.size(),
            drive: task.destination,
            offset: begun,
        };
        let how = match task.order.packing {
            Packing::Copy => How::Copy(Copying::new(from)),
            Packing::Gzip => How::Gzip(Gzip::new(from)),
            Packing::Gunzip => How::Gunzip(Box::new(Unpack::new(from, to.end))),
        };
        Self {
            to,
            how,
            keep: task.keep,
            begun,
        }
    }

    /// Works for some milliseconds; returns after the last step how many bytes of the destination
    /// were written. Blocks on the disk.
    pub(super) fn step(&mut self) -> io::Result<Option<u64>> {
        let is_done = match &mut self.how {
            How::Copy(copy) => copy.step(&mut self.to, &self.keep)?,
            How::Gzip(gzip) => gzip.step(&mut self.to)?,
            How::Gunzip(unpack) => unpack.step(&mut self.to)?,
        };
        Ok(is_done.then(|| self.to.offset - self.begun))
    }
}

/// A plain copy.
struct Copying {
    from: Reader,
    /// The end of the data that contains the next byte.
    data_end: u64,
    /// The end of the last hole that was found.
    hole_end: u64,
    /// Bytes of a hole to pass in the next step.
    hole_step: u64,
    may_clone: bool,
    kernel_copies: bool,
    /// The copy is durable up to here.
    kept: u64,
    buffer: Vec<u8>,
}

impl Copying {
    fn new(from: Reader) -> Self {
        Self {
            data_end: from.offset,
            hole_end: from.offset,
            hole_step: KERNEL_STEP_BYTES,
            may_clone: from.offset == 0 && from.bytes_per_s.is_none(),
            kernel_copies: true,
            kept: from.offset,
            buffer: Vec::new(),
            from,
        }
    }

    fn step(&mut self, to: &mut Writer, keep: &dyn Fn(u64) -> io::Result<()>) -> io::Result<bool> {
        if std::mem::take(&mut self.may_clone) && clone(&self.from.drive.file, &to.drive.file)? {
            to.advance(self.from.end)?;
            self.from.passed(self.from.end, Passed::Skipped);
            return Ok(true);
        }
        if self.from.offset >= self.from.end {
            return Ok(true);
        }
        if self.from.offset >= self.data_end {
            self.skip_hole(to)?;
            return Ok(false);
        }
        let Some(step) = self.from.step(self.data_end, KERNEL_STEP_BYTES)? else {
            return Ok(false);
        };
        let copied = match self.kernel_copies {
            true => copy_in_kernel(&self.from, to, step)?,
            false => None,
        };
        match copied {
            Some(bytes) => {
                self.from.passed(bytes, Passed::Data);
                to.advance(bytes)?;
            }
            None => {
                self.kernel_copies = false;
                let step = step.min(STEP_BYTES) as usize;
                self.buffer.resize(STEP_BYTES as usize, 0);
                self.from.read_exact_at_once(&mut self.buffer[..step])?;
                to.write(&self.buffer[..step])?;
            }
        }
        if self.from.offset - self.kept >= KEPT_EVERY_BYTES {
            keep(self.from.offset)?;
            self.kept = self.from.offset;
        }
        Ok(false)
    }

    fn skip_hole(&mut self, to: &mut Writer) -> io::Result<()> {
        let Reader { offset, end, .. } = self.from;
        (self.from.check)()?;
        if offset >= self.hole_end {
            self.hole_end = sparse::next_data(&self.from.drive.file, offset, end);
        }
        let len = (self.hole_end - offset).min(self.hole_step);
        let began = Instant::now();
        to.skip_zeros(len)?;
        self.from.passed(len, Passed::Skipped);
        self.hole_step = match began.elapsed() < HOLE_STEP_MAX {
            true => self.hole_step.saturating_mul(2),
            false => KERNEL_STEP_BYTES,
        };
        if self.from.offset == self.hole_end {
            self.data_end = match self.hole_end < end {
                true => sparse::next_hole(&self.from.drive.file, self.hole_end, end),
                false => end,
            };
        }
        Ok(())
    }
}

/// Shares all blocks of `from` with `to`, which must not be shorter. Returns `false` if the file
/// system cannot do that; nothing has changed then.
fn clone(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // This includes a source whose last block is not complete, with a longer destination.
        Err(error) if is_unable(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Lets the kernel copy up to `step` bytes; `None` if it cannot.
fn copy_in_kernel(from: &Reader, to: &Writer, step: u64) -> io::Result<Option<u64>> {
    let (mut source, mut destination) = (from.offset, to.offset);
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let copied = copy_file_range(
        &from.drive.file,
        Some(&mut source),
        &to.drive.file,
        Some(&mut destination),
        step,
    );
    match copied {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(bytes) => Ok(Some(bytes as u64)),
        Err(Errno::INTR) => Ok(Some(0)),
        Err(error) if is_unable(error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a call is not supported for this file system or these files.
fn is_unable(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::XDEV | Errno::NOTTY | Errno::PERM
    )
}

/// Compresses the source.
struct Gzip {
    from: Reader,
    /// `None` before the first step.
    packer: Option<SparseGzip>,
    /// Compressed bytes that are not written yet.
    packed: Vec<u8>,
    /// The end of the hole that contains the next byte.
    hole_end: u64,
    buffer: Vec<u8>,
}

impl Gzip {
    fn new(from: Reader) -> Self {
        Self {
            from,
            packer: None,
            packed: Vec::new(),
            hole_end: 0,
            buffer: Vec::new(),
        }
    }

    fn step(&mut self, to: &mut Writer) -> io::Result<bool> {
        let packed = &mut self.packed;
        let packer = self.packer.get_or_insert_with(|| SparseGzip::begin(packed));
        let Reader { offset, end, .. } = self.from;
        if offset == end {
            if let Some(packer) = self.packer.take() {
                packer.finish(packed);
            }
            return self.write(to).map(|()| true);
        }
        if offset >= self.hole_end {
            self.hole_end = sparse::next_data(&self.from.drive.file, offset, end);
        }
        let Some(step) = self.from.step(end, UNIT_BYTES)? else {
            return Ok(false);
        };
        let hole = (self.hole_end - offset) / UNIT_BYTES;
        if hole > 0 && self.from.bytes_per_s.is_none() {
            let units = hole.min(UNITS_OF_STEP);
            packer.zeros(units, packed);
            self.from.passed(units * UNIT_BYTES, Passed::Skipped);
        } else {
            self.buffer.resize(UNIT_BYTES as usize, 0);
            let bytes = &mut self.buffer[..step as usize];
            self.from.read_exact_at_once(bytes)?;
            match step == UNIT_BYTES && sparse::all_zero(bytes) {
                true => packer.zeros(1, packed),
                false => packer.data(bytes, packed),
            }
        }
        match packed.len() as u64 >= STEP_BYTES {
            true => self.write(to).map(|()| false),
            false => Ok(false),
        }
    }

    fn write(&mut self, to: &mut Writer) -> io::Result<()> {
        to.write(&self.packed)?;
        self.packed.clear();
        Ok(())
    }
}

/// Decompresses the source.
struct Unpack {
    gunzip: Gunzip<BufReader<Reader>>,
    buffer: Vec<u8>,
    filled: usize,
}

impl Unpack {
    fn new(from: Reader, bytes_max: u64) -> Self {
        let packed = BufReader::with_capacity(STEP_BYTES as usize, from);
        Self {
            gunzip: Gunzip::new(packed, bytes_max, Trailing::Ignore),
            buffer: Vec::new(),
            filled: 0,
        }
    }

    fn step(&mut self, to: &mut Writer) -> io::Result<bool> {
        self.buffer.resize(STEP_BYTES as usize, 0);
        let read = match self.gunzip.read(&mut self.buffer[self.filled..]) {
            Err(GunzipError::Input(pause)) if pause.kind() == io::ErrorKind::WouldBlock => {
                return Ok(false);
            }
            read => read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        };
        self.filled += read;
        if read > 0 && self.filled < self.buffer.len() {
            return Ok(false);
        }
        to.write(&self.buffer[..self.filled])?;
        self.filled = 0;
        Ok(read == 0)
    }
}

/// The source, with its progress.
struct Reader {
    drive: Arc<Hosted>,
    offset: u64,
    end: u64,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    bytes_per_s: Option<u64>,
    /// Start time, and the byte at which it began.
    began: Option<Instant>,
    begun: u64,
    check: Box<dyn Fn() -> io::Result<()> + Send>,
    /// Whether [`read`](Read::read) pauses next.
    pauses: bool,
}

/// What was passed in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    Data,
    /// Bytes that needed no work: holes, and blocks that are shared.
    Skipped,
}

impl Reader {
    /// How many bytes to take next, up to `end` and at most `most`. `None` after a sleep, if it is
    /// slowed down on purpose; an error if it has to stop.
    fn step(&mut self, end: u64, most: u64) -> io::Result<Option<u64>> {
        (self.check)()?;
        let bytes = (end - self.offset).min(most);
        let Some(rate) = self.bytes_per_s else {
            return Ok(Some(bytes));
        };
        let began = *self.began.get_or_insert_with(Instant::now);
        let due = (self.offset - self.begun) as f64 / rate as f64;
        let wait = due - began.elapsed().as_secs_f64();
        if wait <= 0.0 {
            return Ok(Some(bytes.min(rate.div_ceil(10))));
        }
        std::thread::sleep(Duration::from_secs_f64(wait).min(NAP));
        Ok(None)
    }

    fn passed(&mut self, bytes: u64, what: Passed) {
        self.offset += bytes;
        self.progress.reach(self.offset);
        match what {
            Passed::Data => self.metrics.imaged(bytes),
            Passed::Skipped => self.metrics.imaged_zeros(bytes),
        }
    }

    fn read_exact_at_once(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.drive.file.read_exact_at(bytes, self.offset)?;
        self.passed(bytes.len() as u64, Passed::Data);
        Ok(())
    }
}

/// After each read, the next one fails with [`io::ErrorKind::WouldBlock`], so that a step of
/// decompression ends although the bytes decompress to nothing.
impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let pauses = std::mem::take(&mut self.pauses);
        let step = match pauses {
            true => None,
            false => self.step(self.end, buffer.len() as u64)?,
        };
        let step = step.ok_or(io::ErrorKind::WouldBlock)?;
        let bytes = &mut buffer[..step as usize];
        self.read_exact_at_once(bytes)?;
        self.pauses = true;
        Ok(bytes.len())
    }
}

/// The destination, limited to its size.
struct Writer {
    drive: Arc<Hosted>,
    offset: u64,
    end: u64,
}

impl Writer {
    fn advance(&mut self, len: u64) -> io::Result<u64> {
        let start = self.offset;
        if len > self.end - start {
            return Err(io::Error::other("the destination is too small"));
        }
        self.offset += len;
        Ok(start)
    }

    fn skip_zeros(&mut self, len: u64) -> io::Result<()> {
        let start = self.advance(len)?;
        match len {
            0 => Ok(()),
            len => sparse::zero_at(&self.drive.file, start, len),
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let start = self.advance(data.len() as u64)?;
        sparse::write_at(&self.drive.file, data, start)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::super::super::fill::Fill;
    use super::super::super::metadata::Metadata;
    use super::*;
    use openhosting_base::drive::DriveId;
    use openhosting_base::wire::{Format, Properties};

    const LEN: u64 = 40 << 20;

    fn hosted(file: File) -> Arc<Hosted> {
        let body = format!("size {}", file.metadata().unwrap().len());
        let body = Properties::parse(Format::Text, body.as_bytes()).unwrap();
        let metadata = Metadata::create("user", &body, Ok).unwrap();
        let (id, nowhere) = (DriveId::random(), PathBuf::new());
        Arc::new(Hosted::new(id, file, metadata, Fill::Whole, nowhere))
    }

    /// A drive with holes, data and zeros stored as data; its last block is not complete.
    fn source(directory: &str) -> Arc<Hosted> {
        let file = tempfile::tempfile_in(directory).unwrap();
        file.set_len(LEN + 1234).unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        for (at, len) in [
            (0, 9000),
            (5 << 20, 3 << 20),
            (30 << 20, 4 << 20),
            (LEN, 1234),
        ] {
            let mut bytes = vec![0; len];
            random.fill(&mut bytes);
            file.write_all_at(&bytes, at).unwrap();
        }
        file.write_all_at(&[0; 100_000], 20 << 20).unwrap();
        hosted(file)
    }

    fn all(drive: &Hosted) -> Vec<u8> {
        let mut all = vec![1; drive.size() as usize];
        drive.file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    /// A drive that had other bytes before and was filled from `source`, and the number of steps.
    fn filled_in_steps(source: &Arc<Hosted>, order: Order, size: u64) -> (Arc<Hosted>, u64) {
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.write_all_at(&vec![7; size as usize], 0).unwrap();
        let destination = hosted(file);
        let mut filling = Filling::new(Task {
            source: Arc::clone(source),
            destination: Arc::clone(&destination),
            order,
            progress: Arc::new(Progress::new(source.id, source.size())),
            metrics: Arc::new(Metrics::new()),
            bytes_per_s: None,
            check: Box::new(|| Ok(())),
            keep: Box::new(|_| Ok(())),
        });
        let mut steps = 1;
        while filling.step().unwrap().is_none() {
            steps += 1;
        }
        (destination, steps)
    }

    fn filled(source: &Arc<Hosted>, packing: Packing, offset: u64, size: u64) -> Arc<Hosted> {
        let order = Order {
            source: source.id,
            packing,
            offset,
        };
        filled_in_steps(source, order, size).0
    }

    #[test]
    fn a_long_hole_is_passed_in_several_steps() {
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.set_len(64 << 20).unwrap();
        let source = hosted(file);
        let order = Order {
            source: source.id,
            packing: Packing::Copy,
            // With a clone, the copy would take only one step.
            offset: 1,
        };
        let (destination, steps) = filled_in_steps(&source, order, source.size());
        assert!(steps > 3, "{steps}");
        let got = all(&destination);
        assert!(got[0] == 7 && got[1..].iter().all(|&b| b == 0));
    }

    #[test]
    fn gzip_that_decompresses_to_nothing_takes_many_short_steps() {
        // A member of empty blocks.
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        gzip.extend([0, 0, 0, 0xff, 0xff].repeat(4 << 20));
        gzip.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.write_all_at(&gzip, 0).unwrap();
        let source = hosted(file);
        let order = Order {
            source: source.id,
            packing: Packing::Gunzip,
            offset: 0,
        };
        let (destination, steps) = filled_in_steps(&source, order, 4096);
        assert!(steps > 20, "{steps}");
        assert_eq!(all(&destination), [7; 4096]);
    }

    #[test]
    fn a_copy_is_equal_with_and_without_kernel_copying() {
        // The kernel does not copy between two file systems.
        for directory in ["/tmp", "/dev/shm"] {
            let source = source(directory);
            let plain = all(&source);
            for longer in [0, 4096, 5000] {
                let size = source.size() + longer;
                let destination = filled(&source, Packing::Copy, 0, size);
                let got = all(&destination);
                assert!(got[..plain.len()] == plain, "{directory} {longer}");
                assert!(got[plain.len()..].iter().all(|&b| b == 7));
                // Most of it is holes; if the file system has none, both files use much space.
                let blocks = |drive: &Hosted| drive.file.metadata().unwrap().blocks();
                assert!(blocks(&destination) <= blocks(&source) + longer / 512 + 1024);
            }
        }
    }

    #[test]
    fn a_resumed_copy_does_not_touch_earlier_bytes() {
        let source = source("/tmp");
        let offset = 6 << 20;
        let got = all(&filled(
            &source,
            Packing::Copy,
            offset as u64,
            source.size(),
        ));
        assert!(got[..offset].iter().all(|&b| b == 7));
        assert!(got[offset..] == all(&source)[offset..]);
    }

    #[test]
    fn compressed_data_decompresses_to_the_same_bytes() {
        let source = source("/tmp");
        let packed = filled(&source, Packing::Gzip, 0, 16 << 20);
        let unpacked = filled(&packed, Packing::Gunzip, 0, source.size() + 100);
        let (got, plain) = (all(&unpacked), all(&source));
        assert!(got[..plain.len()] == plain && got[plain.len()..] == [7; 100]);
    }

    #[test]
    fn a_stopped_imaging_writes_nothing_more() {
        for packing in [Packing::Copy, Packing::Gzip, Packing::Gunzip] {
            let [source, destination] = [(); 2].map(|()| source("/tmp"));
            let before = all(&destination);
            let mut filling = Filling::new(Task {
                source: Arc::clone(&source),
                destination: Arc::clone(&destination),
                order: Order {
                    source: source.id,
                    packing,
                    // With a clone, the copy would take only one step.
                    offset: u64::from(packing == Packing::Copy),
                },
                progress: Arc::new(Progress::new(source.id, source.size())),
                metrics: Arc::new(Metrics::new()),
                bytes_per_s: None,
                check: Box::new(|| Err(io::Error::other("no"))),
                keep: Box::new(|_| Ok(())),
            });
            assert!(filling.step().is_err(), "{packing:?}");
            assert!(all(&destination) == before);
        }
    }
}
