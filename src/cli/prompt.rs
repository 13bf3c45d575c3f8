//! Prompts on the terminal, for secrets and for other answers.

use std::io::{BufRead, IsTerminal, Read};

use zeroize::Zeroizing;

use super::printable;
use crate::error::{Error, ErrorKind, Result};
use crate::system::Terminal;
use crate::transfer::blocking;

/// Maximum bytes of an answer that the user types. A key has a few dozen.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The question for the key of a user.
pub(super) const SECRET_KEY: &str = "Secret API key: ";

/// Asks for the key of the user without echo, as the original scripts do.
pub(super) async fn ask_for_key() -> Result<Zeroizing<String>> {
    let cannot = |why: &str| {
        let what = format!("The credentials hold no secret API key, and {why}");
        Error::new(ErrorKind::Usage, what).hint_to("Set OHAUTH=<user uuid>:<secret API key>")
    };
    if !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal() {
        return Err(cannot("there is no terminal to ask on"));
    }
    match secret(SECRET_KEY.to_owned()).await {
        Err(error) if error.kind() == ErrorKind::Usage => {
            Err(cannot("it cannot be asked for").because(error))
        }
        answer => answer,
    }
}

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

/// Reads one line of stdin.
///
/// # Errors
/// [`ErrorKind::Usage`] if stdin cannot be read, or the line is not UTF-8.
pub(super) async fn line() -> Result<Zeroizing<String>> {
    blocking(|| {
        let mut line = Zeroizing::new(String::new());
        let mut stdin = std::io::stdin().lock().take(ANSWER_BYTES_MAX);
        stdin
            .read_line(&mut line)
            .map_err(|cause| Error::new(ErrorKind::Usage, "Cannot read stdin").because(cause))?;
        Ok(line)
    })
    .await
}
