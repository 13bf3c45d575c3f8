//! Verification: whether a drive holds what this machine does.
//!
//! `read_back` picks what is checked and compares it when all has been transferred,
//! `early_checks` does so while the transfer runs, `sample_places` says where a sample looks,
//! and `Inspection` finds the blocks in which a drive differs from a content.
//!
//! It never writes to a drive, and never knows which way the bytes went.
//! Start reading at [`read_back::verify`].

pub(crate) mod early_checks;
pub(crate) mod inspect;
pub(crate) mod read_back;
pub(crate) mod sample_places;
