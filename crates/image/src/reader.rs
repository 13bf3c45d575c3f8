//! Reads the chunks of an image in order. A disk can be read at any offset, so the reader skips its
//! holes and the chunks that earlier runs settled: the work is proportional to the data, not to the
//! size. A stream has to be read completely. Later stages do not know which of the two it was.

use std::ops::Range;
use std::sync::Arc;

use super::{Disk, Image, MappedImage};
use crate::buffer::{Buffer, BufferPool};
use crate::chunk::{Found, RawChunk};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, Span};

/// A chunk from the reader, before the zero check.
#[derive(Debug)]
pub enum Unchecked {
    /// The reader read it.
    Read(RawChunk),
    /// A worker has to read it. The reader leaves this to workers for formats with a map, whose
    /// clusters may be compressed: reading these on its one thread would be too slow.
    Unread(Unread),
}

impl Unchecked {
    /// The chunk with its bytes, which are read now if the reader did not. Blocks.
    ///
    /// # Errors
    /// As [`ImageReader::read_next`].
    pub fn read(self) -> Result<RawChunk> {
        match self {
            Self::Read(chunk) => Ok(chunk),
            Self::Unread(unread) => unread.read(),
        }
    }
}

/// A chunk that a worker has to read, and the buffer for it.
#[derive(Debug)]
pub struct Unread {
    image: Arc<MappedImage>,
    span: Span,
    buffer: Buffer,
}

impl Unread {
    /// The position of the chunk.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Reads it. Blocks.
    ///
    /// # Errors
    /// As [`ImageReader::read_next`].
    pub fn read(mut self) -> Result<RawChunk> {
        let mut extent = 0..0;
        let read = read_extents(&*self.image, &mut extent, self.span, &mut self.buffer)?;
        // The reader checks the image at the end, but it may be there before this read, and would
        // miss a change that happened in between.
        self.image.check_unchanged()?;
        Ok(RawChunk::sparse(self.span, self.buffer, read))
    }
}

/// Reads the chunks of an image in order.
#[derive(Debug)]
pub struct ImageReader {
    image: Image,
    plan: Plan,
    pool: BufferPool,
    /// The chunks still to be read, by index, the next range last.
    todo: Vec<Range<u64>>,
    /// Of a disk: the last extent of data that was found, in bytes, so that each extent is looked
    /// up once although it may cover many chunks. See [`read_extents`].
    extent: Range<u64>,
    /// Of a stream: how many bytes have been read.
    stream_offset: u64,
    /// The last chunk of a stream, held back while its [`Found::SizeKnown`] is returned first.
    held: Option<RawChunk>,
}

impl ImageReader {
    /// A reader of those chunks of `plan` that are in `todo` (in order), into buffers of `pool`. Of
    /// a stream, it reads all chunks.
    pub fn new(image: Image, plan: Plan, mut todo: Vec<Range<u64>>, pool: BufferPool) -> Self {
        match &image {
            Image::Raw(_) | Image::Mapped(_) => todo.reverse(),
            Image::Stream(_) => todo = std::iter::once(0..plan.count()).collect(),
        }
        Self {
            image,
            plan,
            pool,
            todo,
            extent: 0..0,
            stream_offset: 0,
            held: None,
        }
    }

