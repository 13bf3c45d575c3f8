//! Reads and writes at an offset of a file, without a file position that threads would share.

use std::fs::File;
use std::io::{self, IoSlice};

/// Access at an offset in bytes.
pub trait FileAt {
    /// Reads up to `bytes.len()` bytes.
    ///
    /// # Errors
    /// As a read of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `bytes.len()` bytes.
    ///
    /// # Errors
    /// As a write to the file.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Fills `bytes`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, and as
    /// [`read_at`](Self::read_at).
    fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.read_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    bytes = &mut bytes[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of these slices consecutively, in one call if the system has one.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_all_slices_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for slice in &*slices {
            self.write_all_at(slice, at)?;
            at += slice.len() as u64;
        }
        Ok(())
    }
}

#[cfg(unix)]
impl FileAt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, offset)
    }

    fn write_all_slices_at(&self, mut slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match rustix::io::pwritev(self, slices, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// These calls also move the position of the file, but nothing here reads from the position.
#[cfg(windows)]
impl FileAt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(self, bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_written_one_after_the_other_at_their_place() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 12], 0).unwrap();
        let mut slices = [&b""[..], b"abc", b"", b"de"].map(IoSlice::new);
        file.write_all_slices_at(&mut slices, 4).unwrap();
        let mut bytes = [0; 12];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, *b"\t\t\t\tabcde\t\t\t");
        let beyond = file.read_exact_at(&mut bytes, 1).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
