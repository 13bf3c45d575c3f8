//! Filling a drive from another one (REFERENCE section 5), in the background.
//!
//! The bytes of the destination beyond what the source gives stay as they are.
//! What is to be done is stored (`fill.rs`) until it is
//! done: after a crash or a stop the next start goes on, from what is on the disk
//! for sure where nothing is packed, else from the beginning. Until then the
//! destination is told as being imaged, and cannot be read. An imaging that fails
//! leaves it with status `inactive`, until something is written to it.
//!
//! Both drives stay claimed until the end is stored. So nobody can write to them while
//! the next start would still go on.
//!
//! A copy shares the blocks of the source where the file system can (`FICLONE`),
//! else the kernel copies (`copy_file_range`, which shares too where it may), else
//! we do. Holes stay holes.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::answer::Refusal;
use super::drives::Api;
use super::fill::{Fill, Order};
use super::hosted::{Hosted, Lease, Pass, Progress, Purpose, Turn};
use super::routes::Packing;
use super::sparse;
use crate::codec::{Gunzip, Trailing};

/// Imagings that run at once; more are queued.
const AT_ONCE: u32 = 2;
const STEP_BYTES: u64 = 1024 * 1024;
/// What the kernel is asked to copy at once: some milliseconds, in which progress
/// stands still and a stop is not heard.
const KERNEL_STEP_BYTES: u64 = 16 * 1024 * 1024;
/// After so many bytes what was copied is made to last, and where it ends is kept.
const KEPT_EVERY_BYTES: u64 = 1024 * 1024 * 1024;
/// Longest sleep of one that is slow on purpose: a stop has to be heard.
const NAP: Duration = Duration::from_millis(100);

/// How long to wait before another try to store the end of an imaging.
const RETRY: Duration = Duration::from_secs(5);

/// All imagings of a server.
#[derive(Debug)]
pub(super) struct Imagings {
    turns: Arc<Semaphore>,
    is_stopping: AtomicBool,
    /// The most that one does, in bytes of its source, where a fault plan says so.
    bytes_per_s: Option<u64>,
}

impl Imagings {
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_ONCE as usize)),
            is_stopping: AtomicBool::new(false),
            bytes_per_s,
        }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Waits for imagings to end; those that do not in time are told to stop, and
    /// the next start goes on with them.
    pub(super) async fn stop(&self, patience: Duration) {
        let all = || self.turns.acquire_many(AT_ONCE);
        if tokio::time::timeout(patience, all()).await.is_err() {
            self.is_stopping.store(true, Ordering::Relaxed);
            let _ = all().await;
        }
    }
}

/// One imaging. It holds both drives until it is dropped.
#[derive(Debug)]
pub(super) struct Imaging {
    source: Pass,
    lease: Arc<Lease>,
    destination: Pass,
    progress: Arc<Progress>,
    order: Order,
}

impl Imaging {
    /// Claims both drives.
    pub(super) fn claim(
        source: &Arc<Hosted>,
        destination: &Arc<Hosted>,
        order: Order,
    ) -> Result<Self, Refusal> {
        if destination.id == source.id {
            return Err(Refusal::usage("A drive cannot be its own source"));
        }
        // The size of the source stays as it is from here on.
        let lease = Lease::of(destination.with_metadata(|metadata| metadata.user.clone()));
        let source = source.pass(Purpose::ImageFrom(Arc::clone(&lease)))?;
        let progress = Arc::new(Progress::new(source.drive.id, source.drive.size()));
        progress.reach(order.offset);
        let destination = destination.pass(Purpose::ImageInto(Arc::clone(&progress)))?;
        let (size, room) = (source.drive.size(), destination.drive.size());
        if order.packing == Packing::Copy && size > room {
            return Err(Refusal::usage("The source is larger than the drive"));
        }
        if order.offset > size {
            return Err(Refusal::system("The source is shorter than it was"));
        }
        Ok(Self {
            source,
            lease,
            destination,
            progress,
            order,
        })
    }
}

impl Api {
    /// Claims both drives and stores what is to be done; the rest happens in the
    /// background. Blocks on the disk.
    pub(super) fn begin_imaging(
        &self,
        turn: &Turn,
        source: &Arc<Hosted>,
        order: Order,
    ) -> Result<Imaging, Refusal> {
        let imaging = Imaging::claim(source, turn.drive(), order)?;
        self.store.store_order(turn, order)?;
        Ok(imaging)
    }

