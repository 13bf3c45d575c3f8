//! Standard streams that do not block, and standard streams as files.
//!
//! `O_NONBLOCK` belongs to the open file, which stdin, stdout and stderr share with the process
//! that started this one. Node.js and rsync set it on their pipes, and then a full or empty pipe
//! returns `EAGAIN`, which is not a failure but a reason to wait. Windows has no such flag, and its
//! streams always block.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};

#[cfg(unix)]
pub use std::os::fd::AsFd as Stream;

/// A stream that can be waited for. On Windows this is any type, because waiting is never
/// necessary.
#[cfg(not(unix))]
pub trait Stream {}

#[cfg(not(unix))]
impl<T> Stream for T {}

/// Reads and writes as if the stream blocked.
#[derive(Debug)]
pub struct Waiting<T>(pub T);

/// Standard output without a buffer.
///
/// # Errors
/// If it is closed, or the process has no more file descriptors.
pub fn stdout() -> io::Result<Waiting<File>> {
    #[cfg(unix)]
    let stdout = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
    #[cfg(windows)]
    let stdout = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned()?;
    Ok(Waiting(File::from(stdout)))
}

/// Whether stdout was closed when the program started.
///
/// The runtime opens `/dev/null` for reading and writing in place of a closed stream, before `main`.
/// Some programs start others with such a stdout, for example Python with `DEVNULL`, so this is also
/// true for a stdout whose output should be discarded. A `/dev/null` from the redirection of a shell
/// is for writing only.
pub fn is_stdout_closed() -> bool {
    #[cfg(unix)]
    {
        use rustix::fs::{OFlags, fcntl_getfl};
        let Ok(Waiting(file)) = stdout() else {
            return true;
        };
        let is_null = file.metadata().is_ok_and(|it| crate::is_null_device(&it));
        is_null && fcntl_getfl(&file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR)
    }
    #[cfg(not(unix))]
    stdout().is_err()
}

/// Standard input without a buffer.
///
/// # Errors
/// If it is closed, or the process has no more file descriptors.
pub fn stdin() -> io::Result<File> {
    #[cfg(unix)]
    let stdin = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?;
    #[cfg(windows)]
    let stdin = std::os::windows::io::AsHandle::as_handle(&io::stdin()).try_clone_to_owned()?;
    Ok(File::from(stdin))
}

/// What to wait for.
#[derive(Clone, Copy)]
enum Until {
    Readable,
    Writable,
}

#[cfg(unix)]
fn wait<T: Stream>(stream: &T, until: Until) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let flags = match until {
        Until::Readable => PollFlags::IN,
        Until::Writable => PollFlags::OUT,
    };
    let fd = PollFd::new(stream, flags);
    rustix::io::retry_on_intr(|| poll(&mut [fd.clone()], None))?;
    Ok(())
}

#[cfg(not(unix))]
fn wait<T: Stream>(_: &T, _: Until) -> io::Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(10));
    Ok(())
}

impl<T: Stream> Waiting<T> {
    fn wait_while<R>(
        &mut self,
        until: Until,
        mut step: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match step(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&self.0, until)?,
                done => return done,
            }
        }
    }
}

impl<T: Read + Stream> Read for Waiting<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait_while(Until::Readable, |stream| stream.read(bytes))
    }
}

impl<T: Write + Stream> Write for Waiting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait_while(Until::Writable, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait_while(Until::Writable, T::flush)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn writing_waits_for_a_full_stream_and_fails_on_a_closed_one() {
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
