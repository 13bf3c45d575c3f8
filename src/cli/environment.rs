//! What comes from the environment: the endpoint and who asks.

use std::env;
use std::io::IsTerminal;
use std::path::PathBuf;

use crate::api::{Client, ClientConfig, Endpoint};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Reads the endpoint and the credentials, and makes a client of them.
/// `endpoint` comes from the command line and goes before the environment.
pub(super) fn client(endpoint: Option<&str>, config: &ClientConfig) -> Result<Client> {
    let uri = match endpoint {
        Some(uri) => uri.to_owned(),
        None => variable(["OHURI", "EHURI"])?
            .ok_or_else(|| missing("Please set OHURI=<API endpoint URI>"))?,
    };
    let endpoint: Endpoint = uri.parse()?;
    Client::new(endpoint, &credentials()?, config)
}

fn credentials() -> Result<Credentials> {
    let auth = variable(["OHAUTH", "EHAUTH"])?
        .ok_or_else(|| missing("Please set OHAUTH=<user uuid>:<secret API key>"))?;
    match Credentials::split(&auth) {
        (user, Some(key)) => Credentials::new(user, key),
        (user, None) => Credentials::new(user, ask_for_key(user)?),
    }
}

/// Asks once for the key of `user`, without echo, as the original does.
fn ask_for_key(user: &str) -> Result<String> {
    let cannot = |why: &str| {
        let what = format!("OHAUTH holds no secret API key, and {why}");
        Error::new(ErrorKind::Usage, what).hint_to("Set OHAUTH=<user uuid>:<secret API key>")
    };
    if !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal() {
        return Err(cannot("there is no terminal to ask on"));
    }
    rpassword::prompt_password(format!("Enter host password for user '{user}':"))
        .map_err(|cause| cannot("it cannot be asked for").because(cause))
}

/// Where a user's programs keep what they learnt: `XDG_STATE_HOME`, which must
/// be absolute to count, or `~/.local/state`.
pub(super) fn state_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let state = set("XDG_STATE_HOME").map(PathBuf::from);
    state
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".local/state")))
}

/// A directory of this program among those.
pub(super) fn state_of(name: &str) -> Option<PathBuf> {
    Some(state_directory()?.join("openhosting").join(name))
}

/// The first of these variables that is set to something.
fn variable(names: [&str; 2]) -> Result<Option<String>> {
    for name in names {
        match env::var(name) {
            Ok(value) if !value.is_empty() => return Ok(Some(value)),
            Ok(_) | Err(env::VarError::NotPresent) => {}
            // The value is not quoted: it may be a secret.
            Err(env::VarError::NotUnicode(_)) => {
                let what = format!("{name} is not UTF-8");
                return Err(Error::new(ErrorKind::Usage, what));
            }
        }
    }
    Ok(None)
}

/// The file of the journal of a transfer that is described by `what`; `None` if
/// there is no place for one.
pub(super) fn journal_path(what: &[&str]) -> Option<PathBuf> {
    let digest = Digest::of(what.join("\n").as_bytes()).to_string();
    let name = format!("openhosting/journals/{}.ohj", &digest[..16]);
    Some(state_directory()?.join(name))
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::Usage, what)
}
