//! Prompts for secrets on the terminal.

use zeroize::Zeroizing;

use super::printable;
use crate::error::{Error, ErrorKind, Result};
use crate::system::Terminal;
use crate::transfer::blocking;

/// The question for the key of a user.
pub(super) const SECRET_KEY: &str = "Secret API key: ";

/// Asks a question and reads the answer without echo. Drop the future to give up, for example on a
/// signal or at the deadline: the terminal is then restored.
///
/// # Errors
/// [`ErrorKind::Cancelled`] on Ctrl-C, [`ErrorKind::Usage`] if there is no terminal.
pub(super) async fn secret(question: String) -> Result<Zeroizing<String>> {
    // The read cannot be interrupted, so it runs on a separate thread, which may still be waiting
    // when the program ends. Then only this guard turns the echo on again.
    let _terminal = Terminal::remember();
    let question = printable::line(&question);
    blocking(|| {
        rpassword::prompt_password(question)
            .map(Zeroizing::new)
            .map_err(|cause| match cause.kind() {
                std::io::ErrorKind::Interrupted => Error::new(ErrorKind::Cancelled, "Stopped"),
                _ => Error::new(ErrorKind::Usage, "Cannot ask on the terminal").because(cause),
            })
    })
    .await
}
