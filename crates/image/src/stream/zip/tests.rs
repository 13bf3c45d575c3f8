use std::io::{Cursor, Write};
use std::path::Path;

use super::super::{Input, STDIN};
use super::*;
use crate::{Fingerprint, Image, ImageOptions, Length};

/// How a file is stored in an archive.
#[derive(Clone, Copy)]
struct How {
    is_deflated: bool,
    /// A descriptor with the checksum and sizes follows the file, as in archives written to a pipe.
    has_descriptor: bool,
    /// The descriptor starts with its signature, which is optional.
    has_signature: bool,
    /// Sizes and offset have 64 bits, and are in an extra field.
    has_64_bits: bool,
    flags: u16,
    /// The number of a method, if it is to differ from the actual one.
    method: Option<u16>,
}

const STORED: How = How {
    is_deflated: false,
    has_descriptor: false,
    has_signature: true,
    has_64_bits: false,
    flags: 0,
    method: None,
};
const DEFLATED: How = How {
    is_deflated: true,
    ..STORED
};
const STREAMED: How = How {
    has_descriptor: true,
    ..DEFLATED
};
const LARGE: How = How {
    has_64_bits: true,
    ..DEFLATED
};

/// The comment of every archive here. It starts like an end record, which it must not be taken for.
const COMMENT: &[u8] = b"PK\x05\x06!";
/// Bytes of the end records of an archive with a [`LARGE`] file.
const END_64_BYTES: usize = 56;
const ENDS_BYTES: usize =
    END_64_BYTES + header::LOCATOR_64_BYTES + header::END_BYTES + COMMENT.len();

fn u16s(numbers: &[u16]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// A length or offset as 32 bits.
fn narrow(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap().to_le_bytes()
}

/// A length or offset as 64 bits.
fn wide(number: usize) -> [u8; 8] {
    (number as u64).to_le_bytes()
}

fn deflated(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A file that is being added to an archive.
struct Added<'a> {
    name: &'a str,
    plain: &'a [u8],
    how: How,
    packed: Vec<u8>,
    crc: [u8; 4],
    /// Offset of its header.
    at: usize,
}

impl<'a> Added<'a> {
    fn new(name: &'a str, plain: &'a [u8], how: How, at: usize) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(plain);
        Self {
            name,
            plain,
            how,
            packed: match how.is_deflated {
                true => deflated(plain),
                false => plain.to_vec(),
            },
            crc: crc.sum().to_le_bytes(),
            at,
        }
    }

    /// Flags, method, time and date.
    fn attributes(&self) -> Vec<u8> {
        let flags = self.how.flags | u16::from(self.how.has_descriptor) << 3;
        let deflate = 8;
        let actual = u16::from(self.how.is_deflated) * deflate;
        u16s(&[flags, self.how.method.unwrap_or(actual), 0, 0])
    }

    /// The sizes in the archive and of the content. If they have 64 bits, this is the placeholder
    /// that refers to the extra field.
    fn sizes(&self) -> Vec<u8> {
        match self.how.has_64_bits {
            true => vec![0xff; 8],
            false => [narrow(self.packed.len()), narrow(self.plain.len())].concat(),
        }
    }

    fn extra(&self) -> Vec<u8> {
        if !self.how.has_64_bits {
            return Vec::new();
        }
        // A timestamp of one byte, to be skipped, and then a field of three 64-bit numbers.
        let timestamp = [u16s(&[0x5455, 1]), vec![0]].concat();
        let sizes = [wide(self.plain.len()), wide(self.packed.len())].concat();
        [timestamp, u16s(&[1, 3 * 8]), sizes, wide(self.at).to_vec()].concat()
    }

    /// The lengths of the name and of the extra fields.
    fn lengths(&self) -> Vec<u8> {
        let extra_bytes = u16::try_from(self.extra().len()).unwrap();
        u16s(&[u16::try_from(self.name.len()).unwrap(), extra_bytes])
    }

    /// What precedes the directory: the header, the file and the descriptor.
    fn file(&self) -> Vec<u8> {
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.extend(u16s(&[20]));
        bytes.extend(self.attributes());
        match self.how.has_descriptor {
            true => bytes.extend([0; 12]),
            false => bytes.extend([&self.crc[..], &self.sizes()].concat()),
        }
        bytes.extend(self.lengths());
        bytes.extend([self.name.as_bytes(), &self.extra(), &self.packed].concat());
        if self.how.has_descriptor {
            if self.how.has_signature {
                bytes.extend(b"PK\x07\x08");
            }
            bytes.extend(self.crc);
            match self.how.has_64_bits {
                true => bytes.extend([wide(self.packed.len()), wide(self.plain.len())].concat()),
                false => bytes.extend(self.sizes()),
            }
        }
        bytes
    }

    /// The entry of the directory.
    fn entry(&self) -> Vec<u8> {
        let comment = b"why";
        let mut bytes = b"PK\x01\x02".to_vec();
        // The versions that wrote the file, and that are needed to read it: 2.0.
        bytes.extend(u16s(&[20, 20]));
        bytes.extend(self.attributes());
        bytes.extend([&self.crc[..], &self.sizes()].concat());
        bytes.extend(self.lengths());
        // The length of the comment, the number of the disk, and attributes of the file.
        bytes.extend(u16s(&[3, 0, 0, 0, 0]));
        match self.how.has_64_bits {
            true => bytes.extend([0xff; 4]),
            false => bytes.extend(narrow(self.at)),
        }
        bytes.extend([self.name.as_bytes(), &self.extra(), comment].concat());
        bytes
    }
}

