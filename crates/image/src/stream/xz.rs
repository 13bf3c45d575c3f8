//! The index of an .xz file has the size of its content ("The .xz File Format", version 1.2.1), so
//! that it need not be decompressed to measure it. A file consists of consecutive streams. Each
//! has a header, blocks, an index, and a footer with the length of the index; padding may follow.
//! So the streams are read from the last one to the first.
//!
//! The sizes are not proven here. When the content is decompressed later, the decoder compares it
//! with the index and fails on a wrong size. If the size is unknown, the drive is created with a
//! guess and grows.

/// Bytes of a stream's header, and of its footer.
const HEADER_BYTES: u64 = 12;
const FOOTER_BYTES: u64 = 12;
/// The first bytes of a header, and the last of a footer. Between magic and checksum are the flags.
const HEADER_MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: &[u8] = b"YZ";
/// Maximum bytes of indexes and padding to read, which bounds the memory for an index and the time:
/// every four bytes of padding take a read. An entry has at least two bytes, and in practice up to
/// ten, so this is enough for some millions of blocks. The value is a choice: a few MiB are enough
/// for the files that tools write.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Maximum number of streams, which bounds the time: each takes at least four reads. The value is a choice;
/// most files have one stream.
const STREAMS_MAX: usize = 4096;

/// The size of the content of an .xz file of `size` bytes according to its indexes. `None` if they
/// cannot be read, are damaged, or exceed the limits above: then only decompressing shows the size.
/// `read` fills all of the bytes from an offset of the file, or fails. Public for its fuzz test.
pub fn content_size<E>(
    size: u64,
    read: impl Fn(&mut [u8], u64) -> std::result::Result<(), E>,
) -> Option<u64> {
    let mut end = size;
    let mut total = 0_u64;
    // `end` is the end of the file or the start of the stream that was read last. `budget` is how
    // many bytes of indexes and padding may still be read.
    let mut budget = INDEX_BYTES_MAX;
    for _ in 0..STREAMS_MAX {
        // Skip the padding after the stream, which consists of multiples of four zeros.
        let mut word = [0; 4];
        loop {
            budget = budget.checked_sub(4)?;
            read(&mut word, end.checked_sub(4)?).ok()?;
            if word != [0; 4] {
                break;
            }
            end -= 4;
        }
        let footer_at = end.checked_sub(FOOTER_BYTES)?;
        let mut footer = [0; FOOTER_BYTES as usize];
        read(&mut footer, footer_at).ok()?;
        let index_bytes = index_bytes(&footer)?;
        budget = budget.checked_sub(index_bytes)?;
        let index_at = footer_at.checked_sub(index_bytes)?;
        let mut index = vec![0; usize::try_from(index_bytes).ok()?];
        read(&mut index, index_at).ok()?;
        let (blocks_size, content_size) = total_sizes(&index)?;
        total = total.checked_add(content_size)?;
        let blocks_at = index_at.checked_sub(blocks_size)?;
        end = blocks_at.checked_sub(HEADER_BYTES)?;
        let mut header = [0; HEADER_BYTES as usize];
        read(&mut header, end).ok()?;
        // A sound stream has the same flags at both ends.
        if !header.starts_with(HEADER_MAGIC) || header[6..8] != footer[8..10] {
            return None;
        }
        if end == 0 {
            return Some(total);
        }
    }
    None
}

/// The length of the index in bytes according to a footer, which consists of a checksum (4 bytes),
/// the length of the index (4), flags (2) and the magic (2); `None` if the footer is damaged.
fn index_bytes(footer: &[u8; FOOTER_BYTES as usize]) -> Option<u64> {
    let (checksum, fields) = footer.split_first_chunk::<4>()?;
    let fields = fields.strip_suffix(FOOTER_MAGIC)?;
    if crc32(fields) != u32::from_le_bytes(*checksum) {
        return None;
    }
    // It is stored in units of four bytes, less one, because no index is empty.
    let length = u32::from_le_bytes(*fields.first_chunk()?);
    Some((u64::from(length) + 1) * 4)
}

/// The total size of the blocks that an index lists, including their padding, and of their content;
/// `None` if the index is damaged.
fn total_sizes(index: &[u8]) -> Option<(u64, u64)> {
    let (body, crc) = index.split_last_chunk::<4>()?;
    if crc32(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    // An index starts with a zero byte; a block cannot.
    let mut rest = body.strip_prefix(&[0])?;
    let (mut blocks_size, mut content_size) = (0_u64, 0_u64);
    for _ in 0..take_number(&mut rest)? {
        let block_size = take_number(&mut rest)?.checked_next_multiple_of(4)?;
        blocks_size = blocks_size.checked_add(block_size)?;
        content_size = content_size.checked_add(take_number(&mut rest)?)?;
    }
    // Zeros pad the index to a multiple of four bytes.
    (rest.len() < 4 && rest.iter().all(|byte| *byte == 0)).then_some((blocks_size, content_size))
}

/// Removes a number from the start of `bytes`. It has up to nine bytes of seven bits each, the
/// lowest bits first; the high bit says that another byte follows.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn xz(plain: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn measured(bytes: &[u8]) -> Option<u64> {
        content_size(bytes.len() as u64, |part, at| {
            let from = bytes.get(usize::try_from(at).unwrap()..).unwrap();
            part.copy_from_slice(from.get(..part.len()).ok_or(())?);
            Ok::<_, ()>(())
        })
    }

    #[test]
    fn the_sizes_of_all_streams_are_summed() {
        let (one, two) = (xz(&[7; 100_000]), xz(&vec![1; 3_000_000]));
        assert_eq!(measured(&one), Some(100_000));
        let all = [&*one, &two, &[0; 8], &xz(&[]), &one, &[0; 4]].concat();
        assert_eq!(measured(&all), Some(3_200_000));
    }

    #[test]
    fn a_damaged_index_has_no_size() {
        let sound = xz(&[7; 100_000]);
        for cut in [1, 4, 12, 20, sound.len() - 3, sound.len()] {
            assert_eq!(measured(&sound[..sound.len() - cut]), None, "{cut}");
        }
        assert_eq!(measured(&[&b"garbage!"[..], &sound].concat()), None);
        assert_eq!(measured(&[0; 4096]), None);
        // Every flipped bit in both ends is detected: in the magic, the index and the footer.
        for at in (0..8).chain(sound.len() - 24..sound.len()) {
            let mut bad = sound.clone();
            bad[at] ^= 4;
            assert_eq!(measured(&bad), None, "{at}");
        }
    }
}
