//! Verification: whether a drive holds the same as this machine.
//!
//! `read_back` selects what is checked and compares it when everything has been transferred,
//! `early_checks` does so while the transfer runs, `sample_places` selects the places of a sample,
//! and `Inspection` finds the blocks in which a drive differs from a content.
//!
//! It never writes to a drive, and does not know the direction of the transfer. Start reading at
//! [`read_back::verify`].

pub(crate) mod early_checks;
pub(crate) mod inspect;
pub(crate) mod read_back;
pub(crate) mod sample_places;
