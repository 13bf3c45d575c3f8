//! SIGINT and SIGTERM: the first one stops cleanly, the second at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::exit;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::{Stop, stop_channel};

/// What was heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicU8>);

impl Heard {
    /// The exit code of the first signal; 0 if there was none.
    pub(super) fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Listens from now on. Needs a runtime.
pub(super) fn listen(program: &'static str) -> Result<(Stop, Heard)> {
    let cannot = |cause| Error::new(ErrorKind::Local, "Cannot hear signals").because(cause);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let (handle, stop) = stop_channel();
    let heard = Heard::default();
    let told = heard.clone();
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => exit::SIGINT,
                _ = terminate.recv() => exit::SIGTERM,
            };
            if told.code() == 0 {
                told.0.store(code, Ordering::Relaxed);
                exit::say(&format!(
                    "{program}: finishing what is in flight; again to stop at once"
                ));
                handle.drain();
            } else {
                handle.abort();
            }
        }
    });
    Ok((stop, heard))
}
