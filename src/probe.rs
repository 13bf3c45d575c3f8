//! Finds out how an endpoint behaves where it is not documented, with a small drive of its own
//! (docs/dev/faults.md, 7).
//!
//! The questions are independent: one that cannot be answered does not affect the others. They run
//! in a separate task, so that the drive is destroyed afterwards however that task ends (finished,
//! stopped, timed out, or panicked).
//!
//! `questions` contains the questions and how to interpret the answers, `notes` the results so far.
//! A probe never touches a drive that it did not create, and reports if it could not remove its
//! own. Start reading at [`run::probe`].

mod notes;
pub(crate) mod questions;
pub(crate) mod run;
