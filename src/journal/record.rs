//! The bytes of a journal: pure encoding and decoding, which are fuzzed.
//!
//! A header of 4096 bytes is followed by records of 64 bytes. 64 divides 512, so no record crosses
//! the border of a sector. All numbers are little-endian. docs/dev/formats.md has the table.

use std::ops::Range;

use bytes::{Buf, BufMut};

use super::PageCache;
use crate::digest::{ChunkDigest, Digest};
use crate::drive::DriveId;
use crate::image::Fingerprint;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;

pub(crate) const MAGIC: &[u8; 8] = b"OHJOURNL";
/// The version that is written. Every earlier version can be read.
pub(super) const VERSION: u32 = 2;
/// The first version that has [`Record::Run`], [`Record::Written`] and
/// [`Record::Synced`].
pub(super) const VERSION_WITH_UNSYNCED: u32 = 2;
/// Maximum bytes of each of the two texts in a header. Both have to fit into its [`HEADER_BYTES`],
/// beside about 120 bytes of other fields. With a longer one, the journal cannot be made.
const TEXT_BYTES_MAX: usize = 1500;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From an image to a drive.
    Upload,
    /// From a drive to an image.
    Download,
    /// From a drive to a qcow2 image: the staged file does not consist of the disk's bytes.
    DownloadAsQcow2,
}

/// What a journal is about, so that the journal of another transfer is never mistaken for this
/// one's. It contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The direction.
    pub direction: Direction,
    /// Marks the records of this journal, so that old content of a sector is not mistaken for one.
    pub session: [u8; 16],
    /// The token of a new drive, as it is stored on the drive.
    pub token: [u8; 16],
    /// Bytes of the image or drive.
    pub size: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// Index of the first chunk of the transfer.
    pub first: u64,
    /// The fingerprint of the image when an upload began; `None` once another image was uploaded
    /// in its place.
    pub source: Option<Fingerprint>,
    /// The endpoint.
    pub endpoint: String,
    /// The user.
    pub user: String,
}

/// A record of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The drive of this transfer.
    Drive {
        /// Its identifier.
        id: DriveId,
        /// Whether this transfer created it.
        is_ours: bool,
    },
    /// A chunk is done: confirmed by the endpoint, or on the disk.
    Done {
        /// Its index.
        index: u64,
        /// Its length in bytes.
        len: u32,
        /// The digest of its bytes.
        digest: ChunkDigest,
    },
    /// These chunks are holes and were left out.
    Holes {
        /// The first one.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The state of the drive when the transfer began.
    Drivestate {
        /// Its `write:bytes` counter.
        write_bytes: u64,
        /// Its `write:requests` counter.
        write_requests: u64,
    },
    /// All chunks of a download are in this file and on the disk, including those without a record.
    Whole {
        /// Its inode.
        inode: u64,
        /// When it was last written to, in nanoseconds since 1970.
        modified_ns: i128,
    },
    /// A run of a download begins to write to its file. [`Written`](Self::Written) records of
    /// earlier runs are no longer valid. With `None`, this run has no valid ones either: its file
    /// cannot be trusted without a sync, or a sync failed.
    Run(Option<PageCache>),
    /// A chunk was written to the file of a download but not synced. It is there as long as the
    /// page cache of the last [`Run`](Self::Run) exists.
    Written {
        /// Its index.
        index: u64,
        /// Its length in bytes.
        len: u32,
        /// Compared with the bytes before they are trusted.
        proof: Proof,
    },
    /// All records before this number were on the disk when this one was written. If one of them is
    /// invalid, it was damaged later, and not left incomplete by a crash.
    Synced {
        /// The number.
        records: u64,
    },
}

/// What to compare the bytes of an unsynced chunk with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Number of its blocks of 4096 bytes with data. This costs nothing, and is
    /// sufficient: a page that the kernel could not write to the disk reads as zeros once it is
    /// gone from memory.
    Blocks(u64),
    /// The digest of its bytes.
    Digest(Digest),
}

/// Why bytes are not a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a journal, or its first sector is damaged.
    #[error("It is not a journal, or its start is damaged")]
    Damaged,
    /// Written by a later version of this program.
    #[error("It has version {0}, and this program knows up to {VERSION}")]
    Newer(u32),
}

