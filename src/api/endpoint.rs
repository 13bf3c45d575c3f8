//! The base of all URLs: `OHURI`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

use crate::advice::Remedy;
use crate::error::{Error, ErrorKind, Result};
use openhosting_base::advice;

/// Where the API is: scheme, host, port and optionally a path prefix (docs/dev/reference.md, 1.1).
///
/// Credentials are sent to it, so it must be https, or http to this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
}

impl Endpoint {
    /// The URL of a path below the endpoint. Each segment is percent-encoded, so that no argument
    /// can change the structure of the path.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for `.` and `..`, which no URL can represent, and for control
    /// characters, some of which a URL silently drops.
    pub fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Result<Url> {
        let mut url = self.url.clone();
        {
            let mut path = url.path_segments_mut().map_err(|()| {
                Error::new(ErrorKind::Bug, "The endpoint's URL cannot have a path")
            })?;
            path.pop_if_empty();
            for segment in segments {
                if matches!(segment, "." | "..") || segment.contains(char::is_control) {
                    let what = format!("{segment:?} cannot be part of a call");
                    return Err(Error::new(ErrorKind::Usage, what));
                }
                path.push(segment);
            }
        }
        Ok(url)
    }

    /// This URL without its path; `None` if it has no path.
    #[cfg(feature = "cli")]
    pub(crate) fn without_path(&self) -> Option<Self> {
        let mut url = self.url.clone();
        url.set_path("/");
        let has_path = !self.url.path().trim_matches('/').is_empty();
        has_path.then_some(Self { url })
    }

    /// Whether the endpoint is on this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// Whether no request to it can need a certificate: it is on this machine, so no proxy is used,
    /// and it does not use TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.is_loopback() && self.url.scheme() == "http"
    }

    /// Whether its host is `localhost`, which the client pins to loopback addresses instead of
    /// trusting a resolver.
    pub(super) fn is_localhost(&self) -> bool {
        self.url.host_str() == Some("localhost")
    }
}

/// Whether a URL refers to this machine. No proxy is used for such a URL: to the proxy it would
/// mean another machine, and the proxy would see data that should not leave this one.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text is not quoted, because it may contain a password.
        let wrong = |what: &str| {
            Error::new(ErrorKind::Usage, format!("The endpoint URI {what}")).hint_to(advice![
                "Set ",
                Remedy::CheckEndpoint,
                " to something like https://api-east1.openhosting.com/"
            ])
        };
        let url: Url = text.trim().parse().map_err(|_| {
            let shown = if text.contains('@') { "" } else { text };
            wrong(&format!("{shown:?} is not a URL"))
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("holds a user or a password: these belong in OHAUTH"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("holds a ? or a #"));
        }
        let endpoint = Self { url };
        match endpoint.url.scheme() {
            _ if endpoint.url.host_str().is_none() => Err(wrong("names no host")),
            "https" => Ok(endpoint),
            "http" if endpoint.is_loopback() => Ok(endpoint),
            "http" => Err(wrong(&format!(
                "{endpoint} is plain http: the secret key would travel in the clear"
            ))
            .hint_to("Use https; plain http is for servers on this machine only")),
            other => Err(wrong(&format!("has scheme {other:?}, not https"))),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(endpoint: &str, segments: &[&str]) -> String {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        endpoint.url(segments.iter().copied()).unwrap().to_string()
    }

    #[test]
    fn a_path_is_joined_by_segments() {
        let list = &["drives", "list"];
        // Without the slash, the original script sent credentials to another host.
        assert_eq!(
            url("https://api.example.com", list),
            "https://api.example.com/drives/list"
        );
        assert_eq!(
            url("https://a.example/api/", list),
            "https://a.example/api/drives/list"
        );
        assert_eq!(
            url("http://127.0.0.1:1", &["x y", "[a]{b}", "a?b#c"]),
            "http://127.0.0.1:1/x%20y/[a]%7Bb%7D/a%3Fb%23c"
        );
        let endpoint: Endpoint = "https://api.example.com/".parse().unwrap();
        for bad in ["..", ".", "x\ny", "\tx", "x\0"] {
            assert!(endpoint.url([bad, "x"]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in [
            "http://127.0.0.1:8080/",
            "http://[::1]:80",
            "http://localhost",
            "https://h",
        ] {
            assert!(good.parse::<Endpoint>().is_ok(), "{good}");
        }
        for bad in [
            "http://api.example.com/",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com",
            "http://10.0.0.1",
            "ftp://h/",
            "api.example.com",
            "",
            "https://user@h/",
            "https://h/?x",
            "https://h/#x",
            "file:///etc/passwd",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_the_uri_is_not_shown() {
        for bad in ["https://u:canary@h/", "https://u:canary@/", "://u:canary@h"] {
            let error = bad.parse::<Endpoint>().unwrap_err();
            assert!(!error.chain().contains("canary"), "{}", error.chain());
        }
    }
}
