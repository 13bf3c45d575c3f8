//! What the standard streams are connected to.

use crate::FileId;

/// A standard stream that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What a program was asked for.
    Stdout,
    /// Messages.
    Stderr,
}

impl Stream {
    /// Whether another program reads it, and may pass it on.
    pub fn is_piped(self) -> bool {
        is_piped(self)
    }

    /// Which file it is; `None` where that is unknown.
    pub fn file_id(self) -> Option<FileId> {
        file_id(self)
    }
}

/// Columns of the terminal on stderr, if there is one that knows.
pub fn columns() -> Option<usize> {
    columns_of_stderr().filter(|columns| *columns > 0)
}

/// Prepares the terminal on stderr for control sequences. Whether it understands them.
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
// The fields have other types on other systems.
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
    // It may be: then nothing is drawn that could be crossed.
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
