use std::io::{Cursor, Write};
use std::path::Path;

use super::super::{Input, STDIN};
use super::*;
use crate::{Fingerprint, Image, ImageOptions, Length};

/// How to put a file into an archive.
#[derive(Clone, Copy, Default)]
struct How {
    is_deflated: bool,
    /// Checksum and sizes follow it.
    is_streamed: bool,
    has_no_signature: bool,
    /// Numbers have 64 bits.
    is_large: bool,
    flags: u16,
    method: Option<u16>,
}

const STORED: How = How {
    is_deflated: false,
    is_streamed: false,
    has_no_signature: false,
    is_large: false,
    flags: 0,
    method: None,
};
const DEFLATED: How = How {
    is_deflated: true,
    ..STORED
};
const STREAMED: How = How {
    is_streamed: true,
    ..DEFLATED
};
const LARGE: How = How {
    is_large: true,
    ..DEFLATED
};

fn u16s(numbers: &[u16]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

fn deflated(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn archive(files: &[(&str, &[u8], How)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    let low = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    for (name, plain, how) in files {
        let at = bytes.len();
        let packed = match how.is_deflated {
            true => deflated(plain),
            false => plain.to_vec(),
        };
        let mut crc = flate2::Crc::new();
        crc.update(plain);
        let crc = crc.sum().to_le_bytes();
        let flags = how.flags | u16::from(how.is_streamed) << 3;
        let method = how.method.unwrap_or(u16::from(how.is_deflated) * 8);
        let name_bytes = u16::try_from(name.len()).unwrap();
        let extra = match how.is_large {
            true => [
                // An extra field with another meaning.
                u16s(&[0x5455, 1]),
                vec![0],
                u16s(&[1, 24]),
                (plain.len() as u64).to_le_bytes().to_vec(),
                (packed.len() as u64).to_le_bytes().to_vec(),
                (at as u64).to_le_bytes().to_vec(),
            ]
            .concat(),
            false => Vec::new(),
        };
        let sizes = match how.is_large {
            true => [[0xff; 4]; 2].concat(),
            false => [low(packed.len()), low(plain.len())].concat(),
        };
        let zeros = [0; 12];
        let extra_bytes = u16::try_from(extra.len()).unwrap();
        bytes.extend_from_slice(b"PK\x03\x04");
        bytes.extend(u16s(&[20, flags, method, 0, 0]));
        match how.is_streamed {
            true => bytes.extend(zeros),
            false => bytes.extend([&crc[..], &sizes].concat()),
        }
        bytes.extend(u16s(&[name_bytes, extra_bytes]));
        bytes.extend([name.as_bytes(), &extra, &packed].concat());
        if how.is_streamed {
            if !how.has_no_signature {
                bytes.extend(b"PK\x07\x08");
            }
            bytes.extend(crc);
            match how.is_large {
                true => bytes.extend(&extra[9..25].rchunks(8).collect::<Vec<_>>().concat()),
                false => bytes.extend(&sizes),
            }
        }
        directory.extend(b"PK\x01\x02");
        directory.extend(u16s(&[20, 20, flags, method, 0, 0]));
        directory.extend([&crc[..], &sizes].concat());
        directory.extend(u16s(&[name_bytes, extra_bytes, 3, 0, 0, 0, 0]));
        match how.is_large {
            true => directory.extend([0xff; 4]),
            false => directory.extend(low(at)),
        }
        directory.extend([name.as_bytes(), &extra, b"why"].concat());
    }
    let (at, count) = (bytes.len(), u16::try_from(files.len()).unwrap());
    bytes.extend(&directory);
    let is_large = files.iter().any(|(_, _, how)| how.is_large);
    if is_large {
        let end_at = bytes.len() as u64;
        bytes.extend([&b"PK\x06\x06"[..], &44_u64.to_le_bytes(), &[0; 12]].concat());
        for number in [
            count.into(),
            count.into(),
            directory.len() as u64,
            at as u64,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(
            [
                &b"PK\x06\x07"[..],
                &[0; 4],
                &end_at.to_le_bytes(),
                &[1, 0, 0, 0],
            ]
            .concat(),
        );
    }
    bytes.extend(b"PK\x05\x06");
    match is_large {
        true => bytes.extend([&[0; 4][..], &[0xff; 12]].concat()),
        false => {
            bytes.extend(u16s(&[0, 0, count, count]));
            bytes.extend([low(directory.len()), low(at)].concat());
        }
    }
    bytes.extend(u16s(&[5]));
    bytes.extend(b"PK\x05\x06!");
    bytes
}

/// Opens it on a pipe and as a file.
fn opened(bytes: &[u8], disk: Option<&str>) -> [crate::error::Result<Image>; 2] {
    let options = ImageOptions {
        disk: disk.map(str::to_owned),
        ..ImageOptions::default()
    };
    let input = Input {
        read: Box::new(Cursor::new(bytes.to_vec())),
        name: STDIN.to_owned(),
        size: None,
        fingerprint: Fingerprint::default(),
        file: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zip");
    std::fs::write(&path, bytes).unwrap();
    [
        Image::in_order(input, &options),
        Image::open(Path::new(&path), &options),
    ]
}

fn content(image: Image) -> crate::error::Result<Vec<u8>> {
    let Image::Stream(mut image) = image else {
        panic!("it was taken for a raw disk");
    };
    assert_eq!(image.format(), StreamFormat::Zip);
    let (mut content, mut step) = (Vec::new(), [0; 700]);
    loop {
        match image.read_next(&mut step, content.len() as u64)? {
            0 => return Ok(content),
            n => content.extend_from_slice(&step[..n]),
        }
    }
}

fn disk() -> Vec<u8> {
    (0..3000_u32).map(|i| (i * i % 251) as u8).collect()
}

#[test]
fn the_only_file_in_a_zip_is_read_from_files_and_pipes() {
    let disk = disk();
    let no_signature = How {
        has_no_signature: true,
        ..STREAMED
    };
    let all = [
        STORED,
        DEFLATED,
        STREAMED,
        LARGE,
        no_signature,
        How {
            is_streamed: true,
            ..LARGE
        },
    ];
    for (i, how) in all.into_iter().enumerate() {
        for companions in [false, true] {
            let mut files = vec![("dir/disk.img", &disk[..], how)];
            if companions {
                files.insert(0, ("dir/", b"", STORED));
                files.insert(0, ("__MACOSX/dir/._disk.img", b"Mac OS X attributes", how));
                files.push(("._disk.img", b"Mac OS X attributes", STREAMED));
                files.push((".DS_Store", b"", STREAMED));
            }
            let bytes = archive(&files);
            for (j, image) in opened(&bytes, None).into_iter().enumerate() {
                let image = image.unwrap();
                // Only the directory states it.
                let stated = (j == 1).then_some(disk.len() as u64);
                assert_eq!(image.length().expected(), stated);
                assert!(matches!(image.length(), Length::Unknown { .. }));
                assert!(content(image).unwrap() == disk, "{i} {companions} {j}");
            }
        }
    }
}

#[test]
fn a_zip_of_several_files_needs_a_name() {
    let disk = disk();
    let bytes = archive(&[
        ("it's a\tb.img", &[0x80, 0xff, 0, 1, 0xfe], DEFLATED),
        ("disk.img", &disk, STREAMED),
        ("readme", b"text", STORED),
    ]);
    let [pipe, file] = opened(&bytes, None);
    let said = pipe.and_then(content).unwrap_err();
    assert!(said.chain().contains("several files"), "{}", said.chain());
    let mut remedies = said.hint().unwrap().remedies();
    assert_eq!(remedies.next(), Some(&Remedy::NameDisk));
    let error = file.unwrap_err();
    assert!(
        error
            .chain()
            .contains("a zip archive of 3 files: \"it's a\\tb.img\", \"disk.img\"")
    );
    let remedies: Vec<_> = error.hint().unwrap().remedies().collect();
    assert!(
        matches!(&remedies[..], [Remedy::UploadDisk { disk, archive }]
            if disk == "it's a\tb.img" && archive.starts_with('/')),
        "{remedies:?}"
    );
    let [pipe, file] = opened(&bytes, Some("disk.img"));
    assert!(pipe.is_err());
    assert!(content(file.unwrap()).unwrap() == disk);
    let [_, file] = opened(&bytes, Some("none"));
    assert!(
        file.unwrap_err()
            .hint()
            .unwrap()
            .to_string()
            .contains("\"disk.img\"")
    );
}

#[test]
fn an_unsupported_zip_is_refused_with_the_reason() {
    let disk = disk();
    let encrypted = How {
        flags: 1,
        ..DEFLATED
    };
    let other = How {
        method: Some(93),
        ..STORED
    };
    for (how, said) in [
        (encrypted, "is encrypted"),
        (other, "is packed by method 93"),
    ] {
        for image in opened(&archive(&[("disk.img", &disk, how)]), None) {
            let error = image.unwrap_err();
            assert!(error.chain().contains(said), "{}", error.chain());
            assert!(error.hint().unwrap().to_string().contains("7z x"));
        }
    }
    let bytes = archive(&[("__MACOSX/._a", b"attributes", DEFLATED)]);
    for image in opened(&bytes, None) {
        assert!(image.is_err());
    }
    let streamed = How {
        is_streamed: true,
        ..STORED
    };
    let [pipe, file] = opened(&archive(&[("disk.img", &disk, streamed)]), None);
    assert!(pipe.unwrap_err().chain().contains("without its size"));
    assert!(content(file.unwrap()).unwrap() == disk);
}

#[test]
fn a_truncated_or_damaged_zip_is_an_error() {
    let disk = disk()[..150].to_vec();
    for how in [STORED, STREAMED, LARGE] {
        let bytes = archive(&[("._a", b"attributes", STREAMED), ("disk.img", &disk, how)]);
        // Without its comment it is complete when read in order.
        for cut in HEADER_END..bytes.len() - 5 {
            for image in opened(&bytes[..cut], None) {
                assert!(image.and_then(content).is_err(), "{cut}");
            }
        }
        for at in HEADER_END..bytes.len() - 5 {
            let mut bad = bytes.clone();
            bad[at] ^= 0x11;
            for image in opened(&bad, None) {
                // A name or a time does not change the content.
                let read = image.and_then(content);
                assert!(read.is_err() || read.is_ok_and(|read| read == disk), "{at}");
            }
        }
    }
}

/// With fewer bytes the format is not recognised.
const HEADER_END: usize = 30;

#[test]
fn a_zip_directory_with_huge_claims_takes_no_memory() {
    let mut bytes = archive(&[("disk.img", &disk(), LARGE)]);
    let at = bytes.len() - 27 - 20 - 56;
    assert!(bytes[at..].starts_with(b"PK\x06\x06"));
    for field in [32, 40, 48] {
        for number in [u64::MAX, 1 << 40, 0] {
            let mut bad = bytes.clone();
            bad[at + field..at + field + 8].copy_from_slice(&number.to_le_bytes());
            let [_, file] = opened(&bad, None);
            assert!(file.is_err(), "{field} {number}");
        }
    }
    bytes.truncate(bytes.len() - 5);
    let [_, file] = opened(&bytes, None);
    assert!(file.is_err());
}
