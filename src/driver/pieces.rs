//! One attempt at a chunk in several requests, each for a piece of it. They are made one after the
//! other; at the end of a transfer also concurrently, as far as requests are free. No two of them
//! are for the same bytes.

use std::ops::Range;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::shell::AttemptError;
use super::spare_requests::Spare;
use crate::chunk::RequestSize;
use crate::policy::{PiecesConfig, Requests};

/// The limits of a transfer whose requests have at most this size. The simulator's chunks are smaller
/// than the product's smallest request, so it has a minimum of its own.
pub(crate) fn at_most(most: RequestSize) -> PiecesConfig {
    #[cfg(not(test))]
    let least_bytes = PiecesConfig::default().least_bytes;
    #[cfg(test)]
    let least_bytes = crate::simulator::least_bytes();
    PiecesConfig {
        most,
        least_bytes,
        rate: None,
    }
}

/// The result of a piece: its bytes of the drive, and its request.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) bytes: Range<u64>,
    pub(crate) result: Result<(), AttemptError>,
    pub(crate) requests: Requests,
}

/// Makes the requests that `next` returns, each for the next piece of a chunk in order, until it
/// returns `None`. One is always in flight, and `spare` permits more.
///
/// After a failure no other piece is begun, but those in flight are awaited. If they were dropped
/// instead, their bytes might still reach the endpoint after the next attempt at the same bytes.
/// Only bytes without a gap before them count as advanced.
pub(crate) async fn in_pieces<F>(spare: Option<&Spare>, mut next: impl FnMut() -> F) -> Whole
where
    F: Future<Output = Option<Made>>,
{
    let mut under_way = FuturesUnordered::new();
    // One permit less than there are requests, because the first request belongs to the chunk
    // itself.
    let mut permits = Vec::new();
    let mut shared = Shared::default();
    let mut is_over = false;
    loop {
        if under_way.is_empty() {
            if is_over {
                return shared.whole();
            }
            under_way.push(next());
        }
        let permit = async {
            match spare {
                Some(spare) => spare.take().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Completed requests are handled before new ones begin, because one may have failed.
            biased;
            Some(piece) = under_way.next() => {
                is_over |= !piece.is_some_and(|piece| shared.add(piece));
                permits.truncate(under_way.len().saturating_sub(1));
            }
            permit = permit, if !is_over => {
                permits.push(permit);
                under_way.push(next());
            }
        }
    }
}

/// The result of an attempt in pieces.
#[derive(Debug)]
pub(crate) struct Whole {
    /// The first failure, if there was one.
    pub(crate) result: Result<(), AttemptError>,
    /// All requests, as far as they observe the limits.
    pub(crate) requests: Requests,
    /// The byte of the drive before which everything succeeded; `None` if nothing did.
    pub(crate) end: Option<u64>,
}

/// The pieces that have ended.
#[derive(Default)]
struct Shared {
    /// Each piece, and whether it succeeded.
    pieces: Vec<(Range<u64>, Requests, bool)>,
    /// The first failure, and its request.
    failed: Option<(AttemptError, Option<RequestSize>)>,
}

impl Shared {
    /// Adds a piece; returns whether it succeeded.
    fn add(&mut self, piece: Made) -> bool {
        let is_good = piece.result.is_ok();
        if let Err(error) = piece.result {
            self.failed.get_or_insert((error, piece.requests.failed));
        }
        self.pieces.push((piece.bytes, piece.requests, is_good));
        is_good
    }

    fn whole(mut self) -> Whole {
        self.pieces.sort_by_key(|(bytes, ..)| bytes.start);
        let mut requests = Requests::default();
        let (mut end, mut has_gap) = (None, false);
        for (bytes, of_it, is_good) in self.pieces {
            requests.confirmed += of_it.confirmed;
            requests.largest_body = requests.largest_body.max(of_it.largest_body);
            if !has_gap {
                requests.advanced_bytes += of_it.advanced_bytes;
                has_gap = !is_good;
                end = if has_gap { end } else { Some(bytes.end) };
            }
        }
        let result = match self.failed {
            Some((error, size)) => {
                requests.failed = size;
                Err(error)
            }
            None => Ok(()),
        };
        Whole {
            result,
            requests,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::sleep;

    use super::*;
    use crate::failure::Failure;

    /// Bytes of a piece.
    const PIECE: u64 = 10;

    /// How many seconds a piece takes, and whether it succeeds.
    type Piece = (u64, bool);

    #[derive(Default)]
    struct Seen {
        begun: u64,
        now: u32,
        most: u32,
        ended: u64,
        failed: bool,
        begun_after_failure: bool,
    }

    fn play(pieces: &[Piece], allowed: Option<u32>) -> (Whole, Seen, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let spare = Spare::default();
            spare.allow(allowed.unwrap_or_default());
            let (seen, mut rest) = (RefCell::new(Seen::default()), pieces.iter());
            let began = tokio::time::Instant::now();
            let next = || {
                let (piece, seen) = (rest.next().copied(), &seen);
                async move {
                    let (seconds, is_good) = piece?;
                    let start = {
                        let mut seen = seen.borrow_mut();
                        seen.begun += 1;
                        seen.now += 1;
                        seen.most = seen.most.max(seen.now);
                        seen.begun_after_failure |= seen.failed;
                        (seen.begun - 1) * PIECE
                    };
                    sleep(Duration::from_secs(seconds)).await;
                    let mut seen = seen.borrow_mut();
                    seen.now -= 1;
                    seen.ended += 1;
                    seen.failed |= !is_good;
                    let mut requests = Requests::default();
                    let result = match is_good {
                        true => {
                            requests.confirm(RequestSize::plain(PIECE));
                            Ok(())
                        }
                        false => {
                            requests.advanced_bytes = 3;
                            requests.failed = Some(RequestSize::plain(PIECE));
                            Err(Failure::Broken(format!("{start}")).into())
                        }
                    };
                    Some(Made {
                        bytes: start..start + PIECE,
                        result,
                        requests,
                    })
                }
            };
            let whole = in_pieces(allowed.map(|_| &spare), next).await;
            let took = began.elapsed();
            // Every permit that was taken has been returned.
            for _ in 0..allowed.unwrap_or_default() {
                std::mem::forget(spare.take().await);
            }
            (whole, seen.into_inner(), took)
        })
    }

    proptest! {
        #[test]
        fn each_piece_is_transferred_once_and_only_a_gapless_beginning_counts(
            pieces in prop::collection::vec((1_u64..20, prop::bool::weighted(0.9)), 0..20),
            allowed in prop::option::of(0_u32..6),
        ) {
            let (whole, seen, _) = play(&pieces, allowed);
            prop_assert!(seen.most <= 1 + allowed.unwrap_or_default());
            prop_assert_eq!(seen.begun, seen.ended);
            prop_assert!(!seen.begun_after_failure);
            let begun = &pieces[..usize::try_from(seen.begun).unwrap()];
            let is_good = begun.iter().all(|piece| piece.1);
            prop_assert_eq!(is_good, whole.result.is_ok());
            prop_assert!(!is_good || begun.len() == pieces.len());
            let in_order = begun.iter().take_while(|piece| piece.1).count() as u64;
            prop_assert_eq!(whole.end, (in_order > 0).then_some(in_order * PIECE));
            let requests = whole.requests;
            let part = if is_good { 0 } else { 3 };
            prop_assert_eq!(requests.advanced_bytes, in_order * PIECE + part);
            let good = begun.iter().filter(|piece| piece.1).count();
            prop_assert_eq!(requests.confirmed as usize, good);
            prop_assert_eq!(requests.failed.is_some(), !is_good);
        }
    }

    #[test]
    fn the_first_failed_piece_is_reported() {
        let pieces = [(9, false), (5, false), (7, false)];
        let (whole, ..) = play(&pieces, Some(2));
        let Err(AttemptError::Failed(Failure::Broken(which))) = whole.result else {
            panic!("{whole:?}");
        };
        assert_eq!(which, "10");
    }

    #[test]
    fn spare_requests_transfer_pieces() {
        let pieces = [(2, true); 12];
        for (allowed, seconds) in [(None, 24), (Some(0), 24), (Some(1), 12), (Some(3), 6)] {
            let (_, _, took) = play(&pieces, allowed);
            assert_eq!(took, Duration::from_secs(seconds), "{allowed:?}");
        }
    }
}
