//! A gzip file whose content is the disk's bytes: `-z` of the original tool.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Fingerprint, raw};
use crate::error::{Error, ErrorKind, Result};

/// Bytes unpacked at a time while measuring.
const STEP_BYTES: usize = 256 * 1024;

/// An open gzip image, all members of it checked. Read in order only.
#[derive(Debug)]
pub struct GzipImage {
    stream: MultiGzDecoder<BufReader<File>>,
    path: PathBuf,
    size: u64,
    fingerprint: Fingerprint,
}

impl GzipImage {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, fingerprint) = raw::open(path)?;
        let mut measure = MultiGzDecoder::new(BufReader::with_capacity(STEP_BYTES, file));
        let mut step = vec![0; STEP_BYTES];
        let mut size = 0;
        loop {
            match measure.read(&mut step) {
                Ok(0) => break,
                Ok(n) => size += n as u64,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(not_sound(path, size, cause)),
            }
        }
        if size == 0 {
            let what = format!("The content of {} is empty", path.display());
            return Err(Error::new(ErrorKind::Image, what));
        }
        let mut reader = measure.into_inner();
        reader.rewind().map_err(|cause| not_sound(path, 0, cause))?;
        Ok(Self {
            stream: MultiGzDecoder::new(reader),
            path: path.to_owned(),
            size,
            fingerprint,
        })
    }

    /// Bytes of the content.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub(super) fn check_unchanged(&self) -> Result<()> {
        Fingerprint::of(self.stream.get_ref().get_ref(), &self.path)?
            .check_same(&self.fingerprint, &self.path)
    }

    /// Fills `bytes` from where the last call ended.
    pub(super) fn read_next(&mut self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Ok(()),
            Err(cause) => {
                // It was sound a moment ago, so it changed or the disk fails.
                self.check_unchanged()?;
                Err(not_sound(&self.path, offset, cause))
            }
        }
    }

    /// Passes over `len` bytes from `offset`.
    pub(super) fn skip(&mut self, len: u64, offset: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.stream).take(len), &mut std::io::sink());
        match skipped {
            Ok(n) if n == len => Ok(()),
            Ok(_) => {
                let cause = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Err(not_sound(&self.path, offset, cause))
            }
            Err(cause) => Err(not_sound(&self.path, offset, cause)),
        }
    }
}

fn not_sound(path: &Path, offset: u64, cause: std::io::Error) -> Error {
    let what = format!(
        "{} is not sound gzip at byte {offset} of its content",
        path.display()
    );
    Error::new(ErrorKind::Image, what)
        .because(cause)
        .hint_to("Test it with: gzip -t FILE. Without -z the file is sent as it is")
}
