//! Where a request comes from according to the browser, and which host it is meant for.
//!
//! A browser that once received credentials for the API sends them with every request that a page
//! of any site makes. It also states which site made the request: in `Sec-Fetch-Site`, or in
//! `Origin` in older browsers. Other clients do not send these headers.

use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Request, Version};

use openhosting_tenancy::Refusal;

/// The origin of a request, according to the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Same,
    Other,
    /// Not a browser, or a person who typed the address.
    Nobody,
}

fn site(headers: &HeaderMap) -> Site {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().ok());
    let fetch_site = HeaderName::from_static("sec-fetch-site");
    match (text(&fetch_site), text(&ORIGIN), text(&HOST)) {
        (Some(Some("same-origin")), _, _) => Site::Same,
        (Some(Some("none")), _, _) => Site::Nobody,
        (Some(_), _, _) => Site::Other,
        (None, Some(origin), Some(Some(host))) => {
            let from = origin.and_then(|origin| origin.split_once("://"));
            match from.is_some_and(|(_, from)| from.eq_ignore_ascii_case(host)) {
                true => Site::Same,
                false => Site::Other,
            }
        }
        (None, Some(_), _) => Site::Other,
        (None, None, _) => Site::Nobody,
    }
}

/// Refuses a request that another site made a browser send.
pub(super) fn check_site(headers: &HeaderMap) -> Result<(), Refusal> {
    match site(headers) {
        Site::Other => Err(Refusal::usage(
            "The request comes from a page of another site",
        )),
        Site::Same | Site::Nobody => Ok(()),
    }
}

/// Whether the browser states that the page itself sent the request. Other clients have to state it
/// too. A form of another site can send neither these headers nor JSON.
pub(super) fn is_from_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    let is_json = content_type.is_some_and(|value| value == "application/json");
    is_json && site(headers) == Site::Same
}

/// Refuses an HTTP/1.1 request that does not name its host exactly once (RFC 9112, section 3.2):
/// something in front of this server may have interpreted it differently.
pub(super) fn check_host<B>(request: &Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let is_valid = match (hosts.next(), hosts.next()) {
        (None, _) => request.version() <= Version::HTTP_10,
        (Some(host), None) => {
            let host = host.to_str().unwrap_or("@");
            let is_host = |c: char| c.is_ascii_graphic() && !"/\\@?#,".contains(c);
            // A target with an authority of its own, as for a proxy, must name the same one.
            let target = request.uri().authority().map(Authority::as_str);
            let is_same = target.is_none_or(|target| target.eq_ignore_ascii_case(host));
            is_same && (host.is_empty() || host.chars().all(is_host))
        }
        (Some(_), Some(_)) => false,
    };
    match is_valid {
        true => Ok(()),
        false => Err(Refusal::framing("The request has not one valid Host")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        pairs.iter().map(header).collect()
    }

    #[test]
    fn a_request_from_another_site_is_refused() {
        let host = ("host", "cloud.example:8443");
        for (pairs, site_is) in [
            (vec![host], Site::Nobody),
            (vec![host, ("sec-fetch-site", "none")], Site::Nobody),
            (vec![host, ("sec-fetch-site", "same-origin")], Site::Same),
            (vec![host, ("sec-fetch-site", "cross-site")], Site::Other),
            (vec![host, ("sec-fetch-site", "same-site")], Site::Other),
            (vec![host, ("sec-fetch-site", "anything")], Site::Other),
            (
                vec![host, ("origin", "https://Cloud.Example:8443")],
                Site::Same,
            ),
            (vec![host, ("origin", "https://cloud.example")], Site::Other),
            (vec![host, ("origin", "null")], Site::Other),
            (vec![("origin", "https://cloud.example:8443")], Site::Other),
        ] {
            let headers = headers(&pairs);
            assert_eq!(site(&headers), site_is, "{pairs:?}");
            assert_eq!(check_site(&headers).is_err(), site_is == Site::Other);
        }
    }

    #[test]
    fn a_request_with_several_hosts_is_refused() {
        let request = |hosts: &[&'static str], version| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            for host in hosts {
                request.headers_mut().append(HOST, host.parse().unwrap());
            }
            check_host(&request).is_ok()
        };
        assert!(request(&["cloud.example"], Version::HTTP_11));
        assert!(request(&["[::1]:80"], Version::HTTP_11));
        assert!(request(&[""], Version::HTTP_11));
        assert!(request(&[], Version::HTTP_10));
        for hosts in [&[][..], &["a", "a"], &["a,b"], &["a b"], &["u@a"], &["a/b"]] {
            assert!(!request(hosts, Version::HTTP_11), "{hosts:?}");
        }
    }
}
