//! Gzip and Zstandard, compression and decompression, as pure functions over bytes: no network and
//! no files.

mod cut;
mod gunzip;
mod gzip;
mod pack;
mod sparse;
mod unpack;

pub use cut::Cutter;
pub use gunzip::{Gunzip, GunzipError, Trailing, has_too_many_members};
pub use gzip::{Compression, Gzip, Level, ZeroRuns, gzip_zeros};
pub use pack::{ClusterPacker, Packer, Packing};
pub use sparse::{SparseGzip, UNIT_BYTES};
pub use unpack::{Pack, UnpackError, Unpacker};
