//! The index of an .xz file has the size of its content ("The .xz File Format", version 1.2.1), so
//! that it need not be decompressed to measure it. A file consists of consecutive streams. Each
//! ends with its index and a footer with the length of the index, so the streams are read from the
//! end. The sizes are checked later, when the content is decompressed.

/// Bytes of a header and of a footer.
const FRAME_BYTES: u64 = 12;
/// Maximum bytes of all indexes together: enough for some millions of blocks.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Maximum number of streams. A file with more is decompressed without knowing the size.
const STREAMS_MAX: usize = 4096;

/// The size of the content of an .xz file of `size` bytes according to its indexes; `None` if these
/// cannot be read, are damaged or too large: then the size is found by decompressing. `read` fills
/// bytes from an offset of the file.
pub fn index_size<E>(
    size: u64,
    read: impl Fn(&mut [u8], u64) -> std::result::Result<(), E>,
) -> Option<u64> {
    let mut end = size;
    let (mut total, mut left) = (0_u64, INDEX_BYTES_MAX);
    for _ in 0..STREAMS_MAX {
        // The padding between streams, in multiples of four zeros.
        let mut word = [0; 4];
        loop {
            left = left.checked_sub(4)?;
            read(&mut word, end.checked_sub(4)?).ok()?;
            if word != [0; 4] {
                break;
            }
            end -= 4;
        }
        let footer_at = end.checked_sub(FRAME_BYTES)?;
        let mut footer = [0; FRAME_BYTES as usize];
        read(&mut footer, footer_at).ok()?;
        let index_bytes = index_bytes(&footer)?;
        left = left.checked_sub(index_bytes)?;
        let index_at = footer_at.checked_sub(index_bytes)?;
        let mut index = vec![0; usize::try_from(index_bytes).ok()?];
        read(&mut index, index_at).ok()?;
        let (packed, content) = sum(&index)?;
        total = total.checked_add(content)?;
        end = index_at.checked_sub(packed)?.checked_sub(FRAME_BYTES)?;
        let mut header = [0; FRAME_BYTES as usize];
        read(&mut header, end).ok()?;
        // The flags of both ends are the same.
        if !header.starts_with(b"\xfd7zXZ\0") || header[6..8] != footer[8..10] {
            return None;
        }
        if end == 0 {
            return Some(total);
        }
    }
    None
}

/// The length of the index according to a footer.
fn index_bytes(footer: &[u8; FRAME_BYTES as usize]) -> Option<u64> {
    let number = |at: usize| {
        footer
            .get(at..)?
            .first_chunk()
            .copied()
            .map(u32::from_le_bytes)
    };
    if !footer.ends_with(b"YZ") || crc32(&footer[4..10]) != number(0)? {
        return None;
    }
    Some((u64::from(number(4)?) + 1) * 4)
}

/// The compressed size of the blocks of an index, including padding, and their content's size.
fn sum(index: &[u8]) -> Option<(u64, u64)> {
    let (body, crc) = index.split_last_chunk::<4>()?;
    if crc32(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (first, mut rest) = body.split_first()?;
    if *first != 0 {
        return None;
    }
    let (mut packed, mut content) = (0_u64, 0_u64);
    for _ in 0..number(&mut rest)? {
        packed = packed.checked_add(number(&mut rest)?.checked_next_multiple_of(4)?)?;
        content = content.checked_add(number(&mut rest)?)?;
    }
    (rest.len() < 4 && rest.iter().all(|byte| *byte == 0)).then_some((packed, content))
}

/// A number of up to nine bytes with seven bits each, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
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
        index_size(bytes.len() as u64, |part, at| {
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