    /// Takes up what a crash or a stop left: before anybody is served, so that
    /// nobody gets at the drives first.
    pub(super) fn take_up_imagings(self: &Arc<Self>) {
        for drive in self.store.select(|_| true) {
            let Fill::Imaging(order) = drive.fill() else {
                continue;
            };
            let source = self.store.any(order.source);
            let claimed = source.and_then(|source| Imaging::claim(&source, &drive, order));
            match claimed {
                Ok(imaging) => {
                    tracing::info!(id = %drive.id, %order, "Goes on with an imaging");
                    tokio::spawn(Arc::clone(self).image_in_background(imaging));
                }
                Err(refusal) => {
                    tracing::warn!(id = %drive.id, %order, %refusal, "Cannot go on with an imaging");
                    self.fail_in_background(&drive, order);
                }
            }
        }
    }

    /// Ends an imaging that cannot go on. Its destination is claimed until then.
    fn fail_in_background(self: &Arc<Self>, drive: &Arc<Hosted>, order: Order) {
        let progress = Arc::new(Progress::new(order.source, 0));
        match drive.pass(Purpose::ImageInto(progress)) {
            Ok(pass) => {
                let api = Arc::clone(self);
                drop(spawn_blocking(move || api.end_imaging(&pass.drive, false)));
            }
            Err(refusal) => {
                tracing::error!(id = %drive.id, %refusal, "Cannot end an imaging, the next start does");
            }
        }
    }

    /// Waits for its turn, then does it.
    pub(super) async fn image_in_background(self: Arc<Self>, imaging: Imaging) {
        // The semaphore is never closed.
        let Ok(_turn) = Arc::clone(&self.imagings.turns).acquire_owned().await else {
            return;
        };
        let span = tracing::Span::current();
        let work = spawn_blocking(move || span.in_scope(|| self.do_imaging(&imaging)));
        if work.await.is_err() {
            tracing::error!("An imaging broke off");
        }
    }

    fn do_imaging(&self, imaging: &Imaging) {
        let (source, destination) = (&imaging.source.drive, &imaging.destination.drive);
        let keep = |offset| {
            destination.file.sync_data()?;
            let order = Order {
                offset,
                ..imaging.order
            };
            let turn = destination.turn_blocking();
            let stored = turn.map(|turn| self.store.store_order(&turn, order));
            if let Ok(Err(error)) = stored {
                // What is stored stands: the next start would do more than it has to.
                tracing::warn!(id = %destination.id, %error, "Cannot store how far an imaging is");
            }
            Ok(())
        };
        let result = imaging.run(&self.imagings, &keep);
        // What is called done must be there after a loss of power, too.
        let result = result.and_then(|bytes| destination.file.sync_data().map(|()| bytes));
        // What it read since is anything.
        let result = result.and_then(|bytes| imaging.check_lease().map(|()| bytes));
        match &result {
            Ok(bytes) => {
                source.count_read(source.size());
                destination.count_write(*bytes);
            }
            Err(_) if self.imagings.is_stopping() => {
                tracing::info!(id = %destination.id, "An imaging waits for the next start");
                return;
            }
            Err(error) => tracing::warn!(id = %destination.id, %error, "Imaging failed"),
        }
        self.end_imaging(destination, result.is_ok());
    }

    /// Stores the end of an imaging. The caller holds the drives until then. A full disk
    /// is no reason to fail (`fill.rs`); while a broken one refuses, the imaging has not
    /// ended.
    fn end_imaging(&self, destination: &Arc<Hosted>, is_complete: bool) {
        loop {
            let Ok(turn) = destination.turn_blocking() else {
                return;
            };
            let stored = match is_complete {
                true => self.store.mark_whole(&turn),
                false => self.store.mark_incomplete(&turn),
            };
            drop(turn);
            match stored {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(id = %destination.id, %error, "Cannot store the end of an imaging, trying again");
                }
            }
            let tried = Instant::now();
            while tried.elapsed() < RETRY {
                if self.imagings.is_stopping() {
                    return;
                }
                std::thread::sleep(NAP);
            }
        }
    }
}

