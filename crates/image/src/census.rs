//! Estimates what an image holds and how many bytes an upload would send, without sending anything:
//! it walks the map of the image, and reads a sample of the data.

use std::ops::Range;

use super::{Disk, no_thread};
use crate::buffer::BufferPool;
use crate::chunk::{RawChunk, is_zero};
use crate::codec::{Gzip, Level, ZeroRuns};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, Span};

/// Number of chunks to read. With default chunks these are at most 160 MiB, which the highest level
/// compresses within seconds. Time and memory grow with the size of a chunk: for chunks of 1 GiB,
/// the largest, it would be 32 GiB, with a chunk and two buffers for each level in memory.
///
/// docs/user/uploading.md and the help of `openhosting image info` repeat the number.
const SAMPLES: usize = 32;
/// The unit in which zeros are counted: the usual block of a file system.
const BLOCK_BYTES: usize = 4096;

/// What an image holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Census {
    /// The division into chunks.
    pub plan: Plan,
    /// Bytes in extents of data.
    pub allocated: u64,
    /// Chunks with data in them. No more than these are sent to a drive that reads as zeros.
    pub data_chunks: u64,
    /// How many of these were read.
    pub sampled: u64,
    /// How many of the chunks that were read are all zeros.
    pub zero_chunks: u64,
    /// Bytes of data in the chunks that were read, and how many of these are in zero blocks of 4096
    /// bytes.
    pub sampled_bytes: u64,
    /// See [`sampled_bytes`](Self::sampled_bytes).
    pub zero_bytes: u64,
    /// For each level, the compressed bytes of the chunks that were read.
    pub bodies: Vec<(Level, u64)>,
    /// Bytes of data in each of the equal parts that the disk is divided into.
    pub map: Vec<u64>,
    /// Bytes of such a part; the last may be shorter.
    pub part: u64,
}

impl Census {
    /// Takes the census of a disk divided by `plan`, with a map of at most `parts` parts, at these
    /// levels. It blocks its thread while it reads and compresses, which may take seconds; `report`
    /// gets the bytes that were read so far, and all that will be.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if it cannot be read.
    pub fn take(
        disk: &dyn Disk,
        plan: Plan,
        parts: u64,
        levels: &[Level],
        report: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let (mut census, mut sample) = Self::walked(disk, plan, parts, levels)?;
        sample.sort_unstable();
        census.read(disk, &sample, report)?;
        Ok(census)
    }

