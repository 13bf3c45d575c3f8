//! All formats, from a pipe: complete streams are read; truncated, damaged and over-limit streams
//! are errors.

use std::io::Write;

use super::*;

type Compress = fn(&[u8]) -> Vec<u8>;
const FORMATS: [(&str, Compress); 7] = [
    ("gzip", gzip),
    ("xz", xz),
    ("zstd", zstd),
    ("bzip2", bzip2),
    ("lz4", lz4),
    ("lzma", lzma),
    ("lzip", lzip),
];

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn xz(plain: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn lz4(plain: &[u8]) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn lzma(plain: &[u8]) -> Vec<u8> {
    let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One member of an .lz file. Its compressed data are those of an .lzma file after its header of 13
/// bytes, so only the header (version 1, a dictionary of 2^20 bytes) and the footer differ.
fn lzip(plain: &[u8]) -> Vec<u8> {
    let alone = lzma(plain);
    let mut crc = flate2::Crc::new();
    crc.update(plain);
    let body = &alone[13..];
    let mut member = [&b"LZIP\x01\x14"[..], body, &crc.sum().to_le_bytes()].concat();
    member.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    member.extend_from_slice(&(member.len() as u64 + 8).to_le_bytes());
    member
}

/// Bytes that compress a little, with one run of zeros.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3000_u32).map(|i| (i * i % 251) as u8).collect();
    bytes[1000..2000].fill(0);
    bytes
}

fn opened(bytes: &[u8]) -> Result<super::super::Image> {
    let input = Input {
        read: Box::new(Cursor::new(bytes.to_vec())),
        name: STDIN.to_owned(),
        size: None,
        fingerprint: Fingerprint::default(),
        file: None,
    };
    super::super::Image::in_order(input, &super::super::ImageOptions::default())
}

/// The content of compressed bytes, and what was ignored after it.
fn read(bytes: &[u8]) -> Result<(Vec<u8>, Option<Trailer>)> {
    let super::super::Image::Stream(mut image) = opened(bytes)? else {
        panic!("a pipe is a stream");
    };
    assert_ne!(image.format(), StreamFormat::Raw, "it was not recognised");
    // Any length will do that does not divide the content.
    let (mut content, mut step) = (Vec::new(), [0; 700]);
    loop {
        match image.read_next(&mut step, content.len() as u64)? {
            0 => return Ok((content, image.trailer().get().copied())),
            n => content.extend_from_slice(&step[..n]),
        }
    }
}

#[test]
fn a_size_that_nothing_proves_orders_no_huge_drive() {
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (size, first, expected) in [
        (2 << 40, 2 << 40, Some(2 << 40)),
        ((2 << 40) + 512, FIRST_BYTES_MIN, None),
        (1 << 62, FIRST_BYTES_MIN, None),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_path("disk.img").unwrap();
        header.set_size(size);
        header.set_cksum();
        let tar = [&header.as_bytes()[..], &disk].concat();
        let super::super::Image::Stream(image) = opened(&gzip(&tar)).unwrap() else {
            panic!("a pipe is a stream");
        };
        assert_eq!(image.length(), Length::Unknown { first, expected });
    }
    let first = |packed| Length::guessed(None, Some(packed)).first();
    assert_eq!(first(1 << 30), 2 << 30);
    assert_eq!(first(5 << 40), EXPECTED_BYTES_MAX);
}

#[test]
fn every_format_is_read_with_all_its_members() {
    let content = content();
    for (format, compress) in FORMATS {
        assert_eq!(
            read(&compress(&content)).unwrap(),
            (content.clone(), None),
            "{format}"
        );
        let two = [compress(&content[..500]), compress(&content[500..])].concat();
        match format {
            // The format allows only one stream.
            "lzma" => assert!(read(&two).is_err()),
            _ => assert_eq!(read(&two).unwrap().0, content, "{format}"),
        }
    }
}

#[test]
fn many_tiny_members_are_refused() {
    for (format, compress) in FORMATS {
        if !["gzip", "lz4"].contains(&format) {
            continue;
        }
        for piece in [&b""[..], b"1"] {
            // A little more than the 8192 members that may be as small as they like.
            let many = [compress(&content()), compress(piece).repeat(9000)].concat();
            let error = read(&many).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image, "{format}");
            assert!(error.chain().contains("hold only"), "{}", error.chain());
        }
        // Up to 8192 members may be empty. More are read if they have at least 512 bytes on
        // average.
        let few = [compress(&content()), compress(b"").repeat(1000)].concat();
        assert_eq!(read(&few).unwrap().0, content(), "{format}");
        let worth = compress(&[7; 1024]).repeat(9000);
        assert_eq!(read(&worth).unwrap().0.len(), 9000 * 1024, "{format}");
    }
}

