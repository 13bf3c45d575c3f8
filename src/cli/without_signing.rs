//! Replacement for the signatures of receipts in a program that was built without the feature
//! `signing`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::with_suffix;

fn none() -> Error {
    let what = "Signatures need a program that was built with the feature \"signing\"";
    Error::new(ErrorKind::Usage, what)
        .hint_to("Leave out --sign-key and --pubkey, or use minisign itself")
}

/// A key for signing: there is none.
pub(super) struct Signer(Infallible);

impl Signer {
    /// Fails.
    pub(super) async fn open(_: &Path) -> Result<Self> {
        Err(none())
    }

    /// Cannot be called.
    pub(super) fn sign(&self, _: &Path, _: &str) -> Result<()> {
        match self.0 {}
    }
}

/// The path that a signature of a file would have.
pub(super) fn signature_of(path: &Path) -> PathBuf {
    with_suffix(path, ".minisig")
}

/// Nothing replaces a signature.
pub(super) fn is_signature(_: &Path) -> bool {
    false
}

/// Fails.
pub(super) fn check(_: &Path, _: &[u8], _: &str) -> Result<()> {
    Err(none())
}
