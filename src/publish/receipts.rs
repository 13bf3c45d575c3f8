//! Receipts on this machine: read, and written so that there is an old one or a new
//! one, never half of one. Everything here blocks.

use std::path::{Path, PathBuf};

use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, directory_of, read_named, replace};
use crate::receipt::Receipt;

/// Most bytes of a receipt that are read: of a disk of 2 TiB that is all data.
const RECEIPT_BYTES_MAX: u64 = 1 << 30;

/// Reads a receipt.
///
/// # Errors
/// [`ErrorKind::Usage`] if it cannot be read or is none.
pub fn read_receipt(path: &Path) -> Result<Receipt> {
    read_receipt_if(path, |_| Ok(()))
}

/// Reads a receipt, if `check` finds nothing wrong with the bytes of its file.
///
/// # Errors
/// As [`read_receipt`], and what `check` says.
pub fn read_receipt_if(path: &Path, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<Receipt> {
    let cannot = || {
        let what = format!("Cannot use the receipt {}", path.display());
        Error::new(ErrorKind::Usage, what)
    };
    let bytes = read_named(path, RECEIPT_BYTES_MAX).map_err(|cause| cannot().because(cause))?;
    check(&bytes)?;
    Receipt::parse(&bytes).map_err(|cause| match cause.hint().map(str::to_owned) {
        Some(hint) => cannot().because(cause).hint_to(hint),
        None => cannot().because(cause),
    })
}

/// Writes a receipt in the place of an earlier one.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be written.
pub fn write_receipt(path: &Path, receipt: &Receipt) -> Result<()> {
    let cannot = |cause: std::io::Error| {
        let what = format!("Cannot write the receipt {}", path.display());
        Error::new(ErrorKind::Local, what).because(cause)
    };
    std::fs::create_dir_all(directory_of(path)).map_err(cannot)?;
    replace(path, Access::Private, receipt.print().as_bytes()).map_err(cannot)
}

/// The receipt of a drive in the directory of receipts.
pub(super) fn receipt_file(directory: &Path, drive: DriveId) -> PathBuf {
    directory.join(format!("{drive}.json"))
}
