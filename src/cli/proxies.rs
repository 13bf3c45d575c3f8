//! The proxies in the environment, as the HTTP library interprets them.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::environment::variable;
use crate::api::Proxies;
use crate::error::{Error, ErrorKind, Result};

/// Variables for https, then for http, then for both, each in the order in which the library
/// prefers them.
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NONE: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The proxy settings of the environment.
pub(super) struct FromEnvironment {
    matcher: Matcher,
    /// Each variable that is set, with its scheme; `None` for both schemes.
    named: Vec<(&'static str, Option<&'static str>)>,
    /// Entries of NO_PROXY with a port, which the library ignores.
    with_port: Vec<String>,
}

impl FromEnvironment {
    /// # Errors
    /// [`ErrorKind::Usage`](crate::error::ErrorKind::Usage) if a variable is not UTF-8.
    pub(super) fn read() -> Result<Self> {
        let excluded = variable(&NONE)?.unwrap_or_default();
        let entries = excluded.split(',').map(str::trim);
        let with_port = entries.filter(|entry| has_port(entry));
        let mut named = Vec::new();
        for (names, scheme) in [(HTTPS, Some("https")), (HTTP, Some("http")), (ALL, None)] {
            for name in names {
                if variable(&[name])?.is_some() {
                    named.push((name, scheme));
                }
            }
        }
        Ok(Self {
            matcher: Matcher::from_env(),
            named,
            with_port: with_port.map(str::to_ascii_lowercase).collect(),
        })
    }
}

/// Checks the variables that define proxies: an invalid one would be ignored silently, and requests
/// would take another way than intended.
///
/// # Errors
/// [`ErrorKind::Usage`], which names the variable and not its value, because that may contain a
/// password.
pub(super) fn check_proxies() -> Result<()> {
    for name in [HTTPS, HTTP, ALL].concat() {
        // The value is read again, because `variable` strips a byte order mark, and the library does
        // not.
        if variable(&[name])?.is_some() && !is_proxy(&std::env::var(name).unwrap_or_default()) {
            let what = format!("The variable {name} does not name a proxy");
            return Err(Error::new(ErrorKind::Usage, what).hint_to(
                "A proxy is named as http://HOST:PORT, with https or socks5h as well; in a password, @ is %40. NO_PROXY=HOST leaves it out",
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
    url.is_ok_and(|url| url.has_host() && SCHEMES.contains(&url.scheme())) && is_understood(value)
}

/// Whether the library understands the value of a variable. It ignores any other value, and would
/// connect without a proxy. If a password contains `@`, the library takes the rest for the host.
fn is_understood(value: &str) -> bool {
    let proxy = Matcher::builder().all(value).build();
    let url = "https://host/".parse();
    let intercept = url.ok().and_then(|url| proxy.intercept(&url));
    intercept.is_some_and(|found| {
        let place = found.uri().authority();
        place.is_some_and(|place| !place.as_str().contains('@'))
    })
}

fn has_port(entry: &str) -> bool {
    let port = entry.rsplit_once(':').map(|(_, port)| port);
    let is_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
    // An IPv6 address with a port is in brackets.
    is_port && (entry.starts_with('[') || entry.matches(':').count() == 1)
}

impl Proxies for FromEnvironment {
    fn describe(&self, url: &Url) -> Option<String> {
        let intercept = self.matcher.intercept(&url.as_str().parse().ok()?)?;
        let uri = intercept.uri();
        // Without the user and the password.
        let place = uri.authority().map_or("", |place| place.as_str());
        let place = place.rsplit('@').next().unwrap_or_default();
        let scheme = uri.scheme_str().unwrap_or("http");
        let mut named = self.named.iter();
        let from = named.find(|(_, of)| of.is_none_or(|of| of == url.scheme()));
        Some(match from {
            Some((name, _)) => format!("{scheme}://{place} (from {name})"),
            None => format!("{scheme}://{place}"),
        })
    }

    fn excludes(&self, url: &Url) -> bool {
        let Some(port) = url.port_or_known_default() else {
            return false;
        };
        let host = url.host_str().unwrap_or_default();
        self.with_port.iter().any(|entry| {
            let Some((name, number)) = entry.rsplit_once(':') else {
                return false;
            };
            let name = name.trim_start_matches("*.").trim_start_matches('.');
            let is_below = host
                .strip_suffix(name)
                .is_some_and(|left| left.ends_with('.'));
            number.parse() == Ok(port) && (host == name || is_below)
        })
    }
}

impl fmt::Debug for FromEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.named.iter().map(|(name, _)| name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_urls_are_recognised() {
        for good in [
            "http://p:3128",
            "https://u:k@p",
            "p:3128",
            "10.0.0.1:8080",
            "u:k@p:1",
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
            "u:k@p:1/",
            " http://p:3128",
            "http://u:k@l@p:3128",
        ] {
            assert!(!is_proxy(bad), "{bad}");
        }
    }

    #[test]
    fn a_proxy_that_the_library_would_ignore_or_misread_is_not_understood() {
        for good in [
            "http://h:1",
            "h:1",
            "http://u:p%40q@h",
            "socks5h://u:p@[::1]:1",
        ] {
            assert!(is_understood(good), "{good}");
        }
        for bad in [
            " http://h:1",
            "http://h:1 ",
            "http://u\n:p@h",
            "\u{feff}h:1",
            "http://u:p@q@h",
        ] {
            assert!(!is_understood(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_description_contains_no_part_of_a_password() {
        let proxies = FromEnvironment {
            matcher: Matcher::builder().all("http://u:p@q@h:1").build(),
            named: Vec::new(),
            with_port: Vec::new(),
        };
        let described = proxies.describe(&"https://a/".parse().unwrap());
        assert_eq!(described.as_deref(), Some("http://h:1"));
    }

    #[test]
    fn an_entry_with_a_port_excludes_that_port() {
        let proxies = FromEnvironment {
            matcher: Matcher::builder().build(),
            named: Vec::new(),
            with_port: ["h:8443", ".sub.test:443", "[::1]:80"]
                .map(str::to_owned)
                .into(),
        };
        let excludes = |url: &str| proxies.excludes(&url.parse().unwrap());
        for url in ["https://h:8443/a", "https://x.sub.test/", "http://[::1]/"] {
            assert!(excludes(url), "{url}");
        }
        for url in [
            "https://h/a",
            "https://xh:8443/",
            "https://sub.test:8/",
            "http://[::2]/",
        ] {
            assert!(!excludes(url), "{url}");
        }
        assert!(has_port("h:1") && has_port("[::1]:80"));
        assert!(!has_port("h") && !has_port("::1") && !has_port("h:x"));
    }
}
