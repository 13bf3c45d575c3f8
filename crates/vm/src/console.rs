//! What a guest wrote to its serial port: the last MiB, in the file `console`.
//!
//! QEMU collects the output in a ring buffer in its memory, so that a guest cannot fill the disk,
//! whether this program is running or not. Every few seconds, and on request, new output is moved
//! from the ring to the file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use openhosting_filesystem::{Access, replace};

/// The size of the ring in bytes, and the maximum shown of a console: a choice, more than ten
/// thousand lines.
pub(crate) const RING_BYTES: u64 = 1024 * 1024;

/// Appends `bytes` to the file `path`, which never exceeds twice [`RING_BYTES`].
pub(crate) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    file.write_all(bytes)?;
    match file.metadata()?.len() > 2 * RING_BYTES {
        true => replace(path, Access::Private, &read(path)?),
        false => Ok(()),
    }
}

/// The end of the file `path`, at most [`RING_BYTES`]; empty if the file does not exist.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // QEMU can write in this directory, so the file is opened as carefully as for writing.
    let mut options = File::options();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(RING_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(RING_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_console_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        assert_eq!(read(&path).unwrap(), b"");
        append(&path, b"first").unwrap();
        assert_eq!(read(&path).unwrap(), b"first");
        for n in 0..50u8 {
            append(&path, &vec![n; 100_000]).unwrap();
            let len = std::fs::metadata(&path).unwrap().len();
            assert!(len <= 2 * RING_BYTES, "{len}");
        }
        let end = read(&path).unwrap();
        assert_eq!(end.len() as u64, RING_BYTES);
        assert!(end.ends_with(&[49; 100_000]) && end[0] >= 39);
    }
}
