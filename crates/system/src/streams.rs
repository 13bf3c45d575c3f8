//! What the standard streams are connected to.

use crate::FileId;

/// A standard output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The requested output.
    Stdout,
    /// Messages.
    Stderr,
}

impl Stream {
    /// Whether another program reads it, which may pass it on.
    pub fn is_piped(self) -> bool {
        is_piped(self)
    }

    /// The identity of its file; `None` if unknown.
    pub fn file_id(self) -> Option<FileId> {
        file_id(self)
    }
}

/// The width in columns of the terminal on stderr, if it is one that knows its width.
pub fn columns() -> Option<usize> {
    columns_of_stderr().filter(|columns| *columns > 0)
}

/// Prepares the terminal on stderr for control sequences, and returns whether it supports them.
pub fn takes_sequences() -> bool {
    #[cfg(windows)]
    return winapi_util::console::Console::stderr()
        .and_then(|mut console| console.set_virtual_terminal_processing(true))
        .is_ok();
    #[cfg(not(windows))]
    true
}

#[cfg(unix)]
fn stat(stream: Stream) -> Option<rustix::fs::Stat> {
    let stat = match stream {
        Stream::Stdout => rustix::fs::fstat(std::io::stdout()),
        Stream::Stderr => rustix::fs::fstat(std::io::stderr()),
    };
    stat.ok()
}

#[cfg(unix)]
fn is_piped(stream: Stream) -> bool {
    stat(stream).is_some_and(|stat| {
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        kind.is_fifo() || kind.is_socket()
    })
}

#[cfg(unix)]
// On other systems, the fields have other types.
#[allow(clippy::unnecessary_cast)]
fn file_id(stream: Stream) -> Option<FileId> {
    stat(stream).map(|stat| FileId {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
    })
}

#[cfg(unix)]
fn columns_of_stderr() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
    Some(usize::from(size.ws_col))
}

#[cfg(windows)]
fn is_piped(stream: Stream) -> bool {
    let kind = match stream {
        Stream::Stdout => winapi_util::file::typ(std::io::stdout()),
        Stream::Stderr => winapi_util::file::typ(std::io::stderr()),
    };
    kind.is_ok_and(|kind| kind.is_pipe())
}

#[cfg(windows)]
fn file_id(_: Stream) -> Option<FileId> {
    None
}

#[cfg(windows)]
fn columns_of_stderr() -> Option<usize> {
    let info = winapi_util::console::screen_buffer_info(std::io::stderr()).ok()?;
    usize::try_from(info.size().0).ok()
}

#[cfg(not(any(unix, windows)))]
fn is_piped(_: Stream) -> bool {
    // It may be a pipe: assume so, so that nothing is drawn that another program could garble.
    true
}

#[cfg(not(any(unix, windows)))]
fn file_id(_: Stream) -> Option<FileId> {
    None
}

#[cfg(not(any(unix, windows)))]
fn columns_of_stderr() -> Option<usize> {
    None
}
