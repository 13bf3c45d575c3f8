//! The settings of the terminal.

/// Remembers the settings of the terminal and restores them on drop. A prompt for a secret switches
/// the echo off, and may be interrupted.
#[derive(Debug)]
pub struct Terminal(Inner);

impl Terminal {
    /// `None` without a terminal: then there must be no prompt.
    pub fn remember() -> Option<Self> {
        Inner::remember().map(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // If the terminal is gone, its settings need not be restored.
        self.0.restore();
    }
}

#[cfg(unix)]
#[derive(Debug)]
struct Inner {
    tty: std::fs::File,
    settings: rustix::termios::Termios,
}

#[cfg(unix)]
impl Inner {
    fn remember() -> Option<Self> {
        let tty = std::fs::OpenOptions::new()
            .read(true)
            .open("/dev/tty")
            .ok()?;
        let settings = rustix::termios::tcgetattr(&tty).ok()?;
        Some(Self { tty, settings })
    }

    fn restore(&self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(&self.tty, OptionalActions::Now, &self.settings);
    }
}

#[cfg(windows)]
#[derive(Debug)]
struct Inner {
    console: std::fs::File,
    mode: u32,
}

#[cfg(windows)]
impl Inner {
    fn remember() -> Option<Self> {
        let console = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("CONIN$")
            .ok()?;
        let mode = winapi_util::console::mode(&console).ok()?;
        Some(Self { console, mode })
    }

    fn restore(&self) {
        let _ = winapi_util::console::set_mode(&self.console, self.mode);
    }
}
