//! A certificate that `openhosting-server --tls-self-signed` makes for itself, so that TLS can be
//! tried without a certificate authority. Clients accept it with `--cacert`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::filesystem::{Access, private_directory, replace};

/// The files of the certificate and its key, for a server that listens on this address. They are
/// made once and stay the same, so that clients can keep the certificate that they have. The
/// certificate is for localhost, the addresses of the loopback interface and the one of `listen`.
///
/// # Errors
/// [`ErrorKind::Local`] if they cannot be written to `directory`.
pub(super) fn files(directory: &Path, listen: SocketAddr) -> Result<(PathBuf, PathBuf)> {
    let ip = listen.ip();
    // A colon is not allowed in names of files everywhere.
    let name = ip.to_string().replace(':', "-");
    let [certificate, key] =
        ["pem", "key"].map(|end| directory.join(format!("self-signed-{name}.{end}")));
    let cannot = |path: &Path| {
        let what = format!("Cannot write {}", path.display());
        move |cause: std::io::Error| Error::new(ErrorKind::Local, what).because(cause)
    };
    if certificate.exists() && key.exists() {
        return Ok((certificate, key));
    }
    private_directory(directory).map_err(cannot(directory))?;
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    let made = rcgen::generate_simple_self_signed(names).map_err(|cause| {
        Error::new(ErrorKind::Local, "Cannot make a certificate").because(cause)
    })?;
    // The key first: a certificate that is there has its key.
    let text = Zeroizing::new(made.signing_key.serialize_pem());
    replace(&key, Access::Private, text.as_bytes()).map_err(cannot(&key))?;
    let text = made.cert.pem();
    replace(&certificate, Access::Usual, text.as_bytes()).map_err(cannot(&certificate))?;
    Ok((certificate, key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_each_address() {
        let directory = tempfile::tempdir().unwrap();
        let of = |address: &str| files(directory.path(), address.parse().unwrap()).unwrap();
        let (certificate, key) = of("127.0.0.1:8463");
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&certificate).unwrap();
        assert_eq!(of("127.0.0.1:1"), (certificate.clone(), key));
        assert_eq!(std::fs::read(&certificate).unwrap(), before);
        assert_ne!(of("[::1]:8463").0, certificate);
    }
}
