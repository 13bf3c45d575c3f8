//! What a journal says when it is read again: pure, over any reader.

use std::io::Read;

use rangemap::RangeSet;

use super::record::{HEADER_BYTES, Header, HeaderError, RECORD_BYTES, Record};
use crate::digest::ChunkDigest;
use crate::drive::DriveId;

/// The sum of a journal's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The drive, and whether the transfer created it.
    pub drive: Option<(DriveId, bool)>,
    /// Chunks at their place, with their digests elsewhere.
    pub done: RangeSet<u64>,
    /// Chunks that are holes and were left out.
    pub holes: RangeSet<u64>,
    /// `write:bytes` and `write:requests` of the drive when it began.
    pub counters: Option<(u64, u64)>,
    /// The file that all of a download was in: its inode, and when it was last
    /// written to, in nanoseconds since 1970. True of it only while it has both.
    pub whole: Option<(u64, i128)>,
}

impl State {
    /// All chunks that need no transfer.
    pub fn settled(&self) -> RangeSet<u64> {
        let mut all = self.done.clone();
        all.extend(self.holes.iter().cloned());
        all
    }

    /// Takes a record in. What lies beyond the `chunks` of the transfer is not
    /// believed: a count of 2^64 would keep somebody busy who goes through it.
    fn apply(&mut self, record: &Record, chunks: u64) {
        match *record {
            Record::Drive { id, is_ours } => self.drive = Some((id, is_ours)),
            Record::Done { index, .. } => {
                if index < chunks {
                    self.done.insert(index..index + 1);
                }
            }
            Record::Holes { first, count } => {
                let end = first.saturating_add(count).min(chunks);
                if first < end {
                    self.holes.insert(first..end);
                }
            }
            Record::Drivestate {
                write_bytes,
                write_requests,
            } => self.counters = Some((write_bytes, write_requests)),
            Record::Whole { inode, modified_ns } => self.whole = Some((inode, modified_ns)),
        }
    }
}

/// A journal, read from its start to the first record that is not sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What it is about.
    pub header: Header,
    /// What it says.
    pub state: State,
    /// How many records are sound.
    pub records: u64,
    /// Whether sound records follow one that is not. Then this is no tail that
    /// was torn by a crash but damage: what follows is not believed, and said.
    pub is_damaged: bool,
}

/// Why a journal cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The header is not one.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads a journal. `each` is given every chunk's index, length and digest.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(
    mut input: impl Read,
    mut each: impl FnMut(u64, u32, ChunkDigest),
) -> Result<Replay, ReplayError> {
    let mut bytes = [0; HEADER_BYTES];
    if !fill(&mut input, &mut bytes)? {
        return Err(HeaderError::Damaged.into());
    }
    let header = Header::decode(&bytes)?;
    let chunks = header.size.div_ceil(header.chunk.max(1));
    let mut replay = Replay {
        state: State::default(),
        records: 0,
        is_damaged: false,
        header,
    };
    let mut bytes = [0; RECORD_BYTES];
    while fill(&mut input, &mut bytes)? {
        let Some(record) = Record::decode(&bytes, replay.records, &replay.header.session) else {
            let next = replay.records + 1;
            replay.is_damaged = has_sound_record(input, next, &replay.header.session)?;
            return Ok(replay);
        };
        if let Record::Done { index, len, digest } = record {
            each(index, len, digest);
        }
        replay.state.apply(&record, chunks);
        replay.records += 1;
    }
    Ok(replay)
}

fn has_sound_record(
    mut input: impl Read,
    mut number: u64,
    session: &[u8; 16],
) -> std::io::Result<bool> {
    let mut bytes = [0; RECORD_BYTES];
    while fill(&mut input, &mut bytes)? {
        if Record::decode(&bytes, number, session).is_some() {
            return Ok(true);
        }
        number += 1;
    }
    Ok(false)
}

