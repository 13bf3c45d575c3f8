//! The common interface of decoders of one member.

use std::io::Read;

use super::source::Packed;

/// Decodes one member, and ends where the member ends.
pub(super) trait Member: Read + Send {
    /// Returns the source, positioned after the member.
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
