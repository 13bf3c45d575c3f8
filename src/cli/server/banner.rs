//! What the server prints on a terminal around its two lines, `export OHURI=...` and
//! `export OHAUTH=...`: where the drives are, the web page, what to do with the lines, and how to
//! stop.
//!
//! The banner goes to stderr. Scripts evaluate stdout, so it has the two lines and nothing else, and
//! without a terminal there is no banner.

use std::fmt::Write as _;
use std::path::Path;

/// The facts that a banner prints.
pub(super) struct Banner<'a> {
    pub(super) data: &'a Path,
    pub(super) uri: &'a str,
    pub(super) has_page: bool,
    /// The certificate that clients have to be given.
    pub(super) certificate: Option<&'a Path>,
}

impl Banner<'_> {
    /// The lines above the two lines.
    pub(super) fn above(&self) -> String {
        let mut text = format!("Drives:       {}\n", self.data.display());
        if self.has_page {
            let _ = writeln!(text, "Web page:     {}ui/", self.uri);
        }
        if let Some(certificate) = self.certificate {
            let certificate = certificate.display();
            let _ = writeln!(
                text,
                "Certificate:  {certificate} (clients need --cacert with it)"
            );
        }
        text +=
            "\nIn another terminal, run these two lines, then for example \"openhosting ls\":\n\n";
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
            certificate: None,
        };
        let text = banner.above();
        assert!(text.starts_with("Drives:       /d\nWeb page:     http://127.0.0.1:8463/ui/\n\n"));
        banner.has_page = false;
        banner.certificate = Some(Path::new("/c.pem"));
        let text = banner.above();
        assert!(
            !text.contains("Web page") && text.contains("/c.pem (clients"),
            "{text}"
        );
    }
}
