//! Whose certificates are believed.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::client::cannot;
use crate::error::{Error, ErrorKind, Result};

/// Certificates that others are signed by. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificates(Arc<[CertificateDer<'static>]>);

impl Certificates {
    /// Reads what a PEM file holds, one certificate or several.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if there is none in it, or one that is damaged.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Usage, what);
        let found: Vec<_> = CertificateDer::pem_slice_iter(text)
            .collect::<std::result::Result<_, _>>()
            .map_err(|cause| wrong("A certificate is damaged").because(cause))?;
        if found.is_empty() {
            return Err(wrong("There is no certificate in PEM form"));
        }
        let certificates = Self(found.into());
        certificates.roots()?;
        Ok(certificates)
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.0.iter() {
            roots.add(certificate.clone()).map_err(|cause| {
                Error::new(ErrorKind::Usage, "A certificate cannot be used").because(cause)
            })?;
        }
        Ok(roots)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.len())
    }
}

/// Whose signature a server's certificate needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'c> {
    /// No certificate is good: there will be none to verify.
    Nobody,
    /// Those whom this machine trusts.
    Machine,
    /// These.
    Only(&'c Certificates),
    /// These, and those whom this machine trusts.
    MachineAnd(&'c Certificates),
}

impl Trust<'_> {
    /// The TLS of a client that trusts so.
    pub(super) fn tls(self) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(cannot)?;
        let by_machine = |more: &[CertificateDer<'static>]| {
            Verifier::new_with_extra_roots(more.iter().cloned(), provider).map_err(cannot)
        };
        let verifier = match self {
            Self::Nobody => {
                let config = config.with_root_certificates(RootCertStore::empty());
                return Ok(config.with_no_client_auth());
            }
            Self::Only(certificates) => {
                let config = config.with_root_certificates(certificates.roots()?);
                return Ok(config.with_no_client_auth());
            }
            Self::Machine => by_machine(&[])?,
            Self::MachineAnd(certificates) => by_machine(&certificates.0)?,
        };
        // The verifier of the platform is set in no other way; it verifies all the same.
        let config = config.dangerous();
        let config = config.with_custom_certificate_verifier(Arc::new(verifier));
        Ok(config.with_no_client_auth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_from_pem() {
        let pem = || {
            let made = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
            made.cert.pem()
        };
        let two = format!("# ours\n{}{}", pem(), pem());
        let certificates = Certificates::from_pem(two.as_bytes()).unwrap();
        assert_eq!(format!("{certificates:?}"), "2 certificates");
        let cut = pem().replace("-----END", "----");
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for bad in ["", "no PEM", &cut, other] {
            let error = Certificates::from_pem(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
