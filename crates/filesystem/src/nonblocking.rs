//! Standard streams that do not block.
//!
//! `O_NONBLOCK` belongs to the open file, which stdin, stdout and stderr share with the
//! process that started this one. Node.js and rsync set it on their pipes, and then a
//! full or an empty pipe is `EAGAIN`: no failure, but a reason to wait.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

/// Reads and writes as if the stream blocked.
#[derive(Debug)]
pub struct Waiting<T>(pub T);

/// stdout without a buffer of its own.
///
/// # Errors
/// If it is closed, or there are no more file descriptors.
pub fn stdout() -> io::Result<Waiting<File>> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(Waiting(File::from(stdout)))
}

impl<T: AsFd> Waiting<T> {
    fn wait_while<R>(
        &mut self,
        until: PollFlags,
        mut step: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match step(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let fd = PollFd::new(&self.0, until);
                    rustix::io::retry_on_intr(|| poll(&mut [fd.clone()], None))?;
                }
                done => return done,
            }
        }
    }
}

impl<T: Read + AsFd> Read for Waiting<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait_while(PollFlags::IN, |stream| stream.read(bytes))
    }
}

impl<T: Write + AsFd> Write for Waiting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait_while(PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait_while(PollFlags::OUT, T::flush)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_full_stream_is_waited_for_and_a_closed_one_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            let mut stream = Waiting(theirs);
            (&mut stream)
                .take(4_000_000)
                .read_to_end(&mut received)
                .unwrap();
            received
        });
        let mut stream = Waiting(ours);
        stream.write_all(&sent).unwrap();
        stream.flush().unwrap();
        assert!(reader.join().unwrap() == sent);
        let error = stream.write_all(&sent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
