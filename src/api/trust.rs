//! Trusted certificates.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use crate::error::{Error, ErrorKind, Result};

/// Certificates of authorities. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificates(Arc<[CertificateDer<'static>]>);

impl Certificates {
    /// Parses the certificates in a PEM file, one or several. Text between them is ignored,
    /// whatever its encoding is.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if there is no certificate, or a damaged one.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Usage, what);
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
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

/// Who has to sign a server's certificate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'c> {
    /// Nobody: there will be no certificate to verify.
    Nobody,
    /// Authorities that this machine trusts.
    Machine,
    /// These authorities.
    Only(&'c Certificates),
    /// These authorities, and those that this machine trusts.
    MachineAnd(&'c Certificates),
}

impl Trust<'_> {
    /// The TLS configuration of a client with this trust, and with a client certificate if given.
    pub(super) fn tls(self, identity: Option<&Identity>) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(cannot)?;
        let by_machine = |more: &[CertificateDer<'static>], provider| {
            Verifier::new_with_extra_roots(more.iter().cloned(), provider).map_err(cannot)
        };
        let (inner, trusted): (Arc<dyn ServerCertVerifier>, _) = match self {
            Self::Nobody => {
                let config = config.with_root_certificates(RootCertStore::empty());
                return Ok(config.with_no_client_auth());
            }
            Self::Only(certificates) => {
                let roots = Arc::new(certificates.roots()?);
                let built = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                (built.map_err(cannot)?, Some(certificates))
            }
            Self::Machine => (Arc::new(by_machine(&[], provider)?), None),
            Self::MachineAnd(certificates) => {
                let verifier = by_machine(&certificates.0, provider)?;
                (Arc::new(verifier), Some(certificates))
            }
        };
        let trusted = trusted.cloned();
        // A custom verifier can only be set this way; it does verify.
        let config = config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SelfSigned { inner, trusted }));
        match identity {
            None => Ok(config.with_no_client_auth()),
            Some(identity) => config
                .with_client_auth_cert(identity.chain.to_vec(), identity.key.clone_key())
                .map_err(|cause| {
                    let what = "The client certificate and its key do not fit each other";
                    Error::new(ErrorKind::Usage, what).because(cause)
                }),
        }
    }
}

/// The certificate chain and private key with which a client identifies itself to a server. Cheap
/// to clone.
#[derive(Clone)]
pub struct Identity {
    chain: Arc<[CertificateDer<'static>]>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    /// Parses the certificates in one PEM file and the private key in another, or in the same.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if a certificate or the key is missing, damaged or encrypted. No
    /// message quotes the key.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self> {
        let chain = Certificates::from_pem(certificates)?.0;
        let wrong = |what: &str| Error::new(ErrorKind::Usage, what);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            wrong("There is no private key in PEM form, or it is encrypted")
                .hint_to("Decrypt a key with: openssl pkey -in KEY -out PLAIN-KEY")
        })?;
        Ok(Self {
            chain,
            key: Arc::new(key),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates and a key", self.chain.len())
    }
}

/// Verifies as another verifier does, but also accepts a self-signed certificate that the user
/// trusts explicitly.
///
/// `openssl req -x509` marks such a certificate as that of a CA, and a CA's certificate is refused
/// for a server. A user who passes it to `--cacert` trusts it, as with curl.
#[derive(Debug)]
struct SelfSigned {
    inner: Arc<dyn ServerCertVerifier>,
    trusted: Option<Certificates>,
}

impl SelfSigned {
    fn trusts(&self, certificate: &CertificateDer<'_>) -> bool {
        let trusted = self.trusted.as_ref();
        trusted.is_some_and(|trusted| trusted.0.iter().any(|one| one == certificate))
    }
}

/// Whether the only problem of a certificate is that it is that of a CA. Its validity period was
/// checked before.
///
/// The error is of a crate that rustls does not show, and its text is the name of its variant.
pub(super) fn is_of_a_ca(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(cause) if cause.to_string() == "CaUsedAsEndEntity")
}

impl ServerCertVerifier for SelfSigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(rustls::Error::InvalidCertificate(error))
                if is_of_a_ca(&error) && self.trusts(end_entity) =>
            {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The error for an HTTP client that cannot be set up.
pub(super) fn cannot(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Local, "Cannot set up the HTTP client").because(cause)
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
        let (first, second) = (pem(), pem());
        let odd = [
            &b"\xef\xbb\xbf"[..],
            first.as_bytes(),
            b"# M\xfcller\r\n",
            second.as_bytes(),
        ];
        let certificates = Certificates::from_pem(&odd.concat()).unwrap();
        assert_eq!(format!("{certificates:?}"), "2 certificates");
        let cut = pem().replace("-----END", "----");
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for bad in ["", "no PEM", &cut, other] {
            let error = Certificates::from_pem(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
