//! The index of any file is refused, or its sizes agree with each other. If the first byte is odd,
//! the rest becomes the index of a file that is otherwise valid.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use openhosting_image::xz_content_size;

thread_local! {
    static FILE: File = tempfile::tempfile_in("/dev/shm")
        .or_else(|_| tempfile::tempfile())
        .expect("a temporary file");
}

/// The most bytes of blocks for which the file has room.
const BLOCKS_MAX: u64 = 1 << 24;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    FILE.with(|file| {
        file.set_len(0).expect("room");
        if first & 1 == 0 {
            file.write_all_at(data, 0).expect("room");
            let _ = content_size(file);
            return;
        }
        let Some((room, index)) = data.split_first_chunk::<4>() else {
            return;
        };
        let mut index = index.to_vec();
        index.resize(index.len().next_multiple_of(4).max(4), 0);
        let crc = crc32(&index);
        index.extend(crc.to_le_bytes());
        let flags = [0, 1];
        let mut footer = (index.len() as u32 / 4 - 1).to_le_bytes().to_vec();
        footer.extend(flags);
        let crc = crc32(&footer);
        let footer = [&crc.to_le_bytes()[..], &footer, b"YZ"].concat();
        let header = [b"\xfd7zXZ\0", &flags[..], &crc32(&flags).to_le_bytes()].concat();
        let at = 12 + u64::from(u32::from_le_bytes(*room)) % BLOCKS_MAX;
        file.write_all_at(&header, 0).expect("room");
        file.write_all_at(&index, at).expect("room");
        file.write_all_at(&footer, at + index.len() as u64)
            .expect("room");
        let _ = content_size(file);
    });
});

fn content_size(file: &File) -> Option<u64> {
    let size = file.metadata().expect("a file").len();
    xz_content_size(size, |bytes, at| file.read_exact_at(bytes, at))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    !crc
}
