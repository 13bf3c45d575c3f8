//! What all decoders of one member have in common.

use std::io::Read;

use super::source::Packed;

/// The decoder of one member, which ends where the member does.
pub(super) trait Member: Read + Send {
    /// Gives back what follows the member.
    fn into_source(self: Box<Self>) -> Packed;
}

impl Member for flate2::bufread::GzDecoder<Packed> {
    fn into_source(self: Box<Self>) -> Packed {
        self.into_inner()
    }
}

impl Member for bzip2::bufread::BzDecoder<Packed> {
    fn into_source(self: Box<Self>) -> Packed {
        self.into_inner()
    }
}
