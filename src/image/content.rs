//! The content of a disk, read once from its start: holes are not.

use std::thread;

use super::Disk;
use crate::content::{ChunkContent, Content};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Span;

/// Most chunks in memory at once.
const AT_ONCE_MAX: usize = 8;

/// Reads a disk and makes the digests of it, on as many threads as there are
/// processors, up to eight. Blocks; gives up when `goes_on` says no.
///
/// # Errors
/// What reading says; [`ErrorKind::Cancelled`] if it gave up.
pub fn content_of(disk: &dyn Disk, goes_on: impl Fn() -> bool) -> Result<Content> {
    let mut content = Content::new(disk.size());
    let plan = content.plan();
    let at_once = thread::available_parallelism().map_or(1, |n| n.get().min(AT_ONCE_MAX));
    let mut buffers = vec![Vec::new(); at_once];
    let (mut next, mut extent) = (0, 0..0);
    while let Some(span) = plan.span(next) {
        if !goes_on() {
            return Err(Error::new(ErrorKind::Cancelled, "Stopped"));
        }
        if extent.end <= span.offset {
            extent = disk.data_after(span.offset)?.unwrap_or(u64::MAX..u64::MAX);
        }
        let data = plan
            .index_of(extent.start.max(span.offset))
            .min(plan.count());
        content.push_hole(data - next);
        next = data;
        // As far as the extent goes; the next one may begin in its last chunk.
        let spans = (next..).map_while(|index| plan.span(index));
        let spans = spans.take_while(|span| span.offset < extent.end);
        let spans: Vec<_> = spans.take(at_once).collect();
        next += spans.len() as u64;
        for chunk in hash(disk, &spans, &mut buffers)? {
            content.push(&chunk);
        }
    }
    Ok(content)
}

/// Reads and hashes these chunks, each on a thread.
fn hash(disk: &dyn Disk, spans: &[Span], buffers: &mut [Vec<u8>]) -> Result<Vec<ChunkContent>> {
    let read = |span: &Span, buffer: &mut Vec<u8>| {
        buffer.resize(usize::try_from(span.len).unwrap_or(usize::MAX), 0);
        disk.read_at(buffer, span.offset)?;
        Ok(ChunkContent::of(buffer))
    };
    if let ([span], [buffer, ..]) = (spans, &mut *buffers) {
        return read(span, buffer).map(|chunk| vec![chunk]);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = spans
            .iter()
            .zip(buffers)
            .map(|(span, buffer)| scope.spawn(move || read(span, buffer)))
            .collect();
        let panicked = |_| Err(Error::new(ErrorKind::Bug, "A thread panicked"));
        let chunks = threads.into_iter();
        chunks
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::image::{Image, ImageOptions};

    #[test]
    fn it_is_that_of_the_bytes_whatever_the_holes() {
        const C: u64 = 4 << 20;
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = 30 * C + 12_345;
        file.as_file().set_len(size).unwrap();
        for (at, len) in [
            (0, 10),
            (C - 5, 10),
            (9 * C + 7, 5 << 20),
            (20 * C, 1),
            (size - 1, 1),
        ] {
            file.as_file().write_all_at(&vec![7; len], at).unwrap();
        }
        // Data that is zeros.
        file.as_file().write_all_at(&[0; 9000], 25 * C).unwrap();
        let image = Image::open(file.path(), &ImageOptions::default()).unwrap();
        let found = content_of(image.disk().unwrap(), || true).unwrap();
        let mut expected = Content::new(size);
        for chunk in std::fs::read(file.path()).unwrap().chunks(C as usize) {
            expected.push(&ChunkContent::of(chunk));
        }
        assert_eq!(found, expected);
        let stopped = content_of(image.disk().unwrap(), || false).unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::Cancelled);
    }
}