    /// A census from the map alone. It reads no data, so everything that depends on data stays
    /// unknown.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn of_map(disk: &dyn Disk, plan: Plan, parts: u64, levels: &[Level]) -> Result<Self> {
        Self::walked(disk, plan, parts, levels).map(|(census, _)| census)
    }

    /// Walks the map, and selects the chunks to read.
    fn walked(
        disk: &dyn Disk,
        plan: Plan,
        parts: u64,
        levels: &[Level],
    ) -> Result<(Self, Vec<u64>)> {
        let part = plan.size().div_ceil(parts.max(1)).max(1);
        let count = usize::try_from(plan.size().div_ceil(part)).unwrap_or(0);
        let mut census = Self {
            plan,
            allocated: 0,
            data_chunks: 0,
            sampled: 0,
            zero_chunks: 0,
            sampled_bytes: 0,
            zero_bytes: 0,
            bodies: levels.iter().map(|level| (*level, 0)).collect(),
            map: vec![0; count],
            part,
        };
        let sample = census.walk(disk)?;
        Ok((census, sample))
    }

    /// Whether the values that depend on data are known or estimated: some data was read, or there
    /// is none.
    pub fn knows_content(&self) -> bool {
        self.sampled > 0 || self.data_chunks == 0
    }

    /// Whether every chunk with data was read, so that nothing is estimated.
    pub fn is_exact(&self) -> bool {
        self.sampled == self.data_chunks
    }

    /// Chunks that will be sent to a drive that reads as zeros.
    pub fn chunks_to_send(&self) -> u64 {
        self.data_chunks - self.extrapolate(self.zero_chunks, self.sampled, self.data_chunks)
    }

    /// Bytes of the disk that are zeros.
    pub fn zeros(&self) -> u64 {
        let within = self.extrapolate(self.zero_bytes, self.sampled_bytes, self.allocated);
        self.plan.size() - self.allocated + within
    }

    /// Bytes to send at each level to a drive that reads as zeros, without the headers of requests.
    /// These are whole chunks; the upload may send less, if it can leave out zeros within them.
    pub fn wire(&self) -> impl Iterator<Item = (Level, u64)> + '_ {
        self.bodies.iter().map(|(level, bytes)| {
            (
                *level,
                self.extrapolate(*bytes, self.sampled, self.data_chunks),
            )
        })
    }

    /// Extrapolates from the sample to all chunks.
    fn extrapolate(&self, value: u64, sampled: u64, total: u64) -> u64 {
        let all = u128::from(value) * u128::from(total) / u128::from(sampled.max(1));
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// Walks the map and selects chunks with data, each with equal probability. The same image
    /// always gives the same selection.
    fn walk(&mut self, disk: &dyn Disk) -> Result<Vec<u64>> {
        // The seed is fixed, so that two runs print the same estimate. The size is as good a seed
        // as any: nothing depends on the selection being unpredictable.
        let mut rng = fastrand::Rng::with_seed(self.plan.size());
        let mut sample = Vec::new();
        let (mut offset, mut next) = (0, 0);
        while let Some(data) = disk.data_after(offset)? {
            self.allocated += data.end - data.start;
            self.draw(&data);
            let first = self.plan.index_of(data.start).max(next);
            next = self.plan.index_of(data.end - 1) + 1;
            for index in first..next {
                self.data_chunks += 1;
                if sample.len() < SAMPLES {
                    sample.push(index);
                } else if let Ok(at) = usize::try_from(rng.u64(..self.data_chunks))
                    && let Some(picked) = sample.get_mut(at)
                {
                    *picked = index;
                }
            }
            offset = data.end;
        }
        Ok(sample)
    }

    fn draw(&mut self, data: &Range<u64>) {
        let mut at = data.start;
        while at < data.end {
            let end = (at / self.part + 1).saturating_mul(self.part).min(data.end);
            let index = usize::try_from(at / self.part).unwrap_or(usize::MAX);
            if let Some(part) = self.map.get_mut(index) {
                *part += end - at;
            }
            at = end;
        }
    }

    /// Reads the selected chunks, and compresses them at each level.
    fn read(
        &mut self,
        disk: &dyn Disk,
        sample: &[u64],
        report: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let levels: Vec<Level> = self.bodies.iter().map(|(level, _)| *level).collect();
        // One buffer for the chunk, and for each level one for a copy and one for the result.
        let pool = BufferPool::new(1 + 2 * levels.len());
        let no_buffer = || Error::new(ErrorKind::Bug, "No buffer is left");
        let mut compressors = Vec::new();
        for level in levels {
            compressors.push((level, Gzip::new(pool.take(0).ok_or_else(no_buffer)?)));
        }
        let plan = self.plan;
        let spans = || sample.iter().filter_map(|index| plan.span(*index));
        let (mut done, all) = (0, spans().map(|span| span.len).sum());
        for span in spans() {
            report(done, all);
            done += span.len;
            let len = usize::try_from(span.len).unwrap_or(usize::MAX);
            let mut bytes = pool.take(len).ok_or_else(no_buffer)?;
            disk.read_at(&mut bytes, span.offset)?;
            self.sampled += 1;
            self.look_at(disk, span, &bytes)?;
            if is_zero(&bytes) {
                self.zero_chunks += 1;
                continue;
            }
            let mut copies = Vec::new();
            for _ in &compressors {
                let mut copy = pool.take(len).ok_or_else(no_buffer)?;
                copy.copy_from_slice(&bytes);
                copies.push(copy);
            }
            // Each level has its own thread: the highest needs nearly all of the time.
            std::thread::scope(|scope| {
                let mut levels = self.bodies.iter_mut().zip(&mut compressors).zip(copies);
                levels.try_for_each(|(((_, total), (level, gzip)), copy)| {
                    let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
                        // It is never `None`: chunks of zeros were skipped above. Zeros within a
                        // chunk count: an upload leaves them out only once the drive has proved
                        // to read as zeros, which may be after most chunks, or never.
                        if let Some(chunk) = RawChunk::new(span, copy).check() {
                            *total += gzip.encode(chunk, *level, ZeroRuns::Send).body_bytes();
                        }
                    });
                    thread.map(drop).map_err(no_thread)
                })
            })?;
        }
        Ok(())
    }

    /// Counts the zeros in the data of a chunk.
    fn look_at(&mut self, disk: &dyn Disk, span: Span, bytes: &[u8]) -> Result<()> {
        let mut offset = span.offset;
        while let Some(extent) = disk.data_after(offset)?
            && extent.start < span.end()
        {
            offset = extent.end;
            let within = |at: u64| usize::try_from(at - span.offset).unwrap_or(usize::MAX);
            let data = extent.start.max(span.offset)..extent.end.min(span.end());
            let data = &bytes[within(data.start)..within(data.end)];
            self.sampled_bytes += data.len() as u64;
            let zeros = data.chunks(BLOCK_BYTES).filter(|block| is_zero(block));
            self.zero_bytes += zeros.map(|block| block.len() as u64).sum::<u64>();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{Image, ImageOptions};

    const C: u64 = 64 * 1024;

    fn census(chunks: u64, writes: &[(u64, Vec<u8>)], parts: u64) -> Census {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(chunks * C).unwrap();
        for (at, bytes) in writes {
            file.as_file().write_all_at(bytes, *at).unwrap();
        }
        let image = Image::open(file.path(), &ImageOptions::default()).unwrap();
        let plan = Plan::new(image.length().known().unwrap(), NonZeroU64::new(C).unwrap());
        let levels = ["0", "1"].map(|level| level.parse().unwrap());
        Census::take(image.disk().unwrap(), plan, parts, &levels, &mut |_, _| ()).unwrap()
    }

    #[test]
    fn a_small_image_is_counted() {
        let writes = [
            (0, vec![7; 4096]),
            (3 * C, vec![0; C as usize]),
            (5 * C + 8192, [vec![1; 4096], vec![0; 4096]].concat()),
        ];
        let census = census(10, &writes, 5);
        assert!(census.is_exact());
        assert_eq!((census.data_chunks, census.chunks_to_send()), (3, 2));
        assert_eq!(census.allocated, 4096 + C + 8192);
        assert_eq!(census.zeros(), 10 * C - 8192);
        assert_eq!(
            (census.part, &*census.map),
            (2 * C, &[4096, C, 8192, 0, 0][..])
        );
        let wire: Vec<_> = census.wire().map(|(_, bytes)| bytes).collect();
        assert_eq!(wire[0], 2 * C);
        assert!(wire[1] < 2000, "{wire:?}");
    }

    #[test]
    fn a_large_image_is_sampled() {
        let writes: Vec<_> = (0..200)
            .map(|i| (i * 2 * C, vec![(i % 2) as u8; C as usize]))
            .collect();
        let census = census(400, &writes, 1000);
        assert!(!census.is_exact());
        assert_eq!((census.data_chunks, census.sampled), (200, SAMPLES as u64));
        assert_eq!(census.allocated, 200 * C);
        let to_send = census.chunks_to_send();
        assert!((60..=140).contains(&to_send), "{to_send} of 100");
        assert!(census.map.len() <= 1000);
        assert_eq!(census.map.iter().sum::<u64>(), census.allocated);
    }
}
