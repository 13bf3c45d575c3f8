//! Compressed streams are refused, or read to their end: several members in a row, frames without
//! content, trailers, and zip with its directory. The decoders of external libraries are fuzzed by
//! their own projects, and so is how much memory these allocate.
#![no_main]

use std::fs::File;
use std::io::Cursor;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use openhosting_base::buffer::BufferPool;
use openhosting_base::chunk::Found;
use openhosting_base::plan::Plan;
use openhosting_image::{Fingerprint, Image, ImageOptions, ImageReader, Input, StreamFormat};

/// The most chunks that are read.
const CHUNKS_MAX: usize = 16;

thread_local! {
    static FILE: File = tempfile::tempfile_in("/dev/shm")
        .or_else(|_| tempfile::tempfile())
        .expect("a temporary file");
}

fuzz_target!(|data: &[u8]| {
    let is_theirs = |head: &[u8]| {
        let format = StreamFormat::of(head);
        let theirs = [StreamFormat::Xz, StreamFormat::Lzma, StreamFormat::Lzip];
        format.is_some_and(|format| theirs.contains(&format))
    };
    if is_theirs(data) || data.windows(4).any(|bytes| bytes == b"\x28\xb5\x2f\xfd") {
        return;
    }
    let options = ImageOptions::default();
    let input = Input {
        read: Box::new(Cursor::new(data.to_vec())),
        name: "stdin".to_owned(),
        size: None,
        fingerprint: Fingerprint::default(),
        file: None,
    };
    read(Image::in_order(input, &options));
    FILE.with(|file| {
        file.set_len(0).expect("room");
        file.write_all_at(data, 0).expect("room");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        read(Image::open(path.as_ref(), &options));
    });
});

fn read(image: openhosting::Result<Image>) {
    let Ok(image @ Image::Stream(_)) = image else {
        return;
    };
    let plan = Plan::endless((1 << 16).try_into().expect("not zero"));
    let todo = vec![0..plan.count()];
    let mut reader = ImageReader::new(image, plan, todo, BufferPool::new(2));
    for _ in 0..CHUNKS_MAX {
        match reader.read_next() {
            Ok(Some(Found::SizeKnown(_)) | None) | Err(_) => return,
            Ok(Some(_)) => {}
        }
    }
}
