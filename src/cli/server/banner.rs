//! What the server prints on a terminal around its two lines, `export OHURI=...` and
//! `export OHAUTH=...`: where the drives are, the web page, what to do with the lines, and how to
//! stop.
//!
//! The banner goes to stderr. Scripts evaluate stdout, so it has the two lines and nothing else, and
//! without a terminal there is no banner.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use super::self_signed::SelfSigned;
use crate::quoting::quote;

/// The facts that a banner prints.
pub(super) struct Banner<'a> {
    pub(super) data: &'a Path,
    pub(super) uri: &'a str,
    pub(super) has_page: bool,
    /// The certificate that clients have to be given.
    pub(super) self_signed: Option<&'a SelfSigned>,
    pub(super) address: SocketAddr,
    /// Whether it listens at any port that was free, so that the next start gets another one.
    pub(super) is_any_port: bool,
}

impl Banner<'_> {
    /// The lines above the two lines.
    pub(super) fn above(&self) -> String {
        let mut text = format!("Drives:       {}\n", self.data.display());
        if self.has_page {
            let _ = writeln!(text, "Web page:     {}ui/", self.uri);
        }
        if let Some(files) = self.self_signed {
            let certificate = files.certificate.display();
            let _ = writeln!(
                text,
                "Certificate:  {certificate} (clients need --cacert with it)"
            );
            let mut key = "From others:";
            for name in &files.names {
                let host = match name.parse::<Ipv6Addr>() {
                    Ok(address) => format!("[{address}]"),
                    Err(_) => name.clone(),
                };
                let _ = writeln!(text, "{key:<13} https://{host}:{}/", self.address.port());
                key = "";
            }
        }
        if self.is_any_port {
            let address = self.address;
            let _ = writeln!(
                text,
                "Port:         changes at the next start; to keep it: --listen {address}"
            );
        }
        // The other terminal may be in another directory.
        let example = self
            .self_signed
            .map_or("openhosting ls".to_owned(), |files| {
                let path = std::path::absolute(&files.certificate);
                let path = path.as_deref().unwrap_or(&files.certificate);
                format!("openhosting ls --cacert {}", quote(&path.to_string_lossy()))
            });
        let _ = writeln!(
            text,
            "\nIn another terminal, run these two lines, then for example \"{example}\":\n"
        );
        text
    }

    /// The lines below them.
    pub(super) fn below(&self) -> &'static str {
        "\nCtrl-C stops the server; the drives stay.\n\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_the_page_and_the_certificate_if_they_exist() {
        let mut banner = Banner {
            data: Path::new("/d"),
            uri: "http://127.0.0.1:8463/",
            has_page: true,
            self_signed: None,
            address: ([127, 0, 0, 1], 8463).into(),
            is_any_port: false,
        };
        let text = banner.above();
        assert!(text.starts_with("Drives:       /d\nWeb page:     http://127.0.0.1:8463/ui/\n\n"));
        assert!(!text.contains("--listen"), "{text}");
        banner.has_page = false;
        banner.is_any_port = true;
        let files = SelfSigned {
            certificate: "/c.pem".into(),
            key: "/c.key".into(),
            names: vec!["vm".into(), "2001:db8::2".into()],
            missing: Vec::new(),
        };
        banner.self_signed = Some(&files);
        let text = banner.above();
        let others = "From others:  https://vm:8463/\n              https://[2001:db8::2]:8463/\n";
        assert!(text.contains(others), "{text}");
        assert!(
            text.contains("to keep it: --listen 127.0.0.1:8463\n"),
            "{text}"
        );
        assert!(
            !text.contains("Web page") && text.contains("/c.pem (clients"),
            "{text}"
        );
        assert!(
            text.contains("\"openhosting ls --cacert /c.pem\""),
            "{text}"
        );
        // The other terminal is in another directory.
        let files = SelfSigned {
            certificate: "c.pem".into(),
            key: "c.key".into(),
            names: Vec::new(),
            missing: Vec::new(),
        };
        banner.self_signed = Some(&files);
        let path = std::path::absolute("c.pem").unwrap();
        let example = format!("openhosting ls --cacert {}", quote(&path.to_string_lossy()));
        assert!(banner.above().contains(&example), "{}", banner.above());
    }
}
