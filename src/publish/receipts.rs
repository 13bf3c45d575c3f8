//! Receipts on this machine: reading, and writing such that there is always a complete one, old or
//! new. Everything here blocks.

use std::path::{Path, PathBuf};

use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, directory_of, read_named, replace};
use crate::receipt::Receipt;

/// Maximum bytes of a receipt: enough for a disk of 2 TiB without holes.
const RECEIPT_BYTES_MAX: u64 = 1 << 30;

/// Reads a receipt.
///
/// # Errors
/// [`ErrorKind::Usage`] if it cannot be read or is not a receipt.
pub fn read_receipt(path: &Path) -> Result<Receipt> {
    read_receipt_if(path, |_| Ok(()))
}

/// As [`read_receipt`], but first passes the bytes of the file to `check`.
///
/// # Errors
/// As [`read_receipt`], and errors of `check`.
pub fn read_receipt_if(path: &Path, check: impl FnOnce(&[u8]) -> Result<()>) -> Result<Receipt> {
    let cannot = || {
        let what = format!("Cannot use the receipt {}", path.display());
        Error::new(ErrorKind::Usage, what)
    };
    let bytes = read_named(path, RECEIPT_BYTES_MAX).map_err(|cause| cannot().because(cause))?;
    check(&bytes)?;
    Receipt::parse(&bytes).map_err(|cause| cannot().because_of(cause))
}

/// Writes a receipt, replacing an earlier one.
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

/// The path of a drive's receipt in the directory of receipts.
pub(super) fn receipt_file(directory: &Path, drive: DriveId) -> PathBuf {
    directory.join(format!("{drive}.json"))
}
