//! Compression: what turns bytes of an image into gzip and back. Pure functions
//! over bytes and readers: no network, no files.

mod gunzip;

pub(crate) use gunzip::{Gunzip, GunzipError, Trailing};
