//! What the server prints on a terminal around its two lines, `export OHURI=...` and
//! `export OHAUTH=...`: where the drives are, the web page, what to do with the lines, and how to
//! stop.
//!
//! The banner goes to stderr. Scripts evaluate stdout, so it has the two lines and nothing else, and
//! without a terminal there is no banner.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::self_signed::SelfSigned;
use crate::quoting::quote;

/// The facts that a banner prints.
pub(super) struct Banner {
    pub(super) data: PathBuf,
    pub(super) has_page: bool,
    /// The certificate that clients have to be given.
    pub(super) self_signed: Option<SelfSigned>,
}

impl Banner {
    /// The lines above the two lines, for a server at `uri`. If `is_any_port`, it listens at any port
    /// that was free, so that the next start gets another one.
    pub(super) fn above(&self, uri: &str, address: SocketAddr, is_any_port: bool) -> String {
        let mut text = format!("Drives:       {}\n", self.data.display());
        if self.has_page {
            let _ = writeln!(text, "Web page:     {uri}ui/");
        }
        if let Some(files) = &self.self_signed {
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
                let _ = writeln!(text, "{key:<13} https://{host}:{}/", address.port());
                key = "";
            }
        }
        if is_any_port {
            let _ = writeln!(
                text,
                "Port:         changes at the next start; to keep it: --listen {address}"
            );
        }
        let _ = writeln!(
            text,
            "\nIn another terminal, run these two lines, then for example \"openhosting ls{}\":\n",
            self.cacert()
        );
        text
    }

    /// The lines below them. At any port, a stored endpoint would not last.
    pub(super) fn below(&self, uri: &str, is_any_port: bool) -> String {
        let login = match is_any_port {
            true => String::new(),
            false => format!(
                "\nTo store them for every terminal: openhosting login --endpoint {uri}{}",
                self.cacert()
            ),
        };
        format!("{login}\nCtrl-C stops the server; the drives stay.\n\n")
    }

    /// The flag for a certificate of the server's own. The other terminal may be in another
    /// directory.
    fn cacert(&self) -> String {
        self.self_signed.as_ref().map_or_else(String::new, |files| {
            let path = std::path::absolute(&files.certificate);
            let path = path.as_deref().unwrap_or(&files.certificate);
            format!(" --cacert {}", quote(&path.to_string_lossy()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_the_page_and_the_certificate_if_they_exist() {
        let mut banner = Banner {
            data: "/d".into(),
            has_page: true,
            self_signed: None,
        };
        let above = |banner: &Banner, is_any_port| {
            let address = ([127, 0, 0, 1], 8463).into();
            banner.above("http://127.0.0.1:8463/", address, is_any_port)
        };
        let text = above(&banner, false);
        assert!(text.starts_with("Drives:       /d\nWeb page:     http://127.0.0.1:8463/ui/\n\n"));
        assert!(!text.contains("--listen"), "{text}");
        banner.has_page = false;
        banner.self_signed = Some(SelfSigned {
            certificate: "/c.pem".into(),
            key: "/c.key".into(),
            names: vec!["vm".into(), "2001:db8::2".into()],
            missing: Vec::new(),
        });
        let text = above(&banner, true);
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
        assert_eq!(
            banner.below("https://h:1/", false),
            "\nTo store them for every terminal: openhosting login --endpoint https://h:1/ --cacert /c.pem\n\
            Ctrl-C stops the server; the drives stay.\n\n"
        );
        assert!(!banner.below("https://h:1/", true).contains("login"));
        // The other terminal is in another directory.
        banner.self_signed = Some(SelfSigned {
            certificate: "c.pem".into(),
            key: "c.key".into(),
            names: Vec::new(),
            missing: Vec::new(),
        });
        let path = std::path::absolute("c.pem").unwrap();
        let example = format!("openhosting ls --cacert {}", quote(&path.to_string_lossy()));
        let text = above(&banner, true);
        assert!(text.contains(&example), "{text}");
    }
}
