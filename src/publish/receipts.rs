//! Receipts on this machine: reading, and writing such that there is always a complete one, old or
//! new. Everything here blocks.

use std::path::{Path, PathBuf};

use crate::advice::Remedy;
use crate::drive::DriveId;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, check_replace, directory_of, read_named, replace};
use crate::receipt::Receipt;
use openhosting_base::advice;

/// Maximum bytes of a receipt: enough for a disk of 2 TiB without holes.
const RECEIPT_BYTES_MAX: u64 = 1 << 30;

/// Reads a receipt.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be read, [`ErrorKind::Usage`] if it is not a receipt.
pub(crate) fn read_receipt(path: &Path) -> Result<Receipt> {
    read_receipt_if(path, |_| Ok(()))
}

/// As [`read_receipt`], but first passes the bytes of the file to `check`.
///
/// # Errors
/// As [`read_receipt`], and errors of `check`.
pub(crate) fn read_receipt_if(
    path: &Path,
    check: impl FnOnce(&[u8]) -> Result<()>,
) -> Result<Receipt> {
    let cannot = |kind| {
        let what = format!("Cannot use the receipt {}", path.display());
        Error::new(kind, what)
    };
    let bytes = read_named(path, RECEIPT_BYTES_MAX).map_err(|cause| {
        let is_missing = cause.kind() == std::io::ErrorKind::NotFound;
        let error = cannot(ErrorKind::Local).because(cause);
        match is_missing {
            true => error.hint_to(advice![
                "Check the path: a receipt is a file that ",
                Remedy::WriteReceipt,
                " wrote, not the name of a drive",
            ]),
            false => error,
        }
    })?;
    check(&bytes)?;
    Receipt::parse(&bytes).map_err(|cause| cannot(ErrorKind::Usage).because_of(cause))
}

/// Writes a receipt, replacing an earlier one.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be written.
pub(crate) fn write_receipt(path: &Path, receipt: &Receipt) -> Result<()> {
    let written = std::fs::create_dir_all(directory_of(path))
        .and_then(|()| replace(path, Access::Private, receipt.print().as_bytes()));
    written.map_err(|cause| cannot_write(path, cause))
}

/// Checks before an image is published that a receipt can be written afterwards.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be written, for example because its directory does not exist.
pub fn check_receipt(path: &Path) -> Result<()> {
    check_replace(path, Access::Private).map_err(|cause| cannot_write(path, cause))
}

fn cannot_write(path: &Path, cause: std::io::Error) -> Error {
    let what = format!("Cannot write the receipt {}", path.display());
    Error::new(ErrorKind::Local, what).because(cause)
}

/// The path of a drive's receipt in the directory of receipts.
pub(super) fn receipt_file(directory: &Path, drive: DriveId) -> PathBuf {
    directory.join(format!("{drive}.json"))
}