#[test]
fn a_stream_truncated_anywhere_is_an_error() {
    let content = content();
    for (format, compress) in FORMATS {
        let (first, rest) = (compress(&content[..500]), compress(&content[500..]));
        let all = [&first[..], &rest].concat();
        let whole = match format {
            "lzma" => &first,
            _ => &all,
        };
        // The format with the longest signature, .lzma, is recognised by 14 bytes.
        for cut in 14..whole.len() {
            // This is a complete stream.
            if cut == first.len() {
                continue;
            }
            let error = read(&whole[..cut]).expect_err(&format!("{format} at {cut}"));
            assert!(error.is_permanent(), "{format} at {cut}: {}", error.chain());
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_changes_nothing() {
    let content = content();
    for (format, compress) in FORMATS {
        let sound = compress(&content);
        // A change of the first bytes makes it another format.
        for at in 16..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 0x10;
            match read(&bad) {
                // The format has no checksum.
                Ok(_) if format == "lzma" => {}
                Ok(read) => assert!(read == (content.clone(), None), "{format} at {at}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Image, "{format} at {at}"),
            }
        }
    }
}

#[test]
fn trailing_bytes_are_treated_as_by_the_tool_of_the_format() {
    let content = content();
    let member = |compress: Compress| compress(b"another member");
    for (format, compress) in FORMATS {
        let packed = compress(&content);
        let end = packed.len() as u64;
        let ignored = |bytes| {
            let format = StreamFormat::of(&packed)?;
            Some(Trailer {
                format,
                at: end,
                bytes,
            })
        };
        let followed_by =
            |what: &[u8]| read(&[&packed[..], what].concat()).map(|(_, trailer)| trailer);
        let zeros = [0; 512];
        // OpenWrt's images have metadata in this form after their gzip data.
        let openwrt = [&zeros[..8], b"{\"metadata_version\": 1}FWx0"].concat();
        for (what, expected) in [
            (&b"\n"[..], Some(ignored(1))),
            (b"garbage", Some(ignored(7))),
            (&openwrt, Some(ignored(openwrt.len() as u64))),
            // gzip takes zeros for padding, about which nothing is to be reported.
            (
                &zeros,
                match format {
                    "gzip" => Some(None),
                    _ => Some(ignored(512)),
                },
            ),
        ] {
            // The tools of the other formats fail on a trailer.
            let expected = expected.filter(|_| ["gzip", "bzip2", "lzip"].contains(&format));
            match (followed_by(what), expected) {
                (Ok(trailer), Some(expected)) => assert_eq!(trailer, expected, "{format}"),
                // The padding of .xz consists of multiples of four zeros.
                (Ok(None), None) if format == "xz" && what == zeros => {}
                (Err(error), None) => assert!(error.is_permanent(), "{format}"),
                (got, expected) => panic!("{format} {what:?}: {got:?}, not {expected:?}"),
            }
        }
        // A damaged or truncated member is an error, although it could be a trailer.
        let mut damaged = member(compress);
        damaged[12] ^= 0xff;
        let cut = &member(compress)[..7];
        for what in [&damaged[..], cut] {
            assert!(followed_by(what).is_err(), "{format}");
        }
    }
    let hidden = [&gzip(&content)[..], &[0; 100], &member(gzip)].concat();
    let error = read(&hidden).unwrap_err();
    assert!(
        error.chain().contains("another member follows them"),
        "{}",
        error.chain()
    );
}

#[test]
fn frames_without_content_are_skipped_everywhere() {
    let content = content();
    let frame = |variant: u8, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&[0x50 + variant, 0x2a, 0x4d, 0x18], &len[..], payload].concat()
    };
    for (name, compress) in [("zstd", zstd as Compress), ("lz4", lz4)] {
        for variant in 0..16 {
            for payload_bytes in [0, 10, 3 * HEAD_BYTES, 2 * STEP_BYTES] {
                let frame = frame(variant, &vec![7; payload_bytes]);
                let (first, rest) = (compress(&content[..500]), compress(&content[500..]));
                let all = [&frame[..], &frame, &first, &frame, &rest, &frame].concat();
                let super::super::Image::Stream(image) = opened(&all).unwrap() else {
                    panic!("a pipe is a stream");
                };
                assert_eq!(image.format().name(), name);
                assert_eq!(
                    read(&all).unwrap().0,
                    content,
                    "{name} {variant} {payload_bytes}"
                );
                assert!(read(&all[..all.len() - 1]).is_err());
            }
        }
    }
    for behind in [&b"neither of the two"[..], &gzip(b"x")] {
        let foreign = [&frame(3, &[7; 2 * HEAD_BYTES]), behind].concat();
        let error = opened(&foreign).unwrap_err();
        assert!(error.chain().contains("is not sound"), "{}", error.chain());
    }
}

/// The .xz stream of `content` whose header claims a larger dictionary. Codes count sizes of 4 KiB,
/// 6 KiB, 8 KiB, 12 KiB and so on: 36 is 1 GiB, 37 is 1.5 GiB, 39 is 3 GiB.
fn with_dictionary(content: &[u8], code: u8) -> Vec<u8> {
    let mut bytes = xz(content);
    // The header of the first block follows the header of the stream. Its first byte is its length.
    let header = 12..12 + (usize::from(bytes[12]) + 1) * 4;
    let at = header.start + 2;
    assert_eq!(
        bytes[at..at + 2],
        [0x21, 1],
        "LZMA2, one byte of properties"
    );
    bytes[at + 2] = code;
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[header.start..header.end - 4]);
    bytes[header.end - 4..header.end].copy_from_slice(&crc.sum().to_le_bytes());
    bytes
}