/// Fills the buffer; false at an end before that.
fn fill(input: &mut impl Read, mut bytes: &mut [u8]) -> std::io::Result<bool> {
    while !bytes.is_empty() {
        match input.read(bytes) {
            Ok(0) => return Ok(false),
            Ok(n) => bytes = &mut bytes[n..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::record::Direction;
    use super::*;

    fn journal(records: u64) -> Vec<u8> {
        let header = Header {
            direction: Direction::Upload,
            session: *b"0123456789abcdef",
            token: [7; 16],
            size: 1000,
            chunk: 10,
            first: 0,
            source: None,
            endpoint: "https://h/".into(),
            user: "u".into(),
        };
        let mut bytes = header.encode().unwrap().to_vec();
        for number in 0..records {
            let record = Record::Done {
                index: number,
                len: 10,
                digest: ChunkDigest::of(&number.to_le_bytes()),
            };
            bytes.extend_from_slice(&record.encode(number, &header.session));
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Replay, ReplayError> {
        replay(bytes, |index, len, digest| {
            // Whatever is wrong, nothing false is ever told.
            assert_eq!((len, digest), (10, ChunkDigest::of(&index.to_le_bytes())));
        })
    }

    /// The chunks told are a prefix of what was written.
    fn check_prefix(bytes: &[u8]) -> Replay {
        let replay = read(bytes).unwrap();
        let done: u64 = replay.state.done.iter().map(|r| r.end - r.start).sum();
        assert_eq!(done, replay.records);
        assert!(replay.state.done.iter().all(|r| r.start == 0));
        replay
    }

    #[test]
    fn truncated_at_every_byte() {
        let whole = journal(20);
        for len in HEADER_BYTES..whole.len() {
            let replay = check_prefix(&whole[..len]);
            assert_eq!(replay.records, ((len - HEADER_BYTES) / RECORD_BYTES) as u64);
            assert!(!replay.is_damaged);
        }
        for len in 0..HEADER_BYTES {
            assert!(read(&whole[..len]).is_err());
        }
    }

    #[test]
    fn every_bit_flipped() {
        let mut bytes = journal(20);
        for at in HEADER_BYTES..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let replay = check_prefix(&bytes);
                let record = ((at - HEADER_BYTES) / RECORD_BYTES) as u64;
                assert_eq!(replay.records, record);
                assert_eq!(replay.is_damaged, record < 19);
                bytes[at] ^= 1 << bit;
            }
        }
        for at in 0..HEADER_BYTES {
            bytes[at] ^= 1;
            assert!(read(&bytes).is_err(), "{at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn what_lies_beyond_the_end_is_not_believed() {
        let mut bytes = journal(0);
        let session = *b"0123456789abcdef";
        let digest = ChunkDigest::of(&[]);
        let hostile = [
            Record::Holes {
                first: 90,
                count: u64::MAX,
            },
            Record::Holes {
                first: u64::MAX,
                count: u64::MAX,
            },
            Record::Done {
                index: u64::MAX,
                len: 10,
                digest,
            },
            Record::Done {
                index: 100,
                len: 10,
                digest,
            },
        ];
        for (number, record) in (0..).zip(&hostile) {
            bytes.extend_from_slice(&record.encode(number, &session));
        }
        let replay = replay(&bytes[..], |_, _, _| {}).unwrap();
        assert_eq!(replay.records, 4);
        assert_eq!(
            replay.state.settled(),
            RangeSet::from_iter(std::iter::once(90..100))
        );
    }

    #[test]
    fn zeroed_tails_and_swapped_records() {
        let whole = journal(20);
        for from in 0..20 {
            let at = HEADER_BYTES + from * RECORD_BYTES;
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            let replay = check_prefix(&zeroed);
            assert_eq!((replay.records, replay.is_damaged), (from as u64, false));
            for other in from + 1..20 {
                let mut swapped = whole.clone();
                let (a, b) = swapped.split_at_mut(HEADER_BYTES + other * RECORD_BYTES);
                a[at..at + RECORD_BYTES].swap_with_slice(&mut b[..RECORD_BYTES]);
                assert_eq!(check_prefix(&swapped).records, from as u64);
            }
        }
    }
}
