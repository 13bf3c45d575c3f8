//! What comes from the environment.

use std::env;
use std::io::IsTerminal;
use std::path::PathBuf;

use reqwest::Url;
use zeroize::Zeroizing;

use super::prompt;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Asks once for the key of `user`, without echo, as the original does.
pub(super) async fn ask_for_key(user: &str) -> Result<Zeroizing<String>> {
    let cannot = |why: &str| {
        let what = format!("The credentials hold no secret API key, and {why}");
        Error::new(ErrorKind::Usage, what).hint_to("Set OHAUTH=<user uuid>:<secret API key>")
    };
    if !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal() {
        return Err(cannot("there is no terminal to ask on"));
    }
    match prompt::secret(format!("Enter host password for user '{user}':")).await {
        Err(error) if error.kind() == ErrorKind::Usage => {
            Err(cannot("it cannot be asked for").because(error))
        }
        answer => answer,
    }
}

/// The directory of the user, if `HOME` tells it.
pub(super) fn home() -> Option<PathBuf> {
    path("HOME")
}

fn path(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// A base directory of XDG: what its variable says, which must be absolute to count, or
/// this one below the user's.
fn base_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let told = path(variable).filter(|path| path.is_absolute());
    told.or_else(|| Some(home()?.join(below_home)))
}

/// Where a user's programs keep what they learnt.
pub(super) fn state_directory() -> Option<PathBuf> {
    base_directory("XDG_STATE_HOME", ".local/state")
}

/// The config of this program.
pub(super) fn config_file() -> Option<PathBuf> {
    let directory = base_directory("XDG_CONFIG_HOME", ".config")?;
    Some(directory.join("openhosting/config.toml"))
}

/// A directory of this program among those.
pub(super) fn state_of(name: &str) -> Option<PathBuf> {
    Some(state_directory()?.join("openhosting").join(name))
}

/// The first of these variables that is set to something.
pub(super) fn variable(names: &[&str]) -> Result<Option<String>> {
    for name in names {
        match env::var(name) {
            // A byte order mark comes along where the value was read from such a file.
            Ok(value) if !value.is_empty() => {
                let value = value
                    .strip_prefix('\u{feff}')
                    .map(str::to_owned)
                    .unwrap_or(value);
                return Ok(Some(value));
            }
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

/// Checks the variables that name proxies: one that cannot be understood would be passed
/// over without a word, and the requests would go another way than they were meant to.
///
/// # Errors
/// [`ErrorKind::Usage`], which names the variable and not its value: a password may be in
/// it.
pub(super) fn check_proxies() -> Result<()> {
    const PROXIES: [&str; 6] = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    for name in PROXIES {
        if let Some(value) = variable(&[name])?
            && !is_proxy(&value)
        {
            let what = format!("The variable {name} does not name a proxy");
            return Err(Error::new(ErrorKind::Usage, what).hint_to(
                "A proxy is named as http://HOST:PORT, with https or socks5h as well; NO_PROXY=HOST leaves it out",
            ));
        }
    }
    Ok(())
}

fn is_proxy(value: &str) -> bool {
    const SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
    let url = match value.contains("://") {
        true => value.parse::<Url>(),
        false => format!("http://{value}").parse(),
    };
    url.is_ok_and(|url| url.has_host() && SCHEMES.contains(&url.scheme()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_proxy() {
        for good in [
            "http://p:3128",
            "https://u:k@p",
            "p:3128",
            "10.0.0.1:8080",
            "u:k@p:1/",
            "socks5h://localhost:1080",
            "http://[::1]:80",
        ] {
            assert!(is_proxy(good), "{good}");
        }
        for bad in [
            "http://",
            "ftp://p:21",
            "http://p:99999",
            "http://u:k@:1",
            "://",
            "p q",
        ] {
            assert!(!is_proxy(bad), "{bad}");
        }
    }
}
