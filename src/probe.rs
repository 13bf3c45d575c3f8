//! Asking an endpoint how it behaves, with one small drive of our own, where no
//! document tells (docs/dev/faults.md, 7).
//!
//! Each question stands for itself: one that cannot be answered leaves the
//! others alone. They run in a task of their own, so that whatever becomes of it
//! (an end, a stop, no time left, a panic) the drive is destroyed afterwards.
//!
//! `questions` says what is asked and how an answer is read, `notes` what is known so far.
//! It never touches a drive that it did not make, and never leaves its own without saying so.
//! Start reading at [`run::probe`].

mod notes;
pub(crate) mod questions;
pub(crate) mod run;