impl Imaging {
    /// Does it, or gives up soon when the server stops; tells how many bytes of
    /// the destination it wrote. `keep` makes a copy last up to an offset.
    fn run(&self, imagings: &Imagings, keep: &Keep<'_>) -> io::Result<u64> {
        self.progress.start();
        let (source, destination) = (&self.source.drive, &self.destination.drive);
        let begun = self.order.offset;
        let mut from = Reader {
            file: &source.file,
            offset: 0,
            end: source.size(),
            progress: &self.progress,
            imagings,
            lease: &self.lease,
            began: Instant::now(),
            begun,
        };
        let mut to = Writer {
            file: &destination.file,
            offset: 0,
            end: destination.size(),
        };
        match self.order.packing {
            Packing::Copy => {
                (from.offset, to.offset) = (begun, begun);
                copy(&mut from, &mut to, keep)?;
                Ok(to.offset - begun)
            }
            Packing::Gzip => gzip(&mut from, &mut to).map(|()| to.offset),
            Packing::Gunzip => gunzip(from, &mut to).map(|()| to.offset),
        }
    }
}

impl Imaging {
    fn check_lease(&self) -> io::Result<()> {
        check_lease(&self.lease)
    }
}

/// Whether the source may be read still.
fn check_lease(lease: &Lease) -> io::Result<()> {
    match lease.has_ended() {
        true => Err(io::Error::other("the source may not be read any more")),
        false => Ok(()),
    }
}

type Keep<'a> = dyn Fn(u64) -> io::Result<()> + 'a;

fn copy(from: &mut Reader<'_>, to: &mut Writer<'_>, keep: &Keep<'_>) -> io::Result<()> {
    if from.offset == 0 && from.imagings.bytes_per_s.is_none() && clone(from.file, to.file)? {
        to.advance(from.end)?;
        return Ok(());
    }
    let mut kernel_copies = true;
    let mut buffer = vec![0; STEP_BYTES as usize];
    let mut kept = from.offset;
    while from.offset < from.end {
        let data = sparse::next_data(from.file, from.offset, from.end);
        to.skip_zeros(data - from.offset)?;
        from.offset = data;
        let data_end = sparse::next_hole(from.file, data, from.end);
        while from.offset < data_end {
            let step = from.step(data_end - from.offset, KERNEL_STEP_BYTES)?;
            let copied = match kernel_copies {
                true => copy_in_kernel(from, to, step)?,
                false => None,
            };
            match copied {
                Some(bytes) => {
                    from.passed(bytes);
                    to.advance(bytes)?;
                }
                None => {
                    kernel_copies = false;
                    let step = step.min(STEP_BYTES) as usize;
                    from.read_exact(&mut buffer[..step])?;
                    to.write_all(&buffer[..step])?;
                }
            }
            if from.offset - kept >= KEPT_EVERY_BYTES {
                keep(from.offset)?;
                kept = from.offset;
            }
        }
        from.progress.reach(from.offset);
    }
    Ok(())
}

/// Shares all blocks of `from` with `to`, which is not shorter; `false` where the
/// file system cannot, and nothing has changed.
fn clone(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // Among them a source whose last block is not whole, and a longer
        // destination.
        Err(error) if is_unable(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Lets the kernel copy up to `step` bytes; `None` where it cannot.
fn copy_in_kernel(from: &Reader<'_>, to: &Writer<'_>, step: u64) -> io::Result<Option<u64>> {
    let (mut source, mut destination) = (from.offset, to.offset);
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let copied = copy_file_range(
        from.file,
        Some(&mut source),
        to.file,
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

/// Whether a call says that it is not for this file system or these files.
fn is_unable(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::XDEV | Errno::NOTTY | Errno::PERM
    )
}

fn gzip(from: &mut Reader<'_>, to: &mut Writer<'_>) -> io::Result<()> {
    // Batches what the encoder gives in small pieces.
    let batches = io::BufWriter::with_capacity(STEP_BYTES as usize, to);
    let mut encoder = GzEncoder::new(batches, Compression::fast());
    let mut buffer = vec![0; STEP_BYTES as usize];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => encoder.write_all(&buffer[..n])?,
        }
    }
    encoder.finish()?.flush()
}

fn gunzip(from: Reader<'_>, to: &mut Writer<'_>) -> io::Result<()> {
    let packed = BufReader::with_capacity(STEP_BYTES as usize, from);
    let mut gunzip = Gunzip::new(packed, to.end, Trailing::Ignore);
    let mut buffer = vec![0; STEP_BYTES as usize];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match gunzip.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..filled])?;
    }
}

