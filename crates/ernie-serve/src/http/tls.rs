//! TLS 1.2 and 1.3, from a certificate chain and a key in PEM.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, Result};

/// What a server needs to speak TLS.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a certificate chain, the server's own first, and its private key.
    ///
    /// # Errors
    /// [`Error::Parameter`] for what is no PEM, holds nothing, or does not fit together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self> {
        let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(|e| Error::parameter("the certificate", e, "a chain in PEM"))?;
        if chain.is_empty() {
            return Err(Error::parameter("the certificate", "empty", "a chain in PEM"));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| Error::parameter("the private key", e, "a PKCS#8, PKCS#1 or SEC1 key in PEM"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Internal(format!("TLS: {e}")))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| Error::parameter("the certificate", e, "one that belongs to the private key"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.0.clone()
    }
}