#[test]
fn the_memory_limit_is_reported_and_small_images_stay_below_it() {
    let content = content();
    // Large dictionaries that stay almost empty.
    for code in [36, 37] {
        assert_eq!(read(&with_dictionary(&content, code)).unwrap().0, content);
    }
    // An empty frame with a window of 2^log bytes.
    let window = |log: u8| [&b"\x28\xb5\x2f\xfd\x00"[..], &[(log - 10) << 3], &[1, 0, 0]].concat();
    assert_eq!(
        read(&[window(31), zstd(&content)].concat()).unwrap().0,
        content
    );
    let lzma_of = |dictionary: u32| {
        let mut bytes = lzma(&content);
        bytes[1..5].copy_from_slice(&dictionary.to_le_bytes());
        bytes
    };
    assert_eq!(read(&lzma_of(1 << 30)).unwrap().0, content);
    for (bytes, needs, tool) in [
        (with_dictionary(&content, 39), "3072 MiB", "xz -dc"),
        (window(33), "8192 MiB", "zstd -dc --long=31"),
        (lzma_of(u32::MAX), "4096 MiB", "xz -dc --format=lzma"),
    ] {
        let error = opened(&bytes).unwrap_err();
        let said = error.chain();
        let needs = needs.trim_end_matches(" MiB").parse::<u64>().unwrap();
        // The decoder needs a little more than the dictionary.
        let is_reported = (needs..needs + 3).any(|mib| {
            said.contains(&format!(
                "stdin needs {mib} MiB of memory to decompress, and the limit is 2048"
            ))
        });
        assert!(is_reported && error.is_permanent(), "{said}");
        let hint = error.hint().unwrap().to_string();
        assert!(hint.contains(&format!("{tool} | ")), "{hint}");
    }
}

#[test]
fn legacy_lz4_is_refused_with_a_remedy() {
    let error = opened(b"\x02\x21\x4c\x18\x05\0\0\0\x40abcd").unwrap_err();
    assert!(error.chain().contains("legacy LZ4"), "{}", error.chain());
    assert!(error.hint().unwrap().to_string().contains("lz4 -dc"));
}
