//! Questions on the terminal whose answer is a secret.

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::system::Terminal;
use crate::transfer::blocking;

/// Asks a question and reads the answer without echo. Drop the future to give up, as on
/// a signal or at the deadline: the terminal is then as it was before the question.
///
/// # Errors
/// [`ErrorKind::Cancelled`] on Ctrl-C, [`ErrorKind::Usage`] if there is no terminal.
pub(super) async fn secret(question: String) -> Result<Zeroizing<String>> {
    // The read cannot be interrupted, so it has a thread of its own, which may still wait
    // when the program ends. Only this guard then turns the echo on again.
    let _terminal = Terminal::remember();
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