    /// The next chunk, hole, or the size; `None` at the end, or after the pool was closed.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if the image cannot be read,
    /// [`ErrorKind::Integrity`] if it changed since it was opened.
    pub fn read_next(&mut self) -> Result<Option<Found<Unchecked>>> {
        if let Some(chunk) = self.held.take() {
            return Ok(Some(Found::Chunk(Unchecked::Read(chunk))));
        }
        let Some((span, range_end)) = self.next_span() else {
            if let Image::Stream(stream) = &mut self.image {
                let offset = self.stream_offset;
                if !stream.is_at_end(offset)? {
                    return Err(stream.wrong_size(self.plan.size(), true, offset));
                }
            }
            self.image.check_unchanged()?;
            return Ok(None);
        };
        let Some(disk) = self.image.disk() else {
            return self.next_of_stream(span);
        };
        if self.extent.end <= span.offset {
            // Checked at every extent, so that a change is reported before the end.
            disk.check_unchanged()?;
            self.extent = extent_after(disk, span.offset)?;
        }
        let hole = span.offset..self.extent.start.max(span.offset);
        let hole = self.plan.within(hole);
        let hole = hole.start..hole.end.min(range_end);
        if !hole.is_empty() {
            self.advance(hole.end);
            return Ok(Some(Found::Hole(hole)));
        }
        let Some(mut buffer) = buffer_for(&self.pool, span) else {
            return Ok(None);
        };
        let chunk = match &self.image {
            Image::Mapped(image) => Unchecked::Unread(Unread {
                image: Arc::clone(image),
                span,
                buffer,
            }),
            Image::Raw(_) | Image::Stream(_) => {
                let read = read_extents(disk, &mut self.extent, span, &mut buffer)?;
                Unchecked::Read(RawChunk::sparse(span, buffer, read))
            }
        };
        self.advance(span.index + 1);
        Ok(Some(Found::Chunk(chunk)))
    }

    /// The next chunk, and the end of its range of chunks.
    fn next_span(&mut self) -> Option<(Span, u64)> {
        while self.todo.last().is_some_and(Range::is_empty) {
            self.todo.pop();
        }
        let range = self.todo.last()?;
        Some((self.plan.span(range.start)?, range.end))
    }

    /// Continues with this chunk of the current range.
    fn advance(&mut self, to: u64) {
        if let Some(range) = self.todo.last_mut() {
            range.start = to;
        }
    }

    /// The next chunk of a stream. If the size was unknown, reading ahead shows whether it is the
    /// last chunk; if so, the size comes first.
    fn next_of_stream(&mut self, span: Span) -> Result<Option<Found<Unchecked>>> {
        let Some(mut buffer) = buffer_for(&self.pool, span) else {
            return Ok(None);
        };
        let Image::Stream(stream) = &mut self.image else {
            return Err(Error::new(ErrorKind::Bug, "It is no stream"));
        };
        let n = stream.read_next(&mut buffer, span.offset)?;
        self.stream_offset += n as u64;
        let is_whole = n as u64 == span.len;
        let is_last = match self.plan.is_endless() {
            true => !is_whole || stream.is_at_end(self.stream_offset)?,
            false if is_whole => false,
            false => return Err(stream.wrong_size(self.plan.size(), false, self.stream_offset)),
        };
        self.advance(span.index + 1);
        if !is_last {
            let chunk = RawChunk::new(span, buffer);
            return Ok(Some(Found::Chunk(Unchecked::Read(chunk))));
        }
        self.plan = self.plan.ending_at(self.stream_offset);
        buffer.resize(n);
        // An empty stream has no chunk.
        let span = self.plan.span(span.index);
        self.held = span.map(|span| RawChunk::new(span, buffer));
        Ok(Some(Found::SizeKnown(self.stream_offset)))
    }
}

/// A buffer for a chunk; `None` after the pool was closed. Blocks until one is free.
fn buffer_for(pool: &BufferPool, span: Span) -> Option<Buffer> {
    // The length of a chunk fits `usize`, because otherwise the pool could not hold it.
    pool.take(usize::try_from(span.len).unwrap_or(usize::MAX))
}

/// The extent of data at or after `offset`; if only holes follow, an empty one beyond any disk.
fn extent_after(disk: &dyn Disk, offset: u64) -> Result<Range<u64>> {
    Ok(disk.data_after(offset)?.unwrap_or(u64::MAX..u64::MAX))
}