impl Header {
    /// Encodes the header; `None` if a text is too long.
    pub fn encode(&self) -> Option<[u8; HEADER_BYTES]> {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u8(match self.direction {
            Direction::Upload => 1,
            Direction::Download => 2,
            Direction::DownloadAsQcow2 => 3,
        });
        out.put_slice(&self.session);
        out.put_slice(&self.token);
        out.put_u64_le(self.size);
        out.put_u64_le(self.chunk);
        out.put_u64_le(self.first);
        out.put_u8(u8::from(self.source.is_some()));
        let source = self.source.clone().unwrap_or_default();
        out.put_u64_le(source.size);
        out.put_u64_le(source.device);
        out.put_u64_le(source.inode);
        out.put_i128_le(source.modified_ns);
        for text in [&self.endpoint, &self.user] {
            let len = u16::try_from(text.len()).ok()?;
            if usize::from(len) > TEXT_BYTES_MAX {
                return None;
            }
            out.put_u16_le(len);
            out.put_slice(text.as_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let damaged = HeaderError::Damaged;
        let mut crc = &bytes[HEADER_BYTES - 4..];
        if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) != crc.get_u32_le() {
            return Err(damaged);
        }
        let mut input = &bytes[8..HEADER_BYTES - 4];
        let version = input.get_u32_le();
        match version {
            0 => return Err(damaged),
            1..=VERSION => {}
            _ => return Err(HeaderError::Newer(version)),
        }
        let direction = match input.get_u8() {
            1 => Direction::Upload,
            2 => Direction::Download,
            3 => Direction::DownloadAsQcow2,
            _ => return Err(damaged),
        };
        let (mut session, mut token) = ([0; 16], [0; 16]);
        input.copy_to_slice(&mut session);
        input.copy_to_slice(&mut token);
        let (size, chunk, first) = (input.get_u64_le(), input.get_u64_le(), input.get_u64_le());
        let has_source = input.get_u8() == 1;
        let source = Fingerprint {
            size: input.get_u64_le(),
            device: input.get_u64_le(),
            inode: input.get_u64_le(),
            modified_ns: input.get_i128_le(),
        };
        Ok(Self {
            direction,
            session,
            token,
            size,
            chunk,
            first,
            source: has_source.then_some(source),
            endpoint: text(&mut input).ok_or(HeaderError::Damaged)?,
            user: text(&mut input).ok_or(HeaderError::Damaged)?,
        })
    }
}

/// Where an encoded header has the fingerprint of the image, with the byte that says that there is
/// one.
const SOURCE: Range<usize> = 69..110;

/// Removes the fingerprint of the image from an encoded header, whose version stays.
pub(super) fn forget_source(header: &mut [u8; HEADER_BYTES]) {
    header[SOURCE].fill(0);
    let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// The version of a journal with this header, which must be valid.
pub(super) fn version_of(header: &[u8; HEADER_BYTES]) -> u32 {
    (&header[8..]).get_u32_le()
}

fn text(input: &mut &[u8]) -> Option<String> {
    if input.len() < 2 {
        return None;
    }
    let len = usize::from(input.get_u16_le());
    let bytes = input.get(..len)?.to_vec();
    input.advance(len);
    String::from_utf8(bytes).ok()
}

impl Record {
    /// The record of chunks that are holes and were left out.
    pub(crate) fn holes(chunks: &Range<u64>) -> Self {
        Self::Holes {
            first: chunks.start,
            count: chunks.end - chunks.start,
        }
    }

    /// Encodes record number `number` of the journal of `session`.
    pub fn encode(&self, number: u64, session: &[u8; 16]) -> [u8; RECORD_BYTES] {
        let mut payload = [0; 32];
        let mut version = 1;
        let (kind, flags, len, index) = match self {
            Self::Drive { id, is_ours } => {
                payload[..16].copy_from_slice(&id.to_bytes());
                (1, u16::from(*is_ours), 0, 0)
            }
            Self::Done { index, len, digest } => {
                payload = match digest {
                    ChunkDigest::Whole(digest) => *digest.as_bytes(),
                    ChunkDigest::Data(digest) => {
                        version = 2;
                        *digest.as_bytes()
                    }
                };
                (2, 0, *len, *index)
            }
            Self::Holes { first, count } => {
                payload[..8].copy_from_slice(&count.to_le_bytes());
                (3, 0, 0, *first)
            }
            Self::Drivestate {
                write_bytes,
                write_requests,
            } => {
                payload[..8].copy_from_slice(&write_bytes.to_le_bytes());
                payload[8..16].copy_from_slice(&write_requests.to_le_bytes());
                (4, 0, 0, 0)
            }
            Self::Whole { inode, modified_ns } => {
                payload[..16].copy_from_slice(&modified_ns.to_le_bytes());
                (5, 0, 0, *inode)
            }
            Self::Run(None) => (6, 0, 0, 0),
            Self::Run(Some(cache)) => {
                payload[..16].copy_from_slice(&cache.boot);
                payload[16..24].copy_from_slice(&cache.device.to_le_bytes());
                payload[24..].copy_from_slice(&cache.mount.to_le_bytes());
                (6, 1, 0, cache.inode)
            }
            Self::Written { index, len, proof } => {
                match proof {
                    Proof::Blocks(blocks) => payload[..8].copy_from_slice(&blocks.to_le_bytes()),
                    Proof::Digest(digest) => {
                        version = 2;
                        payload = *digest.as_bytes();
                    }
                }
                (7, 0, *len, *index)
            }
            Self::Synced { records } => (8, 0, 0, *records),
        };
        let mut bytes = [0; RECORD_BYTES];
        let mut out = &mut bytes[..];
        out.put_u8(kind);
        out.put_u8(version);
        out.put_u16_le(flags);
        out.put_u32_le(len);
        out.put_u64_le(index);
        out.put_u64_le(number);
        out.put_slice(&payload);
        out.put_slice(&session[..4]);
        let crc = crc32c::crc32c(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes record number `number`; `None` if these bytes are not that record, valid and of that
    /// session.
    pub fn decode(bytes: &[u8; RECORD_BYTES], number: u64, session: &[u8; 16]) -> Option<Self> {
        let mut crc = &bytes[RECORD_BYTES - 4..];
        if crc32c::crc32c(&bytes[..RECORD_BYTES - 4]) != crc.get_u32_le() {
            return None;
        }
        let mut input = &bytes[..RECORD_BYTES - 4];
        let (kind, version, flags) = (input.get_u8(), input.get_u8(), input.get_u16_le());
        let (len, index) = (input.get_u32_le(), input.get_u64_le());
        if input.get_u64_le() != number {
            return None;
        }
        let mut payload = [0; 32];
        input.copy_to_slice(&mut payload);
        if input != &session[..4] {
            return None;
        }
        let mut rest = &payload[..];
        match (kind, version) {
            (1, 1) => {
                let mut id = [0; 16];
                rest.copy_to_slice(&mut id);
                Some(Self::Drive {
                    id: DriveId::from_bytes(id),
                    is_ours: flags & 1 == 1,
                })
            }
            (2, 1 | 2) => {
                let digest = Digest::from_bytes(payload);
                Some(Self::Done {
                    index,
                    len,
                    digest: match version {
                        1 => ChunkDigest::Whole(digest),
                        _ => ChunkDigest::Data(digest),
                    },
                })
            }
            (3, 1) => Some(Self::Holes {
                first: index,
                count: rest.get_u64_le(),
            }),
            (4, 1) => Some(Self::Drivestate {
                write_bytes: rest.get_u64_le(),
                write_requests: rest.get_u64_le(),
            }),
            (5, 1) => Some(Self::Whole {
                inode: index,
                modified_ns: rest.get_i128_le(),
            }),
            (6, 1) if flags & 1 == 0 => Some(Self::Run(None)),
            (6, 1) => {
                let mut boot = [0; 16];
                rest.copy_to_slice(&mut boot);
                Some(Self::Run(Some(PageCache {
                    boot,
                    device: rest.get_u64_le(),
                    mount: rest.get_u64_le(),
                    inode: index,
                })))
            }
            (7, 1 | 2) => {
                let proof = match version {
                    1 => Proof::Blocks(rest.get_u64_le()),
                    _ => Proof::Digest(Digest::from_bytes(payload)),
                };
                Some(Self::Written { index, len, proof })
            }
            (8, 1) => Some(Self::Synced { records: index }),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small header of a transfer from byte 0 on.
    pub(in crate::journal) fn header_of(direction: Direction) -> Header {
        Header {
            direction,
            session: [3; 16],
            token: [0; 16],
            size: 100,
            chunk: 10,
            first: 0,
            source: None,
            endpoint: "https://h/".into(),
            user: "u".into(),
        }
    }

    pub(crate) fn header() -> impl Strategy<Value = Header> {
        let direction = proptest::sample::select(vec![
            Direction::Upload,
            Direction::Download,
            Direction::DownloadAsQcow2,
        ]);
        let fingerprint =
            any::<(u64, u64, u64, i128)>().prop_map(|(size, device, inode, ns)| Fingerprint {
                size,
                device,
                inode,
                modified_ns: ns,
            });
        (
            direction,
            any::<([u8; 16], [u8; 16], u64, u64, u64)>(),
            proptest::option::of(fingerprint),
            ("[ -~é]{0,200}", "[ -~]{0,50}"),
        )
            .prop_map(
                |(direction, (session, token, size, chunk, first), source, (endpoint, user))| {
                    Header {
                        direction,
                        session,
                        token,
                        size,
                        chunk,
                        first,
                        source,
                        endpoint,
                        user,
                    }
                },
            )
    }

    fn page_cache() -> impl Strategy<Value = Option<PageCache>> {
        let cache =
            any::<([u8; 16], u64, u64, u64)>().prop_map(|(boot, device, mount, inode)| PageCache {
                boot,
                device,
                mount,
                inode,
            });
        proptest::option::of(cache)
    }

    fn proof() -> impl Strategy<Value = Proof> {
        prop_oneof![
            any::<u64>().prop_map(Proof::Blocks),
            any::<[u8; 32]>().prop_map(|digest| Proof::Digest(Digest::from_bytes(digest))),
        ]
    }

    pub(crate) fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            any::<([u8; 16], bool)>().prop_map(|(id, is_ours)| Record::Drive {
                id: DriveId::from_bytes(id),
                is_ours
            }),
            any::<(u64, u32, [u8; 32], bool)>().prop_map(|(index, len, digest, is_data)| {
                let digest = Digest::from_bytes(digest);
                let digest = match is_data {
                    true => ChunkDigest::Data(digest),
                    false => ChunkDigest::Whole(digest),
                };
                Record::Done { index, len, digest }
            }),
            any::<(u64, u64)>().prop_map(|(first, count)| Record::Holes { first, count }),
            any::<(u64, u64)>().prop_map(|(write_bytes, write_requests)| Record::Drivestate {
                write_bytes,
                write_requests
            }),
            any::<(u64, i128)>()
                .prop_map(|(inode, modified_ns)| Record::Whole { inode, modified_ns }),
            page_cache().prop_map(Record::Run),
            (any::<(u64, u32)>(), proof()).prop_map(|((index, len), proof)| Record::Written {
                index,
                len,
                proof
            }),
            any::<u64>().prop_map(|records| Record::Synced { records }),
        ]
    }

    proptest! {
        #[test]
        fn a_header_reads_back(header in header()) {
            let bytes = header.encode().unwrap();
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
        }

        #[test]
        fn a_record_reads_back_at_its_place_only(
            record in record(), number in any::<u64>(), session in any::<[u8; 16]>()
        ) {
            let bytes = record.encode(number, &session);
            prop_assert_eq!(Record::decode(&bytes, number, &session), Some(record));
            prop_assert_eq!(Record::decode(&bytes, number.wrapping_add(1), &session), None);
            let mut other = session;
            other[0] ^= 1;
            prop_assert_eq!(Record::decode(&bytes, number, &other), None);
        }

        #[test]
        fn a_flipped_bit_is_noticed(record in record(), bit in 0..RECORD_BYTES * 8) {
            let mut bytes = record.encode(7, &[1; 16]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::decode(&bytes, 7, &[1; 16]), None);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let mut header: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            let _ = Header::decode(&header);
            // With a valid checksum, because otherwise decoding would end early.
            header[..8].copy_from_slice(MAGIC);
            header[8..12].copy_from_slice(&VERSION.to_le_bytes());
            let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
            header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            let _ = Header::decode(&header);
        }
    }

    /// Makes the checksum of a changed header valid.
    fn seal(bytes: &mut [u8; HEADER_BYTES]) {
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn a_later_version_is_reported() {
        let mut bytes = header_of(Direction::Upload).encode().unwrap();
        bytes[8] = 9;
        seal(&mut bytes);
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Newer(9)));
        // There was never a version 0.
        bytes[8] = 0;
        seal(&mut bytes);
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Damaged));
    }

    #[test]
    fn two_texts_of_the_maximum_length_fit_into_a_header() {
        let text = |len| "x".repeat(len);
        let header = Header {
            endpoint: text(TEXT_BYTES_MAX),
            user: text(TEXT_BYTES_MAX),
            ..header_of(Direction::Upload)
        };
        assert_eq!(
            Header::decode(&header.encode().unwrap()),
            Ok(header.clone())
        );
        let endpoint = text(TEXT_BYTES_MAX + 1);
        let user = endpoint.clone();
        let long = [
            Header {
                endpoint,
                ..header.clone()
            },
            Header { user, ..header },
        ];
        assert!(long.iter().all(|header| header.encode().is_none()));
    }

    #[test]
    fn a_text_that_exceeds_the_header_is_damage() {
        let header = header_of(Direction::Upload);
        let encoded = header.encode().unwrap();
        let is_endpoint = |bytes: &[u8]| bytes == header.endpoint.as_bytes();
        let at = encoded
            .windows(header.endpoint.len())
            .position(is_endpoint)
            .unwrap();
        let room = HEADER_BYTES - 4 - at;
        for rest in 0..4 {
            let mut bytes = encoded;
            bytes[at..HEADER_BYTES - 4].fill(0);
            bytes[at - 2..at].copy_from_slice(&((room - rest) as u16).to_le_bytes());
            seal(&mut bytes);
            // The length of the second text takes two bytes.
            assert_eq!(Header::decode(&bytes).is_ok(), rest >= 2, "{rest}");
        }
    }
}
