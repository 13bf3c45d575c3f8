//! Computes the content of a disk in one pass. Holes are not read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Disk, no_thread};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Span;
use openhosting_base::content::{ChunkContent, Content};

/// Maximum number of chunks in memory at once, and so of threads: a chunk has 4 MiB, and more
/// threads are faster than most disks.
const AT_ONCE_MAX: usize = 8;

/// Maximum chunks for each thread between two calls of `should_continue`, where all threads
/// wait for the slowest.
const CHUNKS_FOR_EACH: usize = 8;

/// Reads a disk and computes its digests, with one thread for each processor, up to eight. Digests
/// of chunks that `base` holds as well are taken from there. Blocks. It regularly calls
/// `should_continue` with whether it has read something that `base` does not hold, and with how
/// many bytes of the disk it has read, and stops if that returns false.
///
/// # Errors
/// Errors of reading; [`ErrorKind::Cancelled`] if it stopped early.
pub fn content_of(
    disk: &dyn Disk,
    base: Option<&Content>,
    should_continue: impl Fn(bool, u64) -> bool,
) -> Result<Content> {
    let mut content = Content::new(disk.size());
    let plan = content.plan();
    let at_once = thread::available_parallelism().map_or(1, |n| n.get().min(AT_ONCE_MAX));
    let mut buffers = vec![Vec::new(); at_once];
    // The first batch is small, so that a difference at the start is reported soon. Later batches
    // are larger.
    let mut batch = 1;
    let (mut next, mut extent, mut is_other) = (0, 0..0, false);
    while let Some(span) = plan.span(next) {
        if !should_continue(is_other, span.offset) {
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
        // Up to the end of the extent; the next extent may begin in the last of these chunks.
        let spans = (next..).map_while(|index| plan.span(index));
        let spans = spans.take_while(|span| span.offset < extent.end);
        let spans: Vec<_> = spans.take(batch).collect();
        batch = (batch * 2).min(at_once * CHUNKS_FOR_EACH);
        next += spans.len() as u64;
        for (chunk, is_same) in hash(disk, base, &spans, &mut buffers)? {
            is_other |= base.is_some() && !is_same;
            content.push(&chunk);
        }
    }
    Ok(content)
}

/// Reads and hashes these chunks, with one thread for each buffer. Returns for each chunk whether
/// `base` has the same.
fn hash(
    disk: &dyn Disk,
    base: Option<&Content>,
    spans: &[Span],
    buffers: &mut [Vec<u8>],
) -> Result<Vec<(ChunkContent, bool)>> {
    let read = |span: &Span, buffer: &mut Vec<u8>| {
        buffer.resize(usize::try_from(span.len).unwrap_or(usize::MAX), 0);
        disk.read_at(buffer, span.offset)?;
        Ok(ChunkContent::beside(
            buffer,
            base.map(|base| (base, span.index)),
        ))
    };
    if let ([span], [buffer, ..]) = (spans, &mut *buffers) {
        return read(span, buffer).map(|chunk| vec![chunk]);
    }
    let next = AtomicUsize::new(0);
    let some = |buffer: &mut Vec<u8>| {
        let mine = std::iter::from_fn(|| {
            let index = next.fetch_add(1, Ordering::Relaxed);
            spans.get(index).map(|span| (index, span))
        });
        mine.map(|(index, span)| Ok((index, read(span, buffer)?)))
            .collect::<Result<Vec<_>>>()
    };
    let hashed = thread::scope(|scope| {
        let threads: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| thread::Builder::new().spawn_scoped(scope, || some(buffer)))
            .collect();
        let panicked = |_| Err(Error::new(ErrorKind::Bug, "A thread panicked"));
        let threads = threads.into_iter();
        threads
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(panicked),
                Err(cause) => Err(no_thread(cause)),
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let mut chunks: Vec<_> = hashed.into_iter().flatten().collect();
    chunks.sort_unstable_by_key(|(index, _)| *index);
    Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{Image, ImageOptions};

    #[test]
    fn the_content_digest_does_not_depend_on_holes() {
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
        // Data that is all zeros.
        file.as_file().write_all_at(&[0; 9000], 25 * C).unwrap();
        let image = Image::open(file.path(), &ImageOptions::default()).unwrap();
        let found = content_of(image.disk().unwrap(), None, |_, _| true).unwrap();
        let mut expected = Content::new(size);
        for chunk in std::fs::read(file.path()).unwrap().chunks(C as usize) {
            expected.push(&ChunkContent::of(chunk));
        }
        assert_eq!(found, expected);
        let stopped = content_of(image.disk().unwrap(), None, |_, _| false).unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::Cancelled);
        // Compared with itself, nothing differs. After one byte is changed, that is reported before
        // the end.
        let others = AtomicUsize::new(0);
        let count = |is_other: bool, _: u64| {
            others.fetch_add(usize::from(is_other), Ordering::Relaxed);
            true
        };
        let disk = image.disk().unwrap();
        assert_eq!(content_of(disk, Some(&expected), count).unwrap(), expected);
        assert_eq!(others.load(Ordering::Relaxed), 0);
        file.as_file().write_all_at(&[8], 3).unwrap();
        let changed = content_of(disk, Some(&expected), count).unwrap();
        assert_eq!(changed.differing(&expected).iter().next(), Some(&(0..1)));
        assert!(others.load(Ordering::Relaxed) > 0);
    }
}
