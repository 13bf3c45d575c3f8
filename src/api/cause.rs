//! Why a request got no answer: translates errors of the HTTP and TLS libraries to something that a
//! user can act on.

use std::error::Error as StdError;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::endpoint::is_loopback;
use super::route::Route;
use super::trust::is_of_a_ca;
use crate::advice::{Advice, Remedy};
use crate::error::{causes, without_number};
use crate::failure::{Failure, Obstacle};
use openhosting_base::advice;

/// What is said about a port on which no program listens.
const REFUSED: &str = "connection refused";

/// The start of the message for a host name that has no address.
const UNRESOLVED: &str = "the host name cannot be resolved";
/// What glibc and musl say if no name server answers, so that the host may exist.
const NO_NAME_SERVER: [&str; 2] = ["Temporary failure in name resolution", "Try again"];

/// What this run knows about a server before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contact {
    /// The server has answered before.
    Again,
    /// The first request to an endpoint. One on another machine may start later than this run.
    FirstOfEndpoint,
    /// The first request for an image. Its URL may be mistyped.
    FirstOfImage,
}

impl Contact {
    /// Whether waiting for a server that cannot be connected to would only hide a mistake.
    fn is_mistake(self, why: &str, is_here: bool) -> bool {
        match self {
            Self::Again => false,
            Self::FirstOfEndpoint => is_here && why == REFUSED,
            Self::FirstOfImage => {
                let is_unknown = why.starts_with(UNRESOLVED)
                    && !NO_NAME_SERVER.iter().any(|cause| why.contains(cause));
                why == REFUSED || is_unknown
            }
        }
    }
}

/// The failure of a request that got no answer at all.
pub(super) fn no_answer(error: reqwest::Error, route: &Route, contact: Contact) -> Failure {
    let is_connect = error.is_connect();
    let place = error.url().map(|url| route.describe(url));
    let is_here = error.url().is_some_and(is_loopback);
    let error = error.without_url();
    let mut why = String::new();
    let mut known = None;
    for cause in causes(&error) {
        known = known.or_else(|| known_failure(cause));
        // The innermost cause says what happened; the others only say where.
        why = words_of(cause);
    }
    let place = place.unwrap_or_else(|| "the endpoint".to_owned());
    match known {
        Some(Known::Certificate(why)) => Failure::Certificate(format!("{place}: {why}")),
        Some(Known::Obstacle { why, hint }) => Failure::Barred(Obstacle {
            why: format!("{place}: {why}"),
            hint,
        }),
        None if is_connect && contact.is_mistake(&why, is_here) => {
            Failure::NoServer(format!("{place}: {why}"))
        }
        None if is_connect => Failure::Connect(format!("{place}: {why}")),
        None => Failure::Broken(format!("{place}: {why}")),
    }
}

/// Whether the connection was closed before any byte of the request was sent.
pub(super) fn was_not_sent(error: &reqwest::Error) -> bool {
    let is_canceled = |cause: &(dyn StdError + 'static)| {
        cause.downcast_ref().is_some_and(hyper::Error::is_canceled)
    };
    causes(error).any(is_canceled)
}

/// An error of the system or of a library, in plain words.
fn words_of(error: &(dyn StdError + 'static)) -> String {
    use std::io::ErrorKind as Io;
    if let Some(io) = error.downcast_ref::<std::io::Error>() {
        let words = match io.kind() {
            Io::ConnectionRefused => REFUSED,
            Io::ConnectionReset => "connection reset",
            Io::ConnectionAborted => "connection aborted",
            Io::HostUnreachable => "no route to the host",
            Io::NetworkUnreachable => "the network is unreachable",
            Io::TimedOut => "no answer in time",
            Io::UnexpectedEof => "the connection was closed",
            _ => "",
        };
        if !words.is_empty() {
            return words.to_owned();
        }
    }
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return tls_in_words(tls);
    }
    let text = without_number(&error.to_string());
    match text.strip_prefix("failed to lookup address information: ") {
        Some(why) => format!("{UNRESOLVED} ({why})"),
        None => text,
    }
}

/// An error of TLS, if nothing more is known than the library says.
fn tls_in_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => {
            format!("the other side ended TLS ({})", alert_in_words(*alert))
        }
        rustls::Error::General(why) => why.clone(),
        _ => "the TLS handshake failed".to_owned(),
    }
}

