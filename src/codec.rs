//! Gzip, both ways. Pure: bytes in, bytes out.

mod gzip;

pub use gzip::{Gzip, Level, gzip_zeros};
