//! Reads a journal and sums up its records: pure, over any reader.

use std::collections::BTreeMap;
use std::io::Read;

use rangemap::RangeSet;

use super::PageCache;
use super::record::{
    HEADER_BYTES, Header, HeaderError, Proof, RECORD_BYTES, Record, VERSION_WITH_UNSYNCED,
    version_of,
};
use crate::digest::ChunkDigest;
use crate::drive::DriveId;
use crate::plan::Plan;

/// The sum of a journal's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The drive, and whether the transfer created it.
    pub drive: Option<(DriveId, bool)>,
    /// Chunks that are done; their digests are elsewhere.
    pub done: RangeSet<u64>,
    /// Chunks that are holes and were left out.
    pub holes: RangeSet<u64>,
    /// Where the image ends, once a chunk is done that is shorter than the others: the last one.
    pub end: Option<u64>,
    /// `write:bytes` and `write:requests` of the drive when the transfer began.
    pub counters: Option<(u64, u64)>,
    /// The file that contains all of a download: its inode, and the time of its last write in
    /// nanoseconds since 1970. Valid only while the file has both.
    pub whole: Option<(u64, i128)>,
    /// Chunks that the last run wrote and did not sync, by index, with their lengths. They are
    /// valid only as long as the page cache exists.
    pub written: BTreeMap<u64, (u32, Proof)>,
    /// The number of the last [`Record::Run`], and its content.
    pub run: Option<(u64, Option<PageCache>)>,
}

impl State {
    /// All chunks that need no transfer.
    pub fn settled(&self) -> RangeSet<u64> {
        let mut all = self.done.clone();
        all.extend(self.holes.iter().cloned());
        all
    }

    /// Bytes of these chunks.
    pub fn settled_bytes(&self, plan: &Plan) -> u64 {
        self.ending(plan).bytes_in_all(self.settled().iter())
    }

    /// The plan, with the end of the image if only the journal knows it.
    pub fn ending(&self, plan: &Plan) -> Plan {
        match self.end.filter(|_| plan.is_endless()) {
            Some(end) => plan.ending_at(end),
            None => *plan,
        }
    }

    /// The page cache to which [`written`](Self::written) refers.
    pub fn page_cache(&self) -> Option<PageCache> {
        self.run.and_then(|(_, page_cache)| page_cache)
    }

    /// Adds a record with this number. Chunks beyond the end of the transfer are ignored: a count of
    /// 2^64 would keep everything busy that iterates over it.
    fn apply(&mut self, number: u64, record: &Record, header: &Header) {
        let chunks = header.size.div_ceil(header.chunk.max(1));
        match *record {
            Record::Drive { id, is_ours } => self.drive = Some((id, is_ours)),
            Record::Done { index, len, .. } => {
                if index < chunks {
                    self.done.insert(index..index + 1);
                    self.written.remove(&index);
                    if u64::from(len) < header.chunk {
                        let start = index.saturating_mul(header.chunk);
                        self.end = Some(start.saturating_add(len.into()));
                    }
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
            Record::Run(page_cache) => {
                self.run = Some((number, page_cache));
                self.written.clear();
            }
            Record::Written { index, len, proof } => {
                if index < chunks && self.page_cache().is_some() {
                    self.written.insert(index, (len, proof));
                }
            }
            Record::Synced { .. } => {}
        }
    }
}

/// A journal, read from its start to the first invalid record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What it is about.
    pub header: Header,
    /// The version of its format.
    pub version: u32,
    /// The sum of its records.
    pub state: State,
    /// Number of valid records.
    pub records: u64,
    /// Whether an invalid record was valid once: a later one says that it was on the disk (in
    /// version 1, a later one is valid itself). Then this is not the tail of a crash but damage:
    /// what follows is ignored, and the damage is reported.
    pub is_damaged: bool,
}

/// Why a journal cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The header is invalid.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads a journal. `each` is called with every chunk's index, length and digest.
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
    let mut replay = Replay {
        version: version_of(&bytes),
        state: State::default(),
        records: 0,
        is_damaged: false,
        header,
    };
    let mut bytes = [0; RECORD_BYTES];
    while fill(&mut input, &mut bytes)? {
        let Some(record) = Record::decode(&bytes, replay.records, &replay.header.session) else {
            replay.is_damaged = was_sound(input, &replay)?;
            return Ok(replay);
        };
        if let Record::Done { index, len, digest } = record {
            each(index, len, digest);
        }
        let number = replay.records;
        replay.state.apply(number, &record, &replay.header);
        replay.records += 1;
    }
    Ok(replay)
}

