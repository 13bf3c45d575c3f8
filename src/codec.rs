//! Gzip and Zstandard, both ways. Pure: bytes in, bytes out; no network, no files.

mod cut;
mod gunzip;
mod gzip;
mod pack;
mod sparse;
mod unpack;

pub(crate) use cut::Cutter;
#[cfg(test)]
pub(crate) use cut::tests::{packed, plain};
pub(crate) use gunzip::{Gunzip, GunzipError, Trailing};
pub use gzip::{Compression, Gzip, Level, ZeroRuns, gzip_zeros};
pub(crate) use pack::ClusterPacker;
pub use pack::{Packer, Packing};
pub(crate) use sparse::{SparseGzip, UNIT_BYTES};
pub(crate) use unpack::{Pack, UnpackError, Unpacker};
