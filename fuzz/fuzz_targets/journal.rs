//! Journals, as they are and as a crash or an enemy leaves them: whatever the
//! bytes, what is told lies within the transfer, and of a sound journal that
//! was damaged a prefix is told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openhosting::digest::ChunkDigest;
use openhosting::journal::{
    Direction, HEADER_BYTES, Header, PageCache, Proof, RECORD_BYTES, Record, replay,
};

/// Replays bytes and checks what cannot be otherwise; the chunks told, in order.
fn told(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut told = Vec::new();
    let replay = replay(bytes, |index, _, _| told.push(index)).ok()?;
    assert!(replay.records <= ((bytes.len() - HEADER_BYTES) / RECORD_BYTES) as u64);
    assert!(told.len() as u64 <= replay.records);
    let chunks = replay.header.size.div_ceil(replay.header.chunk.max(1));
    let settled = replay.state.settled();
    // Ranges, not chunks: memory follows the file, not what it claims.
    assert!(settled.iter().count() as u64 <= replay.records);
    assert!(
        settled
            .iter()
            .all(|range| range.start < range.end && range.end <= chunks)
    );
    // What is not synced is told of one page cache, and within the transfer.
    let written = &replay.state.written;
    assert!(written.is_empty() || replay.state.page_cache().is_some());
    assert!(written.len() as u64 <= replay.records);
    assert!(written.keys().all(|index| *index < chunks));
    Some(told)
}

fuzz_target!(|data: &[u8]| {
    let _ = told(data);

    // A sound header, so that it gets beyond it; numbers, records and damage by
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
    assert_eq!(told(&bytes).as_ref(), Some(&written));
    // Arbitrary records after a sound header.
    let mut other = bytes[..HEADER_BYTES].to_vec();
    other.extend_from_slice(data);
    let _ = told(&other);
    // Bits flipped, then the end cut off: what is told is a prefix.
    let len = bytes.len();
    let place = HEADER_BYTES + (at as usize) % (len - HEADER_BYTES + 1);
    if place < len {
        bytes[place] ^= (flip as u8).max(1);
    }
    let all = told(&bytes).unwrap_or_default();
    assert!(written.starts_with(&all));
    let cut = told(&bytes[..place]).unwrap_or_default();
    assert!(all.starts_with(&cut) && written.starts_with(&cut));
});
