//! Journals, also as a crash or an attacker leaves them. For any bytes, the chunks that are
//! reported lie within the transfer. From a valid journal that was damaged, a prefix of its chunks
//! is reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::digest::ChunkDigest;
use openhosting::journal::{
    Direction, HEADER_BYTES, Header, PageCache, Proof, RECORD_BYTES, Record, replay,
};

/// Replays the bytes and checks what must always hold. Returns the reported chunks in order.
fn reported(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut indexes = Vec::new();
    let replay = replay(bytes, |index, _, _| indexes.push(index)).ok()?;
    assert!(replay.records <= ((bytes.len() - HEADER_BYTES) / RECORD_BYTES) as u64);
    assert!(indexes.len() as u64 <= replay.records);
    let chunks = replay.header.size.div_ceil(replay.header.chunk.max(1));
    let settled = replay.state.settled();
    // Counts ranges and not chunks: memory must depend on the length of the file, and not on
    // numbers in it.
    assert!(settled.iter().count() as u64 <= replay.records);
    assert!(
        settled
            .iter()
            .all(|range| range.start < range.end && range.end <= chunks)
    );
    // Chunks that are not synced belong to one page cache, and lie within the transfer.
    let written = &replay.state.written;
    assert!(written.is_empty() || replay.state.page_cache().is_some());
    assert!(written.len() as u64 <= replay.records);
    assert!(written.keys().all(|index| *index < chunks));
    Some(indexes)
}

fuzz_target!(|data: &[u8]| {
    let _ = reported(data);

    // A valid header, so that the records are examined too. Numbers, records and damage depend on
    // the input.
    let mut numbers = data
        .chunks_exact(8)
        .map(|n| u64::from_le_bytes(n.try_into().unwrap_or_default()));
    let mut next = || numbers.next().unwrap_or_default();
    let header = Header {
        direction: Direction::Upload,
        session: [3; 16],
        token: [4; 16],
        size: next(),
        chunk: next(),
        first: 0,
        source: None,
        endpoint: "https://h/".into(),
        user: "u".into(),
    };
    let Some(bytes) = header.encode() else { return };
    let mut bytes = bytes.to_vec();
    let (at, flip) = (next(), next());
    let mut written = Vec::new();
    for number in 0..64 {
        let (what, first, count) = (next(), next(), next());
        let record = match what % 9 {
            0 => break,
            1 => Record::Holes { first, count },
            2 => Record::Drivestate {
                write_bytes: first,
                write_requests: count,
            },
            3 => Record::Whole {
                inode: first,
                modified_ns: count.into(),
            },
            4 => Record::Run(None),
            5 => Record::Run(Some(PageCache {
                boot: [first as u8; 16],
                device: count,
                mount: first,
                inode: count,
            })),
            6 => Record::Written {
                index: first,
                len: count as u32,
                proof: Proof::Blocks(count),
            },
            7 => Record::Synced { records: count },
            _ => {
                written.push(first);
                Record::Done {
                    index: first,
                    len: count as u32,
                    digest: ChunkDigest::of(&[]),
                }
            }
        };
        bytes.extend_from_slice(&record.encode(number, &header.session));
    }
    assert_eq!(reported(&bytes).as_ref(), Some(&written));
    // Arbitrary records after a valid header.
    let mut other = bytes[..HEADER_BYTES].to_vec();
    other.extend_from_slice(data);
    let _ = reported(&other);
    // Some bits are flipped, and then the end is cut off: the reported chunks are a prefix each
    // time.
    let len = bytes.len();
    let place = HEADER_BYTES + (at as usize) % (len - HEADER_BYTES + 1);
    if place < len {
        bytes[place] ^= (flip as u8).max(1);
    }
    let all = reported(&bytes).unwrap_or_default();
    assert!(written.starts_with(&all));
    let cut = reported(&bytes[..place]).unwrap_or_default();
    assert!(all.starts_with(&cut) && written.starts_with(&cut));
});