/// Fills a chunk from the extents of data in it; everything between them is a hole, and so zero.
/// Returns the ranges of the chunk that were read.
///
/// `extent` is the one that was found last, for this chunk or an earlier one, or `0..0`. It is
/// replaced by later ones that the chunk reaches.
fn read_extents(
    disk: &dyn Disk,
    extent: &mut Range<u64>,
    span: Span,
    buffer: &mut Buffer,
) -> Result<Vec<Range<usize>>> {
    let mut ranges = Vec::new();
    let at = |offset: u64| usize::try_from(offset - span.offset).unwrap_or(usize::MAX);
    let mut offset = span.offset;
    while offset < span.end() {
        if extent.end <= offset {
            *extent = extent_after(disk, offset)?;
        }
        // The part of the extent within the chunk, which is empty if it begins behind the chunk.
        let start = extent.start.clamp(offset, span.end());
        let end = extent.end.min(span.end());
        if start < end {
            ranges.push(at(start)..at(end));
        }
        offset = end.max(start);
    }
    buffer.fill(&ranges, |bytes, at| {
        disk.read_at(bytes, span.offset + at as u64)
    })?;
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::num::NonZeroU64;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::{Length, StreamOptions};

    fn reader(image: Image, chunk: u64, first: u64) -> (ImageReader, Plan) {
        let plan = Plan::new(
            image.length().known().unwrap(),
            NonZeroU64::new(chunk).unwrap(),
        );
        let pool = BufferPool::new(2);
        let todo = std::iter::once(first..plan.count()).collect();
        (ImageReader::new(image, plan, todo, pool), plan)
    }

    /// What a drive of zeros would hold after all pieces were written, and how many chunks were
    /// read.
    fn replay(mut reader: ImageReader, plan: Plan, first: u64) -> (Vec<u8>, u64) {
        let mut drive = vec![0; usize::try_from(plan.size()).unwrap()];
        let (mut next, mut read) = (first, 0);
        while let Some(piece) = reader.read_next().unwrap() {
            match piece {
                Found::Hole(range) => {
                    assert_eq!(range.start, next);
                    next = range.end;
                }
                Found::SizeKnown(_) => panic!("the size was known"),
                Found::Chunk(Unchecked::Unread(_)) => panic!("a raw image has no map"),
                Found::Chunk(Unchecked::Read(chunk)) => {
                    read += 1;
                    let span = plan.span(next).unwrap();
                    if let Some(data) = chunk.check() {
                        assert_eq!(data.span(), span);
                        let at = usize::try_from(span.offset).unwrap();
                        drive[at..at + data.bytes().len()].copy_from_slice(data.bytes());
                    }
                    next += 1;
                }
            }
        }
        assert_eq!(next, plan.count());
        (drive, read)
    }

    fn sparse(dir: &Path, size: u64, writes: &[(u64, Vec<u8>)]) -> (std::path::PathBuf, Vec<u8>) {
        let path = dir.join("image");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        let mut content = vec![0; usize::try_from(size).unwrap()];
        for (offset, bytes) in writes {
            let len = bytes.len().min(usize::try_from(size - offset).unwrap());
            file.write_all_at(&bytes[..len], *offset).unwrap();
            let at = usize::try_from(*offset).unwrap();
            content[at..at + len].copy_from_slice(&bytes[..len]);
        }
        (path, content)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_bytes_read_do_not_depend_on_holes(
            size in 1_u64..400_000,
            chunk in 1000_u64..150_000,
            writes in proptest::collection::vec((0_u64..400_000, 1_usize..60_000), 0..5),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let writes: Vec<_> = writes
                .into_iter()
                .filter(|(offset, _)| *offset < size)
                .map(|(offset, len)| (offset, (0..len).map(|i| (i % 251) as u8).collect()))
                .collect();
            let (path, content) = sparse(dir.path(), size, &writes);
            let (reader, plan) = reader(Image::open_raw(&path).unwrap(), chunk, 0);
            prop_assert_eq!(replay(reader, plan, 0).0, content);
        }
    }

    #[test]
    fn holes_are_never_read() {
        let dir = tempfile::tempdir().unwrap();
        let size = 1 << 40;
        let path = dir.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[7; 4096], size / 2).unwrap();
        let (mut reader, plan) = reader(Image::open_raw(&path).unwrap(), 5 << 20, 0);
        let (mut holes, mut chunks) = (0, 0);
        while let Some(piece) = reader.read_next().unwrap() {
            match piece {
                Found::Hole(range) => holes += range.end - range.start,
                Found::Chunk(_) => chunks += 1,
                Found::SizeKnown(_) => panic!("the size was known"),
            }
        }
        assert_eq!((holes + chunks, chunks), (plan.count(), 1));
    }

    #[test]
    fn only_chunks_to_transfer_are_read() {
        let dir = tempfile::tempdir().unwrap();
        // Chunks are whole blocks of every file system.
        const CHUNK: u64 = 64 * 1024;
        let writes = [(0, vec![1; 150_000]), (7 * CHUNK, vec![2; 5])];
        let (path, _) = sparse(dir.path(), 10 * CHUNK, &writes);
        let image = Image::open_raw(&path).unwrap();
        let plan = Plan::new(
            image.length().known().unwrap(),
            NonZeroU64::new(CHUNK).unwrap(),
        );
        let todo = vec![1..2, 4..4, 5..9];
        let mut reader = ImageReader::new(image, plan, todo, BufferPool::new(2));
        let mut seen = Vec::new();
        while let Some(piece) = reader.read_next().unwrap() {
            seen.push(match piece {
                Found::Hole(range) => format!("hole {range:?}"),
                Found::SizeKnown(size) => format!("end {size}"),
                Found::Chunk(Unchecked::Unread(unread)) => {
                    format!("unread {}", unread.span().index)
                }
                Found::Chunk(Unchecked::Read(chunk)) => {
                    let index = chunk.span().index;
                    match chunk.check() {
                        Some(_) => format!("data {index}"),
                        None => format!("zero {index}"),
                    }
                }
            });
        }
        assert_eq!(seen, ["data 1", "hole 5..7", "data 7", "hole 8..9"]);
    }

    #[test]
    fn a_gzip_image_of_several_members_is_read_completely() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.gz");
        let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let mut file = File::create(&path).unwrap();
        for part in content.chunks(100_000) {
            let mut gz = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
            gz.write_all(part).unwrap();
            gz.finish().unwrap();
        }
        drop(file);
        let image = Image::open_gzip(&path, StreamOptions::default()).unwrap();
        assert_eq!(image.length(), Length::Known(300_000));
        let (full, plan) = reader(image, 70_000, 0);
        assert_eq!(replay(full, plan, 0).0, content);
        // A stream is read from its start, even if only its last chunks are to be sent.
        let image = Image::open_gzip(&path, StreamOptions::default()).unwrap();
        let (resumed, plan) = reader(image, 70_000, 2);
        assert_eq!(replay(resumed, plan, 0), (content, 5));
    }

    #[test]
    fn broken_gzip_is_refused_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&[1; 10_000]).unwrap();
        let sound = gz.finish().unwrap();
        let mut bad_crc = sound.clone();
        let at = sound.len() - 6;
        bad_crc[at] ^= 1;
        let mut cut = sound.clone();
        cut.extend_from_slice(&sound[..12]);
        let cases = [
            sound[..sound.len() - 9].to_vec(),
            bad_crc,
            cut,
            vec![9; 100],
        ];
        for (i, bytes) in cases.into_iter().enumerate() {
            let path = dir.path().join(format!("{i}.gz"));
            std::fs::write(&path, bytes).unwrap();
            let error = Image::open_gzip(&path, StreamOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image, "{i}");
        }
    }

    #[test]
    fn a_change_while_reading_is_an_integrity_error() {
        for truncate in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            std::fs::write(&path, vec![1; 300_000]).unwrap();
            let (mut reader, _) = reader(Image::open_raw(&path).unwrap(), 100_000, 0);
            assert!(reader.read_next().unwrap().is_some());
            let file = File::options().write(true).open(&path).unwrap();
            if truncate {
                file.set_len(100_000).unwrap();
            } else {
                file.write_all_at(b"x", 0).unwrap();
            }
            let error = loop {
                match reader.read_next() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("nothing was noticed"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::Integrity);
        }
    }

    #[test]
    fn a_file_that_is_not_an_image_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        for path in [
            &empty,
            dir.path(),
            Path::new("/dev/null"),
            Path::new("/nonexistent"),
        ] {
            let error = Image::open_raw(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image, "{}", path.display());
        }
    }
}