/// The source, which tells its progress.
struct Reader<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
    progress: &'a Progress,
    imagings: &'a Imagings,
    lease: &'a Lease,
    /// When it began, and at which byte.
    began: Instant,
    begun: u64,
}

impl Reader<'_> {
    /// How many of `bytes` to take next, `most` if there is no hurry; an error when
    /// the server stops. One that is slow on purpose sleeps here.
    fn step(&self, bytes: u64, most: u64) -> io::Result<u64> {
        loop {
            if self.imagings.is_stopping() {
                return Err(io::Error::other("the server stops"));
            }
            check_lease(self.lease)?;
            let Some(rate) = self.imagings.bytes_per_s else {
                return Ok(bytes.min(most));
            };
            let due = (self.offset - self.begun) as f64 / rate as f64;
            let wait = due - self.began.elapsed().as_secs_f64();
            if wait <= 0.0 {
                return Ok(bytes.min(most).min(rate.div_ceil(10)));
            }
            std::thread::sleep(Duration::from_secs_f64(wait).min(NAP));
        }
    }

    fn passed(&mut self, bytes: u64) {
        self.offset += bytes;
        self.progress.reach(self.offset);
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let step = self.step(self.end - self.offset, buffer.len() as u64)?;
        let buffer = &mut buffer[..step as usize];
        self.file.read_exact_at(buffer, self.offset)?;
        self.passed(step);
        Ok(buffer.len())
    }
}

/// The destination, bounded by its end.
struct Writer<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
}

impl Writer<'_> {
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
            len => sparse::zero_at(self.file, start, len),
        }
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let start = self.advance(data.len() as u64)?;
        sparse::write_at(self.file, data, start)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::drive::DriveId;

    const LEN: u64 = 40 << 20;

    /// A file with holes, data and zeros that are data; its last block is not whole.
    fn source(directory: &str) -> File {
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
        file
    }

    fn all(file: &File) -> Vec<u8> {
        let mut all = vec![1; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    /// Copies from `offset` on to a destination full of old bytes.
    fn copied(source: &File, offset: u64, longer: u64) -> File {
        let end = source.metadata().unwrap().len();
        let destination = tempfile::tempfile_in("/tmp").unwrap();
        let old = vec![7; (end + longer) as usize];
        destination.write_all_at(&old, 0).unwrap();
        let imagings = Imagings::new(None);
        let progress = Progress::new(DriveId::random(), end);
        let mut from = Reader {
            file: source,
            offset,
            end,
            progress: &progress,
            imagings: &imagings,
            lease: &Lease::of(String::new()),
            began: Instant::now(),
            begun: offset,
        };
        let mut to = Writer {
            file: &destination,
            offset,
            end: end + longer,
        };
        copy(&mut from, &mut to, &|_| Ok(())).unwrap();
        assert_eq!(to.offset, end);
        destination
    }

    #[test]
    fn a_copy_is_equal_with_and_without_the_help_of_the_kernel() {
        // Between two file systems the kernel does not copy.
        for directory in ["/tmp", "/dev/shm"] {
            let source = source(directory);
            let plain = all(&source);
            for longer in [0, 4096, 5000] {
                let destination = copied(&source, 0, longer);
                let got = all(&destination);
                assert!(got[..plain.len()] == plain, "{directory} {longer}");
                assert!(got[plain.len()..].iter().all(|&b| b == 7));
                // Most of it are holes; where the file system has none, both are long.
                let blocks = |file: &File| file.metadata().unwrap().blocks();
                assert!(blocks(&destination) <= blocks(&source) + longer / 512 + 1024);
            }
        }
    }

    #[test]
    fn a_copy_goes_on_and_leaves_what_is_before() {
        let source = source("/tmp");
        let offset = 6 << 20;
        let got = all(&copied(&source, offset as u64, 0));
        assert!(got[..offset].iter().all(|&b| b == 7));
        assert!(got[offset..] == all(&source)[offset..]);
    }
}
