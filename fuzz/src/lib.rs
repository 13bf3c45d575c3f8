//! Shared by the targets for image formats. An input describes a file with holes, so it is small
//! even if the file is large.
//!
//! Byte 0 contains flags, and bytes 1 to 4 the size of the file; all numbers are big-endian. Pieces
//! follow, each with an offset of four bytes, a length of one byte, and that many bytes.
//! `fuzz/make-corpus.sh` creates such inputs from real images.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use openhosting::image::{Disk, Format, Image, ImageOptions};

/// Flag: corrects checksums, because otherwise almost any input would be refused for them.
const SEAL: u8 = 1;
/// The largest file.
const SIZE_MAX: u32 = 64 << 20;
/// Blocks of an archive that may be headers.
const HEADERS_MAX: u64 = 512;
/// The most extents that are examined.
const EXTENTS_MAX: usize = 256;
/// The most bytes of an extent that are read.
const READ_MAX: u64 = 64 * 1024;

thread_local! {
    static FILE: File = tempfile::tempfile_in("/dev/shm")
        .or_else(|_| tempfile::tempfile())
        .expect("a temporary file");
}

/// Reads the file that the input describes, first as this format whatever it looks like, and then
/// as the format that is detected.
pub fn explore(data: &[u8], format: Format) {
    FILE.with(|file| {
        let Some(()) = build(file, data, format) else {
            return;
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for format in [Some(format), None] {
            read(path.as_ref(), format, None);
        }
    });
}

/// Reads the first disk of the archive that the input describes, and the one with the name
/// `disk.img`.
pub fn explore_archive(data: &[u8]) {
    FILE.with(|file| {
        let Some(()) = build(file, data, Format::Raw) else {
            return;
        };
        if data[0] & SEAL != 0 {
            seal_headers(file);
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for disk in [None, Some("disk.img".to_owned())] {
            read(path.as_ref(), None, disk);
        }
    });
}

/// Corrects the checksums of all headers.
fn seal_headers(file: &File) {
    let mut block = [0; 512];
    for at in (0..HEADERS_MAX).map(|number| number * 512) {
        if file.read_exact_at(&mut block, at).is_err() {
            return;
        }
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            let sum = format!("{sum:06o}\0 ");
            let _ = file.write_all_at(sum.as_bytes(), at + 148);
        }
    }
}

fn build(file: &File, data: &[u8], format: Format) -> Option<()> {
    let (flags, mut rest) = data.split_first()?;
    let size = number(&mut rest)?.min(SIZE_MAX);
    file.set_len(0).ok()?;
    file.set_len(size.into()).ok()?;
    while let Some(offset) = number(&mut rest) {
        let (len, bytes) = rest.split_first()?;
        let (piece, after) = bytes.split_at(bytes.len().min(usize::from(*len)));
        let room = size.saturating_sub(offset) as usize;
        let piece = &piece[..piece.len().min(room)];
        file.write_all_at(piece, offset.into()).ok()?;
        rest = after;
    }
    if flags & SEAL != 0 {
        seal(file, size.into(), format);
    }
    Some(())
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

fn seal(file: &File, size: u64, format: Format) {
    let change = |at: u64, len: usize, field: usize, sum: fn(&[u8]) -> [u8; 4]| {
        let mut bytes = vec![0; len];
        if file.read_exact_at(&mut bytes, at).is_ok() {
            bytes[field..field + 4].fill(0);
            let _ = file.write_all_at(&sum(&bytes), at + field as u64);
        }
    };
    match format {
        Format::Vhd => {
            let sum = |bytes: &[u8]| {
                let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
                (!sum).to_be_bytes()
            };
            change(0, 512, 64, sum);
            change(512, 1024, 36, sum);
            if size >= 512 {
                change(size - 512, 512, 64, sum);
            }
        }
        Format::Vhdx => {
            let sum = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
            change(64 << 10, 4096, 4, sum);
            change(128 << 10, 4096, 4, sum);
            change(192 << 10, 65536, 4, sum);
            change(256 << 10, 65536, 4, sum);
        }
        _ => {}
    }
}

fn read(path: &Path, format: Option<Format>, disk: Option<String>) {
    let options = ImageOptions {
        format,
        disk,
        // The file may refer to other files, and only itself is allowed.
        allow_backing: vec![path.to_owned()],
        ..ImageOptions::default()
    };
    let Ok(image) = Image::open(path, &options) else {
        return;
    };
    // Images that are compressed as a whole have none of these formats.
    let Some(disk) = image.disk() else { return };
    assert!(disk.size() > 0);
    let member = image.begin_check();
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        let Ok(Some(data)) = disk.data_after(at) else {
            break;
        };
        assert!(
            data.start >= at && data.start < data.end,
            "{data:?} after {at}"
        );
        assert!(data.end <= disk.size(), "{data:?} of {}", disk.size());
        zeros(disk, at..data.start);
        let len = READ_MAX.min(data.end - data.start);
        let _ = disk.read_at(&mut vec![0; len as usize], data.start);
        // From the middle of the extent, because chunks can begin anywhere.
        let len = READ_MAX.min(data.end - data.start) / 2;
        let _ = disk.read_at(&mut vec![0; len as usize], data.end - len);
        at = data.end;
    }
    if let Some(member) = member {
        let _ = member.finish_check(&|| true);
    }
    image.check_unchanged().expect("nobody changed it");
}

/// A hole must read as zeros, if it can be read.
fn zeros(disk: &dyn Disk, hole: Range<u64>) {
    let len = READ_MAX.min(hole.end - hole.start);
    let mut bytes = vec![1; len as usize];
    if disk.read_at(&mut bytes, hole.start).is_ok() {
        assert!(bytes.iter().all(|byte| *byte == 0), "a hole holds data");
    }
}
