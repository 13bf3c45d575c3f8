//! Filling a drive from another one (REFERENCE section 5), in the background.
//!
//! The bytes of the destination beyond what the source gives stay as they are.
//! An imaging that fails, or is cut off by the end of the server, leaves the
//! destination with status `inactive`, until something is written to it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::hosted::{Pass, Progress};
use super::routes::Packing;
use super::sparse;
use crate::codec::{Gunzip, Trailing};

/// Imagings that run at once; more are queued.
pub(super) const AT_ONCE: u32 = 2;
const STEP_BYTES: usize = 1024 * 1024;

/// One imaging. It holds both drives until it is dropped.
pub(super) struct Imaging {
    pub(super) source: Pass,
    pub(super) destination: Pass,
    pub(super) packing: Packing,
    pub(super) progress: Arc<Progress>,
}

impl Imaging {
    /// Does it; gives up soon when `is_stopping`.
    pub(super) fn run(&self, is_stopping: &AtomicBool) -> io::Result<u64> {
        self.progress.start();
        let (source, destination) = (&self.source.drive, &self.destination.drive);
        let mut from = Reader {
            file: &source.file,
            offset: 0,
            end: source.size(),
            progress: &self.progress,
            is_stopping,
        };
        let mut to = Writer {
            file: &destination.file,
            offset: 0,
            end: destination.size(),
        };
        match self.packing {
            Packing::Copy => copy(&mut from, &mut to)?,
            Packing::Gzip => gzip(&mut from, &mut to)?,
            Packing::Gunzip => gunzip(from, &mut to)?,
        }
        Ok(to.offset)
    }
}

fn copy(from: &mut Reader<'_>, to: &mut Writer<'_>) -> io::Result<()> {
    let mut buffer = vec![0; STEP_BYTES];
    while from.offset < from.end {
        let data = sparse::next_data(from.file, from.offset, from.end);
        to.skip_zeros(data - from.offset)?;
        from.offset = data;
        let n = from.read(&mut buffer)?;
        to.write_all(&buffer[..n])?;
    }
    Ok(())
}

fn gzip(from: &mut Reader<'_>, to: &mut Writer<'_>) -> io::Result<()> {
    // Batches what the encoder gives in small pieces.
    let batches = io::BufWriter::with_capacity(STEP_BYTES, to);
    let mut encoder = GzEncoder::new(batches, Compression::fast());
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => encoder.write_all(&buffer[..n])?,
        }
    }
    encoder.finish()?.flush()
}

fn gunzip(from: Reader<'_>, to: &mut Writer<'_>) -> io::Result<()> {
    let packed = BufReader::with_capacity(STEP_BYTES, from);
    let mut gunzip = Gunzip::new(packed, to.end, Trailing::Ignore);
    let mut buffer = vec![0; STEP_BYTES];
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
    is_stopping: &'a AtomicBool,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err(io::Error::other("the server stops"));
        }
        let step = (self.end - self.offset).min(buffer.len() as u64) as usize;
        self.file.read_exact_at(&mut buffer[..step], self.offset)?;
        self.offset += step as u64;
        self.progress.reach(self.offset);
        Ok(step)
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