/// Whether a later record says that the next record was once on the disk.
fn was_sound(mut input: impl Read, replay: &Replay) -> std::io::Result<bool> {
    let torn = replay.records;
    let mut bytes = [0; RECORD_BYTES];
    let mut number = torn + 1;
    while fill(&mut input, &mut bytes)? {
        match Record::decode(&bytes, number, &replay.header.session) {
            Some(Record::Synced { records }) if records > torn => return Ok(true),
            Some(_) if replay.version < VERSION_WITH_UNSYNCED => return Ok(true),
            _ => {}
        }
        number += 1;
    }
    Ok(false)
}

/// Fills the buffer; returns `false` if the input ends earlier.
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
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::super::record::Direction;
    use super::super::record::tests::{header_of, record};
    use super::*;

    const SESSION: [u8; 16] = *b"0123456789abcdef";

    fn header() -> Header {
        Header {
            session: SESSION,
            token: [7; 16],
            size: 1000,
            ..header_of(Direction::Upload)
        }
    }

    fn encode(records: &[Record]) -> Vec<u8> {
        let mut bytes = header().encode().unwrap().to_vec();
        for (number, record) in (0..).zip(records) {
            bytes.extend_from_slice(&record.encode(number, &SESSION));
        }
        bytes
    }

    /// The same journal in version 1.
    fn as_version_1(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[8] = 1;
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `records` records of chunks that are done.
    fn done(records: u64) -> Vec<Record> {
        let done = |index: u64| Record::Done {
            index,
            len: 10,
            digest: ChunkDigest::of(&index.to_le_bytes()),
        };
        (0..records).map(done).collect()
    }

    /// The same, followed by a record that they are on the disk.
    fn journal(records: u64) -> Vec<u8> {
        let mut all = done(records);
        all.push(Record::Synced { records });
        encode(&all)
    }

    fn read(bytes: &[u8]) -> Result<Replay, ReplayError> {
        replay(bytes, |index, len, digest| {
            // Whatever is damaged, no false record is ever returned.
            assert_eq!((len, digest), (10, ChunkDigest::of(&index.to_le_bytes())));
        })
    }

    /// Checks that the returned chunks are a prefix of what was written.
    fn check_prefix(bytes: &[u8]) -> Replay {
        let replay = read(bytes).unwrap();
        let done: u64 = replay.state.done.iter().map(|r| r.end - r.start).sum();
        assert_eq!(done, replay.records.min(20));
        assert!(replay.state.done.iter().all(|r| r.start == 0));
        replay
    }

    #[test]
    fn a_truncated_journal_replays_its_whole_records() {
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
    fn a_flipped_bit_ends_the_replay_at_its_record() {
        let mut bytes = journal(20);
        for at in HEADER_BYTES..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let replay = check_prefix(&bytes);
                let record = ((at - HEADER_BYTES) / RECORD_BYTES) as u64;
                assert_eq!(replay.records, record);
                assert_eq!(replay.is_damaged, record < 20);
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
    fn only_synced_records_can_be_damaged() {
        let mut records = done(20);
        records.insert(10, Record::Synced { records: 7 });
        let whole = encode(&records);
        for torn in 0..records.len() {
            let mut bytes = whole.clone();
            bytes[HEADER_BYTES + torn * RECORD_BYTES] ^= 1;
            let replay = replay(&bytes[..], |_, _, _| {}).unwrap();
            assert_eq!(replay.records, torn as u64);
            assert_eq!(replay.is_damaged, torn < 7, "{torn}");
            // In version 1, any valid record that follows is a sign of damage.
            let old = super::replay(&as_version_1(bytes)[..], |_, _, _| {}).unwrap();
            assert_eq!(old.is_damaged, torn + 1 < records.len(), "{torn}");
        }
    }

    fn page_cache(number: u8) -> PageCache {
        PageCache {
            boot: [number; 16],
            device: 1,
            mount: 2,
            inode: 3,
        }
    }

    fn written(index: u64) -> Record {
        Record::Written {
            index,
            len: 10,
            proof: Proof::Blocks(1),
        }
    }

    #[test]
    fn only_the_last_run_counts_for_unsynced_chunks() {
        let done = done(9);
        let journal = encode(&[
            // Before the first run, it is unknown which page cache this refers to.
            written(1),
            Record::Run(Some(page_cache(7))),
            written(2),
            Record::Run(Some(page_cache(8))),
            written(3),
            written(4),
            written(100),
            done[3].clone(),
        ]);
        let state = read(&journal).unwrap().state;
        assert_eq!(state.page_cache(), Some(page_cache(8)));
        let written: Vec<_> = state.written.into_iter().collect();
        assert_eq!(written, [(4, (10, Proof::Blocks(1)))]);
        assert!(state.done.contains(&3) && !state.done.contains(&4));
        let mut revoked = journal;
        let void = Record::Run(None).encode(3, &SESSION);
        revoked[HEADER_BYTES + 3 * RECORD_BYTES..][..RECORD_BYTES].copy_from_slice(&void);
        let state = read(&revoked).unwrap().state;
        assert_eq!((state.page_cache(), state.written.len()), (None, 0));
    }

    proptest! {
        /// Whatever was written and wherever it ends, the state is that of the records that are
        /// there. Only unsynced chunks of the last run are reported, and none that is done.
        #[test]
        fn any_prefix_of_a_journal_replays_to_the_state_of_its_records(
            records in proptest::collection::vec((record(), 0_u64..120, 0_u8..3), 0..40),
            cut in 0_usize..50 * RECORD_BYTES,
        ) {
            let records: Vec<_> = records.into_iter().map(|(record, small, kind)| match record {
                Record::Done { digest, len, .. } => Record::Done {
                    index: small,
                    // A chunk of 10 bytes, or a shorter one, which is the last.
                    len: if kind == 0 { len % 10 } else { 10 },
                    digest,
                },
                Record::Holes { .. } => Record::Holes { first: small, count: kind.into() },
                Record::Run(Some(_)) => Record::Run(Some(page_cache(kind))),
                Record::Written { len, proof, .. } => Record::Written { index: small, len, proof },
                // A reason to call the journal damaged, which does not matter here.
                Record::Synced { .. } => Record::Synced { records: 0 },
                other => other,
            }).collect();
            let bytes = encode(&records);
            let cut = bytes.len().min(HEADER_BYTES + cut);
            let replay = replay(&bytes[..cut], |_, _, _| {}).unwrap();
            let whole = (cut - HEADER_BYTES) / RECORD_BYTES;
            prop_assert_eq!((replay.records, replay.is_damaged), (whole as u64, false));
            let records = &records[..whole];
            let run = records.iter().rposition(|record| matches!(record, Record::Run(_)));
            let page_cache = run.and_then(|run| match records[run] {
                Record::Run(page_cache) => page_cache,
                _ => None,
            });
            prop_assert_eq!(replay.state.page_cache(), page_cache);
            let mut expected = BTreeMap::new();
            for record in &records[run.unwrap_or(whole)..] {
                match *record {
                    Record::Written { index, len, proof } if index < 100 && page_cache.is_some() => {
                        expected.insert(index, (len, proof));
                    }
                    Record::Done { index, .. } => _ = expected.remove(&index),
                    _ => {}
                }
            }
            prop_assert_eq!(&replay.state.written, &expected);
            let (mut settled, mut end) = (BTreeSet::new(), None);
            for record in records {
                match *record {
                    Record::Done { index, len, .. } if index < 100 => {
                        settled.insert(index);
                        end = if len < 10 { Some(index * 10 + u64::from(len)) } else { end };
                    }
                    Record::Holes { first, count } => settled.extend((first..first + count).filter(|index| *index < 100)),
                    _ => {}
                }
            }
            prop_assert!(replay.state.settled().iter().cloned().flatten().eq(settled.iter().copied()));
            let chunk = NonZeroU64::new(10).unwrap();
            let plan = Plan::new(1000, chunk);
            prop_assert_eq!(replay.state.ending(&plan), plan, "its end is known");
            prop_assert_eq!(replay.state.settled_bytes(&plan), 10 * settled.len() as u64);
            let endless = Plan::endless(chunk);
            let expected = end.map_or(endless, |end| endless.ending_at(end));
            prop_assert_eq!(replay.state.ending(&endless), expected);
        }
    }

    /// Returns one byte at a time, after a signal interrupted it, and `end` after the last byte.
    struct Slow<'a> {
        bytes: &'a [u8],
        is_interrupted: bool,
        end: Option<ErrorKind>,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.is_interrupted = !self.is_interrupted;
            match (self.is_interrupted, self.end) {
                (true, _) => Err(ErrorKind::Interrupted.into()),
                (false, Some(kind)) if self.bytes.is_empty() => Err(kind.into()),
                (false, _) => self.bytes.read(&mut bytes[..1]),
            }
        }
    }

    #[test]
    fn a_read_that_fails_is_not_the_end_of_the_journal() {
        let bytes = journal(20);
        let slow = |end| {
            let bytes = &bytes[..];
            let is_interrupted = false;
            replay(
                Slow {
                    bytes,
                    is_interrupted,
                    end,
                },
                |_, _, _| {},
            )
        };
        assert_eq!(slow(None).unwrap(), read(&bytes).unwrap());
        let failed = slow(Some(ErrorKind::TimedOut));
        assert!(matches!(failed, Err(ReplayError::Io(_))), "{failed:?}");
    }

    #[test]
    fn records_beyond_the_end_are_ignored() {
        let mut bytes = encode(&[]);
        let session = SESSION;
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
    fn zeroed_and_swapped_records_end_the_replay() {
        let whole = journal(20);
        for from in 0..20 {
            let at = HEADER_BYTES + from * RECORD_BYTES;
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            let replay = check_prefix(&zeroed);
            // Nothing follows.
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
