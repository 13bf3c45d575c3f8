//! `openhosting-upload` when things go wrong.
