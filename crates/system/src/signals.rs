//! Signals that request a process to stop.

use std::io;

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM; on Windows, Ctrl-Break, closing the console, or the end of the session.
    Terminate,
}

/// Receives signals from its creation on. A signal that arrives between two calls of
/// [`next`](Self::next) is not lost.
#[derive(Debug)]
pub struct Signals(Inner);

impl Signals {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Inner::listen().map(Self)
    }

    /// Waits for the next signal. Cancel-safe: drop the future to stop waiting.
    pub async fn next(&mut self) -> Signal {
        self.0.next().await
    }
}

#[cfg(unix)]
use tokio::signal::unix::{SignalKind, signal};

#[cfg(unix)]
#[derive(Debug)]
struct Inner {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Inner {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

/// Windows ends the process five seconds after its console was closed, whatever it is doing. A
/// clean stop that takes longer is like a kill, after which the transfer can be resumed.
#[cfg(windows)]
#[derive(Debug)]
struct Inner {
    c: tokio::signal::windows::CtrlC,
    r#break: tokio::signal::windows::CtrlBreak,
    close: tokio::signal::windows::CtrlClose,
    logoff: tokio::signal::windows::CtrlLogoff,
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(windows)]
impl Inner {
    fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_logoff, ctrl_shutdown};
        Ok(Self {
            c: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            logoff: ctrl_logoff()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.c.recv() => Signal::Interrupt,
            _ = self.r#break.recv() => Signal::Terminate,
            _ = self.close.recv() => Signal::Terminate,
            _ = self.logoff.recv() => Signal::Terminate,
            _ = self.shutdown.recv() => Signal::Terminate,
        }
    }
}

/// Turns a write beyond the maximum file size (`ulimit -f`) into an error. Without a handler, the
/// signal SIGXFSZ would end the process without a message. Needs a tokio runtime.
pub fn survive_long_files() {
    #[cfg(unix)]
    {
        let number = rustix::process::Signal::XFSZ.as_raw();
        // The handler stays installed when the receiver is dropped.
        let _ = signal(SignalKind::from_raw(number));
    }
}
