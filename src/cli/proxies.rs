//! The proxies in the environment, as the HTTP library interprets them.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::environment::variable;
use crate::api::Proxies;
use crate::error::Result;

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
        let place = uri
            .authority()
            .map_or_else(String::new, ToString::to_string);
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