/// The name of an alert as words, such as `bad certificate`.
fn alert_in_words(alert: AlertDescription) -> String {
    let name = alert.as_str().unwrap_or("an unknown alert");
    let mut words = String::new();
    let mut was_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && was_lower {
            words.push(' ');
        }
        was_lower = c.is_lowercase();
        words.extend(c.to_lowercase());
    }
    words
}

/// A known cause, which another attempt does not change.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    Certificate(String),
    Obstacle { why: String, hint: Advice },
}

fn known_failure(error: &(dyn StdError + 'static)) -> Option<Known> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return of_tls(error);
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>()
        && error.is_parse()
    {
        return Some(Known::Obstacle {
            why: "the answer is not HTTP".into(),
            hint: "Check scheme and port of the endpoint: a port for TLS needs https://".into(),
        });
    }
    if let Some(io) = error.downcast_ref::<std::io::Error>() {
        // An io error does not return what it wraps as its `source`, which may be another io error.
        return io.get_ref().and_then(|inner| known_failure(inner));
    }
    of_tunnel(&error.to_string())
}

/// The answer of a proxy to the request for a tunnel. The type is private, so only its text can be
/// used; a test compares each of these texts with a real proxy's answer.
fn of_tunnel(text: &str) -> Option<Known> {
    let (why, hint) = match text.strip_prefix("tunnel error: ")? {
        "proxy authorization required" => (
            "the proxy wants a user and a password (407)",
            "Name them in the variable of the proxy: http://USER:PASSWORD@HOST:PORT",
        ),
        "unsuccessful" => (
            "the proxy refuses the way to the endpoint",
            "Ask who runs the proxy, name another one, or leave it out with NO_PROXY=HOST",
        ),
        _ => return None,
    };
    Some(Known::Obstacle {
        why: why.into(),
        hint: hint.into(),
    })
}

fn of_tls(error: &rustls::Error) -> Option<Known> {
    const PLAIN: &str = "Check scheme and port of the endpoint: this port may be for http://";
    const VERSION: &str =
        "TLS 1.2 and 1.3 are spoken here: update the server, or the proxy before it";
    let obstacle = |why: &str, hint: &str| {
        Some(Known::Obstacle {
            why: why.to_owned(),
            hint: hint.into(),
        })
    };
    let client_certificate = |why: &str| {
        Some(Known::Obstacle {
            why: why.to_owned(),
            hint: advice!["Pass one with ", Remedy::ClientCertificate],
        })
    };
    match error {
        rustls::Error::InvalidCertificate(error) => Some(Known::Certificate(in_words(error))),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            obstacle("the answer is not TLS", PLAIN)
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => obstacle(
            "both sides have no version or cipher of TLS in common",
            VERSION,
        ),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => client_certificate(&format!(
            "a client certificate is required, or the one sent is refused ({})",
            alert_in_words(*alert)
        )),
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => client_certificate(
            "the server refuses the TLS handshake: it wants a client certificate, or other ciphers",
        ),
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => obstacle(
            "the server does not know this host name",
            "Check the endpoint's name",
        ),
        _ => None,
    }
}

/// What is wrong with a certificate.
fn in_words(error: &CertificateError) -> String {
    let what = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: compare the clocks"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another name"
        }
        CertificateError::UnknownIssuer => "nobody who is trusted here has signed it",
        CertificateError::Revoked => "it was revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not for a server"
        }
        error if is_of_a_ca(error) => {
            "it is the certificate of an authority (CA:TRUE), which is accepted for a server only if it is among the trusted certificates"
        }
        CertificateError::BadEncoding => "it is damaged",
        CertificateError::BadSignature => "its signature is wrong",
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed in a way that is not supported"
        }
        CertificateError::UnknownRevocationStatus | CertificateError::ExpiredRevocationList => {
            "whether it was revoked is unknown"
        }
        _ => "it cannot be used",
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_contain_no_names_of_libraries() {
        use std::io;
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(words_of(&refused), "connection refused");
        let other = io::Error::from_raw_os_error(13);
        assert_eq!(words_of(&other), "Permission denied");
        assert_eq!(
            alert_in_words(AlertDescription::BadCertificate),
            "bad certificate"
        );
        assert_eq!(alert_in_words(AlertDescription::UnknownCA), "unknown ca");
    }
}
