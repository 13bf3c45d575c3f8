//! `--checksum`: the line in the format of `sha256sum`, and a file for `sha256sum -c`.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::printable;
use super::screen::Stdout;
use super::written_files::{WrittenFile, cannot_write, check_written, start_of};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, check_replace, replace, with_suffix};
use crate::nonblocking::Waiting;
use crate::system::bytes_of;

/// The line for a file of this name, including the line end.
fn line(digest: Digest, name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => escaped.extend_from_slice(b"\\\\"),
            b'\n' => escaped.extend_from_slice(b"\\n"),
            b'\r' => escaped.extend_from_slice(b"\\r"),
            _ => escaped.push(*byte),
        }
    }
    // A backslash at the start marks an escaped name.
    let mark = if escaped == name { "" } else { "\\" };
    let mut line = format!("{mark}{digest}  ").into_bytes();
    line.extend(escaped);
    line.push(b'\n');
    line
}

/// Prints the line on stdout, or on stderr if stdout receives the image.
///
/// # Errors
/// [`ErrorKind::Local`] if it cannot be written, for example because stdout is a file on a full
/// disk. A reader that went away is not an error.
pub(super) fn print(digest: Digest, path: &Path, is_on_stdout: bool) -> Result<()> {
    let name = path.as_os_str().to_string_lossy();
    // The format of `sha256sum` can express line ends, and no other control characters. These
    // would reach the terminal, so a name with some is escaped for display instead. That line is
    // not for `sha256sum -c`; the one in `PATH.sha256` is.
    let without_ends = name.replace(['\n', '\r'], "");
    let line = match printable::line(&without_ends) == without_ends {
        true => line(digest, &bytes_of(path.as_os_str())),
        false => format!("{digest}  {}\n", printable::line(&name)).into_bytes(),
    };
    let written = match is_on_stdout {
        true => Stdout::open().and_then(|mut out| out.write_all(&line).and_then(|()| out.flush())),
        false => Waiting(std::io::stderr()).write_all(&line),
    };
    match written {
        Err(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => {
            let error = Error::new(ErrorKind::Local, "Cannot print the SHA-256").because(cause);
            Err(error.hint_to("The transfer is complete: only this line is missing"))
        }
        _ => Ok(()),
    }
}

/// Writes the line to `PATH.sha256`, completely or not at all. Nothing is written for a device.
pub(super) fn keep(digest: Digest, path: &Path) -> Result<()> {
    let Some(name) = path.file_name().filter(|_| path.is_file()) else {
        return Ok(());
    };
    let beside = beside(path);
    replace(&beside, Access::Usual, &line(digest, &bytes_of(name))).map_err(cannot_write(&beside))
}

/// Checks before a transfer that the line can be written after it.
pub(super) fn check(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Ok(());
    }
    let beside = beside(path);
    let file = WrittenFile {
        what: "SHA-256 line",
        path: &beside,
        is_kind: is_line,
    };
    check_written(&[file], &[])?;
    check_replace(&beside, Access::Usual).map_err(cannot_write(&beside))
}

/// Whether a file consists of such a line.
fn is_line(path: &Path) -> bool {
    let bytes = start_of(path);
    let line = bytes.strip_prefix(b"\\").unwrap_or(&bytes);
    let Some((digest, rest)) = line.split_at_checked(64) else {
        return false;
    };
    let ends = rest.iter().filter(|byte| **byte == b'\n').count();
    digest.iter().all(u8::is_ascii_hexdigit) && rest.starts_with(b"  ") && ends == 1
}

fn beside(path: &Path) -> PathBuf {
    with_suffix(path, ".sha256")
}
