//! The way from this machine to a server, for messages: where the endpoint and the proxy were
//! configured.

use std::fmt;
use std::sync::Arc;

use reqwest::Url;

use crate::commands::Commands;

/// The configured proxies, and where they were configured.
pub trait Proxies: fmt::Debug + Send + Sync {
    /// The proxy for a URL and where it was configured, such as `http://proxy:3128, from
    /// https_proxy`. Contains no password.
    fn describe(&self, url: &Url) -> Option<String>;

    /// Whether a URL is excluded from all proxies in a way that the HTTP library does not support,
    /// such as by its port.
    fn excludes(&self, url: &Url) -> bool;
}

/// Where the endpoint and the proxies were configured. The default is unknown.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Where the endpoint comes from: a flag, a variable, a profile.
    pub endpoint_from: Option<String>,
    /// The proxies.
    pub proxies: Option<Arc<dyn Proxies>>,
    /// The commands that messages print.
    pub commands: Commands,
}

impl Route {
    /// Where a request to this URL goes, and where that was configured.
    pub(super) fn describe(&self, url: &Url) -> String {
        let host = url.host_str().unwrap_or_default();
        let place = match url.port_or_known_default() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let from = self.endpoint_from.as_ref();
        let place = from.map_or_else(|| place.clone(), |from| format!("{place} (from {from})"));
        match self.proxy(url) {
            Some(proxy) => format!("{place} through the proxy {proxy}"),
            None => place,
        }
    }

    /// The proxy for this URL, and where it was configured.
    pub(crate) fn proxy(&self, url: &Url) -> Option<String> {
        let is_direct = super::endpoint::is_loopback(url) || self.excludes(url);
        let proxies = self.proxies.as_ref().filter(|_| !is_direct);
        proxies.and_then(|proxies| proxies.describe(url))
    }

    /// Whether no proxy may be used for this URL.
    pub(super) fn excludes(&self, url: &Url) -> bool {
        let proxies = self.proxies.as_ref();
        proxies.is_some_and(|proxies| proxies.excludes(url))
    }
}