fn archive(files: &[(&str, &[u8], How)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, plain, how) in files {
        let added = Added::new(name, plain, *how, bytes.len());
        bytes.extend(added.file());
        directory.extend(added.entry());
    }
    let (at, count) = (bytes.len(), files.len());
    bytes.extend(&directory);
    let has_64_bits = files.iter().any(|(_, _, how)| how.has_64_bits);
    if has_64_bits {
        let end_at = bytes.len();
        // Its size without the signature and this field; versions and disk numbers.
        let start = [&b"PK\x06\x06"[..], &wide(END_64_BYTES - 4 - 8), &[0; 12]].concat();
        let numbers = [count, count, directory.len(), at].map(wide).concat();
        let locator = [&b"PK\x06\x07"[..], &[0; 4], &wide(end_at), &[1, 0, 0, 0]].concat();
        bytes.extend([start, numbers, locator].concat());
    }
    bytes.extend(b"PK\x05\x06");
    match has_64_bits {
        true => bytes.extend([&[0; 4][..], &[0xff; 12]].concat()),
        false => {
            let count = u16::try_from(count).unwrap();
            bytes.extend(u16s(&[0, 0, count, count]));
            bytes.extend([narrow(directory.len()), narrow(at)].concat());
        }
    }
    bytes.extend(u16s(&[u16::try_from(COMMENT.len()).unwrap()]));
    bytes.extend(COMMENT);
    bytes
}

/// Opens an archive as a pipe, and as a file.
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
        has_signature: false,
        ..STREAMED
    };
    let all = [
        STORED,
        DEFLATED,
        STREAMED,
        LARGE,
        no_signature,
        How {
            has_descriptor: true,
            ..LARGE
        },
    ];
    for (i, how) in all.into_iter().enumerate() {
        for companions in [false, true] {
            let mut files = vec![("dir/disk.img", &disk[..], how)];
            if companions {
                // Both before and after the file, because it may have to be found in order.
                files.insert(0, ("dir/", b"", STORED));
                files.insert(0, ("__MACOSX/dir/._disk.img", b"Mac OS X attributes", how));
                files.push(("._disk.img", b"Mac OS X attributes", STREAMED));
                files.push((".DS_Store", b"", STREAMED));
            }
            let bytes = archive(&files);
            for (j, image) in opened(&bytes, None).into_iter().enumerate() {
                let image = image.unwrap();
                // On a pipe, the directory with the size comes last.
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
    let zstandard = How {
        method: Some(93),
        ..STORED
    };
    for (how, said) in [
        (encrypted, "is encrypted"),
        (zstandard, "is packed by method 93"),
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
        has_descriptor: true,
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
        // With less than a header, the format is not recognised. A pipe that ends within the
        // comment is read without an error, because the content is complete then.
        let within = header::HEADER_BYTES..bytes.len() - COMMENT.len();
        for cut in within.clone() {
            for image in opened(&bytes[..cut], None) {
                assert!(image.and_then(content).is_err(), "{cut}");
            }
        }
        for at in within {
            let mut bad = bytes.clone();
            bad[at] ^= 0x11;
            for image in opened(&bad, None) {
                // In a name or a time, a flipped bit has no consequence.
                let read = image.and_then(content);
                assert!(read.is_err() || read.is_ok_and(|read| read == disk), "{at}");
            }
        }
    }
}

#[test]
fn a_zip_directory_with_huge_claims_takes_no_memory() {
    let mut bytes = archive(&[("disk.img", &disk(), LARGE)]);
    let at = bytes.len() - ENDS_BYTES;
    assert!(bytes[at..].starts_with(header::END_64_SIGNATURE));
    // The number of entries, the size of the directory, and its offset.
    for field in [32, 40, 48] {
        for number in [u64::MAX, 1 << 40, 0] {
            let mut bad = bytes.clone();
            bad[at + field..at + field + 8].copy_from_slice(&number.to_le_bytes());
            let [_, file] = opened(&bad, None);
            assert!(file.is_err(), "{field} {number}");
        }
    }
    // An end record whose comment does not fit is none.
    bytes.truncate(bytes.len() - COMMENT.len());
    let [_, file] = opened(&bytes, None);
    assert!(file.is_err());
}
