//! Where in a file the bytes of an image are. The file may store the image in several pieces, and
//! without its holes.

use std::ops::Range;
use std::sync::Arc;

/// The pieces of an image, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pieces(Arc<[Piece]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// The end of the piece in the image.
    end: u64,
    /// The offset of the piece in the file; `None` for a hole.
    at: Option<u64>,
}

/// Consecutive bytes of an image that are in one place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The offset of the first in the file; `None` for a hole.
    pub(super) at: Option<u64>,
    /// Number of bytes.
    pub(super) len: u64,
}

impl Pieces {
    /// A single piece: this part of the file.
    pub(super) fn one(part: Range<u64>) -> Self {
        let stretch = Stretch {
            at: Some(part.start),
            len: part.end.saturating_sub(part.start),
        };
        std::iter::once(stretch).collect()
    }

    /// Bytes of the image.
    pub(super) fn size(&self) -> u64 {
        self.0.last().map_or(0, |piece| piece.end)
    }

    /// The stretch at `offset` of the image; `None` at its end.
    pub(super) fn at(&self, offset: u64) -> Option<Stretch> {
        let number = self.0.partition_point(|piece| piece.end <= offset);
        let piece = self.0.get(number)?;
        let start = match number.checked_sub(1) {
            Some(before) => self.0[before].end,
            None => 0,
        };
        Some(Stretch {
            at: piece.at.map(|at| at + (offset - start)),
            len: piece.end - offset,
        })
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Stretch> + '_ {
        let starts = std::iter::once(0).chain(self.0.iter().map(|piece| piece.end));
        self.0.iter().zip(starts).map(|(piece, start)| Stretch {
            at: piece.at,
            len: piece.end - start,
        })
    }
}

/// From stretches in order; empty ones are omitted. The sum of their lengths must fit 64 bits.
impl FromIterator<Stretch> for Pieces {
    fn from_iter<I: IntoIterator<Item = Stretch>>(stretches: I) -> Self {
        let mut end = 0_u64;
        let pieces = stretches.into_iter().filter(|stretch| stretch.len > 0);
        let pieces = pieces.map(|Stretch { at, len }| {
            end = end.saturating_add(len);
            Piece { end, at }
        });
        Self(pieces.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_piece() {
        let stretches = [
            (Some(512), 10),
            (None, 5),
            (Some(7), 0),
            (Some(1024), 3),
            (None, 2),
        ]
        .map(|(at, len)| Stretch { at, len });
        let pieces: Pieces = stretches.into_iter().collect();
        assert_eq!(pieces.size(), 20);
        let mut bytes = Vec::new();
        for stretch in pieces.iter() {
            for by in 0..stretch.len {
                bytes.push((stretch.at.map(|at| at + by), stretch.len - by));
            }
        }
        for (offset, (at, len)) in (0..).zip(&bytes) {
            let (at, len) = (*at, *len);
            assert_eq!(pieces.at(offset), Some(Stretch { at, len }), "{offset}");
        }
        assert_eq!((bytes.len(), pieces.at(20)), (20, None));
        assert_eq!(Pieces::one(5..5).at(0), None);
        assert_eq!(
            Pieces::one(5..7).at(1),
            Some(Stretch {
                at: Some(6),
                len: 1
            })
        );
    }
}
