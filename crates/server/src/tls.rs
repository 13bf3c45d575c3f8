//! TLS from a certificate and a key in PEM files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use openhosting_base::error::{Error, ErrorKind, Result};
use openhosting_filesystem::{Exposure, open_named, read_all, read_named};

/// A key has a few lines, and so does each certificate of a chain.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Reads the certificate chain and the key; the connection supports HTTP/1.1 only.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let failed = |path: &Path, cause: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("Cannot use {} for TLS", path.display());
        Error::new(ErrorKind::Usage, what).because(cause)
    };
    let pem = read_named(certificate, PEM_BYTES_MAX);
    let pem = pem.map_err(|error| cannot_read(certificate, error))?;
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| failed(certificate, error.into()))?;
    let private = private_key(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(certificate, error.into()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| failed(certificate, error.into()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn cannot_read(path: &Path, cause: std::io::Error) -> Error {
    let what = format!("Cannot read {} for TLS", path.display());
    Error::new(ErrorKind::Local, what).because(cause)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("Cannot use {} for TLS", path.display());
        Error::new(ErrorKind::Usage, what).because(cause)
    };
    let file = open_named(path).map_err(|error| cannot_read(path, error))?;
    let metadata = file.metadata().map_err(|error| cannot_read(path, error))?;
    let mode = metadata.permissions().mode();
    if metadata.is_file() && Exposure::of(mode) == Exposure::Open {
        let (file, mode) = (path.display(), mode & 0o7777);
        let what = format!("Others may use the TLS key {file}: its mode is {mode:04o}");
        return Err(Error::new(ErrorKind::Usage, what).hint_to(format!(
            "Run: chmod 600 {file}; in a volume of Kubernetes, set defaultMode: 0440"
        )));
    }
    let pem = read_all(file, PEM_BYTES_MAX).map_err(|error| cannot_read(path, error))?;
    let pem = Zeroizing::new(pem);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| failed(error.into()))
}
