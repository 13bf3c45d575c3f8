//! Gzip, both ways. Pure: bytes in, bytes out; no network, no files.

mod gunzip;
mod gzip;

pub(crate) use gunzip::{Gunzip, GunzipError, Trailing};
pub use gzip::{Gzip, Level, gzip_zeros};
